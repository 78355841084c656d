//! The bounds of a node, read back over gRPC: what is past one is refused by name or waits, and the node
//! goes on.

use prost::Message as _;
use tonic::Code;
use tonic_types::StatusExt;

use super::super::status::reason;
use super::across::three;
use super::*;
use crate::machine::command::{Command, Op, Submit, Tick};
use crate::raft::handle::{Lane, Responder};
use crate::types::{QueueName, limits};

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, named: &str) -> Status {
    let status = result.expect_err("it must be refused");
    assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(named)), "{}", status.message());
    status
}

fn large(queue: &str, id: &str, bytes: usize) -> v1::NewPackage {
    v1::NewPackage { payload: vec![7; bytes].into(), ..package(queue, id) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_is_refused_by_name_and_the_connection_lives_on() {
    const MOST: usize = limits::MAX_CLIENT_MESSAGE_BYTES;
    let mut node = single().await;
    let max_payload = Some(limits::MAX_PAYLOAD_CEILING_BYTES);
    node.create("jobs", v1::QueueSettings { max_payload, ..Default::default() }).await.unwrap();
    // Two that fill a message to the last byte are taken.
    let half = |id: &str, bytes| large("jobs", id, bytes);
    let two = |bytes| v1::SubmitRequest { packages: vec![half("a", MOST / 2), half("b", bytes)], atomic: false };
    let exact = MOST / 2 - (two(MOST / 2).encoded_len() - MOST);
    assert_eq!(two(exact).encoded_len(), MOST);
    let taken = node.packages.submit(two(exact)).await.unwrap().into_inner();
    assert!(taken.results.iter().all(|result| result.error.is_none()), "{taken:?}");
    let status = refused(node.packages.submit(two(exact + 1)).await, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
    let info = status.get_details_error_info().expect("a reason");
    assert_eq!(info.metadata["limit_bytes"], MOST.to_string());
    assert_eq!(node.get("jobs", "a").await.unwrap().state, v1::State::Ready as i32, "on the same connection");

    let (requests, outbound) = mpsc::channel(8);
    let mut answers = node.packages.submit_stream(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    for (seq, bytes) in [(1, 1), (2, MOST)] {
        let packages = vec![large("jobs", "c", bytes)];
        requests.send(v1::SubmitStreamRequest { seq, packages, atomic: false }).await.unwrap();
    }
    assert_eq!(
        timeout(WAIT, answers.message()).await.unwrap().unwrap().unwrap().seq,
        1,
        "what came before is answered"
    );
    let ended = timeout(WAIT, answers.message()).await.unwrap();
    refused(ended, Code::InvalidArgument, "MESSAGE_TOO_LARGE");

    node.create("empty", v1::QueueSettings::default()).await.unwrap();
    let mut worker = node.worker(hello("s", "empty")).await;
    worker.welcome().await;
    let completion = v1::Completion { result: vec![7; MOST].into(), ..Default::default() };
    worker.ask(Ask::Done(v1::Done { completions: vec![completion] })).await;
    let told = worker.refused().await;
    assert_eq!(reason(&told).as_deref(), Some("MESSAGE_TOO_LARGE"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_refuse_what_is_too_large_themselves_and_nodes_take_more_from_each_other() {
    let (mut leader, mut one, _other) = three().await;
    leader.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let too_large = || vec![large("jobs", "a", limits::MAX_CLIENT_MESSAGE_BYTES)];
    refused(one.submit(too_large()).await, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
    let mut worker = one.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    let completion = v1::Completion { result: vec![7; limits::MAX_CLIENT_MESSAGE_BYTES].into(), ..Default::default() };
    worker.ask(Ask::Done(v1::Done { completions: vec![completion] })).await;
    let told = worker.refused().await;
    assert_eq!(reason(&told).as_deref(), Some("MESSAGE_TOO_LARGE"), "{told:?}");

    let members = leader.raft.status().members;
    let peer_addr = members.iter().find(|member| member.node == leader.raft.node()).unwrap().member.peer_addr.clone();
    let peer = Channel::from_shared(format!("http://{peer_addr}")).unwrap().connect_lazy();
    let mut packages = PackageServiceClient::new(peer);
    let mut submit = async |bytes| {
        packages.submit(v1::SubmitRequest { packages: vec![large("jobs", "a", bytes)], atomic: false }).await
    };
    // It is read here; the package in it is too large for any queue.
    refused(submit(limits::MAX_CLIENT_MESSAGE_BYTES).await, Code::InvalidArgument, "BAD_FIELD");
    refused(submit(limits::MAX_PEER_MESSAGE_BYTES).await, Code::InvalidArgument, "MESSAGE_TOO_LARGE");
}

/// Nobody's command, in this lane.
fn filler(lane: Lane) -> Command {
    let op = match lane {
        Lane::Settle => Op::Tick(Tick {}),
        Lane::Submit => Op::Submit(Submit { packages: vec![], atomic: false }),
    };
    Command { op: Some(op) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_log_that_hangs_is_bounded_and_refused_by_name() {
    const IN_FLIGHT: usize = limits::MAX_PROPOSALS_IN_FLIGHT;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let raft = node.raft.clone();
    let metrics = || raft.status().metrics;
    let fill = |lane| raft.send(lane, filler(lane), Responder::None);
    node.disk.hang(true);
    for slot in 1..=IN_FLIGHT {
        fill(Lane::Submit);
        eventually("its own batch", async || metrics().proposals_in_flight == slot as u64).await;
    }
    fill(Lane::Submit);
    eventually("a wait for a slot", async || metrics().commands_waiting == 1).await;
    assert_eq!(metrics().proposals_in_flight, IN_FLIGHT as u64);

    // A submit is held back first, as long as its caller has time.
    (1..limits::SUBMITS_WAITING_BEFORE_HOLD).for_each(|_| fill(Lane::Submit));
    let held = |id: &str, ms| {
        let mut request = Request::new(v1::SubmitRequest { packages: vec![package("jobs", id)], atomic: false });
        request.set_timeout(Duration::from_millis(ms));
        request
    };
    let status = refused(node.packages.submit(held("late", 300)).await, Code::ResourceExhausted, "OVERLOADED");
    assert!(status.get_details_quota_failure().is_some() && status.get_details_retry_info().is_some());
    assert_eq!(metrics().commands_waiting, limits::SUBMITS_WAITING_BEFORE_HOLD as u64, "it was not taken");
    let mut packages = node.packages.clone();
    let patient = tokio::spawn(async move { packages.submit(held("patient", 20_000)).await });

    // Everything else is refused once all is full.
    (limits::SUBMITS_WAITING_BEFORE_HOLD..limits::MAX_COMMANDS_WAITING).for_each(|_| fill(Lane::Settle));
    assert_eq!(metrics().commands_waiting, limits::MAX_COMMANDS_WAITING as u64);
    let other = node.create("other", v1::QueueSettings::default()).await;
    refused(other, Code::ResourceExhausted, "OVERLOADED");
    assert_eq!(metrics().commands_waiting, limits::MAX_COMMANDS_WAITING as u64);

    node.disk.hang(false);
    let taken = timeout(WAIT, patient).await.unwrap().unwrap().unwrap().into_inner();
    assert!(taken.results[0].error.is_none(), "who waited is taken: {taken:?}");
    node.create("other", v1::QueueSettings::default()).await.expect("and so is everybody else");
    let late = node.get("jobs", "late").await;
    refused(late, Code::NotFound, "PACKAGE_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_without_an_answer_is_unknown_and_the_same_again_finds_out() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.disk.hang(true);
    let began = Instant::now();
    let unknown = node.submit(vec![package("jobs", "a")]).await;
    refused(unknown, Code::Unavailable, "OUTCOME_UNKNOWN");
    let deadline = Duration::from_millis(limits::PROPOSAL_DEADLINE_MS);
    assert!(began.elapsed() >= deadline, "{:?}", began.elapsed());
    node.disk.hang(false);
    let again = node.submit(vec![package("jobs", "a")]).await.unwrap().remove(0);
    assert!(again.error.is_none() && again.duplicate, "it was carried out: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_submits_alone_and_recovers_by_itself() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut worker = node.worker(v1::Hello { max_in_flight: 1, ..hello("s", "jobs") }).await;
    worker.welcome().await;
    node.submit(vec![package("jobs", "a"), package("jobs", "b")]).await.unwrap();
    let delivery = worker.delivered().await.remove(0);
    let id = delivery.package.as_ref().unwrap().id.clone();

    let used = (1 << 40) - node.raft.status().disk.free_bytes;
    node.disk.set_capacity(Some(used + limits::DISK_RESERVE_BYTES - 1));
    eventually("it is noticed", async || node.raft.status().disk.status == "RESERVE").await;
    let mut last = None;
    eventually("a refusal", async || {
        last = node.submit(vec![package("jobs", "c")]).await.err();
        last.is_some()
    })
    .await;
    let status = refused(Err::<(), _>(last.unwrap()), Code::ResourceExhausted, "DISK_FULL");
    assert!(status.get_details_retry_info().is_some());
    worker.done("jobs", &id, delivery.fence).await;
    assert!(worker.settled().await[0].status.is_none(), "completions go on");
    assert_eq!(worker.delivered().await.len(), 1, "and so do deliveries");
    assert_eq!(node.get("jobs", &id).await.unwrap().state, v1::State::Completed as i32, "and reads");

    node.disk.set_capacity(None);
    eventually("submits are taken again", async || node.submit(vec![package("jobs", "d")]).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_are_bounded_and_refused_by_name() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.submit(vec![package("jobs", "a")]).await.unwrap();
    let queue = QueueName::parse("jobs").unwrap();
    let wait = |n: usize| node.dispatch.wait_package(queue.clone(), &format!("w{n}"));
    let mut waiters: Vec<_> = (0..limits::MAX_WAITERS).map(|n| wait(n).expect("room for all of them")).collect();
    let request = || v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() };
    let late = timeout(WAIT, node.packages.wait_package(request())).await.expect("refused at once");
    let status = refused(late, Code::ResourceExhausted, "TOO_MANY_WAITERS");
    assert!(status.get_details_quota_failure().is_some() && status.get_details_retry_info().is_some());
    waiters.pop();
    let mut packages = node.packages.clone();
    let waiting = tokio::spawn(async move { packages.wait_package(request()).await });
    eventually("a place", async || node.dispatch.waiters() == limits::MAX_WAITERS).await;
    let cancel = v1::CancelPackageRequest { queue: "jobs".into(), id: "a".into(), ..Default::default() };
    node.packages.cancel_package(cancel).await.unwrap();
    assert!(timeout(WAIT, waiting).await.unwrap().unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_past_the_streams_of_a_connection_waits_for_one_to_end() {
    const MOST: usize = limits::MAX_STREAMS_A_CONNECTION as usize;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.submit(vec![package("jobs", "a"), package("jobs", "b")]).await.unwrap();
    let waits = |id: &'static str| {
        let mut packages = node.packages.clone();
        let request = v1::WaitPackageRequest { queue: "jobs".into(), id: id.into() };
        tokio::spawn(async move { packages.wait_package(request).await })
    };
    let one = waits("a");
    let others: Vec<_> = (1..MOST).map(|_| waits("b")).collect();
    eventually("a connection full of calls", async || node.dispatch.waiters() == MOST).await;
    let mut packages = node.packages.clone();
    let get = v1::GetPackageRequest { queue: "jobs".into(), id: "b".into(), ..Default::default() };
    let mut late = tokio::spawn(async move { packages.get_package(get).await });
    assert!(timeout(Duration::from_millis(300), &mut late).await.is_err(), "it waits for its turn");

    let elsewhere = Channel::from_shared(format!("http://{}", node.addr)).unwrap().connect_lazy();
    let mut elsewhere = PackageServiceClient::new(elsewhere);
    let cancel = |id: &str| v1::CancelPackageRequest { queue: "jobs".into(), id: id.into(), ..Default::default() };
    elsewhere.cancel_package(cancel("a")).await.expect("another connection has room");
    assert!(timeout(WAIT, one).await.unwrap().unwrap().is_ok());
    assert!(timeout(WAIT, late).await.unwrap().unwrap().is_ok(), "a stream ended, so the next begins");
    elsewhere.cancel_package(cancel("b")).await.unwrap();
    for other in others {
        assert!(timeout(WAIT, other).await.unwrap().unwrap().is_ok());
    }
}
