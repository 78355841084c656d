//! What a node takes from outside, injected: the wall clock, the network and randomness. The disk
//! is injected beside the store (`storage::disk`). Elapsed time is tokio's, which a simulation pauses.
//!
//! Invariants: no other module binds or dials a socket, reads the wall clock or draws a random
//! number (clippy.toml bans it); so a whole node runs inside a simulation by seed.

mod real;

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::types::Wall;

/// A node's surroundings. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub net: Arc<dyn Net>,
    pub random: Arc<dyn Random>,
}

impl Env {
    /// The machine's own clock, sockets and random source.
    pub fn real() -> Self {
        Self { clock: Arc::new(real::SystemClock), net: Arc::new(real::Tcp), random: Arc::new(real::SystemRandom) }
    }
}

/// The calendar.
pub trait Clock: Send + Sync {
    fn wall(&self) -> Wall;

    /// The same in microseconds, as finely as this clock goes. All processes of a machine share it.
    fn micros(&self) -> u64 {
        self.wall().0.saturating_mul(1_000)
    }
}

/// Randomness for ids, incarnations and jitter.
pub trait Random: Send + Sync {
    fn next(&self) -> u64;
}

/// Sockets. Addresses are `host:port`, resolved anew at each call; TCP_NODELAY is set on every
/// socket either way.
pub trait Net: Send + Sync {
    /// A listener that already listens.
    fn bind<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;
    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxStream>>;
}

/// Accepts connections.
pub trait Listener: Send + Sync {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, std::net::SocketAddr)>>;
    fn local_addr(&self) -> io::Result<std::net::SocketAddr>;
}

/// A connected stream of bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// See [`Stream`].
pub type BoxStream = Pin<Box<dyn Stream>>;
