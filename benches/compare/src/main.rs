//! Runs one workload on Wharf, NATS JetStream and RabbitMQ, in turns, and prints one table of ratios.
//!
//! `setup` makes the tree that the peers run in. The workload is that of `wharf bench`: producers with a
//! window, every package confirmed, delivered and acked. Each run has fresh servers, and a system's run is
//! compared with the run of wharf next to it, for machines are busy now and then.

mod drive;
mod figures;
mod interrupt;
mod meter;
mod mode;
mod peer;
mod proc;
mod report;
mod servers;
mod system;
mod tree;
mod versions;
mod wharf;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use interrupt::Interrupt;
use mode::{Mode, Size};
use report::{Report, Round};
use servers::Ports;
use system::{Place, System};
use tree::Tree;
use wharf::Wharf;

/// Compare Wharf with NATS JetStream and RabbitMQ on this machine.
///
/// Every mode runs on each system in turns (A B C A B C ...), on fresh servers of three nodes each, all on this
/// machine. The table has the medians, and how many times better wharf was than each peer: the median of
/// the ratios of neighbouring runs.
#[derive(Parser, Debug)]
#[command(after_help = "\
All nodes and the client share this machine's processors: only ratios count, and only if nothing else runs.

Examples:
  benches/compare/setup /var/tmp/peers
  cargo build --profile dist
  alias compare='cargo run --release --manifest-path benches/compare/Cargo.toml --'
  compare --tree /var/tmp/peers --wharf target/dist/wharf --json compare.json
  compare --tree /var/tmp/peers --wharf target/dist/wharf --modes cycle --runs 1 --count 20000   a quick look
  compare --tree /var/tmp/peers --modes drain                                                    the peers alone")]
struct Args {
    /// The tree that `benches/compare/setup` made.
    #[arg(long, value_name = "DIR")]
    tree: PathBuf,
    /// The wharf program; without it the peers run alone.
    #[arg(long, value_name = "FILE")]
    wharf: Option<PathBuf>,
    /// How often each system runs in each mode.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// What to measure.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "MODE,...",
        default_value = "cycle,cycle4,publish,drain,rate1000,rate10000,single,kill"
    )]
    modes: Vec<Mode>,
    /// Whom to compare with.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEER,...", default_value = "nats,rabbitmq")]
    peers: Vec<PeerName>,
    /// Add NATS with an fsync for each write, which is what Wharf promises.
    #[arg(long)]
    nats_sync: bool,
    /// Packages of a run, in place of 200 000 (drain: 300 000).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    count: Option<u64>,
    /// How long the modes with a rate send, in place of 14 s.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(mode::KILL_AFTER_SECONDS + 1..=3_600))]
    seconds: Option<u64>,
    /// The peers listen on loopback, at the 20 ports behind this one.
    #[arg(long, default_value_t = 24_000, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65_000))]
    base_port: u16,
    /// Write versions, rows and every single run there.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PeerName {
    Nats,
    Rabbitmq,
}

impl Args {
    fn systems(&self) -> Result<Vec<System>> {
        let mut systems = Vec::new();
        if self.peers.contains(&PeerName::Nats) {
            systems.push(System::Nats);
        }
        if self.nats_sync {
            systems.push(System::NatsSync);
        }
        if self.peers.contains(&PeerName::Rabbitmq) {
            systems.push(System::Rabbit);
        }
        if let Some(program) = &self.wharf {
            systems.push(System::Wharf(Wharf::open(program)?));
        }
        Ok(systems)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match compare(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(args: Args) -> Result<()> {
    let tree = Tree::open(&args.tree)?;
    let systems = args.systems()?;
    let wharf = systems.iter().find_map(|system| match system {
        System::Wharf(wharf) => Some(wharf),
        _ => None,
    });
    let versions = versions::all(&tree, wharf).await?;
    let names = systems.iter().map(System::name).collect();
    let mut report = Report { versions, systems: names, rounds: Vec::new() };
    let mut interrupt = Interrupt::listen().context("listening for signals")?;
    let place = Place { tree: &tree, ports: Ports::new(args.base_port), interrupt: &mut interrupt };
    let ended = measure(&args, place, &systems, &mut report).await;
    // An end before the last round takes nothing back of those before it.
    if !report.rounds.is_empty() {
        println!("{}", report.table());
    }
    ended
}

async fn measure(args: &Args, mut place: Place<'_>, systems: &[System], report: &mut Report) -> Result<()> {
    let size = Size { count: args.count, seconds: args.seconds };
    for mode in &args.modes {
        let workload = mode.workload(size);
        for run in 1..=args.runs {
            let mut figures = Vec::new();
            for system in systems {
                eprint!("{} {run}/{} {}: ", mode.name(), args.runs, system.name());
                let of_this = system.measure(*mode, workload, &mut place).await;
                let of_this = of_this.inspect_err(|_| eprintln!("failed"))?;
                let metric = mode.metrics()[0];
                eprintln!("{:.1} {}", metric.of(&of_this).unwrap_or_default(), metric.name());
                figures.push(of_this);
            }
            report.rounds.push(Round { mode: *mode, figures });
            write_json(args, report)?;
        }
    }
    Ok(())
}

/// After each round: hours of measuring are not lost to the last minute.
fn write_json(args: &Args, report: &Report) -> Result<()> {
    let Some(path) = &args.json else { return Ok(()) };
    let text = serde_json::to_string_pretty(&report.json())?;
    fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_modes_run_unless_some_are_named() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
        let args = Args::parse_from(["compare", "--tree", "t"]);
        assert_eq!(args.modes, Mode::value_variants());
        let args =
            Args::parse_from(["compare", "--tree", "t", "--modes", "drain,kill", "--nats-sync", "--peers", "nats"]);
        assert_eq!(args.modes, [Mode::Drain, Mode::Kill]);
        let names: Vec<_> = args.systems().unwrap().iter().map(System::name).collect();
        assert_eq!(names, ["nats", "nats sync"]);
    }
}
