//! Asking before something is destroyed: on a terminal a question, elsewhere a refusal that says what to
//! add. `--yes` answers beforehand.

use std::io::{self, BufRead, IsTerminal};

use clap::Args;

use super::exit::{Exit, Failure};
use super::output;

/// What a destructive verb takes.
#[derive(Args, Clone, Copy, Debug)]
pub struct Consent {
    /// Do it without asking.
    #[arg(long)]
    yes: bool,
    /// Tell what would be done, and do nothing.
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
}

impl Consent {
    /// Asks whether to do this, as in `purge 12 packages of jobs`.
    pub fn ask(self, what: &str) -> anyhow::Result<()> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let failure = Failure::new(Exit::Usage, format!("this would {what}; nothing was done"));
            return Err(failure.next("the same command with --yes, or with --dry-run").into());
        }
        eprint!("{what}? [y/N] ");
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if agrees(&answer) {
            return Ok(());
        }
        output::note("nothing was done");
        Err(Failure::new(Exit::Failed, "not confirmed").into())
    }
}

fn agrees(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// `1 package`, `2 packages`.
pub fn packages(count: u64) -> String {
    if count == 1 { "1 package".into() } else { format!("{count} packages") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for yes in ["y\n", "Y", " yes \n", "YES"] {
            assert!(agrees(yes), "{yes:?}");
        }
        for no in ["", "\n", "n", "yep", "no\n"] {
            assert!(!agrees(no), "{no:?}");
        }
        assert_eq!((packages(1), packages(0)), ("1 package".to_owned(), "0 packages".to_owned()));
    }
}
