//! Snapshots on their way: between the machine, the store that keeps them and a follower.
//!
//! Invariants: a snapshot becomes the latest only whole and durable ([`SnapshotSink::commit`]); a
//! sink that is dropped leaves nothing behind. Reading and writing happen off the apply path, in
//! pieces, so that none is in memory whole.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::proto::internal as pb;
use crate::types::limits;

/// Keeps snapshots. `head` holds log id and membership; its envelope and vote mean nothing here.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Begins a new one.
    fn create(&self, head: &pb::SnapshotHead) -> io::Result<Box<dyn SnapshotSink>>;

    /// The latest that was committed.
    fn latest(&self) -> io::Result<Option<(pb::SnapshotHead, Arc<dyn SnapshotSource>)>>;
}

/// A snapshot being written.
pub trait SnapshotSink: Write + Send {
    /// Durable, and the latest, when it returns; older ones are gone.
    fn commit(self: Box<Self>) -> io::Result<Arc<dyn SnapshotSource>>;
}

/// A snapshot that is kept. Reads fail on damage instead of giving wrong bytes.
pub trait SnapshotSource: Send + Sync {
    fn open(&self) -> io::Result<Box<dyn Read + Send>>;

    /// Of what `open` gives.
    fn size_bytes(&self) -> u64;
}

/// Where work that blocks goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// Tokio's blocking threads.
    Threads,
    /// The calling task: a simulation has one thread, and its disk does not block.
    Inline,
}

impl Blocking {
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Blocking::Threads => tokio::task::spawn_blocking(work).await.map_err(io::Error::other),
            Blocking::Inline => Ok(work()),
        }
    }
}

/// openraft's handle to a snapshot's content.
pub enum Snapshot {
    Kept(Arc<dyn SnapshotSource>),
    /// Came from the leader; kept once Raft wants it.
    Received(Box<dyn SnapshotSink>),
}

impl Snapshot {
    pub fn size(&self) -> u64 {
        match self {
            Snapshot::Kept(source) => source.size_bytes(),
            Snapshot::Received(_) => 0,
        }
    }

    /// The snapshot in the pieces that travel, `head` first. A read that fails ends them early:
    /// the receiver misses bytes and refuses.
    pub fn chunks(&self, blocking: Blocking, head: pb::SnapshotHead) -> io::Result<ReceiverStream<pb::SnapshotChunk>> {
        let Snapshot::Kept(source) = self else {
            return Err(io::Error::other("a snapshot that was not kept yet cannot be sent"));
        };
        let mut from = source.open()?;
        let (to, chunks) = mpsc::channel(limits::SNAPSHOT_CHUNKS_AHEAD);
        let mut next_head = Some(head);
        let mut next = move || -> io::Result<Option<pb::SnapshotChunk>> {
            let mut data = vec![0; limits::SNAPSHOT_CHUNK_BYTES];
            let len = read_full(&mut from, &mut data)?;
            data.truncate(len);
            let head = next_head.take();
            Ok((head.is_some() || len > 0).then(|| pb::SnapshotChunk { head, data: Bytes::from(data) }))
        };
        let failed = |error: io::Error| tracing::error!(%error, "cannot read the snapshot that a follower needs");
        match blocking {
            Blocking::Threads => drop(tokio::task::spawn_blocking(move || {
                loop {
                    let sent = match next() {
                        Ok(Some(chunk)) => to.blocking_send(chunk),
                        Ok(None) => return,
                        Err(error) => return failed(error),
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            })),
            Blocking::Inline => drop(tokio::spawn(async move {
                loop {
                    let sent = match next() {
                        Ok(Some(chunk)) => to.send(chunk).await,
                        Ok(None) => return,
                        Err(error) => return failed(error),
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            })),
        }
        Ok(ReceiverStream::new(chunks))
    }
}

/// Fills `buffer`; less only at the end.
fn read_full(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A store without a disk, for tests and simulations. Clones share what they keep.
#[derive(Clone, Default)]
pub struct MemorySnapshots {
    latest: Arc<Mutex<Option<(pb::SnapshotHead, Bytes)>>>,
}

impl SnapshotStore for MemorySnapshots {
    fn create(&self, head: &pb::SnapshotHead) -> io::Result<Box<dyn SnapshotSink>> {
        Ok(Box::new(MemorySink { store: self.clone(), head: head.clone(), data: Vec::new() }))
    }

    fn latest(&self) -> io::Result<Option<(pb::SnapshotHead, Arc<dyn SnapshotSource>)>> {
        let latest = self.latest.lock().clone();
        Ok(latest.map(|(head, data)| (head, Arc::new(MemorySource(data)) as Arc<dyn SnapshotSource>)))
    }
}

struct MemorySink {
    store: MemorySnapshots,
    head: pb::SnapshotHead,
    data: Vec<u8>,
}

impl Write for MemorySink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.data.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotSink for MemorySink {
    fn commit(self: Box<Self>) -> io::Result<Arc<dyn SnapshotSource>> {
        let data = Bytes::from(self.data);
        *self.store.latest.lock() = Some((self.head, data.clone()));
        Ok(Arc::new(MemorySource(data)))
    }
}

struct MemorySource(Bytes);

impl SnapshotSource for MemorySource {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(self.0.clone())))
    }

    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}
