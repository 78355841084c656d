//! A node that owes an answer and is silent: the others are asked who leads.

use super::*;
use crate::proto::v1::cluster_service_server::ClusterService;
use crate::proto::v1::{
    AddMemberRequest, AddMemberResponse, FingerprintRequest, FingerprintResponse, GetStatusRequest, GetStatusResponse,
    PromoteMemberRequest, PromoteMemberResponse, RemoveMemberRequest, RemoveMemberResponse, SafeToStopRequest,
    SafeToStopResponse, SetClusterRequest, SetClusterResponse, TakeSnapshotRequest, TakeSnapshotResponse,
    TransferLeadershipRequest, TransferLeadershipResponse,
};
use crate::types::limits;

/// Less than a silent node is given if nobody replaced it.
const QUICKLY: Duration = Duration::from_millis(limits::CLIENT_SILENCE_MS - 500);

/// What a client asks about leaders, and nothing else.
#[tonic::async_trait]
impl ClusterService for FakeNode {
    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let leader_client_addr = self.leader.lock().clone().unwrap_or_default();
        Ok(Response::new(GetStatusResponse { term: 2, leader_client_addr, ..Default::default() }))
    }

    async fn transfer_leadership(
        &self,
        _: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn take_snapshot(&self, _: Request<TakeSnapshotRequest>) -> Result<Response<TakeSnapshotResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn fingerprint(&self, _: Request<FingerprintRequest>) -> Result<Response<FingerprintResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn set_cluster(&self, _: Request<SetClusterRequest>) -> Result<Response<SetClusterResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn add_member(&self, _: Request<AddMemberRequest>) -> Result<Response<AddMemberResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn promote_member(
        &self,
        _: Request<PromoteMemberRequest>,
    ) -> Result<Response<PromoteMemberResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn remove_member(&self, _: Request<RemoveMemberRequest>) -> Result<Response<RemoveMemberResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn safe_to_stop(&self, _: Request<SafeToStopRequest>) -> Result<Response<SafeToStopResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// A node that is silent, another one that says who leads, and a client that asks the silent one first.
async fn silent_and_other() -> (Fake, Fake, Client) {
    let (silent, other) = (Fake::start().await, Fake::start().await);
    silent.node.mute.send_replace(true);
    let client = Client::builder(&format!("{},{}", silent.addr, other.addr)).timeout(SOON).build().expect("addresses");
    (silent, other, client)
}

#[tokio::test]
async fn a_silent_node_is_left_as_soon_as_another_leads() {
    let (silent, other, client) = silent_and_other().await;
    *other.node.leader.lock() = Some(other.addr.clone());
    let submitter = client.submitter().build();
    let ticket = submitter.submit(NewPackage::new("jobs", "streamed")).await.expect("taken");
    tokio::time::timeout(QUICKLY, ticket).await.expect("long before it counts as dead").expect("confirmed");
    assert_eq!(other.node.submits.load(Ordering::Relaxed), 1);
    assert_eq!(silent.node.submits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_call_leaves_it_too() {
    let (_silent, other, client) = silent_and_other().await;
    *other.node.leader.lock() = Some(other.addr.clone());
    let submitted = client.submit(NewPackage::new("jobs", "called"));
    tokio::time::timeout(QUICKLY, submitted).await.expect("long before it counts as dead").expect("confirmed");
    assert_eq!(other.node.submits.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_leader_that_is_only_slow_keeps_its_callers() {
    let (slow, other, client) = silent_and_other().await;
    *other.node.leader.lock() = Some(slow.addr.clone());
    let submitter = client.submitter().build();
    let ticket = submitter.submit(NewPackage::new("jobs", "patient")).await.expect("taken");
    let asked = || async { (other.node.asked.load(Ordering::Relaxed) >= 3).then_some(()) };
    crate::testkit::wait::until("the other to be asked", QUICKLY, asked).await.expect("it is asked");
    slow.node.mute.send_replace(false);
    ticket.await.expect("confirmed");
    assert_eq!(other.node.submits.load(Ordering::Relaxed), 0);
    assert_eq!(slow.node.submits.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_worker_without_an_answer_to_its_ping_goes_where_another_leads() {
    let (mut silent, mut other, client) = silent_and_other().await;
    let run = tokio::spawn(client.worker(["jobs"]).run(|_| async { Ok::<_, Failure>(()) }));
    // Its pings stay unread, so unanswered.
    let mut stream = silent.stream().await;
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    *other.node.leader.lock() = Some(other.addr.clone());
    let mut stream = tokio::time::timeout(QUICKLY, other.stream()).await.expect("long before it counts as dead");
    let hello = stream.hello().await;
    stream.welcome(&hello, &[]).await;
    stream.tell(Tell::EndOfWork(EndOfWork { queue: "jobs".into() })).await;
    run.await.expect("no panic").expect("it ends with the work");
}
