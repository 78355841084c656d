//! What `apply` costs: a batch of commands on a machine in which few or many packages wait.
//!
//! Each measured call applies one batch that touches [`GROUP`] packages; before it, off the clock, the machine
//! is brought back to where so many wait.

use std::cell::RefCell;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use wharf::machine::command::{
    Batch, Command, Complete, Completion, CreateQueue, NewPackage, Op, OpenSession, SetCredit, Speaker, Submit, Tick,
};
use wharf::machine::{Applied, Effect, Machine, Meta, Reply};
use wharf::proto::internal::new_package::Expiry;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Packages that one batch touches: about what waits for a slot under load.
const GROUP: usize = 256;
const PAYLOAD_BYTES: usize = 256;
const WAITING: [usize; 3] = [0, 10_000, 1_000_000];
const QUEUE: &str = "jobs";
const SESSION: &str = "s1";
const WALL_BEGIN: u64 = 1_767_225_600_000;
/// What expires does so this long after its submit; the tick that brings it comes later.
const TTL_MS: u64 = 500;
const PAST_TTL_MS: u64 = 600;

fn main() {
    divan::main();
}

#[divan::bench(args = WAITING, sample_size = 1)]
fn submit(bencher: Bencher, waiting: usize) {
    let stand = RefCell::new(Stand::new(waiting));
    let prepare = || {
        let mut stand = stand.borrow_mut();
        stand.work_off();
        vec![stand.submit_op(None)]
    };
    measure(bencher, &stand, prepare);
}

#[divan::bench(args = WAITING, sample_size = 1)]
fn assign(bencher: Bencher, waiting: usize) {
    let stand = RefCell::new(Stand::new(waiting));
    let prepare = || {
        let mut stand = stand.borrow_mut();
        stand.complete_held();
        stand.set_credit(0);
        stand.submit();
        vec![stand.credit_op(GROUP)]
    };
    measure(bencher, &stand, prepare);
}

#[divan::bench(args = WAITING, sample_size = 1)]
fn complete(bencher: Bencher, waiting: usize) {
    let stand = RefCell::new(Stand::new(waiting));
    let prepare = || {
        let mut stand = stand.borrow_mut();
        stand.submit();
        stand.set_credit(GROUP);
        stand.set_credit(0);
        vec![stand.complete_op()]
    };
    measure(bencher, &stand, prepare);
}

#[divan::bench(args = WAITING, sample_size = 1)]
fn expire(bencher: Bencher, waiting: usize) {
    let stand = RefCell::new(Stand::new(waiting));
    let prepare = || {
        let mut stand = stand.borrow_mut();
        let op = stand.submit_op(Some(Expiry::TtlMs(TTL_MS)));
        stand.apply(vec![op]);
        stand.elapsed_ms += PAST_TTL_MS;
        vec![Op::Tick(Tick {})]
    };
    measure(bencher, &stand, prepare);
}

/// Times the batch of what `prepare` gives. Each must change the whole group, or it measured something else.
fn measure(bencher: Bencher, stand: &RefCell<Stand>, prepare: impl Fn() -> Vec<Op>) {
    let timed = bencher.counter(ItemsCount::new(GROUP)).with_inputs(|| {
        let ops = prepare();
        stand.borrow().batch(ops)
    });
    timed.bench_local_values(|batch| {
        let applied = stand.borrow_mut().apply_batch(&batch);
        assert_eq!(applied.changes.len(), GROUP, "the batch did not do what is measured");
        (applied, batch)
    });
}

/// A machine with one queue and one session, and what the session holds.
struct Stand {
    machine: Machine,
    index: u64,
    elapsed_ms: u64,
    waiting: u64,
    submitted: u64,
    completed: u64,
    speaker: Speaker,
    held: Vec<Completion>,
}

impl Stand {
    /// So many packages wait, and the session wants none.
    fn new(waiting: usize) -> Self {
        let speaker = Speaker { session: SESSION.to_owned(), ..Speaker::default() };
        let machine = Machine::new();
        let (waiting, held) = (waiting as u64, Vec::new());
        let mut stand = Self { machine, index: 0, elapsed_ms: 0, waiting, submitted: 0, completed: 0, speaker, held };
        let open = OpenSession {
            session: SESSION.to_owned(),
            worker: "bench".to_owned(),
            queues: vec![QUEUE.to_owned()],
            max_in_flight: GROUP as u32,
            ..OpenSession::default()
        };
        let create = CreateQueue { name: QUEUE.to_owned(), settings: None };
        let applied = stand.apply(vec![Op::CreateQueue(create), Op::OpenSession(open)]);
        let epoch = applied.effects.iter().find_map(|effect| match effect {
            Effect::SessionOpened { epoch, .. } => Some(epoch.0),
            _ => None,
        });
        stand.speaker.epoch = epoch.expect("the session was opened");
        stand.set_credit(0);
        let mut left = waiting;
        while left > 0 {
            let some = left.min(GROUP as u64);
            let op = stand.submit_some(some as usize, None);
            stand.apply(vec![op]);
            left -= some;
        }
        stand
    }

    fn batch(&self, ops: Vec<Op>) -> Batch {
        let commands = ops.into_iter().map(|op| Command { op: Some(op) }).collect();
        Batch { min_version: 1, ticks: self.elapsed_ms, wall: WALL_BEGIN + self.elapsed_ms, commands }
    }

    /// Applies, and nothing else: this is what is timed.
    fn apply_batch(&mut self, batch: &Batch) -> Applied {
        self.index += 1;
        self.machine.apply(Meta { index: self.index, term: 1 }, batch).expect("the machine goes on")
    }

    /// Applies, sees that nothing was refused, and notes what was granted.
    fn apply(&mut self, ops: Vec<Op>) -> Applied {
        let applied = self.apply_batch(&self.batch(ops));
        for outcome in &applied.outcomes {
            match outcome.result.as_ref().expect("the command is taken") {
                Reply::Submitted(each) => assert!(each.iter().all(Result::is_ok), "a package was refused"),
                Reply::Settled(each) => assert!(each.iter().all(Result::is_ok), "a completion was refused"),
                _ => {}
            }
        }
        self.note_held();
        applied
    }

    fn note_held(&mut self) {
        let held = self.machine.held(SESSION).into_iter().map(|delivery| Completion {
            queue: QUEUE.to_owned(),
            id: delivery.body.id().to_string(),
            fence: delivery.fence.0,
            ..Completion::default()
        });
        self.held = held.collect();
    }

    fn submit_some(&mut self, count: usize, expiry: Option<Expiry>) -> Op {
        let packages = (0..count).map(|_| {
            self.submitted += 1;
            NewPackage {
                queue: QUEUE.to_owned(),
                id: format!("package-{:016x}", self.submitted),
                payload: Bytes::from(vec![b'x'; PAYLOAD_BYTES]),
                expiry,
                content_hash: self.submitted,
                ..NewPackage::default()
            }
        });
        Op::Submit(Submit { packages: packages.collect(), atomic: false })
    }

    fn submit_op(&mut self, expiry: Option<Expiry>) -> Op {
        self.submit_some(GROUP, expiry)
    }

    fn credit_op(&self, credit: usize) -> Op {
        Op::SetCredit(SetCredit { speaker: Some(self.speaker.clone()), max_in_flight: credit as u32 })
    }

    fn complete_op(&self) -> Op {
        Op::Complete(Complete { speaker: Some(self.speaker.clone()), completions: self.held.clone() })
    }

    fn submit(&mut self) {
        let op = self.submit_op(None);
        self.apply(vec![op]);
    }

    fn set_credit(&mut self, credit: usize) {
        self.apply(vec![self.credit_op(credit)]);
    }

    /// Completes what was granted, for which the session keeps no credit.
    fn complete_held(&mut self) {
        self.set_credit(0);
        if !self.held.is_empty() {
            self.completed += self.held.len() as u64;
            self.apply(vec![self.complete_op()]);
        }
    }

    /// Takes the group off the queue that the last batch brought too many.
    fn work_off(&mut self) {
        if self.submitted - self.completed > self.waiting {
            self.set_credit(GROUP);
            self.complete_held();
        }
    }
}
