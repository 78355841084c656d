//! The API over real gRPC, on nodes within this process: logs in memory, sockets on loopback.

mod across;
mod bounds;
mod calls;
mod lists;
mod past;
mod refusals;
mod streams;
mod watching;
mod work;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Status, Streaming};

use super::{Api, Mode, server};
use crate::dispatch;
use crate::env::Env;
use crate::proto::v1;
use crate::proto::v1::cluster_service_client::ClusterServiceClient;
use crate::proto::v1::package_service_client::PackageServiceClient;
use crate::proto::v1::queue_service_client::QueueServiceClient;
use crate::proto::v1::work_request::Request as Ask;
use crate::proto::v1::work_response::Response as Tell;
use crate::proto::v1::worker_service_client::WorkerServiceClient;
use crate::raft;
use crate::raft::bootstrap::BootstrapNode;
use crate::raft::handle::Feed;
use crate::raft::snapshots::Blocking;
use crate::raft::types::Member;
use crate::storage::disk::SimDisk;
use crate::storage::home::Home;
use crate::storage::wal;

/// Nothing here takes longer unless it is broken.
const WAIT: Duration = Duration::from_secs(20);

/// A data directory on a disk in memory.
fn home(disk: &SimDisk, node: u64) -> Home {
    let options = wal::Options { flusher: wal::Flusher::Thread, ..wal::Options::default() };
    Home::open(Arc::new(disk.clone()), Path::new("/data"), node, 100 + node, options).expect("a new disk")
}

/// A node, and clients that talk to it.
struct Node {
    disk: SimDisk,
    api: Api,
    raft: raft::Handle,
    dispatch: dispatch::Handle,
    history: crate::history::Handle,
    addr: String,
    channel: Channel,
    packages: PackageServiceClient<Channel>,
    queues: QueueServiceClient<Channel>,
    cluster: ClusterServiceClient<Channel>,
    /// While true, effects are lost between the state and dispatch.
    lossy: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.disk.hang(false);
        self.stop.cancel();
    }
}

/// `running` of `size` nodes that form a cluster.
async fn nodes(size: usize, running: usize) -> Vec<Node> {
    let mut listeners = Vec::new();
    for _ in 0..size {
        #[allow(clippy::disallowed_methods, reason = "the ports must be known before the nodes start")]
        let bind = || TcpListener::bind("127.0.0.1:0");
        listeners.push((bind().await.unwrap(), bind().await.unwrap()));
    }
    let addr = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let list: Vec<_> = listeners
        .iter()
        .enumerate()
        .map(|(at, (client, peer))| BootstrapNode {
            node: at as u64 + 1,
            peer_addr: addr(peer),
            client_addr: addr(client),
            admin_addr: String::new(),
        })
        .collect();
    let mut nodes = Vec::new();
    for (at, (client, peer)) in listeners.into_iter().enumerate().take(running) {
        nodes.push(start(&list, at, client, peer).await);
    }
    nodes
}

async fn start(list: &[BootstrapNode], at: usize, client: TcpListener, peer: TcpListener) -> Node {
    let this = &list[at];
    let env = Env::real();
    let disk = SimDisk::new();
    let started = raft::start(raft::Options {
        node: this.node,
        member: Member {
            peer_addr: this.peer_addr.clone(),
            client_addr: this.client_addr.clone(),
            admin_addr: String::new(),
            incarnation: 0,
        },
        bootstrap: list.to_vec(),
        machine_version: 1,
        env: env.clone(),
        home: home(&disk, this.node),
        blocking: Blocking::Threads,
        skip_entry: None,
        tuning: Default::default(),
    })
    .await
    .expect("raft starts");
    let stop = CancellationToken::new();
    let (dispatch, pump) = dispatch::new(started.handle.clone(), &env);
    let keep = crate::history::Keep { age_ms: u64::MAX / 2, bytes: u64::MAX };
    let history =
        crate::history::Handle::start(&started.handle, crate::history::Home::Memory, keep, &env, stop.clone());
    let api = Api::new(started.handle.clone(), dispatch.clone(), history.clone(), env);
    let effects = started.handle.take_effects().expect("nobody took them");
    let (lossy, losing) = watch::channel(false);
    tokio::spawn(pump.run_on(lose(effects, losing), stop.clone()));
    let background = (api.clone(), stop.clone());
    tokio::spawn(async move { background.0.run(background.1).await });
    let addr = this.client_addr.clone();
    let peers = raft::peer_server::configure(Server::builder())
        .add_routes(api.routes(Mode::Peer).add_service(started.peer))
        .serve_with_incoming_shutdown(incoming(peer), stop.clone().cancelled_owned());
    let clients = server()
        .add_routes(api.routes(Mode::Client))
        .serve_with_incoming_shutdown(incoming(client), stop.clone().cancelled_owned());
    tokio::spawn(peers);
    tokio::spawn(clients);
    let channel = Channel::from_shared(format!("http://{addr}")).unwrap().connect_lazy();
    Node {
        disk,
        api,
        raft: started.handle,
        dispatch,
        history,
        addr,
        packages: PackageServiceClient::new(channel.clone()),
        queues: QueueServiceClient::new(channel.clone()),
        cluster: ClusterServiceClient::new(channel.clone()),
        channel,
        lossy,
        stop,
    }
}

/// Passes effects on, or loses them for a while and then says so.
fn lose(mut effects: mpsc::Receiver<Feed>, mut losing: watch::Receiver<bool>) -> mpsc::Receiver<Feed> {
    let (onward, feed) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                biased;
                Ok(()) = losing.changed() => (!*losing.borrow_and_update()).then_some(Feed::Gap),
                Some(next) = effects.recv() => (!*losing.borrow()).then_some(next),
                else => return,
            };
            if let Some(next) = next
                && onward.send(next).await.is_err()
            {
                return;
            }
        }
    });
    feed
}

fn incoming(listener: TcpListener) -> impl futures::Stream<Item = io::Result<TcpStream>> {
    use futures::StreamExt;
    TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

/// One node that leads.
async fn single() -> Node {
    let node = nodes(1, 1).await.remove(0);
    leading(&node).await;
    node
}

async fn leading(node: &Node) {
    let mut standing = node.raft.standing();
    let leads = standing.wait_for(|standing| standing.leading.is_some());
    timeout(WAIT, leads).await.expect("a leader in time").expect("the node lives");
}

impl Node {
    async fn create(&mut self, name: &str, settings: v1::QueueSettings) -> Result<v1::Queue, Status> {
        let request = v1::CreateQueueRequest { name: name.into(), settings: Some(settings) };
        Ok(self.queues.create_queue(request).await?.into_inner().queue.expect("a queue"))
    }

    async fn submit(&mut self, packages: Vec<v1::NewPackage>) -> Result<Vec<v1::SubmitResult>, Status> {
        let request = v1::SubmitRequest { packages, atomic: false };
        Ok(self.packages.submit(request).await?.into_inner().results)
    }

    async fn get(&mut self, queue: &str, id: &str) -> Result<v1::Package, Status> {
        let request = v1::GetPackageRequest { queue: queue.into(), id: id.into(), ..Default::default() };
        Ok(self.packages.get_package(request).await?.into_inner().package.expect("a package"))
    }

    async fn worker(&self, hello: v1::Hello) -> Worker {
        let mut worker = Worker::silent(self.channel.clone()).await;
        worker.ask(Ask::Hello(hello)).await;
        worker
    }
}

fn package(queue: &str, id: &str) -> v1::NewPackage {
    let payload = Bytes::from_static(b"payload");
    v1::NewPackage { queue: queue.into(), id: id.into(), payload, ..Default::default() }
}

fn hello(session: &str, queue: &str) -> v1::Hello {
    v1::Hello {
        worker: format!("worker of {session}"),
        session: session.into(),
        queues: vec![queue.into()],
        ..Default::default()
    }
}

/// A worker's stream, by hand.
struct Worker {
    requests: mpsc::Sender<v1::WorkRequest>,
    answers: Streaming<v1::WorkResponse>,
    received: u64,
    passed: Vec<Tell>,
}

impl Worker {
    /// Has not said Hello.
    async fn silent(channel: Channel) -> Self {
        let (requests, outbound) = mpsc::channel(64);
        let mut client = WorkerServiceClient::new(channel);
        let answers = client.work(Request::new(ReceiverStream::new(outbound))).await.expect("a stream").into_inner();
        Self { requests, answers, received: 0, passed: Vec::new() }
    }

    async fn ask(&mut self, request: Ask) {
        let request = v1::WorkRequest { received_fence: self.received, request: Some(request) };
        // A server that has ended the stream tells why by its answers.
        let _ = self.requests.send(request).await;
    }

    async fn next(&mut self) -> Result<Option<Tell>, Status> {
        let answer = timeout(WAIT, self.answers.message()).await.expect("an answer in time")?;
        Ok(answer.and_then(|answer| answer.response))
    }

    /// The first answer that `wanted` takes. Settlements and deliveries overtake each other, so what
    /// is passed over is kept for those who ask later.
    async fn until<T>(&mut self, wanted: impl Fn(&Tell) -> Option<T>) -> T {
        if let Some((at, found)) = self.passed.iter().enumerate().find_map(|(at, told)| Some((at, wanted(told)?))) {
            self.passed.remove(at);
            return found;
        }
        loop {
            let told = self.next().await.expect("no refusal").expect("the stream goes on");
            match wanted(&told) {
                Some(found) => return found,
                None => self.passed.push(told),
            }
        }
    }

    async fn welcome(&mut self) -> v1::Welcome {
        self.until(|told| match told {
            Tell::Welcome(welcome) => Some(welcome.clone()),
            _ => None,
        })
        .await
    }

    async fn delivered(&mut self) -> Vec<v1::Delivery> {
        let deliveries = self
            .until(|told| match told {
                Tell::Deliver(deliver) => Some(deliver.deliveries.clone()),
                _ => None,
            })
            .await;
        self.received = deliveries.iter().map(|delivery| delivery.fence).max().unwrap_or(0).max(self.received);
        deliveries
    }

    async fn settled(&mut self) -> Vec<v1::Outcome> {
        self.until(|told| match told {
            Tell::Settled(settled) => Some(settled.outcomes.clone()),
            _ => None,
        })
        .await
    }

    /// The refusal that ends the stream.
    async fn refused(&mut self) -> Status {
        loop {
            match self.next().await {
                Err(status) => return status,
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a reason"),
            }
        }
    }

    async fn done(&mut self, queue: &str, id: &str, fence: u64) {
        let completion = v1::Completion {
            queue: queue.into(),
            id: id.into(),
            fence,
            result: Bytes::from_static(b"result"),
            ..Default::default()
        };
        self.ask(Ask::Done(v1::Done { completions: vec![completion] })).await;
    }
}

/// Looks until it is so.
async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + WAIT;
    while !look().await {
        assert!(Instant::now() < until, "not within {WAIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
