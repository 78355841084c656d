//! What may be read of the state, as owned values that outlive the look.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use triomphe::ThinArc;

use crate::proto::internal::QueueSettings;
use crate::types::{Blob, Cause, Epoch, Fence, PackageId, QueueName, Revision, State, Wall};

/// What a package's submitter set; shared by reference between state, views and deliveries. There are
/// millions of them, so each is one allocation, and what many have in common stands apart.
#[derive(Clone, PartialEq, Eq)]
pub struct PackageBody(ThinArc<BodyHead, u8>);

#[derive(Clone, PartialEq, Eq)]
struct BodyHead {
    profile: Arc<Profile>,
    id: PackageId,
    create: Wall,
    priority: Option<u8>,
}

/// What packages have in common: those of one queue and kind without options share theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub queue: QueueName,
    pub kind: Arc<str>,
    pub options: BodyOptions,
}

/// What few submitters set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BodyOptions {
    pub content_type: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    pub not_before: Option<Wall>,
    pub expire: Option<Wall>,
    pub max_attempts: Option<u32>,
}

/// One package, whole. A tombstone gives only `queue`, `id`, `state` and `fence`.
#[derive(Clone, Debug)]
pub struct PackageView {
    /// None: only a tombstone is left.
    pub body: Option<PackageBody>,
    pub queue: QueueName,
    pub id: PackageId,
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
    /// Its place in the order of submit, for ever; 0 of a tombstone and in a change.
    pub seq: u64,
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

impl PackageBody {
    /// The payload is copied: a slice of a message would keep the whole message in memory.
    pub fn new(profile: Arc<Profile>, id: PackageId, priority: Option<u8>, create: Wall, payload: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice(BodyHead { profile, id, create, priority }, payload))
    }

    fn head(&self) -> &BodyHead {
        &self.0.header.header
    }

    pub fn profile(&self) -> &Arc<Profile> {
        &self.head().profile
    }

    pub fn queue(&self) -> &QueueName {
        &self.profile().queue
    }

    pub fn id(&self) -> &PackageId {
        &self.head().id
    }

    pub fn kind(&self) -> &Arc<str> {
        &self.profile().kind
    }

    pub fn payload(&self) -> &[u8] {
        &self.0.slice
    }

    pub fn create(&self) -> Wall {
        self.head().create
    }

    /// What its submitter chose; none: the queue's default.
    pub fn priority(&self) -> Option<u8> {
        self.head().priority
    }

    pub fn content_type(&self) -> &str {
        &self.options().content_type
    }

    pub fn labels(&self) -> &[(Box<str>, Box<str>)] {
        &self.options().labels
    }

    pub fn not_before(&self) -> Option<Wall> {
        self.options().not_before
    }

    pub fn expire(&self) -> Option<Wall> {
        self.options().expire
    }

    pub fn max_attempts(&self) -> Option<u32> {
        self.options().max_attempts
    }

    pub fn options(&self) -> &BodyOptions {
        &self.profile().options
    }

    /// The payload for whoever sends it: not copied, the body lives as long.
    pub fn share_payload(&self) -> Bytes {
        struct Shared(PackageBody);
        impl AsRef<[u8]> for Shared {
            fn as_ref(&self) -> &[u8] {
                self.0.payload()
            }
        }
        if self.payload().is_empty() { Bytes::new() } else { Bytes::from_owner(Shared(self.clone())) }
    }

    /// The same with another profile.
    pub fn with_profile(&self, profile: Profile) -> Self {
        Self(ThinArc::from_header_and_slice(
            BodyHead { profile: Arc::new(profile), ..self.head().clone() },
            self.payload(),
        ))
    }

    /// The same without its payload.
    pub fn without_payload(&self) -> Self {
        Self(ThinArc::from_header_and_slice(self.head().clone(), &[]))
    }
}

impl Profile {
    /// The same with these options.
    pub fn with(self: &Arc<Self>, options: BodyOptions) -> Arc<Self> {
        if self.options == options {
            return self.clone();
        }
        Arc::new(Self { queue: self.queue.clone(), kind: self.kind.clone(), options })
    }

    /// The same without options.
    pub fn plain(self: &Arc<Self>) -> Arc<Self> {
        self.with(BodyOptions::default())
    }
}

impl fmt::Debug for PackageBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = self.payload().escape_ascii().to_string();
        let BodyHead { profile, id, create, priority } = self.head();
        let mut shown = f.debug_struct("PackageBody");
        shown.field("id", id).field("profile", profile).field("create", create);
        shown.field("priority", priority).field("payload", &payload).finish()
    }
}
