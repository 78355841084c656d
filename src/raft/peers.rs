//! What this node knows of itself and the others: identity, membership, health, who speaks to it.
//!
//! Invariants: the table never lags the log's membership by more than one metrics update; health
//! is only what a peer said itself, with the moment it was heard. Locks are held for a look, never
//! across an await.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use super::types::Member;
use crate::env::Env;
use crate::proto::internal as pb;
use crate::storage::home::Home;
use crate::storage::identity::ClusterId;
use crate::storage::space::Room;
use crate::types::mutant::{self, Mutant};
use crate::types::{NodeId, Wall, limits};

/// What a peer last said of itself.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    pub wall: Wall,
    pub room: Room,
    pub machine_version: u32,
    pub at: Instant,
}

#[derive(Default)]
struct Peer {
    member: Option<Member>,
    voter: bool,
    heard: Option<Heard>,
    answered: Option<Instant>,
    /// As it last told how it wants to be known.
    told: Option<Member>,
    /// Append streams that come from it.
    inbound: u32,
}

/// A peer and what is known of it.
#[derive(Clone, Debug)]
pub struct PeerView {
    pub node: NodeId,
    pub member: Member,
    pub voter: bool,
    pub heard: Option<Heard>,
    pub reachable: bool,
    /// As it told how it wants to be known; its addresses may have changed.
    pub told: Option<Member>,
}

/// See the module. Shared by the network, the peer service and the tasks.
pub struct Peers {
    pub node: NodeId,
    pub own: Member,
    env: Env,
    /// Its identity takes the cluster's id.
    home: Arc<Home>,
    machine_version: u32,
    room: AtomicU32,
    cluster_id: Mutex<Bytes>,
    table: Mutex<BTreeMap<NodeId, Peer>>,
    /// Log index of the membership that the table follows.
    members_at: AtomicU64,
    /// Why this node takes no part yet, and what to do about it.
    waiting: Mutex<Option<String>>,
    apart: AtomicBool,
    /// A cluster means another node of this number: with which incarnation.
    mistaken: AtomicU64,
    /// An append stream broke off: failover looks why.
    lost: Mutex<Option<NodeId>>,
    pub(super) lost_notify: Notify,
}

impl Peers {
    pub fn new(node: NodeId, own: Member, home: Arc<Home>, machine_version: u32, env: Env) -> Self {
        let cluster_id = home.identity().cluster.map_or_else(Bytes::new, |id| Bytes::copy_from_slice(&id.0));
        Self {
            node,
            own,
            env,
            home,
            machine_version,
            room: AtomicU32::new(0),
            cluster_id: Mutex::new(cluster_id),
            table: Mutex::default(),
            members_at: AtomicU64::new(0),
            waiting: Mutex::default(),
            apart: AtomicBool::new(false),
            mistaken: AtomicU64::new(0),
            lost: Mutex::new(None),
            lost_notify: Notify::new(),
        }
    }

    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Empty until the node belongs to a cluster.
    pub fn cluster_id(&self) -> Bytes {
        self.cluster_id.lock().clone()
    }

    /// Belongs to this cluster from now on; durable when it returns.
    pub fn adopt_cluster(&self, cluster_id: &Bytes) -> io::Result<()> {
        let mut own = self.cluster_id.lock();
        if *own == *cluster_id {
            return Ok(());
        }
        if !own.is_empty() {
            return Err(io::Error::other("the node belongs to another cluster"));
        }
        let id = ClusterId::try_from(&cluster_id[..]).map_err(io::Error::other)?;
        self.home.join(id).map_err(io::Error::other)?;
        *own = cluster_id.clone();
        Ok(())
    }

    /// The highest machine version that this program applies.
    pub fn machine_version(&self) -> u32 {
        self.machine_version
    }

    /// Why this node takes no part yet; None once it does.
    pub fn waiting(&self) -> Option<String> {
        self.waiting.lock().clone()
    }

    /// This node waits for an operator, not for others that start: no call can be served soon.
    pub fn stands_apart(&self) -> bool {
        self.apart.load(Ordering::Relaxed)
    }

    pub fn set_apart(&self, apart: bool) {
        self.apart.store(apart, Ordering::Relaxed);
    }

    /// True if that is news.
    pub fn set_waiting(&self, why: Option<String>) -> bool {
        let mut waiting = self.waiting.lock();
        let news = *waiting != why;
        *waiting = why;
        news
    }

    /// A node of a cluster took this one for its predecessor of that incarnation.
    pub fn mistaken_for(&self, incarnation: u64) {
        self.mistaken.store(incarnation, Ordering::Relaxed);
    }

    /// What a node is told whose cluster knows its number with another data directory.
    pub fn refused(&self) -> Option<String> {
        let known = self.mistaken.load(Ordering::Relaxed);
        (known != 0).then(|| rejoin(self.node, self.own.incarnation, known, &self.own.peer_addr))
    }

    pub fn set_room(&self, room: Room) {
        self.room.store(room as u32, Ordering::Relaxed);
    }

    pub fn room(&self) -> Room {
        Room::of(self.room.load(Ordering::Relaxed))
    }

    /// What this node tells of itself.
    pub fn health(&self) -> pb::Health {
        pb::Health {
            wall_ms: self.env.clock.wall().0,
            disk: self.room.load(Ordering::Relaxed),
            machine_version: self.machine_version,
        }
    }

    /// A peer told of itself. An answer that another node of its number still owed is ignored.
    pub fn heard(&self, node: NodeId, incarnation: u64, health: Option<pb::Health>) {
        let now = Instant::now();
        let mut table = self.table.lock();
        let Some(peer) = table.get_mut(&node) else { return };
        if peer.member.as_ref().is_none_or(|member| member.incarnation != incarnation) {
            return;
        }
        peer.answered = Some(now);
        if let Some(health) = health {
            peer.heard = Some(Heard {
                wall: Wall(health.wall_ms),
                room: Room::of(health.disk),
                machine_version: health.machine_version,
                at: now,
            });
        }
    }

    /// A member told how it wants to be known. Ignored if it is another node of that number.
    pub fn told(&self, node: NodeId, member: Member) {
        let mut table = self.table.lock();
        if let Some(peer) = table.get_mut(&node)
            && peer.member.as_ref().is_some_and(|known| known.incarnation == member.incarnation)
        {
            peer.told = Some(member);
        }
    }

    /// The membership in force, of this log index. What was heard of a node does not count for another one
    /// that has its number now.
    pub fn set_members<'a>(&self, at: u64, members: impl Iterator<Item = (NodeId, &'a Member, bool)>) {
        let mut table = self.table.lock();
        self.members_at.store(at, Ordering::Relaxed);
        let mut before = BTreeMap::new();
        for (node, peer) in table.iter_mut() {
            before.insert(*node, peer.member.take());
            peer.voter = false;
        }
        for (node, member, voter) in members {
            let peer = table.entry(node).or_default();
            let known = before.get(&node).and_then(Option::as_ref);
            if known.is_none_or(|known| known.incarnation != member.incarnation) {
                (peer.heard, peer.answered, peer.told) = (None, None, None);
            }
            peer.member = Some(member.clone());
            peer.voter = voter;
        }
        table.retain(|_, peer| peer.member.is_some() || peer.inbound > 0);
    }

    /// How the membership knows a node.
    pub fn member(&self, node: NodeId) -> Option<Member> {
        self.table.lock().get(&node).and_then(|peer| peer.member.clone())
    }

    /// Every member, this node included, by number.
    pub fn members(&self) -> Vec<PeerView> {
        let now = Instant::now();
        let reachable = |node: NodeId, peer: &Peer| {
            node == self.node
                || peer.inbound > 0
                || peer.answered.is_some_and(|at| now - at < Duration::from_millis(limits::PEER_REACHABLE_MS))
        };
        let table = self.table.lock();
        let view = |(node, peer): (&NodeId, &Peer)| {
            let member = peer.member.clone()?;
            let reachable = reachable(*node, peer);
            Some(PeerView {
                node: *node,
                member,
                voter: peer.voter,
                heard: peer.heard,
                reachable,
                told: peer.told.clone(),
            })
        };
        table.iter().filter_map(view).collect()
    }

    /// Whether an append stream from `node` is open.
    pub fn hears(&self, node: NodeId) -> bool {
        self.table.lock().get(&node).is_some_and(|peer| peer.inbound > 0)
    }

    /// Notes an append stream from `node` for as long as the guard lives.
    pub fn inbound(self: &Arc<Self>, node: NodeId) -> Inbound {
        self.table.lock().entry(node).or_default().inbound += 1;
        Inbound { peers: Arc::clone(self), node, broken: false }
    }

    pub(super) fn take_lost(&self) -> Option<NodeId> {
        self.lost.lock().take()
    }

    /// This node's side of a request to `to`.
    pub fn envelope(&self, to: NodeId, incarnation: u64) -> pb::Envelope {
        pb::Envelope {
            cluster_id: self.cluster_id(),
            from_node: self.node,
            from_incarnation: self.own.incarnation,
            to_node: to,
            to_incarnation: incarnation,
            known_at: self.known_at(),
        }
    }

    /// Log index of the membership that knows this node by what it is; 0: none does.
    fn known_at(&self) -> u64 {
        let table = self.table.lock();
        let knows = |member: &Member| member.incarnation == self.own.incarnation;
        let known = table.get(&self.node).and_then(|own| own.member.as_ref()).is_some_and(knows);
        if known { self.members_at.load(Ordering::Relaxed) } else { 0 }
    }

    /// Checks who is meant and who speaks; answers with the sender. A node that belongs to no
    /// cluster yet adopts that of a sender who knows its incarnation.
    ///
    /// A sender that a later membership knows as it is was replaced while this node was behind: it may lead, and
    /// be the one from whom that membership comes. A wiped node has no such membership.
    pub fn check(&self, envelope: Option<pb::Envelope>) -> Result<NodeId, Status> {
        let envelope = envelope.ok_or_else(|| Status::invalid_argument("no envelope"))?;
        let me = self.node;
        if envelope.to_node != me {
            let meant = envelope.to_node;
            return Err(Status::failed_precondition(format!(
                "this is node {me}, not node {meant}: check the peer addresses in the configuration"
            )));
        }
        if envelope.to_incarnation != self.own.incarnation {
            let (own, known) = (self.own.incarnation, envelope.to_incarnation);
            return Err(Status::failed_precondition(rejoin(me, own, known, &self.own.peer_addr)));
        }
        let known = self.member(envelope.from_node);
        if let Some(known) = known
            && known.incarnation != envelope.from_incarnation
            && envelope.known_at <= self.members_at.load(Ordering::Relaxed)
            && !mutant::is(Mutant::AcceptWipedPeer)
        {
            return Err(Status::failed_precondition(rejoin(
                envelope.from_node,
                envelope.from_incarnation,
                known.incarnation,
                &known.peer_addr,
            )));
        }
        let own = self.cluster_id();
        if own.is_empty() && !envelope.cluster_id.is_empty() {
            self.adopt_cluster(&envelope.cluster_id)
                .map_err(|error| Status::unavailable(format!("cannot keep the cluster's id: {error}")))?;
            tracing::info!(from = envelope.from_node, "joined the cluster");
        } else if own != envelope.cluster_id {
            return Err(Status::failed_precondition(format!(
                "node {me} belongs to another cluster than node {}: check the peer addresses",
                envelope.from_node
            )));
        }
        Ok(envelope.from_node)
    }
}

/// What a wiped node is told.
pub(super) fn rejoin(node: NodeId, comes: u64, known: u64, addr: &str) -> String {
    format!(
        "node {node} comes with a new data directory (incarnation {comes:016x}), the cluster knows it as \
         {known:016x}: what it had confirmed is gone, so it may not vote under its old number. \
         Let it take its own place anew: wharf cluster replace {node} --peer {addr}"
    )
}

/// An open append stream from a peer.
pub struct Inbound {
    peers: Arc<Peers>,
    node: NodeId,
    broken: bool,
}

impl Inbound {
    /// The stream broke off instead of ending.
    pub fn broke(&mut self) {
        self.broken = true;
    }
}

impl Drop for Inbound {
    fn drop(&mut self) {
        if let Some(peer) = self.peers.table.lock().get_mut(&self.node) {
            peer.inbound = peer.inbound.saturating_sub(1);
        }
        if self.broken {
            *self.peers.lost.lock() = Some(self.node);
            self.peers.lost_notify.notify_one();
        }
    }
}

/// A data directory in memory.
#[cfg(test)]
pub(super) fn home(node: NodeId, incarnation: u64) -> Arc<Home> {
    use crate::storage::disk::SimDisk;
    use crate::storage::wal::{Flusher, Options};
    let options = Options { flusher: Flusher::Inline, ..Options::default() };
    let dir = std::path::Path::new("/data");
    Arc::new(Home::open(Arc::new(SimDisk::new()), dir, node, incarnation, options).expect("a new disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Arc<Peers> {
        let own = Member { incarnation: 11, ..Member::default() };
        Arc::new(Peers::new(1, own, home(1, 11), 1, Env::real()))
    }

    fn from_two() -> pb::Envelope {
        pb::Envelope {
            cluster_id: Bytes::from_static(&[3; 16]),
            from_node: 2,
            from_incarnation: 22,
            to_node: 1,
            to_incarnation: 11,
            known_at: 0,
        }
    }

    #[test]
    fn a_request_for_somebody_else_is_refused() {
        let peers = peers();
        assert_eq!(peers.check(Some(from_two())).unwrap(), 2);
        assert_eq!(peers.cluster_id(), [3; 16].as_slice());
        let other_node = pb::Envelope { to_node: 3, ..from_two() };
        let other_cluster = pb::Envelope { cluster_id: Bytes::from_static(&[4; 16]), ..from_two() };
        let before_wipe = pb::Envelope { to_incarnation: 10, ..from_two() };
        for bad in [other_node, other_cluster, before_wipe] {
            assert_eq!(peers.check(Some(bad)).unwrap_err().code(), tonic::Code::FailedPrecondition);
        }
        let members = [(2, Member { incarnation: 22, ..Member::default() })];
        peers.set_members(7, members.iter().map(|(node, member)| (*node, member, true)));
        for known_at in [0, 3, 7] {
            let wiped = pb::Envelope { from_incarnation: 23, known_at, ..from_two() };
            assert!(peers.check(Some(wiped)).unwrap_err().message().contains("wharf cluster replace 2"));
        }
        let replaced = pb::Envelope { from_incarnation: 23, known_at: 8, ..from_two() };
        assert_eq!(peers.check(Some(replaced)).unwrap(), 2, "this node is behind");
        assert_eq!(peers.check(Some(from_two())).unwrap(), 2);
    }

    #[test]
    fn a_node_tells_which_membership_knows_it_as_it_is() {
        let peers = peers();
        let own = |incarnation| [(1, Member { incarnation, ..Member::default() })];
        let tells = |members: &[(NodeId, Member)]| {
            peers.set_members(9, members.iter().map(|(node, member)| (*node, member, true)));
            peers.envelope(2, 22).known_at
        };
        assert_eq!(tells(&own(11)), 9);
        assert_eq!(tells(&own(10)), 0, "it was wiped, and replays an old membership");
        assert_eq!(tells(&[]), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_answered_lately_is_reachable() {
        let peers = peers();
        peers.set_members(1, [(1, &Member::default(), true), (2, &Member::default(), true)].into_iter());
        let reachable = || peers.members().iter().map(|peer| peer.reachable).collect::<Vec<_>>();
        assert_eq!(reachable(), [true, false], "itself, and nobody else yet");
        peers.heard(2, 0, None);
        tokio::time::advance(Duration::from_millis(limits::PEER_REACHABLE_MS - 1)).await;
        assert_eq!(reachable(), [true, true]);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(reachable(), [true, false]);
    }

    #[test]
    fn a_broken_stream_is_told_a_finished_one_is_not() {
        let peers = peers();
        let stream = peers.inbound(2);
        assert!(peers.hears(2));
        drop(stream);
        assert!(!peers.hears(2));
        assert_eq!(peers.take_lost(), None);
        let mut stream = peers.inbound(2);
        stream.broke();
        drop(stream);
        assert_eq!(peers.take_lost(), Some(2));
    }
}
