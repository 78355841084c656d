//! Wharf, by its own `wharf bench`: the same workload, said in flags.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use crate::figures::Figures;
use crate::interrupt::Interrupt;
use crate::mode::Workload;
use crate::tree::{self, DataDir};

/// The end of what it said that an error shows.
const TAIL_LINES: usize = 12;

#[derive(Clone, Debug)]
pub struct Wharf {
    program: PathBuf,
}

impl Wharf {
    pub fn open(program: &Path) -> Result<Self> {
        let program = program
            .canonicalize()
            .with_context(|| format!("finding {}: build it with cargo build --profile dist", program.display()))?;
        Ok(Self { program })
    }

    pub async fn version(&self) -> Result<String> {
        let output = Command::new(&self.program).arg("--version").output().await;
        let output = output.with_context(|| format!("running {}", self.program.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs it; its servers keep their data in `data`.
    pub async fn run(&self, workload: Workload, data: &DataDir, interrupt: &mut Interrupt) -> Result<Figures> {
        let flags = flags(workload);
        let said = || format!("{} {}", self.program.display(), flags.join(" "));
        let mut command = tree::command_outside(&self.program);
        // Into files: whoever was interrupted reads them no more.
        let (out, log) = (data.path().join("bench.json"), data.path().join("bench.log"));
        let create = |path: &Path| File::create(path).with_context(|| format!("making {}", path.display()));
        command.args(&flags).env("TMPDIR", data.path()).stdout(create(&out)?).stderr(create(&log)?);
        let mut child = tree::spawn(&mut command)?;
        let status = tokio::select! {
            status = child.wait() => status.with_context(said)?,
            signal = interrupt.told() => {
                tree::kill(&mut child).await?;
                bail!(signal);
            }
        };
        if !status.success() {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
            bail!("`{}` failed ({status}):\n  {tail}", said());
        }
        let json = fs::read(&out).with_context(said)?;
        serde_json::from_slice(&json).with_context(|| format!("`{}` did not say JSON", said()))
    }
}

fn flags(workload: Workload) -> Vec<String> {
    let mut flags = vec!["bench".to_owned(), "--json".to_owned()];
    let mut flag = |name: &str, value: String| flags.extend([format!("--{name}"), value]);
    flag("payload", workload.payload_bytes.to_string());
    flag("queues", workload.queues.to_string());
    flag("producers", workload.producers.to_string());
    flag("consumers", workload.consumers.to_string());
    flag("window", workload.window.to_string());
    flag("prefetch", workload.prefetch.to_string());
    match workload.rate {
        0 => flag("count", workload.count.to_string()),
        rate => {
            flag("rate", rate.to_string());
            flag("duration", format!("{}s", workload.count / rate));
        }
    }
    for (set, name) in [(workload.backlog, "backlog"), (workload.kill, "kill-leader"), (workload.single, "single")] {
        flags.extend(set.then(|| format!("--{name}")));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::{Mode, Size};

    #[test]
    fn a_workload_is_said_in_flags() {
        let said = |mode: Mode| flags(mode.workload(Size::default())).join(" ");
        let common = "--payload 256 --queues 1 --producers 4 --consumers 4 --window 512 --prefetch 256";
        assert_eq!(said(Mode::Cycle), format!("bench --json {common} --count 200000"));
        assert_eq!(said(Mode::Drain), format!("bench --json {common} --count 300000 --backlog"));
        assert_eq!(said(Mode::Rate1000), format!("bench --json {common} --rate 1000 --duration 14s"));
        assert_eq!(said(Mode::Kill), format!("bench --json {common} --rate 1000 --duration 14s --kill-leader"));
        assert!(said(Mode::Single).ends_with("--count 200000 --single"));
    }

    #[test]
    fn a_missing_program_is_told() {
        let error = Wharf::open(Path::new("/nowhere/wharf")).unwrap_err();
        assert!(error.to_string().contains("cargo build"), "{error}");
    }
}
