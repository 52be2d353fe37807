//! `tally.conversions`: plain tables that are becoming partitioned ones.

use super::partitions::{self, from_sql, to_sql};
use crate::error::{Result, spi};
use crate::pg::relation::begin_writing;
use crate::pg::{Oid, as_extension_owner};
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;
use tally_core::partition::check::Request;
use tally_core::partition::conversion::State;

/// A record.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub parent: Option<Oid>,
    pub time_column: String,
    /// In values of the key.
    pub boundary: Timestamp,
    pub state: State,
    pub widen_keys: bool,
    pub policy: partitions::Row,
    pub note: Option<String>,
    /// When it came to this state.
    pub changed_at: Timestamp,
}

/// The record of a table, if it is being converted.
pub(crate) fn get(table: Oid) -> Result<Option<Row>> {
    read(table, "")
}

/// The same as it is now, locked until the end of the transaction. Without `wait`, `None` also means that somebody else has it.
pub(crate) fn claim(table: Oid, wait: bool) -> Result<Option<Row>> {
    begin_writing();
    as_extension_owner(|| read(table, if wait { " FOR UPDATE" } else { " FOR UPDATE SKIP LOCKED" }))
}

fn read(table: Oid, locking: &str) -> Result<Option<Row>> {
    Spi::connect_mut(|client| {
        let query = format!(
            "SELECT c.parent::pg_catalog.oid, c.time_column::text, c.boundary, c.state, c.widen_keys, c.partition_width, c.retention, \
                    c.time_zone, c.premake, c.lateness, c.far_future, c.grace, c.detach_deadline, c.note, c.changed_at \
             FROM tally.conversions c WHERE c.table_name OPERATOR(pg_catalog.=) $1{locking}"
        );
        // Locking is writing to SPI.
        let mut rows = if locking.is_empty() {
            client.select(&query, None, &[table.into()])?
        } else {
            client.update(&query, None, &[table.into()])?
        };
        let Some(row) = rows.next() else { return Ok(None) };
        let span = |column| row.get::<pgrx::datum::Interval>(column).map(|value| value.map(from_sql));
        Ok(Some(Row {
            parent: row.get(1)?,
            time_column: row.get(2)?.unwrap_or_default(),
            boundary: row.get::<pgrx::datum::Timestamp>(3)?.map_or(Timestamp(0), |at| Timestamp(at.into())),
            state: row.get::<String>(4)?.and_then(|state| State::named(&state)).unwrap_or(State::Cancelling),
            widen_keys: row.get(5)?.unwrap_or(false),
            policy: partitions::Row {
                request: Request {
                    width: span(6)?.unwrap_or_default(),
                    retention: span(7)?,
                    premake: span(9)?,
                    lateness: span(10)?.unwrap_or_default(),
                    far_future: span(11)?.unwrap_or_default(),
                    grace: span(12)?.unwrap_or_default(),
                    detach_deadline: span(13)?.unwrap_or_default(),
                },
                time_zone: row.get(8)?.unwrap_or_default(),
            },
            note: row.get(14)?,
            changed_at: row.get::<TimestampWithTimeZone>(15)?.map_or(Timestamp(0), |at| Timestamp(at.into_inner())),
        }))
    })
    .map_err(spi)
}

pub(crate) fn insert(table: Oid, row: &Row) -> Result<()> {
    let Request { width, retention, premake, lateness, far_future, grace, detach_deadline } = row.policy.request;
    write(
        "INSERT INTO tally.conversions (table_name, time_column, boundary, state, widen_keys, partition_width, retention, time_zone, \
         premake, lateness, far_future, grace, detach_deadline, changed_at) \
         VALUES ($1, $2::pg_catalog.name, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, pg_catalog.clock_timestamp())",
        &[
            table.into(),
            row.time_column.as_str().into(),
            pgrx::datum::Timestamp::saturating_from_raw(row.boundary.0).into(),
            row.state.name().into(),
            row.widen_keys.into(),
            to_sql(width).into(),
            retention.map(to_sql).into(),
            row.policy.time_zone.as_str().into(),
            premake.map(to_sql).into(),
            to_sql(lateness).into(),
            to_sql(far_future).into(),
            to_sql(grace).into(),
            to_sql(detach_deadline).into(),
        ],
    )
}

pub(crate) fn set_boundary(table: Oid, boundary: Timestamp) -> Result<()> {
    write(
        "UPDATE tally.conversions SET boundary = $2, note = NULL WHERE table_name OPERATOR(pg_catalog.=) $1",
        &[table.into(), pgrx::datum::Timestamp::saturating_from_raw(boundary.0).into()],
    )
}

pub(crate) fn set_state(table: Oid, state: State, parent: Option<Oid>) -> Result<()> {
    write(
        "UPDATE tally.conversions SET state = $2, parent = $3::pg_catalog.oid::pg_catalog.regclass, note = NULL, \
         changed_at = pg_catalog.clock_timestamp() WHERE table_name OPERATOR(pg_catalog.=) $1",
        &[table.into(), state.name().into(), parent.into()],
    )
}

/// Notes what is being done or in the way, unless that is known.
pub(crate) fn set_note(table: Oid, row: &Row, note: &str) -> Result<()> {
    if row.note.as_deref() == Some(note) {
        return Ok(());
    }
    write(
        "UPDATE tally.conversions SET note = $2 WHERE table_name OPERATOR(pg_catalog.=) $1",
        &[table.into(), note.into()],
    )
}

pub(crate) fn delete(table: Oid) -> Result<()> {
    write("DELETE FROM tally.conversions WHERE table_name OPERATOR(pg_catalog.=) $1", &[table.into()])
}

/// Forgets the tables that have been dropped, and says which.
pub(crate) fn delete_dropped() -> Result<Vec<Oid>> {
    as_extension_owner(|| {
        Spi::get_one::<Vec<Oid>>(
            "WITH gone AS (DELETE FROM tally.conversions WHERE NOT EXISTS \
               (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) table_name) RETURNING table_name::pg_catalog.oid) \
             SELECT pg_catalog.array_agg(gone.table_name) FROM gone",
        )
    })
    .map(Option::unwrap_or_default)
    .map_err(spi)
}

fn write(statement: &str, arguments: &[DatumWithOid]) -> Result<()> {
    as_extension_owner(|| Spi::run_with_args(statement, arguments)).map_err(spi)
}
