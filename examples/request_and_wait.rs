//! Request and response over a queue: submits a package and waits for its result.
//!
//! cargo run --example worker &
//! cargo run --example request_and_wait -- 127.0.0.1:7411

use std::time::Duration;

use wharf::client::{Client, NewPackage, State};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let addrs = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7411".into());
    let client = Client::new(&addrs)?;

    // A request that nobody took within a minute is not worth answering.
    let request = NewPackage::new("mails", "are you there?").with_ttl(Duration::from_secs(60));
    let answer = client.call_package(request, Duration::from_secs(60)).await?;

    match answer.state() {
        State::Completed => println!("{}", String::from_utf8_lossy(&answer.result)),
        other => println!("no answer: the package is {}", other.as_str_name()),
    }
    Ok(())
}
