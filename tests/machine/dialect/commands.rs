//! Lines that are commands of the machine.

use bytes::Bytes;
use wharf::machine::command::{
    Advance, Cancel, CloseSession, Complete, Completion, CreateQueue, DeleteQueue, DetachSession, DrainSession, Extend,
    Extension, Fail, Failed, Fingerprint, Heard, LeaderStarted, Lease, Op, OpenSession, PauseQueue, Purge,
    RaiseVersion, Reclaim, Redrive, Release, Retry, SealQueue, SetCluster, SetCredit, Speaker, Submit, Tick,
    UpdateQueue,
};

use super::{Pending, Result, Runner};
use crate::build::{self, Args};

impl Runner {
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
    pub(super) fn command(&mut self, name: &str, args: &mut Args) -> Result<Option<Pending>> {
        let mut ids = Vec::new();
        let op = match name {
            "submit" => self.submit(args, &mut ids)?,
            "done" | "fail" | "extend" | "release" => self.settle(name, args, &mut ids)?,
            "hello" => self.hello(args)?,
            "lease" => self.lease_call(args)?,
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
        let speaker = self.speaker(&session, args)?;
        // Said by a single call, which has no stream.
        let speaker = (!args.flag("alone")?).then_some(speaker);
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
            unary: false,
            session: session.clone(),
        };
        let worker = self.workers.entry(session).or_default();
        worker.concurrency = op.concurrency as usize;
        worker.hello = op.clone();
        Ok(Op::OpenSession(op))
    }

    /// A call for work, by a client without a stream.
    fn lease_call(&mut self, args: &mut Args) -> Result<Op> {
        let mut op = match self.hello(args)? {
            Op::OpenSession(op) => op,
            _ => return Err("a Hello is a Hello".into()),
        };
        op.unary = true;
        op.concurrency = 0;
        Ok(Op::OpenSession(op))
    }

    fn package_name(&self, args: &mut Args) -> Result<(String, String)> {
        Ok(self.split(&args.word("package")?))
    }
}
