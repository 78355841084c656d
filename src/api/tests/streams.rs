//! The bounds of single streams: what their clients do not take holds them back or cuts them off.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use bytes::{BufMut, BytesMut};
use futures::{Stream, StreamExt};
use tokio::sync::oneshot;
use tonic::codec::Codec;
use tonic_prost::ProstCodec;

use super::super::status::reason;
use super::super::worker::{HEARD, Live, Writer, serve};
use super::super::{submit, watch};
use super::*;
use crate::dispatch::Message;
use crate::raft::changes::Bounds;
use crate::raft::handle::{ProposeError, Sink};
use crate::types::limits;

/// What a client sends, and how many messages of it were read.
fn counted<T>(messages: impl Stream<Item = T> + Send + 'static) -> (Streaming<T>, Arc<AtomicUsize>)
where
    T: prost::Message + Default + Send + 'static,
{
    let read = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&read);
    let frames = messages.map(move |message| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(message.encoded_len() as u32);
        message.encode(&mut frame).expect("BytesMut grows");
        Ok::<_, Infallible>(frame.freeze())
    });
    let decoder = ProstCodec::<T, T>::default().decoder();
    (Streaming::new_request(decoder, Body::from_stream(frames), None, None), read)
}

/// What was read when the log has everything that was sent to it before.
async fn settled(node: &mut Node, read: &AtomicUsize) -> usize {
    node.create("barrier", v1::QueueSettings::default()).await.unwrap();
    read.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_stream_is_read_only_as_far_as_its_answers_are_taken_and_nothing_is_lost() {
    const MOST: usize = limits::MAX_SUBMITS_IN_FLIGHT_A_STREAM;
    const ALL: usize = MOST + 100;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let requests = (0..ALL as u64).map(|seq| {
        let packages = vec![package("jobs", &format!("p{seq}"))];
        v1::SubmitStreamRequest { seq, packages, atomic: false }
    });
    let (inbound, read) = counted(futures::stream::iter(requests));
    let mut answers = submit::serve(node.api.core.clone(), inbound).into_inner();
    // One more is read, and waits for its place.
    eventually("as many as may be under way", async || read.load(Ordering::SeqCst) == MOST + 1).await;
    assert_eq!(settled(&mut node, &read).await, MOST + 1, "all are answered, none is taken");
    let mut seqs = vec![answers.next().await.unwrap().unwrap().seq];
    eventually("the next", async || read.load(Ordering::SeqCst) == MOST + 2).await;
    while let Some(answer) = timeout(WAIT, answers.next()).await.unwrap() {
        let answer = answer.unwrap();
        assert!(answer.results.iter().all(|result| result.error.is_none() && !result.duplicate));
        seqs.push(answer.seq);
    }
    seqs.sort_unstable();
    assert!(seqs.into_iter().eq(0..ALL as u64));
}

/// A worker's stream whose answers are taken by hand; its client stays.
async fn opened(node: &Node, requests: Vec<Ask>) -> (Arc<Live>, Arc<AtomicUsize>) {
    let requests = requests.into_iter().map(|ask| v1::WorkRequest { received_fence: 0, request: Some(ask) });
    let (inbound, read) = counted(futures::stream::iter(requests).chain(futures::stream::pending()));
    let (opened, live) = oneshot::channel();
    tokio::spawn(serve(node.api.core.clone(), inbound, opened));
    let Ok(Ok(live)) = live.await else { panic!("the Hello is good") };
    (live, read)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_read_only_as_far_as_it_takes_its_answers() {
    const MOST: usize = limits::MAX_SETTLES_IN_FLIGHT_A_STREAM;
    const ALL: usize = MOST + 50;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let release = |n: usize| {
        let held = vec![v1::Held { queue: "jobs".into(), id: format!("p{n}"), fence: 1 }];
        Ask::Release(v1::Release { held })
    };
    let requests = [Ask::Hello(hello("s", "jobs"))].into_iter().chain((0..ALL).map(release)).collect();
    let (live, read) = opened(&node, requests).await;
    // The Hello, those under way, and one that waits for its place.
    eventually("as many as may be under way", async || read.load(Ordering::SeqCst) == MOST + 2).await;
    assert_eq!(settled(&mut node, &read).await, MOST + 2, "all are answered, none is taken");
    let mut writer = Writer::Open(live);
    let mut outcomes = Vec::new();
    while outcomes.len() < ALL {
        let answer = timeout(WAIT, writer.next()).await.unwrap().unwrap().unwrap();
        if let Some(Tell::Settled(settled)) = answer.response {
            outcomes.extend(settled.outcomes.into_iter().map(|outcome| outcome.id));
        }
    }
    assert_eq!(read.load(Ordering::SeqCst), ALL + 1);
    assert!(outcomes.into_iter().eq((0..ALL).map(|n| format!("p{n}"))), "each once, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_takes_nothing_is_cut_off_by_name_once_too_much_waits() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let (live, _) = opened(&node, vec![Ask::Hello(hello("s", "jobs"))]).await;
    assert!(live.stream.bound().await.is_some());
    // The welcome is the first.
    (1..limits::MAX_STREAM_QUEUE).for_each(|_| live.stream.push(Message::Recall { count: 1 }));
    assert!(!live.stream.outbox.ended());
    live.stream.push(Message::Recall { count: 1 });
    let status = timeout(WAIT, Writer::Open(live).next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(reason(&status).as_deref(), Some("READER_TOO_SLOW"), "{status:?}");
    eventually("its end", async || node.dispatch.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_of_life_is_said_again_if_it_may_not_have_reached_the_state() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let (live, _) = opened(&node, vec![Ask::Hello(hello("s", "jobs"))]).await;
    live.stream.mind_signs_of_life();
    assert!(live.stream.sign_of_life_matters());
    assert!(!live.stream.sign_of_life_matters(), "it is on its way");
    for error in [ProposeError::Unknown { why: "no answer in time" }, ProposeError::Overloaded] {
        live.answer(HEARD, Err(error));
        assert!(live.stream.sign_of_life_matters(), "nobody knows: the next request says it again");
        assert!(!live.stream.sign_of_life_matters());
    }
    let outcome = crate::machine::Outcome { revision: Default::default(), result: Ok(crate::machine::Reply::Done) };
    live.answer(HEARD, Ok(outcome));
    assert!(!live.stream.sign_of_life_matters(), "the state knows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_takes_nothing_has_so_many_events_on_their_way_and_is_cut_off_once_far_behind() {
    const MOST: usize = limits::WATCH_QUEUE;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    node.raft.changes().bound(Bounds { count: 2 * MOST, bytes: usize::MAX });
    let request = v1::WatchRequest { queue: "jobs".into(), ..Default::default() };
    let others = node.raft.changes().readers();
    let Ok(events) = watch::serve(&node.api.core, request) else { panic!("it may watch") };
    let began = Instant::now();
    for n in 0..2 {
        let packages = (0..MOST).map(|at| package("jobs", &format!("p{n}-{at}"))).collect();
        node.submit(packages).await.unwrap();
    }
    eventually("it is cut off", async || node.raft.changes().readers() == others).await;
    assert!(began.elapsed() >= Duration::from_millis(limits::WATCH_STALL_MS), "{:?}", began.elapsed());
    let mut told: Vec<_> = events.into_inner().collect().await;
    let status = told.pop().expect("a last word").unwrap_err();
    assert_eq!(reason(&status).as_deref(), Some("READER_TOO_SLOW"), "{status:?}");
    assert!(told.len() == MOST && told.iter().all(Result::is_ok), "what was on its way comes: {}", told.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_hears_nothing_of_many_changes_is_told_how_far_it_is() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let request = v1::WatchRequest { queue: "jobs".into(), id_prefix: "none".into(), ..Default::default() };
    let Ok(events) = watch::serve(&node.api.core, request) else { panic!("it may watch") };
    let mut events = events.into_inner();
    let begin = timeout(WAIT, events.next()).await.unwrap().unwrap().unwrap().revision;
    for n in 0..=limits::WATCH_BOOKMARK_AFTER / 1000 {
        let packages = (0..1000).map(|at| package("jobs", &format!("p{n}-{at}"))).collect();
        node.submit(packages).await.unwrap();
    }
    let told = timeout(WAIT, events.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(told.update, Some(v1::watch_response::Update::Bookmark(_))), "{told:?}");
    assert!(told.revision >= begin + limits::WATCH_BOOKMARK_AFTER, "{} after {begin}", told.revision);
}
