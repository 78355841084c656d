//! Nodes that join, leave, move and lose their disks, under load.

use std::time::Duration;

use tokio::time::Instant;
use wharf::client::{Client, Error, QueueSettings};
use wharf::testkit::cluster::Options;
use wharf::testkit::wait;
use wharf::testkit::workload::{Producer, Production, WorkerSpec, WorkerTask};

use super::cli::wharf;
use super::harness::{OPTIMIZED, QUEUE, SOON, Scene, binary};

const RATE: u32 = if OPTIMIZED { 1_000 } else { 150 };
/// A change of members has happened within this, kills on the way included.
const CHANGED: Duration = Duration::from_secs(60);

/// Repeats a change until it is made: a leader that dies on the way leaves an unknown outcome, and
/// what is not ready yet is refused by name.
async fn steadily<T>(what: &str, attempt: impl AsyncFn() -> Result<T, Error>) -> T {
    let until = Instant::now() + CHANGED;
    let passing = ["CHANGE_UNDER_WAY", "LEARNER_BEHIND", "NODE_UNREACHABLE", "WOULD_LOSE_QUORUM", "NODE_ALIVE"];
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) if Instant::now() > until => panic!("{what}: {error}"),
            Err(error) => {
                let passes = error.is_unknown() || error.is_unavailable() || passing.contains(&error.reason());
                assert!(passes, "{what}: {error}");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn add(scene: &Scene, client: &Client, node: u64) {
    let addr = scene.cluster.peer_addr(node).unwrap();
    steadily("adding", async || client.add_member(node, addr, false, false).await).await;
}

async fn promote(client: &Client, nodes: &[u64]) {
    steadily("promoting", async || client.promote_members(nodes).await).await;
}

/// Removes members; a repeat of what was done says that they are none.
async fn remove(client: &Client, nodes: &[u64]) {
    let gone = async || match client.remove_members(nodes, false).await {
        Err(error) if error.reason() == "NODE_NOT_FOUND" => Ok(Vec::new()),
        other => other,
    };
    steadily("removing", gone).await;
}

/// Who votes, as the leader sees it, once no change is under way.
async fn voters(scene: &Scene) -> Vec<u64> {
    let look = || async {
        let leader = scene.cluster.leader().await.ok()?;
        let status = scene.cluster.status(leader).await.ok()?;
        let settled = status.leader == leader && !status.change_under_way;
        settled.then(|| status.members.iter().filter(|member| member.voter).map(|member| member.node).collect())
    };
    wait::until("the end of the change", SOON, look).await.unwrap()
}

/// A single node with so many more that wait to be added, so that clients know all addresses.
async fn one_and_waiting(waiting: std::ops::RangeInclusive<u64>) -> Scene {
    let mut scene = Scene::with(Options { nodes: 1, ..Options::new(binary()) }).await;
    for node in waiting {
        scene.cluster.join(node).await.unwrap();
        let answers = || async { scene.cluster.status(node).await.ok() };
        wait::until("a node that waits to be added", SOON, answers).await.unwrap();
    }
    scene.client = scene.cluster.client().unwrap();
    scene
}

fn load(scene: &Scene) -> (Production, Vec<WorkerTask>) {
    let member = |n: u32| WorkerSpec { concurrency: 8, work_ms: 2, ..scene.worker(&format!("worker-{n}")) };
    let workers = (1..=3).map(|n| scene.start(member(n))).collect();
    (Producer::new(QUEUE, RATE).start(scene.cluster.client().unwrap(), scene.recorder.named("load")), workers)
}

/// The work runs out, and everything confirmed was done once; no submit came to more than a retry.
async fn judge(scene: &Scene, production: Production, workers: Vec<WorkerTask>) {
    let produced = production.stop().await;
    assert_eq!(produced.confirmed, produced.keys.len() as u64, "a client error beyond a retry");
    scene.wait_ended(QUEUE, CHANGED).await;
    for worker in workers {
        worker.finish(SOON).await.expect("workers end with the work");
    }
    scene.judge_to_the_end(produced.keys).await;
}

/// The bar: 1 → 3 → 5 → 3 with a SIGKILL in each step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_three_five_three_under_load() {
    let mut scene = one_and_waiting(2..=5).await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let (production, workers) = load(&scene);
    let client = scene.client.clone();
    let some = u64::from(RATE) / 2;
    production.wait_confirmed(some, SOON).await.unwrap();

    // 1 → 3: the only voter dies while the learners catch up.
    add(&scene, &client, 2).await;
    add(&scene, &client, 3).await;
    scene.cluster.kill(1).await.unwrap();
    scene.cluster.spawn(1).unwrap();
    promote(&client, &[2, 3]).await;
    assert_eq!(voters(&scene).await, [1, 2, 3]);
    production.wait_confirmed(some, SOON).await.unwrap();

    // 3 → 5: the leader dies while it makes two learners voters.
    add(&scene, &client, 4).await;
    add(&scene, &client, 5).await;
    let leader = scene.cluster.leader().await.unwrap();
    let killed = async {
        scene.cluster.kill(leader).await.unwrap();
        production.wait_confirmed(some / 4, SOON).await.unwrap();
        scene.cluster.spawn(leader).unwrap();
    };
    tokio::join!(promote(&client, &[4, 5]), killed);
    assert_eq!(voters(&scene).await, [1, 2, 3, 4, 5]);
    production.wait_confirmed(some, SOON).await.unwrap();

    // 5 → 3: a follower that stays dies, while the leader and another one are removed.
    let leader = scene.cluster.leader().await.unwrap();
    let other = (1..=5).find(|node| *node != leader).unwrap();
    let dies = (1..=5).rev().find(|node| *node != leader && *node != other).unwrap();
    scene.cluster.kill(dies).await.unwrap();
    remove(&client, &[leader, other]).await;
    scene.cluster.spawn(dies).unwrap();
    let stay: Vec<u64> = (1..=5).filter(|node| *node != leader && *node != other).collect();
    assert_eq!(voters(&scene).await, stay);
    scene.cluster.forget(leader).await.unwrap();
    scene.cluster.forget(other).await.unwrap();
    production.wait_confirmed(some, SOON).await.unwrap();
    scene.cluster.wait_ready().await.unwrap();
    judge(&scene, production, workers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wiped_nodes_replaced_by_one_command_each_under_load() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let (production, workers) = load(&scene);
    production.wait_confirmed(100, SOON).await.unwrap();

    let wiped = scene.cluster.follower().await.unwrap();
    scene.cluster.wipe(wiped).await.unwrap();
    scene.cluster.spawn(wiped).unwrap();
    let peer = scene.cluster.peer_addr(wiped).unwrap().to_owned();
    // The refusal names the very command.
    let command = format!("wharf cluster replace {wiped} --peer {peer}");
    let told = || async { scene.cluster.log(wiped).unwrap().contains(&command).then_some(()) };
    wait::until("the refusal of the wiped node", SOON, told).await.unwrap();
    let status = scene.cluster.status(wiped).await.unwrap();
    assert_eq!((status.leader, status.applied_index), (0, 0), "it takes no part");
    production.wait_confirmed(100, SOON).await.unwrap();

    let args: Vec<&str> = command.split(' ').skip(1).collect();
    let addrs = scene.cluster.addrs();
    let members = wharf(&addrs, &[&args[..], &["-o", "json"]].concat()).await.json();
    let roles = members.as_array().unwrap().iter().filter(|member| member["role"] != "learner").count();
    assert_eq!(roles, 3, "{members}");
    // Given again it does nothing.
    wharf(&addrs, &args).await.ok();
    production.wait_confirmed(100, SOON).await.unwrap();

    // It leads, and another follows it from the first entry on, which knows it as it was before.
    scene.client.transfer_leadership(wiped).await.unwrap();
    let next = scene.cluster.ids().into_iter().find(|node| *node != wiped).unwrap();
    scene.cluster.wipe(next).await.unwrap();
    scene.cluster.spawn(next).unwrap();
    let peer = scene.cluster.peer_addr(next).unwrap().to_owned();
    let command = format!("wharf cluster replace {next} --peer {peer}");
    let told = || async { scene.cluster.log(next).unwrap().contains(&command).then_some(()) };
    wait::until("the refusal of the next wiped node", SOON, told).await.unwrap();
    let args: Vec<&str> = command.split(' ').skip(1).collect();
    wharf(&addrs, &args).await.ok();
    production.wait_confirmed(100, SOON).await.unwrap();

    // Only with the one that came back is there a quorum now.
    let leader = scene.cluster.leader().await.unwrap();
    let third = scene.cluster.ids().into_iter().find(|node| *node != wiped && *node != leader).unwrap();
    scene.cluster.kill(third).await.unwrap();
    production.wait_confirmed(100, SOON).await.unwrap();
    scene.cluster.restart(third).await.unwrap();
    judge(&scene, production, workers).await;
}

/// The leader dies at different moments of a change of voters: it is finished or undone, and the
/// next change is possible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_in_the_middle_of_a_change() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    scene.cluster.join(4).await.unwrap();
    let client = scene.cluster.client().unwrap();
    add(&scene, &client, 4).await;
    let (production, workers) = load(&scene);
    for delay_ms in [0, 2, 5, 10] {
        promote(&client, &[4]).await;
        let leader = scene.cluster.leader().await.unwrap();
        // A voter leaves wholly, so the next round begins with a node that joins anew.
        let asked = tokio::spawn({
            let client = client.clone();
            async move { client.remove_members(&[4], false).await }
        });
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        scene.cluster.kill(leader).await.unwrap();
        let outcome = asked.await.unwrap();
        production.wait_confirmed(20, SOON).await.unwrap();
        let after = voters(&scene).await;
        eprintln!("killed after {delay_ms} ms: {outcome:?}, then {after:?} vote");
        assert!(after == [1, 2, 3] || after == [1, 2, 3, 4], "{after:?}");
        if leader == 4 {
            scene.cluster.spawn(4).unwrap();
        } else {
            scene.cluster.spawn(leader).unwrap();
        }
        // The next change is possible, whichever way this one went.
        remove(&client, &[4]).await;
        assert_eq!(voters(&scene).await, [1, 2, 3]);
        scene.cluster.forget(4).await.unwrap();
        scene.cluster.join(4).await.unwrap();
        add(&scene, &client, 4).await;
    }
    production.wait_confirmed(100, SOON).await.unwrap();
    judge(&scene, production, workers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_node_that_comes_back_is_told_and_disturbs_nobody() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let client = scene.cluster.client().unwrap();
    let gone = scene.cluster.follower().await.unwrap();
    scene.cluster.kill(gone).await.unwrap();
    remove(&client, &[gone]).await;
    let leader = scene.cluster.leader().await.unwrap();
    let before = scene.cluster.status(leader).await.unwrap();

    scene.cluster.spawn(gone).unwrap();
    let told = || async {
        let log = scene.cluster.log(gone).unwrap();
        log.contains(&format!("node {gone} was removed from the cluster")).then_some(())
    };
    wait::until("word of the removal", SOON, told).await.unwrap();
    let after = scene.cluster.status(leader).await.unwrap();
    assert_eq!((after.term, after.leader), (before.term, leader), "it disturbed the others");
    scene.cluster.forget(gone).await.unwrap();

    // With an empty directory and `--join` it may come again.
    scene.cluster.join(gone).await.unwrap();
    add(&scene, &client, gone).await;
    promote(&client, &[gone]).await;
    assert_eq!(voters(&scene).await, [1, 2, 3]);
    scene.cluster.wait_ready().await.unwrap();
    scene.cluster.check_agreement().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_node_is_followed() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let (production, workers) = load(&scene);
    production.wait_confirmed(50, SOON).await.unwrap();
    let moved = scene.cluster.follower().await.unwrap();
    scene.cluster.kill(moved).await.unwrap();
    scene.cluster.relocate(moved).await.unwrap();
    scene.cluster.restart(moved).await.unwrap();
    let peer = scene.cluster.peer_addr(moved).unwrap().to_owned();
    let addr = scene.cluster.addr(moved).unwrap().to_owned();
    let leader = scene.cluster.leader().await.unwrap();
    let known = || async {
        let status = scene.cluster.status(leader).await.ok()?;
        status.members.into_iter().find(|m| m.node == moved && m.peer_addr == peer && m.client_addr == addr)
    };
    wait::until("the new addresses in the membership", SOON, known).await.unwrap();

    // The others reach it there: with it there is a quorum without the third.
    let third = scene.cluster.ids().into_iter().find(|node| *node != moved && *node != leader).unwrap();
    scene.cluster.kill(third).await.unwrap();
    production.wait_confirmed(100, SOON).await.unwrap();
    scene.cluster.restart(third).await.unwrap();
    judge(&scene, production, workers).await;
}

/// A change that would count on a node which died a moment ago would leave the cluster standing still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_does_not_count_on_who_just_died() {
    let mut scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    let client = scene.cluster.client().unwrap();
    let leader = scene.cluster.leader().await.unwrap();
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    assert!(client.safe_to_stop(others[1]).await.unwrap().safe);
    scene.cluster.kill(others[0]).await.unwrap();
    let refused = client.remove_members(&[others[1]], false).await.expect_err("one of two would be dead");
    assert_eq!(refused.reason(), "WOULD_LOSE_QUORUM", "{refused}");
    let safe = client.safe_to_stop(others[1]).await.unwrap();
    assert!(!safe.safe, "{}", safe.reason);
    assert!(client.safe_to_stop(others[0]).await.unwrap().safe, "it is down already");
    scene.cluster.restart(others[0]).await.unwrap();
    remove(&client, &[others[1]]).await;
    assert_eq!(voters(&scene).await.len(), 2);
}

/// What the verbs print, and their exit codes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_of_membership() {
    let mut scene = one_and_waiting(2..=2).await;
    let addr = scene.cluster.addr(1).unwrap().to_owned();
    let peer = scene.cluster.peer_addr(2).unwrap().to_owned();
    let looks = || async { scene.cluster.status(2).await.ok().filter(|status| !status.waiting.is_empty()) };
    let ready = wait::until("word of why it waits", SOON, looks).await.unwrap();
    assert_eq!((ready.leader, ready.members.len()), (0, 0));
    assert_eq!(ready.waiting, format!("waiting to be added: wharf cluster add-node 2 --peer {peer}"));
    let waits = wharf(scene.cluster.addr(2).unwrap(), &["queue", "list", "--timeout", "2s"]).await;
    waits.fails(75);

    let err = wharf(&addr, &["cluster", "add-node", "2", "--peer", "127.0.0.1:1"]).await;
    assert!(err.fails(1).contains("--join"), "{}", err.fails(1));
    let wrong = wharf(&addr, &["cluster", "add-node", "7", "--peer", &peer]).await;
    assert!(wrong.fails(1).contains("this is node 2, not node 7"), "{}", wrong.fails(1));
    assert!(wharf(&addr, &["cluster", "promote", "2"]).await.fails(4).contains("add-node 2"));

    let added = wharf(&addr, &["cluster", "add-node", "2", "--peer", &peer, "-o", "json"]).await.json();
    assert_eq!((&added[0]["role"], &added[1]["role"]), (&"leader".into(), &"learner".into()), "{added}");
    let safe = wharf(&addr, &["cluster", "safe-to-stop", "2", "-o", "json"]).await.json();
    assert_eq!(safe["safe"], true, "a learner: {safe}");
    let unsafe_ = wharf(&addr, &["cluster", "safe-to-stop", "1"]).await;
    assert_eq!(unsafe_.exit(), 3);
    let promoted = wharf(&addr, &["cluster", "promote", "2", "-o", "json"]).await.json();
    assert_eq!(promoted[1]["role"], "voter", "{promoted}");
    wharf(&addr, &["cluster", "promote", "2"]).await.ok();
    assert_eq!(wharf(&addr, &["cluster", "safe-to-stop", "2"]).await.exit(), 3, "two voters need each other");
    let taken = wharf(&addr, &["cluster", "snapshot", "-o", "json"]).await.json();
    assert!(taken.as_array().unwrap().iter().all(|node| node["index"].as_u64() > Some(0)), "{taken}");

    let asks = wharf(&addr, &["cluster", "remove", "2"]).await;
    assert!(asks.fails(2).contains("--yes"), "{}", asks.fails(2));
    assert!(wharf(&addr, &["cluster", "remove", "9", "--yes"]).await.fails(4).contains("no member"));
    assert!(wharf(&addr, &["cluster", "remove", "1", "2", "--yes"]).await.fails(1).contains("no voter would remain"));
    let left = wharf(&addr, &["cluster", "remove", "2", "--yes", "-o", "json"]).await.json();
    assert_eq!(left.as_array().unwrap().len(), 1, "{left}");
    scene.cluster.forget(2).await.unwrap();
    wharf(&addr, &["cluster", "status"]).await.ok();
}
