//! Blame only by cause: an attempt is counted only for a lease that its holder failed, or whose
//! holder was killed, frozen or cut off; and a confirmed failure is always counted.

use super::super::history::{Event, History, Key};
use super::Violation;
use super::causes::{Cause, Causes};

pub const INVARIANT: &str = "blame only by cause";

pub fn check(history: &History) -> Vec<Violation> {
    let causes = Causes::of(history);
    let mut violations = Vec::new();
    let mut violation =
        |key: &Key, problem| violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem });
    let all = history.deliveries();
    let unseen = causes.unseen();
    for (key, leases) in &all {
        let (mut may, mut must) = (unseen, 0);
        let mut before: Option<(u64, &str, u64)> = None;
        for (fence, deliveries) in leases {
            let delivery = &deliveries[0];
            if let Some((last, worker, from_us)) = before {
                let why = causes.why(key, last, worker, from_us, delivery.at_us);
                may += u32::from(why.into_iter().any(Cause::may_be_charged));
                must += u32::from(causes.failure_accepted(key, last));
            }
            if delivery.attempt > may + 1 {
                violation(key, format!("fence {fence} is attempt {}, with {may} causes before", delivery.attempt));
            }
            if delivery.attempt < must + 1 {
                violation(key, format!("fence {fence} is attempt {}, after {must} failures", delivery.attempt));
            }
            before = Some((*fence, delivery.worker, delivery.at_us));
        }
    }
    for record in history.records() {
        if let Event::Read { key, attempts, last: true, .. } = &record.event {
            let leases = all.get(key).map_or(0, |leases| leases.len()) as u32 + unseen;
            if *attempts > leases {
                violation(key, format!("has {attempts} attempts after {leases} leases"));
            }
        }
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "w deliver 1 #5 attempt=1\nw attach s epoch=2\nv deliver 1 #9 attempt=2 session=t",
    "w deliver 1 #5 attempt=1\nw settled 1 #5 release accepted\nv deliver 1 #9 attempt=2 session=t",
    "w deliver 1 #5 attempt=1\nw lost 1 #5\nv deliver 1 #9 attempt=2 session=t",
    "w deliver 1 #5 attempt=1\nw exit\nv deliver 1 #9 attempt=2 session=t",
    "w deliver 1 #5 attempt=1\nt fault w drained\nv deliver 1 #9 attempt=2 session=t",
    "w deliver 1 #5 attempt=2",
    "w deliver 1 #5 attempt=1\nc last 1 DEAD #5 attempts=2",
    "w deliver 1 #5 attempt=1\nw settled 1 #5 fail accepted\nv deliver 1 #9 attempt=1 session=t",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn unjust_blame_is_found() {
        assert_eq!(judge(check, super::BAD[0]), ["fence 9 is attempt 2, with 0 causes before"]);
    }

    #[test]
    fn a_confirmed_failure_must_count() {
        let story = "w deliver 1 #5 attempt=1\nw settled 1 #5 fail accepted\nv deliver 1 #9 attempt=1 session=t";
        assert_eq!(judge(check, story), ["fence 9 is attempt 1, after 1 failures"]);
    }

    #[test]
    fn just_blame_is_accepted() {
        for cause in ["w settled 1 #5 fail accepted", "w end 1 #5 fail", "t fault w killed", "t fault w frozen"] {
            let story = format!("w deliver 1 #5 attempt=1\n{cause}\nv deliver 1 #9 attempt=2 session=t");
            assert!(judge(check, &story).is_empty(), "{cause}");
        }
        let free = "w deliver 1 #5 attempt=1\nt fault w killed\nv deliver 1 #9 attempt=1 session=t";
        assert!(judge(check, free).is_empty(), "an innocent neighbour");
    }
}
