//! One run: forms the cluster, lets it work and suffer, heals it, and demands that everything ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::super::checkers;
use super::super::history::{Key, Recorder};
use super::super::wait;
use super::super::workload::{Handling, Producer, WorkerSpec, read_all};
use super::faults::{Faults, OPERATOR, Order, PRODUCER, REORGANIZER, worker_name};
use super::plan::{Change, Dice, Plan};
use super::report::{Left, Report};
use super::stage::{Stage, client_addr, client_addrs, peer_addr};
use super::world::{self, mix};
use super::{entropy, stage};
use crate::client::{Client, QueueSettings};

const QUEUE: &str = "q";
/// Packages a second of the producer that streams, and of the one that calls.
const RATES: (u32, u32) = (60, 10);
/// Once all is healed, what is to come must come within this.
const LIVE_WITHIN: Duration = Duration::from_secs(60);
/// A node whose process ended by itself is started again after this, as a service manager would.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// Between two reads of a package that may be there.
const READ_EVERY: Duration = Duration::from_millis(25);
/// A read is given up after this.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// Of the newest packages so many are read more often.
const NEW: u64 = 60;
/// Real time after which a run makes no progress any more: something goes round and round without ever waiting.
const HANGS_AFTER: Duration = Duration::from_secs(300);
/// Members are changed from here on; a change that was refused is tried again after.
const REORGANIZE_AFTER: Duration = Duration::from_secs(3);
const TRY_CHANGE_EVERY: Duration = Duration::from_millis(100);
/// Orders that wait.
const ORDERS: usize = 64;

/// What programs inside tell beside the history.
#[derive(Clone, Default)]
struct Told {
    broken: Arc<Mutex<Vec<String>>>,
    states: Arc<Mutex<Vec<String>>>,
}

impl Told {
    fn broken(&self, what: impl Into<String>) {
        self.broken.lock().push(what.into());
    }
}

/// Carries a plan out, in this process, which must not have run another.
pub fn run(plan: &Plan) -> anyhow::Result<Report> {
    entropy::fix();
    // A thread of its own: the maps of this one have drawn their seeds.
    let plan = plan.clone();
    let (ended, end) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new().name("sim".into()).spawn(move || {
        // Nobody listens any more: it took too long.
        let _ = ended.send(Run::new(plan).and_then(Run::finish));
    })?;
    match end.recv_timeout(HANGS_AFTER) {
        Ok(report) => report,
        Err(RecvTimeoutError::Timeout) => anyhow::bail!("the run hangs: not over after {HANGS_AFTER:?}"),
        Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the simulation itself panicked, see above"),
    }
}

struct Run {
    plan: Plan,
    stage: Stage,
    faults: Faults,
    recorder: Recorder,
    told: Told,
    /// Nodes that ended by themselves, and when each is started again.
    restarts: Vec<(Duration, u64)>,
}

impl Run {
    fn new(plan: Plan) -> anyhow::Result<Self> {
        let seed = plan.seed;
        let mut stage = Stage::new(seed, plan.nodes, plan.founders, plan.suffer + LIVE_WITHIN * 4)?;
        for (node, skew_ms) in (1..).zip(&plan.skews_ms) {
            stage.step_clock(node, *skew_ms);
        }
        let (history, told) = (stage.history_path().to_owned(), Told::default());
        stage.client(PRODUCER, inside(told.clone(), PRODUCER, produce(plan.clone(), history.clone(), told.clone())));
        if !plan.changes.is_empty() {
            stage.client(REORGANIZER, inside(told.clone(), REORGANIZER, reorganize(plan.clone())));
        }
        let (orders, waiting) = mpsc::channel(ORDERS);
        let waiting = Arc::new(Mutex::new(Some(waiting)));
        let nodes = plan.nodes;
        stage.host(OPERATOR, move || {
            let waiting = waiting.lock().take();
            operate(seed, nodes, waiting)
        });
        for worker in 1..=plan.workers {
            let (history, told, starts) = (history.clone(), told.clone(), Arc::new(Mutex::new(0_u64)));
            stage.host(&worker_name(worker), move || {
                *starts.lock() += 1;
                let seed = mix(seed ^ mix(worker)) ^ *starts.lock();
                inside(told.clone(), "a worker", work(seed, worker, nodes, history.clone()))
            });
        }
        let recorder = Recorder::open(&history, "sim", &stage.outside())?;
        let faults = Faults::new(plan.clone(), orders);
        Ok(Self { plan, stage, faults, recorder, told, restarts: Vec::new() })
    }

    fn finish(mut self) -> anyhow::Result<Report> {
        let panics = Panics::heard();
        let mut healed = false;
        let broke = loop {
            match self.stage.step() {
                Ok(true) => break None,
                Ok(false) => {}
                Err(error) => break Some(format!("the run did not end: {error}")),
            }
            if !panics.lock().is_empty() {
                break None;
            }
            if self.stage.elapsed() < self.plan.suffer {
                self.faults.turn(&mut self.stage, &self.recorder);
            } else if !healed {
                healed = true;
                self.faults.heal(&mut self.stage, &self.recorder);
            }
            self.restart();
        };
        self.told.broken.lock().extend(broke);
        self.told.broken.lock().extend(panics.lock().drain(..));
        self.judge()
    }

    /// Starts nodes again that ended by themselves, which a full disk may make them do.
    fn restart(&mut self) {
        let now = self.stage.elapsed();
        for (node, why) in self.stage.ended() {
            let removed = why.contains("was removed from the cluster") && !self.plan.voters().contains(&node);
            if removed {
                continue;
            }
            if !why.contains("no space left on the simulated disk") {
                self.told.broken(format!("node {node} ended by itself at {now:?}: {why}"));
            }
            self.restarts.push((now + RESTART_AFTER, node));
        }
        let (due, later) = std::mem::take(&mut self.restarts).into_iter().partition(|(at, _)| *at <= now);
        self.restarts = later;
        for (_, node) in Vec::into_iter(due) {
            if !self.stage.runs(node) {
                self.stage.start(node);
            }
        }
    }

    fn judge(self) -> anyhow::Result<Report> {
        let Self { plan, stage, faults, told, .. } = self;
        let history = stage.history()?;
        let text = std::fs::read(stage.history_path()).context("the history")?;
        let elapsed = stage.elapsed();
        let found = checkers::check_to_the_end(&history);
        let states = told.states.lock().clone();
        let mut broken = told.broken.lock().clone();
        if states.len() != plan.voters().len()
            || states.iter().any(|state| *state != states[0] || !state.ends_with("[]"))
        {
            broken.push(format!("the nodes' states: {states:?}"));
        }
        let mut digest = blake3::Hasher::new();
        digest.update(&text);
        for (path, hash) in stage.leave() {
            digest.update(path.as_bytes()).update(hash.as_bytes());
        }
        let digest = digest.finalize().to_hex().chars().take(16).collect();
        let left =
            Left { seed: plan.seed, history: &history, landed: faults.landed(), epoch: stage::EPOCH, elapsed, digest };
        Ok(Report::new(&left, &found, broken))
    }
}

/// What panicked so far. A node ends its process on any panic; here it would only lose a task.
struct Panics;

impl Panics {
    fn heard() -> Arc<Mutex<Vec<String>>> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&heard);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tell.lock().push(format!("a panic: {panic}"));
            before(panic);
        }));
        heard
    }
}

/// A program inside: what stops it is told, and not the end of the run.
async fn inside(told: Told, who: &'static str, program: impl Future<Output = anyhow::Result<()>>) -> turmoil::Result {
    if let Err(error) = program.await {
        told.broken(format!("{who}: {error:#}"));
    }
    Ok(())
}

/// Submits as long as faults come; then waits for the end of all work, and reads everything once more.
async fn produce(plan: Plan, history: PathBuf, told: Told) -> anyhow::Result<()> {
    let heal_at = Instant::now() + plan.suffer;
    let env = world::env(mix(plan.seed ^ 0xc11e));
    let client = Client::builder(&client_addrs(plan.nodes)).env(env.clone()).build()?;
    let made = || async { client.create_queue(QUEUE, QueueSettings::default()).await.is_ok() };
    let there = || async { client.get_queue(QUEUE).await.is_ok() };
    wait::until("the queue", LIVE_WITHIN, || async { (made().await || there().await).then_some(()) }).await?;
    let streaming = Recorder::open(&history, "streaming", &env)?;
    let calling = streaming.named("calling");
    let streams = Producer::new(QUEUE, RATES.0).start(client.clone(), streaming.clone());
    let calls = Producer { pipelined: false, mixed_priorities: true, ..Producer::new(QUEUE, RATES.1) };
    let calls = calls.start(client.clone(), calling);
    let reads = tokio::spawn(look(plan.clone(), streaming.named("reading")));
    sleep_until(heal_at).await;
    let (streams, calls) = tokio::join!(streams.stop(), calls.stop());
    reads.abort();
    client.seal_queue(QUEUE, None).await.context("once all is healed: sealing the queue")?;
    client.wait_queue(QUEUE, LIVE_WITHIN).await.context("once all is healed: waiting for the end of work")?;
    let keys = streams.keys.into_iter().chain(calls.keys);
    read_all(&client, &streaming, keys, true).await.context("once all is healed: reading")?;
    let index = client.fingerprint().await?;
    for node in plan.voters() {
        let addr = client_addr(node);
        let ask = || async { client.state_hash(&addr, index, Duration::from_secs(5)).await.ok() };
        let state = wait::until(format!("the state of node {node}"), LIVE_WITHIN, ask).await?;
        told.states.lock().push(format!("{} at {}, broken: {:?}", state.hash, state.index, state.violations));
    }
    Ok(())
}

/// Makes each change of members, however often it takes.
async fn reorganize(plan: Plan) -> anyhow::Result<()> {
    let client = Client::builder(&client_addrs(plan.nodes)).env(world::env(mix(plan.seed ^ 0x4e0))).build()?;
    sleep(REORGANIZE_AFTER).await;
    for change in &plan.changes {
        let told = Mutex::new(String::new());
        let make = || async {
            let made = match change {
                Change::Add(node) => client.add_member(*node, &peer_addr(*node), false, false).await.map(drop),
                Change::Promote(nodes) => client.promote_members(nodes).await.map(drop),
                Change::Remove(nodes) => client.remove_members(nodes, false).await.map(drop),
            };
            match made {
                Ok(()) => Some(()),
                // An earlier try did it.
                Err(error) if error.reason() == "NODE_NOT_FOUND" => Some(()),
                Err(error) => {
                    *told.lock() = error.to_string();
                    sleep(TRY_CHANGE_EVERY).await;
                    None
                }
            }
        };
        let within = plan.suffer + LIVE_WITHIN;
        wait::until(format!("{change:?}"), within, make).await.with_context(|| told.lock().clone())?;
    }
    Ok(())
}

/// Reads packages that may be there, one after the other, by every node in turn: who leads no more must not answer.
async fn look(plan: Plan, recorder: Recorder) -> anyhow::Result<()> {
    let one = |node| {
        let env = world::env(mix(plan.seed ^ 0x7ead ^ node));
        Client::builder(&client_addr(node)).env(env).follow_leader(false).timeout(READ_WITHIN).build()
    };
    let clients = (1..=plan.nodes).map(one).collect::<Result<Vec<_>, _>>()?;
    let (mut dice, began) = (Dice::new(plan.seed ^ 0x7ead), Instant::now());
    loop {
        sleep(READ_EVERY).await;
        let made = began.elapsed().as_millis() as u64 * u64::from(RATES.0) / 1_000;
        // Most of what is new is still on its way.
        let number = if dice.coin() { dice.below(made) } else { made.saturating_sub(dice.below(NEW)) };
        let key = Key::new(QUEUE, format!("streaming-{number:06}"));
        let (client, recorder) = (clients[dice.below(plan.nodes) as usize].clone(), recorder.clone());
        // What cannot be read now tells nothing.
        tokio::spawn(async move { drop(read_all(&client, &recorder, [key], false).await) });
    }
}

/// Does as it is ordered. What is refused is no fault of anybody.
async fn operate(seed: u64, nodes: u64, waiting: Option<mpsc::Receiver<Order>>) -> turmoil::Result {
    let Some(mut waiting) = waiting else { return Ok(()) };
    let client = Client::builder(&client_addrs(nodes)).env(world::env(mix(seed ^ 0x0b))).build()?;
    while let Some(order) = waiting.recv().await {
        let client = client.clone();
        tokio::spawn(async move {
            let _ = match order {
                Order::Transfer { to } => client.transfer_leadership(to).await,
                Order::Snapshot { node } => client.take_snapshot(&client_addr(node)).await,
            };
        });
    }
    Ok(())
}

/// Works until the queue has ended. Every second worker fails what it gets first.
async fn work(seed: u64, worker: u64, nodes: u64, history: PathBuf) -> anyhow::Result<()> {
    let env = world::env(seed);
    let name = worker_name(worker);
    let recorder = Recorder::open(&history, &name, &env)?;
    let addrs = client_addrs(nodes);
    let client = Client::builder(&addrs).env(env.clone()).build()?;
    let queue = || async { client.get_queue(QUEUE).await.ok() };
    wait::until("the queue", LIVE_WITHIN * 4, queue).await?;
    let handling = if worker.is_multiple_of(2) { Handling::FailFirst { retry_ms: 50 } } else { Handling::Complete };
    let spec = WorkerSpec {
        concurrency: 4,
        max_in_flight: 16,
        work_ms: 20,
        handling,
        ..WorkerSpec::new(&name, &addrs, QUEUE, &history)
    };
    spec.run(env, recorder, futures::future::pending()).await?;
    Ok(())
}
