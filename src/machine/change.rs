//! What happened to packages: every change of a package's state, for whoever follows them.
//!
//! Invariants: the changes of a batch stand in the order of their revisions, and are the same on
//! every node. Each carries the package as it stood just then, by reference: nothing is copied, and a
//! payload is never kept by one. A package that is removed once it is finished makes none: its end
//! was told.

use std::mem::size_of;
use std::sync::Arc;

use super::Machine;
use super::state::{Rare, SessionNo, Slot};
use super::view::{FailureView, PackageBody, PackageView, Profile};
use crate::types::{Blob, Cause, Fence, PackageId, QueueName, Revision, State as Phase, Ticks, Wall};

/// One change of one package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The package's own revision after it.
    pub revision: Revision,
    /// None: the package is new.
    pub from: Option<Phase>,
    pub to: Phase,
    /// How a lease ended, if one did without a completion or a cancel.
    pub lease_end: Option<LeaseEnd>,
    /// What the queue wants to have kept of the past: as in its settings.
    pub history: u32,
    pub profile: Arc<Profile>,
    pub id: PackageId,
    pub create: Wall,
    pub priority: u32,
    pub max_attempts: u32,
    pub attempts: u32,
    /// The lease that was granted, or the latest one.
    pub fence: Fence,
    /// Who got the lease, or had it; else who had the last one, once the package is finished.
    pub worker: Option<Arc<str>>,
    /// The session that got the lease, or had it.
    pub session: Option<Arc<str>>,
    /// The calendar when it happened.
    pub time: Wall,
    /// SCHEDULED: when it is due. LEASED: when the lease ends, if its time runs.
    pub until: Option<Wall>,
    pub create_revision: Revision,
    /// What few packages carry.
    pub carried: Option<Box<Carried>>,
}

/// What a package got on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    pub checkpoint: Blob,
    pub result: Blob,
    pub result_content_type: Option<Arc<str>>,
    pub moved_to: Option<Arc<str>>,
    pub failure: Option<Arc<FailureView>>,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseEnd {
    pub cause: Cause,
    /// It counts as an attempt.
    pub charged: bool,
}

impl LeaseEnd {
    /// Without anybody's fault.
    pub const fn free(cause: Cause) -> Option<Self> {
        Some(Self { cause, charged: false })
    }

    /// To be counted.
    pub const fn charged(cause: Cause) -> Option<Self> {
        Some(Self { cause, charged: true })
    }
}

impl Change {
    pub fn queue(&self) -> &QueueName {
        &self.profile.queue
    }

    pub fn failure(&self) -> Option<&FailureView> {
        self.carried.as_deref()?.failure.as_deref()
    }

    /// The package as it stood after the change, without its payload.
    pub fn package(&self) -> PackageView {
        let leased = self.to == Phase::Leased;
        let priority = u8::try_from(self.priority).ok();
        let body = PackageBody::new(self.profile.clone(), self.id.clone(), priority, self.create, &[]);
        let carried = self.carried.as_deref().cloned().unwrap_or_default();
        PackageView {
            body: Some(body),
            queue: self.queue().clone(),
            id: self.id.clone(),
            state: self.to,
            priority: self.priority,
            max_attempts: self.max_attempts,
            attempts: self.attempts,
            fence: self.fence,
            worker: self.worker.clone().filter(|_| leased || self.to.is_finished()),
            session: self.session.clone().filter(|_| leased),
            lease_expire: self.until.filter(|_| leased),
            due: self.until.filter(|_| self.to == Phase::Scheduled),
            finish: self.to.is_finished().then_some(self.time),
            checkpoint: carried.checkpoint,
            result: carried.result,
            result_content_type: carried.result_content_type.unwrap_or_else(|| "".into()),
            result_evicted: false,
            moved_to: carried.moved_to,
            last_failure: carried.failure.as_deref().cloned(),
            seq: 0,
            create_revision: self.create_revision,
            revision: self.revision,
        }
    }

    /// About what it keeps in memory for as long as it is kept, were it the only one to do so.
    pub fn bytes(&self) -> usize {
        let options = &self.profile.options;
        let labels = options.labels.iter().map(|(key, value)| key.len() + value.len() + LABEL_BYTES);
        let carried = self.carried.as_deref().map_or(0, |carried| {
            let failure =
                carried.failure.as_ref().map_or(0, |failure| size_of::<FailureView>() + failure.message.len());
            size_of::<Carried>() + carried.checkpoint.len() + carried.result.len() + failure
        });
        size_of::<Self>() + self.id.len() + options.content_type.len() + labels.sum::<usize>() + carried
    }
}

fn carried(rare: &Rare) -> Carried {
    Carried {
        checkpoint: rare.checkpoint.clone(),
        result: rare.result.clone(),
        result_content_type: rare.result_content_type.clone(),
        moved_to: rare.moved_to.clone(),
        failure: rare.failure.clone(),
    }
}

/// Two boxes.
const LABEL_BYTES: usize = 2 * size_of::<Box<str>>();

impl Machine {
    /// Tells of the package in `slot`, which has just moved on `from` another state, out of `holder`'s
    /// hands if it was leased.
    pub(super) fn tell(&mut self, slot: Slot, from: Option<Phase>, holder: SessionNo, lease_end: Option<LeaseEnd>) {
        let package = self.state.packages.at(slot);
        let body = &package.body;
        let settings = &self.state.queues.at(package.queue).settings;
        let session = self.state.sessions.get(holder);
        let rare = package.rare.as_deref();
        let wall_of = |ticks: Ticks| self.state.wall.plus(ticks.since(self.state.ticks));
        let until = match package.phase {
            Phase::Scheduled if package.ticks.0 == 0 => body.not_before(),
            Phase::Scheduled => Some(wall_of(package.ticks)),
            Phase::Leased => package.in_hand().then(|| wall_of(package.ticks)),
            _ => None,
        };
        self.now.told.push(Change {
            revision: package.revision,
            from,
            to: package.phase,
            lease_end,
            history: settings.history,
            priority: body.priority().map_or(settings.default_priority, u32::from),
            max_attempts: body.max_attempts().unwrap_or(settings.max_attempts),
            attempts: package.attempts,
            fence: package.fence,
            worker: session.map(|session| session.worker.clone()).or_else(|| rare.and_then(|rare| rare.worker.clone())),
            session: session.map(|session| session.id.clone()),
            time: self.state.wall,
            until,
            carried: rare.map(carried).filter(|carried| *carried != Carried::default()).map(Box::new),
            create_revision: package.create_revision,
            profile: body.profile().clone(),
            id: body.id().clone(),
            create: body.create(),
        });
    }
}
