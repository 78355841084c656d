//! Drives a peer with a workload, through the peer's own client.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::figures::{Cpu, Figures, Kill};
use crate::meter::{Meter, Sent};
use crate::mode::{KILL_AFTER_SECONDS, Workload};
use crate::peer::{Consumer as _, Peer, Producer};
use crate::servers::Cluster;

/// A run in which nothing is delivered for so long has failed.
const STALL: Duration = Duration::from_secs(60);
/// After a kill a delivery may be late: NATS gives a package to another consumer after 30 s.
const STALL_AFTER_KILL: Duration = Duration::from_secs(40);
/// What a server does behind a backlog (flushes, compactions) ends within this, mostly.
const SETTLE: Duration = Duration::from_secs(3);
/// A client that waits so long for its confirm tries again, so often, after such a pause.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2);
const TRIES: usize = 200;
const PAUSE: Duration = Duration::from_millis(20);

/// Runs the workload on a cluster that has just come up.
pub async fn run<P: Peer>(peer: &P, cluster: &mut Cluster, workload: Workload) -> Result<Figures> {
    let leader = peer.declare(workload.queues).await?;
    match workload.kill {
        true => run_and_kill(peer, cluster, workload, leader).await,
        false => run_through(peer, cluster, workload).await,
    }
}

async fn run_through<P: Peer>(peer: &P, cluster: &Cluster, workload: Workload) -> Result<Figures> {
    let mut producers = Vec::new();
    for number in 0..workload.producers {
        producers.push(peer.producer(number).await.context("a producer")?);
    }
    // Those who consume from the beginning are there before the clock starts.
    let cpu_before = cluster.cpu_us()?;
    let meter = Arc::new(Meter::start(workload.count));
    let mut consumers = Consumers::default();
    if !workload.backlog {
        consumers.start(peer, &meter, workload);
    }
    let mut tasks = JoinSet::new();
    for (number, producer) in producers.into_iter().enumerate() {
        tasks.spawn(produce(producer, Arc::clone(&meter), workload, number as u64));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let publish_seconds = meter.confirmed().last_seconds();
    let mut figures = Figures::default();
    let mut drain_from = 0.0;
    if workload.backlog {
        sleep(SETTLE).await;
        figures.rss_mb = Some(cluster.rss_mb()?);
        figures.disk_mb = Some(cluster.disk_mb()?);
        drain_from = meter.seconds();
        consumers.start(peer, &meter, workload);
    }
    if !meter.all_delivered(STALL).await {
        let delivered = meter.delivered().distinct;
        bail!("nothing was delivered for {STALL:?}: {delivered} of {} came", workload.count);
    }
    let cpu_us = cluster.cpu_us()? - cpu_before;
    let count = workload.count as f64;
    let (confirmed, delivered) = (meter.confirmed(), meter.delivered());
    figures.publish_per_s = Some(count / publish_seconds);
    figures.confirm_ms = Some(confirmed.quantiles());
    figures.e2e_ms = Some(delivered.quantiles());
    figures.cpu_us_per_package = Some(Cpu { total: Some(cpu_us / count) });
    match workload.backlog {
        true => figures.drain_per_s = Some(count / (delivered.last_seconds() - drain_from)),
        false => figures.cycle_per_s = Some(count / delivered.last_seconds()),
    }
    Ok(figures)
}

/// One producer's share: every so-many-th package, within its window.
async fn produce<P: Producer>(producer: P, meter: Arc<Meter>, workload: Workload, first: u64) -> Result<()> {
    let window = Arc::new(Semaphore::new(workload.window));
    let mut confirms = JoinSet::new();
    for number in (first..workload.count).step_by(workload.producers) {
        let permit = Arc::clone(&window).acquire_owned().await?;
        let sent = meter.due(number, workload.rate).await;
        let confirm = producer.publish(queue_of(number, workload), sent.body(workload.payload_bytes)).await?;
        let meter = Arc::clone(&meter);
        confirms.spawn(async move {
            confirm.await?;
            meter.confirm(sent);
            drop(permit);
            anyhow::Ok(())
        });
        while let Some(ended) = confirms.try_join_next() {
            ended?.context("a publish was not confirmed")?;
        }
    }
    while let Some(ended) = confirms.join_next().await {
        ended?.context("a publish was not confirmed")?;
    }
    Ok(())
}

/// A producer's packages go around the queues, whatever divides what.
fn queue_of(number: u64, workload: Workload) -> usize {
    let (producers, queues) = (workload.producers as u64, workload.queues as u64);
    ((number / producers + number % producers) % queues) as usize
}

/// The consumers of a run; they end with it.
#[derive(Default)]
struct Consumers(Vec<AbortHandle>);

impl Consumers {
    fn start<P: Peer>(&mut self, peer: &P, meter: &Arc<Meter>, workload: Workload) {
        for number in 0..workload.consumers {
            let task = tokio::spawn(consume(peer.clone(), Arc::clone(meter), workload, number));
            self.0.push(task.abort_handle());
        }
    }
}

impl Drop for Consumers {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Consumes until it is aborted; a consumer that lost its node comes back.
async fn consume<P: Peer>(peer: P, meter: Arc<Meter>, workload: Workload, number: usize) {
    loop {
        let worked = async {
            let mut consumer = peer.consumer(number, number % workload.queues, workload.prefetch).await?;
            while consumer.work_one(|body| meter.deliver(body)).await? {}
            anyhow::Ok(())
        };
        match worked.await {
            Ok(()) => {}
            Err(_) if workload.kill => {}
            Err(error) => eprintln!("consumer {number}: {error:#}"),
        }
        sleep(PAUSE).await;
    }
}

/// All clients are at the nodes that live on: the gap is the cluster's, not that of a reconnect.
async fn run_and_kill<P: Peer>(peer: &P, cluster: &mut Cluster, workload: Workload, leader: usize) -> Result<Figures> {
    let survivors = peer.without(leader);
    let producer = survivors.producer(0).await.context("a producer")?;
    let meter = Arc::new(Meter::start(workload.count));
    let mut consumers = Consumers::default();
    consumers.start(&survivors, &meter, workload);
    let publish = publish_all(producer, Arc::clone(&meter), workload);
    let kill = async {
        sleep(Duration::from_secs(KILL_AFTER_SECONDS)).await;
        cluster.kill_node(leader).await
    };
    let (published, killed) = tokio::join!(publish, kill);
    killed?;
    published?;
    meter.all_delivered(STALL_AFTER_KILL).await;
    let (confirmed, delivered) = (meter.confirmed(), meter.delivered());
    let kill = Kill {
        confirm_gap_ms: confirmed.longest_gap_ms(),
        delivery_gap_ms: delivered.longest_gap_ms(),
        lost: confirmed.missing_in(&delivered),
        duplicates: delivered.repeats,
        unconfirmed: Some(workload.count - confirmed.distinct),
    };
    let (confirm_ms, e2e_ms) = (Some(confirmed.quantiles()), Some(delivered.quantiles()));
    Ok(Figures { confirm_ms, e2e_ms, kill: Some(kill), ..Figures::default() })
}

/// Each package when it is due, whatever became of those before it.
async fn publish_all<P: Producer>(producer: P, meter: Arc<Meter>, workload: Workload) -> Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..workload.count {
        let sent = meter.due(number, workload.rate).await;
        tasks.spawn(publish_until_confirmed(producer.clone(), Arc::clone(&meter), workload, sent));
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

async fn publish_until_confirmed<P: Producer>(producer: P, meter: Arc<Meter>, workload: Workload, sent: Sent) {
    let body = sent.body(workload.payload_bytes);
    for _ in 0..TRIES {
        let publish = async { producer.publish(queue_of(sent.number, workload), body.clone()).await?.await };
        if let Ok(Ok(())) = timeout(CONFIRM_WITHIN, publish).await {
            return meter.confirm(sent);
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::{Mode, Size};

    #[test]
    fn packages_go_around_all_queues_from_every_producer() {
        let workload = Mode::Cycle4.workload(Size::default());
        let mut counts = [[0; 4]; 4];
        (0..1600).for_each(|number| counts[(number % 4) as usize][queue_of(number, workload)] += 1);
        assert_eq!(counts, [[100; 4]; 4]);
    }
}
