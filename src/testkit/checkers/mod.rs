//! Judges a history, one invariant a file. Every checker is itself tested with histories that it must
//! reject.
//!
//! A checker says what is certainly wrong and nothing else: what a history leaves open (an unknown
//! outcome, a lease that no worker lived to record) is never held against the cluster.

pub mod accepted_fence;
pub mod blame;
pub mod causes;
pub mod completed_once;
pub mod fences_grow;
pub mod finished;
pub mod invented;
pub mod linearizable;
pub mod lost;
pub mod one_end;
pub mod redelivery;

use std::fmt;

use super::history::{History, Key};

/// One thing that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub key: Key,
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.invariant, self.key, self.problem)
    }
}

/// What a checker is.
pub type Checker = fn(&History) -> Vec<Violation>;

/// Invariants of every history, whatever the test did.
pub const ALWAYS: &[Checker] = &[
    lost::check,
    invented::check,
    completed_once::check,
    accepted_fence::check,
    fences_grow::check,
    one_end::check,
    redelivery::check,
    blame::check,
    linearizable::check,
];

/// What every history must hold.
pub fn check(history: &History) -> Vec<Violation> {
    ALWAYS.iter().flat_map(|checker| checker(history)).collect()
}

/// The same, and everything confirmed has come to its end.
pub fn check_to_the_end(history: &History) -> Vec<Violation> {
    let mut violations = check(history);
    violations.extend(finished::check(history));
    violations
}

/// States in which a package stays.
fn is_terminal(state: &str) -> bool {
    matches!(state, "COMPLETED" | "DEAD" | "CANCELLED" | "EXPIRED")
}

/// Histories written as stories: one event a line, one second apart, all of queue `q`.
///
/// ```text
/// c submit 1               c ok|duplicate|refused|unknown 1
/// w attach s epoch=1       w deliver 1 #5 attempt=1 [session=s]     w begin 1 #5
/// w end 1 #5 done          w settled 1 #5 done accepted             w lost 1 #5
/// w exit                   t fault w killed
/// c read 1 COMPLETED #5 attempts=1 by=w#5     c read 1 READY asked=2500000     c last 1 NONE
/// ```
#[cfg(test)]
pub(crate) fn story(text: &str) -> History {
    use super::history::Record;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let records = lines.zip(1..).map(|(line, second)| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let event = event(&words[1..]).unwrap_or_else(|| panic!("this line is no event: {line}"));
        Record { at_us: second * 1_000_000, who: words[0].to_owned(), event }
    });
    History::new(records.collect())
}

#[cfg(test)]
fn event(words: &[&str]) -> Option<super::history::Event> {
    use super::history::{Answer, Event, Fault, Settlement, Verdict};
    let key = || Some(Key::new("q", *words.get(1)?));
    let fence = || words.iter().find_map(|word| word.strip_prefix('#')?.parse().ok());
    let named = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str| named(name).and_then(|text| text.parse().ok());
    let settlement = |word: &str| match word {
        "done" => Some(Settlement::Done),
        "fail" => Some(Settlement::Fail),
        "release" => Some(Settlement::Release),
        _ => None,
    };
    let answered = |answer| Some(Event::Submitted { key: key()?, answer, reason: String::new() });
    let read = |last| {
        let state = Some(words.get(2)?.to_string()).filter(|state| state != "NONE");
        let result = named("by").unwrap_or_default().to_owned();
        let attempts = number("attempts").unwrap_or_default();
        let fence = fence().unwrap_or_default();
        let asked_us = named("asked").and_then(|text| text.parse().ok()).unwrap_or_default();
        Some(Event::Read { key: key()?, state, attempts, fence, result, asked_us, last })
    };
    match words[0] {
        "submit" => Some(Event::Submit { key: key()? }),
        "ok" => answered(Answer::Ok),
        "duplicate" => answered(Answer::Duplicate),
        "refused" => answered(Answer::Refused),
        "unknown" => answered(Answer::Unknown),
        "attach" => {
            let epoch = number("epoch")?;
            Some(Event::Attached { session: words.get(1)?.to_string(), epoch: epoch.into(), again: epoch > 1 })
        }
        "deliver" => Some(Event::Delivered {
            key: key()?,
            fence: fence()?,
            attempt: number("attempt")?,
            session: named("session").unwrap_or("s").to_owned(),
        }),
        "begin" => Some(Event::Begin { key: key()?, fence: fence()? }),
        "end" => Some(Event::End { key: key()?, fence: fence()?, settlement: settlement(words.get(3)?)? }),
        "settled" => {
            let verdict = match *words.get(4)? {
                "accepted" => Verdict::Accepted,
                "refused" => Verdict::Refused,
                "unknown" => Verdict::Unknown,
                _ => return None,
            };
            let settlement = settlement(words.get(3)?)?;
            Some(Event::Settled { key: key()?, fence: fence()?, settlement, verdict, reason: String::new() })
        }
        "lost" => Some(Event::Lost { key: key()?, fence: fence()?, why: String::new() }),
        "exit" => Some(Event::Exited),
        "fault" => {
            let fault = match *words.get(2)? {
                "killed" => Fault::Killed,
                "frozen" => Fault::Frozen,
                "cut_off" => Fault::CutOff,
                "drained" => Fault::Drained,
                "healed" => Fault::Healed,
                _ => return None,
            };
            Some(Event::Fault { target: words.get(1)?.to_string(), fault })
        }
        "read" => read(false),
        "last" => read(true),
        _ => None,
    }
}

/// The checker's verdict on a story, for its tests.
#[cfg(test)]
fn judge(checker: Checker, text: &str) -> Vec<String> {
    checker(&story(text)).into_iter().map(|violation| violation.problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every checker, with what it must reject.
    const ALL: &[(Checker, &[&str])] = &[
        (lost::check, lost::BAD),
        (invented::check, invented::BAD),
        (completed_once::check, completed_once::BAD),
        (accepted_fence::check, accepted_fence::BAD),
        (fences_grow::check, fences_grow::BAD),
        (one_end::check, one_end::BAD),
        (redelivery::check, redelivery::BAD),
        (blame::check, blame::BAD),
        (linearizable::check, linearizable::BAD),
        (finished::check, finished::BAD),
    ];

    #[test]
    fn every_checker_rejects_five_bad_histories_at_least() {
        assert_eq!(ALL.len(), ALWAYS.len() + 1);
        for (checker, bad) in ALL {
            assert!(bad.len() >= 5, "{bad:?}");
            for text in *bad {
                assert!(!checker(&story(text)).is_empty(), "this was accepted:\n{text}");
            }
        }
    }

    #[test]
    fn a_good_history_is_accepted_by_all() {
        let history = story(
            "c submit 1
             c submit 2
             c ok 1
             c unknown 2
             c submit 2
             c duplicate 2
             w attach s epoch=1
             w deliver 1 #5 attempt=1
             w begin 1 #5
             v deliver 2 #6 attempt=1 session=t
             v begin 2 #6
             w attach s epoch=2
             w end 1 #5 done
             w settled 1 #5 done accepted
             t fault v killed
             w deliver 2 #9 attempt=2
             w begin 2 #9
             w end 2 #9 fail
             w settled 2 #9 fail accepted
             w deliver 2 #12 attempt=3
             w begin 2 #12
             w end 2 #12 done
             w settled 2 #12 done accepted
             c read 1 COMPLETED #5 attempts=1 by=w#5
             c last 1 COMPLETED #5 attempts=1 by=w#5
             c last 2 COMPLETED #12 attempts=3 by=w#12",
        );
        assert_eq!(check_to_the_end(&history), []);
    }
}
