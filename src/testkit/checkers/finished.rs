//! Everything confirmed has come to its end: at the last read it is in a terminal state. For tests
//! that let the work run out.

use super::super::history::{Event, History};
use super::{Violation, is_terminal};

pub const INVARIANT: &str = "everything confirmed is finished at the end";

pub fn check(history: &History) -> Vec<Violation> {
    let confirmed = history.confirmed();
    let mut violations = Vec::new();
    for record in history.records() {
        if let Event::Read { key, state: Some(state), last: true, .. } = &record.event
            && confirmed.contains(key)
            && !is_terminal(state)
        {
            violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem: format!("is {state}") });
        }
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "c submit 1\nc ok 1\nc last 1 LEASED",
    "c submit 1\nc ok 1\nc last 1 READY",
    "c submit 1\nc ok 1\nc last 1 DELAYED",
    "c submit 1\nc unknown 1\nc submit 1\nc duplicate 1\nc last 1 LEASED",
    "c submit 1\nc ok 1\nc submit 2\nc ok 2\nc last 1 COMPLETED\nc last 2 READY",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn what_hangs_is_found() {
        assert_eq!(judge(check, super::BAD[0]), ["is LEASED"]);
        assert!(judge(check, "c submit 1\nc ok 1\nc read 1 LEASED\nc last 1 DEAD").is_empty());
        assert!(judge(check, "c submit 1\nc unknown 1\nc last 1 READY").is_empty());
    }
}
