//! Offices lost and won again, and what a node does by itself.

use openraft::raft::VoteRequest;

use super::*;
use crate::raft::log_store::{id_to_openraft, vote_to_openraft};
use crate::storage::{LogId, Vote};

/// Somebody of a later term asks this node's Raft for its vote, so it no longer leads.
async fn depose(handle: &Handle) {
    let term = handle.status().term + 1;
    let ahead = id_to_openraft(LogId { term, index: u64::MAX });
    let vote = vote_to_openraft(Vote { term, node: 99, committed: false });
    let mut request = VoteRequest::new(vote, Some(ahead));
    request.leadership_transfer = true;
    handle.inner_raft().vote(request).await.expect("raft answers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn each_office_has_its_number_and_serves_from_its_own_start() {
    let cluster = Cluster::started(1).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    let mut office = leader.standing().borrow().clone();
    for n in 0..3 {
        depose(&leader).await;
        let next = eventually("another office", || {
            let now = leader.standing().borrow().clone();
            if now.leading.is_some() && now.leading != office.leading { Ok(now) } else { Err(now) }
        })
        .await;
        assert!(next.leading > office.leading, "{next:?} after {office:?}");
        assert_eq!(next.terms_of_office, office.terms_of_office + 1);
        assert_ne!(next.office(), office.office());
        propose(&leader, submit(&format!("p{n}"), 1)).await.expect("the office serves");
        office = next;
    }
    assert!((0..3).all(|n| has(&leader, &format!("p{n}"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_snapshot_comes_by_itself_after_so_many_bytes_of_log() {
    let mut cluster = Cluster::new(1);
    assert_eq!(cluster.tuning.snapshot_every_log_bytes, limits::SNAPSHOT_EVERY_LOG_BYTES);
    cluster.tuning.snapshot_every_log_bytes = 1 << 20;
    cluster.start(1).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    propose(&leader, submit("small", 500_000)).await.unwrap();
    assert_eq!(leader.status().snapshot_index, 0);
    propose(&leader, submit("more", 600_000)).await.unwrap();
    eventually("a snapshot", || match leader.status().snapshot_index {
        0 => Err(()),
        index => Ok(index),
    })
    .await;
}

/// It answered a moment ago, so it is asked to take over; but its disk hangs, and nobody else can.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_transfer_to_a_node_that_hangs_is_answered_in_time_and_the_cluster_goes_on() {
    let cluster = Cluster::started(2).await;
    let leader = cluster.leader().await;
    cluster.settled().await;
    let to = cluster.follower().await.node();
    let disk = &cluster.stores[to as usize - 1].disk;
    disk.hang(true);
    let began = Instant::now();
    let told = leader.transfer_leadership(Some(to), WAIT).await;
    let took = began.elapsed();
    disk.hang(false);
    assert_eq!(told, Err(TransferError::TimedOut(to)));
    let bound = Duration::from_millis(limits::TRANSFER_MS);
    assert!(took >= bound && took < 2 * bound, "{took:?}");
    let served = async {
        while propose(&cluster.leader().await, create_queue()).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, served).await.expect("somebody leads again");
}

/// What happened: a leader spent a whole processor on dialling a follower that was gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_follower_that_is_gone_is_dialled_now_and_then() {
    let mut cluster = Cluster::started(3).await;
    propose(&cluster.leader().await, create_queue()).await.unwrap();
    cluster.settled().await;
    let gone = cluster.follower().await.node();
    cluster.kill(gone).await;
    let addr = cluster.addrs[gone as usize - 1];
    let door = eventually("its port", || std::net::TcpListener::bind(addr)).await;
    door.set_nonblocking(true).unwrap();
    let door = tokio::net::TcpListener::from_std(door).unwrap();
    let mut dialled = 0;
    let until = Instant::now() + Duration::from_secs(1);
    while let Ok(Ok(_)) = tokio::time::timeout_at(until, door.accept()).await {
        dialled += 1;
    }
    assert!((1..100).contains(&dialled), "{dialled} times in a second");
}
