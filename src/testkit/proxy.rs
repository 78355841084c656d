//! A TCP proxy whose links can be cut in either direction, delayed, reset and healed at run time.
//!
//! A cut behaves like lost IP packets, seen from above TCP: bytes on the way arrive once the link is
//! healed, or never if somebody gave up before. A connection takes both directions to be made, so
//! while either is cut a new one is accepted (the kernel's backlog does that anyway) and stays
//! silent: the server does not see it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Bytes read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks on the way in one direction of one connection; past that the sender feels backpressure.
const CHUNKS_ON_THE_WAY: usize = 64;

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
    Both,
}

/// What the links do now.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    to_server: Way,
    to_client: Way,
    /// Bumped by each reset; connections older than it end.
    resets: u64,
    /// New connections are closed at once.
    refuse: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Way {
    cut: bool,
    delay: Duration,
}

impl Faults {
    fn is_whole(&self) -> bool {
        !self.to_server.cut && !self.to_client.cut
    }

    fn change(&mut self, direction: Direction, change: impl Fn(&mut Way)) {
        if direction != Direction::ToClient {
            change(&mut self.to_server);
        }
        if direction != Direction::ToServer {
            change(&mut self.to_client);
        }
    }
}

/// What passed, and what faults met: a cut that met no byte proved nothing.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections: AtomicU64,
    /// Connections that a reset ended.
    pub resets: AtomicU64,
    pub to_server_bytes: AtomicU64,
    pub to_client_bytes: AtomicU64,
    /// Chunks that a cut held back.
    pub held: AtomicU64,
}

/// A proxy in front of one address. Ends when dropped, and its connections with it.
pub struct Proxy {
    addr: SocketAddr,
    target: Arc<Mutex<String>>,
    faults: watch::Sender<Faults>,
    counters: Arc<Counters>,
    task: AbortHandle,
}

impl Proxy {
    /// Listens on a free port of loopback, for `target`.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        #[allow(clippy::disallowed_methods, reason = "a proxy needs raw sockets: it resets and half-closes them")]
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let target = Arc::new(Mutex::new(target.into()));
        let faults = watch::Sender::new(Faults::default());
        let counters = Arc::new(Counters::default());
        let link = Link { target: target.clone(), faults: faults.subscribe(), counters: counters.clone() };
        let task = tokio::spawn(accept(listener, link)).abort_handle();
        Ok(Self { addr, target, faults, counters, task })
    }

    /// Where clients connect.
    pub fn addr(&self) -> String {
        self.addr.to_string()
    }

    /// New connections go there from now on.
    pub fn set_target(&self, target: impl Into<String>) {
        *self.target.lock() = target.into();
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Nothing passes in this direction, of connections old and new, until healed.
    pub fn cut(&self, direction: Direction) {
        self.faults.send_modify(|faults| faults.change(direction, |way| way.cut = true));
    }

    /// Bytes arrive so much later, in order.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.faults.send_modify(|faults| faults.change(direction, |way| way.delay = by));
    }

    /// Ends every connection with a TCP reset, on both sides.
    pub fn reset(&self) {
        self.faults.send_modify(|faults| faults.resets += 1);
    }

    /// Closes new connections at once, as a port without a listener would.
    pub fn refuse(&self, refuse: bool) {
        self.faults.send_modify(|faults| faults.refuse = refuse);
    }

    /// Ends cuts, delays and refusals. What was held back flows on.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| *faults = Faults { resets: faults.resets, ..Faults::default() });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Link {
    target: Arc<Mutex<String>>,
    faults: watch::Receiver<Faults>,
    counters: Arc<Counters>,
}

async fn accept(listener: TcpListener, link: Link) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { return };
                if link.faults.borrow().refuse {
                    // Without the reset a client would see a connection that ended in good order.
                    let _ = client.set_zero_linger();
                    continue;
                }
                connections.spawn(serve(client, link.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut client: TcpStream, link: Link) {
    let mut faults = link.faults.clone();
    let born = faults.borrow().resets;
    link.counters.connections.fetch_add(1, Ordering::Relaxed);
    let connected = tokio::select! {
        connected = connect(&link) => connected,
        () = reset_after(&mut faults, born) => Err(io::ErrorKind::ConnectionReset.into()),
    };
    let Ok(mut server) = connected else { return abort(&[&client], &link.counters) };
    // Sockets that are gone by now fail when they are used.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let in_good_order = tokio::select! {
        ended = carry_both(&mut client, &mut server, &link) => ended.is_ok(),
        () = reset_after(&mut faults, born) => false,
    };
    if !in_good_order {
        abort(&[&client, &server], &link.counters);
    }
}

async fn connect(link: &Link) -> io::Result<TcpStream> {
    if !link.faults.borrow().is_whole() {
        link.counters.held.fetch_add(1, Ordering::Relaxed);
        // An error: the proxy is being dropped.
        let _ = link.faults.clone().wait_for(Faults::is_whole).await;
    }
    let target = link.target.lock().clone();
    #[allow(clippy::disallowed_methods, reason = "see the listener")]
    TcpStream::connect(target).await
}

/// Until both sides closed, or one broke.
async fn carry_both(client: &mut TcpStream, server: &mut TcpStream, link: &Link) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let forth = carry(from_client, to_server, link, Direction::ToServer);
    let back = carry(from_server, to_client, link, Direction::ToClient);
    let ended = tokio::try_join!(forth, back);
    if ended.is_err() {
        // That a side broke is news, and news does not pass a cut either. An error: the proxy is
        // being dropped.
        let _ = link.faults.clone().wait_for(Faults::is_whole).await;
    }
    ended.map(drop)
}

/// One direction: reads on while the way is slow or cut, up to a bound, and writes when it may.
async fn carry(from: ReadHalf<'_>, to: WriteHalf<'_>, link: &Link, direction: Direction) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel(CHUNKS_ON_THE_WAY);
    tokio::try_join!(take(from, sender), give(to, receiver, link, direction)).map(drop)
}

async fn take(mut from: ReadHalf<'_>, chunks: mpsc::Sender<(Instant, Bytes)>) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_BYTES);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        if chunks.send((Instant::now(), buffer.split().freeze())).await.is_err() {
            return Ok(());
        }
    }
}

async fn give(
    mut to: WriteHalf<'_>,
    mut chunks: mpsc::Receiver<(Instant, Bytes)>,
    link: &Link,
    direction: Direction,
) -> io::Result<()> {
    let mut faults = link.faults.clone();
    let (way, bytes): (fn(&Faults) -> Way, _) = match direction {
        Direction::ToServer => (|faults| faults.to_server, &link.counters.to_server_bytes),
        _ => (|faults| faults.to_client, &link.counters.to_client_bytes),
    };
    loop {
        let chunk = chunks.recv().await;
        if let Some((read_at, _)) = &chunk {
            let delay = way(&faults.borrow()).delay;
            sleep_until(*read_at + delay).await;
        }
        if way(&faults.borrow()).cut {
            link.counters.held.fetch_add(1, Ordering::Relaxed);
            // An error: the proxy is being dropped.
            let _ = faults.wait_for(|faults| !way(faults).cut).await;
        }
        let Some((_, chunk)) = chunk else { return to.shutdown().await };
        bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        to.write_all(&chunk).await?;
    }
}

async fn reset_after(faults: &mut watch::Receiver<Faults>, born: u64) {
    if faults.wait_for(|faults| faults.resets > born).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Closes with a reset.
fn abort(sockets: &[&TcpStream], counters: &Counters) {
    counters.resets.fetch_add(1, Ordering::Relaxed);
    for socket in sockets {
        // A socket that is gone already needs none.
        let _ = socket.set_zero_linger();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;
    use tokio::io::BufReader;
    use tokio::io::{AsyncBufReadExt, BufStream};
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);
    const A_WHILE: Duration = Duration::from_millis(100);

    /// A server that answers each line with itself, behind a proxy.
    async fn echo() -> Proxy {
        #[allow(clippy::disallowed_methods, reason = "see the proxy")]
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (from, mut to) = socket.split();
                    let mut from = BufReader::new(from);
                    let mut line = String::new();
                    while from.read_line(&mut line).await.is_ok_and(|count| count > 0) {
                        if to.write_all(line.as_bytes()).await.is_err() {
                            return;
                        }
                        line.clear();
                    }
                });
            }
        });
        Proxy::start(addr.to_string()).await.unwrap()
    }

    async fn connect(proxy: &Proxy) -> BufStream<TcpStream> {
        #[allow(clippy::disallowed_methods, reason = "see the proxy")]
        BufStream::new(TcpStream::connect(proxy.addr()).await.unwrap())
    }

    async fn say(stream: &mut BufStream<TcpStream>, text: &str) -> io::Result<()> {
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await
    }

    async fn hear(stream: &mut BufStream<TcpStream>) -> io::Result<String> {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok(line)
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        timeout(SOON, future).await.expect("it happens soon")
    }

    #[tokio::test]
    async fn what_a_cut_held_back_flows_on_when_healed() {
        for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
            let proxy = echo().await;
            let mut stream = connect(&proxy).await;
            say(&mut stream, "one\n").await.unwrap();
            assert_eq!(soon(hear(&mut stream)).await.unwrap(), "one\n");

            proxy.cut(direction);
            say(&mut stream, "two\n").await.unwrap();
            timeout(A_WHILE, hear(&mut stream)).await.expect_err("nothing passes");
            let passed = proxy.counters().to_server_bytes.load(Ordering::Relaxed);
            assert_eq!(passed, if direction == Direction::ToClient { 8 } else { 4 }, "{direction:?}");
            assert!(proxy.counters().held.load(Ordering::Relaxed) > 0);

            proxy.heal();
            assert_eq!(soon(hear(&mut stream)).await.unwrap(), "two\n");
        }
    }

    #[tokio::test]
    async fn a_connection_made_while_cut_is_not_seen_by_the_server() {
        for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
            let proxy = echo().await;
            proxy.cut(direction);
            let mut stream = connect(&proxy).await;
            say(&mut stream, "one\n").await.unwrap();
            timeout(A_WHILE, hear(&mut stream)).await.expect_err("nothing passes");
            assert_eq!(proxy.counters().to_server_bytes.load(Ordering::Relaxed), 0);
            proxy.heal();
            assert_eq!(soon(hear(&mut stream)).await.unwrap(), "one\n");
        }
    }

    #[tokio::test]
    async fn a_reset_breaks_the_old_and_spares_the_new() {
        let proxy = echo().await;
        let mut old = connect(&proxy).await;
        say(&mut old, "one\n").await.unwrap();
        soon(hear(&mut old)).await.unwrap();
        proxy.reset();
        let error = soon(hear(&mut old)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let mut new = connect(&proxy).await;
        say(&mut new, "two\n").await.unwrap();
        assert_eq!(soon(hear(&mut new)).await.unwrap(), "two\n");
        proxy.refuse(true);
        let mut refused = connect(&proxy).await;
        let _ = say(&mut refused, "three\n").await;
        assert!(!matches!(soon(hear(&mut refused)).await, Ok(line) if !line.is_empty()));
    }

    #[tokio::test]
    async fn a_delay_is_kept_and_order_too() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.delay(Direction::Both, A_WHILE);
        let begin = Instant::now();
        say(&mut stream, "one\ntwo\n").await.unwrap();
        assert_eq!(soon(hear(&mut stream)).await.unwrap(), "one\n");
        assert!(begin.elapsed() >= A_WHILE * 2, "{:?}", begin.elapsed());
        assert_eq!(soon(hear(&mut stream)).await.unwrap(), "two\n");
    }

    #[tokio::test]
    async fn the_end_of_one_side_reaches_the_other() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        say(&mut stream, "one\n").await.unwrap();
        stream.get_mut().shutdown().await.unwrap();
        assert_eq!(soon(hear(&mut stream)).await.unwrap(), "one\n");
        assert_eq!(soon(hear(&mut stream)).await.unwrap(), "", "closed in good order");
        assert_eq!(proxy.counters().resets.load(Ordering::Relaxed), 0);
    }
}
