//! The SQL functions: skins over the verbs of the parent module, declared in `sql/conversions.sql`.
#![allow(clippy::type_complexity, reason = "pgrx reads the columns of a set from the signature")]

use crate::catalog::conversions::Row;
use crate::catalog::partitions::{self, from_sql};
use crate::error::Result;
use crate::partition::functions::{Step, required};
use crate::pg::Oid;
use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;
use tally_core::partition::check::{Request, unless_zero};
use tally_core::partition::conversion::State;

#[expect(clippy::too_many_arguments, reason = "one per argument of the SQL functions")]
fn row(
    time_column: Option<&str>,
    partition_width: Option<Interval>,
    retention: Option<Interval>,
    time_zone: Option<String>,
    premake: Option<Interval>,
    lateness: Option<Interval>,
    far_future: Option<Interval>,
    grace: Option<Interval>,
    detach_deadline: Option<Interval>,
    widen_keys: Option<bool>,
) -> Result<Row> {
    let request = Request {
        width: from_sql(required("partition_width", partition_width)?),
        retention: retention.map(from_sql).and_then(unless_zero),
        premake: premake.map(from_sql),
        lateness: from_sql(required("lateness", lateness)?),
        far_future: from_sql(required("far_future", far_future)?),
        grace: from_sql(required("grace", grace)?),
        detach_deadline: from_sql(required("detach_deadline", detach_deadline)?),
    };
    Ok(Row {
        parent: None,
        time_column: required("time_column", time_column)?.to_owned(),
        boundary: Timestamp(0),
        state: State::Preparing,
        widen_keys: required("widen_keys", widen_keys)?,
        policy: partitions::Row { request, time_zone: required("time_zone", time_zone)? },
        note: None,
        changed_at: Timestamp(0),
    })
}

#[pg_extern(sql = false)]
#[expect(clippy::too_many_arguments, reason = "one per argument of the SQL function")]
fn tally_convert_to_partitioned(
    tbl: Option<Oid>,
    time_column: Option<&std::ffi::CStr>,
    partition_width: Option<Interval>,
    retention: Option<Interval>,
    time_zone: Option<String>,
    premake: Option<Interval>,
    lateness: Option<Interval>,
    far_future: Option<Interval>,
    grace: Option<Interval>,
    detach_deadline: Option<Interval>,
    widen_keys: Option<bool>,
) -> std::result::Result<(), ErrorReport> {
    let column = time_column.map(std::ffi::CStr::to_string_lossy);
    let row = row(
        column.as_deref(),
        partition_width,
        retention,
        time_zone,
        premake,
        lateness,
        far_future,
        grace,
        detach_deadline,
        widen_keys,
    )?;
    Ok(super::begin(required("tbl", tbl)?, row)?)
}

#[pg_extern(sql = false)]
#[expect(clippy::too_many_arguments, reason = "one per argument of the SQL function")]
fn tally_plan_conversion(
    tbl: Option<Oid>,
    time_column: Option<&std::ffi::CStr>,
    partition_width: Option<Interval>,
    retention: Option<Interval>,
    time_zone: Option<String>,
    premake: Option<Interval>,
    lateness: Option<Interval>,
    far_future: Option<Interval>,
    grace: Option<Interval>,
    detach_deadline: Option<Interval>,
    widen_keys: Option<bool>,
) -> std::result::Result<
    TableIterator<
        'static,
        (
            name!(step, i64),
            name!(action, String),
            name!(object, String),
            name!(sql, String),
            name!(lock_mode, Option<String>),
            name!(locked_tables, Vec<String>),
            name!(est_rows, i64),
            name!(est_bytes, i64),
            name!(top_level_only, bool),
            name!(note, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let column = time_column.map(std::ffi::CStr::to_string_lossy);
    let row = row(
        column.as_deref(),
        partition_width,
        retention,
        time_zone,
        premake,
        lateness,
        far_future,
        grace,
        detach_deadline,
        widen_keys,
    )?;
    let planned = super::plan::plan(required("tbl", tbl)?, row)?.into_iter().enumerate();
    let steps: Vec<Step> = planned
        .map(|(at, line)| {
            (
                at as i64 + 1,
                line.action,
                line.object,
                line.sql,
                line.lock_mode.map(str::to_owned),
                line.locked,
                line.rows,
                line.bytes,
                line.is_top_level,
                line.note,
            )
        })
        .collect();
    Ok(TableIterator::new(steps))
}

#[pg_extern(sql = false)]
fn tally_cancel_conversion(tbl: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(super::cancel(tbl)?)
}

#[pg_extern(sql = false)]
fn tally_undo_conversion(tbl: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(super::undo::undo(tbl)?)
}

#[pg_extern(sql = false)]
fn tally_move_rollups(source: Oid, target: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(super::move_rollups(source, target)?)
}
