//! A disk that fills up: submits are refused by name, all else goes on, and it recovers by itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::fs::statvfs;
use tempfile::TempDir;
use tonic::Code;
use wharf::client::{Error, NewPackage, QueueSettings};
use wharf::testkit::cluster::Options;
use wharf::testkit::wait;
use wharf::testkit::workload::WorkerSpec;
use wharf::types::limits;

use super::harness::{QUEUE, SOON, Scene, binary};
use super::workers::submit;

/// Room for the reserve and a little more.
const DISK_BYTES: u64 = limits::DISK_RESERVE_BYTES + (128 << 20);
/// Nodes 1 and 2 live on it; node 3 does not.
const ON_IT: [u64; 2] = [1, 2];

/// A file system of its own, in memory.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// None: this user may not mount.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={DISK_BYTES},mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { dir })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn free_bytes(&self) -> u64 {
        let stat = statvfs(self.path()).expect("it is mounted");
        stat.f_bavail * stat.f_frsize
    }

    /// Fills it until only so much is left. The nodes may take some of that meanwhile.
    fn fill(&self, left: u64) -> PathBuf {
        let file = self.path().join(format!("filler-{left}"));
        let bytes = self.free_bytes().saturating_sub(left) as usize;
        std::fs::write(&file, vec![1; bytes]).expect("there is room for that");
        file
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_submits_alone_and_recovers() {
    let Some(disk) = SmallDisk::mount() else {
        assert!(std::env::var("WHARF_CI").is_err(), "CI may mount a tmpfs, or this is not tested");
        eprintln!("SKIPPED full_disk: mounting a tmpfs takes root");
        return;
    };
    let root = disk.path().to_owned();
    let configure = move |config: &mut wharf::config::Config| {
        config.limits.log_segment = ByteSize::mib(4);
        if ON_IT.contains(&config.node) {
            config.data_dir = root.join(format!("node-{}", config.node));
        }
    };
    let mut scene = Scene::with(Options { configure: Arc::new(configure), ..Options::new(binary()) }).await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    // What the checkers do not follow goes here.
    scene.queue("spare", QueueSettings::default()).await;
    let keys = submit(&scene, QUEUE, 100).await;
    let leader = scene.cluster.leader().await.unwrap();
    if !ON_IT.contains(&leader) {
        scene.client.transfer_leadership(ON_IT[0]).await.expect("a node on the small disk leads");
    }

    // Into the reserve, on two of three: no quorum has room for more.
    let filler = disk.fill(limits::DISK_RESERVE_BYTES - (16 << 20));
    let refusal = wait::until("DISK_FULL", SOON, || async { try_submit(&scene, "refused").await.err() }).await;
    let refusal = refusal.unwrap_or_else(|late| panic!("{late}"));
    assert_eq!((refusal.code(), refusal.reason()), (Code::ResourceExhausted, "DISK_FULL"), "{refusal}");
    assert!(refusal.retry_after().is_some() && !refusal.is_unknown());
    let status = scene.cluster.status(ON_IT[0]).await.unwrap();
    assert!(status.alarms.iter().any(|alarm| alarm.name == "DISK_FULL"), "{:?}", status.alarms);

    // Work goes on: deliveries, completions, ticks and reads.
    let worker = scene.start(WorkerSpec { concurrency: 8, work_ms: 10, ..scene.worker("worker") });
    wait_completed(&scene, 40).await;
    // Nearly all of the reserve: who leads there hands over, and work goes on under another.
    let more = disk.fill(limits::SEGMENT_BYTES / 2);
    let away = || async { scene.cluster.leader().await.ok().filter(|leader| !ON_IT.contains(leader)) };
    wait::until("a leader with room", SOON, away).await.unwrap_or_else(|late| panic!("{late}"));
    wait_completed(&scene, 100).await;
    let still = try_submit(&scene, "refused").await.expect_err("there is no room yet");
    assert_eq!(still.reason(), "DISK_FULL", "{still}");

    // Room again: nobody has to do anything else.
    std::fs::remove_file(filler).unwrap();
    std::fs::remove_file(more).unwrap();
    wait::until("submits", SOON, || async { try_submit(&scene, "late").await.ok() })
        .await
        .unwrap_or_else(|late| panic!("{late}"));
    let no_alarm = || async {
        let status = scene.cluster.status(ON_IT[0]).await.ok()?;
        status.alarms.is_empty().then_some(())
    };
    wait::until("the alarm's end", SOON, no_alarm).await.unwrap_or_else(|late| panic!("{late}"));
    scene.wait_ended(QUEUE, SOON).await;
    worker.finish(SOON).await.expect("the worker ends with the work");
    scene.judge_to_the_end(keys).await;
    // Before its disk goes.
    scene.cluster.kill_all().await.unwrap();
}

async fn try_submit(scene: &Scene, id: &str) -> Result<(), Error> {
    let client = scene.client.with_timeout(Duration::from_secs(2));
    client.submit(NewPackage::new("spare", "x").with_id(id)).await.map(drop)
}

async fn wait_completed(scene: &Scene, count: u64) {
    let completed = || async {
        let stats = scene.client.get_queue(QUEUE).await.ok()?.stats?;
        (stats.completed >= count).then_some(())
    };
    wait::until(format!("{count} completions"), SOON, completed).await.unwrap_or_else(|late| panic!("{late}"));
}
