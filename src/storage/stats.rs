//! What the log did to the disk, counted as it goes and read by whoever asks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; the last bucket has none.
pub const MICROS_BUCKETS: [u64; 9] = [50, 100, 250, 500, 1_000, 2_500, 10_000, 100_000, 1_000_000];

/// Counters since the log was opened.
#[derive(Debug, Default)]
pub struct IoStats {
    fsyncs: AtomicU64,
    fsync_micros: AtomicU64,
    fsync_micros_buckets: [AtomicU64; 10],
    bytes_written: AtomicU64,
}

/// [`IoStats`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounts {
    pub fsyncs: u64,
    pub fsync_micros: u64,
    /// By [`MICROS_BUCKETS`]; not cumulative.
    pub fsync_micros_buckets: [u64; 10],
    pub bytes_written: u64,
}

impl IoStats {
    pub(super) fn flushed(&self, bytes: usize, sync: Duration) {
        let micros = sync.as_micros() as u64;
        let bucket = MICROS_BUCKETS.partition_point(|bound| *bound < micros);
        self.fsyncs.fetch_add(1, Relaxed);
        self.fsync_micros.fetch_add(micros, Relaxed);
        self.fsync_micros_buckets[bucket].fetch_add(1, Relaxed);
        self.bytes_written.fetch_add(bytes as u64, Relaxed);
    }

    pub fn counts(&self) -> IoCounts {
        IoCounts {
            fsyncs: self.fsyncs.load(Relaxed),
            fsync_micros: self.fsync_micros.load(Relaxed),
            fsync_micros_buckets: std::array::from_fn(|bucket| self.fsync_micros_buckets[bucket].load(Relaxed)),
            bytes_written: self.bytes_written.load(Relaxed),
        }
    }
}
