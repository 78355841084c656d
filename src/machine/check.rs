//! What always holds, recounted from scratch. Tests and simulations run it after every step, and
//! `wharf check` on every node.

use std::collections::BTreeMap;

use super::Machine;
use super::index::{Class, Index, Line, Timer, is_attached};
use super::state::{NONE, QueueNo};
use crate::types::{Fence, PackageId, State as Phase};

impl Machine {
    /// Recounts every invariant; empty if all hold.
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut expect = |holds: bool, what: &dyn Fn() -> String| {
            if !holds {
                wrong.push(what());
            }
        };
        let state = &self.state;
        for (table, sound) in [
            ("packages", state.packages.check()),
            ("queues", state.queues.check()),
            ("sessions", state.sessions.check()),
        ] {
            expect(sound.is_ok(), &|| format!("{table}: {}", sound.clone().err().unwrap_or_default()));
        }

        let mut places: BTreeMap<(QueueNo, &PackageId), u32> = BTreeMap::new();
        let mut fences: BTreeMap<Fence, u32> = BTreeMap::new();
        for (slot, package) in state.packages.iter() {
            let name = || format!("{}/{} (slot {slot})", package.body.queue(), package.body.id());
            let queue = state.queues.get(package.queue);
            expect(queue.is_some_and(|q| q.name == *package.body.queue()), &|| {
                format!("{}: its queue is not there", name())
            });
            expect(places.insert((package.queue, package.body.id()), slot).is_none(), &|| format!("{}: twice", name()));
            expect(package.fence.0 <= state.revision.0, &|| format!("{}: fence {} lies ahead", name(), package.fence));
            expect(package.settled <= package.fence, &|| format!("{}: settled a lease it never had", name()));
            expect(self.find(package.queue, &package.body.id().text()) == Some(slot), &|| {
                format!("{}: not found by id", name())
            });
            let leased = package.phase == Phase::Leased;
            expect(leased == (package.session != NONE), &|| {
                format!("{}: {:?} with session {}", name(), package.phase, package.session)
            });
            if leased {
                expect(state.sessions.get(package.session).is_some(), &|| {
                    format!("{}: its session is not there", name())
                });
                expect(fences.insert(package.fence, slot).is_none(), &|| {
                    format!("{}: fence {} twice", name(), package.fence)
                });
                let armed = self.index.timers.contains(&(package.ticks, Timer::Lease(slot)));
                let attached = state.sessions.get(package.session).is_some_and(|session| is_attached(state, session));
                let unary = state.sessions.get(package.session).is_some_and(|session| session.unary);
                let runs = attached || unary;
                expect(!package.in_hand() || armed || !runs, &|| format!("{}: in hand without a timer", name()));
                expect(!unary || package.in_hand(), &|| format!("{}: prefetched without a stream", name()));
            }
            let finished = package.phase.is_finished();
            expect(!finished || !package.suspect, &|| format!("{}: finished under suspicion", name()));
            expect(!package.leaves() || package.body.payload().is_empty(), &|| {
                format!("{}: keeps its payload", name())
            });
        }
        for (number, session) in state.sessions.iter() {
            let hold = self.index.held(number);
            let held = hold.leases.len();
            expect(hold.in_hand == held.min(session.hands()), &|| {
                format!("session {}: {} in hand of {held}", session.id, hold.in_hand)
            });
            let oldest = hold.leases.values().take(hold.in_hand).all(|slot| state.packages.at(*slot).in_hand());
            expect(oldest, &|| format!("session {}: its oldest leases are not those in hand", session.id));
            let waits = session.unary && !is_attached(state, session);
            expect(!session.draining || held > 0 || waits, &|| {
                format!("session {}: drained and still there", session.id)
            });
        }
        self.compare(&Index::rebuild(state), &mut expect);
        expect(self.undelivered().is_none(), &|| self.undelivered().unwrap_or_default());
        wrong
    }

    /// The live index against one made from scratch.
    fn compare(&self, fresh: &Index, expect: &mut dyn FnMut(bool, &dyn Fn() -> String)) {
        let live = &self.index;
        let mut same = |what: &str, holds: bool| expect(holds, &|| format!("{what} differ from a recount"));
        same("queue names", live.queue_by_name == fresh.queue_by_name);
        same("session ids", live.session_by_id == fresh.session_by_id);
        same("bytes", live.bytes == fresh.bytes);
        same("tombstones", live.tombstones == fresh.tombstones);
        same("leases", live.leases == fresh.leases);
        same("keepers", live.keepers == fresh.keepers);
        same("overfull queues", live.overfull == fresh.overfull);
        same("classes", live.class_by_key.keys().eq(fresh.class_by_key.keys()));
        same("calendar timers", live.alarms == fresh.alarms);
        // A timer may have rung to no effect while its session was away.
        let away = |timer: &Timer| match timer {
            Timer::Grace(number) => self.state.sessions.get(*number).is_none_or(|session| {
                session.attached < self.state.leader_index
                    || (session.unary && !self.index.held(*number).leases.is_empty())
            }),
            Timer::Lease(slot) => {
                let session =
                    self.state.packages.get(*slot).and_then(|package| self.state.sessions.get(package.session));
                !session.is_some_and(|session| session.unary || is_attached(&self.state, session))
            }
            _ => false,
        };
        let here = |index: &Index| index.timers.iter().filter(|(_, timer)| !away(timer)).copied().collect::<Vec<_>>();
        same("timers", here(live) == here(fresh));
        for (number, queue) in self.state.queues.iter() {
            let (live, fresh) = (live.line(number), fresh.line(number));
            same(&format!("orders and counts of {}", queue.name), line_eq(live, fresh));
        }
        for (number, session) in self.state.sessions.iter() {
            let (held, anew) = (live.held(number), fresh.held(number));
            let equal = held.leases == anew.leases
                && held.bytes == anew.bytes
                && held.suspects == anew.suspects
                && held.in_hand == anew.in_hand
                && held.place == anew.place
                && held.clean == anew.clean;
            same(&format!("holdings of session {}", session.id), equal);
            let credit = |index: &Index| {
                let class: &Class = &index.classes[index.held(number).class as usize];
                (class.key.clone(), class.credit.clone(), class.clean.clone(), class.sessions)
            };
            same(&format!("class of session {}", session.id), credit(live) == credit(fresh));
        }
    }

    /// No ready package lies beside matching credit, unless match debt says so.
    fn undelivered(&self) -> Option<String> {
        let idle = self.state.queues.iter().filter(|(number, _)| !self.index.candidates.contains(number));
        let found = idle.filter_map(|(number, queue)| Some((queue, self.choose(number)?))).next();
        let (queue, (choice, session)) = found?;
        let id = &self.state.packages.at(choice.head.slot).body.id();
        let session = &self.state.sessions.at(session).id;
        Some(format!("{}/{id} is ready, session {session} has credit, and no match debt is noted", queue.name))
    }
}

fn line_eq(live: &Line, fresh: &Line) -> bool {
    let counts = |line: &Line| {
        (line.scheduled, line.ready, line.leased, line.bytes, line.finished_bytes, line.sessions, line.referred)
    };
    counts(live) == counts(fresh)
        && live.ids.len() == fresh.ids.len()
        && live.graves.len() == fresh.graves.len()
        && live.roll == fresh.roll
        && live.kept == fresh.kept
        && live.all == fresh.all
        && live.kinds == fresh.kinds
        && live.finished == fresh.finished
        && live.dead == fresh.dead
        && live.classes.len() == fresh.classes.len()
        && (live.finished_timer, live.grave_timer) == (fresh.finished_timer, fresh.grave_timer)
}
