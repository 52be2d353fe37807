//! `tally.sources`: the snapshot up to which the rows of each source are counted.

use crate::error::{Error, Result, no_row_is_none, spi};
use crate::pg::{self, Oid};
use crate::refresh::Report;
use pgrx::Spi;
use std::time::Duration;
use tally_core::snapshot::Counted;

/// The OID of the table itself, which names the lock of a refresh.
pub(crate) fn table() -> Result<Oid> {
    let query = "SELECT 'tally.sources'::pg_catalog.regclass::pg_catalog.oid";
    Spi::connect(|client| client.select(query, Some(1), &[])?.first().get_one::<Oid>())
        .map_err(spi)?
        .ok_or_else(|| Error::new("42P01", "table tally.sources does not exist"))
}

/// The state of a source in the active snapshot, or None if it feeds no rollup.
pub(crate) fn state(source: Oid) -> Result<Option<Counted>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT s.next_tag, s.open_tags FROM tally.sources AS s WHERE s.source OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[source.into()],
        )?;
        if rows.is_empty() {
            return Ok(None);
        }
        let (next, open) = rows.first().get_two::<i64, Vec<i64>>()?;
        Ok(Some(Counted { next: next.unwrap_or(0), open: open.unwrap_or_default() }))
    })
    .map_err(spi)
}

/// The change log of the source that a table is, or is a partition of.
pub(crate) fn log_of(table: Oid) -> Result<Option<Oid>> {
    of_table(table, "changes")
}

/// The source that a table is, or is a partition of.
pub(crate) fn source_of(table: Oid) -> Result<Option<Oid>> {
    of_table(table, "source")
}

fn of_table(table: Oid, column: &str) -> Result<Option<Oid>> {
    let query = format!(
        "SELECT s.{column}::pg_catalog.oid FROM tally.sources AS s WHERE s.source OPERATOR(pg_catalog.=) $1 \
         OR s.source::pg_catalog.oid OPERATOR(pg_catalog.=) ANY \
            (ARRAY(SELECT a.relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors($1) AS a))"
    );
    no_row_is_none(Spi::connect(|client| client.select(&query, Some(1), &[table.into()])?.first().get_one::<Oid>()))
}

/// Is the relation a source?
pub(crate) fn is_source(relation: Oid) -> Result<bool> {
    state(relation).map(|state| state.is_some())
}

/// Is the relation a source, or a partition of one that has partitions itself?
pub(crate) fn is_part_of_source(relation: Oid) -> Result<bool> {
    source_of(relation).map(|source| source.is_some())
}

/// [`is_source`], asked after a lock was taken: it sees what was committed meanwhile.
pub(crate) fn is_source_now(relation: Oid) -> Result<bool> {
    pg::Snapshot::take().read(|| is_source(relation))
}

/// [`log_of`] a source, asked after a lock was taken.
pub(crate) fn log_now(source: Oid) -> Result<Oid> {
    pg::Snapshot::take().read(|| log_of(source))?.ok_or_else(|| Error::new("XX000", "a source has no change log"))
}

pub(crate) fn insert(source: Oid, log: Oid, counted: &Counted) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "INSERT INTO tally.sources (source, changes, next_tag, open_tags) VALUES ($1, $2, $3, $4)",
            &[source.into(), log.into(), counted.next.into(), counted.open.clone().into()],
        )
    })
    .map_err(spi)
}

/// Stores the snapshot of a tick, in the transaction that merged its delta.
pub(crate) fn advance(source: Oid, counted: &Counted, report: &Report, duration: Duration) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "UPDATE tally.sources SET next_tag = $2, open_tags = $3, refreshed_at = pg_catalog.clock_timestamp(), \
             refresh_duration = pg_catalog.make_interval(secs => $4), refreshed_rows = $5, refreshed_groups = $6 \
             WHERE source OPERATOR(pg_catalog.=) $1",
            &[
                source.into(),
                counted.next.into(),
                counted.open.clone().into(),
                duration.as_secs_f64().into(),
                report.rows.into(),
                report.groups.into(),
            ],
        )
    })
    .map_err(spi)
}

pub(crate) fn delete(source: Oid) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args("DELETE FROM tally.sources WHERE source OPERATOR(pg_catalog.=) $1", &[source.into()])
    })
    .map_err(spi)
}

/// Sources that no longer exist, or that feed no rollup any more because those were dropped by hand; with their change logs.
pub(crate) fn orphans() -> Result<Vec<(Oid, Oid)>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT s.source::pg_catalog.oid, s.changes::pg_catalog.oid FROM tally.sources AS s \
             WHERE NOT EXISTS (SELECT FROM tally.rollups AS r WHERE r.source OPERATOR(pg_catalog.=) s.source)",
            None,
            &[],
        )?;
        rows.map(|row| {
            let oid = |column| row.get::<Oid>(column).map(|oid| oid.unwrap_or(Oid::INVALID));
            Ok((oid(1)?, oid(2)?))
        })
        .collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}
