//! Calls about who takes part in the cluster.

use tonic::transport::Channel;

use super::call::Repeat;
use super::{Client, Error, Member};
use crate::proto::v1::cluster_service_client::ClusterServiceClient;
use crate::proto::v1::{AddMemberRequest, PromoteMemberRequest, RemoveMemberRequest, SafeToStopRequest};

/// What a change of members came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changed {
    /// The members after it.
    pub members: Vec<Member>,
    /// False: it was so already.
    pub changed: bool,
}

/// Whether the cluster would go on without a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SafeToStop {
    pub safe: bool,
    /// Why, for people.
    pub reason: String,
}

impl Client {
    /// Adds the node that waits at `peer_addr` (`host:port`) as a learner; nothing changes if it is a
    /// member already. With `replace`, a node of that number which lost its data directory goes first;
    /// `force` lets it go even if too few voters answer for a quorum without it.
    pub async fn add_member(&self, node: u64, peer_addr: &str, replace: bool, force: bool) -> Result<Changed, Error> {
        let request = AddMemberRequest { node, peer_addr: peer_addr.to_owned(), replace, force };
        let rpc = |channel, request| async move { cluster(channel).add_member(request).await };
        let response = self.call(Repeat::Safe, request, rpc).await?;
        Ok(Changed { members: response.members, changed: response.changed })
    }

    /// Makes learners that have caught up voters, all in one change. `LEARNER_BEHIND` if one has not.
    pub async fn promote_members(&self, nodes: &[u64]) -> Result<Changed, Error> {
        let request = PromoteMemberRequest { nodes: nodes.to_vec() };
        let rpc = |channel, request| async move { cluster(channel).promote_member(request).await };
        let response = self.call(Repeat::Safe, request, rpc).await?;
        Ok(Changed { members: response.members, changed: response.changed })
    }

    /// Takes members out of the cluster, all in one change; answers who stays. `force` lets them go
    /// even if too few of the others answer for a quorum.
    pub async fn remove_members(&self, nodes: &[u64], force: bool) -> Result<Vec<Member>, Error> {
        let request = RemoveMemberRequest { nodes: nodes.to_vec(), force };
        let rpc = |channel, request| async move { cluster(channel).remove_member(request).await };
        // A repeat would be told that they are no members.
        Ok(self.call(Repeat::IfNotApplied, request, rpc).await?.members)
    }

    /// Whether the cluster would go on without `node`, as it stands now.
    pub async fn safe_to_stop(&self, node: u64) -> Result<SafeToStop, Error> {
        let rpc = |channel, request| async move { cluster(channel).safe_to_stop(request).await };
        let response = self.call(Repeat::Read, SafeToStopRequest { node }, rpc).await?;
        Ok(SafeToStop { safe: response.safe, reason: response.reason })
    }
}

fn cluster(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel)
}
