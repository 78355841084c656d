//! The log's memory twin: the same contract without a disk, for tests and simulations.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::log::{Done, Ends, Entry, Log, LogId, Read, Vote};

/// A log that is as durable as the process.
#[derive(Default)]
pub struct MemoryLog {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: VecDeque<Entry>,
}

impl MemoryLog {
    pub fn new() -> Self {
        Self::default()
    }
}

impl Inner {
    fn last(&self) -> Option<LogId> {
        self.entries.back().map(|entry| entry.id).or(self.purged)
    }

    /// Where in `entries` an index stands, clamped to both ends.
    fn position(&self, index: u64) -> usize {
        let Some(first) = self.entries.front().map(|entry| entry.id.index) else { return 0 };
        (index.saturating_sub(first) as usize).min(self.entries.len())
    }
}

impl Log for MemoryLog {
    fn ends(&self) -> Ends {
        let inner = self.inner.lock();
        Ends { purged: inner.purged, last: inner.last() }
    }

    fn vote(&self) -> Option<Vote> {
        self.inner.lock().vote
    }

    fn committed(&self) -> Option<LogId> {
        self.inner.lock().committed
    }

    fn append(&self, entries: Vec<Entry>, done: Done) -> io::Result<()> {
        {
            let mut inner = self.inner.lock();
            for entry in entries {
                check_next(inner.last(), entry.id)?;
                inner.entries.push_back(entry);
            }
        }
        done(Ok(()));
        Ok(())
    }

    fn save_vote(&self, vote: Vote, done: Done) -> io::Result<()> {
        self.inner.lock().vote = Some(vote);
        done(Ok(()));
        Ok(())
    }

    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()> {
        self.inner.lock().committed = committed;
        Ok(())
    }

    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let keep = last.map_or(0, |last| inner.position(last.index + 1));
        inner.entries.truncate(keep);
        Ok(())
    }

    fn purge(&self, upto: LogId) -> io::Result<()> {
        let mut inner = self.inner.lock();
        if inner.purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        let gone = inner.position(upto.index + 1);
        inner.entries.drain(..gone);
        inner.purged = Some(upto);
        Ok(())
    }

    fn read(&self, range: Range<u64>, max_bytes: u64) -> io::Result<Read> {
        let inner = self.inner.lock();
        let (from, to) = (inner.position(range.start), inner.position(range.end.max(range.start)));
        let mut bytes = 0;
        let within = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += entry.cost_bytes() as u64;
            first || bytes <= max_bytes
        };
        Ok(Read::Ready(inner.entries.range(from..to).take_while(within).cloned().collect()))
    }

    fn bytes_after(&self, index: Option<u64>) -> u64 {
        let inner = self.inner.lock();
        let from = index.map_or(0, |index| inner.position(index + 1));
        inner.entries.range(from..).map(|entry| entry.cost_bytes() as u64).sum()
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        futures::future::ready(()).boxed()
    }
}

/// Refuses a hole. A log that never held anything may begin anywhere.
pub(super) fn check_next(last: Option<LogId>, next: LogId) -> io::Result<()> {
    match last {
        Some(last) if last.index + 1 != next.index => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("entry {} appended after entry {}", next.index, last.index),
        )),
        _ => Ok(()),
    }
}
