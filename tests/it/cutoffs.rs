//! A worker is cut off from the cluster by a link that carries nothing in one direction, or both.

use std::time::Duration;

use wharf::client::{ClusterSettings, QueueSettings};
use wharf::testkit::proxy::Direction;
use wharf::testkit::workload::WorkerSpec;

use super::harness::{OPTIMIZED, QUEUE, SOON, Scene, duration};
use super::workers::{all_delivered_to, submit};

const SESSION_GRACE: Duration = Duration::from_secs(1);
/// It takes at most so long to take silence for a break.
const CUT_OFF: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_cannot_be_heard() {
    cut_off(Direction::ToServer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_cannot_hear() {
    cut_off(Direction::ToClient).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_is_cut_off_both_ways() {
    cut_off(Direction::Both).await;
}

async fn cut_off(direction: Direction) {
    let scene = Scene::proxied().await;
    let settings = ClusterSettings { session_grace: duration(SESSION_GRACE), ..Default::default() };
    scene.client.set_cluster(settings).await.expect("the grace can be set");
    scene.queue(QUEUE, QueueSettings::default()).await;
    let lonely = WorkerSpec {
        addrs: scene.cluster.proxied_addrs(),
        concurrency: 4,
        max_in_flight: 32,
        work_ms: 60_000,
        ..scene.worker("lonely")
    };
    let lonely = scene.start(lonely);
    let keys = submit(&scene, QUEUE, 32).await;
    scene.wait_delivered("lonely", 32).await;

    let cut_us = scene.recorder.now_us();
    lonely.cut_off();
    scene.cluster.cut_all(direction);
    // Not by way of the leader's proxy.
    let heir = WorkerSpec { follow_leader: false, concurrency: 16, ..scene.worker("heir") };
    let heir = scene.start(heir);
    let delivered_us =
        scene.wait_history("all elsewhere", SOON, |history| all_delivered_to(history, &keys, &["heir"])).await;
    let took = Duration::from_micros(delivered_us - cut_us);
    println!("{direction:?}: all it held was elsewhere {took:?} after the cut");
    // A debug build may take longer to do what follows.
    let slack = if OPTIMIZED { Duration::ZERO } else { Duration::from_millis(500) };
    assert!(took <= SESSION_GRACE + CUT_OFF + slack, "{direction:?}: {took:?}");

    scene.cluster.heal_all();
    scene.wait_ended(QUEUE, SOON).await;
    heir.finish(SOON).await.expect("the heir ends with the work");
    drop(lonely);
    scene.judge_to_the_end(keys).await;
}
