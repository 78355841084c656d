//! What a run does: how many packages, in which order, and when each is due. Pure.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::client::{NewPackage, Package};

/// A package's number and due time, at the beginning of its payload.
const STAMP_BYTES: usize = 16;

/// At a rate the first package is due after this, so that all are connected by then.
const LEAD_US: u64 = 300_000;

/// What is published, consumed or both, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Publish and consume at the same time.
    Cycle,
    /// Publish everything, then consume it.
    Backlog,
    /// Publish and leave it.
    Publish,
    /// So many callers at once submit one package a call.
    Unary { callers: u64 },
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mode: Mode,
    pub count: u64,
    pub payload_bytes: usize,
    pub queues: u64,
    pub producers: u64,
    pub consumers: u64,
    /// Unconfirmed packages a producer.
    pub window: usize,
    /// Packages that a consumer may hold.
    pub prefetch: u32,
    /// Packages a second of all producers together. None: as fast as the window lets them.
    pub rate: Option<u64>,
    /// None: `count` packages. Else nothing is published any more after this, and `count` is only a bound.
    pub until: Option<Duration>,
    /// Packages that wait elsewhere all the time.
    pub waiting: u64,
    /// One package a message.
    pub single: bool,
}

impl Plan {
    /// When the package of this number is due, in microseconds since the start.
    pub fn due_us(&self, number: u64) -> Option<u64> {
        let us = u128::from(number) * 1_000_000 / u128::from(self.rate?.max(1));
        Some(LEAD_US.saturating_add(u64::try_from(us).unwrap_or(u64::MAX)))
    }

    /// It is time to publish no more.
    pub fn is_over(&self, now_us: u64) -> bool {
        self.until.is_some_and(|until| u128::from(now_us) >= until.as_micros())
    }

    /// How far a run is that did so much in that time, in steps of [`Self::steps`].
    pub fn step(&self, packages: u64, now_us: u64) -> u64 {
        self.until.map_or(packages, |until| (now_us / 1000).min(until.as_millis() as u64))
    }

    /// The steps of a run, and what each is.
    pub fn steps(&self) -> (u64, &'static str) {
        self.until
            .map_or((self.count, "packages confirmed"), |until| (until.as_millis() as u64, "milliseconds of load"))
    }

    /// The plan by which packages are published that wait all the time.
    pub fn of_waiting(&self) -> Self {
        Self {
            mode: Mode::Publish,
            count: self.waiting,
            queues: 1,
            rate: None,
            until: None,
            single: false,
            ..self.clone()
        }
    }

    /// The numbers of the packages that one of `parts` producers sends.
    pub fn share(&self, part: u64, parts: u64) -> impl Iterator<Item = u64> + use<> {
        (part..self.count).step_by(usize::try_from(parts).unwrap_or(usize::MAX))
    }

    /// Which queue a package goes to: each producer takes all queues in turn.
    pub fn queue_of(&self, number: u64) -> usize {
        ((number / self.producers + number % self.producers) % self.queues) as usize
    }

    /// Which queues a consumer works: together they work all of them.
    pub fn queues_of(&self, consumer: u64) -> Vec<usize> {
        let mine = |queue: &u64| match self.consumers < self.queues {
            true => queue % self.consumers == consumer,
            false => *queue == consumer % self.queues,
        };
        (0..self.queues).filter(mine).map(|queue| queue as usize).collect()
    }

    /// The time that a run at a rate takes from its first package on.
    pub fn lasts(&self) -> Option<Duration> {
        self.due_us(self.count).map(|us| Duration::from_micros(us - LEAD_US))
    }
}

/// What a package carries, so that whoever gets it can tell which one it is and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub number: u64,
    pub due_us: u64,
}

impl Stamp {
    /// A package that carries it in its payload, or in its id if the payload is too small.
    pub fn package(self, queue: &str, filler: &Bytes) -> NewPackage {
        if filler.len() < STAMP_BYTES {
            let id = format!("bench-{:016x}-{:016x}", self.number, self.due_us);
            return NewPackage::new(queue, filler.clone()).with_id(id);
        }
        let mut payload = BytesMut::with_capacity(filler.len());
        payload.put_u64_le(self.number);
        payload.put_u64_le(self.due_us);
        payload.extend_from_slice(&filler[STAMP_BYTES..]);
        NewPackage::new(queue, payload.freeze())
    }

    /// What a package carries. None: it is none of this run.
    pub fn of(package: &Package) -> Option<Self> {
        if let Some((stamp, _)) = package.payload.split_first_chunk::<STAMP_BYTES>() {
            let mut stamp = &stamp[..];
            return Some(Self { number: stamp.get_u64_le(), due_us: stamp.get_u64_le() });
        }
        let (number, due_us) = package.id.strip_prefix("bench-")?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { number: hex(number)?, due_us: hex(due_us)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(count: u64, producers: u64, queues: u64, consumers: u64) -> Plan {
        let (mode, window, prefetch) = (Mode::Cycle, 512, 256);
        Plan {
            mode,
            count,
            payload_bytes: 256,
            queues,
            producers,
            consumers,
            window,
            prefetch,
            rate: None,
            until: None,
            waiting: 0,
            single: false,
        }
    }

    #[test]
    fn packages_are_due_at_even_distances_whoever_sends_them() {
        let plan = Plan { rate: Some(1000), ..plan(10, 4, 1, 4) };
        let mut due: Vec<u64> = (0..4).flat_map(|part| plan.share(part, 4)).filter_map(|k| plan.due_us(k)).collect();
        due.sort_unstable();
        assert_eq!(due, (0..10).map(|k| LEAD_US + k * 1000).collect::<Vec<_>>());
        assert_eq!(plan.lasts(), Some(Duration::from_millis(10)));
        let odd = Plan { rate: Some(3), ..plan };
        assert_eq!(
            (0..4).filter_map(|k| odd.due_us(k)).collect::<Vec<_>>(),
            [0, 333_333, 666_666, 1_000_000].map(|us| LEAD_US + us)
        );
        assert_eq!(Plan { rate: None, ..odd }.due_us(7), None);
    }

    #[test]
    fn a_run_of_a_given_length_ends_by_the_clock() {
        let plan = Plan { until: Some(Duration::from_secs(2)), ..plan(1000, 4, 1, 4) };
        assert_eq!([0, 1_999_999, 2_000_000].map(|us| plan.is_over(us)), [false, false, true]);
        assert_eq!(plan.steps().0, 2000);
        assert_eq!([0, 1_500_000, 9_000_000].map(|us| plan.step(77, us)), [0, 1500, 2000]);
        let counted = Plan { until: None, ..plan };
        assert_eq!((counted.steps().0, counted.step(77, 1_500_000), counted.is_over(u64::MAX)), (1000, 77, false));
    }

    #[test]
    fn every_producer_fills_every_queue_and_consumers_work_them_all() {
        for (producers, queues, consumers) in [(4, 1, 4), (4, 4, 4), (4, 4, 2), (1, 5, 3), (3, 2, 8)] {
            let plan = plan(120, producers, queues, consumers);
            for part in 0..producers {
                let mut filled: Vec<usize> = plan.share(part, producers).map(|k| plan.queue_of(k)).collect();
                filled.sort_unstable();
                filled.dedup();
                assert_eq!(filled.len() as u64, queues, "{plan:?}");
            }
            let mut worked: Vec<usize> = (0..consumers).flat_map(|consumer| plan.queues_of(consumer)).collect();
            assert!((0..consumers).all(|consumer| !plan.queues_of(consumer).is_empty()), "{plan:?}");
            worked.sort_unstable();
            worked.dedup();
            assert_eq!(worked.len() as u64, queues, "{plan:?}");
        }
    }

    #[test]
    fn a_stamp_survives_in_payloads_of_any_size() {
        let stamp = Stamp { number: 77, due_us: 1 << 40 };
        for size in [0, 1, 15, 16, 17, 256] {
            let sent = stamp.package("jobs", &Bytes::from(vec![b'x'; size]));
            assert_eq!(sent.payload.len(), size);
            let got = Package { id: sent.id, payload: sent.payload, ..Default::default() };
            assert_eq!(Stamp::of(&got), Some(stamp), "{size}");
        }
        assert_eq!(Stamp::of(&Package { id: "else".into(), ..Default::default() }), None);
    }
}
