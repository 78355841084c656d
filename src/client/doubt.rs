//! A second opinion on a silent node.
//!
//! A node that owes an answer and says nothing may be slow, frozen, or cut off. It counts as dead
//! only after `CLIENT_SILENCE_MS`; long before, the other nodes are asked who leads. If they name
//! another one, whoever waits goes there. A leader that is merely slow is named by them again, and
//! keeps its callers.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout};

use super::Client;
use super::nodes::Node;
use crate::types::limits;

/// Who owes an answer and is silent for so long is doubted.
pub(super) const DOUBT: Duration = Duration::from_millis(limits::CLIENT_DOUBT_MS);

/// The others are asked this often, and as often it is looked what they said.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(limits::CLIENT_DOUBT_AGAIN_MS);

impl Client {
    /// Ends once another node leads than this one, which owes an answer from now on.
    pub(super) async fn deposed(&self, node: &Node) {
        sleep(DOUBT).await;
        while !self.doubt(node) {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// True: another node leads. Until one does, this asks the others from time to time.
    pub(super) fn doubt(&self, node: &Node) -> bool {
        if self.nodes.better_than(node) {
            return true;
        }
        if self.nodes.may_ask(Instant::now(), LOOK_AGAIN) {
            let (client, doubted) = (self.clone(), node.addr.clone());
            tokio::spawn(async move {
                if let Some(leader) = client.second_opinion(&doubted).await {
                    client.nodes.led_by(&leader);
                }
            });
        }
        false
    }

    /// The leader's address by the latest term that the other nodes know of.
    async fn second_opinion(&self, doubted: &str) -> Option<String> {
        let asked = self.nodes.seeds().into_iter().filter(|addr| addr != doubted);
        let mut asked: FuturesUnordered<_> = asked.map(|addr| self.leader_by(addr)).collect();
        let mut latest = None;
        while let Some(told) = asked.next().await {
            latest = latest.max(told);
        }
        latest.map(|(_, leader)| leader)
    }

    async fn leader_by(&self, addr: String) -> Option<(u64, String)> {
        // The answer is waited for, and so is the connection.
        let status = timeout(DOUBT, self.status_of(&addr, DOUBT)).await.ok()?.ok()?;
        (!status.leader_client_addr.is_empty()).then_some((status.term, status.leader_client_addr))
    }
}
