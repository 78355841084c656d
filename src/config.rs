//! A node's configuration: read once, checked whole, then shared unchanged.
//!
//! Precedence: command-line flag, environment (`WHARF_LISTEN_CLIENT` for `listen.client`), file,
//! default. A `WHARF_*` variable that names no key is ignored: Kubernetes sets such variables for
//! a service called wharf, and the command line has its own (`WHARF_ADDR`).
//!
//! Invariants: no other module reads the environment for a node. A [`Config`] that came from
//! [`Config::load`] passed [`Config::validate`]: its addresses parse, its timings agree, it listens
//! beyond loopback only if that was asked for.

mod layers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use figment::Figment;
use figment::providers::{Format, Toml};
use figment::value::Value;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::types::{NodeId, limits};
use layers::{Layer, read_file, read_problems};

pub use layers::env_name;

/// Where `serve` looks when no file is named.
pub const DEFAULT_FILE: &str = "/etc/wharf/wharf.toml";

/// Every key, as in the file. The environment's names are made from these.
pub const KEYS: &[&str] = &[
    "node",
    "data_dir",
    "insecure",
    "listen.client",
    "listen.peer",
    "listen.admin",
    "advertise.client",
    "advertise.peer",
    "advertise.admin",
    "cluster.nodes",
    "cluster.join",
    "raft.heartbeat",
    "raft.election_min",
    "raft.election_max",
    "raft.snapshot_every",
    "limits.connections",
    "limits.log_segment",
    "limits.log_cache",
    "history.enabled",
    "history.keep",
    "history.max_size",
    "log.level",
    "log.format",
    "recovery.skip_entry",
];

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node's number in the cluster, 1 or more. Never changes for a data directory.
    pub node: NodeId,
    /// Log, snapshots and identity. One node a directory.
    pub data_dir: PathBuf,
    /// Allows listeners beyond loopback without TLS.
    pub insecure: bool,
    pub listen: Listen,
    pub advertise: Advertise,
    pub cluster: Cluster,
    pub raft: Raft,
    pub limits: Limits,
    pub history: History,
    pub log: Log,
    pub recovery: Recovery,
}

/// Addresses to bind, `host:port`. Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// gRPC for clients and workers.
    pub client: String,
    /// Traffic between nodes.
    pub peer: String,
    /// HTTP: health and metrics.
    pub admin: String,
}

/// Addresses under which others reach this node, where they differ from what it binds. Names are
/// resolved anew at each connect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Advertise {
    pub client: Option<String>,
    pub peer: Option<String>,
    pub admin: Option<String>,
}

/// Which nodes form the cluster, the first time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// `"1=host:7412"`: node and peer address, the same list on every node. Empty: this node alone.
    #[serde(deserialize_with = "list_or_commas")]
    pub nodes: Vec<String>,
    /// Forms no cluster, and waits to be added to one.
    pub join: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raft {
    /// How often a leader that is idle tells so.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub heartbeat: Duration,
    /// A follower that hears nothing for `election_max`, and then for a random time between these two,
    /// stands for election.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub election_min: Duration,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub election_max: Duration,
    /// Log bytes after which a snapshot is taken.
    #[serde(serialize_with = "exact")]
    pub snapshot_every: ByteSize,
}

/// Bounds of one node. What the replicated state is bounded by is changed with `SetCluster`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections a listener.
    pub connections: usize,
    /// Bytes of a log file.
    #[serde(serialize_with = "exact")]
    pub log_segment: ByteSize,
    /// Bytes of the log's tail that stay in memory.
    #[serde(serialize_with = "exact")]
    pub log_cache: ByteSize,
}

/// What this node remembers of finished packages. Queues say which (`history` in their settings).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    pub enabled: bool,
    /// How long after its end.
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    pub keep: Duration,
    /// Bytes of rows; past that the oldest go. On disk they take about five times as much.
    #[serde(serialize_with = "exact")]
    pub max_size: ByteSize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or by module: `info,wharf::raft=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recovery {
    /// The way out of a log entry that halts every node: skip it, on all nodes alike.
    pub skip_entry: Option<SkipEntry>,
}

/// Names one log entry by its index and its checksum, as the halted node printed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkipEntry {
    pub index: u64,
    pub crc: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: 1,
            data_dir: "/var/lib/wharf".into(),
            insecure: false,
            listen: Listen::default(),
            advertise: Advertise::default(),
            cluster: Cluster::default(),
            raft: Raft::default(),
            limits: Limits::default(),
            history: History::default(),
            log: Log::default(),
            recovery: Recovery::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { client: "127.0.0.1:7411".into(), peer: "127.0.0.1:7412".into(), admin: "127.0.0.1:7413".into() }
    }
}

impl Default for Raft {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(limits::HEARTBEAT_MS),
            election_min: Duration::from_millis(limits::ELECTION_MIN_MS),
            election_max: Duration::from_millis(limits::ELECTION_MAX_MS),
            snapshot_every: ByteSize::b(limits::SNAPSHOT_EVERY_LOG_BYTES),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: limits::MAX_CONNECTIONS,
            log_segment: ByteSize::b(limits::SEGMENT_BYTES),
            log_cache: ByteSize::b(limits::LOG_CACHE_BYTES as u64),
        }
    }
}

impl Default for History {
    fn default() -> Self {
        Self {
            enabled: true,
            keep: Duration::from_millis(limits::HISTORY_KEEP_MS),
            max_size: ByteSize::b(limits::HISTORY_MAX_BYTES),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// One thing wrong, with the key and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// The configuration cannot be used. Lists everything wrong with it at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    pub problems: Vec<Problem>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad configuration")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Values given on the command line, by key.
pub type Flags = Vec<(&'static str, Value)>;

impl Config {
    /// Reads file, environment and flags, and checks the whole. Without `file`, [`DEFAULT_FILE`]
    /// is read if it is there.
    pub fn load(file: Option<&Path>, flags: Flags) -> Result<Self, Error> {
        let text = read_file(file)?;
        let vars = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self::layer(text, vars, flags)
    }

    fn layer(
        file: Option<(PathBuf, String)>,
        vars: impl IntoIterator<Item = (String, String)>,
        flags: Flags,
    ) -> Result<Self, Error> {
        let mut figment = Figment::new();
        let mut file_name = "the file".to_owned();
        if let Some((path, text)) = file {
            figment = figment.merge(Toml::string(&text));
            file_name = path.display().to_string();
        }
        figment = figment.merge(Layer::of_environment(vars)).merge(Layer { name: "the command line", values: flags });
        let config: Self = figment.extract().map_err(|error| read_problems(error, &file_name))?;
        config.validate()?;
        Ok(config)
    }

    /// Everything that is wrong, at once.
    pub fn validate(&self) -> Result<(), Error> {
        let mut check = Check::default();
        self.check_identity(&mut check);
        self.check_listen(&mut check);
        self.check_cluster(&mut check);
        self.check_advertise(&mut check);
        self.check_raft(&mut check);
        self.check_limits(&mut check);
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log.level) {
            check.fail("log.level", format!("{error}; use a level such as `info`, or `info,wharf::raft=debug`"));
        }
        if check.problems.is_empty() { Ok(()) } else { Err(Error { problems: check.problems }) }
    }

    /// The nodes that form the cluster, by number, with their peer addresses. A node without a list
    /// is a cluster of itself; empty for one that joins.
    pub fn peers(&self) -> BTreeMap<NodeId, String> {
        if self.cluster.join {
            return BTreeMap::new();
        }
        if self.cluster.nodes.is_empty() {
            return BTreeMap::from([(self.node, self.advertised(Face::Peer))]);
        }
        self.cluster.nodes.iter().filter_map(|entry| parse_node(entry).ok()).collect()
    }

    /// Under which address others reach this node: as told, else its entry in the list of nodes,
    /// else what it binds; on a wildcard, the host of its entry in the list.
    pub fn advertised(&self, face: Face) -> String {
        let (told, listen) = self.face(face);
        if let Some(told) = told {
            return told.clone();
        }
        let listed = self.cluster.nodes.iter().filter_map(|entry| parse_node(entry).ok());
        let own = listed.into_iter().find(|(node, _)| *node == self.node).map(|(_, addr)| addr);
        match (own, face) {
            (Some(own), Face::Peer) => own,
            (Some(own), _) if is_wildcard(listen) => match (split_addr(&own), split_addr(listen)) {
                (Some((host, _)), Some((_, port))) => format!("{host}:{port}"),
                _ => listen.to_owned(),
            },
            _ => listen.to_owned(),
        }
    }

    /// The same once the listener is bound: fills in a port that was 0.
    pub fn advertised_at(&self, face: Face, bound: SocketAddr) -> String {
        let addr = self.advertised(face);
        match split_addr(&addr) {
            Some((host, 0)) => format!("{host}:{}", bound.port()),
            _ => addr,
        }
    }

    /// Every key with its value in force, as lines of a configuration file.
    pub fn render(&self) -> String {
        let root = serde_json::to_value(self).unwrap_or_default();
        let line = |key: &str| {
            let value = root.pointer(&format!("/{}", key.replace('.', "/")))?;
            let value = match value {
                serde_json::Value::Null => return None,
                serde_json::Value::Object(fields) => {
                    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name} = {value}")).collect();
                    format!("{{ {} }}", fields.join(", "))
                }
                value => value.to_string(),
            };
            Some(format!("{key} = {value}\n"))
        };
        KEYS.iter().filter_map(|key| line(key)).collect()
    }

    fn face(&self, face: Face) -> (Option<&String>, &str) {
        match face {
            Face::Client => (self.advertise.client.as_ref(), &self.listen.client),
            Face::Peer => (self.advertise.peer.as_ref(), &self.listen.peer),
            Face::Admin => (self.advertise.admin.as_ref(), &self.listen.admin),
        }
    }

    fn check_identity(&self, check: &mut Check) {
        if self.node == 0 {
            check.fail("node", "must be 1 or more; give each node its own number");
        }
        if self.data_dir.as_os_str().is_empty() {
            check.fail("data_dir", "must name a directory that this node alone uses");
        }
    }

    fn check_listen(&self, check: &mut Check) {
        let mut seen = BTreeSet::new();
        for face in Face::ALL {
            let (key, (_, addr)) = (format!("listen.{}", face.as_str()), self.face(face));
            let Some((host, port)) = split_addr(addr) else {
                check.fail(key, not_an_address(addr));
                continue;
            };
            if port != 0 && !seen.insert((host, port)) {
                check.fail(key, format!("`{addr}` is taken by another listener of this node; choose another port"));
            } else if !self.insecure && !is_loopback(host) {
                check.fail(
                    key,
                    format!(
                        "`{addr}` is reachable from other machines, and there is no TLS: listen on 127.0.0.1, \
                         or give --insecure (`insecure = true`) if the network is trusted"
                    ),
                );
            }
        }
    }

    fn check_advertise(&self, check: &mut Check) {
        for face in Face::ALL {
            let key = format!("advertise.{}", face.as_str());
            match self.face(face) {
                (Some(told), _) if split_addr(told).is_none() => check.fail(key, not_an_address(told)),
                (Some(told), _) if is_wildcard(told) => {
                    check.fail(key, format!("`{told}` is no address that others can reach; name this host"));
                }
                (None, listen) if is_wildcard(&self.advertised(face)) => {
                    check.fail(
                        key,
                        format!(
                            "`listen.{}` = `{listen}` binds every address: tell others which one to use",
                            face.as_str()
                        ),
                    );
                }
                _ => {}
            }
        }
    }

    fn check_cluster(&self, check: &mut Check) {
        let (mut nodes, mut addrs) = (BTreeSet::new(), BTreeSet::new());
        for entry in &self.cluster.nodes {
            match parse_node(entry) {
                Err(problem) => check.fail("cluster.nodes", problem),
                Ok((node, _)) if !nodes.insert(node) => {
                    check.fail("cluster.nodes", format!("node {node} is listed twice; list each node once"));
                }
                Ok((_, addr)) if !addrs.insert(addr.clone()) => {
                    check.fail("cluster.nodes", format!("`{addr}` is listed for two nodes; each has its own"));
                }
                Ok(_) => {}
            }
        }
        if self.cluster.join && !self.cluster.nodes.is_empty() {
            check.fail(
                "cluster.join",
                "a node that joins forms no cluster: leave `cluster.nodes` out, or `cluster.join`",
            );
        }
        if !nodes.is_empty() && !nodes.contains(&self.node) {
            check.fail("cluster.nodes", format!("this node, {}, is not listed; add it or correct `node`", self.node));
        }
    }

    fn check_raft(&self, check: &mut Check) {
        let Raft { heartbeat, election_min, election_max, snapshot_every } = &self.raft;
        if *heartbeat < Duration::from_millis(10) {
            check.fail("raft.heartbeat", "must be 10ms or more");
        }
        if *election_min <= *heartbeat {
            check.fail("raft.election_min", "must be longer than raft.heartbeat");
        }
        if *election_min + *election_max < *heartbeat * 4 {
            let why = "must be four heartbeats or more together with raft.election_min, so that a few lost beats elect nobody";
            check.fail("raft.election_max", why);
        }
        if election_max <= election_min {
            check.fail("raft.election_max", "must be longer than raft.election_min, so that nodes rarely tie");
        }
        if *election_max > Duration::from_secs(60) {
            check.fail("raft.election_max", "must be 60s or less");
        }
        if snapshot_every.as_u64() < 1 << 20 {
            check.fail("raft.snapshot_every", "must be 1MiB or more");
        }
    }

    fn check_limits(&self, check: &mut Check) {
        let Limits { connections, log_segment, log_cache, .. } = &self.limits;
        if *connections == 0 {
            check.fail("limits.connections", "must be 1 or more");
        }
        if !(4 << 20..=1 << 30).contains(&log_segment.as_u64()) {
            check.fail("limits.log_segment", "must be from 4MiB to 1GiB");
        }
        if log_cache.as_u64() < 4 << 20 {
            check.fail("limits.log_cache", "must be 4MiB or more");
        }
        if self.history.keep < Duration::from_secs(1) {
            check.fail("history.keep", "must be 1s or more; to keep none, set history.enabled = false");
        }
        if self.history.max_size.as_u64() < 1 << 20 {
            check.fail("history.max_size", "must be 1MiB or more; to keep none, set history.enabled = false");
        }
    }
}

/// Who a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    Client,
    Peer,
    Admin,
}

impl Face {
    pub const ALL: [Face; 3] = [Face::Client, Face::Peer, Face::Admin];

    /// As in the keys below `listen` and `advertise`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Face::Client => "client",
            Face::Peer => "peer",
            Face::Admin => "admin",
        }
    }
}

#[derive(Default)]
struct Check {
    problems: Vec<Problem>,
}

impl Check {
    fn fail(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { key: key.into(), message: message.into() });
    }
}

/// `"1=host:7412"`.
fn parse_node(entry: &str) -> Result<(NodeId, String), String> {
    let what = || format!("`{entry}` is no node: write its number and peer address, as in `1=host:7412`");
    let (node, addr) = entry.split_once('=').ok_or_else(what)?;
    let node = node.trim().parse::<NodeId>().ok().filter(|node| *node > 0).ok_or_else(what)?;
    let addr = addr.trim();
    match split_addr(addr) {
        Some((host, port)) if port != 0 && !is_wildcard_host(host) => Ok((node, addr.to_owned())),
        _ => Err(what()),
    }
}

/// `host:port`; an IPv6 host stands in brackets.
fn split_addr(addr: &str) -> Option<(&str, u16)> {
    let (host, port) = addr.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let host_ok = if bracketed { ip(host).is_some() } else { !host.contains([':', '/', ' ']) };
    if host.is_empty() || !host_ok {
        return None;
    }
    Some((host, port.parse().ok()?))
}

fn not_an_address(addr: &str) -> String {
    format!("`{addr}` is no address; write host:port, as in 127.0.0.1:7411")
}

fn ip(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || ip(host).is_some_and(|ip| ip.is_loopback())
}

fn is_wildcard_host(host: &str) -> bool {
    ip(host).is_some_and(|ip| ip.is_unspecified())
}

fn is_wildcard(addr: &str) -> bool {
    split_addr(addr).is_some_and(|(host, _)| is_wildcard_host(host))
}

/// A size without rounding: `256MiB`, or `1000B`.
fn exact<S: Serializer>(size: &ByteSize, to: S) -> Result<S::Ok, S::Error> {
    const MIB: u64 = 1 << 20;
    let bytes = size.as_u64();
    if bytes > 0 && bytes.is_multiple_of(MIB) {
        to.collect_str(&format_args!("{}MiB", bytes / MIB))
    } else {
        to.collect_str(&format_args!("{bytes}B"))
    }
}

/// A list, or one text with commas, as the environment gives it.
fn list_or_commas<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Either::deserialize(from)? {
        Either::List(list) => list,
        Either::Text(text) => text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
    })
}
