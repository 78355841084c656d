//! Waiting until a package is due, to some microseconds.
//!
//! The runtime's own timers count whole milliseconds, which would be half of the latency measured.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// A timer of the kernel, for one task.
pub struct Pacer(AsyncFd<OwnedFd>);

impl Pacer {
    #[expect(deprecated, reason = "what is unsafe for any type holds for an `OwnedFd`, and nothing here is unsafe")]
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self(AsyncFd::new(timer)?))
    }

    /// Returns no earlier than at `due`, and at once if that is past.
    pub async fn until(&mut self, due: Instant) -> io::Result<()> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(left) };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            let mut ready = self.0.readable().await?;
            let mut expirations = [0; 8];
            match rustix::io::read(ready.get_inner(), &mut expirations) {
                Ok(_) | Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_before_it_is_due_and_the_late_at_once() {
        let mut pacer = Pacer::new().expect("the kernel has timers");
        let began = Instant::now();
        for step in 1..=20 {
            let due = began + Duration::from_micros(700 * step);
            pacer.until(due).await.expect("it ticks");
            assert!(Instant::now() >= due);
        }
        let past = Instant::now();
        pacer.until(began).await.expect("it is past");
        assert!(past.elapsed() < Duration::from_millis(50));
    }
}
