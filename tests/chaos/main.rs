//! `wharf chaos`, as anybody runs it: real processes on hosts of their own, four mixtures of faults of half a minute
//! or less. What this machine or user cannot do is told; in CI that is a failure.

use std::path::Path;
use std::process::Command;

use parking_lot::Mutex;
use tempfile::TempDir;
use wharf::testkit::chaos::judge::Outcome;
use wharf::testkit::sim::report::Verdict;

/// One run at a time: each takes the whole machine.
static TURN: Mutex<()> = Mutex::new(());

struct Run {
    dir: TempDir,
    outcome: Outcome,
    code: Option<i32>,
}

fn wharf(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_wharf")).arg("chaos").args(args).output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn chaos(args: &[&str]) -> Run {
    let dir = TempDir::with_prefix("wharf-chaos-").expect("a temporary directory");
    let path = dir.path().to_str().expect("its name is plain");
    let (code, report, told) = wharf(&[args, &["--dir", path, "--json"]].concat());
    eprint!("{told}");
    let outcome = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {report}\n{told}"));
    Run { dir, outcome, code }
}

/// Passes, or keeps the run and tells how to look at it.
fn judge(run: Run) {
    for (kind, why) in &run.outcome.not_covered {
        eprintln!("SKIPPED {}: {why}", kind.name());
    }
    let lacks = !run.outcome.not_covered.is_empty();
    let ci = std::env::var_os("WHARF_CI").is_some();
    if run.outcome.report.verdict == Verdict::Pass && !(ci && lacks) {
        assert_eq!(run.code, Some(0));
        return;
    }
    let outcome = run.outcome;
    panic!("look at it again: wharf chaos check {}\n{outcome:#?}", run.dir.keep().display());
}

#[test]
fn processes_die_freeze_and_change_places() {
    let _turn = TURN.lock();
    let kinds = "kill,kill_all,freeze,rolling_restart,members,transfer,snapshot,worker_kill,worker_freeze";
    judge(chaos(&["--for", "30s", "--only", kinds]));
}

#[test]
fn five_nodes_are_cut_apart_in_every_way() {
    let _turn = TURN.lock();
    judge(chaos(&[
        "--for",
        "30s",
        "--nodes",
        "5",
        "--only",
        "single,halves,pair,ring,bridge,clients,one_way,loss,reset",
    ]));
}

#[test]
fn power_disks_clocks_and_memory_fail() {
    let _turn = TURN.lock();
    judge(chaos(&["--for", "30s", "--only", "power_loss,full_disk,syncs_fail,clock_step,memory,kill,transfer"]));
}

#[test]
fn a_damaged_node_goes_on_or_is_replaced() {
    let _turn = TURN.lock();
    judge(chaos(&["--for", "20s", "--only", "damage,transfer,worker_kill"]));
}

#[test]
fn a_run_is_judged_again_from_its_folder_and_a_loss_is_found() {
    let _turn = TURN.lock();
    let run = chaos(&["--loopback", "--for", "6s", "--rate", "100", "--only", "kill,freeze,worker_kill,single"]);
    let (outcome, dir) = (&run.outcome, run.dir.path().to_str().expect("its name is plain"));
    assert_eq!(outcome.report.verdict, Verdict::Pass, "{outcome:#?}");
    let left_out: Vec<String> = outcome.not_covered.keys().map(|kind| kind.name()).collect();
    assert!(left_out.contains(&"single".to_owned()), "{left_out:?}");

    let (code, again, _) = wharf(&["check", dir, "--json"]);
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Outcome>(&again).expect("an outcome"), *outcome);

    // The last read of one package finds nothing any more.
    let history = run.dir.path().join("history.jsonl");
    let text = std::fs::read_to_string(&history).expect("the history");
    let last = text.lines().rfind(|line| line.contains(r#""last":true"#)).expect("reads");
    let lost = last.replace(r#""state":"COMPLETED""#, r#""state":null"#);
    assert_ne!(lost, last);
    std::fs::write(&history, text.replace(last, &lost)).expect("written");
    let (code, told, _) = wharf(&["check", dir]);
    assert!(code == Some(1) && told.contains("FAIL") && told.contains("lost 1"), "{code:?} {told}");

    // A fault that nothing shows.
    std::fs::write(&history, &text).expect("written");
    let seen = run.dir.path().join("seen.json");
    let mut tampered: serde_json::Value = serde_json::from_slice(&std::fs::read(&seen).expect("read")).expect("JSON");
    let tried = tampered["tried"].as_array_mut().expect("faults");
    for one in tried.iter_mut().filter(|one| one["kind"] == "freeze") {
        one["evidence"] = serde_json::Value::Null;
    }
    std::fs::write(&seen, tampered.to_string()).expect("written");
    let (code, told, _) = wharf(&["check", dir]);
    assert!(code == Some(3) && told.contains("NEVER LANDED"), "{code:?} {told}");

    let (code, _, told) = wharf(&["check", Path::new(dir).join("node-1").to_str().expect("plain")]);
    assert!(code == Some(1) && told.contains("is no run that ended"), "{told}");
    let (code, _, told) = wharf(&["--dir", dir, "--for", "1s"]);
    assert!(code == Some(1) && told.contains("is not empty"), "{told}");
}
