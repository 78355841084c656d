//! One room for each family of commands. Each handler checks everything first, then changes.

mod cluster;
mod package;
mod queue;
mod session;
mod settle;
mod submit;
