//! The command line: `serve`, the programs around it, and the operator's verbs.
//!
//! Invariants: verbs talk to a cluster only through [`crate::client`]; `health` asks one node's admin port. Data goes to standard
//! output, everything else to standard error. Exit codes are those of [`exit::Exit`], mapped from
//! errors in that one place. An error names the next command to run.

mod args;
mod bench;
mod cluster;
mod consent;
mod demo;
mod dev;
pub mod exit;
mod health;
mod history;
mod list;
pub mod local;
mod members;
mod output;
mod packages;
mod queues;
mod rows;
mod serve;
mod submit;
mod watch;
mod work;

use std::process::ExitCode;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::args::Target;
use self::exit::Exit;
use crate::types::limits;

/// Hands packages of work to workers, from a replicated cluster that loses nothing it confirmed.
#[derive(Parser, Debug)]
#[command(
    name = "wharf",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "\
Begin:
  wharf demo                       the main job, with a leader killed on the way
  wharf dev --nodes 3              a cluster on this machine, until Ctrl-C
  wharf queue create jobs          then, from another terminal:
  wharf submit jobs --payload hi   answers with the package's id
  wharf work --queue jobs --exec 'wc -c'

Exit codes: 0 ok, 1 failed, 2 usage, 3 not ready or check failed, 4 not found, 69 unreachable,
75 no leader or outcome unknown (try again), 77 denied, 78 bad configuration."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    target: Target,
    /// Ends this process when the process of that number, which started it, is gone.
    #[arg(long, global = true, hide = true, value_name = "PID")]
    die_with: Option<i32>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Demo(demo::Demo),
    #[command(hide = true)]
    DemoWorker(demo::DemoWorker),
    Serve(serve::Serve),
    Dev(dev::Dev),
    Bench(bench::Bench),
    Submit(submit::Submit),
    Get(packages::Get),
    List(list::List),
    Wait(packages::Wait),
    Cancel(packages::Cancel),
    Retry(packages::Retry),
    Purge(packages::Purge),
    History(history::HistoryVerb),
    Watch(watch::WatchVerb),
    Work(work::Work),
    Queue(queues::QueueVerb),
    Worker(cluster::WorkerVerb),
    Cluster(cluster::ClusterVerb),
    Check(cluster::Check),
    Health(health::Health),
    Config(serve::ConfigVerb),
    /// Write a shell's completion script.
    #[command(after_help = "Example:\n  wharf completion bash > /etc/bash_completion.d/wharf")]
    Completion {
        shell: clap_complete::Shell,
    },
}

impl Verb {
    /// Whether it calls a cluster that should be there already. A worker may be started before it.
    fn calls(&self) -> bool {
        let needs_none =
            matches!(self, Verb::Serve(_) | Verb::Dev(_) | Verb::Demo(_) | Verb::Bench(_) | Verb::Config(_));
        let waits = matches!(self, Verb::Work(_) | Verb::DemoWorker(_));
        !needs_none && !waits && !matches!(self, Verb::Completion { .. })
    }
}

/// Reads the arguments, runs the verb, tells what went wrong.
pub fn main() -> ExitCode {
    obey(&command().get_matches())
}

/// What the arguments may be.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the arguments say.
pub fn obey(matches: &ArgMatches) -> ExitCode {
    let told = Told {
        patient: matches.value_source("timeout") != Some(ValueSource::DefaultValue),
        addr: matches.value_source("addr") == Some(ValueSource::CommandLine),
    };
    let cli = Cli::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
    match run(cli, told) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = exit::of(&error);
            if exit != Exit::Ok {
                output::note(format_args!("wharf: {error:#}"));
                if let Some(next) = exit::next(&error) {
                    output::note(format_args!("try: {next}"));
                }
            }
            exit.into()
        }
    }
}

/// What was said, though it may be as the default is.
#[derive(Clone, Copy)]
struct Told {
    /// A `--timeout`: a cluster that is about to start is waited for.
    patient: bool,
    /// An `--addr`, on the command line itself.
    addr: bool,
}

/// Half of the processors, for the other half has the log's thread and the kernel's network to carry:
/// measured in `benches/README.md`. `TOKIO_WORKER_THREADS` sets another number.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        builder.worker_threads(processors.div_ceil(2));
    }
    builder.enable_all().build()
}

fn run(cli: Cli, told: Told) -> anyhow::Result<Exit> {
    if let Some(parent) = cli.die_with {
        local::die_with(parent)?;
    }
    let runtime = runtime()?;
    let exit = runtime.block_on(async move {
        if !told.patient && cli.verb.calls() {
            let within = Duration::from_millis(limits::CLIENT_REFUSED_MS);
            cli.target.client()?.check_reachable(within).await?;
        }
        dispatch(cli.verb, &cli.target, told).await
    });
    // A verb is over when its answer is there; a blocked read of standard input is not waited for.
    runtime.shutdown_background();
    exit
}

async fn dispatch(verb: Verb, target: &Target, told: Told) -> anyhow::Result<Exit> {
    let client = || target.client();
    match verb {
        Verb::Serve(verb) => verb.run().await,
        Verb::Dev(verb) => verb.run().await,
        Verb::Bench(verb) => verb.run(target, told.addr).await,
        Verb::Demo(verb) => verb.run().await,
        Verb::DemoWorker(verb) => verb.run(&client()?).await,
        Verb::Submit(verb) => verb.run(&client()?).await,
        Verb::Get(verb) => verb.run(&client()?).await,
        Verb::List(verb) => verb.run(&client()?).await,
        Verb::Wait(verb) => verb.run(&client()?).await,
        Verb::Cancel(verb) => verb.run(&client()?).await,
        Verb::Retry(verb) => verb.run(&client()?).await,
        Verb::Purge(verb) => verb.run(&client()?).await,
        Verb::History(verb) => verb.run(&client()?, target).await,
        Verb::Watch(verb) => verb.run(&client()?).await,
        Verb::Work(verb) => verb.run(&client()?).await,
        Verb::Queue(verb) => verb.run(&client()?).await,
        Verb::Worker(verb) => verb.run(&client()?).await,
        Verb::Cluster(verb) => verb.run(&client()?, target).await,
        Verb::Check(verb) => verb.run(&client()?, target).await,
        Verb::Health(verb) => verb.run().await,
        Verb::Config(verb) => verb.run(),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "wharf", &mut std::io::stdout());
            Ok(Exit::Ok)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
