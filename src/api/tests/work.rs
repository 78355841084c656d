//! The way of a package from submit to its result, and of a worker's stream from Hello to goodbye.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_goes_all_the_way() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut worker = node.worker(hello("s", "jobs")).await;
    assert!(worker.welcome().await.epoch > 0);

    let first = v1::NewPackage { kind: "mail".into(), ..package("default/jobs", "a") };
    let results = node.submit(vec![first.clone(), package("jobs", "")]).await.unwrap();
    assert!(results.iter().all(|result| result.error.is_none() && result.queue == "jobs"), "{results:?}");
    assert!(!results[1].id.is_empty(), "an id was minted");
    assert!(node.submit(vec![first]).await.unwrap()[0].duplicate);

    let mut deliveries = worker.delivered().await;
    while deliveries.len() < 2 {
        deliveries.extend(worker.delivered().await);
    }
    let delivery = &deliveries[0];
    let delivered = delivery.package.as_ref().unwrap();
    assert_eq!((delivered.id.as_str(), delivered.kind.as_str(), delivery.attempt), ("a", "mail", 1));
    assert_eq!(delivered.payload, &b"payload"[..]);

    let mut packages = node.packages.clone();
    let waiting = tokio::spawn(async move {
        let request = v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() };
        packages.wait_package(request).await.map(|answer| answer.into_inner().package.unwrap())
    });
    eventually("a waiter", async || node.dispatch.waiters() == 1).await;
    worker.done("jobs", "a", delivery.fence).await;
    let settled = worker.settled().await;
    assert!(settled.len() == 1 && settled[0].status.is_none(), "{settled:?}");
    let finished = timeout(WAIT, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(finished.state, v1::State::Completed as i32);
    assert_eq!(finished.result, &b"result"[..]);
    assert_eq!(node.dispatch.waiters(), 0);

    // The answer was lost, and the worker says it again.
    worker.done("jobs", "a", delivery.fence).await;
    assert!(worker.settled().await[0].status.is_none());

    let mut queues = node.queues.clone();
    let ended = tokio::spawn(async move { queues.wait_queue(v1::WaitQueueRequest { name: "jobs".into() }).await });
    node.queues.seal_queue(v1::SealQueueRequest { name: "jobs".into(), if_revision: None }).await.unwrap();
    let other = deliveries[1].package.as_ref().unwrap().id.clone();
    worker.done("jobs", &other, deliveries[1].fence).await;
    let end = |told: &Tell| matches!(told, Tell::EndOfWork(end) if end.queue == "jobs").then_some(());
    worker.until(end).await;
    let counts = timeout(WAIT, ended).await.unwrap().unwrap().unwrap().into_inner().queue.unwrap();
    assert!(counts.ended);
    assert_eq!(counts.stats.unwrap().completed, 2);

    worker.ask(Ask::Drain(v1::Drain {})).await;
    while worker.next().await.expect("a clean end").is_some() {}
    eventually("the stream is gone", async || node.dispatch.streams() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_extending_releasing_and_pinging_are_each_answered() {
    let mut node = single().await;
    let backoff = Some(v1::Backoff { initial: Some(Default::default()), ..Default::default() });
    node.create("jobs", v1::QueueSettings { backoff, ..Default::default() }).await.unwrap();
    let mut worker = node.worker(v1::Hello { max_in_flight: 1, ..hello("s", "jobs") }).await;
    worker.welcome().await;
    node.submit(vec![package("jobs", "a")]).await.unwrap();

    let key = |delivery: &v1::Delivery| v1::Held { queue: "jobs".into(), id: "a".into(), fence: delivery.fence };
    let first = worker.delivered().await.remove(0);
    let v1::Held { queue, id, fence } = key(&first);
    let extension = v1::Extension { queue, id, fence, by: None, checkpoint: Bytes::from_static(b"half") };
    worker.ask(Ask::Extend(v1::Extend { extensions: vec![extension] })).await;
    assert!(worker.settled().await[0].status.is_none());

    let v1::Held { queue, id, fence } = key(&first);
    let failed = v1::Failed { queue, id, fence, message: "no luck".into(), ..Default::default() };
    worker.ask(Ask::Fail(v1::Fail { failed: vec![failed] })).await;
    assert!(worker.settled().await[0].status.is_none());

    let second = worker.delivered().await.remove(0);
    assert!(second.fence > first.fence);
    assert_eq!((second.attempt, &second.checkpoint[..]), (2, &b"half"[..]));
    worker.ask(Ask::Release(v1::Release { held: vec![key(&second)] })).await;
    assert!(worker.settled().await[0].status.is_none());
    let failure = node.get("jobs", "a").await.unwrap().last_failure.expect("a failure");
    assert_eq!((failure.message.as_str(), failure.worker.as_str()), ("no luck", "worker of s"));

    worker.ask(Ask::Ping(v1::Ping {})).await;
    worker.until(|told| matches!(told, Tell::Pong(_)).then_some(())).await;
    // Released credit comes back with the next sign of will.
    worker.ask(Ask::SetCredit(v1::SetCredit { max_in_flight: 1 })).await;
    let third = worker.delivered().await.remove(0);
    worker.done("jobs", "a", third.fence).await;
    assert!(worker.settled().await[0].status.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_comes_again_keeps_what_it_holds_and_its_older_stream_goes() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut older = node.worker(hello("s", "jobs")).await;
    let first = older.welcome().await;
    node.submit(vec![package("jobs", "a"), package("jobs", "b")]).await.unwrap();
    let mut deliveries = older.delivered().await;
    while deliveries.len() < 2 {
        deliveries.extend(older.delivered().await);
    }
    let held = |at: usize| v1::Held {
        queue: "jobs".into(),
        id: deliveries[at].package.as_ref().unwrap().id.clone(),
        fence: deliveries[at].fence,
    };
    older.done("jobs", &held(0).id, held(0).fence).await;
    older.settled().await;

    let nonsense = v1::Held { queue: "jobs".into(), id: "never".into(), fence: 1 };
    let again = v1::Hello { held: vec![held(0), held(1), nonsense], ..hello("s", "jobs") };
    let mut newer = node.worker(again).await;
    let second = newer.welcome().await;
    assert!(second.epoch > first.epoch);
    let kinds: Vec<_> = second.verdicts.iter().map(|verdict| verdict.kind()).collect();
    use v1::verdict::Kind::{Gone, Keep, Settled};
    assert_eq!(kinds, [Settled, Keep, Gone]);
    older.until(|told| matches!(told, Tell::Goaway(_)).then_some(())).await;
    assert!(older.next().await.unwrap().is_none());

    newer.done("jobs", &held(1).id, held(1).fence).await;
    assert!(newer.settled().await[0].status.is_none());
    assert_eq!(node.get("jobs", &held(1).id).await.unwrap().attempts, 1, "no more than the one that completed it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_detaches_its_session_and_after_its_grace_the_work_moves_on() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let grace = Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 });
    let settings = v1::ClusterSettings { session_grace: grace, ..Default::default() };
    node.cluster.set_cluster(v1::SetClusterRequest { settings: Some(settings) }).await.unwrap();
    let mut lost = node.worker(hello("lost", "jobs")).await;
    lost.welcome().await;
    node.submit(vec![package("jobs", "a")]).await.unwrap();
    let first = lost.delivered().await.remove(0);
    let mut other = node.worker(hello("other", "jobs")).await;
    other.welcome().await;
    drop(lost);
    let second = other.delivered().await.remove(0);
    assert!(second.fence > first.fence);
    assert_eq!(second.attempt, 1, "a lost worker alone costs nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_worker_is_cut_off() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut worker = node.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    let status = worker.refused().await;
    assert_eq!(super::super::status::reason(&status).as_deref(), Some("WORKER_SILENT"), "{status:?}");
    eventually("detached", async || {
        node.raft.view(|machine| machine.session("s").map(|s| s.status))
            == Ok(crate::machine::view::SessionStatus::Detached)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_that_others_could_work_on_is_recalled_then_reclaimed() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut slow = node.worker(v1::Hello { concurrency: 1, ..hello("slow", "jobs") }).await;
    slow.welcome().await;
    node.submit((0..10).map(|n| package("jobs", &format!("p{n}"))).collect()).await.unwrap();
    let mut held = slow.delivered().await.len();
    while held < 10 {
        held += slow.delivered().await.len();
    }
    let mut idle = node.worker(v1::Hello { concurrency: 1, ..hello("idle", "jobs") }).await;
    idle.welcome().await;
    slow.until(|told| matches!(told, Tell::Recall(recall) if recall.count > 0).then_some(())).await;
    // It does not answer.
    slow.until(|told| matches!(told, Tell::Revoke(revoke) if !revoke.held.is_empty()).then_some(())).await;
    assert!(!idle.delivered().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submit_stream_is_pipelined_and_refuses_a_bad_package_alone() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let (requests, outbound) = mpsc::channel(1024);
    for seq in 0..500 {
        let bad = if seq == 250 { "no such queue" } else { "jobs" };
        let packages = vec![package("jobs", &format!("a{seq}")), package(bad, &format!("b{seq}"))];
        requests.send(v1::SubmitStreamRequest { seq, packages, atomic: false }).await.unwrap();
    }
    drop(requests);
    let stream = node.packages.submit_stream(ReceiverStream::new(outbound)).await.unwrap();
    let mut answers = stream.into_inner();
    let mut seen = std::collections::BTreeSet::new();
    let mut refused = Vec::new();
    while let Some(answer) = timeout(WAIT, answers.message()).await.unwrap().unwrap() {
        seen.insert(answer.seq);
        refused.extend(answer.results.into_iter().filter(|result| result.error.is_some()));
    }
    assert_eq!(seen.len(), 500);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].id, "b250");
    let queue = node.queues.get_queue(v1::GetQueueRequest { name: "jobs".into(), stale_ok: true }).await.unwrap();
    assert_eq!(queue.into_inner().queue.unwrap().stats.unwrap().ready, 999);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_effects_are_made_up_from_the_state() {
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut worker = node.worker(hello("s", "jobs")).await;
    worker.welcome().await;
    node.submit(vec![package("other", "z"), package("jobs", "a")]).await.unwrap();
    let first = worker.delivered().await.remove(0);

    node.lossy.send(true).unwrap();
    node.submit(vec![package("jobs", "b")]).await.unwrap();
    let mut packages = node.packages.clone();
    let waiting = tokio::spawn(async move {
        packages.wait_package(v1::WaitPackageRequest { queue: "jobs".into(), id: "a".into() }).await
    });
    eventually("a waiter", async || node.dispatch.waiters() == 1).await;
    worker.done("jobs", "a", first.fence).await;
    assert!(worker.settled().await[0].status.is_none());
    // Its welcome is lost.
    let mut unlucky = node.worker(hello("t", "jobs")).await;
    eventually("it is open", async || node.raft.view(|machine| machine.session("t").is_ok())).await;

    node.lossy.send(false).unwrap();
    let second = worker.delivered().await.remove(0);
    assert_eq!(second.package.unwrap().id, "b");
    assert!(timeout(WAIT, waiting).await.unwrap().unwrap().is_ok());
    unlucky.until(|told| matches!(told, Tell::Goaway(_)).then_some(())).await;
    let mut lucky = node.worker(hello("t", "jobs")).await;
    lucky.welcome().await;
    worker.done("jobs", "b", second.fence).await;
    assert!(worker.settled().await[0].status.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_packages_through_few_streams_are_each_completed_once() {
    const PACKAGES: u64 = 4_000;
    const A_REQUEST: u64 = 20;
    let mut node = single().await;
    node.create("jobs", v1::QueueSettings::default()).await.unwrap();
    let mut workers = Vec::new();
    for session in ["one", "two"] {
        let mut worker = node.worker(v1::Hello { max_in_flight: 200, ..hello(session, "jobs") }).await;
        worker.welcome().await;
        workers.push(tokio::spawn(async move {
            let (mut done, mut settled) = (Vec::new(), 0);
            loop {
                match worker.next().await.expect("no refusal").expect("the stream goes on") {
                    Tell::Deliver(deliver) => {
                        let mut completions = Vec::new();
                        for v1::Delivery { package, fence, .. } in deliver.deliveries {
                            let v1::Package { queue, id, .. } = package.unwrap();
                            done.push(id.clone());
                            completions.push(v1::Completion { queue, id, fence, ..Default::default() });
                        }
                        worker.ask(Ask::Done(v1::Done { completions })).await;
                    }
                    Tell::Settled(outcomes) => {
                        assert!(outcomes.outcomes.iter().all(|outcome| outcome.status.is_none()));
                        settled += outcomes.outcomes.len();
                    }
                    // The last answers may still be on their way.
                    Tell::EndOfWork(_) => {
                        while settled < done.len() {
                            settled += worker.settled().await.len();
                        }
                        return done;
                    }
                    _ => {}
                }
            }
        }));
    }
    let (requests, outbound) = mpsc::channel(64);
    let mut answers = node.packages.submit_stream(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    let submitting = tokio::spawn(async move {
        for seq in 0..PACKAGES / A_REQUEST {
            let packages = (0..A_REQUEST).map(|n| package("jobs", &format!("p{}", seq * A_REQUEST + n))).collect();
            requests.send(v1::SubmitStreamRequest { seq, packages, atomic: false }).await.unwrap();
        }
    });
    let mut answered = 0;
    while let Some(answer) = timeout(WAIT, answers.message()).await.unwrap().unwrap() {
        assert!(answer.results.iter().all(|result| result.error.is_none()));
        answered += answer.results.len() as u64;
    }
    submitting.await.unwrap();
    assert_eq!(answered, PACKAGES);
    node.queues.seal_queue(v1::SealQueueRequest { name: "jobs".into(), if_revision: None }).await.unwrap();
    let mut done = Vec::new();
    for worker in workers {
        done.extend(timeout(WAIT, worker).await.unwrap().unwrap());
    }
    assert_eq!(done.len() as u64, PACKAGES);
    done.sort();
    done.dedup();
    assert_eq!(done.len() as u64, PACKAGES);
}
