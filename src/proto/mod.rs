//! Generated messages and services. Generated API types stop at `api` and `client`;
//! the internal ones are the bytes that the log, the snapshots and the peers share.

/// The public API, `wharf.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("wharf.v1");
}

/// Peer traffic and stored bytes.
pub mod internal {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("wharf.internal.v1");
}

/// The public API's descriptor set, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("wharf_v1");
