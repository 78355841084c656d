//! What goes in and what comes back. Commands are the stored messages themselves
//! (`proto::internal`), so that a batch is encoded once and decoded once.

use std::sync::Arc;

use super::reject::Reject;
use super::view::{PackageView, QueueView, SessionView};
use crate::types::Revision;

pub use crate::proto::internal::command::Op;
pub use crate::proto::internal::{
    Advance, Batch, Cancel, CloseSession, ClusterSettings, Command, Complete, Completion, CreateQueue, DeleteQueue,
    DetachSession, DrainSession, Extend, Extension, Fail, Failed, Fingerprint, Heard, LeaderStarted, Lease, NewPackage,
    OpenSession, PauseQueue, Purge, QueueSettings, RaiseVersion, Reclaim, Redrive, Release, Retry, SealQueue,
    SetCluster, SetCredit, Speaker, Submit, Tick, UpdateQueue,
};

/// A command's answer and the state's revision after it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub revision: Revision,
    pub result: Result<Reply, Reject>,
}

/// What a command answers when it was taken.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// `Submit`, one for each package. With `atomic`, one reject refuses the command as a whole.
    Submitted(Vec<Result<Submitted, Reject>>),
    /// `Complete`, `Fail`, `Extend`, `Release`: one for each, in order.
    Settled(Vec<Result<(), Reject>>),
    /// `Cancel`, `Retry`.
    Package(Arc<PackageView>),
    /// The queue commands.
    Queue(Arc<QueueView>),
    /// `DrainSession`.
    Session(Arc<SessionView>),
    /// `Purge`, `Redrive`, `DeleteQueue`: the work goes on as a sweep; `Effect::SweepFinished`
    /// carries this number when it ends (it may be in the same batch).
    Sweep(u64),
    /// `SetCluster`: the settings in force.
    Cluster(Arc<ClusterSettings>),
}

/// A package that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// It was there before, with the same content.
    pub duplicate: bool,
}
