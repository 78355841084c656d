//! What waits for one worker stream's writer: bounded, coalesced when taken, ended exactly once.
//!
//! Invariants: messages leave in the order in which they came, except that settlements may overtake
//! (never the welcome), and that the end of work waits for the answers to what was asked before: a
//! worker that goes then has heard all. A full outbox never drops one message: it ends the stream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::machine::Reject;
use crate::machine::effect::{Delivery, LeaseRef, SessionId, Verdict};
use crate::raft::handle::ProposeError;
use crate::types::{Epoch, QueueName, limits};

/// One thing to tell a worker.
#[derive(Debug)]
pub enum Message {
    Welcome { session: SessionId, epoch: Epoch, term: u64, verdicts: Vec<Verdict>, session_grace_ms: u64 },
    Deliver(Vec<Delivery>),
    Recall { count: u32 },
    Revoke { leases: Vec<LeaseRef>, reason: &'static str },
    EndOfWork { queue: QueueName },
    Pong,
}

/// The answer to one settlement.
#[derive(Debug)]
pub struct Settled {
    pub queue: String,
    pub id: String,
    pub fence: u64,
    pub result: Result<(), Arc<Refusal>>,
}

/// Why a settlement was not taken, or may not have been.
#[derive(Clone, Debug)]
pub enum Refusal {
    Reject(Reject),
    Propose(ProposeError),
    /// Fields that cannot be (or not yet): (path, problem). Never reached the machine.
    Fields {
        fields: Vec<(String, String)>,
        not_yet: bool,
    },
}

/// Why a stream ends.
#[derive(Clone, Debug)]
pub enum End {
    /// All is said: drained, or the client ended it.
    Clean,
    /// The worker shall connect again, with what it holds.
    Goaway { leader: String, reason: &'static str },
    /// Its reader is too slow: what waited was thrown away.
    Lagging,
    /// Nothing came from the client for too long.
    Silent,
    /// The reader of the stream gave up and knows why.
    Refused,
}

/// What the writer gets.
#[derive(Debug)]
pub enum Taken {
    Message(Message),
    /// At most [`limits::MAX_SETTLEMENTS_A_MESSAGE`], unless one request had more.
    Settled(Vec<Settled>),
    End(End),
}

/// See the module.
#[derive(Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
}

struct Queued {
    message: Message,
    /// It leaves when so many answers came.
    after: u64,
}

#[derive(Default)]
struct Inner {
    messages: VecDeque<Queued>,
    /// With the permit that lets the reader take one request more once the answer has left.
    settled: VecDeque<(Vec<Settled>, Option<OwnedSemaphorePermit>)>,
    /// Requests that went to the machine, and those of them whose answers came: a clean end waits
    /// until they are equal.
    owed: u64,
    paid: u64,
    end: Option<End>,
    writer: Option<Waker>,
    /// Since when the writer has taken nothing of what waits.
    waiting_since: Option<Instant>,
}

impl Outbox {
    /// Queues a message. False: the outbox was full and the stream has ended, or it had already.
    pub fn push(&self, message: Message) -> bool {
        let mut inner = self.inner.lock();
        if inner.end.is_some() {
            return false;
        }
        // A client that pings without reading makes one Pong, not many.
        if matches!(message, Message::Pong)
            && inner.messages.back().is_some_and(|last| matches!(last.message, Message::Pong))
        {
            return true;
        }
        if inner.messages.len() >= limits::MAX_STREAM_QUEUE {
            inner.messages.clear();
            inner.settled.clear();
            inner.finish(End::Lagging);
            return false;
        }
        let after = if matches!(message, Message::EndOfWork { .. }) { inner.owed } else { 0 };
        inner.messages.push_back(Queued { message, after });
        inner.woken();
        true
    }

    /// Queues the answers of one request. Bounded by the reader's permits.
    pub fn push_settled(&self, answers: Vec<Settled>, permit: Option<OwnedSemaphorePermit>) {
        let mut inner = self.inner.lock();
        if !answers.is_empty() && matches!(inner.end, None | Some(End::Clean)) {
            inner.settled.push_back((answers, permit));
            inner.woken();
        }
    }

    /// A request went to the machine; [`Self::pay`] follows once its answers were queued.
    pub fn owe(&self) {
        self.inner.lock().owed += 1;
    }

    /// The answers of a request that [`Self::owe`] announced were queued.
    pub fn pay(&self) {
        let mut inner = self.inner.lock();
        inner.paid += 1;
        let held = |queued: &Queued| queued.after > 0;
        if inner.paid == inner.owed && inner.end.is_some() || inner.messages.front().is_some_and(held) {
            inner.woken();
        }
    }

    /// Ends the stream once what waits has left. Only the first end counts.
    pub fn end(&self, end: End) {
        self.inner.lock().finish(end);
    }

    /// True after [`Self::end`] or an overflow.
    pub fn ended(&self) -> bool {
        self.inner.lock().end.is_some()
    }

    /// How long the writer has taken nothing of what waits.
    pub fn lag(&self, now: Instant) -> Duration {
        self.inner.lock().waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Forgets how long the writer has been waited for: this node was asleep itself.
    pub fn excuse(&self, now: Instant) {
        if let Some(since) = &mut self.inner.lock().waiting_since {
            *since = now;
        }
    }

    /// The writer's side, for who waits for it. After `Taken::End` nothing more comes.
    pub async fn taken(&self) -> Taken {
        std::future::poll_fn(|cx| self.poll_take(cx)).await
    }

    /// The writer's side: all that waits and fits one message. After `Taken::End` nothing more comes.
    pub fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Taken> {
        let mut inner = self.inner.lock();
        let taken = inner.take();
        if taken.is_none() {
            inner.writer = Some(cx.waker().clone());
            inner.waiting_since = None;
            return match &inner.end {
                // The answer to the last settlement may come after the session's end.
                Some(End::Clean) if inner.owed > inner.paid => Poll::Pending,
                Some(end) => Poll::Ready(Taken::End(end.clone())),
                None => Poll::Pending,
            };
        }
        inner.waiting_since = (!inner.is_empty()).then(Instant::now);
        taken.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.settled.is_empty()
    }

    fn woken(&mut self) {
        if self.waiting_since.is_none() {
            self.waiting_since = Some(Instant::now());
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn finish(&mut self, end: End) {
        if self.end.is_none() {
            self.end = Some(end);
            self.woken();
        }
    }

    fn take(&mut self) -> Option<Taken> {
        let welcome_first = self.messages.front().is_some_and(|first| matches!(first.message, Message::Welcome { .. }));
        if !welcome_first && let Some(answers) = self.take_settled() {
            return Some(Taken::Settled(answers));
        }
        let at = self.messages.iter().position(|queued| queued.after <= self.paid)?;
        let mut first = self.messages.remove(at)?.message;
        if let Message::Deliver(deliveries) = &mut first {
            self.coalesce(deliveries);
        }
        Some(Taken::Message(first))
    }

    /// The permits are given back here: the answers are on their way.
    fn take_settled(&mut self) -> Option<Vec<Settled>> {
        let (mut answers, _permit) = self.settled.pop_front()?;
        while let Some((next, _)) = self.settled.front()
            && answers.len() + next.len() <= limits::MAX_SETTLEMENTS_A_MESSAGE
        {
            let (next, _permit) = self.settled.pop_front()?;
            answers.extend(next);
        }
        Some(answers)
    }

    /// Fills `deliveries` up to [`limits::MAX_DELIVER_BYTES`] from what follows, or cuts it there.
    fn coalesce(&mut self, deliveries: &mut Vec<Delivery>) {
        let mut room = limits::MAX_DELIVER_BYTES;
        for (at, delivery) in deliveries.iter().enumerate() {
            let bytes = delivery.weight();
            if bytes > room && at > 0 {
                let rest = deliveries.split_off(at);
                self.messages.push_front(Queued { message: Message::Deliver(rest), after: 0 });
                return;
            }
            room = room.saturating_sub(bytes);
        }
        while let Some(Queued { message: Message::Deliver(next), .. }) = self.messages.front_mut() {
            let mut fits = 0;
            for delivery in next.iter() {
                let bytes = delivery.weight();
                if bytes > room {
                    break;
                }
                room -= bytes;
                fits += 1;
            }
            let whole = fits == next.len();
            deliveries.extend(next.drain(..fits));
            if !whole {
                return;
            }
            self.messages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::view::{PackageBody, Profile};
    use crate::types::{Fence, Wall};

    fn delivery(fence: u64, payload: usize) -> Delivery {
        let queue = QueueName::parse("q").unwrap();
        let profile = Arc::new(Profile { queue, kind: "k".into(), options: Default::default() });
        Delivery {
            body: PackageBody::new(profile, format!("p{fence}").as_str().into(), None, Wall(0), &vec![0; payload]),
            fence: Fence(fence),
            lease_ms: 60_000,
            attempt: 1,
            priority: 4,
            checkpoint: Default::default(),
        }
    }

    fn take(outbox: &Outbox) -> Option<Taken> {
        match outbox.poll_take(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => Some(taken),
            Poll::Pending => None,
        }
    }

    fn fences(taken: Option<Taken>) -> Vec<u64> {
        match taken {
            Some(Taken::Message(Message::Deliver(all))) => all.iter().map(|d| d.fence.0).collect(),
            other => panic!("expected a delivery, got {other:?}"),
        }
    }

    #[tokio::test]
    async fn deliveries_share_a_message_up_to_its_limit_and_keep_their_order() {
        let outbox = Outbox::default();
        outbox.push(Message::Deliver(vec![delivery(1, 10), delivery(2, 10)]));
        outbox.push(Message::Deliver(vec![delivery(3, 10)]));
        outbox.push(Message::Recall { count: 1 });
        const MOST: usize = limits::MAX_DELIVER_BYTES;
        let large = vec![delivery(4, MOST * 2 / 3), delivery(5, MOST * 2 / 3), delivery(6, MOST * 3)];
        outbox.push(Message::Deliver(large));
        assert_eq!(fences(take(&outbox)), [1, 2, 3]);
        assert!(matches!(take(&outbox), Some(Taken::Message(Message::Recall { count: 1 }))));
        assert_eq!(fences(take(&outbox)), [4]);
        assert_eq!(fences(take(&outbox)), [5]);
        assert_eq!(fences(take(&outbox)), [6]);
        assert!(take(&outbox).is_none());
    }

    #[tokio::test]
    async fn a_lagging_reader_is_cut_off_and_what_waited_is_let_go() {
        let outbox = Outbox::default();
        for _ in 0..limits::MAX_STREAM_QUEUE {
            assert!(outbox.push(Message::Recall { count: 1 }));
        }
        assert!(!outbox.push(Message::Recall { count: 1 }));
        assert!(matches!(take(&outbox), Some(Taken::End(End::Lagging))));
    }

    #[tokio::test]
    async fn the_end_comes_after_what_waited_and_settlements_overtake_all_but_the_welcome() {
        let outbox = Outbox::default();
        let settled = || vec![Settled { queue: "q".into(), id: "a".into(), fence: 1, result: Ok(()) }];
        outbox.push(Message::Welcome {
            session: "s".into(),
            epoch: Epoch(1),
            term: 1,
            verdicts: vec![],
            session_grace_ms: 1,
        });
        outbox.push(Message::Deliver(vec![delivery(1, 1)]));
        outbox.push_settled(settled(), None);
        outbox.push_settled(settled(), None);
        outbox.end(End::Clean);
        outbox.end(End::Silent);
        assert!(!outbox.push(Message::Pong));
        assert!(matches!(take(&outbox), Some(Taken::Message(Message::Welcome { .. }))));
        assert!(matches!(take(&outbox), Some(Taken::Settled(both)) if both.len() == 2));
        assert_eq!(fences(take(&outbox)), [1]);
        assert!(matches!(take(&outbox), Some(Taken::End(End::Clean))));
    }

    #[tokio::test]
    async fn a_clean_end_waits_for_the_answers_that_are_owed() {
        let outbox = Outbox::default();
        outbox.owe();
        outbox.end(End::Clean);
        assert!(take(&outbox).is_none());
        outbox.push_settled(vec![Settled { queue: "q".into(), id: "a".into(), fence: 1, result: Ok(()) }], None);
        outbox.pay();
        assert!(matches!(take(&outbox), Some(Taken::Settled(_))));
        assert!(matches!(take(&outbox), Some(Taken::End(End::Clean))));
    }
}
