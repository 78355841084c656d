//! What `wharf` can do beside, when it is built with the feature `testkit`.

mod chaos;
mod prove;
mod sim;

use std::process::ExitCode;
use std::time::Duration;

use clap::{FromArgMatches, Subcommand};

use super::workload::run_if_worker_process;
use crate::cli::{self, exit::Exit};

#[derive(Subcommand, Debug)]
enum Verb {
    Sim(sim::Sim),
    Chaos(chaos::Chaos),
    Prove(prove::Prove),
}

/// Reads the arguments, as `wharf::cli` does, and these verbs besides.
pub fn main() -> ExitCode {
    if let Some(exit) = run_if_worker_process() {
        return exit;
    }
    let matches = Verb::augment_subcommands(cli::command()).get_matches();
    let done = match Verb::from_arg_matches(&matches) {
        Ok(Verb::Sim(sim)) => sim.run(),
        Ok(Verb::Chaos(chaos)) => chaos.run(),
        Ok(Verb::Prove(prove)) => prove.run(),
        Err(_) => return cli::obey(&matches),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("wharf: {error:#}");
            Exit::Failed.into()
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from(span).map_err(|error| error.to_string())
}
