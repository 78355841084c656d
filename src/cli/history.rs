//! `wharf history`.

use clap::Args;

use super::args::{self, Output, Target};
use super::exit::Exit;
use super::output::{self, Format};
use super::rows;
use crate::client::{Client, History, HistoryGap, HistoryQuery};
use crate::env::Env;

/// Show what a node remembers of finished packages, newest first.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf history jobs --since 1h
  wharf history jobs --id 0190a…                with its attempts
  wharf history jobs --since 2030-01-31T08:00:00Z --limit 0 -o jsonl
  wharf history jobs --at 10.0.0.2:7411         what that node remembers

Each queue says what is remembered (its setting `history`), each node for how long (`history.keep`).")]
pub struct HistoryVerb {
    /// The queue, `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    queue: String,
    /// Only this package.
    #[arg(long, default_value = "", hide_default_value = true)]
    id: String,
    /// Finished since: a time, or how long ago.
    #[arg(long, value_name = "TIME|DURATION", value_parser = time_or_ago)]
    since: Option<When>,
    /// Finished before: a time, or how long ago.
    #[arg(long, value_name = "TIME|DURATION", value_parser = time_or_ago)]
    until: Option<When>,
    /// At most so many; 0: all.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// Ask this node, not whichever serves.
    #[arg(long, value_name = "HOST:PORT", value_parser = args::addr)]
    at: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug)]
enum When {
    At(prost_types::Timestamp),
    Ago(std::time::Duration),
}

fn time_or_ago(text: &str) -> Result<When, String> {
    let at = args::timestamp(text).map(When::At);
    let ago = || args::duration(text).map(When::Ago);
    at.or_else(|_| ago()).map_err(|_| "write a time as in 2030-01-31T08:00:00Z, or how long ago, as in 1h".into())
}

impl When {
    fn time(self) -> prost_types::Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(ago) => {
                let ms = Env::real().clock.wall().0.saturating_sub(ago.as_millis() as u64);
                prost_types::Timestamp { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
            }
        }
    }
}

impl HistoryVerb {
    pub async fn run(self, client: &Client, target: &Target) -> anyhow::Result<Exit> {
        let client = match &self.at {
            Some(at) => Client::builder(at).timeout(target.timeout).follow_leader(false).build()?,
            None => client.clone(),
        };
        let mut query = HistoryQuery {
            queue: self.queue.clone(),
            id: self.id.clone(),
            since: self.since.map(When::time),
            until: self.until.map(When::time),
            ..HistoryQuery::default()
        };
        let mut entries = Vec::new();
        let last = loop {
            let left = if self.limit == 0 { usize::MAX } else { self.limit - entries.len() };
            query.page_size = left.min(crate::types::limits::HISTORY_PAGE) as u32;
            let page = client.list_history(query.clone()).await?;
            let more = !page.next_page_token.is_empty();
            query.page_token.clone_from(&page.next_page_token);
            entries.extend(page.entries.iter().cloned().map(rows::Ended::from));
            if !more || (self.limit > 0 && entries.len() >= self.limit) {
                break page;
            }
        };
        output::list(self.output.output, &entries)?;
        if self.output.output == Format::Table && !self.id.is_empty() {
            for entry in &entries {
                output::line("")?;
                output::list(Format::Table, &entry.attempts_made)?;
            }
        }
        let more = if last.next_page_token.is_empty() { "" } else { "; there is more: --limit 0 shows all" };
        output::note(format_args!("as node {} remembers, up to revision {}{more}", last.node, last.covered_revision));
        last.gaps.iter().for_each(note_gap);
        if entries.is_empty() {
            self.explain_nothing(&client).await;
        }
        Ok(Exit::Ok)
    }

    /// Nothing was found: perhaps the queue does not want it, or there is none.
    async fn explain_nothing(&self, client: &Client) {
        let queue = &self.queue;
        match client.get_queue(queue).await {
            Ok(found) => match found.settings.unwrap_or_default().history() {
                History::All | History::Unspecified => {}
                History::Failures => output::note(format_args!(
                    "`{queue}` has only failures remembered; for all: wharf queue update {queue} --history all"
                )),
                History::None => output::note(format_args!(
                    "`{queue}` has nothing remembered; to change that: wharf queue update {queue} --history all"
                )),
            },
            Err(error) if error.is_not_found() => output::note(format_args!("there is no queue `{queue}` now")),
            // What was asked for was answered.
            Err(_) => {}
        }
    }
}

fn note_gap(gap: &HistoryGap) {
    let time = gap.time.and_then(output::time).unwrap_or_default();
    let HistoryGap { from_revision, to_revision, .. } = gap;
    output::note(format_args!("nothing is known of revisions {from_revision} to {to_revision} (noticed {time})"));
}
