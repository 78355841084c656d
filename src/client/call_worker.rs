//! Work by single calls, for programs that hold no stream open: cron jobs, functions, scripts.

use std::time::Duration;

use bytes::Bytes;
use tonic::transport::Channel;

use super::call::Repeat;
use super::package::{duration, std_duration};
use super::packages::malformed;
use super::worker::{Completion, Failure, Settlement};
use super::{Client, Error, Package};
use crate::proto::v1;
use crate::proto::v1::worker_service_client::WorkerServiceClient;
use crate::types::limits;

/// A worker that works by calls. What it leased is in hand at once and ends by itself: lease what can be
/// begun now, and extend what takes long. [`super::Worker`] does all that by itself, and is heard to die.
pub struct CallWorker {
    client: Client,
    request: v1::LeasePackagesRequest,
}

/// What one call leased.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    /// In the order of their fences. May be empty.
    pub leases: Vec<CallLease>,
    /// Queues that are sealed, with nothing left to do.
    pub ended_queues: Vec<String>,
    /// An operator asks this worker to finish what it holds and stop.
    pub draining: bool,
}

/// A package in this worker's hands.
#[derive(Clone, Debug, Default)]
pub struct CallLease {
    pub package: Package,
    pub fence: u64,
    /// How long it lasts from when it was granted.
    pub lasts: Duration,
    /// 1 for the first.
    pub attempt: u32,
    /// What an earlier holder kept with it.
    pub checkpoint: Bytes,
}

impl Client {
    /// A worker of these queues that works by calls; its session is new.
    pub fn call_worker<S: Into<String>>(
        &self,
        name: impl Into<String>,
        queues: impl IntoIterator<Item = S>,
    ) -> CallWorker {
        let request = v1::LeasePackagesRequest {
            worker: name.into(),
            session: self.mint_id(),
            queues: queues.into_iter().map(Into::into).collect(),
            ..Default::default()
        };
        CallWorker { client: self.clone(), request }
    }
}

impl CallWorker {
    /// Takes up an earlier session, of a process that is no more: the next call gets all it held.
    pub fn with_session(mut self, session: impl Into<String>) -> Self {
        self.request.session = session.into();
        self
    }

    /// Only packages of these kinds.
    pub fn with_kinds<S: Into<String>>(mut self, kinds: impl IntoIterator<Item = S>) -> Self {
        self.request.kinds = kinds.into_iter().map(Into::into).collect();
        self
    }

    pub fn session(&self) -> &str {
        &self.request.session
    }

    /// Leases up to `max` packages, waiting up to `wait` for the first. Survives changes of the leader;
    /// what a lost answer held comes with the next one, under the same fences.
    pub async fn lease(&mut self, max: u32, wait: Duration) -> Result<Leases, Error> {
        let request = v1::LeasePackagesRequest { max, wait: Some(duration(wait)), ..self.request.clone() };
        let within = wait + self.client.timeout;
        let try_for = wait + Duration::from_millis(limits::CLIENT_TRY_MS);
        let rpc = |channel, request| async move { workers(channel).lease_packages(request).await };
        let answer = self.client.call_within(Repeat::Safe, within, try_for, request, rpc).await?;
        let mut leases = Vec::with_capacity(answer.deliveries.len());
        for delivery in answer.deliveries {
            self.request.received_fence = self.request.received_fence.max(delivery.fence);
            leases.push(CallLease {
                package: delivery.package.ok_or_else(|| malformed("a delivery without its package"))?,
                fence: delivery.fence,
                lasts: std_duration(delivery.lease),
                attempt: delivery.attempt,
                checkpoint: delivery.checkpoint,
            });
        }
        Ok(Leases { leases, ended_queues: answer.ended_queues, draining: answer.draining })
    }

    /// Ends the lease as its work ended: a completion, or a failure or release.
    pub async fn settle(&self, lease: &CallLease, result: Result<Completion, Failure>) -> Result<(), Error> {
        let (queue, id) = (&lease.package.queue, &lease.package.id);
        match Settlement::of(queue, id, lease.fence, result) {
            Settlement::Done(completion) => {
                let request = v1::CompletePackageRequest { completion: Some(completion) };
                let rpc = |channel, request| async move { workers(channel).complete_package(request).await };
                self.client.call(Repeat::Safe, request, rpc).await.map(drop)
            }
            Settlement::Fail(failed) => {
                let request = v1::FailPackageRequest { failed: Some(failed) };
                let rpc = |channel, request| async move { workers(channel).fail_package(request).await };
                self.client.call(Repeat::Safe, request, rpc).await.map(drop)
            }
            Settlement::Release(held) => {
                let request = v1::ReleasePackageRequest { held: Some(held) };
                let rpc = |channel, request| async move { workers(channel).release_package(request).await };
                self.client.call(Repeat::Safe, request, rpc).await.map(drop)
            }
        }
    }

    /// Keeps the lease for this long from now (the queue's lease if `None`), with a checkpoint for the
    /// next holder if it is not empty.
    pub async fn extend(&self, lease: &CallLease, by: Option<Duration>, checkpoint: Bytes) -> Result<(), Error> {
        let extension = v1::Extension {
            queue: lease.package.queue.clone(),
            id: lease.package.id.clone(),
            fence: lease.fence,
            by: by.map(duration),
            checkpoint,
        };
        let request = v1::ExtendPackageRequest { extension: Some(extension) };
        let rpc = |channel, request| async move { workers(channel).extend_package(request).await };
        self.client.call(Repeat::Safe, request, rpc).await.map(drop)
    }
}

fn workers(channel: Channel) -> WorkerServiceClient<Channel> {
    WorkerServiceClient::new(channel)
        .max_decoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES)
}
