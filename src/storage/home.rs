//! A node's data directory as a whole: lock, identity, log and snapshots, opened in the one order
//! that is safe.
//!
//! ```text
//! <data>/lock        held by the process that runs the node
//! <data>/identity    written last when the directory is made
//! <data>/log/        segments
//! <data>/snapshots/
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, Space};
use super::error::Error;
use super::identity::{ClusterId, Identity};
use super::log::{Ends, Log, LogId};
use super::snapshots::Snapshots;
use super::space::Room;
use super::wal::{Options, Wal};

/// See the module. Holds the directory's lock.
pub struct Home {
    /// Whether this call made the directory.
    pub is_new: bool,
    pub log: Arc<Wal>,
    pub snapshots: Snapshots,
    identity: Mutex<Identity>,
    room: Mutex<Room>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    _lock: Box<dyn Send + Sync>,
}

impl Home {
    /// Opens the directory of `node`, or makes it with `incarnation`, a fresh random number.
    /// An identity without its log is refused, and so is a log without its identity.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, node: u64, incarnation: u64, options: Options) -> Result<Self, Error> {
        disk.create_dir(dir)?;
        let lock = disk.lock(&dir.join("lock")).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::InUse { dir: dir.to_path_buf() },
            _ => Error::Io(error),
        })?;
        let log_dir = dir.join("log");
        let found = Identity::read(&*disk, dir)?;
        let is_new = found.is_none();
        let identity = match found {
            Some(identity) => identity,
            None => {
                Wal::create(&*disk, &log_dir, incarnation, &options)?;
                let identity = Identity { node, incarnation, cluster: None };
                identity.write(&*disk, dir)?;
                identity
            }
        };
        if identity.node != node {
            let (found, wanted) = (format!("node {}", identity.node), format!("node {node}"));
            return Err(Error::OtherNode { dir: dir.to_path_buf(), found, wanted });
        }
        disk.create_dir(&log_dir)?;
        let log = Wal::open(Arc::clone(&disk), &log_dir, identity.incarnation, options)?;
        let snapshots = Snapshots::open(Arc::clone(&disk), &dir.join("snapshots"))?;
        Ok(Self {
            is_new,
            log: Arc::new(log),
            snapshots,
            identity: Mutex::new(identity),
            room: Mutex::default(),
            disk,
            dir: dir.to_path_buf(),
            _lock: lock,
        })
    }

    pub fn identity(&self) -> Identity {
        self.identity.lock().clone()
    }

    /// Remembers for good which cluster this node belongs to. A second cluster is refused.
    pub fn join(&self, cluster: ClusterId) -> Result<(), Error> {
        let mut identity = self.identity.lock();
        match identity.cluster {
            Some(known) if known == cluster => return Ok(()),
            Some(known) => {
                let (found, wanted) = (format!("cluster {known}"), format!("cluster {cluster}"));
                return Err(Error::OtherNode { dir: self.dir.clone(), found, wanted });
            }
            None => {}
        }
        let joined = Identity { cluster: Some(cluster), ..identity.clone() };
        joined.write(&*self.disk, &self.dir)?;
        *identity = joined;
        Ok(())
    }

    /// What is left of the file system.
    pub fn space(&self) -> io::Result<Space> {
        self.disk.space(&self.dir)
    }

    /// What that allows. Ask every so often: to get better takes more than to get worse.
    pub fn room(&self) -> io::Result<Room> {
        let snapshot_bytes = self.snapshots.latest().map_or(0, |snapshot| snapshot.file_bytes);
        let mut room = self.room.lock();
        *room = room.next(self.space()?, snapshot_bytes, self.log.is_full());
        Ok(*room)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses to start from a snapshot that the log does not reach back to.
    pub fn check_covers(&self, snapshot: Option<LogId>) -> Result<(), Error> {
        let Ends { purged, .. } = self.log.ends();
        let covered = snapshot.map(|last| last.index);
        match purged {
            Some(purged) if covered < Some(purged.index) => Err(Error::Damaged {
                file: self.dir.join("snapshots"),
                offset: 0,
                what: format!(
                    "the log begins after entry {}, the newest whole snapshot ends {}",
                    purged.index,
                    covered.map_or("nowhere: there is none".to_owned(), |index| format!("at entry {index}"))
                ),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Crash, Fault, SimDisk};
    use crate::storage::log::Vote;
    use crate::storage::wal::Flusher;

    const SMALL: Options =
        Options { flusher: Flusher::Inline, segment_bytes: 4096, first_segment_bytes: 4096, cache_bytes: 4096 };

    fn open(disk: &SimDisk, incarnation: u64) -> Result<Home, Error> {
        Home::open(Arc::new(disk.clone()), Path::new("/data"), 1, incarnation, SMALL)
    }

    fn refused(opened: Result<Home, Error>) -> String {
        opened.err().expect("refused").to_string()
    }

    #[test]
    fn a_directory_is_made_once_and_keeps_its_incarnation() {
        let disk = SimDisk::new();
        let home = open(&disk, 11).expect("made");
        assert!(home.is_new);
        assert!(refused(open(&disk, 12)).contains("in use by another process"));
        home.join(ClusterId([1; 16])).expect("joined");
        home.join(ClusterId([1; 16])).expect("joined again");
        assert!(home.join(ClusterId([2; 16])).is_err());
        drop(home);
        disk.crash(Crash::DropUnsynced);
        let home = open(&disk, 12).expect("opened");
        assert_eq!(home.identity(), Identity { node: 1, incarnation: 11, cluster: Some(ClusterId([1; 16])) });
        assert!(!home.is_new);
        drop(home);
        let other = Home::open(Arc::new(disk.clone()), Path::new("/data"), 2, 12, SMALL);
        assert!(refused(other).contains("belongs to node 1, but the configuration says node 2"));
    }

    #[test]
    fn half_of_a_node_is_refused() {
        let disk = SimDisk::new();
        let home = open(&disk, 11).expect("made");
        home.log.save_vote(Vote { term: 1, node: 1, committed: false }, Box::new(|_| {})).expect("saved");
        drop(home);
        let logless = disk.fork();
        for number in 1..=2 {
            // The second was made ahead.
            logless.remove(&Path::new("/data/log").join(format!("{number:010}.wal"))).expect("removed");
        }
        assert!(refused(open(&logless, 12)).contains("has an identity but no log"));
        disk.remove(Path::new("/data/identity")).expect("removed");
        assert!(refused(open(&disk, 12)).contains("has a log but no identity"));
    }

    #[test]
    fn a_directory_that_was_not_finished_is_made_again() {
        let disk = SimDisk::new();
        open(&disk, 1).expect("made");
        for operation in 0..disk.operations() {
            for crash in [Crash::DropUnsynced, Crash::KeepUnsynced, Crash::Tear(operation)] {
                let disk = SimDisk::new();
                disk.fail(operation, Fault::Halt);
                let first = open(&disk, 1).map(drop);
                disk.crash(crash);
                let home = open(&disk, 2).unwrap_or_else(|error| panic!("operation {operation}, {crash:?}: {error}"));
                assert!(first.is_err() || home.identity().incarnation == 1);
            }
        }
    }

    #[test]
    fn a_log_that_does_not_reach_the_snapshot_is_refused() {
        let disk = SimDisk::new();
        let home = open(&disk, 1).expect("made");
        home.check_covers(None).expect("nothing is purged");
        home.log.purge(LogId { term: 1, index: 5 }).expect("purged");
        home.check_covers(Some(LogId { term: 1, index: 5 })).expect("covered");
        assert!(home.check_covers(Some(LogId { term: 1, index: 4 })).is_err());
        assert!(home.check_covers(None).is_err());
    }
}
