//! The verdict on a run, from its folder alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::super::checkers::{self, causes::Cause, causes::Causes};
use super::super::history::{Event, History, Key};
use super::super::sim::faults::Landed;
use super::super::sim::report::{Left, Report, Verdict};
use super::faults::Tried;
use super::plan::{Kind, Plan};

const PLAN: &str = "plan.json";
const SEEN: &str = "seen.json";
const REPORT: &str = "report.json";
pub const HISTORY: &str = "history.jsonl";

/// What the run saw beside its history.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// By whom: the program's version.
    pub version: String,
    /// What the nodes' data were on.
    pub disk: String,
    /// What could not be done, with why.
    pub not_covered: BTreeMap<Kind, String>,
    pub tried: Vec<Tried>,
    /// What is wrong beside what the checkers find.
    pub broken: Vec<String>,
    /// Each node's state in the end, with what a recount found wrong.
    pub states: Vec<String>,
    /// Microseconds since the Unix epoch.
    pub began_us: u64,
    pub ended_us: u64,
}

/// How one kind of fault fared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    pub planned: u64,
    pub landed: u64,
    /// Submits and executions under way when it landed, at most.
    pub in_flight: u64,
}

/// What a run came to: the object that `wharf chaos --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    #[serde(flatten)]
    pub report: Report,
    pub coverage: BTreeMap<Kind, Coverage>,
    /// Kinds that could not be done here, with why.
    pub not_covered: BTreeMap<Kind, String>,
    /// Why packages were delivered again, as far as the history tells; one may have several causes.
    pub redeliveries: BTreeMap<String, u64>,
    /// Executions of a package that began before an earlier one of it had ended.
    pub overlapping_executions: u64,
    pub disk: String,
}

/// Keeps what is needed to judge it again.
pub fn keep(dir: &Path, plan: &Plan, seen: &Seen) -> anyhow::Result<()> {
    fs::write(dir.join(PLAN), serde_json::to_vec_pretty(plan)?)?;
    Ok(fs::write(dir.join(SEEN), serde_json::to_vec_pretty(seen)?)?)
}

/// Judges the run that is kept in `dir`, and leaves the verdict there.
pub fn judge(dir: &Path) -> anyhow::Result<Outcome> {
    let read = |name: &str| {
        let file = dir.join(name);
        let bytes = fs::read(&file)
            .with_context(|| format!("{} is no run that ended: cannot read {}", dir.display(), file.display()))?;
        anyhow::Ok(bytes)
    };
    let plan: Plan = serde_json::from_slice(&read(PLAN)?).with_context(|| format!("{PLAN} is damaged"))?;
    let seen: Seen = serde_json::from_slice(&read(SEEN)?).with_context(|| format!("{SEEN} is damaged"))?;
    let history = History::load(&dir.join(HISTORY))?;
    let outcome = outcome(&plan, &seen, &history);
    fs::write(dir.join(REPORT), serde_json::to_vec_pretty(&outcome)?)?;
    Ok(outcome)
}

fn outcome(plan: &Plan, seen: &Seen, history: &History) -> Outcome {
    let landed: Vec<&Tried> = seen.tried.iter().filter(|tried| tried.evidence.is_some()).collect();
    let mut coverage: BTreeMap<Kind, Coverage> = BTreeMap::new();
    for planned in &plan.faults {
        coverage.entry(planned.fault.kind).or_default().planned += 1;
    }
    let under_way = UnderWay::of(history);
    for tried in &landed {
        let kind = coverage.entry(tried.kind).or_default();
        kind.landed += 1;
        kind.in_flight = kind.in_flight.max(under_way.most(tried.from_us, tried.until_us));
    }
    let mut broken = seen.broken.clone();
    let same = seen.states.iter().all(|state| *state == seen.states[0] && state.ends_with("[]"));
    if seen.states.len() as u64 != plan.nodes || !same {
        broken.push(format!("the nodes' states: {:?}", seen.states));
    }
    let found = checkers::check_to_the_end(history);
    let at = |us: u64| Duration::from_micros(us);
    let landed: Vec<Landed> = landed
        .iter()
        .map(|tried| Landed { name: tried.kind.name(), from: at(tried.from_us), until: at(tried.until_us) })
        .collect();
    let left = Left {
        seed: plan.seed,
        history,
        landed: &landed,
        epoch: Duration::ZERO,
        elapsed: at(seen.ended_us.saturating_sub(seen.began_us)),
        digest: String::new(),
    };
    let mut report = Report::new(&left, &found, broken);
    let missed = coverage.values().any(|kind| kind.landed == 0 || kind.in_flight == 0);
    if report.verdict == Verdict::Pass && (missed || report.confirmed == 0) {
        report.verdict = Verdict::Inconclusive;
    }
    Outcome {
        report,
        coverage,
        not_covered: seen.not_covered.clone(),
        redeliveries: redeliveries(history),
        overlapping_executions: overlaps(history),
        disk: seen.disk.clone(),
    }
}

/// How many submits wait for an answer and how many handlers run, over time.
struct UnderWay(Vec<(u64, u64)>);

impl UnderWay {
    fn of(history: &History) -> Self {
        let mut now = 0_u64;
        let mut steps = Vec::new();
        for record in history.records() {
            match record.event {
                Event::Submit { .. } | Event::Begin { .. } => now += 1,
                // A handler that was killed never ends: counted on, it hides nothing, for many submits end.
                Event::Submitted { .. } | Event::End { .. } => now = now.saturating_sub(1),
                _ => continue,
            }
            steps.push((record.at_us, now));
        }
        Self(steps)
    }

    /// The most within this time.
    fn most(&self, from_us: u64, until_us: u64) -> u64 {
        let first = self.0.partition_point(|(at, _)| *at < from_us).saturating_sub(1);
        let within = self.0[first..].iter().take_while(|(at, _)| *at <= until_us);
        within.map(|(_, count)| *count).max().unwrap_or_default()
    }
}

fn redeliveries(history: &History) -> BTreeMap<String, u64> {
    let causes = Causes::of(history);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (key, fences) in &history.deliveries() {
        let all: Vec<_> = fences.iter().collect();
        for two in all.windows(2) {
            let [(fence, first), (_, next)] = two else { continue };
            let (Some(first), Some(next)) = (first.first(), next.first()) else { continue };
            let why = causes.why(key, **fence, first.worker, first.at_us, next.at_us);
            let names = why.into_iter().map(cause_name);
            let names: Vec<&str> = names.collect();
            for name in if names.is_empty() { vec!["unknown"] } else { names } {
                *counts.entry(name.to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Failed => "failed",
        Cause::Released => "released",
        Cause::Reclaimed => "reclaimed",
        Cause::Left => "drained",
        Cause::WorkerSuffered => "worker_lost",
    }
}

fn overlaps(history: &History) -> u64 {
    // When each execution ended; one that never did, because its worker was killed, is over by then.
    let mut running: BTreeMap<&Key, Vec<(&str, u64)>> = BTreeMap::new();
    let mut count = 0;
    for record in history.records() {
        match &record.event {
            Event::Begin { key, fence } => {
                let others = running.entry(key).or_default();
                count += u64::from(!others.is_empty());
                others.push((&record.who, *fence));
            }
            Event::End { key, fence, .. } => {
                running.entry(key).or_default().retain(|(_, other)| other != fence);
            }
            Event::Fault { target, fault: super::super::history::Fault::Killed } => {
                running.values_mut().for_each(|all| all.retain(|(who, _)| who != target));
            }
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::super::super::checkers::story;
    use super::super::super::sim::plan::Target;
    use super::super::plan::{Fault, Planned};
    use super::*;

    fn plan() -> Plan {
        let fault = Fault { kind: Kind::Kill, target: Target::Leader, other: Target::Node(2), worker: 1, measure: 0 };
        let planned = Planned { at: Duration::from_secs(1), until: Duration::from_secs(2), fault };
        Plan { seed: 1, nodes: 3, workers: 1, rate: 1, suffer: Duration::from_secs(5), faults: vec![planned] }
    }

    fn seen(evidence: Option<&str>) -> Seen {
        let tried = Tried {
            kind: Kind::Kill,
            whom: "node-1".into(),
            from_us: 1_500_000,
            until_us: 2_500_000,
            evidence: evidence.map(str::to_owned),
        };
        Seen { tried: vec![tried], states: vec!["ab at 7, broken: []".into(); 3], ..Seen::default() }
    }

    const GOOD: &str = "c submit 1
        c ok 1
        w attach s epoch=1
        w deliver 1 #5 attempt=1
        w begin 1 #5
        w end 1 #5 done
        w settled 1 #5 done accepted
        c last 1 COMPLETED #5 attempts=1 by=w#5";

    #[test]
    fn a_fault_without_evidence_or_load_makes_it_inconclusive() {
        let verdict = |seen: &Seen, text: &str| outcome(&plan(), seen, &story(text)).report.verdict;
        assert_eq!(verdict(&seen(Some("SIGKILL")), GOOD), Verdict::Pass);
        assert_eq!(verdict(&seen(None), GOOD), Verdict::Inconclusive);
        let mut idle = seen(Some("SIGKILL"));
        (idle.tried[0].from_us, idle.tried[0].until_us) = (60_000_000, 61_000_000);
        assert_eq!(verdict(&idle, GOOD), Verdict::Inconclusive);
    }

    #[test]
    fn what_is_wrong_fails_whatever_landed() {
        let verdict = |seen: &Seen, text: &str| outcome(&plan(), seen, &story(text)).report.verdict;
        assert_eq!(
            verdict(&seen(None), &GOOD.replace("c last 1 COMPLETED #5 attempts=1 by=w#5", "c last 1 NONE")),
            Verdict::Fail
        );
        let mut forked = seen(Some("SIGKILL"));
        forked.states[2] = "cd at 7, broken: []".into();
        assert_eq!(verdict(&forked, GOOD), Verdict::Fail);
        let mut few = seen(Some("SIGKILL"));
        few.states.pop();
        assert_eq!(verdict(&few, GOOD), Verdict::Fail);
        let mut broken = seen(Some("SIGKILL"));
        broken.broken.push("node 2 ended by itself".into());
        assert_eq!(verdict(&broken, GOOD), Verdict::Fail);
    }

    #[test]
    fn executions_that_overlap_are_counted() {
        let twice = "w begin 1 #5
            v begin 1 #6
            w end 1 #5 done";
        assert_eq!(overlaps(&story(twice)), 1);
        assert_eq!(overlaps(&story(&twice.replace("v begin", "t fault w killed\n v begin"))), 0);
    }
}
