//! What every test begins and ends with.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use wharf::client::{BackoffSettings, Client, Queue, QueueSettings};
use wharf::env::Env;
use wharf::testkit::checkers::{self, Violation};
use wharf::testkit::cluster::{Cluster, Options};
use wharf::testkit::history::{Event, History, Key, Recorder};
use wharf::testkit::wait;
use wharf::testkit::workload::{self, WorkerProcess, WorkerSpec, WorkerTask};

/// The one queue that most tests use.
pub const QUEUE: &str = "jobs";
/// What is waited for comes within this, or the test fails.
pub const SOON: Duration = Duration::from_secs(15);
/// Bars on times hold for optimized builds.
pub const OPTIMIZED: bool = !cfg!(debug_assertions);
/// How a process of this program becomes a worker.
const AS_WORKER: &[&str] = &["worker_process", "--exact", "--nocapture"];
/// Violations that a failing test prints.
const SHOWN: usize = 20;

/// The right to run a cluster: one test at a time has it, whichever process it is in.
pub struct Turn(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl Turn {
    pub fn take() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("one-cluster-at-a-time");
        let file = File::create(path).expect("the lock can be made");
        flock(&file, FlockOperation::LockExclusive).expect("the lock can be waited for");
        Self(file)
    }
}

/// A cluster under test, with its history. Fields are dropped in order: the cluster goes before the
/// turn does.
pub struct Scene {
    pub cluster: Cluster,
    pub client: Client,
    pub recorder: Recorder,
    history: PathBuf,
    turn: Arc<Turn>,
}

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wharf"))
}

impl Scene {
    /// Three nodes.
    pub async fn new() -> Self {
        Self::with(Options::new(binary())).await
    }

    /// Three nodes with proxies in front of their client ports.
    pub async fn proxied() -> Self {
        Self::with(Options { proxied: true, ..Options::new(binary()) }).await
    }

    pub async fn with(options: Options) -> Self {
        Self::make(options, Arc::new(Turn::take())).await
    }

    /// A second cluster in the same test.
    pub async fn another(&self) -> Self {
        Self::make(Options::new(binary()), self.turn.clone()).await
    }

    async fn make(options: Options, turn: Arc<Turn>) -> Self {
        let test = std::thread::current().name().unwrap_or("NAME").to_owned();
        eprintln!("again: cargo test --release --test it {test}");
        let mut cluster = Cluster::start(options).await.expect("the cluster starts");
        eprintln!("files: {} (kept if the test fails)", cluster.dir().display());
        let history = cluster.dir().join("history.jsonl");
        let recorder = Recorder::open(&history, "test", &Env::real()).expect("the history can be written");
        cluster.record_to(recorder.clone());
        let client = cluster.client().expect("the cluster has addresses");
        Self { cluster, client, recorder, history, turn }
    }

    /// Makes a queue; what finished in it stays for as long as any test runs.
    pub async fn queue(&self, name: &str, settings: QueueSettings) -> Queue {
        let settings = QueueSettings { keep_finished_count: Some(1_000_000), ..settings };
        self.client.create_queue(name, settings).await.expect("the queue is made")
    }

    /// A worker of [`QUEUE`], to be changed and started.
    pub fn worker(&self, name: &str) -> WorkerSpec {
        self.worker_of(name, QUEUE)
    }

    pub fn worker_of(&self, name: &str, queue: &str) -> WorkerSpec {
        WorkerSpec::new(name, &self.cluster.addrs(), queue, &self.history)
    }

    /// Starts it as a task of this process.
    pub fn start(&self, worker: WorkerSpec) -> WorkerTask {
        worker.spawn().expect("the worker starts")
    }

    /// Starts it as a process of its own.
    pub fn start_process(&self, worker: WorkerSpec) -> WorkerProcess {
        let program = std::env::current_exe().expect("this program has a file");
        worker.spawn_process(&program, AS_WORKER).expect("the worker starts")
    }

    /// What was recorded so far.
    pub fn history(&self) -> History {
        History::load(&self.history).expect("the history can be read")
    }

    /// Waits until the history has what is looked for.
    pub async fn wait_history<T>(&self, what: &str, within: Duration, look: impl Fn(&History) -> Option<T>) -> T {
        let found = wait::until(what, within, || async { look(&self.history()) }).await;
        found.unwrap_or_else(|late| panic!("{late}"))
    }

    /// Waits until `worker` has begun so many packages, those it ended included.
    pub async fn wait_begun(&self, worker: &str, count: usize) {
        let begun = |event: &Event| matches!(event, Event::Begin { .. });
        let what = format!("the begin of {count} packages by {worker}");
        self.wait_history(&what, SOON, |history| (count_of(history, worker, begun) >= count).then_some(())).await;
    }

    /// Waits until so many packages were delivered to `worker`.
    pub async fn wait_delivered(&self, worker: &str, count: usize) {
        let delivered = |event: &Event| matches!(event, Event::Delivered { .. });
        let what = format!("the delivery of {count} packages to {worker}");
        self.wait_history(&what, SOON, |history| (count_of(history, worker, delivered) >= count).then_some(())).await;
    }

    /// Seals the queue and waits until all in it is done.
    pub async fn wait_ended(&self, queue: &str, within: Duration) -> Queue {
        self.client.seal_queue(queue, None).await.expect("the queue can be sealed");
        self.client.wait_queue(queue, within).await.expect("the queue ends")
    }

    /// Reads everything a last time, checks that the nodes agree and judges the history. For tests that let the
    /// work run out.
    pub async fn judge_to_the_end(&self, keys: impl IntoIterator<Item = Key>) -> History {
        let history = self.read_last(keys).await;
        self.verdict(checkers::check_to_the_end(&history));
        history
    }

    /// The same for tests that leave work undone.
    pub async fn judge(&self, keys: impl IntoIterator<Item = Key>) -> History {
        let history = self.read_last(keys).await;
        self.verdict(checkers::check(&history));
        history
    }

    async fn read_last(&self, keys: impl IntoIterator<Item = Key>) -> History {
        workload::read_all(&self.client, &self.recorder, keys, true).await.expect("all can be read at the end");
        self.cluster.check_agreement().await.expect("the nodes agree");
        self.history()
    }

    fn verdict(&self, violations: Vec<Violation>) {
        let shown: Vec<String> = violations.iter().take(SHOWN).map(ToString::to_string).collect();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), shown.join("\n"));
    }
}

/// How many events of `who` are so.
pub fn count_of(history: &History, who: &str, is_so: impl Fn(&Event) -> bool) -> usize {
    history.records().iter().filter(|record| record.who == who && is_so(&record.event)).count()
}

/// A duration as messages have it.
pub fn duration(of: Duration) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: of.as_secs() as i64, nanos: of.subsec_nanos() as i32 })
}

/// Retries come back at once.
pub fn no_backoff() -> Option<BackoffSettings> {
    let initial = duration(Duration::from_millis(1));
    Some(BackoffSettings { initial, max: initial, multiplier: Some(1.0) })
}

/// How often the failover tests run.
pub fn runs() -> usize {
    std::env::var("WHARF_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3)
}
