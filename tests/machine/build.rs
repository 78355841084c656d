//! From the words of a script to the machine's commands.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;

use bytes::Bytes;
use prost::Message as _;
use wharf::machine::command::{ClusterSettings, NewPackage, QueueSettings};
use wharf::proto::internal::new_package::{Expiry, Schedule};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A command line's arguments: positional ones in order, named ones by name. What is left
/// unread is an error, so that a typing mistake never tests less than it seems to.
pub struct Args {
    positional: VecDeque<String>,
    named: BTreeMap<String, String>,
}

impl Args {
    pub fn of(command: &goldenscript::Command) -> Result<Self> {
        let mut args = Self { positional: VecDeque::new(), named: BTreeMap::new() };
        for arg in &command.args {
            match &arg.key {
                None => args.positional.extend(expand(&arg.value)?),
                Some(key) => {
                    if args.named.insert(key.clone(), arg.value.clone()).is_some() {
                        return Err(format!("`{key}` is given twice").into());
                    }
                }
            }
        }
        Ok(args)
    }

    /// The next positional argument, which must be there.
    pub fn word(&mut self, what: &str) -> Result<String> {
        self.positional.pop_front().ok_or_else(|| format!("{what} is missing").into())
    }

    pub fn next(&mut self) -> Option<String> {
        self.positional.pop_front()
    }

    /// All positional arguments that are left.
    pub fn rest(&mut self) -> Vec<String> {
        self.positional.drain(..).collect()
    }

    pub fn text(&mut self, key: &str) -> Option<String> {
        self.named.remove(key)
    }

    pub fn number<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.named.remove(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("`{key}={text}` is no number").into())
    }

    pub fn flag(&mut self, key: &str) -> Result<bool> {
        match self.named.remove(key).as_deref() {
            None | Some("no") => Ok(false),
            Some("yes") => Ok(true),
            Some(other) => Err(format!("`{key}={other}`: yes or no").into()),
        }
    }

    pub fn millis(&mut self, key: &str) -> Result<Option<u64>> {
        self.named.remove(key).map(|text| millis(&text)).transpose()
    }

    /// A size: `100`, `4k`, `1m`.
    pub fn size(&mut self, key: &str) -> Result<Option<u64>> {
        self.named.remove(key).map(|text| size(&text)).transpose()
    }

    /// Everything named `label.x`.
    pub fn labels(&mut self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        self.named.retain(|key, value| match key.strip_prefix("label.") {
            Some(label) => {
                labels.insert(label.to_owned(), std::mem::take(value));
                false
            }
            None => true,
        });
        labels
    }

    pub fn end(self) -> Result<()> {
        match (self.positional.front(), self.named.keys().next()) {
            (None, None) => Ok(()),
            (Some(word), _) | (None, Some(word)) => Err(format!("what is `{word}`?").into()),
        }
    }
}

/// `p1..p3` is `p1 p2 p3`.
fn expand(word: &str) -> Result<Vec<String>> {
    let Some((from, to)) = word.split_once("..") else { return Ok(vec![word.to_owned()]) };
    let split = |text: &str| -> Result<(String, u64)> {
        let digits = text.len() - text.bytes().rev().take_while(u8::is_ascii_digit).count();
        Ok((text[..digits].to_owned(), text[digits..].parse()?))
    };
    let ((stem, from), (to_stem, to)) = (split(from)?, split(to)?);
    // `queue/p1..p3` names the queue once.
    let bare = stem.rsplit_once('/').map_or(stem.as_str(), |(_, bare)| bare);
    if bare != to_stem && !to_stem.is_empty() {
        return Err(format!("`{word}` is no range").into());
    }
    Ok((from..=to).map(|n| format!("{stem}{n}")).collect())
}

/// `0`, `250ms`, `5s`, `2m`, `1h`, `1d`.
pub fn millis(text: &str) -> Result<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse()?;
    let unit = match &text[at..] {
        "" if number == 0 => 0,
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("`{text}` is no duration").into()),
    };
    Ok(number * unit)
}

fn size(text: &str) -> Result<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse()?;
    Ok(match &text[at..] {
        "" => number,
        "k" => number << 10,
        "m" => number << 20,
        "g" => number << 30,
        _ => return Err(format!("`{text}` is no size").into()),
    })
}

/// What `submit` says of its packages, but for their ids. `wall` turns relative times.
pub fn package(args: &mut Args, wall: u64) -> Result<NewPackage> {
    let schedule = match (args.millis("at")?, args.millis("delay")?) {
        (Some(at), None) => Some(Schedule::NotBeforeWall(wall + at)),
        (None, Some(delay)) => Some(Schedule::DelayMs(delay)),
        (None, None) => None,
        (Some(_), Some(_)) => return Err("`at` or `delay`".into()),
    };
    let expiry = match (args.millis("expire")?, args.millis("ttl")?) {
        (Some(at), None) => Some(Expiry::ExpireWall(wall + at)),
        (None, Some(ttl)) => Some(Expiry::TtlMs(ttl)),
        (None, None) => None,
        (Some(_), Some(_)) => return Err("`expire` or `ttl`".into()),
    };
    let payload = match (args.text("payload"), args.size("size")?) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(size)) => Bytes::from(vec![b'x'; usize::try_from(size)?]),
        (None, None) => Bytes::new(),
        (Some(_), Some(_)) => return Err("`payload` or `size`".into()),
    };
    Ok(NewPackage {
        queue: String::new(),
        id: String::new(),
        kind: args.text("kind").unwrap_or_default(),
        payload,
        content_type: args.text("content_type").unwrap_or_default(),
        labels: args.labels(),
        priority: args.number("priority")?,
        schedule,
        expiry,
        max_attempts: args.number("max_attempts")?,
        content_hash: 0,
    })
}

/// The hash that the API computes over what the client set.
pub fn content_hash(package: &NewPackage) -> u64 {
    let bare = NewPackage { queue: String::new(), id: String::new(), content_hash: 0, ..package.clone() };
    xxhash_rust::xxh3::xxh3_64(&bare.encode_to_vec())
}

/// The settings of `create` and `update`.
pub fn queue_settings(args: &mut Args) -> Result<QueueSettings> {
    Ok(QueueSettings {
        lease_ms: args.millis("lease")?,
        max_run_ms: args.millis("max_run")?,
        max_attempts: args.number("max_attempts")?,
        backoff_initial_ms: args.millis("backoff")?,
        backoff_max_ms: args.millis("backoff_max")?,
        backoff_multiplier_milli: args.number("backoff_multiplier_milli")?,
        dead_letter_queue: args.text("dlq"),
        max_packages: args.number("max_packages")?,
        max_bytes: args.size("max_bytes")?,
        max_payload: args.size("max_payload")?,
        max_result: args.size("max_result")?,
        max_in_flight: args.number("max_in_flight")?,
        keep_finished_ms: args.millis("keep")?,
        keep_finished_count: args.number("keep_count")?,
        keep_finished_bytes: args.size("keep_bytes")?,
        dedup_window_ms: args.millis("dedup")?,
        history: args.number("history")?,
        default_priority: args.number("priority")?,
    })
}

/// The settings of `cluster`.
pub fn cluster_settings(args: &mut Args) -> Result<ClusterSettings> {
    Ok(ClusterSettings {
        session_grace_ms: args.millis("session_grace")?,
        failover_grace_ms: args.millis("failover_grace")?,
        auto_create_queues: match args.text("auto_create") {
            None => None,
            Some(text) => Some(text == "yes"),
        },
        memory_budget_bytes: args.size("memory")?,
        dedup_budget: args.number("dedup_budget")?,
        max_queues: args.number("max_queues")?,
        max_sessions: args.number("max_sessions")?,
    })
}

/// State numbers by their public names.
pub fn states(words: Vec<String>) -> Result<Vec<u32>> {
    words
        .iter()
        .map(|word| {
            wharf::types::State::ALL
                .iter()
                .find(|state| state.as_str().eq_ignore_ascii_case(word))
                .map(|state| *state as u32)
                .ok_or_else(|| format!("`{word}` is no state").into())
        })
        .collect()
}
