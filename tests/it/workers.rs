//! Workers die, freeze and come back.

use std::collections::BTreeSet;
use std::time::Duration;

use wharf::client::{ClusterSettings, NewPackage, QueueSettings};
use wharf::testkit::history::{Answer, Event, History, Key, Verdict};
use wharf::testkit::workload::WorkerSpec;

use super::harness::{QUEUE, SOON, Scene, count_of, duration, no_backoff};

const SESSION_GRACE: Duration = Duration::from_secs(2);

/// Submits so many packages and records it.
pub async fn submit(scene: &Scene, queue: &str, count: usize) -> Vec<Key> {
    let keys: Vec<Key> = (0..count).map(|n| Key::new(queue, format!("p-{n:04}"))).collect();
    keys.iter().for_each(|key| scene.recorder.record(Event::Submit { key: key.clone() }));
    let packages = keys.iter().map(|key| NewPackage::new(queue, "work").with_id(&key.id)).collect();
    let results = scene.client.submit_many(packages).await;
    for (key, result) in keys.iter().zip(results) {
        let submitted = result.expect("the submit is taken");
        let answer = if submitted.duplicate { Answer::Duplicate } else { Answer::Ok };
        scene.recorder.record(Event::Submitted { key: key.clone(), answer, reason: String::new() });
    }
    keys
}

/// When the last of these was delivered to one of `workers`. None: not all were.
pub fn all_delivered_to(history: &History, keys: &[Key], workers: &[&str]) -> Option<u64> {
    let mut first: std::collections::BTreeMap<&Key, u64> = Default::default();
    for record in history.records() {
        if let Event::Delivered { key, .. } = &record.event
            && workers.contains(&&*record.who)
        {
            first.entry(key).or_insert(record.at_us);
        }
    }
    keys.iter().map(|key| first.get(key).copied()).collect::<Option<Vec<_>>>()?.into_iter().max()
}

async fn with_short_grace(scene: &Scene) {
    let settings = ClusterSettings { session_grace: duration(SESSION_GRACE), ..Default::default() };
    scene.client.set_cluster(settings).await.expect("the grace can be set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_packages_are_elsewhere_at_once() {
    let scene = Scene::new().await;
    with_short_grace(&scene).await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let mut doomed = scene.start_process(WorkerSpec { concurrency: 4, work_ms: 60_000, ..scene.worker("doomed") });
    let keys = submit(&scene, QUEUE, 64).await;
    scene.wait_delivered("doomed", 64).await;
    scene.wait_begun("doomed", 4).await;

    let killed_us = scene.recorder.now_us();
    doomed.kill().await.unwrap();
    let heirs = ["heir-1", "heir-2"];
    let running = heirs.map(|name| scene.start(WorkerSpec { concurrency: 16, ..scene.worker(name) }));
    let delivered_us =
        scene.wait_history("all elsewhere", SOON, |history| all_delivered_to(history, &keys, &heirs)).await;
    let took = Duration::from_micros(delivered_us - killed_us);
    println!("all it held was elsewhere {took:?} after its death");
    assert!(took <= SESSION_GRACE + Duration::from_millis(500), "{took:?}");

    scene.wait_ended(QUEUE, SOON).await;
    for heir in running {
        heir.finish(SOON).await.expect("workers end with the work");
    }
    let history = scene.judge_to_the_end(keys).await;
    let charged = |event: &Event| matches!(event, Event::Delivered { attempt, .. } if *attempt > 1);
    let charged: usize = heirs.iter().map(|heir| count_of(&history, heir, charged)).sum();
    assert_eq!(charged, 0, "the first death of a worker charges nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_frozen_past_its_lease_is_refused_when_it_wakes() {
    let scene = Scene::new().await;
    let settings =
        QueueSettings { lease: duration(Duration::from_secs(2)), backoff: no_backoff(), ..Default::default() };
    scene.queue(QUEUE, settings).await;
    let spec = WorkerSpec { concurrency: 4, max_in_flight: 16, work_ms: 500, ..scene.worker("frozen") };
    let frozen = scene.start_process(spec);
    let keys = submit(&scene, QUEUE, 16).await;
    scene.wait_delivered("frozen", 16).await;
    scene.wait_begun("frozen", 4).await;
    frozen.freeze().unwrap();
    let held = |history: &History| {
        let key = |event: &Event| match event {
            Event::Settled { key, .. } => Some(key.clone()),
            _ => None,
        };
        history.records().iter().filter_map(|record| key(&record.event)).collect::<BTreeSet<Key>>()
    };
    let ended = held(&scene.history());
    let open: Vec<Key> = keys.iter().filter(|key| !ended.contains(key)).cloned().collect();
    let heir = scene.start(WorkerSpec { concurrency: 16, ..scene.worker("heir") });
    scene.wait_history("all elsewhere", SOON, |history| all_delivered_to(history, &open, &["heir"])).await;
    frozen.thaw().unwrap();

    // What it finishes now is refused, or it learned first that it is gone.
    let stale = |event: &Event| matches!(event, Event::Lost { .. } | Event::Settled { verdict: Verdict::Refused, .. });
    let told = |history: &History| (count_of(history, "frozen", stale) >= open.len().min(4)).then_some(());
    scene.wait_history("the worker's disappointment", SOON, told).await;
    scene.wait_ended(QUEUE, SOON).await;
    heir.finish(SOON).await.expect("the heir ends with the work");
    let history = scene.judge_to_the_end(keys).await;
    let charged = |event: &Event| matches!(event, Event::Delivered { attempt, .. } if *attempt > 1);
    let charged = count_of(&history, "heir", charged);
    assert!((1..=4).contains(&charged), "only what was in hand is charged, not {charged} packages");
}

/// A worker that took its time is not a dead one: its lease is extended while it works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_longer_than_its_lease_is_done_once() {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings { lease: duration(Duration::from_secs(1)), ..Default::default() }).await;
    let worker = scene.start(WorkerSpec { concurrency: 2, work_ms: 3_000, ..scene.worker("worker") });
    let keys = submit(&scene, QUEUE, 4).await;
    scene.wait_ended(QUEUE, SOON).await;
    worker.finish(SOON).await.expect("the worker ends with the work");
    let history = scene.judge_to_the_end(keys).await;
    assert_eq!(count_of(&history, "worker", |event| matches!(event, Event::Delivered { .. })), 4);
}
