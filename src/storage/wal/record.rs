//! A record's bytes.
//!
//! ```text
//! crc32c u32 | length u32 | flush u64 | type u8 | flags u8 | 0 u16 | payload, zeros up to 8 bytes
//! ```
//!
//! Little endian. The checksum covers the segment's number and the log's incarnation first, then
//! everything behind itself up to the payload's end: a record of another segment, of an older log
//! or at another length does not check. All records of one write share a flush number; the last of
//! them says so. Zeros where a header would stand mean that nothing was written there.

use bytes::{BufMut, Bytes};

use crate::storage::log::{Entry, Kind, LogId, Vote};
use crate::types::mutant::{self, Mutant};

pub const HEADER_BYTES: usize = 20;
/// Records begin at multiples of this.
pub const ALIGN: usize = 8;
/// What the system reads and writes at once.
const PAGE_BYTES: u64 = 4096;
/// The format of segments and records that this program writes.
pub const FORMAT: u32 = 1;
/// There is one Raft group so far.
pub const SHARD: u32 = 0;

const LAST_OF_FLUSH: u8 = 1;
const ENTRY_HEAD_BYTES: usize = 16;

/// What a record is. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    State = 1,
    Blank = 2,
    Normal = 3,
    Membership = 4,
    Vote = 5,
    Committed = 6,
    Truncate = 7,
    Purge = 8,
    /// Ends a flush whose tail was torn and dropped.
    Close = 9,
}

impl Type {
    fn of(number: u8) -> Option<Self> {
        use Type::*;
        [State, Blank, Normal, Membership, Vote, Committed, Truncate, Purge, Close]
            .into_iter()
            .find(|known| *known as u8 == number)
    }

    fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Blank => Type::Blank,
            Kind::Normal => Type::Normal,
            Kind::Membership => Type::Membership,
        }
    }
}

/// What the head of a segment tells: all that the records of deleted segments had built up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub incarnation: u64,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// The last entry before this segment.
    pub last: Option<LogId>,
    /// What the segment's file was made with; a shorter one lost its end. 0: not told.
    pub size_bytes: u64,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    State(State),
    /// A segment's head in a format that this program does not know.
    NewerState(u32),
    Entry {
        id: LogId,
        kind: Kind,
        payload: &'a [u8],
    },
    Vote(Vote),
    Committed(Option<LogId>),
    Truncate(Option<LogId>),
    Purge(LogId),
    Close,
}

/// A record as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    pub flush: u64,
    pub last_of_flush: bool,
    /// What it takes in the file, zeros included.
    pub size: usize,
    pub body: Body<'a>,
}

/// Bytes that a record with such a payload takes.
pub fn size_of(payload: usize) -> usize {
    (HEADER_BYTES + payload).next_multiple_of(ALIGN)
}

/// Bytes that an entry takes.
pub fn size_of_entry(entry: &Entry) -> usize {
    size_of(ENTRY_HEAD_BYTES + entry.payload.len())
}

/// Bytes that any record but an entry takes at most.
pub const MAX_SMALL_BYTES: usize = 160;

/// The checksum's start: binds records to one segment of one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u32);

impl Seed {
    pub fn new(segment: u64, incarnation: u64) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(&segment.to_le_bytes()), &incarnation.to_le_bytes()))
    }
}

/// Builds the bytes of one flush. The buffer is reused from flush to flush.
pub struct Encoder {
    bytes: Vec<u8>,
    seed: Seed,
    flush: u64,
    /// The record that still lacks its checksum: only now is it known whether it is the last.
    open: Option<(usize, usize)>,
}

impl Encoder {
    pub fn new(seed: Seed, flush: u64) -> Self {
        Self { bytes: Vec::new(), seed, flush, open: None }
    }

    /// Forgets the bytes and begins the next flush.
    pub fn restart(&mut self, seed: Seed, flush: u64, keep_bytes: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(keep_bytes);
        (self.seed, self.flush, self.open) = (seed, flush, None);
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn entry(&mut self, entry: &Entry) {
        self.record(Type::of_kind(entry.kind), |bytes| {
            put_id(bytes, entry.id);
            bytes.put_slice(&entry.payload);
        });
    }

    pub fn state(&mut self, state: &State) {
        self.record(Type::State, |bytes| {
            bytes.put_u32_le(FORMAT);
            bytes.put_u32_le(SHARD);
            bytes.put_u64_le(state.incarnation);
            put_option(bytes, state.vote, put_vote);
            put_option(bytes, state.committed, put_id);
            put_option(bytes, state.purged, put_id);
            put_option(bytes, state.last, put_id);
            bytes.put_u64_le(state.size_bytes);
        });
    }

    pub fn vote(&mut self, vote: Vote) {
        self.record(Type::Vote, |bytes| put_vote(bytes, vote));
    }

    pub fn committed(&mut self, committed: Option<LogId>) {
        self.record(Type::Committed, |bytes| put_option(bytes, committed, put_id));
    }

    pub fn truncate(&mut self, last: Option<LogId>) {
        self.record(Type::Truncate, |bytes| put_option(bytes, last, put_id));
    }

    pub fn purge(&mut self, upto: LogId) {
        self.record(Type::Purge, |bytes| put_id(bytes, upto));
    }

    pub fn close(&mut self) {
        self.record(Type::Close, |_| {});
    }

    /// Marks the end of the flush and gives its bytes.
    pub fn finish(&mut self) -> &[u8] {
        self.seal(LAST_OF_FLUSH);
        &self.bytes
    }

    /// The same with zeros behind it up to the end of its last page (or of the file), where zeros are
    /// anyway: nobody has to read that page to write a part of it.
    pub fn finish_page(&mut self, offset: u64, capacity: u64) -> &[u8] {
        self.seal(LAST_OF_FLUSH);
        let end = (offset + self.bytes.len() as u64).next_multiple_of(PAGE_BYTES).min(capacity);
        self.bytes.resize((end - offset) as usize, 0);
        &self.bytes
    }

    fn record(&mut self, kind: Type, payload: impl FnOnce(&mut Vec<u8>)) {
        self.seal(0);
        let start = self.bytes.len();
        self.bytes.put_u64_le(0);
        self.bytes.put_u64_le(self.flush);
        self.bytes.put_u8(kind as u8);
        self.bytes.put_bytes(0, 3);
        payload(&mut self.bytes);
        let end = self.bytes.len();
        let length = (end - start - HEADER_BYTES) as u32;
        self.bytes[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
        self.bytes.resize(end.next_multiple_of(ALIGN), 0);
        self.open = Some((start, end));
    }

    fn seal(&mut self, flags: u8) {
        if let Some((start, end)) = self.open.take() {
            self.bytes[start + 17] = flags;
            let crc = crc32c::crc32c_append(self.seed.0, &self.bytes[start + 4..end]);
            self.bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// Reads the record that begins `bytes`. `Err` says what is wrong with it.
pub fn read(bytes: &[u8], seed: Seed) -> Result<Found<'_>, &'static str> {
    let header = bytes.get(..HEADER_BYTES).ok_or("the file ends inside a record")?;
    let length = u32_at(header, 4) as usize;
    let kind = Type::of(header[16]).ok_or("no record begins here")?;
    if header[17] & !LAST_OF_FLUSH != 0 || header[18] != 0 || header[19] != 0 {
        return Err("no record begins here");
    }
    let end = HEADER_BYTES + length;
    let checked = bytes.get(4..end).ok_or("the record is longer than its file")?;
    if crc32c::crc32c_append(seed.0, checked) != u32_at(header, 0) && !mutant::is(Mutant::BelieveAnyRecord) {
        return Err("the record fails its checksum");
    }
    let body = body(kind, &bytes[HEADER_BYTES..end]).ok_or("the record is unreadable in spite of its checksum")?;
    Ok(Found { flush: u64_at(header, 8), last_of_flush: header[17] == LAST_OF_FLUSH, size: size_of(length), body })
}

/// Reads the entry that begins `bytes`, sharing the payload.
pub fn read_entry(bytes: &Bytes, seed: Seed) -> Result<Entry, &'static str> {
    match read(bytes, seed)?.body {
        Body::Entry { id, kind, payload } => Ok(Entry { id, kind, payload: bytes.slice_ref(payload) }),
        _ => Err("the record is no entry"),
    }
}

/// Whether nothing was written where a record would begin.
pub fn is_blank(bytes: &[u8]) -> bool {
    all_zero(&bytes[..bytes.len().min(HEADER_BYTES)])
}

/// Whether there is nothing but zeros.
pub fn all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|chunk| chunk == &ZEROS[..chunk.len()])
}

static ZEROS: [u8; 4096] = [0; 4096];

/// The lowest flush number past `after` among the valid records behind `from`: what proves that a
/// bad record before them had been synced. Lengths cannot be trusted there: every place is tried.
pub fn later_flush(bytes: &[u8], from: usize, seed: Seed, after: u64) -> Option<(usize, u64)> {
    let mut at = from.next_multiple_of(ALIGN);
    while at < bytes.len() {
        let window = &bytes[at..bytes.len().min(at + ZEROS.len())];
        if all_zero(window) {
            // A record may begin in the window's last bytes: its checksum may be zeros, its type is not.
            at += ZEROS.len() - HEADER_BYTES.next_multiple_of(ALIGN);
            continue;
        }
        match read(&bytes[at..], seed) {
            Ok(found) if found.flush > after => return Some((at, found.flush)),
            _ => at += ALIGN,
        }
    }
    None
}

fn body(kind: Type, payload: &[u8]) -> Option<Body<'_>> {
    let mut rest = payload;
    let body = match kind {
        Type::Blank | Type::Normal | Type::Membership => {
            let id = take_id(&mut rest)?;
            let kind = match kind {
                Type::Normal => Kind::Normal,
                Type::Membership => Kind::Membership,
                _ => Kind::Blank,
            };
            return Some(Body::Entry { id, kind, payload: rest });
        }
        Type::State => {
            let (format, _shard) = (take_u32(&mut rest)?, take_u32(&mut rest)?);
            if format != FORMAT {
                return Some(Body::NewerState(format));
            }
            Body::State(State {
                incarnation: take_u64(&mut rest)?,
                vote: take_option(&mut rest, take_vote)?,
                committed: take_option(&mut rest, take_id)?,
                purged: take_option(&mut rest, take_id)?,
                last: take_option(&mut rest, take_id)?,
                // The first logs did not tell.
                size_bytes: if rest.is_empty() { 0 } else { take_u64(&mut rest)? },
            })
        }
        Type::Vote => Body::Vote(take_vote(&mut rest)?),
        Type::Committed => Body::Committed(take_option(&mut rest, take_id)?),
        Type::Truncate => Body::Truncate(take_option(&mut rest, take_id)?),
        Type::Purge => Body::Purge(take_id(&mut rest)?),
        Type::Close => Body::Close,
    };
    rest.is_empty().then_some(body)
}

fn put_id(bytes: &mut Vec<u8>, id: LogId) {
    bytes.put_u64_le(id.term);
    bytes.put_u64_le(id.index);
}

fn put_vote(bytes: &mut Vec<u8>, vote: Vote) {
    bytes.put_u64_le(vote.term);
    bytes.put_u64_le(vote.node);
    bytes.put_u8(vote.committed.into());
}

fn put_option<T>(bytes: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    bytes.put_u8(value.is_some().into());
    if let Some(value) = value {
        put(bytes, value);
    }
}

fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    Some(*first)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (first, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u32::from_le_bytes(*first))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (first, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u64::from_le_bytes(*first))
}

fn take_id(rest: &mut &[u8]) -> Option<LogId> {
    Some(LogId { term: take_u64(rest)?, index: take_u64(rest)? })
}

fn take_vote(rest: &mut &[u8]) -> Option<Vote> {
    Some(Vote { term: take_u64(rest)?, node: take_u64(rest)?, committed: take_u8(rest)? == 1 })
}

/// The outer option: readable; the inner: there.
fn take_option<T>(rest: &mut &[u8], take: impl FnOnce(&mut &[u8]) -> Option<T>) -> Option<Option<T>> {
    match take_u8(rest)? {
        0 => Some(None),
        _ => take(rest).map(Some),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
