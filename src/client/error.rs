//! What a call can answer instead of its result.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, RpcStatusExt, StatusExt};

/// Reasons of the server that decide what the SDK does (`api::status`).
pub(super) mod reason {
    pub const NO_LEADER: &str = "NO_LEADER";
    pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
    pub const OVERLOADED: &str = "OVERLOADED";
    pub const ALREADY_FINISHED: &str = "ALREADY_FINISHED";
    pub const ATOMIC_REFUSED: &str = "ATOMIC_REFUSED";
    pub const REVISION_COMPACTED: &str = "REVISION_COMPACTED";
    pub const READER_TOO_SLOW: &str = "READER_TOO_SLOW";
    pub const QUEUE_NOT_FOUND: &str = "QUEUE_NOT_FOUND";
    pub const CHILD_REJECTED: &str = "CHILD_REJECTED";
    /// The SDK's own: no connection could be made, so nothing was sent.
    pub const UNREACHABLE: &str = "UNREACHABLE";
    /// The SDK's own: the deadline passed.
    pub const DEADLINE: &str = "DEADLINE";
    /// The SDK's own: one of its limits was reached, or it was shut down.
    pub const CLIENT: &str = "CLIENT";
}

/// A refusal, a failure, or an outcome that nobody knows.
///
/// `is_unknown` is the first thing to ask of a failed mutation: if it is true, the call may have
/// been carried out, and repeating it with the same ids is the way to find out.
#[derive(Clone, Debug)]
pub struct Error {
    code: Code,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    violations: Vec<(String, String)>,
    retry_after: Option<Duration>,
    unknown: bool,
    transient: bool,
    transport: bool,
}

impl Error {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The machine-readable reason, such as `LEASE_LOST`; empty if none was given.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// For people: what happened, and what to do next.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Details by name, such as the limit that was hit.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The fields that were refused, each with its problem.
    pub fn violations(&self) -> &[(String, String)] {
        &self.violations
    }

    /// When the server thinks that trying again makes sense.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// True: the call may or may not have been carried out. False: it certainly was not.
    pub fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// There is no such queue, package or session.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// The deadline passed.
    pub fn is_timeout(&self) -> bool {
        self.code == Code::DeadlineExceeded
    }

    /// No node could be reached, or none had a leader: the same call may work later.
    pub fn is_unavailable(&self) -> bool {
        self.code == Code::Unavailable
    }

    /// The same call may work in a moment.
    pub(super) fn is_transient(&self) -> bool {
        self.transient
    }

    /// The connection is to blame, not the node's answer: ask another node.
    pub(super) fn is_transport(&self) -> bool {
        self.transport
    }

    /// Remembers that an earlier try may have been carried out.
    pub(super) fn or_unknown(mut self, earlier_unknown: bool) -> Self {
        self.unknown |= earlier_unknown;
        self
    }

    /// The call changes nothing, whatever came of it.
    pub(super) fn certain(mut self) -> Self {
        self.unknown = false;
        self
    }

    /// From the answer of a node, or from what tonic made of a broken connection.
    pub(super) fn from_status(status: &Status) -> Self {
        // Only what this side made up has a source; what came over the wire has none.
        let local = status.source().is_some();
        if local && caused_by::<tonic::ConnectError>(status) {
            return Self::unreachable(status.message());
        }
        if local && caused_by::<tonic::TimeoutExpired>(status) {
            return Self::deadline("no answer came in time");
        }
        Self::new(status.code(), status.message(), &status.get_error_details(), local)
    }

    /// From a status inside an answer: of one package, one settlement.
    pub(super) fn from_rpc(status: &tonic_types::pb::Status) -> Self {
        Self::new(Code::from_i32(status.code), &status.message, &status.get_error_details(), false)
    }

    /// No connection: nothing was sent.
    pub(super) fn unreachable(message: impl fmt::Display) -> Self {
        let mut error = Self::local(Code::Unavailable, reason::UNREACHABLE, message.to_string());
        error.transient = true;
        error.transport = true;
        error
    }

    /// The call was sent, and no answer came in time.
    pub(super) fn deadline(message: impl Into<String>) -> Self {
        let mut error = Self::local(Code::DeadlineExceeded, reason::DEADLINE, message.into());
        error.unknown = true;
        error.transient = true;
        error.transport = true;
        error
    }

    /// The SDK itself refuses; nothing was sent.
    pub(super) fn refused(code: Code, message: impl Into<String>) -> Self {
        Self::local(code, reason::CLIENT, message.into())
    }

    fn local(code: Code, reason: &str, message: String) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message,
            metadata: BTreeMap::new(),
            violations: Vec::new(),
            retry_after: None,
            unknown: false,
            transient: false,
            transport: false,
        }
    }

    fn new(code: Code, message: &str, details: &ErrorDetails, local: bool) -> Self {
        let info = details.error_info();
        let reason = info.map(|info| info.reason.clone()).unwrap_or_default();
        let bad_request = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        let unavailable = code == Code::Unavailable;
        Self {
            code,
            message: if message.is_empty() { code.description().to_owned() } else { message.to_owned() },
            metadata: info.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
            violations: bad_request.iter().map(|bad| (bad.field.clone(), bad.description.clone())).collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            unknown: match code {
                Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => true,
                // Without a reason it was not the API that spoke: a proxy, or a node going down.
                Code::Unavailable => !matches!(reason.as_str(), reason::NO_LEADER | reason::OVERLOADED),
                _ => false,
            },
            transient: unavailable || local || code == Code::DeadlineExceeded || reason == reason::OVERLOADED,
            transport: local || (unavailable && reason.is_empty()),
            reason,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (field, problem) in &self.violations {
            write!(f, "; {field}: {problem}")?;
        }
        if !self.reason.is_empty() && self.reason != reason::CLIENT {
            write!(f, " ({})", self.reason)?;
        }
        if self.unknown && self.reason != reason::OUTCOME_UNKNOWN {
            f.write_str("; it is not known whether the call was carried out")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Whether such an error is among what led to the status.
fn caused_by<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<E>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_reason(code: Code, reason: &str) -> Error {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "wharf", std::collections::HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(20)));
        Error::from_status(&Status::with_error_details(code, "told", details))
    }

    #[test]
    fn unknown_is_never_lost() {
        let unknown = with_reason(Code::Unavailable, reason::OUTCOME_UNKNOWN);
        assert!(unknown.is_unknown() && unknown.is_transient());
        assert_eq!(unknown.retry_after(), Some(Duration::from_millis(20)));

        let none = with_reason(Code::Unavailable, reason::NO_LEADER);
        assert!(!none.is_unknown() && none.is_transient());
        assert!(none.or_unknown(true).is_unknown());

        let refused = with_reason(Code::FailedPrecondition, "LEASE_LOST");
        assert!(!refused.is_unknown() && !refused.is_transient());
        assert_eq!(refused.reason(), "LEASE_LOST");

        assert!(Error::from_status(&Status::unavailable("a proxy said so")).is_unknown());
        assert!(Error::from_status(&Status::cancelled("gone")).is_unknown());
        assert!(!Error::unreachable("refused").is_unknown());
    }
}
