//! What each command does, by the book.

use std::collections::BTreeMap;

use wharf::machine::command::{NewPackage, OpenSession, Reply};
use wharf::machine::{Machine, Reject};
use wharf::proto::internal::new_package::{Expiry, Schedule};
use wharf::types::{Cause, State};

use super::{Check, Due, How, Key, Model, Package, Session, ensure};

impl Model {
    /// `Ok(duplicate)` or the reject's name.
    pub(super) fn submit(&mut self, new: &NewPackage) -> Result<bool, &'static str> {
        let key = (new.queue.clone(), new.id.clone());
        if !self.queues.contains_key(&new.queue) {
            return Err("QueueNotFound");
        }
        if let Some(old) = self.packages.get(&key) {
            return if old.hash == new.content_hash { Ok(true) } else { Err("IdConflict") };
        }
        let (ticks, wall) = (self.ticks, self.wall);
        let queue = self.queue(&new.queue);
        if queue.sealed {
            return Err("QueueSealed");
        }
        queue.places += 1;
        queue.submitted += 1;
        let due = match new.schedule {
            Some(Schedule::NotBeforeWall(at)) => Some(at),
            Some(Schedule::DelayMs(delay)) => Some(wall + delay),
            None => None,
        };
        let due = due.filter(|at| *at > wall);
        let package = Package {
            state: if due.is_some() { State::Scheduled } else { State::Ready },
            kind: new.kind.clone(),
            priority: new.priority.or(queue.settings.default_priority).unwrap_or(4),
            place: queue.places,
            hash: new.content_hash,
            max_attempts: new.max_attempts.or(queue.settings.max_attempts).unwrap_or(5),
            attempts: 0,
            fence: 0,
            holder: None,
            deadline: None,
            suspect: false,
            due: due.map(Due::Wall),
            expire: match new.expiry {
                Some(Expiry::ExpireWall(at)) => Some(at),
                Some(Expiry::TtlMs(ttl)) => Some(wall + ttl),
                None => None,
            },
            settled: None,
            moved: false,
            finish: ticks,
            gone: None,
        };
        self.packages.insert(key, package);
        Ok(false)
    }

    /// The answers allowed to a settlement that does not meet its lease; empty: it does.
    pub(super) fn without_lease(&self, key: &Key, fence: u64, how: How) -> Vec<&'static str> {
        if !self.queues.contains_key(&key.0) {
            return vec!["QueueNotFound"];
        }
        let Some(package) = self.packages.get(key) else { return vec!["PackageNotFound"] };
        if package.state == State::Leased && package.fence == fence {
            return Vec::new();
        }
        if package.settled == Some((fence, how)) {
            // A tombstone knows the outcome and the last fence, not how an earlier lease ended.
            let plain = matches!((how, package.state), (How::Done, State::Completed) | (How::Failed, State::Dead));
            return if package.gone.is_none() || plain { vec!["ok"] } else { vec!["ok", "AlreadyFinished"] };
        }
        // What was released may be remembered or not; said twice it is harmless.
        if how == How::Released {
            return vec!["ok", "LeaseLost", "AlreadyFinished"];
        }
        if package.gone.is_some() || package.state.is_finished() { vec!["AlreadyFinished"] } else { vec!["LeaseLost"] }
    }

    pub(super) fn complete(&mut self, key: &Key, fence: u64) -> Vec<&'static str> {
        let refusal = self.without_lease(key, fence, How::Done);
        if refusal.is_empty() {
            self.unlease(key, None);
            let package = self.package(key);
            package.attempts += 1;
            package.settled = Some((fence, How::Done));
            package.suspect = false;
            self.finish(key, State::Completed);
            self.close_the_drained();
            return vec!["ok"];
        }
        refusal
    }

    pub(super) fn fail(
        &mut self,
        key: &Key,
        fence: u64,
        permanent: bool,
        delay: Option<u64>,
        machine: &Machine,
    ) -> Result<Vec<&'static str>, String> {
        let refusal = self.without_lease(key, fence, How::Failed);
        if !refusal.is_empty() {
            return Ok(refusal);
        }
        self.unlease(key, Some(Cause::Failed));
        let package = self.package(key);
        package.settled = Some((fence, How::Failed));
        package.suspect = false;
        self.charge(key, permanent, delay, machine)?;
        self.close_the_drained();
        Ok(vec!["ok"])
    }

    pub(super) fn extend(
        &mut self,
        session: Option<&str>,
        key: &Key,
        fence: u64,
        by: Option<u64>,
    ) -> Vec<&'static str> {
        // A lease that was completed cannot be extended, so no answer is recorded.
        let refusal = self.without_lease(key, fence, How::Extended);
        if !refusal.is_empty() {
            return refusal;
        }
        if session.is_some() && self.packages[key].holder.as_deref() != session {
            return vec!["LeaseLost"];
        }
        let lease = self.lease_ms(&key.0);
        let until = self.ticks + by.unwrap_or(lease);
        let package = self.package(key);
        // It never shortens.
        package.deadline = package.deadline.map(|deadline| deadline.max(until));
        vec!["ok"]
    }

    pub(super) fn release(&mut self, session: Option<&str>, key: &Key, fence: u64) -> Vec<&'static str> {
        let refusal = self.without_lease(key, fence, How::Released);
        if !refusal.is_empty() {
            return refusal;
        }
        let holder = self.packages[key].holder.clone();
        if session.is_some() && holder.as_deref() != session {
            // A drained session is gone with the last lease that this very message gave back.
            return vec!["LeaseLost", "SessionNotFound"];
        }
        self.unlease(key, Some(Cause::Released));
        self.package(key).settled = Some((fence, How::Released));
        self.back(key);
        if let Some(session) = holder.and_then(|holder| self.sessions.get_mut(&holder)) {
            session.withheld += 1;
        }
        self.close_the_drained();
        vec!["ok"]
    }

    pub(super) fn reclaim(&mut self, name: &str, count: u32) {
        let Some(session) = self.sessions.get(name) else { return };
        let youngest: Vec<Key> = session
            .prefetch()
            .into_iter()
            .rev()
            .take(count as usize)
            .map(|fence| session.leases[&fence].clone())
            .collect();
        for key in &youngest {
            self.unlease(key, Some(Cause::Reclaimed));
            self.back(key);
        }
        if let Some(session) = self.sessions.get_mut(name) {
            session.withheld += u32::try_from(youngest.len()).unwrap_or(u32::MAX);
        }
        self.close_the_drained();
    }

    pub(super) fn cancel(&mut self, key: &Key) -> &'static str {
        if !self.queues.contains_key(&key.0) {
            return "QueueNotFound";
        }
        match self.packages.get(key) {
            None => "PackageNotFound",
            Some(package) if package.gone.is_some() => "AlreadyFinished",
            Some(package) if package.state == State::Cancelled => "ok",
            Some(package) if package.state.is_finished() => "AlreadyFinished",
            Some(package) => {
                if package.state == State::Leased {
                    self.unlease(key, None);
                }
                self.finish(key, State::Cancelled);
                self.close_the_drained();
                "ok"
            }
        }
    }

    pub(super) fn retry(&mut self, key: &Key) -> &'static str {
        let wall = self.wall;
        let Some(package) = self.packages.get_mut(key) else { return "PackageNotFound" };
        if package.gone.is_some() {
            return "AlreadyFinished";
        }
        if package.state != State::Dead || package.moved {
            return "NotDead";
        }
        package.attempts = 0;
        package.suspect = false;
        package.state = State::Ready;
        // Who tries again means it: a time that has passed is dropped.
        package.expire = package.expire.filter(|at| *at > wall);
        self.revived_now.insert(key.0.clone());
        "ok"
    }

    pub(super) fn purge(&mut self, queue: &str, states: &[u32]) {
        let ticks = self.ticks;
        let meant = |(key, package): &(&Key, &Package)| {
            let state = package.state;
            let meant = if states.is_empty() { state != State::Leased } else { states.contains(&(state as u32)) };
            key.0 == queue && package.gone.is_none() && meant
        };
        let keys: Vec<Key> = self.packages.iter().filter(meant).map(|(key, _)| key.clone()).collect();
        for key in keys {
            // What still waited ends first, so that whoever waits for it is told.
            if !self.packages[&key].state.is_finished() {
                self.end(&key, State::Cancelled);
            }
            self.package(&key).gone = Some(ticks);
        }
    }

    pub(super) fn open(&mut self, op: &OpenSession, result: &Result<Reply, Reject>) -> Check {
        ensure!(result.is_ok(), "Hello refused");
        let now = self.ticks;
        let session = self.sessions.entry(op.session.clone()).or_insert_with(|| Session {
            epoch: 0,
            queues: Vec::new(),
            kinds: Vec::new(),
            max: 0,
            concurrency: 0,
            received: 0,
            withheld: 0,
            draining: false,
            silent: false,
            detached: None,
            by_failover: false,
            unary: false,
            leases: BTreeMap::new(),
        });
        let ran_on = session.unary;
        session.epoch += 1;
        session.queues.clone_from(&op.queues);
        session.kinds.clone_from(&op.kinds);
        session.max = op.max_in_flight;
        session.concurrency = if op.unary { 0 } else { op.concurrency as usize };
        session.unary = op.unary;
        session.received = session.received.max(op.received_fence);
        session.silent = false;
        session.withheld = 0;
        session.detached = None;
        session.by_failover = false;
        if op.unary {
            self.readmit(op, ran_on);
            self.close_the_drained();
            return Ok(());
        }
        let received = session.received;
        let concurrency = session.concurrency;
        let listed = |fence: &u64| op.held.iter().any(|lease| lease.fence == *fence);
        let unlisted: Vec<(u64, Key)> = session
            .leases
            .iter()
            .filter(|(fence, _)| !listed(fence))
            .map(|(fence, key)| (*fence, key.clone()))
            .collect();
        for (fence, key) in unlisted {
            if fence > received {
                self.unreceived.insert(fence);
            } else {
                // It came, and the worker has it no more: a new process under the old name.
                self.take_away(&key, Some(Cause::Released));
                self.back(&key);
            }
        }
        let hands = if concurrency == 0 { usize::MAX } else { concurrency };
        let leases: Vec<Key> = self.sessions[&op.session].leases.values().cloned().collect();
        for (place, key) in leases.iter().enumerate() {
            let lease = self.lease_ms(&key.0);
            let package = self.package(key);
            package.deadline = match package.deadline {
                _ if place >= hands => None,
                Some(deadline) => Some(deadline.max(now + lease / 2)),
                None => Some(now + lease),
            };
        }
        self.close_the_drained();
        Ok(())
    }

    /// A call for work: what never came is sent again, with credit for what else it wants.
    fn readmit(&mut self, op: &OpenSession, ran_on: bool) {
        let now = self.ticks;
        let session = self.sessions.get_mut(&op.session).expect("just opened");
        let leases: Vec<(u64, Key)> = session.leases.iter().map(|(fence, key)| (*fence, key.clone())).collect();
        let unseen = leases.iter().filter(|(fence, _)| *fence > op.received_fence).count() as u32;
        session.max = (leases.len() as u32 + op.max_in_flight.saturating_sub(unseen)).min(1_000);
        for (fence, key) in leases {
            let lease = self.lease_ms(&key.0);
            let package = self.package(&key);
            let half = package.deadline.unwrap_or(0).max(now + lease / 2);
            if fence > op.received_fence {
                package.deadline = Some(if package.deadline.is_some() { half } else { now + lease });
                self.unreceived.insert(fence);
            } else if !ran_on {
                package.deadline = Some(if package.deadline.is_some() { half } else { now + lease });
            }
        }
    }

    /// What was granted to a call and not given to its caller goes back.
    pub(super) fn give_back(&mut self, name: &str) {
        let session = &self.sessions[name];
        let beyond: Vec<Key> =
            session.leases.iter().filter(|(fence, _)| **fence > session.received).map(|(_, key)| key.clone()).collect();
        for key in beyond {
            self.unlease(&key, Some(Cause::Released));
            self.back(&key);
        }
    }

    /// Ends a session. `lost`: its worker died, as far as one can tell.
    pub(super) fn close(&mut self, name: &str, lost: bool, machine: &Machine) -> Check {
        let Some(session) = self.sessions.get(name).cloned() else { return Ok(()) };
        let in_hand = session.in_hand();
        let guilty = in_hand
            .iter()
            .copied()
            .find(|fence| *fence <= session.received && self.packages[&session.leases[fence]].suspect);
        for (fence, key) in &session.leases {
            self.take_away(key, Some(Cause::WorkerLost));
            let known = lost && in_hand.contains(fence) && *fence <= session.received;
            match guilty {
                Some(guilty) if known && guilty == *fence => self.charge(key, false, None, machine)?,
                None if known => {
                    self.package(key).suspect = true;
                    self.back(key);
                }
                _ => self.back(key),
            }
        }
        self.sessions.remove(name);
        Ok(())
    }

    /// Draining sessions without leases are gone; who works by calls hears of it by the next one.
    pub(super) fn close_the_drained(&mut self) {
        let waits = |session: &Session| session.unary && session.detached.is_some();
        self.sessions.retain(|_, session| !session.draining || !session.leases.is_empty() || waits(session));
    }
}
