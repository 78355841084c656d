//! Work too large for one command: done in bounded steps, the first at once, the others by
//! `Advance`. A sweep touches only what existed when it began.

use super::command::{DeleteQueue, Purge, Redrive};
use super::effect::Effect;
use super::life::{ORIGIN_ID, ORIGIN_QUEUE};
use super::state::{QueueNo, Slot, Sweep, Work};
use super::view::Profile;
use super::{Machine, Reject, Reply, Result};
use crate::types::{QueueName, State as Phase, limits};

/// Slots that one step looks at. Fixed.
const LOOKS_A_STEP: u32 = 20_000;

impl Machine {
    pub(super) fn on_purge(&mut self, op: &Purge) -> Result<Reply> {
        let queue = self.queue_no(&op.queue)?;
        let phases = phases(&op.states)?;
        self.begin_sweep(queue, Work::Purge { phases })
    }

    pub(super) fn on_redrive(&mut self, op: &Redrive) -> Result<Reply> {
        let queue = self.queue_no(&op.from)?;
        let to = match op.to.as_str() {
            "" => None,
            name => {
                let target = self.queue_no(name)?;
                if target == queue {
                    let problem = "packages cannot be redriven into the queue they are in".to_owned();
                    return Err(Reject::BadField { field: "to".to_owned(), problem });
                }
                Some(self.state.queues.at(target).name.clone())
            }
        };
        let left = if op.max == 0 { u64::MAX } else { op.max };
        self.begin_sweep(queue, Work::Redrive { to, left })
    }

    pub(super) fn on_delete_queue(&mut self, op: &DeleteQueue) -> Result<Reply> {
        let number = self.queue_no(&op.name)?;
        let line = self.index.line(number);
        if line.referred > 0 {
            let refers =
                |name: &str| QueueName::parse(name).is_ok_and(|name| name == self.state.queues.at(number).name);
            let by = self.state.queues.iter().find(|(_, queue)| refers(&queue.settings.dead_letter_queue));
            let by = by.map_or_else(String::new, |(_, queue)| queue.name.to_string());
            return Err(Reject::QueueReferred { queue: op.name.clone(), by });
        }
        if line.counted() > 0 && !op.force {
            return Err(Reject::QueueNotEmpty { queue: op.name.clone(), packages: line.counted() });
        }
        self.begin_sweep(number, Work::Delete)
    }

    /// One at a time in a queue.
    fn begin_sweep(&mut self, queue: QueueNo, work: Work) -> Result<Reply> {
        if self.state.sweeps.values().any(|sweep| sweep.queue == queue) {
            return Err(Reject::SweepUnderWay { queue: self.state.queues.at(queue).name.to_string() });
        }
        self.state.queues.at_mut(queue).deleting = work == Work::Delete;
        let sweep = self.state.next_sweep;
        self.state.next_sweep += 1;
        let begin = self.state.revision;
        let end = self.state.packages.slots();
        self.state.sweeps.insert(sweep, Sweep { work, queue, begin, cursor: 0, end, changed: 0 });
        if self.state.sweeps.len() == 1 {
            self.step(sweep);
        }
        Ok(Reply::Sweep(sweep))
    }

    pub(super) fn on_advance(&mut self) -> Result<Reply> {
        // Sessions that are gone hold packages that others could work: they go first.
        self.close_stale();
        // The oldest goes first, to its end; so each step looks at a bounded number of slots.
        if let Some(sweep) = self.state.sweeps.keys().next().copied() {
            self.step(sweep);
        }
        let overfull: Vec<QueueNo> = self.index.overfull.iter().copied().collect();
        for queue in overfull {
            if self.now.changes >= limits::MAX_CHANGES_A_COMMAND {
                break;
            }
            self.trim(queue);
        }
        Ok(Reply::Done)
    }

    /// One bounded step. The last one tells how much was changed.
    fn step(&mut self, number: u64) {
        let Some(mut sweep) = self.state.sweeps.remove(&number) else { return };
        let stop = sweep.end.min(sweep.cursor.saturating_add(LOOKS_A_STEP));
        while sweep.cursor < stop && self.now.changes < limits::MAX_CHANGES_A_COMMAND {
            let slot = sweep.cursor;
            sweep.cursor += 1;
            let package = self.state.packages.get(slot);
            let meant = package.is_some_and(|p| p.queue == sweep.queue && p.create_revision <= sweep.begin);
            if meant && self.sweep_one(slot, &mut sweep.work) {
                sweep.changed += 1;
            }
        }
        // What went left tombstones, and was perhaps the next to go by age.
        self.index.arm_queue(&self.state, sweep.queue);
        let exhausted = matches!(sweep.work, Work::Redrive { left: 0, .. });
        if sweep.cursor < sweep.end && !exhausted {
            self.state.sweeps.insert(number, sweep);
            return;
        }
        if sweep.work == Work::Delete {
            self.forget_queue(sweep.queue);
        }
        self.now.effects.push(Effect::SweepFinished { sweep: number, changed: sweep.changed });
    }

    fn sweep_one(&mut self, slot: Slot, work: &mut Work) -> bool {
        let package = self.state.packages.at(slot);
        match work {
            Work::Purge { phases } => {
                let meant = *phases & (1 << package.phase as u32) != 0;
                if meant {
                    self.end_and_remove(slot, true);
                }
                meant
            }
            Work::Delete => {
                if package.phase == Phase::Leased {
                    let lease = self.lease_ref(slot);
                    let session = self.unhold(slot);
                    self.revoke(session, vec![lease], "the queue was deleted");
                    self.end_and_remove(slot, false);
                    self.after_release(session);
                } else {
                    self.end_and_remove(slot, false);
                }
                true
            }
            Work::Redrive { to, left } => {
                let moved = *left > 0 && self.redrive_one(slot, to.as_ref());
                *left -= u64::from(moved);
                moved
            }
        }
    }

    /// What still waited ends as CANCELLED first, so that its outcome is told and kept. It pushes out no
    /// other package: only what the sweep means goes.
    fn end_and_remove(&mut self, slot: Slot, mourned: bool) {
        if !self.state.packages.at(slot).phase.is_finished() {
            self.end(slot, Phase::Cancelled, None, None);
        }
        self.remove(slot, mourned);
    }

    /// Back to work: a dead-letter copy to where it came from, a DEAD package in its own queue, or
    /// either to another queue.
    fn redrive_one(&mut self, slot: Slot, to: Option<&QueueName>) -> bool {
        let package = self.state.packages.at(slot);
        let label = |key: &str| package.body.labels().iter().find(|(k, _)| &**k == key).map(|(_, value)| &**value);
        let dead = package.phase == Phase::Dead && !package.moved();
        let origin = label(ORIGIN_QUEUE).and_then(|name| QueueName::parse(name).ok());
        let waits = matches!(package.phase, Phase::Ready | Phase::Scheduled) && label(ORIGIN_ID).is_some();
        if !dead && !waits {
            return false;
        }
        let Some(target) = to.cloned().or(origin) else {
            self.revive(slot);
            return true;
        };
        let Some(number) = self.index.queue_by_name.get(&target).copied() else { return false };
        let (id, content_hash) = (package.body.id().clone(), package.content_hash);
        if number == package.queue || self.find(number, &id.text()).is_some() || self.state.queues.at(number).deleting {
            return false;
        }
        let labels = package.body.labels().iter().filter(|(key, _)| !key.starts_with("wharf."));
        let mut options = package.body.options().clone();
        options.labels = labels.cloned().collect();
        options.not_before = None;
        options.expire = None;
        let kind = package.body.kind().clone();
        let body = package.body.with_profile(Profile { queue: target.clone(), kind, options });
        self.insert(number, body, content_hash);
        let phase = if dead { Phase::Dead } else { Phase::Cancelled };
        self.finish_as(slot, phase, Some(format!("{target}/{id}").into()), None);
        true
    }

    /// The queue is empty: forget it, and who subscribed to it.
    fn forget_queue(&mut self, number: QueueNo) {
        let name = self.state.queues.at(number).name.clone();
        let subscribers: Vec<_> = self
            .state
            .sessions
            .iter()
            .filter(|(_, session)| session.queues.binary_search(&number).is_ok())
            .map(|(session, _)| session)
            .collect();
        for session in subscribers {
            let (id, epoch) = self.address(session);
            let before = self.state.sessions.at(session).clone();
            self.index.leave_class(session, &before);
            let after = self.state.sessions.at_mut(session);
            after.queues.retain(|queue| *queue != number);
            let after = after.clone();
            self.index.join_class(session, &after);
            self.refresh(session);
            if super::index::is_attached(&self.state, &after) {
                self.now.effects.push(Effect::EndOfWork { session: id, epoch, queue: name.clone() });
            }
        }
        self.now.effects.push(Effect::QueueEnded { queue: name.clone() });
        let queue = self.state.queues.remove(number);
        self.refer(&queue.settings.dead_letter_queue, false);
        self.index.queue_by_name.remove(&name);
        self.index.tombstones -= queue.tombstones.len();
        let line = self.index.line_mut(number);
        let timers = [
            (line.finished_timer, super::index::Timer::Finished(number)),
            (line.grave_timer, super::index::Timer::Tombstone(number)),
        ];
        *line = Default::default();
        for (due, timer) in timers {
            if let Some(due) = due {
                self.index.timers.remove(&(due, timer));
            }
        }
        self.index.candidates.remove(&number);
        self.index.overfull.remove(&number);
        self.index.keepers.remove(&number);
        self.state.bump();
    }
}

/// The states to purge, as bits. Empty: all but LEASED.
pub(super) fn phases(states: &[u32]) -> Result<u32> {
    let mut bits = 0;
    for (place, number) in states.iter().enumerate() {
        let phase = Phase::from_number(*number).filter(|phase| *phase != Phase::Leased);
        let Some(phase) = phase else {
            let problem = "must be a state other than LEASED; cancel leased packages first".to_owned();
            return Err(Reject::BadField { field: format!("states[{place}]"), problem });
        };
        bits |= 1 << phase as u32;
    }
    if states.is_empty() {
        bits =
            Phase::ALL.iter().filter(|phase| **phase != Phase::Leased).fold(0, |bits, phase| bits | 1 << *phase as u32);
    }
    Ok(bits)
}
