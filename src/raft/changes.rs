//! The latest changes of packages, as this node applied them: a ring that many read, each at its own
//! pace, to watch packages or to keep their history.
//!
//! Invariants: the ring holds every change from its oldest revision to the state's, each once, in
//! order; all nodes hold the same ones, so a reader may go on at a revision on any of them. A reader
//! that the ring has left behind is told so: it never misses anything without knowing. Apply appends
//! and goes on, whatever readers do; waking them is a task of its own. What is kept is bounded by
//! number and by bytes.
//!
//! Absent on purpose: what readers make of a change, and changes from before the node's snapshot.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::machine::Change;
use crate::types::mutant::{self, Mutant};
use crate::types::{QueueName, Revision, limits};

/// The changes of one batch.
pub type Chunk = Arc<Vec<Change>>;

/// See the module. Shared by the machine's adapter, which appends, and by readers.
pub struct Changes {
    ring: Mutex<Ring>,
    appended: Notify,
    readers: Mutex<Readers>,
}

struct Ring {
    kept: VecDeque<Kept>,
    count: usize,
    bytes: usize,
    bounds: Bounds,
    /// From this revision on nothing is missing.
    oldest: u64,
    /// The state's revision.
    latest: u64,
}

struct Kept {
    chunk: Chunk,
    bytes: usize,
}

impl Kept {
    fn last(&self) -> u64 {
        self.chunk.last().map_or(0, |change| change.revision.0)
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub count: usize,
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { count: limits::CHANGES_KEPT, bytes: limits::CHANGES_KEPT_BYTES }
    }
}

/// Who is to be woken. Every change up to `routed` has woken whom it concerns.
#[derive(Default)]
struct Readers {
    of_queue: BTreeMap<QueueName, Vec<Arc<Signal>>>,
    of_all: Vec<Arc<Signal>>,
    routed: u64,
}

#[derive(Default)]
struct Signal {
    wake: Notify,
    /// The last change that concerns the reader.
    touched: AtomicU64,
}

/// The changes wanted are not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes are kept from revision {oldest} on")]
pub struct Compacted {
    pub oldest: Revision,
}

/// As many readers as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} readers follow the changes already")]
pub struct Full {
    pub limit: usize,
}

impl Changes {
    pub fn new(bounds: Bounds) -> Arc<Self> {
        let ring = Ring { kept: VecDeque::new(), count: 0, bytes: 0, bounds, oldest: 1, latest: 0 };
        Arc::new(Self { ring: Mutex::new(ring), appended: Notify::new(), readers: Mutex::default() })
    }

    /// Takes the changes of a batch, after which the state is at `revision`. Never waits.
    pub fn append(&self, mut changes: Vec<Change>, revision: Revision) {
        if mutant::is(Mutant::SkipChange) {
            changes.pop();
        }
        let told = !changes.is_empty();
        // What is kept long must not keep much room that nobody uses.
        if changes.capacity() > changes.len() + changes.len() / 4 {
            changes.shrink_to_fit();
        }
        let bytes = changes.iter().map(Change::bytes).sum();
        let gone = {
            let mut ring = self.ring.lock();
            ring.latest = revision.0;
            if told { ring.push(Kept { chunk: Arc::new(changes), bytes }) } else { Vec::new() }
        };
        // Freeing them may take long; nobody waits for it.
        drop(gone);
        if told {
            self.appended.notify_one();
        }
    }

    /// The state was replaced: what led to it is not known here.
    pub fn restart(&self, revision: Revision) {
        let gone = {
            let mut ring = self.ring.lock();
            (ring.oldest, ring.latest) = (revision.0 + 1, revision.0);
            (ring.count, ring.bytes) = (0, 0);
            std::mem::take(&mut ring.kept)
        };
        drop(gone);
        self.appended.notify_one();
    }

    /// A reader of one queue's changes, or of all, that begins at `start`; 0: with the next change.
    pub fn read(self: &Arc<Self>, queue: Option<QueueName>, start: Revision) -> Result<Reader, Full> {
        let signal = Arc::new(Signal::default());
        let (place, registered) = {
            let mut readers = self.readers.lock();
            if readers.count() >= limits::MAX_CHANGE_READERS {
                return Err(Full { limit: limits::MAX_CHANGE_READERS });
            }
            readers.of(&queue).push(signal.clone());
            (queue, readers.routed)
        };
        let next = if start.0 == 0 { self.latest().0 + 1 } else { start.0 };
        Ok(Reader { changes: self.clone(), queue: place, signal, registered, next })
    }

    /// The state's revision.
    pub fn latest(&self) -> Revision {
        Revision(self.ring.lock().latest)
    }

    /// Wakes readers for as long as the node lives.
    pub async fn route(self: Arc<Self>) {
        let mut next = 1;
        loop {
            self.appended.notified().await;
            loop {
                let taken = self.ring.lock().take(next, limits::CHANGES_A_READ);
                let mut readers = self.readers.lock();
                match taken {
                    Ok(taken) => readers.wake(&taken),
                    // The ring went on faster, or begins anew: everybody looks for themselves.
                    Err(Compacted { oldest }) => readers.wake_all(oldest.0 - 1),
                }
                if readers.routed + 1 == next {
                    break;
                }
                next = readers.routed + 1;
            }
        }
    }

    /// Keeps less or more from now on.
    #[cfg(test)]
    pub fn bound(&self, bounds: Bounds) {
        self.ring.lock().bounds = bounds;
    }

    /// Readers at this moment.
    pub fn readers(&self) -> usize {
        self.readers.lock().count()
    }

    /// How much is kept: changes and bytes.
    pub fn kept(&self) -> (usize, usize) {
        let ring = self.ring.lock();
        (ring.count, ring.bytes)
    }
}

impl Ring {
    /// Answers what had to go for it.
    fn push(&mut self, kept: Kept) -> Vec<Kept> {
        self.count += kept.chunk.len();
        self.bytes += kept.bytes;
        self.kept.push_back(kept);
        let mut gone = Vec::new();
        while self.count > self.bounds.count || self.bytes > self.bounds.bytes {
            let Some(first) = self.kept.pop_front() else { break };
            self.count -= first.chunk.len();
            self.bytes -= first.bytes;
            self.oldest = first.last() + 1;
            gone.push(first);
        }
        gone
    }

    /// About `most` changes from `next` on.
    fn take(&self, next: u64, most: usize) -> Result<Taken, Compacted> {
        if next < self.oldest {
            return Err(Compacted { oldest: Revision(self.oldest) });
        }
        let first = self.place(next);
        let mut taken = Taken { chunks: Vec::new(), from: next, upto: self.latest };
        let mut count = 0;
        for kept in self.kept.range(first..) {
            if count >= most {
                taken.upto = taken.chunks.last().and_then(|chunk| chunk.last()).map_or(0, |change| change.revision.0);
                break;
            }
            count += kept.chunk.len();
            taken.chunks.push(kept.chunk.clone());
        }
        // A reader from the future has nothing to read, and stays where it is.
        taken.upto = taken.upto.max(next - 1);
        Ok(taken)
    }

    /// The first of what is kept that reaches `next`. Sought from the end, where most readers are.
    fn place(&self, next: u64) -> usize {
        let len = self.kept.len();
        let ends_before = |place: usize| self.kept[place].last() < next;
        let mut step = 1;
        while step < len && !ends_before(len - step) {
            step *= 2;
        }
        let (mut low, mut high) = (len.saturating_sub(step), len - step / 2);
        while low < high {
            let middle = low.midpoint(high);
            if ends_before(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Less than half of what is kept lies after this revision.
    fn half(&self) -> u64 {
        self.kept.get(self.kept.len() / 2).map_or(self.oldest, Kept::last)
    }
}

impl Readers {
    fn count(&self) -> usize {
        self.of_all.len() + self.of_queue.values().map(Vec::len).sum::<usize>()
    }

    fn of(&mut self, queue: &Option<QueueName>) -> &mut Vec<Arc<Signal>> {
        match queue {
            Some(queue) => self.of_queue.entry(queue.clone()).or_default(),
            None => &mut self.of_all,
        }
    }

    fn wake(&mut self, taken: &Taken) {
        if !self.of_queue.is_empty() {
            // Neighbours are often of one queue: it is looked up once.
            let mut last: Option<&QueueName> = None;
            for change in taken.iter() {
                let queue = change.queue();
                if last != Some(queue) {
                    last = Some(queue);
                    wake_each(self.of_queue.get(queue), taken.upto);
                }
            }
        }
        if taken.iter().next().is_some() {
            wake_each(Some(&self.of_all), taken.upto);
        }
        self.routed = taken.upto;
    }

    fn wake_all(&mut self, upto: u64) {
        for signals in self.of_queue.values().chain([&self.of_all]) {
            wake_each(Some(signals), upto);
        }
        self.routed = upto;
    }

    fn forget(&mut self, queue: &Option<QueueName>, signal: &Arc<Signal>) {
        let signals = self.of(queue);
        signals.retain(|other| !Arc::ptr_eq(other, signal));
        if let Some(queue) = queue
            && signals.is_empty()
        {
            self.of_queue.remove(queue);
        }
    }
}

fn wake_each(signals: Option<&Vec<Arc<Signal>>>, upto: u64) {
    for signal in signals.into_iter().flatten() {
        signal.touched.store(upto, Ordering::Release);
        signal.wake.notify_one();
    }
}

/// What one look at the ring gave.
pub struct Taken {
    chunks: Vec<Chunk>,
    from: u64,
    upto: u64,
}

impl Taken {
    /// The changes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Change> {
        let fresh = |change: &&Change| change.revision.0 >= self.from;
        self.chunks.iter().flat_map(|chunk| chunk.iter()).skip_while(move |change| !fresh(change))
    }

    /// All up to this revision has been read.
    pub fn upto(&self) -> Revision {
        Revision(self.upto)
    }

    /// Nothing is new.
    pub fn is_empty(&self) -> bool {
        self.upto < self.from
    }
}

/// One who reads along. Dropping it lets its place go.
pub struct Reader {
    changes: Arc<Changes>,
    queue: Option<QueueName>,
    signal: Arc<Signal>,
    /// Up to here, changes were routed before this reader was known.
    registered: u64,
    /// The next revision to read.
    next: u64,
}

impl Reader {
    /// What is new since the last look; of other queues, too. Moves on.
    pub fn take(&mut self) -> Result<Taken, Compacted> {
        let taken = self.changes.ring.lock().take(self.next, limits::CHANGES_A_READ)?;
        self.next = taken.upto + 1;
        Ok(taken)
    }

    /// Leaves out what it was left behind by.
    pub fn go_on_at(&mut self, revision: Revision) {
        self.next = self.next.max(revision.0);
    }

    /// Whether what it reads next is still kept.
    pub fn check(&self) -> Result<(), Compacted> {
        let oldest = self.changes.ring.lock().oldest;
        if self.next < oldest { Err(Compacted { oldest: Revision(oldest) }) } else { Ok(()) }
    }

    /// Waits until there is something new for it. May wake for nothing.
    pub async fn changed(&self) {
        self.signal.wake.notified().await;
    }

    /// Moves on over what does not concern it, without reading it.
    pub fn skip_quiet(&mut self) {
        let routed = self.changes.readers.lock().routed;
        let touched = self.signal.touched.load(Ordering::Acquire);
        if self.next > self.registered && touched < self.next {
            self.next = self.next.max(routed + 1);
        }
    }

    /// The next revision that it reads.
    pub fn next(&self) -> Revision {
        Revision(self.next)
    }

    /// More than half of what is kept lies after this revision: who stands there is about to be left behind.
    pub fn is_far_behind(&self, at: Revision) -> bool {
        at.0 <= self.changes.ring.lock().half()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.changes.readers.lock().forget(&self.queue, &self.signal);
    }
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
