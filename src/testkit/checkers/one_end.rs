//! A package has one terminal state: once seen in one, it is never seen in another, and an accepted
//! completion ends in COMPLETED. (Nothing in these histories retries DEAD packages.)

use super::super::history::{Event, History, Settlement, Verdict};
use super::{Violation, is_terminal};

pub const INVARIANT: &str = "one terminal state";

pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, records) in history.packages() {
        let mut end: Option<(&str, u64)> = None;
        for record in records {
            let seen = match &record.event {
                Event::Settled { settlement: Settlement::Done, verdict: Verdict::Accepted, .. } => "COMPLETED",
                Event::Read { state: Some(state), .. } => state,
                _ => continue,
            };
            match end {
                Some((end, ended_us)) if end != seen && record.tells_of_us() > ended_us => {
                    let problem = format!("was {end}, and later {seen}");
                    violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem });
                    break;
                }
                None if is_terminal(seen) => end = Some((seen, record.at_us)),
                _ => {}
            }
        }
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "c read 1 CANCELLED\nc last 1 COMPLETED",
    "c read 1 COMPLETED\nc last 1 READY",
    "w settled 1 #5 done accepted\nc last 1 DEAD",
    "c read 1 DEAD\nw settled 1 #5 done accepted",
    "c read 1 EXPIRED\nc read 1 LEASED\nc last 1 EXPIRED",
    "w settled 1 #5 done accepted\nr read 1 LEASED asked=1500000\nc last 1 COMPLETED",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn second_ends_are_found() {
        assert_eq!(judge(check, super::BAD[0]), ["was CANCELLED, and later COMPLETED"]);
    }

    #[test]
    fn one_end_is_fine() {
        let overtaken = "w settled 1 #5 done accepted\nr read 1 LEASED asked=500000\nc last 1 COMPLETED";
        assert!(judge(check, overtaken).is_empty());
        assert!(judge(check, "c read 1 READY\nc read 1 LEASED\nc read 1 DEAD\nc last 1 DEAD").is_empty());
        assert!(judge(check, "w settled 1 #5 done accepted\nc last 1 COMPLETED").is_empty());
        assert!(judge(check, "w settled 1 #5 done refused\nc last 1 CANCELLED").is_empty());
    }
}
