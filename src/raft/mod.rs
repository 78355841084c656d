//! The openraft adapter.

pub mod handle;
pub mod types;

pub use handle::Handle;
