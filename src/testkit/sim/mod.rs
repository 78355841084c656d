//! Whole clusters in a simulated world: network, disks, clocks and randomness come from a seed.
//!
//! `wharf sim --seed N` draws a [`plan`] of faults from the seed and carries it out ([`run`]): three or five nodes
//! as they ship, with the SDK's producers and workers, suffer for a while; then all is healed, and everything must
//! come to its end. What was seen is judged by the checkers, as a run of real processes is.
//!
//! Invariants: one run a process (`entropy`), one thread, no real time; the same seed gives the same bytes. A
//! fault that did not land is told, and nothing is judged by how long the machine took.

pub mod entropy;
pub mod faults;
pub mod plan;
pub mod report;
pub mod run;
pub mod seeds;
pub mod stage;
pub mod world;
