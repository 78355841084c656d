//! Every refusal of the machine, named for what is wrong. Data, not failures: a refusal counts
//! as applied. `api::status` is the one place that maps them to gRPC codes, reasons and details.

use crate::types::{Fence, Revision, State};

/// Why a command, or one part of it, was not taken. Nothing was changed by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A field's value cannot be; `field` is its path in the public API.
    BadField {
        field: String,
        problem: String,
    },
    QueueNotFound {
        queue: String,
    },
    PackageNotFound {
        queue: String,
        id: String,
    },
    SessionNotFound {
        session: String,
    },
    /// The same id with other content.
    IdConflict {
        queue: String,
        id: String,
    },
    /// The fence is not that of a lease in force. `current` is the latest; 0: there was none.
    LeaseLost {
        current: Fence,
    },
    /// Finished by another attempt, or otherwise final.
    AlreadyFinished {
        state: State,
    },
    /// Only DEAD packages can be retried.
    NotDead {
        state: State,
    },
    QueueSealed {
        queue: String,
    },
    /// The queue's name is taken by one with other settings.
    QueueExists {
        queue: String,
    },
    /// It still holds packages, and `force` was not given.
    QueueNotEmpty {
        queue: String,
        packages: u64,
    },
    /// It is the dead-letter queue of another.
    QueueReferred {
        queue: String,
        by: String,
    },
    /// The dead-letter queues would form a ring.
    DeadLetterCycle {
        queue: String,
    },
    RevisionMismatch {
        expected: Revision,
        actual: Revision,
    },
    QueueFull {
        queue: String,
        limit: u64,
        unit: &'static str,
    },
    MemoryBudget {
        limit_bytes: u64,
    },
    DedupBudget {
        limit: u64,
    },
    TooManyQueues {
        limit: u64,
    },
    TooManySessions {
        limit: u64,
    },
    TooManyClasses {
        limit: u64,
    },
    TooManyKinds {
        queue: String,
        limit: u64,
    },
    /// A sweep of this queue is under way; try again when it ended.
    SweepUnderWay {
        queue: String,
    },
    /// Another package of the same atomic submit was refused for this.
    AtomicRefused {
        index: u32,
        cause: Box<Reject>,
    },
    /// The command is of an older epoch of the session: a newer stream took over.
    EpochOver {
        current: u64,
    },
}
