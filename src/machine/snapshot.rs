//! The state as bytes: written from a frozen copy while apply goes on, and read back.
//!
//! The form is canonical: equal states give equal bytes, so its hash is the state's hash.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;

use super::index::Counts;
use super::settings::{Cluster, Settings};
use super::state::{Package, Queue, QueueNo, Rare, Session, Settlement, State, Sweep, Tombstone, Work};
use super::tables::slab::{NONE, Slab, Slot};
use super::view::{BodyOptions, FailureView, PackageBody, Profile};
use super::{Broken, Machine};
use crate::proto::internal::snapshot_free::Table;
use crate::proto::internal::snapshot_record::Record;
use crate::proto::internal::snapshot_sweep::Work as StoredWork;
use crate::proto::internal::{
    SnapshotEnd, SnapshotFailure, SnapshotFree, SnapshotGlobals, SnapshotPackage, SnapshotQueue, SnapshotRare,
    SnapshotRecord, SnapshotRedrive, SnapshotSession, SnapshotSweep, SnapshotTombstones,
};
use crate::types::mutant::{self, Mutant};
use crate::types::{Blob, Cause, Epoch, Fence, QueueName, Revision, State as Phase, Ticks, Wall};

const FORMAT: u32 = 1;
const TOMBSTONE_BYTES: usize = 41;
const TOMBSTONES_A_RECORD: usize = 1024;
/// No record is larger: a package at its ceilings and then some.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// A frozen state: an owner's view that apply no longer changes.
pub struct Frozen {
    state: State,
    /// The live counts at that moment, if they are to be compared with a recount.
    counts: Option<Counts>,
}

impl Machine {
    /// The whole state, frozen in microseconds; writing it out takes as long as it takes.
    pub fn freeze(&self) -> Frozen {
        Frozen { state: self.state.clone(), counts: None }
    }

    /// The same, with the live counts of every queue, for [`Frozen::check`].
    pub fn freeze_with_counts(&self) -> Frozen {
        Frozen { state: self.state.clone(), counts: Some(self.index.counts()) }
    }

    /// Builds the state from what [`Frozen::write`] wrote.
    pub fn restore(from: &mut dyn Read) -> Result<Self, Broken> {
        Self::restore_knowing(from, super::version::CURRENT)
    }

    /// The same for a program that applies versions up to `knows`; see [`Machine::knowing`].
    pub fn restore_knowing(from: &mut dyn Read, knows: u32) -> Result<Self, Broken> {
        Ok(Self::of(read_state(from, knows)?).knowing(knows))
    }
}

impl Frozen {
    /// Writes the state in its canonical form.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut out = Records { to, buffer: Vec::new(), records: 0 };
        out.put(Record::Globals(globals(&self.state)))?;
        for slot in self.state.queues.iter_slots() {
            out.put(record_of(slot, Table::Queues, |queue| Record::Queue(store_queue(queue))))?;
        }
        for slot in self.state.sessions.iter_slots() {
            out.put(record_of(slot, Table::Sessions, |session| Record::Session(store_session(session))))?;
        }
        for slot in self.state.packages.iter_slots() {
            out.put(record_of(slot, Table::Packages, |package| Record::Package(store_package(package))))?;
        }
        for (number, queue) in self.state.queues.iter() {
            let mut packed = Vec::new();
            for (_, grave) in queue.tombstones.iter().filter(|_| !mutant::is(Mutant::ForgetTombstones)) {
                pack(grave, &mut packed);
                if packed.len() == TOMBSTONES_A_RECORD * TOMBSTONE_BYTES {
                    let packed = std::mem::take(&mut packed).into();
                    out.put(Record::Tombstones(SnapshotTombstones { queue: number, packed }))?;
                }
            }
            if !packed.is_empty() {
                out.put(Record::Tombstones(SnapshotTombstones { queue: number, packed: packed.into() }))?;
            }
        }
        for (number, sweep) in &self.state.sweeps {
            out.put(Record::Sweep(store_sweep(*number, sweep)))?;
        }
        let records = out.records;
        out.put(Record::End(SnapshotEnd { records }))
    }

    /// Hex of the hash over the canonical form.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.write(&mut hasher).expect("a hasher takes everything");
        hasher.finalize().to_hex().to_string()
    }

    /// Recounts the invariants of what is stored, and compares the live counts with the recount;
    /// empty if all hold. The orders that a living node keeps are checked by [`Machine::check`].
    pub fn check(&self) -> Vec<String> {
        let fresh = Machine::of(self.state.clone());
        let mut wrong = fresh.check();
        let recount = fresh.index.counts();
        if let Some(counts) = self.counts.as_ref().filter(|counts| **counts != recount) {
            wrong.push(format!("the node counts {counts:?}, a recount gives {recount:?}"));
        }
        wrong
    }
}

struct Records<'a> {
    to: &'a mut dyn Write,
    buffer: Vec<u8>,
    records: u64,
}

impl Records<'_> {
    fn put(&mut self, record: Record) -> io::Result<()> {
        self.buffer.clear();
        let record = SnapshotRecord { record: Some(record) };
        record.encode_length_delimited(&mut self.buffer).map_err(io::Error::other)?;
        self.records += 1;
        self.to.write_all(&self.buffer)
    }
}

fn record_of<T>(slot: &Slot<T>, table: Table, store: impl FnOnce(&T) -> Record) -> Record {
    match slot {
        Slot::Used(value) => store(value),
        Slot::Free(next) => Record::Free(SnapshotFree { table: table as i32, next: *next }),
    }
}

fn globals(state: &State) -> SnapshotGlobals {
    SnapshotGlobals {
        format: FORMAT,
        shard: 0,
        version: state.version,
        index: state.index,
        term: state.term,
        cluster: Some(state.cluster.show()),
        ticks: state.ticks.0,
        wall: state.wall.0,
        revision: state.revision.0,
        next_seq: state.next_seq,
        next_finish: state.next_finish,
        grants: state.grants,
        cursor: state.cursor,
        leader_index: state.leader_index,
        leader_ticks: state.leader_ticks.0,
        failover_armed: state.failover_armed,
        stale_cursor: state.stale_cursor,
        next_sweep: state.next_sweep,
        free_queue: state.queues.free_head(),
        free_session: state.sessions.free_head(),
        free_package: state.packages.free_head(),
    }
}

fn store_queue(queue: &Queue) -> SnapshotQueue {
    SnapshotQueue {
        name: queue.name.to_string(),
        settings: Some(queue.settings.show()),
        paused: queue.paused,
        sealed: queue.sealed,
        deleting: queue.deleting,
        revision: queue.revision.0,
        submitted: queue.submitted,
        completed: queue.completed,
        cancelled: queue.cancelled,
        expired: queue.expired,
        lease_ends: queue.lease_ends.to_vec(),
        grants: queue.grants,
    }
}

fn store_session(session: &Session) -> SnapshotSession {
    SnapshotSession {
        id: session.id.to_string(),
        worker: session.worker.to_string(),
        epoch: session.epoch.0,
        queues: session.queues.clone(),
        kinds: session.kinds.iter().map(|kind| kind.to_string()).collect(),
        labels: session.labels.iter().cloned().collect(),
        max_in_flight: session.max_in_flight,
        max_in_flight_bytes: session.max_in_flight_bytes,
        concurrency: session.concurrency,
        attached: session.attached,
        detached: session.detached.map(|ticks| ticks.0),
        draining: session.draining,
        silent: session.silent,
        withheld: session.withheld,
        served: session.served,
        received: session.received.0,
        open: session.open.0,
        unary: session.unary,
    }
}

fn store_package(package: &Package) -> SnapshotPackage {
    let body = &package.body;
    SnapshotPackage {
        queue: package.queue,
        id: body.id().to_string(),
        kind: body.kind().to_string(),
        payload: body.share_payload(),
        content_type: body.content_type().to_owned(),
        labels: body.labels().iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        priority: body.priority().map(u32::from),
        not_before: body.not_before().map(|wall| wall.0),
        expire: body.expire().map(|wall| wall.0),
        max_attempts: body.max_attempts(),
        create: body.create().0,
        session: (package.session != NONE).then_some(package.session),
        attempts: package.attempts,
        phase: package.phase as u32,
        level: u32::from(package.level),
        suspect: package.suspect,
        settlement: package.settlement as u32,
        seq: package.seq,
        content_hash: package.content_hash,
        fence: package.fence.0,
        settled: package.settled.0,
        ticks: package.ticks.0,
        create_revision: package.create_revision.0,
        revision: package.revision.0,
        rare: package.rare.as_ref().map(|rare| store_rare(rare)),
    }
}

fn store_rare(rare: &Rare) -> SnapshotRare {
    SnapshotRare {
        checkpoint: rare.checkpoint.to_bytes(),
        result: rare.result.to_bytes(),
        result_content_type: rare.result_content_type.as_ref().map(|text| text.to_string()),
        result_evicted: rare.result_evicted,
        moved_to: rare.moved_to.as_ref().map(|text| text.to_string()),
        failure: rare.failure.as_ref().map(|failure| SnapshotFailure {
            cause: failure.cause as u32,
            message: failure.message.to_string(),
            code: failure.code.to_string(),
            time: failure.time.0,
            worker: failure.worker.to_string(),
        }),
        leased: rare.leased.0,
        finish: rare.finish.0,
        finish_seq: rare.finish_seq,
        worker: rare.worker.as_ref().map(|text| text.to_string()),
    }
}

fn store_sweep(number: u64, sweep: &Sweep) -> SnapshotSweep {
    let work = match &sweep.work {
        Work::Purge { phases } => StoredWork::Purge(*phases),
        Work::Delete => StoredWork::Delete(true),
        Work::Redrive { to, left } => {
            let to = to.as_ref().map(|name| name.to_string()).unwrap_or_default();
            StoredWork::Redrive(SnapshotRedrive { to, left: *left })
        }
    };
    SnapshotSweep {
        number,
        queue: sweep.queue,
        begin: sweep.begin.0,
        cursor: sweep.cursor,
        end: sweep.end,
        changed: sweep.changed,
        work: Some(work),
    }
}

fn pack(grave: &Tombstone, to: &mut Vec<u8>) {
    to.put_u128(grave.id_hash);
    to.put_u64(grave.content_hash);
    to.put_u64(grave.fence.0);
    to.put_u64(grave.until.0);
    to.put_u8(grave.phase as u8);
}

fn broken(problem: impl std::fmt::Display) -> Broken {
    Broken::Snapshot(problem.to_string())
}

/// Reads one record; `Err` at the end of the stream, since an End record comes before it.
fn read_record(from: &mut dyn Read, buffer: &mut Vec<u8>) -> Result<Record, Broken> {
    let mut length = 0usize;
    let mut shift = 0;
    loop {
        let mut byte = [0u8];
        from.read_exact(&mut byte).map_err(broken)?;
        length |= ((byte[0] & 0x7f) as usize) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
        shift += 7;
        if shift > 28 {
            return Err(broken("a record's length is malformed"));
        }
    }
    if length > MAX_RECORD_BYTES {
        return Err(broken(format!("a record of {length} bytes")));
    }
    buffer.resize(length, 0);
    from.read_exact(buffer).map_err(broken)?;
    // Copied, so that no package pins the buffer.
    let record = SnapshotRecord::decode(buffer.as_slice()).map_err(broken)?;
    record.record.ok_or_else(|| broken("a record of an unknown type: written by a later version"))
}

fn read_state(from: &mut dyn Read, knows: u32) -> Result<State, Broken> {
    let mut buffer = Vec::new();
    let Record::Globals(globals) = read_record(from, &mut buffer)? else {
        return Err(broken("the first record must be the globals"));
    };
    if globals.format != FORMAT {
        return Err(broken(format!("format {}, this program reads {FORMAT}", globals.format)));
    }
    if globals.version > knows {
        return Err(Broken::NewerVersion { needs: globals.version, knows });
    }
    let mut queues: Vec<Slot<Queue>> = Vec::new();
    let mut sessions: Vec<Slot<Session>> = Vec::new();
    let mut profiles = Profiles::new();
    let mut state = State::new();
    let mut records = 1u64;
    loop {
        let record = read_record(from, &mut buffer)?;
        match record {
            Record::Globals(_) => return Err(broken("the globals come twice")),
            Record::Free(free) => match Table::try_from(free.table).map_err(broken)? {
                Table::Queues => queues.push(Slot::Free(free.next)),
                Table::Sessions => sessions.push(Slot::Free(free.next)),
                Table::Packages => state.packages.append(Slot::Free(free.next)),
            },
            Record::Queue(queue) => queues.push(Slot::Used(load_queue(queue)?)),
            Record::Session(session) => sessions.push(Slot::Used(load_session(session))),
            Record::Package(package) => {
                let Some(Slot::Used(queue)) = queues.get(package.queue as usize) else {
                    return Err(broken("a package of a queue that is not there"));
                };
                state.packages.append(Slot::Used(load_package(package, queue, &mut profiles)?));
            }
            Record::Tombstones(graves) => {
                let Some(Slot::Used(queue)) = queues.get_mut(graves.queue as usize) else {
                    return Err(broken("tombstones of a queue that is not there"));
                };
                unpack(graves.packed, queue)?;
            }
            Record::Sweep(sweep) => {
                let (number, sweep) = load_sweep(sweep)?;
                state.sweeps.insert(number, sweep);
            }
            Record::End(end) if end.records == records => break,
            Record::End(_) => return Err(broken("records are missing")),
        }
        records += 1;
    }
    state.index = globals.index;
    state.term = globals.term;
    state.version = globals.version;
    state.cluster =
        Cluster::default().merged(&globals.cluster.unwrap_or_default()).map_err(|r| broken(format!("{r:?}")))?;
    state.ticks = Ticks(globals.ticks);
    state.wall = Wall(globals.wall);
    state.revision = Revision(globals.revision);
    state.next_seq = globals.next_seq;
    state.next_finish = globals.next_finish;
    state.grants = globals.grants;
    state.cursor = globals.cursor;
    state.leader_index = globals.leader_index;
    state.leader_ticks = Ticks(globals.leader_ticks);
    state.failover_armed = globals.failover_armed;
    state.stale_cursor = globals.stale_cursor;
    state.next_sweep = globals.next_sweep;
    state.queues = Slab::restore(queues, globals.free_queue);
    state.sessions = Slab::restore(sessions, globals.free_session);
    state.packages.set_free_head(globals.free_package);
    Ok(state)
}

/// What packages of one queue and kind share, if they have no options.
type Profiles = BTreeMap<(QueueNo, String), Arc<Profile>>;

fn load_queue(stored: SnapshotQueue) -> Result<Queue, Broken> {
    let mut lease_ends = [0; 7];
    for (count, stored) in lease_ends.iter_mut().zip(&stored.lease_ends) {
        *count = *stored;
    }
    Ok(Queue {
        name: QueueName::parse(&stored.name).map_err(broken)?,
        settings: Settings::default()
            .merged(&stored.settings.unwrap_or_default())
            .map_err(|reject| broken(format!("{reject:?}")))?,
        paused: stored.paused,
        sealed: stored.sealed,
        deleting: stored.deleting,
        revision: Revision(stored.revision),
        submitted: stored.submitted,
        completed: stored.completed,
        cancelled: stored.cancelled,
        expired: stored.expired,
        lease_ends,
        grants: stored.grants,
        tombstones: super::tables::Fifo::new(),
    })
}

fn load_session(stored: SnapshotSession) -> Session {
    Session {
        id: stored.id.into(),
        worker: stored.worker.into(),
        epoch: Epoch(stored.epoch),
        queues: stored.queues,
        kinds: stored.kinds.into_iter().map(Into::into).collect(),
        labels: stored.labels.into_iter().collect(),
        max_in_flight: stored.max_in_flight,
        max_in_flight_bytes: stored.max_in_flight_bytes,
        concurrency: stored.concurrency,
        attached: stored.attached,
        detached: stored.detached.map(Ticks),
        draining: stored.draining,
        silent: stored.silent,
        withheld: stored.withheld,
        served: stored.served,
        received: Fence(stored.received),
        open: Wall(stored.open),
        unary: stored.unary,
    }
}

fn load_package(stored: SnapshotPackage, queue: &Queue, profiles: &mut Profiles) -> Result<Package, Broken> {
    let phase = Phase::from_number(stored.phase).ok_or_else(|| broken("a package in an unknown state"))?;
    let settlement = match stored.settlement {
        0 => Settlement::None,
        1 => Settlement::Done,
        2 => Settlement::Failed,
        3 => Settlement::Released,
        other => return Err(broken(format!("unknown settlement {other}"))),
    };
    let options = BodyOptions {
        content_type: stored.content_type.into(),
        labels: stored.labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
        not_before: stored.not_before.map(Wall),
        expire: stored.expire.map(Wall),
        max_attempts: stored.max_attempts,
    };
    let plain = profiles.entry((stored.queue, stored.kind)).or_insert_with_key(|(_, kind)| {
        let kind = kind.as_str().into();
        Arc::new(Profile { queue: queue.name.clone(), kind, options: BodyOptions::default() })
    });
    let priority = stored.priority.map(|priority| priority.min(crate::types::limits::MAX_PRIORITY) as u8);
    let body = PackageBody::new(
        plain.with(options),
        stored.id.as_str().into(),
        priority,
        Wall(stored.create),
        &stored.payload,
    );
    Ok(Package {
        body,
        queue: stored.queue,
        session: stored.session.unwrap_or(NONE),
        attempts: stored.attempts,
        phase,
        level: stored.level.min(crate::types::limits::MAX_PRIORITY) as u8,
        suspect: stored.suspect,
        settlement,
        seq: stored.seq,
        content_hash: stored.content_hash,
        fence: Fence(stored.fence),
        settled: Fence(stored.settled),
        ticks: Ticks(stored.ticks),
        create_revision: Revision(stored.create_revision),
        revision: Revision(stored.revision),
        rare: stored.rare.map(load_rare).transpose()?.map(Box::new),
    })
}

fn load_rare(stored: SnapshotRare) -> Result<Rare, Broken> {
    let failure = stored.failure.map(|failure| {
        let cause = Cause::from_number(failure.cause).ok_or_else(|| broken("an unknown cause"))?;
        Ok(Arc::new(FailureView {
            cause,
            message: failure.message.into(),
            code: failure.code.into(),
            time: Wall(failure.time),
            worker: failure.worker.into(),
        }))
    });
    Ok(Rare {
        checkpoint: Blob::copied(&stored.checkpoint),
        result: Blob::copied(&stored.result),
        result_content_type: stored.result_content_type.map(Into::into),
        result_evicted: stored.result_evicted,
        moved_to: stored.moved_to.map(Into::into),
        failure: failure.transpose()?,
        leased: Ticks(stored.leased),
        finish: Wall(stored.finish),
        finish_seq: stored.finish_seq,
        worker: stored.worker.map(Into::into),
    })
}

fn unpack(mut packed: Bytes, queue: &mut Queue) -> Result<(), Broken> {
    if !packed.len().is_multiple_of(TOMBSTONE_BYTES) {
        return Err(broken("a torn run of tombstones"));
    }
    while packed.has_remaining() {
        let (id_hash, content_hash) = (packed.get_u128(), packed.get_u64());
        let (fence, until) = (Fence(packed.get_u64()), Ticks(packed.get_u64()));
        let phase =
            Phase::from_number(u32::from(packed.get_u8())).ok_or_else(|| broken("a tombstone in an unknown state"))?;
        queue.tombstones.push(Tombstone { id_hash, content_hash, fence, until, phase });
    }
    Ok(())
}

fn load_sweep(stored: SnapshotSweep) -> Result<(u64, Sweep), Broken> {
    let work = match stored.work.ok_or_else(|| broken("a sweep of an unknown kind"))? {
        StoredWork::Purge(phases) => Work::Purge { phases },
        StoredWork::Delete(_) => Work::Delete,
        StoredWork::Redrive(redrive) => {
            let to = (!redrive.to.is_empty()).then(|| QueueName::parse(&redrive.to)).transpose().map_err(broken)?;
            Work::Redrive { to, left: redrive.left }
        }
    };
    let sweep = Sweep {
        work,
        queue: stored.queue,
        begin: Revision(stored.begin),
        cursor: stored.cursor,
        end: stored.end,
        changed: stored.changed,
    };
    Ok((stored.number, sweep))
}
