//! Any node serves any call: what only the leader can do goes there, over the peer listener, one hop
//! at most, with the caller's identity.
//!
//! Invariants: a call is tried again only when it was certainly not applied (NO_LEADER, or the
//! connection was never made) or when repeating it changes nothing (reads). A hop that died with the
//! call is `OUTCOME_UNKNOWN`. A forwarded call goes no further. While no leader is known, a call waits
//! for one within its deadline, but not on a node that belongs to no cluster.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::{Duration, Instant};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::authorize::{Action, authorize};
use super::call::{Call, HOP};
use super::oversize::is_oversize;
use super::status::{self, Refusal};
use super::{Api, BoxStream, Core};
use crate::raft::handle::{ProposeError, Standing};
use crate::types::limits;

/// While nothing is heard of a change, the leader is asked again after this.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Where a call may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By the leader; it changes something.
    Leader,
    /// By the leader; it changes nothing.
    LeaderRead,
    /// By whoever is asked.
    Anybody,
}

/// A unary call: its name, its right, where it is answered, and how.
pub trait Rpc: Message + Clone + Default + 'static {
    type Answer: Message + Default + 'static;
    const PATH: &'static str;
    const ACTION: Action;

    fn place(&self) -> Place {
        Place::Leader
    }

    /// It ends only by the caller's deadline.
    const WAITS: bool = false;

    /// Answers it on this node.
    fn run(&self, core: &Core, call: &Call) -> impl Future<Output = Result<Self::Answer, Refusal>> + Send;
}

/// Implements a service all of whose rpcs are unary.
macro_rules! unary_service {
    ($service:ident { $(async fn $name:ident($request:ident) -> $response:ident;)+ }) => {
        #[tonic::async_trait]
        impl $service for $crate::api::Api {
            $(
                async fn $name(
                    &self,
                    request: tonic::Request<v1::$request>,
                ) -> Result<tonic::Response<v1::$response>, tonic::Status> {
                    self.unary(request).await
                }
            )+
        }
    };
}
pub(super) use unary_service;

/// Where a stream goes.
pub enum Route {
    Here,
    There(Channel),
}

impl Api {
    /// Answers a unary call, here or at the leader.
    pub(super) async fn unary<R: Rpc>(&self, request: Request<R>) -> Result<Response<R::Answer>, Status> {
        let call = Call::new(request.metadata(), self.mode);
        authorize(&call.identity, R::ACTION)?;
        self.with_leader(self.route(&call, request.into_inner()).await.map(Response::new))
    }

    pub(super) async fn route<R: Rpc>(&self, call: &Call, request: R) -> Result<R::Answer, Status> {
        if request.place() == Place::Anybody {
            return Ok(request.run(&self.core, call).await?);
        }
        let mut standing = self.core.raft.standing();
        let read = request.place() == Place::LeaderRead;
        let mut until = call.leader_wait_ends();
        loop {
            let now = standing.borrow_and_update().clone();
            let tried = Instant::now();
            match self.route_at(&now, call) {
                Some(Route::Here) => match request.run(&self.core, call).await {
                    Err(Refusal::Propose(ProposeError::NotLeader { .. })) => {}
                    // A read that was not confirmed read nothing.
                    Err(Refusal::Propose(ProposeError::Unknown { .. })) if read => {}
                    done => return Ok(done?),
                },
                Some(Route::There(channel)) => match self.hop(channel, call, &request).await {
                    Err(Hop::Again) => {}
                    Err(Hop::Over(status)) => return Err(*status),
                    Ok(answer) => return Ok(answer),
                },
                None => {}
            }
            // It waited at a leader that is gone: looking for the next one takes its own time.
            if R::WAITS && tried.elapsed() > TRY_AGAIN {
                until = call.anew().leader_wait_ends();
            }
            let mut over = call.forwarded || Instant::now() >= until || self.core.raft.stands_apart();
            if !over {
                // A change or the time: either way it is tried again, unless Raft has stopped and nothing changes any more.
                let changed = tokio::time::timeout_at(until.min(Instant::now() + TRY_AGAIN), standing.changed()).await;
                over = matches!(changed, Ok(Err(_)));
            }
            if over {
                let leader = standing.borrow().leader.clone();
                return Err(Refusal::from(ProposeError::NotLeader { leader }).into());
            }
        }
    }

    /// Where a stream goes, waiting for a leader if none is known.
    pub(super) async fn place(&self, call: &Call) -> Result<Route, Refusal> {
        let mut standing = self.core.raft.standing();
        loop {
            let now = standing.borrow_and_update().clone();
            if let Some(route) = self.route_at(&now, call) {
                return Ok(route);
            }
            let until = call.leader_wait_ends();
            let changed = tokio::time::timeout_at(until, standing.changed());
            if call.forwarded || self.core.raft.stands_apart() || !matches!(changed.await, Ok(Ok(()))) {
                return Err(ProposeError::NotLeader { leader: now.leader }.into());
            }
        }
    }

    fn route_at(&self, standing: &Standing, call: &Call) -> Option<Route> {
        if standing.leading.is_some() {
            return Some(Route::Here);
        }
        let leader = standing.leader.as_ref()?;
        if call.forwarded || leader.node == self.core.raft.node() {
            return None;
        }
        self.core.raft.peer_channel(leader.node).map(Route::There)
    }

    async fn hop<R: Rpc>(&self, channel: Channel, call: &Call, request: &R) -> Result<R::Answer, Hop> {
        let mut grpc = client(channel);
        grpc.ready().await.map_err(|_| Hop::Again)?;
        let ends = if R::WAITS { call.waits_until() } else { Some(call.ends()) };
        let mut onward = onward(call, request.clone());
        if let Some(ends) = ends {
            onward.set_timeout(ends.saturating_duration_since(Instant::now()));
        }
        let answer = grpc.unary(onward, PathAndQuery::from_static(R::PATH), ProstCodec::<R, R::Answer>::default());
        let answer = match ends {
            Some(ends) => tokio::time::timeout_at(ends, answer).await,
            None => Ok(answer.await),
        };
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Hop::judge(status, request.place() == Place::LeaderRead)),
            Err(_) => Err(Hop::over(Refusal::Deadline)),
        }
    }

    /// Joins a client's stream with the leader's.
    pub(super) async fn hop_stream<Q, A>(
        &self,
        channel: Channel,
        call: &Call,
        inbound: Streaming<Q>,
        path: &'static str,
    ) -> Result<Response<BoxStream<A>>, Status>
    where
        Q: Message + Default + Send + 'static,
        A: Message + Default + Send + 'static,
    {
        let mut grpc = client(channel);
        grpc.ready().await.map_err(|_| Status::from(Refusal::from(ProposeError::NotLeader { leader: None })))?;
        // A client that broke ends the leader's stream too. What it sent too large it is told here.
        let oversize = Arc::new(AtomicBool::new(false));
        let noted = Arc::clone(&oversize);
        let inbound = inbound
            .take_while(move |item| {
                if item.as_ref().is_err_and(is_oversize) {
                    noted.store(true, Ordering::Relaxed);
                }
                futures::future::ready(item.is_ok())
            })
            .filter_map(|item| futures::future::ready(item.ok()));
        let answers = grpc
            .streaming(onward(call, inbound), PathAndQuery::from_static(path), ProstCodec::<Q, A>::default())
            .await
            .map_err(stream_status)?;
        let last = async move { oversize.load(Ordering::Relaxed).then(|| Err(Refusal::Oversize.into())) };
        let last = futures::stream::once(last).filter_map(futures::future::ready);
        Ok(Response::new(Box::pin(answers.into_inner().map(|item| item.map_err(stream_status)).chain(last))))
    }
}

fn client(channel: Channel) -> Grpc<Channel> {
    Grpc::new(channel)
        .max_decoding_message_size(limits::MAX_PEER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_PEER_MESSAGE_BYTES)
}

fn onward<T>(call: &Call, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(HOP, tonic::metadata::MetadataValue::from_static("1"));
    call.identity.onto_hop(request.metadata_mut());
    request
}

/// A forwarded call that brought no answer.
enum Hop {
    /// It was certainly not applied, or repeating it changes nothing.
    Again,
    Over(Box<Status>),
}

impl Hop {
    fn over(refusal: Refusal) -> Self {
        Self::Over(Box::new(refusal.into()))
    }

    fn judge(status: Status, read: bool) -> Self {
        if status::is_no_leader(&status) || never_sent(&status) {
            return Self::Again;
        }
        match lost(&status) {
            true if read => Self::Again,
            true => Self::over(Refusal::HopLost),
            false => Self::Over(Box::new(bare(status))),
        }
    }
}

/// The leader's own statuses carry a reason; what the transport says of a broken hop does not.
fn lost(status: &Status) -> bool {
    let transport = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    transport && status::reason(status).is_none()
}

/// The connection could not be made.
fn never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What a stream's client is told of the hop's end.
fn stream_status(status: Status) -> Status {
    if never_sent(&status) {
        Refusal::from(ProposeError::NotLeader { leader: None }).into()
    } else if lost(&status) {
        Refusal::HopLost.into()
    } else {
        bare(status)
    }
}

/// Without the hop's own headers.
fn bare(status: Status) -> Status {
    Status::with_details(status.code(), status.message(), status.details().to_vec().into())
}
