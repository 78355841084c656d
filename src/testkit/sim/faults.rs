//! Does what a plan says to a stage, and takes it back.
//!
//! Faults overlap: what a link does follows from all that are there, the worst first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::history::{self, Recorder};
use super::plan::{Fault, Plan, Power, Target};
use super::stage::{Stage, host};
use super::world::mix;
use crate::storage::disk::Crash;

/// What a call to the cluster shall do, carried out by the operator inside.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Transfer { to: u64 },
    Snapshot { node: u64 },
}

/// A fault of the plan that is there.
struct Active {
    place: usize,
    until: Duration,
    hold: Hold,
}

/// What it keeps from working.
enum Hold {
    /// Nodes that are down.
    Down(Vec<u64>),
    Worker(String),
    /// Nothing goes these ways.
    Cut {
        links: Vec<(String, String)>,
        worker: Option<String>,
    },
    Stall(String),
    Delay(String, Duration),
    SlowDisk(u64),
    FullDisk(u64),
}

/// What a link does in one direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Link {
    #[default]
    Well,
    Held,
    Cut,
}

/// Two hosts, in order of their names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Pair(String, String);

impl Pair {
    /// The pair, and which way of it goes `from` one `to` the other.
    fn of(from: &str, to: &str) -> (Self, usize) {
        let backwards = from > to;
        let (a, b) = if backwards { (to, from) } else { (from, to) };
        (Self(a.to_owned(), b.to_owned()), usize::from(backwards))
    }

    /// turmoil holds and releases both ways at once.
    fn change(&self, was: [Link; 2], is: [Link; 2], stage: &Stage) {
        let Self(a, b) = self;
        if was.contains(&Link::Held) {
            stage.release(a, b);
        }
        if is.contains(&Link::Held) {
            stage.hold(a, b);
        }
        for (state, (from, to)) in is.into_iter().zip([(a, b), (b, a)]) {
            match state {
                Link::Cut => stage.cut(from, to),
                Link::Well => stage.mend(from, to),
                Link::Held => {}
            }
        }
    }
}

/// That a fault came.
#[derive(Clone, Debug)]
pub struct Landed {
    pub name: String,
    pub from: Duration,
    pub until: Duration,
}

/// See the module.
pub struct Faults {
    plan: Plan,
    next: usize,
    active: Vec<Active>,
    links: BTreeMap<Pair, [Link; 2]>,
    orders: mpsc::Sender<Order>,
    landed: Vec<Landed>,
}

impl Faults {
    pub fn new(plan: Plan, orders: mpsc::Sender<Order>) -> Self {
        Self { plan, next: 0, active: Vec::new(), links: BTreeMap::new(), orders, landed: Vec::new() }
    }

    /// What came so far.
    pub fn landed(&self) -> &[Landed] {
        &self.landed
    }

    /// Ends what is over by now, and begins what is due.
    pub fn turn(&mut self, stage: &mut Stage, recorder: &Recorder) {
        let now = stage.elapsed();
        let (over, active) = std::mem::take(&mut self.active).into_iter().partition(|active| active.until <= now);
        self.active = active;
        let mut moved = !Vec::is_empty(&over);
        for active in over {
            self.end(active, stage, recorder);
        }
        while let Some(planned) = self.plan.faults.get(self.next).filter(|planned| planned.at <= now).cloned() {
            let place = self.next;
            self.next += 1;
            let Some(hold) = self.begin(&planned.fault, stage, recorder) else { continue };
            self.landed.push(Landed { name: planned.fault.name().to_owned(), from: now, until: planned.until });
            if let Some(hold) = hold {
                self.active.push(Active { place, until: planned.until, hold });
            }
            moved = true;
        }
        if moved {
            self.relink(stage);
        }
    }

    /// Ends everything at once.
    pub fn heal(&mut self, stage: &mut Stage, recorder: &Recorder) {
        self.next = self.plan.faults.len();
        for active in std::mem::take(&mut self.active) {
            self.end(active, stage, recorder);
        }
        self.relink(stage);
    }

    /// None: it could not come. Some(None): it came, and there is nothing to end.
    fn begin(&self, fault: &Fault, stage: &mut Stage, recorder: &Recorder) -> Option<Option<Hold>> {
        let node = |target: &Target, stage: &Stage| self.find(*target, stage);
        let everybody = || self.everybody(stage);
        let hold = match fault {
            Fault::Crash { target, power } => {
                let node = node(target, stage)?;
                self.crash(node, *power, stage, recorder);
                Hold::Down(vec![node])
            }
            Fault::CrashAll { power } => {
                let up: Vec<u64> = (1..=stage.nodes()).filter(|node| stage.runs(*node)).collect();
                for node in &up {
                    self.crash(*node, *power, stage, recorder);
                }
                Hold::Down(up)
            }
            Fault::Partition { apart } => {
                let apart: BTreeSet<u64> = apart.iter().filter_map(|target| node(target, stage)).collect();
                let nodes = 1..=stage.nodes();
                let others = nodes.filter(|node| !apart.contains(node)).map(host);
                let links = others.flat_map(|other| apart.iter().flat_map(move |node| both(&host(*node), &other)));
                let links: Vec<_> = links.collect();
                (!links.is_empty()).then_some(Hold::Cut { links, worker: None })?
            }
            Fault::OneWay { target, deaf } => {
                let node = node(target, stage)?;
                let others = (1..=stage.nodes()).filter(|other| *other != node).map(host);
                let one = |other: String| if *deaf { (other, host(node)) } else { (host(node), other) };
                Hold::Cut { links: others.map(one).collect(), worker: None }
            }
            Fault::Bridge { between: (a, b) } => {
                let (a, b) = (node(a, stage)?, node(b, stage)?);
                let links = (a != b).then(|| both(&host(a), &host(b)).to_vec())?;
                Hold::Cut { links, worker: None }
            }
            Fault::Stall { target } => Hold::Stall(host(node(target, stage)?)),
            Fault::Delay { target, ms } => {
                let name = host(node(target, stage)?);
                let most = Duration::from_millis(*ms);
                for other in everybody().into_iter().filter(|other| *other != name) {
                    stage.delay(&name, &other, Some(most));
                }
                Hold::Delay(name, most)
            }
            Fault::ClockStep { target, by_ms } => {
                stage.step_clock(node(target, stage)?, *by_ms);
                return Some(None);
            }
            Fault::SlowDisk { target, ms } => {
                let node = node(target, stage)?;
                stage.disks()[&node].slow_down(Duration::from_millis(*ms));
                Hold::SlowDisk(node)
            }
            Fault::FullDisk { target } => {
                let node = node(target, stage)?;
                stage.disks()[&node].fill();
                Hold::FullDisk(node)
            }
            Fault::Transfer { to } => {
                self.orders.try_send(Order::Transfer { to: *to }).ok()?;
                return Some(None);
            }
            Fault::Snapshot { node } => {
                self.orders.try_send(Order::Snapshot { node: *node }).ok()?;
                return Some(None);
            }
            Fault::WorkerCrash { worker } => {
                let name = worker_name(*worker);
                let dead = |active: &Active| matches!(&active.hold, Hold::Worker(dead) if *dead == name);
                if self.active.iter().any(dead) {
                    return None;
                }
                recorder.fault(&name, history::Fault::Killed);
                stage.crash_host(&name);
                Hold::Worker(name)
            }
            Fault::WorkerCut { worker, deaf, mute } => {
                let name = worker_name(*worker);
                let mut links = Vec::new();
                for node in (1..=stage.nodes()).map(host) {
                    links.extend(deaf.then(|| (node.clone(), name.clone())));
                    links.extend(mute.then(|| (name.clone(), node)));
                }
                recorder.fault(&name, history::Fault::CutOff);
                Hold::Cut { links, worker: Some(name) }
            }
        };
        Some(Some(hold))
    }

    fn end(&self, active: Active, stage: &mut Stage, recorder: &Recorder) {
        match active.hold {
            Hold::Down(nodes) => {
                for node in nodes {
                    recorder.fault(&host(node), history::Fault::Healed);
                    stage.start(node);
                }
            }
            Hold::Worker(name) => {
                recorder.fault(&name, history::Fault::Healed);
                stage.start_host(&name);
            }
            Hold::Cut { worker: Some(name), .. } => recorder.fault(&name, history::Fault::Healed),
            Hold::Cut { worker: None, .. } | Hold::Stall(_) => {}
            Hold::Delay(name, _) => {
                for other in self.everybody(stage).into_iter().filter(|other| *other != name) {
                    stage.delay(&name, &other, None);
                }
                // The longest of those that are left.
                let left = self.active.iter().filter_map(|active| match &active.hold {
                    Hold::Delay(name, most) => Some((name, most)),
                    _ => None,
                });
                for (name, most) in left {
                    for other in self.everybody(stage).into_iter().filter(|other| other != name) {
                        stage.delay(name, &other, Some(*most));
                    }
                }
            }
            Hold::SlowDisk(node) => stage.disks()[&node].slow_down(Duration::ZERO),
            Hold::FullDisk(node) => stage.disks()[&node].set_capacity(None),
        }
    }

    fn crash(&self, node: u64, power: Power, stage: &mut Stage, recorder: &Recorder) {
        recorder.fault(&host(node), history::Fault::Killed);
        let crash = match power {
            Power::Killed => Crash::KeepUnsynced,
            Power::Lost => Crash::DropUnsynced,
            Power::Torn => Crash::Tear(mix(self.plan.seed ^ stage.elapsed().as_micros() as u64 ^ node)),
        };
        stage.crash(node, crash);
    }

    /// The node that is meant, if it runs.
    fn find(&self, target: Target, stage: &Stage) -> Option<u64> {
        let first = || (1..=stage.nodes()).find(|node| stage.runs(*node));
        match target {
            Target::Leader => stage.leader().or_else(first),
            Target::Node(node) => Some(node).filter(|node| stage.runs(*node)),
        }
    }

    fn everybody(&self, stage: &Stage) -> Vec<String> {
        let workers = (1..=self.plan.workers).map(worker_name);
        let reorganizer = (!self.plan.changes.is_empty()).then(|| REORGANIZER.to_owned());
        (1..=stage.nodes())
            .map(host)
            .chain(workers)
            .chain([PRODUCER, OPERATOR].map(str::to_owned))
            .chain(reorganizer)
            .collect()
    }

    /// Brings every link to what the faults that are there make of it, the worst first.
    fn relink(&mut self, stage: &Stage) {
        let mut wanted: BTreeMap<Pair, [Link; 2]> = BTreeMap::new();
        let mut want = |from: &str, to: &str, state: Link| {
            let (pair, way) = Pair::of(from, to);
            let link = &mut wanted.entry(pair).or_default()[way];
            *link = state.max(*link);
        };
        for active in &self.active {
            match &active.hold {
                Hold::Cut { links, .. } => links.iter().for_each(|(from, to)| want(from, to, Link::Cut)),
                Hold::Stall(name) => {
                    for other in self.everybody(stage).iter().filter(|other| *other != name) {
                        want(name, other, Link::Held);
                        want(other, name, Link::Held);
                    }
                }
                _ => {}
            }
        }
        let known: BTreeSet<Pair> = self.links.keys().chain(wanted.keys()).cloned().collect();
        for pair in known {
            let was = self.links.get(&pair).copied().unwrap_or_default();
            let is = wanted.get(&pair).copied().unwrap_or_default();
            if was != is {
                pair.change(was, is, stage);
                self.links.insert(pair, is);
            }
        }
    }

    /// Which faults of the plan are there now.
    pub fn there(&self) -> Vec<usize> {
        self.active.iter().map(|active| active.place).collect()
    }
}

pub const PRODUCER: &str = "producer";
pub const OPERATOR: &str = "operator";
pub const REORGANIZER: &str = "reorganizer";

pub fn worker_name(worker: u64) -> String {
    format!("worker-{worker}")
}

fn both(a: &str, b: &str) -> [(String, String); 2] {
    [(a.to_owned(), b.to_owned()), (b.to_owned(), a.to_owned())]
}
