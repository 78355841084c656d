//! `Cancel` and `Retry`: what clients do to single packages.

use std::sync::Arc;

use crate::machine::command::{Cancel, Retry};
use crate::machine::life::cut;
use crate::machine::state::Slot;
use crate::machine::view::{FailureView, PackageView};
use crate::machine::{Machine, Reject, Reply, Result};
use crate::types::{Cause, Revision, State as Phase, limits};

impl Machine {
    pub(in crate::machine) fn on_cancel(&mut self, op: &Cancel) -> Result<Reply> {
        let slot = self.package_slot(&op.queue, &op.id)?;
        self.check_revision(slot, op.if_revision)?;
        let package = self.state.packages.at(slot);
        let before = self.package_view(slot);
        match package.phase {
            Phase::Cancelled => {}
            phase if phase.is_finished() => return Err(Reject::AlreadyFinished { state: phase }),
            Phase::Leased => {
                let lease = self.lease_ref(slot);
                let session = self.unhold(slot);
                self.revoke(session, vec![lease], "the package was cancelled");
                self.note_reason(slot, &op.reason);
                self.finish(slot, Phase::Cancelled);
                self.after_release(session);
            }
            _ => {
                self.note_reason(slot, &op.reason);
                self.finish(slot, Phase::Cancelled);
            }
        }
        Ok(self.reply_package(slot, before))
    }

    fn note_reason(&mut self, slot: Slot, reason: &str) {
        if reason.is_empty() {
            return;
        }
        let failure = FailureView {
            cause: Cause::Released,
            message: cut(reason, limits::MAX_MESSAGE_BYTES).into(),
            code: "CANCELLED".into(),
            time: self.state.wall,
            worker: "".into(),
        };
        self.state.packages.at_mut(slot).rare().failure = Some(Arc::new(failure));
    }

    pub(in crate::machine) fn on_retry(&mut self, op: &Retry) -> Result<Reply> {
        let slot = self.package_slot(&op.queue, &op.id)?;
        self.check_revision(slot, op.if_revision)?;
        let package = self.state.packages.at(slot);
        if package.phase != Phase::Dead || package.moved() {
            return Err(Reject::NotDead { state: package.phase });
        }
        let before = self.package_view(slot);
        self.revive(slot);
        Ok(self.reply_package(slot, before))
    }

    /// The package as it stands now; `before` tells of it if its queue keeps nothing that is finished.
    fn reply_package(&self, slot: Slot, before: PackageView) -> Reply {
        let still_there =
            self.state.packages.get(slot).is_some_and(|package| package.create_revision == before.create_revision);
        let view = match still_there {
            true => self.package_view(slot),
            false => PackageView { state: Phase::Cancelled, session: None, lease_expire: None, due: None, ..before },
        };
        Reply::Package(Arc::new(view))
    }

    fn package_slot(&self, queue: &str, id: &str) -> Result<Slot> {
        let number = self.queue_no(queue)?;
        if let Some(slot) = self.find(number, id) {
            return Ok(slot);
        }
        Err(match self.find_grave(number, id) {
            Some(grave) => Reject::AlreadyFinished { state: grave.phase },
            None => Reject::PackageNotFound { queue: queue.to_owned(), id: id.to_owned() },
        })
    }

    fn check_revision(&self, slot: Slot, expected: Option<u64>) -> Result<()> {
        let actual = self.state.packages.at(slot).revision;
        match expected.map(Revision) {
            Some(expected) if expected != actual => Err(Reject::RevisionMismatch { expected, actual }),
            _ => Ok(()),
        }
    }
}
