//! What operators see: `docs/metrics.md` against a live node, in both directions, and Debian's
//! Prometheus against a live cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use wharf::client::{NewPackage, QueueSettings};
use wharf::env::Env;
use wharf::testkit::wait;

use super::harness::{QUEUE, SOON, Scene};

/// One row of the documentation: type and labels.
type Documented = BTreeMap<String, (String, BTreeSet<String>)>;

/// A cluster in which something has happened, and its nodes' admin addresses.
async fn scene() -> (Scene, Vec<String>) {
    let scene = Scene::new().await;
    scene.queue(QUEUE, QueueSettings::default()).await;
    for payload in ["one", "two"] {
        let package = NewPackage { queue: QUEUE.into(), payload: payload.into(), ..Default::default() };
        scene.client.submit(package).await.expect("it is taken");
    }
    let status = scene.cluster.status(scene.cluster.leader().await.unwrap()).await.unwrap();
    let admins = status.members.into_iter().map(|member| member.admin_addr).collect();
    (scene, admins)
}

/// The body, if the answer comes and is good.
async fn try_get(addr: &str, path: &str) -> Option<String> {
    let mut stream = Env::real().net.connect(addr).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    (head.split(' ').nth(1) == Some("200")).then(|| body.to_owned())
}

async fn get(addr: &str, path: &str) -> String {
    try_get(addr, path).await.unwrap_or_else(|| panic!("no answer to {path} at {addr}"))
}

fn documentation() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap()
}

/// What stands in backquotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows `| `wharf_…` | type | unit | labels | meaning |`.
fn documented_metrics() -> Documented {
    let mut found = Documented::new();
    for line in documentation().lines().filter(|line| line.starts_with("| `wharf_")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = quoted(cells[1]).remove(0);
        assert!(cells.len() == 7 && cells[5].len() > 10, "{name} is not told in five columns");
        let before = found.insert(name.clone(), (cells[2].to_owned(), quoted(cells[4]).into_iter().collect()));
        assert!(before.is_none(), "{name} stands twice");
    }
    found
}

/// What nodes expose. A family without samples has no labels to compare: None.
fn exposed(texts: &[String]) -> BTreeMap<String, (String, Option<BTreeSet<String>>)> {
    let mut found: BTreeMap<String, (String, Option<BTreeSet<String>>)> = BTreeMap::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            found.entry(name.to_owned()).or_insert((kind.to_owned(), None));
        } else if !line.starts_with('#') {
            let (sample, labels) = line.split(' ').next().unwrap().split_once('{').unwrap_or((line, ""));
            let sample = sample.split(' ').next().unwrap();
            let family = ["", "_bucket", "_sum", "_count"].iter().find_map(|suffix| {
                let name = sample.strip_suffix(suffix)?;
                found.contains_key(name).then(|| name.to_owned())
            });
            let family = family.unwrap_or_else(|| panic!("{sample} belongs to no family"));
            let names = labels.split(',').filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
            // Part of the type, not of the metric.
            let names = names.filter(|name| name != "le");
            found.get_mut(&family).unwrap().1.get_or_insert_default().extend(names);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_documented_as_it_is() {
    let (_scene, admins) = scene().await;
    let mut texts = Vec::new();
    for admin in &admins {
        texts.push(get(admin, "/metrics").await);
    }
    let (documented, exposed) = (documented_metrics(), exposed(&texts));
    assert!(exposed.len() > 30, "the metrics were not understood");
    let mut problems = Vec::new();
    for (name, (kind, labels)) in &exposed {
        match documented.get(name) {
            None => problems.push(format!("docs/metrics.md does not tell what {name} is")),
            Some(told) if told.0 != *kind => problems.push(format!("{name} is a {kind}, not a {}", told.0)),
            Some(told) if labels.as_ref().is_some_and(|labels| *labels != told.1) => {
                problems.push(format!("{name} has the labels {labels:?}, not {:?}", told.1));
            }
            Some(_) => {}
        }
    }
    let gone = documented.keys().filter(|name| !exposed.contains_key(*name));
    problems.extend(gone.map(|name| format!("docs/metrics.md tells of {name}, which no node exposes")));
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// No alarm stands on a healthy node, so the source is asked which there are.
#[test]
fn every_alarm_is_documented() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/raft/maintenance.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let raised = source.split(".alarm(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0));
    let raised: BTreeSet<String> = raised.map(str::to_owned).collect();
    let text = documentation();
    let row = text.lines().find(|line| line.starts_with("| `wharf_alarm`")).expect("the row is there");
    let told: BTreeSet<String> =
        quoted(row).into_iter().filter(|word| word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')).collect();
    assert_eq!(raised, told);
}

/// The paths of all leaves: `queues[].name`. What is empty has none.
fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>, empty: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(value, &path, found, empty);
            }
        }
        Value::Array(items) => {
            let path = format!("{path}[]");
            if items.is_empty() {
                empty.insert(path.clone());
            }
            items.iter().for_each(|item| leaves(item, &path, found, empty));
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_statistic_is_documented() {
    let (_scene, admins) = scene().await;
    let stats: Value = serde_json::from_str(&get(&admins[0], "/stats.json").await).unwrap();
    assert_eq!((&stats["queues"][0]["name"], &stats["queues"][0]["ready"]), (&QUEUE.into(), &2.into()), "{stats}");
    let (mut exposed, mut empty) = (BTreeSet::new(), BTreeSet::new());
    leaves(&stats, "", &mut exposed, &mut empty);

    let text = documentation();
    let section = text.split("\n## /stats.json\n").nth(1).expect("the section is there");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    let documented: BTreeSet<String> = rows.flat_map(|(keys, _)| quoted(&format!("`{keys}"))).collect();
    let is_hidden = |key: &String| empty.iter().any(|path| key.starts_with(path.as_str()));
    let untold: Vec<_> = exposed.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&exposed).filter(|key| !is_hidden(key)).collect();
    assert!(untold.is_empty() && gone.is_empty(), "docs/metrics.md does not tell {untold:?}, and tells of {gone:?}");
}

/// Whether it is installed. In CI it must be.
fn is_here(program: &str) -> bool {
    let here = std::process::Command::new(program).arg("--version").output().is_ok();
    assert!(here || std::env::var_os("WHARF_CI").is_none(), "{program} is not installed");
    if !here {
        eprintln!("SKIPPED: {program} is not installed (Debian: apt-get install prometheus)");
    }
    here
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_has_nothing_to_say() {
    if !is_here("promtool") {
        return;
    }
    let (_scene, admins) = scene().await;
    let text = get(&admins[0], "/metrics").await;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let done = tokio::time::timeout(SOON, child.wait_with_output()).await.expect("it ends").unwrap();
    let said = [done.stdout, done.stderr].concat();
    assert!(done.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_the_cluster() {
    if !is_here("prometheus") {
        return;
    }
    let (scene, admins) = scene().await;
    let dir = scene.cluster.dir().join("prometheus");
    std::fs::create_dir(&dir).unwrap();
    let config = dir.join("prometheus.yml");
    let scrape = "{ scrape_interval: 500ms, scrape_timeout: 500ms }";
    let targets = format!("[{{ job_name: wharf, static_configs: [{{ targets: {admins:?} }}] }}]");
    std::fs::write(&config, format!("global: {scrape}\nscrape_configs: {targets}\n")).unwrap();

    let listener = Env::real().net.bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let _prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .arg(format!("--web.listen-address={addr}"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    for (query, expected) in [
        ("count(up==1)", "3"),
        ("sum(wharf_raft_is_leader)", "1"),
        ("min(wharf_queue_packages{queue=\"jobs\",state=\"ready\"})", "2"),
        ("min(wharf_queue_submitted_total{queue=\"jobs\"})", "2"),
        ("count(wharf_fsync_seconds_bucket{le=\"+Inf\"})", "3"),
    ] {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={encoded}");
        let asked = || async {
            let answer: Value = serde_json::from_str(&try_get(&addr, &path).await?).ok()?;
            (answer["data"]["result"][0]["value"][1] == expected).then_some(())
        };
        wait::until(query, Duration::from_secs(20), asked).await.unwrap_or_else(|late| panic!("{late}"));
    }
}
