//! A segment: one file of the log, filled with zeros before anything is written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::Seed;
use crate::storage::disk::{Disk, File, read_full};

const SUFFIX: &str = ".wal";
/// What is not whole yet: a segment under its own name always was.
const UNFINISHED: &str = "new";

/// An open segment.
#[derive(Clone)]
pub struct Segment {
    pub number: u32,
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    pub capacity: u64,
    pub seed: Seed,
}

pub fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:010}{SUFFIX}"))
}

/// The numbers of the segments in a directory, ascending. Other names are not ours.
pub fn numbers(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u32>> {
    let names = disk.list(dir)?;
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

impl Segment {
    /// Makes a segment of zeros, durable with its name. What a failed attempt left is removed, so
    /// that a full disk is not made fuller. `pace`: see [`Disk::create_zeroed`].
    pub fn create(
        disk: &dyn Disk,
        dir: &Path,
        number: u32,
        capacity: u64,
        incarnation: u64,
        pace: &dyn Fn(u64),
    ) -> io::Result<Self> {
        let path = path(dir, number);
        let unfinished = path.with_extension(UNFINISHED);
        let created = disk.create_zeroed(&unfinished, capacity, pace).and_then(|file| {
            disk.rename(&unfinished, &path)?;
            disk.sync_dir(dir)?;
            Ok(file)
        });
        match created {
            Ok(file) => Ok(Self { number, path, file, capacity, seed: Seed::new(number.into(), incarnation) }),
            Err(error) => {
                // The first error is the one to tell; the next attempt truncates the file anyway.
                let _ = disk.remove(&unfinished);
                Err(error)
            }
        }
    }

    /// Removes what creations left that a crash cut short.
    pub fn remove_unfinished(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let ends = format!(".{UNFINISHED}");
        for name in disk.list(dir)?.iter().filter(|name| name.ends_with(&ends)) {
            disk.remove(&dir.join(name))?;
        }
        Ok(())
    }

    pub fn open(disk: &dyn Disk, dir: &Path, number: u32, incarnation: u64) -> io::Result<Self> {
        let path = path(dir, number);
        let file = disk.open(&path)?;
        let capacity = file.size()?;
        Ok(Self { number, path, file, capacity, seed: Seed::new(number.into(), incarnation) })
    }

    /// The whole file, into a buffer that is reused.
    pub fn read_all(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        bytes.resize(self.capacity as usize, 0);
        let read = read_full(&*self.file, bytes, 0)?;
        bytes.truncate(read);
        Ok(())
    }
}
