//! What a node does beside the hot path: snapshots by log bytes, purging behind them, the disk's
//! room, a word with each silent peer, alarms.
//!
//! Invariants: the log is purged only up to a durable snapshot, and keeps `LOG_KEEP_BYTES` behind
//! it, so that a follower that was away briefly needs no snapshot. A node stops because it was removed
//! only if its own membership has it, and a committed one that is later has not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::Fatal;
use super::bootstrap::Refused;
use super::clock::Stamper;
use super::convert;
use super::data_dir::DataDir;
use super::handle::{Alarm, Standing};
use super::log_store::LogStore;
use super::network::{Channels, Purpose};
use super::peer_server::Raft;
use super::peers::{Heard, PeerView, Peers};
use super::proposer::Proposer;
use crate::proto::internal as pb;
use crate::storage::space::Room;
use crate::types::{NodeId, Wall, limits};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// See the module.
pub struct Maintenance {
    pub raft: Raft,
    pub log: LogStore,
    pub peers: Arc<Peers>,
    pub channels: Arc<Channels>,
    pub proposer: Arc<Proposer>,
    pub stamper: Arc<Stamper>,
    pub disk: Arc<DataDir>,
    pub standing: watch::Receiver<Standing>,
    pub alarms: Arc<Mutex<BTreeMap<&'static str, Alarm>>>,
    pub snapshot_every_log_bytes: u64,
    pub fatal: mpsc::Sender<Fatal>,
}

/// What a probe of a peer brought to light.
enum Word {
    /// A later membership than this node's does not have it.
    Removed,
    /// Another node answers under that number: it lost its data directory.
    Wiped(NodeId, String),
}

impl Maintenance {
    /// The task: until Raft stops.
    pub async fn run(self) {
        let metrics = self.raft.metrics();
        let mut asked = None;
        let mut purged = None;
        loop {
            sleep(LOOK_EVERY).await;
            let view = metrics.borrow_watched().clone();
            if view.running_state.is_err() {
                return;
            }
            let snapshot = view.snapshot.map(|id| id.index);
            let applied = view.last_applied.map(|id| id.index);
            // Once for each snapshot: a build takes as long as it takes.
            let due = self.log.bytes_after(snapshot) >= self.snapshot_every_log_bytes && applied > snapshot;
            if due && asked != Some(snapshot) {
                asked = Some(snapshot);
                if self.raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
            if let Some(snapshot) = snapshot
                && purged != Some(snapshot)
            {
                purged = Some(snapshot);
                let first = view.purged.map_or(0, |id| id.index);
                if let Some(upto) = purge_upto(&self.log, first, snapshot)
                    && self.raft.trigger().purge_log(upto).await.is_err()
                {
                    return;
                }
            }
            self.look_at_peers().await;
            self.look_at_disk().await;
            self.look_at_clocks();
        }
    }

    /// Followers speak to each other too: whoever leads next knows the others' clocks at once, and
    /// the connections that an election needs are warm.
    async fn look_at_peers(&self) {
        let members = self.peers.members();
        self.channels.keep(|node| members.iter().any(|peer| peer.node == node));
        let silent = members.into_iter().filter(|peer| {
            let lately = |heard: Heard| heard.at.elapsed() < LOOK_EVERY;
            peer.node != self.peers.node && !peer.heard.is_some_and(lately)
        });
        let probes: FuturesUnordered<_> = silent.map(|peer| self.probe(peer)).collect();
        let mut wiped = Vec::new();
        for word in probes.collect::<Vec<_>>().await.into_iter().flatten() {
            match word {
                Word::Wiped(node, addr) => wiped.push((node, addr)),
                Word::Removed => {
                    let node = self.peers.node;
                    let why = format!(
                        "node {node} was removed from the cluster and takes no part any more. To let it join again, \
                         remove its data directory, start it with `--join` and run: wharf cluster add-node {node} \
                         --peer {}",
                        self.peers.own.peer_addr
                    );
                    // A reason that is already there counts more.
                    let _ = self.fatal.try_send(Refused::Removed(why).into());
                }
            }
        }
        wiped.sort_unstable();
        let commands: Vec<_> =
            wiped.iter().map(|(node, addr)| format!("wharf cluster replace {node} --peer {addr}")).collect();
        let all: Vec<_> = wiped.iter().map(|(node, _)| *node).collect();
        let message = format!(
            "{} came back with a new data directory, to take no part until: {}",
            nodes(&all),
            commands.join("; ")
        );
        self.alarm("NODE_WIPED", (!wiped.is_empty()).then_some(message));
    }

    async fn probe(&self, peer: PeerView) -> Option<Word> {
        let envelope = Some(self.peers.envelope(peer.node, peer.member.incarnation));
        let member = Some(convert::member_to_proto(self.peers.node, &self.peers.own));
        let request = pb::ProbeRequest { envelope, member, ..pb::ProbeRequest::default() };
        let mut client = self.channels.client(peer.node, &peer.member.peer_addr, Purpose::Raft);
        let Ok(Ok(answer)) = timeout(LOOK_EVERY, client.probe(request)).await else { return None };
        let answer = answer.into_inner();
        let ours = self.peers.cluster_id();
        if answer.incarnation != peer.member.incarnation {
            let blank = answer.cluster_id.is_empty() || answer.cluster_id == ours;
            return (blank && !answer.initialized).then_some(Word::Wiped(peer.node, peer.member.peer_addr));
        }
        self.peers.heard(peer.node, answer.incarnation, answer.health);
        if let Some(member) = answer.member {
            self.peers.told(peer.node, convert::member(member));
        }
        let own = self.raft.server_metrics().borrow_watched().membership_config.clone();
        // A learner may have begun with a snapshot from before it was added.
        let was_member =
            own.membership().get_node(&self.peers.node).is_some_and(|me| me.incarnation == self.peers.own.incarnation);
        let later = answer.membership.as_ref().map(convert::log_id) > *own.log_id();
        let known = answer.known_incarnation == self.peers.own.incarnation;
        (was_member && later && !known && answer.cluster_id == ours).then_some(Word::Removed)
    }

    /// Submits need room on a quorum; a leader without any hands over. Followers look too, so that
    /// whoever leads next knows.
    async fn look_at_disk(&self) {
        let room = self.disk.look();
        self.peers.set_room(room);
        let voters: Vec<_> = self.peers.members().into_iter().filter(|peer| peer.voter).collect();
        let of = |peer: &PeerView| match peer.node == self.peers.node {
            true => room,
            false => peer.heard.map_or(Room::Ok, |heard| heard.room),
        };
        let roomy = voters.iter().filter(|peer| of(peer) == Room::Ok).count();
        let full = !voters.is_empty() && roomy <= voters.len() / 2;
        self.proposer.set_disk_full(full);
        let tight = voters.iter().filter(|peer| of(peer) != Room::Ok).map(|peer| peer.node).collect::<Vec<_>>();
        let message =
            format!("the disk of {} is nearly full{}", nodes(&tight), if full { ": submits are refused" } else { "" });
        self.alarm("DISK_FULL", (!tight.is_empty()).then_some(message));
        if room == Room::Full && self.standing.borrow().leading.is_some() {
            let better = voters.iter().find(|peer| peer.reachable && of(peer) != Room::Full);
            if let Some(better) = better {
                tracing::warn!(to = better.node, "the disk is full: handing leadership over");
                let _ = self.raft.trigger().transfer_leader(better.node).await;
            }
        }
    }

    fn look_at_clocks(&self) {
        let skewed = if self.standing.borrow().leading.is_some() { self.stamper.skewed() } else { Vec::new() };
        let off: Vec<_> = skewed.iter().map(|(node, ms)| format!("node {node} by {ms} ms")).collect();
        let message = format!("clocks differ from the quorum's: {}", off.join(", "));
        self.alarm("CLOCK_SKEW", (!off.is_empty()).then_some(message));
    }

    /// Raises, keeps or clears an alarm.
    fn alarm(&self, name: &'static str, message: Option<String>) {
        let now: Wall = self.peers.env().clock.wall();
        let mut alarms = self.alarms.lock();
        match message {
            Some(message) => {
                let alarm = alarms.entry(name).or_insert_with(|| {
                    tracing::warn!(alarm = name, %message, "alarm");
                    Alarm { name, message: String::new(), since: now }
                });
                alarm.message = message;
            }
            None => {
                if alarms.remove(name).is_some() {
                    tracing::info!(alarm = name, "alarm over");
                }
            }
        }
    }
}

fn nodes(nodes: &[u64]) -> String {
    let names: Vec<_> = nodes.iter().map(|node| format!("node {node}")).collect();
    names.join(", ")
}

/// The last index whose purge leaves `LOG_KEEP_BYTES` of log before the snapshot.
fn purge_upto(log: &LogStore, first: u64, snapshot: u64) -> Option<u64> {
    let behind = log.bytes_after(Some(snapshot));
    let kept = |upto: u64| log.bytes_after(Some(upto)).saturating_sub(behind);
    if first >= snapshot || kept(first) <= limits::LOG_KEEP_BYTES {
        return None;
    }
    let (mut purge, mut keep) = (first, snapshot);
    while keep - purge > 1 {
        let middle = purge + (keep - purge) / 2;
        if kept(middle) >= limits::LOG_KEEP_BYTES { purge = middle } else { keep = middle }
    }
    (purge > first).then_some(purge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Entry, Kind, LogId};

    #[test]
    fn a_purge_leaves_a_follower_that_was_away_briefly_its_log() {
        const ENTRY: usize = 1 << 20;
        let log = LogStore::memory();
        let count = 2 * limits::LOG_KEEP_BYTES / ENTRY as u64;
        let payload = bytes::Bytes::from(vec![0; ENTRY]);
        let entry = |index| Entry { id: LogId { term: 1, index }, kind: Kind::Normal, payload: payload.clone() };
        log.log().append((0..count).map(entry).collect(), Box::new(|_| {})).expect("appended");
        let snapshot = count - 1;
        let upto = purge_upto(&log, 0, snapshot).expect("there is more than that");
        let kept = |upto| log.bytes_after(Some(upto)) - log.bytes_after(Some(snapshot));
        assert!(kept(upto) >= limits::LOG_KEEP_BYTES, "{} bytes are kept", kept(upto));
        assert!(kept(upto + 1) < limits::LOG_KEEP_BYTES, "and no more than that");
        assert_eq!(purge_upto(&log, 0, count / 2 - 2), None, "so much is not there yet");
    }
}
