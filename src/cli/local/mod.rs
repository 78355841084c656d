//! A cluster of real processes on this machine: what `dev` and `demo` run, and the tests.
//!
//! Each node is this very program (`serve`) with its own directory, configuration file, log file
//! and ports on loopback, on a real disk. Nodes can be killed, frozen and brought back.
//!
//! Invariants: a child never outlives its parent, however that dies: children are killed when the
//! [`Cluster`] is dropped, and the kernel kills them if the parent is killed. They are in process
//! groups of their own, so that Ctrl-C in a terminal reaches the parent alone.

mod ports;
mod process;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

pub use self::process::{Process, Usage, die_with};
use crate::client::{Client, NodeStatus};
use crate::config::{self, Config};
use crate::env::Env;
use crate::types::NodeId;

/// How often a condition is looked at while waiting for it.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long one node may take to answer while waiting.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long nodes get to drain before they are killed.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// What cluster to run.
#[derive(Clone)]
pub struct Options {
    pub nodes: u64,
    /// Where the nodes' directories go, to stay. None: a temporary directory.
    pub dir: Option<PathBuf>,
    /// Where a temporary directory is made. None: where the machine has them.
    pub temporary_below: Option<PathBuf>,
    /// Client port of node 1; the others follow as in [`ports::fixed`]. None: free ports.
    pub first_port: Option<u16>,
    /// The program. None: this one.
    pub program: Option<PathBuf>,
    /// The nodes' log level.
    pub log_level: String,
    /// What else the nodes' configurations should have.
    pub configure: Arc<dyn Fn(&mut Config) + Send + Sync>,
    /// Where nodes are, that are not on loopback.
    pub hosts: BTreeMap<NodeId, Host>,
}

/// Another place for a node than loopback, on this machine.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub ip: String,
    /// What its command begins with. It must become the program, and not start it as a child.
    pub enter: Vec<OsString>,
    /// What it finds in its environment besides.
    pub env: Vec<(String, OsString)>,
    /// Where its directory of data is made. None: with its other files.
    pub data_below: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let configure = Arc::new(|_: &mut Config| {});
        Self {
            nodes: 3,
            dir: None,
            temporary_below: None,
            first_port: None,
            program: None,
            log_level: "info".into(),
            configure,
            hosts: BTreeMap::new(),
        }
    }
}

/// See the module.
pub struct Cluster {
    program: PathBuf,
    nodes: Vec<Node>,
    dir: Dir,
    options: Options,
}

/// One node, running or not.
pub struct Node {
    pub id: NodeId,
    pub client_addr: String,
    pub peer_addr: String,
    pub admin_addr: String,
    dir: PathBuf,
    data_dir: PathBuf,
    process: Option<Process>,
}

enum Dir {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Cluster {
    /// Starts all nodes at once. Does not wait for them: see [`Self::ready`].
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let dir = match options.dir.clone() {
            Some(dir) => {
                create_private(&dir)?;
                Dir::Kept(dir.canonicalize()?)
            }
            None => {
                let below = options.temporary_below.clone().unwrap_or_else(std::env::temp_dir);
                let made = tempfile::Builder::new().prefix("wharf-").tempdir_in(&below);
                let made = made.with_context(|| format!("cannot make a directory in {}", below.display()))?;
                Dir::Temporary(made)
            }
        };
        let program = match &options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("cannot find this program's own file")?,
        };
        let ports = match options.first_port {
            Some(first) => ports::fixed(first, options.nodes)?,
            None => ports::free(&Env::real(), options.nodes).await?,
        };
        let mut cluster = Self { program, nodes: Vec::new(), dir, options };
        for (id, ports) in (1..).zip(ports) {
            cluster.place(id, ports);
        }
        cluster.configure()?;
        for id in cluster.ids() {
            cluster.restart(id)?;
        }
        Ok(cluster)
    }

    /// Starts one more node, on free ports, that waits to be added.
    pub async fn join(&mut self, id: NodeId) -> anyhow::Result<()> {
        anyhow::ensure!(self.node(id).is_err(), "there is a node {id} already");
        let ports = ports::free(&Env::real(), 1).await?;
        self.place(id, ports[0]);
        self.configure_node(self.node(id)?, |config| config.cluster.join = true)?;
        self.restart(id)
    }

    /// Knows a node no more, which was removed from the cluster; it ends, and its files go.
    pub async fn forget(&mut self, id: NodeId) -> anyhow::Result<()> {
        if self.node(id)?.runs() {
            self.kill(id).await?;
        }
        let at = self.nodes.iter().position(|node| node.id == id).context("it was there")?;
        Ok(std::fs::remove_dir_all(self.nodes.remove(at).dir)?)
    }

    /// Gives a node that does not run other ports, as if its machine had moved.
    pub async fn relocate(&mut self, id: NodeId) -> anyhow::Result<()> {
        anyhow::ensure!(!self.node(id)?.runs(), "node {id} runs");
        let ports = ports::free(&Env::real(), 1).await?;
        let at = self.nodes.iter().position(|node| node.id == id).context("it was there")?;
        self.nodes.remove(at);
        self.place(id, ports[0]);
        // It is a member: who formed the cluster means nothing any more.
        self.configure_node(self.node(id)?, |config| config.cluster.join = true)
    }

    fn place(&mut self, id: NodeId, [client, peer, admin]: [u16; 3]) {
        let dir = self.dir().join(format!("node-{id}"));
        let host = self.options.hosts.get(&id);
        let ip = host.map_or("127.0.0.1", |host| &host.ip);
        let addr = |port| format!("{ip}:{port}");
        let (client_addr, peer_addr, admin_addr) = (addr(client), addr(peer), addr(admin));
        let data_dir = host.and_then(|host| host.data_below.as_ref()).unwrap_or(&dir).join("data");
        self.nodes.push(Node { id, client_addr, peer_addr, admin_addr, dir, data_dir, process: None });
        self.nodes.sort_by_key(|node| node.id);
    }

    /// Where everything lies.
    pub fn dir(&self) -> &Path {
        match &self.dir {
            Dir::Kept(dir) => dir,
            Dir::Temporary(dir) => dir.path(),
        }
    }

    /// Leaves the directory in place when the cluster is dropped.
    pub fn keep(&mut self) {
        if let Dir::Temporary(dir) = &mut self.dir {
            dir.disable_cleanup(true);
        }
    }

    /// This program, as the nodes run it.
    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, id: NodeId) -> anyhow::Result<&Node> {
        self.nodes.iter().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }

    /// All client addresses, as `--addr` takes them.
    pub fn addrs(&self) -> String {
        let addrs: Vec<&str> = self.nodes.iter().map(|node| node.client_addr.as_str()).collect();
        addrs.join(",")
    }

    /// A client of all nodes.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.addrs())?)
    }

    /// Waits until every running node knows a leader.
    pub async fn ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let client = self.client()?;
        let deadline = Instant::now() + within;
        for at in 0..self.nodes.len() {
            while self.nodes[at].process.is_some() {
                self.check_alive()?;
                let status = client.status_of(&self.nodes[at].client_addr, ANSWER_WITHIN).await;
                if status.is_ok_and(|status| status.leader != 0) {
                    break;
                }
                self.check_deadline(deadline, at)?;
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// The node that says of itself that it leads, waiting for one.
    pub async fn leader(&self, within: Duration) -> anyhow::Result<NodeId> {
        let client = self.client()?;
        let deadline = Instant::now() + within;
        loop {
            let asked = self.nodes.iter().map(|node| client.status_of(&node.client_addr, ANSWER_WITHIN));
            let leads = |status: &NodeStatus| status.leader == status.node && status.node != 0;
            let answers = futures::future::join_all(asked).await;
            // An old leader that does not know yet is of a lower term.
            let leader = answers.into_iter().flatten().filter(leads).max_by_key(|status| status.term);
            if let Some(leader) = leader {
                return Ok(leader.node);
            }
            anyhow::ensure!(Instant::now() < deadline, "no node led within {within:?}; logs: {}", self.dir().display());
            sleep(LOOK_EVERY).await;
        }
    }

    /// SIGKILL: as when the power of one machine fails, but for its disk cache.
    pub async fn kill(&mut self, id: NodeId) -> anyhow::Result<()> {
        let process = self.node_mut(id)?.process.take().with_context(|| format!("node {id} does not run"))?;
        Ok(process.kill().await?)
    }

    /// SIGKILL to all at once: as when the power fails.
    pub async fn kill_all(&mut self) -> anyhow::Result<()> {
        let running = self.nodes.iter_mut().filter_map(|node| node.process.take());
        let killed = futures::future::join_all(running.map(Process::kill)).await;
        Ok(killed.into_iter().collect::<std::io::Result<()>>()?)
    }

    /// SIGSTOP: the node answers nothing, and its connections stay open.
    pub fn freeze(&self, id: NodeId) -> anyhow::Result<()> {
        Ok(self.node(id)?.process()?.freeze()?)
    }

    /// SIGCONT after [`Self::freeze`].
    pub fn thaw(&self, id: NodeId) -> anyhow::Result<()> {
        Ok(self.node(id)?.process()?.thaw()?)
    }

    /// Starts a node that does not run, on its old directory and addresses.
    pub fn restart(&mut self, id: NodeId) -> anyhow::Result<()> {
        let host = self.options.hosts.get(&id).cloned().unwrap_or_default();
        let mut words = host.enter;
        words.push(self.program.clone().into());
        let node = self.node_mut(id)?;
        anyhow::ensure!(node.process.is_none(), "node {id} runs already");
        words.extend(["serve".into(), "--config".into(), node.dir.join("wharf.toml").into()]);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(host.env);
        node.process = Some(Process::of_this_kind(command, &node.log_file())?);
        Ok(())
    }

    /// Removes all that a node stored, as if its disk had been replaced. It must not run.
    pub fn wipe(&mut self, id: NodeId) -> anyhow::Result<()> {
        let node = self.node(id)?;
        anyhow::ensure!(node.process.is_none(), "node {id} runs");
        Ok(std::fs::remove_dir_all(&node.data_dir)?)
    }

    /// SIGTERM to a node, and waits until it has drained.
    pub async fn stop(&mut self, id: NodeId, within: Duration) -> anyhow::Result<()> {
        let mut process = self.node_mut(id)?.process.take().with_context(|| format!("node {id} does not run"))?;
        process.terminate()?;
        if process.ended(within).await.is_none() {
            process.kill().await?;
            anyhow::bail!("node {id} did not drain within {within:?}");
        }
        Ok(())
    }

    /// Drains all nodes, and kills those that take too long. With `give_up` they are killed at once
    /// when it is done.
    pub async fn shutdown(mut self, give_up: impl Future<Output = ()>) {
        let mut running: Vec<Process> = self.nodes.iter_mut().filter_map(|node| node.process.take()).collect();
        for process in &running {
            // It may have ended by itself.
            let _ = process.terminate();
        }
        let all = futures::future::join_all(running.iter_mut().map(|process| process.ended(DRAIN_WITHIN)));
        tokio::select! { _ = all => {} () = give_up => {} }
        // Gone for certain before their directory goes; an error means that it ended by itself.
        let _ = futures::future::join_all(running.into_iter().map(Process::kill)).await;
    }

    /// Fails once a node ended by itself, with the end of its log, which then stays.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        let alive = self.nodes.iter_mut().try_for_each(Node::check_alive);
        if alive.is_err() {
            self.keep();
        }
        alive
    }

    /// Nodes that ended by themselves since the last time this was asked, with how and the end of their logs.
    pub fn ended(&mut self) -> Vec<(NodeId, ExitStatus, String)> {
        let mut ended = Vec::new();
        for node in &mut self.nodes {
            if let Some(status) = node.process.as_mut().and_then(Process::has_ended) {
                node.process = None;
                ended.push((node.id, status, node.log_tail()));
            }
        }
        ended
    }

    fn configure(&self) -> anyhow::Result<()> {
        let peers: Vec<String> = self.nodes.iter().map(|node| format!("{}={}", node.id, node.peer_addr)).collect();
        self.nodes
            .iter()
            .try_for_each(|node| self.configure_node(node, |config| config.cluster.nodes.clone_from(&peers)))
    }

    fn configure_node(&self, node: &Node, more: impl Fn(&mut Config)) -> anyhow::Result<()> {
        let mut config = Config { node: node.id, data_dir: node.data_dir.clone(), ..Config::default() };
        config.listen = config::Listen {
            client: node.client_addr.clone(),
            peer: node.peer_addr.clone(),
            admin: node.admin_addr.clone(),
        };
        config.log.level.clone_from(&self.options.log_level);
        more(&mut config);
        (self.options.configure)(&mut config);
        create_private(&node.dir)?;
        Ok(std::fs::write(node.dir.join("wharf.toml"), config.render())?)
    }

    fn check_deadline(&mut self, deadline: Instant, at: usize) -> anyhow::Result<()> {
        if Instant::now() < deadline {
            return Ok(());
        }
        self.keep();
        let node = &self.nodes[at];
        anyhow::bail!(
            "node {} was not ready in time; the end of its log ({}):\n{}",
            node.id,
            node.log_file().display(),
            node.log_tail()
        )
    }

    fn node_mut(&mut self, id: NodeId) -> anyhow::Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.id == id).with_context(|| format!("there is no node {id}"))
    }
}

impl Node {
    /// What the node stores.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its process's number, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }

    /// What its process has used so far.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        Ok(self.process()?.usage()?)
    }

    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    fn process(&self) -> anyhow::Result<&Process> {
        self.process.as_ref().with_context(|| format!("node {} does not run", self.id))
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.process.as_mut().and_then(Process::has_ended) else { return Ok(()) };
        self.process = None;
        anyhow::bail!(
            "node {} ended by itself ({status}); the end of its log ({}):\n{}",
            self.id,
            self.log_file().display(),
            self.log_tail()
        )
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 20;
        let text = std::fs::read(self.log_file()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// Nobody else reads what the nodes store.
fn create_private(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("cannot create {}", dir.display()))
}
