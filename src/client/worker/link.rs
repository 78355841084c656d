//! The stream to the cluster: attaching, and what comes in.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::super::nodes::Node;
use super::super::{Client, Error};
use crate::proto::v1::work_request::Request;
use crate::proto::v1::work_response::Response;
use crate::proto::v1::worker_service_client::WorkerServiceClient;
use crate::proto::v1::{Hello, Welcome, WorkRequest, WorkResponse};
use crate::types::limits;

/// A stream, or the attempt to get one.
pub(super) enum Link {
    Down(BoxFuture<'static, Result<Box<Attached>, Error>>),
    Up(Box<Up>),
}

/// What an attempt brings when it succeeds.
pub(super) type Attached = (Box<Up>, Welcome);

/// An attached stream.
pub(super) struct Up {
    pub node: Node,
    pub requests: mpsc::Sender<WorkRequest>,
    pub heard: Instant,
    responses: Streaming<WorkResponse>,
}

/// What a link brings.
pub(super) enum News {
    Attached(Result<Box<Attached>, Error>),
    Response(Box<Response>),
    /// The cluster ended the stream in good order: the session was closed.
    Ended,
    Broken(Error),
}

impl Link {
    /// Begins to attach, after a pause.
    pub fn attach(client: &Client, pause: Duration, hello: Hello, received_fence: u64) -> Self {
        let client = client.clone();
        Self::Down(Box::pin(async move {
            sleep(pause).await;
            attach(&client, hello, received_fence).await.map(Box::new)
        }))
    }

    /// The next thing that happens. Cancel safe.
    pub async fn next(&mut self) -> News {
        match self {
            Self::Down(attaching) => News::Attached(attaching.await),
            Self::Up(up) => loop {
                match up.responses.next().await {
                    Some(Ok(WorkResponse { response: Some(response), .. })) => {
                        up.heard = Instant::now();
                        return News::Response(Box::new(response));
                    }
                    // A kind of message that this SDK does not know yet.
                    Some(Ok(_)) => up.heard = Instant::now(),
                    Some(Err(status)) => return News::Broken(Error::from_status(&status)),
                    None => return News::Ended,
                }
            },
        }
    }

    pub fn up(&self) -> Option<&Up> {
        match self {
            Self::Up(up) => Some(up),
            Self::Down(_) => None,
        }
    }
}

/// One try: at the node that is preferred now, and then at the leader if that names another.
async fn attach(client: &Client, hello: Hello, received_fence: u64) -> Result<Attached, Error> {
    let (up, welcome) = attach_once(client, hello.clone(), received_fence).await?;
    if client.nodes.better_than(&up.node) {
        // Through a follower each message makes a hop. What came on its stream is sent again.
        drop(up);
        return attach_once(client, hello, received_fence).await;
    }
    Ok((up, welcome))
}

/// Connect, Hello, Welcome.
async fn attach_once(client: &Client, hello: Hello, received_fence: u64) -> Result<Attached, Error> {
    let node = client.nodes.pick().await?;
    let bound = Duration::from_millis(limits::CLIENT_WELCOME_MS);
    match timeout(bound, greet(client, node.clone(), hello, received_fence)).await {
        Ok(Ok(attached)) => Ok(attached),
        Ok(Err(error)) => {
            client.complain(&node, &error);
            Err(error)
        }
        Err(_) => {
            client.nodes.lost(&node);
            Err(Error::deadline(format!("{} did not welcome the worker within {bound:?}", node.addr)))
        }
    }
}

async fn greet(client: &Client, node: Node, hello: Hello, received_fence: u64) -> Result<Attached, Error> {
    let (requests, receiver) = mpsc::channel(limits::CLIENT_STREAM_QUEUE);
    // The Hello goes ahead: the node reads it before it answers with headers.
    let first = WorkRequest { received_fence, request: Some(Request::Hello(hello)) };
    requests.try_send(first).map_err(|_| Error::unreachable("a new stream has no room"))?;
    let mut service = WorkerServiceClient::new(node.channel.clone())
        .max_decoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES);
    let refused = |status: &tonic::Status| Error::from_status(status);
    let answer = match service.work(ReceiverStream::new(receiver)).await {
        Ok(answer) => answer,
        Err(status) => {
            let error = refused(&status);
            client.complain(&node, &error);
            client.nodes.learn(status.metadata());
            return Err(error);
        }
    };
    client.nodes.learn(answer.metadata());
    let mut responses = answer.into_inner();
    let first = match responses.next().await {
        Some(Ok(first)) => first.response,
        Some(Err(status)) => {
            let error = refused(&status);
            client.complain(&node, &error);
            client.nodes.learn(status.metadata());
            return Err(error);
        }
        None => {
            client.nodes.elsewhere(&node);
            return Err(Error::unreachable(format_args!("{} ended the stream before its welcome", node.addr)));
        }
    };
    match first {
        Some(Response::Welcome(welcome)) => {
            Ok((Box::new(Up { node, requests, responses, heard: Instant::now() }), welcome))
        }
        Some(Response::Goaway(goaway)) => {
            client.nodes.elsewhere(&node);
            client.nodes.led_by(&goaway.leader);
            Err(Error::unreachable(format_args!("{} sends workers away: {}", node.addr, goaway.reason)))
        }
        _ => {
            client.nodes.elsewhere(&node);
            Err(Error::unreachable(format_args!("{} answers a Hello with something else", node.addr)))
        }
    }
}

impl Up {
    pub fn addr(&self) -> Arc<str> {
        self.node.addr.clone()
    }
}
