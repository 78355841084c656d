//! Equal workers end equal, unequal ones by their credit, whatever the hash seeds and names.

use std::collections::BTreeMap;

use wharf::machine::Effect;
use wharf::machine::command::{
    Advance, Complete, Completion, CreateQueue, NewPackage, Op, OpenSession, Speaker, Submit,
};

use crate::stage::Stage;

/// Workers with so much credit each complete one package a round until nothing is left; how many
/// each did.
fn share_out(credits: &[u32], packages: usize) -> Vec<usize> {
    let mut stage = Stage::new();
    let mut held: BTreeMap<String, Vec<Completion>> = BTreeMap::new();
    let mut apply = |ops: Vec<Op>, held: &mut BTreeMap<String, Vec<Completion>>| {
        let applied = stage.apply(ops).unwrap_or_else(|why| panic!("{why}"));
        for effect in applied.effects {
            let Effect::Deliver { session, deliveries, .. } = effect else { continue };
            let part = |delivery: wharf::machine::effect::Delivery| Completion {
                queue: delivery.body.queue().to_string(),
                id: delivery.body.id().to_string(),
                fence: delivery.fence.0,
                ..Completion::default()
            };
            held.entry(session.to_string()).or_default().extend(deliveries.into_iter().map(part));
        }
        stage.machine.summary().needs_advance
    };
    apply(vec![Op::CreateQueue(CreateQueue { name: "mail".into(), settings: None })], &mut held);
    for (at, credit) in credits.iter().enumerate() {
        let hello = OpenSession {
            session: format!("w{at}"),
            worker: format!("w{at}"),
            queues: vec!["mail".into()],
            max_in_flight: *credit,
            concurrency: 1,
            attach: at as u64 + 1,
            ..OpenSession::default()
        };
        apply(vec![Op::OpenSession(hello)], &mut held);
    }
    for at in (0..packages).step_by(100) {
        let packages = (at..packages.min(at + 100))
            .map(|n| NewPackage { queue: "mail".into(), id: format!("p{n}"), ..NewPackage::default() })
            .collect();
        let mut more = apply(vec![Op::Submit(Submit { packages, atomic: false })], &mut held);
        while more {
            more = apply(vec![Op::Advance(Advance {})], &mut held);
        }
    }
    let mut did = vec![0; credits.len()];
    loop {
        let mut idle = true;
        for (at, done) in did.iter_mut().enumerate() {
            let name = format!("w{at}");
            let Some(mine) = held.get_mut(&name).filter(|mine| !mine.is_empty()) else { continue };
            idle = false;
            *done += 1;
            let completions = vec![mine.remove(0)];
            let speaker = Some(Speaker { session: name, epoch: 1, received_fence: 0 });
            apply(vec![Op::Complete(Complete { speaker, completions })], &mut held);
        }
        if idle {
            return did;
        }
    }
}

#[test]
fn four_equal_workers_end_within_a_tenth_of_each_other() {
    for (credit, packages) in [(1, 400), (8, 400), (64, 400), (7, 333)] {
        let did = share_out(&[credit; 4], packages);
        let (least, most) = (did.iter().min().expect("four"), did.iter().max().expect("four"));
        assert_eq!(did.iter().sum::<usize>(), packages);
        assert!(most * 10 <= least * 11, "credit {credit}: {did:?}");
    }
}

/// More credit is a longer queue of one's own, not faster work: at equal speed it gets no more
/// than its share while everybody is busy.
#[test]
fn workers_of_unequal_credit_share_by_credit() {
    let did = share_out(&[2, 8], 10);
    assert_eq!(did.iter().sum::<usize>(), 10);
    assert!(did[0] >= 2 && did[1] >= did[0], "{did:?}");
}
