//! Why a lease may have ended without a completion, as far as the history tells. What redelivery and
//! blame are judged by.

use std::collections::{BTreeMap, BTreeSet};

use super::super::history::{Event, Fault, History, Key, Settlement, Verdict};

/// What a history knows of its leases.
pub struct Causes<'a> {
    leases: BTreeMap<(&'a Key, u64), Lease>,
    /// Faults of each target, in order of time.
    faults: BTreeMap<&'a str, Vec<(u64, Fault)>>,
    exits: BTreeMap<&'a str, u64>,
    workers: BTreeSet<&'a str>,
}

/// What happened to one lease.
#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    failed: bool,
    /// The cluster said yes to the failure.
    failure_accepted: bool,
    released: bool,
    begun: bool,
    /// Taken back before it was begun.
    taken_unstarted: bool,
}

/// Why a lease ended. More than one may apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    Failed,
    Released,
    /// Prefetch that the cluster took back.
    Reclaimed,
    /// The worker went, in good order.
    Left,
    /// Killed, frozen or cut off.
    WorkerSuffered,
}

impl Cause {
    /// Whether it may count as an attempt.
    pub fn may_be_charged(self) -> bool {
        matches!(self, Cause::Failed | Cause::WorkerSuffered)
    }
}

impl<'a> Causes<'a> {
    pub fn of(history: &'a History) -> Self {
        let mut causes =
            Self { leases: BTreeMap::new(), faults: BTreeMap::new(), exits: BTreeMap::new(), workers: BTreeSet::new() };
        for record in history.records() {
            let mut lease = |key: &'a Key, fence: u64, change: fn(&mut Lease)| {
                change(causes.leases.entry((key, fence)).or_default());
            };
            match &record.event {
                Event::Begin { key, fence } => lease(key, *fence, |lease| lease.begun = true),
                Event::Lost { key, fence, .. } => lease(key, *fence, |lease| lease.taken_unstarted = !lease.begun),
                Event::End { key, fence, settlement: Settlement::Fail } => {
                    lease(key, *fence, |lease| lease.failed = true)
                }
                Event::End { key, fence, settlement: Settlement::Release }
                | Event::Settled { key, fence, settlement: Settlement::Release, .. } => {
                    lease(key, *fence, |lease| lease.released = true);
                }
                Event::Settled { key, fence, settlement: Settlement::Fail, verdict, .. } => match verdict {
                    Verdict::Accepted => lease(key, *fence, |lease| {
                        lease.failed = true;
                        lease.failure_accepted = true;
                    }),
                    _ => lease(key, *fence, |lease| lease.failed = true),
                },
                Event::Fault { target, fault } => {
                    causes.faults.entry(target).or_default().push((record.at_us, *fault));
                }
                Event::Attached { .. } => drop(causes.workers.insert(&record.who)),
                Event::Exited => drop(causes.exits.insert(&record.who, record.at_us)),
                _ => {}
            }
        }
        causes
    }

    /// What may have ended the lease `fence`, which `worker` got at `from_us`, by `until_us`.
    pub fn why(&self, key: &'a Key, fence: u64, worker: &str, from_us: u64, until_us: u64) -> BTreeSet<Cause> {
        let lease = self.leases.get(&(key, fence)).copied().unwrap_or_default();
        let mut why = BTreeSet::new();
        let mut add = |cause, applies: bool| {
            if applies {
                why.insert(cause);
            }
        };
        add(Cause::Failed, lease.failed);
        add(Cause::Released, lease.released);
        add(Cause::Reclaimed, lease.taken_unstarted);
        add(Cause::Left, self.exits.get(worker).is_some_and(|at| (from_us..=until_us).contains(at)));
        let mut ill_since = None;
        for (at_us, fault) in self.faults.get(worker).into_iter().flatten() {
            match fault {
                // What was healed before the lease began explains nothing.
                Fault::Healed if *at_us < from_us => ill_since = None,
                Fault::Healed => {}
                Fault::Drained => add(Cause::Left, *at_us <= until_us),
                Fault::Killed | Fault::Frozen | Fault::CutOff => ill_since = ill_since.or(Some(*at_us)),
            }
        }
        add(Cause::WorkerSuffered, ill_since.is_some_and(|at| at <= until_us));
        why
    }

    /// Leases that may have counted though no worker lived, or was awake, to record them.
    pub fn unseen(&self) -> u32 {
        let ill = |fault: &&(u64, Fault)| matches!(fault.1, Fault::Killed | Fault::Frozen | Fault::CutOff);
        let of_workers = self.faults.iter().filter(|(target, _)| self.workers.contains(*target));
        of_workers.map(|(_, faults)| faults.iter().filter(ill).count() as u32).sum()
    }

    /// The cluster confirmed that the holder failed it.
    pub fn failure_accepted(&self, key: &'a Key, fence: u64) -> bool {
        self.leases.get(&(key, fence)).is_some_and(|lease| lease.failure_accepted)
    }
}
