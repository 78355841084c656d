//! What an operator does meanwhile: each takes a while, and answers what shows that it was done.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::super::history::{Fault, Recorder};
use super::faults::node_name;
use super::mutations;
use crate::cli::local;
use crate::client::Client;
use crate::types::NodeId;

/// What was refused is tried again after this.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Who leads is looked for so long.
const LEADER_WITHIN: Duration = Duration::from_secs(2);
/// A node that got SIGTERM is gone within this, or gets SIGKILL.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// A node that was started follows a leader within this, or the next one gets its turn.
const UP_WITHIN: Duration = Duration::from_secs(3);
const ANSWERS_WITHIN: Duration = Duration::from_millis(300);
/// How long one more node is a voter.
const STAYS: Duration = Duration::from_secs(2);

/// A damaged node goes on or says what to do within this.
const DECIDES_WITHIN: Duration = Duration::from_secs(30);
/// One that was replaced has its place within this.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);

pub type Nodes = Arc<Mutex<local::Cluster>>;

/// Hands leadership to whom the cluster chooses.
pub async fn transfer(client: Client, nodes: Nodes, until: Instant) -> anyhow::Result<String> {
    again_until(until, || async {
        let before = nodes.lock().await.leader(LEADER_WITHIN).await?;
        let after = client.transfer_leadership(0).await?;
        anyhow::ensure!(after != before, "node {before} leads still");
        Ok(format!("from node {before} to node {after}"))
    })
    .await
}

pub async fn snapshot(client: Client, addr: String, until: Instant) -> anyhow::Result<String> {
    again_until(until, || async { Ok(format!("at index {}", client.take_snapshot(&addr).await?)) }).await
}

/// Each node that runs gets SIGTERM, is started again, and has some time to find its leader.
pub async fn rolling_restart(client: Client, nodes: Nodes, recorder: Recorder) -> anyhow::Result<String> {
    let ids = nodes.lock().await.ids();
    let mut restarted = Vec::new();
    for id in ids {
        let addr = {
            let mut nodes = nodes.lock().await;
            let Ok(true) = nodes.node(id).map(local::Node::runs) else { continue };
            recorder.fault(&node_name(id), Fault::Drained);
            // One that is frozen, or waits for a quorum, is killed in the end.
            let _ = nodes.stop(id, STOP_WITHIN).await;
            nodes.restart(id)?;
            recorder.fault(&node_name(id), Fault::Healed);
            nodes.node(id)?.client_addr.clone()
        };
        restarted.push(id);
        let follows = || async {
            let status = client.status_of(&addr, ANSWERS_WITHIN).await?;
            anyhow::ensure!(status.leader != 0, "it knows no leader");
            Ok(String::new())
        };
        // Other faults may be in its way.
        let _ = again_until(Instant::now() + UP_WITHIN, follows).await;
    }
    anyhow::ensure!(!restarted.is_empty(), "no node ran");
    Ok(format!("nodes {restarted:?}"))
}

/// One more node joins, becomes a voter, stays a while, and leaves. Tries until it is done.
pub async fn come_and_go(client: Client, nodes: Nodes, id: NodeId) -> anyhow::Result<String> {
    let forever = Instant::now() + Duration::from_secs(3_600);
    let addr = {
        let mut nodes = nodes.lock().await;
        nodes.join(id).await?;
        nodes.node(id)?.peer_addr.clone()
    };
    again_until(forever, || async { Ok(client.add_member(id, &addr, false, false).await?) }).await?;
    again_until(forever, || async { Ok(client.promote_members(&[id]).await?) }).await?;
    sleep(STAYS).await;
    let remove = || async {
        match client.remove_members(&[id], false).await {
            Ok(_) => Ok(()),
            // An earlier try did it.
            Err(error) if error.reason() == "NODE_NOT_FOUND" => Ok(()),
            Err(error) => Err(error.into()),
        }
    };
    again_until(forever, remove).await?;
    nodes.lock().await.forget(id).await?;
    Ok(format!("node {id} came, voted and left"))
}

async fn again_until<T, F>(until: Instant, mut what: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    loop {
        match what().await {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() >= until => return Err(error).context("refused to the end"),
            Err(_) => sleep(TRY_AGAIN).await,
        }
    }
}

/// What a node that will not go on with its directory must tell, one of these.
const INSTRUCTIONS: [&str; 5] = [
    "empty its data directory",
    "put the identity file back",
    "wharf cluster replace",
    "upgrade this node",
    "check data directory and node number",
];

/// A node's stored bytes are changed while it is down. Then it goes on and catches up, or it says what to do and gets
/// its place anew. Answers which.
pub async fn damage(client: Client, nodes: Nodes, recorder: Recorder, id: NodeId, seed: u64) -> anyhow::Result<String> {
    let (done, addr, log) = {
        let mut nodes = nodes.lock().await;
        recorder.fault(&node_name(id), Fault::Killed);
        nodes.kill(id).await?;
        let node = nodes.node(id)?;
        let (data, addr, log) = (node.data_dir().to_owned(), node.client_addr.clone(), node.log_file());
        (mutations::mutate(&data, seed)?, addr, log)
    };
    let said_before = std::fs::metadata(&log)?.len() as usize;
    start(&nodes, &recorder, id).await?;
    let applied = client.status().await.map_or(0, |status| status.applied_index);
    let deadline = Instant::now() + DECIDES_WITHIN;
    loop {
        let log = std::fs::read(&log)?;
        let said = String::from_utf8_lossy(&log[said_before.min(log.len())..]).into_owned();
        let told = INSTRUCTIONS.iter().find(|told| said.contains(*told));
        let runs = nodes.lock().await.node(id)?.runs();
        let status = client.status_of(&addr, ANSWERS_WITHIN).await;
        if status.is_ok_and(|status| status.leader != 0 && status.applied_index >= applied) {
            return Ok(format!("{done}: harmless"));
        }
        if let Some(told) = told {
            replace(&client, &nodes, &recorder, id).await.with_context(|| format!("{done}: replacing it"))?;
            return Ok(format!("{done}: it said \"{told}\", and was replaced"));
        }
        anyhow::ensure!(runs, "{done}: it ended without saying what to do:\n{said}");
        anyhow::ensure!(Instant::now() < deadline, "{done}: it neither went on nor said what to do:\n{said}");
        sleep(TRY_AGAIN).await;
    }
}

/// Gives a node its place anew, as the documentation says: an empty directory, and one command.
async fn replace(client: &Client, nodes: &Nodes, recorder: &Recorder, id: NodeId) -> anyhow::Result<()> {
    let (program, addrs, peer, addr) = {
        let mut nodes = nodes.lock().await;
        if nodes.node(id)?.runs() {
            nodes.kill(id).await?;
        }
        nodes.wipe(id)?;
        let (program, addrs) = (nodes.program().to_owned(), nodes.addrs());
        let node = nodes.node(id)?;
        (program, addrs, node.peer_addr.clone(), node.client_addr.clone())
    };
    start(nodes, recorder, id).await?;
    let until = Instant::now() + REPLACED_WITHIN;
    again_until(until, || async {
        let mut command = tokio::process::Command::new(&program);
        command.args(["cluster", "replace", &id.to_string(), "--peer", &peer, "--addr", &addrs]);
        let output = command.output().await?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })
    .await?;
    again_until(until, || async {
        let status = client.status_of(&addr, ANSWERS_WITHIN).await?;
        anyhow::ensure!(status.leader != 0, "it knows no leader");
        Ok(())
    })
    .await
}

async fn start(nodes: &Nodes, recorder: &Recorder, id: NodeId) -> anyhow::Result<()> {
    nodes.lock().await.restart(id)?;
    recorder.fault(&node_name(id), Fault::Healed);
    Ok(())
}
