//! Submitting: single calls and the pipelined stream.
//!
//! Invariants: a bad package is refused alone, unless its request is atomic. A call of which nothing can
//! be taken is refused as a whole, with every problem. A stream has at most `MAX_SUBMITS_IN_FLIGHT_A_STREAM` requests whose
//! answers its client has not taken; past that it is not read.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::call::Call;
use super::forward::Rpc;
use super::oversize::is_oversize;
use super::status::{self, Refusal};
use super::validate::{At, Problems};
use super::{BoxStream, Core, authorize::Action, convert};
use crate::env::Env;
use crate::machine::command::{Command, Op, Submit, Submitted};
use crate::machine::{Outcome, Reject, Reply};
use crate::proto::v1;
use crate::raft::handle::{Lane, ProposeError, Responder, Sink};
use crate::types::limits;

impl Rpc for v1::SubmitRequest {
    type Answer = v1::SubmitResponse;
    const PATH: &'static str = "/wharf.v1.PackageService/Submit";
    const ACTION: Action = Action::Submit;

    async fn run(&self, core: &Core, call: &Call) -> Result<v1::SubmitResponse, Refusal> {
        let mut shape = Problems::default();
        shape.items("packages", self.packages.len(), limits::MAX_PACKAGES_A_SUBMIT, true);
        shape.check()?;
        let Prepared { submit, mut results, refused } = prepare(self.packages.clone(), self.atomic, &core.env);
        if submit.packages.is_empty() {
            // Nothing can be taken: all that is wrong at once.
            refused.check()?;
        }
        // A full queue of submits holds its callers back, as long as their time lasts.
        let room = core.raft.ready(Lane::Submit);
        tokio::time::timeout_at(call.ends(), room).await.map_err(|_| ProposeError::Overloaded)?;
        let (reply, revision) = core.propose(Lane::Submit, Op::Submit(submit), call).await?;
        let Reply::Submitted(each) = reply else {
            return Err(Refusal::Internal("a submit was answered by something else"));
        };
        fill(&mut results, each);
        Ok(v1::SubmitResponse { results, revision: revision.0 })
    }
}

fn result_for(queue: &str, id: &str) -> v1::SubmitResult {
    v1::SubmitResult { queue: queue.to_owned(), id: id.to_owned(), duplicate: false, error: None }
}

/// Gives each package that went to the machine its answer.
fn fill(results: &mut [v1::SubmitResult], each: Vec<Result<Submitted, Reject>>) {
    let open = results.iter_mut().enumerate().filter(|(_, result)| result.error.is_none());
    for ((index, result), submitted) in open.zip(each) {
        match submitted {
            Ok(submitted) => result.duplicate = submitted.duplicate,
            // The machine may have got fewer: its places are not the client's.
            Err(Reject::BadField { field, problem }) => {
                let field = field.split_once("].").map_or(field.as_str(), |(_, field)| field);
                let field = format!("packages[{index}].{field}");
                result.error = Some(status::message(Reject::BadField { field, problem }.into()));
            }
            Err(reject) => result.error = Some(status::message(reject.into())),
        }
    }
}

/// One request: what goes to the machine, and what is answered already.
struct Prepared {
    submit: Submit,
    results: Vec<v1::SubmitResult>,
    /// What is wrong with the packages that do not go there.
    refused: Problems,
}

fn prepare(packages: Vec<v1::NewPackage>, atomic: bool, env: &Env) -> Prepared {
    let count = packages.len();
    let mut results = Vec::with_capacity(count);
    let mut good = Vec::with_capacity(count);
    let mut refused = Problems::default();
    for (index, package) in packages.into_iter().enumerate() {
        let mut problems = Problems::default();
        let package = convert::new_package(package, At::Item("packages", index), &mut problems, env);
        let mut result = result_for(&package.queue, &package.id);
        if problems.is_empty() {
            good.push(package);
        } else {
            refused.extend(&problems);
            result.error = problems.check().err().map(status::message);
        }
        results.push(result);
    }
    if atomic && good.len() < count {
        good.clear();
        for result in results.iter_mut().filter(|result| result.error.is_none()) {
            result.error = Some(status::message(Refusal::AtomicRefused));
        }
    }
    Prepared { submit: Submit { packages: good, atomic }, results, refused }
}

/// An answer on its way, with its place in the stream's bound.
type Answer = (v1::SubmitStreamResponse, Option<OwnedSemaphorePermit>);

/// Serves a submit stream on the leader.
pub fn serve(
    core: Arc<Core>,
    inbound: Streaming<v1::SubmitStreamRequest>,
) -> Response<BoxStream<v1::SubmitStreamResponse>> {
    const BOUND: usize = limits::MAX_SUBMITS_IN_FLIGHT_A_STREAM;
    // One more than answers can be under way: the last word.
    let (outbound, answers) = mpsc::channel::<Result<Answer, Status>>(BOUND + 1);
    let pending = Arc::new(Pending { outbound, waiting: Mutex::default() });
    tokio::spawn(read(core, inbound, pending));
    let answers = ReceiverStream::new(answers).map(|answer| answer.map(|(answer, _place)| answer));
    Response::new(Box::pin(answers))
}

async fn read(core: Arc<Core>, mut inbound: Streaming<v1::SubmitStreamRequest>, pending: Arc<Pending>) {
    let places = Arc::new(Semaphore::new(limits::MAX_SUBMITS_IN_FLIGHT_A_STREAM));
    let mut token = 0;
    let mut standing = core.raft.standing();
    let ending = loop {
        let next = tokio::select! {
            biased;
            () = pending.outbound.closed() => return,
            led = standing.wait_for(|standing| standing.leading.is_none()) => {
                break led.ok().map(|led| Refusal::from(ProposeError::NotLeader { leader: led.leader.clone() }));
            }
            next = inbound.message() => next,
        };
        let request = match next {
            Ok(Some(request)) => request,
            Err(status) if is_oversize(&status) => break Some(Refusal::Oversize),
            // A client that broke and one that has said all are the same: what was read is answered.
            Ok(None) | Err(_) => break None,
        };
        let Ok(place) = places.clone().acquire_owned().await else { return };
        core.raft.ready(Lane::Submit).await;
        token += 1;
        let seq = request.seq;
        let (submit, results) = prepare_alone(request, &core.env);
        if submit.packages.is_empty() {
            let revision = core.raft.view(|machine| machine.revision().0);
            pending.tell(v1::SubmitStreamResponse { seq, results, revision }, place);
            continue;
        }
        pending.waiting.lock().insert(token, Waiting { seq, results, place });
        let command = Command { op: Some(Op::Submit(submit)) };
        let sink: Arc<dyn Sink> = pending.clone();
        core.raft.send(Lane::Submit, command, Responder::Sink(sink, token));
    };
    // Every request that was read gets its answer before the stream ends.
    let everything = places.acquire_many(limits::MAX_SUBMITS_IN_FLIGHT_A_STREAM as u32);
    tokio::select! {
        _ = everything => {}
        () = pending.outbound.closed() => return,
    }
    if let Some(refusal) = ending {
        // The client may be gone: then nobody needs to know.
        let _ = pending.outbound.try_send(Err(refusal.into()));
    }
}

/// A stream's request. One that cannot be read at all gets one result that says so.
fn prepare_alone(request: v1::SubmitStreamRequest, env: &Env) -> (Submit, Vec<v1::SubmitResult>) {
    let mut shape = Problems::default();
    shape.items("packages", request.packages.len(), limits::MAX_PACKAGES_A_SUBMIT, true);
    if let Err(refusal) = shape.check() {
        let error = Some(status::message(refusal));
        return (Submit::default(), vec![v1::SubmitResult { error, ..Default::default() }]);
    }
    let Prepared { submit, results, .. } = prepare(request.packages, request.atomic, env);
    (submit, results)
}

/// The requests of one stream that wait for the machine.
struct Pending {
    outbound: mpsc::Sender<Result<Answer, Status>>,
    /// By token.
    waiting: Mutex<BTreeMap<u64, Waiting>>,
}

struct Waiting {
    seq: u64,
    results: Vec<v1::SubmitResult>,
    place: OwnedSemaphorePermit,
}

impl Pending {
    fn tell(&self, answer: v1::SubmitStreamResponse, place: OwnedSemaphorePermit) {
        // There is room: the channel has one for each permit. It may be closed, and then nobody listens.
        let _ = self.outbound.try_send(Ok((answer, Some(place))));
    }
}

impl Sink for Pending {
    fn answer(&self, token: u64, result: Result<Outcome, ProposeError>) {
        let Some(Waiting { seq, mut results, place }) = self.waiting.lock().remove(&token) else {
            return;
        };
        let revision = result.as_ref().map_or(0, |outcome| outcome.revision.0);
        let refusal = match result {
            Ok(Outcome { result: Ok(Reply::Submitted(each)), .. }) => {
                fill(&mut results, each);
                return self.tell(v1::SubmitStreamResponse { seq, results, revision }, place);
            }
            Ok(Outcome { result: Ok(_), .. }) => Refusal::Internal("a submit was answered by something else"),
            Ok(Outcome { result: Err(reject), .. }) => reject.into(),
            Err(error) => error.into(),
        };
        let error = status::message(refusal);
        let open = results.iter_mut().filter(|result| result.error.is_none());
        open.for_each(|result| result.error = Some(error.clone()));
        self.tell(v1::SubmitStreamResponse { seq, results, revision }, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(queue: &str) -> v1::NewPackage {
        v1::NewPackage { queue: queue.into(), id: "a".into(), ..Default::default() }
    }

    fn codes(results: &[v1::SubmitResult]) -> Vec<i32> {
        results.iter().map(|result| result.error.as_ref().map_or(0, |error| error.code)).collect()
    }

    #[test]
    fn a_bad_package_is_refused_alone_unless_the_request_is_atomic() {
        let packages = vec![package("q"), package("no queue"), package("r")];
        let prepared = prepare(packages.clone(), false, &Env::real());
        assert_eq!(codes(&prepared.results), [0, tonic::Code::InvalidArgument as i32, 0]);
        assert_eq!(prepared.submit.packages.len(), 2);

        let prepared = prepare(packages, true, &Env::real());
        let (bad, other) = (tonic::Code::InvalidArgument as i32, tonic::Code::FailedPrecondition as i32);
        assert_eq!(codes(&prepared.results), [other, bad, other]);
        assert!(prepared.submit.packages.is_empty());
        assert!(prepared.refused.check().is_err());
    }

    #[test]
    fn too_many_packages_and_none_get_one_answer_on_a_stream() {
        for count in [0, limits::MAX_PACKAGES_A_SUBMIT + 1] {
            let packages = vec![package("q"); count];
            let request = v1::SubmitStreamRequest { seq: 1, packages, atomic: false };
            assert_eq!(codes(&prepare_alone(request, &Env::real()).1), [tonic::Code::InvalidArgument as i32]);
        }
    }
}
