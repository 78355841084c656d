//! How a package moves between states: the only place that changes a package's state, so that
//! orders, counts, timers and revisions always move with it.

use std::sync::Arc;

use super::change::LeaseEnd;
use super::effect::{Effect, SessionId};
use super::state::{NONE, Package, QueueNo, Settlement, Slot, Tombstone};
use super::tables::ids::{hash_id, wide_hash_id};
use super::view::{BodyOptions, FailureView, PackageBody, Profile};
use super::{Machine, command};
use crate::types::mutant::{self, Mutant};
use crate::types::{Cause, Epoch, Fence, QueueName, State as Phase, Ticks, Wall, limits};

/// What a failed lease tells.
pub struct Blame<'a> {
    pub cause: Cause,
    pub message: &'a str,
    pub code: &'a str,
    pub worker: Arc<str>,
    pub permanent: bool,
    pub retry_delay_ms: Option<u64>,
}

impl Machine {
    /// Changes a package: out of its orders, changed, into those of its new state. `end`: how its lease
    /// ended, if it had one.
    fn shift(&mut self, slot: Slot, end: Option<LeaseEnd>, change: impl FnOnce(&mut Package)) {
        let package = self.state.packages.at(slot);
        let (queue, from, holder) = (package.queue, package.phase, package.session);
        self.index.displace(slot, package);
        let (before, was_live) = (package.bytes(), !package.phase.is_finished());
        let revision = self.state.bump();
        let package = self.state.packages.at_mut(slot);
        change(package);
        package.revision = revision;
        self.index.place(slot, package);
        // `place` counted the finished bytes anew; the other sums only know the difference.
        let after = package.bytes();
        if after != before {
            let line = self.index.line_mut(queue);
            line.bytes = line.bytes - before + after;
            self.index.bytes = self.index.bytes - before + after;
        }
        if was_live && self.index.line(queue).live() == 0 {
            self.now.emptied.push(queue);
        }
        self.now.changes += 1;
        self.tell(slot, Some(from), holder, end);
    }

    /// A new package, checked before. Scheduled, ready, or expired on arrival.
    pub(super) fn insert(&mut self, queue: QueueNo, body: PackageBody, content_hash: u64) -> Slot {
        let revision = self.state.bump();
        let seq = if mutant::is(Mutant::NewestFirst) { u64::MAX - self.state.next_seq } else { self.state.next_seq };
        self.state.next_seq += 1;
        let phase = if body.not_before().is_some_and(|due| due > self.state.wall && !mutant::is(Mutant::DeliverEarly)) {
            Phase::Scheduled
        } else {
            Phase::Ready
        };
        let package = Package {
            level: self.level(queue, &body),
            body,
            queue,
            session: NONE,
            attempts: 0,
            phase,
            suspect: false,
            settlement: Settlement::None,
            seq,
            content_hash,
            fence: Fence(0),
            settled: Fence(0),
            ticks: Ticks(0),
            create_revision: revision,
            revision,
            rare: None,
        };
        let slot = self.state.packages.insert(package);
        self.index.add(slot, self.state.packages.at(slot));
        self.state.queues.at_mut(queue).submitted += 1;
        self.now.changes += 1;
        self.tell(slot, None, NONE, None);
        self.expire_if_due(slot);
        slot
    }

    fn level(&self, queue: QueueNo, body: &PackageBody) -> u8 {
        let default = self.state.queues.at(queue).settings.default_priority;
        body.priority().map_or(default, u32::from).min(limits::MAX_PRIORITY) as u8
    }

    /// Back in line, at its old place; or expired, if its time came while it was away.
    pub(super) fn make_ready(&mut self, slot: Slot, end: Option<LeaseEnd>) {
        let package = self.state.packages.at(slot);
        let level = self.level(package.queue, &package.body);
        self.shift(slot, end, |package| {
            package.phase = Phase::Ready;
            package.level = level;
            package.session = NONE;
            package.ticks = Ticks(0);
        });
        self.expire_if_due(slot);
    }

    /// To rest until `due`.
    fn make_scheduled(&mut self, slot: Slot, due: Ticks, end: Option<LeaseEnd>) {
        self.shift(slot, end, |package| {
            package.phase = Phase::Scheduled;
            package.session = NONE;
            package.ticks = due;
        });
        self.expire_if_due(slot);
    }

    fn expire_if_due(&mut self, slot: Slot) {
        let package = self.state.packages.at(slot);
        let waits = matches!(package.phase, Phase::Scheduled | Phase::Ready);
        if waits && package.body.expire().is_some_and(|expire| expire <= self.state.wall) {
            self.finish(slot, Phase::Expired);
        }
    }

    /// Its end. The payload goes, but for a DEAD package that somebody may want to retry.
    pub(super) fn finish(&mut self, slot: Slot, phase: Phase) {
        self.finish_as(slot, phase, None, None);
    }

    /// Its end here, with a copy at `moved_to`; `end`: how its last lease ended with it.
    pub(super) fn finish_as(&mut self, slot: Slot, phase: Phase, moved_to: Option<Arc<str>>, end: Option<LeaseEnd>) {
        let queue = self.state.packages.at(slot).queue;
        self.end(slot, phase, moved_to, end);
        self.trim(queue);
    }

    /// The same, and others stay that the queue would now keep no longer: for who removes it anyway.
    pub(super) fn end(&mut self, slot: Slot, phase: Phase, moved_to: Option<Arc<str>>, end: Option<LeaseEnd>) {
        let (ticks, wall) = (self.state.ticks, self.state.wall);
        let finish_seq = self.state.next_finish;
        self.state.next_finish += 1;
        let package = self.state.packages.at(slot);
        let queue = package.queue;
        let worker = self.state.sessions.get(package.session).map(|session| session.worker.clone());
        self.shift(slot, end, |package| {
            package.phase = phase;
            package.session = NONE;
            package.ticks = ticks;
            package.suspect = false;
            let rare = package.rare();
            rare.finish = wall;
            rare.finish_seq = finish_seq;
            rare.worker = worker.or(rare.worker.take());
            rare.moved_to = moved_to.or(rare.moved_to.take());
            if package.leaves() {
                drop_payload(package);
            }
        });
        let counts = self.state.queues.at_mut(queue);
        match phase {
            Phase::Completed => counts.completed += 1,
            Phase::Cancelled => counts.cancelled += 1,
            Phase::Expired => counts.expired += 1,
            _ => {}
        }
    }

    /// An attempt: rest and come back, or dead.
    pub(super) fn charge(&mut self, slot: Slot, blame: &Blame<'_>) {
        self.state.queues.at_mut(self.state.packages.at(slot).queue).count_lease_end(blame.cause);
        let end = LeaseEnd::charged(blame.cause);
        let failure = FailureView {
            cause: blame.cause,
            message: cut(blame.message, limits::MAX_MESSAGE_BYTES).into(),
            code: cut(blame.code, limits::MAX_CODE_BYTES).into(),
            time: self.state.wall,
            worker: blame.worker.clone(),
        };
        let package = self.state.packages.at_mut(slot);
        package.attempts += 1;
        package.rare().failure = Some(Arc::new(failure));
        let package = self.state.packages.at(slot);
        let settings = &self.state.queues.at(package.queue).settings;
        let most = package.body.max_attempts().unwrap_or(settings.max_attempts);
        if blame.permanent || (package.attempts >= most && !mutant::is(Mutant::NeverDie)) {
            self.die(slot, end);
            return;
        }
        let noise = hash_id(package.body.id().text()).rotate_left(package.attempts % 64) ^ u64::from(package.attempts);
        let rest = blame.retry_delay_ms.unwrap_or_else(|| settings.backoff_ms(package.attempts, noise));
        if rest == 0 {
            self.make_ready(slot, end);
        } else {
            self.make_scheduled(slot, self.state.ticks.plus(rest), end);
        }
    }

    /// A lease that ended without anybody's fault.
    pub(super) fn return_free(&mut self, slot: Slot, cause: Cause) {
        self.state.queues.at_mut(self.state.packages.at(slot).queue).count_lease_end(cause);
        self.state.packages.at_mut(slot).attempts += u32::from(mutant::is(Mutant::BlameTheInnocent));
        self.make_ready(slot, LeaseEnd::free(cause));
    }

    /// Out of attempts. With a dead-letter queue a copy goes there in the same step.
    fn die(&mut self, slot: Slot, end: Option<LeaseEnd>) {
        let package = self.state.packages.at(slot);
        let settings = &self.state.queues.at(package.queue).settings;
        let target = QueueName::parse(&settings.dead_letter_queue)
            .ok()
            .and_then(|name| self.index.queue_by_name.get(&name).copied());
        if let Some(target) = target {
            let name = self.state.queues.at(target).name.clone();
            let body = dead_letter(package, name.clone(), self.state.wall);
            let moved_to: Arc<str> = format!("{name}/{}", body.id()).into();
            let content_hash = package.content_hash;
            if self.find(target, &body.id().text()).is_none() {
                self.insert(target, body, content_hash);
            }
            self.finish_as(slot, Phase::Dead, Some(moved_to), end);
        } else {
            self.finish_as(slot, Phase::Dead, None, end);
        }
    }

    /// A DEAD package goes back to work, as if new. Who tries again means it: an `expire_time` that
    /// has passed is dropped, or it would take the payload with it at once.
    pub(super) fn revive(&mut self, slot: Slot) {
        let wall = self.state.wall;
        self.shift(slot, None, |package| {
            package.phase = Phase::Ready;
            package.attempts = 0;
            package.suspect = false;
            package.ticks = Ticks(0);
            if let Some(rare) = &mut package.rare {
                rare.worker = None;
            }
            if package.body.expire().is_some_and(|expire| expire <= wall) {
                let mut profile = Profile::clone(package.body.profile());
                profile.options.expire = None;
                package.body = package.body.with_profile(profile);
            }
        });
    }

    /// Takes a package away for good, leaving a tombstone if `mourned`.
    pub(super) fn remove(&mut self, slot: Slot, mourned: bool) {
        let package = self.state.packages.at(slot);
        let number = package.queue;
        self.index.displace(slot, package);
        self.index.forget(slot, package);
        let package = self.state.packages.remove(slot);
        self.state.bump();
        self.now.changes += 1;
        if mourned {
            let queue = self.state.queues.at_mut(number);
            let id_hash = wide_hash_id(package.body.id().text());
            let position = queue.tombstones.push(Tombstone {
                id_hash,
                content_hash: package.content_hash,
                fence: package.settled,
                until: self.state.ticks.plus(queue.settings.dedup_window_ms),
                phase: package.phase,
            });
            self.index.line_mut(number).graves.insert(id_hash as u64, position as u32);
            self.index.tombstones += 1;
        }
        if !package.phase.is_finished() && self.index.line(number).live() == 0 {
            self.now.emptied.push(number);
        }
    }

    /// Finished packages beyond what the queue keeps go, first finished first, a bounded number a
    /// command.
    pub(super) fn trim(&mut self, queue: QueueNo) {
        while self.index.is_overfull(&self.state, queue) && self.now.changes < limits::MAX_CHANGES_A_COMMAND * 2 {
            let Some((_, slot)) = self.index.line(queue).finished.first_key_value() else { break };
            self.remove(*slot, true);
        }
        if self.index.is_overfull(&self.state, queue) {
            self.index.overfull.insert(queue);
        } else {
            self.index.overfull.remove(&queue);
        }
        self.index.arm_queue(&self.state, queue);
    }

    /// Makes room in the memory budget: results first, then finished packages, queue by queue.
    pub(super) fn make_room(&mut self, bytes: u64) -> bool {
        let budget = self.state.cluster.memory_budget_bytes;
        let mut left = limits::MAX_CHANGES_A_COMMAND;
        while self.index.bytes.saturating_add(bytes) > budget && left > 0 {
            let Some(queue) = self.index.keepers.first().copied() else { break };
            let Some((_, slot)) = self.index.line(queue).finished.first_key_value() else { break };
            self.remove(*slot, true);
            self.index.arm_queue(&self.state, queue);
            left -= 1;
        }
        self.index.bytes.saturating_add(bytes) <= budget
    }

    /// A queue that is sealed and has nothing more to do has ended: tell who works it and who waits.
    pub(super) fn announce_ends(&mut self) {
        let mut emptied = std::mem::take(&mut self.now.emptied);
        emptied.sort_unstable();
        emptied.dedup();
        for number in emptied {
            let Some(queue) = self.state.queues.get(number) else { continue };
            // A queue that is being deleted ends when it is gone.
            if !queue.sealed || queue.deleting || self.index.line(number).live() > 0 {
                continue;
            }
            let name = queue.name.clone();
            self.now.effects.push(Effect::QueueEnded { queue: name.clone() });
            for (session, epoch) in self.attached_to(number) {
                self.now.effects.push(Effect::EndOfWork { session, epoch, queue: name.clone() });
            }
        }
    }

    /// The sessions with a live stream that subscribe to the queue, by id.
    fn attached_to(&self, queue: QueueNo) -> Vec<(SessionId, Epoch)> {
        let sessions = self.index.session_by_id.values().map(|number| self.state.sessions.at(*number));
        sessions
            .filter(|session| super::index::is_attached(&self.state, session))
            .filter(|session| session.queues.binary_search(&queue).is_ok())
            .map(|session| (session.id.clone(), session.epoch))
            .collect()
    }

    /// The package with this id.
    pub(super) fn find(&self, queue: QueueNo, id: &str) -> Option<Slot> {
        let packages = &self.state.packages;
        self.index.line(queue).ids.find(hash_id(id), |slot| packages.at(slot).body.id().is(id))
    }

    /// What is left of a package with this id.
    pub(super) fn find_grave(&self, queue: QueueNo, id: &str) -> Option<&Tombstone> {
        let graves = &self.index.line(queue).graves;
        if graves.len() == 0 {
            return None;
        }
        let id_hash = wide_hash_id(id);
        let tombstones = &self.state.queues.at(queue).tombstones;
        let lasts = |grave: &Tombstone| grave.id_hash == id_hash && grave.until > self.state.ticks;
        let at = |low| tombstones.get(tombstones.position(low));
        at(graves.find(id_hash as u64, |low| at(low).is_some_and(lasts))?)
    }
}

/// What a new package's submitter set beside the usual; most set nothing.
pub(super) fn options_of(new: &command::NewPackage, now: Wall) -> Option<BodyOptions> {
    use crate::proto::internal::new_package::{Expiry, Schedule};
    let texts = !new.content_type.is_empty() || !new.labels.is_empty();
    if !texts && new.schedule.is_none() && new.expiry.is_none() && new.max_attempts.is_none() {
        return None;
    }
    Some(BodyOptions {
        content_type: new.content_type.as_str().into(),
        labels: new.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        not_before: new.schedule.map(|schedule| match schedule {
            Schedule::NotBeforeWall(wall) => Wall(wall),
            Schedule::DelayMs(delay) => now.plus(delay),
        }),
        expire: new.expiry.map(|expiry| match expiry {
            Expiry::ExpireWall(wall) => Wall(wall),
            Expiry::TtlMs(ttl) => now.plus(ttl),
        }),
        max_attempts: new.max_attempts,
    })
}

fn drop_payload(package: &mut Package) {
    if !package.body.payload().is_empty() {
        package.body = package.body.without_payload();
    }
}

fn dead_letter(package: &Package, queue: QueueName, now: Wall) -> PackageBody {
    let body = &package.body;
    let failure = package.rare.as_ref().and_then(|rare| rare.failure.as_ref());
    let mut labels: Vec<(Box<str>, Box<str>)> =
        body.labels().iter().filter(|(key, _)| !key.starts_with("wharf.")).cloned().collect();
    labels.push((ORIGIN_QUEUE.into(), body.queue().as_str().into()));
    labels.push((ORIGIN_ID.into(), (*body.id().text()).into()));
    labels.push(("wharf.attempts".into(), package.attempts.to_string().into()));
    if let Some(failure) = failure {
        labels.push(("wharf.cause".into(), failure.cause.as_str().into()));
        labels.push(("wharf.error".into(), cut(&failure.message, limits::MAX_LABEL_VALUE_BYTES).into()));
    }
    labels.sort();
    let options =
        BodyOptions { content_type: body.content_type().into(), labels: labels.into(), ..BodyOptions::default() };
    let profile = Arc::new(Profile { queue, kind: body.kind().clone(), options });
    let id = format!("{}#{}", body.id(), package.fence);
    PackageBody::new(profile, id.as_str().into(), body.priority(), now, body.payload())
}

/// Labels of a dead-letter copy that tell where it came from.
pub(super) const ORIGIN_QUEUE: &str = "wharf.origin-queue";
pub(super) const ORIGIN_ID: &str = "wharf.origin-id";

/// At most `most` bytes, whole characters.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
