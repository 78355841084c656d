//! Reads along with the changes that this node applies, and makes rows of what is worth keeping.
//!
//! The ring of changes is its buffer: it is only read as fast as the store takes rows, and what the ring
//! lets go meanwhile becomes a gap.

use std::sync::Arc;

use hashbrown::HashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::keeper::Job;
use crate::machine::Change;
use crate::machine::view::FailureView;
use crate::raft::changes::{Changes, Compacted};
use crate::storage::history::{Attempt, Failure, Finished, Row};
use crate::types::{Revision, State, limits};

const FLUSH_EVERY: Duration = Duration::from_millis(limits::HISTORY_FLUSH_MS);
const COVER_EVERY: Duration = Duration::from_millis(limits::HISTORY_COVER_MS);

/// As in a queue's settings: what its history keeps.
const NONE: u32 = 1;
const FAILURES: u32 = 2;

/// Until `stop`; then what was read is written.
pub async fn run(changes: Arc<Changes>, jobs: mpsc::Sender<Job>, stop: CancellationToken) {
    let recorder = Recorder { jobs, begins: HashMap::default(), written: 0 };
    // Errors: nobody keeps history any more.
    let _ = recorder.run(changes, stop).await;
}

struct Gone;

struct Recorder {
    jobs: mpsc::Sender<Job>,
    /// When the leases under way were granted, by fence.
    begins: HashMap<u64, u64, foldhash::fast::FixedState>,
    /// The revision up to which the store was told.
    written: u64,
}

impl Recorder {
    async fn run(mut self, changes: Arc<Changes>, stop: CancellationToken) -> Result<(), Gone> {
        let (answer, begin) = oneshot::channel();
        self.tell(Job::Begin { answer }).await?;
        let begin = begin.await.map_err(|_| Gone)?;
        self.written = begin - 1;
        let Ok(mut reader) = changes.read(None, Revision(begin)) else {
            tracing::error!("too many readers follow the changes: no history is kept");
            return Err(Gone);
        };
        let (mut flush_at, mut cover_at) = (None, Instant::now() + COVER_EVERY);
        loop {
            match reader.take() {
                Err(Compacted { oldest }) => {
                    let (from, to) = (reader.next().0, oldest.0 - 1);
                    self.tell(Job::Gap { from, to }).await?;
                    self.written = to;
                    self.begins.clear();
                    reader.go_on_at(oldest);
                    continue;
                }
                Ok(taken) => {
                    let rows: Vec<Row> = taken.iter().flat_map(|change| self.rows(change)).flatten().collect();
                    let (covered, is_empty) = (taken.upto().0, taken.is_empty());
                    drop(taken);
                    if !rows.is_empty() {
                        self.write(rows, covered).await?;
                        flush_at.get_or_insert_with(|| Instant::now() + FLUSH_EVERY);
                    }
                    if !is_empty && flush_at.is_none_or(|at| Instant::now() < at) {
                        continue;
                    }
                }
            }
            let covered = reader.next().0 - 1;
            let due = flush_at.unwrap_or(cover_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.write(Vec::new(), covered).await?;
                    let (answer, flushed) = oneshot::channel();
                    self.tell(Job::Flush { answer: Some(answer) }).await?;
                    // A store that hangs must not keep the node from stopping.
                    let _ = timeout(FLUSH_EVERY, flushed).await;
                    return Ok(());
                }
                () = sleep_until(due) => {
                    if covered > self.written {
                        self.write(Vec::new(), covered).await?;
                    }
                    self.tell(Job::Flush { answer: None }).await?;
                    (flush_at, cover_at) = (None, Instant::now() + COVER_EVERY);
                }
                () = reader.changed() => {}
            }
        }
    }

    async fn write(&mut self, rows: Vec<Row>, covered: u64) -> Result<(), Gone> {
        self.written = covered;
        self.tell(Job::Write { rows, covered }).await
    }

    async fn tell(&self, job: Job) -> Result<(), Gone> {
        self.jobs.send(job).await.map_err(|_| Gone)
    }

    /// The lease that ended, and the end, as far as they are worth keeping.
    fn rows(&mut self, change: &Change) -> [Option<Row>; 2] {
        if change.history == NONE {
            return [None, None];
        }
        if change.to == State::Leased {
            if self.begins.len() < limits::HISTORY_LEASES {
                self.begins.insert(change.fence.0, change.time.0);
            }
            return [None, None];
        }
        let leased = change.from == Some(State::Leased);
        let begin = if leased { self.begins.remove(&change.fence.0) } else { None };
        let all = change.history != FAILURES;
        let failed = change.to != State::Completed || change.failure().is_some();
        let ends = change.to.is_finished() && (all || failed);
        let charged = change.lease_end.is_some_and(|end| end.charged);
        let attempt = (leased && (all || charged || ends)).then(|| Row::Attempt(Box::new(attempt(change, begin))));
        [attempt, ends.then(|| Row::Finished(Box::new(finished(change))))]
    }
}

fn attempt(change: &Change, begin_ms: Option<u64>) -> Attempt {
    let end = change.lease_end;
    let charged = end.is_some_and(|end| end.charged);
    Attempt {
        queue: change.queue().as_str().to_owned(),
        id: change.id.to_string(),
        create_revision: change.create_revision.0,
        fence: change.fence.0,
        worker: text(&change.worker),
        session: text(&change.session),
        begin_ms,
        end_ms: change.time.0,
        state: change.to as u32,
        cause: end.map_or(0, |end| end.cause as u32),
        charged: charged || change.to == State::Completed,
        failure: change.failure().filter(|_| charged).map(failure),
    }
}

fn finished(change: &Change) -> Finished {
    let options = &change.profile.options;
    let carried = change.carried.as_deref().cloned().unwrap_or_default();
    let kept = carried.result.len() <= limits::HISTORY_RESULT_BYTES;
    Finished {
        queue: change.queue().as_str().to_owned(),
        id: change.id.to_string(),
        kind: change.profile.kind.to_string(),
        content_type: options.content_type.to_string(),
        labels: options.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        priority: change.priority,
        max_attempts: change.max_attempts,
        attempts: change.attempts,
        state: change.to as u32,
        fence: change.fence.0,
        worker: text(&change.worker),
        not_before_ms: options.not_before.map(|wall| wall.0),
        expire_ms: options.expire.map(|wall| wall.0),
        create_ms: change.create.0,
        finish_ms: change.time.0,
        create_revision: change.create_revision.0,
        revision: change.revision.0,
        result: if kept { carried.result.to_vec() } else { Vec::new() },
        result_content_type: text(&carried.result_content_type),
        result_left_out: !kept,
        moved_to: text(&carried.moved_to),
        failure: change.failure().map(failure),
    }
}

fn failure(view: &FailureView) -> Failure {
    Failure {
        cause: view.cause as u32,
        message: view.message.to_string(),
        code: view.code.to_string(),
        time_ms: view.time.0,
        worker: view.worker.to_string(),
    }
}

fn text(text: &Option<Arc<str>>) -> String {
    text.as_deref().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "recorder_tests.rs"]
mod tests;
