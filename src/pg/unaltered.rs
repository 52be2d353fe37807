//! Whether a session has heard of a change to tables since it last looked at them.

use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use tally_core::bucket::Timestamp;

/// What was true of the tables when they were looked at, and which these are.
type Look = (Option<Timestamp>, HashSet<Oid>);

thread_local! {
    /// By source.
    static LOOKS: RefCell<HashMap<Oid, Look>> = RefCell::default();
    static IS_LISTENING: Cell<bool> = const { Cell::new(false) };
}

/// Has no table of the source been altered since [`note_unaltered`] with the same `sealed_before`?
pub(crate) fn is_unaltered(source: Oid, sealed_before: Option<Timestamp>) -> bool {
    // SAFETY: reads what other sessions have sent; the callback below is all that it calls of ours.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    LOOKS.with_borrow(|looks| looks.get(&source).is_some_and(|(sealed, _)| *sealed == sealed_before))
}

/// The tables of a source were found in order.
pub(crate) fn note_unaltered(source: Oid, sealed_before: Option<Timestamp>, tables: Vec<Oid>) {
    if !IS_LISTENING.replace(true) {
        // SAFETY: registers a function of this library, which stays loaded.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(note_change), Datum::from(0)) };
    }
    LOOKS.with_borrow_mut(|looks| looks.insert(source, (sealed_before, tables.into_iter().collect())));
}

/// Called by PostgreSQL when the definition of a table has changed, or of any table (no OID).
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn note_change(_argument: Datum, table: Oid) {
    LOOKS.with_borrow_mut(|looks| looks.retain(|_, (_, tables)| table != Oid::INVALID && !tables.contains(&table)));
}
