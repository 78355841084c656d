//! What watchers hear, from any node.

use tonic::Code;
use tonic_types::StatusExt;

use super::super::status::reason;
use super::across::three;
use super::*;
use crate::proto::v1::watch_response::Update;
use crate::proto::v1::{Cause, State};
use crate::raft::changes::Bounds;
use crate::types::limits;

struct Watcher(Streaming<v1::WatchResponse>);

impl Node {
    async fn watch(&self, request: v1::WatchRequest) -> Result<Watcher, Status> {
        Ok(Watcher(self.packages.clone().watch(request).await?.into_inner()))
    }
}

fn from(queue: &str, start_revision: u64) -> v1::WatchRequest {
    v1::WatchRequest { queue: queue.into(), start_revision, ..Default::default() }
}

impl Watcher {
    async fn next(&mut self) -> Result<Option<Update>, Status> {
        let told = timeout(WAIT, self.0.message()).await.expect("an update in time")?;
        Ok(told.map(|told| told.update.expect("an event or a bookmark")))
    }

    async fn event(&mut self) -> v1::Event {
        loop {
            if let Update::Event(event) = self.next().await.expect("no refusal").expect("it goes on") {
                return event;
            }
        }
    }

    async fn events(&mut self, count: usize) -> Vec<v1::Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    async fn bookmark(&mut self) -> u64 {
        match self.next().await.expect("no refusal").expect("it goes on") {
            Update::Bookmark(bookmark) => bookmark.revision,
            Update::Event(event) => panic!("a bookmark comes first, not {event:?}"),
        }
    }

    async fn refused(&mut self) -> (Vec<v1::Event>, Status) {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(Update::Event(event))) => events.push(event),
                Ok(Some(Update::Bookmark(_))) => {}
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => return (events, status),
            }
        }
    }
}

/// `id: from > to (cause)`.
fn story(events: &[v1::Event]) -> Vec<String> {
    let line = |event: &v1::Event| {
        let package = event.package.as_ref().expect("a package");
        assert!(event.revision == package.revision && package.payload.is_empty(), "{event:?}");
        let from = if event.from() == State::Unspecified { "-" } else { event.from().as_str_name() };
        let cause = if event.cause() == Cause::Unspecified { "" } else { event.cause().as_str_name() };
        format!("{}: {from} > {} {cause}", package.id, package.state().as_str_name()).trim_end().to_owned()
    };
    events.iter().map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_s_life_is_told_once_by_every_node_from_any_revision() {
    let (mut leader, one, other) = three().await;
    let backoff = Some(v1::Backoff { initial: Some(Default::default()), ..Default::default() });
    leader.create("jobs", v1::QueueSettings { backoff, ..Default::default() }).await.unwrap();
    eventually("the queue is everywhere", async || {
        let revision = leader.raft.changes().latest();
        one.raft.changes().latest() == revision && other.raft.changes().latest() == revision
    })
    .await;
    let mut live = one.watch(from("jobs", 0)).await.unwrap();
    let begin = live.bookmark().await + 1;
    assert_eq!(begin, leader.raft.changes().latest().0 + 1);

    let mut worker = leader.worker(v1::Hello { max_in_flight: 1, ..hello("s", "jobs") }).await;
    worker.welcome().await;
    leader.submit(vec![package("jobs", "a")]).await.unwrap();
    let first = worker.delivered().await.remove(0);
    let failed = v1::Failed {
        queue: "jobs".into(),
        id: "a".into(),
        fence: first.fence,
        message: "no".into(),
        ..Default::default()
    };
    worker.ask(Ask::Fail(v1::Fail { failed: vec![failed] })).await;
    worker.settled().await;
    let second = worker.delivered().await.remove(0);
    worker.done("jobs", "a", second.fence).await;
    worker.settled().await;
    leader.submit(vec![package("jobs", "b")]).await.unwrap();
    worker.delivered().await;
    let cancel = v1::CancelPackageRequest { queue: "jobs".into(), id: "b".into(), ..Default::default() };
    leader.packages.cancel_package(cancel).await.unwrap();

    let told = [
        "a: - > READY",
        "a: READY > LEASED",
        "a: LEASED > READY FAILED",
        "a: READY > LEASED",
        "a: LEASED > COMPLETED",
        "b: - > READY",
        "b: READY > LEASED",
        "b: LEASED > CANCELLED",
    ];
    let events = live.events(told.len()).await;
    assert_eq!(story(&events), told);
    let of = |at: usize| events[at].package.as_ref().unwrap();
    assert_eq!((of(1).fence, of(1).revision, of(1).worker.as_str()), (first.fence, first.fence, "worker of s"));
    assert!(of(1).lease_expire_time.is_some() && of(1).session == "s");
    assert_eq!((of(2).attempts, of(2).last_failure.as_ref().unwrap().message.as_str()), (1, "no"));
    assert_eq!((&of(4).result[..], of(4).session.as_str()), (&b"result"[..], ""));
    assert!(of(4).finish_time.is_some());

    for node in [&leader, &one, &other] {
        for (at, event) in events.iter().enumerate() {
            let mut resumed = node.watch(from("jobs", event.revision)).await.unwrap();
            assert_eq!(resumed.bookmark().await, event.revision - 1);
            assert_eq!(resumed.events(events.len() - at).await, events[at..]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_hears_only_what_it_asked_for() {
    let mut node = single().await;
    for queue in ["jobs", "other"] {
        node.create(queue, v1::QueueSettings::default()).await.unwrap();
    }
    let states = vec![State::Cancelled as i32];
    let mut ends = node.watch(v1::WatchRequest { states, ..from("jobs", 0) }).await.unwrap();
    let mut some = node.watch(v1::WatchRequest { id_prefix: "b".into(), ..from("jobs", 0) }).await.unwrap();
    let mut all = node.watch(from("", 0)).await.unwrap();
    let future = node.raft.changes().latest().0 + 4;
    let mut later = node.watch(from("", future)).await.unwrap();
    assert_eq!(later.bookmark().await, future - 1);

    let packages = [("jobs", "a1"), ("other", "b1"), ("jobs", "b2"), ("other", "a2")];
    node.submit(packages.iter().map(|(queue, id)| package(queue, id)).collect()).await.unwrap();
    let cancel = v1::CancelPackageRequest { queue: "jobs".into(), id: "a1".into(), ..Default::default() };
    node.packages.cancel_package(cancel).await.unwrap();
    assert_eq!(story(&all.events(5).await).len(), 5);
    assert_eq!(story(&ends.events(1).await), ["a1: READY > CANCELLED"]);
    assert_eq!(story(&some.events(1).await), ["b2: - > READY"]);
    assert_eq!(story(&later.events(2).await), ["a2: - > READY", "a1: READY > CANCELLED"], "from its revision on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_watched_is_refused_with_its_reason() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.raft.changes().bound(Bounds { count: 10, bytes: usize::MAX });
    node.submit((0..30).map(|n| package("jobs", &format!("p{n}"))).collect()).await.unwrap();
    node.submit((30..35).map(|n| package("jobs", &format!("p{n}"))).collect()).await.unwrap();

    let status = node.watch(from("jobs", 1)).await.err().expect("it is too old");
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::OutOfRange, Some("REVISION_COMPACTED")));
    let oldest = status.get_details_error_info().unwrap().metadata["oldest_revision"].clone();
    assert!(status.message().contains(&format!("from revision {oldest} on")), "{}", status.message());
    let mut edge = node.watch(from("jobs", oldest.parse().unwrap())).await.unwrap();
    assert_eq!(story(&edge.events(5).await)[0], "p30: - > READY");

    let bad = v1::WatchRequest { states: vec![9], id_prefix: "x".repeat(300), ..from("a b", 0) };
    let status = node.watch(bad).await.err().expect("fields are bad");
    let fields = status.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = fields.iter().map(|bad| bad.field.as_str()).collect();
    assert_eq!(fields, ["queue", "states[0]", "id_prefix"]);

    let changes = node.raft.changes();
    let free = limits::MAX_CHANGE_READERS - changes.readers();
    let _readers: Vec<_> = (0..free).map(|_| changes.read(None, crate::types::Revision(0)).unwrap()).collect();
    let status = node.watch(from("jobs", 0)).await.err().expect("there are too many");
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::ResourceExhausted, Some("TOO_MANY_WATCHERS")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_watcher_is_cut_off_in_time_to_go_on_and_slows_nobody() {
    const CALLS: usize = 60;
    const A_CALL: usize = 20;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    // All of it is kept, so that nothing is lost by being slow.
    node.raft.changes().bound(Bounds { count: 2 * CALLS * A_CALL, bytes: usize::MAX });
    let others = node.raft.changes().readers();
    let mut slow = node.watch(from("jobs", 0)).await.unwrap();
    let mut fast = node.watch(from("jobs", 0)).await.unwrap();
    let begin = slow.bookmark().await + 1;
    let reads = tokio::spawn(async move { fast.events(CALLS * A_CALL).await });
    // Large enough to fill what lies between the node and the reader.
    let labels: Vec<_> = (0..60).map(|n| (format!("label-{n}"), "x".repeat(1000))).collect();
    for call in 0..CALLS {
        let new =
            |n| v1::NewPackage { labels: labels.iter().cloned().collect(), ..package("jobs", &format!("{call}-{n}")) };
        node.submit((0..A_CALL).map(new).collect()).await.unwrap();
    }
    let all = timeout(WAIT, reads).await.expect("the fast one is not held up").unwrap();
    eventually("the slow one is cut off", async || node.raft.changes().readers() == others).await;

    let (heard, status) = slow.refused().await;
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::ResourceExhausted, Some("READER_TOO_SLOW")));
    let resume: u64 = status.get_details_error_info().unwrap().metadata["resume_revision"].parse().unwrap();
    assert_eq!(resume, heard.last().map_or(begin, |event| event.revision + 1));
    assert!(heard.len() < all.len());
    let rest = node.watch(from("jobs", resume)).await.unwrap().events(all.len() - heard.len()).await;
    let heard: Vec<_> = heard.into_iter().chain(rest).collect();
    assert!(heard == all, "the slow one missed something");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_sends_its_watchers_away() {
    let node = single().await;
    let mut watcher = node.watch(from("", 0)).await.unwrap();
    watcher.bookmark().await;
    node.stop.cancel();
    let (_, status) = watcher.refused().await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    // The status goes out before the task that sent it is dropped.
    eventually("its place is given up", async || node.raft.changes().readers() == 0).await;
}
