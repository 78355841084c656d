//! Who is silent, who lags, and whose prefetch others could be working on. Decisions only.
//!
//! Invariants: a node that lay frozen itself judges nobody. A recall becomes a reclaim only if it
//! brought nothing for `RECALL_ANSWER_MS`.

use std::collections::BTreeMap;

use tokio::time::{Duration, Instant};

use super::outbox::End;
use super::stream::Stream;
use crate::machine::effect::SessionId;
use crate::types::{Epoch, limits};

const SILENCE: Duration = Duration::from_millis(limits::WORKER_SILENCE_MS);
const RECALL_ANSWER: Duration = Duration::from_millis(limits::RECALL_ANSWER_MS);
/// A look that comes later than this was not the streams' fault.
const ASLEEP: Duration = Duration::from_millis(4 * limits::LIVENESS_EVERY_MS);

/// Looks at streams one after the other, at each tick.
pub(super) struct Watch {
    last: Instant,
}

impl Watch {
    pub fn new(now: Instant) -> Self {
        Self { last: now }
    }

    /// Begins a round. True: this node was asleep, so excuse everybody.
    pub fn round(&mut self, now: Instant) -> bool {
        let asleep = now.saturating_duration_since(self.last) > ASLEEP;
        self.last = now;
        asleep
    }
}

/// Why this stream must be cut off, if it must.
pub(super) fn judge(stream: &Stream, now: Instant) -> Option<End> {
    if stream.outbox.lag(now) > SILENCE {
        return Some(End::Lagging);
    }
    (stream.silence_ms(now) > limits::WORKER_SILENCE_MS).then_some(End::Silent)
}

/// What to do about a session that sits on prefetch while others idle.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nudge {
    Recall { session: SessionId, count: u32 },
    Reclaim { session: SessionId, epoch: Epoch, count: u32 },
}

/// Recalls that wait for their effect.
#[derive(Default)]
pub(super) struct Recalls {
    asked: BTreeMap<SessionId, Asked>,
}

#[derive(Clone, Copy)]
struct Asked {
    epoch: Epoch,
    count: u32,
    since: Instant,
}

impl Recalls {
    /// Takes what `Machine::recallable` says now.
    pub fn nudge(&mut self, recallable: Vec<(SessionId, Epoch, u32)>, now: Instant) -> Vec<Nudge> {
        let before = std::mem::take(&mut self.asked);
        let mut nudges = Vec::new();
        for (session, epoch, count) in recallable {
            let asked = before.get(&session).filter(|asked| asked.epoch == epoch && asked.count <= count);
            match asked {
                Some(asked) if now.saturating_duration_since(asked.since) >= RECALL_ANSWER => {
                    nudges.push(Nudge::Reclaim { session, epoch, count });
                }
                Some(asked) => _ = self.asked.insert(session, *asked),
                // Not asked yet, or it gave some back and others still idle.
                None => {
                    nudges.push(Nudge::Recall { session: session.clone(), count });
                    self.asked.insert(session, Asked { epoch, count, since: now });
                }
            }
        }
        nudges
    }

    pub fn clear(&mut self) {
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::Message;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_is_waited_for_is_silent() {
        let stream = Stream::new(1, 1, 1, "s".into());
        let silent = || judge(&stream, Instant::now()).is_some_and(|end| matches!(end, End::Silent));
        tokio::time::advance(SILENCE * 2).await;
        assert!(!silent(), "the reader was busy, not waiting");
        stream.reading();
        tokio::time::advance(Duration::from_millis(limits::WORKER_SILENCE_MS)).await;
        assert!(!silent());
        stream.excuse(Instant::now());
        tokio::time::advance(SILENCE).await;
        assert!(!silent());
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(silent());
        stream.heard();
        assert!(!silent());
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_takes_nothing_lags() {
        let stream = Stream::new(1, 1, 1, "s".into());
        stream.push(Message::Pong);
        tokio::time::advance(SILENCE + Duration::from_millis(1)).await;
        assert!(matches!(judge(&stream, Instant::now()), Some(End::Lagging)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_recall_becomes_a_reclaim_once() {
        let mut recalls = Recalls::default();
        let sits = || vec![(SessionId::from("s"), Epoch(1), 5)];
        let recall = Nudge::Recall { session: "s".into(), count: 5 };
        assert_eq!(recalls.nudge(sits(), Instant::now()), [recall]);
        tokio::time::advance(RECALL_ANSWER / 2).await;
        assert_eq!(recalls.nudge(sits(), Instant::now()), []);
        tokio::time::advance(Duration::from_millis(limits::RECALL_ANSWER_MS / 2)).await;
        let reclaim = Nudge::Reclaim { session: "s".into(), epoch: Epoch(1), count: 5 };
        assert_eq!(recalls.nudge(sits(), Instant::now()), [reclaim]);
        assert_eq!(recalls.nudge(vec![], Instant::now()), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_gives_back_is_asked_again_instead() {
        let mut recalls = Recalls::default();
        let sits = |count| vec![(SessionId::from("s"), Epoch(1), count)];
        recalls.nudge(sits(5), Instant::now());
        tokio::time::advance(RECALL_ANSWER).await;
        let recall = Nudge::Recall { session: "s".into(), count: 3 };
        assert_eq!(recalls.nudge(sits(3), Instant::now()), [recall]);
        tokio::time::advance(RECALL_ANSWER / 2).await;
        assert_eq!(recalls.nudge(sits(3), Instant::now()), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_was_frozen_notices() {
        let mut watch = Watch::new(Instant::now());
        tokio::time::advance(Duration::from_millis(limits::LIVENESS_EVERY_MS)).await;
        assert!(!watch.round(Instant::now()));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(watch.round(Instant::now()));
    }
}
