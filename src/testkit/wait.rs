//! Waiting for conditions instead of sleeping and hoping.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// A condition is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What was waited for did not come.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not come within {within:?}")]
pub struct Late {
    what: String,
    within: Duration,
}

/// Waits until `look` finds what it looks for.
pub async fn until<T, F, R>(what: impl Into<String>, within: Duration, mut look: F) -> Result<T, Late>
where
    F: FnMut() -> R,
    R: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(Late { what: what.into(), within });
        }
        sleep(LOOK_AGAIN).await;
    }
}
