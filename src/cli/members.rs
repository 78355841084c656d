//! `wharf cluster add-node | promote | remove | replace | safe-to-stop | snapshot`: nodes that come
//! and go.
//!
//! Invariants: every verb may be given again after it was interrupted, and does what is left.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::args::Output;
use super::exit::{Exit, Failure};
use super::output::{self, Row};
use crate::client::{self, Client, Error};

/// How often a learner's progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it is told where there is no bar.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Add a node that was started with `wharf serve --join`: it gets the log as a learner.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf cluster add-node 4 --peer node4:7412             as a learner; promote it when you want it to count
  wharf cluster add-node 4 --peer node4:7412 --promote   and as a voter, once it has caught up

It waits until the node has caught up, and shows how far it is. Interrupted, give it again.")]
pub struct AddNode {
    /// The number that it was started with.
    node: u64,
    /// Where the other nodes reach it (port 7412 by default).
    #[arg(long, value_name = "HOST:PORT", value_parser = super::args::addr)]
    peer: String,
    /// Make it a voter once it has caught up.
    #[arg(long)]
    promote: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    output: Output,
}

/// Make learners that have caught up voters, all in one change.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf cluster promote 4
  wharf cluster promote 2 3      from one voter to three at once: two would survive nothing")]
pub struct Promote {
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<u64>,
    #[command(flatten)]
    output: Output,
}

/// Take nodes out of the cluster, voters or learners, all in one change.
#[derive(Args, Debug)]
#[command(after_help = "\
A leader among them hands over first. A removed node stops by itself; to let it join again, remove its
data directory and start it with `--join`.")]
pub struct Remove {
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<u64>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Even if too few of the others answer for a quorum: the cluster stands still until they do.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: Output,
}

/// Give a node that lost its data directory, or its machine, its place anew.
#[derive(Args, Debug)]
#[command(after_help = "\
Start the node under its old number with an empty data directory, then:
  wharf cluster replace 3 --peer node3:7412

The lost node is removed, the new one added as a learner, and made a voter once it has caught up.
Interrupted, give it again: it goes on where it was.")]
pub struct Replace {
    /// Its number.
    node: u64,
    /// Where the other nodes reach it (port 7412 by default).
    #[arg(long, value_name = "HOST:PORT", value_parser = super::args::addr)]
    peer: String,
    /// Even if too few voters answer for a quorum without the lost one.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    output: Output,
}

/// Ask whether the cluster would go on without a node; exit 3 if not.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  wharf cluster safe-to-stop 2 && ssh node2 systemctl restart wharf")]
pub struct SafeToStop {
    node: u64,
    #[command(flatten)]
    output: Output,
}

/// Write a snapshot now, on one node or on all.
#[derive(Args, Debug)]
pub struct Snapshot {
    /// On this node alone.
    #[arg(long, value_name = "NODE")]
    node: Option<u64>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct Patience {
    /// How long the node may take to catch up before this command gives up; the node goes on.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = super::args::duration)]
    within: Duration,
}

impl AddNode {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let Self { node, peer, promote, .. } = &self;
        let again = format!("wharf cluster add-node {node} --peer {peer}{}", if *promote { " --promote" } else { "" });
        let added =
            steadily(client, || client.add_member(*node, peer, false, false)).await.map_err(|e| hint(e, &again))?;
        output::note(format_args!(
            "node {node} {}",
            if added.changed { "is a learner now" } else { "is a member already" }
        ));
        if *promote {
            grow_up(client, *node, self.patience.within, &again).await?;
            return show(client, self.output).await;
        }
        catch_up(client, *node, Instant::now() + self.patience.within, &again).await?;
        if member(client, *node).await?.is_some_and(|member| !member.voter) {
            output::note(format_args!("it has caught up; to let it count: wharf cluster promote {node}"));
        }
        show(client, self.output).await
    }
}

impl Promote {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let promoted = steadily(client, || client.promote_members(&self.nodes)).await;
        let promoted = promoted.map_err(|error| hint(error, "wharf cluster status"))?;
        tell_voters(&self.nodes, promoted.changed);
        show(client, self.output).await
    }
}

impl Remove {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let names = names(&self.nodes);
        if !self.yes {
            confirm(&format!("Remove {names} from the cluster?"), "--yes")?;
        }
        let removed = steadily(client, || client.remove_members(&self.nodes, self.force)).await;
        if let Err(error) = removed {
            // It may have been done: who is no member any more was removed.
            let gone = error.is_unknown() && self.are_gone(client).await;
            if !gone {
                return Err(hint(error, "wharf cluster status"));
            }
        }
        output::note(format_args!("{names} removed; what still runs of it stops by itself"));
        show(client, self.output).await
    }

    async fn are_gone(&self, client: &Client) -> bool {
        let Ok(status) = leader_status(client).await else { return false };
        !status.change_under_way && !status.members.iter().any(|member| self.nodes.contains(&member.node))
    }
}

impl Replace {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        let Self { node, peer, force, .. } = &self;
        let again = format!("wharf cluster replace {node} --peer {peer}");
        let added =
            steadily(client, || client.add_member(*node, peer, true, *force)).await.map_err(|e| hint(e, &again))?;
        let what = if added.changed { "is a learner in the place of the lost one" } else { "is a member already" };
        output::note(format_args!("node {node} {what}"));
        grow_up(client, *node, self.patience.within, &again).await?;
        show(client, self.output).await
    }
}

impl SafeToStop {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        #[derive(Serialize)]
        struct Answer {
            node: u64,
            safe: bool,
            reason: String,
        }
        impl Row for Answer {
            const HEAD: &'static [&'static str] = &["NODE", "SAFE TO STOP", "WHY"];

            fn cells(&self) -> Vec<String> {
                vec![self.node.to_string(), if self.safe { "yes" } else { "no" }.to_owned(), self.reason.clone()]
            }
        }
        let answer = client.safe_to_stop(self.node).await?;
        output::one(self.output.output, &Answer { node: self.node, safe: answer.safe, reason: answer.reason })?;
        Ok(if answer.safe { Exit::Ok } else { Exit::NotReady })
    }
}

impl Snapshot {
    pub async fn run(self, client: &Client) -> anyhow::Result<Exit> {
        #[derive(Serialize)]
        struct Taken {
            node: u64,
            addr: String,
            index: u64,
        }
        impl Row for Taken {
            const HEAD: &'static [&'static str] = &["NODE", "ADDRESS", "INDEX"];

            fn cells(&self) -> Vec<String> {
                vec![self.node.to_string(), self.addr.clone(), self.index.to_string()]
            }
        }
        let members = client.status().await?.members;
        let chosen: Vec<_> = members.into_iter().filter(|m| self.node.is_none_or(|node| m.node == node)).collect();
        if let (Some(node), true) = (self.node, chosen.is_empty()) {
            let failure = Failure::new(Exit::NotFound, format!("node {node} is no member"));
            return Err(failure.next("wharf cluster status").into());
        }
        let each = chosen.into_iter().map(|member| async move {
            let index = client.take_snapshot(&member.client_addr).await?;
            Ok::<_, Error>(Taken { node: member.node, addr: member.client_addr, index })
        });
        let taken = futures::future::try_join_all(each).await?;
        output::list(self.output.output, &taken)?;
        Ok(Exit::Ok)
    }
}

/// A member, as the leader sees it.
#[derive(Clone, Debug, Serialize)]
struct Member {
    node: u64,
    role: &'static str,
    peer_addr: String,
    client_addr: String,
    admin_addr: String,
    reachable: bool,
    lag: Option<u64>,
    incarnation: String,
    machine_version: u32,
}

impl From<client::Member> for Member {
    fn from(member: client::Member) -> Self {
        let role = match (member.leader, member.voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "learner",
        };
        Self {
            node: member.node,
            role,
            peer_addr: member.peer_addr,
            client_addr: member.client_addr,
            admin_addr: member.admin_addr,
            reachable: member.reachable,
            lag: member.lag,
            incarnation: member.incarnation,
            machine_version: member.machine_version,
        }
    }
}

impl Row for Member {
    const HEAD: &'static [&'static str] = &["NODE", "ROLE", "PEER ADDRESS", "CLIENT ADDRESS", "ANSWERS", "LAG"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.to_string(),
            self.role.to_owned(),
            self.peer_addr.clone(),
            self.client_addr.clone(),
            if self.reachable { "yes" } else { "no" }.to_owned(),
            self.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
        ]
    }
}

/// The members, last of all.
async fn show(client: &Client, output: Output) -> anyhow::Result<Exit> {
    let rows: Vec<Member> = leader_status(client).await?.members.into_iter().map(Member::from).collect();
    output::list(output.output, &rows)?;
    Ok(Exit::Ok)
}

/// What the leader sees; it alone knows how far the others are.
async fn leader_status(client: &Client) -> Result<client::NodeStatus, Error> {
    let status = client.status().await?;
    if status.leader == status.node || status.leader_client_addr.is_empty() {
        return Ok(status);
    }
    let leads = client.status_of(&status.leader_client_addr, client.timeout()).await;
    // It may have moved meanwhile: what any node sees is better than nothing.
    Ok(leads.unwrap_or(status))
}

async fn member(client: &Client, node: u64) -> Result<Option<client::Member>, Error> {
    Ok(leader_status(client).await?.members.into_iter().find(|member| member.node == node))
}

/// Repeats what another change of members, or a former leader's unfinished one, held up.
async fn steadily<T, F>(client: &Client, attempt: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let until = Instant::now() + client.timeout();
    loop {
        match attempt().await {
            Err(error) if Instant::now() < until && ["CHANGE_UNDER_WAY", "NODE_ALIVE"].contains(&error.reason()) => {
                sleep(error.retry_after().unwrap_or(LOOK_EVERY)).await;
            }
            done => return done,
        }
    }
}

/// A learner becomes a voter as soon as it can: one that falls behind again is waited for again.
async fn grow_up(client: &Client, node: u64, within: Duration, again: &str) -> anyhow::Result<()> {
    let until = Instant::now() + within;
    loop {
        catch_up(client, node, until, again).await?;
        let nodes = [node];
        match steadily(client, || client.promote_members(&nodes)).await {
            Ok(promoted) => {
                tell_voters(&[node], promoted.changed);
                return Ok(());
            }
            Err(error)
                if Instant::now() < until && ["LEARNER_BEHIND", "NODE_UNREACHABLE"].contains(&error.reason()) =>
            {
                sleep(error.retry_after().unwrap_or(LOOK_EVERY)).await;
            }
            Err(error) => return Err(hint(error, again)),
        }
    }
}

/// Waits until the leader sees it answer and hardly behind.
async fn catch_up(client: &Client, node: u64, until: Instant, again: &str) -> anyhow::Result<()> {
    let bar = output::bar(Some(0), "catching up");
    let outcome = watch_lag(client, node, until, &bar).await;
    bar.finish_and_clear();
    match outcome? {
        true => Ok(()),
        false => {
            let why = format!("node {node} has not caught up yet; it goes on");
            Err(Failure::new(Exit::TryAgain, why).next(again).into())
        }
    }
}

async fn watch_lag(client: &Client, node: u64, until: Instant, bar: &ProgressBar) -> Result<bool, Error> {
    let mut told = Instant::now();
    loop {
        let status = leader_status(client).await?;
        let seen = status.members.iter().find(|member| member.node == node);
        let known = seen.and_then(|member| member.lag);
        let lag = known.unwrap_or(status.last_log_index);
        bar.set_length(status.last_log_index);
        bar.set_position(status.last_log_index.saturating_sub(lag));
        if seen.is_some_and(|member| member.reachable) && known.is_some_and(|lag| lag <= CAUGHT_UP) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        // Without a terminal there is no bar.
        if bar.is_hidden() && told.elapsed() >= TELL_EVERY {
            output::note(format_args!("node {node} is still {lag} log entries behind"));
            told = Instant::now();
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Well below what a promotion takes.
const CAUGHT_UP: u64 = crate::types::limits::CAUGHT_UP_ENTRIES / 2;

fn tell_voters(nodes: &[u64], changed: bool) {
    let verb = if nodes.len() == 1 { "votes" } else { "vote" };
    output::note(format_args!("{} {verb} {}", names(nodes), if changed { "now" } else { "already" }));
}

/// An error with the command to give next, unless its own kind says another.
fn hint(error: Error, next: &str) -> anyhow::Error {
    let failure = Failure::new(super::exit::of_client(&error), error.to_string());
    match error.reason() {
        // The message names the command.
        "NODE_EXISTS" => failure.into(),
        "NODE_NOT_FOUND" | "WOULD_LOSE_QUORUM" | "LAST_VOTER" => failure.next("wharf cluster status").into(),
        _ => failure.next(next).into(),
    }
}

fn names(nodes: &[u64]) -> String {
    let numbers: Vec<String> = nodes.iter().map(u64::to_string).collect();
    format!("{} {}", if nodes.len() == 1 { "node" } else { "nodes" }, numbers.join(", "))
}

/// Asks on a terminal; elsewhere the flag must say it.
fn confirm(question: &str, flag: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        let why = format!("{question} Give {flag} to do it: there is no terminal to ask on");
        return Err(Failure::new(Exit::Usage, why).into());
    }
    let mut err = std::io::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was done").into()),
    }
}
