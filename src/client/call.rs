//! One call: its tries, pauses and deadline. The one place that decides what is repeated.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::backoff::Backoff;
use super::error::reason;
use super::nodes::Node;
use super::{Client, Error};
use crate::types::limits;

/// Whether a call may be sent again after a try of which nobody knows the outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, so its outcome is never unknown either.
    Read,
    /// The same twice is the same as once.
    Safe,
    /// Only a try that certainly changed nothing is repeated.
    IfNotApplied,
}

impl Client {
    /// Calls the leader, or whoever serves for it, until there is an answer or the deadline passed.
    pub(super) async fn call<Q, A, F, R>(&self, repeat: Repeat, request: Q, rpc: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let try_for = match repeat {
            Repeat::Read | Repeat::Safe => Duration::from_millis(limits::CLIENT_TRY_MS),
            Repeat::IfNotApplied => self.timeout,
        };
        self.call_within(repeat, self.timeout, try_for, request, rpc).await
    }

    /// The same for calls that wait for something: long tries, and a deadline of their own.
    pub(super) async fn call_long<Q, A, F, R>(&self, within: Duration, request: Q, rpc: F) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let try_for = Duration::from_millis(limits::CLIENT_WAIT_TRY_MS);
        let answer = self.call_within(Repeat::Read, within, try_for, request, rpc).await;
        answer.map_err(|error| match error.is_timeout() {
            true => Error::deadline(format!("still not finished after {within:?}")).certain(),
            false => error,
        })
    }

    /// The same with a deadline and a time for each try.
    pub(super) async fn call_within<Q, A, F, R>(
        &self,
        repeat: Repeat,
        within: Duration,
        try_for: Duration,
        request: Q,
        rpc: F,
    ) -> Result<A, Error>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + within;
        let mut backoff = Backoff::new(self.nodes.env().random.clone());
        let mut unknown = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let error = match self.try_once(repeat, try_for.min(left), request.clone(), &rpc).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let repeatable = error.is_transient() && (repeat != Repeat::IfNotApplied || !error.is_unknown());
            unknown |= error.is_unknown();
            let pause = backoff.pause(error.retry_after());
            if !repeatable || Instant::now() + pause >= deadline {
                return Err(if repeat == Repeat::Read { error.certain() } else { error.or_unknown(unknown) });
            }
            tracing::debug!(error = %error, pause_ms = pause.as_millis() as u64, "call is tried again");
            sleep(pause).await;
        }
    }

    async fn try_once<Q, A, F, R>(&self, repeat: Repeat, try_for: Duration, request: Q, rpc: &F) -> Result<A, Error>
    where
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        // Many callers may wait for one connection.
        let node = timeout(try_for, self.nodes.pick())
            .await
            .map_err(|_| Error::unreachable(format_args!("no connection within {try_for:?}")))??;
        // Not what waits by its nature, nor what may not be said twice.
        if repeat == Repeat::IfNotApplied || try_for > Duration::from_millis(limits::CLIENT_TRY_MS) {
            return self.call_node(&node, try_for, request, rpc).await;
        }
        tokio::select! {
            // In this order, so that a simulation repeats.
            biased;
            answer = self.call_node(&node, try_for, request, rpc) => answer,
            () = self.deposed(&node) => {
                self.nodes.lost(&node);
                Err(Error::deadline(format!("{} is silent, and another node leads", node.addr)))
            }
        }
    }

    /// One try at one node.
    pub(super) async fn call_node<Q, A, F, R>(
        &self,
        node: &Node,
        try_for: Duration,
        request: Q,
        rpc: &F,
    ) -> Result<A, Error>
    where
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(request);
        request.set_timeout(try_for);
        let late = || Error::deadline(format!("{} did not answer within {try_for:?}", node.addr));
        match timeout(try_for, rpc(node.channel.clone(), request)).await {
            Ok(Ok(answer)) => {
                self.nodes.learn(answer.metadata());
                Ok(answer.into_inner())
            }
            Ok(Err(status)) => {
                let error = Error::from_status(&status);
                let error = if error.is_timeout() && error.is_transport() { late() } else { error };
                self.complain_after(node, &error, try_for);
                self.nodes.learn(status.metadata());
                Err(error)
            }
            Err(_) => {
                let error = late();
                self.complain_after(node, &error, try_for);
                Err(error)
            }
        }
    }

    /// A frozen node accepts everything and answers nothing, so an ordinary call that is late
    /// condemns it. A long wait says nothing: a dead connection is noticed by its keepalive.
    fn complain_after(&self, node: &Node, error: &Error, try_for: Duration) {
        let waited = error.is_timeout() && try_for > Duration::from_millis(limits::CLIENT_TRY_MS);
        let hurried = error.is_timeout() && try_for < Duration::from_millis(limits::CLIENT_TRY_MS);
        if !waited && !hurried {
            self.complain(node, error);
        }
    }

    /// Looks for another node after this answer, if it says so.
    pub(super) fn complain(&self, node: &Node, error: &Error) {
        if error.is_transport() {
            self.nodes.lost(node);
        } else if matches!(error.reason(), reason::NO_LEADER | reason::OUTCOME_UNKNOWN) {
            self.nodes.elsewhere(node);
        }
    }
}
