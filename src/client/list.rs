//! Lists of packages, page by page.

use std::time::Duration;

use tokio::time::sleep;

use super::call::Repeat;
use super::packages::packages;
use super::{Client, Error, Package, State};
use crate::proto::v1::ListPackagesRequest;
use crate::types::limits;

/// A list of one queue's packages in the order of their submit, without payloads. What was there, and
/// matched, from the first page to the last is seen once; nothing is seen twice.
#[must_use]
pub struct Listing {
    client: Client,
    request: ListPackagesRequest,
    over: bool,
}

impl Client {
    /// A list of the queue's packages; see [`Listing::page`].
    pub fn list_packages(&self, queue: &str) -> Listing {
        let request = ListPackagesRequest { queue: queue.to_owned(), ..Default::default() };
        Listing { client: self.clone(), request, over: false }
    }
}

impl Listing {
    /// Only packages in these states; all if none is named.
    pub fn states(mut self, states: impl IntoIterator<Item = State>) -> Self {
        self.request.states.extend(states.into_iter().map(|state| state as i32));
        self
    }

    /// Only packages of this kind.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.request.kind = kind.into();
        self
    }

    /// Only packages with this label; said again, with both.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.labels.insert(key.into(), value.into());
        self
    }

    /// At most so many in one page, 1 to 1000; 100 by default.
    pub fn page_size(mut self, packages: u32) -> Self {
        self.request.page_size = packages;
        self
    }

    /// Goes on where an earlier list of the same form stood; see [`Self::token`].
    pub fn from_token(mut self, token: impl Into<String>) -> Self {
        self.request.page_token = token.into();
        self
    }

    /// Reads whichever node answers; it may lag.
    pub fn stale_ok(mut self) -> Self {
        self.request.stale_ok = true;
        self
    }

    /// Where the next page begins, for another process or a later time. `None`: there is no more.
    pub fn token(&self) -> Option<&str> {
        (!self.over).then_some(self.request.page_token.as_str())
    }

    /// The next page; `None`: there is no more. Goes on by itself where a long queue holds little that
    /// matches, so a page is empty only at the end.
    pub async fn page(&mut self) -> Result<Option<Vec<Package>>, Error> {
        while !self.over {
            let rpc = |channel, request| async move { packages(channel).list_packages(request).await };
            let page = self.client.call(Repeat::Read, self.request.clone(), rpc).await?;
            // The node has not seen yet what the list goes on with.
            let stands = page.next_page_token == self.request.page_token;
            self.over = page.next_page_token.is_empty();
            self.request.page_token = page.next_page_token;
            if !page.packages.is_empty() {
                return Ok(Some(page.packages));
            }
            if stands && !self.over {
                sleep(Duration::from_millis(limits::CLIENT_LIST_PAUSE_MS)).await;
            }
        }
        Ok(None)
    }
}
