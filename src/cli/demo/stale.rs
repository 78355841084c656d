//! Completions of leases that are gone, sent all the same.
//!
//! The SDK never settles a lease that it knows to be lost. A worker that lay frozen in another
//! language's client, or half a program that went on by itself, would: so the demo's workers insist,
//! past the SDK, and write down that they were refused.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::ledger::{Pen, What};
use crate::client::Client;
use crate::client::worker::Lease;
use crate::proto::v1::work_request::Request;
use crate::proto::v1::work_response::Response;
use crate::proto::v1::worker_service_client::WorkerServiceClient;
use crate::proto::v1::{Completion, Done, Drain, Hello, Outcome, WorkRequest};

/// Lost leases that wait for their completion; more than a worker has in hand.
const WAITING: usize = 64;
/// One try at one node.
const TRY_FOR: Duration = Duration::from_secs(3);
const TRIES: usize = 10;

/// A lease that is gone.
pub struct Stale {
    queue: String,
    id: String,
    fence: u64,
}

impl Stale {
    pub fn of(lease: &Lease) -> Self {
        Self { queue: lease.queue.to_string(), id: lease.id.to_string(), fence: lease.fence }
    }
}

/// Hands over lost leases without waiting.
pub struct Sender(mpsc::Sender<Stale>);

impl Sender {
    pub fn insist(&self, stale: Stale) {
        // Full: enough of them are under way.
        let _ = self.0.try_send(stale);
    }
}

pub fn channel() -> (Sender, mpsc::Receiver<Stale>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Sender(sender), receiver)
}

/// Completes what is handed over until the sender is gone, and writes down the answers.
pub async fn insist(client: Client, pen: Arc<Pen>, mut leases: mpsc::Receiver<Stale>) {
    let addrs = client.addresses();
    let mut batch = Vec::new();
    while leases.recv_many(&mut batch, WAITING).await > 0 {
        for (addr, _) in addrs.iter().cycle().zip(0..TRIES) {
            if let Ok(Ok(outcomes)) = timeout(TRY_FOR, complete(addr, client.mint_id(), &batch)).await {
                outcomes.iter().for_each(|outcome| note(&pen, outcome));
                break;
            }
        }
        batch.clear();
    }
}

fn note(pen: &Pen, outcome: &Outcome) {
    let refusal = outcome.status.as_ref().filter(|status| status.code != 0);
    let what = match refusal {
        Some(status) => What::Refused { reason: status.message.clone() },
        None => What::Completed,
    };
    pen.write(&outcome.id, outcome.fence, what);
}

/// Sends completions on a session of its own: they stand or fall by their fences alone.
async fn complete(addr: &str, session: String, leases: &[Stale]) -> anyhow::Result<Vec<Outcome>> {
    let channel = Endpoint::from_shared(format!("http://{addr}"))?.connect().await?;
    let hello = Hello {
        worker: "stubborn".into(),
        session,
        queues: leases.iter().take(1).map(|lease| lease.queue.clone()).collect(),
        // It wants no work.
        kinds: vec!["none".into()],
        max_in_flight: 1,
        ..Default::default()
    };
    let completions = leases.iter().map(|lease| Completion {
        queue: lease.queue.clone(),
        id: lease.id.clone(),
        fence: lease.fence,
        result: b"stale".as_slice().into(),
        ..Default::default()
    });
    let request = |request| WorkRequest { received_fence: 0, request: Some(request) };
    let (requests, receiver) = mpsc::channel(3);
    requests.send(request(Request::Hello(hello))).await?;
    requests.send(request(Request::Done(Done { completions: completions.collect() }))).await?;
    let mut responses = WorkerServiceClient::new(channel).work(ReceiverStream::new(receiver)).await?.into_inner();
    let mut outcomes = Vec::new();
    while outcomes.len() < leases.len() {
        let response = responses.message().await?.ok_or_else(|| anyhow::anyhow!("the stream ended"))?;
        if let Some(Response::Settled(settled)) = response.response {
            outcomes.extend(settled.outcomes);
        }
    }
    requests.send(request(Request::Drain(Drain {}))).await?;
    Ok(outcomes)
}
