//! Which streams live here and which session each serves. Plain data behind a short lock.
//!
//! Invariants: a session is served by at most one stream, the one of its newest epoch. Every bound
//! stream that leaves without the state knowing gives a [`Gone`], which becomes `DetachSession`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::outbox::{End, Message};
use super::stream::Stream;
use crate::machine::Effect;
use crate::machine::command::Speaker;
use crate::machine::effect::SessionId;
use crate::types::{Epoch, Revision};

/// A session whose stream is gone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gone(pub Speaker);

/// See the module.
#[derive(Default)]
pub(super) struct Registry {
    streams: BTreeMap<u64, Arc<Stream>>,
    /// The stream (by attach number) that serves the session.
    sessions: BTreeMap<SessionId, u64>,
    /// Detachments on their way, by their token; proposed again until answered.
    detaching: BTreeMap<u64, Detaching>,
    next_token: u64,
}

struct Detaching {
    gone: Gone,
    proposed: bool,
}

impl Registry {
    pub fn insert(&mut self, stream: Arc<Stream>) {
        self.streams.insert(stream.attach, stream);
    }

    /// Nothing here needs to be looked after.
    pub fn is_idle(&self) -> bool {
        self.streams.is_empty() && self.detaching.is_empty()
    }

    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Every stream, in the order of arrival.
    pub fn streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.streams.values()
    }

    /// The stream that serves the session.
    pub fn serving(&self, session: &str) -> Option<&Arc<Stream>> {
        self.streams.get(self.sessions.get(session)?)
    }

    /// Takes a stream out. Its session must be detached, if it still served one.
    pub fn remove(&mut self, stream: &Stream) -> Option<Gone> {
        self.streams.remove(&stream.attach)?;
        if self.sessions.get(&stream.session) != Some(&stream.attach) {
            return None;
        }
        self.sessions.remove(&stream.session);
        stream.epoch().map(|_| Gone(stream.speaker()))
    }

    /// Takes a stream out whose session the state itself let go of.
    pub fn forget(&mut self, stream: &Stream) {
        self.streams.remove(&stream.attach);
        if self.sessions.get(&stream.session) == Some(&stream.attach) {
            self.sessions.remove(&stream.session);
        }
    }

    /// Ends every stream of another office than this one. Leaves none behind if it is `None`.
    pub fn leading(&mut self, office: Option<u64>, leader: &str, reason: &'static str) {
        let gone: Vec<_> = self.streams.values().filter(|stream| Some(stream.office) != office).cloned().collect();
        for stream in gone {
            stream.end(End::Goaway { leader: leader.to_owned(), reason });
            self.forget(&stream);
        }
        // The new leader's state takes every session of an older office for detached.
        self.detaching.clear();
    }

    /// Brings an effect to its stream. Gives a session that the state takes for attached, while
    /// the stream that opened it is gone.
    pub fn deliver(&mut self, effect: Effect, revision: Revision) -> Option<Gone> {
        match effect {
            Effect::SessionOpened { session, epoch, attach, verdicts, session_grace_ms } => {
                let Some(stream) = self.streams.get(&attach).cloned() else {
                    let session = session.to_string();
                    return Some(Gone(Speaker { session, epoch: epoch.0, received_fence: 0 }));
                };
                if let Some(older) = self.serving(&session).filter(|older| older.attach != attach).cloned() {
                    older.end(End::Goaway { leader: String::new(), reason: "the session goes on on another stream" });
                    self.forget(&older);
                }
                self.sessions.insert(session.clone(), attach);
                let term = stream.term;
                stream.reached(revision);
                stream.push(Message::Welcome { session, epoch, term, verdicts, session_grace_ms });
                stream.bind(epoch);
            }
            Effect::Deliver { session, epoch, deliveries } => {
                if let Some(stream) = self.addressed(&session, epoch) {
                    stream.reached(revision);
                    stream.push(Message::Deliver(deliveries));
                }
            }
            Effect::Revoke { session, epoch, leases, reason } => {
                if let Some(stream) = self.addressed(&session, epoch) {
                    // After a lease that ran out the session gets nothing until it is heard from.
                    stream.mind_signs_of_life();
                    stream.reached(revision);
                    stream.push(Message::Revoke { leases, reason });
                }
            }
            Effect::EndOfWork { session, epoch, queue } => {
                if let Some(stream) = self.addressed(&session, epoch) {
                    stream.reached(revision);
                    stream.push(Message::EndOfWork { queue });
                }
            }
            Effect::SessionClosed { session, epoch, reason } => {
                if let Some(stream) = self.serving(&session).cloned()
                    && stream.epoch().is_some_and(|bound| bound <= epoch)
                {
                    tracing::debug!(session = %session, reason, "session closed");
                    stream.end(End::Clean);
                    self.forget(&stream);
                }
            }
            // The machine gives it nothing more; the end comes with `SessionClosed`.
            Effect::SessionDraining { .. } => {}
            Effect::QueueEnded { .. } | Effect::SweepFinished { .. } | Effect::Fingerprint => {}
        }
        None
    }

    fn addressed(&self, session: &str, epoch: Epoch) -> Option<&Arc<Stream>> {
        self.serving(session).filter(|stream| stream.epoch() == Some(epoch))
    }

    /// Notes a detachment that is about to be proposed under the token.
    pub fn detaching(&mut self, gone: Gone) -> u64 {
        self.next_token += 1;
        self.detaching.insert(self.next_token, Detaching { gone, proposed: true });
        self.next_token
    }

    /// The proposal was answered: for good, or it must be made again.
    pub fn detached(&mut self, token: u64, for_good: bool) {
        if for_good {
            self.detaching.remove(&token);
        } else if let Some(detaching) = self.detaching.get_mut(&token) {
            detaching.proposed = false;
        }
    }

    /// Detachments to propose again.
    pub fn detach_again(&mut self) -> Vec<(u64, Gone)> {
        let mut again = Vec::new();
        for (token, detaching) in self.detaching.iter_mut().filter(|(_, detaching)| !detaching.proposed) {
            detaching.proposed = true;
            again.push((*token, detaching.gone.clone()));
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::super::outbox::Taken;
    use super::*;

    fn stream(registry: &mut Registry, attach: u64, session: &str) -> Arc<Stream> {
        let stream = Arc::new(Stream::new(attach, 7, 3, session.into()));
        registry.insert(stream.clone());
        stream
    }

    fn opened(session: &str, epoch: u64, attach: u64) -> Effect {
        Effect::SessionOpened {
            session: session.into(),
            epoch: Epoch(epoch),
            attach,
            verdicts: vec![],
            session_grace_ms: 5_000,
        }
    }

    fn took(stream: &Stream) -> String {
        let mut all = Vec::new();
        while let Poll::Ready(taken) = stream.outbox.poll_take(&mut Context::from_waker(Waker::noop())) {
            let text = format!("{taken:?}");
            all.push(text.chars().take_while(|c| !"{".contains(*c)).collect::<String>().trim().to_owned());
            if matches!(taken, Taken::End(_)) {
                break;
            }
        }
        all.join(", ")
    }

    #[tokio::test]
    async fn a_session_resumed_elsewhere_sends_the_older_stream_away_and_is_not_detached() {
        let mut registry = Registry::default();
        let older = stream(&mut registry, 1, "s");
        assert_eq!(registry.deliver(opened("s", 1, 1), Revision(1)), None);
        let newer = stream(&mut registry, 2, "s");
        assert_eq!(registry.deliver(opened("s", 2, 2), Revision(1)), None);
        assert_eq!(took(&older), "Message(Welcome, End(Goaway");
        assert_eq!(registry.remove(&older), None);
        registry
            .deliver(Effect::Revoke { session: "s".into(), epoch: Epoch(1), leases: vec![], reason: "" }, Revision(1));
        registry
            .deliver(Effect::Revoke { session: "s".into(), epoch: Epoch(2), leases: vec![], reason: "" }, Revision(1));
        assert_eq!(took(&newer), "Message(Welcome, Message(Revoke");
        newer.received(9);
        let speaker = Speaker { session: "s".into(), epoch: 2, received_fence: 9 };
        assert_eq!(registry.remove(&newer), Some(Gone(speaker)));
    }

    #[tokio::test]
    async fn a_stream_that_broke_before_its_session_opened_leaves_a_detachment() {
        let mut registry = Registry::default();
        let broken = stream(&mut registry, 1, "s");
        assert_eq!(registry.remove(&broken), None);
        let gone = registry.deliver(opened("s", 4, 1), Revision(1)).expect("the session has no stream");
        assert_eq!(gone.0.epoch, 4);
        let token = registry.detaching(gone.clone());
        assert!(registry.detach_again().is_empty());
        registry.detached(token, false);
        assert_eq!(registry.detach_again(), [(token, gone)]);
        registry.detached(token, true);
        assert!(registry.detach_again().is_empty());
    }

    #[tokio::test]
    async fn the_end_of_leadership_sends_everybody_away() {
        let mut registry = Registry::default();
        let bound = stream(&mut registry, 1, "s");
        let unbound = stream(&mut registry, 2, "t");
        registry.deliver(opened("s", 1, 1), Revision(1));
        registry.leading(Some(3), "", "");
        assert_eq!(registry.len(), 2);
        registry.leading(Some(4), "other:7411", "the leader changed");
        assert_eq!(registry.len(), 0);
        assert_eq!(took(&bound), "Message(Welcome, End(Goaway");
        assert_eq!(took(&unbound), "End(Goaway");
    }

    #[tokio::test]
    async fn a_drained_session_ends_its_stream_cleanly() {
        let mut registry = Registry::default();
        let drained = stream(&mut registry, 1, "s");
        registry.deliver(opened("s", 1, 1), Revision(1));
        registry
            .deliver(Effect::SessionClosed { session: "s".into(), epoch: Epoch(1), reason: "drained" }, Revision(1));
        assert_eq!(took(&drained), "Message(Welcome, End(Clean)");
        assert_eq!(registry.remove(&drained), None);
    }
}
