//! Followers die, come back, lose their disk, and serve clients while the leader dies.

use std::time::Duration;

use wharf::client::QueueSettings;
use wharf::testkit::workload::Producer;
use wharf::testkit::{wait, workload};

use super::harness::{QUEUE, SOON, Scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_killed_and_brought_back() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let worker = scene.start(workload::WorkerSpec { concurrency: 16, ..scene.worker("worker") });
    let production = Producer::new(QUEUE, 500).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    production.wait_confirmed(200, SOON).await.unwrap();

    let first = scene.cluster.follower().await.unwrap();
    scene.cluster.kill(first).await.unwrap();
    production.wait_confirmed(500, SOON).await.unwrap();
    scene.cluster.restart(first).await.unwrap();

    // Only with the one that came back is there a quorum now.
    let leader = scene.cluster.leader().await.unwrap();
    let other = scene.cluster.ids().into_iter().find(|node| *node != first && *node != leader).unwrap();
    scene.cluster.kill(other).await.unwrap();
    production.wait_confirmed(500, SOON).await.unwrap();
    scene.cluster.restart(other).await.unwrap();

    let produced = production.stop().await;
    scene.wait_ended(QUEUE, SOON).await;
    worker.finish(SOON).await.expect("the worker ends with the work");
    scene.judge_to_the_end(produced.keys).await;
}

/// A node that comes back without its disk could vote twice: it is refused under its old number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wiped_follower_is_refused_under_its_old_number() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let client = scene.cluster.client().unwrap();
    let production = Producer::new(QUEUE, 200).start(client, scene.recorder.named("load"));
    production.wait_confirmed(100, SOON).await.unwrap();

    let wiped = scene.cluster.follower().await.unwrap();
    scene.cluster.wipe(wiped).await.unwrap();
    scene.cluster.spawn(wiped).unwrap();
    let refused = || async { scene.cluster.log(wiped).unwrap().contains("new data directory").then_some(()) };
    wait::until("the refusal of the wiped node", SOON, refused).await.unwrap();
    let status = scene.cluster.status(wiped).await;
    assert!(status.as_ref().is_ok_and(|status| status.leader == 0), "it takes part, or stopped: {status:?}");

    // The others go on, and do so without counting it: the leader and the last follower.
    production.wait_confirmed(100, SOON).await.unwrap();
    scene.cluster.kill(wiped).await.unwrap();
    let produced = production.stop().await;
    scene.judge(produced.keys).await;
}

/// Each producer talks to one node only, whichever leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submits_through_followers_while_the_leader_dies() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let worker = scene.start(workload::WorkerSpec { concurrency: 16, ..scene.worker("worker") });
    let leader = scene.cluster.leader().await.unwrap();
    let followers: Vec<_> = scene.cluster.ids().into_iter().filter(|node| *node != leader).collect();
    let produce = |node: u64, pipelined| {
        let client = scene.cluster.client_of(&[node]).unwrap().with_timeout(Duration::from_secs(5));
        let recorder = scene.recorder.named(&format!("via-{node}-{pipelined}"));
        Producer { pipelined, ..Producer::new(QUEUE, 150) }.start(client, recorder)
    };
    let productions: Vec<_> = followers.iter().flat_map(|node| [produce(*node, true), produce(*node, false)]).collect();
    for production in &productions {
        production.wait_confirmed(100, SOON).await.unwrap();
    }
    scene.cluster.kill(leader).await.unwrap();
    for production in &productions {
        production.wait_confirmed(150, SOON).await.unwrap();
    }
    scene.cluster.restart(leader).await.unwrap();
    let mut keys = Vec::new();
    for production in productions {
        keys.extend(production.stop().await.keys);
    }
    scene.wait_ended(QUEUE, SOON).await;
    worker.finish(SOON).await.expect("the worker ends with the work");
    scene.judge_to_the_end(keys).await;
}
