//! A producer that submits at its own pace, whatever the answers take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::super::history::{Answer, Event, Key, Recorder};
use super::super::wait::{self, Late};
use crate::client::{Client, Error, NewPackage, Submitted, Submitter};

/// Packages that a producer has on the way at most; past that it is no longer an open loop, and
/// waits.
const ON_THE_WAY: usize = 20_000;
/// A producer that was told to stop tries to learn unknown outcomes for so long.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);

/// What to produce.
#[derive(Clone, Debug)]
pub struct Producer {
    pub queue: String,
    /// Packages a second.
    pub rate: u32,
    /// 0: until stopped.
    pub count: u64,
    pub payload_bytes: usize,
    /// Priorities 0 to 9 in turn, instead of the queue's default.
    pub mixed_priorities: bool,
    /// Over one submit stream, instead of one call a package.
    pub pipelined: bool,
}

impl Producer {
    /// `rate` packages a second of 256 bytes, until stopped, over one stream.
    pub fn new(queue: &str, rate: u32) -> Self {
        let queue = queue.to_owned();
        Self { queue, rate, count: 0, payload_bytes: 256, mixed_priorities: false, pipelined: true }
    }

    /// Starts; ids are `who-number`. A package whose outcome is unknown is submitted again with the
    /// same id until its outcome is known.
    pub fn start(self, client: Client, recorder: Recorder) -> Production {
        let (stop, stopped) = watch::channel(false);
        let counts = Arc::new(Counts::default());
        let run = Run {
            submit: if self.pipelined {
                let submitter = client.submitter().window(ON_THE_WAY).build();
                Way::Stream(Arc::new(submitter))
            } else {
                Way::Calls(client)
            },
            payload: vec![b'x'; self.payload_bytes].into(),
            producer: self,
            recorder,
            counts: counts.clone(),
            ids: Vec::new(),
        };
        Production { stop, counts, task: tokio::spawn(run.run(stopped)) }
    }
}

#[derive(Debug, Default)]
struct Counts {
    submitted: AtomicU64,
    confirmed: AtomicU64,
    tried_again: AtomicU64,
}

/// A producer at work.
pub struct Production {
    stop: watch::Sender<bool>,
    counts: Arc<Counts>,
    task: JoinHandle<Produced>,
}

impl Production {
    pub fn confirmed(&self) -> u64 {
        self.counts.confirmed.load(Ordering::Relaxed)
    }

    /// Waits until so many more are confirmed.
    pub async fn wait_confirmed(&self, more: u64, within: Duration) -> Result<(), Late> {
        let goal = self.confirmed() + more;
        let what = format!("the confirm of {more} more packages");
        wait::until(what, within, || async { (self.confirmed() >= goal).then_some(()) }).await
    }

    /// Stops, waits until every outcome is known or time is out, and tells what was made.
    pub async fn stop(self) -> Produced {
        // An error: it ended by itself, with its count.
        let _ = self.stop.send(true);
        self.finish().await
    }

    /// Waits for the end of a producer with a count.
    pub async fn finish(self) -> Produced {
        self.task.await.expect("the producer does not panic")
    }
}

/// What a producer made.
#[derive(Clone, Debug, Default)]
pub struct Produced {
    pub keys: Vec<Key>,
    pub confirmed: u64,
    /// Submits that were repeated because their outcome was not known.
    pub tried_again: u64,
}

enum Way {
    Stream(Arc<Submitter>),
    Calls(Client),
}

type Answered = (NewPackage, Result<Submitted, Error>);

struct Run {
    producer: Producer,
    submit: Way,
    payload: Bytes,
    recorder: Recorder,
    counts: Arc<Counts>,
    ids: Vec<Key>,
}

impl Run {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) -> Produced {
        let mut pace = interval(Duration::from_secs(1) / self.producer.rate.max(1));
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut on_the_way: FuturesUnordered<BoxFuture<'static, Answered>> = FuturesUnordered::new();
        let mut deadline = None;
        loop {
            let made = self.ids.len() as u64;
            let ended = *stopped.borrow() || (self.producer.count > 0 && made == self.producer.count);
            if ended && deadline.is_none() {
                deadline = Some(Instant::now() + SETTLE_WITHIN);
            }
            if ended && on_the_way.is_empty() {
                break;
            }
            tokio::select! {
                // In this order, so that a simulation repeats. The pace comes first: time bounds it.
                biased;
                _ = pace.tick(), if !ended && on_the_way.len() < ON_THE_WAY => {
                    let package = self.next_package();
                    on_the_way.push(self.send(package));
                }
                Some((package, answer)) = on_the_way.next() => {
                    let late = deadline.is_some_and(|deadline| Instant::now() > deadline);
                    if self.answered(&package, &answer) && !late {
                        self.counts.tried_again.fetch_add(1, Ordering::Relaxed);
                        on_the_way.push(self.send(package));
                    }
                }
                Ok(()) = stopped.changed(), if !ended => {}
            }
        }
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Produced {
            confirmed: load(&self.counts.confirmed),
            tried_again: load(&self.counts.tried_again),
            keys: self.ids,
        }
    }

    fn next_package(&mut self) -> NewPackage {
        let number = self.ids.len();
        let key = Key::new(&self.producer.queue, format!("{}-{number:06}", self.recorder.who()));
        let package = NewPackage::new(&key.queue, self.payload.clone()).with_id(&key.id);
        self.ids.push(key);
        match self.producer.mixed_priorities {
            true => package.with_priority(number as u32 % 10),
            false => package,
        }
    }

    fn send(&self, package: NewPackage) -> BoxFuture<'static, Answered> {
        self.recorder.record(Event::Submit { key: Key::new(&package.queue, &package.id) });
        self.counts.submitted.fetch_add(1, Ordering::Relaxed);
        match &self.submit {
            Way::Stream(submitter) => {
                let submitter = submitter.clone();
                async move {
                    let answer = match submitter.submit(package.clone()).await {
                        Ok(ticket) => ticket.await,
                        Err(error) => Err(error),
                    };
                    (package, answer)
                }
                .boxed()
            }
            Way::Calls(client) => {
                let client = client.clone();
                async move {
                    let answer = client.submit(package.clone()).await;
                    (package, answer)
                }
                .boxed()
            }
        }
    }

    /// Records an answer. True: the outcome is not known, or nobody was there to take it.
    fn answered(&self, package: &NewPackage, answer: &Result<Submitted, Error>) -> bool {
        let (told, again) = match answer {
            Ok(submitted) if submitted.duplicate => (Answer::Duplicate, false),
            Ok(_) => (Answer::Ok, false),
            Err(error) if error.is_unknown() => (Answer::Unknown, true),
            Err(error) => (Answer::Refused, error.is_unavailable() || error.is_timeout()),
        };
        if matches!(told, Answer::Ok | Answer::Duplicate) {
            self.counts.confirmed.fetch_add(1, Ordering::Relaxed);
        }
        let reason = answer.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let key = Key::new(&package.queue, &package.id);
        self.recorder.record(Event::Submitted { key, answer: told, reason });
        again
    }
}
