//! Logs: how they are set up, and the names of fields and metrics, each spelled in one place.
//!
//! Levels: error = somebody must act, warn = degraded, info = lifecycle, debug = a package.
//! Never payloads or secrets.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::reload;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("log.level: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging is set up already")]
    Twice,
    #[error("logging is gone")]
    Gone,
}

/// openraft tells each try to reach a dead peer, its whole state at the start, and as an error each
/// caller that went away; what matters of it is told by `wharf::raft`. A level that names it brings it back: `info,openraft=info`.
const QUIET: &str = "openraft=error,openraft::raft=off";

/// Sends the process's logs to standard error: those of `level` (`info`, or by module
/// `info,wharf::raft=debug`), as JSON lines or as text. Once a process; the level may change later.
pub fn init(level: &str, json: bool) -> Result<Level, Error> {
    let filter = filter(level)?;
    let stderr = std::io::stderr;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(stderr().is_terminal());
    if json {
        let builder = builder.json().flatten_event(true).with_current_span(false).with_filter_reloading();
        let handle = builder.reload_handle();
        builder.try_init().map_err(|_| Error::Twice)?;
        Ok(Level(Box::new(move |filter| handle.reload(filter))))
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        builder.try_init().map_err(|_| Error::Twice)?;
        Ok(Level(Box::new(move |filter| handle.reload(filter))))
    }
}

/// The level of a process's logs, to be changed while it runs.
pub struct Level(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl Level {
    /// Logs from now on are those of `level`. On an error nothing has changed.
    pub fn set(&self, level: &str) -> Result<(), Error> {
        (self.0)(filter(level)?).map_err(|_| Error::Gone)
    }
}

fn filter(level: &str) -> Result<EnvFilter, Error> {
    Ok(EnvFilter::try_new(format!("{QUIET},{level}"))?)
}

/// Names of log fields: `info!({ field::NODE } = id, "ready")`.
pub mod field {
    pub const NODE: &str = "node";
    pub const PEER: &str = "peer";
    pub const LEADER: &str = "leader";
    pub const TERM: &str = "term";
    pub const INDEX: &str = "index";
    pub const REVISION: &str = "revision";
    pub const QUEUE: &str = "queue";
    pub const PACKAGE: &str = "package";
    pub const FENCE: &str = "fence";
    pub const SESSION: &str = "session";
    pub const WORKER: &str = "worker";
    pub const EPOCH: &str = "epoch";
    pub const ADDR: &str = "addr";
    pub const PATH: &str = "path";
    pub const REASON: &str = "reason";
    pub const COUNT: &str = "count";
    pub const SIZE_BYTES: &str = "size_bytes";
    pub const ELAPSED_MS: &str = "elapsed_ms";
    pub const ERROR: &str = "error";
}

/// Names of metrics, without the prefix `wharf_` that all have. Counters get `_total` when written.
pub mod metric {
    pub const PREFIX: &str = "wharf";

    pub const BUILD_INFO: &str = "build_info";
    pub const UPTIME_SECONDS: &str = "uptime_seconds";

    pub const QUEUE_PACKAGES: &str = "queue_packages";
    pub const QUEUE_BYTES: &str = "queue_bytes";
    pub const QUEUE_OLDEST_READY_SECONDS: &str = "queue_oldest_ready_seconds";
    pub const QUEUE_WORKERS: &str = "queue_workers";
    pub const QUEUE_SUBMITTED: &str = "queue_submitted";
    pub const QUEUE_COMPLETED: &str = "queue_completed";
    pub const QUEUE_CANCELLED: &str = "queue_cancelled";
    pub const QUEUE_EXPIRED: &str = "queue_expired";
    pub const QUEUE_LEASE_ENDS: &str = "queue_lease_ends";
    pub const QUEUES_NOT_SHOWN: &str = "queues_not_shown";

    pub const QUEUES: &str = "queues";
    pub const PACKAGES: &str = "packages";
    pub const PACKAGES_BYTES: &str = "packages_bytes";
    pub const TOMBSTONES: &str = "tombstones";
    pub const SESSIONS: &str = "sessions";
    pub const LEASES: &str = "leases";

    pub const PROPOSALS: &str = "proposals";
    pub const COMMANDS: &str = "commands";
    pub const COMMANDS_WAITING: &str = "commands_waiting";
    pub const PROPOSALS_IN_FLIGHT: &str = "proposals_in_flight";
    pub const GROUP_SIZE: &str = "group_size_commands";
    pub const FSYNC_SECONDS: &str = "fsync_seconds";
    pub const APPLY_SECONDS: &str = "apply_seconds";
    pub const LOG_WRITTEN_BYTES: &str = "log_written_bytes";
    pub const SNAPSHOTS_BUILT: &str = "snapshots_built";
    pub const SNAPSHOTS_INSTALLED: &str = "snapshots_installed";

    pub const RAFT_TERM: &str = "raft_term";
    pub const RAFT_IS_LEADER: &str = "raft_is_leader";
    pub const RAFT_LEADER_NODE: &str = "raft_leader_node";
    pub const RAFT_LAST_LOG_INDEX: &str = "raft_last_log_index";
    pub const RAFT_COMMITTED_INDEX: &str = "raft_committed_index";
    pub const RAFT_APPLIED_INDEX: &str = "raft_applied_index";
    pub const RAFT_SNAPSHOT_INDEX: &str = "raft_snapshot_index";
    pub const RAFT_APPLY_LAG: &str = "raft_apply_lag_entries";
    pub const RAFT_PEER_LAG: &str = "raft_peer_lag_entries";
    pub const RAFT_PEER_REACHABLE: &str = "raft_peer_reachable";
    pub const RAFT_ELECTIONS: &str = "raft_elections";

    pub const WATCHERS: &str = "watchers";
    pub const CHANGES_KEPT: &str = "changes_kept";
    pub const CHANGES_KEPT_BYTES: &str = "changes_kept_bytes";
    pub const HISTORY_READY: &str = "history_ready";
    pub const HISTORY_ROWS: &str = "history_rows";
    pub const HISTORY_BYTES: &str = "history_bytes";
    pub const HISTORY_DISK_BYTES: &str = "history_disk_bytes";
    pub const HISTORY_COVERED_REVISION: &str = "history_covered_revision";
    pub const HISTORY_DROPPED_REVISIONS: &str = "history_dropped_revisions";
    pub const HISTORY_SET_ASIDE: &str = "history_set_aside";

    pub const DISK_FREE_BYTES: &str = "disk_free_bytes";
    pub const DISK_TOTAL_BYTES: &str = "disk_total_bytes";
    pub const DISK_LOG_BYTES: &str = "disk_log_bytes";
    pub const DISK_SNAPSHOT_BYTES: &str = "disk_snapshot_bytes";
    pub const ALARM: &str = "alarm";
}
