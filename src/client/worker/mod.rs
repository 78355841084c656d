//! Workers: programs that get packages over one stream, work on them and settle them.
//!
//! [`Worker::run`] is the shell: a loop that owns the stream, the handlers' tasks and the timers. The
//! `ledger` is the core: which leases are held, what is to be sent, and what each answer means;
//! it does no IO and reads no clock.
//!
//! Invariants
//! - A lease is known by its fence. The same fence delivered twice starts one handler.
//! - Handlers start oldest lease first, `concurrency` at a time.
//! - Every Hello names all that is held: unstarted, running, and finished without an outcome.
//! - A settlement leaves the ledger only by its outcome. It waits for an unanswered extension of the
//!   same lease, so that an outcome is never mistaken for the other's.
//! - A lease that was revoked is never settled; its handler's token is cancelled at once.

mod builder;
mod delivery;
mod event;
mod ledger;
mod link;
mod run;
mod settle;

pub use builder::{Builder, Worker};
pub use delivery::{Completion, Delivery, Failure};
pub use event::{Event, Kind, Lease, Summary};
pub(super) use settle::Settlement;
