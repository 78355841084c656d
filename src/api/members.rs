//! ClusterService: who takes part. The leader decides and carries out; see `raft::membership`.

use std::collections::BTreeSet;

use super::Core;
use super::authorize::Action;
use super::call::Call;
use super::forward::{Place, Rpc};
use super::status::Refusal;
use super::validate::{At, Problems};
use crate::proto::v1;
use crate::raft::handle::Status;
use crate::types::{NodeId, limits};

/// The members of a status, as messages.
pub(super) fn members(status: &Status) -> Vec<v1::Member> {
    let leader = status.leader.as_ref().map_or(0, |leader| leader.node);
    let leads = leader == status.node;
    let member = |member: &crate::raft::handle::MemberStatus| v1::Member {
        node: member.node,
        client_addr: member.member.client_addr.clone(),
        peer_addr: member.member.peer_addr.clone(),
        admin_addr: member.member.admin_addr.clone(),
        voter: member.voter,
        leader: member.node == leader,
        reachable: member.reachable,
        matched_index: member.matched_index.filter(|_| leads),
        lag: member.matched_index.filter(|_| leads).map(|matched| status.last_log_index.saturating_sub(matched)),
        incarnation: format!("{:016x}", member.member.incarnation),
        machine_version: member.machine_version.unwrap_or(0),
    };
    status.members.iter().map(member).collect()
}

impl Rpc for v1::AddMemberRequest {
    type Answer = v1::AddMemberResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/AddMember";
    const ACTION: Action = Action::ManageCluster;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        if self.node == 0 {
            problems.bad(At::Top, "node", "must be 1 or more");
        }
        if self.peer_addr.len() > limits::MAX_ADDR_BYTES || !is_addr(&self.peer_addr) {
            problems.bad(At::Top, "peer_addr", "must be host:port, the peer address of the node");
        }
        problems.check()?;
        let added = core.raft.add_member(self.node, &self.peer_addr, self.replace, self.force, call.left()).await?;
        let members = members(&core.raft.status());
        Ok(v1::AddMemberResponse { members, changed: added, revision: core.revision() })
    }
}

impl Rpc for v1::PromoteMemberRequest {
    type Answer = v1::PromoteMemberResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/PromoteMember";
    const ACTION: Action = Action::ManageCluster;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let changed = core.raft.promote_members(&some_nodes(&self.nodes)?, call.left()).await?;
        let members = members(&core.raft.status());
        Ok(v1::PromoteMemberResponse { members, changed, revision: core.revision() })
    }
}

impl Rpc for v1::RemoveMemberRequest {
    type Answer = v1::RemoveMemberResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/RemoveMember";
    const ACTION: Action = Action::ManageCluster;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        core.raft.remove_members(&some_nodes(&self.nodes)?, self.force, call.left()).await?;
        let members = members(&core.raft.status());
        Ok(v1::RemoveMemberResponse { members, revision: core.revision() })
    }
}

impl Rpc for v1::SafeToStopRequest {
    type Answer = v1::SafeToStopResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/SafeToStop";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        Place::LeaderRead
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        // A leader that is cut off sees a quorum that is none any more.
        core.raft.read_barrier(call.left()).await?;
        let (safe, reason) = core.raft.safe_to_stop(self.node).await?;
        Ok(v1::SafeToStopResponse { safe, reason, revision: core.revision() })
    }
}

fn some_nodes(nodes: &[NodeId]) -> Result<BTreeSet<NodeId>, Refusal> {
    let mut problems = Problems::default();
    problems.items("nodes", nodes.len(), limits::MAX_MEMBERS, true);
    problems.check()?;
    Ok(nodes.iter().copied().collect())
}

fn is_addr(addr: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    addr.rsplit_once(':').is_some_and(|(host, text)| !host.is_empty() && !host.contains(['/', ' ']) && port(text))
}
