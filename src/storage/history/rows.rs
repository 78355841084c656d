//! The rows of history and their keys. Rows are JSON, for ever readable; fields are only added.
//!
//! ```text
//! p queue\0 len(id) id create_revision fence   a finished package
//! a queue\0 len(id) id create_revision fence   a lease of it that ended
//! t queue\0 finish_time revision               -> its `p` key
//! g finish_time revision                       -> its `p` key
//! x from_revision                              a gap
//! m name                                       a number
//! ```

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Error, Place};
use crate::types::Wall;

/// One end of one package.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finished {
    pub queue: String,
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content_type: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    pub priority: u32,
    pub max_attempts: u32,
    pub attempts: u32,
    /// Its number in the API.
    pub state: u32,
    pub fence: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub worker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_ms: Option<u64>,
    pub create_ms: u64,
    pub finish_ms: u64,
    pub create_revision: u64,
    pub revision: u64,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub result: Vec<u8>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub result_content_type: String,
    /// The result was too large to be kept here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub result_left_out: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub moved_to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Why a lease failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// Its number in the API.
    pub cause: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub code: String,
    pub time_ms: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub worker: String,
}

/// One lease of a package, after its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempt {
    pub queue: String,
    pub id: String,
    pub create_revision: u64,
    pub fence: u64,
    pub worker: String,
    pub session: String,
    /// None: it was granted before this node looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begin_ms: Option<u64>,
    pub end_ms: u64,
    /// The package's state after it, by its number in the API.
    pub state: u32,
    /// Its number in the API; 0: it ended by a completion or a cancel.
    pub cause: u32,
    /// It counted.
    pub charged: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Revisions of which nothing is known, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gap {
    pub from: u64,
    pub to: u64,
    /// When it was noticed.
    pub time_ms: u64,
}

/// Anything that is written.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    Finished(Box<Finished>),
    Attempt(Box<Attempt>),
    Gap(Gap),
}

impl Row {
    pub fn key(&self) -> Vec<u8> {
        match self {
            Row::Finished(row) => Key::row(b'p', &row.queue, &row.id, row.create_revision, row.fence),
            Row::Attempt(row) => Key::row(b'a', &row.queue, &row.id, row.create_revision, row.fence),
            Row::Gap(gap) => [&b"x"[..], &gap.from.to_be_bytes()].concat(),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = match self {
            Row::Finished(row) => serde_json::to_vec(row),
            Row::Attempt(row) => serde_json::to_vec(row),
            Row::Gap(row) => serde_json::to_vec(row),
        };
        bytes.expect("rows are plain data with text as keys")
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::Damaged(format!("an unreadable row: {error}")))
}

impl Finished {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        parse(bytes)
    }

    pub fn place(&self) -> Place {
        Place { finish: Wall(self.finish_ms), revision: self.revision }
    }
}

impl Attempt {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        parse(bytes)
    }
}

impl Gap {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        parse(bytes)
    }
}

/// Makes keys and reads them.
pub struct Key;

impl Key {
    pub fn meta(name: &str) -> Vec<u8> {
        [b"m", name.as_bytes()].concat()
    }

    fn row(kind: u8, queue: &str, id: &str, create_revision: u64, fence: u64) -> Vec<u8> {
        let mut key = Self::package(kind, queue, id);
        key.extend(create_revision.to_be_bytes());
        key.extend(fence.to_be_bytes());
        key
    }

    fn package(kind: u8, queue: &str, id: &str) -> Vec<u8> {
        // Of one length for one id, so that no id is the beginning of another.
        [&[kind][..], queue.as_bytes(), &[0], &(id.len() as u32).to_be_bytes(), id.as_bytes()].concat()
    }

    pub fn by_time(row: &Finished) -> Vec<u8> {
        Self::time(&row.queue, row.place())
    }

    fn time(queue: &str, place: Place) -> Vec<u8> {
        [b"t", queue.as_bytes(), &[0], &place.finish.0.to_be_bytes(), &place.revision.to_be_bytes()].concat()
    }

    pub fn by_age(row: &Finished) -> Vec<u8> {
        let Place { finish, revision } = row.place();
        [&b"g"[..], &finish.0.to_be_bytes(), &revision.to_be_bytes()].concat()
    }

    /// The time and revision at the end of an index.
    pub fn place_of(index: &[u8]) -> Option<Place> {
        let (rest, revision) = index.split_last_chunk::<8>()?;
        let (_, finish) = rest.split_last_chunk::<8>()?;
        Some(Place { finish: Wall(u64::from_be_bytes(*finish)), revision: u64::from_be_bytes(*revision) })
    }

    /// The key by time of what has this key by age and this key itself.
    pub fn time_of_age(age: &[u8], row: &[u8]) -> Vec<u8> {
        let queue = row.get(1..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        [b"t", queue, &[0], age.get(1..).unwrap_or_default()].concat()
    }
}

/// A range of keys: from this one on, before that one.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub from: Vec<u8>,
    pub to: Vec<u8>,
}

impl Bounds {
    /// All keys that begin so.
    fn prefix(prefix: Vec<u8>) -> Self {
        let mut to = prefix.clone();
        // Prefixes begin with a letter, so there is always a next one.
        while let Some(last) = to.pop() {
            if last < u8::MAX {
                to.push(last + 1);
                break;
            }
        }
        Self { from: prefix, to }
    }

    pub fn by_age() -> Self {
        Self::prefix(b"g".to_vec())
    }

    pub fn all_attempts() -> Self {
        Self::prefix(b"a".to_vec())
    }

    pub fn gaps() -> Self {
        Self::prefix(b"x".to_vec())
    }

    pub fn package(queue: &str, id: &str) -> Self {
        Self::prefix(Key::package(b'p', queue, id))
    }

    /// Leases of this package up to the one it ended with.
    pub fn attempts(row: &Finished) -> Self {
        let key = |fence| Key::row(b'a', &row.queue, &row.id, row.create_revision, fence);
        let mut to = key(row.fence);
        to.push(0);
        Self { from: key(0), to }
    }

    /// What finished at `since` or later, before `before`.
    pub fn by_time(queue: &str, since: Wall, before: Place) -> Self {
        let from = Key::time(queue, Place { finish: since, revision: 0 });
        let to = Key::time(queue, before);
        // A range that ends before it begins is none.
        if from <= to { Self { from, to } } else { Self { from: to.clone(), to } }
    }

    /// The part of it at this key and behind.
    pub fn from(mut self, key: &[u8]) -> Self {
        if key > &self.from[..] {
            self.from = key.to_vec();
        }
        if self.from > self.to {
            self.from.clone_from(&self.to);
        }
        self
    }
}

fn to_base64<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}
