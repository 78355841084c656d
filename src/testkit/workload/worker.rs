//! Workers that record what they see. The same worker runs as a task of the test, or as a process
//! of its own, which can be killed and frozen.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::super::cluster::tail;
use super::super::history::{Event, Fault, Key, Recorder, Settlement, Verdict};
use crate::cli::local::{Process, die_with};
use crate::client::worker::{self, Summary};
use crate::client::{Client, Completion, Delivery, Error, Failure, Worker};
use crate::env::Env;

/// Gives the specification of a worker to a process that shall be one, and the number of its parent.
const SPEC_VARIABLE: &str = "WHARF_TEST_WORKER";
const PARENT_VARIABLE: &str = "WHARF_TEST_PARENT";
/// Lines of its log that a worker which does not end is shown with.
const TAIL_LINES: usize = 20;

/// What a worker is to be. It travels to worker processes as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerSpec {
    /// Its name in the history.
    pub name: String,
    pub addrs: String,
    pub follow_leader: bool,
    pub queues: Vec<String>,
    pub concurrency: u32,
    pub max_in_flight: u32,
    pub auto_extend: bool,
    /// How long it works on a package.
    pub work_ms: u64,
    pub handling: Handling,
    pub history: PathBuf,
}

/// How packages end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handling {
    Complete,
    /// The first attempt fails, to be retried after so many milliseconds; later ones complete.
    FailFirst {
        retry_ms: u64,
    },
}

impl WorkerSpec {
    /// One package at a time without delay, 64 in flight.
    pub fn new(name: &str, addrs: &str, queue: &str, history: &Path) -> Self {
        Self {
            name: name.to_owned(),
            addrs: addrs.to_owned(),
            follow_leader: true,
            queues: vec![queue.to_owned()],
            concurrency: 1,
            max_in_flight: 64,
            auto_extend: true,
            work_ms: 0,
            handling: Handling::Complete,
            history: history.to_owned(),
        }
    }

    /// Runs it here.
    pub fn spawn(self) -> io::Result<WorkerTask> {
        let recorder = Recorder::open(&self.history, &self.name, &Env::real())?;
        let drain = Arc::new(Notify::new());
        let asked = drain.clone();
        let task = tokio::spawn(self.run(Env::real(), recorder.clone(), async move { asked.notified().await }));
        Ok(WorkerTask { recorder, drain, task })
    }

    /// Runs it as a process: `program` called with `args` must call [`run_if_worker_process`]. Its
    /// log lies beside the history.
    pub fn spawn_process(self, program: &Path, args: &[&str]) -> io::Result<WorkerProcess> {
        let recorder = Recorder::open(&self.history, &self.name, &Env::real())?;
        let log = self.history.with_file_name(format!("{}.log", self.name));
        let spec = serde_json::to_string(&self).map_err(io::Error::other)?;
        let mut command = Command::new(program);
        command.args(args).env(SPEC_VARIABLE, spec).env(PARENT_VARIABLE, std::process::id().to_string());
        let process = Process::start(command.into(), &log).map_err(io::Error::other)?;
        Ok(WorkerProcess { process: Some(process), log, recorder })
    }

    /// Works in these surroundings until its queues have ended or it is drained.
    pub async fn run(
        self,
        env: Env,
        recorder: Recorder,
        drain: impl Future<Output = ()> + Send + 'static,
    ) -> Result<Summary, Error> {
        let client = Client::builder(&self.addrs).env(env).follow_leader(self.follow_leader).build()?;
        let builder = client
            .worker(self.queues.clone())
            .name(&self.name)
            .concurrency(self.concurrency)
            .max_in_flight(self.max_in_flight)
            .auto_extend(self.auto_extend)
            .drain_on(drain);
        let worker = observe(builder, recorder.clone());
        let handler = Arc::new(Handler { recorder: recorder.clone(), spec: self });
        let summary = worker
            .run(move |delivery| {
                let handler = handler.clone();
                async move { handler.handle(delivery).await }
            })
            .await?;
        recorder.record(Event::Exited);
        Ok(summary)
    }
}

struct Handler {
    spec: WorkerSpec,
    recorder: Recorder,
}

impl Handler {
    async fn handle(&self, delivery: Delivery) -> Result<Completion, Failure> {
        tokio::time::sleep(Duration::from_millis(self.spec.work_ms)).await;
        let key = Key::new(&delivery.queue, &delivery.id);
        let fence = delivery.fence;
        match self.spec.handling {
            Handling::FailFirst { retry_ms } if delivery.attempt == 1 => {
                self.recorder.record(Event::End { key, fence, settlement: Settlement::Fail });
                Err(Failure::new("planned").with_retry_delay(Duration::from_millis(retry_ms)))
            }
            _ => {
                self.recorder.record(Event::End { key, fence, settlement: Settlement::Done });
                Ok(Completion::new(format!("{}#{fence}", self.spec.name)))
            }
        }
    }
}

/// Has a worker tell the history what it sees.
fn observe(builder: worker::Builder, recorder: Recorder) -> Worker {
    let session = OnceLock::new();
    let observer = move |event: &worker::Event| {
        if let worker::Event::Attached { session: named, .. } = event {
            session.get_or_init(|| named.to_string());
        }
        recorder.record(told(event, session.get().map_or("", |session| session)));
    };
    builder.on_event(observer).build()
}

fn told(event: &worker::Event, session: &str) -> Event {
    let key = |lease: &worker::Lease| Key::new(&*lease.queue, &*lease.id);
    match event {
        worker::Event::Attached { session, epoch, reattached, .. } => {
            Event::Attached { session: session.to_string(), epoch: *epoch, again: *reattached }
        }
        worker::Event::Detached { error } => Event::Detached { why: error.to_string() },
        worker::Event::Delivered { lease, attempt } => {
            let session = session.to_owned();
            Event::Delivered { key: key(lease), fence: lease.fence, attempt: *attempt, session }
        }
        worker::Event::Started { lease } => Event::Begin { key: key(lease), fence: lease.fence },
        worker::Event::Settled { lease, kind, result } => Event::Settled {
            key: key(lease),
            fence: lease.fence,
            settlement: match kind {
                worker::Kind::Done => Settlement::Done,
                worker::Kind::Fail => Settlement::Fail,
                worker::Kind::Release => Settlement::Release,
            },
            verdict: match result {
                Ok(()) => Verdict::Accepted,
                Err(error) if error.is_unknown() => Verdict::Unknown,
                Err(_) => Verdict::Refused,
            },
            reason: result.as_ref().err().map(|error| error.reason().to_owned()).unwrap_or_default(),
        },
        worker::Event::Lost { lease, why } => Event::Lost { key: key(lease), fence: lease.fence, why: why.clone() },
        worker::Event::EndOfWork { queue } => Event::EndOfWork { queue: queue.clone() },
    }
}

/// A worker that is a task of this process. Dropping it is its sudden death.
pub struct WorkerTask {
    recorder: Recorder,
    drain: Arc<Notify>,
    task: JoinHandle<Result<Summary, Error>>,
}

impl WorkerTask {
    /// Asks it to finish what it works on and to go.
    pub fn drain(&self) {
        self.recorder.fault(self.recorder.who(), Fault::Drained);
        self.drain.notify_one();
    }

    /// Records that its link does not carry bytes; the test cuts it.
    pub fn cut_off(&self) {
        self.recorder.fault(self.recorder.who(), Fault::CutOff);
    }

    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits for its end.
    pub async fn finish(mut self, within: Duration) -> io::Result<Summary> {
        match tokio::time::timeout(within, &mut self.task).await {
            Ok(ended) => ended.map_err(io::Error::other)?.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} still works", self.recorder.who()))),
        }
    }
}

impl Drop for WorkerTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A worker in its own process. Killed when dropped.
pub struct WorkerProcess {
    process: Option<Process>,
    log: PathBuf,
    recorder: Recorder,
}

impl WorkerProcess {
    /// SIGKILL; returns once it is gone.
    pub async fn kill(&mut self) -> io::Result<()> {
        let process = self.process.take().ok_or(io::ErrorKind::NotFound)?;
        self.fault(Fault::Killed);
        process.kill().await
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> io::Result<()> {
        self.fault(Fault::Frozen);
        self.process()?.freeze()
    }

    /// SIGCONT.
    pub fn thaw(&self) -> io::Result<()> {
        self.process()?.thaw()?;
        self.fault(Fault::Healed);
        Ok(())
    }

    /// SIGTERM: drains.
    pub fn terminate(&self) -> io::Result<()> {
        self.fault(Fault::Drained);
        self.process()?.terminate()
    }

    /// Waits for its end.
    pub async fn wait(&mut self, within: Duration) -> io::Result<ExitStatus> {
        let process = self.process.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let ended = process.ended(within).await;
        ended.ok_or_else(|| {
            let (name, tail) = (self.recorder.who(), tail(&self.log, TAIL_LINES));
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{name} still runs after {within:?}; its log ends with\n{tail}"),
            )
        })
    }

    /// What it printed.
    pub fn log(&self) -> String {
        tail(&self.log, usize::MAX)
    }

    fn process(&self) -> io::Result<&Process> {
        self.process.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn fault(&self, fault: Fault) {
        self.recorder.fault(self.recorder.who(), fault);
    }
}

/// Becomes a worker, and answers with its exit code, if this process was started to be one.
pub fn run_if_worker_process() -> Option<ExitCode> {
    let spec = std::env::var(SPEC_VARIABLE).ok()?;
    Some(match run_worker_process(&spec) {
        Ok(summary) => {
            println!("{summary:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

fn run_worker_process(spec: &str) -> io::Result<Summary> {
    if let Some(parent) = std::env::var(PARENT_VARIABLE).ok().and_then(|parent| parent.parse().ok()) {
        die_with(parent).map_err(io::Error::other)?;
    }
    let spec: WorkerSpec = serde_json::from_str(spec).map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let recorder = Recorder::open(&spec.history, &spec.name, &Env::real())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let drain = async move {
            terminated.recv().await;
        };
        spec.run(Env::real(), recorder, drain).await.map_err(io::Error::other)
    })
}
