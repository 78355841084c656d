//! Slots in the order of their sequence, a few bytes each.
//!
//! Sequences mostly come in order at the end and go at the front, but a package that returns takes its
//! old place. So they lie in chunks, each sorted and small enough to be shifted in no time.
//!
//! Invariants: a chunk's key is at most its first sequence and above all of the chunk before; no chunk
//! is empty or holds more than [`CHUNK`].

use std::collections::BTreeMap;
use std::ops::Bound;

/// Entries of a chunk at the most.
const CHUNK: usize = 64;

/// Distance from the chunk's key, and slot.
type Entry = (u32, u32);

#[derive(Clone, Debug, Default)]
pub struct Ordered {
    chunks: BTreeMap<u64, Vec<Entry>>,
}

impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Ordered {
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The lowest sequence and its slot.
    pub fn first(&self) -> Option<(u64, u32)> {
        let (key, chunk) = self.chunks.first_key_value()?;
        chunk.first().map(|(distance, slot)| (key + u64::from(*distance), *slot))
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        self.chunks
            .iter()
            .flat_map(|(key, chunk)| chunk.iter().map(move |(distance, slot)| (key + u64::from(*distance), *slot)))
    }

    /// From this sequence on, whether it is there or not.
    pub fn from(&self, seq: u64) -> impl Iterator<Item = (u64, u32)> {
        let begin = self.chunks.range(..=seq).next_back().map_or(seq, |(key, _)| *key);
        let chunks = self.chunks.range(begin..);
        let entries = chunks
            .flat_map(|(key, chunk)| chunk.iter().map(move |(distance, slot)| (key + u64::from(*distance), *slot)));
        entries.skip_while(move |(at, _)| *at < seq)
    }

    /// The sequence must not be there.
    pub fn insert(&mut self, seq: u64, slot: u32) {
        let Some((key, chunk)) = self.chunks.range_mut(..=seq).next_back() else {
            return self.insert_first(seq, slot);
        };
        let key = *key;
        if let Ok(distance) = u32::try_from(seq - key) {
            let place = chunk.partition_point(|(other, _)| *other < distance);
            if chunk.len() < CHUNK {
                return chunk.insert(place, (distance, slot));
            }
            if place < CHUNK {
                self.split(key);
                return self.insert(seq, slot);
            }
        }
        self.chunks.insert(seq, vec![(0, slot)]);
    }

    /// Before all others.
    fn insert_first(&mut self, seq: u64, slot: u32) {
        let joins = |(key, chunk): (&u64, &Vec<Entry>)| {
            let widest = key - seq + chunk.last().map_or(0, |(distance, _)| u64::from(*distance));
            chunk.len() < CHUNK && u32::try_from(widest).is_ok()
        };
        let mut chunk = vec![(0, slot)];
        if self.chunks.first_key_value().is_some_and(joins)
            && let Some((key, rest)) = self.chunks.pop_first()
        {
            append(&mut chunk, key - seq, rest);
        }
        self.chunks.insert(seq, chunk);
    }

    fn split(&mut self, key: u64) {
        let Some(chunk) = self.chunks.get_mut(&key) else { return };
        let mut rest = chunk.split_off(CHUNK / 2);
        let first = rest[0].0;
        rest.iter_mut().for_each(|(distance, _)| *distance -= first);
        self.chunks.insert(key + u64::from(first), rest);
    }

    pub fn remove(&mut self, seq: u64) {
        let Some((key, chunk)) = self.chunks.range_mut(..=seq).next_back() else { return };
        let key = *key;
        let Ok(place) = chunk.binary_search_by_key(&(seq - key), |(distance, _)| u64::from(*distance)) else { return };
        chunk.remove(place);
        match chunk.len() {
            0 => drop(self.chunks.remove(&key)),
            few if few <= CHUNK / 8 => self.join(key),
            _ => {}
        }
    }

    /// Takes the next chunk in, if both are small.
    fn join(&mut self, key: u64) {
        let next = self.chunks.range((Bound::Excluded(key), Bound::Unbounded)).next();
        let Some((next, len, last)) = next.map(|(next, chunk)| (*next, chunk.len(), chunk[chunk.len() - 1].0)) else {
            return;
        };
        if len > CHUNK / 2 || u32::try_from(next - key + u64::from(last)).is_err() {
            return;
        }
        let rest = self.chunks.remove(&next).unwrap_or_default();
        if let Some(chunk) = self.chunks.get_mut(&key) {
            append(chunk, next - key, rest);
        }
    }
}

/// Whoever calls has seen that the distances fit.
fn append(chunk: &mut Vec<Entry>, further: u64, rest: Vec<Entry>) {
    chunk.extend(rest.into_iter().map(|(distance, slot)| (further as u32 + distance, slot)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator: the same numbers on every run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % sides
        }
    }

    fn check(ordered: &Ordered, model: &BTreeMap<u64, u32>) {
        assert!(ordered.iter().eq(model.iter().map(|(seq, slot)| (*seq, *slot))));
        assert_eq!(ordered.first(), model.first_key_value().map(|(seq, slot)| (*seq, *slot)));
        assert_eq!(ordered.is_empty(), model.is_empty());
        let places = model.keys().step_by(31).flat_map(|seq| [*seq, seq + 1]).chain([0, u64::MAX]);
        for seq in places {
            assert!(ordered.from(seq).take(90).eq(model.range(seq..).take(90).map(|(seq, slot)| (*seq, *slot))));
        }
        let mut last = None;
        for (key, chunk) in &ordered.chunks {
            assert!((1..=CHUNK).contains(&chunk.len()));
            assert!(last.is_none_or(|last| last < *key));
            last = chunk.last().map(|(distance, _)| key + u64::from(*distance));
        }
    }

    #[test]
    fn it_is_a_sorted_map_whatever_comes_and_goes() {
        for (seed, range) in [(1, 300), (2, 5_000), (3, 1 << 40)] {
            let (mut ordered, mut model, mut dice) = (Ordered::default(), BTreeMap::new(), Dice(seed));
            for step in 0..20_000u64 {
                // Grows, then shrinks, and again.
                let grows = (step / 2_000).is_multiple_of(2);
                if dice.roll(10) < if grows { 7 } else { 3 } {
                    let seq = dice.roll(range);
                    if model.insert(seq, step as u32).is_none() {
                        ordered.insert(seq, step as u32);
                    } else {
                        ordered.remove(seq);
                        ordered.insert(seq, step as u32);
                    }
                } else if let Some(seq) = model.keys().nth(dice.roll(model.len() as u64 + 1) as usize).copied() {
                    model.remove(&seq);
                    ordered.remove(seq);
                }
                if step % 97 == 0 {
                    check(&ordered, &model);
                }
            }
            check(&ordered, &model);
        }
    }

    #[test]
    fn in_order_it_is_dense_and_returns_find_their_place() {
        let mut ordered = Ordered::default();
        (0..6_400).for_each(|seq| ordered.insert(seq, seq as u32));
        assert_eq!(ordered.chunks.len(), 100);
        (0..640).for_each(|seq| ordered.remove(seq));
        // The youngest first, as a reclaim gives them back.
        (0..640).rev().for_each(|seq| ordered.insert(seq, seq as u32));
        assert!(ordered.iter().map(|(seq, _)| seq).eq(0..6_400));
        assert!(ordered.chunks.len() <= 101);
    }
}
