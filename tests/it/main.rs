//! Integration tests: real processes over loopback, with real disks. Each records what clients and
//! workers saw, and has the testkit's checkers judge it.
//!
//! A cluster is heavy, so one test runs at a time, across processes too (`harness::Turn`). A test that
//! fails leaves its files, prints where they are and how to run it again.
//!
//! `WHARF_RUNS=20` repeats the failover tests; they run three times by default.

mod bench;
mod calls;
mod cli;
mod coordinator;
mod crowd;
mod cutoffs;
mod deploy;
mod ends;
mod failover;
mod followers;
mod full_disk;
mod harness;
mod history;
mod idle_waits;
mod languages;
mod membership;
mod metrics;
mod pace;
mod refusals;
mod restarts;
mod retries;
mod signals;
mod watch;
mod workers;

/// Not a test of its own: worker processes are this program, started anew with this test's name and
/// a specification in their environment.
#[test]
fn worker_process() {
    if let Some(exit) = wharf::testkit::workload::run_if_worker_process() {
        assert_eq!(format!("{exit:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
    }
}
