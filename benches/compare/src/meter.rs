//! Counts and times what is confirmed and what is delivered. A package's body begins with its number and
//! with when it was due, so that both sides of a run speak of the same package.
//!
//! Latency counts from when a package was due, not from when it could be sent: a peer that stands still
//! does not stop the clock for those who wait behind (no coordinated omission).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep, sleep_until};

use crate::figures::Quantiles;

/// Of the number and the time.
const HEAD_BYTES: usize = 16;
/// Latencies up to ten minutes, in microseconds.
const LONGEST_US: u64 = 600_000_000;
/// How often the end of a run is looked for. The figures do not depend on it: they go by the last delivery.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A package as its body tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub number: u64,
    pub due_us: u64,
}

impl Sent {
    /// A body of `bytes`, or of what the head takes.
    pub fn body(self, bytes: usize) -> Bytes {
        let mut body = BytesMut::with_capacity(bytes.max(HEAD_BYTES));
        body.put_u64_le(self.number);
        body.put_u64_le(self.due_us);
        body.resize(bytes.max(HEAD_BYTES), b'x');
        body.freeze()
    }

    pub fn of(mut body: &[u8]) -> Option<Self> {
        (body.len() >= HEAD_BYTES).then(|| Self { number: body.get_u64_le(), due_us: body.get_u64_le() })
    }
}

/// What happened to packages on one side, confirms or deliveries.
pub struct Side {
    latency_us: Histogram<u64>,
    seen: Vec<bool>,
    /// Packages seen at least once.
    pub distinct: u64,
    /// Sights of what was seen before.
    pub repeats: u64,
    last_us: Option<u64>,
    longest_gap_us: u64,
}

impl Side {
    fn new(count: u64) -> Self {
        Self {
            latency_us: Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are in order"),
            seen: vec![false; count as usize],
            distinct: 0,
            repeats: 0,
            last_us: None,
            longest_gap_us: 0,
        }
    }

    fn note(&mut self, sent: Sent, now_us: u64) {
        let Some(seen) = self.seen.get_mut(sent.number as usize) else { return };
        match std::mem::replace(seen, true) {
            true => self.repeats += 1,
            false => self.distinct += 1,
        }
        self.latency_us.saturating_record(now_us.saturating_sub(sent.due_us));
        if let Some(last) = self.last_us {
            self.longest_gap_us = self.longest_gap_us.max(now_us.saturating_sub(last));
        }
        self.last_us = Some(now_us);
    }

    pub fn quantiles(&self) -> Quantiles {
        Quantiles::of(&self.latency_us)
    }

    /// When the last sight was, in seconds of the run.
    pub fn last_seconds(&self) -> f64 {
        self.last_us.unwrap_or(0) as f64 / 1e6
    }

    pub fn longest_gap_ms(&self) -> f64 {
        self.longest_gap_us as f64 / 1e3
    }

    /// Packages that were seen here and never there.
    pub fn missing_in(&self, other: &Side) -> u64 {
        self.seen.iter().zip(&other.seen).filter(|(here, there)| **here && !**there).count() as u64
    }
}

/// See the module. Shared by all tasks of a run.
pub struct Meter {
    start: Instant,
    confirmed: Mutex<Side>,
    delivered: Mutex<Side>,
}

impl Meter {
    /// The clock starts now.
    pub fn start(count: u64) -> Self {
        Self { start: Instant::now(), confirmed: Mutex::new(Side::new(count)), delivered: Mutex::new(Side::new(count)) }
    }

    fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Waits until package `number` is due: at `rate` a second, or now.
    pub async fn due(&self, number: u64, rate: u64) -> Sent {
        if rate == 0 {
            return Sent { number, due_us: self.now_us() };
        }
        let due_us = number * 1_000_000 / rate;
        sleep_until(self.start + Duration::from_micros(due_us)).await;
        Sent { number, due_us }
    }

    pub fn confirm(&self, sent: Sent) {
        let now_us = self.now_us();
        self.confirmed().note(sent, now_us);
    }

    /// Something else's packages are passed over.
    pub fn deliver(&self, body: &[u8]) {
        let now_us = self.now_us();
        if let Some(sent) = Sent::of(body) {
            self.delivered().note(sent, now_us);
        }
    }

    pub fn confirmed(&self) -> MutexGuard<'_, Side> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn delivered(&self) -> MutexGuard<'_, Side> {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all that was confirmed is delivered; false if nothing comes any more for `patience`.
    pub async fn all_delivered(&self, patience: Duration) -> bool {
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let now = {
                let (confirmed, delivered) = (self.confirmed(), self.delivered());
                if delivered.distinct >= confirmed.distinct && confirmed.missing_in(&delivered) == 0 {
                    return true;
                }
                delivered.distinct
            };
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > patience {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(number: u64) -> Sent {
        Sent { number, due_us: number * 1_000 }
    }

    #[test]
    fn a_body_tells_its_package() {
        let body = sent(7).body(256);
        assert_eq!((body.len(), Sent::of(&body)), (256, Some(sent(7))));
        assert_eq!(sent(7).body(0).len(), HEAD_BYTES, "never less than its head");
        assert_eq!(Sent::of(b"short"), None);
    }

    #[test]
    fn a_side_counts_repeats_gaps_and_what_the_other_lacks() {
        let (mut confirmed, mut delivered) = (Side::new(4), Side::new(4));
        [(0, 1_000), (1, 3_000), (2, 10_000)].into_iter().for_each(|(n, at)| confirmed.note(sent(n), at));
        [(0, 1_000), (0, 2_000), (9, 2_000), (2, 3_000)].into_iter().for_each(|(n, at)| delivered.note(sent(n), at));
        assert_eq!((confirmed.distinct, confirmed.longest_gap_ms()), (3, 7.0));
        assert_eq!((delivered.distinct, delivered.repeats), (2, 1), "number 9 is none of this run");
        assert_eq!(confirmed.missing_in(&delivered), 1);
        assert_eq!(confirmed.quantiles().max.round(), 8.0, "counted from when it was due");
    }

    #[tokio::test(start_paused = true)]
    async fn packages_are_due_at_their_rate_and_waiting_ends_when_nothing_comes() {
        let meter = Meter::start(3);
        let late = meter.due(2, 4).await;
        assert_eq!((late.due_us, meter.seconds()), (500_000, 0.5));
        meter.confirm(late);
        assert!(!meter.all_delivered(Duration::from_secs(1)).await);
        meter.deliver(&late.body(20));
        assert!(meter.all_delivered(Duration::from_secs(1)).await);
    }
}
