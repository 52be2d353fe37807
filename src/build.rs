//! The first groups of a rollup on a large table: built in slices of time, each in a transaction of its own, the newest rows first.
//!
//! ```text
//!   rows before unbuilt_before          rows from there on
//!   the view reads them as they are     in the stored groups, kept by ticks
//!            <── one slice after the other
//! ```

use crate::catalog;
use crate::catalog::builds::{self, ALL_BUILT, ALL_UNBUILT, Progress};
use crate::catalog::rollups::{self, Rollup};
use crate::error::{Error, Result, spi};
use crate::pg::{self, Oid};
use crate::refresh::{self, Reached};
use crate::{settings, tags};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use tally_core::ident::quote;
use tally_core::rollup::build::slices;
use tally_core::rollup::sql::{self, Build};

/// How a rollup is to be built.
pub(crate) struct Slices {
    /// The first times of all slices but the oldest, newest first.
    pub first_times: Vec<String>,
    /// Rows in all of them, as far as PostgreSQL knows.
    pub rows: i64,
}

/// The slices of a table that has too many rows to be counted in one transaction. `time` is its column of time.
pub(crate) fn slices_of_table(source: Oid, time: &str) -> Result<Option<Slices>> {
    let tables = tags::leaves(source)?;
    let rows = Spi::get_one_with_args::<f64>(
        "SELECT pg_catalog.sum(CASE WHEN c.reltuples OPERATOR(pg_catalog.>) 0 THEN c.reltuples::double precision \
                ELSE pg_catalog.pg_relation_size(c.oid::pg_catalog.regclass) OPERATOR(pg_catalog./) 100.0 END::double precision) \
           FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1)",
        &[tables.clone().into()],
    )
    .map_err(spi)?
    .unwrap_or(0.0);
    if rows <= settings::build_rows() {
        return Ok(None);
    }
    analyze(&tables, time)?;
    let first_times = slices(&builds::statistics(tables, time)?, settings::build_rows());
    Ok(Some(Slices { first_times, rows: rows as i64 }))
}

/// The slices of a rollup on one that is not all built.
pub(crate) fn slices_of(below: &Rollup) -> Result<Option<Slices>> {
    let build = builds::of_source(below.source)?.into_iter().find(|build| build.stored == below.stored);
    let Some(build) = build.filter(|build| build.unbuilt_before != ALL_BUILT) else { return Ok(None) };
    let built = (build.unbuilt_before != ALL_UNBUILT).then_some(build.unbuilt_before);
    Ok(Some(Slices { first_times: built.into_iter().chain(build.remaining).collect(), rows: build.rows_expected }))
}

/// Where slices are cut comes from the statistics of each table.
fn analyze(tables: &[Oid], time: &str) -> Result<()> {
    let unknown = Spi::connect(|client| {
        let rows = client.select(
            "SELECT c.oid FROM pg_catalog.pg_class AS c \
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid \
                    AND a.attname OPERATOR(pg_catalog.=) $2::pg_catalog.name \
              WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1) AND pg_catalog.pg_relation_size(c.oid::pg_catalog.regclass) OPERATOR(pg_catalog.>) 0 \
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_statistic AS s \
                     WHERE s.starelid OPERATOR(pg_catalog.=) c.oid AND s.staattnum OPERATOR(pg_catalog.=) a.attnum)",
            None,
            &[tables.to_vec().into(), time.into()],
        )?;
        rows.map(|row| row.get::<Oid>(1).map(|oid| oid.unwrap_or(Oid::INVALID))).collect::<pgrx::spi::Result<Vec<_>>>()
    })
    .map_err(spi)?;
    for table in unknown {
        let analyze = format!("ANALYZE (SKIP_LOCKED) {} ({})", catalog::name_of(table)?, quote(time));
        Spi::run(&analyze).map_err(spi)?;
    }
    Ok(())
}

/// Builds the next slice of the first rollup of the source that is not built, in the transaction of a tick; if all are built, their
/// views are replaced. Answers the rows counted.
pub(crate) fn step(reached: &Reached) -> Result<i64> {
    let builds = reached.now.read(|| builds::of_source(reached.source))?;
    if builds.is_empty() {
        return Ok(0);
    }
    let rollups = reached.now.read(|| rollups::of_source(reached.source))?;
    let rollup_of = |build: &Progress| rollups.iter().find(|rollup| rollup.stored == build.stored);
    let Some(build) = builds.iter().find(|build| build.unbuilt_before != ALL_BUILT) else {
        for rollup in builds.iter().filter_map(rollup_of) {
            end(rollup, reached)?;
        }
        return Ok(0);
    };
    let Some(rollup) = rollup_of(build) else { return Ok(0) };
    let mut remaining = build.remaining.iter().cloned();
    let first = remaining.next();
    let statement = sql::build_slice(
        &rollup.definition,
        &reached.now.read(|| rollup.relations())?,
        &reached.counted,
        first.as_deref(),
        &build.unbuilt_before,
    );
    let counted = pg::as_user(reached.owner, || reached.now.execute::<2>(&statement))?;
    let rows = counted.map_or(0, |[_, rows]| rows);
    let unbuilt_before = first.unwrap_or_else(|| ALL_BUILT.into());
    builds::advance(build.stored, &unbuilt_before, remaining.collect(), rows)?;
    Ok(rows)
}

/// Everything is built: the view need not look for unbuilt rows any more. Whoever reads it just now is not waited for; the view is
/// right as it is, and the next run tries again.
fn end(rollup: &Rollup, reached: &Reached) -> Result<()> {
    if !pg::try_access_exclusive(&[rollup.rollup], 1, std::time::Duration::ZERO) {
        return Ok(());
    }
    let relations = rollup.relations()?;
    let mut definition = rollup.definition.clone();
    for (target, name) in definition.targets.iter_mut().zip(rollups::visible_columns(rollup.rollup)?) {
        target.name = name;
    }
    let replace = sql::replace_public_view(&definition, &relations, Build::Sliced);
    pg::as_user(reached.owner, || Spi::run(&replace)).map_err(spi)?;
    builds::delete(rollup.stored)
}

/// Is there a slice to build, or a view to replace?
pub(crate) fn is_unfinished(source: Oid) -> Result<bool> {
    Ok(!builds::of_source(source)?.is_empty())
}

/// One step of `CALL tally.build(rollup)`: a tick and a slice. Answers whether there is more to do.
#[pg_extern(sql = false)]
fn tally_build_slice(rollup: Oid) -> std::result::Result<bool, ErrorReport> {
    Ok(build_slice(rollup)?)
}

fn build_slice(rollup: Oid) -> Result<bool> {
    let source = rollups::source_of(rollup)?;
    catalog::require_owner(source)?;
    refresh::tick_and(source, &mut step)?;
    let now = pg::Snapshot::latest();
    let is_unbuilt = now.read(|| builds::is_any(source))?;
    Ok(is_unbuilt)
}

#[pg_extern(sql = false)]
fn tally_rebuild_range(
    rollup: Option<Oid>,
    from_time: Option<TimestampWithTimeZone>,
    to_time: Option<TimestampWithTimeZone>,
) -> std::result::Result<i64, ErrorReport> {
    let rollup = rollup.ok_or_else(|| Error::new("22004", "the rollup must not be NULL"))?;
    Ok(rebuild_range(rollup, from_time, to_time)?)
}

/// Makes the stored groups of some buckets anew, or all of them, after a tick and in its transaction. Answers the groups made.
fn rebuild_range(
    rollup: Oid,
    from_time: Option<TimestampWithTimeZone>,
    to_time: Option<TimestampWithTimeZone>,
) -> Result<i64> {
    let source = rollups::source_of(rollup)?;
    catalog::require_owner(source)?;
    let mut made = 0;
    refresh::tick_and(source, &mut |reached| {
        let all = reached.now.read(|| rollups::of_source(source))?;
        let Some(entry) = all.iter().find(|entry| entry.rollup == rollup) else { return Ok(0) };
        if entry.unbuilt_before.is_some() {
            let name = catalog::name_of(rollup)?;
            return Err(Error::new("55000", format!("rollup {name} is being built"))
                .hint(format!("CALL tally.build('{name}') ends that; then try again.")));
        }
        let relations = reached.now.read(|| entry.relations())?;
        let range = crate::rollup::bucket_range(entry, from_time, to_time)?;
        let range = range.as_ref().map(|(first, before)| (first.as_str(), before.as_str()));
        for statement in sql::rebuild(&entry.definition, &relations, &reached.counted, range) {
            let answer = pg::as_user(reached.owner, || reached.now.execute::<1>(&statement))?;
            made = answer.map_or(made, |[groups]| groups);
        }
        Ok(0)
    })?;
    Ok(made)
}
