//! Random operations against the reference model. A failure prints its seed, the last steps and
//! the command that runs it again.

use std::collections::{BTreeMap, VecDeque};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{Rng as _, SeedableRng as _};
use wharf::machine::Effect;
use wharf::machine::command::{
    Advance, Cancel, CloseSession, ClusterSettings, Complete, Completion, CreateQueue, DetachSession, DrainSession,
    Extend, Extension, Fail, Failed, Heard, LeaderStarted, Lease, NewPackage, Op, OpenSession, PauseQueue, Purge,
    QueueSettings, Reclaim, Release, Retry, SealQueue, SetCluster, SetCredit, Speaker, Submit, Tick,
};
use wharf::proto::internal::new_package::{Expiry, Schedule};
use wharf::types::State;

use crate::build;
use crate::model::{Key, Model};
use crate::stage::Stage;

const SEEDS: u64 = 12;
const STEPS: usize = 400;
/// Steps told when a run fails.
const TOLD: usize = 12;

const QUEUES: [&str; 4] = ["plain", "short", "jobs", "dead"];
const SESSIONS: [&str; 5] = ["w1", "w2", "w3", "w4", "w5"];
const KINDS: [&str; 3] = ["", "red", "blue"];
/// Few ids, so that the same come again.
const IDS: u32 = 30;

/// The run: a stage, the model beside it, and what the workers know.
struct Run {
    rng: StdRng,
    stage: Stage,
    model: Model,
    /// The highest fence that reached each session's worker.
    arrived: BTreeMap<String, u64>,
    /// Every lease there ever was.
    granted: Vec<(String, Key, u64)>,
    attach: u64,
    told: VecDeque<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            stage: Stage::new(),
            model: Model::default(),
            arrived: BTreeMap::new(),
            granted: Vec::new(),
            attach: 0,
            told: VecDeque::new(),
        }
    }

    /// All of it; the error says what broke.
    fn go(&mut self, steps: usize) -> Result<(), String> {
        self.step(vec![Op::SetCluster(SetCluster {
            settings: Some(ClusterSettings {
                session_grace_ms: Some(5_000),
                failover_grace_ms: Some(15_000),
                ..ClusterSettings::default()
            }),
        })])?;
        for name in ["dead", "plain", "short", "jobs"] {
            self.step(vec![Op::CreateQueue(CreateQueue { name: name.into(), settings: Some(settings(name)) })])?;
        }
        for _ in 0..steps {
            if self.rng.random_bool(0.03) {
                self.stage.skip();
            }
            let ops = self.batch();
            self.step(ops)?;
            while self.stage.machine.summary().needs_advance {
                self.step(vec![Op::Advance(Advance {})])?;
            }
        }
        self.stage.prove_replay()
    }

    fn step(&mut self, ops: Vec<Op>) -> Result<(), String> {
        self.told.push_back(format!("ticks={} wall={} {ops:?}", self.stage.ticks, self.stage.wall));
        if self.told.len() > TOLD {
            self.told.pop_front();
        }
        let applied = self.stage.apply(ops.clone())?;
        if let Some(told) = self.told.back_mut() {
            told.push_str(&format!("\n    {}", crate::render::effects(&applied.effects).join("\n    ")));
        }
        self.model.follow((self.stage.ticks, self.stage.wall), &ops, &applied, &self.stage.machine)?;
        for effect in &applied.effects {
            let Effect::Deliver { session, deliveries, .. } = effect else { continue };
            // Some messages never arrive.
            let arrives = self.rng.random_bool(0.9);
            for delivery in deliveries {
                let key = (delivery.body.queue().to_string(), delivery.body.id().to_string());
                self.granted.push((session.to_string(), key, delivery.fence.0));
                if arrives {
                    let arrived = self.arrived.entry(session.to_string()).or_default();
                    *arrived = (*arrived).max(delivery.fence.0);
                }
            }
        }
        Ok(())
    }

    /// One to four commands, a Tick last.
    fn batch(&mut self) -> Vec<Op> {
        let step = *[0, 10, 100, 500, 500, 1000].choose(&mut self.rng).expect("not empty");
        self.stage.ticks = self.model.ticks + step;
        self.stage.wall += step;
        if self.rng.random_bool(0.02) {
            self.stage.wall += 7_000;
        }
        let mut ops: Vec<Op> = (0..self.rng.random_range(1..4)).map(|_| self.op()).collect();
        // A leader's first command is that it started.
        ops.sort_by_key(|op| !matches!(op, Op::LeaderStarted(_)));
        if self.rng.random_bool(0.6) {
            ops.push(Op::Tick(Tick {}));
        }
        ops
    }

    fn op(&mut self) -> Op {
        match self.rng.random_range(0..100) {
            0..25 => self.submit(),
            25..45 => self.complete(),
            45..55 => self.fail(),
            55..58 => self.extend(),
            58..63 => self.release(),
            63..67 => Op::SetCredit(SetCredit { speaker: self.speaker(), max_in_flight: self.rng.random_range(0..8) }),
            67..73 => self.hello(),
            73..77 => self.lease_call(),
            77..81 => Op::DetachSession(DetachSession { speaker: self.speaker() }),
            81..82 => {
                let (session, epoch) = self.addressee();
                Op::DrainSession(DrainSession { session, epoch })
            }
            82..83 => {
                let (session, epoch) = self.addressee();
                Op::CloseSession(CloseSession { session, epoch })
            }
            83..86 => {
                let (session, epoch) = self.addressee();
                Op::Reclaim(Reclaim { session, epoch, count: self.rng.random_range(1..4) })
            }
            86..88 => Op::Heard(Heard { speaker: self.speaker() }),
            88..91 => {
                let (queue, id) = self.any_package();
                Op::Cancel(Cancel { queue, id, reason: String::new(), if_revision: None })
            }
            91..94 => {
                let (queue, id) = self.some_dead();
                Op::Retry(Retry { queue, id, if_revision: None })
            }
            94..95 => Op::Purge(Purge {
                queue: self.any_queue(),
                states: if self.rng.random() { vec![] } else { vec![State::Dead as u32, State::Completed as u32] },
            }),
            95..97 => Op::PauseQueue(PauseQueue {
                name: self.any_queue(),
                paused: self.rng.random_bool(0.3),
                if_revision: None,
            }),
            97..99 => Op::SealQueue(SealQueue {
                name: self.any_queue(),
                sealed: self.rng.random_bool(0.3),
                if_revision: None,
            }),
            _ => {
                self.stage.term += 1;
                Op::LeaderStarted(LeaderStarted { term: self.stage.term, node: 1 })
            }
        }
    }

    fn submit(&mut self) -> Op {
        let count = self.rng.random_range(1..5);
        let packages = (0..count).map(|_| self.package()).collect();
        Op::Submit(Submit { packages, atomic: false })
    }

    fn package(&mut self) -> NewPackage {
        let rng = &mut self.rng;
        let mut package = NewPackage {
            kind: (*KINDS.choose(rng).expect("not empty")).to_owned(),
            priority: rng.random_bool(0.5).then(|| rng.random_range(0..10)),
            max_attempts: rng.random_bool(0.2).then(|| rng.random_range(1..4)),
            schedule: match rng.random_range(0..10) {
                0 => Some(Schedule::DelayMs(rng.random_range(0..5_000))),
                1 => Some(Schedule::NotBeforeWall(self.stage.wall + rng.random_range(0..5_000))),
                _ => None,
            },
            expiry: match rng.random_range(0..10) {
                0 => Some(Expiry::TtlMs(rng.random_range(1..20_000))),
                1 => Some(Expiry::ExpireWall(self.stage.wall + rng.random_range(1..20_000))),
                _ => None,
            },
            ..NewPackage::default()
        };
        package.content_hash = build::content_hash(&package);
        package.queue = self.any_queue();
        package.id = format!("p{}", self.rng.random_range(0..IDS));
        // The client asks again for what it asked before.
        if self.rng.random_bool(0.5)
            && let Some(known) = self.model.packages.get(&(package.queue.clone(), package.id.clone()))
        {
            package.content_hash = known.hash;
        }
        package
    }

    /// Mostly a lease that is in hand, sometimes any that ever was.
    fn leases(&mut self) -> (Option<Speaker>, Vec<Lease>) {
        let mut speaker = self.speaker();
        let mut leases = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let current = |(name, session): (&String, &crate::model::Session)| {
                let name = name.clone();
                session.leases.iter().map(move |(fence, key)| (name.clone(), key.clone(), *fence)).collect::<Vec<_>>()
            };
            let held = self.model.sessions.iter().flat_map(current).choose(&mut self.rng);
            let past = self.granted.choose(&mut self.rng).cloned();
            let pick = if self.rng.random_bool(0.85) { held.or(past) } else { past };
            let Some((session, key, fence)) = pick else { continue };
            if leases.is_empty() {
                speaker = Some(self.speaker_of(session));
            }
            leases.push(Lease { queue: key.0, id: key.1, fence });
        }
        leases.dedup();
        (speaker, leases)
    }

    fn complete(&mut self) -> Op {
        let (speaker, leases) = self.leases();
        let done = |lease: Lease| Completion { queue: lease.queue, id: lease.id, fence: lease.fence, ..<_>::default() };
        Op::Complete(Complete { speaker, completions: leases.into_iter().map(done).collect() })
    }

    fn fail(&mut self) -> Op {
        let (speaker, leases) = self.leases();
        let permanent = self.rng.random_bool(0.1);
        let retry_delay_ms = self.rng.random_bool(0.5).then(|| self.rng.random_range(0..3_000));
        let failed = |lease: Lease| Failed {
            queue: lease.queue,
            id: lease.id,
            fence: lease.fence,
            permanent,
            retry_delay_ms,
            ..Failed::default()
        };
        Op::Fail(Fail { speaker, failed: leases.into_iter().map(failed).collect() })
    }

    fn extend(&mut self) -> Op {
        let (speaker, leases) = self.leases();
        let by_ms = self.rng.random_bool(0.5).then(|| self.rng.random_range(1_000..20_000));
        let extension = |lease: Lease| Extension {
            queue: lease.queue,
            id: lease.id,
            fence: lease.fence,
            by_ms,
            ..Extension::default()
        };
        let speaker = speaker.filter(|_| self.rng.random_bool(0.8));
        Op::Extend(Extend { speaker, extensions: leases.into_iter().map(extension).collect() })
    }

    fn release(&mut self) -> Op {
        let (speaker, leases) = self.leases();
        let speaker = speaker.filter(|_| self.rng.random_bool(0.8));
        Op::Release(Release { speaker, leases })
    }

    fn hello(&mut self) -> Op {
        self.attach += 1;
        let session = (*SESSIONS.choose(&mut self.rng).expect("not empty")).to_owned();
        let known = self.model.sessions.get(&session).cloned();
        let received_fence = match &known {
            Some(_) => self.arrived.get(&session).copied().unwrap_or(0),
            None => {
                self.arrived.remove(&session);
                0
            }
        };
        let rng = &mut self.rng;
        let (queues, kinds, concurrency) = match &known {
            // Mostly as before, sometimes with other hands.
            Some(known) if rng.random_bool(0.8) => (known.queues.clone(), known.kinds.clone(), known.concurrency),
            Some(known) => (known.queues.clone(), known.kinds.clone(), rng.random_range(0..4)),
            None => {
                let two = QUEUES.choose_multiple(rng, 2).map(|queue| (*queue).to_owned()).collect();
                let all = QUEUES.map(str::to_owned).to_vec();
                let kinds = if rng.random_bool(0.7) { vec![] } else { vec!["red".to_owned()] };
                (if rng.random_bool(0.7) { all } else { two }, kinds, rng.random_range(0..4))
            }
        };
        // A new process under the old name has forgotten some.
        let forgets = rng.random_bool(0.15);
        let held = known.iter().flat_map(|known| &known.leases).filter(|(fence, _)| **fence <= received_fence);
        let held: Vec<_> = held.filter(|_| !forgets || rng.random()).collect();
        let held = held.into_iter();
        let held = held.map(|(fence, key)| Lease { queue: key.0.clone(), id: key.1.clone(), fence: *fence }).collect();
        Op::OpenSession(OpenSession {
            worker: session.clone(),
            session,
            queues,
            kinds,
            labels: BTreeMap::new(),
            max_in_flight: rng.random_range(1..8),
            max_in_flight_bytes: 0,
            concurrency: u32::try_from(concurrency).unwrap_or(0),
            held,
            received_fence,
            attach: self.attach,
            unary: false,
        })
    }

    /// A call for work, which may have lost answers behind it.
    fn lease_call(&mut self) -> Op {
        let mut op = match self.hello() {
            Op::OpenSession(op) => op,
            other => return other,
        };
        op.unary = true;
        op.held.clear();
        if self.rng.random_bool(0.1) {
            op.received_fence = 0;
        }
        Op::OpenSession(op)
    }

    fn speaker(&mut self) -> Option<Speaker> {
        let session = (*SESSIONS.choose(&mut self.rng).expect("not empty")).to_owned();
        let mut speaker = self.speaker_of(session);
        // An old stream speaks.
        if self.rng.random_bool(0.1) && speaker.epoch > 1 {
            speaker.epoch -= 1;
        }
        Some(speaker)
    }

    fn speaker_of(&self, session: String) -> Speaker {
        let epoch = self.model.sessions.get(&session).map_or(1, |known| known.epoch);
        let received_fence = self.arrived.get(&session).copied().unwrap_or(0);
        Speaker { session, epoch, received_fence }
    }

    /// From the worker's current stream, an older one, or an operator.
    fn addressee(&mut self) -> (String, u64) {
        let speaker = self.speaker().expect("always some");
        if self.rng.random_bool(0.3) { (speaker.session, 0) } else { (speaker.session, speaker.epoch) }
    }

    fn any_queue(&mut self) -> String {
        (*QUEUES.choose(&mut self.rng).expect("not empty")).to_owned()
    }

    fn any_package(&mut self) -> Key {
        (self.any_queue(), format!("p{}", self.rng.random_range(0..IDS)))
    }

    fn some_dead(&mut self) -> Key {
        let dead = self.model.packages.iter().filter(|(_, package)| package.state == State::Dead && !package.moved);
        let dead = dead.map(|(key, _)| key.clone()).choose(&mut self.rng);
        dead.unwrap_or_else(|| self.any_package())
    }
}

/// Four queues for four sorts of rules.
fn settings(queue: &str) -> QueueSettings {
    let mut settings = QueueSettings {
        lease_ms: Some(8_000),
        backoff_initial_ms: Some(1_000),
        dedup_window_ms: Some(10_000),
        ..QueueSettings::default()
    };
    match queue {
        "short" => {
            settings.lease_ms = Some(2_000);
            settings.keep_finished_ms = Some(4_000);
            settings.max_in_flight = Some(6);
        }
        "jobs" => {
            settings.max_attempts = Some(2);
            settings.dead_letter_queue = Some("dead".into());
        }
        _ => {}
    }
    settings
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn run(seed: u64, steps: usize) -> Run {
    let mut run = Run::new(seed);
    if let Err(why) = run.go(steps) {
        let told: Vec<String> = run.told.iter().cloned().collect();
        panic!(
            "{}\n\n{why}\n\nseed {seed}, step {}; run it again:\n  WHARF_SEED={seed} cargo test --test machine random",
            told.join("\n"),
            run.stage.steps(),
        );
    }
    run
}

/// `WHARF_SEED` runs one; `WHARF_SEEDS` and `WHARF_STEPS` run more.
#[test]
fn random_operations_follow_the_model() {
    let steps = number("WHARF_STEPS").and_then(|steps| usize::try_from(steps).ok()).unwrap_or(STEPS);
    if let Some(seed) = number("WHARF_SEED") {
        run(seed, steps);
        return;
    }
    for seed in 0..number("WHARF_SEEDS").unwrap_or(SEEDS) {
        run(seed, steps);
    }
}

/// The same seed twice: the same log, the same state. The generator feeds on what the machine
/// gives, so any difference grows.
#[test]
fn the_same_seed_gives_the_same_state() {
    let first = run(1_000, STEPS);
    let second = run(1_000, STEPS);
    assert_eq!(first.stage.machine.freeze().hash(), second.stage.machine.freeze().hash());
    assert_eq!(first.stage.steps(), second.stage.steps());
}

/// The runs reach what they are meant to reach: a generator that only refuses tests nothing.
#[test]
fn random_operations_reach_every_state_and_cause() {
    let mut states = std::collections::BTreeSet::new();
    let mut ends = [0_u64; 7];
    for seed in 0..SEEDS {
        let run = run(seed, STEPS);
        for queue in QUEUES {
            let view = run.stage.machine.queue(queue).expect("created at the start");
            for state in State::ALL {
                if crate::render::live(&view, state) > 0 {
                    states.insert(state);
                }
            }
            for (sum, count) in ends.iter_mut().zip(view.lease_ends) {
                *sum += count;
            }
        }
    }
    assert_eq!(states.len(), State::ALL.len(), "{states:?}");
    for cause in wharf::types::Cause::ALL {
        use wharf::types::Cause::Drained;
        assert!(ends[cause as usize] > 0 || cause == Drained, "no lease ended by {}", cause.as_str());
    }
}
