//! The leader's own commands: `Tick` while timers are armed, `Advance` while work is left over.
//!
//! Invariants: one in flight at a time; nothing is proposed while the state waits for nothing.
//! While both are wanted they take turns: a long sweep must not hold up time, nor a crowd of timers
//! the sweep. A calendar that stands still, or was set back, is waited for and not proposed to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use super::clock::Stamper;
use super::handle::{Lane, Responder, Standing};
use super::machine_adapter::State;
use super::proposer::Proposer;
use crate::machine::command::{Advance, Command, Op, Tick};
use crate::machine::view::Summary;
use crate::types::{Ticks, Wall, limits};

const TICK_EVERY: Duration = Duration::from_millis(limits::TICK_EVERY_MS);

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
    let mut last = None;
    loop {
        if standing.borrow_and_update().leading.is_none() {
            if standing.changed().await.is_err() {
                return;
            }
            ticked = Instant::now();
            continue;
        }
        let summary = state.machine.read().summary();
        let due = until_due(&summary, stamper.ticks(), stamper.wall(), ticked.elapsed());
        let next = next(due.is_some_and(|due| due.is_zero()), summary.needs_advance, last);
        last = next;
        match next {
            Some(Step::Advance) => propose(&proposer, Op::Advance(Advance {})).await,
            Some(Step::Tick) => {
                propose(&proposer, Op::Tick(Tick {})).await;
                ticked = Instant::now();
            }
            None => {
                // The calendar may jump ahead: it is looked at in between.
                let wait = due.map_or(Duration::MAX, |due| due.min(TICK_EVERY));
                tokio::select! {
                    biased;
                    changed = standing.changed() => if changed.is_err() { return },
                    () = state.applied.notified() => sleep(LOOK_EVERY.min(wait)).await,
                    () = sleep(wait) => {}
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Tick,
    Advance,
}

fn next(tick_due: bool, needs_advance: bool, last: Option<Step>) -> Option<Step> {
    match (tick_due, needs_advance) {
        (true, true) if last == Some(Step::Tick) => Some(Step::Advance),
        (true, _) => Some(Step::Tick),
        (false, true) => Some(Step::Advance),
        (false, false) => None,
    }
}

/// How long until a `Tick` is due, by what the next stamp would say. None: nothing waits for time.
fn until_due(summary: &Summary, ticks: Ticks, wall: Wall, since_tick: Duration) -> Option<Duration> {
    let timer = summary.next_timer_ms.map(|ms| {
        let left = Duration::from_millis(ms.saturating_sub(ticks.since(summary.ticks)));
        left.min(TICK_EVERY.saturating_sub(since_tick))
    });
    let alarm = summary.next_alarm.map(|alarm| Duration::from_millis(alarm.since(wall)));
    timer.into_iter().chain(alarm).min()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    #[test]
    fn a_long_sweep_and_due_timers_take_turns() {
        let mut last = None;
        let mut steps = Vec::new();
        for _ in 0..4 {
            last = next(true, true, last);
            steps.extend(last);
        }
        assert_eq!(steps, [Step::Tick, Step::Advance, Step::Tick, Step::Advance]);
        assert_eq!(next(true, false, Some(Step::Tick)), Some(Step::Tick));
        assert_eq!(next(false, true, Some(Step::Advance)), Some(Step::Advance));
        assert_eq!(next(false, false, Some(Step::Tick)), None);
    }

    #[test]
    fn timers_go_by_ticks_and_alarms_by_the_calendar() {
        let (ms, idle) = (Duration::from_millis, Machine::new().summary());
        let idle = Summary { ticks: Ticks(1_000), wall: Wall(50_000), ..idle };
        assert_eq!(until_due(&idle, Ticks(9_000), Wall(0), ms(9_000)), None);

        let timer = Summary { next_timer_ms: Some(300), ..idle.clone() };
        assert_eq!(until_due(&timer, Ticks(1_100), Wall(99_000), ms(0)), Some(ms(200)));
        assert_eq!(until_due(&timer, Ticks(1_300), Wall(0), ms(0)), Some(ms(0)));
        assert_eq!(until_due(&timer, Ticks(1_000), Wall(0), TICK_EVERY), Some(ms(0)), "ticks go on while one is armed");

        let alarm = Summary { next_alarm: Some(Wall(60_000)), ..idle };
        assert_eq!(until_due(&alarm, Ticks(90_000), Wall(50_000), TICK_EVERY), Some(ms(10_000)), "ticks do not count");
        assert_eq!(until_due(&alarm, Ticks(1_000), Wall(60_000), ms(0)), Some(ms(0)));
    }
}
