//! `wharf list`.

use clap::Args;

use super::args::{self, AnyState, Output};
use super::exit::Exit;
use super::output::Format;
use super::{output, rows};
use crate::client::Client;
use crate::types::limits;

/// List packages of a queue in the order of their submit, without payloads.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf list jobs
  wharf list jobs --state dead
  wharf list jobs --state ready --state scheduled --kind mail --label user=42
  wharf list jobs --limit 0 -o jsonl | jq -r .id

Packages may move meanwhile: what is there all the time is shown once, nothing is shown twice.")]
pub struct List {
    /// The queue, `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    queue: String,
    /// Only in this state; may be given several times.
    #[arg(long = "state", value_enum, ignore_case = true)]
    states: Vec<AnyState>,
    /// Only of this kind.
    #[arg(long, default_value = "", hide_default_value = true)]
    kind: String,
    /// Only with this label; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::label)]
    labels: Vec<(String, String)>,
    /// At most so many; 0: all.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// Read the node that answers, whether it lags or not.
    #[arg(long)]
    stale_ok: bool,
    #[command(flatten)]
    output: Output,
}

impl List {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let limit = if self.limit == 0 { usize::MAX } else { self.limit };
        // One more than is shown tells whether there are more.
        let page = limit.saturating_add(1).min(limits::MAX_LIST_PAGE) as u32;
        let mut listing =
            client.list_packages(&self.queue).states(self.states.into_iter().map(AnyState::state)).page_size(page);
        listing = listing.kind(self.kind);
        for (key, value) in self.labels {
            listing = listing.label(key, value);
        }
        if self.stale_ok {
            listing = listing.stale_ok();
        }
        let (mut shown, mut more) = (0, false);
        let mut held: Vec<rows::Package> = Vec::new();
        while let Some(packages) = listing.page().await? {
            let room = limit - shown;
            more = packages.len() > room;
            for package in packages.into_iter().take(room) {
                shown += 1;
                let row = rows::Package::from(package);
                match self.output.output {
                    Format::Jsonl => output::object(&row)?,
                    _ => held.push(row),
                }
            }
            if more {
                break;
            }
        }
        if self.output.output != Format::Jsonl {
            output::list(self.output.output, &held)?;
        }
        if more {
            output::note(format_args!("there are more than {limit}: --limit 0 shows all"));
        }
        Ok(Exit::Ok)
    }
}
