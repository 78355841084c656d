//! Fast failover: a leader whose process is gone is replaced at once instead of after a timeout.
//!
//! A follower whose append stream broke off dials the leader anew. Refused means that nobody
//! listens there: it asks the others `LeaderGone`, and if a quorum, itself included, saw the same,
//! it stands for election, the one with the longest log first, for nobody else would get the votes;
//! among equals the lowest number. Its votes say why (`leader_gone`), so that voters let the old
//! leader's lease go; a voter that still hears that leader does not.
//!
//! Invariants: it only ever makes an election earlier; which leader wins, and what is committed,
//! stays Raft's. Leader leases mean nothing for reads here (the read index is used). A node starts
//! at most one such election in `FAILOVER_EVERY_MS`. A silent loss is the timeout's business.

use std::cmp::Reverse;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::convert::Membership;
use super::network::{Channels, GoneVote, Purpose};
use super::peer_server::Raft;
use super::peers::Peers;
use crate::proto::internal as pb;
use crate::types::{NodeId, limits};

/// Between two looks while the loss is not certain yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// See the module.
pub struct Failover {
    pub(super) peers: Arc<Peers>,
    pub(super) channels: Arc<Channels>,
    pub(super) gone_vote: Arc<GoneVote>,
    pub(super) last: Mutex<Option<Instant>>,
}

impl Failover {
    /// The task: until Raft stops.
    pub async fn run(self: Arc<Self>, raft: Raft) {
        let mut metrics = raft.server_metrics();
        loop {
            tokio::select! {
                biased;
                () = self.peers.lost_notify.notified() => {}
                // Only to notice the end.
                changed = metrics.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            if let Some(lost) = self.peers.take_lost() {
                self.on_lost(&raft, lost).await;
            }
        }
    }

    async fn on_lost(&self, raft: &Raft, lost: NodeId) {
        let view = raft.server_metrics().borrow_watched().clone();
        let voters: Vec<NodeId> = view.membership_config.voter_ids().collect();
        if view.current_leader != Some(lost) || lost == self.peers.node || !voters.contains(&self.peers.node) {
            return;
        }
        let term = view.vote.leader_id.term;
        let until = Instant::now() + Duration::from_millis(limits::FAILOVER_TRY_MS);
        let rank = loop {
            if let Some(rank) = self.try_once(raft, &voters, lost, term, view.membership_config.membership()).await {
                break rank;
            }
            let now = raft.server_metrics().borrow_watched().clone();
            if Instant::now() >= until || now.vote.leader_id.term != term || self.peers.hears(lost) {
                tracing::info!(leader = lost, "lost the leader, but too few others did: waiting for the timeout");
                return;
            }
            sleep(LOOK_AGAIN).await;
        };
        if rank > 0 {
            sleep(Duration::from_millis(rank * limits::FAILOVER_STAGGER_MS)).await;
        }
        let now = raft.server_metrics().borrow_watched().clone();
        if now.vote.leader_id.term != term || now.current_leader != Some(lost) || !self.may_stand() {
            return;
        }
        tracing::info!(leader = lost, term, "the leader is gone: standing for election");
        self.gone_vote.arm();
        if let Err(fatal) = raft.trigger().elect(false).await {
            tracing::debug!(%fatal, "no election: raft stops");
        }
    }

    /// If a quorum lost the leader: how many of it go before this node.
    async fn try_once(
        &self,
        raft: &Raft,
        voters: &[NodeId],
        lost: NodeId,
        term: u64,
        membership: &Membership,
    ) -> Option<u64> {
        if !self.is_gone(lost).await {
            return None;
        }
        let others = self.ask(voters, lost, term, membership).await?;
        let last = raft.data_metrics().borrow_watched().last_log;
        let own = (last.map(|last| (last.committed_leader_id().term, last.index)), Reverse(self.peers.node));
        let before = |(other, last): &(NodeId, Option<pb::LogId>)| {
            (last.map(|last| (last.term, last.index)), Reverse(*other)) > own
        };
        Some(others.iter().filter(|other| before(other)).count() as u64)
    }

    fn may_stand(&self) -> bool {
        let mut last = self.last.lock();
        let every = Duration::from_millis(limits::FAILOVER_EVERY_MS);
        if last.is_some_and(|at| at.elapsed() < every) {
            return false;
        }
        *last = Some(Instant::now());
        true
    }

    /// Whether this node lost its stream from `leader` and nobody listens there any more. A loss
    /// that is just being noticed is waited for.
    pub async fn is_gone(&self, leader: NodeId) -> bool {
        let until = Instant::now() + Duration::from_millis(limits::FAILOVER_ASK_MS);
        let Some(member) = self.peers.member(leader) else { return false };
        loop {
            if !self.peers.hears(leader) && self.is_refused(&member.peer_addr).await {
                return true;
            }
            if leader == self.peers.node || Instant::now() >= until {
                return false;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn is_refused(&self, addr: &str) -> bool {
        let limit = Duration::from_millis(limits::FAILOVER_ASK_MS);
        match timeout(limit, self.peers.env().net.connect(addr)).await {
            Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
            Ok(Ok(_)) | Err(_) => false,
        }
    }

    /// Who else lost `leader`, with the ends of their logs, once that and this node are a quorum.
    async fn ask(
        &self,
        voters: &[NodeId],
        leader: NodeId,
        term: u64,
        membership: &Membership,
    ) -> Option<Vec<(NodeId, Option<pb::LogId>)>> {
        let mut agreeing = vec![self.peers.node];
        let mut others = Vec::new();
        let asked = voters.iter().filter(|voter| **voter != leader && **voter != self.peers.node);
        let mut answers: FuturesUnordered<_> = asked.map(|voter| self.ask_one(*voter, leader, term)).collect();
        loop {
            if is_quorum(membership, &agreeing) {
                return Some(others);
            }
            if let Some((voter, last)) = answers.next().await? {
                agreeing.push(voter);
                others.push((voter, last));
            }
        }
    }

    async fn ask_one(&self, voter: NodeId, leader: NodeId, term: u64) -> Option<(NodeId, Option<pb::LogId>)> {
        let member = self.peers.member(voter)?;
        let envelope = Some(self.peers.envelope(voter, member.incarnation));
        let mut client = self.channels.client(voter, &member.peer_addr, Purpose::Raft);
        let limit = Duration::from_millis(2 * limits::FAILOVER_ASK_MS);
        let request = pb::LeaderGoneRequest { envelope, term, leader };
        match timeout(limit, client.leader_gone(request)).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                answer.gone.then_some((voter, answer.last_log_id))
            }
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

/// A majority of each configuration in force.
fn is_quorum(membership: &Membership, nodes: &[NodeId]) -> bool {
    membership
        .get_joint_config()
        .iter()
        .all(|config| config.iter().filter(|voter| nodes.contains(voter)).count() > config.len() / 2)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn a_quorum_is_a_majority_of_each_configuration() {
        let nodes: BTreeMap<NodeId, _> = (1..=5).map(|node| (node, Default::default())).collect();
        let of = |configs: &[&[NodeId]]| {
            let configs = configs.iter().map(|config| config.iter().copied().collect::<BTreeSet<_>>()).collect();
            Membership::new(configs, nodes.clone()).expect("every voter is a member")
        };
        assert!(is_quorum(&of(&[&[1, 2, 3]]), &[2, 3]));
        assert!(!is_quorum(&of(&[&[1, 2, 3]]), &[2]));
        assert!(!is_quorum(&of(&[&[1, 2, 3]]), &[2, 4]), "learners do not count");
        assert!(!is_quorum(&of(&[&[1, 2, 3], &[3, 4, 5]]), &[2, 3]));
        assert!(is_quorum(&of(&[&[1, 2, 3], &[3, 4, 5]]), &[2, 3, 4]));
    }
}
