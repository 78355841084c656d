//! Point look-ups by a hash that is the same on every node. Cannot be iterated.

use hashbrown::HashTable;

/// From a key's hash to a small value; equality is decided by whoever holds the keys. Half of the hash
/// is kept: there are millions of entries, and a false match only costs a look at the key.
#[derive(Clone, Debug, Default)]
pub struct Ids<V> {
    table: HashTable<(u32, V)>,
}

impl<V: Copy + Eq> Ids<V> {
    pub fn find(&self, hash: u64, is_it: impl Fn(V) -> bool) -> Option<V> {
        let half = half(hash);
        self.table.find(spread(half), |(stored, value)| *stored == half && is_it(*value)).map(|(_, value)| *value)
    }

    pub fn insert(&mut self, hash: u64, value: V) {
        let half = half(hash);
        self.table.insert_unique(spread(half), (half, value), |(stored, _)| spread(*stored));
    }

    pub fn remove(&mut self, hash: u64, value: V) {
        let half = half(hash);
        if let Ok(entry) = self.table.find_entry(spread(half), |(stored, other)| *stored == half && *other == value) {
            entry.remove();
        }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }
}

fn half(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The table wants entropy at both ends of its hash.
fn spread(half: u32) -> u64 {
    u64::from(half).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The hash of a package id in its queue's tables. Part of the machine version.
pub fn hash_id(id: impl AsRef<[u8]>) -> u64 {
    xxhash_rust::xxh3::xxh3_64(id.as_ref())
}

/// The wide hash by which a tombstone knows an id. Part of the machine version.
pub fn wide_hash_id(id: impl AsRef<[u8]>) -> u128 {
    xxhash_rust::xxh3::xxh3_128(id.as_ref())
}
