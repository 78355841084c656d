//! What is measured: each mode is one workload, and the figures that are read from it.

use clap::ValueEnum;

use crate::figures::Figures;

/// Packages of the modes that run as fast as they can, unless the caller names another count.
const COUNT: u64 = 200_000;
/// Packages that wait when memory and disk are looked at, likewise.
const BACKLOG: u64 = 300_000;
/// How long a mode with a rate sends, likewise.
const SECONDS: u64 = 14;
/// When the leader is killed.
pub const KILL_AFTER_SECONDS: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Publish, confirm, deliver and ack, as fast as it goes.
    Cycle,
    /// The same over four queues.
    Cycle4,
    /// Publish and confirm only.
    Publish,
    /// Publish a backlog, look at memory and disk, then deliver and ack.
    Drain,
    /// 1000 packages a second: latencies.
    Rate1000,
    /// 10000 packages a second: latencies.
    Rate10000,
    /// The cycle with one package a message, as the peers always do; Wharf else puts what waits into one.
    Single,
    /// 1000 packages a second, and the leader is killed.
    Kill,
}

/// One run's work, the same for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    pub count: u64,
    pub payload_bytes: usize,
    pub queues: usize,
    pub producers: usize,
    pub consumers: usize,
    /// Packages that a producer has sent and not seen confirmed, at most.
    pub window: usize,
    /// Packages that a consumer has and did not ack, at most.
    pub prefetch: usize,
    /// Packages a second of all producers together. 0: as fast as the window allows.
    pub rate: u64,
    /// Consumers begin when everything is published.
    pub backlog: bool,
    /// The leader is killed on the way; a publish that fails is tried again.
    pub kill: bool,
    /// One package a message, in each submit and in each completion.
    pub single: bool,
}

/// What the caller may set smaller, for a quick look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    pub count: Option<u64>,
    pub seconds: Option<u64>,
}

impl Mode {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub fn workload(self, size: Size) -> Workload {
        let fast = Workload {
            count: size.count.unwrap_or(COUNT),
            payload_bytes: 256,
            queues: 1,
            producers: 4,
            consumers: 4,
            window: 512,
            prefetch: 256,
            rate: 0,
            backlog: false,
            kill: false,
            single: false,
        };
        let paced = |rate| Workload { rate, count: rate * size.seconds.unwrap_or(SECONDS), ..fast };
        match self {
            Mode::Cycle => fast,
            Mode::Cycle4 => Workload { queues: 4, ..fast },
            Mode::Publish => Workload { backlog: true, ..fast },
            Mode::Drain => Workload { backlog: true, count: size.count.unwrap_or(BACKLOG), ..fast },
            Mode::Rate1000 => paced(1_000),
            Mode::Rate10000 => paced(10_000),
            Mode::Single => Workload { single: true, ..fast },
            Mode::Kill => Workload { kill: true, ..paced(1_000) },
        }
    }

    /// What is read from its figures. The first is what the mode is for, and must be there.
    pub fn metrics(self) -> &'static [Metric] {
        use Metric::*;
        match self {
            Mode::Cycle | Mode::Cycle4 | Mode::Single => &[CyclePerSecond, CpuPerPackage],
            Mode::Publish => &[PublishPerSecond],
            Mode::Drain => &[DrainPerSecond, MemoryANode, DiskOfAll],
            Mode::Rate1000 | Mode::Rate10000 => {
                &[EndToEndP50, EndToEndP99, EndToEndP999, ConfirmP50, ConfirmP99, CpuPerPackage]
            }
            Mode::Kill => &[ConfirmGap, DeliveryGap, Lost, Duplicates, NeverConfirmed],
        }
    }
}

/// One number of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    CyclePerSecond,
    PublishPerSecond,
    DrainPerSecond,
    CpuPerPackage,
    MemoryANode,
    DiskOfAll,
    ConfirmP50,
    ConfirmP99,
    EndToEndP50,
    EndToEndP99,
    EndToEndP999,
    ConfirmGap,
    DeliveryGap,
    Lost,
    Duplicates,
    NeverConfirmed,
}

impl Metric {
    /// Its name in tables and in JSON, with the unit.
    pub fn name(self) -> &'static str {
        match self {
            Metric::CyclePerSecond => "full cycles, /s",
            Metric::PublishPerSecond => "published, /s",
            Metric::DrainPerSecond => "drained, /s",
            Metric::CpuPerPackage => "CPU a package, µs",
            Metric::MemoryANode => "memory a node, MB",
            Metric::DiskOfAll => "disk of 3 nodes, MB",
            Metric::ConfirmP50 => "confirm p50, ms",
            Metric::ConfirmP99 => "confirm p99, ms",
            Metric::EndToEndP50 => "end to end p50, ms",
            Metric::EndToEndP99 => "end to end p99, ms",
            Metric::EndToEndP999 => "end to end p99.9, ms",
            Metric::ConfirmGap => "longest without a confirm, ms",
            Metric::DeliveryGap => "longest without a delivery, ms",
            Metric::Lost => "confirmed and lost",
            Metric::Duplicates => "delivered twice",
            Metric::NeverConfirmed => "never confirmed",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Metric::CyclePerSecond | Metric::PublishPerSecond | Metric::DrainPerSecond)
    }

    pub fn of(self, figures: &Figures) -> Option<f64> {
        let (confirm, e2e, kill) = (figures.confirm_ms.as_ref(), figures.e2e_ms.as_ref(), figures.kill.as_ref());
        match self {
            Metric::CyclePerSecond => figures.cycle_per_s,
            Metric::PublishPerSecond => figures.publish_per_s,
            Metric::DrainPerSecond => figures.drain_per_s,
            Metric::CpuPerPackage => figures.cpu_us_per_package.as_ref()?.total,
            // The largest: nodes lead and follow in turns.
            Metric::MemoryANode => figures.rss_mb.iter().flatten().copied().flatten().reduce(f64::max),
            Metric::DiskOfAll => figures.disk_mb,
            Metric::ConfirmP50 => confirm.map(|confirm| confirm.p50),
            Metric::ConfirmP99 => confirm.map(|confirm| confirm.p99),
            Metric::EndToEndP50 => e2e.map(|e2e| e2e.p50),
            Metric::EndToEndP99 => e2e.map(|e2e| e2e.p99),
            Metric::EndToEndP999 => e2e.map(|e2e| e2e.p999),
            Metric::ConfirmGap => kill.map(|kill| kill.confirm_gap_ms),
            Metric::DeliveryGap => kill.map(|kill| kill.delivery_gap_ms),
            Metric::Lost => kill.map(|kill| kill.lost as f64),
            Metric::Duplicates => kill.map(|kill| kill.duplicates as f64),
            Metric::NeverConfirmed => kill.and_then(|kill| kill.unconfirmed).map(|count| count as f64),
        }
    }

    /// How many times better `ours` is than `theirs`; nothing if one of them is zero.
    pub fn times_better(self, ours: f64, theirs: f64) -> Option<f64> {
        let (over, under) = if self.more_is_better() { (ours, theirs) } else { (theirs, ours) };
        (over > 0.0 && under > 0.0).then(|| over / under)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Kill, Quantiles};

    #[test]
    fn a_ratio_above_one_is_always_to_our_credit() {
        assert_eq!(Metric::CyclePerSecond.times_better(200.0, 100.0), Some(2.0));
        assert_eq!(Metric::EndToEndP99.times_better(2.0, 8.0), Some(4.0));
        assert_eq!(Metric::Lost.times_better(0.0, 3.0), None, "nothing is a multiple of nothing");
    }

    #[test]
    fn every_mode_reads_its_metrics_from_a_whole_set_of_figures() {
        let quantiles = Some(Quantiles { p50: 1.0, p99: 2.0, p999: 3.0, max: 4.0 });
        let kill = Kill { confirm_gap_ms: 1.0, delivery_gap_ms: 1.0, lost: 0, duplicates: 0, unconfirmed: Some(0) };
        let figures = Figures {
            publish_per_s: Some(1.0),
            cycle_per_s: Some(1.0),
            drain_per_s: Some(1.0),
            confirm_ms: quantiles.clone(),
            e2e_ms: quantiles,
            cpu_us_per_package: Some(crate::figures::Cpu { total: Some(1.0) }),
            rss_mb: Some(vec![Some(1.0), Some(3.0), None]),
            disk_mb: Some(1.0),
            kill: Some(kill),
        };
        for mode in Mode::value_variants() {
            for metric in mode.metrics() {
                assert!(metric.of(&figures).is_some(), "{mode:?} {metric:?}");
            }
        }
        assert_eq!(Metric::MemoryANode.of(&figures), Some(3.0));
    }

    #[test]
    fn a_smaller_size_reaches_every_mode() {
        let small = Size { count: Some(100), seconds: Some(1) };
        for mode in Mode::value_variants() {
            let workload = mode.workload(small);
            assert!(workload.count == 100 || workload.count == workload.rate, "{mode:?} {workload:?}");
        }
    }
}
