//! Pauses between tries: short while a failover may be under way, then doubling, with jitter.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::env::Random;
use crate::types::limits;

/// The pauses of one row of tries.
pub(super) struct Backoff {
    random: Arc<dyn Random>,
    started: Instant,
    next_ms: u64,
}

impl Backoff {
    pub fn new(random: Arc<dyn Random>) -> Self {
        Self { random, started: Instant::now(), next_ms: limits::CLIENT_BACKOFF_FIRST_MS }
    }

    /// The next pause: between half and all of the current step, and never less than what the
    /// server asked for.
    pub fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let quick = self.started.elapsed() < Duration::from_millis(limits::CLIENT_BACKOFF_QUICK_FOR_MS);
        let max = if quick { limits::CLIENT_BACKOFF_QUICK_MAX_MS } else { limits::CLIENT_BACKOFF_MAX_MS };
        let step_us = self.next_ms.min(max) * 1000;
        self.next_ms = (self.next_ms * 2).min(limits::CLIENT_BACKOFF_MAX_MS);
        let jittered = Duration::from_micros(step_us / 2 + self.random.next() % (step_us / 2 + 1));
        jittered.max(asked.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_within_their_bounds() {
        let mut backoff = Backoff::new(Env::real().random);
        let first = backoff.pause(None);
        assert!(first <= Duration::from_millis(limits::CLIENT_BACKOFF_FIRST_MS), "{first:?}");
        for _ in 0..20 {
            assert!(backoff.pause(None) <= Duration::from_millis(limits::CLIENT_BACKOFF_QUICK_MAX_MS));
        }
        tokio::time::advance(Duration::from_millis(limits::CLIENT_BACKOFF_QUICK_FOR_MS)).await;
        let late = backoff.pause(None);
        assert!(late >= Duration::from_millis(limits::CLIENT_BACKOFF_MAX_MS / 2), "{late:?}");
        assert!(late <= Duration::from_millis(limits::CLIENT_BACKOFF_MAX_MS), "{late:?}");
        assert_eq!(backoff.pause(Some(Duration::from_secs(9))), Duration::from_secs(9));
    }
}
