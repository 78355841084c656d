//! The log against a disk that does its worst. The memory twin says what is right.

mod bounds;
mod damage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::storage::disk::{Crash, Fault, RealDisk, SimDisk};
use crate::storage::log::Kind;
use crate::storage::memory::MemoryLog;

const INCARNATION: u64 = 0x5eed;

fn dir() -> &'static Path {
    Path::new("/log")
}

fn inline(segment_bytes: u64) -> Options {
    Options {
        flusher: Flusher::Inline,
        segment_bytes,
        first_segment_bytes: segment_bytes,
        // Little enough that most reads go to the file.
        cache_bytes: 500,
    }
}

fn open(disk: &SimDisk, options: Options) -> Result<Wal, Error> {
    Wal::open(Arc::new(disk.clone()), dir(), INCARNATION, options)
}

fn create(disk: &SimDisk, options: Options) -> Result<Wal, Error> {
    Wal::create(disk, dir(), INCARNATION, &options)?;
    open(disk, options)
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let kind = [Kind::Normal, Kind::Blank, Kind::Membership][(index % 3) as usize];
    let payload = if kind == Kind::Blank { Vec::new() } else { vec![(term * 31 + index) as u8 | 1; len] };
    Entry { id: id(term, index), kind, payload: payload.into() }
}

/// One call of the log.
#[derive(Clone, Debug)]
enum Call {
    Append(Vec<Entry>),
    Vote(Vote),
    Committed(LogId),
    Truncate(Option<LogId>),
    Purge(LogId),
}

impl Call {
    fn on(&self, log: &dyn Log, done: Done) -> io::Result<()> {
        match self.clone() {
            Call::Append(entries) => log.append(entries, done),
            Call::Vote(vote) => log.save_vote(vote, done),
            Call::Committed(committed) => log.save_committed(Some(committed)),
            Call::Truncate(last) => log.truncate_after(last),
            Call::Purge(upto) => log.purge(upto),
        }
    }
}

fn vote(term: u64, committed: bool) -> Vote {
    Vote { term, node: term % 3 + 1, committed }
}

/// Votes, appends of every kind and size, truncations before and across a segment's head, purges.
fn workload() -> Vec<Call> {
    let mut calls = vec![Call::Vote(vote(1, false)), Call::Vote(vote(1, true))];
    calls.push(Call::Append(vec![entry(1, 0, 0)]));
    calls.extend((1..12).map(|index| Call::Append(vec![entry(1, index, index as usize * 7)])));
    calls.push(Call::Committed(id(1, 6)));
    calls.push(Call::Vote(vote(2, false)));
    calls.push(Call::Truncate(Some(id(1, 7))));
    calls.push(Call::Append(vec![entry(2, 8, 40), entry(2, 9, 1), entry(2, 10, 300)]));
    calls.push(Call::Purge(id(1, 5)));
    calls.extend((11..24).map(|index| Call::Append(vec![entry(2, index, 50)])));
    calls.push(Call::Committed(id(2, 20)));
    calls.push(Call::Purge(id(2, 19)));
    calls.push(Call::Vote(vote(3, true)));
    calls.push(Call::Truncate(Some(id(2, 22))));
    calls.push(Call::Append(vec![entry(3, 23, 10)]));
    calls.push(Call::Purge(id(3, 23)));
    calls.extend((24..30).map(|index| Call::Append(vec![entry(3, index, 20)])));
    calls.push(Call::Committed(id(3, 28)));
    calls.push(Call::Append(vec![entry(3, 30, 30), entry(3, 31, 30), entry(3, 32, 30)]));
    calls
}

/// All that a log holds. `committed` is a hint and compared only where nothing may be lost.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    ends: Ends,
    vote: Option<Vote>,
    entries: Vec<Entry>,
}

fn content(log: &dyn Log) -> Content {
    let entries = log.read(0..u64::MAX, u64::MAX).and_then(Read::wait).expect("readable");
    Content { ends: log.ends(), vote: log.vote(), entries }
}

/// What the log may hold after each call, by the memory twin: an append may be there in part.
fn expected(calls: &[Call]) -> Vec<Vec<Content>> {
    let model = MemoryLog::new();
    calls
        .iter()
        .map(|call| {
            let parts = match call {
                Call::Append(entries) => entries.iter().map(|entry| Call::Append(vec![entry.clone()])).collect(),
                other => vec![other.clone()],
            };
            let mut stages = Vec::new();
            for part in parts {
                part.on(&model, Box::new(|_| {})).expect("the model takes it");
                stages.push(content(&model));
            }
            stages
        })
        .collect()
}

fn run(log: &dyn Log, calls: &[Call]) {
    for call in calls {
        let acked = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&acked);
        call.on(log, Box::new(move |result| seen.store(1 + u64::from(result.is_err()), Ordering::SeqCst)))
            .expect("accepted");
        let answers = u64::from(matches!(call, Call::Append(_) | Call::Vote(_)));
        assert_eq!(acked.load(Ordering::SeqCst), answers, "{call:?}");
    }
}

fn last_segment(log: &Wal) -> (PathBuf, u64) {
    let inner = log.shared.lock();
    let known = inner.segments.values().next_back().expect("a log has a segment");
    (known.segment.path.clone(), known.used)
}

#[test]
fn everything_is_there_again_after_a_crash() {
    for segment_bytes in [512, 1024, 4096, 1 << 20] {
        let disk = SimDisk::new();
        let calls = workload();
        let states = expected(&calls);
        let mut log = create(&disk, inline(segment_bytes)).expect("created");
        for (call, state) in calls.iter().zip(&states) {
            run(&log, std::slice::from_ref(call));
            let now = state.last().expect("one stage");
            assert_eq!(&content(&log), now, "live, {segment_bytes}, after {call:?}");
            disk.crash(Crash::DropUnsynced);
            log = open(&disk, inline(segment_bytes)).expect("opened");
            assert_eq!(&content(&log), now, "recovered, {segment_bytes}, after {call:?}");
        }
    }
}

#[test]
fn the_committed_hint_goes_with_the_next_flush() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(4096)).expect("created");
    run(&log, &[Call::Append(vec![entry(1, 0, 5)]), Call::Committed(id(1, 0))]);
    let before = log.io().fsyncs;
    assert_eq!(before, 1, "the hint is no reason to sync");
    run(&log, &[Call::Append(vec![entry(1, 1, 5)])]);
    disk.crash(Crash::DropUnsynced);
    let log = open(&disk, inline(4096)).expect("opened");
    assert_eq!(log.committed(), Some(id(1, 0)));
    log.save_committed(Some(id(1, 1))).expect("accepted");
    log.close();
    disk.crash(Crash::DropUnsynced);
    assert_eq!(open(&disk, inline(4096)).expect("opened").committed(), Some(id(1, 1)));
}

/// The hint may name an entry that is written by the same flush, and by a torn one only in part.
#[test]
fn the_committed_hint_never_names_an_entry_that_is_not_there() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(4096)).expect("created");
    run(&log, &[Call::Append((0..4).map(|index| entry(1, index, 20)).collect())]);
    // Entries 2 and 3 were never committed: others take their place, in one flush with the hint.
    let (path, start) = last_segment(&log);
    {
        let mut inner = log.shared.lock();
        inner.index.truncate(Some(id(1, 1)));
        inner.queue.push(Op::Truncate(Some(id(1, 1))));
    }
    log.save_committed(Some(id(2, 4))).expect("accepted");
    run(&log, &[Call::Append((2..6).map(|index| entry(2, index, 20)).collect())]);
    assert_eq!(log.committed(), Some(id(2, 4)));
    let (_, end) = last_segment(&log);
    drop(log);
    for cut in start..=end {
        let disk = disk.fork();
        disk.damage(&path, |bytes| bytes[cut as usize..].fill(0));
        disk.crash(Crash::DropUnsynced);
        let found = recover::recover(&disk, dir(), INCARNATION, 500);
        let stored = found.unwrap_or_else(|error| panic!("cut at {cut}: {error}")).index.committed;
        let log = open(&disk, inline(4096)).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let held: Vec<_> = content(&log).entries.iter().map(|entry| entry.id).collect();
        assert!(stored.is_none_or(|committed| held.contains(&committed)), "cut at {cut}: {stored:?} of {held:?}");
        assert_eq!(log.committed(), stored, "cut at {cut}");
    }
}

/// As a writer leaves it that puts the hint before the entries.
#[test]
fn a_committed_hint_that_the_log_does_not_hold_is_not_believed() {
    for (hint, believed) in [(id(1, 9), None), (id(2, 1), None), (id(1, 1), Some(id(1, 1)))] {
        let disk = SimDisk::new();
        let log = create(&disk, inline(4096)).expect("created");
        run(&log, &[Call::Append(vec![entry(1, 0, 5), entry(1, 1, 5)])]);
        run(&log, &[Call::Committed(hint), Call::Vote(vote(2, false))]);
        drop(log);
        disk.crash(Crash::DropUnsynced);
        let log = open(&disk, inline(4096)).expect("opened");
        assert_eq!(log.committed(), believed);
        // The stored hint stands in the next segments' heads, which must match.
        run(&log, &[Call::Purge(id(1, 0)), Call::Append(vec![entry(2, 2, 5000)])]);
        drop(log);
        disk.crash(Crash::DropUnsynced);
        let log = open(&disk, inline(4096)).expect("opened again");
        assert_eq!(log.committed(), believed.or(Some(id(1, 0))));
    }
}

/// Many calls in one flush, a crash at any moment: what was acknowledged is there, and nothing that
/// was never written.
#[tokio::test(start_paused = true)]
async fn group_commit_acknowledges_only_what_is_synced() {
    for seed in 0..150u64 {
        let options = Options { flusher: Flusher::Task, ..inline(2048) };
        let disk = SimDisk::new();
        let log = create(&disk, options).expect("created");
        disk.fail(seed % 37, Fault::Halt);
        let acked = Arc::new(Mutex::new(Vec::new()));
        for index in 0..60u64 {
            let order = Arc::clone(&acked);
            let done = move |result: io::Result<()>| {
                if result.is_ok() {
                    order.lock().push(index);
                }
            };
            if log.append(vec![entry(1, index, (index * seed % 90) as usize)], Box::new(done)).is_err() {
                break;
            }
            if (index + seed) % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        let acked = acked.lock().clone();
        assert!(acked.iter().copied().eq(0..acked.len() as u64), "in order: {acked:?}");
        drop(log);
        disk.crash(Crash::Tear(seed));
        let log = open(&disk, options).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let found = content(&log).entries;
        assert!(found.len() >= acked.len(), "seed {seed}: {} of {}", found.len(), acked.len());
        for (index, found) in found.iter().enumerate() {
            assert_eq!(*found, entry(1, index as u64, (index as u64 * seed % 90) as usize), "seed {seed}");
        }
    }
}

#[test]
fn the_flush_thread_writes_in_order_on_a_real_disk() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let dir = home.path().join("log");
    let options = Options { flusher: Flusher::Thread, ..inline(64 << 10) };
    Wal::create(&RealDisk, &dir, INCARNATION, &options).expect("created");
    let log = Wal::open(Arc::new(RealDisk), &dir, INCARNATION, options).expect("opened");
    let order = Arc::new(Mutex::new(Vec::new()));
    for index in 0..400u64 {
        let order = Arc::clone(&order);
        let done = move |result: io::Result<()>| {
            result.expect("durable");
            order.lock().push(index);
        };
        log.append(vec![entry(1, index, 700)], Box::new(done)).expect("accepted");
    }
    let (done, all) = std::sync::mpsc::sync_channel(1);
    log.barrier(Box::new(move |result| drop(done.send(result)))).expect("accepted");
    all.recv().expect("called back").expect("durable");
    assert!(order.lock().iter().copied().eq(0..400));
    assert!(log.io().fsyncs < 400, "grouped: {}", log.io().fsyncs);
    assert!(matches!(log.read(0..400, u64::MAX).expect("readable"), Read::Blocking(_)));
    let live = content(&log);
    log.close();
    let log = Wal::open(Arc::new(RealDisk), &dir, INCARNATION, options).expect("opened");
    assert_eq!(content(&log), live);
    assert_eq!(live.entries.len(), 400);
}

/// Random lives with random crashes, against the memory twin.
#[test]
fn random_lives_are_remembered() {
    for seed in 0..400u64 {
        let mut dice = seed;
        let mut roll = |bound: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % bound
        };
        let options = inline([512, 700, 3000][roll(3) as usize]);
        let disk = SimDisk::new();
        let model = MemoryLog::new();
        let mut log = create(&disk, options).expect("created");
        let mut term = 1;
        for step in 0..60 {
            let Ends { purged, last } = model.ends();
            let (first, next) = (purged.map_or(0, |id| id.index + 1), last.map_or(0, |id| id.index + 1));
            let call = match roll(10) {
                0 => Call::Vote(vote(term, roll(2) == 0)),
                1 if next > first => {
                    // What was purged was committed: a truncation never reaches it.
                    term += 1;
                    let keep = first + roll(next - first);
                    let kept = model.read(keep..keep + 1, 1).and_then(Read::wait).expect("readable");
                    Call::Truncate(Some(kept[0].id))
                }
                2 if next > first => {
                    let upto = first + roll(next - first);
                    let gone = model.read(upto..upto + 1, 1).and_then(Read::wait).expect("readable");
                    Call::Purge(gone[0].id)
                }
                3 => Call::Committed(id(term, next)),
                // A snapshot from the leader, far ahead.
                4 if roll(4) == 0 => Call::Purge(id(term, next + roll(20))),
                _ => Call::Append((0..1 + roll(4)).map(|i| entry(term, next + i, roll(200) as usize)).collect()),
            };
            call.on(&model, Box::new(|_| {})).expect("the model takes it");
            run(&log, std::slice::from_ref(&call));
            let at = format!("seed {seed}, step {step}, {call:?}");
            assert_eq!(content(&log), content(&model), "{at}");
            if roll(5) == 0 {
                drop(log);
                disk.crash(Crash::Tear(seed + step));
                log = open(&disk, options).unwrap_or_else(|error| panic!("{at}: {error}"));
                assert_eq!(content(&log), content(&model), "{at}, crashed");
            }
        }
    }
}

/// The housekeeping thread may come to its wish after the writer made the segment itself.
#[test]
fn a_segment_in_use_is_never_made_again() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(512)).expect("created");
    run(&log, &(0..20).map(|index| Call::Append(vec![entry(1, index, 30)])).collect::<Vec<_>>());
    let (path, _) = last_segment(&log);
    let before = disk.content(&path);
    let active = *log.shared.lock().segments.keys().next_back().expect("a log has a segment");
    log.house.take(active + 1, 0).expect("made");
    for number in [active, active + 1] {
        log.house.prepare(number);
        log.house.work();
    }
    assert_eq!(disk.content(&path), before);
    assert_eq!(segment::numbers(&disk, dir()).expect("listed").last(), Some(&(active + 1)));
}
