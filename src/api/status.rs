//! The one place where a refusal becomes a gRPC status: code, reason (`ErrorInfo`, domain `wharf`),
//! details, and a message that says what to do next.
//!
//! Invariants: UNAVAILABLE `NO_LEADER` means certainly not applied; whatever may have been applied is
//! UNAVAILABLE `OUTCOME_UNKNOWN` or DEADLINE_EXCEEDED. A refusal inside an answer (one package of many,
//! a settlement) has the same code, reason and details as the status of a call would have.

mod change;

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, QuotaViolation, StatusExt, pb};

use crate::machine::Reject;
use crate::raft::handle::{ProposeError, TransferError};
use crate::raft::membership;
use crate::types::{Revision, limits};
use crate::{dispatch, history};

/// A change of leader is over in tens of milliseconds: whoever asks again should not be later.
const FAILOVER_RETRY_MS: u64 = 20;

/// `ErrorInfo.domain` of every refusal.
pub const DOMAIN: &str = "wharf";

/// Why a call, or a part of it, was not done.
#[derive(Clone, Debug)]
pub enum Refusal {
    Reject(Reject),
    Propose(ProposeError),
    /// Fields that cannot be: (path, problem).
    BadFields(Vec<(String, String)>),
    /// Fields whose meaning comes later: (path, problem).
    NotYetSupported(Vec<(String, String)>),
    /// Another package of the same atomic request was refused.
    AtomicRefused,
    /// The call's time ran out; a change may still happen.
    Deadline,
    TooManyWaiters {
        limit: usize,
    },
    TooManyWatchers(usize),
    History(history::Refused),
    /// A watch from so far back that this node no longer knows what happened since.
    RevisionCompacted {
        oldest: Revision,
    },
    /// A watcher that would have been left behind.
    WatcherTooSlow {
        resume: Revision,
    },
    /// The worker's stream was silent for too long.
    Silent,
    /// The reader of a stream is too slow.
    Lagging,
    /// A message is larger than a node takes.
    Oversize,
    /// The hop to the leader died while it had the call.
    HopLost,
    Transfer(TransferError),
    /// The members stay as they are.
    Change(membership::Error),
    Denied {
        who: String,
        action: &'static str,
    },
    /// The answer of a command was not of its kind: a bug, reported, never a panic.
    Internal(&'static str),
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self::Reject(reject)
    }
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        Self::Propose(error)
    }
}

impl From<membership::Error> for Refusal {
    fn from(error: membership::Error) -> Self {
        match error {
            // What is not the leader's is passed on.
            membership::Error::NotLeader { leader } => Self::Propose(ProposeError::NotLeader { leader }),
            error => Self::Change(error),
        }
    }
}

impl From<dispatch::Full> for Refusal {
    fn from(full: dispatch::Full) -> Self {
        Self::TooManyWaiters { limit: full.limit }
    }
}

impl From<&dispatch::Refusal> for Refusal {
    fn from(refusal: &dispatch::Refusal) -> Self {
        match refusal {
            dispatch::Refusal::Reject(reject) => Self::Reject(reject.clone()),
            dispatch::Refusal::Propose(error) => Self::Propose(error.clone()),
            dispatch::Refusal::Fields { fields, not_yet: false } => Self::BadFields(fields.clone()),
            dispatch::Refusal::Fields { fields, not_yet: true } => Self::NotYetSupported(fields.clone()),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let Parts { code, reason, message, meta, mut details } = parts(&refusal);
        details.set_error_info(reason, DOMAIN, meta.into_iter().collect::<std::collections::HashMap<_, _>>());
        Status::with_error_details(code, message, details)
    }
}

/// The same as a message inside an answer.
pub fn message(refusal: Refusal) -> pb::Status {
    let status = Status::from(refusal);
    // The details of a status are this very message, encoded.
    prost::Message::decode(status.details()).unwrap_or_else(|_| pb::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// The status of a message that stood inside an answer.
pub fn of_message(message: pb::Status) -> Status {
    let details = prost::Message::encode_to_vec(&message).into();
    Status::with_details(Code::from_i32(message.code), message.message, details)
}

/// The reason that a status of a Wharf node carries.
pub fn reason(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN).then_some(info.reason)
}

/// Certainly not applied, and worth another try at the leader.
pub fn is_no_leader(status: &Status) -> bool {
    status.code() == Code::Unavailable && reason(status).as_deref() == Some("NO_LEADER")
}

struct Parts {
    code: Code,
    reason: &'static str,
    message: String,
    meta: BTreeMap<String, String>,
    details: ErrorDetails,
}

impl Parts {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), meta: BTreeMap::new(), details: ErrorDetails::new() }
    }

    fn meta(mut self, key: &str, value: impl ToString) -> Self {
        self.meta.insert(key.to_owned(), value.to_string());
        self
    }

    fn retry_ms(mut self, ms: u64) -> Self {
        self.details.set_retry_info(Some(Duration::from_millis(ms)));
        self
    }

    fn quota(mut self, subject: impl Into<String>) -> Self {
        let violation = QuotaViolation::new(subject, self.message.clone());
        self.details.set_quota_failure(vec![violation]);
        self
    }

    fn fields(mut self, fields: &[(String, String)]) -> Self {
        let violations: Vec<_> = fields.iter().map(|(path, problem)| FieldViolation::new(path, problem)).collect();
        self.details.set_bad_request(violations);
        self
    }
}

fn parts(refusal: &Refusal) -> Parts {
    match refusal {
        Refusal::Reject(reject) => of_reject(reject),
        Refusal::Propose(error) => of_propose(error),
        Refusal::BadFields(fields) => {
            Parts::new(Code::InvalidArgument, "BAD_FIELD", format!("{}. Correct it and call again", listed(fields)))
                .fields(fields)
        }
        Refusal::NotYetSupported(fields) => Parts::new(
            Code::InvalidArgument,
            "NOT_YET_SUPPORTED",
            format!("{}. Leave it out: this version would not honour it", listed(fields)),
        )
        .fields(fields),
        Refusal::AtomicRefused => Parts::new(
            Code::FailedPrecondition,
            "ATOMIC_REFUSED",
            "another package of this atomic request was refused, so none was taken. Correct that one and submit all again",
        ),
        Refusal::Deadline => Parts::new(
            Code::DeadlineExceeded,
            "DEADLINE",
            "the call's time ran out before the answer came; a change may still happen. Repeat it with the same id, or read",
        ),
        Refusal::TooManyWaiters { limit } => Parts::new(
            Code::ResourceExhausted,
            "TOO_MANY_WAITERS",
            format!("{limit} calls wait at this node already. Wait for fewer at once, or read from time to time"),
        )
        .quota("waiters")
        .retry_ms(1_000),
        Refusal::History(history::Refused::Disabled) => Parts::new(
            Code::FailedPrecondition,
            "HISTORY_DISABLED",
            "this node keeps no history. Ask another node, or set `history.enabled` in its configuration",
        ),
        Refusal::History(history::Refused::Unavailable) => Parts::new(
            Code::Unavailable,
            "HISTORY_UNAVAILABLE",
            "history cannot be read at this node now; its log says why. Ask another node, or try again",
        )
        .retry_ms(1_000),
        Refusal::TooManyWatchers(limit) => Parts::new(
            Code::ResourceExhausted,
            "TOO_MANY_WATCHERS",
            format!("{limit} readers follow the changes at this node already. Watch at another node, or share a watch"),
        )
        .quota("watchers")
        .retry_ms(1_000)
        .meta("limit", limit),
        Refusal::RevisionCompacted { oldest } => Parts::new(
            Code::OutOfRange,
            "REVISION_COMPACTED",
            format!(
                "this node knows what happened from revision {oldest} on. Read what you follow, then watch from {oldest} or \
                 from now (0); another node may reach further back"
            ),
        )
        .meta("oldest_revision", oldest),
        Refusal::WatcherTooSlow { resume } => Parts::new(
            Code::ResourceExhausted,
            "READER_TOO_SLOW",
            format!("the watcher is too slow and was cut off. Read faster or watch less, and watch again from revision {resume}"),
        )
        .quota("stream")
        .meta("resume_revision", resume),
        Refusal::Silent => Parts::new(
            Code::Unavailable,
            "WORKER_SILENT",
            format!(
                "nothing came from the worker for {} ms. Send Ping while there is nothing else to say, and connect again with what is held",
                limits::WORKER_SILENCE_MS
            ),
        ),
        Refusal::Lagging => Parts::new(
            Code::ResourceExhausted,
            "READER_TOO_SLOW",
            "the stream's reader is too slow and was cut off. Read faster or hold less, and connect again with what is held",
        )
        .quota("stream"),
        Refusal::Oversize => Parts::new(
            Code::InvalidArgument,
            "MESSAGE_TOO_LARGE",
            format!(
                "a message may have {} bytes. Send fewer packages or settlements at once",
                limits::MAX_CLIENT_MESSAGE_BYTES
            ),
        )
        .meta("limit_bytes", limits::MAX_CLIENT_MESSAGE_BYTES),
        Refusal::HopLost => Parts::new(
            Code::Unavailable,
            "OUTCOME_UNKNOWN",
            "the connection to the leader broke while it had the call, which may or may not have been done. Repeat it with the same id; a worker connects again with what it holds",
        )
        .retry_ms(FAILOVER_RETRY_MS),
        Refusal::Transfer(error) => of_transfer(error),
        Refusal::Change(error) => change::of_change(error),
        Refusal::Denied { who, action } => Parts::new(
            Code::PermissionDenied,
            "DENIED",
            format!("{who} may not {action}. Ask an administrator for the right"),
        ),
        Refusal::Internal(what) => {
            Parts::new(Code::Internal, "INTERNAL", format!("{what}. This is a defect of Wharf: please report it"))
        }
    }
}

fn of_reject(reject: &Reject) -> Parts {
    use Code::{Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted};
    match reject {
        Reject::BadField { field, problem } => {
            Parts::new(InvalidArgument, "BAD_FIELD", format!("`{field}`: {problem}. Correct it and call again"))
                .fields(&[(field.clone(), problem.clone())])
        }
        Reject::QueueNotFound { queue } => Parts::new(
            NotFound,
            "QUEUE_NOT_FOUND",
            format!("queue `{queue}` does not exist. Create it (`wharf queue create {queue}`) or check the name"),
        )
        .meta("queue", queue),
        Reject::PackageNotFound { queue, id } => Parts::new(
            NotFound,
            "PACKAGE_NOT_FOUND",
            format!("queue `{queue}` knows no package `{id}`: it never came, or it is gone for longer than the dedup window"),
        )
        .meta("queue", queue)
        .meta("id", id),
        Reject::SessionNotFound { session } => Parts::new(
            NotFound,
            "SESSION_NOT_FOUND",
            format!("session `{session}` does not exist or was closed. Say Hello again, or see `wharf worker list`"),
        )
        .meta("session", session),
        Reject::IdConflict { queue, id } => Parts::new(
            AlreadyExists,
            "ID_CONFLICT",
            format!("queue `{queue}` took a package `{id}` with other content. Use another id for other content"),
        )
        .meta("queue", queue)
        .meta("id", id),
        Reject::LeaseLost { current } => Parts::new(
            FailedPrecondition,
            "LEASE_LOST",
            format!("this lease has ended (the latest fence is {current}). Stop working on the package; somebody else has it or will"),
        )
        .meta("current_fence", current),
        Reject::AlreadyFinished { state } => Parts::new(
            FailedPrecondition,
            "ALREADY_FINISHED",
            format!("the package is {} already. Drop this work, or read the package for its outcome", state.as_str()),
        )
        .meta("state", state.as_str()),
        Reject::NotDead { state } => Parts::new(
            FailedPrecondition,
            "NOT_DEAD",
            format!("only DEAD packages can be retried, this one is {}", state.as_str()),
        )
        .meta("state", state.as_str()),
        Reject::QueueSealed { queue } => Parts::new(
            FailedPrecondition,
            "QUEUE_SEALED",
            format!("queue `{queue}` is sealed and takes nothing from outside. Unseal it or use another queue"),
        )
        .meta("queue", queue),
        Reject::QueueExists { queue } => Parts::new(
            AlreadyExists,
            "QUEUE_EXISTS",
            format!("queue `{queue}` exists with other settings. Update it, or choose another name"),
        )
        .meta("queue", queue),
        Reject::QueueNotEmpty { queue, packages } => Parts::new(
            FailedPrecondition,
            "QUEUE_NOT_EMPTY",
            format!("queue `{queue}` still holds {packages} packages. Let them finish, purge them, or delete with `force`"),
        )
        .meta("queue", queue)
        .meta("packages", packages),
        Reject::QueueReferred { queue, by } => Parts::new(
            FailedPrecondition,
            "QUEUE_REFERRED",
            format!("queue `{queue}` is the dead-letter queue of `{by}`. Change `{by}` first"),
        )
        .meta("queue", queue)
        .meta("by", by),
        Reject::DeadLetterCycle { queue } => Parts::new(
            FailedPrecondition,
            "DEAD_LETTER_CYCLE",
            format!("dead-letter queues would form a ring through `{queue}`. Name one outside of it"),
        )
        .meta("queue", queue),
        Reject::RevisionMismatch { expected, actual } => Parts::new(
            Aborted,
            "REVISION_MISMATCH",
            format!("it is at revision {actual}, not {expected}. Read it again and decide anew"),
        )
        .meta("expected", expected)
        .meta("actual", actual),
        Reject::QueueFull { queue, limit, unit } => Parts::new(
            ResourceExhausted,
            "QUEUE_FULL",
            format!("queue `{queue}` is at its limit of {limit} {unit}. Try again when workers caught up, or raise the limit"),
        )
        .quota(format!("queue:{queue}"))
        .retry_ms(1_000)
        .meta("queue", queue)
        .meta("limit", limit)
        .meta("unit", unit),
        Reject::MemoryBudget { limit_bytes } => Parts::new(
            ResourceExhausted,
            "MEMORY_BUDGET",
            format!("packages fill the cluster's memory budget of {limit_bytes} bytes. Try again when workers caught up, or raise the budget"),
        )
        .quota("cluster:memory")
        .retry_ms(1_000)
        .meta("limit_bytes", limit_bytes),
        Reject::DedupBudget { limit } => Parts::new(
            ResourceExhausted,
            "DEDUP_BUDGET",
            format!("{limit} ids are remembered already, and none is forgotten early. Try again later, shorten dedup windows, or raise the budget"),
        )
        .quota("cluster:dedup")
        .retry_ms(1_000)
        .meta("limit", limit),
        Reject::TooManyQueues { limit } => Parts::new(
            ResourceExhausted,
            "TOO_MANY_QUEUES",
            format!("there are {limit} queues already. Delete some, or raise `max_queues`"),
        )
        .quota("cluster:queues")
        .meta("limit", limit),
        Reject::TooManySessions { limit } => Parts::new(
            ResourceExhausted,
            "TOO_MANY_SESSIONS",
            format!("there are {limit} sessions already. Run fewer workers with more concurrency, or raise `max_sessions`"),
        )
        .quota("cluster:sessions")
        .retry_ms(1_000)
        .meta("limit", limit),
        Reject::TooManyClasses { limit } => Parts::new(
            ResourceExhausted,
            "TOO_MANY_CLASSES",
            format!("workers use {limit} different subscriptions already. Let workers share the same queues and kinds"),
        )
        .quota("cluster:classes")
        .meta("limit", limit),
        Reject::TooManyKinds { queue, limit } => Parts::new(
            ResourceExhausted,
            "TOO_MANY_KINDS",
            format!("queue `{queue}` knows {limit} kinds already. Use fewer kinds: put what varies into labels"),
        )
        .quota(format!("queue:{queue}"))
        .meta("queue", queue)
        .meta("limit", limit),
        Reject::SweepUnderWay { queue } => Parts::new(
            Aborted,
            "SWEEP_UNDER_WAY",
            format!("a purge, redrive or deletion of queue `{queue}` is still under way. Try again when it has ended"),
        )
        .retry_ms(200)
        .meta("queue", queue),
        Reject::AtomicRefused { index, cause } => {
            let mut parts = of_reject(cause);
            parts.message = format!("package {index} of the atomic request, so none was taken: {}", parts.message);
            parts.meta("index", index)
        }
        Reject::EpochOver { current } => Parts::new(
            FailedPrecondition,
            "EPOCH_OVER",
            format!("a newer stream of this session took over (epoch {current}). End this one"),
        )
        .meta("current_epoch", current),
    }
}

fn of_propose(error: &ProposeError) -> Parts {
    match error {
        ProposeError::NotLeader { leader } => {
            let known = leader.as_ref().map(|leader| leader.member.client_addr.as_str());
            let parts = Parts::new(
                Code::Unavailable,
                "NO_LEADER",
                match known {
                    Some(addr) => format!("nothing was done: the leader changes, perhaps to {addr}. Try again"),
                    None => "nothing was done: no leader is known. Try again; if it stays so, see whether a majority of the nodes is up".to_owned(),
                },
            )
            .retry_ms(FAILOVER_RETRY_MS);
            match known {
                Some(addr) => parts.meta("leader", addr),
                None => parts,
            }
        }
        ProposeError::Unknown { why } => Parts::new(
            Code::Unavailable,
            "OUTCOME_UNKNOWN",
            format!("it may or may not have been done ({why}). Repeat it with the same id"),
        )
        .retry_ms(FAILOVER_RETRY_MS),
        ProposeError::Overloaded => Parts::new(
            Code::ResourceExhausted,
            "OVERLOADED",
            "nothing was done: too much waits at the leader. Try again with backoff",
        )
        .quota("leader:commands")
        .retry_ms(100),
        ProposeError::DiskFull => Parts::new(
            Code::ResourceExhausted,
            "DISK_FULL",
            "nothing was done: a disk that the majority needs is full. Free space on the nodes (`wharf cluster status`)",
        )
        .quota("disk")
        .retry_ms(5_000),
        ProposeError::TooLarge { len } => Parts::new(
            Code::InvalidArgument,
            "COMMAND_TOO_LARGE",
            format!("a request of {len} bytes does not fit one log entry. Split it into smaller ones"),
        )
        .meta("bytes", len),
        ProposeError::ShuttingDown => Parts::new(
            Code::Unavailable,
            "SHUTTING_DOWN",
            "nothing was done: this node stops. Try again at another node",
        )
        .retry_ms(FAILOVER_RETRY_MS),
    }
}

fn of_transfer(error: &TransferError) -> Parts {
    match error {
        TransferError::NotLeader { leader } => of_propose(&ProposeError::NotLeader { leader: leader.clone() }),
        TransferError::NoVoter(node) => Parts::new(
            Code::FailedPrecondition,
            "NOT_A_VOTER",
            format!("node {node} is no voter of this cluster. Choose one of `wharf cluster status`"),
        )
        .meta("node", node),
        TransferError::TimedOut(node) => Parts::new(
            Code::Unavailable,
            "TRANSFER_TIMED_OUT",
            format!(
                "node {node} did not take over in time and the old leader goes on. Try again, or choose another node"
            ),
        )
        .retry_ms(1_000)
        .meta("node", node),
        TransferError::Unreachable(node) => Parts::new(
            Code::FailedPrecondition,
            "NODE_UNREACHABLE",
            format!("node {node} cannot be reached, so it could not lead. Start it, or choose another node"),
        )
        .meta("node", node),
        TransferError::AnotherLeads { to, leader } => Parts::new(
            Code::Unavailable,
            "ANOTHER_NODE_LEADS",
            format!("node {leader} leads now, not node {to}. Try again if it must be that one"),
        )
        .retry_ms(1_000)
        .meta("node", leader),
        TransferError::Alone => Parts::new(
            Code::FailedPrecondition,
            "NO_OTHER_VOTER",
            "there is no other voter that can be reached and could lead. Start or add a node first",
        ),
    }
}

fn listed(fields: &[(String, String)]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<_> = fields.iter().take(SHOWN).map(|(path, problem)| format!("`{path}`: {problem}")).collect();
    if fields.len() > SHOWN {
        text.push(format!("and {} more", fields.len() - SHOWN));
    }
    text.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Fence, State};

    fn every_reject() -> Vec<(Reject, Code, &'static str)> {
        let queue = || "q".to_owned();
        vec![
            (Reject::BadField { field: "f".into(), problem: "p".into() }, Code::InvalidArgument, "BAD_FIELD"),
            (Reject::QueueNotFound { queue: queue() }, Code::NotFound, "QUEUE_NOT_FOUND"),
            (Reject::PackageNotFound { queue: queue(), id: "i".into() }, Code::NotFound, "PACKAGE_NOT_FOUND"),
            (Reject::SessionNotFound { session: "s".into() }, Code::NotFound, "SESSION_NOT_FOUND"),
            (Reject::IdConflict { queue: queue(), id: "i".into() }, Code::AlreadyExists, "ID_CONFLICT"),
            (Reject::LeaseLost { current: Fence(7) }, Code::FailedPrecondition, "LEASE_LOST"),
            (Reject::AlreadyFinished { state: State::Dead }, Code::FailedPrecondition, "ALREADY_FINISHED"),
            (Reject::NotDead { state: State::Ready }, Code::FailedPrecondition, "NOT_DEAD"),
            (Reject::QueueSealed { queue: queue() }, Code::FailedPrecondition, "QUEUE_SEALED"),
            (Reject::QueueExists { queue: queue() }, Code::AlreadyExists, "QUEUE_EXISTS"),
            (Reject::QueueNotEmpty { queue: queue(), packages: 1 }, Code::FailedPrecondition, "QUEUE_NOT_EMPTY"),
            (Reject::QueueReferred { queue: queue(), by: "b".into() }, Code::FailedPrecondition, "QUEUE_REFERRED"),
            (Reject::DeadLetterCycle { queue: queue() }, Code::FailedPrecondition, "DEAD_LETTER_CYCLE"),
            (
                Reject::RevisionMismatch { expected: Revision(1), actual: Revision(2) },
                Code::Aborted,
                "REVISION_MISMATCH",
            ),
            (Reject::QueueFull { queue: queue(), limit: 1, unit: "packages" }, Code::ResourceExhausted, "QUEUE_FULL"),
            (Reject::MemoryBudget { limit_bytes: 1 }, Code::ResourceExhausted, "MEMORY_BUDGET"),
            (Reject::DedupBudget { limit: 1 }, Code::ResourceExhausted, "DEDUP_BUDGET"),
            (Reject::TooManyQueues { limit: 1 }, Code::ResourceExhausted, "TOO_MANY_QUEUES"),
            (Reject::TooManySessions { limit: 1 }, Code::ResourceExhausted, "TOO_MANY_SESSIONS"),
            (Reject::TooManyClasses { limit: 1 }, Code::ResourceExhausted, "TOO_MANY_CLASSES"),
            (Reject::TooManyKinds { queue: queue(), limit: 1 }, Code::ResourceExhausted, "TOO_MANY_KINDS"),
            (Reject::SweepUnderWay { queue: queue() }, Code::Aborted, "SWEEP_UNDER_WAY"),
            (Reject::EpochOver { current: 2 }, Code::FailedPrecondition, "EPOCH_OVER"),
        ]
    }

    #[test]
    fn every_reject_has_its_code_reason_and_details() {
        for (reject, code, named) in every_reject() {
            let status = Status::from(Refusal::from(reject.clone()));
            assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(named)), "{reject:?}");
            let details = status.get_error_details();
            assert_eq!(details.quota_failure().is_some(), code == Code::ResourceExhausted, "{reject:?}");
            assert_eq!(details.bad_request().is_some(), code == Code::InvalidArgument, "{reject:?}");
            assert!(status.message().len() > 20, "{reject:?}");

            let atomic = Reject::AtomicRefused { index: 3, cause: Box::new(reject.clone()) };
            let inside = message(Refusal::from(atomic));
            assert_eq!(inside.code, code as i32, "{reject:?}");
            assert!(inside.message.starts_with("package 3 of the atomic request"), "{}", inside.message);
        }
    }

    #[test]
    fn what_waiting_helps_tells_how_long_to_wait() {
        let retries = |refusal: Refusal| Status::from(refusal).get_details_retry_info().is_some();
        assert!(retries(Reject::QueueFull { queue: "q".into(), limit: 1, unit: "bytes" }.into()));
        assert!(retries(ProposeError::NotLeader { leader: None }.into()));
        assert!(retries(ProposeError::Unknown { why: "lost" }.into()));
        assert!(retries(ProposeError::DiskFull.into()));
        assert!(!retries(Reject::LeaseLost { current: Fence(1) }.into()));
    }

    #[test]
    fn unknown_is_never_reported_as_not_applied() {
        for (refusal, code, named) in [
            (ProposeError::Unknown { why: "lost" }.into(), Code::Unavailable, "OUTCOME_UNKNOWN"),
            (Refusal::HopLost, Code::Unavailable, "OUTCOME_UNKNOWN"),
            (Refusal::Deadline, Code::DeadlineExceeded, "DEADLINE"),
            (ProposeError::NotLeader { leader: None }.into(), Code::Unavailable, "NO_LEADER"),
        ] {
            let status = Status::from(refusal);
            assert_eq!((status.code(), reason(&status).as_deref()), (code, Some(named)));
            assert_eq!(is_no_leader(&status), named == "NO_LEADER");
        }
    }

    #[test]
    fn field_violations_carry_their_paths() {
        let fields = vec![("packages[2].group_key".to_owned(), "not yet".to_owned())];
        let status = Status::from(Refusal::NotYetSupported(fields));
        let bad = status.get_details_bad_request().expect("a bad request");
        assert_eq!(bad.field_violations[0].field, "packages[2].group_key");
        assert_eq!(reason(&status).as_deref(), Some("NOT_YET_SUPPORTED"));
    }
}
