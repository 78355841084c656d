//! The openraft adapter: one Raft group whose state machine is [`crate::machine`].
//!
//! The ways through: a command goes `handle` → `proposer` (group commit) → Raft → `log_store` and
//! `network` → `machine_adapter` → back through the proposer. Beside it stand `leadership` (barrier,
//! `LeaderStarted`), `ticker` and `clock` (time through the log), `failover`, `bootstrap`,
//! `maintenance` (snapshots, purge, alarms), `reads` (read index) and `peers` (who is who).
//!
//! Invariants: nothing is confirmed that a quorum has not on disk; "not applied" is said only when
//! it is certain; every peer call names who is meant, by incarnation. Only `raft` and `storage` name
//! openraft's types; nobody outside holds more than a [`Handle`].
//!
//! Absent on purpose: listeners (the composition root mounts the Peer service), what commands mean,
//! forwarding of client calls (`api`), leader leases.

pub mod bootstrap;
mod clock;
mod convert;
mod counters;
mod failover;
pub mod handle;
mod leadership;
pub mod log_store;
mod machine_adapter;
mod maintenance;
mod network;
pub mod peer_server;
pub mod peers;
mod proposer;
mod reads;
mod runtime;
pub mod snapshots;
#[cfg(test)]
mod tests;
mod ticker;
pub mod types;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

pub use handle::Handle;

use crate::env::Env;
use crate::machine::Broken;
use crate::proto::internal::peer_server::PeerServer;
use crate::types::{NodeId, limits};
use bootstrap::{Bootstrap, BootstrapNode};
use handle::{DiskStatus, Metrics};
use log_store::LogStore;
use peers::{IdentityStore, Peers, Room};
use snapshots::{Blocking, SnapshotStore};
use types::Member;

/// What a node's Raft is made of.
pub struct Options {
    pub node: NodeId,
    /// This node as its membership will know it, with the incarnation of its data directory.
    pub member: Member,
    /// The nodes that form the cluster, this one among them. Empty: wait to be added to one.
    pub bootstrap: Vec<BootstrapNode>,
    /// The cluster that the data directory belongs to; empty if it belongs to none yet.
    pub cluster_id: Bytes,
    /// The highest machine version that this program applies.
    pub machine_version: u32,
    pub env: Env,
    pub log: LogStore,
    pub snapshots: Arc<dyn SnapshotStore>,
    pub identity: Arc<dyn IdentityStore>,
    pub storage: Arc<dyn StorageProbe>,
    pub blocking: Blocking,
    /// `recovery.skip_entry`.
    pub skip_entry: Option<SkipEntry>,
}

/// A log entry that an operator lets every node pass over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipEntry {
    pub index: u64,
    /// CRC32C of its payload, as the halted node printed it.
    pub crc: u32,
}

/// Looks at the data directory.
pub trait StorageProbe: Send + Sync + 'static {
    /// Called twice a second; must not block for long.
    fn room(&self) -> Room;
    fn disk_status(&self) -> DiskStatus;
    /// Fills in what the log counts: syncs and bytes.
    fn fill_metrics(&self, metrics: &mut Metrics);
}

/// Why the node must stop. The process exits with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    #[error(
        "log entry {index} cannot be applied: {broken}. If every node halts here, set recovery.skip_entry = \
         {{ index = {index}, crc = {crc} }} on all of them"
    )]
    Broken { index: u64, crc: u32, broken: Broken },
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(String),
    #[error("{0}")]
    Refused(#[from] bootstrap::Refused),
    #[error("raft stopped: {0}")]
    Raft(String),
}

/// A running Raft node.
pub struct Started {
    pub handle: Handle,
    /// To be mounted on the peer listener.
    pub peer: PeerServer<peer_server::Service>,
    /// One message, the first reason, when the node cannot go on.
    pub fatal: mpsc::Receiver<Fatal>,
}

/// Starts Raft: recovers the state from snapshot and log, then takes part.
pub async fn start(options: Options) -> Result<Started, Fatal> {
    let random = Arc::clone(&options.env.random);
    runtime::scope(random, start_in_scope(options)).await
}

async fn start_in_scope(options: Options) -> Result<Started, Fatal> {
    let Options { node, member, bootstrap, env, log, snapshots, storage, blocking, .. } = options;
    let (fatal, fatal_out) = mpsc::channel(1);
    let counters = Arc::new(counters::Counters::default());
    let (state, effects) =
        machine_adapter::State::new(node, Arc::clone(&counters), blocking, options.skip_entry, fatal.clone());
    let peers = Arc::new(Peers::new(node, member, options.cluster_id, options.identity, options.machine_version, env));
    peers.set_room(storage.room());
    let channels = Arc::new(network::Channels::new(Arc::clone(&peers)));
    let gone_vote = Arc::new(network::GoneVote::default());
    let network = network::Network {
        peers: Arc::clone(&peers),
        channels: Arc::clone(&channels),
        gone_vote: Arc::clone(&gone_vote),
        blocking,
    };
    let adapter = machine_adapter::Adapter::new(Arc::clone(&state), Arc::clone(&snapshots));
    let stopped = |error: &dyn std::fmt::Display| Fatal::Raft(error.to_string());
    let config = Arc::new(config().validate().map_err(|error| stopped(&error))?);
    let raft =
        openraft::Raft::new(node, config, network, log.clone(), adapter).await.map_err(|error| stopped(&error))?;

    let stamper = Arc::new(clock::Stamper::new(Arc::clone(&state.time), Arc::clone(&peers)));
    let (standing, standing_out) = watch::channel(handle::Standing::default());
    let proposer = Arc::new(proposer::Proposer::new(standing_out.clone(), Arc::clone(&counters)));
    let stopping = Arc::new(AtomicBool::new(false));
    let alarms = Arc::new(Mutex::default());
    let failover = Arc::new(failover::Failover {
        peers: Arc::clone(&peers),
        channels: Arc::clone(&channels),
        gone_vote,
        last: Mutex::new(None),
    });
    let leadership = leadership::Leadership {
        raft: raft.clone(),
        peers: Arc::clone(&peers),
        proposer: Arc::clone(&proposer),
        state: Arc::clone(&state),
        stamper: Arc::clone(&stamper),
        standing,
        stopping: Arc::clone(&stopping),
        fatal: fatal.clone(),
    };
    let maintenance = maintenance::Maintenance {
        raft: raft.clone(),
        log,
        peers: Arc::clone(&peers),
        proposer: Arc::clone(&proposer),
        stamper: Arc::clone(&stamper),
        storage: Arc::clone(&storage),
        standing: standing_out.clone(),
        alarms: Arc::clone(&alarms),
    };
    let former = Bootstrap {
        raft: raft.clone(),
        peers: Arc::clone(&peers),
        channels: Arc::clone(&channels),
        nodes: bootstrap.clone(),
    };

    tokio::spawn(leadership.run());
    tokio::spawn(Arc::clone(&proposer).run(raft.clone(), Arc::clone(&stamper)));
    tokio::spawn(ticker::run(Arc::clone(&state), stamper, Arc::clone(&proposer), standing_out.clone()));
    tokio::spawn(Arc::clone(&failover).run(raft.clone()));
    tokio::spawn(maintenance.run());
    tokio::spawn(async move {
        if let Err(refused) = former.run().await {
            // A reason that is already there counts more.
            let _ = fatal.try_send(refused.into());
        }
    });

    let service = peer_server::Service {
        raft: raft.clone(),
        peers: Arc::clone(&peers),
        failover,
        snapshots,
        blocking,
        bootstrap_digest: bootstrap::digest(&bootstrap),
    };
    let reads = reads::Reads::spawn(raft.clone(), standing_out.clone());
    let handle = Handle::new(handle::Inner {
        raft,
        peers,
        channels,
        proposer,
        state,
        reads,
        standing: standing_out,
        effects: Mutex::new(Some(effects)),
        storage,
        alarms,
        stopping,
    });
    Ok(Started { handle, peer: service.into_server(), fatal: fatal_out })
}

/// Raft's own settings; see DESIGN.md 7 for why.
fn config() -> openraft::Config {
    openraft::Config {
        cluster_name: "wharf".to_owned(),
        heartbeat_interval: limits::HEARTBEAT_MS,
        election_timeout_min: limits::ELECTION_MIN_MS,
        election_timeout_max: limits::ELECTION_MAX_MS,
        install_snapshot_timeout: limits::SNAPSHOT_TRANSFER_MS,
        // Snapshots and purging go by bytes: see `maintenance`.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
}
