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
    /// In a queue of their own, all the time.
    #[serde(skip_serializing_if = "none")]
    pub waiting: u64,
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

fn none(count: &u64) -> bool {
    *count == 0
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
            (
                "waiting",
                if self.waiting == 0 { String::new() } else { format!("{} in a queue of their own", self.waiting) },
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let latency = Latency { p50: 1.25, p99: 6.5, p999: 11.375, max: 20.0 };
        Report {
            count: 14_000,
            payload: 256,
            queues: 1,
            rate: Some(1000),
            waiting: 0,
            backlog: false,
            publish_per_s: Some(999.8),
            cycle_per_s: Some(998.0),
            drain_per_s: None,
            confirm_ms: Some(latency),
            e2e_ms: Some(Latency { p50: 2.0, ..latency }),
            cpu_us_per_package: Cpu {
                total: Some(60.5),
                leader: Some(30.0),
                followers: Some(20.25),
                client: Some(10.25),
            },
            rss_mb: Some(vec![Some(69.5), None, Some(70.0)]),
            disk_mb: Some(73.0),
            kill: Some(Kill { confirm_gap_ms: 170.5, delivery_gap_ms: 180.0, lost: 0, duplicates: 2 }),
            lost: 0,
            retries: vec![],
        }
    }

    /// Programs read it: names, order of magnitude and nulls stay.
    #[test]
    fn the_object_for_programs() {
        let json = serde_json::to_string_pretty(&report()).expect("numbers have a form");
        let golden = r#"{
  "count": 14000,
  "payload": 256,
  "queues": 1,
  "rate": 1000,
  "backlog": false,
  "publish_per_s": 999.8,
  "cycle_per_s": 998.0,
  "drain_per_s": null,
  "confirm_ms": {
    "p50": 1.25,
    "p99": 6.5,
    "p999": 11.375,
    "max": 20.0
  },
  "e2e_ms": {
    "p50": 2.0,
    "p99": 6.5,
    "p999": 11.375,
    "max": 20.0
  },
  "cpu_us_per_package": {
    "total": 60.5,
    "leader": 30.0,
    "followers": 20.25,
    "client": 10.25
  },
  "rss_mb": [
    69.5,
    null,
    70.0
  ],
  "disk_mb": 73.0,
  "kill": {
    "confirm_gap_ms": 170.5,
    "delivery_gap_ms": 180.0,
    "lost": 0,
    "duplicates": 2
  }
}"#;
        assert_eq!(json, golden);
    }

    #[test]
    fn the_table_for_people_has_units_and_leaves_out_what_was_not_measured() {
        let shown = |report: &Report| {
            let rows = report.rows().into_iter().filter(|(_, text)| !text.is_empty());
            rows.map(|(name, text)| format!("{name}: {text}")).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(&report()),
            [
                "packages: 14000 of 256 bytes in 1 queue, 1000 a second",
                "published: 1000 packages/s, each confirmed",
                "cycle: 998 packages/s, each confirmed, delivered and completed",
                "submit to confirm: p50 1.25 ms, p99 6.50 ms, p99.9 11.38 ms, longest 20.00 ms",
                "submit to delivery: p50 2.00 ms, p99 6.50 ms, p99.9 11.38 ms, longest 20.00 ms",
                "cpu a package: leader 30.0 µs + followers 20.2 µs + client 10.2 µs = 60.5 µs",
                "memory: node 1 70 MB, node 3 70 MB",
                "disk: 73 MB of all nodes",
                "leader lost: longest time without a confirm 170 ms, without a delivery 180 ms; 0 lost, 2 repeated",
            ]
        );
        let foreign = Report {
            queues: 4,
            rate: None,
            cycle_per_s: None,
            e2e_ms: None,
            cpu_us_per_package: Cpu { client: Some(3.0), ..Cpu::default() },
            rss_mb: None,
            disk_mb: None,
            kill: None,
            ..report()
        };
        assert_eq!(
            shown(&foreign),
            [
                "packages: 14000 of 256 bytes in 4 queues, as fast as the window allows",
                "published: 1000 packages/s, each confirmed",
                "submit to confirm: p50 1.25 ms, p99 6.50 ms, p99.9 11.38 ms, longest 20.00 ms",
                "cpu a package: client 3.0 µs",
            ]
        );
    }

    #[test]
    fn latencies_are_milliseconds_and_rates_a_second() {
        let mut us = Histogram::new_with_bounds(1, 1_000_000, 3).expect("bounds");
        assert_eq!(Latency::of(&us), None);
        (1..=1000).for_each(|value| us.record(value * 100).expect("within the bounds"));
        let latency = Latency::of(&us).expect("something was measured");
        let about = |is: f64, should: f64| assert!((is / should - 1.0).abs() < 0.002, "{is} is not {should}");
        about(latency.p50, 50.0);
        about(latency.p99, 99.0);
        about(latency.p999, 99.9);
        about(latency.max, 100.0);
        assert_eq!(per_s(1000, 500_000), Some(2000.0));
        assert_eq!(per_s(1000, 0), None);
        assert_eq!(mb(73_456_789), 73.46);
    }
}
