//! Child processes of a test: killed, frozen and continued at will, their logs kept.
//!
//! Invariant: no child outlives the test. It is killed when its [`Process`] is dropped, and by the
//! kernel when the thread that started it ends; so start children from the test's own thread, never
//! from a pool whose threads come and go.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};

/// A running or ended child.
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    pid: Pid,
}

impl Process {
    /// Starts `program`; what it prints is appended to `log`.
    pub fn start<A: AsRef<OsStr>, E: AsRef<OsStr>>(
        name: impl Into<String>,
        log: &Path,
        program: &Path,
        args: impl IntoIterator<Item = A>,
        env: impl IntoIterator<Item = (E, E)>,
    ) -> io::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(args).envs(env);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
        let parent = getpid();
        // SAFETY: runs in the child between fork and exec, and makes two system calls, which are
        // async-signal-safe; it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have died before the call above.
                if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
            });
        }
        let child = command.spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { name: name.into(), log: log.to_owned(), child, pid })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// False once it ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL; returns once it is gone.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// SIGSTOP.
    pub fn freeze(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM: go in good order.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Waits for its end.
    pub async fn wait(&mut self, within: Duration) -> io::Result<ExitStatus> {
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{} still runs after {within:?}; its log ends with\n{}", self.name, self.log_tail(20)),
            )),
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text =
            std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let from = text.lines().count().saturating_sub(lines);
        text.lines().skip(from).map(|line| format!("  {}| {line}\n", self.name)).collect()
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        // An id that was reaped may be another process by now.
        if self.child.id().is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(kill_process(self.pid, signal)?)
    }
}
