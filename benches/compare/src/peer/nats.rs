//! NATS JetStream: a queue is a stream of three replicas with work-queue retention and one durable consumer.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::{Instant, sleep};

use super::{Confirm, queue_name};

/// A new cluster places a stream once it has its leader and has heard what room each node has. A node says so
/// at its start and then rarely: now and then this takes a while.
const READY_WITHIN: Duration = Duration::from_secs(120);
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// Packages that a stream lets be under way without an ack: never what holds this workload back.
const MAX_ACK_PENDING: i64 = 100_000;

#[derive(Clone)]
pub struct Nats {
    /// `host:port` of each node, by number; clients know those that are named.
    urls: Vec<Option<String>>,
}

impl Nats {
    pub fn new(ports: &[u16]) -> Self {
        Self { urls: ports.iter().map(|port| Some(format!("nats://127.0.0.1:{port}"))).collect() }
    }

    async fn connect(&self) -> Result<Context> {
        let urls: Vec<&str> = self.urls.iter().flatten().map(String::as_str).collect();
        let client = async_nats::connect(urls).await.context("connecting to NATS")?;
        Ok(jetstream::new(client))
    }

    async fn declare_one(context: &Context, queue: usize) -> Result<usize> {
        let config = Config {
            name: queue_name(queue),
            subjects: vec![queue_name(queue)],
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            num_replicas: 3,
            ..Config::default()
        };
        let mut stream = context.get_or_create_stream(config).await?;
        let consumer = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            max_ack_pending: MAX_ACK_PENDING,
            ..pull::Config::default()
        };
        stream.get_or_create_consumer(CONSUMER, consumer).await?;
        let cluster = stream.info().await?.cluster.clone().context("the stream tells of no cluster")?;
        let current = cluster.replicas.iter().filter(|replica| replica.current).count();
        if current != 2 {
            bail!("stream {} has {current} of 2 followers up to date", queue_name(queue));
        }
        let leader = cluster.leader.context("the stream has no leader")?;
        node_number(&leader).ok_or_else(|| anyhow!("the leader has an unknown name: {leader}"))
    }
}

const CONSUMER: &str = "work";

/// The server name of node `number`.
pub fn node_name(number: usize) -> String {
    format!("n{}", number + 1)
}

fn node_number(name: &str) -> Option<usize> {
    name.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)
}

impl super::Peer for Nats {
    type Producer = Context;
    type Consumer = Consumer;

    async fn declare(&self, queues: usize) -> Result<usize> {
        let began = Instant::now();
        let context = loop {
            match self.connect().await {
                Ok(context) => break context,
                Err(error) if began.elapsed() > READY_WITHIN => return Err(error),
                Err(_) => sleep(RETRY_EVERY).await,
            }
        };
        let mut leader = None;
        for queue in 0..queues {
            let of_this = loop {
                match Self::declare_one(&context, queue).await {
                    Ok(leader) => break leader,
                    Err(error) if began.elapsed() > READY_WITHIN => return Err(error.context("making a stream")),
                    Err(_) => sleep(RETRY_EVERY).await,
                }
            };
            leader.get_or_insert(of_this);
        }
        leader.context("no queue was asked for")
    }

    fn without(&self, node: usize) -> Self {
        let mut left = self.clone();
        left.urls[node] = None;
        left
    }

    async fn producer(&self, _: usize) -> Result<Context> {
        self.connect().await
    }

    async fn consumer(&self, _: usize, queue: usize, prefetch: usize) -> Result<Consumer> {
        let stream = self.connect().await?.get_stream(queue_name(queue)).await?;
        // Its error is no `std::error::Error`.
        let consumer: PullConsumer = stream.get_consumer(CONSUMER).await.map_err(|error| anyhow!("{error}"))?;
        let messages = consumer.stream().max_messages_per_batch(prefetch).messages().await?;
        Ok(Consumer { messages })
    }
}

impl super::Producer for Context {
    async fn publish(&self, queue: usize, body: Bytes) -> Result<Confirm> {
        let ack = Context::publish(self, queue_name(queue), body).await?;
        Ok(Box::pin(async move {
            ack.await?;
            Ok(())
        }))
    }
}

pub struct Consumer {
    messages: pull::Stream,
}

impl super::Consumer for Consumer {
    async fn work_one(&mut self, seen: impl FnOnce(&[u8]) + Send) -> Result<bool> {
        let Some(message) = self.messages.next().await else { return Ok(false) };
        let message = message?;
        seen(&message.payload);
        message.ack().await.map_err(|error| anyhow!("{error}"))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_known_by_their_names() {
        assert_eq!(node_number(&node_name(2)), Some(2));
        assert_eq!(node_number("n0"), None);
        assert_eq!(node_number("other"), None);
    }
}
