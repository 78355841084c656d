//! Who catches which planted fault ([`crate::types::mutant`]).
//!
//! A layer proves that it catches a fault by running again, in a process that has it, and failing. What is asked of it is
//! named here, so that a fault which nobody catches any more shows as a test that fails.

use std::process::{Command, ExitStatus, Stdio};

use crate::types::mutant::{Mutant, VARIABLE, name};

/// Where tests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// `tests/machine`
    Machine,
    /// `src/storage`, `src/raft`: tests beside the code
    Unit,
    /// `wharf sim`
    Simulation,
}

/// A planted fault, the promise that it breaks, and who catches it.
pub struct Planted {
    pub mutant: Mutant,
    /// The promise, in README's or DESIGN's words.
    pub promise: &'static str,
    pub layer: Layer,
    /// The test, by its name or the beginning of it; of the simulation, its arguments.
    pub by: &'static str,
}

const fn planted(mutant: Mutant, promise: &'static str, layer: Layer, by: &'static str) -> Planted {
    Planted { mutant, promise, layer, by }
}

/// Every mutant, once.
pub const TABLE: &[Planted] = {
    use Layer::{Machine, Simulation, Unit};
    use Mutant::*;
    &[
        planted(SkipSync, "what is confirmed is on a quorum's disks", Simulation, SEEDS),
        planted(AckBeforeSync, "what is confirmed is on a quorum's disks", Unit, "storage::wal::tests"),
        planted(ForgetVote, "a node votes once in a term, whatever happens to it", Unit, "storage::wal::tests"),
        planted(BelieveAnyRecord, "damage is noticed", Unit, "storage::wal::tests::damage"),
        planted(PublishUnsynced, "a snapshot is whole, or is not there", Unit, "storage::snapshots"),
        planted(AcceptWipedPeer, "who lost what it confirmed has no vote", Unit, "raft::peers"),
        planted(SkipChange, "a watch has every change, once", Unit, "raft::changes"),
        planted(StaleRead, "a read shows what was confirmed before it", Simulation, SEEDS),
        planted(ClockInApply, "nodes at one index have one state", Simulation, SEEDS),
        planted(ForgetHeld, "a change of leader redelivers nothing", Simulation, SEEDS),
        planted(AcceptAnyFence, "only the current lease settles a package", Machine, ""),
        planted(ForgetDuplicates, "an id is taken once", Machine, ""),
        planted(ForgetSettlement, "a repeat gets the recorded answer", Machine, ""),
        planted(ForgetTombstones, "a snapshot is the state", Machine, ""),
        planted(BlameTheInnocent, "only what a worker caused is an attempt", Machine, ""),
        planted(LoseCredit, "work goes on after a change of leader", Machine, ""),
        planted(CreditWithoutEnd, "a worker holds no more than it asked for", Machine, ""),
        planted(NewestFirst, "first in, first out among equals", Machine, ""),
        planted(DeliverEarly, "not before its time", Machine, ""),
        planted(NeverDie, "attempts are bounded", Machine, ""),
        planted(AcceptIntoSealed, "a sealed queue takes nothing", Machine, ""),
        planted(EndOfWorkEarly, "the end of work is told when it is there", Machine, ""),
        planted(KeepBytes, "counters equal a recount", Machine, ""),
    ]
};

/// Seeds that are tried, one after the other, until one fails.
pub const SEEDS: &str = "1..20";

/// Those of one layer.
pub fn of(layer: Layer) -> impl Iterator<Item = &'static Planted> {
    TABLE.iter().filter(move |planted| planted.layer == layer)
}

/// Runs `command` in a process that has the mutant; what it prints goes nowhere.
pub fn run(mut command: Command, mutant: Mutant) -> std::io::Result<ExitStatus> {
    // A mutant's answers must never become golden ones.
    command.env_remove("UPDATE_GOLDENFILES");
    command.env(VARIABLE, name(mutant)).stdout(Stdio::null()).stderr(Stdio::null()).status()
}

/// For a test of this layer: the mutants that its own tests do not catch. Its program is run again, without the test
/// that asks.
pub fn survivors(layer: Layer, asks: &str) -> Vec<Mutant> {
    let program = std::env::current_exe().expect("a test has a program");
    let survives = |planted: &&Planted| {
        let mut again = Command::new(&program);
        again.args(["--skip", asks]).args((!planted.by.is_empty()).then_some(planted.by));
        run(again, planted.mutant).expect("it runs again").success()
    };
    of(layer).filter(survives).map(|planted| planted.mutant).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::mutant::{ALL, chosen};

    #[test]
    fn every_mutant_has_its_place_in_the_table_and_the_page() {
        let known: BTreeSet<Mutant> = TABLE.iter().map(|planted| planted.mutant).collect();
        assert_eq!(known, ALL.into_iter().collect());
        assert_eq!(TABLE.len(), ALL.len(), "each once");
        assert!(ALL.len() >= 20);
        let page = include_str!("../../docs/TESTING.md");
        for planted in TABLE {
            let layer = match planted.layer {
                Layer::Machine => "machine",
                Layer::Unit => planted.by,
                Layer::Simulation => "simulation",
            };
            let row = format!("| `{}` | {} | {layer} |", name(planted.mutant), planted.promise);
            assert!(page.contains(&row), "docs/TESTING.md lacks the row\n{row}");
        }
    }

    #[test]
    fn mutants_are_caught_beside_the_code() {
        assert_eq!(chosen(), None);
        assert_eq!(survivors(Layer::Unit, "mutants_are_caught"), []);
    }
}
