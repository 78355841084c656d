//! Judges what the machine chose and what it shows: grants, hints, states, counters.

use std::collections::BTreeSet;

use wharf::machine::view::SessionStatus;
use wharf::machine::{Applied, Effect, Machine};
use wharf::types::{Cause, State};

use super::{Check, Key, Model, Package, Session, ensure};

impl Model {
    /// Judges the grants of a batch, in their order, which is that of the fences.
    pub(super) fn grants(&mut self, applied: &Applied) -> Check {
        let mut grants = Vec::new();
        for effect in &applied.effects {
            let Effect::Deliver { session, epoch, deliveries } = effect else { continue };
            let known =
                self.sessions.get(&**session).ok_or_else(|| format!("a delivery to {session}, which is not"))?;
            ensure!(known.epoch >= epoch.0, "a delivery to {session} in epoch {}, it is in {}", epoch.0, known.epoch);
            for delivery in deliveries {
                let key = (delivery.body.queue().to_string(), delivery.body.id().to_string());
                grants.push((delivery.fence.0, session.to_string(), key, delivery.attempt, epoch.0));
            }
        }
        grants.sort();
        let mut resent = BTreeSet::new();
        for (fence, session, key, attempt, epoch) in grants {
            let why = |text: &str| format!("{key:?} to {session} under {fence}: {text}");
            // Sent again after a Hello; another command of the batch may have settled it since.
            if self.unreceived.contains(&fence) {
                resent.insert(fence);
                continue;
            }
            ensure!(epoch == self.sessions[&session].epoch, "{}", why("of an older epoch"));
            ensure!(fence > self.highest_fence, "{}", why("the fence does not grow"));
            self.highest_fence = fence;
            let package = self.packages.get(&key).ok_or_else(|| why("there is no such package"))?;
            ensure!(package.gone.is_none() && package.state == State::Ready, "{}", why(&format!("it is {package:?}")));
            ensure!(attempt == package.attempts + 1, "{}", why(&format!("attempt {attempt}, {package:?}")));
            ensure!(self.eligible(&session, &key), "{}", why(&format!("not allowed: {:?}", self.sessions[&session])));
            self.first_in_line(&session, &key).map_err(|text| why(&text))?;
            self.fairest(&session, &key).map_err(|text| why(&text))?;
            let package = self.package(&key);
            package.state = State::Leased;
            package.fence = fence;
            package.holder = Some(session.clone());
            package.due = None;
            self.sessions.get_mut(&session).expect("checked above").leases.insert(fence, key);
        }
        let held: BTreeSet<u64> = self.sessions.values().flat_map(|session| session.leases.keys().copied()).collect();
        let unreceived = std::mem::take(&mut self.unreceived);
        let missing: Vec<&u64> = unreceived.difference(&resent).filter(|fence| held.contains(fence)).collect();
        ensure!(missing.is_empty(), "never received and not sent again: {missing:?}");
        Ok(())
    }

    /// May this session have this package now?
    pub(super) fn eligible(&self, name: &str, key: &Key) -> bool {
        let (session, package, queue) = (&self.sessions[name], &self.packages[key], &self.queues[&key.0]);
        let cap = queue.settings.max_in_flight.unwrap_or(0) as usize;
        let leased = || self.packages.iter().filter(|(other, p)| other.0 == key.0 && p.state == State::Leased).count();
        package.gone.is_none()
            && package.state == State::Ready
            && session.credit() > 0
            && session.queues.contains(&key.0)
            && (session.kinds.is_empty() || session.kinds.contains(&package.kind))
            && !queue.paused
            && (cap == 0 || leased() < cap)
            && !(package.suspect && self.holds_suspect(session))
    }

    pub(super) fn holds_suspect(&self, session: &Session) -> bool {
        session.leases.values().any(|key| self.packages[key].suspect)
    }

    /// In its queue it has the highest priority and is the oldest of that, or the oldest of all.
    pub(super) fn first_in_line(&self, session: &str, key: &Key) -> Check {
        let package = &self.packages[key];
        let others = || self.packages.iter().filter(|(other, _)| other.0 == key.0 && self.eligible(session, other));
        let before = others().find(|(_, p)| {
            (std::cmp::Reverse(p.priority), p.place) < (std::cmp::Reverse(package.priority), package.place)
        });
        let older = others().find(|(_, p)| p.place < package.place);
        match (before, older) {
            (Some((before, _)), Some((older, _))) => {
                Err(format!("{} goes before it, and {} is older", before.1, older.1))
            }
            _ => Ok(()),
        }
    }

    /// No session of the same subscription that may have it has a lower share.
    pub(super) fn fairest(&self, name: &str, key: &Key) -> Check {
        let chosen = &self.sessions[name];
        for (other_name, other) in &self.sessions {
            let same = other.queues == chosen.queues && other.kinds == chosen.kinds;
            if !same || !self.eligible(other_name, key) {
                continue;
            }
            let lower = other.used() * u64::from(chosen.max) < chosen.used() * u64::from(other.max);
            ensure!(!lower, "{other_name} has a lower share: {other:?} against {chosen:?}");
        }
        Ok(())
    }

    /// No ready package beside credit that may have it.
    pub(super) fn nothing_left(&self) -> Check {
        for name in self.sessions.keys() {
            for key in self.packages.keys() {
                ensure!(
                    !self.eligible(name, key),
                    "{key:?} is ready and {name} may have it: {:?}",
                    self.sessions[name]
                );
            }
        }
        Ok(())
    }

    pub(super) fn note_ended(&mut self) {
        for (name, queue) in &mut self.queues {
            let live =
                self.packages.iter().any(|(key, p)| key.0 == *name && p.gone.is_none() && !p.state.is_finished());
            let ended = queue.sealed && !live;
            if ended && !queue.ended {
                self.ended_now.insert(name.clone());
            }
            queue.ended = ended;
        }
    }

    /// Who waits for a package or a queue is told, once.
    pub(super) fn hints(&self, applied: &Applied) -> Check {
        let mut finished = BTreeSet::new();
        for change in applied.changes.iter().filter(|change| change.to.is_finished()) {
            let key = (change.queue().to_string(), change.id.to_string());
            ensure!(finished.insert(key), "{}/{} finishes twice", change.queue(), change.id);
        }
        let mut ended = BTreeSet::new();
        for effect in &applied.effects {
            if let Effect::QueueEnded { queue } = effect {
                ensure!(ended.insert(queue.to_string()), "{queue} ends twice");
            }
        }
        ensure!(finished == self.finished_now, "finished: told {finished:?}, are {:?}", self.finished_now);
        ended.retain(|name| self.ended_now.contains(name) || !self.revived_now.contains(name));
        ensure!(ended == self.ended_now, "ended: told {ended:?}, are {:?}", self.ended_now);
        Ok(())
    }

    /// State by state, counter by counter.
    pub(super) fn compare(&mut self, machine: &Machine) -> Check {
        for (key, mine) in &self.packages {
            let view = machine.package(&key.0, &key.1).map_err(|reject| format!("{key:?}: {reject:?}, {mine:?}"))?;
            let why = || format!("{key:?}:\n  model   {mine:?}\n  machine {view:?}");
            if mine.gone.is_some() {
                ensure!(view.body.is_none(), "should be a tombstone: {}", why());
                continue;
            }
            ensure!(view.body.is_some(), "should be there: {}", why());
            ensure!(view.state == mine.state, "state of {}", why());
            ensure!(view.attempts == mine.attempts, "attempts of {}", why());
            ensure!(view.fence.0 == mine.fence, "fence of {}", why());
            ensure!(view.priority == mine.priority, "priority of {}", why());
            ensure!(view.session.as_deref() == mine.holder.as_deref(), "holder of {}", why());
            ensure!(view.moved_to.is_some() == mine.moved, "moved_to of {}", why());
            let until = mine.deadline.map(|deadline| self.wall + deadline.saturating_sub(self.ticks));
            ensure!(view.lease_expire.map(|wall| wall.0) == until, "lease of {}", why());
        }
        for (name, mine) in &self.queues {
            let view = machine.queue(name).map_err(|reject| format!("{name}: {reject:?}"))?;
            let count = |state| {
                // A DEAD package with a copy among the dead letters is no longer this queue's sorrow.
                let here =
                    |(key, p): &(&Key, &Package)| key.0 == *name && p.gone.is_none() && p.state == state && !p.moved;
                self.packages.iter().filter(here).count() as u64
            };
            for state in [State::Scheduled, State::Ready, State::Leased, State::Dead] {
                let (told, are) = (crate::render::live(&view, state), count(state));
                ensure!(told == are, "{name}: {told} {} told, {are} are", state.as_str());
            }
            let lifetime = [
                ("completed", view.completed, mine.completed),
                ("cancelled", view.cancelled, mine.cancelled),
                ("expired", view.expired, mine.expired),
                ("submitted", view.submitted, mine.submitted),
            ];
            for (what, told, are) in lifetime {
                ensure!(told == are, "{name}: {what} told {told}, are {are}");
            }
            for cause in [Cause::Failed, Cause::TimedOut, Cause::Reclaimed] {
                let (told, are) = (view.lease_ends[cause as usize], mine.lease_ends[cause as usize]);
                ensure!(told == are, "{name}: {} {told} told, {are} are", cause.as_str());
            }
            ensure!(
                (view.paused, view.sealed, view.ended) == (mine.paused, mine.sealed, mine.ended),
                "{name}: {view:?}, {mine:?}"
            );
        }
        let told: Vec<String> = machine.sessions(None).iter().map(|view| view.session.to_string()).collect();
        let are: Vec<String> = self.sessions.keys().cloned().collect();
        ensure!(told == are, "sessions told {told:?}, are {are:?}");
        for (name, mine) in &self.sessions {
            let view = machine.session(name).map_err(|reject| format!("{name}: {reject:?}"))?;
            let why = || format!("{name}:\n  model   {mine:?}\n  machine {view:?}");
            ensure!(view.epoch.0 == mine.epoch, "epoch of {}", why());
            ensure!(view.leased as usize == mine.leases.len(), "leases of {}", why());
            ensure!(view.prefetched as usize == mine.prefetch().len(), "prefetch of {}", why());
            let held: Vec<u64> = machine.held(name).iter().map(|delivery| delivery.fence.0).collect();
            let are: Vec<u64> = mine.leases.keys().copied().collect();
            ensure!(held == are, "held {held:?} of {}", why());
            let status = match view.status {
                SessionStatus::Attached => !mine.silent && !mine.draining && mine.detached.is_none(),
                SessionStatus::Detached => mine.detached.is_some(),
                SessionStatus::Draining => mine.draining,
                SessionStatus::Silent => mine.silent,
            };
            ensure!(status, "status of {}", why());
        }
        Ok(())
    }
}
