//! `wharf submit`: one package from a flag or a file, or one for each line, in a pipeline.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use indicatif::ProgressBar;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use super::args::{self, Output};
use super::exit::{self, Exit, Failure};
use super::output::Format;
use super::{output, rows};
use crate::client::{self, Client, NewPackage, Ticket};
use crate::types::limits;

/// How many refusals of a pipeline are told one by one.
const REFUSALS_TOLD: u64 = 5;
/// Lines that were read and not submitted.
const LINES_WAITING: usize = 64;

/// Submit packages to a queue.
#[derive(Args, Debug)]
#[command(after_help = "\
Answers once a quorum of nodes has the package on disk, with its id on standard output; with --lines,
the ids of what was taken, in the order of the lines.

Examples:
  wharf submit jobs --payload hello
  wharf submit jobs --file photo.jpg --priority 9 --label user=42
  wharf submit jobs --payload later --delay 10m --ttl 1h
  seq 100000 | wharf submit jobs --lines
  wharf submit jobs --lines --id-prefix import-7 < rows.txt     safe to run again

The same --id again with the same content is answered as the first time; with other content it is
refused. With --id-prefix, line N gets the id PREFIX-N.")]
pub struct Submit {
    /// The queue, `name` or `namespace/name`.
    #[arg(value_parser = args::queue)]
    queue: String,
    #[command(flatten)]
    source: Source,
    /// Unique in the queue; a new UUID if not given.
    #[arg(long, conflicts_with = "lines")]
    id: Option<String>,
    /// With --lines: line N gets the id PREFIX-N.
    #[arg(long, requires = "lines", value_name = "PREFIX")]
    id_prefix: Option<String>,
    /// Workers may ask for certain kinds only.
    #[arg(long, default_value = "", hide_default_value = true)]
    kind: String,
    /// 0 to 9, 9 first; the queue's default if not given.
    #[arg(long, value_name = "0-9", value_parser = args::priority)]
    priority: Option<u32>,
    /// Not due before this much time has passed.
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    delay: Option<Duration>,
    /// Not due before this time, as in 2030-01-31T08:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = args::timestamp, conflicts_with = "delay")]
    not_before: Option<prost_types::Timestamp>,
    /// Expires after this unless a worker has it by then.
    #[arg(long, value_name = "DURATION", value_parser = args::duration)]
    ttl: Option<Duration>,
    /// Leases that may count before it is dead; the queue's default if not given.
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// May be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = args::label)]
    labels: Vec<(String, String)>,
    /// What the payload is, as in application/json.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TYPE")]
    content_type: String,
    /// Wait until the package is finished and write its result.
    #[arg(long, conflicts_with = "lines")]
    wait: bool,
    /// With --wait: give up after this.
    #[arg(long, requires = "wait", default_value = "1h", value_name = "DURATION", value_parser = args::duration)]
    within: Duration,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Source {
    /// The payload as text.
    #[arg(long, value_name = "TEXT")]
    payload: Option<String>,
    /// A file with the payload; - is standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// One package for each line of standard input.
    #[arg(long)]
    lines: bool,
}

impl Submit {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        if self.source.lines {
            return self.lines(client, tokio::io::stdin()).await;
        }
        let payload = match (&self.source.payload, &self.source.file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(file)) => args::read_payload(file)?,
            (None, None) => Vec::new(),
        };
        // An id from here makes the call safe to repeat, and names the package if nobody answers.
        let id = self.id.clone().unwrap_or_else(|| client.mint_id());
        let package = self.package(payload, Some(id.clone()));
        let taken = client.submit(package).await.map_err(|error| self.explain(error, &id))?;
        if self.wait {
            return self.await_result(client, &taken.id).await;
        }
        match self.output.output {
            Format::Table => output::line(&taken.id)?,
            format => output::one(format, &rows::Submitted::from(taken))?,
        }
        Ok(Exit::Ok)
    }

    async fn await_result(&self, client: &Client, id: &str) -> anyhow::Result<Exit> {
        output::note(format_args!("submitted {id}"));
        let package = client.wait_package(&self.queue, id, self.within).await?;
        let state = package.state();
        if state != client::State::Completed {
            let failure = Failure::new(Exit::Failed, format!("{}/{id} ended as {}", self.queue, rows::state(state)));
            return Err(failure.next(format!("wharf get {} {id}", self.queue)).into());
        }
        match self.output.output {
            Format::Table => std::io::Write::write_all(&mut std::io::stdout().lock(), &package.result)?,
            format => output::one(format, &rows::Package::from(package))?,
        }
        Ok(Exit::Ok)
    }

    /// One package a line. What was refused does not stop the rest.
    async fn lines(&self, client: &Client, input: impl AsyncRead + Send + Unpin + 'static) -> anyhow::Result<Exit> {
        let bar = output::bar(None, "submitted");
        let submitter = client.submitter().build();
        let mut lines = read_lines(input);
        let mut more = true;
        let mut open = FuturesOrdered::new();
        let mut tally = Tally { format: self.output.output, ..Tally::default() };
        let mut number = 0_u64;
        while more || !open.is_empty() {
            tokio::select! {
                Some((id, result)) = open.next() => tally.count(self, id, result, &bar)?,
                line = lines.recv(), if more && open.len() < limits::CLIENT_SUBMIT_WINDOW => match line {
                    Some(line) => {
                        number += 1;
                        let id = match &self.id_prefix {
                            Some(prefix) => format!("{prefix}-{number}"),
                            None => client.mint_id(),
                        };
                        let ticket = submitter.submit(self.package(line?, Some(id.clone()))).await?;
                        open.push_back(answer(id, ticket));
                    }
                    None => more = false,
                },
            }
        }
        submitter.close().await;
        bar.finish_and_clear();
        tally.end(self)
    }

    fn package(&self, payload: Vec<u8>, id: Option<String>) -> NewPackage {
        use crate::proto::v1::new_package::{Expiry, Schedule};
        NewPackage {
            queue: self.queue.clone(),
            id: id.unwrap_or_default(),
            kind: self.kind.clone(),
            payload: payload.into(),
            content_type: self.content_type.clone(),
            labels: self.labels.iter().cloned().collect(),
            priority: self.priority,
            schedule: match (self.delay, self.not_before) {
                (Some(delay), _) => Some(Schedule::Delay(args::proto_duration(delay))),
                (None, at) => at.map(Schedule::NotBefore),
            },
            expiry: self.ttl.map(|ttl| Expiry::Ttl(args::proto_duration(ttl))),
            max_attempts: self.max_attempts,
            ..Default::default()
        }
    }

    /// Names the next command for what often goes wrong.
    fn explain(&self, error: client::Error, id: &str) -> anyhow::Error {
        let queue = &self.queue;
        let next = match error.reason() {
            "QUEUE_NOT_FOUND" => format!("wharf queue create {queue}"),
            "QUEUE_SEALED" => format!("wharf queue unseal {queue}"),
            "QUEUE_FULL" => format!("wharf queue show {queue}"),
            "ID_CONFLICT" => format!("wharf get {queue} {id}"),
            _ if error.is_unknown() => format!("the same command with --id {id}: it makes one package at most"),
            _ => return error.into(),
        };
        let failure = Failure::new(exit::of_client(&error), error.to_string());
        failure.next(next).into()
    }
}

async fn answer(id: String, ticket: Ticket) -> (String, Result<client::Submitted, client::Error>) {
    (id, ticket.await)
}

/// Lines as they come. A task reads them, so that a line half read is never lost to a `select`.
fn read_lines(input: impl AsyncRead + Send + Unpin + 'static) -> mpsc::Receiver<anyhow::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(LINES_WAITING);
    tokio::spawn(async move {
        let mut input = BufReader::new(input);
        while let Some(line) = read_line(&mut input).await.context("cannot read standard input").transpose() {
            let failed = line.is_err();
            if sender.send(line).await.is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// A line without its end. None: no more.
async fn read_line(input: &mut BufReader<impl AsyncRead + Unpin>) -> anyhow::Result<Option<Vec<u8>>> {
    let ceiling = limits::MAX_PAYLOAD_CEILING_BYTES;
    let mut line = Vec::new();
    let read = input.take(ceiling + 1).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() as u64 > ceiling {
        return Err(Failure::new(Exit::Usage, "a line is larger than a payload may ever be").into());
    }
    Ok(Some(line))
}

/// What became of the lines so far.
#[derive(Default)]
struct Tally {
    format: Format,
    submitted: u64,
    duplicates: u64,
    refused: u64,
    unknown: u64,
    /// The first error's exit code.
    exit: Option<Exit>,
}

impl Tally {
    fn count(
        &mut self,
        submit: &Submit,
        id: String,
        result: Result<client::Submitted, client::Error>,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let row = match result {
            Ok(taken) => {
                self.submitted += 1;
                self.duplicates += u64::from(taken.duplicate);
                bar.inc(1);
                rows::Submitted::from(taken)
            }
            Err(error) => {
                let count = if error.is_unknown() { &mut self.unknown } else { &mut self.refused };
                *count += 1;
                // The command was good, a line was not.
                let exit = Some(exit::of_client(&error)).filter(|exit| *exit != Exit::Usage).unwrap_or(Exit::Failed);
                self.exit.get_or_insert(exit);
                if self.refused + self.unknown <= REFUSALS_TOLD {
                    bar.suspend(|| output::note(format_args!("{id}: {error}")));
                }
                rows::Submitted { queue: submit.queue.clone(), id, duplicate: false, error: Some(error.to_string()) }
            }
        };
        match self.format {
            Format::Jsonl => output::object(&row)?,
            Format::Table if row.error.is_none() => output::line(&row.id)?,
            Format::Table | Format::Json => {}
        }
        Ok(())
    }

    fn end(self, submit: &Submit) -> anyhow::Result<Exit> {
        let Self { submitted, duplicates, refused, unknown, .. } = self;
        if self.format == Format::Json {
            output::object(&serde_json::json!({
                "submitted": submitted, "duplicates": duplicates, "refused": refused, "unknown": unknown,
            }))?;
        } else {
            output::note(format_args!(
                "{submitted} submitted ({duplicates} of them were there before), {refused} refused, {unknown} unknown"
            ));
        }
        let Some(exit) = self.exit else { return Ok(Exit::Ok) };
        let message = format!("{} of {} lines were not confirmed", refused + unknown, submitted + refused + unknown);
        let next = match &submit.id_prefix {
            Some(_) => "the same command: what was taken is not taken twice".to_owned(),
            None => format!("wharf queue show {}", submit.queue),
        };
        Err(Failure::new(exit, message).next(next).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_payloads_without_their_ends() {
        let mut input = read_lines(&b"one\n\nthree"[..]);
        let mut lines = Vec::new();
        while let Some(line) = input.recv().await {
            lines.push(String::from_utf8(line.unwrap()).unwrap());
        }
        assert_eq!(lines, ["one", "", "three"]);
    }
}
