//! The ordered map below history: sled on disk, and its twin in memory.
//!
//! The only user of sled. It may panic on what it finds on a damaged disk: whoever calls it here does so
//! on a thread of its own.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::Error;
use super::rows::Bounds;
use crate::types::limits;

/// Changes to make at once: a value, or none for a key that goes.
pub type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// An ordered map of bytes.
pub trait Kv: Send {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// All of them or none.
    fn apply(&mut self, writes: Writes) -> Result<(), Error>;

    /// Shows keys and values in order, or backwards, until told false.
    fn scan(&self, bounds: &Bounds, backwards: bool, show: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), Error>;

    fn flush(&mut self) -> Result<(), Error>;

    fn disk_bytes(&self) -> u64;
}

/// On disk.
pub struct Sled(sled::Db);

impl Sled {
    pub fn open(dir: &Path) -> Result<Self, Error> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(limits::HISTORY_CACHE_BYTES)
            .mode(sled::Mode::LowSpace)
            // It is flushed by who writes it.
            .flush_every_ms(None);
        Ok(Self(config.open()?))
    }
}

impl From<sled::Error> for Error {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            other => Self::Damaged(other.to_string()),
        }
    }
}

fn range(bounds: &Bounds) -> Range<&[u8]> {
    &bounds.from[..]..&bounds.to[..]
}

impl Kv for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(key)?.map(|value| value.to_vec()))
    }

    fn apply(&mut self, writes: Writes) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        for (key, value) in writes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        Ok(self.0.apply_batch(batch)?)
    }

    fn scan(&self, bounds: &Bounds, backwards: bool, show: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), Error> {
        let mut found = self.0.range(range(bounds));
        while let Some(next) = if backwards { found.next_back() } else { found.next() } {
            let (key, value) = next?;
            if !show(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.0.flush()?;
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.0.size_on_disk().unwrap_or(0)
    }
}

/// In memory.
#[derive(Default)]
pub struct Memory(BTreeMap<Vec<u8>, Vec<u8>>);

impl Kv for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(key).cloned())
    }

    fn apply(&mut self, writes: Writes) -> Result<(), Error> {
        for (key, value) in writes {
            match value {
                Some(value) => drop(self.0.insert(key, value)),
                None => drop(self.0.remove(&key)),
            }
        }
        Ok(())
    }

    fn scan(&self, bounds: &Bounds, backwards: bool, show: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), Error> {
        let Range { start, end } = range(bounds);
        let mut found = self.0.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        while let Some((key, value)) = if backwards { found.next_back() } else { found.next() } {
            if !show(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}
