//! Lists, page by page, while packages move.

use std::collections::BTreeMap;

use prost::Message as _;
use tonic::Code;

use super::super::list::piece;
use super::super::status::reason;
use super::*;
use crate::machine::Wanted;
use crate::types::limits;

fn list(queue: &str, page_size: u32) -> v1::ListPackagesRequest {
    v1::ListPackagesRequest { queue: queue.into(), page_size, ..Default::default() }
}

fn ids(packages: &[v1::Package]) -> Vec<String> {
    packages.iter().map(|package| package.id.clone()).collect()
}

impl Node {
    async fn page(&mut self, request: &v1::ListPackagesRequest) -> v1::ListPackagesResponse {
        self.packages.list_packages(request.clone()).await.expect("a page").into_inner()
    }

    /// All pages, and how many there were.
    async fn pages(&mut self, mut request: v1::ListPackagesRequest) -> (Vec<String>, usize) {
        let (mut all, mut pages) = (Vec::new(), 0);
        loop {
            let page = self.page(&request).await;
            pages += 1;
            all.extend(ids(&page.packages));
            if page.next_page_token.is_empty() {
                return (all, pages);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn submit_many(&mut self, queue: &str, count: usize) {
        for from in (0..count).step_by(limits::MAX_PACKAGES_A_SUBMIT) {
            let to = count.min(from + limits::MAX_PACKAGES_A_SUBMIT);
            let packages = (from..to).map(|n| package(queue, &format!("p{n:06}"))).collect();
            let results = self.submit(packages).await.expect("taken");
            assert!(results.iter().all(|result| result.error.is_none()));
        }
    }
}

fn bad_token(status: &Status) {
    assert_eq!((status.code(), reason(status).as_deref()), (Code::InvalidArgument, Some("BAD_FIELD")), "{status:?}");
    assert!(status.message().contains("page_token"), "{}", status.message());
}

/// Packages are submitted, worked, cancelled and purged while the list goes on: what was there all the
/// time comes once, nothing comes twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_stable_while_packages_move() {
    const PACKAGES: usize = 900;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.create("other", v1::QueueSettings::default()).await.unwrap();
    node.submit_many("jobs", PACKAGES).await;
    let mut worker = node.worker(v1::Hello { max_in_flight: 50, ..hello("s", "jobs") }).await;
    worker.welcome().await;

    let mut request = list("jobs", 40);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut removed = Vec::new();
    for round in 0.. {
        let page = node.page(&request).await;
        page.packages.iter().for_each(|package| *seen.entry(package.id.clone()).or_default() += 1);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        // Some finish, some are taken away, some new ones come, before and behind the list's place.
        for delivery in worker.delivered().await.into_iter().take(3) {
            let id = delivery.package.expect("a package").id;
            worker.done("jobs", &id, delivery.fence).await;
        }
        let gone = format!("p{:06}", PACKAGES - 1 - round * 7);
        let cancel = v1::CancelPackageRequest { queue: "jobs".into(), id: gone.clone(), ..Default::default() };
        node.packages.cancel_package(cancel).await.unwrap();
        let states = vec![v1::State::Cancelled as i32];
        let purge = v1::PurgePackagesRequest { queue: "jobs".into(), states, validate_only: false };
        assert_eq!(node.packages.purge_packages(purge).await.unwrap().into_inner().purged, 1);
        removed.push(gone);
        node.submit(vec![package("jobs", &format!("new{round}")), package("other", "x")]).await.unwrap();
    }
    assert!(removed.len() > 10, "the list was over too soon");
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    let stayed = (0..PACKAGES).map(|n| format!("p{n:06}")).filter(|id| !removed.contains(id));
    let missed: Vec<_> = stayed.filter(|id| !seen.contains_key(id)).collect();
    assert!(missed.is_empty(), "{missed:?}");
    assert!(!seen.keys().any(|id| id.starts_with("new")), "what came later is another list's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_take_what_their_filters_say_and_look_at_a_bounded_number() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let count = limits::MAX_LIST_LOOKS + 10;
    node.submit_many("jobs", count).await;
    let rare = v1::NewPackage {
        kind: "rare".into(),
        labels: [("user".to_owned(), "42".to_owned()), ("zone".to_owned(), "b".to_owned())].into(),
        ..package("jobs", "needle")
    };
    node.submit(vec![rare]).await.unwrap();

    let page = node.page(&list("jobs", 0)).await;
    assert_eq!(page.packages.len(), limits::DEFAULT_LIST_PAGE);
    assert_eq!(page.packages[0].id, "p000000");
    assert!(page.packages[0].payload.is_empty() && page.packages[0].create_time.is_some());

    let by_label = |user: &str| v1::ListPackagesRequest {
        labels: [("user".to_owned(), user.to_owned())].into(),
        ..list("jobs", 10)
    };
    let by_kind = v1::ListPackagesRequest { kind: "rare".into(), ..list("jobs", 10) };
    // It stands behind more packages than one call looks at.
    let first = node.page(&by_kind).await;
    assert!(first.packages.is_empty() && !first.next_page_token.is_empty());
    assert_eq!(node.pages(by_kind).await, (vec!["needle".to_owned()], 2));
    assert_eq!(node.pages(by_label("42")).await, (vec!["needle".to_owned()], 2));
    assert_eq!(node.pages(by_label("43")).await, (vec![], 2));
    let scheduled = v1::State::Scheduled as i32;
    let by_state = v1::ListPackagesRequest { states: vec![scheduled], ..list("jobs", 10) };
    assert_eq!(node.pages(by_state).await.0, Vec::<String>::new());
    // Apply waits for one look at a few of them.
    let none = crate::machine::Wanted { kind: "none".into(), ..Default::default() };
    let most = limits::LIST_LOOKS_AT_ONCE;
    let looked = node.raft.view(|machine| machine.list("jobs", &none, 0, u64::MAX, most, most)).unwrap();
    assert_eq!(looked.next, Some(most as u64));
    let (all, pages) = node.pages(list("jobs", limits::MAX_LIST_PAGE as u32)).await;
    assert_eq!((all.len(), pages), (count + 1, count.div_ceil(limits::MAX_LIST_PAGE)));
    let mut once = all.clone();
    once.dedup();
    assert_eq!(once, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_belong_to_their_list() {
    let mut node = single().await;
    for queue in ["jobs", "other"] {
        node.create(queue, v1::QueueSettings::default()).await.unwrap();
        node.submit_many(queue, 30).await;
    }
    let token = node.page(&list("jobs", 10)).await.next_page_token;
    let with = |request: v1::ListPackagesRequest, token: &str| v1::ListPackagesRequest {
        page_token: token.to_owned(),
        ..request
    };
    // Another size is the same list.
    assert_eq!(node.page(&with(list("jobs", 5), &token)).await.packages.len(), 5);
    let ready = vec![v1::State::Ready as i32];
    let mut damaged = token.clone().into_bytes();
    damaged[3] ^= 1;
    let damaged = String::from_utf8(damaged).unwrap();
    for foreign in [
        with(list("other", 10), &token),
        with(v1::ListPackagesRequest { states: ready, ..list("jobs", 10) }, &token),
        with(list("jobs", 10), &damaged),
        with(list("jobs", 10), "nonsense"),
        with(list("jobs", 10), "AAAA"),
    ] {
        bad_token(&node.packages.list_packages(foreign).await.unwrap_err());
    }
    let mut other = single().await;
    other.create("jobs", v1::QueueSettings::default()).await.unwrap();
    bad_token(&other.packages.list_packages(with(list("jobs", 10), &token)).await.unwrap_err());

    let large = list("jobs", limits::MAX_LIST_PAGE as u32 + 1);
    let status = node.packages.list_packages(large).await.unwrap_err();
    assert_eq!(reason(&status).as_deref(), Some("BAD_FIELD"));
    let status = node.packages.list_packages(list("nowhere", 10)).await.unwrap_err();
    assert_eq!(reason(&status).as_deref(), Some("QUEUE_NOT_FOUND"));
    let unknown = v1::ListPackagesRequest { states: vec![99], ..list("jobs", 10) };
    let status = node.packages.list_packages(unknown).await.unwrap_err();
    assert_eq!(reason(&status).as_deref(), Some("BAD_FIELD"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_results_close_a_page() {
    let mut node = single().await;
    let settings = v1::QueueSettings { max_result: Some(4 << 20), ..Default::default() };
    node.create("jobs", settings).await.unwrap();
    node.submit_many("jobs", 4).await;
    let mut worker = node.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    let mut done = 0;
    while done < 4 {
        for delivery in worker.delivered().await {
            let v1::Package { queue, id, .. } = delivery.package.expect("a package");
            let result = vec![b'r'; 3 << 20].into();
            let completion = v1::Completion { queue, id, fence: delivery.fence, result, ..Default::default() };
            worker.ask(Ask::Done(v1::Done { completions: vec![completion] })).await;
            worker.settled().await;
            done += 1;
        }
    }
    let page = node.page(&list("jobs", 10)).await;
    let bytes: usize = page.packages.iter().skip(1).map(|package| package.result.len()).sum();
    assert!(bytes <= limits::MAX_LIST_BYTES, "{bytes} behind the first");
    assert!(page.packages.len() < 4 && !page.next_page_token.is_empty(), "{} in one page", page.packages.len());
    assert_eq!(node.pages(list("jobs", 10)).await.0.len(), 4);
}

/// Two results fill a page, so the third closes it; one that fills more than a page comes alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_closes_at_its_bytes_and_the_next_goes_on_behind() {
    const HALF: usize = limits::MAX_LIST_BYTES / 2 - 1024;
    let mut node = single().await;
    let max_result = Some(limits::MAX_PAYLOAD_CEILING_BYTES);
    node.create("jobs", v1::QueueSettings { max_result, ..Default::default() }).await.unwrap();
    node.submit_many("jobs", 6).await;
    let mut worker = node.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    let mut done = 0;
    while done < 6 {
        for delivery in worker.delivered().await {
            let v1::Package { queue, id, .. } = delivery.package.expect("a package");
            let bytes = if id == "p000005" { limits::MAX_LIST_BYTES + 1 } else { HALF };
            let result = vec![b'r'; bytes].into();
            let completion = v1::Completion { queue, id, fence: delivery.fence, result, ..Default::default() };
            worker.ask(Ask::Done(v1::Done { completions: vec![completion] })).await;
            assert!(worker.settled().await[0].status.is_none());
            done += 1;
        }
    }
    let mut request = list("jobs", 10);
    let (mut found, mut counts) = (Vec::new(), Vec::new());
    loop {
        let page = node.page(&request).await;
        assert!(page.packages.len() == 1 || page.encoded_len() <= limits::MAX_LIST_BYTES, "{}", page.encoded_len());
        counts.push(page.packages.len());
        found.extend(ids(&page.packages));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(counts, [2, 2, 1, 1]);
    assert_eq!(found, (0..6).map(|n| format!("p{n:06}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_workers_closes_at_its_bytes_too() {
    const EACH: usize = limits::MAX_LABELS * limits::MAX_LABEL_VALUE_BYTES;
    const FIT: usize = limits::MAX_LIST_BYTES / EACH;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let label = |n| (format!("label{n:02}"), "x".repeat(limits::MAX_LABEL_VALUE_BYTES));
    let labels: BTreeMap<_, _> = (0..limits::MAX_LABELS).map(label).collect();
    let mut workers = Vec::new();
    for n in 0..FIT + 2 {
        let hello = v1::Hello { labels: labels.clone(), ..hello(&format!("s{n:03}"), "jobs") };
        let mut worker = node.worker(hello).await;
        worker.welcome().await;
        workers.push(worker);
    }
    let mut request = v1::ListWorkersRequest { queue: "jobs".into(), ..Default::default() };
    let first = node.queues.list_workers(request.clone()).await.unwrap().into_inner();
    assert!(first.encoded_len() <= limits::MAX_LIST_BYTES, "{}", first.encoded_len());
    assert!(first.encoded_len() + 2 * EACH > limits::MAX_LIST_BYTES, "{}", first.encoded_len());
    request.page_token = first.next_page_token;
    let second = node.queues.list_workers(request).await.unwrap().into_inner();
    assert!(second.next_page_token.is_empty());
    let sessions = first.workers.iter().chain(&second.workers).map(|worker| worker.session.clone());
    assert!(sessions.eq((0..FIT + 2).map(|n| format!("s{n:03}"))), "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_waits_for_few_looks_of_a_list_at_a_time() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.submit_many("jobs", limits::LIST_LOOKS_AT_ONCE + 7).await;
    let rare = Wanted { kind: "rare".into(), ..Wanted::default() };
    let look = |from| {
        node.raft.view(|machine| {
            let end = machine.list_end();
            let listed = piece(machine, "jobs", &rare, from..end, usize::MAX).expect("the queue is there");
            assert!(listed.packages.is_empty());
            (listed.next, end)
        })
    };
    let (next, end) = look(0);
    assert_eq!(next, Some(end - 7), "all but the last seven were looked at");
    assert_eq!(look(end - 7), (None, end));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_and_workers_come_in_pages_too() {
    let mut node = single().await;
    for n in 0..7 {
        node.create(&format!("team/q{n}"), v1::QueueSettings::default()).await.unwrap();
        node.create(&format!("z{n}"), v1::QueueSettings::default()).await.unwrap();
    }
    let mut request = v1::ListQueuesRequest { prefix: "team/".into(), page_size: 3, ..Default::default() };
    let mut names = Vec::new();
    loop {
        let page = node.queues.list_queues(request.clone()).await.unwrap().into_inner();
        assert!(page.queues.len() <= 3);
        names.extend(page.queues.into_iter().map(|queue| queue.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        // Where the list stands goes away, and it goes on behind.
        let last = names.last().expect("a page is not empty").clone();
        node.queues.delete_queue(v1::DeleteQueueRequest { name: last, force: true }).await.unwrap();
    }
    assert_eq!(names, (0..7).map(|n| format!("team/q{n}")).collect::<Vec<_>>());
    request.prefix = "z".into();
    bad_token(&node.queues.list_queues(request).await.unwrap_err());

    let mut workers = Vec::new();
    for n in 0..5 {
        let mut worker = node.worker(hello(&format!("s{n}"), if n == 2 { "z1" } else { "z0" })).await;
        worker.welcome().await;
        workers.push(worker);
    }
    let mut request = v1::ListWorkersRequest { queue: "z0".into(), page_size: 3, ..Default::default() };
    let first = node.queues.list_workers(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.workers.iter().map(|worker| &*worker.session).collect::<Vec<_>>(), ["s0", "s1", "s3"]);
    request.page_token = first.next_page_token;
    let second = node.queues.list_workers(request).await.unwrap().into_inner();
    assert_eq!(second.workers.iter().map(|worker| &*worker.session).collect::<Vec<_>>(), ["s4"]);
    assert!(second.next_page_token.is_empty());
    let large = v1::ListWorkersRequest { page_size: limits::MAX_LIST_PAGE as u32 + 1, ..Default::default() };
    assert_eq!(reason(&node.queues.list_workers(large).await.unwrap_err()).as_deref(), Some("BAD_FIELD"));
}

/// What a purge says beforehand, it does: for each state alone and for all, while old ones are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_purge_tells_what_the_purge_then_does() {
    let mut node = single().await;
    node.create("dead", v1::QueueSettings::default()).await.unwrap();
    let all: Vec<i32> = (1..=7).filter(|state| *state != v1::State::Leased as i32).collect();
    let mut choices: Vec<Vec<i32>> = all.iter().map(|state| vec![*state]).collect();
    choices.extend([vec![], vec![1, 2], vec![4, 5, 6, 7]]);
    for (n, states) in choices.into_iter().enumerate() {
        let queue = format!("q{n}");
        let settings = v1::QueueSettings {
            dead_letter_queue: if n % 2 == 0 { "dead".into() } else { String::new() },
            keep_finished_count: Some(6),
            ..Default::default()
        };
        node.create(&queue, settings).await.unwrap();
        let mut worker = node.worker(v1::Hello { max_in_flight: 10, ..hello(&format!("s{n}"), &queue) }).await;
        worker.welcome().await;
        node.submit((0..6).map(|p| package(&queue, &format!("w{p}"))).collect()).await.unwrap();
        let mut deliveries = worker.delivered().await;
        while deliveries.len() < 6 {
            deliveries.extend(worker.delivered().await);
        }
        for (p, delivery) in deliveries.iter().enumerate() {
            let id = format!("w{p}");
            if p < 2 {
                worker.done(&queue, &id, delivery.fence).await;
            } else if p < 4 {
                let failed = v1::Failed {
                    queue: queue.clone(),
                    id,
                    fence: delivery.fence,
                    permanent: true,
                    ..Default::default()
                };
                worker.ask(Ask::Fail(v1::Fail { failed: vec![failed] })).await;
            } else if p < 5 {
                let cancel = v1::CancelPackageRequest { queue: queue.clone(), id, ..Default::default() };
                node.packages.cancel_package(cancel).await.unwrap();
                continue;
            } else {
                continue;
            }
            worker.settled().await;
        }
        worker.ask(Ask::SetCredit(v1::SetCredit { max_in_flight: 0 })).await;
        eventually("no credit", async || node.raft.view(|m| m.session(&format!("s{n}")).unwrap().max_in_flight == 0))
            .await;
        let delay = v1::new_package::Schedule::Delay(prost_types::Duration { seconds: 3600, nanos: 0 });
        let later = v1::NewPackage { schedule: Some(delay), ..package(&queue, "later") };
        let expired = v1::new_package::Expiry::ExpireTime(prost_types::Timestamp { seconds: 1, nanos: 0 });
        let expired = v1::NewPackage { expiry: Some(expired), ..package(&queue, "expired") };
        node.submit(vec![later, expired, package(&queue, "r1"), package(&queue, "r2")]).await.unwrap();

        let purge = v1::PurgePackagesRequest { queue: queue.clone(), states: states.clone(), validate_only: true };
        let told = node.packages.purge_packages(purge.clone()).await.unwrap().into_inner().purged;
        let before = node.pages(list(&queue, 100)).await.0;
        let purge = v1::PurgePackagesRequest { validate_only: false, ..purge };
        let purged = node.packages.purge_packages(purge).await.unwrap().into_inner().purged;
        let after = node.pages(list(&queue, 100)).await.0;
        assert_eq!(told, purged, "{states:?} of {before:?}");
        assert_eq!(before.len() - after.len(), purged as usize, "{states:?}: {before:?} became {after:?}");
        assert!(told > 0, "{states:?} of {before:?}");
        drop(worker);
    }
}
