//! `wharf serve`: one node, until SIGTERM or SIGINT. `wharf config`: its configuration.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use figment::value::Value;

use super::exit::Exit;
use super::output;
use crate::config::{Config, Flags};
use crate::{node, telemetry};

/// Run one node of a cluster.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf serve --data-dir ./data                          one node, on loopback
  wharf serve --config /etc/wharf/wharf.toml
  wharf serve --node 1 --data-dir ./1 --cluster-node 1=127.0.0.1:7412 --cluster-node 2=127.0.0.1:7422 …
  wharf serve --node 4 --data-dir ./4 --join             waits for: wharf cluster add-node 4 --peer HOST:PORT

Precedence: flag, environment (WHARF_LISTEN_CLIENT for listen.client), file, default.
SIGTERM drains: leadership moves, streams finish, the log is flushed. A second one exits at once.
SIGHUP reads log.level anew, from the same file and flags; if anything is wrong with them, it says so
and changes nothing. All else takes a restart.")]
pub struct Serve {
    #[command(flatten)]
    node: NodeFlags,
}

/// Look at a node's configuration.
#[derive(Args, Debug)]
pub struct ConfigVerb {
    #[command(subcommand)]
    verb: ConfigVerbs,
}

#[derive(Subcommand, Debug)]
enum ConfigVerbs {
    /// Tell everything that is wrong with it; exit 78 if anything is.
    #[command(after_help = "\
Example:
  wharf config check --config /etc/wharf/wharf.toml")]
    Check {
        #[command(flatten)]
        node: NodeFlags,
    },
    /// Print every key with the value in force, as a file that reads back the same.
    #[command(after_help = "\
Examples:
  wharf config show --config /etc/wharf/wharf.toml
  WHARF_LISTEN_CLIENT=0.0.0.0:7411 wharf config show --insecure > wharf.toml")]
    Show {
        #[command(flatten)]
        node: NodeFlags,
    },
}

#[derive(Args, Clone, Debug)]
struct NodeFlags {
    /// The file; without it /etc/wharf/wharf.toml is read if it is there.
    #[arg(long, env = "WHARF_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's number, 1 or more.
    #[arg(long, value_name = "N")]
    node: Option<u64>,
    /// Log, snapshots and identity of this node alone.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// gRPC for clients and workers [default: 127.0.0.1:7411]
    #[arg(long, value_name = "HOST:PORT")]
    listen_client: Option<String>,
    /// Traffic between nodes [default: 127.0.0.1:7412]
    #[arg(long, value_name = "HOST:PORT")]
    listen_peer: Option<String>,
    /// HTTP: health and metrics [default: 127.0.0.1:7413]
    #[arg(long, value_name = "HOST:PORT")]
    listen_admin: Option<String>,
    /// What clients are told, where it differs from --listen-client.
    #[arg(long, value_name = "HOST:PORT")]
    advertise_client: Option<String>,
    /// What other nodes are told, where it differs from the list of nodes.
    #[arg(long, value_name = "HOST:PORT")]
    advertise_peer: Option<String>,
    /// What operators are told, where it differs from --listen-admin.
    #[arg(long, value_name = "HOST:PORT")]
    advertise_admin: Option<String>,
    /// A node of the cluster and its peer address; once for each, the same on all nodes.
    #[arg(long = "cluster-node", value_name = "N=HOST:PORT")]
    cluster_nodes: Vec<String>,
    /// Form no cluster: wait for `wharf cluster add-node`.
    #[arg(long, conflicts_with = "cluster_nodes")]
    join: bool,
    /// Listen beyond loopback without TLS.
    #[arg(long)]
    insecure: bool,
    /// error, warn, info, debug or trace; by module: info,wharf::raft=debug
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Lines for people, or JSON.
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<Exit> {
        let config = self.node.load()?;
        let level = telemetry::init(&config.log.level, config.log.format == crate::config::LogFormat::Json)?;
        let flags = self.node;
        node::run(config, level, move || flags.load()).await?;
        Ok(Exit::Ok)
    }
}

impl ConfigVerb {
    pub fn run(self) -> anyhow::Result<Exit> {
        match self.verb {
            ConfigVerbs::Check { node } => {
                node.load()?;
                output::note("the configuration is good");
            }
            ConfigVerbs::Show { node } => output::line(node.load()?.render().trim_end())?,
        }
        Ok(Exit::Ok)
    }
}

impl NodeFlags {
    fn load(&self) -> Result<Config, crate::config::Error> {
        Config::load(self.config.as_deref(), self.clone().flags())
    }

    fn flags(self) -> Flags {
        let mut flags = Flags::new();
        let mut text = |key, value: Option<String>| flags.extend(value.map(|value| (key, Value::from(value))));
        text("data_dir", self.data_dir.map(|dir| dir.to_string_lossy().into_owned()));
        text("listen.client", self.listen_client);
        text("listen.peer", self.listen_peer);
        text("listen.admin", self.listen_admin);
        text("advertise.client", self.advertise_client);
        text("advertise.peer", self.advertise_peer);
        text("advertise.admin", self.advertise_admin);
        text("log.level", self.log_level);
        let format = self.log_format.and_then(|format| format.to_possible_value());
        text("log.format", format.map(|format| format.get_name().to_owned()));
        flags.extend(self.node.map(|node| ("node", Value::from(node))));
        if !self.cluster_nodes.is_empty() {
            flags.push(("cluster.nodes", Value::from(self.cluster_nodes)));
        }
        if self.join {
            flags.push(("cluster.join", Value::from(true)));
        }
        if self.insecure {
            flags.push(("insecure", Value::from(true)));
        }
        flags
    }
}
