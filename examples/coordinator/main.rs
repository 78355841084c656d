//! A coordinator: orders come in, workers carry them out, somebody is told how each ended, and at any
//! moment one can ask how things stand. Wharf does the keeping; this program has no state of its own
//! that matters, so it may die and begin again.
//!
//! - `dispatcher` takes orders, checks them, and hands them to the queue of their kind.
//! - `state` answers how things stand, from the cluster alone.
//! - `notifier` hears of each order's end and tells who wants to know.
//!
//! One command, with a cluster of three nodes of its own (the `wharf` program must have been built):
//!
//!     cargo build && cargo run --example coordinator
//!
//! or with one that runs already:
//!
//!     cargo run --example coordinator -- --addr 127.0.0.1:7411,127.0.0.1:7421,127.0.0.1:7431

mod coordinator;
mod dispatcher;
mod notifier;
mod state;

use std::path::PathBuf;
use std::time::Duration;

use wharf::cli::local::{Cluster, Options};
use wharf::client::Client;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let (addrs, _cluster) = match (args.next().as_deref(), args.next()) {
        (None, _) => {
            let cluster = start_cluster().await?;
            (cluster.addrs(), Some(cluster))
        }
        (Some("--addr"), Some(addrs)) => (addrs, None),
        _ => return Err("usage: coordinator [--addr HOST:PORT[,…]]".into()),
    };
    let client = Client::new(&addrs)?;
    let report = coordinator::run(&client, 200).await?;
    println!("{report}");
    if report.is_good() { Ok(()) } else { Err("an order was lost or told wrongly".into()) }
}

/// Three nodes as processes of their own, with a real disk, until this program ends.
async fn start_cluster() -> Result<Cluster, Error> {
    // Cargo puts examples into a folder below that of the programs.
    let here = std::env::current_exe()?;
    let program: PathBuf = here.ancestors().nth(2).ok_or("no folder of programs")?.join("wharf");
    if !program.exists() {
        return Err(format!("{} is not there: cargo build", program.display()).into());
    }
    let mut cluster = Cluster::start(Options { program: Some(program), ..Options::default() }).await?;
    cluster.ready(Duration::from_secs(30)).await?;
    println!("a cluster of three nodes runs at {}", cluster.addrs());
    Ok(cluster)
}
