//! What the workers write down, each in its own file: one JSON line for everything that happens to
//! a package in its hands. The evidence of the demo.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub id: String,
    pub fence: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// It arrived.
    Delivered,
    /// The work was begun.
    Started,
    /// The work was done, whatever the cluster says about it later.
    Executed,
    /// The cluster took the completion.
    Completed,
    /// The cluster took a failure.
    Failed,
    /// The cluster took it back.
    Released,
    /// The lease ended without the worker's doing.
    Lost,
    /// The cluster refused a completion.
    Refused { reason: String },
}

/// A worker's file. Each entry is one write, so that a kill loses none that was written.
pub struct Pen(Mutex<File>);

impl Pen {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(Mutex::new(file.with_context(|| format!("cannot write {}", path.display()))?)))
    }

    /// Panics if the file cannot be written: a worker without evidence is worth nothing.
    pub fn write(&self, id: &str, fence: u64, what: What) {
        let entry = Entry { id: id.to_owned(), fence, what };
        let mut line = serde_json::to_vec(&entry).expect("an entry is plain data");
        line.push(b'\n');
        self.0.lock().write_all(&line).expect("the worker's file can be written");
    }
}

/// How a worker's life went, as the demo made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lived,
    /// SIGKILL.
    Killed,
}

/// All workers' files, by package: what happened under each fence.
#[derive(Debug, Default)]
pub struct Ledger {
    pub packages: BTreeMap<String, BTreeMap<u64, Lease>>,
    pub refused: u64,
}

/// What is known of one lease.
#[derive(Debug, Default)]
pub struct Lease {
    pub started: bool,
    pub executed: bool,
    /// Completions that the cluster took: 0 or 1.
    pub completed: u32,
    pub failed: bool,
    pub released: bool,
    pub lost: bool,
    pub holder_killed: bool,
}

impl Lease {
    /// The work was begun and not ended.
    pub fn in_hand(&self) -> bool {
        self.started && !self.executed && !self.lost
    }
}

impl Ledger {
    /// Reads a worker's file.
    pub fn read(&mut self, path: &Path, fate: Fate) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            match serde_json::from_str(line) {
                Ok(entry) => self.enter(entry, fate),
                // Killed in the middle of its last write.
                Err(_) if fate == Fate::Killed && lines.peek().is_none() => {}
                Err(error) => anyhow::bail!("{} line {}: {error}", path.display(), number + 1),
            }
        }
        Ok(())
    }

    pub fn enter(&mut self, entry: Entry, fate: Fate) {
        let lease = self.packages.entry(entry.id).or_default().entry(entry.fence).or_default();
        lease.holder_killed |= fate == Fate::Killed;
        match entry.what {
            What::Delivered => {}
            What::Started => lease.started = true,
            What::Executed => lease.executed = true,
            What::Completed => lease.completed += 1,
            What::Failed => lease.failed = true,
            What::Released => lease.released = true,
            What::Lost => lease.lost = true,
            What::Refused { .. } => self.refused += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w1");
        let pen = Pen::open(&path).unwrap();
        pen.write("a", 7, What::Started);
        pen.write("a", 7, What::Refused { reason: "LEASE_LOST".into() });
        pen.write("a", 9, What::Completed);
        let mut ledger = Ledger::default();
        ledger.read(&path, Fate::Lived).unwrap();
        assert!(ledger.packages["a"][&7].started);
        assert_eq!((ledger.packages["a"][&9].completed, ledger.refused), (1, 1));

        // Only a killed worker may leave half a line.
        std::fs::write(&path, "{\"id\":\"a\",\"fence\":7,\"what\":\"started\"}\n{\"id\":").unwrap();
        assert!(Ledger::default().read(&path, Fate::Lived).is_err());
        Ledger::default().read(&path, Fate::Killed).unwrap();
    }
}
