//! What is made of changes, and what becomes of those that history was too slow for.

use std::sync::atomic::Ordering;

use super::super::keeper::Keeper;
use super::super::{Home, Stats, queue};
use super::*;
use crate::env::Env;
use crate::machine::change::{Carried, LeaseEnd};
use crate::machine::view::Profile;
use crate::raft::changes::Bounds;
use crate::storage::history::Keep;
use crate::types::{Cause, Fence, QueueName, Wall};

const ALL: u32 = 3;

fn profile(queue: &str) -> Arc<Profile> {
    let queue = QueueName::parse(queue).unwrap();
    Arc::new(Profile { queue, kind: "".into(), options: Default::default() })
}

fn carried(carried: Carried) -> Option<Box<Carried>> {
    Some(Box::new(carried))
}

fn change(history: u32, revision: u64, from: Option<State>, to: State) -> Change {
    Change {
        revision: Revision(revision),
        from,
        to,
        lease_end: None,
        history,
        profile: profile("q"),
        id: "a".into(),
        create: Wall(1),
        priority: 4,
        max_attempts: 5,
        attempts: 0,
        fence: Fence(7),
        worker: None,
        session: None,
        time: Wall(revision * 10),
        until: None,
        carried: None,
        create_revision: Revision(1),
    }
}

fn recorder() -> (Recorder, mpsc::Receiver<Job>) {
    let (jobs, todo) = mpsc::channel(1);
    (Recorder { jobs, begins: HashMap::default(), written: 0 }, todo)
}

fn failed() -> Option<Box<Carried>> {
    let (message, code, worker) = ("no".into(), "".into(), "w".into());
    let failure = Some(Arc::new(FailureView { cause: Cause::Failed, message, code, time: Wall(1), worker }));
    carried(Carried { failure, ..Carried::default() })
}

#[test]
fn queues_say_what_is_kept() {
    let leased = Some(State::Leased);
    let released =
        |history| Change { lease_end: LeaseEnd::free(Cause::Released), ..change(history, 9, leased, State::Ready) };
    let charged = |history| Change {
        lease_end: LeaseEnd::charged(Cause::Failed),
        carried: failed(),
        ..change(history, 9, leased, State::Scheduled)
    };
    let well = |history| change(history, 9, leased, State::Completed);
    let late = |history| Change { carried: failed(), ..well(history) };
    let cancelled = |history| change(history, 9, Some(State::Ready), State::Cancelled);
    let new = |history| change(history, 9, None, State::Ready);
    // (attempt, end) of each.
    let kept = |change: Change| recorder().0.rows(&change).map(|row| row.is_some());
    for (history, expected) in [
        (NONE, [[false, false]; 6]),
        (FAILURES, [[false, false], [true, false], [false, false], [true, true], [false, true], [false, false]]),
        (ALL, [[true, false], [true, false], [true, true], [true, true], [false, true], [false, false]]),
    ] {
        let changes =
            [released(history), charged(history), well(history), late(history), cancelled(history), new(history)];
        assert_eq!(changes.map(kept), expected, "history {history}");
    }
}

#[test]
fn attempts_know_when_they_began_and_results_are_bounded() {
    let (mut recorder, _todo) = recorder();
    assert_eq!(recorder.rows(&change(ALL, 7, Some(State::Ready), State::Leased)), [None, None]);
    let result = crate::types::Blob::copied(&vec![1; limits::HISTORY_RESULT_BYTES + 1]);
    let done = Change {
        carried: carried(Carried { result, ..Carried::default() }),
        ..change(ALL, 9, Some(State::Leased), State::Completed)
    };
    let [Some(Row::Attempt(attempt)), Some(Row::Finished(finished))] = recorder.rows(&done) else { panic!("both") };
    assert_eq!((attempt.begin_ms, attempt.end_ms, attempt.charged), (Some(70), 90, true));
    assert!(finished.result_left_out && finished.result.is_empty());
    assert!(recorder.begins.is_empty(), "nothing is remembered of a lease that ended");
    for fence in 0..limits::HISTORY_LEASES as u64 + 10 {
        recorder.rows(&Change { fence: Fence(fence), ..change(ALL, 7, Some(State::Ready), State::Leased) });
    }
    assert_eq!(recorder.begins.len(), limits::HISTORY_LEASES);
}

#[tokio::test]
async fn what_the_ring_let_go_before_it_was_read_is_told_as_a_gap() {
    let changes = Changes::new(Bounds { count: 10, bytes: usize::MAX });
    tokio::spawn(changes.clone().route());
    let (jobs, mut todo) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(changes.clone(), jobs, stop.clone()));
    let Some(Job::Begin { answer }) = todo.recv().await else { panic!("it asks where to begin") };
    for revision in 1..=30 {
        changes.append(vec![change(ALL, revision, Some(State::Ready), State::Cancelled)], Revision(revision));
    }
    answer.send(5).unwrap();
    let Some(Job::Gap { from: 5, to: 20 }) = todo.recv().await else { panic!("the ring kept ten") };
    let Some(Job::Write { rows, covered: 30 }) = todo.recv().await else { panic!("the rest") };
    assert_eq!(rows.len(), 10);
    stop.cancel();
    let Some(Job::Write { .. }) = todo.recv().await else { panic!("what was read is written") };
    let Some(Job::Flush { answer: Some(answer) }) = todo.recv().await else { panic!("and flushed") };
    answer.send(30).unwrap();
    running.await.unwrap();
}

/// Looks, while others work, until it is so.
async fn soon(what: &str, look: impl Fn() -> bool) {
    let seen = async {
        while !look() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), seen).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

/// The store takes nothing for a while: as much as may waits for it, and of the rest the ring keeps what it
/// can. What it could not keep is counted once the store goes on.
#[tokio::test]
async fn a_store_that_hangs_fills_its_queue_and_what_did_not_fit_is_counted() {
    const RING: usize = 10;
    const LAST: u64 = (limits::HISTORY_JOBS + 1 + 3 * RING) as u64;
    let changes = Changes::new(Bounds { count: RING, bytes: usize::MAX });
    tokio::spawn(changes.clone().route());
    let (jobs, mut todo) = queue();
    let stop = CancellationToken::new();
    let running = tokio::spawn(run(changes.clone(), jobs, stop.clone()));
    let Some(Job::Begin { answer }) = todo.recv().await else { panic!("it asks where to begin") };
    answer.send(1).unwrap();
    let finish = |revision: u64| {
        let id = (&*format!("p{revision}")).into();
        let change = Change { id, ..change(ALL, revision, Some(State::Ready), State::Cancelled) };
        changes.append(vec![change], Revision(revision));
    };
    for count in 1..=limits::HISTORY_JOBS {
        finish(count as u64);
        soon("one more waits", || todo.len() == count).await;
    }
    for revision in limits::HISTORY_JOBS as u64 + 1..=LAST {
        finish(revision);
        tokio::task::yield_now().await;
    }
    assert_eq!(todo.len(), limits::HISTORY_JOBS);
    let stats = Arc::new(Stats::default());
    let keep = Keep { age_ms: u64::MAX / 2, bytes: u64::MAX };
    Keeper::new(Home::Memory, keep, Env::real(), stats.clone()).start(todo);
    let covered = || stats.covered.load(Ordering::Relaxed);
    soon("the store has caught up", || covered() == LAST).await;
    stop.cancel();
    running.await.unwrap();
    let (rows, dropped) = (stats.rows.load(Ordering::Relaxed), stats.dropped.load(Ordering::Relaxed));
    assert_eq!(rows + dropped, LAST, "nothing is missing without being counted");
    // Its reader may have one in hand.
    assert!((2 * RING as u64..=2 * RING as u64 + 1).contains(&dropped), "{dropped} of {LAST}");
}
