//! Clients that do not know what became of a submit: the same id again, and it is one package.

use std::time::Duration;

use wharf::client::{Client, NewPackage, QueueSettings};
use wharf::testkit::history::{Answer, Event, Key};
use wharf::testkit::proxy::Direction;
use wharf::testkit::workload::Producer;

use super::harness::{QUEUE, SOON, Scene};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submits_whose_answer_was_lost_make_one_package() {
    const PACKAGES: usize = 10;
    const PATIENCE: Duration = Duration::from_millis(300);
    let scene = Scene::proxied().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let client = Client::new(&scene.cluster.proxied_addrs()).unwrap();
    let keys: Vec<Key> = (0..PACKAGES).map(|n| Key::new(QUEUE, format!("p-{n}"))).collect();
    let mut duplicates = 0;
    for key in &keys {
        let package = NewPackage::new(QUEUE, "once").with_id(&key.id);
        client.get_queue(QUEUE).await.expect("the connection is up before it is cut");

        scene.cluster.cut_all(Direction::ToClient);
        scene.recorder.record(Event::Submit { key: key.clone() });
        let error = client.with_timeout(PATIENCE).submit(package.clone()).await.expect_err("no answer can come");
        assert!(error.is_unknown(), "it may have been taken, and the client says: {error}");
        let submitted = |answer| Event::Submitted { key: key.clone(), answer, reason: String::new() };
        scene.recorder.record(submitted(Answer::Unknown));
        scene.cluster.heal_all();

        scene.recorder.record(Event::Submit { key: key.clone() });
        let again = client.submit(package).await.expect("the same again is safe");
        duplicates += usize::from(again.duplicate);
        scene.recorder.record(submitted(if again.duplicate { Answer::Duplicate } else { Answer::Ok }));
    }
    assert!(duplicates > 0, "inconclusive: no submit was taken whose answer was lost");
    let queue = scene.client.get_queue(QUEUE).await.unwrap();
    assert_eq!(queue.stats.unwrap_or_default().ready, PACKAGES as u64);
    scene.judge(keys).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_under_load_make_no_package_twice() {
    let scene = Scene::proxied().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let client = Client::new(&scene.cluster.proxied_addrs()).unwrap();
    let stream = Producer::new(QUEUE, 500).start(client.clone(), scene.recorder.named("stream"));
    let calls = Producer { pipelined: false, ..Producer::new(QUEUE, 200) };
    let calls = calls.start(client, scene.recorder.named("calls"));
    for _ in 0..5 {
        stream.wait_confirmed(100, SOON).await.unwrap();
        calls.wait_confirmed(40, SOON).await.unwrap();
        for node in scene.cluster.ids() {
            scene.cluster.proxy(node).unwrap().reset();
        }
    }
    stream.wait_confirmed(100, SOON).await.unwrap();
    let mut keys = stream.stop().await.keys;
    keys.extend(calls.stop().await.keys);
    let resets = |node| scene.cluster.proxy(node).unwrap().counters().resets.load(std::sync::atomic::Ordering::Relaxed);
    let resets: u64 = scene.cluster.ids().into_iter().map(resets).sum();
    assert!(resets > 0, "inconclusive: no connection was reset");
    let queue = scene.client.get_queue(QUEUE).await.unwrap();
    assert_eq!(queue.stats.unwrap_or_default().ready, keys.len() as u64);
    scene.judge(keys).await;
}
