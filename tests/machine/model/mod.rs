//! What the machine must do, written to be obviously right: no index, no timer, every rule a scan.
//!
//! The model predicts replies, states, attempts, sessions and counters. Who gets what it does not
//! predict but judge: each grant must be one that the rules allow, and when the machine says that
//! nothing is left to match, nothing may be. Where the rules leave a span (jitter of a backoff),
//! the model looks at what the machine chose, checks that it lies in the span, and goes on from it.

use std::collections::{BTreeMap, BTreeSet};

use wharf::machine::command::{Op, QueueSettings, Reply, Speaker};
use wharf::machine::{Applied, Machine, Outcome, Reject};
use wharf::types::{State, limits};

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
    /// Works by single calls: what it holds runs on without a stream.
    pub unary: bool,
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

mod judge;
mod life;
mod rules;

type Check = Result<(), String>;

macro_rules! ensure {
    ($cond:expr, $($why:tt)*) => {
        if !$cond {
            return Err(format!($($why)*));
        }
    };
}
use ensure;

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
                // A call names no speaker, and means whoever holds it.
                let session = match &op.speaker {
                    None => None,
                    speaker => match self.speaks(speaker.as_ref(), result)? {
                        Some(session) => Some(session),
                        None => return Ok(()),
                    },
                };
                for (part, answer) in op.extensions.iter().zip(settled(result)?) {
                    let key = (part.queue.clone(), part.id.clone());
                    let expected = self.extend(session.as_deref(), &key, part.fence, part.by_ms);
                    expect(&key, &expected, answer)?;
                }
                Ok(())
            }
            Op::Release(op) => {
                let session = match &op.speaker {
                    None => None,
                    speaker => match self.speaks(speaker.as_ref(), result)? {
                        Some(session) => Some(session),
                        None => return Ok(()),
                    },
                };
                let parts = op.leases.iter().map(|part| (&part.queue, &part.id, part.fence));
                self.settle(parts, result, |model, key, fence| model.release(session.as_deref(), key, fence))
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
                let Some(session) = self.sessions.get_mut(&name) else { return Ok(()) };
                session.detached.get_or_insert(since);
                if session.unary {
                    self.give_back(&name);
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
                expect_one(expected, result)
            }
            Op::Retry(op) => {
                let expected = self.retry(&(op.queue.clone(), op.id.clone()));
                expect_one(expected, result)
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
                let settings = op.settings.unwrap_or_default();
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
