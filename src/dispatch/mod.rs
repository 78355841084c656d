//! Leader only, disposable: the live worker streams, what the machine's effects bring to them, and
//! who fell silent. Also the calls that wait for a package, a queue or a sweep.
//!
//! Invariants: nothing here is truth. Whatever is lost (an overflowed effect feed, a crash, a change
//! of leader) is rebuilt from the state or by the workers' next Hello, and a worker that gets the same
//! delivery twice knows it by its fence. A stream lives in one office: when leadership ends, all get
//! `Goaway`. A session's newest epoch has at most one stream. A session that the state takes for
//! attached but that has no stream here is detached by a proposal, which is repeated until it is
//! answered. Everything is bounded: outboxes, waiters, remembered sweeps.
//!
//! Absent on purpose: which package goes to whom (the machine decides), and the public messages
//! (`api` converts).

mod ends;
mod liveness;
mod outbox;
mod pump;
mod registry;
mod stream;
mod waiters;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::env::Env;
use crate::raft;
use crate::raft::handle::Leader;
use crate::types::{QueueName, limits};

pub use outbox::{End, Message, Outbox, Refusal, Settled, Taken};
pub use pump::Pump;
pub use stream::Stream;
pub use waiters::{Full, Waiter, Wake};

use registry::Registry;
use waiters::Waiters;

/// The door to dispatch for the API. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// What the handle, the pump and the attachments share.
struct Shared {
    raft: raft::Handle,
    registry: Mutex<Registry>,
    waiters: Arc<Waiters>,
    /// Numbers streams. Begins at random, so that an attach number in a log entry of another
    /// leader never names a stream here.
    next_attach: AtomicU64,
}

/// This node does not lead: no stream can be attached here.
#[derive(Clone, Debug)]
pub struct NotLeading {
    pub leader: Option<Leader>,
}

/// Makes dispatch for a node. The composition root runs the pump for as long as the node lives.
pub fn new(raft: raft::Handle, env: &Env) -> (Handle, Pump) {
    let shared = Arc::new(Shared {
        raft,
        registry: Mutex::new(Registry::default()),
        waiters: Arc::new(Waiters::new(limits::MAX_WAITERS)),
        next_attach: AtomicU64::new(env.random.next() | 1),
    });
    (Handle { shared: shared.clone() }, Pump::new(shared))
}

impl Handle {
    /// Takes in a worker stream that said Hello. Its `attach` number goes into `OpenSession`; the
    /// stream is bound when the effect comes back.
    pub fn attach(&self, session: &str) -> Result<Attachment, NotLeading> {
        // The registry is locked first: a loss of leadership that this look misses finds the stream.
        let mut registry = self.shared.registry.lock();
        let standing = self.shared.raft.standing().borrow().clone();
        let (Some(term), Some(office)) = (standing.leading, standing.office()) else {
            return Err(NotLeading { leader: standing.leader });
        };
        let attach = self.shared.next_attach.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream::new(attach, term, office, session.into()));
        registry.insert(stream.clone());
        Ok(Attachment { stream, shared: self.shared.clone() })
    }

    /// Registers for the end of a package. Look at the state after [`Self::following`], not before.
    pub fn wait_package(&self, queue: QueueName, id: &str) -> Result<Waiter, Full> {
        self.shared.waiters.wait_package(queue, id.into())
    }

    /// Ends of packages are followed on this node, whether it leads or not.
    pub async fn following(&self) {
        self.shared.waiters.followed().await;
    }

    /// Registers for the end of a queue. Look at the state after this, not before.
    pub fn wait_queue(&self, queue: QueueName) -> Result<Waiter, Full> {
        self.shared.waiters.wait_queue(queue)
    }

    /// Registers for the end of a sweep, which may have come already.
    pub fn wait_sweep(&self, sweep: u64) -> Result<Waiter, Full> {
        self.shared.waiters.wait_sweep(sweep)
    }

    /// Live worker streams, for metrics.
    pub fn streams(&self) -> usize {
        self.shared.registry.lock().len()
    }

    /// Calls that wait, for metrics.
    pub fn waiters(&self) -> usize {
        self.shared.waiters.len()
    }
}

/// A live stream's place in dispatch. Dropping it says that the stream broke or ended.
pub struct Attachment {
    stream: Arc<Stream>,
    shared: Arc<Shared>,
}

impl Attachment {
    /// The stream, for its reader and writer.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// The state knows already that the stream is over.
    pub fn let_go(self) {
        self.shared.registry.lock().forget(&self.stream);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let gone = self.shared.registry.lock().remove(&self.stream);
        if let Some(gone) = gone {
            pump::propose_detach(&self.shared, gone);
        }
    }
}
