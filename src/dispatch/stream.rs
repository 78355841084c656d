//! One live worker stream, as its reader, its writer and the pump share it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::outbox::{End, Message, Outbox};
use crate::machine::command::Speaker;
use crate::machine::effect::SessionId;
use crate::types::{Epoch, Revision};

/// See the module.
pub struct Stream {
    /// The leader's number for it.
    pub attach: u64,
    /// The leader's term, for the worker to know.
    pub term: u64,
    /// The office in which it may live; see `Standing::office`.
    pub office: u64,
    pub session: SessionId,
    pub outbox: Outbox,
    began: Instant,
    /// 0 until the session was opened.
    epoch: AtomicU64,
    bound: Notify,
    /// The highest fence that the worker says has arrived.
    received: AtomicU64,
    /// The latest revision known here.
    revision: AtomicU64,
    /// Microseconds after `began`, plus 1, since which the reader waits for the client; 0: it does not.
    reading_since: AtomicU64,
    /// A lease may have timed out in the worker's hands: the next sign of life matters to the state.
    heard_matters: AtomicBool,
    ended: CancellationToken,
}

impl Stream {
    pub(super) fn new(attach: u64, term: u64, office: u64, session: SessionId) -> Self {
        Self {
            attach,
            term,
            office,
            session,
            outbox: Outbox::default(),
            began: Instant::now(),
            epoch: AtomicU64::new(0),
            bound: Notify::new(),
            received: AtomicU64::new(0),
            revision: AtomicU64::new(0),
            reading_since: AtomicU64::new(0),
            heard_matters: AtomicBool::new(false),
            ended: CancellationToken::new(),
        }
    }

    /// The session's epoch on this stream, once it was opened.
    pub fn epoch(&self) -> Option<Epoch> {
        Some(Epoch(self.epoch.load(Ordering::Acquire))).filter(|epoch| epoch.0 > 0)
    }

    pub(super) fn bind(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Release);
        self.bound.notify_one();
    }

    /// Waits until the session is open. None: the stream ended first. Only the reader waits.
    pub async fn bound(&self) -> Option<Epoch> {
        loop {
            if let Some(epoch) = self.epoch() {
                return Some(epoch);
            }
            tokio::select! {
                () = self.bound.notified() => {}
                () = self.ended.cancelled() => return self.epoch(),
            }
        }
    }

    /// Who speaks, for the next command.
    pub fn speaker(&self) -> Speaker {
        Speaker {
            session: self.session.to_string(),
            epoch: self.epoch.load(Ordering::Acquire),
            received_fence: self.received.load(Ordering::Relaxed),
        }
    }

    /// The worker says that everything up to this fence has arrived.
    pub fn received(&self, fence: u64) {
        self.received.fetch_max(fence, Ordering::Relaxed);
    }

    /// A revision was seen.
    pub fn reached(&self, revision: Revision) {
        self.revision.fetch_max(revision.0, Ordering::Relaxed);
    }

    /// The latest revision known here.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// The reader begins to wait for the client.
    pub fn reading(&self) {
        self.reading_since.store(self.micros(Instant::now()), Ordering::Relaxed);
    }

    /// The client was heard.
    pub fn heard(&self) {
        self.reading_since.store(0, Ordering::Relaxed);
    }

    /// For how many milliseconds the reader has waited for the client.
    pub(super) fn silence_ms(&self, now: Instant) -> u64 {
        match self.reading_since.load(Ordering::Relaxed) {
            0 => 0,
            since => self.micros(now).saturating_sub(since) / 1000,
        }
    }

    /// This node was asleep itself: counts the silence from now.
    pub(super) fn excuse(&self, now: Instant) {
        let since = self.reading_since.load(Ordering::Relaxed);
        if since != 0 {
            let _lost_race_means_heard =
                self.reading_since.compare_exchange(since, self.micros(now), Ordering::Relaxed, Ordering::Relaxed);
        }
        self.outbox.excuse(now);
    }

    /// The next sign of life matters to the state.
    pub fn mind_signs_of_life(&self) {
        self.heard_matters.store(true, Ordering::Relaxed);
    }

    /// True once after each time that a sign of life came to matter.
    pub fn sign_of_life_matters(&self) -> bool {
        self.heard_matters.load(Ordering::Relaxed) && self.heard_matters.swap(false, Ordering::Relaxed)
    }

    /// Queues a message; a full outbox ends the stream.
    pub fn push(&self, message: Message) {
        if !self.outbox.push(message) {
            self.ended.cancel();
        }
    }

    /// Ends the stream: the reader stops, the writer says what waits and then why.
    pub fn end(&self, end: End) {
        self.outbox.end(end);
        self.ended.cancel();
    }

    /// Resolves when the stream has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_micros() as u64 + 1
    }
}
