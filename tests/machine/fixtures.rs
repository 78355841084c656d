//! Stored bytes are a promise: a log entry that some version wrote must decode in every later one.
//!
//! `tests/fixtures/stored/NAME.hex` is a batch as the log holds it. `WHARF_BLESS=1 cargo test --test
//! machine fixtures` writes those that are missing, never one that is there: a stored message that
//! gains a field gains a fixture (`NAME.v2.hex`, and its sample below), the old one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;
use wharf::machine::command::{
    Advance, Batch, Cancel, CloseSession, ClusterSettings, Command, Complete, Completion, CreateQueue, DeleteQueue,
    DetachSession, DrainSession, Extend, Extension, Fail, Failed, Fingerprint, Heard, LeaderStarted, Lease, NewPackage,
    Op, OpenSession, PauseQueue, Purge, QueueSettings, RaiseVersion, Reclaim, Redrive, Release, Retry, SealQueue,
    SetCluster, SetCredit, Speaker, Submit, Tick, UpdateQueue,
};
use wharf::proto::internal::new_package::{Expiry, Schedule};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stored")
}

/// A new command does not compile before it has a name here, and no name passes without a fixture.
fn name(op: &Op) -> &'static str {
    match op {
        Op::Submit(_) => "submit",
        Op::Complete(_) => "complete",
        Op::Fail(_) => "fail",
        Op::Extend(_) => "extend",
        Op::Release(_) => "release",
        Op::SetCredit(_) => "set_credit",
        Op::OpenSession(_) => "open_session",
        Op::DetachSession(_) => "detach_session",
        Op::DrainSession(_) => "drain_session",
        Op::CloseSession(_) => "close_session",
        Op::Reclaim(_) => "reclaim",
        Op::Heard(_) => "heard",
        Op::Cancel(_) => "cancel",
        Op::Retry(_) => "retry",
        Op::Purge(_) => "purge",
        Op::Redrive(_) => "redrive",
        Op::CreateQueue(_) => "create_queue",
        Op::UpdateQueue(_) => "update_queue",
        Op::DeleteQueue(_) => "delete_queue",
        Op::PauseQueue(_) => "pause_queue",
        Op::SealQueue(_) => "seal_queue",
        Op::SetCluster(_) => "set_cluster",
        Op::RaiseVersion(_) => "raise_version",
        Op::LeaderStarted(_) => "leader_started",
        Op::Tick(_) => "tick",
        Op::Advance(_) => "advance",
        Op::Fingerprint(_) => "fingerprint",
    }
}

/// How many commands there are: the tags of `Command.op` in stored.proto.
const COMMANDS: usize = 27;

fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("team".into(), "blue".into()), ("zone".into(), "ä".into())])
}

fn speaker() -> Option<Speaker> {
    Some(Speaker { session: "w1".into(), epoch: 3, received_fence: u64::MAX })
}

fn lease() -> Lease {
    Lease { queue: "team/mail".into(), id: "p1".into(), fence: 1 << 48 }
}

fn settings() -> QueueSettings {
    QueueSettings {
        lease_ms: Some(60_000),
        max_run_ms: Some(0),
        max_attempts: Some(5),
        backoff_initial_ms: Some(1_000),
        backoff_max_ms: Some(300_000),
        backoff_multiplier_milli: Some(2_000),
        dead_letter_queue: Some("team/dead".into()),
        max_packages: Some(1_000_000),
        max_bytes: Some(1 << 40),
        max_payload: Some(1 << 20),
        max_result: Some(1 << 20),
        max_in_flight: Some(0),
        keep_finished_ms: Some(3_600_000),
        keep_finished_count: Some(10_000),
        keep_finished_bytes: Some(64 << 20),
        dedup_window_ms: Some(60_000),
        history: Some(2),
        default_priority: Some(4),
    }
}

fn package() -> NewPackage {
    NewPackage {
        queue: "team/mail".into(),
        id: "p1".into(),
        kind: "letter".into(),
        payload: Bytes::from_static(b"\x00\xffpayload"),
        content_type: "text/plain".into(),
        labels: labels(),
        priority: Some(0),
        schedule: Some(Schedule::NotBeforeWall(1_767_225_600_000)),
        expiry: Some(Expiry::TtlMs(60_000)),
        max_attempts: Some(7),
        content_hash: 0x0123_4567_89ab_cdef,
    }
}

/// One batch for each command, every field set to something that a default could not hide.
#[allow(clippy::too_many_lines)]
fn samples() -> Vec<Op> {
    let (queue, id) = (|| "team/mail".to_owned(), || "p1".to_owned());
    let other = NewPackage {
        schedule: Some(Schedule::DelayMs(5)),
        expiry: Some(Expiry::ExpireWall(9)),
        priority: None,
        max_attempts: None,
        ..package()
    };
    vec![
        Op::Submit(Submit { packages: vec![package(), other], atomic: true }),
        Op::Complete(Complete {
            speaker: speaker(),
            completions: vec![Completion {
                queue: queue(),
                id: id(),
                fence: 7,
                result: Bytes::from_static(b"\x01result"),
                result_content_type: "text/plain".into(),
            }],
        }),
        Op::Fail(Fail {
            speaker: speaker(),
            failed: vec![Failed {
                queue: queue(),
                id: id(),
                fence: 7,
                message: "no such house".into(),
                code: "E404".into(),
                permanent: true,
                retry_delay_ms: Some(0),
            }],
        }),
        Op::Extend(Extend {
            speaker: speaker(),
            extensions: vec![Extension {
                queue: queue(),
                id: id(),
                fence: 7,
                by_ms: Some(1),
                checkpoint: Bytes::from_static(b"half"),
            }],
        }),
        Op::Release(Release { speaker: speaker(), leases: vec![lease(), lease()] }),
        Op::SetCredit(SetCredit { speaker: speaker(), max_in_flight: 64 }),
        Op::OpenSession(OpenSession {
            session: "w1".into(),
            worker: "alpha".into(),
            queues: vec![queue(), "news".into()],
            kinds: vec!["letter".into(), "parcel".into()],
            labels: labels(),
            max_in_flight: 64,
            max_in_flight_bytes: 16 << 20,
            concurrency: 8,
            held: vec![lease()],
            received_fence: 41,
            attach: 42,
            unary: false,
        }),
        Op::DetachSession(DetachSession { speaker: speaker() }),
        Op::DrainSession(DrainSession { session: "w1".into(), epoch: 3 }),
        Op::CloseSession(CloseSession { session: "w1".into(), epoch: 3 }),
        Op::Reclaim(Reclaim { session: "w1".into(), epoch: 3, count: 5 }),
        Op::Heard(Heard { speaker: speaker() }),
        Op::Cancel(Cancel { queue: queue(), id: id(), reason: "wrong".into(), if_revision: Some(12) }),
        Op::Retry(Retry { queue: queue(), id: id(), if_revision: Some(0) }),
        Op::Purge(Purge { queue: queue(), states: vec![4, 5, 7] }),
        Op::Redrive(Redrive { from: "team/dead".into(), to: queue(), max: 100 }),
        Op::CreateQueue(CreateQueue { name: queue(), settings: Some(settings()) }),
        Op::UpdateQueue(UpdateQueue { name: queue(), settings: Some(settings()), if_revision: Some(12) }),
        Op::DeleteQueue(DeleteQueue { name: queue(), force: true }),
        Op::PauseQueue(PauseQueue { name: queue(), paused: true, if_revision: Some(12) }),
        Op::SealQueue(SealQueue { name: queue(), sealed: true, if_revision: Some(12) }),
        Op::SetCluster(SetCluster {
            settings: Some(ClusterSettings {
                session_grace_ms: Some(5_000),
                failover_grace_ms: Some(15_000),
                auto_create_queues: Some(true),
                memory_budget_bytes: Some(4 << 30),
                dedup_budget: Some(20_000_000),
                max_queues: Some(10_000),
                max_sessions: Some(10_000),
            }),
        }),
        Op::RaiseVersion(RaiseVersion { version: 2 }),
        Op::LeaderStarted(LeaderStarted { term: 9, node: 3 }),
        Op::Tick(Tick {}),
        Op::Advance(Advance {}),
        Op::Fingerprint(Fingerprint {}),
    ]
}

fn batch(op: Op) -> Batch {
    Batch { min_version: 1, ticks: 123_456_789, wall: 1_767_225_600_123, commands: vec![Command { op: Some(op) }] }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        let _ = write!(text, "{}{byte:02x}", if at > 0 && at % 32 == 0 { "\n" } else { "" });
    }
    text + "\n"
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()).expect("hex"))
        .collect()
}

/// What messages looked like once they had gained fields.
fn later_samples() -> Vec<(&'static str, Op)> {
    let call = OpenSession {
        session: "w1".into(),
        worker: "alpha".into(),
        queues: vec!["team/mail".into()],
        max_in_flight: 3,
        max_in_flight_bytes: 4 << 20,
        received_fence: 41,
        attach: 43,
        unary: true,
        ..OpenSession::default()
    };
    vec![("v2", Op::OpenSession(call))]
}

#[test]
fn stored_batches_decode_for_ever() {
    let bless = std::env::var("WHARF_BLESS").is_ok();
    let mut names = BTreeSet::new();
    let first = samples().into_iter().map(|op| (name(&op).to_owned(), op));
    let later = later_samples().into_iter().map(|(version, op)| (format!("{}.{version}", name(&op)), op));
    for (name, op) in first.chain(later) {
        names.insert(format!("{name}.hex"));
        let path = folder().join(format!("{name}.hex"));
        let batch = batch(op);
        if bless && !path.exists() {
            std::fs::write(&path, hex(&batch.encode_to_vec())).expect("the fixtures' folder is writable");
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; `WHARF_BLESS=1 cargo test --test machine fixtures` writes it", path.display())
        });
        let bytes = unhex(&stored);
        let decoded = Batch::decode(bytes.as_slice()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decoded, batch, "{name} decodes to something else");
        assert_eq!(hex(&batch.encode_to_vec()), stored, "{name} is written in other bytes");
    }
    let first = names.iter().filter(|name| name.matches('.').count() == 1).count();
    assert_eq!(first, COMMANDS, "every command has a sample");
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("the fixtures are in the repository")
        .map(|entry| entry.expect("readable folder").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files, names, "fixtures and samples differ");
}

/// Bytes of a later version halt the node before anything is applied.
#[test]
fn a_later_version_halts() {
    use wharf::machine::{Machine, Meta};
    let meta = Meta { index: 1, term: 1 };
    let mut machine = Machine::new();
    let empty = machine.freeze().hash();

    let later = Batch { min_version: u32::MAX, ..batch(Op::Tick(Tick {})) };
    assert!(machine.apply(meta, &later).is_err(), "a batch of a later version was applied");
    let unknown = Batch { commands: vec![Command { op: None }], ..batch(Op::Tick(Tick {})) };
    assert!(machine.apply(meta, &unknown).is_err(), "an unknown command was applied");
    // Also behind a command that is known.
    let create = Op::CreateQueue(CreateQueue { name: "mail".into(), settings: None });
    let half = Batch { commands: vec![Command { op: Some(create) }, Command { op: None }], ..later };
    assert!(machine.apply(meta, &Batch { min_version: 1, ..half }).is_err(), "half a batch was applied");
    assert_eq!(machine.freeze().hash(), empty, "a refused batch changed the state");
}
