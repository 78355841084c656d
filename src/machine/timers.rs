//! What time does: leases, backoffs, graces and windows end; schedules and expiries come. Only a
//! `Tick` lets it act, a bounded number at a time.

use super::index::{Alarm, Timer, is_attached};
use super::state::{QueueNo, SessionNo, Slot};
use super::{Machine, Reply, Result};
use crate::types::{Cause, State as Phase, limits};

impl Machine {
    pub(super) fn on_tick(&mut self) -> Result<Reply> {
        while self.now.changes < limits::MAX_CHANGES_A_COMMAND {
            if let Some((due, timer)) = self.index.timers.first().copied()
                && due <= self.state.ticks
            {
                self.index.timers.remove(&(due, timer));
                self.ring(timer);
            } else if let Some((due, alarm)) = self.index.alarms.first().copied()
                && due <= self.state.wall
            {
                self.index.alarms.remove(&(due, alarm));
                self.come_due(alarm);
            } else {
                break;
            }
        }
        self.close_stale();
        Ok(Reply::Done)
    }

    fn ring(&mut self, timer: Timer) {
        match timer {
            Timer::Lease(slot) => self.lease_due(slot),
            Timer::Backoff(slot) => self.make_ready(slot, None),
            Timer::Grace(number) => self.grace_over(number),
            Timer::Failover => {
                self.state.failover_armed = false;
                self.state.stale_cursor = Some(0);
            }
            Timer::Finished(queue) => self.finished_due(queue),
            Timer::Tombstone(queue) => self.tombstones_due(queue),
        }
    }

    /// A worker that cannot be heard cannot be late: its leases wait for it, or for its grace. One that
    /// works by single calls has no stream to be heard on, so its leases run on.
    fn lease_due(&mut self, slot: Slot) {
        let session = self.state.sessions.at(self.state.packages.at(slot).session);
        if session.unary || is_attached(&self.state, session) {
            self.time_out(slot);
        }
    }

    /// After a change of leader everybody has `failover_grace` instead.
    fn grace_over(&mut self, number: SessionNo) {
        let session = self.state.sessions.at(number);
        if self.outlives_its_calls(number) {
            return;
        }
        if session.attached >= self.state.leader_index || !self.state.failover_armed {
            self.close(number, true, Cause::WorkerLost, "did not come back in time");
        }
    }

    fn come_due(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Due(slot) => self.make_ready(slot, None),
            Alarm::Expire(slot) => self.finish(slot, Phase::Expired),
        }
    }

    fn finished_due(&mut self, queue: QueueNo) {
        self.index.line_mut(queue).finished_timer = None;
        let keep = self.state.queues.at(queue).settings.keep_finished_ms;
        while self.now.changes < limits::MAX_CHANGES_A_COMMAND {
            let Some((_, slot)) = self.index.line(queue).finished.first_key_value() else { break };
            let slot = *slot;
            if self.state.packages.at(slot).ticks.plus(keep) > self.state.ticks {
                break;
            }
            self.remove(slot, true);
        }
        self.index.arm_queue(&self.state, queue);
    }

    fn tombstones_due(&mut self, number: QueueNo) {
        self.index.line_mut(number).grave_timer = None;
        while self.now.changes < limits::MAX_CHANGES_A_COMMAND {
            let tombstones = &mut self.state.queues.at_mut(number).tombstones;
            if tombstones.front().is_none_or(|grave| grave.until > self.state.ticks) {
                break;
            }
            let Some((position, grave)) = tombstones.pop() else { break };
            self.index.line_mut(number).graves.remove(grave.id_hash as u64, position as u32);
            self.index.tombstones -= 1;
            self.now.changes += 1;
        }
        self.index.arm_queue(&self.state, number);
    }

    /// It holds leases that run on without a stream; its grace counts again once they have ended.
    fn outlives_its_calls(&self, number: SessionNo) -> bool {
        self.state.sessions.at(number).unary && !self.index.held(number).leases.is_empty()
    }

    /// Closes, free of charge, sessions that did not come back after the change of leader.
    pub(super) fn close_stale(&mut self) {
        while let Some(number) = self.state.stale_cursor
            && self.now.changes < limits::MAX_CHANGES_A_COMMAND
        {
            let next: SessionNo = number + 1;
            self.state.stale_cursor = (next < self.state.sessions.slots()).then_some(next);
            let Some(session) = self.state.sessions.get(number) else { continue };
            if session.attached >= self.state.leader_index {
                continue;
            }
            if self.outlives_its_calls(number) {
                self.detach(number);
            } else {
                self.close(number, false, Cause::WorkerLost, "did not come back after a change of leader");
            }
        }
    }
}
