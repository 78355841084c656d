//! What the adapter counts; `Handle::status` reads it.
//!
//! Invariants: counters only grow (gauges aside) and never order anything.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::handle::{MICROS_BUCKETS, Metrics};

/// Upper bounds of the group sizes in [`Metrics`]; the last bucket has none.
const GROUP_BUCKETS: [u64; 6] = [1, 4, 16, 64, 256, 1024];

#[derive(Default)]
pub struct Counters {
    pub proposals: AtomicU64,
    pub commands: AtomicU64,
    pub proposals_in_flight: AtomicU64,
    group_sizes: [AtomicU64; 7],
    applied_batches: AtomicU64,
    apply_micros: AtomicU64,
    apply_micros_buckets: [AtomicU64; 10],
    pub snapshots_built: AtomicU64,
    pub snapshots_installed: AtomicU64,
    pub elections: AtomicU64,
}

impl Counters {
    pub fn group(&self, commands: usize) {
        let commands = commands as u64;
        self.proposals.fetch_add(1, Relaxed);
        self.commands.fetch_add(commands, Relaxed);
        self.group_sizes[bucket(&GROUP_BUCKETS, commands)].fetch_add(1, Relaxed);
    }

    pub fn applied(&self, took: Duration) {
        let micros = took.as_micros() as u64;
        self.applied_batches.fetch_add(1, Relaxed);
        self.apply_micros.fetch_add(micros, Relaxed);
        self.apply_micros_buckets[bucket(&MICROS_BUCKETS, micros)].fetch_add(1, Relaxed);
    }

    /// What is counted here; the log's share is filled in by `Handle::status`.
    pub fn metrics(&self) -> Metrics {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        Metrics {
            proposals: load(&self.proposals),
            commands: load(&self.commands),
            proposals_in_flight: load(&self.proposals_in_flight),
            group_sizes: self.group_sizes.each_ref().map(load),
            applied_batches: load(&self.applied_batches),
            apply_micros: load(&self.apply_micros),
            apply_micros_buckets: self.apply_micros_buckets.each_ref().map(load),
            snapshots_built: load(&self.snapshots_built),
            snapshots_installed: load(&self.snapshots_installed),
            elections: load(&self.elections),
            ..Metrics::default()
        }
    }
}

/// The first bucket whose bound is not below `value`; the one past the bounds if there is none.
fn bucket(bounds: &[u64], value: u64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_bucket_that_bounds_it() {
        assert_eq!(bucket(&GROUP_BUCKETS, 1), 0);
        assert_eq!(bucket(&GROUP_BUCKETS, 5), 2);
        assert_eq!(bucket(&GROUP_BUCKETS, 1024), 5);
        assert_eq!(bucket(&GROUP_BUCKETS, 1025), 6);
        assert_eq!(bucket(&MICROS_BUCKETS, u64::MAX), 9);
    }
}
