//! What clients see of a package is linearizable: submits, completions and reads can be put in an order of effects, each
//! between its call and its answer, that one package on one machine allows.
//!
//! What the cluster does by itself (leases that begin, run out or are taken back, packages that die or expire) is seen
//! in part only, so the [`Package`] model allows it at any time; a completion it allows only as some worker's.
//!
//! Invariants: time between two recorders counts with a margin, for their clocks differ; a package whose search is cut
//! off is neither right nor wrong ([`undecided`]).

pub mod search;

use self::search::{Call, Found, Model, search};
use super::super::history::{Answer, Event, History, Key, Record, Settlement, Verdict};
use super::Violation;

pub const INVARIANT: &str = "a package is linearizable";

/// Clocks of two recorders differ by less, in microseconds.
const MARGIN_US: u64 = 2_000;

pub fn check(history: &History) -> Vec<Violation> {
    let of = |(key, found, calls): (Key, Found, Vec<Call<Op>>)| {
        let problem = format!("no order of these explains them: {calls:?}");
        (found == Found::None).then_some(Violation { invariant: INVARIANT, key, problem })
    };
    judge_all(history).filter_map(of).collect()
}

/// Packages whose search was cut off.
pub fn undecided(history: &History) -> u64 {
    judge_all(history).filter(|(_, found, _)| *found == Found::Undecided).count() as u64
}

fn judge_all(history: &History) -> impl Iterator<Item = (Key, Found, Vec<Call<Op>>)> {
    history.packages().into_iter().map(|(key, records)| {
        let calls = calls(&records);
        (key.clone(), search(&Package, State::Absent, &calls), calls)
    })
}

/// What was asked of a package, with the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The answer: it was new, it was there, or nobody knows.
    Submit(Option<bool>),
    /// The lease with this fence ended so.
    Settle { fence: u64, done: bool },
    /// A lease with this fence was given to a worker.
    Lease { fence: u64 },
    /// None: not found.
    Read(Option<(String, u64)>),
}

/// A package, as far as histories tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Absent,
    /// `fence` is the highest that was seen; `over`: that lease has ended.
    Open {
        fence: u64,
        over: bool,
    },
    Ended {
        state: String,
        fence: u64,
    },
}

/// See the module.
pub struct Package;

impl Model for Package {
    type State = State;
    type Op = Op;

    fn step(&self, state: &State, op: &Op) -> Vec<State> {
        let next = match (op, state) {
            // One that was there already may be its own: the SDK tries a call again.
            (Op::Submit(_), State::Absent) => Some(State::Open { fence: 0, over: true }),
            (Op::Submit(Some(false) | None), State::Open { .. } | State::Ended { .. }) => Some(state.clone()),
            (Op::Lease { fence }, State::Open { .. }) if may_hold(state, *fence) => {
                Some(State::Open { fence: *fence, over: false })
            }
            (Op::Settle { fence, done: true }, _) if may_hold(state, *fence) => {
                Some(State::Ended { state: "COMPLETED".into(), fence: *fence })
            }
            (Op::Settle { fence, done: false }, _) if may_hold(state, *fence) => {
                Some(State::Open { fence: *fence, over: true })
            }
            // A repeat is answered as the first time, and does nothing.
            (Op::Settle { fence, done: true }, State::Ended { fence: by, .. }) if fence == by => Some(state.clone()),
            (Op::Settle { fence, done: false }, State::Open { fence: last, over: true }) if fence == last => {
                Some(state.clone())
            }
            (Op::Read(None), State::Absent) => Some(State::Absent),
            (Op::Read(Some((seen, fence))), State::Ended { state: end, fence: by }) => {
                (seen == end && (fence == by || *fence == 0)).then(|| state.clone())
            }
            (Op::Read(Some((seen, fence))), State::Open { fence: last, .. }) => read_open(state, *last, seen, *fence),
            _ => None,
        };
        next.into_iter().collect()
    }
}

/// That a worker may hold the lease with this fence now, or get it by something that nobody saw.
fn may_hold(state: &State, fence: u64) -> bool {
    matches!(state, State::Open { fence: last, over } if fence > *last || (fence == *last && !over))
}

/// What a read of a package that has not ended, as far as was seen, may show; and what is known then.
fn read_open(state: &State, last: u64, seen: &str, fence: u64) -> Option<State> {
    match seen {
        "LEASED" => may_hold(state, fence).then_some(State::Open { fence, over: false }),
        // Only by a worker, whose settlement is a call of its own.
        "COMPLETED" => None,
        // Without a fence it tells nothing of the lease.
        _ if fence != 0 && fence < last => None,
        "DEAD" | "CANCELLED" | "EXPIRED" => Some(State::Ended { state: seen.to_owned(), fence: fence.max(last) }),
        _ => Some(State::Open { fence: fence.max(last), over: true }),
    }
}

/// The calls that these records, of one package, tell of.
fn calls(records: &[&Record]) -> Vec<Call<Op>> {
    let mut calls: Vec<Call<Op>> = Vec::new();
    // By whom, and where in `calls`.
    let mut submits: Vec<(&str, usize)> = Vec::new();
    let mut settles: Vec<(&str, u64, Settlement, usize)> = Vec::new();
    let mut refused: Vec<usize> = Vec::new();
    for record in records {
        let (who, at_us) = (record.who.as_str(), record.at_us);
        match &record.event {
            Event::Submit { .. } => {
                submits.push((who, calls.len()));
                calls.push(Call { op: Op::Submit(None), from: at_us.saturating_sub(MARGIN_US), until: None });
            }
            Event::Submitted { answer, .. } => {
                let Some(place) = submits.iter().position(|(by, _)| *by == who) else { continue };
                let call = submits.remove(place).1;
                match answer {
                    Answer::Ok | Answer::Duplicate => {
                        calls[call].op = Op::Submit(Some(*answer == Answer::Ok));
                        calls[call].until = Some(at_us + MARGIN_US);
                    }
                    Answer::Refused => refused.push(call),
                    Answer::Unknown => {}
                }
            }
            Event::Delivered { fence, .. } => {
                let op = Op::Lease { fence: *fence };
                // A worker that lay frozen reads old news: it was leased some time before.
                calls.push(Call { op, from: 0, until: Some(at_us + MARGIN_US) });
            }
            Event::End { fence, settlement, .. } => {
                settles.push((who, *fence, *settlement, calls.len()));
                let op = Op::Settle { fence: *fence, done: *settlement == Settlement::Done };
                calls.push(Call { op, from: at_us.saturating_sub(MARGIN_US), until: None });
            }
            Event::Settled { fence, settlement, verdict, .. } => {
                let same =
                    |(by, of, how, _): &(&str, u64, Settlement, usize)| (*by, of, how) == (who, fence, settlement);
                let place = settles.iter().position(same).map(|place| settles.remove(place).3);
                let place = place.unwrap_or_else(|| {
                    // Nobody recorded when it was sent.
                    let op = Op::Settle { fence: *fence, done: *settlement == Settlement::Done };
                    calls.push(Call { op, from: 0, until: None });
                    calls.len() - 1
                });
                match verdict {
                    Verdict::Accepted => calls[place].until = Some(at_us + MARGIN_US),
                    Verdict::Refused => refused.push(place),
                    Verdict::Unknown => {}
                }
            }
            Event::Read { state, fence, .. } => {
                let op = Op::Read(state.clone().map(|state| (state, *fence)));
                let from = record.tells_of_us().saturating_sub(MARGIN_US);
                // Who asked at an unknown time has been told something of any time before.
                let from = if record.tells_of_us() == at_us { from.min(at_us.saturating_sub(MARGIN_US)) } else { from };
                calls.push(Call { op, from, until: Some(at_us + MARGIN_US) });
            }
            _ => {}
        }
    }
    // What was refused did nothing.
    let mut place = 0;
    calls.retain(|_| {
        place += 1;
        !refused.contains(&(place - 1))
    });
    calls
}

/// Histories that it must reject; see `super::story`.
#[cfg(test)]
pub(super) const BAD: &[&str] = &[
    // A read that does not see what was confirmed before.
    "c submit 1\nc ok 1\nc read 1 NONE",
    // It goes back in time.
    "c submit 1\nc unknown 1\nc read 1 READY\nc read 1 NONE",
    // New twice.
    "c submit 1\nc ok 1\nd submit 1\nd ok 1",
    // The same after a duplicate.
    "c submit 1\nc duplicate 1\nc read 1 READY\nc read 1 NONE",
    // A completion that nobody made.
    "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nc read 1 COMPLETED #5",
    // A stale read after an accepted completion.
    "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nw end 1 #5 done\nw settled 1 #5 done accepted\nc read 1 LEASED #5",
    // Accepted with a fence that a read had shown to be over.
    "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nc read 1 LEASED #9\nw end 1 #5 done\nw settled 1 #5 done accepted",
    // A lease that comes back after its failure was accepted.
    "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nw end 1 #5 fail\nw settled 1 #5 fail accepted\nc read 1 LEASED #5",
    // Two completions.
    "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nw end 1 #5 done\nw settled 1 #5 done accepted\nv end 1 #9 done\nv settled 1 #9 done accepted",
];

#[cfg(test)]
mod tests {
    use super::super::{judge, story};
    use super::{check, undecided};

    #[test]
    fn what_may_be_is_accepted() {
        for good in [
            "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nw end 1 #5 done\nw settled 1 #5 done accepted\nc last 1 COMPLETED #5",
            // Unknown, and there after all; or never.
            "c submit 1\nc unknown 1\nc read 1 NONE\nc read 1 READY",
            "c submit 1\nc unknown 1\nc last 1 NONE",
            "c submit 1\nc unknown 1\nc submit 1\nc duplicate 1\nc last 1 READY",
            // The answer to a completion was lost.
            "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nw end 1 #5 done\nt fault w killed\nc last 1 COMPLETED #5",
            // A lease that ran out unseen, and another.
            "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nc read 1 LEASED #5\nc read 1 READY #5\nc read 1 LEASED #9",
            // A frozen worker reads old news.
            "c submit 1\nc ok 1\nv deliver 1 #9 attempt=2\nv end 1 #9 done\nv settled 1 #9 done accepted\nw deliver 1 #5 attempt=1",
            // Refused: it did nothing.
            "c submit 1\nc refused 1\nc read 1 NONE\nc submit 1\nc ok 1\nc last 1 READY",
            "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nw end 1 #5 done\nw settled 1 #5 done refused\nc read 1 LEASED #9",
            // It died by itself.
            "c submit 1\nc ok 1\nw deliver 1 #5 attempt=1\nt fault w killed\nc last 1 DEAD #5",
            // Asked before the confirm, answered after it.
            "c submit 1\nc ok 1\nr read 1 NONE asked=1500000\nc last 1 READY",
        ] {
            assert_eq!(judge(check, good), [""; 0], "{good}");
            assert_eq!(undecided(&story(good)), 0);
        }
    }
}
