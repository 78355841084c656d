//! `Complete`, `Fail`, `Extend`, `Release`: how holders end and keep their leases. Complete and
//! Fail stand on the fence alone; so do the others if they name no speaker, else they need the
//! session's current epoch.

use std::sync::Arc;

use crate::machine::command::{Complete, Completion, Extend, Extension, Fail, Failed, Lease, Release, Speaker};
use crate::machine::lease::Standing;
use crate::machine::life::Blame;
use crate::machine::state::{SessionNo, Settlement, Slot};
use crate::machine::{Machine, Reject, Reply, Result};
use crate::types::mutant::{self, Mutant};
use crate::types::{Blob, Cause, Fence, State as Phase, limits};

impl Machine {
    pub(in crate::machine) fn on_complete(&mut self, op: &Complete) -> Result<Reply> {
        check_count("completions", op.completions.len())?;
        let holder = self.hear_settler(op.speaker.as_ref());
        self.warm_completions(holder, &op.completions);
        let each = op.completions.iter().enumerate();
        Ok(Reply::Settled(each.map(|(place, completion)| self.complete(holder, place, completion)).collect()))
    }

    fn complete(&mut self, holder: Option<SessionNo>, place: usize, op: &Completion) -> Result<()> {
        let slot = match self.standing(holder, &op.queue, &op.id, op.fence, Settlement::Done)? {
            Standing::Answered => return Ok(()),
            Standing::Current(slot) => slot,
        };
        let most = self.state.queues.at(self.state.packages.at(slot).queue).settings.max_result;
        if op.result.len() as u64 > most {
            return Err(Reject::BadField {
                field: format!("completions[{place}].result"),
                problem: format!("{} bytes, the queue takes at most {most}", op.result.len()),
            });
        }
        check_word(&format!("completions[{place}].result_content_type"), &op.result_content_type)?;
        let session = self.unhold(slot);
        self.settle(slot, Settlement::Done);
        self.exonerate(slot);
        self.state.packages.at_mut(slot).attempts += 1;
        if !op.result.is_empty() || !op.result_content_type.is_empty() {
            let package = self.state.packages.at_mut(slot);
            let before = package.bytes();
            let rare = package.rare();
            rare.result = Blob::copied(&op.result);
            rare.result_content_type =
                (!op.result_content_type.is_empty()).then(|| op.result_content_type.as_str().into());
            self.resized_off_hold(slot, before);
        }
        self.finish(slot, Phase::Completed);
        self.after_release(session);
        Ok(())
    }

    /// The size of a package that left its session's hold and is not yet finished has changed.
    fn resized_off_hold(&mut self, slot: Slot, before: u64) {
        let package = self.state.packages.at(slot);
        let after = package.bytes();
        let line = self.index.line_mut(package.queue);
        line.bytes = if mutant::is(Mutant::KeepBytes) { line.bytes } else { line.bytes - before + after };
        self.index.bytes = self.index.bytes - before + after;
    }

    pub(in crate::machine) fn on_fail(&mut self, op: &Fail) -> Result<Reply> {
        check_count("failed", op.failed.len())?;
        let holder = self.hear_settler(op.speaker.as_ref());
        Ok(Reply::Settled(op.failed.iter().map(|failed| self.fail(holder, failed)).collect()))
    }

    fn fail(&mut self, holder: Option<SessionNo>, op: &Failed) -> Result<()> {
        let slot = match self.standing(holder, &op.queue, &op.id, op.fence, Settlement::Failed)? {
            Standing::Answered => return Ok(()),
            Standing::Current(slot) => slot,
        };
        let worker: Arc<str> = self.state.sessions.at(self.state.packages.at(slot).session).worker.clone();
        let session = self.unhold(slot);
        self.settle(slot, Settlement::Failed);
        self.exonerate(slot);
        self.charge(
            slot,
            &Blame {
                cause: Cause::Failed,
                message: &op.message,
                code: &op.code,
                worker,
                permanent: op.permanent,
                retry_delay_ms: op.retry_delay_ms,
            },
        );
        self.after_release(session);
        Ok(())
    }

    /// A Done or Fail counts even when its speaker is not known any more; if it is, it is alive and
    /// its withheld credit comes back.
    fn hear_settler(&mut self, speaker: Option<&Speaker>) -> Option<SessionNo> {
        let number = self.hear(speaker).ok()?;
        self.restore_credit(number);
        Some(number)
    }

    pub(in crate::machine) fn on_extend(&mut self, op: &Extend) -> Result<Reply> {
        check_count("extensions", op.extensions.len())?;
        let speaker = op.speaker.as_ref().map(|speaker| self.hear(Some(speaker))).transpose()?;
        let each = op.extensions.iter().enumerate();
        Ok(Reply::Settled(each.map(|(place, extension)| self.extend(speaker, place, extension)).collect()))
    }

    fn extend(&mut self, speaker: Option<SessionNo>, place: usize, op: &Extension) -> Result<()> {
        let slot = self.own_lease(speaker, &op.queue, &op.id, op.fence)?;
        let number = self.state.packages.at(slot).session;
        if op.checkpoint.len() > limits::MAX_CHECKPOINT_BYTES {
            return Err(Reject::BadField {
                field: format!("extensions[{place}].checkpoint"),
                problem: format!("{} bytes, at most {}", op.checkpoint.len(), limits::MAX_CHECKPOINT_BYTES),
            });
        }
        if !op.checkpoint.is_empty() {
            let package = self.state.packages.at_mut(slot);
            let before = package.bytes();
            package.rare().checkpoint = Blob::copied(&op.checkpoint);
            let package = self.state.packages.at(slot);
            self.index.resized(package, before);
            self.refresh(number);
        }
        self.extend_lease(slot, op.by_ms);
        Ok(())
    }

    pub(in crate::machine) fn on_release(&mut self, op: &Release) -> Result<Reply> {
        check_count("held", op.leases.len())?;
        if let Some(speaker) = &op.speaker {
            self.hear(Some(speaker))?;
        }
        let session = op.speaker.as_ref().map(|speaker| speaker.session.as_str());
        Ok(Reply::Settled(op.leases.iter().map(|lease| self.release(session, lease)).collect()))
    }

    fn release(&mut self, session: Option<&str>, op: &Lease) -> Result<()> {
        // A draining session is gone with its last lease; a repeat must still be answered.
        let slot = match self.standing(None, &op.queue, &op.id, op.fence, Settlement::Released)? {
            Standing::Answered => return Ok(()),
            Standing::Current(slot) => slot,
        };
        let number = self.state.packages.at(slot).session;
        if let Some(session) = session
            && self.session_no(session)? != number
        {
            return Err(Reject::LeaseLost { current: self.state.packages.at(slot).fence });
        }
        self.unhold(slot);
        self.settle(slot, Settlement::Released);
        let holder = self.state.sessions.at_mut(number);
        holder.withheld += 1;
        let cause = if holder.draining { Cause::Drained } else { Cause::Released };
        self.return_free(slot, cause);
        self.after_release(number);
        Ok(())
    }

    /// The speaker's own current lease, or whoever's it is.
    fn own_lease(&self, speaker: Option<SessionNo>, queue: &str, id: &str, fence: u64) -> Result<Slot> {
        let own = |slot| speaker.is_none_or(|number| self.state.packages.at(slot).session == number);
        let current = match self.standing(speaker, queue, id, fence, Settlement::None)? {
            Standing::Current(slot) if own(slot) => return Ok(slot),
            Standing::Current(slot) => self.state.packages.at(slot).fence,
            Standing::Answered => Fence(0),
        };
        Err(Reject::LeaseLost { current })
    }
}

fn check_count(field: &str, count: usize) -> Result<()> {
    if count <= limits::MAX_SETTLEMENTS_A_MESSAGE {
        return Ok(());
    }
    Err(Reject::BadField {
        field: field.to_owned(),
        problem: format!("at most {} in one message, there are {count}", limits::MAX_SETTLEMENTS_A_MESSAGE),
    })
}

fn check_word(field: &str, text: &str) -> Result<()> {
    if text.len() <= limits::MAX_WORD_BYTES {
        return Ok(());
    }
    let problem = format!("at most {} bytes, has {}", limits::MAX_WORD_BYTES, text.len());
    Err(Reject::BadField { field: field.to_owned(), problem })
}
