//! Listeners: connections from `env::Net` as tonic wants them, counted and limited.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::env::{BoxStream, Listener};

/// After a failed accept (no file handles left, say) the listener rests for so long.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// The connections of a listener, at most `most` at once; more wait in the kernel's backlog.
pub fn incoming(
    listener: Box<dyn Listener>,
    name: &'static str,
    most: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let places = Arc::new(Semaphore::new(most));
    futures::stream::unfold((listener, places), move |(mut listener, places)| async move {
        let place = places.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let local = listener.local_addr().ok();
                    return Some((Ok(Connection { stream, local, peer, _place: place }), (listener, places)));
                }
                Err(error) => {
                    tracing::warn!(listener = name, %error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    })
}

/// An accepted connection; gives its place back when dropped.
pub struct Connection {
    stream: BoxStream,
    local: Option<SocketAddr>,
    peer: SocketAddr,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local, remote_addr: Some(self.peer) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::env::Env;

    #[tokio::test]
    async fn a_connection_past_the_most_waits_until_another_ends() {
        let env = Env::real();
        let listener = env.net.bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound").to_string();
        let mut connections = std::pin::pin!(incoming(listener, "test", 2));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(env.net.connect(&addr).await.expect("the backlog has room"));
        }
        let one = connections.next().await.expect("accepted").expect("whole");
        let _two = connections.next().await.expect("accepted").expect("whole");
        assert!(connections.next().now_or_never().is_none(), "no place is left");
        drop(one);
        connections.next().await.expect("accepted").expect("whole");
    }
}
