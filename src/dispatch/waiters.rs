//! Calls that wait for the end of a package, a queue or a sweep. Woken by effects and by changes: no poll,
//! no thread.
//!
//! Invariants: at most `limit` waiters. Who registers before it looks at the state misses no wake-up.
//! A waiter that is dropped is gone from the table.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use crate::types::{PackageId, QueueName, limits};

/// Why a waiter was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It happened, or may have: look again.
    Look,
    /// The sweep ended after so many packages.
    Swept(u64),
    /// This node no longer leads, or stops: ask the leader.
    LeaderLost,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    pub limit: usize,
}

/// Packages come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Package(QueueName, PackageId),
    Queue(QueueName),
    Sweep(u64),
}

/// See the module.
pub(super) struct Waiters {
    limit: usize,
    inner: Mutex<Inner>,
    /// A package is waited for, and nobody follows.
    wanted: Notify,
    /// The ends of packages are followed.
    followed: watch::Sender<bool>,
}

#[derive(Default)]
struct Inner {
    /// By key, then in the order of arrival.
    waiting: BTreeMap<(Key, u64), oneshot::Sender<Wake>>,
    next: u64,
    /// The latest sweeps that ended: (number, packages).
    swept: VecDeque<(u64, u64)>,
}

/// One registered call.
pub struct Waiter {
    place: Option<(Key, u64)>,
    wake: oneshot::Receiver<Wake>,
    waiters: Arc<Waiters>,
}

impl Waiter {
    /// Resolves once.
    pub async fn woken(&mut self) -> Wake {
        (&mut self.wake).await.unwrap_or(Wake::LeaderLost)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.waiters.inner.lock().waiting.remove(&place);
        }
    }
}

impl Waiters {
    pub fn new(limit: usize) -> Self {
        Self { limit, inner: Mutex::default(), wanted: Notify::new(), followed: watch::Sender::new(false) }
    }

    pub fn len(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    pub fn wait_package(self: &Arc<Self>, queue: QueueName, id: PackageId) -> Result<Waiter, Full> {
        self.wait(Key::Package(queue, id))
    }

    pub fn wait_queue(self: &Arc<Self>, queue: QueueName) -> Result<Waiter, Full> {
        self.wait(Key::Queue(queue))
    }

    pub fn wait_sweep(self: &Arc<Self>, sweep: u64) -> Result<Waiter, Full> {
        self.wait(Key::Sweep(sweep))
    }

    fn wait(self: &Arc<Self>, key: Key) -> Result<Waiter, Full> {
        let (sender, wake) = oneshot::channel();
        let mut inner = self.inner.lock();
        if let Key::Sweep(sweep) = key
            && let Some(&(_, changed)) = inner.swept.iter().rev().find(|(number, _)| *number == sweep)
        {
            // The receiver is right here.
            let _ = sender.send(Wake::Swept(changed));
            return Ok(Waiter { place: None, wake, waiters: self.clone() });
        }
        if inner.waiting.len() >= self.limit {
            return Err(Full { limit: self.limit });
        }
        inner.next += 1;
        if matches!(key, Key::Package(..)) && !*self.followed.borrow() {
            self.wanted.notify_one();
        }
        let place = (key, inner.next);
        inner.waiting.insert(place.clone(), sender);
        Ok(Waiter { place: Some(place), wake, waiters: self.clone() })
    }

    /// Resolves when somebody must follow the ends of packages.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether they are followed from now on. Who is woken after a no says again that it wants it.
    pub fn follow(&self, follows: bool) {
        self.followed.send_replace(follows);
    }

    /// Whether a package is waited for. If not, their ends are not followed any more: decided under the
    /// lock, so who registers later says that it wants them.
    pub fn still_wanted(&self) -> bool {
        let inner = self.inner.lock();
        let wanted = inner.waiting.first_key_value().is_some_and(|((key, _), _)| matches!(key, Key::Package(..)));
        if !wanted {
            self.followed.send_replace(false);
        }
        wanted
    }

    /// Resolves while the ends of packages are followed.
    pub async fn followed(&self) {
        // The sender lives as long as this.
        let _ = self.followed.subscribe().wait_for(|followed| *followed).await;
    }

    pub fn package_finished(&self, queue: QueueName, id: PackageId) {
        self.wake(Key::Package(queue, id), Wake::Look);
    }

    pub fn queue_ended(&self, queue: QueueName) {
        self.wake(Key::Queue(queue), Wake::Look);
    }

    pub fn sweep_finished(&self, sweep: u64, changed: u64) {
        {
            let mut inner = self.inner.lock();
            if inner.swept.len() >= limits::MAX_SWEEPS_REMEMBERED {
                inner.swept.pop_front();
            }
            inner.swept.push_back((sweep, changed));
        }
        self.wake(Key::Sweep(sweep), Wake::Swept(changed));
    }

    /// Wakes everybody: effects were lost, or leadership was.
    pub fn wake_all(&self, wake: Wake) {
        let waiting = std::mem::take(&mut self.inner.lock().waiting);
        for sender in waiting.into_values() {
            // A waiter that just went away needs nothing.
            let _ = sender.send(wake);
        }
    }

    fn wake(&self, key: Key, wake: Wake) {
        let mut inner = self.inner.lock();
        if inner.waiting.is_empty() {
            return;
        }
        let from = (key.clone(), 0);
        while let Some(place) =
            inner.waiting.range(from.clone()..=(key.clone(), u64::MAX)).next().map(|(p, _)| p.clone())
        {
            if let Some(sender) = inner.waiting.remove(&place) {
                let _ = sender.send(wake);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    #[tokio::test]
    async fn only_who_waits_for_it_is_woken_and_who_leaves_is_forgotten() {
        let waiters = Arc::new(Waiters::new(3));
        let mut first = waiters.wait_package(queue("q"), "a".into()).unwrap();
        let mut second = waiters.wait_package(queue("q"), "a".into()).unwrap();
        let other = waiters.wait_queue(queue("q")).unwrap();
        assert!(matches!(waiters.wait_queue(queue("r")), Err(Full { limit: 3 })));
        waiters.package_finished(queue("q"), "b".into());
        assert_eq!(waiters.len(), 3);
        waiters.package_finished(queue("q"), "a".into());
        assert_eq!((first.woken().await, second.woken().await), (Wake::Look, Wake::Look));
        assert_eq!(waiters.len(), 1);
        drop(other);
        assert_eq!(waiters.len(), 0);
    }

    #[tokio::test]
    async fn a_sweep_that_ended_before_the_question_is_still_told() {
        let waiters = Arc::new(Waiters::new(3));
        waiters.sweep_finished(7, 42);
        assert_eq!(waiters.wait_sweep(7).unwrap().woken().await, Wake::Swept(42));
        let mut later = waiters.wait_sweep(8).unwrap();
        waiters.wake_all(Wake::LeaderLost);
        assert_eq!(later.woken().await, Wake::LeaderLost);
    }

    #[tokio::test]
    async fn only_the_latest_sweeps_are_remembered() {
        let waiters = Arc::new(Waiters::new(3));
        let most = limits::MAX_SWEEPS_REMEMBERED as u64;
        (0..=most).for_each(|sweep| waiters.sweep_finished(sweep, sweep * 10));
        for sweep in [1, most] {
            assert_eq!(waiters.wait_sweep(sweep).unwrap().woken().await, Wake::Swept(sweep * 10));
        }
        let _forgotten = waiters.wait_sweep(0).unwrap();
        assert_eq!(waiters.len(), 1, "it waits, as for one that goes on");
    }
}
