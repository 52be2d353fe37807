//! Background workers: signals, connections, transactions that survive an error, latches, and starting other workers.

use crate::error::{Failure, Result};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use std::ffi::{CStr, CString};
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Duration;
use tally_core::bucket::Timestamp;

// pgrx wraps these in Rust functions with a guard, which cannot be signal handlers: a handler may not allocate.
unsafe extern "C-unwind" {
    #[link_name = "die"]
    fn postgres_die(signal: i32);
    #[link_name = "StatementCancelHandler"]
    fn postgres_cancel(signal: i32);
    #[link_name = "SignalHandlerForConfigReload"]
    fn postgres_reload(signal: i32);
}

fn on_signal(signal: u32, handler: unsafe extern "C-unwind" fn(i32)) {
    // SAFETY: handlers of PostgreSQL itself, which only set flags and the latch.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal as i32, Some(handler));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal as i32, Some(handler));
    }
}

/// The signals of an ordinary session: SIGTERM ends the process at the next check for interrupts, also inside a statement that
/// waits for a lock; SIGINT cancels the statement; SIGHUP asks for a new look at the settings.
pub(crate) fn accept_signals() {
    on_signal(pg_sys::SIGTERM, postgres_die);
    on_signal(pg_sys::SIGINT, postgres_cancel);
    on_signal(pg_sys::SIGHUP, postgres_reload);
    // SAFETY: called once by a background worker before it connects.
    unsafe { pg_sys::BackgroundWorkerUnblockSignals() }
}

/// Connects to no database: only shared catalogs can be read.
pub(crate) fn connect_to_no_database() {
    // SAFETY: called once by a background worker; null pointers mean no database and no role.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0) }
}

/// Connects to the database as this role, or as the bootstrap superuser. If that is not possible, the process ends here.
pub(crate) fn connect(database: Oid, role: Option<Oid>) {
    let role = role.unwrap_or(Oid::INVALID);
    // PostgreSQL 17 can let a role in that may not log in: it is the owner of tables all the same.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    let flags = pg_sys::BGWORKER_BYPASS_ROLELOGINCHECK;
    #[cfg(not(any(feature = "pg17", feature = "pg18")))]
    let flags = 0;
    // SAFETY: called once by a background worker.
    unsafe { pg_sys::BackgroundWorkerInitializeConnectionByOid(database, role, flags) }
    settle();
}

/// How long a job waits for a lock, unless it says otherwise.
const LOCK_TIMEOUT: &str = "60s";

/// Settings of the role and of the database have been applied by now. These are the ones that jobs rely on.
fn settle() {
    for (name, value) in [
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_deferrable", c"off"),
        (c"session_replication_role", c"origin"),
        // A table with FORCE ROW LEVEL SECURITY would be read in part; off makes that an error.
        (c"row_security", c"off"),
        (c"TimeZone", c"UTC"),
        (c"DateStyle", c"ISO, YMD"),
        (c"IntervalStyle", c"postgres"),
        (c"extra_float_digits", c"1"),
        (c"statement_timeout", c"0"),
        (c"idle_in_transaction_session_timeout", c"0"),
        // What a crash may lose is done again by the next run, and no job waits for the disk or for a standby.
        (c"synchronous_commit", c"off"),
    ] {
        set_option(name, value);
    }
    if let Ok(timeout) = CString::new(LOCK_TIMEOUT) {
        set_option(c"lock_timeout", &timeout);
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    set_option(c"transaction_timeout", c"0");
}

/// Is the current role a superuser?
pub(crate) fn is_superuser() -> bool {
    // SAFETY: a look-up of the current role.
    unsafe { pg_sys::superuser() }
}

/// May `member` do what `role` may?
pub(crate) fn is_member(member: Oid, role: Oid) -> bool {
    // SAFETY: a look-up in the catalogs of roles.
    unsafe { pg_sys::is_member_of_role(member, role) }
}

fn set_option(name: &CStr, value: &CStr) {
    // SAFETY: NUL-terminated strings that the function copies. The source outranks those of role and database.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        )
    }
}

/// Runs the body in a transaction of its own. An error rolls it back and is returned; the process is then as good as new.
///
/// The caller is a background worker with no transaction open.
pub(crate) fn transaction<T>(body: impl FnOnce() -> Result<T>) -> std::result::Result<T, Failure> {
    // SAFETY: the calls of an ordinary session around a statement, in the same order.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
        let value = body()?;
        // SAFETY: the snapshot pushed above, and the transaction that it belongs to.
        unsafe {
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
        }
        Ok(value)
    }))
    .catch_rust_panic(|caught| Err(caught.into()))
    .catch_others(|caught| Err(caught.into()))
    .execute();
    if outcome.is_err() {
        // SAFETY: a transaction is open, and pgrx has taken the error off PostgreSQL's stack when it became a panic.
        unsafe { pg_sys::AbortCurrentTransaction() }
    }
    outcome
}

/// Executes a statement that PostgreSQL takes at top level only; `lock_timeout` of None waits as long as it takes.
pub(crate) fn at_top_level(statement: &str, lock_timeout: Option<Duration>) -> std::result::Result<(), Failure> {
    let milliseconds = lock_timeout.map_or(0, |timeout| timeout.as_millis().max(1));
    let set = |value: &str| {
        if let Ok(value) = CString::new(value) {
            set_option(c"lock_timeout", &value);
        }
    };
    set(&format!("{milliseconds}ms"));
    let outcome = super::portal::execute(statement);
    set(LOCK_TIMEOUT);
    outcome
}

/// Has `last` called when this process ends in order, by itself or by SIGTERM: not when it crashes, and not in a crash of the server.
pub(crate) fn before_exit(last: fn()) {
    static LAST: OnceLock<fn()> = OnceLock::new();
    #[pg_guard]
    unsafe extern "C-unwind" fn callback(_code: i32, _argument: pg_sys::Datum) {
        if let Some(last) = LAST.get() {
            last();
        }
    }
    if LAST.set(last).is_ok() {
        // SAFETY: a callback of this library, which stays loaded, with an argument that it does not use.
        unsafe { pg_sys::before_shmem_exit(Some(callback), pg_sys::Datum::null()) }
    }
}

/// Runs the body, and hands a cancel (57014) that ends it to the caller, who has to raise it or another error.
pub(crate) fn catch_cancel<T>(body: impl FnOnce() -> T) -> std::result::Result<T, super::CaughtError> {
    PgTryBuilder::new(AssertUnwindSafe(|| Ok(body()))).catch_when(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, Err).execute()
}

/// Has the current transaction wait for the disk when it commits, whatever `synchronous_commit` says.
pub(crate) fn commit_durably() {
    // SAFETY: sets a flag of the current transaction.
    unsafe { pg_sys::ForceSyncCommit() }
}

/// Says in `pg_stat_activity` what this process does.
pub(crate) fn report_activity(name: &str) {
    let Ok(name) = CString::new(name) else { return };
    // SAFETY: a NUL-terminated string that both functions copy.
    unsafe {
        pg_sys::pgstat_report_appname(name.as_ptr());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, name.as_ptr());
    }
}

/// Waits until the latch is set or the time has passed; takes part in interrupts and reads changed settings. Answers whether it has.
pub(crate) fn wait(longest: Duration) -> bool {
    // Rounded up: waking before the time would only mean to wait again.
    let milliseconds = longest.as_micros().div_ceil(1000).min(i32::MAX as u128) as i64;
    // SAFETY: the latch of this process. A dead postmaster ends the process in here.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pg_sys::check_for_interrupts!();
        let has_changed = pg_sys::ConfigReloadPending != 0;
        if has_changed {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
        has_changed
    }
}

/// Waits until the latch is set or the time has passed, in the middle of a statement: interrupts only.
pub(crate) fn nap(longest: Duration) {
    // SAFETY: the latch of this process. A dead postmaster ends the process in here.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            longest.as_millis().min(i32::MAX as u128) as i64,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pg_sys::check_for_interrupts!();
    }
}

/// Sets the latch of another process of this server, if it is there.
pub(crate) fn wake(pid: i32) {
    // SAFETY: the entry of a live process; if it ends meanwhile, its latch stays valid memory and a new owner takes a look in vain.
    unsafe {
        let process = pg_sys::BackendPidGetProc(pid);
        if !process.is_null() {
            pg_sys::SetLatch(&raw mut (*process).procLatch);
        }
    }
}

/// Ends another process of this server in order. Does not wait, so it may be called under the lock of shared memory.
pub(crate) fn terminate(pid: i32) {
    unsafe extern "C" {
        fn kill(process: i32, signal: i32) -> i32;
    }
    if pid > 0 {
        // SAFETY: a signal to one process; one that is gone needs none.
        unsafe { kill(pid, pg_sys::SIGTERM as i32) };
    }
}

/// Is this a process of this server that can run statements?
pub(crate) fn is_alive(pid: i32) -> bool {
    // SAFETY: a look-up in shared memory under its lock.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

pub(crate) fn own_pid() -> i32 {
    // SAFETY: set once at the start of the process.
    unsafe { pg_sys::MyProcPid }
}

pub(crate) fn own_database() -> Oid {
    // SAFETY: set once when the process connects.
    unsafe { pg_sys::MyDatabaseId }
}

/// The role that statements run as now.
pub(crate) fn current_role() -> Oid {
    // SAFETY: reads the state of this process.
    unsafe { pg_sys::GetUserId() }
}

/// The clock, not the start of the transaction.
pub(crate) fn clock() -> Timestamp {
    // SAFETY: reads the clock.
    Timestamp(unsafe { pg_sys::GetCurrentTimestamp() })
}

/// Is the postmaster loading its libraries just now?
pub(crate) fn is_preloading() -> bool {
    // SAFETY: a plain flag of this process.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// The databases that can be connected to and are no templates. For a process that is connected to none.
pub(crate) fn databases() -> std::result::Result<Vec<Oid>, Failure> {
    transaction(|| {
        let mut found = Vec::new();
        // SAFETY: a scan of a shared catalog in a transaction with an active snapshot, as get_database_list() of autovacuum does it.
        unsafe {
            let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
            let scan = pg_sys::systable_beginscan(
                relation,
                Oid::INVALID,
                false,
                std::ptr::null_mut(),
                0,
                std::ptr::null_mut(),
            );
            loop {
                let tuple = pg_sys::systable_getnext(scan);
                if tuple.is_null() {
                    break;
                }
                let database = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
                if (*database).datallowconn && !(*database).datistemplate {
                    found.push((*database).oid);
                }
            }
            pg_sys::systable_endscan(scan);
            pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        }
        Ok(found)
    })
}

/// Registers the one static worker: from the end of recovery on, and again five seconds after it has failed.
pub(crate) fn register(name: &str, function: &str) {
    BackgroundWorkerBuilder::new(name)
        .set_library("tally")
        .set_function(function)
        .enable_spi_access()
        .set_restart_time(Some(Duration::from_secs(5)))
        .load();
}

/// A worker that this process has started.
#[derive(Debug)]
pub(crate) struct Worker(*mut pg_sys::BackgroundWorkerHandle);

impl Worker {
    /// `None` when all of `max_worker_processes` are in use. `extra` has at most 127 bytes.
    pub(crate) fn start(name: &str, kind: &str, function: &str, extra: &str) -> Option<Worker> {
        let builder = BackgroundWorkerBuilder::new(name)
            .set_type(kind)
            .set_library("tally")
            .set_function(function)
            .set_extra(extra)
            .set_notify_pid(own_pid())
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished);
        let mut worker = pg_sys::BackgroundWorker::from(&builder);
        let mut handle = std::ptr::null_mut();
        // SAFETY: both are valid; on success the handle is, too. It lies in the top context, because it outlives the transaction.
        unsafe {
            let caller = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
            pg_sys::MemoryContextSwitchTo(caller);
            started.then(|| Worker(handle))
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: a handle from RegisterDynamicBackgroundWorker.
        unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) == pg_sys::BgwHandleStatus::BGWH_STOPPED }
    }

    /// Has the postmaster send it SIGTERM, or never start it.
    pub(crate) fn terminate(&self) {
        // SAFETY: a handle from RegisterDynamicBackgroundWorker.
        unsafe { pg_sys::TerminateBackgroundWorker(self.0) }
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&self) {
        // SAFETY: a handle from RegisterDynamicBackgroundWorker, with this process as the one to notify.
        unsafe { pg_sys::WaitForBackgroundWorkerShutdown(self.0) };
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: the handle was allocated for this value alone.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

/// The process that started this worker and hears of its end; 0 in a process that is none.
pub(crate) fn starter() -> i32 {
    // SAFETY: null or the entry of this worker, which stays.
    unsafe { pg_sys::MyBgworkerEntry.as_ref().map_or(0, |entry| entry.bgw_notify_pid) }
}

/// What the starter wrote for this worker.
pub(crate) fn extra() -> &'static str {
    pgrx::bgworkers::BackgroundWorker::get_extra()
}
