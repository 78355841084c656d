//! The SDK: [`Client`] submits, reads and administers; [`Worker`] works packages; [`Submitter`]
//! submits many in a pipeline; [`Watch`] tells what happens to packages; [`CallWorker`] works without
//! a stream.
//!
//! All of them find the leader by themselves: from the metadata of answers, from a `Goaway`, by
//! trying the other addresses, or by asking those about a node that is silent.
//!
//! Invariants
//! - What may have happened is never reported as failed: once one try of a call has an unknown
//!   outcome, the call's error says [`Error::is_unknown`], whatever the later tries said.
//! - A call is repeated only with the same ids, and only if repeating is safe or the try certainly
//!   changed nothing.
//! - A settlement (completion, failure, release) stays in the worker's ledger and is sent again
//!   after every break, with the same fence, until its outcome arrived.
//! - Every queue, window, retry and wait has a limit (`types::limits`, `CLIENT_*`).
//! - Sockets, the calendar and randomness come from [`crate::env::Env`] alone, so a simulation can run
//!   the SDK.
//!
//! Absent on purpose: load balancing over followers (the leader serves best, any node serves well),
//! and a cache of reads.

mod backoff;
mod builder;
mod call;
mod call_worker;
mod cluster;
mod doubt;
mod error;
mod ids;
mod list;
mod members;
mod nodes;
mod package;
mod packages;
mod queues;
mod submitter;
mod watch;
pub mod worker;

#[cfg(test)]
mod tests;

pub use builder::{Builder, Client};
pub use call_worker::{CallLease, CallWorker, Leases};
pub use error::Error;
pub use list::Listing;
pub use members::{Changed, SafeToStop};
pub use packages::Submitted;
pub use submitter::{Room, Submitter, SubmitterBuilder, Ticket};
pub use watch::Watch;
pub use worker::{Completion, Delivery, Failure, Worker};

/// The API's data, as it travels. Fields are documented in `proto/wharf/v1`.
pub use crate::proto::v1::{
    Alarm, Attempt, Backoff as BackoffSettings, Cause, ClusterSettings, Event, Failure as LastFailure,
    GetStatusResponse as NodeStatus, History, HistoryEntry, HistoryGap, ListHistoryRequest as HistoryQuery,
    ListHistoryResponse as HistoryPage, Member, NewPackage, Package, Queue, QueueSettings, QueueStats, State,
    StateHash, Worker as WorkerInfo, worker::Status as WorkerStatus,
};
