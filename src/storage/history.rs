//! What became of packages, for people to look up later: a node's own memory of the past, derived from
//! what it applied, best effort.
//!
//! Invariants: every row has one key, made of what happened, so that writing it again changes nothing;
//! rows and how far they reach go together or not at all. What is missing is told: a gap names the
//! revisions. Age and bytes are bounded, the oldest goes first. Nothing here is truth: nobody decides
//! anything by it, and it may be thrown away at any time.
//!
//! Absent on purpose: what is worth keeping (`history`), and any promise about a power cut (docs/adr/0003).

mod kv;
mod rows;

use std::path::Path;

use crate::types::{Wall, limits};

pub use rows::{Attempt, Failure, Finished, Gap, Row};

use kv::{Kv, Memory, Sled, Writes};
use rows::{Bounds, Key};

/// Why history cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is on disk cannot be: it must go.
    #[error("damaged: {0}")]
    Damaged(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub age_ms: u64,
    pub bytes: u64,
}

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Canonical.
    pub queue: String,
    /// Empty: every package of the queue.
    pub id: String,
    /// Finished at or after this time.
    pub since: Option<Wall>,
    /// Finished before this time.
    pub until: Option<Wall>,
    pub page_size: usize,
    /// Where the page before ended.
    pub after: Option<Place>,
}

/// A row's place in its queue: newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub finish: Wall,
    pub revision: u64,
}

/// Some of what was found, newest first.
#[derive(Debug, Default, PartialEq)]
pub struct Page {
    pub entries: Vec<(Finished, Vec<Attempt>)>,
    /// There may be more after this.
    pub next: Option<Place>,
    pub gaps: Vec<Gap>,
    pub covered: u64,
}

/// The rows of one node.
pub struct History {
    kv: Box<dyn Kv>,
    keep: Keep,
    covered: u64,
    sums: Sums,
    /// Where the search for attempts of packages that never finished goes on.
    cursor: Vec<u8>,
    unflushed: bool,
}

/// What is kept, as counted while it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Finished packages.
    pub rows: u64,
    /// Of keys and rows; the disk may need more.
    pub bytes: u64,
}

impl History {
    /// Opens, or makes, the history in this directory.
    pub fn open(dir: &Path, keep: Keep) -> Result<Self, Error> {
        Self::of(Box::new(Sled::open(dir)?), keep)
    }

    /// The same without a disk: for simulations and tests.
    pub fn in_memory(keep: Keep) -> Self {
        let (kv, sums) = (Box::new(Memory::default()), Sums::default());
        Self { kv, keep, covered: 0, sums, cursor: Vec::new(), unflushed: false }
    }

    fn of(kv: Box<dyn Kv>, keep: Keep) -> Result<Self, Error> {
        let number = |name: &str| -> Result<u64, Error> {
            let Some(bytes) = kv.get(&Key::meta(name))? else { return Ok(0) };
            let bytes = bytes.try_into().map_err(|_| Error::Damaged(format!("`{name}` is no number")))?;
            Ok(u64::from_be_bytes(bytes))
        };
        let covered = number(COVERED)?;
        let sums = Sums { rows: number(ROWS)?, bytes: number(BYTES)? };
        Ok(Self { kv, keep, covered, sums, cursor: Vec::new(), unflushed: false })
    }

    /// Everything up to this revision is kept, or was not worth it, or lies in a told gap. 0: nothing yet.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    pub fn sums(&self) -> Sums {
        self.sums
    }

    pub fn disk_bytes(&self) -> u64 {
        self.kv.disk_bytes()
    }

    /// Writes rows, and that everything up to `covered` is here, in one step.
    pub fn write(&mut self, rows: &[Row], covered: u64) -> Result<(), Error> {
        let mut writes = Writes::new();
        let mut sums = self.sums;
        for row in rows {
            self.put(row, &mut writes, &mut sums)?;
        }
        self.commit(writes, sums, self.covered.max(covered))
    }

    fn put(&self, row: &Row, writes: &mut Writes, sums: &mut Sums) -> Result<(), Error> {
        let (key, value) = (row.key(), row.to_bytes());
        // Two rows of one key may come in one batch; the second replaces the first.
        let before = match writes.get(&key) {
            Some(pending) => pending.clone(),
            None => self.kv.get(&key)?,
        };
        if before.as_deref() == Some(&value) {
            return Ok(());
        }
        let size = |value: &[u8]| (key.len() + value.len()) as u64;
        sums.bytes = (sums.bytes + size(&value)).saturating_sub(before.as_deref().map_or(0, size));
        if let Row::Finished(finished) = row {
            sums.rows += u64::from(before.is_none());
            for index in [Key::by_time(finished), Key::by_age(finished)] {
                sums.bytes += (index.len() + key.len()) as u64;
                writes.insert(index, Some(key.clone()));
            }
        }
        writes.insert(key, Some(value));
        Ok(())
    }

    fn commit(&mut self, mut writes: Writes, sums: Sums, covered: u64) -> Result<(), Error> {
        for (name, number) in [(COVERED, covered), (ROWS, sums.rows), (BYTES, sums.bytes)] {
            writes.insert(Key::meta(name), Some(number.to_be_bytes().to_vec()));
        }
        self.kv.apply(writes)?;
        (self.sums, self.covered, self.unflushed) = (sums, covered, true);
        Ok(())
    }

    /// Tells that nothing is known of these revisions, both included.
    pub fn write_gap(&mut self, gap: Gap) -> Result<(), Error> {
        self.write(&[Row::Gap(gap)], gap.to)
    }

    /// Asks the disk to have it all. As far as the store can promise anything.
    pub fn flush(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.unflushed) {
            self.kv.flush()?;
        }
        Ok(())
    }

    /// Lets go of what is too old or too much, a bounded number at a time. True: there is more to do.
    pub fn trim(&mut self, now: Wall) -> Result<bool, Error> {
        let mut writes = Writes::new();
        let mut sums = self.sums;
        let mut oldest = Vec::new();
        self.kv.scan(&Bounds::by_age(), false, &mut |index, key| {
            oldest.push((index.to_vec(), key.to_vec()));
            oldest.len() < limits::HISTORY_TRIM_ROWS
        })?;
        let mut more = oldest.len() == limits::HISTORY_TRIM_ROWS;
        for (index, key) in oldest {
            let place = Key::place_of(&index).ok_or_else(|| Error::Damaged("an index without its time".to_owned()))?;
            if place.finish.plus(self.keep.age_ms) > now && sums.bytes <= self.keep.bytes {
                more = false;
                break;
            }
            self.drop_row(&index, &key, place, &mut writes, &mut sums)?;
        }
        self.drop_old_attempts(now, &mut writes, &mut sums)?;
        if !writes.is_empty() {
            self.commit(writes, sums, self.covered)?;
        }
        Ok(more)
    }

    fn drop_row(
        &self,
        index: &[u8],
        key: &[u8],
        place: Place,
        writes: &mut Writes,
        sums: &mut Sums,
    ) -> Result<(), Error> {
        let mut drop = |key: Vec<u8>, len: usize| {
            sums.bytes = sums.bytes.saturating_sub((key.len() + len) as u64);
            writes.insert(key, None);
        };
        drop(index.to_vec(), key.len());
        drop(Key::time_of_age(index, key), key.len());
        let Some(value) = self.kv.get(key)? else { return Ok(()) };
        let finished = Finished::from_bytes(&value)?;
        if finished.revision != place.revision {
            // It finished again later; that row has its own place.
            return Ok(());
        }
        drop(key.to_vec(), value.len());
        let mut attempts = Vec::new();
        self.kv.scan(&Bounds::attempts(&finished), false, &mut |key, value| {
            attempts.push((key.to_vec(), value.len()));
            attempts.len() < limits::HISTORY_TRIM_ROWS
        })?;
        for (key, len) in attempts {
            drop(key, len);
        }
        sums.rows = sums.rows.saturating_sub(1);
        Ok(())
    }

    /// Attempts whose package's end never came here: a little of the way at each call.
    fn drop_old_attempts(&mut self, now: Wall, writes: &mut Writes, sums: &mut Sums) -> Result<(), Error> {
        let bounds = Bounds::all_attempts().from(&self.cursor);
        let (mut looked, mut last, mut old) = (0, None, Vec::new());
        let mut problem = None;
        self.kv.scan(&bounds, false, &mut |key, value| {
            looked += 1;
            match Attempt::from_bytes(value) {
                Ok(attempt) if Wall(attempt.end_ms).plus(self.keep.age_ms) <= now => {
                    old.push((key.to_vec(), value.len()));
                }
                Ok(_) => {}
                Err(error) => problem = Some(error),
            }
            last = Some(key.to_vec());
            looked < limits::HISTORY_TRIM_ROWS
        })?;
        if let Some(problem) = problem {
            return Err(problem);
        }
        for (key, len) in old {
            if writes.insert(key.clone(), None).is_none() {
                sums.bytes = sums.bytes.saturating_sub((key.len() + len) as u64);
            }
        }
        // From behind the last one, or from the beginning again.
        self.cursor = last.filter(|_| looked == limits::HISTORY_TRIM_ROWS).map_or_else(Vec::new, |mut key| {
            key.push(0);
            key
        });
        Ok(())
    }

    /// A page of what is kept.
    pub fn list(&self, query: &Query) -> Result<Page, Error> {
        let mut page = Page { covered: self.covered, gaps: self.gaps()?, ..Page::default() };
        let since = query.since.unwrap_or(Wall(0));
        let before = query.after.unwrap_or(Place { finish: query.until.unwrap_or(Wall(u64::MAX)), revision: 0 });
        let mut keys = Vec::new();
        if query.id.is_empty() {
            let bounds = Bounds::by_time(&query.queue, since, before);
            let mut scan = |index: &[u8], key: &[u8]| {
                keys.push((Key::place_of(index), key.to_vec()));
                keys.len() <= query.page_size
            };
            self.kv.scan(&bounds, true, &mut scan)?;
        } else {
            // A package has few ends.
            let mut problem = None;
            self.kv.scan(&Bounds::package(&query.queue, &query.id), true, &mut |key, value| {
                match Finished::from_bytes(value).map(|finished| finished.place()) {
                    Ok(place) if place.finish >= since && place < before => keys.push((Some(place), key.to_vec())),
                    Ok(_) => {}
                    Err(error) => problem = Some(error),
                }
                keys.len() < limits::HISTORY_PAGE
            })?;
            if let Some(problem) = problem {
                return Err(problem);
            }
            keys.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
        }
        let mut bytes = 0;
        for (at, (place, key)) in keys.iter().enumerate() {
            let place = place.ok_or_else(|| Error::Damaged("an index without its time".to_owned()))?;
            if at == query.page_size || bytes > limits::HISTORY_PAGE_BYTES {
                page.next = at.checked_sub(1).and_then(|last| keys[last].0);
                break;
            }
            let Some(value) = self.kv.get(key)? else { continue };
            let finished = Finished::from_bytes(&value)?;
            if finished.revision != place.revision {
                continue;
            }
            bytes += value.len();
            let attempts = self.attempts(&finished)?;
            page.entries.push((finished, attempts));
        }
        Ok(page)
    }

    /// The latest, in order.
    fn attempts(&self, finished: &Finished) -> Result<Vec<Attempt>, Error> {
        let (mut found, mut problem) = (Vec::new(), None);
        self.kv.scan(&Bounds::attempts(finished), true, &mut |_, value| {
            match Attempt::from_bytes(value) {
                Ok(attempt) => found.push(attempt),
                Err(error) => problem = Some(error),
            }
            found.len() < limits::HISTORY_ATTEMPTS && problem.is_none()
        })?;
        found.reverse();
        problem.map_or(Ok(found), Err)
    }

    /// The latest, in order.
    fn gaps(&self) -> Result<Vec<Gap>, Error> {
        let (mut gaps, mut problem) = (Vec::new(), None);
        self.kv.scan(&Bounds::gaps(), true, &mut |_, value| {
            match Gap::from_bytes(value) {
                Ok(gap) => gaps.push(gap),
                Err(error) => problem = Some(error),
            }
            gaps.len() < limits::HISTORY_GAPS && problem.is_none()
        })?;
        gaps.reverse();
        problem.map_or(Ok(gaps), Err)
    }
}

const COVERED: &str = "covered";
const ROWS: &str = "rows";
const BYTES: &str = "bytes";

#[cfg(test)]
#[path = "history/tests.rs"]
mod tests;
