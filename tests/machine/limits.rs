//! Each limit of the machine (`types/limits.rs`, queue and cluster settings) is hit: the last value
//! that fits is taken, one more answers by its name.

use std::collections::BTreeMap;

use bytes::Bytes;
use wharf::machine::command::{
    ClusterSettings, Complete, Completion, CreateQueue, Extend, Extension, Fail, Failed, Lease, NewPackage, Op,
    OpenSession, QueueSettings, Release, Reply, SetCluster, SetCredit, Speaker, Submit, Tick,
};
use wharf::machine::{Effect, Reject};
use wharf::types::limits::{
    DEFAULT_DEDUP_BUDGET, DEFAULT_FAILOVER_GRACE_MS, DEFAULT_MAX_IN_FLIGHT, DEFAULT_MAX_IN_FLIGHT_BYTES,
    DEFAULT_MAX_QUEUES, DEFAULT_MAX_SESSIONS, DEFAULT_MEMORY_BUDGET_BYTES, DEFAULT_SESSION_GRACE_MS,
    MAX_CHECKPOINT_BYTES, MAX_CLASSES, MAX_CODE_BYTES, MAX_GRANTS_A_BATCH, MAX_ID_BYTES, MAX_IN_FLIGHT_CEILING,
    MAX_KINDS_A_QUEUE, MAX_LABEL_KEY_BYTES, MAX_LABEL_VALUE_BYTES, MAX_LABELS, MAX_LANES_A_CLASS, MAX_MESSAGE_BYTES,
    MAX_NAME_BYTES, MAX_PACKAGES_A_SUBMIT, MAX_PAYLOAD_CEILING_BYTES, MAX_PRIORITY, MAX_SETTLEMENTS_A_MESSAGE,
    MAX_TICK_STEP_MS, MAX_WORD_BYTES, OLDEST_EVERY,
};

use crate::stage::Stage;

/// A stage with the queue `mail`.
fn stage() -> Stage {
    stage_with(QueueSettings::default())
}

fn stage_with(settings: QueueSettings) -> Stage {
    let mut stage = Stage::new();
    one(&mut stage, create("mail", settings)).expect("the queue is created");
    stage
}

/// One command's answer.
fn one(stage: &mut Stage, op: Op) -> Result<Reply, Reject> {
    let mut applied = stage.apply(vec![op]).unwrap_or_else(|why| panic!("{why}"));
    applied.outcomes.remove(0).result
}

fn create(name: &str, settings: QueueSettings) -> Op {
    Op::CreateQueue(CreateQueue { name: name.into(), settings: Some(settings) })
}

fn package(id: &str) -> NewPackage {
    NewPackage { queue: "mail".into(), id: id.into(), content_hash: 1, ..NewPackage::default() }
}

/// The answer to a submit of one package.
fn submit(stage: &mut Stage, package: NewPackage) -> Result<(), Reject> {
    match one(stage, Op::Submit(Submit { packages: vec![package], atomic: false }))? {
        Reply::Submitted(mut results) => results.remove(0).map(|_| ()),
        other => panic!("{other:?}"),
    }
}

fn hello(session: &str) -> OpenSession {
    OpenSession {
        session: session.into(),
        worker: "worker".into(),
        queues: vec!["mail".into()],
        max_in_flight: 1,
        concurrency: 1,
        attach: 1,
        ..OpenSession::default()
    }
}

/// Submits a package to a worker that waits for it; its fence.
fn leased(stage: &mut Stage, id: &str) -> u64 {
    let submit = Op::Submit(Submit { packages: vec![package(id)], atomic: false });
    let applied = stage.apply(vec![Op::OpenSession(hello("w1")), submit]).unwrap_or_else(|why| panic!("{why}"));
    let deliver = applied.effects.iter().find_map(|effect| match effect {
        Effect::Deliver { deliveries, .. } => deliveries.first().map(|delivery| delivery.fence.0),
        _ => None,
    });
    deliver.expect("the worker gets it")
}

fn speaker() -> Option<Speaker> {
    Some(Speaker { session: "w1".into(), epoch: 1, received_fence: 0 })
}

#[track_caller]
fn assert_bad<T: std::fmt::Debug>(result: Result<T, Reject>, field: &str) {
    match result {
        Err(Reject::BadField { field: told, problem }) => {
            assert!(told.contains(field), "blames `{told}`, not `{field}`");
            assert!(!problem.is_empty());
        }
        other => panic!("expected BadField `{field}`, got {other:?}"),
    }
}

#[track_caller]
fn assert_ok<T: std::fmt::Debug>(result: Result<T, Reject>) {
    assert!(result.is_ok(), "{result:?}");
}

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

#[test]
fn names_of_queues() {
    let mut stage = stage();
    assert_ok(one(&mut stage, create(&long(MAX_NAME_BYTES), QueueSettings::default())));
    assert_bad(one(&mut stage, create(&long(MAX_NAME_BYTES + 1), QueueSettings::default())), "name");
    assert_bad(one(&mut stage, create("", QueueSettings::default())), "name");
    assert_bad(one(&mut stage, create("a b", QueueSettings::default())), "name");
}

#[test]
fn ids_and_words_of_packages() {
    let mut stage = stage();
    assert_ok(submit(&mut stage, package(&long(MAX_ID_BYTES))));
    assert_bad(submit(&mut stage, package(&long(MAX_ID_BYTES + 1))), "id");
    assert_bad(submit(&mut stage, package("")), "id");
    let word = |bytes| NewPackage { kind: long(bytes), ..package("k") };
    assert_ok(submit(&mut stage, word(MAX_WORD_BYTES)));
    assert_bad(submit(&mut stage, NewPackage { id: "k2".into(), ..word(MAX_WORD_BYTES + 1) }), "kind");
    let word = |bytes| NewPackage { content_type: long(bytes), ..package("c") };
    assert_ok(submit(&mut stage, word(MAX_WORD_BYTES)));
    assert_bad(submit(&mut stage, NewPackage { id: "c2".into(), ..word(MAX_WORD_BYTES + 1) }), "content_type");
}

#[test]
fn labels_of_packages() {
    let mut stage = stage();
    let labels = |count: usize, key: usize, value: usize| -> BTreeMap<String, String> {
        (0..count).map(|n| (format!("{n:0key$}"), long(value))).collect()
    };
    let with = |id: &str, labels| NewPackage { labels, ..package(id) };
    assert_ok(submit(&mut stage, with("a", labels(MAX_LABELS, 3, 1))));
    assert_bad(submit(&mut stage, with("b", labels(MAX_LABELS + 1, 3, 1))), "labels");
    assert_ok(submit(&mut stage, with("c", labels(1, MAX_LABEL_KEY_BYTES, 1))));
    assert_bad(submit(&mut stage, with("d", labels(1, MAX_LABEL_KEY_BYTES + 1, 1))), "labels");
    assert_ok(submit(&mut stage, with("e", labels(1, 1, MAX_LABEL_VALUE_BYTES))));
    assert_bad(submit(&mut stage, with("f", labels(1, 1, MAX_LABEL_VALUE_BYTES + 1))), "labels");
}

#[test]
fn priorities_and_attempts() {
    let mut stage = stage();
    assert_ok(submit(&mut stage, NewPackage { priority: Some(MAX_PRIORITY), ..package("a") }));
    assert_bad(submit(&mut stage, NewPackage { priority: Some(MAX_PRIORITY + 1), ..package("b") }), "priority");
    assert_ok(submit(&mut stage, NewPackage { max_attempts: Some(1), ..package("c") }));
    assert_bad(submit(&mut stage, NewPackage { max_attempts: Some(0), ..package("d") }), "max_attempts");
}

#[test]
fn payloads() {
    let mut stage = stage_with(QueueSettings { max_payload: Some(100), ..QueueSettings::default() });
    let with = |id: &str, bytes| NewPackage { payload: Bytes::from(vec![0; bytes]), ..package(id) };
    assert_ok(submit(&mut stage, with("a", 100)));
    assert_bad(submit(&mut stage, with("b", 101)), "payload");

    let ceiling = |max| QueueSettings { max_payload: Some(max), ..QueueSettings::default() };
    assert_ok(one(&mut stage, create("large", ceiling(MAX_PAYLOAD_CEILING_BYTES))));
    assert_bad(one(&mut stage, create("larger", ceiling(MAX_PAYLOAD_CEILING_BYTES + 1))), "max_payload");
    let ceiling = |max| QueueSettings { max_result: Some(max), ..QueueSettings::default() };
    assert_ok(one(&mut stage, create("long", ceiling(MAX_PAYLOAD_CEILING_BYTES))));
    assert_bad(one(&mut stage, create("longer", ceiling(MAX_PAYLOAD_CEILING_BYTES + 1))), "max_result");
}

#[test]
fn results() {
    let mut stage = stage_with(QueueSettings { max_result: Some(100), ..QueueSettings::default() });
    let fence = leased(&mut stage, "p1");
    let mut done = |bytes| {
        let completion = Completion {
            queue: "mail".into(),
            id: "p1".into(),
            fence,
            result: Bytes::from(vec![0; bytes]),
            ..Completion::default()
        };
        match one(&mut stage, Op::Complete(Complete { speaker: speaker(), completions: vec![completion] })) {
            Ok(Reply::Settled(mut results)) => results.remove(0),
            other => panic!("{other:?}"),
        }
    };
    assert_bad(done(101), "result");
    assert_ok(done(100));
}

#[test]
fn checkpoints() {
    let mut stage = stage();
    let fence = leased(&mut stage, "p1");
    let mut extend = |bytes| {
        let extension = Extension {
            queue: "mail".into(),
            id: "p1".into(),
            fence,
            by_ms: None,
            checkpoint: Bytes::from(vec![0; bytes]),
        };
        match one(&mut stage, Op::Extend(Extend { speaker: speaker(), extensions: vec![extension] })) {
            Ok(Reply::Settled(mut results)) => results.remove(0),
            other => panic!("{other:?}"),
        }
    };
    assert_ok(extend(MAX_CHECKPOINT_BYTES));
    assert_bad(extend(MAX_CHECKPOINT_BYTES + 1), "checkpoint");
}

#[test]
fn long_messages_and_codes_are_cut() {
    let mut stage = stage();
    let fence = leased(&mut stage, "p1");
    let failed = Failed {
        queue: "mail".into(),
        id: "p1".into(),
        fence,
        // Cut between characters, never inside one.
        message: format!("x{}", "ä".repeat(MAX_MESSAGE_BYTES)),
        code: format!("x{}", "ä".repeat(MAX_CODE_BYTES)),
        permanent: true,
        retry_delay_ms: None,
    };
    assert_ok(one(&mut stage, Op::Fail(Fail { speaker: speaker(), failed: vec![failed] })));
    let view = stage.machine.package("mail", "p1").expect("it is DEAD and stays");
    let failure = view.last_failure.expect("a failure is told");
    assert_eq!(failure.message.len(), MAX_MESSAGE_BYTES - 1);
    assert_eq!(failure.code.len(), MAX_CODE_BYTES - 1);
}

#[test]
fn packages_in_a_submit() {
    let mut stage = stage();
    let many = |count: usize, stem: &str| {
        let packages = (0..count).map(|n| package(&format!("{stem}{n}"))).collect();
        Op::Submit(Submit { packages, atomic: true })
    };
    assert_ok(one(&mut stage, many(MAX_PACKAGES_A_SUBMIT, "a")));
    assert_bad(one(&mut stage, many(MAX_PACKAGES_A_SUBMIT + 1, "b")), "packages");
}

#[test]
fn settlements_in_a_message() {
    let mut stage = stage();
    assert_ok(one(&mut stage, Op::OpenSession(hello("w1"))));
    let lease = || Lease { queue: "mail".into(), id: "none".into(), fence: 1 };
    let release = |count| Op::Release(Release { speaker: speaker(), leases: vec![lease(); count] });
    assert_ok(one(&mut stage, release(MAX_SETTLEMENTS_A_MESSAGE)));
    assert_bad(one(&mut stage, release(MAX_SETTLEMENTS_A_MESSAGE + 1)), "");
    let complete =
        |count| Op::Complete(Complete { speaker: speaker(), completions: vec![Completion::default(); count] });
    assert_ok(one(&mut stage, complete(MAX_SETTLEMENTS_A_MESSAGE)));
    assert_bad(one(&mut stage, complete(MAX_SETTLEMENTS_A_MESSAGE + 1)), "");
    let fail = |count| Op::Fail(Fail { speaker: speaker(), failed: vec![Failed::default(); count] });
    assert_bad(one(&mut stage, fail(MAX_SETTLEMENTS_A_MESSAGE + 1)), "");
    let extend = |count| Op::Extend(Extend { speaker: speaker(), extensions: vec![Extension::default(); count] });
    assert_bad(one(&mut stage, extend(MAX_SETTLEMENTS_A_MESSAGE + 1)), "");
}

#[test]
fn words_of_sessions() {
    let mut stage = stage();
    assert_ok(one(&mut stage, Op::OpenSession(hello(&long(MAX_WORD_BYTES)))));
    assert_bad(one(&mut stage, Op::OpenSession(hello(&long(MAX_WORD_BYTES + 1)))), "session");
    assert_bad(one(&mut stage, Op::OpenSession(hello(""))), "session");
    let worker = OpenSession { worker: long(MAX_WORD_BYTES + 1), ..hello("a") };
    assert_bad(one(&mut stage, Op::OpenSession(worker)), "worker");
    let kinds = OpenSession { kinds: vec![long(MAX_WORD_BYTES + 1)], ..hello("b") };
    assert_bad(one(&mut stage, Op::OpenSession(kinds)), "kinds");
    let labels = (0..=MAX_LABELS).map(|n| (n.to_string(), String::new())).collect();
    assert_bad(one(&mut stage, Op::OpenSession(OpenSession { labels, ..hello("c") })), "labels");
    assert_bad(one(&mut stage, Op::OpenSession(OpenSession { queues: vec![], ..hello("d") })), "queues");
}

#[test]
fn credit_of_a_session() {
    let mut stage = stage();
    let with = |max_in_flight| Op::OpenSession(OpenSession { max_in_flight, ..hello("w1") });
    assert_bad(one(&mut stage, with(MAX_IN_FLIGHT_CEILING + 1)), "max_in_flight");
    assert_ok(one(&mut stage, with(MAX_IN_FLIGHT_CEILING)));
    let credit = |max_in_flight| Op::SetCredit(SetCredit { speaker: speaker(), max_in_flight });
    assert_ok(one(&mut stage, credit(MAX_IN_FLIGHT_CEILING)));
    assert_bad(one(&mut stage, credit(MAX_IN_FLIGHT_CEILING + 1)), "max_in_flight");
}

#[test]
fn lanes_of_a_subscription() {
    let mut stage = stage();
    let kinds = |count: usize| (0..count).map(|n| format!("kind{n}")).collect();
    let with = |session: &str, count| Op::OpenSession(OpenSession { kinds: kinds(count), ..hello(session) });
    assert_ok(one(&mut stage, with("a", MAX_LANES_A_CLASS)));
    assert_bad(one(&mut stage, with("b", MAX_LANES_A_CLASS + 1)), "");
    // Queues times kinds.
    assert_ok(one(&mut stage, create("news", QueueSettings::default())));
    let both = OpenSession {
        queues: vec!["mail".into(), "news".into()],
        kinds: kinds(MAX_LANES_A_CLASS / 2 + 1),
        ..hello("c")
    };
    assert_bad(one(&mut stage, Op::OpenSession(both)), "");
}

#[test]
fn different_subscriptions() {
    let mut stage = stage();
    let with = |n: usize, session: &str| OpenSession { kinds: vec![format!("kind{n}")], ..hello(session) };
    for at in (0..MAX_CLASSES).step_by(250) {
        let ops = (at..at + 250).map(|n| Op::OpenSession(with(n, &format!("w{n}")))).collect();
        let applied = stage.apply(ops).unwrap_or_else(|why| panic!("{why}"));
        assert!(applied.outcomes.iter().all(|outcome| outcome.result.is_ok()));
    }
    let refused = one(&mut stage, Op::OpenSession(with(MAX_CLASSES, "late")));
    assert!(matches!(refused, Err(Reject::TooManyClasses { limit }) if limit == MAX_CLASSES as u64), "{refused:?}");
    // The same subscription is the same class.
    assert_ok(one(&mut stage, Op::OpenSession(with(3, "another"))));
}

#[test]
fn sessions_and_queues() {
    let mut stage = stage();
    let settings = ClusterSettings { max_sessions: Some(1), max_queues: Some(2), ..ClusterSettings::default() };
    assert_ok(one(&mut stage, Op::SetCluster(SetCluster { settings: Some(settings) })));
    assert_ok(one(&mut stage, Op::OpenSession(hello("w1"))));
    let refused = one(&mut stage, Op::OpenSession(hello("w2")));
    assert!(matches!(refused, Err(Reject::TooManySessions { limit: 1 })), "{refused:?}");
    // Coming back is not another one.
    assert_ok(one(&mut stage, Op::OpenSession(hello("w1"))));

    assert_ok(one(&mut stage, create("two", QueueSettings::default())));
    let refused = one(&mut stage, create("three", QueueSettings::default()));
    assert!(matches!(refused, Err(Reject::TooManyQueues { limit: 2 })), "{refused:?}");
    assert_ok(one(&mut stage, create("two", QueueSettings::default())));
}

#[test]
fn kinds_of_a_queue() {
    let mut stage = stage();
    for at in (0..MAX_KINDS_A_QUEUE).step_by(MAX_PACKAGES_A_SUBMIT) {
        let packages = (at..at + MAX_PACKAGES_A_SUBMIT)
            .map(|n| NewPackage { kind: format!("kind{n}"), ..package(&format!("p{n}")) })
            .collect();
        assert_ok(one(&mut stage, Op::Submit(Submit { packages, atomic: true })));
    }
    let refused = submit(&mut stage, NewPackage { kind: "one more".into(), ..package("late") });
    assert!(matches!(&refused, Err(Reject::TooManyKinds { queue, .. }) if queue == "mail"), "{refused:?}");
    assert_ok(submit(&mut stage, NewPackage { kind: "kind0".into(), ..package("known") }));
}

#[test]
fn a_full_queue() {
    let mut stage = stage_with(QueueSettings { max_packages: Some(2), ..QueueSettings::default() });
    assert_ok(submit(&mut stage, package("a")));
    assert_ok(submit(&mut stage, package("b")));
    let refused = submit(&mut stage, package("c"));
    assert!(matches!(&refused, Err(Reject::QueueFull { limit: 2, .. })), "{refused:?}");
    // A repeat is answered also when it is full.
    assert_ok(submit(&mut stage, package("a")));
    // All or nothing: the one that does not fit refuses the others.
    let atomic = Op::Submit(Submit { packages: vec![package("a"), package("d")], atomic: true });
    let refused = one(&mut stage, atomic);
    assert!(matches!(&refused, Err(Reject::AtomicRefused { index: 1, .. })), "{refused:?}");

    let mut stage = stage_with(QueueSettings { max_bytes: Some(10_000), ..QueueSettings::default() });
    let with = |id: &str| NewPackage { payload: Bytes::from(vec![0; 6_000]), ..package(id) };
    assert_ok(submit(&mut stage, with("a")));
    let refused = submit(&mut stage, with("b"));
    assert!(matches!(&refused, Err(Reject::QueueFull { limit: 10_000, .. })), "{refused:?}");
}

/// Atomic submits count their own packages against the limits: 3 do not fit where 2 do.
#[test]
fn an_atomic_submit_counts_itself() {
    let mut stage = stage_with(QueueSettings { max_packages: Some(2), ..QueueSettings::default() });
    let packages = vec![package("a"), package("b"), package("c")];
    let refused = one(&mut stage, Op::Submit(Submit { packages, atomic: true }));
    assert!(matches!(&refused, Err(Reject::AtomicRefused { index: 2, .. })), "{refused:?}");
    assert!(stage.machine.package("mail", "a").is_err(), "a refused atomic submit left a package");
}

#[test]
fn memory() {
    let mut stage = stage();
    let settings = ClusterSettings { memory_budget_bytes: Some(1 << 20), ..ClusterSettings::default() };
    assert_ok(one(&mut stage, Op::SetCluster(SetCluster { settings: Some(settings) })));
    let with = |id: &str| NewPackage { payload: Bytes::from(vec![0; 600 << 10]), ..package(id) };
    assert_ok(submit(&mut stage, with("a")));
    let refused = submit(&mut stage, with("b"));
    assert!(matches!(&refused, Err(Reject::MemoryBudget { limit_bytes }) if *limit_bytes == 1 << 20), "{refused:?}");
}

/// Finished packages go first under memory pressure: their results make room.
#[test]
fn memory_pressure_evicts_what_is_finished() {
    let mut stage = stage();
    let fence = leased(&mut stage, "done");
    let completion = Completion {
        queue: "mail".into(),
        id: "done".into(),
        fence,
        result: Bytes::from(vec![0; 600 << 10]),
        ..Completion::default()
    };
    assert_ok(one(&mut stage, Op::Complete(Complete { speaker: None, completions: vec![completion] })));
    let settings = ClusterSettings { memory_budget_bytes: Some(1 << 20), ..ClusterSettings::default() };
    assert_ok(one(&mut stage, Op::SetCluster(SetCluster { settings: Some(settings) })));
    assert_ok(submit(&mut stage, NewPackage { payload: Bytes::from(vec![0; 600 << 10]), ..package("new") }));
    let done = stage.machine.package("mail", "done").expect("its tombstone is left, or its bare state");
    assert!(done.body.is_none() || done.result_evicted, "{done:?}");
}

#[test]
fn grants_of_a_batch() {
    let mut stage = stage();
    for at in 0..5 {
        let packages = (0..MAX_PACKAGES_A_SUBMIT).map(|n| package(&format!("p{at}-{n}"))).collect();
        assert_ok(one(&mut stage, Op::Submit(Submit { packages, atomic: true })));
    }
    let hello = |n: usize| OpenSession {
        max_in_flight: MAX_IN_FLIGHT_CEILING,
        max_in_flight_bytes: u64::MAX,
        ..hello(&format!("w{n}"))
    };
    let hellos = (0..=MAX_GRANTS_A_BATCH / MAX_IN_FLIGHT_CEILING as usize).map(|n| Op::OpenSession(hello(n))).collect();
    let applied = stage.apply(hellos).unwrap_or_else(|why| panic!("{why}"));
    let granted: usize = applied
        .effects
        .iter()
        .map(|effect| if let Effect::Deliver { deliveries, .. } = effect { deliveries.len() } else { 0 })
        .sum();
    assert_eq!(granted, MAX_GRANTS_A_BATCH);
    assert!(stage.machine.summary().needs_advance, "the rest is match debt");
}

#[test]
fn a_step_of_the_ticks() {
    let mut stage = stage();
    assert_ok(one(&mut stage, Op::Tick(Tick {})));
    let before = stage.machine.summary().ticks.0;
    stage.ticks = before + 10 * MAX_TICK_STEP_MS;
    assert_ok(one(&mut stage, Op::Tick(Tick {})));
    assert_eq!(stage.machine.summary().ticks.0, before + MAX_TICK_STEP_MS);
}

/// Closing a session is one command, so no session may hold more than a command may change.
#[test]
fn no_session_holds_more_than_a_command_may_change() {
    assert!(MAX_IN_FLIGHT_CEILING as usize <= wharf::types::limits::MAX_CHANGES_A_COMMAND);
}

#[test]
fn a_new_cluster_has_the_limits_by_default() {
    let settings = Stage::new().machine.cluster_settings();
    assert_eq!(settings.max_sessions, Some(DEFAULT_MAX_SESSIONS));
    assert_eq!(settings.max_queues, Some(DEFAULT_MAX_QUEUES));
    assert_eq!(settings.memory_budget_bytes, Some(DEFAULT_MEMORY_BUDGET_BYTES));
    assert_eq!(settings.dedup_budget, Some(DEFAULT_DEDUP_BUDGET));
    assert_eq!(settings.session_grace_ms, Some(DEFAULT_SESSION_GRACE_MS));
    assert_eq!(settings.failover_grace_ms, Some(DEFAULT_FAILOVER_GRACE_MS));
}

fn deliveries(effects: &[Effect]) -> Vec<String> {
    let ids = effects.iter().filter_map(|effect| match effect {
        Effect::Deliver { deliveries, .. } => Some(deliveries.iter().map(|delivery| delivery.body.id().to_string())),
        _ => None,
    });
    ids.flatten().collect()
}

#[test]
fn a_session_holds_so_many_packages_and_bytes_by_default() {
    let mut stage = stage();
    let many = |count: u32, bytes: usize| {
        let payload = Bytes::from(vec![0; bytes]);
        let packages = (0..count).map(|n| NewPackage { payload: payload.clone(), ..package(&format!("{bytes}-{n}")) });
        Op::Submit(Submit { packages: packages.collect(), atomic: true })
    };
    let hello = |session: &str| Op::OpenSession(OpenSession { max_in_flight: 0, ..hello(session) });
    let submit = many(DEFAULT_MAX_IN_FLIGHT + 1, 0);
    let applied = stage.apply(vec![submit, hello("w1")]).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(deliveries(&applied.effects).len(), DEFAULT_MAX_IN_FLIGHT as usize);

    let mut stage = stage_with(QueueSettings::default());
    const MIB: usize = 1 << 20;
    let fit = DEFAULT_MAX_IN_FLIGHT_BYTES as usize / MIB;
    let submit = many(fit as u32 + 2, MIB);
    let applied = stage.apply(vec![submit, hello("w1")]).unwrap_or_else(|why| panic!("{why}"));
    let granted = deliveries(&applied.effects).len();
    assert!((fit - 1..=fit).contains(&granted), "{granted} of {fit} MiB");
}

#[test]
fn every_so_many_grants_the_oldest_goes_first() {
    let mut stage = stage();
    assert_ok(submit(&mut stage, NewPackage { priority: Some(0), ..package("oldest") }));
    let urgent = |n| NewPackage { priority: Some(MAX_PRIORITY), ..package(&format!("urgent-{n}")) };
    let packages = (0..2 * OLDEST_EVERY).map(urgent).collect();
    assert_ok(one(&mut stage, Op::Submit(Submit { packages, atomic: true })));
    let hello = OpenSession { max_in_flight: 2 * OLDEST_EVERY as u32, ..hello("w1") };
    let applied = stage.apply(vec![Op::OpenSession(hello)]).unwrap_or_else(|why| panic!("{why}"));
    let order = deliveries(&applied.effects);
    assert_eq!(order.iter().position(|id| id == "oldest"), Some(OLDEST_EVERY as usize - 1), "{order:?}");
}
