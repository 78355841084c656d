//! The composition root: builds a node from its configuration and runs it until it is told to stop.
//!
//! Order of start: bind, so that a taken port is told before the log is touched; recover; take part;
//! serve. Order of stop: hand leadership over, say "not ready", let calls finish for a while, stop
//! Raft, let go of the disk.
//!
//! Invariants: a node is ready (for whoever started it) once it recovered and listens, not when a
//! leader exists, or a rolling start would wait for itself. Everything from outside comes through
//! [`Surroundings`], so that a whole node runs inside a simulation. No panic is survived but
//! history's: [`run`] ends the process, and the log tells the next one all it needs.

pub mod listen;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::api::{self, Api, Mode};
use crate::config::{self, Config, Face};
use crate::env::{Env, Listener};
use crate::raft::bootstrap::BootstrapNode;
use crate::raft::snapshots::Blocking;
use crate::raft::types::Member;
use crate::raft::{self, Fatal, Handle, SkipEntry, Tuning};
use crate::storage::disk::{Disk, RealDisk};
use crate::storage::home::Home;
use crate::storage::wal::{self, Flusher};
use crate::telemetry::{self, field};
use crate::types::limits;
use crate::{admin, dispatch, history, machine};

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {addr} ({key}): {error}")]
    Bind { key: &'static str, addr: String, error: std::io::Error },
    #[error(transparent)]
    Storage(#[from] crate::storage::Error),
    #[error(transparent)]
    Fatal(#[from] Fatal),
    #[error("the {0} listener ended")]
    Listener(&'static str),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// What a node takes from outside.
pub struct Surroundings {
    pub env: Env,
    pub disk: Arc<dyn Disk>,
    pub flusher: Flusher,
    pub blocking: Blocking,
}

impl Surroundings {
    pub fn real() -> Self {
        Self { env: Env::real(), disk: Arc::new(RealDisk), flusher: Flusher::Thread, blocking: Blocking::Threads }
    }
}

/// Runs a node until SIGTERM or SIGINT has drained it. A second signal ends it at once. At SIGHUP the
/// configuration is read `again`, for what may change while it runs: the log's level.
pub async fn run(
    config: Config,
    level: telemetry::Level,
    again: impl Fn() -> Result<Config, config::Error>,
) -> Result<(), Error> {
    die_of_panics();
    let mut signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut node = Node::start(&config, Surroundings::real()).await?;
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let mut in_force = config.log.level.clone();
    let stopped = loop {
        tokio::select! {
            error = node.failed() => break Err(error),
            () = signals.next() => break Ok(()),
            Some(()) = hangup.recv() => reload(&config, &mut in_force, &level, again()),
        }
    };
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    match stopped {
        Ok(()) => tokio::select! {
            () = node.stop() => {}
            () = signals.next() => tracing::warn!("stopped at once by a second signal"),
        },
        Err(error) => {
            tracing::error!(%error, "the node cannot go on");
            node.halt().await;
            return Err(error);
        }
    }
    tracing::info!({ field::NODE } = config.node, "stopped");
    Ok(())
}

/// What SIGHUP does with the configuration that was read again.
fn reload(started: &Config, in_force: &mut String, level: &telemetry::Level, again: Result<Config, config::Error>) {
    let read = match again {
        Ok(read) => read,
        Err(error) => return tracing::error!(%error, "SIGHUP: nothing was changed"),
    };
    let others = Config { log: config::Log { level: started.log.level.clone(), ..read.log.clone() }, ..read.clone() };
    if others != *started {
        tracing::warn!("SIGHUP: more than log.level differs from the start; the rest takes a restart");
    }
    let tell = || tracing::info!(from = *in_force, to = read.log.level, "SIGHUP: log.level read anew");
    // Said while it can be heard: before a quieter level, after a louder one.
    let heard = tracing::enabled!(tracing::Level::INFO);
    if heard {
        tell();
    }
    match level.set(&read.log.level) {
        Ok(()) if !heard => tell(),
        Ok(()) => {}
        Err(error) => return tracing::error!(%error, "SIGHUP: nothing was changed"),
    }
    *in_force = read.log.level;
}

/// A running node. Dropping it leaves its tasks to the runtime; see [`Node::stop`].
pub struct Node {
    handle: Handle,
    fatal: mpsc::Receiver<Fatal>,
    /// Listeners that serve; one ends only when it is told to.
    listeners: Vec<(&'static str, JoinHandle<()>)>,
    pump: JoinHandle<()>,
    services: JoinHandle<()>,
    /// No new work: streams are sent away, health says so.
    leaving: CancellationToken,
    /// Connections are to finish.
    closing: CancellationToken,
    /// The latest of all: health and metrics over HTTP.
    ended: CancellationToken,
}

impl Node {
    /// Binds, recovers, takes part and serves.
    pub async fn start(config: &Config, around: Surroundings) -> Result<Self, Error> {
        let Surroundings { env, disk, flusher, blocking } = around;
        let client = bind(&env, "listen.client", &config.listen.client).await?;
        let peer = bind(&env, "listen.peer", &config.listen.peer).await?;
        let admin = bind(&env, "listen.admin", &config.listen.admin).await?;
        let member = Member {
            peer_addr: config.advertised_at(Face::Peer, peer.local_addr()?),
            client_addr: config.advertised_at(Face::Client, client.local_addr()?),
            admin_addr: config.advertised_at(Face::Admin, admin.local_addr()?),
            incarnation: 0,
        };
        tracing::info!(
            { field::NODE } = config.node,
            client = member.client_addr,
            peer = member.peer_addr,
            admin = member.admin_addr,
            version = env!("CARGO_PKG_VERSION"),
            "starting"
        );

        let (leaving, closing, ended) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (ready, is_ready) = watch::channel(None);
        let mut listeners = vec![("admin", tokio::spawn(serve_admin(admin, is_ready, ended.clone())))];

        let home = open_home(config, &env, disk, flusher, blocking).await?;
        let options = raft::Options {
            node: config.node,
            bootstrap: bootstrap_list(config, &member),
            member,
            machine_version: machine::version::CURRENT,
            env: env.clone(),
            home,
            blocking,
            skip_entry: config.recovery.skip_entry.map(|skip| SkipEntry { index: skip.index, crc: skip.crc }),
            tuning: tuning(config),
        };
        let started = raft::start(options).await?;

        let (to_dispatch, pump) = dispatch::new(started.handle.clone(), &env);
        let pump = tokio::spawn(pump.run(leaving.clone()));
        let history = start_history(config, &started.handle, &env, blocking, &leaving);
        let api = Api::new(started.handle.clone(), to_dispatch, history.clone(), env);
        let most = config.limits.connections;
        let peer_routes = api.routes(Mode::Peer).add_service(started.peer);
        let mut peer_server = raft::peer_server::configure(Server::builder());
        listeners.push(("peer", serve("peer", peer, most, peer_server.add_routes(peer_routes), &closing)));
        let client_server = api::server().add_routes(api.routes(Mode::Client));
        listeners.push(("client", serve("client", client, most, client_server, &closing)));
        let services = tokio::spawn({
            let leaving = leaving.clone();
            async move { api.run(leaving).await }
        });
        // Nobody listens only when the admin listener failed, which `failed` tells.
        let _ = ready.send(Some(admin::Sources { raft: started.handle.clone(), history }));
        tracing::info!({ field::NODE } = config.node, "recovered and listening");
        Ok(Self { handle: started.handle, fatal: started.fatal, listeners, pump, services, leaving, closing, ended })
    }

    /// The door to the replicated state.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until the node cannot go on, and tells why.
    pub async fn failed(&mut self) -> Error {
        let ended = futures::future::select_all(self.listeners.iter_mut().map(|(name, task)| {
            Box::pin(async move {
                // Why a task ended was told where it ended.
                let _ = task.await;
                *name
            })
        }));
        tokio::select! {
            fatal = self.fatal.recv() => match fatal {
                Some(fatal) => fatal.into(),
                None => Fatal::Raft("its tasks ended".to_owned()).into(),
            },
            (name, _, _) = ended => Error::Listener(name),
        }
    }

    /// Leaves as a good neighbour: hands leadership over, lets calls finish, flushes.
    pub async fn stop(self) {
        // First, so that streams are sent to who leads next.
        self.handle.hand_over().await;
        self.leaving.cancel();
        self.closing.cancel();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(limits::SHUTDOWN_CALLS_MS);
        // Calls finish while Raft still runs. What peers stream to it ends only with it.
        let (of_clients, others): (Vec<_>, Vec<_>) =
            self.listeners.into_iter().partition(|(name, _)| *name == "client");
        end(of_clients, deadline).await;
        self.services.abort();
        self.pump.abort();
        self.handle.halt().await;
        self.ended.cancel();
        end(others, deadline).await;
    }

    /// Stops as it is.
    pub async fn halt(self) {
        for (_, task) in &self.listeners {
            task.abort();
        }
        self.services.abort();
        self.pump.abort();
        self.handle.halt().await;
    }
}

/// Waits for the listeners' last connections.
async fn end(listeners: Vec<(&'static str, JoinHandle<()>)>, deadline: tokio::time::Instant) {
    for (name, task) in listeners {
        let abort = task.abort_handle();
        if tokio::time::timeout_at(deadline, task).await.is_err() {
            tracing::warn!(listener = name, "connections were cut: they did not end in time");
            abort.abort();
        }
    }
}

async fn bind(env: &Env, key: &'static str, addr: &str) -> Result<Box<dyn Listener>, Error> {
    env.net.bind(addr).await.map_err(|error| Error::Bind { key, addr: addr.to_owned(), error })
}

async fn open_home(
    config: &Config,
    env: &Env,
    disk: Arc<dyn Disk>,
    flusher: Flusher,
    blocking: Blocking,
) -> Result<Home, Error> {
    let options = wal::Options {
        flusher,
        segment_bytes: config.limits.log_segment.as_u64(),
        cache_bytes: config.limits.log_cache.as_u64() as usize,
        ..wal::Options::default()
    };
    let (dir, node, incarnation) = (config.data_dir.clone(), config.node, env.random.next());
    let opened = blocking.run(move || Home::open(disk, &dir, node, incarnation, options)).await?;
    Ok(opened?)
}

fn bootstrap_list(config: &Config, member: &Member) -> Vec<BootstrapNode> {
    let of = |(node, peer_addr): (u64, String)| {
        let own = node == config.node;
        // The addresses of the others are learned when they answer.
        let told = |addr: &String| if own { addr.clone() } else { String::new() };
        BootstrapNode {
            node,
            peer_addr: if own { member.peer_addr.clone() } else { peer_addr },
            client_addr: told(&member.client_addr),
            admin_addr: told(&member.admin_addr),
        }
    };
    config.peers().into_iter().map(of).collect()
}

fn tuning(config: &Config) -> Tuning {
    let millis = |duration: Duration| duration.as_millis() as u64;
    Tuning {
        heartbeat_ms: millis(config.raft.heartbeat),
        election_min_ms: millis(config.raft.election_min),
        election_max_ms: millis(config.raft.election_max),
        snapshot_every_log_bytes: config.raft.snapshot_every.as_u64(),
    }
}

/// A simulation has one thread and no disk of its own kind: history is in memory there.
fn start_history(
    config: &Config,
    raft: &Handle,
    env: &Env,
    blocking: Blocking,
    leaving: &CancellationToken,
) -> history::Handle {
    if !config.history.enabled {
        return history::Handle::disabled(config.node);
    }
    let home = match blocking {
        Blocking::Threads => history::Home::Disk(config.data_dir.join("history")),
        Blocking::Inline => history::Home::Memory,
    };
    let keep =
        history::Keep { age_ms: config.history.keep.as_millis() as u64, bytes: config.history.max_size.as_u64() };
    history::Handle::start(raft, home, keep, env, leaving.clone())
}

fn serve(
    name: &'static str,
    listener: Box<dyn Listener>,
    most: usize,
    server: Router,
    closing: &CancellationToken,
) -> JoinHandle<()> {
    let connections = listen::incoming(listener, name, most);
    let closed = closing.clone().cancelled_owned();
    tokio::spawn(async move {
        if let Err(error) = server.serve_with_incoming_shutdown(connections, closed).await {
            tracing::error!(listener = name, %error, "the listener failed");
        }
    })
}

async fn serve_admin(
    listener: Box<dyn Listener>,
    ready: watch::Receiver<Option<admin::Sources>>,
    ended: CancellationToken,
) {
    if let Err(error) = admin::serve(listener, ready, ended).await {
        tracing::error!(listener = "admin", %error, "the listener failed");
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => tracing::info!("SIGTERM: draining"),
            _ = self.int.recv() => tracing::info!("SIGINT: draining"),
        }
    }
}

/// A task that panicked would leave a node that looks alive. The process ends instead, before a
/// half-made step can be acted on; the cluster and the log cover it. Only history's own threads may
/// panic: what they do is derived, caught and begun anew.
fn die_of_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        if history::is_its_panic() {
            return;
        }
        if let Some(fatal) = raft::died_applying() {
            // Straight to stderr, like the panic itself: nothing buffers on the way to the abort.
            let _ = writeln!(std::io::stderr(), "{fatal}");
        }
        std::process::abort();
    }));
}
