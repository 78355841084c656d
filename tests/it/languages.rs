//! Other languages, by nothing but `proto/`: a worker and a client in Python, a worker in Node, and the example
//! programs, each started as a newcomer would. Leaders are killed under all of them.
//!
//! Where python3, node or their registries are missing, tests are skipped and say so; with `WHARF_CI=1` that is a
//! failure.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use wharf::cli::local::Process;
use wharf::client::{NewPackage, QueueSettings, State};
use wharf::testkit::wait;

use super::harness::{QUEUE, SOON, Scene, Turn, binary, duration};

const PACKAGES: u64 = 1_500;
const LEASE: Duration = Duration::from_secs(2);
/// One of the workers takes longer than a lease for a package, in seconds.
const SLOW: &[&str] = &["--seconds", "3"];
/// So often the leader is killed while they are worked on.
const KILLS: u64 = 2;
/// A whole example is over within this.
const EXAMPLE_WITHIN: Duration = Duration::from_secs(180);
/// Lines of output that a failing test prints.
const SHOWN: usize = 40;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// A program of the examples, run by the script that gets it what it needs.
fn program(language: &str, file: &str) -> Command {
    let mut command = Command::new(examples().join(language).join("run"));
    command.arg(examples().join(file)).env("WHARF", binary()).env("PYTHONUNBUFFERED", "1");
    command
}

/// Whether this machine has a language; without it the test is skipped, which CI does not allow.
async fn has(language: &str, trial: [&str; 2]) -> bool {
    let mut command = Command::new(examples().join(language).join("run"));
    let output = command.args(trial).stdin(Stdio::null()).output().await.expect("the script is there");
    if !output.status.success() {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os("WHARF_CI").is_none(), "{test} needs {language}, and CI skips nothing:\n{why}");
        // Past the capture of passing tests.
        let _ =
            writeln!(std::io::stderr().lock(), "SKIPPED: {test} needs {language}, which this machine lacks:\n{why}");
    }
    output.status.success()
}

async fn has_python() -> bool {
    has("python", ["-c", "import wharf_client, wharf_worker"]).await
}

async fn has_node() -> bool {
    has("node", ["-e", "0"]).await
}

/// A program beside the cluster, and what it wrote.
struct Program {
    name: &'static str,
    process: Process,
    log: PathBuf,
}

impl Program {
    fn start(scene: &Scene, name: &'static str, mut command: Command, args: &[&str]) -> Self {
        let log = scene.cluster.dir().join(format!("{name}.log"));
        command.args(["--addr", &scene.cluster.addrs(), "--queue", QUEUE]).args(args);
        let process = Process::start(command, &log).expect("it starts");
        Self { name, process, log }
    }

    fn wrote(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it ends by itself, and well.
    async fn end(mut self, within: Duration) -> String {
        let status = self.process.ended(within).await;
        let wrote = self.wrote();
        assert!(status.is_some_and(|status| status.success()), "{}: {status:?}\n{}", self.name, last_lines(&wrote));
        wrote
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

/// A scene with the queue.
async fn scene() -> Scene {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings { lease: duration(LEASE), ..Default::default() }).await;
    scene
}

/// Kills leaders, and brings them back, while packages are completed.
async fn kill_leaders(scene: &mut Scene) {
    for kill in 1..=KILLS {
        wait_completed(scene, kill * PACKAGES / (KILLS + 2)).await;
        let leader = scene.cluster.leader().await.unwrap();
        scene.cluster.kill(leader).await.unwrap();
        let successor = scene.cluster.successor(leader).await.unwrap();
        println!("node {successor} leads after the death of node {leader}");
        scene.cluster.restart(leader).await.unwrap();
    }
    wait_completed(scene, (KILLS + 1) * PACKAGES / (KILLS + 2)).await;
}

async fn wait_completed(scene: &Scene, count: u64) {
    let look = || async {
        let queue = scene.client.get_queue(QUEUE).await.unwrap();
        (queue.stats.unwrap_or_default().completed >= count).then_some(())
    };
    wait::until(format!("{count} completed packages"), 4 * SOON, look).await.unwrap();
}

/// Every package was completed by the first who got it, with the right result: a new leader redelivers
/// nothing, and charges nobody. `told` is what the workers wrote.
async fn judge(scene: &Scene, told: &str) {
    let mut runs: BTreeMap<&str, u64> = BTreeMap::new();
    for line in told.lines().filter_map(|line| line.strip_prefix("working on ")) {
        *runs.entry(line.split(',').next().unwrap_or_default()).or_default() += 1;
    }
    for number in 0..PACKAGES {
        let id = format!("p-{number}");
        let package = scene.client.get_package(QUEUE, &id).await.unwrap();
        assert_eq!(package.state(), State::Completed, "{package:?}");
        assert_eq!(package.result, format!("HELLO {number}"), "{package:?}");
        assert_eq!((package.attempts, &package.last_failure), (1, &None), "{package:?}");
        assert_eq!(runs.get(&*id), Some(&1), "it was worked on more or less than once: {package:?}");
    }
    scene.cluster.check_agreement().await.expect("the nodes agree");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_worker_and_client_survive_leaders() {
    if !has_python().await {
        return;
    }
    let mut scene = scene().await;
    let work = || program("python", "python/work.py");
    let worker = Program::start(&scene, "worker", work(), &[]);
    let leaver = Program::start(&scene, "leaver", work(), SLOW);
    let count = PACKAGES.to_string();
    let client = program("python", "python/submit.py");
    let client = Program::start(&scene, "client", client, &["--count", &count, "--prefix", "p"]);
    kill_leaders(&mut scene).await;
    leaver.process.terminate().unwrap();
    let told_by_leaver = leaver.end(SOON).await;

    let told = client.end(4 * SOON).await;
    assert_eq!(told.matches("is finished: HELLO").count() as u64, PACKAGES, "{}", last_lines(&told));
    scene.wait_ended(QUEUE, SOON).await;
    let told = worker.end(SOON).await;
    for told in [&told, &told_by_leaver] {
        assert!(told.contains("epoch 2"), "inconclusive: this worker never came back\n{}", last_lines(told));
    }
    judge(&scene, &(told + &told_by_leaver)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_worker_survives_leaders() {
    if !has_node().await {
        return;
    }
    let mut scene = scene().await;
    let worker = Program::start(&scene, "worker", program("node", "node/work.js"), &[]);
    let leaver = Program::start(&scene, "leaver", program("node", "node/work.js"), SLOW);
    let client = scene.cluster.client().unwrap();
    let submitting = tokio::spawn(async move {
        for number in 0..PACKAGES {
            let package = NewPackage::new(QUEUE, format!("hello {number}")).with_id(format!("p-{number}"));
            client.submit(package).await.expect("it is taken, through every change of leader");
        }
    });
    kill_leaders(&mut scene).await;
    leaver.process.terminate().unwrap();
    let told_by_leaver = leaver.end(SOON).await;

    submitting.await.unwrap();
    scene.wait_ended(QUEUE, SOON).await;
    let told = worker.end(SOON).await;
    for told in [&told, &told_by_leaver] {
        assert!(told.contains("epoch 2"), "inconclusive: this worker never came back\n{}", last_lines(told));
    }
    judge(&scene, &(told + &told_by_leaver)).await;
}

/// Runs a whole example, which starts and kills a cluster of its own and judges itself.
async fn run_example(name: &str) -> Option<String> {
    if !has_python().await {
        return None;
    }
    let _turn = Turn::take();
    let mut command = program("python", name);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(EXAMPLE_WITHIN, command.output()).await.expect("it ends").expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}");
    assert!(output.status.success(), "{name}: {}\n{out}\n{err}", output.status);
    Some(out.into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_example() {
    let Some(told) = run_example("orders").await else { return };
    assert!(told.contains("which led (-9)"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_pull_example() {
    let Some(told) = run_example("push_pull").await else { return };
    for line in ["killed the leader (-9)", "killed a puller (-9)", "lost: 0", "completed twice: 0"] {
        assert!(told.contains(line), "`{line}` is missing:\n{told}");
    }
}
