//! The bounds of the log: its disk, its segments, its reads, its memory.

use super::*;

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

const MIB: usize = 1 << 20;

/// Lets the disk go on, also if the test fails: closing a log waits for its threads.
struct GoesOn(SimDisk);

impl Drop for GoesOn {
    fn drop(&mut self) {
        self.0.hang(false);
    }
}

/// A log of its own threads on a disk that may hang, with room for everything in one segment.
fn threaded() -> (SimDisk, Wal) {
    let disk = SimDisk::new();
    let segment_bytes = limits::SEGMENT_BYTES * 2;
    let options = Options { flusher: Flusher::Thread, ..inline(segment_bytes) };
    let log = create(&disk, options).expect("created");
    (disk, log)
}

fn large(index: u64) -> Entry {
    Entry { id: id(1, index), kind: Kind::Normal, payload: vec![7; MIB].into() }
}

#[test]
fn past_the_bytes_that_may_wait_an_append_is_held_back() {
    let (disk, log) = threaded();
    let _goes_on = GoesOn(disk.clone());
    disk.hang(true);
    let most = (limits::LOG_QUEUE_BYTES / MIB) as u64;
    (0..most - 1).for_each(|index| log.append(vec![large(index)], Box::new(|_| {})).expect("accepted"));
    assert!(log.room().now_or_never().is_some());
    log.append(vec![large(most - 1)], Box::new(|_| {})).expect("accepted");
    let mut room = log.room();
    assert!((&mut room).now_or_never().is_none(), "as much as may wait does");
    disk.hang(false);
    futures::executor::block_on(room);
    assert!(log.shared.lock().queue_bytes < limits::LOG_QUEUE_BYTES);
}

#[test]
fn a_long_queue_takes_several_writes() {
    let (disk, log) = threaded();
    let _goes_on = GoesOn(disk.clone());
    disk.hang(true);
    let (done, all) = std::sync::mpsc::sync_channel(1);
    // The first is taken alone, perhaps, and waits for the disk.
    log.append(vec![entry(1, 0, 1)], Box::new(|_| {})).expect("accepted");
    let count = 3 * limits::MAX_FLUSH_BYTES / MIB;
    (1..=count as u64).for_each(|index| log.append(vec![large(index)], Box::new(|_| {})).expect("accepted"));
    log.barrier(Box::new(move |result| drop(done.send(result)))).expect("accepted");
    disk.hang(false);
    all.recv().expect("called back").expect("durable");
    // One less fits, for every record has its frame.
    let fits = limits::MAX_FLUSH_BYTES / MIB - 1;
    let least = count.div_ceil(fits) as u64;
    let fsyncs = log.io().fsyncs;
    assert!((least..=least + 1).contains(&fsyncs), "{fsyncs} writes");
}

#[test]
fn a_file_is_read_in_pieces() {
    let places = |sizes: &[u32]| {
        let mut offset = 0;
        let place = |(index, size): (usize, &u32)| {
            let place = Place { segment: 1, offset, size: *size };
            offset += size;
            (id(1, index as u64), place, None)
        };
        sizes.iter().enumerate().map(place).collect::<Vec<Wanted>>()
    };
    let piece = limits::LOG_READ_BYTES as u32;
    assert_eq!(run_length(&places(&[piece / 2, piece / 2, 1])), 2);
    assert_eq!(run_length(&places(&[piece / 2, piece / 2 + 1])), 1);
    assert_eq!(run_length(&places(&[3 * piece, 1])), 1, "one that is larger is read alone");
    let mut apart = places(&[1, 1]);
    apart[1].1.segment = 2;
    assert_eq!(run_length(&apart), 1);
}

#[test]
fn a_new_log_is_small_at_first_and_keeps_its_tail_in_memory() {
    let disk = SimDisk::new();
    let log = create(&disk, Options { flusher: Flusher::Inline, ..Options::default() }).expect("created");
    let bytes = |number| disk.content(&segment::path(dir(), number)).len() as u64;
    assert_eq!((bytes(1), bytes(2)), (limits::FIRST_SEGMENT_BYTES, limits::SEGMENT_BYTES));
    let count = (limits::LOG_CACHE_BYTES / MIB) as u64 + 8;
    (0..count).for_each(|index| log.append(vec![large(index)], Box::new(|_| {})).expect("accepted"));
    let cached = log.shared.lock().index.cached() * MIB;
    let bounds = limits::LOG_CACHE_BYTES - 2 * MIB..=limits::LOG_CACHE_BYTES;
    assert!(bounds.contains(&cached), "{cached} bytes");
    assert_eq!(content(&log).entries.len() as u64, count);
}
