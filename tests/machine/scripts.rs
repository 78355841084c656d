//! Runs the golden scripts. `UPDATE_GOLDENFILES=1 cargo test --test machine` writes what the
//! machine gives; read it against the promises before it is committed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::dialect::Runner;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/scripts").join(name)
}

fn run(kind: &str, name: &str) {
    let path = folder(kind).join(name);
    if let Err(error) = goldenscript::run(&mut Runner::new(), &path) {
        panic!("{kind}/{name}: {error}");
    }
}

macro_rules! scripts {
    ($kind:ident: $($name:ident)*) => {
        mod $kind {
            $(#[test]
            fn $name() {
                super::run(stringify!($kind), stringify!($name));
            })*

            #[test]
            fn every_file_is_run() {
                let listed = [$(stringify!($name)),*];
                super::assert_listed(stringify!($kind), &listed);
            }
        }
    };
}

fn assert_listed(kind: &str, listed: &[&str]) {
    let files: BTreeSet<String> = std::fs::read_dir(folder(kind))
        .expect("the scripts' folder is in the repository")
        .map(|entry| entry.expect("readable folder").file_name().to_string_lossy().into_owned())
        .collect();
    let listed: BTreeSet<String> = listed.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(files, listed, "files in scripts/{kind} and the list in scripts.rs differ");
}

scripts! { commands:
    submit complete fail extend release set_credit open_session detach_session drain_session
    close_session reclaim heard cancel retry purge redrive create_queue update_queue delete_queue
    pause_queue seal_queue set_cluster raise_version leader_started tick advance fingerprint
}

scripts! { stories:
    poison_package frozen_worker failover stale_fence rare_kind end_of_work repeated_done
    four_equal_workers fair_share priorities reclaim_slow_worker dead_letters dedup keep_finished
    expiry schedule sweeps match_debt rolling_drain worker_dies prefetch_order turns_of_queues
    paused_queue leader_dies_before_sending atomic_limits bytes_credit capped_queue max_run suspects lone_clock nothing_kept
    lease_calls lease_calls_drain lease_calls_failover lists purge_exact
}
