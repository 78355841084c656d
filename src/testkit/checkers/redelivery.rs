//! A package is delivered again only by cause: its holder failed it, gave it back, went, or was
//! killed, frozen or cut off. A change of leader is no cause: workers that reattach keep what they
//! hold. Under one fence it is delivered once and begun once.

use std::collections::BTreeMap;

use super::super::history::{Event, History, Key};
use super::Violation;
use super::causes::Causes;

pub const INVARIANT: &str = "redelivery only by cause";

pub fn check(history: &History) -> Vec<Violation> {
    let causes = Causes::of(history);
    let mut violations = Vec::new();
    let mut violation =
        |key: &Key, problem| violations.push(Violation { invariant: INVARIANT, key: key.clone(), problem });
    for (key, leases) in history.deliveries() {
        let mut before: Option<(u64, &str, u64)> = None;
        for (fence, deliveries) in leases {
            if deliveries.len() > 1 {
                violation(key, format!("was delivered {} times under fence {fence}", deliveries.len()));
            }
            let delivery = &deliveries[0];
            if let Some((last, worker, from_us)) = before
                && causes.why(key, last, worker, from_us, delivery.at_us).is_empty()
            {
                let again = format!("{worker} had it under fence {last}, and {} got fence {fence}", delivery.worker);
                violation(key, again);
            }
            before = Some((fence, delivery.worker, delivery.at_us));
        }
    }
    let mut begun: BTreeMap<(&Key, u64), u32> = BTreeMap::new();
    for record in history.records() {
        if let Event::Begin { key, fence } = &record.event {
            *begun.entry((key, *fence)).or_default() += 1;
        }
    }
    for ((key, fence), times) in begun.into_iter().filter(|(_, times)| *times > 1) {
        violation(key, format!("was begun {times} times under fence {fence}"));
    }
    violations
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    "w deliver 1 #5 attempt=1\nw attach s epoch=2\nv deliver 1 #9 attempt=1 session=t",
    "w deliver 1 #5 attempt=1\nw attach s epoch=2\nw deliver 1 #9 attempt=1",
    "w deliver 1 #5 attempt=1\nw deliver 1 #5 attempt=1",
    "w begin 1 #5\nw begin 1 #5",
    "w deliver 1 #5 attempt=1\nt fault v killed\nv deliver 1 #9 attempt=1 session=t",
    "t fault w frozen\nt fault w healed\nw deliver 1 #5 attempt=1\nv deliver 1 #9 attempt=1 session=t",
    "w deliver 1 #5 attempt=1\nw begin 1 #5\nw lost 1 #5\nv deliver 1 #9 attempt=1 session=t",
];

#[cfg(test)]
mod tests {
    use super::super::judge;
    use super::check;

    #[test]
    fn redelivery_without_cause_is_found() {
        assert_eq!(judge(check, super::BAD[0]), ["w had it under fence 5, and v got fence 9"]);
    }

    #[test]
    fn causes_are_believed() {
        for cause in [
            "w end 1 #5 fail",
            "w settled 1 #5 fail accepted",
            "w settled 1 #5 release accepted",
            "w lost 1 #5",
            "w exit",
            "t fault w killed",
            "t fault w frozen\nt fault w healed",
            "t fault w cut_off",
            "t fault w drained",
        ] {
            let story = format!("w deliver 1 #5 attempt=1\n{cause}\nv deliver 1 #9 attempt=1 session=t");
            assert!(judge(check, &story).is_empty(), "{cause}");
        }
    }
}
