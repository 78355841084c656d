//! What is varied, and the places that are measured.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Of the latency runs, where payloads are small.
const RATE: u64 = 1_000;
/// Larger payloads come at a rate that makes no more than this.
const BYTES_A_SECOND: u64 = 8 << 20;
/// A consumer of `wharf bench` takes from no more queues.
const QUEUES_A_CONSUMER: u64 = 64;
const CONSUMERS: u64 = 4;
const PAYLOAD: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    Payload,
    Queues,
    Workers,
    Waiting,
    Nodes,
}

/// One place on an axis: the flags of `wharf bench` for it, and the rate of its latency run.
pub struct Place {
    pub at: u64,
    pub flags: Vec<String>,
    pub rate: u64,
}

impl Axis {
    pub fn name(self) -> &'static str {
        match self {
            Self::Payload => "payload",
            Self::Queues => "queues",
            Self::Workers => "workers",
            Self::Waiting => "waiting",
            Self::Nodes => "nodes",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Payload => "bytes a payload",
            Self::Queues => "queues",
            Self::Workers => "workers",
            Self::Waiting => "packages that wait in another queue",
            Self::Nodes => "nodes",
        }
    }

    pub fn places(self) -> Vec<Place> {
        let of = |values: &[u64]| values.iter().map(|at| self.place(*at)).collect();
        match self {
            Self::Payload => of(&[0, 16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10]),
            Self::Queues => of(&[1, 4, 16, 64, 256, 1_000]),
            Self::Workers => of(&[1, 4, 16, 64, 256, 1_000]),
            Self::Waiting => of(&[0, 10_000, 100_000, 500_000, 1_000_000, 2_000_000]),
            Self::Nodes => of(&[1, 3, 5]),
        }
    }

    fn place(self, at: u64) -> Place {
        let flag = |name: &str, value: u64| format!("--{name}={value}");
        let flags = match self {
            Self::Payload => vec![flag("payload", at)],
            Self::Queues => vec![flag("queues", at), flag("consumers", CONSUMERS.max(at.div_ceil(QUEUES_A_CONSUMER)))],
            Self::Workers => vec![flag("consumers", at)],
            Self::Waiting => vec![flag("waiting", at)],
            Self::Nodes => vec![flag("nodes", at)],
        };
        let payload = if self == Self::Payload { at } else { PAYLOAD };
        Place { at, flags, rate: RATE.min(BYTES_A_SECOND / payload.max(1)) }
    }

    /// As it stands below the axis.
    pub fn label(self, at: u64) -> String {
        match (self, at) {
            (Self::Payload, 1_024..) => format!("{} KiB", at >> 10),
            (Self::Waiting, 1_000_000..) => format!("{}M", at / 1_000_000),
            (Self::Waiting, 1_000..) => format!("{}k", at / 1_000),
            _ => at.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_said_in_flags() {
        let thousand = Axis::Queues.places().pop().unwrap();
        assert_eq!(thousand.flags, ["--queues=1000", "--consumers=16"]);
        assert_eq!(Axis::Queues.place(64).flags, ["--queues=64", "--consumers=4"]);
        assert_eq!(Axis::Payload.place(256 << 10).rate, 32);
        assert_eq!(Axis::Payload.place(0).rate, RATE);
        assert_eq!(Axis::Waiting.label(500_000), "500k");
        assert_eq!(Axis::Payload.label(64 << 10), "64 KiB");
    }
}
