//! Ids that the SDK mints: UUIDs of version 7, from the injected clock and random source.

use crate::env::Env;

/// A new id. Sorts by the time it was made.
pub(super) fn mint(env: &Env) -> String {
    let mut random = [0; 10];
    random[..8].copy_from_slice(&env.random.next().to_le_bytes());
    random[8..].copy_from_slice(&env.random.next().to_le_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(env.clock.wall().0, &random).into_uuid().to_string()
}
