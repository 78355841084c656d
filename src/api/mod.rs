//! The gRPC services: authorize, check, convert, call, convert back.
//!
//! Invariants: generated API types stop here. Every refusal passes `status`, the one place that knows
//! codes and reasons. No call is unbounded: it has a deadline, or waits in a bounded table; every
//! stream has a bounded number of requests and answers under way. Nothing here is state that matters.
//!
//! Absent on purpose: who gets which package (machine), who is alive (dispatch), TLS and sockets (node).

mod authorize;
mod call;
mod cluster;
mod convert;
mod forward;
mod health;
mod history;
mod lease;
mod list;
mod members;
mod oversize;
mod package;
mod page;
mod queue;
mod rates;
mod settle;
pub mod status;
mod submit;
#[cfg(test)]
mod tests;
mod validate;
mod watch;
mod worker;

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Response, Status};

use crate::env::Env;
use crate::machine::command::{Command, Op};
use crate::machine::{Machine, Outcome, Reply};
use crate::proto::v1::cluster_service_server::ClusterServiceServer;
use crate::proto::v1::package_service_server::PackageServiceServer;
use crate::proto::v1::queue_service_server::QueueServiceServer;
use crate::proto::v1::worker_service_server::WorkerServiceServer;
use crate::raft::handle::Lane;
use crate::types::{Revision, limits};
use crate::{dispatch, raft};

pub use authorize::{Action, Identity};
pub use call::Mode;

use call::Call;
use forward::unary_service;
use rates::Rates;
use status::Refusal;

/// What the streaming calls answer with.
type BoxStream<T> = Pin<Box<dyn futures::Stream<Item = Result<T, Status>> + Send>>;

/// The services of one node, for one kind of listener. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    core: Arc<Core>,
    mode: Mode,
}

/// What every call works with.
pub(crate) struct Core {
    raft: raft::Handle,
    dispatch: dispatch::Handle,
    history: crate::history::Handle,
    env: Env,
    rates: Rates,
    /// Looks of calls that wait for packages.
    looks: Semaphore,
    health: tonic_health::server::HealthReporter,
    /// The node stops: streams end.
    leaving: CancellationToken,
    began: Instant,
}

impl Api {
    pub fn new(raft: raft::Handle, dispatch: dispatch::Handle, history: crate::history::Handle, env: Env) -> Self {
        let core = Core {
            raft,
            dispatch,
            history,
            env,
            rates: Rates::default(),
            looks: Semaphore::new(limits::WAIT_LOOKS_AT_ONCE),
            health: tonic_health::server::HealthReporter::new(),
            leaving: CancellationToken::new(),
            began: Instant::now(),
        };
        Self { core: Arc::new(core), mode: Mode::Client }
    }

    /// The services to mount on a listener of this kind: on the client listener with health and
    /// reflection, on the peer listener (beside the peer service) for forwarded calls.
    pub fn routes(&self, mode: Mode) -> Routes {
        let api = Self { core: self.core.clone(), mode };
        let limit = match mode {
            Mode::Client => limits::MAX_CLIENT_MESSAGE_BYTES,
            Mode::Peer => limits::MAX_PEER_MESSAGE_BYTES,
        };
        macro_rules! limited {
            ($server:ident) => {
                $server::new(api.clone()).max_decoding_message_size(limit).max_encoding_message_size(limit)
            };
        }
        let routes = Routes::new(limited!(PackageServiceServer))
            .add_service(limited!(WorkerServiceServer))
            .add_service(limited!(QueueServiceServer))
            .add_service(limited!(ClusterServiceServer));
        let routes = oversize::named(routes);
        match mode {
            Mode::Client => health::mount(routes, &self.core.health),
            Mode::Peer => routes,
        }
    }

    /// What goes on beside the calls: health follows this node's standing, rates are sampled. Run it
    /// for as long as the node lives.
    pub async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = health::follow(&self.core.health, self.core.raft.standing()) => {}
            () = self.core.sample_rates() => {}
        }
        self.core.leaving.cancel();
        health::not_serving(&self.core.health).await;
    }

    /// Says who leads, so that the client goes there itself next time.
    fn with_leader<T>(&self, answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
        let standing = self.core.raft.standing();
        let leader = standing.borrow().leader.as_ref().and_then(|leader| leader.member.client_addr.parse().ok());
        let Some(leader) = leader else { return answer };
        match answer {
            Ok(mut response) => {
                response.metadata_mut().insert(call::LEADER, leader);
                Ok(response)
            }
            Err(mut status) => {
                status.metadata_mut().insert(call::LEADER, leader);
                Err(status)
            }
        }
    }
}

/// A gRPC server with the limits of a listener; the composition root adds routes and connections.
pub fn server() -> Server {
    const STREAM_WINDOW: u32 = 8 << 20;
    const CONNECTION_WINDOW: u32 = 16 << 20;
    const FRAME: u32 = 1 << 20;
    Server::builder()
        .max_concurrent_streams(limits::MAX_STREAMS_A_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_keepalive_interval(Some(Duration::from_millis(limits::KEEPALIVE_EVERY_MS)))
        .http2_keepalive_timeout(Some(Duration::from_millis(limits::KEEPALIVE_ANSWER_MS)))
}

impl Core {
    /// Proposes and gives what the machine answered, with the revision after it.
    async fn propose(&self, lane: Lane, op: Op, call: &Call) -> Result<(Reply, Revision), Refusal> {
        let Outcome { revision, result } = self.raft.propose(lane, Command { op: Some(op) }, call.left()).await?;
        Ok((result?, revision))
    }

    /// Looks at the state: the latest that a quorum knows, or this node's own if stale will do.
    async fn read<T>(
        &self,
        stale_ok: bool,
        call: &Call,
        look: impl FnOnce(&Machine) -> T,
    ) -> Result<(T, Revision), Refusal> {
        if !stale_ok {
            self.raft.read_barrier(call.left()).await?;
        }
        Ok(self.raft.view(|machine| (look(machine), machine.summary().revision)))
    }

    /// Waits for a sweep's end: how many packages it changed.
    async fn swept(&self, sweep: u64, call: &Call) -> Result<u64, Refusal> {
        let mut waiter = self.dispatch.wait_sweep(sweep)?;
        match tokio::time::timeout_at(call.ends(), waiter.woken()).await {
            Ok(dispatch::Wake::Swept(changed)) => Ok(changed),
            // It goes on under the next leader, or its end was among lost effects.
            Ok(dispatch::Wake::LeaderLost | dispatch::Wake::Look) => {
                Err(raft::handle::ProposeError::Unknown { why: "the sweep goes on, but its end will not be told here" }
                    .into())
            }
            Err(_) => Err(Refusal::Deadline),
        }
    }

    async fn sample_rates(&self) {
        let mut every = tokio::time::interval(rates::SAMPLE_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let views = self.raft.view(|machine| {
                let few = machine.summary().queues <= limits::MAX_RATED_QUEUES as u64;
                if few { machine.queues("") } else { Vec::new() }
            });
            self.rates.sample(&views, Instant::now());
        }
    }
}
