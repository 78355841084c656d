//! Nothing confirmed is lost: what the cluster took is there at every later read, the last one
//! included.

use super::super::history::{Answer, Event, History};
use super::Violation;

pub const INVARIANT: &str = "nothing confirmed is lost";

pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, records) in history.packages() {
        let confirmed_at = records.iter().find_map(|record| match record.event {
            Event::Submitted { answer: Answer::Ok | Answer::Duplicate, .. } => Some(record.at_us),
            _ => None,
        });
        let Some(confirmed_at) = confirmed_at else { continue };
        let mut read_last = false;
        let mut gone = false;
        for record in records.iter().filter(|record| record.tells_of_us() > confirmed_at) {
            if let Event::Read { state, last, .. } = &record.event {
                read_last |= last;
                gone |= state.is_none();
            }
        }
        let problem = match (gone, read_last) {
            (true, _) => "was confirmed, and a later read did not find it",
            (false, false) => "was confirmed, and nobody read it at the end",
            _ => continue,
        };
        violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem: problem.to_owned() });
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "c submit 1\nc ok 1\nc last 1 NONE",
    "c submit 1\nc duplicate 1\nc read 1 NONE\nc last 1 READY",
    "c submit 1\nc ok 1\nc read 1 READY",
    "c submit 1\nc ok 1\nc read 1 COMPLETED\nc last 1 NONE",
    "c submit 1\nc unknown 1\nc submit 1\nc ok 1\nc last 1 NONE",
    "c submit 1\nc ok 1\nr read 1 NONE asked=2500000\nc last 1 READY",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn a_read_asked_before_the_confirm_may_not_find_it() {
        let story = "c submit 1\nc ok 1\nr read 1 NONE asked=1500000\nc last 1 READY";
        assert!(judge(check, story).is_empty());
    }

    #[test]
    fn what_was_not_confirmed_may_be_missing() {
        assert!(judge(check, "c submit 1\nc unknown 1\nc last 1 NONE").is_empty());
        assert!(judge(check, "c submit 1\nc refused 1").is_empty());
        assert!(judge(check, "c read 1 NONE\nc submit 1\nc ok 1\nc last 1 LEASED").is_empty());
    }
}
