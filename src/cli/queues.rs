//! `wharf queue …`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::args::{self, Output};
use super::consent::{self, Consent};
use super::exit::{Exit, Failure};
use super::{output, rows};
use crate::client::{self, BackoffSettings, Client, QueueSettings};

/// Create, look at and steer queues.
#[derive(Args, Debug)]
pub struct QueueVerb {
    #[command(subcommand)]
    verb: Verbs,
}

#[derive(Subcommand, Debug)]
enum Verbs {
    Create(Create),
    List(List),
    Show(Show),
    Update(Update),
    /// Take no new packages from outside; work goes on. `wait` tells when all is done.
    Seal(Named),
    /// Take new packages again.
    Unseal(Named),
    /// Hand out no packages; submits go on.
    Pause(Named),
    /// Hand out packages again.
    Resume(Named),
    Wait(Wait),
    Delete(Delete),
    Redrive(Redrive),
}

#[derive(Args, Debug)]
struct Named {
    /// `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    name: String,
    /// Only if the queue is at this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// Create a queue. The same name with the same settings answers as the first time.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf queue create jobs
  wharf queue create mail --lease 30s --max-attempts 3 --dead-letter-queue mail-dead
  wharf queue create team-a/jobs --max-packages 1000000")]
struct Create {
    /// `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    name: String,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    output: Output,
}

/// Change settings of a queue; what is not named stays.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf queue update jobs --lease 2m --max-attempts 3
  wharf queue update jobs --max-in-flight 0           takes the cap away
  wharf queue update jobs --keep-finished 24h --if-revision 42")]
struct Update {
    /// `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Only if the queue is at this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// List queues with their depths.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf queue list
  wharf queue list team-a/ -o jsonl | jq -r 'select(.stats.dead > 0).name'")]
struct List {
    /// Only names that begin so, as in `team-a/`.
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    #[command(flatten)]
    output: Output,
}

/// Show a queue with its settings.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf queue show jobs
  wharf queue show jobs -o json | jq .stats.ready")]
struct Show {
    /// `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    name: String,
    #[command(flatten)]
    output: Output,
}

/// Wait until a sealed queue has nothing scheduled, ready or leased; print the counts.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wharf queue seal jobs && wharf queue wait jobs --within 10m")]
struct Wait {
    /// `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    name: String,
    /// Give up after this; exit 75.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = args::duration)]
    within: Duration,
    #[command(flatten)]
    output: Output,
}

/// Delete a queue. Without --force it must hold nothing scheduled, ready, leased or dead.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf queue delete jobs --dry-run            tells what would go with it
  wharf queue delete jobs
  wharf queue delete jobs --force --yes        with everything in it, and asks nobody")]
struct Delete {
    /// `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    name: String,
    /// With everything in it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: Consent,
}

/// Submit DEAD packages of a queue to another, or dead letters back to where they came from.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf queue redrive jobs                     its DEAD packages are tried again
  wharf queue redrive mail-dead                dead letters go back to their queues
  wharf queue redrive mail-dead --to inspect --max 10")]
struct Redrive {
    /// The queue with the dead packages, or the dead-letter queue.
    #[arg(value_parser = args::queue)]
    from: String,
    /// Where to; back to where they came from if not given.
    #[arg(long, value_parser = args::queue)]
    to: Option<String>,
    /// At most so many; 0: all.
    #[arg(long, default_value_t = 0, value_name = "N")]
    max: u64,
}

/// What a queue can be set to. What is not given has the default, or stays as it is.
#[derive(Args, Debug)]
struct Settings {
    /// How long a worker may hold a package without extending [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    lease: Option<Duration>,
    /// Caps a lease with all its extensions.
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    max_run: Option<Duration>,
    /// Attempts before a package is dead [default: 5]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Pause before the first retry [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    backoff_initial: Option<Duration>,
    /// Longest pause before a retry [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    backoff_max: Option<Duration>,
    /// Each pause is so many times the one before, 1 to 16 [default: 2]
    #[arg(long, value_name = "N")]
    backoff_multiplier: Option<f64>,
    /// Where copies of dead packages go.
    #[arg(long, value_name = "QUEUE", value_parser = args::queue)]
    dead_letter_queue: Option<String>,
    /// Packages that are not finished, and dead ones.
    #[arg(long, value_name = "N")]
    max_packages: Option<u64>,
    /// Their bytes.
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    max_bytes: Option<u64>,
    /// Bytes of one payload [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    max_payload: Option<u64>,
    /// Bytes of one result [default: 1MiB]
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    max_result: Option<u64>,
    /// Packages leased at once over all workers; 0: no cap.
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u32>,
    /// How long finished packages stay [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    keep_finished: Option<Duration>,
    /// How many finished packages stay [default: 10000]
    #[arg(long, value_name = "N")]
    keep_finished_count: Option<u64>,
    /// How many bytes of them [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    keep_finished_bytes: Option<u64>,
    /// How long an id is remembered once its package is gone [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    dedup_window: Option<Duration>,
    /// Finished packages that the history keeps [default: failures]
    #[arg(long, value_enum)]
    history: Option<History>,
    /// Priority of packages that set none, 0 to 9 [default: 4]
    #[arg(long, value_name = "0-9", value_parser = args::priority)]
    default_priority: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum History {
    None,
    Failures,
    All,
}

impl QueueVerb {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        match self.verb {
            Verbs::Create(verb) => {
                let queue = client.create_queue(&verb.name, verb.settings.build()).await?;
                show(verb.output, queue)?;
            }
            Verbs::Update(verb) => return verb.run(client).await,
            Verbs::List(verb) => {
                let queues = client.list_queues(&verb.prefix).await?;
                let rows: Vec<rows::Queue> = queues.into_iter().map(Into::into).collect();
                output::list(verb.output.output, &rows)?;
            }
            Verbs::Show(verb) => show(verb.output, client.get_queue(&verb.name).await?)?,
            Verbs::Seal(verb) => show(verb.output, client.seal_queue(&verb.name, verb.if_revision).await?)?,
            Verbs::Unseal(verb) => show(verb.output, client.unseal_queue(&verb.name, verb.if_revision).await?)?,
            Verbs::Pause(verb) => show(verb.output, client.pause_queue(&verb.name, verb.if_revision).await?)?,
            Verbs::Resume(verb) => show(verb.output, client.resume_queue(&verb.name, verb.if_revision).await?)?,
            Verbs::Wait(verb) => return verb.run(client).await,
            Verbs::Delete(verb) => verb.run(client).await?,
            Verbs::Redrive(verb) => {
                let to = verb.to.unwrap_or_default();
                output::line(client.redrive_queue(&verb.from, &to, verb.max).await?)?;
                output::note("packages redriven");
            }
        }
        Ok(Exit::Ok)
    }
}

impl Update {
    async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let paths = self.settings.paths();
        if paths.is_empty() {
            let failure = Failure::new(Exit::Usage, "nothing to change");
            return Err(failure.next("wharf queue update --help").into());
        }
        // A backoff is set whole: what is not given of it is kept by reading it first.
        let mut settings = self.settings.build();
        if let Some(backoff) = &mut settings.backoff {
            let current = client.get_queue(&self.name).await?.settings.and_then(|s| s.backoff).unwrap_or_default();
            backoff.initial = backoff.initial.or(current.initial);
            backoff.max = backoff.max.or(current.max);
            backoff.multiplier = backoff.multiplier.or(current.multiplier);
        }
        let queue = client.update_queue(&self.name, settings, &paths, self.if_revision).await?;
        show(self.output, queue)?;
        Ok(Exit::Ok)
    }
}

impl Delete {
    async fn run(self, client: &Client) -> anyhow::Result<()> {
        let stats = client.get_queue(&self.name).await?.stats.unwrap_or_default();
        let open = stats.scheduled + stats.ready + stats.leased + stats.dead;
        let what = format!(
            "delete queue {} with {} that are not done or dead, and all it keeps",
            self.name,
            consent::packages(open)
        );
        if self.consent.dry_run {
            output::note(format_args!("this would {what}"));
            if open > 0 && !self.force {
                output::note("it needs --force");
            }
            return Ok(());
        }
        if open > 0 && !self.force {
            let message = format!("{} still holds {}", self.name, consent::packages(open));
            let next = format!("wharf queue delete {} --force, or wharf list {}", self.name, self.name);
            return Err(Failure::new(Exit::Failed, message).next(next).into());
        }
        self.consent.ask(&what)?;
        client.delete_queue(&self.name, self.force).await?;
        output::note(format_args!("{} is deleted", self.name));
        Ok(())
    }
}

impl Wait {
    async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let queue = client.get_queue(&self.name).await?;
        if !queue.sealed {
            output::note(format_args!(
                "{} is not sealed, so it cannot end; from elsewhere: wharf queue seal {}",
                self.name, self.name
            ));
        }
        show(self.output, client.wait_queue(&self.name, self.within).await?)?;
        Ok(Exit::Ok)
    }
}

impl Settings {
    fn build(&self) -> QueueSettings {
        let duration = |duration: Option<Duration>| duration.map(args::proto_duration);
        let backoff = self.has_backoff().then(|| BackoffSettings {
            initial: duration(self.backoff_initial),
            max: duration(self.backoff_max),
            multiplier: self.backoff_multiplier,
        });
        let history = self.history.map_or(client::History::Unspecified, |history| match history {
            History::None => client::History::None,
            History::Failures => client::History::Failures,
            History::All => client::History::All,
        });
        QueueSettings {
            lease: duration(self.lease),
            max_run: duration(self.max_run),
            max_attempts: self.max_attempts,
            backoff,
            dead_letter_queue: self.dead_letter_queue.clone().unwrap_or_default(),
            max_packages: self.max_packages,
            max_bytes: self.max_bytes,
            max_payload: self.max_payload,
            max_result: self.max_result,
            max_in_flight: self.max_in_flight,
            keep_finished: duration(self.keep_finished),
            keep_finished_count: self.keep_finished_count,
            keep_finished_bytes: self.keep_finished_bytes,
            dedup_window: duration(self.dedup_window),
            history: history.into(),
            default_priority: self.default_priority,
        }
    }

    /// The paths of what is given, as an update names them.
    fn paths(&self) -> Vec<&'static str> {
        let given = [
            ("lease", self.lease.is_some()),
            ("max_run", self.max_run.is_some()),
            ("max_attempts", self.max_attempts.is_some()),
            ("backoff", self.has_backoff()),
            ("dead_letter_queue", self.dead_letter_queue.is_some()),
            ("max_packages", self.max_packages.is_some()),
            ("max_bytes", self.max_bytes.is_some()),
            ("max_payload", self.max_payload.is_some()),
            ("max_result", self.max_result.is_some()),
            ("max_in_flight", self.max_in_flight.is_some()),
            ("keep_finished", self.keep_finished.is_some()),
            ("keep_finished_count", self.keep_finished_count.is_some()),
            ("keep_finished_bytes", self.keep_finished_bytes.is_some()),
            ("dedup_window", self.dedup_window.is_some()),
            ("history", self.history.is_some()),
            ("default_priority", self.default_priority.is_some()),
        ];
        given.into_iter().filter_map(|(path, given)| given.then_some(path)).collect()
    }

    fn has_backoff(&self) -> bool {
        self.backoff_initial.is_some() || self.backoff_max.is_some() || self.backoff_multiplier.is_some()
    }
}

fn show(output: Output, queue: client::Queue) -> std::io::Result<()> {
    output::one(output.output, &rows::Queue::from(queue))
}
