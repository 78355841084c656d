//! Requests over a queue, work by single calls, and lists, while the leader dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use wharf::client::{CallLease, CallWorker, Completion, Failure, NewPackage, QueueSettings, State};
use wharf::testkit::history::{Event, Key, Recorder, Settlement, Verdict};

use super::harness::{QUEUE, SOON, Scene};
use super::workers::submit;

/// A call may wait this long for its answer.
const WITHIN: Duration = Duration::from_secs(60);
/// How long a worker waits for work before it asks again.
const WAIT: Duration = Duration::from_secs(2);

/// Everything that a worker was given: the package and the fences it came under.
type Given = Arc<Mutex<BTreeMap<String, Vec<u64>>>>;

/// Works by single calls until the queue has ended: a few packages at a time, each for a while.
async fn work(mut worker: CallWorker, given: Given, recorder: Recorder) -> u64 {
    let mut done = 0;
    loop {
        let answer = worker.lease(4, WAIT).await.expect("a lease, whoever leads");
        for lease in &answer.leases {
            given.lock().entry(lease.package.id.clone()).or_default().push(lease.fence);
            let (session, attempt) = (worker.session().to_owned(), lease.attempt);
            recorder.record(Event::Delivered { key: key(lease), fence: lease.fence, attempt, session });
        }
        for lease in &answer.leases {
            let (key, fence) = (key(lease), lease.fence);
            recorder.record(Event::Begin { key: key.clone(), fence });
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (result, settlement) = match &*lease.package.kind {
                "bad" => (Err(Failure::permanent("no good")), Settlement::Fail),
                _ => (Ok(Completion::new(format!("{}#{fence}", recorder.who()))), Settlement::Done),
            };
            recorder.record(Event::End { key: key.clone(), fence, settlement });
            worker.settle(lease, result).await.expect("a settlement, whoever leads");
            let (verdict, reason) = (Verdict::Accepted, String::new());
            recorder.record(Event::Settled { key, fence, settlement, verdict, reason });
            done += 1;
        }
        if answer.leases.is_empty() && !answer.ended_queues.is_empty() {
            return done;
        }
    }
}

fn key(lease: &CallLease) -> Key {
    Key::new(&lease.package.queue, &lease.package.id)
}

fn crew(scene: &Scene, given: &Given) -> Vec<JoinHandle<u64>> {
    let worker = |n: u32| {
        let name = format!("caller-{n}");
        work(scene.client.call_worker(&name, [QUEUE]), given.clone(), scene.recorder.named(&name))
    };
    (1..=3).map(|n| tokio::spawn(worker(n))).collect()
}

/// Nothing is lost, nothing is redelivered, nobody is charged: what a client without a stream holds
/// stays its own when the leader dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_by_calls_while_the_leader_is_killed() {
    const PACKAGES: usize = 200;
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let given = Given::default();
    let crew = crew(&scene, &given);
    let keys = submit(&scene, QUEUE, PACKAGES).await;
    let half = || async { (given.lock().len() > PACKAGES / 4).then_some(()) };
    wharf::testkit::wait::until("a part of the work", SOON, half).await.unwrap();
    let leader = scene.cluster.leader().await.unwrap();
    scene.cluster.kill(leader).await.unwrap();
    scene.wait_ended(QUEUE, WITHIN).await;
    let mut done = 0;
    for worker in crew {
        done += tokio::time::timeout(WITHIN, worker).await.expect("workers end with the work").unwrap();
    }
    scene.cluster.restart(leader).await.unwrap();
    assert_eq!(done as usize, PACKAGES);
    for key in &keys {
        let package = scene.client.get_package(QUEUE, &key.id).await.unwrap();
        assert_eq!((package.state(), package.attempts), (State::Completed, 1), "{package:?}");
        assert_eq!(package.result, format!("{}#{}", package.worker, package.fence));
    }
    let given = std::mem::take(&mut *given.lock());
    let twice: Vec<_> = given.iter().filter(|(_, fences)| fences.iter().any(|fence| *fence != fences[0])).collect();
    assert!(twice.is_empty(), "given under several fences: {twice:?}");
    scene.judge_to_the_end(keys).await;
}

/// Each caller gets its answer, the failure of a worker too, though the leader dies while they wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_a_queue_while_the_leader_is_killed() {
    const CALLS: usize = 60;
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let calls: Vec<_> = (0..CALLS)
        .map(|n| {
            // A third asks the leader only through others.
            let client = match n % 3 {
                0 => scene.cluster.client_of(&[1 + n as u64 % 3]).unwrap(),
                _ => scene.client.clone(),
            };
            let kind = if n % 10 == 0 { "bad" } else { "good" };
            let package = NewPackage::new(QUEUE, "work").with_id(format!("call-{n}")).with_kind(kind);
            tokio::spawn(async move { (n, client.call_package(package, WITHIN).await) })
        })
        .collect();
    let waiting = || async {
        let stats = scene.client.get_queue(QUEUE).await.ok()?.stats?;
        (stats.ready == CALLS as u64).then_some(())
    };
    wharf::testkit::wait::until("all calls in the queue", SOON, waiting).await.unwrap();

    let leader = scene.cluster.leader().await.unwrap();
    scene.cluster.kill(leader).await.unwrap();
    let given = Given::default();
    let crew = crew(&scene, &given);
    // A caller whose only node is the dead one is answered once it is back.
    scene.cluster.restart(leader).await.unwrap();
    for call in calls {
        let (n, answer) = call.await.unwrap();
        let package = answer.unwrap_or_else(|error| panic!("call {n}: {error}"));
        assert_eq!(package.id, format!("call-{n}"));
        if n % 10 == 0 {
            assert_eq!(package.state(), State::Dead, "{package:?}");
            assert_eq!(package.last_failure.expect("why").message, "no good");
        } else {
            assert_eq!((package.state(), package.attempts), (State::Completed, 1), "{package:?}");
            assert_eq!(package.result, format!("{}#{}", package.worker, package.fence));
        }
    }
    scene.client.seal_queue(QUEUE, None).await.unwrap();
    for worker in crew {
        tokio::time::timeout(WITHIN, worker).await.expect("workers end with the work").unwrap();
    }
    scene.cluster.check_agreement().await.unwrap();
}

/// A list that began under one leader goes on under the next, and after a restart of all nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_goes_on_under_the_next_leader() {
    const PACKAGES: usize = 300;
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let keys = submit(&scene, QUEUE, PACKAGES).await;
    let mut listing = scene.client.list_packages(QUEUE).states([State::Ready]).page_size(40);
    let mut seen = Vec::new();
    for page in 0.. {
        let Some(packages) = listing.page().await.unwrap() else { break };
        seen.extend(packages.into_iter().map(|package| package.id));
        if page == 1 {
            let leader = scene.cluster.leader().await.unwrap();
            scene.cluster.kill(leader).await.unwrap();
            scene.cluster.restart(leader).await.unwrap();
        } else if page == 4 {
            scene.cluster.kill_all().await.unwrap();
            scene.cluster.restart_all().await.unwrap();
        }
        scene.client.submit(NewPackage::new(QUEUE, "later")).await.unwrap();
    }
    let expected: Vec<_> = keys.into_iter().map(|key| key.id).collect();
    assert_eq!(seen, expected, "each once, in the order of submit, and none that came later");
}
