//! The machine's own file system.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, flock, statvfs};

use super::{Disk, File, Space};

/// Zeros are written in pieces and synced every few, so that filling a segment ahead never puts one long
/// writeback in the way of the log's own syncs.
const ZERO_PIECE_BYTES: usize = 256 << 10;
const ZERO_SYNC_PIECES: u64 = 16;

/// Memory, place and length of what goes past the cache are multiples of this.
const DIRECT_BYTES: usize = 4096;

/// See [`Disk`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile {
    file: fs::File,
    path: PathBuf,
}

fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> io::Error + 'a {
    move |error| io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

/// Refuses what others may read or write.
fn check_private(path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let (path, wanted) = (path.display(), if metadata.is_dir() { "700" } else { "600" });
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("{path} has mode {mode:03o}, open to other users: chmod {wanted} {path}"),
    ))
}

impl RealFile {
    fn open(path: &Path, options: &OpenOptions) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(Self::open_raw(path, options)?))
    }

    fn open_raw(path: &Path, options: &OpenOptions) -> io::Result<Self> {
        let file = options.open(path).map_err(at("open", path))?;
        check_private(path, &file.metadata().map_err(at("stat", path))?)?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    /// Writes `len` zeros.
    fn fill(&self, len: u64, pace: &dyn Fn(u64)) -> io::Result<()> {
        let zeros = vec![0; ZERO_PIECE_BYTES.min(len as usize)];
        let (mut offset, mut piece) = (0, 0);
        while offset < len {
            let bytes = &zeros[..zeros.len().min((len - offset) as usize)];
            self.write_at(bytes, offset)?;
            offset += bytes.len() as u64;
            piece += 1;
            if piece % ZERO_SYNC_PIECES == 0 {
                self.sync()?;
            }
            pace(offset);
        }
        Ok(())
    }

    /// The same from the disk's side, without a copy of each byte into the system's memory, where
    /// nobody would read it. False: not possible here, and nothing is written.
    fn fill_past_the_cache(&self, len: u64, pace: &dyn Fn(u64)) -> io::Result<bool> {
        if len == 0 || !len.is_multiple_of(DIRECT_BYTES as u64) {
            return Ok(false);
        }
        let direct = OFlags::DIRECT.bits() as i32;
        let Ok(file) = OpenOptions::new().write(true).custom_flags(direct).open(&self.path) else { return Ok(false) };
        let room = vec![0; ZERO_PIECE_BYTES.min(len as usize) + DIRECT_BYTES];
        let from = room.as_ptr().align_offset(DIRECT_BYTES);
        let zeros = &room[from..from + room.len() - DIRECT_BYTES];
        let mut offset = 0;
        while offset < len {
            let bytes = &zeros[..zeros.len().min((len - offset) as usize)];
            match file.write_all_at(bytes, offset) {
                Ok(()) => offset += bytes.len() as u64,
                // A file system may open files so, and then refuse to write.
                Err(error) if offset == 0 && refuses(&error) => return Ok(false),
                Err(error) => return Err(at("write", &self.path)(error)),
            }
            pace(offset);
        }
        Ok(true)
    }
}

/// A file system that writes through its cache only.
fn refuses(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return check_private(path, &metadata),
            Ok(_) => return Err(io::Error::other(format!("{} is no directory", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("stat", path)(error)),
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("create", path))?;
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            _ => Ok(()),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        RealFile::open(path, options().create(true).truncate(true))
    }

    fn create_zeroed(&self, path: &Path, len: u64, pace: &dyn Fn(u64)) -> io::Result<Arc<dyn File>> {
        let file = RealFile::open_raw(path, options().create(true).truncate(true))?;
        if !file.fill_past_the_cache(len, pace)? {
            file.fill(len, pace)?;
        }
        file.file.sync_all().map_err(at("sync", path))?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        RealFile::open(path, &options())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to).map_err(at("rename", from))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path).map_err(at("remove", path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(at("list", dir))? {
            let name = entry.map_err(at("list", dir))?.file_name();
            names.push(name.to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir).and_then(|file| file.sync_all()).map_err(at("sync directory", dir))
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = statvfs(dir).map_err(|error| at("stat file system of", dir)(error.into()))?;
        Ok(Space { free_bytes: stat.f_bavail * stat.f_frsize, total_bytes: stat.f_blocks * stat.f_frsize })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = RealFile::open_raw(path, options().create(true))?.file;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| at("lock", path)(error.into()))?;
        Ok(Box::new(file))
    }
}

impl File for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata().map_err(at("stat", &self.path))?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset).map_err(at("read", &self.path))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset).map_err(at("write", &self.path))
    }

    fn sync(&self) -> io::Result<()> {
        #[cfg(feature = "testkit")]
        super::failing::check().map_err(at("sync", &self.path))?;
        self.file.sync_data().map_err(at("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_files_are_private_and_wider_ones_are_refused() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let dir = home.path().join("data");
        RealDisk.create_dir(&dir).expect("created");
        assert_eq!(fs::metadata(&dir).expect("there").permissions().mode() & 0o777, 0o700);
        let path = dir.join("file");
        RealDisk.create_zeroed(&path, 10, &|_| {}).expect("created");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
        let refused = RealDisk.open(&path).err().expect("refused");
        assert!(refused.to_string().contains("chmod 600"), "{refused}");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).expect("changed");
        let refused = RealDisk.create_dir(&dir).expect_err("refused");
        assert!(refused.to_string().contains("chmod 700"), "{refused}");
    }

    #[test]
    fn a_new_segment_is_all_zeros_whichever_way_it_is_filled() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("segment");
        // Whole pages go past the cache where that is possible, others never do.
        for len in
            [0, 10, DIRECT_BYTES, 3 * ZERO_PIECE_BYTES, 3 * ZERO_PIECE_BYTES + DIRECT_BYTES, 2 * ZERO_PIECE_BYTES + 1]
        {
            fs::write(&path, vec![7; 100]).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
            let told = std::cell::RefCell::new(vec![0]);
            let file =
                RealDisk.create_zeroed(&path, len as u64, &|done| told.borrow_mut().push(done)).expect("created");
            assert_eq!(told.borrow().last(), Some(&(len as u64)));
            assert!(told.borrow().windows(2).all(|pair| pair[1] - pair[0] <= ZERO_PIECE_BYTES as u64));
            assert_eq!(file.size().expect("there"), len as u64);
            assert!(fs::read(&path).expect("read").iter().all(|byte| *byte == 0), "{len}");
            file.write_at(b"after", 0).expect("written");
            assert_eq!(fs::read(&path).expect("read").get(..5).unwrap_or_default(), b"after");
        }
        let file = RealFile::open_raw(&path, &options()).expect("open");
        file.fill(2 * DIRECT_BYTES as u64, &|_| {}).expect("filled");
        assert!(fs::read(&path).expect("read")[..2 * DIRECT_BYTES].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_lock_is_held_once() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("lock");
        let held = RealDisk.lock(&path).expect("free");
        let refused = RealDisk.lock(&path).err().expect("held");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        RealDisk.lock(&path).expect("free again");
    }
}
