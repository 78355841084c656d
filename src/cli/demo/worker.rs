//! A worker process of the demo: works packages by waiting a little, and writes down what happens.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use parking_lot::Mutex;

use super::super::exit::Exit;
use super::ledger::{Pen, What};
use super::stale::{self, Stale};
use crate::client::worker::{Event, Kind};
use crate::client::{Client, Delivery, Failure};

/// How a package is worked: most take a few milliseconds, some long enough to be in hand when
/// their worker freezes.
const SHORT_MS: std::ops::Range<u64> = 2..16;
const LONG_MS: u64 = 200;
const LONG_EVERY: u64 = 50;
const CONCURRENCY: u32 = 8;
const MAX_IN_FLIGHT: u32 = 32;

/// A worker of `wharf demo`.
#[derive(Args, Debug)]
pub struct DemoWorker {
    #[arg(long)]
    queue: String,
    #[arg(long)]
    name: String,
    /// What happens is appended here.
    #[arg(long)]
    file: PathBuf,
}

impl DemoWorker {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let pen = Arc::new(Pen::open(&self.file)?);
        let (stale, stale_leases) = stale::channel();
        let stubborn = tokio::spawn(stale::insist(client.clone(), pen.clone(), stale_leases));
        let observer = Observer { pen: pen.clone(), started: Mutex::default(), stale };
        let worker = client
            .worker([self.queue])
            .name(self.name)
            .concurrency(CONCURRENCY)
            .max_in_flight(MAX_IN_FLIGHT)
            .on_event(move |event| observer.see(event));
        worker
            .run(move |delivery| {
                let pen = pen.clone();
                async move { work(&pen, &delivery).await }
            })
            .await?;
        stubborn.await?;
        Ok(Exit::Ok)
    }
}

async fn work(pen: &Pen, delivery: &Delivery) -> Result<String, Failure> {
    tokio::time::sleep(takes(&delivery.package.id)).await;
    pen.write(&delivery.package.id, delivery.fence, What::Executed);
    Ok(format!("fence {}", delivery.fence))
}

/// Of a package, always the same.
fn takes(id: &str) -> Duration {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(id.as_bytes());
    let dice = hasher.finish();
    let short = SHORT_MS.start + dice % (SHORT_MS.end - SHORT_MS.start);
    Duration::from_millis(if (dice >> 32) % LONG_EVERY == 0 { LONG_MS } else { short })
}

struct Observer {
    pen: Arc<Pen>,
    /// Fences of packages whose handlers began and were not settled.
    started: Mutex<HashSet<u64>>,
    stale: stale::Sender,
}

impl Observer {
    fn see(&self, event: &Event) {
        match event {
            Event::Delivered { lease, .. } => self.pen.write(&lease.id, lease.fence, What::Delivered),
            Event::Started { lease } => {
                self.started.lock().insert(lease.fence);
                self.pen.write(&lease.id, lease.fence, What::Started);
            }
            Event::Settled { lease, kind, result } => {
                self.started.lock().remove(&lease.fence);
                let what = match (kind, result) {
                    (Kind::Done, Ok(())) => What::Completed,
                    (Kind::Fail, Ok(())) => What::Failed,
                    (Kind::Release, Ok(())) => What::Released,
                    (_, Err(error)) => What::Refused { reason: error.reason().to_owned() },
                };
                self.pen.write(&lease.id, lease.fence, what);
            }
            Event::Lost { lease, .. } => {
                self.pen.write(&lease.id, lease.fence, What::Lost);
                if self.started.lock().remove(&lease.fence) {
                    // A worker that does not take no for an answer.
                    self.stale.insist(Stale::of(lease));
                }
            }
            _ => {}
        }
    }
}
