//! The verdict: what was confirmed against what the workers wrote down and what the cluster stores.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use indicatif::ProgressBar;
use serde::Serialize;

use super::QUEUE;
use super::feed::Fed;
use super::ledger::{Lease, Ledger};
use crate::client::{Client, State};

/// Look-ups under way at once.
const LOOK_UPS: usize = 256;
/// Packages named in a complaint.
const NAMED: usize = 5;

/// What the cluster says of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub state: State,
    pub fence: u64,
}

/// What came out. Serialized as `wharf demo --json` prints it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    submitted: u64,
    confirmed: u64,
    completed: u64,
    lost: u64,
    completed_twice: u64,
    redelivered: Redelivered,
    stale_refused: u64,
    longest_confirm_gap_ms: u64,
    state_hashes_agree: bool,
    seconds: f64,
    #[serde(skip)]
    complaints: Vec<String>,
}

/// Packages that were delivered again, by what ended the lease before.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Redelivered {
    failed: u64,
    timed_out: u64,
    worker_lost: u64,
    released: u64,
    drained: u64,
}

/// Asks the cluster for every package that may be there.
pub async fn look_up(client: &Client, fed: &Fed, bar: ProgressBar) -> anyhow::Result<BTreeMap<String, Stored>> {
    let ids = fed.confirmed.iter().chain(&fed.unknown);
    let asked = futures::stream::iter(ids.map(|id| async move { (id.clone(), client.get_package(QUEUE, id).await) }));
    let mut answers = asked.buffer_unordered(LOOK_UPS);
    let mut stored = BTreeMap::new();
    while let Some((id, answer)) = answers.next().await {
        bar.inc(1);
        match answer {
            Ok(package) => {
                stored.insert(id, Stored { state: package.state(), fence: package.fence });
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot look up {id}")),
        }
    }
    Ok(stored)
}

/// Judges a run.
pub fn judge(
    fed: &Fed,
    stored: &BTreeMap<String, Stored>,
    ledger: &Ledger,
    state_hashes_agree: bool,
    took: Duration,
) -> Report {
    let mut report = Report {
        submitted: fed.submitted,
        confirmed: fed.confirmed.len() as u64,
        completed: stored.values().filter(|stored| stored.state == State::Completed).count() as u64,
        stale_refused: ledger.refused,
        longest_confirm_gap_ms: fed.longest_gap.as_millis() as u64,
        state_hashes_agree,
        seconds: (took.as_secs_f64() * 10.0).round() / 10.0,
        ..Report::default()
    };
    for id in &fed.confirmed {
        if let Some(complaint) = missing(stored.get(id), ledger.packages.get(id)) {
            report.lost += 1;
            report.complain(format!("{id} {complaint}"));
        }
    }
    for (id, leases) in &ledger.packages {
        if leases.values().map(|lease| lease.completed).sum::<u32>() > 1 {
            report.completed_twice += 1;
            report.complain(format!("{id} was completed twice"));
        }
        leases.values().take(leases.len() - 1).for_each(|lease| report.redelivered.count(lease));
    }
    report
}

/// Why a confirmed package was not completed, if it was not.
fn missing(stored: Option<&Stored>, leases: Option<&BTreeMap<u64, Lease>>) -> Option<String> {
    let Some(stored) = stored else { return Some("is unknown to the cluster".into()) };
    if stored.state != State::Completed {
        return Some(format!("is {}", stored.state.as_str_name()));
    }
    // The completion that counts is of the last fence, and somebody must have done the work under it.
    match leases.and_then(|leases| leases.get(&stored.fence)) {
        Some(lease) if lease.executed => None,
        _ => Some(format!("is completed under fence {}, and no worker did that work", stored.fence)),
    }
}

impl Redelivered {
    /// A lease that another one followed.
    fn count(&mut self, lease: &Lease) {
        let cause = match lease {
            Lease { failed: true, .. } => &mut self.failed,
            Lease { released: true, .. } => &mut self.released,
            Lease { holder_killed: true, .. } => &mut self.worker_lost,
            Lease { started: true, .. } => &mut self.timed_out,
            // It went back unstarted, from a worker that was not heard from.
            _ => &mut self.released,
        };
        *cause += 1;
    }

    fn sum(&self) -> u64 {
        self.failed + self.timed_out + self.worker_lost + self.released + self.drained
    }
}

impl Report {
    /// For people.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let again = &self.redelivered;
        let causes = [
            ("worker lost", again.worker_lost),
            ("timed out", again.timed_out),
            ("released", again.released),
            ("drained", again.drained),
            ("failed", again.failed),
        ];
        let causes: Vec<String> = causes.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
        vec![
            ("submitted", self.submitted.to_string()),
            ("confirmed", self.confirmed.to_string()),
            ("completed", self.completed.to_string()),
            ("lost", self.lost.to_string()),
            ("completed twice", self.completed_twice.to_string()),
            ("redelivered", format!("{} ({})", again.sum(), causes.join(", "))),
            ("stale completions refused", self.stale_refused.to_string()),
            ("longest pause in confirming", format!("{} ms", self.longest_confirm_gap_ms)),
            ("state hashes agree", if self.state_hashes_agree { "yes" } else { "NO" }.into()),
            ("took", format!("{:.1} s", self.seconds)),
        ]
    }

    /// Why the run failed, if it did.
    pub fn problem(&self) -> Option<String> {
        if self.lost > 0 || self.completed_twice > 0 {
            let named = self.complaints.join("; ");
            return Some(format!("{} lost, {} completed twice: {named}", self.lost, self.completed_twice));
        }
        (!self.state_hashes_agree).then(|| "the nodes' states differ".to_owned())
    }

    fn complain(&mut self, complaint: String) {
        if self.complaints.len() < NAMED {
            self.complaints.push(complaint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Entry, Fate, What};
    use super::*;

    struct Run {
        fed: Fed,
        stored: BTreeMap<String, Stored>,
        ledger: Ledger,
    }

    impl Run {
        /// Packages a and b, worked by one worker each without trouble.
        fn good() -> Self {
            let mut run = Self { fed: Fed::default(), stored: BTreeMap::new(), ledger: Ledger::default() };
            for (id, fence) in [("a", 10), ("b", 11)] {
                run.fed.submitted += 1;
                run.fed.confirmed.push(id.into());
                run.stored.insert(id.into(), Stored { state: State::Completed, fence });
                run.lease(id, fence, Fate::Lived, [What::Delivered, What::Started, What::Executed, What::Completed]);
            }
            run
        }

        fn lease<const N: usize>(&mut self, id: &str, fence: u64, fate: Fate, whats: [What; N]) {
            for what in whats {
                self.ledger.enter(Entry { id: id.into(), fence, what }, fate);
            }
        }

        fn judge(&self) -> Report {
            judge(&self.fed, &self.stored, &self.ledger, true, Duration::from_secs(1))
        }
    }

    #[test]
    fn a_good_run_is_good() {
        let report = Run::good().judge();
        assert_eq!((report.submitted, report.confirmed, report.completed, report.lost), (2, 2, 2, 0));
        assert_eq!(report.problem(), None);
    }

    #[test]
    fn a_lost_package_is_found() {
        let mut run = Run::good();
        run.stored.remove("a");
        assert_eq!(run.judge().lost, 1);

        let mut run = Run::good();
        run.stored.insert("b".into(), Stored { state: State::Ready, fence: 0 });
        let report = run.judge();
        assert_eq!((report.lost, report.completed), (1, 1));
        assert!(report.problem().unwrap().contains("b is READY"));
    }

    #[test]
    fn a_completion_that_nobody_worked_for_is_found() {
        let mut run = Run::good();
        run.stored.insert("a".into(), Stored { state: State::Completed, fence: 99 });
        assert!(run.judge().problem().unwrap().contains("fence 99"));
    }

    #[test]
    fn a_second_completion_is_found() {
        let mut run = Run::good();
        run.lease("a", 5, Fate::Lived, [What::Delivered, What::Started, What::Executed, What::Completed]);
        let report = run.judge();
        assert_eq!(report.completed_twice, 1);
        assert!(report.problem().is_some());
    }

    #[test]
    fn an_unknown_outcome_may_be_there_or_not() {
        let mut run = Run::good();
        run.fed.submitted = 3;
        run.fed.unknown.push("c".into());
        let report = run.judge();
        assert_eq!((report.submitted, report.confirmed), (3, 2));
        assert_eq!(report.problem(), None);
    }

    #[test]
    fn redeliveries_count_by_what_ended_the_lease() {
        let mut run = Run::good();
        run.lease("a", 1, Fate::Killed, [What::Delivered]);
        run.lease("a", 2, Fate::Lived, [What::Delivered, What::Started, What::Lost, What::Executed]);
        run.lease("b", 3, Fate::Lived, [What::Delivered, What::Lost]);
        run.lease("b", 4, Fate::Lived, [What::Delivered, What::Released]);
        run.lease("b", 4, Fate::Lived, [What::Refused { reason: "LEASE_LOST".into() }]);
        let report = run.judge();
        let expected = Redelivered { worker_lost: 1, timed_out: 1, released: 2, ..Redelivered::default() };
        assert_eq!(report.redelivered, expected);
        assert_eq!((report.stale_refused, report.completed_twice, report.lost), (1, 0, 0));
    }

    #[test]
    fn differing_states_fail_the_run() {
        let run = Run::good();
        let report = judge(&run.fed, &run.stored, &run.ledger, false, Duration::ZERO);
        assert!(report.problem().is_some());
    }

    #[test]
    fn the_json_is_what_the_api_page_says() {
        let json = serde_json::to_value(Run::good().judge()).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "submitted",
            "confirmed",
            "completed",
            "lost",
            "completed_twice",
            "redelivered",
            "stale_refused",
            "longest_confirm_gap_ms",
            "state_hashes_agree",
            "seconds",
        ];
        expected.sort_unstable();
        let mut keys = keys;
        keys.sort_unstable();
        assert_eq!(keys, expected);
    }
}
