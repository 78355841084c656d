//! Changes of a node's stored bytes, as failing disks, careless hands and old backups make them.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::super::sim::plan::Dice;

/// Log files are zeros from their tail on; changes come mostly within this.
const USED_BYTES: u64 = 256 << 10;
const BLOCK_BYTES: u64 = 4_096;
/// Where older copies of files are kept, beside the directory of data.
const COPIES: &str = "older";

/// Changes something below the directory `data` of a node that does not run; says what.
pub fn mutate(data: &Path, seed: u64) -> anyhow::Result<String> {
    let mut dice = Dice::new(seed);
    let copies = data.with_file_name(COPIES);
    let files = files(data)?;
    anyhow::ensure!(!files.is_empty(), "there is nothing in {}", data.display());
    let told = change(data, &copies, &files, &mut dice)?;
    // For a later time; those that are there already are the older.
    if !copies.exists() {
        for file in &files {
            let copy = copies.join(file.strip_prefix(data)?);
            fs::create_dir_all(copy.parent().context("it has a parent")?)?;
            if file.exists() {
                fs::copy(file, copy)?;
            }
        }
    }
    Ok(told)
}

fn change(data: &Path, copies: &Path, files: &[PathBuf], dice: &mut Dice) -> anyhow::Result<String> {
    // A kind of file first, for there are many of some.
    let mut kinds: Vec<&str> = files.iter().map(|file| kind(data, file)).collect();
    kinds.dedup();
    let chosen = kinds[dice.below(kinds.len() as u64) as usize];
    let of_kind: Vec<&PathBuf> = files.iter().filter(|file| kind(data, file) == chosen).collect();
    let file = of_kind[dice.below(of_kind.len() as u64) as usize];
    let name = file.strip_prefix(data)?.display().to_string();
    let size = fs::metadata(file)?.len();
    let reach = if chosen == "log" && dice.below(4) > 0 { size.min(USED_BYTES) } else { size };
    let at = dice.below(reach);
    Ok(match dice.below(8) {
        0 | 1 => {
            let bit = dice.below(8);
            rewrite(file, at, 1, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1 << bit))?;
            format!("bit {bit} of byte {at} of {name} is flipped")
        }
        2 => {
            fs::File::options().write(true).open(file)?.set_len(at)?;
            format!("{name} is cut off at byte {at} of {size}")
        }
        3 => {
            let block = at / BLOCK_BYTES * BLOCK_BYTES;
            rewrite(file, block, BLOCK_BYTES, |bytes| bytes.fill(0))?;
            format!("the block at byte {block} of {name} is zeroed")
        }
        4 if of_kind.len() > 1 => {
            let other = of_kind[dice.below(of_kind.len() as u64) as usize];
            let between = file.with_extension("swapped");
            fs::rename(file, &between)?;
            if other != file {
                fs::rename(other, file)?;
            }
            fs::rename(between, other)?;
            format!("{name} and {} are swapped", other.strip_prefix(data)?.display())
        }
        5 => {
            fs::remove_file(file)?;
            format!("{name} is gone")
        }
        6 => {
            let rubbish: Vec<u8> = (0..1 + dice.below(BLOCK_BYTES)).map(|_| dice.below(256) as u8).collect();
            fs::File::options().append(true).open(file)?.write_all(&rubbish)?;
            format!("{} bytes of rubbish follow {name}", rubbish.len())
        }
        _ => {
            let older = copies.join(&name);
            if older.exists() {
                fs::copy(older, file)?;
                format!("{name} is an older copy")
            } else {
                rewrite(file, at, 16, |bytes| bytes.iter_mut().for_each(|byte| *byte = dice.below(256) as u8))?;
                format!("16 bytes at {at} of {name} are something else")
            }
        }
    })
}

/// Changes at most `length` bytes at `at`, and no byte after the end.
fn rewrite(file: &Path, at: u64, length: u64, change: impl FnOnce(&mut [u8])) -> anyhow::Result<()> {
    let mut file = fs::File::options().read(true).write(true).open(file)?;
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    Read::by_ref(&mut file).take(length).read_to_end(&mut bytes)?;
    change(&mut bytes);
    file.seek(SeekFrom::Start(at))?;
    Ok(file.write_all(&bytes)?)
}

/// The folder it is in, or its own name.
fn kind<'a>(data: &Path, file: &'a Path) -> &'a str {
    let inner = file.strip_prefix(data).unwrap_or(file);
    inner.components().next().and_then(|first| first.as_os_str().to_str()).unwrap_or_default()
}

/// All files below, in order of their names, but for the lock.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if !path.ends_with("lock") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_changes_something_and_all_ways_come() {
        let mut seen = Vec::new();
        for seed in 0..300 {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            for (file, byte) in [("identity", 1), ("log/1.wal", 2), ("log/2.wal", 3), ("snapshots/1.snap", 4)] {
                let file = data.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, vec![byte; 9_000]).unwrap();
            }
            let content = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
                files(dir).unwrap().into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
            };
            let before = content(&data);
            let told = mutate(&data, seed).unwrap();
            let itself = told.contains("swapped") && content(&data) == before;
            assert!(itself || content(&data) != before, "seed {seed}: {told}");
            // The first change has no older copy.
            let again = mutate(&data, seed.wrapping_mul(7)).unwrap();
            seen.extend([told, again]);
        }
        for way in ["flipped", "cut off", "zeroed", "swapped", "gone", "rubbish", "older", "something else"] {
            assert!(seen.iter().any(|told| told.contains(way)), "{way}");
        }
    }
}
