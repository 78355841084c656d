//! What goes into a batch, in which order, and that everybody is answered once.

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
fn a_batch_is_never_larger_than_its_bytes_or_its_only_command() {
    let (proposer, _) = proposer();
    proposer.open(1);
    let huge = submit(limits::MAX_COMMAND_BYTES - 64);
    let result = vec![0; limits::MAX_BATCH_BYTES * 2 / 3].into();
    let completions = vec![Completion { result, ..Completion::default() }];
    let settle = Command { op: Some(Op::Complete(Complete { completions, ..Complete::default() })) };
    for _ in 0..2 {
        proposer.send(Lane::Settle, &settle, Responder::None);
        proposer.send(Lane::Settle, &settle, Responder::None);
        proposer.send(Lane::Submit, &huge, Responder::None);
        let groups: Vec<usize> = std::iter::from_fn(|| proposer.take()).map(|(_, group)| group.len()).collect();
        assert_eq!(groups, [1, 1, 1], "a completion, the submit that waited for it, and the other completion");
    }
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
    let rest = limits::SUBMITS_A_MS_WHILE_BUSY - 4 * FEW;
    assert_eq!(proposer.take().unwrap().1.len(), rest / FEW, "a millisecond's number, if that is more");
    tokio::time::advance(PAUSE).await;
    assert_eq!(proposer.take().unwrap().1.len(), limits::SUBMITS_A_MS_WHILE_BUSY / FEW, "some pass anyway");
    // What was settled long ago does not let a flood through.
    let (proposer, _) = self::proposer();
    proposer.open(1);
    let settle = |count| proposer.send(Lane::Settle, &complete(count), Responder::None);
    (0..3).for_each(|_| settle(limits::MAX_SUBMITS_EARNED));
    assert_eq!(proposer.take().unwrap().1.len(), 3);
    tokio::time::advance(100 * PAUSE).await;
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
