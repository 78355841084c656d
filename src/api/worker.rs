//! WorkerService: a session's stream (single calls are in `lease` and `settle`). A reader task turns requests into commands; the answers and the
//! machine's effects meet in the stream's outbox; the writer takes all that waits in few messages.
//!
//! Invariants: the first request is the Hello, and there is no second. Every completion, failure,
//! extension and release is answered by one outcome, unless the stream ends first. At most
//! `MAX_SETTLES_IN_FLIGHT_A_STREAM` requests have answers that the client has not taken; past that the
//! stream is not read, and a client that takes nothing is cut off by dispatch.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Duration, Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming};

use super::authorize::{Action, authorize};
use super::call::Call;
use super::forward::Route;
use super::oversize::is_oversize;
use super::status::{self, Refusal};
use super::validate::{At, Problems};
use super::{Api, BoxStream, Core, convert, settle};
use crate::dispatch::{self, Attachment, End, Message, Settled, Stream, Taken};
use crate::machine::command::{
    Command, Complete, DrainSession, Extend, Fail, Heard, Op, OpenSession, Release, SetCredit,
};
use crate::machine::effect::{Verdict, VerdictKind};
use crate::machine::{Outcome, Reply};
use crate::proto::v1;
use crate::proto::v1::work_request::Request as Asked;
use crate::proto::v1::work_response::Response as Told;
use crate::proto::v1::worker_service_server::WorkerService;
use crate::raft::handle::{Lane, ProposeError, Responder, Sink};
use crate::types::limits;

const WORK: &str = "/wharf.v1.WorkerService/Work";
/// The token of a sign of life; settlements count from 1.
pub(super) const HEARD: u64 = 0;
const PLACES: u32 = limits::MAX_SETTLES_IN_FLIGHT_A_STREAM as u32;

#[tonic::async_trait]
impl WorkerService for Api {
    type WorkStream = BoxStream<v1::WorkResponse>;

    async fn work(&self, request: Request<Streaming<v1::WorkRequest>>) -> Result<Response<Self::WorkStream>, Status> {
        let call = Call::new(request.metadata(), self.mode);
        authorize(&call.identity, Action::Work)?;
        let stream = match self.place(&call).await {
            Ok(Route::Here) => {
                // The answer begins before the Hello is read: some clients wait for that.
                let (opened, opening) = oneshot::channel();
                tokio::spawn(serve(self.core.clone(), request.into_inner(), opened));
                let writer: Self::WorkStream = Box::pin(Writer::Opening(opening));
                Ok(Response::new(writer))
            }
            Ok(Route::There(channel)) => self.hop_stream(channel, &call, request.into_inner(), WORK).await,
            Err(refusal) => Err(refusal.into()),
        };
        self.with_leader(stream)
    }

    async fn lease_packages(
        &self,
        request: Request<v1::LeasePackagesRequest>,
    ) -> Result<Response<v1::LeasePackagesResponse>, Status> {
        self.unary(request).await
    }

    async fn complete_package(
        &self,
        request: Request<v1::CompletePackageRequest>,
    ) -> Result<Response<v1::CompletePackageResponse>, Status> {
        self.unary(request).await
    }

    async fn fail_package(
        &self,
        request: Request<v1::FailPackageRequest>,
    ) -> Result<Response<v1::FailPackageResponse>, Status> {
        self.unary(request).await
    }

    async fn extend_package(
        &self,
        request: Request<v1::ExtendPackageRequest>,
    ) -> Result<Response<v1::ExtendPackageResponse>, Status> {
        self.unary(request).await
    }

    async fn release_package(
        &self,
        request: Request<v1::ReleasePackageRequest>,
    ) -> Result<Response<v1::ReleasePackageResponse>, Status> {
        self.unary(request).await
    }
}

/// A stream that said Hello, as reader, writer and proposer share it.
pub(super) struct Live {
    pub(super) stream: Arc<Stream>,
    /// Why the reader gave up, for the writer to say.
    refusal: Mutex<Option<Status>>,
    /// Settlements that wait for the machine, by token.
    waiting: Mutex<BTreeMap<u64, (Vec<Settled>, OwnedSemaphorePermit)>>,
}

pub(super) async fn serve(
    core: Arc<Core>,
    mut inbound: Streaming<v1::WorkRequest>,
    opened: oneshot::Sender<Result<Arc<Live>, Status>>,
) {
    let hello = match first(&mut inbound).await {
        Ok(hello) => hello,
        Err(refusal) => {
            // The client may be gone; then nobody waits for the reason.
            let _ = opened.send(Err(refusal.into()));
            return;
        }
    };
    let attachment = match core.dispatch.attach(&hello.session) {
        Ok(attachment) => attachment,
        Err(dispatch::NotLeading { leader }) => {
            let _ = opened.send(Err(Refusal::from(ProposeError::NotLeader { leader }).into()));
            return;
        }
    };
    let live =
        Arc::new(Live { stream: attachment.stream().clone(), refusal: Mutex::default(), waiting: Mutex::default() });
    if opened.send(Ok(live.clone())).is_err() {
        return;
    }
    if let Err(refusal) = work(&core, &live, &attachment, hello, &mut inbound).await {
        *live.refusal.lock() = Some(refusal.into());
        live.stream.end(End::Refused);
    }
    // Whatever the reason, the reader is done; an end that came before stays.
    live.stream.end(End::Clean);
}

/// The Hello, which must come first and soon.
async fn first(inbound: &mut Streaming<v1::WorkRequest>) -> Result<OpenSession, Refusal> {
    let until = Instant::now() + Duration::from_millis(limits::WORKER_SILENCE_MS);
    let request = match timeout_at(until, inbound.message()).await {
        Err(_) => return Err(Refusal::Silent),
        Ok(Err(status)) if is_oversize(&status) => return Err(Refusal::Oversize),
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None) | Err(_)) => return Err(bad("hello", "must be the first request, but none came")),
    };
    let received = request.received_fence;
    match request.request {
        Some(Asked::Hello(hello)) => open_session(hello, received),
        _ => Err(bad("hello", "must be the first request of the stream")),
    }
}

fn bad(field: &str, problem: &str) -> Refusal {
    Refusal::BadFields(vec![(field.to_owned(), problem.to_owned())])
}

fn open_session(hello: v1::Hello, received_fence: u64) -> Result<OpenSession, Refusal> {
    let mut problems = Problems::default();
    let at = At::In("hello");
    problems.items("hello.held", hello.held.len(), limits::MAX_HELD_IN_A_HELLO, false);
    if hello.max_in_flight > limits::MAX_IN_FLIGHT_CEILING {
        problems.bad(at, "max_in_flight", format_args!("must be at most {}", limits::MAX_IN_FLIGHT_CEILING));
    }
    if hello.concurrency > limits::MAX_IN_FLIGHT_CEILING {
        problems.bad(at, "concurrency", format_args!("must be at most {}", limits::MAX_IN_FLIGHT_CEILING));
    }
    let hello = subscription(hello, at, &mut problems);
    problems.check()?;
    Ok(OpenSession { received_fence, ..hello })
}

/// Who the worker is and what it wants, checked.
pub fn subscription(hello: v1::Hello, at: At, problems: &mut Problems) -> OpenSession {
    problems.word(at, "worker", &hello.worker);
    problems.word(at, "session", &hello.session);
    if hello.session.is_empty() {
        problems.bad(at, "session", "must not be empty: mint one, and say the same again to resume");
    }
    problems.items(&format!("{at}queues"), hello.queues.len(), limits::MAX_LANES_A_CLASS, true);
    problems.items(&format!("{at}kinds"), hello.kinds.len(), limits::MAX_LANES_A_CLASS, false);
    problems.labels(at, &hello.labels);
    let queues = hello.queues.iter().enumerate();
    let mut queues: Vec<_> =
        queues.map(|(index, queue)| problems.queue(At::Top, &format!("{at}queues[{index}]"), queue)).collect();
    // One subscription has one form: workers that want the same share a class.
    queues.sort_unstable();
    queues.dedup();
    for (index, kind) in hello.kinds.iter().enumerate() {
        problems.word(At::Top, &format!("{at}kinds[{index}]"), kind);
    }
    let mut kinds = hello.kinds;
    kinds.sort_unstable();
    kinds.dedup();
    if queues.len() * kinds.len().max(1) > limits::MAX_LANES_A_CLASS {
        let limit = limits::MAX_LANES_A_CLASS;
        problems.bad(at, "kinds", format_args!("times queues make more than {limit} lanes"));
    }
    let held = hello.held.into_iter().enumerate();
    let held = held.map(|(index, held)| settle::held(held, At::Item("hello.held", index), problems)).collect();
    OpenSession {
        session: hello.session,
        worker: hello.worker,
        queues,
        kinds,
        labels: hello.labels,
        max_in_flight: hello.max_in_flight,
        max_in_flight_bytes: hello.max_in_flight_bytes,
        concurrency: hello.concurrency,
        held,
        ..OpenSession::default()
    }
}

/// Opens the session and reads until the client or the stream ends.
async fn work(
    core: &Core,
    live: &Arc<Live>,
    attachment: &Attachment,
    hello: OpenSession,
    inbound: &mut Streaming<v1::WorkRequest>,
) -> Result<(), Refusal> {
    let stream = attachment.stream();
    stream.received(hello.received_fence);
    let op = Op::OpenSession(OpenSession { attach: stream.attach, ..hello });
    let wait = Duration::from_millis(limits::PROPOSAL_DEADLINE_MS);
    let opened = core.raft.propose(Lane::Settle, Command { op: Some(op) }, wait).await?;
    stream.reached(opened.revision);
    opened.result?;
    // The effect that binds the stream comes from the same apply.
    let unbound = ProposeError::Unknown { why: "the session was opened, but its welcome was lost" };
    if timeout_at(Instant::now() + wait, stream.bound()).await.map_err(|_| unbound)?.is_none() {
        return Ok(());
    }
    let mut reader = Reader { core, live, places: Arc::new(Semaphore::new(PLACES as usize)), token: 0 };
    loop {
        stream.reading();
        let next = tokio::select! {
            biased;
            () = stream.ended() => return Ok(()),
            next = inbound.message() => next,
        };
        stream.heard();
        match next {
            Ok(Some(request)) => reader.take(request).await?,
            Ok(None) => break,
            Err(status) if is_oversize(&status) => return Err(Refusal::Oversize),
            // The connection broke; dropping the attachment says so.
            Err(_) => return Ok(()),
        }
    }
    // The client has said all: it may still want to hear the answers.
    let answered = reader.places.acquire_many(PLACES);
    tokio::select! {
        _ = timeout_at(Instant::now() + wait, answered) => {}
        () = stream.ended() => {}
    }
    Ok(())
}

/// Turns requests into commands.
struct Reader<'a> {
    core: &'a Core,
    live: &'a Arc<Live>,
    places: Arc<Semaphore>,
    token: u64,
}

impl Reader<'_> {
    async fn take(&mut self, request: v1::WorkRequest) -> Result<(), Refusal> {
        let stream = &self.live.stream;
        stream.received(request.received_fence);
        if stream.sign_of_life_matters() {
            let heard = Heard { speaker: Some(stream.speaker()) };
            let sink: Arc<dyn Sink> = self.live.clone();
            self.propose(Op::Heard(heard), Responder::Sink(sink, HEARD)).await;
        }
        match request.request {
            Some(Asked::Done(done)) => self.done(done).await,
            Some(Asked::Fail(fail)) => self.fail(fail).await,
            Some(Asked::Extend(extend)) => self.extend(extend).await,
            Some(Asked::Release(release)) => self.release(release).await,
            Some(Asked::SetCredit(credit)) => {
                if credit.max_in_flight > limits::MAX_IN_FLIGHT_CEILING {
                    return Err(bad("set_credit.max_in_flight", "is above the ceiling"));
                }
                let speaker = Some(stream.speaker());
                let op = Op::SetCredit(SetCredit { speaker, max_in_flight: credit.max_in_flight });
                self.settle(op, Vec::new()).await
            }
            Some(Asked::Drain(v1::Drain {})) => {
                let speaker = stream.speaker();
                let op = Op::DrainSession(DrainSession { session: speaker.session, epoch: speaker.epoch });
                self.settle(op, Vec::new()).await
            }
            Some(Asked::Ping(v1::Ping {})) => {
                stream.push(Message::Pong);
                Ok(())
            }
            Some(Asked::Hello(_)) => Err(bad("hello", "must come once: open another stream to say it again")),
            None => Err(bad("request", "is empty or of a later version")),
        }
    }

    async fn done(&mut self, done: v1::Done) -> Result<(), Refusal> {
        let mut batch = Batch::new("done.completions", done.completions.len())?;
        for (index, item) in done.completions.into_iter().enumerate() {
            let told = told_of(&item.queue, &item.id, item.fence);
            batch.add(told, |problems| settle::completion(item, At::Item("done.completions", index), problems));
        }
        let speaker = Some(self.live.stream.speaker());
        self.answer(batch, |completions| Op::Complete(Complete { speaker, completions })).await
    }

    async fn fail(&mut self, fail: v1::Fail) -> Result<(), Refusal> {
        let mut batch = Batch::new("fail.failed", fail.failed.len())?;
        for (index, item) in fail.failed.into_iter().enumerate() {
            let told = told_of(&item.queue, &item.id, item.fence);
            batch.add(told, |problems| settle::failed(item, At::Item("fail.failed", index), problems));
        }
        let speaker = Some(self.live.stream.speaker());
        self.answer(batch, |failed| Op::Fail(Fail { speaker, failed })).await
    }

    async fn extend(&mut self, extend: v1::Extend) -> Result<(), Refusal> {
        let mut batch = Batch::new("extend.extensions", extend.extensions.len())?;
        for (index, item) in extend.extensions.into_iter().enumerate() {
            let told = told_of(&item.queue, &item.id, item.fence);
            batch.add(told, |problems| settle::extension(item, At::Item("extend.extensions", index), problems));
        }
        let speaker = Some(self.live.stream.speaker());
        self.answer(batch, |extensions| Op::Extend(Extend { speaker, extensions })).await
    }

    async fn release(&mut self, release: v1::Release) -> Result<(), Refusal> {
        let mut batch = Batch::new("release.held", release.held.len())?;
        for (index, item) in release.held.into_iter().enumerate() {
            let told = told_of(&item.queue, &item.id, item.fence);
            batch.add(told, |problems| settle::held(item, At::Item("release.held", index), problems));
        }
        let speaker = Some(self.live.stream.speaker());
        self.answer(batch, |leases| Op::Release(Release { speaker, leases })).await
    }

    /// Answers what is refused here, and sends the rest to the machine.
    async fn answer<T>(&mut self, batch: Batch<T>, op: impl FnOnce(Vec<T>) -> Op) -> Result<(), Refusal> {
        let Batch { items, settled, refused } = batch;
        if !refused.is_empty() {
            let place = self.place().await;
            self.live.stream.outbox.push_settled(refused, place);
        }
        if items.is_empty() { Ok(()) } else { self.settle(op(items), settled).await }
    }

    async fn settle(&mut self, op: Op, settled: Vec<Settled>) -> Result<(), Refusal> {
        // No place: the stream has ended while it waited.
        let Some(place) = self.place().await else { return Ok(()) };
        self.token += 1;
        self.live.waiting.lock().insert(self.token, (settled, place));
        self.live.stream.outbox.owe();
        let sink: Arc<dyn Sink> = self.live.clone();
        self.propose(op, Responder::Sink(sink, self.token)).await;
        Ok(())
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            place = self.places.clone().acquire_owned() => place.ok(),
            () = self.live.stream.ended() => None,
        }
    }

    async fn propose(&self, op: Op, responder: Responder) {
        self.core.raft.ready(Lane::Settle).await;
        self.core.raft.send(Lane::Settle, Command { op: Some(op) }, responder);
    }
}

/// The settlements of one request: what goes to the machine, with the answers to come, and what is
/// refused before.
struct Batch<T> {
    items: Vec<T>,
    settled: Vec<Settled>,
    refused: Vec<Settled>,
}

impl<T> Batch<T> {
    fn new(field: &str, len: usize) -> Result<Self, Refusal> {
        let mut problems = Problems::default();
        problems.items(field, len, limits::MAX_SETTLEMENTS_A_MESSAGE, false);
        problems.check()?;
        Ok(Self { items: Vec::with_capacity(len), settled: Vec::with_capacity(len), refused: Vec::new() })
    }

    fn add(&mut self, mut told: Settled, check: impl FnOnce(&mut Problems) -> T) {
        let mut problems = Problems::default();
        let item = check(&mut problems);
        match problems.refusal() {
            None => {
                self.items.push(item);
                self.settled.push(told);
            }
            Some(refusal) => {
                told.result = Err(Arc::new(refusal));
                self.refused.push(told);
            }
        }
    }
}

/// The answer to a settlement, as its client named it; settled unless something is said against it.
fn told_of(queue: &str, id: &str, fence: u64) -> Settled {
    Settled { queue: queue.to_owned(), id: id.to_owned(), fence, result: Ok(()) }
}

/// Answers of settlements and signs of life.
impl Sink for Live {
    fn answer(&self, token: u64, result: Result<Outcome, ProposeError>) {
        if token == HEARD {
            if result.is_err() {
                // It may not have reached the state: the next request says it again.
                self.stream.mind_signs_of_life();
            }
            return;
        }
        let Some((mut settled, place)) = self.waiting.lock().remove(&token) else {
            return;
        };
        let refusal = match result {
            Ok(Outcome { revision, result }) => {
                self.stream.reached(revision);
                match result {
                    Ok(Reply::Settled(each)) => {
                        for (settled, result) in settled.iter_mut().zip(each) {
                            settled.result = result.map_err(|reject| Arc::new(dispatch::Refusal::Reject(reject)));
                        }
                        None
                    }
                    // Credit and drain have no outcomes to tell.
                    Ok(_) => None,
                    Err(reject) => Some(dispatch::Refusal::Reject(reject)),
                }
            }
            Err(error) => Some(dispatch::Refusal::Propose(error)),
        };
        if let Some(refusal) = refusal {
            let refusal = Arc::new(refusal);
            settled.iter_mut().for_each(|settled| settled.result = Err(refusal.clone()));
        }
        self.stream.outbox.push_settled(settled, Some(place));
        self.stream.outbox.pay();
    }
}

/// What the client reads. Dropping it says that the client is gone.
pub(super) enum Writer {
    Opening(oneshot::Receiver<Result<Arc<Live>, Status>>),
    Open(Arc<Live>),
    Over,
}

impl futures::Stream for Writer {
    type Item = Result<v1::WorkResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Writer::Opening(opening) = &mut *self {
            match ready!(Pin::new(opening).poll(cx)) {
                Ok(Ok(live)) => *self = Writer::Open(live),
                refused => {
                    *self = Writer::Over;
                    // Without a word from the reader its runtime is going down.
                    let status = match refused {
                        Ok(refused) => refused.err(),
                        Err(_) => Some(Refusal::from(ProposeError::ShuttingDown).into()),
                    };
                    return Poll::Ready(status.map(Err));
                }
            }
        }
        let Writer::Open(live) = &*self else { return Poll::Ready(None) };
        let live = live.clone();
        let taken = ready!(live.stream.outbox.poll_take(cx));
        let told = match taken {
            Taken::Message(message) => Ok(told(message)),
            Taken::Settled(settled) => Ok(Told::Settled(outcomes(settled))),
            Taken::End(end) => {
                *self = Writer::Over;
                match end {
                    End::Clean => return Poll::Ready(None),
                    End::Goaway { leader, reason } => {
                        Ok(Told::Goaway(v1::Goaway { leader, reason: reason.to_owned() }))
                    }
                    End::Lagging => Err(Refusal::Lagging.into()),
                    End::Silent => Err(Refusal::Silent.into()),
                    End::Refused => match live.refusal.lock().take() {
                        Some(status) => Err(status),
                        None => return Poll::Ready(None),
                    },
                }
            }
        };
        let revision = live.stream.revision();
        Poll::Ready(Some(told.map(|told| v1::WorkResponse { revision, response: Some(told) })))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Writer::Open(live) = self {
            live.stream.end(End::Clean);
        }
    }
}

fn told(message: Message) -> Told {
    match message {
        Message::Welcome { session, epoch, term, verdicts, session_grace_ms } => Told::Welcome(v1::Welcome {
            session: session.to_string(),
            epoch: epoch.0,
            term,
            verdicts: verdicts.into_iter().map(verdict).collect(),
            session_grace: Some(convert::duration(session_grace_ms)),
        }),
        Message::Deliver(deliveries) => {
            Told::Deliver(v1::Deliver { deliveries: deliveries.into_iter().map(convert::delivery).collect() })
        }
        Message::Recall { count } => Told::Recall(v1::Recall { count }),
        Message::Revoke { leases, reason } => {
            Told::Revoke(v1::Revoke { held: leases.iter().map(convert::held).collect(), reason: reason.to_owned() })
        }
        Message::EndOfWork { queue } => Told::EndOfWork(v1::EndOfWork { queue: queue.as_str().to_owned() }),
        Message::Pong => Told::Pong(v1::Pong {}),
    }
}

fn outcomes(settled: Vec<Settled>) -> v1::Settled {
    let outcome = |settled: Settled| v1::Outcome {
        queue: settled.queue,
        id: settled.id,
        fence: settled.fence,
        status: settled.result.err().map(|refusal| status::message(Refusal::from(&*refusal))),
    };
    v1::Settled { outcomes: settled.into_iter().map(outcome).collect() }
}

fn verdict(verdict: Verdict) -> v1::Verdict {
    let (kind, outcome) = match verdict.kind {
        VerdictKind::Keep => (v1::verdict::Kind::Keep, None),
        VerdictKind::Gone => (v1::verdict::Kind::Gone, None),
        VerdictKind::Settled(result) => {
            (v1::verdict::Kind::Settled, result.err().map(|reject| status::message(reject.into())))
        }
    };
    v1::Verdict { queue: verdict.queue, id: verdict.id, fence: verdict.fence.0, kind: kind as i32, outcome }
}
