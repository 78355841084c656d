//! Queue names: `name` or `namespace/name`.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::limits;

/// A checked queue name in its canonical form: `name` in the namespace `default`, else
/// `namespace/name`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName(Arc<str>);

/// Why a text is no queue name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a queue name must not be empty")]
    Empty,
    #[error("a queue name has at most {max} bytes in each part, this one has {len}", max = limits::MAX_NAME_BYTES)]
    TooLong { len: usize },
    #[error(
        "`{0}` is no queue name: use letters, digits, `.`, `_` and `-`, begin with a letter or digit, and at most one `/` between namespace and name"
    )]
    Malformed(String),
}

impl QueueName {
    /// Checks and canonicalizes.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        let canonical = text.strip_prefix("default/").unwrap_or(text);
        let mut parts = 0;
        for part in canonical.split('/') {
            parts += 1;
            if part.len() > limits::MAX_NAME_BYTES {
                return Err(Error::TooLong { len: part.len() });
            }
            let first_ok = part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
            let rest_ok = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !first_ok || !rest_ok {
                return Err(Error::Malformed(text.to_owned()));
            }
        }
        let slashes_ok = parts <= 2 && !(parts == 2 && text.len() != canonical.len());
        if !slashes_ok {
            return Err(Error::Malformed(text.to_owned()));
        }
        Ok(Self(canonical.into()))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names compare as their texts do.
impl Borrow<str> for QueueName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_queue_has_one_name() {
        let name = |text| QueueName::parse(text).map(|n| n.as_str().to_owned());
        assert_eq!(name("jobs").as_deref(), Ok("jobs"));
        assert_eq!(name("default/jobs").as_deref(), Ok("jobs"));
        assert_eq!(name("team-a/jobs.v2").as_deref(), Ok("team-a/jobs.v2"));
        for bad in ["", "/", "a/", "/a", "a/b/c", "default/a/b", "a b", "-a", "ä", "default/"] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
        assert_eq!(name(&"x".repeat(256)), Err(Error::TooLong { len: 256 }));
    }
}
