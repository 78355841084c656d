//! How the cost of a package grows: `wharf bench` along one axis after the other, a plot for each.
//!
//! At each place there are two runs on fresh nodes: as fast as it goes, and at a steady rate that leaves the
//! machine idle for the most part. The figures are what `wharf bench` says.

mod axis;
mod plot;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};

use axis::{Axis, Place};

/// Measure how cycles a second and latency change with payload, queues, workers, waiting packages and nodes.
///
/// Writes one SVG for each axis and `curves.json` with every figure. Nothing else should run meanwhile. An axis that is
/// measured alone leaves the figures of the others as they are.
#[derive(Parser, Debug)]
struct Args {
    /// The wharf program, as `cargo build --profile dist` makes it.
    #[arg(long, value_name = "FILE")]
    wharf: PathBuf,
    /// What to vary.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "AXIS,...",
        default_value = "payload,queues,workers,waiting,nodes"
    )]
    axes: Vec<Axis>,
    /// How long each run publishes.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Runs at each place, of which the medians count.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Where the plots and figures go.
    #[arg(long, default_value = "benches/curves", value_name = "DIR")]
    out: PathBuf,
}

/// What one place on an axis gave: medians.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    pub at: u64,
    pub cycles_per_s: f64,
    pub cpu_us: f64,
    /// The steady rate of the latencies.
    pub rate: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// The part of `wharf bench --json` that is used.
#[derive(Deserialize)]
struct Bench {
    cycle_per_s: Option<f64>,
    e2e_ms: Option<Latency>,
    cpu_us_per_package: Cpu,
}

#[derive(Deserialize)]
struct Latency {
    p50: f64,
    p99: f64,
}

#[derive(Deserialize)]
struct Cpu {
    total: Option<f64>,
}

fn main() -> ExitCode {
    match curves(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("curves: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn curves(args: &Args) -> Result<()> {
    fs::create_dir_all(&args.out).with_context(|| format!("making {}", args.out.display()))?;
    let figures = args.out.join("curves.json");
    let mut all: BTreeMap<Axis, Vec<Point>> = match fs::read(&figures) {
        Ok(before) => serde_json::from_slice(&before).with_context(|| format!("reading {}", figures.display()))?,
        Err(_) => BTreeMap::new(),
    };
    for axis in &args.axes {
        let points = axis.places().iter().map(|place| measure(args, *axis, place)).collect::<Result<Vec<_>>>()?;
        plot::draw(&args.out.join(format!("{}.svg", axis.name())), *axis, &points)?;
        all.insert(*axis, points);
        fs::write(&figures, serde_json::to_string_pretty(&all)? + "\n")?;
    }
    Ok(())
}

fn measure(args: &Args, axis: Axis, place: &Place) -> Result<Point> {
    let (mut cycles, mut cpu, mut p50, mut p99) = (vec![], vec![], vec![], vec![]);
    for _ in 0..args.runs {
        let fast = bench(&args.wharf, place, None, args.seconds)?;
        cycles.extend(fast.cycle_per_s);
        cpu.extend(fast.cpu_us_per_package.total);
        let steady =
            bench(&args.wharf, place, Some(place.rate), args.seconds)?.e2e_ms.context("no latency was told")?;
        p50.push(steady.p50);
        p99.push(steady.p99);
    }
    let point = Point {
        at: place.at,
        cycles_per_s: median(cycles)?,
        cpu_us: median(cpu)?,
        rate: place.rate,
        p50_ms: median(p50)?,
        p99_ms: median(p99)?,
    };
    println!(
        "{} {}: {:.0} cycles/s, {:.1} µs a package; at {}/s p50 {:.2} ms, p99 {:.2} ms",
        axis.name(),
        axis.label(place.at),
        point.cycles_per_s,
        point.cpu_us,
        point.rate,
        point.p50_ms,
        point.p99_ms,
    );
    Ok(point)
}

fn bench(program: &Path, place: &Place, rate: Option<u64>, seconds: u64) -> Result<Bench> {
    let mut command = Command::new(program);
    command.args(["bench", "--json", "--duration", &format!("{seconds}s")]).args(&place.flags);
    command.args(rate.map(|rate| format!("--rate={rate}")));
    let said = format!("{command:?}");
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("running {said}"))?;
    ensure!(output.status.success(), "{said} failed: {}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{said} did not say JSON"))
}

fn median(mut figures: Vec<f64>) -> Result<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().context("a figure was not told")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one_counts() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]).unwrap(), 5.0);
        assert!(median(vec![]).is_err());
    }
}
