//! `Submit`: new packages, repeats, and every reason to refuse one.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::machine::command::{NewPackage, Submit, Submitted};
use crate::machine::life::body_of;
use crate::machine::settings::Settings;
use crate::machine::state::{NONE, QueueNo};
use crate::machine::{Machine, Reject, Reply, Result};
use crate::types::{QueueName, limits};

/// What an atomic submit has taken so far, though not yet applied.
#[derive(Default)]
struct Planned<'a> {
    packages: Vec<(QueueName, &'a NewPackage)>,
    bytes: u64,
}

/// The answer of a check.
enum Verdict {
    Take(QueueNo),
    /// The queue is made on the way.
    TakeInNew(QueueName),
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
        let none = Planned::default();
        if !op.atomic {
            let each = op.packages.iter().enumerate();
            return Ok(Reply::Submitted(each.map(|(place, new)| self.submit_one(place, new, &none)).collect()));
        }
        let mut planned = Planned::default();
        for (place, new) in op.packages.iter().enumerate() {
            match self.check_new(place, new, &planned) {
                Ok((Verdict::Duplicate, _)) => {}
                Ok((_, name)) => {
                    planned.bytes += new.payload.len() as u64;
                    planned.packages.push((name, new));
                }
                Err(cause) => return Err(Reject::AtomicRefused { index: place as u32, cause: Box::new(cause) }),
            }
        }
        let each = op.packages.iter().enumerate();
        Ok(Reply::Submitted(each.map(|(place, new)| self.submit_one(place, new, &none)).collect()))
    }

    fn submit_one(&mut self, place: usize, new: &NewPackage, planned: &Planned<'_>) -> Result<Submitted> {
        let (verdict, name) = self.check_new(place, new, planned)?;
        let queue = match verdict {
            Verdict::Duplicate => return Ok(Submitted { duplicate: true }),
            Verdict::Take(queue) => queue,
            Verdict::TakeInNew(name) => self.make_queue(name, Settings::default()),
        };
        if !self.make_room(new.payload.len() as u64) {
            return Err(Reject::MemoryBudget { limit_bytes: self.state.cluster.memory_budget_bytes });
        }
        let kind = match self.index.line(queue).kinds.get_key_value(new.kind.as_str()) {
            Some((kind, _)) => kind.clone(),
            None => Arc::from(new.kind.as_str()),
        };
        let body = body_of(new, name, kind, self.state.wall);
        self.insert(queue, body, new.content_hash);
        Ok(Submitted { duplicate: false })
    }

    /// Would the package be taken? Changes nothing.
    fn check_new(&self, place: usize, new: &NewPackage, planned: &Planned<'_>) -> Result<(Verdict, QueueName)> {
        let not_found = || Reject::QueueNotFound { queue: new.queue.clone() };
        let name = QueueName::parse(&new.queue).map_err(|_| not_found())?;
        check_fields(place, new)?;
        let Some(number) = self.index.queue_by_name.get(&name).copied() else {
            if !self.state.cluster.auto_create_queues {
                return Err(not_found());
            }
            self.check_queue_count()?;
            self.check_limits(NONE, &Settings::default(), place, new, &name, planned)?;
            let twice = planned.packages.iter().find(|(queue, other)| *queue == name && other.id == new.id);
            return match twice {
                Some((_, other)) => repeated(new, other.content_hash).map(|verdict| (verdict, name)),
                None => Ok((Verdict::TakeInNew(name.clone()), name)),
            };
        };
        let queue = self.state.queues.at(number);
        if queue.deleting {
            return Err(not_found());
        }
        // A repeat is answered as the first time, whatever the queue's state is now.
        if let Some(slot) = self.find(number, &new.id) {
            return repeated(new, self.state.packages.at(slot).content_hash)
                .map(|verdict| (verdict, queue.name.clone()));
        }
        if let Some(grave) = self.find_grave(number, &new.id) {
            return repeated(new, grave.content_hash).map(|verdict| (verdict, queue.name.clone()));
        }
        if let Some((_, other)) = planned.packages.iter().find(|(queue, other)| *queue == name && other.id == new.id) {
            return repeated(new, other.content_hash).map(|verdict| (verdict, queue.name.clone()));
        }
        if queue.sealed {
            return Err(Reject::QueueSealed { queue: name.to_string() });
        }
        self.check_limits(number, &queue.settings, place, new, &name, planned)?;
        Ok((Verdict::Take(number), queue.name.clone()))
    }

    fn check_limits(
        &self,
        number: QueueNo,
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
        if number != NONE {
            let line = self.index.line(number);
            count = line.counted();
            bytes = line.bytes;
            kinds = line.kinds.len();
            known = line.kinds.contains_key(new.kind.as_str());
        }
        for (_, other) in planned.packages.iter().filter(|(queue, _)| queue == name) {
            count += 1;
            bytes += other.payload.len() as u64;
        }
        let full = |limit, unit| Reject::QueueFull { queue: name.to_string(), limit, unit };
        if count >= settings.max_packages {
            return Err(full(settings.max_packages, "packages"));
        }
        if bytes.saturating_add(size) > settings.max_bytes {
            return Err(full(settings.max_bytes, "bytes"));
        }
        if !known && kinds >= limits::MAX_KINDS_A_QUEUE {
            return Err(Reject::TooManyKinds { queue: name.to_string(), limit: limits::MAX_KINDS_A_QUEUE as u64 });
        }
        if self.index.tombstones >= self.state.cluster.dedup_budget {
            return Err(Reject::DedupBudget { limit: self.state.cluster.dedup_budget });
        }
        let budget = self.state.cluster.memory_budget_bytes;
        let wanted = self.index.bytes.saturating_add(planned.bytes).saturating_add(size);
        if wanted > budget {
            let kept: u64 = self.index.keepers.iter().map(|queue| self.index.line(*queue).finished_bytes).sum();
            if wanted.saturating_sub(kept) > budget {
                return Err(Reject::MemoryBudget { limit_bytes: budget });
            }
        }
        Ok(())
    }
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
