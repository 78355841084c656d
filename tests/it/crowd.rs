//! Many packages wait: what one costs then, how soon it is delivered, how soon a node is back.
//!
//! `WHARF_WAITING=1000000 cargo test --release --test it crowd -- --nocapture` holds the whole crowd to its bars.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wharf::client::worker::Summary;
use wharf::client::{Error, Failure, NewPackage, QueueSettings};
use wharf::testkit::wait;

use super::harness::{OPTIMIZED, QUEUE, SOON, Scene};

/// What one package may cost, and how long it may take, behind the crowd: times what it does alone.
const BAR: f64 = 1.2;
/// A node is ready so soon after its start, and needs no more memory.
const READY: Duration = Duration::from_secs(5);
const MEMORY_BYTES: u64 = 700_000_000;
/// The crowd for which these bars stand.
const CROWD: u64 = 1_000_000;

const PAYLOAD_BYTES: usize = 256;
/// What the measured workers take, and what waits before it.
const RARE: &str = "rare";
const COMMON: &str = "common";
/// Packages of a measured round; some rounds count together, in turns with those of a cluster where nothing waits, for how
/// many packages share an entry varies, and so does what else the machine does.
const ROUND: u64 = 20_000;
const ROUNDS: usize = if OPTIMIZED { 9 } else { 1 };
/// Packages that are timed one by one, in turns as well.
const TIMED: usize = 100;
const TIMED_ROUNDS: usize = 3;

/// How many packages wait.
fn waiting() -> u64 {
    std::env::var("WHARF_WAITING").ok().and_then(|waiting| waiting.parse().ok()).unwrap_or(CROWD / 20)
}

#[derive(Debug, Default)]
struct Cost {
    submit: Duration,
    complete: Duration,
    /// From submit to delivery, the median.
    delivery: Duration,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_waits_costs_the_others_nothing() {
    let empty = Scene::new().await;
    let mut scene = empty.another().await;
    for scene in [&empty, &scene] {
        // With what a queue keeps of finished packages by default.
        scene.client.create_queue(QUEUE, QueueSettings::default()).await.expect("the queue is made");
        // Whatever is measured below also lets go of finished packages: first there must be some.
        round(scene).await;
    }
    let crowd = waiting();
    let begin = Instant::now();
    submit(&scene, COMMON, crowd).await;
    println!("{crowd} packages submitted in {:?}", begin.elapsed());
    // Their log is long: what it brings about is not part of what follows.
    for node in scene.cluster.ids() {
        scene.client.take_snapshot(scene.cluster.addr(node).unwrap()).await.expect("a snapshot is written");
    }
    let waiting = memory(&scene);
    let [alone, behind] = costs([&empty, &scene]).await;
    drop(empty);
    println!("alone: {alone:?}\nbehind {crowd}: {behind:?}");

    let follower = scene.cluster.follower().await.unwrap();
    scene.cluster.kill(follower).await.unwrap();
    let begin = Instant::now();
    scene.cluster.restart(follower).await.unwrap();
    let ready = begin.elapsed();
    println!("node {follower} is back after {ready:?}");
    scene.cluster.check_agreement().await.expect("the nodes agree");

    for (what, alone, behind) in [
        ("submit", alone.submit, behind.submit),
        ("complete", alone.complete, behind.complete),
        ("delivery", alone.delivery, behind.delivery),
    ] {
        let ratio = behind.as_secs_f64() / alone.as_secs_f64();
        println!("{what}: {ratio:.2}x");
        assert!(!OPTIMIZED || ratio <= BAR, "{what}: {ratio:.2}x, the bar is {BAR}x");
    }
    assert!(ready <= READY, "{ready:?}");
    assert!(crowd > CROWD || waiting.iter().all(|bytes| *bytes <= MEMORY_BYTES), "{waiting:?}");
}

fn memory(scene: &Scene) -> Vec<u64> {
    let nodes = scene.cluster.ids().into_iter();
    let memory = nodes.map(|node| scene.cluster.usage(node).expect("every node runs").memory_bytes).collect();
    println!("memory of the nodes: {memory:?} bytes");
    memory
}

/// What packages of the rare kind cost in each: CPU of all nodes for the rounds together, and time.
async fn costs(scenes: [&Scene; 2]) -> [Cost; 2] {
    let mut costs = [Cost::default(), Cost::default()];
    for _ in 0..ROUNDS {
        for (scene, cost) in scenes.iter().zip(&mut costs) {
            let (submit, complete) = round(scene).await;
            cost.submit += submit;
            cost.complete += complete;
        }
    }
    let mut delivered = [Vec::new(), Vec::new()];
    for _ in 0..TIMED_ROUNDS {
        for (scene, delivered) in scenes.iter().zip(&mut delivered) {
            delivered.extend(deliveries(scene).await);
        }
    }
    for (cost, delivered) in costs.iter_mut().zip(delivered) {
        cost.delivery = median(delivered);
    }
    costs
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// CPU of all nodes for the submits of a round, and for the completions.
async fn round(scene: &Scene) -> (Duration, Duration) {
    let cpu = || -> Duration {
        let ids = scene.cluster.ids().into_iter();
        ids.map(|node| scene.cluster.usage(node).expect("every node runs").cpu).sum()
    };
    let begin = cpu();
    submit(scene, RARE, ROUND).await;
    let submitted = cpu();
    let worker = Rare::start(scene);
    worker.wait_done(scene, ROUND).await;
    worker.stop().await;
    (submitted - begin, cpu() - submitted)
}

async fn submit(scene: &Scene, kind: &str, count: u64) {
    let submitter = scene.client.submitter().timeout(Duration::from_secs(120)).build();
    let mut last = None;
    for _ in 0..count {
        let package = NewPackage::new(QUEUE, vec![b'x'; PAYLOAD_BYTES]).with_kind(kind);
        last = Some(submitter.submit(package).await.expect("the submitter takes it"));
    }
    submitter.flush().await;
    if let Some(last) = last {
        last.await.expect("the last one is taken");
    }
}

/// The times from submit to delivery of packages that come one by one.
async fn deliveries(scene: &Scene) -> Vec<Duration> {
    let mut worker = Rare::start(scene);
    let mut times = Vec::new();
    for _ in 0..TIMED {
        let begin = Instant::now();
        submit(scene, RARE, 1).await;
        let delivered = tokio::time::timeout(SOON, worker.delivered.recv()).await;
        times.push(delivered.expect("it is delivered soon").expect("the worker runs") - begin);
    }
    worker.stop().await;
    times
}

/// A worker that takes the rare kind and does nothing with it.
struct Rare {
    completed: Arc<AtomicU64>,
    delivered: mpsc::Receiver<Instant>,
    stop: CancellationToken,
    task: JoinHandle<Result<Summary, Error>>,
}

impl Rare {
    fn start(scene: &Scene) -> Self {
        let stop = CancellationToken::new();
        let completed = Arc::new(AtomicU64::new(0));
        let (tell, delivered) = mpsc::channel(1024);
        let worker = scene.cluster.client().expect("the cluster has addresses").worker([QUEUE]);
        let worker = worker.kind(RARE).concurrency(256).max_in_flight(1_000).drain_on(stop.clone().cancelled_owned());
        let count = completed.clone();
        let task = tokio::spawn(worker.run(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            // Whoever counts does not listen.
            let _ = tell.try_send(Instant::now());
            async { Ok::<_, Failure>(Vec::new()) }
        }));
        Self { completed, delivered, stop, task }
    }

    async fn wait_done(&self, scene: &Scene, count: u64) {
        let handled = || async { (self.completed.load(Ordering::Relaxed) >= count).then_some(()) };
        wait::until("the last delivery", 4 * SOON, handled).await.unwrap();
        let settled = || async {
            let queue = scene.client.get_queue(QUEUE).await.expect("the queue is there");
            (queue.stats.unwrap_or_default().leased == 0).then_some(())
        };
        wait::until("the last completion", SOON, settled).await.unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the worker does not panic").expect("it ends in good order");
    }
}
