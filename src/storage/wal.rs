//! The write-ahead log: Raft's entries and votes in segments of their own format.
//!
//! Invariants
//! - One queue, one writer: the order of the calls is the order on disk, in memory and of the
//!   callbacks, for entries, votes, truncations and purges alike.
//! - A callback fires after the sync of the write that holds its records. A flush is written only
//!   after the one before it was synced; recovery stands on that (see `recover`).
//! - Each segment begins with a state record that replaces everything before it, and a segment is
//!   removed only once a later one with its state record is on disk.
//! - After any failed write or sync nothing is accepted any more, and nothing is tried again, but a
//!   full disk: a segment that could not be made yet is asked for again.
//!
//! Absent on purpose: compression and entry batching (the leader's batch is one entry), a second
//! copy of the vote, direct IO.

mod house;
mod index;
mod record;
mod recover;
mod segment;
mod shared;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::house::House;
use self::index::{Place, Plan};
use self::record::{Encoder, Seed, State};
use self::segment::Segment;
use self::shared::{Inner, Op, Shared};
use self::writer::{Step, Writer};
use super::disk::{Disk, read_full};
use super::error::Error;
use super::log::{Done, Ends, Entry, Log, LogId, Read, Vote};
use super::stats::IoCounts;
use crate::types::limits;

/// Who writes and syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flusher {
    /// A thread, and another that makes segments ahead. The real thing.
    Thread,
    /// A task of the current runtime, which pauses before each flush as its disk says. For simulations: no
    /// threads.
    Task,
    /// The caller, before its call returns. For tests and offline tools.
    Inline,
}

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub flusher: Flusher,
    pub segment_bytes: u64,
    pub first_segment_bytes: u64,
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flusher: Flusher::Thread,
            segment_bytes: limits::SEGMENT_BYTES,
            first_segment_bytes: limits::FIRST_SEGMENT_BYTES,
            cache_bytes: limits::LOG_CACHE_BYTES,
        }
    }
}

/// See the module. One owner; `raft::log_store` shares it by `Arc`.
pub struct Wal {
    shared: Arc<Shared>,
    house: Arc<House>,
    writer: Arc<Mutex<Writer>>,
    flusher: Flusher,
    threads: Mutex<Vec<JoinHandle<()>>>,
    task: Option<tokio::task::AbortHandle>,
}

impl Wal {
    /// Makes an empty log, durable. Replaces what an unfinished creation left, and refuses to
    /// replace a log that was ever written to: the caller has no identity for it.
    pub fn create(disk: &dyn Disk, dir: &Path, incarnation: u64, options: &Options) -> Result<(), Error> {
        disk.create_dir(dir)?;
        let mut encoder = Encoder::new(Seed::new(1, incarnation), 1);
        encoder.state(&State { incarnation, size_bytes: options.first_segment_bytes, ..State::default() });
        let head = encoder.finish();
        let mut bytes = Vec::new();
        for number in segment::numbers(disk, dir)? {
            Segment::open(disk, dir, number, incarnation)?.read_all(&mut bytes)?;
            let unfinished = if number == 1 { bytes.get(head.len()..).unwrap_or_default() } else { &bytes };
            if !record::all_zero(unfinished) {
                return Err(Error::NoIdentity { dir: dir.to_path_buf() });
            }
        }
        let segment = Segment::create(disk, dir, 1, options.first_segment_bytes, incarnation, &|_| {})?;
        segment.file.write_at(head, 0)?;
        segment.file.sync()?;
        Ok(())
    }

    /// Opens the log of this incarnation: all that was ever reported durable, or an error that says
    /// what is wrong. With [`Flusher::Task`], call it in the runtime that shall flush.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, incarnation: u64, options: Options) -> Result<Self, Error> {
        let mut found = recover::recover(&*disk, dir, incarnation, options.cache_bytes)?;
        let ends = found.index.ends();
        let state = State {
            incarnation,
            vote: found.index.vote,
            committed: found.index.committed,
            purged: ends.purged,
            last: ends.last,
            size_bytes: 0,
        };
        // The writer's state goes on with the stored hint: the next segment's head must match it.
        found.index.committed = found.index.committed_held();
        let index = std::mem::take(&mut found.index);
        let segments = std::mem::take(&mut found.segments);
        let shared = Arc::new(Shared::new(index, segments));
        let ahead = (found.active.number, found.ahead.take());
        let house = House::new(
            Arc::clone(&disk),
            dir.to_path_buf(),
            incarnation,
            options.segment_bytes,
            Arc::clone(&shared),
            ahead,
        );
        let house = Arc::new(house);
        let writer = Writer::new(Arc::clone(&shared), Arc::clone(&house), options.cache_bytes, &found, state);
        let writer = Arc::new(Mutex::new(writer));
        house.prepare(found.active.number + 1);

        let flusher = options.flusher;
        let mut wal = Self { shared, house, writer, flusher, threads: Mutex::default(), task: None };
        match flusher {
            Flusher::Thread => wal.start_threads()?,
            Flusher::Task => wal.start_task(disk),
            Flusher::Inline => wal.house.work(),
        }
        Ok(wal)
    }

    fn start_threads(&mut self) -> io::Result<()> {
        let (shared, writer) = (Arc::clone(&self.shared), Arc::clone(&self.writer));
        let flush = move || {
            while shared.wait() {
                while writer.lock().step() == Step::Full {
                    if !shared.pause(RETRY) {
                        return;
                    }
                }
            }
        };
        let house = Arc::clone(&self.house);
        let flush = std::thread::Builder::new().name("wal-flush".to_owned()).spawn(flush)?;
        self.threads.lock().push(flush);
        let house = std::thread::Builder::new().name("wal-house".to_owned()).spawn(move || house.run())?;
        self.threads.lock().push(house);
        Ok(())
    }

    fn start_task(&mut self, disk: Arc<dyn Disk>) {
        let (shared, writer, house) = (Arc::clone(&self.shared), Arc::clone(&self.writer), Arc::clone(&self.house));
        let flush = async move {
            loop {
                shared.wake_task.notified().await;
                loop {
                    tokio::time::sleep(disk.pause()).await;
                    let step = writer.lock().step();
                    house.work();
                    match step {
                        Step::Worked => {}
                        Step::Full => tokio::time::sleep(RETRY).await,
                        Step::Idle | Step::Failed => break,
                    }
                }
            }
        };
        self.task = Some(tokio::spawn(flush).abort_handle());
    }

    /// Puts an operation in the queue. `act` changes the index first and says what to write.
    fn submit(&self, act: impl FnOnce(&mut Inner) -> io::Result<Option<Op>>) -> io::Result<()> {
        let mut inner = self.shared.lock_alive()?;
        let Some(op) = act(&mut inner)? else { return Ok(()) };
        inner.queue.push(op);
        drop(inner);
        match self.flusher {
            Flusher::Inline => {
                self.flush_here();
            }
            _ => self.shared.wake(),
        }
        Ok(())
    }

    fn flush_here(&self) -> Step {
        let mut writer = self.writer.lock();
        loop {
            match writer.step() {
                Step::Worked => self.house.work(),
                step => return step,
            }
        }
    }

    /// Writes what waits, then ends the flusher. Afterwards nothing is accepted.
    pub fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.wake();
        self.shared.room.notify_waiters();
        let threads = std::mem::take(&mut *self.threads.lock());
        self.house.close();
        for thread in threads {
            // A panic there was reported when it happened; closing goes on.
            let _ = thread.join();
        }
        if self.flush_here() == Step::Full {
            self.shared.fail(&io::Error::new(io::ErrorKind::StorageFull, "closed while the disk was full"));
            self.flush_here();
        }
    }

    /// Tells when the log fails, and why. A node must stop then.
    pub fn fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.shared.fatal()
    }

    /// Whether writes wait for room on the disk.
    pub fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// What was written and synced since opening.
    pub fn io(&self) -> IoCounts {
        self.shared.stats.counts()
    }

    /// What the segments take on disk, but for one made ahead.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.lock().segments.values().map(|known| known.segment.capacity).sum()
    }

    /// Calls back when all that was submitted before is on disk.
    pub fn barrier(&self, done: Done) -> io::Result<()> {
        self.submit(|_| Ok(Some(Op::Barrier(Some(done)))))
    }

    fn fetch(&self, inner: &Inner, plan: Plan) -> impl FnOnce() -> io::Result<Vec<Entry>> + Send + 'static {
        let mut wanted = Vec::new();
        for (id, place) in plan.places {
            let known = inner.segments.get(&place.segment).map(|known| known.segment.clone());
            wanted.push((id, place, known));
        }
        move || {
            let mut entries = Vec::with_capacity(wanted.len() + plan.cached.len());
            let mut rest = &wanted[..];
            while let Some((_, first, segment)) = rest.first() {
                let segment = segment.as_ref().ok_or_else(|| io::Error::other("a segment in use was removed"))?;
                let run = run_length(rest);
                read_run(segment, *first, &rest[..run], &mut entries)?;
                rest = &rest[run..];
            }
            entries.extend(plan.cached);
            Ok(entries)
        }
    }
}

const RETRY: Duration = Duration::from_millis(limits::LOG_RETRY_MS);

type Wanted = (LogId, Place, Option<Segment>);

/// How many of the first places can be read at once: same segment, near each other, and not too
/// much together.
fn run_length(wanted: &[Wanted]) -> usize {
    let first = wanted[0].1;
    let near = |(_, place, _): &&Wanted| {
        place.segment == first.segment
            && place.offset >= first.offset
            && u64::from(place.offset - first.offset) + u64::from(place.size) <= limits::LOG_READ_BYTES
    };
    wanted.iter().take_while(near).count().max(1)
}

/// Reads neighbouring records with one read. The payloads share its buffer: they are for sending,
/// not for keeping.
fn read_run(segment: &Segment, first: Place, run: &[Wanted], entries: &mut Vec<Entry>) -> io::Result<()> {
    let end = run.iter().map(|(_, place, _)| place.offset + place.size).max().unwrap_or(first.offset);
    let mut bytes = vec![0; (end - first.offset) as usize];
    read_full(&*segment.file, &mut bytes, first.offset.into())?;
    let bytes = Bytes::from(bytes);
    for (id, place, _) in run {
        let from = (place.offset - first.offset) as usize;
        let record = bytes.slice(from..from + place.size as usize);
        let damaged = |what: String| Error::Damaged { file: segment.path.clone(), offset: place.offset.into(), what };
        let entry = record::read_entry(&record, segment.seed).map_err(|what| damaged(what.to_owned()))?;
        if entry.id != *id {
            return Err(damaged(format!("it holds entry {} instead of {}", entry.id.index, id.index)).into());
        }
        entries.push(entry);
    }
    Ok(())
}

impl Log for Wal {
    fn ends(&self) -> Ends {
        self.shared.lock().index.ends()
    }

    fn vote(&self) -> Option<Vote> {
        self.shared.lock().index.vote
    }

    fn committed(&self) -> Option<LogId> {
        self.shared.lock().index.committed
    }

    fn append(&self, entries: Vec<Entry>, done: Done) -> io::Result<()> {
        self.submit(|inner| {
            for entry in &entries {
                inner
                    .index
                    .push(entry.clone(), None)
                    .map_err(|what| io::Error::new(io::ErrorKind::InvalidInput, what))?;
                inner.queue_bytes += entry.cost_bytes();
            }
            Ok(Some(Op::Append(entries.into_iter(), Some(done))))
        })
    }

    fn save_vote(&self, vote: Vote, done: Done) -> io::Result<()> {
        self.submit(|inner| {
            inner.index.vote = Some(vote);
            Ok(Some(Op::Vote(vote, Some(done))))
        })
    }

    fn save_committed(&self, committed: Option<LogId>) -> io::Result<()> {
        let mut inner = self.shared.lock_alive()?;
        inner.index.committed = committed;
        inner.committed_changed = true;
        Ok(())
    }

    fn truncate_after(&self, last: Option<LogId>) -> io::Result<()> {
        self.submit(|inner| {
            let before = inner.index.last();
            inner.index.truncate(last);
            let left = inner.index.last();
            Ok((left != before).then_some(Op::Truncate(left)))
        })
    }

    fn purge(&self, upto: LogId) -> io::Result<()> {
        self.submit(|inner| Ok(inner.index.purge(upto).then_some(Op::Purge(upto))))
    }

    fn read(&self, range: Range<u64>, max_bytes: u64) -> io::Result<Read> {
        let inner = self.shared.lock_alive()?;
        let plan = inner.index.plan(range, max_bytes);
        if plan.places.is_empty() {
            return Ok(Read::Ready(plan.cached));
        }
        let fetch = self.fetch(&inner, plan);
        drop(inner);
        match self.flusher {
            Flusher::Thread => Ok(Read::Blocking(Box::new(fetch))),
            _ => Ok(Read::Ready(fetch()?)),
        }
    }

    fn bytes_after(&self, index: Option<u64>) -> u64 {
        let inner = self.shared.lock();
        if !inner.index.has_after(index) {
            return 0;
        }
        let Some(place) = inner.index.place_after(index) else { return inner.queue_bytes as u64 };
        let used = inner.segments.range(place.segment..).map(|(_, known)| known.used).sum::<u64>();
        used.saturating_sub(place.offset.into()) + inner.queue_bytes as u64
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        async {
            loop {
                let mut room = std::pin::pin!(self.shared.room.notified());
                room.as_mut().enable();
                let waiting = self.shared.lock().queue_bytes >= limits::LOG_QUEUE_BYTES;
                if !waiting || self.shared.lock_alive().is_err() {
                    return;
                }
                room.await;
            }
        }
        .boxed()
    }
}

impl Drop for Wal {
    /// Ends the flusher. A task is dropped with what waits, as in a crash; call [`Wal::close`] to
    /// have it written.
    fn drop(&mut self) {
        match (&self.task, self.flusher) {
            (Some(task), _) => task.abort(),
            (None, Flusher::Thread) => self.close(),
            (None, _) => {}
        }
    }
}
