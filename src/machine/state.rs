//! What is stored: the whole of it goes into a snapshot, and nothing else does.
//!
//! Cloning is cheap (pages are shared), which is how a snapshot is taken. Everything that can be
//! computed from it lives in [`super::index`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::settings::{Cluster, Settings};
use super::tables::{Fifo, Slab, slab};
use super::view::{FailureView, PackageBody};
use crate::types::{Blob, Cause, Epoch, Fence, QueueName, Revision, State as Phase, Ticks, Wall};

/// Numbers of slots in the tables.
pub type Slot = u32;
pub type QueueNo = u32;
pub type SessionNo = u32;
/// No slot, no session.
pub const NONE: u32 = slab::NONE;

pub type Packages = Slab<Package, 128>;
pub type Queues = Slab<Queue, 16>;
pub type Sessions = Slab<Session, 32>;

#[derive(Clone, Debug)]
pub struct State {
    /// The last applied entry.
    pub index: u64,
    pub term: u64,
    pub version: u32,
    pub cluster: Cluster,
    pub ticks: Ticks,
    pub wall: Wall,
    pub revision: Revision,
    /// Given to each package at submit; its place in line for ever.
    pub next_seq: u64,
    /// Given to each package as it finishes; the order in which they go.
    pub next_finish: u64,
    /// Counts grants over all queues: who was served last.
    pub grants: u64,
    /// The queue whose turn it is.
    pub cursor: QueueNo,
    /// Where the last `LeaderStarted` stands: sessions attached before are detached.
    pub leader_index: u64,
    pub leader_ticks: Ticks,
    /// The grace after that still runs.
    pub failover_armed: bool,
    /// Closing what did not come back after a change of leader: the next session to look at.
    pub stale_cursor: Option<SessionNo>,
    pub next_sweep: u64,
    pub sweeps: BTreeMap<u64, Sweep>,
    pub packages: Packages,
    pub queues: Queues,
    pub sessions: Sessions,
}

impl State {
    pub fn new() -> Self {
        Self {
            index: 0,
            term: 0,
            version: 1,
            cluster: Cluster::default(),
            ticks: Ticks(0),
            wall: Wall(0),
            revision: Revision(0),
            next_seq: 0,
            next_finish: 0,
            grants: 0,
            cursor: 0,
            leader_index: 0,
            leader_ticks: Ticks(0),
            failover_armed: false,
            stale_cursor: None,
            next_sweep: 1,
            sweeps: BTreeMap::new(),
            packages: Slab::new(),
            queues: Slab::new(),
            sessions: Slab::new(),
        }
    }

    /// The next revision.
    pub fn bump(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }
}

/// A package. Only what its submitter set, where it stands, and what happened to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Package {
    pub body: PackageBody,
    pub queue: QueueNo,
    /// Who holds it, while LEASED.
    pub session: SessionNo,
    pub attempts: u32,
    pub phase: Phase,
    /// Its priority, settled when it last became ready.
    pub level: u8,
    /// It was in hand when a worker died.
    pub suspect: bool,
    /// How the lease `settled` ended.
    pub settlement: Settlement,
    pub seq: u64,
    pub content_hash: u64,
    /// The current or last lease.
    pub fence: Fence,
    /// The last lease that its holder settled.
    pub settled: Fence,
    /// LEASED: when the lease ends, 0 if not in hand. SCHEDULED: when the backoff ends, 0 if it waits for
    /// `not_before`. Finished: when it finished.
    pub ticks: Ticks,
    pub create_revision: Revision,
    pub revision: Revision,
    pub rare: Option<Box<Rare>>,
}

/// What few packages have while they wait.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rare {
    pub checkpoint: Blob,
    pub result: Blob,
    pub result_content_type: Option<Arc<str>>,
    pub result_evicted: bool,
    pub moved_to: Option<Arc<str>>,
    pub failure: Option<Arc<FailureView>>,
    /// When the current lease was granted; for `max_run`.
    pub leased: Ticks,
    pub finish: Wall,
    pub finish_seq: u64,
    /// The last holder's name, kept once it is finished.
    pub worker: Option<Arc<str>>,
}

/// How a holder ended its lease; repeating it gives the same answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Settlement {
    #[default]
    None = 0,
    Done = 1,
    Failed = 2,
    Released = 3,
}

impl Package {
    pub fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_with(Box::default)
    }

    /// Bytes that count against budgets.
    pub fn bytes(&self) -> u64 {
        let rare = self.rare.as_ref().map_or(0, |rare| rare.checkpoint.len() + rare.result.len());
        (self.body.payload().len() + self.body.id().len() + rare + OVERHEAD_BYTES) as u64
    }

    /// LEASED and being worked on.
    pub fn in_hand(&self) -> bool {
        self.phase == Phase::Leased && self.ticks.0 != 0
    }

    /// Final in its own queue, with a copy elsewhere.
    pub fn moved(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.moved_to.is_some())
    }

    /// Finished and on its way out; DEAD ones stay until somebody decides.
    pub fn leaves(&self) -> bool {
        self.phase.is_finished() && (self.phase != Phase::Dead || self.moved())
    }
}

/// What a package costs besides what it carries. Fixed.
pub const OVERHEAD_BYTES: usize = 256;

/// What is left of a package once it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub id_hash: u128,
    pub content_hash: u64,
    pub fence: Fence,
    pub until: Ticks,
    pub phase: Phase,
}

#[derive(Clone, Debug)]
pub struct Queue {
    pub name: QueueName,
    pub settings: Settings,
    pub paused: bool,
    pub sealed: bool,
    /// Being deleted: nothing new.
    pub deleting: bool,
    pub revision: Revision,
    /// Lifetime counts.
    pub submitted: u64,
    pub completed: u64,
    pub cancelled: u64,
    pub expired: u64,
    /// Lifetime counts by cause (its number).
    pub lease_ends: [u64; 7],
    /// Grants from this queue; every so many take the oldest.
    pub grants: u64,
    pub tombstones: Fifo<Tombstone>,
}

impl Queue {
    pub fn count_lease_end(&mut self, cause: Cause) {
        self.lease_ends[cause as usize] += 1;
    }
}

/// A worker's registration.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    pub id: Arc<str>,
    pub worker: Arc<str>,
    pub epoch: Epoch,
    /// By number, each once.
    pub queues: Vec<QueueNo>,
    /// By name, each once; empty: all.
    pub kinds: Vec<Arc<str>>,
    pub labels: Vec<(String, String)>,
    pub max_in_flight: u32,
    pub max_in_flight_bytes: u64,
    /// 0: all it holds.
    pub concurrency: u32,
    /// Served by single calls: attached only while one waits for work. What it holds is all in hand and
    /// runs on without a stream.
    pub unary: bool,
    /// The log index of its last Hello.
    pub attached: u64,
    /// Its stream broke at this time.
    pub detached: Option<Ticks>,
    pub draining: bool,
    /// A lease timed out in its hands: nothing until it is heard from.
    pub silent: bool,
    /// Credit that comes back with its next Done, Fail or SetCredit.
    pub withheld: u32,
    /// The grant that served it last.
    pub served: u64,
    /// The highest fence that it says has arrived; without a stream, the highest that it was given.
    pub received: Fence,
    pub open: Wall,
}

impl Session {
    /// How many packages may be in hand at once.
    pub fn hands(&self) -> usize {
        if self.concurrency == 0 { usize::MAX } else { self.concurrency as usize }
    }
}

/// Work too large for one command. Touches only what existed when it began.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    pub work: Work,
    pub queue: QueueNo,
    /// Younger packages are left alone.
    pub begin: Revision,
    /// The next slot to look at, below `end`.
    pub cursor: Slot,
    pub end: Slot,
    pub changed: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Bit n: packages in the state with number n.
    Purge { phases: u32 },
    /// Everything goes, then the queue.
    Delete,
    /// DEAD packages, and dead-letter copies, go back to work. `to` empty: where they came from.
    Redrive { to: Option<QueueName>, left: u64 },
}
