//! Snapshots as files: a header, then the state in checked frames.
//!
//! ```text
//! "WHARFSNP" | format u32 | header length u32 | header | crc32c u32
//! length u32 | crc32c u32 | bytes          as often as needed
//! 0 u32      | crc32c u32                  the end
//! ```
//!
//! Little endian. A frame's checksum begins with the header's and the frame's number, so frames
//! cannot be swapped, lost or taken from another snapshot; the last one proves that the file ends
//! where it was meant to.
//!
//! Invariants: a snapshot gets its name only when it is synced, and counts only when its name is.
//! What is sent to a follower is the file as it is, checked before it is installed. A body is
//! checked at every read. The caller purges the log only after `finish`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;

use super::disk::{Disk, File, read_full};
use super::error::Error;
use super::log::LogId;
use crate::types::limits;

const MAGIC: &[u8; 8] = b"WHARFSNP";
const FORMAT: u32 = 1;
const SHARD: u32 = 0;
const SUFFIX: &str = ".snap";
const TEMPORARY: &str = ".tmp";
/// Membership is all that grows in a header.
const MAX_HEADER_BYTES: u32 = 1 << 20;
const FRAME_HEAD_BYTES: usize = 8;
/// Frames between syncs while writing, so that no long writeback gets in the log's way at the end.
const SYNC_EVERY_FRAMES: u64 = 16;

/// What a snapshot covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The last entry in it.
    pub last: Option<LogId>,
    /// Where the membership was logged, and its stored form.
    pub membership_at: Option<LogId>,
    pub membership: Bytes,
}

/// A snapshot on disk. Stays readable while it is held, also when a newer one replaced it.
#[derive(Clone)]
pub struct Snapshot {
    pub meta: Meta,
    pub size_bytes: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    /// Where the frames begin, and the header's checksum.
    body: (u64, u32),
}

/// The snapshots of a node. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Ascending by what they cover.
    stored: Mutex<Vec<Snapshot>>,
    temporaries: AtomicU64,
}

impl Snapshots {
    /// Opens the directory, makes it if need be, and clears what was not finished.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        disk.create_dir(dir)?;
        let mut stored = Vec::new();
        for name in disk.list(dir)? {
            let path = dir.join(&name);
            if name.ends_with(TEMPORARY) {
                disk.remove(&path)?;
            } else if name.ends_with(SUFFIX) {
                stored.push(Snapshot::open(&*disk, path)?);
            }
        }
        // A name that a dying process gave may not be on disk yet, and is relied on from now on.
        disk.sync_dir(dir)?;
        stored.sort_by_key(|snapshot| snapshot.meta.last);
        let inner = Inner { disk, dir: dir.to_path_buf(), stored: Mutex::new(stored), temporaries: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The newest snapshot. Its body is checked as it is read; see [`Snapshot::verify`].
    pub fn latest(&self) -> Option<Snapshot> {
        self.inner.stored.lock().last().cloned()
    }

    /// The newest snapshot whose every byte checks, and why newer ones did not. The caller sees
    /// whether the log reaches back to it.
    pub fn latest_valid(&self) -> (Option<Snapshot>, Vec<io::Error>) {
        let mut errors = Vec::new();
        let stored = self.inner.stored.lock().clone();
        for snapshot in stored.into_iter().rev() {
            match snapshot.verify() {
                Ok(()) => return (Some(snapshot), errors),
                Err(error) => errors.push(error),
            }
        }
        (None, errors)
    }

    /// Begins a snapshot of this node's own state.
    pub fn build(&self, meta: Meta) -> io::Result<Builder> {
        let temporary = self.temporary()?;
        let header = encode_header(&meta);
        let crc = u32::from_le_bytes(header[header.len() - 4..].try_into().expect("four bytes"));
        temporary.file.write_at(&header, 0)?;
        Ok(Builder { temporary, at: header.len() as u64, header_crc: crc, frames: 0, frame: empty_frame() })
    }

    /// Begins to take in a snapshot file that another node sends.
    pub fn receive(&self) -> io::Result<Receiver> {
        Ok(Receiver { temporary: self.temporary()?, at: 0 })
    }

    /// What the snapshots take on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.stored.lock().iter().map(|snapshot| snapshot.size_bytes).sum()
    }

    fn temporary(&self) -> io::Result<Temporary> {
        let number = self.inner.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = self.inner.dir.join(format!("{number}{TEMPORARY}"));
        let file = self.inner.disk.create(&path)?;
        Ok(Temporary { inner: Arc::clone(&self.inner), path, file, named: false })
    }
}

impl Inner {
    /// Drops all but the newest. A snapshot that cannot be removed is only in the way: it is tried
    /// again the next time.
    fn prune(&self, stored: &mut Vec<Snapshot>) {
        let surplus = stored.len().saturating_sub(limits::SNAPSHOTS_KEPT);
        let mut position = 0;
        stored.retain(|snapshot| {
            position += 1;
            position > surplus || self.disk.remove(&snapshot.path).is_err()
        });
    }
}

/// A file without a final name; removed unless it gets one.
struct Temporary {
    inner: Arc<Inner>,
    path: PathBuf,
    file: Arc<dyn File>,
    named: bool,
}

impl Temporary {
    /// Syncs, names and registers the file.
    fn publish(mut self) -> io::Result<Snapshot> {
        self.file.sync()?;
        let mut snapshot = Snapshot::open(&*self.inner.disk, self.path.clone())?;
        let last = snapshot.meta.last.unwrap_or(LogId { term: 0, index: 0 });
        let name = format!("{:020}-{:020}{SUFFIX}", last.index, last.term);
        snapshot.path = self.inner.dir.join(name);
        self.inner.disk.rename(&self.path, &snapshot.path)?;
        self.named = true;
        self.inner.disk.sync_dir(&self.inner.dir)?;
        let mut stored = self.inner.stored.lock();
        stored.retain(|other| other.path != snapshot.path);
        stored.push(snapshot.clone());
        stored.sort_by_key(|snapshot| snapshot.meta.last);
        self.inner.prune(&mut stored);
        Ok(snapshot)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.named {
            // What is left is removed at the next start.
            let _ = self.inner.disk.remove(&self.path);
        }
    }
}

/// Takes the state in and writes it framed. Dropped without [`Builder::finish`]: nothing happened.
pub struct Builder {
    temporary: Temporary,
    at: u64,
    header_crc: u32,
    frames: u64,
    /// The next frame, its head left open.
    frame: Vec<u8>,
}

fn empty_frame() -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + limits::SNAPSHOT_FRAME_BYTES);
    frame.put_u64_le(0);
    frame
}

fn frame_crc(header_crc: u32, frame: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(header_crc, &frame.to_le_bytes()), bytes)
}

impl Builder {
    /// Makes the snapshot durable; it is the latest from now on if it is the newest.
    pub fn finish(mut self) -> io::Result<Snapshot> {
        if self.frame.len() > FRAME_HEAD_BYTES {
            self.write_frame()?;
        }
        self.write_frame()?;
        self.temporary.publish()
    }

    fn write_frame(&mut self) -> io::Result<()> {
        let len = (self.frame.len() - FRAME_HEAD_BYTES) as u32;
        let crc = frame_crc(self.header_crc, self.frames, &self.frame[FRAME_HEAD_BYTES..]);
        self.frame[..4].copy_from_slice(&len.to_le_bytes());
        self.frame[4..FRAME_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.temporary.file.write_at(&self.frame, self.at)?;
        self.at += self.frame.len() as u64;
        self.frames += 1;
        self.frame.truncate(FRAME_HEAD_BYTES);
        if self.frames % SYNC_EVERY_FRAMES == 0 {
            self.temporary.file.sync()?;
        }
        Ok(())
    }
}

impl Write for Builder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = FRAME_HEAD_BYTES + limits::SNAPSHOT_FRAME_BYTES - self.frame.len();
        let taken = room.min(bytes.len());
        self.frame.extend_from_slice(&bytes[..taken]);
        if taken == room {
            self.write_frame()?;
        }
        Ok(taken)
    }

    /// Nothing is durable before [`Builder::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes in a sent file as it is. Dropped without [`Receiver::finish`]: nothing happened.
pub struct Receiver {
    temporary: Temporary,
    at: u64,
}

impl Receiver {
    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Checks every byte, then makes the snapshot durable.
    pub fn finish(self) -> io::Result<Snapshot> {
        Snapshot::open(&*self.temporary.inner.disk, self.temporary.path.clone())?.verify()?;
        self.temporary.publish()
    }
}

impl Write for Receiver {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.file.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    /// Nothing is durable before [`Receiver::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn encode_header(meta: &Meta) -> Vec<u8> {
    let put_id = |header: &mut Vec<u8>, id: Option<LogId>| {
        header.put_u8(id.is_some().into());
        let id = id.unwrap_or(LogId { term: 0, index: 0 });
        header.put_u64_le(id.term);
        header.put_u64_le(id.index);
    };
    let mut header = Vec::new();
    header.put_slice(MAGIC);
    header.put_u32_le(FORMAT);
    header.put_u32_le(0);
    header.put_u32_le(SHARD);
    put_id(&mut header, meta.last);
    put_id(&mut header, meta.membership_at);
    header.put_slice(&meta.membership);
    let len = (header.len() - 16) as u32;
    header[12..16].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c(&header);
    header.put_u32_le(crc);
    header
}

/// The meta in a header's own bytes; None: too short.
fn decode_header(mut header: Bytes) -> Option<Meta> {
    let take_id = |header: &mut Bytes| {
        let (there, id) = (header.get_u8() == 1, LogId { term: header.get_u64_le(), index: header.get_u64_le() });
        there.then_some(id)
    };
    if header.remaining() < 4 + 17 + 17 {
        return None;
    }
    let _shard = header.get_u32_le();
    Some(Meta { last: take_id(&mut header), membership_at: take_id(&mut header), membership: header })
}

impl Snapshot {
    fn open(disk: &dyn Disk, path: PathBuf) -> Result<Self, Error> {
        let file = disk.open(&path)?;
        let size_bytes = file.size()?;
        let damaged = |what: &str| Error::Damaged { file: path.clone(), offset: 0, what: what.to_owned() };
        let mut head = [0; 16];
        if read_full(&*file, &mut head, 0)? < head.len() || &head[..8] != MAGIC {
            return Err(damaged("it is no snapshot"));
        }
        let (found, len) = (u32_at(&head, 8), u32_at(&head, 12));
        if found > FORMAT {
            return Err(Error::NewerFormat { file: path, found, known: FORMAT });
        }
        if len > MAX_HEADER_BYTES {
            return Err(damaged("its header is too long"));
        }
        let mut header = vec![0; 16 + len as usize + 4];
        if read_full(&*file, &mut header, 0)? < header.len() {
            return Err(damaged("its header is cut off"));
        }
        let crc = u32_at(&header, header.len() - 4);
        header.truncate(header.len() - 4);
        if crc32c::crc32c(&header) != crc {
            return Err(damaged("its header fails its checksum"));
        }
        let body = (header.len() as u64 + 4, crc);
        let meta =
            decode_header(Bytes::from(header).split_off(16)).ok_or_else(|| damaged("its header is too short"))?;
        Ok(Self { meta, size_bytes, path, file, body })
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state's bytes, checked as they come.
    pub fn body(&self) -> Body {
        let (at, header_crc) = self.body;
        let frame = Bytes::new();
        Body { path: self.path.clone(), file: Arc::clone(&self.file), at, header_crc, frames: 0, frame, ended: false }
    }

    /// The file as it is, for sending: at most `max_bytes` from `offset` on; empty at the end.
    pub fn chunk(&self, offset: u64, max_bytes: usize) -> io::Result<Bytes> {
        let len = self.size_bytes.saturating_sub(offset).min(max_bytes as u64);
        let mut bytes = vec![0; len as usize];
        if read_full(&*self.file, &mut bytes, offset)? < bytes.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the snapshot got shorter"));
        }
        Ok(bytes.into())
    }

    /// Reads all of it and checks it.
    pub fn verify(&self) -> io::Result<()> {
        io::copy(&mut self.body(), &mut io::sink()).map(drop)
    }
}

/// Reads a snapshot's state. Ends only where the snapshot was meant to end.
pub struct Body {
    path: PathBuf,
    file: Arc<dyn File>,
    at: u64,
    header_crc: u32,
    frames: u64,
    frame: Bytes,
    ended: bool,
}

impl Body {
    fn next_frame(&mut self) -> io::Result<()> {
        let (file, offset) = (self.path.clone(), self.at);
        let damaged = |what: &str| io::Error::from(Error::Damaged { file, offset, what: what.to_owned() });
        let mut head = [0; FRAME_HEAD_BYTES];
        if read_full(&*self.file, &mut head, self.at)? < head.len() {
            return Err(damaged("the file ends before the snapshot"));
        }
        let len = u32_at(&head, 0) as usize;
        if len > limits::SNAPSHOT_FRAME_BYTES {
            return Err(damaged("a frame is too long"));
        }
        let mut bytes = vec![0; len];
        if read_full(&*self.file, &mut bytes, self.at + FRAME_HEAD_BYTES as u64)? < len {
            return Err(damaged("the file ends inside a frame"));
        }
        if frame_crc(self.header_crc, self.frames, &bytes) != u32_at(&head, 4) {
            return Err(damaged("a frame fails its checksum"));
        }
        self.at += (FRAME_HEAD_BYTES + len) as u64;
        self.frames += 1;
        self.ended = len == 0;
        if self.ended && self.file.size()? != self.at {
            return Err(damaged("the file goes on behind the snapshot"));
        }
        self.frame = bytes.into();
        Ok(())
    }
}

impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.frame.is_empty() && !self.ended {
            self.next_frame()?;
        }
        let taken = buf.len().min(self.frame.len());
        self.frame.copy_to_slice(&mut buf[..taken]);
        Ok(taken)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Crash, Fault, SimDisk};

    fn dir() -> &'static Path {
        Path::new("/snapshots")
    }

    fn meta(index: u64) -> Meta {
        let membership_at = Some(LogId { term: 1, index: 1 });
        Meta { last: Some(LogId { term: 2, index }), membership_at, membership: Bytes::from_static(b"members") }
    }

    fn open(disk: &SimDisk) -> Snapshots {
        Snapshots::open(Arc::new(disk.clone()), dir()).expect("opened")
    }

    fn state(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn build(snapshots: &Snapshots, index: u64, len: usize) -> io::Result<Snapshot> {
        let mut builder = snapshots.build(meta(index))?;
        builder.write_all(&state(len))?;
        builder.finish()
    }

    fn body(snapshot: &Snapshot) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        snapshot.body().read_to_end(&mut bytes).map(|_| bytes)
    }

    #[test]
    fn what_was_finished_survives_and_the_newest_two_are_kept() {
        let disk = SimDisk::new();
        let snapshots = open(&disk);
        for (index, len) in [(5, 0), (9, 100), (12, limits::SNAPSHOT_FRAME_BYTES), (20, 1_000_000)] {
            build(&snapshots, index, len).expect("built");
            assert_eq!(body(&snapshots.latest().expect("one")).expect("whole"), state(len));
        }
        let unfinished = snapshots.build(meta(30)).expect("begun");
        disk.crash(Crash::KeepUnsynced);
        drop(unfinished);
        let snapshots = open(&disk);
        let latest = snapshots.latest().expect("one");
        assert_eq!(latest.meta, meta(20));
        assert_eq!(body(&latest).expect("whole"), state(1_000_000));
        assert_eq!(disk.list(dir()).expect("listed").len(), limits::SNAPSHOTS_KEPT);
    }

    #[test]
    fn a_sent_snapshot_is_checked_before_it_counts() {
        let (here, there) = (SimDisk::new(), SimDisk::new());
        let sent = build(&open(&here), 7, 600_000).expect("built");
        let snapshots = open(&there);
        for hurt in [Some(5), Some(300_000), Some(sent.size_bytes - 1), None] {
            let mut receiver = snapshots.receive().expect("begun");
            while receiver.len() < sent.size_bytes {
                let at = receiver.len();
                let mut chunk = sent.chunk(at, 100_000).expect("readable").to_vec();
                for (byte, offset) in chunk.iter_mut().zip(at..) {
                    *byte ^= u8::from(Some(offset) == hurt);
                }
                receiver.write_all(&chunk).expect("written");
            }
            let installed = receiver.finish();
            assert_eq!(installed.is_err(), hurt.is_some(), "hurt at {hurt:?}");
        }
        let latest = snapshots.latest().expect("the whole one");
        assert_eq!((latest.meta.clone(), body(&latest).expect("whole")), (meta(7), state(600_000)));
        assert_eq!(there.list(dir()).expect("listed").len(), 1, "nothing is left of what failed");
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let disk = SimDisk::new();
        let path = build(&open(&disk), 7, 300).expect("built").path().to_path_buf();
        let size = disk.content(&path).len();
        let read = |disk: &SimDisk| -> io::Result<()> {
            Snapshots::open(Arc::new(disk.clone()), dir())?.latest().expect("one").verify()
        };
        read(&disk).expect("whole");
        for bit in 0..size * 8 {
            let hurt = disk.fork();
            hurt.damage(&path, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            assert!(read(&hurt).is_err(), "bit {bit}");
        }
        for cut in 0..size {
            let hurt = disk.fork();
            hurt.damage(&path, |bytes| bytes.truncate(cut));
            assert!(read(&hurt).is_err(), "cut at {cut}");
        }
        let mut longer = disk.content(&path);
        longer.push(0);
        disk.damage(&path, |bytes| *bytes = longer);
        assert!(read(&disk).is_err());
    }

    #[test]
    fn a_failure_at_any_operation_leaves_the_old_or_the_new() {
        let life = |disk: &SimDisk| -> io::Result<()> {
            let snapshots = Snapshots::open(Arc::new(disk.clone()), dir())?;
            for index in [1, 2, 3, 4] {
                build(&snapshots, index, 3000)?;
            }
            Ok(())
        };
        let disk = SimDisk::new();
        life(&disk).expect("nothing fails");
        for operation in 0..disk.operations() {
            for (fault, crash) in [
                (Fault::Error, Crash::KeepUnsynced),
                (Fault::Halt, Crash::DropUnsynced),
                (Fault::Halt, Crash::Tear(operation)),
            ] {
                let disk = SimDisk::new();
                build(&open(&disk), 0, 10).expect("built");
                disk.fail(operation, fault);
                let _ = life(&disk);
                disk.crash(crash);
                let (latest, errors) = open(&disk).latest_valid();
                assert!(
                    latest.is_some() && errors.is_empty(),
                    "operation {operation}, {fault:?}, {crash:?}: {errors:?}"
                );
            }
        }
    }

    #[test]
    fn a_damaged_newest_gives_way_to_the_one_before() {
        let disk = SimDisk::new();
        let snapshots = open(&disk);
        build(&snapshots, 1, 1000).expect("built");
        let newest = build(&snapshots, 2, 1000).expect("built");
        disk.damage(newest.path(), |bytes| bytes[500] ^= 4);
        let (valid, errors) = open(&disk).latest_valid();
        assert_eq!(valid.expect("the older").meta, meta(1));
        assert!(errors[0].to_string().contains("fails its checksum"), "{errors:?}");
    }
}
