//! What a node keeps on disk: the log, the snapshots, its identity; and how much room is left.
//!
//! Invariants: nothing here knows openraft, a network or a clock on the wall. Every byte goes
//! but those of `history` goes through [`disk::Disk`], so that a test or a simulation can drop, tear,
//! flip and fail any operation. What was reported as durable is found again after a crash, or opening refuses and
//! names the file, the offset and what to do. A failed sync is never retried.
//!
//! Absent on purpose: what entries mean (the machine), when to snapshot and to purge (raft).

pub mod disk;
pub mod error;
pub mod history;
pub mod home;
pub mod identity;
pub mod log;
pub mod memory;
pub mod snapshots;
pub mod space;
pub mod stats;
pub mod wal;

#[cfg(test)]
mod fixtures;

pub use error::Error;
pub use home::Home;
pub use identity::{ClusterId, Identity};
pub use log::{Entry, Kind, Log, LogId, Vote};
pub use snapshots::Snapshots;
pub use space::Room;
