//! The log against a disk that does its worst. The memory twin says what is right.

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
        disk.damage(&path, |bytes| bytes.truncate(cut as usize));
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

#[test]
fn purged_segments_go_and_the_rest_stays() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(512)).expect("created");
    run(&log, &(0..60).map(|index| Call::Append(vec![entry(1, index, 30)])).collect::<Vec<_>>());
    let many = segment::numbers(&disk, dir()).expect("listed").len();
    assert!(many > 6, "{many} segments");
    let all = log.bytes_after(None);
    assert!(log.bytes_after(Some(29)) < all && log.bytes_after(Some(29)) > all / 3);
    assert_eq!(log.bytes_after(Some(59)), 0);
    run(&log, &[Call::Purge(id(1, 58))]);
    let few = segment::numbers(&disk, dir()).expect("listed").len();
    assert!(few <= 3, "{few} segments are left");
    disk.crash(Crash::DropUnsynced);
    let log = open(&disk, inline(512)).expect("opened");
    assert_eq!(log.ends(), Ends { purged: Some(id(1, 58)), last: Some(id(1, 59)) });
    assert_eq!(content(&log).entries, [entry(1, 59, 30)]);
}

#[test]
fn a_cut_at_any_byte_of_the_last_flush_loses_nothing_else() {
    for (segment_bytes, zeroed) in [(512, false), (4096, false), (512, true), (4096, true)] {
        let disk = SimDisk::new();
        let calls = workload();
        let (last, before) = calls.split_last().expect("calls");
        let states = expected(&calls);
        let log = create(&disk, inline(segment_bytes)).expect("created");
        run(&log, before);
        let (path, start) = last_segment(&log);
        run(&log, std::slice::from_ref(last));
        let (path_after, end) = last_segment(&log);
        let start = if path == path_after { start } else { 0 };
        drop(log);
        let kept = states[before.len() - 1].last().expect("one stage");
        for cut in start..end {
            let disk = disk.fork();
            disk.damage(&path_after, |bytes| match zeroed {
                true => bytes[cut as usize..].fill(0),
                false => bytes.truncate(cut as usize),
            });
            disk.crash(Crash::DropUnsynced);
            let log = open(&disk, inline(segment_bytes)).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            let found = content(&log);
            assert!(&found == kept || states[before.len()].contains(&found), "cut at {cut}: {found:?}");
            // And it goes on from there, for good.
            let next = found.ends.last.expect("entries").index + 1;
            run(&log, &[Call::Append(vec![entry(9, next, 99), entry(9, next + 1, 0)])]);
            let found = content(&log);
            drop(log);
            disk.crash(Crash::DropUnsynced);
            let log = open(&disk, inline(segment_bytes)).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            assert_eq!(content(&log), found, "cut at {cut}");
        }
    }
}

/// Every bit of every file. What was acknowledged is recovered, or opening refuses, changes nothing
/// and says why. The one exception is the very last flush: to one disk its damage is a torn write.
#[test]
fn any_flipped_bit_is_harmless_or_refused() {
    let options = inline(768);
    let disk = SimDisk::new();
    let mut calls = workload();
    // Two flushes in the last segment, so that the exception is not its head.
    calls.push(Call::Append(vec![entry(3, 33, 3)]));
    let (last, before) = calls.split_last().expect("calls");
    let states = expected(&calls);
    let log = create(&disk, options).expect("created");
    run(&log, before);
    let (path, start) = last_segment(&log);
    run(&log, std::slice::from_ref(last));
    let (path_after, end) = last_segment(&log);
    assert_eq!(path, path_after, "the last flush is not the segment's first");
    drop(log);
    disk.crash(Crash::DropUnsynced);

    let whole = states[calls.len() - 1].last().expect("one stage");
    let without_last = states[calls.len() - 2].last().expect("one stage");
    let (mut refused, mut excepted, mut harmless) = (0, 0, 0);
    for number in segment::numbers(&disk, dir()).expect("listed") {
        let file = segment::path(dir(), number);
        for bit in 0..disk.content(&file).len() * 8 {
            let hurt = disk.fork();
            hurt.damage(&file, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            let damaged = hurt.content(&file);
            let in_last_flush = file == path && (start..end).contains(&(bit as u64 / 8));
            match open(&hurt, options) {
                Ok(log) if content(&log) == *whole => harmless += 1,
                Ok(log) => {
                    assert!(in_last_flush, "{}, bit {bit}: lost something", file.display());
                    assert_eq!(content(&log), *without_last, "{}, bit {bit}", file.display());
                    excepted += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(matches!(error, Error::Damaged { .. }), "{text}");
                    assert!(text.contains("/log/") && text.contains("at offset"), "{text}");
                    assert!(text.contains("Nothing was changed"), "{text}");
                    assert_eq!(hurt.content(&file), damaged, "a refusal changes nothing");
                    assert!(!in_last_flush, "bit {bit} of the last flush looks torn");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 1000 && excepted > 100 && harmless > 1000, "{refused} {excepted} {harmless}");
}

/// Lets each changing operation of a whole life fail in turn, and crashes then.
#[test]
fn a_failure_at_any_operation_loses_nothing_acknowledged() {
    let calls = workload();
    let states = expected(&calls);
    let options = inline(768);
    let disk = SimDisk::new();
    run(&create(&disk, options).expect("created"), &calls);
    let operations = disk.operations();
    assert!(operations > 80, "{operations}");

    for operation in 0..operations {
        for fault in [Fault::Error, Fault::Halt] {
            let crashes = [Crash::DropUnsynced, Crash::KeepUnsynced, Crash::Tear(operation), Crash::Tear(!operation)];
            for crash in crashes {
                let at = format!("{fault:?} at operation {operation}, then {crash:?}");
                let disk = SimDisk::new();
                disk.fail(operation, fault);
                let Ok(log) = create(&disk, options) else {
                    // No identity was written yet: the creation is simply done again.
                    disk.crash(crash);
                    create(&disk, options).unwrap_or_else(|error| panic!("{at}: {error}"));
                    continue;
                };
                let mut acked = 0;
                for call in &calls {
                    let accepted = call.on(&log, Box::new(|_| {})).is_ok();
                    if !accepted || log.fatal().borrow().is_some() {
                        break;
                    }
                    acked += 1;
                }
                if acked < calls.len() {
                    assert!(log.save_vote(vote(9, false), Box::new(|_| {})).is_err(), "{at}: poisoned");
                }
                drop(log);
                disk.crash(crash);
                let log = open(&disk, options).unwrap_or_else(|error| panic!("{at}: {error}"));
                let found = content(&log);
                let kept = acked.checked_sub(1).map(|call| states[call].last().expect("one stage"));
                let allowed = kept.map_or(found.entries.is_empty(), |kept| *kept == found)
                    || states.get(acked).is_some_and(|stages| stages.contains(&found));
                assert!(allowed, "{at}: {acked} calls acknowledged, found {found:?}, wanted {kept:?}");
            }
        }
    }
}

/// Many calls in one flush, a crash at any moment: what was acknowledged is there, and nothing that
/// was never written.
#[tokio::test(start_paused = true)]
async fn group_commit_acknowledges_only_what_is_synced() {
    for seed in 0..150u64 {
        let options = Options { flusher: Flusher::Task { pause: Duration::from_millis(1) }, ..inline(2048) };
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
fn a_full_disk_delays_and_loses_nothing() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(1024)).expect("created");
    disk.set_capacity(Some(4096));
    let acked = Arc::new(AtomicU64::new(0));
    let append = |index| {
        let acked = Arc::clone(&acked);
        let done = move |result: io::Result<()>| {
            result.expect("written in the end");
            assert_eq!(acked.fetch_add(1, Ordering::SeqCst), index, "in order");
        };
        log.append(vec![entry(1, index, 100)], Box::new(done)).expect("accepted");
    };
    (0..60).for_each(append);
    assert!(log.is_full());
    assert!(acked.load(Ordering::SeqCst) < 60);
    disk.set_capacity(None);
    append(60);
    assert!(!log.is_full());
    assert_eq!(acked.load(Ordering::SeqCst), 61);
    disk.crash(Crash::DropUnsynced);
    assert_eq!(content(&open(&disk, inline(1024)).expect("opened")).entries.len(), 61);
}

#[test]
fn an_entry_larger_than_a_segment_gets_one_of_its_own() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(1024)).expect("created");
    run(&log, &[Call::Append(vec![entry(1, 0, 9000), entry(1, 1, 9000), entry(1, 2, 20_000), entry(1, 3, 10)])]);
    disk.crash(Crash::DropUnsynced);
    let log = open(&disk, inline(1024)).expect("opened");
    assert_eq!(content(&log).entries[2], entry(1, 2, 20_000));
    assert_eq!(log.ends().last, Some(id(1, 3)));
}

#[test]
fn reads_are_capped_by_bytes_and_the_cache_is_bounded() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(1 << 16)).expect("created");
    for index in 0..50 {
        let payload = Bytes::from(vec![7; 100]);
        run(&log, &[Call::Append(vec![Entry { id: id(1, index), kind: Kind::Normal, payload }])]);
    }
    assert!(log.shared.lock().index.cached() <= 3);
    let some = log.read(10..50, 1000).and_then(Read::wait).expect("readable");
    assert!((5..10).contains(&some.len()), "{}", some.len());
    assert_eq!(some[0].id.index, 10);
    let one = log.read(10..50, 1).and_then(Read::wait).expect("readable");
    assert_eq!(one.len(), 1, "never nothing");
    assert!(log.append(vec![entry(1, 60, 0)], Box::new(|_| {})).is_err(), "a hole is refused");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let disk = SimDisk::new();
    let options = inline(512);
    let refused = |disk: &SimDisk, incarnation| {
        let opened = Wal::open(Arc::new(disk.clone()), dir(), incarnation, options);
        opened.err().expect("refused").to_string()
    };
    assert!(refused(&disk, INCARNATION).contains("has an identity but no log"));
    let log = create(&disk, options).expect("created");
    run(&log, &(0..30).map(|index| Call::Append(vec![entry(1, index, 30)])).collect::<Vec<_>>());
    drop(log);
    let text = refused(&disk, INCARNATION + 1);
    assert!(text.contains("0000000001.wal") && text.contains("another identity"), "{text}");

    let gap = disk.fork();
    gap.remove(&segment::path(dir(), 2)).expect("removed");
    assert!(refused(&gap, INCARNATION).contains("0000000002.wal is damaged at offset 0: the segment is missing"));
    let beheaded = disk.fork();
    beheaded.remove(&segment::path(dir(), 1)).expect("removed");
    assert!(refused(&beheaded, INCARNATION).contains("neither there nor purged"));
    let swapped = disk.fork();
    let second = disk.content(&segment::path(dir(), 2));
    swapped.damage(&segment::path(dir(), 3), |bytes| *bytes = second);
    assert!(refused(&swapped, INCARNATION).contains("0000000003.wal is damaged at offset 0"));
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

/// A process dies between its write and its sync; the system lives on and shows the next process
/// bytes that no disk has. They count from then on, so opening must sync them.
#[test]
fn what_a_killed_process_wrote_is_synced_before_it_counts() {
    let disk = SimDisk::new();
    let log = create(&disk, inline(4096)).expect("created");
    run(&log, &[Call::Append(vec![entry(1, 0, 5)])]);
    let dead = disk.fork();
    let (path, from) = last_segment(&log);
    run(&log, &[Call::Vote(vote(7, true))]);
    let flush = disk.content(&path)[from as usize..last_segment(&log).1 as usize].to_vec();
    dead.crash(Crash::KeepUnsynced);
    dead.open(&path).and_then(|file| file.write_at(&flush, from)).expect("written, not synced");
    let log = open(&dead, inline(4096)).expect("opened");
    assert_eq!(log.vote(), Some(vote(7, true)));
    dead.crash(Crash::DropUnsynced);
    let log = open(&dead, inline(4096)).expect("opened");
    assert_eq!(log.vote(), Some(vote(7, true)), "a vote that was told is kept");
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

/// What is left of a torn flush must not join what is written over its beginning.
#[test]
fn the_rest_of_a_torn_flush_never_comes_back() {
    for hurt in 0..3 {
        let disk = SimDisk::new();
        let log = create(&disk, inline(4096)).expect("created");
        run(&log, &[Call::Append(vec![entry(1, 0, 5)])]);
        let (path, from) = last_segment(&log);
        let three = (1..4).map(|index| Entry { id: id(1, index), ..entry(1, 1, 0) });
        run(&log, &[Call::Append(three.collect())]);
        let record = (last_segment(&log).1 - from) as usize / 3;
        disk.damage(&path, |bytes| bytes[from as usize + record * hurt] ^= 1);
        disk.crash(Crash::DropUnsynced);
        let log = open(&disk, inline(4096)).expect("torn");
        assert_eq!(content(&log).entries.len(), 1 + hurt);
        // As long as the record it replaces, or as the mark that closed the flush and it together.
        let next = Entry { id: id(2, 1 + hurt as u64), ..entry(2, 1, 0) };
        run(&log, &[Call::Append(vec![next])]);
        let found = content(&log);
        drop(log);
        disk.crash(Crash::DropUnsynced);
        assert_eq!(content(&open(&disk, inline(4096)).expect("opened")), found, "hurt {hurt}");
    }
}
