//! The commands of a session's life: Hello, break, drain, goodbye, credit.

use std::ops::Bound;
use std::sync::Arc;

use crate::machine::command::{CloseSession, DetachSession, DrainSession, Heard, OpenSession, Reclaim, SetCredit};
use crate::machine::effect::{Delivery, Effect, Verdict, VerdictKind};
use crate::machine::index::ClassKey;
use crate::machine::lease::Standing;
use crate::machine::state::{QueueNo, Session, SessionNo, Settlement, Slot};
use crate::machine::{Machine, Meta, Reject, Reply, Result};
use crate::types::mutant::{self, Mutant};
use crate::types::{Cause, Epoch, Fence, limits};

impl Machine {
    pub(in crate::machine) fn on_open_session(&mut self, meta: Meta, op: &OpenSession) -> Result<Reply> {
        let key = self.check_hello(op)?;
        let known = self.index.session_by_id.get(op.session.as_str()).copied();
        let ran_on = known.is_some_and(|number| self.state.sessions.at(number).unary);
        let number = match known {
            Some(number) => self.resume(number, key, meta, op),
            None => self.open(key, meta, op),
        };
        let verdicts = self.judge(number, op);
        let (session, epoch) = self.address(number);
        self.now.effects.push(Effect::SessionOpened {
            session: session.clone(),
            epoch,
            attach: op.attach,
            verdicts,
            session_grace_ms: self.state.cluster.session_grace_ms,
        });
        if op.unary {
            if !ran_on {
                self.rehand(number);
            }
            self.readmit(number, op);
        } else {
            self.reconcile(number, op);
        }
        self.tell_ended(number);
        if self.state.sessions.at(number).draining {
            self.now.effects.push(Effect::SessionDraining { session, epoch });
        }
        self.after_release(number);
        Ok(Reply::Done)
    }

    /// Checks everything that could refuse the Hello; gives its subscription.
    fn check_hello(&self, op: &OpenSession) -> Result<ClassKey> {
        let bad = |field: &str, problem: String| Reject::BadField { field: format!("hello.{field}"), problem };
        if op.session.is_empty() || op.session.len() > limits::MAX_WORD_BYTES {
            return Err(bad("session", format!("must have 1 to {} bytes", limits::MAX_WORD_BYTES)));
        }
        if op.worker.len() > limits::MAX_WORD_BYTES {
            return Err(bad("worker", format!("at most {} bytes", limits::MAX_WORD_BYTES)));
        }
        if op.queues.is_empty() {
            return Err(bad("queues", "name at least one queue".to_owned()));
        }
        if op.max_in_flight > limits::MAX_IN_FLIGHT_CEILING {
            let problem = format!("at most {}, is {}", limits::MAX_IN_FLIGHT_CEILING, op.max_in_flight);
            return Err(bad("max_in_flight", problem));
        }
        if let Some(kind) = op.kinds.iter().find(|kind| kind.len() > limits::MAX_WORD_BYTES) {
            return Err(bad("kinds", format!("at most {} bytes each, one has {}", limits::MAX_WORD_BYTES, kind.len())));
        }
        super::submit::check_labels(&op.labels).map_err(|problem| bad("labels", problem))?;
        let lanes = op.queues.len().saturating_mul(op.kinds.len().max(1));
        if lanes > limits::MAX_LANES_A_CLASS {
            let problem = format!("queues times kinds are at most {}, here {lanes}", limits::MAX_LANES_A_CLASS);
            return Err(bad("queues", problem));
        }
        let mut queues = op.queues.iter().map(|name| self.queue_no(name)).collect::<Result<Vec<QueueNo>>>()?;
        queues.sort_unstable();
        queues.dedup();
        let mut kinds: Vec<Arc<str>> = op.kinds.iter().map(|kind| kind.as_str().into()).collect();
        kinds.sort();
        kinds.dedup();
        let key = (queues, kinds);
        let is_new = !self.index.session_by_id.contains_key(op.session.as_str());
        let most = u64::from(self.state.cluster.max_sessions);
        if is_new && u64::from(self.state.sessions.len()) >= most {
            return Err(Reject::TooManySessions { limit: most });
        }
        if self.index.classes_with(&key) > limits::MAX_CLASSES {
            return Err(Reject::TooManyClasses { limit: limits::MAX_CLASSES as u64 });
        }
        Ok(key)
    }

    fn open(&mut self, key: ClassKey, meta: Meta, op: &OpenSession) -> SessionNo {
        self.state.bump();
        let mut session = Session {
            id: op.session.as_str().into(),
            worker: "".into(),
            epoch: Epoch(1),
            queues: Vec::new(),
            kinds: Vec::new(),
            labels: Vec::new(),
            max_in_flight: 0,
            max_in_flight_bytes: 0,
            concurrency: 0,
            unary: false,
            attached: 0,
            detached: None,
            draining: false,
            silent: false,
            withheld: 0,
            served: self.state.grants,
            received: Fence(0),
            open: self.state.wall,
        };
        introduce(&mut session, key, meta, op);
        let id = session.id.clone();
        let number = self.state.sessions.insert(session);
        self.index.session_by_id.insert(id, number);
        *self.index.held_mut(number) = Default::default();
        self.index.join_class(number, self.state.sessions.at(number));
        number
    }

    fn resume(&mut self, number: SessionNo, key: ClassKey, meta: Meta, op: &OpenSession) -> SessionNo {
        self.state.bump();
        let before = self.state.sessions.at(number).clone();
        self.disarm_grace(number, &before);
        self.index.leave_class(number, &before);
        let session = self.state.sessions.at_mut(number);
        session.epoch.0 += 1;
        introduce(session, key, meta, op);
        self.index.join_class(number, self.state.sessions.at(number));
        number
    }

    /// One verdict for each lease that the worker says it holds.
    fn judge(&self, number: SessionNo, op: &OpenSession) -> Vec<Verdict> {
        let judge_one = |lease: &crate::machine::command::Lease| {
            let standing = |how| self.standing(None, &lease.queue, &lease.id, lease.fence, how);
            let settled = [Settlement::Done, Settlement::Failed, Settlement::Released]
                .into_iter()
                .any(|how| matches!(standing(how), Ok(Standing::Answered)));
            let kind = match standing(Settlement::Done) {
                Ok(Standing::Current(slot)) if self.state.packages.at(slot).session == number => VerdictKind::Keep,
                _ if settled => VerdictKind::Settled(Ok(())),
                _ => VerdictKind::Gone,
            };
            Verdict { queue: lease.queue.clone(), id: lease.id.clone(), fence: Fence(lease.fence), kind }
        };
        op.held.iter().map(judge_one).collect()
    }

    /// Brings the session's leases in line with what the worker says: what never arrived is sent
    /// again, what it forgot goes back free, what it keeps gets at least half a lease.
    fn reconcile(&mut self, number: SessionNo, op: &OpenSession) {
        let received = self.state.sessions.at(number).received;
        let held = op.held.iter().filter(|_| !mutant::is(Mutant::ForgetHeld));
        let mut held: Vec<u64> = held.map(|lease| lease.fence).collect();
        held.sort_unstable();
        let leases: Vec<(Fence, Slot)> =
            self.index.held(number).leases.iter().map(|(fence, slot)| (*fence, *slot)).collect();
        let unlisted = leases.into_iter().filter(|(fence, _)| held.binary_search(&fence.0).is_err());
        let (forgotten, unseen): (Vec<_>, Vec<_>) = unlisted.partition(|(fence, _)| *fence <= received);
        for (_, slot) in forgotten {
            self.index.let_go(self.state.packages.at(slot));
            self.return_free(slot, Cause::Released);
        }
        self.rehand(number);
        self.resend(number, unseen.into_iter().map(|(_, slot)| slot).collect());
    }

    /// A call for work: what its caller never got is sent again with at least half a lease, and there is
    /// credit for what else it wants. The rest of what it holds runs on.
    fn readmit(&mut self, number: SessionNo, op: &OpenSession) {
        let beyond = (Bound::Excluded(Fence(op.received_fence)), Bound::Unbounded);
        let hold = self.index.held(number);
        let unseen: Vec<Slot> = hold.leases.range(beyond).map(|(_, slot)| *slot).collect();
        let unseen_bytes: u64 = unseen.iter().map(|slot| self.state.packages.at(*slot).bytes()).sum();
        let (held, bytes) = (hold.leases.len() as u32, hold.bytes);
        let session = self.state.sessions.at_mut(number);
        let more = session.max_in_flight.saturating_sub(unseen.len() as u32);
        session.max_in_flight = held.saturating_add(more).min(limits::MAX_IN_FLIGHT_CEILING);
        let more = session.max_in_flight_bytes.saturating_sub(unseen_bytes);
        session.max_in_flight_bytes = bytes.saturating_add(more);
        for slot in &unseen {
            self.take_in_hand(*slot, 2);
        }
        self.resend(number, unseen);
    }

    fn resend(&mut self, number: SessionNo, slots: Vec<Slot>) {
        if self.delivers && !slots.is_empty() {
            let deliveries: Vec<Delivery> = slots.into_iter().map(|slot| self.delivery(slot)).collect();
            let (session, epoch) = self.address(number);
            self.now.effects.push(Effect::Deliver { session, epoch, deliveries });
        }
    }

    /// What was granted to a call and not given to its caller goes back, free.
    fn give_back(&mut self, number: SessionNo) {
        let beyond = (Bound::Excluded(self.state.sessions.at(number).received), Bound::Unbounded);
        let slots: Vec<Slot> = self.index.held(number).leases.range(beyond).map(|(_, slot)| *slot).collect();
        for slot in slots {
            self.unhold(slot);
            self.return_free(slot, Cause::Released);
        }
    }

    /// Queues whose work is over before the worker came.
    fn tell_ended(&mut self, number: SessionNo) {
        let (session, epoch) = self.address(number);
        for queue in self.state.sessions.at(number).queues.clone() {
            let sealed = self.state.queues.at(queue).sealed;
            if sealed && (self.index.line(queue).live() == 0 || mutant::is(Mutant::EndOfWorkEarly)) {
                let queue = self.state.queues.at(queue).name.clone();
                self.now.effects.push(Effect::EndOfWork { session: session.clone(), epoch, queue });
            }
        }
    }

    pub(in crate::machine) fn on_detach_session(&mut self, op: &DetachSession) -> Result<Reply> {
        let number = self.hear(op.speaker.as_ref())?;
        if self.state.sessions.at(number).detached.is_none() {
            self.detach(number);
        }
        if self.state.sessions.at(number).unary {
            self.give_back(number);
        }
        Ok(Reply::Done)
    }

    pub(in crate::machine) fn on_drain_session(&mut self, op: &DrainSession) -> Result<Reply> {
        let number = self.session_of_epoch(&op.session, op.epoch)?;
        self.state.bump();
        let session = self.state.sessions.at_mut(number);
        session.draining = true;
        let (id, epoch) = (session.id.clone(), session.epoch);
        if op.epoch == 0 {
            self.now.effects.push(Effect::SessionDraining { session: id, epoch });
        }
        let view = self.session_view(number);
        self.after_release(number);
        Ok(Reply::Session(Arc::new(view)))
    }

    pub(in crate::machine) fn on_close_session(&mut self, op: &CloseSession) -> Result<Reply> {
        let number = self.session_of_epoch(&op.session, op.epoch)?;
        self.close(number, false, Cause::Released, "closed");
        Ok(Reply::Done)
    }

    /// Epoch 0 is an operator's word: it means the session, whatever stream it has.
    fn session_of_epoch(&self, id: &str, epoch: u64) -> Result<SessionNo> {
        let number = self.session_no(id)?;
        let current = self.state.sessions.at(number).epoch.0;
        if epoch != 0 && epoch != current { Err(Reject::EpochOver { current }) } else { Ok(number) }
    }

    pub(in crate::machine) fn on_set_credit(&mut self, op: &SetCredit) -> Result<Reply> {
        if op.max_in_flight > limits::MAX_IN_FLIGHT_CEILING {
            return Err(Reject::BadField {
                field: "set_credit.max_in_flight".to_owned(),
                problem: format!("at most {}, is {}", limits::MAX_IN_FLIGHT_CEILING, op.max_in_flight),
            });
        }
        let number = self.hear(op.speaker.as_ref())?;
        let session = self.state.sessions.at_mut(number);
        session.max_in_flight = op.max_in_flight;
        session.withheld = 0;
        self.state.bump();
        self.refresh(number);
        Ok(Reply::Done)
    }

    pub(in crate::machine) fn on_reclaim(&mut self, op: &Reclaim) -> Result<Reply> {
        let number = self.session_of_epoch(&op.session, op.epoch)?;
        let taken = self.take_back(number, op.count as usize, "reclaimed: others are idle");
        self.state.sessions.at_mut(number).withheld += taken as u32;
        self.after_release(number);
        Ok(Reply::Done)
    }

    pub(in crate::machine) fn on_heard(&mut self, op: &Heard) -> Result<Reply> {
        self.hear(op.speaker.as_ref())?;
        Ok(Reply::Done)
    }
}

/// What a Hello says of its session.
fn introduce(session: &mut Session, key: ClassKey, meta: Meta, op: &OpenSession) {
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    session.worker = op.worker.as_str().into();
    (session.queues, session.kinds) = key;
    session.labels = op.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    session.max_in_flight = or(u64::from(op.max_in_flight), u64::from(limits::DEFAULT_MAX_IN_FLIGHT)) as u32;
    session.max_in_flight_bytes = or(op.max_in_flight_bytes, limits::DEFAULT_MAX_IN_FLIGHT_BYTES);
    session.concurrency = if op.unary { 0 } else { op.concurrency };
    session.unary = op.unary;
    session.attached = meta.index;
    session.detached = None;
    session.silent = false;
    session.withheld = if mutant::is(Mutant::LoseCredit) && session.epoch.0 > 1 { session.max_in_flight } else { 0 };
    session.received = session.received.max(Fence(op.received_fence));
}
