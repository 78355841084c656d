//! A cluster of real processes on loopback: killed, frozen, restarted, wiped, cut off.
//!
//! The processes are those of [`crate::cli::local`]; what tests add are proxies, faults that are
//! recorded in the history (as `node-1` and so on), agreement of the nodes, and files that stay, with
//! the ends of the logs printed, if the test fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::history::{Fault, Recorder};
use super::proxy::{Direction, Proxy};
use super::wait;
use crate::cli::local::{self, Usage};
use crate::client::{self, Client, NodeStatus};
use crate::config::Config;
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
/// What nodes log: enough to tell what they went through.
const LOG_LEVEL: &str = "info,openraft=warn";
/// Lines of each log that a failing test prints.
const TAIL_LINES: usize = 25;

/// What a cluster is to be.
#[derive(Clone)]
pub struct Options {
    /// The `wharf` binary: `env!("CARGO_BIN_EXE_wharf")` in a test.
    pub binary: PathBuf,
    pub nodes: u64,
    /// Puts a proxy in front of each node's client port, and has the node name the proxy's address
    /// as its own: whoever follows the leader passes it.
    pub proxied: bool,
    /// What else the nodes' configurations should have.
    pub configure: Arc<dyn Fn(&mut Config) + Send + Sync>,
}

impl Options {
    /// Three nodes, no proxies.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), nodes: 3, proxied: false, configure: Arc::new(|_| {}) }
    }
}

/// What went wrong with the cluster itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process, or waiting for it.
    #[error("{0}")]
    Process(String),
    #[error("cannot start a proxy: {0}")]
    Proxy(#[from] std::io::Error),
    #[error(transparent)]
    Call(#[from] client::Error),
    #[error("there is no such node")]
    NoSuchNode,
    #[error("nodes disagree at index {index}: {hashes:?}")]
    Disagree { index: u64, hashes: Vec<String> },
}

fn process(error: anyhow::Error) -> Error {
    Error::Process(format!("{error:#}"))
}

/// See the module.
pub struct Cluster {
    inner: local::Cluster,
    proxies: BTreeMap<NodeId, Proxy>,
    frozen: BTreeSet<NodeId>,
    /// Goes past the proxies, and asks whom it is told to ask.
    control: Client,
    recorder: Option<Recorder>,
}

impl Cluster {
    /// Starts a cluster and waits until it serves.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let mut proxies = BTreeMap::new();
        if options.proxied {
            for node in 1..=options.nodes {
                // Nodes have addresses once they are about to start.
                proxies.insert(node, Proxy::start("").await?);
            }
        }
        let advertised: BTreeMap<NodeId, String> = proxies.iter().map(|(node, proxy)| (*node, proxy.addr())).collect();
        let configure = options.configure;
        let configure = move |config: &mut Config| {
            config.advertise.client = advertised.get(&config.node).cloned();
            configure(config);
        };
        let nodes = local::Options {
            nodes: options.nodes,
            program: Some(options.binary),
            log_level: LOG_LEVEL.into(),
            configure: Arc::new(configure),
            ..local::Options::default()
        };
        let inner = local::Cluster::start(nodes).await.map_err(process)?;
        for node in inner.nodes() {
            if let Some(proxy) = proxies.get(&node.id) {
                proxy.set_target(&*node.client_addr);
            }
        }
        let control = Client::builder(&inner.addrs()).follow_leader(false).build()?;
        let mut cluster = Self { inner, proxies, frozen: BTreeSet::new(), control, recorder: None };
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    /// Faults are recorded there from now on.
    pub fn record_to(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Where its files lie; for a test's own files too.
    pub fn dir(&self) -> &Path {
        self.inner.dir()
    }

    /// The nodes' numbers.
    pub fn ids(&self) -> Vec<NodeId> {
        self.inner.ids()
    }

    /// Client addresses as the nodes themselves listen, past every proxy.
    pub fn addrs(&self) -> String {
        self.inner.addrs()
    }

    /// Client addresses through the proxies.
    pub fn proxied_addrs(&self) -> String {
        let addrs: Vec<String> = self.proxies.values().map(Proxy::addr).collect();
        addrs.join(",")
    }

    /// The client address of one node, past its proxy.
    pub fn addr(&self, node: NodeId) -> Result<&str, Error> {
        Ok(&self.inner.node(node).map_err(process)?.client_addr)
    }

    /// A new client, with connections of its own. Goes past the proxies.
    pub fn client(&self) -> Result<Client, Error> {
        // With proxies the leader's address is its proxy's.
        Ok(Client::builder(&self.addrs()).follow_leader(self.proxies.is_empty()).build()?)
    }

    /// A client of these nodes only, though others lead.
    pub fn client_of(&self, nodes: &[NodeId]) -> Result<Client, Error> {
        let addrs = nodes.iter().map(|node| self.addr(*node)).collect::<Result<Vec<_>, _>>()?;
        Ok(Client::builder(&addrs.join(",")).follow_leader(false).build()?)
    }

    /// Waits until every started node knows a leader and the cluster serves.
    pub async fn wait_ready(&mut self) -> Result<(), Error> {
        self.inner.ready(READY_WITHIN).await.map_err(process)?;
        // A linearizable read: there is a leader, and a quorum follows it.
        self.control.with_timeout(READY_WITHIN).list_queues("").await?;
        Ok(())
    }

    /// The number of the leader; waits until there is one.
    pub async fn leader(&self) -> Result<NodeId, Error> {
        self.inner.leader(LEADER_WITHIN).await.map_err(process)
    }

    /// Who leads after `former`, which the others still name until they miss it.
    pub async fn successor(&self, former: NodeId) -> Result<NodeId, Error> {
        let look = || async { self.leader().await.ok().filter(|leader| *leader != former) };
        let found = wait::until("another leader", LEADER_WITHIN, look).await;
        found.map_err(|late| Error::Process(late.to_string()))
    }

    /// A node that runs and does not lead.
    pub async fn follower(&self) -> Result<NodeId, Error> {
        let leader = self.leader().await?;
        self.up().map(|node| node.id).find(|id| *id != leader).ok_or(Error::NoSuchNode)
    }

    /// What one node sees.
    pub async fn status(&self, node: NodeId) -> Result<NodeStatus, Error> {
        Ok(self.control.status_of(self.addr(node)?, STATUS_WITHIN).await?)
    }

    /// What one node's process has used so far.
    pub fn usage(&self, node: NodeId) -> Result<Usage, Error> {
        self.inner.node(node).and_then(local::Node::usage).map_err(process)
    }

    /// SIGKILL.
    pub async fn kill(&mut self, node: NodeId) -> Result<(), Error> {
        self.fault(node, Fault::Killed);
        self.inner.kill(node).await.map_err(process)
    }

    /// SIGKILL for all at once.
    pub async fn kill_all(&mut self) -> Result<(), Error> {
        for node in self.ids() {
            self.fault(node, Fault::Killed);
        }
        self.inner.kill_all().await.map_err(process)
    }

    /// SIGTERM; waits for the end in good order.
    pub async fn stop(&mut self, node: NodeId) -> Result<(), Error> {
        self.fault(node, Fault::Drained);
        self.inner.stop(node, STOP_WITHIN).await.map_err(process)
    }

    /// SIGSTOP.
    pub fn freeze(&mut self, node: NodeId) -> Result<(), Error> {
        self.inner.freeze(node).map_err(process)?;
        self.frozen.insert(node);
        self.fault(node, Fault::Frozen);
        Ok(())
    }

    /// SIGCONT.
    pub fn thaw(&mut self, node: NodeId) -> Result<(), Error> {
        self.fault(node, Fault::Healed);
        self.frozen.remove(&node);
        self.inner.thaw(node).map_err(process)
    }

    /// Starts a node that is down, and waits until it knows a leader.
    pub async fn restart(&mut self, node: NodeId) -> Result<(), Error> {
        self.spawn(node)?;
        self.wait_ready().await
    }

    /// Starts every node that is down, and waits until the cluster serves.
    pub async fn restart_all(&mut self) -> Result<(), Error> {
        let down: Vec<NodeId> = self.inner.nodes().iter().filter(|node| !node.runs()).map(|node| node.id).collect();
        down.into_iter().try_for_each(|node| self.spawn(node))?;
        self.wait_ready().await
    }

    /// Starts one more node, that waits to be added (`wharf serve --join`).
    pub async fn join(&mut self, node: NodeId) -> Result<(), Error> {
        self.inner.join(node).await.map_err(process)?;
        self.ask_anew()
    }

    /// Ends a node that was removed from the cluster, and knows it no more.
    pub async fn forget(&mut self, node: NodeId) -> Result<(), Error> {
        self.inner.forget(node).await.map_err(process)?;
        self.ask_anew()
    }

    /// Gives a node that is down other ports, as if its machine had moved.
    pub async fn relocate(&mut self, node: NodeId) -> Result<(), Error> {
        self.inner.relocate(node).await.map_err(process)?;
        self.ask_anew()
    }

    /// Where other nodes reach a node.
    pub fn peer_addr(&self, node: NodeId) -> Result<&str, Error> {
        Ok(&self.inner.node(node).map_err(process)?.peer_addr)
    }

    fn ask_anew(&mut self) -> Result<(), Error> {
        self.control = Client::builder(&self.inner.addrs()).follow_leader(false).build()?;
        Ok(())
    }

    /// Starts a node that is down and waits for nothing.
    pub fn spawn(&mut self, node: NodeId) -> Result<(), Error> {
        self.inner.restart(node).map_err(process)?;
        self.fault(node, Fault::Healed);
        Ok(())
    }

    /// Kills a node and removes all that it has on disk.
    pub async fn wipe(&mut self, node: NodeId) -> Result<(), Error> {
        self.kill(node).await?;
        self.inner.wipe(node).map_err(process)
    }

    /// The proxy in front of a node.
    pub fn proxy(&self, node: NodeId) -> Result<&Proxy, Error> {
        self.proxies.get(&node).ok_or(Error::NoSuchNode)
    }

    /// Cuts all proxies: whoever goes through them is cut off from the whole cluster.
    pub fn cut_all(&self, direction: Direction) {
        self.proxies.values().for_each(|proxy| proxy.cut(direction));
    }

    pub fn heal_all(&self) {
        self.proxies.values().for_each(Proxy::heal);
    }

    /// What a node logged, over all its lives.
    pub fn log(&self, node: NodeId) -> Result<String, Error> {
        Ok(tail(&self.inner.node(node).map_err(process)?.log_file(), usize::MAX))
    }

    /// Every node that is up has the same state at one index, and a recount finds nothing wrong.
    pub async fn check_agreement(&self) -> Result<u64, Error> {
        let index = self.control.fingerprint().await?;
        let asked = self.up().map(|node| self.control.state_hash(&node.client_addr, index, FINGERPRINT_WITHIN));
        let mut hashes = Vec::new();
        for state in futures::future::join_all(asked).await {
            let state = state?;
            hashes.push(match state.violations.is_empty() {
                true => state.hash,
                false => return Err(Error::Disagree { index, hashes: state.violations }),
            });
        }
        let agree = hashes.iter().all(|hash| *hash == hashes[0]);
        if agree { Ok(index) } else { Err(Error::Disagree { index, hashes }) }
    }

    fn up(&self) -> impl Iterator<Item = &local::Node> {
        self.inner.nodes().iter().filter(|node| node.runs() && !self.frozen.contains(&node.id))
    }

    fn fault(&self, node: NodeId, fault: Fault) {
        if let Some(recorder) = &self.recorder {
            recorder.fault(&format!("node-{node}"), fault);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.inner.keep();
        eprintln!("\nthe cluster's files are in {}", self.dir().display());
        for node in self.inner.nodes() {
            eprintln!("node {}:\n{}", node.id, tail(&node.log_file(), TAIL_LINES));
        }
    }
}

/// The last lines of a log.
pub(super) fn tail(log: &Path, lines: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
