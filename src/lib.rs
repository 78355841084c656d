//! Wharf: a coordinator cluster for work. `docs/ARCHITECTURE.md` is the map, with its reasons.

/// HTTP for operators: health, metrics, statistics.
pub mod admin;
/// gRPC services: authorize, validate, convert, call.
pub mod api;
/// The command line.
pub mod cli;
/// The SDK: `Client` and `Worker`.
pub mod client;
/// One node's configuration, read once.
pub mod config;
/// The leader's live worker streams.
pub mod dispatch;
/// The wall clock, sockets and randomness, injected.
pub mod env;
/// What became of packages, kept for people to look up.
pub mod history;
/// The truth: a pure state machine.
pub mod machine;
/// One node, put together.
pub mod node;
/// Generated messages and services.
pub mod proto;
/// openraft's adapter.
pub mod raft;
/// The log, snapshots and identity, on an injected disk.
pub mod storage;
/// Names of fields and metrics; log set-up.
pub mod telemetry;
/// For tests: proxies, histories, checkers, process clusters.
#[cfg(feature = "testkit")]
pub mod testkit;
/// Ids, times, names, limits.
pub mod types;
