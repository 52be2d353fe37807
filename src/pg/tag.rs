//! `tally.row_tag()`: called for every row that is written, so it is a bare C function.

use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    /// The incarnation of this database as a committed row of tally.incarnations says, once this session knows it.
    static INCARNATION: Cell<i64> = const { Cell::new(0) };
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

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_tally_row_tag() -> &'static pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// The tag of the rows that this transaction writes: incarnation and top-level transaction id (which it assigns).
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tally_row_tag(_call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let mut incarnation = INCARNATION.get();
    if incarnation == 0 {
        incarnation = find_incarnation();
    }
    // SAFETY: assigns an id to the current transaction, or raises the error of PostgreSQL that says why it cannot.
    let xid = unsafe { pg_sys::GetTopFullTransactionId() }.value as i64;
    pg_sys::Datum::from(incarnation << 48 | xid)
}

#[cold]
fn find_incarnation() -> i64 {
    match crate::tags::incarnation() {
        Ok(found) => {
            if found.is_committed {
                INCARNATION.set(i64::from(found.number));
            }
            i64::from(found.number)
        }
        Err(error) => crate::error::raise(error),
    }
}
