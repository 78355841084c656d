//! ListPackages: page by page while packages move.
//!
//! Invariants: apply waits for at most `LIST_LOOKS_AT_ONCE` looks at a time, and a call makes at most
//! `MAX_LIST_LOOKS`: a filter that takes little of a long queue gets short pages, not a stalled node.

use std::ops::Range;

use super::authorize::Action;
use super::call::Call;
use super::forward::{Place, Rpc};
use super::page::{self, Tokens};
use super::status::Refusal;
use super::validate::{At, Problems};
use super::{Core, convert};
use crate::machine::view::PackageView;
use crate::machine::{Listed, Machine, Reject, Wanted};
use crate::proto::v1;
use crate::types::{State, limits};

impl Rpc for v1::ListPackagesRequest {
    type Answer = v1::ListPackagesResponse;
    const PATH: &'static str = "/wharf.v1.PackageService/ListPackages";
    const ACTION: Action = Action::Read;

    fn place(&self) -> Place {
        if self.stale_ok { Place::Anybody } else { Place::LeaderRead }
    }

    async fn run(&self, core: &Core, call: &Call) -> Result<Self::Answer, Refusal> {
        let mut problems = Problems::default();
        let queue = problems.queue(At::Top, "queue", &self.queue);
        let mut wanted = Wanted { states: 0, labels: self.labels.clone(), kind: self.kind.clone() };
        for (index, number) in self.states.iter().enumerate() {
            match u32::try_from(*number).ok().and_then(State::from_number) {
                Some(state) => wanted.states |= 1 << state as u32,
                None => problems.bad(At::Top, format_args!("states[{index}]"), "is no state"),
            }
        }
        let size = page::size(self.page_size, limits::DEFAULT_LIST_PAGE, &mut problems);
        let plain = Self { page_size: 0, page_token: String::new(), stale_ok: false, ..self.clone() };
        let tokens = Tokens::of(core, Self::PATH, &plain);
        let place = tokens.open(&self.page_token, &mut problems);
        problems.check()?;
        let (end, revision) = core.read(self.stale_ok, call, |machine| machine.list_end()).await?;
        let (mut from, end) = place.as_deref().and_then(of_bytes).unwrap_or((0, end));

        let mut packages: Vec<v1::Package> = Vec::new();
        let mut bytes = 0;
        let mut next = None;
        for _ in 0..limits::MAX_LIST_LOOKS / limits::LIST_LOOKS_AT_ONCE {
            let room = size - packages.len();
            let listed = core.raft.view(|machine| piece(machine, &queue, &wanted, from..end, room))?;
            next = listed.next;
            for view in listed.packages {
                bytes += weight(&view);
                if bytes > limits::MAX_LIST_BYTES && !packages.is_empty() {
                    next = Some(view.seq);
                    break;
                }
                packages.push(convert::package(&view, false));
            }
            let Some(place) = next else { break };
            // A node that lags stands still here.
            if packages.len() >= size || bytes > limits::MAX_LIST_BYTES || place == from {
                break;
            }
            from = place;
            tokio::task::yield_now().await;
        }
        let next_page_token = next.map(|next| tokens.seal(&to_bytes(next, end))).unwrap_or_default();
        Ok(v1::ListPackagesResponse { packages, next_page_token, revision: revision.0 })
    }
}

/// What is found while apply waits.
pub(super) fn piece(
    machine: &Machine,
    queue: &str,
    wanted: &Wanted,
    range: Range<u64>,
    room: usize,
) -> Result<Listed, Reject> {
    machine.list(queue, wanted, range.start, range.end, limits::LIST_LOOKS_AT_ONCE, room)
}

/// A list's place: where it goes on, and where it ends.
fn to_bytes(next: u64, end: u64) -> [u8; 16] {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&next.to_le_bytes());
    place[8..].copy_from_slice(&end.to_le_bytes());
    place
}

fn of_bytes(place: &[u8]) -> Option<(u64, u64)> {
    let (next, end) = place.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*next), u64::from_le_bytes(end.try_into().ok()?)))
}

/// About what a package takes in a message.
fn weight(view: &PackageView) -> usize {
    const FIELDS: usize = 256;
    let labels = view.body.iter().flat_map(|body| body.labels().iter());
    let labels: usize = labels.map(|(key, value)| key.len() + value.len() + 8).sum();
    let failure = view.last_failure.as_ref().map_or(0, |failure| failure.message.len() + failure.code.len());
    FIELDS + view.id.len() + labels + view.result.len() + view.checkpoint.len() + failure
}
