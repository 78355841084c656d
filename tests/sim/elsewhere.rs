//! A run in a process of its own, where it repeats; see `testkit::sim::entropy`.
//!
//! The test starts this program again, for itself alone. That process finds the variable, and
//! leaves what its run saw in the file that it names.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde::Serialize;
use serde::de::DeserializeOwned;

const LEAVE_VARIABLE: &str = "WHARF_SIM_LEAVE";

/// In such a process: runs, leaves what was seen, and answers true.
pub fn is_here<T: Serialize>(run: impl FnOnce() -> T) -> bool {
    let Some(path) = std::env::var_os(LEAVE_VARIABLE) else { return false };
    let left = serde_json::to_vec(&run()).expect("names are strings");
    std::fs::write(path, left).expect("room for what was left");
    true
}

/// What the test's run leaves for each of these seeds, all at once.
pub fn run_all<T: DeserializeOwned, const N: usize>(test: &str, seeds: [u64; N]) -> [T; N] {
    let dir = tempfile::tempdir().expect("a directory for what the runs leave");
    let mut number = 0;
    let runs = seeds.map(|seed| {
        number += 1;
        start(test, seed, dir.path(), number)
    });
    runs.map(left_by)
}

fn start(test: &str, seed: u64, dir: &Path, number: usize) -> (Child, PathBuf) {
    let left = dir.join(number.to_string());
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture"]).env(LEAVE_VARIABLE, &left).env("WHARF_SEED", seed.to_string());
    (command.spawn().expect("a process"), left)
}

fn left_by<T: DeserializeOwned>((mut process, left): (Child, PathBuf)) -> T {
    assert!(process.wait().expect("a process that ends").success(), "a run failed, see above");
    serde_json::from_slice(&std::fs::read(left).expect("what a run left")).expect("what a run wrote")
}
