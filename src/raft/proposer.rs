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
    /// How many packages may be submitted for those that were settled.
    earned: usize,
    /// When a batch last carried a submit.
    submitted: Instant,
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
    /// would take the time of all nodes that completions need.
    fn take(&mut self) -> Vec<Waiting> {
        let mut group = Vec::with_capacity((self.settle.len() + self.submit.len()).min(limits::MAX_BATCH_COMMANDS));
        let mut room = Room { bytes: limits::MAX_BATCH_BYTES, packages: usize::MAX };
        let settled = fill(&mut self.settle, &mut group, &mut room);
        let now = Instant::now();
        if settled > 0 {
            self.settled = Some(now);
        }
        self.earned = (self.earned + settled).min(limits::MAX_SUBMITS_EARNED);
        if self.settled.is_some_and(|at| now - at < Duration::from_millis(limits::TICK_EVERY_MS)) {
            room.bytes = room.bytes.min(limits::MAX_SUBMIT_BYTES_WHILE_BUSY);
            let waited_ms = (now - self.submitted).as_millis() as usize;
            room.packages = self.earned.max(waited_ms * limits::SUBMITS_A_MS_WHILE_BUSY);
        }
        if room.packages > 0 && !self.submit.is_empty() {
            let submitted = fill(&mut self.submit, &mut group, &mut room);
            self.earned = self.earned.saturating_sub(submitted);
            self.submitted = now;
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

/// Moves commands until the room is used up, and answers how many packages they concern. The first of a
/// lane always fits: a large submit must not wait for as long as completions come in.
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
                earned: 0,
                submitted: Instant::now(),
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
mod tests {
    use super::*;
    use crate::machine::command::{Complete, Completion, NewPackage, Submit, Tick};
    use crate::raft::handle::Sink;

    #[derive(Default)]
    struct Answers(Mutex<Vec<Result<Outcome, ProposeError>>>);

    impl Sink for Answers {
        fn answer(&self, _: u64, result: Result<Outcome, ProposeError>) {
            self.0.lock().push(result);
        }
    }

    fn proposer() -> (Proposer, Arc<Answers>) {
        let (_, standing) = watch::channel(Standing::default());
        (Proposer::new(standing, Arc::default()), Arc::default())
    }

    fn submit(payload: usize) -> Command {
        let package = NewPackage { payload: vec![0; payload].into(), ..NewPackage::default() };
        Command { op: Some(Op::Submit(Submit { packages: vec![package], atomic: false })) }
    }

    fn tick() -> Command {
        Command { op: Some(Op::Tick(Tick {})) }
    }

    fn complete(count: usize) -> Command {
        let completions = vec![Completion::default(); count];
        Command { op: Some(Op::Complete(Complete { completions, ..Complete::default() })) }
    }

    fn refused(answers: &Answers) -> Vec<ProposeError> {
        answers.0.lock().drain(..).map(|answer| answer.unwrap_err()).collect()
    }

    #[test]
    fn what_is_not_taken_is_told_by_name() {
        let (proposer, answers) = proposer();
        let send = |lane, command: &Command| proposer.send(lane, command, Responder::Sink(answers.clone(), 0));
        send(Lane::Submit, &submit(1));
        assert_eq!(refused(&answers), [ProposeError::NotLeader { leader: None }]);
        proposer.start(1);
        send(Lane::Settle, &tick());
        assert_eq!(refused(&answers), [ProposeError::NotLeader { leader: None }], "elected, but not serving yet");
        proposer.open(1);
        send(Lane::Submit, &submit(limits::MAX_COMMAND_BYTES));
        assert!(matches!(refused(&answers)[..], [ProposeError::TooLarge { .. }]));
        proposer.set_disk_full(true);
        send(Lane::Submit, &submit(1));
        assert_eq!(refused(&answers), [ProposeError::DiskFull]);
        send(Lane::Settle, &tick());
        assert_eq!(refused(&answers), [], "completions go on");
        proposer.set_disk_full(false);
        (0..limits::MAX_COMMANDS_WAITING / 2).for_each(|_| send(Lane::Submit, &submit(1)));
        assert_eq!(refused(&answers), []);
        send(Lane::Submit, &submit(1));
        assert_eq!(refused(&answers), [ProposeError::Overloaded]);
        send(Lane::Settle, &tick());
        assert_eq!(refused(&answers), [], "a flood of submits leaves completions their room");
        proposer.stop();
        let stopped = refused(&answers);
        assert_eq!(stopped.len(), limits::MAX_COMMANDS_WAITING / 2 + 2);
        assert!(stopped.iter().all(|error| *error == ProposeError::ShuttingDown));
    }

    #[test]
    fn all_that_waits_is_bounded_and_completions_have_the_last_of_the_room() {
        let (proposer, answers) = proposer();
        proposer.open(1);
        let send = |lane, command: &Command| proposer.send(lane, command, Responder::Sink(answers.clone(), 0));
        (0..limits::MAX_COMMANDS_WAITING / 2).for_each(|_| send(Lane::Submit, &submit(1)));
        (0..limits::MAX_COMMANDS_WAITING / 2).for_each(|_| send(Lane::Settle, &tick()));
        assert_eq!(refused(&answers), []);
        send(Lane::Settle, &tick());
        assert_eq!(refused(&answers), [ProposeError::Overloaded]);
        assert_eq!(proposer.waiting(), limits::MAX_COMMANDS_WAITING);
        proposer.close();
        refused(&answers);
        proposer.open(2);
        // Large completions, up to the bound of their bytes.
        let large = submit(1 << 20);
        (0..limits::MAX_BYTES_WAITING >> 20).for_each(|_| send(Lane::Settle, &large));
        assert_eq!(refused(&answers), []);
        send(Lane::Settle, &large);
        assert_eq!(refused(&answers), [ProposeError::Overloaded]);
    }

    #[test]
    fn a_batch_closes_at_its_bytes_unless_one_command_has_more() {
        let (proposer, _) = proposer();
        proposer.open(1);
        let third = submit(limits::MAX_BATCH_BYTES / 3);
        (0..4).for_each(|_| proposer.send(Lane::Submit, &third, Responder::None));
        proposer.send(Lane::Submit, &submit(2 * limits::MAX_BATCH_BYTES), Responder::None);
        let mut groups = Vec::new();
        while let Some((_, group)) = proposer.take() {
            let bytes: usize = group.iter().map(|waiting| waiting.framed.len()).sum();
            assert!(bytes <= limits::MAX_BATCH_BYTES || group.len() == 1, "{bytes} bytes in {}", group.len());
            groups.push(group.len());
        }
        assert_eq!(groups, [2, 2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proposal_without_an_answer_is_unknown_after_its_deadline_or_soon_after_the_office_ends() {
        let (proposer, answers) = proposer();
        let proposer = Arc::new(proposer);
        proposer.open(1);
        let follow = || {
            proposer.send(Lane::Settle, &tick(), Responder::Sink(answers.clone(), 0));
            let (term, group) = proposer.take().expect("one waits");
            let (proposer, never) = (Arc::clone(&proposer), std::future::pending::<Result<_, &str>>());
            let began = Instant::now();
            tokio::spawn(async move {
                proposer.follow(term, group, never).await;
                began.elapsed().as_millis() as u64
            })
        };
        let within = |took: u64, limit: u64| (limit..limit + 10).contains(&took);
        let took = follow().await.expect("it ends");
        assert!(within(took, limits::PROPOSAL_DEADLINE_MS), "{took} ms");
        assert!(matches!(refused(&answers)[..], [ProposeError::Unknown { why: "no answer in time" }]));
        let following = follow();
        tokio::task::yield_now().await;
        proposer.close();
        let took = following.await.expect("it ends");
        assert!(within(took, limits::STEP_DOWN_GRACE_MS), "{took} ms");
        assert!(matches!(refused(&answers)[..], [ProposeError::Unknown { why: "leadership ended" }]));
    }

    #[test]
    fn bytes_that_wait_are_bounded() {
        let (proposer, answers) = proposer();
        proposer.open(1);
        let fit = limits::MAX_BYTES_WAITING / 2 / (1 << 20);
        (0..fit + 1).for_each(|_| {
            proposer.send(Lane::Submit, &submit(1 << 20), Responder::Sink(answers.clone(), 0));
        });
        assert_eq!(refused(&answers), [ProposeError::Overloaded]);
    }

    #[test]
    fn completions_go_first_and_hold_submits_small() {
        let (proposer, _) = proposer();
        proposer.open(1);
        let some = submit(limits::MAX_SUBMIT_BYTES_WHILE_BUSY * 2 / 5);
        (0..20).for_each(|_| proposer.send(Lane::Submit, &some, Responder::None));
        proposer.send(Lane::Settle, &tick(), Responder::None);
        assert_eq!(proposer.take().unwrap().1.len(), 1 + 9, "the passing of time holds nothing back");
        proposer.send(Lane::Settle, &complete(100), Responder::None);
        let framed = frame(&complete(100), complete(100).encoded_len());
        let (term, group) = proposer.take().unwrap();
        assert_eq!(term, 1);
        assert_eq!(group[0].framed, framed);
        assert_eq!(group.len(), 3, "submits fill a quarter while completions come in");
        proposer.close();
        proposer.open(2);
        assert!(proposer.take().is_none(), "nothing of a former leadership is proposed");
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_are_submitted_as_settled_while_completions_come_in() {
        let (proposer, _) = proposer();
        proposer.open(1);
        let many = |count| Command {
            op: Some(Op::Submit(Submit { packages: vec![NewPackage::default(); count], atomic: false })),
        };
        let settle = |count| proposer.send(Lane::Settle, &complete(count), Responder::None);
        const FEW: usize = 10;
        const PAUSE: Duration = Duration::from_millis(1);
        (0..20).for_each(|_| proposer.send(Lane::Submit, &many(FEW), Responder::None));
        settle(3 * FEW);
        assert_eq!(proposer.take().unwrap().1.len(), 1 + 3);
        assert!(proposer.take().is_none(), "the others wait");
        settle(FEW);
        assert_eq!(proposer.take().unwrap().1.len(), 1 + 1);
        tokio::time::advance(PAUSE).await;
        assert_eq!(proposer.take().unwrap().1.len(), limits::SUBMITS_A_MS_WHILE_BUSY / FEW, "some pass anyway");
        // What was settled long ago does not let a flood through.
        let (proposer, _) = self::proposer();
        proposer.open(1);
        let settle = |count| proposer.send(Lane::Settle, &complete(count), Responder::None);
        (0..3).for_each(|_| settle(limits::MAX_SUBMITS_EARNED));
        assert_eq!(proposer.take().unwrap().1.len(), 3);
        (0..3).for_each(|_| proposer.send(Lane::Submit, &many(limits::MAX_SUBMITS_EARNED / 2), Responder::None));
        assert_eq!(proposer.take().unwrap().1.len(), 2);
        let (proposer, _) = self::proposer();
        proposer.open(1);
        let large = submit(2 * limits::MAX_SUBMIT_BYTES_WHILE_BUSY);
        (0..2).for_each(|_| proposer.send(Lane::Submit, &large, Responder::None));
        for _ in 0..2 {
            proposer.send(Lane::Settle, &complete(1), Responder::None);
            tokio::time::advance(PAUSE).await;
            assert_eq!(proposer.take().unwrap().1.len(), 2, "a large one does not wait for completions to cease");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_stream_goes_on_when_there_is_room() {
        let (proposer, _) = proposer();
        let proposer = Arc::new(proposer);
        proposer.open(1);
        (0..limits::SUBMITS_WAITING_BEFORE_HOLD).for_each(|_| proposer.send(Lane::Submit, &submit(1), Responder::None));
        let held = tokio::spawn({
            let proposer = Arc::clone(&proposer);
            async move { proposer.ready(Lane::Submit).await }
        });
        proposer.ready(Lane::Settle).await;
        tokio::task::yield_now().await;
        assert!(!held.is_finished());
        assert_eq!(proposer.take().unwrap().1.len(), limits::MAX_BATCH_COMMANDS);
        held.await.unwrap();
    }

    #[test]
    fn a_batch_reads_back() {
        let framed = [submit(3), tick()].map(|command| frame(&command, command.encoded_len()));
        let batch = crate::machine::command::Batch::decode(framed.concat().as_slice()).unwrap();
        assert_eq!(batch.commands, [submit(3), tick()]);
    }
}
