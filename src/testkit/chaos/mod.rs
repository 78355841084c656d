//! Real processes under fire: a cluster, its clients and workers, and faults by seed.
//!
//! `wharf chaos` draws a [`plan`], lays the [`ground`] (a network namespace, a file system and a clock for every node,
//! as far as this machine allows), lets everybody suffer ([`run`]), heals all and demands that all work comes to its
//! end. What was seen is kept as a folder, and [`judge`]d from that folder alone: `wharf chaos check DIR` comes to the
//! same verdict on any machine.
//!
//! Invariants: a fault counts only with evidence that it landed; a kind that was planned and never landed makes the run
//! inconclusive; what cannot be done here is told with why, and never counted. Nothing of the machine is changed that
//! does not go with the process.

pub mod errands;
pub mod faults;
pub mod ground;
pub mod judge;
pub mod links;
pub mod mutations;
pub mod plan;
pub mod power;
pub mod run;
