//! What tests are built from: links that can be cut, recorded histories and the checkers that judge
//! them, clusters of real processes, and workloads. Behind the cargo feature `testkit`; never in
//! what users install.
//!
//! A test records what clients and workers saw ([`history`]), lets a cluster suffer ([`cluster`],
//! [`proxy`]) under load ([`workload`]), and hands the history to [`checkers`]. What was planned and
//! did not happen makes a run inconclusive, not green.

pub mod chaos;
pub mod checkers;
pub mod cluster;
pub mod history;
pub mod mutants;
pub mod proxy;
pub mod sim;
pub mod verbs;
pub mod wait;
pub mod workload;
