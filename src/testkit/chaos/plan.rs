//! What a seed says shall happen to real processes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::sim::plan::{Dice, Target};

/// A run: who takes part, for how long, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    pub nodes: u64,
    pub workers: u64,
    /// Packages a second.
    pub rate: u32,
    /// How long faults come; then all is healed.
    pub suffer: Duration,
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

/// What a fault is called, on the command line and in reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Kind {
    /// A node's process gets SIGKILL, and is started again
    Kill,
    /// All nodes at once
    KillAll,
    /// A node's process gets SIGSTOP, later SIGCONT
    Freeze,
    /// Every node in turn gets SIGTERM and is started again
    RollingRestart,
    /// One node and the others do not hear each other
    Single,
    /// The nodes fall into two halves
    Halves,
    /// Two nodes do not hear each other, the rest hears both
    Pair,
    /// Nodes stand in a ring and hear their two neighbours alone; of three, a line
    Ring,
    /// Two halves that hear one node in common
    Bridge,
    /// Clients and workers, and one node, do not hear each other
    Clients,
    /// A node sends and is not heard, or hears and cannot send
    OneWay,
    /// Some of what is sent to a node is lost
    Loss,
    /// Connections to a node are reset
    Reset,
    /// The power of all nodes fails: what no sync had put on their disks is lost
    PowerLoss,
    /// A node's disk has no room left
    FullDisk,
    /// A node's syncs fail with EIO
    SyncsFail,
    /// A node's wall clock steps
    ClockStep,
    /// A node is started again with too little memory
    Memory,
    /// Leadership is handed over
    Transfer,
    /// A node takes a snapshot at once
    Snapshot,
    /// One more node becomes a voter, and leaves again
    Members,
    /// A worker's process gets SIGKILL, and is started again
    WorkerKill,
    /// A worker's process gets SIGSTOP, later SIGCONT
    WorkerFreeze,
    /// A node's stored bytes are changed while it is down; only if asked for, and beside no other harm to nodes
    Damage,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub kind: Kind,
    /// The node that it hits, where it hits one.
    pub target: Target,
    /// Another one; with halves, who goes along.
    pub other: Target,
    /// The worker that it hits.
    pub worker: u64,
    /// How much or which way, by its kind: `percent`, `deaf`, `by_ms`, `mib`.
    pub measure: i64,
}

impl Kind {
    /// What a cluster must stand together. Damage to one node is stood only while the others are whole: what it forgot,
    /// they alone remember.
    pub const ALL: [Kind; 23] = {
        use Kind::*;
        [
            Kill,
            KillAll,
            Freeze,
            RollingRestart,
            Single,
            Halves,
            Pair,
            Ring,
            Bridge,
            Clients,
            OneWay,
            Loss,
            Reset,
            PowerLoss,
            FullDisk,
            SyncsFail,
            ClockStep,
            Memory,
            Transfer,
            Snapshot,
            Members,
            WorkerKill,
            WorkerFreeze,
        ]
    };

    /// What comes if nobody names kinds: all that a cluster must stand together. Damage to one node is stood only while
    /// the others are whole: what it forgot, they alone remember.
    /// As reports have it.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// How long it stays.
    fn lasts(self, dice: &mut Dice) -> Duration {
        match self {
            Kind::Reset => dice.ms(100, 500),
            Kind::SyncsFail => dice.ms(300, 1_500),
            Kind::Memory => dice.ms(1_000, 3_000),
            Kind::WorkerFreeze => dice.ms(300, 6_000),
            // These end by themselves; it is how long they may take.
            Kind::Transfer | Kind::Snapshot | Kind::Members | Kind::RollingRestart | Kind::Damage => {
                Duration::from_secs(8)
            }
            _ => dice.ms(300, 3_000),
        }
    }

    /// Followers have nothing to say to each other, and clients nothing to followers.
    fn target(self, dice: &mut Dice, nodes: u64) -> Target {
        let drawn = dice.target(nodes);
        if matches!(self, Kind::Pair | Kind::Clients) { Target::Leader } else { drawn }
    }

    fn measure(self, dice: &mut Dice) -> i64 {
        const HOUR_MS: i64 = 3_600_000;
        const YEAR_MS: i64 = 365 * 24 * HOUR_MS;
        match self {
            Kind::OneWay => i64::from(dice.coin()),
            Kind::Loss => 5 + dice.below(45) as i64,
            Kind::ClockStep => [HOUR_MS, -HOUR_MS, YEAR_MS, 1_500, -1_500][dice.below(5) as usize],
            Kind::Memory => 6 + dice.below(8) as i64,
            Kind::Damage => dice.below(1 << 32) as i64,
            _ => 0,
        }
    }
}

/// Before the first fault.
const CALM: Duration = Duration::from_secs(1);
/// Between the beginnings of two faults.
const EVERY_MS: (u64, u64) = (400, 2_400);
/// After the last one's beginning.
const LAST: Duration = Duration::from_secs(1);

impl Plan {
    /// Draws the plan of `seed`. Each of `kinds` comes once before any comes again.
    pub fn draw(seed: u64, nodes: u64, rate: u32, suffer: Duration, kinds: &[Kind]) -> Self {
        let mut dice = Dice::new(seed ^ 0xc4a0_5000);
        let workers = 3;
        let (mut deck, mut faults) = (Vec::new(), Vec::new());
        let mut at = CALM;
        let mut members = false;
        while at + LAST <= suffer && !kinds.is_empty() {
            if deck.is_empty() {
                deck = kinds.to_vec();
            }
            let kind: Kind = deck.swap_remove(dice.below(deck.len() as u64) as usize);
            // One more node comes and goes once.
            if kind == Kind::Members && std::mem::replace(&mut members, true) {
                if kinds == [Kind::Members] {
                    break;
                }
                continue;
            }
            let until = (at + kind.lasts(&mut dice)).min(suffer);
            let fault = Fault {
                kind,
                target: kind.target(&mut dice, nodes),
                other: Target::Node(1 + dice.below(nodes)),
                worker: 1 + dice.below(workers),
                measure: kind.measure(&mut dice),
            };
            faults.push(Planned { at, until, fault });
            at += dice.ms(EVERY_MS.0, EVERY_MS.1);
        }
        Self { seed, nodes, workers, rate, suffer, faults }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_has_one_plan_and_a_long_one_has_every_kind() {
        let draw = |seed| Plan::draw(seed, 3, 100, Duration::from_secs(60), &Kind::ALL);
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for seed in 0..20 {
            let plan = draw(seed);
            let kinds: BTreeSet<Kind> = plan.faults.iter().map(|planned| planned.fault.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len(), "seed {seed}");
            let members = plan.faults.iter().filter(|planned| planned.fault.kind == Kind::Members).count();
            assert_eq!(members, 1, "seed {seed}");
            assert!(plan.faults.iter().all(|planned| planned.until <= plan.suffer));
        }
        assert_eq!(Plan::draw(1, 3, 100, Duration::from_secs(60), &[Kind::Members]).faults.len(), 1);
        assert!(Plan::draw(1, 3, 100, Duration::from_secs(60), &[]).faults.is_empty());
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        use clap::ValueEnum;
        for kind in Kind::ALL.into_iter().chain([Kind::Damage]) {
            assert_eq!(Kind::from_str(&kind.name(), false), Ok(kind));
        }
    }
}
