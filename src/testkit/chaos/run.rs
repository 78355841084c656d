//! One run, from the first process to the verdict.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::super::history::{Key, Recorder};
use super::super::sim::plan::Dice;
use super::super::wait;
use super::super::workload::{Handling, Producer, Production, WorkerSpec, read_all};
use super::faults::{Crew, Faults};
use super::ground::Ground;
use super::judge::{self, HISTORY, Outcome, Seen};
use super::plan::Plan;
use crate::cli::local;
use crate::client::{Client, QueueSettings};
use crate::config::Config;
use crate::env::Env;

const QUEUE: &str = "q";
/// A cluster is up within this.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Once all is healed, what is to come must come within this.
const LIVE_WITHIN: Duration = Duration::from_secs(60);
/// A node answers for its state within this.
const STATE_WITHIN: Duration = Duration::from_secs(15);
const TURN_EVERY: Duration = Duration::from_millis(20);
/// Between two reads of a package that may be there.
const READ_EVERY: Duration = Duration::from_millis(5);
/// Small, so that logs turn over and small disks hold them.
const LOG_SEGMENT: ByteSize = ByteSize::mib(8);
/// Of the packages, one in so many is submitted by a call of its own.
const CALLED: u32 = 5;

/// What is told as it goes.
pub trait Progress {
    /// Faults come; so far so many packages were confirmed, and these faults are there.
    fn suffering(&self, elapsed: Duration, confirmed: u64, there: &str);
    /// All is healed, or nearly: what is waited for.
    fn healing(&self, what: &str);
}

/// Carries a plan out on this ground, and judges it. All it leaves is in `dir`.
pub async fn run(plan: &Plan, ground: Ground, dir: &Path, progress: &dyn Progress) -> anyhow::Result<Outcome> {
    let mut run = Run::start(plan, ground, dir).await?;
    let suffered = run.suffer(progress).await;
    let seen = run.finish(suffered, progress).await?;
    judge::keep(dir, plan, &seen)?;
    judge::judge(dir)
}

struct Run {
    plan: Plan,
    faults: Faults,
    client: Client,
    recorder: Recorder,
    productions: Vec<Production>,
    seen: Seen,
}

impl Run {
    async fn start(plan: &Plan, ground: Ground, dir: &Path) -> anyhow::Result<Self> {
        let configure = |config: &mut Config| {
            config.limits.log_segment = LOG_SEGMENT;
            // Nobody else is on that network.
            config.insecure = true;
        };
        let nodes = local::Options {
            nodes: plan.nodes,
            dir: Some(dir.to_owned()),
            log_level: "info,openraft=warn".into(),
            configure: Arc::new(configure),
            hosts: ground.hosts(),
            ..local::Options::default()
        };
        let mut nodes = local::Cluster::start(nodes).await?;
        nodes.ready(READY_WITHIN).await?;
        let addrs = nodes.addrs();
        let client = Client::new(&addrs)?;
        // Everything is read again in the end.
        let keep = QueueSettings {
            keep_finished_count: Some(100_000_000),
            keep_finished_bytes: Some(1 << 40),
            ..QueueSettings::default()
        };
        client.create_queue(QUEUE, keep).await.context("creating the queue")?;
        let history: PathBuf = dir.join(HISTORY);
        let recorder = Recorder::open(&history, "chaos", &Env::real())?;
        let specs: Vec<WorkerSpec> = (1..=plan.workers).map(|worker| spec(worker, &addrs, &history)).collect();
        let seen = Seen {
            version: env!("CARGO_PKG_VERSION").into(),
            disk: ground.disk().into(),
            not_covered: ground.lacking().clone(),
            began_us: recorder.now_us(),
            ..Seen::default()
        };
        let mut crew = Crew {
            nodes: Arc::new(Mutex::new(nodes)),
            ground,
            workers: specs.iter().map(|_| None).collect(),
            specs,
            client: client.clone(),
            recorder: recorder.clone(),
            spare: plan.nodes + 1,
        };
        for worker in 1..=plan.workers {
            crew.start_worker(worker)?;
        }
        let called = (plan.rate / CALLED).max(1);
        let streams = Producer::new(QUEUE, plan.rate.saturating_sub(called).max(1));
        let calls = Producer { pipelined: false, mixed_priorities: true, ..Producer::new(QUEUE, called) };
        // Each has connections of its own.
        let productions = vec![
            streams.start(Client::new(&addrs)?, recorder.named("streaming")),
            calls.start(Client::new(&addrs)?, recorder.named("calling")),
        ];
        let faults = Faults::new(plan.clone(), crew);
        Ok(Self { plan: plan.clone(), faults, client, recorder, productions, seen })
    }

    /// Lets the faults come, as long as the plan says.
    async fn suffer(&mut self, progress: &dyn Progress) -> anyhow::Result<()> {
        let began = Instant::now();
        let reads = tokio::spawn(look(self.plan.clone(), self.client.clone(), self.recorder.named("reading")));
        while began.elapsed() < self.plan.suffer {
            self.faults.turn(began).await?;
            let confirmed = self.productions.iter().map(Production::confirmed).sum();
            progress.suffering(began.elapsed(), confirmed, &self.faults.there());
            sleep(TURN_EVERY).await;
        }
        reads.abort();
        Ok(())
    }

    /// Heals all, waits for the end of all work, and reads everything once more. What fails is part of what was seen.
    async fn finish(mut self, suffered: anyhow::Result<()>, progress: &dyn Progress) -> anyhow::Result<Seen> {
        let mut seen = std::mem::take(&mut self.seen);
        progress.healing("healing");
        let healed = self.faults.heal().await;
        let (mut crew, tried, broken) = self.faults.leave();
        seen.tried = tried;
        seen.broken = broken;
        let mut ended = Vec::new();
        for (what, done) in [("while faults came", suffered), ("while healing", healed)] {
            ended.extend(done.err().map(|error| format!("{what}: {error:#}")));
        }
        let end = End { client: &self.client, recorder: &self.recorder, progress };
        let all = end.all(&self.plan, &mut crew, self.productions, &mut seen).await;
        ended.extend(all.err().map(|error| format!("once all is healed: {error:#}")));
        seen.broken.extend(ended);
        seen.ended_us = self.recorder.now_us();
        progress.healing("stopping the nodes");
        let Crew { nodes, ground, .. } = crew;
        let nodes = Arc::into_inner(nodes).context("somebody holds the nodes still")?.into_inner();
        nodes.shutdown(futures::future::pending()).await;
        ground.clear(!seen.broken.is_empty())?;
        Ok(seen)
    }
}

/// What is demanded once all is healed.
struct End<'a> {
    client: &'a Client,
    recorder: &'a Recorder,
    progress: &'a dyn Progress,
}

impl End<'_> {
    async fn all(
        &self,
        plan: &Plan,
        crew: &mut Crew,
        productions: Vec<Production>,
        seen: &mut Seen,
    ) -> anyhow::Result<()> {
        self.progress.healing("waiting for the outcome of every submit");
        let produced = futures::future::join_all(productions.into_iter().map(Production::stop)).await;
        self.progress.healing("waiting for the end of all work");
        self.client.seal_queue(QUEUE, None).await.context("sealing the queue")?;
        self.client.wait_queue(QUEUE, LIVE_WITHIN).await.context("waiting for the end of all work")?;
        for worker in crew.workers.iter_mut().flatten() {
            worker.wait(LIVE_WITHIN).await?;
        }
        self.progress.healing("reading every package");
        let keys: Vec<Key> = produced.into_iter().flat_map(|produced| produced.keys).collect();
        read_all(self.client, &self.recorder.named("reading"), keys, true).await.context("reading every package")?;
        self.progress.healing("comparing the nodes' states");
        let index = self.client.fingerprint().await.context("marking an index")?;
        let addrs: Vec<String> = {
            let nodes = crew.nodes.lock().await;
            nodes.nodes().iter().filter(|node| node.id <= plan.nodes).map(|node| node.client_addr.clone()).collect()
        };
        for addr in addrs {
            let ask = async || self.client.state_hash(&addr, index, STATE_WITHIN).await.ok();
            let state = wait::until(format!("the state of the node at {addr}"), LIVE_WITHIN, ask).await?;
            seen.states.push(format!("{} at {}, broken: {:?}", state.hash, state.index, state.violations));
        }
        Ok(())
    }
}

fn spec(worker: u64, addrs: &str, history: &Path) -> WorkerSpec {
    let name = format!("worker-{worker}");
    let handling = if worker.is_multiple_of(2) { Handling::FailFirst { retry_ms: 50 } } else { Handling::Complete };
    WorkerSpec {
        concurrency: 8,
        max_in_flight: 32,
        work_ms: 10,
        handling,
        ..WorkerSpec::new(&name, addrs, QUEUE, history)
    }
}

/// Reads packages that may be there, one after the other.
async fn look(plan: Plan, client: Client, recorder: Recorder) {
    let (mut dice, began) = (Dice::new(plan.seed ^ 0x7ead), Instant::now());
    loop {
        sleep(READ_EVERY).await;
        let made = began.elapsed().as_millis() as u64 * u64::from(plan.rate) / 1_000;
        let key = Key::new(QUEUE, format!("streaming-{:06}", dice.below(made)));
        // What cannot be read now tells nothing.
        let _ = read_all(&client, &recorder, [key], false).await;
    }
}
