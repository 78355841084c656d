//! Pages of lists: their size, and the tokens by which they go on.
//!
//! Invariants: a token holds the place where its list goes on and a seal over it, the list's own
//! request and the cluster's id. One of another list, cluster or hand is refused, never followed. It
//! needs nothing kept at any node.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;

use super::Core;
use super::forward::Rpc;
use super::status::Refusal;
use super::validate::{At, Problems};
use crate::types::limits;

const SEAL: usize = 8;

/// The tokens of one list.
pub struct Tokens {
    /// What the seal covers besides the place.
    list: Vec<u8>,
}

impl Tokens {
    /// `request` is the list's, without its token and size.
    pub fn of<R: Message>(core: &Core, name: &str, request: &R) -> Self {
        let mut list = core.raft.cluster_id().to_vec();
        list.extend_from_slice(name.as_bytes());
        request.encode(&mut list).unwrap_or_else(|_| unreachable!("a vector grows"));
        Self { list }
    }

    pub fn seal(&self, place: &[u8]) -> String {
        let token = [place, &self.seal_of(place)].concat();
        URL_SAFE_NO_PAD.encode(token)
    }

    /// The place where the list goes on; `None`: it begins. A token that is none of this list is a
    /// problem.
    pub fn open(&self, token: &str, problems: &mut Problems) -> Option<Vec<u8>> {
        if token.is_empty() {
            return None;
        }
        let opened = URL_SAFE_NO_PAD.decode(token).ok().and_then(|mut bytes| {
            let seal = bytes.split_off(bytes.len().checked_sub(SEAL)?);
            (seal == self.seal_of(&bytes)).then_some(bytes)
        });
        if opened.is_none() {
            problems.bad(At::Top, "page_token", "is none of this list: take it from the answer before, or begin anew");
        }
        opened
    }

    fn seal_of(&self, place: &[u8]) -> [u8; SEAL] {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&self.list);
        hash.update(place);
        hash.digest().to_le_bytes()
    }
}

/// A page of a list that goes by texts: it goes on after the last one, whether that is still there or
/// not.
pub struct TextPage {
    tokens: Tokens,
    pub size: usize,
    pub after: Option<String>,
}

impl TextPage {
    pub fn of<R: Rpc>(core: &Core, page_size: u32, page_token: &str, request: &R) -> Result<Self, Refusal> {
        let mut problems = Problems::default();
        let size = size(page_size, limits::MAX_LIST_PAGE, &mut problems);
        let tokens = Tokens::of(core, R::PATH, request);
        let after = tokens.open(page_token, &mut problems).and_then(|place| String::from_utf8(place).ok());
        problems.check()?;
        Ok(Self { tokens, size, after })
    }

    /// Cuts what was looked for beyond the page, which says that there is more; gives the next token.
    pub fn cut<T>(&self, found: &mut Vec<T>, text: impl Fn(&T) -> &str, weight: impl Fn(&T) -> usize) -> String {
        let mut bytes = 0;
        let fits = found.iter().take(self.size).take_while(|item| {
            bytes += weight(item);
            bytes <= limits::MAX_LIST_BYTES
        });
        let fits = fits.count().max(1);
        if found.len() <= fits {
            return String::new();
        }
        found.truncate(fits);
        found.last().map(|last| self.tokens.seal(text(last).as_bytes())).unwrap_or_default()
    }
}

/// How many go into one page.
pub fn size(asked: u32, default: usize, problems: &mut Problems) -> usize {
    let limit = limits::MAX_LIST_PAGE;
    match asked as usize {
        0 => default,
        size => {
            if size > limit {
                problems.bad(At::Top, "page_size", format_args!("must be at most {limit}"));
            }
            size.min(limit)
        }
    }
}
