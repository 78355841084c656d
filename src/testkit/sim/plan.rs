//! What a seed says shall happen.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::world::mix;

/// A run: who takes part, for how long, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    pub nodes: u64,
    /// So many of them form the cluster; the others wait to be added.
    pub founders: u64,
    /// What is done about members, one after the other.
    pub changes: Vec<Change>,
    pub workers: u64,
    /// How long faults come; then all is healed.
    pub suffer: Duration,
    /// By how much the wall clock of each node is wrong from the beginning, in milliseconds.
    pub skews_ms: Vec<i64>,
    /// In order of time.
    pub faults: Vec<Planned>,
}

/// A fault, when it comes and when it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    pub at: Duration,
    pub until: Duration,
    pub fault: Fault,
}

/// Whom a fault hits, as far as a plan can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Who leads just then; without one the first node that runs.
    Leader,
    Node(u64),
}

/// What is left of unsynced writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// The process is killed: what it wrote is there.
    Killed,
    /// All of it is lost.
    Lost,
    /// Any sectors of it are lost.
    Torn,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// A node's process or power ends; it is started again.
    Crash { target: Target, power: Power },
    /// The same for all nodes at once.
    CrashAll { power: Power },
    /// Nodes `apart` do not hear the others, nor the others them.
    Partition { apart: Vec<Target> },
    /// The target sends and is not heard, or hears and cannot send.
    OneWay { target: Target, deaf: bool },
    /// Two nodes do not hear each other; the rest hears both.
    Bridge { between: (Target, Target) },
    /// What goes to and from the target arrives when this ends, as if it had been frozen.
    Stall { target: Target },
    /// Messages to and from the target take up to so many milliseconds.
    Delay { target: Target, ms: u64 },
    /// A node's wall clock steps.
    ClockStep { target: Target, by_ms: i64 },
    /// Each flush of a node's log takes so many milliseconds more.
    SlowDisk { target: Target, ms: u64 },
    /// A node's disk has no room left.
    FullDisk { target: Target },
    /// Leadership is handed over.
    Transfer { to: u64 },
    /// A node takes a snapshot at once.
    Snapshot { node: u64 },
    /// A worker's process ends, and starts again.
    WorkerCrash { worker: u64 },
    /// A worker hears nobody, or is not heard, or both.
    WorkerCut { worker: u64, deaf: bool, mute: bool },
}

/// A change of members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A node that waits becomes a learner.
    Add(u64),
    /// Learners become voters.
    Promote(Vec<u64>),
    Remove(Vec<u64>),
}

impl Fault {
    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Crash { power: Power::Killed, .. } => "kill",
            Fault::Crash { .. } => "power_loss",
            Fault::CrashAll { power: Power::Killed } => "kill_all",
            Fault::CrashAll { .. } => "power_loss_all",
            Fault::Partition { .. } => "partition",
            Fault::OneWay { .. } => "one_way",
            Fault::Bridge { .. } => "bridge",
            Fault::Stall { .. } => "stall",
            Fault::Delay { .. } => "delay",
            Fault::ClockStep { .. } => "clock_step",
            Fault::SlowDisk { .. } => "slow_disk",
            Fault::FullDisk { .. } => "full_disk",
            Fault::Transfer { .. } => "transfer",
            Fault::Snapshot { .. } => "snapshot",
            Fault::WorkerCrash { .. } => "worker_kill",
            Fault::WorkerCut { .. } => "worker_cut",
        }
    }
}

const HOUR_MS: i64 = 3_600_000;
const YEAR_MS: i64 = 365 * 24 * HOUR_MS;
/// Before the first fault: a cluster forms, and work begins.
const CALM: Duration = Duration::from_secs(3);
/// After the last one, so that it lasts a while.
const LAST: Duration = Duration::from_secs(1);
/// Between the beginnings of two faults, at most.
const EVERY_MS: u64 = 2_500;

impl Plan {
    /// Draws the plan of `seed`.
    pub fn draw(seed: u64, suffer: Duration) -> Self {
        Self::draw_of(seed, suffer, None)
    }

    fn draw_of(seed: u64, suffer: Duration, nodes: Option<u64>) -> Self {
        let mut dice = Dice::new(seed);
        let drawn = if dice.below(4) == 0 { 5 } else { 3 };
        let nodes = nodes.unwrap_or(drawn);
        let workers = 2 + dice.below(3);
        let skews_ms = (0..nodes).map(|_| dice.skew()).collect();
        let mut faults = Vec::new();
        let mut at = CALM + dice.ms(1, EVERY_MS);
        while at + LAST <= suffer {
            let until = (at + dice.ms(100, 4_000)).min(suffer);
            faults.push(Planned { at, until, fault: dice.fault(nodes, workers) });
            at += dice.ms(1, EVERY_MS);
        }
        Self { seed, nodes, founders: nodes, changes: Vec::new(), workers, suffer, skews_ms, faults }
    }

    /// The same with members that come and go: three found the cluster, two join them, two leave.
    pub fn with_changes(seed: u64, suffer: Duration) -> Self {
        let mut dice = Dice::new(seed ^ 0x3e3b_e125);
        let plan = Self::draw_of(seed, suffer, Some(5));
        let first = 1 + dice.below(3);
        let second = 1 + (first + dice.below(2)) % 3;
        let changes = if dice.coin() {
            vec![Change::Add(4), Change::Add(5), Change::Promote(vec![4, 5]), Change::Remove(vec![first, second])]
        } else {
            let swap = |joins, leaves| [Change::Add(joins), Change::Promote(vec![joins]), Change::Remove(vec![leaves])];
            swap(4, first).into_iter().chain(swap(5, second)).collect()
        };
        Self { founders: 3, changes, ..plan }
    }

    /// Who votes once all changes are made.
    pub fn voters(&self) -> Vec<u64> {
        let mut voters: BTreeSet<u64> = (1..=self.founders).collect();
        for change in &self.changes {
            match change {
                Change::Add(_) => {}
                Change::Promote(nodes) => voters.extend(nodes),
                Change::Remove(nodes) => voters.retain(|voter| !nodes.contains(voter)),
            }
        }
        voters.into_iter().collect()
    }

    /// The same with only some of its faults, by their places.
    pub fn only(mut self, places: &[usize]) -> Self {
        let mut place = 0;
        self.faults.retain(|_| {
            place += 1;
            places.contains(&(place - 1))
        });
        self
    }
}

/// Draws from a seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % bound.max(1)
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    /// Most clocks are right; some are an hour wrong, a few by a year.
    fn skew(&mut self) -> i64 {
        match self.below(8) {
            0 => HOUR_MS,
            1 => -HOUR_MS,
            2 => YEAR_MS,
            _ => 0,
        }
    }

    pub fn target(&mut self, nodes: u64) -> Target {
        if self.coin() { Target::Leader } else { Target::Node(1 + self.below(nodes)) }
    }

    fn power(&mut self) -> Power {
        [Power::Killed, Power::Lost, Power::Torn][self.below(3) as usize]
    }

    fn fault(&mut self, nodes: u64, workers: u64) -> Fault {
        let target = self.target(nodes);
        match self.below(28) {
            0..=4 => Fault::Crash { target, power: self.power() },
            5 => Fault::CrashAll { power: self.power() },
            6..=7 => Fault::Partition { apart: vec![target] },
            8 if nodes > 3 => Fault::Partition { apart: vec![target, self.target(nodes)] },
            8..=9 => Fault::OneWay { target, deaf: self.coin() },
            10..=11 => Fault::Bridge { between: (target, self.target(nodes)) },
            12..=13 => Fault::Stall { target },
            14..=15 => Fault::Delay { target, ms: 5 + self.below(400) },
            16..=17 => {
                let by_ms = [HOUR_MS, -HOUR_MS, YEAR_MS, -YEAR_MS, 1_500, -1_500][self.below(6) as usize];
                Fault::ClockStep { target, by_ms }
            }
            18 => Fault::SlowDisk { target, ms: 5 + self.below(300) },
            19 => Fault::FullDisk { target },
            20..=21 => Fault::Transfer { to: 1 + self.below(nodes) },
            22..=23 => Fault::Snapshot { node: 1 + self.below(nodes) },
            24..=25 => Fault::WorkerCrash { worker: 1 + self.below(workers) },
            _ => {
                let (worker, deaf) = (1 + self.below(workers), self.coin());
                Fault::WorkerCut { worker, deaf, mute: !deaf || self.coin() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_seeds_together_have_all_faults() {
        let draw = |seed| Plan::draw(seed, Duration::from_secs(20));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        let plans: Vec<Plan> = (0..200).map(draw).collect();
        let names: BTreeSet<_> =
            plans.iter().flat_map(|plan| &plan.faults).map(|planned| planned.fault.name()).collect();
        assert_eq!(names.len(), 16, "{names:?}");
        assert!(plans.iter().all(|plan| plan.faults.iter().all(|planned| planned.until <= plan.suffer)));
        assert!(plans.iter().any(|plan| plan.nodes == 5));
    }

    #[test]
    fn members_come_and_go_and_three_are_left() {
        for seed in 0..50 {
            let plan = Plan::with_changes(seed, Duration::from_secs(20));
            let voters = plan.voters();
            assert!(voters.len() == 3 && voters.contains(&4) && voters.contains(&5), "{seed}: {:?}", plan.changes);
        }
    }

    #[test]
    fn a_part_of_a_plan_keeps_the_order() {
        let plan = Plan::draw(3, Duration::from_secs(20));
        let part = plan.clone().only(&[2, 0]);
        assert_eq!(part.faults, [plan.faults[0].clone(), plan.faults[2].clone()]);
    }
}
