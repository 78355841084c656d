//! Takes orders: checks them, gives each its place, and answers once it is safe.

use wharf::client::{Client, Error, NewPackage, QueueSettings};

/// What is ordered decides which queue it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Invoice,
    Parcel,
}

impl Kind {
    pub const QUEUES: [&'static str; 2] = ["invoices", "parcels"];

    fn queue(self) -> &'static str {
        match self {
            Kind::Invoice => Self::QUEUES[0],
            Kind::Parcel => Self::QUEUES[1],
        }
    }
}

/// What a customer wants.
#[derive(Clone, Debug)]
pub struct Order {
    /// The customer's own number: the same again is the same order.
    pub number: String,
    pub kind: Kind,
    pub urgent: bool,
    pub text: String,
}

/// Where an order is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    pub queue: String,
    pub id: String,
}

/// See the module.
pub struct Dispatcher {
    client: Client,
}

impl Dispatcher {
    /// Makes the queues, or finds them made, and open for the day.
    pub async fn open(client: &Client) -> Result<Self, Error> {
        for queue in Kind::QUEUES {
            client.create_queue(queue, QueueSettings::default()).await?;
            client.unseal_queue(queue, None).await?;
        }
        Ok(Self { client: client.clone() })
    }

    /// Ok: the order is on the disks of a majority, and will be carried out once.
    pub async fn take(&self, order: &Order) -> Result<Ticket, Error> {
        let package = NewPackage::new(order.kind.queue(), order.text.clone())
            .with_id(&order.number)
            .with_priority(if order.urgent { 9 } else { 4 })
            .with_content_type("text/plain");
        let taken = self.client.submit(package).await?;
        Ok(Ticket { queue: taken.queue, id: taken.id })
    }

    /// No more orders today: once all are carried out, the workers are told.
    pub async fn close(&self) -> Result<(), Error> {
        for queue in Kind::QUEUES {
            self.client.seal_queue(queue, None).await?;
        }
        Ok(())
    }
}
