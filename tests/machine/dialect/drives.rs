//! Lines that move the clock, and loops of what workers and leaders do.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use wharf::machine::command::{Advance, Complete, Completion, DetachSession, Lease, Op, OpenSession, Speaker, Tick};
use wharf::types::limits;

use super::{Pending, Result, Runner};
use crate::build::{self, Args};
use crate::render;

/// `Advance` is proposed at most so often in a row: more means that a sweep does not end.
const MAX_ADVANCES: usize = 10_000;

impl Runner {
    /// Steps of the clock and loops; `None`: no such line.
    pub(super) fn drive(&mut self, name: &str, args: &mut Args) -> Result<Option<String>> {
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
