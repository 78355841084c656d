//! Fences grow: a fence names one lease of one package in one session; within a session later
//! leases have higher fences, and along the fences attempts never fall.

use std::collections::BTreeMap;

use super::super::history::{Event, History, Key};
use super::Violation;

pub const INVARIANT: &str = "fences grow";

pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut owners: BTreeMap<u64, (&Key, &str)> = BTreeMap::new();
    let mut latest: BTreeMap<(&Key, &str), u64> = BTreeMap::new();
    let mut violation =
        |key: &Key, problem| violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem });
    for record in history.records() {
        let Event::Delivered { key, fence, session, .. } = &record.event else { continue };
        let (owner, holder) = owners.entry(*fence).or_insert((key, session));
        if *owner != key || *holder != session {
            violation(key, format!("fence {fence} is also that of {owner} in session {holder}"));
        }
        let before = latest.insert((key, session), *fence).unwrap_or_default();
        if before > *fence {
            violation(key, format!("session {session} got fence {fence} after fence {before}"));
        }
    }
    for (key, leases) in history.deliveries() {
        let mut attempts = 0;
        for (fence, deliveries) in leases {
            let attempt = deliveries.iter().map(|delivery| delivery.attempt).max().unwrap_or_default();
            if attempt < attempts {
                violation(key, format!("fence {fence} is attempt {attempt}, after attempt {attempts}"));
            }
            attempts = attempt;
        }
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "w deliver 1 #9 attempt=1\nw deliver 1 #5 attempt=1",
    "w deliver 1 #5 attempt=1\nw deliver 2 #5 attempt=1",
    "w deliver 1 #5 attempt=1 session=a\nv deliver 1 #5 attempt=1 session=b",
    "w deliver 1 #5 attempt=2 session=a\nv deliver 1 #9 attempt=1 session=b",
    "w deliver 1 #5 attempt=1 session=a\nv deliver 1 #7 attempt=3 session=b\nw deliver 1 #9 attempt=2 session=a",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn a_frozen_worker_may_read_old_news() {
        let story = "w deliver 1 #9 attempt=2 session=a\nv deliver 1 #5 attempt=1 session=b";
        assert!(judge(check, story).is_empty());
        assert!(judge(check, "w deliver 1 #5 attempt=1\nw deliver 2 #4 attempt=1").is_empty());
    }
}
