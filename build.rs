//! Generates the gRPC code and descriptor set from `proto/`, without protoc.

use std::path::PathBuf;

const PUBLIC: &[&str] =
    &["wharf/v1/package.proto", "wharf/v1/worker.proto", "wharf/v1/queue.proto", "wharf/v1/cluster.proto"];
const INTERNAL: &[&str] =
    &["wharf/internal/v1/stored.proto", "wharf/internal/v1/snapshot.proto", "wharf/internal/v1/peer.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    // Reflection shows the public API only.
    let public = protox::compile(PUBLIC, ["proto"])?;
    std::fs::write(out.join("wharf_v1.bin"), prost::Message::encode_to_vec(&public))?;

    let all = protox::compile(PUBLIC.iter().chain(INTERNAL), ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(all)?;
    Ok(())
}
