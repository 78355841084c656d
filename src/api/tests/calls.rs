//! Work by single calls, and requests over a queue.

use tonic::Code;

use super::super::status::reason;
use super::across::three;
use super::*;
use crate::types::limits;

fn lease(session: &str, queue: &str, max: u32, received_fence: u64) -> v1::LeasePackagesRequest {
    v1::LeasePackagesRequest {
        worker: format!("worker of {session}"),
        session: session.into(),
        queues: vec![queue.into()],
        max,
        received_fence,
        ..Default::default()
    }
}

fn waiting(request: v1::LeasePackagesRequest, seconds: i64) -> v1::LeasePackagesRequest {
    v1::LeasePackagesRequest { wait: Some(prost_types::Duration { seconds, nanos: 0 }), ..request }
}

fn fences(answer: &v1::LeasePackagesResponse) -> Vec<u64> {
    answer.deliveries.iter().map(|delivery| delivery.fence).collect()
}

fn held(delivery: &v1::Delivery) -> v1::Held {
    let package = delivery.package.as_ref().expect("a package");
    v1::Held { queue: package.queue.clone(), id: package.id.clone(), fence: delivery.fence }
}

impl Node {
    fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel.clone())
    }

    async fn lease(&self, request: v1::LeasePackagesRequest) -> Result<v1::LeasePackagesResponse, Status> {
        Ok(self.workers().lease_packages(request).await?.into_inner())
    }

    async fn complete(&self, held: v1::Held) -> Result<(), Status> {
        let v1::Held { queue, id, fence } = held;
        let completion = v1::Completion { queue, id, fence, result: "done".into(), ..Default::default() };
        let request = v1::CompletePackageRequest { completion: Some(completion) };
        self.workers().complete_package(request).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_are_leased_and_settled_by_single_calls() {
    let mut node = single().await;
    let backoff = Some(v1::Backoff { initial: Some(Default::default()), ..Default::default() });
    node.create("jobs", v1::QueueSettings { backoff, ..Default::default() }).await.unwrap();
    node.submit((0..5).map(|n| package("jobs", &format!("p{n}"))).collect()).await.unwrap();

    let first = node.lease(lease("u", "jobs", 3, 0)).await.unwrap();
    assert_eq!(first.deliveries.len(), 3);
    assert_eq!(&first.deliveries[0].package.as_ref().unwrap().payload[..], b"payload");
    // No stream, no credit, no prefetch: what comes later stays in the queue.
    assert_eq!(node.dispatch.streams(), 0);
    node.submit(vec![package("jobs", "late")]).await.unwrap();
    assert_eq!(node.get("jobs", "late").await.unwrap().state, v1::State::Ready as i32);

    // The answer was lost: the same call brings the same again.
    let again = node.lease(lease("u", "jobs", 3, 0)).await.unwrap();
    assert_eq!(fences(&again), fences(&first));
    let top = *fences(&first).last().unwrap();
    let more = node.lease(lease("u", "jobs", 1, top)).await.unwrap();
    assert_eq!(more.deliveries.len(), 1);
    assert!(fences(&more)[0] > top);

    let keys: Vec<_> = first.deliveries.iter().map(held).collect();
    node.complete(keys[0].clone()).await.unwrap();
    node.complete(keys[0].clone()).await.unwrap();
    let done = node.get("jobs", &keys[0].id).await.unwrap();
    assert_eq!((done.state, &done.result[..]), (v1::State::Completed as i32, &b"done"[..]));

    let v1::Held { queue, id, fence } = keys[1].clone();
    let by = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    let extension = v1::Extension { queue, id, fence, by, checkpoint: Bytes::from_static(b"half") };
    let extend = v1::ExtendPackageRequest { extension: Some(extension) };
    node.workers().extend_package(extend).await.unwrap();
    let v1::Held { queue, id, fence } = keys[1].clone();
    let failed = v1::Failed { queue, id, fence, message: "no luck".into(), ..Default::default() };
    node.workers().fail_package(v1::FailPackageRequest { failed: Some(failed) }).await.unwrap();
    let failed = node.get("jobs", &keys[1].id).await.unwrap();
    assert_eq!((failed.state, failed.attempts, &failed.checkpoint[..]), (v1::State::Ready as i32, 1, &b"half"[..]));
    assert_eq!(failed.last_failure.unwrap().worker, "worker of u");

    let release = v1::ReleasePackageRequest { held: Some(keys[2].clone()) };
    node.workers().release_package(release.clone()).await.unwrap();
    node.workers().release_package(release).await.unwrap();
    assert_eq!(node.get("jobs", &keys[2].id).await.unwrap().attempts, 0);

    let status = node.complete(keys[2].clone()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::FailedPrecondition, Some("LEASE_LOST")));
    let status = node.workers().complete_package(v1::CompletePackageRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status).as_deref(), Some("BAD_FIELD"));
    assert!(status.message().contains("completion.queue"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_for_work_waits_and_its_fields_are_checked() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let call = waiting(lease("u", "jobs", 2, 0), 60);
    let mut workers = node.workers();
    let waits = tokio::spawn(async move { workers.lease_packages(call).await });
    eventually("the call waits", async || node.dispatch.streams() == 1).await;
    node.submit(vec![package("jobs", "a")]).await.unwrap();
    let answer = timeout(WAIT, waits).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(answer.deliveries.len(), 1);

    // Nothing comes: the answer is empty, and no error.
    let began = Instant::now();
    let empty = node.lease(waiting(lease("u", "jobs", 2, answer.deliveries[0].fence), 1)).await.unwrap();
    assert!(empty.deliveries.is_empty() && began.elapsed() >= Duration::from_millis(900));

    // The end of the work is told, at once.
    node.complete(held(&answer.deliveries[0])).await.unwrap();
    node.queues.seal_queue(v1::SealQueueRequest { name: "jobs".into(), if_revision: None }).await.unwrap();
    let ended = node.lease(waiting(lease("u", "jobs", 2, 0), 60)).await.unwrap();
    assert_eq!((ended.ended_queues, ended.draining), (vec!["jobs".to_owned()], false));

    // An operator drains it, and it hears of that by its next call.
    node.queues.drain_worker(v1::DrainWorkerRequest { session: "u".into() }).await.unwrap();
    assert!(node.lease(waiting(lease("u", "jobs", 2, 0), 60)).await.unwrap().draining);

    let seconds = (limits::MAX_LEASE_WAIT_MS / 1000) as i64 + 1;
    for bad in [
        lease("u", "jobs", 0, 0),
        lease("u", "jobs", limits::MAX_IN_FLIGHT_CEILING + 1, 0),
        lease("", "jobs", 1, 0),
        waiting(lease("u", "jobs", 1, 0), seconds),
        v1::LeasePackagesRequest { queues: vec![], ..lease("u", "jobs", 1, 0) },
    ] {
        let status = node.lease(bad).await.unwrap_err();
        assert_eq!(reason(&status).as_deref(), Some("BAD_FIELD"), "{status:?}");
    }
    let status = node.lease(lease("u", "nowhere", 1, 0)).await.unwrap_err();
    assert_eq!(reason(&status).as_deref(), Some("QUEUE_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_call_of_a_session_ends_the_older_and_nothing_is_stranded() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let call = waiting(lease("u", "jobs", 1, 0), 60);
    let mut workers = node.workers();
    let older = tokio::spawn(async move { workers.lease_packages(call).await });
    eventually("the call waits", async || node.dispatch.streams() == 1).await;
    let call = waiting(lease("u", "jobs", 1, 0), 60);
    let mut workers = node.workers();
    let newer = tokio::spawn(async move { workers.lease_packages(call).await });
    let status = timeout(WAIT, older).await.unwrap().unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::FailedPrecondition, Some("EPOCH_OVER")));
    node.submit(vec![package("jobs", "a")]).await.unwrap();
    let answer = timeout(WAIT, newer).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(answer.deliveries.len(), 1);
    node.complete(held(&answer.deliveries[0])).await.unwrap();

    // A caller goes away while it waits: its credit goes with it.
    let call = waiting(lease("u", "jobs", 5, answer.deliveries[0].fence), 60);
    let mut workers = node.workers();
    let gone = tokio::spawn(async move { workers.lease_packages(call).await });
    eventually("the call waits", async || node.dispatch.streams() == 1).await;
    gone.abort();
    let detached = || node.raft.view(|machine| machine.session("u").map(|view| view.status));
    eventually("its session is detached", async || detached() == Ok(crate::machine::view::SessionStatus::Detached))
        .await;
    node.submit(vec![package("jobs", "b")]).await.unwrap();
    assert_eq!(node.get("jobs", "b").await.unwrap().state, v1::State::Ready as i32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_leases_is_bounded() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let large = |n| v1::NewPackage { payload: vec![0; 1 << 20].into(), ..package("jobs", &format!("p{n}")) };
    for n in 0..8 {
        node.submit(vec![large(n)]).await.unwrap();
    }
    let first = node.lease(lease("u", "jobs", 100, 0)).await.unwrap();
    let payload = |delivery: &v1::Delivery| delivery.package.as_ref().map_or(0, |package| package.payload.len());
    let all_but_last = first.deliveries.iter().rev().skip(1).map(payload).sum::<usize>();
    assert!(all_but_last as u64 <= limits::MAX_LEASE_ANSWER_BYTES, "{all_but_last}");
    assert!((1..=2).contains(&first.deliveries.len()), "{}", first.deliveries.len());
    let (mut received, mut all) = (*fences(&first).last().unwrap(), first.deliveries.len());
    while all < 8 {
        let answer = node.lease(lease("u", "jobs", 100, received)).await.unwrap();
        all += answer.deliveries.len();
        received = *fences(&answer).last().expect("there is more");
    }
    let last = received;
    // A client that remembers nothing gets all of it, an answer at a time.
    let (mut received, mut again) = (0, 0);
    while again < 8 {
        let answer = node.lease(lease("u", "jobs", 100, received)).await.unwrap();
        assert!(!answer.deliveries.is_empty());
        again += answer.deliveries.len();
        received = *fences(&answer).last().unwrap();
    }
    assert_eq!(received, last);
}

/// As many as fit, and one more: what comes first after a call, and what a caller that forgot asks again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_for_work_leases_as_many_bytes_as_it_may_and_one_package_more() {
    const QUARTER: usize = limits::MAX_LEASE_ANSWER_BYTES as usize / 4 - 1024;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let quarter = |n| v1::NewPackage { payload: vec![0; QUARTER].into(), ..package("jobs", &format!("p{n}")) };
    node.submit((0..12).map(quarter).collect()).await.unwrap();
    for round in ["new", "again"] {
        let (mut received, mut counts) = (0, Vec::new());
        while counts.iter().sum::<usize>() < 12 {
            let answer = node.lease(lease("u", "jobs", 100, received)).await.unwrap();
            counts.push(answer.deliveries.len());
            received = *fences(&answer).last().expect("there is more");
        }
        assert_eq!(counts, [5, 5, 2], "{round}");
    }
}

/// Through followers, and over a change of leader: the same leases with the same fences, charged to
/// nobody; a call that waits meanwhile goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_by_calls_outlive_their_leader() {
    let (mut leader, mut one, other) = three().await;
    one.create("jobs", v1::QueueSettings::default()).await.unwrap();
    one.submit(vec![package("jobs", "a"), package("jobs", "b")]).await.unwrap();
    let first = one.lease(lease("u", "jobs", 2, 0)).await.unwrap();
    assert_eq!(first.deliveries.len(), 2);
    let top = *fences(&first).last().unwrap();
    let call = waiting(lease("u", "jobs", 2, top), 60);
    let mut workers = other.workers();
    let waits = tokio::spawn(async move { workers.lease_packages(call).await });
    eventually("the call waits at the leader", async || leader.dispatch.streams() == 1).await;

    let to = one.raft.node();
    leader.cluster.transfer_leadership(v1::TransferLeadershipRequest { to }).await.unwrap();
    leading(&one).await;
    eventually("the call waits at the next leader", async || one.dispatch.streams() == 1).await;
    leader.submit(vec![package("jobs", "c")]).await.unwrap();
    let next = timeout(WAIT, waits).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(next.deliveries[0].package.as_ref().unwrap().id, "c");

    let again = leader.lease(lease("u", "jobs", 1, 0)).await.unwrap();
    assert_eq!(fences(&again), fences(&first)[..1]);
    for delivery in first.deliveries.iter().chain(&next.deliveries) {
        other.complete(held(delivery)).await.unwrap();
        let id = delivery.package.as_ref().unwrap().id.clone();
        assert_eq!(one.get("jobs", &id).await.unwrap().attempts, 1, "no more than the one that completed it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_over_a_queue_brings_the_finished_package() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut packages = node.packages.clone();
    let request = v1::CallPackageRequest { package: Some(package("jobs", "a")) };
    let same = request.clone();
    let call = tokio::spawn(async move { packages.call_package(request).await });
    eventually("the caller waits", async || node.dispatch.waiters() == 1).await;
    let leased = node.lease(waiting(lease("u", "jobs", 1, 0), 60)).await.unwrap();
    node.complete(held(&leased.deliveries[0])).await.unwrap();
    let finished = timeout(WAIT, call).await.unwrap().unwrap().unwrap().into_inner().package.unwrap();
    assert_eq!((finished.state, &finished.result[..]), (v1::State::Completed as i32, &b"done"[..]));
    // Repeated with the same id it is the same call.
    let again = node.packages.call_package(same).await.unwrap().into_inner().package.unwrap();
    assert_eq!(again.result, finished.result);

    // A failure is an answer too.
    let mut packages = node.packages.clone();
    let request = v1::CallPackageRequest { package: Some(package("jobs", "")) };
    let call = tokio::spawn(async move { packages.call_package(request).await });
    let leased = node.lease(waiting(lease("u", "jobs", 1, 0), 60)).await.unwrap();
    let v1::Held { queue, id, fence } = held(&leased.deliveries[0]);
    let message = "no luck".into();
    let failed = v1::Failed { queue, id, fence, message, permanent: true, ..Default::default() };
    node.workers().fail_package(v1::FailPackageRequest { failed: Some(failed) }).await.unwrap();
    let dead = timeout(WAIT, call).await.unwrap().unwrap().unwrap().into_inner().package.unwrap();
    assert_eq!(dead.state, v1::State::Dead as i32);
    assert_eq!(dead.last_failure.unwrap().message, "no luck");

    // Its deadline bounds it; the package goes on.
    let mut late = Request::new(v1::CallPackageRequest { package: Some(package("jobs", "slow")) });
    late.set_timeout(Duration::from_millis(500));
    let status = node.packages.call_package(late).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::DeadlineExceeded, Some("DEADLINE")));
    assert_eq!(node.get("jobs", "slow").await.unwrap().state, v1::State::Ready as i32);

    for (bad, code, named) in [
        (v1::CallPackageRequest::default(), Code::InvalidArgument, "BAD_FIELD"),
        (v1::CallPackageRequest { package: Some(package("nowhere", "a")) }, Code::NotFound, "QUEUE_NOT_FOUND"),
    ] {
        let status = node.packages.call_package(bad).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(named)), "{status:?}");
    }
}

/// The leader changes while a caller waits: it is answered all the same, by the node it asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_over_a_queue_follows_the_leader() {
    let (mut leader, one, other) = three().await;
    leader.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut packages = other.packages.clone();
    let request = v1::CallPackageRequest { package: Some(package("jobs", "a")) };
    let call = tokio::spawn(async move { packages.call_package(request).await });
    eventually("the caller waits where it asked", async || other.dispatch.waiters() == 1).await;
    let to = one.raft.node();
    leader.cluster.transfer_leadership(v1::TransferLeadershipRequest { to }).await.unwrap();
    leading(&one).await;
    let leased = one.lease(waiting(lease("u", "jobs", 1, 0), 60)).await.unwrap();
    one.complete(held(&leased.deliveries[0])).await.unwrap();
    let finished = timeout(WAIT, call).await.unwrap().unwrap().unwrap().into_inner().package.unwrap();
    assert_eq!((finished.state, &finished.result[..]), (v1::State::Completed as i32, &b"done"[..]));
}

/// A wait without a deadline is not an ordinary call: it ends neither by the ordinary time, nor does
/// that time keep it from looking once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_outlasts_the_time_of_an_ordinary_call() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.submit(vec![package("jobs", "a")]).await.unwrap();
    let mut packages = node.packages.clone();
    let request = v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() };
    let began = Instant::now();
    let wait = tokio::spawn(async move { packages.wait_package(request).await });
    eventually("a waiter", async || node.dispatch.waiters() == 1).await;
    tokio::time::sleep_until(began + Duration::from_millis(limits::DEFAULT_CALL_DEADLINE_MS + 500)).await;
    let leased = node.lease(lease("u", "jobs", 1, 0)).await.unwrap();
    node.complete(held(&leased.deliveries[0])).await.unwrap();
    let finished = timeout(WAIT, wait).await.unwrap().unwrap().unwrap().into_inner().package.unwrap();
    assert_eq!(finished.state, v1::State::Completed as i32);
}

/// A look costs more than a wait, so many that come at once look in turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_look_in_turns() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.submit(vec![package("jobs", "a")]).await.unwrap();
    let cancel = v1::CancelPackageRequest { queue: "jobs".into(), id: "a".into(), ..Default::default() };
    node.packages.cancel_package(cancel).await.unwrap();
    let core = node.api.core.clone();
    let turns = core.looks.acquire_many(limits::WAIT_LOOKS_AT_ONCE as u32).await.unwrap();
    let mut packages = node.packages.clone();
    let request = v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() };
    let mut wait = tokio::spawn(async move { packages.wait_package(request).await });
    assert!(timeout(Duration::from_millis(200), &mut wait).await.is_err(), "every turn is taken");
    drop(turns);
    let answer = timeout(WAIT, wait).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(answer.package.unwrap().state(), v1::State::Cancelled);
}
