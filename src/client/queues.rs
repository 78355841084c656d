//! Calls about queues and workers.

use std::time::Duration;

use tonic::Code;
use tonic::transport::Channel;

use super::call::Repeat;
use super::packages::malformed;
use super::{Client, Error, Queue, QueueSettings, WorkerInfo};
use crate::proto::v1::queue_service_client::QueueServiceClient;
use crate::proto::v1::{
    CreateQueueRequest, DeleteQueueRequest, DrainWorkerRequest, GetQueueRequest, ListQueuesRequest, ListWorkersRequest,
    PauseQueueRequest, RedriveQueueRequest, ResumeQueueRequest, SealQueueRequest, UnsealQueueRequest,
    UpdateQueueRequest, WaitQueueRequest,
};
use crate::types::limits;

/// What may be sent again when its outcome is not known: with a revision to match, the second try
/// would be refused for the first one's change.
fn unless_conditional(if_revision: Option<u64>) -> Repeat {
    if if_revision.is_none() { Repeat::Safe } else { Repeat::IfNotApplied }
}

impl Client {
    /// Creates a queue. The same name with the same settings answers as the first time.
    pub async fn create_queue(&self, name: &str, settings: QueueSettings) -> Result<Queue, Error> {
        let request = CreateQueueRequest { name: name.to_owned(), settings: Some(settings) };
        let response = self
            .call(Repeat::Safe, request, |channel, request| async move { queues(channel).create_queue(request).await })
            .await?;
        some(response.queue)
    }

    pub async fn get_queue(&self, name: &str) -> Result<Queue, Error> {
        let request = GetQueueRequest { name: name.to_owned(), stale_ok: false };
        let response = self
            .call(Repeat::Read, request, |channel, request| async move { queues(channel).get_queue(request).await })
            .await?;
        some(response.queue)
    }

    /// All queues whose name begins with `prefix`.
    pub async fn list_queues(&self, prefix: &str) -> Result<Vec<Queue>, Error> {
        let mut request = ListQueuesRequest { prefix: prefix.to_owned(), ..Default::default() };
        let mut all = Vec::new();
        loop {
            let rpc = |channel, request| async move { queues(channel).list_queues(request).await };
            let page = self.call(Repeat::Read, request.clone(), rpc).await?;
            all.extend(page.queues);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Changes the settings named by `paths`, such as `lease`.
    pub async fn update_queue(
        &self,
        name: &str,
        settings: QueueSettings,
        paths: &[&str],
        if_revision: Option<u64>,
    ) -> Result<Queue, Error> {
        let queue = Queue { name: name.to_owned(), settings: Some(settings), ..Default::default() };
        let paths = paths.iter().map(ToString::to_string).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = UpdateQueueRequest { queue: Some(queue), update_mask, if_revision };
        let response = self
            .call(unless_conditional(if_revision), request, |channel, request| async move {
                queues(channel).update_queue(request).await
            })
            .await?;
        some(response.queue)
    }

    /// Deletes a queue. Without `force` it must be empty but for finished packages.
    pub async fn delete_queue(&self, name: &str, force: bool) -> Result<(), Error> {
        let request = DeleteQueueRequest { name: name.to_owned(), force };
        let answer = self
            .call(Repeat::Safe, request, |channel, request| async move { queues(channel).delete_queue(request).await })
            .await;
        match answer {
            Ok(_) => Ok(()),
            // An earlier try of this very call may have deleted it; either way it is gone.
            Err(error) if error.code() == Code::NotFound && error.is_unknown() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Stops delivery. What is leased goes on.
    pub async fn pause_queue(&self, name: &str, if_revision: Option<u64>) -> Result<Queue, Error> {
        let request = PauseQueueRequest { name: name.to_owned(), if_revision };
        let response = self
            .call(unless_conditional(if_revision), request, |channel, request| async move {
                queues(channel).pause_queue(request).await
            })
            .await?;
        some(response.queue)
    }

    pub async fn resume_queue(&self, name: &str, if_revision: Option<u64>) -> Result<Queue, Error> {
        let request = ResumeQueueRequest { name: name.to_owned(), if_revision };
        let response = self
            .call(unless_conditional(if_revision), request, |channel, request| async move {
                queues(channel).resume_queue(request).await
            })
            .await?;
        some(response.queue)
    }

    /// No new packages from outside. Once nothing is scheduled, ready or leased, the queue has ended.
    pub async fn seal_queue(&self, name: &str, if_revision: Option<u64>) -> Result<Queue, Error> {
        let request = SealQueueRequest { name: name.to_owned(), if_revision };
        let response = self
            .call(unless_conditional(if_revision), request, |channel, request| async move {
                queues(channel).seal_queue(request).await
            })
            .await?;
        some(response.queue)
    }

    pub async fn unseal_queue(&self, name: &str, if_revision: Option<u64>) -> Result<Queue, Error> {
        let request = UnsealQueueRequest { name: name.to_owned(), if_revision };
        let response = self
            .call(unless_conditional(if_revision), request, |channel, request| async move {
                queues(channel).unseal_queue(request).await
            })
            .await?;
        some(response.queue)
    }

    /// Waits until the queue has ended; answers with the counts. Survives changes of the leader.
    pub async fn wait_queue(&self, name: &str, within: Duration) -> Result<Queue, Error> {
        let request = WaitQueueRequest { name: name.to_owned() };
        let response = self
            .call_long(within, request, |channel, request| async move { queues(channel).wait_queue(request).await })
            .await?;
        some(response.queue)
    }

    /// Submits DEAD packages of `from` to `to` (empty: back to where they came from), at most `max`
    /// (0: all). Answers how many.
    pub async fn redrive_queue(&self, from: &str, to: &str, max: u64) -> Result<u64, Error> {
        let request = RedriveQueueRequest { from: from.to_owned(), to: to.to_owned(), max };
        let response = self
            .call(Repeat::IfNotApplied, request, |channel, request| async move {
                queues(channel).redrive_queue(request).await
            })
            .await?;
        Ok(response.redriven)
    }

    /// The sessions that work on `queue` (empty: all).
    pub async fn list_workers(&self, queue: &str) -> Result<Vec<WorkerInfo>, Error> {
        let mut request = ListWorkersRequest { queue: queue.to_owned(), ..Default::default() };
        let mut all = Vec::new();
        loop {
            let rpc = |channel, request| async move { queues(channel).list_workers(request).await };
            let page = self.call(Repeat::Read, request.clone(), rpc).await?;
            all.extend(page.workers);
            if page.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Tells a session to finish what it holds and go.
    pub async fn drain_worker(&self, session: &str) -> Result<WorkerInfo, Error> {
        let request = DrainWorkerRequest { session: session.to_owned() };
        let response = self
            .call(Repeat::Safe, request, |channel, request| async move { queues(channel).drain_worker(request).await })
            .await?;
        response.worker.ok_or_else(|| malformed("an answer without its worker"))
    }
}

fn some(queue: Option<Queue>) -> Result<Queue, Error> {
    queue.ok_or_else(|| malformed("an answer without its queue"))
}

fn queues(channel: Channel) -> QueueServiceClient<Channel> {
    QueueServiceClient::new(channel)
        .max_decoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_CLIENT_MESSAGE_BYTES)
}
