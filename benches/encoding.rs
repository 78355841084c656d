//! What it costs to write commands down and to read them back: once on the leader, once on each node.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use prost::Message as _;
use wharf::machine::command::{Batch, Command, Complete, Completion, NewPackage, Op, Submit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Packages of one batch.
const GROUP: usize = 256;
/// Payload bytes of one package.
const SIZES: [usize; 3] = [0, 256, 4 << 10];

fn main() {
    divan::main();
}

#[divan::bench(args = SIZES)]
fn encode_submits(bencher: Bencher, payload: usize) {
    encode(bencher, &submits(payload));
}

#[divan::bench(args = SIZES)]
fn decode_submits(bencher: Bencher, payload: usize) {
    decode(bencher, &submits(payload));
}

#[divan::bench]
fn encode_completions(bencher: Bencher) {
    encode(bencher, &completions());
}

#[divan::bench]
fn decode_completions(bencher: Bencher) {
    decode(bencher, &completions());
}

fn encode(bencher: Bencher, batch: &Batch) {
    let bytes = batch.encoded_len();
    let bencher = bencher.counter(ItemsCount::new(GROUP)).counter(BytesCount::new(bytes));
    bencher.bench_local(|| divan::black_box(batch).encode_to_vec());
}

/// As `apply` does: payloads are slices of the entry.
fn decode(bencher: Bencher, batch: &Batch) {
    let bytes = Bytes::from(batch.encode_to_vec());
    let bencher = bencher.counter(ItemsCount::new(GROUP)).counter(BytesCount::new(bytes.len()));
    bencher.bench_local(|| Batch::decode(divan::black_box(&bytes).clone()).expect("it was encoded here"));
}

fn batch(op: Op) -> Batch {
    Batch { min_version: 1, ticks: 1, wall: 1_767_225_600_000, commands: vec![Command { op: Some(op) }] }
}

fn submits(payload: usize) -> Batch {
    let package = |number| NewPackage {
        queue: "jobs".to_owned(),
        id: id(number),
        payload: Bytes::from(vec![b'x'; payload]),
        content_hash: number as u64,
        ..NewPackage::default()
    };
    batch(Op::Submit(Submit { packages: (0..GROUP).map(package).collect(), atomic: false }))
}

fn completions() -> Batch {
    let completion = |number| Completion {
        queue: "jobs".to_owned(),
        id: id(number),
        fence: 1_000_000 + number as u64,
        ..Completion::default()
    };
    batch(Op::Complete(Complete { speaker: None, completions: (0..GROUP).map(completion).collect() }))
}

/// As long as those that the API mints.
fn id(number: usize) -> String {
    format!("01890a5d-ac96-774b-bcce-{number:012x}")
}
