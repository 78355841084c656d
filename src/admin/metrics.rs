//! A sample as OpenMetrics text. One registry a node; names are in `telemetry::metric`.

use std::fmt;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry as Text;

use super::sample::Sample;
use crate::machine::view::QueueView;
use crate::raft::handle::{MICROS_BUCKETS, Metrics};
use crate::telemetry::metric;
use crate::types::limits::MAX_QUEUES_IN_METRICS;

/// Upper bounds of [`Metrics::group_sizes`]; the last bucket has none.
const GROUP_BUCKETS: [u64; 6] = [1, 4, 16, 64, 256, 1024];

/// See the module.
pub struct Registry {
    /// Held over a whole scrape, so that each tells its own sample.
    text: Mutex<Text>,
    latest: std::sync::Arc<Latest>,
}

impl Registry {
    pub fn new() -> Self {
        let latest = std::sync::Arc::new(Latest(Mutex::new(None)));
        let mut text = Text::with_prefix(metric::PREFIX);
        text.register_collector(Box::new(latest.clone()));
        Self { text: Mutex::new(text), latest }
    }

    /// None: the node still recovers; only the build is told.
    pub fn encode(&self, sample: Option<Sample>) -> String {
        let mut out = String::new();
        let text = self.text.lock();
        *self.latest.0.lock() = sample;
        // Writing to a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut out, &text);
        out
    }
}

/// The sample to be written.
struct Latest(Mutex<Option<Sample>>);

impl fmt::Debug for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Latest")
    }
}

impl Collector for Latest {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut write = Write(encoder);
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        write.gauges(metric::BUILD_INFO, "The program's version", [(labels, 1)])?;
        match &*self.0.lock() {
            Some(sample) => write.sample(sample),
            None => Ok(()),
        }
    }
}

struct Write<'a>(DescriptorEncoder<'a>);

impl Write<'_> {
    fn sample(&mut self, sample: &Sample) -> fmt::Result {
        self.gauge(metric::UPTIME_SECONDS, "Seconds since this node started", sample.uptime.as_secs())?;
        self.queues(sample)?;
        self.state(sample)?;
        self.proposer(&sample.status.metrics)?;
        self.raft(sample)?;
        self.past(sample)?;
        self.disk(sample)
    }

    fn queues(&mut self, sample: &Sample) -> fmt::Result {
        let shown = &sample.queues[..sample.queues.len().min(MAX_QUEUES_IN_METRICS)];
        let hidden = sample.queues.len() - shown.len();
        self.gauge(metric::QUEUES_NOT_SHOWN, "Queues left out of the metrics by queue", hidden as u64)?;

        let depths = shown.iter().flat_map(|queue| {
            Sample::depths(queue).map(|(state, count)| ([("queue", queue.name.as_str()), ("state", state)], count))
        });
        self.gauges(metric::QUEUE_PACKAGES, "Packages by queue and state", depths)?;
        let by_queue = |value: fn(&QueueView) -> u64| {
            shown.iter().map(move |queue| ([("queue", queue.name.as_str())], value(queue)))
        };
        self.gauges(metric::QUEUE_BYTES, "Bytes of packages by queue", by_queue(|queue| queue.bytes))?;
        self.gauges(metric::QUEUE_WORKERS, "Sessions that subscribe to the queue", by_queue(|queue| queue.workers))?;
        let ages =
            shown.iter().map(|queue| ([("queue", queue.name.as_str())], queue.oldest_ready_age_ms as f64 / 1000.0));
        self.gauges(metric::QUEUE_OLDEST_READY_SECONDS, "Age of the package that is ready for longest", ages)?;
        self.counters(metric::QUEUE_SUBMITTED, "Packages taken", by_queue(|queue| queue.submitted))?;
        self.counters(metric::QUEUE_COMPLETED, "Packages completed", by_queue(|queue| queue.completed))?;
        self.counters(metric::QUEUE_CANCELLED, "Packages cancelled", by_queue(|queue| queue.cancelled))?;
        self.counters(metric::QUEUE_EXPIRED, "Packages expired", by_queue(|queue| queue.expired))?;
        let ends = shown.iter().flat_map(|queue| {
            Sample::lease_ends(queue)
                .map(|(cause, count)| ([("queue", queue.name.as_str()), ("cause", cause.as_str())], count))
        });
        self.counters(metric::QUEUE_LEASE_ENDS, "Leases that ended without a completion, by cause", ends)
    }

    fn state(&mut self, sample: &Sample) -> fmt::Result {
        let summary = &sample.summary;
        self.gauge(metric::QUEUES, "Queues", summary.queues)?;
        self.gauge(metric::PACKAGES, "Packages held, finished ones included", summary.packages)?;
        self.gauge(metric::PACKAGES_BYTES, "Bytes of packages held", summary.packages_bytes)?;
        self.gauge(metric::TOMBSTONES, "Ids remembered of packages that are gone", summary.tombstones)?;
        self.gauge(metric::SESSIONS, "Sessions of workers", summary.sessions)?;
        self.gauge(metric::LEASES, "Packages in workers' hands", summary.leases)
    }

    fn proposer(&mut self, metrics: &Metrics) -> fmt::Result {
        self.counter(metric::PROPOSALS, "Batches proposed", metrics.proposals)?;
        self.counter(metric::COMMANDS, "Commands proposed", metrics.commands)?;
        self.gauge(metric::COMMANDS_WAITING, "Commands that wait for a batch", metrics.commands_waiting)?;
        self.gauge(metric::PROPOSALS_IN_FLIGHT, "Batches proposed and not answered", metrics.proposals_in_flight)?;
        let sizes = buckets(&GROUP_BUCKETS, &metrics.group_sizes, 1.0);
        self.histogram(metric::GROUP_SIZE, "Commands in a batch", metrics.commands as f64, &sizes)?;
        let fsyncs = buckets(&MICROS_BUCKETS, &metrics.fsync_micros_buckets, 1e6);
        self.histogram(metric::FSYNC_SECONDS, "Time of a log flush", metrics.fsync_micros as f64 / 1e6, &fsyncs)?;
        let applies = buckets(&MICROS_BUCKETS, &metrics.apply_micros_buckets, 1e6);
        self.histogram(metric::APPLY_SECONDS, "Time of applying a batch", metrics.apply_micros as f64 / 1e6, &applies)?;
        self.counter(metric::LOG_WRITTEN_BYTES, "Bytes written to the log", metrics.log_bytes_written)?;
        self.counter(metric::SNAPSHOTS_BUILT, "Snapshots built", metrics.snapshots_built)?;
        self.counter(metric::SNAPSHOTS_INSTALLED, "Snapshots taken from a leader", metrics.snapshots_installed)?;
        self.counter(metric::RAFT_ELECTIONS, "Elections that this node began", metrics.elections)
    }

    fn raft(&mut self, sample: &Sample) -> fmt::Result {
        let status = &sample.status;
        let leader = status.leader.as_ref().map_or(0, |leader| leader.node);
        self.gauge(metric::RAFT_TERM, "The Raft term", status.term)?;
        self.gauge(metric::RAFT_IS_LEADER, "1 on the node that leads", u64::from(sample.leads))?;
        self.gauge(metric::RAFT_LEADER_NODE, "The node that leads; 0: none known", leader)?;
        self.gauge(metric::RAFT_LAST_LOG_INDEX, "Index of the last log entry", status.last_log_index)?;
        self.gauge(metric::RAFT_COMMITTED_INDEX, "Index up to which the log is committed", status.committed_index)?;
        self.gauge(metric::RAFT_APPLIED_INDEX, "Index up to which the log is applied", status.applied_index)?;
        self.gauge(metric::RAFT_SNAPSHOT_INDEX, "Index of the last snapshot", status.snapshot_index)?;
        self.gauge(metric::RAFT_APPLY_LAG, "Committed entries that are not applied", sample.apply_lag())?;

        let peers: Vec<(String, bool, Option<u64>)> = status
            .members
            .iter()
            .filter(|member| member.node != status.node)
            .map(|member| (member.node.to_string(), member.reachable, sample.lag(member)))
            .collect();
        let lags = peers.iter().filter_map(|(node, _, lag)| Some(([("peer", node.as_str())], (*lag)?)));
        self.gauges(metric::RAFT_PEER_LAG, "Entries that a member lacks; told by the leader", lags)?;
        let reachable = peers.iter().map(|(node, reachable, _)| ([("peer", node.as_str())], u64::from(*reachable)));
        self.gauges(metric::RAFT_PEER_REACHABLE, "1 if this node reaches the member", reachable)
    }

    fn past(&mut self, sample: &Sample) -> fmt::Result {
        self.gauge(metric::WATCHERS, "Watchers, and history, that follow the changes", sample.watchers)?;
        let (count, bytes) = sample.changes_kept;
        self.gauge(metric::CHANGES_KEPT, "Changes of packages kept for watchers", count)?;
        self.gauge(metric::CHANGES_KEPT_BYTES, "Bytes of changes kept for watchers", bytes)?;
        let history = &sample.history;
        self.gauge(metric::HISTORY_READY, "1 if history can be written and read", u64::from(history.ready))?;
        self.gauge(metric::HISTORY_ROWS, "Finished packages in history", history.rows)?;
        self.gauge(metric::HISTORY_BYTES, "Bytes of rows in history", history.bytes)?;
        self.gauge(metric::HISTORY_DISK_BYTES, "Bytes of history on disk", history.disk_bytes)?;
        self.gauge(metric::HISTORY_COVERED_REVISION, "The revision up to which history came", history.covered)?;
        self.counter(metric::HISTORY_DROPPED_REVISIONS, "Revisions that history missed", history.dropped)?;
        self.counter(metric::HISTORY_SET_ASIDE, "Damaged histories that were set aside", history.set_aside)
    }

    fn disk(&mut self, sample: &Sample) -> fmt::Result {
        let disk = &sample.status.disk;
        self.gauge(metric::DISK_FREE_BYTES, "Free bytes of the data directory's disk", disk.free_bytes)?;
        self.gauge(metric::DISK_TOTAL_BYTES, "Bytes of the data directory's disk", disk.total_bytes)?;
        self.gauge(metric::DISK_LOG_BYTES, "Bytes of the log", disk.log_bytes)?;
        self.gauge(metric::DISK_SNAPSHOT_BYTES, "Bytes of snapshots", disk.snapshot_bytes)?;
        let alarms = sample.status.alarms.iter().map(|alarm| ([("alarm", alarm.name)], 1));
        self.gauges(metric::ALARM, "1 for each standing problem", alarms)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.describe(name, help, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.describe(name, help, MetricType::Counter)?)
    }

    fn gauges<'l, const N: usize, V>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], V)>,
    ) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        let mut encoder = self.describe(name, help, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'l str, &'l str); N], u64)>,
    ) -> fmt::Result {
        let mut encoder = self.describe(name, help, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, sum: f64, buckets: &[(f64, u64)]) -> fmt::Result {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let mut encoder = self.describe(name, help, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }

    fn describe<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }
}

/// Pairs counts with their upper bounds, in the unit `bounds / scale`.
fn buckets(bounds: &[u64], counts: &[u64], scale: f64) -> Vec<(f64, u64)> {
    let bounds = bounds.iter().map(|bound| *bound as f64 / scale).chain([f64::INFINITY]);
    bounds.zip(counts.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::machine::view::Summary;
    use crate::raft::handle::{MemberStatus, Status};
    use crate::types::{QueueName, Revision, Ticks, Wall};

    fn queue(name: &str) -> QueueView {
        QueueView {
            name: QueueName::parse(name).unwrap(),
            settings: Default::default(),
            paused: false,
            sealed: false,
            ended: false,
            revision: Revision(1),
            scheduled: 1,
            ready: 2,
            leased: 3,
            completed: 40,
            dead: 5,
            cancelled: 0,
            expired: 0,
            submitted: 51,
            bytes: 100,
            oldest_ready_age_ms: 1500,
            workers: 2,
            lease_ends: [0, 7, 1, 0, 0, 0, 0],
        }
    }

    fn sample(queues: Vec<QueueView>) -> Sample {
        let member = |node, matched_index| MemberStatus {
            node,
            member: Default::default(),
            voter: true,
            reachable: true,
            machine_version: None,
            matched_index,
        };
        let status = Status {
            node: 1,
            term: 3,
            last_log_index: 100,
            committed_index: 99,
            applied_index: 98,
            members: vec![member(1, Some(100)), member(2, Some(90))],
            metrics: Metrics {
                proposals: 10,
                commands: 60,
                group_sizes: [2, 3, 5, 0, 0, 0, 0],
                fsyncs: 4,
                fsync_micros: 2_000_000,
                fsync_micros_buckets: [0, 1, 0, 2, 0, 0, 0, 0, 0, 1],
                ..Default::default()
            },
            ..Default::default()
        };
        let summary = Summary {
            revision: Revision(9),
            applied_index: 98,
            ticks: Ticks(0),
            wall: Wall(0),
            machine_version: 1,
            queues: queues.len() as u64,
            packages: 11,
            packages_bytes: 100,
            tombstones: 0,
            sessions: 2,
            leases: 3,
            needs_advance: false,
            next_timer_ms: None,
            next_alarm: None,
        };
        let history = crate::history::Snapshot { ready: true, rows: 12, dropped: 3, ..Default::default() };
        Sample {
            status,
            summary,
            queues,
            leads: true,
            history,
            watchers: 2,
            changes_kept: (30, 9_000),
            uptime: Duration::from_secs(5),
        }
    }

    fn lines(sample: Sample) -> Vec<String> {
        Registry::new().encode(Some(sample)).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_scrape_tells_what_operators_watch() {
        let lines = lines(sample(vec![queue("jobs")]));
        for expected in [
            "wharf_queue_packages{queue=\"jobs\",state=\"ready\"} 2",
            "wharf_queue_oldest_ready_seconds{queue=\"jobs\"} 1.5",
            "wharf_queue_completed_total{queue=\"jobs\"} 40",
            "wharf_queue_lease_ends_total{queue=\"jobs\",cause=\"FAILED\"} 7",
            "wharf_queue_lease_ends_total{queue=\"jobs\",cause=\"TIMED_OUT\"} 1",
            "wharf_leases 3",
            "wharf_sessions 2",
            "wharf_proposals_total 10",
            "wharf_group_size_commands_bucket{le=\"4.0\"} 5",
            "wharf_group_size_commands_count 10",
            "wharf_group_size_commands_sum 60.0",
            "wharf_fsync_seconds_bucket{le=\"0.0001\"} 1",
            "wharf_fsync_seconds_bucket{le=\"+Inf\"} 4",
            "wharf_fsync_seconds_sum 2.0",
            "wharf_watchers 2",
            "wharf_changes_kept 30",
            "wharf_history_rows 12",
            "wharf_history_dropped_revisions_total 3",
            "wharf_raft_term 3",
            "wharf_raft_is_leader 1",
            "wharf_raft_apply_lag_entries 1",
            "wharf_raft_peer_lag_entries{peer=\"2\"} 10",
            "# EOF",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected} is missing in\n{}", lines.join("\n"));
        }
    }

    #[test]
    fn labels_are_bounded() {
        let queues = (0..MAX_QUEUES_IN_METRICS + 5).map(|i| queue(&format!("q{i}"))).collect();
        let lines = lines(sample(queues));
        assert!(lines.contains(&"wharf_queues_not_shown 5".to_owned()));
        let shown = lines.iter().filter(|line| line.starts_with("wharf_queue_bytes{")).count();
        assert_eq!(shown, MAX_QUEUES_IN_METRICS);
    }
}
