//! The power of a file system fails, for real: ext4 shuts down without writing its log.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use rustix::ioctl::{Setter, ioctl, opcode};

/// `EXT4_IOC_SHUTDOWN`, in the kernel's fs/ext4/ext4.h.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is not on the disk by now never gets there.
const NO_LOG_FLUSH: u32 = 2;

/// Shuts the file system down that is mounted at `mounted`. It must be ext4, and this user must be root.
pub fn cut(mounted: &Path) -> anyhow::Result<()> {
    let root = File::open(mounted)?;
    #[expect(unsafe_code, reason = "the kernel reads one u32 for this opcode, and keeps no pointer")]
    let done = unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) };
    done.with_context(|| format!("cannot cut the power of {}", mounted.display()))
}
