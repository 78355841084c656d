//! Between openraft's types and the messages on the wire (`proto::internal`).
//!
//! Invariants: what comes from a peer is checked here; nothing malformed reaches Raft.

use bytes::Bytes;
use openraft::alias::{LogIdOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, LogId, Vote};
use prost::Message;

use super::log_store::membership_from_proto;
pub use super::log_store::{Membership, membership_to_proto};
use super::types::{EntryBytes, Member, TypeConfig};
use crate::proto::internal as pb;
use crate::types::NodeId;

pub(crate) type Entry = <TypeConfig as openraft::RaftTypeConfig>::Entry;

/// A message that cannot be: a peer of another make, or damage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message from a peer: {0}")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        tonic::Status::invalid_argument(malformed.to_string())
    }
}

pub fn vote_to_proto(vote: &VoteOf<TypeConfig>) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub fn vote(from: Option<pb::Vote>) -> Result<VoteOf<TypeConfig>, Malformed> {
    let from = from.ok_or(Malformed("no vote"))?;
    Ok(if from.committed { Vote::new_committed(from.term, from.node) } else { Vote::new(from.term, from.node) })
}

pub fn log_id_to_proto(id: &LogIdOf<TypeConfig>) -> pb::LogId {
    pb::LogId { term: **id.committed_leader_id(), index: id.index }
}

pub fn log_id(from: &pb::LogId) -> LogIdOf<TypeConfig> {
    LogId::new_term_index(from.term, from.index)
}

fn optional_log_id(from: &Option<pb::LogId>) -> Option<LogIdOf<TypeConfig>> {
    from.as_ref().map(log_id)
}

pub fn member_to_proto(node: NodeId, member: &Member) -> pb::Member {
    pb::Member {
        node,
        peer_addr: member.peer_addr.clone(),
        client_addr: member.client_addr.clone(),
        admin_addr: member.admin_addr.clone(),
        incarnation: member.incarnation,
    }
}

pub fn member(from: pb::Member) -> Member {
    Member {
        peer_addr: from.peer_addr,
        client_addr: from.client_addr,
        admin_addr: from.admin_addr,
        incarnation: from.incarnation,
    }
}

pub fn membership(from: pb::Membership) -> Result<Membership, Malformed> {
    membership_from_proto(from).map_err(|_| Malformed("membership"))
}

pub fn entry_to_proto(entry: &Entry) -> pb::Entry {
    use pb::entry::Kind;
    let (kind, payload) = match &entry.payload {
        EntryPayload::Blank => (Kind::Blank, Bytes::new()),
        EntryPayload::Normal(bytes) => (Kind::Normal, bytes.0.clone()),
        EntryPayload::Membership(membership) => {
            (Kind::Membership, membership_to_proto(membership).encode_to_vec().into())
        }
    };
    pb::Entry { log_id: Some(log_id_to_proto(&entry.log_id)), kind: kind as i32, payload }
}

/// Copies the payload out of the frame: a slice would pin the whole frame in the log's cache.
pub fn entry(from: pb::Entry) -> Result<Entry, Malformed> {
    use pb::entry::Kind;
    let id = log_id(from.log_id.as_ref().ok_or(Malformed("an entry without a log id"))?);
    let payload = match Kind::try_from(from.kind) {
        Ok(Kind::Blank) => EntryPayload::Blank,
        Ok(Kind::Normal) => EntryPayload::Normal(EntryBytes(Bytes::copy_from_slice(&from.payload))),
        Ok(Kind::Membership) => {
            let decoded = pb::Membership::decode(from.payload).map_err(|_| Malformed("membership"))?;
            EntryPayload::Membership(membership(decoded)?)
        }
        Err(_) => return Err(Malformed("an entry of an unknown kind")),
    };
    Ok(Entry::new(id, payload))
}

pub fn append_to_proto(
    envelope: Option<pb::Envelope>,
    request: &AppendEntriesRequest<TypeConfig>,
) -> pb::AppendRequest {
    pb::AppendRequest {
        envelope,
        vote: Some(vote_to_proto(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_to_proto),
        committed: request.leader_commit.as_ref().map(log_id_to_proto),
        entries: request.entries.iter().map(entry_to_proto).collect(),
    }
}

pub fn append(from: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    Ok(AppendEntriesRequest {
        vote: vote(from.vote)?,
        prev_log_id: optional_log_id(&from.prev),
        leader_commit: optional_log_id(&from.committed),
        entries: from.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
    })
}

pub fn stream_result_to_proto(result: &StreamAppendResult<TypeConfig>, health: pb::Health) -> pb::AppendResponse {
    use pb::append_response::Outcome;
    let (outcome, log_id, vote) = match result {
        Ok(flushed) => (Outcome::Success, flushed.as_ref().map(log_id_to_proto), None),
        Err(StreamAppendError::Conflict(at)) => (Outcome::Conflict, Some(log_id_to_proto(at)), None),
        Err(StreamAppendError::HigherVote(vote)) => (Outcome::HigherVote, None, Some(vote_to_proto(vote))),
    };
    pb::AppendResponse { outcome: outcome as i32, log_id, vote, health: Some(health) }
}

pub fn stream_result(from: pb::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    use pb::append_response::Outcome;
    match Outcome::try_from(from.outcome) {
        Ok(Outcome::Success | Outcome::Partial) => Ok(Ok(optional_log_id(&from.log_id))),
        Ok(Outcome::Conflict) => {
            let at = from.log_id.as_ref().ok_or(Malformed("a conflict without its place"))?;
            Ok(Err(StreamAppendError::Conflict(log_id(at))))
        }
        Ok(Outcome::HigherVote) => Ok(Err(StreamAppendError::HigherVote(vote(from.vote)?))),
        Err(_) => Err(Malformed("an append's outcome")),
    }
}

pub fn append_response_to_proto(
    response: &AppendEntriesResponse<TypeConfig>,
    health: pb::Health,
) -> pb::AppendResponse {
    use pb::append_response::Outcome;
    let (outcome, log_id, vote) = match response {
        AppendEntriesResponse::Success => (Outcome::Success, None, None),
        AppendEntriesResponse::PartialSuccess(flushed) => {
            (Outcome::Partial, flushed.as_ref().map(log_id_to_proto), None)
        }
        AppendEntriesResponse::Conflict => (Outcome::Conflict, None, None),
        AppendEntriesResponse::HigherVote(vote) => (Outcome::HigherVote, None, Some(vote_to_proto(vote))),
    };
    pb::AppendResponse { outcome: outcome as i32, log_id, vote, health: Some(health) }
}

pub fn append_response(from: pb::AppendResponse) -> Result<AppendEntriesResponse<TypeConfig>, Malformed> {
    use pb::append_response::Outcome;
    Ok(match Outcome::try_from(from.outcome) {
        Ok(Outcome::Success) => AppendEntriesResponse::Success,
        Ok(Outcome::Partial) => AppendEntriesResponse::PartialSuccess(optional_log_id(&from.log_id)),
        Ok(Outcome::Conflict) => AppendEntriesResponse::Conflict,
        Ok(Outcome::HigherVote) => AppendEntriesResponse::HigherVote(vote(from.vote)?),
        Err(_) => return Err(Malformed("an append's outcome")),
    })
}

pub fn vote_request_to_proto(
    envelope: pb::Envelope,
    request: &VoteRequest<TypeConfig>,
    leader_gone: bool,
) -> pb::VoteRequest {
    pb::VoteRequest {
        envelope: Some(envelope),
        vote: Some(vote_to_proto(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(log_id_to_proto),
        leadership_transfer: request.leadership_transfer,
        leader_gone,
    }
}

pub fn vote_request(from: &pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let mut request = VoteRequest::new(vote(from.vote)?, optional_log_id(&from.last_log_id));
    request.leadership_transfer = from.leadership_transfer;
    Ok(request)
}

pub fn vote_response_to_proto(response: &VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(vote_to_proto(&response.vote)),
        granted: response.vote_granted,
        last_log_id: response.last_log_id.as_ref().map(log_id_to_proto),
    }
}

pub fn vote_response(from: pb::VoteResponse) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse::new(vote(from.vote)?, optional_log_id(&from.last_log_id), from.granted))
}

pub fn transfer_to_proto(
    envelope: pb::Envelope,
    request: &TransferLeaderRequest<TypeConfig>,
) -> pb::TransferLeaderRequest {
    pb::TransferLeaderRequest {
        envelope: Some(envelope),
        from: Some(vote_to_proto(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(log_id_to_proto),
    }
}

pub fn transfer(from: &pb::TransferLeaderRequest) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    Ok(TransferLeaderRequest::new(vote(from.from)?, from.to, optional_log_id(&from.last_log_id)))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn entries_survive_the_wire() {
        let members = BTreeMap::from([(1, Member { incarnation: 7, ..Member::default() }), (2, Member::default())]);
        let membership = Membership::new(vec![BTreeSet::from([1, 2])], members).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(EntryBytes(Bytes::from_static(b"batch"))),
            EntryPayload::Membership(membership),
        ] {
            let original = Entry::new(LogId::new_term_index(3, 9), payload);
            assert_eq!(entry(entry_to_proto(&original)).unwrap(), original);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(vote(None).is_err());
        assert!(entry(pb::Entry::default()).is_err());
        assert!(entry(pb::Entry { log_id: Some(pb::LogId::default()), kind: 9, ..pb::Entry::default() }).is_err());
        assert!(stream_result(pb::AppendResponse { outcome: 2, ..pb::AppendResponse::default() }).is_err());
    }
}
