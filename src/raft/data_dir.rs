//! The data directory as Raft's tasks look at it: its room, its size, what the log counts.

use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::{DiskStatus, Metrics};
use crate::storage::Log;
use crate::storage::home::Home;
use crate::storage::snapshots::Snapshots;
use crate::storage::space::Room;
use crate::storage::wal::Wal;

/// See the module.
pub struct DataDir {
    home: Arc<Home>,
    log: Arc<Wal>,
    snapshots: Snapshots,
    room: Mutex<Room>,
}

impl DataDir {
    pub fn new(home: Arc<Home>) -> Self {
        let (log, snapshots) = (Arc::clone(&home.log), home.snapshots.clone());
        Self { home, log, snapshots, room: Mutex::default() }
    }

    pub fn log(&self) -> Arc<dyn Log> {
        self.log.clone()
    }

    pub fn snapshots(&self) -> Snapshots {
        self.snapshots.clone()
    }

    /// Looks at the disk; cheap.
    pub fn look(&self) -> Room {
        match self.home.room() {
            Ok(room) => *self.room.lock() = room,
            Err(error) => tracing::warn!(%error, "cannot tell the room that is left on the disk"),
        }
        *self.room.lock()
    }

    pub fn status(&self) -> DiskStatus {
        let space = self.home.space().ok();
        DiskStatus {
            path: self.home.dir().display().to_string(),
            free_bytes: space.map_or(0, |space| space.free_bytes),
            total_bytes: space.map_or(0, |space| space.total_bytes),
            log_bytes: self.log.disk_bytes(),
            snapshot_bytes: self.snapshots.disk_bytes(),
            status: self.room.lock().as_str(),
        }
    }

    pub fn fill_metrics(&self, metrics: &mut Metrics) {
        let io = self.log.io();
        metrics.fsyncs = io.fsyncs;
        metrics.fsync_micros = io.fsync_micros;
        metrics.fsync_micros_buckets = io.fsync_micros_buckets;
        metrics.log_bytes_written = io.bytes_written;
    }

    /// Why the log takes nothing any more.
    pub fn log_error(&self) -> Option<String> {
        self.log.fatal().borrow().as_ref().map(|error| error.to_string())
    }

    /// Writes what is left and ends the log's threads. Nothing may use it afterwards.
    pub fn close(&self) {
        self.log.close();
    }
}
