//! One look at a node: everything that metrics and statistics are made of, taken at once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::history;
use crate::machine::view::{QueueView, Summary};
use crate::raft::handle::{MemberStatus, Status};
use crate::types::Cause;

use super::Sources;

/// See the module.
pub struct Sample {
    pub status: Status,
    pub summary: Summary,
    /// In the order of their names.
    pub queues: Vec<QueueView>,
    /// This node leads and serves.
    pub leads: bool,
    pub history: history::Snapshot,
    /// Who follows the changes, and how many changes and bytes are kept for them.
    pub watchers: u64,
    pub changes_kept: (u64, u64),
    pub uptime: Duration,
}

impl Sample {
    pub fn take(sources: &Sources, uptime: Duration) -> Self {
        let Sources { raft: handle, history } = sources;
        let changes = handle.changes();
        let (count, bytes) = changes.kept();
        let (summary, queues) = handle.view(|machine| (machine.summary(), machine.queues("")));
        let leads = handle.standing().borrow().leading.is_some();
        Self {
            status: handle.status(),
            summary,
            queues,
            leads,
            history: history.snapshot(),
            watchers: changes.readers() as u64,
            changes_kept: (count as u64, bytes as u64),
            uptime,
        }
    }

    /// A queue's packages by state, as far as it keeps them.
    pub fn depths(queue: &QueueView) -> [(&'static str, u64); 4] {
        [("scheduled", queue.scheduled), ("ready", queue.ready), ("leased", queue.leased), ("dead", queue.dead)]
    }

    /// A queue's ended leases by cause, over its life.
    pub fn lease_ends(queue: &QueueView) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().zip(queue.lease_ends.into_iter().skip(1))
    }

    /// Committed entries that are not applied.
    pub fn apply_lag(&self) -> u64 {
        self.status.committed_index.saturating_sub(self.status.applied_index)
    }

    /// Entries that a member lacks; only the leader knows.
    pub fn lag(&self, member: &MemberStatus) -> Option<u64> {
        Some(self.status.last_log_index.saturating_sub(member.matched_index?))
    }

    /// All of it for programs.
    pub fn to_json(&self) -> Value {
        let Self { status, summary, .. } = self;
        json!({
            "node": status.node,
            "version": env!("CARGO_PKG_VERSION"),
            "cluster_id": status.cluster_id,
            "uptime_seconds": self.uptime.as_secs(),
            "raft": {
                "leads": self.leads,
                "leader": status.leader.as_ref().map(|leader| leader.node),
                "term": status.term,
                "last_log_index": status.last_log_index,
                "committed_index": status.committed_index,
                "applied_index": status.applied_index,
                "snapshot_index": status.snapshot_index,
                "purged_index": status.purged_index,
                "apply_lag_entries": self.apply_lag(),
                "members": status.members.iter().map(|member| json!({
                    "node": member.node,
                    "voter": member.voter,
                    "reachable": member.reachable,
                    "matched_index": member.matched_index,
                    "lag_entries": self.lag(member),
                })).collect::<Vec<_>>(),
            },
            "state": {
                "revision": summary.revision.0,
                "machine_version": summary.machine_version,
                "queues": summary.queues,
                "packages": summary.packages,
                "packages_bytes": summary.packages_bytes,
                "tombstones": summary.tombstones,
                "sessions": summary.sessions,
                "leases": summary.leases,
            },
            "disk": {
                "status": status.disk.status,
                "free_bytes": status.disk.free_bytes,
                "total_bytes": status.disk.total_bytes,
                "log_bytes": status.disk.log_bytes,
                "snapshot_bytes": status.disk.snapshot_bytes,
            },
            "history": {
                "enabled": self.history.enabled,
                "ready": self.history.ready,
                "rows": self.history.rows,
                "bytes": self.history.bytes,
                "disk_bytes": self.history.disk_bytes,
                "covered_revision": self.history.covered,
                "dropped_revisions": self.history.dropped,
                "set_aside": self.history.set_aside,
            },
            "watchers": self.watchers,
            "changes_kept": self.changes_kept.0,
            "changes_kept_bytes": self.changes_kept.1,
            "alarms": status.alarms.iter().map(|alarm| json!({
                "name": alarm.name,
                "message": alarm.message,
                "since_ms": alarm.since.0,
            })).collect::<Vec<_>>(),
            "proposer": {
                "proposals": status.metrics.proposals,
                "commands": status.metrics.commands,
                "commands_waiting": status.metrics.commands_waiting,
                "proposals_in_flight": status.metrics.proposals_in_flight,
                "fsyncs": status.metrics.fsyncs,
                "fsync_micros": status.metrics.fsync_micros,
                "applied_batches": status.metrics.applied_batches,
                "apply_micros": status.metrics.apply_micros,
                "elections": status.metrics.elections,
            },
            "queues": self.queues.iter().map(queue_json).collect::<Vec<_>>(),
        })
    }
}

fn queue_json(queue: &QueueView) -> Value {
    let ends = Sample::lease_ends(queue).map(|(cause, count)| (cause.as_str().to_ascii_lowercase(), count.into()));
    json!({
        "name": queue.name.as_str(),
        "paused": queue.paused,
        "sealed": queue.sealed,
        "ended": queue.ended,
        "scheduled": queue.scheduled,
        "ready": queue.ready,
        "leased": queue.leased,
        "dead": queue.dead,
        "submitted": queue.submitted,
        "completed": queue.completed,
        "cancelled": queue.cancelled,
        "expired": queue.expired,
        "bytes": queue.bytes,
        "oldest_ready_age_ms": queue.oldest_ready_age_ms,
        "workers": queue.workers,
        "lease_ends": ends.collect::<serde_json::Map<_, _>>(),
    })
}
