//! Seeds through the program, as anybody runs them: `wharf sim`.

use std::path::PathBuf;
use std::time::Duration;

use wharf::testkit::sim::report::{Report, Verdict};
use wharf::testkit::sim::seeds::{Seed, run_all};

/// Fixed ones, so that a failure is that of a change; fresh ones find what nobody thought of: `wharf sim --seeds 100`.
const FIXED: std::ops::Range<u64> = 1..21;
/// Of these, so many are run twice.
const TWICE: u64 = 5;

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_wharf").into()
}

fn seed(seed: u64) -> Seed {
    Seed { seed, suffer: Duration::from_secs(20), only: None }
}

fn reports(seeds: &[Seed]) -> Vec<Report> {
    let reports = parking_lot::Mutex::new(Vec::new());
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    run_all(&program(), seeds, jobs, |seed, report| {
        let report = report.unwrap_or_else(|error| panic!("{seed:?}: {error:#}"));
        reports.lock().push(report);
    });
    let mut reports = reports.into_inner();
    reports.sort_by_key(|report| report.seed);
    reports
}

#[test]
fn whatever_a_seed_does_nothing_is_lost_and_everything_ends() {
    let all = reports(&FIXED.map(seed).collect::<Vec<_>>());
    let failed: Vec<&Report> = all.iter().filter(|report| report.verdict != Verdict::Pass).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(all.iter().all(|report| report.confirmed > 100), "a run that does nothing shows nothing: {all:#?}");
    let again = reports(&FIXED.take(TWICE as usize).map(seed).collect::<Vec<_>>());
    for (first, second) in all.iter().zip(&again) {
        assert_eq!(first, second, "the same seed gave something else");
    }
    assert_ne!(all[0].digest, all[1].digest, "the seed decides nothing");
}
