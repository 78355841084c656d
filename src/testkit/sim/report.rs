//! What a run says in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::checkers::{Violation, accepted_fence, completed_once, invented, linearizable, lost};
use super::super::history::{Answer, Event, History};
use super::faults::Landed;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// Nothing is wrong, but something planned did not happen.
    Inconclusive,
}

/// One object, as `wharf sim --json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub verdict: Verdict,
    /// Calls and settlements that clients and workers made.
    pub operations: u64,
    pub confirmed: u64,
    pub lost: u64,
    pub invented: u64,
    pub completed_twice: u64,
    pub stale_accepted: u64,
    /// Packages of which it was not found out whether they are linearizable: no pass.
    #[serde(default)]
    pub undecided: u64,
    /// How often each kind landed.
    pub faults: BTreeMap<String, u64>,
    /// The longest time without a confirm that began while such a fault was there.
    pub longest_gap_ms: BTreeMap<String, u64>,
    pub violations: Vec<String>,
    /// Simulated seconds.
    pub seconds: f64,
    /// The same for the same seed and build: of the history and of what is on the disks. Only of a simulation.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
}

/// What a run left behind, to be judged.
pub struct Left<'a> {
    pub seed: u64,
    pub history: &'a History,
    pub landed: &'a [Landed],
    /// When the history began, as its records have it.
    pub epoch: Duration,
    pub elapsed: Duration,
    pub digest: String,
}

impl Report {
    /// `broken`: what is wrong beside the violations that the checkers found.
    pub fn new(left: &Left<'_>, found: &[Violation], broken: Vec<String>) -> Self {
        let of = |invariant: &str| found.iter().filter(|violation| violation.invariant == invariant).count() as u64;
        let records = left.history.records();
        let asks = |event: &Event| matches!(event, Event::Submit { .. } | Event::End { .. } | Event::Read { .. });
        let mut faults: BTreeMap<String, u64> = BTreeMap::new();
        for landed in left.landed {
            *faults.entry(landed.name.clone()).or_default() += 1;
        }
        let mut violations = broken;
        violations.extend(found.iter().map(ToString::to_string));
        let undecided = linearizable::undecided(left.history);
        Self {
            seed: left.seed,
            verdict: match (violations.is_empty(), undecided) {
                (false, _) => Verdict::Fail,
                (true, 0) => Verdict::Pass,
                (true, _) => Verdict::Inconclusive,
            },
            operations: records.iter().filter(|record| asks(&record.event)).count() as u64,
            confirmed: left.history.confirmed().len() as u64,
            lost: of(lost::INVARIANT),
            invented: of(invented::INVARIANT),
            completed_twice: of(completed_once::INVARIANT),
            stale_accepted: of(accepted_fence::INVARIANT),
            undecided,
            faults,
            longest_gap_ms: gaps(left),
            violations,
            seconds: left.elapsed.as_secs_f64(),
            digest: left.digest.clone(),
        }
    }
}

fn gaps(left: &Left<'_>) -> BTreeMap<String, u64> {
    let confirm = |event: &Event| matches!(event, Event::Submitted { answer: Answer::Ok | Answer::Duplicate, .. });
    let confirms = left.history.records().iter().filter(|record| confirm(&record.event));
    let times: Vec<u64> = confirms.map(|record| record.at_us).collect();
    let mut longest: BTreeMap<String, u64> = BTreeMap::new();
    for landed in left.landed {
        let [from, until] = [landed.from, landed.until].map(|at| (left.epoch + at).as_micros() as u64);
        let during = times.windows(2).filter(|two| two[1] > from && two[0] < until);
        let gap = during.map(|two| two[1] - two[0]).max().unwrap_or_default() / 1_000;
        let known = longest.entry(landed.name.clone()).or_default();
        *known = gap.max(*known);
    }
    longest
}
