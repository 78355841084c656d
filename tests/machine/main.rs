//! The pure state machine from outside: stories, commands, laws, stored bytes.
//!
//! - `scripts/commands/*`: one golden script for each command.
//! - `scripts/stories/*`: what users live through, from the promises in README.md.
//! - `limits`: each limit of the machine is hit and answers by its name.
//! - `random`: random operations against a reference model that scans everything.
//! - `fairness`: equal workers end equal.
//! - `fixtures`: bytes stored once must decode for ever.
//!
//! Every step of every script and of every random run is followed by the machine's own `check`,
//! and every run ends with the law of replay: the log from scratch, and from a snapshot taken at
//! many places of it, gives the same state hashes, answers and effects.

mod build;
mod dialect;
mod fairness;
mod fixtures;
mod follower;
mod limits;
mod model;
mod mutants;
mod random;
mod render;
mod scripts;
mod stage;
