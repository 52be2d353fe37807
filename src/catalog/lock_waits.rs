//! `tally.lock_waits`: what jobs have waited for locks on tables that others use.

use crate::error::{Result, spi};
use crate::pg::{Oid, as_extension_owner};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::bucket::Timestamp;
use tally_core::partition::lock::Account;

/// What was recorded last of a table.
pub(crate) fn of(table: Oid) -> Result<Option<Account>> {
    read(table, "")
}

/// Changes the record of a table, which nobody else changes until the end of the transaction.
pub(crate) fn change(table: Oid, change: impl FnOnce(Option<Account>) -> Account) -> Result<()> {
    as_extension_owner(|| {
        // Two that come for the first time must not both find nothing.
        Spi::run_with_args(
            "INSERT INTO tally.lock_waits (table_name, since, awaited, is_refused) \
             VALUES ($1::pg_catalog.oid, '-infinity', interval '0', false) ON CONFLICT (table_name) DO NOTHING",
            &[table.into()],
        )
        .map_err(spi)?;
        let Account { since, awaited, is_refused } = change(read(table, " FOR UPDATE")?);
        Spi::run_with_args(
            "UPDATE tally.lock_waits SET since = $2, awaited = $3 OPERATOR(pg_catalog.*) interval '1 microsecond', is_refused = $4 \
             WHERE table_name OPERATOR(pg_catalog.=) $1",
            &[
                table.into(),
                TimestampWithTimeZone::try_from(since.0).ok().into(),
                (awaited.as_micros() as f64).into(),
                is_refused.into(),
            ],
        )
        .map_err(spi)
    })
}

fn read(table: Oid, locking: &str) -> Result<Option<Account>> {
    as_extension_owner(|| {
        Spi::connect_mut(|client| {
            let query = format!(
                "SELECT w.since, (pg_catalog.extract('epoch', w.awaited) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, w.is_refused \
                 FROM tally.lock_waits w WHERE w.table_name OPERATOR(pg_catalog.=) $1{locking}"
            );
            // Locking is writing to SPI.
            let mut rows = if locking.is_empty() {
                client.select(&query, None, &[table.into()])?
            } else {
                client.update(&query, None, &[table.into()])?
            };
            let Some(row) = rows.next() else { return Ok(None) };
            Ok(Some(Account {
                since: row.get::<TimestampWithTimeZone>(1)?.map_or(Timestamp::NEG_INFINITY, |at| Timestamp(at.into())),
                awaited: Duration::from_micros(row.get::<i64>(2)?.unwrap_or(0).max(0).cast_unsigned()),
                is_refused: row.get(3)?.unwrap_or(false),
            }))
        })
    })
    .map_err(spi)
}

/// Forgets tables that have been dropped.
pub(crate) fn delete_dropped() -> Result<()> {
    as_extension_owner(|| {
        Spi::run(
            "DELETE FROM tally.lock_waits w WHERE NOT EXISTS \
               (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) w.table_name)",
        )
    })
    .map_err(spi)
}
