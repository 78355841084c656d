//! Between the public messages and what the state stores and shows. Generated API types stop here.
//!
//! Invariants: a package's content hash is over what its client set, in canonical form, before
//! defaults, clocks and minted ids: the same call again has the same hash in every version. Payloads
//! are shared, never copied here.

use prost_types::{Duration, Timestamp};
use xxhash_rust::xxh3::Xxh3;

use super::validate::{At, Problems};
use crate::env::Env;
use crate::machine::command as stored;
use crate::machine::effect;
use crate::machine::view::{FailureView, PackageView, QueueView, SessionStatus, SessionView};
use crate::proto::internal::new_package::{Expiry, Schedule};
use crate::proto::v1;
use crate::types::{State, Wall, limits};

/// A package as its client wants it. The id is minted here if the client gave none.
pub fn new_package(package: v1::NewPackage, at: At, problems: &mut Problems, env: &Env) -> stored::NewPackage {
    let queue = problems.queue(at, "queue", &package.queue);
    problems.id_or_none(at, &package.id);
    problems.word(at, "kind", &package.kind);
    problems.word(at, "content_type", &package.content_type);
    problems.at_most(at, "payload", package.payload.len(), limits::MAX_PAYLOAD_CEILING_BYTES as usize);
    problems.labels(at, &package.labels);
    if let Some(priority) = package.priority {
        problems.priority(at, "priority", priority);
    }
    if package.max_attempts == Some(0) {
        problems.bad(at, "max_attempts", "must be at least 1");
    }
    problems.not_yet(at, "group_key", !package.group_key.is_empty());
    problems.not_yet(at, "reply_to", !package.reply_to.is_empty());
    problems.not_yet(at, "forward_to", !package.forward_to.is_empty());
    let schedule = package.schedule.map(|schedule| match schedule {
        v1::new_package::Schedule::NotBefore(time) => Schedule::NotBeforeWall(problems.wall(at, "not_before", &time).0),
        v1::new_package::Schedule::Delay(delay) => Schedule::DelayMs(problems.duration_ms(at, "delay", &delay)),
    });
    let expiry = package.expiry.map(|expiry| match expiry {
        v1::new_package::Expiry::ExpireTime(time) => Expiry::ExpireWall(problems.wall(at, "expire_time", &time).0),
        v1::new_package::Expiry::Ttl(ttl) => Expiry::TtlMs(problems.positive_ms(at, "ttl", &ttl)),
    });
    let mut package = stored::NewPackage {
        queue,
        id: package.id,
        kind: package.kind,
        payload: package.payload,
        content_type: package.content_type,
        labels: package.labels,
        priority: package.priority,
        schedule,
        expiry,
        max_attempts: package.max_attempts,
        content_hash: 0,
    };
    package.content_hash = content_hash(&package);
    if package.id.is_empty() {
        package.id = mint_id(env);
    }
    package
}

/// Over what makes two submits of one id the same. Its form is a promise: hashes are stored.
fn content_hash(package: &stored::NewPackage) -> u64 {
    let mut hash = Xxh3::new();
    let mut part = |tag: u8, bytes: &[u8]| {
        hash.update(&[tag]);
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(1, package.kind.as_bytes());
    part(2, &package.payload);
    part(3, package.content_type.as_bytes());
    // In the order of their keys.
    for (key, value) in &package.labels {
        part(4, key.as_bytes());
        part(5, value.as_bytes());
    }
    if let Some(priority) = package.priority {
        part(6, &priority.to_le_bytes());
    }
    match package.schedule {
        Some(Schedule::NotBeforeWall(wall)) => part(7, &wall.to_le_bytes()),
        Some(Schedule::DelayMs(ms)) => part(8, &ms.to_le_bytes()),
        None => {}
    }
    match package.expiry {
        Some(Expiry::ExpireWall(wall)) => part(9, &wall.to_le_bytes()),
        Some(Expiry::TtlMs(ms)) => part(10, &ms.to_le_bytes()),
        None => {}
    }
    if let Some(attempts) = package.max_attempts {
        part(11, &attempts.to_le_bytes());
    }
    hash.digest()
}

/// A UUID of version 7 from the injected clock and random source.
pub fn mint_id(env: &Env) -> String {
    let mut random = [0; 10];
    random[..8].copy_from_slice(&env.random.next().to_le_bytes());
    random[8..].copy_from_slice(&env.random.next().to_le_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(env.clock.wall().0, &random).into_uuid().to_string()
}

/// A package for a reader.
pub fn package(view: &PackageView, with_payload: bool) -> v1::Package {
    let mut package = v1::Package {
        queue: view.queue.as_str().to_owned(),
        id: view.id.to_string(),
        state: view.state as i32,
        fence: view.fence.0,
        create_revision: view.create_revision.0,
        revision: view.revision.0,
        ..Default::default()
    };
    let Some(body) = &view.body else {
        return package;
    };
    if with_payload {
        package.payload = body.share_payload();
    }
    package.kind = body.kind().to_string();
    package.content_type = body.content_type().to_owned();
    package.labels = body.labels().iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    package.priority = view.priority;
    package.not_before = match view.state {
        State::Scheduled => view.due.or(body.not_before()),
        _ => body.not_before(),
    }
    .map(timestamp);
    package.expire_time = body.expire().map(timestamp);
    package.max_attempts = view.max_attempts;
    package.attempts = view.attempts;
    package.worker = text(&view.worker);
    package.session = text(&view.session);
    package.lease_expire_time = view.lease_expire.map(timestamp);
    package.create_time = Some(timestamp(body.create()));
    package.finish_time = view.finish.map(timestamp);
    package.checkpoint = view.checkpoint.to_bytes();
    package.result = view.result.to_bytes();
    package.result_content_type = view.result_content_type.to_string();
    package.result_evicted = view.result_evicted;
    package.moved_to = text(&view.moved_to);
    package.last_failure = view.last_failure.as_ref().map(failure);
    package
}

fn failure(view: &FailureView) -> v1::Failure {
    v1::Failure {
        cause: view.cause as i32,
        message: view.message.to_string(),
        code: view.code.to_string(),
        time: Some(timestamp(view.time)),
        worker: view.worker.to_string(),
    }
}

/// A package for its worker.
pub fn delivery(delivery: effect::Delivery) -> v1::Delivery {
    let body = &delivery.body;
    v1::Delivery {
        package: Some(v1::Package {
            queue: body.queue().as_str().to_owned(),
            id: body.id().to_string(),
            kind: body.kind().to_string(),
            payload: body.share_payload(),
            content_type: body.content_type().to_owned(),
            labels: body.labels().iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            priority: delivery.priority,
            not_before: body.not_before().map(timestamp),
            expire_time: body.expire().map(timestamp),
            max_attempts: body.max_attempts().unwrap_or_default(),
            state: State::Leased as i32,
            attempts: delivery.attempt.saturating_sub(1),
            fence: delivery.fence.0,
            create_time: Some(timestamp(body.create())),
            ..Default::default()
        }),
        fence: delivery.fence.0,
        lease: Some(duration(delivery.lease_ms)),
        attempt: delivery.attempt,
        checkpoint: delivery.checkpoint.to_bytes(),
    }
}

/// A queue with its counters; the rates are the caller's.
pub fn queue(view: &QueueView, submit_rate: f64, complete_rate: f64) -> v1::Queue {
    v1::Queue {
        name: view.name.as_str().to_owned(),
        settings: Some(settings(&view.settings)),
        paused: view.paused,
        sealed: view.sealed,
        ended: view.ended,
        stats: Some(v1::QueueStats {
            scheduled: view.scheduled,
            ready: view.ready,
            leased: view.leased,
            completed: view.completed,
            dead: view.dead,
            cancelled: view.cancelled,
            expired: view.expired,
            bytes: view.bytes,
            oldest_ready_age: Some(duration(view.oldest_ready_age_ms)),
            workers: view.workers,
            submit_rate,
            complete_rate,
        }),
        revision: view.revision.0,
    }
}

fn settings(settings: &stored::QueueSettings) -> v1::QueueSettings {
    v1::QueueSettings {
        lease: settings.lease_ms.map(duration),
        max_run: settings.max_run_ms.filter(|ms| *ms > 0).map(duration),
        max_attempts: settings.max_attempts,
        backoff: Some(v1::Backoff {
            initial: settings.backoff_initial_ms.map(duration),
            max: settings.backoff_max_ms.map(duration),
            multiplier: settings.backoff_multiplier_milli.map(|milli| f64::from(milli) / 1000.0),
        }),
        dead_letter_queue: settings.dead_letter_queue.clone().unwrap_or_default(),
        max_packages: settings.max_packages.filter(limits_it),
        max_bytes: settings.max_bytes.filter(limits_it),
        max_payload: settings.max_payload,
        max_result: settings.max_result,
        max_in_flight: settings.max_in_flight,
        keep_finished: settings.keep_finished_ms.map(duration),
        keep_finished_count: settings.keep_finished_count,
        keep_finished_bytes: settings.keep_finished_bytes,
        dedup_window: settings.dedup_window_ms.map(duration),
        history: settings.history.unwrap_or_default() as i32,
        default_priority: settings.default_priority,
    }
}

/// The state's way to say "no limit" is the highest number; the API's is silence.
fn limits_it(limit: &u64) -> bool {
    *limit != u64::MAX
}

/// Settings as a client wants them; what it left out is absent.
pub fn new_settings(settings: &v1::QueueSettings, at: At, problems: &mut Problems) -> stored::QueueSettings {
    let backoff = settings.backoff.unwrap_or_default();
    if let Some(priority) = settings.default_priority {
        problems.priority(at, "default_priority", priority);
    }
    if settings.max_attempts == Some(0) {
        problems.bad(at, "max_attempts", "must be at least 1");
    }
    for (field, value) in [("max_payload", settings.max_payload), ("max_result", settings.max_result)] {
        if value.is_some_and(|bytes| bytes > limits::MAX_PAYLOAD_CEILING_BYTES) {
            problems.bad(at, field, format_args!("must be at most {} bytes", limits::MAX_PAYLOAD_CEILING_BYTES));
        }
    }
    let history = match v1::History::try_from(settings.history) {
        Ok(v1::History::Unspecified) => None,
        Ok(known) => Some(known as u32),
        Err(_) => {
            problems.bad(at, "history", "must be NONE, FAILURES or ALL");
            None
        }
    };
    let multiplier = backoff.multiplier.and_then(|multiplier| {
        if !(1.0..=16.0).contains(&multiplier) {
            problems.bad(at, "backoff.multiplier", "must be 1 to 16");
            return None;
        }
        Some((multiplier * 1000.0).round() as u32)
    });
    let dead_letter_queue = (!settings.dead_letter_queue.is_empty())
        .then(|| problems.queue(at, "dead_letter_queue", &settings.dead_letter_queue));
    let mut positive = |field: &str, duration: &Option<Duration>| {
        duration.as_ref().map(|duration| problems.positive_ms(at, field, duration))
    };
    let (lease_ms, max_run_ms) = (positive("lease", &settings.lease), positive("max_run", &settings.max_run));
    let mut any = |field: &str, duration: &Option<Duration>| {
        duration.as_ref().map(|duration| problems.duration_ms(at, field, duration))
    };
    stored::QueueSettings {
        lease_ms,
        max_run_ms,
        max_attempts: settings.max_attempts,
        backoff_initial_ms: any("backoff.initial", &backoff.initial),
        backoff_max_ms: any("backoff.max", &backoff.max),
        backoff_multiplier_milli: multiplier,
        dead_letter_queue,
        max_packages: settings.max_packages,
        max_bytes: settings.max_bytes,
        max_payload: settings.max_payload,
        max_result: settings.max_result,
        max_in_flight: settings.max_in_flight,
        keep_finished_ms: any("keep_finished", &settings.keep_finished),
        keep_finished_count: settings.keep_finished_count,
        keep_finished_bytes: settings.keep_finished_bytes,
        dedup_window_ms: any("dedup_window", &settings.dedup_window),
        history,
        default_priority: settings.default_priority,
    }
}

/// Only the settings that the mask names; all that are set if it names none. A masked field that is
/// not set goes back to "none" where there is such a thing; elsewhere a value must be given.
pub fn masked_settings(
    settings: stored::QueueSettings,
    paths: &[String],
    problems: &mut Problems,
) -> stored::QueueSettings {
    if paths.is_empty() {
        return settings;
    }
    let mut masked = stored::QueueSettings::default();
    for path in paths {
        let field = path.strip_prefix("settings.").unwrap_or(path);
        macro_rules! take {
            ($field:ident) => {{
                masked.$field = settings.$field.clone();
                masked.$field.is_some()
            }};
            ($field:ident or $none:expr) => {{
                masked.$field = settings.$field.clone().or(Some($none));
                true
            }};
        }
        let given = match field {
            "lease" => take!(lease_ms),
            "max_run" => take!(max_run_ms or 0),
            "max_attempts" => take!(max_attempts),
            "backoff" => take!(backoff_initial_ms) | take!(backoff_max_ms) | take!(backoff_multiplier_milli),
            "backoff.initial" => take!(backoff_initial_ms),
            "backoff.max" => take!(backoff_max_ms),
            "backoff.multiplier" => take!(backoff_multiplier_milli),
            "dead_letter_queue" => take!(dead_letter_queue or String::new()),
            "max_packages" => take!(max_packages or u64::MAX),
            "max_bytes" => take!(max_bytes or u64::MAX),
            "max_payload" => take!(max_payload),
            "max_result" => take!(max_result),
            "max_in_flight" => take!(max_in_flight or 0),
            "keep_finished" => take!(keep_finished_ms),
            "keep_finished_count" => take!(keep_finished_count),
            "keep_finished_bytes" => take!(keep_finished_bytes),
            "dedup_window" => take!(dedup_window_ms),
            "history" => take!(history),
            "default_priority" => take!(default_priority),
            _ => {
                problems.bad(At::Top, "update_mask", format_args!("knows no path `{path}` below `settings`"));
                continue;
            }
        };
        if !given {
            problems.bad(At::In("queue"), format_args!("settings.{field}"), "is named by the mask and has no value");
        }
    }
    masked
}

/// A session for a reader.
pub fn worker(view: &SessionView) -> v1::Worker {
    let status = match view.status {
        SessionStatus::Attached => v1::worker::Status::Attached,
        SessionStatus::Detached => v1::worker::Status::Detached,
        SessionStatus::Draining => v1::worker::Status::Draining,
        SessionStatus::Silent => v1::worker::Status::Silent,
    };
    v1::Worker {
        worker: view.worker.to_string(),
        session: view.session.to_string(),
        status: status as i32,
        queues: view.queues.iter().map(|queue| queue.as_str().to_owned()).collect(),
        kinds: view.kinds.iter().map(|kind| kind.to_string()).collect(),
        labels: view.labels.iter().cloned().collect(),
        max_in_flight: view.max_in_flight,
        concurrency: view.concurrency,
        leased: view.leased,
        leased_bytes: view.leased_bytes,
        epoch: view.epoch.0,
        open_time: Some(timestamp(view.open)),
    }
}

/// The cluster's settings, for a reader.
pub fn cluster(settings: &stored::ClusterSettings) -> v1::ClusterSettings {
    v1::ClusterSettings {
        session_grace: settings.session_grace_ms.map(duration),
        failover_grace: settings.failover_grace_ms.map(duration),
        auto_create_queues: settings.auto_create_queues,
        memory_budget_bytes: settings.memory_budget_bytes,
        dedup_budget: settings.dedup_budget,
        max_queues: settings.max_queues,
        max_sessions: settings.max_sessions,
    }
}

/// The cluster's settings as an operator wants them.
pub fn new_cluster(settings: &v1::ClusterSettings, problems: &mut Problems) -> stored::ClusterSettings {
    let at = At::In("settings");
    let mut positive = |field: &str, duration: &Option<Duration>| {
        duration.as_ref().map(|duration| problems.positive_ms(at, field, duration))
    };
    stored::ClusterSettings {
        session_grace_ms: positive("session_grace", &settings.session_grace),
        failover_grace_ms: positive("failover_grace", &settings.failover_grace),
        auto_create_queues: settings.auto_create_queues,
        memory_budget_bytes: settings.memory_budget_bytes,
        dedup_budget: settings.dedup_budget,
        max_queues: settings.max_queues,
        max_sessions: settings.max_sessions,
    }
}

/// A lease as messages name it.
pub fn held(lease: &effect::LeaseRef) -> v1::Held {
    v1::Held { queue: lease.queue.as_str().to_owned(), id: lease.id.to_string(), fence: lease.fence.0 }
}

pub fn duration(ms: u64) -> Duration {
    Duration { seconds: (ms / 1000) as i64, nanos: (ms % 1000) as i32 * 1_000_000 }
}

pub fn timestamp(wall: Wall) -> Timestamp {
    Timestamp { seconds: (wall.0 / 1000) as i64, nanos: (wall.0 % 1000) as i32 * 1_000_000 }
}

/// At most `limit` bytes of a text, cut at a character.
pub fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let end = (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn text(text: &Option<std::sync::Arc<str>>) -> String {
    text.as_deref().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn public() -> v1::NewPackage {
        v1::NewPackage {
            queue: "default/jobs".into(),
            id: "a".into(),
            kind: "mail".into(),
            payload: Bytes::from_static(b"hello"),
            labels: [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            schedule: Some(v1::new_package::Schedule::Delay(Duration { seconds: 1, nanos: 0 })),
            ..Default::default()
        }
    }

    fn converted(package: v1::NewPackage) -> stored::NewPackage {
        let mut problems = Problems::default();
        let converted = new_package(package, At::Top, &mut problems, &Env::real());
        problems.check().expect("nothing is wrong with it");
        converted
    }

    #[test]
    fn the_content_hash_is_a_promise() {
        const PROMISED: u64 = 3_940_237_685_667_861_643;
        let first = converted(public());
        assert_eq!(first.queue, "jobs");
        assert_eq!(first.content_hash, PROMISED, "stored hashes would no longer match");
        assert_eq!(converted(public()).content_hash, first.content_hash);
        let elsewhere = converted(v1::NewPackage { queue: "other".into(), id: String::new(), ..public() });
        assert_eq!(elsewhere.content_hash, first.content_hash, "queue and id are the key, not the content");
        assert!(!elsewhere.id.is_empty());
    }

    #[test]
    fn each_field_that_the_client_sets_changes_the_hash() {
        use v1::new_package::{Expiry, Schedule};
        let second = || Duration { seconds: 1, nanos: 0 };
        let at = || Timestamp { seconds: 1, nanos: 0 };
        let variants = [
            public(),
            v1::NewPackage { kind: "post".into(), ..public() },
            v1::NewPackage { payload: Bytes::from_static(b"hallo"), ..public() },
            v1::NewPackage { content_type: "text/plain".into(), ..public() },
            v1::NewPackage { labels: [("ab".to_owned(), "12".to_owned())].into(), ..public() },
            v1::NewPackage { labels: Default::default(), ..public() },
            v1::NewPackage { priority: Some(4), ..public() },
            v1::NewPackage { schedule: None, ..public() },
            v1::NewPackage { schedule: Some(Schedule::NotBefore(at())), ..public() },
            v1::NewPackage { expiry: Some(Expiry::ExpireTime(at())), ..public() },
            v1::NewPackage { expiry: Some(Expiry::Ttl(second())), ..public() },
            v1::NewPackage { max_attempts: Some(5), ..public() },
        ];
        let mut hashes: Vec<_> = variants.into_iter().map(|p| converted(p).content_hash).collect();
        let all = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), all);
    }

    #[test]
    fn a_mask_takes_what_it_names() {
        let wanted = v1::QueueSettings {
            lease: Some(Duration { seconds: 5, nanos: 0 }),
            max_attempts: Some(3),
            ..Default::default()
        };
        let masked = |paths: &[&str]| {
            let mut problems = Problems::default();
            let settings = new_settings(&wanted, At::In("settings"), &mut problems);
            let paths: Vec<_> = paths.iter().map(|path| path.to_string()).collect();
            let masked = masked_settings(settings, &paths, &mut problems);
            problems.check().map(|()| masked)
        };
        let all = masked(&[]).unwrap();
        assert_eq!((all.lease_ms, all.max_attempts), (Some(5000), Some(3)));
        let one = masked(&["lease", "settings.dead_letter_queue", "max_run"]).unwrap();
        assert_eq!((one.lease_ms, one.max_attempts), (Some(5000), None));
        assert_eq!((one.dead_letter_queue.as_deref(), one.max_run_ms), (Some(""), Some(0)));
        assert_eq!(masked(&["max_bytes"]).unwrap().max_bytes, Some(u64::MAX));
        assert!(masked(&["history"]).is_err());
        assert!(masked(&["no_such_thing"]).is_err());
    }

    #[test]
    fn settings_come_back_as_they_went_in() {
        let wanted = v1::QueueSettings {
            lease: Some(duration(1_500)),
            max_run: Some(duration(60_000)),
            max_attempts: Some(7),
            backoff: Some(v1::Backoff { initial: Some(duration(10)), max: Some(duration(20)), multiplier: Some(1.5) }),
            dead_letter_queue: "team/dead".into(),
            max_packages: Some(1),
            max_bytes: Some(2),
            max_payload: Some(3),
            max_result: Some(4),
            max_in_flight: Some(5),
            keep_finished: Some(duration(6)),
            keep_finished_count: Some(7),
            keep_finished_bytes: Some(8),
            dedup_window: Some(duration(9)),
            history: v1::History::All as i32,
            default_priority: Some(9),
        };
        let mut problems = Problems::default();
        let stored = new_settings(&wanted, At::Top, &mut problems);
        problems.check().unwrap();
        assert_eq!(settings(&stored), wanted);
    }

    #[test]
    fn minted_ids_are_uuids_of_version_7() {
        let id = uuid::Uuid::parse_str(&mint_id(&Env::real())).unwrap();
        assert_eq!(id.get_version_num(), 7);
    }

    #[test]
    fn a_cut_text_stays_text() {
        assert_eq!(cut("aä".into(), 2), "a");
        assert_eq!(cut("aä".into(), 3), "aä");
    }
}
