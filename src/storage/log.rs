//! What every log store is: the words of the log and the [`Log`] trait that the WAL and its memory
//! twin share. `raft::log_store` puts openraft's traits on top.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures::future::BoxFuture;

/// Where an entry stands. Ordered by term, then index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogId {
    pub term: u64,
    pub index: u64,
}

/// A vote as it is stored: whom this node stands by in which term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

/// What an entry's payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No payload: a leader's first entry.
    Blank,
    /// A stored `Batch`, written as it is.
    Normal,
    /// A stored `Membership`.
    Membership,
}

/// A log entry. Cloning shares the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: LogId,
    pub kind: Kind,
    pub payload: Bytes,
}

impl Entry {
    /// What the entry counts for in budgets of memory and messages.
    pub fn cost_bytes(&self) -> usize {
        self.payload.len() + ENTRY_OVERHEAD_BYTES
    }
}

/// An entry's frame, in memory and in a message, is about this large.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The two ends of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Everything up to here was dropped: a snapshot covers it.
    pub purged: Option<LogId>,
    /// The last entry, or `purged` if there is none.
    pub last: Option<LogId>,
}

/// Called once, when an operation is durable or certainly is not. Callbacks come in the order of
/// their operations and from one thread; they must not block.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What a read gives.
pub enum Read {
    /// The entries.
    Ready(Vec<Entry>),
    /// Part of them is on disk only: call this where blocking is allowed.
    Blocking(Box<dyn FnOnce() -> io::Result<Vec<Entry>> + Send>),
}

impl Read {
    /// The entries, reading files on this thread if need be.
    pub fn wait(self) -> io::Result<Vec<Entry>> {
        match self {
            Read::Ready(entries) => Ok(entries),
            Read::Blocking(read) => read(),
        }
    }
}

/// A Raft log with its vote. All writes, of votes and entries alike, take effect in the order of
/// the calls, in memory and on disk; a read sees every write that returned before it.
///
/// After a write failed, everything fails: the store is poisoned until it is opened anew.
pub trait Log: Send + Sync + 'static {
    fn ends(&self) -> Ends;

    fn vote(&self) -> Option<Vote>;

    /// What [`Log::save_committed`] saved last.
    fn committed(&self) -> Option<LogId>;

    /// Adds entries at the end, without a hole.
    fn append(&self, entries: Vec<Entry>, done: Done) -> io::Result<()>;

    fn save_vote(&self, vote: Vote, done: Done) -> io::Result<()>;

    /// Remembers a hint for the next start. Reaches the disk with whatever is written next.
    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()>;

    /// Drops every entry after `last` (`None`: all).
    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()>;

    /// Drops every entry up to and including `upto`. The caller holds a durable snapshot of it.
    fn purge(&self, upto: LogId) -> io::Result<()>;

    /// The entries with these indexes that the log has, from the first on until `max_bytes` are
    /// reached; one at least, if there is one.
    fn read(&self, range: Range<u64>, max_bytes: u64) -> io::Result<Read>;

    /// Bytes of log after this index: what a restart would replay on top of a snapshot there.
    fn bytes_after(&self, index: Option<u64>) -> u64;

    /// Resolves once the queue of unwritten operations has room. Backpressure for `append`.
    fn room(&self) -> BoxFuture<'_, ()>;
}
