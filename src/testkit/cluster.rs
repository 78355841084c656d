//! A cluster of real processes on loopback: killed, frozen, restarted, wiped, cut off.
//!
//! Its files lie in a temporary directory, which stays if the test fails: each node's configuration,
//! data and log. Faults are recorded in the history, if one is given, as `node-1` and so on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::history::{Fault, Recorder};
use super::process::Process;
use super::proxy::{Direction, Proxy};
use super::wait::{self, Late};
use crate::client::{self, Client, NodeStatus};
use crate::types::NodeId;

/// A whole cluster is up within this, on a slow machine.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// There is a leader again within this.
const LEADER_WITHIN: Duration = Duration::from_secs(15);
/// A node that is asked for its status answers within this, or counts as gone.
const STATUS_WITHIN: Duration = Duration::from_millis(500);
/// A node that was told to stop is gone within this.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Every node reached a fingerprinted index within this.
const FINGERPRINT_WITHIN: Duration = Duration::from_secs(15);
/// Lines of each log that a failing test prints.
const TAIL_LINES: usize = 25;
/// Ports are taken from here: below the range from which the kernel serves outgoing connections, so
/// that a node that restarts finds its own still free.
const PORTS: std::ops::Range<u16> = 12_000..30_000;

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `wharf` binary: `env!("CARGO_BIN_EXE_wharf")` in a test.
    pub binary: PathBuf,
    pub nodes: u64,
    /// Puts a proxy in front of each node's client port, and has the node name the proxy's address
    /// as its own: whoever follows the leader passes it.
    pub proxied: bool,
    /// More lines of configuration, with dotted keys: `raft.heartbeat = "50ms"`.
    pub config: Vec<String>,
}

impl Options {
    /// Three nodes, no proxies.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), nodes: 3, proxied: false, config: Vec::new() }
    }
}

/// What went wrong with the cluster itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error(transparent)]
    Late(#[from] Late),
    #[error(transparent)]
    Call(#[from] client::Error),
    #[error("no free port in {PORTS:?}")]
    NoPort,
    #[error("there is no node {0}")]
    NoSuchNode(NodeId),
    #[error("node {node} ended by itself; its log ends with\n{tail}")]
    Ended { node: NodeId, tail: String },
    #[error("nodes disagree at index {index}: {hashes:?}")]
    Disagree { index: u64, hashes: Vec<String> },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Io { what: what.into(), error }
}

/// See the module.
pub struct Cluster {
    options: Options,
    /// None: kept, since the test failed.
    dir: Option<TempDir>,
    path: PathBuf,
    nodes: BTreeMap<NodeId, Node>,
    control: Client,
    recorder: Option<Recorder>,
}

struct Node {
    client_addr: String,
    admin_addr: String,
    proxy: Option<Proxy>,
    process: Option<Process>,
    frozen: bool,
}

impl Cluster {
    /// Starts a cluster and waits until it serves.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let mut cluster = Self::prepare(options).await?;
        for node in cluster.ids() {
            cluster.spawn(node)?;
        }
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    async fn prepare(options: Options) -> Result<Self, Error> {
        let dir = tempfile::Builder::new()
            .prefix("wharf-test-")
            .tempdir()
            .map_err(io_error("cannot make a temporary directory"))?;
        let ports = free_ports(options.nodes as usize * 3)?;
        let addr = |port: u16| format!("127.0.0.1:{port}");
        let peers: Vec<String> =
            ports.chunks(3).zip(1..).map(|(ports, node)| format!("\"{node}={}\"", addr(ports[1]))).collect();
        let mut nodes = BTreeMap::new();
        for (ports, id) in ports.chunks(3).zip(1..) {
            let (client_addr, peer_addr, admin_addr) = (addr(ports[0]), addr(ports[1]), addr(ports[2]));
            let proxy = match options.proxied {
                true => Some(Proxy::start(&*client_addr).await.map_err(io_error("cannot start a proxy"))?),
                false => None,
            };
            let home = dir.path().join(format!("node-{id}"));
            std::fs::create_dir(&home).map_err(io_error("cannot make a node's directory"))?;
            let mut config = String::new();
            let mut line = |text: String| writeln!(config, "{text}").expect("strings take any text");
            line(format!("node = {id}"));
            line(format!("data_dir = \"{}\"", home.join("data").display()));
            line(format!("listen.client = \"{client_addr}\""));
            line(format!("listen.peer = \"{peer_addr}\""));
            line(format!("listen.admin = \"{admin_addr}\""));
            if let Some(proxy) = &proxy {
                line(format!("advertise.client = \"{}\"", proxy.addr()));
            }
            line("cluster.name = \"test\"".into());
            line(format!("cluster.nodes = [{}]", peers.join(", ")));
            options.config.iter().cloned().for_each(line);
            std::fs::write(home.join("wharf.toml"), config).map_err(io_error("cannot write a configuration"))?;
            nodes.insert(id, Node { client_addr, admin_addr, proxy, process: None, frozen: false });
        }
        let direct: Vec<&str> = nodes.values().map(|node: &Node| &*node.client_addr).collect();
        let control = Client::builder(&direct.join(",")).follow_leader(false).build()?;
        let path = dir.path().to_owned();
        Ok(Self { options, dir: Some(dir), path, nodes, control, recorder: None })
    }

    /// Faults are recorded there from now on.
    pub fn record_to(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Where its files lie; for a test's own files too.
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// The binary that its nodes run.
    pub fn binary(&self) -> &Path {
        &self.options.binary
    }

    /// The nodes' numbers.
    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Client addresses as the nodes themselves listen, past every proxy.
    pub fn addrs(&self) -> String {
        let addrs: Vec<&str> = self.nodes.values().map(|node| &*node.client_addr).collect();
        addrs.join(",")
    }

    /// Client addresses through the proxies.
    pub fn proxied_addrs(&self) -> String {
        let addrs: Vec<String> = self.nodes.values().filter_map(|node| Some(node.proxy.as_ref()?.addr())).collect();
        addrs.join(",")
    }

    /// The client address of one node, past its proxy.
    pub fn addr(&self, node: NodeId) -> Result<&str, Error> {
        Ok(&self.node(node)?.client_addr)
    }

    /// The address of one node's HTTP listener.
    pub fn admin_addr(&self, node: NodeId) -> Result<&str, Error> {
        Ok(&self.node(node)?.admin_addr)
    }

    /// A new client, with connections of its own. Goes past the proxies.
    pub fn client(&self) -> Result<Client, Error> {
        // With proxies the leader's address is its proxy's.
        Ok(Client::builder(&self.addrs()).follow_leader(!self.options.proxied).build()?)
    }

    /// A client of these nodes only, though others lead.
    pub fn client_of(&self, nodes: &[NodeId]) -> Result<Client, Error> {
        let addrs = nodes.iter().map(|node| self.addr(*node)).collect::<Result<Vec<_>, _>>()?;
        Ok(Client::builder(&addrs.join(",")).follow_leader(false).build()?)
    }

    /// Waits until every started node knows a leader and the cluster serves.
    pub async fn wait_ready(&mut self) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + READY_WITHIN;
        for node in self.ids() {
            self.wait_node_ready(node, deadline.saturating_duration_since(tokio::time::Instant::now())).await?;
        }
        // A linearizable read: there is a leader, and a quorum follows it.
        self.control.with_timeout(READY_WITHIN).list_queues("").await?;
        Ok(())
    }

    async fn wait_node_ready(&mut self, id: NodeId, within: Duration) -> Result<(), Error> {
        let control = self.control.clone();
        let node = self.node_mut(id)?;
        if node.frozen {
            return Ok(());
        }
        let Some(process) = &mut node.process else { return Ok(()) };
        let addr = &node.client_addr;
        let ready = wait::until(format!("node {id}, ready"), within, || {
            let ended = !process.is_running();
            let control = &control;
            async move {
                if ended {
                    return Some(false);
                }
                let status = control.status_of(addr, STATUS_WITHIN).await.ok()?;
                (status.leader != 0).then_some(true)
            }
        });
        match ready.await? {
            true => Ok(()),
            false => Err(Error::Ended { node: id, tail: process.log_tail(TAIL_LINES) }),
        }
    }

    /// The number of the leader; waits until there is one.
    pub async fn leader(&self) -> Result<NodeId, Error> {
        let up: Vec<&str> = self.nodes.values().filter(|node| node.is_up()).map(|node| &*node.client_addr).collect();
        let leader = wait::until("a leader", LEADER_WITHIN, || async {
            let asked = up.iter().map(|addr| self.control.status_of(addr, STATUS_WITHIN));
            let answers: Vec<NodeStatus> = futures::future::join_all(asked).await.into_iter().flatten().collect();
            let leaders = answers.into_iter().filter(|status| status.leader == status.node);
            leaders.max_by_key(|status| status.term).map(|status| status.node)
        });
        Ok(leader.await?)
    }

    /// A node that does not lead.
    pub async fn follower(&self) -> Result<NodeId, Error> {
        let leader = self.leader().await?;
        let up = self.nodes.iter().filter(|(_, node)| node.is_up()).map(|(id, _)| *id);
        up.into_iter().find(|id| *id != leader).ok_or(Error::NoSuchNode(0))
    }

    /// What one node sees.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, Error> {
        Ok(self.control.status_of(self.addr(node)?, STATUS_WITHIN).await?)
    }

    /// SIGKILL.
    pub async fn kill(&mut self, node: NodeId) -> Result<(), Error> {
        let Some(mut process) = self.node_mut(node)?.process.take() else { return Ok(()) };
        self.fault(node, Fault::Killed);
        process.kill().await.map_err(io_error("cannot kill a node"))
    }

    /// SIGKILL for all, as close together as can be.
    pub async fn kill_all(&mut self) -> Result<(), Error> {
        for node in self.ids() {
            self.fault(node, Fault::Killed);
        }
        let processes = self.nodes.values_mut().filter_map(|node| node.process.take());
        let killed = futures::future::join_all(processes.map(|mut process| async move { process.kill().await })).await;
        killed.into_iter().collect::<Result<_, _>>().map_err(io_error("cannot kill a node"))
    }

    /// SIGTERM; waits for the end in good order.
    pub async fn stop(&mut self, node: NodeId) -> Result<(), Error> {
        let Some(mut process) = self.node_mut(node)?.process.take() else { return Ok(()) };
        self.fault(node, Fault::Drained);
        process.terminate().map_err(io_error("cannot stop a node"))?;
        process.wait(STOP_WITHIN).await.map(drop).map_err(io_error("a node does not stop"))
    }

    /// SIGSTOP.
    pub fn freeze(&mut self, node: NodeId) -> Result<(), Error> {
        let frozen = self.node_mut(node)?;
        let process = frozen.process.as_ref().ok_or(Error::NoSuchNode(node))?;
        process.freeze().map_err(io_error("cannot freeze a node"))?;
        frozen.frozen = true;
        self.fault(node, Fault::Frozen);
        Ok(())
    }

    /// SIGCONT.
    pub fn thaw(&mut self, node: NodeId) -> Result<(), Error> {
        self.fault(node, Fault::Healed);
        let frozen = self.node_mut(node)?;
        frozen.frozen = false;
        let process = frozen.process.as_ref().ok_or(Error::NoSuchNode(node))?;
        process.thaw().map_err(io_error("cannot continue a node"))
    }

    /// Starts a node that is down, and waits until it knows a leader.
    pub async fn restart(&mut self, node: NodeId) -> Result<(), Error> {
        self.spawn(node)?;
        self.fault(node, Fault::Healed);
        self.wait_node_ready(node, READY_WITHIN).await
    }

    /// Starts every node that is down, and waits until the cluster serves.
    pub async fn restart_all(&mut self) -> Result<(), Error> {
        for node in self.ids() {
            if self.node(node)?.process.is_none() {
                self.spawn(node)?;
                self.fault(node, Fault::Healed);
            }
        }
        self.wait_ready().await
    }

    /// Starts a node that is down and does not wait for anything.
    pub fn spawn(&mut self, id: NodeId) -> Result<(), Error> {
        let home = self.home(id);
        let binary = self.options.binary.clone();
        let node = self.node_mut(id)?;
        let config = home.join("wharf.toml");
        let args = [std::ffi::OsStr::new("serve"), "--config".as_ref(), config.as_ref()];
        let name = format!("node-{id}");
        let started = Process::start(name, &home.join("log"), &binary, args, [] as [(&str, &str); 0]);
        node.process = Some(started.map_err(io_error("cannot start a node"))?);
        node.frozen = false;
        Ok(())
    }

    /// Waits until the process of a node ended by itself; answers its exit code.
    pub async fn wait_ended(&mut self, node: NodeId, within: Duration) -> Result<Option<i32>, Error> {
        let process = self.node_mut(node)?.process.as_mut().ok_or(Error::NoSuchNode(node))?;
        let status = process.wait(within).await.map_err(io_error("a node still runs"))?;
        self.node_mut(node)?.process = None;
        Ok(status.code())
    }

    /// Removes all that a node which is down has on disk.
    pub async fn wipe(&mut self, node: NodeId) -> Result<(), Error> {
        self.kill(node).await?;
        std::fs::remove_dir_all(self.home(node).join("data")).map_err(io_error("cannot wipe a node"))
    }

    /// The proxy in front of a node.
    pub fn proxy(&self, node: NodeId) -> Result<&Proxy, Error> {
        self.node(node)?.proxy.as_ref().ok_or(Error::NoSuchNode(node))
    }

    /// Cuts all proxies: whoever goes through them is cut off from the whole cluster.
    pub fn cut_all(&self, direction: Direction) {
        self.proxies().for_each(|proxy| proxy.cut(direction));
    }

    pub fn heal_all(&self) {
        self.proxies().for_each(Proxy::heal);
    }

    fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.nodes.values().filter_map(|node| node.proxy.as_ref())
    }

    /// The last lines of a node's log.
    pub fn log(&self, node: NodeId) -> String {
        std::fs::read_to_string(self.home(node).join("log")).unwrap_or_default()
    }

    /// Every node that is up has the same state at one index, and a recount finds nothing wrong.
    pub async fn check_agreement(&self) -> Result<u64, Error> {
        let index = self.control.fingerprint().await?;
        let up = self.nodes.values().filter(|node| node.is_up());
        let asked = up.map(|node| self.control.state_hash(&node.client_addr, index, FINGERPRINT_WITHIN));
        let mut hashes = Vec::new();
        for hash in futures::future::join_all(asked).await {
            let hash = hash?;
            hashes.push(match hash.violations.is_empty() {
                true => hash.hash,
                false => format!("{}: {}", hash.hash, hash.violations.join("; ")),
            });
        }
        let agree = hashes.iter().all(|hash| *hash == hashes[0] && !hash.contains(':'));
        if agree { Ok(index) } else { Err(Error::Disagree { index, hashes }) }
    }

    fn home(&self, node: NodeId) -> PathBuf {
        self.path.join(format!("node-{node}"))
    }

    fn node(&self, node: NodeId) -> Result<&Node, Error> {
        self.nodes.get(&node).ok_or(Error::NoSuchNode(node))
    }

    fn node_mut(&mut self, node: NodeId) -> Result<&mut Node, Error> {
        self.nodes.get_mut(&node).ok_or(Error::NoSuchNode(node))
    }

    fn fault(&self, node: NodeId, fault: Fault) {
        if let Some(recorder) = &self.recorder {
            recorder.fault(&format!("node-{node}"), fault);
        }
    }
}

impl Node {
    fn is_up(&self) -> bool {
        self.process.is_some() && !self.frozen
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(dir) = self.dir.take() {
            eprintln!("\nthe cluster's files are in {}", dir.keep().display());
        }
        for node in self.nodes.values() {
            if let Some(process) = &node.process {
                eprint!("{}", process.log_tail(TAIL_LINES));
            }
        }
    }
}

/// Ports that nobody listens on now. Each is handed out once a process.
fn free_ports(count: usize) -> Result<Vec<u16>, Error> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Test processes that run side by side begin at different places.
    let first = (std::process::id() as u16).wrapping_mul(97) % span;
    let mut ports = Vec::with_capacity(count);
    for _ in 0..span {
        if ports.len() == count {
            return Ok(ports);
        }
        let port = PORTS.start + (first + NEXT.fetch_add(1, Ordering::Relaxed) % span) % span;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.push(port);
        }
    }
    Err(Error::NoPort)
}
