//! Package ids, small: there are millions of them.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use uuid::Uuid;
use uuid::fmt::Hyphenated;

/// Bytes of an id that are kept in place.
const IN_PLACE: usize = 22;

/// A package's id as its client gave it, in 24 bytes for most. A UUID in its canonical text, which is what SDKs mint, is
/// kept as its 16 bytes.
///
/// Invariant: one text has one form, so that equality of forms is equality of texts.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PackageId(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    Uuid([u8; 16]),
    Short { len: u8, bytes: [u8; IN_PLACE] },
    Long(Arc<str>),
}

impl PackageId {
    pub fn text(&self) -> Text<'_> {
        match &self.0 {
            Form::Uuid(bytes) => {
                let mut text = [0; Hyphenated::LENGTH];
                Uuid::from_bytes(*bytes).hyphenated().encode_lower(&mut text);
                Text::Uuid(text)
            }
            Form::Short { len, bytes } => Text::Kept(utf8(&bytes[..*len as usize])),
            Form::Long(text) => Text::Kept(text),
        }
    }

    /// It is this text. Nothing is parsed for it.
    pub fn is(&self, text: &str) -> bool {
        self.text().as_ref() == text.as_bytes()
    }

    /// Bytes of its text.
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::Uuid(_) => Hyphenated::LENGTH,
            Form::Short { len, .. } => *len as usize,
            Form::Long(text) => text.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<&str> for PackageId {
    fn from(text: &str) -> Self {
        if let Some(uuid) = canonical_uuid(text) {
            return Self(Form::Uuid(uuid.into_bytes()));
        }
        let mut bytes = [0; IN_PLACE];
        match bytes.get_mut(..text.len()) {
            Some(place) => {
                place.copy_from_slice(text.as_bytes());
                Self(Form::Short { len: text.len() as u8, bytes })
            }
            None => Self(Form::Long(text.into())),
        }
    }
}

/// Only the text that the UUID itself would give.
fn canonical_uuid(text: &str) -> Option<Uuid> {
    let long_enough = text.len() == Hyphenated::LENGTH;
    let uuid = if long_enough { Uuid::try_parse_ascii(text.as_bytes()).ok()? } else { return None };
    (!text.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(uuid)
}

fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it was made of a text")
}

/// An id's text, borrowed or on the stack.
pub enum Text<'a> {
    Uuid([u8; Hyphenated::LENGTH]),
    Kept(&'a str),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Uuid(text) => utf8(text),
            Self::Kept(text) => text,
        }
    }
}

/// Without a look at whether it is UTF-8, which it is.
impl AsRef<[u8]> for Text<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Uuid(text) => text,
            Self::Kept(text) => text.as_bytes(),
        }
    }
}

/// As their texts do.
impl Ord for PackageId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text().cmp(&*other.text())
    }
}

impl PartialOrd for PackageId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

impl fmt::Debug for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_its_text_whatever_its_form() {
        let uuid = "01a20e32-c931-7b7d-adb0-6221947be5b6";
        let near_misses = ["01A20E32-C931-7B7D-ADB0-6221947BE5B6", "01a20e32c931-7b7d-adb0-6221947be5b6-", &uuid[1..]];
        let texts = [uuid, "", "order-1", "a text of 22 bytes, so", "a text of 23 bytes, see", "größe-π"];
        let wide = "x".repeat(256);
        let all: Vec<&str> = texts.into_iter().chain(near_misses).chain([wide.as_str()]).collect();
        for text in &all {
            let id = PackageId::from(*text);
            assert_eq!((&*id.text(), id.len(), id.to_string().as_str()), (*text, text.len(), *text));
            assert_eq!(format!("{id:?}"), format!("{text:?}"));
            for other in &all {
                assert_eq!(id == PackageId::from(*other), text == other, "{text} {other}");
                assert_eq!(id.is(other), text == other, "{text} {other}");
                assert_eq!(id.cmp(&PackageId::from(*other)), text.cmp(other), "{text} {other}");
            }
        }
        assert_eq!(size_of::<PackageId>(), 24);
        assert!(matches!(PackageId::from(uuid).0, Form::Uuid(_)));
        assert!(matches!(PackageId::from(near_misses[0]).0, Form::Long(_)));
    }
}
