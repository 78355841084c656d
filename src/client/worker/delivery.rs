//! What a handler gets and what it answers.

use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::super::{Error, NewPackage, Package};
use super::event::Lease;

/// A package in hand. Dereferences to the [`Package`].
#[derive(Debug)]
pub struct Delivery {
    pub package: Package,
    /// The lease's number. Hand it to other systems as a fencing token: of two holders of one
    /// package the later has the higher.
    pub fence: u64,
    /// 1 for the first.
    pub attempt: u32,
    /// How long the lease lasts unless it is extended, which the worker does by itself.
    pub lease: Duration,
    /// What an earlier holder left with [`Self::extend`]; empty if none did.
    pub checkpoint: Bytes,
    pub(super) cancelled: CancellationToken,
    pub(super) asks: mpsc::Sender<Ask>,
}

impl Delivery {
    /// The lease, as events name it.
    pub fn lease_name(&self) -> Lease {
        Lease { queue: self.package.queue.as_str().into(), id: self.package.id.as_str().into(), fence: self.fence }
    }

    /// Cancelled once the lease is gone. What the handler does then is for nothing; it is dropped a
    /// few seconds later.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Extends the lease now, to end `by` from now (None: the queue's lease), and keeps `checkpoint`
    /// with the package for whoever holds it next (empty: unchanged).
    ///
    /// The worker extends by itself while the handler runs; this is for checkpoints and for other
    /// lengths.
    pub async fn extend(&self, by: Option<Duration>, checkpoint: impl Into<Bytes>) -> Result<(), Error> {
        let gone = || Error::refused(Code::Cancelled, "the worker has ended");
        let (reply, answer) = oneshot::channel();
        let ask = Ask { fence: self.fence, by, checkpoint: checkpoint.into(), reply };
        self.asks.send(ask).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Deref for Delivery {
    type Target = Package;

    fn deref(&self) -> &Package {
        &self.package
    }
}

/// A handler's wish for an extension.
pub(super) struct Ask {
    pub fence: u64,
    pub by: Option<Duration>,
    pub checkpoint: Bytes,
    pub reply: oneshot::Sender<Result<(), Error>>,
}

/// A handler's success: a result and packages to make with it. Bytes, text and `()` convert.
#[derive(Clone, Debug, Default)]
pub struct Completion {
    pub result: Bytes,
    pub content_type: String,
    /// Submitted in the completion's own step: either both happen or none.
    pub children: Vec<NewPackage>,
}

impl Completion {
    pub fn new(result: impl Into<Bytes>) -> Self {
        Self { result: result.into(), ..Default::default() }
    }

    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    pub fn with_child(mut self, child: NewPackage) -> Self {
        self.children.push(child);
        self
    }
}

impl From<()> for Completion {
    fn from((): ()) -> Self {
        Self::default()
    }
}

macro_rules! completion_from {
    ($($bytes:ty),*) => {$(
        impl From<$bytes> for Completion {
            fn from(result: $bytes) -> Self {
                Self::new(result)
            }
        }
    )*};
}

completion_from!(Bytes, Vec<u8>, String, &'static str, &'static [u8]);

/// A handler's failure. Any error converts, so `?` works in handlers.
#[derive(Clone, Debug)]
pub struct Failure {
    pub(super) message: String,
    pub(super) code: String,
    pub(super) then: Then,
}

/// What is to become of the package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Retry(Option<Duration>),
    Die,
    Release,
}

impl Failure {
    /// Counts as an attempt; tried again by the queue's backoff.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: String::new(), then: Then::Retry(None) }
    }

    /// No retry: the package is dead.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { then: Then::Die, ..Self::new(message) }
    }

    /// Not a failure: gives the package back to its old place, without an attempt counted.
    pub fn release() -> Self {
        Self { then: Then::Release, ..Self::new(String::new()) }
    }

    /// Your own error code, at most 256 bytes.
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// Tried again after this instead of the queue's backoff.
    pub fn with_retry_delay(mut self, delay: Duration) -> Self {
        self.then = Then::Retry(Some(delay));
        self
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error.to_string())
    }
}
