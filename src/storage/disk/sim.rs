//! A disk in memory that behaves as badly as a real one may.
//!
//! Writes sit in a cache until their file is synced, names until their directory is. A crash keeps
//! what was synced and, by the chosen [`Crash`], none, all or an arbitrary part of the rest, sector
//! by sector. A failed sync drops the dirty data for good, as Linux does. Everything is
//! deterministic: the same calls and seeds give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Disk, File, Space};

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;
/// As a good disk.
const FLUSH_TAKES: Duration = Duration::from_micros(300);

/// What becomes of unsynced writes and names.
#[derive(Clone, Copy, Debug)]
pub enum Crash {
    /// All are lost.
    DropUnsynced,
    /// All survive, as when only the process died.
    KeepUnsynced,
    /// Any sectors survive and any first part of the changes of names, by seed.
    Tear(u64),
}

/// What happens at a chosen operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// That operation fails; a write may be done half.
    Error,
    /// That operation and all after it fail, until [`SimDisk::crash`].
    Halt,
}

/// See the module. Cheap to clone; clones share the disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    goes_on: Arc<Condvar>,
}

#[derive(Clone, Default)]
struct State {
    /// Counts crashes: handles from before one are dead.
    boot: u64,
    operations: u64,
    fault: Option<(u64, Fault)>,
    halted: bool,
    hangs: bool,
    slower_by: Duration,
    capacity: Option<u64>,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<NameChange>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
}

#[derive(Clone, Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone)]
enum NameChange {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

struct SimFile {
    state: Arc<Mutex<State>>,
    goes_on: Arc<Condvar>,
    boot: u64,
    inode: usize,
}

struct SimLock {
    state: Arc<Mutex<State>>,
    boot: u64,
    path: PathBuf,
}

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk of its own with the same content.
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.state.lock().clone())), goes_on: Arc::default() }
    }

    /// Loses power: open files and locks are gone, unsynced data goes the way of `crash`.
    pub fn crash(&self, crash: Crash) {
        let mut state = self.state.lock();
        let mut dice = Dice(match crash {
            Crash::Tear(seed) => seed,
            _ => 0,
        });
        for inode in &mut state.inodes {
            inode.crash(crash, &mut dice);
        }
        let changes = std::mem::take(&mut state.unsynced_names);
        let kept = match crash {
            Crash::DropUnsynced => 0,
            Crash::KeepUnsynced => changes.len(),
            Crash::Tear(_) => dice.below(changes.len() as u64 + 1) as usize,
        };
        for change in &changes[..kept] {
            change.apply(&mut state.durable_names);
        }
        state.names = state.durable_names.clone();
        state.locks.clear();
        state.boot += 1;
        state.halted = false;
        state.fault = None;
    }

    /// Lets an operation fail: the `after`th changing one from now, counted from 0.
    pub fn fail(&self, after: u64, fault: Fault) {
        let mut state = self.state.lock();
        state.fault = Some((state.operations + after, fault));
    }

    /// Changing operations so far.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Bounds what the files together may hold.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// Has room for nothing more.
    pub fn fill(&self) {
        let mut state = self.state.lock();
        state.capacity = Some(state.used());
    }

    /// Each flush takes so much longer than usual.
    pub fn slow_down(&self, by: Duration) {
        self.state.lock().slower_by = by;
    }

    /// Hangs: whoever writes or syncs a file waits, on its thread, until it goes on.
    pub fn hang(&self, hangs: bool) {
        self.state.lock().hangs = hangs;
        self.goes_on.notify_all();
    }

    /// Changes a file's bytes behind everybody's back, as rot does.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state.lock();
        let inode = state.names[path];
        let inode = &mut state.inodes[inode];
        change(&mut inode.current);
        inode.durable = inode.current.clone();
        inode.dirty.clear();
    }

    /// A file's bytes as a reader sees them.
    pub fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.state.lock();
        state.inodes[state.names[path]].current.clone()
    }
}

impl State {
    /// Counts a changing operation and lets the planned one fail.
    fn change(&mut self) -> io::Result<()> {
        if self.halted {
            return Err(io::Error::other("the disk is gone"));
        }
        let operation = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, fault)) if at == operation => {
                self.halted = fault == Fault::Halt;
                self.fault = None;
                Err(io::Error::other(format!("injected failure at operation {operation}")))
            }
            _ => Ok(()),
        }
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()));
        self.names.get(path).copied().ok_or_else(missing)
    }

    fn rename_now(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].current.len() as u64).sum()
    }

    /// Refuses to grow past the capacity.
    fn grow(&self, by: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if self.used() + by > capacity => {
                Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated disk"))
            }
            _ => Ok(()),
        }
    }
}

impl Inode {
    fn write(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
    }

    fn crash(&mut self, crash: Crash, dice: &mut Dice) {
        for (offset, data) in std::mem::take(&mut self.dirty) {
            match crash {
                Crash::DropUnsynced => {}
                Crash::KeepUnsynced => Self::write(&mut self.durable, offset, &data),
                Crash::Tear(_) => {
                    // Sectors are aligned in the file, not in the write.
                    let mut done = 0;
                    while done < data.len() {
                        let position = offset as usize + done;
                        let piece = (SECTOR_BYTES - position % SECTOR_BYTES).min(data.len() - done);
                        if dice.below(2) == 0 {
                            Self::write(&mut self.durable, position as u64, &data[done..done + piece]);
                        }
                        done += piece;
                    }
                }
            }
        }
        self.current = self.durable.clone();
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            NameChange::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            NameChange::Unlink(path) => {
                names.remove(path);
            }
            NameChange::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (NameChange::Link(path, _) | NameChange::Unlink(path) | NameChange::Rename(_, path)) = self;
        path.parent() == Some(dir)
    }
}

/// A small seeded generator (splitmix64): the simulation needs no better.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

impl SimDisk {
    fn link(&self, state: &mut State, path: &Path, bytes: Vec<u8>) -> Arc<dyn File> {
        let inode = state.inodes.len();
        state.inodes.push(Inode { durable: bytes.clone(), current: bytes, dirty: Vec::new() });
        state.rename_now(NameChange::Link(path.to_path_buf(), inode));
        Arc::new(SimFile { state: self.state.clone(), goes_on: self.goes_on.clone(), boot: state.boot, inode })
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        state.directories.insert(path.to_path_buf());
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        state.change()?;
        Ok(self.link(&mut state, path, Vec::new()))
    }

    fn create_zeroed(&self, path: &Path, len: u64, _pace: &dyn Fn(u64)) -> io::Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        let half = state.change().err();
        if half.is_none() {
            state.grow(len)?;
        }
        let len = if half.is_some() { len / 2 } else { len };
        let file = self.link(&mut state, path, vec![0; len as usize]);
        half.map_or(Ok(file), Err)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let state = self.state.lock();
        let inode = state.inode(path)?;
        Ok(Arc::new(SimFile { state: self.state.clone(), goes_on: self.goes_on.clone(), boot: state.boot, inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        state.inode(from)?;
        state.rename_now(NameChange::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        state.inode(path)?;
        state.rename_now(NameChange::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.change()?;
        let changes = std::mem::take(&mut state.unsynced_names);
        let (synced, left): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| change.is_in(dir));
        for change in synced {
            change.apply(&mut state.durable_names);
        }
        state.unsynced_names = left;
        Ok(())
    }

    fn pause(&self) -> Duration {
        FLUSH_TAKES + self.state.lock().slower_by
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.state.lock();
        let total_bytes = state.capacity.unwrap_or(1 << 40);
        Ok(Space { free_bytes: total_bytes.saturating_sub(state.used()), total_bytes })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.state.lock();
        if !state.locks.insert(path.to_path_buf()) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, format!("{} is locked", path.display())));
        }
        Ok(Box::new(SimLock { state: self.state.clone(), boot: state.boot, path: path.to_path_buf() }))
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.boot == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

impl SimFile {
    fn lock_to_change(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        self.goes_on.wait_while(&mut state, |state| state.hangs);
        state
    }

    fn check(&self, state: &State) -> io::Result<()> {
        if state.boot == self.boot { Ok(()) } else { Err(io::Error::other("opened before the crash")) }
    }
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        let state = self.state.lock();
        self.check(&state)?;
        Ok(state.inodes[self.inode].current.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state.lock();
        self.check(&state)?;
        let bytes = &state.inodes[self.inode].current;
        let from = (offset as usize).min(bytes.len());
        let read = buf.len().min(bytes.len() - from);
        buf[..read].copy_from_slice(&bytes[from..from + read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.lock_to_change();
        self.check(&state)?;
        let failed = state.change().err();
        let size = state.inodes[self.inode].current.len() as u64;
        if failed.is_none() {
            state.grow((offset + bytes.len() as u64).saturating_sub(size))?;
        }
        let written = if failed.is_some() { &bytes[..bytes.len() / 2] } else { bytes };
        let inode = &mut state.inodes[self.inode];
        Inode::write(&mut inode.current, offset, written);
        inode.dirty.push((offset, written.to_vec()));
        failed.map_or(Ok(()), Err)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock_to_change();
        self.check(&state)?;
        let failed = state.change();
        let inode = &mut state.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        failed?;
        for (offset, data) in dirty {
            Inode::write(&mut inode.durable, offset, &data);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_synced_survives() {
        let disk = SimDisk::new();
        let (dir, kept, lost) = (Path::new("/d"), Path::new("/d/kept"), Path::new("/d/lost"));
        let file = disk.create(kept).expect("created");
        file.write_at(b"one", 0).expect("written");
        file.sync().expect("synced");
        disk.sync_dir(dir).expect("synced");
        file.write_at(b"two", 3).expect("written");
        disk.create(lost).expect("created");
        disk.crash(Crash::DropUnsynced);
        assert_eq!(disk.content(kept), b"one");
        assert_eq!(disk.list(dir).expect("listed"), ["kept"]);
        assert!(file.sync().is_err(), "handles die with the crash");
    }

    #[test]
    fn a_failed_sync_loses_its_data_for_good() {
        let disk = SimDisk::new();
        let path = Path::new("/d/file");
        let file = disk.create(path).expect("created");
        disk.sync_dir(Path::new("/d")).expect("synced");
        file.write_at(b"data", 0).expect("written");
        disk.fail(0, Fault::Error);
        assert!(file.sync().is_err());
        file.sync().expect("the second try lies");
        disk.crash(Crash::DropUnsynced);
        assert_eq!(disk.content(path), b"");
    }
}
