//! The only door to the replicated state: propose a command, look at the state, follow the
//! leadership. Cheap to clone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::RaftMetrics;
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use super::changes::Changes;
use super::data_dir::DataDir;
use super::machine_adapter::State;
use super::membership;
use super::network::{Channels, Purpose};
use super::peer_server::Raft;
use super::peers::{PeerView, Peers};
use super::proposer::Proposer;
use super::reads::Reads;
use super::reconfig::Reconfig;
use super::types::{Member, TypeConfig};
use crate::machine::command::Command;
use crate::machine::{Effect, Machine, Outcome};
use crate::types::{NodeId, Revision, limits};

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not applied: this node does not lead. `leader`: who does, if known.
    #[error("not the leader")]
    NotLeader { leader: Option<Leader> },
    /// May or may not have been applied. Repeating with the same id is safe.
    #[error("outcome unknown: {why}")]
    Unknown { why: &'static str },
    /// Certainly not applied: too much waits already.
    #[error("overloaded")]
    Overloaded,
    /// Certainly not applied: the disk of a node that a quorum needs is full.
    #[error("disk full")]
    DiskFull,
    /// Certainly not applied: larger than a batch may be.
    #[error("command of {len} bytes is larger than a batch may be")]
    TooLarge { len: usize },
    /// The node stops.
    #[error("shutting down")]
    ShuttingDown,
}

/// Who leads, as this node believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub node: NodeId,
    pub term: u64,
    pub member: Member,
}

/// This node's own standing, for whoever must be rebuilt when it leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Some(term): this node leads, its barrier and `LeaderStarted` are applied, it serves.
    pub leading: Option<u64>,
    /// How often this node began to serve. One term may see it more than once: a leader that loses
    /// its quorum stops, and its sessions are detached when it begins again.
    pub terms_of_office: u64,
    /// Who leads, as this node believes.
    pub leader: Option<Leader>,
}

impl Standing {
    /// The number of the office that this node holds now; what lives in one does not live in another.
    pub fn office(&self) -> Option<u64> {
        self.leading.map(|_| self.terms_of_office)
    }
}

/// The effects of one applied batch, on a node that leads.
#[derive(Debug)]
pub struct EffectBatch {
    pub index: u64,
    pub term: u64,
    /// The state's revision after the batch.
    pub revision: Revision,
    pub effects: Vec<Effect>,
}

/// What comes out of the effect feed.
#[derive(Debug)]
pub enum Feed {
    Batch(EffectBatch),
    /// Some were dropped (the receiver lagged) or the state was replaced by a snapshot:
    /// rebuild from the state.
    Gap,
}

/// How a command is answered. The hot path uses `Sink`, which allocates nothing a command.
pub enum Responder {
    Oneshot(oneshot::Sender<Result<Outcome, ProposeError>>),
    /// Called once, from the proposer's task: must not block.
    Sink(Arc<dyn Sink>, u64),
    /// Nobody waits.
    None,
}

/// Takes answers of commands; see [`Responder::Sink`].
pub trait Sink: Send + Sync {
    fn answer(&self, token: u64, result: Result<Outcome, ProposeError>);
}

/// Which commands go first when both wait: completions and all else before submits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    Settle,
    Submit,
}

/// See the module.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

/// What a handle reaches; put together by `raft::start`.
pub(super) struct Inner {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) channels: Arc<Channels>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) state: Arc<State>,
    pub(super) reads: Arc<Reads>,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) effects: Mutex<Option<mpsc::Receiver<Feed>>>,
    pub(super) disk: Arc<DataDir>,
    pub(super) alarms: Arc<Mutex<BTreeMap<&'static str, Alarm>>>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) reconfig: Arc<Reconfig>,
}

impl Handle {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Proposes and waits for the outcome, at most `deadline`. On a node that does not lead:
    /// `NotLeader` at once.
    pub async fn propose(&self, lane: Lane, command: Command, deadline: Duration) -> Result<Outcome, ProposeError> {
        let (answer, answered) = oneshot::channel();
        self.send(lane, command, Responder::Oneshot(answer));
        match timeout(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ProposeError::Unknown { why: "the node stopped" }),
            Err(_) => Err(ProposeError::Unknown { why: "no answer within the caller's deadline" }),
        }
    }

    /// Proposes without waiting. The answer goes to `responder`, always, exactly once, also for
    /// errors.
    pub fn send(&self, lane: Lane, command: Command, responder: Responder) {
        self.inner.proposer.send(lane, &command, responder);
    }

    /// Waits until `lane` has room (backpressure for streams).
    pub async fn ready(&self, lane: Lane) {
        self.inner.proposer.ready(lane).await;
    }

    /// A linearizable read point: confirms leadership with a quorum (read index, never a lease)
    /// and waits until this node's state has it. `NotLeader` on followers.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<(), ProposeError> {
        self.inner.reads.barrier(deadline).await
    }

    /// Looks at this node's own state. Must be short: apply waits meanwhile.
    pub fn view<R>(&self, look: impl FnOnce(&Machine) -> R) -> R {
        look(&self.inner.state.machine.read())
    }

    /// This node's standing, with changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.inner.standing.clone()
    }

    /// The effect feed; there is one consumer (dispatch). Batches come only while this node leads.
    pub fn take_effects(&self) -> Option<mpsc::Receiver<Feed>> {
        self.inner.effects.lock().take()
    }

    /// What happened to packages lately, as this node applied it.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.inner.state.changes
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> bytes::Bytes {
        self.inner.peers.cluster_id()
    }

    /// This node's number.
    pub fn node(&self) -> NodeId {
        self.inner.peers.node
    }

    /// A connection to another node's peer listener for forwarded calls, made when first used.
    /// None: no such member, or this node itself.
    pub fn peer_channel(&self, node: NodeId) -> Option<Channel> {
        if node == self.node() {
            return None;
        }
        let member = self.inner.peers.member(node)?;
        Some(self.inner.channels.get(node, &member.peer_addr, Purpose::Forward))
    }

    /// Waits until this node's state has all that it had applied before a restart, and more: what
    /// the cluster has committed up to the end of its log. Needs a leader. False: not in time.
    pub async fn wait_recovered(&self, limit: Duration) -> bool {
        self.inner.raft.wait_for_recovery(Some(limit)).await.is_ok()
    }

    /// Moves leadership to `to`, or to the most current voter. Answers with the new leader.
    pub async fn transfer_leadership(&self, to: Option<NodeId>, deadline: Duration) -> Result<NodeId, TransferError> {
        let mut standing = self.standing();
        let (leading, leader) = {
            let standing = standing.borrow_and_update();
            (standing.leading, standing.leader.clone())
        };
        if leading.is_none() {
            return Err(TransferError::NotLeader { leader });
        }
        let to = self.successor(to).await?;
        if to == self.node() {
            return Ok(to);
        }
        if self.inner.raft.trigger().transfer_leader(to).await.is_err() {
            return Err(TransferError::NotLeader { leader: None });
        }
        let deadline = deadline.min(Duration::from_millis(limits::TRANSFER_MS));
        let own = self.node();
        let took_over = standing.wait_for(|now| now.leader.as_ref().is_some_and(|leader| leader.node != own));
        match timeout(deadline, took_over).await {
            Ok(Ok(now)) => match &now.leader {
                Some(leader) if leader.node != to => Err(TransferError::AnotherLeads { to, leader: leader.node }),
                _ => Ok(to),
            },
            Ok(Err(_)) | Err(_) => Err(TransferError::TimedOut(to)),
        }
    }

    /// Who takes over: the one asked for, or the voter that has most of the log. It must answer now: one
    /// that just died would let nobody write until an election.
    async fn successor(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        let voters: Vec<_> = self.inner.peers.members().into_iter().filter(|peer| peer.voter).collect();
        if let Some(to) = to {
            let known = voters.iter().any(|peer| peer.node == to);
            return match known {
                false => Err(TransferError::NoVoter(to)),
                true if to == self.node() || self.inner.reconfig.answers(to).await => Ok(to),
                true => Err(TransferError::Unreachable(to)),
            };
        }
        let matched = self.matched();
        let mut others: Vec<_> = voters.iter().filter(|peer| peer.node != self.node() && peer.reachable).collect();
        // The lowest number among equals.
        others.sort_by_key(|peer| (Reverse(matched.get(&peer.node)), peer.node));
        for peer in others {
            if self.inner.reconfig.answers(peer.node).await {
                return Ok(peer.node);
            }
        }
        Err(TransferError::Alone)
    }

    /// Adds the node that waits at `addr` as a learner; with `replace`, in the place of a node of that
    /// number that lost its data directory. False: it is a member already.
    pub async fn add_member(
        &self,
        node: NodeId,
        addr: &str,
        replace: bool,
        force: bool,
        deadline: Duration,
    ) -> Result<bool, membership::Error> {
        self.inner.reconfig.add(node, addr, replace, force, deadline).await
    }

    /// Makes learners that have caught up voters. False: all are voters already.
    pub async fn promote_members(
        &self,
        nodes: &BTreeSet<NodeId>,
        deadline: Duration,
    ) -> Result<bool, membership::Error> {
        self.inner.reconfig.promote(nodes, deadline).await
    }

    /// Removes members. If this node is one of them, it hands over and answers `NotLeader`: the next
    /// leader is to be asked.
    pub async fn remove_members(
        &self,
        nodes: &BTreeSet<NodeId>,
        force: bool,
        deadline: Duration,
    ) -> Result<(), membership::Error> {
        let Some(to) = self.inner.reconfig.remove(nodes, force, deadline).await? else { return Ok(()) };
        match self.transfer_leadership(Some(to), deadline).await {
            Ok(_) => Err(membership::Error::NotLeader { leader: self.standing().borrow().leader.clone() }),
            Err(TransferError::NotLeader { leader }) => Err(membership::Error::NotLeader { leader }),
            Err(_) => Err(membership::Error::NotHandedOver(to)),
        }
    }

    /// Whether the cluster goes on if `node` stops now, and why. Only the leader can tell.
    pub async fn safe_to_stop(&self, node: NodeId) -> Result<(bool, String), membership::Error> {
        self.inner.reconfig.safe_to_stop(node).await
    }

    /// This node waits for an operator to let it take part: no call can be served soon.
    pub fn stands_apart(&self) -> bool {
        self.inner.peers.stands_apart()
    }

    /// Why this node takes no part yet; None once it does.
    pub fn waiting(&self) -> Option<String> {
        self.inner.peers.waiting()
    }

    /// How far each member's log is known to agree; empty on followers.
    fn matched(&self) -> BTreeMap<NodeId, u64> {
        let replication = self.inner.raft.metrics().borrow_watched().replication.clone();
        let matched = replication.into_iter().flatten();
        matched.filter_map(|(node, id)| Some((node, id?.index))).collect()
    }

    /// Raft's and the log's standing, for status and metrics.
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        let view = inner.raft.metrics().borrow_watched().clone();
        let index = |id: &Option<openraft::alias::LogIdOf<TypeConfig>>| id.as_ref().map_or(0, |id| id.index);
        let matched = self.matched();
        let member = |peer: PeerView| MemberStatus {
            node: peer.node,
            voter: peer.voter,
            reachable: peer.reachable,
            machine_version: match peer.node == inner.peers.node {
                true => Some(inner.peers.machine_version()),
                false => peer.heard.map(|heard| heard.machine_version),
            },
            matched_index: matched.get(&peer.node).copied(),
            member: peer.member,
        };
        let mut metrics = inner.state.counters.metrics();
        metrics.commands_waiting = inner.proposer.waiting() as u64;
        inner.disk.fill_metrics(&mut metrics);
        Status {
            cluster_id: inner.peers.cluster_id().iter().map(|byte| format!("{byte:02x}")).collect(),
            node: self.node(),
            leader: inner.standing.borrow().leader.clone(),
            term: view.current_term,
            last_log_index: view.last_log_index.unwrap_or(0),
            committed_index: index(&view.local_committed),
            applied_index: index(&view.last_applied),
            snapshot_index: index(&view.snapshot),
            purged_index: index(&view.purged),
            members: inner.peers.members().into_iter().map(member).collect(),
            change_under_way: inner.reconfig.under_way(),
            disk: inner.disk.status(),
            alarms: inner.alarms.lock().values().cloned().collect(),
            metrics,
        }
    }

    /// Writes a snapshot now; answers with its index.
    pub async fn take_snapshot(&self, deadline: Duration) -> Result<u64, ProposeError> {
        let raft = &self.inner.raft;
        let applied = raft.metrics().borrow_watched().last_applied.map_or(0, |id| id.index);
        let until = Instant::now() + deadline;
        loop {
            let before = raft.metrics().borrow_watched().snapshot;
            raft.trigger().snapshot().await.map_err(|_| ProposeError::ShuttingDown)?;
            // While one is being written Raft begins no other: then its end is not yet what was asked for.
            let built = |view: &RaftMetrics<TypeConfig>| {
                let index = view.snapshot.map_or(0, |id| id.index);
                index >= applied || view.snapshot != before
            };
            let wait = raft.wait(Some(until.saturating_duration_since(Instant::now())));
            match wait.metrics(built, "a snapshot of what is applied").await {
                Ok(view) => match view.snapshot.map_or(0, |id| id.index) {
                    index if index >= applied => return Ok(index),
                    _ => {}
                },
                Err(_) => return Err(ProposeError::Unknown { why: "the snapshot was not done in time" }),
            }
        }
    }

    /// The latest fingerprint of this node's state (see `Effect::Fingerprint`), with changes.
    pub fn fingerprint(&self) -> watch::Receiver<Option<FingerprintResult>> {
        self.inner.state.fingerprint.subscribe()
    }

    /// Hands leadership over if this node has it, then stops Raft. Every proposal is answered.
    pub async fn shutdown(&self) {
        self.hand_over().await;
        self.halt().await;
    }

    /// Hands leadership over if this node has it and somebody can take it, within a bounded time.
    pub async fn hand_over(&self) {
        let limit = Duration::from_millis(limits::SHUTDOWN_TRANSFER_MS);
        match self.transfer_leadership(None, limit).await {
            Ok(to) => tracing::info!(to, "handed leadership over"),
            Err(TransferError::NotLeader { .. } | TransferError::Alone) => {}
            Err(error) => tracing::warn!(%error, "stopping as leader"),
        }
    }

    /// Stops Raft as it is.
    pub async fn halt(&self) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.inner.proposer.stop();
        // Its error is the core's end by panic, which the fatal channel tells too.
        let _ = self.inner.raft.shutdown().await;
        self.inner.disk.close();
    }

    #[cfg(test)]
    pub(super) fn reconfig(&self) -> &Reconfig {
        &self.inner.reconfig
    }

    #[cfg(test)]
    pub(super) fn inner_raft(&self) -> &Raft {
        &self.inner.raft
    }
}

/// Why leadership did not move.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error("not the leader")]
    NotLeader { leader: Option<Leader> },
    #[error("node {0} is no voter")]
    NoVoter(NodeId),
    /// It would not take over, and nobody could write until somebody else did.
    #[error("node {0} cannot be reached")]
    Unreachable(NodeId),
    #[error("node {0} did not take over in time; the old leader goes on")]
    TimedOut(NodeId),
    #[error("node {leader} leads now, not node {to}")]
    AnotherLeads { to: NodeId, leader: NodeId },
    #[error("there is no other voter that can be reached")]
    Alone,
}

/// A state hash at an index and the invariants found broken there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintResult {
    pub index: u64,
    pub hash: String,
    pub violations: Vec<String>,
}

/// A member as this node sees it.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    pub node: NodeId,
    pub member: Member,
    pub voter: bool,
    pub reachable: bool,
    /// The highest machine version that it applies, as it last said.
    pub machine_version: Option<u32>,
    /// Only the leader knows.
    pub matched_index: Option<u64>,
}

/// Disk space of the data directory.
#[derive(Clone, Debug, Default)]
pub struct DiskStatus {
    pub path: String,
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub log_bytes: u64,
    pub snapshot_bytes: u64,
    /// OK, RESERVE or FULL.
    pub status: &'static str,
}

/// A standing problem that an operator should see.
#[derive(Clone, Debug)]
pub struct Alarm {
    /// Such as CLOCK_SKEW or DISK_FULL.
    pub name: &'static str,
    pub message: String,
    pub since: crate::types::Wall,
}

/// See [`Handle::status`].
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub cluster_id: String,
    pub node: NodeId,
    pub leader: Option<Leader>,
    pub term: u64,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub purged_index: u64,
    pub members: Vec<MemberStatus>,
    /// A change of members is not at its end.
    pub change_under_way: bool,
    pub disk: DiskStatus,
    pub alarms: Vec<Alarm>,
    pub metrics: Metrics,
}

/// Counters and sums since start; times in microseconds. The admin listener turns them into metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub proposals: u64,
    pub commands: u64,
    pub commands_waiting: u64,
    pub proposals_in_flight: u64,
    /// Commands in a batch: count at most 1, 4, 16, 64, 256, 1024, more.
    pub group_sizes: [u64; 7],
    pub fsyncs: u64,
    pub fsync_micros: u64,
    pub fsync_micros_buckets: [u64; 10],
    pub applied_batches: u64,
    pub apply_micros: u64,
    pub apply_micros_buckets: [u64; 10],
    pub log_bytes_written: u64,
    pub snapshots_built: u64,
    pub snapshots_installed: u64,
    pub elections: u64,
}

/// Upper bounds, in microseconds, of the buckets in [`Metrics`]; the last bucket has none.
pub const MICROS_BUCKETS: [u64; 9] = [50, 100, 250, 500, 1_000, 2_500, 10_000, 100_000, 1_000_000];
