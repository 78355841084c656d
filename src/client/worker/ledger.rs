//! The leases that a worker holds, by fence. Pure: time comes in as an argument, messages go out as
//! values.
//!
//! A lease goes `Queued` (arrived) → `Running` (its handler works) → `Settling` (its settlement is
//! to be sent, or sent and unanswered) → gone. A revoked lease is gone from anywhere but `Settling`:
//! there the settlement's own outcome tells.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::super::Error;
use super::super::package::{duration, std_duration};
use super::delivery::{Completion, Failure};
use super::event::{Kind, Lease};
use super::settle::{self, Refusal, Settlement};
use crate::proto::v1::verdict::Kind as VerdictKind;
use crate::proto::v1::work_request::Request;
use crate::proto::v1::{Delivery, Done, Extend, Extension, Fail, Held, Outcome, Release, SetCredit, Verdict};
use crate::types::limits;

/// See the module.
#[derive(Default)]
pub(super) struct Ledger {
    leases: BTreeMap<u64, Entry>,
    /// Arrived and not started.
    queued: BTreeSet<u64>,
    /// Settling, and their settlement is to be sent now.
    unsent: BTreeSet<u64>,
    /// Settling, and refused for the moment.
    later: BTreeSet<u64>,
    resend_at: Option<Instant>,
    /// Running, by when they are to be extended.
    due: BTreeSet<(Instant, u64)>,
    /// Leases with an extension to be sent.
    extend: BTreeSet<u64>,
    /// The highest fence that arrived.
    received_fence: u64,
    /// The cluster keeps back credit until the next Done, Fail or SetCredit.
    credit_kept_back: bool,
}

struct Entry {
    name: Lease,
    /// Zero: not extended.
    length: Duration,
    /// What the handler asked for last; None: the queue's lease.
    by: Option<Duration>,
    stage: Stage,
    /// Sent, and not answered.
    asked: Option<Wish>,
    /// To be sent after that.
    wishes: VecDeque<Wish>,
    /// When it is extended next, while it runs.
    due: Option<Instant>,
}

enum Stage {
    Queued(Box<Delivery>),
    Running(CancellationToken),
    Settling { settlement: Settlement, sent: bool },
}

/// An extension: the worker's own (no reply) or its handler's.
pub(super) struct Wish {
    pub by: Option<Duration>,
    pub checkpoint: Bytes,
    pub reply: Option<oneshot::Sender<Result<(), Error>>>,
}

impl Wish {
    fn own(by: Option<Duration>) -> Self {
        Self { by, checkpoint: Bytes::new(), reply: None }
    }

    fn answer(self, result: Result<(), Error>) {
        if let Some(reply) = self.reply {
            // A handler that no longer waits does not want to know.
            let _ = reply.send(result);
        }
    }
}

/// What became of a lease.
#[derive(Debug)]
pub(super) enum Change {
    Settled { lease: Lease, kind: Kind, result: Result<(), Error> },
    Lost { lease: Lease, why: String },
}

impl Ledger {
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    pub fn received_fence(&self) -> u64 {
        self.received_fence
    }

    /// All that is held, for a Hello.
    pub fn held(&self) -> Vec<Held> {
        self.leases.values().map(|entry| held(&entry.name)).collect()
    }

    /// A package arrived. None: it is held already, under this very fence.
    pub fn deliver(&mut self, delivery: Delivery) -> Option<Lease> {
        let fence = delivery.fence;
        self.received_fence = self.received_fence.max(fence);
        if self.leases.contains_key(&fence) {
            return None;
        }
        let package = delivery.package.as_ref()?;
        let name = Lease { queue: package.queue.as_str().into(), id: package.id.as_str().into(), fence };
        let length = std_duration(delivery.lease);
        let stage = Stage::Queued(Box::new(delivery));
        let entry =
            Entry { name: name.clone(), length, by: None, stage, asked: None, wishes: VecDeque::new(), due: None };
        self.leases.insert(fence, entry);
        self.queued.insert(fence);
        Some(name)
    }

    /// Takes the oldest unstarted package to be worked on.
    /// Without `extend` its lease is left alone while it runs.
    pub fn start(&mut self, now: Instant, extend: bool) -> Option<(Lease, Delivery, CancellationToken)> {
        let fence = self.queued.pop_first()?;
        let entry = self.leases.get_mut(&fence)?;
        let token = CancellationToken::new();
        let stage = std::mem::replace(&mut entry.stage, Stage::Running(token.clone()));
        let Stage::Queued(delivery) = stage else { return None };
        let name = entry.name.clone();
        if !extend {
            entry.length = Duration::ZERO;
        }
        self.set_due(fence, now, 3);
        Some((name, *delivery, token))
    }

    /// Works the oldest unstarted package here and now: its lease goes from arrived to settling.
    /// False: none is unstarted.
    pub fn work_next(&mut self, work: impl FnOnce(&Lease, Delivery) -> Result<Completion, Failure>) -> bool {
        let Some(fence) = self.queued.pop_first() else { return false };
        let Some(entry) = self.leases.get_mut(&fence) else { return true };
        let vacant = Stage::Settling { settlement: Settlement::release(&entry.name), sent: false };
        let Stage::Queued(delivery) = std::mem::replace(&mut entry.stage, vacant) else { return true };
        let result = settle::fitting(work(&entry.name, *delivery));
        entry.stage = Stage::Settling { settlement: Settlement::new(&entry.name, result), sent: false };
        self.unsent.insert(fence);
        true
    }

    /// A handler ended. False: its lease is gone, and its result with it.
    pub fn finish(&mut self, fence: u64, result: Result<Completion, Failure>) -> bool {
        let Some(entry) = self.leases.get_mut(&fence) else { return false };
        if !matches!(entry.stage, Stage::Running(_)) {
            return false;
        }
        let settlement = Settlement::new(&entry.name, settle::fitting(result));
        entry.stage = Stage::Settling { settlement, sent: false };
        for wish in entry.wishes.drain(..) {
            wish.answer(Err(Error::refused(Code::Cancelled, "the handler has ended")));
        }
        let may_go = entry.asked.is_none();
        self.clear_due(fence);
        self.extend.remove(&fence);
        if may_go {
            self.unsent.insert(fence);
        }
        true
    }

    /// Gives back the youngest unstarted packages, at most `count`.
    pub fn recall(&mut self, count: usize) {
        for _ in 0..count {
            let Some(fence) = self.queued.pop_last() else { return };
            if let Some(entry) = self.leases.get_mut(&fence) {
                entry.stage = Stage::Settling { settlement: Settlement::release(&entry.name), sent: false };
                self.unsent.insert(fence);
            }
        }
    }

    /// A handler wants its lease extended.
    pub fn wish(&mut self, fence: u64, wish: Wish) {
        match self.leases.get_mut(&fence) {
            Some(entry) if entry.wishes.len() >= limits::CLIENT_MAX_EXTENSIONS_WAITING => {
                wish.answer(Err(Error::refused(Code::ResourceExhausted, "too many extensions wait; await each")));
            }
            Some(entry) if matches!(entry.stage, Stage::Running(_)) => {
                entry.wishes.push_back(wish);
                if entry.asked.is_none() {
                    self.extend.insert(fence);
                }
            }
            _ => wish.answer(Err(Error::refused(Code::FailedPrecondition, "the lease is gone"))),
        }
    }

    /// Leases that the cluster took away.
    pub fn revoke(&mut self, fence: u64, why: &str) -> Option<Change> {
        let settling = matches!(self.leases.get(&fence)?.stage, Stage::Settling { .. });
        if settling {
            return None;
        }
        self.credit_kept_back = true;
        self.remove(fence, why).map(|lease| Change::Lost { lease, why: why.to_owned() })
    }

    /// The answer to one settlement or extension.
    pub fn outcome(&mut self, outcome: Outcome, now: Instant) -> Option<Change> {
        let result = match outcome.status.filter(|status| status.code != 0) {
            Some(status) => Err(Error::from_rpc(&status)),
            None => Ok(()),
        };
        let entry = self.leases.get_mut(&outcome.fence)?;
        match entry.asked.take() {
            Some(wish) => self.extended(outcome.fence, wish, result, now),
            None => self.settled(outcome.fence, result, now, false),
        }
    }

    /// A Hello was answered: takes the verdicts, and makes ready to send again whatever has no
    /// outcome.
    pub fn reattached(&mut self, verdicts: Vec<Verdict>, now: Instant) -> Vec<Change> {
        self.unsent.clear();
        self.later.clear();
        self.extend.clear();
        self.resend_at = None;
        let mut running = Vec::new();
        for (fence, entry) in &mut self.leases {
            if let Some(wish) = entry.asked.take() {
                entry.wishes.push_front(wish);
            }
            match &mut entry.stage {
                Stage::Queued(_) => {}
                Stage::Running(_) => running.push(*fence),
                Stage::Settling { sent, .. } => {
                    *sent = false;
                    entry.wishes.drain(..).for_each(|wish| wish.answer(Err(unanswered())));
                    self.unsent.insert(*fence);
                }
            }
            if !entry.wishes.is_empty() {
                self.extend.insert(*fence);
            }
        }
        // The cluster moved each deadline to half a lease from now at least.
        running.into_iter().for_each(|fence| self.set_due(fence, now, 6));
        verdicts.into_iter().filter_map(|verdict| self.verdict(verdict, now)).collect()
    }

    fn verdict(&mut self, verdict: Verdict, now: Instant) -> Option<Change> {
        let fence = verdict.fence;
        match verdict.kind() {
            VerdictKind::Unspecified | VerdictKind::Keep => None,
            VerdictKind::Gone => self.revoke(fence, "gone when the session came back"),
            VerdictKind::Settled => {
                let result = match verdict.outcome.filter(|status| status.code != 0) {
                    Some(status) => Err(Error::from_rpc(&status)),
                    None => Ok(()),
                };
                let entry = self.leases.get_mut(&fence)?;
                match entry.stage {
                    Stage::Settling { .. } => {
                        self.unsent.remove(&fence);
                        self.settled(fence, result, now, true)
                    }
                    _ => self.revoke(fence, "settled by somebody else under the same session"),
                }
            }
        }
    }

    fn extended(&mut self, fence: u64, wish: Wish, result: Result<(), Error>, now: Instant) -> Option<Change> {
        let entry = self.leases.get_mut(&fence)?;
        if let Stage::Settling { .. } = entry.stage {
            self.unsent.insert(fence);
            wish.answer(result);
            return None;
        }
        if !entry.wishes.is_empty() {
            self.extend.insert(fence);
        }
        let refusal = result.as_ref().err().map(Refusal::of);
        let handlers_own = wish.reply.is_some();
        let asked_for = wish.by;
        let why = result.as_ref().err().map(ToString::to_string);
        wish.answer(result);
        match refusal {
            None => {
                if let Some(entry) = self.leases.get_mut(&fence)
                    && let Some(by) = asked_for
                    && !entry.length.is_zero()
                {
                    (entry.length, entry.by) = (by, Some(by));
                }
                self.set_due(fence, now, 3);
            }
            Some(Refusal::Final) => {
                let why = why.unwrap_or_default();
                self.credit_kept_back = true;
                return self.remove(fence, &why).map(|lease| Change::Lost { lease, why });
            }
            // A handler's bad wish says nothing about the lease.
            Some(Refusal::FailInstead) if handlers_own => {}
            Some(Refusal::Again | Refusal::FailInstead) => self.set_due(fence, now, 12),
        }
        None
    }

    /// `recorded`: the answer of an earlier time, so the refusal stands.
    fn settled(&mut self, fence: u64, result: Result<(), Error>, now: Instant, recorded: bool) -> Option<Change> {
        let entry = self.leases.get_mut(&fence)?;
        let Stage::Settling { settlement, sent } = &mut entry.stage else { return None };
        if !*sent && !recorded {
            return None;
        }
        let kind = settlement.kind();
        let refusal = result.as_ref().err().filter(|_| !recorded).map(Refusal::of);
        match (refusal, kind) {
            (Some(Refusal::Again), _) => {
                *sent = false;
                self.later.insert(fence);
                let at = now + Duration::from_millis(limits::CLIENT_RESEND_MS);
                self.resend_at.get_or_insert(at);
                return None;
            }
            (Some(Refusal::FailInstead), Kind::Done) => {
                let why = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
                let failure = Failure::new(format!("the completion was refused: {why}"));
                *settlement = Settlement::new(&entry.name, Err(failure));
                *sent = false;
                self.unsent.insert(fence);
                return None;
            }
            _ => {}
        }
        let lease = self.leases.remove(&fence)?.name;
        Some(Change::Settled { lease, kind, result })
    }

    /// When something is due by itself: an extension or a settlement to be sent again.
    pub fn next_due(&self) -> Option<Instant> {
        let extension = self.due.first().map(|(at, _)| *at);
        extension.into_iter().chain(self.resend_at).min()
    }

    /// Lets time act.
    pub fn tick(&mut self, now: Instant) {
        while let Some(&(at, fence)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            if let Some(entry) = self.leases.get_mut(&fence) {
                entry.due = None;
                // An extension under way does as well; its answer sets the next time.
                if entry.asked.is_none() && entry.wishes.is_empty() {
                    entry.wishes.push_back(Wish::own(entry.by));
                    self.extend.insert(fence);
                }
            }
        }
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_at = None;
            self.unsent.append(&mut self.later);
        }
    }

    /// Something is to be sent.
    pub fn has_messages(&self) -> bool {
        !self.unsent.is_empty() || !self.extend.is_empty() || self.wants_credit()
    }

    /// The next message, with as much as fits in it and at most `most` settlements. None: nothing is to be
    /// sent.
    pub fn next_message(&mut self, max_in_flight: u32, most: usize) -> Option<Request> {
        if let Some(extend) = self.next_extend() {
            return Some(extend);
        }
        if let Some(settlements) = self.next_settlements(most) {
            return Some(settlements);
        }
        if self.wants_credit() {
            self.credit_kept_back = false;
            return Some(Request::SetCredit(SetCredit { max_in_flight }));
        }
        None
    }

    /// Nothing in hand would bring the credit back.
    fn wants_credit(&self) -> bool {
        self.credit_kept_back && self.leases.is_empty()
    }

    fn next_extend(&mut self) -> Option<Request> {
        let mut extensions = Vec::new();
        while extensions.len() < limits::MAX_SETTLEMENTS_A_MESSAGE {
            let Some(fence) = self.extend.pop_first() else { break };
            let Some(entry) = self.leases.get_mut(&fence) else { continue };
            let Some(wish) = entry.wishes.pop_front() else { continue };
            extensions.push(Extension {
                queue: entry.name.queue.to_string(),
                id: entry.name.id.to_string(),
                fence,
                by: wish.by.map(duration),
                checkpoint: wish.checkpoint.clone(),
            });
            entry.asked = Some(wish);
        }
        (!extensions.is_empty()).then_some(Request::Extend(Extend { extensions }))
    }

    /// Settlements of one kind: that of the oldest unsent.
    fn next_settlements(&mut self, most: usize) -> Option<Request> {
        let (mut done, mut failed, mut released) = (Vec::new(), Vec::new(), Vec::new());
        let mut kind = None;
        let (mut bytes, mut count) = (0, 0);
        let mut taken = Vec::new();
        for &fence in &self.unsent {
            let Some(Entry { stage: Stage::Settling { settlement, sent }, .. }) = self.leases.get_mut(&fence) else {
                taken.push(fence);
                continue;
            };
            if *kind.get_or_insert(settlement.kind()) != settlement.kind() {
                continue;
            }
            bytes += settlement.size_bytes();
            if count == most || (count > 0 && bytes > limits::CLIENT_MESSAGE_BYTES) {
                break;
            }
            count += 1;
            *sent = true;
            taken.push(fence);
            match settlement {
                Settlement::Done(completion) => done.push(completion.clone()),
                Settlement::Fail(failure) => failed.push(failure.clone()),
                Settlement::Release(lease) => released.push(lease.clone()),
            }
        }
        for fence in taken {
            self.unsent.remove(&fence);
        }
        self.credit_kept_back = match kind? {
            Kind::Done | Kind::Fail => false,
            Kind::Release => true,
        };
        Some(match kind? {
            Kind::Done => Request::Done(Done { completions: done }),
            Kind::Fail => Request::Fail(Fail { failed }),
            Kind::Release => Request::Release(Release { held: released }),
        })
    }

    /// The lease is gone before it was settled.
    fn remove(&mut self, fence: u64, why: &str) -> Option<Lease> {
        self.clear_due(fence);
        self.queued.remove(&fence);
        self.extend.remove(&fence);
        let entry = self.leases.remove(&fence)?;
        let gone = || Error::refused(Code::FailedPrecondition, format!("the lease is gone: {why}"));
        entry.asked.into_iter().chain(entry.wishes).for_each(|wish| wish.answer(Err(gone())));
        if let Stage::Running(token) = entry.stage {
            token.cancel();
        }
        Some(entry.name)
    }

    /// Cancels every handler: the worker ends.
    pub fn cancel_all(&mut self) {
        for entry in self.leases.values() {
            if let Stage::Running(token) = &entry.stage {
                token.cancel();
            }
        }
    }

    /// Extends after a `part`th of the lease.
    fn set_due(&mut self, fence: u64, now: Instant, part: u32) {
        self.clear_due(fence);
        if let Some(entry) = self.leases.get_mut(&fence)
            && matches!(entry.stage, Stage::Running(_))
            && !entry.length.is_zero()
        {
            let at = now + entry.length / part;
            entry.due = Some(at);
            self.due.insert((at, fence));
        }
    }

    fn clear_due(&mut self, fence: u64) {
        if let Some(entry) = self.leases.get_mut(&fence)
            && let Some(at) = entry.due.take()
        {
            self.due.remove(&(at, fence));
        }
    }
}

fn held(lease: &Lease) -> Held {
    Held { queue: lease.queue.to_string(), id: lease.id.to_string(), fence: lease.fence }
}

fn unanswered() -> Error {
    Error::refused(Code::Unavailable, "the stream broke before the extension was answered").or_unknown(true)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
