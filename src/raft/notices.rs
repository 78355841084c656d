//! Leaves out of an append stream what the next append says anyway.
//!
//! openraft tells every follower of every commit: with the next entries if there are some, else by an append
//! without any. Under a steady load the next entries are never far, and such notices, with their
//! answers, would be a third of all that goes between nodes. So a notice is held for as long as entries
//! follow each other closely, and dropped once the next append is there, which says more.
//!
//! Invariants: only a notice is held, never entries; never for longer than [`limits::PEER_NOTICE_MS`]; nothing is
//! held while entries are rare. Dropping one changes nothing: openraft counts answers by what
//! they match, and any later append brings the same commit or a later one.

use std::time::Duration;

use futures::Stream;
use futures::stream::{Fuse, StreamExt};
use openraft::alias::LogIdOf;
use openraft::raft::AppendEntriesRequest;
use tokio::time::{Instant, timeout_at};

use super::types::TypeConfig;
use crate::types::limits;

type Append = AppendEntriesRequest<TypeConfig>;

const HELD_FOR: Duration = Duration::from_millis(limits::PEER_NOTICE_MS);

/// The stream as it goes out.
pub fn without_needless(input: impl Stream<Item = Append> + Unpin) -> impl Stream<Item = Append> {
    let sieve = Sieve { input: input.fuse(), matched: None, entries_at: None, busy: false };
    futures::stream::unfold(sieve, |mut sieve| async move { Some((sieve.next().await?, sieve)) })
}

struct Sieve<S> {
    input: Fuse<S>,
    /// Up to where the follower was sent the log.
    matched: Option<LogIdOf<TypeConfig>>,
    /// When the last entries went.
    entries_at: Option<Instant>,
    /// They followed others closely.
    busy: bool,
}

impl<S: Stream<Item = Append> + Unpin> Sieve<S> {
    async fn next(&mut self) -> Option<Append> {
        let mut append = self.input.next().await?;
        let until = Instant::now() + HELD_FOR;
        while self.is_needless(&append) {
            match timeout_at(until, self.input.next()).await {
                Ok(Some(next)) => append = next,
                // Nothing came in time, or the stream is over.
                Ok(None) | Err(_) => break,
            }
        }
        self.note(&append);
        Some(append)
    }

    /// It only tells of a commit, and entries will soon do the same. A probe names another place in the log.
    fn is_needless(&self, append: &Append) -> bool {
        self.busy && append.entries.is_empty() && self.matched.is_some() && append.prev_log_id == self.matched
    }

    fn note(&mut self, append: &Append) {
        self.matched = append.entries.last().map(|entry| entry.log_id).or(append.prev_log_id);
        if !append.entries.is_empty() {
            let now = Instant::now();
            self.busy = self.entries_at.is_some_and(|at| now - at < HELD_FOR);
            self.entries_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::{Entry, EntryPayload, Vote};
    use tokio::sync::mpsc;
    use tokio::time::sleep;

    use super::super::convert;
    use super::*;
    use crate::proto::internal as pb;

    fn log_id(index: u64) -> Option<LogIdOf<TypeConfig>> {
        Some(convert::log_id(&pb::LogId { term: 1, index }))
    }

    fn append(prev: u64, entries: u64, commit: u64) -> Append {
        let entry = |index| Entry { log_id: log_id(index).unwrap(), payload: EntryPayload::Blank };
        AppendEntriesRequest {
            vote: Vote::new(1, 1),
            prev_log_id: log_id(prev),
            leader_commit: log_id(commit),
            entries: (prev + 1..=prev + entries).map(entry).collect(),
        }
    }

    /// What goes out: where it begins, entries, commit, and when.
    type Seen = (u64, usize, u64, u64);

    /// Sends each after its pause in milliseconds.
    async fn through(appends: Vec<(u64, Append)>) -> Vec<Seen> {
        let (send, receive) = mpsc::channel(1);
        let begin = Instant::now();
        tokio::spawn(async move {
            for (pause, append) in appends {
                sleep(Duration::from_millis(pause)).await;
                send.send(append).await.unwrap();
            }
        });
        let input =
            futures::stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
        let index = |id: Option<LogIdOf<TypeConfig>>| id.map_or(0, |id| id.index);
        let seen = |append: Append| {
            let at = begin.elapsed().as_millis() as u64;
            (index(append.prev_log_id), append.entries.len(), index(append.leader_commit), at)
        };
        without_needless(input.boxed()).map(seen).collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn close_entries_bring_the_commits_of_those_before() {
        let busy = vec![
            (0, append(0, 1, 0)),
            (1, append(1, 1, 0)),
            (1, append(2, 0, 1)),
            (0, append(2, 0, 2)),
            (1, append(2, 1, 2)),
        ];
        assert_eq!(through(busy).await, [(0, 1, 0, 0), (1, 1, 0, 1), (2, 1, 2, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_that_nothing_follows_goes_in_time() {
        let mut calm = vec![(0, append(0, 1, 0)), (1, append(1, 1, 0)), (1, append(2, 0, 1)), (2, append(2, 0, 2))];
        calm.push((50, append(2, 1, 2)));
        let held = [(0, 1, 0, 0), (1, 1, 0, 1), (2, 0, 2, 2 + limits::PEER_NOTICE_MS), (2, 1, 2, 54)];
        assert_eq!(through(calm).await, held);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_held_while_entries_are_rare_nor_a_probe_nor_the_last() {
        let rare = vec![(0, append(0, 1, 0)), (20, append(1, 1, 1)), (1, append(2, 0, 2))];
        assert_eq!(through(rare).await, [(0, 1, 0, 0), (1, 1, 1, 20), (2, 0, 2, 21)]);
        let probe = vec![(0, append(0, 1, 0)), (1, append(1, 1, 1)), (0, append(1, 0, 2)), (50, append(1, 0, 2))];
        assert_eq!(through(probe).await, [(0, 1, 0, 0), (1, 1, 1, 1), (1, 0, 2, 1), (1, 0, 2, 51)]);
        let last = vec![(0, append(0, 1, 0)), (1, append(1, 1, 1)), (1, append(2, 0, 2))];
        assert_eq!(through(last).await, [(0, 1, 0, 0), (1, 1, 1, 1), (2, 0, 2, 2)]);
    }
}
