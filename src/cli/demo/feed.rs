//! Submits the packages, paced, and notes what was confirmed and when.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use indicatif::ProgressBar;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use super::QUEUE;
use crate::client::{Client, Error, NewPackage, Submitted, Submitter, Ticket};

/// How often a few packages are submitted.
const BEAT: Duration = Duration::from_millis(5);

/// The submitting task. Ends when dropped.
pub struct Feed(AbortOnDropHandle<anyhow::Result<Fed>>);

/// What was submitted.
#[derive(Debug, Default)]
pub struct Fed {
    pub submitted: u64,
    /// Ids that were answered, in no order.
    pub confirmed: Vec<String>,
    /// Ids whose outcome is unknown: they may be there or not.
    pub unknown: Vec<String>,
    pub longest_gap: Duration,
    /// When the longest gap ended. None: nothing was confirmed.
    pub longest_gap_end: Option<Instant>,
}

impl Feed {
    /// Starts submitting `packages` over `spread`. The second part tells how many are confirmed.
    pub fn start(client: Client, packages: u64, spread: Duration, bar: ProgressBar) -> (Self, watch::Receiver<u64>) {
        let (progress, receiver) = watch::channel(0);
        let task = tokio::spawn(feed(client, packages, spread, progress, bar));
        (Self(AbortOnDropHandle::new(task)), receiver)
    }

    pub async fn end(self) -> anyhow::Result<Fed> {
        self.0.await.context("the submitting task broke")?
    }
}

async fn feed(
    client: Client,
    packages: u64,
    spread: Duration,
    progress: watch::Sender<u64>,
    bar: ProgressBar,
) -> anyhow::Result<Fed> {
    let submitter = client.submitter().timeout(Duration::from_secs(20)).build();
    let started = Instant::now();
    let mut fed = Fed::default();
    let mut gaps = Gaps { last: started, longest: Duration::ZERO, longest_end: None };
    let mut open = FuturesUnordered::new();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let all_sent = fed.submitted == packages;
        tokio::select! {
            _ = beat.tick(), if !all_sent => {
                let share = started.elapsed().as_secs_f64() / spread.as_secs_f64();
                let due = ((packages as f64 * share) as u64).clamp(fed.submitted, packages);
                for number in fed.submitted..due {
                    open.push(hand_in(&submitter, number).await?);
                }
                fed.submitted = due;
            }
            Some((id, sent, answer)) = open.next() => match answer {
                Ok(_) => {
                    gaps.confirmed(sent, Instant::now());
                    fed.confirmed.push(id);
                    bar.inc(1);
                    progress.send_replace(fed.confirmed.len() as u64);
                }
                Err(error) if error.is_unknown() => fed.unknown.push(id),
                Err(error) => return Err(error).with_context(|| format!("package {id} was refused")),
            },
            else => break,
        }
    }
    submitter.close().await;
    fed.longest_gap = gaps.longest;
    fed.longest_gap_end = gaps.longest_end;
    Ok(fed)
}

type Answer = (String, Instant, Result<Submitted, Error>);

async fn hand_in(submitter: &Submitter, number: u64) -> anyhow::Result<impl Future<Output = Answer> + use<>> {
    let package = package(number);
    let id = package.id.clone();
    let sent = Instant::now();
    let ticket: Ticket = submitter.submit(package).await?;
    Ok(async move { (id, sent, ticket.await) })
}

/// Mixed priorities, sizes and kinds.
fn package(number: u64) -> NewPackage {
    let size = 64 + (number * 37 % 192) as usize;
    NewPackage::new(QUEUE, vec![b'.'; size])
        .with_id(format!("demo-{number:07}"))
        .with_priority((number * 7 % 10) as u32)
        .with_kind(["parcel", "letter", "crate"][(number % 3) as usize])
}

/// The longest time in which something waited for its confirmation and nothing was confirmed.
struct Gaps {
    last: Instant,
    longest: Duration,
    longest_end: Option<Instant>,
}

impl Gaps {
    fn confirmed(&mut self, sent: Instant, now: Instant) {
        let gap = now.duration_since(self.last.max(sent));
        if gap >= self.longest {
            self.longest = gap;
            self.longest_end = Some(now);
        }
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_pause_is_no_gap() {
        let at = Instant::now();
        let ms = |ms| at + Duration::from_millis(ms);
        let mut gaps = Gaps { last: at, longest: Duration::ZERO, longest_end: None };
        gaps.confirmed(ms(0), ms(5));
        // Nothing was under way for 100 ms; then one took 2 ms.
        gaps.confirmed(ms(105), ms(107));
        assert_eq!(gaps.longest, Duration::from_millis(5));
        // Two waited from 110 on; the first confirm came at 150.
        gaps.confirmed(ms(110), ms(150));
        gaps.confirmed(ms(110), ms(151));
        assert_eq!((gaps.longest, gaps.longest_end), (Duration::from_millis(40), Some(ms(150))));
    }
}
