//! The real surroundings.

use std::io;
use std::net::SocketAddr;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};

use super::{BoxStream, Clock, Listener, Net, Random};
use crate::types::Wall;

pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> Wall {
        Wall(self.micros() / 1_000)
    }

    fn micros(&self) -> u64 {
        #[allow(clippy::disallowed_methods, reason = "the one place that reads the calendar")]
        let now = std::time::SystemTime::now();
        // Before 1970 the clock is wrong anyway; the cluster's quorum overrules it.
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        since.as_micros() as u64
    }
}

pub struct SystemRandom;

impl Random for SystemRandom {
    fn next(&self) -> u64 {
        #[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
        rand::random()
    }
}

pub struct Tcp;

impl Net for Tcp {
    fn bind<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        async move {
            #[allow(clippy::disallowed_methods, reason = "the one place that binds")]
            let listener = TcpListener::bind(addr).await?;
            Ok(Box::new(listener) as Box<dyn Listener>)
        }
        .boxed()
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<BoxStream>> {
        async move {
            #[allow(clippy::disallowed_methods, reason = "the one place that dials")]
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::pin(stream) as BoxStream)
        }
        .boxed()
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        async move {
            let (stream, peer) = TcpListener::accept(self).await?;
            stream.set_nodelay(true)?;
            Ok((Box::pin(stream) as BoxStream, peer))
        }
        .boxed()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}
