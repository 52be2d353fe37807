//! Old rows leave a source for good while its rollups go on counting them.

use crate::catalog::{self, builds, departures, rollups, sources};
use crate::changes;
use crate::error::{Error, Result, spi};
use crate::pg::{self, Oid, Snapshot};
use crate::{refresh, tags, version};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use tally_core::ident::quote;
use tally_core::partition::Key;
use tally_core::rollup::sql;

/// Rows that one step deletes at most.
const ROWS_PER_STEP: i64 = 50_000;

/// The column of time of a source that feeds rollups and that the caller owns.
fn column_of(source: Oid, time_column: Option<&str>) -> Result<tags::TimeColumn> {
    let name = catalog::name_of(source)?;
    if !sources::is_source_now(source)? {
        return Err(Error::new("42704", format!("{name} feeds no rollup"))
            .hint("DELETE or DROP removes its rows; nothing has to be kept of them."));
    }
    catalog::require_owner(source)?;
    let found = tags::time_column(source, time_column)?;
    let is_wanted = |column: &tags::TimeColumn| time_column.is_none_or(|wanted| wanted == column.name);
    found.filter(is_wanted).ok_or_else(|| match time_column {
        Some(column) => Error::new(
            "42703",
            format!("{name} has no column {} of a time, or is partitioned by another", quote(column)),
        )
        .hint("Name a column of type date, timestamp or timestamptz, or leave time_column out."),
        None => Error::new("22023", format!("{name} is not partitioned by a time"))
            .hint("Say which column is the time of a row: time_column => 'event_time'."),
    })
}

/// Partitions of which every row is older.
#[pg_extern(sql = false)]
fn tally_forgettable_partitions(
    source: Oid,
    older_than: TimestampWithTimeZone,
) -> std::result::Result<Vec<Oid>, ErrorReport> {
    Ok(forgettable_partitions(source, older_than)?)
}

fn forgettable_partitions(source: Oid, older_than: TimestampWithTimeZone) -> Result<Vec<Oid>> {
    let Some(time) = tags::time_column(source, None)? else { return Ok(vec![]) };
    let key = Key::of_type(&time.type_name);
    let limit = tags::key_value(key, older_than)?;
    let partitions = pg::range_partitions(source, key).into_iter();
    Ok(partitions.filter(|bounds| bounds.range.upper <= limit).map(|bounds| bounds.partition).collect())
}

/// Drops a partition. Nobody waits behind its lock: it is tried.
#[pg_extern(sql = false)]
fn tally_forget_partition(source: Oid, partition: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(forget_partition(source, partition)?)
}

fn forget_partition(source: Oid, partition: Oid) -> Result<()> {
    version::require_writable()?;
    column_of(source, None)?;
    if tags::parent(partition)? != Some(source) {
        return Ok(());
    }
    pg::lock_refresh(sources::table()?, source, true);
    let mut tables = vec![source];
    tables.extend(tags::partition_tree(partition)?);
    let name = catalog::name_of(partition)?;
    if !pg::try_access_exclusive(&tables, tags::LOCK_TRIES, tags::LOCK_PAUSE) {
        return Err(tags::busy(&name));
    }
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))?;
    // The event trigger keeps what its rows count for.
    pg::as_user(owner, || Spi::run(&format!("DROP TABLE {name}"))).map_err(spi)
}

/// Deletes some of the older rows of one table of a source, and answers how many. None are left when the answer is 0.
#[pg_extern(sql = false)]
fn tally_forget_rows(
    source: Option<Oid>,
    part: Option<Oid>,
    older_than: Option<TimestampWithTimeZone>,
    time_column: Option<&str>,
) -> std::result::Result<i64, ErrorReport> {
    let missing = |name: &str| Error::new("22004", format!("{name} must not be NULL"));
    let source = source.ok_or_else(|| missing("source"))?;
    let part = part.ok_or_else(|| missing("part"))?;
    let older_than = older_than.ok_or_else(|| missing("older_than"))?;
    Ok(forget_rows(source, part, older_than, time_column)?)
}

fn forget_rows(source: Oid, part: Oid, older_than: TimestampWithTimeZone, time_column: Option<&str>) -> Result<i64> {
    refresh::require_fresh_transaction()?;
    let time = column_of(source, time_column)?;
    pg::lock_refresh(sources::table()?, source, true);
    let now = Snapshot::take();
    let Some(state) = now.read(|| sources::state(source))? else { return Ok(0) };
    if now.read(|| sources::source_of(part))? != Some(source) {
        return Ok(0);
    }
    let log = now.read(|| sources::log_now(source))?;
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))?;
    let limit = Spi::get_one_with_args::<String>("SELECT $1::text", &[older_than.into()]).map_err(spi)?;
    let limit = tally_core::ident::literal(&limit.unwrap_or_default());
    let (table, column, kind) = (catalog::name_of(part)?, quote(&time.name), &time.type_name);
    let is_old = format!("t.{column} OPERATOR(pg_catalog.<) {limit}::timestamptz::{kind}");
    let deleted = {
        let _settings = pg::pin_settings();
        // Each by its place, and checked again: a row may have been changed meanwhile, and then has another place.
        let delete = format!(
            "WITH gone AS (DELETE FROM ONLY {table} AS t WHERE t.ctid OPERATOR(pg_catalog.=) ANY \
               (ARRAY(SELECT t.ctid FROM ONLY {table} AS t WHERE {is_old} LIMIT {ROWS_PER_STEP})) AND {is_old} RETURNING 1) \
             SELECT pg_catalog.count(*) FROM gone"
        );
        pg::as_user(owner, || now.execute::<1>(&delete))?.map_or(0, |[rows]| rows)
    };
    if deleted > 0 {
        let rollups = now.read(|| rollups::of_source(source))?;
        let relations = now.read(|| rollups.iter().map(rollups::Rollup::relations).collect::<Result<Vec<_>>>())?;
        let writer = pg::own_tag()?;
        let departure = departures::next_number()?;
        let rows = |member: &sql::Member| sql::retain_deleted(member.definition, member.relations, writer, departure);
        changes::retain(&rows, departure, &refresh::families(&rollups, &relations), owner)?;
        let is_building = now.read(|| builds::is_any(source))?;
        for statement in
            sql::settle_deleted(&catalog::name_of(log)?, writer, Some(&state.counted).filter(|_| !is_building))
        {
            pg::as_user(owner, || Snapshot::latest().execute::<0>(&statement))?;
        }
        pg::invalidate_plans(log);
    }
    Ok(deleted)
}
