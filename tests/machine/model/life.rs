//! What time does, and how a package moves from state to state.

use wharf::machine::Machine;
use wharf::types::{Cause, State};

use super::{Check, Due, Key, Model, Package, ensure};

impl Model {
    pub(super) fn tick(&mut self, machine: &Machine) -> Check {
        let (ticks, wall) = (self.ticks, self.wall);
        // Graces. What is held without a stream outlives them, and its end is told apart below.
        for name in self.over(false) {
            let free = self.sessions[&name].by_failover;
            self.close(&name, !free, machine)?;
        }
        // Leases.
        let late: Vec<Key> = self
            .packages
            .iter()
            .filter(|(_, package)| package.deadline.is_some_and(|deadline| ticks >= deadline))
            .filter(|(_, package)| {
                let holder = package.holder.as_ref().and_then(|name| self.sessions.get(name));
                holder.is_some_and(|session| session.unary || session.detached.is_none())
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in late {
            let holder = self.package(&key).holder.clone().unwrap_or_default();
            // First what is prefetched goes back, so that it does not move up into the hand.
            let session = &self.sessions[&holder];
            let prefetch: Vec<Key> = session.prefetch().iter().map(|fence| session.leases[fence].clone()).collect();
            for key in prefetch {
                self.take_away(&key, Some(Cause::Reclaimed));
                self.back(&key);
            }
            let fence = self.packages[&key].fence;
            let session = self.sessions.get_mut(&holder).expect("it holds a package");
            session.silent = !session.unary;
            if session.unary && fence > session.received {
                // Nobody ever got it.
                self.take_away(&key, Some(Cause::Released));
                self.back(&key);
                continue;
            }
            self.take_away(&key, Some(Cause::TimedOut));
            self.charge(&key, false, None, machine)?;
        }
        self.close_the_drained();
        for name in self.over(true) {
            let session = self.sessions.get_mut(&name).expect("just looked at");
            if session.leases.is_empty() {
                self.sessions.remove(&name);
            } else if session.by_failover {
                session.detached = Some((ticks, self.session_grace));
                session.by_failover = false;
            }
        }
        // What is due, and what is over.
        for package in self.packages.values_mut().filter(|package| package.gone.is_none()) {
            let due = match package.due {
                Some(Due::Wall(at)) => wall >= at,
                Some(Due::Ticks(at)) => ticks >= at,
                None => false,
            };
            if package.state == State::Scheduled && due {
                package.state = State::Ready;
                package.due = None;
            }
        }
        let expired: Vec<Key> = self
            .packages
            .iter()
            .filter(|(_, package)| matches!(package.state, State::Ready | State::Scheduled) && package.gone.is_none())
            .filter(|(_, package)| package.expire.is_some_and(|at| wall >= at))
            .map(|(key, _)| key.clone())
            .collect();
        for key in expired {
            self.finish(&key, State::Expired);
        }
        // What was kept long enough, and remembered long enough.
        for (key, package) in &mut self.packages {
            let settings = &self.queues[&key.0].settings;
            if package.leaves() && ticks >= package.finish + settings.keep_finished_ms.unwrap_or(0) {
                package.gone = Some(ticks);
            }
        }
        self.forget_tombstones();
        Ok(())
    }

    /// Sessions whose grace is over.
    fn over(&self, unary: bool) -> Vec<String> {
        let over = self.sessions.iter().filter(|(_, session)| {
            session.unary == unary && session.detached.is_some_and(|(since, grace)| self.ticks >= since + grace)
        });
        over.map(|(name, _)| name.clone()).collect()
    }

    /// Ids whose window is over are new again, at that very tick.
    pub(super) fn forget_tombstones(&mut self) {
        let (queues, ticks) = (&self.queues, self.ticks);
        self.packages.retain(|key, package| {
            let window = queues[&key.0].settings.dedup_window_ms.unwrap_or(0);
            package.gone.is_none_or(|gone| ticks < gone + window)
        });
    }

    pub(super) fn package(&mut self, key: &Key) -> &mut Package {
        self.packages.get_mut(key).expect("looked up before")
    }

    pub(super) fn lease_ms(&self, queue: &str) -> u64 {
        self.queues[queue].settings.lease_ms.unwrap_or(0)
    }

    /// Takes a package out of its holder's hands, and the next moves up; where it goes says the
    /// caller.
    pub(super) fn unlease(&mut self, key: &Key, cause: Option<Cause>) {
        self.take_away(key, cause);
        self.move_up();
    }

    pub(super) fn take_away(&mut self, key: &Key, cause: Option<Cause>) {
        if let Some(cause) = cause {
            self.queue(&key.0).lease_ends[cause as usize] += 1;
        }
        let package = self.package(key);
        let (holder, fence) = (package.holder.take(), package.fence);
        package.deadline = None;
        if let Some(session) = holder.and_then(|holder| self.sessions.get_mut(&holder)) {
            session.leases.remove(&fence);
        }
    }

    /// Whatever moved up into a hand has its lease from now.
    pub(super) fn move_up(&mut self) {
        for session in self.sessions.values() {
            for fence in session.in_hand() {
                let key = &session.leases[&fence];
                let lease = self.queues[&key.0].settings.lease_ms.unwrap_or(0);
                let package = self.packages.get_mut(key).expect("leased packages are there");
                package.deadline.get_or_insert(self.ticks + lease);
            }
        }
    }

    /// Back to its old place, unless its time is over.
    pub(super) fn back(&mut self, key: &Key) {
        let wall = self.wall;
        let package = self.package(key);
        package.state = State::Ready;
        if package.expire.is_some_and(|at| wall >= at) {
            self.finish(key, State::Expired);
        }
    }

    /// An attempt is counted: again later, or DEAD.
    pub(super) fn charge(&mut self, key: &Key, permanent: bool, delay: Option<u64>, machine: &Machine) -> Check {
        let (ticks, wall) = (self.ticks, self.wall);
        let settings = self.queues[&key.0].settings.clone();
        let package = self.package(key);
        package.attempts += 1;
        if permanent || package.attempts >= package.max_attempts {
            let (fence, copy) = (package.fence, package.clone());
            let dead_letters = settings.dead_letter_queue.unwrap_or_default();
            package.moved = !dead_letters.is_empty();
            self.finish(key, State::Dead);
            if !dead_letters.is_empty() {
                self.bury(&dead_letters, &key.1, fence, copy);
            }
            return Ok(());
        }
        if package.expire.is_some_and(|at| wall >= at) {
            self.finish(key, State::Expired);
            return Ok(());
        }
        let (least, most) = match delay {
            Some(delay) => (delay, delay),
            None => {
                let initial = settings.backoff_initial_ms.unwrap_or(0);
                let multiplier = u64::from(settings.backoff_multiplier_milli.unwrap_or(1000));
                let mut full = initial;
                for _ in 1..package.attempts {
                    full = full * multiplier / 1000;
                }
                let full = full.min(settings.backoff_max_ms.unwrap_or(u64::MAX));
                (full * 9 / 10, full * 11 / 10)
            }
        };
        package.state = if most == 0 { State::Ready } else { State::Scheduled };
        package.due = Some(Due::Ticks(ticks + least));
        if least != most {
            // The jitter is the machine's own; a second look shows what it chose.
            let view = machine.package(&key.0, &key.1).map_err(|reject| format!("{key:?}: {reject:?}"))?;
            if let (State::Scheduled, Some(due)) = (view.state, view.due) {
                let chosen = due.0.saturating_sub(wall);
                ensure!((least..=most).contains(&chosen), "{key:?}: backoff {chosen} is not in {least}..{most}");
                package.due = Some(Due::Ticks(ticks + chosen));
            }
        }
        Ok(())
    }

    /// The copy among the dead letters.
    pub(super) fn bury(&mut self, queue: &str, id: &str, fence: u64, original: Package) {
        let target = self.queue(queue);
        target.places += 1;
        target.submitted += 1;
        let copy = Package {
            state: State::Ready,
            place: target.places,
            max_attempts: target.settings.max_attempts.unwrap_or(5),
            attempts: 0,
            fence: 0,
            holder: None,
            deadline: None,
            suspect: false,
            due: None,
            expire: None,
            settled: None,
            moved: false,
            gone: None,
            ..original
        };
        self.packages.insert((queue.to_owned(), format!("{id}#{fence}")), copy);
    }

    pub(super) fn finish(&mut self, key: &Key, state: State) {
        self.end(key, state);
        self.trim(&key.0);
    }

    /// Finished, and nobody else goes for it.
    pub(super) fn end(&mut self, key: &Key, state: State) {
        let ticks = self.ticks;
        let package = self.package(key);
        package.state = state;
        package.finish = ticks;
        package.due = None;
        package.suspect = false;
        let queue = self.queue(&key.0);
        match state {
            State::Completed => queue.completed += 1,
            State::Cancelled => queue.cancelled += 1,
            State::Expired => queue.expired += 1,
            _ => {}
        }
        self.finished_now.insert(key.clone());
    }

    fn trim(&mut self, queue: &str) {
        let (ticks, keep) = (self.ticks, self.queues[queue].settings.keep_finished_count.unwrap_or(u64::MAX));
        // By count: the first finished go first.
        let mut kept: Vec<(u64, u64, Key)> = self
            .packages
            .iter()
            .filter(|(other, package)| other.0 == queue && package.leaves())
            .map(|(other, package)| (package.finish, package.place, other.clone()))
            .collect();
        kept.sort();
        // Which of those that finished at one instant went first, `compare` leaves open.
        let surplus = kept.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
        for (_, _, other) in kept.into_iter().take(surplus) {
            self.package(&other).gone = Some(ticks);
        }
    }
}
