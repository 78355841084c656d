//! How work ends: a queue that has nothing left, and workers that are drained.

use std::time::Duration;

use wharf::client::{NewPackage, QueueSettings};
use wharf::testkit::history::{Event, History, Settlement, Verdict};
use wharf::testkit::wait;
use wharf::testkit::workload::{Handling, WorkerSpec};

use super::harness::{QUEUE, SOON, Scene, count_of};
use super::workers::submit;

const PACKAGES: usize = 20;

/// What was begun, and not ended by an accepted completion.
fn torn_away(history: &History, worker: &str) -> usize {
    let begun = |event: &Event| matches!(event, Event::Begin { .. });
    let done = |event: &Event| {
        matches!(event, Event::Settled { settlement: Settlement::Done, verdict: Verdict::Accepted, .. })
    };
    count_of(history, worker, begun) - count_of(history, worker, done)
}

/// A retry that is still scheduled keeps the queue from ending.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_ends_after_the_last_retry() {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let handling = Handling::FailFirst { retry_ms: 1_500 };
    let spec = |name| WorkerSpec { concurrency: 8, handling, ..scene.worker(name) };
    let workers = [scene.start(spec("worker-1")), scene.start(spec("worker-2"))];
    let keys = submit(&scene, QUEUE, PACKAGES).await;
    scene.client.seal_queue(QUEUE, None).await.unwrap();
    let failed = |event: &Event| matches!(event, Event::Settled { settlement: Settlement::Fail, .. });
    let all_failed = |history: &History| {
        (count_of(history, "worker-1", failed) + count_of(history, "worker-2", failed) == PACKAGES).then_some(())
    };
    scene.wait_history("every first attempt", SOON, all_failed).await;
    let queue = scene.client.get_queue(QUEUE).await.unwrap();
    assert!(queue.sealed && !queue.ended, "retries are ahead: {queue:?}");

    let late = scene.client.submit(NewPackage::new(QUEUE, "late")).await.unwrap_err();
    assert_eq!(late.reason(), "QUEUE_SEALED");

    let queue = scene.client.wait_queue(QUEUE, SOON).await.unwrap();
    let stats = queue.stats.unwrap_or_default();
    assert!(queue.ended);
    assert_eq!((stats.completed, stats.scheduled, stats.ready, stats.leased), (PACKAGES as u64, 0, 0, 0));
    for worker in workers {
        let summary = worker.finish(SOON).await.expect("workers end with the work");
        assert!(summary.end_of_work, "{summary:?}");
    }
    let history = scene.judge_to_the_end(keys).await;
    let settled = |event: &Event| matches!(event, Event::Settled { settlement: Settlement::Done, .. });
    let at = |is_so: &dyn Fn(&Event) -> bool| {
        history.records().iter().filter(|record| is_so(&record.event)).map(|record| record.at_us).collect::<Vec<_>>()
    };
    let first_end = at(&|event| matches!(event, Event::EndOfWork { .. })).into_iter().min().expect("work ended");
    // The end may overtake the last outcomes of another worker by a moment, never their completion.
    let slack_us = 50_000;
    assert!(at(&settled).into_iter().all(|at_us| at_us <= first_end + slack_us), "work ended before it was done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drained_process_finishes_what_it_works_on() {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let spec = WorkerSpec { concurrency: 2, max_in_flight: 16, work_ms: 300, ..scene.worker("leaver") };
    let mut leaver = scene.start_process(spec);
    let keys = submit(&scene, QUEUE, PACKAGES).await;
    scene.wait_begun("leaver", 2).await;
    leaver.terminate().unwrap();
    let status = leaver.wait(SOON).await.unwrap();
    assert!(status.success(), "{status}\n{}", leaver.log());

    let heir = scene.start(WorkerSpec { concurrency: 8, ..scene.worker("heir") });
    scene.wait_ended(QUEUE, SOON).await;
    heir.finish(SOON).await.expect("the heir ends with the work");
    let history = scene.judge_to_the_end(keys).await;
    assert_eq!(torn_away(&history, "leaver"), 0, "nothing is killed in the middle of a package");
    assert!(count_of(&history, "heir", |event| matches!(event, Event::Delivered { .. })) > 0, "inconclusive");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_drained_by_an_operator_goes_in_good_order() {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let spec = WorkerSpec { concurrency: 2, max_in_flight: 16, work_ms: 300, ..scene.worker("leaver") };
    let leaver = scene.start(spec);
    let keys = submit(&scene, QUEUE, PACKAGES).await;
    scene.wait_begun("leaver", 2).await;
    let workers = scene.client.list_workers(QUEUE).await.unwrap();
    assert_eq!(workers.len(), 1, "{workers:?}");
    scene.recorder.fault("leaver", wharf::testkit::history::Fault::Drained);
    scene.client.drain_worker(&workers[0].session).await.unwrap();
    let summary = leaver.finish(SOON).await.expect("it goes");
    assert!(!summary.end_of_work && summary.abandoned == 0, "{summary:?}");
    let gone = || async { scene.client.list_workers(QUEUE).await.unwrap().is_empty().then_some(()) };
    wait::until("the end of the session", Duration::from_secs(2), gone).await.unwrap();

    let heir = scene.start(WorkerSpec { concurrency: 8, ..scene.worker("heir") });
    scene.wait_ended(QUEUE, SOON).await;
    heir.finish(SOON).await.expect("the heir ends with the work");
    let history = scene.judge_to_the_end(keys).await;
    assert_eq!(torn_away(&history, "leaver"), 0, "nothing is killed in the middle of a package");
}
