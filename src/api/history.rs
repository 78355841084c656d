//! `ListHistory`: what this node remembers of finished packages.

use prost_types::Timestamp;

use super::authorize::Action;
use super::call::Call;
use super::forward::{Place, Rpc};
use super::status::Refusal;
use super::validate::{At, Problems};
use super::{Core, convert};
use crate::history::{self, Attempt, Failure, Finished, Gap, Query, Refused};
use crate::proto::v1;
use crate::types::{Wall, limits};

impl Rpc for v1::ListHistoryRequest {
    type Answer = v1::ListHistoryResponse;
    const PATH: &'static str = "/wharf.v1.PackageService/ListHistory";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        Place::Anybody
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let query = query(self)?;
        let page = core.history.list(query, call.left()).await?;
        Ok(v1::ListHistoryResponse {
            entries: page.entries.into_iter().map(entry).collect(),
            next_page_token: page.next.map(|place| token(&place)).unwrap_or_default(),
            node: core.history.node(),
            covered_revision: page.covered,
            gaps: page.gaps.iter().map(gap).collect(),
            revision: core.raft.changes().latest().0,
        })
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::History(refused)
    }
}

fn query(request: &v1::ListHistoryRequest) -> Result<Query, Refusal> {
    let mut problems = Problems::default();
    let queue = problems.queue(At::Top, "queue", &request.queue);
    problems.id_or_none(At::Top, &request.id);
    let mut wall =
        |field: &str, time: &Option<Timestamp>| time.as_ref().map(|time| problems.wall(At::Top, field, time));
    let (since, until) = (wall("since", &request.since), wall("until", &request.until));
    let page_size = request.page_size as usize;
    if page_size > limits::HISTORY_PAGE {
        problems.bad(At::Top, "page_size", format_args!("must be at most {}", limits::HISTORY_PAGE));
    }
    let after = match request.page_token.as_str() {
        "" => None,
        text => {
            let place = place(text);
            if place.is_none() {
                problems.bad(At::Top, "page_token", "is none that this call gave");
            }
            place
        }
    };
    problems.check()?;
    let page_size = if page_size == 0 { limits::HISTORY_PAGE_DEFAULT } else { page_size };
    Ok(Query { queue, id: request.id.clone(), since, until, page_size, after })
}

fn token(place: &history::Place) -> String {
    format!("{:x}-{:x}", place.finish.0, place.revision)
}

fn place(token: &str) -> Option<history::Place> {
    let (finish, revision) = token.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(history::Place { finish: Wall(number(finish)?), revision: number(revision)? })
}

fn time(ms: u64) -> Option<Timestamp> {
    Some(convert::timestamp(Wall(ms)))
}

fn entry((row, attempts): (Finished, Vec<Attempt>)) -> v1::HistoryEntry {
    let package = v1::Package {
        queue: row.queue,
        id: row.id,
        kind: row.kind,
        content_type: row.content_type,
        labels: row.labels,
        priority: row.priority,
        not_before: row.not_before_ms.and_then(time),
        expire_time: row.expire_ms.and_then(time),
        max_attempts: row.max_attempts,
        state: row.state as i32,
        attempts: row.attempts,
        fence: row.fence,
        worker: row.worker,
        create_time: time(row.create_ms),
        finish_time: time(row.finish_ms),
        result: row.result.into(),
        result_content_type: row.result_content_type,
        result_evicted: row.result_left_out,
        moved_to: row.moved_to,
        last_failure: row.failure.map(failure),
        create_revision: row.create_revision,
        revision: row.revision,
        ..Default::default()
    };
    v1::HistoryEntry { package: Some(package), attempts: attempts.into_iter().map(attempt).collect() }
}

fn attempt(row: Attempt) -> v1::Attempt {
    v1::Attempt {
        fence: row.fence,
        worker: row.worker,
        session: row.session,
        begin_time: row.begin_ms.and_then(time),
        end_time: time(row.end_ms),
        state: row.state as i32,
        cause: row.cause as i32,
        charged: row.charged,
        failure: row.failure.map(failure),
    }
}

fn failure(row: Failure) -> v1::Failure {
    v1::Failure {
        cause: row.cause as i32,
        message: row.message,
        code: row.code,
        time: time(row.time_ms),
        worker: row.worker,
    }
}

fn gap(gap: &Gap) -> v1::HistoryGap {
    v1::HistoryGap { from_revision: gap.from, to_revision: gap.to, time: time(gap.time_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_default_size() {
        let query = query(&v1::ListHistoryRequest { queue: "jobs".into(), ..Default::default() });
        assert_eq!(query.map(|query| query.page_size).ok(), Some(limits::HISTORY_PAGE_DEFAULT));
    }

    #[test]
    fn tokens_read_back_and_others_are_refused() {
        let place_of = history::Place { finish: Wall(1_767_225_600_123), revision: 4711 };
        assert_eq!(place(&token(&place_of)), Some(place_of));
        for bad in ["", "-", "1", "x-1", "1-", "1-2-3", "-1-2"] {
            assert_eq!(place(bad), None, "{bad:?}");
        }
    }
}
