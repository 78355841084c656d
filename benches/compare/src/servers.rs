//! The peers' servers: three nodes on loopback, started for one run and stopped after it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::peer::nats::node_name;
use crate::proc;
use crate::tree::{self, DataDir, Tree};

const NODES: usize = 3;
/// A server listens within this, and settles with those before it within that.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);
const STAGGER: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of a server's log that an error shows.
const LOG_LINES: usize = 12;

/// The ports of a run, on loopback.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    base: u16,
}

impl Ports {
    pub fn new(base: u16) -> Self {
        Self { base }
    }

    /// Where clients connect, a port for each node.
    pub fn clients(self) -> [u16; NODES] {
        [1, 2, 3].map(|node| self.base + node)
    }

    /// Where nodes speak to each other.
    fn peers(self) -> [u16; NODES] {
        [11, 12, 13].map(|node| self.base + node)
    }

    /// Erlang's name service.
    fn names(self) -> u16 {
        self.base + 20
    }

    /// Refuses ports that something listens at.
    pub fn check_free(self) -> Result<()> {
        for port in self.clients().into_iter().chain(self.peers()).chain([self.names()]) {
            TcpListener::bind(("127.0.0.1", port)).map_err(|error| {
                anyhow!("port {port} of 127.0.0.1 cannot be used ({error}): stop what has it, or give --base-port")
            })?;
        }
        Ok(())
    }
}

struct Server {
    name: String,
    child: Child,
    log: PathBuf,
    /// It is a node of the cluster, and no helper.
    node: bool,
}

/// Running servers and their data. [`Cluster::stop`] ends them; so does dropping, less orderly.
pub struct Cluster {
    // In this order: no server is left when its data goes.
    servers: Vec<Server>,
    data: DataDir,
}

impl Cluster {
    pub fn new(data: DataDir) -> Self {
        Self { servers: Vec::new(), data }
    }

    /// Three JetStream servers, as shipped, or with an fsync for each write. One after another: of servers that
    /// start within milliseconds one now and then never learns what room the others have, and then no
    /// stream can be placed.
    pub async fn start_nats(&mut self, tree: &Tree, ports: Ports, sync_always: bool) -> Result<()> {
        ports.check_free()?;
        for number in 0..NODES {
            let name = node_name(number);
            let config = nats_config(number, ports, &self.data.inside(&name), sync_always);
            fs::write(self.data.path().join(format!("{name}.conf")), config).context("writing a configuration")?;
            let mut command = tree.command("/usr/sbin/nats-server");
            command.args(["-c", &self.data.inside(&format!("{name}.conf"))]);
            self.spawn(name, command, true)?;
            listens(ports.clients()[number]).await?;
        }
        Ok(())
    }

    /// Three RabbitMQ nodes, which find each other by a list in their configuration.
    pub fn start_rabbit(&mut self, tree: &Tree, ports: Ports) -> Result<()> {
        ports.check_free()?;
        fs::write(self.data.path().join("rabbit.conf"), rabbit_config()).context("writing a configuration")?;
        let mut names = tree.command("/usr/bin/epmd");
        names.args(["-address", "127.0.0.1", "-port", &ports.names().to_string()]);
        self.spawn("epmd".to_owned(), names, false)?;
        for number in 0..NODES {
            let name = format!("r{}", number + 1);
            let home = self.data.inside(&name);
            let outside = self.data.path().join(&name);
            fs::create_dir_all(&outside).context("making a home")?;
            write_secret(&outside.join(".erlang.cookie"))?;
            let mut command = tree.command("/usr/lib/rabbitmq/bin/rabbitmq-server");
            command
                .env("HOME", &home)
                .env("ERL_EPMD_ADDRESS", "127.0.0.1")
                .env("ERL_EPMD_PORT", ports.names().to_string())
                .env("RABBITMQ_NODENAME", format!("{name}@localhost"))
                .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
                .env("RABBITMQ_NODE_PORT", ports.clients()[number].to_string())
                .env("RABBITMQ_DIST_PORT", ports.peers()[number].to_string())
                .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
                .env("RABBITMQ_CONFIG_FILE", self.data.inside("rabbit.conf"))
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", format!("{home}/plugins"))
                .env("RABBITMQ_MNESIA_BASE", format!("{home}/db"))
                .env("RABBITMQ_LOG_BASE", format!("{home}/log"))
                .env("RABBITMQ_PID_FILE", format!("{home}/pid"));
            self.spawn(name, command, true)?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: String, mut command: Command, node: bool) -> Result<()> {
        let log = self.data.path().join(format!("{name}.log"));
        let file = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        command.stderr(Stdio::from(file.try_clone()?)).stdout(Stdio::from(file));
        let child = tree::spawn(&mut command)?;
        self.servers.push(Server { name, child, log, node });
        Ok(())
    }

    /// Why a run may have failed: a server that ended by itself, with the end of its log.
    pub fn why(&mut self) -> Option<String> {
        self.servers.iter_mut().find_map(|server| {
            let status = server.child.try_wait().ok().flatten()?;
            let log = fs::read_to_string(&server.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
            Some(format!("{} ended by itself ({status}); the end of its log:\n  {tail}", server.name))
        })
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.servers.iter().filter(|server| server.node).filter_map(|server| server.child.id())
    }

    /// CPU time of all nodes and of this process so far.
    pub fn cpu_us(&self) -> Result<f64> {
        let mut sum = proc::own_cpu_us(std::process::id())?;
        for pid in self.pids() {
            sum += proc::cpu_us_below(pid)?;
        }
        Ok(sum)
    }

    /// Of each node.
    pub fn rss_mb(&self) -> Result<Vec<Option<f64>>> {
        self.pids().map(|pid| proc::rss_mb_below(pid).map(Some)).collect()
    }

    /// Of all nodes, logs included.
    pub fn disk_mb(&self) -> Result<f64> {
        proc::disk_mb(self.data.path())
    }

    /// SIGKILL to a node, with all that it started.
    pub async fn kill_node(&mut self, number: usize) -> Result<()> {
        let node = self.servers.iter_mut().filter(|server| server.node).nth(number);
        tree::kill(&mut node.with_context(|| format!("there is no node {number}"))?.child).await
    }

    /// Ends all servers and removes their data.
    pub async fn stop(mut self) -> Result<()> {
        for server in &mut self.servers {
            tree::kill(&mut server.child).await.with_context(|| format!("stopping {}", server.name))?;
        }
        Ok(())
    }
}

/// Waits until something listens.
async fn listens(port: u16) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = TcpStream::connect(("127.0.0.1", port)) {
        if began.elapsed() > LISTENS_WITHIN {
            return Err(error).with_context(|| format!("nothing listens at port {port}"));
        }
        sleep(LOOK_EVERY).await;
    }
    sleep(STAGGER).await;
    Ok(())
}

fn nats_config(number: usize, ports: Ports, store: &str, sync_always: bool) -> String {
    let routes: Vec<String> = ports.peers().iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    let (client, route) = (ports.clients()[number], ports.peers()[number]);
    format!(
        "server_name: {}\nlisten: 127.0.0.1:{client}\n\
         jetstream {{ store_dir: \"{store}\", max_file_store: 20G, max_memory_store: 2G{} }}\n\
         cluster {{ name: compare, listen: 127.0.0.1:{route}, routes: [{}] }}\n",
        node_name(number),
        if sync_always { ", sync_interval: always" } else { "" },
        routes.join(", "),
    )
}

fn rabbit_config() -> String {
    let mut lines = vec!["cluster_formation.peer_discovery_backend = classic_config".to_owned()];
    lines.extend((1..=NODES).map(|node| format!("cluster_formation.classic_config.nodes.{node} = r{node}@localhost")));
    lines.push(format!("cluster_formation.target_cluster_size_hint = {NODES}\n"));
    lines.join("\n")
}

/// What Erlang nodes know each other by. Nobody but these nodes, on loopback, is meant to use it.
fn write_secret(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, "compare").context("writing the cookie")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).context("closing the cookie")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_told_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Ports::new(port - 2).check_free().unwrap_err().to_string();
        // Another program may have taken one of the ports before it.
        assert!(error.contains("--base-port"), "{error}");
    }

    #[test]
    fn nats_is_as_shipped_unless_told_otherwise() {
        let config = |always| nats_config(1, Ports::new(4000), "/data/n2", always);
        assert!(config(false).contains("listen: 127.0.0.1:4002\n"));
        assert!(config(false).contains("listen: 127.0.0.1:4012, routes: [nats://127.0.0.1:4011, "));
        assert!(!config(false).contains("sync_interval"));
        assert!(config(true).contains("sync_interval: always"));
    }

    #[test]
    fn rabbit_nodes_know_each_other() {
        assert!(rabbit_config().contains("classic_config.nodes.3 = r3@localhost\n"));
    }
}
