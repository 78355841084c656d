//! The truth. A pure state machine: `apply(state, meta, batch) -> replies + effects`.
//!
//! Invariants: no clock, randomness, IO, environment, threads, async, floats or logging; every
//! number that `apply` reads is in the state or fixed by the machine version; hash maps only for
//! point look-ups. A refusal ([`Reject`]) is data and changes nothing. The same log gives the
//! same state, replies and effects on every node, also on one that began from a snapshot.
//!
//! Absent on purpose: who is leader, which streams live, where bytes are stored.

pub mod command;
pub mod effect;
pub mod reject;
pub mod view;

pub use command::{Outcome, Reply};
pub use effect::Effect;
pub use reject::Reject;

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
}

/// The state.
pub struct Machine {
    _private: (),
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

impl Machine {
    /// The empty state, as every cluster begins.
    pub fn new() -> Self {
        todo!()
    }

    /// Applies one log entry. Total: refusals are outcomes; an error halts the node.
    pub fn apply(&mut self, meta: Meta, batch: &command::Batch) -> Result<Applied, Broken> {
        todo!()
    }

    /// Notes an entry without commands (blank, membership).
    pub fn skip(&mut self, meta: Meta) {
        todo!()
    }

    /// The whole state, frozen in microseconds; writing it out takes as long as it takes.
    pub fn freeze(&self) -> Frozen {
        todo!()
    }

    /// Builds the state from what [`Frozen::write`] wrote.
    pub fn restore(from: &mut dyn std::io::Read) -> Result<Self, Broken> {
        todo!()
    }

    /// A package, or what its tombstone tells.
    pub fn package(&self, queue: &str, id: &str) -> Result<view::PackageView, Reject> {
        todo!()
    }

    pub fn queue(&self, name: &str) -> Result<view::QueueView, Reject> {
        todo!()
    }

    /// In the order of their names; `prefix` may be empty.
    pub fn queues(&self, prefix: &str) -> Vec<view::QueueView> {
        todo!()
    }

    pub fn session(&self, session: &str) -> Result<view::SessionView, Reject> {
        todo!()
    }

    /// Sessions that subscribe to the queue, or all; in the order of their ids.
    pub fn sessions(&self, queue: Option<&str>) -> Vec<view::SessionView> {
        todo!()
    }

    /// Everything that the session holds, oldest first: what dispatch sends again after a rebuild.
    pub fn held(&self, session: &str) -> Vec<effect::Delivery> {
        todo!()
    }

    /// Packages that `Purge` with these states would remove now.
    pub fn count_purgeable(&self, queue: &str, states: &[u32]) -> Result<u64, Reject> {
        todo!()
    }

    /// Sessions that hold prefetch while another session idles with credit for the same work:
    /// (session, epoch, how many to recall). Used by dispatch's liveness; bounded, best effort.
    pub fn recallable(&self) -> Vec<(effect::SessionId, crate::types::Epoch, u32)> {
        todo!()
    }

    pub fn cluster_settings(&self) -> command::ClusterSettings {
        todo!()
    }

    pub fn summary(&self) -> view::Summary {
        todo!()
    }
}

/// A frozen state: an owner's view that apply no longer changes.
pub struct Frozen {
    _private: (),
}

impl Frozen {
    /// Writes the state in its canonical form.
    pub fn write(&self, to: &mut dyn std::io::Write) -> std::io::Result<()> {
        todo!()
    }

    /// Hex of the hash over the canonical form.
    pub fn hash(&self) -> String {
        todo!()
    }

    /// Recounts every invariant; empty if all hold.
    pub fn check(&self) -> Vec<String> {
        todo!()
    }
}
