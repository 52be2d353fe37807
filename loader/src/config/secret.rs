//! Secrets come from the environment or from files and never leave by a log, a metric or an error message.

use std::fmt;
use std::path::Path;

use crate::{Error, Result};

/// A password or the like. It has no `Display`, and `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself, for the library that has to know it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Reads the secret that `<name>_env` or `<name>_file` points to. Both at once are refused, none is `None`.
    pub(super) fn read(name: &str, variable: Option<&str>, file: Option<&Path>) -> Result<Option<Self>> {
        match (variable, file) {
            (Some(_), Some(_)) => Err(Error::unfit(format!("{name}_env and {name}_file are both set, one is enough"))),
            (Some(variable), None) => match std::env::var(variable) {
                Ok(value) => Ok(Some(Self(value))),
                Err(_) => Err(Error::unfit_hint(
                    format!("the environment variable \"{variable}\" named by {name}_env is not set"),
                    "Set it for the process of the loader; it is read once, at the start.",
                )),
            },
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(value) => Ok(Some(Self(value.trim_end_matches(['\n', '\r']).to_owned()))),
                Err(error) => Err(Error::unfit(format!(
                    "the file \"{}\" named by {name}_file cannot be read: {error}",
                    file.display()
                ))),
            },
            (None, None) => Ok(None),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}
