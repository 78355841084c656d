//! Leases and the sessions that hold them: granting, what is in hand, ending, and who is to blame.

use std::ops::Bound;
use std::sync::Arc;

use super::command::Speaker;
use super::effect::{Delivery, Effect, LeaseRef};
use super::index::is_attached;
use super::life::Blame;
use super::state::{QueueNo, Session, SessionNo, Settlement, Slot};
use super::{Machine, Reject, Result};
use crate::types::mutant::{self, Mutant};
use crate::types::{Cause, Epoch, Fence, State as Phase, Ticks};

/// What a settlement found.
pub enum Standing {
    /// The lease is current.
    Current(Slot),
    /// It was settled just so before: the recorded answer is OK.
    Answered,
}

impl Machine {
    /// Leases a ready package to a session; what goes out is the caller's to tell.
    pub(super) fn lease(&mut self, slot: Slot, number: SessionNo) {
        let package = self.state.packages.at(slot);
        let queue = package.queue;
        self.index.displace(slot, package);
        let fence = Fence(self.state.bump().0);
        let package = self.state.packages.at_mut(slot);
        package.phase = Phase::Leased;
        package.session = number;
        package.fence = fence;
        package.ticks = Ticks(0);
        package.revision = self.state.revision;
        self.state.grants += 1;
        self.state.queues.at_mut(queue).grants += 1;
        self.index.place(slot, self.state.packages.at(slot));
        self.index.hold(slot, self.state.packages.at(slot));
        self.promote(number);
        let grants = self.state.grants;
        self.state.sessions.at_mut(number).served = grants;
        self.refresh(number);
        self.tell(slot, Some(Phase::Ready), number, None);
    }

    /// A leased package as its holder gets it.
    pub(super) fn delivery(&self, slot: Slot) -> Delivery {
        let package = self.state.packages.at(slot);
        let lease_ms = self.state.queues.at(package.queue).settings.lease_ms;
        Delivery {
            body: package.body.clone(),
            fence: package.fence,
            lease_ms,
            attempt: package.attempts + 1,
            priority: u32::from(package.level),
            checkpoint: package.rare.as_ref().map(|rare| rare.checkpoint.clone()).unwrap_or_default(),
        }
    }

    /// Fills a session's free hands with its oldest prefetch, whose time begins now.
    pub(super) fn promote(&mut self, number: SessionNo) {
        let session = self.state.sessions.at(number);
        let hands = session.hands();
        loop {
            let hold = self.index.held(number);
            if hold.in_hand >= hands {
                return;
            }
            let beyond = (Bound::Excluded(hold.hand_top), Bound::Unbounded);
            let Some((fence, slot)) = hold.leases.range(beyond).next().map(|(fence, slot)| (*fence, *slot)) else {
                return;
            };
            self.take_in_hand(slot, 1);
            let hold = self.index.held_mut(number);
            hold.in_hand += 1;
            hold.hand_top = fence;
        }
    }

    /// Starts a lease's time: a whole one, or half for who returns (`parts` = 2).
    pub(super) fn take_in_hand(&mut self, slot: Slot, parts: u64) {
        let now = self.state.ticks;
        let package = self.state.packages.at_mut(slot);
        let settings = &self.state.queues.at(package.queue).settings;
        self.index.timers.remove(&(package.ticks, super::index::Timer::Lease(slot)));
        let fresh = package.ticks.0 == 0;
        package.ticks = package.ticks.max(now.plus((settings.lease_ms / parts).max(1)));
        if settings.max_run_ms > 0 && fresh {
            package.rare().leased = now;
        }
        self.index.timers.insert((package.ticks, super::index::Timer::Lease(slot)));
    }

    /// Moves a lease's end, within the queue's `max_run`; never nearer, so that a worker's own
    /// heartbeat does not undo what its handler asked for.
    pub(super) fn extend_lease(&mut self, slot: Slot, by_ms: Option<u64>) {
        let package = self.state.packages.at(slot);
        if !package.in_hand() {
            return;
        }
        let settings = &self.state.queues.at(package.queue).settings;
        let mut end = self.state.ticks.plus(by_ms.unwrap_or(settings.lease_ms));
        if settings.max_run_ms > 0 {
            let begin = package.rare.as_ref().map_or(self.state.ticks, |rare| rare.leased);
            end = end.min(begin.plus(settings.max_run_ms));
        }
        let before = package.ticks;
        let end = end.max(before);
        self.index.timers.remove(&(before, super::index::Timer::Lease(slot)));
        self.index.timers.insert((end, super::index::Timer::Lease(slot)));
        let revision = self.state.bump();
        let package = self.state.packages.at_mut(slot);
        package.ticks = end;
        package.revision = revision;
    }

    /// Takes a lease out of its session's hold. The caller then moves the package on, and calls
    /// [`Machine::after_release`].
    pub(super) fn unhold(&mut self, slot: Slot) -> SessionNo {
        let package = self.state.packages.at(slot);
        let (number, queue) = (package.session, package.queue);
        self.index.let_go(package);
        self.promote(number);
        // The queue's own cap has room again.
        if self.state.queues.at(queue).settings.max_in_flight > 0 {
            self.index.candidates.insert(queue);
        }
        number
    }

    /// A session that holds less: more credit, or, when it drains, its end.
    pub(super) fn after_release(&mut self, number: SessionNo) {
        let session = self.state.sessions.at(number);
        let empty = self.index.held(number).leases.is_empty();
        // One without a stream hears of it by its next call.
        let hears = !session.unary || is_attached(&self.state, session);
        if session.draining && empty && hears {
            self.remove_session(number, "drained");
            return;
        }
        if session.unary && empty {
            self.arm_grace(number);
        }
        self.refresh(number);
    }

    /// The session has no stream any more, or its call is over: its grace begins.
    pub(super) fn detach(&mut self, number: SessionNo) {
        let before = self.state.sessions.at(number).clone();
        self.disarm_grace(number, &before);
        self.state.sessions.at_mut(number).detached = Some(self.state.ticks);
        self.arm_grace(number);
        self.state.bump();
        self.refresh(number);
    }

    fn arm_grace(&mut self, number: SessionNo) {
        if let Some(since) = self.state.sessions.at(number).detached {
            let due = since.plus(self.state.cluster.session_grace_ms);
            self.index.timers.insert((due, super::index::Timer::Grace(number)));
        }
    }

    pub(super) fn refresh(&mut self, number: SessionNo) {
        self.index.refresh(&self.state, number, self.state.sessions.at(number));
    }

    /// Which package a settlement means, by the fence alone. `holder`, who speaks, is only where to look first.
    pub(super) fn standing(
        &self,
        holder: Option<SessionNo>,
        queue: &str,
        id: &str,
        fence: u64,
        how: Settlement,
    ) -> Result<Standing> {
        let number = self.queue_no(queue)?;
        let fence = Fence(fence);
        if let Some(slot) = self.lease_of(holder, fence) {
            let package = self.state.packages.at(slot);
            if package.queue == number && package.body.id().is(id) {
                return Ok(Standing::Current(slot));
            }
        }
        if let Some(slot) = self.find(number, id) {
            let package = self.state.packages.at(slot);
            return if package.phase == Phase::Leased && (package.fence == fence || mutant::is(Mutant::AcceptAnyFence)) {
                Ok(Standing::Current(slot))
            } else if package.settled == fence
                && package.settlement == how
                && fence.0 != 0
                && !mutant::is(Mutant::ForgetSettlement)
            {
                Ok(Standing::Answered)
            } else if package.phase.is_finished() {
                Err(Reject::AlreadyFinished { state: package.phase })
            } else {
                Err(Reject::LeaseLost { current: package.fence })
            };
        }
        let Some(grave) = self.find_grave(number, id) else {
            return Err(Reject::PackageNotFound { queue: queue.to_owned(), id: id.to_owned() });
        };
        let same =
            matches!((how, grave.phase), (Settlement::Done, Phase::Completed) | (Settlement::Failed, Phase::Dead));
        if same && grave.fence == fence && fence.0 != 0 {
            Ok(Standing::Answered)
        } else {
            Err(Reject::AlreadyFinished { state: grave.phase })
        }
    }

    /// The lease that a session holds under this fence: few are held, and many packages wait.
    pub(super) fn lease_of(&self, holder: Option<SessionNo>, fence: Fence) -> Option<Slot> {
        self.index.held(holder?).leases.get(&fence).copied()
    }

    /// Records how the holder ended its lease.
    pub(super) fn settle(&mut self, slot: Slot, how: Settlement) {
        let package = self.state.packages.at_mut(slot);
        package.settled = package.fence;
        package.settlement = how;
    }

    /// The queue with this name, unless it is being deleted.
    pub(super) fn queue_no(&self, name: &str) -> Result<QueueNo> {
        let not_found = || Reject::QueueNotFound { queue: name.to_owned() };
        let number = self.index.queue(name).ok_or_else(not_found)?;
        if self.state.queues.at(number).deleting { Err(not_found()) } else { Ok(number) }
    }

    /// The session that speaks, if its epoch is the current one. It is alive, and tells what arrived.
    pub(super) fn hear(&mut self, speaker: Option<&Speaker>) -> Result<SessionNo> {
        let speaker = speaker.ok_or_else(|| Reject::SessionNotFound { session: String::new() })?;
        let number = self.session_no(&speaker.session)?;
        let session = self.state.sessions.at_mut(number);
        if session.epoch.0 != speaker.epoch {
            return Err(Reject::EpochOver { current: session.epoch.0 });
        }
        session.received = session.received.max(Fence(speaker.received_fence));
        if session.silent {
            session.silent = false;
            self.refresh(number);
        }
        Ok(number)
    }

    pub(super) fn session_no(&self, id: &str) -> Result<SessionNo> {
        let found = self.index.session_by_id.get(id).copied();
        found.ok_or_else(|| Reject::SessionNotFound { session: id.to_owned() })
    }

    /// A Done, Fail or SetCredit: withheld credit comes back.
    pub(super) fn restore_credit(&mut self, number: SessionNo) {
        let session = self.state.sessions.at_mut(number);
        if session.withheld > 0 {
            session.withheld = 0;
            self.refresh(number);
        }
    }

    pub(super) fn lease_ref(&self, slot: Slot) -> LeaseRef {
        let package = self.state.packages.at(slot);
        LeaseRef { queue: package.body.queue().clone(), id: package.body.id().clone(), fence: package.fence }
    }

    /// Tells a live session that leases are gone without its doing.
    pub(super) fn revoke(&mut self, number: SessionNo, leases: Vec<LeaseRef>, reason: &'static str) {
        let session = self.state.sessions.at(number);
        if !leases.is_empty() && is_attached(&self.state, session) {
            let (session, epoch) = (session.id.clone(), session.epoch);
            self.now.effects.push(Effect::Revoke { session, epoch, leases, reason });
        }
    }

    /// The session's prefetch, youngest first.
    pub(super) fn prefetch(&self, number: SessionNo) -> Vec<Slot> {
        let hold = self.index.held(number);
        let beyond = (Bound::Excluded(hold.hand_top), Bound::Unbounded);
        hold.leases.range(beyond).rev().map(|(_, slot)| *slot).collect()
    }

    /// Takes back prefetch, youngest first: free, each to its old place.
    pub(super) fn take_back(&mut self, number: SessionNo, count: usize, reason: &'static str) -> usize {
        let slots: Vec<_> = self.prefetch(number).into_iter().take(count).collect();
        let leases = slots.iter().map(|slot| self.lease_ref(*slot)).collect();
        self.revoke(number, leases, reason);
        for slot in &slots {
            self.unhold(*slot);
            self.return_free(*slot, Cause::Reclaimed);
        }
        slots.len()
    }

    /// The lease in hand ran out: that package is charged, the prefetch goes back free, and the
    /// session gets nothing until it is heard from. What was granted to a call and never given to its
    /// caller is charged to nobody.
    pub(super) fn time_out(&mut self, slot: Slot) {
        let package = self.state.packages.at(slot);
        let (number, fence) = (package.session, package.fence);
        let session = self.state.sessions.at_mut(number);
        // Who calls for work is heard by that.
        session.silent = !session.unary;
        let unknown = session.unary && fence > session.received;
        let worker = session.worker.clone();
        self.take_back(number, usize::MAX, "a lease of this worker timed out");
        let lease = self.lease_ref(slot);
        self.revoke(number, vec![lease], "the lease timed out");
        self.unhold(slot);
        if unknown {
            self.return_free(slot, Cause::Released);
            self.after_release(number);
            return;
        }
        self.charge(
            slot,
            &Blame {
                cause: Cause::TimedOut,
                message: "the lease ran out while the package was in hand",
                code: "",
                worker,
                permanent: false,
                retry_delay_ms: None,
            },
        );
        self.after_release(number);
    }

    /// A session ends with all it holds. `died`: its worker is to blame for what it had in hand.
    pub(super) fn close(&mut self, number: SessionNo, died: bool, cause: Cause, reason: &'static str) {
        let session = self.state.sessions.at(number);
        let (received, worker) = (session.received, session.worker.clone());
        let slots: Vec<Slot> = self.index.held(number).leases.values().copied().collect();
        let held = slots.iter().map(|slot| self.state.packages.at(*slot));
        let begun = |package: &super::state::Package| package.in_hand() && package.fence <= received;
        let guilty =
            slots.iter().zip(held).find(|(_, package)| begun(package) && package.suspect).map(|(slot, _)| *slot);
        let marks: Vec<bool> =
            slots.iter().map(|slot| died && guilty.is_none() && begun(self.state.packages.at(*slot))).collect();
        for (slot, mark) in slots.into_iter().zip(marks) {
            // Nothing is promoted meanwhile: its time must not begin.
            let package = self.state.packages.at(slot);
            self.index.candidates.insert(package.queue);
            self.index.let_go(package);
            if died && guilty == Some(slot) {
                self.charge(
                    slot,
                    &Blame {
                        cause: Cause::WorkerLost,
                        message: "the worker died twice with this package in hand",
                        code: "",
                        worker: worker.clone(),
                        permanent: false,
                        retry_delay_ms: None,
                    },
                );
                continue;
            }
            if mark {
                self.accuse(slot);
            }
            self.return_free(slot, cause);
        }
        self.remove_session(number, reason);
    }

    fn accuse(&mut self, slot: Slot) {
        let package = self.state.packages.at_mut(slot);
        package.suspect = true;
    }

    /// The worker itself ended the lease: it did not die of the package.
    pub(super) fn exonerate(&mut self, slot: Slot) {
        self.state.packages.at_mut(slot).suspect = false;
    }

    /// Forgets a session that holds nothing.
    pub(super) fn remove_session(&mut self, number: SessionNo, reason: &'static str) {
        let session = self.state.sessions.at(number).clone();
        if is_attached(&self.state, &session) {
            let (id, epoch) = (session.id.clone(), session.epoch);
            self.now.effects.push(Effect::SessionClosed { session: id, epoch, reason });
        }
        self.disarm_grace(number, &session);
        self.index.leave_class(number, &session);
        self.index.session_by_id.remove(&session.id);
        *self.index.held_mut(number) = Default::default();
        self.state.sessions.remove(number);
        self.state.bump();
    }

    pub(super) fn disarm_grace(&mut self, number: SessionNo, session: &Session) {
        if let Some(since) = session.detached {
            let due = since.plus(self.state.cluster.session_grace_ms);
            self.index.timers.remove(&(due, super::index::Timer::Grace(number)));
        }
    }

    /// Sorts a session's leases anew into those in hand and prefetch, each deadline at least half a
    /// lease from now: after a Hello, which may bring another `concurrency`.
    pub(super) fn rehand(&mut self, number: SessionNo) {
        let hands = self.state.sessions.at(number).hands();
        let slots: Vec<(Fence, Slot)> =
            self.index.held(number).leases.iter().map(|(fence, slot)| (*fence, *slot)).collect();
        let hold = self.index.held_mut(number);
        hold.in_hand = 0;
        hold.hand_top = Fence(0);
        for (place, (fence, slot)) in slots.into_iter().enumerate() {
            if place < hands {
                let fresh = !self.state.packages.at(slot).in_hand();
                self.take_in_hand(slot, if fresh { 1 } else { 2 });
                let hold = self.index.held_mut(number);
                hold.in_hand += 1;
                hold.hand_top = fence;
            } else {
                let ticks = self.state.packages.at(slot).ticks;
                self.index.timers.remove(&(ticks, super::index::Timer::Lease(slot)));
                self.state.packages.at_mut(slot).ticks = Ticks(0);
            }
        }
    }

    /// Who speaks on the session's stream, for effects.
    pub(super) fn address(&self, number: SessionNo) -> (Arc<str>, Epoch) {
        let session = self.state.sessions.at(number);
        (session.id.clone(), session.epoch)
    }
}
