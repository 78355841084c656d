//! `wharf bench`: measures a cluster under a fixed workload.
//!
//! Producers submit over pipelined streams and consumers complete each package, all in this process,
//! over the SDK as any program would. Latency counts from when a package was due, so a cluster that
//! stalls cannot hide it by holding the producers back.
//!
//! Invariants: nothing is measured by asking the servers: confirms, deliveries and completions are counted as they
//! arrive here. A run in which a confirmed package went missing fails.

mod pacer;
mod plan;
mod report;
mod stage;
mod tally;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use self::plan::{Mode, Plan};
use self::report::{Kill, Latency, Report, mb, ms, per_s};
use self::stage::Stage;
use self::tally::{Tally, longest_gap_us};
use self::workload::{Crew, Scene, all};
use super::args::{self, Target};
use super::exit::{Exit, Failure};
use super::local::{Cluster, Options};
use super::output;
use crate::client::{Client, QueueSettings};
use crate::types::limits;

const READY_WITHIN: Duration = Duration::from_secs(30);
/// New nodes still prepare their files for a moment.
const SETTLE: Duration = Duration::from_secs(1);
/// A run without any progress for so long is over.
const STALL: Duration = Duration::from_secs(60);
/// Without progress for so long the reason is told.
const STALL_TOLD: Duration = Duration::from_secs(5);
/// How often the bar is drawn, and progress looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What a queue takes unless its settings say otherwise.
const DEFAULT_MAX_PAYLOAD: u64 = 1 << 20;
const DEFAULT_COUNT: u64 = 200_000;
/// More than any cluster does: what a run that ends by the clock has cells for, a second.
const MOST_A_SECOND: f64 = 1e6;
/// What the queue is called in which packages wait all the time.
const WAITING: &str = "waiting";
/// The most packages that one run holds in mind.
const MAX_COUNT: u64 = 100_000_000;
const MAX_QUEUES: u64 = 1_000;
const MAX_CONSUMERS: u64 = 1_000;
/// A run in which the leader is lost, unless told otherwise: its rate and length, and when at the latest.
const KILL_RATE: u64 = 1_000;
const KILL_FOR: Duration = Duration::from_secs(14);
const KILL_AT: Duration = Duration::from_secs(4);

/// Measure a cluster: throughput, latency, processor time, memory and disk a package.
///
/// Starts three nodes of its own on this machine, unless a running cluster is named with --addr. Producers
/// submit over streams, consumers complete every package one by one; nothing holds producers back
/// but the window and the cluster itself.
#[derive(Args, Debug)]
#[command(after_help = "\
All on one machine shares its processors: compare runs, on one machine, with nothing else running.

Examples:
  wharf bench                                    publish and consume at the same time
  wharf bench --backlog --count 300000           publish all, then consume; memory and disk in between
  wharf bench --duration 60s                     as fast as it goes, for a minute
  wharf bench --rate 1000 --duration 30s         latency at a steady rate, counted from when each was due
  wharf bench --waiting 1000000                  what it costs that a million packages wait elsewhere
  wharf bench --kill-leader                      the longest pause when the leader dies
  wharf bench --unary 64                         one package a call, 64 callers at once
  wharf bench --addr host:7411 --json | jq .cycle_per_s")]
pub struct Bench {
    /// How many packages; 200000 unless told otherwise.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_COUNT))]
    count: Option<u64>,
    /// Bytes a package, as in 256 or 4KiB.
    #[arg(long, default_value = "256", value_name = "SIZE", value_parser = payload)]
    payload: u64,
    /// How many queues the packages are spread over.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_QUEUES))]
    queues: u64,
    /// How many producers, each with a connection of its own.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=256))]
    producers: u64,
    /// How many consumers, each with a connection of its own.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CONSUMERS))]
    consumers: u64,
    /// Unconfirmed packages that each producer may have.
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    window: u64,
    /// Packages that each consumer may hold.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::MAX_IN_FLIGHT_CEILING)))]
    prefetch: u32,
    /// Packages a second of all producers together, kept up whatever the cluster does.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: Option<u64>,
    /// How long to publish, instead of --count: at --rate, or as fast as it goes.
    #[arg(long, value_name = "DURATION", value_parser = args::duration, conflicts_with = "count")]
    duration: Option<Duration>,
    /// Packages that wait in a queue of their own all the time, and are published first.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX_COUNT))]
    waiting: u64,
    /// Publish everything, then consume it.
    #[arg(long, conflicts_with_all = ["publish_only", "unary", "kill_leader"])]
    backlog: bool,
    /// Publish and consume nothing.
    #[arg(long, conflicts_with_all = ["unary", "kill_leader"])]
    publish_only: bool,
    /// Publish by single calls, one package each, with so many callers at once; consume nothing.
    #[arg(long, value_name = "CALLERS", value_parser = clap::value_parser!(u64).range(1..=512), conflicts_with = "kill_leader")]
    unary: Option<u64>,
    /// Lose the leader after a third of the run, at most 4 s; at 1000 packages a second for 14 s
    /// unless --rate, --count or --duration say otherwise.
    #[arg(long)]
    kill_leader: bool,
    /// How the leader is lost: killed, or stopped so that it falls silent with its connections open.
    #[arg(long, value_enum, default_value_t, value_name = "SIGNAL", requires = "kill_leader")]
    kill_signal: KillSignal,
    /// One package a message: in each submit and in each completion.
    #[arg(long, conflicts_with = "unary")]
    single: bool,
    /// How many nodes to start.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Where to make the directory of the nodes' files, on the disk to be measured; it goes at the end.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

/// What the leader gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum KillSignal {
    /// SIGKILL: its connections break at once.
    #[default]
    Kill,
    /// SIGSTOP: nothing tells that it is gone but its silence.
    Stop,
}

impl Bench {
    /// `named`: an address was given on the command line, so that cluster is measured.
    pub async fn run(self, target: &Target, named: bool) -> anyhow::Result<Exit> {
        let plan = Arc::new(self.plan(named)?);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut stage = self.stage(target, named).await?;
        let queues = queue_names(&plan);
        let waiting = format!("bench-{}-{WAITING}", std::process::id());
        let played = tokio::select! {
            played = self.play(&plan, &queues, &waiting, &mut stage) => played,
            _ = interrupt.recv() => Err(Failure::new(Exit::Failed, "interrupted").into()),
            _ = terminate.recv() => Err(Failure::new(Exit::Failed, "interrupted").into()),
        };
        let all_queues: Vec<String> = queues.into_iter().chain([waiting]).collect();
        let outcome = match stage.close(&all_queues, played.is_err()).await {
            Ok(()) => played,
            // What went wrong with the cluster is the cause of whatever failed.
            Err(cause) => played.and_then(|_| Err(cause)),
        };
        self.conclude(&outcome?)
    }

    fn plan(&self, named: bool) -> anyhow::Result<Plan> {
        let usage = |message: &str| Err(Failure::new(Exit::Usage, message).into());
        if self.kill_leader && named {
            return usage("only a cluster of the bench's own loses its leader: leave out --addr");
        }
        if self.kill_leader && self.nodes < 3 {
            return usage("with fewer than three nodes nothing goes on once the leader is lost: leave out --nodes");
        }
        if self.queues > self.consumers * limits::MAX_LANES_A_CLASS as u64 {
            return usage("a consumer takes from at most 64 queues: give more --consumers");
        }
        let rate = self.rate.or(self.kill_leader.then_some(KILL_RATE));
        let length = self.duration.or(self.kill_leader.then_some(KILL_FOR));
        let until = length.filter(|_| rate.is_none());
        let count = match (self.count, length) {
            (Some(count), _) => count,
            (None, Some(length)) => {
                (rate.map_or(MOST_A_SECOND, |rate| rate as f64) * length.as_secs_f64()).round() as u64
            }
            (None, None) => DEFAULT_COUNT,
        };
        if !(1..=MAX_COUNT).contains(&count) {
            return usage(
                "that makes no package, or may make more than 100 million: name another --duration or --rate",
            );
        }
        let mode = match self.unary {
            Some(callers) => Mode::Unary { callers },
            None if self.backlog => Mode::Backlog,
            None if self.publish_only => Mode::Publish,
            None => Mode::Cycle,
        };
        let (payload_bytes, window) = (usize::try_from(self.payload)?, usize::try_from(self.window)?);
        let &Self { queues, producers, consumers, prefetch, single, waiting, .. } = self;
        Ok(Plan {
            mode,
            count,
            payload_bytes,
            queues,
            producers,
            consumers,
            window,
            prefetch,
            rate,
            until,
            waiting,
            single,
        })
    }

    async fn stage(&self, target: &Target, named: bool) -> anyhow::Result<Stage> {
        if named {
            let client = target.client()?;
            client.check_reachable(Duration::from_millis(limits::CLIENT_REFUSED_MS)).await?;
            return Ok(Stage::Foreign { client, addrs: target.addr.join(",") });
        }
        let options = Options { nodes: self.nodes, temporary_below: self.dir.clone(), ..Options::default() };
        Ok(Stage::Own(Box::new(Cluster::start(options).await?)))
    }

    async fn play(
        &self,
        plan: &Arc<Plan>,
        queues: &[String],
        waiting: &str,
        stage: &mut Stage,
    ) -> anyhow::Result<Report> {
        let consumes = matches!(plan.mode, Mode::Cycle | Mode::Backlog);
        let (steps, step) = plan.steps();
        let say = output::Narrator::new(steps, step);
        if let Stage::Own(cluster) = stage {
            say.tell(format_args!("{} nodes start in {}", self.nodes, cluster.dir().display()));
            cluster.ready(READY_WITHIN).await?;
            sleep(SETTLE).await;
        }
        let leader = stage.leader().await?;
        let client = stage.client()?;
        prepare(&client, queues, plan).await.context("cannot prepare the bench's queues")?;
        if plan.waiting > 0 {
            say.tell(format_args!("node {leader} leads; first {} packages that wait all the time", plan.waiting));
            publish_waiting(plan, waiting, &client, stage.addrs(), &say).await?;
            say.phase(steps, step);
        }
        match plan.until {
            Some(until) => say.tell(format_args!("node {leader} leads; packages follow for {until:?}")),
            None => say.tell(format_args!("node {leader} leads; {} packages follow", plan.count)),
        }

        let before = stage.used()?;
        let tally = Arc::new(Tally::new(plan.count, self.kill_leader));
        let scene =
            Scene { plan: plan.clone(), tally: tally.clone(), addrs: stage.addrs().into(), queues: queues.into() };
        let watch = Watch { plan, tally: &tally, say: &say };
        let mut consumers = if plan.mode == Mode::Cycle { scene.consume()? } else { Crew::new() };
        let mut producers = scene.produce()?;
        let fall = self.lose_leader(plan, &tally, stage, &say);
        watch.guard(async { tokio::try_join!(all(&mut producers), fall).map(drop) }).await?;

        let (mut memory, mut disk, mut drain_us) = (None, None, 0);
        if plan.mode == Mode::Backlog {
            say.tell(format_args!("{} packages wait; now they are consumed", tally.confirmed_count()));
            (memory, disk) = (stage.memory_bytes(), stage.disk_bytes());
            say.phase(tally.confirmed_count(), "packages completed");
            drain_us = tally.now_us();
            consumers = scene.consume()?;
        }
        if consumes {
            let ended = async {
                for queue in queues {
                    client.seal_queue(queue, None).await?;
                }
                all(&mut consumers).await
            };
            watch.guard(ended).await?;
        }
        say.end();
        let same_leader = !self.kill_leader && stage.leader().await? == leader;
        if !same_leader && !self.kill_leader {
            output::note("leadership moved during the run: processor time is not told, and latencies include the move");
        }
        let count = plan.until.map_or(plan.count, |_| tally.confirmed_count());
        let cpu = stage.used()?.since(&before, same_leader.then_some(leader), count);
        if memory.is_none() {
            (memory, disk) = (stage.memory_bytes(), stage.disk_bytes());
        }

        let lead_us = plan.due_us(0).unwrap_or(0);
        let (confirms, deliveries) = (tally.confirms(), tally.deliveries());
        let settled = |mode, since_us| {
            let us = tally.last_settle_us().saturating_sub(since_us);
            (plan.mode == mode).then(|| per_s(tally.settled_count(), us)).flatten()
        };
        let missing = |count: u64| (count < plan.count).then(|| tally.now_us());
        Ok(Report {
            count,
            payload: self.payload,
            queues: plan.queues,
            rate: plan.rate,
            backlog: self.backlog,
            waiting: plan.waiting,
            publish_per_s: per_s(tally.confirmed_count(), tally.last_confirm_us().saturating_sub(lead_us)),
            cycle_per_s: settled(Mode::Cycle, lead_us),
            drain_per_s: settled(Mode::Backlog, drain_us),
            confirm_ms: Latency::of(&confirms.latency_us),
            e2e_ms: Latency::of(&deliveries.latency_us),
            cpu_us_per_package: cpu,
            rss_mb: memory.map(|nodes| nodes.into_iter().map(|bytes| bytes.map(mb)).collect()),
            disk_mb: disk.map(mb),
            kill: self.kill_leader.then(|| Kill {
                confirm_gap_ms: ms(longest_gap_us(&confirms.at_us, missing(tally.confirmed_count()))),
                delivery_gap_ms: ms(longest_gap_us(&deliveries.at_us, missing(tally.delivered_count()))),
                lost: tally.lost(),
                duplicates: tally.duplicates(),
            }),
            lost: if consumes { tally.lost() } else { 0 },
            retries: tally.retries(),
        })
    }

    /// Takes the leader away when its time has come.
    async fn lose_leader(
        &self,
        plan: &Plan,
        tally: &Tally,
        stage: &mut Stage,
        say: &output::Narrator,
    ) -> anyhow::Result<()> {
        let (true, Stage::Own(cluster)) = (self.kill_leader, stage) else { return Ok(()) };
        let third = plan.lasts().unwrap_or_default() / 3;
        sleep_until(tally.instant(plan.due_us(0).unwrap_or(0)) + third.min(KILL_AT)).await;
        let leader = cluster.leader(READY_WITHIN).await?;
        match self.kill_signal {
            KillSignal::Kill => cluster.kill(leader).await?,
            KillSignal::Stop => cluster.freeze(leader)?,
        }
        let how = if self.kill_signal == KillSignal::Kill { "killed" } else { "stopped" };
        say.tell(format_args!("node {leader}, the leader, was {how}"));
        Ok(())
    }

    fn conclude(&self, report: &Report) -> anyhow::Result<Exit> {
        for (reason, packages, last) in &report.retries {
            output::note(format_args!("{packages} packages were sent again because of {reason}, as in: {last}"));
        }
        if self.json {
            output::object(report)?;
        } else {
            output::pairs(&report.rows())?;
        }
        match report.lost {
            0 => Ok(Exit::Ok),
            lost => {
                Err(Failure::new(Exit::Failed, format!("{lost} packages were confirmed and never delivered")).into())
            }
        }
    }
}

/// Looks after a run while it lasts.
struct Watch<'a> {
    plan: &'a Plan,
    tally: &'a Tally,
    say: &'a output::Narrator,
}

impl Watch<'_> {
    /// Does `part` of a run, unless a package is refused for good or nothing happens any more.
    async fn guard(&self, part: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::select! {
            done = part => match self.tally.has_failed() {
                true => Err(self.tally.failure().await.into()),
                false => done,
            },
            error = self.tally.failure() => Err(anyhow::Error::new(error).context("a package was refused")),
            stalled = self.look() => Err(stalled),
        }
    }

    /// Moves the bar. Ends only when nothing moves.
    async fn look(&self) -> anyhow::Error {
        let bar = self.say.bar();
        let (mut last, mut since, mut told) = (0, Instant::now(), false);
        loop {
            sleep(LOOK_EVERY).await;
            let (confirmed, settled) = (self.tally.confirmed_count(), self.tally.settled_count());
            bar.set_position(match (settled, self.plan.mode) {
                (1.., Mode::Backlog) => settled,
                (1.., _) => self.plan.step(settled, self.tally.now_us()),
                (0, _) => self.plan.step(confirmed, self.tally.now_us()),
            });
            if confirmed + settled != last {
                (last, since, told) = (confirmed + settled, Instant::now(), false);
            }
            if since.elapsed() >= STALL_TOLD && !told {
                told = true;
                let what = "nothing was confirmed or completed for some seconds";
                self.say.tell(format_args!("{what}{}", self.why()));
            }
            if since.elapsed() >= STALL {
                let message = format!("nothing was confirmed or completed for {STALL:?}{}", self.why());
                return Failure::new(Exit::TryAgain, message).into();
            }
        }
    }

    /// What was heard last of packages that are sent again.
    fn why(&self) -> String {
        let texts: Vec<String> = self.tally.retries().iter().map(|(_, _, error)| format!("; {error}")).collect();
        texts.concat()
    }
}

/// Names that no other run has.
fn queue_names(plan: &Plan) -> Vec<String> {
    let run = std::process::id();
    (0..plan.queues).map(|queue| format!("bench-{run}-{queue}")).collect()
}

/// Publishes what waits while the rest is measured.
async fn publish_waiting(
    plan: &Plan,
    queue: &str,
    client: &Client,
    addrs: String,
    say: &output::Narrator,
) -> anyhow::Result<()> {
    let (plan, queues) = (Arc::new(plan.of_waiting()), vec![queue.to_owned()]);
    prepare(client, &queues, &plan).await.context("cannot prepare the queue of those that wait")?;
    say.phase(plan.count, "waiting packages confirmed");
    let tally = Arc::new(Tally::new(plan.count, false));
    let scene = Scene { plan: plan.clone(), tally: tally.clone(), addrs: addrs.into(), queues: queues.into() };
    let mut producers = scene.produce()?;
    Watch { plan: &plan, tally: &tally, say }.guard(all(&mut producers)).await
}

async fn prepare(client: &Client, queues: &[String], plan: &Plan) -> anyhow::Result<()> {
    for queue in queues {
        let default = QueueSettings::default();
        let max_payload = Some(plan.payload_bytes as u64).filter(|bytes| *bytes > DEFAULT_MAX_PAYLOAD);
        client.create_queue(queue, QueueSettings { max_payload, ..default }).await?;
    }
    Ok(())
}

/// What a queue may take.
fn payload(text: &str) -> Result<u64, String> {
    match args::size(text)? {
        bytes if bytes <= limits::MAX_PAYLOAD_CEILING_BYTES => Ok(bytes),
        _ => Err(format!("no queue takes more than {} bytes", limits::MAX_PAYLOAD_CEILING_BYTES)),
    }
}
