//! What was measured, and the table and JSON that tell it.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::figures::{Figures, median};
use crate::mode::{Metric, Mode};

/// All systems in one mode, run in turns.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    pub mode: Mode,
    /// In the order of [`Report::systems`].
    pub figures: Vec<Figures>,
}

#[derive(Debug)]
pub struct Report {
    /// What each figure depends on: name and version.
    pub versions: Vec<(String, String)>,
    pub systems: Vec<&'static str>,
    pub rounds: Vec<Round>,
}

/// One line: a metric of a mode.
#[derive(Debug, PartialEq)]
struct Row {
    mode: Mode,
    metric: Metric,
    /// The median of each system's runs.
    medians: Vec<Option<f64>>,
    /// How many times better wharf is than each system: the median of the rounds' ratios.
    ratios: Vec<Option<f64>>,
}

impl Report {
    fn wharf(&self) -> Option<usize> {
        self.systems.iter().position(|system| *system == "wharf")
    }

    /// The peers, by place.
    fn peers(&self) -> Vec<usize> {
        (0..self.systems.len()).filter(|place| Some(*place) != self.wharf()).collect()
    }

    fn rows(&self) -> Vec<Row> {
        let mut modes: Vec<Mode> = Vec::new();
        for round in &self.rounds {
            if !modes.contains(&round.mode) {
                modes.push(round.mode);
            }
        }
        let rows = modes.iter().flat_map(|mode| mode.metrics().iter().map(|metric| self.row(*mode, *metric)));
        rows.collect()
    }

    fn row(&self, mode: Mode, metric: Metric) -> Row {
        let rounds = || self.rounds.iter().filter(move |round| round.mode == mode);
        let of = |round: &Round, place: usize| round.figures.get(place).and_then(|figures| metric.of(figures));
        let medians = (0..self.systems.len()).map(|place| median(rounds().filter_map(|round| of(round, place))));
        // Of one round each: what the machine did meanwhile, it did to both.
        let ours = self.wharf();
        let ratio = |round: &Round, peer: usize| metric.times_better(of(round, ours?)?, of(round, peer)?);
        let ratios = (0..self.systems.len()).map(|place| match Some(place) == ours {
            true => None,
            false => median(rounds().filter_map(|round| ratio(round, place))),
        });
        Row { mode, metric, medians: medians.collect(), ratios: ratios.collect() }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        let mut head = vec!["mode".to_owned(), "figure".to_owned()];
        let mut columns: Vec<usize> = self.wharf().into_iter().collect();
        columns.extend(self.peers());
        head.extend(columns.iter().map(|place| self.systems[*place].to_owned()));
        let ratios = if self.wharf().is_some() { self.peers() } else { Vec::new() };
        head.extend(ratios.iter().map(|peer| format!("times better than {}", self.systems[*peer])));
        table.set_header(head);
        for row in self.rows() {
            let mut cells = vec![row.mode.name(), row.metric.name().to_owned()];
            cells.extend(columns.iter().map(|place| row.medians[*place].map_or("–".to_owned(), number)));
            cells.extend(ratios.iter().map(|peer| row.ratios[*peer].map_or("–".to_owned(), ratio)));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let versions: Vec<_> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!("{table}\n\n{}\n", versions.join("; "))
    }

    /// For programs: versions, the rows of the table, and every run.
    pub fn json(&self) -> Value {
        let named = |values: &[Option<f64>]| -> Value {
            let pairs = self.systems.iter().zip(values).filter(|(_, value)| value.is_some());
            pairs.map(|(system, value)| ((*system).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into()
        };
        let rows = self.rows().into_iter().map(|row| {
            json!({
                "mode": row.mode.name(),
                "figure": row.metric.name(),
                "median": named(&row.medians),
                "times_better": named(&row.ratios),
            })
        });
        let runs = self.rounds.iter().flat_map(|round| {
            let each = self.systems.iter().zip(&round.figures);
            each.map(|(system, figures)| json!({"mode": round.mode.name(), "system": system, "figures": figures}))
        });
        let versions: serde_json::Map<_, _> =
            self.versions.iter().map(|(name, version)| (name.clone(), json!(version))).collect();
        json!({"versions": versions, "rows": rows.collect::<Vec<_>>(), "runs": runs.collect::<Vec<_>>()})
    }
}

/// Three digits that count, and thousands apart.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => thousands(v.round() as u64),
    }
}

fn thousands(value: u64) -> String {
    match value {
        0..1000 => value.to_string(),
        _ => format!("{} {:03}", thousands(value / 1000), value % 1000),
    }
}

fn ratio(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}x") } else { format!("{value:.0}x") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle(per_s: f64) -> Figures {
        Figures { cycle_per_s: Some(per_s), ..Figures::default() }
    }

    fn report() -> Report {
        let round = |nats, wharf| Round { mode: Mode::Cycle, figures: vec![cycle(nats), cycle(wharf)] };
        Report {
            versions: vec![("wharf".to_owned(), "0.1.0".to_owned())],
            systems: vec!["nats", "wharf"],
            // The machine is slow in the second round, to both.
            rounds: vec![round(100.0, 1000.0), round(10.0, 100.0), round(200.0, 1600.0)],
        }
    }

    #[test]
    fn ratios_are_of_rounds_and_not_of_medians() {
        let row = &report().rows()[0];
        assert_eq!(row.medians, [Some(100.0), Some(1000.0)]);
        assert_eq!(row.ratios[0], Some(10.0), "the median of 10, 10 and 8");
        assert_eq!(row.ratios[1], None, "wharf is no peer of its own");
    }

    #[test]
    fn the_table_tells_units_versions_and_what_is_not_known() {
        let table = report().table();
        let line = table.lines().find(|line| line.contains("full cycles, /s")).unwrap();
        let cells: Vec<_> = line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells, ["cycle", "full cycles, /s", "1 000", "100", "10x"]);
        assert!(table.contains("CPU a package, µs") && table.contains("–") && table.contains("wharf 0.1.0"), "{table}");
    }

    #[test]
    fn without_wharf_there_are_no_ratios() {
        let mut report = report();
        report.systems = vec!["nats", "rabbitmq"];
        assert!(!report.table().contains("times better"), "{}", report.table());
    }

    #[test]
    fn json_has_every_run() {
        let json = report().json();
        assert_eq!(json["runs"].as_array().map(Vec::len), Some(6));
        assert_eq!(json["rows"][0]["times_better"]["nats"], 10.0);
        assert_eq!(json["versions"]["wharf"], "0.1.0");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, 1.234, 45.67, 678.9, 1_234_567.0].map(number), ["0", "1.23", "45.7", "679", "1 234 567"]);
    }
}
