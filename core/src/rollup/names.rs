//! Names of columns that do not meet.

use crate::ident;
use std::collections::HashSet;

/// Hands out column names, each once.
#[derive(Clone, Debug)]
pub(super) struct Names(HashSet<String>);

impl Names {
    pub fn new(taken: impl IntoIterator<Item = String>) -> Self {
        Self(taken.into_iter().collect())
    }

    /// The name, cut to what PostgreSQL takes, and with a number behind it if it has been handed out before.
    pub fn claim(&mut self, wanted: &str) -> String {
        let mut name = ident::fit(wanted, "");
        let mut number = 1;
        while !self.0.insert(name.clone()) {
            number += 1;
            name = ident::fit(wanted, &format!("_{number}"));
        }
        name
    }
}
