//! A machine on a stage: applies batches, keeps the log, recounts the invariants after each step
//! and proves at the end that the log replays.

use std::collections::BTreeMap;

use prost::Message as _;
use wharf::machine::command::{Batch, Command, Op};
use wharf::machine::{Applied, Effect, Machine, Meta};
use wharf::proto::internal::SnapshotRecord;

use crate::follower::Follower;

/// Snapshots taken along a log when its replay is proved.
const SNAPSHOTS: usize = 24;

/// One log entry and what came of it, as text that equals only if all of it equals.
struct Entry {
    meta: Meta,
    /// None: an entry without commands (blank, membership).
    batch: Option<Vec<u8>>,
    gave: String,
}

/// See the module.
pub struct Stage {
    pub machine: Machine,
    /// The stamps that the next batch gets.
    pub ticks: u64,
    pub wall: u64,
    pub term: u64,
    log: Vec<Entry>,
    /// Who got which fence, by effects alone.
    granted: BTreeMap<u64, String>,
    /// Sees the changes only.
    follower: Follower,
}

/// Where the wall clock of every stage begins: 2026-01-01T00:00:00Z.
pub const WALL_BEGIN: u64 = 1_767_225_600_000;

impl Stage {
    pub fn new() -> Self {
        Self {
            machine: Machine::new(),
            ticks: 0,
            wall: WALL_BEGIN,
            term: 1,
            log: Vec::new(),
            granted: BTreeMap::new(),
            follower: Follower::default(),
        }
    }

    /// Applies one batch with the stamps as they are. The error says which law broke.
    pub fn apply(&mut self, ops: Vec<Op>) -> Result<Applied, String> {
        let commands: Vec<Command> = ops.into_iter().map(|op| Command { op: Some(op) }).collect();
        let count = commands.len();
        let batch = Batch { min_version: 1, ticks: self.ticks, wall: self.wall, commands };
        let meta = Meta { index: self.log.len() as u64 + 1, term: self.term };
        // Through the stored bytes, as in life.
        let bytes = batch.encode_to_vec();
        let batch = Batch::decode(bytes.as_slice()).map_err(|e| format!("batch does not decode: {e}"))?;
        let before = self.machine.summary().revision;
        let applied = self.machine.apply(meta, &batch).map_err(|e| format!("the machine halted: {e}"))?;
        self.log.push(Entry { meta, batch: Some(bytes), gave: text(&applied) });

        let violations = self.machine.check();
        if !violations.is_empty() {
            return Err(format!("invariants broken at index {}:\n  {}", meta.index, violations.join("\n  ")));
        }
        if applied.outcomes.len() != count {
            return Err(format!("{count} commands, {} outcomes", applied.outcomes.len()));
        }
        let mut last = before;
        for outcome in &applied.outcomes {
            if outcome.revision < last {
                return Err(format!("the revision fell from {last} to {}", outcome.revision));
            }
            last = outcome.revision;
        }
        self.watch_fences(&applied.effects)?;
        self.follower.follow(&applied, &self.machine)?;
        Ok(applied)
    }

    /// An entry without commands.
    pub fn skip(&mut self) {
        let meta = Meta { index: self.log.len() as u64 + 1, term: self.term };
        self.machine.skip(meta);
        self.log.push(Entry { meta, batch: None, gave: String::new() });
    }

    /// Fences grow with each batch; one that is sent again goes to the session that holds it.
    fn watch_fences(&mut self, effects: &[Effect]) -> Result<(), String> {
        let highest_before = self.granted.keys().next_back().copied().unwrap_or(0);
        for effect in effects {
            let Effect::Deliver { session, deliveries, .. } = effect else { continue };
            let mut last = 0;
            for delivery in deliveries {
                let fence = delivery.fence.0;
                if fence <= last {
                    return Err(format!("{session} gets fence {fence} after {last}: not oldest first"));
                }
                last = fence;
                match self.granted.get(&fence) {
                    Some(holder) if **holder == **session => {}
                    Some(holder) => return Err(format!("fence {fence} of {holder} is delivered to {session}")),
                    None if fence <= highest_before => {
                        return Err(format!("fence {fence} is granted after {highest_before}"));
                    }
                    None => {
                        self.granted.insert(fence, session.to_string());
                    }
                }
            }
        }
        Ok(())
    }

    /// How many entries were applied.
    pub fn steps(&self) -> usize {
        self.log.len()
    }

    /// Where a replay from a snapshot parts from the one from scratch, for the report.
    fn parting(&self, at: usize, snapshot: &[u8]) -> String {
        let mut scratch = Machine::new();
        for entry in &self.log[..at] {
            if let Err(why) = again(&mut scratch, entry, "from scratch") {
                return why;
            }
        }
        let mut reader = snapshot;
        let Ok(mut restored) = Machine::restore(&mut reader) else { return "unreadable".into() };
        for entry in &self.log[at..] {
            let (first, second) = (again(&mut scratch, entry, ""), again(&mut restored, entry, ""));
            if let Err(why) = first.and(second) {
                return why;
            }
            let (left, right) = (written(&scratch), written(&restored));
            if left != right {
                let batch = entry.batch.as_ref().map(|bytes| Batch::decode(bytes.as_slice()));
                let (left, right) = (records(&left), records(&right));
                let place = left.iter().zip(&right).position(|(a, b)| a != b).unwrap_or(left.len().min(right.len()));
                return format!(
                    "\n  they part at index {}: {batch:?}\n  scratch  {:?}\n  restored {:?}",
                    entry.meta.index,
                    left.get(place),
                    right.get(place)
                );
            }
        }
        String::new()
    }

    /// A node that delivers nothing comes to the same state, and gives all but the deliveries.
    fn prove_without_deliveries(&self, end: &str) -> Result<(), String> {
        let (mut leader, mut follower) = (Machine::new(), Machine::new());
        follower.deliver(false);
        for entry in &self.log {
            let (Some(mut gives), Some(gave)) = (entry.apply(&mut leader)?, entry.apply(&mut follower)?) else {
                continue;
            };
            gives.effects.retain(|effect| !matches!(effect, Effect::Deliver { .. }));
            let (gives, gave) = (text(&gives), text(&gave));
            if gives != gave {
                return Err(format!("without deliveries: index {}\n  {gave}\n  {gives}", entry.meta.index));
            }
        }
        if follower.freeze().hash() != end {
            return Err("without deliveries the log ends in another state".into());
        }
        Ok(())
    }

    /// The law of replay: from scratch, and from snapshots at many places, the log gives the same
    /// bytes, answers, effects and changes, so also the same next assignments.
    pub fn prove_replay(&self) -> Result<(), String> {
        let end = self.machine.freeze().hash();
        self.follower.knows(&written(&self.machine))?;
        let every = self.log.len().div_ceil(SNAPSHOTS).max(1);
        let mut scratch = Machine::new();
        let mut snapshots = Vec::new();
        for (at, entry) in self.log.iter().enumerate() {
            if at % every == 0 {
                let frozen = scratch.freeze();
                let mut bytes = Vec::new();
                frozen.write(&mut bytes).map_err(|e| format!("snapshot at {at}: {e}"))?;
                snapshots.push((at, frozen.hash(), bytes));
            }
            again(&mut scratch, entry, "from scratch")?;
        }
        if scratch.freeze().hash() != end {
            return Err("a replay from scratch ends in another state".into());
        }
        self.prove_without_deliveries(&end)?;
        for (at, hash, bytes) in snapshots {
            let from = format!("from the snapshot before index {}", at + 1);
            let mut reader = bytes.as_slice();
            let mut machine = Machine::restore(&mut reader).map_err(|e| format!("{from}: {e}"))?;
            if machine.freeze().hash() != hash {
                return Err(format!("{from}: the restored state has another hash"));
            }
            let mut rewritten = Vec::new();
            machine.freeze().write(&mut rewritten).map_err(|e| format!("{from}: {e}"))?;
            if rewritten != bytes {
                return Err(format!("{from}: the restored state is written in other bytes"));
            }
            for entry in &self.log[at..] {
                again(&mut machine, entry, &from)?;
            }
            let violations = machine.check();
            if !violations.is_empty() {
                return Err(format!("{from}: invariants broken: {}", violations.join("; ")));
            }
            if machine.freeze().hash() != end {
                return Err(format!("{from}: the replay ends in another state{}", self.parting(at, &bytes)));
            }
        }
        Ok(())
    }
}

/// A snapshot's records as text.
fn records(bytes: &[u8]) -> Vec<String> {
    let mut rest = bytes;
    let mut records = Vec::new();
    while !rest.is_empty() {
        match SnapshotRecord::decode_length_delimited(&mut rest) {
            Ok(record) => records.push(format!("{record:?}")),
            Err(error) => {
                records.push(error.to_string());
                break;
            }
        }
    }
    records
}

/// The state as written.
fn written(machine: &Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = machine.freeze().write(&mut bytes) {
        return error.to_string().into_bytes();
    }
    bytes
}

impl Entry {
    /// Applies it to another machine; nothing for an entry without commands.
    fn apply(&self, machine: &mut Machine) -> Result<Option<Applied>, String> {
        let Some(batch) = &self.batch else {
            machine.skip(self.meta);
            return Ok(None);
        };
        let batch = Batch::decode(batch.as_slice()).map_err(|e| e.to_string())?;
        let applied = machine.apply(self.meta, &batch).map_err(|e| format!("index {}: {e}", self.meta.index))?;
        Ok(Some(applied))
    }
}

fn again(machine: &mut Machine, entry: &Entry, from: &str) -> Result<(), String> {
    let Some(applied) = entry.apply(machine).map_err(|why| format!("{from}: {why}"))? else { return Ok(()) };
    let gave = text(&applied);
    if gave != entry.gave {
        return Err(format!(
            "{from}: index {} gives something else\n  first: {}\n  now:   {gave}",
            entry.meta.index, entry.gave
        ));
    }
    Ok(())
}

fn text(applied: &Applied) -> String {
    format!("{applied:?}")
}
