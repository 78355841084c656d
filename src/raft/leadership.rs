//! Taking and leaving office.
//!
//! Invariants: nobody is served before a linearizable barrier and this leader's `LeaderStarted` are
//! applied: from then on the state has all that was ever confirmed. When leadership ends, waiting
//! proposals are refused, those in flight are answered, the effect feed stops, and `Standing` says
//! so, in this order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::RaftServerMetrics;
use openraft::{ReadPolicy, ServerState};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use super::Fatal;
use super::clock::Stamper;
use super::data_dir::DataDir;
use super::handle::{Leader, ProposeError, Responder, Standing};
use super::machine_adapter::State;
use super::peer_server::Raft;
use super::peers::Peers;
use super::proposer::Proposer;
use super::types::TypeConfig;
use crate::machine::command::{Command, LeaderStarted, Op};
use crate::types::{NodeId, limits};

/// After an election Raft refuses a leader's first moves until a quorum has answered it.
const TRY_AGAIN: Duration = Duration::from_millis(3);

/// A leader looks this often whether a quorum still answers it.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A leader that this node has not heard for so long is not named any more.
const UNHEARD: Duration = Duration::from_millis(limits::QUORUM_LOST_MS);

/// What is known of the leader, from look to look.
#[derive(Default)]
struct Known {
    /// Since when nothing connects this node to it.
    unheard: Option<tokio::time::Instant>,
    /// The election that was counted last: term and leader.
    counted: Option<(u64, NodeId)>,
}

/// An office won, until it is lost.
struct Office {
    term: u64,
    /// The rest of the way to serving. It goes on only where `run` waits for it, so whoever drops it
    /// knows that it does nothing more.
    taking: Option<BoxFuture<'static, bool>>,
}

/// What a look means for the office held: what to leave, and what to take. Terms may have passed
/// between two looks: an office lost and another won is both at once.
fn turn(held: Option<u64>, won: Option<u64>) -> (Option<u64>, Option<u64>) {
    if held == won { (None, None) } else { (held, won) }
}

/// Waits until the office that is being taken can be opened; gives its term, once.
async fn taken(office: &mut Option<Office>) -> u64 {
    if let Some(office) = office
        && let Some(taking) = &mut office.taking
    {
        let ready = taking.await;
        office.taking = None;
        if ready {
            return office.term;
        }
    }
    std::future::pending().await
}

/// The parts of office; see the module.
#[derive(Clone)]
pub struct Leadership {
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub proposer: Arc<Proposer>,
    pub state: Arc<State>,
    pub stamper: Arc<Stamper>,
    pub standing: watch::Sender<Standing>,
    pub disk: Arc<DataDir>,
    pub stopping: Arc<AtomicBool>,
    pub fatal: mpsc::Sender<Fatal>,
}

impl Leadership {
    /// The task: until Raft stops.
    pub async fn run(self) {
        let mut metrics = self.raft.server_metrics();
        let mut office: Option<Office> = None;
        let mut known = Known::default();
        loop {
            // Cloned at once: a held borrow blocks Raft's core.
            let view = metrics.borrow_and_update().clone();
            self.note_members(&view);
            let won = self.won(&view);
            let (lost, begun) = turn(office.as_ref().map(|office| office.term), won);
            if let Some(term) = lost {
                office = None;
                self.leave(term);
            }
            self.note_leader(&view, won, &mut known);
            if let Some(term) = begun {
                tracing::info!(term, "elected leader");
                self.proposer.start(term);
                office = Some(Office { term, taking: Some(self.clone().take(term).boxed()) });
            }
            tokio::select! {
                biased;
                changed = metrics.changed() => if changed.is_err() { break },
                term = taken(&mut office) => self.open(term),
                // A lost quorum or leader changes no metric.
                () = sleep(LOOK_EVERY), if view.current_leader.is_some() => {}
            }
        }
        if let Some(lost) = office {
            self.leave(lost.term);
        }
        self.proposer.stop();
        if !self.stopping.load(Ordering::Relaxed) {
            let running = self.raft.metrics().borrow_watched().running_state.clone();
            let told = self.disk.log_error().or_else(|| running.err().map(|fatal| fatal.to_string()));
            let why = told.unwrap_or_else(|| "without a reason".to_owned());
            // A reason that is already there counts more.
            let _ = self.fatal.try_send(Fatal::Raft(why));
        }
    }

    /// The term in which this node leads and a quorum knows it. Raft itself lets a leader that lost
    /// its quorum stay in office until it hears of another.
    fn won(&self, view: &RaftServerMetrics<TypeConfig>) -> Option<u64> {
        let leads = view.state == ServerState::Leader && view.current_leader == Some(self.peers.node);
        (leads && !self.lost_quorum(view)).then_some(view.vote.leader_id.term)
    }

    fn lost_quorum(&self, view: &RaftServerMetrics<TypeConfig>) -> bool {
        let acked = self.raft.metrics().borrow_watched().last_quorum_acked.map(|at| at.elapsed());
        let most = Duration::from_millis(limits::QUORUM_LOST_MS);
        view.membership_config.voter_ids().count() > 1 && acked.is_some_and(|elapsed| elapsed > most)
    }

    fn note_members(&self, view: &RaftServerMetrics<TypeConfig>) {
        let membership = view.membership_config.membership();
        let voters: Vec<_> = membership.voter_ids().collect();
        let at = view.membership_config.log_id().as_ref().map_or(0, |log_id| log_id.index);
        self.peers.set_members(at, membership.nodes().map(|(node, member)| (*node, member, voters.contains(node))));
    }

    fn note_leader(&self, view: &RaftServerMetrics<TypeConfig>, won: Option<u64>, known: &mut Known) {
        let term = view.vote.leader_id.term;
        let leader = view.current_leader.filter(|node| self.is_heard(*node, won, known)).and_then(|node| {
            let member = view.membership_config.membership().get_node(&node)?.clone();
            Some(Leader { node, term, member })
        });
        if let Some(leader) = &leader
            && known.counted != Some((leader.term, leader.node))
        {
            known.counted = Some((leader.term, leader.node));
            self.state.counters.elections.fetch_add(1, Ordering::Relaxed);
        }
        self.standing.send_if_modified(|standing| {
            let changed = standing.leader != leader;
            if changed {
                standing.leader = leader;
            }
            changed
        });
    }

    /// Raft names the last leader until there is another, though it be long gone. For a while that
    /// is right: whoever asks for it then is told that it changes.
    fn is_heard(&self, leader: NodeId, won: Option<u64>, known: &mut Known) -> bool {
        let heard = if leader == self.peers.node { won.is_some() } else { self.peers.hears(leader) };
        if heard {
            known.unheard = None;
            return true;
        }
        // A leader that lost its quorum knows at once.
        leader != self.peers.node && known.unheard.get_or_insert_with(tokio::time::Instant::now).elapsed() < UNHEARD
    }

    /// From elected to ready to serve; false: the node stops.
    async fn take(self, term: u64) -> bool {
        while self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await.is_err() {
            sleep(TRY_AGAIN).await;
        }
        self.stamper.start();
        self.state.serve_feed(term);
        loop {
            let node = self.peers.node;
            let started = Command { op: Some(Op::LeaderStarted(LeaderStarted { term, node })) };
            let (answer, answered) = oneshot::channel();
            self.proposer.send_first(&started, Responder::Oneshot(answer));
            match answered.await {
                Ok(Ok(_)) => return true,
                Ok(Err(ProposeError::ShuttingDown)) | Err(_) => return false,
                // It may be applied twice: there are no streams yet that the second could cut off.
                Ok(Err(error)) => tracing::debug!(term, %error, "proposing LeaderStarted again"),
            }
            sleep(TRY_AGAIN).await;
        }
    }

    fn open(&self, term: u64) {
        tracing::info!(term, "leading");
        self.proposer.open(term);
        self.standing.send_modify(|standing| {
            standing.leading = Some(term);
            standing.terms_of_office += 1;
        });
    }

    fn leave(&self, term: u64) {
        tracing::info!(term, "no longer leader");
        self.proposer.close();
        self.state.serve_feed(0);
        self.standing.send_modify(|standing| standing.leading = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_office_lost_and_another_won_between_two_looks_is_left_and_taken() {
        assert_eq!(turn(None, Some(3)), (None, Some(3)));
        assert_eq!(turn(Some(3), Some(3)), (None, None));
        assert_eq!(turn(Some(3), Some(5)), (Some(3), Some(5)));
        assert_eq!(turn(Some(5), None), (Some(5), None));
        assert_eq!(turn(None, None), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_office_that_was_left_while_it_was_taken_is_never_opened() {
        let taking = |term, ms| {
            let taking = async move {
                sleep(Duration::from_millis(ms)).await;
                true
            };
            Some(Office { term, taking: Some(taking.boxed()) })
        };
        let mut office = taking(3, 50);
        tokio::select! {
            _ = taken(&mut office) => panic!("too early"),
            () = sleep(Duration::from_millis(49)) => {}
        }
        // Lost and won again: the first would be ready now.
        office = taking(5, 50);
        assert_eq!(taken(&mut office).await, 5);
        let opened_twice = tokio::time::timeout(Duration::from_secs(60), taken(&mut office)).await;
        assert!(opened_twice.is_err(), "once opened, nothing is left to take");
    }
}
