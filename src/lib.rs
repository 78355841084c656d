pub mod client;
pub mod env;
pub mod machine;
pub mod proto;
pub mod raft;
pub mod storage;
pub mod types;
