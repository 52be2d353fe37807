//! The lock that means "this job is being run". It is an ordinary heavyweight lock on the object (`tally.jobs`, job id), so
//! PostgreSQL gives it back whatever happens, and everybody can see it in `pg_locks`.

use pgrx::pg_sys::{self, Oid};

/// Takes the lock until the end of the transaction. False if somebody else has it. Assigns no transaction id.
pub(crate) fn try_lock_job(job: i32) -> bool {
    // SAFETY: catalog look-ups by NUL-terminated names (an unknown name is an error of PostgreSQL or an invalid oid), and a lock
    // tag as SET_LOCKTAG_OBJECT fills it.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"tally".as_ptr(), false);
        let class = pg_sys::get_relname_relid(c"jobs".as_ptr(), schema);
        let tag = pg_sys::LOCKTAG {
            locktag_field1: Oid::to_u32(pg_sys::MyDatabaseId),
            locktag_field2: class.to_u32(),
            locktag_field3: job.cast_unsigned(),
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        let taken = pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as pg_sys::LOCKMODE, false, true);
        // ALREADY_HELD: a lock of this very transaction, so somebody runs the job inside of itself.
        taken == pg_sys::LockAcquireResult::LOCKACQUIRE_OK
    }
}
