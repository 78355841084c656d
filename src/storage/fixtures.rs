//! Stored bytes are a promise: what the first version wrote opens in every later one.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, SimDisk};
use super::snapshots::{Meta, Snapshots};
use super::wal::{Flusher, Options, Wal};
use super::*;

/// As it was before segments told their size.
const FIRST_SEGMENT: &[u8] = include_bytes!("../../tests/fixtures/storage/log-format-1.wal");
const SEGMENT: &[u8] = include_bytes!("../../tests/fixtures/storage/log-format-1-sized.wal");
const SNAPSHOT: &[u8] = include_bytes!("../../tests/fixtures/storage/snapshot-format-1.snap");
const IDENTITY: &[u8] = include_bytes!("../../tests/fixtures/storage/identity-1");
const INCARNATION: u64 = 0x0123_4567_89ab_cdef;

fn place(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let file = disk.create(Path::new(path)).expect("created");
    file.write_at(bytes, 0).expect("written");
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

fn entry(id: LogId, kind: Kind, payload: &'static [u8]) -> Entry {
    Entry { id, kind, payload: Bytes::from_static(payload) }
}

fn options() -> Options {
    Options { flusher: Flusher::Inline, segment_bytes: 4096, first_segment_bytes: 1024, cache_bytes: 4096 }
}

/// Every type of record that a node writes while it lives.
fn live(log: &Wal) {
    let done = || Box::new(|_| {});
    log.save_vote(Vote { term: 3, node: 2, committed: true }, done()).expect("saved");
    let entries = vec![
        entry(id(1, 0), Kind::Membership, b"members"),
        entry(id(3, 1), Kind::Blank, b""),
        entry(id(3, 2), Kind::Normal, b"a batch"),
        entry(id(3, 3), Kind::Normal, b"cut off"),
    ];
    log.append(entries, done()).expect("appended");
    log.save_committed(Some(id(3, 1))).expect("saved");
    log.truncate_after(Some(id(3, 2))).expect("cut");
    log.purge(id(1, 0)).expect("purged");
}

fn meta() -> Meta {
    Meta { last: Some(id(3, 2)), membership_at: Some(id(1, 0)), membership: Bytes::from_static(b"members") }
}

#[test]
fn the_first_logs_open() {
    opens(FIRST_SEGMENT);
    opens(SEGMENT);
}

fn opens(segment: &[u8]) {
    let disk = SimDisk::new();
    place(&disk, "/log/0000000001.wal", segment);
    let log = Wal::open(Arc::new(disk), Path::new("/log"), INCARNATION, options()).expect("opened");
    assert_eq!(log.vote(), Some(Vote { term: 3, node: 2, committed: true }));
    assert_eq!(log.committed(), Some(id(3, 1)));
    assert_eq!(log.ends(), log::Ends { purged: Some(id(1, 0)), last: Some(id(3, 2)) });
    let entries = log.read(0..9, u64::MAX).and_then(log::Read::wait).expect("readable");
    assert_eq!(entries, [entry(id(3, 1), Kind::Blank, b""), entry(id(3, 2), Kind::Normal, b"a batch")]);
}

#[test]
fn the_first_snapshot_opens() {
    let disk = SimDisk::new();
    place(&disk, "/snapshots/00000000000000000002-00000000000000000003.snap", SNAPSHOT);
    let (snapshot, damaged) = Snapshots::open(Arc::new(disk), Path::new("/snapshots")).expect("opened").latest_valid();
    assert!(damaged.is_empty(), "{damaged:?}");
    let snapshot = snapshot.expect("one");
    let mut state = Vec::new();
    std::io::copy(&mut snapshot.body(), &mut state).expect("whole");
    assert_eq!((snapshot.meta, state), (meta(), b"the state".to_vec()));
}

#[test]
fn the_first_identity_opens() {
    let disk = SimDisk::new();
    place(&disk, "/data/identity", IDENTITY);
    let found = Identity::read(&disk, Path::new("/data")).expect("readable");
    let cluster = Some(ClusterId(*b"0123456789abcdef"));
    assert_eq!(found, Some(Identity { node: 2, incarnation: INCARNATION, cluster }));
}

/// This version writes what the fixtures hold: a change of format needs a new number and fixture.
#[test]
fn the_formats_are_unchanged() {
    let disk = SimDisk::new();
    Wal::create(&disk, Path::new("/log"), INCARNATION, &options()).expect("created");
    live(&Wal::open(Arc::new(disk.clone()), Path::new("/log"), INCARNATION, options()).expect("opened"));
    let snapshots = Snapshots::open(Arc::new(disk.clone()), Path::new("/snapshots")).expect("opened");
    let mut builder = snapshots.build(meta()).expect("begun");
    std::io::Write::write_all(&mut builder, b"the state").expect("written");
    let snapshot = builder.finish().expect("durable");
    let cluster = Some(ClusterId(*b"0123456789abcdef"));
    Identity { node: 2, incarnation: INCARNATION, cluster }.write(&disk, Path::new("/data")).expect("written");
    assert_eq!(disk.content(Path::new("/log/0000000001.wal")), SEGMENT);
    assert_eq!(disk.content(snapshot.path()), SNAPSHOT);
    assert_eq!(disk.content(Path::new("/data/identity")), IDENTITY);
}
