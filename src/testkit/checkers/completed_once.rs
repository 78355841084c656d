//! A package has at most one accepted completion. A repeat of the same settlement, with its recorded
//! answer, is the same one.

use std::collections::BTreeSet;

use super::super::history::{Event, History, Settlement, Verdict};
use super::Violation;

pub const INVARIANT: &str = "at most one accepted completion";

pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, records) in history.packages() {
        let mut accepted = BTreeSet::new();
        for record in records {
            match &record.event {
                Event::Settled { fence, settlement: Settlement::Done, verdict: Verdict::Accepted, .. } => {
                    accepted.insert(format!("{}#{fence}", record.who));
                }
                // The result tells who completed it.
                Event::Read { result, .. } if !result.is_empty() => {
                    accepted.insert(result.clone());
                }
                _ => {}
            }
        }
        if accepted.len() > 1 {
            let problem = format!("completed by {}", accepted.into_iter().collect::<Vec<_>>().join(" and "));
            violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem });
        }
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "w settled 1 #5 done accepted\nv settled 1 #9 done accepted",
    "w settled 1 #5 done accepted\nw settled 1 #6 done accepted",
    "w settled 1 #5 done accepted\nc last 1 COMPLETED #9 by=v#9",
    "c read 1 COMPLETED #5 by=w#5\nc last 1 COMPLETED #9 by=v#9",
    "w settled 1 #5 done accepted\nv settled 1 #5 done accepted",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn double_completions_are_found() {
        assert_eq!(judge(check, super::BAD[0]), ["completed by v#9 and w#5"]);
    }

    #[test]
    fn a_repeat_is_the_same_completion() {
        let repeat = "w settled 1 #5 done accepted\nw settled 1 #5 done accepted\nc last 1 COMPLETED #5 by=w#5";
        assert!(judge(check, repeat).is_empty());
        assert!(judge(check, "w settled 1 #5 done refused\nv settled 1 #9 done accepted").is_empty());
        assert!(judge(check, "w settled 1 #5 fail accepted\nv settled 1 #9 done accepted").is_empty());
    }
}
