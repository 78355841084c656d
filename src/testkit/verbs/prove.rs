//! `wharf prove`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::super::chaos::judge::Outcome;
use super::super::chaos::plan::Kind;
use super::super::sim::report::Verdict;
use super::super::sim::seeds::{self, Seed};
use super::duration;
use crate::cli::exit::Exit;

/// Try to break this very program for hours, and keep what was seen
///
/// Fresh seeds of the simulation, with and without members that come and go; power cuts of all nodes under load; damage
/// to the files of one node; and every kind of fault together, on three and on five nodes. What is done is written down at
/// once, by the program's own hash: a run that was stopped goes on where it was.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  sudo wharf prove                                about half an hour
  sudo wharf prove --seeds 10000 --chaos 60       a night
  wharf prove --cuts 0 --damages 0 --chaos 0      the simulation alone, without root

Exit codes: 0 all of it passed, 1 something failed, 3 something was inconclusive.")]
pub struct Prove {
    /// Seeds of the simulation
    #[arg(long, default_value_t = 500, value_name = "COUNT")]
    seeds: u64,
    /// Seeds with members that come and go
    #[arg(long, default_value_t = 100, value_name = "COUNT")]
    members: u64,
    /// Power cuts of all nodes under load
    #[arg(long, default_value_t = 50, value_name = "COUNT")]
    cuts: u64,
    /// Times that a node's files are changed
    #[arg(long, default_value_t = 200, value_name = "COUNT")]
    damages: u64,
    /// Runs with every kind of fault, on three and on five nodes in turn
    #[arg(long, default_value_t = 4, value_name = "COUNT")]
    chaos: u64,
    /// How long faults come in each of these
    #[arg(long = "for", value_name = "DURATION", default_value = "120s", value_parser = duration)]
    suffer: Duration,
    /// Where the evidence is kept
    #[arg(long, default_value = "wharf-proof")]
    dir: PathBuf,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Seeds,
    Members,
    Cuts,
    Damages,
    Chaos,
}

/// One line of evidence.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Proof {
    part: Part,
    /// How much of the part it is: cuts and damages come several in a run.
    count: u64,
    verdict: Verdict,
    /// Runs it again.
    command: String,
    operations: u64,
    violations: Vec<String>,
}

/// A run for cuts or damages lasts so long.
const PIECE: &str = "60s";
/// Runs that make no headway, after which a part is given up.
const FRUITLESS: u32 = 3;

impl Prove {
    pub fn run(self) -> anyhow::Result<Exit> {
        let program = std::env::current_exe()?;
        let hash = blake3::hash(&fs::read(&program)?).to_string();
        let dir = self.dir.join(&hash[..16]);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let evidence = Evidence::open(&dir.join("evidence.jsonl"))?;
        eprintln!("what is seen of this program goes to {}", evidence.path.display());
        self.simulate(&program, &evidence, Part::Seeds, self.seeds)?;
        self.simulate(&program, &evidence, Part::Members, self.members)?;
        self.suffer(&program, &dir, &evidence, Part::Cuts, self.cuts)?;
        self.suffer(&program, &dir, &evidence, Part::Damages, self.damages)?;
        self.suffer(&program, &dir, &evidence, Part::Chaos, self.chaos)?;
        let wanted = [
            (Part::Seeds, self.seeds),
            (Part::Members, self.members),
            (Part::Cuts, self.cuts),
            (Part::Damages, self.damages),
            (Part::Chaos, self.chaos),
        ];
        Ok(evidence.tell(&wanted))
    }

    fn simulate(&self, program: &Path, evidence: &Evidence, part: Part, wanted: u64) -> anyhow::Result<()> {
        let left = wanted.saturating_sub(evidence.done(part));
        let bar = bar(part, wanted, wanted - left)?;
        let from = crate::env::Env::real().random.next() >> 16;
        let seed = |seed| Seed { seed, suffer: Duration::from_secs(20), only: None, members: part == Part::Members };
        let all: Vec<Seed> = (from..from + left).map(seed).collect();
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        seeds::run_all(program, &all, jobs, |seed, report| {
            let (verdict, operations, violations) = match report {
                Ok(report) => (report.verdict, report.operations, report.violations),
                Err(error) => (Verdict::Fail, 0, vec![format!("{error:#}")]),
            };
            let command = format!("wharf {}", seed.args().join(" "));
            evidence.add(Proof { part, count: 1, verdict, command, operations, violations });
            bar.inc(1);
        });
        bar.finish_and_clear();
        Ok(())
    }

    /// Runs `wharf chaos` until there is enough of the part.
    fn suffer(&self, program: &Path, dir: &Path, evidence: &Evidence, part: Part, wanted: u64) -> anyhow::Result<()> {
        let bar = bar(part, wanted, evidence.done(part))?;
        let mut fruitless = 0;
        while evidence.done(part) < wanted && fruitless < FRUITLESS {
            let seed = crate::env::Env::real().random.next() >> 32;
            let folder = dir.join(format!("chaos-{seed}"));
            let (mut words, counted): (Vec<String>, Option<Kind>) = match part {
                Part::Cuts => (words("--only power_loss --for", PIECE), Some(Kind::PowerLoss)),
                Part::Damages => (words("--only damage --for", PIECE), Some(Kind::Damage)),
                _ => {
                    let nodes = if evidence.done(part).is_multiple_of(2) { 3 } else { 5 };
                    (words(&format!("--nodes {nodes} --for"), &format!("{}s", self.suffer.as_secs())), None)
                }
            };
            words.extend(["--seed".into(), seed.to_string()]);
            let mut command = Command::new(program);
            command.arg("chaos").args(&words).arg("--json").arg("--dir").arg(&folder).stderr(Stdio::piped());
            let output = command.output()?;
            let told = format!("wharf chaos {}", words.join(" "));
            let proof = match serde_json::from_slice::<Outcome>(&output.stdout) {
                Ok(outcome) => {
                    let landed = |kind| outcome.coverage.get(&kind).map_or(0, |coverage| coverage.landed);
                    let report = outcome.report;
                    let (verdict, lacks) = (report.verdict, !outcome.not_covered.is_empty());
                    Proof {
                        part,
                        count: counted.map_or(1, landed),
                        // What could not be done is not proven.
                        verdict: if verdict == Verdict::Pass && lacks { Verdict::Inconclusive } else { verdict },
                        command: told,
                        operations: report.operations,
                        violations: report.violations,
                    }
                }
                Err(_) => Proof {
                    part,
                    count: 0,
                    verdict: Verdict::Fail,
                    command: told,
                    operations: 0,
                    violations: vec![String::from_utf8_lossy(&output.stderr).into_owned()],
                },
            };
            fruitless = if proof.count == 0 { fruitless + 1 } else { 0 };
            // What did not pass is kept, to be looked at.
            if proof.verdict == Verdict::Pass && folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
            evidence.add(proof);
            bar.set_position(evidence.done(part).min(wanted));
        }
        bar.finish_and_clear();
        Ok(())
    }
}

fn words(words: &str, last: &str) -> Vec<String> {
    words.split(' ').chain([last]).map(str::to_owned).collect()
}

fn bar(part: Part, wanted: u64, done: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg:8} {bar:30} {pos}/{len} {elapsed}, {eta} left")?;
    let bar = ProgressBar::new(wanted).with_style(style).with_message(format!("{part:?}").to_lowercase());
    bar.set_position(done);
    bar.enable_steady_tick(Duration::from_secs(1));
    Ok(bar)
}

/// All that was seen of one program, on disk.
struct Evidence {
    path: PathBuf,
    proofs: Mutex<(File, Vec<Proof>)>,
}

impl Evidence {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let mut proofs = Vec::new();
        if path.exists() {
            for line in BufReader::new(File::open(path)?).lines() {
                // The last line of a run that was stopped may break off.
                proofs.extend(serde_json::from_str(&line?).ok());
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { path: path.to_owned(), proofs: Mutex::new((file, proofs)) })
    }

    fn add(&self, proof: Proof) {
        let mut proofs = self.proofs.lock();
        let mut line = serde_json::to_vec(&proof).expect("a proof has plain fields");
        // A line that broke off ends here.
        line.insert(0, b'\n');
        line.push(b'\n');
        proofs.0.write_all(&line).expect("the evidence can be written");
        proofs.1.push(proof);
    }

    fn done(&self, part: Part) -> u64 {
        self.proofs.lock().1.iter().filter(|proof| proof.part == part).map(|proof| proof.count).sum()
    }

    /// Prints what it all comes to.
    fn tell(&self, wanted: &[(Part, u64)]) -> Exit {
        let proofs = &self.proofs.lock().1;
        let mut sums: BTreeMap<Part, [u64; 4]> = BTreeMap::new();
        for proof in proofs {
            let [count, operations, failed, open] = sums.entry(proof.part).or_default();
            *count += proof.count;
            *operations += proof.operations;
            *failed += u64::from(proof.verdict == Verdict::Fail);
            *open += u64::from(proof.verdict == Verdict::Inconclusive);
        }
        println!("part        wanted    done  operations  failed  inconclusive");
        let (mut any_failed, mut any_open) = (false, false);
        for (part, wanted) in wanted {
            let [count, operations, failed, open] = sums.get(part).copied().unwrap_or_default();
            any_failed |= failed > 0;
            any_open |= open > 0 || count < *wanted;
            let name = format!("{part:?}").to_lowercase();
            println!("{name:<10}  {wanted:>6}  {count:>6}  {operations:>10}  {failed:>6}  {open:>12}");
        }
        for proof in proofs.iter().filter(|proof| proof.verdict != Verdict::Pass) {
            println!("{:?}: again: {}", proof.verdict, proof.command);
            for violation in proof.violations.iter().take(3) {
                println!("  {violation}");
            }
        }
        match (any_failed, any_open) {
            (true, _) => Exit::Failed,
            (false, true) => Exit::NotReady,
            (false, false) => Exit::Ok,
        }
    }
}
