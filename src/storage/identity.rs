//! Who a data directory belongs to. One small file, the last thing that a new directory gets: a
//! directory without it was never in use, one with it must have its log.

use std::fmt;
use std::io;
use std::path::Path;

use super::disk::{Disk, read_whole, write_whole};
use super::error::Error;

const NAME: &str = "identity";
const TITLE: &str = "wharf identity 1";
const MAX_BYTES: u64 = 4096;

/// A cluster's name for itself, made at random when it forms.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<&[u8]> for ClusterId {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub node: u64,
    /// Random, made with the directory: a wiped node is another node.
    pub incarnation: u64,
    /// None until the node belongs to a cluster.
    pub cluster: Option<ClusterId>,
}

impl Identity {
    /// What the directory says; None if it is new.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(NAME);
        let bytes = match read_whole(disk, &path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = || Error::Damaged { file: path, offset: 0, what: "it is not what was written".to_owned() };
        Self::parse(&bytes).map(Some).ok_or_else(damaged)
    }

    /// Writes it, durable when this returns.
    pub fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        write_whole(disk, &dir.join(NAME), self.text().as_bytes())
    }

    fn text(&self) -> String {
        let cluster = self.cluster.map_or("none".to_owned(), |cluster| cluster.to_string());
        let text = format!("{TITLE}\nnode {}\nincarnation {:016x}\ncluster {cluster}\n", self.node, self.incarnation);
        let crc = crc32c::crc32c(text.as_bytes());
        format!("{text}crc32c {crc:08x}\n")
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines();
        (lines.next()? == TITLE).then_some(())?;
        let node = lines.next()?.strip_prefix("node ")?.parse().ok()?;
        let incarnation = u64::from_str_radix(lines.next()?.strip_prefix("incarnation ")?, 16).ok()?;
        let cluster = match lines.next()?.strip_prefix("cluster ")? {
            "none" => None,
            hex => Some(ClusterId(u128::from_str_radix(hex, 16).ok()?.to_be_bytes())),
        };
        let identity = Self { node, incarnation, cluster };
        (identity.text() == text).then_some(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Crash, Fault, SimDisk};

    #[test]
    fn it_is_the_old_or_the_new_one_whatever_fails() {
        let dir = Path::new("/data");
        let old = Identity { node: 2, incarnation: 0xfeed, cluster: None };
        let new = Identity { cluster: Some(ClusterId([7; 16])), ..old.clone() };
        for operation in 0..6 {
            for crash in [Crash::DropUnsynced, Crash::KeepUnsynced, Crash::Tear(operation)] {
                let disk = SimDisk::new();
                assert_eq!(Identity::read(&disk, dir).expect("readable"), None);
                old.write(&disk, dir).expect("written");
                disk.fail(operation, Fault::Halt);
                let written = new.write(&disk, dir).is_ok();
                disk.crash(crash);
                let found = Identity::read(&disk, dir).expect("readable").expect("there");
                assert!(found == new || (found == old && !written), "operation {operation}: {found:?}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let text = Identity { node: 1, incarnation: 5, cluster: Some(ClusterId([0xab; 16])) }.text();
        assert!(Identity::parse(text.as_bytes()).is_some());
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Identity::parse(&bytes), None, "bit {bit}");
        }
    }
}
