//! The worker's loop.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::super::backoff::Backoff;
use super::super::doubt::{DOUBT, LOOK_AGAIN};
use super::super::error::reason;
use super::super::package::std_duration;
use super::super::{Client, Error};
use super::builder::{Options, Worker};
use super::delivery::{Ask, Completion, Delivery, Failure};
use super::event::{Event, Kind, Summary};
use super::ledger::{Change, Ledger, Wish};
use super::link::{Link, News, Up};
use crate::proto::v1::work_request::Request;
use crate::proto::v1::work_response::Response;
use crate::proto::v1::{self, Drain, Hello, Ping, Welcome, WorkRequest};
use crate::types::limits;

/// A stream is in doubt when even the answer to a ping is late.
const DOUBTED: Duration = Duration::from_millis(limits::CLIENT_PING_EVERY_MS).saturating_add(DOUBT);

/// What works a package.
pub(super) enum Handle {
    /// Each in a task of its own.
    Spawned(Box<dyn Fn(Delivery) -> BoxFuture<'static, Result<Completion, Failure>> + Send + Sync>),
    /// In the worker's loop.
    Inline(Box<dyn FnMut(Delivery) -> Result<Completion, Failure> + Send>),
}

type Finished = (u64, Result<Completion, Failure>);

/// See the module.
pub(super) struct Runner {
    client: Client,
    options: Options,
    handle: Handle,
    ledger: Ledger,
    tasks: JoinSet<Finished>,
    link: Link,
    backoff: Backoff,
    asks: (mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
    /// Queues that have not ended.
    open_queues: Vec<String>,
    drain: BoxFuture<'static, ()>,
    leaving: Option<Leaving>,
    next_ping: Instant,
    /// Give up if not attached by then. None: attached.
    give_up_at: Option<Instant>,
    /// When it was attached last.
    attached_at: Option<Instant>,
    /// The stream had no room for the next message.
    blocked: bool,
    /// Nothing more will come: return.
    over: bool,
    summary: Summary,
}

/// The worker takes nothing new.
struct Leaving {
    /// Handlers that still run then are dropped.
    handlers_until: Instant,
    /// Nothing is held any more: wait so long for the end of the stream.
    goodbye_until: Option<Instant>,
    /// The cluster was told on this stream.
    told: bool,
}

enum Step {
    News(News),
    Finished(Result<Finished, JoinError>),
    Ask(Ask),
    Drain,
    /// A timer, or there is room in the stream again.
    Wake,
}

impl Runner {
    pub fn new(worker: Worker, handle: Handle) -> Self {
        let Worker { client, options, drain } = worker;
        let now = Instant::now();
        let backoff = Backoff::new(client.nodes.env().random.clone());
        let capacity = options.concurrency.min(limits::MAX_IN_FLIGHT_CEILING) as usize;
        let hello = hello(&options, &Ledger::default());
        Self {
            link: Link::attach(&client, Duration::ZERO, hello, 0),
            handle,
            ledger: Ledger::default(),
            tasks: JoinSet::new(),
            backoff,
            asks: mpsc::channel(capacity.max(1)),
            open_queues: options.queues.clone(),
            drain,
            leaving: None,
            next_ping: now,
            give_up_at: Some(now + options.attach_timeout),
            attached_at: None,
            blocked: false,
            over: false,
            summary: Summary::default(),
            client,
            options,
        }
    }

    pub async fn run(mut self) -> Result<Summary, Error> {
        loop {
            let step = self.step().await;
            let now = Instant::now();
            match step {
                Step::News(news) => self.news(news, now)?,
                Step::Finished(finished) => self.finished(finished),
                Step::Ask(ask) => self.asked(ask),
                Step::Drain => self.leave(now),
                Step::Wake => {}
            }
            // Whatever else is ready goes into the same messages: handlers that are about to end
            // get their turn first.
            if !self.tasks.is_empty() {
                tokio::task::yield_now().await;
            }
            while let Some(finished) = self.tasks.try_join_next() {
                self.finished(finished);
            }
            while let Ok(ask) = self.asks.1.try_recv() {
                self.asked(ask);
            }
            self.ledger.tick(now);
            self.start_handlers(now);
            self.watch_silence(now);
            self.end_or_go_on(now);
            if self.over {
                self.tasks.abort_all();
                return Ok(self.summary);
            }
            self.flush(now);
        }
    }

    async fn step(&mut self) -> Step {
        let wake = self.wake_at();
        let requests = self.link.up().filter(|_| self.blocked).map(|up| up.requests.clone());
        let room = async {
            match &requests {
                // A closed stream is told by its other half.
                Some(requests) => drop(requests.reserve().await),
                None => futures::future::pending().await,
            }
        };
        tokio::select! {
            // In this order, so that a simulation repeats. Nobody starves: each turn of the loop
            // takes what is ready of the rest, and looks at the clock.
            biased;
            () = &mut self.drain, if self.leaving.is_none() => Step::Drain,
            news = self.link.next() => Step::News(news),
            Some(finished) = self.tasks.join_next() => Step::Finished(finished),
            Some(ask) = self.asks.1.recv() => Step::Ask(ask),
            () = room => Step::Wake,
            () = sleep_until(wake) => Step::Wake,
        }
    }

    /// When something is due by itself.
    fn wake_at(&self) -> Instant {
        let mut wake = self.next_ping;
        let mut sooner = |at: Option<Instant>| wake = at.map_or(wake, |at| wake.min(at));
        sooner(self.ledger.next_due());
        sooner(self.link.up().map(|up| (up.heard + DOUBTED).max(Instant::now() + LOOK_AGAIN)));
        sooner(self.leaving.as_ref().map(|leaving| leaving.goodbye_until.unwrap_or(leaving.handlers_until)));
        wake
    }

    fn news(&mut self, news: News, now: Instant) -> Result<(), Error> {
        match news {
            News::Attached(Ok(attached)) => self.attached(attached.0, attached.1, now),
            News::Attached(Err(error)) => return self.attach_failed(error, now),
            News::Response(response) => self.response(*response, now),
            News::Ended => self.closed(now),
            News::Broken(error) => {
                if let Some(up) = self.link.up() {
                    self.client.complain(&up.node, &error);
                }
                if is_for_good(&error) {
                    self.ledger.cancel_all();
                    return Err(error);
                }
                self.detach(error, now);
            }
        }
        Ok(())
    }

    /// The session was closed: it was drained, by this worker or by an operator. What has no outcome
    /// yet is settled under a new one, which gets nothing.
    fn closed(&mut self, now: Instant) {
        self.leave(now);
        if self.holds_nothing() {
            self.over = true;
        } else {
            self.detach(Error::unreachable("the session was closed"), now);
        }
    }

    fn attached(&mut self, up: Box<Up>, welcome: Welcome, now: Instant) {
        let reattached = self.attached_at.is_some();
        self.summary.reattached += u64::from(reattached);
        self.event(Event::Attached {
            session: welcome.session.as_str().into(),
            epoch: welcome.epoch,
            term: welcome.term,
            node: up.addr(),
            reattached,
        });
        tracing::debug!(node = %up.addr(), epoch = welcome.epoch, term = welcome.term, reattached, "worker attached");
        self.link = Link::Up(up);
        self.attached_at = Some(now);
        self.give_up_at = None;
        self.blocked = false;
        self.next_ping = now + Duration::from_millis(limits::CLIENT_PING_EVERY_MS);
        if let Some(leaving) = &mut self.leaving {
            leaving.told = false;
        }
        for change in self.ledger.reattached(welcome.verdicts, now) {
            self.changed(change);
        }
    }

    fn attach_failed(&mut self, error: Error, now: Instant) -> Result<(), Error> {
        if is_for_good(&error) || self.give_up_at.is_some_and(|at| at <= now) {
            self.ledger.cancel_all();
            return Err(error);
        }
        tracing::debug!(error = %error, "worker cannot attach yet");
        let pause = self.backoff.pause(error.retry_after());
        self.attach_after(pause);
        Ok(())
    }

    /// The stream is of no use any more: get another one. At once, unless this one did not last.
    fn detach(&mut self, error: Error, now: Instant) {
        tracing::debug!(error = %error, "worker detached");
        self.event(Event::Detached { error });
        self.give_up_at = Some(now + Duration::from_millis(limits::CLIENT_REATTACH_MS));
        let lasted = self.attached_at.map(|at| now.saturating_duration_since(at)).unwrap_or_default();
        let pause = if lasted >= Duration::from_millis(limits::CLIENT_PING_EVERY_MS) {
            self.backoff = Backoff::new(self.client.nodes.env().random.clone());
            Duration::ZERO
        } else {
            self.backoff.pause(None)
        };
        self.attach_after(pause);
    }

    fn attach_after(&mut self, pause: Duration) {
        let hello = hello(&self.options, &self.ledger);
        self.blocked = false;
        self.link = Link::attach(&self.client, pause, hello, self.ledger.received_fence());
    }

    fn response(&mut self, response: Response, now: Instant) {
        match response {
            // A second welcome means nothing.
            Response::Welcome(_) | Response::Pong(_) => {}
            Response::Deliver(deliver) => {
                for delivery in deliver.deliveries {
                    self.delivered(delivery);
                }
            }
            Response::Settled(settled) => {
                for outcome in settled.outcomes {
                    if let Some(change) = self.ledger.outcome(outcome, now) {
                        self.changed(change);
                    }
                }
            }
            Response::Recall(recall) => self.ledger.recall(recall.count as usize),
            Response::Revoke(revoke) => {
                for lease in revoke.held {
                    if let Some(change) = self.ledger.revoke(lease.fence, &revoke.reason) {
                        self.changed(change);
                    }
                }
            }
            Response::EndOfWork(end) => {
                self.open_queues.retain(|queue| !same_queue(queue, &end.queue));
                self.event(Event::EndOfWork { queue: end.queue });
            }
            Response::Goaway(goaway) => {
                if let Some(up) = self.link.up() {
                    self.client.nodes.elsewhere(&up.node);
                }
                self.client.nodes.led_by(&goaway.leader);
                self.detach(Error::unreachable(format_args!("sent away: {}", goaway.reason)), now);
            }
        }
    }

    fn delivered(&mut self, delivery: v1::Delivery) {
        let attempt = delivery.attempt;
        let queue = delivery.package.as_ref().map(|package| package.queue.clone()).unwrap_or_default();
        let Some(lease) = self.ledger.deliver(delivery) else { return };
        self.summary.delivered += 1;
        // Whatever had ended was unsealed.
        let reopened = self.options.queues.iter().find(|name| same_queue(name, &queue));
        if let Some(name) = reopened
            && !self.open_queues.contains(name)
        {
            self.open_queues.push(name.clone());
        }
        self.event(Event::Delivered { lease, attempt });
        if self.leaving.is_some() {
            self.ledger.recall(usize::MAX);
        }
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Settled { lease, kind, result } => {
                let counter = match (&result, kind) {
                    (Err(_), _) => &mut self.summary.refused,
                    (Ok(()), Kind::Done) => &mut self.summary.completed,
                    (Ok(()), Kind::Fail) => &mut self.summary.failed,
                    (Ok(()), Kind::Release) => &mut self.summary.released,
                };
                *counter += 1;
                self.event(Event::Settled { lease, kind, result });
            }
            Change::Lost { lease, why } => {
                self.summary.lost += 1;
                tracing::debug!(package = %lease, why, "lease lost");
                self.event(Event::Lost { lease, why });
            }
        }
    }

    fn finished(&mut self, finished: Result<Finished, JoinError>) {
        match finished {
            // The result of a lost lease goes nowhere.
            Ok((fence, result)) => drop(self.ledger.finish(fence, result)),
            // Handlers catch their panics, and only the end of the worker aborts them.
            Err(error) => tracing::error!(error = %error, "a handler's task broke"),
        }
    }

    fn asked(&mut self, ask: Ask) {
        let wish = Wish { by: ask.by, checkpoint: ask.checkpoint, reply: Some(ask.reply) };
        self.ledger.wish(ask.fence, wish);
    }

    fn start_handlers(&mut self, now: Instant) {
        let handle = match &mut self.handle {
            Handle::Inline(handle) => {
                let (asks, observer) = (&self.asks.0, self.options.on_event.as_deref());
                while self.ledger.work_next(|lease, delivery| {
                    observer.inspect(|observe| observe(&Event::Started { lease: lease.clone() }));
                    let delivery = in_hand(delivery, CancellationToken::new(), asks.clone());
                    std::panic::catch_unwind(AssertUnwindSafe(|| handle(delivery)))
                        .unwrap_or_else(|panic| Err(panicked(&*panic)))
                }) {}
                return;
            }
            Handle::Spawned(handle) => handle,
        };
        while self.tasks.len() < self.options.concurrency as usize {
            let Some((lease, delivery, cancelled)) = self.ledger.start(now, self.options.extend) else { return };
            if let Some(observer) = &self.options.on_event {
                observer(&Event::Started { lease });
            }
            let fence = delivery.fence;
            let work = handle(in_hand(delivery, cancelled.clone(), self.asks.0.clone()));
            let grace = self.options.cancel_grace;
            self.tasks.spawn(async move { (fence, work_on(work, cancelled, grace).await) });
        }
    }

    /// Starts to leave: nothing new, and what was not started goes back.
    fn leave(&mut self, now: Instant) {
        if self.leaving.is_none() {
            let handlers_until = now + self.options.drain_timeout;
            self.leaving = Some(Leaving { handlers_until, goodbye_until: None, told: false });
            self.ledger.recall(usize::MAX);
        }
    }

    fn watch_silence(&mut self, now: Instant) {
        let Some(up) = self.link.up() else { return };
        let silent = now.saturating_duration_since(up.heard);
        if silent >= Duration::from_millis(limits::CLIENT_SILENCE_MS) {
            self.client.nodes.lost(&up.node);
            self.detach(Error::unreachable("the stream fell silent"), now);
        } else if silent >= DOUBTED && self.client.doubt(&up.node) {
            self.client.nodes.lost(&up.node);
            self.detach(Error::unreachable("the stream fell silent, and another node leads"), now);
        }
    }

    /// Notices the end of all queues, and the end of leaving.
    fn end_or_go_on(&mut self, now: Instant) {
        let holds_nothing = self.holds_nothing();
        if self.open_queues.is_empty() && holds_nothing && self.leaving.is_none() {
            self.summary.end_of_work = true;
            self.leave(now);
        }
        let Some(leaving) = &mut self.leaving else { return };
        if holds_nothing {
            let goodbye = now + Duration::from_millis(limits::CLIENT_GOODBYE_MS);
            let until = *leaving.goodbye_until.get_or_insert(goodbye);
            // Without a stream there is nobody to say goodbye to: the session ends by itself.
            self.over |= until <= now || self.link.up().is_none();
        } else {
            leaving.goodbye_until = None;
            if leaving.handlers_until <= now {
                self.ledger.cancel_all();
                self.summary.abandoned = self.tasks.len() as u64;
                self.over = true;
            }
        }
    }

    fn holds_nothing(&self) -> bool {
        self.ledger.is_empty() && self.tasks.is_empty()
    }

    /// Sends all that is to be sent, as far as there is room.
    fn flush(&mut self, now: Instant) {
        let received_fence = self.ledger.received_fence();
        // A pause while nothing is attached: the attempt itself is watched by its own timeout.
        if self.next_ping <= now && self.link.up().is_none() {
            self.next_ping = now + Duration::from_millis(limits::CLIENT_PING_EVERY_MS);
        }
        let Link::Up(up) = &self.link else { return };
        self.blocked = false;
        loop {
            let tell = self.leaving.as_ref().is_some_and(|leaving| !leaving.told);
            if !tell && self.next_ping > now && !self.ledger.has_messages() {
                return;
            }
            let Ok(room) = up.requests.try_reserve() else {
                self.blocked = true;
                return;
            };
            let request = if let Some(request) = self.ledger.next_message(self.options.credit(), self.options.batch) {
                request
            } else if tell {
                // After the releases, so that they count as released and not as drained.
                self.leaving.iter_mut().for_each(|leaving| leaving.told = true);
                Request::Drain(Drain {})
            } else if self.next_ping <= now {
                self.next_ping = now + Duration::from_millis(limits::CLIENT_PING_EVERY_MS);
                Request::Ping(Ping {})
            } else {
                return;
            };
            room.send(WorkRequest { received_fence, request: Some(request) });
        }
    }

    fn event(&self, event: Event) {
        if let Some(observer) = &self.options.on_event {
            observer(&event);
        }
    }
}

/// A package as its handler gets it.
fn in_hand(delivery: v1::Delivery, cancelled: CancellationToken, asks: mpsc::Sender<Ask>) -> Delivery {
    Delivery {
        package: delivery.package.unwrap_or_default(),
        fence: delivery.fence,
        attempt: delivery.attempt,
        lease: std_duration(delivery.lease),
        checkpoint: delivery.checkpoint,
        cancelled,
        asks,
    }
}

/// Trying again would bring the same.
fn is_for_good(error: &Error) -> bool {
    match error.code() {
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => true,
        Code::NotFound => error.reason() == reason::QUEUE_NOT_FOUND,
        _ => false,
    }
}

fn hello(options: &Options, ledger: &Ledger) -> Hello {
    Hello {
        worker: options.name.clone(),
        session: options.session.clone(),
        queues: options.queues.clone(),
        kinds: options.kinds.clone(),
        labels: options.labels.clone(),
        max_in_flight: options.credit(),
        max_in_flight_bytes: options.max_in_flight_bytes,
        concurrency: options.concurrency,
        held: ledger.held(),
    }
}

/// Runs a handler; drops it some time after its lease was lost.
async fn work_on(
    work: impl Future<Output = Result<Completion, Failure>>,
    cancelled: CancellationToken,
    grace: Duration,
) -> Result<Completion, Failure> {
    let too_late = async {
        cancelled.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        // In this order, so that a simulation repeats: what is finished counts.
        biased;
        result = AssertUnwindSafe(work).catch_unwind() => result.unwrap_or_else(|panic| Err(panicked(&*panic))),
        () = too_late => Err(Failure::release()),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Failure::new(format!("the handler panicked: {}", text.unwrap_or("no message"))).with_code("PANIC")
}

/// The server names queues in their canonical form.
fn same_queue(one: &str, other: &str) -> bool {
    canonical(one) == canonical(other)
}

fn canonical(name: &str) -> &str {
    name.strip_prefix("default/").unwrap_or(name)
}
