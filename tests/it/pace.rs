//! How fast: a slow worker among fast ones, and the way from submit to delivery.

use std::collections::BTreeMap;
use std::time::Duration;

use wharf::client::QueueSettings;
use wharf::testkit::history::{Event, History, Key};
use wharf::testkit::workload::{Producer, WorkerSpec};

use super::harness::{OPTIMIZED, QUEUE, SOON, Scene};
use super::workers::submit;

const PACKAGES: usize = 1_000;
/// How much longer all may take for the slow one's prefetch.
const LONGER: f64 = 1.3;

/// A worker that is slow delays only what it has in hand, however much it prefetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_worker_delays_only_what_it_works_on() {
    let scene = Scene::new().await;
    let (without, mut keys) = work_with_a_slow_one(&scene, "prefetch-1", 1).await;
    let (with, more) = work_with_a_slow_one(&scene, "prefetch-64", 64).await;
    println!("1 000 packages end in {without:?}, and in {with:?} when the slow worker prefetches 64");
    assert!(with <= without.mul_f64(LONGER), "{with:?} against {without:?}");
    keys.extend(more);
    scene.judge_to_the_end(keys).await;
}

async fn work_with_a_slow_one(scene: &Scene, queue: &str, prefetch: u32) -> (Duration, Vec<Key>) {
    scene.queue(queue, QueueSettings::default()).await;
    let slow =
        WorkerSpec { max_in_flight: prefetch, work_ms: 1_000, ..scene.worker_of(&format!("slow-{queue}"), queue) };
    let mut workers = vec![scene.start(slow)];
    for n in 1..=3 {
        let fast = WorkerSpec { work_ms: 10, ..scene.worker_of(&format!("fast-{n}-{queue}"), queue) };
        workers.push(scene.start(fast));
    }
    let attached = |history: &History| {
        let so = |who: &str, event: &Event| who.ends_with(queue) && matches!(event, Event::Attached { .. });
        let attached = history.records().iter().filter(|record| so(&record.who, &record.event));
        (attached.count() >= 4).then_some(())
    };
    scene.wait_history("four workers", SOON, attached).await;
    let begin = tokio::time::Instant::now();
    let keys = submit(scene, queue, PACKAGES).await;
    scene.wait_ended(queue, SOON).await;
    let took = begin.elapsed();
    for worker in workers {
        worker.finish(SOON).await.expect("workers end with the work");
    }
    (took, keys)
}

/// Submit to delivery is one Raft round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submit_to_delivery_is_one_round() {
    const RATE: u32 = 1_000;
    const BAR: Duration = Duration::from_micros(1_500);
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let spec = WorkerSpec { concurrency: 64, max_in_flight: 256, ..scene.worker("worker") };
    let worker = scene.start(spec);
    let production = Producer::new(QUEUE, RATE).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    production.wait_confirmed(5_000, SOON).await.unwrap();
    let produced = production.stop().await;
    scene.wait_ended(QUEUE, SOON).await;
    worker.finish(SOON).await.expect("the worker ends with the work");
    let history = scene.judge_to_the_end(produced.keys).await;

    let mut latencies = latencies(&history);
    // The first second warms up.
    let mut latencies = latencies.split_off(RATE as usize);
    latencies.sort();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    let (p50, p99) = (at(0.5), at(0.99));
    println!("submit to delivery at {RATE}/s: p50 {p50:?}, p99 {p99:?}");
    assert!(!OPTIMIZED || p50 <= BAR, "the bar is {BAR:?}, p50 is {p50:?}");
}

/// From the first submit of each package to its first delivery, in order of the submits.
fn latencies(history: &History) -> Vec<Duration> {
    let mut submitted: BTreeMap<&Key, u64> = BTreeMap::new();
    let mut latencies: Vec<(u64, Duration)> = Vec::new();
    for record in history.records() {
        match &record.event {
            Event::Submit { key } => drop(submitted.entry(key).or_insert(record.at_us)),
            Event::Delivered { key, .. } => {
                if let Some(at_us) = submitted.get(key) {
                    latencies.push((*at_us, Duration::from_micros(record.at_us - at_us)));
                }
            }
            _ => {}
        }
    }
    latencies.sort();
    latencies.into_iter().map(|(_, latency)| latency).collect()
}
