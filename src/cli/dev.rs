//! `wharf dev`: a cluster on this machine until Ctrl-C.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::Exit;
use super::local::{Cluster, Options};
use super::output;

/// How long the nodes may take to form a cluster.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How often the nodes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Run a cluster on this machine, real processes on a real disk, until Ctrl-C.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf dev                        three nodes in a temporary directory
  wharf dev --nodes 1
  wharf dev --dir ./cluster        keeps everything; the same again goes on where it was")]
pub struct Dev {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Keep the nodes' data here.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Client port of node 1; node i adds 10(i-1), peer and admin ports are 1 and 2 above.
    #[arg(long, default_value_t = 7411, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..))]
    port: u16,
    /// error, warn, info, debug or trace
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

impl Dev {
    pub async fn run(self) -> anyhow::Result<Exit> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let options = Options {
            nodes: self.nodes,
            dir: self.dir,
            first_port: Some(self.port),
            log_level: self.log_level,
            ..Options::default()
        };
        let mut cluster = Cluster::start(options).await?;
        output::note(format_args!("starting {} nodes in {}", self.nodes, cluster.dir().display()));
        tokio::select! {
            ready = cluster.ready(READY_WITHIN) => ready?,
            _ = interrupt.recv() => return Ok(Exit::Ok),
            _ = terminate.recv() => return Ok(Exit::Ok),
        }
        tell(&cluster)?;
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = tokio::time::sleep(LOOK_EVERY) => cluster.check_alive()?,
            }
        }
        output::note("stopping; again to kill");
        cluster
            .shutdown(async {
                tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
            })
            .await;
        Ok(Exit::Ok)
    }
}

fn tell(cluster: &Cluster) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        output::line(format_args!(
            "node {}  client {}  peers {}  http://{}/metrics  log {}",
            node.id,
            node.client_addr,
            node.peer_addr,
            node.admin_addr,
            node.log_file().display()
        ))?;
    }
    let addrs = cluster.addrs();
    output::note(format_args!(
        "
ready. Try, in another terminal:

  export WHARF_ADDR={addrs}
  wharf cluster status
  wharf queue create jobs
  wharf submit jobs --payload hello
  wharf work --queue jobs --exec 'tr a-z A-Z'
  seq 1000 | wharf submit jobs --lines
  wharf queue list
  wharf cluster transfer

Ctrl-C ends the cluster."
    ));
    Ok(())
}
