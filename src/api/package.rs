//! PackageService, but for submits.

use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::authorize::{Action, authorize};
use super::call::Call;
use super::forward::{Place, Route, Rpc};
use super::status::{self, Refusal};
use super::validate::{At, Problems};
use super::{Api, BoxStream, Core, convert, submit, watch};
use crate::dispatch::{Waiter, Wake};
use crate::machine::Reply;
use crate::machine::command::{Cancel, Op, Purge, Retry};
use crate::proto::v1;
use crate::proto::v1::package_service_server::PackageService;
use crate::raft::handle::{Lane, ProposeError};
use crate::types::{QueueName, State, limits};

const SUBMIT_STREAM: &str = "/wharf.v1.PackageService/SubmitStream";

#[tonic::async_trait]
impl PackageService for Api {
    type SubmitStreamStream = BoxStream<v1::SubmitStreamResponse>;
    type WatchStream = BoxStream<v1::WatchResponse>;

    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        self.unary(request).await
    }

    async fn submit_stream(
        &self,
        request: Request<Streaming<v1::SubmitStreamRequest>>,
    ) -> Result<Response<Self::SubmitStreamStream>, Status> {
        let call = Call::new(request.metadata(), self.mode);
        authorize(&call.identity, Action::Submit)?;
        let stream = match self.place(&call).await {
            Ok(Route::Here) => Ok(submit::serve(self.core.clone(), request.into_inner())),
            Ok(Route::There(channel)) => self.hop_stream(channel, &call, request.into_inner(), SUBMIT_STREAM).await,
            Err(refusal) => Err(refusal.into()),
        };
        self.with_leader(stream)
    }

    async fn get_package(
        &self,
        request: Request<v1::GetPackageRequest>,
    ) -> Result<Response<v1::GetPackageResponse>, Status> {
        self.unary(request).await
    }

    async fn wait_package(
        &self,
        request: Request<v1::WaitPackageRequest>,
    ) -> Result<Response<v1::WaitPackageResponse>, Status> {
        let call = Call::new(request.metadata(), self.mode);
        authorize(&call.identity, Action::Read)?;
        self.with_leader(self.wait_here(&call, request.into_inner()).await.map(Response::new))
    }

    async fn list_packages(
        &self,
        request: Request<v1::ListPackagesRequest>,
    ) -> Result<Response<v1::ListPackagesResponse>, Status> {
        self.unary(request).await
    }

    async fn call_package(
        &self,
        request: Request<v1::CallPackageRequest>,
    ) -> Result<Response<v1::CallPackageResponse>, Status> {
        let call = Call::new(request.metadata(), self.mode);
        authorize(&call.identity, Action::Submit)?;
        authorize(&call.identity, Action::Read)?;
        self.with_leader(self.submit_and_wait(&call, request.into_inner()).await.map(Response::new))
    }

    async fn cancel_package(
        &self,
        request: Request<v1::CancelPackageRequest>,
    ) -> Result<Response<v1::CancelPackageResponse>, Status> {
        self.unary(request).await
    }

    async fn retry_package(
        &self,
        request: Request<v1::RetryPackageRequest>,
    ) -> Result<Response<v1::RetryPackageResponse>, Status> {
        self.unary(request).await
    }

    async fn purge_packages(
        &self,
        request: Request<v1::PurgePackagesRequest>,
    ) -> Result<Response<v1::PurgePackagesResponse>, Status> {
        self.unary(request).await
    }

    async fn list_history(
        &self,
        request: Request<v1::ListHistoryRequest>,
    ) -> Result<Response<v1::ListHistoryResponse>, Status> {
        self.unary(request).await
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::new(request.metadata(), self.mode);
        authorize(&call.identity, Action::Read)?;
        self.with_leader(watch::serve(&self.core, request.into_inner()).map_err(Status::from))
    }
}

impl Api {
    /// Waits on this node, whether it leads or not; only looks go to the leader. While it waits it keeps
    /// little: there may be many.
    async fn wait_here(&self, call: &Call, request: v1::WaitPackageRequest) -> Result<v1::WaitPackageResponse, Status> {
        let v1::WaitPackageRequest { queue, id } = request;
        let name = key(&queue, &id)?;
        loop {
            // Register, then look: an end in between wakes the waiter.
            let waiter = self.core.dispatch.wait_package(name.clone(), &id).map_err(Refusal::from)?;
            let now = call.anew();
            let following = tokio::time::timeout_at(now.ends(), self.core.dispatch.following());
            following.await.map_err(|_| Refusal::Deadline)?;
            // Many may come, or wake, at once: what their looks take, they take in turns.
            let turn = tokio::time::timeout_at(now.ends(), self.core.looks.acquire());
            let turn = turn.await.map_err(|_| Refusal::Deadline)?;
            let look = v1::GetPackageRequest { queue: queue.clone(), id: id.clone(), ..Default::default() };
            let v1::GetPackageResponse { package, revision } = Box::pin(self.route(&now, look)).await?;
            let state = package.as_ref().map(|package| package.state as u32).and_then(State::from_number);
            if state.is_some_and(State::is_finished) {
                return Ok(v1::WaitPackageResponse { package, revision });
            }
            drop((package, turn));
            match wait(waiter, call.waits_until()).await {
                // The next look finds who leads now.
                Ok(()) | Err(Refusal::Propose(ProposeError::NotLeader { .. })) => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// A submit and then a wait, which follows a change of the leader.
    async fn submit_and_wait(
        &self,
        call: &Call,
        request: v1::CallPackageRequest,
    ) -> Result<v1::CallPackageResponse, Status> {
        let mut package = request.package.unwrap_or_default();
        let mut problems = Problems::default();
        let checked = convert::new_package(package.clone(), At::In("package"), &mut problems, &self.core.env);
        problems.check().map_err(Status::from)?;
        package.id.clone_from(&checked.id);
        let submit = v1::SubmitRequest { packages: vec![package], atomic: false };
        let taken = Box::pin(self.route(call, submit)).await?.results.pop();
        if let Some(error) = taken.and_then(|result| result.error) {
            return Err(status::of_message(error));
        }
        let wait = v1::WaitPackageRequest { queue: checked.queue, id: checked.id };
        match self.wait_here(call, wait).await {
            Ok(v1::WaitPackageResponse { package, revision }) => Ok(v1::CallPackageResponse { package, revision }),
            // The package was taken, so nothing may say that nothing was done.
            Err(lost) if status::is_no_leader(&lost) => {
                let why = "the package was taken, but the leader that waited for its end is gone";
                Err(Refusal::from(ProposeError::Unknown { why }).into())
            }
            Err(status) => Err(status),
        }
    }
}

/// A package's key, checked.
fn key(queue: &str, id: &str) -> Result<QueueName, Refusal> {
    let mut problems = Problems::default();
    let name = QueueName::parse(queue);
    if let Err(error) = &name {
        problems.bad(At::Top, "queue", error);
    }
    problems.id(At::Top, id);
    problems.check()?;
    name.map_err(|_| Refusal::Internal("a bad queue name passed its check"))
}

impl Rpc for v1::GetPackageRequest {
    type Answer = v1::GetPackageResponse;
    const PATH: &'static str = "/wharf.v1.PackageService/GetPackage";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        if self.stale_ok { Place::Anybody } else { Place::LeaderRead }
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let queue = key(&self.queue, &self.id)?;
        let (view, revision) =
            core.read(self.stale_ok, call, |machine| machine.package(queue.as_str(), &self.id)).await?;
        let package = Some(convert::package(&view?, self.with_payload));
        Ok(v1::GetPackageResponse { package, revision: revision.0 })
    }
}

/// Waits for the wake-up; says that it is time to look again.
pub(super) async fn wait(mut waiter: Waiter, until: Option<Instant>) -> Result<(), Refusal> {
    let wake = match until {
        Some(until) => tokio::time::timeout_at(until, waiter.woken()).await.map_err(|_| Refusal::Deadline)?,
        None => waiter.woken().await,
    };
    match wake {
        Wake::Look | Wake::Swept(_) => Ok(()),
        Wake::LeaderLost => Err(ProposeError::NotLeader { leader: None }.into()),
    }
}

impl Rpc for v1::CancelPackageRequest {
    type Answer = v1::CancelPackageResponse;
    const PATH: &'static str = "/wharf.v1.PackageService/CancelPackage";
    const ACTION: Action = Action::Change;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let cancel = Cancel {
            queue: key(&self.queue, &self.id)?.as_str().to_owned(),
            id: self.id.clone(),
            reason: convert::cut(self.reason.clone(), limits::MAX_MESSAGE_BYTES),
            if_revision: self.if_revision,
        };
        let (package, revision) = changed(core, call, Op::Cancel(cancel)).await?;
        Ok(v1::CancelPackageResponse { package, revision })
    }
}

impl Rpc for v1::RetryPackageRequest {
    type Answer = v1::RetryPackageResponse;
    const PATH: &'static str = "/wharf.v1.PackageService/RetryPackage";
    const ACTION: Action = Action::Change;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let queue = key(&self.queue, &self.id)?.as_str().to_owned();
        let retry = Retry { queue, id: self.id.clone(), if_revision: self.if_revision };
        let (package, revision) = changed(core, call, Op::Retry(retry)).await?;
        Ok(v1::RetryPackageResponse { package, revision })
    }
}

async fn changed(core: &Core, call: &Call, op: Op) -> Result<(Option<v1::Package>, u64), Refusal> {
    match core.propose(Lane::Settle, op, call).await? {
        (Reply::Package(view), revision) => Ok((Some(convert::package(&view, false)), revision.0)),
        _ => Err(Refusal::Internal("a package's change was answered by something else")),
    }
}

impl Rpc for v1::PurgePackagesRequest {
    type Answer = v1::PurgePackagesResponse;
    const PATH: &'static str = "/wharf.v1.PackageService/PurgePackages";
    const ACTION: Action = Action::Change;

    fn place(&self) -> Place {
        if self.validate_only { Place::LeaderRead } else { Place::Leader }
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        let queue = problems.queue(At::Top, "queue", &self.queue);
        let mut states = Vec::with_capacity(self.states.len());
        for (index, number) in self.states.iter().enumerate() {
            match u32::try_from(*number).ok().and_then(State::from_number) {
                Some(State::Leased) => {
                    problems.bad(At::Top, format_args!("states[{index}]"), "LEASED packages are never purged")
                }
                Some(state) => states.push(state as u32),
                None => problems.bad(At::Top, format_args!("states[{index}]"), "is no state"),
            }
        }
        problems.check()?;
        if self.validate_only {
            let (count, revision) = core.read(false, call, |machine| machine.count_purgeable(&queue, &states)).await?;
            return Ok(v1::PurgePackagesResponse { purged: count?, revision: revision.0 });
        }
        match core.propose(Lane::Settle, Op::Purge(Purge { queue, states }), call).await? {
            (Reply::Sweep(sweep), revision) => {
                let purged = core.swept(sweep, call).await?;
                Ok(v1::PurgePackagesResponse { purged, revision: revision.0 })
            }
            _ => Err(Refusal::Internal("a purge was answered by something else")),
        }
    }
}
