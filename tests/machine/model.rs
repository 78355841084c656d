//! What the machine must do, written to be obviously right: no index, no timer, every rule a scan.
//!
//! The model predicts replies, states, attempts, sessions and counters. Who gets what it does not
//! predict but judge: each grant must be one that the rules allow, and when the machine says that
//! nothing is left to match, nothing may be. Where the rules leave a span (jitter of a backoff),
//! the model looks at what the machine chose, checks that it lies in the span, and goes on from it.

use std::collections::{BTreeMap, BTreeSet};

use wharf::machine::command::{NewPackage, Op, QueueSettings, Reply, Speaker};
use wharf::machine::view::SessionStatus;
use wharf::machine::{Applied, Effect, Machine, Outcome, Reject};
use wharf::proto::internal::new_package::{Expiry, Schedule};
use wharf::types::{Cause, State, limits};

/// Queue and id.
pub type Key = (String, String);

/// A package, present or gone.
#[derive(Clone, Debug)]
pub struct Package {
    pub state: State,
    pub kind: String,
    pub priority: u32,
    /// Its place in the queue's order of arrival; it never changes.
    pub place: u64,
    pub hash: u64,
    pub max_attempts: u32,
    pub attempts: u32,
    /// The last one granted; 0: none yet.
    pub fence: u64,
    pub holder: Option<String>,
    /// In hand: when the lease ends, in ticks.
    pub deadline: Option<u64>,
    pub suspect: bool,
    pub due: Option<Due>,
    pub expire: Option<u64>,
    /// The last lease that its worker ended, and how.
    pub settled: Option<(u64, How)>,
    pub moved: bool,
    /// Ticks when it finished.
    pub finish: u64,
    /// Ticks when it left a tombstone.
    pub gone: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Done,
    Failed,
    Released,
    /// Never recorded.
    Extended,
}

#[derive(Clone, Copy, Debug)]
pub enum Due {
    Wall(u64),
    Ticks(u64),
}

#[derive(Debug, Default)]
pub struct Queue {
    pub settings: QueueSettings,
    pub paused: bool,
    pub sealed: bool,
    pub ended: bool,
    places: u64,
    completed: u64,
    cancelled: u64,
    expired: u64,
    submitted: u64,
    lease_ends: [u64; 7],
}

#[derive(Clone, Debug)]
pub struct Session {
    pub epoch: u64,
    pub queues: Vec<String>,
    pub kinds: Vec<String>,
    pub max: u32,
    pub concurrency: usize,
    pub received: u64,
    pub withheld: u32,
    pub draining: bool,
    pub silent: bool,
    /// Since when (ticks) it has no stream, and the grace it has.
    pub detached: Option<(u64, u64)>,
    /// Detached by a change of leader: free of charge.
    pub by_failover: bool,
    /// Fence to package, so oldest first.
    pub leases: BTreeMap<u64, Key>,
}

/// See the module.
#[derive(Default)]
pub struct Model {
    pub ticks: u64,
    pub wall: u64,
    pub queues: BTreeMap<String, Queue>,
    pub packages: BTreeMap<Key, Package>,
    pub sessions: BTreeMap<String, Session>,
    pub session_grace: u64,
    pub failover_grace: u64,
    highest_fence: u64,
    /// Leases that a returning worker never received: to be sent again in this batch.
    unreceived: BTreeSet<u64>,
    finished_now: BTreeSet<Key>,
    /// Queues that had work again in this batch: whether they ended anew in it, is not followed.
    revived_now: BTreeSet<String>,
    ended_now: BTreeSet<String>,
}

type Check = Result<(), String>;

macro_rules! ensure {
    ($cond:expr, $($why:tt)*) => {
        if !$cond {
            return Err(format!($($why)*));
        }
    };
}

impl Model {
    /// Follows one batch: `ops` went in, `applied` came out, `machine` is the state after.
    pub fn follow(&mut self, stamps: (u64, u64), ops: &[Op], applied: &Applied, machine: &Machine) -> Check {
        self.ticks = stamps.0.clamp(self.ticks, self.ticks + limits::MAX_TICK_STEP_MS);
        self.wall = self.wall.max(stamps.1);
        self.finished_now.clear();
        self.ended_now.clear();
        self.revived_now.clear();
        self.forget_tombstones();
        for (at, (op, outcome)) in ops.iter().zip(&applied.outcomes).enumerate() {
            self.step(op, outcome, machine)
                .map_err(|why| format!("command {at} {op:?}\n  gave {outcome:?}\n  {why}"))?;
        }
        self.grants(applied)?;
        self.move_up();
        let summary = machine.summary();
        if !summary.needs_advance {
            self.nothing_left()?;
        }
        self.note_ended();
        self.hints(applied)?;
        self.compare(machine)
    }

    fn step(&mut self, op: &Op, outcome: &Outcome, machine: &Machine) -> Check {
        let result = &outcome.result;
        match op {
            Op::Submit(submit) => {
                let Ok(Reply::Submitted(answers)) = result else { return Err("no answers".into()) };
                ensure!(answers.len() == submit.packages.len(), "a number of answers of its own");
                for (package, answer) in submit.packages.iter().zip(answers) {
                    let expected = self.submit(package);
                    let same = match (&expected, answer) {
                        (Ok(duplicate), Ok(submitted)) => *duplicate == submitted.duplicate,
                        (Err(name), Err(reject)) => named(reject) == *name,
                        _ => false,
                    };
                    ensure!(same, "{}: expected {expected:?}, got {answer:?}", package.id);
                }
                Ok(())
            }
            Op::Complete(op) => {
                self.heard(op.speaker.as_ref(), true);
                let parts = op.completions.iter().map(|part| (&part.queue, &part.id, part.fence));
                self.settle(parts, result, |model, key, fence| model.complete(key, fence))
            }
            Op::Fail(op) => {
                self.heard(op.speaker.as_ref(), true);
                for (part, answer) in op.failed.iter().zip(settled(result)?) {
                    let key = (part.queue.clone(), part.id.clone());
                    let expected = self.fail(&key, part.fence, part.permanent, part.retry_delay_ms, machine)?;
                    expect(&key, &expected, answer)?;
                }
                Ok(())
            }
            Op::Extend(op) => {
                let Some(current) = self.speaks(op.speaker.as_ref(), result)? else { return Ok(()) };
                let session = current;
                for (part, answer) in op.extensions.iter().zip(settled(result)?) {
                    let key = (part.queue.clone(), part.id.clone());
                    let expected = self.extend(&session, &key, part.fence, part.by_ms);
                    expect(&key, &expected, answer)?;
                }
                Ok(())
            }
            Op::Release(op) => {
                let Some(session) = self.speaks(op.speaker.as_ref(), result)? else { return Ok(()) };
                let parts = op.leases.iter().map(|part| (&part.queue, &part.id, part.fence));
                self.settle(parts, result, |model, key, fence| model.release(&session, key, fence))
            }
            Op::SetCredit(op) => {
                let Some(session) = self.speaks(op.speaker.as_ref(), result)? else { return Ok(()) };
                ensure!(result.is_ok(), "credit refused");
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.max = op.max_in_flight;
                    session.withheld = 0;
                }
                Ok(())
            }
            Op::Heard(op) => {
                self.speaks(op.speaker.as_ref(), result)?;
                Ok(())
            }
            Op::OpenSession(op) => self.open(op, result),
            Op::DetachSession(op) => {
                let Some(name) = self.speaks(op.speaker.as_ref(), result)? else { return Ok(()) };
                let since = (self.ticks, self.session_grace);
                if let Some(session) = self.sessions.get_mut(&name) {
                    session.detached.get_or_insert(since);
                }
                Ok(())
            }
            Op::DrainSession(op) => {
                let Some(name) = self.addressed(&op.session, op.epoch, result)? else { return Ok(()) };
                if let Some(session) = self.sessions.get_mut(&name) {
                    session.draining = true;
                }
                self.close_the_drained();
                Ok(())
            }
            Op::CloseSession(op) => {
                let Some(name) = self.addressed(&op.session, op.epoch, result)? else { return Ok(()) };
                self.close(&name, false, machine)
            }
            Op::Reclaim(op) => {
                let Some(name) = self.addressed(&op.session, op.epoch, result)? else { return Ok(()) };
                self.reclaim(&name, op.count);
                Ok(())
            }
            Op::Cancel(op) => {
                let expected = self.cancel(&(op.queue.clone(), op.id.clone()));
                expect_one(&expected, result)
            }
            Op::Retry(op) => {
                let expected = self.retry(&(op.queue.clone(), op.id.clone()));
                expect_one(&expected, result)
            }
            Op::Purge(op) => {
                ensure!(matches!(result, Ok(Reply::Sweep(_))), "purge refused");
                self.purge(&op.queue, &op.states);
                Ok(())
            }
            Op::CreateQueue(op) => {
                ensure!(result.is_ok(), "create refused");
                let settings = machine.queue(&op.name).map_err(|reject| format!("{reject:?}"))?.settings;
                self.queues.entry(op.name.clone()).or_insert(Queue { settings, ..Queue::default() });
                Ok(())
            }
            Op::PauseQueue(op) => {
                ensure!(result.is_ok(), "pause refused");
                self.queue(&op.name).paused = op.paused;
                Ok(())
            }
            Op::SealQueue(op) => {
                ensure!(result.is_ok(), "seal refused");
                self.queue(&op.name).sealed = op.sealed;
                Ok(())
            }
            Op::SetCluster(op) => {
                let settings = op.settings.clone().unwrap_or_default();
                self.session_grace = settings.session_grace_ms.unwrap_or(self.session_grace);
                self.failover_grace = settings.failover_grace_ms.unwrap_or(self.failover_grace);
                Ok(())
            }
            Op::LeaderStarted(_) => {
                // Also who was away before: it could not come back while there was no leader.
                for session in self.sessions.values_mut() {
                    session.detached = Some((self.ticks, self.failover_grace));
                    session.by_failover = true;
                }
                Ok(())
            }
            Op::Tick(_) => self.tick(machine),
            Op::Advance(_) | Op::Fingerprint(_) => Ok(()),
            Op::Redrive(_) | Op::UpdateQueue(_) | Op::DeleteQueue(_) | Op::RaiseVersion(_) => {
                Err("the model does not know this command".into())
            }
        }
    }

    fn queue(&mut self, name: &str) -> &mut Queue {
        self.queues.get_mut(name).expect("the generator names queues that are")
    }

    /// `Ok(duplicate)` or the reject's name.
    fn submit(&mut self, new: &NewPackage) -> Result<bool, &'static str> {
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

    /// The words of a speaker whose settlements stand on the fence alone.
    fn heard(&mut self, speaker: Option<&Speaker>, gives_credit: bool) {
        let Some(speaker) = speaker else { return };
        let Some(session) = self.sessions.get_mut(&speaker.session) else { return };
        if session.epoch != speaker.epoch {
            return;
        }
        session.received = session.received.max(speaker.received_fence);
        session.silent = false;
        if gives_credit {
            session.withheld = 0;
        }
    }

    /// The same where the epoch must be the current one; `None`: rightly refused.
    fn speaks(&mut self, speaker: Option<&Speaker>, result: &Result<Reply, Reject>) -> Result<Option<String>, String> {
        let name = self.speaks_quietly(speaker, result)?;
        if name.is_some() {
            self.heard(speaker, false);
        }
        Ok(name)
    }

    fn speaks_quietly(
        &mut self,
        speaker: Option<&Speaker>,
        result: &Result<Reply, Reject>,
    ) -> Result<Option<String>, String> {
        let speaker = speaker.ok_or("the generator names a speaker")?;
        self.addressed(&speaker.session, speaker.epoch.max(1), result)
    }

    fn addressed(&self, name: &str, epoch: u64, result: &Result<Reply, Reject>) -> Result<Option<String>, String> {
        let refused = result.as_ref().err().map(named);
        let expected = match self.sessions.get(name) {
            None => Some("SessionNotFound"),
            Some(session) if epoch != 0 && session.epoch != epoch => Some("EpochOver"),
            Some(_) => None,
        };
        if refused != expected {
            return Err(format!("expected {expected:?}"));
        }
        Ok(expected.is_none().then(|| name.to_owned()))
    }

    fn settle<'a>(
        &mut self,
        parts: impl Iterator<Item = (&'a String, &'a String, u64)>,
        result: &Result<Reply, Reject>,
        mut by: impl FnMut(&mut Self, &Key, u64) -> Vec<&'static str>,
    ) -> Check {
        for ((queue, id, fence), answer) in parts.zip(settled(result)?) {
            let key = (queue.clone(), id.clone());
            let expected = by(self, &key, fence);
            expect(&key, &expected, answer)?;
        }
        Ok(())
    }

    /// The answers allowed to a settlement that does not meet its lease; empty: it does.
    fn without_lease(&self, key: &Key, fence: u64, how: How) -> Vec<&'static str> {
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

    fn complete(&mut self, key: &Key, fence: u64) -> Vec<&'static str> {
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

    fn fail(
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

    fn extend(&mut self, session: &str, key: &Key, fence: u64, by: Option<u64>) -> Vec<&'static str> {
        // A lease that was completed cannot be extended, so no answer is recorded.
        let refusal = self.without_lease(key, fence, How::Extended);
        if !refusal.is_empty() {
            return refusal;
        }
        if self.packages[key].holder.as_deref() != Some(session) {
            return vec!["LeaseLost"];
        }
        let lease = self.lease_ms(&key.0);
        let until = self.ticks + by.unwrap_or(lease);
        let package = self.package(key);
        // It never shortens.
        package.deadline = package.deadline.map(|deadline| deadline.max(until));
        vec!["ok"]
    }

    fn release(&mut self, session: &str, key: &Key, fence: u64) -> Vec<&'static str> {
        let refusal = self.without_lease(key, fence, How::Released);
        if !refusal.is_empty() {
            return refusal;
        }
        if self.packages[key].holder.as_deref() != Some(session) {
            // A drained session is gone with the last lease that this very message gave back.
            return vec!["LeaseLost", "SessionNotFound"];
        }
        self.unlease(key, Some(Cause::Released));
        self.package(key).settled = Some((fence, How::Released));
        self.back(key);
        if let Some(session) = self.sessions.get_mut(session) {
            session.withheld += 1;
        }
        self.close_the_drained();
        vec!["ok"]
    }

    fn reclaim(&mut self, name: &str, count: u32) {
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

    fn cancel(&mut self, key: &Key) -> &'static str {
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

    fn retry(&mut self, key: &Key) -> &'static str {
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

    fn purge(&mut self, queue: &str, states: &[u32]) {
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
                self.finish(&key, State::Cancelled);
            }
            self.package(&key).gone = Some(ticks);
        }
    }

    fn open(&mut self, op: &wharf::machine::command::OpenSession, result: &Result<Reply, Reject>) -> Check {
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
            leases: BTreeMap::new(),
        });
        session.epoch += 1;
        session.queues.clone_from(&op.queues);
        session.kinds.clone_from(&op.kinds);
        session.max = op.max_in_flight;
        session.concurrency = op.concurrency as usize;
        session.received = session.received.max(op.received_fence);
        session.silent = false;
        session.withheld = 0;
        session.detached = None;
        session.by_failover = false;
        self.unreceived.extend(session.leases.keys().filter(|fence| **fence > session.received));
        for key in session.leases.values() {
            let half = self.queues[&key.0].settings.lease_ms.unwrap_or(0) / 2;
            let package = self.packages.get_mut(key).expect("leased packages are there");
            package.deadline = package.deadline.map(|deadline| deadline.max(now + half));
        }
        Ok(())
    }

    /// Ends a session. `lost`: its worker died, as far as one can tell.
    fn close(&mut self, name: &str, lost: bool, machine: &Machine) -> Check {
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

    /// Draining sessions without leases are gone.
    fn close_the_drained(&mut self) {
        self.sessions.retain(|_, session| !(session.draining && session.leases.is_empty()));
    }

    fn tick(&mut self, machine: &Machine) -> Check {
        let (ticks, wall) = (self.ticks, self.wall);
        // Graces.
        let over: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.detached.is_some_and(|(since, grace)| ticks >= since + grace))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            let free = self.sessions[&name].by_failover;
            self.close(&name, !free, machine)?;
        }
        // Leases.
        let late: Vec<Key> = self
            .packages
            .iter()
            .filter(|(_, package)| package.deadline.is_some_and(|deadline| ticks >= deadline))
            .filter(|(_, package)| {
                let holder = package.holder.as_ref().and_then(|name| self.sessions.get(name));
                holder.is_some_and(|session| session.detached.is_none())
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in late {
            let holder = self.package(&key).holder.clone().unwrap_or_default();
            // First what is prefetched goes back, so that it does not move up into the hand.
            let session = &self.sessions[&holder];
            let prefetch: Vec<Key> = session.prefetch().iter().map(|fence| session.leases[fence].clone()).collect();
            for key in prefetch {
                self.take_away(&key, Some(Cause::Reclaimed));
                self.back(&key);
            }
            if let Some(session) = self.sessions.get_mut(&holder) {
                session.silent = true;
            }
            self.take_away(&key, Some(Cause::TimedOut));
            self.charge(&key, false, None, machine)?;
        }
        self.close_the_drained();
        // What is due, and what is over.
        for package in self.packages.values_mut().filter(|package| package.gone.is_none()) {
            let due = match package.due {
                Some(Due::Wall(at)) => wall >= at,
                Some(Due::Ticks(at)) => ticks >= at,
                None => false,
            };
            if package.state == State::Scheduled && due {
                package.state = State::Ready;
                package.due = None;
            }
        }
        let expired: Vec<Key> = self
            .packages
            .iter()
            .filter(|(_, package)| matches!(package.state, State::Ready | State::Scheduled) && package.gone.is_none())
            .filter(|(_, package)| package.expire.is_some_and(|at| wall >= at))
            .map(|(key, _)| key.clone())
            .collect();
        for key in expired {
            self.finish(&key, State::Expired);
        }
        // What was kept long enough, and remembered long enough.
        for (key, package) in &mut self.packages {
            let settings = &self.queues[&key.0].settings;
            if package.leaves() && ticks >= package.finish + settings.keep_finished_ms.unwrap_or(0) {
                package.gone = Some(ticks);
            }
        }
        self.forget_tombstones();
        Ok(())
    }

    /// Ids whose window is over are new again, at that very tick.
    fn forget_tombstones(&mut self) {
        let (queues, ticks) = (&self.queues, self.ticks);
        self.packages.retain(|key, package| {
            let window = queues[&key.0].settings.dedup_window_ms.unwrap_or(0);
            package.gone.is_none_or(|gone| ticks < gone + window)
        });
    }

    fn package(&mut self, key: &Key) -> &mut Package {
        self.packages.get_mut(key).expect("looked up before")
    }

    fn lease_ms(&self, queue: &str) -> u64 {
        self.queues[queue].settings.lease_ms.unwrap_or(0)
    }

    /// Takes a package out of its holder's hands, and the next moves up; where it goes says the
    /// caller.
    fn unlease(&mut self, key: &Key, cause: Option<Cause>) {
        self.take_away(key, cause);
        self.move_up();
    }

    fn take_away(&mut self, key: &Key, cause: Option<Cause>) {
        if let Some(cause) = cause {
            self.queue(&key.0).lease_ends[cause as usize] += 1;
        }
        let package = self.package(key);
        let (holder, fence) = (package.holder.take(), package.fence);
        package.deadline = None;
        if let Some(session) = holder.and_then(|holder| self.sessions.get_mut(&holder)) {
            session.leases.remove(&fence);
        }
    }

    /// Whatever moved up into a hand has its lease from now.
    fn move_up(&mut self) {
        for session in self.sessions.values() {
            for fence in session.in_hand() {
                let key = &session.leases[&fence];
                let lease = self.queues[&key.0].settings.lease_ms.unwrap_or(0);
                let package = self.packages.get_mut(key).expect("leased packages are there");
                package.deadline.get_or_insert(self.ticks + lease);
            }
        }
    }

    /// Back to its old place, unless its time is over.
    fn back(&mut self, key: &Key) {
        let wall = self.wall;
        let package = self.package(key);
        package.state = State::Ready;
        if package.expire.is_some_and(|at| wall >= at) {
            self.finish(key, State::Expired);
        }
    }

    /// An attempt is counted: again later, or DEAD.
    fn charge(&mut self, key: &Key, permanent: bool, delay: Option<u64>, machine: &Machine) -> Check {
        let (ticks, wall) = (self.ticks, self.wall);
        let settings = self.queues[&key.0].settings.clone();
        let package = self.package(key);
        package.attempts += 1;
        if permanent || package.attempts >= package.max_attempts {
            let (fence, copy) = (package.fence, package.clone());
            let dead_letters = settings.dead_letter_queue.unwrap_or_default();
            package.moved = !dead_letters.is_empty();
            self.finish(key, State::Dead);
            if !dead_letters.is_empty() {
                self.bury(&dead_letters, &key.1, fence, copy);
            }
            return Ok(());
        }
        if package.expire.is_some_and(|at| wall >= at) {
            self.finish(key, State::Expired);
            return Ok(());
        }
        let (least, most) = match delay {
            Some(delay) => (delay, delay),
            None => {
                let initial = settings.backoff_initial_ms.unwrap_or(0);
                let multiplier = u64::from(settings.backoff_multiplier_milli.unwrap_or(1000));
                let mut full = initial;
                for _ in 1..package.attempts {
                    full = full * multiplier / 1000;
                }
                let full = full.min(settings.backoff_max_ms.unwrap_or(u64::MAX));
                (full * 9 / 10, full * 11 / 10)
            }
        };
        package.state = if most == 0 { State::Ready } else { State::Scheduled };
        package.due = Some(Due::Ticks(ticks + least));
        if least != most {
            // The jitter is the machine's own; a second look shows what it chose.
            let view = machine.package(&key.0, &key.1).map_err(|reject| format!("{key:?}: {reject:?}"))?;
            if let (State::Scheduled, Some(due)) = (view.state, view.due) {
                let chosen = due.0.saturating_sub(wall);
                ensure!((least..=most).contains(&chosen), "{key:?}: backoff {chosen} is not in {least}..{most}");
                package.due = Some(Due::Ticks(ticks + chosen));
            }
        }
        Ok(())
    }

    /// The copy among the dead letters.
    fn bury(&mut self, queue: &str, id: &str, fence: u64, original: Package) {
        let target = self.queue(queue);
        target.places += 1;
        target.submitted += 1;
        let copy = Package {
            state: State::Ready,
            place: target.places,
            max_attempts: target.settings.max_attempts.unwrap_or(5),
            attempts: 0,
            fence: 0,
            holder: None,
            deadline: None,
            suspect: false,
            due: None,
            expire: None,
            settled: None,
            moved: false,
            gone: None,
            ..original
        };
        self.packages.insert((queue.to_owned(), format!("{id}#{fence}")), copy);
    }

    fn finish(&mut self, key: &Key, state: State) {
        let ticks = self.ticks;
        let package = self.package(key);
        package.state = state;
        package.finish = ticks;
        package.due = None;
        package.suspect = false;
        let queue = self.queue(&key.0);
        match state {
            State::Completed => queue.completed += 1,
            State::Cancelled => queue.cancelled += 1,
            State::Expired => queue.expired += 1,
            _ => {}
        }
        let keep = queue.settings.keep_finished_count.unwrap_or(u64::MAX);
        self.finished_now.insert(key.clone());
        // By count: the first finished go first.
        let mut kept: Vec<(u64, u64, Key)> = self
            .packages
            .iter()
            .filter(|(other, package)| other.0 == key.0 && package.leaves())
            .map(|(other, package)| (package.finish, package.place, other.clone()))
            .collect();
        kept.sort();
        // Which of those that finished at one instant went first, `compare` leaves open.
        let surplus = kept.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        for (_, _, other) in kept.into_iter().take(surplus) {
            self.package(&other).gone = Some(ticks);
        }
    }

    /// Judges the grants of a batch, in their order, which is that of the fences.
    fn grants(&mut self, applied: &Applied) -> Check {
        let mut grants = Vec::new();
        for effect in &applied.effects {
            let Effect::Deliver { session, epoch, deliveries } = effect else { continue };
            let known =
                self.sessions.get(&**session).ok_or_else(|| format!("a delivery to {session}, which is not"))?;
            ensure!(known.epoch == epoch.0, "a delivery to {session} in epoch {}, it is in {}", epoch.0, known.epoch);
            for delivery in deliveries {
                let key = (delivery.body.queue.to_string(), delivery.body.id.to_string());
                grants.push((delivery.fence.0, session.to_string(), key, delivery.attempt));
            }
        }
        grants.sort();
        for (fence, session, key, attempt) in grants {
            let why = |text: &str| format!("{key:?} to {session} under {fence}: {text}");
            // Sent again after a Hello; another command of the batch may have settled it since.
            if self.unreceived.remove(&fence) {
                continue;
            }
            ensure!(fence > self.highest_fence, "{}", why("the fence does not grow"));
            self.highest_fence = fence;
            let package = self.packages.get(&key).ok_or_else(|| why("there is no such package"))?;
            ensure!(package.gone.is_none() && package.state == State::Ready, "{}", why(&format!("it is {package:?}")));
            ensure!(attempt == package.attempts + 1, "{}", why(&format!("attempt {attempt}, {package:?}")));
            ensure!(self.eligible(&session, &key), "{}", why(&format!("not allowed: {:?}", self.sessions[&session])));
            self.first_in_line(&session, &key).map_err(|text| why(&text))?;
            self.fairest(&session, &key).map_err(|text| why(&text))?;
            let package = self.package(&key);
            package.state = State::Leased;
            package.fence = fence;
            package.holder = Some(session.clone());
            package.due = None;
            self.sessions.get_mut(&session).expect("checked above").leases.insert(fence, key);
        }
        let held: BTreeSet<u64> = self.sessions.values().flat_map(|session| session.leases.keys().copied()).collect();
        let missing: Vec<u64> = std::mem::take(&mut self.unreceived).into_iter().filter(|f| held.contains(f)).collect();
        ensure!(missing.is_empty(), "never received and not sent again: {missing:?}");
        Ok(())
    }

    /// May this session have this package now?
    fn eligible(&self, name: &str, key: &Key) -> bool {
        let (session, package, queue) = (&self.sessions[name], &self.packages[key], &self.queues[&key.0]);
        let cap = queue.settings.max_in_flight.unwrap_or(0) as usize;
        let leased = || self.packages.iter().filter(|(other, p)| other.0 == key.0 && p.state == State::Leased).count();
        package.gone.is_none()
            && package.state == State::Ready
            && session.credit() > 0
            && session.queues.contains(&key.0)
            && (session.kinds.is_empty() || session.kinds.contains(&package.kind))
            && !queue.paused
            && (cap == 0 || leased() < cap)
            && !(package.suspect && self.holds_suspect(session))
    }

    fn holds_suspect(&self, session: &Session) -> bool {
        session.leases.values().any(|key| self.packages[key].suspect)
    }

    /// In its queue it has the highest priority and is the oldest of that, or the oldest of all.
    fn first_in_line(&self, session: &str, key: &Key) -> Check {
        let package = &self.packages[key];
        let others = || self.packages.iter().filter(|(other, _)| other.0 == key.0 && self.eligible(session, other));
        let before = others().find(|(_, p)| {
            (std::cmp::Reverse(p.priority), p.place) < (std::cmp::Reverse(package.priority), package.place)
        });
        let older = others().find(|(_, p)| p.place < package.place);
        match (before, older) {
            (Some((before, _)), Some((older, _))) => {
                Err(format!("{} goes before it, and {} is older", before.1, older.1))
            }
            _ => Ok(()),
        }
    }

    /// No session of the same subscription that may have it has a lower share.
    fn fairest(&self, name: &str, key: &Key) -> Check {
        let chosen = &self.sessions[name];
        for (other_name, other) in &self.sessions {
            let same = other.queues == chosen.queues && other.kinds == chosen.kinds;
            if !same || !self.eligible(other_name, key) {
                continue;
            }
            let lower = other.used() * u64::from(chosen.max) < chosen.used() * u64::from(other.max);
            ensure!(!lower, "{other_name} has a lower share: {other:?} against {chosen:?}");
        }
        Ok(())
    }

    /// No ready package beside credit that may have it.
    fn nothing_left(&self) -> Check {
        for name in self.sessions.keys() {
            for key in self.packages.keys() {
                ensure!(
                    !self.eligible(name, key),
                    "{key:?} is ready and {name} may have it: {:?}",
                    self.sessions[name]
                );
            }
        }
        Ok(())
    }

    fn note_ended(&mut self) {
        for (name, queue) in &mut self.queues {
            let live =
                self.packages.iter().any(|(key, p)| key.0 == *name && p.gone.is_none() && !p.state.is_finished());
            let ended = queue.sealed && !live;
            if ended && !queue.ended {
                self.ended_now.insert(name.clone());
            }
            queue.ended = ended;
        }
    }

    /// Who waits for a package or a queue is told, once.
    fn hints(&self, applied: &Applied) -> Check {
        let mut finished = BTreeSet::new();
        let mut ended = BTreeSet::new();
        for effect in &applied.effects {
            match effect {
                Effect::PackageFinished { queue, id } => {
                    let key = (queue.to_string(), id.to_string());
                    ensure!(finished.insert(key), "{queue}/{id} finishes twice");
                }
                Effect::QueueEnded { queue } => {
                    ensure!(ended.insert(queue.to_string()), "{queue} ends twice");
                }
                _ => {}
            }
        }
        ensure!(finished == self.finished_now, "finished: told {finished:?}, are {:?}", self.finished_now);
        ended.retain(|name| self.ended_now.contains(name) || !self.revived_now.contains(name));
        ensure!(ended == self.ended_now, "ended: told {ended:?}, are {:?}", self.ended_now);
        Ok(())
    }

    /// State by state, counter by counter.
    fn compare(&mut self, machine: &Machine) -> Check {
        for (key, mine) in &self.packages {
            let view = machine.package(&key.0, &key.1).map_err(|reject| format!("{key:?}: {reject:?}, {mine:?}"))?;
            let why = || format!("{key:?}:\n  model   {mine:?}\n  machine {view:?}");
            if mine.gone.is_some() {
                ensure!(view.body.is_none(), "should be a tombstone: {}", why());
                continue;
            }
            ensure!(view.body.is_some(), "should be there: {}", why());
            ensure!(view.state == mine.state, "state of {}", why());
            ensure!(view.attempts == mine.attempts, "attempts of {}", why());
            ensure!(view.fence.0 == mine.fence, "fence of {}", why());
            ensure!(view.priority == mine.priority, "priority of {}", why());
            ensure!(view.session.as_deref() == mine.holder.as_deref(), "holder of {}", why());
            ensure!(view.moved_to.is_some() == mine.moved, "moved_to of {}", why());
            let until = mine.deadline.map(|deadline| self.wall + deadline.saturating_sub(self.ticks));
            ensure!(view.lease_expire.map(|wall| wall.0) == until, "lease of {}", why());
        }
        for (name, mine) in &self.queues {
            let view = machine.queue(name).map_err(|reject| format!("{name}: {reject:?}"))?;
            let count = |state| {
                // A DEAD package with a copy among the dead letters is no longer this queue's sorrow.
                let here =
                    |(key, p): &(&Key, &Package)| key.0 == *name && p.gone.is_none() && p.state == state && !p.moved;
                self.packages.iter().filter(here).count() as u64
            };
            for state in [State::Scheduled, State::Ready, State::Leased, State::Dead] {
                let (told, are) = (crate::render::live(&view, state), count(state));
                ensure!(told == are, "{name}: {told} {} told, {are} are", state.as_str());
            }
            let lifetime = [
                ("completed", view.completed, mine.completed),
                ("cancelled", view.cancelled, mine.cancelled),
                ("expired", view.expired, mine.expired),
                ("submitted", view.submitted, mine.submitted),
            ];
            for (what, told, are) in lifetime {
                ensure!(told == are, "{name}: {what} told {told}, are {are}");
            }
            for cause in [Cause::Failed, Cause::TimedOut, Cause::Reclaimed] {
                let (told, are) = (view.lease_ends[cause as usize], mine.lease_ends[cause as usize]);
                ensure!(told == are, "{name}: {} {told} told, {are} are", cause.as_str());
            }
            ensure!(
                (view.paused, view.sealed, view.ended) == (mine.paused, mine.sealed, mine.ended),
                "{name}: {view:?}, {mine:?}"
            );
        }
        let told: Vec<String> = machine.sessions(None).iter().map(|view| view.session.to_string()).collect();
        let are: Vec<String> = self.sessions.keys().cloned().collect();
        ensure!(told == are, "sessions told {told:?}, are {are:?}");
        for (name, mine) in &self.sessions {
            let view = machine.session(name).map_err(|reject| format!("{name}: {reject:?}"))?;
            let why = || format!("{name}:\n  model   {mine:?}\n  machine {view:?}");
            ensure!(view.epoch.0 == mine.epoch, "epoch of {}", why());
            ensure!(view.leased as usize == mine.leases.len(), "leases of {}", why());
            ensure!(view.prefetched as usize == mine.prefetch().len(), "prefetch of {}", why());
            let held: Vec<u64> = machine.held(name).iter().map(|delivery| delivery.fence.0).collect();
            let are: Vec<u64> = mine.leases.keys().copied().collect();
            ensure!(held == are, "held {held:?} of {}", why());
            let status = match view.status {
                SessionStatus::Attached => !mine.silent && !mine.draining && mine.detached.is_none(),
                SessionStatus::Detached => mine.detached.is_some(),
                SessionStatus::Draining => mine.draining,
                SessionStatus::Silent => mine.silent,
            };
            ensure!(status, "status of {}", why());
        }
        Ok(())
    }
}

impl Package {
    /// Finished, and on its way out: DEAD ones stay until somebody decides, or a copy is elsewhere.
    fn leaves(&self) -> bool {
        self.gone.is_none() && self.state.is_finished() && (self.state != State::Dead || self.moved)
    }
}

impl Session {
    /// The fences in hand, oldest first.
    pub fn in_hand(&self) -> Vec<u64> {
        let hands = if self.concurrency == 0 { usize::MAX } else { self.concurrency };
        self.leases.keys().copied().take(hands).collect()
    }

    /// The rest, oldest first.
    pub fn prefetch(&self) -> Vec<u64> {
        self.leases.keys().copied().skip(self.in_hand().len()).collect()
    }

    fn credit(&self) -> u64 {
        if self.draining || self.silent || self.detached.is_some() {
            return 0;
        }
        u64::from(self.max).saturating_sub(self.used())
    }

    /// Credit in use: what it holds, and what it gave back since it last ended something.
    fn used(&self) -> u64 {
        self.leases.len() as u64 + u64::from(self.withheld)
    }
}

fn settled(result: &Result<Reply, Reject>) -> Result<&[Result<(), Reject>], String> {
    match result {
        Ok(Reply::Settled(answers)) => Ok(answers),
        other => Err(format!("no settlements but {other:?}")),
    }
}

fn expect(key: &Key, expected: &[&str], answer: &Result<(), Reject>) -> Check {
    let got = answer.as_ref().map_or_else(named, |()| "ok");
    ensure!(expected.contains(&got), "{key:?}: expected {expected:?}, got {answer:?}");
    Ok(())
}

fn expect_one(expected: &str, result: &Result<Reply, Reject>) -> Check {
    let got = result.as_ref().map_or_else(named, |_| "ok");
    ensure!(expected == got, "expected {expected}, got {got}");
    Ok(())
}

/// The reject's name.
fn named(reject: &Reject) -> &'static str {
    match reject {
        Reject::QueueNotFound { .. } => "QueueNotFound",
        Reject::PackageNotFound { .. } => "PackageNotFound",
        Reject::SessionNotFound { .. } => "SessionNotFound",
        Reject::IdConflict { .. } => "IdConflict",
        Reject::LeaseLost { .. } => "LeaseLost",
        Reject::AlreadyFinished { .. } => "AlreadyFinished",
        Reject::NotDead { .. } => "NotDead",
        Reject::QueueSealed { .. } => "QueueSealed",
        Reject::EpochOver { .. } => "EpochOver",
        _ => "another",
    }
}
