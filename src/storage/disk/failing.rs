//! Syncs that fail on demand, as those of a broken disk do. For tests of whole processes; in no build that
//! users install.

use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;

/// Names a file: while it is there, every sync of this process fails.
pub const VARIABLE: &str = "WHARF_SYNCS_FAIL_IF";

static FILE: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(VARIABLE).map(PathBuf::from));

/// To be called before a sync.
pub fn check() -> io::Result<()> {
    match &*FILE {
        Some(file) if file.exists() => Err(rustix::io::Errno::IO.into()),
        _ => Ok(()),
    }
}
