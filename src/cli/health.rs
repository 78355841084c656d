//! `wharf health`: asks one node how it is, for scripts, containers and whoever restarts nodes.

use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::args::{addr, duration};
use super::exit::{Exit, Failure};
use super::output;
use crate::env::Env;
use crate::types::limits::MAX_HEALTH_ANSWER_BYTES;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often `--wait` asks.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Ask one node whether it is ready: recovered, listening, and with a leader that it knows.
///
/// Unlike all other verbs it speaks to the admin port, of the node on this machine if none is named.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wharf health                         the node on this machine
  wharf health --wait 60s              after a restart
  wharf health --live                  only whether its process runs
  wharf health --admin wharf2:7413     another one

Exit codes: 0 ready, 3 not ready, 69 nobody answers.")]
pub struct Health {
    /// Where the node listens for operators.
    #[arg(long, default_value = "127.0.0.1:7413", value_name = "HOST:PORT", value_parser = addr)]
    admin: String,
    /// Whether its process runs is enough.
    #[arg(long)]
    live: bool,
    /// Ask again and again for so long.
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = duration)]
    wait: Duration,
}

impl Health {
    pub async fn run(self) -> anyhow::Result<Exit> {
        let deadline = Instant::now() + self.wait;
        loop {
            match self.ask().await {
                Ok(()) => break,
                Err(error) if Instant::now() + ASK_EVERY >= deadline => return Err(error),
                Err(_) => sleep(ASK_EVERY).await,
            }
        }
        output::line(if self.live { "live" } else { "ready" })?;
        Ok(Exit::Ok)
    }

    async fn ask(&self) -> anyhow::Result<()> {
        let path = if self.live { "/livez" } else { "/readyz" };
        let silent = |why: &dyn std::fmt::Display| {
            Failure::new(Exit::Unreachable, format!("no node answers at {}: {why}", self.admin))
                .next("wharf health --admin HOST:PORT, with the node's listen.admin")
        };
        let answer = match timeout(ANSWER_WITHIN, get(&self.admin, path)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(silent(&error).into()),
            Err(_) => return Err(silent(&format_args!("not within {ANSWER_WITHIN:?}")).into()),
        };
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        match head.split(' ').nth(1).unwrap_or_default() {
            "200" => Ok(()),
            "503" => {
                let why = format!("{} is not ready: {}", self.admin, body.trim_end());
                Err(Failure::new(Exit::NotReady, why).next("wharf health --wait 60s").into())
            }
            _ => Err(silent(&"what answers is no node").into()),
        }
    }
}

/// One request by hand: an HTTP client would be the only use of one.
async fn get(addr: &str, path: &str) -> std::io::Result<String> {
    let mut stream = Env::real().net.connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_HEALTH_ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit;

    /// What the verb makes of an answer.
    async fn of(answer: Vec<u8>, wait: Duration) -> Result<Exit, Exit> {
        let mut listener = Env::real().net.bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer).await;
            }
        });
        let exit = Health { admin, live: false, wait }.run().await.map_err(|error| exit::of(&error));
        serving.abort();
        exit
    }

    #[tokio::test]
    async fn its_exit_code_tells_how_the_node_is() {
        let answer = |text: &str| text.as_bytes().to_vec();
        assert_eq!(of(answer("HTTP/1.1 200 OK\r\n\r\nok\n"), Duration::ZERO).await, Ok(Exit::Ok));
        let waits = Duration::from_millis(500);
        let recovering = answer("HTTP/1.1 503 Service Unavailable\r\n\r\nrecovering\n");
        assert_eq!(of(recovering, waits).await, Err(Exit::NotReady));
        assert_eq!(of(answer("HTTP/1.1 404 Not Found\r\n\r\n"), Duration::ZERO).await, Err(Exit::Unreachable));
        assert_eq!(of(answer("SSH-2.0-x\r\n"), Duration::ZERO).await, Err(Exit::Unreachable));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_cut_off() {
        let mut endless = b"HTTP/1.1 503 Service Unavailable\r\n\r\n".to_vec();
        endless.resize(64 * MAX_HEALTH_ANSWER_BYTES as usize, b'x');
        assert_eq!(of(endless, Duration::ZERO).await, Err(Exit::NotReady));
    }
}
