//! Puts the three together: a day's orders, workers for them, and the report in the evening.

use std::fmt;
use std::time::Duration;

use tokio::task::JoinSet;
use wharf::client::{Client, Delivery, Failure};

use super::dispatcher::{Dispatcher, Kind, Order};
use super::notifier::{End, Notifier};
use super::state::{Counts, Status};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long the whole may take.
const DAY: Duration = Duration::from_secs(120);
const WORKERS: usize = 3;

/// How it went.
#[derive(Debug)]
pub struct Report {
    pub orders: usize,
    pub done: usize,
    pub failed: usize,
    /// Orders whose end was told otherwise than the cluster knows it.
    pub told_wrongly: Vec<String>,
    pub counts: Counts,
}

impl Report {
    /// Every order has one end, and it was told as it is.
    pub fn is_good(&self) -> bool {
        self.done + self.failed == self.orders && self.told_wrongly.is_empty() && self.counts.open() == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { orders, done, failed, told_wrongly, counts } = self;
        write!(f, "{orders} orders: {done} done, {failed} failed, {} told wrongly; {counts}", told_wrongly.len())
    }
}

/// A day with so many orders.
pub async fn run(client: &Client, orders: usize) -> Result<Report, Error> {
    let dispatcher = Dispatcher::open(client).await?;
    let status = Status::new(client);
    let notifier = Notifier::new(client);

    let mut workers = JoinSet::new();
    for n in 1..=WORKERS {
        let worker = client.worker(Kind::QUEUES).name(format!("worker-{n}")).concurrency(4).build();
        workers.spawn(async move { worker.run(carry_out).await });
    }

    let mut ends = JoinSet::new();
    let mut ids = Vec::new();
    for number in 0..orders {
        let order = Order {
            number: format!("order-{number}"),
            kind: if number % 3 == 0 { Kind::Invoice } else { Kind::Parcel },
            urgent: number % 10 == 0,
            text: if number % 25 == 24 { String::new() } else { format!("goods {number}") },
        };
        // The same order twice, as a client that got no answer would: it is one order.
        let ticket = dispatcher.take(&order).await?;
        if number % 7 == 0 {
            assert_eq!(dispatcher.take(&order).await?, ticket);
        }
        // How it stands is known from that moment on.
        status.of(&ticket).await?;
        ids.push(ticket.clone());
        let notifier = notifier.clone();
        ends.spawn(async move { notifier.end_of(ticket, DAY).await });
    }
    dispatcher.close().await?;

    let (mut done, mut failed, mut told) = (0, 0, Vec::new());
    while let Some(end) = ends.join_next().await {
        let (ticket, end) = end??;
        match &end {
            End::Done(_) => done += 1,
            End::Failed(_) => failed += 1,
        }
        told.push((ticket, end));
    }
    // The workers hear that there is no more, and go by themselves.
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    let mut told_wrongly = Vec::new();
    for (ticket, end) in told {
        if !status.of(&ticket).await?.agrees_with(&end) {
            told_wrongly.push(ticket.id);
        }
    }
    let counts = status.counts().await?;
    Ok(Report { orders: ids.len(), done, failed, told_wrongly, counts })
}

/// What a worker does. An order without text can never be carried out.
async fn carry_out(order: Delivery) -> Result<String, Failure> {
    tokio::time::sleep(Duration::from_millis(15)).await;
    let text = std::str::from_utf8(&order.payload)?;
    if text.is_empty() {
        return Err(Failure::permanent("nothing is ordered").with_code("EMPTY"));
    }
    Ok(format!("{text}: sent"))
}
