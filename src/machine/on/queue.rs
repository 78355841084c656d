//! Queues: create, update, pause, seal. (`DeleteQueue` is a sweep.)

use std::sync::Arc;

use crate::machine::command::{CreateQueue, PauseQueue, SealQueue, UpdateQueue};
use crate::machine::settings::Settings;
use crate::machine::state::{Queue, QueueNo};
use crate::machine::tables::Fifo;
use crate::machine::{Machine, Reject, Reply, Result};
use crate::types::{QueueName, Revision};

impl Machine {
    pub(in crate::machine) fn on_create_queue(&mut self, op: &CreateQueue) -> Result<Reply> {
        let name = QueueName::parse(&op.name)
            .map_err(|error| Reject::BadField { field: "name".to_owned(), problem: error.to_string() })?;
        let wanted = op.settings.clone().unwrap_or_default();
        let settings = Settings::default().merged(&wanted)?;
        if let Some(number) = self.index.queue_by_name.get(&name).copied() {
            let queue = self.state.queues.at(number);
            if queue.deleting {
                return Err(Reject::SweepUnderWay { queue: name.to_string() });
            }
            if queue.settings != settings {
                return Err(Reject::QueueExists { queue: name.to_string() });
            }
            return Ok(self.reply_queue(number));
        }
        self.check_queue_count(0)?;
        self.check_dead_letter(&name, &settings)?;
        let number = self.make_queue(name, settings);
        Ok(self.reply_queue(number))
    }

    pub(in crate::machine) fn check_queue_count(&self, planned: u64) -> Result<()> {
        let limit = u64::from(self.state.cluster.max_queues);
        if u64::from(self.state.queues.len()) + planned >= limit {
            Err(Reject::TooManyQueues { limit })
        } else {
            Ok(())
        }
    }

    pub(in crate::machine) fn make_queue(&mut self, name: QueueName, settings: Settings) -> QueueNo {
        let revision = self.state.bump();
        let target = settings.dead_letter_queue.clone();
        let number = self.state.queues.insert(Queue {
            name: name.clone(),
            settings,
            paused: false,
            sealed: false,
            deleting: false,
            revision,
            submitted: 0,
            completed: 0,
            cancelled: 0,
            expired: 0,
            lease_ends: [0; 7],
            grants: 0,
            tombstones: Fifo::new(),
        });
        self.index.queue_by_name.insert(name, number);
        *self.index.line_mut(number) = Default::default();
        self.refer(&target, true);
        number
    }

    /// Counts who refers to a dead-letter queue.
    pub(in crate::machine) fn refer(&mut self, target: &str, more: bool) {
        let target = QueueName::parse(target).ok().and_then(|name| self.index.queue_by_name.get(&name).copied());
        if let Some(target) = target {
            let referred = &mut self.index.line_mut(target).referred;
            *referred = if more { *referred + 1 } else { *referred - 1 };
        }
    }

    /// The dead-letter queue must be there, and following them must come to an end.
    fn check_dead_letter(&self, name: &QueueName, settings: &Settings) -> Result<()> {
        let mut next = settings.dead_letter_queue.clone();
        let mut steps = 0;
        while !next.is_empty() {
            let target = QueueName::parse(&next).map_err(|_| Reject::QueueNotFound { queue: next.clone() })?;
            steps += 1;
            if target == *name || steps > self.state.queues.len() {
                return Err(Reject::DeadLetterCycle { queue: next });
            }
            let number = self.queue_no(&next)?;
            next = self.state.queues.at(number).settings.dead_letter_queue.clone();
        }
        Ok(())
    }

    pub(in crate::machine) fn on_update_queue(&mut self, op: &UpdateQueue) -> Result<Reply> {
        let number = self.queue_no(&op.name)?;
        self.check_queue_revision(number, op.if_revision)?;
        let queue = self.state.queues.at(number);
        let settings = queue.settings.merged(&op.settings.clone().unwrap_or_default())?;
        self.check_dead_letter(&queue.name, &settings)?;
        let before = queue.settings.dead_letter_queue.clone();
        let after = settings.dead_letter_queue.clone();
        let revision = self.state.bump();
        let queue = self.state.queues.at_mut(number);
        queue.settings = settings;
        queue.revision = revision;
        self.refer(&before, false);
        self.refer(&after, true);
        self.trim(number);
        self.offer(number);
        Ok(self.reply_queue(number))
    }

    pub(in crate::machine) fn on_pause_queue(&mut self, op: &PauseQueue) -> Result<Reply> {
        let number = self.queue_no(&op.name)?;
        self.check_queue_revision(number, op.if_revision)?;
        if self.state.queues.at(number).paused != op.paused {
            let revision = self.state.bump();
            let queue = self.state.queues.at_mut(number);
            queue.paused = op.paused;
            queue.revision = revision;
            self.offer(number);
        }
        Ok(self.reply_queue(number))
    }

    pub(in crate::machine) fn on_seal_queue(&mut self, op: &SealQueue) -> Result<Reply> {
        let number = self.queue_no(&op.name)?;
        self.check_queue_revision(number, op.if_revision)?;
        if self.state.queues.at(number).sealed != op.sealed {
            let revision = self.state.bump();
            let queue = self.state.queues.at_mut(number);
            queue.sealed = op.sealed;
            queue.revision = revision;
            self.now.emptied.push(number);
        }
        Ok(self.reply_queue(number))
    }

    /// Something may be granted here now.
    fn offer(&mut self, number: QueueNo) {
        if self.index.line(number).ready > 0 {
            self.index.candidates.insert(number);
        }
    }

    fn check_queue_revision(&self, number: QueueNo, expected: Option<u64>) -> Result<()> {
        let actual = self.state.queues.at(number).revision;
        match expected.map(Revision) {
            Some(expected) if expected != actual => Err(Reject::RevisionMismatch { expected, actual }),
            _ => Ok(()),
        }
    }

    fn reply_queue(&self, number: QueueNo) -> Reply {
        Reply::Queue(Arc::new(self.queue_view(number)))
    }
}
