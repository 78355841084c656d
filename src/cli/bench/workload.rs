//! Producers and consumers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::pacer::Pacer;
use super::plan::{Mode, Plan, Stamp};
use super::tally::{Lane, Tally};
use crate::client::worker::{Event, Kind};
use crate::client::{Client, Completion, Error, Failure};
use crate::types::limits;

/// A package that is not confirmed by then ends the run.
const CONFIRM_WITHIN: Duration = Duration::from_secs(60);
/// What the consumers are called.
const NAME: &str = "wharf-bench";

/// What producers and consumers share.
#[derive(Clone)]
pub struct Scene {
    pub plan: Arc<Plan>,
    pub tally: Arc<Tally>,
    /// The addresses, as `Client` takes them.
    pub addrs: Arc<str>,
    /// Names, by number.
    pub queues: Arc<[String]>,
}

/// Tasks that end with the first error, or all.
pub type Crew = JoinSet<anyhow::Result<()>>;

impl Scene {
    /// Starts all producers. Each has its own connection.
    pub fn produce(&self) -> Result<Crew, Error> {
        let mut crew = Crew::new();
        let filler = Bytes::from(vec![b'x'; self.plan.payload_bytes]);
        for producer in 0..self.plan.producers {
            let client = self.client()?;
            match self.plan.mode {
                Mode::Unary { callers } => {
                    // Callers share the producers' connections.
                    for caller in (producer..callers).step_by(self.plan.producers as usize) {
                        crew.spawn(self.clone().call(client.clone(), caller, callers, filler.clone()));
                    }
                }
                _ => drop(crew.spawn(self.clone().stream(client, producer, filler.clone()))),
            }
        }
        Ok(crew)
    }

    /// Starts all consumers. They end with the work: once all queues are sealed and empty.
    pub fn consume(&self) -> Result<Crew, Error> {
        let mut crew = Crew::new();
        for consumer in 0..self.plan.consumers {
            crew.spawn(self.clone().work(self.client()?, consumer));
        }
        Ok(crew)
    }

    fn client(&self) -> Result<Client, Error> {
        Client::builder(&self.addrs).timeout(CONFIRM_WITHIN).build()
    }

    async fn stream(self, client: Client, producer: u64, filler: Bytes) -> anyhow::Result<()> {
        let Self { plan, tally, queues, .. } = self;
        let lane = tally.producer();
        let mut pace = Pace::new(&plan, &tally)?;
        let noticed = tally.clone();
        let submitter = client
            .submitter()
            .window(plan.window)
            .batch(if plan.single { 1 } else { limits::MAX_PACKAGES_A_SUBMIT })
            .on_retry(move |packages, error| noticed.retried(packages, error))
            .build();
        for number in plan.share(producer, plan.producers) {
            let due_us = plan.due_us(number);
            pace.until(due_us).await?;
            let room = submitter.reserve().await?;
            if tally.has_failed() || plan.is_over(tally.now_us()) {
                break;
            }
            let stamp = Stamp { number, due_us: due_us.unwrap_or_else(|| tally.now_us()) };
            let package = stamp.package(&queues[plan.queue_of(number)], &filler);
            let (tally, lane) = (tally.clone(), lane.clone());
            room.submit_then(package, move |answer| tally.answered(&lane, stamp, answer));
        }
        submitter.close().await;
        Ok(())
    }

    async fn call(self, client: Client, caller: u64, callers: u64, filler: Bytes) -> anyhow::Result<()> {
        let Self { plan, tally, queues, .. } = self;
        let lane = tally.producer();
        let mut pace = Pace::new(&plan, &tally)?;
        for number in plan.share(caller, callers) {
            let due_us = plan.due_us(number);
            pace.until(due_us).await?;
            if tally.has_failed() || plan.is_over(tally.now_us()) {
                break;
            }
            let stamp = Stamp { number, due_us: due_us.unwrap_or_else(|| tally.now_us()) };
            let answer = client.submit(stamp.package(&queues[plan.queue_of(number)], &filler)).await;
            tally.answered(&lane, stamp, answer);
        }
        Ok(())
    }

    async fn work(self, client: Client, consumer: u64) -> anyhow::Result<()> {
        let Self { plan, tally, queues, .. } = self;
        let lane: Arc<Lane> = tally.consumer();
        let settled = tally.clone();
        let mine = plan.queues_of(consumer).into_iter().map(|queue| queues[queue].clone());
        let worker = client
            .worker(mine)
            .name(NAME)
            .max_in_flight(plan.prefetch)
            .batch(if plan.single { 1 } else { limits::MAX_SETTLEMENTS_A_MESSAGE })
            .on_event(move |event| {
                if let Event::Settled { kind: Kind::Done, result: Ok(()), .. } = event {
                    settled.settled();
                }
            });
        let ended = worker.build().run_inline(move |delivery| {
            if let Some(stamp) = Stamp::of(&delivery) {
                tally.delivered(&lane, stamp);
            }
            Ok::<_, Failure>(Completion::default())
        });
        ended.await?;
        Ok(())
    }
}

/// A producer's schedule.
struct Pace<'a> {
    tally: &'a Tally,
    /// None: every package is due at once.
    pacer: Option<Pacer>,
}

impl<'a> Pace<'a> {
    fn new(plan: &Plan, tally: &'a Tally) -> anyhow::Result<Self> {
        Ok(Self { tally, pacer: plan.rate.map(|_| Pacer::new()).transpose()? })
    }

    async fn until(&mut self, due_us: Option<u64>) -> anyhow::Result<()> {
        if let (Some(pacer), Some(due_us)) = (&mut self.pacer, due_us) {
            pacer.until(self.tally.instant(due_us)).await?;
        }
        Ok(())
    }
}

/// Waits for all tasks; the first error counts.
pub async fn all(crew: &mut Crew) -> anyhow::Result<()> {
    while let Some(ended) = crew.join_next().await {
        ended??;
    }
    Ok(())
}
