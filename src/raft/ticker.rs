//! The leader's own commands: `Tick` while timers are armed, `Advance` while work is left over.
//!
//! Invariants: one in flight at a time; nothing is proposed while the state waits for nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use super::clock::Stamper;
use super::handle::{Lane, Responder, Standing};
use super::machine_adapter::State;
use super::proposer::Proposer;
use crate::machine::command::{Advance, Command, Op, Tick};
use crate::types::limits;

/// Under load the state is looked at this often, not after every batch.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The task: until the node stops.
pub async fn run(
    state: Arc<State>,
    stamper: Arc<Stamper>,
    proposer: Arc<Proposer>,
    mut standing: watch::Receiver<Standing>,
) {
    let mut ticked = Instant::now();
    loop {
        if standing.borrow_and_update().leading.is_none() {
            if standing.changed().await.is_err() {
                return;
            }
            ticked = Instant::now();
            continue;
        }
        let summary = state.machine.read().summary();
        let due = summary.next_timer_ms.map(|ms| {
            let passed = stamper.ticks().since(summary.ticks);
            let most = Duration::from_millis(limits::TICK_EVERY_MS).saturating_sub(ticked.elapsed());
            Duration::from_millis(ms.saturating_sub(passed)).min(most)
        });
        if summary.needs_advance {
            propose(&proposer, Op::Advance(Advance {})).await;
        } else if due.is_some_and(|due| due.is_zero()) {
            propose(&proposer, Op::Tick(Tick {})).await;
            ticked = Instant::now();
        } else {
            let due = due.unwrap_or(Duration::MAX);
            tokio::select! {
                biased;
                changed = standing.changed() => if changed.is_err() { return },
                () = state.applied.notified() => sleep(LOOK_EVERY.min(due)).await,
                () = sleep(due) => {}
            }
        }
    }
}

/// Proposes and waits; whatever the answer, the state tells what is next.
async fn propose(proposer: &Proposer, op: Op) {
    let (answer, answered) = oneshot::channel();
    proposer.send(Lane::Settle, &Command { op: Some(op) }, Responder::Oneshot(answer));
    if !matches!(answered.await, Ok(Ok(_))) {
        // Leadership is about to end, or too much waits.
        sleep(LOOK_EVERY).await;
    }
}
