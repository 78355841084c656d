//! What may be done to the membership: decisions alone, from what the leader sees.
//!
//! Voters decide and count; learners get the log and count for nothing. One change at a time. A node
//! joins as a learner, becomes a voter once it has caught up, and leaves either way in one step. Voters
//! change through a joint configuration, of which [`super::reconfig`] sees to the end.
//!
//! Invariants: the last voter stays. A number with another data directory behind it is another node:
//! the old one is removed before the new one is added, never both at once. Only a learner that answers
//! and is current becomes a voter; nobody is removed if too few such voters would remain, unless an
//! operator forces it. A node that cannot apply what the state's version wrote is not added.

use std::collections::{BTreeMap, BTreeSet};

use super::handle::{Leader, ProposeError};
use super::types::Member;
use crate::types::{NodeId, limits};

/// Why the members stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Certainly nothing was done: this node does not lead.
    #[error("not the leader")]
    NotLeader { leader: Option<Leader> },
    /// May or may not be done, wholly or by half; what is begun is finished or undone by the leader.
    #[error("outcome unknown: {why}")]
    Unknown { why: &'static str },
    #[error("another change of members is under way")]
    UnderWay,
    #[error("node {0} is no member")]
    NoMember(NodeId),
    #[error("node {node} does not answer at {addr}: {why}")]
    NoAnswer { node: NodeId, addr: String, why: String },
    /// It answers where it was said to be, and tells others to reach it elsewhere.
    #[error("node {node} tells others to reach it at {told}, where it does not answer")]
    Misadvertised { node: NodeId, told: String },
    /// A member can be reached on its own host only.
    #[error("node {node} is known by {addr}, which other hosts cannot reach")]
    Loopback { node: NodeId, addr: String },
    #[error("node {0} belongs to another cluster")]
    OtherCluster(NodeId),
    /// The number is taken by a node with another data directory.
    #[error("node {node} is a member with another data directory")]
    Known { node: NodeId, addr: String },
    /// Whom it should replace still answers.
    #[error("the member that node {0} should replace still answers")]
    Alive(NodeId),
    #[error("node {node} applies machine version {knows} at most, the state is at {needs}")]
    TooOld { node: NodeId, knows: u32, needs: u32 },
    #[error("there are {limit} members already")]
    TooMany { limit: usize },
    /// It does not answer the leader, so nobody knows how far it is.
    #[error("learner {0} does not answer")]
    Silent(NodeId),
    #[error("learner {node} is {behind} log entries behind")]
    Behind { node: NodeId, behind: u64 },
    #[error("no voter would remain")]
    LastVoter,
    /// The leader is to be removed, and its successor did not take over.
    #[error("node {0} did not take over from the leader, which is to be removed")]
    NotHandedOver(NodeId),
    /// Of the voters that would remain, too few answer and are current.
    #[error("only {current} of {voters} voters would answer")]
    QuorumLost { current: usize, voters: usize },
}

impl From<ProposeError> for Error {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Self::NotLeader { leader },
            ProposeError::Unknown { why } => Self::Unknown { why },
            _ => Self::NotLeader { leader: None },
        }
    }
}

/// A member, as the leader sees it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub member: Member,
    pub reachable: bool,
    /// Log entries that it is behind. None: the leader does not know.
    pub behind: Option<u64>,
    /// The highest machine version that it applies, as it said lately.
    pub version: Option<u32>,
    /// As it told how it wants to be known.
    pub told: Option<Member>,
}

impl Seen {
    /// It answers, and has nearly all of the log.
    fn is_current(&self) -> bool {
        self.reachable && self.behind.is_some_and(|behind| behind <= limits::CAUGHT_UP_ENTRIES)
    }
}

/// The membership in force, as the leader sees it.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub own: NodeId,
    /// One, or two while a change is under way: the second is where it goes.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// What is in force is committed.
    pub committed: bool,
    /// The last entry of the log.
    pub last: u64,
    pub members: BTreeMap<NodeId, Seen>,
}

/// A node that wants to be a member, as it answered.
#[derive(Clone, Debug)]
pub struct Newcomer {
    pub node: NodeId,
    pub member: Member,
    pub machine_version: u32,
    /// It belongs to a cluster that is not this one, or will form one of its own.
    pub elsewhere: bool,
}

/// What [`View::add`] found to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Add {
    Nothing,
    Learner,
    /// The old node of this number goes first.
    Replace {
        voter: bool,
    },
}

/// What [`View::remove`] found to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remove {
    pub voters: BTreeSet<NodeId>,
    pub learners: BTreeSet<NodeId>,
}

impl View {
    /// Members that did not answer just now, under the incarnations that they have, count as silent.
    pub fn only(&mut self, answering: &BTreeMap<NodeId, u64>) {
        for (node, seen) in &mut self.members {
            seen.reachable &= answering.get(node) == Some(&seen.member.incarnation);
        }
    }

    /// A change that was begun is not at its end.
    pub fn under_way(&self) -> bool {
        !self.committed || self.voters.len() > 1
    }

    /// A change stopped half-way, its first half for good: it can be finished.
    pub fn half_done(&self) -> bool {
        self.committed && self.voters.len() > 1
    }

    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.iter().any(|config| config.contains(&node))
    }

    /// Whether `newcomer` may become a learner; `state_version` is what the log may already need.
    pub fn add(&self, newcomer: &Newcomer, state_version: u32, replace: bool, force: bool) -> Result<Add, Error> {
        let node = newcomer.node;
        if newcomer.elsewhere {
            return Err(Error::OtherCluster(node));
        }
        if newcomer.machine_version < state_version {
            return Err(Error::TooOld { node, knows: newcomer.machine_version, needs: state_version });
        }
        let Some(known) = self.members.get(&node) else {
            if self.members.len() >= limits::MAX_MEMBERS {
                return Err(Error::TooMany { limit: limits::MAX_MEMBERS });
            }
            self.check_hosts(newcomer)?;
            return Ok(Add::Learner);
        };
        if known.member.incarnation == newcomer.member.incarnation {
            return Ok(Add::Nothing);
        }
        if !replace {
            return Err(Error::Known { node, addr: newcomer.member.peer_addr.clone() });
        }
        // Two processes cannot listen at one address.
        if known.reachable && known.member.peer_addr != newcomer.member.peer_addr {
            return Err(Error::Alive(node));
        }
        self.check_hosts(newcomer)?;
        let voter = self.is_voter(node);
        if voter && !force {
            self.check_quorum_without(&BTreeSet::from([node]))?;
        }
        Ok(Add::Replace { voter })
    }

    /// A member known by a loopback address is out of reach for a node on another host.
    fn check_hosts(&self, newcomer: &Newcomer) -> Result<(), Error> {
        let all = self.members.iter().filter(|(node, _)| **node != newcomer.node);
        let mut known = all.map(|(node, seen)| (*node, &seen.member.peer_addr));
        let other = |addr: &str| is_loopback(addr) != is_loopback(&newcomer.member.peer_addr);
        match known.find(|(_, addr)| other(addr)) {
            None => Ok(()),
            Some((node, addr)) if is_loopback(addr) => Err(Error::Loopback { node, addr: addr.clone() }),
            Some(_) => Err(Error::Loopback { node: newcomer.node, addr: newcomer.member.peer_addr.clone() }),
        }
    }

    /// Which of `nodes` are to become voters now; empty if all are.
    pub fn promote(&self, nodes: &BTreeSet<NodeId>) -> Result<BTreeSet<NodeId>, Error> {
        let mut learners = BTreeSet::new();
        for node in nodes {
            let seen = self.members.get(node).ok_or(Error::NoMember(*node))?;
            if self.is_voter(*node) {
                continue;
            }
            if !seen.reachable {
                return Err(Error::Silent(*node));
            }
            match seen.behind {
                Some(behind) if behind <= limits::CAUGHT_UP_ENTRIES => {}
                Some(behind) => return Err(Error::Behind { node: *node, behind }),
                None => return Err(Error::Behind { node: *node, behind: self.last }),
            }
            learners.insert(*node);
        }
        Ok(learners)
    }

    /// Whether `nodes` may go.
    pub fn remove(&self, nodes: &BTreeSet<NodeId>, force: bool) -> Result<Remove, Error> {
        if let Some(node) = nodes.iter().find(|node| !self.members.contains_key(node)) {
            return Err(Error::NoMember(*node));
        }
        let (voters, learners): (BTreeSet<_>, BTreeSet<_>) = nodes.iter().partition(|node| self.is_voter(**node));
        if self.target().is_subset(&voters) {
            return Err(Error::LastVoter);
        }
        if !voters.is_empty() && !force {
            self.check_quorum_without(&voters)?;
        }
        Ok(Remove { voters, learners })
    }

    /// The voter that takes over from a leader among those that go.
    pub fn successor(&self, going: &BTreeSet<NodeId>) -> Option<NodeId> {
        let stays = |(node, seen): &(&NodeId, &Seen)| self.is_voter(**node) && !going.contains(node) && seen.reachable;
        let current = self.members.iter().filter(stays);
        current.min_by_key(|(node, seen)| (seen.behind.unwrap_or(u64::MAX), **node)).map(|(node, _)| *node)
    }

    /// Whether the cluster goes on if `node` stops now, and why.
    pub fn safe_to_stop(&self, node: NodeId) -> Result<(bool, String), Error> {
        if !self.members.contains_key(&node) {
            return Err(Error::NoMember(node));
        }
        if self.under_way() {
            return Ok((false, "a change of members is under way: wait until it is finished".to_owned()));
        }
        if !self.is_voter(node) {
            return Ok((true, format!("node {node} is a learner: nothing depends on it")));
        }
        let without = BTreeSet::from([node]);
        for config in &self.voters {
            let (current, needed) = (self.current(config, &without), config.len() / 2 + 1);
            if current < needed {
                let why = format!(
                    "without node {node} only {current} of {} voters answer and are current, and a quorum is {needed}",
                    config.len()
                );
                return Ok((false, why));
            }
        }
        let hands_over =
            if node == self.own { "; it leads, and hands over when it is told to stop (SIGTERM)" } else { "" };
        Ok((true, format!("a quorum of the voters answers and is current without node {node}{hands_over}")))
    }

    /// Voters of `config` that answer and are current, without those.
    fn current(&self, config: &BTreeSet<NodeId>, without: &BTreeSet<NodeId>) -> usize {
        let counts = |node: &&NodeId| self.members.get(node).is_some_and(Seen::is_current);
        config.difference(without).filter(counts).count()
    }

    fn check_quorum_without(&self, nodes: &BTreeSet<NodeId>) -> Result<(), Error> {
        let rest: BTreeSet<NodeId> = self.target().difference(nodes).copied().collect();
        if rest.is_empty() {
            return Err(Error::LastVoter);
        }
        let current = self.current(&rest, &BTreeSet::new());
        if current <= rest.len() / 2 {
            return Err(Error::QuorumLost { current, voters: rest.len() });
        }
        Ok(())
    }

    /// Where a change goes, or what is.
    fn target(&self) -> BTreeSet<NodeId> {
        self.voters.last().cloned().unwrap_or_default()
    }

    /// Members that want to be known by other addresses than the membership has.
    pub fn moved(&self) -> Vec<(NodeId, Member)> {
        let told = self.members.iter().filter_map(|(node, seen)| Some((*node, seen, seen.told.clone()?)));
        told.filter(|(_, seen, told)| seen.member != *told && seen.member.incarnation == told.incarnation)
            .map(|(node, _, told)| (node, told))
            .collect()
    }

    /// The machine version to raise the state to: the lowest that any member applies, once each has
    /// said so and it is higher than what is.
    pub fn version_to_raise(&self, state_version: u32) -> Option<u32> {
        if self.under_way() {
            return None;
        }
        let lowest = self.members.values().map(|seen| seen.version).min()??;
        (lowest > state_version).then_some(lowest)
    }
}

fn is_loopback(addr: &str) -> bool {
    let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(node: NodeId, behind: Option<u64>) -> Seen {
        let member = Member { peer_addr: format!("n{node}:7412"), incarnation: 100 + node, ..Member::default() };
        Seen { member, reachable: behind.is_some(), behind, version: Some(1), told: None }
    }

    /// Voters as given, and what the leader, node 1, knows: None is a node that does not answer.
    fn view(voters: &[&[NodeId]], members: &[(NodeId, Option<u64>)]) -> View {
        View {
            own: 1,
            voters: voters.iter().map(|config| config.iter().copied().collect()).collect(),
            committed: true,
            last: 7,
            members: members.iter().map(|(node, behind)| (*node, seen(*node, *behind))).collect(),
        }
    }

    fn newcomer(node: NodeId, incarnation: u64) -> Newcomer {
        let member = Member { peer_addr: format!("n{node}:7412"), incarnation, ..Member::default() };
        Newcomer { node, member, machine_version: 1, elsewhere: false }
    }

    fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn a_new_number_becomes_a_learner_and_a_known_one_only_its_own_successor() {
        let three = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(0)), (3, None)]);
        assert_eq!(three.add(&newcomer(4, 7), 1, false, false), Ok(Add::Learner));
        assert_eq!(three.add(&newcomer(3, 103), 1, false, false), Ok(Add::Nothing), "the very same again");
        assert!(matches!(three.add(&newcomer(3, 7), 1, false, false), Err(Error::Known { node: 3, .. })));
        assert_eq!(three.add(&newcomer(3, 7), 1, true, false), Ok(Add::Replace { voter: true }));
        let elsewhere = Newcomer { elsewhere: true, ..newcomer(4, 7) };
        assert_eq!(three.add(&elsewhere, 1, false, false), Err(Error::OtherCluster(4)));
        assert_eq!(three.add(&newcomer(4, 7), 2, false, false), Err(Error::TooOld { node: 4, knows: 1, needs: 2 }));
    }

    #[test]
    fn who_still_answers_is_not_replaced() {
        let three = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(0)), (3, Some(0))]);
        let mut elsewhere = newcomer(3, 7);
        elsewhere.member.peer_addr = "other:7412".into();
        assert_eq!(three.add(&elsewhere, 1, true, false), Err(Error::Alive(3)));
        assert_eq!(three.add(&newcomer(3, 7), 1, true, false), Ok(Add::Replace { voter: true }), "at the same address");
        let two = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, None), (3, None)]);
        assert_eq!(two.add(&newcomer(3, 7), 1, true, false), Err(Error::QuorumLost { current: 1, voters: 2 }));
        assert_eq!(two.add(&newcomer(3, 7), 1, true, true), Ok(Add::Replace { voter: true }), "forced");
        let alone = view(&[&[1]], &[(1, Some(0))]);
        assert_eq!(alone.add(&newcomer(1, 7), 1, true, false), Err(Error::LastVoter));
    }

    #[test]
    fn members_are_counted_and_must_be_in_reach_of_each_other() {
        let all: Vec<_> = (1..=limits::MAX_MEMBERS as NodeId).map(|node| (node, Some(0))).collect();
        let full = view(&[&[1, 2, 3]], &all);
        let limit = limits::MAX_MEMBERS;
        assert_eq!(full.add(&newcomer(99, 7), 1, false, false), Err(Error::TooMany { limit }));
        assert_eq!(view(&[&[1]], &all[1..]).add(&newcomer(99, 7), 1, false, false), Ok(Add::Learner));

        let mut here = view(&[&[1]], &[(1, Some(0))]);
        let addr = "127.0.0.1:7412".to_owned();
        here.members.get_mut(&1).unwrap().member.peer_addr.clone_from(&addr);
        assert_eq!(here.add(&newcomer(2, 7), 1, false, false), Err(Error::Loopback { node: 1, addr: addr.clone() }));
        let mut local = newcomer(2, 7);
        local.member.peer_addr = "[::1]:7422".into();
        assert_eq!(here.add(&local, 1, false, false), Ok(Add::Learner));
        let there = view(&[&[1]], &[(1, Some(0))]);
        assert!(matches!(there.add(&local, 1, false, false), Err(Error::Loopback { node: 2, .. })));
    }

    #[test]
    fn only_who_has_caught_up_becomes_a_voter() {
        let far = limits::CAUGHT_UP_ENTRIES + 1;
        let view = view(&[&[1]], &[(1, Some(0)), (2, Some(far - 1)), (3, Some(far)), (4, None)]);
        assert_eq!(view.promote(&set(&[1, 2])), Ok(set(&[2])));
        assert_eq!(view.promote(&set(&[1])), Ok(set(&[])));
        assert_eq!(view.promote(&set(&[2, 3])), Err(Error::Behind { node: 3, behind: far }));
        assert_eq!(view.promote(&set(&[4])), Err(Error::Silent(4)));
        assert_eq!(view.promote(&set(&[9])), Err(Error::NoMember(9)));
        let mut unknown = view;
        unknown.members.get_mut(&4).unwrap().reachable = true;
        assert_eq!(unknown.promote(&set(&[4])), Err(Error::Behind { node: 4, behind: 7 }), "all there is");
    }

    #[test]
    fn what_stays_must_be_a_quorum() {
        let far = limits::CAUGHT_UP_ENTRIES + 1;
        let three = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(0)), (3, None), (4, Some(0))]);
        assert_eq!(three.remove(&set(&[3, 4]), false), Ok(Remove { voters: set(&[3]), learners: set(&[4]) }));
        assert_eq!(three.remove(&set(&[2]), false), Err(Error::QuorumLost { current: 1, voters: 2 }));
        assert!(three.remove(&set(&[2]), true).is_ok(), "forced");
        assert_eq!(three.remove(&set(&[1, 2, 3]), true), Err(Error::LastVoter), "whatever is forced");
        assert_eq!(three.remove(&set(&[9]), false), Err(Error::NoMember(9)));
        let slow = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(far)), (3, Some(0))]);
        assert_eq!(slow.remove(&set(&[3]), false), Err(Error::QuorumLost { current: 1, voters: 2 }));
        assert_eq!(slow.successor(&set(&[1])), Some(3), "who has most of the log leads next");
        assert_eq!(slow.successor(&set(&[1, 3])), Some(2));
        assert_eq!(three.successor(&set(&[1, 2])), None, "node 3 does not answer, node 4 is a learner");
    }

    #[test]
    fn who_does_not_answer_now_does_not_count() {
        let mut three = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(0)), (3, Some(0))]);
        three.only(&BTreeMap::from([(1, 101), (2, 102), (3, 103)]));
        assert!(three.remove(&set(&[3]), false).is_ok());
        three.only(&BTreeMap::from([(1, 101), (2, 7), (3, 103)]));
        assert_eq!(three.remove(&set(&[3]), false), Err(Error::QuorumLost { current: 1, voters: 2 }));
        assert!(!three.safe_to_stop(3).unwrap().0);
    }

    #[test]
    fn a_node_may_stop_if_a_quorum_goes_on() {
        let three = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(0)), (3, Some(0)), (4, Some(0))]);
        for node in 1..=4 {
            assert!(three.safe_to_stop(node).unwrap().0, "node {node}");
        }
        assert!(three.safe_to_stop(1).unwrap().1.contains("hands over"));
        assert_eq!(three.safe_to_stop(9), Err(Error::NoMember(9)));
        let two = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(0)), (3, None)]);
        assert!(!two.safe_to_stop(2).unwrap().0);
        assert!(two.safe_to_stop(3).unwrap().0, "it is down already");
        assert!(!view(&[&[1]], &[(1, Some(0))]).safe_to_stop(1).unwrap().0);
        let behind = limits::CAUGHT_UP_ENTRIES + 1;
        let slow = view(&[&[1, 2, 3]], &[(1, Some(0)), (2, Some(0)), (3, Some(behind))]);
        assert!(!slow.safe_to_stop(2).unwrap().0, "the rest would wait for the one that is behind");
        let changing = view(&[&[1, 2, 3], &[1, 2]], &[(1, Some(0)), (2, Some(0)), (3, Some(0))]);
        assert!(!changing.safe_to_stop(3).unwrap().0);
    }

    #[test]
    fn a_change_is_under_way_until_its_end_is_committed() {
        let mut joint = view(&[&[1], &[1, 2]], &[(1, Some(0)), (2, Some(0))]);
        assert!(joint.under_way() && joint.half_done());
        joint.committed = false;
        assert!(joint.under_way() && !joint.half_done(), "it may still be undone");
        joint.voters.pop();
        assert!(joint.under_way() && !joint.half_done());
        joint.committed = true;
        assert!(!joint.under_way());
    }

    #[test]
    fn the_version_rises_to_what_every_member_applies() {
        let mut three = view(&[&[1, 2]], &[(1, Some(0)), (2, Some(0)), (3, Some(0))]);
        let set_versions = |view: &mut View, versions: [Option<u32>; 3]| {
            view.members.values_mut().zip(versions).for_each(|(seen, version)| seen.version = version);
        };
        assert_eq!(three.version_to_raise(1), None);
        set_versions(&mut three, [Some(3), Some(2), Some(3)]);
        assert_eq!(three.version_to_raise(1), Some(2), "the lowest");
        assert_eq!(three.version_to_raise(2), None);
        assert_eq!(three.version_to_raise(3), None, "never back");
        set_versions(&mut three, [Some(3), Some(2), Some(1)]);
        assert_eq!(three.version_to_raise(1), None, "learners count");
        set_versions(&mut three, [Some(3), None, Some(3)]);
        assert_eq!(three.version_to_raise(1), None, "who did not say counts as old");
        set_versions(&mut three, [Some(2), Some(2), Some(2)]);
        three.committed = false;
        assert_eq!(three.version_to_raise(1), None, "not while members change");
    }

    #[test]
    fn a_member_that_moved_is_noticed() {
        let mut two = view(&[&[1, 2]], &[(1, Some(0)), (2, Some(0))]);
        assert_eq!(two.moved(), []);
        let known = two.members[&2].member.clone();
        two.members.get_mut(&2).unwrap().told = Some(known.clone());
        assert_eq!(two.moved(), []);
        let told = Member { client_addr: "n2:1".into(), ..known };
        two.members.get_mut(&2).unwrap().told = Some(told.clone());
        assert_eq!(two.moved(), [(2, told.clone())]);
        two.members.get_mut(&2).unwrap().told = Some(Member { incarnation: 9, ..told });
        assert_eq!(two.moved(), [], "another node is no move");
    }
}
