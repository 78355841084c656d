//! Who only sees the changes knows the state: the law that `Watch` and history stand on.

use std::collections::BTreeMap;

use wharf::machine::{Applied, Change, Machine};
use wharf::proto::internal::SnapshotRecord;
use wharf::proto::internal::snapshot_free::Table;
use wharf::proto::internal::snapshot_record::Record;
use wharf::types::State;

type Key = (String, String);

/// What the changes so far tell of each package that ever was.
#[derive(Default)]
pub struct Follower {
    packages: BTreeMap<Key, State>,
    last: u64,
}

impl Follower {
    /// Takes one batch's changes; the error says which of them cannot be.
    pub fn follow(&mut self, applied: &Applied, machine: &Machine) -> Result<(), String> {
        for change in &applied.changes {
            let key = key_of(change);
            let wrong = |why: &str| Err(format!("a change that cannot be, {why}: {change:?}"));
            let before = self.packages.get(&key).copied();
            if change.revision.0 <= self.last || change.revision > machine.summary().revision {
                return wrong(&format!("after revision {}", self.last));
            }
            match change.from {
                None if before.is_some_and(|state| !state.is_finished()) => return wrong("it is not new"),
                Some(_) if change.from != before => return wrong(&format!("it was {before:?}")),
                _ => {}
            }
            let leased = change.from == Some(State::Leased);
            let ended = leased && matches!(change.to, State::Ready | State::Scheduled | State::Dead);
            if ended != change.lease_end.is_some() {
                return wrong("leases end for a cause, nothing else has one");
            }
            let granted = change.to == State::Leased;
            if granted && change.fence.0 != change.revision.0 {
                return wrong("a fence is the revision of its grant");
            }
            if (granted || leased) != change.session.is_some() {
                return wrong("a lease has a session, nothing else has one");
            }
            self.last = change.revision.0;
            self.packages.insert(key, change.to);
        }
        for change in &applied.changes {
            self.compare(change, machine)?;
        }
        Ok(())
    }

    /// The last change of a package shows it as the state does.
    fn compare(&self, change: &Change, machine: &Machine) -> Result<(), String> {
        let (queue, id) = key_of(change);
        let Ok(view) = machine.package(&queue, &id) else { return Ok(()) };
        if view.revision != change.revision || view.body.is_none() {
            return Ok(());
        }
        let told = change.package();
        // A later command of the same batch may have moved the clocks' base or a lease's end.
        let same = told.state == view.state
            && told.fence == view.fence
            && told.attempts == view.attempts
            && told.worker == view.worker
            && told.session == view.session
            && told.finish == view.finish
            && told.result == view.result
            && told.moved_to == view.moved_to
            && told.last_failure == view.last_failure
            && told.create_revision == view.create_revision;
        if same { Ok(()) } else { Err(format!("told as {told:?}\nbut it is {view:?}")) }
    }

    /// What it knows is all that the state, as written, has; the rest is finished and gone.
    pub fn knows(&self, snapshot: &[u8]) -> Result<(), String> {
        let mut queues = Vec::new();
        let mut there = BTreeMap::new();
        let mut rest = snapshot;
        while !rest.is_empty() {
            let record: SnapshotRecord =
                prost::Message::decode_length_delimited(&mut rest).map_err(|error| error.to_string())?;
            match record.record {
                Some(Record::Queue(queue)) => queues.push(queue.name),
                Some(Record::Free(free)) if free.table() == Table::Queues => queues.push(String::new()),
                Some(Record::Package(package)) => {
                    let phase = State::from_number(package.phase).ok_or("a state")?;
                    there.insert((queues[package.queue as usize].clone(), package.id), phase);
                }
                _ => {}
            }
        }
        for (key, state) in &there {
            if self.packages.get(key) != Some(state) {
                return Err(format!("{key:?} is {state:?}, the changes say {:?}", self.packages.get(key)));
            }
        }
        let lost = self.packages.iter().find(|(key, state)| !state.is_finished() && !there.contains_key(*key));
        lost.map_or(Ok(()), |lost| Err(format!("the changes know {lost:?}, the state does not")))
    }
}

fn key_of(change: &Change) -> Key {
    (change.queue().to_string(), change.id.to_string())
}
