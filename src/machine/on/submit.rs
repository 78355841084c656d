//! `Submit`: new packages, repeats, and every reason to refuse one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::machine::command::{NewPackage, Submit, Submitted};
use crate::machine::life::options_of;
use crate::machine::settings::Settings;
use crate::machine::state::{OVERHEAD_BYTES, QueueNo};
use crate::machine::view::{PackageBody, Profile};
use crate::machine::{Machine, Reject, Reply, Result};
use crate::types::mutant::{self, Mutant};
use crate::types::{QueueName, limits};

/// What an atomic submit would take so far.
#[derive(Default)]
struct Planned<'a> {
    queues: BTreeMap<QueueName, PlannedQueue<'a>>,
    /// Queues that would be made on the way.
    new_queues: u64,
    bytes: u64,
}

#[derive(Default)]
struct PlannedQueue<'a> {
    /// With their content.
    ids: BTreeMap<&'a str, u64>,
    /// Those that the queue does not know yet.
    new_kinds: BTreeSet<&'a str>,
    bytes: u64,
}

/// The answer of a check.
enum Verdict {
    /// In a queue that may have to be made: `None`.
    Take(QueueName, Option<QueueNo>),
    Duplicate,
}

impl Machine {
    pub(in crate::machine) fn on_submit(&mut self, op: &Submit) -> Result<Reply> {
        if op.packages.len() > limits::MAX_PACKAGES_A_SUBMIT {
            return Err(Reject::BadField {
                field: "packages".to_owned(),
                problem: format!(
                    "at most {} in one submit, there are {}",
                    limits::MAX_PACKAGES_A_SUBMIT,
                    op.packages.len()
                ),
            });
        }
        self.warm_submits(&op.packages);
        let each = op.packages.iter().enumerate();
        if !op.atomic {
            return Ok(Reply::Submitted(each.map(|(place, new)| self.submit_one(place, new)).collect()));
        }
        // All are checked against the state and each other; then nothing can refuse one of them.
        let mut planned = Planned::default();
        let mut verdicts = Vec::with_capacity(op.packages.len());
        for (place, new) in each {
            match self.check_new(place, new, &planned) {
                Ok(verdict) => {
                    if let Verdict::Take(name, _) = &verdict {
                        self.plan(name, new, &mut planned);
                    }
                    verdicts.push(verdict);
                }
                Err(cause) => return Err(Reject::AtomicRefused { index: place as u32, cause: Box::new(cause) }),
            }
        }
        if !self.make_room(planned.bytes) {
            let cause = Box::new(Reject::MemoryBudget { limit_bytes: self.state.cluster.memory_budget_bytes });
            return Err(Reject::AtomicRefused { index: 0, cause });
        }
        let taken = op.packages.iter().zip(verdicts).map(|(new, verdict)| Ok(self.obey(new, verdict)));
        Ok(Reply::Submitted(taken.collect()))
    }

    fn submit_one(&mut self, place: usize, new: &NewPackage) -> Result<Submitted> {
        let verdict = self.check_new(place, new, &Planned::default())?;
        if matches!(verdict, Verdict::Take(..)) && !self.make_room(cost(new)) {
            return Err(Reject::MemoryBudget { limit_bytes: self.state.cluster.memory_budget_bytes });
        }
        Ok(self.obey(new, verdict))
    }

    fn plan<'a>(&self, name: &QueueName, new: &'a NewPackage, planned: &mut Planned<'a>) {
        let number = self.index.queue_by_name.get(name);
        if number.is_none() && !planned.queues.contains_key(name) {
            planned.new_queues += 1;
        }
        let known = number.is_some_and(|number| self.index.line(*number).kinds.contains_key(new.kind.as_str()));
        let queue = planned.queues.entry(name.clone()).or_default();
        queue.ids.insert(&new.id, new.content_hash);
        queue.bytes += cost(new);
        if !known {
            queue.new_kinds.insert(&new.kind);
        }
        planned.bytes += cost(new);
    }

    /// What was checked cannot fail any more.
    fn obey(&mut self, new: &NewPackage, verdict: Verdict) -> Submitted {
        let Verdict::Take(name, known) = verdict else { return Submitted { duplicate: true } };
        // One before it in the same command may have made the queue.
        let queue = match known.or_else(|| self.index.queue_by_name.get(&name).copied()) {
            Some(queue) => queue,
            None => self.make_queue(name.clone(), Settings::default()),
        };
        let now = self.state.wall;
        let options = options_of(new, now);
        let profile = match (self.index.line(queue).kinds.get(new.kind.as_str()), options) {
            (Some(kind), None) => kind.profile.clone(),
            (Some(kind), Some(options)) => kind.profile.with(options),
            (None, options) => {
                let (kind, options) = (Arc::from(new.kind.as_str()), options.unwrap_or_default());
                Arc::new(Profile { queue: name, kind, options })
            }
        };
        let priority = new.priority.map(|priority| priority.min(limits::MAX_PRIORITY) as u8);
        let body = PackageBody::new(profile, new.id.as_str().into(), priority, now, &new.payload);
        self.insert(queue, body, new.content_hash);
        Submitted { duplicate: false }
    }

    /// Would the package be taken? Changes nothing.
    fn check_new(&self, place: usize, new: &NewPackage, planned: &Planned<'_>) -> Result<Verdict> {
        let not_found = || Reject::QueueNotFound { queue: new.queue.clone() };
        let number = self.index.queue(&new.queue);
        let name = match number {
            Some(number) => self.state.queues.at(number).name.clone(),
            None => QueueName::parse(&new.queue).map_err(|_| not_found())?,
        };
        check_fields(place, new)?;
        if let Some(number) = number {
            if self.state.queues.at(number).deleting {
                return Err(not_found());
            }
            // A repeat is answered as the first time, whatever the queue's state is now.
            if mutant::is(Mutant::ForgetDuplicates) {
                return Ok(Verdict::Take(name, Some(number)));
            }
            if let Some(slot) = self.find(number, &new.id) {
                return repeated(new, self.state.packages.at(slot).content_hash);
            }
            if let Some(grave) = self.find_grave(number, &new.id) {
                return repeated(new, grave.content_hash);
            }
        }
        if let Some(content_hash) = planned.queues.get(&name).and_then(|queue| queue.ids.get(new.id.as_str())) {
            return repeated(new, *content_hash);
        }
        match number.map(|number| self.state.queues.at(number)) {
            Some(queue) if queue.sealed && !mutant::is(Mutant::AcceptIntoSealed) => {
                return Err(Reject::QueueSealed { queue: name.to_string() });
            }
            Some(queue) => self.check_limits(number, &queue.settings, place, new, &name, planned)?,
            None if !self.state.cluster.auto_create_queues => return Err(not_found()),
            None => {
                if !planned.queues.contains_key(&name) {
                    self.check_queue_count(planned.new_queues)?;
                }
                self.check_limits(None, &Settings::default(), place, new, &name, planned)?;
            }
        }
        Ok(Verdict::Take(name, number))
    }

    fn check_limits(
        &self,
        number: Option<QueueNo>,
        settings: &Settings,
        place: usize,
        new: &NewPackage,
        name: &QueueName,
        planned: &Planned<'_>,
    ) -> Result<()> {
        let size = new.payload.len() as u64;
        if size > settings.max_payload {
            return Err(Reject::BadField {
                field: format!("packages[{place}].payload"),
                problem: format!("{size} bytes, the queue takes at most {}", settings.max_payload),
            });
        }
        let (mut count, mut bytes, mut kinds, mut known) = (0, 0, 0, false);
        if let Some(number) = number {
            let line = self.index.line(number);
            count = line.counted();
            bytes = line.bytes;
            kinds = line.kinds.len();
            known = line.kinds.contains_key(new.kind.as_str());
        }
        if let Some(planned) = planned.queues.get(name) {
            count += planned.ids.len() as u64;
            bytes += planned.bytes;
            kinds += planned.new_kinds.len();
            known |= planned.new_kinds.contains(new.kind.as_str());
        }
        let full = |limit, unit| Reject::QueueFull { queue: name.to_string(), limit, unit };
        if count >= settings.max_packages {
            return Err(full(settings.max_packages, "packages"));
        }
        if bytes.saturating_add(cost(new)) > settings.max_bytes {
            return Err(full(settings.max_bytes, "bytes"));
        }
        if !known && kinds >= limits::MAX_KINDS_A_QUEUE {
            return Err(Reject::TooManyKinds { queue: name.to_string(), limit: limits::MAX_KINDS_A_QUEUE as u64 });
        }
        if self.index.tombstones >= self.state.cluster.dedup_budget {
            return Err(Reject::DedupBudget { limit: self.state.cluster.dedup_budget });
        }
        let budget = self.state.cluster.memory_budget_bytes;
        let wanted = self.index.bytes.saturating_add(planned.bytes).saturating_add(cost(new));
        if wanted > budget {
            let kept: u64 = self.index.keepers.iter().map(|queue| self.index.line(*queue).finished_bytes).sum();
            if wanted.saturating_sub(kept) > budget {
                return Err(Reject::MemoryBudget { limit_bytes: budget });
            }
        }
        Ok(())
    }
}

/// Bytes that the package will count against budgets.
fn cost(new: &NewPackage) -> u64 {
    (new.payload.len() + new.id.len() + OVERHEAD_BYTES) as u64
}

fn repeated(new: &NewPackage, content_hash: u64) -> Result<Verdict> {
    if content_hash == new.content_hash {
        Ok(Verdict::Duplicate)
    } else {
        Err(Reject::IdConflict { queue: new.queue.clone(), id: new.id.clone() })
    }
}

/// What the machine itself depends on; the API checks the same and more.
fn check_fields(place: usize, new: &NewPackage) -> Result<()> {
    let bad =
        |field: &str, problem: String| Err(Reject::BadField { field: format!("packages[{place}].{field}"), problem });
    if new.id.is_empty() || new.id.len() > limits::MAX_ID_BYTES {
        return bad("id", format!("must have 1 to {} bytes, has {}", limits::MAX_ID_BYTES, new.id.len()));
    }
    for (field, text) in [("kind", &new.kind), ("content_type", &new.content_type)] {
        if text.len() > limits::MAX_WORD_BYTES {
            return bad(field, format!("at most {} bytes, has {}", limits::MAX_WORD_BYTES, text.len()));
        }
    }
    if let Some(priority) = new.priority
        && priority > limits::MAX_PRIORITY
    {
        return bad("priority", format!("must be 0 to {}, is {priority}", limits::MAX_PRIORITY));
    }
    if new.max_attempts == Some(0) {
        return bad("max_attempts", "must be at least 1".to_owned());
    }
    check_labels(&new.labels).or_else(|problem| bad("labels", problem))
}

/// Labels of a package or a worker; the error is the problem.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> std::result::Result<(), String> {
    if labels.len() > limits::MAX_LABELS {
        return Err(format!("at most {}, there are {}", limits::MAX_LABELS, labels.len()));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > limits::MAX_LABEL_KEY_BYTES {
            return Err(format!("a key must have 1 to {} bytes", limits::MAX_LABEL_KEY_BYTES));
        }
        if value.len() > limits::MAX_LABEL_VALUE_BYTES {
            return Err(format!("a value has at most {} bytes", limits::MAX_LABEL_VALUE_BYTES));
        }
    }
    Ok(())
}
