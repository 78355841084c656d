//! What a run is told as: one JSON object for programs, a table for people.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::client::Error;

/// The outcome of a run. What its mode does not measure is null.
#[derive(Debug, Serialize)]
pub struct Report {
    pub count: u64,
    pub payload: u64,
    pub queues: u64,
    /// None: as fast as the window lets.
    pub rate: Option<u64>,
    pub backlog: bool,
    pub publish_per_s: Option<f64>,
    pub cycle_per_s: Option<f64>,
    pub drain_per_s: Option<f64>,
    pub confirm_ms: Option<Latency>,
    pub e2e_ms: Option<Latency>,
    pub cpu_us_per_package: Cpu,
    /// Of each node, in order.
    pub rss_mb: Option<Vec<Option<f64>>>,
    /// Of all nodes together.
    pub disk_mb: Option<f64>,
    pub kill: Option<Kill>,
    /// Packages confirmed and never delivered; the run failed.
    #[serde(skip)]
    pub lost: u64,
    /// What was sent again: why, how many packages, and the last error.
    #[serde(skip)]
    pub retries: Vec<(String, u64, Error)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Microseconds of processor time a package.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub total: Option<f64>,
    pub leader: Option<f64>,
    /// Of all followers together.
    pub followers: Option<f64>,
    pub client: Option<f64>,
}

/// What the death of the leader did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Kill {
    pub confirm_gap_ms: f64,
    pub delivery_gap_ms: f64,
    /// Confirmed and never delivered.
    pub lost: u64,
    /// Deliveries beyond the first.
    pub duplicates: u64,
}

impl Latency {
    /// None: nothing was measured.
    pub fn of(us: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| ms(us.value_at_quantile(quantile));
        (!us.is_empty()).then(|| Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: ms(us.max()) })
    }

    fn text(&self) -> String {
        let Self { p50, p99, p999, max } = self;
        format!("p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms, longest {max:.2} ms")
    }
}

impl Report {
    /// For people.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let pace = self.rate.map_or("as fast as the window allows".into(), |rate| format!("{rate} a second"));
        let queues = if self.queues == 1 { "1 queue".into() } else { format!("{} queues", self.queues) };
        let rate = |rate: Option<f64>, what| rate.map(|rate| format!("{rate:.0} packages/s{what}")).unwrap_or_default();
        let latency = |latency: Option<Latency>| latency.map(|latency| latency.text()).unwrap_or_default();
        vec![
            ("packages", format!("{} of {} bytes in {queues}, {pace}", self.count, self.payload)),
            ("published", rate(self.publish_per_s, ", each confirmed")),
            ("cycle", rate(self.cycle_per_s, ", each confirmed, delivered and completed")),
            ("drained", rate(self.drain_per_s, ", each delivered and completed")),
            ("submit to confirm", latency(self.confirm_ms)),
            ("submit to delivery", latency(self.e2e_ms)),
            ("cpu a package", self.cpu_us_per_package.text()),
            ("memory", self.memory_text()),
            ("disk", self.disk_mb.map(|mb| format!("{mb:.0} MB of all nodes")).unwrap_or_default()),
            ("leader lost", self.kill.map(|kill| kill.text()).unwrap_or_default()),
        ]
    }

    fn memory_text(&self) -> String {
        let node = |(id, mb): (usize, &Option<f64>)| Some(format!("node {id} {:.0} MB", (*mb)?));
        let nodes = self.rss_mb.iter().flatten();
        (1..).zip(nodes).filter_map(node).collect::<Vec<_>>().join(", ")
    }
}

impl Cpu {
    fn text(&self) -> String {
        let part = |name: &str, us: Option<f64>| Some(format!("{name} {:.1} µs", us?));
        let parts = [("leader", self.leader), ("followers", self.followers), ("client", self.client)];
        let parts: Vec<_> = parts.into_iter().filter_map(|(name, us)| part(name, us)).collect();
        let total = self.total.map(|us| format!(" = {us:.1} µs")).unwrap_or_default();
        parts.join(" + ") + &total
    }
}

impl Kill {
    fn text(&self) -> String {
        format!(
            "longest time without a confirm {:.0} ms, without a delivery {:.0} ms; {} lost, {} repeated",
            self.confirm_gap_ms, self.delivery_gap_ms, self.lost, self.duplicates
        )
    }
}

pub fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

pub fn mb(bytes: u64) -> f64 {
    (bytes as f64 / 1e4).round() / 1e2
}

/// Events a second, to a tenth.
pub fn per_s(count: u64, us: u64) -> Option<f64> {
    (us > 0).then(|| (count as f64 * 1e7 / us as f64).round() / 1e1)
}
