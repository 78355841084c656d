//! Raft's way out: gRPC over connections that `env::Net` makes.
//!
//! Invariants: every request carries the envelope; names are resolved anew at each connect; the
//! append stream has a deadline for its answers of its own, because openraft waits without one. A
//! peer that cannot be reached is `Unreachable`, so that openraft backs off. Heartbeats, log and
//! votes share one connection; snapshots and forwarded calls have their own.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::convert::{self, Malformed};
use super::notices;
use super::peers::Peers;
use super::snapshots::{self, Blocking, Snapshot};
use super::types::{Member, TypeConfig};
use crate::proto::internal as pb;
use crate::proto::internal::peer_client::PeerClient;
use crate::types::{NodeId, limits};

type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type BoxStream<'a, T> = std::pin::Pin<Box<dyn Stream<Item = T> + Send + 'a>>;

/// What a connection is for. Each has its own, so that none waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Raft,
    Snapshot,
    /// Client calls that a follower forwards.
    Forward,
    /// A word with a node that may be no member, or at another address.
    Probe,
}

/// The connections of this node, one a peer and purpose, kept for as long as the address holds.
pub struct Channels {
    peers: Arc<Peers>,
    open: Mutex<BTreeMap<(NodeId, Purpose), (String, Channel)>>,
}

impl Channels {
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers, open: Mutex::default() }
    }

    /// A connection to `addr`, made when first used and again when it broke.
    pub fn get(&self, node: NodeId, addr: &str, purpose: Purpose) -> Channel {
        let mut open = self.open.lock();
        if let Some((known, channel)) = open.get(&(node, purpose))
            && known == addr
        {
            return channel.clone();
        }
        let channel = self.dial(addr);
        open.insert((node, purpose), (addr.to_owned(), channel.clone()));
        channel
    }

    /// Closes what leads to nodes that are members no more.
    pub fn keep(&self, members: impl Fn(NodeId) -> bool) {
        self.open.lock().retain(|(node, _), _| members(*node));
    }

    fn dial(&self, addr: &str) -> Channel {
        let net = Arc::clone(&self.peers.env().net);
        let addr = addr.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let net = Arc::clone(&net);
            let addr = addr.clone();
            async move {
                let connect = timeout(Duration::from_millis(limits::PEER_CONNECT_MS), net.connect(&addr));
                let stream = connect.await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        // The connector knows the address; the URI only fills the `:authority` header.
        Endpoint::from_static("http://peer")
            .initial_stream_window_size(limits::PEER_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::PEER_CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::PEER_FRAME_BYTES)
            .http2_keep_alive_interval(Duration::from_millis(limits::PEER_KEEPALIVE_MS))
            .keep_alive_timeout(Duration::from_millis(limits::PEER_KEEPALIVE_TIMEOUT_MS))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(connector)
    }

    pub fn client(&self, node: NodeId, addr: &str, purpose: Purpose) -> PeerClient<Channel> {
        PeerClient::new(self.get(node, addr, purpose))
            .max_decoding_message_size(limits::MAX_PEER_MESSAGE_BYTES)
            .max_encoding_message_size(limits::MAX_PEER_MESSAGE_BYTES)
    }
}

/// Set while this node stands because the leader is gone: its votes say so. See `failover`.
#[derive(Default)]
pub struct GoneVote {
    until: Mutex<Option<Instant>>,
}

impl GoneVote {
    pub fn arm(&self) {
        *self.until.lock() = Some(Instant::now() + Duration::from_millis(limits::FAILOVER_VOTE_MS));
    }

    fn armed(&self) -> bool {
        self.until.lock().is_some_and(|until| Instant::now() < until)
    }
}

/// Makes openraft's clients.
#[derive(Clone)]
pub struct Network {
    pub peers: Arc<Peers>,
    pub channels: Arc<Channels>,
    pub gone_vote: Arc<GoneVote>,
    pub blocking: Blocking,
}

impl Network {
    fn client(&self, target: NodeId, node: &Member, kind: Kind) -> Client {
        Client { network: self.clone(), target, member: node.clone(), kind }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Client {
        self.client(target, node, Kind::Log)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Client {
        self.client(target, node, Kind::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, node: &Member) -> Client {
        self.client(target, node, Kind::Snapshot)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    /// One request at a time: unary calls are cheaper than a stream for each.
    Heartbeat,
    Snapshot,
}

/// One peer, as openraft sees it.
pub struct Client {
    network: Network,
    target: NodeId,
    member: Member,
    kind: Kind,
}

impl Client {
    fn envelope(&self) -> pb::Envelope {
        self.network.peers.envelope(self.target, self.member.incarnation)
    }

    fn client(&self) -> PeerClient<Channel> {
        let purpose = if self.kind == Kind::Snapshot { Purpose::Snapshot } else { Purpose::Raft };
        // openraft keeps a client for as long as a node is a member: its address may have changed since.
        let now = self.network.peers.member(self.target).filter(|now| now.incarnation == self.member.incarnation);
        let addr = now.map_or_else(|| self.member.peer_addr.clone(), |now| now.peer_addr);
        self.network.channels.client(self.target, &addr, purpose)
    }

    fn timed_out(&self, action: RPCTypes, after: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.network.peers.node, target: self.target, timeout: after }
    }

    /// One unary call within `limit`.
    async fn call<T>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match timeout(limit, call).await {
            Err(_) => Err(self.timed_out(action, limit).into()),
            Ok(Err(status)) => Err(unreachable_by(&status).into()),
            Ok(Ok(response)) => Ok(response.into_inner()),
        }
    }
}

fn unreachable_by(status: &Status) -> Unreachable<TypeConfig> {
    if status.code() == Code::FailedPrecondition {
        tracing::warn!(message = status.message(), "a peer refuses this node");
    }
    Unreachable::from_string(format!("{:?}: {}", status.code(), status.message()))
}

fn malformed(error: Malformed) -> Unreachable<TypeConfig> {
    Unreachable::new(&error)
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Snapshot;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = convert::append_to_proto(Some(self.envelope()), &request);
        let mut client = self.client();
        let response = self.call(RPCTypes::AppendEntries, option.hard_ttl(), client.append(message)).await?;
        self.network.peers.heard(self.target, self.member.incarnation, response.health);
        Ok(convert::append_response(response).map_err(malformed)?)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.kind == Kind::Heartbeat {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let mut requests = Box::pin(notices::without_needless(input));
            // Before the call: openraft backs off from a peer that was unreachable as it gives the first request.
            let Some(first) = requests.next().await else { return Ok(futures::stream::empty().boxed()) };
            let sent = Arc::new(AtomicU64::new(0));
            let counter = Arc::clone(&sent);
            // The stream is one call: its first message carries the envelope for all.
            let mut envelope = Some(self.envelope());
            let requests = futures::stream::iter([first]).chain(requests).map(move |request| {
                counter.fetch_add(1, Ordering::Relaxed);
                convert::append_to_proto(envelope.take(), &request)
            });
            let mut client = self.client();
            let limit = Duration::from_millis(limits::PEER_CONNECT_MS);
            let answers = self.call(RPCTypes::AppendEntries, limit, client.append_stream(requests)).await?;
            let answers = Answers { client: self, answers, sent, received: 0 };
            let stream = futures::stream::unfold(Some(answers), |answers| async move {
                let mut answers = answers?;
                let next = answers.next().await?;
                let go_on = matches!(next, Ok(Ok(_)));
                Some((next, go_on.then_some(answers)))
            });
            Ok(stream.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let gone = self.network.gone_vote.armed();
        let message = convert::vote_request_to_proto(self.envelope(), &request, gone);
        let mut client = self.client();
        let response = self.call(RPCTypes::Vote, option.hard_ttl(), client.vote(message)).await?;
        Ok(convert::vote_response(response).map_err(malformed)?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = convert::vote_request_to_proto(self.envelope(), &request, false);
        let mut client = self.client();
        let response = self.call(RPCTypes::Vote, option.hard_ttl(), client.pre_vote(message)).await?;
        Ok(convert::vote_response(response).map_err(malformed)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, Snapshot>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Snapshot::Kept(kept) = snapshot.snapshot else {
            return Err(Unreachable::from_string("a snapshot that is not kept yet cannot be sent").into());
        };
        let head = pb::SnapshotHead {
            envelope: Some(self.envelope()),
            vote: Some(convert::vote_to_proto(&vote)),
            last_log_id: snapshot.meta.last_log_id.as_ref().map(convert::log_id_to_proto),
            membership_log_id: snapshot.meta.last_membership.log_id().as_ref().map(convert::log_id_to_proto),
            membership: Some(convert::membership_to_proto(snapshot.meta.last_membership.membership())),
            snapshot_id: String::new(),
            size_bytes: kept.state_bytes,
        };
        let chunks = snapshots::chunks(kept, self.network.blocking, head);
        let mut client = self.client();
        let limit = Duration::from_millis(limits::SNAPSHOT_TRANSFER_MS);
        let call = self.call(RPCTypes::InstallSnapshot, limit, client.snapshot(chunks));
        let response = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            response = call => response?,
        };
        Ok(SnapshotResponse::new(convert::vote(response.vote).map_err(malformed)?))
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = convert::transfer_to_proto(self.envelope(), &request);
        let mut client = self.client();
        // The target waits until its log is flushed: more than a heartbeat's time.
        let limit = Duration::from_millis(limits::ELECTION_MIN_MS);
        let response = self.call(RPCTypes::TransferLeader, limit, client.transfer_leader(message)).await?;
        if response.accepted {
            return Ok(Ok(()));
        }
        let actual = None;
        Ok(Err(TransferLeaderError::LogNotFlushed { expected: request.last_log_id().cloned(), actual }))
    }

    fn backoff(&self) -> Option<Backoff> {
        let steps = [10, 20, 40, 80, 160, 320].into_iter().chain(std::iter::repeat(500));
        Some(Backoff::new(steps.map(Duration::from_millis)))
    }
}

/// The answers of one append stream.
struct Answers<'s> {
    client: &'s Client,
    answers: tonic::Streaming<pb::AppendResponse>,
    sent: Arc<AtomicU64>,
    received: u64,
}

impl Answers<'_> {
    /// None: the peer ended the stream.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
        let limit = Duration::from_millis(limits::PEER_ANSWER_MS);
        loop {
            let owed = self.sent.load(Ordering::Relaxed);
            let answer = match timeout(limit, self.answers.message()).await {
                // Idle is fine; an answer owed since before the wait is not.
                Err(_) if self.received >= owed => continue,
                Err(_) => return Some(Err(self.client.timed_out(RPCTypes::AppendEntries, limit).into())),
                Ok(Err(status)) => return Some(Err(unreachable_by(&status).into())),
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(answer))) => answer,
            };
            self.received += 1;
            self.client.network.peers.heard(self.client.target, self.client.member.incarnation, answer.health);
            return Some(convert::stream_result(answer).map_err(|error| malformed(error).into()));
        }
    }
}
