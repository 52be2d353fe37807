//! Statements that PostgreSQL takes at top level only, because they commit before they end: DETACH .. CONCURRENTLY, CREATE INDEX
//! CONCURRENTLY. A background worker executes them as a session does with what a client sends: through a portal.

use crate::error::Failure;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CString;
use std::panic::AssertUnwindSafe;

/// Executes one utility statement. On an error what it has committed by then stays: the caller looks into the catalogs.
///
/// The caller is a background worker with no transaction open, and made the text of names that it has just looked up.
pub(crate) fn execute(statement: &str) -> Result<(), Failure> {
    let Ok(statement) = CString::new(statement) else { return Ok(()) };
    // SAFETY: a context that outlives the transactions in which the statement runs: its tree and plan are read after an inner commit.
    let (context, caller) = unsafe {
        let context = pg_sys::AllocSetContextCreateInternal(
            pg_sys::TopMemoryContext,
            c"tally statement".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        (context, pg_sys::MemoryContextSwitchTo(context))
    };
    // Nothing in here has a destructor: an error leaves it wherever it is.
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: the context and the text live until the end of this function.
        unsafe { run(statement.as_ptr(), context) };
        Ok(())
    }))
    .catch_rust_panic(|caught| Err(caught.into()))
    .catch_others(|caught| Err(caught.into()))
    .execute();
    // SAFETY: an open transaction is rolled back, which drops the portal; then nothing points into the context any more.
    unsafe {
        if outcome.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        pg_sys::debug_query_string = std::ptr::null();
        pg_sys::MemoryContextSwitchTo(caller);
        pg_sys::MemoryContextDelete(context);
    }
    outcome
}

/// What `exec_simple_query` of PostgreSQL does, for one statement without a result.
///
/// # Safety
/// No transaction is open; both arguments outlive the call.
unsafe fn run(statement: *const std::ffi::c_char, context: pg_sys::MemoryContext) {
    // SAFETY: the calls of an ordinary session, in the same order, with what the calls before have returned.
    unsafe {
        pg_sys::debug_query_string = statement;
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        // The transaction has made its own context the current one.
        pg_sys::MemoryContextSwitchTo(context);
        let parsed = pgrx::PgList::<pg_sys::RawStmt>::from_pg(pg_sys::pg_parse_query(statement));
        let Some(tree) = parsed.get_ptr(0) else { return pg_sys::CommitTransactionCommand() };
        std::mem::forget(parsed);
        let nothing = std::ptr::null_mut();
        let queries =
            pg_sys::pg_analyze_and_rewrite_fixedparams(tree, statement, std::ptr::null(), 0, std::ptr::null_mut());
        let options = pg_sys::CURSOR_OPT_PARALLEL_OK as i32;
        let plans = pg_sys::pg_plan_queries(queries, statement, options, std::ptr::null_mut());
        let portal = pg_sys::CreatePortal(c"".as_ptr(), true, true);
        (*portal).visible = false;
        let tag = pg_sys::CreateCommandTag((*tree).stmt);
        pg_sys::PortalDefineQuery(portal, std::ptr::null(), statement, tag, plans, nothing);
        pg_sys::PortalStart(portal, std::ptr::null_mut(), 0, std::ptr::null_mut());
        let receiver = pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone);
        let mut completion = pg_sys::QueryCompletion { commandTag: tag, nprocessed: 0 };
        let all = std::ffi::c_long::MAX;
        #[cfg(not(feature = "pg18"))]
        pg_sys::PortalRun(portal, all, true, true, receiver, receiver, &mut completion);
        #[cfg(feature = "pg18")]
        pg_sys::PortalRun(portal, all, true, receiver, receiver, &mut completion);
        pg_sys::PortalDrop(portal, false);
        pg_sys::CommitTransactionCommand();
    }
}
