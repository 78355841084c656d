//! What the kernel tells of processes and files: CPU time, resident memory, disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// A process, as `/proc/PID/stat` tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Clock ticks in user and kernel.
    cpu_ticks: u64,
    rss_pages: u64,
}

impl Stat {
    fn of(text: &str) -> Option<Self> {
        // The program's name may hold anything, also spaces and parentheses.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            cpu_ticks: number(11)? + number(12)?,
            rss_pages: number(21)?,
        })
    }
}

/// All processes now. One that ends meanwhile is left out.
fn processes() -> Result<BTreeMap<u32, Stat>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).ok().and_then(|text| Stat::of(&text));
        found.extend(stat.map(|stat| (pid, stat)));
    }
    Ok(found)
}

/// `root`'s children, and theirs.
fn below(root: u32, all: &BTreeMap<u32, Stat>) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// The processes that `pid` started itself.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    Ok(processes()?.into_iter().filter(|(_, stat)| stat.parent == pid).map(|(child, _)| child).collect())
}

/// CPU time of `pid` alone.
pub fn own_cpu_us(pid: u32) -> Result<f64> {
    Ok(processes()?.get(&pid).map_or(0.0, |stat| cpu_us(stat.cpu_ticks)))
}

/// CPU time of everything below `pid`.
pub fn cpu_us_below(pid: u32) -> Result<f64> {
    let all = processes()?;
    Ok(cpu_us(below(pid, &all).iter().map(|pid| all[pid].cpu_ticks).sum()))
}

/// Resident memory of everything below `pid`.
pub fn rss_mb_below(pid: u32) -> Result<f64> {
    let all = processes()?;
    let pages: u64 = below(pid, &all).iter().map(|pid| all[pid].rss_pages).sum();
    Ok((pages * rustix::param::page_size() as u64) as f64 / 1e6)
}

fn cpu_us(ticks: u64) -> f64 {
    ticks as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64
}

/// What the files below a directory take on disk, holes left out.
pub fn disk_mb(dir: &Path) -> Result<f64> {
    let mut folders = vec![dir.to_owned()];
    let mut blocks = 0;
    while let Some(folder) = folders.pop() {
        // A server may remove what was just listed.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            blocks += meta.blocks();
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    // The kernel counts in blocks of 512 bytes.
    Ok(blocks as f64 * 512.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 100 8192000 250 0";

    #[test]
    fn a_stat_is_read_whatever_the_program_is_called() {
        assert_eq!(Stat::of(STAT), Some(Stat { parent: 7, cpu_ticks: 200, rss_pages: 250 }));
        assert_eq!(Stat::of("42 (short) S 7"), None);
    }

    #[test]
    fn a_family_is_all_that_descends() {
        let of = |parent| Stat { parent, cpu_ticks: 0, rss_pages: 0 };
        let all = BTreeMap::from([(1, of(0)), (2, of(1)), (3, of(2)), (4, of(3)), (5, of(1)), (6, of(0))]);
        assert_eq!(below(2, &all), [3, 4]);
        assert!(below(6, &all).is_empty());
    }

    #[test]
    fn this_process_and_its_files_have_figures() {
        assert!(processes().unwrap()[&std::process::id()].rss_pages > 0);
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("below/file"), vec![1; 1 << 20]).unwrap();
        let mb = disk_mb(dir.path()).unwrap();
        assert!((1.0..1.2).contains(&mb), "{mb}");
    }
}
