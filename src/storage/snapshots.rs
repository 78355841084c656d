//! Snapshots as files: a header, then the state in checked frames.
//!
//! ```text
//! "WHARFSNP" | format u32 | header length u32 | header | crc32c u32
//! length u32 | crc32c u32 | bytes          as often as needed
//! 0 u32      | crc32c u32 | length of the state u64
//! ```
//!
//! Little endian. A frame's checksum begins with the header's and the frame's number, so frames
//! cannot be swapped, lost or taken from another snapshot; the last one proves that the file ends
//! where it was meant to.
//!
//! Invariants: a snapshot gets its name only when it is synced, and counts only when its name is.
//! The state is checked at every read, also when it is sent; the follower that takes it in builds
//! its own file from it. The caller purges the log only after `finish`.

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
use crate::types::mutant::{self, Mutant};

const MAGIC: &[u8; 8] = b"WHARFSNP";
const FORMAT: u32 = 1;
const SHARD: u32 = 0;
const SUFFIX: &str = ".snap";
const TEMPORARY: &str = ".tmp";
/// Membership is all that grows in a header.
const MAX_HEADER_BYTES: u32 = 1 << 20;
const FRAME_HEAD_BYTES: usize = 8;
const END_BYTES: usize = 16;
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
    /// Of the state in it.
    pub state_bytes: u64,
    /// Of the file.
    pub file_bytes: u64,
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
    /// Why a file that was there could not be opened.
    damaged: Vec<String>,
    temporaries: AtomicU64,
}

impl Snapshots {
    /// Opens the directory, makes it if need be, and clears what was not finished. A damaged file
    /// stays where it is and is told by [`Snapshots::latest_valid`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        disk.create_dir(dir)?;
        let (mut stored, mut damaged) = (Vec::new(), Vec::new());
        for name in disk.list(dir)? {
            let path = dir.join(&name);
            if name.ends_with(TEMPORARY) {
                disk.remove(&path)?;
            } else if name.ends_with(SUFFIX) {
                match Snapshot::open(&*disk, path) {
                    Ok(snapshot) => stored.push(snapshot),
                    Err(error @ Error::Damaged { .. }) => damaged.push(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
        }
        // A name that a dying process gave may not be on disk yet, and is relied on from now on.
        disk.sync_dir(dir)?;
        stored.sort_by_key(|snapshot| snapshot.meta.last);
        let inner =
            Inner { disk, dir: dir.to_path_buf(), stored: Mutex::new(stored), damaged, temporaries: AtomicU64::new(0) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The newest snapshot. Its body is checked as it is read; see [`Snapshot::verify`].
    pub fn latest(&self) -> Option<Snapshot> {
        self.inner.stored.lock().last().cloned()
    }

    /// The newest snapshot whose every byte checks, and why others did not. The caller sees whether
    /// the log reaches back to it (`Home::check_covers`).
    pub fn latest_valid(&self) -> (Option<Snapshot>, Vec<String>) {
        let mut errors = self.inner.damaged.clone();
        let stored = self.inner.stored.lock().clone();
        for snapshot in stored.into_iter().rev() {
            match snapshot.verify() {
                Ok(()) => return (Some(snapshot), errors),
                Err(error) => errors.push(error.to_string()),
            }
        }
        (None, errors)
    }

    /// Begins a snapshot: of this node's own state, or of what the leader sends.
    pub fn build(&self, meta: Meta) -> io::Result<Builder> {
        let temporary = self.temporary()?;
        let header = encode_header(&meta);
        let crc = u32::from_le_bytes(header[header.len() - 4..].try_into().expect("four bytes"));
        temporary.file.write_at(&header, 0)?;
        Ok(Builder {
            temporary,
            at: header.len() as u64,
            header_crc: crc,
            frames: 0,
            state_bytes: 0,
            frame: empty_frame(),
        })
    }

    /// What the snapshots take on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.inner.stored.lock().iter().map(|snapshot| snapshot.file_bytes).sum()
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
        if !mutant::is(Mutant::PublishUnsynced) {
            self.file.sync()?;
        }
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
    state_bytes: u64,
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
        let state_bytes = self.state_bytes.to_le_bytes();
        let mut end = [0; END_BYTES];
        end[4..FRAME_HEAD_BYTES].copy_from_slice(&frame_crc(self.header_crc, self.frames, &state_bytes).to_le_bytes());
        end[FRAME_HEAD_BYTES..].copy_from_slice(&state_bytes);
        self.temporary.file.write_at(&end, self.at)?;
        self.temporary.publish()
    }

    fn write_frame(&mut self) -> io::Result<()> {
        let len = (self.frame.len() - FRAME_HEAD_BYTES) as u32;
        self.state_bytes += u64::from(len);
        let crc = frame_crc(self.header_crc, self.frames, &self.frame[FRAME_HEAD_BYTES..]);
        self.frame[..4].copy_from_slice(&len.to_le_bytes());
        self.frame[4..FRAME_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        self.temporary.file.write_at(&self.frame, self.at)?;
        self.at += self.frame.len() as u64;
        self.frames += 1;
        self.frame.truncate(FRAME_HEAD_BYTES);
        if self.frames.is_multiple_of(SYNC_EVERY_FRAMES) {
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
        let file_bytes = file.size()?;
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
        let mut end = [0; END_BYTES];
        let end_at = file_bytes.saturating_sub(END_BYTES as u64).max(body.0);
        if read_full(&*file, &mut end, end_at)? < end.len() {
            return Err(damaged("its end is cut off"));
        }
        let state_bytes = u64::from_le_bytes(end[FRAME_HEAD_BYTES..].try_into().expect("eight bytes"));
        Ok(Self { meta, state_bytes, file_bytes, path, file, body })
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state's bytes, checked as they come.
    pub fn body(&self) -> Body {
        let (at, header_crc) = self.body;
        Body {
            path: self.path.clone(),
            file: Arc::clone(&self.file),
            at,
            header_crc,
            frames: 0,
            state_bytes: 0,
            frame: Bytes::new(),
            ended: false,
        }
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
    state_bytes: u64,
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
        // The end's frame holds the state's length instead of state.
        self.ended = len == 0;
        let mut bytes = vec![0; if self.ended { END_BYTES - FRAME_HEAD_BYTES } else { len }];
        if read_full(&*self.file, &mut bytes, self.at + FRAME_HEAD_BYTES as u64)? < bytes.len() {
            return Err(damaged("the file ends inside a frame"));
        }
        if frame_crc(self.header_crc, self.frames, &bytes) != u32_at(&head, 4) {
            return Err(damaged("a frame fails its checksum"));
        }
        self.at += (FRAME_HEAD_BYTES + bytes.len()) as u64;
        self.frames += 1;
        if !self.ended {
            self.state_bytes += len as u64;
            self.frame = bytes.into();
        } else if self.file.size()? != self.at || bytes != self.state_bytes.to_le_bytes() {
            return Err(damaged("it is not as long as it says"));
        }
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
    fn a_follower_builds_its_own_from_what_is_sent() {
        let (here, there) = (SimDisk::new(), SimDisk::new());
        let sent = build(&open(&here), 7, 600_000).expect("built");
        assert_eq!(sent.state_bytes, 600_000);
        let snapshots = open(&there);
        let mut builder = snapshots.build(sent.meta.clone()).expect("begun");
        io::copy(&mut sent.body().take(1000), &mut builder).expect("taken in");
        drop(builder);
        assert!(there.list(dir()).expect("listed").is_empty(), "nothing is left of half a snapshot");
        let mut builder = snapshots.build(sent.meta.clone()).expect("begun");
        io::copy(&mut sent.body(), &mut builder).expect("taken in");
        let installed = builder.finish().expect("durable");
        assert_eq!((installed.meta.clone(), body(&installed).expect("whole")), (meta(7), state(600_000)));
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let disk = SimDisk::new();
        let path = build(&open(&disk), 7, 300).expect("built").path().to_path_buf();
        let size = disk.content(&path).len();
        let read = |disk: &SimDisk| -> io::Result<()> {
            let (valid, errors) = Snapshots::open(Arc::new(disk.clone()), dir())?.latest_valid();
            assert_eq!(valid.is_none(), !errors.is_empty());
            valid.map(drop).ok_or(io::ErrorKind::InvalidData.into())
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
        assert!(errors[0].contains("fails its checksum"), "{errors:?}");
    }
}
