//! Nothing is invented: what is delivered or read was submitted, by a call that was not refused.

use super::super::history::{Answer, Event, History};
use super::Violation;

pub const INVARIANT: &str = "nothing is invented";

pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, records) in history.packages() {
        let (mut submits, mut refused) = (0, 0);
        let mut problem = None;
        for record in records {
            match &record.event {
                Event::Submit { .. } => submits += 1,
                Event::Submitted { answer: Answer::Refused, .. } => refused += 1,
                Event::Delivered { .. } if submits == 0 => problem = Some("was delivered before anybody submitted it"),
                Event::Delivered { .. } if refused == submits => problem = Some("was refused, and delivered"),
                Event::Read { state: Some(_), .. } if submits == 0 => {
                    problem = Some("was read before anybody submitted it")
                }
                Event::Read { state: Some(_), .. } if refused == submits => problem = Some("was refused, and read"),
                _ => {}
            }
        }
        if let Some(problem) = problem {
            violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem: problem.to_owned() });
        }
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "w deliver 1 #5 attempt=1",
    "c submit 1\nc refused 1\nw deliver 1 #5 attempt=1",
    "c submit 1\nc refused 1\nc last 1 READY",
    "c read 1 READY",
    "c submit 1\nc ok 1\nw deliver 2 #5 attempt=1",
    "w deliver 1 #5 attempt=1\nc submit 1\nc ok 1",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn unknown_outcomes_may_come_true() {
        assert!(judge(check, "c submit 1\nc unknown 1\nw deliver 1 #5 attempt=1").is_empty());
        assert!(judge(check, "c submit 1\nw deliver 1 #5 attempt=1\nc ok 1").is_empty());
        assert!(judge(check, "c submit 1\nc refused 1\nc submit 1\nc ok 1\nw deliver 1 #5 attempt=1").is_empty());
        assert!(judge(check, "c read 1 NONE").is_empty());
    }
}
