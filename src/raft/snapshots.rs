//! Snapshots on their way: between the machine, the files that keep them and a follower.
//!
//! Invariants: a snapshot counts only whole, checked and durable; one that was not finished leaves
//! nothing behind. Its state travels in pieces, so that none is in memory whole, and is checked
//! where it is read; the receiver keeps it in a file of its own.
//! Reading and writing happen off the apply path.

use std::io::{self, Read};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::alias::SnapshotMetaOf;
use openraft::{SnapshotMeta, StoredMembership};
use prost::Message;

use super::convert::{Membership, membership_to_proto};
use super::log_store::{id_from_openraft, id_to_openraft, membership_from_proto};
use super::types::TypeConfig;
use crate::proto::internal as pb;
use crate::storage::snapshots::{Builder, Meta, Snapshot as Kept};
use crate::types::limits;

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
    Kept(Kept),
    /// Came from the leader; kept once Raft wants it.
    Received(Builder),
}

/// A kept snapshot in the pieces that travel, `head` first. A read that fails ends them early: the
/// receiver misses bytes and refuses.
pub fn chunks(
    kept: Kept,
    blocking: Blocking,
    head: pb::SnapshotHead,
) -> impl Stream<Item = pb::SnapshotChunk> + Send + 'static {
    let first = pb::SnapshotChunk { head: Some(head), data: Bytes::new() };
    let rest = futures::stream::unfold(kept.body(), move |mut body| async move {
        let read = move || {
            let mut data = Vec::with_capacity(limits::SNAPSHOT_CHUNK_BYTES);
            let mut piece = (&mut body).take(limits::SNAPSHOT_CHUNK_BYTES as u64);
            piece.read_to_end(&mut data).map(|_| (data, body))
        };
        match blocking.run(read).await.and_then(|read| read) {
            Ok((data, _)) if data.is_empty() => None,
            Ok((data, body)) => Some((pb::SnapshotChunk { head: None, data: data.into() }, body)),
            Err(error) => {
                tracing::error!(%error, "cannot read the snapshot that a follower needs");
                None
            }
        }
    });
    futures::stream::iter([first]).chain(rest)
}

/// What a file says of the log, in openraft's words.
pub fn meta_from_stored(meta: &Meta) -> io::Result<SnapshotMetaOf<TypeConfig>> {
    let membership = pb::Membership::decode(meta.membership.clone()).map_err(io::Error::other)?;
    // Before the cluster was formed there is none.
    let membership =
        if membership.configs.is_empty() { Membership::default() } else { membership_from_proto(membership)? };
    Ok(SnapshotMeta {
        last_log_id: meta.last.map(id_to_openraft),
        last_membership: StoredMembership::new(meta.membership_at.map(id_to_openraft), membership),
    })
}

/// The inverse of [`meta_from_stored`].
pub fn meta_to_stored(meta: &SnapshotMetaOf<TypeConfig>) -> Meta {
    let membership = membership_to_proto(meta.last_membership.membership());
    Meta {
        last: meta.last_log_id.map(id_from_openraft),
        membership_at: meta.last_membership.log_id().map(id_from_openraft),
        membership: membership.encode_to_vec().into(),
    }
}
