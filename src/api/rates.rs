//! Packages a second by queue, as this node sees them: differences of the state's lifetime counters
//! over the last seconds.
//!
//! Invariants: at most `MAX_RATED_QUEUES` queues are tracked; past that rates read zero.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::machine::view::QueueView;
use crate::types::{QueueName, limits};

/// A sample a second, and the span over which a rate is told.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const SAMPLES: usize = 6;

/// See the module.
#[derive(Default)]
pub struct Rates {
    queues: Mutex<BTreeMap<QueueName, VecDeque<Sample>>>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    submitted: u64,
    completed: u64,
}

impl Rates {
    /// Takes the counters of all queues, about once in [`SAMPLE_EVERY`]. Forgets queues that are gone.
    pub fn sample(&self, views: &[QueueView], now: Instant) {
        let mut queues = self.queues.lock();
        let mut before = std::mem::take(&mut *queues);
        for view in views.iter().take(limits::MAX_RATED_QUEUES) {
            let mut samples = before.remove(&view.name).unwrap_or_default();
            if samples.len() >= SAMPLES {
                samples.pop_front();
            }
            samples.push_back(Sample { at: now, submitted: view.submitted, completed: view.completed });
            queues.insert(view.name.clone(), samples);
        }
    }

    /// (submitted, completed) a second, up to now.
    pub fn of(&self, view: &QueueView, now: Instant) -> (f64, f64) {
        let queues = self.queues.lock();
        let Some(first) = queues.get(&view.name).and_then(|samples| samples.front()) else {
            return (0.0, 0.0);
        };
        let seconds = now.saturating_duration_since(first.at).as_secs_f64();
        // So soon after the first sample a rate would be noise.
        if seconds < SAMPLE_EVERY.as_secs_f64() / 2.0 {
            return (0.0, 0.0);
        }
        let rate = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
        (rate(first.submitted, view.submitted), rate(first.completed, view.completed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(submitted: u64, completed: u64) -> QueueView {
        of_queue("q", submitted, completed)
    }

    fn of_queue(name: &str, submitted: u64, completed: u64) -> QueueView {
        QueueView {
            name: QueueName::parse(name).unwrap(),
            settings: Default::default(),
            paused: false,
            sealed: false,
            ended: false,
            revision: Default::default(),
            scheduled: 0,
            ready: 0,
            leased: 0,
            completed,
            dead: 0,
            cancelled: 0,
            expired: 0,
            submitted,
            bytes: 0,
            oldest_ready_age_ms: 0,
            workers: 0,
            lease_ends: [0; 7],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_over_the_last_seconds() {
        let rates = Rates::default();
        let mut total = 0;
        for second in 0..20 {
            total += if second < 10 { 1000 } else { 10 };
            rates.sample(&[view(total, total / 2)], Instant::now());
            tokio::time::advance(SAMPLE_EVERY).await;
        }
        let (submitted, completed) = rates.of(&view(total + 10, total / 2 + 5), Instant::now());
        assert!((submitted - 10.0).abs() < 0.5, "{submitted}");
        assert!((completed - 5.0).abs() < 0.5, "{completed}");
        rates.sample(&[], Instant::now());
        assert_eq!(rates.of(&view(5000, 0), Instant::now()), (0.0, 0.0));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_queues_are_tracked_than_may_be() {
        const MOST: usize = limits::MAX_RATED_QUEUES;
        let rates = Rates::default();
        let views = |total| (0..=MOST).map(|n| of_queue(&format!("q{n}"), total, total)).collect::<Vec<_>>();
        rates.sample(&views(0), Instant::now());
        tokio::time::advance(SAMPLE_EVERY).await;
        let now = views(100);
        assert_eq!(rates.queues.lock().len(), MOST);
        assert_eq!(rates.of(&now[MOST - 1], Instant::now()), (100.0, 100.0));
        assert_eq!(rates.of(&now[MOST], Instant::now()), (0.0, 0.0));
    }
}
