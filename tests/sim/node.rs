//! Three whole nodes as they ship, with the SDK's client and worker, on simulated networks, disks,
//! clocks and random sources.
//!
//! What the client and the worker saw is judged by the checkers of the integration tests; what is
//! on disk and in the history is the same for the same seed, byte by byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use wharf::client::{Client, QueueSettings};
use wharf::storage::disk::{Crash, SimDisk};
use wharf::storage::home::Home;
use wharf::storage::log::{Entry, Log};
use wharf::storage::wal::{Flusher, Options as WalOptions};
use wharf::testkit::checkers;
use wharf::testkit::history::{Event, Recorder};
use wharf::testkit::sim::entropy;
use wharf::testkit::sim::stage::{DIR, LOG_SEGMENT, Stage, client_addr, client_addrs, log_files};
use wharf::testkit::sim::world::{self, mix};
use wharf::testkit::wait;
use wharf::testkit::workload::{Producer, WorkerSpec, read_all};

use crate::elsewhere;

const NODES: u64 = 3;
const QUEUE: &str = "q";
const PACKAGES: u64 = 400;
const PACKAGES_A_SECOND: u32 = 200;
/// Simulated time that any wait may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Submits, waits for the end of all work, and reads everything once more.
async fn produce(seed: u64, history: PathBuf, states: Arc<Mutex<Vec<String>>>) -> turmoil::Result {
    let env = world::env(mix(seed ^ 0xc11e));
    let recorder = Recorder::open(&history, "producer", &env)?;
    let client = Client::builder(&client_addrs(NODES)).env(env).build()?;
    client.create_queue(QUEUE, QueueSettings::default()).await?;
    let load = Producer { count: PACKAGES, ..Producer::new(QUEUE, PACKAGES_A_SECOND) };
    let produced = load.start(client.clone(), recorder.clone()).finish().await;
    client.seal_queue(QUEUE, None).await?;
    client.wait_queue(QUEUE, PATIENCE).await?;
    read_all(&client, &recorder, produced.keys, true).await?;
    let index = client.fingerprint().await?;
    for node in 1..=NODES {
        let addr = client_addr(node);
        let ask = || async { client.state_hash(&addr, index, Duration::from_secs(5)).await.ok() };
        let state = wait::until(format!("the state of node {node}"), PATIENCE, ask).await?;
        states.lock().push(format!("{} at {}, broken: {:?}", state.hash, state.index, state.violations));
    }
    Ok(())
}

/// Works until the queue has ended.
async fn work(seed: u64, history: PathBuf) -> turmoil::Result {
    let env = world::env(mix(seed ^ 0x2047));
    let recorder = Recorder::open(&history, "worker", &env)?;
    let client = Client::builder(&client_addrs(NODES)).env(env.clone()).build()?;
    let queue = || async { client.get_queue(QUEUE).await.ok() };
    wait::until("the queue", PATIENCE, queue).await?;
    let spec =
        WorkerSpec { concurrency: 8, work_ms: 5, ..WorkerSpec::new("worker", &client_addrs(NODES), QUEUE, &history) };
    spec.run(env, recorder, futures::future::pending()).await?;
    Ok(())
}

/// The stage with its producer and its worker.
struct World {
    seed: u64,
    stage: Stage,
    states: Arc<Mutex<Vec<String>>>,
}

/// What a run leaves behind.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Left {
    history: String,
    states: Vec<String>,
    /// By node and path, with the hash of what is in them.
    files: BTreeMap<String, String>,
}

impl World {
    fn new(seed: u64) -> Self {
        entropy::fix();
        let mut stage = Stage::new(seed, NODES, NODES, PATIENCE * 4).expect("a stage");
        let (history, states) = (stage.history_path().to_owned(), Arc::default());
        stage.client("producer", produce(seed, history.clone(), Arc::clone(&states)));
        stage.client("worker", work(seed, history));
        Self { seed, stage, states }
    }

    fn confirmed(&self) -> usize {
        self.stage.history().expect("a history").confirmed().len()
    }

    /// Goes on until `done`, looked at every ten ticks.
    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let patience = self.stage.elapsed() + PATIENCE;
        while !done(self) {
            for _ in 0..10 {
                self.step(what);
            }
            assert!(self.stage.elapsed() < patience, "{}: no {what} within {PATIENCE:?}", again(self.seed));
        }
    }

    /// True: the producer and the worker have ended.
    fn step(&mut self, what: &str) -> bool {
        let ended =
            self.stage.step().unwrap_or_else(|error| panic!("{}: waiting for {what}: {error}", again(self.seed)));
        assert_eq!(self.stage.ended(), [], "{}", again(self.seed));
        ended
    }

    /// Goes on until everything is done; judges what was seen.
    fn finish(mut self) -> Left {
        while !self.step("the end of work") {}
        let again = again(self.seed);
        let history = self.stage.history().expect("a history");
        assert_eq!(history.confirmed().len() as u64, PACKAGES, "{again}");
        let violations = checkers::check_to_the_end(&history);
        assert!(violations.is_empty(), "{again}: {violations:#?}");
        let completed = |event: &Event| matches!(event, Event::Read { state: Some(state), last: true, .. } if state.ends_with("COMPLETED"));
        let completed = history.records().iter().filter(|record| completed(&record.event)).count();
        assert_eq!(completed as u64, PACKAGES, "{again}");
        let states = self.states.lock().clone();
        assert_eq!(states.len() as u64, NODES, "{again}");
        assert!(states.iter().all(|state| *state == states[0] && state.ends_with("[]")), "{again}: {states:#?}");

        let history = std::fs::read_to_string(self.stage.history_path()).expect("a history");
        Left { history, states, files: self.stage.leave() }
    }
}

/// How to run a failure again.
fn again(seed: u64) -> String {
    format!("seed {seed}; again: WHARF_SEED={seed} cargo test --release --test sim node")
}

fn seed() -> u64 {
    std::env::var("WHARF_SEED").map_or(1, |seed| seed.parse().expect("WHARF_SEED is a number"))
}

/// The leader loses power under load, with torn writes, and comes back.
fn leader_crashes(seed: u64) -> Left {
    let mut world = World::new(seed);
    world.until("the first confirms", |world| world.confirmed() >= 100);
    let lost = world.stage.leader().unwrap_or_else(|| panic!("{}: nobody leads", again(seed)));
    world.stage.crash(lost, Crash::Tear(mix(seed)));
    let before = world.confirmed();
    assert!(before < PACKAGES as usize, "{}: the load was over before the crash", again(seed));
    world.until("confirms under another leader", |world| world.confirmed() >= before + 50);
    assert!(world.stage.leader().is_some_and(|leader| leader != lost), "{}", again(seed));
    world.stage.start(lost);
    world.finish()
}

const TEST: &str = "node::a_leader_crashes_under_load_and_the_same_seed_gives_the_same_bytes";

#[test]
fn a_leader_crashes_under_load_and_the_same_seed_gives_the_same_bytes() {
    let seed = seed();
    if elsewhere::is_here(|| leader_crashes(seed)) {
        return;
    }
    let [first, second, other]: [Left; 3] = elsewhere::run_all(TEST, [seed, seed, seed + 1]);
    let differs = first.history.lines().zip(second.history.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None, "{}: the runs part here", again(seed));
    assert_eq!(first.states, second.states, "{}", again(seed));
    assert!(first == second, "{}: the same seed gave other bytes", again(seed));
    assert!(first.history != other.history && first.files != other.files, "{}: it decides nothing", again(seed));
}

/// Where the last flush of a node's log begins. Records say their length at 4 and their flush at 8,
/// and begin at multiples of 8; their checksum follows from their place, so rubbish is not mistaken
/// for one here: nothing else was ever written to this disk.
fn last_flush(disk: &SimDisk) -> (PathBuf, usize) {
    let mut found = None;
    for path in log_files(disk) {
        let bytes = disk.content(&path);
        let (mut at, mut flush) = (0, None);
        while let Some(header) = bytes.get(at..at + 20).filter(|header| header.iter().any(|byte| *byte != 0)) {
            let number = u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"));
            if flush != Some(number) {
                (flush, found) = (Some(number), Some((path.clone(), at)));
            }
            let length = u32::from_le_bytes(header[4..8].try_into().expect("4 bytes")) as usize;
            at += (20 + length).next_multiple_of(8);
        }
    }
    found.expect("a log with records")
}

/// Looks at what a restart would find in a node's log.
fn look<R>(disk: &SimDisk, node: u64, look: impl FnOnce(&dyn Log) -> R) -> R {
    let (flusher, segment_bytes) = (Flusher::Inline, LOG_SEGMENT.as_u64());
    let options = WalOptions { flusher, segment_bytes, ..WalOptions::default() };
    let disk = disk.fork();
    disk.crash(Crash::DropUnsynced);
    let home = Home::open(Arc::new(disk), Path::new(DIR), node, 0, options).expect("a log that opens");
    look(&*home.log)
}

fn last_index(disk: &SimDisk, node: u64) -> u64 {
    look(disk, node, |log| log.ends().last.map_or(0, |last| last.index))
}

fn entry(disk: &SimDisk, node: u64, index: u64) -> Option<Entry> {
    let read = look(disk, node, |log| log.read(index..index + 1, u64::MAX)).ok()?;
    read.wait().ok()?.pop()
}

/// Flips a bit inside the last flush of what is durable; answers the first index that it cost, if it
/// cost any.
fn rot(disk: &SimDisk, node: u64) -> Option<u64> {
    let (path, at) = last_flush(disk);
    let before = last_index(disk, node);
    disk.damage(&path, |bytes| bytes[at + 20] ^= 1);
    let after = last_index(disk, node);
    (after < before).then_some(after + 1)
}

/// To one disk, damage inside the very last flush is a torn write: it drops what it had promised.
/// The others' copies cover that.
fn the_last_flush_of_one_rots(stopped: impl Fn(u64) -> Vec<u64>) {
    let seed = seed();
    let mut world = World::new(seed);
    world.until("the first confirms", |world| world.confirmed() >= 100);
    // A moment at which one node's last flush holds what is committed, and the others have it too.
    let found = loop {
        world.step("a flush of what is committed");
        let committed = world.stage.committed();
        let found = (1..=NODES).find_map(|node| {
            let durable = world.stage.disks()[&node].fork();
            durable.crash(Crash::DropUnsynced);
            let lost = rot(&durable, node).filter(|lost| *lost <= committed)?;
            let others = (1..=NODES).filter(|other| *other != node);
            others
                .map(|other| last_index(&world.stage.disks()[&other], other))
                .all(|last| last >= lost)
                .then_some((node, lost))
        });
        if let Some(found) = found.filter(|(node, _)| world.stage.leader() != Some(*node)) {
            break found;
        }
    };
    let (hurt, lost) = found;
    let promised = entry(&world.stage.disks()[&hurt], hurt, lost);
    assert!(promised.is_some(), "{}: entry {lost} cannot be read", again(seed));
    assert!(world.confirmed() < PACKAGES as usize, "{}: the load was over before the stop", again(seed));
    let stopped = stopped(hurt);
    for node in &stopped {
        world.stage.crash(*node, Crash::DropUnsynced);
    }
    assert_eq!(rot(&world.stage.disks()[&hurt], hurt), Some(lost), "{}: the damage cost something else", again(seed));
    for node in stopped {
        world.stage.start(node);
    }
    let disks = world.stage.disks().clone();
    world.finish();
    for (node, disk) in &disks {
        assert_eq!(entry(disk, *node, lost), promised, "{}: entry {lost} of node {node}", again(seed));
    }
}

#[test]
fn rot_in_the_last_flush_of_one_node_is_covered_when_all_were_stopped() {
    the_last_flush_of_one_rots(|_| (1..=NODES).collect());
}

#[test]
fn rot_in_the_last_flush_of_one_node_is_covered_when_it_alone_was_stopped() {
    the_last_flush_of_one_rots(|hurt| vec![hurt]);
}
