//! How things stand, from the cluster alone: nothing here can be out of date or lost.

use std::fmt;

use wharf::client::{Client, Error, Package, State};

use super::dispatcher::{Kind, Ticket};
use super::notifier::End;

/// How one order stands.
pub struct Standing(Package);

impl Standing {
    /// What was told of its end is what the cluster knows.
    pub fn agrees_with(&self, end: &End) -> bool {
        End::of(&self.0).as_ref() == Some(end)
    }
}

/// How all orders stand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub waiting: usize,
    pub in_work: usize,
    pub done: usize,
    pub failed: usize,
}

impl Counts {
    /// Not carried out yet.
    pub fn open(&self) -> usize {
        self.waiting + self.in_work
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waiting, in_work, done, failed } = self;
        write!(f, "the cluster has {waiting} waiting, {in_work} in work, {done} done, {failed} failed")
    }
}

/// See the module.
pub struct Status {
    client: Client,
}

impl Status {
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone() }
    }

    /// One order, as it is now.
    pub async fn of(&self, ticket: &Ticket) -> Result<Standing, Error> {
        self.client.get_package(&ticket.queue, &ticket.id).await.map(Standing)
    }

    /// All of them, counted page by page while they move.
    pub async fn counts(&self) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        for queue in Kind::QUEUES {
            let mut orders = self.client.list_packages(queue).page_size(500);
            while let Some(page) = orders.page().await? {
                for order in page {
                    match order.state() {
                        State::Leased => counts.in_work += 1,
                        State::Completed => counts.done += 1,
                        State::Dead | State::Cancelled | State::Expired => counts.failed += 1,
                        _ => counts.waiting += 1,
                    }
                }
            }
        }
        Ok(counts)
    }
}
