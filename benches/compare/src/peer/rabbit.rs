//! RabbitMQ: a queue is a durable quorum queue of three members; publishers wait for confirms.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::time::{Instant, sleep};

use super::{Confirm, queue_name};

/// Three Erlang nodes that boot at once on few cores and find each other.
const READY_WITHIN: Duration = Duration::from_secs(120);
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// AMQP's delivery mode of what must survive a restart.
const PERSISTENT: u8 = 2;

#[derive(Clone)]
pub struct Rabbit {
    /// The AMQP address of each node, by number; clients know those that are named.
    urls: Vec<Option<String>>,
}

/// A channel and the connection that it lives on.
#[derive(Clone)]
pub struct Line {
    channel: Channel,
    _connection: Arc<Connection>,
}

impl Rabbit {
    pub fn new(ports: &[u16]) -> Self {
        Self { urls: ports.iter().map(|port| Some(format!("amqp://guest:guest@127.0.0.1:{port}"))).collect() }
    }

    async fn open(url: &str) -> Result<Line> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        Ok(Line { channel: connection.create_channel().await?, _connection: Arc::new(connection) })
    }

    /// The first node that clients know: a client of the leader's node saves RabbitMQ a hop.
    async fn connect(&self) -> Result<Line> {
        let url = self.urls.iter().flatten().next().context("no node is left")?;
        Self::open(url).await.with_context(|| format!("connecting to {url}"))
    }
}

impl super::Peer for Rabbit {
    type Producer = Line;
    type Consumer = Consumer;

    /// A node listens once it has joined its cluster; whoever declares a queue hosts its leader.
    async fn declare(&self, queues: usize) -> Result<usize> {
        let began = Instant::now();
        for url in self.urls.iter().flatten() {
            while let Err(error) = Self::open(url).await {
                if began.elapsed() > READY_WITHIN {
                    return Err(error.context(format!("{url} did not come up")));
                }
                sleep(RETRY_EVERY).await;
            }
        }
        let line = self.connect().await?;
        for queue in 0..queues {
            let mut arguments = FieldTable::default();
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
            arguments.insert("x-quorum-initial-group-size".into(), AMQPValue::LongInt(3));
            let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
            line.channel.queue_declare(queue_name(queue).into(), options, arguments).await?;
        }
        Ok(0)
    }

    fn without(&self, node: usize) -> Self {
        let mut left = self.clone();
        left.urls[node] = None;
        left
    }

    async fn producer(&self, _: usize) -> Result<Line> {
        let line = self.connect().await?;
        line.channel.confirm_select(Default::default()).await?;
        Ok(line)
    }

    async fn consumer(&self, number: usize, queue: usize, prefetch: usize) -> Result<Consumer> {
        let line = self.connect().await?;
        let prefetch = u16::try_from(prefetch).context("AMQP knows no larger prefetch")?;
        line.channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let tag = format!("consumer{number}");
        let deliveries = line.channel.basic_consume(queue_name(queue).into(), tag.into(), options, arguments).await?;
        Ok(Consumer { deliveries, _line: line })
    }
}

impl super::Producer for Line {
    async fn publish(&self, queue: usize, body: Bytes) -> Result<Confirm> {
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let options = BasicPublishOptions::default();
        let queue = queue_name(queue).into();
        let confirm = self.channel.basic_publish("".into(), queue, options, &body, properties).await?;
        Ok(Box::pin(async move {
            match confirm.await? {
                Confirmation::Ack(_) => Ok(()),
                other => bail!("the broker did not take the package: {other:?}"),
            }
        }))
    }
}

pub struct Consumer {
    deliveries: lapin::Consumer,
    _line: Line,
}

impl super::Consumer for Consumer {
    async fn work_one(&mut self, seen: impl FnOnce(&[u8]) + Send) -> Result<bool> {
        let Some(delivery) = self.deliveries.next().await else { return Ok(false) };
        let delivery = delivery?;
        seen(&delivery.data);
        delivery.ack(BasicAckOptions::default()).await?;
        Ok(true)
    }
}
