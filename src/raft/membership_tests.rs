//! Members that come, go, move and lose their disks, in one process over loopback.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::entry::RaftPayload;
use tokio::time::timeout;

use super::convert::Membership;
use super::handle::{Handle, MemberStatus};
use super::membership::Error;
use super::tests::{Cluster, Store, WAIT, create_queue, eventually, free_addr, has, propose, submit};
use super::types::{Member, TypeConfig};

fn set(nodes: &[u64]) -> BTreeSet<u64> {
    nodes.iter().copied().collect()
}

fn member(handle: &Handle, node: u64) -> Option<MemberStatus> {
    handle.status().members.into_iter().find(|member| member.node == node)
}

fn voters(handle: &Handle) -> Vec<u64> {
    handle.status().members.iter().filter(|member| member.voter).map(|member| member.node).collect()
}

/// It waits for nothing any more.
async fn takes_part(handle: &Handle) {
    eventually("the end of waiting", || handle.waiting().map_or(Ok(()), Err)).await;
}

/// Adds a node that waits, as often as it takes.
async fn add(cluster: &Cluster, node: u64, replace: bool) -> bool {
    let addr = cluster.addrs[node as usize - 1].to_string();
    cluster.leader().await.add_member(node, &addr, replace, false, WAIT).await.unwrap()
}

/// Waits until they have caught up, and makes them voters.
async fn promote(cluster: &Cluster, nodes: &[u64]) {
    for _ in 0..2_000 {
        match cluster.leader().await.promote_members(&set(nodes), WAIT).await {
            Ok(_) => return,
            Err(Error::Behind { .. } | Error::Silent(_) | Error::UnderWay | Error::NotLeader { .. }) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("{nodes:?} did not catch up");
}

/// Writes a joint configuration alone, as a leader that dies before the second half leaves it. The
/// leader's own task is kept from finishing it.
async fn half_a_change(leader: &Handle, to: &[u64], limit: Duration) {
    let lock = leader.reconfig().one.clone().lock_owned().await;
    // Until the leader is killed.
    std::mem::forget(lock);
    let view = leader.reconfig().view();
    let members = view.members.iter().map(|(node, seen)| (*node, seen.member.clone()));
    let configs = vec![view.voters[0].clone(), set(to)];
    let joint = Membership::new(configs, members.collect::<std::collections::BTreeMap<u64, Member>>()).unwrap();
    let blank = <TypeConfig as openraft::RaftTypeConfig>::Payload::blank();
    let written = leader.inner_raft().append_membership(joint, blank, []);
    let _ = timeout(limit, written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_node_grows_to_three_and_shrinks_again() {
    let mut cluster = Cluster::started(1).await;
    let first = cluster.leader().await;
    propose(&first, create_queue()).await.unwrap();
    propose(&first, submit("a", 10)).await.unwrap();
    for node in [2, 3] {
        assert_eq!(cluster.join().await, node);
        assert!(cluster.handle(node).waiting().is_none_or(|why| why.contains("add-node")));
        let early = first.promote_members(&set(&[node]), WAIT).await;
        assert_eq!(early, Err(Error::NoMember(node)));
        assert!(add(&cluster, node, false).await);
        assert!(!add(&cluster, node, false).await, "again is nothing new");
        assert!(!member(&first, node).unwrap().voter);
    }
    cluster.settled().await;
    assert!(has(&cluster.handle(3), "a"));
    takes_part(&cluster.handle(3)).await;

    // Learners count for nothing: without them the one voter goes on.
    cluster.kill(2).await;
    cluster.kill(3).await;
    propose(&first, submit("b", 10)).await.unwrap();
    assert_eq!(first.promote_members(&set(&[2]), WAIT).await, Err(Error::Silent(2)), "one voter would stand still");
    cluster.start(2).await;
    cluster.start(3).await;
    promote(&cluster, &[2, 3]).await;
    assert_eq!(voters(&cluster.leader().await), [1, 2, 3]);

    // And as voters they do: the first may go.
    cluster.kill(1).await;
    let next = cluster.leader().await;
    propose(&next, submit("c", 10)).await.unwrap();
    cluster.start(1).await;
    cluster.settled().await;
    let one = next.node();
    let others: Vec<u64> = (1..=3).filter(|node| *node != one).collect();
    for node in others {
        let removed = async || cluster.leader().await.remove_members(&set(&[node]), false, WAIT).await;
        eventually_ok("a removal", removed).await;
    }
    assert_eq!(voters(&next), [one]);
    assert_eq!(next.remove_members(&set(&[one]), true, WAIT).await, Err(Error::LastVoter));
    propose(&next, submit("d", 10)).await.unwrap();
    assert!(["a", "b", "c", "d"].iter().all(|id| has(&next, id)));
}

/// Tries until it is done; what waits for others to be ready is tried again.
async fn eventually_ok(what: &str, mut attempt: impl AsyncFnMut() -> Result<(), Error>) {
    for _ in 0..2_000 {
        match attempt().await {
            Ok(()) => return,
            Err(Error::UnderWay | Error::QuorumLost { .. } | Error::NotLeader { .. } | Error::NotHandedOver(_)) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
    panic!("no {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_leader_that_is_removed_hands_over_first() {
    let cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    cluster.settled().await;
    let gone = leader.node();
    let ask = async |handle: Handle| handle.remove_members(&set(&[gone]), false, WAIT).await;
    let first = async || match ask(leader.clone()).await {
        Err(Error::NotLeader { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => panic!("the leader removed itself"),
    };
    eventually_ok("a handover", first).await;
    eventually_ok("a removal by the next leader", async || ask(cluster.leader().await).await).await;
    let next = cluster.leader().await;
    assert_ne!(next.node(), gone);
    assert!(!voters(&next).contains(&gone));
    propose(&next, create_queue()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_left_half_done_is_finished_by_the_next_leader() {
    let mut cluster = Cluster::started(3).await;
    let joins = cluster.join().await;
    add(&cluster, joins, false).await;
    cluster.settled().await;
    let leader = cluster.leader().await;
    half_a_change(&leader, &[1, 2, 3, 4], WAIT).await;
    assert!(leader.status().change_under_way);
    let refused = leader.remove_members(&set(&[4]), false, WAIT).await;
    assert_eq!(refused, Err(Error::UnderWay));
    cluster.kill(leader.node()).await;
    let next = cluster.leader().await;
    eventually("the end of the change", || match next.reconfig().view() {
        view if !view.under_way() => Ok(()),
        view => Err(view.voters),
    })
    .await;
    assert_eq!(voters(&next), [1, 2, 3, 4]);
    cluster.start(leader.node()).await;
    eventually_ok("the next change", async || cluster.leader().await.remove_members(&set(&[joins]), false, WAIT).await)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_that_reached_no_quorum_is_undone() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    cluster.settled().await;
    let old = leader.node();
    let others: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    for node in &others {
        cluster.kill(*node).await;
    }
    half_a_change(&leader, &[old], Duration::from_millis(200)).await;
    eventually("it is in the leader's log", || match leader.status().change_under_way {
        true => Ok(()),
        false => Err(leader.reconfig().view().voters),
    })
    .await;
    cluster.kill(old).await;
    for node in &others {
        cluster.start(*node).await;
    }
    let next = cluster.leader().await;
    assert_ne!(next.node(), old);
    cluster.start(old).await;
    propose(&next, submit("a", 1)).await.unwrap();
    cluster.settled().await;
    for node in 1..=3 {
        let handle = cluster.handle(node);
        eventually("the membership as it was", || match handle.reconfig().view() {
            view if view.voters == [set(&[1, 2, 3])] => Ok(()),
            view => Err(view.voters),
        })
        .await;
    }
    eventually_ok("the next change", async || cluster.leader().await.remove_members(&set(&[old]), false, WAIT).await)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wiped_node_is_refused_until_it_replaces_itself() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    propose(&leader, submit("a", 1)).await.unwrap();
    let wiped = cluster.follower().await.node();
    cluster.kill(wiped).await;
    cluster.stores[wiped as usize - 1] = Store::new(999);
    cluster.start(wiped).await;
    let back = cluster.handle(wiped);
    let told = eventually("a refusal", || back.waiting().filter(|why| why.contains("incarnation")).ok_or(())).await;
    let addr = cluster.addrs[wiped as usize - 1].to_string();
    assert!(told.contains(&format!("wharf cluster replace {wiped} --peer {addr}")), "{told}");
    assert_eq!(back.status().applied_index, 0, "it takes no part");
    propose(&leader, submit("b", 1)).await.unwrap();
    let alarm = || leader.status().alarms.into_iter().find(|alarm| alarm.name == "NODE_WIPED").ok_or(());
    let alarm = eventually("an alarm", alarm).await;
    assert!(alarm.message.contains(&format!("wharf cluster replace {wiped}")), "{}", alarm.message);

    let refused = leader.add_member(wiped, &addr, false, false, WAIT).await;
    assert!(matches!(refused, Err(Error::Known { node, .. }) if node == wiped), "{refused:?}");
    assert!(add(&cluster, wiped, true).await);
    assert!(!add(&cluster, wiped, true).await, "a repeat changes nothing");
    promote(&cluster, &[wiped]).await;
    cluster.settled().await;
    assert_eq!(voters(&cluster.leader().await), [1, 2, 3]);
    assert!(has(&back, "a") && has(&back, "b"));
    takes_part(&back).await;
    // Only with the one that came back is there a quorum now.
    let other = (1..=3).find(|node| *node != wiped && *node != leader.node()).unwrap();
    cluster.kill(other).await;
    propose(&cluster.leader().await, submit("c", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_removed_node_that_comes_back_is_told_and_stops() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    cluster.settled().await;
    let gone = cluster.follower().await.node();
    cluster.kill(gone).await;
    eventually_ok("a removal", async || leader.remove_members(&set(&[gone]), false, WAIT).await).await;
    let term = leader.status().term;
    cluster.start(gone).await;
    let fatal = cluster.nodes[gone as usize - 1].as_ref().unwrap().fatal.clone();
    let told = eventually("word of the removal", || fatal.lock().clone().ok_or(())).await.to_string();
    assert!(told.contains("was removed") && told.contains(&format!("add-node {gone}")), "{told}");
    propose(&leader, create_queue()).await.unwrap();
    assert_eq!(leader.status().term, term, "it disturbed nobody");
    cluster.kill(gone).await;

    // One that runs while it is removed learns of it too. With two voters the leader needs the other.
    let other = (1..=3).find(|node| *node != gone && *node != leader.node()).unwrap();
    eventually_ok("a removal", async || leader.remove_members(&set(&[other]), false, WAIT).await).await;
    let fatal = cluster.nodes[other as usize - 1].as_ref().unwrap().fatal.clone();
    eventually("word of the removal", || fatal.lock().clone().ok_or(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_that_moved_is_followed() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    let moves = cluster.follower().await.node();
    cluster.kill(moves).await;
    cluster.addrs[moves as usize - 1] = free_addr();
    cluster.start(moves).await;
    let addr = cluster.addrs[moves as usize - 1].to_string();
    eventually("the new address", || match member(&leader, moves) {
        Some(member) if member.member.peer_addr == addr => Ok(()),
        other => Err(other),
    })
    .await;
    propose(&leader, submit("a", 1)).await.unwrap();
    cluster.settled().await;
    assert!(has(&cluster.handle(moves), "a"));

    // A single node that moves notes it itself.
    let mut alone = Cluster::started(1).await;
    alone.kill(1).await;
    alone.addrs[0] = free_addr();
    alone.start(1).await;
    let leader = alone.leader().await;
    let addr = alone.addrs[0].to_string();
    let moved = || member(&leader, 1).filter(|member| member.member.peer_addr == addr).ok_or(());
    eventually("its own new address", moved).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_machine_version_rises_once_every_member_applies_it() {
    let mut cluster = Cluster::started(3).await;
    let version = |handle: &Handle| handle.view(|machine| machine.summary().machine_version);
    for node in 1..=3 {
        assert_eq!(version(&cluster.handle(node)), 1);
        cluster.kill(node).await;
        cluster.versions[node as usize - 1] = if node == 3 { 1 } else { 2 };
        cluster.start(node).await;
        cluster.leader().await;
    }
    let leader = cluster.leader().await;
    let told = || match leader.reconfig().view().members.values().map(|seen| seen.version).collect::<Vec<_>>() {
        versions if versions == [Some(2), Some(2), Some(1)] => Ok(()),
        versions => Err(versions),
    };
    eventually("word of all versions", told).await;
    assert_eq!(leader.reconfig().view().version_to_raise(1), None, "node 3 could not follow");
    assert_eq!(version(&leader), 1);

    cluster.kill(3).await;
    cluster.versions[2] = 2;
    cluster.start(3).await;
    for node in 1..=3 {
        let handle = cluster.handle(node);
        eventually("version 2", || if version(&handle) == 2 { Ok(()) } else { Err(node) }).await;
    }

    // Who applies less is not added, and a member that falls back stops before it applies anything.
    let joins = cluster.join().await;
    let addr = cluster.addrs[joins as usize - 1].to_string();
    let refused = cluster.leader().await.add_member(joins, &addr, false, false, WAIT).await;
    assert_eq!(refused, Err(Error::TooOld { node: joins, knows: 1, needs: 2 }));
    let falls = cluster.follower().await.node();
    cluster.kill(falls).await;
    cluster.versions[falls as usize - 1] = 1;
    // It finds out at once from its own log, or when the leader says how much of that is committed.
    let told = match cluster.try_start(falls).await {
        Err(refused) => refused,
        Ok(()) => {
            let fatal = cluster.nodes[falls as usize - 1].as_ref().unwrap().fatal.clone();
            eventually("a halt", || fatal.lock().clone().ok_or(())).await
        }
    };
    assert!(told.to_string().contains("upgrade the node"), "{told}");
}
