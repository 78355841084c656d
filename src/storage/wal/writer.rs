//! The one writer: takes what waits, writes it at once, syncs it once, and calls back.
//!
//! Whoever runs [`Writer::step`] (a thread, a task, or the caller itself) does so under one lock, so
//! the order of the queue is the order of the file and of the callbacks.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use super::house::House;
use super::index::Place;
use super::record::{self, Encoder, State};
use super::recover::{Known, Recovered};
use super::segment::Segment;
use super::shared::{Op, Shared};
use crate::storage::log::{Done, LogId};
use crate::types::limits;
use crate::types::mutant::{self, Mutant};

/// What a step found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing waits.
    Idle,
    Worked,
    /// The disk has no room for the next segment; what waits keeps its order. Try again later.
    Full,
    /// The log is poisoned; whoever waited was told.
    Failed,
}

pub struct Writer {
    shared: Arc<Shared>,
    house: Arc<House>,
    cache_bytes: usize,
    active: Segment,
    offset: u64,
    flush: u64,
    encoder: Encoder,
    /// What the records up to here have built: the next segment's head.
    state: State,
    /// Taken from the queue, not yet encoded.
    backlog: VecDeque<Op>,
    batch: Batch,
}

/// What the bytes in the encoder stand for.
#[derive(Default)]
struct Batch {
    done: Vec<Done>,
    places: Vec<(LogId, Place)>,
    appended_bytes: usize,
    last_index: Option<u64>,
    purged: Option<LogId>,
}

enum Stuck {
    Full,
    Fatal(io::Error),
}

impl From<io::Error> for Stuck {
    fn from(error: io::Error) -> Self {
        Stuck::Fatal(error)
    }
}

impl Writer {
    /// Goes on where recovery ended; `state` is what it found.
    pub fn new(shared: Arc<Shared>, house: Arc<House>, cache_bytes: usize, found: &Recovered, state: State) -> Self {
        let encoder = Encoder::new(found.active.seed, found.flush);
        Self {
            shared,
            house,
            cache_bytes,
            active: found.active.clone(),
            offset: found.offset,
            flush: found.flush,
            encoder,
            state,
            backlog: VecDeque::new(),
            batch: Batch::default(),
        }
    }

    /// Writes and syncs all that waits now.
    pub fn step(&mut self) -> Step {
        if self.shared.failed().is_some() {
            self.refuse_all();
            return Step::Failed;
        }
        self.shared.take_queue(&mut self.backlog);
        if self.backlog.is_empty() {
            return Step::Idle;
        }
        match self.drain() {
            Ok(()) => Step::Worked,
            Err(Stuck::Full) => {
                self.shared.set_full(true);
                Step::Full
            }
            Err(Stuck::Fatal(error)) => {
                self.shared.fail(&error);
                self.refuse_all();
                Step::Failed
            }
        }
    }

    fn drain(&mut self) -> Result<(), Stuck> {
        while let Some(need) = self.backlog.front().map(Op::size) {
            if !self.fits(need) {
                self.commit()?;
            }
            if !self.fits(need) {
                self.roll(need)?;
            }
            self.encode_next();
        }
        Ok(self.commit()?)
    }

    /// Whether the flush can take `need` more bytes, in size and in the segment's room.
    fn fits(&self, need: usize) -> bool {
        let room = self.active.capacity.saturating_sub(self.offset) as usize;
        let len = self.encoder.len();
        len + need <= room && (len == 0 || self.flush_is_head() || len + need <= limits::MAX_FLUSH_BYTES)
    }

    /// A new segment's state record goes out with at least one record behind it.
    fn flush_is_head(&self) -> bool {
        self.offset == 0 && self.encoder.len() <= record::MAX_SMALL_BYTES
    }

    /// Encodes the next record of the backlog's first operation.
    fn encode_next(&mut self) {
        let Some(op) = self.backlog.front_mut() else { return };
        let offset = self.offset as usize + self.encoder.len();
        let done = match op {
            Op::Append(entries, done) => {
                if let Some(entry) = entries.next() {
                    self.encoder.entry(&entry);
                    let size = self.offset as usize + self.encoder.len() - offset;
                    let place = Place { segment: self.active.number, offset: offset as u32, size: size as u32 };
                    self.batch.places.push((entry.id, place));
                    self.batch.appended_bytes += entry.cost_bytes();
                    self.batch.last_index = self.batch.last_index.max(Some(entry.id.index));
                    self.state.last = Some(entry.id);
                }
                if entries.len() > 0 {
                    return;
                }
                done.take()
            }
            Op::Vote(vote, done) => {
                if !mutant::is(Mutant::ForgetVote) {
                    self.encoder.vote(*vote);
                    self.state.vote = Some(*vote);
                }
                done.take()
            }
            Op::Committed(committed) => {
                self.encoder.committed(*committed);
                self.state.committed = *committed;
                None
            }
            Op::Truncate(last) => {
                self.encoder.truncate(*last);
                self.state.last = *last;
                None
            }
            Op::Purge(upto) => {
                self.encoder.purge(*upto);
                self.state.purged = Some(*upto);
                if self.state.last.is_none_or(|last| last.index <= upto.index) {
                    self.state.last = Some(*upto);
                }
                self.batch.purged = Some(*upto);
                None
            }
            Op::Barrier(done) => done.take(),
        };
        self.backlog.pop_front();
        if mutant::is(Mutant::AckBeforeSync) {
            done.into_iter().for_each(|done| done(Ok(())));
            return;
        }
        self.batch.done.extend(done);
    }

    /// One write, one sync, then the callbacks. A failed sync is never tried again: the pages may
    /// be gone while a second sync succeeds.
    fn commit(&mut self) -> io::Result<()> {
        if !self.encoder.is_empty() {
            let len = self.encoder.len();
            let bytes = self.encoder.finish_page(self.offset, self.active.capacity);
            self.active.file.write_at(bytes, self.offset)?;
            let before = Instant::now();
            if !mutant::is(Mutant::SkipSync) {
                self.active.file.sync()?;
            }
            self.shared.stats.flushed(len, before.elapsed());
            self.offset += len as u64;
            self.house.reached(self.offset, self.active.capacity);
            self.flush += 1;
            self.encoder.restart(self.active.seed, self.flush, limits::MAX_FLUSH_BYTES);
        }
        let batch = std::mem::take(&mut self.batch);
        self.publish(&batch);
        for done in batch.done {
            done(Ok(()));
        }
        Ok(())
    }

    /// Tells readers where the entries are now, and drops the segments that a purge freed: the
    /// active one begins with a state record, and this flush of it is on disk.
    fn publish(&self, batch: &Batch) {
        let mut inner = self.shared.lock();
        let known = inner.segments.entry(self.active.number).or_insert_with(|| Known {
            segment: self.active.clone(),
            used: 0,
            last_index: None,
        });
        known.used = self.offset;
        known.last_index = known.last_index.max(batch.last_index);
        for (id, place) in &batch.places {
            inner.index.placed(*id, *place);
        }
        inner.index.evict(self.cache_bytes);
        inner.queue_bytes -= batch.appended_bytes;
        let mut freed = Vec::new();
        if let Some(upto) = batch.purged {
            while let Some(oldest) = inner.segments.first_entry()
                && *oldest.key() != self.active.number
                && oldest.get().last_index.is_none_or(|last| last <= upto.index)
            {
                freed.push(oldest.remove().segment.path);
            }
        }
        drop(inner);
        if batch.appended_bytes > 0 {
            self.shared.room.notify_waiters();
        }
        self.house.remove(freed);
    }

    /// Goes on in the next segment, which begins with the state so far.
    fn roll(&mut self, need: usize) -> Result<(), Stuck> {
        let number = self.active.number + 1;
        let taken = self.house.take(number, (need + record::MAX_SMALL_BYTES) as u64);
        self.active = taken.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Stuck::Full,
            _ => Stuck::Fatal(error),
        })?;
        self.shared.set_full(false);
        self.offset = 0;
        self.encoder.restart(self.active.seed, self.flush, limits::MAX_FLUSH_BYTES);
        self.encoder.state(&State { size_bytes: self.active.capacity, ..self.state });
        self.house.prepare(number + 1);
        Ok(())
    }

    /// Tells everybody who waits that the log has failed, in order.
    fn refuse_all(&mut self) {
        self.shared.take_queue(&mut self.backlog);
        let why = self.shared.failed().map_or_else(|| "the log has failed".to_owned(), |why| why.to_string());
        let error = || io::Error::other(why.clone());
        for done in std::mem::take(&mut self.batch).done {
            done(Err(error()));
        }
        for op in std::mem::take(&mut self.backlog) {
            if let Op::Append(_, Some(done)) | Op::Vote(_, Some(done)) | Op::Barrier(Some(done)) = op {
                done(Err(error()));
            }
        }
    }
}
