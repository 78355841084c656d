//! The disk, injected. [`Disk`] is the little that a node needs of a file system; [`RealDisk`] is
//! the machine's, [`SimDisk`] lives in memory and can crash, tear and fail.
//!
//! Invariants: nothing is durable before [`File::sync`], no name before [`Disk::sync_dir`].
//! Directories are 0700 and files 0600; wider ones are refused, not repaired.

#[cfg(feature = "testkit")]
pub mod failing;
mod real;
mod sim;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use real::RealDisk;
pub use sim::{Crash, Fault, SimDisk};

/// A file system, as far as storage needs one. Errors name the operation and the path.
pub trait Disk: Send + Sync + 'static {
    /// Makes a directory (0700) and the way to it. One that is there already is checked.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// A new, empty file; one that is there is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// A new file of written zeros, already synced, so that later writes change no metadata. Zeros are written in
    /// pieces; between two of them `pace` hears how many bytes are written, and may wait.
    fn create_zeroed(&self, path: &Path, len: u64, pace: &dyn Fn(u64)) -> io::Result<Arc<dyn File>>;

    /// A file that is there, to read and write.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// How long a flush takes, for a disk that takes no time by itself.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }

    /// What is left of the file system that holds `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;

    /// Takes the exclusive lock of `path`, or fails with `WouldBlock` at once. Held until the
    /// guard drops.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// An open file. Reads and writes name their offset, so that readers and the writer share it.
pub trait File: Send + Sync {
    fn size(&self) -> io::Result<u64>;

    /// Reads at most `buf.len()` bytes; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable (fdatasync). After an error the content is unknown: never
    /// call it again hoping for better.
    fn sync(&self) -> io::Result<()>;
}

/// Room of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free for this user.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// Reads until `buf` is full or the file ends; the number of bytes read.
pub fn read_full(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buf.len() {
        match file.read_at(&mut buf[read..], offset + read as u64)? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

/// Writes a small file whole: temporary name, sync, rename, sync of the directory.
pub fn write_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = disk.create(&temporary)?;
    file.write_at(bytes, 0)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Reads a small file whole, refusing one larger than `max_bytes`.
pub fn read_whole(disk: &dyn Disk, path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let size = file.size()?;
    if size > max_bytes {
        let what = format!("{} is {size} bytes, more than {max_bytes}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let mut bytes = vec![0; size as usize];
    let read = read_full(&*file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}
