//! Many seeds, each in a process of its own, and the smallest part of a plan that still fails.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::plan::Plan;
use super::report::{Report, Verdict};

/// A run in another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub seed: u64,
    pub suffer: Duration,
    /// Only these faults of its plan; None: all.
    pub only: Option<Vec<usize>>,
    /// Members come and go.
    pub members: bool,
}

impl Seed {
    pub fn plan(&self) -> Plan {
        let draw = if self.members { Plan::with_changes } else { Plan::draw };
        let plan = draw(self.seed, self.suffer);
        match &self.only {
            Some(places) => plan.only(places),
            None => plan,
        }
    }

    /// The words that run it again, after the program's name.
    pub fn args(&self) -> Vec<String> {
        let mut args = vec!["sim".into(), "--seed".into(), self.seed.to_string()];
        args.extend(["--for".into(), format!("{}ms", self.suffer.as_millis())]);
        if let Some(places) = &self.only {
            let places: Vec<String> = places.iter().map(ToString::to_string).collect();
            args.extend(["--only".into(), places.join(",")]);
        }
        args.extend(self.members.then(|| "--members".into()));
        args
    }

    /// Runs it in a process of `program`; what it printed beside the report goes nowhere.
    pub fn run(&self, program: &Path) -> anyhow::Result<Report> {
        let output = Command::new(program).args(self.args()).arg("--json").stderr(Stdio::piped()).output()?;
        let report = output.stdout.split(|byte| *byte == b'\n').rev().find(|line| line.starts_with(b"{"));
        let Some(report) = report else {
            let why = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!("seed {} ended without a report ({}): {why}", self.seed, output.status);
        };
        Ok(serde_json::from_slice(report)?)
    }
}

/// Runs all of these, `jobs` at once; `told` hears each report as it comes.
pub fn run_all(program: &Path, seeds: &[Seed], jobs: usize, told: impl Fn(&Seed, anyhow::Result<Report>) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    told(seed, seed.run(program));
                }
            });
        }
    });
}

/// The smallest part of a failing run that was found to fail still: fewer faults, then a shorter time. Each step is
/// told before it is tried.
pub fn shrink(failing: &Seed, fails: impl Fn(&Seed) -> bool, told: impl Fn(&Seed)) -> Seed {
    let mut best = failing.clone();
    let mut kept: Vec<usize> = failing.only.clone().unwrap_or_else(|| (0..failing.plan().faults.len()).collect());
    let tries = |seed: Seed| {
        told(&seed);
        fails(&seed).then_some(seed)
    };
    // Halves, quarters, … down to single faults.
    let mut piece = kept.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < kept.len() {
            let mut fewer = kept.clone();
            fewer.drain(at..(at + piece).min(kept.len()));
            match tries(Seed { only: Some(fewer.clone()), ..best.clone() }) {
                Some(smaller) => (best, kept) = (smaller, fewer),
                None => at += piece,
            }
        }
        piece /= 2;
    }
    // The faults of a plan depend on its length, so a shorter run must still hold those that are left.
    let plan = best.plan();
    let needed = plan.faults.iter().map(|planned| planned.at).max().unwrap_or_default();
    for seconds in [5, 8, 12, 16] {
        let suffer = Duration::from_secs(seconds);
        if suffer > needed && suffer < best.suffer {
            let shorter = Seed { suffer, ..best.clone() };
            let same = shorter.plan().faults.iter().map(|planned| planned.at).eq(plan.faults.iter().map(|one| one.at));
            if let Some(shorter) = same.then(|| tries(shorter)).flatten() {
                return shorter;
            }
        }
    }
    best
}

/// That a report is no pass.
pub fn fails(report: &anyhow::Result<Report>) -> bool {
    report.as_ref().map_or(true, |report| report.verdict == Verdict::Fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_shrinks_to_what_makes_it_fail() {
        let seed = Seed { seed: 3, suffer: Duration::from_secs(20), only: None, members: false };
        let count = seed.plan().faults.len();
        assert!(count > 4, "{count}");
        let culprits = [1, count - 1];
        let fails =
            |seed: &Seed| culprits.iter().all(|culprit| seed.only.as_ref().is_none_or(|only| only.contains(culprit)));
        let small = shrink(&seed, fails, |_| {});
        assert_eq!(small.only.as_deref(), Some(&culprits[..]));
        let first = shrink(&seed, |seed| seed.only.as_ref().is_none_or(|only| only.contains(&0)), |_| {});
        assert_eq!(first.only.as_deref(), Some(&[0][..]));
        assert!(first.suffer < seed.suffer, "{:?}", first.suffer);
        assert_eq!(first.args().join(" "), format!("sim --seed 3 --for {}ms --only 0", first.suffer.as_millis()));
    }
}
