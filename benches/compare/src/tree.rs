//! The Debian tree that `setup` makes, and how programs run in it.
//!
//! Each program is the first process of a namespace of its own: when it is killed, or when this program
//! ends in whatever way, nothing of it is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::proc;

/// Written by `setup` when it is done: a line for each peer, name and version.
const MARK: &str = "etc/wharf-peers";
/// Where the servers of a run keep their data, within the tree.
const DATA: &str = "var/tmp/compare";
const NATS: &str = "usr/sbin/nats-server";
/// A killed program is gone within this.
const GONE_WITHIN: Duration = Duration::from_secs(20);
const RABBIT: &str = "usr/lib/rabbitmq/bin/rabbitmq-server";

#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The error says what to do.
    pub fn open(root: &Path) -> Result<Self> {
        let make = format!("make one: benches/compare/setup {}", root.display());
        if !root.join(MARK).is_file() {
            bail!("{} is no finished tree of the peers; {make}", root.display());
        }
        for program in [NATS, RABBIT] {
            if !root.join(program).exists() {
                bail!("{} lacks {program}; remove it and {make}", root.display());
            }
        }
        if !rustix::process::geteuid().is_root() {
            bail!("must be run as root: the peers run in {} by chroot", root.display());
        }
        Ok(Self { root: root.canonicalize().with_context(|| format!("finding {}", root.display()))? })
    }

    /// Name and version of each peer.
    pub fn versions(&self) -> Result<Vec<(String, String)>> {
        let text = fs::read_to_string(self.root.join(MARK)).context("reading the versions of the peers")?;
        Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
    }

    /// An empty directory for the data of a run.
    pub fn data_dir(&self) -> Result<DataDir> {
        let path = self.root.join(DATA);
        remove(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(DataDir { path })
    }

    /// `program` in the tree. A path of the tree is named as the program will see it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = alone();
        // In the order of unshare: the root first, then /proc in it.
        command.arg(format!("--root={}", self.root.display())).arg("--mount-proc").arg("--").arg(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8");
        command
    }
}

/// `program` of this machine, with the same guarantee that nothing of it is left.
pub fn command_outside(program: &Path) -> Command {
    let mut command = alone();
    command.arg("--mount-proc").arg("--").arg(program);
    command
}

/// Does not outlive this program, nor what it starts itself. The death signal is that of the thread which
/// spawns: `main`'s.
fn alone() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]);
    // A group of its own: Ctrl-C is for this program, which then ends the others.
    command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    command
}

/// Starts such a command.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().context("starting a program needs setpriv and unshare, of util-linux")
}

/// Kills the first process of the namespace: the kernel ends the rest of it, and then `unshare` ends.
pub async fn kill(child: &mut Child) -> Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    for first in proc::children(pid)? {
        if let Some(first) = i32::try_from(first).ok().and_then(Pid::from_raw) {
            // It may have ended by itself.
            let _ = kill_process(first, Signal::KILL);
        }
    }
    match timeout(GONE_WITHIN, child.wait()).await {
        Ok(ended) => ended.map(drop).context("waiting for a killed program"),
        Err(_) => bail!("process {pid} does not end: kill it by hand"),
    }
}

/// Removed with what is in it when it is dropped.
pub struct DataDir {
    path: PathBuf,
}

impl DataDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory, or one below, as programs in the tree see it.
    pub fn inside(&self, below: &str) -> String {
        format!("/{DATA}/{below}")
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tree_is_told_with_the_way_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tree::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("benches/compare/setup"), "{error}");
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join(MARK), "nats-server 2.10.27-1\n").unwrap();
        let error = Tree::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("lacks usr/sbin/nats-server"), "{error}");
        let versions = Tree { root: dir.path().to_owned() }.versions().unwrap();
        assert_eq!(versions, [("nats-server".to_owned(), "2.10.27-1".to_owned())]);
    }

    #[test]
    fn data_is_gone_with_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let data = Tree { root: dir.path().to_owned() }.data_dir().unwrap();
        fs::write(data.path().join("file"), "x").unwrap();
        let path = data.path().to_owned();
        drop(data);
        assert!(!path.exists());
    }
}
