//! What a field may hold, before anything is proposed. Problems are collected, so that one refusal
//! names them all, each with its path in the request.
//!
//! Invariants: paths are built only when something is wrong. What only the state can know (a queue's
//! own limits, whether it exists) is checked by the machine.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use prost_types::{Duration, Timestamp};

use super::status::Refusal;
use crate::dispatch;
use crate::types::{QueueName, Wall, limits};

/// Where a field stands: `packages[3].` or nothing.
#[derive(Clone, Copy)]
pub enum At {
    Top,
    Item(&'static str, usize),
    In(&'static str),
}

impl Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Top => Ok(()),
            At::Item(list, index) => write!(f, "{list}[{index}]."),
            At::In(field) => write!(f, "{field}."),
        }
    }
}

/// The problems of one request.
#[derive(Default, Debug)]
pub struct Problems {
    bad: Vec<(String, String)>,
    not_yet: Vec<(String, String)>,
}

impl Problems {
    pub fn is_empty(&self) -> bool {
        self.bad.is_empty() && self.not_yet.is_empty()
    }

    /// Takes those of another request in.
    pub fn extend(&mut self, others: &Problems) {
        self.bad.extend_from_slice(&others.bad);
        self.not_yet.extend_from_slice(&others.not_yet);
    }

    /// Refuses if there are any.
    pub fn check(self) -> Result<(), Refusal> {
        // What is malformed is told first: nothing of it could be honoured by any version.
        if !self.bad.is_empty() {
            return Err(Refusal::BadFields(self.bad));
        }
        if !self.not_yet.is_empty() {
            return Err(Refusal::NotYetSupported(self.not_yet));
        }
        Ok(())
    }

    /// The same, for the answer to one settlement.
    pub fn refusal(self) -> Option<dispatch::Refusal> {
        if !self.bad.is_empty() {
            return Some(dispatch::Refusal::Fields { fields: self.bad, not_yet: false });
        }
        let not_yet = !self.not_yet.is_empty();
        not_yet.then_some(dispatch::Refusal::Fields { fields: self.not_yet, not_yet })
    }

    pub fn bad(&mut self, at: At, field: impl Display, problem: impl Display) {
        self.bad.push((format!("{at}{field}"), problem.to_string()));
    }

    pub fn not_yet(&mut self, at: At, field: &str, is_set: bool) {
        if is_set {
            self.not_yet.push((format!("{at}{field}"), "is not supported by this version".to_owned()));
        }
    }

    /// A queue's canonical name; the text itself if it is none (and then a problem).
    pub fn queue(&mut self, at: At, field: &str, text: &str) -> String {
        match QueueName::parse(text) {
            Ok(name) => name.as_str().to_owned(),
            Err(error) => {
                self.bad(at, field, error);
                text.to_owned()
            }
        }
    }

    /// A package's id, which must be there.
    pub fn id(&mut self, at: At, id: &str) {
        if id.is_empty() {
            self.bad(at, "id", "must not be empty");
        }
        self.id_or_none(at, id);
    }

    /// A package's id, or none.
    pub fn id_or_none(&mut self, at: At, id: &str) {
        self.at_most(at, "id", id.len(), limits::MAX_ID_BYTES);
        if id.bytes().any(|byte| byte.is_ascii_control()) {
            self.bad(at, "id", "must not hold control characters");
        }
    }

    /// A kind, a worker's name, a session, a content type.
    pub fn word(&mut self, at: At, field: &str, word: &str) {
        self.at_most(at, field, word.len(), limits::MAX_WORD_BYTES);
    }

    pub fn at_most(&mut self, at: At, field: &str, len: usize, limit: usize) {
        if len > limit {
            self.bad(at, field, format_args!("has {len} bytes, at most {limit} are allowed"));
        }
    }

    /// A list with at most `limit` items, and at least one if `needed`.
    pub fn items(&mut self, field: &str, len: usize, limit: usize, needed: bool) {
        if len > limit {
            self.bad(At::Top, field, format_args!("has {len} items, at most {limit} are allowed"));
        }
        if len == 0 && needed {
            self.bad(At::Top, field, "must not be empty");
        }
    }

    pub fn labels(&mut self, at: At, labels: &BTreeMap<String, String>) {
        if labels.len() > limits::MAX_LABELS {
            let (len, limit) = (labels.len(), limits::MAX_LABELS);
            self.bad(at, "labels", format_args!("has {len} entries, at most {limit} are allowed"));
        }
        for (key, value) in labels {
            if key.is_empty() {
                self.bad(at, "labels", "a key must not be empty");
            }
            if key.len() > limits::MAX_LABEL_KEY_BYTES {
                self.bad(at, "labels", format_args!("a key has at most {} bytes", limits::MAX_LABEL_KEY_BYTES));
            }
            if value.len() > limits::MAX_LABEL_VALUE_BYTES {
                let limit = limits::MAX_LABEL_VALUE_BYTES;
                self.bad(at, format_args!("labels[{key:?}]"), format_args!("has more than {limit} bytes"));
            }
        }
    }

    pub fn priority(&mut self, at: At, field: &str, priority: u32) {
        if priority > limits::MAX_PRIORITY {
            self.bad(at, field, format_args!("must be 0 to {}", limits::MAX_PRIORITY));
        }
    }

    /// Milliseconds, rounded up: what is not zero stays so.
    pub fn duration_ms(&mut self, at: At, field: &str, duration: &Duration) -> u64 {
        let whole = u64::try_from(duration.seconds).ok().and_then(|seconds| seconds.checked_mul(1000));
        let part = u64::try_from(duration.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        match (whole, part) {
            (Some(whole), Some(nanos)) => whole.saturating_add(nanos.div_ceil(1_000_000)),
            _ => {
                self.bad(at, field, "must be a duration of zero or more");
                0
            }
        }
    }

    /// The same, but zero makes no sense here.
    pub fn positive_ms(&mut self, at: At, field: &str, duration: &Duration) -> u64 {
        let problems = self.bad.len();
        let ms = self.duration_ms(at, field, duration);
        if ms == 0 && self.bad.len() == problems {
            self.bad(at, field, "must be longer than zero");
        }
        ms
    }

    pub fn wall(&mut self, at: At, field: &str, time: &Timestamp) -> Wall {
        let whole = u64::try_from(time.seconds).ok().and_then(|seconds| seconds.checked_mul(1000));
        let part = u64::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        match (whole, part) {
            (Some(whole), Some(nanos)) => Wall(whole.saturating_add(nanos / 1_000_000)),
            _ => {
                self.bad(at, field, "must be a time after 1970 with 0 to 999999999 nanoseconds");
                Wall(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(check: impl FnOnce(&mut Problems)) -> Vec<String> {
        let mut problems = Problems::default();
        check(&mut problems);
        match problems.check() {
            Ok(()) => vec![],
            Err(Refusal::BadFields(fields) | Refusal::NotYetSupported(fields)) => {
                fields.into_iter().map(|(path, problem)| format!("{path}: {problem}")).collect()
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_say_where_and_problems_say_what() {
        assert_eq!(
            problems(|p| {
                p.queue(At::Item("packages", 2), "queue", "");
                p.id(At::Top, "");
                p.priority(At::In("settings"), "default_priority", 10);
            }),
            [
                "packages[2].queue: a queue name must not be empty",
                "id: must not be empty",
                "settings.default_priority: must be 0 to 9",
            ]
        );
    }

    #[test]
    fn each_bound_is_hit_one_past_it() {
        let text = |len: usize| "x".repeat(len);
        assert!(problems(|p| p.id(At::Top, &text(limits::MAX_ID_BYTES))).is_empty());
        assert_eq!(problems(|p| p.id(At::Top, &text(limits::MAX_ID_BYTES + 1))).len(), 1);
        assert_eq!(problems(|p| p.word(At::Top, "kind", &text(limits::MAX_WORD_BYTES + 1))).len(), 1);
        assert_eq!(problems(|p| p.items("packages", 1001, limits::MAX_PACKAGES_A_SUBMIT, true)).len(), 1);
        assert_eq!(problems(|p| p.items("packages", 0, limits::MAX_PACKAGES_A_SUBMIT, true)).len(), 1);
        let many = (0..=limits::MAX_LABELS).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(problems(|p| p.labels(At::Top, &many)).len(), 1);
        let long = BTreeMap::from([(text(limits::MAX_LABEL_KEY_BYTES + 1), text(limits::MAX_LABEL_VALUE_BYTES + 1))]);
        assert_eq!(problems(|p| p.labels(At::Top, &long)).len(), 2);
    }

    #[test]
    fn times_are_milliseconds_and_never_negative() {
        let mut p = Problems::default();
        assert_eq!(p.duration_ms(At::Top, "ttl", &Duration { seconds: 1, nanos: 1 }), 1001);
        assert_eq!(p.wall(At::Top, "not_before", &Timestamp { seconds: 2, nanos: 999_999_999 }), Wall(2999));
        p.check().unwrap();
        assert_eq!(problems(|p| _ = p.duration_ms(At::Top, "ttl", &Duration { seconds: -1, nanos: 0 })).len(), 1);
        assert_eq!(problems(|p| _ = p.duration_ms(At::Top, "ttl", &Duration { seconds: 0, nanos: -1 })).len(), 1);
        assert_eq!(problems(|p| _ = p.positive_ms(At::Top, "lease", &Duration::default())).len(), 1);
        assert_eq!(problems(|p| _ = p.wall(At::Top, "t", &Timestamp { seconds: -1, nanos: 0 })).len(), 1);
        let forever = Duration { seconds: i64::MAX, nanos: 0 };
        assert_eq!(problems(|p| _ = p.duration_ms(At::Top, "ttl", &forever)).len(), 1);
    }

    #[test]
    fn what_comes_later_is_refused_by_name() {
        assert_eq!(
            problems(|p| p.not_yet(At::Item("packages", 0), "group_key", true)),
            ["packages[0].group_key: is not supported by this version"]
        );
        assert!(problems(|p| p.not_yet(At::Top, "group_key", false)).is_empty());
    }
}
