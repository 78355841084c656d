//! Whole nodes in a simulated world: network, disk, clock and randomness come from a seed.
//!
//! A failure prints its seed; `WHARF_SEED=… cargo test --release --test sim` runs it again.

mod elsewhere;
mod mutants;
mod node;
mod raft;
mod seeds;
