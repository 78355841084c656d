//! A program's surroundings inside turmoil.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::env::{BoxStream, Clock, Env, Listener, Net, Random};
use crate::types::Wall;

/// What is wrong with a wall clock, in milliseconds. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Skew(Arc<AtomicI64>);

impl Skew {
    /// Steps the clock.
    pub fn step(&self, by_ms: i64) {
        self.0.fetch_add(by_ms, Ordering::Relaxed);
    }
}

/// A program's surroundings with a right clock; `seed` decides what it draws.
pub fn env(seed: u64) -> Env {
    skewed(seed, Skew::default())
}

/// The same with a wrong clock.
pub fn skewed(seed: u64, skew: Skew) -> Env {
    Env { clock: Arc::new(SimClock(skew)), net: Arc::new(SimNet), random: Arc::new(SimRandom(AtomicU64::new(seed))) }
}

struct SimClock(Skew);

impl Clock for SimClock {
    fn wall(&self) -> Wall {
        Wall(self.micros() / 1_000)
    }

    fn micros(&self) -> u64 {
        // None outside of a step: while a host is torn down.
        let right = turmoil::since_epoch().unwrap_or_default().as_micros() as u64;
        right.saturating_add_signed(self.0.0.load(Ordering::Relaxed) * 1_000)
    }
}

/// SplitMix64.
struct SimRandom(AtomicU64);

impl Random for SimRandom {
    fn next(&self) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mix(state)
    }
}

/// Spreads a number over all bits.
pub fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct SimNet;

impl Net for SimNet {
    fn bind<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        async move {
            let listener = turmoil::net::TcpListener::bind(addr).await?;
            Ok(Box::new(SimListener(listener)) as Box<dyn Listener>)
        }
        .boxed()
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxStream>> {
        async move {
            let stream = turmoil::net::TcpStream::connect(addr).await?;
            Ok(Box::pin(stream) as BoxStream)
        }
        .boxed()
    }
}

struct SimListener(turmoil::net::TcpListener);

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        async move {
            let (stream, peer) = self.0.accept().await?;
            Ok((Box::pin(stream) as BoxStream, peer))
        }
        .boxed()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
