//! Three Raft nodes over real tonic and the real log on a simulated disk: the leader loses power
//! under load and comes back. The same seed gives the same bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tonic::transport::Server;
use wharf::machine::command::{Command, CreateQueue, NewPackage, Op, QueueSettings, Submit};
use wharf::node::listen;
use wharf::raft::bootstrap::BootstrapNode;
use wharf::raft::handle::Lane;
use wharf::raft::snapshots::Blocking;
use wharf::raft::types::Member;
use wharf::raft::{Handle, Options, Started, peer_server, start};
use wharf::storage::disk::{Crash, Disk, SimDisk, read_whole};
use wharf::storage::home::Home;
use wharf::storage::wal::{Flusher, Options as WalOptions};
use wharf::testkit::sim::entropy;
use wharf::testkit::sim::world::{self, mix};
use wharf::types::limits;

use crate::elsewhere;

const NODES: u64 = 3;
const DIR: &str = "/data";
const PORT: u16 = 7412;

/// What the run saw, in order.
#[derive(Clone, Default)]
struct Seen {
    handles: Arc<Mutex<BTreeMap<u64, Handle>>>,
    confirmed: Arc<Mutex<Vec<(Duration, String)>>>,
}

fn host(node: u64) -> String {
    format!("node-{node}")
}

fn wal_options() -> WalOptions {
    WalOptions { flusher: Flusher::Task, segment_bytes: 256 << 10, first_segment_bytes: 64 << 10, cache_bytes: 8 << 20 }
}

async fn node(node: u64, seed: u64, disk: SimDisk, seen: Seen) -> turmoil::Result {
    let addr = |node| format!("{}:{PORT}", host(node));
    let list = (1..=NODES).map(|node| BootstrapNode {
        node,
        peer_addr: addr(node),
        client_addr: String::new(),
        admin_addr: String::new(),
    });
    let env = world::env(mix(seed ^ node));
    let home = Home::open(Arc::new(disk), Path::new(DIR), node, env.random.next(), wal_options())?;
    let listener = env.net.bind(&format!("0.0.0.0:{PORT}")).await?;
    let Started { handle, peer, mut fatal } = start(Options {
        node,
        member: Member { peer_addr: addr(node), ..Member::default() },
        bootstrap: list.collect(),
        machine_version: 1,
        env,
        home,
        blocking: Blocking::Inline,
        skip_entry: None,
        tuning: Default::default(),
    })
    .await?;
    let incoming = listen::incoming(listener, "peer", limits::MAX_CONNECTIONS);
    tokio::spawn(peer_server::configure(Server::builder()).add_service(peer).serve_with_incoming(incoming));
    seen.handles.lock().insert(node, handle.clone());
    tokio::select! {
        biased;
        fatal = fatal.recv() => Err(fatal.map_or_else(|| "raft ended".into(), |fatal| fatal.to_string().into())),
        () = load(handle, seen) => Ok(()),
    }
}

/// Submits whenever this node leads; notes what was confirmed.
async fn load(handle: Handle, seen: Seen) {
    let mut standing = handle.standing();
    let mut next = 0;
    loop {
        let Some(term) = standing.borrow_and_update().leading else {
            if standing.changed().await.is_err() {
                return;
            }
            continue;
        };
        if next == 0 {
            let queue = CreateQueue { name: "q".into(), settings: Some(QueueSettings::default()) };
            let create = Command { op: Some(Op::CreateQueue(queue)) };
            let _ = handle.propose(Lane::Settle, create, Duration::from_secs(5)).await;
        }
        next += 1;
        let id = format!("t{term}-{next}");
        let package = NewPackage {
            queue: "q".into(),
            id: id.clone(),
            payload: Bytes::from(vec![next as u8; 200]),
            content_hash: next,
            ..NewPackage::default()
        };
        let submit = Command { op: Some(Op::Submit(Submit { packages: vec![package], atomic: false })) };
        if handle.propose(Lane::Submit, submit, Duration::from_secs(5)).await.is_ok() {
            seen.confirmed.lock().push((turmoil::sim_elapsed().unwrap_or_default(), id));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// What a run leaves behind.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Left {
    confirmed: Vec<(Duration, String)>,
    /// By node and name.
    files: BTreeMap<String, Vec<u8>>,
}

/// One run: form, work, lose the leader's power, go on, get it back, settle.
fn run(seed: u64) -> Left {
    entropy::fix();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .simulation_duration(Duration::from_secs(120))
        .tick_duration(Duration::from_millis(1))
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(Duration::from_millis(2))
        .tcp_capacity(4096)
        .build();
    let seen = Seen::default();
    let mut disks = BTreeMap::new();
    for number in 1..=NODES {
        let disk = SimDisk::new();
        disks.insert(number, disk.clone());
        let seen = seen.clone();
        sim.host(host(number), move || node(number, seed, disk.clone(), seen.clone()));
    }
    let leader = |seen: &Seen| {
        let handles = seen.handles.lock();
        let leading = |handle: &&Handle| handle.standing().borrow().leading.is_some();
        handles.values().find(leading).map(Handle::node)
    };
    let confirmed = |seen: &Seen| seen.confirmed.lock().len();

    step_until(&mut sim, seed, "the first confirms", || confirmed(&seen) >= 100);
    let lost = leader(&seen).expect("one confirmed");
    let handle = seen.handles.lock().remove(&lost);
    drop(handle);
    sim.crash(host(lost));
    disks[&lost].crash(Crash::Tear(mix(seed)));
    let before = confirmed(&seen);
    step_until(&mut sim, seed, "confirms under another leader", || confirmed(&seen) >= before + 100);
    assert_ne!(leader(&seen), Some(lost), "seed {seed}");

    sim.bounce(host(lost));
    let caught_up = || {
        let handles = seen.handles.lock();
        let Some(back) = handles.get(&lost) else { return false };
        back.status().applied_index > 150
    };
    step_until(&mut sim, seed, "the old leader's return", caught_up);
    let after = confirmed(&seen);
    let all_have = |after: usize| {
        let confirmed = seen.confirmed.lock();
        let handles = seen.handles.lock();
        handles.len() as u64 == NODES
            && handles.values().all(|handle| {
                handle.view(|machine| confirmed[..after].iter().all(|(_, id)| machine.package("q", id).is_ok()))
            })
    };
    step_until(&mut sim, seed, "every confirmed package on every node", || all_have(after));

    // Sockets and timers of the hosts end with them.
    seen.handles.lock().clear();
    drop(sim);
    let mut files = BTreeMap::new();
    for (node, disk) in &disks {
        let log = Path::new(DIR).join("log");
        for name in disk.list(&log).expect("a directory") {
            let bytes = read_whole(disk, &log.join(&name), u64::MAX).expect("a file");
            files.insert(format!("{node}/{name}"), bytes);
        }
    }
    let confirmed = seen.confirmed.lock().clone();
    Left { confirmed, files }
}

fn step_until(sim: &mut turmoil::Sim<'_>, seed: u64, what: &str, mut done: impl FnMut() -> bool) {
    while !done() {
        if let Err(error) = sim.step() {
            panic!("seed {seed}: waiting for {what}: {error}");
        }
        assert!(sim.elapsed() < Duration::from_secs(60), "seed {seed}: no {what} within a minute");
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("WHARF_SEED") {
        Ok(seed) => vec![seed.parse().expect("WHARF_SEED is a number")],
        Err(_) => vec![1, 2],
    }
}

const TEST: &str = "raft::a_leader_that_loses_power_loses_nothing_and_the_same_seed_gives_the_same_bytes";

#[test]
fn a_leader_that_loses_power_loses_nothing_and_the_same_seed_gives_the_same_bytes() {
    for seed in seeds() {
        if elsewhere::is_here(|| run(seed)) {
            return;
        }
        let [first, second, other]: [Left; 3] = elsewhere::run_all(TEST, [seed, seed, seed + 1]);
        let gap = first.confirmed.windows(2).map(|two| two[1].0 - two[0].0).max().unwrap_or_default();
        println!("seed {seed}: {} confirmed, longest pause {gap:?}", first.confirmed.len());
        let differs = first.confirmed.iter().zip(&second.confirmed).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}: the runs part here");
        assert!(first == second, "seed {seed}: the same seed gave other bytes");
        assert!(first != other, "seed {seed}: the seed decides nothing");
    }
}
