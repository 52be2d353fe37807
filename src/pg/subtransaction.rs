//! A piece of work that can be taken back without the transaction around it.

use super::CaughtError;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

/// Runs `action` in a subtransaction, which stays if `stays` says so of its answer, and is rolled back otherwise. That a lock was not to be
/// had (55P03) is handed to the caller after the rollback, every other error of PostgreSQL is raised again. The caller has no
/// connection of SPI open.
pub(crate) fn in_subtransaction<T>(
    action: impl FnOnce() -> T,
    stays: impl FnOnce(&T) -> bool,
) -> std::result::Result<T, CaughtError> {
    // SAFETY: plain variables of this process; a transaction is open. The memory context stays the caller's, so that what the action
    // allocates outlives the subtransaction, as in an exception block of PL/pgSQL.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(before.0);
        before
    };
    let outcome =
        PgTryBuilder::new(AssertUnwindSafe(|| Ok(action()))).catch_rust_panic(Err).catch_others(Err).execute();
    // SAFETY: the subtransaction begun above is the innermost one: what ran in it has ended its own or was rolled back by its error.
    unsafe {
        if outcome.as_ref().is_ok_and(stays) {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    match outcome {
        Err(caught) if !is_lock_timeout(&caught) => caught.rethrow(),
        outcome => outcome,
    }
}

fn is_lock_timeout(caught: &CaughtError) -> bool {
    matches!(caught, CaughtError::PostgresError(report) | CaughtError::ErrorReport(report)
             if report.sql_error_code() == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE)
}
