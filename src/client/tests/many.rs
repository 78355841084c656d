//! Many packages: submits without tickets, handlers in the worker's loop, messages of a size.

use super::*;

#[tokio::test]
async fn an_inline_handler_answers_together_what_arrived_together() {
    let mut fake = Fake::start().await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = order.clone();
    let worker = fake.client().worker(["jobs"]).max_in_flight(100).build();
    let run = tokio::spawn(worker.run_inline(move |delivery: worker::Delivery| {
        seen.lock().push(delivery.fence);
        match delivery.fence {
            12 => Err(worker::Failure::permanent("no")),
            13 => panic!("broken"),
            _ => Ok("done"),
        }
    }));
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    assert_eq!((hello.max_in_flight, hello.concurrency), (100, 100), "all it holds is worked on");
    stream.welcome(&hello, &[]).await;
    stream.deliver(&[10, 11, 12, 13, 14]).await;
    assert_eq!(stream.done().await, [10, 11, 14]);
    let Ask::Fail(fail) = stream.next().await.1 else { panic!("expected a Fail") };
    assert_eq!(fail.failed.iter().map(|failed| failed.fence).collect::<Vec<_>>(), [12, 13]);
    assert!(fail.failed[0].permanent && fail.failed[1].code == "PANIC", "{fail:?}");
    assert_eq!(*order.lock(), [10, 11, 12, 13, 14]);

    // What has no outcome is settled once more after a break, and not worked again.
    stream.settled(&[11, 12, 13, 14]).await;
    stream.cut().await;
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    assert_eq!(hello.held.iter().map(|held| held.fence).collect::<Vec<_>>(), [10]);
    stream.welcome(&hello, &[verdict::Kind::Keep]).await;
    assert_eq!(stream.done().await, [10]);
    stream.settled(&[10]).await;
    assert_eq!(order.lock().len(), 5);
    stream.tell(Tell::EndOfWork(EndOfWork { queue: "jobs".into() })).await;
    drop(stream);
    let summary = tokio::time::timeout(SOON, run).await.expect("it ends").expect("no panic").expect("in good order");
    assert_eq!((summary.delivered, summary.completed, summary.failed), (5, 3, 2));
    assert!(summary.end_of_work);
}

#[tokio::test]
async fn a_worker_with_a_batch_of_one_settles_one_by_one() {
    let mut fake = Fake::start().await;
    let worker = fake.client().worker(["jobs"]).batch(1).build();
    let run = tokio::spawn(worker.run_inline(|_| Ok::<_, worker::Failure>(())));
    let mut stream = fake.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    stream.deliver(&[1, 2, 3]).await;
    for fence in 1..=3 {
        assert_eq!(stream.done().await, [fence]);
    }
    run.abort();
}

#[tokio::test]
async fn submits_are_answered_by_callback_and_what_is_sent_again_is_told() {
    let fake = Fake::start().await;
    *fake.node.refusals.lock() = vec![refusal(Code::Unavailable, "NO_LEADER")];
    let retried = Arc::new(Mutex::new(Vec::new()));
    let heard = retried.clone();
    let on_retry = move |packages: usize, error: &Error| heard.lock().push((packages, error.reason().to_owned()));
    let submitter = fake.client().submitter().batch(3).window(10).on_retry(on_retry).build();
    let answers = Arc::new(Mutex::new(Vec::new()));
    for at in 0..10 {
        let room = submitter.reserve().await.expect("there is room");
        let answers = answers.clone();
        let package = NewPackage::new("jobs", "x").with_id(format!("p{at}"));
        room.submit_then(package, move |answer| answers.lock().push((at, answer.expect("taken").id)));
    }
    submitter.close().await;
    let mut answers = answers.lock().clone();
    answers.sort();
    assert_eq!(answers, (0..10).map(|at| (at, format!("p{at}"))).collect::<Vec<_>>());
    assert!(fake.node.submits.load(Ordering::Relaxed) >= 5, "3 packages a message at most, and one was refused");
    let retried = retried.lock();
    assert_eq!((retried.len(), retried[0].1.as_str()), (1, "NO_LEADER"));
    assert!((1..=10).contains(&retried[0].0), "{retried:?}");
}

#[tokio::test]
async fn the_window_is_reserved_before_a_package_is_made() {
    let fake = Fake::start().await;
    let submitter = fake.client().submitter().window(1).build();
    let room = submitter.reserve().await.expect("there is room");
    assert!(futures::FutureExt::now_or_never(submitter.reserve()).is_none(), "the window is full");
    let ticket = room.submit(NewPackage::new("jobs", "x"));
    assert!(ticket.await.is_ok());
    assert!(tokio::time::timeout(SOON, submitter.reserve()).await.expect("soon").is_ok());
}
