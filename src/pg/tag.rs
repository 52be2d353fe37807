//! `tally.row_tag()`: called for every row that is written, so it keeps what it can.

use super::function::Call;
use crate::error::Result;
use pgrx::pg_sys::{self, Datum};
use std::cell::Cell;
use tally_core::snapshot;

thread_local! {
    /// The incarnation of this database as a committed row of tally.incarnations says, once this session knows it.
    static INCARNATION: Cell<u16> = const { Cell::new(0) };
    /// The transaction of this session that has written to tally.incarnations, 0 if none has: should it abort, what it wrote
    /// was never true.
    static WRITTEN_BY: Cell<u64> = const { Cell::new(0) };
}

/// Has this transaction written to tally.incarnations?
pub(crate) fn wrote_incarnation() -> bool {
    super::own_xid().is_some_and(|xid| xid == WRITTEN_BY.get())
}

/// To be called before this transaction writes to tally.incarnations.
pub(crate) fn note_incarnation_written() {
    // SAFETY: assigns an id to the current transaction, or raises the error of PostgreSQL that says why it cannot.
    WRITTEN_BY.set(unsafe { pg_sys::GetTopFullTransactionId() }.value);
}

super::function::sql_functions! {
    tally_row_tag => row_tag,
}

/// The tag of the rows that this transaction writes: incarnation and top-level transaction id (which it assigns).
fn row_tag(_: Call<'_>) -> Result<Datum> {
    own_tag().map(Datum::from)
}

pub(crate) fn own_tag() -> Result<i64> {
    let mut incarnation = INCARNATION.get();
    if incarnation == 0 {
        incarnation = find_incarnation()?;
    }
    // SAFETY: assigns an id to the current transaction, or raises the error of PostgreSQL that says why it cannot.
    let xid = unsafe { pg_sys::GetTopFullTransactionId() }.value;
    Ok(snapshot::tag(incarnation, xid)?)
}

#[cold]
fn find_incarnation() -> Result<u16> {
    let found = crate::tags::incarnation()?;
    let number = found.number.cast_unsigned();
    if found.is_committed {
        INCARNATION.set(number);
    }
    Ok(number)
}
