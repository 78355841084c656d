//! `wharf get | wait | cancel | retry | purge`.

use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::args::{self, Output};
use super::consent::{self, Consent};
use super::exit::{self, Exit, Failure};
use super::{output, rows};
use crate::client::{self, Client, State};

/// Names one package.
#[derive(Args, Debug)]
struct Named {
    /// The queue, `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    queue: String,
    /// The package's id.
    id: String,
}

/// Show a package.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf get jobs 0190a…
  wharf get jobs 0190a… -o json | jq .state
  wharf get jobs 0190a… --result > result.bin")]
pub struct Get {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    raw: Raw,
    #[command(flatten)]
    output: Output,
}

/// Bytes as they are, for pipes.
#[derive(Args, Debug)]
#[group(multiple = false)]
struct Raw {
    /// Write only the payload, byte for byte.
    #[arg(long)]
    payload: bool,
    /// Write only the result, byte for byte.
    #[arg(long)]
    result: bool,
}

/// Wait until a package is finished; exit 0 if it was completed, 1 if it ended otherwise.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf wait jobs 0190a… --within 5m
  wharf wait jobs \"$(wharf submit jobs --payload hi)\" --result")]
pub struct Wait {
    #[command(flatten)]
    named: Named,
    /// Give up after this; exit 75.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = args::duration)]
    within: Duration,
    #[command(flatten)]
    raw: Raw,
    #[command(flatten)]
    output: Output,
}

/// Cancel packages that are not finished; a worker that holds one is told to stop.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf cancel jobs 0190a… --reason 'ordered twice'
  wharf cancel jobs 0190a… 0190b… --dry-run      tells which would be cancelled
  wharf list jobs --kind mail --limit 0 -o jsonl | jq -r .id | xargs wharf cancel jobs --yes

More than one at a time are cancelled only after a question, or with --yes.")]
pub struct Cancel {
    /// The queue, `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    queue: String,
    /// The packages' ids.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// For people, kept with the package.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Only if the package is at this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    output: Output,
}

/// Put a DEAD package back to READY, its attempts reset.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf retry jobs 0190a…
  wharf list jobs --state dead -o jsonl | jq -r .id | xargs -n 1 wharf retry jobs

For many at once: wharf queue redrive jobs")]
pub struct Retry {
    #[command(flatten)]
    named: Named,
    /// Only if the package is at this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// Remove packages of a queue by state. Leased ones are never purged.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf purge jobs --state dead --dry-run      tells how many
  wharf purge jobs --state dead --state completed
  wharf purge jobs --all --yes                 asks nobody

What --dry-run counts is what the purge then takes, unless packages move meanwhile.")]
pub struct Purge {
    /// The queue, `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    queue: String,
    /// Which; may be given several times.
    #[arg(long = "state", value_enum, ignore_case = true, required_unless_present = "all")]
    states: Vec<Purgeable>,
    /// Every state but leased.
    #[arg(long, conflicts_with = "states")]
    all: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Purgeable {
    Scheduled,
    Ready,
    Completed,
    Dead,
    Cancelled,
    Expired,
}

impl Get {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let package = client.get_package(&self.named.queue, &self.named.id).await?;
        self.raw.print(package, self.output)?;
        Ok(Exit::Ok)
    }
}

impl Wait {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let Named { queue, id } = &self.named;
        let package = client.wait_package(queue, id, self.within).await?;
        let state = package.state();
        if state != State::Completed {
            let failure = Failure::new(Exit::Failed, format!("{queue}/{id} ended as {}", rows::state(state)));
            output::one(self.output.output, &rows::Package::from(package))?;
            return Err(failure.next(format!("wharf get {queue} {id}")).into());
        }
        self.raw.print(package, self.output)?;
        Ok(Exit::Ok)
    }
}

impl Cancel {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        if self.consent.dry_run {
            return self.show(client).await;
        }
        let [id] = self.ids.as_slice() else { return self.many(client).await };
        let package = client.cancel_package(&self.queue, id, &self.reason, self.if_revision).await?;
        output::one(self.output.output, &rows::Package::from(package))?;
        Ok(Exit::Ok)
    }

    /// What would be cancelled, as it is now.
    async fn show(&self, client: &Client) -> anyhow::Result<Exit> {
        let mut found = Vec::new();
        for id in &self.ids {
            let package = client.get_package(&self.queue, id).await?;
            match package.state() {
                State::Scheduled | State::Ready | State::Leased => found.push(rows::Package::from(package)),
                state => output::note(format_args!("{id} is {} already", rows::state(state))),
            }
        }
        output::list(self.output.output, &found)?;
        output::note(format_args!("{} would be cancelled", consent::packages(found.len() as u64)));
        Ok(Exit::Ok)
    }

    /// One that cannot be cancelled does not keep the others.
    async fn many(&self, client: &Client) -> anyhow::Result<Exit> {
        self.consent.ask(&format!("cancel {} of {}", consent::packages(self.ids.len() as u64), self.queue))?;
        let mut cancelled = Vec::new();
        let mut refused = None;
        for id in &self.ids {
            match client.cancel_package(&self.queue, id, &self.reason, self.if_revision).await {
                Ok(package) => cancelled.push(rows::Package::from(package)),
                Err(error) => {
                    output::note(format_args!("{id}: {error}"));
                    refused.get_or_insert(error);
                }
            }
        }
        output::list(self.output.output, &cancelled)?;
        let Some(first) = refused else { return Ok(Exit::Ok) };
        let message = format!("{} of {} were not cancelled", self.ids.len() - cancelled.len(), self.ids.len());
        Err(Failure::new(exit::of_client(&first), message).next(format!("wharf list {}", self.queue)).into())
    }
}

impl Retry {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let package = client.retry_package(&self.named.queue, &self.named.id, self.if_revision).await?;
        output::one(self.output.output, &rows::Package::from(package))?;
        Ok(Exit::Ok)
    }
}

impl Purge {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let states: Vec<State> = self.states.into_iter().map(Purgeable::state).collect();
        let count = client.purge_packages(&self.queue, &states, true).await?;
        if self.consent.dry_run {
            output::line(count)?;
            output::note("packages would be purged");
            return Ok(Exit::Ok);
        }
        if count > 0 {
            self.consent.ask(&format!("purge {} of {} for good", consent::packages(count), self.queue))?;
        }
        output::line(client.purge_packages(&self.queue, &states, false).await?)?;
        output::note("packages purged");
        Ok(Exit::Ok)
    }
}

impl Purgeable {
    fn state(self) -> State {
        match self {
            Self::Scheduled => State::Scheduled,
            Self::Ready => State::Ready,
            Self::Completed => State::Completed,
            Self::Dead => State::Dead,
            Self::Cancelled => State::Cancelled,
            Self::Expired => State::Expired,
        }
    }
}

impl Raw {
    fn print(&self, package: client::Package, output: Output) -> anyhow::Result<()> {
        let bytes = match self {
            Self { payload: true, .. } => &package.payload,
            Self { result: true, .. } => &package.result,
            _ => return Ok(output::one(output.output, &rows::Package::from(package))?),
        };
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        Ok(())
    }
}
