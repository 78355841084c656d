//! The truth. A pure state machine: `apply(state, meta, batch) -> replies + effects + changes`.
//!
//! [`state`] is what is stored, [`index`] what is computed from it. `on/` has one room for each
//! family of commands, [`lease`] what they share, [`matching`] decides who gets what.
//!
//! Invariants: no clock, randomness, IO, environment, threads, async, floats or logging; every
//! number that `apply` reads is in the state or fixed by the machine version; hash maps only for
//! point look-ups. A refusal ([`Reject`]) is data and changes nothing. The same log gives the
//! same state, replies, effects and changes on every node, also on one that began from a snapshot.
//! `check` lists what else holds after each step.
//!
//! Absent on purpose: who is leader, which streams live, where bytes are stored.

pub mod change;
mod check;
pub mod command;
pub mod effect;
mod index;
mod lease;
mod life;
mod list;
mod matching;
mod on;
mod read;
pub mod reject;
mod settings;
mod snapshot;
mod state;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;
mod timers;
pub mod version;
pub mod view;
mod warm;

pub use change::Change;
pub use command::{Outcome, Reply};
pub use effect::Effect;
pub use list::{Listed, Wanted};
pub use reject::Reject;
pub use snapshot::Frozen;

use command::{Batch, Op};
use index::Index;
use state::{QueueNo, State};

use crate::types::{Ticks, Wall, limits};

/// Where in the log a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The log index.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
}

/// What one batch gave.
#[derive(Debug, Default)]
pub struct Applied {
    /// One for each command, in order.
    pub outcomes: Vec<Outcome>,
    /// In the order in which they must leave. Only the leader acts on them.
    pub effects: Vec<Effect>,
    /// What happened to packages, in the order of revisions. The same on every node.
    pub changes: Vec<Change>,
}

/// The machine cannot go on: a broken invariant, or bytes of a later version. Halts the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the batch needs machine version {needs}, this program knows up to {knows}: upgrade the node")]
    NewerVersion { needs: u32, knows: u32 },
    #[error("unknown command in the batch: upgrade the node")]
    UnknownCommand,
    #[error("invariant broken: {0}")]
    Invariant(String),
    #[error("unreadable snapshot: {0}")]
    Snapshot(String),
}

/// The state machine. Made empty, or restored from a snapshot; changed only by [`Machine::apply`].
pub struct Machine {
    state: State,
    index: Index,
    now: Now,
    /// The highest machine version that this program applies. No part of the state.
    knows: u32,
    /// Somebody will deliver what is granted. No part of the state.
    delivers: bool,
}

/// What the batch under way gathers. Empty between batches.
#[derive(Default)]
struct Now {
    effects: Vec<Effect>,
    told: Vec<Change>,
    /// Queues whose last live package went: perhaps ended.
    emptied: Vec<QueueNo>,
    /// Packages changed by the command under way.
    changes: usize,
}

type Result<T> = std::result::Result<T, Reject>;

/// About how many changes a command makes, with those of what is leased for it.
fn expected(op: &Op) -> usize {
    match op {
        Op::Submit(op) => op.packages.len(),
        Op::Complete(op) => 2 * op.completions.len(),
        _ => 0,
    }
}

/// How many packages a command submitted or settled.
fn packages(outcome: &Outcome) -> usize {
    match &outcome.result {
        Ok(Reply::Submitted(all)) => all.len(),
        Ok(Reply::Settled(all)) => all.len(),
        _ => 0,
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// The empty state, as every cluster begins.
    pub fn new() -> Self {
        Self::of(State::new())
    }

    fn of(state: State) -> Self {
        Self { index: Index::rebuild(&state), state, now: Now::default(), knows: version::CURRENT, delivers: true }
    }

    /// The same for a program that applies versions up to `knows`.
    pub fn knowing(self, knows: u32) -> Self {
        Self { knows, ..self }
    }

    /// Without `Deliver` effects, for a node that would throw them away; or with them again.
    pub fn deliver(&mut self, delivers: bool) {
        self.delivers = delivers;
    }

    /// Applies one log entry. Total: refusals are outcomes; an error halts the node.
    pub fn apply(&mut self, meta: Meta, batch: &Batch) -> std::result::Result<Applied, Broken> {
        version::check(batch, self.knows)?;
        self.stamp(meta, batch);

        // Room at once: growing would copy what is there again and again.
        self.now.told.reserve(batch.commands.iter().filter_map(|command| command.op.as_ref()).map(expected).sum());

        // Whatever a worker or client said by now beats the passing of time.
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        outcomes.resize_with(batch.commands.len(), || None);
        for ticks in [false, true] {
            for (command, outcome) in batch.commands.iter().zip(&mut outcomes) {
                let op = command.op.as_ref().ok_or(Broken::UnknownCommand)?;
                if matches!(op, Op::Tick(_)) == ticks {
                    *outcome = Some(self.run(meta, op));
                }
            }
        }
        self.warm_ready(outcomes.iter().flatten().map(packages).sum());
        self.match_packages();
        // Last, for one command may end a queue and the next bring it work again.
        self.announce_ends();
        let outcomes = outcomes.into_iter().flatten().collect();
        let (effects, changes) = (std::mem::take(&mut self.now.effects), std::mem::take(&mut self.now.told));
        Ok(Applied { outcomes, effects, changes })
    }

    /// Notes an entry without commands (blank, membership).
    pub fn skip(&mut self, meta: Meta) {
        self.state.index = meta.index;
        self.state.term = meta.term;
    }

    /// Both clocks go forward only, and ticks by no more than one step a batch.
    fn stamp(&mut self, meta: Meta, batch: &Batch) {
        let latest = self.state.ticks.plus(limits::MAX_TICK_STEP_MS);
        self.state.ticks = Ticks(batch.ticks).clamp(self.state.ticks, latest);
        self.state.wall = self.state.wall.max(Wall(batch.wall));
        self.skip(meta);
    }

    fn run(&mut self, meta: Meta, op: &Op) -> Outcome {
        self.now.changes = 0;
        let result = match op {
            Op::Submit(op) => self.on_submit(op),
            Op::Complete(op) => self.on_complete(op),
            Op::Fail(op) => self.on_fail(op),
            Op::Extend(op) => self.on_extend(op),
            Op::Release(op) => self.on_release(op),
            Op::SetCredit(op) => self.on_set_credit(op),
            Op::OpenSession(op) => self.on_open_session(meta, op),
            Op::DetachSession(op) => self.on_detach_session(op),
            Op::DrainSession(op) => self.on_drain_session(op),
            Op::CloseSession(op) => self.on_close_session(op),
            Op::Reclaim(op) => self.on_reclaim(op),
            Op::Heard(op) => self.on_heard(op),
            Op::Cancel(op) => self.on_cancel(op),
            Op::Retry(op) => self.on_retry(op),
            Op::Purge(op) => self.on_purge(op),
            Op::Redrive(op) => self.on_redrive(op),
            Op::CreateQueue(op) => self.on_create_queue(op),
            Op::UpdateQueue(op) => self.on_update_queue(op),
            Op::DeleteQueue(op) => self.on_delete_queue(op),
            Op::PauseQueue(op) => self.on_pause_queue(op),
            Op::SealQueue(op) => self.on_seal_queue(op),
            Op::SetCluster(op) => self.on_set_cluster(op),
            Op::RaiseVersion(op) => self.on_raise_version(op),
            Op::LeaderStarted(op) => self.on_leader_started(meta, op),
            Op::Tick(_) => self.on_tick(),
            Op::Advance(_) => self.on_advance(),
            Op::Fingerprint(_) => {
                self.now.effects.push(Effect::Fingerprint);
                Ok(Reply::Done)
            }
        };
        Outcome { revision: self.state.revision, result }
    }
}
