//! Every refusal, read back over gRPC: its code, its reason, its details.

use tonic::Code;
use tonic_types::StatusExt;

use super::super::status::reason;
use super::*;
use crate::types::limits;

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, named: &str) -> Status {
    let status = result.expect_err("it must be refused");
    assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(named)), "{}", status.message());
    status
}

/// What an answer says of one part.
fn inside(error: Option<tonic_types::pb::Status>) -> Result<(), Status> {
    use prost::Message;
    match error {
        None => Ok(()),
        Some(error) => {
            let details = error.encode_to_vec().into();
            Err(Status::with_details(Code::from_i32(error.code), error.message, details))
        }
    }
}

async fn submit_one(node: &mut Node, package: v1::NewPackage) -> Result<(), Status> {
    inside(node.submit(vec![package]).await?.remove(0).error)
}

fn paths(status: &Status) -> Vec<String> {
    let bad = status.get_details_bad_request().expect("a bad request");
    bad.field_violations.into_iter().map(|violation| violation.field).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_fields_are_named_with_their_paths() {
    let mut node = single().await;
    let bad = vec![
        v1::NewPackage { priority: Some(10), ..package("no queue", "x") },
        package("jobs", &"x".repeat(limits::MAX_ID_BYTES + 1)),
    ];
    let status = refused(node.submit(bad.clone()).await, Code::InvalidArgument, "BAD_FIELD");
    assert_eq!(paths(&status), ["packages[0].queue", "packages[0].priority", "packages[1].id"]);

    // Beside a good one each is refused alone, unless the request is atomic.
    node.create("good", v1::QueueSettings::default()).await.unwrap();
    let mut mixed = bad.clone();
    mixed.insert(1, package("good", "fine"));
    let results = node.submit(mixed.clone()).await.unwrap();
    let errors: Vec<_> = results.into_iter().map(|result| inside(result.error)).collect();
    assert!(errors[1].is_ok());
    assert_eq!(paths(errors[0].as_ref().unwrap_err()), ["packages[0].queue", "packages[0].priority"]);
    assert_eq!(paths(errors[2].as_ref().unwrap_err()), ["packages[2].id"]);
    assert_eq!(node.get("good", "fine").await.unwrap().state(), v1::State::Ready);
    let atomic = v1::SubmitRequest { packages: mixed, atomic: true };
    let status = refused(node.packages.submit(atomic).await, Code::InvalidArgument, "BAD_FIELD");
    assert_eq!(paths(&status), ["packages[0].queue", "packages[0].priority", "packages[2].id"]);

    let later =
        v1::NewPackage { group_key: "g".into(), reply_to: "r".into(), forward_to: "f".into(), ..package("jobs", "x") };
    let status = refused(node.submit(vec![later]).await, Code::InvalidArgument, "NOT_YET_SUPPORTED");
    assert_eq!(paths(&status), ["packages[0].group_key", "packages[0].reply_to", "packages[0].forward_to"]);

    let many = vec![package("jobs", ""); limits::MAX_PACKAGES_A_SUBMIT + 1];
    refused(node.submit(many).await, Code::InvalidArgument, "BAD_FIELD");
    refused(node.submit(vec![]).await, Code::InvalidArgument, "BAD_FIELD");
    refused(node.get("jobs", "").await, Code::InvalidArgument, "BAD_FIELD");
    let lease = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let settings = v1::QueueSettings { lease, ..Default::default() };
    let status = refused(node.create("jobs", settings).await, Code::InvalidArgument, "BAD_FIELD");
    assert_eq!(paths(&status), ["settings.lease"]);
    let purge = v1::PurgePackagesRequest { queue: "jobs".into(), states: vec![3], validate_only: false };
    let status = refused(node.packages.purge_packages(purge).await, Code::InvalidArgument, "BAD_FIELD");
    assert_eq!(paths(&status), ["states[0]"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packages_are_refused_for_what_the_state_knows() {
    let mut node = single().await;
    let lost = submit_one(&mut node, package("jobs", "a")).await;
    refused(lost, Code::NotFound, "QUEUE_NOT_FOUND");
    refused(node.get("jobs", "a").await, Code::NotFound, "QUEUE_NOT_FOUND");
    let settings = v1::QueueSettings { max_packages: Some(2), max_payload: Some(100), ..Default::default() };
    node.create("jobs", settings).await.unwrap();
    refused(node.get("jobs", "a").await, Code::NotFound, "PACKAGE_NOT_FOUND");
    let wait = v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() };
    refused(node.packages.wait_package(wait).await, Code::NotFound, "PACKAGE_NOT_FOUND");

    let big = v1::NewPackage { payload: vec![0; 101].into(), ..package("jobs", "big") };
    let status = refused(submit_one(&mut node, big).await, Code::InvalidArgument, "BAD_FIELD");
    assert_eq!(paths(&status), ["packages[0].payload"]);
    submit_one(&mut node, package("jobs", "a")).await.unwrap();
    submit_one(&mut node, package("jobs", "a")).await.unwrap();
    let other = v1::NewPackage { kind: "other".into(), ..package("jobs", "a") };
    refused(submit_one(&mut node, other.clone()).await, Code::AlreadyExists, "ID_CONFLICT");
    let atomic = v1::SubmitRequest { packages: vec![package("jobs", "b"), other], atomic: true };
    let status = refused(node.packages.submit(atomic).await, Code::AlreadyExists, "ID_CONFLICT");
    assert!(status.message().starts_with("package 1 of the atomic request"), "{}", status.message());
    refused(node.get("jobs", "b").await, Code::NotFound, "PACKAGE_NOT_FOUND");

    submit_one(&mut node, package("jobs", "b")).await.unwrap();
    let status = refused(submit_one(&mut node, package("jobs", "c")).await, Code::ResourceExhausted, "QUEUE_FULL");
    assert!(status.get_details_retry_info().is_some() && status.get_details_quota_failure().is_some());

    let retry = v1::RetryPackageRequest { queue: "jobs".into(), id: "a".into(), if_revision: None };
    refused(node.packages.retry_package(retry).await, Code::FailedPrecondition, "NOT_DEAD");
    let cancel = |if_revision| v1::CancelPackageRequest {
        queue: "jobs".into(),
        id: "a".into(),
        reason: "enough".into(),
        if_revision,
    };
    refused(node.packages.cancel_package(cancel(Some(1))).await, Code::Aborted, "REVISION_MISMATCH");
    node.packages.cancel_package(cancel(None)).await.unwrap();
    node.packages.cancel_package(cancel(None)).await.expect("a repeat is answered as the first time");
    let mut worker = node.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    let delivery = worker.delivered().await.remove(0);
    worker.done("jobs", "b", delivery.fence).await;
    worker.settled().await;
    let late = v1::CancelPackageRequest { id: "b".into(), ..cancel(None) };
    refused(node.packages.cancel_package(late).await, Code::FailedPrecondition, "ALREADY_FINISHED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_are_refused_for_what_the_state_knows() {
    let mut node = single().await;
    let dead = |name: &str| v1::QueueSettings { dead_letter_queue: name.into(), ..Default::default() };
    node.create("b", v1::QueueSettings::default()).await.unwrap();
    node.create("a", dead("b")).await.unwrap();
    node.create("a", dead("b")).await.expect("the same again is the same");
    refused(node.create("a", v1::QueueSettings::default()).await, Code::AlreadyExists, "QUEUE_EXISTS");
    let delete = |name: &str, force| v1::DeleteQueueRequest { name: name.into(), force };
    let referred = node.queues.delete_queue(delete("b", true)).await;
    refused(referred, Code::FailedPrecondition, "QUEUE_REFERRED");
    let update = v1::UpdateQueueRequest {
        queue: Some(v1::Queue { name: "b".into(), settings: Some(dead("a")), ..Default::default() }),
        ..Default::default()
    };
    refused(node.queues.update_queue(update).await, Code::FailedPrecondition, "DEAD_LETTER_CYCLE");

    submit_one(&mut node, package("a", "x")).await.unwrap();
    let full = node.queues.delete_queue(delete("a", false)).await;
    refused(full, Code::FailedPrecondition, "QUEUE_NOT_EMPTY");
    node.queues.seal_queue(v1::SealQueueRequest { name: "a".into(), if_revision: None }).await.unwrap();
    let sealed = submit_one(&mut node, package("a", "y")).await;
    refused(sealed, Code::FailedPrecondition, "QUEUE_SEALED");
    node.queues.unseal_queue(v1::UnsealQueueRequest { name: "a".into(), if_revision: None }).await.unwrap();
    let stale = v1::PauseQueueRequest { name: "a".into(), if_revision: Some(1) };
    refused(node.queues.pause_queue(stale).await, Code::Aborted, "REVISION_MISMATCH");

    let purge = |validate_only| v1::PurgePackagesRequest { queue: "a".into(), states: vec![], validate_only };
    assert_eq!(node.packages.purge_packages(purge(true)).await.unwrap().into_inner().purged, 1);
    assert_eq!(node.packages.purge_packages(purge(false)).await.unwrap().into_inner().purged, 1);
    node.queues.delete_queue(delete("a", true)).await.unwrap();
    let gone = node.queues.get_queue(v1::GetQueueRequest { name: "a".into(), stale_ok: false }).await;
    refused(gone, Code::NotFound, "QUEUE_NOT_FOUND");
    let drain = v1::DrainWorkerRequest { session: "nobody".into() };
    refused(node.queues.drain_worker(drain).await, Code::NotFound, "SESSION_NOT_FOUND");
    let transfer = node.cluster.transfer_leadership(v1::TransferLeadershipRequest { to: 0 }).await;
    refused(transfer, Code::FailedPrecondition, "NO_OTHER_VOTER");
    let transfer = node.cluster.transfer_leadership(v1::TransferLeadershipRequest { to: 9 }).await;
    refused(transfer, Code::FailedPrecondition, "NOT_A_VOTER");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_refused_by_name() {
    let mut node = single().await;
    let long = format!("{}:7412", "x".repeat(limits::MAX_ADDR_BYTES));
    for peer_addr in [long.as_str(), "nowhere", ":1", "a:0", "http://a:1"] {
        let add = v1::AddMemberRequest { node: 0, peer_addr: peer_addr.to_owned(), ..Default::default() };
        let status = refused(node.cluster.add_member(add).await, Code::InvalidArgument, "BAD_FIELD");
        assert_eq!(paths(&status), ["node", "peer_addr"], "{peer_addr}");
    }
    let add = v1::AddMemberRequest { node: 2, peer_addr: "127.0.0.1:1".into(), ..Default::default() };
    refused(node.cluster.add_member(add).await, Code::FailedPrecondition, "NODE_UNREACHABLE");
    for nodes in [vec![], vec![2; limits::MAX_MEMBERS + 1]] {
        let promote = v1::PromoteMemberRequest { nodes: nodes.clone() };
        refused(node.cluster.promote_member(promote).await, Code::InvalidArgument, "BAD_FIELD");
        let remove = v1::RemoveMemberRequest { nodes, force: true };
        refused(node.cluster.remove_member(remove).await, Code::InvalidArgument, "BAD_FIELD");
    }
    let promote = v1::PromoteMemberRequest { nodes: vec![2] };
    refused(node.cluster.promote_member(promote).await, Code::NotFound, "NODE_NOT_FOUND");
    let remove = v1::RemoveMemberRequest { nodes: vec![1], force: true };
    refused(node.cluster.remove_member(remove).await, Code::FailedPrecondition, "LAST_VOTER");
    refused(node.cluster.safe_to_stop(v1::SafeToStopRequest { node: 2 }).await, Code::NotFound, "NODE_NOT_FOUND");
    let alone = node.cluster.safe_to_stop(v1::SafeToStopRequest { node: 1 }).await.unwrap().into_inner();
    assert!(!alone.safe && alone.reason.contains("only 0 of 1"), "{}", alone.reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_of_the_cluster_are_refused_by_name() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut set = node.cluster.clone();
    let mut limit = async |settings: v1::ClusterSettings| {
        set.set_cluster(v1::SetClusterRequest { settings: Some(settings) }).await.unwrap();
    };
    limit(v1::ClusterSettings { max_queues: Some(1), max_sessions: Some(1), ..Default::default() }).await;
    let more = node.create("more", v1::QueueSettings::default()).await;
    refused(more, Code::ResourceExhausted, "TOO_MANY_QUEUES");
    let mut one = node.worker(hello("one", "jobs")).await;
    one.welcome().await;
    let mut two = node.worker(hello("two", "jobs")).await;
    refused::<()>(Err(two.refused().await), Code::ResourceExhausted, "TOO_MANY_SESSIONS");
    limit(v1::ClusterSettings { memory_budget_bytes: Some(1), ..Default::default() }).await;
    let full = submit_one(&mut node, package("jobs", "a")).await;
    refused(full, Code::ResourceExhausted, "MEMORY_BUDGET");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlements_are_refused_one_by_one() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut worker = node.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    node.submit(vec![package("jobs", "a"), package("jobs", "b")]).await.unwrap();
    let mut deliveries = worker.delivered().await;
    while deliveries.len() < 2 {
        deliveries.extend(worker.delivered().await);
    }
    let completion =
        |id: &str, fence| v1::Completion { queue: "jobs".into(), id: id.into(), fence, ..Default::default() };
    let child = v1::Completion { children: vec![package("jobs", "c")], ..completion("b", deliveries[1].fence) };
    let nameless = v1::Completion { queue: String::new(), ..completion("a", 1) };
    let completions = vec![
        completion("a", deliveries[0].fence - 1),
        completion("never", 1),
        child,
        nameless,
        completion("a", deliveries[0].fence),
    ];
    worker.ask(Ask::Done(v1::Done { completions })).await;
    let mut outcomes = Vec::new();
    while outcomes.len() < 5 {
        outcomes.extend(worker.settled().await);
    }
    let mut seen: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| match inside(outcome.status) {
            Ok(()) => (outcome.id, "".to_owned()),
            Err(status) => (outcome.id, reason(&status).unwrap()),
        })
        .collect();
    seen.sort();
    let expected = [
        ("a", ""),
        ("a", "BAD_FIELD"),
        ("a", "LEASE_LOST"),
        ("b", "NOT_YET_SUPPORTED"),
        ("never", "PACKAGE_NOT_FOUND"),
    ];
    assert_eq!(seen, expected.map(|(id, reason)| (id.to_owned(), reason.to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_the_rules_ends_with_the_reason() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let bad = |status: Status| paths(&refused::<()>(Err(status), Code::InvalidArgument, "BAD_FIELD"));

    let mut rude = Worker::silent(node.channel.clone()).await;
    rude.ask(Ask::Ping(v1::Ping {})).await;
    assert_eq!(bad(rude.refused().await), ["hello"]);

    let nobody = v1::Hello { session: String::new(), queues: vec![], ..hello("", "jobs") };
    let mut nobody = node.worker(nobody).await;
    assert_eq!(bad(nobody.refused().await), ["hello.session", "hello.queues"]);

    let greedy = v1::Hello { max_in_flight: limits::MAX_IN_FLIGHT_CEILING + 1, ..hello("s", "jobs") };
    assert_eq!(bad(node.worker(greedy).await.refused().await), ["hello.max_in_flight"]);
    let kinds = (0..=limits::MAX_LANES_A_CLASS).map(|kind| kind.to_string()).collect();
    let wide = v1::Hello { kinds, ..hello("s", "jobs") };
    assert_eq!(bad(node.worker(wide).await.refused().await), ["hello.kinds", "hello.kinds"]);

    let held = |count| v1::Hello {
        held: vec![v1::Held { queue: "jobs".into(), id: "a".into(), fence: 1 }; count],
        ..hello("s", "jobs")
    };
    let laden = held(limits::MAX_HELD_IN_A_HELLO + 1);
    assert_eq!(bad(node.worker(laden).await.refused().await), ["hello.held"]);
    node.worker(held(limits::MAX_HELD_IN_A_HELLO)).await.welcome().await;

    let mut twice = node.worker(hello("s", "jobs")).await;
    twice.welcome().await;
    twice.ask(Ask::Hello(hello("s", "jobs"))).await;
    assert_eq!(bad(twice.refused().await), ["hello"]);

    let mut much = node.worker(hello("s", "jobs")).await;
    much.welcome().await;
    let held = v1::Held { queue: "jobs".into(), id: "a".into(), fence: 1 };
    much.ask(Ask::Release(v1::Release { held: vec![held; limits::MAX_SETTLEMENTS_A_MESSAGE + 1] })).await;
    assert_eq!(bad(much.refused().await), ["release.held"]);
    eventually("every stream is gone", async || node.dispatch.streams() == 0).await;
}
