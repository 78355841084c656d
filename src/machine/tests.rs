//! A first walk through; the stories stand in `tests/machine`.

use super::command::*;
use super::*;
use crate::proto::internal::CreateQueue;

struct Run {
    machine: Machine,
    index: u64,
    ticks: u64,
}

impl Run {
    fn new() -> Self {
        Self { machine: Machine::new(), index: 0, ticks: 0 }
    }

    fn apply(&mut self, ops: Vec<Op>) -> Applied {
        self.index += 1;
        let commands = ops.into_iter().map(|op| Command { op: Some(op) }).collect();
        let batch = Batch { min_version: 1, ticks: self.ticks, wall: 1_000_000 + self.ticks, commands };
        let applied = self.machine.apply(Meta { index: self.index, term: 1 }, &batch).expect("known commands");
        assert_eq!(self.machine.check(), Vec::<String>::new());
        let mut bytes = Vec::new();
        self.machine.freeze().write(&mut bytes).expect("a vector takes everything");
        let restored = Machine::restore(&mut bytes.as_slice()).expect("what was written can be read");
        assert_eq!(restored.freeze().hash(), self.machine.freeze().hash());
        applied
    }

    fn one(&mut self, op: Op) -> (Result<Reply>, Vec<Effect>) {
        let applied = self.apply(vec![op]);
        (applied.outcomes.into_iter().next().expect("one outcome").result, applied.effects)
    }
}

fn package(id: &str) -> NewPackage {
    NewPackage { queue: "jobs".into(), id: id.into(), kind: "k".into(), payload: "p".into(), ..Default::default() }
}

fn hello(session: &str, max_in_flight: u32) -> Op {
    Op::OpenSession(OpenSession {
        session: session.into(),
        worker: "w".into(),
        queues: vec!["jobs".into()],
        max_in_flight,
        concurrency: 1,
        ..Default::default()
    })
}

fn fences(effects: &[Effect]) -> Vec<(String, u64)> {
    let deliveries = effects.iter().filter_map(|effect| match effect {
        Effect::Deliver { deliveries, .. } => Some(deliveries),
        _ => None,
    });
    deliveries.flatten().map(|delivery| (delivery.body.id().to_string(), delivery.fence.0)).collect()
}

#[test]
fn a_package_goes_in_out_and_home() {
    let mut run = Run::new();
    run.one(Op::CreateQueue(CreateQueue { name: "jobs".into(), settings: None })).0.expect("created");
    let (_, effects) = run.one(hello("s", 2));
    assert!(matches!(effects[0], Effect::SessionOpened { .. }));
    let submit = Submit { packages: vec![package("a"), package("b"), package("c")], atomic: false };
    let (_, effects) = run.one(Op::Submit(submit.clone()));
    let got = fences(&effects);
    assert_eq!(got.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let (reply, _) = run.one(Op::Submit(submit));
    assert!(
        matches!(reply, Ok(Reply::Submitted(each)) if each.iter().all(|one| one == &Ok(Submitted { duplicate: true })))
    );

    let done = Op::Complete(Complete {
        speaker: Some(Speaker { session: "s".into(), epoch: 1, received_fence: got[1].1 }),
        completions: vec![Completion {
            queue: "jobs".into(),
            id: "a".into(),
            fence: got[0].1,
            result: "r".into(),
            ..Default::default()
        }],
    });
    let (reply, effects) = run.one(done.clone());
    assert!(matches!(reply, Ok(Reply::Settled(each)) if each == [Ok(())]));
    assert_eq!(fences(&effects)[0].0, "c");
    let (reply, effects) = run.one(done);
    assert!(matches!(reply, Ok(Reply::Settled(each)) if each == [Ok(())]));
    assert!(effects.is_empty());
    assert_eq!(run.machine.package("jobs", "a").expect("kept").state, crate::types::State::Completed);

    // The worker dies: what it had in hand becomes suspect and nobody pays.
    let speaker = Speaker { session: "s".into(), epoch: 1, received_fence: 1_000 };
    run.one(Op::DetachSession(DetachSession { speaker: Some(speaker) })).0.expect("detached");
    for _ in 0..6 {
        run.ticks += 1_000;
        run.one(Op::Tick(Tick {})).0.expect("ticked");
    }
    assert!(run.machine.session("s").is_err());
    let queue = run.machine.queue("jobs").expect("there");
    assert_eq!((queue.ready, queue.leased, queue.completed), (2, 0, 1));
    assert_eq!(run.machine.package("jobs", "b").expect("there").attempts, 0);
}
