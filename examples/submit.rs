//! Submits packages, one and many.
//!
//! cargo run --example submit -- 127.0.0.1:7411

use wharf::client::{Client, NewPackage, QueueSettings};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addrs = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7411".into());
    let client = Client::new(&addrs)?;

    // The same call again answers as the first time.
    client.create_queue("mails", QueueSettings::default()).await?;

    // Ok means: a quorum of the nodes has it on disk.
    let taken = client.submit(NewPackage::new("mails", "hello").with_priority(9)).await?;
    println!("{} is safe", taken.id);

    // An id of your own makes repeats harmless, even from another process.
    for _ in 0..2 {
        let again = client.submit(NewPackage::new("mails", "invoice 17").with_id("invoice-17")).await?;
        println!("{} was there before: {}", again.id, again.duplicate);
    }

    // Many at once: a pipeline that reconnects by itself.
    let submitter = client.submitter().build();
    let mut tickets = Vec::new();
    for number in 0..1000 {
        tickets.push(submitter.submit(NewPackage::new("mails", format!("mail {number}"))).await?);
    }
    for ticket in tickets {
        ticket.await?;
    }
    println!("1000 more are safe");
    Ok(())
}
