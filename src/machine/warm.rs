//! Reading ahead: what a command with many packages will touch is looked at first, all at once.
//!
//! With many packages, each step of each is a wait for memory. Looked at one after the other the waits add up; looked at
//! in a loop that depends on nothing, they overlap. Nothing here changes or decides anything.

use std::hint::black_box;

use super::Machine;
use super::command::{Completion, NewPackage};
use super::state::{QueueNo, SessionNo, Slot};
use super::tables::ids::{hash_id, wide_hash_id};
use crate::types::{Fence, limits};

impl Machine {
    /// What completing these will touch, and what has to go for them.
    pub(super) fn warm_completions(&self, holder: Option<SessionNo>, completions: &[Completion]) {
        let Some(queue) = self.same_queue(completions.iter().map(|completion| completion.queue.as_str())) else {
            return;
        };
        let leases = completions.iter().filter_map(|completion| self.lease_of(holder, Fence(completion.fence)));
        let slots: Vec<Slot> = leases.collect();
        self.warm_packages(&slots);
        self.warm_finished(queue, slots.len());
    }

    /// What submitting these will touch.
    pub(super) fn warm_submits(&self, packages: &[NewPackage]) {
        let Some(queue) = self.same_queue(packages.iter().map(|package| package.queue.as_str())) else { return };
        self.warm_ids(queue, packages.iter().map(|package| package.id.as_str()));
    }

    /// Where these ids stand in the tables of the queue, or would. All hashes come first, so that nothing but the look-ups
    /// lies between two waits.
    fn warm_ids(&self, queue: QueueNo, ids: impl Iterator<Item = impl AsRef<[u8]>>) {
        let line = self.index.line(queue);
        let hashes: Vec<(u64, u64)> = ids.map(|id| (hash_id(&id), wide_hash_id(&id) as u64)).collect();
        for (hash, _) in &hashes {
            black_box(line.ids.find(*hash, |_| true));
        }
        for (_, hash) in &hashes {
            black_box(line.graves.find(*hash, |_| true));
        }
    }

    /// What leasing the first `count` packages that are ready will touch, shared among the queues that have some.
    pub(super) fn warm_ready(&self, count: usize) {
        let each = count.min(limits::MAX_GRANTS_A_BATCH) / self.index.candidates.len().max(1);
        if each < 2 {
            return;
        }
        for queue in &self.index.candidates {
            let slots: Vec<Slot> = self.index.line(*queue).all.plain.in_order().take(each).collect();
            self.warm_packages(&slots);
        }
    }

    /// The queue of them all, if there are several of one queue.
    fn same_queue<'a>(&self, mut queues: impl ExactSizeIterator<Item = &'a str>) -> Option<QueueNo> {
        if queues.len() < 2 {
            return None;
        }
        let first = queues.next()?;
        if queues.all(|queue| queue == first) { self.index.queue(first) } else { None }
    }

    fn warm_packages(&self, slots: &[Slot]) {
        let packages = &self.state.packages;
        for slot in slots {
            black_box(packages.get(*slot).map(|package| (package.seq, package.revision)));
        }
        for slot in slots {
            black_box(packages.get(*slot).map(|package| package.body.create()));
        }
    }

    /// The oldest finished packages of a queue that keeps as many as it may.
    fn warm_finished(&self, queue: QueueNo, count: usize) {
        let line = self.index.line(queue);
        let full = line.finished.len() as u64 + count as u64 > self.state.queues.at(queue).settings.keep_finished_count;
        if !full {
            return;
        }
        let slots: Vec<Slot> = line.finished.values().take(count).copied().collect();
        self.warm_packages(&slots);
        let packages = &self.state.packages;
        for slot in &slots {
            let rare = packages.get(*slot).and_then(|package| package.rare.as_ref());
            black_box(rare.map(|rare| rare.finish_seq));
        }
        self.warm_ids(
            queue,
            slots.iter().filter_map(|slot| packages.get(*slot)).map(|package| package.body.id().text()),
        );
    }
}
