//! Bytes that many share and nobody changes.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

/// A result, a checkpoint. A clone counts a reference and never allocates; the first clone
/// of a `Bytes` does.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob(Option<Arc<[u8]>>);

impl Blob {
    /// A copy: a slice of a message would keep the whole message in memory.
    pub fn copied(bytes: &[u8]) -> Self {
        Self((!bytes.is_empty()).then(|| Arc::from(bytes)))
    }

    /// The same bytes, for a message.
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            Some(bytes) => Bytes::from_owner(bytes.clone()),
            None => Bytes::new(),
        }
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_its_bytes() {
        let blob = Blob::copied(b"work");
        assert_eq!((&*blob, &blob.to_bytes()[..], blob.len()), (&b"work"[..], &b"work"[..], 4));
        assert_eq!(blob.to_bytes().as_ptr(), blob.as_ptr(), "a message shares them");
        assert_eq!(Blob::copied(b""), Blob::default());
        assert!(Blob::default().to_bytes().is_empty());
    }
}
