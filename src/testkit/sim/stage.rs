//! A cluster inside turmoil, and what can be done to it from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use bytesize::ByteSize;
use parking_lot::Mutex;

use super::super::history::History;
use super::world::{self, Skew, mix};
use crate::config::{Advertise, Cluster, Config, Limits, Listen};
use crate::env::{Clock, Env};
use crate::node::{Node, Surroundings};
use crate::raft::Handle;
use crate::raft::snapshots::Blocking;
use crate::storage::disk::{Crash, Disk, SimDisk};
use crate::storage::wal::Flusher;
use crate::types::Wall;

/// Where a node's files are on its disk.
pub const DIR: &str = "/data";
/// Small, because a simulated disk holds what it zeroes.
pub const LOG_SEGMENT: ByteSize = ByteSize::mib(4);
/// What a message takes, at least and at most, when nothing is wrong.
const LATENCY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(2));
const TICK: Duration = Duration::from_millis(1);
/// 2023-11-14.
pub const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// The host that a node runs on.
pub fn host(node: u64) -> String {
    format!("node-{node}")
}

/// Where a node takes clients.
pub fn client_addr(node: u64) -> String {
    format!("{}:7411", host(node))
}

/// Where a node takes its peers.
pub fn peer_addr(node: u64) -> String {
    format!("{}:7412", host(node))
}

/// Where clients find all nodes, as the SDK takes it.
pub fn client_addrs(nodes: u64) -> String {
    (1..=nodes).map(client_addr).collect::<Vec<_>>().join(",")
}

fn config(node: u64, founders: u64) -> Config {
    let everywhere = |port: u16| format!("0.0.0.0:{port}");
    Config {
        node,
        data_dir: DIR.into(),
        insecure: true,
        listen: Listen { client: everywhere(7411), peer: everywhere(7412), admin: everywhere(7413) },
        advertise: Advertise {
            client: Some(client_addr(node)),
            peer: Some(peer_addr(node)),
            admin: Some(format!("{}:7413", host(node))),
        },
        cluster: if node <= founders {
            let nodes = (1..=founders).map(|node| format!("{node}={}", peer_addr(node))).collect();
            Cluster { nodes, join: false }
        } else {
            Cluster { nodes: Vec::new(), join: true }
        },
        limits: Limits { log_segment: LOG_SEGMENT, ..Limits::default() },
        ..Config::default()
    }
}

/// Nodes that ended by themselves, with why.
type Ended = Arc<Mutex<Vec<(u64, String)>>>;
/// The nodes that run, by number.
type Handles = Arc<Mutex<BTreeMap<u64, Handle>>>;

/// What each start of a node is given.
#[derive(Clone)]
struct Berth {
    node: u64,
    founders: u64,
    seed: u64,
    disk: SimDisk,
    skew: Skew,
    handles: Handles,
}

/// A node's process: it runs until its host is crashed, or it cannot go on.
async fn node(berth: &Berth) -> anyhow::Result<()> {
    let config = config(berth.node, berth.founders);
    config.validate()?;
    // Another start draws other numbers.
    let starts_at = turmoil::sim_elapsed().unwrap_or_default().as_micros() as u64;
    let around = Surroundings {
        env: world::skewed(mix(berth.seed ^ berth.node) ^ mix(starts_at), berth.skew.clone()),
        disk: Arc::new(berth.disk.clone()),
        flusher: Flusher::Task,
        blocking: Blocking::Inline,
    };
    let mut running = Node::start(&config, around).await?;
    berth.handles.lock().insert(berth.node, running.handle().clone());
    Err(running.failed().await.into())
}

/// The right time, for who stands outside.
struct Now(Arc<AtomicU64>);

impl Clock for Now {
    fn wall(&self) -> Wall {
        Wall(EPOCH.as_millis() as u64 + self.0.load(Ordering::Relaxed))
    }
}

/// See the module.
pub struct Stage {
    seed: u64,
    nodes: u64,
    sim: turmoil::Sim<'static>,
    disks: BTreeMap<u64, SimDisk>,
    skews: BTreeMap<u64, Skew>,
    handles: Handles,
    ended: Ended,
    elapsed_ms: Arc<AtomicU64>,
    /// Nodes whose process is gone, and was not started again.
    down: BTreeSet<u64>,
    history: PathBuf,
    _dir: tempfile::TempDir,
}

impl Stage {
    /// So many nodes that are about to start; the first `founders` form a cluster, the others wait to be
    /// added. No run takes longer than `at_most`.
    pub fn new(seed: u64, nodes: u64, founders: u64, at_most: Duration) -> io::Result<Self> {
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(UNIX_EPOCH + EPOCH)
            .simulation_duration(at_most)
            .tick_duration(TICK)
            .min_message_latency(LATENCY.0)
            .max_message_latency(LATENCY.1)
            .tcp_capacity(4096)
            .build();
        let dir = tempfile::tempdir()?;
        let mut stage = Self {
            seed,
            nodes,
            sim,
            disks: BTreeMap::new(),
            skews: BTreeMap::new(),
            handles: Handles::default(),
            ended: Ended::default(),
            elapsed_ms: Arc::default(),
            down: BTreeSet::new(),
            history: dir.path().join("history.jsonl"),
            _dir: dir,
        };
        for number in 1..=nodes {
            stage.add(number, founders);
        }
        Ok(stage)
    }

    fn add(&mut self, number: u64, founders: u64) {
        let berth = Berth {
            node: number,
            founders,
            seed: self.seed,
            disk: SimDisk::new(),
            skew: Skew::default(),
            handles: Arc::clone(&self.handles),
        };
        self.disks.insert(number, berth.disk.clone());
        self.skews.insert(number, berth.skew.clone());
        let ended = Arc::clone(&self.ended);
        self.sim.host(host(number), move || {
            let (berth, ended) = (berth.clone(), ended.clone());
            async move {
                if let Err(error) = node(&berth).await {
                    ended.lock().push((berth.node, format!("{error:#}")));
                }
                Ok(())
            }
        });
    }

    /// A program whose end the run waits for.
    pub fn client(&mut self, name: &str, program: impl Future<Output = turmoil::Result> + 'static) {
        self.sim.client(name, program);
    }

    /// A program that may be crashed, and is then started anew.
    pub fn host<F>(&mut self, name: &str, program: impl Fn() -> F + 'static)
    where
        F: Future<Output = turmoil::Result> + 'static,
    {
        self.sim.host(name, program);
    }

    pub fn nodes(&self) -> u64 {
        self.nodes
    }

    pub fn disks(&self) -> &BTreeMap<u64, SimDisk> {
        &self.disks
    }

    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Surroundings for somebody outside, who records what is done to whom.
    pub fn outside(&self) -> Env {
        Env { clock: Arc::new(Now(Arc::clone(&self.elapsed_ms))), ..world::env(self.seed) }
    }

    /// True: every client has ended. Nodes that ended by themselves are down from then on.
    pub fn step(&mut self) -> anyhow::Result<bool> {
        let ended = self.sim.step().map_err(|error| anyhow::anyhow!("{error}"));
        self.elapsed_ms.store(self.sim.elapsed().as_millis() as u64, Ordering::Relaxed);
        ended
    }

    /// Nodes that ended by themselves since the last time this was asked, with why.
    pub fn ended(&mut self) -> Vec<(u64, String)> {
        let ended = std::mem::take(&mut *self.ended.lock());
        for (node, _) in &ended {
            self.handles.lock().remove(node);
            self.down.insert(*node);
        }
        ended
    }

    pub fn runs(&self, node: u64) -> bool {
        !self.down.contains(&node)
    }

    pub fn leader(&self) -> Option<u64> {
        let handles = self.handles.lock();
        handles.values().find(|handle| handle.standing().borrow().leading.is_some()).map(Handle::node)
    }

    pub fn committed(&self) -> u64 {
        let handles = self.handles.lock();
        handles.values().map(|handle| handle.status().committed_index).max().unwrap_or(0)
    }

    /// Ends a node's process, and its power.
    pub fn crash(&mut self, node: u64, crash: Crash) {
        // Released before it drops: its tasks may look for it.
        let handle = self.handles.lock().remove(&node);
        drop(handle);
        self.sim.crash(host(node));
        self.disks[&node].crash(crash);
        self.down.insert(node);
    }

    pub fn start(&mut self, node: u64) {
        self.sim.bounce(host(node));
        self.down.remove(&node);
    }

    pub fn crash_host(&mut self, name: &str) {
        self.sim.crash(name);
    }

    pub fn start_host(&mut self, name: &str) {
        self.sim.bounce(name);
    }

    /// Steps a node's wall clock.
    pub fn step_clock(&self, node: u64, by_ms: i64) {
        self.skews[&node].step(by_ms);
    }

    /// What messages between two hosts take at most; the usual without a number.
    pub fn delay(&self, a: &str, b: &str, most: Option<Duration>) {
        self.sim.set_link_max_message_latency(a, b, most.unwrap_or(LATENCY.1));
    }

    /// From now on nothing goes this way; what is on the way still arrives.
    pub fn cut(&self, from: &str, to: &str) {
        self.sim.partition_oneway(from, to);
    }

    pub fn mend(&self, from: &str, to: &str) {
        self.sim.repair_oneway(from, to);
    }

    /// What goes between two hosts waits until it is released.
    pub fn hold(&self, a: &str, b: &str) {
        self.sim.hold(a, b);
    }

    pub fn release(&self, a: &str, b: &str) {
        self.sim.release(a, b);
    }

    /// Where everybody records.
    pub fn history_path(&self) -> &Path {
        &self.history
    }

    pub fn history(&self) -> anyhow::Result<History> {
        Ok(if self.history.exists() { History::load(&self.history)? } else { History::default() })
    }

    /// Ends everything; what is left on the disks, by node and path, with the hash of its content.
    pub fn leave(self) -> BTreeMap<String, String> {
        // Sockets and timers of the hosts end with them.
        self.handles.lock().clear();
        drop(self.sim);
        let mut files = BTreeMap::new();
        for (node, disk) in &self.disks {
            for path in log_files(disk) {
                let hash = blake3::hash(&disk.content(&path)).to_string();
                files.insert(format!("{}:{}", host(*node), path.display()), hash);
            }
        }
        files
    }
}

/// The files of a node's log.
pub fn log_files(disk: &SimDisk) -> Vec<PathBuf> {
    let log = Path::new(DIR).join("log");
    disk.list(&log).unwrap_or_default().into_iter().map(|name| log.join(name)).collect()
}
