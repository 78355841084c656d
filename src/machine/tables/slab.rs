//! Numbered slots in copy-on-write pages.
//!
//! Cloning copies the spine of pages, not the pages: microseconds for a million slots. A page is
//! copied when it is first written after a clone. Free slots form a list inside the pages, so a
//! slab that was stored and restored hands out the same slots as the original.

// Without weak references: whether a page is shared is one look, not an exchange.
use triomphe::Arc;

/// No slot.
pub const NONE: u32 = u32::MAX;

#[derive(Clone, Debug, PartialEq)]
pub enum Slot<T> {
    /// The next free slot, or [`NONE`].
    Free(u32),
    Used(T),
}

#[derive(Clone, Debug)]
pub struct Slab<T, const PAGE: usize> {
    pages: Vec<Arc<Vec<Slot<T>>>>,
    /// Slots ever made: the next new one's number.
    slots: u32,
    used: u32,
    free: u32,
}

impl<T: Clone, const PAGE: usize> Slab<T, PAGE> {
    pub fn new() -> Self {
        Self { pages: Vec::new(), slots: 0, used: 0, free: NONE }
    }

    /// From all slots in order and the head of the free list, as stored.
    pub fn restore(slots: impl IntoIterator<Item = Slot<T>>, free: u32) -> Self {
        let mut slab = Self::new();
        slots.into_iter().for_each(|slot| slab.append(slot));
        slab.set_free_head(free);
        slab
    }

    /// Restores the next slot; [`Self::set_free_head`] ends it.
    pub fn append(&mut self, slot: Slot<T>) {
        self.used += u32::from(matches!(slot, Slot::Used(_)));
        self.push(slot);
    }

    /// Where the restored free list begins.
    pub fn set_free_head(&mut self, free: u32) {
        self.free = free;
    }

    fn push(&mut self, slot: Slot<T>) -> u32 {
        let number = self.slots;
        if (number as usize).is_multiple_of(PAGE) {
            self.pages.push(Arc::new(Vec::with_capacity(PAGE)));
        }
        let page = self.pages.last_mut().expect("a page was just made or has room");
        Arc::make_mut(page).push(slot);
        self.slots += 1;
        number
    }

    pub fn insert(&mut self, value: T) -> u32 {
        self.used += 1;
        if self.free == NONE {
            return self.push(Slot::Used(value));
        }
        let number = self.free;
        let slot = self.slot_mut(number).expect("the free list names slots that exist");
        let Slot::Free(next) = std::mem::replace(slot, Slot::Used(value)) else {
            unreachable!("the free list names free slots")
        };
        self.free = next;
        number
    }

    /// The slot must be used.
    pub fn remove(&mut self, number: u32) -> T {
        let free = self.free;
        let slot = self.slot_mut(number).expect("the slot exists");
        let Slot::Used(value) = std::mem::replace(slot, Slot::Free(free)) else { unreachable!("the slot is used") };
        self.free = number;
        self.used -= 1;
        value
    }

    fn slot_mut(&mut self, number: u32) -> Option<&mut Slot<T>> {
        let page = self.pages.get_mut(number as usize / PAGE)?;
        Arc::make_mut(page).get_mut(number as usize % PAGE)
    }

    pub fn get(&self, number: u32) -> Option<&T> {
        match self.pages.get(number as usize / PAGE)?.get(number as usize % PAGE)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    /// The slot must be used.
    pub fn at(&self, number: u32) -> &T {
        self.get(number).expect("the slot is used")
    }

    /// The slot must be used.
    pub fn at_mut(&mut self, number: u32) -> &mut T {
        match self.slot_mut(number) {
            Some(Slot::Used(value)) => value,
            _ => unreachable!("the slot is used"),
        }
    }

    /// Used slots.
    pub fn len(&self) -> u32 {
        self.used
    }

    /// Slots ever made.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    pub fn free_head(&self) -> u32 {
        self.free
    }

    /// Used slots by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.iter_slots().enumerate().filter_map(|(number, slot)| match slot {
            Slot::Used(value) => Some((number as u32, value)),
            Slot::Free(_) => None,
        })
    }

    /// Every slot by number.
    pub fn iter_slots(&self) -> impl Iterator<Item = &Slot<T>> {
        self.pages.iter().flat_map(|page| page.iter())
    }

    /// Every free slot is on the list, once.
    pub fn check(&self) -> Result<(), String> {
        let mut seen = 0u32;
        let mut next = self.free;
        while next != NONE {
            match self.pages.get(next as usize / PAGE).and_then(|page| page.get(next as usize % PAGE)) {
                Some(Slot::Free(after)) if seen < self.slots => next = *after,
                _ => return Err(format!("the free list is broken at slot {next}")),
            }
            seen += 1;
        }
        if seen + self.used != self.slots {
            return Err(format!("{} slots, {} used, but {seen} on the free list", self.slots, self.used));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_slab_hands_out_the_same_slots() {
        let mut slab: Slab<u32, 4> = Slab::new();
        for n in 0..10 {
            slab.insert(n);
        }
        for n in [3, 9, 0] {
            slab.remove(n);
        }
        let mut restored: Slab<u32, 4> =
            Slab::restore(slab.iter_slots().cloned().collect::<Vec<_>>(), slab.free_head());
        let frozen = slab.clone();
        for n in 100..105 {
            assert_eq!(slab.insert(n), restored.insert(n));
        }
        slab.check().expect("sound");
        restored.check().expect("sound");
        assert_eq!(frozen.len(), 7);
        assert_eq!(frozen.get(3), None);
    }
}
