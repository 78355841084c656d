//! The openraft adapter: one Raft group whose state machine is [`crate::machine`].
//!
//! The ways through: a command goes `handle` → `proposer` (group commit, at a `pace`) → Raft → `log_store` and
//! `network` (less needless `notices`) → `machine_adapter` → back through the proposer. Beside it stand `leadership` (barrier,
//! `LeaderStarted`), `ticker` and `clock` (time through the log), `failover`, `bootstrap`,
//! `membership` and `reconfig` (who takes part), `maintenance` (snapshots, purge, alarms), `reads` (read
//! index), `changes` (what happened to packages, for readers) and `peers` (who is who).
//!
//! Invariants: nothing is confirmed that a quorum has not on disk; "not applied" is said only when
//! it is certain; every peer call names who is meant, by incarnation. Only `raft` and `storage` name
//! openraft's types; nobody outside holds more than a [`Handle`].
//!
//! Absent on purpose: listeners (the composition root mounts the Peer service), what commands mean,
//! forwarding of client calls (`api`), leader leases.

pub mod bootstrap;
pub mod changes;
mod clock;
mod convert;
mod counters;
mod data_dir;
mod failover;
pub mod handle;
mod leadership;
pub mod log_store;
mod machine_adapter;
mod maintenance;
pub mod membership;
#[cfg(test)]
mod membership_tests;
mod network;
mod notices;
mod pace;
pub mod peer_server;
mod peers;
mod proposer;
mod reads;
mod reconfig;
mod runtime;
pub mod snapshots;
#[cfg(test)]
mod tests;
mod ticker;
pub mod types;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

pub use handle::Handle;
pub use machine_adapter::died_applying;
#[cfg(test)]
pub(crate) use machine_adapter::naming as applying;

use crate::env::Env;
use crate::machine::Broken;
use crate::proto::internal::peer_server::PeerServer;
use crate::storage::home::Home;
use crate::types::{NodeId, limits};
use bootstrap::{Bootstrap, BootstrapNode};
use log_store::LogStore;
use peers::Peers;
use snapshots::Blocking;
use types::Member;

/// What a node's Raft is made of.
pub struct Options {
    pub node: NodeId,
    /// This node's addresses as its membership will know them; the incarnation is the directory's.
    pub member: Member,
    /// The nodes that form the cluster, this one among them. Empty: wait to be added to one.
    pub bootstrap: Vec<BootstrapNode>,
    /// The highest machine version that this program applies.
    pub machine_version: u32,
    pub env: Env,
    /// The data directory, open.
    pub home: Home,
    pub blocking: Blocking,
    /// `recovery.skip_entry`.
    pub skip_entry: Option<SkipEntry>,
    pub tuning: Tuning,
}

/// The paces that an operator may set, the same on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How often an idle leader tells that it lives.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing elects after a random time between these two.
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    /// A snapshot is due after so many bytes of log.
    pub snapshot_every_log_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_ms: limits::HEARTBEAT_MS,
            election_min_ms: limits::ELECTION_MIN_MS,
            election_max_ms: limits::ELECTION_MAX_MS,
            snapshot_every_log_bytes: limits::SNAPSHOT_EVERY_LOG_BYTES,
        }
    }
}

/// A log entry that an operator lets every node pass over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkipEntry {
    pub index: u64,
    /// CRC32C of its payload, as the halted node printed it.
    pub crc: u32,
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
    #[error(transparent)]
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
    let Options { node, mut member, bootstrap, machine_version, env, home, blocking, skip_entry, tuning } = options;
    let (fatal, fatal_out) = mpsc::channel(1);
    let counters = Arc::new(counters::Counters::default());
    let (state, effects) =
        machine_adapter::State::new(node, machine_version, Arc::clone(&counters), blocking, skip_entry, fatal.clone());
    member.incarnation = home.identity().incarnation;
    let home = Arc::new(home);
    let disk = Arc::new(data_dir::DataDir::new(Arc::clone(&home)));
    let log = LogStore::new(disk.log());
    let snapshots = disk.snapshots();
    let shelf = blocking.run(move || machine_adapter::Shelf::new(snapshots)).await;
    let shelf = Arc::new(shelf.map_err(|error| Fatal::Snapshot(error.to_string()))?);
    let covered = shelf.current().and_then(|kept| kept.meta.last);
    home.check_covers(covered).map_err(|error| Fatal::Snapshot(error.to_string()))?;
    let peers = Arc::new(Peers::new(node, member, home, machine_version, env));
    peers.set_room(disk.look());
    let channels = Arc::new(network::Channels::new(Arc::clone(&peers)));
    let gone_vote = Arc::new(network::GoneVote::default());
    let network = network::Network {
        peers: Arc::clone(&peers),
        channels: Arc::clone(&channels),
        gone_vote: Arc::clone(&gone_vote),
        blocking,
    };
    let adapter = machine_adapter::Adapter::new(Arc::clone(&state), Arc::clone(&shelf));
    let stopped = |error: &dyn std::fmt::Display| Fatal::Raft(error.to_string());
    let config = Arc::new(config(tuning).validate().map_err(|error| stopped(&error))?);
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
        disk: Arc::clone(&disk),
        stopping: Arc::clone(&stopping),
        fatal: fatal.clone(),
    };
    let maintenance = maintenance::Maintenance {
        raft: raft.clone(),
        log,
        peers: Arc::clone(&peers),
        channels: Arc::clone(&channels),
        proposer: Arc::clone(&proposer),
        stamper: Arc::clone(&stamper),
        disk: Arc::clone(&disk),
        standing: standing_out.clone(),
        alarms: Arc::clone(&alarms),
        snapshot_every_log_bytes: tuning.snapshot_every_log_bytes,
        fatal: fatal.clone(),
    };
    let reconfig = Arc::new(reconfig::Reconfig {
        raft: raft.clone(),
        peers: Arc::clone(&peers),
        channels: Arc::clone(&channels),
        proposer: Arc::clone(&proposer),
        state: Arc::clone(&state),
        standing: standing_out.clone(),
        one: Arc::default(),
    });
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
    tokio::spawn(Arc::clone(&state.changes).route());
    tokio::spawn(Arc::clone(&reconfig).run());
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
        shelf,
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
        disk,
        alarms,
        stopping,
        reconfig,
    });
    Ok(Started { handle, peer: service.into_server(), fatal: fatal_out })
}

/// Raft's own settings; docs/adr/0001 says why.
fn config(tuning: Tuning) -> openraft::Config {
    openraft::Config {
        cluster_name: "wharf".to_owned(),
        heartbeat_interval: tuning.heartbeat_ms,
        election_timeout_min: tuning.election_min_ms,
        election_timeout_max: tuning.election_max_ms,
        install_snapshot_timeout: limits::SNAPSHOT_TRANSFER_MS,
        // Snapshots and purging go by bytes: see `maintenance`.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // A wiped node is another node (see `bootstrap`), so what falls back is a follower whose disk
        // damaged its very last flush: to it that was a torn write. It gets those entries again.
        allow_log_reversion: Some(true),
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    }
}
