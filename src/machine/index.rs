//! What is computed from the state: orders, look-ups, timers, counts. Rebuilt on restore, and
//! equal then to what it was (`check` compares them).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::state::{Package, QueueNo, Session, SessionNo, Slot, State};
use super::tables::ids::{Ids, hash_id};
use super::tables::ordered::Ordered;
use super::tables::ready::{Head, Ready};
use super::view::Profile;
use crate::types::mutant::{self, Mutant};
use crate::types::{Fence, QueueName, State as Phase, Ticks, Wall};

pub type ClassNo = u32;

#[derive(Clone, Debug, Default)]
pub struct Index {
    pub queue_by_name: BTreeMap<QueueName, QueueNo>,
    pub session_by_id: BTreeMap<Arc<str>, SessionNo>,
    /// By queue number.
    pub lines: Vec<Line>,
    /// By session number.
    pub holds: Vec<Hold>,
    pub classes: Vec<Class>,
    pub class_by_key: BTreeMap<ClassKey, ClassNo>,
    pub timers: BTreeSet<(Ticks, Timer)>,
    pub alarms: BTreeSet<(Wall, Alarm)>,
    /// Queues where something may be granted: the match debt.
    pub candidates: BTreeSet<QueueNo>,
    /// Queues that keep more finished packages than they should.
    pub overfull: BTreeSet<QueueNo>,
    /// Queues that keep finished packages.
    pub keepers: BTreeSet<QueueNo>,
    pub bytes: u64,
    pub tombstones: u64,
    pub leases: u64,
}

/// Timers of cluster time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// A lease in hand ends.
    Lease(Slot),
    /// A backoff ends.
    Backoff(Slot),
    /// A session without a stream is closed.
    Grace(SessionNo),
    /// Sessions that did not come back after a change of leader are closed.
    Failover,
    /// A queue's oldest finished package goes.
    Finished(QueueNo),
    /// A queue's oldest tombstone goes.
    Tombstone(QueueNo),
}

/// Timers of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// `not_before` comes.
    Due(Slot),
    /// `expire_time` comes.
    Expire(Slot),
}

/// Two ready orders: packages, and packages under suspicion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    pub plain: Ready,
    pub suspects: Ready,
}

impl Lane {
    pub fn of(&self, suspect: bool) -> &Ready {
        if suspect { &self.suspects } else { &self.plain }
    }

    pub fn of_mut(&mut self, suspect: bool) -> &mut Ready {
        if suspect { &mut self.suspects } else { &mut self.plain }
    }
}

/// A kind that is known in a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Packages of this kind in the queue, in any state.
    pub packages: u64,
    pub lane: Lane,
    /// What those without options share.
    pub profile: Arc<Profile>,
}

/// A queue's orders and counts.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub ids: Ids<Slot>,
    /// The low halves of positions in the queue's tombstones.
    pub graves: Ids<u32>,
    /// Every package, in the order of submit.
    pub roll: Ordered,
    pub all: Lane,
    pub kinds: BTreeMap<Arc<str>, Kind>,
    /// What leaves by age, count and bytes, first to go first.
    pub finished: BTreeMap<u64, Slot>,
    pub finished_bytes: u64,
    /// DEAD and not moved.
    pub dead: BTreeMap<u64, Slot>,
    /// Finished packages that are still there, by the number of their state.
    pub kept: [u64; 8],
    pub scheduled: u64,
    pub ready: u64,
    pub leased: u64,
    pub bytes: u64,
    pub classes: BTreeSet<ClassNo>,
    pub sessions: u64,
    /// Queues whose dead-letter queue this is.
    pub referred: u64,
    /// The armed timers.
    pub finished_timer: Option<Ticks>,
    pub grave_timer: Option<Ticks>,
}

impl Line {
    /// What keeps a sealed queue from its end.
    pub fn live(&self) -> u64 {
        self.scheduled + self.ready + self.leased
    }

    /// What counts against `max_packages`.
    pub fn counted(&self) -> u64 {
        self.live() + self.dead.len() as u64
    }

    pub fn count(&mut self, phase: Phase) -> Option<&mut u64> {
        match phase {
            Phase::Scheduled => Some(&mut self.scheduled),
            Phase::Ready => Some(&mut self.ready),
            Phase::Leased => Some(&mut self.leased),
            _ => None,
        }
    }
}

/// What a session holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hold {
    pub leases: BTreeMap<Fence, Slot>,
    pub bytes: u64,
    pub suspects: u32,
    pub in_hand: usize,
    /// The youngest lease that ever came in hand: prefetch lies beyond.
    pub hand_top: Fence,
    pub class: ClassNo,
    /// Its place among those with credit, while it has some.
    pub place: Option<Place>,
    /// It stands among those that may take a suspect, too.
    pub clean: bool,
}

/// Lowest share in use first (in 65536ths of its credit), then the longest unserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub share: u32,
    pub served: u64,
    pub session: SessionNo,
}

/// Queues by number and kinds by name; no kinds: all.
pub type ClassKey = (Vec<QueueNo>, Vec<Arc<str>>);

/// Sessions with one subscription.
#[derive(Clone, Debug, Default)]
pub struct Class {
    pub key: ClassKey,
    pub sessions: u32,
    pub credit: BTreeSet<Place>,
    pub clean: BTreeSet<Place>,
}

impl Class {
    pub fn takes(&self, kind: &str) -> bool {
        self.key.1.is_empty() || self.key.1.binary_search_by(|known| (**known).cmp(kind)).is_ok()
    }
}

impl Index {
    pub fn rebuild(state: &State) -> Self {
        let mut index = Self::default();
        for (number, queue) in state.queues.iter() {
            index.queue_by_name.insert(queue.name.clone(), number);
            let line = index.line_mut(number);
            for (position, grave) in queue.tombstones.iter() {
                line.graves.insert(grave.id_hash as u64, position as u32);
            }
            index.tombstones += queue.tombstones.len();
        }
        for (_, queue) in state.queues.iter() {
            if let Some(target) = index.referred_by(queue) {
                index.line_mut(target).referred += 1;
            }
        }
        for (number, session) in state.sessions.iter() {
            index.session_by_id.insert(session.id.clone(), number);
            index.join_class(number, session);
            if let Some(since) = session.detached {
                index.timers.insert((since.plus(state.cluster.session_grace_ms), Timer::Grace(number)));
            }
        }
        for (slot, package) in state.packages.iter() {
            index.add(slot, package);
            if package.phase == Phase::Leased {
                index.hold(slot, package);
            }
        }
        for (number, session) in state.sessions.iter() {
            index.refresh(state, number, session);
        }
        for (number, _) in state.queues.iter() {
            index.arm_queue(state, number);
            if index.line(number).ready > 0 {
                index.candidates.insert(number);
            }
            if index.is_overfull(state, number) {
                index.overfull.insert(number);
            }
        }
        if state.failover_armed {
            index.timers.insert((state.leader_ticks.plus(state.cluster.failover_grace_ms), Timer::Failover));
        }
        index
    }

    fn referred_by(&self, queue: &super::state::Queue) -> Option<QueueNo> {
        let name = QueueName::parse(&queue.settings.dead_letter_queue).ok()?;
        self.queue_by_name.get(&name).copied()
    }

    /// The queue that is known by this name, canonical or not.
    pub fn queue(&self, name: &str) -> Option<QueueNo> {
        let known = |name: &str| self.queue_by_name.get(name).copied();
        known(name).or_else(|| QueueName::parse(name).ok().and_then(|name| known(name.as_str())))
    }

    pub fn line(&self, queue: QueueNo) -> &Line {
        &self.lines[queue as usize]
    }

    pub fn line_mut(&mut self, queue: QueueNo) -> &mut Line {
        let place = queue as usize;
        if self.lines.len() <= place {
            self.lines.resize_with(place + 1, Line::default);
        }
        &mut self.lines[place]
    }

    pub fn held(&self, session: SessionNo) -> &Hold {
        &self.holds[session as usize]
    }

    pub fn held_mut(&mut self, session: SessionNo) -> &mut Hold {
        let place = session as usize;
        if self.holds.len() <= place {
            self.holds.resize_with(place + 1, Hold::default);
        }
        &mut self.holds[place]
    }

    /// Enters a package: its id, kind, counts, and its place for the state it is in.
    pub fn add(&mut self, slot: Slot, package: &Package) {
        let line = self.line_mut(package.queue);
        line.ids.insert(hash_id(package.body.id().text()), slot);
        line.roll.insert(package.seq, slot);
        match line.kinds.get_mut(package.body.kind()) {
            Some(kind) => kind.packages += 1,
            None => {
                let profile = package.body.profile().plain();
                line.kinds.insert(profile.kind.clone(), Kind { packages: 1, lane: Lane::default(), profile });
            }
        }
        let bytes = package.bytes();
        line.bytes += bytes;
        self.bytes += bytes;
        self.place(slot, package);
    }

    /// Forgets a package that was displaced before.
    pub fn forget(&mut self, slot: Slot, package: &Package) {
        let bytes = package.bytes();
        let line = self.line_mut(package.queue);
        line.ids.remove(hash_id(package.body.id().text()), slot);
        line.roll.remove(package.seq);
        if let Some(kind) = line.kinds.get_mut(package.body.kind()) {
            kind.packages -= 1;
            if kind.packages == 0 {
                line.kinds.remove(package.body.kind());
            }
        }
        line.bytes -= bytes;
        self.bytes -= bytes;
    }

    /// Enters a package into the orders and timers of its state. A lease's session is told apart
    /// (`hold`).
    pub fn place(&mut self, slot: Slot, package: &Package) {
        let line = self.line_mut(package.queue);
        if let Some(count) = line.count(package.phase) {
            *count += 1;
        }
        match package.phase {
            Phase::Ready => {
                let head = Head { level: package.level, seq: package.seq, slot };
                line.all.of_mut(package.suspect).insert(head);
                if let Some(kind) = line.kinds.get_mut(package.body.kind()) {
                    kind.lane.of_mut(package.suspect).insert(head);
                }
                self.candidates.insert(package.queue);
            }
            Phase::Scheduled if package.ticks.0 != 0 => {
                self.timers.insert((package.ticks, Timer::Backoff(slot)));
            }
            Phase::Scheduled => {
                self.alarms.insert((package.body.not_before().unwrap_or_default(), Alarm::Due(slot)));
            }
            Phase::Leased => {
                self.leases += 1;
                if package.in_hand() {
                    self.timers.insert((package.ticks, Timer::Lease(slot)));
                }
            }
            _ if package.leaves() => {
                let rare = package.rare.as_ref();
                line.finished.insert(rare.map_or(0, |rare| rare.finish_seq), slot);
                line.kept[package.phase as usize] += 1;
                line.finished_bytes += package.bytes();
                self.keepers.insert(package.queue);
            }
            _ => {
                line.dead.insert(package.seq, slot);
                line.kept[package.phase as usize] += 1;
            }
        }
        if matches!(package.phase, Phase::Scheduled | Phase::Ready)
            && let Some(expire) = package.body.expire()
        {
            self.alarms.insert((expire, Alarm::Expire(slot)));
        }
    }

    /// Takes a package out of what `place` put it in. To be called before its state changes.
    pub fn displace(&mut self, slot: Slot, package: &Package) {
        let line = self.line_mut(package.queue);
        if let Some(count) = line.count(package.phase) {
            *count -= 1;
        }
        match package.phase {
            Phase::Ready => {
                line.all.of_mut(package.suspect).remove(package.level, package.seq);
                if let Some(kind) = line.kinds.get_mut(package.body.kind()) {
                    kind.lane.of_mut(package.suspect).remove(package.level, package.seq);
                }
            }
            Phase::Scheduled if package.ticks.0 != 0 => {
                self.timers.remove(&(package.ticks, Timer::Backoff(slot)));
            }
            Phase::Scheduled => {
                self.alarms.remove(&(package.body.not_before().unwrap_or_default(), Alarm::Due(slot)));
            }
            Phase::Leased => {
                self.leases -= 1;
                if package.in_hand() {
                    self.timers.remove(&(package.ticks, Timer::Lease(slot)));
                }
            }
            _ if package.leaves() => {
                let rare = package.rare.as_ref();
                line.finished.remove(&rare.map_or(0, |rare| rare.finish_seq));
                line.kept[package.phase as usize] -= 1;
                line.finished_bytes -= package.bytes();
                if line.finished.is_empty() {
                    self.keepers.remove(&package.queue);
                }
            }
            _ => {
                line.dead.remove(&package.seq);
                line.kept[package.phase as usize] -= 1;
            }
        }
        if matches!(package.phase, Phase::Scheduled | Phase::Ready)
            && let Some(expire) = package.body.expire()
        {
            self.alarms.remove(&(expire, Alarm::Expire(slot)));
        }
    }

    /// Enters a lease into its session's hold.
    pub fn hold(&mut self, slot: Slot, package: &Package) {
        let hold = self.held_mut(package.session);
        hold.leases.insert(package.fence, slot);
        hold.bytes += package.bytes();
        hold.suspects += u32::from(package.suspect);
        if package.in_hand() {
            hold.in_hand += 1;
            hold.hand_top = hold.hand_top.max(package.fence);
        }
    }

    /// Takes a lease out of its session's hold.
    pub fn let_go(&mut self, package: &Package) {
        let hold = self.held_mut(package.session);
        hold.leases.remove(&package.fence);
        hold.bytes -= package.bytes();
        hold.suspects -= u32::from(package.suspect);
        hold.in_hand -= usize::from(package.in_hand());
    }

    /// Keeps the byte counts of a package whose bytes changed from `before`.
    pub fn resized(&mut self, package: &Package, before: u64) {
        let after = package.bytes();
        let line = self.line_mut(package.queue);
        line.bytes = line.bytes - before + after;
        if package.leaves() {
            line.finished_bytes = line.finished_bytes - before + after;
        }
        self.bytes = self.bytes - before + after;
        if package.phase == Phase::Leased {
            let hold = self.held_mut(package.session);
            hold.bytes = hold.bytes - before + after;
        }
    }

    /// How many classes there would be with this subscription.
    pub fn classes_with(&self, key: &ClassKey) -> usize {
        self.class_by_key.len() + usize::from(!self.class_by_key.contains_key(key))
    }

    pub fn join_class(&mut self, number: SessionNo, session: &Session) {
        let key = (session.queues.clone(), session.kinds.clone());
        let class = match self.class_by_key.get(&key) {
            Some(class) => *class,
            None => {
                // The number orders nothing, so any free one will do.
                let free = self.classes.iter().position(|class| class.sessions == 0);
                let class = free.unwrap_or(self.classes.len());
                if free.is_none() {
                    self.classes.push(Class::default());
                }
                self.classes[class].key = key.clone();
                self.class_by_key.insert(key, class as ClassNo);
                class as ClassNo
            }
        };
        self.classes[class as usize].sessions += 1;
        for queue in &session.queues {
            let line = self.line_mut(*queue);
            line.classes.insert(class);
            line.sessions += 1;
        }
        let hold = self.held_mut(number);
        hold.class = class;
    }

    pub fn leave_class(&mut self, number: SessionNo, session: &Session) {
        self.withdraw(number);
        let class_no = self.held(number).class;
        let class = &mut self.classes[class_no as usize];
        class.sessions -= 1;
        let empty = class.sessions == 0;
        if empty {
            let key = std::mem::take(&mut class.key);
            self.class_by_key.remove(&key);
        }
        for queue in &session.queues {
            let line = self.line_mut(*queue);
            line.sessions -= 1;
            if empty {
                line.classes.remove(&class_no);
            }
        }
    }

    /// Takes the session from among those with credit.
    fn withdraw(&mut self, number: SessionNo) {
        let hold = self.held_mut(number);
        let (place, clean, class) = (hold.place.take(), std::mem::take(&mut hold.clean), hold.class);
        if let Some(place) = place {
            let class = &mut self.classes[class as usize];
            class.credit.remove(&place);
            if clean {
                class.clean.remove(&place);
            }
        }
    }

    /// Puts the session where its credit says, after anything about it changed.
    pub fn refresh(&mut self, state: &State, number: SessionNo, session: &Session) {
        let hold = self.held(number);
        // Withheld credit counts as used, or what was just taken back would return to the same hands.
        let used = (hold.leases.len() as u32).saturating_add(session.withheld);
        let has_credit = is_attached(state, session)
            && !session.draining
            && !session.silent
            && (used < session.max_in_flight || mutant::is(Mutant::CreditWithoutEnd))
            && hold.bytes < session.max_in_flight_bytes;
        let place = has_credit.then(|| Place {
            share: ((u64::from(used) << 16) / u64::from(session.max_in_flight)) as u32,
            served: session.served,
            session: number,
        });
        let clean = has_credit && hold.suspects == 0;
        if hold.place == place && hold.clean == clean {
            return;
        }
        let gained = (has_credit && hold.place.is_none()) || (clean && !hold.clean);
        self.withdraw(number);
        let hold = self.held_mut(number);
        hold.place = place;
        hold.clean = clean;
        let class = hold.class as usize;
        if let Some(place) = place {
            self.classes[class].credit.insert(place);
            if clean {
                self.classes[class].clean.insert(place);
            }
        }
        if gained {
            for queue in &session.queues {
                if self.lines[*queue as usize].ready > 0 {
                    self.candidates.insert(*queue);
                }
            }
        }
    }

    /// A new leader: whoever was attached is not any more.
    pub fn detach_all(&mut self) {
        for class in &mut self.classes {
            for place in std::mem::take(&mut class.credit) {
                let hold = &mut self.holds[place.session as usize];
                hold.place = None;
                hold.clean = false;
            }
            class.clean.clear();
        }
    }

    /// Arms the timers of a queue's oldest finished package and tombstone.
    pub fn arm_queue(&mut self, state: &State, number: QueueNo) {
        let queue = state.queues.at(number);
        let line = self.line_mut(number);
        let finished = line
            .finished
            .first_key_value()
            .map(|(_, slot)| state.packages.at(*slot).ticks.plus(queue.settings.keep_finished_ms));
        let grave = queue.tombstones.front().map(|grave| grave.until);
        let before = (line.finished_timer, line.grave_timer);
        if before == (finished, grave) {
            return;
        }
        line.finished_timer = finished;
        line.grave_timer = grave;
        for (old, new, timer) in
            [(before.0, finished, Timer::Finished(number)), (before.1, grave, Timer::Tombstone(number))]
        {
            if old != new {
                if let Some(old) = old {
                    self.timers.remove(&(old, timer));
                }
                if let Some(new) = new {
                    self.timers.insert((new, timer));
                }
            }
        }
    }

    pub fn is_overfull(&self, state: &State, number: QueueNo) -> bool {
        let settings = &state.queues.at(number).settings;
        let line = self.line(number);
        line.finished.len() as u64 > settings.keep_finished_count || line.finished_bytes > settings.keep_finished_bytes
    }
}

/// The running counts: what a recount must give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    bytes: u64,
    tombstones: u64,
    leases: u64,
    /// By queue: scheduled, ready, leased, dead, finished, bytes, sessions.
    queues: BTreeMap<QueueName, [u64; 7]>,
}

impl Index {
    pub fn counts(&self) -> Counts {
        let of = |line: &Line| {
            let (dead, finished) = (line.dead.len() as u64, line.finished.len() as u64);
            [line.scheduled, line.ready, line.leased, dead, finished, line.bytes, line.sessions]
        };
        let queues = self.queue_by_name.iter().map(|(name, number)| (name.clone(), of(self.line(*number)))).collect();
        Counts { bytes: self.bytes, tombstones: self.tombstones, leases: self.leases, queues }
    }
}

/// It has a live stream, as far as the state knows: not broken, and no new leader since its Hello.
pub fn is_attached(state: &State, session: &Session) -> bool {
    session.detached.is_none() && session.attached >= state.leader_index
}
