//! Settings of queues and of the cluster: what is in force, how a change is checked and merged.

use super::reject::Reject;
use crate::proto::internal;
use crate::types::limits;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// No duration in a setting is longer. Fixed.
const LONGEST_MS: u64 = 3650 * DAY_MS;

/// A queue's settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub lease_ms: u64,
    /// 0: no cap.
    pub max_run_ms: u64,
    pub max_attempts: u32,
    pub backoff_initial_ms: u64,
    pub backoff_max_ms: u64,
    pub backoff_multiplier_milli: u32,
    /// Empty: none.
    pub dead_letter_queue: String,
    pub max_packages: u64,
    pub max_bytes: u64,
    pub max_payload: u64,
    pub max_result: u64,
    /// 0: no cap.
    pub max_in_flight: u32,
    pub keep_finished_ms: u64,
    pub keep_finished_count: u64,
    pub keep_finished_bytes: u64,
    pub dedup_window_ms: u64,
    pub history: u32,
    pub default_priority: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ms: 60_000,
            max_run_ms: 0,
            max_attempts: 5,
            backoff_initial_ms: 1_000,
            backoff_max_ms: 300_000,
            backoff_multiplier_milli: 2_000,
            dead_letter_queue: String::new(),
            max_packages: u64::MAX,
            max_bytes: u64::MAX,
            max_payload: 1 << 20,
            max_result: 1 << 20,
            max_in_flight: 0,
            keep_finished_ms: 3_600_000,
            keep_finished_count: 10_000,
            keep_finished_bytes: 64 << 20,
            dedup_window_ms: 60_000,
            history: 2,
            default_priority: 4,
        }
    }
}

/// Names every field once for merging and for showing.
macro_rules! fields {
    ($apply:ident) => {
        $apply!(
            lease_ms,
            max_run_ms,
            max_attempts,
            backoff_initial_ms,
            backoff_max_ms,
            backoff_multiplier_milli,
            dead_letter_queue,
            max_packages,
            max_bytes,
            max_payload,
            max_result,
            max_in_flight,
            keep_finished_ms,
            keep_finished_count,
            keep_finished_bytes,
            dedup_window_ms,
            history,
            default_priority
        )
    };
}

impl Settings {
    /// These, with what `change` sets.
    pub fn merged(&self, change: &internal::QueueSettings) -> Result<Self, Reject> {
        let mut merged = self.clone();
        macro_rules! take {
            ($($field:ident),*) => {
                $(if let Some(value) = &change.$field { merged.$field = value.clone(); })*
            };
        }
        fields!(take);
        merged.validate()?;
        Ok(merged)
    }

    /// Every field set.
    pub fn show(&self) -> internal::QueueSettings {
        macro_rules! give {
            ($($field:ident),*) => {
                internal::QueueSettings { $($field: Some(self.$field.clone()),)* }
            };
        }
        fields!(give)
    }

    fn validate(&self) -> Result<(), Reject> {
        let within = |field: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Reject::BadField {
                field: format!("settings.{field}"),
                problem: format!("must be {low} to {high}, is {value}"),
            })
        };
        within("lease", self.lease_ms, 1, DAY_MS)?;
        within("max_run", self.max_run_ms, 0, LONGEST_MS)?;
        within("max_attempts", u64::from(self.max_attempts), 1, 1_000_000)?;
        within("backoff.initial", self.backoff_initial_ms, 0, LONGEST_MS)?;
        within("backoff.max", self.backoff_max_ms, self.backoff_initial_ms, LONGEST_MS)?;
        within("backoff.multiplier", u64::from(self.backoff_multiplier_milli), 1_000, 16_000)?;
        within("max_payload", self.max_payload, 0, limits::MAX_PAYLOAD_CEILING_BYTES)?;
        within("max_result", self.max_result, 0, limits::MAX_PAYLOAD_CEILING_BYTES)?;
        within("keep_finished", self.keep_finished_ms, 0, LONGEST_MS)?;
        within("dedup_window", self.dedup_window_ms, 0, 30 * DAY_MS)?;
        within("history", u64::from(self.history), 1, 3)?;
        within("default_priority", u64::from(self.default_priority), 0, u64::from(limits::MAX_PRIORITY))
    }

    /// How long a package rests after its `attempts`-th attempt: exponential, within ten percent
    /// either way by `noise`, so that what failed together does not return together.
    pub fn backoff_ms(&self, attempts: u32, noise: u64) -> u64 {
        let mut rest = self.backoff_initial_ms;
        for _ in 1..attempts {
            if rest >= self.backoff_max_ms {
                break;
            }
            rest = rest.saturating_mul(u64::from(self.backoff_multiplier_milli)) / 1_000;
        }
        let rest = rest.min(self.backoff_max_ms);
        rest.saturating_mul(9_000 + noise % 2_001) / 10_000
    }
}

/// The cluster's settings in force: the numbers that `apply` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub session_grace_ms: u64,
    pub failover_grace_ms: u64,
    pub auto_create_queues: bool,
    pub memory_budget_bytes: u64,
    pub dedup_budget: u64,
    pub max_queues: u32,
    pub max_sessions: u32,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            session_grace_ms: limits::DEFAULT_SESSION_GRACE_MS,
            failover_grace_ms: limits::DEFAULT_FAILOVER_GRACE_MS,
            auto_create_queues: false,
            memory_budget_bytes: limits::DEFAULT_MEMORY_BUDGET_BYTES,
            dedup_budget: limits::DEFAULT_DEDUP_BUDGET,
            max_queues: limits::DEFAULT_MAX_QUEUES,
            max_sessions: limits::DEFAULT_MAX_SESSIONS,
        }
    }
}

impl Cluster {
    pub fn merged(&self, change: &internal::ClusterSettings) -> Result<Self, Reject> {
        let merged = Self {
            session_grace_ms: change.session_grace_ms.unwrap_or(self.session_grace_ms),
            failover_grace_ms: change.failover_grace_ms.unwrap_or(self.failover_grace_ms),
            auto_create_queues: change.auto_create_queues.unwrap_or(self.auto_create_queues),
            memory_budget_bytes: change.memory_budget_bytes.unwrap_or(self.memory_budget_bytes),
            dedup_budget: change.dedup_budget.unwrap_or(self.dedup_budget),
            max_queues: change.max_queues.unwrap_or(self.max_queues),
            max_sessions: change.max_sessions.unwrap_or(self.max_sessions),
        };
        for (field, value) in [("session_grace", merged.session_grace_ms), ("failover_grace", merged.failover_grace_ms)]
        {
            if !(1..=DAY_MS).contains(&value) {
                return Err(Reject::BadField {
                    field: format!("settings.{field}"),
                    problem: format!("must be 1 ms to a day, is {value} ms"),
                });
            }
        }
        Ok(merged)
    }

    /// Every field set.
    pub fn show(&self) -> internal::ClusterSettings {
        internal::ClusterSettings {
            session_grace_ms: Some(self.session_grace_ms),
            failover_grace_ms: Some(self.failover_grace_ms),
            auto_create_queues: Some(self.auto_create_queues),
            memory_budget_bytes: Some(self.memory_budget_bytes),
            dedup_budget: Some(self.dedup_budget),
            max_queues: Some(self.max_queues),
            max_sessions: Some(self.max_sessions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_cap_within_ten_percent() {
        let settings = Settings::default();
        for (attempts, middle) in [(1, 1_000), (2, 2_000), (3, 4_000), (10, 300_000), (1_000_000, 300_000)] {
            for noise in [0, 1_000, 2_000, u64::MAX] {
                let rest = settings.backoff_ms(attempts, noise);
                assert!(rest >= middle * 9 / 10 && rest <= middle * 11 / 10, "{attempts} {noise}: {rest}");
            }
        }
    }
}
