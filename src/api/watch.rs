//! `Watch`: what happens to packages, told by whichever node is asked, from what it applied itself.
//!
//! Invariants: a watcher gets every event of its queue, states and ids from its first revision on, in
//! order, once, or its stream ends with the reason and the revision at which to go on. Bookmarks never
//! go back, and no event at or below one follows it. A slow watcher slows nobody: it reads the node's
//! ring at its own pace, and is cut off before the ring leaves it behind. An idle one costs nothing but
//! a bookmark now and then. A watch never goes to another node.

use std::sync::Arc;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::status::Refusal;
use super::validate::{At, Problems};
use super::{BoxStream, Core, convert};
use crate::machine::Change;
use crate::proto::v1;
use crate::raft::changes::{Compacted, Reader};
use crate::raft::handle::ProposeError;
use crate::types::{QueueName, Revision, State, limits};

const STALL: Duration = Duration::from_millis(limits::WATCH_STALL_MS);
const BOOKMARK_EVERY: Duration = Duration::from_millis(limits::WATCH_BOOKMARK_MS);

/// What a watcher wants to hear.
struct Filter {
    /// None: all.
    queue: Option<QueueName>,
    /// By number. Empty: all.
    states: Vec<i32>,
    id_prefix: String,
}

impl Filter {
    fn of(request: v1::WatchRequest) -> Result<Self, Refusal> {
        let mut problems = Problems::default();
        let queue = match request.queue.as_str() {
            "" => None,
            text => QueueName::parse(text).inspect_err(|error| problems.bad(At::Top, "queue", error)).ok(),
        };
        for (index, number) in request.states.iter().enumerate() {
            if u32::try_from(*number).ok().and_then(State::from_number).is_none() {
                problems.bad(At::Top, format_args!("states[{index}]"), "is no state");
            }
        }
        problems.items("states", request.states.len(), State::ALL.len(), false);
        problems.at_most(At::Top, "id_prefix", request.id_prefix.len(), limits::MAX_ID_BYTES);
        problems.check()?;
        Ok(Self { queue, states: request.states, id_prefix: request.id_prefix })
    }

    fn takes(&self, change: &Change) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue == change.queue())
            && (self.states.is_empty() || self.states.contains(&(change.to as i32)))
            && change.id.text().starts_with(&self.id_prefix)
    }
}

/// Begins a watch on this node.
pub fn serve(core: &Arc<Core>, request: v1::WatchRequest) -> Result<Response<BoxStream<v1::WatchResponse>>, Refusal> {
    let start = Revision(request.start_revision);
    let filter = Filter::of(request)?;
    let changes = core.raft.changes();
    let reader = changes.read(filter.queue.clone(), start).map_err(|full| Refusal::TooManyWatchers(full.limit))?;
    reader.check()?;
    let (events, outbound) = mpsc::channel(limits::WATCH_QUEUE);
    let last_word = Arc::new(Mutex::new(None));
    let told = reader.next().0 - 1;
    let watcher = Watcher { core: core.clone(), filter, reader, events, told };
    tokio::spawn(watcher.run(last_word.clone()));
    // The reason for the end comes after all that was on its way.
    let end = futures::stream::once(async move { last_word.lock().take().map(Err) });
    let stream = ReceiverStream::new(outbound).map(Ok).chain(end.filter_map(futures::future::ready));
    Ok(Response::new(Box::pin(stream)))
}

impl From<Compacted> for Refusal {
    fn from(compacted: Compacted) -> Self {
        Self::RevisionCompacted { oldest: compacted.oldest }
    }
}

/// Why a watch ends.
enum End {
    /// Nobody listens any more.
    Left,
    Refused(Refusal),
}

impl<R: Into<Refusal>> From<R> for End {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

struct Watcher {
    core: Arc<Core>,
    filter: Filter,
    reader: Reader,
    events: mpsc::Sender<v1::WatchResponse>,
    /// The revision up to which the client knows all.
    told: u64,
}

impl Watcher {
    /// `last_word` is there when the events end: it is set before their channel closes.
    async fn run(mut self, last_word: Arc<Mutex<Option<Status>>>) {
        let Err(end) = self.follow().await;
        if let End::Refused(refusal) = end {
            *last_word.lock() = Some(refusal.into());
        }
    }

    /// Until the watch ends.
    async fn follow(&mut self) -> Result<std::convert::Infallible, End> {
        self.bookmark(self.told).await?;
        let mut bookmark_at = Instant::now() + BOOKMARK_EVERY;
        loop {
            let taken = self.reader.take()?;
            for change in taken.iter().filter(|change| self.filter.takes(change)) {
                self.send(event(change)).await?;
                self.told = change.revision.0;
            }
            if taken.upto().0 >= self.told + limits::WATCH_BOOKMARK_AFTER {
                self.bookmark(taken.upto().0).await?;
            }
            if !taken.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.events.closed() => return Err(End::Left),
                () = self.core.leaving.cancelled() => return Err(ProposeError::ShuttingDown.into()),
                () = self.reader.changed() => {}
                () = sleep_until(bookmark_at) => {
                    self.check_leader()?;
                    self.reader.skip_quiet();
                    self.bookmark(self.reader.next().0 - 1).await?;
                    bookmark_at = Instant::now() + BOOKMARK_EVERY;
                }
            }
        }
    }

    async fn bookmark(&mut self, revision: u64) -> Result<(), End> {
        self.told = revision;
        let bookmark = v1::watch_response::Update::Bookmark(v1::Bookmark { revision });
        self.send(v1::WatchResponse { update: Some(bookmark), revision }).await
    }

    /// A node that has lost the others learns of nothing: its watchers are better off elsewhere.
    fn check_leader(&self) -> Result<(), Refusal> {
        let standing = self.core.raft.standing();
        let leader = standing.borrow().leader.clone();
        if leader.is_some() { Ok(()) } else { Err(ProposeError::NotLeader { leader }.into()) }
    }

    async fn send(&self, response: v1::WatchResponse) -> Result<(), End> {
        loop {
            let room = tokio::select! {
                () = self.core.leaving.cancelled() => return Err(ProposeError::ShuttingDown.into()),
                room = timeout(STALL, self.events.reserve()) => room,
            };
            match room {
                Ok(Ok(place)) => {
                    place.send(response);
                    return Ok(());
                }
                Ok(Err(_)) => return Err(End::Left),
                Err(_) if self.reader.is_far_behind(Revision(self.told)) => {
                    return Err(Refusal::WatcherTooSlow { resume: Revision(self.told + 1) }.into());
                }
                Err(_) => {}
            }
        }
    }
}

fn event(change: &Change) -> v1::WatchResponse {
    let revision = change.revision.0;
    let event = v1::Event {
        revision,
        package: Some(convert::package(&change.package(), false)),
        from: change.from.map_or(0, |from| from as i32),
        cause: change.lease_end.map_or(0, |end| end.cause as i32),
    };
    v1::WatchResponse { update: Some(v1::watch_response::Update::Event(event)), revision }
}
