//! Point look-ups by a hash that is the same on every node. Cannot be iterated.

use hashbrown::HashTable;

/// From a key's hash to a small value; equality is decided by whoever holds the keys.
#[derive(Clone, Debug, Default)]
pub struct Ids<V> {
    table: HashTable<(u64, V)>,
}

impl<V: Copy + Eq> Ids<V> {
    pub fn find(&self, hash: u64, is_it: impl Fn(V) -> bool) -> Option<V> {
        self.table.find(hash, |(stored, value)| *stored == hash && is_it(*value)).map(|(_, value)| *value)
    }

    pub fn insert(&mut self, hash: u64, value: V) {
        self.table.insert_unique(hash, (hash, value), |(stored, _)| *stored);
    }

    pub fn remove(&mut self, hash: u64, value: V) {
        if let Ok(entry) = self.table.find_entry(hash, |(stored, other)| *stored == hash && *other == value) {
            entry.remove();
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }
}

/// The hash of a package id in its queue's tables. Part of the machine version.
pub fn hash_id(id: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(id.as_bytes())
}

/// The wide hash by which a tombstone knows an id. Part of the machine version.
pub fn wide_hash_id(id: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(id.as_bytes())
}
