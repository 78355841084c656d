//! The openraft adapter.

pub mod handle;
pub mod log_store;
pub mod types;

pub use handle::Handle;
