//! The dialect of the golden scripts. A line is a command of the machine, a step of the clock, or
//! a look at the state; `tests/machine/scripts/README.md` lists them.
//!
//! Scripts name packages, never fences: each worker remembers what was delivered to it and under
//! which fence, as a real one does, also when the lease is long gone.

mod commands;
mod drives;
mod looks;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use wharf::machine::command::{Lease, Op, OpenSession, Reply};
use wharf::machine::effect::VerdictKind;
use wharf::machine::{Applied, Effect};

use crate::build::Args;
use crate::render;
use crate::stage::Stage;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

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
    /// Where the last list goes on, and where it ends.
    list: Option<(u64, u64)>,
}

impl Runner {
    pub fn new() -> Self {
        Self {
            stage: Stage::new(),
            workers: BTreeMap::new(),
            pending: Vec::new(),
            queue: String::new(),
            attach: 0,
            list: None,
        }
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
                            queue: delivery.body.queue().to_string(),
                            id: delivery.body.id().to_string(),
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

    fn split(&self, word: &str) -> (String, String) {
        match word.rsplit_once('/') {
            Some((queue, id)) => (queue.to_owned(), id.to_owned()),
            None => (self.queue.clone(), word.to_owned()),
        }
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
