//! Any node serves any call; leadership moves and nobody loses anything by it.

use tonic::Code;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use super::super::status::reason;
use super::*;

/// Three nodes: the leader and two that follow.
pub(super) async fn three() -> (Node, Node, Node) {
    let mut nodes = nodes(3, 3).await;
    let leader = loop {
        if let Some(at) = nodes.iter().position(|node| node.raft.standing().borrow().leading.is_some()) {
            break nodes.remove(at);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for node in &nodes {
        let mut standing = node.raft.standing();
        let knows =
            standing.wait_for(|standing| standing.leader.as_ref().is_some_and(|l| l.node == leader.raft.node()));
        timeout(WAIT, knows).await.expect("the leader is known in time").expect("the node lives");
    }
    let (one, other) = (nodes.remove(0), nodes.remove(0));
    (leader, one, other)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_serve_calls_and_streams_and_say_who_leads() {
    let (leader, mut one, mut other) = three().await;
    one.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let request = v1::SubmitRequest { packages: vec![package("jobs", "a")], atomic: false };
    let answer = one.packages.submit(request).await.unwrap();
    assert_eq!(answer.metadata().get(super::super::call::LEADER).unwrap(), leader.addr.as_str());
    // Linearizable through any node.
    assert_eq!(other.get("jobs", "a").await.unwrap().state, v1::State::Ready as i32);
    let status = other.get("jobs", "b").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::NotFound, Some("PACKAGE_NOT_FOUND")));
    assert_eq!(status.metadata().get(super::super::call::LEADER).unwrap(), leader.addr.as_str());

    let mut worker = other.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    assert_eq!((leader.dispatch.streams(), other.dispatch.streams()), (1, 0));
    let delivery = worker.delivered().await.remove(0);
    let mut packages = one.packages.clone();
    let waiting = tokio::spawn(async move {
        packages.wait_package(v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() }).await
    });
    eventually("a waiter where it was asked", async || one.dispatch.waiters() == 1).await;
    worker.done("jobs", "a", delivery.fence).await;
    assert!(worker.settled().await[0].status.is_none());
    assert!(timeout(WAIT, waiting).await.unwrap().unwrap().is_ok());

    let (requests, outbound) = mpsc::channel(8);
    let answers = one.packages.submit_stream(ReceiverStream::new(outbound)).await.unwrap();
    assert_eq!(answers.metadata().get(super::super::call::LEADER).unwrap(), leader.addr.as_str());
    let mut answers = answers.into_inner();
    let stream = v1::SubmitStreamRequest { seq: 5, packages: vec![package("jobs", "b")], atomic: false };
    requests.send(stream).await.unwrap();
    assert_eq!(timeout(WAIT, answers.message()).await.unwrap().unwrap().unwrap().seq, 5);

    drop(worker);
    eventually("the hop's end reaches the leader", async || leader.dispatch.streams() == 0).await;
    let stale = v1::GetPackageRequest { queue: "jobs".into(), id: "a".into(), stale_ok: true, ..Default::default() };
    eventually("the follower's own state", async || one.packages.get_package(stale.clone()).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_leadership_moves_streams_are_sent_to_the_new_leader_and_waiting_calls_follow() {
    let (mut leader, mut one, _other) = three().await;
    leader.create("jobs", v1::QueueSettings::default()).await.unwrap();
    leader.submit(vec![package("jobs", "a")]).await.unwrap();
    let mut worker = leader.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    let delivery = worker.delivered().await.remove(0);
    let (requests, outbound) = mpsc::channel(8);
    let mut submits = leader.packages.submit_stream(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    let mut packages = leader.packages.clone();
    let waiting = tokio::spawn(async move {
        packages.wait_package(v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() }).await
    });
    eventually("a waiter", async || leader.dispatch.waiters() == 1).await;

    let to = one.raft.node();
    let moved = one.cluster.transfer_leadership(v1::TransferLeadershipRequest { to }).await.unwrap();
    assert_eq!(moved.into_inner().leader, to);
    worker.until(|told| matches!(told, Tell::Goaway(_)).then_some(())).await;
    assert!(worker.next().await.unwrap().is_none());
    let status = timeout(WAIT, submits.message()).await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::Unavailable, Some("NO_LEADER")));
    drop(requests);

    leading(&one).await;
    let held = v1::Held { queue: "jobs".into(), id: "a".into(), fence: delivery.fence };
    let mut worker = leader.worker(v1::Hello { held: vec![held], ..hello("s", "jobs") }).await;
    let welcome = worker.welcome().await;
    assert_eq!(welcome.verdicts[0].kind(), v1::verdict::Kind::Keep);
    worker.done("jobs", "a", delivery.fence).await;
    assert!(worker.settled().await[0].status.is_none());
    let finished = timeout(WAIT, waiting).await.unwrap().unwrap();
    match finished {
        Ok(finished) => {
            assert_eq!(finished.into_inner().package.unwrap().attempts, 1, "no more than the one that completed it")
        }
        // It may have been caught between the leaders for too long.
        Err(status) => assert_eq!(reason(&status).as_deref(), Some("NO_LEADER"), "{status:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_leader_a_call_waits_and_then_says_that_nothing_was_done() {
    let mut alone = nodes(3, 1).await.remove(0);
    let mut health = HealthClient::new(alone.channel.clone());
    let mut serving = async || health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status();
    assert_eq!(serving().await, ServingStatus::NotServing);
    let mut request = Request::new(v1::SubmitRequest { packages: vec![package("jobs", "a")], atomic: false });
    request.set_timeout(Duration::from_secs(1));
    let began = Instant::now();
    let status = alone.packages.submit(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::Unavailable, Some("NO_LEADER")), "{status:?}");
    assert!(began.elapsed() >= Duration::from_millis(800));
    // What needs no leader is answered.
    let own = alone.cluster.get_status(v1::GetStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!((own.node, own.leader), (1, 0));
}

/// What happened: such a call tried again and again without a pause until its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_raft_has_stopped_says_so_at_once() {
    let mut node = single().await;
    node.raft.halt().await;
    let request = v1::SubmitRequest { packages: vec![package("jobs", "a")], atomic: false };
    let status = timeout(WAIT / 4, node.packages.submit(request)).await.expect("at once").unwrap_err();
    assert_eq!((status.code(), reason(&status).as_deref()), (Code::Unavailable, Some("NO_LEADER")), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_reflection_and_status_tell_what_there_is() {
    let mut node = single().await;
    let mut health = HealthClient::new(node.channel.clone());
    for service in ["", "wharf.v1.PackageService"] {
        eventually("serving", async || {
            let request = HealthCheckRequest { service: service.into() };
            health.check(request).await.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
        })
        .await;
    }
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let mut reflection = ServerReflectionClient::new(node.channel.clone());
    let list = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([list])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["wharf.v1.WorkerService", "wharf.v1.ClusterService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }

    let marked = node.cluster.fingerprint(v1::FingerprintRequest {}).await.unwrap().into_inner();
    let request = v1::GetStatusRequest { fingerprint_index: Some(marked.index) };
    let status = node.cluster.get_status(request).await.unwrap().into_inner();
    assert_eq!((status.node, status.leader, status.leader_client_addr), (1, 1, node.addr.clone()));
    let hash = status.state_hash.expect("a fingerprint");
    assert_eq!((hash.index, hash.violations), (marked.index, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_show_queues_and_workers() {
    let mut node = single().await;
    for name in ["team/a", "team/b", "other"] {
        node.create(name, v1::QueueSettings::default()).await.unwrap();
    }
    let list = v1::ListQueuesRequest { prefix: "team/".into(), stale_ok: false, ..Default::default() };
    let found = node.queues.list_queues(list).await.unwrap().into_inner().queues;
    assert_eq!(found.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>(), ["team/a", "team/b"]);
    let mut worker = node.worker(hello("s", "team/a")).await;
    worker.welcome().await;
    let mut workers = async |queue: &str| {
        let list = v1::ListWorkersRequest { queue: queue.into(), stale_ok: false, ..Default::default() };
        node.queues.list_workers(list).await.unwrap().into_inner().workers
    };
    assert_eq!(workers("team/a").await[0].worker, "worker of s");
    assert!(workers("team/b").await.is_empty());
    assert_eq!(workers("").await.len(), 1);
    node.queues.drain_worker(v1::DrainWorkerRequest { session: "s".into() }).await.unwrap();
    while worker.next().await.expect("a clean end").is_some() {}
}
