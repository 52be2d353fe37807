//! Statistics of a partitioned table as a whole.

use pgrx::pg_sys::{self, Oid};

/// What `ANALYZE ONLY` of PostgreSQL 18 does with a partitioned table: samples all partitions for its own statistics, and leaves theirs alone.
/// The command of older versions analyzes each partition besides. The user owns the table; its SHARE UPDATE EXCLUSIVE lock is taken until
/// the end of the transaction.
pub(crate) fn analyze_whole(parent: Oid) {
    let mut parameters = pg_sys::VacuumParams {
        options: pg_sys::VACOPT_ANALYZE as pg_sys::bits32,
        log_min_duration: -1,
        ..pg_sys::VacuumParams::default()
    };
    // SAFETY: a transaction with an active snapshot is open. Without a name for messages, and without a list of columns, all are
    // analyzed; the parameters live until the return. That it runs inside of a transaction keeps it from what cannot be rolled back.
    unsafe {
        let strategy = pg_sys::GetAccessStrategy(pg_sys::BufferAccessStrategyType::BAS_VACUUM);
        pg_sys::analyze_rel(parent, std::ptr::null_mut(), &mut parameters, std::ptr::null_mut(), true, strategy);
        pg_sys::FreeAccessStrategy(strategy);
    }
}
