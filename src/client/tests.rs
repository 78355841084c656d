//! The SDK against a scripted node: a real gRPC server in the same process whose answers the test
//! writes by hand.

#![allow(clippy::disallowed_methods, reason = "the scripted node listens by itself")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::proto::v1::cluster_service_server::ClusterServiceServer;
use crate::proto::v1::package_service_server::{PackageService, PackageServiceServer};
use crate::proto::v1::work_request::Request as Ask;
use crate::proto::v1::work_response::Response as Tell;
use crate::proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use crate::proto::v1::{
    Bookmark, CallPackageRequest, CallPackageResponse, CancelPackageRequest, CancelPackageResponse,
    CompletePackageRequest, CompletePackageResponse, Deliver, EndOfWork, ExtendPackageRequest, ExtendPackageResponse,
    FailPackageRequest, FailPackageResponse, GetPackageRequest, GetPackageResponse, Goaway, Held, Hello,
    LeasePackagesRequest, LeasePackagesResponse, ListPackagesRequest, ListPackagesResponse, Outcome, Pong,
    PurgePackagesRequest, PurgePackagesResponse, ReleasePackageRequest, ReleasePackageResponse, RetryPackageRequest,
    RetryPackageResponse, Revoke, Settled, SubmitRequest, SubmitResponse, SubmitResult, SubmitStreamRequest,
    SubmitStreamResponse, Verdict, WaitPackageRequest, WaitPackageResponse, WatchRequest, WatchResponse, Welcome,
    WorkRequest, WorkResponse, verdict, watch_response,
};

mod doubt;
mod many;

const SOON: Duration = Duration::from_secs(20);

fn refusal(code: Code, reason: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "wharf", std::collections::HashMap::new());
    Status::with_error_details(code, "told", details)
}

/// One node whose streams are handed to the test, and whose submits answer what the test queued.
#[derive(Clone)]
struct FakeNode {
    streams: mpsc::Sender<WorkerStream>,
    /// Refusals of the next submits, last first.
    refusals: Arc<Mutex<Vec<Status>>>,
    submits: Arc<AtomicUsize>,
    ids: Arc<Mutex<Vec<String>>>,
    /// Whom it names as the leader.
    leader: Arc<Mutex<Option<String>>>,
    /// What the next watches hear, last first, and where they wanted to begin.
    watches: Arc<Mutex<Vec<WatchScript>>>,
    starts: Arc<Mutex<Vec<u64>>>,
    /// It takes submits and answers none for as long as this holds.
    mute: watch::Sender<bool>,
    /// How often it was asked for its status.
    asked: Arc<AtomicUsize>,
}

type WatchScript = Vec<Result<WatchResponse, Status>>;

struct WorkerStream {
    from_worker: Streaming<WorkRequest>,
    to_worker: mpsc::Sender<Result<WorkResponse, Status>>,
}

impl WorkerStream {
    /// The next request that is no ping.
    async fn next(&mut self) -> (u64, Ask) {
        let wait = async {
            loop {
                let request = self.from_worker.message().await.expect("the worker speaks").expect("and goes on");
                match request.request.expect("every request is something") {
                    Ask::Ping(_) => self.tell(Tell::Pong(Pong {})).await,
                    ask => return (request.received_fence, ask),
                }
            }
        };
        tokio::time::timeout(SOON, wait).await.expect("the worker sends what is awaited")
    }

    async fn hello(&mut self) -> Hello {
        match self.next().await.1 {
            Ask::Hello(hello) => hello,
            other => panic!("the first request is a Hello, not {other:?}"),
        }
    }

    async fn done(&mut self) -> Vec<u64> {
        match self.next().await.1 {
            Ask::Done(done) => done.completions.iter().map(|completion| completion.fence).collect(),
            other => panic!("expected a Done, got {other:?}"),
        }
    }

    async fn tell(&self, response: Tell) {
        let response = WorkResponse { revision: 1, response: Some(response) };
        self.to_worker.send(Ok(response)).await.expect("the worker listens");
    }

    /// The stream breaks, as when the node dies.
    async fn cut(self) {
        let broken = Err(Status::unavailable("the node is gone"));
        self.to_worker.send(broken).await.expect("the worker listens");
    }

    async fn welcome(&self, hello: &Hello, kinds: &[verdict::Kind]) {
        let verdicts = hello.held.iter().zip(kinds).map(|(held, kind)| Verdict {
            queue: held.queue.clone(),
            id: held.id.clone(),
            fence: held.fence,
            kind: *kind as i32,
            outcome: None,
        });
        let verdicts = verdicts.collect();
        let session = hello.session.clone();
        self.tell(Tell::Welcome(Welcome { session, epoch: 1, term: 1, verdicts, session_grace: None })).await;
    }

    async fn deliver(&self, fences: &[u64]) {
        let deliveries = fences.iter().map(|&fence| crate::proto::v1::Delivery {
            package: Some(Package { queue: "jobs".into(), id: format!("p{fence}"), ..Default::default() }),
            fence,
            lease: Some(package::duration(Duration::from_secs(60))),
            attempt: 1,
            ..Default::default()
        });
        self.tell(Tell::Deliver(Deliver { deliveries: deliveries.collect() })).await;
    }

    async fn settled(&self, fences: &[u64]) {
        let outcomes = fences.iter().map(|&fence| Outcome { fence, ..Default::default() });
        self.tell(Tell::Settled(Settled { outcomes: outcomes.collect() })).await;
    }
}

#[tonic::async_trait]
impl WorkerService for FakeNode {
    type WorkStream = ReceiverStream<Result<WorkResponse, Status>>;

    async fn work(&self, request: Request<Streaming<WorkRequest>>) -> Result<Response<Self::WorkStream>, Status> {
        let (to_worker, answers) = mpsc::channel(16);
        let stream = WorkerStream { from_worker: request.into_inner(), to_worker };
        self.streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        let mut response = Response::new(ReceiverStream::new(answers));
        if let Some(leader) = &*self.leader.lock() {
            response.metadata_mut().insert(nodes::LEADER_KEY, leader.parse().expect("an address is ASCII"));
        }
        Ok(response)
    }

    async fn lease_packages(
        &self,
        _: Request<LeasePackagesRequest>,
    ) -> Result<Response<LeasePackagesResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn complete_package(
        &self,
        _: Request<CompletePackageRequest>,
    ) -> Result<Response<CompletePackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn fail_package(&self, _: Request<FailPackageRequest>) -> Result<Response<FailPackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn extend_package(
        &self,
        _: Request<ExtendPackageRequest>,
    ) -> Result<Response<ExtendPackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn release_package(
        &self,
        _: Request<ReleasePackageRequest>,
    ) -> Result<Response<ReleasePackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

#[tonic::async_trait]
impl PackageService for FakeNode {
    type SubmitStreamStream = ReceiverStream<Result<SubmitStreamResponse, Status>>;
    type WatchStream = tokio_stream::Iter<std::vec::IntoIter<Result<WatchResponse, Status>>>;

    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        self.speaks().await;
        let results = self.take(request.into_inner().packages)?;
        Ok(Response::new(SubmitResponse { results, revision: 1 }))
    }

    async fn submit_stream(
        &self,
        request: Request<Streaming<SubmitStreamRequest>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let (node, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                node.speaks().await;
                let answer = node.take(request.packages);
                let broken = answer.is_err();
                let answer = answer.map(|results| SubmitStreamResponse { seq: request.seq, results, revision: 1 });
                if answers.send(answer).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_package(&self, _: Request<GetPackageRequest>) -> Result<Response<GetPackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn wait_package(&self, _: Request<WaitPackageRequest>) -> Result<Response<WaitPackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn list_packages(&self, _: Request<ListPackagesRequest>) -> Result<Response<ListPackagesResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn call_package(&self, _: Request<CallPackageRequest>) -> Result<Response<CallPackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn cancel_package(
        &self,
        _: Request<CancelPackageRequest>,
    ) -> Result<Response<CancelPackageResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn retry_package(&self, _: Request<RetryPackageRequest>) -> Result<Response<RetryPackageResponse>, Status> {
        Err(self.refusals.lock().pop().unwrap_or_else(|| Status::unimplemented("not scripted")))
    }

    async fn purge_packages(
        &self,
        _: Request<PurgePackagesRequest>,
    ) -> Result<Response<PurgePackagesResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn list_history(&self, _: Request<HistoryQuery>) -> Result<Response<HistoryPage>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.starts.lock().push(request.into_inner().start_revision);
        let script = self.watches.lock().pop().ok_or_else(|| refusal(Code::OutOfRange, "REVISION_COMPACTED"))?;
        Ok(Response::new(tokio_stream::iter(script)))
    }
}

impl FakeNode {
    async fn speaks(&self) {
        self.mute.subscribe().wait_for(|mute| !mute).await.expect("the node holds the sender");
    }

    /// Takes packages unless the test queued a refusal. An unknown outcome takes them all the same.
    fn take(&self, packages: Vec<NewPackage>) -> Result<Vec<SubmitResult>, Status> {
        self.submits.fetch_add(1, Ordering::Relaxed);
        let refusal = self.refusals.lock().pop();
        if let Some(refusal) = refusal {
            if Error::from_status(&refusal).is_unknown() {
                self.ids.lock().extend(packages.into_iter().map(|package| package.id));
            }
            return Err(refusal);
        }
        let mut ids = self.ids.lock();
        let results = packages.into_iter().map(|package| {
            let duplicate = ids.contains(&package.id);
            if !duplicate {
                ids.push(package.id.clone());
            }
            SubmitResult { queue: package.queue, id: package.id, duplicate, error: None }
        });
        Ok(results.collect())
    }
}

struct Fake {
    node: FakeNode,
    streams: mpsc::Receiver<WorkerStream>,
    addr: String,
}

impl Fake {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
        let addr = listener.local_addr().expect("it is bound").to_string();
        let (sender, streams) = mpsc::channel(16);
        let node = FakeNode {
            streams: sender,
            refusals: Default::default(),
            submits: Default::default(),
            ids: Default::default(),
            leader: Default::default(),
            watches: Default::default(),
            starts: Default::default(),
            mute: Default::default(),
            asked: Default::default(),
        };
        let router = Server::builder()
            .add_service(WorkerServiceServer::new(node.clone()))
            .add_service(PackageServiceServer::new(node.clone()))
            .add_service(ClusterServiceServer::new(node.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { node, streams, addr }
    }

    fn client(&self) -> Client {
        Client::builder(&self.addr).timeout(SOON).build().expect("the address is good")
    }

    async fn stream(&mut self) -> WorkerStream {
        tokio::time::timeout(SOON, self.streams.recv()).await.expect("the worker attaches").expect("the node lives")
    }
}

/// An address where nobody listens.
async fn dead_addr() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
    listener.local_addr().expect("it is bound").to_string()
}

#[tokio::test]
async fn a_worker_reattaches_with_all_it_holds_and_settles_once_more() {
    let mut fake = Fake::start().await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let handler_gate = gate.clone();
    let worker = fake.client().worker(["jobs"]).concurrency(2).build();
    let run = tokio::spawn(worker.run(move |delivery: worker::Delivery| {
        let gate = handler_gate.clone();
        async move {
            // The first ends at once, the others when the test lets them.
            if delivery.fence != 10 {
                gate.acquire().await.expect("the gate stays").forget();
            }
            Ok::<_, Failure>(delivery.id.clone())
        }
    }));

    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    assert!(hello.held.is_empty());
    stream.welcome(&hello, &[]).await;
    stream.deliver(&[10, 11, 12, 13]).await;
    assert_eq!(stream.done().await, [10]);
    // The answer is lost with the stream.
    stream.cut().await;

    let mut stream = fake.stream().await;
    let again = stream.hello().await;
    assert_eq!(again.session, hello.session);
    let held: Vec<u64> = again.held.iter().map(|held| held.fence).collect();
    assert_eq!(held, [10, 11, 12, 13], "done, running and unstarted are all held");
    use verdict::Kind::{Gone, Keep};
    stream.welcome(&again, &[Keep, Keep, Keep, Gone]).await;
    // What the cluster thinks did not arrive comes again, with the same fence.
    stream.deliver(&[11]).await;
    assert_eq!(stream.done().await, [10], "the unanswered completion is sent again");
    stream.settled(&[10]).await;
    gate.add_permits(2);
    let mut finished = stream.done().await;
    if finished.len() == 1 {
        finished.extend(stream.done().await);
    }
    finished.sort();
    assert_eq!(finished, [11, 12]);
    stream.settled(&[11, 12]).await;
    stream.tell(Tell::EndOfWork(EndOfWork { queue: "jobs".into() })).await;
    assert!(matches!(stream.next().await, (13, Ask::Drain(_))));
    drop(stream);
    let summary = run.await.expect("no panic").expect("the worker ends well");
    assert_eq!(
        summary,
        worker::Summary { delivered: 4, completed: 3, lost: 1, reattached: 1, end_of_work: true, ..Default::default() }
    );
}

#[tokio::test]
async fn a_worker_moves_on_from_a_dead_node_and_follows_goaway() {
    let (mut first, mut leader) = (Fake::start().await, Fake::start().await);
    let addrs = format!("{},{}", dead_addr().await, first.addr);
    let client = Client::new(&addrs).expect("the addresses are good");
    let run = tokio::spawn(client.worker(["jobs"]).run(|_| async { Ok::<_, Failure>(()) }));
    let mut stream = first.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    let goaway = Goaway { leader: leader.addr.clone(), reason: "another leads".into() };
    stream.tell(Tell::Goaway(goaway)).await;
    let mut stream = leader.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    stream.tell(Tell::EndOfWork(EndOfWork { queue: "default/jobs".into() })).await;
    assert!(matches!(stream.next().await.1, Ask::Drain(_)));
    drop(stream);
    assert!(run.await.expect("no panic").expect("it ends well").end_of_work);
}

#[tokio::test]
async fn a_worker_goes_on_at_the_leader_but_stays_if_that_cannot_be_reached() {
    let (mut follower, mut leader) = (Fake::start().await, Fake::start().await);
    *follower.node.leader.lock() = Some(leader.addr.clone());
    let run = tokio::spawn(follower.client().worker(["jobs"]).run(|_| async { Ok::<_, Failure>(()) }));
    let mut stream = follower.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    let mut stream = leader.stream().await;
    assert_eq!(stream.hello().await.session, hello.session);
    stream.welcome(&hello, &[]).await;

    // From now on the follower names a leader behind a wall.
    *follower.node.leader.lock() = Some(dead_addr().await);
    stream.tell(Tell::Goaway(Goaway { leader: String::new(), reason: "leadership ended".into() })).await;
    let mut stream = follower.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    let mut stream = follower.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    stream.tell(Tell::EndOfWork(EndOfWork { queue: "jobs".into() })).await;
    assert!(matches!(stream.next().await.1, Ask::Drain(_)), "it stays on the follower's stream");
    drop(stream);
    assert!(run.await.expect("no panic").expect("it ends well").end_of_work);
}

#[tokio::test]
async fn a_drained_worker_gives_back_what_it_did_not_start() {
    let mut fake = Fake::start().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let handler_gate = gate.clone();
    let (started, mut starts) = mpsc::channel(1);
    let worker = fake.client().worker(["jobs"]).drain_on(async move { drop(stopped.await) }).build();
    let run = tokio::spawn(worker.run(move |_| {
        let (gate, started) = (handler_gate.clone(), started.clone());
        async move {
            started.send(()).await.expect("the test waits for it");
            gate.acquire().await.expect("the gate stays").forget();
            Err::<(), _>(Failure::permanent("no good"))
        }
    }));
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    stream.deliver(&[1, 2, 3]).await;
    starts.recv().await.expect("the first is started");
    stop.send(()).expect("the worker listens");
    let (received, release) = stream.next().await;
    let Ask::Release(release) = release else { panic!("expected a Release, got {release:?}") };
    assert_eq!(release.held.iter().map(|held| held.fence).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(received, 3);
    assert!(matches!(stream.next().await.1, Ask::Drain(_)));
    stream.settled(&[2, 3]).await;
    gate.add_permits(1);
    let Ask::Fail(fail) = stream.next().await.1 else { panic!("expected a Fail") };
    assert!(fail.failed[0].permanent);
    stream.settled(&[1]).await;
    drop(stream);
    let summary = run.await.expect("no panic").expect("it ends well");
    assert_eq!(summary, worker::Summary { delivered: 3, failed: 1, released: 2, ..Default::default() });
}

#[tokio::test]
async fn a_session_that_was_closed_settles_what_is_left_and_ends() {
    let mut fake = Fake::start().await;
    let worker = fake.client().worker(["jobs"]).build();
    let run = tokio::spawn(worker.run(|_| async { Ok::<_, Failure>(()) }));
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    stream.deliver(&[1]).await;
    assert_eq!(stream.done().await, [1]);
    // An operator drained it; the end of the stream overtakes the outcome.
    drop(stream);
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    assert_eq!(hello.held.len(), 1);
    stream.welcome(&hello, &[verdict::Kind::Settled]).await;
    assert!(matches!(stream.next().await.1, Ask::Drain(_)));
    drop(stream);
    let summary = run.await.expect("no panic").expect("it ends well");
    assert_eq!(summary, worker::Summary { delivered: 1, completed: 1, reattached: 1, ..Default::default() });
}

#[tokio::test]
async fn a_revoked_handler_is_cancelled_and_a_panic_is_a_failure() {
    let mut fake = Fake::start().await;
    let worker = fake.client().worker(["jobs"]).build();
    let run = tokio::spawn(worker.run(|delivery: worker::Delivery| async move {
        if delivery.fence == 1 {
            delivery.cancelled().cancelled().await;
            return Ok(());
        }
        if delivery.fence == 2 {
            panic!("on purpose");
        }
        Err(Failure::new("no"))
    }));
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    stream.deliver(&[1, 2]).await;
    let held = vec![Held { queue: "jobs".into(), id: "p1".into(), fence: 1 }];
    stream.tell(Tell::Revoke(Revoke { held, reason: "cancelled".into() })).await;
    let Ask::Fail(fail) = stream.next().await.1 else { panic!("expected a Fail") };
    assert_eq!((fail.failed[0].fence, fail.failed[0].code.as_str()), (2, "PANIC"));
    stream.settled(&[2]).await;
    stream.tell(Tell::EndOfWork(EndOfWork { queue: "jobs".into() })).await;
    assert!(matches!(stream.next().await.1, Ask::Drain(_) | Ask::SetCredit(_)));
    drop(stream);
    // The stream broke before its goodbye was seen or after: either way nothing is held.
    let summary = tokio::time::timeout(SOON, run).await.expect("it ends").expect("no panic").expect("it ends well");
    assert_eq!((summary.lost, summary.failed), (1, 1));
}

#[tokio::test]
async fn a_worker_that_nobody_will_ever_take_says_so() {
    let client = Client::new(&dead_addr().await).expect("the address is good");
    let worker = client.worker(["jobs"]).attach_timeout(Duration::from_millis(50));
    let error = worker.run(|_| async { Ok::<_, Failure>(()) }).await.expect_err("nobody listens");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(!error.is_unknown());
}

#[tokio::test]
async fn an_unknown_submit_is_repeated_with_the_same_id() {
    let fake = Fake::start().await;
    *fake.node.refusals.lock() =
        vec![refusal(Code::Unavailable, "OUTCOME_UNKNOWN"), refusal(Code::Unavailable, "NO_LEADER")];
    let taken = fake.client().submit(NewPackage::new("jobs", "x")).await.expect("the third try lands");
    assert!(taken.duplicate, "the second try was carried out");
    assert_eq!(*fake.node.ids.lock(), [taken.id], "one package");
    assert_eq!(fake.node.submits.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_call_that_is_not_safe_to_repeat_stays_unknown() {
    let fake = Fake::start().await;
    *fake.node.refusals.lock() =
        vec![refusal(Code::Unavailable, "OUTCOME_UNKNOWN"), refusal(Code::Unavailable, "NO_LEADER")];
    let error = fake.client().retry_package("jobs", "x", None).await.expect_err("refused");
    assert_eq!(error.reason(), "OUTCOME_UNKNOWN", "only the certain refusal was tried again");
    assert!(error.is_unknown());
}

#[tokio::test]
async fn a_refusal_after_an_unknown_try_stays_unknown() {
    let fake = Fake::start().await;
    *fake.node.refusals.lock() =
        vec![refusal(Code::FailedPrecondition, "QUEUE_SEALED"), refusal(Code::Unavailable, "OUTCOME_UNKNOWN")];
    let error = fake.client().submit(NewPackage::new("jobs", "x")).await.expect_err("refused");
    assert_eq!(error.reason(), "QUEUE_SEALED");
    assert!(error.is_unknown());
}

#[tokio::test]
async fn nobody_home_is_certain() {
    let client = Client::builder(&dead_addr().await).timeout(Duration::from_millis(100)).build().expect("good");
    let error = client.submit(NewPackage::new("jobs", "x")).await.expect_err("nobody listens");
    assert!(error.is_unavailable() && !error.is_unknown(), "{error}");
}

#[tokio::test]
async fn a_broken_submit_stream_makes_each_package_once() {
    let fake = Fake::start().await;
    *fake.node.refusals.lock() = vec![refusal(Code::Unavailable, "OUTCOME_UNKNOWN")];
    let submitter = fake.client().submitter().window(100).build();
    let mut tickets = Vec::new();
    for at in 0..500 {
        let package = NewPackage::new("jobs", "x").with_id(format!("p{at}"));
        tickets.push(submitter.submit(package).await.expect("the window opens again"));
    }
    submitter.flush().await;
    let results: Vec<Submitted> =
        futures::future::join_all(tickets).await.into_iter().map(|result| result.expect("taken")).collect();
    assert!(results.iter().any(|result| result.duplicate), "the first try was carried out");
    let mut ids = fake.node.ids.lock().clone();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 500);
    assert_eq!(fake.node.ids.lock().len(), 500);
}

fn told(revision: u64) -> Result<WatchResponse, Status> {
    let event = Event { revision, ..Default::default() };
    Ok(WatchResponse { update: Some(watch_response::Update::Event(event)), revision })
}

fn bookmark(revision: u64) -> Result<WatchResponse, Status> {
    let update = Some(watch_response::Update::Bookmark(Bookmark { revision }));
    Ok(WatchResponse { update, revision })
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_and_asks_everybody_before_it_gives_up() {
    let (first, second) = (Fake::start().await, Fake::start().await);
    let broken = || Err(Status::unavailable("the node is gone"));
    let mut scripts = vec![
        vec![bookmark(6), told(8), broken()],
        // A node that begins too early is not believed.
        vec![bookmark(6), told(8), told(9), bookmark(20), broken()],
        // It ends without a word.
        vec![told(30)],
        vec![told(31), Err(refusal(Code::ResourceExhausted, "READER_TOO_SLOW"))],
    ];
    scripts.reverse();
    *first.node.watches.lock() = scripts;
    let mut watch = first.client().watch("jobs");
    let mut heard = Vec::new();
    for _ in 0..4 {
        heard.push(watch.next().await.expect("it goes on").revision);
    }
    assert_eq!(heard, [8, 9, 30, 31]);
    let error = watch.next().await.expect_err("the only node knows no more");
    assert_eq!(error.reason(), "REVISION_COMPACTED");
    assert_eq!(*first.node.starts.lock(), [0, 9, 21, 31, 32]);

    *second.node.watches.lock() = vec![vec![bookmark(31), told(40)]];
    let both = Client::builder(&format!("{},{}", first.addr, second.addr)).timeout(SOON).build().unwrap();
    let mut watch = both.watch("jobs").from_revision(32);
    assert_eq!(watch.next().await.expect("the other node knows").revision, 40);
    assert_eq!(*second.node.starts.lock(), [32]);
    let error = watch.next().await.expect_err("nobody knows any more");
    assert_eq!((error.reason(), watch.resume_revision()), ("REVISION_COMPACTED", 41));
}
