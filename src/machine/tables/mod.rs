//! The containers of the state. Each iterates in an order that is part of the state, or not at all.

pub mod fifo;
pub mod ids;
pub mod ordered;
pub mod ready;
pub mod slab;

pub use fifo::Fifo;
pub use slab::Slab;
