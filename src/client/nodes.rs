//! Which node to talk to, and the connections to them.
//!
//! The leader is asked if it is known, else the seeds in turn. A node that fails is left for the
//! next one at once; what a failed leader was is forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Uri};

use super::Error;
use crate::env::Env;
use crate::types::limits;

/// Response metadata that names the leader's client address.
pub(super) const LEADER_KEY: &str = "wharf-leader";

/// Between two tries at addresses that all refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// The nodes of one cluster, as one client knows them.
pub(super) struct Nodes {
    env: Env,
    follow_leader: bool,
    book: Mutex<Book>,
    /// One connect at a time: whoever waited finds the connection made, or the next address.
    connecting: tokio::sync::Mutex<()>,
    /// When the others were last asked about a node in doubt.
    asked: Mutex<Option<Instant>>,
}

struct Book {
    seeds: Vec<String>,
    /// Which seed is asked while no leader is known.
    cursor: usize,
    leader: Option<String>,
    /// A leader that was named and could not be reached, and until when it is not followed.
    avoided: Option<(String, Instant)>,
    /// Of seeds and the leader only, so bounded.
    open: HashMap<String, Node>,
    made: u64,
}

/// A connected node.
#[derive(Clone)]
pub(super) struct Node {
    pub addr: Arc<str>,
    pub channel: Channel,
    /// Tells connections to one address apart, so that a late complaint never closes a new one.
    number: u64,
}

impl Nodes {
    /// `addrs` are `host:port`; at least one.
    pub fn new(env: Env, addrs: Vec<String>, follow_leader: bool) -> Self {
        let book = Book { seeds: addrs, cursor: 0, leader: None, avoided: None, open: HashMap::new(), made: 0 };
        Self {
            env,
            follow_leader,
            book: Mutex::new(book),
            connecting: tokio::sync::Mutex::new(()),
            asked: Mutex::new(None),
        }
    }

    pub fn env(&self) -> &Env {
        &self.env
    }

    /// The addresses that the client was built with.
    pub fn seeds(&self) -> Vec<String> {
        self.book.lock().seeds.clone()
    }

    /// Err: for all of `within` every seed refused the connection.
    pub async fn check_reachable(&self, within: Duration) -> Result<(), Error> {
        let (seeds, until) = (self.seeds(), Instant::now() + within);
        loop {
            let mut tries: FuturesUnordered<_> = seeds.iter().map(|addr| self.refused(addr)).collect();
            let mut refusals = Vec::new();
            while let Some(refusal) = tries.next().await {
                match refusal {
                    Some(refusal) => refusals.push(refusal),
                    None => return Ok(()),
                }
            }
            if Instant::now() + REFUSED_PAUSE >= until {
                refusals.sort();
                return Err(Error::unreachable(refusals.join("; ")));
            }
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }

    /// Why nobody is there. None: somebody is, or may be.
    async fn refused(&self, addr: &str) -> Option<String> {
        let bound = Duration::from_millis(limits::CLIENT_CONNECT_MS);
        match tokio::time::timeout(bound, self.env.net.connect(addr)).await {
            Ok(Err(error)) => Some(format!("cannot connect to {addr}: {error}")),
            Ok(Ok(_)) | Err(_) => None,
        }
    }

    /// The node to ask now, connected.
    pub async fn pick(&self) -> Result<Node, Error> {
        if let Some(node) = self.book.lock().preferred().1 {
            return Ok(node);
        }
        let _one_at_a_time = self.connecting.lock().await;
        let addr = match self.book.lock().preferred() {
            (_, Some(node)) => return Ok(node),
            (addr, None) => addr,
        };
        self.connect(&addr).await.inspect_err(|_| self.book.lock().unreachable(&addr, Instant::now()))
    }

    /// The leader, if it is known and is not this node.
    pub fn better_than(&self, node: &Node) -> bool {
        self.book.lock().leader.as_deref().is_some_and(|leader| leader != &*node.addr)
    }

    /// The others may be asked about a node in doubt: once in so long for all who doubt.
    pub fn may_ask(&self, now: Instant, every: Duration) -> bool {
        let mut asked = self.asked.lock();
        let may = self.follow_leader && asked.is_none_or(|at| now.saturating_duration_since(at) >= every);
        if may {
            *asked = Some(now);
        }
        may
    }

    /// A certain node, whether it leads or not.
    pub async fn node(&self, addr: &str) -> Result<Node, Error> {
        if let Some(node) = self.book.lock().open.get(addr) {
            return Ok(node.clone());
        }
        self.connect(addr).await
    }

    /// This connection failed: ask somebody else next.
    pub fn lost(&self, node: &Node) {
        let mut book = self.book.lock();
        if book.open.get(&*node.addr).is_some_and(|open| open.number == node.number) {
            book.open.remove(&*node.addr);
            book.leave(&node.addr);
        }
    }

    /// The node answered, but cannot help now: ask somebody else next.
    pub fn elsewhere(&self, node: &Node) {
        self.book.lock().leave(&node.addr);
    }

    /// One or the other.
    pub fn elsewhere_or_lost(&self, node: &Node, broken: bool) {
        if broken { self.lost(node) } else { self.elsewhere(node) }
    }

    /// Takes the leader's address from an answer.
    pub fn learn(&self, metadata: &MetadataMap) {
        if let Some(addr) = metadata.get(LEADER_KEY).and_then(|value| value.to_str().ok()) {
            self.led_by(addr);
        }
    }

    /// Somebody says that this is the leader. Empty: not known.
    pub fn led_by(&self, addr: &str) {
        if self.follow_leader && !addr.is_empty() {
            self.book.lock().led_by(addr, Instant::now());
        }
    }

    async fn connect(&self, addr: &str) -> Result<Node, Error> {
        let bound = Duration::from_millis(limits::CLIENT_CONNECT_MS);
        let channel = tokio::time::timeout(bound, dial(&self.env, addr))
            .await
            .map_err(|_| Error::unreachable(format_args!("{addr} did not answer within {bound:?}")))??;
        let mut book = self.book.lock();
        book.made += 1;
        let node = Node { addr: addr.into(), channel, number: book.made };
        if book.seeds.iter().any(|seed| seed == addr) || book.leader.as_deref() == Some(addr) {
            book.open.insert(addr.to_owned(), node.clone());
        }
        Ok(node)
    }
}

impl Book {
    fn preferred(&self) -> (String, Option<Node>) {
        let addr = self.leader.as_ref().unwrap_or(&self.seeds[self.cursor]);
        (addr.clone(), self.open.get(addr).cloned())
    }

    fn leave(&mut self, addr: &str) {
        if self.leader.as_deref() == Some(addr) {
            self.forget_leader();
        }
        // A leader among the seeds is skipped there too.
        if self.seeds[self.cursor] == addr {
            self.cursor = (self.cursor + 1) % self.seeds.len();
        }
    }

    /// No connection could be made.
    fn unreachable(&mut self, addr: &str, now: Instant) {
        if self.leader.as_deref() == Some(addr) {
            let given = self.seeds.iter().any(|seed| seed == addr);
            let ms = if given { limits::CLIENT_AVOID_SEED_MS } else { limits::CLIENT_AVOID_LEADER_MS };
            self.avoided = Some((addr.to_owned(), now + Duration::from_millis(ms)));
        }
        self.leave(addr);
    }

    fn led_by(&mut self, addr: &str, now: Instant) {
        if self.avoided.as_ref().is_some_and(|(avoided, until)| avoided == addr && now < *until) {
            return;
        }
        if self.leader.as_deref() != Some(addr) {
            self.forget_leader();
            self.leader = Some(addr.to_owned());
        }
    }

    fn forget_leader(&mut self) {
        if let Some(leader) = self.leader.take()
            && !self.seeds.contains(&leader)
        {
            self.open.remove(&leader);
        }
    }
}

/// Checks the form `host:port`.
pub(super) fn endpoint(addr: &str) -> Result<Endpoint, Error> {
    let bad = |why: &str| Error::refused(tonic::Code::InvalidArgument, format!("`{addr}` is no address: {why}"));
    let uri: Uri = format!("http://{addr}").parse().map_err(|_| bad("write host:port"))?;
    if uri.port_u16().is_none() || uri.path() != "/" {
        return Err(bad("write host:port"));
    }
    Ok(Endpoint::from(uri)
        .initial_stream_window_size(limits::CLIENT_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CLIENT_CONNECTION_WINDOW_BYTES)
        .max_frame_size(1 << 20)
        .http2_keep_alive_interval(Duration::from_millis(limits::CLIENT_PING_EVERY_MS))
        .keep_alive_timeout(Duration::from_millis(limits::CLIENT_SILENCE_MS)))
}

async fn dial(env: &Env, addr: &str) -> Result<Channel, Error> {
    let endpoint = endpoint(addr)?;
    let net = env.net.clone();
    let target: Arc<str> = addr.into();
    let connector = tower::service_fn(move |_: Uri| {
        let (net, target) = (net.clone(), target.clone());
        async move { net.connect(&target).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_else(|| error.to_string());
        Error::unreachable(format_args!("cannot connect to {addr}: {cause}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(seeds: &[&str]) -> Book {
        let seeds = seeds.iter().map(ToString::to_string).collect();
        Book { seeds, cursor: 0, leader: None, avoided: None, open: HashMap::new(), made: 0 }
    }

    #[test]
    fn a_failed_node_is_left_for_the_next() {
        let mut book = book(&["a:1", "b:1", "c:1"]);
        assert_eq!(book.preferred().0, "a:1");
        book.leave("a:1");
        assert_eq!(book.preferred().0, "b:1");
        let now = Instant::now();
        book.led_by("z:1", now);
        assert_eq!(book.preferred().0, "z:1");
        book.leave("z:1");
        assert_eq!(book.preferred().0, "b:1");
        book.led_by("b:1", now);
        book.leave("b:1");
        assert_eq!(book.preferred().0, "c:1", "a dead leader is not asked again as a seed");
        book.leave("a:1");
        assert_eq!(book.preferred().0, "c:1", "complaints about others change nothing");
    }

    #[test]
    fn a_leader_that_cannot_be_reached_is_not_followed_again_at_once() {
        let mut book = book(&["a:1", "b:1"]);
        let now = Instant::now();
        book.led_by("z:1", now);
        book.unreachable("z:1", now);
        book.led_by("z:1", now);
        assert_eq!(book.preferred().0, "a:1", "a seed forwards");
        book.led_by("y:1", now);
        assert_eq!(book.preferred().0, "y:1", "another leader is another matter");
        book.led_by("z:1", now + Duration::from_millis(limits::CLIENT_AVOID_LEADER_MS));
        assert_eq!(book.preferred().0, "z:1");
    }

    #[tokio::test]
    async fn refused_by_all_is_nobody_and_silence_may_be_somebody() {
        let env = Env::real();
        let listener = env.net.bind("127.0.0.1:0").await.expect("a free port");
        let there = listener.local_addr().expect("bound").to_string();
        let gone = env.net.bind("127.0.0.1:0").await.expect("a free port");
        let nobody = gone.local_addr().expect("bound").to_string();
        drop(gone);
        let within = Duration::from_millis(limits::CLIENT_REFUSED_MS);
        let nodes = |addrs: &[&String]| Nodes::new(env.clone(), addrs.iter().map(ToString::to_string).collect(), true);
        let began = Instant::now();
        let error = nodes(&[&nobody]).check_reachable(within).await.expect_err("nobody is there");
        assert_eq!(error.reason(), crate::client::error::reason::UNREACHABLE);
        assert!(error.message().contains(&nobody) && !error.is_unknown(), "{error}");
        assert!(began.elapsed() < within * 2, "{:?}", began.elapsed());
        nodes(&[&nobody, &there]).check_reachable(within).await.expect("one of them is");
    }

    #[test]
    fn addresses_are_host_and_port() {
        assert!(endpoint("127.0.0.1:7411").is_ok());
        assert!(endpoint("[::1]:7411").is_ok());
        assert!(endpoint("node-1.example:7411").is_ok());
        for bad in ["", "localhost", "http://localhost:1", "a:b", "a:1/x"] {
            assert!(endpoint(bad).is_err(), "{bad:?}");
        }
    }
}
