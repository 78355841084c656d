//! The house rules that a program can check: who imports whom, the purity of the machine, file
//! sizes, leftovers, and that every command has its script.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may use of the others. A new edge is a design change: its own commit, with why.
const IMPORTS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("proto", &[]),
    ("env", &["types"]),
    ("config", &["types"]),
    ("telemetry", &["types"]),
    ("machine", &["types", "proto"]),
    ("storage", &["types", "proto", "env"]),
    ("raft", &["types", "proto", "env", "machine", "storage"]),
    ("dispatch", &["types", "env", "machine", "raft"]),
    ("history", &["types", "env", "machine", "storage", "raft"]),
    ("api", &["types", "proto", "env", "machine", "raft", "dispatch", "history"]),
    ("admin", &["types", "env", "machine", "raft", "history", "telemetry"]),
    ("client", &["types", "proto", "env"]),
    (
        "node",
        &[
            "types",
            "env",
            "machine",
            "storage",
            "raft",
            "dispatch",
            "history",
            "api",
            "admin",
            "config",
            "telemetry",
            "proto",
        ],
    ),
    ("cli", &["types", "env", "client", "node", "config", "telemetry", "storage", "proto"]),
    ("testkit", &["types", "env", "client", "config", "proto", "storage", "cli", "raft", "node"]),
];

/// Lines past which a file is surely two things.
const MAX_LINES: usize = 800;

/// Words of the machine's law: what `apply` may never touch.
const IMPURE: &[&str] = &[
    "std::time",
    "tokio",
    "std::fs",
    "std::io::stdin",
    "std::env",
    "std::thread",
    "std::net",
    "rand::",
    "tracing::",
    "println!",
    "async fn",
    "f32",
    "f64",
    "std::collections::HashMap",
    "std::collections::HashSet",
];

const LEFTOVERS: &[&str] = &["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX", "#[ignore"];

/// Numbers of `types/limits.rs` that bound nothing which a test could hit by itself, each with why.
const PACES: &[(&str, &[&str])] = &[
    (
        "how often something is looked at or said: what it leads to has its tests",
        &[
            "RECALL_EVERY_MS",
            "LOG_RETRY_MS",
            "WATCH_BOOKMARK_MS",
            "HISTORY_FLUSH_MS",
            "HISTORY_COVER_MS",
            "HISTORY_RETRY_MS",
            "CLIENT_PING_EVERY_MS",
            "CLIENT_RESEND_MS",
            "BOOTSTRAP_RETRY_MS",
            "FAILOVER_STAGGER_MS",
            "WAIT_CHECK_MS",
            "CLIENT_LIST_PAUSE_MS",
        ],
    ),
    (
        "how long a dead connection may look alive: the tests that cut links and freeze nodes see it noticed",
        &[
            "KEEPALIVE_EVERY_MS",
            "KEEPALIVE_ANSWER_MS",
            "PEER_KEEPALIVE_MS",
            "PEER_KEEPALIVE_TIMEOUT_MS",
            "PEER_ANSWER_MS",
            "CLIENT_DOUBT_MS",
            "CLIENT_DOUBT_AGAIN_MS",
            "CLIENT_WATCH_SILENCE_MS",
        ],
    ),
    (
        "how long one try takes before the next: the tests that kill and freeze nodes see the next one",
        &[
            "CLIENT_TRY_MS",
            "CLIENT_WAIT_TRY_MS",
            "CLIENT_CONNECT_MS",
            "CLIENT_WELCOME_MS",
            "CLIENT_AVOID_SEED_MS",
            "PEER_CONNECT_MS",
            "PROBE_MS",
            "FAILOVER_EVERY_MS",
            "FAILOVER_ASK_MS",
            "FAILOVER_TRY_MS",
            "FAILOVER_VOTE_MS",
        ],
    ),
    (
        "defaults of the SDK that minutes pass in: tests set shorter ones, and hit those",
        &["CLIENT_ATTACH_MS", "CLIENT_REATTACH_MS", "CLIENT_CANCEL_GRACE_MS", "CLIENT_DRAIN_MS", "CLIENT_GOODBYE_MS"],
    ),
    (
        "how long an end in good order waits for others; tests see the end",
        &["SHUTDOWN_TRANSFER_MS", "SHUTDOWN_CALLS_MS", "QUORUM_LOST_MS", "SNAPSHOT_TRANSFER_MS"],
    ),
    (
        "windows and frames: past them the transport waits, which nobody sees",
        &[
            "CLIENT_STREAM_WINDOW_BYTES",
            "CLIENT_CONNECTION_WINDOW_BYTES",
            "CLIENT_STREAM_QUEUE",
            "HISTORY_CACHE_BYTES",
            "PEER_STREAM_WINDOW_BYTES",
            "PEER_CONNECTION_WINDOW_BYTES",
            "PEER_FRAME_BYTES",
            "SNAPSHOT_CHUNK_BYTES",
        ],
    ),
];

struct Source {
    path: PathBuf,
    text: String,
    /// The text without its test module and comments.
    code: String,
}

impl Source {
    fn is_test(&self) -> bool {
        let path = relative(&self.path);
        path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
    }

    /// What of it is tests.
    fn tests(&self) -> &str {
        match self.is_test() {
            true => &self.text,
            false => self.text.split_once("#[cfg(test)]\nmod tests {").map_or("", |(_, tests)| tests),
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(below: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                found.push(Source { code: code_of(&text), path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no sources below {below}");
    found
}

fn code_of(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod ").next().unwrap_or(text);
    body.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn report(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// The module names that follow `crate::`, alone or in braces.
fn crate_imports(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for after in code.split("crate::").skip(1) {
        let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match after.strip_prefix('{') {
            None => names.push(word(after)),
            Some(group) => {
                let mut depth = 0;
                let mut item = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.push(word(std::mem::take(&mut item).trim())),
                        _ => {}
                    }
                    if depth == 0 && c != ',' {
                        item.push(c);
                    }
                }
                names.push(word(item.trim()));
            }
        }
    }
    names
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let table: BTreeMap<_, _> = IMPORTS.iter().copied().collect();
    let mut problems = Vec::new();
    for source in sources("src") {
        let path = relative(&source.path);
        let module = path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        if module == "lib" || module == "main" || source.is_test() {
            continue;
        }
        let Some(allowed) = table.get(module.as_str()) else {
            problems.push(format!("{path}: the module `{module}` is not in the import table of tests/tidy.rs"));
            continue;
        };
        for import in crate_imports(&source.code) {
            let is_module = table.contains_key(import.as_str());
            if is_module && import != module && !allowed.contains(&import.as_str()) {
                problems.push(format!("{path}: `{module}` must not import `{import}`"));
            }
        }
    }
    report(problems);
}

#[test]
fn the_machine_is_pure() {
    let mut problems = Vec::new();
    for source in sources("src/machine") {
        for (number, line) in source.code.lines().enumerate() {
            for word in IMPURE.iter().filter(|word| line.contains(*word)) {
                problems.push(format!("{}:{}: `{word}` in the machine", relative(&source.path), number + 1));
            }
        }
    }
    report(problems);
}

#[test]
fn only_raft_and_storage_name_openraft() {
    let mut problems = Vec::new();
    for source in sources("src") {
        let path = relative(&source.path);
        // Telemetry names its logs.
        let allowed = path.starts_with("src/raft/") || path.starts_with("src/storage/") || path == "src/telemetry.rs";
        if !allowed && source.code.contains("openraft::") {
            problems.push(format!("{path} names openraft"));
        }
    }
    report(problems);
}

#[test]
fn files_are_of_one_thing() {
    let mut problems = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let lines = source.text.lines().count();
        if lines > MAX_LINES {
            problems.push(format!("{} has {lines} lines, more than {MAX_LINES}", relative(&source.path)));
        }
    }
    report(problems);
}

#[test]
fn folders_open_with_their_purpose() {
    let mut problems = Vec::new();
    for source in sources("src") {
        if !source.text.starts_with("//!") {
            problems.push(format!("{} does not open with what it is", relative(&source.path)));
        }
        let top =
            source.path.ends_with("mod.rs") && source.path.components().count() == root().components().count() + 3;
        let purpose_only = ["src/proto/mod.rs", "src/testkit/mod.rs", "src/cli/mod.rs"];
        if top && !purpose_only.contains(&relative(&source.path).as_str()) && !source.text.contains("Invariants") {
            problems.push(format!("{} names no invariants", relative(&source.path)));
        }
    }
    report(problems);
}

#[test]
fn nothing_is_left_over() {
    let mut problems = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")).chain(sources("examples")) {
        if source.path.ends_with("tidy.rs") {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            for word in LEFTOVERS.iter().filter(|word| line.contains(*word)) {
                problems.push(format!("{}:{}: `{word}`", relative(&source.path), number + 1));
            }
        }
    }
    report(problems);
}

/// What newcomers copy is short: code without comments, docstrings and blank lines.
#[test]
fn a_worker_and_a_client_in_python_are_150_lines_of_code() {
    const MOST: usize = 150;
    for file in ["wharf_worker.py", "wharf_client.py"] {
        let text = fs::read_to_string(root().join("examples/python").join(file)).expect("the example is there");
        let mut in_docstring = false;
        let mut lines = 0;
        for line in text.lines().map(str::trim) {
            let quotes = line.matches("\"\"\"").count();
            let counts = quotes == 0 && !in_docstring && !line.is_empty() && !line.starts_with('#');
            in_docstring ^= quotes == 1;
            lines += usize::from(counts);
        }
        assert!((50..=MOST).contains(&lines), "{file} has {lines} lines of code, the bar is {MOST}");
    }
}

#[test]
fn every_channel_is_bounded() {
    let mut problems = Vec::new();
    for source in sources("src") {
        for word in ["unbounded_channel", "UnboundedSender", "unbounded()", "mpsc::channel()"] {
            if source.code.contains(word) {
                problems.push(format!("{}: `{word}`", relative(&source.path)));
            }
        }
    }
    report(problems);
}

#[test]
fn every_limit_is_hit_by_a_test() {
    let limits = fs::read_to_string(root().join("src/types/limits.rs")).expect("the limits are there");
    let name = |line: &str| Some(line.strip_prefix("pub const ")?.split(':').next()?.to_owned());
    let names: Vec<_> = limits.lines().filter_map(name).collect();
    assert!(names.len() > 100, "the list of limits was not understood");
    let paces: Vec<_> = PACES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let sources: Vec<_> = sources("src").into_iter().chain(sources("tests")).collect();
    let tests: Vec<_> = sources.iter().filter(|source| !source.path.ends_with("tidy.rs")).map(Source::tests).collect();
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let named: BTreeSet<&str> = tests.iter().flat_map(|text| text.split(|c| !word(c))).collect();
    let mut problems = Vec::new();
    for name in &names {
        match (named.contains(name.as_str()), paces.contains(&name.as_str())) {
            (false, false) => problems.push(format!("{name}: no test names it; hit it, and read what it answers")),
            (true, true) => problems.push(format!("{name}: a test names it, so it is no mere pace")),
            _ => {}
        }
    }
    let gone = paces.into_iter().filter(|pace| !names.iter().any(|name| name == pace));
    problems.extend(gone.map(|pace| format!("{pace} is no limit any more")));
    report(problems);
}

#[test]
fn every_command_has_its_script() {
    let proto = fs::read_to_string(root().join("proto/wharf/internal/v1/stored.proto")).expect("the proto is there");
    let ops = proto.split("oneof op {").nth(1).and_then(|rest| rest.split('}').next()).expect("the list of commands");
    let commands: Vec<_> = ops.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(commands.len() > 20, "the list of commands was not understood");
    let scripts = root().join("tests/machine/scripts/commands");
    let missing: Vec<_> = commands
        .into_iter()
        .filter(|command| !scripts.join(command).exists())
        .map(|command| format!("tests/machine/scripts/commands/{command} is missing"))
        .collect();
    report(missing);
}

#[test]
fn every_config_key_is_in_the_example() {
    let source = fs::read_to_string(root().join("src/config.rs")).expect("the configuration is there");
    let list = source.split("pub const KEYS: &[&str] = &[").nth(1).and_then(|rest| rest.split("];").next());
    let keys: Vec<_> = list.expect("the list of keys").split('"').skip(1).step_by(2).collect();
    assert!(keys.len() > 10, "the list of keys was not understood");
    let example = fs::read_to_string(root().join("deploy/wharf.toml")).expect("the example is there");
    let mut section = String::new();
    let mut shown = Vec::new();
    for line in example.lines().map(|line| line.trim_start_matches("# ")) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ") {
            shown.push(format!("{section}{key}"));
        }
    }
    let missing = keys.into_iter().filter(|key| !shown.iter().any(|known| known == key));
    report(missing.map(|key| format!("deploy/wharf.toml does not explain `{key}`")).collect());
}
