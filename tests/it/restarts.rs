//! Every node at once: the whole cluster loses power under load.

use wharf::client::QueueSettings;
use wharf::testkit::workload::{Producer, WorkerSpec};

use super::harness::{QUEUE, SOON, Scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_killed_at_once_and_restarted() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let worker =
        |n: u32| scene.start(WorkerSpec { concurrency: 8, work_ms: 5, ..scene.worker(&format!("worker-{n}")) });
    let workers = [worker(1), worker(2)];
    let production = Producer { mixed_priorities: true, ..Producer::new(QUEUE, 500) }
        .start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    for _ in 0..2 {
        production.wait_confirmed(300, SOON).await.unwrap();
        scene.cluster.kill_all().await.unwrap();
        scene.cluster.restart_all().await.unwrap();
    }
    production.wait_confirmed(300, SOON).await.unwrap();
    let produced = production.stop().await;
    scene.wait_ended(QUEUE, SOON).await;
    for worker in workers {
        worker.finish(SOON).await.expect("workers end with the work");
    }
    scene.judge_to_the_end(produced.keys).await;
}

/// SIGTERM drains a node: leadership moves first, and nobody waits for a timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_stopped_one_by_one_and_restarted() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let worker = scene.start(WorkerSpec { concurrency: 16, ..scene.worker("worker") });
    let production = Producer::new(QUEUE, 300).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    for node in scene.cluster.ids() {
        production.wait_confirmed(100, SOON).await.unwrap();
        scene.cluster.stop(node).await.unwrap();
        production.wait_confirmed(100, SOON).await.unwrap();
        scene.cluster.restart(node).await.unwrap();
    }
    let produced = production.stop().await;
    scene.wait_ended(QUEUE, SOON).await;
    worker.finish(SOON).await.expect("the worker ends with the work");
    scene.judge_to_the_end(produced.keys).await;
}
