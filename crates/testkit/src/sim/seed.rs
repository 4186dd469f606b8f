//! Seeds: the same in every run of `cargo xtask test`, so that it tells of a change and not of luck; drawn anew with
//! `--full` and where a test is run by itself. Printed when a run fails, and given back to see it fail again.

use std::fmt;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The variable that names the one seed to run.
const VARIABLE: &str = "AMBIT_SEED";

/// The variable that holds the number out of which all seeds are made.
const ORIGIN: &str = "AMBIT_SEED_ORIGIN";

/// The seed of one run. Where the thread panics while it is held, it says how to see that again.
#[derive(Debug)]
pub struct Seed(u64);

impl Seed {
    /// The number.
    pub fn number(&self) -> u64 {
        self.0
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            crate::say(&format!("this was seed {0}: run it again with {VARIABLE}={0}", self.0));
        }
    }
}

/// The seeds to run a simulation with: the one that `AMBIT_SEED` names; else `count` of them or as many as `AMBIT_SEEDS`
/// says, made out of `AMBIT_SEED_ORIGIN` or drawn anew.
///
/// # Panics
///
/// If a variable holds no number.
pub fn seeds(count: usize) -> impl Iterator<Item = Seed> {
    let named = number(VARIABLE);
    let count = number("AMBIT_SEEDS").and_then(|n| usize::try_from(n).ok()).unwrap_or(count);
    let mut origin = SmallRng::seed_from_u64(number(ORIGIN).unwrap_or_else(rand::random));
    (0..if named.is_some() { 1 } else { count }).map(move |_| Seed(named.unwrap_or_else(|| origin.random())))
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}
