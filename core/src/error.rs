//! How a request can be wrong is said here once: each concept has an error enum beside its code, and all of them explain
//! themselves through [`Explain`], so that every wording is tested without a server.

use std::fmt::Display;

/// An error that a user can meet: `Display` is the message (lower case, no full stop, names quoted, one line).
pub trait Explain: Display {
    /// The five characters of the SQLSTATE, such as `22023`.
    fn sqlstate(&self) -> &'static str;
    /// Whole sentences about what was found.
    fn detail(&self) -> Option<String> {
        None
    }
    /// Whole sentences that say what to do.
    fn hint(&self) -> Option<String> {
        None
    }
}
