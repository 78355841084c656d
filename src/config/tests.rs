//! What is read, from where, and what is refused.

use super::*;

fn read(text: &str, vars: &[(&str, &str)], flags: Flags) -> Result<Config, Error> {
    let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::layer(Some(("wharf.toml".into(), text.to_owned())), vars, flags)
}

fn problems(text: &str) -> Vec<String> {
    read(text, &[], vec![]).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = "node = 2\ncluster.nodes = ['1=a:1', '2=b:2', '3=c:3', '4=d:4']\n[listen]\nclient = '127.0.0.1:2'\npeer = '127.0.0.1:3'\n";
    let vars = [("WHARF_NODE", "3"), ("WHARF_LISTEN_CLIENT", "127.0.0.1:4"), ("WHARF_SERVICE_HOST", "ignored")];
    let config = read(file, &vars, vec![("node", Value::from(4))]).unwrap();
    assert_eq!(config.node, 4);
    assert_eq!(config.listen.client, "127.0.0.1:4");
    assert_eq!(config.listen.peer, "127.0.0.1:3");
    assert_eq!(config.listen.admin, "127.0.0.1:7413");
}

#[test]
fn history_is_bounded_by_default() {
    let history = Config::default().history;
    assert_eq!(history.keep.as_millis() as u64, limits::HISTORY_KEEP_MS);
    assert_eq!(history.max_size.as_u64(), limits::HISTORY_MAX_BYTES);
    let found = problems("[history]\nkeep = '0s'\nmax_size = '1kB'");
    assert!(found.len() == 2 && found.iter().all(|problem| problem.contains("history.enabled = false")), "{found:?}");
}

#[test]
fn durations_and_sizes_are_text() {
    let file = "[raft]\nheartbeat = '50ms'\nelection_min = '1s'\nelection_max = '2 seconds'\nsnapshot_every = '64MiB'\n[limits]\nlog_segment = '16 MiB'";
    let config = read(file, &[("WHARF_RAFT_HEARTBEAT", "75ms")], vec![]).unwrap();
    assert_eq!(config.raft.heartbeat, Duration::from_millis(75));
    assert_eq!(config.raft.election_max, Duration::from_secs(2));
    assert_eq!(config.raft.snapshot_every.as_u64(), 64 << 20);
    assert_eq!(config.limits.log_segment.as_u64(), 16 << 20);
}

#[test]
fn the_environment_may_list_nodes_with_commas() {
    let vars = [("WHARF_CLUSTER_NODES", "1=10.0.0.1:7412, 2=[::1]:7412")];
    let config = read("", &vars, vec![]).unwrap();
    let peers = config.peers();
    assert_eq!(peers[&1], "10.0.0.1:7412");
    assert_eq!(peers[&2], "[::1]:7412");
}

#[test]
fn unknown_keys_are_refused_with_their_place() {
    let found = problems("nodes = 1");
    assert!(found[0].contains("unknown field") && found[0].contains("wharf.toml"), "{found:?}");
    assert!(problems("[raft]\nbeat = '1s'")[0].contains("raft"), "{found:?}");
}

#[test]
fn a_value_of_the_wrong_kind_names_its_key_and_origin() {
    let error = read("", &[("WHARF_NODE", "one")], vec![]).unwrap_err();
    assert_eq!(error.problems[0].key, "node");
    assert!(error.problems[0].message.contains("the environment"), "{error}");
    assert!(problems("[log]\nformat = 'xml'")[0].contains("log.format"));
}

#[test]
fn all_problems_are_told_at_once() {
    let file = "node = 0\ncluster.nodes = ['1=a:1', '1=b:1', 'x', '2=a:1', '3=0.0.0.0:1']\n[listen]\nclient = '0.0.0.0:7411'\npeer = 'nowhere'\n\
                [raft]\nheartbeat = '1ms'\nelection_min = '1ms'\nelection_max = '1ms'\nsnapshot_every = '1kB'\n[log]\nlevel = 'a=b=c'\n[limits]\nconnections = 0";
    let found = problems(file);
    let keys = [
        "node",
        "listen.client",
        "listen.peer",
        "cluster.nodes",
        "advertise.client",
        "raft.heartbeat",
        "raft.election_min",
        "raft.election_max",
        "raft.snapshot_every",
        "log.level",
        "limits.connections",
    ];
    for key in keys {
        assert!(found.iter().any(|p| p.starts_with(&format!("{key}: "))), "{key} is missing in {found:#?}");
    }
    assert_eq!(found.iter().filter(|p| p.starts_with("cluster.nodes: ")).count(), 5, "{found:#?}");
}

#[test]
fn a_follower_misses_four_heartbeats_before_it_stands() {
    let raft = |max| format!("[raft]\nheartbeat = '200ms'\nelection_min = '300ms'\nelection_max = '{max}'");
    assert!(read(&raft("500ms"), &[], vec![]).is_ok());
    let found = problems(&raft("400ms"));
    assert!(found.len() == 1 && found[0].starts_with("raft.election_max: "), "{found:?}");
}

#[test]
fn listening_beyond_loopback_needs_insecure() {
    let open = "[listen]\nclient = '10.1.2.3:7411'\n";
    assert!(problems(open)[0].contains("--insecure"));
    assert!(read(&format!("insecure = true\n{open}"), &[], vec![]).is_ok());
    for local in ["localhost:1", "127.0.0.7:1", "[::1]:1"] {
        assert!(read(&format!("[listen]\nclient = '{local}'\n"), &[], vec![]).is_ok(), "{local}");
    }
}

#[test]
fn what_others_are_told() {
    let file = "insecure = true\nnode = 2\ncluster.nodes = ['1=a:7412', '2=b:9412']\n[listen]\nclient = '0.0.0.0:0'\npeer = '0.0.0.0:7412'\nadmin = '127.0.0.1:7413'\n";
    let config = read(file, &[], vec![]).unwrap();
    assert_eq!(config.advertised(Face::Peer), "b:9412");
    assert_eq!(config.advertised_at(Face::Client, ([0, 0, 0, 0], 5001).into()), "b:5001");
    assert_eq!(config.advertised(Face::Admin), "127.0.0.1:7413");
    let alone = read("insecure = true\n[listen]\npeer = '0.0.0.0:7412'", &[], vec![]).unwrap_err();
    assert_eq!(alone.problems[0].key, "advertise.peer");
}

#[test]
fn what_is_rendered_reads_back_the_same() {
    let file = "node = 2\ncluster.nodes = ['1=a:1', '2=b:2']\n[recovery]\nskip_entry = { index = 7, crc = 9 }\n[raft]\nheartbeat = '150ms'\nsnapshot_every = '100000001B'\n";
    let config = read(file, &[], vec![]).unwrap();
    assert_eq!(read(&config.render(), &[], vec![]).unwrap(), config);
}

#[test]
fn every_key_is_known() {
    let advertise = Advertise { client: Some("a:1".into()), peer: Some("a:2".into()), admin: Some("a:3".into()) };
    let recovery = Recovery { skip_entry: Some(SkipEntry { index: 1, crc: 2 }) };
    let config = Config { advertise, recovery, ..Config::default() };
    let rendered: Vec<String> =
        config.render().lines().filter_map(|l| Some(l.split_once(" = ")?.0.to_owned())).collect();
    assert_eq!(rendered, KEYS);
    let mut leaves = 0;
    for value in serde_json::to_value(&config).unwrap().as_object().unwrap().values() {
        leaves += value.as_object().map_or(1, serde_json::Map::len);
    }
    assert_eq!(leaves, KEYS.len(), "a field without its entry in KEYS");
}

#[test]
fn the_bounds_and_paces_of_a_node_are_those_that_are_named() {
    let Config { limits: bounds, raft, .. } = read("", &[], vec![]).unwrap();
    assert_eq!(bounds.connections, limits::MAX_CONNECTIONS);
    assert_eq!(bounds.log_segment.as_u64(), limits::SEGMENT_BYTES);
    assert_eq!(bounds.log_cache.as_u64(), limits::LOG_CACHE_BYTES as u64);
    assert_eq!(raft.snapshot_every.as_u64(), limits::SNAPSHOT_EVERY_LOG_BYTES);
    let paces = [raft.heartbeat, raft.election_min, raft.election_max].map(|pace| pace.as_millis() as u64);
    assert_eq!(paces, [limits::HEARTBEAT_MS, limits::ELECTION_MIN_MS, limits::ELECTION_MAX_MS]);
}
