//! What it costs to append to the log: entries of different sizes, each on disk when the call ends.
//!
//! The files are below `target/`, on the disk that the build is on. Most of each figure is that disk's fdatasync.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use wharf::storage::disk::RealDisk;
use wharf::storage::wal::{Options, Wal};
use wharf::storage::{Entry, Kind, Log, LogId};
use wharf::types::limits;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIZES: [usize; 5] = [256, 4 << 10, 64 << 10, 256 << 10, 1 << 20];
const INCARNATION: u64 = 1;
/// Entries that stay behind a purge: old segments go, as after a snapshot.
const KEPT: u64 = 64;

fn main() {
    divan::main();
}

/// One entry, alone: what an idle cluster pays.
#[divan::bench(args = SIZES)]
fn append(bencher: Bencher, bytes: usize) {
    let log = Stand::new(bytes);
    bencher.counter(BytesCount::new(bytes)).bench_local(|| log.append(1));
}

/// As many entries as may be in flight, which share their sync: what a busy leader pays.
#[divan::bench(args = SIZES)]
fn append_in_flight(bencher: Bencher, bytes: usize) {
    const COUNT: usize = limits::MAX_PROPOSALS_IN_FLIGHT;
    let log = Stand::new(bytes);
    let bencher = bencher.counter(BytesCount::new(COUNT * bytes)).counter(ItemsCount::new(COUNT));
    bencher.bench_local(|| log.append(COUNT));
}

struct Stand {
    wal: Wal,
    next: AtomicU64,
    payload: Bytes,
    // Removed after the log that is in it.
    _dir: tempfile::TempDir,
}

impl Stand {
    fn new(bytes: usize) -> Self {
        let below: PathBuf = env!("CARGO_TARGET_TMPDIR").into();
        let dir = tempfile::tempdir_in(below).expect("target is writable");
        let log = dir.path().join("log");
        let options = Options::default();
        Wal::create(&RealDisk, &log, INCARNATION, &options).expect("a log can be made");
        let wal = Wal::open(Arc::new(RealDisk), &log, INCARNATION, options).expect("it opens");
        let stand = Self { wal, next: AtomicU64::new(1), payload: vec![7; bytes].into(), _dir: dir };
        stand.append(1);
        stand
    }

    /// Hands over so many entries one by one, as raft does, and waits until all are on disk.
    fn append(&self, count: usize) {
        let done: Vec<Receiver<()>> = (0..count).map(|_| self.hand_over()).collect();
        for done in done {
            done.recv().expect("the log lives");
        }
    }

    fn hand_over(&self) -> Receiver<()> {
        let (tell, done) = sync_channel(1);
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let id = LogId { term: 1, index };
        let entry = Entry { id, kind: Kind::Normal, payload: self.payload.clone() };
        let on_disk = move |result: std::io::Result<()>| {
            result.expect("the disk takes it");
            // Whoever waits may have ended.
            let _ = tell.send(());
        };
        self.wal.append(vec![entry], Box::new(on_disk)).expect("the log takes it");
        if index.is_multiple_of(KEPT) && index > KEPT {
            self.wal.purge(LogId { term: 1, index: index - KEPT }).expect("the log takes it");
        }
        done
    }
}
