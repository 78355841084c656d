//! Seeds through the program, as anybody runs them: `wharf sim`.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use wharf::testkit::sim::report::{Report, Verdict};
use wharf::testkit::sim::seeds::{Seed, run_all};

/// Fixed ones, so that a failure is that of a change. A build that is not optimized does few: it takes ten times as long.
const FIXED: Range<u64> = if cfg!(debug_assertions) { 1..7 } else { 1..101 };
/// Fresh ones find what nobody thought of. More of them: `wharf sim --seeds 500`.
const FRESH: u64 = if cfg!(debug_assertions) { 2 } else { 20 };
/// Of the fixed ones, so many are run twice.
const TWICE: usize = if cfg!(debug_assertions) { 2 } else { 20 };
/// With members that come and go: so many fixed ones, so many fresh.
const MEMBERS: (u64, u64) = if cfg!(debug_assertions) { (2, 1) } else { (20, 5) };
/// What these once showed is mended:
/// 4: a leader dialled a follower that was gone without a pause, and did nothing else any more.
const NAMED: [u64; 1] = [4];

fn reports(seeds: impl Iterator<Item = u64>, members: bool) -> Vec<Report> {
    let seeds: Vec<Seed> =
        seeds.map(|seed| Seed { seed, suffer: Duration::from_secs(20), only: None, members }).collect();
    let reports = Mutex::new(Vec::new());
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    run_all(Path::new(env!("CARGO_BIN_EXE_wharf")), &seeds, jobs, |seed, report| {
        reports.lock().push(report.map_err(|error| format!("{error:#}; again: wharf {}", seed.args().join(" "))));
    });
    let mut reports: Vec<Report> =
        reports.into_inner().into_iter().map(|report| report.unwrap_or_else(|error| panic!("{error}"))).collect();
    reports.sort_by_key(|report| report.seed);
    reports
}

fn judge(reports: &[Report]) {
    let failed: Vec<&Report> = reports.iter().filter(|report| report.verdict != Verdict::Pass).collect();
    assert!(
        failed.is_empty(),
        "again: wharf sim --seed N, and --members if so, with the seed of one of these: {failed:#?}"
    );
    let idle = reports.iter().find(|report| report.confirmed < 100);
    assert_eq!(idle, None, "a run in which little happens shows little");
}

#[test]
fn whatever_a_seed_does_nothing_is_lost_and_everything_ends() {
    assert!(NAMED.iter().all(|seed| FIXED.contains(seed)));
    let first = reports(FIXED, false);
    judge(&first);
    let second = reports(FIXED.take(TWICE), false);
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first, second, "the same seed gave something else");
    }
    assert_ne!(first[0].digest, first[1].digest, "the seed decides nothing");
}

#[test]
fn nor_does_a_fresh_one() {
    judge(&reports(fresh(FRESH), false));
}

#[test]
fn members_come_and_go_meanwhile() {
    let (fixed, new) = MEMBERS;
    judge(&reports((1..=fixed).chain(fresh(new)), true));
}

fn fresh(count: u64) -> Range<u64> {
    let from = wharf::env::Env::real().random.next() >> 16;
    println!("seeds {from} to {}", from + count - 1);
    from..from + count
}
