//! The bounds of partitions as PostgreSQL keeps them in memory. Their text (`pg_get_expr`) depends on the session's TimeZone and
//! DateStyle, these numbers do not.

use pgrx::pg_sys::{self, Oid};
use tally_core::bucket::{DAY, Timestamp};
use tally_core::partition::{Key, Range};

/// PARTITION_STRATEGY_RANGE, whose type differs between versions of PostgreSQL.
const RANGE: u8 = b'r';

/// One partition of a set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub partition: Oid,
    pub range: Range,
}

/// The partitions of a table that is partitioned by range on one column of the type `key`, in order of time, without the
/// default partition and with those whose concurrent detachment has not ended. Takes ACCESS SHARE for a moment; empty if the
/// table does not exist (any more).
pub(crate) fn range_partitions(parent: Oid, key: Key) -> Vec<Bounds> {
    let mode = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    let mut bounds = Vec::new();
    // SAFETY: the relation stays open while its descriptor is read. For range partitioning `datums` and `kind` have `ndatums`
    // rows of one entry per key column, and `indexes` one entry more: entry i is the partition between datum i-1 and datum i.
    unsafe {
        let relation = pg_sys::try_relation_open(parent, mode);
        if relation.is_null() {
            return bounds;
        }
        if (*(*relation).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE {
            let descriptor = pg_sys::RelationGetPartitionDesc(relation, false);
            let info = (*descriptor).boundinfo;
            if !info.is_null() && (*info).strategy as u8 == RANGE {
                let number = (*info).ndatums as usize;
                for between in 1..number {
                    let index = *(*info).indexes.add(between);
                    if index >= 0 {
                        bounds.push(Bounds {
                            partition: *(*descriptor).oids.add(index as usize),
                            range: Range { lower: bound(info, between - 1, key), upper: bound(info, between, key) },
                        });
                    }
                }
            }
        }
        pg_sys::relation_close(relation, mode);
    }
    bounds
}

/// # Safety
/// `info` describes range partitioning and has more than `position` datums.
unsafe fn bound(info: pg_sys::PartitionBoundInfo, position: usize, key: Key) -> Timestamp {
    // SAFETY: as the caller promises; every row has an entry for the first key column.
    let (kind, datum) = unsafe { (**(*info).kind.add(position), **(*info).datums.add(position)) };
    match kind {
        pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MINVALUE => Timestamp::NEG_INFINITY,
        pg_sys::PartitionRangeDatumKind::PARTITION_RANGE_DATUM_MAXVALUE => Timestamp::INFINITY,
        _ if key == Key::Date => match datum.value() as u32 as i32 {
            i32::MIN => Timestamp::NEG_INFINITY,
            i32::MAX => Timestamp::INFINITY,
            days => Timestamp(i64::from(days) * DAY),
        },
        _ => Timestamp(datum.value() as i64),
    }
}
