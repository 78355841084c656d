//! Group commit: whatever waits when a slot is free becomes one log entry.
//!
//! Invariants: every command is answered exactly once, also when leadership ends, the node stops
//! or nothing comes back in time. "Not applied" is said only of what was never handed to Raft, or
//! what Raft refused to append; all else is `Unknown`. Completions go before submits. Commands are
//! proposed in the order of their lane. Nothing is retried here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::clock::Stamper;
use super::counters::Counters;
use super::handle::{Lane, Leader, ProposeError, Responder, Standing};
use super::pace::Pace;
use super::peer_server::Raft;
use super::types::{EntryBytes, TypeConfig};
use crate::machine::Outcome;
use crate::machine::command::{Command, Op};
use crate::types::limits;

/// The field tag of `Batch.commands`.
const COMMANDS_TAG: u32 = 4 << 3 | 2;
/// The machine version that today's commands need.
const MIN_VERSION: u64 = 1;

/// Who may propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Office {
    /// This node does not lead.
    Closed,
    /// It leads, but its state is not known to be current: only `LeaderStarted` may pass.
    Starting(u64),
    Open(u64),
    /// The node stops.
    Stopped,
}

impl Office {
    /// The term of this leadership.
    fn term(self) -> Option<u64> {
        match self {
            Office::Starting(term) | Office::Open(term) => Some(term),
            Office::Closed | Office::Stopped => None,
        }
    }
}

/// A command on its way. Dropped without an answer, it answers that nobody knows.
struct Waiting {
    /// A framed `Batch.commands` field.
    framed: Bytes,
    /// How many packages it submits or settles.
    packages: usize,
    responder: Responder,
}

impl Waiting {
    fn answer(mut self, result: Result<Outcome, ProposeError>) {
        respond(std::mem::replace(&mut self.responder, Responder::None), result);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let responder = std::mem::replace(&mut self.responder, Responder::None);
        respond(responder, Err(ProposeError::Unknown { why: "the node stopped" }));
    }
}

fn respond(responder: Responder, result: Result<Outcome, ProposeError>) {
    match responder {
        // The caller may have given up.
        Responder::Oneshot(to) => drop(to.send(result)),
        Responder::Sink(sink, token) => sink.answer(token, result),
        Responder::None => {}
    }
}

struct Queue {
    office: Office,
    settle: VecDeque<Waiting>,
    submit: VecDeque<Waiting>,
    bytes: usize,
    /// When a batch last carried a completion.
    settled: Option<Instant>,
    pace: Pace,
    /// The next submit does not fit beside completions: the next batch is its own.
    large: bool,
    /// Tasks in `ready`.
    held: usize,
}

impl Queue {
    fn has_room(&self, lane: Lane) -> bool {
        let all = self.settle.len() + self.submit.len();
        match lane {
            Lane::Settle => all < limits::MAX_COMMANDS_WAITING && self.bytes < limits::MAX_BYTES_WAITING,
            Lane::Submit => {
                self.submit.len() < limits::MAX_COMMANDS_WAITING / 2 && self.bytes < limits::MAX_BYTES_WAITING / 2
            }
        }
    }

    /// Where streams are held back: well before commands are refused.
    fn is_ready(&self, lane: Lane) -> bool {
        match lane {
            Lane::Settle => {
                self.settle.len() < limits::MAX_COMMANDS_WAITING / 4 && self.bytes < limits::MAX_BYTES_WAITING / 2
            }
            Lane::Submit => {
                self.submit.len() < limits::SUBMITS_WAITING_BEFORE_HOLD && self.bytes < limits::MAX_BYTES_WAITING / 4
            }
        }
    }

    /// What goes into the next batch; empty if nothing may go now.
    ///
    /// Completions go first. While they come in, not much more is submitted than settled: a flood of submits
    /// would take the time of all nodes that completions need. The first submit of a batch fits as long as the
    /// batch holds it, and one that is too large for any batch of others gets its own: no submit waits for
    /// completions to cease.
    fn take(&mut self) -> Vec<Waiting> {
        let mut group = Vec::with_capacity((self.settle.len() + self.submit.len()).min(limits::MAX_BATCH_COMMANDS));
        let mut room = Room { bytes: limits::MAX_BATCH_BYTES, packages: usize::MAX };
        let settled = if self.large { 0 } else { fill(&mut self.settle, &mut group, &mut room) };
        let now = Instant::now();
        if settled > 0 {
            self.settled = Some(now);
        }
        self.pace.settled(settled);
        let earned = self.pace.allows(now);
        let busy = self.settled.is_some_and(|at| now - at < Duration::from_millis(limits::TICK_EVERY_MS));
        if busy {
            room.bytes = room.bytes.min(limits::MAX_SUBMIT_BYTES_WHILE_BUSY);
            room.packages = earned;
        }
        self.large = false;
        if room.packages > 0
            && let Some(next) = self.submit.front()
        {
            let settle_bytes = group.iter().map(|waiting| waiting.framed.len()).sum::<usize>();
            if !group.is_empty() && settle_bytes + next.framed.len() > limits::MAX_BATCH_BYTES {
                self.large = true;
            } else {
                let submitted = fill(&mut self.submit, &mut group, &mut room);
                if busy {
                    self.pace.submitted(submitted);
                }
            }
        }
        self.bytes -= group.iter().map(|waiting| waiting.framed.len()).sum::<usize>();
        group
    }

    fn take_all(&mut self) -> Vec<Waiting> {
        self.bytes = 0;
        self.settle.drain(..).chain(self.submit.drain(..)).collect()
    }
}

/// What a lane may still put into a batch.
struct Room {
    bytes: usize,
    packages: usize,
}

/// Moves commands until the room is used up, the first in any case, and answers how many packages they concern.
fn fill(from: &mut VecDeque<Waiting>, group: &mut Vec<Waiting>, room: &mut Room) -> usize {
    let mut moved = 0;
    let mut first = true;
    while let Some(next) = from.front() {
        let fits = next.framed.len() <= room.bytes && next.packages <= room.packages;
        if group.len() == limits::MAX_BATCH_COMMANDS || !(first || fits) {
            break;
        }
        first = false;
        room.bytes = room.bytes.saturating_sub(next.framed.len());
        room.packages = room.packages.saturating_sub(next.packages);
        moved += next.packages;
        group.extend(from.pop_front());
    }
    moved
}

/// How many packages a command submits or settles.
fn packages(command: &Command) -> usize {
    match &command.op {
        Some(Op::Submit(submit)) => submit.packages.len(),
        Some(Op::Complete(complete)) => complete.completions.len(),
        Some(Op::Fail(fail)) => fail.failed.len(),
        Some(Op::Release(release)) => release.leases.len(),
        _ => 0,
    }
}

/// See the module.
pub struct Proposer {
    queue: Mutex<Queue>,
    work: Notify,
    room: Notify,
    /// The term that in-flight proposals belong to; changes when leadership ends.
    office: watch::Sender<Office>,
    disk_full: AtomicBool,
    standing: watch::Receiver<Standing>,
    counters: Arc<Counters>,
}

impl Proposer {
    pub fn new(standing: watch::Receiver<Standing>, counters: Arc<Counters>) -> Self {
        Self {
            queue: Mutex::new(Queue {
                office: Office::Closed,
                settle: VecDeque::new(),
                submit: VecDeque::new(),
                bytes: 0,
                settled: None,
                pace: Pace::new(Instant::now()),
                large: false,
                held: 0,
            }),
            work: Notify::new(),
            room: Notify::new(),
            office: watch::Sender::new(Office::Closed),
            disk_full: AtomicBool::new(false),
            standing,
            counters,
        }
    }

    /// This node leads, but serves nobody yet.
    pub fn start(&self, term: u64) {
        self.set_office(Office::Starting(term));
    }

    /// This node serves.
    pub fn open(&self, term: u64) {
        self.set_office(Office::Open(term));
    }

    /// Leadership ended: what waits is certainly not applied; what is in flight gets its grace.
    pub fn close(&self) {
        self.set_office(Office::Closed);
    }

    /// The node stops.
    pub fn stop(&self) {
        self.set_office(Office::Stopped);
    }

    fn set_office(&self, office: Office) {
        let refused = {
            let mut queue = self.queue.lock();
            if queue.office == Office::Stopped {
                return;
            }
            let same_leadership = queue.office.term().is_some() && queue.office.term() == office.term();
            queue.office = office;
            if same_leadership { Vec::new() } else { queue.take_all() }
        };
        self.office.send_replace(office);
        for waiting in refused {
            waiting.answer(Err(self.refusal(office)));
        }
        self.room.notify_waiters();
        self.work.notify_one();
    }

    fn refusal(&self, office: Office) -> ProposeError {
        match office {
            Office::Stopped => ProposeError::ShuttingDown,
            _ => ProposeError::NotLeader { leader: self.other_leader() },
        }
    }

    /// Who leads, unless that is this node, which then is not ready.
    fn other_leader(&self) -> Option<Leader> {
        if self.queue.lock().office.term().is_some() {
            return None;
        }
        self.standing.borrow().leader.clone()
    }

    /// Submits are refused from now on, or taken again.
    pub fn set_disk_full(&self, full: bool) {
        self.disk_full.store(full, Ordering::Relaxed);
    }

    pub fn send(&self, lane: Lane, command: &Command, responder: Responder) {
        self.enqueue(lane, command, responder, |office| matches!(office, Office::Open(_)));
    }

    /// For `LeaderStarted`, before this node serves anybody.
    pub fn send_first(&self, command: &Command, responder: Responder) {
        self.enqueue(Lane::Settle, command, responder, |office| office.term().is_some());
    }

    fn enqueue(&self, lane: Lane, command: &Command, responder: Responder, may: impl Fn(Office) -> bool) {
        // Encoded here, in the caller's task: the proposer only strings the fields together.
        let len = command.encoded_len();
        if len > limits::MAX_COMMAND_BYTES {
            return respond(responder, Err(ProposeError::TooLarge { len }));
        }
        let framed = frame(command, len);
        let refused = {
            let mut queue = self.queue.lock();
            if !may(queue.office) {
                Some((responder, Err(queue.office)))
            } else if lane == Lane::Submit && self.disk_full.load(Ordering::Relaxed) {
                Some((responder, Ok(ProposeError::DiskFull)))
            } else if !queue.has_room(lane) {
                Some((responder, Ok(ProposeError::Overloaded)))
            } else {
                queue.bytes += framed.len();
                let waiting = Waiting { framed, packages: packages(command), responder };
                match lane {
                    Lane::Settle => queue.settle.push_back(waiting),
                    Lane::Submit => queue.submit.push_back(waiting),
                }
                None
            }
        };
        match refused {
            None => self.work.notify_one(),
            Some((responder, Ok(error))) => respond(responder, Err(error)),
            Some((responder, Err(office))) => respond(responder, Err(self.refusal(office))),
        }
    }

    /// Waits until `lane` may go on. On a node that does not lead: at once.
    pub async fn ready(&self, lane: Lane) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            {
                let mut queue = self.queue.lock();
                if queue.office.term().is_none() || queue.is_ready(lane) {
                    return;
                }
                queue.held += 1;
            }
            let held = Held(self);
            room.await;
            drop(held);
        }
    }

    /// Commands that wait for a batch.
    pub fn waiting(&self) -> usize {
        let queue = self.queue.lock();
        queue.settle.len() + queue.submit.len()
    }

    fn take(&self) -> Option<(u64, Vec<Waiting>)> {
        let (term, group, held) = {
            let mut queue = self.queue.lock();
            let term = queue.office.term()?;
            (term, queue.take(), queue.held)
        };
        if held > 0 {
            self.room.notify_waiters();
        }
        (!group.is_empty()).then_some((term, group))
    }

    /// The proposer's task: until the node stops.
    pub async fn run(self: Arc<Self>, raft: Raft, stamper: Arc<Stamper>) {
        let mut slots = FuturesUnordered::new();
        loop {
            while slots.len() < limits::MAX_PROPOSALS_IN_FLIGHT
                && let Some((term, group)) = self.take()
            {
                self.counters.group(group.len());
                let entry = encode(&stamper, &group);
                let (responder, answer) =
                    ProgressResponder::<TypeConfig, ClientWriteResult<TypeConfig>>::complete_only();
                // The term goes with it: a later leadership of this node must not append it.
                let handed = raft.write(EntryBytes(entry)).with_leader(committed(term)).responder(responder).await;
                if let Err(fatal) = handed {
                    tracing::debug!(%fatal, "raft takes no more proposals");
                }
                slots.push(self.follow(term, group, answer));
            }
            self.counters.proposals_in_flight.store(slots.len() as u64, Ordering::Relaxed);
            let (office, held_back) = {
                let queue = self.queue.lock();
                (queue.office, !queue.submit.is_empty())
            };
            if office == Office::Stopped && slots.is_empty() {
                return;
            }
            let free = slots.len() < limits::MAX_PROPOSALS_IN_FLIGHT;
            tokio::select! {
                biased;
                Some(()) = slots.next(), if !slots.is_empty() => {}
                () = self.work.notified(), if free => {}
                () = sleep(Duration::from_millis(1)), if free && held_back => {}
            }
        }
    }

    /// Waits for a proposal's answer and shares it out.
    async fn follow(
        &self,
        term: u64,
        group: Vec<Waiting>,
        answer: impl Future<Output = Result<ClientWriteResult<TypeConfig>, impl std::fmt::Display>>,
    ) {
        let deadline = Instant::now() + Duration::from_millis(limits::PROPOSAL_DEADLINE_MS);
        let mut office = self.office.subscribe();
        let ended = async {
            // Raft keeps the responders of a leader that stepped down: most are still answered.
            let _ = office.wait_for(|office| office.term() != Some(term)).await;
            sleep(Duration::from_millis(limits::STEP_DOWN_GRACE_MS)).await;
        };
        let result = tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(result) => result,
                Err(_) => return unknown(group, "the node stops"),
            },
            () = ended => return unknown(group, "leadership ended"),
            () = sleep_until(deadline) => return unknown(group, "no answer in time"),
        };
        match result {
            Ok(response) if response.data.0.len() == group.len() => {
                for (waiting, outcome) in group.into_iter().zip(response.data.0) {
                    waiting.answer(Ok(outcome));
                }
            }
            Ok(_) => unknown(group, "the entry was skipped by an operator"),
            // Not appended: certainly not applied.
            Err(ClientWriteError::ForwardToLeader(_)) => {
                for waiting in group {
                    waiting.answer(Err(ProposeError::NotLeader { leader: self.other_leader() }));
                }
            }
            Err(_) => unknown(group, "the entry was discarded by a change of leader"),
        }
    }
}

/// One task in `ready`.
struct Held<'p>(&'p Proposer);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().held -= 1;
    }
}

fn unknown(group: Vec<Waiting>, why: &'static str) {
    for waiting in group {
        waiting.answer(Err(ProposeError::Unknown { why }));
    }
}

fn committed(term: u64) -> openraft::alias::CommittedLeaderIdOf<TypeConfig> {
    openraft::vote::leader_id_std::CommittedLeaderId::new(term)
}

/// A command as a field of `Batch`.
fn frame(command: &Command, len: usize) -> Bytes {
    let mut framed = BytesMut::with_capacity(1 + prost::length_delimiter_len(len) + len);
    framed.put_u8(COMMANDS_TAG as u8);
    prost::encode_length_delimiter(len, &mut framed).expect("BytesMut grows");
    command.encode_raw(&mut framed);
    framed.freeze()
}

/// A stored `Batch`: its stamps, then the commands as their senders framed them.
fn encode(stamper: &Stamper, group: &[Waiting]) -> Bytes {
    use prost::encoding::uint64;
    let (ticks, wall) = stamper.stamp();
    let bytes: usize = group.iter().map(|waiting| waiting.framed.len()).sum();
    let mut batch = BytesMut::with_capacity(bytes + 32);
    uint64::encode(1, &MIN_VERSION, &mut batch);
    uint64::encode(2, &ticks.0, &mut batch);
    uint64::encode(3, &wall.0, &mut batch);
    for waiting in group {
        batch.put_slice(&waiting.framed);
    }
    batch.freeze()
}

#[cfg(test)]
#[path = "proposer_tests.rs"]
mod tests;
