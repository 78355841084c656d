//! `wharf bench`: each mode against real nodes, by what it prints for programs.

use serde_json::Value;

use super::cli::wharf;
use super::harness::{Scene, Turn};

const FIELDS: &[&str] = &[
    "count",
    "payload",
    "queues",
    "rate",
    "backlog",
    "publish_per_s",
    "cycle_per_s",
    "drain_per_s",
    "confirm_ms",
    "e2e_ms",
    "cpu_us_per_package",
    "rss_mb",
    "disk_mb",
    "kill",
];

/// Runs it, and checks that all fields are there, and that those and no others are null.
async fn bench(args: &[&str], nulls: &[&str]) -> Value {
    // Names nobody: the bench has a cluster of its own unless it is told on its command line.
    let report = wharf("127.0.0.1:9", &[&["bench", "--json"], args].concat()).await.json();
    let object = report.as_object().expect("an object");
    let mut names: Vec<&str> = object.keys().map(String::as_str).collect();
    let mut fields = FIELDS.to_vec();
    names.sort_unstable();
    fields.sort_unstable();
    assert_eq!(names, fields);
    let null: Vec<&str> = FIELDS.iter().copied().filter(|name| report[*name].is_null()).collect();
    assert_eq!(null, nulls, "{report}");
    for (of, quantiles) in [("confirm_ms", &report["confirm_ms"]), ("e2e_ms", &report["e2e_ms"])] {
        if quantiles.is_null() {
            continue;
        }
        let ms = ["p50", "p99", "p999", "max"].map(|name| quantiles[name].as_f64().expect("a number"));
        assert!(ms[0] > 0.0 && ms.is_sorted(), "{of}: {quantiles}");
    }
    report
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_in_each_mode() {
    let _turn = Turn::take();
    let report = bench(&["--count", "2000", "--queues", "2"], &["rate", "drain_per_s", "kill"]).await;
    assert_eq!((&report["count"], &report["queues"], &report["payload"]), (&2000.into(), &2.into(), &256.into()));
    assert!(number(&report["cycle_per_s"]) > 10.0 && number(&report["publish_per_s"]) > 10.0, "{report}");
    let cpu = ["leader", "followers", "client"].map(|of| number(&report["cpu_us_per_package"][of]));
    assert!(cpu.iter().sum::<f64>() > 0.0);
    assert!((number(&report["cpu_us_per_package"]["total"]) - cpu.iter().sum::<f64>()).abs() < 0.1, "{report}");
    assert_eq!(report["rss_mb"].as_array().map(Vec::len), Some(3));
    assert!(number(&report["rss_mb"][0]) > 1.0 && number(&report["disk_mb"]) > 0.1);

    let report = bench(&["--duration", "1s"], &["rate", "drain_per_s", "kill"]).await;
    let (count, rate) = (number(&report["count"]), number(&report["publish_per_s"]));
    assert!(count > 10.0 && (0.2..3.0).contains(&(count / rate)), "a second of load: {report}");

    // Without a payload the id tells which package it is.
    let args = ["--count", "1000", "--backlog", "--single", "--payload", "0"];
    let report = bench(&args, &["rate", "cycle_per_s", "kill"]).await;
    assert!(number(&report["drain_per_s"]) > 10.0 && report["backlog"] == true, "{report}");

    let alone = ["rate", "cycle_per_s", "drain_per_s", "e2e_ms", "kill"];
    let report = bench(&["--count", "500", "--unary", "16"], &alone).await;
    assert!(number(&report["publish_per_s"]) > 10.0, "{report}");
    let dir = tempfile::tempdir().expect("a directory");
    let below = dir.path().to_str().expect("its name is text");
    bench(&["--count", "1000", "--publish-only", "--window", "10", "--dir", below], &alone).await;
    assert_eq!(dir.path().read_dir().expect("it stays").count(), 0, "the nodes' files are gone");
    wharf("127.0.0.1:9", &["bench", "--dir", "/nowhere"]).await.fails(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_leader_at_a_steady_rate() {
    let _turn = Turn::take();
    let args = ["--kill-leader", "--rate", "100", "--duration", "6s"];
    let report = bench(&args, &["drain_per_s"]).await;
    assert_eq!((&report["count"], &report["rate"]), (&600.into(), &100.into()));
    let kill = &report["kill"];
    assert_eq!((&kill["lost"], &kill["duplicates"]), (&0.into(), &0.into()), "{report}");
    // Packages are 10 ms apart, and somebody has to be elected.
    for gap in ["confirm_gap_ms", "delivery_gap_ms"] {
        assert!((10.0..6_000.0).contains(&number(&kill[gap])), "{report}");
    }
    let published = number(&report["publish_per_s"]);
    assert!((50.0..=101.0).contains(&published), "the rate was {published}");
    assert!(number(&report["confirm_ms"]["max"]) >= number(&kill["confirm_gap_ms"]) - 20.0, "{report}");
    let gone = report["rss_mb"].as_array().expect("three nodes").iter().filter(|mb| mb.is_null()).count();
    assert_eq!(gone, 1, "one node is dead");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_cluster_is_left_as_it_was() {
    let scene = Scene::new().await;
    let addrs = scene.cluster.addrs();
    let args = ["--addr", addrs.as_str(), "--count", "1000", "--rate", "2000"];
    let report = bench(&args, &["drain_per_s", "rss_mb", "disk_mb", "kill"]).await;
    assert!(report["cpu_us_per_package"]["total"].is_null() && number(&report["cpu_us_per_package"]["client"]) >= 0.0);
    let beside = ["bench", "--addr", &addrs, "--json", "--count", "500", "--waiting", "700"];
    assert_eq!(wharf(&addrs, &beside).await.json()["waiting"], 700);
    assert_eq!(scene.client.list_queues("").await.expect("a list").len(), 0, "its queues are gone");

    let refused = wharf(&addrs, &["bench", "--addr", &addrs, "--kill-leader"]).await;
    assert!(refused.fails(2).contains("--addr"));
    wharf(&addrs, &["bench", "--duration", "101s"]).await.fails(2);
    assert!(wharf(&addrs, &["bench", "--queues", "257"]).await.fails(2).contains("--consumers"));
    wharf(&addrs, &["bench", "--backlog", "--unary", "4"]).await.fails(2);
    wharf(&addrs, &["bench", "--payload", "9MiB"]).await.fails(2);
    wharf(&addrs, &["bench", "--addr", "127.0.0.1:9"]).await.fails(69);
}
