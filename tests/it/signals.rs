//! What a node does at signals beside those that end it.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wharf::client::Client;
use wharf::testkit::wait;

use super::harness::{SOON, binary};

/// One node by itself, with its file and its log.
struct Node {
    dir: TempDir,
    child: Child,
}

impl Node {
    async fn start(level: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = std::fs::File::create(dir.path().join("log")).expect("the log can be written");
        let mut node = Command::new(binary());
        node.arg("serve").arg("--config").arg(config(dir.path())).arg("--data-dir").arg(dir.path().join("data"));
        for face in ["client", "peer", "admin"] {
            node.args([&format!("--listen-{face}"), "127.0.0.1:0"]);
        }
        write(dir.path(), level);
        let child = node.stderr(log).kill_on_drop(true).spawn().expect("the binary is there");
        let node = Self { dir, child };
        node.says("recovered and listening", 1).await;
        node
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("the log can be read")
    }

    /// Waits until the log has it so many times.
    async fn says(&self, what: &str, times: usize) {
        let said = || async { (self.log().matches(what).count() >= times).then_some(()) };
        let found = wait::until(format!("`{what}`"), SOON, said).await;
        found.unwrap_or_else(|late| panic!("{late}: {}", self.log()));
    }

    fn hangup(&self) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid as i32)).expect("it runs");
        kill_process(pid, Signal::HUP).expect("it can be told");
    }

    /// A call, which the libraries below log about in detail.
    async fn ask(&self) {
        let log = self.log();
        let addr = log.split("client=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("its address");
        let client = Client::new(addr.trim_matches('"')).expect("an address");
        client.list_queues("").await.expect("it serves");
    }
}

fn config(dir: &Path) -> PathBuf {
    dir.join("wharf.toml")
}

fn write(dir: &Path, level: &str) {
    std::fs::write(config(dir), format!("log.level = \"{level}\"\n")).expect("the file can be written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_the_log_level_anew_and_a_bad_file_changes_nothing() {
    let node = Node::start("info").await;
    let dir = node.dir.path();
    node.ask().await;
    assert!(!node.log().contains("TRACE"), "{}", node.log());

    write(dir, "trace");
    node.hangup();
    node.says("log.level read anew", 1).await;
    node.ask().await;
    node.says("TRACE", 1).await;

    // Told whole, and the level stays.
    write(dir, "a=b=c");
    node.hangup();
    node.says("SIGHUP: nothing was changed", 1).await;
    node.says("log.level: ", 1).await;
    let traces = node.log().matches("TRACE").count();
    node.ask().await;
    node.says("TRACE", traces + 1).await;

    // Another key takes a restart, and that is said; the level is taken all the same.
    std::fs::write(config(dir), "log.level = \"error\"\nnode = 2\n").expect("the file can be written");
    node.hangup();
    node.says("the rest takes a restart", 1).await;
    node.says("log.level read anew", 2).await;
    let quiet = wait::until("silence", SOON, || async {
        let before = node.log().len();
        node.ask().await;
        (node.log().len() == before).then_some(())
    });
    quiet.await.unwrap_or_else(|late| panic!("{late}"));

    // Louder again: it is said once it can be heard.
    write(dir, "info");
    node.hangup();
    node.says("log.level read anew", 3).await;
}
