//! LeasePackages: a session's stream for the length of one call. The call opens the session with credit
//! for what it wants, waits for grants, closes the credit, and answers with what the state says it was
//! granted.
//!
//! Invariants: nothing is granted to a session whose call is over: the call's last command takes the
//! credit and gives back whatever is not in its answer; where it cannot come through (the caller is
//! gone, the leader changes), dispatch or the new leader's start do the same. What was answered stays
//! leased, and an answer that was lost is asked for again by `received_fence`.

use tokio::time::{Duration, Instant, timeout_at};

use super::authorize::Action;
use super::call::Call;
use super::forward::Rpc;
use super::status::Refusal;
use super::validate::{At, Problems};
use super::{Core, convert, worker};
use crate::dispatch::{Attachment, End, NotLeading, Taken};
use crate::machine::command::{Command, DetachSession, Op, OpenSession, Speaker};
use crate::machine::effect::Delivery;
use crate::machine::view::SessionStatus;
use crate::machine::{Machine, Reject};
use crate::proto::v1;
use crate::raft::handle::{Lane, ProposeError};
use crate::types::{Epoch, limits};

impl Rpc for v1::LeasePackagesRequest {
    type Answer = v1::LeasePackagesResponse;
    const PATH: &'static str = "/wharf.v1.WorkerService/LeasePackages";
    const ACTION: Action = Action::Work;
    const WAITS: bool = true;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let (hello, wait) = self.checked()?;
        let until = Instant::now() + wait;
        let until = call.waits_until().map_or(until, |ends| ends.min(until));
        let attached = core.dispatch.attach(&self.session);
        let attachment = attached.map_err(|NotLeading { leader }| ProposeError::NotLeader { leader })?;
        attachment.stream().received(self.received_fence);
        let epoch = open(core, &attachment, hello).await?;
        let wanted = Asked { session: &self.session, epoch, received: self.received_fence, max: self.max as usize };
        let found = wanted.wait(core, &attachment, until).await?;
        if !found.gone {
            wanted.close(core, &found).await?;
        }
        attachment.let_go();
        // What is there now is there by the state, and leased to this caller.
        let top = found.deliveries.last().map_or(0, |delivery| delivery.fence.0);
        let (mut deliveries, revision) = core.raft.view(|machine| (wanted.beyond(machine), machine.summary().revision));
        deliveries.retain(|delivery| delivery.fence.0 <= top);
        Ok(v1::LeasePackagesResponse {
            deliveries: deliveries.into_iter().map(convert::delivery).collect(),
            ended_queues: found.ended,
            draining: found.draining,
            revision: revision.0,
        })
    }
}

impl v1::LeasePackagesRequest {
    fn checked(&self) -> Result<(OpenSession, Duration), Refusal> {
        let mut problems = Problems::default();
        if !(1..=limits::MAX_IN_FLIGHT_CEILING).contains(&self.max) {
            problems.bad(At::Top, "max", format_args!("must be 1 to {}", limits::MAX_IN_FLIGHT_CEILING));
        }
        let wait = self.wait.as_ref().map_or(0, |wait| problems.duration_ms(At::Top, "wait", wait));
        if wait > limits::MAX_LEASE_WAIT_MS {
            problems.bad(At::Top, "wait", format_args!("must be at most {} s", limits::MAX_LEASE_WAIT_MS / 1000));
        }
        let hello = v1::Hello {
            worker: self.worker.clone(),
            session: self.session.clone(),
            queues: self.queues.clone(),
            kinds: self.kinds.clone(),
            labels: self.labels.clone(),
            max_in_flight: self.max,
            max_in_flight_bytes: limits::MAX_LEASE_ANSWER_BYTES,
            concurrency: 0,
            held: Vec::new(),
        };
        let hello = worker::subscription(hello, At::Top, &mut problems);
        problems.check()?;
        Ok((OpenSession { unary: true, received_fence: self.received_fence, ..hello }, Duration::from_millis(wait)))
    }
}

fn settle_time() -> Duration {
    Duration::from_millis(limits::PROPOSAL_DEADLINE_MS)
}

/// Opens the session for this call.
async fn open(core: &Core, attachment: &Attachment, hello: OpenSession) -> Result<Epoch, Refusal> {
    let stream = attachment.stream();
    let op = Op::OpenSession(OpenSession { attach: stream.attach, ..hello });
    core.raft.propose(Lane::Settle, Command { op: Some(op) }, settle_time()).await?.result?;
    // The effect that binds the call to the session comes from the same apply.
    let bound = timeout_at(Instant::now() + settle_time(), stream.bound()).await;
    let lost = ProposeError::Unknown { why: "the session was opened, but this was not told" };
    bound.ok().flatten().ok_or(lost.into())
}

/// What a call asks of its session.
struct Asked<'a> {
    session: &'a str,
    epoch: Epoch,
    received: u64,
    max: usize,
}

/// What a look at the state finds for a call.
#[derive(Default)]
struct Found {
    deliveries: Vec<Delivery>,
    ended: Vec<String>,
    draining: bool,
    /// The session is no more.
    gone: bool,
}

impl Asked<'_> {
    /// Looks until there is something to answer, or the time is over.
    async fn wait(&self, core: &Core, attachment: &Attachment, until: Instant) -> Result<Found, Refusal> {
        loop {
            let (found, all_ended) = core.raft.view(|machine| self.look(machine))?;
            let over = found.gone || found.draining || all_ended || Instant::now() >= until;
            if over || !found.deliveries.is_empty() {
                return Ok(found);
            }
            // Effects are hints: whatever comes, the state tells.
            match timeout_at(until, attachment.stream().outbox.taken()).await {
                Ok(Taken::End(End::Clean)) | Err(_) => {}
                Ok(Taken::End(_)) => {
                    core.raft.view(|machine| self.current(machine))?;
                    return Err(ProposeError::NotLeader { leader: None }.into());
                }
                Ok(Taken::Message(_) | Taken::Settled(_)) => {}
            }
        }
    }

    /// What there is now, and whether all its queues have ended.
    fn look(&self, machine: &Machine) -> Result<(Found, bool), Refusal> {
        let Some(view) = self.current(machine)? else {
            // Drained, with nothing left.
            return Ok((Found { draining: true, gone: true, ..Found::default() }, false));
        };
        let ended = view.queues.iter().filter(|name| machine.queue(name.as_str()).is_ok_and(|queue| queue.ended));
        let ended: Vec<_> = ended.map(|name| name.as_str().to_owned()).collect();
        let all_ended = ended.len() == view.queues.len();
        let draining = view.status == SessionStatus::Draining;
        Ok((Found { deliveries: self.beyond(machine), ended, draining, gone: false }, all_ended))
    }

    /// The session, while this call is its latest.
    fn current(&self, machine: &Machine) -> Result<Option<crate::machine::view::SessionView>, Refusal> {
        match machine.session(self.session) {
            Ok(view) if view.epoch == self.epoch => Ok(Some(view)),
            Ok(view) => Err(Reject::EpochOver { current: view.epoch.0 }.into()),
            Err(_) => Ok(None),
        }
    }

    /// What the session holds beyond what its client has, as much as one answer takes.
    fn beyond(&self, machine: &Machine) -> Vec<Delivery> {
        let mut bytes = 0;
        let mut deliveries = machine.held(self.session);
        deliveries.retain(|delivery| delivery.fence.0 > self.received);
        deliveries.truncate(self.max);
        let fits = deliveries.iter().take_while(|delivery| {
            let before = bytes;
            bytes += delivery.weight() as u64;
            before <= limits::MAX_LEASE_ANSWER_BYTES
        });
        let fits = fits.count();
        deliveries.truncate(fits);
        deliveries
    }

    /// Takes the credit, and gives back what is not in the answer.
    async fn close(&self, core: &Core, found: &Found) -> Result<(), Refusal> {
        let top = found.deliveries.last().map_or(self.received, |delivery| delivery.fence.0);
        let speaker = Speaker { session: self.session.to_owned(), epoch: self.epoch.0, received_fence: top };
        let op = Op::DetachSession(DetachSession { speaker: Some(speaker) });
        match core.raft.propose(Lane::Settle, Command { op: Some(op) }, settle_time()).await?.result {
            Ok(_) | Err(Reject::SessionNotFound { .. }) => Ok(()),
            Err(reject) => Err(reject.into()),
        }
    }
}
