//! The DEFAULT partition of a set: what rows it has, and the statements that lead out.

use super::facts::{self, Facts, rows, text};
use crate::catalog::sources;
use crate::error::{Result, spi};
use crate::pg::Oid;
use pgrx::prelude::*;
use tally_core::bucket::{Grid, Timestamp};
use tally_core::partition::Key;
use tally_core::partition::default::{self, Drain, Spread};

/// Rows that are fetched together while they are counted.
const FETCHED: std::ffi::c_long = 10_000;

/// Reads the times of all rows, under ACCESS SHARE and with the rights of the caller.
pub(super) fn spread<'a>(default: &str, key: Key, key_column: &str, grid: Grid<'a>) -> Result<Spread<'a>> {
    let time = match key {
        Key::Instant => format!("pg_catalog.timezone('UTC', d.{key_column})"),
        Key::WallClock => format!("d.{key_column}"),
        Key::Date => format!("d.{key_column}::pg_catalog.timestamp"),
    };
    let mut spread = Spread::new(grid);
    let query = format!("SELECT {time} FROM {default} d");
    let mut cursor = Spi::connect(|client| Ok(client.try_open_cursor(&query, &[])?.detach_into_name())).map_err(spi)?;
    // What one connection has fetched stays in memory until it ends.
    while let Some(open) = Spi::connect(|client| {
        let mut open = client.find_cursor(&cursor)?;
        let fetched = open.fetch(FETCHED)?;
        if fetched.is_empty() {
            return Ok(None);
        }
        for row in fetched {
            spread.add(row.get::<pgrx::datum::Timestamp>(1)?.map(|at| Timestamp(at.into())));
        }
        Ok(Some(open.detach_into_name()))
    })
    .map_err(spi)?
    {
        cursor = open;
    }
    Ok(spread)
}

/// Has it no storage, so certainly no row? Asks for no right to read it.
fn has_storage(default: &str) -> Result<bool> {
    rows(
        "SELECT COALESCE(pg_catalog.bool_or(c.relkind OPERATOR(pg_catalog.=) 'f' \
                                            OR pg_catalog.pg_relation_size(t.relid) OPERATOR(pg_catalog.>) 0), false) \
         FROM pg_catalog.pg_partition_tree($1::pg_catalog.regclass) t \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.relid::pg_catalog.oid",
        &[default.into()],
        |row| facts::flag(row, 1),
    )
    .map(|found| found.first().copied().unwrap_or(true))
}

/// The statements that take its rows out, if it may have any; for status.
pub(super) fn way_out(facts: &Facts, zone: &str) -> Result<Option<String>> {
    match &facts.set.default {
        Some(default) if has_storage(default)? => {
            drain(facts, default, zone, None).map(|drain| drain.or_else(|| Some(format!("SELECT * FROM {default};"))))
        }
        _ => Ok(None),
    }
}

/// The statements that take its rows out, and register the set if it is none. `None`: rollups have to see the rows go, and these might
/// take rows of other tables along that refer to them.
pub(super) fn drain(facts: &Facts, default: &str, zone: &str, register: Option<&str>) -> Result<Option<String>> {
    let (Some(Some(column)), Some(key)) = (facts.set.key.first(), facts::key(facts)) else { return Ok(None) };
    let feeds_rollups = sources::is_source(facts.oid)?;
    if feeds_rollups && is_referenced(facts.oid)? {
        return Ok(None);
    }
    Ok(Some(default::drain(&Drain {
        table: &facts.set.table,
        default,
        key,
        key_column: &column.name,
        zone,
        columns: &columns(facts.oid, feeds_rollups)?,
        feeds_rollups,
        register,
    })))
}

/// The columns that an INSERT names, as SQL writes them: not those that are computed, nor the tag of rollups.
fn columns(table: Oid, feeds_rollups: bool) -> Result<Vec<String>> {
    rows(
        "SELECT pg_catalog.quote_ident(a.attname) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
           AND a.attgenerated OPERATOR(pg_catalog.=) '' AND NOT ($2 AND a.attname OPERATOR(pg_catalog.=) 'tally_tag') \
         ORDER BY a.attnum",
        &[table.into(), feeds_rollups.into()],
        |row| text(row, 1),
    )
}

fn is_referenced(table: Oid) -> Result<bool> {
    rows(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint k \
                        WHERE k.confrelid OPERATOR(pg_catalog.=) $1 AND k.contype OPERATOR(pg_catalog.=) 'f')",
        &[table.into()],
        |row| facts::flag(row, 1),
    )
    .map(|found| found.first().copied().unwrap_or(true))
}
