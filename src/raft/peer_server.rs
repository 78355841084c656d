//! The Peer service: what other nodes may ask of this one. Mounted on the peer listener only.
//!
//! Invariants: the envelope is checked on every call before anything else; a mismatch is refused
//! with what to do. Nothing here decides: Raft, failover and bootstrap do.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{SnapshotMeta, StoredMembership};
use tonic::{Request, Response, Status, Streaming};

use super::convert;
use super::failover::Failover;
use super::machine_adapter::{Adapter, Shelf};
use super::peers::{Inbound, Peers};
use super::snapshots::{Blocking, Snapshot, meta_to_stored};
use super::types::TypeConfig;
use crate::proto::internal as pb;
use crate::proto::internal::peer_server::{Peer, PeerServer};
use crate::types::limits;

pub(super) type Raft = openraft::Raft<TypeConfig, Adapter>;

/// How the peer listener's server must be set: as the clients of `network` are.
pub fn configure(server: tonic::transport::Server) -> tonic::transport::Server {
    server
        .initial_stream_window_size(limits::PEER_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::PEER_CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::PEER_FRAME_BYTES)
        .max_concurrent_streams(limits::MAX_STREAMS_A_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_millis(limits::PEER_KEEPALIVE_MS)))
        .http2_keepalive_timeout(Some(Duration::from_millis(limits::PEER_KEEPALIVE_TIMEOUT_MS)))
}

/// See the module.
pub struct Service {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) failover: Arc<Failover>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) blocking: Blocking,
    pub(super) bootstrap_digest: Bytes,
}

impl Service {
    /// The service to mount, with the peers' message limits.
    pub fn into_server(self) -> PeerServer<Self> {
        PeerServer::new(self)
            .max_decoding_message_size(limits::MAX_PEER_MESSAGE_BYTES)
            .max_encoding_message_size(limits::MAX_PEER_MESSAGE_BYTES)
    }

    /// Shields a voter's lease from the word that the leader is gone: it counts only if this node
    /// is not that leader and does not hear it either.
    fn believes_gone(&self, request: &pb::VoteRequest) -> bool {
        if !request.leader_gone {
            return false;
        }
        let leader = self.raft.server_metrics().borrow_watched().current_leader;
        leader.is_none_or(|leader| leader != self.peers.node && !self.peers.hears(leader))
    }

    async fn receive(&self, mut chunks: Streaming<pb::SnapshotChunk>) -> Result<pb::SnapshotResponse, Status> {
        let first = chunks.message().await?.ok_or_else(|| Status::invalid_argument("no snapshot"))?;
        let mut head = first.head.ok_or_else(|| Status::invalid_argument("no head before the snapshot"))?;
        let from = self.peers.check(head.envelope.take())?;
        let vote = convert::vote(head.vote.take())?;
        let membership = convert::membership(head.membership.take().unwrap_or_default())?;
        let meta = SnapshotMeta {
            last_log_id: head.last_log_id.as_ref().map(convert::log_id),
            last_membership: StoredMembership::new(head.membership_log_id.as_ref().map(convert::log_id), membership),
        };
        tracing::info!(from, size_bytes = head.size_bytes, "receiving a snapshot");

        let failed = |error: std::io::Error| Status::internal(format!("keeping the snapshot: {error}"));
        let mut file = self.shelf.files().build(meta_to_stored(&meta)).map_err(failed)?;
        let mut received = 0;
        let mut next = Some(first.data);
        while let Some(data) = next {
            received += data.len() as u64;
            if received > head.size_bytes {
                return Err(Status::invalid_argument("the snapshot is longer than its head says"));
            }
            let written = self.blocking.run(move || file.write_all(&data).map(|()| file)).await;
            file = written.and_then(|result| result).map_err(failed)?;
            next = chunks.message().await?.map(|chunk| chunk.data);
        }
        if received != head.size_bytes {
            return Err(Status::data_loss("the snapshot broke off"));
        }
        let snapshot = openraft::Snapshot { meta, snapshot: Snapshot::Received(file) };
        let response = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(pb::SnapshotResponse { vote: Some(convert::vote_to_proto(&response.vote)) })
    }
}

/// Raft runs no more.
fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the node stops: {error}"))
}

#[tonic::async_trait]
impl Peer for Service {
    type AppendStreamStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<pb::AppendResponse, Status>> + Send + 'static>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        // The first message may come late: the response stream must not wait for it.
        let requests = Requests { stream: request.into_inner(), peers: Arc::clone(&self.peers), inbound: None };
        let (refusals, mut refusal) = tokio::sync::mpsc::channel::<Status>(1);
        let input = futures::stream::unfold(Some((requests, refusals)), |state| async move {
            let (mut requests, refusals) = state?;
            match requests.next().await {
                Ok(Some(append)) => Some((append, Some((requests, refusals)))),
                Ok(None) => None,
                Err(status) => {
                    // Room for one, and only one is ever sent.
                    let _ = refusals.try_send(status);
                    None
                }
            }
        });
        let peers = Arc::clone(&self.peers);
        let answers = self.raft.stream_append(input).map(move |result| match result {
            Ok(result) => Ok(convert::stream_result_to_proto(&result, peers.health())),
            Err(fatal) => Err(stopped(fatal)),
        });
        // A refusal follows the answers to what was taken before it.
        let refused = futures::stream::once(async move { refusal.recv().await })
            .filter_map(|status| async move { status.map(Err) });
        Ok(Response::new(answers.chain(refused).boxed()))
    }

    async fn append(&self, request: Request<pb::AppendRequest>) -> Result<Response<pb::AppendResponse>, Status> {
        let mut request = request.into_inner();
        self.peers.check(request.envelope.take())?;
        let response = self.raft.append_entries(convert::append(request)?).await.map_err(stopped)?;
        Ok(Response::new(convert::append_response_to_proto(&response, self.peers.health())))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let mut request = request.into_inner();
        self.peers.check(request.envelope.take())?;
        let mut vote = convert::vote_request(&request)?;
        vote.leadership_transfer |= self.believes_gone(&request);
        let response = self.raft.vote(vote).await.map_err(stopped)?;
        Ok(Response::new(convert::vote_response_to_proto(&response)))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let mut request = request.into_inner();
        self.peers.check(request.envelope.take())?;
        let response = self.raft.pre_vote(convert::vote_request(&request)?).await.map_err(stopped)?;
        Ok(Response::new(convert::vote_response_to_proto(&response)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotChunk>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        self.receive(request.into_inner()).await.map(Response::new)
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        let mut request = request.into_inner();
        self.peers.check(request.envelope.take())?;
        let transfer = convert::transfer(&request)?;
        let response = self.raft.handle_transfer_leader(transfer).await.map_err(stopped)?;
        Ok(Response::new(pb::TransferLeaderResponse { accepted: response.is_ok() }))
    }

    async fn leader_gone(
        &self,
        request: Request<pb::LeaderGoneRequest>,
    ) -> Result<Response<pb::LeaderGoneResponse>, Status> {
        let mut request = request.into_inner();
        self.peers.check(request.envelope.take())?;
        let gone = self.failover.is_gone(request.leader).await;
        let last_log_id = self.raft.data_metrics().borrow_watched().last_log.as_ref().map(convert::log_id_to_proto);
        Ok(Response::new(pb::LeaderGoneResponse { gone, last_log_id }))
    }

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let request = request.into_inner();
        let envelope = request.envelope.ok_or_else(|| Status::invalid_argument("no envelope"))?;
        if envelope.to_node != self.peers.node {
            return Err(Status::failed_precondition(format!(
                "this is node {}, not node {}: check the peer addresses in the configuration",
                self.peers.node, envelope.to_node
            )));
        }
        let initialized = self.raft.is_initialized().await.map_err(stopped)?;
        let known = self.peers.member(envelope.from_node).map_or(0, |member| member.incarnation);
        let ours = self.peers.cluster_id();
        if !initialized && envelope.to_incarnation != 0 && envelope.to_incarnation != self.peers.own.incarnation {
            self.peers.mistaken_for(envelope.to_incarnation);
        }
        if let Some(member) = request.member
            && envelope.cluster_id == ours
        {
            self.peers.told(envelope.from_node, convert::member(member));
        }
        let committed = *self.raft.metrics().borrow_watched().committed_membership_config.log_id();
        Ok(Response::new(pb::ProbeResponse {
            node: self.peers.node,
            incarnation: self.peers.own.incarnation,
            cluster_id: ours,
            initialized,
            bootstrap_digest: self.bootstrap_digest.clone(),
            health: Some(self.peers.health()),
            member: Some(convert::member_to_proto(self.peers.node, &self.peers.own)),
            known_incarnation: known,
            membership: committed.as_ref().map(convert::log_id_to_proto),
        }))
    }
}

/// The requests of one append stream, checked.
struct Requests {
    stream: Streaming<pb::AppendRequest>,
    peers: Arc<Peers>,
    /// Some once the envelope was found good.
    inbound: Option<Inbound>,
}

impl Requests {
    /// None: the leader ended the stream.
    async fn next(&mut self) -> Result<Option<openraft::raft::AppendEntriesRequest<TypeConfig>>, Status> {
        let mut message = match self.stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(None),
            Err(status) => {
                if let Some(inbound) = &mut self.inbound {
                    inbound.broke();
                }
                return Err(status);
            }
        };
        if self.inbound.is_none() {
            let from = self.peers.check(message.envelope.take())?;
            self.inbound = Some(self.peers.inbound(from));
        }
        Ok(Some(convert::append(message)?))
    }
}
