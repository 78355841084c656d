//! Hears of the end of each order and says how it was. Waiting costs next to nothing, so there is one
//! wait for each order; a change of the cluster's leader goes unnoticed.

use std::time::Duration;

use wharf::client::{Client, Error, Package, State};

use super::dispatcher::Ticket;

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Done(String),
    /// With the reason.
    Failed(String),
}

impl End {
    /// `None`: it has not ended.
    pub fn of(package: &Package) -> Option<Self> {
        let reason = || package.last_failure.as_ref().map(|failure| failure.message.clone()).unwrap_or_default();
        match package.state() {
            State::Completed => Some(End::Done(String::from_utf8_lossy(&package.result).into_owned())),
            State::Dead | State::Cancelled | State::Expired => Some(End::Failed(reason())),
            _ => None,
        }
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    client: Client,
}

impl Notifier {
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone() }
    }

    /// Waits for the end of an order, and tells it.
    pub async fn end_of(&self, ticket: Ticket, within: Duration) -> Result<(Ticket, End), Error> {
        let package = self.client.wait_package(&ticket.queue, &ticket.id, within).await?;
        let end = End::of(&package).unwrap_or(End::Failed("it has not ended".into()));
        if let End::Failed(why) = &end {
            println!("to the customer of {}: we are sorry: {why}", ticket.id);
        }
        Ok((ticket, end))
    }
}
