//! Forming a cluster from configuration, exactly once.
//!
//! Nodes start in any order and probe each other until the log says that they belong to a cluster.
//! The one with the lowest number forms it, once every listed node has answered, is configured
//! with the same list and belongs to none; it learned their incarnations on the way, so that only
//! these very data directories take part. The others adopt the cluster when it speaks to them. A node
//! without a list waits to be added.
//!
//! Invariants: the cluster's id is durable before Raft is initialized, so a crash in between goes
//! on with the same one. A node that the cluster knows under another incarnation was wiped: it takes
//! no part, and tells the command that gives it its place anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::errors::{InitializeError, RaftError};
use tokio::time::{sleep, timeout};

use super::convert;
use super::network::{Channels, Purpose};
use super::peer_server::Raft;
use super::peers::{Peers, rejoin};
use super::types::Member;
use crate::proto::internal as pb;
use crate::types::{NodeId, limits};

/// A node of the configured list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapNode {
    pub node: NodeId,
    pub peer_addr: String,
    pub client_addr: String,
    pub admin_addr: String,
}

/// A digest of the list: nodes that disagree must not form a cluster. Empty for an empty list.
pub fn digest(nodes: &[BootstrapNode]) -> Bytes {
    if nodes.is_empty() {
        return Bytes::new();
    }
    let mut nodes: Vec<_> = nodes.iter().collect();
    nodes.sort_by_key(|node| node.node);
    let mut hasher = blake3::Hasher::new();
    for node in nodes {
        hasher.update(&node.node.to_le_bytes());
        hasher.update(&(node.peer_addr.len() as u64).to_le_bytes());
        hasher.update(node.peer_addr.as_bytes());
    }
    Bytes::copy_from_slice(hasher.finalize().as_bytes())
}

/// See the module.
pub struct Bootstrap {
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub channels: Arc<Channels>,
    pub nodes: Vec<BootstrapNode>,
}

/// Why the node cannot take part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    Removed(String),
    #[error("{0}")]
    Failed(String),
}

impl Bootstrap {
    /// Until the node belongs to a cluster. A node without a list waits to be added to one.
    pub async fn run(self) -> Result<(), Refused> {
        let digest = digest(&self.nodes);
        loop {
            match self.raft.is_initialized().await {
                Ok(true) | Err(_) => break,
                Ok(false) => {}
            }
            let round = self.round(&digest).await?;
            self.peers.set_apart(self.nodes.is_empty() || matches!(round, Round::Refused(_)));
            match round {
                Round::Formed => break,
                Round::Waiting(why) => {
                    if self.peers.set_waiting(Some(why.clone())) {
                        tracing::info!(%why, "no cluster yet");
                    }
                }
                Round::Refused(why) => {
                    if self.peers.set_waiting(Some(why.clone())) {
                        tracing::error!(%why, "refused");
                    }
                }
            }
            let jitter = self.peers.env().random.next() % limits::BOOTSTRAP_RETRY_MS;
            sleep(Duration::from_millis(limits::BOOTSTRAP_RETRY_MS + jitter)).await;
        }
        self.peers.set_waiting(None);
        self.peers.set_apart(false);
        Ok(())
    }

    async fn round(&self, digest: &Bytes) -> Result<Round, Refused> {
        let own = self.peers.node;
        if self.nodes.is_empty() {
            let addr = &self.peers.own.peer_addr;
            return Ok(match self.peers.refused() {
                Some(why) => Round::Refused(why),
                None => Round::Waiting(format!("waiting to be added: wharf cluster add-node {own} --peer {addr}")),
            });
        }
        let others = self.nodes.iter().filter(|node| node.node != own);
        let mut probes: FuturesUnordered<_> = others.map(|node| self.probe(node, digest)).collect();
        let mut met = BTreeMap::from([(own, self.peers.own.clone())]);
        let mut problem = None;
        while let Some((node, answer)) = probes.next().await {
            let answer = match answer {
                Ok(answer) => answer,
                Err(why) => {
                    problem.get_or_insert(format!("node {node} does not answer: {why}"));
                    continue;
                }
            };
            let known = answer.known_incarnation;
            if known != 0 && known != self.peers.own.incarnation {
                let own = &self.peers.own;
                return Ok(Round::Refused(rejoin(self.peers.node, own.incarnation, known, &own.peer_addr)));
            }
            if answer.initialized || !(answer.cluster_id.is_empty() || answer.cluster_id == self.peers.cluster_id()) {
                problem = Some(format!("node {node} belongs to a cluster: waiting for its leader"));
            } else if answer.bootstrap_digest != *digest {
                problem.get_or_insert(format!("node {node} is configured with other cluster nodes"));
            } else {
                met.insert(node, told(answer));
            }
        }
        if let Some(problem) = problem {
            return Ok(Round::Waiting(problem));
        }
        let lowest = self.nodes.iter().map(|node| node.node).min();
        if lowest != Some(own) {
            return Ok(Round::Waiting("waiting for the node with the lowest number to form the cluster".to_owned()));
        }
        self.form(met).await
    }

    async fn form(&self, met: BTreeMap<NodeId, Member>) -> Result<Round, Refused> {
        let mut cluster_id = self.peers.cluster_id();
        if cluster_id.is_empty() {
            let random = &self.peers.env().random;
            cluster_id = [random.next().to_le_bytes(), random.next().to_le_bytes()].concat().into();
        }
        self.peers
            .adopt_cluster(&cluster_id)
            .map_err(|error| Refused::Failed(format!("cannot keep the cluster's id: {error}")))?;
        // Each node knows its own addresses best; the list says where its peers reach it.
        let member = |node: &BootstrapNode| {
            let met = met.get(&node.node)?.clone();
            Some((node.node, Member { peer_addr: node.peer_addr.clone(), ..met }))
        };
        let members: BTreeMap<NodeId, Member> = self.nodes.iter().filter_map(member).collect();
        tracing::info!(nodes = members.len(), "forming the cluster");
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(Round::Formed),
            Err(error) => Err(Refused::Failed(format!("cannot form the cluster: {error}"))),
        }
    }

    async fn probe(&self, node: &BootstrapNode, digest: &Bytes) -> (NodeId, Result<pb::ProbeResponse, String>) {
        let envelope = Some(self.peers.envelope(node.node, 0));
        let request = pb::ProbeRequest { envelope, bootstrap_digest: digest.clone(), member: None };
        let mut client = self.channels.client(node.node, &node.peer_addr, Purpose::Raft);
        let answer = match timeout(Duration::from_millis(limits::PROBE_MS), client.probe(request)).await {
            Err(_) => Err("no answer in time".to_owned()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Ok(Ok(answer)) => Ok(answer.into_inner()),
        };
        (node.node, answer)
    }
}

/// A node as it told of itself.
pub(super) fn told(answer: pb::ProbeResponse) -> Member {
    let incarnation = answer.incarnation;
    Member { incarnation, ..convert::member(answer.member.unwrap_or_default()) }
}

enum Round {
    Formed,
    /// Why there is no cluster yet.
    Waiting(String),
    /// The cluster knows another node of this number.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_list_does_not_matter_its_content_does() {
        let node = |node: u64| BootstrapNode {
            node,
            peer_addr: format!("n{node}:7412"),
            client_addr: String::new(),
            admin_addr: String::new(),
        };
        assert_eq!(digest(&[node(1), node(2)]), digest(&[node(2), node(1)]));
        assert_ne!(digest(&[node(1), node(2)]), digest(&[node(1), node(3)]));
        assert!(digest(&[]).is_empty());
    }
}
