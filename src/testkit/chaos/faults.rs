//! Does what a plan says to real processes, takes it back, and keeps the evidence that it came.
//!
//! Faults overlap: what a node hears follows from all that are there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::history::{self, Recorder};
use super::super::sim::plan::Target;
use super::super::workload::{WorkerProcess, WorkerSpec};
use super::errands::{self, Nodes};
use super::ground::Ground;
use super::links::{self, Inbound, Links};
use super::plan::{Fault, Kind, Plan, Planned};
use crate::cli::local;
use crate::client::Client;
use crate::types::NodeId;

/// Who leads is looked for so long.
const LEADER_WITHIN: Duration = Duration::from_millis(300);
/// A fault whose time has come waits so long for those that are in its way, and then lasts so long at least.
const WAITS_FOR: Duration = Duration::from_secs(8);
const LASTS_AT_LEAST: Duration = Duration::from_millis(300);
/// A node whose process ended by itself is started again after this, as a service manager would.
const RESTART_AFTER: Duration = Duration::from_millis(500);
/// What a fault did to a process may be seen so much later than the fault was taken back.
const SEEN_WITHIN: Duration = Duration::from_secs(1);
/// What an operator was told to do is done within this, once all is healed.
const DONE_WITHIN: Duration = Duration::from_secs(60);
/// While waiting for that, nodes are looked after so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const COUNTERS: [&str; 3] = ["deaf", "lossy", "torn"];

pub fn node_name(node: NodeId) -> String {
    format!("node-{node}")
}

/// A fault of the plan that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    pub kind: Kind,
    /// Whom it hit, for people.
    pub whom: String,
    /// Microseconds since the Unix epoch, as the history has them.
    pub from_us: u64,
    pub until_us: u64,
    /// What shows that it came. None: it did not, or nothing shows it.
    pub evidence: Option<String>,
}

/// What a fault that is there does.
enum Hold {
    Down(Vec<NodeId>),
    Dark(Vec<NodeId>),
    Frozen(NodeId),
    Worker(u64),
    FrozenWorker(u64),
    /// What it leaves of links; what its counter showed before.
    Links {
        links: Links,
        counter: &'static str,
        before: u64,
    },
    FullDisk(NodeId),
    SyncsFail(NodeId),
    Memory {
        node: NodeId,
        bytes: u64,
        before: u64,
    },
    Errand(JoinHandle<anyhow::Result<String>>),
    /// The same; meanwhile the node may end by itself, and is left alone.
    Damage(NodeId, JoinHandle<anyhow::Result<String>>),
    /// It came, and there is nothing to take back.
    Done(String),
}

struct Active {
    until: Instant,
    tried: Tried,
    hold: Hold,
}

impl Active {
    fn over(&self, now: Instant) -> bool {
        match &self.hold {
            Hold::Errand(errand) | Hold::Damage(_, errand) => errand.is_finished(),
            _ => self.until <= now,
        }
    }
}

/// Everybody whom a fault may hit, and who does what an operator would.
pub struct Crew {
    pub nodes: Nodes,
    pub ground: Ground,
    /// By their numbers, from 1 on; None: it does not run.
    pub workers: Vec<Option<WorkerProcess>>,
    pub specs: Vec<WorkerSpec>,
    pub client: Client,
    pub recorder: Recorder,
    /// The number of the node that comes and goes.
    pub spare: NodeId,
}

impl Crew {
    pub async fn kill(&self, node: NodeId) -> anyhow::Result<()> {
        self.recorder.fault(&node_name(node), history::Fault::Killed);
        self.nodes.lock().await.kill(node).await
    }

    /// Starts a node that does not run.
    async fn start(&self, node: NodeId) -> anyhow::Result<()> {
        let mut nodes = self.nodes.lock().await;
        if !nodes.node(node)?.runs() {
            nodes.restart(node)?;
            self.recorder.fault(&node_name(node), history::Fault::Healed);
        }
        Ok(())
    }

    pub fn start_worker(&mut self, worker: u64) -> anyhow::Result<()> {
        let place = worker as usize - 1;
        let started = self.specs[place].clone().spawn_process(&std::env::current_exe()?, &[])?;
        self.workers[place] = Some(started);
        Ok(())
    }
}

/// See the module.
pub struct Faults {
    plan: Plan,
    next: usize,
    /// Those that could not begin yet.
    waiting: Vec<Planned>,
    crew: Crew,
    active: Vec<Active>,
    heard: Links,
    /// Packets that filters took before they were last changed.
    counted: BTreeMap<(NodeId, &'static str), u64>,
    /// Nodes that ended by themselves, and when each is started again.
    restarts: Vec<(Instant, NodeId)>,
    /// Until when a fault that is over may explain the end of a node's process.
    excused: BTreeMap<NodeId, Instant>,
    tried: Vec<Tried>,
    broken: Vec<String>,
}

impl Faults {
    pub fn new(plan: Plan, crew: Crew) -> Self {
        Self {
            plan,
            next: 0,
            waiting: Vec::new(),
            crew,
            active: Vec::new(),
            heard: Links::new(),
            counted: BTreeMap::new(),
            restarts: Vec::new(),
            excused: BTreeMap::new(),
            tried: Vec::new(),
            broken: Vec::new(),
        }
    }

    /// What is there now, for people.
    pub fn there(&self) -> String {
        let names: Vec<String> = self.active.iter().map(|active| active.tried.kind.name()).collect();
        names.join(", ")
    }

    /// Who is left, what was tried, and what nodes did that no fault explains.
    pub fn leave(self) -> (Crew, Vec<Tried>, Vec<String>) {
        (self.crew, self.tried, self.broken)
    }

    /// Ends what is over by now, begins what is due, and starts again what ended by itself. The run began at `began`.
    pub async fn turn(&mut self, began: Instant) -> anyhow::Result<()> {
        let now = Instant::now();
        self.end_those(|active| active.over(now)).await?;
        let mut due = std::mem::take(&mut self.waiting);
        while let Some(planned) = self.plan.faults.get(self.next).filter(|planned| began + planned.at <= now) {
            due.push(planned.clone());
            self.next += 1;
        }
        for planned in due {
            let until = (began + planned.until).max(now + LASTS_AT_LEAST);
            let from_us = self.crew.recorder.now_us();
            let tried = |whom| Tried { kind: planned.fault.kind, whom, from_us, until_us: from_us, evidence: None };
            match self.begin(&planned.fault, until).await {
                Ok((whom, hold)) => self.active.push(Active { until, tried: tried(whom), hold }),
                // Other faults are in its way: later, perhaps.
                Err(_) if now < began + planned.at + WAITS_FOR => self.waiting.push(planned),
                Err(error) => self.tried.push(tried(format!("nobody: {error:#}"))),
            }
            self.relink()?;
        }
        self.supervise().await
    }

    /// Ends everything, and waits for what the operator was told to do.
    pub async fn heal(&mut self) -> anyhow::Result<()> {
        self.next = self.plan.faults.len();
        self.waiting.clear();
        self.end_those(|active| !matches!(active.hold, Hold::Errand(_) | Hold::Damage(..))).await?;
        let deadline = Instant::now() + DONE_WITHIN;
        while !(self.active.is_empty() && self.restarts.is_empty()) && Instant::now() < deadline {
            self.supervise().await?;
            let now = Instant::now();
            self.end_those(|active| active.over(now)).await?;
            sleep(LOOK_EVERY).await;
        }
        for late in self.active.drain(..) {
            if let Hold::Errand(errand) | Hold::Damage(_, errand) = late.hold {
                errand.abort();
                // It holds the nodes until it is gone.
                let _ = errand.await;
            }
            self.broken
                .push(format!("{} was not done within {DONE_WITHIN:?} after all was healed", late.tried.kind.name()));
        }
        Ok(())
    }

    async fn end_those(&mut self, which: impl Fn(&Active) -> bool) -> anyhow::Result<()> {
        let (over, active): (Vec<_>, Vec<_>) = std::mem::take(&mut self.active).into_iter().partition(which);
        self.active = active;
        for Active { mut tried, hold, .. } in over {
            if let Hold::FullDisk(node) | Hold::SyncsFail(node) | Hold::Memory { node, .. } = hold {
                self.excused.insert(node, Instant::now() + SEEN_WITHIN);
            }
            match self.end(hold).await {
                Ok(evidence) => tried.evidence = evidence.or(tried.evidence),
                Err(error) if tried.kind == Kind::Damage => {
                    self.broken.push(format!("{} was damaged: {error:#}", tried.whom));
                }
                Err(error) => tried.whom += &format!(": {error:#}"),
            }
            tried.until_us = self.crew.recorder.now_us();
            self.tried.push(tried);
        }
        self.relink()
    }

    /// Whom it hits, and what it does from now on.
    async fn begin(&mut self, fault: &Fault, until: Instant) -> anyhow::Result<(String, Hold)> {
        let crew = &self.crew;
        let count = self.plan.nodes;
        let nodes = || crew.nodes.clone();
        // Those that hit no node in particular.
        match fault.kind {
            Kind::KillAll | Kind::PowerLoss => {
                let up: Vec<NodeId> = running(&*crew.nodes.lock().await, count);
                anyhow::ensure!(!up.is_empty(), "no node ran");
                let dark = fault.kind == Kind::PowerLoss;
                if dark {
                    crew.ground.cut_power(&up)?;
                }
                for node in &up {
                    crew.kill(*node).await?;
                }
                return Ok((format!("nodes {up:?}"), if dark { Hold::Dark(up) } else { Hold::Down(up) }));
            }
            Kind::WorkerKill | Kind::WorkerFreeze => {
                return Ok((format!("worker {}", fault.worker), self.hit_worker(fault).await?));
            }
            Kind::Transfer => {
                return Ok(("the leader".into(), errand(errands::transfer(crew.client.clone(), nodes(), until))));
            }
            Kind::RollingRestart => {
                let restart = errands::rolling_restart(crew.client.clone(), nodes(), crew.recorder.clone());
                return Ok(("all nodes".into(), errand(restart)));
            }
            Kind::Members => {
                let change = errands::come_and_go(crew.client.clone(), nodes(), crew.spare);
                return Ok((node_name(crew.spare), errand(change)));
            }
            _ => {}
        }
        let node = self.find(fault.target).await?;
        if let Some(links) = links::shape(fault.kind, count, node, self.second(fault, node), fault.measure) {
            let counter = links::counter(fault.kind);
            let before = self.packets(&links, counter)?;
            return Ok((node_name(node), Hold::Links { links, counter, before }));
        }
        let twice = self.active.iter().any(|active| active.hits(node) && active.tried.kind == fault.kind);
        anyhow::ensure!(!twice, "node {node} suffers it already");
        let hold = match fault.kind {
            Kind::Kill => {
                crew.kill(node).await?;
                Hold::Down(vec![node])
            }
            Kind::Freeze => {
                crew.nodes.lock().await.freeze(node)?;
                crew.recorder.fault(&node_name(node), history::Fault::Frozen);
                Hold::Frozen(node)
            }
            Kind::FullDisk => {
                crew.ground.fill(node)?;
                Hold::FullDisk(node)
            }
            Kind::SyncsFail => {
                std::fs::write(crew.ground.syncs_fail_file(node), "")?;
                Hold::SyncsFail(node)
            }
            Kind::ClockStep => {
                let pid = crew.nodes.lock().await.node(node)?.pid().context("it does not run")?;
                let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
                anyhow::ensure!(maps.contains("libfaketime"), "its clock cannot be set");
                Hold::Done(format!("its clock is {} s wrong", crew.ground.step_clock(node, fault.measure)?))
            }
            Kind::Memory => {
                let bytes = (fault.measure as u64) << 20;
                let before = crew.ground.limit_memory(node, None, Some(bytes))?;
                crew.kill(node).await?;
                crew.start(node).await?;
                let pid = crew.nodes.lock().await.node(node)?.pid();
                crew.ground.limit_memory(node, pid, Some(bytes))?;
                Hold::Memory { node, bytes, before }
            }
            Kind::Damage => {
                let damaged = self.active.iter().any(|active| matches!(active.hold, Hold::Damage(..)));
                anyhow::ensure!(!damaged, "a node is damaged already");
                let work =
                    errands::damage(crew.client.clone(), nodes(), crew.recorder.clone(), node, fault.measure as u64);
                Hold::Damage(node, tokio::spawn(work))
            }
            Kind::Snapshot => {
                let addr = crew.nodes.lock().await.node(node)?.client_addr.clone();
                errand(errands::snapshot(crew.client.clone(), addr, until))
            }
            other => anyhow::bail!("{} is no fault of a node", other.name()),
        };
        Ok((node_name(node), hold))
    }

    async fn hit_worker(&mut self, fault: &Fault) -> anyhow::Result<Hold> {
        let hit = |hold: &Hold| matches!(hold, Hold::Worker(one) | Hold::FrozenWorker(one) if *one == fault.worker);
        anyhow::ensure!(!self.active.iter().any(|active| hit(&active.hold)), "it is down or frozen already");
        let slot = &mut self.crew.workers[fault.worker as usize - 1];
        let worker = slot.as_mut().context("it does not run")?;
        if fault.kind == Kind::WorkerFreeze {
            worker.freeze()?;
            return Ok(Hold::FrozenWorker(fault.worker));
        }
        worker.kill().await?;
        *slot = None;
        Ok(Hold::Worker(fault.worker))
    }

    /// Takes it back; answers what shows that it came.
    async fn end(&mut self, hold: Hold) -> anyhow::Result<Option<String>> {
        let crew = &mut self.crew;
        Ok(match hold {
            Hold::Down(nodes) => {
                for node in nodes {
                    crew.start(node).await?;
                }
                Some("SIGKILL".into())
            }
            Hold::Dark(nodes) => {
                crew.ground.restore_power(&nodes)?;
                for node in nodes {
                    crew.start(node).await?;
                }
                Some("EXT4_IOC_SHUTDOWN".into())
            }
            Hold::Frozen(node) => {
                // An error: it was killed meanwhile.
                let _ = crew.nodes.lock().await.thaw(node);
                crew.recorder.fault(&node_name(node), history::Fault::Healed);
                Some("SIGSTOP".into())
            }
            Hold::Worker(worker) => {
                crew.recorder.fault(&crew.specs[worker as usize - 1].name, history::Fault::Healed);
                crew.start_worker(worker)?;
                Some("SIGKILL".into())
            }
            Hold::FrozenWorker(worker) => {
                crew.workers[worker as usize - 1].as_ref().context("it does not run")?.thaw()?;
                Some("SIGSTOP".into())
            }
            Hold::Links { links, counter, before } => {
                let packets = self.packets(&links, counter)?.saturating_sub(before);
                (packets > 0).then(|| format!("{packets} packets"))
            }
            Hold::FullDisk(node) => {
                crew.ground.empty(node)?;
                Some("no room was left".into())
            }
            Hold::SyncsFail(node) => {
                std::fs::remove_file(crew.ground.syncs_fail_file(node))?;
                // What its process did was seen by `supervise`.
                None
            }
            Hold::Memory { node, before, .. } => {
                let wanted = crew.ground.limit_memory(node, None, None)?.saturating_sub(before);
                (wanted > 0).then(|| format!("wanted more {wanted} times"))
            }
            Hold::Errand(errand) | Hold::Damage(_, errand) => Some(errand.await??),
            Hold::Done(evidence) => Some(evidence),
        })
    }

    /// Starts nodes again that ended by themselves, which some faults make them do.
    async fn supervise(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let ended = self.crew.nodes.lock().await.ended();
        for (node, status, tail) in ended {
            // It goes for good.
            if node == self.crew.spare && tail.contains("was removed from the cluster") {
                continue;
            }
            if self.active.iter().any(|active| matches!(active.hold, Hold::Damage(hit, _) if hit == node)) {
                continue;
            }
            match self.active.iter_mut().find(|active| active.may_end(node)) {
                Some(active) => active.tried.evidence = Some(format!("its process ended: {status}")),
                None if self.excused.get(&node).is_some_and(|until| now <= *until) => {}
                None => self.broken.push(format!("node {node} ended by itself ({status}):\n{tail}")),
            }
            self.crew.recorder.fault(&node_name(node), history::Fault::Killed);
            self.restarts.push((now + RESTART_AFTER, node));
        }
        let (due, later) = std::mem::take(&mut self.restarts).into_iter().partition(|(at, _)| *at <= now);
        self.restarts = later;
        for (_, node) in due {
            let down =
                self.active.iter().any(|active| matches!(&active.hold, Hold::Down(nodes) if nodes.contains(&node)));
            // It may have left meanwhile.
            if down || self.crew.nodes.lock().await.node(node).is_err() {
                continue;
            }
            self.crew.start(node).await?;
            let limit = self.active.iter().find_map(|active| match active.hold {
                Hold::Memory { node: hit, bytes, .. } if hit == node => Some(bytes),
                _ => None,
            });
            if limit.is_some() {
                let pid = self.crew.nodes.lock().await.node(node)?.pid();
                self.crew.ground.limit_memory(node, pid, limit)?;
            }
        }
        Ok(())
    }

    async fn find(&self, target: Target) -> anyhow::Result<NodeId> {
        let nodes = self.crew.nodes.lock().await;
        let first = || running(&nodes, self.plan.nodes).first().copied().context("no node runs");
        match target {
            Target::Leader => match nodes.leader(LEADER_WITHIN).await {
                Ok(leader) if leader <= self.plan.nodes && nodes.node(leader)?.runs() => Ok(leader),
                _ => first(),
            },
            Target::Node(node) if nodes.node(node)?.runs() => Ok(node),
            Target::Node(_) => first(),
        }
    }

    /// Another node than `node`: the fault's, or the next.
    fn second(&self, fault: &Fault, node: NodeId) -> NodeId {
        match fault.other {
            Target::Node(other) if other != node => other,
            _ => node % self.plan.nodes + 1,
        }
    }

    /// What the counter showed so far, of all whom these links touch.
    fn packets(&self, links: &Links, counter: &'static str) -> anyhow::Result<u64> {
        let of = |node: &NodeId| {
            let earlier = self.counted.get(&(*node, counter)).copied().unwrap_or_default();
            Ok(earlier + self.crew.ground.filtered(*node, counter)?)
        };
        links.keys().map(of).sum()
    }

    /// Brings what every node hears to what the faults that are there leave.
    fn relink(&mut self) -> anyhow::Result<()> {
        let mut wanted = Links::new();
        for active in &self.active {
            if let Hold::Links { links, .. } = &active.hold {
                wanted = links::both(wanted, links);
            }
        }
        let known: BTreeSet<NodeId> = self.heard.keys().chain(wanted.keys()).copied().collect();
        for node in known {
            let was: Inbound = self.heard.get(&node).cloned().unwrap_or_default();
            let is: Inbound = wanted.get(&node).cloned().unwrap_or_default();
            if was != is {
                for counter in COUNTERS {
                    *self.counted.entry((node, counter)).or_default() += self.crew.ground.filtered(node, counter)?;
                }
                self.crew.ground.filter(node, &is)?;
                self.heard.insert(node, is);
            }
        }
        Ok(())
    }
}

impl Active {
    /// That it hits this very node.
    fn hits(&self, node: NodeId) -> bool {
        match &self.hold {
            Hold::Down(nodes) | Hold::Dark(nodes) => nodes.contains(&node),
            Hold::Frozen(hit) | Hold::FullDisk(hit) | Hold::SyncsFail(hit) => *hit == node,
            Hold::Memory { node: hit, .. } => *hit == node,
            _ => false,
        }
    }

    /// That it may make this node's process end.
    fn may_end(&self, node: NodeId) -> bool {
        matches!(self.hold, Hold::FullDisk(_) | Hold::SyncsFail(_) | Hold::Memory { .. }) && self.hits(node)
    }
}

fn running(nodes: &local::Cluster, count: u64) -> Vec<NodeId> {
    nodes.nodes().iter().filter(|node| node.id <= count && node.runs()).map(|node| node.id).collect()
}

fn errand(what: impl Future<Output = anyhow::Result<String>> + Send + 'static) -> Hold {
    Hold::Errand(tokio::spawn(what))
}
