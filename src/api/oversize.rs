//! Messages that are larger than a listener takes. The transport refuses them before a service sees
//! them, in its own words; here the refusal gets its reason.

use axum::response::Response;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::util::MapResponseLayer;

use super::status::Refusal;

/// Whether the transport refused what the client sent for its size.
pub fn is_oversize(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("decoded message length too large")
}

/// The same services, whose unary calls name the reason.
pub fn named(routes: Routes) -> Routes {
    Routes::from(routes.into_axum_router().layer(MapResponseLayer::new(name)))
}

fn name(response: Response) -> Response {
    match Status::from_header_map(response.headers()) {
        Some(status) if is_oversize(&status) => Status::from(Refusal::Oversize).into_http(),
        _ => response,
    }
}
