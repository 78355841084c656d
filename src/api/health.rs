//! gRPC health and reflection, on the client listener.

use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::proto::DESCRIPTOR_SET;
use crate::raft::handle::Standing;

/// The node as a whole, and each service by name.
const SERVICES: [&str; 5] =
    ["", "wharf.v1.PackageService", "wharf.v1.WorkerService", "wharf.v1.QueueService", "wharf.v1.ClusterService"];

/// Adds health and reflection (v1 and v1alpha).
pub fn mount(routes: Routes, reporter: &HealthReporter) -> Routes {
    let mut routes = routes.add_service(HealthServer::new(HealthService::from_health_reporter(reporter.clone())));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // The descriptors are made by the build; if they cannot be read, calls still can be served.
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "no reflection: unreadable descriptors"),
    }
    routes
}

/// Serving means that a call sent here can be answered: this node leads or knows who does.
pub async fn follow(reporter: &HealthReporter, mut standing: watch::Receiver<Standing>) {
    loop {
        let serves = {
            let standing = standing.borrow_and_update();
            standing.leading.is_some() || standing.leader.is_some()
        };
        set(reporter, if serves { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        if standing.changed().await.is_err() {
            return;
        }
    }
}

pub async fn not_serving(reporter: &HealthReporter) {
    set(reporter, ServingStatus::NotServing).await;
}

async fn set(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}
