//! Intervals in texts that somebody else wrote.

use pgrx::datum::Interval;
use pgrx::prelude::*;

/// The interval that PostgreSQL reads in a text, if it can. Nothing but memory is touched in between, so no subtransaction is needed
/// to go on after an error.
pub(crate) fn interval(text: &str) -> Option<Interval> {
    let text = text.to_owned();
    PgTryBuilder::new(move || text.parse::<Interval>().ok())
        .catch_when(PgSqlErrorCode::ERRCODE_INTERVAL_FIELD_OVERFLOW, |_| None)
        .execute()
}
