//! What the nodes of a run stand on: hosts of their own, as far as this machine and its user allow.
//!
//! At best every node has a network namespace on one bridge, a small file system of its own and a clock that can be
//! set. All of it belongs to the namespaces of the run's own process, and is gone with it. What is missing is told by
//! kind of fault, with why ([`Ground::lacking`]).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use super::links::Inbound;
use super::plan::Kind;
use super::power;
use crate::cli::local::Host;
use crate::storage::disk::failing;
use crate::types::NodeId;
use crate::types::limits::DISK_RESERVE_BYTES;

/// Tells a process that it runs in namespaces of its own, and as whom.
const INSIDE: &str = "WHARF_CHAOS_INSIDE";
/// A node's file system: what the node keeps free, and some room.
const DISK_BYTES: u64 = DISK_RESERVE_BYTES + (256 << 20);
const SWITCH: &str = "switch0";
const FAKETIME: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// Where all clients are.
pub const CLIENTS: &str = "10.66.0.254";

/// Where a node is.
pub fn addr(node: NodeId) -> String {
    format!("10.66.0.{node}")
}

fn namespace(node: NodeId) -> String {
    format!("node-{node}")
}

/// Begins this process anew in namespaces of its own, where that is possible. Returns if it is not, or was done.
pub fn enter() -> anyhow::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let ways: [(&str, &[&str]); 2] = [
        ("root", &["--net", "--mount", "--propagation", "private"]),
        ("user", &["--user", "--map-root-user", "--net", "--mount", "--propagation", "private"]),
    ];
    for (who, flags) in ways {
        let probe = Command::new("unshare").args(flags).arg("true").stderr(Stdio::null()).status();
        if probe.is_ok_and(|status| status.success()) {
            let mut again = Command::new("unshare");
            again.args(flags).arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, who);
            return Err(again.exec()).context("cannot run unshare");
        }
    }
    Ok(())
}

/// See the module.
pub struct Ground {
    dir: PathBuf,
    nodes: Vec<NodeId>,
    network: bool,
    /// Where each node's own file system is mounted.
    disks: BTreeMap<NodeId, PathBuf>,
    faketime: Option<PathBuf>,
    memory: Option<Memory>,
    lacking: BTreeMap<Kind, String>,
}

const LINKS: [Kind; 9] = {
    use Kind::*;
    [Single, Halves, Pair, Ring, Bridge, Clients, OneWay, Loss, Reset]
};

impl Ground {
    /// Lays it for these nodes below `dir`. With `loopback` nothing is tried that needs more than a user has.
    pub fn lay(dir: &Path, nodes: &[NodeId], loopback: bool) -> anyhow::Result<Self> {
        let mut ground = Self {
            dir: dir.to_owned(),
            nodes: nodes.to_vec(),
            network: false,
            disks: BTreeMap::new(),
            faketime: FAKETIME.map(PathBuf::from).into_iter().find(|file| file.exists()),
            memory: None,
            lacking: BTreeMap::new(),
        };
        let inside = std::env::var(INSIDE).ok().filter(|_| !loopback);
        match &inside {
            None => ground.lack(&LINKS, "needs namespaces: run as root, or allow user namespaces"),
            Some(_) => match ground.lay_network() {
                Ok(()) => ground.network = true,
                Err(error) => ground.lack(&LINKS, &format!("{error:#}")),
            },
        }
        match &inside {
            None => ground.lack(&[Kind::FullDisk], "needs a mount namespace: run as root, or allow user namespaces"),
            Some(who) => {
                if let Err(error) = ground.lay_disks(who == "root") {
                    ground.lack(&[Kind::FullDisk, Kind::PowerLoss], &format!("{error:#}"));
                }
            }
        }
        if inside.as_deref() != Some("root") {
            ground.lack(&[Kind::PowerLoss], "needs loop devices: run as root");
        }
        if ground.faketime.is_none() {
            ground.lack(&[Kind::ClockStep], "needs libfaketime (Debian's package libfaketime)");
        }
        match Memory::find() {
            Some(memory) if inside.is_some() => ground.memory = Some(memory),
            _ => ground.lack(&[Kind::Memory], "needs to make control groups: run as root"),
        }
        Ok(ground)
    }

    fn lack(&mut self, kinds: &[Kind], why: &str) {
        self.lacking.extend(kinds.iter().map(|kind| (*kind, why.to_owned())));
    }

    /// Kinds of faults that cannot be done here, with why.
    pub fn lacking(&self) -> &BTreeMap<Kind, String> {
        &self.lacking
    }

    /// On what kind of file systems the nodes' data are.
    pub fn disk(&self) -> &'static str {
        match (self.disks.is_empty(), std::env::var(INSIDE).as_deref()) {
            (true, _) => "the machine's own file system",
            (false, Ok("root")) => "ext4 on loop devices",
            _ => "tmpfs: in memory, where a sync means nothing",
        }
    }

    /// Where each node is.
    pub fn hosts(&self) -> BTreeMap<NodeId, Host> {
        self.nodes.iter().map(|node| (*node, self.host(*node))).collect()
    }

    fn host(&self, node: NodeId) -> Host {
        let mut env: Vec<(String, OsString)> = vec![(failing::VARIABLE.into(), self.syncs_fail_file(node).into())];
        if let Some(library) = &self.faketime {
            env.extend(faketime(library, &self.clock_file(node)));
        }
        let enter = format!("--net=/run/netns/{}", namespace(node));
        Host {
            ip: if self.network { addr(node) } else { "127.0.0.1".into() },
            enter: if self.network { vec!["nsenter".into(), enter.into()] } else { Vec::new() },
            env,
            data_below: self.disks.get(&node).cloned(),
        }
    }

    fn lay_network(&self) -> anyhow::Result<()> {
        // Namespaces get their names there; the machine's own stay as they are.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", SWITCH, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{CLIENTS}/24"), "dev", SWITCH])?;
        run("ip", &["link", "set", SWITCH, "up"])?;
        for node in &self.nodes {
            let (space, port) = (namespace(*node), format!("port{node}"));
            run("ip", &["netns", "add", &space])?;
            run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            run("ip", &["link", "set", &port, "master", SWITCH, "up"])?;
            run("ip", &["-n", &space, "addr", "add", &format!("{}/24", addr(*node)), "dev", "eth0"])?;
            run("ip", &["-n", &space, "link", "set", "eth0", "up"])?;
            run("ip", &["-n", &space, "link", "set", "lo", "up"])?;
            self.filter(*node, &Inbound::default())?;
        }
        Ok(())
    }

    /// Has the node hear only what `inbound` leaves.
    pub fn filter(&self, node: NodeId, inbound: &Inbound) -> anyhow::Result<()> {
        let mut rules = String::from("table ip chaos {}\ndelete table ip chaos\ntable ip chaos {\n");
        rules += " counter deaf {}\n counter lossy {}\n counter torn {}\n";
        rules += " chain input {\n  type filter hook input priority 0;\n  iif lo accept\n";
        if !inbound.deaf.is_empty() {
            rules += &format!(
                "  ip saddr {{ {} }} counter name deaf drop\n",
                inbound.deaf.iter().cloned().collect::<Vec<_>>().join(", ")
            );
        }
        if inbound.reset {
            rules += "  ip protocol tcp counter name torn reject with tcp reset\n";
        }
        if let Some(percent) = inbound.lossy {
            rules += &format!("  numgen random mod 100 < {percent} counter name lossy drop\n");
        }
        rules += " }\n}\n";
        self.nft(node, &["-f", "-"], &rules).map(drop)
    }

    /// Packets that the node's filter took so far, since it was last changed.
    pub fn filtered(&self, node: NodeId, counter: &str) -> anyhow::Result<u64> {
        let told = self.nft(node, &["list", "counter", "ip", "chaos", counter], "")?;
        let packets = told.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|packets| packets.parse().ok()).with_context(|| format!("nft says {told:?}"))
    }

    fn nft(&self, node: NodeId, args: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", namespace(node))).arg("nft").args(args);
        feed(command, input)
    }

    fn lay_disks(&mut self, root: bool) -> anyhow::Result<()> {
        for node in self.nodes.clone() {
            let disk = self.dir.join("disks").join(node.to_string());
            std::fs::create_dir_all(&disk)?;
            let target = disk.to_str().context("the folder's name must be UTF-8")?;
            if root {
                let image = disk.with_extension("img");
                std::fs::File::create(&image)?.set_len(DISK_BYTES)?;
                let image = image.to_str().context("the folder's name must be UTF-8")?;
                run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1,nodiscard", image])?;
                run("mount", &["-o", "loop", image, target])?;
            } else {
                run("mount", &["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "tmpfs", target])?;
            }
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o700))?;
            self.disks.insert(node, disk);
        }
        Ok(())
    }

    /// The power of these nodes' disks fails: nothing more gets there, and what no sync had put there is lost.
    pub fn cut_power(&self, nodes: &[NodeId]) -> anyhow::Result<()> {
        for node in nodes {
            power::cut(self.disk_of(*node)?)?;
        }
        Ok(())
    }

    /// The power is back; nobody may have a file open.
    pub fn restore_power(&self, nodes: &[NodeId]) -> anyhow::Result<()> {
        for node in nodes {
            let disk = self.disk_of(*node)?;
            let image = disk.with_extension("img");
            let [image, disk] = [&image, disk].map(|path| path.to_str().unwrap_or_default());
            run("umount", &[disk])?;
            run("mount", &["-o", "loop", image, disk])?;
        }
        Ok(())
    }

    fn disk_of(&self, node: NodeId) -> anyhow::Result<&PathBuf> {
        self.disks.get(&node).context("the node has no file system of its own")
    }

    /// Takes all room on the node's file system; answers how many bytes are left.
    pub fn fill(&self, node: NodeId) -> anyhow::Result<u64> {
        let disk = self.disk_of(node)?;
        let ballast = std::fs::File::create(disk.join("ballast"))?;
        let free = || rustix::fs::statvfs(disk).map(|stat| stat.f_bavail * stat.f_frsize);
        // What the node writes meanwhile may make one try too large.
        let mut length = 0;
        for _ in 0..64 {
            let left = free()?;
            if left == 0 {
                break;
            }
            match rustix::fs::fallocate(
                &ballast,
                rustix::fs::FallocateFlags::empty(),
                length,
                left.div_ceil(2).max(4096),
            ) {
                Ok(()) => length = std::os::unix::fs::MetadataExt::size(&ballast.metadata()?),
                Err(rustix::io::Errno::NOSPC) => {}
                Err(error) => return Err(error).context("cannot fill the node's disk"),
            }
        }
        Ok(free()?)
    }

    /// Gives the room back.
    pub fn empty(&self, node: NodeId) -> anyhow::Result<()> {
        let disk = self.disk_of(node)?;
        match std::fs::remove_file(disk.join("ballast")) {
            // It was lost with the power.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// While it is there, the node's syncs fail.
    pub fn syncs_fail_file(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("syncs-of-{node}-fail"))
    }

    fn clock_file(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("clock-of-{node}"))
    }

    /// The node's wall clock is wrong by so much from now on; answers by how many seconds it was seen to be.
    pub fn step_clock(&self, node: NodeId, by_ms: i64) -> anyhow::Result<i64> {
        let library = self.faketime.as_ref().context("there is no libfaketime")?;
        let file = self.clock_file(node);
        // Whole, or it might be read half.
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{:+}.{:03}\n", by_ms / 1_000, by_ms.unsigned_abs() % 1_000))?;
        std::fs::rename(&new, &file)?;
        let mut date = Command::new("date");
        date.arg("+%s").envs(faketime(library, &file));
        let seen: i64 = feed(date, "")?.trim().parse()?;
        let now: i64 = feed(plain_date(), "")?.trim().parse()?;
        Ok(seen - now)
    }

    /// The process takes at most so much memory from now on; None: any. Answers how often it was held back so far.
    pub fn limit_memory(&self, node: NodeId, pid: Option<u32>, bytes: Option<u64>) -> anyhow::Result<u64> {
        let memory = self.memory.as_ref().context("there are no control groups")?;
        memory.limit(&namespace(node), pid, bytes)
    }

    /// Unmounts the nodes' file systems and forgets their images.
    pub fn clear(mut self, keep: bool) -> anyhow::Result<()> {
        for disk in std::mem::take(&mut self.disks).into_values() {
            run("umount", &["-l", disk.to_str().unwrap_or_default()])?;
        }
        if !keep {
            let disks = self.dir.join("disks");
            if disks.exists() {
                std::fs::remove_dir_all(disks)?;
            }
        }
        Ok(())
    }
}

fn plain_date() -> Command {
    let mut date = Command::new("date");
    date.arg("+%s");
    date
}

/// What a process needs in its environment to see the time that `file` names.
fn faketime(library: &Path, file: &Path) -> Vec<(String, OsString)> {
    vec![
        ("LD_PRELOAD".into(), library.into()),
        ("FAKETIME_TIMESTAMP_FILE".into(), file.into()),
        ("FAKETIME_CACHE_DURATION".into(), "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()),
        ("DONT_FAKE_MONOTONIC".into(), "1".into()),
        ("NO_FAKE_STAT".into(), "1".into()),
        ("FAKETIME_DONT_RESET".into(), "1".into()),
    ]
}

/// Control groups that limit memory, of either version.
struct Memory {
    below: PathBuf,
    version_2: bool,
}

impl Memory {
    fn find() -> Option<Self> {
        let name = format!("wharf-chaos-{}", std::process::id());
        for (root, version_2) in [("/sys/fs/cgroup/memory", false), ("/sys/fs/cgroup", true)] {
            let root = Path::new(root);
            let there = root.join(if version_2 { "cgroup.controllers" } else { "memory.limit_in_bytes" }).exists();
            if there && std::fs::create_dir(root.join(&name)).is_ok() {
                let below = root.join(&name);
                if version_2 && std::fs::write(below.join("cgroup.subtree_control"), "+memory").is_err() {
                    let _ = std::fs::remove_dir(&below);
                    continue;
                }
                return Some(Self { below, version_2 });
            }
        }
        None
    }

    fn limit(&self, name: &str, pid: Option<u32>, bytes: Option<u64>) -> anyhow::Result<u64> {
        let group = self.below.join(name);
        if !group.exists() {
            std::fs::create_dir(&group)?;
        }
        let (file, none) = if self.version_2 { ("memory.max", "max") } else { ("memory.limit_in_bytes", "-1") };
        std::fs::write(group.join(file), bytes.map_or(none.to_owned(), |bytes| bytes.to_string()))?;
        if let Some(pid) = pid {
            std::fs::write(group.join("cgroup.procs"), pid.to_string())?;
        }
        let count = if self.version_2 {
            let events = std::fs::read_to_string(group.join("memory.events"))?;
            events.lines().find_map(|line| line.strip_prefix("max ")).unwrap_or_default().trim().to_owned()
        } else {
            std::fs::read_to_string(group.join("memory.failcnt"))?.trim().to_owned()
        };
        Ok(count.parse().unwrap_or_default())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for group in std::fs::read_dir(&self.below).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(group.path());
        }
        let _ = std::fs::remove_dir(&self.below);
    }
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(args);
    feed(command, "").map(drop)
}

/// Runs a command with `input`; answers what it printed.
fn feed(mut command: Command, input: &str) -> anyhow::Result<String> {
    let told = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {told}"))?;
    child.stdin.take().context("it was piped")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{told}: {}", stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
