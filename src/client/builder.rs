//! The client and how to build one.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use super::nodes::{self, Nodes};
use super::worker::{self, Worker};
use super::{Error, SubmitterBuilder, ids};
use crate::env::Env;
use crate::types::limits;

/// Talks to a cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    pub(super) nodes: Arc<Nodes>,
    pub(super) timeout: Duration,
}

impl Client {
    /// A client of the cluster at `addrs`, `host:port[,host:port…]`. Connects when first used.
    pub fn new(addrs: &str) -> Result<Self, Error> {
        Self::builder(addrs).build()
    }

    /// See [`Builder`].
    pub fn builder(addrs: &str) -> Builder {
        let timeout = Duration::from_millis(limits::CLIENT_CALL_DEADLINE_MS);
        Builder { addrs: addrs.to_owned(), env: Env::real(), timeout, follow_leader: true }
    }

    /// The deadline of each call. Calls that wait take their own.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The same client with another deadline for each call.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { nodes: self.nodes.clone(), timeout }
    }

    /// A worker of these queues; see [`Worker`].
    pub fn worker<S: Into<String>>(&self, queues: impl IntoIterator<Item = S>) -> worker::Builder {
        Worker::builder(self.clone(), queues)
    }

    /// A pipeline for many submits; see [`super::Submitter`].
    pub fn submitter(&self) -> SubmitterBuilder {
        SubmitterBuilder::new(self.clone())
    }

    /// A new id, as the client mints them: a UUID of version 7.
    pub fn mint_id(&self) -> String {
        ids::mint(self.nodes.env())
    }

    /// Whether there is anybody to talk to. Err: for all of `within` every address refused the
    /// connection, so nothing listens there. Who does not answer at all may still be reachable.
    pub async fn check_reachable(&self, within: Duration) -> Result<(), Error> {
        self.nodes.check_reachable(within).await
    }

    /// The addresses that the client was built with.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.seeds()
    }
}

/// Builds a [`Client`].
#[must_use]
pub struct Builder {
    addrs: String,
    env: Env,
    timeout: Duration,
    follow_leader: bool,
}

impl Builder {
    /// The surroundings: sockets, calendar, randomness. The machine's own by default.
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// The deadline of each call, tries and pauses included. 30 s by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// False: only the given addresses are used, though nodes name another leader. For clusters
    /// behind a proxy or a port forward.
    pub fn follow_leader(mut self, follow: bool) -> Self {
        self.follow_leader = follow;
        self
    }

    /// Checks the addresses. Nothing is connected yet.
    pub fn build(self) -> Result<Client, Error> {
        let addrs: Vec<String> =
            self.addrs.split(',').map(str::trim).filter(|addr| !addr.is_empty()).map(str::to_owned).collect();
        if addrs.is_empty() || addrs.len() > limits::CLIENT_MAX_ADDRESSES {
            let message = format!("give 1 to {} addresses, host:port[,host:port]", limits::CLIENT_MAX_ADDRESSES);
            return Err(Error::refused(Code::InvalidArgument, message));
        }
        for addr in &addrs {
            nodes::endpoint(addr)?;
        }
        Ok(Client { nodes: Arc::new(Nodes::new(self.env, addrs, self.follow_leader)), timeout: self.timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_takes_so_many_addresses_and_has_a_deadline() {
        let addrs = |count: usize| (1..=count).map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
        let client = Client::new(&addrs(limits::CLIENT_MAX_ADDRESSES)).expect("as many as may be");
        assert_eq!(client.timeout, Duration::from_millis(limits::CLIENT_CALL_DEADLINE_MS));
        for count in [0, limits::CLIENT_MAX_ADDRESSES + 1] {
            let refused = Client::new(&addrs(count)).err().expect("refused");
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().contains(&limits::CLIENT_MAX_ADDRESSES.to_string()), "{refused}");
        }
    }
}
