//! Exit codes, and the one place that maps errors to them.

use std::process::ExitCode;

use tonic::Code;

use crate::client;

/// The SDK's reason when no connection could be made.
const UNREACHABLE: &str = "UNREACHABLE";

/// What the process tells whoever started it. Part of the interface: scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    /// Not ready, or a check failed.
    NotReady = 3,
    NotFound = 4,
    Unreachable = 69,
    /// No leader, or the outcome is unknown: try again, with the same id.
    TryAgain = 75,
    Denied = 77,
    BadConfig = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A failure with its exit code and, where there is one, the next command to run.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    pub next: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), next: None }
    }

    /// Names the next command, printed after `try:`.
    pub fn next(mut self, command: impl Into<String>) -> Self {
        self.next = Some(command.into());
        self
    }
}

/// The exit code of an error: that of the first cause which has one.
pub fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Failed)
}

/// The next command that an error names, or that its kind suggests.
pub fn next(error: &anyhow::Error) -> Option<String> {
    let told = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()?.next.clone());
    told.or_else(|| match of(error) {
        Exit::Unreachable => Some("wharf dev, or name a running cluster with --addr host:port (WHARF_ADDR)".into()),
        Exit::TryAgain => Some("wharf cluster status, then the same command again: it is safe".into()),
        Exit::BadConfig => Some("wharf config check --config FILE".into()),
        _ => None,
    })
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if cause.is::<crate::config::Error>() {
        return Some(Exit::BadConfig);
    }
    if let Some(error) = cause.downcast_ref::<client::Error>() {
        return Some(of_client(error));
    }
    // Standard output was closed by its reader, as `head` does.
    let io = cause.downcast_ref::<std::io::Error>()?;
    (io.kind() == std::io::ErrorKind::BrokenPipe).then_some(Exit::Ok)
}

/// The exit code of a call's error.
pub fn of_client(error: &client::Error) -> Exit {
    of_answer(error.code(), error.reason(), error.is_unknown())
}

fn of_answer(code: Code, reason: &str, unknown: bool) -> Exit {
    match code {
        _ if unknown => Exit::TryAgain,
        Code::Ok => Exit::Ok,
        Code::NotFound => Exit::NotFound,
        Code::InvalidArgument => Exit::Usage,
        Code::Unavailable if reason == UNREACHABLE => Exit::Unreachable,
        Code::Unavailable | Code::DeadlineExceeded => Exit::TryAgain,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_answer() {
        let exit_of = |code, reason, unknown| of_answer(code, reason, unknown) as u8;
        assert_eq!(exit_of(Code::NotFound, "QUEUE_NOT_FOUND", false), 4);
        assert_eq!(exit_of(Code::InvalidArgument, "", false), 2);
        assert_eq!(exit_of(Code::Unavailable, "UNREACHABLE", false), 69);
        assert_eq!(exit_of(Code::Unavailable, "NO_LEADER", false), 75);
        assert_eq!(exit_of(Code::Unavailable, "OUTCOME_UNKNOWN", true), 75);
        assert_eq!(exit_of(Code::Unavailable, "UNREACHABLE", true), 75, "an earlier try may have been carried out");
        assert_eq!(exit_of(Code::DeadlineExceeded, "DEADLINE", true), 75);
        assert_eq!(exit_of(Code::Aborted, "REVISION_MISMATCH", false), 1, "the same again never succeeds");
        assert_eq!(exit_of(Code::PermissionDenied, "", false), 77);
        assert_eq!(exit_of(Code::Unauthenticated, "", false), 77);
        assert_eq!(exit_of(Code::ResourceExhausted, "QUEUE_FULL", false), 1);
        assert_eq!(exit_of(Code::FailedPrecondition, "LEASE_LOST", false), 1);
    }

    #[test]
    fn a_failure_carries_its_own_code_and_next_command() {
        let error = anyhow::Error::new(Failure::new(Exit::NotReady, "differ").next("wharf check")).context("check");
        assert_eq!(of(&error), Exit::NotReady);
        assert_eq!(next(&error).as_deref(), Some("wharf check"));
        let config = crate::config::Error { problems: vec![] };
        assert_eq!(of(&config.into()), Exit::BadConfig);
        assert_eq!(of(&anyhow::anyhow!("else")), Exit::Failed);
    }

    #[test]
    fn a_closed_reader_is_no_failure() {
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(of(&pipe.into()), Exit::Ok);
    }
}
