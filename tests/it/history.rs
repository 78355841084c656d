//! What a node remembers survives its death, and never stops it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use wharf::client::{History, HistoryPage, HistoryQuery, NewPackage, QueueSettings};
use wharf::testkit::cluster::Options;
use wharf::testkit::wait;
use wharf::testkit::workload::{Producer, WorkerSpec};

use super::harness::{QUEUE, SOON, Scene, binary, runs};

const RATE: u32 = 300;

/// One node is enough: history is each node's own.
async fn scene() -> Scene {
    let scene = Scene::with(Options { nodes: 1, ..Options::new(binary()) }).await;
    scene.queue(QUEUE, QueueSettings { history: History::All as i32, ..QueueSettings::default() }).await;
    scene
}

/// All of it, once the node has written down what happened up to this revision.
async fn history(scene: &Scene, until: u64) -> HistoryPage {
    let look = || async {
        let mut query = HistoryQuery { queue: QUEUE.into(), page_size: 1_000, ..HistoryQuery::default() };
        let mut whole = HistoryPage::default();
        loop {
            // It may be out of order for a moment while a damaged one is set aside.
            let page = scene.client.list_history(query.clone()).await.ok()?;
            whole.entries.extend(page.entries);
            query.page_token = page.next_page_token;
            if query.page_token.is_empty() {
                (whole.gaps, whole.covered_revision, whole.node) = (page.gaps, page.covered_revision, page.node);
                return (whole.covered_revision >= until).then_some(whole);
            }
        }
    };
    wait::until("history up to the present", SOON, look).await.unwrap_or_else(|late| panic!("{late}"))
}

/// The node dies while it writes, and replays its log: nothing is twice, nothing is missing without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_survives_kill_9() {
    let mut scene = scene().await;
    let worker = WorkerSpec { concurrency: 16, ..scene.worker("worker") };
    let worker = scene.start(worker);
    let production = Producer::new(QUEUE, RATE).start(scene.cluster.client().unwrap(), scene.recorder.named("load"));
    for _ in 0..runs() {
        production.wait_confirmed(u64::from(RATE), SOON).await.unwrap();
        scene.cluster.kill(1).await.unwrap();
        scene.cluster.restart(1).await.unwrap();
    }
    production.wait_confirmed(u64::from(RATE), SOON).await.unwrap();
    let produced = production.stop().await;
    let queue = scene.wait_ended(QUEUE, SOON).await;
    worker.finish(SOON).await.expect("workers end with the work");

    let page = history(&scene, queue.revision).await;
    let found: Vec<_> = page.entries.iter().map(|entry| entry.package.as_ref().unwrap().id.clone()).collect();
    let once: BTreeSet<_> = found.iter().cloned().collect();
    assert_eq!(found.len(), once.len(), "a package is there twice");
    let missing: Vec<_> = produced.keys.iter().filter(|key| !once.contains(&key.id)).collect();
    assert!(missing.is_empty() && page.gaps.is_empty(), "{} missing, gaps {:?}", missing.len(), page.gaps);
    for entry in &page.entries {
        let package = entry.package.as_ref().unwrap();
        assert_eq!(entry.attempts.last().map(|attempt| attempt.fence), Some(package.fence), "{entry:?}");
        let fences: BTreeSet<_> = entry.attempts.iter().map(|attempt| attempt.fence).collect();
        assert_eq!(fences.len(), entry.attempts.len(), "an attempt is there twice: {entry:?}");
    }
    println!("{} kills, {} packages in history, none twice, none missing", runs(), found.len());
    scene.judge_to_the_end(produced.keys).await;
}

/// What somebody or something did to the directory while the node was down.
fn damage(dir: &PathBuf, how: &str) {
    let files: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    assert!(files.len() > 1, "{files:?}");
    for file in files {
        let mut bytes = fs::read(&file).unwrap();
        match how {
            "flipped" => bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55),
            "one flip" => {
                let at = bytes.len() / 3;
                bytes[at] ^= 1;
            }
            "cut" => bytes.truncate(bytes.len() / 2),
            "garbage" => bytes = b"this is no database ".repeat(5_000),
            "zeros" => bytes.fill(0),
            _ => bytes.clear(),
        }
        fs::write(&file, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_history_is_set_aside_and_the_node_serves() {
    let mut scene = scene().await;
    let data = scene.cluster.dir().join("node-1").join("data");
    let aside = || {
        let names = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("history.damaged-")).count()
    };
    let mut ended = 0;
    let mut end_some = async |scene: &Scene, how: &str| {
        let mut revision = 0;
        for n in 0..200 {
            let package = NewPackage::new(QUEUE, "x").with_id(format!("{how}-{n}"));
            scene.client.submit(package).await.unwrap();
            revision = scene.client.cancel_package(QUEUE, &format!("{how}-{n}"), "over", None).await.unwrap().revision;
            ended += 1;
        }
        (revision, ended)
    };
    let (revision, count) = end_some(&scene, "before").await;
    assert_eq!(history(&scene, revision).await.entries.len(), count);

    for how in ["flipped", "one flip", "cut", "garbage", "zeros", "empty"] {
        scene.cluster.stop(1).await.unwrap();
        damage(&data.join("history"), how);
        scene.cluster.restart(1).await.unwrap();
        let (revision, all) = end_some(&scene, how).await;
        let page = history(&scene, revision).await;
        // The log is replayed into the new one, so nothing is missing after all.
        let known = page.entries.len();
        println!("{how}: {known} of {all} known, {} set aside, gaps {:?}", aside(), page.gaps);
        let fresh = page.entries.iter().filter(|entry| entry.package.as_ref().unwrap().id.starts_with(how)).count();
        assert_eq!(fresh, 200, "{how}: it goes on");
        assert!(known == all || !page.gaps.is_empty(), "{how}: what is missing is told");
    }
    assert!((1..=2).contains(&aside()), "the latest are kept: {}", aside());
    assert!(scene.cluster.log(1).unwrap().contains("history was damaged: set aside"), "an operator is told");
    scene.cluster.check_agreement().await.unwrap();
}
