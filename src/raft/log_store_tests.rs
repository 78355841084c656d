//! openraft's own suite, over every log there is.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftLogReader, RaftSnapshotBuilder, StorageError};
use parking_lot::Mutex;

use super::LogStore;
use crate::raft::types::{GroupReply, TypeConfig};
use crate::storage::disk::{Disk, RealDisk, SimDisk};
use crate::storage::wal::{Flusher, Options, Wal};
use crate::types::limits;

/// A state machine that knows no more than the Suite asks for: what was applied last.
#[derive(Clone, Default)]
struct LastApplied {
    state: (Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>),
    snapshot: Arc<Mutex<Option<SnapshotMetaOf<TypeConfig>>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for LastApplied {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        let meta = SnapshotMetaOf::<TypeConfig> { last_log_id: self.state.0, last_membership: self.state.1.clone() };
        *self.snapshot.lock() = Some(meta.clone());
        Ok(Snapshot { meta, snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for LastApplied {
    type SnapshotData = ();
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>), io::Error> {
        Ok(self.state.clone())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.state.0 = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.state.1 = StoredMembershipOf::<TypeConfig>::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(GroupReply::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<TypeConfig>, _data: ()) -> Result<(), io::Error> {
        self.state = (meta.last_log_id, meta.last_membership.clone());
        *self.snapshot.lock() = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        Ok(self.snapshot.lock().clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct Memory;

/// Over the WAL, on a simulated or a real disk.
struct OnDisk(Flusher);

impl StoreBuilder<TypeConfig, LogStore, LastApplied, Option<tempfile::TempDir>> for OnDisk {
    async fn build(&self) -> Result<(Option<tempfile::TempDir>, LogStore, LastApplied), StorageError<TypeConfig>> {
        let home = (self.0 == Flusher::Thread).then(|| tempfile::tempdir().expect("a temporary directory"));
        let disk: Arc<dyn Disk> = match home {
            Some(_) => Arc::new(RealDisk),
            None => Arc::new(SimDisk::new()),
        };
        let dir = home.as_ref().map_or("/log".into(), |home| home.path().join("log"));
        let options = Options { flusher: self.0, segment_bytes: 4096, first_segment_bytes: 1024, cache_bytes: 300 };
        Wal::create(&*disk, &dir, 1, &options).expect("created");
        let log = Wal::open(disk, &dir, 1, options).expect("opened");
        Ok((home, LogStore::new(Arc::new(log)), LastApplied::default()))
    }
}

impl StoreBuilder<TypeConfig, LogStore, LastApplied> for Memory {
    async fn build(&self) -> Result<((), LogStore, LastApplied), StorageError<TypeConfig>> {
        Ok(((), LogStore::memory(), LastApplied::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_twin_passes_the_suite() {
    Suite::test_all(Memory).await.expect("the suite passes");
}

#[tokio::test(start_paused = true)]
async fn the_wal_passes_the_suite_inline() {
    Suite::test_all(OnDisk(Flusher::Inline)).await.expect("the suite passes");
}

#[tokio::test(start_paused = true)]
async fn the_wal_passes_the_suite_in_a_task() {
    Suite::test_all(OnDisk(Flusher::Task)).await.expect("the suite passes");
}

#[tokio::test(start_paused = true)]
async fn the_wal_passes_the_suite_with_its_thread_on_a_real_disk() {
    Suite::test_all(OnDisk(Flusher::Thread)).await.expect("the suite passes");
}

#[test]
fn the_log_counts_by_the_buckets_of_the_metrics() {
    assert_eq!(crate::storage::stats::MICROS_BUCKETS, crate::raft::handle::MICROS_BUCKETS);
}

#[tokio::test]
async fn one_append_takes_no_more_than_its_bytes_unless_an_entry_has_more() {
    let entry = |index, bytes: u64| crate::storage::Entry {
        id: crate::storage::LogId { term: 1, index },
        kind: crate::storage::Kind::Normal,
        payload: vec![0; bytes as usize].into(),
    };
    let mut store = LogStore::memory();
    let mut entries: Vec<_> = (0..10).map(|index| entry(index, limits::MAX_APPEND_BYTES / 4)).collect();
    entries.push(entry(10, 2 * limits::MAX_APPEND_BYTES));
    store.log().append(entries, Box::new(|_| {})).expect("appended");
    let mut sizes = Vec::new();
    let mut next = 0;
    while next < 11 {
        let read = store.limited_get_log_entries(next, 11).await.expect("readable");
        next += read.len() as u64;
        sizes.push(read.len());
    }
    assert_eq!(sizes, [3, 3, 3, 1, 1], "four and their frames are more than fits");
}
