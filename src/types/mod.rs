//! The words everybody shares: ids, times, names, settings, limits. Pure data.
//!
//! Invariants: nothing here does IO or reads a clock. A value of one of these types is valid:
//! what came from outside was checked when it was made.

pub mod blob;
pub mod ids;
pub mod limits;
pub mod mutant;
pub mod name;
pub mod package_id;
pub mod state;
pub mod time;

pub use blob::Blob;
pub use ids::{Epoch, Fence, NodeId, Revision};
pub use name::QueueName;
pub use package_id::PackageId;
pub use state::{Cause, State};
pub use time::{Ticks, Wall};
