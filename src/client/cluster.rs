//! Calls about the cluster and its nodes.

use std::time::Duration;

use tonic::transport::Channel;

use super::call::Repeat;
use super::packages::malformed;
use super::{Client, ClusterSettings, Error, NodeStatus, StateHash};
use crate::proto::v1::cluster_service_client::ClusterServiceClient;
use crate::proto::v1::{
    FingerprintRequest, GetStatusRequest, SetClusterRequest, TakeSnapshotRequest, TransferLeadershipRequest,
};

impl Client {
    /// What one node sees, whichever answers.
    pub async fn status(&self) -> Result<NodeStatus, Error> {
        let request = GetStatusRequest::default();
        self.call(Repeat::Read, request, |channel, request| async move { cluster(channel).get_status(request).await })
            .await
    }

    /// What the node at `addr` sees. One try, at most `within`.
    pub async fn status_of(&self, addr: &str, within: Duration) -> Result<NodeStatus, Error> {
        self.ask_status(addr, within, GetStatusRequest::default()).await
    }

    /// What every node sees: those that the client was given and those that they name. Asks them
    /// all at once, each for at most `within`.
    pub async fn statuses(&self, within: Duration) -> Vec<(String, Result<NodeStatus, Error>)> {
        let asked = self.addresses();
        let mut answers = self.ask_all(&asked, within).await;
        let named = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).flat_map(|status| &status.members);
        let mut others: Vec<String> = named.map(|member| member.client_addr.clone()).collect();
        others.sort();
        others.dedup();
        others.retain(|addr| !addr.is_empty() && !asked.contains(addr));
        // One node may be known by two addresses; its number tells.
        let more = self.ask_all(&others, within).await;
        for (addr, answer) in more {
            let node = answer.as_ref().ok().map(|status| status.node);
            let seen = answers.iter().any(|(_, a)| node.is_some() && a.as_ref().ok().map(|s| s.node) == node);
            if !seen {
                answers.push((addr, answer));
            }
        }
        answers
    }

    /// Moves leadership to node `to`, or to the most current voter if 0. Answers who leads.
    pub async fn transfer_leadership(&self, to: u64) -> Result<u64, Error> {
        let request = TransferLeadershipRequest { to };
        let repeat = if to == 0 { Repeat::IfNotApplied } else { Repeat::Safe };
        let response =
            self.call(repeat, request, |channel, request| async move {
                cluster(channel).transfer_leadership(request).await
            })
            .await?;
        Ok(response.leader)
    }

    /// Writes a snapshot on the node at `addr`; answers its log index.
    pub async fn take_snapshot(&self, addr: &str) -> Result<u64, Error> {
        let node = self.nodes.node(addr).await?;
        let rpc = |channel, request| async move { cluster(channel).take_snapshot(request).await };
        let response = self.call_node(&node, self.timeout, TakeSnapshotRequest {}, &rpc).await?;
        Ok(response.snapshot_index)
    }

    /// Marks a log index at which every node computes its state hash; see [`Self::state_hash`].
    pub async fn fingerprint(&self) -> Result<u64, Error> {
        let response = self
            .call(Repeat::Safe, FingerprintRequest {}, |channel, request| async move {
                cluster(channel).fingerprint(request).await
            })
            .await?;
        Ok(response.index)
    }

    /// The state hash of the node at `addr` at a fingerprinted `index`; waits until it got there.
    pub async fn state_hash(&self, addr: &str, index: u64, within: Duration) -> Result<StateHash, Error> {
        let request = GetStatusRequest { fingerprint_index: Some(index) };
        let status = self.ask_status(addr, within, request).await?;
        status.state_hash.ok_or_else(|| malformed("a fingerprint without its hash"))
    }

    /// Changes the numbers that the machine reads; what is absent stays. Answers with all of them.
    pub async fn set_cluster(&self, settings: ClusterSettings) -> Result<ClusterSettings, Error> {
        let request = SetClusterRequest { settings: Some(settings) };
        let response = self
            .call(Repeat::Safe, request, |channel, request| async move { cluster(channel).set_cluster(request).await })
            .await?;
        response.settings.ok_or_else(|| malformed("an answer without its settings"))
    }

    async fn ask_all(&self, addrs: &[String], within: Duration) -> Vec<(String, Result<NodeStatus, Error>)> {
        let asked = addrs.iter().map(|addr| async move { (addr.clone(), self.status_of(addr, within).await) });
        futures::future::join_all(asked).await
    }

    async fn ask_status(&self, addr: &str, within: Duration, request: GetStatusRequest) -> Result<NodeStatus, Error> {
        let node = self.nodes.node(addr).await?;
        let rpc = |channel, request| async move { cluster(channel).get_status(request).await };
        self.call_node(&node, within, request, &rpc).await
    }
}

fn cluster(channel: Channel) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(channel)
}
