//! `wharf chaos`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::super::chaos::ground::{self, Ground};
use super::super::chaos::judge::{self, Outcome};
use super::super::chaos::plan::{Kind, Plan};
use super::super::chaos::run::{self, Progress};
use super::super::sim::report::Verdict;
use super::duration;
use crate::cli::exit::Exit;

/// Let a cluster of real processes suffer, by seed
///
/// Three or five nodes, with producers and workers, run on hosts made of namespaces on this machine. Faults come as the
/// seed says: processes killed and frozen, networks cut, disks full and broken, clocks wrong, members that come and go.
/// Then all is healed, and everything must come to its end. What was seen stays as a folder.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  sudo wharf chaos                       60 seconds, three nodes, every kind of fault
  sudo wharf chaos --nodes 5 --for 2m --seed 7
  wharf chaos --only kill,freeze         these kinds alone
  wharf chaos check wharf-chaos-7        judges a run again, from its folder

Without root, user namespaces are tried, then loopback alone; the report names what was not covered.
Exit codes: 0 pass, 1 fail, 3 inconclusive: nothing is wrong, but a planned fault never landed."
)]
pub struct Chaos {
    #[command(subcommand)]
    check: Option<Verb>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Judge a run again, from what it left
    Check {
        /// The folder of the run
        dir: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
struct Run {
    /// What decides all that happens [default: a fresh one]
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=7))]
    nodes: u64,
    /// How long faults come
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = duration)]
    suffer: Duration,
    /// Packages a second
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Only these kinds of faults
    #[arg(long, value_delimiter = ',', value_name = "KIND,KIND…")]
    only: Vec<Kind>,
    /// Where the run's folder is made [default: wharf-chaos-SEED]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Try nothing that needs more than a user has
    #[arg(long)]
    loopback: bool,
    /// Print what would happen, and do nothing
    #[arg(long)]
    plan: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Violations that are shown.
const SHOWN: usize = 10;

impl Chaos {
    pub fn run(self) -> anyhow::Result<Exit> {
        let (outcome, json) = match self.check {
            Some(Verb::Check { dir, json }) => (judge::judge(&dir)?, json),
            None => match self.run.run()? {
                Some(ran) => ran,
                None => return Ok(Exit::Ok),
            },
        };
        if json {
            println!("{}", serde_json::to_string(&outcome)?);
        } else {
            tell(&outcome);
        }
        Ok(match outcome.report.verdict {
            Verdict::Pass => Exit::Ok,
            Verdict::Fail => Exit::Failed,
            Verdict::Inconclusive => Exit::NotReady,
        })
    }
}

impl Run {
    /// None: nothing was to be done.
    fn run(self) -> anyhow::Result<Option<(Outcome, bool)>> {
        let seed = self.seed.unwrap_or_else(|| crate::env::Env::real().random.next() >> 32);
        let kinds = if self.only.is_empty() { Kind::ALL.to_vec() } else { self.only.clone() };
        if self.plan {
            tell_plan(&Plan::draw(seed, self.nodes, self.rate, self.suffer, &kinds));
            return Ok(None);
        }
        if !self.loopback {
            ground::enter()?;
        }
        let dir = self.dir.clone().unwrap_or_else(|| format!("wharf-chaos-{seed}").into());
        let empty = std::fs::read_dir(&dir).map_or(true, |mut entries| entries.next().is_none());
        anyhow::ensure!(empty, "{} is not empty: name another folder with --dir", dir.display());
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        // One more, that comes and goes.
        let nodes: Vec<u64> = (1..=self.nodes + 1).collect();
        let ground = Ground::lay(&dir, &nodes, self.loopback)?;
        let covered: Vec<Kind> = kinds.into_iter().filter(|kind| !ground.lacking().contains_key(kind)).collect();
        let plan = Plan::draw(seed, self.nodes, self.rate, self.suffer, &covered);
        let (count, suffer) = (plan.faults.len(), self.suffer);
        eprintln!("seed {seed}: {count} faults in {suffer:?}; all that is seen goes to {}", dir.display());
        let bar = Bar::new(suffer)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let outcome = runtime.block_on(run::run(&plan, ground, &dir, &bar))?;
        bar.0.finish_and_clear();
        Ok(Some((outcome, self.json)))
    }
}

struct Bar(ProgressBar);

impl Bar {
    fn new(suffer: Duration) -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{bar:30} {elapsed} {wide_msg}")?;
        Ok(Self(ProgressBar::new(suffer.as_millis() as u64).with_style(style)))
    }
}

impl Progress for Bar {
    fn suffering(&self, elapsed: Duration, confirmed: u64, there: &str) {
        self.0.set_position(elapsed.as_millis() as u64);
        self.0.set_message(format!("{confirmed} confirmed; {there}"));
    }

    fn healing(&self, what: &str) {
        self.0.set_message(what.to_owned());
        self.0.tick();
    }
}

fn tell_plan(plan: &Plan) {
    println!("seed {}: {} nodes, {} workers, {} packages a second", plan.seed, plan.nodes, plan.workers, plan.rate);
    for planned in &plan.faults {
        let fault = &planned.fault;
        println!(
            "  {:>7.3}s to {:>7.3}s  {:<15} {:?}, {:?}, worker {}, {}",
            planned.at.as_secs_f64(),
            planned.until.as_secs_f64(),
            fault.kind.name(),
            fault.target,
            fault.other,
            fault.worker,
            fault.measure
        );
    }
}

fn tell(outcome: &Outcome) {
    let report = &outcome.report;
    println!(
        "seed {}: {}; {} operations, {} confirmed in {:.0} s; data on {}",
        report.seed,
        match report.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "FAIL",
            Verdict::Inconclusive => "inconclusive",
        },
        report.operations,
        report.confirmed,
        report.seconds,
        outcome.disk
    );
    println!(
        "  lost {}, invented {}, completed twice {}, stale accepted {}; executions that overlap {}",
        report.lost, report.invented, report.completed_twice, report.stale_accepted, outcome.overlapping_executions
    );
    println!("  fault            planned  landed  in flight  longest gap");
    for (kind, coverage) in &outcome.coverage {
        let gap = report.longest_gap_ms.get(&kind.name()).map_or("-".into(), |gap| format!("{gap} ms"));
        let name = kind.name();
        let missed = if coverage.landed == 0 { "  NEVER LANDED" } else { "" };
        println!(
            "  {name:<15}  {:>7}  {:>6}  {:>9}  {gap:>11}{missed}",
            coverage.planned, coverage.landed, coverage.in_flight
        );
    }
    let mut not_covered: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (kind, why) in &outcome.not_covered {
        not_covered.entry(why).or_default().push(kind.name());
    }
    for (why, kinds) in not_covered {
        println!("  NOT COVERED: {}: {why}", kinds.join(", "));
    }
    let redeliveries: Vec<String> = outcome.redeliveries.iter().map(|(why, times)| format!("{why} {times}")).collect();
    println!("  delivered again because: {}", redeliveries.join(", "));
    for violation in report.violations.iter().take(SHOWN) {
        println!("  {violation}");
    }
    if report.violations.len() > SHOWN {
        println!("  … and {} more", report.violations.len() - SHOWN);
    }
}
