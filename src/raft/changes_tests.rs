//! The ring of changes: nothing is missed, nothing comes twice, nobody is kept waiting.

use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::machine::change::Carried;
use crate::machine::view::Profile;
use crate::types::{Fence, State, Wall};

const WAIT: Duration = Duration::from_secs(10);

fn profile(queue: &str) -> Arc<Profile> {
    let queue = QueueName::parse(queue).unwrap();
    Arc::new(Profile { queue, kind: "".into(), options: Default::default() })
}

fn carried(carried: Carried) -> Option<Box<Carried>> {
    Some(Box::new(carried))
}

fn change(queue: &str, revision: u64) -> Change {
    Change {
        revision: Revision(revision),
        from: None,
        to: State::Ready,
        lease_end: None,
        history: 0,
        profile: profile(queue),
        id: (&*format!("p{revision}")).into(),
        create: Wall(0),
        priority: 4,
        max_attempts: 5,
        attempts: 0,
        fence: Fence(0),
        worker: None,
        session: None,
        time: Wall(0),
        until: None,
        carried: None,
        create_revision: Revision(revision),
    }
}

/// Batches of a few changes each; revisions between them belong to no package.
fn fill(changes: &Changes, queue: &str, revisions: std::ops::RangeInclusive<u64>) {
    let all: Vec<u64> = revisions.collect();
    for batch in all.chunks(3) {
        let last = batch[batch.len() - 1];
        let told = batch.iter().filter(|revision| *revision % 5 != 0).map(|revision| change(queue, *revision));
        changes.append(told.collect(), Revision(last));
    }
}

fn told(revisions: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    revisions.filter(|revision| revision % 5 != 0).collect()
}

fn read_all(reader: &mut Reader) -> Result<Vec<u64>, Compacted> {
    let mut read = Vec::new();
    loop {
        let taken = reader.take()?;
        if taken.is_empty() {
            return Ok(read);
        }
        read.extend(taken.iter().map(|change| change.revision.0));
    }
}

#[test]
fn a_reader_gets_each_change_once_from_wherever_it_begins() {
    let changes = Changes::new(Bounds::default());
    fill(&changes, "q", 1..=5_000);
    for start in [1, 2, 3, 4, 5, 999, 4_999, 5_000, 5_001] {
        let mut reader = changes.read(None, Revision(start)).unwrap();
        assert_eq!(read_all(&mut reader).unwrap(), told(start..=5_000), "from {start}");
        assert_eq!(reader.next(), Revision(5_001));
    }
    let mut now = changes.read(None, Revision(0)).unwrap();
    let mut future = changes.read(None, Revision(5_100)).unwrap();
    assert!(now.take().unwrap().is_empty() && future.take().unwrap().is_empty());
    fill(&changes, "q", 5_001..=5_200);
    assert_eq!(read_all(&mut now).unwrap(), told(5_001..=5_200));
    assert_eq!(read_all(&mut future).unwrap(), told(5_100..=5_200));
}

#[test]
fn what_is_kept_is_bounded_and_who_was_left_behind_is_told() {
    let one = change("q", 1).bytes();
    for bounds in [Bounds { count: 100, bytes: usize::MAX }, Bounds { count: usize::MAX, bytes: 100 * one }] {
        let changes = Changes::new(bounds);
        let mut slow = changes.read(None, Revision(1)).unwrap();
        fill(&changes, "q", 1..=1_000);
        let (count, bytes) = changes.kept();
        assert!(count <= 100 && count > 90 && bytes <= 100 * (one + 8), "{count} changes, {bytes} bytes");
        let Err(Compacted { oldest }) = slow.take() else { panic!("it was left behind") };
        let mut edge = changes.read(None, oldest).unwrap();
        assert_eq!(read_all(&mut edge).unwrap(), told(oldest.0..=1_000));
        assert!(changes.read(None, Revision(oldest.0 - 1)).unwrap().take().is_err());
    }
}

#[test]
fn by_default_so_much_is_kept_and_so_much_is_read_at_once() {
    const MOST: u64 = limits::CHANGES_KEPT as u64;
    let changes = Changes::new(Bounds::default());
    let append = |revision| changes.append(vec![change("q", revision)], Revision(revision));
    (1..=MOST).for_each(append);
    let mut reader = changes.read(None, Revision(1)).unwrap();
    assert_eq!(reader.take().unwrap().iter().count(), limits::CHANGES_A_READ);
    let mut first = changes.read(None, Revision(1)).unwrap();
    append(MOST + 1);
    assert_eq!(changes.kept().0, limits::CHANGES_KEPT);
    assert_eq!(first.take().err(), Some(Compacted { oldest: Revision(2) }));

    let large = |revision| {
        let result = crate::types::Blob::copied(&vec![0; limits::CHANGES_KEPT_BYTES / 4]);
        changes.append(
            vec![Change { carried: carried(Carried { result, ..Carried::default() }), ..change("q", revision) }],
            Revision(revision),
        );
    };
    (MOST + 2..MOST + 7).for_each(large);
    let (count, bytes) = changes.kept();
    assert!(count == 3 && bytes <= limits::CHANGES_KEPT_BYTES, "{count} changes, {bytes} bytes");
}

#[test]
fn large_changes_count_with_what_they_hold() {
    let changes = Changes::new(Bounds { count: 1_000, bytes: 1 << 20 });
    for revision in 1..=100 {
        let result = crate::types::Blob::copied(&vec![0; 100 << 10]);
        changes.append(
            vec![Change { carried: carried(Carried { result, ..Carried::default() }), ..change("q", revision) }],
            Revision(revision),
        );
    }
    let (count, bytes) = changes.kept();
    assert!(count == 10 && bytes <= 1 << 20, "{count} changes, {bytes} bytes");
}

#[test]
fn a_new_state_begins_a_new_ring() {
    let changes = Changes::new(Bounds::default());
    fill(&changes, "q", 1..=100);
    let mut behind = changes.read(None, Revision(50)).unwrap();
    let mut ahead = changes.read(None, Revision(501)).unwrap();
    changes.restart(Revision(500));
    assert_eq!(behind.take().err(), Some(Compacted { oldest: Revision(501) }));
    fill(&changes, "q", 501..=600);
    assert_eq!(read_all(&mut ahead).unwrap(), told(501..=600));
}

#[test]
fn readers_are_bounded_and_give_their_place_back() {
    let changes = Changes::new(Bounds::default());
    let queue = || Some(QueueName::parse("q").unwrap());
    let mut readers: Vec<_> = (0..limits::MAX_CHANGE_READERS)
        .map(|at| changes.read(if at % 2 == 0 { None } else { queue() }, Revision(0)).unwrap())
        .collect();
    assert_eq!(changes.read(None, Revision(0)).err(), Some(Full { limit: limits::MAX_CHANGE_READERS }));
    readers.pop();
    readers.push(changes.read(queue(), Revision(0)).unwrap());
    drop(readers);
    assert_eq!(changes.readers(), 0);
    assert!(changes.readers.lock().of_queue.is_empty());
}

#[tokio::test]
async fn only_whom_it_concerns_is_woken_and_the_others_move_on_unread() {
    let changes = Changes::new(Bounds::default());
    tokio::spawn(changes.clone().route());
    let of = |queue: &str| Some(QueueName::parse(queue).unwrap());
    let mut quiet = changes.read(of("quiet"), Revision(0)).unwrap();
    let busy = changes.read(of("busy"), Revision(0)).unwrap();
    let all = changes.read(None, Revision(0)).unwrap();
    assert!(quiet.take().unwrap().is_empty());
    fill(&changes, "busy", 1..=100);
    timeout(WAIT, busy.changed()).await.expect("it is of its queue");
    timeout(WAIT, all.changed()).await.expect("it reads all");
    let routed = || changes.readers.lock().routed;
    while routed() < 100 {
        tokio::task::yield_now().await;
    }
    assert!(timeout(Duration::from_millis(20), quiet.changed()).await.is_err(), "nothing was for it");
    quiet.skip_quiet();
    assert_eq!(quiet.next(), Revision(101));
    fill(&changes, "quiet", 101..=103);
    timeout(WAIT, quiet.changed()).await.expect("it is of its queue");
    quiet.skip_quiet();
    assert_eq!(quiet.next(), Revision(101), "what concerns it is not skipped");
    assert_eq!(read_all(&mut quiet).unwrap(), told(101..=103));
}

#[tokio::test]
async fn a_reader_that_came_late_skips_nothing_that_was_routed_before() {
    let changes = Changes::new(Bounds::default());
    tokio::spawn(changes.clone().route());
    fill(&changes, "q", 1..=50);
    while changes.readers.lock().routed < 50 {
        tokio::task::yield_now().await;
    }
    let mut late = changes.read(Some(QueueName::parse("q").unwrap()), Revision(10)).unwrap();
    late.skip_quiet();
    assert_eq!(read_all(&mut late).unwrap(), told(10..=50));
}
