//! What several verbs take, and how its text is read.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::exit::{Exit, Failure};
use super::output::Format;
use crate::client::{Client, Error, State};
use crate::types::{QueueName, limits};

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Client addresses of one or more nodes; any node serves any call.
    #[arg(
        long,
        global = true,
        env = "WHARF_ADDR",
        default_value = "127.0.0.1:7411",
        value_name = "HOST:PORT[,…]",
        value_delimiter = ',',
        value_parser = addr
    )]
    pub addr: Vec<String>,
    /// How long a call may take before its outcome counts as unknown. If it is not given and every
    /// address refuses the connection, the command gives up after a second.
    #[arg(long, global = true, default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub timeout: Duration,
}

impl Target {
    /// A client of it.
    pub fn client(&self) -> Result<Client, Error> {
        Client::builder(&self.addr.join(",")).timeout(self.timeout).build()
    }
}

/// How data is printed.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Table for people, json and jsonl for programs.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// A state of a package, in either case.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AnyState {
    Scheduled,
    Ready,
    Leased,
    Completed,
    Dead,
    Cancelled,
    Expired,
}

impl AnyState {
    pub fn state(self) -> State {
        match self {
            Self::Scheduled => State::Scheduled,
            Self::Ready => State::Ready,
            Self::Leased => State::Leased,
            Self::Completed => State::Completed,
            Self::Dead => State::Dead,
            Self::Cancelled => State::Cancelled,
            Self::Expired => State::Expired,
        }
    }
}

/// `host:port`.
pub fn addr(text: &str) -> Result<String, String> {
    let ok = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if ok { Ok(text.to_owned()) } else { Err("write host:port, as in 127.0.0.1:7411".into()) }
}

/// `500ms`, `30s`, `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration =
        text.parse().map_err(|_| "write a number and a unit, as in 500ms, 30s or `1h 30m`".to_owned())?;
    Duration::try_from(signed).map_err(|_| "must not be negative".into())
}

/// `512`, `64KiB`, `1MB`.
pub fn size(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64()).map_err(|_| "write bytes, as in 1024, 64KiB or 1MB".into())
}

/// `key=value`.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write key=value".into()),
    }
}

/// A queue's name, canonical.
pub fn queue(text: &str) -> Result<String, String> {
    QueueName::parse(text).map(|name| name.as_str().to_owned()).map_err(|error| error.to_string())
}

/// 0 to 9.
pub fn priority(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(priority) if priority <= limits::MAX_PRIORITY => Ok(priority),
        _ => Err(format!("priorities are 0 to {}, {} first", limits::MAX_PRIORITY, limits::MAX_PRIORITY)),
    }
}

/// RFC 3339, as in `2030-01-31T08:00:00Z`.
pub fn timestamp(text: &str) -> Result<prost_types::Timestamp, String> {
    let at: jiff::Timestamp = text.parse().map_err(|_| "write a time as in 2030-01-31T08:00:00Z".to_owned())?;
    Ok(prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() })
}

/// A duration as the API takes it.
pub fn proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Below 10^9 by definition.
        nanos: duration.subsec_nanos() as i32,
    }
}

/// A duration of the API; negative ones count as none.
pub fn from_proto(duration: prost_types::Duration) -> Duration {
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(duration.seconds), u32::try_from(duration.nanos)) else {
        return Duration::ZERO;
    };
    Duration::new(seconds, nanos.min(999_999_999))
}

/// Reads a file whole, at most what a payload may have; `-` is standard input.
pub fn read_payload(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let ceiling = limits::MAX_PAYLOAD_CEILING_BYTES;
    let mut payload = Vec::new();
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    source.take(ceiling + 1).read_to_end(&mut payload).with_context(|| format!("cannot read {}", path.display()))?;
    if payload.len() as u64 > ceiling {
        let message = format!("{} is larger than a payload may ever be ({})", path.display(), ByteSize::b(ceiling));
        return Err(Failure::new(Exit::Usage, message).into());
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("5").is_err() && duration("-5s").is_err() && duration("soon").is_err());
        assert_eq!(size("64KiB"), Ok(65536));
        assert_eq!(size("1024"), Ok(1024));
        assert_eq!(label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(label("a").is_err() && label("=b").is_err());
        assert_eq!(priority("9"), Ok(9));
        assert!(priority("10").is_err() && priority("-1").is_err());
        assert_eq!(queue("default/jobs").as_deref(), Ok("jobs"));
        assert!(queue("a b").is_err());
        assert!(addr("localhost:1").is_ok() && addr("localhost").is_err() && addr(":1").is_err());
        assert_eq!(timestamp("1970-01-01T00:00:01.5Z").unwrap().nanos, 500_000_000);
    }

    #[test]
    fn durations_pass_through_the_api() {
        let duration = Duration::new(3, 250);
        assert_eq!(from_proto(proto_duration(duration)), duration);
        assert_eq!(from_proto(prost_types::Duration { seconds: -1, nanos: 0 }), Duration::ZERO);
    }
}
