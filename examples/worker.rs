//! Works the packages of `mails`, four at a time, until SIGTERM or Ctrl-C, or until the queue has
//! ended.
//!
//! cargo run --example worker -- 127.0.0.1:7411

use std::time::Duration;

use wharf::client::{Client, Delivery, Failure};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addrs = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7411".into());
    let worker = Client::new(&addrs)?
        .worker(["mails"])
        .name("example")
        .concurrency(4)
        // Gives back what was not started, ends what runs, and goes.
        .drain_on_signals()
        .build();
    let summary = worker.run(send).await?;
    println!("{summary:?}");
    Ok(())
}

/// Ok completes the package with a result; an error is tried again by the queue's backoff.
/// While this runs, the worker extends the lease.
async fn send(mail: Delivery) -> Result<String, Failure> {
    let text = std::str::from_utf8(&mail.payload)?;
    if text.is_empty() {
        return Err(Failure::permanent("an empty mail is never sent"));
    }
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(10)) => {}
        // Cancelled by an operator, or taken over by another worker: what we do now is for nothing.
        () = mail.cancelled().cancelled() => return Err(Failure::release()),
    }
    // Systems that get the fence can refuse whoever comes with an older one.
    println!("sent {} (attempt {}, fence {}): {text}", mail.id, mail.attempt, mail.fence);
    Ok(format!("sent {} bytes", text.len()))
}
