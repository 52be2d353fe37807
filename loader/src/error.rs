//! What can end the loader, and with which exit code. Errors while it runs answer one question first (retry, skip or stop);
//! see `sink` for those of PostgreSQL.

use std::process::ExitCode;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A reason to leave. Each variant has one exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Exit 1: a bug, such as a broken invariant.
    #[error("internal error: {0}")]
    Bug(String),
    /// Exit 2: the command line is wrong in a way that the parser of arguments cannot see.
    #[error("{0}")]
    CommandLine(String),
    /// Exit 3: configuration, catalog, topic or format do not fit.
    #[error("{message}")]
    Unfit { message: String, hint: Option<String> },
    /// Exit 4: PostgreSQL or Kafka cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Exit 4: login or TLS does not succeed, and will not by trying again.
    #[error("{message}")]
    Refused { message: String, hint: Option<String> },
    /// Exit 5: stopped to protect data, and no part is left.
    #[error("{message}")]
    Protected { message: String, hint: Option<String> },
    /// Exit 6: too many dead letters.
    #[error("{0}")]
    TooManyDeadLetters(String),
    /// Exit 7: forced to stop. Nothing is lost, the open batch is read again.
    #[error("{0}")]
    Forced(String),
}

impl Error {
    /// Configuration, catalog, topic or format do not fit (exit 3).
    pub fn unfit(message: impl Into<String>) -> Self {
        Self::Unfit { message: message.into(), hint: None }
    }

    /// The same, with a whole sentence that says what to do.
    pub fn unfit_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unfit { message: message.into(), hint: Some(hint.into()) }
    }

    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Unfit { hint, .. } | Self::Refused { hint, .. } | Self::Protected { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }

    /// The exit code as a number; 0 is success and has no error.
    pub fn code(&self) -> u8 {
        match self {
            Self::Bug(_) => 1,
            Self::CommandLine(_) => 2,
            Self::Unfit { .. } => 3,
            Self::Unreachable(_) | Self::Refused { .. } => 4,
            Self::Protected { .. } => 5,
            Self::TooManyDeadLetters(_) => 6,
            Self::Forced(_) => 7,
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }
}
