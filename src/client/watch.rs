//! Watching what happens to packages, over every break.
//!
//! The watch goes on at the revision after the last that it knows, on whichever node can be reached:
//! each event comes once, in order. Only if no node knows any more what happened since then does it end,
//! with `REVISION_COMPACTED`.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Streaming};

use super::backoff::Backoff;
use super::error::reason;
use super::nodes::Node;
use super::packages::packages;
use super::{Client, Error, Event, State};
use crate::proto::v1::watch_response::Update;
use crate::proto::v1::{WatchRequest, WatchResponse};
use crate::types::limits;

/// A node that says nothing, not even how far it is, for so long is dead.
const SILENCE: Duration = Duration::from_millis(limits::CLIENT_WATCH_SILENCE_MS);

/// See the module. Nothing is asked before the first [`Watch::next`].
#[must_use]
pub struct Watch {
    client: Client,
    /// `start_revision` is the next revision to be told.
    request: WatchRequest,
    stream: Option<(Node, Streaming<WatchResponse>)>,
    backoff: Backoff,
    /// When the first of the tries that failed since the last word was made.
    broken: Option<Instant>,
    /// It was told something once.
    began: bool,
    /// No longer known at one node: these are to be asked yet, and the answer if they do not know either.
    elsewhere: Option<(Vec<String>, Error)>,
}

impl Client {
    /// Watches a queue's packages from now on; all queues if the name is empty.
    pub fn watch(&self, queue: &str) -> Watch {
        Watch {
            client: self.clone(),
            request: WatchRequest { queue: queue.to_owned(), ..WatchRequest::default() },
            stream: None,
            backoff: Backoff::new(self.nodes.env().random.clone()),
            broken: None,
            began: false,
            elsewhere: None,
        }
    }
}

impl Watch {
    /// Only changes to one of these states; to any if there are none.
    pub fn with_states(mut self, states: &[State]) -> Self {
        self.request.states = states.iter().map(|state| *state as i32).collect();
        self
    }

    /// Only packages whose id begins so.
    pub fn with_id_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.request.id_prefix = prefix.into();
        self
    }

    /// From this revision on, it included; 0: from now on.
    pub fn from_revision(mut self, revision: u64) -> Self {
        self.request.start_revision = revision;
        self
    }

    /// Where to go on, in this process or a later one: the revision after the last that was told. 0: nothing
    /// was told yet.
    pub fn resume_revision(&self) -> u64 {
        self.request.start_revision
    }

    /// The next event. An error ends the watch; what is only a break is mended inside. May be dropped and
    /// called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let told = match &mut self.stream {
                Some((_, stream)) => timeout(SILENCE, stream.message()).await,
                None => {
                    self.open().await?;
                    continue;
                }
            };
            let error = match told {
                Ok(Ok(Some(response))) => match self.take(response) {
                    Some(event) => return Ok(event),
                    None => continue,
                },
                // It ended without a reason: as good as a break.
                Ok(Ok(None)) => Error::unreachable("the watch ended"),
                Ok(Err(status)) => Error::from_status(&status),
                Err(_) => Error::unreachable(format_args!("nothing was heard for {SILENCE:?}")),
            };
            let node = self.stream.take().map(|(node, _)| node);
            self.broke(node.as_ref(), error).await?;
        }
    }

    fn take(&mut self, response: WatchResponse) -> Option<Event> {
        self.broken = None;
        self.began = true;
        self.elsewhere = None;
        self.backoff = Backoff::new(self.client.nodes.env().random.clone());
        let next = response.revision + 1;
        let fresh = next > self.request.start_revision;
        self.request.start_revision = next.max(self.request.start_revision);
        match response.update {
            Some(Update::Event(event)) if fresh => Some(event),
            _ => None,
        }
    }

    /// One try.
    async fn open(&mut self) -> Result<(), Error> {
        let within = Duration::from_millis(limits::CLIENT_TRY_MS);
        let asked = self.elsewhere.as_mut().and_then(|(addrs, _)| addrs.pop());
        let nodes = self.client.nodes.clone();
        let picked = timeout(within, async {
            match &asked {
                Some(addr) => nodes.node(addr).await,
                None => nodes.pick().await,
            }
        });
        let late = || Error::unreachable(format_args!("no answer within {within:?}"));
        let node = match picked.await.unwrap_or_else(|_| Err(late())) {
            Ok(node) => node,
            Err(error) => return self.broke(None, error).await,
        };
        let mut service = packages(node.channel.clone());
        match timeout(within, service.watch(Request::new(self.request.clone()))).await {
            Ok(Ok(answer)) => {
                self.stream = Some((node, answer.into_inner()));
                Ok(())
            }
            Ok(Err(status)) => self.broke(Some(&node), Error::from_status(&status)).await,
            Err(_) => self.broke(Some(&node), late()).await,
        }
    }

    /// Decides whether the watch goes on after this; if so, after a pause.
    async fn broke(&mut self, node: Option<&Node>, error: Error) -> Result<(), Error> {
        if error.reason() == reason::REVISION_COMPACTED {
            let known = self.elsewhere.take().map(|(addrs, _)| addrs);
            let mut addrs = known.unwrap_or_else(|| self.client.nodes.seeds());
            addrs.retain(|addr| node.is_none_or(|node| *addr != *node.addr));
            if addrs.is_empty() {
                return Err(error.certain());
            }
            self.elsewhere = Some((addrs, error));
            return Ok(());
        }
        if let Some((addrs, compacted)) = &self.elsewhere {
            // Of those that could be asked, none knows.
            return if addrs.is_empty() { Err(compacted.clone().certain()) } else { Ok(()) };
        }
        if let Some(node) = node {
            self.client.nodes.elsewhere_or_lost(node, error.is_transport());
        }
        let since = *self.broken.get_or_insert_with(Instant::now);
        let most = if self.began { Duration::from_millis(limits::CLIENT_REATTACH_MS) } else { self.client.timeout };
        let again = error.is_transient() || error.reason() == reason::READER_TOO_SLOW;
        let pause = self.backoff.pause(error.retry_after());
        if !again || since.elapsed() + pause >= most {
            return Err(error.certain());
        }
        tracing::debug!(error = %error, "the watch goes on elsewhere");
        sleep(pause).await;
        Ok(())
    }
}
