//! The stamps of a batch, made by the leader: cluster time and the calendar.
//!
//! Invariants: ticks never go back, and pass the last applied ones by at most
//! `MAX_TICK_STEP_MS`, so that a leader that lay frozen or alone ages no lease; what it missed is
//! not made up. The wall is the highest time that a quorum of the voters' clocks has reached: one
//! wrong clock moves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::peers::{PeerView, Peers};
use crate::types::{NodeId, Ticks, Wall, limits};

/// The last stamps that were applied; the adapter notes them, the clock counts on from them.
#[derive(Default)]
pub struct AppliedTime {
    ticks: AtomicU64,
    wall: AtomicU64,
}

impl AppliedTime {
    pub fn note(&self, ticks: u64, wall: u64) {
        self.ticks.fetch_max(ticks, Ordering::Relaxed);
        self.wall.fetch_max(wall, Ordering::Relaxed);
    }

    /// The state was replaced by a later one.
    pub fn reset(&self, ticks: Ticks, wall: Wall) {
        self.ticks.store(ticks.0, Ordering::Relaxed);
        self.wall.store(wall.0, Ordering::Relaxed);
    }
}

struct Counting {
    /// Ticks at `since`.
    base: u64,
    since: Instant,
    /// The last that was given out.
    ticks: u64,
    wall: u64,
}

/// See the module.
pub struct Stamper {
    applied: Arc<AppliedTime>,
    peers: Arc<Peers>,
    counting: Mutex<Counting>,
}

impl Stamper {
    pub fn new(applied: Arc<AppliedTime>, peers: Arc<Peers>) -> Self {
        let counting = Counting { base: 0, since: Instant::now(), ticks: 0, wall: 0 };
        Self { applied, peers, counting: Mutex::new(counting) }
    }

    /// This node leads from now on, and its state has all that was committed before.
    pub fn start(&self) {
        let base = self.applied.ticks.load(Ordering::Relaxed);
        let wall = self.applied.wall.load(Ordering::Relaxed);
        *self.counting.lock() = Counting { base, since: Instant::now(), ticks: base, wall };
    }

    /// The stamps of the next batch.
    pub fn stamp(&self) -> (Ticks, Wall) {
        let quorum = quorum_wall(&self.clocks());
        let mut counting = self.counting.lock();
        let ticks = self.tick(&mut counting);
        (Ticks(ticks), self.calendar(&mut counting, quorum))
    }

    /// What `stamp` would give.
    pub fn ticks(&self) -> Ticks {
        Ticks(self.tick(&mut self.counting.lock()))
    }

    /// What `stamp` would give; a later stamp has at least this.
    pub fn wall(&self) -> Wall {
        let quorum = quorum_wall(&self.clocks());
        self.calendar(&mut self.counting.lock(), quorum)
    }

    /// Without a quorum of clocks the calendar stands.
    fn calendar(&self, counting: &mut Counting, quorum: Option<Wall>) -> Wall {
        let applied = self.applied.wall.load(Ordering::Relaxed);
        counting.wall = counting.wall.max(applied).max(quorum.map_or(0, |wall| wall.0));
        Wall(counting.wall)
    }

    fn tick(&self, counting: &mut Counting) -> u64 {
        let now = Instant::now();
        let counted = counting.base + (now - counting.since).as_millis() as u64;
        let most = self.applied.ticks.load(Ordering::Relaxed) + limits::MAX_TICK_STEP_MS;
        if counted > most {
            // Time that nobody saw pass does not count.
            counting.base = most;
            counting.since = now;
        }
        counting.ticks = counting.ticks.max(counted.min(most));
        counting.ticks
    }

    /// Each voter's clock as it stands now, if it was heard lately.
    fn clocks(&self) -> Vec<(NodeId, Option<Wall>)> {
        let own = self.peers.env().clock.wall();
        let now = Instant::now();
        let stale = Duration::from_millis(limits::PEER_CLOCK_STALE_MS);
        let clock = |peer: &PeerView| {
            if peer.node == self.peers.node {
                return Some(own);
            }
            let heard = peer.heard.filter(|heard| now - heard.at < stale)?;
            Some(heard.wall.plus((now - heard.at).as_millis() as u64))
        };
        self.peers.members().iter().filter(|peer| peer.voter).map(|peer| (peer.node, clock(peer))).collect()
    }

    /// The voters whose clocks are far from the quorum's: (node, ms ahead or behind).
    pub fn skewed(&self) -> Vec<(NodeId, i64)> {
        let clocks = self.clocks();
        let Some(quorum) = quorum_wall(&clocks) else { return Vec::new() };
        let skew = |(node, wall): &(NodeId, Option<Wall>)| {
            let off = (*wall)?.0 as i64 - quorum.0 as i64;
            (off.unsigned_abs() > limits::CLOCK_SKEW_MS).then_some((*node, off))
        };
        clocks.iter().filter_map(skew).collect()
    }
}

/// The highest time that a quorum has reached. None: too few are known.
fn quorum_wall(clocks: &[(NodeId, Option<Wall>)]) -> Option<Wall> {
    let quorum = clocks.len() / 2 + 1;
    let mut known: Vec<Wall> = clocks.iter().filter_map(|(_, wall)| *wall).collect();
    known.sort_unstable_by(|a, b| b.cmp(a));
    known.get(quorum - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;
    use crate::raft::peers::home;
    use crate::raft::types::Member;

    fn wall(clocks: &[Option<u64>]) -> Option<u64> {
        let clocks: Vec<_> = clocks.iter().map(|wall| (1, wall.map(Wall))).collect();
        quorum_wall(&clocks).map(|wall| wall.0)
    }

    #[test]
    fn one_wrong_clock_moves_nothing() {
        assert_eq!(wall(&[Some(100), Some(101), Some(99)]), Some(100));
        assert_eq!(wall(&[Some(100), Some(101), Some(999_999)]), Some(101));
        assert_eq!(wall(&[Some(100), Some(101), Some(0)]), Some(100));
        assert_eq!(wall(&[Some(999_999), Some(101), None]), Some(101));
        assert_eq!(wall(&[Some(100), None, None]), None);
        assert_eq!(wall(&[Some(100)]), Some(100));
        assert_eq!(wall(&[]), None);
    }

    /// A calendar that a test sets.
    #[derive(Default)]
    struct Hands(AtomicU64);

    impl crate::env::Clock for Hands {
        fn wall(&self) -> Wall {
            Wall(self.0.load(Ordering::Relaxed))
        }
    }

    /// Node 1 of three voters, with its clock.
    fn three() -> (Arc<Peers>, Arc<Hands>) {
        let hands = Arc::new(Hands::default());
        let env = Env { clock: hands.clone(), ..Env::real() };
        let peers = Peers::new(1, Member::default(), home(1, 1), 1, env);
        let members = [1, 2, 3].map(|node| (node, Member::default()));
        peers.set_members(1, members.iter().map(|(node, member)| (*node, member, true)));
        (Arc::new(peers), hands)
    }

    fn tells(peers: &Peers, node: NodeId, wall_ms: u64) {
        peers.heard(node, 0, Some(crate::proto::internal::Health { wall_ms, ..Default::default() }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_calendar_that_steps_back_is_waited_for() {
        let (peers, hands) = three();
        let stamper = Stamper::new(Arc::default(), Arc::clone(&peers));
        stamper.start();
        let set = |wall| {
            hands.0.store(wall, Ordering::Relaxed);
            [2, 3].into_iter().for_each(|node| tells(&peers, node, wall));
        };
        set(50_000);
        assert_eq!(stamper.stamp().1, Wall(50_000));
        set(20_000);
        assert_eq!((stamper.wall(), stamper.stamp().1), (Wall(50_000), Wall(50_000)), "no stamp is earlier");
        set(50_001);
        assert_eq!(stamper.stamp().1, Wall(50_001), "it goes on where it stood");
        // The next leader's clocks are behind what was applied under this one.
        let applied = Arc::new(AppliedTime::default());
        applied.note(0, 60_000);
        let next = Stamper::new(applied, Arc::clone(&peers));
        next.start();
        assert_eq!((next.wall(), next.stamp().1), (Wall(60_000), Wall(60_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_that_differ_are_named_and_those_not_heard_lately_do_not_count() {
        let (peers, hands) = three();
        let stamper = Stamper::new(Arc::default(), Arc::clone(&peers));
        stamper.start();
        hands.0.store(100_000, Ordering::Relaxed);
        tells(&peers, 2, 100_000 + limits::CLOCK_SKEW_MS);
        tells(&peers, 3, 100_000);
        assert_eq!(stamper.skewed(), []);
        tells(&peers, 2, 100_000 + limits::CLOCK_SKEW_MS + 1);
        assert_eq!(stamper.skewed(), [(2, limits::CLOCK_SKEW_MS as i64 + 1)]);
        assert_eq!(stamper.stamp().1, Wall(100_000));
        // The others fall silent: the calendar stands, whatever this node's own clock says.
        tokio::time::advance(Duration::from_millis(limits::PEER_CLOCK_STALE_MS)).await;
        hands.0.store(500_000, Ordering::Relaxed);
        assert_eq!(stamper.stamp().1, Wall(100_000));
        assert_eq!(stamper.skewed(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_leader_ages_no_lease() {
        let peers = Peers::new(1, Member::default(), home(1, 1), 1, Env::real());
        let applied = Arc::new(AppliedTime::default());
        applied.note(5_000, 0);
        let stamper = Stamper::new(Arc::clone(&applied), Arc::new(peers));
        stamper.start();
        assert_eq!(stamper.ticks().0, 5_000);
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(stamper.ticks().0, 5_400);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(stamper.ticks().0, 6_000, "at most a second past what is applied");
        applied.note(6_000, 0);
        assert_eq!(stamper.ticks().0, 6_000, "and the rest is not made up");
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(stamper.ticks().0, 6_010);
    }
}
