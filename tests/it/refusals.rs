//! Refusals over real gRPC: every limit that a client can hit, and every way to be wrong, with the
//! code and the reason that a program reads.

use std::collections::BTreeMap;
use std::fmt::Debug;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_types::{RpcStatusExt, StatusExt};
use wharf::client::{ClusterSettings, Error, NewPackage, QueueSettings};
use wharf::proto::v1;
use wharf::proto::v1::work_request::Request;
use wharf::proto::v1::work_response::Response;
use wharf::proto::v1::worker_service_client::WorkerServiceClient;
use wharf::testkit::cluster::Options;
use wharf::types::limits;

use super::harness::{QUEUE, SOON, Scene, binary};

/// One node refuses as well as three do.
async fn scene() -> Scene {
    let scene = Scene::with(Options { nodes: 1, ..Options::new(binary()) }).await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    scene
}

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn package(id: &str) -> NewPackage {
    NewPackage::new(QUEUE, "p").with_id(id)
}

/// It was refused so: code, reason, and certainly not applied.
#[track_caller]
fn refused<T: Debug>(result: Result<T, Error>, code: Code, reason: &str) -> Error {
    let error = result.expect_err(reason);
    assert_eq!((error.code(), error.reason()), (code, reason), "{error}");
    assert!(!error.is_unknown(), "a refusal is certain: {error}");
    assert!(!error.message().is_empty());
    error
}

/// The same, and it names the field.
#[track_caller]
fn refused_field<T: Debug>(result: Result<T, Error>, field: &str) {
    let error = refused(result, Code::InvalidArgument, "BAD_FIELD");
    let named = error.violations().iter().any(|(path, _)| path.contains(field));
    assert!(named, "`{field}` is not named: {:?}", error.violations());
}

/// The same, and it tells the limit, and when to try again.
#[track_caller]
fn exhausted<T: Debug>(result: Result<T, Error>, reason: &str) {
    let error = refused(result, Code::ResourceExhausted, reason);
    assert!(!error.metadata().is_empty(), "the limit is not told: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_have_bounds() {
    let scene = scene().await;
    let client = &scene.client;
    let submit = |package: NewPackage| client.submit(package);
    let label = |key: String, value: String| NewPackage { labels: BTreeMap::from([(key, value)]), ..package("l") };

    refused_field(submit(package(&long(limits::MAX_ID_BYTES + 1))).await, "id");
    submit(package(&long(limits::MAX_ID_BYTES))).await.expect("the bound itself is allowed");
    refused_field(submit(package("k").with_kind(long(limits::MAX_WORD_BYTES + 1))).await, "kind");
    refused_field(submit(package("c").with_content_type(long(limits::MAX_WORD_BYTES + 1))).await, "content_type");
    refused_field(submit(package("p").with_priority(limits::MAX_PRIORITY + 1)).await, "priority");
    refused_field(submit(package("a").with_max_attempts(0)).await, "max_attempts");
    refused_field(submit(label(long(limits::MAX_LABEL_KEY_BYTES + 1), String::new())).await, "labels");
    refused_field(submit(label("k".into(), long(limits::MAX_LABEL_VALUE_BYTES + 1))).await, "labels");
    let many = (0..=limits::MAX_LABELS).map(|n| (n.to_string(), String::new())).collect();
    refused_field(submit(NewPackage { labels: many, ..package("m") }).await, "labels");
    refused_field(submit(NewPackage { queue: "bad name".into(), ..package("q") }).await, "queue");
    let too_many = (0..=limits::MAX_PACKAGES_A_SUBMIT).map(|n| package(&n.to_string())).collect();
    refused_field(client.submit_atomic(too_many).await, "packages");

    let name = long(limits::MAX_NAME_BYTES + 1);
    refused_field(client.create_queue(&name, QueueSettings::default()).await, "name");
    let ceiling = Some(limits::MAX_PAYLOAD_CEILING_BYTES + 1);
    let settings = QueueSettings { max_payload: ceiling, ..Default::default() };
    refused_field(client.create_queue("large", settings).await, "max_payload");
    let settings = QueueSettings { max_result: ceiling, ..Default::default() };
    refused_field(client.create_queue("large", settings).await, "max_result");
    let settings = QueueSettings { default_priority: Some(limits::MAX_PRIORITY + 1), ..Default::default() };
    refused_field(client.create_queue("large", settings).await, "default_priority");

    // What means something in a later version is refused, never ignored.
    for package in [
        NewPackage { group_key: "g".into(), ..package("g") },
        NewPackage { reply_to: QUEUE.into(), ..package("r") },
        NewPackage { forward_to: QUEUE.into(), ..package("f") },
    ] {
        refused(submit(package).await, Code::InvalidArgument, "NOT_YET_SUPPORTED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_have_limits() {
    let scene = scene().await;
    let client = &scene.client;
    let settings = QueueSettings { max_packages: Some(2), max_payload: Some(10), ..Default::default() };
    client.create_queue("few", settings).await.unwrap();
    let to = |queue: &str, id: &str, bytes: usize| client.submit(NewPackage::new(queue, vec![0; bytes]).with_id(id));
    to("few", "1", 10).await.unwrap();
    to("few", "2", 10).await.unwrap();
    exhausted(to("few", "3", 10).await, "QUEUE_FULL");
    assert!(to("few", "2", 10).await.unwrap().duplicate, "a repeat is no new package");
    refused_field(to("few", "4", 11).await, "payload");

    let settings = QueueSettings { max_bytes: Some(300), ..Default::default() };
    client.create_queue("small", settings).await.unwrap();
    to("small", "1", 10).await.unwrap();
    exhausted(to("small", "2", 10).await, "QUEUE_FULL");

    for (batch, kinds) in (0..limits::MAX_KINDS_A_QUEUE).collect::<Vec<_>>().chunks(1000).enumerate() {
        let packages = kinds.iter().map(|kind| package(&format!("kind-{kind}")).with_kind(format!("kind-{kind}")));
        for result in client.submit_many(packages.collect()).await {
            result.unwrap_or_else(|error| panic!("batch {batch}: {error}"));
        }
    }
    exhausted(client.submit(package("more").with_kind("one-more")).await, "TOO_MANY_KINDS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_has_limits() {
    let scene = scene().await;
    let client = &scene.client;
    let set = |settings: ClusterSettings| client.set_cluster(settings);
    let default = set(ClusterSettings::default()).await.unwrap();

    set(ClusterSettings { max_queues: Some(1), ..Default::default() }).await.unwrap();
    exhausted(client.create_queue("second", QueueSettings::default()).await, "TOO_MANY_QUEUES");
    set(ClusterSettings { memory_budget_bytes: Some(100), ..Default::default() }).await.unwrap();
    let large = NewPackage::new(QUEUE, vec![0; 200]).with_id("large");
    exhausted(client.submit(large.clone()).await, "MEMORY_BUDGET");
    set(ClusterSettings { dedup_budget: Some(0), ..default }).await.unwrap();
    exhausted(client.submit(large.clone()).await, "DEDUP_BUDGET");
    set(default).await.unwrap();
    client.submit(large).await.expect("what was refused may be taken later");

    set(ClusterSettings { max_sessions: Some(1), ..Default::default() }).await.unwrap();
    let channel = channel(&scene);
    let _one = Stream::open(&channel, hello("one")).await.expect("the first session is taken");
    let (code, reason) = Stream::open(&channel, hello("two")).await.expect_err("one is the limit");
    assert_eq!((code, &*reason), (Code::ResourceExhausted, "TOO_MANY_SESSIONS"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_have_a_limit() {
    let scene = scene().await;
    let channel = channel(&scene);
    let subscribe = |n: usize| {
        let hello = v1::Hello { kinds: vec![format!("kind-{n}")], ..hello(&format!("session-{n}")) };
        Stream::open(&channel, hello)
    };
    let mut streams = Vec::new();
    for n in 0..limits::MAX_CLASSES {
        streams.push(subscribe(n).await.unwrap_or_else(|refusal| panic!("subscription {n}: {refusal:?}")));
    }
    let (code, reason) = subscribe(limits::MAX_CLASSES).await.expect_err("one too many");
    assert_eq!((code, &*reason), (Code::ResourceExhausted, "TOO_MANY_CLASSES"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_or_does_not_fit_is_named() {
    let scene = scene().await;
    let client = &scene.client;
    refused(client.submit(NewPackage::new("nowhere", "p")).await, Code::NotFound, "QUEUE_NOT_FOUND");
    refused(client.get_queue("nowhere").await, Code::NotFound, "QUEUE_NOT_FOUND");
    refused(client.get_package(QUEUE, "nobody").await, Code::NotFound, "PACKAGE_NOT_FOUND");
    refused(client.drain_worker("nobody").await, Code::NotFound, "SESSION_NOT_FOUND");

    client.submit(package("1")).await.unwrap();
    let other = NewPackage::new(QUEUE, "other").with_id("1");
    refused(client.submit(other.clone()).await, Code::AlreadyExists, "ID_CONFLICT");
    refused(client.submit_atomic(vec![package("2"), other]).await, Code::AlreadyExists, "ID_CONFLICT");
    refused(client.get_package(QUEUE, "2").await, Code::NotFound, "PACKAGE_NOT_FOUND");

    let stale = client.get_package(QUEUE, "1").await.unwrap().revision - 1;
    refused(client.cancel_package(QUEUE, "1", "", Some(stale)).await, Code::Aborted, "REVISION_MISMATCH");
    refused(client.retry_package(QUEUE, "1", None).await, Code::FailedPrecondition, "NOT_DEAD");
    client.cancel_package(QUEUE, "1", "", None).await.unwrap();
    client.cancel_package(QUEUE, "1", "", None).await.expect("the same again is the same");

    let settings = QueueSettings { max_attempts: Some(9), ..Default::default() };
    refused(client.create_queue(QUEUE, settings).await, Code::AlreadyExists, "QUEUE_EXISTS");
    let dead_letters = |queue: &str| QueueSettings { dead_letter_queue: queue.into(), ..Default::default() };
    client.create_queue("b", dead_letters(QUEUE)).await.unwrap();
    let ring = client.update_queue(QUEUE, dead_letters("b"), &["dead_letter_queue"], None).await;
    refused(ring, Code::FailedPrecondition, "DEAD_LETTER_CYCLE");
    refused(client.delete_queue(QUEUE, true).await, Code::FailedPrecondition, "QUEUE_REFERRED");
    client.submit(NewPackage::new("b", "p")).await.unwrap();
    refused(client.delete_queue("b", false).await, Code::FailedPrecondition, "QUEUE_NOT_EMPTY");
    refused(client.seal_queue("b", Some(1)).await, Code::Aborted, "REVISION_MISMATCH");
    client.seal_queue("b", None).await.unwrap();
    refused(client.submit(NewPackage::new("b", "p")).await, Code::FailedPrecondition, "QUEUE_SEALED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hellos_have_bounds() {
    let scene = scene().await;
    let channel = channel(&scene);
    let word = limits::MAX_WORD_BYTES + 1;
    let lanes = limits::MAX_LANES_A_CLASS + 1;
    for (field, hello) in [
        ("session", v1::Hello { session: String::new(), ..hello("s") }),
        ("session", hello(&long(word))),
        ("worker", v1::Hello { worker: long(word), ..hello("s") }),
        ("queues", v1::Hello { queues: vec![], ..hello("s") }),
        ("queues", v1::Hello { queues: (0..lanes).map(|n| format!("q{n}")).collect(), ..hello("s") }),
        ("kinds", v1::Hello { kinds: (0..lanes).map(|n| format!("k{n}")).collect(), ..hello("s") }),
        ("max_in_flight", v1::Hello { max_in_flight: limits::MAX_IN_FLIGHT_CEILING + 1, ..hello("s") }),
        ("concurrency", v1::Hello { concurrency: limits::MAX_IN_FLIGHT_CEILING + 1, ..hello("s") }),
    ] {
        let (code, reason) = Stream::open(&channel, hello).await.expect_err(field);
        assert_eq!((code, &*reason), (Code::InvalidArgument, "BAD_FIELD"), "{field}");
    }
    let nowhere = v1::Hello { queues: vec!["nowhere".into()], ..hello("s") };
    let (code, reason) = Stream::open(&channel, nowhere).await.expect_err("no such queue");
    assert_eq!((code, &*reason), (Code::NotFound, "QUEUE_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settlements_are_refused_one_by_one() {
    let scene = scene().await;
    let channel = channel(&scene);
    let settings = QueueSettings { max_result: Some(10), ..Default::default() };
    scene.client.update_queue(QUEUE, settings, &["max_result"], None).await.unwrap();
    scene.client.submit(package("1")).await.unwrap();
    scene.client.submit(package("2")).await.unwrap();
    let mut stream = Stream::open(&channel, hello("s")).await.unwrap();
    let deliveries = stream.deliveries(2).await;
    let fence =
        |id: &str| deliveries.iter().find(|delivery| delivery.package.as_ref().unwrap().id == id).unwrap().fence;
    let done = |id: &str, fence: u64, result: usize| v1::Completion {
        queue: QUEUE.into(),
        id: id.into(),
        fence,
        result: vec![b'r'; result].into(),
        ..Default::default()
    };

    let completions = vec![
        done("1", fence("1"), 11),
        done("1", fence("1") + 1_000_000, 1),
        done("nobody", 5, 1),
        done("2", fence("2"), 10),
        done("2", fence("2"), 10),
        v1::Completion { children: vec![package("child")], ..done("1", fence("1"), 1) },
    ];
    let count = completions.len();
    stream.send(Request::Done(v1::Done { completions })).await;
    let mut outcomes = stream.outcomes(count).await;
    outcomes.sort();
    let expected = [
        ("1", Code::FailedPrecondition, "LEASE_LOST"),
        ("1", Code::InvalidArgument, "BAD_FIELD"),
        ("1", Code::InvalidArgument, "NOT_YET_SUPPORTED"),
        ("2", Code::Ok, ""),
        ("2", Code::Ok, ""),
        ("nobody", Code::NotFound, "PACKAGE_NOT_FOUND"),
    ];
    let mut expected: Vec<_> =
        expected.into_iter().map(|(id, code, reason)| (id.to_owned(), code as i32, reason.to_owned())).collect();
    expected.sort();
    assert_eq!(outcomes, expected);

    // The lease of the one that was refused stands.
    let checkpoint = vec![0; limits::MAX_CHECKPOINT_BYTES + 1].into();
    let extension = v1::Extension { queue: QUEUE.into(), id: "1".into(), fence: fence("1"), checkpoint, by: None };
    stream.send(Request::Extend(v1::Extend { extensions: vec![extension] })).await;
    assert_eq!(stream.outcomes(1).await[0].2, "BAD_FIELD");
    stream.send(Request::Done(v1::Done { completions: vec![done("1", fence("1"), 1)] })).await;
    assert_eq!(stream.outcomes(1).await[0].1, Code::Ok as i32);

    let cancelled = scene.client.cancel_package(QUEUE, "1", "", None).await;
    refused(cancelled, Code::FailedPrecondition, "ALREADY_FINISHED");

    let completions = (0..=limits::MAX_SETTLEMENTS_A_MESSAGE).map(|n| done(&n.to_string(), 1, 0)).collect();
    stream.send(Request::Done(v1::Done { completions })).await;
    assert_eq!(stream.end().await, (Code::InvalidArgument, "BAD_FIELD".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_stream_takes_the_session_over() {
    let scene = scene().await;
    let channel = channel(&scene);
    let mut old = Stream::open(&channel, hello("s")).await.unwrap();
    let _new = Stream::open(&channel, hello("s")).await.unwrap();
    let (code, reason) = old.end().await;
    assert!(matches!(code, Code::FailedPrecondition | Code::Ok), "the old stream ends: {code:?} {reason}");
    assert_eq!(scene.client.list_workers(QUEUE).await.unwrap().len(), 1);
}

/// A connection to the one node.
fn channel(scene: &Scene) -> Channel {
    let uri = format!("http://{}", scene.cluster.addrs());
    Channel::from_shared(uri).expect("an address makes a URI").connect_lazy()
}

fn hello(session: &str) -> v1::Hello {
    v1::Hello { worker: "raw".into(), session: session.into(), queues: vec![QUEUE.into()], ..Default::default() }
}

/// A worker's stream as it is on the wire.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<v1::WorkRequest>,
    responses: Streaming<v1::WorkResponse>,
}

impl Stream {
    /// Says Hello. Err: refused, with code and reason.
    async fn open(channel: &Channel, hello: v1::Hello) -> Result<Self, (Code, String)> {
        let (requests, receiver) = mpsc::channel(16);
        let first = v1::WorkRequest { received_fence: 0, request: Some(Request::Hello(hello)) };
        requests.send(first).await.expect("the channel is open");
        let mut service = WorkerServiceClient::new(channel.clone());
        let responses = service.work(ReceiverStream::new(receiver)).await.map_err(|status| told(&status))?;
        let mut stream = Self { requests, responses: responses.into_inner() };
        match stream.next().await? {
            Response::Welcome(_) => Ok(stream),
            other => panic!("a stream begins with a Welcome, not {other:?}"),
        }
    }

    async fn send(&self, request: Request) {
        let request = v1::WorkRequest { received_fence: 0, request: Some(request) };
        self.requests.send(request).await.expect("the stream is open");
    }

    async fn next(&mut self) -> Result<Response, (Code, String)> {
        let next = tokio::time::timeout(SOON, self.responses.message()).await.expect("an answer comes soon");
        match next {
            Ok(Some(response)) => Ok(response.response.expect("every response says something")),
            Ok(None) => Err((Code::Ok, String::new())),
            Err(status) => Err(told(&status)),
        }
    }

    async fn deliveries(&mut self, count: usize) -> Vec<v1::Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < count {
            if let Response::Deliver(deliver) = self.next().await.expect("the stream goes on") {
                deliveries.extend(deliver.deliveries);
            }
        }
        deliveries
    }

    /// Id, code and reason of each.
    async fn outcomes(&mut self, count: usize) -> Vec<(String, i32, String)> {
        let mut outcomes = Vec::new();
        while outcomes.len() < count {
            if let Response::Settled(settled) = self.next().await.expect("the stream goes on") {
                outcomes.extend(settled.outcomes.into_iter().map(|outcome| {
                    let status = outcome.status.unwrap_or_default();
                    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
                    (outcome.id, status.code, reason)
                }));
            }
        }
        outcomes
    }

    /// Reads until the stream ends.
    async fn end(&mut self) -> (Code, String) {
        loop {
            if let Err(end) = self.next().await {
                return end;
            }
        }
    }
}

fn told(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}
