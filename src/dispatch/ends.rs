//! Wakes calls that wait for packages, on whichever node they wait: by the changes that this node
//! itself applies. A follower asks nobody while a call waits there, so an idle wait costs its own
//! memory and nothing else.
//!
//! Invariants: while a package is waited for, the changes are read from before the waiter looks at the
//! state. A node that is cut off sends its waiters to look, by which they learn that there is no leader.

use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::waiters::Wake;
use crate::raft;
use crate::raft::changes::Reader;
use crate::types::{Revision, limits};

const CHECK: Duration = Duration::from_millis(limits::WAIT_CHECK_MS);

/// Until `stop`.
pub(super) async fn follow(shared: Arc<Shared>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow_on(&shared) => {}
    }
}

async fn follow_on(shared: &Shared) {
    let waiters = &shared.waiters;
    loop {
        waiters.wanted().await;
        let Some(mut reader) = read(&shared.raft) else {
            // As many watch as may: those who wait look again from time to time.
            waiters.follow(true);
            while waiters.still_wanted() {
                sleep(CHECK).await;
                waiters.wake_all(Wake::Look);
            }
            continue;
        };
        waiters.follow(true);
        let mut checked = Instant::now();
        while waiters.still_wanted() {
            match reader.take() {
                Ok(taken) if !taken.is_empty() => {
                    for change in taken.iter().filter(|change| change.to.is_finished()) {
                        waiters.package_finished(change.queue().clone(), change.id.clone());
                    }
                    continue;
                }
                Ok(_) => {}
                // The ring went on without it, or began anew.
                Err(_) => {
                    waiters.follow(false);
                    waiters.wake_all(Wake::Look);
                    break;
                }
            }
            tokio::select! {
                () = reader.changed() => {}
                () = sleep(CHECK) => {}
            }
            if checked.elapsed() >= CHECK {
                checked = Instant::now();
                if !hears_the_leader(&shared.raft) {
                    waiters.wake_all(Wake::LeaderLost);
                }
            }
        }
    }
}

/// Reads along from the next change on, if there is a place.
fn read(raft: &raft::Handle) -> Option<Reader> {
    raft.changes().read(None, Revision(0)).ok()
}

fn hears_the_leader(raft: &raft::Handle) -> bool {
    let status = raft.status();
    let leader = status.leader.map(|leader| leader.node);
    leader == Some(status.node) || status.members.iter().any(|member| Some(member.node) == leader && member.reachable)
}
