pub mod api;
pub mod dispatch;
pub mod env;
pub mod machine;
pub mod proto;
pub mod raft;
pub mod storage;
pub mod types;
