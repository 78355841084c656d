//! The command line against a real cluster: what it prints for programs, and its exit codes.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::Instant;
use wharf::client::QueueSettings;
use wharf::testkit::cluster::Options;

use super::harness::{QUEUE, Scene, binary};

/// A verb ends within this.
const WITHIN: Duration = Duration::from_secs(20);

/// What a verb did.
pub struct Ran {
    verb: String,
    exit: i32,
    out: String,
    err: String,
}

impl Ran {
    pub fn exit(&self) -> i32 {
        self.exit
    }

    /// It ended well; what it printed.
    pub fn ok(&self) -> &str {
        assert_eq!(self.exit, 0, "{}: {}", self.verb, self.err);
        self.out.trim_end()
    }

    /// It ended well, and printed one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(self.ok()).unwrap_or_else(|error| panic!("{}: {error}: {}", self.verb, self.out))
    }

    /// It failed with this code, said something to people, and printed nothing as data.
    pub fn fails(&self, exit: i32) -> &str {
        assert_eq!(self.exit, exit, "{}: {}{}", self.verb, self.out, self.err);
        assert!(!self.err.is_empty(), "{}: says nothing", self.verb);
        &self.err
    }
}

pub async fn wharf(addrs: &str, args: &[&str]) -> Ran {
    wharf_fed(addrs, args, "").await
}

async fn wharf_fed(addrs: &str, args: &[&str], input: &str) -> Ran {
    let mut command = Command::new(binary());
    command.args(args).env("WHARF_ADDR", addrs).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary is there");
    let mut stdin = child.stdin.take().expect("its input is piped");
    // A verb that reads no input may be gone by now.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let Output { status, stdout, stderr } = tokio::time::timeout(WITHIN, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{args:?} did not end within {WITHIN:?}"))
        .expect("its output can be read");
    Ran {
        verb: args.join(" "),
        exit: status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_for_packages() {
    let scene = Scene::new().await;
    let addrs = &scene.cluster.addrs();
    wharf(addrs, &["queue", "create", QUEUE]).await.ok();

    let id = wharf(addrs, &["submit", QUEUE, "--payload", "hello", "--priority", "9", "--label", "a=b"]).await;
    let id = id.ok().to_owned();
    let package = wharf(addrs, &["get", QUEUE, &id, "-o", "json"]).await.json();
    assert_eq!(
        (&package["state"], &package["payload"], &package["priority"]),
        (&"READY".into(), &"hello".into(), &9.into())
    );
    assert_eq!(wharf(addrs, &["get", QUEUE, &id, "--payload"]).await.ok(), "hello");
    assert!(wharf(addrs, &["get", QUEUE, &id]).await.ok().contains("READY"));

    let taken = wharf(addrs, &["submit", QUEUE, "--payload", "x", "--id", "mine", "-o", "json"]).await.json();
    assert_eq!((&taken["id"], &taken["duplicate"]), (&"mine".into(), &false.into()));
    let again = wharf(addrs, &["submit", QUEUE, "--payload", "x", "--id", "mine", "-o", "json"]).await.json();
    assert_eq!(again["duplicate"], true);
    wharf(addrs, &["submit", QUEUE, "--payload", "other", "--id", "mine"]).await.fails(1);

    let lines = wharf_fed(addrs, &["submit", QUEUE, "--lines", "--id-prefix", "row", "-o", "json"], "one\ntwo\n").await;
    assert_eq!(lines.json()["submitted"], 2);
    assert_eq!(wharf(addrs, &["get", QUEUE, "row-2", "--payload"]).await.ok(), "two");
    let file = scene.cluster.dir().join("payload");
    std::fs::write(&file, "from a file").unwrap();
    let id = wharf(addrs, &["submit", QUEUE, "--file", file.to_str().unwrap()]).await.ok().to_owned();
    assert_eq!(wharf(addrs, &["get", QUEUE, &id, "--payload"]).await.ok(), "from a file");

    let cancelled = wharf(addrs, &["cancel", QUEUE, "mine", "--reason", "no need", "-o", "json"]).await.json();
    assert_eq!(cancelled["state"], "CANCELLED");
    wharf(addrs, &["wait", QUEUE, "mine"]).await.fails(1);
    wharf(addrs, &["wait", QUEUE, "row-1", "--within", "200ms"]).await.fails(75);
    wharf(addrs, &["retry", QUEUE, "row-1"]).await.fails(1);

    wharf(addrs, &["get", QUEUE, "nobody"]).await.fails(4);
    wharf(addrs, &["get", "no-queue", "x"]).await.fails(4);
    assert!(wharf(addrs, &["submit", "no-queue", "--payload", "x"]).await.fails(4).contains("queue create"));
    wharf(addrs, &["submit", QUEUE]).await.fails(2);
    wharf(addrs, &["submit", "bad name", "--payload", "x"]).await.fails(2);
    wharf("127.0.0.1:9", &["get", QUEUE, "x", "--timeout", "1s"]).await.fails(69);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_for_queues_and_work() {
    let scene = Scene::new().await;
    let addrs = &scene.cluster.addrs();
    wharf(addrs, &["queue", "create", QUEUE, "--lease", "30s", "--max-attempts", "2"]).await.ok();
    let queue = wharf(addrs, &["queue", "show", QUEUE, "-o", "json"]).await.json();
    assert_eq!((&queue["name"], &queue["sealed"]), (&QUEUE.into(), &false.into()));
    wharf(addrs, &["queue", "create", QUEUE, "--lease", "10s"]).await.fails(1);
    wharf(addrs, &["queue", "show", "no-queue"]).await.fails(4);
    let list = wharf(addrs, &["queue", "list", "-o", "json"]).await.json();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");

    let input = "1\n2\n3\n";
    let taken = wharf_fed(addrs, &["submit", QUEUE, "--lines", "--id-prefix", "n"], input).await;
    let ids: Vec<String> = (1..=input.lines().count()).map(|n| format!("n-{n}")).collect();
    assert!(taken.ok().lines().eq(ids), "the ids of what was taken, in the order of the lines");
    wharf(addrs, &["submit", QUEUE, "--payload", "bad", "--id", "bad", "--max-attempts", "1"]).await.ok();
    wharf(addrs, &["queue", "seal", QUEUE]).await.ok();
    wharf(addrs, &["submit", QUEUE, "--payload", "late"]).await.fails(1);

    let program = r#"read x; [ "$x" != bad ] || { echo "no good" >&2; exit 3; }; echo "$x of $WHARF_QUEUE attempt $WHARF_ATTEMPT""#;
    let work = wharf(addrs, &["work", "--queue", QUEUE, "--exec", program, "--concurrency", "2"]).await;
    work.ok();
    let ended = wharf(addrs, &["queue", "wait", QUEUE, "-o", "json"]).await.json();
    assert_eq!(
        (&ended["ended"], &ended["stats"]["completed"], &ended["stats"]["dead"]),
        (&true.into(), &3.into(), &1.into())
    );
    let done = wharf(addrs, &["wait", QUEUE, "n-2", "--result"]).await;
    assert_eq!(done.ok(), "2 of jobs attempt 1");
    let dead = wharf(addrs, &["get", QUEUE, "bad", "-o", "json"]).await.json();
    assert_eq!(dead["state"], "DEAD", "{dead}");
    assert!(dead.to_string().contains("no good"), "{dead}");
    wharf(addrs, &["wait", QUEUE, "bad"]).await.fails(1);
    wharf(addrs, &["queue", "unseal", QUEUE]).await.ok();
    assert_eq!(wharf(addrs, &["retry", QUEUE, "bad", "-o", "json"]).await.json()["state"], "READY");
    wharf(addrs, &["work", "--queue", "no-queue", "--exec", "cat"]).await.fails(4);
    wharf(addrs, &["work", "--queue", QUEUE]).await.fails(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_for_the_cluster() {
    let mut scene = Scene::new().await;
    let addrs = &scene.cluster.addrs();
    scene.queue(QUEUE, QueueSettings::default()).await;
    let status = wharf(addrs, &["cluster", "status", "-o", "json"]).await.json();
    assert_eq!(status.as_array().map(Vec::len), Some(3), "{status}");
    let leads =
        |status: &Value| status.as_array().into_iter().flatten().filter(|node| node["role"] == "leader").count();
    assert_eq!(leads(&status), 1);

    let leader = scene.cluster.leader().await.unwrap();
    let successor: u64 = wharf(addrs, &["cluster", "transfer"]).await.ok().parse().expect("a node's number");
    assert_ne!(successor, leader);
    let back = wharf(addrs, &["cluster", "transfer", "--to", &leader.to_string()]).await;
    assert_eq!(back.ok(), leader.to_string());

    let check = wharf(addrs, &["check", "-o", "json"]).await.json();
    let hashes: Vec<_> = check.as_array().into_iter().flatten().map(|node| node["hash"].clone()).collect();
    assert!(hashes.len() == 3 && hashes.iter().all(|hash| hash.is_string() && *hash == hashes[0]), "{check}");

    let down = scene.cluster.follower().await.unwrap();
    scene.cluster.kill(down).await.unwrap();
    assert!(wharf(addrs, &["cluster", "status", "--timeout", "2s"]).await.fails(3).contains(&format!("node {down}")));
    wharf(addrs, &["check", "--timeout", "2s"]).await.fails(3);

    let other = scene.cluster.follower().await.unwrap();
    scene.cluster.kill(other).await.unwrap();
    wharf(addrs, &["queue", "show", QUEUE, "--timeout", "2s"]).await.fails(75);
    scene.cluster.restart_all().await.unwrap();
    wharf(addrs, &["check"]).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_home_is_told_at_once_unless_there_is_time() {
    let mut scene = Scene::with(Options { nodes: 1, ..Options::new(binary()) }).await;
    let addrs = &scene.cluster.addrs();
    scene.queue(QUEUE, QueueSettings::default()).await;
    scene.cluster.kill_all().await.unwrap();
    let began = Instant::now();
    let told = wharf(addrs, &["queue", "list"]).await;
    let told = told.fails(69);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for part in [addrs, "wharf dev", "--addr"] {
        assert!(told.contains(part), "{part} in: {told}");
    }
    // Who gives it time waits for a cluster that starts.
    let patient = wharf(addrs, &["queue", "show", QUEUE, "--timeout", "15s"]);
    let restart = async {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        scene.cluster.restart_all().await.unwrap();
    };
    let (shown, ()) = tokio::join!(patient, restart);
    assert!(shown.ok().contains(QUEUE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_configuration_is_told_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wharf.toml");
    std::fs::write(&file, "node = 0\nlisten.client = \"nowhere\"\n").unwrap();
    let path = |file: &Path| file.to_str().unwrap().to_owned();
    for verb in [vec!["serve"], vec!["config", "check"]] {
        let file = path(&file);
        let ran = wharf("127.0.0.1:9", &[verb, vec!["--config", &file]].concat()).await;
        let told = ran.fails(78);
        assert!(told.contains("node") && told.contains("listen.client"), "{told}");
    }
    let open = ["serve", "--listen-client", "0.0.0.0:0", "--data-dir", &path(dir.path())];
    assert!(wharf("127.0.0.1:9", &open).await.fails(78).contains("--insecure"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_that_list_and_destroy() {
    let scene = Scene::new().await;
    let addrs = &scene.cluster.addrs();
    wharf(addrs, &["queue", "create", QUEUE]).await.ok();
    let input = "1\n2\n3\n4\n5\n";
    wharf_fed(addrs, &["submit", QUEUE, "--lines", "--id-prefix", "n"], input).await.ok();
    wharf(addrs, &["submit", QUEUE, "--payload", "x", "--id", "red", "--kind", "red", "--label", "a=b"]).await.ok();

    let ids = |list: &Value| -> Vec<String> {
        let id = |package: &Value| package["id"].as_str().unwrap_or_default().to_owned();
        list.as_array().into_iter().flatten().map(id).collect()
    };
    let all = wharf(addrs, &["list", QUEUE, "-o", "json"]).await.json();
    assert_eq!(ids(&all), ["n-1", "n-2", "n-3", "n-4", "n-5", "red"]);
    let few = wharf(addrs, &["list", QUEUE, "--limit", "2", "-o", "json"]).await;
    assert_eq!(ids(&few.json()), ["n-1", "n-2"]);
    assert!(few.err.contains("--limit 0"), "{}", few.err);
    for filter in [["--kind", "red"], ["--label", "a=b"]] {
        let found = wharf(addrs, &["list", QUEUE, filter[0], filter[1], "-o", "json"]).await.json();
        assert_eq!(ids(&found), ["red"], "{filter:?}");
    }
    assert_eq!(wharf(addrs, &["list", QUEUE, "--state", "dead", "-o", "jsonl"]).await.ok(), "");
    let lines = wharf(addrs, &["list", QUEUE, "--limit", "0", "-o", "jsonl"]).await;
    assert_eq!(lines.ok().lines().count(), 6);
    assert!(wharf(addrs, &["list", QUEUE]).await.ok().contains("READY"));
    wharf(addrs, &["list", "no-queue"]).await.fails(4);

    // Nothing is destroyed unasked where nobody can be asked.
    let refused = wharf(addrs, &["purge", QUEUE, "--state", "ready"]).await;
    assert!(refused.fails(2).contains("--yes") && refused.err.contains("6 packages"), "{}", refused.err);
    assert!(wharf(addrs, &["cancel", QUEUE, "n-1", "n-2"]).await.fails(2).contains("--yes"));
    assert!(wharf(addrs, &["queue", "delete", QUEUE, "--force"]).await.fails(2).contains("--yes"));
    assert_eq!(wharf(addrs, &["purge", QUEUE, "--state", "ready", "--dry-run"]).await.ok(), "6");
    assert!(wharf(addrs, &["queue", "delete", QUEUE, "--dry-run"]).await.err.contains("6 packages"));
    let would = wharf(addrs, &["cancel", QUEUE, "n-1", "n-2", "--dry-run", "-o", "json"]).await.json();
    assert_eq!(ids(&would), ["n-1", "n-2"]);

    let cancelled = wharf(addrs, &["cancel", QUEUE, "n-1", "n-2", "--yes", "-o", "json"]).await.json();
    assert_eq!(ids(&cancelled), ["n-1", "n-2"]);
    wharf(addrs, &["cancel", QUEUE, "n-3"]).await.ok();
    wharf(addrs, &["cancel", QUEUE, "n-3", "nobody", "--yes"]).await.fails(4);
    assert_eq!(wharf(addrs, &["purge", QUEUE, "--state", "cancelled", "--yes"]).await.ok(), "3");
    // There is nothing to ask about.
    assert_eq!(wharf(addrs, &["purge", QUEUE, "--state", "dead"]).await.ok(), "0");
    assert!(wharf(addrs, &["queue", "delete", QUEUE, "--yes"]).await.fails(1).contains("--force"));
    wharf(addrs, &["queue", "delete", QUEUE, "--force", "--yes"]).await.ok();
    wharf(addrs, &["queue", "show", QUEUE]).await.fails(4);

    assert_eq!(wharf(addrs, &["worker", "list", "-o", "jsonl"]).await.ok(), "");
    wharf(addrs, &["worker", "drain", "nobody"]).await.fails(4);
    for verb in
        [vec!["list"], vec!["purge"], vec!["cancel"], vec!["retry"], vec!["queue", "delete"], vec!["worker", "list"]]
    {
        let help = wharf(addrs, &[verb.clone(), vec!["--help"]].concat()).await;
        assert!(help.ok().contains("Example"), "{verb:?}");
    }
    assert!(wharf(addrs, &["completion", "bash"]).await.ok().contains("_wharf"));
}
