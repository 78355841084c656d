//! QueueService.

use tokio::time::Instant;

use super::authorize::Action;
use super::call::Call;
use super::forward::{Place, Rpc};
use super::package::wait;
use super::page::TextPage;
use super::status::Refusal;
use super::validate::{At, Problems};
use super::{Core, convert, unary_service};
use crate::machine::command::{
    CreateQueue, DeleteQueue, DrainSession, Op, PauseQueue, Redrive, SealQueue, UpdateQueue,
};
use crate::machine::view::{QueueView, SessionView};
use crate::machine::{Machine, Reply};
use crate::proto::v1;
use crate::proto::v1::queue_service_server::QueueService;
use crate::raft::handle::Lane;
use crate::types::{QueueName, limits};

unary_service! {
    QueueService {
        async fn create_queue(CreateQueueRequest) -> CreateQueueResponse;
        async fn get_queue(GetQueueRequest) -> GetQueueResponse;
        async fn list_queues(ListQueuesRequest) -> ListQueuesResponse;
        async fn update_queue(UpdateQueueRequest) -> UpdateQueueResponse;
        async fn delete_queue(DeleteQueueRequest) -> DeleteQueueResponse;
        async fn pause_queue(PauseQueueRequest) -> PauseQueueResponse;
        async fn resume_queue(ResumeQueueRequest) -> ResumeQueueResponse;
        async fn seal_queue(SealQueueRequest) -> SealQueueResponse;
        async fn unseal_queue(UnsealQueueRequest) -> UnsealQueueResponse;
        async fn wait_queue(WaitQueueRequest) -> WaitQueueResponse;
        async fn redrive_queue(RedriveQueueRequest) -> RedriveQueueResponse;
        async fn list_workers(ListWorkersRequest) -> ListWorkersResponse;
        async fn drain_worker(DrainWorkerRequest) -> DrainWorkerResponse;
    }
}

/// About what a queue takes in a message, at most.
const QUEUE_BYTES: usize = 1024;

/// About what a session takes in a message.
fn session_bytes(view: &SessionView) -> usize {
    const FIELDS: usize = 128;
    let labels: usize = view.labels.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
    let queues: usize = view.queues.iter().map(|queue| queue.as_str().len() + 2).sum();
    let kinds: usize = view.kinds.iter().map(|kind| kind.len() + 2).sum();
    FIELDS + view.session.len() + view.worker.len() + labels + queues + kinds
}

/// A queue's canonical name.
fn named(text: &str) -> Result<QueueName, Refusal> {
    QueueName::parse(text).map_err(|error| Refusal::BadFields(vec![("name".to_owned(), error.to_string())]))
}

impl Core {
    fn shown(&self, view: &QueueView) -> v1::Queue {
        let (submitted, completed) = self.rates.of(view, Instant::now());
        convert::queue(view, submitted, completed)
    }

    /// A queue command, whose answer is the queue.
    async fn queue_changed(&self, call: &Call, op: Op) -> Result<(Option<v1::Queue>, u64), Refusal> {
        match self.propose(Lane::Settle, op, call).await? {
            (Reply::Queue(view), revision) => Ok((Some(self.shown(&view)), revision.0)),
            _ => Err(Refusal::Internal("a queue's change was answered by something else")),
        }
    }
}

impl Rpc for v1::CreateQueueRequest {
    type Answer = v1::CreateQueueResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/CreateQueue";
    const ACTION: Action = Action::ManageQueues;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        let name = problems.queue(At::Top, "name", &self.name);
        let settings = self.settings.clone().unwrap_or_default();
        let settings = convert::new_settings(&settings, At::In("settings"), &mut problems);
        problems.check()?;
        let create = CreateQueue { name, settings: Some(settings) };
        let (queue, revision) = core.queue_changed(call, Op::CreateQueue(create)).await?;
        Ok(v1::CreateQueueResponse { queue, revision })
    }
}

impl Rpc for v1::GetQueueRequest {
    type Answer = v1::GetQueueResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/GetQueue";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        if self.stale_ok { Place::Anybody } else { Place::LeaderRead }
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let name = named(&self.name)?;
        let (view, revision) = core.read(self.stale_ok, call, |machine| machine.queue(name.as_str())).await?;
        Ok(v1::GetQueueResponse { queue: Some(core.shown(&view?)), revision: revision.0 })
    }
}

impl Rpc for v1::ListQueuesRequest {
    type Answer = v1::ListQueuesResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/ListQueues";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        if self.stale_ok { Place::Anybody } else { Place::LeaderRead }
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        // A prefix of a name need not be a name.
        let prefix = self.prefix.strip_prefix("default/").unwrap_or(&self.prefix);
        let plain = Self { page_size: 0, page_token: String::new(), stale_ok: false, ..self.clone() };
        let page = TextPage::of(core, self.page_size, &self.page_token, &plain)?;
        let look = |machine: &Machine| machine.queues_after(prefix, page.after.as_deref(), page.size + 1);
        let (mut views, revision) = core.read(self.stale_ok, call, look).await?;
        let next_page_token = page.cut(&mut views, |view| view.name.as_str(), |_| QUEUE_BYTES);
        let queues = views.iter().map(|view| core.shown(view)).collect();
        Ok(v1::ListQueuesResponse { queues, revision: revision.0, next_page_token })
    }
}

impl Rpc for v1::UpdateQueueRequest {
    type Answer = v1::UpdateQueueResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/UpdateQueue";
    const ACTION: Action = Action::ManageQueues;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        let wanted = self.queue.clone().unwrap_or_default();
        let name = problems.queue(At::In("queue"), "name", &wanted.name);
        let settings = wanted.settings.unwrap_or_default();
        let settings = convert::new_settings(&settings, At::In("queue.settings"), &mut problems);
        let paths = self.update_mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
        let settings = convert::masked_settings(settings, paths, &mut problems);
        problems.check()?;
        let update = UpdateQueue { name, settings: Some(settings), if_revision: self.if_revision };
        let (queue, revision) = core.queue_changed(call, Op::UpdateQueue(update)).await?;
        Ok(v1::UpdateQueueResponse { queue, revision })
    }
}

impl Rpc for v1::DeleteQueueRequest {
    type Answer = v1::DeleteQueueResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/DeleteQueue";
    const ACTION: Action = Action::ManageQueues;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let delete = DeleteQueue { name: named(&self.name)?.as_str().to_owned(), force: self.force };
        let (reply, revision) = core.propose(Lane::Settle, Op::DeleteQueue(delete), call).await?;
        if let Reply::Sweep(sweep) = reply {
            core.swept(sweep, call).await?;
        }
        Ok(v1::DeleteQueueResponse { revision: revision.0 })
    }
}

macro_rules! switch {
    ($request:ident, $response:ident, $path:literal, $op:ident { $field:ident: $value:literal }) => {
        impl Rpc for v1::$request {
            type Answer = v1::$response;
            const PATH: &'static str = $path;
            const ACTION: Action = Action::ManageQueues;

            async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
                let name = named(&self.name)?.as_str().to_owned();
                let op = Op::$op($op { name, $field: $value, if_revision: self.if_revision });
                let (queue, revision) = core.queue_changed(call, op).await?;
                Ok(v1::$response { queue, revision })
            }
        }
    };
}

switch!(PauseQueueRequest, PauseQueueResponse, "/wharf.v1.QueueService/PauseQueue", PauseQueue { paused: true });
switch!(ResumeQueueRequest, ResumeQueueResponse, "/wharf.v1.QueueService/ResumeQueue", PauseQueue { paused: false });
switch!(SealQueueRequest, SealQueueResponse, "/wharf.v1.QueueService/SealQueue", SealQueue { sealed: true });
switch!(UnsealQueueRequest, UnsealQueueResponse, "/wharf.v1.QueueService/UnsealQueue", SealQueue { sealed: false });

impl Rpc for v1::WaitQueueRequest {
    type Answer = v1::WaitQueueResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/WaitQueue";
    const ACTION: Action = Action::Read;
    const WAITS: bool = true;

    fn place(&self) -> Place {
        Place::LeaderRead
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let name = named(&self.name)?;
        loop {
            // Register, then look: an end in between wakes the waiter.
            let waiter = core.dispatch.wait_queue(name.clone())?;
            let (view, revision) = core.read(false, &call.anew(), |machine| machine.queue(name.as_str())).await?;
            let view = view?;
            if view.ended {
                return Ok(v1::WaitQueueResponse { queue: Some(core.shown(&view)), revision: revision.0 });
            }
            wait(waiter, call.waits_until()).await?;
        }
    }
}

impl Rpc for v1::RedriveQueueRequest {
    type Answer = v1::RedriveQueueResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/RedriveQueue";
    const ACTION: Action = Action::Change;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        let from = problems.queue(At::Top, "from", &self.from);
        let to = if self.to.is_empty() { String::new() } else { problems.queue(At::Top, "to", &self.to) };
        problems.check()?;
        match core.propose(Lane::Settle, Op::Redrive(Redrive { from, to, max: self.max }), call).await? {
            (Reply::Sweep(sweep), revision) => {
                let redriven = core.swept(sweep, call).await?;
                Ok(v1::RedriveQueueResponse { redriven, revision: revision.0 })
            }
            _ => Err(Refusal::Internal("a redrive was answered by something else")),
        }
    }
}

impl Rpc for v1::ListWorkersRequest {
    type Answer = v1::ListWorkersResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/ListWorkers";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        if self.stale_ok { Place::Anybody } else { Place::LeaderRead }
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        let queue = (!self.queue.is_empty()).then(|| problems.queue(At::Top, "queue", &self.queue));
        problems.check()?;
        let plain = Self { page_size: 0, page_token: String::new(), stale_ok: false, ..self.clone() };
        let page = TextPage::of(core, self.page_size, &self.page_token, &plain)?;
        let (found, revision) = core
            .read(self.stale_ok, call, |machine| {
                if let Some(queue) = &queue {
                    machine.queue(queue)?;
                }
                Ok::<_, Refusal>(machine.sessions_after(queue.as_deref(), page.after.as_deref(), page.size + 1))
            })
            .await?;
        let mut views = found?;
        let next_page_token = page.cut(&mut views, |view| &view.session, session_bytes);
        let workers = views.iter().map(convert::worker).collect();
        Ok(v1::ListWorkersResponse { workers, revision: revision.0, next_page_token })
    }
}

impl Rpc for v1::DrainWorkerRequest {
    type Answer = v1::DrainWorkerResponse;
    const PATH: &'static str = "/wharf.v1.QueueService/DrainWorker";
    const ACTION: Action = Action::ManageQueues;

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        problems.at_most(At::Top, "session", self.session.len(), limits::MAX_WORD_BYTES);
        if self.session.is_empty() {
            problems.bad(At::Top, "session", "must not be empty");
        }
        problems.check()?;
        // Epoch 0: an operator's wish, whatever stream the session is on.
        let drain = DrainSession { session: self.session.clone(), epoch: 0 };
        match core.propose(Lane::Settle, Op::DrainSession(drain), call).await? {
            (Reply::Session(view), revision) => {
                Ok(v1::DrainWorkerResponse { worker: Some(convert::worker(&view)), revision: revision.0 })
            }
            _ => Err(Refusal::Internal("a drain was answered by something else")),
        }
    }
}
