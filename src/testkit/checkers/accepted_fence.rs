//! What was accepted was the current lease: a completion ends its package, so no higher fence is ever
//! delivered, and the package shows the fence that completed it. A fence that the worker was never
//! given settles nothing.

use std::collections::BTreeSet;

use super::super::history::{Event, History, Settlement, Verdict};
use super::Violation;

pub const INVARIANT: &str = "accepted fence = current fence";

pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (key, records) in history.packages() {
        let mut delivered = BTreeSet::new();
        let mut finished_with = BTreeSet::new();
        let mut accepted = None;
        let mut problem = |problem| violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem });
        for record in &records {
            match &record.event {
                Event::Delivered { fence, .. } => drop(delivered.insert((record.who.as_str(), *fence))),
                Event::End { fence, settlement: Settlement::Done, .. } => drop(finished_with.insert(*fence)),
                Event::Settled { fence, verdict: Verdict::Accepted, settlement, .. } => {
                    if !delivered.contains(&(record.who.as_str(), *fence)) {
                        problem(format!("{} settled fence {fence}, which it was never given", record.who));
                    }
                    if *settlement == Settlement::Done {
                        accepted = Some(*fence);
                        finished_with.insert(*fence);
                    }
                }
                _ => {}
            }
        }
        let highest = delivered.iter().map(|(_, fence)| *fence).max();
        if let (Some(accepted), Some(highest)) = (accepted, highest)
            && highest > accepted
        {
            problem(format!("fence {accepted} was accepted, and fence {highest} was delivered"));
        }
        for record in &records {
            if let Event::Read { state: Some(state), fence, .. } = &record.event
                && state == "COMPLETED"
            {
                match accepted {
                    Some(accepted) if accepted != *fence => {
                        problem(format!("fence {accepted} was accepted, and the package shows {fence}"));
                    }
                    None if !finished_with.contains(fence) => {
                        problem(format!("completed with fence {fence}, which no worker finished"));
                    }
                    _ => {}
                }
            }
        }
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "w deliver 1 #5 attempt=1\nv deliver 1 #9 attempt=2\nw end 1 #5 done\nw settled 1 #5 done accepted",
    "w deliver 1 #5 attempt=1\nw settled 1 #5 done accepted\nv deliver 1 #9 attempt=2",
    "w deliver 1 #5 attempt=1\nw settled 1 #5 done accepted\nc last 1 COMPLETED #4",
    "w settled 1 #5 fail accepted",
    "w deliver 1 #5 attempt=1\nc last 1 COMPLETED #5",
    "w deliver 1 #5 attempt=1\nv settled 1 #5 done accepted",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn stale_completions_are_found() {
        assert_eq!(judge(check, super::BAD[0]), ["fence 5 was accepted, and fence 9 was delivered"]);
    }

    #[test]
    fn the_current_lease_may_be_accepted() {
        let story = "w deliver 1 #5 attempt=1\nv deliver 1 #9 attempt=2\nw settled 1 #5 done refused
                     v end 1 #9 done\nc last 1 COMPLETED #9";
        assert!(judge(check, story).is_empty(), "the answer may be lost");
        let late = "v deliver 1 #9 attempt=2\nv settled 1 #9 done accepted\nw deliver 1 #5 attempt=1";
        assert!(judge(check, late).is_empty(), "a frozen worker reads old news");
    }
}
