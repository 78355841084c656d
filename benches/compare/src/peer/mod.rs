//! The peers, each as the workload sees it: somebody who takes packages, confirms them and delivers them.
//!
//! A peer's client is used as its documentation shows, with explicit acks, one for each package.

pub mod nats;
pub mod rabbit;

use anyhow::Result;
use bytes::Bytes;
use futures::future::BoxFuture;

/// A running peer.
pub trait Peer: Clone + Send + Sync + 'static {
    type Producer: Producer;
    type Consumer: Consumer;

    /// Makes the queues, durable on three nodes, and says which node leads the first.
    fn declare(&self, queues: usize) -> impl Future<Output = Result<usize>> + Send;

    /// The same peer for clients that were told of all nodes but one.
    fn without(&self, node: usize) -> Self;

    fn producer(&self, number: usize) -> impl Future<Output = Result<Self::Producer>> + Send;

    /// Consumes one queue, with at most `prefetch` packages in hand.
    fn consumer(
        &self,
        number: usize,
        queue: usize,
        prefetch: usize,
    ) -> impl Future<Output = Result<Self::Consumer>> + Send;
}

/// Resolves when a package is confirmed, or certainly will not be.
pub type Confirm = BoxFuture<'static, Result<()>>;

pub trait Producer: Clone + Send + Sync + 'static {
    /// Sends a package on its way.
    fn publish(&self, queue: usize, body: Bytes) -> impl Future<Output = Result<Confirm>> + Send;
}

pub trait Consumer: Send + 'static {
    /// Takes the next package, shows its body and acks it. False: there will be none.
    fn work_one(&mut self, seen: impl FnOnce(&[u8]) + Send) -> impl Future<Output = Result<bool>> + Send;
}

/// The name of queue `number`.
fn queue_name(number: usize) -> String {
    format!("bench{number}")
}
