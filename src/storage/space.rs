//! How much room is left, and what that allows. A reserve is set aside for completions, ticks and
//! snapshots; submits stop when it is touched, the node steps down when it is gone.

use super::disk::Space;
use crate::types::limits;

/// The disk's standing. The numbers travel in peer acks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Room {
    #[default]
    Ok = 0,
    /// The reserve is in use: no submits.
    Reserve = 1,
    /// The reserve is gone: no leading.
    Full = 2,
}

impl Room {
    /// By the number in a peer ack; what is not known is taken for full.
    pub fn of(number: u32) -> Self {
        match number {
            0 => Room::Ok,
            1 => Room::Reserve,
            _ => Room::Full,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Room::Ok => "OK",
            Room::Reserve => "RESERVE",
            Room::Full => "FULL",
        }
    }

    /// The standing now. `self` is the one before: to get better takes a segment more than to get
    /// worse, so that it does not flap. `log_full`: the log waits for room already.
    pub fn next(self, space: Space, snapshot_bytes: u64, log_full: bool) -> Self {
        let standing = |free: u64| match free {
            _ if log_full => Room::Full,
            free if free < limits::SEGMENT_BYTES => Room::Full,
            free if free < reserve_bytes(snapshot_bytes) => Room::Reserve,
            _ => Room::Ok,
        };
        let now = standing(space.free_bytes);
        match now < self {
            true => standing(space.free_bytes.saturating_sub(limits::SEGMENT_BYTES)).min(self),
            false => now,
        }
    }
}

/// What is set aside: room for two snapshots like the latest, and never less than a floor.
pub fn reserve_bytes(snapshot_bytes: u64) -> u64 {
    limits::DISK_RESERVE_BYTES.max(snapshot_bytes.saturating_mul(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submits_stop_before_the_node_does_and_both_recover() {
        let space = |free_bytes| Space { free_bytes, total_bytes: 1 << 40 };
        let (segment, reserve) = (limits::SEGMENT_BYTES, limits::DISK_RESERVE_BYTES);
        let mut room = Room::Ok;
        let story = [
            (reserve, Room::Ok),
            (reserve - 1, Room::Reserve),
            (reserve, Room::Reserve),
            (segment - 1, Room::Full),
            (segment, Room::Full),
            (2 * segment, Room::Reserve),
            (reserve + segment, Room::Ok),
        ];
        for (free, wanted) in story {
            room = room.next(space(free), 0, false);
            assert_eq!(room, wanted, "{free} bytes free");
        }
        assert_eq!(room.next(space(1 << 40), 0, true), Room::Full, "the log knows better");
        assert_eq!(room.next(space(3 << 30), 2 << 30, false), Room::Reserve, "two snapshots are set aside");
    }
}
