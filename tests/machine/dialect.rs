//! The dialect of the golden scripts. A line is a command of the machine, a step of the clock, or
//! a look at the state; `tests/machine/scripts/README.md` lists them.
//!
//! Scripts name packages, never fences: each worker remembers what was delivered to it and under
//! which fence, as a real one does, also when the lease is long gone.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;
use wharf::machine::command::{
    Advance, Cancel, CloseSession, Complete, Completion, CreateQueue, DeleteQueue, DetachSession, DrainSession, Extend,
    Extension, Fail, Failed, Fingerprint, Heard, LeaderStarted, Lease, Op, OpenSession, PauseQueue, Purge,
    RaiseVersion, Reclaim, Redrive, Release, Reply, Retry, SealQueue, SetCluster, SetCredit, Speaker, Submit, Tick,
    UpdateQueue,
};
use wharf::machine::effect::VerdictKind;
use wharf::machine::{Applied, Effect};
use wharf::types::limits;

use crate::build::{self, Args};
use crate::render;
use crate::stage::Stage;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// `Advance` is proposed at most so often in a row: more means that a sweep does not end.
const MAX_ADVANCES: usize = 10_000;

/// What a worker knows.
#[derive(Default)]
struct Worker {
    epoch: u64,
    received: u64,
    concurrency: usize,
    /// In the order of delivery.
    held: Vec<Lease>,
    /// The last fence it had of each package, held or not.
    remembered: BTreeMap<(String, String), u64>,
    hello: OpenSession,
}

/// A command that waits for its batch, and the names of its parts.
struct Pending {
    op: Op,
    ids: Vec<String>,
}

/// Runs one script.
pub struct Runner {
    stage: Stage,
    workers: BTreeMap<String, Worker>,
    pending: Vec<Pending>,
    /// The queue that `submit p1` means, set by `create` and `use`.
    queue: String,
    attach: u64,
}

impl Runner {
    pub fn new() -> Self {
        Self { stage: Stage::new(), workers: BTreeMap::new(), pending: Vec::new(), queue: String::new(), attach: 0 }
    }

    /// Applies what is pending. `sent`: the leader lives to send the effects.
    fn flush(&mut self, sent: bool) -> Result<String> {
        let pending = std::mem::take(&mut self.pending);
        let ops = pending.iter().map(|command| command.op.clone()).collect();
        let applied = self.stage.apply(ops)?;
        let mut out = String::new();
        for (outcome, command) in applied.outcomes.iter().zip(&pending) {
            writeln!(out, "{}", render::outcome(outcome, &command.ids))?;
        }
        for line in render::effects(&applied.effects) {
            writeln!(out, "{line}{}", if sent { "" } else { " (not sent)" })?;
        }
        self.learn(&pending, &applied, sent);
        Ok(out)
    }

    /// What the workers see of it.
    fn learn(&mut self, pending: &[Pending], applied: &Applied, sent: bool) {
        for effect in applied.effects.iter().filter(|_| sent) {
            match effect {
                Effect::SessionOpened { session, epoch, verdicts, .. } => {
                    let worker = self.workers.entry(session.to_string()).or_default();
                    worker.epoch = epoch.0;
                    for verdict in verdicts {
                        if !matches!(verdict.kind, VerdictKind::Keep) {
                            worker.forget(verdict.fence.0);
                        }
                    }
                }
                Effect::Deliver { session, deliveries, .. } => {
                    let worker = self.workers.entry(session.to_string()).or_default();
                    for delivery in deliveries {
                        worker.take(Lease {
                            queue: delivery.body.queue.to_string(),
                            id: delivery.body.id.to_string(),
                            fence: delivery.fence.0,
                        });
                    }
                }
                Effect::Revoke { session, leases, .. } => {
                    let worker = self.workers.entry(session.to_string()).or_default();
                    for lease in leases {
                        worker.forget(lease.fence.0);
                    }
                }
                _ => {}
            }
        }
        for (command, outcome) in pending.iter().zip(&applied.outcomes) {
            let fences: Vec<u64> = match &command.op {
                Op::Complete(op) => op.completions.iter().map(|part| part.fence).collect(),
                Op::Fail(op) => op.failed.iter().map(|part| part.fence).collect(),
                Op::Release(op) => op.leases.iter().map(|part| part.fence).collect(),
                _ => continue,
            };
            let Ok(Reply::Settled(_)) = &outcome.result else { continue };
            if sent {
                for fence in fences {
                    self.workers.values_mut().for_each(|worker| worker.forget(fence));
                }
            }
        }
    }

    fn speaker(&mut self, session: &str, args: &mut Args) -> Result<Speaker> {
        let worker = self.workers.entry(session.to_owned()).or_default();
        Ok(Speaker {
            session: session.to_owned(),
            epoch: args.number("epoch")?.unwrap_or(worker.epoch),
            received_fence: args.number("received")?.unwrap_or(worker.received),
        })
    }

    /// `p1`, `queue/p1`, `p1@12`, as the worker knows them.
    fn leases(&self, session: &str, words: Vec<String>) -> Result<Vec<Lease>> {
        words.iter().map(|word| self.lease(session, word)).collect()
    }

    fn lease(&self, session: &str, word: &str) -> Result<Lease> {
        let (name, fence) = match word.split_once('@') {
            Some((name, fence)) => (name, Some(fence.parse::<u64>()?)),
            None => (word, None),
        };
        let known = self.workers.get(session).map(|worker| &worker.remembered);
        let (queue, id) = match name.rsplit_once('/') {
            Some((queue, id)) => (queue.to_owned(), id.to_owned()),
            None => {
                let queue = known
                    .into_iter()
                    .flatten()
                    .filter(|((_, id), _)| id == name)
                    .max_by_key(|(_, fence)| **fence)
                    .map(|((queue, _), _)| queue.clone());
                (queue.unwrap_or_else(|| self.queue.clone()), name.to_owned())
            }
        };
        let fence = match fence {
            Some(fence) => fence,
            None => *known
                .and_then(|known| known.get(&(queue.clone(), id.clone())))
                .ok_or_else(|| format!("{session} never had {queue}/{id}"))?,
        };
        Ok(Lease { queue, id, fence })
    }

    /// The command of a line, and the names of its parts; `None`: the line is no command.
    fn command(&mut self, name: &str, args: &mut Args) -> Result<Option<Pending>> {
        let mut ids = Vec::new();
        let op = match name {
            "submit" => self.submit(args, &mut ids)?,
            "done" | "fail" | "extend" | "release" => self.settle(name, args, &mut ids)?,
            "hello" => self.hello(args)?,
            "credit" => {
                let session = args.word("session")?;
                let max_in_flight = args.word("credit")?.parse()?;
                Op::SetCredit(SetCredit { speaker: Some(self.speaker(&session, args)?), max_in_flight })
            }
            "heard" => {
                let session = args.word("session")?;
                Op::Heard(Heard { speaker: Some(self.speaker(&session, args)?) })
            }
            "detach" => {
                let session = args.word("session")?;
                Op::DetachSession(DetachSession { speaker: Some(self.speaker(&session, args)?) })
            }
            "drain" | "close" => {
                let session = args.word("session")?;
                let operator = args.flag("operator")?;
                let speaker = self.speaker(&session, args)?;
                let epoch = if operator { 0 } else { speaker.epoch };
                match name {
                    "drain" => Op::DrainSession(DrainSession { session, epoch }),
                    _ => Op::CloseSession(CloseSession { session, epoch }),
                }
            }
            "reclaim" => {
                let session = args.word("session")?;
                let count = args.word("count")?.parse()?;
                let epoch = self.speaker(&session, args)?.epoch;
                Op::Reclaim(Reclaim { session, epoch, count })
            }
            "cancel" => {
                let (queue, id) = self.package_name(args)?;
                ids.push(id.clone());
                let reason = args.text("reason").unwrap_or_default();
                Op::Cancel(Cancel { queue, id, reason, if_revision: args.number("if_revision")? })
            }
            "retry" => {
                let (queue, id) = self.package_name(args)?;
                ids.push(id.clone());
                Op::Retry(Retry { queue, id, if_revision: args.number("if_revision")? })
            }
            "purge" => Op::Purge(Purge { queue: args.word("queue")?, states: build::states(args.rest())? }),
            "redrive" => Op::Redrive(Redrive {
                from: args.word("from")?,
                to: args.word("to")?,
                max: args.number("max")?.unwrap_or(0),
            }),
            "create" => {
                let name = args.word("queue")?;
                self.queue.clone_from(&name);
                Op::CreateQueue(CreateQueue { name, settings: Some(build::queue_settings(args)?) })
            }
            "update" => Op::UpdateQueue(UpdateQueue {
                name: args.word("queue")?,
                settings: Some(build::queue_settings(args)?),
                if_revision: args.number("if_revision")?,
            }),
            "delete" => Op::DeleteQueue(DeleteQueue { name: args.word("queue")?, force: args.flag("force")? }),
            "pause" | "resume" => Op::PauseQueue(PauseQueue {
                name: args.word("queue")?,
                paused: name == "pause",
                if_revision: args.number("if_revision")?,
            }),
            "seal" | "unseal" => Op::SealQueue(SealQueue {
                name: args.word("queue")?,
                sealed: name == "seal",
                if_revision: args.number("if_revision")?,
            }),
            "cluster" => Op::SetCluster(SetCluster { settings: Some(build::cluster_settings(args)?) }),
            "raise" => Op::RaiseVersion(RaiseVersion { version: args.word("version")?.parse()? }),
            "leader" => {
                self.stage.term += 1;
                Op::LeaderStarted(LeaderStarted { term: self.stage.term, node: args.number("node")?.unwrap_or(1) })
            }
            "tick" => Op::Tick(Tick {}),
            "advance" => Op::Advance(Advance {}),
            "fingerprint" => Op::Fingerprint(Fingerprint {}),
            _ => return Ok(None),
        };
        Ok(Some(Pending { op, ids }))
    }

    fn submit(&mut self, args: &mut Args, ids: &mut Vec<String>) -> Result<Op> {
        let template = build::package(args, self.stage.wall)?;
        let atomic = args.flag("atomic")?;
        let mut packages = Vec::new();
        for word in args.rest() {
            let (queue, id) = self.split(&word);
            ids.push(id.clone());
            let content_hash = build::content_hash(&template);
            packages.push(wharf::machine::command::NewPackage { queue, id, content_hash, ..template.clone() });
        }
        Ok(Op::Submit(Submit { packages, atomic }))
    }

    fn settle(&mut self, name: &str, args: &mut Args, ids: &mut Vec<String>) -> Result<Op> {
        let session = args.word("session")?;
        let leases = self.leases(&session, args.rest())?;
        ids.extend(leases.iter().map(|lease| lease.id.clone()));
        let speaker = Some(self.speaker(&session, args)?);
        let parts = leases.into_iter();
        Ok(match name {
            "done" => {
                let result = match (args.text("result"), args.size("result_size")?) {
                    (Some(text), _) => Bytes::from(text),
                    (None, size) => Bytes::from(vec![b'x'; usize::try_from(size.unwrap_or(0))?]),
                };
                let result_content_type = args.text("type").unwrap_or_default();
                let completion = |lease: Lease| Completion {
                    queue: lease.queue,
                    id: lease.id,
                    fence: lease.fence,
                    result: result.clone(),
                    result_content_type: result_content_type.clone(),
                };
                Op::Complete(Complete { speaker, completions: parts.map(completion).collect() })
            }
            "fail" => {
                let message = match args.size("message_size")? {
                    Some(size) => "m".repeat(usize::try_from(size)?),
                    None => args.text("message").unwrap_or_default(),
                };
                let code = args.text("code").unwrap_or_default();
                let permanent = args.flag("permanent")?;
                let retry_delay_ms = args.millis("retry")?;
                let failed = |lease: Lease| Failed {
                    queue: lease.queue,
                    id: lease.id,
                    fence: lease.fence,
                    message: message.clone(),
                    code: code.clone(),
                    permanent,
                    retry_delay_ms,
                };
                Op::Fail(Fail { speaker, failed: parts.map(failed).collect() })
            }
            "extend" => {
                let by_ms = args.millis("by")?;
                let checkpoint = match args.size("checkpoint_size")? {
                    Some(size) => Bytes::from(vec![b'c'; usize::try_from(size)?]),
                    None => Bytes::from(args.text("checkpoint").unwrap_or_default()),
                };
                let extension = |lease: Lease| Extension {
                    queue: lease.queue,
                    id: lease.id,
                    fence: lease.fence,
                    by_ms,
                    checkpoint: checkpoint.clone(),
                };
                Op::Extend(Extend { speaker, extensions: parts.map(extension).collect() })
            }
            _ => Op::Release(Release { speaker, leases: parts.collect() }),
        })
    }

    fn hello(&mut self, args: &mut Args) -> Result<Op> {
        let session = args.word("session")?;
        self.attach += 1;
        let held = match args.text("held").as_deref() {
            None => Vec::new(),
            Some("all") => self.workers.get(&session).map(|worker| worker.held.clone()).unwrap_or_default(),
            Some(words) => self.leases(&session, words.split(',').map(str::to_owned).collect())?,
        };
        let received_fence = match args.number("received")? {
            Some(fence) => fence,
            None => self.workers.get(&session).map_or(0, |worker| worker.received),
        };
        let list = |text: Option<String>| -> Vec<String> {
            text.map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
        };
        let queues = args.rest();
        let op = OpenSession {
            worker: args.text("worker").unwrap_or_else(|| session.clone()),
            queues: if queues.is_empty() { vec![self.queue.clone()] } else { queues },
            kinds: list(args.text("kinds")),
            labels: args.labels(),
            max_in_flight: args.number("max")?.unwrap_or(0),
            max_in_flight_bytes: args.size("bytes")?.unwrap_or(0),
            concurrency: args.number("concurrency")?.unwrap_or(1),
            held,
            received_fence,
            attach: self.attach,
            session: session.clone(),
        };
        let worker = self.workers.entry(session).or_default();
        worker.concurrency = op.concurrency as usize;
        worker.hello = op.clone();
        Ok(Op::OpenSession(op))
    }

    fn split(&self, word: &str) -> (String, String) {
        match word.rsplit_once('/') {
            Some((queue, id)) => (queue.to_owned(), id.to_owned()),
            None => (self.queue.clone(), word.to_owned()),
        }
    }

    fn package_name(&self, args: &mut Args) -> Result<(String, String)> {
        Ok(self.split(&args.word("package")?))
    }

    /// A look at the state; `None`: no such line.
    fn look(&mut self, name: &str, args: &mut Args) -> Result<Option<String>> {
        let mut out = String::new();
        let machine = &self.stage.machine;
        match name {
            "get" => {
                for word in args.rest() {
                    let (queue, id) = self.split(&word);
                    match machine.package(&queue, &id) {
                        Ok(view) => writeln!(out, "{}", render::package(&view))?,
                        Err(reject) => writeln!(out, "{queue}/{id} refused: {}", render::reject(&reject))?,
                    }
                }
            }
            // Who paid: more attempts than a completion at the first lease explains.
            "charged" => {
                for word in args.rest() {
                    let (queue, id) = self.split(&word);
                    let Ok(view) = machine.package(&queue, &id) else { continue };
                    let free = u32::from(view.state == wharf::types::State::Completed);
                    if view.attempts > free {
                        writeln!(out, "{queue}/{id} {} attempts, {}", view.attempts, view.state.as_str())?;
                    }
                }
            }
            "queue" => {
                let names = args.rest();
                for name in if names.is_empty() { vec![self.queue.clone()] } else { names } {
                    match machine.queue(&name) {
                        Ok(view) => writeln!(out, "{}", render::queue(&view))?,
                        Err(reject) => writeln!(out, "{name} refused: {}", render::reject(&reject))?,
                    }
                }
            }
            "settings" => {
                let name = args.next().unwrap_or_else(|| self.queue.clone());
                let view = machine.queue(&name).map_err(|reject| render::reject(&reject))?;
                writeln!(out, "{}", render::queue_settings(&view.settings))?;
            }
            "queues" => {
                let prefix = args.next().unwrap_or_default();
                for view in machine.queues(&prefix) {
                    writeln!(out, "{}", render::queue(&view))?;
                }
            }
            "session" => {
                for name in args.rest() {
                    match machine.session(&name) {
                        Ok(view) => writeln!(out, "{}", render::session(&view))?,
                        Err(reject) => writeln!(out, "{name} refused: {}", render::reject(&reject))?,
                    }
                }
            }
            "sessions" => {
                for view in machine.sessions(args.next().as_deref()) {
                    writeln!(out, "{}", render::session(&view))?;
                }
            }
            "held" => {
                for name in args.rest() {
                    writeln!(out, "{name} holds {}", render::deliveries(&machine.held(&name)))?;
                }
            }
            "purgeable" => {
                let queue = args.word("queue")?;
                match machine.count_purgeable(&queue, &build::states(args.rest())?) {
                    Ok(count) => writeln!(out, "{count}")?,
                    Err(reject) => writeln!(out, "refused: {}", render::reject(&reject))?,
                }
            }
            "recallable" => {
                for (session, epoch, count) in machine.recallable() {
                    writeln!(out, "{session} epoch={} count={count}", epoch.0)?;
                }
            }
            "settings_of_cluster" => writeln!(out, "{}", render::cluster(&machine.cluster_settings()))?,
            "summary" => writeln!(out, "{}", render::summary(&machine.summary()))?,
            _ => return Ok(None),
        }
        if out.is_empty() {
            out.push_str("none\n");
        }
        Ok(Some(out))
    }

    /// Steps of the clock and loops; `None`: no such line.
    fn drive(&mut self, name: &str, args: &mut Args) -> Result<Option<String>> {
        match name {
            "use" => self.queue = args.word("queue")?,
            // The stamps of the next batch move; nothing is applied.
            "pass" => {
                if let Some(both) = args.next() {
                    self.stage.ticks += build::millis(&both)?;
                    self.stage.wall += build::millis(&both)?;
                }
                self.stage.ticks += args.millis("ticks")?.unwrap_or(0);
                self.stage.wall += args.millis("wall")?.unwrap_or(0);
                self.stage.wall -= args.millis("wall_back")?.unwrap_or(0);
            }
            "wait" => {
                let time = build::millis(&args.word("time")?)?;
                return self.wait(time).map(Some);
            }
            "settle" => return self.settle_debts().map(Some),
            "work" => return self.work(args).map(Some),
            _ => return Ok(None),
        }
        Ok(Some(String::new()))
    }

    /// Lets time pass as a leader does: a `Tick` every 500 ms, `Advance` while it is needed.
    fn wait(&mut self, time_ms: u64) -> Result<String> {
        let end = self.stage.ticks + time_ms;
        let mut out = String::new();
        while self.stage.ticks < end {
            let step = limits::TICK_EVERY_MS.min(end - self.stage.ticks);
            self.stage.ticks += step;
            self.stage.wall += step;
            let mut op = Op::Tick(Tick {});
            for _ in 0..MAX_ADVANCES {
                let applied = self.stage.apply(vec![op])?;
                for line in render::effects(&applied.effects) {
                    writeln!(out, "{}.{:03}s {line}", self.stage.ticks / 1000, self.stage.ticks % 1000)?;
                }
                self.learn(&[], &applied, true);
                if !self.stage.machine.summary().needs_advance {
                    break;
                }
                op = Op::Advance(Advance {});
            }
        }
        Ok(out)
    }

    /// `Advance` until nothing is left, as a leader does.
    fn settle_debts(&mut self) -> Result<String> {
        let mut out = String::new();
        let mut advances = 0;
        while self.stage.machine.summary().needs_advance {
            advances += 1;
            if advances > MAX_ADVANCES {
                return Err("the debts do not end".into());
            }
            let applied = self.stage.apply(vec![Op::Advance(Advance {})])?;
            for line in render::effects(&applied.effects) {
                writeln!(out, "{line}")?;
            }
            self.learn(&[], &applied, true);
        }
        writeln!(out, "{advances} advances")?;
        Ok(out)
    }

    /// Workers at work, in rounds: each completes the oldest `take` of what it has in hand. One
    /// that has `poison` in hand dies instead, silently, and comes back under a new session. Without
    /// names: all.
    fn work(&mut self, args: &mut Args) -> Result<String> {
        let mut names = args.rest();
        if names.is_empty() {
            names.extend(self.stage.machine.sessions(None).iter().map(|view| view.session.to_string()));
        }
        let rounds: usize = args.number("rounds")?.unwrap_or(usize::MAX);
        let take: usize = args.number("take")?.unwrap_or(1);
        let poison = args.text("poison");
        let mut done: BTreeMap<String, usize> = names.iter().map(|name| (name.clone(), 0)).collect();
        let mut out = String::new();
        for _ in 0..rounds {
            let mut idle = true;
            for name in &mut names {
                let Some(worker) = self.workers.get(name) else { return Err(format!("no worker {name}").into()) };
                let hands = if worker.concurrency == 0 { usize::MAX } else { worker.concurrency };
                let in_hand: Vec<Lease> = worker.held.iter().take(hands).cloned().collect();
                if in_hand.is_empty() {
                    continue;
                }
                idle = false;
                if in_hand.iter().any(|lease| Some(&lease.id) == poison.as_ref()) {
                    let ids: Vec<&str> = in_hand.iter().map(|lease| lease.id.as_str()).collect();
                    writeln!(out, "{name} dies with {} in hand", ids.join(" "))?;
                    *name = self.die(name)?;
                    done.insert(name.clone(), 0);
                    continue;
                }
                let completions = in_hand.into_iter().take(take);
                let completions: Vec<Completion> = completions
                    .map(|lease| Completion { queue: lease.queue, id: lease.id, fence: lease.fence, ..<_>::default() })
                    .collect();
                *done.entry(name.clone()).or_default() += completions.len();
                let ids = completions.iter().map(|part| part.id.clone()).collect();
                let speaker =
                    Some(Speaker { session: name.clone(), epoch: worker.epoch, received_fence: worker.received });
                self.pending.push(Pending { op: Op::Complete(Complete { speaker, completions }), ids });
                let lines = self.flush(true)?;
                if lines.contains("refused") {
                    return Err(lines.into());
                }
            }
            if idle {
                break;
            }
        }
        let counts: Vec<String> = done.iter().map(|(name, count)| format!("{name} did {count}")).collect();
        writeln!(out, "{}", counts.join(", "))?;
        Ok(out)
    }

    /// Kills a worker: its stream breaks, its grace passes, and a new process says Hello.
    fn die(&mut self, name: &str) -> Result<String> {
        let Some(worker) = self.workers.get(name) else { return Err(format!("no worker {name}").into()) };
        let hello = worker.hello.clone();
        let speaker = Some(Speaker { session: name.into(), epoch: worker.epoch, received_fence: worker.received });
        self.pending.push(Pending { op: Op::DetachSession(DetachSession { speaker }), ids: Vec::new() });
        self.flush(true)?;
        let grace = self.stage.machine.cluster_settings().session_grace_ms.unwrap_or(0);
        self.wait(grace + limits::TICK_EVERY_MS)?;
        let next = match name.rsplit_once('.') {
            Some((stem, life)) => format!("{stem}.{}", life.parse::<u64>()? + 1),
            None => format!("{name}.2"),
        };
        self.attach += 1;
        let hello =
            OpenSession { session: next.clone(), held: Vec::new(), received_fence: 0, attach: self.attach, ..hello };
        let worker = self.workers.entry(next.clone()).or_default();
        worker.concurrency = hello.concurrency as usize;
        worker.hello = hello.clone();
        self.pending.push(Pending { op: Op::OpenSession(hello), ids: Vec::new() });
        self.flush(true)?;
        Ok(next)
    }
}

impl goldenscript::Runner for Runner {
    fn run(&mut self, line: &goldenscript::Command) -> Result<String> {
        let mut args = Args::of(line)?;
        let and = line.tags.contains("and");
        let sent = !line.tags.contains("unsent");
        if let Some(tag) = line.tags.iter().find(|tag| !matches!(tag.as_str(), "and" | "unsent")) {
            return Err(format!("what is [{tag}]?").into());
        }
        if let Some(pending) = self.command(&line.name, &mut args)? {
            args.end()?;
            self.pending.push(pending);
            return if and { Ok(String::new()) } else { self.flush(sent) };
        }
        if !self.pending.is_empty() {
            return Err("[and] is followed by no command".into());
        }
        let out = match self.look(&line.name, &mut args)? {
            Some(out) => out,
            None => self.drive(&line.name, &mut args)?.ok_or_else(|| format!("what is `{}`?", line.name))?,
        };
        args.end()?;
        Ok(out)
    }

    fn end_script(&mut self) -> Result<()> {
        if !self.pending.is_empty() {
            return Err("[and] is followed by no command".into());
        }
        Ok(self.stage.prove_replay()?)
    }
}

impl Worker {
    fn take(&mut self, lease: Lease) {
        self.received = self.received.max(lease.fence);
        self.remembered.insert((lease.queue.clone(), lease.id.clone()), lease.fence);
        if !self.held.iter().any(|held| held.fence == lease.fence) {
            self.held.push(lease);
        }
    }

    fn forget(&mut self, fence: u64) {
        self.held.retain(|held| held.fence != fence);
    }
}
