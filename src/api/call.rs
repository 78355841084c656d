//! One call: who makes it, by which listener, and how long it may take.

use tokio::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

use super::authorize::Identity;
use crate::types::limits;

/// Marks a call that a follower forwarded. Read on the peer listener only.
pub const HOP: &str = "wharf-hop";
/// The leader's client address, in the metadata of every answer.
pub const LEADER: &str = "wharf-leader";
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Where the services are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On the client listener: what this node cannot answer goes to the leader.
    Client,
    /// On the peer listener: calls that another node forwarded. They go no further.
    Peer,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Call {
    pub identity: Identity,
    /// It came from another node already.
    pub forwarded: bool,
    began: Instant,
    /// A little before the caller's own: so it hears what became of the call, not only that time ran out.
    deadline: Option<Instant>,
}

/// What is kept of the caller's time for the answer's way back: a tenth, at most this.
const WAY_BACK: Duration = Duration::from_millis(50);

impl Call {
    pub fn new(metadata: &MetadataMap, mode: Mode) -> Self {
        let began = Instant::now();
        let timeout = metadata.get(GRPC_TIMEOUT).and_then(|value| value.to_str().ok()).and_then(parse_timeout);
        let forwarded = mode == Mode::Peer;
        Self {
            identity: if forwarded { Identity::from_hop(metadata) } else { Identity::Anonymous },
            forwarded,
            began,
            deadline: timeout.and_then(|timeout| began.checked_add(timeout - WAY_BACK.min(timeout / 10))),
        }
    }

    /// When an ordinary call ends: by the caller's deadline or the default one.
    pub fn ends(&self) -> Instant {
        self.deadline.unwrap_or(self.began + Duration::from_millis(limits::DEFAULT_CALL_DEADLINE_MS))
    }

    /// What is left of an ordinary call.
    pub fn left(&self) -> Duration {
        self.ends().saturating_duration_since(Instant::now())
    }

    /// When a call ends that waits for what may take days: only by the caller's deadline.
    pub fn waits_until(&self) -> Option<Instant> {
        self.deadline
    }

    /// Until when the call waits for a leader.
    pub fn leader_wait_ends(&self) -> Instant {
        self.ends().min(self.began + Duration::from_millis(limits::LEADER_WAIT_MS))
    }

    /// The same call at a later time: what it does now may take as long as an ordinary call's may,
    /// within its deadline.
    pub fn anew(&self) -> Self {
        Self { began: Instant::now(), ..self.clone() }
    }
}

/// The gRPC form: at most 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "5", "123456789S", "-1S", "5x", "5ä"] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_deadline_has_one_unless_it_waits() {
        let call = Call::new(&MetadataMap::new(), Mode::Client);
        assert_eq!(call.left(), Duration::from_millis(limits::DEFAULT_CALL_DEADLINE_MS));
        assert_eq!(call.waits_until(), None);
        let mut metadata = MetadataMap::new();
        metadata.insert(GRPC_TIMEOUT, "100m".parse().unwrap());
        let call = Call::new(&metadata, Mode::Client);
        assert_eq!(call.left(), Duration::from_millis(90));
        assert_eq!(call.waits_until(), Some(call.ends()));
        assert_eq!(call.leader_wait_ends(), call.ends());
        metadata.insert(GRPC_TIMEOUT, "1H".parse().unwrap());
        let call = Call::new(&metadata, Mode::Client);
        let wait = call.leader_wait_ends() - Instant::now();
        assert_eq!(wait, Duration::from_millis(limits::LEADER_WAIT_MS), "a leader is not waited for as long");
    }
}
