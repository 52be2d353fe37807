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

#[cfg(test)]
mod tests;
