//! Who gets what. Runs at the end of each batch, so that what one command made ready or freed is
//! leased in the same log entry.
//!
//! Queues take turns by a stored cursor. A queue gives its highest priority first, the oldest
//! within it; every [`limits::OLDEST_EVERY`]th grant takes the oldest of all, so nothing starves.
//! The session with the lowest share of its credit in use takes it, ties to the longest unserved.
//! A suspect goes only to a session that holds none.

use std::collections::BTreeMap;

use super::effect::{Delivery, Effect};
use super::index::{Lane, Line, Place};
use super::state::{QueueNo, SessionNo};
use super::tables::ready::{Head, Ready};
use super::{Machine, index::Class};
use crate::types::limits;

/// What waits at the front, and whether it is under suspicion.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    pub(super) head: Head,
    suspect: bool,
}

impl Machine {
    /// Grants until nothing more fits or the batch's budget is spent; what is left is match debt.
    pub(super) fn match_packages(&mut self) {
        let mut deliveries: BTreeMap<SessionNo, Vec<Delivery>> = BTreeMap::new();
        let mut budget = limits::MAX_GRANTS_A_BATCH;
        while budget > 0 {
            let cursor = self.state.cursor;
            let turn = self.index.candidates.range(cursor..).next().or_else(|| self.index.candidates.first());
            let Some(queue) = turn.copied() else { break };
            match self.choose(queue) {
                Some((choice, session)) => {
                    let slot = choice.head.slot;
                    self.lease(slot, session);
                    if self.delivers {
                        deliveries.entry(session).or_default().push(self.delivery(slot));
                    }
                    self.state.cursor = queue + 1;
                    budget -= 1;
                }
                None => {
                    self.index.candidates.remove(&queue);
                }
            }
        }
        for (number, deliveries) in deliveries {
            let (session, epoch) = self.address(number);
            self.now.effects.push(Effect::Deliver { session, epoch, deliveries });
        }
    }

    /// The queue's next package and who takes it, if both are there.
    pub(super) fn choose(&self, number: QueueNo) -> Option<(Choice, SessionNo)> {
        let queue = self.state.queues.get(number)?;
        let line = self.index.line(number);
        let cap = queue.settings.max_in_flight;
        if queue.paused || queue.deleting || line.ready == 0 || (cap > 0 && line.leased >= u64::from(cap)) {
            return None;
        }
        let oldest = (queue.grants + 1) % limits::OLDEST_EVERY == 0;
        let mut best: Option<Choice> = None;
        for class in line.classes.iter().map(|class| &self.index.classes[*class as usize]) {
            for suspect in [false, true] {
                if !has_credit(class, suspect) {
                    continue;
                }
                for head in heads(line, class, suspect, oldest) {
                    let better = best.is_none_or(|best| match oldest {
                        true => head.seq < best.head.seq,
                        false => head.goes_before(&best.head),
                    });
                    if better {
                        best = Some(Choice { head, suspect });
                    }
                }
            }
        }
        let choice = best?;
        let kind = &self.state.packages.at(choice.head.slot).body.kind();
        let classes = line.classes.iter().map(|class| &self.index.classes[*class as usize]);
        let place = classes.filter(|class| class.takes(kind)).filter_map(|class| first(class, choice.suspect)).min()?;
        Some((choice, place.session))
    }
}

fn first(class: &Class, suspect: bool) -> Option<&Place> {
    if suspect { class.clean.first() } else { class.credit.first() }
}

fn has_credit(class: &Class, suspect: bool) -> bool {
    first(class, suspect).is_some()
}

/// The fronts of all that the class takes from the queue.
fn heads(line: &Line, class: &Class, suspect: bool, oldest: bool) -> impl Iterator<Item = Head> {
    let front = move |ready: &Ready| if oldest { ready.oldest() } else { ready.first() };
    let of = move |lane: &Lane| front(lane.of(suspect));
    let all = class.key.1.is_empty().then(|| of(&line.all)).flatten();
    let kinds = class.key.1.iter().filter_map(move |kind| line.kinds.get(kind).and_then(|kind| of(&kind.lane)));
    all.into_iter().chain(kinds)
}
