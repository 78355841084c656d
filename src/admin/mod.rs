//! HTTP for operators: health, metrics and statistics of one node.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 while the process runs. Never depends on a quorum: a restart heals no partition |
//! | `/readyz` | 200 once the node recovered, listens and knows a leader; else 503 and why (a node that joins: how) |
//! | `/metrics` | OpenMetrics text where it is asked for, else the older text of Prometheus |
//! | `/stats.json` | the same numbers as one JSON object |
//!
//! Invariants: nothing here changes state or waits for the cluster; all answers come from this
//! node's own view. Labels are bounded: queues past a limit are counted, not named, and no label
//! carries an id.

mod exposition;
mod metrics;
mod sample;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::exposition::Form;
use self::metrics::Registry;
use self::sample::Sample;
use crate::env::{BoxStream, Listener};
use crate::{history, raft};

/// How long accepting pauses after it failed, as it does without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is told of.
#[derive(Clone)]
pub struct Sources {
    pub raft: raft::Handle,
    pub history: history::Handle,
}

/// Serves until `shutdown`. `ready` carries the handle once the node has recovered and its other
/// listeners listen: before that the node is alive and not ready.
pub async fn serve(
    listener: Box<dyn Listener>,
    ready: watch::Receiver<Option<Sources>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let node = Arc::new(Node { ready, registry: Registry::new(), started: Instant::now() });
    axum::serve(Incoming(listener), router(node)).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

struct Node {
    ready: watch::Receiver<Option<Sources>>,
    registry: Registry,
    started: Instant,
}

impl Node {
    fn sources(&self) -> Option<Sources> {
        self.ready.borrow().clone()
    }

    fn sample(&self) -> Option<Sample> {
        Some(Sample::take(&self.sources()?, self.started.elapsed()))
    }
}

fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/stats.json", get(stats))
        .with_state(node)
}

async fn readyz(State(node): State<Arc<Node>>) -> Response {
    let Some(Sources { raft, .. }) = node.sources() else {
        return not_ready(
            "recovering
",
        );
    };
    if raft.standing().borrow().leader.is_none() {
        return not_ready(
            raft.waiting().unwrap_or_else(|| "no leader is known".to_owned())
                + "
",
        );
    }
    "ok\n".into_response()
}

async fn metrics(State(node): State<Arc<Node>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let form = Form::asked(accept.unwrap_or_default());
    let text = form.of(node.registry.encode(node.sample()));
    ([(header::CONTENT_TYPE, form.content_type())], text).into_response()
}

async fn stats(State(node): State<Arc<Node>>) -> Response {
    match node.sample() {
        Some(sample) => axum::Json(sample.to_json()).into_response(),
        None => not_ready("recovering\n"),
    }
}

fn not_ready(why: impl Into<String>) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why.into()).into_response()
}

/// The injected listener, as axum wants it.
struct Incoming(Box<dyn Listener>);

impl axum::serve::Listener for Incoming {
    type Io = BoxStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoxStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(%error, "the admin listener could not accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::env::Env;

    #[tokio::test]
    async fn a_recovering_node_is_alive_and_not_ready() {
        let env = Env::real();
        let listener = env.net.bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (_sender, ready) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, ready, shutdown.clone()));

        for (path, status, body) in [
            ("/livez", "200 OK", "ok"),
            ("/readyz", "503 Service Unavailable", "recovering"),
            ("/stats.json", "503 Service Unavailable", "recovering"),
            ("/metrics", "200 OK", "wharf_build_info"),
            ("/nothing", "404 Not Found", ""),
        ] {
            let mut stream = env.net.connect(&addr).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(body), "{path}: {answer}");
        }
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}
