//! The openraft type configuration. Only `raft` and `storage` name openraft types.

use std::fmt;

use bytes::Bytes;

use crate::machine::Outcome;
use crate::types::NodeId;

openraft::declare_raft_types!(
    /// Wharf's Raft: one group, entries are encoded batches.
    pub TypeConfig:
        D = EntryBytes,
        R = GroupReply,
        NodeId = NodeId,
        Node = Member,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, NodeId>,
        AsyncRuntime = super::runtime::Runtime,
);

/// A stored `Batch`, encoded once on the leader and shared by log, network and apply.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryBytes(pub Bytes);

impl fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryBytes({} B)", self.0.len())
    }
}

impl fmt::Display for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0.len())
    }
}

/// The outcomes of one batch, in the order of its commands. Empty for entries without commands.
#[derive(Clone, Debug, Default)]
pub struct GroupReply(pub Vec<Outcome>);

/// What the membership stores of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Names or addresses, resolved anew at each connect.
    pub peer_addr: String,
    pub client_addr: String,
    pub admin_addr: String,
    /// Made at random with the data directory: a wiped node is another node.
    pub incarnation: u64,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (incarnation {:016x})", self.peer_addr, self.incarnation)
    }
}
