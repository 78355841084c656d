//! What the log's callers and its writer share: the index and the queue, under one short lock.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::index::Index;
use super::record;
use super::recover::Known;
use crate::storage::log::{Done, Entry, LogId, Vote};
use crate::storage::stats::IoStats;

/// An operation that waits for the writer. A `Done` is taken when it is called.
pub enum Op {
    Append(std::vec::IntoIter<Entry>, Option<Done>),
    Vote(Vote, Option<Done>),
    Committed(Option<LogId>),
    /// The last entry that is left.
    Truncate(Option<LogId>),
    Purge(LogId),
    /// Writes nothing; done when all before it is.
    Barrier(Option<Done>),
}

impl Op {
    /// The bytes of its next record, at most.
    pub fn size(&self) -> usize {
        match self {
            Op::Append(entries, _) => entries.as_slice().first().map_or(0, record::size_of_entry),
            Op::Barrier(_) => 0,
            _ => record::MAX_SMALL_BYTES,
        }
    }
}

pub struct Shared {
    inner: Mutex<Inner>,
    /// Wakes the flush thread.
    wake: Condvar,
    /// Wakes the flush task.
    pub wake_task: Notify,
    /// Told when the queue got shorter.
    pub room: Notify,
    pub stats: IoStats,
    fatal: watch::Sender<Option<Arc<str>>>,
    full: AtomicBool,
}

pub struct Inner {
    pub index: Index,
    pub segments: BTreeMap<u32, Known>,
    pub queue: Vec<Op>,
    /// Bytes of entries that are not on disk yet.
    pub queue_bytes: usize,
    /// `index.committed` is not written yet.
    pub committed_changed: bool,
    pub closing: bool,
}

impl Shared {
    pub fn new(index: Index, segments: BTreeMap<u32, Known>) -> Self {
        let inner =
            Inner { index, segments, queue: Vec::new(), queue_bytes: 0, committed_changed: false, closing: false };
        Self {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            wake_task: Notify::new(),
            room: Notify::new(),
            stats: IoStats::default(),
            fatal: watch::Sender::new(None),
            full: AtomicBool::new(false),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// The lock, unless the log has failed or is closed.
    pub fn lock_alive(&self) -> io::Result<MutexGuard<'_, Inner>> {
        if let Some(why) = self.failed() {
            return Err(io::Error::other(why.to_string()));
        }
        let inner = self.inner.lock();
        if inner.closing { Err(io::Error::other("the log is closed")) } else { Ok(inner) }
    }

    pub fn wake(&self) {
        self.wake.notify_one();
        self.wake_task.notify_one();
    }

    /// Moves what waits to the writer. A changed `committed` goes along, but is no reason by itself.
    /// It comes last: it may name an entry of this very queue, and a torn write must not keep it
    /// without that entry.
    pub fn take_queue(&self, backlog: &mut VecDeque<Op>) {
        let mut inner = self.inner.lock();
        let written = !inner.queue.is_empty() || inner.closing;
        backlog.extend(inner.queue.drain(..));
        if inner.committed_changed && written {
            inner.committed_changed = false;
            backlog.push_back(Op::Committed(inner.index.committed));
        }
    }

    /// Blocks the flush thread until something waits; false when the log closes and nothing does.
    pub fn wait(&self) -> bool {
        let mut inner = self.inner.lock();
        loop {
            if !inner.queue.is_empty() {
                return true;
            }
            if inner.closing {
                return false;
            }
            self.wake.wait(&mut inner);
        }
    }

    /// Blocks the flush thread for a while, or until the log closes; false when it does.
    pub fn pause(&self, how_long: std::time::Duration) -> bool {
        let mut inner = self.inner.lock();
        if !inner.closing {
            self.wake.wait_for(&mut inner, how_long);
        }
        !inner.closing
    }

    /// Poisons the log: the first error is the one that is kept and told.
    pub fn fail(&self, error: &io::Error) {
        let first = self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            if first {
                *fatal = Some(Arc::from(format!("the log has failed and takes nothing any more: {error}")));
            }
            first
        });
        if first {
            self.room.notify_waiters();
            self.wake();
        }
    }

    pub fn failed(&self) -> Option<Arc<str>> {
        self.fatal.borrow().clone()
    }

    pub fn fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.fatal.subscribe()
    }

    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}
