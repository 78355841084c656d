//! `wharf demo`: the main job in one command, with deaths on the way.
//!
//! Three node processes and worker processes on a real disk. While packages are submitted and
//! worked, a worker is killed, another one frozen past its lease and continued, the leader killed
//! and brought back. Then every package is looked up.
//!
//! Invariants: the verdict comes from what the worker processes wrote to their files and from
//! GetPackage of every id, never from the server's counters. A package counts as confirmed only
//! once its submit was answered.

mod feed;
mod ledger;
mod stale;
mod story;
mod verdict;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::story::{Crew, Plot};
use self::verdict::Report;
pub use self::worker::DemoWorker;
use super::args;
use super::exit::{Exit, Failure};
use super::local::{Cluster, Options};
use super::{cluster, output};
use crate::client::{Client, ClusterSettings, QueueSettings};

const QUEUE: &str = "demo";
/// Short, so that a frozen worker loses what it holds while one watches.
const LEASE: Duration = Duration::from_secs(2);
/// A killed worker's packages move on after this.
const SESSION_GRACE: Duration = Duration::from_secs(1);
/// How long the submits are spread over, so that all the deaths happen in the middle of work.
const SUBMIT_FOR: Duration = Duration::from_secs(14);
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long the rest of the work may take once all is submitted.
const FINISH_WITHIN: Duration = Duration::from_secs(60);
const HASHES_WITHIN: Duration = Duration::from_secs(10);

/// Do the main job: a cluster, workers and 20 000 packages, while a worker and the leader die.
#[derive(Args, Debug)]
#[command(after_help = "\
Exits 0 if every confirmed package was completed exactly once, 1 if not.

Examples:
  wharf demo
  wharf demo --packages 100000 --workers 8
  wharf demo --json | jq .longest_confirm_gap_ms")]
pub struct Demo {
    /// How many packages.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    packages: u64,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// How many workers at a time.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=64))]
    workers: u32,
    /// Keep logs and the workers' files here.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub async fn run(self) -> anyhow::Result<Exit> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let options = Options { nodes: self.nodes, dir: self.dir.clone(), ..Options::default() };
        let mut cluster = Cluster::start(options).await?;
        let played = tokio::select! {
            played = self.play(&mut cluster) => played,
            _ = interrupt.recv() => Err(Failure::new(Exit::Failed, "interrupted").into()),
            _ = terminate.recv() => Err(Failure::new(Exit::Failed, "interrupted").into()),
        };
        // A node that ended by itself is the cause of whatever failed.
        let played = played.map_err(|error| match cluster.check_alive() {
            Ok(()) => error,
            Err(dead) => dead.context(error),
        });
        let outcome = played.and_then(|report| self.conclude(&report));
        if outcome.is_err() {
            cluster.keep();
            output::note(format_args!("logs and files are in {}", cluster.dir().display()));
        }
        // Its data goes with it: nothing is worth draining for.
        cluster.shutdown(std::future::ready(())).await;
        outcome
    }

    async fn play(&self, cluster: &mut Cluster) -> anyhow::Result<Report> {
        let started = Instant::now();
        let say = output::Narrator::new(self.packages, "packages confirmed");
        say.tell(format_args!("{} nodes start in {}", self.nodes, cluster.dir().display()));
        cluster.ready(READY_WITHIN).await?;
        let leader = cluster.leader(READY_WITHIN).await?;
        say.tell(format_args!("node {leader} leads"));

        let client = cluster.client()?.with_timeout(Duration::from_secs(20));
        prepare(&client, self.packages).await.context("cannot prepare the demo's queue")?;
        let mut crew = Crew::hire(cluster, self.workers)?;
        say.tell(format_args!("{} workers start; {} packages follow", self.workers, self.packages));

        let (feed, progress) = feed::Feed::start(client.clone(), self.packages, SUBMIT_FOR, say.bar());
        let mut plot = Plot { cluster, crew: &mut crew, progress, packages: self.packages, say: &say };
        let ((), fed) = tokio::try_join!(plot.play(), feed.end())?;

        if let Some(end) = fed.longest_gap_end {
            let (at, gap) = ((end - fed.longest_gap).duration_since(started), fed.longest_gap.as_millis());
            say.tell(format_args!("the longest pause in confirming began at {:.1}s: {gap} ms", at.as_secs_f64()));
        }
        say.tell(format_args!("all is submitted; the queue is sealed and worked to its end"));
        client.seal_queue(QUEUE, None).await?;
        client.wait_queue(QUEUE, FINISH_WITHIN).await.context("the work did not end")?;
        crew.go_home(FINISH_WITHIN).await?;

        say.phase(self.packages, "packages looked up");
        let stored = verdict::look_up(&client, &fed, say.bar()).await?;
        let nodes = cluster::compare(&client, HASHES_WITHIN).await?;
        let agreed = cluster::verdict(&nodes);
        if let Err(why) = &agreed {
            say.tell(format_args!("{why}"));
        }
        say.end();
        let ledger = crew.ledger()?;
        Ok(verdict::judge(&fed, &stored, &ledger, agreed.is_ok(), started.elapsed()))
    }

    fn conclude(&self, report: &Report) -> anyhow::Result<Exit> {
        if self.json {
            output::object(report)?;
        } else {
            output::pairs(&report.rows())?;
        }
        match report.problem() {
            None => Ok(Exit::Ok),
            Some(problem) => Err(Failure::new(Exit::Failed, problem).into()),
        }
    }
}

/// A queue whose leases and finished packages fit a demo of this size.
async fn prepare(client: &Client, packages: u64) -> anyhow::Result<()> {
    let grace = ClusterSettings { session_grace: Some(args::proto_duration(SESSION_GRACE)), ..Default::default() };
    client.set_cluster(grace).await?;
    let settings = QueueSettings {
        lease: Some(args::proto_duration(LEASE)),
        // Every package is looked up at the end.
        keep_finished_count: Some(packages.saturating_mul(2)),
        keep_finished_bytes: Some(packages.saturating_mul(4096).max(64 << 20)),
        ..Default::default()
    };
    client.create_queue(QUEUE, settings).await?;
    Ok(())
}
