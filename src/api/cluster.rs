//! ClusterService.

use super::authorize::Action;
use super::call::Call;
use super::forward::{Place, Rpc};
use super::members::members;
use super::status::Refusal;
use super::validate::Problems;
use super::{Core, convert, unary_service};
use crate::machine::Reply;
use crate::machine::command::{Fingerprint, Op, SetCluster};
use crate::proto::v1;
use crate::proto::v1::cluster_service_server::ClusterService;
use crate::raft::handle::{FingerprintResult, Lane, ProposeError, TransferError};

unary_service! {
    ClusterService {
        async fn get_status(GetStatusRequest) -> GetStatusResponse;
        async fn transfer_leadership(TransferLeadershipRequest) -> TransferLeadershipResponse;
        async fn take_snapshot(TakeSnapshotRequest) -> TakeSnapshotResponse;
        async fn fingerprint(FingerprintRequest) -> FingerprintResponse;
        async fn set_cluster(SetClusterRequest) -> SetClusterResponse;
        async fn add_member(AddMemberRequest) -> AddMemberResponse;
        async fn promote_member(PromoteMemberRequest) -> PromoteMemberResponse;
        async fn remove_member(RemoveMemberRequest) -> RemoveMemberResponse;
        async fn safe_to_stop(SafeToStopRequest) -> SafeToStopResponse;
    }
}

impl Rpc for v1::GetStatusRequest {
    type Answer = v1::GetStatusResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/GetStatus";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        Place::Anybody
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        if let Some(index) = self.fingerprint_index {
            core.fingerprinted(call, |found| found.index >= index).await?;
        }
        let status = core.raft.status();
        let summary = core.raft.view(|machine| machine.summary());
        let state_hash = core.raft.fingerprint().borrow().clone().map(|found| v1::StateHash {
            index: found.index,
            hash: found.hash,
            violations: found.violations,
        });
        let leader = status.leader.as_ref();
        let leader_node = leader.map_or(0, |leader| leader.node);
        let alarms = status.alarms.iter().map(|alarm| v1::Alarm {
            name: alarm.name.to_owned(),
            message: alarm.message.clone(),
            since: Some(convert::timestamp(alarm.since)),
        });
        Ok(v1::GetStatusResponse {
            cluster_id: status.cluster_id.clone(),
            node: status.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine_version: summary.machine_version,
            leader: leader_node,
            leader_client_addr: leader.map(|leader| leader.member.client_addr.clone()).unwrap_or_default(),
            term: status.term,
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            snapshot_index: status.snapshot_index,
            purged_index: status.purged_index,
            members: members(&status),
            change_under_way: status.change_under_way,
            waiting: core.raft.waiting().unwrap_or_default(),
            disk: Some(v1::Disk {
                path: status.disk.path.clone(),
                free_bytes: status.disk.free_bytes,
                total_bytes: status.disk.total_bytes,
                log_bytes: status.disk.log_bytes,
                snapshot_bytes: status.disk.snapshot_bytes,
                status: status.disk.status.to_owned(),
            }),
            alarms: alarms.collect(),
            state_hash,
            queues: summary.queues,
            packages: summary.packages,
            sessions: summary.sessions,
            uptime: Some(convert::duration(core.began.elapsed().as_millis() as u64)),
            revision: summary.revision.0,
        })
    }
}

impl Core {
    /// Waits for a fingerprint of this node's state.
    async fn fingerprinted(
        &self,
        call: &Call,
        wanted: impl Fn(&FingerprintResult) -> bool,
    ) -> Result<FingerprintResult, Refusal> {
        let mut latest = self.raft.fingerprint();
        let found = latest.wait_for(|found| found.as_ref().is_some_and(&wanted));
        match tokio::time::timeout_at(call.ends(), found).await {
            Ok(Ok(found)) => found.clone().ok_or(Refusal::Internal("a fingerprint went away")),
            Ok(Err(_)) => Err(ProposeError::ShuttingDown.into()),
            Err(_) => Err(Refusal::Deadline),
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.raft.view(|machine| machine.summary().revision.0)
    }
}

impl Rpc for v1::TransferLeadershipRequest {
    type Answer = v1::TransferLeadershipResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/TransferLeadership";
    const ACTION: Action = Action::ManageCluster;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let to = Some(self.to).filter(|to| *to != 0);
        let leader = core.raft.transfer_leadership(to, call.left()).await.map_err(|error| match error {
            TransferError::NotLeader { leader } => ProposeError::NotLeader { leader }.into(),
            other => Refusal::Transfer(other),
        })?;
        Ok(v1::TransferLeadershipResponse { leader, revision: core.revision() })
    }
}

impl Rpc for v1::TakeSnapshotRequest {
    type Answer = v1::TakeSnapshotResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/TakeSnapshot";
    const ACTION: Action = Action::ManageCluster;

    fn place(&self) -> Place {
        Place::Anybody
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let snapshot_index = core.raft.take_snapshot(call.left()).await?;
        Ok(v1::TakeSnapshotResponse { snapshot_index, revision: core.revision() })
    }
}

impl Rpc for v1::FingerprintRequest {
    type Answer = v1::FingerprintResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/Fingerprint";
    const ACTION: Action = Action::ManageCluster;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let before = core.raft.fingerprint().borrow().as_ref().map_or(0, |found| found.index);
        let (_, revision) = core.propose(Lane::Settle, Op::Fingerprint(Fingerprint {}), call).await?;
        // This one or a later one: every node computes each, and the latest is what they show.
        let found = core.fingerprinted(call, |found| found.index > before).await?;
        Ok(v1::FingerprintResponse { index: found.index, revision: revision.0 })
    }
}

impl Rpc for v1::SetClusterRequest {
    type Answer = v1::SetClusterResponse;
    const PATH: &'static str = "/wharf.v1.ClusterService/SetCluster";
    const ACTION: Action = Action::ManageCluster;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        let settings = convert::new_cluster(&self.settings.unwrap_or_default(), &mut problems);
        problems.check()?;
        match core.propose(Lane::Settle, Op::SetCluster(SetCluster { settings: Some(settings) }), call).await? {
            (Reply::Cluster(settings), revision) => {
                Ok(v1::SetClusterResponse { settings: Some(convert::cluster(&settings)), revision: revision.0 })
            }
            _ => Err(Refusal::Internal("the cluster's change was answered by something else")),
        }
    }
}
