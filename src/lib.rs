pub mod client;
pub mod env;
pub mod machine;
pub mod proto;
pub mod raft;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod types;
