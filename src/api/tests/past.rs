//! What a node remembers of finished packages.

use tonic::Code;

use super::super::status::reason;
use super::*;
use crate::proto::v1::{Cause, History, State};
use crate::types::limits;

impl Node {
    async fn history(&self, request: v1::ListHistoryRequest) -> Result<v1::ListHistoryResponse, Status> {
        self.history.flushed().await.expect("it works");
        Ok(self.packages.clone().list_history(request).await?.into_inner())
    }
}

fn of(queue: &str) -> v1::ListHistoryRequest {
    v1::ListHistoryRequest { queue: queue.into(), ..Default::default() }
}

/// A package's id, its state in the end, and the fences of its attempts with why they ended.
type End = (String, State, Vec<(u64, Cause)>);

fn ends(page: &v1::ListHistoryResponse) -> Vec<End> {
    let end = |entry: &v1::HistoryEntry| {
        let package = entry.package.as_ref().expect("a package");
        let attempts = entry.attempts.iter().map(|attempt| (attempt.fence, attempt.cause()));
        (package.id.clone(), package.state(), attempts.collect())
    };
    page.entries.iter().map(end).collect()
}

/// Packages that end well at once, well at the second try, and not at all, in a queue of each kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_say_what_is_remembered() {
    let mut node = single().await;
    let backoff = Some(v1::Backoff { initial: Some(Default::default()), ..Default::default() });
    for (queue, history) in [("none", History::None), ("failures", History::Failures), ("all", History::All)] {
        let settings =
            v1::QueueSettings { backoff, history: history as i32, keep_finished_count: Some(0), ..Default::default() };
        node.create(queue, settings).await.unwrap();
        let mut worker = node.worker(v1::Hello { max_in_flight: 1, ..hello(queue, queue) }).await;
        worker.welcome().await;
        let fail = async |worker: &mut Worker, permanent| {
            let delivery = worker.delivered().await.remove(0);
            let id = delivery.package.as_ref().unwrap().id.clone();
            let failed = v1::Failed {
                queue: queue.into(),
                id,
                fence: delivery.fence,
                message: "no".into(),
                permanent,
                ..Default::default()
            };
            worker.ask(Ask::Fail(v1::Fail { failed: vec![failed] })).await;
            worker.settled().await;
            delivery.fence
        };
        let done = async |worker: &mut Worker, id: &str| {
            let delivery = worker.delivered().await.remove(0);
            worker.done(queue, id, delivery.fence).await;
            worker.settled().await;
            delivery.fence
        };
        node.submit(vec![package(queue, "well")]).await.unwrap();
        let well = done(&mut worker, "well").await;
        node.submit(vec![package(queue, "late")]).await.unwrap();
        let first = fail(&mut worker, false).await;
        let second = done(&mut worker, "late").await;
        node.submit(vec![package(queue, "dead")]).await.unwrap();
        let last = fail(&mut worker, true).await;

        let unspecified = Cause::Unspecified;
        let mut expected = vec![
            ("dead".to_owned(), State::Dead, vec![(last, Cause::Failed)]),
            ("late".to_owned(), State::Completed, vec![(first, Cause::Failed), (second, unspecified)]),
            ("well".to_owned(), State::Completed, vec![(well, unspecified)]),
        ];
        expected.truncate(match history {
            History::All => 3,
            History::Failures => 2,
            _ => 0,
        });
        eventually("it is remembered", async || node.history(of(queue)).await.unwrap().entries.len() == expected.len())
            .await;
        let page = node.history(of(queue)).await.unwrap();
        assert_eq!((ends(&page), page.node), (expected, 1), "{queue}");
        if history == History::All {
            let late = &page.entries[1];
            let package = late.package.as_ref().unwrap();
            assert_eq!(
                (&package.result[..], package.attempts, package.worker.as_str()),
                (&b"result"[..], 2, "worker of all")
            );
            assert_eq!(package.last_failure.as_ref().unwrap().message, "no");
            assert!(late.attempts.iter().all(|attempt| attempt.charged && attempt.session == "all"), "{late:?}");
            assert!(late.attempts.iter().all(|attempt| attempt.begin_time.is_some() && attempt.end_time.is_some()));
            assert!(package.finish_time.is_some() && package.payload.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_comes_in_pages_by_id_and_by_time() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings { history: History::All as i32, ..Default::default() }).await.unwrap();
    for n in 0..25 {
        node.submit(vec![package("jobs", &format!("p{n:02}"))]).await.unwrap();
        let cancel = v1::CancelPackageRequest { queue: "jobs".into(), id: format!("p{n:02}"), ..Default::default() };
        node.packages.cancel_package(cancel).await.unwrap();
    }
    let ids = |page: &v1::ListHistoryResponse| ends(page).into_iter().map(|(id, ..)| id).collect::<Vec<_>>();
    eventually("all is written", async || node.history(of("jobs")).await.unwrap().entries.len() == 25).await;
    let (mut found, mut page_token) = (Vec::new(), String::new());
    for expected in [10, 10, 5] {
        let page =
            node.history(v1::ListHistoryRequest { page_size: 10, page_token, ..of("default/jobs") }).await.unwrap();
        assert_eq!(page.entries.len(), expected);
        found.extend(ids(&page));
        page_token = page.next_page_token;
    }
    assert_eq!((found.len(), page_token.as_str()), (25, ""));
    assert!(found.iter().rev().eq(&(0..25).map(|n| format!("p{n:02}")).collect::<Vec<_>>()));

    let one = node.history(v1::ListHistoryRequest { id: "p07".into(), ..of("jobs") }).await.unwrap();
    assert_eq!(ids(&one), ["p07"]);
    let at = one.entries[0].package.as_ref().unwrap().finish_time;
    let since = node.history(v1::ListHistoryRequest { since: at, ..of("jobs") }).await.unwrap();
    let until = node.history(v1::ListHistoryRequest { until: at, ..of("jobs") }).await.unwrap();
    assert_eq!(since.entries.len() + until.entries.len(), 25, "each on one side");
    assert!(ids(&since).contains(&"p07".to_owned()) && !ids(&until).contains(&"p07".to_owned()));
    assert!(since.covered_revision > 0 && since.gaps.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_asked_of_history_is_refused() {
    let node = single().await;
    let bad = v1::ListHistoryRequest {
        page_size: limits::HISTORY_PAGE as u32 + 1,
        page_token: "x".into(),
        id: "x".repeat(300),
        ..of("a b")
    };
    let status = node.history(bad).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::InvalidArgument, Some("BAD_FIELD")));
    for field in ["queue", "id", "page_size", "page_token"] {
        assert!(status.message().contains(&format!("`{field}`")), "{}", status.message());
    }
    let status = Status::from(super::super::status::Refusal::from(crate::history::Refused::Disabled));
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::FailedPrecondition, Some("HISTORY_DISABLED")));
}
