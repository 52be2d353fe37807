//! `tally.rollups`: the relations and the columns of each rollup.

use super::{aggregates, name_of};
use crate::error::{Error, Result, no_row_is_none, spi};
use crate::pg::{self, Oid};
use pgrx::{JsonB, Spi};
use tally_core::rollup::definition::{Definition, OwnAggregate};
use tally_core::rollup::sql::Relations;

/// A rollup as the catalog knows it.
#[derive(Clone, Debug)]
pub(crate) struct Rollup {
    pub rollup: Oid,
    pub source: Oid,
    pub rows: Oid,
    pub changes: Oid,
    pub stored: Oid,
    pub retained: Oid,
    /// The change log of the source.
    pub log: Oid,
    /// The rollup that it is defined on, if it is not the source itself.
    pub below: Option<Oid>,
    /// How many rollups lie between it and the source.
    pub level: i16,
    /// Rows before this time are not in its stored groups yet.
    pub unbuilt_before: Option<String>,
    pub definition: Definition,
}

impl Rollup {
    /// Its relations by their present names.
    pub(crate) fn relations(&self) -> Result<Relations> {
        Ok(Relations {
            source: name_of(self.source)?,
            public: name_of(self.rollup)?,
            rows: name_of(self.rows)?,
            changes: name_of(self.changes)?,
            stored: name_of(self.stored)?,
            retained: name_of(self.retained)?,
            log: name_of(self.log)?,
        })
    }
}

/// One of the rollups of a source in the active snapshot.
pub(crate) fn find(source: Oid, rollup: Oid) -> Result<Option<Rollup>> {
    Ok(of_source(source)?.into_iter().find(|entry| entry.rollup == rollup))
}

/// The rollups of a source in the active snapshot, always in the same order: each behind the one that it is defined on.
pub(crate) fn of_source(source: Oid) -> Result<Vec<Rollup>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT r.rollup::pg_catalog.oid, r.rows_view::pg_catalog.oid, r.changes_view::pg_catalog.oid, \
                    r.stored::pg_catalog.oid, r.retained::pg_catalog.oid, s.changes::pg_catalog.oid, \
                    r.below::pg_catalog.oid, r.level, r.columns, CASE WHEN b.unbuilt_before OPERATOR(pg_catalog.<>) '-infinity' THEN b.unbuilt_before END \
             FROM tally.rollups AS r JOIN tally.sources AS s ON s.source OPERATOR(pg_catalog.=) r.source \
             LEFT JOIN tally.builds AS b ON b.stored OPERATOR(pg_catalog.=) r.stored \
             WHERE r.source OPERATOR(pg_catalog.=) $1 ORDER BY r.level, r.rollup::pg_catalog.oid",
            None,
            &[source.into()],
        )?;
        rows.map(|row| {
            let oid = |column| row.get::<Oid>(column).map(|oid| oid.unwrap_or(Oid::INVALID));
            let level = row.get::<i16>(8)?.unwrap_or(0);
            let relations = [oid(1)?, oid(2)?, oid(3)?, oid(4)?, oid(5)?, oid(6)?];
            Ok((relations, row.get::<Oid>(7)?, level, row.get::<JsonB>(9)?, row.get::<String>(10)?))
        })
        .collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)?
    .into_iter()
    .map(|([rollup, rows, changes, stored, retained, log], below, level, columns, unbuilt_before)| {
        let columns = columns.map(|JsonB(columns)| columns).unwrap_or_default();
        let mut definition: Definition = serde_json::from_value(columns).map_err(|error| {
            Error::new("XX001", format!("tally.rollups.columns of {} is damaged: {error}", rollup.to_u32()))
                .hint("Drop the rollup with tally.drop_rollup and create it anew.")
        })?;
        if !definition.aggregates.is_empty() {
            definition.follow_aggregates(&aggregates::used_by(rollup)?);
        }
        Ok(Rollup { rollup, source, rows, changes, stored, retained, log, below, level, unbuilt_before, definition })
    })
    .collect()
}

/// The source of a rollup, or an error that says where rollups are listed.
pub(crate) fn source_of(rollup: Oid) -> Result<Oid> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT r.source::pg_catalog.oid FROM tally.rollups AS r WHERE r.rollup OPERATOR(pg_catalog.=) $1",
            Some(1),
            &[rollup.into()],
        )?;
        if rows.is_empty() { Ok(None) } else { rows.first().get_one::<Oid>() }
    })
    .map_err(spi)?
    .ok_or_else(|| match name_of(rollup) {
        Ok(name) => {
            Error::new("42704", format!("{name} is not a rollup")).hint("SELECT rollup FROM tally.rollups lists them.")
        }
        Err(error) => error.hint("It may be younger than the snapshot of this transaction; ask in a new one."),
    })
}

/// The source that a relation of a rollup is about; None if it is no such relation.
pub(crate) fn source_of_part(relation: Oid) -> Result<Option<Oid>> {
    let query = "SELECT r.source::pg_catalog.oid FROM tally.rollups AS r \
        WHERE $1 OPERATOR(pg_catalog.=) ANY (ARRAY[r.source, r.rollup, r.rows_view, r.changes_view, r.stored, r.retained]::pg_catalog.oid[])";
    no_row_is_none(Spi::connect(|client| client.select(query, Some(1), &[relation.into()])?.first().get_one::<Oid>()))
}

/// The names of the visible columns, which the owner of the view may have changed.
pub(crate) fn visible_columns(rollup: Oid) -> Result<Vec<String>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT a.attname::text FROM pg_catalog.pg_attribute AS a WHERE a.attrelid OPERATOR(pg_catalog.=) $1 \
             AND a.attnum OPERATOR(pg_catalog.>) 0 ORDER BY a.attnum",
            None,
            &[rollup.into()],
        )?;
        rows.map(|row| row.get::<String>(1).map(Option::unwrap_or_default)).collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// Is the relation the public view of a rollup?
pub(crate) fn is_rollup(relation: Oid) -> bool {
    source_of(relation).is_ok()
}

pub(crate) fn insert(rollup: &Rollup, query: &str, refresh_interval: pgrx::datum::Interval) -> Result<()> {
    let columns = serde_json::to_value(&rollup.definition)
        .map_err(|error| Error::new("XX000", format!("a definition could not be stored: {error}")))?;
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "INSERT INTO tally.rollups \
                    (rollup, source, rows_view, changes_view, stored, refresh_interval, definition, columns, below, level, retained) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            &[
                rollup.rollup.into(),
                rollup.source.into(),
                rollup.rows.into(),
                rollup.changes.into(),
                rollup.stored.into(),
                refresh_interval.into(),
                query.into(),
                JsonB(columns).into(),
                rollup.below.into(),
                rollup.level.into(),
                rollup.retained.into(),
            ],
        )
    })
    .map_err(spi)
}

/// Notes another definition, with the relations that were made for it.
pub(crate) fn update(rollup: &Rollup, query: &str) -> Result<()> {
    let columns = serde_json::to_value(&rollup.definition)
        .map_err(|error| Error::new("XX000", format!("a definition could not be stored: {error}")))?;
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "UPDATE tally.rollups SET rows_view = $2, changes_view = $3, stored = $4, retained = $5, definition = $6, columns = $7 \
             WHERE rollup OPERATOR(pg_catalog.=) $1",
            &[
                rollup.rollup.into(),
                rollup.rows.into(),
                rollup.changes.into(),
                rollup.stored.into(),
                rollup.retained.into(),
                query.into(),
                JsonB(columns).into(),
            ],
        )
    })
    .map_err(spi)
}

pub(crate) fn set_interval(rollup: Oid, refresh_interval: pgrx::datum::Interval) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "UPDATE tally.rollups SET refresh_interval = $2 WHERE rollup OPERATOR(pg_catalog.=) $1",
            &[rollup.into(), refresh_interval.into()],
        )
    })
    .map_err(spi)
}

pub(crate) fn delete(rollup: Oid) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args("DELETE FROM tally.rollups WHERE rollup OPERATOR(pg_catalog.=) $1", &[rollup.into()])
    })
    .map_err(spi)
}

/// A rollup that is defined on this one.
pub(crate) fn above(rollup: Oid) -> Result<Option<Oid>> {
    no_row_is_none(Spi::connect(|client| {
        let query =
            "SELECT r.rollup::pg_catalog.oid FROM tally.rollups AS r WHERE r.below OPERATOR(pg_catalog.=) $1 LIMIT 1";
        client.select(query, Some(1), &[rollup.into()])?.first().get_one::<Oid>()
    }))
}

/// These columns of the source as `name type`, for the change log.
pub(crate) fn column_declarations(source: Oid, names: &[String]) -> Result<Vec<(String, String)>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT a.attname::text, pg_catalog.format('%I %s%s', a.attname, \
                    pg_catalog.format_type(a.atttypid, a.atttypmod), \
                    (SELECT pg_catalog.format(' COLLATE %I.%I', n.nspname, l.collname) \
                       FROM pg_catalog.pg_collation AS l \
                       JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) l.collnamespace \
                      WHERE l.oid OPERATOR(pg_catalog.=) a.attcollation)) \
               FROM pg_catalog.pg_attribute AS a \
              WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attname OPERATOR(pg_catalog.=) ANY ($2::pg_catalog.name[]) \
                AND a.attname OPERATOR(pg_catalog.<>) 'tally_tag' ORDER BY 1",
            None,
            &[source.into(), names.to_vec().into()],
        )?;
        rows.map(|row| Ok((row.get::<String>(1)?.unwrap_or_default(), row.get::<String>(2)?.unwrap_or_default())))
            .collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// A rollup that has lost one of its relations to a DROP by hand; [`orphans`] gives those above first.
#[derive(Clone, Debug)]
pub(crate) struct Orphan {
    pub rollup: Oid,
    pub rows: Oid,
    pub changes: Oid,
    pub stored: Oid,
    pub retained: Oid,
    pub aggregates: Vec<OwnAggregate>,
}

pub(crate) fn orphans() -> Result<Vec<Orphan>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT r.rollup::pg_catalog.oid, r.rows_view::pg_catalog.oid, r.changes_view::pg_catalog.oid, \
                    r.stored::pg_catalog.oid, r.retained::pg_catalog.oid, r.columns OPERATOR(pg_catalog.->) 'aggregates' \
             FROM tally.rollups AS r \
             WHERE EXISTS (SELECT FROM (VALUES (r.rollup), (r.source), (r.rows_view), (r.changes_view), (r.stored), (r.retained)) \
                             AS part (relation) \
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) part.relation)) \
             ORDER BY r.level DESC",
            None,
            &[],
        )?;
        rows.map(|row| {
            let oid = |column| row.get::<Oid>(column).map(|oid| oid.unwrap_or(Oid::INVALID));
            let aggregates = row.get::<JsonB>(6)?.and_then(|JsonB(list)| serde_json::from_value(list).ok());
            Ok(Orphan {
                rollup: oid(1)?,
                rows: oid(2)?,
                changes: oid(3)?,
                stored: oid(4)?,
                retained: oid(5)?,
                aggregates: aggregates.unwrap_or_default(),
            })
        })
        .collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)
}

/// The shortest refresh interval among the rollups of a source, in seconds; None if it has none.
pub(crate) fn shortest_interval(source: Oid) -> Result<Option<f64>> {
    Spi::get_one_with_args(
        "SELECT EXTRACT(epoch FROM pg_catalog.min(r.refresh_interval))::double precision \
         FROM tally.rollups AS r WHERE r.source OPERATOR(pg_catalog.=) $1",
        &[source.into()],
    )
    .map_err(spi)
}
