//! Where the bench runs: on a cluster of its own, or on one that runs already.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::report::Cpu;
use crate::cli::local::{Cluster, Usage};
use crate::cli::output;
use crate::client::Client;
use crate::types::NodeId;

/// How long leaders may be looked for.
const LEADER_WITHIN: Duration = Duration::from_secs(20);
/// A block of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// See the module.
pub enum Stage {
    Own(Box<Cluster>),
    Foreign { client: Client, addrs: String },
}

/// What all processes had used at one moment.
pub struct Used {
    client: Duration,
    /// None: not ours to look at, or gone.
    nodes: Option<Vec<(NodeId, Duration)>>,
}

impl Stage {
    pub fn addrs(&self) -> String {
        match self {
            Self::Own(cluster) => cluster.addrs(),
            Self::Foreign { addrs, .. } => addrs.clone(),
        }
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        match self {
            Self::Own(cluster) => cluster.client(),
            Self::Foreign { client, .. } => Ok(client.clone()),
        }
    }

    /// Ends the nodes, or takes the bench's queues away from a cluster that goes on. `failed`: files that
    /// may tell why stay.
    pub async fn close(self, queues: &[String], failed: bool) -> anyhow::Result<()> {
        match self {
            Self::Own(mut cluster) => {
                let alive = if failed { cluster.check_alive() } else { Ok(()) };
                if alive.is_err() {
                    output::note(format_args!("the nodes' files are in {}", cluster.dir().display()));
                }
                // Its data goes with it: nothing is worth draining for.
                cluster.shutdown(std::future::ready(())).await;
                alive
            }
            Self::Foreign { client, .. } => {
                for queue in queues {
                    match client.delete_queue(queue, true).await {
                        Err(error) if !error.is_not_found() => return Err(error.into()),
                        _ => {}
                    }
                }
                Ok(())
            }
        }
    }

    /// The node that leads.
    pub async fn leader(&self) -> anyhow::Result<NodeId> {
        match self {
            Self::Own(cluster) => cluster.leader(LEADER_WITHIN).await,
            Self::Foreign { client, .. } => Ok(client.status().await?.leader),
        }
    }

    pub fn used(&self) -> anyhow::Result<Used> {
        let nodes = match self {
            Self::Own(cluster) => cluster.nodes().iter().map(|node| Ok((node.id, node.usage()?.cpu))).collect(),
            Self::Foreign { .. } => Err(anyhow::anyhow!("not ours")),
        };
        Ok(Used { client: Usage::own()?.cpu, nodes: nodes.ok() as Option<_> })
    }

    /// Memory of each node in bytes, in the order of their numbers. None: it is not ours to look at, or
    /// does not run.
    pub fn memory_bytes(&self) -> Option<Vec<Option<u64>>> {
        let Self::Own(cluster) = self else { return None };
        let memory = |usage: anyhow::Result<Usage>| usage.ok().map(|usage| usage.memory_bytes);
        Some(cluster.nodes().iter().map(|node| memory(node.usage())).collect())
    }

    /// What all nodes' files take up on disk.
    pub fn disk_bytes(&self) -> Option<u64> {
        let Self::Own(cluster) = self else { return None };
        Some(cluster.nodes().iter().map(|node| disk_bytes(node.data_dir())).sum())
    }
}

impl Used {
    /// Processor time a package since `before`. `leader` led all the time; None: nobody did.
    pub fn since(&self, before: &Used, leader: Option<NodeId>, packages: u64) -> Cpu {
        let each = |time: Duration| (time.as_micros() as f64 * 100.0 / packages.max(1) as f64).round() / 100.0;
        let client = each(self.client.saturating_sub(before.client));
        let nodes = self.nodes.as_ref().zip(before.nodes.as_ref()).zip(leader).map(|((now, before), leader)| {
            let spent = now.iter().zip(before).map(|((id, now), (_, before))| (*id, now.saturating_sub(*before)));
            let (leads, follow): (Vec<_>, Vec<_>) = spent.partition(|(id, _)| *id == leader);
            let sum = |of: Vec<(NodeId, Duration)>| each(of.into_iter().map(|(_, time)| time).sum());
            (sum(leads), sum(follow))
        });
        Cpu {
            total: nodes.map(|(leader, followers)| leader + followers + client),
            leader: nodes.map(|(leader, _)| leader),
            followers: nodes.map(|(_, followers)| followers),
            client: Some(client),
        }
    }
}

/// As `du` counts. Files come and go meanwhile.
fn disk_bytes(path: &Path) -> u64 {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return 0 };
    let below = match meta.is_dir() {
        true => std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| disk_bytes(&entry.path())).sum(),
        false => 0,
    };
    meta.blocks() * BLOCK_BYTES + below
}
