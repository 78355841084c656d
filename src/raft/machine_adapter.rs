//! The machine as openraft's state machine.
//!
//! Invariants: entries are applied in the order of the log, each exactly once; a broken machine
//! halts the node before anything later is applied. Effects leave only while this node leads, from
//! its own `LeaderStarted` on; a full feed loses them and says so. Hashing and writing snapshots
//! happen on a frozen state, off the apply path.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::{Stream, StreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StoredMembership};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::changes::{Bounds, Changes};
use super::clock::AppliedTime;
use super::counters::Counters;
use super::handle::{EffectBatch, Feed, FingerprintResult};
use super::snapshots::{Blocking, Snapshot, meta_from_stored, meta_to_stored};
use super::types::{GroupReply, TypeConfig};
use super::{Fatal, SkipEntry};
use crate::machine::command::{Batch, Op};
use crate::machine::{Applied, Broken, Effect, Frozen, Machine, Meta};
use crate::storage::snapshots::{Snapshot as Kept, Snapshots};
use crate::types::mutant::{self, Mutant};
use crate::types::{NodeId, Revision, limits};

/// The machine and what stands around it; shared with the handle and the tasks.
pub struct State {
    pub node: NodeId,
    pub machine: RwLock<Machine>,
    /// The highest machine version that this program applies.
    machine_version: u32,
    pub time: Arc<AppliedTime>,
    pub counters: Arc<Counters>,
    pub changes: Arc<Changes>,
    pub blocking: Blocking,
    /// Something was applied.
    pub applied: Notify,
    /// The term whose `LeaderStarted` this node proposes: effects flow from there on. 0: none.
    pub feed_term: AtomicU64,
    feed: mpsc::Sender<Feed>,
    gap: AtomicBool,
    pub fingerprint: watch::Sender<Option<FingerprintResult>>,
    skip: Option<SkipEntry>,
    fatal: mpsc::Sender<Fatal>,
}

impl State {
    pub fn new(
        node: NodeId,
        machine_version: u32,
        counters: Arc<Counters>,
        blocking: Blocking,
        skip: Option<SkipEntry>,
        fatal: mpsc::Sender<Fatal>,
    ) -> (Arc<Self>, mpsc::Receiver<Feed>) {
        let (feed, effects) = mpsc::channel(limits::MAX_EFFECT_BATCHES);
        let state = Self {
            node,
            machine: RwLock::new(Machine::new().knowing(machine_version)),
            machine_version,
            time: Arc::default(),
            counters,
            changes: Changes::new(Bounds::default()),
            blocking,
            applied: Notify::new(),
            feed_term: AtomicU64::new(0),
            feed,
            gap: AtomicBool::new(false),
            fingerprint: watch::Sender::new(None),
            skip,
            fatal,
        };
        (Arc::new(state), effects)
    }

    /// Applies one batch; the error halts the node.
    fn apply(self: &Arc<Self>, meta: Meta, bytes: &bytes::Bytes) -> Result<GroupReply, Broken> {
        if self.skips(meta.index, bytes) {
            self.machine.write().skip(meta);
            return Ok(GroupReply::default());
        }
        let decoded = Batch::decode(bytes.clone());
        let mut batch = decoded.map_err(|error| Broken::Invariant(format!("undecodable: {error}")))?;
        if mutant::is(Mutant::ClockInApply) {
            batch.ticks += self.node;
        }
        let started = Instant::now();
        let (applied, revision) = naming(meta.index, bytes, || {
            let mut machine = self.machine.write();
            // Only the leader's go anywhere, and its term is known here before its first entry is written.
            machine.deliver(self.feed_term.load(Ordering::Acquire) != 0);
            let applied = machine.apply(meta, &batch)?;
            Ok((applied, machine.revision()))
        })?;
        self.counters.applied(started.elapsed());
        self.time.note(batch.ticks, batch.wall);
        let Applied { outcomes, mut effects, changes } = applied;
        self.changes.append(changes, revision);
        if effects.iter().any(|effect| matches!(effect, Effect::Fingerprint)) {
            effects.retain(|effect| !matches!(effect, Effect::Fingerprint));
            self.take_fingerprint(meta.index);
        }
        self.feed(meta, &batch, revision, effects);
        Ok(GroupReply(outcomes))
    }

    /// An operator named this very entry as one to pass over.
    fn skips(&self, index: u64, bytes: &[u8]) -> bool {
        let Some(skip) = self.skip.filter(|skip| skip.index == index) else { return false };
        let crc = crc32c::crc32c(bytes);
        if crc == skip.crc {
            tracing::warn!(index, crc, "passing over a log entry, as configured");
            return true;
        }
        tracing::error!(index, crc, configured = skip.crc, "recovery.skip_entry names another entry: not skipped");
        false
    }

    /// Hands the effects on if this batch is of the leadership that the feed serves.
    fn feed(&self, meta: Meta, batch: &Batch, revision: Revision, effects: Vec<Effect>) {
        let serving = self.feed_term.load(Ordering::Acquire);
        if meta.term != serving & TERM_BITS || serving == 0 {
            return;
        }
        if serving & STARTED_BIT == 0 {
            let own = |op: &Option<Op>| matches!(op, Some(Op::LeaderStarted(start)) if start.term == meta.term && start.node == self.node);
            if !batch.commands.iter().any(|command| own(&command.op)) {
                return;
            }
            // Lost against a change of leadership: then that one's word holds.
            let started = serving | STARTED_BIT;
            let _ = self.feed_term.compare_exchange(serving, started, Ordering::AcqRel, Ordering::Relaxed);
        }
        if self.gap.load(Ordering::Relaxed) && self.feed.try_send(Feed::Gap).is_ok() {
            self.gap.store(false, Ordering::Relaxed);
        }
        if effects.is_empty() {
            return;
        }
        let feed = Feed::Batch(EffectBatch { index: meta.index, term: meta.term, revision, effects });
        if self.gap.load(Ordering::Relaxed) || self.feed.try_send(feed).is_err() {
            self.gap.store(true, Ordering::Relaxed);
        }
    }

    /// Effects of this term flow once its `LeaderStarted` is applied. 0: none any more.
    pub fn serve_feed(&self, term: u64) {
        self.feed_term.store(term, Ordering::Release);
    }

    fn take_fingerprint(self: &Arc<Self>, index: u64) {
        let frozen = self.machine.read().freeze_with_counts();
        let state = Arc::clone(self);
        let work = move || FingerprintResult { index, hash: frozen.hash(), violations: frozen.check() };
        tokio::spawn(async move {
            match state.blocking.run(work).await {
                Ok(result) => {
                    if !result.violations.is_empty() {
                        tracing::error!(index, violations = ?result.violations, "the state breaks its invariants");
                    }
                    // Two may overlap: the later index stays.
                    state.fingerprint.send_if_modified(|last| {
                        let later = last.as_ref().is_none_or(|last| last.index < index);
                        if later {
                            *last = Some(result);
                        }
                        later
                    });
                }
                Err(error) => tracing::error!(index, %error, "no fingerprint"),
            }
        });
    }

    /// The state was replaced as a whole.
    fn replace(&self, machine: Machine) {
        let summary = machine.summary();
        *self.machine.write() = machine;
        self.time.reset(summary.ticks, summary.wall);
        self.changes.restart(summary.revision);
        if self.feed.try_send(Feed::Gap).is_err() {
            self.gap.store(true, Ordering::Relaxed);
        }
        self.applied.notify_one();
    }

    fn halt(&self, fatal: Fatal) -> io::Error {
        let error = io::Error::other(fatal.to_string());
        // The first reason is the one that counts.
        let _ = self.fatal.try_send(fatal);
        error
    }
}

thread_local! {
    /// The entry that this thread applies now.
    static APPLYING: RefCell<Option<(u64, bytes::Bytes)>> = const { RefCell::new(None) };
}

/// Lets [`died_applying`] name the entry if `apply` panics.
pub(crate) fn naming<R>(index: u64, bytes: &bytes::Bytes, apply: impl FnOnce() -> R) -> R {
    APPLYING.set(Some((index, bytes.clone())));
    let applied = apply();
    APPLYING.set(None);
    applied
}

/// For the panic hook: what to say if this thread's panic comes from a log entry. The same entry would
/// end every node at each start, so an operator must learn how to name it. Such a panic is not
/// caught: it may have left the state half changed, and nobody may look at that.
pub fn died_applying() -> Option<Fatal> {
    let (index, bytes) = APPLYING.try_with(|applying| applying.try_borrow().ok()?.clone()).ok()??;
    let broken = Broken::Invariant("the machine panicked".to_owned());
    Some(Fatal::Broken { index, crc: crc32c::crc32c(&bytes), broken })
}

/// `State::feed_term` keeps, beside the term, whether its `LeaderStarted` was applied.
const STARTED_BIT: u64 = 1 << 63;
const TERM_BITS: u64 = STARTED_BIT - 1;

/// A node's snapshots, and the one in use: the newest whose every byte checks.
pub struct Shelf {
    files: Snapshots,
    current: Mutex<Option<Kept>>,
}

impl Shelf {
    /// Reads through what is kept; slow for a large snapshot.
    pub fn new(files: Snapshots) -> Self {
        let (valid, errors) = files.latest_valid();
        for error in errors {
            tracing::error!(%error, "a snapshot is damaged: using the one before");
        }
        Self { files, current: Mutex::new(valid) }
    }

    pub fn files(&self) -> &Snapshots {
        &self.files
    }

    pub fn current(&self) -> Option<Kept> {
        self.current.lock().clone()
    }

    /// A newer one came meanwhile: it stays.
    fn use_from_now(&self, kept: &Kept) {
        let mut current = self.current.lock();
        if current.as_ref().is_none_or(|current| current.meta.last <= kept.meta.last) {
            *current = Some(kept.clone());
        }
    }
}

/// openraft's side of the machine.
pub struct Adapter {
    state: Arc<State>,
    shelf: Arc<Shelf>,
    last: Option<LogIdOf<TypeConfig>>,
    membership: StoredMembershipOf<TypeConfig>,
}

impl Adapter {
    pub fn new(state: Arc<State>, shelf: Arc<Shelf>) -> Self {
        Self { state, shelf, last: None, membership: StoredMembership::default() }
    }
}

impl RaftStateMachine<TypeConfig> for Adapter {
    type SnapshotData = Snapshot;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let id = entry.log_id;
            let meta = Meta { index: id.index, term: **id.committed_leader_id() };
            let reply = match entry.payload {
                EntryPayload::Normal(bytes) => self.state.apply(meta, &bytes.0).map_err(|broken| {
                    let crc = crc32c::crc32c(&bytes.0);
                    self.state.halt(Fatal::Broken { index: meta.index, crc, broken })
                })?,
                EntryPayload::Blank => {
                    self.state.machine.write().skip(meta);
                    GroupReply::default()
                }
                EntryPayload::Membership(membership) => {
                    self.state.machine.write().skip(meta);
                    self.membership = StoredMembership::new(Some(id), membership);
                    GroupReply::default()
                }
            };
            self.last = Some(id);
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        self.state.applied.notify_one();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            frozen: Some(self.state.machine.read().freeze()),
            meta: SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() },
            state: Arc::clone(&self.state),
            shelf: Arc::clone(&self.shelf),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, snapshot: Snapshot) -> io::Result<()> {
        let received = matches!(snapshot, Snapshot::Received(_));
        let shelf = Arc::clone(&self.shelf);
        let knows = self.state.machine_version;
        let restore = move || -> io::Result<Machine> {
            let kept = match snapshot {
                Snapshot::Kept(kept) => kept,
                Snapshot::Received(file) => file.finish()?,
            };
            let machine = Machine::restore_knowing(&mut kept.body(), knows).map_err(io::Error::other)?;
            shelf.use_from_now(&kept);
            Ok(machine)
        };
        let restored = self.state.blocking.run(restore).await.and_then(|machine| machine);
        let machine = restored.map_err(|error| self.state.halt(Fatal::Snapshot(error.to_string())))?;
        self.state.replace(machine);
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        if received {
            self.state.counters.snapshots_installed.fetch_add(1, Ordering::Relaxed);
            tracing::info!(index = meta.last_log_id.map(|id| id.index), "installed a snapshot from the leader");
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, Snapshot>>> {
        let Some(kept) = self.shelf.current() else { return Ok(None) };
        let meta = meta_from_stored(&kept.meta).map_err(|error| self.state.halt(Fatal::Snapshot(error.to_string())))?;
        Ok(Some(openraft::Snapshot { meta, snapshot: Snapshot::Kept(kept) }))
    }
}

/// Writes a frozen state out.
pub struct Builder {
    frozen: Option<Frozen>,
    meta: SnapshotMetaOf<TypeConfig>,
    state: Arc<State>,
    shelf: Arc<Shelf>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Snapshot;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Snapshot>> {
        let frozen = self.frozen.take().ok_or_else(|| io::Error::other("a builder builds once"))?;
        let (shelf, meta) = (Arc::clone(&self.shelf), meta_to_stored(&self.meta));
        let write = move || {
            let mut file = shelf.files.build(meta)?;
            frozen.write(&mut file)?;
            let kept = file.finish()?;
            shelf.use_from_now(&kept);
            Ok(kept)
        };
        let kept: Kept = self.state.blocking.run(write).await.and_then(|kept: io::Result<Kept>| kept)?;
        self.state.counters.snapshots_built.fetch_add(1, Ordering::Relaxed);
        tracing::info!(index = kept.meta.last.map(|id| id.index), size_bytes = kept.file_bytes, "wrote a snapshot");
        Ok(openraft::Snapshot { meta: self.meta.clone(), snapshot: Snapshot::Kept(kept) })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::machine::command::{Command, LeaderStarted};

    fn state(skip: Option<SkipEntry>) -> (Arc<State>, mpsc::Receiver<Feed>) {
        let (fatal, _) = mpsc::channel(1);
        State::new(1, 1, Arc::default(), Blocking::Inline, skip, fatal)
    }

    #[test]
    fn an_entry_that_cannot_be_applied_halts_unless_an_operator_named_it() {
        let (meta, bytes) = (Meta { index: 7, term: 1 }, Bytes::from_static(&[0xff]));
        let crc = crc32c::crc32c(&bytes);
        let apply = |skip| state(skip).0.apply(meta, &bytes).map(|reply| reply.0.len());
        assert!(matches!(apply(None), Err(Broken::Invariant(_))));
        assert_eq!(apply(Some(SkipEntry { index: 7, crc })), Ok(0));
        assert!(apply(Some(SkipEntry { index: 7, crc: crc + 1 })).is_err(), "another entry is not skipped");
        assert!(apply(Some(SkipEntry { index: 8, crc })).is_err());
    }

    #[test]
    fn a_panic_while_applying_names_the_entry() {
        let bytes = Bytes::from_static(b"a batch");
        let said = naming(7, &bytes, died_applying).expect("while it is applied");
        assert!(matches!(&said, Fatal::Broken { index: 7, crc, .. } if *crc == crc32c::crc32c(&bytes)), "{said}");
        assert!(said.to_string().contains("recovery.skip_entry"), "{said}");
        assert_eq!(died_applying(), None, "a panic elsewhere is not the entry's fault");
    }

    fn started(term: u64, node: NodeId) -> Batch {
        let op = Some(Op::LeaderStarted(LeaderStarted { term, node }));
        Batch { commands: vec![Command { op }], ..Batch::default() }
    }

    #[test]
    fn effects_flow_from_the_own_leaders_start_to_the_end_of_its_term() {
        let (state, mut feed) = state(None);
        let effects = || vec![Effect::Fingerprint];
        let meta = |index, term| Meta { index, term };
        state.feed(meta(1, 2), &started(2, 1), Revision(1), effects());
        assert!(feed.try_recv().is_err(), "an old term, replayed");
        state.serve_feed(3);
        state.feed(meta(2, 3), &Batch::default(), Revision(1), effects());
        state.feed(meta(3, 3), &started(3, 2), Revision(1), effects());
        assert!(feed.try_recv().is_err(), "before its own start");
        state.feed(meta(4, 3), &started(3, 1), Revision(1), effects());
        state.feed(meta(5, 3), &Batch::default(), Revision(1), effects());
        for expected in [4, 5] {
            assert!(matches!(feed.try_recv(), Ok(Feed::Batch(batch)) if batch.index == expected));
        }
        state.feed(meta(6, 4), &Batch::default(), Revision(1), effects());
        state.serve_feed(0);
        state.feed(meta(7, 3), &Batch::default(), Revision(1), effects());
        assert!(feed.try_recv().is_err(), "after its end");
    }

    #[test]
    fn a_full_feed_loses_effects_and_says_so() {
        let (state, mut feed) = state(None);
        state.serve_feed(1);
        let send = |index| state.feed(Meta { index, term: 1 }, &started(1, 1), Revision(1), vec![Effect::Fingerprint]);
        let most = limits::MAX_EFFECT_BATCHES as u64;
        (0..most + 10).for_each(send);
        for expected in 0..most {
            assert!(matches!(feed.try_recv(), Ok(Feed::Batch(batch)) if batch.index == expected));
        }
        send(most + 10);
        assert!(matches!(feed.try_recv(), Ok(Feed::Gap)));
        assert!(matches!(feed.try_recv(), Ok(Feed::Batch(batch)) if batch.index == most + 10));
    }
}
