//! A line in copy-on-write pages: pushed at the back, popped at the front, read by position.

use std::collections::VecDeque;

// Without weak references: whether a page is shared is one look, not an exchange.
use triomphe::Arc;

const PAGE: usize = 1024;

/// Positions grow for ever and name an element for as long as it is there.
#[derive(Clone, Debug)]
pub struct Fifo<T> {
    pages: VecDeque<Arc<Vec<T>>>,
    /// Position of the first page's first element; a multiple of the page size.
    base: u64,
    /// Position of the first element.
    head: u64,
    /// Position after the last element.
    tail: u64,
}

impl<T: Clone> Fifo<T> {
    pub fn new() -> Self {
        Self { pages: VecDeque::new(), base: 0, head: 0, tail: 0 }
    }

    pub fn len(&self) -> u64 {
        self.tail - self.head
    }

    pub fn push(&mut self, value: T) -> u64 {
        if (self.tail - self.base) as usize == self.pages.len() * PAGE {
            self.pages.push_back(Arc::new(Vec::with_capacity(PAGE.min(16 << self.pages.len().min(6)))));
        }
        let page = self.pages.back_mut().expect("a page was just made or has room");
        Arc::make_mut(page).push(value);
        self.tail += 1;
        self.tail - 1
    }

    pub fn front(&self) -> Option<&T> {
        self.get(self.head)
    }

    /// The first element and its position.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        let position = self.head;
        let value = self.get(position)?.clone();
        self.head += 1;
        if self.head - self.base == PAGE as u64 {
            self.pages.pop_front();
            self.base += PAGE as u64;
        }
        Some((position, value))
    }

    /// The position with this low half: there are never more than 2^32 elements.
    pub fn position(&self, low: u32) -> u64 {
        self.head + u64::from(low.wrapping_sub(self.head as u32))
    }

    pub fn get(&self, position: u64) -> Option<&T> {
        if position < self.head || position >= self.tail {
            return None;
        }
        let offset = (position - self.base) as usize;
        self.pages.get(offset / PAGE)?.get(offset % PAGE)
    }

    /// In order, with positions.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (self.head..self.tail).filter_map(|position| Some((position, self.get(position)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_name_elements_over_pages() {
        let mut line = Fifo::new();
        for n in 0..5000u64 {
            assert_eq!(line.push(n), n);
            if n % 3 == 0 {
                line.pop();
            }
        }
        let head = line.front().copied().expect("not empty");
        assert_eq!(line.get(head), Some(&head));
        assert_eq!(line.get(head - 1), None);
        assert!([head, 4999].iter().all(|position| line.position(*position as u32) == *position));
        assert_eq!(line.iter().count() as u64, line.len());
        while line.pop().is_some() {}
        assert_eq!(line.len(), 0);
    }
}
