//! The ledger's stories: what is started, sent, answered and sent again.

use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::proto::v1::Package;

fn delivery(fence: u64) -> Delivery {
    let package = Package { queue: "jobs".into(), id: format!("p{fence}"), ..Default::default() };
    let lease = Some(duration(Duration::from_secs(60)));
    Delivery { package: Some(package), fence, lease, attempt: 1, checkpoint: Bytes::new() }
}

fn ledger(fences: &[u64]) -> Ledger {
    let mut ledger = Ledger::default();
    for &fence in fences {
        assert!(ledger.deliver(delivery(fence)).is_some());
    }
    ledger
}

fn status(code: Code, reason: &str) -> tonic_types::pb::Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "wharf", std::collections::HashMap::new());
    let status = tonic::Status::with_error_details(code, "told", details);
    prost::Message::decode(status.details()).expect("tonic writes what prost reads")
}

fn outcome(fence: u64, status: Option<tonic_types::pb::Status>) -> Outcome {
    Outcome { queue: "jobs".into(), id: format!("p{fence}"), fence, status }
}

fn verdict(fence: u64, kind: VerdictKind) -> Verdict {
    Verdict { queue: "jobs".into(), id: format!("p{fence}"), fence, kind: kind as i32, outcome: None }
}

fn held(ledger: &Ledger) -> Vec<u64> {
    ledger.held().iter().map(|held| held.fence).collect()
}

/// All that the ledger wants to send, in short.
fn messages(ledger: &mut Ledger) -> Vec<String> {
    let mut texts = Vec::new();
    while let Some(message) = ledger.next_message(64, limits::MAX_SETTLEMENTS_A_MESSAGE) {
        texts.push(match message {
            Request::Done(done) => format!("done {:?}", fences(done.completions.iter().map(|c| c.fence))),
            Request::Fail(fail) => format!("fail {:?}", fences(fail.failed.iter().map(|f| f.fence))),
            Request::Release(release) => format!("release {:?}", fences(release.held.iter().map(|h| h.fence))),
            Request::Extend(extend) => format!("extend {:?}", fences(extend.extensions.iter().map(|e| e.fence))),
            Request::SetCredit(credit) => format!("credit {}", credit.max_in_flight),
            other => panic!("the ledger never sends {other:?}"),
        });
    }
    texts
}

fn fences(fences: impl Iterator<Item = u64>) -> Vec<u64> {
    fences.collect()
}

fn start(ledger: &mut Ledger, now: Instant) -> (u64, CancellationToken) {
    let (lease, _, token) = ledger.start(now, true).expect("something is unstarted");
    (lease.fence, token)
}

#[tokio::test(start_paused = true)]
async fn the_oldest_lease_starts_first_and_a_duplicate_starts_nothing() {
    let now = Instant::now();
    let mut ledger = ledger(&[5, 3, 9]);
    assert!(ledger.deliver(delivery(3)).is_none());
    assert_eq!(start(&mut ledger, now).0, 3);
    assert!(ledger.deliver(delivery(3)).is_none(), "while it runs, too");
    assert_eq!(start(&mut ledger, now).0, 5);
    assert_eq!(start(&mut ledger, now).0, 9);
    assert!(ledger.start(now, true).is_none());
    assert_eq!(ledger.received_fence(), 9);
}

#[tokio::test(start_paused = true)]
async fn completions_share_a_message_and_stay_until_answered() {
    let now = Instant::now();
    let mut ledger = ledger(&[1, 2, 3]);
    for _ in 0..3 {
        start(&mut ledger, now);
    }
    assert!(ledger.finish(2, Ok(Completion::new("b"))));
    assert!(ledger.finish(1, Ok(Completion::new("a"))));
    assert!(ledger.finish(3, Err(Failure::new("no"))));
    assert_eq!(messages(&mut ledger), ["done [1, 2]", "fail [3]"]);
    assert_eq!(messages(&mut ledger), [""; 0], "nothing is sent twice on one stream");
    assert_eq!(held(&ledger), [1, 2, 3], "unanswered settlements are held");
    let change = ledger.outcome(outcome(1, None), now);
    assert!(matches!(change, Some(Change::Settled { kind: Kind::Done, result: Ok(()), .. })), "{change:?}");
    assert_eq!(held(&ledger), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_no_queue_can_take_fails_its_package_alone() {
    let now = Instant::now();
    let mut ledger = ledger(&[1, 2]);
    start(&mut ledger, now);
    start(&mut ledger, now);
    let most = limits::MAX_PAYLOAD_CEILING_BYTES as usize;
    ledger.finish(1, Ok(Completion::new(vec![0; most])));
    ledger.finish(2, Ok(Completion::new(vec![0; most + 1])));
    assert_eq!(messages(&mut ledger), ["done [1]", "fail [2]"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_break_unanswered_settlements_go_again_with_the_same_fence() {
    let now = Instant::now();
    let mut ledger = ledger(&[1, 2, 3, 4, 5]);
    for _ in 0..4 {
        start(&mut ledger, now);
    }
    for fence in 1..=3 {
        ledger.finish(fence, Ok(Completion::default()));
    }
    assert_eq!(messages(&mut ledger), ["done [1, 2, 3]"]);
    assert_eq!(held(&ledger), [1, 2, 3, 4, 5]);

    let verdicts = vec![
        verdict(1, VerdictKind::Settled),
        verdict(2, VerdictKind::Keep),
        verdict(3, VerdictKind::Gone),
        verdict(4, VerdictKind::Keep),
        verdict(5, VerdictKind::Gone),
    ];
    let changes = ledger.reattached(verdicts, now);
    assert!(
        matches!(
            &changes[..],
            [
                Change::Settled { lease: Lease { fence: 1, .. }, result: Ok(()), .. },
                Change::Lost { lease: Lease { fence: 5, .. }, .. }
            ]
        ),
        "{changes:?}"
    );
    // What the cluster calls gone is asked for once more: only its outcome says what was recorded.
    assert_eq!(messages(&mut ledger), ["done [2, 3]"]);
    assert!(matches!(
        ledger.outcome(outcome(3, Some(status(Code::FailedPrecondition, "LEASE_LOST"))), now),
        Some(Change::Settled { result: Err(_), .. })
    ));
    assert_eq!(held(&ledger), [2, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_settled_verdict_can_be_a_refusal() {
    let now = Instant::now();
    let mut ledger = ledger(&[1]);
    start(&mut ledger, now);
    ledger.finish(1, Ok(Completion::default()));
    let mut settled = verdict(1, VerdictKind::Settled);
    settled.outcome = Some(status(Code::FailedPrecondition, "ALREADY_FINISHED"));
    let changes = ledger.reattached(vec![settled], now);
    assert!(
        matches!(&changes[..], [Change::Settled { result: Err(error), .. }] if error.reason() == "ALREADY_FINISHED")
    );
    assert!(ledger.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_revoked_lease_cancels_its_handler_and_is_never_settled() {
    let now = Instant::now();
    let mut ledger = ledger(&[1, 2, 3]);
    let (_, token) = start(&mut ledger, now);
    start(&mut ledger, now);
    ledger.finish(2, Ok(Completion::default()));
    assert!(matches!(ledger.revoke(1, "cancelled"), Some(Change::Lost { .. })));
    assert!(token.is_cancelled());
    assert!(!ledger.finish(1, Ok(Completion::default())), "its result goes nowhere");
    assert!(ledger.revoke(2, "cancelled").is_none(), "its own outcome tells");
    assert!(matches!(ledger.revoke(3, "cancelled"), Some(Change::Lost { .. })));
    assert!(ledger.start(now, true).is_none());
    assert_eq!(messages(&mut ledger), ["done [2]"]);
}

#[tokio::test(start_paused = true)]
async fn a_recall_gives_back_the_youngest_unstarted() {
    let now = Instant::now();
    let mut ledger = ledger(&[1, 2, 3, 4]);
    start(&mut ledger, now);
    ledger.recall(2);
    assert_eq!(messages(&mut ledger), ["release [3, 4]"]);
    ledger.recall(100);
    assert_eq!(messages(&mut ledger), ["release [2]"], "never what runs");
    for fence in 2..=4 {
        assert!(matches!(
            ledger.outcome(outcome(fence, None), now),
            Some(Change::Settled { kind: Kind::Release, result: Ok(()), .. })
        ));
    }
    ledger.finish(1, Ok(Completion::default()));
    assert_eq!(messages(&mut ledger), ["done [1]"], "the Done brings the credit back");
    ledger.outcome(outcome(1, None), now);
    assert_eq!(messages(&mut ledger), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn credit_that_nothing_would_bring_back_is_asked_for() {
    let now = Instant::now();
    let mut ledger = ledger(&[1, 2]);
    start(&mut ledger, now);
    ledger.recall(1);
    assert_eq!(messages(&mut ledger), ["release [2]"]);
    ledger.outcome(outcome(2, None), now);
    ledger.revoke(1, "cancelled");
    assert_eq!(messages(&mut ledger), ["credit 64"]);
    assert_eq!(messages(&mut ledger), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn running_leases_are_extended_after_a_third_and_settlements_wait_for_the_answer() {
    let now = Instant::now();
    let mut ledger = ledger(&[1, 2]);
    start(&mut ledger, now);
    let due = ledger.next_due().expect("what runs is extended");
    assert_eq!(due - now, Duration::from_secs(20));
    ledger.tick(due);
    assert_eq!(messages(&mut ledger), ["extend [1]"]);
    ledger.finish(1, Ok(Completion::default()));
    assert_eq!(messages(&mut ledger), [""; 0], "else one outcome could be taken for the other");
    assert!(ledger.outcome(outcome(1, None), due).is_none());
    assert_eq!(messages(&mut ledger), ["done [1]"]);
    assert!(ledger.outcome(outcome(1, None), due).is_some());
    assert_eq!(held(&ledger), [2]);
    assert_eq!(ledger.next_due(), None, "what is not started has no deadline");
}

#[tokio::test(start_paused = true)]
async fn a_length_that_the_handler_asked_for_is_kept_up() {
    let now = Instant::now();
    let mut ledger = ledger(&[1]);
    start(&mut ledger, now);
    let long = Duration::from_secs(600);
    ledger.wish(1, Wish { by: Some(long), checkpoint: Bytes::new(), reply: None });
    assert_eq!(messages(&mut ledger), ["extend [1]"]);
    ledger.outcome(outcome(1, None), now);
    let due = ledger.next_due().expect("it is extended again");
    assert_eq!(due - now, long / 3);
    ledger.tick(due);
    let Some(Request::Extend(extend)) = ledger.next_message(64, limits::MAX_SETTLEMENTS_A_MESSAGE) else {
        panic!("expected an Extend")
    };
    assert_eq!(extend.extensions[0].by, Some(duration(long)));
}

#[tokio::test(start_paused = true)]
async fn only_so_many_extensions_of_a_lease_wait() {
    let now = Instant::now();
    let mut ledger = ledger(&[1]);
    start(&mut ledger, now);
    let mut wish = || {
        let (reply, answer) = oneshot::channel();
        ledger.wish(1, Wish { by: None, checkpoint: Bytes::new(), reply: Some(reply) });
        answer
    };
    let mut waiting: Vec<_> = (0..limits::CLIENT_MAX_EXTENSIONS_WAITING).map(|_| wish()).collect();
    let refused = wish().await.expect("answered at once").expect_err("refused");
    assert_eq!((refused.code(), refused.reason()), (Code::ResourceExhausted, "CLIENT"));
    assert!(waiting.iter_mut().all(|answer| answer.try_recv().is_err()), "the others wait for their turn");
}

#[tokio::test(start_paused = true)]
async fn a_refused_extension_loses_the_lease() {
    let now = Instant::now();
    let mut ledger = ledger(&[1]);
    let (_, token) = start(&mut ledger, now);
    let (reply, answer) = oneshot::channel();
    ledger.wish(1, Wish { by: None, checkpoint: Bytes::from_static(b"half"), reply: Some(reply) });
    assert_eq!(messages(&mut ledger), ["extend [1]"]);
    let lost = ledger.outcome(outcome(1, Some(status(Code::FailedPrecondition, "LEASE_LOST"))), now);
    assert!(matches!(lost, Some(Change::Lost { .. })), "{lost:?}");
    assert!(token.is_cancelled());
    assert_eq!(answer.await.expect("it is answered").expect_err("refused").reason(), "LEASE_LOST");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_asked_for_again_and_a_bad_result_fails_the_package() {
    let now = Instant::now();
    let mut ledger = ledger(&[1]);
    start(&mut ledger, now);
    ledger.finish(1, Ok(Completion::default()));
    assert_eq!(messages(&mut ledger), ["done [1]"]);
    assert!(ledger.outcome(outcome(1, Some(status(Code::Unavailable, "OUTCOME_UNKNOWN"))), now).is_none());
    assert_eq!(messages(&mut ledger), [""; 0]);
    let at = ledger.next_due().expect("it is sent again");
    ledger.tick(at);
    assert_eq!(messages(&mut ledger), ["done [1]"]);
    assert!(ledger.outcome(outcome(1, Some(status(Code::InvalidArgument, ""))), now).is_none());
    assert_eq!(messages(&mut ledger), ["fail [1]"]);
    assert!(matches!(
        ledger.outcome(outcome(1, None), now),
        Some(Change::Settled { kind: Kind::Fail, result: Ok(()), .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn messages_are_bounded_by_bytes_and_by_count() {
    let now = Instant::now();
    let count = limits::MAX_SETTLEMENTS_A_MESSAGE as u64 + 1;
    let all: Vec<u64> = (1..=count).collect();
    let mut ledger = ledger(&all);
    for fence in &all {
        start(&mut ledger, now);
        ledger.finish(*fence, Ok(Completion::default()));
    }
    let sent = messages(&mut ledger);
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[1], format!("done [{count}]"));

    let mut ledger = self::ledger(&[1, 2, 3]);
    for fence in 1..=3 {
        start(&mut ledger, now);
        ledger.finish(fence, Ok(Completion::new(vec![0; limits::CLIENT_MESSAGE_BYTES / 2])));
    }
    assert_eq!(messages(&mut ledger), ["done [1]", "done [2]", "done [3]"]);
}
