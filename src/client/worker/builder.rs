//! A worker's options.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Code;

use super::super::{Client, Error};
use super::delivery::{Completion, Delivery, Failure};
use super::event::{Event, Summary};
use super::run::{Handle, Runner};
use crate::types::limits;

/// A program that works packages. Build one with [`Client::worker`], then [`Worker::run`] it.
pub struct Worker {
    pub(super) client: Client,
    pub(super) options: Options,
    pub(super) drain: BoxFuture<'static, ()>,
}

/// See [`Builder::on_event`].
pub(super) type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// See [`Builder`].
pub(super) struct Options {
    pub name: String,
    pub session: String,
    pub queues: Vec<String>,
    pub kinds: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub concurrency: u32,
    /// None: see [`Self::credit`].
    pub max_in_flight: Option<u32>,
    pub max_in_flight_bytes: u64,
    pub batch: usize,
    pub extend: bool,
    pub cancel_grace: Duration,
    pub drain_timeout: Duration,
    pub attach_timeout: Duration,
    pub on_event: Option<Observer>,
}

impl Options {
    /// How many packages the session may hold.
    pub fn credit(&self) -> u32 {
        let default = limits::DEFAULT_MAX_IN_FLIGHT.max(self.concurrency.saturating_mul(2));
        self.max_in_flight.unwrap_or(default).min(limits::MAX_IN_FLIGHT_CEILING)
    }
}

impl Worker {
    pub(in crate::client) fn builder<S: Into<String>>(client: Client, queues: impl IntoIterator<Item = S>) -> Builder {
        let options = Options {
            name: String::new(),
            session: client.mint_id(),
            queues: queues.into_iter().map(Into::into).collect(),
            kinds: Vec::new(),
            labels: BTreeMap::new(),
            concurrency: 1,
            max_in_flight: None,
            max_in_flight_bytes: limits::DEFAULT_MAX_IN_FLIGHT_BYTES,
            batch: limits::MAX_SETTLEMENTS_A_MESSAGE,
            extend: true,
            cancel_grace: Duration::from_millis(limits::CLIENT_CANCEL_GRACE_MS),
            drain_timeout: Duration::from_millis(limits::CLIENT_DRAIN_MS),
            attach_timeout: Duration::from_millis(limits::CLIENT_ATTACH_MS),
            on_event: None,
        };
        Builder { worker: Worker { client, options, drain: futures::future::pending().boxed() } }
    }

    /// The session's id.
    pub fn session(&self) -> &str {
        &self.options.session
    }

    /// Works until all its queues have ended, or until it was drained.
    ///
    /// The handler is called once for each package, `concurrency` at a time. A panic in it is a
    /// failure of its package. Errors: the cluster refuses the worker for good (an unknown queue,
    /// no permission), or could not be reached for too long; handlers that still run are dropped.
    pub async fn run<H, R, C, F>(self, handler: H) -> Result<Summary, Error>
    where
        H: Fn(Delivery) -> R + Send + Sync + 'static,
        R: Future<Output = Result<C, F>> + Send + 'static,
        C: Into<Completion>,
        F: Into<Failure>,
    {
        let handler = Arc::new(handler);
        let handle = move |delivery: Delivery| {
            let handler = handler.clone();
            async move { handler(delivery).await.map(Into::into).map_err(Into::into) }.boxed()
        };
        self.run_with(Handle::Spawned(Box::new(handle))).await
    }

    /// The same with a handler that answers at once and waits for nothing. It runs in the worker's own
    /// loop, one package after the other, which costs a fraction of a task a package; whatever arrived
    /// together is answered in one message.
    ///
    /// While it runs the worker hears nothing, sends no sign of life and extends no lease: for handlers
    /// of microseconds, such as those that hand packages on. All that the session holds counts as being
    /// worked on, whatever [`Builder::concurrency`] says. A panic in the handler is a failure of its
    /// package.
    pub async fn run_inline<H, C, F>(mut self, mut handler: H) -> Result<Summary, Error>
    where
        H: FnMut(Delivery) -> Result<C, F> + Send + 'static,
        C: Into<Completion>,
        F: Into<Failure>,
    {
        self.options.concurrency = self.options.credit();
        let handle = move |delivery: Delivery| handler(delivery).map(Into::into).map_err(Into::into);
        self.run_with(Handle::Inline(Box::new(handle))).await
    }

    async fn run_with(self, handle: Handle) -> Result<Summary, Error> {
        if self.options.queues.is_empty() {
            return Err(Error::refused(Code::InvalidArgument, "a worker needs at least one queue"));
        }
        Runner::new(self, handle).run().await
    }
}

/// Builds a [`Worker`].
#[must_use]
pub struct Builder {
    worker: Worker,
}

impl Builder {
    pub fn build(self) -> Worker {
        self.worker
    }

    /// The program's name, for people.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.worker.options.name = name.into();
        self
    }

    /// Only packages of this kind; may be called several times. All kinds if never called.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.worker.options.kinds.push(kind.into());
        self
    }

    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.worker.options.labels.insert(key.into(), value.into());
        self
    }

    /// How many handlers run at once; at least 1, which is the default.
    pub fn concurrency(mut self, handlers: u32) -> Self {
        self.worker.options.concurrency = handlers.max(1);
        self
    }

    /// How many packages are held at once, running or waiting here; by default 64, or twice the
    /// concurrency if that is more.
    pub fn max_in_flight(mut self, packages: u32) -> Self {
        self.worker.options.max_in_flight = Some(packages.max(1));
        self
    }

    /// How many bytes of packages are held at once; 16 MiB by default.
    pub fn max_in_flight_bytes(mut self, bytes: u64) -> Self {
        self.worker.options.max_in_flight_bytes = bytes;
        self
    }

    /// At most so many settlements in one message; 1000 by default. Fewer cost more messages.
    pub fn batch(mut self, settlements: usize) -> Self {
        self.worker.options.batch = settlements.clamp(1, limits::MAX_SETTLEMENTS_A_MESSAGE);
        self
    }

    /// False: leases are not extended while handlers run, so a handler has one lease's time.
    pub fn auto_extend(mut self, extend: bool) -> Self {
        self.worker.options.extend = extend;
        self
    }

    /// A handler whose lease is gone is dropped so long after its token was cancelled; 5 s by default.
    pub fn cancel_grace(mut self, grace: Duration) -> Self {
        self.worker.options.cancel_grace = grace;
        self
    }

    /// A draining worker waits so long for its handlers; 5 min by default.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.worker.options.drain_timeout = timeout;
        self
    }

    /// How long the first attach may take until [`Worker::run`] gives up; 60 s by default.
    pub fn attach_timeout(mut self, timeout: Duration) -> Self {
        self.worker.options.attach_timeout = timeout;
        self
    }

    /// Drains once this future is done: gives back what was not started, ends what runs, and goes.
    pub fn drain_on(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.worker.drain = signal.boxed();
        self
    }

    /// Drains on SIGTERM and on Ctrl-C.
    pub fn drain_on_signals(self) -> Self {
        self.drain_on(async {
            let Ok(mut terminate) = signal(SignalKind::terminate()) else {
                tracing::warn!("no handler for SIGTERM can be set, so it ends the worker at once");
                return futures::future::pending().await;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        })
    }

    /// Called with everything that happens. It runs in the worker's loop: it must not block.
    pub fn on_event(mut self, observer: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.worker.options.on_event = Some(Arc::new(observer));
        self
    }

    /// Builds and runs; see [`Worker::run`].
    pub async fn run<H, R, C, F>(self, handler: H) -> Result<Summary, Error>
    where
        H: Fn(Delivery) -> R + Send + Sync + 'static,
        R: Future<Output = Result<C, F>> + Send + 'static,
        C: Into<Completion>,
        F: Into<Failure>,
    {
        self.build().run(handler).await
    }
}
