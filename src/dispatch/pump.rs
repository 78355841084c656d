//! The one consumer of the effect feed: brings effects to streams and waiters, follows the
//! leadership, and looks after the streams' liveness.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::liveness::{self, Nudge, Recalls, Watch};
use super::outbox::{End, Message};
use super::registry::Gone;
use super::stream::Stream;
use super::waiters::Wake;
use crate::machine::command::{Command, DetachSession, Op, Reclaim, Speaker};
use crate::machine::effect::SessionId;
use crate::machine::view::SessionStatus;
use crate::machine::{Effect, Outcome, Reject};
use crate::raft::handle::{EffectBatch, Feed, Lane, ProposeError, Responder, Sink, Standing};
use crate::types::{Epoch, limits};

/// Streams are looked after this often; without any, it is seldom looked whether there are some. The
/// first look after such a pause excuses their silence, as after a sleep.
const LOOK: Duration = Duration::from_millis(limits::LIVENESS_EVERY_MS);
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// See the module. Run it once, for as long as the node lives.
pub struct Pump {
    shared: Arc<Shared>,
    office: Option<u64>,
    recalls: Recalls,
    watch: Watch,
    recalled: Instant,
    /// Sessions that had no stream when the state was last looked through after a gap.
    orphans: BTreeMap<SessionId, Epoch>,
}

impl Pump {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        Self {
            shared,
            office: None,
            recalls: Recalls::default(),
            watch: Watch::new(now),
            recalled: now,
            orphans: BTreeMap::new(),
        }
    }

    /// Pumps until `stop`, then sends every stream away. Ends early only if the feed ends or was
    /// taken by somebody else.
    pub async fn run(self, stop: CancellationToken) {
        match self.shared.raft.take_effects() {
            Some(feed) => self.run_on(feed, stop).await,
            None => tracing::error!("the effect feed was taken before: no worker will be served"),
        }
    }

    /// The same, on a feed that came some other way.
    pub(crate) async fn run_on(mut self, mut feed: mpsc::Receiver<Feed>, stop: CancellationToken) {
        tokio::spawn(super::ends::follow(self.shared.clone(), stop.clone()));
        let mut standing = self.shared.raft.standing();
        let look = sleep_until(Instant::now());
        tokio::pin!(look);
        self.follow(&standing.borrow_and_update().clone());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = standing.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let now = standing.borrow_and_update().clone();
                    self.follow(&now);
                }
                fed = feed.recv() => match fed {
                    Some(Feed::Batch(batch)) => self.bring(batch),
                    Some(Feed::Gap) => self.rebuild(),
                    None => break,
                },
                () = &mut look => {
                    self.look_after(&feed);
                    look.as_mut().reset(Instant::now() + self.pace());
                }
            }
        }
        let leader = standing.borrow().leader.as_ref().map(|leader| leader.member.client_addr.clone());
        self.shared.registry.lock().leading(None, &leader.unwrap_or_default(), "the node stops");
        self.shared.waiters.wake_all(Wake::LeaderLost);
    }

    /// Leadership is gained, lost or unchanged.
    fn follow(&mut self, standing: &Standing) {
        // Not the term: this may be the first look since the end of one office and the start of another.
        if standing.office() == self.office {
            return;
        }
        self.office = standing.office();
        let leader = standing.leader.as_ref().map(|leader| leader.member.client_addr.as_str()).unwrap_or_default();
        self.shared.registry.lock().leading(self.office, leader, "the leader changed");
        self.shared.waiters.wake_all(Wake::LeaderLost);
        self.recalls.clear();
        self.orphans.clear();
    }

    fn bring(&mut self, batch: EffectBatch) {
        let mut gone = Vec::new();
        let mut registry = self.shared.registry.lock();
        for effect in batch.effects {
            match effect {
                Effect::QueueEnded { queue } => self.shared.waiters.queue_ended(queue),
                Effect::SweepFinished { sweep, changed } => self.shared.waiters.sweep_finished(sweep, changed),
                effect => gone.extend(registry.deliver(effect, batch.revision)),
            }
        }
        drop(registry);
        for gone in gone {
            propose_detach(&self.shared, gone);
        }
    }

    /// Effects were lost: tell each stream again what the state says, and find sessions without one.
    fn rebuild(&mut self) {
        let streams: Vec<_> = self.shared.registry.lock().streams().cloned().collect();
        if !streams.is_empty() {
            tracing::warn!(streams = streams.len(), "effects were lost, telling the streams anew from the state");
        }
        for stream in &streams {
            self.tell_anew(stream);
        }
        self.shared.waiters.wake_all(Wake::Look);
        let attached = self.shared.raft.view(|machine| {
            let sessions = machine.sessions(None).into_iter();
            let attached = sessions.filter(|session| {
                // A draining one may be detached already; its leases end by themselves.
                matches!(session.status, SessionStatus::Attached | SessionStatus::Silent)
            });
            attached.map(|session| (session.session, session.epoch)).collect::<Vec<_>>()
        });
        let registry = self.shared.registry.lock();
        self.orphans = attached.into_iter().filter(|(session, _)| registry.serving(session).is_none()).collect();
    }

    fn tell_anew(&self, stream: &Stream) {
        let goaway = || End::Goaway { leader: String::new(), reason: "the stream's place was lost, say Hello again" };
        let Some(epoch) = stream.epoch() else {
            // Its welcome may be among what was lost.
            return stream.end(goaway());
        };
        let told = self.shared.raft.view(|machine| {
            let session = machine.session(&stream.session)?;
            let ended: Vec<_> = session
                .queues
                .iter()
                .filter(|queue| machine.queue(queue.as_str()).is_ok_and(|queue| queue.ended))
                .cloned()
                .collect();
            Ok::<_, Reject>((session.epoch, machine.held(&stream.session), ended))
        });
        match told {
            Ok((current, held, ended)) if current == epoch => {
                stream.mind_signs_of_life();
                if !held.is_empty() {
                    stream.push(Message::Deliver(held));
                }
                for queue in ended {
                    stream.push(Message::EndOfWork { queue });
                }
            }
            _ => stream.end(goaway()),
        }
    }

    fn pace(&self) -> Duration {
        let idle = self.orphans.is_empty() && self.shared.registry.lock().is_idle();
        if idle { IDLE_LOOK } else { LOOK }
    }

    fn look_after(&mut self, feed: &mpsc::Receiver<Feed>) {
        let now = Instant::now();
        let asleep = self.watch.round(now);
        if self.office.is_none() {
            return;
        }
        let (streams, again) = {
            let mut registry = self.shared.registry.lock();
            (registry.streams().cloned().collect::<Vec<_>>(), registry.detach_again())
        };
        for (token, gone) in again {
            send_detach(&self.shared, token, gone);
        }
        for stream in &streams {
            if asleep {
                stream.excuse(now);
            } else if let Some(end) = liveness::judge(stream, now) {
                tracing::info!(session = %stream.session, ?end, "cutting off a worker stream");
                // Its reader stops and drops the attachment, which detaches the session.
                stream.end(end);
            }
        }
        // While effects wait, a session without a stream may be about to get one.
        if !self.orphans.is_empty() && feed.is_empty() {
            self.detach_orphans();
        }
        if streams.len() > 1
            && now.saturating_duration_since(self.recalled).as_millis() as u64 >= limits::RECALL_EVERY_MS
        {
            self.recalled = now;
            self.recall(now);
        }
    }

    fn detach_orphans(&mut self) {
        for (session, epoch) in std::mem::take(&mut self.orphans) {
            if self.shared.registry.lock().serving(&session).is_none() {
                let session = session.to_string();
                propose_detach(&self.shared, Gone(Speaker { session, epoch: epoch.0, received_fence: 0 }));
            }
        }
    }

    fn recall(&mut self, now: Instant) {
        let recallable = self.shared.raft.view(|machine| machine.recallable());
        for nudge in self.recalls.nudge(recallable, now) {
            match nudge {
                Nudge::Recall { session, count } => {
                    if let Some(stream) = self.shared.registry.lock().serving(&session) {
                        stream.push(Message::Recall { count });
                    }
                }
                Nudge::Reclaim { session, epoch, count } => {
                    let reclaim = Reclaim { session: session.to_string(), epoch: epoch.0, count };
                    let command = Command { op: Some(Op::Reclaim(reclaim)) };
                    // If it does not come through, the next look begins again.
                    self.shared.raft.send(Lane::Settle, command, Responder::None);
                }
            }
        }
    }
}

/// Proposes that the session is without a stream, until that is answered.
pub(super) fn propose_detach(shared: &Arc<Shared>, gone: Gone) {
    let token = shared.registry.lock().detaching(gone.clone());
    send_detach(shared, token, gone);
}

fn send_detach(shared: &Arc<Shared>, token: u64, Gone(speaker): Gone) {
    let command = Command { op: Some(Op::DetachSession(DetachSession { speaker: Some(speaker) })) };
    let sink: Arc<dyn Sink> = shared.clone();
    shared.raft.send(Lane::Settle, command, Responder::Sink(sink, token));
}

/// Answers of detachments.
impl Sink for Shared {
    fn answer(&self, token: u64, result: Result<Outcome, ProposeError>) {
        let again =
            matches!(result, Err(ProposeError::Unknown { .. } | ProposeError::Overloaded | ProposeError::DiskFull));
        self.registry.lock().detached(token, !again);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::env::Env;
    use crate::raft;
    use crate::raft::snapshots::Blocking;
    use crate::storage::disk::SimDisk;
    use crate::storage::home::Home;
    use crate::storage::wal::{Flusher, Options};

    /// A node that belongs to no cluster yet.
    async fn alone() -> raft::Handle {
        let options = Options { flusher: Flusher::Thread, ..Options::default() };
        let home = Home::open(Arc::new(SimDisk::new()), Path::new("/data"), 1, 1, options).expect("a new disk");
        let started = raft::start(raft::Options {
            node: 1,
            member: Default::default(),
            bootstrap: Vec::new(),
            machine_version: 1,
            env: Env::real(),
            home,
            blocking: Blocking::Threads,
            skip_entry: None,
            tuning: Default::default(),
        });
        started.await.expect("raft starts").handle
    }

    #[tokio::test]
    async fn an_office_that_ended_and_began_again_between_two_looks_sends_its_streams_away() {
        let (handle, mut pump) = super::super::new(alone().await, &Env::real());
        // One term all the time: a leader that lost its quorum and has it back.
        let office = |terms_of_office| Standing { leading: Some(7), terms_of_office, leader: None };
        let stream = |attach, office| {
            let stream = Arc::new(Stream::new(attach, 7, office, "s".into()));
            handle.shared.registry.lock().insert(stream.clone());
            stream
        };
        pump.follow(&office(1));
        let older = stream(1, 1);
        let mut waiting = handle.wait_sweep(9).expect("room");
        pump.follow(&office(1));
        assert!(!older.outbox.ended(), "nothing has changed");
        pump.follow(&office(2));
        assert!(older.outbox.ended());
        assert_eq!(handle.streams(), 0);
        assert_eq!(waiting.woken().await, Wake::LeaderLost);
        let newer = stream(2, 2);
        pump.follow(&office(2));
        assert!(!newer.outbox.ended());
    }
}
