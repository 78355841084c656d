//! What a worker tells about itself while it runs, and at the end.

use std::fmt;
use std::sync::Arc;

use super::super::Error;

/// A lease, as it is named everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub queue: Arc<str>,
    pub id: Arc<str>,
    pub fence: u64,
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.queue, self.id, self.fence)
    }
}

/// How a lease was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Done,
    Fail,
    Release,
}

/// What happens to a worker; see [`super::Builder::on_event`].
#[derive(Clone, Debug)]
pub enum Event {
    /// The session has a stream. `reattached`: it had one before.
    Attached { session: Arc<str>, epoch: u64, term: u64, node: Arc<str>, reattached: bool },
    /// The stream broke; the worker connects again.
    Detached { error: Error },
    /// A package arrived.
    Delivered { lease: Lease, attempt: u32 },
    /// Its handler starts.
    Started { lease: Lease },
    /// The cluster answered a completion, failure or release. An error: refused, the package is
    /// somebody else's.
    Settled { lease: Lease, kind: Kind, result: Result<(), Error> },
    /// The lease ended without the worker's doing; its handler is cancelled.
    Lost { lease: Lease, why: String },
    /// A queue is sealed and has nothing left.
    EndOfWork { queue: String },
}

/// What a worker did; the result of [`super::Worker::run`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Packages that arrived; one that came twice with the same fence counts once.
    pub delivered: u64,
    /// Completions accepted.
    pub completed: u64,
    /// Failures accepted.
    pub failed: u64,
    /// Leases given back.
    pub released: u64,
    /// Settlements refused because the lease had ended.
    pub refused: u64,
    /// Leases that ended without the worker's doing.
    pub lost: u64,
    /// Handlers that were dropped because they did not end in time after a drain.
    pub abandoned: u64,
    /// Times that the session got a new stream.
    pub reattached: u64,
    /// All its queues ended. False: it was drained.
    pub end_of_work: bool,
}
