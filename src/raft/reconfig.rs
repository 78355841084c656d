//! Carrying out changes of members, on the leader; [`super::membership`] decides.
//!
//! A voter change takes two log entries: a joint configuration, then the new one alone. openraft
//! leaves the second to whoever asked for the change, so a leader that dies between them leaves the
//! cluster joint. Whoever leads then finishes it: the first entry is committed, so the change was
//! decided. If it never reached a quorum, the next leader does not have it: the change is undone.
//!
//! Invariants: one change at a time, under one lock, and none is begun before the last one is
//! committed. A change belongs to one leadership and is left when that ends. Removed voters leave the
//! membership wholly, so a later node of that number starts with nothing: openraft keeps what it knows
//! of a node's log for as long as that node is a member. A member's addresses change only to where it
//! answers, its incarnation never.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use tokio::sync::{OwnedMutexGuard, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::bootstrap;
use super::handle::{Lane, Responder, Standing};
use super::machine_adapter::State;
use super::membership::{Add, Error, Newcomer, Remove, Seen, View};
use super::network::{Channels, Purpose};
use super::peer_server::Raft;
use super::peers::{PeerView, Peers};
use super::proposer::Proposer;
use super::types::{Member, TypeConfig};
use crate::machine::command::{Command, Op, RaiseVersion};
use crate::proto::internal as pb;
use crate::types::{NodeId, limits};

type Change = ChangeMembers<NodeId, Member>;

/// A leader looks this often whether the membership wants something: a change that was left half
/// done, an address, a higher machine version.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a peer said longer ago than this does not count for its version.
const VERSION_STALE: Duration = Duration::from_millis(limits::PEER_CLOCK_STALE_MS);

/// See the module.
pub struct Reconfig {
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub channels: Arc<Channels>,
    pub proposer: Arc<Proposer>,
    pub state: Arc<State>,
    pub standing: watch::Receiver<Standing>,
    /// One change at a time.
    pub one: Arc<tokio::sync::Mutex<()>>,
}

/// The right to change members, in one leadership.
struct Turn {
    term: u64,
    view: View,
    lock: OwnedMutexGuard<()>,
}

impl Turn {
    /// Members that do not answer now count as silent, whatever was heard of them lately.
    fn among(mut self, answering: &BTreeMap<NodeId, u64>) -> Self {
        self.view.only(answering);
        self
    }
}

impl Reconfig {
    /// Adds the node that waits at `addr` as a learner. False: it is a member already.
    pub async fn add(
        &self,
        node: NodeId,
        addr: &str,
        replace: bool,
        force: bool,
        limit: Duration,
    ) -> Result<bool, Error> {
        self.term()?;
        let newcomer = self.meet(node, addr).await?;
        let answering = self.answering().await;
        let turn = self.begin()?.among(&answering);
        let state_version = self.state_version();
        let learner = |member| ChangeMembers::AddNodes(BTreeMap::from([(node, member)]));
        let member = newcomer.member.clone();
        let steps = match turn.view.add(&newcomer, state_version, replace, force)? {
            Add::Nothing => return Ok(false),
            Add::Learner => vec![learner(member)],
            Add::Replace { voter: true } => vec![ChangeMembers::RemoveVoters([node].into()), learner(member)],
            Add::Replace { voter: false } => vec![ChangeMembers::RemoveNodes([node].into()), learner(member)],
        };
        tracing::info!(node, addr = newcomer.member.peer_addr, replace, "adding a learner");
        self.carry_out(turn, steps, limit).await?;
        Ok(true)
    }

    /// Makes learners voters, all at once. False: all are voters.
    pub async fn promote(&self, nodes: &BTreeSet<NodeId>, limit: Duration) -> Result<bool, Error> {
        self.term()?;
        let answering = self.answering().await;
        let turn = self.begin()?.among(&answering);
        let learners = turn.view.promote(nodes)?;
        if learners.is_empty() {
            return Ok(false);
        }
        tracing::info!(nodes = ?learners, "making learners voters");
        self.carry_out(turn, vec![ChangeMembers::AddVoterIds(learners)], limit).await?;
        Ok(true)
    }

    /// Removes members, all at once. Some: this node is among them, and that one should lead first.
    pub async fn remove(
        &self,
        nodes: &BTreeSet<NodeId>,
        force: bool,
        limit: Duration,
    ) -> Result<Option<NodeId>, Error> {
        self.term()?;
        let answering = self.answering().await;
        let turn = self.begin()?.among(&answering);
        let Remove { voters, learners } = turn.view.remove(nodes, force)?;
        if nodes.contains(&turn.view.own) {
            let voters = turn.view.voters.iter().flatten().count();
            return turn.view.successor(nodes).map(Some).ok_or(Error::QuorumLost { current: 0, voters });
        }
        tracing::info!(?nodes, "removing members");
        let mut changes = Vec::new();
        changes.extend((!learners.is_empty()).then_some(ChangeMembers::RemoveNodes(learners)));
        changes.extend((!voters.is_empty()).then_some(ChangeMembers::RemoveVoters(voters)));
        self.carry_out(turn, vec![ChangeMembers::Batch(changes)], limit).await?;
        Ok(None)
    }

    /// Whether the cluster goes on if `node` stops now, and why.
    pub async fn safe_to_stop(&self, node: NodeId) -> Result<(bool, String), Error> {
        self.term()?;
        let answering = self.answering().await;
        let mut view = self.view();
        view.only(&answering);
        view.safe_to_stop(node)
    }

    /// Whether a change is not at its end.
    pub fn under_way(&self) -> bool {
        self.view().under_way()
    }

    /// The leader's task: finishes what was left half done, follows members that moved, raises the
    /// machine version. Until Raft stops.
    pub async fn run(self: Arc<Self>) {
        let metrics = self.raft.metrics();
        let mut complained = BTreeMap::new();
        loop {
            sleep(LOOK_EVERY).await;
            if metrics.borrow_watched().running_state.is_err() {
                return;
            }
            if self.term().is_err() {
                complained.clear();
                continue;
            }
            let view = self.view();
            if view.half_done() {
                self.finish().await;
            } else if !view.under_way() {
                self.follow_moves(&view, &mut complained).await;
                self.raise_version().await;
            }
        }
    }

    /// The second half of a change whose first half was left by a former leader.
    async fn finish(&self) {
        // Whoever carries a change out has the lock, and finishes it itself.
        let Ok(lock) = Arc::clone(&self.one).try_lock_owned() else { return };
        let Ok(term) = self.term() else { return };
        let view = self.view();
        if !view.half_done() {
            return;
        }
        tracing::info!(voters = ?view.voters, "finishing a change of members that was left half done");
        // Nobody is added: the joint configuration gives way to its second half.
        let step = ChangeMembers::AddVoterIds(BTreeSet::new());
        let limit = Duration::from_millis(limits::PROPOSAL_DEADLINE_MS);
        if let Err(error) = self.carry_out(Turn { term, view, lock }, vec![step], limit).await {
            tracing::warn!(%error, "could not finish the change of members yet");
        }
    }

    /// Members that came back with other addresses, once they answer there.
    async fn follow_moves(&self, view: &View, complained: &mut BTreeMap<NodeId, Member>) {
        for (node, told) in view.moved() {
            let answered = self.probe(node, &told.peer_addr).await;
            let same = answered.is_ok_and(|answer| answer.incarnation == told.incarnation);
            if !same {
                if complained.insert(node, told.clone()).as_ref() != Some(&told) {
                    tracing::warn!(node, told.peer_addr, "a member names an address where it does not answer");
                }
                continue;
            }
            let Ok(turn) = self.begin() else { return };
            if !turn.view.moved().contains(&(node, told.clone())) {
                continue;
            }
            tracing::info!(node, peer = told.peer_addr, client = told.client_addr, "a member has new addresses");
            let step = ChangeMembers::SetNodes(BTreeMap::from([(node, told)]));
            let limit = Duration::from_millis(limits::PROPOSAL_DEADLINE_MS);
            if let Err(error) = self.carry_out(turn, vec![step], limit).await {
                tracing::warn!(node, %error, "could not note the new addresses yet");
            }
        }
    }

    /// Holds the lock, so that no node joins that could not follow.
    async fn raise_version(&self) {
        if self.view().version_to_raise(self.state_version()).is_none() {
            return;
        }
        let Ok(turn) = self.begin() else { return };
        let Some(version) = turn.view.version_to_raise(self.state_version()) else { return };
        tracing::info!(version, "every member applies a higher machine version: raising the state to it");
        let (answer, answered) = oneshot::channel();
        let command = Command { op: Some(Op::RaiseVersion(RaiseVersion { version })) };
        self.proposer.send(Lane::Settle, &command, Responder::Oneshot(answer));
        // Whatever the answer, the state tells what is next.
        let _ = answered.await;
    }

    fn state_version(&self) -> u32 {
        self.state.machine.read().summary().machine_version
    }

    fn term(&self) -> Result<u64, Error> {
        let standing = self.standing.borrow();
        standing.leading.ok_or_else(|| Error::NotLeader { leader: standing.leader.clone() })
    }

    fn begin(&self) -> Result<Turn, Error> {
        let term = self.term()?;
        let lock = Arc::clone(&self.one).try_lock_owned().map_err(|_| Error::UnderWay)?;
        let view = self.view();
        if view.under_way() { Err(Error::UnderWay) } else { Ok(Turn { term, view, lock }) }
    }

    /// The membership in force and what is known of its members.
    pub fn view(&self) -> View {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let stored = &metrics.membership_config;
        let heard: BTreeMap<NodeId, PeerView> =
            self.peers.members().into_iter().map(|peer| (peer.node, peer)).collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = |node: &NodeId| metrics.replication.as_ref()?.get(node)?.as_ref().map(|id| id.index);
        let seen = |node: &NodeId, member: &Member| {
            let own = *node == self.peers.node;
            let peer = heard.get(node).filter(|peer| peer.member.incarnation == member.incarnation);
            let lately = peer.and_then(|peer| peer.heard).filter(|heard| heard.at.elapsed() < VERSION_STALE);
            Seen {
                member: member.clone(),
                reachable: own || peer.is_some_and(|peer| peer.reachable),
                behind: if own { Some(0) } else { matched(node).map(|at| last.saturating_sub(at)) },
                version: if own {
                    Some(self.peers.machine_version())
                } else {
                    lately.map(|heard| heard.machine_version)
                },
                told: if own { Some(self.peers.own.clone()) } else { peer.and_then(|peer| peer.told.clone()) },
            }
        };
        View {
            own: self.peers.node,
            voters: stored.membership().get_joint_config().clone(),
            committed: stored.log_id() == metrics.committed_membership_config.log_id(),
            last,
            members: stored.membership().nodes().map(|(node, member)| (*node, seen(node, member))).collect(),
        }
    }

    /// Who answers at `addr`, and at the address that it tells others.
    async fn meet(&self, node: NodeId, addr: &str) -> Result<Newcomer, Error> {
        let answer = self.probe(node, addr).await?;
        let (health, incarnation) = (answer.health.unwrap_or_default(), answer.incarnation);
        let ours = self.peers.cluster_id();
        let another = !answer.cluster_id.is_empty() && answer.cluster_id != ours;
        let member = bootstrap::told(answer);
        if member.peer_addr != addr {
            let again = self.probe(node, &member.peer_addr).await;
            if !again.is_ok_and(|again| again.incarnation == incarnation) {
                return Err(Error::Misadvertised { node, told: member.peer_addr });
            }
        }
        Ok(Newcomer { node, member, machine_version: health.machine_version, elsewhere: another })
    }

    /// Whether this member, and no other node of its number, answers now.
    pub async fn answers(&self, node: NodeId) -> bool {
        let Some(member) = self.peers.member(node) else { return false };
        let answer = self.probe(node, &member.peer_addr).await;
        answer.is_ok_and(|answer| answer.incarnation == member.incarnation)
    }

    /// The members that answer now, with their incarnations. Who died a moment ago still counts as
    /// reachable, and a change that counts on it would stand still, with the whole cluster.
    async fn answering(&self) -> BTreeMap<NodeId, u64> {
        let members = self.view().members;
        let probes = members.into_iter().map(|(node, seen)| async move {
            if node == self.peers.node {
                return Some((node, self.peers.own.incarnation));
            }
            let answer = self.probe(node, &seen.member.peer_addr).await.ok()?;
            Some((node, answer.incarnation))
        });
        futures::future::join_all(probes).await.into_iter().flatten().collect()
    }

    async fn probe(&self, node: NodeId, addr: &str) -> Result<pb::ProbeResponse, Error> {
        // Incarnation 0: not known yet.
        let request = pb::ProbeRequest { envelope: Some(self.peers.envelope(node, 0)), ..Default::default() };
        let mut client = self.channels.client(node, addr, Purpose::Probe);
        let no_answer = |why: String| Error::NoAnswer { node, addr: addr.to_owned(), why };
        match timeout(Duration::from_millis(limits::PROBE_MS), client.probe(request)).await {
            Err(_) => Err(no_answer("no answer in time".to_owned())),
            Ok(Err(status)) => Err(no_answer(status.message().to_owned())),
            Ok(Ok(answer)) => Ok(answer.into_inner()),
        }
    }

    /// Takes the steps, one after the other. They go on when the caller has given up, and are left
    /// when the leadership ends: openraft may never answer then.
    async fn carry_out(&self, turn: Turn, steps: Vec<Change>, limit: Duration) -> Result<(), Error> {
        let raft = self.raft.clone();
        let mut standing = self.standing.clone();
        let work = tokio::spawn(async move {
            let Turn { term, lock, .. } = turn;
            let all = async {
                for step in steps {
                    commit(&raft, term, step).await?;
                }
                Ok(())
            };
            let ended = standing.wait_for(|now| now.leading != Some(term));
            let done = tokio::select! {
                biased;
                done = all => done,
                _ = ended => Err(Error::Unknown { why: "leadership ended" }),
            };
            drop(lock);
            done
        });
        match timeout(limit, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Error::Unknown { why: "the node stopped" }),
            Err(_) => Err(Error::Unknown { why: "no quorum took it within the caller's deadline" }),
        }
    }
}

/// One change to its end. Voters that go are dropped, not kept as learners.
async fn commit(raft: &Raft, term: u64, change: Change) -> Result<(), Error> {
    let committed_leader_id = openraft::vote::leader_id_std::CommittedLeaderId::new(term);
    let leads = Precondition::<TypeConfig>::CommittedLeaderId { committed_leader_id };
    let outcome = raft.change_membership_if(change, false, [leads]).await;
    match outcome {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(refused))) => match refused {
            ChangeMembershipError::InProgress(_) => Err(Error::UnderWay),
            ChangeMembershipError::EmptyMembership(_) => Err(Error::LastVoter),
            ChangeMembershipError::LearnerNotFound(missing) => Err(Error::NoMember(missing.node_id)),
            _ => Err(Error::Unknown { why: "raft refused a step of the change" }),
        },
        // It may be the second half that was not taken.
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
            Err(Error::Unknown { why: "leadership ended" })
        }
        Err(RaftError::APIError(_)) => Err(Error::Unknown { why: "leadership changed hands" }),
        Err(RaftError::Fatal(_)) => Err(Error::Unknown { why: "the node stops" }),
    }
}
