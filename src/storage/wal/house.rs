//! The log's housekeeping, off the flush path: the next segment is made ahead, freed ones are
//! removed. Done by a thread of its own, or by whoever flushes.
//!
//! A segment written in one go would keep the disk from the log's own syncs for tens of milliseconds. So the thread
//! takes its time over it, as long as it is further in the next segment than twice as far as the
//! writer is in this one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::segment::Segment;
use super::shared::Shared;
use crate::storage::disk::Disk;
use crate::types::limits;

pub struct House {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    incarnation: u64,
    segment_bytes: u64,
    shared: Arc<Shared>,
    /// Held while a segment is made, so that the writer waits instead of making another.
    ahead: Mutex<Ahead>,
    /// How far the writer is in its segment, in thousandths.
    reached: AtomicU64,
    /// The writer waits for the next segment.
    wanted: AtomicBool,
    chores: Mutex<Chores>,
    wake: Condvar,
}

const THOUSAND: u64 = 1_000;

struct Ahead {
    ready: Option<Segment>,
    /// The highest number in use. A late wish for it must not make, and so empty, it again.
    taken: u32,
}

#[derive(Default)]
struct Chores {
    prepare: Option<u32>,
    /// Oldest first; removed in this order, so that a crash leaves no hole.
    remove: Vec<PathBuf>,
    closing: bool,
}

impl House {
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        incarnation: u64,
        segment_bytes: u64,
        shared: Arc<Shared>,
        (taken, ready): (u32, Option<Segment>),
    ) -> Self {
        Self {
            disk,
            dir,
            incarnation,
            segment_bytes,
            shared,
            ahead: Mutex::new(Ahead { ready, taken }),
            reached: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            chores: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Asks for a segment ahead.
    pub fn prepare(&self, number: u32) {
        self.chores.lock().prepare = Some(number);
        self.wake.notify_one();
    }

    /// Asks for segments to be removed.
    pub fn remove(&self, paths: Vec<PathBuf>) {
        if !paths.is_empty() {
            self.chores.lock().remove.extend(paths);
            self.wake.notify_one();
        }
    }

    /// Segment `number` with room for at least `room_bytes`: the one made ahead, or a new one.
    pub fn take(&self, number: u32, room_bytes: u64) -> io::Result<Segment> {
        self.wanted.store(true, Relaxed);
        let mut ahead = self.ahead.lock();
        self.wanted.store(false, Relaxed);
        self.reached.store(0, Relaxed);
        let segment = match ahead.ready.take() {
            Some(segment) if segment.number == number && segment.capacity >= room_bytes => segment,
            _ => self.create(number, room_bytes, &|_| {})?,
        };
        ahead.taken = number;
        Ok(segment)
    }

    /// The writer is so far in its segment.
    pub fn reached(&self, used: u64, capacity: u64) {
        self.reached.store(used * THOUSAND / capacity.max(1), Relaxed);
    }

    /// Rests between two pieces of the segment ahead, if there is time.
    fn pace(&self, done: u64) {
        let mut chores = self.chores.lock();
        if !chores.closing && self.has_time(done) {
            self.wake.wait_for(&mut chores, Duration::from_millis(limits::SEGMENT_PIECE_REST_MS));
        }
    }

    fn has_time(&self, done: u64) -> bool {
        let far = done * THOUSAND / self.segment_bytes.max(1) >= 2 * self.reached.load(Relaxed);
        far && !self.wanted.load(Relaxed)
    }

    fn create(&self, number: u32, room_bytes: u64, pace: &dyn Fn(u64)) -> io::Result<Segment> {
        let capacity = self.segment_bytes.max(room_bytes.next_multiple_of(4096));
        Segment::create(&*self.disk, &self.dir, number, capacity, self.incarnation, pace)
    }

    /// Does what was asked for. A segment that cannot be made ahead is no failure yet: the writer
    /// tries again when it needs it, and knows what to say.
    pub fn work(&self) {
        self.work_at(&|_| {});
    }

    fn work_at(&self, pace: &dyn Fn(u64)) {
        let (prepare, remove) = {
            let mut chores = self.chores.lock();
            (chores.prepare.take(), std::mem::take(&mut chores.remove))
        };
        for path in remove {
            let removed = self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.dir));
            if let Err(error) = removed {
                self.shared.fail(&error);
                return;
            }
        }
        if let Some(number) = prepare {
            let mut ahead = self.ahead.lock();
            if ahead.ready.is_none() && number > ahead.taken {
                ahead.ready = self.create(number, 0, pace).ok();
            }
        }
    }

    /// The housekeeping thread.
    pub fn run(&self) {
        loop {
            let mut chores = self.chores.lock();
            while !chores.closing && chores.prepare.is_none() && chores.remove.is_empty() {
                self.wake.wait(&mut chores);
            }
            let closing = chores.closing;
            if closing {
                // A segment ahead is for later; what is freed goes now.
                chores.prepare = None;
            }
            drop(chores);
            self.work_at(&|done| self.pace(done));
            if closing {
                return;
            }
        }
    }

    pub fn close(&self) {
        self.chores.lock().closing = true;
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::time::Instant;

    use super::*;
    use crate::storage::disk::SimDisk;
    use crate::storage::wal::index::Index;

    #[test]
    fn a_segment_ahead_takes_its_time_until_the_writer_comes_near() {
        let (disk, shared) = (Arc::new(SimDisk::default()), Arc::new(Shared::new(Index::default(), BTreeMap::new())));
        let house = House::new(disk, PathBuf::from("/log"), 7, 1000, shared, (1, None));
        let began = Instant::now();
        house.pace(0);
        assert!(began.elapsed() >= Duration::from_millis(limits::SEGMENT_PIECE_REST_MS), "nothing is written yet");
        house.reached(30, 100);
        assert_eq!([0, 599, 600, 1000].map(|done| house.has_time(done)), [false, false, true, true]);
        house.wanted.store(true, Relaxed);
        assert!(!house.has_time(1000), "the writer waits");
    }
}
