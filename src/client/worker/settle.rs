//! Settlements: what a lease ends with, and what each refusal of one means.

use tonic::Code;

use super::super::Error;
use super::super::error::reason;
use super::super::package::duration;
use super::delivery::{Completion, Failure, Then};
use super::event::{Kind, Lease};
use crate::proto::v1;
use crate::types::limits;

/// A handler's answer, as it travels.
#[derive(Clone, Debug)]
pub(in crate::client) enum Settlement {
    Done(v1::Completion),
    Fail(v1::Failed),
    Release(v1::Held),
}

impl Settlement {
    pub fn new(lease: &Lease, result: Result<Completion, Failure>) -> Self {
        Self::of(&lease.queue, &lease.id, lease.fence, result)
    }

    pub fn of(queue: &str, id: &str, fence: u64, result: Result<Completion, Failure>) -> Self {
        let (queue, id) = (queue.to_owned(), id.to_owned());
        match result {
            Ok(completion) => Self::Done(v1::Completion {
                queue,
                id,
                fence,
                result: completion.result,
                result_content_type: completion.content_type,
                children: completion.children,
            }),
            Err(failure) => {
                let (permanent, retry_delay) = match failure.then {
                    Then::Release => return Self::Release(v1::Held { queue, id, fence }),
                    Then::Die => (true, None),
                    Then::Retry(delay) => (false, delay.map(duration)),
                };
                let message = cut(failure.message, limits::MAX_MESSAGE_BYTES);
                let code = cut(failure.code, limits::MAX_CODE_BYTES);
                Self::Fail(v1::Failed { queue, id, fence, message, code, permanent, retry_delay })
            }
        }
    }

    pub fn release(lease: &Lease) -> Self {
        Self::Release(v1::Held { queue: lease.queue.to_string(), id: lease.id.to_string(), fence: lease.fence })
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Done(_) => Kind::Done,
            Self::Fail(_) => Kind::Fail,
            Self::Release(_) => Kind::Release,
        }
    }

    /// About how many bytes it takes in a message.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Done(done) => {
                let children: usize = done.children.iter().map(prost::Message::encoded_len).sum();
                done.result.len() + children + done.id.len() + done.queue.len() + 32
            }
            Self::Fail(fail) => fail.message.len() + fail.code.len() + fail.id.len() + fail.queue.len() + 32,
            Self::Release(held) => held.id.len() + held.queue.len() + 16,
        }
    }
}

/// What to do about a refused settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The cluster could not take it now: send it again in a moment.
    Again,
    /// The lease stands, but this completion cannot be taken: the package fails instead.
    FailInstead,
    /// The lease is gone; that was it.
    Final,
}

impl Refusal {
    pub fn of(error: &Error) -> Self {
        match error.code() {
            _ if error.is_transient() || error.is_unknown() => Self::Again,
            Code::ResourceExhausted | Code::Aborted => Self::Again,
            Code::InvalidArgument | Code::OutOfRange => Self::FailInstead,
            _ if error.reason() == reason::CHILD_REJECTED => Self::FailInstead,
            _ => Self::Final,
        }
    }
}

/// A result that no queue can take may not even fit a message, and would break stream after stream:
/// its package fails instead.
pub(super) fn fitting(result: Result<Completion, Failure>) -> Result<Completion, Failure> {
    const MOST: usize = limits::MAX_PAYLOAD_CEILING_BYTES as usize;
    match result {
        Ok(completion) if completion.result.len() > MOST => {
            let why = format!("the result has {} bytes; no queue takes more than {MOST}", completion.result.len());
            Err(Failure::new(why).with_code("RESULT_TOO_LARGE"))
        }
        fits => fits,
    }
}

/// At most `max` bytes of a text.
fn cut(mut text: String, max: usize) -> String {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
