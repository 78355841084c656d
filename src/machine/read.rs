//! Looks at the state: owned views for the API, dispatch and metrics.

use std::ops::Bound;
use std::sync::Arc;

use super::effect::{Delivery, SessionId};
use super::index::is_attached;
use super::state::{QueueNo, SessionNo, Slot, Tombstone};
use super::view::{PackageView, QueueView, SessionStatus, SessionView, Summary};
use super::{Machine, Reject, Result, sweep};
use crate::proto::internal::ClusterSettings;
use crate::types::{Blob, Epoch, Fence, QueueName, Revision, State as Phase, Ticks, Wall};

/// So many idle sessions of a class are counted when prefetch is shared out anew.
const MOST_IDLE: usize = 64;

impl Machine {
    /// A package, or what its tombstone tells.
    pub fn package(&self, queue: &str, id: &str) -> Result<PackageView> {
        let number = self.queue_no(queue)?;
        if let Some(slot) = self.find(number, id) {
            return Ok(self.package_view(slot));
        }
        match self.find_grave(number, id) {
            Some(grave) => Ok(self.grave_view(number, id, grave)),
            None => Err(Reject::PackageNotFound { queue: queue.to_owned(), id: id.to_owned() }),
        }
    }

    pub(super) fn package_view(&self, slot: Slot) -> PackageView {
        let package = self.state.packages.at(slot);
        let body = &package.body;
        let settings = &self.state.queues.at(package.queue).settings;
        let session = self.state.sessions.get(package.session);
        let rare = package.rare.as_deref();
        let wall_of = |ticks: Ticks| self.state.wall.plus(ticks.since(self.state.ticks));
        PackageView {
            queue: body.queue().clone(),
            id: body.id().clone(),
            state: package.phase,
            priority: body.priority().map_or(settings.default_priority, u32::from),
            max_attempts: body.max_attempts().unwrap_or(settings.max_attempts),
            attempts: package.attempts,
            fence: package.fence,
            worker: session.map(|session| session.worker.clone()).or_else(|| rare.and_then(|rare| rare.worker.clone())),
            session: session.map(|session| session.id.clone()),
            lease_expire: package.in_hand().then(|| wall_of(package.ticks)),
            due: (package.phase == Phase::Scheduled).then(|| match package.ticks.0 {
                0 => body.not_before().unwrap_or_default(),
                _ => wall_of(package.ticks),
            }),
            finish: package.phase.is_finished().then(|| rare.map_or(Wall(0), |rare| rare.finish)),
            checkpoint: rare.map(|rare| rare.checkpoint.clone()).unwrap_or_default(),
            result: rare.map(|rare| rare.result.clone()).unwrap_or_default(),
            result_content_type: rare.and_then(|rare| rare.result_content_type.clone()).unwrap_or_else(|| "".into()),
            result_evicted: rare.is_some_and(|rare| rare.result_evicted),
            moved_to: rare.and_then(|rare| rare.moved_to.clone()),
            last_failure: rare.and_then(|rare| rare.failure.as_deref().cloned()),
            seq: package.seq,
            create_revision: package.create_revision,
            revision: package.revision,
            body: Some(package.body.clone()),
        }
    }

    fn grave_view(&self, queue: QueueNo, id: &str, grave: &Tombstone) -> PackageView {
        PackageView {
            body: None,
            queue: self.state.queues.at(queue).name.clone(),
            id: id.into(),
            state: grave.phase,
            priority: 0,
            max_attempts: 0,
            attempts: 0,
            fence: grave.fence,
            worker: None,
            session: None,
            lease_expire: None,
            due: None,
            finish: None,
            checkpoint: Blob::default(),
            result: Blob::default(),
            result_content_type: "".into(),
            result_evicted: false,
            moved_to: None,
            last_failure: None,
            seq: 0,
            create_revision: Revision(0),
            revision: Revision(0),
        }
    }

    pub fn queue(&self, name: &str) -> Result<QueueView> {
        self.queue_no(name).map(|number| self.queue_view(number))
    }

    /// In the order of their names; `prefix` may be empty.
    pub fn queues(&self, prefix: &str) -> Vec<QueueView> {
        self.queues_after(prefix, None, usize::MAX)
    }

    /// The same, at most so many, from after a name on, which need not be that of a queue any more.
    pub fn queues_after(&self, prefix: &str, after: Option<&str>, most: usize) -> Vec<QueueView> {
        let from = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let names = self.index.queue_by_name.range::<str, _>((from, Bound::Unbounded));
        let meant = names.take_while(|(name, _)| name.as_str().starts_with(prefix)).take(most);
        meant.map(|(_, number)| self.queue_view(*number)).collect()
    }

    pub(super) fn queue_view(&self, number: QueueNo) -> QueueView {
        let queue = self.state.queues.at(number);
        let line = self.index.line(number);
        let oldest = [&line.all.plain, &line.all.suspects].into_iter().filter_map(|ready| ready.oldest());
        let oldest = oldest.min_by_key(|head| head.seq).map(|head| self.state.packages.at(head.slot).body.create());
        QueueView {
            name: queue.name.clone(),
            settings: queue.settings.show(),
            paused: queue.paused,
            sealed: queue.sealed,
            ended: queue.sealed && line.live() == 0,
            revision: queue.revision,
            scheduled: line.scheduled,
            ready: line.ready,
            leased: line.leased,
            completed: queue.completed,
            dead: line.dead.len() as u64,
            cancelled: queue.cancelled,
            expired: queue.expired,
            submitted: queue.submitted,
            bytes: line.bytes,
            oldest_ready_age_ms: oldest.map_or(0, |create| self.state.wall.since(create)),
            workers: line.sessions,
            lease_ends: queue.lease_ends,
        }
    }

    pub fn session(&self, session: &str) -> Result<SessionView> {
        self.session_no(session).map(|number| self.session_view(number))
    }

    /// Sessions that subscribe to the queue, or all; in the order of their ids.
    pub fn sessions(&self, queue: Option<&str>) -> Vec<SessionView> {
        self.sessions_after(queue, None, usize::MAX)
    }

    /// The same, at most so many, from after an id on, which need not be that of a session any more.
    pub fn sessions_after(&self, queue: Option<&str>, after: Option<&str>, most: usize) -> Vec<SessionView> {
        let queue = match queue.map(|name| self.queue_no(name)) {
            Some(Err(_)) => return Vec::new(),
            Some(Ok(number)) => Some(number),
            None => None,
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let numbers = self.index.session_by_id.range::<str, _>((from, Bound::Unbounded)).map(|(_, number)| *number);
        let meant = numbers.filter(|number| {
            queue.is_none_or(|queue| self.state.sessions.at(*number).queues.binary_search(&queue).is_ok())
        });
        meant.take(most).map(|number| self.session_view(number)).collect()
    }

    pub(super) fn session_view(&self, number: SessionNo) -> SessionView {
        let session = self.state.sessions.at(number);
        let hold = self.index.held(number);
        let status = if session.draining {
            SessionStatus::Draining
        } else if !is_attached(&self.state, session) {
            SessionStatus::Detached
        } else if session.silent {
            SessionStatus::Silent
        } else {
            SessionStatus::Attached
        };
        SessionView {
            session: session.id.clone(),
            worker: session.worker.clone(),
            epoch: session.epoch,
            status,
            queues: session.queues.iter().map(|queue| self.state.queues.at(*queue).name.clone()).collect(),
            kinds: session.kinds.clone(),
            labels: session.labels.clone(),
            max_in_flight: session.max_in_flight,
            max_in_flight_bytes: session.max_in_flight_bytes,
            concurrency: session.concurrency,
            leased: hold.leases.len() as u32,
            leased_bytes: hold.bytes,
            prefetched: (hold.leases.len() - hold.in_hand) as u32,
            open: session.open,
        }
    }

    /// Everything that the session holds, oldest first: what dispatch sends again after a rebuild.
    pub fn held(&self, session: &str) -> Vec<Delivery> {
        let Ok(number) = self.session_no(session) else { return Vec::new() };
        self.index.held(number).leases.values().map(|slot| self.delivery(*slot)).collect()
    }

    /// The fence and holder of a leased package, if it is leased.
    pub fn holder(&self, queue: &str, id: &str) -> Option<(Fence, SessionId)> {
        let slot = self.find(self.queue_no(queue).ok()?, id)?;
        let package = self.state.packages.at(slot);
        let session = self.state.sessions.get(package.session)?;
        Some((package.fence, session.id.clone()))
    }

    /// Packages that `Purge` with these states would remove now.
    pub fn count_purgeable(&self, queue: &str, states: &[u32]) -> Result<u64> {
        let number = self.queue_no(queue)?;
        let phases = sweep::phases(states)?;
        let line = self.index.line(number);
        let meant = Phase::ALL.into_iter().filter(|phase| phases & (1 << *phase as u32) != 0);
        let count = |phase: Phase| match phase {
            Phase::Scheduled => line.scheduled,
            Phase::Ready => line.ready,
            Phase::Leased => line.leased,
            finished => line.kept[finished as usize],
        };
        Ok(meant.map(count).sum())
    }

    /// Sessions that hold prefetch while another session idles with credit for the same work:
    /// (session, epoch, how many to recall). Used by dispatch's liveness; best effort.
    pub fn recallable(&self) -> Vec<(SessionId, Epoch, u32)> {
        let mut found = Vec::new();
        for (number, session) in self.state.sessions.iter() {
            let hold = self.index.held(number);
            let prefetched = hold.leases.len() - hold.in_hand;
            if prefetched == 0 || !is_attached(&self.state, session) {
                continue;
            }
            let Some(slot) = hold.leases.values().next_back() else { continue };
            let package = self.state.packages.at(*slot);
            let line = self.index.line(package.queue);
            let classes = line.classes.iter().map(|class| &self.index.classes[*class as usize]);
            let takers = classes.filter(|class| class.takes(package.body.kind()));
            let idle: usize = takers
                .map(|class| class.credit.iter().take_while(|place| place.share == 0).take(MOST_IDLE).count())
                .sum();
            if idle > 0 {
                // An equal part for each of them and for who has it now.
                let count = (prefetched * idle).div_ceil(idle + 1);
                found.push((session.id.clone(), session.epoch, count as u32));
            }
        }
        found
    }

    pub fn cluster_settings(&self) -> ClusterSettings {
        self.state.cluster.show()
    }

    /// The state's revision.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    pub fn summary(&self) -> Summary {
        Summary {
            revision: self.state.revision,
            applied_index: self.state.index,
            ticks: self.state.ticks,
            wall: self.state.wall,
            machine_version: self.state.version,
            queues: u64::from(self.state.queues.len()),
            packages: u64::from(self.state.packages.len()),
            packages_bytes: self.index.bytes,
            tombstones: self.index.tombstones,
            sessions: u64::from(self.state.sessions.len()),
            leases: self.index.leases,
            needs_advance: !self.state.sweeps.is_empty()
                || !self.index.candidates.is_empty()
                || !self.index.overfull.is_empty()
                || self.state.stale_cursor.is_some(),
            next_timer_ms: self.index.timers.first().map(|(due, _)| due.since(self.state.ticks)),
            next_alarm: self.index.alarms.first().map(|(due, _)| *due),
        }
    }

    /// The name that people use for this queue, if it exists.
    pub fn queue_name(&self, name: &str) -> Option<QueueName> {
        self.queue_no(name).ok().map(|number| self.state.queues.at(number).name.clone())
    }

    /// The name of the worker behind a session.
    pub fn worker_name(&self, session: &str) -> Option<Arc<str>> {
        self.session_no(session).ok().map(|number| self.state.sessions.at(number).worker.clone())
    }
}
