//! Calls about packages.

use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, sleep};
use tonic::Code;
use tonic::transport::Channel;

use super::backoff::Backoff;
use super::call::Repeat;
use super::error::reason;
use super::{Client, Error, HistoryPage, HistoryQuery, NewPackage, Package, State, ids};
use crate::proto::v1::package_service_client::PackageServiceClient;
use crate::proto::v1::{
    CallPackageRequest, CancelPackageRequest, GetPackageRequest, PurgePackagesRequest, RetryPackageRequest,
    SubmitRequest, SubmitResponse, SubmitResult, WaitPackageRequest,
};
use crate::types::limits;

/// A package that a quorum has on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    pub queue: String,
    pub id: String,
    /// It was taken before: the same id with the same content.
    pub duplicate: bool,
}

impl Client {
    /// Submits one package. Ok: a quorum has it on disk.
    pub async fn submit(&self, package: NewPackage) -> Result<Submitted, Error> {
        let results = self.submit_many(vec![package]).await;
        results.into_iter().next().unwrap_or_else(|| Err(malformed("a submit without a result")))
    }

    /// Submits packages, each on its own; one result for each, in order. Splits what is too much for
    /// one call.
    pub async fn submit_many(&self, mut packages: Vec<NewPackage>) -> Vec<Result<Submitted, Error>> {
        self.mint_missing(&mut packages);
        let mut results = Vec::with_capacity(packages.len());
        let mut rest = packages.as_slice();
        while !rest.is_empty() {
            let (call, later) = rest.split_at(fits_one_call(rest));
            results.extend(self.submit_call(call).await);
            rest = later;
        }
        results
    }

    /// Submits all packages or none, in one call. The error is that of the package to blame.
    pub async fn submit_atomic(&self, mut packages: Vec<NewPackage>) -> Result<Vec<Submitted>, Error> {
        self.mint_missing(&mut packages);
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(self.nodes.env().random.clone());
        let mut unknown = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let request = SubmitRequest { packages: packages.clone(), atomic: true };
            let response = self.with_timeout(left).call_submit(request).await;
            let error = match response.and_then(|response| all(response, packages.len())) {
                Ok(taken) => return Ok(taken),
                Err(error) => error.or_unknown(unknown),
            };
            unknown = error.is_unknown();
            let pause = backoff.pause(error.retry_after());
            if !error.is_transient() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    /// Submits one package and waits until it is finished: request and response over a queue. A worker's
    /// failure comes back as a package that is DEAD, with its `last_failure`. Survives changes of the
    /// leader; if the time runs out the package goes on, and the same call with its id waits again.
    pub async fn call_package(&self, mut package: NewPackage, within: Duration) -> Result<Package, Error> {
        self.mint_missing(std::slice::from_mut(&mut package));
        let request = CallPackageRequest { package: Some(package) };
        let try_for = Duration::from_millis(limits::CLIENT_WAIT_TRY_MS);
        let rpc = |channel, request| async move { packages(channel).call_package(request).await };
        let response = self.call_within(Repeat::Safe, within, try_for, request, rpc).await?;
        response.package.ok_or_else(|| malformed("a call without its package"))
    }

    /// Reads one package, with its payload.
    pub async fn get_package(&self, queue: &str, id: &str) -> Result<Package, Error> {
        self.read_package(GetPackageRequest { with_payload: true, ..request(queue, id) }).await
    }

    /// Reads one package without its payload, from whichever node answers; the answer may lag.
    pub async fn get_package_stale(&self, queue: &str, id: &str) -> Result<Package, Error> {
        self.read_package(GetPackageRequest { stale_ok: true, ..request(queue, id) }).await
    }

    /// Waits until the package is finished. Survives changes of the leader.
    pub async fn wait_package(&self, queue: &str, id: &str, within: Duration) -> Result<Package, Error> {
        let request = WaitPackageRequest { queue: queue.to_owned(), id: id.to_owned() };
        let response = self
            .call_long(within, request, |channel, request| async move { packages(channel).wait_package(request).await })
            .await?;
        response.package.ok_or_else(|| malformed("a wait without its package"))
    }

    /// Cancels a package that is not finished. A worker that holds it is told to stop.
    pub async fn cancel_package(
        &self,
        queue: &str,
        id: &str,
        why: &str,
        if_revision: Option<u64>,
    ) -> Result<Package, Error> {
        let request =
            CancelPackageRequest { queue: queue.to_owned(), id: id.to_owned(), reason: why.to_owned(), if_revision };
        // Only the state can tell whether an unknown try was carried out.
        let repeat = if if_revision.is_none() { Repeat::Safe } else { Repeat::IfNotApplied };
        let answer = self
            .call(repeat, request, |channel, request| async move { packages(channel).cancel_package(request).await })
            .await;
        match answer {
            Ok(response) => response.package.ok_or_else(|| malformed("a cancel without its package")),
            Err(error) if error.is_unknown() && error.reason() == reason::ALREADY_FINISHED => {
                let package = self.get_package(queue, id).await.map_err(|later| later.or_unknown(true))?;
                if package.state() == State::Cancelled { Ok(package) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    /// Puts a DEAD package back to READY with its attempts reset.
    pub async fn retry_package(&self, queue: &str, id: &str, if_revision: Option<u64>) -> Result<Package, Error> {
        let request = RetryPackageRequest { queue: queue.to_owned(), id: id.to_owned(), if_revision };
        let response = self
            .call(Repeat::IfNotApplied, request, |channel, request| async move {
                packages(channel).retry_package(request).await
            })
            .await?;
        response.package.ok_or_else(|| malformed("a retry without its package"))
    }

    /// Removes packages of these states (none: all but LEASED); answers how many.
    /// With `validate_only` they are counted and stay.
    pub async fn purge_packages(&self, queue: &str, states: &[State], validate_only: bool) -> Result<u64, Error> {
        let states = states.iter().map(|state| *state as i32).collect();
        let request = PurgePackagesRequest { queue: queue.to_owned(), states, validate_only };
        let repeat = if validate_only { Repeat::Read } else { Repeat::IfNotApplied };
        let response = self
            .call(repeat, request, |channel, request| async move { packages(channel).purge_packages(request).await })
            .await?;
        Ok(response.purged)
    }

    /// A page of what a node remembers of finished packages: the one that is asked, which the page names.
    pub async fn list_history(&self, query: HistoryQuery) -> Result<HistoryPage, Error> {
        self.call(Repeat::Read, query, |channel, request| async move { packages(channel).list_history(request).await })
            .await
    }

    pub(super) fn mint_missing(&self, packages: &mut [NewPackage]) {
        for package in packages.iter_mut().filter(|package| package.id.is_empty()) {
            package.id = ids::mint(self.nodes.env());
        }
    }

    async fn read_package(&self, request: GetPackageRequest) -> Result<Package, Error> {
        let response = self
            .call(Repeat::Read, request, |channel, request| async move { packages(channel).get_package(request).await })
            .await?;
        response.package.ok_or_else(|| malformed("a read without its package"))
    }

    async fn call_submit(&self, request: SubmitRequest) -> Result<SubmitResponse, Error> {
        self.call(Repeat::Safe, request, |channel, request| async move { packages(channel).submit(request).await })
            .await
    }

    /// One call; packages that were refused for the moment are sent again until the deadline.
    async fn submit_call(&self, packages: &[NewPackage]) -> Vec<Result<Submitted, Error>> {
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(self.nodes.env().random.clone());
        let mut results: Vec<Option<Result<Submitted, Error>>> = vec![None; packages.len()];
        let mut open: Vec<usize> = (0..packages.len()).collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let request =
                SubmitRequest { packages: open.iter().map(|&at| packages[at].clone()).collect(), atomic: false };
            match self.with_timeout(left).call_submit(request).await {
                Ok(response) if response.results.len() == open.len() => {
                    for (&at, result) in open.iter().zip(response.results) {
                        let unknown = matches!(&results[at], Some(Err(error)) if error.is_unknown());
                        results[at] = Some(submitted(result).map_err(|error| error.or_unknown(unknown)));
                    }
                }
                Ok(_) => fill(&mut results, &open, &malformed("a submit with the wrong number of results")),
                Err(error) => {
                    fill(&mut results, &open, &error);
                    break;
                }
            }
            open.retain(|&at| matches!(&results[at], Some(Err(error)) if error.is_transient()));
            let pause = backoff.pause(None);
            if open.is_empty() || Instant::now() + pause >= deadline {
                break;
            }
            sleep(pause).await;
        }
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(malformed("no result")))).collect()
    }
}

/// The results of an atomic submit.
fn all(response: SubmitResponse, count: usize) -> Result<Vec<Submitted>, Error> {
    if response.results.len() != count {
        return Err(malformed("a submit with the wrong number of results"));
    }
    let (mut taken, mut refused) = (Vec::with_capacity(count), None::<Error>);
    for result in response.results {
        match submitted(result) {
            Ok(one) => taken.push(one),
            // The others only say that this one spoiled it.
            Err(error) if refused.as_ref().is_none_or(|first| first.reason() == reason::ATOMIC_REFUSED) => {
                refused = Some(error);
            }
            Err(_) => {}
        }
    }
    refused.map_or(Ok(taken), Err)
}

fn fill(results: &mut [Option<Result<Submitted, Error>>], open: &[usize], error: &Error) {
    for &at in open {
        let unknown = matches!(&results[at], Some(Err(earlier)) if earlier.is_unknown());
        results[at] = Some(Err(error.clone().or_unknown(unknown)));
    }
}

/// How many of these packages go into one call; at least one.
pub(super) fn fits_one_call(packages: &[NewPackage]) -> usize {
    let mut bytes = 0;
    let fitting = packages.iter().take(limits::MAX_PACKAGES_A_SUBMIT).take_while(|package| {
        bytes += package.encoded_len();
        bytes <= limits::CLIENT_MESSAGE_BYTES
    });
    fitting.count().max(1)
}

/// The result of one package.
pub(super) fn submitted(result: SubmitResult) -> Result<Submitted, Error> {
    match result.error.filter(|error| error.code != 0) {
        Some(error) => Err(Error::from_rpc(&error)),
        None => Ok(Submitted { queue: result.queue, id: result.id, duplicate: result.duplicate }),
    }
}

/// A server that breaks the contract. What it did is not known.
pub(super) fn malformed(what: &str) -> Error {
    Error::refused(Code::Internal, format!("the node's answer is malformed: {what}")).or_unknown(true)
}

fn request(queue: &str, id: &str) -> GetPackageRequest {
    GetPackageRequest { queue: queue.to_owned(), id: id.to_owned(), ..Default::default() }
}

pub(super) fn packages(channel: Channel) -> PackageServiceClient<Channel> {
    PackageServiceClient::new(channel)
        .max_decoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES)
}
