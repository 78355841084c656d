//! openraft's own suite, over every log there is.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageError};
use parking_lot::Mutex;

use super::LogStore;
use crate::raft::types::{GroupReply, TypeConfig};

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

impl StoreBuilder<TypeConfig, LogStore, LastApplied> for Memory {
    async fn build(&self) -> Result<((), LogStore, LastApplied), StorageError<TypeConfig>> {
        Ok(((), LogStore::memory(), LastApplied::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn the_memory_twin_passes_the_suite() {
    Suite::test_all(Memory).await.expect("the suite passes");
}
