//! What a whole process does, tried out in a child of this one.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use bytes::Bytes;

use super::die_of_panics;
use crate::raft;

/// Makes this test's process the child that panics, and says where.
const CHILD: &str = "WHARF_TEST_PANICS";
const THIS: &str = "node::tests::a_panic_in_a_task_ends_the_process_and_names_the_log_entry_it_came_from";
const SIGABRT: i32 = 6;
const ENTRY: Bytes = Bytes::from_static(b"an entry");

#[test]
fn a_panic_in_a_task_ends_the_process_and_names_the_log_entry_it_came_from() {
    if let Ok(place) = std::env::var(CHILD) {
        return panic_in_a_task(&place);
    }
    let crc = crc32c::crc32c(&ENTRY);
    for (place, names_it) in [("applying", true), ("elsewhere", false)] {
        let program = std::env::current_exe().expect("this program has a file");
        let mut child = Command::new(program);
        let child = child.args(["--exact", THIS, "--nocapture"]).env(CHILD, place).output().expect("it runs");
        let said = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.signal(), Some(SIGABRT), "{place}: {:?}, {said}", child.status);
        assert!(said.contains("planted"), "{place}: {said}");
        let entry = "log entry 7 cannot be applied";
        let way_out = format!("recovery.skip_entry = {{ index = 7, crc = {crc} }}");
        assert_eq!(said.contains(entry) && said.contains(&way_out), names_it, "{place}: {said}");
    }
}

/// Survived, it would exit in good order.
fn panic_in_a_task(place: &str) {
    die_of_panics();
    let applying = place == "applying";
    let plant = || -> () { panic!("planted") };
    let task = async move { if applying { raft::applying(7, &ENTRY, plant) } else { plant() } };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Without the hook the panic ends here, as an error that somebody may overlook.
    let _ = runtime.block_on(async { tokio::spawn(task).await });
}
