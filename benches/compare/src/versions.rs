//! What a figure depends on, so that it can be read later: programs, kernel, processors, disk.

use std::fs;

use anyhow::Result;
use tokio::process::Command;

use crate::tree::Tree;
use crate::wharf::Wharf;

const UNKNOWN: &str = "unknown";

/// Name and version. What this machine does not tell is called unknown.
pub async fn all(tree: &Tree, wharf: Option<&Wharf>) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    if let Some(wharf) = wharf {
        let said = wharf.version().await?;
        found.push(("wharf", said.strip_prefix("wharf ").unwrap_or(&said).to_owned()));
    }
    let rustc = said("rustc", &["--version"]).await;
    found.push(("rustc", rustc.strip_prefix("rustc ").unwrap_or(&rustc).to_owned()));
    found.push(("kernel", read("/proc/sys/kernel/osrelease")));
    found.push(("cpus", std::thread::available_parallelism().map_or(UNKNOWN.to_owned(), |count| count.to_string())));
    found.push(("cpu model", cpu_model(&read("/proc/cpuinfo"))));
    // Above zero: somebody else's work is in the figures.
    found.push(("load before", read("/proc/loadavg").split(' ').next().unwrap_or(UNKNOWN).to_owned()));
    let peers = tree.versions()?;
    Ok(peers.into_iter().chain(found.into_iter().map(|(name, version)| (name.to_owned(), version))).collect())
}

async fn said(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output().await {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or(UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or(UNKNOWN.to_owned(), |(_, model)| model.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"), "Some CPU @ 2 GHz");
        assert_eq!(cpu_model("processor: 0"), UNKNOWN);
    }
}
