//! Building a package to submit.

use std::time::Duration;

use bytes::Bytes;

use super::NewPackage;
use crate::proto::v1::new_package::{Expiry, Schedule};
use crate::types::Wall;

impl NewPackage {
    /// A package for `queue`. The client mints its id if none is set.
    pub fn new(queue: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { queue: queue.into(), payload: payload.into(), ..Default::default() }
    }

    /// Unique in its queue; submitting the same twice makes one package.
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Workers may ask for certain kinds only.
    pub fn with_kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// 0 to 9, 9 first; the queue's default if not set.
    pub fn with_priority(mut self, priority: u32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Leases that may count before the package is dead; the queue's default if not set.
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// Not due before this much time has passed since it was taken.
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.schedule = Some(Schedule::Delay(duration(delay)));
        self
    }

    /// Not due before this moment.
    pub fn with_not_before(mut self, at: Wall) -> Self {
        self.schedule = Some(Schedule::NotBefore(timestamp(at)));
        self
    }

    /// Expires this much time after it was taken, unless it is leased or finished by then.
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.expiry = Some(Expiry::Ttl(duration(ttl)));
        self
    }

    /// Expires at this moment, unless it is leased or finished by then.
    pub fn with_expire_time(mut self, at: Wall) -> Self {
        self.expiry = Some(Expiry::ExpireTime(timestamp(at)));
        self
    }
}

/// For a message. What does not fit is as long as can be.
pub(super) fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: value.subsec_nanos() as i32,
    }
}

/// From a message. What is negative or not set is zero.
pub(super) fn std_duration(value: Option<prost_types::Duration>) -> Duration {
    value.and_then(|value| Duration::try_from(value).ok()).unwrap_or_default()
}

fn timestamp(at: Wall) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (at.0 / 1000) as i64, nanos: ((at.0 % 1000) * 1_000_000) as i32 }
}
