//! What the leader does outside the state after an apply. State is truth, effects are hints:
//! whoever misses some rebuilds from the state.

use std::sync::Arc;

use super::reject::Reject;
use super::view::PackageBody;
use crate::types::{Blob, Epoch, Fence, PackageId, QueueName};

/// A session's own id, as its client minted it.
pub type SessionId = Arc<str>;

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A Hello was taken: bind the stream `attach` to the session and welcome it. Whatever the
    /// worker holds without having received it follows as `Deliver`, same fences.
    SessionOpened { session: SessionId, epoch: Epoch, attach: u64, verdicts: Vec<Verdict>, session_grace_ms: u64 },
    /// Packages granted to the session in this batch, oldest first.
    Deliver { session: SessionId, epoch: Epoch, deliveries: Vec<Delivery> },
    /// Leases that the session no longer has, without its own doing.
    Revoke { session: SessionId, epoch: Epoch, leases: Vec<LeaseRef>, reason: &'static str },
    /// A draining session holds nothing any more, or it was closed: end its stream.
    SessionClosed { session: SessionId, epoch: Epoch, reason: &'static str },
    /// An operator asked the session to drain.
    SessionDraining { session: SessionId, epoch: Epoch },
    /// A queue that the session subscribes to has ended.
    EndOfWork { session: SessionId, epoch: Epoch, queue: QueueName },
    /// The queue has ended: answer who waits for it.
    QueueEnded { queue: QueueName },
    /// A sweep ended after so many packages.
    SweepFinished { sweep: u64, changed: u64 },
    /// Compute the state hash at this batch's index, off the apply path.
    Fingerprint,
}

/// Which lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRef {
    pub queue: QueueName,
    pub id: PackageId,
    pub fence: Fence,
}

/// A package on its way to a worker.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub body: PackageBody,
    pub fence: Fence,
    pub lease_ms: u64,
    /// 1 for the first.
    pub attempt: u32,
    pub priority: u32,
    pub checkpoint: Blob,
}

impl Delivery {
    /// About what it takes in a message.
    pub fn weight(&self) -> usize {
        const FIELDS: usize = 128;
        let body = &self.body;
        let labels: usize = body.labels().iter().map(|(key, value)| key.len() + value.len() + 8).sum();
        FIELDS + body.payload().len() + body.id().len() + body.kind().len() + labels + self.checkpoint.len()
    }
}

/// What became of a lease that a returning worker says it holds.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub queue: String,
    pub id: String,
    pub fence: Fence,
    pub kind: VerdictKind,
}

/// See [`Verdict`].
#[derive(Clone, Debug)]
pub enum VerdictKind {
    Keep,
    Gone,
    /// Settled before, with this answer.
    Settled(Result<(), Reject>),
}
