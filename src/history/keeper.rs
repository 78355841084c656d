//! The one who touches the store: on a thread of its own, whose panics are caught.
//!
//! sled panics on some of what it finds on a damaged disk, sometimes only when a page is read. Whatever
//! it does, the directory is set aside under another name, a new one is begun, and the node learns of it by
//! a warning and a metric. A process that dies while it opens the directory, twice, sets it aside at the
//! third try: so a damage that cannot be caught stops a node no more than that.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant};

use super::{Home, Stats};
use crate::env::Env;
use crate::storage::history::{Error, Gap, History, Keep, Page, Query, Row};
use crate::types::{Wall, limits};

/// The thread's name. A panic there is caught.
pub const THREAD: &str = "wharf-history";

/// What there is to do.
pub enum Job {
    /// Where to begin: the revision after the last that is covered.
    Begin {
        answer: oneshot::Sender<u64>,
    },
    Write {
        rows: Vec<Row>,
        covered: u64,
    },
    Gap {
        from: u64,
        to: u64,
    },
    Flush {
        answer: Option<oneshot::Sender<u64>>,
    },
    List {
        query: Query,
        answer: oneshot::Sender<Page>,
    },
}

/// See the module.
pub struct Keeper {
    home: Home,
    keep: Keep,
    env: Env,
    stats: Arc<Stats>,
    /// None: it cannot be used now.
    history: Option<History>,
    retry_at: Instant,
    /// The first revision of what could not be written.
    lost_from: Option<u64>,
    told: u64,
}

impl Keeper {
    pub fn new(home: Home, keep: Keep, env: Env, stats: Arc<Stats>) -> Self {
        Self { home, keep, env, stats, history: None, retry_at: Instant::now(), lost_from: None, told: 0 }
    }

    /// Works until everybody who could ask is gone.
    pub fn start(mut self, mut todo: mpsc::Receiver<Job>) {
        match self.home {
            Home::Memory => drop(tokio::spawn(async move {
                while let Some(job) = todo.recv().await {
                    self.work(job);
                }
            })),
            Home::Disk(_) => {
                let work = move || {
                    while let Some(job) = todo.blocking_recv() {
                        self.work(job);
                    }
                    self.guarded("close", |history| history.flush());
                };
                // Without a thread nothing is kept, and nobody is answered.
                if let Err(error) = std::thread::Builder::new().name(THREAD.to_owned()).spawn(work) {
                    tracing::error!(%error, "no thread for history: none is kept");
                }
            }
        }
    }

    fn work(&mut self, job: Job) {
        self.open();
        match job {
            Job::Begin { answer } => {
                let covered = self.history.as_ref().map_or(0, History::covered);
                self.told = covered;
                // Whoever asked may be gone, here and below.
                let _ = answer.send(covered + 1);
            }
            Job::Write { rows, covered } => self.write(&rows, covered),
            Job::Gap { from, to } => self.note_gap(from, to),
            Job::Flush { answer } => {
                self.guarded("flush", |history| history.flush());
                self.trim();
                self.tell_stats();
                if let Some(answer) = answer {
                    let _ = answer.send(self.history.as_ref().map_or(0, History::covered));
                }
            }
            Job::List { query, answer } => {
                if let Some(page) = self.guarded("read", |history| history.list(&query)) {
                    let _ = answer.send(page);
                }
            }
        }
    }

    fn write(&mut self, rows: &[Row], covered: u64) {
        self.fill_loss();
        if self.guarded("write", |history| history.write(rows, covered)).is_none() {
            // What led here is not known to the next history either.
            self.lost_from.get_or_insert(self.told + 1);
        }
        self.told = covered;
        self.stats.covered.store(covered, Ordering::Relaxed);
    }

    fn note_gap(&mut self, from: u64, to: u64) {
        tracing::warn!(from, to, "history was left behind: what happened at these revisions is not in it");
        self.stats.dropped.fetch_add(to.saturating_sub(from) + 1, Ordering::Relaxed);
        let time_ms = self.env.clock.wall().0;
        self.guarded("write", |history| history.write_gap(Gap { from, to, time_ms }));
        self.told = to;
    }

    /// A history that works again begins with what was lost meanwhile.
    fn fill_loss(&mut self) {
        if let Some(history) = &self.history
            && let Some(from) = self.lost_from.take()
        {
            let from = from.max(history.covered() + 1);
            if from <= self.told {
                self.note_gap(from, self.told);
            }
        }
    }

    fn trim(&mut self) {
        let now = self.env.clock.wall();
        while self.guarded("trim", |history| history.trim(now)) == Some(true) {}
    }

    fn tell_stats(&self) {
        let Some(history) = &self.history else { return };
        let sums = history.sums();
        self.stats.rows.store(sums.rows, Ordering::Relaxed);
        self.stats.bytes.store(sums.bytes, Ordering::Relaxed);
        self.stats.disk_bytes.store(history.disk_bytes(), Ordering::Relaxed);
    }

    /// Does something with the store, whatever the store does. None: it did not work out.
    fn guarded<T>(&mut self, what: &str, work: impl FnOnce(&mut History) -> Result<T, Error>) -> Option<T> {
        let mut history = self.history.take()?;
        let done = catch_unwind(AssertUnwindSafe(|| {
            let done = work(&mut history);
            (history, done)
        }));
        match done {
            Ok((history, Ok(done))) => {
                self.history = Some(history);
                return Some(done);
            }
            Ok((history, Err(error))) => {
                // Dropping it makes sled flush, which may fail as well.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(history)));
                self.failed(what, error);
            }
            Err(_) => self.failed(what, Error::Damaged("the store panicked".to_owned())),
        }
        None
    }

    fn failed(&mut self, what: &str, error: Error) {
        self.stats.ready.store(false, Ordering::Relaxed);
        match (error, self.home.clone()) {
            (Error::Damaged(why), Home::Disk(dir)) => {
                self.set_aside(&dir, &why);
                // The new one knows nothing of what was before.
                self.lost_from = Some(1);
                self.retry_at = Instant::now();
            }
            (error, _) => {
                tracing::warn!(%error, what, "history is out of order for a while");
                self.retry_at = Instant::now() + Duration::from_millis(limits::HISTORY_RETRY_MS);
            }
        }
    }

    /// Makes it usable, if it is not and may be.
    fn open(&mut self) {
        if self.history.is_some() || Instant::now() < self.retry_at {
            return;
        }
        let opened = match self.home.clone() {
            Home::Memory => Ok(History::in_memory(self.keep)),
            Home::Disk(dir) => self.open_dir(&dir),
        };
        match opened {
            Ok(history) => {
                self.history = Some(history);
                self.stats.ready.store(true, Ordering::Relaxed);
                self.tell_stats();
            }
            Err(error) => self.failed("open", error),
        }
    }

    fn open_dir(&mut self, dir: &Path) -> Result<History, Error> {
        let tries = Tries::of(dir);
        if tries.made() >= limits::HISTORY_OPEN_TRIES && dir.exists() {
            self.set_aside(dir, "nodes that opened it did not live on");
        }
        tries.begin()?;
        let keep = self.keep;
        // Reads where it stopped, and a little of what there is.
        let open = || {
            let history = History::open(dir, keep)?;
            history.list(&Query { queue: "default".to_owned(), page_size: 1, ..Query::default() })?;
            Ok(history)
        };
        let opened = catch_unwind(AssertUnwindSafe(open));
        tries.end();
        match opened {
            Ok(Err(Error::Damaged(why))) => {
                self.set_aside(dir, &why);
                History::open(dir, keep)
            }
            Ok(opened) => opened,
            Err(_) => {
                self.set_aside(dir, "the store panicked");
                History::open(dir, keep)
            }
        }
    }

    /// Gives the directory another name, and lets the oldest of those go.
    fn set_aside(&mut self, dir: &Path, why: &str) {
        self.stats.set_aside.fetch_add(1, Ordering::Relaxed);
        let aside = aside(dir, self.env.clock.wall());
        match fs::rename(dir, &aside) {
            Ok(()) => tracing::warn!(why, aside = %aside.display(), "history was damaged: set aside, and begun anew"),
            Err(error) => {
                tracing::warn!(why, %error, dir = %dir.display(), "history is damaged and cannot be set aside")
            }
        }
        if let Err(error) = let_go(dir) {
            tracing::warn!(%error, "an old damaged history cannot be removed");
        }
    }
}

/// `history.damaged-20300131T080000.123Z`.
fn aside(dir: &Path, now: Wall) -> PathBuf {
    let now = jiff::Timestamp::from_millisecond(now.0 as i64).unwrap_or_default();
    let mut name = dir.as_os_str().to_owned();
    name.push(format!("{DAMAGED}{}", now.strftime("%Y%m%dT%H%M%S%.3fZ")));
    name.into()
}

const DAMAGED: &str = ".damaged-";

/// Only the latest damaged ones stay.
fn let_go(dir: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    let begin = format!("{}{DAMAGED}", name.to_string_lossy());
    let mut damaged: Vec<_> = fs::read_dir(parent)?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.to_string_lossy().starts_with(&begin))
        .collect();
    // Their names are in the order of time.
    damaged.sort();
    let stay = damaged.len().saturating_sub(limits::HISTORY_DAMAGED_KEPT);
    damaged.into_iter().take(stay).try_for_each(|name| fs::remove_dir_all(parent.join(name)))
}

/// Counts, on disk, how often the directory was to be opened without an end.
struct Tries(PathBuf);

impl Tries {
    fn of(dir: &Path) -> Self {
        let mut name = dir.as_os_str().to_owned();
        name.push(".opening");
        Self(name.into())
    }

    fn made(&self) -> u64 {
        fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn begin(&self) -> io::Result<()> {
        fs::write(&self.0, (self.made() + 1).to_string())
    }

    fn end(&self) {
        // If it stays, a later open sets aside what was whole: history only, and no harm to the node.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
