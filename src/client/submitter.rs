//! Many submits in a pipeline over one stream.
//!
//! A task owns the stream and what is not confirmed. It puts whatever waits into one request,
//! without lingering. After a break it connects again and sends the unconfirmed once more with
//! the same ids, so that a package is made once. Order is kept while nothing breaks; what is sent
//! again may fall behind.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use super::backoff::Backoff;
use super::doubt::{DOUBT, LOOK_AGAIN};
use super::nodes::Node;
use super::packages::{malformed, packages, submitted};
use super::{Client, Error, NewPackage, Submitted};
use crate::proto::v1::{SubmitStreamRequest, SubmitStreamResponse};
use crate::types::limits;

/// How many submits a task takes from its channel at once.
const TAKE: usize = 1024;

/// Builds a [`Submitter`].
#[must_use]
pub struct SubmitterBuilder {
    client: Client,
    window: usize,
    timeout: Duration,
    batch: usize,
    on_retry: Option<Observer>,
}

/// See [`SubmitterBuilder::on_retry`].
type Observer = Box<dyn Fn(usize, &Error) + Send>;

impl SubmitterBuilder {
    pub(super) fn new(client: Client) -> Self {
        let timeout = client.timeout;
        let (window, batch) = (limits::CLIENT_SUBMIT_WINDOW, limits::MAX_PACKAGES_A_SUBMIT);
        Self { client, window, timeout, batch, on_retry: None }
    }

    /// How many packages may be unconfirmed; past that, submits wait. 4096 by default.
    pub fn window(mut self, packages: usize) -> Self {
        self.window = packages.clamp(1, limits::MAX_SUBMITS_IN_FLIGHT_A_STREAM * 16);
        self
    }

    /// A package that is not confirmed by then is answered as unknown. The client's by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// At most so many packages in one message; 1000 by default. Fewer cost more messages.
    pub fn batch(mut self, packages: usize) -> Self {
        self.batch = packages.clamp(1, limits::MAX_PACKAGES_A_SUBMIT);
        self
    }

    /// Called when packages are to be sent again, with how many and why: they were refused for the
    /// moment, or the stream broke. It runs in the submitter's task: it must not block.
    pub fn on_retry(mut self, observer: impl Fn(usize, &Error) + Send + 'static) -> Self {
        self.on_retry = Some(Box::new(observer));
        self
    }

    /// Starts the task. Nothing is connected before the first submit.
    pub fn build(self) -> Submitter {
        let (sender, receiver) = mpsc::channel(self.window.min(TAKE));
        let pipeline = Pipeline::new(self.client.clone(), receiver, self.batch, self.on_retry);
        let task = tokio::spawn(pipeline.run());
        Submitter {
            client: self.client,
            timeout: self.timeout,
            window: Arc::new(Semaphore::new(self.window)),
            window_size: self.window,
            sender,
            task,
        }
    }
}

/// A pipeline of submits. Dropping it gives up what is not confirmed; see [`Submitter::close`].
pub struct Submitter {
    client: Client,
    timeout: Duration,
    window: Arc<Semaphore>,
    window_size: usize,
    sender: mpsc::Sender<Waiting>,
    task: tokio::task::JoinHandle<()>,
}

impl Submitter {
    /// Hands in one package, waiting for room in the window. The ticket tells what became of it.
    pub async fn submit(&self, package: NewPackage) -> Result<Ticket, Error> {
        Ok(self.reserve().await?.submit(package))
    }

    /// Waits for room in the window.
    pub async fn reserve(&self) -> Result<Room<'_>, Error> {
        let room = self.window.clone().acquire_owned().await.map_err(|_| closed())?;
        let slot = self.sender.reserve().await.map_err(|_| closed())?;
        Ok(Room { submitter: self, room, slot })
    }

    /// Waits until nothing is unconfirmed.
    pub async fn flush(&self) {
        let all = u32::try_from(self.window_size).unwrap_or(u32::MAX);
        // Closed means that nothing is left to wait for.
        let _ = self.window.acquire_many(all).await;
    }

    /// Waits until nothing is unconfirmed, and ends the stream.
    pub async fn close(self) {
        self.flush().await;
    }
}

impl Drop for Submitter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Room for one package in the window of a [`Submitter`].
pub struct Room<'a> {
    submitter: &'a Submitter,
    room: OwnedSemaphorePermit,
    slot: mpsc::Permit<'a, Waiting>,
}

impl Room<'_> {
    /// Hands in a package. The ticket tells what became of it.
    pub fn submit(self, package: NewPackage) -> Ticket {
        let (answer, ticket) = oneshot::channel();
        self.hand_in(package, Answer::Ticket(answer));
        Ticket(ticket)
    }

    /// Hands in a package without a ticket: `then` gets the answer, in the submitter's task, where it must
    /// not block. For many packages that nobody waits for one by one. It is not called if the
    /// submitter is dropped before the answer came.
    pub fn submit_then(self, package: NewPackage, then: impl FnOnce(Result<Submitted, Error>) + Send + 'static) {
        self.hand_in(package, Answer::Then(Box::new(then)));
    }

    fn hand_in(self, mut package: NewPackage, answer: Answer) {
        self.submitter.client.mint_missing(std::slice::from_mut(&mut package));
        let deadline = Instant::now() + self.submitter.timeout;
        self.slot.send(Waiting { package, answer, deadline, unknown: false, _room: self.room });
    }
}

/// What will become of one submitted package.
pub struct Ticket(oneshot::Receiver<Result<Submitted, Error>>);

impl Future for Ticket {
    type Output = Result<Submitted, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(closed().or_unknown(true))))
    }
}

fn closed() -> Error {
    Error::refused(Code::Cancelled, "the submitter was closed")
}

/// Where an answer goes.
enum Answer {
    Ticket(oneshot::Sender<Result<Submitted, Error>>),
    Then(Box<dyn FnOnce(Result<Submitted, Error>) + Send>),
}

/// A package without its answer.
struct Waiting {
    package: NewPackage,
    answer: Answer,
    deadline: Instant,
    /// An earlier try may have been carried out.
    unknown: bool,
    _room: OwnedSemaphorePermit,
}

impl Waiting {
    fn answer(self, result: Result<Submitted, Error>) {
        let result = result.map_err(|error| error.or_unknown(self.unknown));
        match self.answer {
            // Whoever dropped the ticket does not want to know.
            Answer::Ticket(answer) => drop(answer.send(result)),
            Answer::Then(then) => then(result),
        }
    }

    fn expire(self) {
        self.answer(Err(Error::unreachable("no node confirmed the package before its deadline")));
    }
}

/// The task.
struct Pipeline {
    client: Client,
    receiver: mpsc::Receiver<Waiting>,
    /// To be sent, in order. Bounded by the window, like `sent`.
    unsent: VecDeque<Waiting>,
    sent: BTreeMap<u64, Vec<Waiting>>,
    seq: u64,
    /// Refused for the moment: nothing is sent before this.
    hold_until: Option<Instant>,
    backoff: Backoff,
    /// Packages in one message, at most.
    batch: usize,
    on_retry: Option<Observer>,
}

struct Open {
    node: Node,
    requests: mpsc::Sender<SubmitStreamRequest>,
    responses: Streaming<SubmitStreamResponse>,
    silence: Silence,
}

/// How long the node of a stream has owed answers and said nothing.
struct Silence {
    since: Instant,
    doubted_at: Instant,
}

impl Silence {
    fn begin() -> Self {
        let now = Instant::now();
        Self { since: now, doubted_at: now + DOUBT }
    }
}

impl Pipeline {
    fn new(client: Client, receiver: mpsc::Receiver<Waiting>, batch: usize, on_retry: Option<Observer>) -> Self {
        Self {
            backoff: Backoff::new(client.nodes.env().random.clone()),
            client,
            receiver,
            unsent: VecDeque::new(),
            sent: BTreeMap::new(),
            seq: 0,
            hold_until: None,
            batch,
            on_retry,
        }
    }

    async fn run(mut self) {
        while self.wait_for_work().await {
            let error = match self.open().await {
                Ok(open) => self.pump(open).await,
                Err(error) => Some(error),
            };
            self.requeue();
            if let Some(error) = error {
                self.pause(error).await;
            }
        }
    }

    /// False: the submitter is gone.
    async fn wait_for_work(&mut self) -> bool {
        if !self.unsent.is_empty() {
            return true;
        }
        match self.receiver.recv().await {
            Some(waiting) => {
                self.unsent.push_back(waiting);
                true
            }
            None => false,
        }
    }

    async fn open(&mut self) -> Result<Open, Error> {
        let node = self.client.nodes.pick().await?;
        let (requests, receiver) = mpsc::channel(limits::CLIENT_STREAM_QUEUE);
        // The first request goes ahead: a server may read it before it answers with headers.
        if let Some(first) = self.next_request() {
            requests.try_send(first).map_err(|_| Error::unreachable("a new stream has no room"))?;
        }
        let mut service = packages(node.channel.clone());
        let call = service.submit_stream(ReceiverStream::new(receiver));
        let bound = Duration::from_millis(limits::CLIENT_TRY_MS);
        let answer = match timeout(bound, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(status)) => {
                let error = Error::from_status(&status);
                self.client.complain(&node, &error);
                self.client.nodes.learn(status.metadata());
                return Err(error);
            }
            Err(_) => {
                self.client.nodes.lost(&node);
                return Err(Error::deadline(format!("{} did not take the stream", node.addr)));
            }
        };
        self.client.nodes.learn(answer.metadata());
        Ok(Open { node, requests, responses: answer.into_inner(), silence: Silence::begin() })
    }

    /// Sends and receives until the stream breaks. None: it ended in good order, because nothing was
    /// left to do or to go on at the leader.
    async fn pump(&mut self, mut open: Open) -> Option<Error> {
        let mut taken = Vec::with_capacity(TAKE);
        loop {
            // A follower serves, but each package makes a hop: what is under way ends here.
            let moving = self.client.nodes.better_than(&open.node);
            if moving && self.sent.is_empty() {
                return None;
            }
            if !moving {
                self.fill(&open.requests);
            }
            // A stream that owes answers and is silent is dead, or its node is frozen.
            let silent_at = open.silence.since + Duration::from_millis(limits::CLIENT_SILENCE_MS);
            let wake = self.hold_until.unwrap_or(silent_at).min(silent_at).min(open.silence.doubted_at);
            let may_send = !self.unsent.is_empty() && self.hold_until.is_none() && !moving;
            tokio::select! {
                // In this order, so that a simulation repeats.
                biased;
                message = open.responses.next() => match message {
                    Some(Ok(response)) => {
                        open.silence = Silence::begin();
                        self.answered(response);
                    }
                    Some(Err(status)) => {
                        let error = Error::from_status(&status);
                        self.client.complain(&open.node, &error);
                        self.client.nodes.learn(status.metadata());
                        return Some(error);
                    }
                    None => {
                        self.client.nodes.elsewhere(&open.node);
                        return Some(Error::unreachable("the node ended the stream"));
                    }
                },
                room = open.requests.reserve(), if may_send => match room {
                    Ok(room) => if let Some(request) = self.next_request() { room.send(request) },
                    Err(_) => return Some(Error::unreachable("the stream broke")),
                },
                count = self.receiver.recv_many(&mut taken, TAKE) => {
                    if count == 0 {
                        return None;
                    }
                    if self.sent.is_empty() {
                        open.silence = Silence::begin();
                    }
                    self.unsent.extend(taken.drain(..));
                }
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if self.hold_until.is_some_and(|until| until <= now) {
                        self.hold_until = None;
                    } else if self.sent.is_empty() {
                        open.silence = Silence::begin();
                    } else if silent_at <= now {
                        self.client.nodes.lost(&open.node);
                        return Some(Error::unreachable("the stream fell silent"));
                    } else if open.silence.doubted_at <= now {
                        open.silence.doubted_at = now + LOOK_AGAIN;
                        if self.client.doubt(&open.node) {
                            self.client.nodes.lost(&open.node);
                            return Some(Error::unreachable("the stream fell silent, and another node leads"));
                        }
                    }
                    self.expire(now);
                }
            }
        }
    }

    /// Sends while there is room.
    fn fill(&mut self, requests: &mpsc::Sender<SubmitStreamRequest>) {
        while self.hold_until.is_none() && !self.unsent.is_empty() {
            let Ok(room) = requests.try_reserve() else { return };
            if let Some(request) = self.next_request() {
                room.send(request);
            }
        }
    }

    /// As many unsent packages as fit; they count as sent.
    fn next_request(&mut self) -> Option<SubmitStreamRequest> {
        let mut bytes = 0;
        let mut group = Vec::new();
        while let Some(next) = self.unsent.front() {
            bytes += next.package.encoded_len();
            if group.len() == self.batch || (!group.is_empty() && bytes > limits::CLIENT_MESSAGE_BYTES) {
                break;
            }
            group.extend(self.unsent.pop_front());
        }
        if group.is_empty() {
            return None;
        }
        self.seq += 1;
        let packages = group.iter().map(|waiting| waiting.package.clone()).collect();
        self.sent.insert(self.seq, group);
        Some(SubmitStreamRequest { seq: self.seq, packages, atomic: false })
    }

    fn answered(&mut self, response: SubmitStreamResponse) {
        let Some(group) = self.sent.remove(&response.seq) else { return };
        if group.len() != response.results.len() {
            let error = malformed("a submit with the wrong number of results");
            return group.into_iter().for_each(|waiting| waiting.answer(Err(error.clone())));
        }
        let mut pause = None;
        let mut refused: Option<(usize, Error)> = None;
        let now = Instant::now();
        for (mut waiting, result) in group.into_iter().zip(response.results) {
            match submitted(result) {
                // Full queues and missing leaders are backpressure here, not an end.
                Err(error) if waiting.deadline > now && (error.is_transient() || error.retry_after().is_some()) => {
                    pause = pause.max(Some(error.retry_after().unwrap_or_default()));
                    waiting.unknown |= error.is_unknown();
                    self.unsent.push_back(waiting);
                    refused.get_or_insert((0, error)).0 += 1;
                }
                result => waiting.answer(result),
            }
        }
        if let Some((count, error)) = refused {
            self.retrying(count, &error);
        }
        match pause {
            Some(asked) => self.hold_until = Some(now + self.backoff.pause(Some(asked))),
            None => self.backoff = Backoff::new(self.client.nodes.env().random.clone()),
        }
    }

    /// After a break: everything unconfirmed is to be sent again, oldest first.
    fn requeue(&mut self) {
        for group in std::mem::take(&mut self.sent).into_values().rev() {
            for mut waiting in group.into_iter().rev() {
                waiting.unknown = true;
                self.unsent.push_front(waiting);
            }
        }
        self.hold_until = None;
        self.expire(Instant::now());
    }

    fn retrying(&self, packages: usize, error: &Error) {
        if let Some(observer) = &self.on_retry
            && packages > 0
        {
            observer(packages, error);
        }
    }

    async fn pause(&mut self, error: Error) {
        let fatal = !error.is_transient() && !error.is_unknown();
        if fatal {
            // The node will not talk to us at all; trying again changes nothing.
            for waiting in self.unsent.drain(..) {
                waiting.answer(Err(error.clone()));
            }
        }
        tracing::debug!(error = %error, unconfirmed = self.unsent.len(), "submit stream broke");
        self.retrying(self.unsent.len(), &error);
        let pause = self.backoff.pause(error.retry_after());
        tokio::time::sleep(pause).await;
        // What nobody takes while there is no stream has its deadline all the same.
        while let Ok(waiting) = self.receiver.try_recv() {
            self.unsent.push_back(waiting);
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.unsent.iter().any(|waiting| waiting.deadline <= now) {
            let (over, open) = self.unsent.drain(..).partition(|waiting| waiting.deadline <= now);
            self.unsent = open;
            let over: VecDeque<Waiting> = over;
            over.into_iter().for_each(Waiting::expire);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn past_the_window_a_submit_waits_for_one_before_it() {
        // Nobody ever answers.
        let client = Client::new("127.0.0.1:9").expect("an address").with_timeout(Duration::from_millis(500));
        let submitter = client.submitter().build();
        let package = || NewPackage::new("jobs", "x");
        let mut tickets = Vec::new();
        for _ in 0..limits::CLIENT_SUBMIT_WINDOW {
            tickets.push(submitter.submit(package()).await.expect("taken"));
        }
        let mut late = Box::pin(submitter.submit(package()));
        assert!((&mut late).now_or_never().is_none(), "the window is full");
        let soon = Duration::from_secs(20);
        let answer = timeout(soon, tickets.swap_remove(0)).await.expect("by its deadline").expect_err("nobody answers");
        assert!(!answer.is_unknown(), "nothing was ever sent");
        timeout(soon, late).await.expect("soon").expect("there is room");
    }
}
