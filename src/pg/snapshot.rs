//! Snapshots, transaction ids, and statements that read and write at a given snapshot.

use crate::error::{self, Result};
use pgrx::pg_sys::{self, Oid};
use std::ffi::CString;

/// A snapshot that several statements share. It is taken when it is made, and released at the end of its life.
pub(crate) struct Snapshot {
    snapshot: pg_sys::Snapshot,
    /// The id that this transaction had when the snapshot was taken.
    own_xid: Option<u64>,
}

impl Snapshot {
    /// What is committed now, and what this transaction has done so far. Only for READ COMMITTED: there each call sees anew.
    pub(crate) fn take() -> Self {
        // SAFETY: we are inside a transaction; the registered copy lives until it is unregistered in `drop`, or until
        // the transaction aborts.
        unsafe {
            pg_sys::CommandCounterIncrement();
            let own_xid = own_xid();
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetTransactionSnapshot());
            Self { snapshot, own_xid }
        }
    }

    /// What is committed now, and what this transaction has done so far, at any isolation level.
    pub(crate) fn latest() -> Self {
        // SAFETY: we are inside a transaction.
        unsafe { pg_sys::CommandCounterIncrement() };
        Self::newest()
    }

    /// What is committed now, at any isolation level, in the midst of a statement.
    pub(crate) fn newest() -> Self {
        // SAFETY: as in `take`.
        unsafe { Self { snapshot: pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()), own_xid: own_xid() } }
    }

    /// The first transaction id that was not assigned when the snapshot was taken.
    pub(crate) fn xmax(&self) -> u64 {
        // SAFETY: a registered snapshot.
        widen(unsafe { (*self.snapshot).xmax })
    }

    /// Top-level transactions that were running when the snapshot was taken, prepared ones among them.
    pub(crate) fn in_progress(&self) -> Vec<u64> {
        // SAFETY: a registered snapshot, whose array has as many elements as it says.
        unsafe {
            let snapshot = &*self.snapshot;
            if snapshot.xcnt == 0 {
                return vec![];
            }
            std::slice::from_raw_parts(snapshot.xip, snapshot.xcnt as usize).iter().map(|xid| widen(*xid)).collect()
        }
    }

    pub(crate) fn own_xid(&self) -> Option<u64> {
        self.own_xid
    }

    /// Runs `action` with this snapshot as the active one, so that read-only statements in it see the same state.
    pub(crate) fn read<T>(&self, action: impl FnOnce() -> T) -> T {
        // SAFETY: pushed and popped in pairs; while an error unwinds, the abort of the transaction pops it.
        unsafe { pg_sys::PushActiveSnapshot(self.snapshot) };
        let answer = action();
        // SAFETY: as above.
        unsafe { pg_sys::PopActiveSnapshot() };
        answer
    }

    /// Runs a statement that answers one boolean.
    pub(crate) fn is_there(&self, sql: &str) -> Result<bool> {
        self.execute::<1>(sql).map(|answer| answer.is_some_and(|[found]| found != 0))
    }

    /// Runs one statement at this snapshot and returns the first row that it answers; columns are bigint or boolean and not
    /// NULL. No row gives `None`.
    pub(crate) fn execute<const N: usize>(&self, sql: &str) -> Result<Option<[i64; N]>> {
        let text = CString::new(sql).map_err(|_| error::Error::new("22021", "a name contains a zero byte"))?;
        pgrx::Spi::connect_mut(|_| {
            // SAFETY: SPI is connected; the plan is used once, right after it was made. The statement runs at a copy of our
            // registered snapshot, advanced by the command counter, so that it sees what statements before it have done.
            unsafe {
                let plan = pg_sys::SPI_prepare(text.as_ptr(), 0, std::ptr::null_mut());
                if plan.is_null() {
                    return Err(error::Error::new("XX000", format!("SPI could not prepare: {sql}")));
                }
                let status = pg_sys::SPI_execute_snapshot(
                    plan,
                    std::ptr::null_mut(),
                    std::ptr::null(),
                    self.snapshot,
                    std::ptr::null_mut(),
                    false,
                    true,
                    0,
                );
                if status < 0 {
                    return Err(error::Error::new("XX000", format!("SPI answered {status} for: {sql}")));
                }
                let table = pg_sys::SPI_tuptable;
                if table.is_null() || pg_sys::SPI_processed == 0 {
                    return Ok(None);
                }
                let mut values = [0; N];
                for (position, value) in values.iter_mut().enumerate() {
                    let mut is_null = false;
                    let datum =
                        pg_sys::SPI_getbinval(*(*table).vals, (*table).tupdesc, position as i32 + 1, &mut is_null);
                    *value = if is_null { 0 } else { datum.value() as i64 };
                }
                Ok(Some(values))
            }
        })
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // While an error unwinds, the abort of the transaction releases the snapshot.
        if !std::thread::panicking() {
            // SAFETY: registered in `take`, by the same resource owner.
            unsafe { pg_sys::UnregisterSnapshot(self.snapshot) }
        }
    }
}

/// The full 64-bit form of a recent transaction id: ids in a snapshot lie less than 2^31 before the next one.
fn widen(xid: pg_sys::TransactionId) -> u64 {
    let next = next_xid();
    let low = u64::from(xid.into_inner());
    let wide = (next & !0xffff_ffff) | low;
    if wide > next { wide - (1 << 32) } else { wide }
}

/// The transaction id that will be assigned next.
pub(crate) fn next_xid() -> u64 {
    // SAFETY: reads a counter in shared memory.
    unsafe { pg_sys::ReadNextFullTransactionId().value }
}

/// The top-level id of this transaction, if it has one.
pub(crate) fn own_xid() -> Option<u64> {
    // SAFETY: reads the state of the current transaction.
    let xid = unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value;
    (xid != 0).then_some(xid)
}

/// The same, and whether a transaction that has an id is running or prepared.
pub(crate) fn next_xid_and_writers() -> (u64, bool) {
    let next = next_xid();
    // SAFETY: looks at shared memory, under its locks. Who has got an id only now has this next one.
    let oldest = unsafe { pg_sys::GetOldestActiveTransactionId() };
    // It has 32 bits.
    (next, u64::from(oldest.into_inner()) != next & u64::from(u32::MAX))
}

/// Does each statement of this transaction see what was committed before it?
pub(crate) fn is_read_committed() -> bool {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::XactIsoLevel <= pg_sys::XACT_READ_COMMITTED as i32 }
}

/// Refuses what writes on a standby, and in a read-only transaction.
pub(crate) fn require_primary() -> Result<()> {
    // SAFETY: plain variables of this process, and a look into shared memory.
    let (is_standby, is_read_only) = unsafe { (pg_sys::RecoveryInProgress(), pg_sys::XactReadOnly) };
    if is_standby {
        return Err(error::Error::new("25006", "a standby cannot be written to")
            .hint("Run it on the primary. Rollups can be read here; they are exact."));
    }
    if is_read_only {
        return Err(error::Error::new("25006", "this transaction is read-only")
            .hint("BEGIN READ WRITE, or SET default_transaction_read_only = off."));
    }
    Ok(())
}

/// The identifier that initdb gave the cluster.
pub(crate) fn system_identifier() -> i64 {
    // SAFETY: reads the control file's copy in shared memory.
    unsafe { pg_sys::GetSystemIdentifier() as i64 }
}

/// The owner of a table or view.
pub(crate) fn owner_of(relation: Oid) -> Option<Oid> {
    // SAFETY: a catalog look-up; the tuple is released before its owner is returned by value.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, relation.into());
        if tuple.is_null() {
            return None;
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}
