//! Why storage cannot be opened. Each tells what to do.

use std::io;
use std::path::PathBuf;

/// What to do about damage: said once, so that every message says the same.
const REJOIN: &str = "Nothing was changed. If the other nodes are healthy, remove this node from the cluster, empty \
                      its data directory and let it join again; otherwise keep a copy of the directory and restore \
                      from a backup";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Stored bytes are not what was written.
    #[error("{} is damaged at offset {offset}: {what}. {REJOIN}", file.display())]
    Damaged { file: PathBuf, offset: u64, what: String },
    /// A file of a later program.
    #[error("{} has format version {found}, this program knows up to {known}: upgrade this node", file.display())]
    NewerFormat { file: PathBuf, found: u32, known: u32 },
    /// The node was there before, its log is not.
    #[error(
        "{} has an identity but no log: what this node promised to others is lost, and it must not vote under its old \
         identity. {REJOIN}",
        dir.display()
    )]
    NoLog { dir: PathBuf },
    /// The identity was lost, the log was not.
    #[error(
        "{} has a log but no identity: put the identity file back, or empty the directory if the node is to start \
         anew",
        dir.display()
    )]
    NoIdentity { dir: PathBuf },
    /// The directory belongs to another node or cluster.
    #[error("{} belongs to {found}, but the configuration says {wanted}: check data directory and node number", dir.display())]
    OtherNode { dir: PathBuf, found: String, wanted: String },
    /// Another process has it.
    #[error("{} is in use by another process: stop it first", dir.display())]
    InUse { dir: PathBuf },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
        }
    }
}
