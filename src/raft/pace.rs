//! How much may be submitted beside completions: as many packages as are settled, or a fixed number a
//! millisecond, whichever is more, counted over a short window. Arithmetic only.
//!
//! Invariant: over any time the packages that pass are at most what was earned in it, plus
//! `MAX_SUBMITS_EARNED` and one command. A command that is larger than the rest of what was earned
//! passes whole, and the next ones wait until that is made good.

use std::time::Duration;

use tokio::time::Instant;

use crate::types::limits;

/// What is settled comes in lumps: the two measures are compared over so long a time.
const WINDOW: Duration = Duration::from_millis(50);

/// See the module.
pub struct Pace {
    /// What earlier windows left; negative: passed ahead of its time.
    carried: i64,
    since: Instant,
    settled: i64,
    submitted: i64,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { carried: 0, since: now, settled: 0, submitted: 0 }
    }

    /// Packages that may be submitted now.
    pub fn allows(&mut self, now: Instant) -> usize {
        let elapsed = now - self.since;
        let steady = elapsed.as_micros() as i64 * limits::SUBMITS_A_MS_WHILE_BUSY as i64 / 1_000;
        let left = self.carried + self.settled.max(steady) - self.submitted;
        if elapsed >= WINDOW {
            let most = limits::MAX_SUBMITS_EARNED as i64;
            *self = Self { carried: left.min(most), ..Self::new(now) };
            return self.carried.max(0) as usize;
        }
        left.max(0) as usize
    }

    pub fn settled(&mut self, packages: usize) {
        self.settled += packages as i64;
    }

    pub fn submitted(&mut self, packages: usize) {
        self.submitted += packages as i64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_MS: usize = limits::SUBMITS_A_MS_WHILE_BUSY;

    #[tokio::test(start_paused = true)]
    async fn what_passed_ahead_of_its_time_is_made_good() {
        let mut pace = Pace::new(Instant::now());
        pace.settled(10);
        assert_eq!(pace.allows(Instant::now()), 10);
        pace.submitted(100 * A_MS);
        assert_eq!(pace.allows(Instant::now()), 0);
        tokio::time::advance(WINDOW).await;
        assert_eq!(pace.allows(Instant::now()), 0, "the debt outlives its window");
        tokio::time::advance(WINDOW - Duration::from_millis(1)).await;
        assert_eq!(pace.allows(Instant::now()), 0);
        pace.settled(60 * A_MS);
        assert_eq!(pace.allows(Instant::now()), 60 * A_MS - 50 * A_MS, "what is settled counts if it is more");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_earned_long_ago_lets_no_flood_through() {
        let mut pace = Pace::new(Instant::now());
        pace.settled(10 * limits::MAX_SUBMITS_EARNED);
        tokio::time::advance(WINDOW).await;
        assert_eq!(pace.allows(Instant::now()), limits::MAX_SUBMITS_EARNED);
        tokio::time::advance(WINDOW * 100).await;
        assert_eq!(pace.allows(Instant::now()), limits::MAX_SUBMITS_EARNED);
    }
}
