//! Settlements: how a worker ends or keeps a lease. What the stream and the single calls share, and the
//! single calls themselves, which stand on the fence alone.

use super::authorize::Action;
use super::call::Call;
use super::forward::Rpc;
use super::status::Refusal;
use super::validate::{At, Problems};
use super::{Core, convert};
use crate::machine::Reply;
use crate::machine::command::{Complete, Completion, Extend, Extension, Fail, Failed, Lease, Op, Release};
use crate::proto::v1;
use crate::raft::handle::Lane;
use crate::types::limits;

/// The lease that a settlement means, checked.
fn lease(queue: &str, id: String, fence: u64, at: At, problems: &mut Problems) -> Lease {
    let queue = problems.queue(at, "queue", queue);
    problems.id(at, &id);
    Lease { queue, id, fence }
}

pub fn completion(item: v1::Completion, at: At, problems: &mut Problems) -> Completion {
    problems.at_most(at, "result", item.result.len(), limits::MAX_PAYLOAD_CEILING_BYTES as usize);
    problems.word(at, "result_content_type", &item.result_content_type);
    problems.not_yet(at, "children", !item.children.is_empty());
    let Lease { queue, id, fence } = lease(&item.queue, item.id, item.fence, at, problems);
    Completion { queue, id, fence, result: item.result, result_content_type: item.result_content_type }
}

pub fn failed(item: v1::Failed, at: At, problems: &mut Problems) -> Failed {
    let delay = item.retry_delay.as_ref();
    let retry_delay_ms = delay.map(|delay| problems.duration_ms(at, "retry_delay", delay));
    let Lease { queue, id, fence } = lease(&item.queue, item.id, item.fence, at, problems);
    Failed {
        queue,
        id,
        fence,
        message: convert::cut(item.message, limits::MAX_MESSAGE_BYTES),
        code: convert::cut(item.code, limits::MAX_CODE_BYTES),
        permanent: item.permanent,
        retry_delay_ms,
    }
}

pub fn extension(item: v1::Extension, at: At, problems: &mut Problems) -> Extension {
    let by_ms = item.by.as_ref().map(|by| problems.positive_ms(at, "by", by));
    problems.at_most(at, "checkpoint", item.checkpoint.len(), limits::MAX_CHECKPOINT_BYTES);
    let Lease { queue, id, fence } = lease(&item.queue, item.id, item.fence, at, problems);
    Extension { queue, id, fence, by_ms, checkpoint: item.checkpoint }
}

pub fn held(item: v1::Held, at: At, problems: &mut Problems) -> Lease {
    lease(&item.queue, item.id, item.fence, at, problems)
}

/// One settlement by a call of its own: its field in the request, and the command that it becomes.
macro_rules! settle_by_call {
    ($request:ident, $response:ident, $path:literal, $field:ident, $check:ident, |$item:ident| $op:expr) => {
        impl Rpc for v1::$request {
            type Answer = v1::$response;
            const PATH: &'static str = $path;
            const ACTION: Action = Action::Work;

            async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
                let mut problems = Problems::default();
                let $item = $check(self.$field.clone().unwrap_or_default(), At::In(stringify!($field)), &mut problems);
                problems.check()?;
                let (reply, revision) = core.propose(Lane::Settle, $op, call).await?;
                match reply {
                    Reply::Settled(mut each) => each.pop().unwrap_or(Ok(()))?,
                    _ => return Err(Refusal::Internal("a settlement was answered by something else")),
                }
                Ok(v1::$response { revision: revision.0 })
            }
        }
    };
}

settle_by_call!(
    CompletePackageRequest,
    CompletePackageResponse,
    "/wharf.v1.WorkerService/CompletePackage",
    completion,
    completion,
    |item| Op::Complete(Complete { speaker: None, completions: vec![item] })
);
settle_by_call!(
    FailPackageRequest,
    FailPackageResponse,
    "/wharf.v1.WorkerService/FailPackage",
    failed,
    failed,
    |item| Op::Fail(Fail { speaker: None, failed: vec![item] })
);
settle_by_call!(
    ExtendPackageRequest,
    ExtendPackageResponse,
    "/wharf.v1.WorkerService/ExtendPackage",
    extension,
    extension,
    |item| Op::Extend(Extend { speaker: None, extensions: vec![item] })
);
settle_by_call!(
    ReleasePackageRequest,
    ReleasePackageResponse,
    "/wharf.v1.WorkerService/ReleasePackage",
    held,
    held,
    |item| Op::Release(Release { speaker: None, leases: vec![item] })
);
