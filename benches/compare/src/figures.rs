//! What one run gives, as `wharf bench --json` says it; the peers' drivers fill in the same.

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::mode::Mode;

/// A figure that a run does not have is absent, and shown as such.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    pub publish_per_s: Option<f64>,
    pub cycle_per_s: Option<f64>,
    pub drain_per_s: Option<f64>,
    pub confirm_ms: Option<Quantiles>,
    pub e2e_ms: Option<Quantiles>,
    pub cpu_us_per_package: Option<Cpu>,
    /// Resident memory of each node.
    pub rss_mb: Option<Vec<Option<f64>>>,
    /// What the data directories of all nodes take.
    pub disk_mb: Option<f64>,
    pub kill: Option<Kill>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Servers and client together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    pub total: Option<f64>,
}

/// What the death of the leader did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kill {
    pub confirm_gap_ms: f64,
    pub delivery_gap_ms: f64,
    /// Confirmed, and never delivered.
    pub lost: u64,
    /// Deliveries of what was delivered before.
    pub duplicates: u64,
    /// Given up after many tries.
    pub unconfirmed: Option<u64>,
}

impl Quantiles {
    /// Of microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |us: u64| us as f64 / 1e3;
        let at = |quantile| ms(histogram.value_at_quantile(quantile));
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: ms(histogram.max()) }
    }
}

impl Figures {
    /// Refuses a run that lacks what its mode is for.
    pub fn of_mode(self, mode: Mode) -> Result<Self> {
        let first = mode.metrics()[0];
        match first.of(&self) {
            Some(_) => Ok(self),
            None => Err(anyhow!("the run of mode {} did not tell `{}`: {self:?}", mode.name(), first.name())),
        }
    }
}

/// The middle, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn what_wharf_bench_says_is_read_and_what_it_adds_is_passed_over() {
        let text = r#"{"count": 10, "payload": 256, "queues": 1, "rate": null, "backlog": false, "publish_per_s": 5,
            "cycle_per_s": 4.5, "drain_per_s": null, "confirm_ms": {"p50": 1, "p99": 2, "p999": 3, "max": 4},
            "e2e_ms": {"p50": 1, "p99": 2, "p999": 3, "max": 4},
            "cpu_us_per_package": {"total": 4.4, "leader": 2, "followers": 1, "client": 1.4},
            "rss_mb": [30, 31, null], "disk_mb": 12, "kill": null}"#;
        let figures: Figures = serde_json::from_str(text).unwrap();
        assert_eq!(figures.cycle_per_s, Some(4.5));
        assert_eq!(figures.rss_mb, Some(vec![Some(30.0), Some(31.0), None]));
        assert_eq!(figures.cpu_us_per_package, Some(Cpu { total: Some(4.4) }));
        assert!(figures.clone().of_mode(Mode::Cycle).is_ok());
        let error = figures.of_mode(Mode::Kill).unwrap_err().to_string();
        assert!(error.contains("longest without a confirm"), "{error}");
    }

    #[test]
    fn quantiles_are_milliseconds() {
        let mut histogram = Histogram::new(3).unwrap();
        (1..=1000).for_each(|us| histogram.record(us * 1000).unwrap());
        let quantiles = Quantiles::of(&histogram);
        assert!((quantiles.p50 - 500.0).abs() < 1.0 && (quantiles.max - 1000.0).abs() < 1.0, "{quantiles:?}");
    }
}
