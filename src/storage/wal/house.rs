//! The log's housekeeping, off the flush path: the next segment is made ahead, freed ones are
//! removed. Done by a thread of its own, or by whoever flushes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::segment::Segment;
use super::shared::Shared;
use crate::storage::disk::Disk;

pub struct House {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    incarnation: u64,
    segment_bytes: u64,
    shared: Arc<Shared>,
    /// Held while a segment is made, so that the writer waits instead of making another.
    ahead: Mutex<Ahead>,
    chores: Mutex<Chores>,
    wake: Condvar,
}

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
        let mut ahead = self.ahead.lock();
        let segment = match ahead.ready.take() {
            Some(segment) if segment.number == number && segment.capacity >= room_bytes => segment,
            _ => self.create(number, room_bytes)?,
        };
        ahead.taken = number;
        Ok(segment)
    }

    fn create(&self, number: u32, room_bytes: u64) -> io::Result<Segment> {
        let capacity = self.segment_bytes.max(room_bytes.next_multiple_of(4096));
        Segment::create(&*self.disk, &self.dir, number, capacity, self.incarnation)
    }

    /// Does what was asked for. A segment that cannot be made ahead is no failure yet: the writer
    /// tries again when it needs it, and knows what to say.
    pub fn work(&self) {
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
                ahead.ready = self.create(number, 0).ok();
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
            self.work();
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
