//! Watchers over the death of leaders, nodes and their own connection.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use wharf::client::{Cause, Client, Error, Event, QueueSettings, State};
use wharf::testkit::workload::{Handling, Producer, WorkerSpec};

use super::harness::{QUEUE, SOON, Scene, no_backoff, runs};

const RATE: u32 = 200;
/// A watcher has heard all of what is known by then.
const HEARD: Duration = Duration::from_secs(30);

/// Watches in the background, until it heard of the revision that it is told.
struct Ear {
    until: watch::Sender<Option<u64>>,
    task: tokio::task::JoinHandle<Result<Vec<Event>, Error>>,
}

impl Ear {
    fn listen(client: Client, from: u64) -> Self {
        let (until, mut told) = watch::channel(None);
        let task = tokio::spawn(async move {
            let mut watch = client.watch(QUEUE).from_revision(from);
            let mut events = Vec::new();
            loop {
                let last = events.last().map_or(0, |event: &Event| event.revision);
                if told.borrow_and_update().is_some_and(|until| last >= until) {
                    return Ok(events);
                }
                tokio::select! {
                    event = watch.next() => events.push(event?),
                    Ok(()) = told.changed() => {}
                }
            }
        });
        Self { until, task }
    }

    async fn heard(self, until: u64) -> Vec<Event> {
        self.until.send(Some(until)).expect("it listens");
        let heard = tokio::time::timeout(HEARD, self.task).await.expect("it hears all in time");
        heard.expect("it does not panic").expect("the watch goes on over every break")
    }
}

fn id(event: &Event) -> &str {
    &event.package.as_ref().expect("an event has its package").id
}

/// Each event is next to the one before it: in order, and where its package was.
fn check_chain(events: &[Event]) -> BTreeMap<String, Event> {
    let mut last: BTreeMap<String, Event> = BTreeMap::new();
    let mut revision = 0;
    for event in events {
        assert!(event.revision > revision, "a repeat, or out of order: {event:?} after revision {revision}");
        revision = event.revision;
        let before = last.get(id(event)).map(|before| before.package.as_ref().unwrap().state());
        match before {
            None => assert_eq!(event.from(), State::Unspecified, "a gap: {event:?} is the first of its package"),
            Some(state) => assert_eq!(event.from(), state, "a gap before {event:?}"),
        }
        let leased = event.from() == State::Leased;
        let returned = leased && matches!(event.package.as_ref().unwrap().state(), State::Ready | State::Scheduled);
        assert_eq!(event.cause() != Cause::Unspecified, returned, "{event:?}");
        last.insert(id(event).to_owned(), event.clone());
    }
    last
}

/// `WHARF_RUNS` leaders are killed, one after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watched_over_leader_kills() {
    let mut scene = Scene::new().await;
    let backoff = no_backoff();
    scene.queue(QUEUE, QueueSettings { backoff, ..QueueSettings::default() }).await;
    let begin = scene.client.get_queue(QUEUE).await.unwrap().revision + 1;
    let ears: Vec<Ear> = (0..2).map(|_| Ear::listen(scene.cluster.client().unwrap(), begin)).collect();
    // It stays with one node, which dies and comes back under it.
    let first = Client::builder(scene.cluster.addr(1).unwrap()).follow_leader(false).build().unwrap();
    let faithful = Ear::listen(first, begin);

    let member = |n: u32| {
        let handling = if n == 1 { Handling::FailFirst { retry_ms: 1 } } else { Handling::Complete };
        WorkerSpec { concurrency: 8, work_ms: 5, handling, ..scene.worker(&format!("worker-{n}")) }
    };
    let workers: Vec<_> = (1..=3).map(member).collect();
    let workers: Vec<_> = workers.into_iter().map(|worker| scene.start(worker)).collect();
    let production = Producer::new(QUEUE, RATE).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    for _ in 0..runs() {
        production.wait_confirmed(u64::from(RATE) / 2, SOON).await.unwrap();
        let leader = scene.cluster.leader().await.unwrap();
        scene.cluster.kill(leader).await.unwrap();
        production.wait_confirmed(u64::from(RATE) / 2, SOON).await.unwrap();
        scene.cluster.restart(leader).await.unwrap();
        scene.cluster.wait_ready().await.unwrap();
    }
    let produced = production.stop().await;
    let queue = scene.wait_ended(QUEUE, SOON).await;
    for worker in workers {
        worker.finish(SOON).await.expect("workers end with the work");
    }

    // The truth, not by any watch.
    let mut truth = BTreeMap::new();
    for key in &produced.keys {
        truth.insert(key.id.clone(), scene.client.get_package(&key.queue, &key.id).await.unwrap());
    }
    let end = truth.values().map(|package| package.revision).max().expect("something was done");
    let mut all = Vec::new();
    for ear in ears.into_iter().chain([faithful]) {
        all.push(ear.heard(end).await);
    }
    // What each node itself remembers, asked afterwards.
    for node in scene.cluster.ids() {
        let one = Client::builder(scene.cluster.addr(node).unwrap()).follow_leader(false).build().unwrap();
        all.push(Ear::listen(one, begin).heard(end).await);
    }
    let events = &all[0];
    for (at, other) in all.iter().enumerate() {
        check_chain(other);
        assert!(other == events, "watcher {at} heard something else: {} events, not {}", other.len(), events.len());
    }

    let last = check_chain(events);
    assert_eq!(last.len(), truth.len(), "every package was heard of");
    for (id, package) in &truth {
        let heard = last[id].package.as_ref().unwrap();
        assert_eq!(
            (heard.revision, heard.state(), heard.fence, heard.attempts, &heard.result),
            (package.revision, package.state(), package.fence, package.attempts, &package.result),
            "{id} ended otherwise"
        );
    }
    let completed = events.iter().filter(|event| event.package.as_ref().unwrap().state() == State::Completed);
    assert_eq!(completed.count() as u64, queue.stats.unwrap().completed, "each completion was told once");
    println!("{} leaders killed, {} packages, {} events: 0 gaps, 0 repeats", runs(), truth.len(), events.len());
    scene.judge_to_the_end(produced.keys).await;
}

/// What people and scripts see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_watches_and_goes_on() {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let begin = scene.client.get_queue(QUEUE).await.unwrap().revision + 1;
    for n in 0..3 {
        let package = wharf::client::NewPackage::new(QUEUE, "x").with_id(format!("p{n}"));
        scene.client.submit(package).await.unwrap();
    }
    scene.client.cancel_package(QUEUE, "p1", "not needed", None).await.unwrap();
    let run = async |args: &[&str]| {
        let (addrs, begin) = (scene.cluster.addrs(), begin.to_string());
        let mut command = tokio::process::Command::new(super::harness::binary());
        let output = command.args(["watch", "--addr", &addrs, "--from", &begin]).args(args).output();
        let output = tokio::time::timeout(SOON, output).await.expect("it ends").unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, table, _) = run(&[QUEUE, "--count", "4"]).await;
    assert_eq!((code, table.lines().count()), (Some(0), 5), "{table}");
    assert!(table.contains("READY      CANCELLED") && table.contains("jobs/p1"), "{table}");
    let (_, lines, _) =
        run(&["--all", "--state", "cancelled", "--id-prefix", "p", "-o", "jsonl", "--count", "1"]).await;
    let event: serde_json::Value = serde_json::from_str(&lines).expect("one object");
    assert_eq!((&event["from"], &event["package"]["id"]), (&"READY".into(), &"p1".into()), "{event}");
    assert_eq!(event["revision"], event["package"]["revision"]);
    let (code, _, problem) = run(&["nowhere"]).await;
    assert_eq!(code, Some(4), "{problem}");
}
