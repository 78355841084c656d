//! Opening: what the segments say, and the one rule about what may be missing.
//!
//! A flush is written only after the one before it was synced. So a bad record with something valid
//! of a later flush behind it was durable once, and is damage. A bad record at the end of the last
//! segment with nothing of a later flush behind it was never reported as durable: it is a torn
//! write, and is dropped. Everything else is damage: nothing is changed, and the error names the
//! file and the offset. A file shorter than it was made is damage, too: no write of ours, whole or
//! torn, changes a length.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::index::{Index, Place};
use super::record::{self, Body, Encoder, Seed, State};
use super::segment::{self, Segment};
use crate::storage::disk::Disk;
use crate::storage::error::Error;
use crate::storage::log::Entry;

/// A log as it was found, ready to go on.
pub struct Recovered {
    pub index: Index,
    pub segments: BTreeMap<u32, Known>,
    /// Where the next flush goes.
    pub active: Segment,
    pub offset: u64,
    /// The number of the next flush.
    pub flush: u64,
    /// A segment made ahead that nothing was written to.
    pub ahead: Option<Segment>,
}

/// What is known of a segment that holds records.
pub struct Known {
    pub segment: Segment,
    pub used: u64,
    /// The highest index ever written there.
    pub last_index: Option<u64>,
}

/// How far the records were read.
struct Scan {
    index: Index,
    cache_bytes: usize,
    segments: BTreeMap<u32, Known>,
    flush: u64,
    /// Whether the last record read ends its flush.
    complete: bool,
    /// What stands behind the last record read.
    stopped: Stop,
}

#[derive(Clone)]
struct Stop {
    file: PathBuf,
    offset: u64,
    what: &'static str,
}

/// Reads the log in `dir`, repairs a torn tail, and makes all of it durable.
pub fn recover(disk: &dyn Disk, dir: &Path, incarnation: u64, cache_bytes: usize) -> Result<Recovered, Error> {
    let mut numbers = segment::numbers(disk, dir)?;
    if let Some(gap) = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        return Err(damaged(&segment::path(dir, gap[0] + 1), 0, "the segment is missing, later ones are there"));
    }
    let open = |number: u32| -> Result<Segment, Error> {
        let segment = Segment::open(disk, dir, number, incarnation)?;
        // Made whole before it had this name.
        if segment.capacity < record::MAX_SMALL_BYTES as u64 {
            let what = "the file ends before its first record can: it was cut off";
            return Err(damaged(&segment.path, segment.capacity, what));
        }
        Ok(segment)
    };

    // Segments made ahead are zeros and come last.
    let mut bytes = Vec::new();
    let mut unused = Vec::new();
    while let Some(number) = numbers.last().copied() {
        let segment = open(number)?;
        segment.read_all(&mut bytes)?;
        if !record::all_zero(&bytes) {
            break;
        }
        numbers.pop();
        unused.insert(0, segment);
    }
    let Some(last) = numbers.last().copied() else { return Err(Error::NoLog { dir: dir.to_path_buf() }) };

    let mut scan = Scan::new(cache_bytes);
    for number in &numbers {
        let segment = open(*number)?;
        segment.read_all(&mut bytes)?;
        scan.segment(segment, &bytes)?;
        if scan.segments.is_empty() {
            let what = format!("{}; or it belongs to a log of another identity", scan.stopped.what);
            return Err(damaged(&scan.stopped.file, 0, what));
        }
        if *number != last && !scan.segments.contains_key(number) {
            return Err(scan.stopped.damage());
        }
    }
    scan.check_tail(&bytes, open(last)?.seed)?;
    if !scan.index.is_whole() {
        let first = scan.segments.values().next().map_or(dir, |known| &known.segment.path);
        return Err(damaged(first, 0, "entries before it are neither there nor purged"));
    }

    // The last segment's very first write may be torn: then the log ends in the one before.
    if !scan.segments.contains_key(&last) {
        unused.insert(0, open(last)?);
    }
    scan.repair(disk, dir, unused)
}

fn damaged(file: &Path, offset: u64, what: impl Into<String>) -> Error {
    Error::Damaged { file: file.to_path_buf(), offset, what: what.into() }
}

impl Stop {
    fn damage(&self) -> Error {
        damaged(&self.file, self.offset, self.what)
    }
}

impl Scan {
    fn new(cache_bytes: usize) -> Self {
        let stopped = Stop { file: PathBuf::new(), offset: 0, what: "" };
        Self { index: Index::default(), cache_bytes, segments: BTreeMap::new(), flush: 0, complete: true, stopped }
    }

    /// Reads a segment's records as far as they are good. A segment whose first record is bad is
    /// not entered into `segments`.
    fn segment(&mut self, segment: Segment, bytes: &[u8]) -> Result<(), Error> {
        let path = segment.path.clone();
        let mut known = Known { segment, used: 0, last_index: None };
        let mut at = 0;
        let what = loop {
            // The last record's padding may be cut off.
            let rest = bytes.get(at..).unwrap_or_default();
            if record::is_blank(rest) {
                break "nothing is written here, though something should be";
            }
            let found = match record::read(rest, known.segment.seed) {
                Ok(found) => found,
                Err(what) => break what,
            };
            if at == 0 {
                self.head(&path, &found, bytes.len() as u64)?;
            } else if found.flush != self.flush + u64::from(self.complete) {
                let what = format!("a record of flush {} follows flush {}", found.flush, self.flush);
                return Err(damaged(&path, at as u64, what));
            }
            (self.flush, self.complete) = (found.flush, found.last_of_flush);
            let place = Place { segment: known.segment.number, offset: at as u32, size: found.size as u32 };
            if let Body::Entry { id, .. } = &found.body {
                known.last_index = known.last_index.max(Some(id.index));
            }
            self.apply(found.body, place).map_err(|what| damaged(&path, at as u64, what))?;
            at += found.size;
        };
        self.stopped = Stop { file: path, offset: at as u64, what };
        if at > 0 {
            known.used = at as u64;
            self.segments.insert(known.segment.number, known);
        }
        Ok(())
    }

    /// Checks a segment's first record against its file and what precedes it.
    fn head(&mut self, path: &Path, found: &record::Found<'_>, file_bytes: u64) -> Result<(), Error> {
        let state = match found.body {
            Body::State(state) => state,
            Body::NewerState(format) => {
                return Err(Error::NewerFormat { file: path.to_path_buf(), found: format, known: record::FORMAT });
            }
            _ => return Err(damaged(path, 0, "the segment does not begin with a state record")),
        };
        // No write changes a segment's length, so a torn one does not either.
        if file_bytes < state.size_bytes {
            let what = format!("the file ends here, but it was made with {} bytes: it was cut off", state.size_bytes);
            return Err(damaged(path, file_bytes, what));
        }
        if self.segments.is_empty() {
            self.index = Index::starting(state.purged, state.last.max(state.purged));
            self.index.vote = state.vote;
            self.index.committed = state.committed;
            return Ok(());
        }
        // The segment before was left only when its last flush was synced.
        if !self.complete || found.flush != self.flush + 1 {
            return Err(self.stopped.damage());
        }
        let ends = self.index.ends();
        let built = State {
            incarnation: state.incarnation,
            vote: self.index.vote,
            committed: self.index.committed,
            purged: ends.purged,
            last: ends.last,
            size_bytes: state.size_bytes,
        };
        if built != state {
            return Err(damaged(path, 0, "the state record does not match the records before it"));
        }
        Ok(())
    }

    fn apply(&mut self, body: Body<'_>, place: Place) -> Result<(), String> {
        match body {
            Body::State(_) | Body::NewerState(_) if place.offset > 0 => {
                return Err("a state record inside a segment".to_owned());
            }
            Body::State(_) | Body::NewerState(_) | Body::Close => {}
            Body::Entry { id, kind, payload } => {
                let payload = Bytes::copy_from_slice(payload);
                self.index.push(Entry { id, kind, payload }, Some(place))?;
                self.index.evict(self.cache_bytes);
            }
            Body::Vote(vote) => self.index.vote = Some(vote),
            Body::Committed(committed) => self.index.committed = committed,
            Body::Truncate(last) => self.index.truncate(last),
            Body::Purge(upto) => {
                self.index.purge(upto);
            }
        }
        Ok(())
    }

    /// The rule of the torn tail; `bytes` and `seed` are the last segment's.
    fn check_tail(&self, bytes: &[u8], seed: Seed) -> Result<(), Error> {
        let Stop { file, offset, what } = &self.stopped;
        if *offset == 0 && !self.complete {
            let before = self.segments.values().next_back().expect("a first segment was read");
            return Err(damaged(&before.segment.path, before.used, "the flush at its end is not whole"));
        }
        let suspect = self.flush + u64::from(self.complete);
        match record::later_flush(bytes, *offset as usize, seed, suspect) {
            None => Ok(()),
            Some((behind, flush)) => Err(damaged(
                file,
                *offset,
                format!("{what}, and flush {flush} at offset {behind} was written after flush {suspect} was synced"),
            )),
        }
    }

    /// Clears what is torn, ends its flush, and syncs: what was read may only be in the system's
    /// memory, and from here on it counts as durable.
    fn repair(self, disk: &dyn Disk, dir: &Path, mut unused: Vec<Segment>) -> Result<Recovered, Error> {
        let known = self.segments.values().next_back().expect("a log has a segment");
        let (active, mut offset) = (known.segment.clone(), known.used);
        let mut bytes = Vec::new();
        active.read_all(&mut bytes)?;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        if let Some(dirty) = rest.iter().rposition(|byte| *byte != 0) {
            active.file.write_at(&vec![0; dirty + 1], offset)?;
            active.file.sync()?;
        }
        if !self.complete {
            let mut close = Encoder::new(active.seed, self.flush);
            close.close();
            let bytes = close.finish();
            active.file.write_at(bytes, offset)?;
            offset += bytes.len() as u64;
        }
        active.file.sync()?;

        // One clean segment made ahead is kept; a torn or left over one is made anew.
        let ahead = match unused.first() {
            Some(first) if first.number == active.number + 1 => {
                first.read_all(&mut bytes)?;
                let clean = record::all_zero(&bytes) && bytes.len() as u64 == first.capacity && first.capacity > 0;
                clean.then(|| unused.remove(0))
            }
            _ => None,
        };
        for segment in unused.iter().rev() {
            disk.remove(&segment.path)?;
        }
        Segment::remove_unfinished(disk, dir)?;
        disk.sync_dir(dir)?;

        let mut segments = self.segments;
        if let Some(known) = segments.get_mut(&active.number) {
            known.used = offset;
        }
        Ok(Recovered { index: self.index, segments, active, offset, flush: self.flush + 1, ahead })
    }
}
