//! Load for a cluster, recorded: an open-loop producer, and workers in this process or in their own.

mod producer;
mod worker;

use futures::StreamExt;

use super::history::{Event, Key, Recorder};
use crate::client::{Client, Error};

pub use producer::{Produced, Producer, Production};
pub use worker::{Handling, WorkerProcess, WorkerSpec, WorkerTask, run_if_worker_process};

/// Reads that are on the way at once.
const READS_AT_ONCE: usize = 64;

/// Reads packages and records what was found; `last`: the test's last read of them.
pub async fn read_all(
    client: &Client,
    recorder: &Recorder,
    keys: impl IntoIterator<Item = Key>,
    last: bool,
) -> Result<(), Error> {
    let reads = keys.into_iter().map(|key| async move {
        let asked_us = recorder.now_us();
        let event = match client.get_package(&key.queue, &key.id).await {
            Ok(package) => Event::Read {
                key,
                state: Some(package.state().as_str_name().to_owned()),
                attempts: package.attempts,
                fence: package.fence,
                result: String::from_utf8_lossy(&package.result).into_owned(),
                asked_us,
                last,
            },
            Err(error) if error.is_not_found() => {
                Event::Read { key, state: None, attempts: 0, fence: 0, result: String::new(), asked_us, last }
            }
            Err(error) => return Err(error),
        };
        recorder.record(event);
        Ok(())
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
    while let Some(read) = reads.next().await {
        read?;
    }
    Ok(())
}
