//! Linearizable read points, shared by all who wait for one.
//!
//! Invariants: a barrier is answered by a round that began after it was asked for. A round asks a
//! quorum (read index); leases are never trusted.

use std::sync::Arc;
use std::time::Duration;

use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::handle::{ProposeError, Standing};
use super::peer_server::Raft;
use crate::types::limits;
use crate::types::mutant::{self, Mutant};

type Answer = oneshot::Sender<Result<(), ProposeError>>;

/// Hands barriers to the task that asks.
#[derive(Clone)]
pub struct Reads {
    ask: mpsc::Sender<Answer>,
    standing: watch::Receiver<Standing>,
}

impl Reads {
    /// Starts the task; it ends with the last `Reads`.
    pub fn spawn(raft: Raft, standing: watch::Receiver<Standing>) -> Arc<Self> {
        let (reads, asked) = Self::new(standing.clone());
        tokio::spawn(run(raft, asked, standing));
        Arc::new(reads)
    }

    fn new(standing: watch::Receiver<Standing>) -> (Self, mpsc::Receiver<Answer>) {
        let (ask, asked) = mpsc::channel(limits::MAX_BARRIERS_WAITING);
        (Self { ask, standing }, asked)
    }

    pub async fn barrier(&self, deadline: Duration) -> Result<(), ProposeError> {
        not_leading(&self.standing)?;
        let (answer, answered) = oneshot::channel();
        let wait = async {
            self.ask.send(answer).await.map_err(|_| ProposeError::ShuttingDown)?;
            answered.await.unwrap_or(Err(ProposeError::ShuttingDown))
        };
        timeout(deadline, wait).await.unwrap_or(Err(ProposeError::Unknown { why: "no quorum answered in time" }))
    }
}

fn not_leading(standing: &watch::Receiver<Standing>) -> Result<(), ProposeError> {
    let standing = standing.borrow();
    if standing.leading.is_some() {
        return Ok(());
    }
    Err(ProposeError::NotLeader { leader: standing.leader.clone() })
}

async fn run(raft: Raft, mut asked: mpsc::Receiver<Answer>, standing: watch::Receiver<Standing>) {
    let mut round = Vec::new();
    while asked.recv_many(&mut round, limits::MAX_BARRIERS_WAITING).await > 0 {
        if mutant::is(Mutant::StaleRead) {
            round.drain(..).for_each(|answer| drop(answer.send(not_leading(&standing))));
            continue;
        }
        let result = match raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            // Leads no more, or cannot know: either way this node has no read point to give.
            Err(_) => Err(not_leading(&standing).err().unwrap_or(ProposeError::NotLeader { leader: None })),
        };
        for answer in round.drain(..) {
            // The caller may have given up.
            let _ = answer.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn barriers_past_a_round_wait_outside_for_the_next_one() {
        const MOST: usize = limits::MAX_BARRIERS_WAITING;
        let (_leads, standing) = watch::channel(Standing { leading: Some(1), ..Standing::default() });
        let (reads, mut asked) = Reads::new(standing);
        let barrier = || {
            let reads = reads.clone();
            async move { reads.barrier(Duration::from_secs(1)).await }
        };
        let barriers: Vec<_> = (0..MOST + 6).map(|_| tokio::spawn(barrier())).collect();
        while asked.len() < MOST {
            tokio::task::yield_now().await;
        }
        // Each was polled by now.
        tokio::task::yield_now().await;
        assert_eq!((asked.len(), reads.ask.capacity()), (MOST, 0));
        let mut rounds = Vec::new();
        while rounds.iter().sum::<usize>() < MOST + 6 {
            let mut round = Vec::new();
            rounds.push(asked.recv_many(&mut round, MOST).await);
            round.into_iter().for_each(|answer| drop(answer.send(Ok(()))));
        }
        assert_eq!(rounds[0], MOST, "{rounds:?}");
        for barrier in barriers {
            assert_eq!(barrier.await.expect("it ends"), Ok(()));
        }
        // Nobody answers any more.
        let late = barrier().await;
        assert_eq!(late, Err(ProposeError::Unknown { why: "no quorum answered in time" }));
    }
}
