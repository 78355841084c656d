//! What the log holds, in memory: where each entry stands on disk, the newest entries themselves,
//! and the vote. Readers and the writer's callers share it under one lock; nothing here does IO.

use std::collections::VecDeque;
use std::ops::Range;

use crate::storage::log::{Ends, Entry, LogId, Vote};

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub segment: u32,
    pub offset: u32,
    pub size: u32,
}

#[derive(Clone, Copy)]
struct Slot {
    term: u64,
    /// None until the entry is on disk; such an entry is in the cache.
    place: Option<Place>,
}

/// See the module.
#[derive(Default)]
pub struct Index {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    purged: Option<LogId>,
    /// What precedes the first slot: usually `purged`.
    base: Option<LogId>,
    /// The index of the first slot; meaningless without slots.
    first: u64,
    slots: VecDeque<Slot>,
    /// The newest entries, without a hole up to the last.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
}

/// Where the entries of a read are: first those on disk, then those in memory.
pub struct Plan {
    pub places: Vec<(LogId, Place)>,
    pub cached: Vec<Entry>,
}

impl Index {
    /// An index that goes on after `base`, whose entries up to `purged` may be gone.
    pub fn starting(purged: Option<LogId>, base: Option<LogId>) -> Self {
        Self { purged, base, ..Self::default() }
    }

    pub fn ends(&self) -> Ends {
        Ends { purged: self.purged, last: self.last() }
    }

    pub fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(LogId { term: slot.term, index: self.end() - 1 }),
            None => self.base,
        }
    }

    /// What is known to be committed, if the log has that very entry; else what was purged, for
    /// only committed entries are. The stored id alone may name an entry that a torn write lost, and
    /// in its place may stand another that was never committed.
    pub fn committed_held(&self) -> Option<LogId> {
        let committed = self.committed.filter(|id| match id.index.checked_sub(self.first) {
            Some(at) if !self.slots.is_empty() => self.slots.get(at as usize).is_some_and(|slot| slot.term == id.term),
            _ => false,
        });
        committed.max(self.purged)
    }

    /// One past the last index.
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Whether no entry between what was purged and the first one is missing.
    pub fn is_whole(&self) -> bool {
        let wanted = self.purged.map_or(0, |purged| purged.index + 1);
        match self.slots.is_empty() {
            true => self.base.is_none_or(|base| base.index < wanted),
            false => self.first <= wanted,
        }
    }

    /// Adds an entry at the end; refuses a hole. A log that never held anything begins anywhere.
    pub fn push(&mut self, entry: Entry, place: Option<Place>) -> Result<(), String> {
        let id = entry.id;
        match self.last() {
            Some(last) if last.index + 1 != id.index => {
                return Err(format!("entry {} follows entry {}", id.index, last.index));
            }
            _ => {}
        }
        if self.slots.is_empty() {
            self.first = id.index;
        }
        self.slots.push_back(Slot { term: id.term, place });
        self.cache_bytes += entry.cost_bytes();
        self.cache.push_back(entry);
        Ok(())
    }

    /// Drops every entry after `last`.
    pub fn truncate(&mut self, last: Option<LogId>) {
        let keep = last.map_or(0, |last| (last.index + 1).saturating_sub(self.first)) as usize;
        while self.slots.len() > keep {
            self.slots.pop_back();
            if let Some(entry) = self.cache.pop_back() {
                self.cache_bytes -= entry.cost_bytes();
            }
        }
        // Only while replaying: what precedes the first segment may have been cut by a record in it.
        if self.slots.is_empty() && self.base > last {
            self.base = last.max(self.purged);
        }
    }

    /// Drops every entry up to `upto`; false if that was done before.
    pub fn purge(&mut self, upto: LogId) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        while !self.slots.is_empty() && self.first <= upto.index {
            if self.cache.len() == self.slots.len() {
                self.uncache();
            }
            self.slots.pop_front();
            self.first += 1;
        }
        self.purged = Some(upto);
        if self.slots.is_empty() && self.base.is_none_or(|base| base.index <= upto.index) {
            self.base = Some(upto);
        }
        true
    }

    /// Notes where an entry now stands. Index and term name one content for ever, so an entry that
    /// was dropped and came back is the same.
    pub fn placed(&mut self, id: LogId, place: Place) {
        let Some(at) = id.index.checked_sub(self.first) else { return };
        if let Some(slot) = self.slots.get_mut(at as usize)
            && slot.term == id.term
        {
            slot.place = Some(place);
        }
    }

    /// Lets the oldest cached entries go until `limit_bytes` are kept. What is not on disk stays.
    pub fn evict(&mut self, limit_bytes: usize) {
        while self.cache_bytes > limit_bytes && self.oldest_cached().is_some_and(|slot| slot.place.is_some()) {
            self.uncache();
        }
    }

    fn oldest_cached(&self) -> Option<&Slot> {
        match self.cache.is_empty() {
            true => None,
            false => self.slots.get(self.slots.len() - self.cache.len()),
        }
    }

    fn uncache(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= entry.cost_bytes();
        }
    }

    #[cfg(test)]
    pub fn cached(&self) -> usize {
        self.cache.len()
    }

    /// The place of the first entry past `index` that is on disk.
    pub fn place_after(&self, index: Option<u64>) -> Option<Place> {
        let from = index.map_or(0, |index| (index + 1).saturating_sub(self.first));
        let from = (from as usize).min(self.slots.len());
        self.slots.get(from).and_then(|slot| slot.place)
    }

    /// Whether there is an entry past `index`.
    pub fn has_after(&self, index: Option<u64>) -> bool {
        !self.slots.is_empty() && index.is_none_or(|index| index + 1 < self.end())
    }

    /// Where the entries of a range are, until `max_bytes` are reached; one at least.
    pub fn plan(&self, range: Range<u64>, max_bytes: u64) -> Plan {
        let mut plan = Plan { places: Vec::new(), cached: Vec::new() };
        let cached_from = self.end() - self.cache.len() as u64;
        let mut bytes = 0;
        for index in range.start.max(self.first)..range.end.min(self.end()) {
            let slot = self.slots[(index - self.first) as usize];
            let cached = index.checked_sub(cached_from).map(|at| &self.cache[at as usize]);
            bytes += match (cached, slot.place) {
                (Some(entry), _) => entry.cost_bytes() as u64,
                (None, Some(place)) => u64::from(place.size),
                (None, None) => unreachable!("an entry is cached until it is placed"),
            };
            if bytes > max_bytes && !(plan.places.is_empty() && plan.cached.is_empty()) {
                break;
            }
            match (cached, slot.place) {
                (Some(entry), _) => plan.cached.push(entry.clone()),
                (None, Some(place)) => plan.places.push((LogId { term: slot.term, index }, place)),
                (None, None) => {}
            }
        }
        plan
    }
}
