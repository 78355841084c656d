//! Outcomes, effects and views as short, stable lines.

use std::fmt::Write as _;

use wharf::machine::command::{ClusterSettings, QueueSettings, Reply};
use wharf::machine::effect::{Delivery, LeaseRef, VerdictKind};
use wharf::machine::view::{PackageView, QueueView, SessionView, Summary};
use wharf::machine::{Effect, Outcome, Reject};
use wharf::types::{Cause, State, Wall};

use crate::stage::WALL_BEGIN;

/// Something with a number at its end, so that runs of it fold to `p1..p9@4..12`.
struct Item {
    id: String,
    fence: Option<u64>,
    /// Printed after the item; only equal tails fold.
    tail: String,
}

impl Item {
    /// Stem and number of the id.
    fn split(&self) -> (&str, Option<u64>) {
        let digits = self.id.len() - self.id.bytes().rev().take_while(u8::is_ascii_digit).count();
        (&self.id[..digits], self.id[digits..].parse::<u64>().ok().filter(|_| !self.id[digits..].starts_with('0')))
    }

    /// Is it the next in a run that goes up (`step` 1) or down (-1)?
    fn follows(&self, before: &Item, step: i64) -> bool {
        let ((stem, number), (before_stem, before_number)) = (self.split(), before.split());
        let ids =
            stem == before_stem && number.is_some() && number == before_number.and_then(|n| n.checked_add_signed(step));
        let fences = match (self.fence, before.fence) {
            (Some(fence), Some(before)) => before.checked_add_signed(step) == Some(fence),
            (None, None) => true,
            _ => false,
        };
        ids && fences && self.tail == before.tail
    }
}

/// Folds runs of three and more.
fn fold(items: &[Item]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < items.len() {
        let run = |step| {
            let mut end = at + 1;
            while end < items.len() && items[end].follows(&items[end - 1], step) {
                end += 1;
            }
            end
        };
        let mut end = run(1).max(run(-1));
        if end - at < 3 {
            end = at + 1;
        }
        let (first, last) = (&items[at], &items[end - 1]);
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&first.id);
        if end - at > 1 {
            let _ = write!(out, "..{}", last.id);
        }
        if let (Some(from), Some(to)) = (first.fence, last.fence) {
            let _ = write!(out, "@{from}");
            if from != to {
                let _ = write!(out, "..{to}");
            }
        }
        out.push_str(&first.tail);
        at = end;
    }
    out
}

/// `ids`, folded, for the parts of an answer that went the same way.
fn grouped(ids: &[String], ways: impl Iterator<Item = String>) -> String {
    let mut groups: Vec<(String, Vec<Item>)> = Vec::new();
    for (way, id) in ways.zip(ids) {
        let item = Item { id: id.clone(), fence: None, tail: String::new() };
        match groups.last_mut() {
            Some((last, items)) if *last == way => items.push(item),
            _ => groups.push((way, vec![item])),
        }
    }
    let parts: Vec<String> = groups.iter().map(|(way, items)| format!("{} {way}", fold(items))).collect();
    if parts.is_empty() { "nothing".into() } else { parts.join("; ") }
}

/// One outcome; `ids` names the parts of the command in order.
pub fn outcome(outcome: &Outcome, ids: &[String]) -> String {
    let what = match &outcome.result {
        Err(reject) => format!("refused: {}", self::reject(reject)),
        Ok(Reply::Done) => "ok".into(),
        Ok(Reply::Submitted(results)) => grouped(
            ids,
            results.iter().map(|result| match result {
                Ok(submitted) if submitted.duplicate => "duplicate".to_owned(),
                Ok(_) => "taken".to_owned(),
                Err(reject) => format!("refused: {}", self::reject(reject)),
            }),
        ),
        Ok(Reply::Settled(results)) => grouped(
            ids,
            results.iter().map(|result| match result {
                Ok(()) => "ok".to_owned(),
                Err(reject) => format!("refused: {}", self::reject(reject)),
            }),
        ),
        Ok(Reply::Package(view)) => package(view),
        Ok(Reply::Queue(view)) => queue(view),
        Ok(Reply::Session(view)) => session(view),
        Ok(Reply::Sweep(number)) => format!("sweep {number}"),
        Ok(Reply::Cluster(settings)) => cluster(settings),
    };
    format!("r{} {what}", outcome.revision)
}

/// A reject by its name and fields, without the newtypes' noise.
pub fn reject(reject: &Reject) -> String {
    let mut text = format!("{reject:?}");
    for noise in ["Fence(", "Revision("] {
        while let Some(at) = text.find(noise) {
            let close = at + text[at..].find(')').unwrap_or(0);
            text = format!("{}{}{}", &text[..at], &text[at + noise.len()..close], &text[close + 1..]);
        }
    }
    text
}

/// Effects in their order.
pub fn effects(effects: &[Effect]) -> Vec<String> {
    effects.iter().map(|effect| format!("-> {}", self::effect(effect))).collect()
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::SessionOpened { session, epoch, attach, verdicts, session_grace_ms } => {
            let mut line = format!("{session} welcome epoch={} attach={attach} grace={session_grace_ms}ms", epoch.0);
            for verdict in verdicts {
                let kind = match &verdict.kind {
                    VerdictKind::Keep => "keep".to_owned(),
                    VerdictKind::Gone => "gone".to_owned(),
                    VerdictKind::Settled(Ok(())) => "settled: ok".to_owned(),
                    VerdictKind::Settled(Err(reject)) => format!("settled: {}", self::reject(reject)),
                };
                let _ = write!(line, "; {}/{}@{} {kind}", verdict.queue, verdict.id, verdict.fence);
            }
            line
        }
        Effect::Deliver { session, epoch, deliveries } => {
            format!("{}deliver {}", whose(session, epoch.0), self::deliveries(deliveries))
        }
        Effect::Revoke { session, epoch, leases, reason } => {
            format!("{}revoke {} ({reason})", whose(session, epoch.0), self::leases(leases))
        }
        Effect::SessionClosed { session, epoch, reason } => {
            format!("{}closed ({reason})", whose(session, epoch.0))
        }
        Effect::SessionDraining { session, epoch } => format!("{}draining", whose(session, epoch.0)),
        Effect::EndOfWork { session, epoch, queue } => {
            format!("{}end of work in {queue}", whose(session, epoch.0))
        }
        Effect::QueueEnded { queue } => format!("{queue} ended"),
        Effect::SweepFinished { sweep, changed } => format!("sweep {sweep} finished, {changed} changed"),
        Effect::Fingerprint => "fingerprint".into(),
    }
}

/// The session, with its epoch once it is not the first.
fn whose(session: &str, epoch: u64) -> String {
    if epoch == 1 { format!("{session} ") } else { format!("{session} e{epoch} ") }
}

/// `mail p1..p3@7..9`, a queue's name whenever it changes.
pub fn deliveries(deliveries: &[Delivery]) -> String {
    let items = deliveries.iter().map(|delivery| {
        let mut tail = String::new();
        if delivery.attempt != 1 {
            let _ = write!(tail, "#{}", delivery.attempt);
        }
        if !delivery.checkpoint.is_empty() {
            let _ = write!(tail, "+{}", String::from_utf8_lossy(&delivery.checkpoint));
        }
        let item = Item { id: delivery.body.id().to_string(), fence: Some(delivery.fence.0), tail };
        (delivery.body.queue().to_string(), item)
    });
    by_queue(items)
}

fn leases(leases: &[LeaseRef]) -> String {
    by_queue(leases.iter().map(|lease| {
        let item = Item { id: lease.id.to_string(), fence: Some(lease.fence.0), tail: String::new() };
        (lease.queue.to_string(), item)
    }))
}

fn by_queue(items: impl Iterator<Item = (String, Item)>) -> String {
    let mut groups: Vec<(String, Vec<Item>)> = Vec::new();
    for (queue, item) in items {
        match groups.last_mut() {
            Some((last, items)) if *last == queue => items.push(item),
            _ => groups.push((queue, vec![item])),
        }
    }
    let parts: Vec<String> = groups.iter().map(|(queue, items)| format!("{queue} {}", fold(items))).collect();
    parts.join(", ")
}

/// A wall time as seconds since the stage began.
fn when(wall: Wall) -> String {
    let since = wall.0 as i128 - i128::from(WALL_BEGIN);
    format!("{}{}.{:03}s", if since < 0 { "-" } else { "+" }, since.abs() / 1000, since.abs() % 1000)
}

/// What is not the default, in a fixed order.
pub fn package(view: &PackageView) -> String {
    let mut line = format!("{}/{} {}", view.queue, view.id, view.state.as_str());
    let mut say = |key: &str, value: String| {
        let _ = write!(line, " {key}={value}");
    };
    if view.fence.0 != 0 {
        say("fence", view.fence.to_string());
    }
    let Some(body) = &view.body else { return line + " (tombstone)" };
    if !body.kind().is_empty() {
        say("kind", body.kind().to_string());
    }
    say("attempts", format!("{}/{}", view.attempts, view.max_attempts));
    say("priority", view.priority.to_string());
    if !body.payload().is_empty() {
        say("payload", blob(body.payload()));
    }
    for (key, value) in body.labels() {
        say(&format!("label.{key}"), value.to_string());
    }
    if let Some(session) = &view.session {
        say("session", session.to_string());
    }
    if let Some(worker) = &view.worker {
        say("worker", worker.to_string());
    }
    for (key, time) in [
        ("until", view.lease_expire),
        ("due", view.due),
        ("not_before", body.not_before()),
        ("expire", body.expire()),
        ("finish", view.finish),
    ] {
        if let Some(time) = time {
            say(key, when(time));
        }
    }
    if !view.checkpoint.is_empty() {
        say("checkpoint", blob(&view.checkpoint));
    }
    if !view.result.is_empty() {
        say("result", blob(&view.result));
    }
    if !view.result_content_type.is_empty() {
        say("result_type", view.result_content_type.to_string());
    }
    if view.result_evicted {
        say("result", "evicted".into());
    }
    if let Some(moved_to) = &view.moved_to {
        say("moved_to", moved_to.to_string());
    }
    if let Some(failure) = &view.last_failure {
        let text = [&failure.code, &failure.message, &failure.worker].map(|part| part.to_string()).join("|");
        say("last_failure", format!("{}({text}) at {}", failure.cause.as_str(), when(failure.time)));
    }
    say("revision", format!("{}/{}", view.create_revision, view.revision));
    line
}

fn blob(bytes: &[u8]) -> String {
    if bytes.len() > 32 { format!("{} bytes", bytes.len()) } else { format!("{:?}", String::from_utf8_lossy(bytes)) }
}

/// Flags and the counters that are not zero.
pub fn queue(view: &QueueView) -> String {
    let mut line = view.name.to_string();
    for (flag, set) in [("paused", view.paused), ("sealed", view.sealed), ("ended", view.ended)] {
        if set {
            let _ = write!(line, " {flag}");
        }
    }
    for (key, count) in [
        ("scheduled", view.scheduled),
        ("ready", view.ready),
        ("leased", view.leased),
        ("completed", view.completed),
        ("dead", view.dead),
        ("cancelled", view.cancelled),
        ("expired", view.expired),
        ("submitted", view.submitted),
        ("workers", view.workers),
        ("oldest_ready_ms", view.oldest_ready_age_ms),
    ] {
        if count != 0 {
            let _ = write!(line, " {key}={count}");
        }
    }
    let ends: Vec<String> = Cause::ALL
        .iter()
        .filter(|cause| view.lease_ends[**cause as usize] != 0)
        .map(|cause| format!("{}={}", cause.as_str(), view.lease_ends[*cause as usize]))
        .collect();
    if !ends.is_empty() {
        let _ = write!(line, " ends[{}]", ends.join(" "));
    }
    line
}

/// Every setting in force.
pub fn queue_settings(settings: &QueueSettings) -> String {
    unwrapped(format!("{settings:?}"), "QueueSettings ")
}

pub fn cluster(settings: &ClusterSettings) -> String {
    unwrapped(format!("{settings:?}"), "ClusterSettings ")
}

/// `Some(x)` is `x`: what is in force is always set.
fn unwrapped(mut text: String, name: &str) -> String {
    while let Some(at) = text.find("Some(") {
        let close = at + text[at..].find(')').unwrap_or(0);
        text = format!("{}{}{}", &text[..at], &text[at + 5..close], &text[close + 1..]);
    }
    text.replacen(name, "", 1)
}

pub fn session(view: &SessionView) -> String {
    let queues: Vec<&str> = view.queues.iter().map(|queue| queue.as_str()).collect();
    let mut line = format!("{} {:?} epoch={} queues={}", view.session, view.status, view.epoch.0, queues.join(","));
    if !view.kinds.is_empty() {
        let _ = write!(line, " kinds={}", view.kinds.join(","));
    }
    for (key, value) in &view.labels {
        let _ = write!(line, " label.{key}={value}");
    }
    let _ = write!(
        line,
        " holds={}/{} prefetched={} concurrency={}",
        view.leased, view.max_in_flight, view.prefetched, view.concurrency
    );
    if view.leased_bytes != 0 {
        let _ = write!(line, " bytes={}", view.leased_bytes);
    }
    line
}

pub fn summary(summary: &Summary) -> String {
    let alarm = summary.next_alarm.map(|alarm| alarm.since(summary.wall));
    let next = summary.next_timer_ms.into_iter().chain(alarm).min().map_or("none".to_owned(), |ms| format!("{ms}ms"));
    format!(
        "r{} index={} ticks={} wall={} version={} queues={} packages={} bytes={} tombstones={} sessions={} leases={}{} next_timer={next}",
        summary.revision,
        summary.applied_index,
        summary.ticks,
        when(summary.wall),
        summary.machine_version,
        summary.queues,
        summary.packages,
        if summary.packages_bytes == 0 { "none" } else { "some" },
        summary.tombstones,
        summary.sessions,
        summary.leases,
        if summary.needs_advance { " needs_advance" } else { "" },
    )
}

/// The counts by state that `queue` tells, for checks.
pub fn live(view: &QueueView, state: State) -> u64 {
    match state {
        State::Scheduled => view.scheduled,
        State::Ready => view.ready,
        State::Leased => view.leased,
        State::Completed => view.completed,
        State::Dead => view.dead,
        State::Cancelled => view.cancelled,
        State::Expired => view.expired,
    }
}
