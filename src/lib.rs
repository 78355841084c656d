pub mod config;
pub mod env;
pub mod machine;
pub mod node;
pub mod proto;
pub mod raft;
pub mod telemetry;
pub mod types;
