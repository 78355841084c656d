//! `wharf watch`.

use std::io::Write;

use clap::Args;

use super::args::{self, AnyState, Output};
use super::exit::{Exit, Failure};
use super::output::{self, Format};
use super::rows;
use crate::client::{self, Client, State, Watch};

/// Tell what happens to packages, until Ctrl-C. Goes on by itself over failures of nodes.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf watch jobs
  wharf watch jobs --state dead --state expired -o jsonl | jq .package.id
  wharf watch --all --id-prefix invoice-
  wharf watch jobs --from 4711              what happened since, if a node still knows")]
pub struct WatchVerb {
    /// The queue, `name` or `namespace/name`.
    #[arg(value_parser = args::queue, required_unless_present = "all")]
    queue: Option<String>,
    /// Every queue.
    #[arg(long, conflicts_with = "queue")]
    all: bool,
    /// Only changes to this state; may be given several times.
    #[arg(long = "state", value_enum, ignore_case = true)]
    states: Vec<AnyState>,
    /// Only packages whose id begins so.
    #[arg(long, default_value = "", value_name = "PREFIX", hide_default_value = true)]
    id_prefix: String,
    /// From this revision on instead of from now.
    #[arg(long, default_value_t = 0, value_name = "REVISION", hide_default_value = true)]
    from: u64,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    output: Output,
}

impl WatchVerb {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        if let Some(queue) = &self.queue {
            // A watch waits for what may come; a wrong name would wait for ever.
            client.get_queue(queue).await?;
        }
        let states: Vec<State> = self.states.iter().copied().map(AnyState::state).collect();
        let queue = self.queue.as_deref().unwrap_or_default();
        let mut watch =
            client.watch(queue).with_states(&states).with_id_prefix(&self.id_prefix).from_revision(self.from);
        if self.output.output == Format::Table {
            output::line(rows::Event::HEAD)?;
        }
        let mut left = self.count;
        while left != Some(0) {
            let event = tokio::select! {
                event = watch.next() => event.map_err(|error| self.explain(error, &watch))?,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    output::note(format_args!("to go on: {}", self.again(watch.resume_revision())));
                    return Ok(Exit::Ok);
                }
            };
            let event = rows::Event::from(event);
            match self.output.output {
                Format::Table => output::line(event.line())?,
                Format::Json | Format::Jsonl => output::object(&event)?,
            }
            std::io::stdout().flush()?;
            left = left.map(|left| left - 1);
        }
        Ok(Exit::Ok)
    }

    /// The command that goes on at this revision.
    fn again(&self, revision: u64) -> String {
        let queue = self.queue.as_deref().unwrap_or("--all");
        format!("wharf watch {queue} --from {revision}")
    }

    fn explain(&self, error: client::Error, watch: &Watch) -> anyhow::Error {
        let next = match error.metadata().get("oldest_revision").and_then(|oldest| oldest.parse().ok()) {
            Some(oldest) => self.again(oldest),
            None => self.again(watch.resume_revision()),
        };
        let failure = Failure::new(super::exit::of_client(&error), error.to_string());
        failure.next(next).into()
    }
}
