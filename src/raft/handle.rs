//! The only door to the replicated state: propose a command, look at the state, follow the
//! leadership. Cheap to clone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::types::Member;
use crate::machine::command::Command;
use crate::machine::{Effect, Machine, Outcome};
use crate::types::NodeId;

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not applied: this node does not lead. `leader`: who does, if known.
    #[error("not the leader")]
    NotLeader { leader: Option<Leader> },
    /// May or may not have been applied. Repeating with the same id is safe.
    #[error("outcome unknown: {why}")]
    Unknown { why: &'static str },
    /// Certainly not applied: too much waits already.
    #[error("overloaded")]
    Overloaded,
    /// Certainly not applied: the disk of a node that a quorum needs is full.
    #[error("disk full")]
    DiskFull,
    /// Certainly not applied: larger than a batch may be.
    #[error("command of {len} bytes is larger than a batch may be")]
    TooLarge { len: usize },
    /// The node stops.
    #[error("shutting down")]
    ShuttingDown,
}

/// Who leads, as this node believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub node: NodeId,
    pub term: u64,
    pub member: Member,
}

/// This node's own standing, for whoever must be rebuilt when it leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Some(term): this node leads, its barrier and `LeaderStarted` are applied, it serves.
    pub leading: Option<u64>,
    /// Who leads, as this node believes.
    pub leader: Option<Leader>,
}

/// The effects of one applied batch, on a node that leads.
#[derive(Debug)]
pub struct EffectBatch {
    pub index: u64,
    pub term: u64,
    pub effects: Vec<Effect>,
}

/// What comes out of the effect feed.
#[derive(Debug)]
pub enum Feed {
    Batch(EffectBatch),
    /// Some were dropped (the receiver lagged) or the state was replaced by a snapshot:
    /// rebuild from the state.
    Gap,
}

/// How a command is answered. The hot path uses `Sink`, which allocates nothing a command.
pub enum Responder {
    Oneshot(oneshot::Sender<Result<Outcome, ProposeError>>),
    /// Called once, from the proposer's task: must not block.
    Sink(Arc<dyn Sink>, u64),
    /// Nobody waits.
    None,
}

/// Takes answers of commands; see [`Responder::Sink`].
pub trait Sink: Send + Sync {
    fn answer(&self, token: u64, result: Result<Outcome, ProposeError>);
}

/// Which commands go first when both wait: completions and all else before submits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Settle,
    Submit,
}

/// See the module.
#[derive(Clone)]
pub struct Handle {
    _private: (),
}

impl Handle {
    /// Proposes and waits for the outcome, at most `deadline`. On a node that does not lead:
    /// `NotLeader` at once.
    pub async fn propose(&self, lane: Lane, command: Command, deadline: Duration) -> Result<Outcome, ProposeError> {
        todo!()
    }

    /// Proposes without waiting. The answer goes to `responder`, always, exactly once, also for
    /// errors.
    pub fn send(&self, lane: Lane, command: Command, responder: Responder) {
        todo!()
    }

    /// Waits until `lane` has room (backpressure for streams).
    pub async fn ready(&self, lane: Lane) {
        todo!()
    }

    /// A linearizable read point: confirms leadership with a quorum (read index, never a lease)
    /// and waits until this node's state has it. `NotLeader` on followers.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<(), ProposeError> {
        todo!()
    }

    /// Looks at this node's own state. Must be short: apply waits meanwhile.
    pub fn view<R>(&self, look: impl FnOnce(&Machine) -> R) -> R {
        todo!()
    }

    /// This node's standing, with changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        todo!()
    }

    /// The effect feed; there is one consumer (dispatch). Batches come only while this node leads.
    pub fn take_effects(&self) -> Option<mpsc::Receiver<Feed>> {
        todo!()
    }

    /// This node's number.
    pub fn node(&self) -> NodeId {
        todo!()
    }

    /// The connection to another node's peer listener, made when first used. `None`: no such member.
    pub fn peer_channel(&self, node: NodeId) -> Option<tonic::transport::Channel> {
        todo!()
    }

    /// Moves leadership to `to`, or to the most current voter. Answers with the new leader.
    pub async fn transfer_leadership(&self, to: Option<NodeId>, deadline: Duration) -> Result<NodeId, TransferError> {
        todo!()
    }

    /// Raft's and the log's standing, for status and metrics.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Writes a snapshot now; answers with its index.
    pub async fn take_snapshot(&self, deadline: Duration) -> Result<u64, ProposeError> {
        todo!()
    }

    /// The latest fingerprint of this node's state (see `Effect::Fingerprint`), with changes.
    pub fn fingerprint(&self) -> watch::Receiver<Option<FingerprintResult>> {
        todo!()
    }
}

/// Why leadership did not move.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error("not the leader")]
    NotLeader { leader: Option<Leader> },
    #[error("node {0} is no voter")]
    NoVoter(NodeId),
    #[error("node {0} did not take over in time; the old leader goes on")]
    TimedOut(NodeId),
    #[error("there is no other voter")]
    Alone,
}

/// A state hash at an index and the invariants found broken there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintResult {
    pub index: u64,
    pub hash: String,
    pub violations: Vec<String>,
}

/// A member as this node sees it.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    pub node: NodeId,
    pub member: Member,
    pub voter: bool,
    pub reachable: bool,
    /// Only the leader knows.
    pub matched_index: Option<u64>,
}

/// Disk space of the data directory.
#[derive(Clone, Debug, Default)]
pub struct DiskStatus {
    pub path: String,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub log_bytes: u64,
    pub snapshot_bytes: u64,
    /// OK, RESERVE or FULL.
    pub status: &'static str,
}

/// A standing problem that an operator should see.
#[derive(Clone, Debug)]
pub struct Alarm {
    /// Such as CLOCK_SKEW or DISK_FULL.
    pub name: &'static str,
    pub message: String,
    pub since: crate::types::Wall,
}

/// See [`Handle::status`].
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub cluster_id: String,
    pub node: NodeId,
    pub leader: Option<Leader>,
    pub term: u64,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub purged_index: u64,
    pub members: Vec<MemberStatus>,
    pub disk: DiskStatus,
    pub alarms: Vec<Alarm>,
    pub metrics: Metrics,
}

/// Counters and sums since start; times in microseconds. The admin listener turns them into metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub proposals: u64,
    pub commands: u64,
    pub commands_waiting: u64,
    pub proposals_in_flight: u64,
    /// Commands in a batch: count at most 1, 4, 16, 64, 256, 1024, more.
    pub group_sizes: [u64; 7],
    pub fsyncs: u64,
    pub fsync_micros: u64,
    pub fsync_micros_buckets: [u64; 10],
    pub applied_batches: u64,
    pub apply_micros: u64,
    pub apply_micros_buckets: [u64; 10],
    pub log_bytes_written: u64,
    pub snapshots_built: u64,
    pub snapshots_installed: u64,
    pub elections: u64,
}

/// Upper bounds, in microseconds, of the buckets in [`Metrics`]; the last bucket has none.
pub const MICROS_BUCKETS: [u64; 9] = [50, 100, 250, 500, 1_000, 2_500, 10_000, 100_000, 1_000_000];
