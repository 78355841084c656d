//! What waits, by priority and, within it, by the sequence given at submit.

use super::ordered::Ordered;
use crate::types::limits::MAX_PRIORITY;

const LEVELS: usize = MAX_PRIORITY as usize + 1;

/// A waiting package: its level, sequence and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub level: u8,
    pub seq: u64,
    pub slot: u32,
}

impl Head {
    /// Higher level first, then the earlier one.
    pub fn goes_before(&self, other: &Head) -> bool {
        (std::cmp::Reverse(self.level), self.seq) < (std::cmp::Reverse(other.level), other.seq)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ready {
    levels: [Ordered; LEVELS],
    /// Bit n: level n is not empty.
    mask: u16,
}

impl Ready {
    pub fn insert(&mut self, head: Head) {
        self.levels[head.level as usize].insert(head.seq, head.slot);
        self.mask |= 1 << head.level;
    }

    pub fn remove(&mut self, level: u8, seq: u64) {
        let line = &mut self.levels[level as usize];
        line.remove(seq);
        if line.is_empty() {
            self.mask &= !(1 << level);
        }
    }

    fn head_of(&self, level: u8) -> Option<Head> {
        let (seq, slot) = self.levels[level as usize].first()?;
        Some(Head { level, seq, slot })
    }

    /// The highest level's earliest.
    pub fn first(&self) -> Option<Head> {
        if self.mask == 0 {
            return None;
        }
        self.head_of((15 - self.mask.leading_zeros()) as u8)
    }

    /// The slots, the next one first.
    pub fn in_order(&self) -> impl Iterator<Item = u32> {
        self.levels.iter().rev().flat_map(Ordered::iter).map(|(_, slot)| slot)
    }

    /// The earliest of all levels' heads.
    pub fn oldest(&self) -> Option<Head> {
        (0..LEVELS as u8).filter_map(|level| self.head_of(level)).min_by_key(|head| head.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_then_sequence() {
        let mut ready = Ready::default();
        for (level, seq) in [(4, 1), (9, 7), (9, 5), (0, 0)] {
            ready.insert(Head { level, seq, slot: seq as u32 });
        }
        let order: Vec<_> = std::iter::from_fn(|| {
            let head = ready.first()?;
            ready.remove(head.level, head.seq);
            Some(head.seq)
        })
        .collect();
        assert_eq!(order, [5, 7, 1, 0]);
        assert_eq!(ready.first(), None);
        assert_eq!(ready.oldest(), None);
    }
}
