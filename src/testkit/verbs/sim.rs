//! `wharf sim`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::super::sim::report::{Report, Verdict};
use super::super::sim::run;
use super::super::sim::seeds::{self, Seed};
use super::duration;
use crate::cli::exit::Exit;

/// Run whole clusters in a simulated world, by seed
///
/// Three or five nodes with producers and workers form a cluster on simulated networks, disks and clocks. Faults come
/// as the seed says; then all is healed, and everything must come to its end. The same seed and program give the same
/// bytes (`digest`).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf sim --seed 7                    one run, here
  wharf sim --seeds 200 --from 1000     seeds 1000 to 1199, one a processor at a time
  wharf sim --seed 7 --shrink           the fewest faults with which seed 7 still fails
  wharf sim --seed 7 --plan             what would happen, without doing it

Exit codes: 0 all pass, 1 at least one failed. WHARF_LOG=info shows what the nodes say.")]
pub struct Sim {
    /// The one run to do
    #[arg(long, default_value_t = 1, conflicts_with_all = ["seeds", "from"])]
    seed: u64,
    /// Do so many runs, each in a process of its own
    #[arg(long, value_name = "COUNT")]
    seeds: Option<u64>,
    /// The first of them; without it each call has fresh ones
    #[arg(long, value_name = "SEED")]
    from: Option<u64>,
    /// Runs at once [default: one a processor]
    #[arg(long, value_name = "COUNT")]
    jobs: Option<usize>,
    /// How long faults come, in simulated time
    #[arg(long = "for", value_name = "DURATION", default_value = "20s", value_parser = duration)]
    suffer: Duration,
    /// Only these faults of the plan, by their numbers
    #[arg(long, value_delimiter = ',', value_name = "N,N…")]
    only: Option<Vec<usize>>,
    /// Members come and go: three nodes form a cluster, two join, two leave
    #[arg(long)]
    members: bool,
    /// Look for the fewest faults with which it still fails
    #[arg(long, requires = "seed", conflicts_with_all = ["seeds", "from"])]
    shrink: bool,
    /// Print what would happen, and do nothing
    #[arg(long)]
    plan: bool,
    /// Print one JSON object a run
    #[arg(long)]
    json: bool,
}

impl Sim {
    pub fn run(self) -> anyhow::Result<Exit> {
        let one = Seed { seed: self.seed, suffer: self.suffer, only: self.only.clone(), members: self.members };
        let program = std::env::current_exe()?;
        if self.plan {
            tell_plan(&one);
            return Ok(Exit::Ok);
        }
        if self.shrink {
            return Ok(shrink(&program, &one));
        }
        if let Some(count) = self.seeds {
            return self.run_many(&program, &one, count);
        }
        let _log = log();
        let report = run::run(&one.plan())?;
        self.tell(&one, &report)?;
        Ok(exit(&report))
    }

    fn run_many(&self, program: &Path, one: &Seed, count: u64) -> anyhow::Result<Exit> {
        let from = self.from.unwrap_or_else(|| crate::env::Env::real().random.next() >> 16);
        let seeds: Vec<Seed> = (from..from + count).map(|seed| Seed { seed, ..one.clone() }).collect();
        let jobs = self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let bar = ProgressBar::new(count)
            .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} seeds, {msg} {eta} left")?);
        let sums = Mutex::new(Sums::default());
        seeds::run_all(program, &seeds, jobs, |seed, report| {
            let mut sums = sums.lock();
            if seeds::fails(&report) {
                sums.failed += 1;
            }
            match report {
                Ok(report) => {
                    if self.json || report.verdict != Verdict::Pass {
                        bar.suspend(|| self.tell(seed, &report)).ok();
                    }
                    sums.add(&report);
                }
                Err(error) => bar.suspend(|| eprintln!("{error:#}")),
            }
            bar.set_message(format!("{} failed,", sums.failed));
            bar.inc(1);
        });
        bar.finish_and_clear();
        let sums = sums.into_inner();
        if !self.json {
            println!("seeds {from} to {}: {} failed; {sums}", from + count - 1, sums.failed);
        }
        Ok(if sums.failed == 0 { Exit::Ok } else { Exit::Failed })
    }

    fn tell(&self, seed: &Seed, report: &Report) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(report)?);
            return Ok(());
        }
        let faults: Vec<String> = report.faults.iter().map(|(name, times)| format!("{name} {times}")).collect();
        println!(
            "seed {}: {}; {} operations, {} confirmed in {:.1} simulated seconds; digest {}",
            report.seed,
            match report.verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "FAIL",
                Verdict::Inconclusive => "inconclusive",
            },
            report.operations,
            report.confirmed,
            report.seconds,
            report.digest
        );
        println!("  faults: {}", faults.join(", "));
        for violation in report.violations.iter().take(SHOWN) {
            println!("  {violation}");
        }
        if report.violations.len() > SHOWN {
            println!("  … and {} more", report.violations.len() - SHOWN);
        }
        if report.verdict == Verdict::Fail {
            println!("  again: wharf {}", seed.args().join(" "));
        }
        Ok(())
    }
}

/// Violations of one run that are shown.
const SHOWN: usize = 10;

/// What many runs come to.
#[derive(Default)]
struct Sums {
    failed: u64,
    operations: u64,
    seconds: f64,
    faults: BTreeMap<String, u64>,
}

impl Sums {
    fn add(&mut self, report: &Report) {
        self.operations += report.operations;
        self.seconds += report.seconds;
        for (name, times) in &report.faults {
            *self.faults.entry(name.clone()).or_default() += times;
        }
    }
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(|(name, times)| format!("{name} {times}")).collect();
        write!(
            f,
            "{} operations in {:.0} simulated seconds; faults: {}",
            self.operations,
            self.seconds,
            faults.join(", ")
        )
    }
}

fn exit(report: &Report) -> Exit {
    if report.verdict == Verdict::Fail { Exit::Failed } else { Exit::Ok }
}

fn tell_plan(seed: &Seed) {
    let plan = seed.plan();
    println!(
        "seed {}: {} nodes, {} workers, clocks wrong by {:?} ms",
        plan.seed, plan.nodes, plan.workers, plan.skews_ms
    );
    if !plan.changes.is_empty() {
        println!("  {} of the nodes form the cluster; then {:?}", plan.founders, plan.changes);
    }
    for (place, planned) in plan.faults.iter().enumerate() {
        println!(
            "  {place:>2}  {:>6.3}s to {:>6.3}s  {:?}",
            planned.at.as_secs_f64(),
            planned.until.as_secs_f64(),
            planned.fault
        );
    }
}

fn shrink(program: &Path, seed: &Seed) -> Exit {
    if !seeds::fails(&seed.run(program)) {
        println!("seed {} does not fail", seed.seed);
        return Exit::Ok;
    }
    let fails = |seed: &Seed| seeds::fails(&seed.run(program));
    let told = |seed: &Seed| eprintln!("  trying {}", seed.args()[3..].join(" "));
    let small = seeds::shrink(seed, fails, told);
    println!("still fails: wharf {}", small.args().join(" "));
    tell_plan(&small);
    Exit::Failed
}

/// What nodes say goes to standard error, if `WHARF_LOG` names a level.
fn log() -> Option<()> {
    let level = std::env::var("WHARF_LOG").ok()?;
    let format = tracing_subscriber::fmt().with_writer(std::io::stderr).without_time();
    format.with_env_filter(level).try_init().ok()
}
