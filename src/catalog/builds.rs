//! `tally.builds`: rollups whose first groups are built in slices of time.

use crate::error::{Result, spi};
use crate::pg::{self, Oid};
use pgrx::Spi;

/// Everything is built, and the view may be replaced by one that no longer looks for unbuilt rows.
pub(crate) const ALL_BUILT: &str = "-infinity";

/// Nothing is built.
pub(crate) const ALL_UNBUILT: &str = "infinity";

/// The build of one rollup.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub stored: Oid,
    /// Rows before this time are not built.
    pub unbuilt_before: String,
    /// The first times of the slices to come.
    pub remaining: Vec<String>,
    /// Rows in all, as they were estimated when it began.
    pub rows_expected: i64,
}

/// Notes that nothing of a rollup is built.
pub(crate) fn insert(stored: Oid, slices: Vec<String>, rows_expected: i64) -> Result<()> {
    let ranges = i32::try_from(slices.len() + 1).unwrap_or(i32::MAX);
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "INSERT INTO tally.builds (stored, unbuilt_before, remaining, ranges_total, rows_expected) \
             VALUES ($1, $5, $2, $3, $4)",
            &[stored.into(), slices.into(), ranges.into(), rows_expected.into(), ALL_UNBUILT.into()],
        )
    })
    .map_err(spi)
}

/// The builds of a source in the active snapshot, lower levels first.
pub(crate) fn of_source(source: Oid) -> Result<Vec<Progress>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT b.stored::pg_catalog.oid, b.unbuilt_before, b.remaining, b.rows_expected FROM tally.builds AS b \
             JOIN tally.rollups AS r ON r.stored OPERATOR(pg_catalog.=) b.stored \
             WHERE r.source OPERATOR(pg_catalog.=) $1 ORDER BY r.level, b.stored::pg_catalog.oid",
            None,
            &[source.into()],
        )?;
        rows.map(|row| {
            Ok(Progress {
                stored: row.get(1)?.unwrap_or(Oid::INVALID),
                unbuilt_before: row.get(2)?.unwrap_or_default(),
                remaining: row.get(3)?.unwrap_or_default(),
                rows_expected: row.get(4)?.unwrap_or(0),
            })
        })
        .collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// Notes that a slice is built.
pub(crate) fn advance(stored: Oid, unbuilt_before: &str, remaining: Vec<String>, rows: i64) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "UPDATE tally.builds SET unbuilt_before = $2, remaining = $3, \
                    ranges_done = ranges_done OPERATOR(pg_catalog.+) 1, rows_done = rows_done OPERATOR(pg_catalog.+) $4 \
             WHERE stored OPERATOR(pg_catalog.=) $1",
            &[stored.into(), unbuilt_before.into(), remaining.into(), rows.into()],
        )
    })
    .map_err(spi)
}

pub(crate) fn delete(stored: Oid) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args("DELETE FROM tally.builds WHERE stored OPERATOR(pg_catalog.=) $1", &[stored.into()])
    })
    .map_err(spi)
}

/// Is anything of any rollup of the source not built?
pub(crate) fn is_any(source: Oid) -> Result<bool> {
    Ok(of_source(source)?.iter().any(|build| build.unbuilt_before != ALL_BUILT))
}

/// Rows per table and the bounds of their times in the statistics of a column, each as microseconds and text. Tables that have
/// never been analysed have no bounds.
pub(crate) fn statistics(tables: Vec<Oid>, time: &str) -> Result<Vec<tally_core::rollup::build::TableStatistics>> {
    use tally_core::rollup::build::{Bound, TableStatistics};
    let statistics = Spi::connect(|client| {
        let rows = client.select(
            "SELECT c.oid, CASE WHEN c.reltuples OPERATOR(pg_catalog.>=) 0 THEN c.reltuples::double precision \
                    ELSE pg_catalog.pg_relation_size(c.oid::pg_catalog.regclass) OPERATOR(pg_catalog./) 100.0 END::double precision, \
                    h.microseconds, h.texts \
               FROM pg_catalog.pg_class AS c \
               JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
               LEFT JOIN pg_catalog.pg_stats AS s ON s.schemaname OPERATOR(pg_catalog.=) n.nspname \
                    AND s.tablename OPERATOR(pg_catalog.=) c.relname AND s.attname OPERATOR(pg_catalog.=) $2::pg_catalog.name \
                    AND NOT s.inherited \
               LEFT JOIN LATERAL (SELECT pg_catalog.array_agg((EXTRACT(epoch FROM b.bound::timestamptz) OPERATOR(pg_catalog.*) 1000000)::bigint ORDER BY b.number) AS microseconds, \
                                         pg_catalog.array_agg(b.bound ORDER BY b.number) AS texts \
                                    FROM pg_catalog.unnest(COALESCE(s.histogram_bounds::text::text[], s.most_common_vals::text::text[])) \
                                         WITH ORDINALITY AS b (bound, number) \
                                   WHERE pg_catalog.isfinite(b.bound::timestamptz)) AS h ON true \
              WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1)",
            None,
            &[tables.into(), time.into()],
        )?;
        rows.map(|row| {
            let (rows, microseconds, texts) = (row.get::<f64>(2)?, row.get::<Vec<i64>>(3)?, row.get::<Vec<String>>(4)?);
            let bounds = microseconds.unwrap_or_default().into_iter().zip(texts.unwrap_or_default());
            let mut bounds: Vec<Bound> = bounds.map(|(microseconds, text)| Bound { microseconds, text }).collect();
            bounds.sort();
            Ok(TableStatistics { rows: rows.unwrap_or(0.0), bounds })
        })
        .collect::<pgrx::spi::Result<Vec<_>>>()
    });
    statistics.map_err(spi)
}
