//! The deaths of the demo, and the workers that they happen to.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::local::{Cluster, Process};
use super::super::output::Narrator;
use super::QUEUE;
use super::ledger::{Fate, Ledger};

/// When things happen, as shares of the packages confirmed.
const KILL_WORKER_AT: f64 = 0.15;
const FREEZE_WORKER_AT: f64 = 0.35;
const KILL_LEADER_AT: f64 = 0.70;
/// Twice the lease, and short of the time after which a silent worker is cut off: it wakes with its
/// stream intact.
const FROZEN_FOR: Duration = Duration::from_secs(4);
/// How often, and after what pause, a worker is frozen until it has a package in hand.
const FREEZE_TRIES: usize = 50;
const FREEZE_AGAIN: Duration = Duration::from_millis(20);
const LEADER_DOWN_FOR: Duration = Duration::from_secs(2);
const LEADER_WITHIN: Duration = Duration::from_secs(10);

/// What happens, in order, while packages are submitted.
pub struct Plot<'a> {
    pub cluster: &'a mut Cluster,
    pub crew: &'a mut Crew,
    pub progress: watch::Receiver<u64>,
    pub packages: u64,
    pub say: &'a Narrator,
}

impl Plot<'_> {
    pub async fn play(&mut self) -> anyhow::Result<()> {
        self.confirmed(KILL_WORKER_AT).await;
        let victim = self.crew.kill(0).await?;
        self.say.tell(format_args!("worker {victim}: kill -9; a new one starts"));
        self.crew.hire_one(self.cluster)?;

        self.confirmed(FREEZE_WORKER_AT).await;
        let frozen = self.crew.worker(1)?;
        frozen.freeze_at_work().await?;
        self.say.tell(format_args!("worker {}: frozen for {} s, past its lease", frozen.name, FROZEN_FOR.as_secs()));
        sleep(FROZEN_FOR).await;
        frozen.process()?.thaw()?;
        self.say.tell(format_args!("worker {}: continued, with completions that came too late", frozen.name));

        self.confirmed(KILL_LEADER_AT).await;
        let leader = self.cluster.leader(LEADER_WITHIN).await?;
        self.cluster.kill(leader).await?;
        self.say.tell(format_args!("node {leader}, the leader: kill -9"));
        let next = self.cluster.leader(LEADER_WITHIN).await?;
        self.say.tell(format_args!("node {next} leads"));
        sleep(LEADER_DOWN_FOR).await;
        self.cluster.restart(leader)?;
        self.say.tell(format_args!("node {leader} is back"));
        self.cluster.ready(LEADER_WITHIN).await
    }

    /// Waits until this share is confirmed, or nothing more will be.
    async fn confirmed(&mut self, share: f64) {
        let count = (self.packages as f64 * share) as u64;
        // An error: the submitting task has ended, and tells why by itself.
        let _ = self.progress.wait_for(|confirmed| *confirmed >= count).await;
    }
}

/// The worker processes.
pub struct Crew {
    workers: Vec<Worker>,
}

pub struct Worker {
    pub name: String,
    file: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    fate: Fate,
}

impl Crew {
    pub fn hire(cluster: &Cluster, workers: u32) -> anyhow::Result<Self> {
        let mut crew = Self { workers: Vec::new() };
        (0..workers).try_for_each(|_| crew.hire_one(cluster))?;
        Ok(crew)
    }

    pub fn hire_one(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let name = format!("w{}", self.workers.len() + 1);
        let file = cluster.dir().join(format!("{name}.jsonl"));
        let log = cluster.dir().join(format!("{name}.log"));
        let addrs = cluster.addrs();
        let file_arg = file.display().to_string();
        let args = ["demo-worker", "--addr", &addrs, "--queue", QUEUE, "--name", &name, "--file", &file_arg];
        let process = Process::spawn(cluster.program(), args, &log)?;
        self.workers.push(Worker { name, file, log, process: Some(process), fate: Fate::Lived });
        Ok(())
    }

    pub fn worker(&self, at: usize) -> anyhow::Result<&Worker> {
        self.workers.get(at).with_context(|| format!("there is no worker {at}"))
    }

    /// SIGKILL. Answers its name.
    pub async fn kill(&mut self, at: usize) -> anyhow::Result<String> {
        let worker = self.workers.get_mut(at).context("there is no such worker")?;
        let process = worker.process.take().context("the worker does not run")?;
        process.kill().await?;
        worker.fate = Fate::Killed;
        Ok(worker.name.clone())
    }

    /// Waits until all that live ended by themselves, as workers do at the end of work.
    pub async fn go_home(&mut self, within: Duration) -> anyhow::Result<()> {
        for worker in &mut self.workers {
            let Some(mut process) = worker.process.take() else { continue };
            let status = process.ended(within).await;
            let status = status.with_context(|| format!("worker {} did not end with its work", worker.name))?;
            anyhow::ensure!(
                status.success(),
                "worker {} ended with {status}; see {}",
                worker.name,
                worker.log.display()
            );
        }
        Ok(())
    }

    /// What they all wrote down.
    pub fn ledger(&self) -> anyhow::Result<Ledger> {
        let mut ledger = Ledger::default();
        self.workers.iter().try_for_each(|worker| ledger.read(&worker.file, worker.fate))?;
        Ok(ledger)
    }
}

impl Worker {
    /// SIGSTOP in the middle of a package: a worker that has nothing in hand goes on for a moment.
    async fn freeze_at_work(&self) -> anyhow::Result<()> {
        for _ in 0..FREEZE_TRIES {
            self.process()?.freeze()?;
            let mut ledger = Ledger::default();
            // It may be frozen in the middle of a line, as if it had been killed.
            ledger.read(&self.file, Fate::Killed)?;
            if ledger.packages.values().flat_map(BTreeMap::values).any(|lease| lease.in_hand()) {
                return Ok(());
            }
            self.process()?.thaw()?;
            sleep(FREEZE_AGAIN).await;
        }
        anyhow::bail!("worker {} never had a package in hand", self.name)
    }

    pub fn process(&self) -> anyhow::Result<&Process> {
        self.process.as_ref().with_context(|| format!("worker {} does not run", self.name))
    }
}
