//! What happened to the packages of a run, as its producers and consumers saw it.
//!
//! Producers and consumers each have a [`Lane`], so that nobody waits for another's lock; what
//! all share are counters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::plan::Stamp;
use crate::client::{Error, Submitted};

/// Latencies from a microsecond to ten minutes, to three digits.
const LONGEST_US: u64 = 600_000_000;
const DIGITS: u8 = 3;

/// In a package's cell: the lowest bit says that it was confirmed, the others count deliveries.
const CONFIRMED: u8 = 1;
const DELIVERY: u8 = 2;

/// See the module.
pub struct Tally {
    started: Instant,
    cells: Box<[AtomicU8]>,
    confirmed: AtomicU64,
    delivered: AtomicU64,
    settled: AtomicU64,
    last_confirm_us: AtomicU64,
    last_settle_us: AtomicU64,
    /// Whether the times of all confirms and deliveries are kept.
    keep_times: bool,
    confirms: Mutex<Vec<Arc<Lane>>>,
    deliveries: Mutex<Vec<Arc<Lane>>>,
    refused: Mutex<Option<Error>>,
    failed: AtomicBool,
    failure: Notify,
    /// What was sent again, by reason: how often, and the last error.
    retries: Mutex<BTreeMap<String, (u64, Error)>>,
}

/// What one producer or consumer saw.
pub struct Lane(Mutex<Seen>);

struct Seen {
    latency_us: Histogram<u64>,
    at_us: Vec<u64>,
}

/// What all lanes saw.
pub struct Merged {
    pub latency_us: Histogram<u64>,
    /// When, in order. Empty unless times are kept.
    pub at_us: Vec<u64>,
}

impl Tally {
    /// For packages numbered from 0 to `count`. The clock starts now.
    pub fn new(count: u64, keep_times: bool) -> Self {
        Self {
            started: Instant::now(),
            cells: (0..count).map(|_| AtomicU8::new(0)).collect(),
            confirmed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            last_confirm_us: AtomicU64::new(0),
            last_settle_us: AtomicU64::new(0),
            keep_times,
            confirms: Mutex::default(),
            deliveries: Mutex::default(),
            refused: Mutex::default(),
            failed: AtomicBool::new(false),
            failure: Notify::new(),
            retries: Mutex::default(),
        }
    }

    pub fn now_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    pub fn instant(&self, us: u64) -> Instant {
        self.started + Duration::from_micros(us)
    }

    pub fn producer(&self) -> Arc<Lane> {
        self.lane(&self.confirms)
    }

    pub fn consumer(&self) -> Arc<Lane> {
        self.lane(&self.deliveries)
    }

    fn lane(&self, lanes: &Mutex<Vec<Arc<Lane>>>) -> Arc<Lane> {
        let lane = Arc::new(Lane(Mutex::new(Seen { latency_us: histogram(), at_us: Vec::new() })));
        lanes.lock().push(lane.clone());
        lane
    }

    /// A submit was answered.
    pub fn answered(&self, lane: &Lane, stamp: Stamp, answer: Result<Submitted, Error>) {
        if let Err(error) = answer {
            return self.fail(error);
        }
        let now = self.now_us();
        lane.note(now, stamp.due_us, self.keep_times);
        if let Some(cell) = self.cell(stamp.number) {
            cell.fetch_or(CONFIRMED, Relaxed);
        }
        self.last_confirm_us.fetch_max(now, Relaxed);
        self.confirmed.fetch_add(1, Relaxed);
    }

    /// A package arrived at a consumer.
    pub fn delivered(&self, lane: &Lane, stamp: Stamp) {
        let now = self.now_us();
        lane.note(now, stamp.due_us, self.keep_times);
        let Some(cell) = self.cell(stamp.number) else { return };
        let first = cell.load(Relaxed) < DELIVERY;
        if first {
            self.delivered.fetch_add(1, Relaxed);
        }
        // More than a few deliveries need not be counted exactly; the count must not wrap.
        if cell.load(Relaxed) <= u8::MAX - DELIVERY {
            cell.fetch_add(DELIVERY, Relaxed);
        }
    }

    /// A completion was accepted.
    pub fn settled(&self) {
        self.last_settle_us.fetch_max(self.now_us(), Relaxed);
        self.settled.fetch_add(1, Relaxed);
    }

    /// Packages were refused for the moment, or their stream broke.
    pub fn retried(&self, packages: usize, error: &Error) {
        let reason = if error.reason().is_empty() { format!("{:?}", error.code()) } else { error.reason().to_owned() };
        let mut retries = self.retries.lock();
        let entry = retries.entry(reason).or_insert_with(|| (0, error.clone()));
        *entry = (entry.0 + packages as u64, error.clone());
    }

    /// A package was refused for good. The first such error counts.
    pub fn fail(&self, error: Error) {
        self.refused.lock().get_or_insert(error);
        self.failed.store(true, Relaxed);
        self.failure.notify_waiters();
    }

    /// Nothing more should be sent.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    /// Waits for the first refusal for good.
    pub async fn failure(&self) -> Error {
        loop {
            let notified = self.failure.notified();
            if let Some(error) = self.refused.lock().clone() {
                return error;
            }
            notified.await;
        }
    }

    pub fn confirmed_count(&self) -> u64 {
        self.confirmed.load(Relaxed)
    }

    pub fn settled_count(&self) -> u64 {
        self.settled.load(Relaxed)
    }

    /// Different packages that arrived.
    pub fn delivered_count(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    pub fn last_confirm_us(&self) -> u64 {
        self.last_confirm_us.load(Relaxed)
    }

    pub fn last_settle_us(&self) -> u64 {
        self.last_settle_us.load(Relaxed)
    }

    /// Reason, packages and last error of what was sent again.
    pub fn retries(&self) -> Vec<(String, u64, Error)> {
        let retries = self.retries.lock();
        retries.iter().map(|(reason, (packages, error))| (reason.clone(), *packages, error.clone())).collect()
    }

    /// Packages that were confirmed and never delivered.
    pub fn lost(&self) -> u64 {
        self.cells.iter().filter(|cell| cell.load(Relaxed) == CONFIRMED).count() as u64
    }

    /// Deliveries of packages that had been delivered before.
    pub fn duplicates(&self) -> u64 {
        self.cells.iter().map(|cell| u64::from(cell.load(Relaxed) / DELIVERY).saturating_sub(1)).sum()
    }

    pub fn confirms(&self) -> Merged {
        merge(&self.confirms.lock())
    }

    pub fn deliveries(&self) -> Merged {
        merge(&self.deliveries.lock())
    }

    fn cell(&self, number: u64) -> Option<&AtomicU8> {
        self.cells.get(usize::try_from(number).ok()?)
    }
}

impl Lane {
    fn note(&self, now_us: u64, due_us: u64, keep_time: bool) {
        let mut seen = self.0.lock();
        // It saturates, so nothing is left out.
        seen.latency_us.saturating_record(now_us.saturating_sub(due_us).max(1));
        if keep_time {
            seen.at_us.push(now_us);
        }
    }
}

fn merge(lanes: &[Arc<Lane>]) -> Merged {
    let mut merged = Merged { latency_us: histogram(), at_us: Vec::new() };
    for lane in lanes {
        let seen = lane.0.lock();
        merged.latency_us.add(&seen.latency_us).expect("all histograms have the same bounds");
        merged.at_us.extend_from_slice(&seen.at_us);
    }
    merged.at_us.sort_unstable();
    merged
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("the bounds are valid")
}

/// The longest time between two of these, which are in order, or from the last of them to `end_us`.
pub fn longest_gap_us(at_us: &[u64], end_us: Option<u64>) -> u64 {
    let between = at_us.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    let last = at_us.last().copied().unwrap_or(0);
    between.max(end_us.map_or(0, |end| end.saturating_sub(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(number: u64) -> Stamp {
        Stamp { number, due_us: 0 }
    }

    fn confirm(tally: &Tally, lane: &Lane, number: u64) {
        let submitted = Submitted { queue: "jobs".into(), id: "x".into(), duplicate: false };
        tally.answered(lane, stamp(number), Ok(submitted));
    }

    #[test]
    fn the_longest_gap_is_found_wherever_it_lies() {
        assert_eq!(longest_gap_us(&[], None), 0);
        assert_eq!(longest_gap_us(&[5], None), 0);
        assert_eq!(longest_gap_us(&[0, 10, 12, 50, 51], None), 38);
        assert_eq!(longest_gap_us(&[0, 40, 41], None), 40);
        assert_eq!(longest_gap_us(&[0, 10, 11], Some(100)), 89, "nothing came any more");
        assert_eq!(longest_gap_us(&[], Some(100)), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn latency_counts_from_when_a_package_was_due() {
        let tally = Tally::new(2, true);
        let (one, other) = (tally.producer(), tally.producer());
        tokio::time::advance(Duration::from_millis(40)).await;
        tally.answered(
            &one,
            Stamp { number: 0, due_us: 10_000 },
            Ok(Submitted { queue: "q".into(), id: "0".into(), duplicate: false }),
        );
        tokio::time::advance(Duration::from_millis(60)).await;
        tally.answered(
            &other,
            Stamp { number: 1, due_us: 99_000 },
            Ok(Submitted { queue: "q".into(), id: "1".into(), duplicate: false }),
        );
        let merged = tally.confirms();
        assert_eq!(merged.at_us, [40_000, 100_000]);
        assert!(merged.latency_us.max().abs_diff(30_000) <= 30, "{}", merged.latency_us.max());
        assert!(merged.latency_us.min().abs_diff(1_000) <= 1, "{}", merged.latency_us.min());
        assert_eq!(tally.last_confirm_us(), 100_000);
    }

    #[test]
    fn the_lost_and_the_repeated_are_told() {
        let tally = Tally::new(4, false);
        let (producer, consumer) = (tally.producer(), tally.consumer());
        (0..3).for_each(|number| confirm(&tally, &producer, number));
        assert_eq!((tally.lost(), tally.duplicates()), (3, 0));
        for number in [0, 1, 1, 1, 3] {
            tally.delivered(&consumer, stamp(number));
        }
        // 2 is lost. 3 was never confirmed, so it is not lost whatever becomes of it.
        assert_eq!((tally.lost(), tally.duplicates(), tally.delivered_count()), (1, 2, 3));
        (0..1000).for_each(|_| tally.delivered(&consumer, stamp(0)));
        assert_eq!((tally.lost(), tally.delivered_count()), (1, 3), "a count that is full never wraps");
        tally.delivered(&consumer, stamp(99));
    }

    #[tokio::test]
    async fn a_refusal_for_good_ends_the_run_and_one_for_the_moment_is_counted() {
        let tally = Tally::new(1, false);
        let lane = tally.producer();
        let error = crate::client::Client::new("nowhere").err().expect("no address");
        tally.retried(3, &error);
        tally.retried(4, &error);
        let retries = tally.retries();
        assert_eq!((retries.len(), retries[0].1), (1, 7));
        assert!(!tally.has_failed());
        tally.answered(&lane, stamp(0), Err(error));
        assert!(tally.has_failed() && tally.confirmed_count() == 0);
        assert!(tally.failure().await.message().contains("nowhere"));
    }
}
