//! openraft's log traits over a [`Log`]: the WAL or its memory twin.
//!
//! Invariants: an append's callback fires only once the entry is durable, in order. A vote is
//! durable when `save_vote` returns. `save_committed`, `truncate_after` and `purge` wait for no
//! sync: they stand in the one order of the log, so whatever is acknowledged later has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use futures::{Stream, stream};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::impls::leader_id_std::LeaderId;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use prost::Message;
use tokio::sync::oneshot;

use super::types::{EntryBytes, Member, TypeConfig};
use crate::proto::internal;
use crate::storage::memory::MemoryLog;
use crate::storage::{Entry, Kind, Log, LogId, Vote, log};
use crate::types::NodeId;
use crate::types::limits;

/// The membership as openraft holds it.
pub type Membership = openraft::Membership<NodeId, Member>;

/// The log store that Raft runs on; also its reader. Cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    log: Arc<dyn Log>,
}

impl LogStore {
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log }
    }

    /// Over memory: as durable as the process.
    pub fn memory() -> Self {
        Self::new(Arc::new(MemoryLog::new()))
    }

    /// The log below.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Bytes of log that a restart would replay on top of a snapshot at `index`.
    pub fn bytes_after(&self, index: Option<u64>) -> u64 {
        self.log.bytes_after(index)
    }

    async fn read(&self, range: Range<u64>, max_bytes: u64) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        let entries = match self.log.read(range, max_bytes)? {
            log::Read::Ready(entries) => entries,
            log::Read::Blocking(read) => tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??,
        };
        entries.into_iter().map(to_openraft).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<TypeConfig>>, io::Error> {
        self.read(bounds(&range), u64::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<TypeConfig>>, io::Error> {
        Ok(self.log.vote().map(vote_to_openraft))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<EntryOf<TypeConfig>>, io::Error> {
        self.read(start..end, limits::MAX_APPEND_BYTES).await
    }

    /// Reads piece by piece: a restart applies the log since its snapshot, which may be far larger
    /// than what should be in memory at once.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<EntryOf<TypeConfig>, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let pieces = Pieces { store: self.clone(), left: bounds(&range), ready: Vec::new().into_iter() };
        Box::pin(stream::try_unfold(pieces, Pieces::next))
    }
}

/// A range that is read piece by piece.
struct Pieces {
    store: LogStore,
    left: Range<u64>,
    ready: std::vec::IntoIter<EntryOf<TypeConfig>>,
}

impl Pieces {
    async fn next(mut self) -> io::Result<Option<(EntryOf<TypeConfig>, Self)>> {
        if self.ready.len() == 0 && !self.left.is_empty() {
            let piece = self.store.read(self.left.clone(), limits::MAX_APPEND_BYTES).await?;
            self.left.start = piece.last().map_or(self.left.end, |last| last.log_id.index + 1);
            self.ready = piece.into_iter();
        }
        Ok(self.ready.next().map(|entry| (entry, self)))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let ends = self.log.ends();
        Ok(LogState { last_purged_log_id: ends.purged.map(id_to_openraft), last_log_id: ends.last.map(id_to_openraft) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        self.log.save_vote(vote_from_openraft(vote), Box::new(move |result| drop(done.send(result))))?;
        saved.await.map_err(|_| io::Error::other("the log closed before the vote was saved"))?
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<TypeConfig>>) -> Result<(), io::Error> {
        self.log.save_committed(committed.map(id_from_openraft))
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<TypeConfig>>, io::Error> {
        Ok(self.log.committed().map(id_to_openraft))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(from_openraft).collect();
        self.log.room().await;
        self.log.append(entries, Box::new(move |result| callback.io_completed(result)))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogIdOf<TypeConfig>>) -> Result<(), io::Error> {
        self.log.truncate_after(last_log_id.map(id_from_openraft))
    }

    async fn purge(&mut self, log_id: LogIdOf<TypeConfig>) -> Result<(), io::Error> {
        self.log.purge(id_from_openraft(log_id))
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end.max(start)
}

pub fn id_to_openraft(id: LogId) -> LogIdOf<TypeConfig> {
    openraft::LogId::new(id.term.into(), id.index)
}

pub fn id_from_openraft(id: LogIdOf<TypeConfig>) -> LogId {
    LogId { term: id.committed_leader_id().term, index: id.index }
}

pub(super) fn vote_to_openraft(vote: Vote) -> VoteOf<TypeConfig> {
    openraft::Vote { leader_id: LeaderId { term: vote.term, voted_for: vote.node }, committed: vote.committed }
}

fn vote_from_openraft(vote: &VoteOf<TypeConfig>) -> Vote {
    Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

fn to_openraft(entry: Entry) -> io::Result<EntryOf<TypeConfig>> {
    let payload = match entry.kind {
        Kind::Blank => EntryPayload::Blank,
        Kind::Normal => EntryPayload::Normal(EntryBytes(entry.payload)),
        Kind::Membership => EntryPayload::Membership(decode_membership(entry.payload)?),
    };
    Ok(RaftEntry::new(id_to_openraft(entry.id), payload))
}

fn from_openraft(entry: EntryOf<TypeConfig>) -> Entry {
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (Kind::Blank, bytes::Bytes::new()),
        EntryPayload::Normal(bytes) => (Kind::Normal, bytes.0),
        EntryPayload::Membership(membership) => {
            (Kind::Membership, membership_to_proto(&membership).encode_to_vec().into())
        }
    };
    Entry { id: id_from_openraft(entry.log_id), kind, payload }
}

/// The stored and sent form of a membership.
pub fn membership_to_proto(membership: &Membership) -> internal::Membership {
    let configs = membership.get_joint_config().iter();
    let members = membership.nodes().map(|(node, member)| internal::Member {
        node: *node,
        peer_addr: member.peer_addr.clone(),
        client_addr: member.client_addr.clone(),
        admin_addr: member.admin_addr.clone(),
        incarnation: member.incarnation,
    });
    internal::Membership {
        configs: configs.map(|nodes| internal::membership::Config { nodes: nodes.iter().copied().collect() }).collect(),
        members: members.collect(),
    }
}

/// The inverse of [`membership_to_proto`]; refuses what no cluster can be.
pub fn membership_from_proto(stored: internal::Membership) -> io::Result<Membership> {
    let configs: Vec<BTreeSet<NodeId>> =
        stored.configs.into_iter().map(|config| config.nodes.into_iter().collect()).collect();
    let members: BTreeMap<NodeId, Member> = stored
        .members
        .into_iter()
        .map(|member| {
            let node = member.node;
            let member = Member {
                peer_addr: member.peer_addr,
                client_addr: member.client_addr,
                admin_addr: member.admin_addr,
                incarnation: member.incarnation,
            };
            (node, member)
        })
        .collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("stored membership: {error}")))
}

fn decode_membership(bytes: bytes::Bytes) -> io::Result<Membership> {
    let stored = internal::Membership::decode(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("stored membership: {error}")))?;
    membership_from_proto(stored)
}

#[cfg(test)]
#[path = "log_store_tests.rs"]
mod tests;
