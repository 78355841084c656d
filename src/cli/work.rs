//! `wharf work --exec`: a worker that runs a program for each package.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::args;
use super::exit::{Exit, Failure as CliFailure};
use super::output;
use crate::client::worker::{Event, Summary};
use crate::client::{Client, Completion, Delivery, Failure};
use crate::types::limits;

/// Bytes of a result that are read before the program counts as out of bounds.
const MAX_OUTPUT: u64 = limits::MAX_PAYLOAD_CEILING_BYTES;

/// Run a program for each package of a queue.
#[derive(Args, Debug)]
#[command(after_help = "\
The payload comes on the program's standard input; its standard output is the result. Exit 0
completes the package, any other fails it, with the end of standard error as the message. In its
environment: WHARF_QUEUE, WHARF_ID, WHARF_FENCE, WHARF_ATTEMPT.

The lease is extended while the program runs. If it is lost all the same, the program is killed.
Ends with 0 once all queues are sealed and empty. SIGTERM and Ctrl-C drain: what runs is finished,
the rest is given back; a second one ends at once.

Examples:
  wharf work --queue jobs --exec 'wc -c'
  wharf work --queue jobs --exec ./resize.sh --concurrency 8
  wharf work --queue mail --kind welcome --exec 'sendmail -t' --run-timeout 30s")]
pub struct Work {
    /// May be given several times.
    #[arg(long = "queue", required = true, value_name = "QUEUE", value_parser = args::queue)]
    queues: Vec<String>,
    /// Only packages of this kind; may be given several times.
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<String>,
    /// A command line for sh.
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Programs that run at once.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// Packages held at once, running or waiting here [default: twice the concurrency]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_in_flight: Option<u32>,
    /// Kill the program after this; the package fails.
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    run_timeout: Option<Duration>,
    /// This worker's name, for people [default: its session]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// Tell about each package on standard error.
    #[arg(short, long)]
    verbose: bool,
}

impl Work {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let max_in_flight = self.max_in_flight.unwrap_or(self.concurrency.saturating_mul(2));
        let mut worker = client
            .worker(self.queues.clone())
            .name(&self.name)
            .concurrency(self.concurrency)
            .max_in_flight(max_in_flight.max(self.concurrency))
            .drain_on(drain_signal()?);
        for kind in &self.kinds {
            worker = worker.kind(kind);
        }
        let verbose = self.verbose;
        worker = worker.on_event(move |event| tell(event, verbose));
        let program = Arc::new(Program { command: self.exec, run_timeout: self.run_timeout });
        let summary = worker
            .run(move |delivery| {
                let program = program.clone();
                async move { program.run(delivery).await }
            })
            .await?;
        output::note(ending(&summary));
        if summary.abandoned > 0 {
            return Err(
                CliFailure::new(Exit::Failed, format!("{} programs did not end in time", summary.abandoned)).into()
            );
        }
        Ok(Exit::Ok)
    }
}

fn ending(summary: &Summary) -> String {
    let why = if summary.end_of_work { "end of work" } else { "drained" };
    format!(
        "{why}: {} completed, {} failed, {} given back, {} lost",
        summary.completed,
        summary.failed,
        summary.released,
        summary.lost + summary.refused
    )
}

fn tell(event: &Event, verbose: bool) {
    match event {
        Event::Attached { node, reattached: true, .. } => output::note(format_args!("attached again, to {node}")),
        Event::Detached { error } => output::note(format_args!("the connection broke, trying again: {error}")),
        Event::Lost { lease, why } => output::note(format_args!("{lease} was lost: {why}")),
        Event::Settled { lease, result: Err(error), .. } => output::note(format_args!("{lease} was refused: {error}")),
        Event::Settled { lease, kind, result: Ok(()) } if verbose => output::note(format_args!("{lease}: {kind:?}")),
        Event::Started { lease } if verbose => output::note(format_args!("{lease}: started")),
        _ => {}
    }
}

/// Done at the first SIGTERM or SIGINT; a second one ends the process.
fn drain_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        output::note("draining: finishing what runs; again to end at once");
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
            std::process::exit(Exit::Failed as i32);
        });
    })
}

struct Program {
    command: String,
    run_timeout: Option<Duration>,
}

/// What a program left.
struct Ran {
    status: ExitStatus,
    output: Vec<u8>,
    /// The end of its standard error.
    complaint: String,
}

impl Program {
    async fn run(&self, delivery: Delivery) -> Result<Completion, Failure> {
        let child = self.spawn(&delivery).map_err(|error| Failure::new(format!("cannot run the program: {error}")))?;
        let timeout = self.run_timeout.unwrap_or(Duration::MAX);
        let cancelled = delivery.cancelled().clone();
        // Dropping the future kills the program.
        let ran = tokio::select! {
            ran = finish(child, delivery.package.payload.clone()) => ran?,
            () = cancelled.cancelled() => return Err(Failure::new("the lease was lost")),
            () = tokio::time::sleep(timeout), if self.run_timeout.is_some() => {
                return Err(Failure::new(format!("killed after {}", output::duration_text(timeout))).with_code("timeout"));
            }
        };
        ran.judge()
    }

    fn spawn(&self, delivery: &Delivery) -> std::io::Result<Child> {
        Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .env("WHARF_QUEUE", &delivery.package.queue)
            .env("WHARF_ID", &delivery.package.id)
            .env("WHARF_FENCE", delivery.fence.to_string())
            .env("WHARF_ATTEMPT", delivery.attempt.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C drains this process; programs that run may finish.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

impl Ran {
    fn judge(self) -> Result<Completion, Failure> {
        if self.output.len() as u64 > MAX_OUTPUT {
            return Err(Failure::new("the program wrote more than a result may ever have"));
        }
        if self.status.success() {
            return Ok(Completion::new(self.output));
        }
        let code = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit:{code}"),
            (None, signal) => format!("signal:{}", signal.unwrap_or_default()),
        };
        let message = if self.complaint.is_empty() { format!("the program ended with {code}") } else { self.complaint };
        Err(Failure::new(message).with_code(code))
    }
}

/// Feeds the program and takes what it writes, until it ends.
async fn finish(mut child: Child, payload: bytes::Bytes) -> Result<Ran, Failure> {
    // Killed with its whole group when this is dropped: sh alone would leave its children.
    let group = Group(child.id());
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A program need not read its payload.
            let _ = stdin.write_all(&payload).await;
        }
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (_, output, complaint, status) = tokio::join!(feed, read_all(stdout), pass_on(stderr), child.wait());
    group.release();
    let problem = |error: std::io::Error| Failure::new(format!("cannot follow the program: {error}"));
    Ok(Ran { status: status.map_err(problem)?, output: output.map_err(problem)?, complaint })
}

/// One byte more than allowed, at most: enough to tell that it is too much.
async fn read_all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut output = Vec::new();
    if let Some(from) = from {
        from.take(MAX_OUTPUT + 1).read_to_end(&mut output).await?;
    }
    Ok(output)
}

/// Copies standard error to ours and keeps its end for the failure's message.
async fn pass_on(from: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut from) = from else { return String::new() };
    let mut tail: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let _ = tokio::io::stderr().write_all(&buffer[..read]).await;
        tail.extend_from_slice(&buffer[..read]);
        let excess = tail.len().saturating_sub(limits::MAX_MESSAGE_BYTES);
        tail.drain(..excess);
    }
    String::from_utf8_lossy(&tail).trim().to_owned()
}

/// A process group that is killed when this is dropped.
struct Group(Option<u32>);

impl Group {
    fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| rustix::process::Pid::from_raw(pid as i32));
        if let Some(pid) = pid {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(command: &str, payload: &'static [u8]) -> Result<Completion, Failure> {
        let child = Command::new("sh")
            .arg("-c")
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        finish(child, bytes::Bytes::from_static(payload)).await?.judge()
    }

    #[tokio::test]
    async fn standard_output_is_the_result() {
        assert_eq!(run("tr a-z A-Z", b"hello").await.unwrap().result, "HELLO");
        // A program that reads nothing is fine, however large the payload.
        assert_eq!(run("echo ok", &[0; 1 << 20]).await.unwrap().result, "ok\n");
    }

    #[tokio::test]
    async fn any_other_exit_fails_with_the_end_of_standard_error() {
        let failure = run("echo partial; echo sorry >&2; exit 3", b"").await.unwrap_err();
        let told = format!("{failure:?}");
        assert!(told.contains("sorry") && told.contains("exit:3"), "{told}");
        let told = format!("{:?}", run("kill -9 $$", b"").await.unwrap_err());
        assert!(told.contains("signal:9"), "{told}");
    }

    #[tokio::test]
    async fn a_program_that_writes_too_much_fails() {
        let told = format!("{:?}", run("head -c 9000000 /dev/zero", b"").await.unwrap_err());
        assert!(told.contains("more than a result"), "{told}");
    }
}
