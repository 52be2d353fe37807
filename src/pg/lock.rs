//! Locks: the one that makes ticks of a source take turns, and locks on tables that are tried and never queued for.

use pgrx::pg_sys::{self, Oid};
use std::time::Duration;

/// Locks the refreshes of a source until the end of the transaction. It is a lock on an object of its own kind, so that it
/// meets nobody but other refreshes, and taking it assigns no transaction id. Returns false if it is taken and `wait` is false.
pub(crate) fn lock_refresh(sources_table: Oid, source: Oid, wait: bool) -> bool {
    let taken = lock_object(sources_table, source.to_u32(), wait);
    if taken == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
        return false;
    }
    // SAFETY: a lock is held; what was committed before it was taken becomes visible to catalog look-ups.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    true
}

/// The lock that means "this job is being run", until the end of the transaction. Returns false if it is taken, also by this very
/// transaction. Everybody can see it in `pg_locks` as a lock on an object of `tally.jobs`.
pub(crate) fn try_lock_job(job: i32) -> bool {
    // SAFETY: catalog look-ups by NUL-terminated names; an unknown schema is an error of PostgreSQL.
    let jobs_table = unsafe {
        let schema = pg_sys::get_namespace_oid(c"tally".as_ptr(), false);
        pg_sys::get_relname_relid(c"jobs".as_ptr(), schema)
    };
    lock_object(jobs_table, job.cast_unsigned(), false) == pg_sys::LockAcquireResult::LOCKACQUIRE_OK
}

fn lock_object(class: Oid, object: u32, wait: bool) -> pg_sys::LockAcquireResult::Type {
    // SAFETY: fills a lock tag by value and asks the lock manager; an ERROR (lock timeout, deadlock, cancel) passes through.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: class.to_u32(),
            locktag_field3: object,
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, false, !wait)
    }
}

/// Locks a table against everybody, waiting in the queue as ALTER TABLE does.
pub(crate) fn lock_access_exclusive(relation: Oid) {
    // SAFETY: a plain call of the lock manager; an ERROR (lock timeout, deadlock, cancel) passes through.
    unsafe { pg_sys::LockRelationOid(relation, pg_sys::AccessExclusiveLock as i32) }
}

/// Tries to lock all of `relations` in ACCESS EXCLUSIVE mode, for `tries` times with a pause between. It never stands in the
/// queue, so nobody queues behind it. Returns false, holding nothing, when the last try has failed.
pub(crate) fn try_access_exclusive(relations: &[Oid], tries: u32, pause: Duration) -> bool {
    let mode = pg_sys::AccessExclusiveLock as i32;
    for attempt in 0..tries {
        if attempt > 0 {
            std::thread::sleep(pause);
            pgrx::check_for_interrupts!();
        }
        // SAFETY: plain calls of the lock manager for tables of this database.
        let taken = unsafe {
            relations.iter().take_while(|relation| pg_sys::ConditionalLockRelationOid(**relation, mode)).count()
        };
        if taken == relations.len() {
            return true;
        }
        for relation in &relations[..taken] {
            // SAFETY: locked just above.
            unsafe { pg_sys::UnlockRelationOid(*relation, mode) };
        }
    }
    false
}

/// A transaction sees in pg_stat_activity what it saw there first. From here on that is what is so now.
pub(crate) fn look_at_sessions_anew() {
    // SAFETY: frees what this process has copied of the statistics.
    unsafe { pg_sys::pgstat_clear_snapshot() }
}

/// Runs `action` while a table is locked against other maintenance (VACUUM, ANALYZE, CREATE INDEX); readers and writers go on.
/// None: somebody else maintains it just now.
pub(crate) fn try_maintenance<T>(relation: Oid, action: impl FnOnce() -> T) -> Option<T> {
    let mode = pg_sys::ShareUpdateExclusiveLock as i32;
    // SAFETY: a plain call of the lock manager.
    if !unsafe { pg_sys::ConditionalLockRelationOid(relation, mode) } {
        return None;
    }
    let answer = action();
    // SAFETY: locked above; an ERROR in between releases it with the transaction.
    unsafe { pg_sys::UnlockRelationOid(relation, mode) };
    Some(answer)
}
