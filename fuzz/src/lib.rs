//! An in-process fuzzer for the bytes and texts that reach tally from outside: stored sketches of both types, the JSON of a top-N list, and
//! the bytes of values that are hashed.
//!
//! A [`Corpus`] makes inputs: valid values, damaged at random, and what has been interesting before is damaged again. A [`Target`] does with
//! an input whatever the extension would do, and checks that what must hold of any input does. Inputs lie in a [`Fenced`] page, so that
//! reading a byte past their end ends the process.
//!
//! `make fuzz INPUTS=100000000` runs it for long; the server tests send the same inputs through SQL.

mod corpus;
mod fenced;
mod target;

pub use corpus::Corpus;
pub use fenced::Fenced;
pub use target::Target;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// What a run without a finding has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub inputs: u64,
    /// Those that are values.
    pub accepted: u64,
    /// Different things that inputs have led to.
    pub outcomes: usize,
    pub slowest: Duration,
}

/// An input with which something is wrong; what that is has been printed by the panic.
#[derive(Clone, Debug)]
pub struct Finding {
    pub target: Target,
    pub input: Vec<u8>,
    pub other: Vec<u8>,
}

/// Runs a target over so many inputs; `progress` hears of each.
///
/// # Errors
/// The first finding.
///
/// # Panics
/// The system has no memory.
pub fn fuzz(target: Target, seed: u64, inputs: u64, mut progress: impl FnMut(&Summary)) -> Result<Summary, Finding> {
    let mut corpus = Corpus::new(target, seed);
    let mut pages = Fenced::new(target.longest()).expect("the system has memory");
    let mut summary = Summary::default();
    for _ in 0..inputs {
        let (input, other) = corpus.draw();
        let input = pages.put(input);
        let began = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| (target.accepts(input), target.run(input, other))));
        let Ok((is_accepted, outcome)) = done else {
            return Err(Finding { target, input: input.to_vec(), other: other.to_vec() });
        };
        corpus.note(outcome);
        summary.inputs += 1;
        summary.accepted += u64::from(is_accepted);
        summary.outcomes = corpus.outcomes();
        summary.slowest = summary.slowest.max(began.elapsed());
        progress(&summary);
    }
    Ok(summary)
}

#[cfg(test)]
mod tests;
