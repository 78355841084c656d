//! The API's data as it is printed: one row of a table, or one JSON object with the API's names.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use serde::Serialize;

use super::args;
use super::output::{self, Row};
use crate::client::{self, Cause, History, NodeStatus, State, WorkerStatus};

/// A package.
#[derive(Serialize)]
pub struct Package {
    queue: String,
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kind: String,
    state: &'static str,
    priority: u32,
    attempts: u32,
    max_attempts: u32,
    fence: u64,
    #[serde(flatten)]
    payload: Option<Payload>,
    #[serde(skip_serializing_if = "String::is_empty")]
    content_type: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    worker: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    session: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_expire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    create_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finish_time: Option<String>,
    #[serde(flatten)]
    result: Option<ResultBytes>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    result_evicted: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    moved_to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure: Option<Failure>,
    revision: u64,
}

/// Text as text, other bytes as base64.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Payload {
    Payload(String),
    PayloadBase64(String),
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum ResultBytes {
    Result(String),
    ResultBase64(String),
}

#[derive(Serialize)]
struct Failure {
    cause: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    worker: String,
}

impl From<client::Package> for Package {
    fn from(package: client::Package) -> Self {
        let state = state(package.state());
        let last_failure = package.last_failure.map(|failure| Failure {
            cause: cause(failure.cause()),
            message: failure.message,
            code: failure.code,
            time: failure.time.and_then(output::time),
            worker: failure.worker,
        });
        Self {
            queue: package.queue,
            id: package.id,
            kind: package.kind,
            state,
            priority: package.priority,
            attempts: package.attempts,
            max_attempts: package.max_attempts,
            fence: package.fence,
            payload: text_or_base64(&package.payload)
                .map(|either| either.map_or_else(Payload::PayloadBase64, Payload::Payload)),
            content_type: package.content_type,
            labels: package.labels.into_iter().collect(),
            worker: package.worker,
            session: package.session,
            lease_expire_time: package.lease_expire_time.and_then(output::time),
            not_before: package.not_before.and_then(output::time),
            expire_time: package.expire_time.and_then(output::time),
            create_time: package.create_time.and_then(output::time),
            finish_time: package.finish_time.and_then(output::time),
            result: text_or_base64(&package.result)
                .map(|either| either.map_or_else(ResultBytes::ResultBase64, ResultBytes::Result)),
            result_evicted: package.result_evicted,
            moved_to: package.moved_to,
            last_failure,
            revision: package.revision,
        }
    }
}

impl Row for Package {
    const HEAD: &'static [&'static str] = &["QUEUE", "ID", "STATE", "PRIORITY", "ATTEMPTS", "WORKER"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.queue.clone(),
            self.id.clone(),
            self.state.into(),
            self.priority.to_string(),
            self.attempts.to_string(),
            self.worker.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let failure = self.last_failure.as_ref().map(|failure| match failure.message.as_str() {
            "" => failure.cause.to_owned(),
            message => format!("{}: {}", failure.cause, one_line(message)),
        });
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let payload = self.payload.as_ref().map(|payload| match payload {
            Payload::Payload(text) => one_line(text),
            Payload::PayloadBase64(base64) => format!("base64:{}", one_line(base64)),
        });
        let result = self.result.as_ref().map(|result| match result {
            ResultBytes::Result(text) => one_line(text),
            ResultBytes::ResultBase64(base64) => format!("base64:{}", one_line(base64)),
        });
        vec![
            ("queue", self.queue.clone()),
            ("id", self.id.clone()),
            ("kind", self.kind.clone()),
            ("state", self.state.into()),
            ("priority", self.priority.to_string()),
            ("attempts", format!("{} of {}", self.attempts, self.max_attempts)),
            ("fence", if self.fence == 0 { String::new() } else { self.fence.to_string() }),
            ("labels", labels.join(" ")),
            ("payload", payload.unwrap_or_default()),
            ("worker", self.worker.clone()),
            ("session", self.session.clone()),
            ("lease until", text(&self.lease_expire_time)),
            ("not before", text(&self.not_before)),
            ("expires", text(&self.expire_time)),
            ("created", text(&self.create_time)),
            ("finished", text(&self.finish_time)),
            ("result", if self.result_evicted { "(evicted)".into() } else { result.unwrap_or_default() }),
            ("moved to", self.moved_to.clone()),
            ("last failure", failure.unwrap_or_default()),
        ]
    }
}

/// What became of a submitted package.
#[derive(Serialize)]
pub struct Submitted {
    pub queue: String,
    pub id: String,
    pub duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<client::Submitted> for Submitted {
    fn from(taken: client::Submitted) -> Self {
        Self { queue: taken.queue, id: taken.id, duplicate: taken.duplicate, error: None }
    }
}

impl Row for Submitted {
    const HEAD: &'static [&'static str] = &["QUEUE", "ID", "DUPLICATE"];

    fn cells(&self) -> Vec<String> {
        vec![self.queue.clone(), self.id.clone(), if self.duplicate { "yes".into() } else { String::new() }]
    }
}

/// A queue.
#[derive(Serialize)]
pub struct Queue {
    name: String,
    paused: bool,
    sealed: bool,
    ended: bool,
    settings: Settings,
    stats: Stats,
    revision: u64,
}

#[derive(Serialize)]
struct Settings {
    lease: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_run: Option<String>,
    max_attempts: u32,
    backoff: Backoff,
    #[serde(skip_serializing_if = "String::is_empty")]
    dead_letter_queue: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_packages: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<u64>,
    max_payload: u64,
    max_result: u64,
    max_in_flight: u32,
    keep_finished: String,
    keep_finished_count: u64,
    keep_finished_bytes: u64,
    dedup_window: String,
    history: &'static str,
    default_priority: u32,
}

#[derive(Serialize)]
struct Backoff {
    initial: String,
    max: String,
    multiplier: f64,
}

#[derive(Serialize)]
struct Stats {
    scheduled: u64,
    ready: u64,
    leased: u64,
    completed: u64,
    dead: u64,
    cancelled: u64,
    expired: u64,
    bytes: u64,
    oldest_ready_age: String,
    workers: u64,
    submit_rate: f64,
    complete_rate: f64,
}

impl From<client::Queue> for Queue {
    fn from(queue: client::Queue) -> Self {
        let stats = queue.stats.unwrap_or_default();
        Self {
            name: queue.name,
            paused: queue.paused,
            sealed: queue.sealed,
            ended: queue.ended,
            settings: queue.settings.unwrap_or_default().into(),
            stats: Stats {
                scheduled: stats.scheduled,
                ready: stats.ready,
                leased: stats.leased,
                completed: stats.completed,
                dead: stats.dead,
                cancelled: stats.cancelled,
                expired: stats.expired,
                bytes: stats.bytes,
                oldest_ready_age: json_duration(stats.oldest_ready_age),
                workers: stats.workers,
                submit_rate: stats.submit_rate,
                complete_rate: stats.complete_rate,
            },
            revision: queue.revision,
        }
    }
}

impl From<client::QueueSettings> for Settings {
    fn from(settings: client::QueueSettings) -> Self {
        let history = match settings.history() {
            History::Unspecified => "",
            History::None => "NONE",
            History::Failures => "FAILURES",
            History::All => "ALL",
        };
        let backoff = settings.backoff.unwrap_or_default();
        Self {
            lease: json_duration(settings.lease),
            max_run: settings.max_run.map(|duration| json_duration(Some(duration))),
            max_attempts: settings.max_attempts.unwrap_or_default(),
            backoff: Backoff {
                initial: json_duration(backoff.initial),
                max: json_duration(backoff.max),
                multiplier: backoff.multiplier.unwrap_or_default(),
            },
            dead_letter_queue: settings.dead_letter_queue,
            max_packages: settings.max_packages,
            max_bytes: settings.max_bytes,
            max_payload: settings.max_payload.unwrap_or_default(),
            max_result: settings.max_result.unwrap_or_default(),
            max_in_flight: settings.max_in_flight.unwrap_or_default(),
            keep_finished: json_duration(settings.keep_finished),
            keep_finished_count: settings.keep_finished_count.unwrap_or_default(),
            keep_finished_bytes: settings.keep_finished_bytes.unwrap_or_default(),
            dedup_window: json_duration(settings.dedup_window),
            history,
            default_priority: settings.default_priority.unwrap_or_default(),
        }
    }
}

impl Queue {
    fn marks(&self) -> String {
        let marks = [(self.paused, "paused"), (self.sealed && !self.ended, "sealed"), (self.ended, "ended")];
        let marks: Vec<&str> = marks.into_iter().filter_map(|(set, mark)| set.then_some(mark)).collect();
        if marks.is_empty() { "open".into() } else { marks.join(" ") }
    }
}

impl Row for Queue {
    const HEAD: &'static [&'static str] =
        &["QUEUE", "STATUS", "SCHEDULED", "READY", "LEASED", "COMPLETED", "DEAD", "WORKERS"];

    fn cells(&self) -> Vec<String> {
        let stats = &self.stats;
        let counts = [stats.scheduled, stats.ready, stats.leased, stats.completed, stats.dead, stats.workers];
        let mut cells = vec![self.name.clone(), self.marks()];
        cells.extend(counts.map(|count| count.to_string()));
        cells
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let (stats, settings) = (&self.stats, &self.settings);
        let count = |count: u64| if count == 0 { String::new() } else { count.to_string() };
        let backoff = &settings.backoff;
        vec![
            ("queue", self.name.clone()),
            ("status", self.marks()),
            ("scheduled", stats.scheduled.to_string()),
            ("ready", stats.ready.to_string()),
            ("leased", stats.leased.to_string()),
            ("completed", stats.completed.to_string()),
            ("dead", stats.dead.to_string()),
            ("cancelled", count(stats.cancelled)),
            ("expired", count(stats.expired)),
            ("bytes", stats.bytes.to_string()),
            ("oldest ready", if stats.ready == 0 { String::new() } else { stats.oldest_ready_age.clone() }),
            ("workers", stats.workers.to_string()),
            ("lease", settings.lease.clone()),
            ("max run", settings.max_run.clone().unwrap_or_default()),
            ("max attempts", settings.max_attempts.to_string()),
            ("backoff", format!("{} x {} up to {}", backoff.initial, backoff.multiplier, backoff.max)),
            ("dead letters", settings.dead_letter_queue.clone()),
            ("max packages", limit(settings.max_packages)),
            ("max bytes", limit(settings.max_bytes)),
            ("max payload", count(settings.max_payload)),
            ("max in flight", count(u64::from(settings.max_in_flight))),
            ("keep finished", format!("{}, {} packages", settings.keep_finished, settings.keep_finished_count)),
            ("dedup window", settings.dedup_window.clone()),
            ("default priority", settings.default_priority.to_string()),
        ]
    }
}

/// No limit is nothing to tell; a limit of 0 is.
fn limit(limit: Option<u64>) -> String {
    limit.map(|limit| limit.to_string()).unwrap_or_default()
}

/// A worker's session.
#[derive(Serialize)]
pub struct Worker {
    worker: String,
    session: String,
    status: &'static str,
    queues: Vec<String>,
    kinds: Vec<String>,
    max_in_flight: u32,
    concurrency: u32,
    leased: u32,
    leased_bytes: u64,
    epoch: u64,
    open_time: Option<String>,
}

impl From<client::WorkerInfo> for Worker {
    fn from(worker: client::WorkerInfo) -> Self {
        let status = match worker.status() {
            WorkerStatus::Unspecified => "",
            WorkerStatus::Attached => "ATTACHED",
            WorkerStatus::Detached => "DETACHED",
            WorkerStatus::Draining => "DRAINING",
            WorkerStatus::Silent => "SILENT",
        };
        Self {
            status,
            worker: worker.worker,
            session: worker.session,
            queues: worker.queues,
            kinds: worker.kinds,
            max_in_flight: worker.max_in_flight,
            concurrency: worker.concurrency,
            leased: worker.leased,
            leased_bytes: worker.leased_bytes,
            epoch: worker.epoch,
            open_time: worker.open_time.and_then(output::time),
        }
    }
}

impl Row for Worker {
    const HEAD: &'static [&'static str] = &["WORKER", "SESSION", "STATUS", "QUEUES", "LEASED", "OF"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.worker.clone(),
            self.session.clone(),
            self.status.into(),
            self.queues.join(" "),
            self.leased.to_string(),
            self.max_in_flight.to_string(),
        ]
    }
}

/// A node, as it sees itself, or why it does not answer.
#[derive(Serialize)]
pub struct Node {
    pub node: Option<u64>,
    pub addr: String,
    pub role: &'static str,
    pub term: Option<u64>,
    pub leader: Option<u64>,
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    /// Entries behind the leader, as the leader knows.
    pub lag: Option<u64>,
    pub queues: Option<u64>,
    pub packages: Option<u64>,
    pub sessions: Option<u64>,
    pub disk: Option<String>,
    pub disk_free_bytes: Option<u64>,
    pub version: Option<String>,
    pub uptime: Option<String>,
    pub alarms: Vec<String>,
    /// Why it takes no part yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Node {
    pub fn new(addr: String, answer: Result<NodeStatus, client::Error>, lag: Option<u64>) -> Self {
        let (status, error) = match answer {
            Ok(status) => (Some(status), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let role = match &status {
            None => "unreachable",
            Some(status) if status.leader == status.node => "leader",
            Some(status) if !status.waiting.is_empty() => "waiting",
            Some(status) if status.members.iter().any(|member| member.node == status.node && !member.voter) => {
                "learner"
            }
            Some(_) => "follower",
        };
        let of = |number: fn(&NodeStatus) -> u64| status.as_ref().map(number);
        let disk = status.as_ref().and_then(|status| status.disk.as_ref());
        let alarms = status.iter().flat_map(|status| &status.alarms);
        Self {
            node: of(|status| status.node),
            addr,
            role,
            term: of(|status| status.term),
            leader: of(|status| status.leader),
            last_log_index: of(|status| status.last_log_index),
            applied_index: of(|status| status.applied_index),
            snapshot_index: of(|status| status.snapshot_index),
            lag,
            queues: of(|status| status.queues),
            packages: of(|status| status.packages),
            sessions: of(|status| status.sessions),
            disk: disk.map(|disk| disk.status.clone()),
            disk_free_bytes: disk.map(|disk| disk.free_bytes),
            version: status.as_ref().map(|status| status.version.clone()),
            uptime: status.as_ref().map(|status| json_duration(status.uptime)),
            alarms: alarms.map(|alarm| format!("{}: {}", alarm.name, alarm.message)).collect(),
            waiting: status.as_ref().map(|status| status.waiting.clone()).filter(|why| !why.is_empty()),
            error,
        }
    }
}

impl Row for Node {
    const HEAD: &'static [&'static str] =
        &["NODE", "ADDRESS", "ROLE", "TERM", "APPLIED", "LAG", "PACKAGES", "SESSIONS", "DISK", "VERSION"];

    fn cells(&self) -> Vec<String> {
        let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            number(self.node),
            self.addr.clone(),
            self.role.into(),
            number(self.term),
            number(self.applied_index),
            number(self.lag),
            number(self.packages),
            number(self.sessions),
            text(&self.disk),
            text(&self.version),
        ]
    }
}

/// What happened to a package.
#[derive(Serialize)]
pub struct Event {
    revision: u64,
    /// Absent: it is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    package: Package,
}

impl From<client::Event> for Event {
    fn from(event: client::Event) -> Self {
        let from = Some(event.from()).filter(|from| *from != State::Unspecified).map(state);
        let because = Some(event.cause()).filter(|cause| *cause != Cause::Unspecified).map(cause);
        let package = event.package.unwrap_or_default().into();
        Self { revision: event.revision, from, cause: because, package }
    }
}

impl Event {
    /// Above lines that come one by one, so of fixed widths.
    pub const HEAD: &'static str = "  REVISION  FROM       STATE      CAUSE        ATTEMPTS  PACKAGE";

    pub fn line(&self) -> String {
        let package = &self.package;
        let (from, cause) = (self.from.unwrap_or("-"), self.cause.unwrap_or("-"));
        let line = format!(
            "{:>10}  {from:<9}  {:<9}  {cause:<11}  {:>8}  {}/{}",
            self.revision, package.state, package.attempts, package.queue, package.id
        );
        match package.worker.as_str() {
            "" => line,
            worker => format!("{line}  {worker}"),
        }
    }
}

/// A package after its end, with its attempts.
#[derive(Serialize)]
pub struct Ended {
    #[serde(flatten)]
    package: Package,
    pub attempts_made: Vec<Attempt>,
}

/// A lease after its end.
#[derive(Serialize)]
pub struct Attempt {
    fence: u64,
    worker: String,
    session: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    begin_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    charged: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    code: String,
}

impl From<client::HistoryEntry> for Ended {
    fn from(entry: client::HistoryEntry) -> Self {
        Self {
            package: entry.package.unwrap_or_default().into(),
            attempts_made: entry.attempts.into_iter().map(Attempt::from).collect(),
        }
    }
}

impl From<client::Attempt> for Attempt {
    fn from(attempt: client::Attempt) -> Self {
        let because = Some(attempt.cause()).filter(|cause| *cause != Cause::Unspecified).map(cause);
        let state = state(attempt.state());
        let failure = attempt.failure.unwrap_or_default();
        Self {
            fence: attempt.fence,
            worker: attempt.worker,
            session: attempt.session,
            begin_time: attempt.begin_time.and_then(output::time),
            end_time: attempt.end_time.and_then(output::time),
            state,
            cause: because,
            charged: attempt.charged,
            message: failure.message,
            code: failure.code,
        }
    }
}

impl Row for Ended {
    const HEAD: &'static [&'static str] = &["FINISHED", "ID", "STATE", "ATTEMPTS", "WORKER", "LAST FAILURE"];

    fn cells(&self) -> Vec<String> {
        let package = &self.package;
        let failure = package.last_failure.as_ref();
        vec![
            package.finish_time.clone().unwrap_or_default(),
            package.id.clone(),
            package.state.into(),
            package.attempts.to_string(),
            package.worker.clone(),
            failure.map(|failure| format!("{} {}", failure.cause, one_line(&failure.message))).unwrap_or_default(),
        ]
    }
}

impl Row for Attempt {
    const HEAD: &'static [&'static str] = &["BEGIN", "END", "FENCE", "WORKER", "THEN", "CAUSE", "MESSAGE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.begin_time.clone().unwrap_or_else(|| "-".into()),
            self.end_time.clone().unwrap_or_default(),
            self.fence.to_string(),
            self.worker.clone(),
            self.state.into(),
            self.cause.unwrap_or("-").into(),
            one_line(&self.message),
        ]
    }
}

/// As in the API.
pub fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "UNKNOWN",
        other => other.as_str_name(),
    }
}

/// As in the API.
pub fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Unspecified => "UNKNOWN",
        other => other.as_str_name(),
    }
}

fn json_duration(duration: Option<prost_types::Duration>) -> String {
    output::duration_json(duration.map_or(Duration::ZERO, args::from_proto))
}

/// None: no bytes. Err: base64, because they are no text.
fn text_or_base64(bytes: &[u8]) -> Option<Result<String, String>> {
    if bytes.is_empty() {
        return None;
    }
    Some(match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(base64::engine::general_purpose::STANDARD.encode(bytes)),
    })
}

/// The first characters of a text, without anything that would break a table or a terminal.
fn one_line(text: &str) -> String {
    const SHOWN: usize = 100;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.chars().take(SHOWN).map(clean).collect();
    if text.chars().nth(SHOWN).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_become_base64() {
        let package = client::Package {
            queue: "jobs".into(),
            id: "a".into(),
            payload: vec![0xff, 0].into(),
            result: b"fine".to_vec().into(),
            state: State::Completed.into(),
            ..Default::default()
        };
        let json = serde_json::to_value(Package::from(package)).unwrap();
        assert_eq!(json["payload_base64"], "/wA=");
        assert_eq!(json["result"], "fine");
        assert_eq!(json["state"], "COMPLETED");
        assert!(json.get("payload").is_none() && json.get("worker").is_none());
    }

    #[test]
    fn a_terminal_is_safe_from_payloads() {
        assert_eq!(one_line("a\x1b[2Jb\n"), "a [2Jb ");
        assert_eq!(one_line(&"x".repeat(200)).chars().count(), 101);
    }
}
