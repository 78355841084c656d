//! What may be read of the state, as owned values that outlive the look.

use std::sync::Arc;

use crate::proto::internal::QueueSettings;
use crate::types::{Blob, Cause, Epoch, Fence, QueueName, Revision, State, Wall};

/// What a package's submitter set, but for the payload, which may go before the rest does; shared by
/// reference between state, views, deliveries and changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageBody {
    pub queue: QueueName,
    pub id: Arc<str>,
    pub kind: Arc<str>,
    pub content_type: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    pub priority: Option<u32>,
    pub not_before: Option<Wall>,
    pub expire: Option<Wall>,
    pub max_attempts: Option<u32>,
    pub create: Wall,
}

/// One package, whole. A tombstone gives only `queue`, `id`, `state` and `fence`.
#[derive(Clone, Debug)]
pub struct PackageView {
    /// None: only a tombstone is left.
    pub body: Option<Arc<PackageBody>>,
    pub payload: Blob,
    pub queue: QueueName,
    pub id: Arc<str>,
    pub state: State,
    pub priority: u32,
    pub max_attempts: u32,
    pub attempts: u32,
    pub fence: Fence,
    pub worker: Option<Arc<str>>,
    pub session: Option<Arc<str>>,
    /// In hand: when its lease ends, converted from ticks at the state's last stamps.
    pub lease_expire: Option<Wall>,
    /// SCHEDULED: when it is due.
    pub due: Option<Wall>,
    pub finish: Option<Wall>,
    pub checkpoint: Blob,
    pub result: Blob,
    pub result_content_type: Arc<str>,
    pub result_evicted: bool,
    pub moved_to: Option<Arc<str>>,
    pub last_failure: Option<FailureView>,
    pub create_revision: Revision,
    pub revision: Revision,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureView {
    pub cause: Cause,
    pub message: Arc<str>,
    pub code: Arc<str>,
    pub time: Wall,
    pub worker: Arc<str>,
}

#[derive(Clone, Debug)]
pub struct QueueView {
    pub name: QueueName,
    /// Every field set: what is in force.
    pub settings: QueueSettings,
    pub paused: bool,
    pub sealed: bool,
    pub ended: bool,
    pub revision: Revision,
    pub scheduled: u64,
    pub ready: u64,
    pub leased: u64,
    /// Lifetime.
    pub completed: u64,
    pub dead: u64,
    /// Lifetime.
    pub cancelled: u64,
    /// Lifetime.
    pub expired: u64,
    /// Lifetime; for rates.
    pub submitted: u64,
    pub bytes: u64,
    pub oldest_ready_age_ms: u64,
    pub workers: u64,
    /// Lifetime, by cause (index = number of the cause).
    pub lease_ends: [u64; 7],
}

#[derive(Clone, Debug)]
pub struct SessionView {
    pub session: Arc<str>,
    pub worker: Arc<str>,
    pub epoch: Epoch,
    pub status: SessionStatus,
    pub queues: Vec<QueueName>,
    pub kinds: Vec<Arc<str>>,
    pub labels: Vec<(String, String)>,
    pub max_in_flight: u32,
    pub max_in_flight_bytes: u64,
    pub concurrency: u32,
    pub leased: u32,
    pub leased_bytes: u64,
    /// Held beyond those in hand.
    pub prefetched: u32,
    pub open: Wall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    Attached,
    Detached,
    Draining,
    /// A lease timed out in its hands: nothing new until it is heard from.
    Silent,
}

/// The state at a glance.
#[derive(Clone, Debug)]
pub struct Summary {
    pub revision: Revision,
    pub applied_index: u64,
    pub ticks: crate::types::Ticks,
    pub wall: Wall,
    pub machine_version: u32,
    pub queues: u64,
    pub packages: u64,
    pub packages_bytes: u64,
    pub tombstones: u64,
    pub sessions: u64,
    pub leases: u64,
    /// Sweeps or match debt: the leader should propose `Advance`.
    pub needs_advance: bool,
    /// When the next timer is due, if any is armed: in ticks from the last stamp (0: overdue).
    pub next_timer_ms: Option<u64>,
    /// The earliest time of the calendar that something waits for.
    pub next_alarm: Option<Wall>,
}
