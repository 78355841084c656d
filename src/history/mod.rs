//! Keeps what became of packages: follows the changes that this node applies, and hands what is worth
//! keeping to the store on a thread of its own.
//!
//! Invariants: apply never waits for history; history that falls behind loses changes, counts them and
//! says which. Nothing that goes wrong here, a damaged disk and a panic of the store included, stops a
//! node: what is damaged is set aside, and history begins anew. Queues say what is kept.
//!
//! Absent on purpose: history of before this node's snapshot, agreement between nodes, any decision.

mod keeper;
mod recorder;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::env::Env;
use crate::raft;
use crate::types::{NodeId, limits};

pub use crate::storage::history::{Attempt, Failure, Finished, Gap, Keep, Page, Place, Query};

use keeper::{Job, Keeper};

/// Where history is kept.
#[derive(Clone, Debug)]
pub enum Home {
    /// In this directory, on a thread of its own.
    Disk(PathBuf),
    /// In memory, in a task: for simulations, which have one thread.
    Memory,
}

/// The door to a node's history. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    node: NodeId,
    /// None: switched off.
    jobs: Option<mpsc::Sender<Job>>,
    stats: Arc<Stats>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("history is switched off at this node")]
    Disabled,
    #[error("history cannot be read now")]
    Unavailable,
}

/// For the panic hook: whether this thread's panic is caught here. sled's own threads only write what
/// history's thread asked them to.
pub fn is_its_panic() -> bool {
    std::thread::current().name().is_some_and(|name| name == keeper::THREAD || name.starts_with("sled"))
}

/// What a node's history is like, for metrics.
#[derive(Debug, Default)]
pub struct Stats {
    enabled: AtomicBool,
    ready: AtomicBool,
    rows: AtomicU64,
    bytes: AtomicU64,
    disk_bytes: AtomicU64,
    covered: AtomicU64,
    dropped: AtomicU64,
    set_aside: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub enabled: bool,
    /// It can be written and read.
    pub ready: bool,
    /// Finished packages kept.
    pub rows: u64,
    pub bytes: u64,
    pub disk_bytes: u64,
    /// The revision up to which it has come.
    pub covered: u64,
    /// Revisions of which nothing is known, because history fell behind or was damaged.
    pub dropped: u64,
    /// Histories that were damaged.
    pub set_aside: u64,
}

/// To the keeper. While it is full, whoever has more waits.
fn queue() -> (mpsc::Sender<Job>, mpsc::Receiver<Job>) {
    mpsc::channel(limits::HISTORY_JOBS)
}

impl Handle {
    /// History that keeps nothing.
    pub fn disabled(node: NodeId) -> Self {
        Self { node, jobs: None, stats: Arc::default() }
    }

    /// Follows the node's changes until `stop`, then writes what it has.
    pub fn start(raft: &raft::Handle, home: Home, keep: Keep, env: &Env, stop: CancellationToken) -> Self {
        let stats = Arc::new(Stats::default());
        stats.enabled.store(true, Ordering::Relaxed);
        let (jobs, todo) = queue();
        Keeper::new(home, keep, env.clone(), stats.clone()).start(todo);
        tokio::spawn(recorder::run(raft.changes().clone(), jobs.clone(), stop));
        Self { node: raft.node(), jobs: Some(jobs), stats }
    }

    /// Whose history it is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// A page, within this time.
    pub async fn list(&self, query: Query, within: Duration) -> Result<Page, Refused> {
        let jobs = self.jobs.as_ref().ok_or(Refused::Disabled)?;
        let (answer, answered) = oneshot::channel();
        let ask = async {
            jobs.send(Job::List { query, answer }).await.map_err(|_| Refused::Unavailable)?;
            answered.await.map_err(|_| Refused::Unavailable)
        };
        tokio::time::timeout(within, ask).await.unwrap_or(Err(Refused::Unavailable))
    }

    /// Waits until everything up to this revision is written and flushed.
    pub async fn flushed(&self) -> Result<u64, Refused> {
        let jobs = self.jobs.as_ref().ok_or(Refused::Disabled)?;
        let (answer, answered) = oneshot::channel();
        jobs.send(Job::Flush { answer: Some(answer) }).await.map_err(|_| Refused::Unavailable)?;
        answered.await.map_err(|_| Refused::Unavailable)
    }

    pub fn snapshot(&self) -> Snapshot {
        let stats = &self.stats;
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Snapshot {
            enabled: stats.enabled.load(Ordering::Relaxed),
            ready: stats.ready.load(Ordering::Relaxed),
            rows: load(&stats.rows),
            bytes: load(&stats.bytes),
            disk_bytes: load(&stats.disk_bytes),
            covered: load(&stats.covered),
            dropped: load(&stats.dropped),
            set_aside: load(&stats.set_aside),
        }
    }
}
