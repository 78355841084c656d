//! Three nodes in one process, over loopback, each on a runtime of its own: killing a node drops
//! its runtime, and with it every socket.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};
use tonic::transport::Server;

use super::bootstrap::BootstrapNode;
use super::handle::{Lane, ProposeError, Responder, Sink, TransferError};
use super::snapshots::Blocking;
use super::types::Member;
use super::{Fatal, Handle, Options, Started, Tuning, peer_server, start};
use crate::env::Env;
use crate::machine::command::{Command, CreateQueue, NewPackage, Op, Outcome, QueueSettings, Submit};
use crate::node::listen;
use crate::storage::disk::{Crash, SimDisk};
use crate::storage::home::Home;
use crate::storage::wal::{self, Flusher};
use crate::types::limits;

mod offices;

pub(super) const WAIT: Duration = Duration::from_secs(20);

/// What survives a node's death.
#[derive(Clone)]
pub(super) struct Store {
    disk: SimDisk,
    incarnation: u64,
}

impl Store {
    pub(super) fn new(incarnation: u64) -> Self {
        Self { disk: SimDisk::new(), incarnation }
    }

    fn open(&self, node: u64) -> Home {
        let options = wal::Options { flusher: Flusher::Thread, ..wal::Options::default() };
        Home::open(Arc::new(self.disk.clone()), Path::new("/data"), node, self.incarnation, options).unwrap()
    }
}

pub(super) struct Running {
    pub(super) handle: Handle,
    pub(super) fatal: Arc<Mutex<Option<Fatal>>>,
    runtime: Runtime,
}

pub(super) struct Cluster {
    /// The nodes that form it; later ones join.
    founders: usize,
    pub(super) addrs: Vec<SocketAddr>,
    pub(super) stores: Vec<Store>,
    /// The machine versions that the nodes apply.
    pub(super) versions: Vec<u32>,
    pub(super) nodes: Vec<Option<Running>>,
    tuning: Tuning,
}

/// Taken from the system and given back: free when a node binds it.
pub(super) fn free_addr() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Cluster {
    fn new(size: usize) -> Self {
        // Taken from the system and given back: free when the nodes bind them.
        let bound: Vec<_> = (0..size).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addrs = bound.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let stores = (0..size).map(|at| Store::new(100 + at as u64)).collect();
        let (versions, nodes) = (vec![1; size], (0..size).map(|_| None).collect());
        Self { founders: size, addrs, stores, versions, nodes, tuning: Tuning::default() }
    }

    /// Another node, that waits to be added. Answers its number.
    pub(super) async fn join(&mut self) -> u64 {
        let node = self.nodes.len() as u64 + 1;
        self.addrs.push(free_addr());
        self.stores.push(Store::new(100 + node));
        self.versions.push(1);
        self.nodes.push(None);
        self.start(node).await;
        node
    }

    pub(super) async fn started(size: usize) -> Self {
        let mut cluster = Self::new(size);
        for node in 1..=size as u64 {
            cluster.start(node).await;
        }
        cluster.leader().await;
        cluster
    }

    pub(super) async fn start(&mut self, node: u64) {
        self.try_start(node).await.expect("raft starts");
    }

    pub(super) async fn try_start(&mut self, node: u64) -> Result<(), Fatal> {
        let at = node as usize - 1;
        let home = self.stores[at].open(node);
        let addr = self.addrs[at].to_string();
        let founders = if at < self.founders { self.founders } else { 0 };
        let list = self.addrs.iter().take(founders).enumerate().map(|(at, addr)| BootstrapNode {
            node: at as u64 + 1,
            peer_addr: addr.to_string(),
            client_addr: String::new(),
            admin_addr: String::new(),
        });
        let options = Options {
            node,
            member: Member { peer_addr: addr.clone(), ..Member::default() },
            bootstrap: list.collect(),
            machine_version: self.versions[at],
            env: Env::real(),
            home,
            blocking: Blocking::Threads,
            skip_entry: None,
            tuning: self.tuning,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        match runtime.spawn(serve(options, addr)).await.unwrap() {
            Ok((handle, fatal)) => self.nodes[at] = Some(Running { handle, fatal, runtime }),
            Err(refused) => {
                runtime.shutdown_background();
                return Err(refused);
            }
        }
        Ok(())
    }

    /// As by SIGKILL: nothing is said, every socket closes.
    pub(super) async fn kill(&mut self, node: u64) {
        let running = self.nodes[node as usize - 1].take().expect("it runs");
        let gone = move || running.runtime.shutdown_timeout(WAIT);
        tokio::task::spawn_blocking(gone).await.unwrap();
        // What was written but not synced survives: only the process died.
        self.stores[node as usize - 1].disk.crash(Crash::KeepUnsynced);
    }

    pub(super) fn handle(&self, node: u64) -> Handle {
        self.nodes[node as usize - 1].as_ref().expect("it runs").handle.clone()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Running> {
        self.nodes.iter().flatten()
    }

    /// Waits for one that serves.
    pub(super) async fn leader(&self) -> Handle {
        let look = || {
            let mut leading: Vec<_> =
                self.running().filter_map(|node| Some((node.handle.standing().borrow().leading?, node))).collect();
            leading.sort_by_key(|(term, _)| *term);
            leading.pop().map(|(_, node)| node.handle.clone())
        };
        eventually("a leader", || look().ok_or(())).await
    }

    pub(super) async fn follower(&self) -> Handle {
        let leader = self.leader().await.node();
        self.running().find(|node| node.handle.node() != leader).expect("more than one node").handle.clone()
    }

    /// Waits until every running node has applied as much as the leader has now.
    pub(super) async fn settled(&self) {
        let at = |handle: &Handle| handle.view(|machine| machine.summary().applied_index);
        let applied = at(&self.leader().await);
        for node in self.running() {
            eventually("replication", || {
                let at = at(&node.handle);
                if at >= applied { Ok(()) } else { Err((node.handle.node(), at, applied)) }
            })
            .await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().filter_map(Option::take) {
            node.runtime.shutdown_background();
        }
    }
}

async fn serve(options: Options, addr: String) -> Result<(Handle, Arc<Mutex<Option<Fatal>>>), Fatal> {
    let listener = options.env.net.bind(&addr).await.expect("the port is free");
    let Started { handle, peer, fatal: mut fatal_out } = start(options).await?;
    let incoming = listen::incoming(listener, "peer", limits::MAX_CONNECTIONS);
    tokio::spawn(peer_server::configure(Server::builder()).add_service(peer).serve_with_incoming(incoming));
    let fatal = Arc::new(Mutex::new(None));
    let told = Arc::clone(&fatal);
    tokio::spawn(async move { *told.lock() = fatal_out.recv().await });
    Ok((handle, fatal))
}

/// Looks until it is so; then what was found.
pub(super) async fn eventually<T, E: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> Result<T, E>) -> T {
    let until = Instant::now() + WAIT;
    loop {
        match look() {
            Ok(found) => return found,
            Err(error) if Instant::now() > until => panic!("no {what} within {WAIT:?}: {error:?}"),
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

pub(super) fn create_queue() -> Command {
    Command { op: Some(Op::CreateQueue(CreateQueue { name: "q".into(), settings: Some(QueueSettings::default()) })) }
}

pub(super) fn submit(id: &str, payload: usize) -> Command {
    let package = NewPackage {
        queue: "q".into(),
        id: id.into(),
        payload: vec![7; payload].into(),
        content_hash: 1,
        ..NewPackage::default()
    };
    Command { op: Some(Op::Submit(Submit { packages: vec![package], atomic: false })) }
}

pub(super) async fn propose(handle: &Handle, command: Command) -> Result<Outcome, ProposeError> {
    handle.propose(Lane::Submit, command, Duration::from_secs(5)).await
}

pub(super) fn has(handle: &Handle, id: &str) -> bool {
    handle.view(|machine| machine.package("q", id).is_ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nodes_started_in_any_order_form_one_cluster() {
    let mut cluster = Cluster::new(3);
    for node in [3, 1] {
        cluster.start(node).await;
    }
    sleep(Duration::from_millis(400)).await;
    assert!(cluster.running().all(|node| node.handle.status().cluster_id.is_empty()), "not without the third");
    cluster.start(2).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    propose(&leader, submit("a", 10)).await.unwrap();
    cluster.settled().await;
    for node in cluster.running() {
        assert!(has(&node.handle, "a"));
        assert_eq!(node.handle.status().cluster_id, leader.status().cluster_id);
        assert_eq!(node.handle.status().members.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_single_node_is_a_cluster_and_recovers() {
    let mut cluster = Cluster::started(1).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    propose(&leader, submit("a", 10)).await.unwrap();
    leader.read_barrier(WAIT).await.unwrap();
    cluster.kill(1).await;
    cluster.start(1).await;
    let leader = cluster.leader().await;
    assert!(leader.wait_recovered(WAIT).await);
    assert!(has(&leader, "a"));
    assert_eq!(leader.transfer_leadership(None, WAIT).await, Err(TransferError::Alone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_follower_refuses_and_names_the_leader() {
    let cluster = Cluster::started(3).await;
    let leader = cluster.leader().await.node();
    let follower = cluster.follower().await;
    eventually("knowing the leader", || follower.standing().borrow().leader.clone().ok_or(())).await;
    match propose(&follower, create_queue()).await {
        Err(ProposeError::NotLeader { leader: Some(named) }) => assert_eq!(named.node, leader),
        other => panic!("{other:?}"),
    }
    assert!(matches!(follower.read_barrier(WAIT).await, Err(ProposeError::NotLeader { .. })));
    assert!(follower.peer_channel(leader).is_some());
    cluster.leader().await.read_barrier(WAIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn leadership_moves_where_it_is_sent() {
    let cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    let to = cluster.follower().await;
    assert_eq!(leader.transfer_leadership(Some(9), WAIT).await, Err(TransferError::NoVoter(9)));
    assert_eq!(leader.transfer_leadership(Some(to.node()), WAIT).await, Ok(to.node()));
    assert_eq!(cluster.leader().await.node(), to.node());
    propose(&to, create_queue()).await.unwrap();
    assert!(matches!(leader.transfer_leadership(None, WAIT).await, Err(TransferError::NotLeader { .. })));
}

/// Keeps submitting, wherever the leader is; notes what was confirmed and when.
async fn load(
    handles: Vec<Handle>,
    confirmed: Arc<Mutex<Vec<(u64, Instant)>>>,
    dead: Arc<AtomicU64>,
    stop: Arc<AtomicU64>,
) {
    let mut next = 0;
    while stop.load(Ordering::Relaxed) == 0 {
        next += 1;
        let id = format!("p{next}");
        // Repeated with the same id until confirmed, as clients do.
        'confirm: while stop.load(Ordering::Relaxed) == 0 {
            for handle in &handles {
                // A real client would find its connection reset.
                let alive = dead.load(Ordering::Relaxed) != handle.node();
                if alive
                    && handle.standing().borrow().leading.is_some()
                    && handle.propose(Lane::Submit, submit(&id, 100), Duration::from_millis(500)).await.is_ok()
                {
                    confirmed.lock().push((next, Instant::now()));
                    break 'confirm;
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_at_once_and_nothing_confirmed_is_lost() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    let confirmed = Arc::new(Mutex::new(Vec::new()));
    let dead = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicU64::new(0));
    let survivors: Vec<_> =
        cluster.running().map(|node| node.handle.clone()).filter(|node| node.node() != leader.node()).collect();
    // The leader's own handle is asked too, as long as it lives.
    let mut all = survivors.clone();
    all.push(leader.clone());
    let running = tokio::spawn(load(all, Arc::clone(&confirmed), Arc::clone(&dead), Arc::clone(&stop)));
    eventually("load", || if confirmed.lock().len() > 50 { Ok(()) } else { Err(()) }).await;

    let killed = Instant::now();
    dead.store(leader.node(), Ordering::Relaxed);
    cluster.kill(leader.node()).await;
    let after = |confirmed: &Vec<(u64, Instant)>| confirmed.iter().filter(|(_, at)| *at > killed).count();
    eventually("confirms after the kill", || if after(&confirmed.lock()) > 50 { Ok(()) } else { Err(()) }).await;
    stop.store(1, Ordering::Relaxed);
    running.await.unwrap();

    let confirmed = confirmed.lock().clone();
    let gap = confirmed.windows(2).map(|two| two[1].1 - two[0].1).max().unwrap();
    eprintln!("longest time without a confirm: {gap:?}");
    // By timeout alone it takes the lease and an election timeout: more than a second.
    assert!(gap < Duration::from_millis(900), "{gap:?}");
    let new = cluster.leader().await;
    new.read_barrier(WAIT).await.unwrap();
    cluster.settled().await;
    for survivor in survivors {
        for (id, _) in &confirmed {
            assert!(has(&survivor, &format!("p{id}")), "p{id} was confirmed and is lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_that_was_away_gets_what_it_missed_even_by_snapshot() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    cluster.settled().await;
    let away = cluster.follower().await.node();
    cluster.kill(away).await;
    for n in 0..20 {
        propose(&leader, submit(&format!("s{n}"), 100_000)).await.unwrap();
    }
    let at = leader.take_snapshot(WAIT).await.unwrap();
    assert!(at > 0);
    leader.inner_raft().trigger().purge_log(at).await.unwrap();
    eventually("purge", || match leader.status().purged_index {
        purged if purged == at => Ok(()),
        purged => Err(purged),
    })
    .await;
    cluster.start(away).await;
    cluster.settled().await;
    let back = cluster.handle(away);
    assert!((0..20).all(|n| has(&back, &format!("s{n}"))));
    assert_eq!(back.status().metrics.snapshots_installed, 1);
    let hash = |handle: &Handle| handle.view(|machine| machine.freeze().hash());
    // A change of leader on a slow machine adds an entry, which comes a moment later.
    eventually("equal states", || if hash(&back) == hash(&leader) { Ok(()) } else { Err(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_nodes_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    for n in 0..50 {
        propose(&leader, submit(&format!("k{n}"), 10)).await.unwrap();
    }
    for node in 1..=3 {
        cluster.kill(node).await;
    }
    for node in [2, 3, 1] {
        cluster.start(node).await;
    }
    let leader = cluster.leader().await;
    leader.read_barrier(WAIT).await.unwrap();
    assert!((0..50).all(|n| has(&leader, &format!("k{n}"))));
}

#[derive(Default)]
struct Tally {
    answers: Mutex<Vec<(u64, Result<(), ProposeError>)>>,
}

impl Sink for Tally {
    fn answer(&self, token: u64, result: Result<Outcome, ProposeError>) {
        self.answers.lock().push((token, result.map(|_| ())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_command_is_answered_once_also_when_nobody_else_lives() {
    let mut cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    propose(&leader, create_queue()).await.unwrap();
    let tally = Arc::new(Tally::default());
    let send = |token: u64| {
        let sink: Arc<dyn Sink> = tally.clone();
        leader.send(Lane::Submit, submit(&format!("t{token}"), 10), Responder::Sink(sink, token));
    };
    (0..1000).for_each(send);
    eventually("the answers", || if tally.answers.lock().len() == 1000 { Ok(()) } else { Err(()) }).await;
    assert!(tally.answers.lock().drain(..).all(|(_, result)| result.is_ok()));
    let metrics = leader.status().metrics;
    assert!(metrics.proposals < metrics.commands, "{} proposals of {} commands", metrics.proposals, metrics.commands);

    for node in (1..=3).filter(|node| *node != leader.node()) {
        cluster.kill(node).await;
    }
    (0..500).for_each(send);
    eventually("the answers", || match tally.answers.lock().len() {
        500 => Ok(()),
        len => Err(len),
    })
    .await;
    let mut answers = tally.answers.lock().clone();
    answers.sort_by_key(|(token, _)| *token);
    answers.dedup_by_key(|(token, _)| *token);
    assert_eq!(answers.len(), 500);
    for (token, result) in answers {
        let expected = matches!(result, Err(ProposeError::Unknown { .. } | ProposeError::NotLeader { .. }));
        assert!(expected, "{token}: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_that_shuts_down_hands_over_first() {
    let cluster = Cluster::started(3).await;
    let leader = cluster.leader().await;
    leader.shutdown().await;
    assert_eq!(propose(&leader, create_queue()).await.unwrap_err(), ProposeError::ShuttingDown);
    let new = eventually("another leader", || {
        let others = cluster.running().filter(|node| node.handle.node() != leader.node());
        others.map(|node| node.handle.clone()).find(|node| node.standing().borrow().leading.is_some()).ok_or(())
    })
    .await;
    propose(&new, create_queue()).await.unwrap();
}
