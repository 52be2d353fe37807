//! `tally.departures`: partitions that have left their source while their rows stay counted.

use crate::error::{Error, Result, spi};
use crate::pg::{self, Oid};
use pgrx::Spi;

/// Notes that a partition leaves, and returns the number of the departure.
pub(crate) fn insert(source: Oid, partition: Oid) -> Result<i64> {
    pg::as_extension_owner(|| {
        Spi::get_one_with_args::<i64>(
            "INSERT INTO tally.departures (source, partition) VALUES ($1, $2) RETURNING departure",
            &[source.into(), partition.into()],
        )
    })
    .map_err(spi)?
    .ok_or_else(|| Error::new("XX000", "a departure has no number"))
}

/// A number for rows that leave by themselves and can never come back.
pub(crate) fn next_number() -> Result<i64> {
    pg::as_extension_owner(|| Spi::get_one::<i64>("SELECT pg_catalog.nextval('tally.departures_departure_seq')"))
        .map_err(spi)?
        .ok_or_else(|| Error::new("XX000", "a departure has no number"))
}

/// Notes that a partition has come back to its source: its retained groups no longer count. It may have left several times.
pub(crate) fn release(source: Oid, partition: Oid) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "UPDATE tally.departures SET released_by = tally.row_tag() \
             WHERE source OPERATOR(pg_catalog.=) $1 AND partition OPERATOR(pg_catalog.=) $2 AND released_by IS NULL",
            &[source.into(), partition.into()],
        )
    })
    .map_err(spi)
}

/// The partitions that retention is about to detach and whose rows can be seen, with the numbers of their departures.
pub(crate) fn leaving(source: Oid) -> Result<Vec<(Oid, i64)>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT d.partition::pg_catalog.oid, d.departure FROM tally.sources AS s \
               JOIN tally.departures AS d ON d.source OPERATOR(pg_catalog.=) s.source AND d.released_by IS NULL \
                    AND d.partition OPERATOR(pg_catalog.=) ANY (s.leaving) \
               JOIN pg_catalog.pg_inherits AS i ON i.inhrelid OPERATOR(pg_catalog.=) d.partition AND NOT i.inhdetachpending \
              WHERE s.source OPERATOR(pg_catalog.=) $1 ORDER BY d.departure",
            None,
            &[source.into()],
        )?;
        rows.map(|row| Ok((row.get(1)?.unwrap_or(Oid::INVALID), row.get(2)?.unwrap_or_default())))
            .collect::<pgrx::spi::Result<_>>()
    })
    .map_err(spi)
}

/// Forgets a departure that never was.
pub(crate) fn delete(departure: i64) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "DELETE FROM tally.departures AS d WHERE d.departure OPERATOR(pg_catalog.=) $1",
            &[departure.into()],
        )
    })
    .map_err(spi)
}

/// Forgets departures whose retained groups have been deleted. The condition is on `d.released_by`.
pub(crate) fn delete_released(source: Oid, condition: &str) -> Result<()> {
    let statement =
        format!("DELETE FROM tally.departures AS d WHERE d.source OPERATOR(pg_catalog.=) $1 AND {condition}");
    pg::as_extension_owner(|| Spi::run_with_args(&statement, &[source.into()])).map_err(spi)
}

/// Forgets departures of tables that no longer exist: their rows can never come back. A departure that was released before stays
/// until a refresh has deleted its groups: without it they would count again.
pub(crate) fn delete_orphans() -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run(
            "DELETE FROM tally.departures AS d WHERE d.released_by IS NULL AND NOT EXISTS \
             (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) d.partition)",
        )
    })
    .map_err(spi)
}
