//! Who calls and whether they may: a seam. Every call has an identity and passes here before anything
//! else; today there is one identity, and it may do everything.

use tonic::metadata::{MetadataMap, MetadataValue};

use super::status::Refusal;

/// Who calls. Travels with a forwarded call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Nobody asked who it is.
    #[default]
    Anonymous,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Submit,
    Read,
    /// Cancel, retry, purge, redrive.
    Change,
    Work,
    ManageQueues,
    ManageCluster,
}

/// Metadata that carries the identity from node to node; read on the peer listener only.
const IDENTITY: &str = "wharf-identity";

impl Identity {
    /// As a follower wrote it.
    pub fn from_hop(_metadata: &MetadataMap) -> Self {
        Self::Anonymous
    }

    /// For the leader to read.
    pub fn onto_hop(&self, metadata: &mut MetadataMap) {
        let name = match self {
            Self::Anonymous => MetadataValue::from_static("anonymous"),
        };
        metadata.insert(IDENTITY, name);
    }
}

/// Refuses what this identity may not do.
pub fn authorize(identity: &Identity, _action: Action) -> Result<(), Refusal> {
    match identity {
        Identity::Anonymous => Ok(()),
    }
}
