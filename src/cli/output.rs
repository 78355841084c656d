//! What goes to standard output: tables for people, JSON for programs. The format never changes
//! because the output is a pipe.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON value.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Something that prints as one row of a table or one JSON object.
pub trait Row: Serialize {
    const HEAD: &'static [&'static str];

    fn cells(&self) -> Vec<String>;

    /// More than fits a row, for when it is shown alone: (name, value), empty values left out.
    fn details(&self) -> Vec<(&'static str, String)> {
        Self::HEAD.iter().copied().zip(self.cells()).collect()
    }
}

/// Prints a list.
pub fn list<R: Row>(format: Format, rows: &[R]) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    match format {
        Format::Table => {
            let mut table = table();
            table.set_header(R::HEAD);
            for row in rows {
                table.add_row(row.cells());
            }
            align_numbers(&mut table, R::HEAD.len());
            print_table(&mut out, &table)
        }
        Format::Json => json_line(&mut out, &rows, true),
        Format::Jsonl => rows.iter().try_for_each(|row| json_line(&mut out, row, false)),
    }
}

/// Prints one thing: as a table of names and values, or as an object.
pub fn one<R: Row>(format: Format, row: &R) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    match format {
        Format::Table => print_pairs(&mut out, &row.details()),
        Format::Json => json_line(&mut out, row, true),
        Format::Jsonl => json_line(&mut out, row, false),
    }
}

/// Prints names and values.
pub fn pairs(pairs: &[(&'static str, String)]) -> io::Result<()> {
    print_pairs(&mut anstream::stdout().lock(), pairs)
}

/// Prints any JSON object, on one line.
pub fn object(value: &impl Serialize) -> io::Result<()> {
    json_line(&mut anstream::stdout().lock(), value, false)
}

/// Prints a line of data.
pub fn line(text: impl std::fmt::Display) -> io::Result<()> {
    writeln!(anstream::stdout().lock(), "{text}")
}

/// Tells something that is no data, on standard error.
pub fn note(text: impl std::fmt::Display) {
    // Standard error may be closed; there is nobody left to tell.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// A bar on standard error, drawn only on a terminal.
pub fn bar(total: Option<u64>, what: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{msg:<28} [{bar:40}] {human_pos}/{human_len} {per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {human_pos} ({per_sec})"),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar
}

/// Tells a story above a bar, on standard error.
pub struct Narrator {
    bar: ProgressBar,
    started: tokio::time::Instant,
}

impl Narrator {
    pub fn new(total: u64, what: &'static str) -> Self {
        Self { bar: bar(Some(total), what), started: tokio::time::Instant::now() }
    }

    /// One sentence, with the time since the beginning.
    pub fn tell(&self, what: impl std::fmt::Display) {
        let at = self.started.elapsed().as_secs_f64();
        self.bar.suspend(|| note(format_args!("{at:5.1}s  {what}")));
    }

    /// To be advanced by whoever makes progress.
    pub fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// The bar begins anew.
    pub fn phase(&self, total: u64, what: &'static str) {
        self.bar.set_length(total);
        self.bar.set_message(what);
        self.bar.reset();
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// As in proto3 JSON: `60s`, `1.500s`.
pub fn duration_json(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        ms => format!("{}.{ms:03}s", duration.as_secs()),
    }
}

/// For people: `1m 30s`, `250ms`.
pub fn duration_text(duration: Duration) -> String {
    let printer = jiff::fmt::friendly::SpanPrinter::new().spacing(jiff::fmt::friendly::Spacing::BetweenUnits);
    printer.unsigned_duration_to_string(&Duration::from_millis(duration.as_millis() as u64))
}

/// RFC 3339, UTC, milliseconds.
pub fn time(at: prost_types::Timestamp) -> Option<String> {
    let at = jiff::Timestamp::new(at.seconds, at.nanos).ok()?;
    Some(format!("{at:.3}"))
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Numbers stand to the right, so that they compare at a glance.
fn align_numbers(table: &mut Table, columns: usize) {
    for index in 0..columns {
        let cells: Vec<String> =
            table.row_iter().filter_map(|row| Some(row.cell_iter().nth(index)?.content())).collect();
        let numeric =
            !cells.is_empty() && cells.iter().all(|cell| cell.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
        if let (true, Some(column)) = (numeric, table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn print_table(out: &mut impl Write, table: &Table) -> io::Result<()> {
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

fn print_pairs(out: &mut impl Write, pairs: &[(&'static str, String)]) -> io::Result<()> {
    let mut table = table();
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([*name, value.as_str()]);
    }
    print_table(out, &table)
}

fn json_line(out: &mut impl Write, value: &(impl Serialize + ?Sized), pretty: bool) -> io::Result<()> {
    if pretty {
        serde_json::to_writer_pretty(&mut *out, value)?;
    } else {
        serde_json::to_writer(&mut *out, value)?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Sample {
        name: &'static str,
        ready: u64,
    }

    impl Row for Sample {
        const HEAD: &'static [&'static str] = &["QUEUE", "READY"];

        fn cells(&self) -> Vec<String> {
            vec![self.name.into(), self.ready.to_string()]
        }
    }

    #[test]
    fn names_and_values_leave_out_what_is_empty() {
        let mut out = Vec::new();
        print_pairs(&mut out, &[("queue", "jobs".into()), ("worker", String::new())]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), " queue  jobs\n");
    }

    #[test]
    fn numbers_align_to_the_right() {
        let mut table = table();
        table.set_header(Sample::HEAD);
        table.add_row(Sample { name: "a", ready: 7 }.cells());
        table.add_row(Sample { name: "b", ready: 1234 }.cells());
        align_numbers(&mut table, 2);
        let mut out = Vec::new();
        print_table(&mut out, &table).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), " QUEUE  READY\n a          7\n b       1234\n");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration_json(Duration::from_millis(1500)), "1.500s");
        assert_eq!(duration_json(Duration::from_secs(60)), "60s");
        assert_eq!(duration_text(Duration::from_secs(90)), "1m 30s");
    }

    #[test]
    fn times_are_rfc_3339() {
        let at = prost_types::Timestamp { seconds: 0, nanos: 5_000_000 };
        assert_eq!(time(at).as_deref(), Some("1970-01-01T00:00:00.005Z"));
    }
}
