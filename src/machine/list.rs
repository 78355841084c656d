//! Lists of a queue's packages, page by page, while they move.
//!
//! A list goes by the sequence that a package gets at submit and keeps: what was there all the time is
//! seen once. It ends where the sequence stood when it began, so nothing comes twice under one id.

use std::collections::BTreeMap;

use super::state::Package;
use super::view::PackageView;
use super::{Machine, Result};

/// Which packages a list shows.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Bit n: the state with number n. 0: every state.
    pub states: u32,
    /// All of these, with these values.
    pub labels: BTreeMap<String, String>,
    /// Empty: every kind.
    pub kind: String,
}

impl Wanted {
    fn takes(&self, package: &Package) -> bool {
        let state = self.states == 0 || self.states & (1 << package.phase as u32) != 0;
        state && (self.kind.is_empty() || **package.body.kind() == *self.kind) && self.labelled(package)
    }

    fn labelled(&self, package: &Package) -> bool {
        let labels = package.body.labels();
        self.labels.iter().all(|(key, value)| {
            let found = labels.binary_search_by(|(known, _)| (**known).cmp(key));
            found.is_ok_and(|at| *labels[at].1 == **value)
        })
    }
}

/// A piece of a list.
#[derive(Debug, Default)]
pub struct Listed {
    pub packages: Vec<PackageView>,
    /// Where to go on; `None`: there is no more.
    pub next: Option<u64>,
}

impl Machine {
    /// Where a list that begins now ends.
    pub fn list_end(&self) -> u64 {
        self.state.next_seq
    }

    /// Looks at no more than `looks` packages from `from` on, and takes at most `most`.
    pub fn list(&self, queue: &str, wanted: &Wanted, from: u64, end: u64, looks: usize, most: usize) -> Result<Listed> {
        let line = self.index.line(self.queue_no(queue)?);
        let mut listed = Listed::default();
        let mut lines = line.roll.from(from).take_while(|(seq, _)| *seq < end);
        for (seq, slot) in lines.by_ref().take(looks) {
            if listed.packages.len() >= most {
                listed.next = Some(seq);
                return Ok(listed);
            }
            if wanted.takes(self.state.packages.at(slot)) {
                listed.packages.push(self.package_view(slot));
            }
        }
        // A node that lags may not have seen all that was there when the list began.
        let behind = (self.state.next_seq < end).then(|| self.state.next_seq.max(from));
        listed.next = lines.next().map(|(seq, _)| seq).or(behind);
        Ok(listed)
    }
}
