//! `wharf cluster …`, `wharf worker …` and `wharf check`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::args::{Output, Target};
use super::exit::{Exit, Failure};
use super::output::Row;
use super::{members, output, rows};
use crate::client::{self, Client, NodeStatus, StateHash};

/// Look at and steer the cluster.
#[derive(Args, Debug)]
pub struct ClusterVerb {
    #[command(subcommand)]
    verb: ClusterVerbs,
}

#[derive(Subcommand, Debug)]
enum ClusterVerbs {
    /// What every node sees; exit 3 if a node is missing or there is no leader.
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// Move leadership; nothing is redelivered by it.
    Transfer {
        /// To this node; to the most current voter if not given.
        #[arg(long, value_name = "NODE", default_value_t = 0, hide_default_value = true)]
        to: u64,
    },
    AddNode(members::AddNode),
    Promote(members::Promote),
    Remove(members::Remove),
    Replace(members::Replace),
    SafeToStop(members::SafeToStop),
    Snapshot(members::Snapshot),
}

/// Look at workers and drain them.
#[derive(Args, Debug)]
pub struct WorkerVerb {
    #[command(subcommand)]
    verb: WorkerVerbs,
}

#[derive(Subcommand, Debug)]
enum WorkerVerbs {
    /// List sessions of workers, with what they hold.
    #[command(after_help = "\
Examples:
  wharf worker list
  wharf worker list --queue jobs -o json | jq '.[] | select(.status == \"DETACHED\")'")]
    List {
        /// Only those that work on this queue.
        #[arg(long, default_value = "", hide_default_value = true, value_parser = optional_queue)]
        queue: String,
        #[command(flatten)]
        output: Output,
    },
    /// Tell a worker to finish what it holds and go; nobody is killed in the middle of a package.
    #[command(after_help = "\
Example:
  wharf worker drain \"$(wharf worker list -o jsonl | jq -r 'select(.worker == \"host-7\").session')\"")]
    Drain {
        /// As `wharf worker list` shows it.
        session: String,
        #[command(flatten)]
        output: Output,
    },
}

/// Compare the state of all nodes at one log index and recount each node's invariants.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit 3 if two nodes differ, an invariant is broken, or a node does not answer.")]
pub struct Check {
    #[command(flatten)]
    output: Output,
}

impl ClusterVerb {
    pub async fn run(self, client: &Client, target: &Target) -> anyhow::Result<Exit> {
        match self.verb {
            ClusterVerbs::Status { output } => status(client, target, output).await,
            ClusterVerbs::Transfer { to } => {
                let leader = client.transfer_leadership(to).await?;
                output::line(leader)?;
                output::note("leads now");
                Ok(Exit::Ok)
            }
            ClusterVerbs::AddNode(verb) => verb.run(client).await,
            ClusterVerbs::Promote(verb) => verb.run(client).await,
            ClusterVerbs::Remove(verb) => verb.run(client).await,
            ClusterVerbs::Replace(verb) => verb.run(client).await,
            ClusterVerbs::SafeToStop(verb) => verb.run(client).await,
            ClusterVerbs::Snapshot(verb) => verb.run(client).await,
        }
    }
}

impl WorkerVerb {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        match self.verb {
            WorkerVerbs::List { queue, output } => {
                let workers = client.list_workers(&queue).await?;
                let rows: Vec<rows::Worker> = workers.into_iter().map(Into::into).collect();
                output::list(output.output, &rows)?;
            }
            WorkerVerbs::Drain { session, output } => {
                let worker = client.drain_worker(&session).await?;
                output::one(output.output, &rows::Worker::from(worker))?;
            }
        }
        Ok(Exit::Ok)
    }
}

/// A queue's name, or none.
fn optional_queue(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { super::args::queue(text) }
}

/// A member's state at the index of a check.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    pub node: u64,
    pub addr: String,
    pub index: u64,
    pub hash: Option<String>,
    pub violations: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Row for Checked {
    const HEAD: &'static [&'static str] = &["NODE", "ADDRESS", "INDEX", "STATE HASH", "INVARIANTS"];

    fn cells(&self) -> Vec<String> {
        let invariants = match (&self.error, self.violations.len()) {
            (Some(error), _) => error.clone(),
            (None, 0) => "hold".to_owned(),
            (None, broken) => format!("{broken} broken"),
        };
        let hash = self.hash.clone().unwrap_or_else(|| "-".to_owned());
        vec![self.node.to_string(), self.addr.clone(), self.index.to_string(), hash, invariants]
    }
}

impl Check {
    pub async fn run(self, client: &Client, target: &Target) -> anyhow::Result<Exit> {
        let nodes = compare(client, target.timeout).await?;
        output::list(self.output.output, &nodes)?;
        let violations = nodes.iter().flat_map(|node| node.violations.iter().map(move |text| (node.node, text)));
        for (node, violation) in violations {
            output::note(format_args!("node {node}: {violation}"));
        }
        match verdict(&nodes) {
            Ok(()) => {
                output::note("all nodes agree");
                Ok(Exit::Ok)
            }
            Err(why) => Err(Failure::new(Exit::NotReady, why).next("wharf cluster status").into()),
        }
    }
}

/// Asks every member for its state at one new index.
pub async fn compare(client: &Client, within: std::time::Duration) -> anyhow::Result<Vec<Checked>> {
    let index = client.fingerprint().await?;
    let members = client.status().await?.members;
    let asked = members.iter().map(|member| async move {
        let answer = client.state_hash(&member.client_addr, index, within).await;
        checked(member.node, member.client_addr.clone(), index, answer)
    });
    let mut nodes = futures::future::join_all(asked).await;
    nodes.sort_by_key(|node| node.node);
    Ok(nodes)
}

/// Whether all nodes answered, agree and hold their invariants.
pub fn verdict(nodes: &[Checked]) -> Result<(), String> {
    if let Some(silent) = nodes.iter().find(|node| node.hash.is_none()) {
        return Err(format!("node {} did not tell its state: {}", silent.node, silent.error.as_deref().unwrap_or("-")));
    }
    if let Some(broken) = nodes.iter().find(|node| !node.violations.is_empty()) {
        return Err(format!("node {} has broken invariants", broken.node));
    }
    if nodes.is_empty() || nodes.windows(2).any(|pair| pair[0].hash != pair[1].hash || pair[0].index != pair[1].index) {
        return Err("the nodes' states differ".into());
    }
    Ok(())
}

fn checked(node: u64, addr: String, index: u64, answer: Result<StateHash, client::Error>) -> Checked {
    match answer {
        Ok(state) => Checked {
            node,
            addr,
            index: state.index,
            hash: Some(state.hash),
            violations: state.violations,
            error: None,
        },
        Err(error) => Checked { node, addr, index, hash: None, violations: vec![], error: Some(error.to_string()) },
    }
}

async fn status(client: &Client, target: &Target, output: Output) -> anyhow::Result<Exit> {
    let answers = client.statuses(target.timeout).await;
    let error = answers.iter().find_map(|(_, answer)| answer.as_ref().err().cloned());
    let statuses: Vec<&NodeStatus> = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).collect();
    if let (true, Some(error)) = (statuses.is_empty(), error) {
        return Err(error.into());
    }
    let leader = statuses.iter().find(|status| status.leader == status.node && status.leader != 0);
    let lags: BTreeMap<u64, u64> =
        leader.iter().flat_map(|s| &s.members).filter_map(|member| Some((member.node, member.lag?))).collect();
    let trouble = trouble(&statuses);
    let mut nodes: Vec<rows::Node> = answers
        .into_iter()
        .map(|(addr, answer)| {
            let lag = answer.as_ref().ok().and_then(|status| lags.get(&status.node).copied());
            rows::Node::new(addr, answer, lag)
        })
        .collect();
    nodes.sort_by_key(|node| (node.node.unwrap_or(u64::MAX), node.addr.clone()));
    output::list(output.output, &nodes)?;
    for node in &nodes {
        let name = node.node.map_or_else(|| node.addr.clone(), |node| format!("node {node}"));
        node.alarms.iter().for_each(|alarm| output::note(format_args!("{name}: {alarm}")));
        node.waiting.iter().for_each(|why| output::note(format_args!("{name}: {why}")));
        node.error.iter().for_each(|error| output::note(format_args!("{name}: {error}")));
    }
    match trouble {
        None => Ok(Exit::Ok),
        Some(trouble) => Err(Failure::new(Exit::NotReady, trouble).into()),
    }
}

/// What is wrong with a cluster of which these nodes answered.
fn trouble(statuses: &[&NodeStatus]) -> Option<String> {
    let leaders = statuses.iter().filter(|status| status.leader == status.node && status.leader != 0).count();
    if leaders == 0 {
        return Some("no node leads".into());
    }
    let members = statuses.iter().flat_map(|status| &status.members);
    let missing = members.map(|member| member.node).find(|node| !statuses.iter().any(|status| status.node == *node));
    missing.map(|node| format!("node {node} does not answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(node: u64, hash: Option<&str>, violations: &[&str]) -> Checked {
        Checked {
            node,
            addr: String::new(),
            index: 7,
            hash: hash.map(str::to_owned),
            violations: violations.iter().map(|text| (*text).to_owned()).collect(),
            error: hash.is_none().then(|| "down".to_owned()),
        }
    }

    #[test]
    fn a_check_fails_for_each_of_its_reasons() {
        let good = [node(1, Some("a"), &[]), node(2, Some("a"), &[])];
        assert_eq!(verdict(&good), Ok(()));
        assert!(verdict(&[]).is_err());
        assert!(verdict(&[node(1, Some("a"), &[]), node(2, Some("b"), &[])]).unwrap_err().contains("differ"));
        assert!(verdict(&[node(1, Some("a"), &["x"]), node(2, Some("a"), &[])]).unwrap_err().contains("invariants"));
        assert!(verdict(&[node(1, Some("a"), &[]), node(2, None, &[])]).unwrap_err().contains("node 2"));
        let elsewhere = Checked { index: 8, ..node(2, Some("a"), &[]) };
        assert!(verdict(&[node(1, Some("a"), &[]), elsewhere]).is_err());
    }

    #[test]
    fn a_missing_member_is_trouble() {
        let member = |node| client::Member { node, ..Default::default() };
        let status =
            |node, leader| NodeStatus { node, leader, members: vec![member(1), member(2)], ..Default::default() };
        let (one, two) = (status(1, 1), status(2, 1));
        assert_eq!(trouble(&[&one, &two]), None);
        assert!(trouble(&[&one]).unwrap().contains("node 2"));
        assert!(trouble(&[&two]).unwrap().contains("no node leads"));
    }
}
