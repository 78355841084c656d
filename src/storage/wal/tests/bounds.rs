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
