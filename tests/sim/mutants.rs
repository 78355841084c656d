//! Every planted fault that the simulation is to catch makes a seed fail.

use std::process::Command;

use wharf::testkit::mutants::{Layer, of, run};
use wharf::types::mutant::Mutant;

/// Seeds that are tried, in this order, for each.
const SEEDS: std::ops::Range<u64> = 1..21;

#[test]
fn mutants_are_caught_by_a_seed() {
    let survives = |mutant: Mutant| {
        !SEEDS.into_iter().any(|seed| {
            let mut sim = Command::new(env!("CARGO_BIN_EXE_wharf"));
            sim.args(["sim", "--seed", &seed.to_string()]);
            let code = run(sim, mutant).expect("it runs").code();
            if code == Some(1) {
                println!("{mutant:?}: seed {seed}");
            }
            code == Some(1)
        })
    };
    let survivors: Vec<Mutant> =
        of(Layer::Simulation).map(|planted| planted.mutant).filter(|mutant| survives(*mutant)).collect();
    assert_eq!(survivors, []);
}
