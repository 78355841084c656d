//! Histories: what clients, workers and the test itself saw and did, as JSON lines.
//!
//! Several processes may append to one file: a line is one write. Times are microseconds since the
//! Unix epoch, taken once per recorder and counted on from there, so that two processes of one
//! machine differ by about a millisecond. Checkers rely on the order of the lines of one `who`, and
//! across them only on gaps far above that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::env::{Clock, Env};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the Unix epoch.
    pub at_us: u64,
    /// The client, worker or test that saw it.
    pub who: String,
    #[serde(flatten)]
    pub event: Event,
}

/// A package, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub queue: String,
    pub id: String,
}

impl Key {
    pub fn new(queue: impl Into<String>, id: impl Into<String>) -> Self {
        Self { queue: queue.into(), id: id.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.queue, self.id)
    }
}

/// What a client was told about a submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Ok,
    Duplicate,
    /// Certainly not applied.
    Refused,
    /// Maybe applied.
    Unknown,
}

/// How a worker meant to end a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    Done,
    Fail,
    Release,
}

/// What the cluster said to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Accepted,
    Refused,
    Unknown,
}

/// What the test did to a worker or a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Killed,
    Frozen,
    /// Its link does not carry bytes in at least one direction.
    CutOff,
    /// Asked to drain, by either side.
    Drained,
    /// The end of `Frozen` or `CutOff`; a start again after `Killed`.
    Healed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A submit is about to be sent.
    Submit {
        #[serde(flatten)]
        key: Key,
    },
    Submitted {
        #[serde(flatten)]
        key: Key,
        answer: Answer,
        /// The reason of a refusal.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// The session has a stream.
    Attached {
        session: String,
        epoch: u64,
        again: bool,
    },
    /// The stream broke.
    Detached {
        why: String,
    },
    Delivered {
        #[serde(flatten)]
        key: Key,
        fence: u64,
        attempt: u32,
        session: String,
    },
    /// The handler starts.
    Begin {
        #[serde(flatten)]
        key: Key,
        fence: u64,
    },
    /// The handler ended; its settlement is about to be sent.
    End {
        #[serde(flatten)]
        key: Key,
        fence: u64,
        settlement: Settlement,
    },
    Settled {
        #[serde(flatten)]
        key: Key,
        fence: u64,
        settlement: Settlement,
        verdict: Verdict,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// The worker was told that a lease is gone.
    Lost {
        #[serde(flatten)]
        key: Key,
        fence: u64,
        why: String,
    },
    EndOfWork {
        queue: String,
    },
    /// The worker ended in good order.
    Exited,
    /// The test did this to the worker or node named `target`.
    Fault {
        target: String,
        fault: Fault,
    },
    /// The answer of a linearizable read. `state` None: not found.
    Read {
        #[serde(flatten)]
        key: Key,
        state: Option<String>,
        attempts: u32,
        fence: u64,
        /// Who completed it, by the result: `worker#fence`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        result: String,
        /// When it was asked, as `at_us` has it: it may have been answered any time from then on. 0: not known.
        #[serde(default)]
        asked_us: u64,
        /// The test's last read of it, when everything has ended.
        last: bool,
    },
}

impl Record {
    /// The earliest time of which it can tell: of a read, when it was asked.
    pub fn tells_of_us(&self) -> u64 {
        match self.event {
            Event::Read { asked_us, .. } if asked_us > 0 => asked_us,
            _ => self.at_us,
        }
    }
}

impl Event {
    /// The package that it is about.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Event::Submit { key }
            | Event::Submitted { key, .. }
            | Event::Delivered { key, .. }
            | Event::Begin { key, .. }
            | Event::End { key, .. }
            | Event::Settled { key, .. }
            | Event::Lost { key, .. }
            | Event::Read { key, .. } => Some(key),
            Event::Attached { .. }
            | Event::Detached { .. }
            | Event::EndOfWork { .. }
            | Event::Exited
            | Event::Fault { .. } => None,
        }
    }
}

/// Appends to a history. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    who: Arc<str>,
    file: Arc<Mutex<File>>,
    path: Arc<Path>,
    /// Shared by all processes that record: one must not see a delivery before another's submit.
    clock: Arc<dyn Clock>,
}

impl Recorder {
    /// Appends to the file at `path` in the name of `who`.
    pub fn open(path: &Path, who: &str, env: &Env) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let clock = Arc::clone(&env.clock);
        Ok(Self { who: who.into(), file: Arc::new(Mutex::new(file)), path: path.into(), clock })
    }

    /// The same file in another name.
    pub fn named(&self, who: &str) -> Self {
        Self { who: who.into(), ..self.clone() }
    }

    pub fn who(&self) -> &str {
        &self.who
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Now, as records have it.
    pub fn now_us(&self) -> u64 {
        self.clock.micros()
    }

    /// Writes one line. A history with a hole would judge wrongly, so what cannot be written ends the
    /// process that records.
    pub fn record(&self, event: Event) {
        let mut file = self.file.lock();
        let record = Record { at_us: self.now_us(), who: self.who.to_string(), event };
        let mut line = serde_json::to_vec(&record).expect("records have no maps with odd keys");
        line.push(b'\n');
        file.write_all(&line).expect("the history can be written");
    }

    pub fn fault(&self, target: &str, fault: Fault) {
        self.record(Event::Fault { target: target.to_owned(), fault });
    }
}

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the history {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}:{line}: {problem}")]
    Malformed { path: PathBuf, line: usize, problem: String },
}

/// A history, read back whole and put in order of time.
#[derive(Clone, Debug, Default)]
pub struct History {
    records: Vec<Record>,
}

impl History {
    /// Reads a file. A last line that breaks off is a writer that was killed, and is left out.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let io = |error| Error::Io { path: path.to_owned(), error };
        let mut reader = BufReader::new(File::open(path).map_err(io)?);
        let mut records = Vec::new();
        let mut text = String::new();
        for line in 1.. {
            text.clear();
            if reader.read_line(&mut text).map_err(io)? == 0 || !text.ends_with('\n') {
                break;
            }
            let record = serde_json::from_str(&text).map_err(|error| Error::Malformed {
                path: path.to_owned(),
                line,
                problem: error.to_string(),
            })?;
            records.push(record);
        }
        Ok(Self::new(records))
    }

    /// Sorts by time; records of one time keep their order.
    pub fn new(mut records: Vec<Record>) -> Self {
        records.sort_by_key(|record| record.at_us);
        Self { records }
    }

    /// In order of time.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The records about each package, in order of time.
    pub fn packages(&self) -> BTreeMap<&Key, Vec<&Record>> {
        let mut packages: BTreeMap<&Key, Vec<&Record>> = BTreeMap::new();
        for record in &self.records {
            if let Some(key) = record.event.key() {
                packages.entry(key).or_default().push(record);
            }
        }
        packages
    }

    /// What happened to `target`, with times.
    pub fn faults<'a>(&'a self, target: &'a str) -> impl Iterator<Item = (u64, Fault)> + 'a {
        self.records.iter().filter_map(move |record| match &record.event {
            Event::Fault { target: hit, fault } if hit == target => Some((record.at_us, *fault)),
            _ => None,
        })
    }

    /// Packages that the cluster confirmed.
    pub fn confirmed(&self) -> BTreeSet<&Key> {
        let confirmed = |record: &'_ Record| matches!(record.event, Event::Submitted { answer, .. } if matches!(answer, Answer::Ok | Answer::Duplicate));
        self.records.iter().filter(|record| confirmed(record)).filter_map(|record| record.event.key()).collect()
    }

    /// The longest time without a confirm, in microseconds, between the first and the last one, and
    /// when it began.
    pub fn longest_confirm_gap(&self) -> Option<(u64, u64)> {
        let is_confirm =
            |event: &Event| matches!(event, Event::Submitted { answer: Answer::Ok | Answer::Duplicate, .. });
        let confirms: Vec<u64> =
            self.records.iter().filter(|record| is_confirm(&record.event)).map(|record| record.at_us).collect();
        confirms.windows(2).map(|pair| (pair[1] - pair[0], pair[0])).max()
    }

    /// The deliveries of each package, in order of fences.
    pub fn deliveries(&self) -> BTreeMap<&Key, BTreeMap<u64, Vec<Delivery<'_>>>> {
        let mut deliveries: BTreeMap<&Key, BTreeMap<u64, Vec<Delivery<'_>>>> = BTreeMap::new();
        for record in &self.records {
            if let Event::Delivered { key, fence, attempt, session } = &record.event {
                let delivery = Delivery { at_us: record.at_us, worker: &record.who, session, attempt: *attempt };
                deliveries.entry(key).or_default().entry(*fence).or_default().push(delivery);
            }
        }
        deliveries
    }
}

/// That a worker got a package, once.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    pub at_us: u64,
    pub worker: &'a str,
    pub session: &'a str,
    pub attempt: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _in = runtime.enter();
        let client = Recorder::open(&path, "client", &Env::real()).unwrap();
        let worker = Recorder::open(&path, "worker", &Env::real()).unwrap();
        let key = Key::new("q", "1");
        client.record(Event::Submit { key: key.clone() });
        client.record(Event::Submitted { key: key.clone(), answer: Answer::Ok, reason: String::new() });
        worker.record(Event::Delivered { key: key.clone(), fence: 7, attempt: 1, session: "s".into() });
        client.fault("worker", Fault::Killed);
        let history = History::load(&path).unwrap();
        assert_eq!(history.records().len(), 4);
        assert_eq!(history.confirmed(), BTreeSet::from([&key]));
        assert_eq!(history.deliveries()[&key][&7][0].worker, "worker");
        assert_eq!(history.faults("worker").map(|(_, fault)| fault).collect::<Vec<_>>(), [Fault::Killed]);
    }

    #[test]
    fn a_line_that_breaks_off_is_left_out_and_rubbish_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let line = r#"{"at_us":5,"who":"c","event":"submit","queue":"q","id":"1"}"#;
        std::fs::write(&path, format!("{line}\n{}", &line[..20])).unwrap();
        assert_eq!(History::load(&path).unwrap().records().len(), 1);
        std::fs::write(&path, "rubbish\n").unwrap();
        assert!(matches!(History::load(&path), Err(Error::Malformed { line: 1, .. })));
    }

    #[test]
    fn the_longest_gap_is_found() {
        let confirm = |at_us| Record {
            at_us,
            who: "c".into(),
            event: Event::Submitted {
                key: Key::new("q", at_us.to_string()),
                answer: Answer::Ok,
                reason: String::new(),
            },
        };
        let history = History::new([10, 30, 20, 90].map(confirm).to_vec());
        assert_eq!(history.longest_confirm_gap(), Some((60, 30)));
    }
}
