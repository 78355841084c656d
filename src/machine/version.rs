//! The machine version gates every change of behaviour. It is raised by a logged command once all
//! members know it, so that no two nodes ever apply one entry differently.

use super::Broken;
use super::command::{Batch, Op};

/// The highest version that this program can apply.
pub const CURRENT: u32 = 1;

/// Refuses what a version above `knows` wrote, before anything is applied.
pub fn check(batch: &Batch, knows: u32) -> Result<(), Broken> {
    let raised = batch.commands.iter().filter_map(|command| match &command.op {
        Some(Op::RaiseVersion(op)) => Some(op.version),
        _ => None,
    });
    let needs = raised.chain([batch.min_version]).max().unwrap_or(0);
    if needs > knows {
        return Err(Broken::NewerVersion { needs, knows });
    }
    if batch.commands.iter().any(|command| command.op.is_none()) {
        return Err(Broken::UnknownCommand);
    }
    Ok(())
}
