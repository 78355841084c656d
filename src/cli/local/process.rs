//! A child process of this program's own kind.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use crate::config;

/// A running child. Killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Runs `program`, which is of this program's kind, appending all it writes to `log`.
    ///
    /// The kernel kills it when the calling thread ends: call from a thread that lives as long as
    /// the child should, such as a runtime's worker or the main thread.
    pub fn spawn<A: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = A>,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(args);
        Self::of_this_kind(command, log)
    }

    /// The same for a command that becomes such a program.
    pub fn of_this_kind(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        command.args(["--die-with", &std::process::id().to_string()]);
        Self::start(command, log)
    }

    /// Runs any other command. It must see to it itself that it does not outlive its parent.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let log_file = OpenOptions::new().create(true).append(true).open(log);
        let log_file = log_file.with_context(|| format!("cannot write {}", log.display()))?;
        for key in config::KEYS {
            command.env_remove(config::env_name(key));
        }
        command.env_remove("WHARF_CONFIG").stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
        let child = command.process_group(0).kill_on_drop(true).spawn();
        let child = child.with_context(|| format!("cannot run {}", command.as_std().get_program().display()))?;
        Ok(Self { child })
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(mut self) -> std::io::Result<()> {
        self.child.kill().await
    }

    /// SIGTERM.
    pub fn terminate(&self) -> std::io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> std::io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> std::io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// What it has used of the machine so far.
    pub fn usage(&self) -> std::io::Result<Usage> {
        let pid = self.child.id().ok_or_else(|| std::io::Error::other("the process has ended"))?;
        Usage::read(&pid.to_string())
    }

    /// Its number, until it was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end. None: it still runs.
    pub async fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(within, self.child.wait()).await.ok()?.ok()
    }

    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        // None: it was waited for, and its number may be another process's by now.
        let gone = || std::io::Error::other("the process has ended");
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid as i32)).ok_or_else(gone)?;
        Ok(kill_process(pid, signal)?)
    }
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of all its threads since it began, in user and system mode.
    pub cpu: Duration,
    /// Resident.
    pub memory_bytes: u64,
}

impl Usage {
    /// What this process has used.
    pub fn own() -> std::io::Result<Self> {
        Self::read("self")
    }

    fn read(pid: &str) -> std::io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, in parentheses, may hold anything; after it each field is one word.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
        let tick = rustix::param::clock_ticks_per_second().max(1);
        Ok(Self {
            cpu: Duration::from_micros((number(11) + number(12)) * 1_000_000 / tick),
            memory_bytes: number(21) * rustix::param::page_size() as u64,
        })
    }
}

/// The kernel ends this process with its parent, however that dies. For the child to call.
pub fn die_with(parent: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died before the line above.
    let alive = getppid().is_some_and(|pid| pid.as_raw_nonzero().get() == parent);
    anyhow::ensure!(alive, "process {parent}, which started this one, is gone");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A shell takes `--die-with` as parameters of its script.
    fn shell(script: &str, log: &Path) -> Process {
        Process::spawn(Path::new("/bin/sh"), ["-c", script], log).unwrap()
    }

    #[tokio::test]
    async fn a_child_can_be_ended_in_each_way() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");

        let mut polite = shell("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done", &log);
        while !std::fs::read_to_string(&log).unwrap().contains("up") {
            tokio::task::yield_now().await;
        }
        assert!(polite.has_ended().is_none());
        let usage = polite.usage().unwrap();
        assert!((100_000..1 << 30).contains(&usage.memory_bytes) && usage.cpu < SOON, "{usage:?}");
        polite.terminate().unwrap();
        assert_eq!(polite.ended(SOON).await.and_then(|status| status.code()), Some(7));
        assert!(polite.terminate().is_err(), "it is gone");
        assert!(std::fs::read_to_string(&log).unwrap().contains("bye"));

        let mut frozen = shell("exec sleep 600", &log);
        frozen.freeze().unwrap();
        let stat = format!("/proc/{}/stat", frozen.child.id().unwrap());
        while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
            tokio::task::yield_now().await;
        }
        frozen.terminate().unwrap();
        assert!(frozen.ended(Duration::from_millis(50)).await.is_none(), "the frozen do not hear");
        frozen.thaw().unwrap();
        assert_eq!(frozen.ended(SOON).await.and_then(|status| status.signal()), Some(15));

        shell("trap '' TERM; exec sleep 600", &log).kill().await.unwrap();
    }
}
