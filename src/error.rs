//! Errors of core and of SPI become PostgreSQL error reports: the only place that turns an SQLSTATE into PostgreSQL's number.

use crate::pg::CaughtError;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use tally_core::error::Explain;

/// What can go wrong in a function of tally.
#[derive(Debug)]
pub(crate) struct Error {
    message: String,
    sqlstate: &'static str,
    detail: Option<String>,
    hint: Option<String>,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self { message: message.into(), sqlstate, detail: None, hint: None }
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// For a column of a plan: SQLSTATE, message and hint.
    pub(crate) fn in_one_line(&self) -> String {
        let hint = self.hint.as_deref().map(|hint| format!(" HINT: {hint}")).unwrap_or_default();
        format!("{}: {}{hint}", self.sqlstate, self.message)
    }
}

impl<E: Explain> From<E> for Error {
    fn from(error: E) -> Self {
        Self { message: error.to_string(), sqlstate: error.sqlstate(), detail: error.detail(), hint: error.hint() }
    }
}

/// A misuse of SPI by tally itself; errors of the SQL that runs pass through unchanged.
pub(crate) fn spi(error: pgrx::spi::SpiError) -> Error {
    Error::new("XX000", format!("unexpected answer from SPI: {error}"))
}

/// For statements that may answer no row: SPI calls that a wrong position.
pub(crate) fn no_row_is_none<T>(answer: pgrx::spi::Result<Option<T>>) -> Result<Option<T>> {
    match answer {
        Err(pgrx::spi::SpiError::InvalidPosition) => Ok(None),
        other => other.map_err(spi),
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let mut report = ErrorReport::new(code(error.sqlstate), error.message, pgrx::function_name!());
        if let Some(detail) = error.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = error.hint {
            report = report.set_hint(hint);
        }
        report
    }
}

/// An error that has been caught, whoever raised it, as the record of a run keeps it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { sqlstate: error.sqlstate.into(), message: error.message, detail: error.detail, hint: error.hint }
    }
}

impl From<CaughtError> for Failure {
    fn from(caught: CaughtError) -> Self {
        let (CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. }) = caught;
        Self {
            sqlstate: text(report.sql_error_code() as i32),
            message: report.message().into(),
            detail: report.detail().map(Into::into),
            hint: report.hint().map(Into::into),
        }
    }
}

/// The five characters of PostgreSQL's packed number.
fn text(packed: i32) -> String {
    (0..5).map(|position| char::from(b'0' + (packed >> (6 * position) & 0x3f) as u8)).collect()
}

/// PostgreSQL packs an SQLSTATE six bits per character, the first one lowest (MAKE_SQLSTATE in elog.h).
fn code(sqlstate: &str) -> PgSqlErrorCode {
    let packed = sqlstate
        .bytes()
        .enumerate()
        .fold(0i32, |packed, (position, byte)| packed | (i32::from(byte.wrapping_sub(b'0')) & 0x3f) << (6 * position));
    PgSqlErrorCode::from(packed)
}

/// Ends the current statement with this error: for functions that PostgreSQL calls without pgrx in between.
#[cold]
#[inline(never)]
pub(crate) fn raise(error: Error) -> ! {
    ErrorReport::from(error).report(PgLogLevel::ERROR);
    unreachable!("a report at level ERROR does not return")
}

/// Tells the client and goes on.
pub(crate) fn warn(error: Error) {
    ErrorReport::from(error).report(PgLogLevel::WARNING);
}
