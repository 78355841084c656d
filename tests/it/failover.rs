//! The leader dies, or freezes, under load.

use std::time::Duration;

use wharf::client::QueueSettings;
use wharf::testkit::history::{Event, History};
use wharf::testkit::workload::{Producer, WorkerSpec};

use super::harness::{OPTIMIZED, QUEUE, SOON, Scene, runs};

const RATE: u32 = 1_000;
/// The bar: the longest time without a confirm when the leader is killed.
const CONFIRM_GAP: Duration = Duration::from_millis(if OPTIMIZED { 200 } else { 2_000 });
/// The same when it falls silent: its followers' patience, an election, and the clients' doubt.
const SILENT_GAP: Duration = Duration::from_millis(if OPTIMIZED { 1_500 } else { 4_000 });

/// Four workers that keep a few packages in hand and some in prefetch.
fn team(scene: &Scene) -> Vec<WorkerSpec> {
    let member = |n: u32| WorkerSpec { concurrency: 8, work_ms: 5, ..scene.worker(&format!("worker-{n}")) };
    (1..=4).map(member).collect()
}

/// Whether the leader's end met workers: without a reattached one nothing was shown.
fn reattached(history: &History) -> usize {
    let again = |event: &Event| matches!(event, Event::Attached { again: true, .. });
    history.records().iter().filter(|record| again(&record.event)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_under_load() {
    kill_leader_repeatedly(Followers::Alike).await;
}

/// A follower lies frozen until then: it wakes behind, or with what its sockets still hold of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_while_a_follower_lags() {
    kill_leader_repeatedly(Followers::OneFrozen).await;
}

/// How far the followers are when their leader dies.
#[derive(Clone, Copy, PartialEq)]
enum Followers {
    Alike,
    /// One lies frozen until that moment.
    OneFrozen,
}

async fn kill_leader_repeatedly(followers: Followers) {
    let mut gaps = Vec::new();
    for run in 1..=runs() {
        let gap = kill_leader_once(followers).await;
        println!("run {run}: longest time without a confirm {gap:?}");
        gaps.push(gap);
    }
    gaps.sort();
    println!("longest times without a confirm, in order: {gaps:?}");
    assert!(gaps.iter().all(|gap| *gap <= CONFIRM_GAP), "the bar is {CONFIRM_GAP:?}: {gaps:?}");
}

/// Answers the longest time without a confirm.
async fn kill_leader_once(followers: Followers) -> Duration {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let workers: Vec<_> = team(&scene).into_iter().map(|worker| scene.start(worker)).collect();
    let production = Producer::new(QUEUE, RATE).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    production.wait_confirmed(u64::from(RATE), SOON).await.unwrap();

    let leader = scene.cluster.leader().await.unwrap();
    if followers == Followers::OneFrozen {
        let behind = scene.cluster.follower().await.unwrap();
        scene.cluster.freeze(behind).unwrap();
        production.wait_confirmed(u64::from(RATE) / 2, SOON).await.unwrap();
        scene.cluster.thaw(behind).unwrap();
    }
    scene.cluster.kill(leader).await.unwrap();
    production.wait_confirmed(u64::from(RATE), SOON).await.unwrap();
    scene.cluster.restart(leader).await.unwrap();
    production.wait_confirmed(u64::from(RATE) / 2, SOON).await.unwrap();

    let produced = production.stop().await;
    scene.wait_ended(QUEUE, SOON).await;
    for worker in workers {
        worker.finish(SOON).await.expect("workers end with the work");
    }
    let history = scene.judge_to_the_end(produced.keys).await;
    assert!(reattached(&history) > 0, "inconclusive: no worker reattached");
    let (gap_us, _) = history.longest_confirm_gap().expect("packages were confirmed");
    Duration::from_micros(gap_us)
}

/// The frozen leader wakes with completions of workers that have long told them to its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_frozen_and_continued() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let workers: Vec<_> = team(&scene).into_iter().map(|worker| scene.start(worker)).collect();
    let production =
        Producer::new(QUEUE, RATE / 2).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    production.wait_confirmed(500, SOON).await.unwrap();

    let leader = scene.cluster.leader().await.unwrap();
    scene.cluster.freeze(leader).unwrap();
    scene.cluster.successor(leader).await.unwrap();
    production.wait_confirmed(500, SOON).await.unwrap();
    scene.wait_history("a worker at the new leader", SOON, |history| (reattached(history) > 0).then_some(())).await;
    scene.cluster.thaw(leader).unwrap();
    production.wait_confirmed(500, SOON).await.unwrap();

    let produced = production.stop().await;
    scene.wait_ended(QUEUE, SOON).await;
    for worker in workers {
        worker.finish(SOON).await.expect("workers end with the work");
    }
    scene.cluster.wait_ready().await.unwrap();
    let history = scene.judge_to_the_end(produced.keys).await;
    let (gap_us, _) = history.longest_confirm_gap().expect("packages were confirmed");
    let gap = Duration::from_micros(gap_us);
    println!("longest time without a confirm {gap:?}");
    assert!(gap <= SILENT_GAP, "the bar is {SILENT_GAP:?}: {gap:?}");
}

/// Leadership that is handed over redelivers nothing either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_transferred_under_load() {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let workers: Vec<_> = team(&scene).into_iter().map(|worker| scene.start(worker)).collect();
    let production =
        Producer::new(QUEUE, RATE / 2).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    production.wait_confirmed(200, SOON).await.unwrap();
    let leader = scene.cluster.leader().await.unwrap();
    let successor = scene.client.transfer_leadership(0).await.unwrap();
    assert_ne!(successor, leader);
    production.wait_confirmed(500, SOON).await.unwrap();

    let produced = production.stop().await;
    scene.wait_ended(QUEUE, SOON).await;
    for worker in workers {
        worker.finish(SOON).await.expect("workers end with the work");
    }
    let history = scene.judge_to_the_end(produced.keys).await;
    assert!(reattached(&history) > 0, "inconclusive: no worker reattached");
}
