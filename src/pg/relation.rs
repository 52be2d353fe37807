//! Locks on tables of users.

use pgrx::pg_sys::{self, Oid};

/// The lock modes that tally takes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the names of PostgreSQL")]
pub(crate) enum Mode {
    /// Conflicts with itself and with DDL, not with readers and writers.
    ShareUpdateExclusive,
    /// Conflicts with writers: what ATTACH takes on the other side of a foreign key.
    ShareRowExclusive,
    /// Conflicts with everybody.
    AccessExclusive,
}

impl Mode {
    /// As LOCK TABLE writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ShareUpdateExclusive => "SHARE UPDATE EXCLUSIVE",
            Self::ShareRowExclusive => "SHARE ROW EXCLUSIVE",
            Self::AccessExclusive => "ACCESS EXCLUSIVE",
        }
    }

    fn number(self) -> pg_sys::LOCKMODE {
        (match self {
            Self::ShareUpdateExclusive => pg_sys::ShareUpdateExclusiveLock,
            Self::ShareRowExclusive => pg_sys::ShareRowExclusiveLock,
            Self::AccessExclusive => pg_sys::AccessExclusiveLock,
        }) as pg_sys::LOCKMODE
    }
}

/// Takes the lock until the end of the transaction; waits as long as `lock_timeout` allows. Unlike LOCK TABLE it asks for no
/// privilege: the caller has checked that the user owns the table or one that a foreign key connects to it.
pub(crate) fn lock(relation: Oid, mode: Mode) {
    // SAFETY: any oid may be locked; whether the table (still) exists is looked up afterwards.
    unsafe { pg_sys::LockRelationOid(relation, mode.number()) }
}

/// Takes the lock until the end of the transaction if that is possible at once, so that nobody queues behind us.
pub(crate) fn try_lock(relation: Oid, mode: Mode) -> bool {
    // SAFETY: as above.
    unsafe { pg_sys::ConditionalLockRelationOid(relation, mode.number()) }
}

/// The same with several tables, in this order: all of them, or none.
pub(crate) fn try_lock_all(relations: &[(Oid, Mode)]) -> bool {
    let taken = relations.iter().take_while(|(relation, mode)| try_lock(*relation, *mode)).count();
    let all = taken == relations.len();
    if !all {
        unlock(&relations[..taken]);
    }
    all
}

/// Could all of them be locked just now?
pub(crate) fn are_free(relations: &[(Oid, Mode)]) -> bool {
    let are_free = try_lock_all(relations);
    if are_free {
        unlock(relations);
    }
    are_free
}

/// Gives back what has just been taken and not been made use of.
fn unlock(relations: &[(Oid, Mode)]) {
    for (relation, mode) in relations {
        // SAFETY: locked by this process just before.
        unsafe { pg_sys::UnlockRelationOid(*relation, mode.number()) };
    }
}

/// Has every session plan its statements anew that read the table, once this transaction has committed, and this one at once.
pub(crate) fn invalidate_plans(relation: Oid) {
    // SAFETY: the table exists; the message is sent with the commit.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) }
}

/// Assigns the transaction's id. From here on each query of SPI takes a snapshot of its own, so it sees what others committed
/// while we waited for a lock.
pub(crate) fn begin_writing() {
    // SAFETY: only needs a transaction.
    unsafe {
        pg_sys::GetCurrentTransactionId();
    }
}

/// Sleeps, but not through a cancel request.
pub(crate) fn pause(milliseconds: u64) {
    pgrx::check_for_interrupts!();
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
    pgrx::check_for_interrupts!();
}
