//! The composition root: builds a node from its configuration and runs it until it is told to stop.

use crate::config::Config;

/// Why a node did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this build has no node")]
    Absent,
}

/// Runs a node until SIGTERM or SIGINT has drained it.
pub async fn run(config: Config) -> Result<(), Error> {
    let _ = config;
    Err(Error::Absent)
}
