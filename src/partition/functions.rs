//! The SQL functions: skins over the verbs of the parent module, declared in `sql/partitions.sql`.
#![allow(clippy::type_complexity, reason = "pgrx reads the columns of a set from the signature")]

use super::{Plan, default, facts, limits, owned, registration};
use crate::catalog::adoptions::{self, Origin};
use crate::catalog::partitions::{self as policies, from_sql, to_sql};
use crate::catalog::{lock_waits, partition_upkeep};
use crate::error::{Error, Result};
use crate::jobs::{self, Kind};
use crate::pg::relation::Mode;
use crate::pg::{self, Oid};
use crate::version;
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;
use tally_core::partition::check::{Arguments, unless_zero};
use tally_core::partition::status::is_put_off;
use tally_core::partition::{Partition, Range, status};

/// The functions are not STRICT, because some arguments may be null; the others are named when they are.
pub(super) fn required<T>(argument: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::new("22004", format!("{argument} must not be null")))
}

#[pg_extern(sql = false)]
#[expect(clippy::too_many_arguments, reason = "one per argument of the SQL function")]
fn tally_partition_by_time(
    parent: Option<Oid>,
    partition_width: Option<Interval>,
    retention: Option<Interval>,
    time_zone: Option<String>,
    premake: Option<Interval>,
    lateness: Option<Interval>,
    far_future: Option<Interval>,
    grace: Option<Interval>,
    detach_deadline: Option<Interval>,
) -> std::result::Result<i64, ErrorReport> {
    let arguments = arguments(partition_width, retention, premake, lateness, far_future, grace, detach_deadline)?;
    Ok(registration::register(required("parent", parent)?, &arguments, required("time_zone", time_zone)?)?)
}

#[pg_extern(sql = false)]
#[expect(clippy::too_many_arguments, reason = "one per argument of the SQL function")]
fn tally_plan_partition_by_time(
    parent: Option<Oid>,
    partition_width: Option<Interval>,
    retention: Option<Interval>,
    time_zone: Option<String>,
    premake: Option<Interval>,
    lateness: Option<Interval>,
    far_future: Option<Interval>,
    grace: Option<Interval>,
    detach_deadline: Option<Interval>,
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
    let arguments = arguments(partition_width, retention, premake, lateness, far_future, grace, detach_deadline)?;
    let parent = required("parent", parent)?;
    Ok(TableIterator::new(registration::plan(parent, &arguments, required("time_zone", time_zone)?)?))
}

fn arguments(
    width: Option<Interval>,
    retention: Option<Interval>,
    premake: Option<Interval>,
    lateness: Option<Interval>,
    far_future: Option<Interval>,
    grace: Option<Interval>,
    detach_deadline: Option<Interval>,
) -> Result<Arguments> {
    Ok(Arguments {
        width: width.map(from_sql),
        retention: retention.map(from_sql),
        premake: premake.map(from_sql),
        lateness: from_sql(required("lateness", lateness)?),
        far_future: from_sql(required("far_future", far_future)?),
        grace: from_sql(required("grace", grace)?),
        detach_deadline: from_sql(required("detach_deadline", detach_deadline)?),
    })
}

#[pg_extern(sql = false)]
fn tally_ensure_partitions(
    parent: Oid,
    from_time: TimestampWithTimeZone,
    to_time: TimestampWithTimeZone,
) -> std::result::Result<i64, ErrorReport> {
    Ok(super::ensure(parent, Timestamp(from_time.into_inner()), Timestamp(to_time.into_inner()))?)
}

#[pg_extern(sql = false)]
fn tally_set_partition_policy(
    parent: Option<Oid>,
    premake: Option<Interval>,
    lateness: Option<Interval>,
    far_future: Option<Interval>,
    retention: Option<Interval>,
    grace: Option<Interval>,
    detach_deadline: Option<Interval>,
) -> std::result::Result<(), ErrorReport> {
    Ok(super::change(required("parent", parent)?, |request| {
        request.premake = premake.map(from_sql).or(request.premake);
        request.lateness = lateness.map_or(request.lateness, from_sql);
        request.far_future = far_future.map_or(request.far_future, from_sql);
        request.grace = grace.map_or(request.grace, from_sql);
        request.detach_deadline = detach_deadline.map_or(request.detach_deadline, from_sql);
        if let Some(retention) = retention.map(from_sql) {
            request.retention = unless_zero(retention);
        }
    })?)
}

#[pg_extern(sql = false)]
fn tally_set_partition_width(parent: Oid, partition_width: Interval) -> std::result::Result<(), ErrorReport> {
    Ok(super::change(parent, |request| request.width = from_sql(partition_width))?)
}

#[pg_extern(sql = false)]
fn tally_unregister_partitions(parent: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(super::unregister(parent)?)
}

#[pg_extern(sql = false)]
fn tally_undo_retention(parent: Oid, partition: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(super::retention::undo(parent, partition)?)
}

#[pg_extern(sql = false)]
fn tally_adopt() -> std::result::Result<(), ErrorReport> {
    version::require_writable()?;
    if !pg::owns_database() {
        return Err(Error::new("42501", "must be owner of the database")
            .hint("Have a superuser or the owner of the database call tally.adopt().")
            .into());
    }
    adoptions::adopt()?;
    for parent in policies::sets()? {
        jobs::hasten(Kind::Retention, parent)?;
    }
    Ok(())
}

#[pg_extern(sql = false)]
fn tally_pause_partitions(parent: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(super::retention::pause(parent)?)
}

#[pg_extern(sql = false)]
fn tally_resume_partitions(parent: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(super::retention::resume(parent)?)
}

/// The body of an event trigger; what it was called for is seen from the catalogs.
#[pg_extern(sql = false)]
fn tally_forget_dropped_sets() -> std::result::Result<(), ErrorReport> {
    lock_waits::delete_dropped()?;
    for parent in policies::delete_dropped()? {
        partition_upkeep::delete(parent)?;
        jobs::unschedule(Kind::Premake, parent)?;
        jobs::unschedule(Kind::Retention, parent)?;
    }
    Ok(super::conversion::forget_dropped()?)
}

/// The body of an event trigger.
#[pg_extern(sql = false)]
fn tally_note_altered_sets() -> std::result::Result<(), ErrorReport> {
    Ok(super::idle::note_all()?)
}

/// A row of the plans.
pub(super) type Step = (i64, String, String, String, Option<String>, Vec<String>, i64, i64, bool, Option<String>);

#[pg_extern(sql = false)]
fn tally_plan_premake(
    parent: Oid,
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
    Ok(TableIterator::new(plan_premake(parent)?))
}

fn plan_premake(parent: Oid) -> Result<Vec<Step>> {
    let facts = owned(parent)?;
    let plan = Plan::of(&facts)?;
    registration::partitions(&facts, &plan, plan.premake(&facts)?.missing, 0)
}

#[pg_extern(sql = false)]
fn tally_plan_ensure_partitions(
    parent: Oid,
    from_time: TimestampWithTimeZone,
    to_time: TimestampWithTimeZone,
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
    let (from, to) = (Timestamp(from_time.into_inner()), Timestamp(to_time.into_inner()));
    Ok(TableIterator::new(plan_ensure(parent, from, to)?))
}

fn plan_ensure(parent: Oid, from: Timestamp, to: Timestamp) -> Result<Vec<Step>> {
    let facts = owned(parent)?;
    let plan = Plan::of(&facts)?;
    registration::partitions(&facts, &plan, plan.cover(&facts, from, to)?, 0)
}

#[pg_extern(sql = false)]
fn tally_plan_retention(
    parent: Oid,
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
    Ok(TableIterator::new(plan_retention(parent)?))
}

fn plan_retention(parent: Oid) -> Result<Vec<Step>> {
    let lines = super::retention::plan(parent)?.into_iter().enumerate();
    Ok(lines
        .map(|(at, line)| {
            let (mode, tables) = line.lock.map_or((None, vec![]), |(mode, table)| (Some(mode.to_owned()), vec![table]));
            (
                at as i64 + 1,
                line.action.to_owned(),
                line.object,
                line.sql,
                mode,
                tables,
                line.rows,
                line.bytes,
                line.is_top_level,
                line.note,
            )
        })
        .collect())
}

/// The rows of `tally.partition_status`: one set or all, without those that the caller may not see.
#[pg_extern(sql = false)]
fn tally_inspect_partitions(
    only_parent: Option<Oid>,
) -> std::result::Result<
    TableIterator<
        'static,
        (
            name!(parent, Oid),
            name!(verdict, String),
            name!(reason, Option<String>),
            name!(next_sql, Option<String>),
            name!(time_zone, String),
            name!(width, Interval),
            name!(partitions, i64),
            name!(accepts_from, Option<TimestampWithTimeZone>),
            name!(horizon, Option<TimestampWithTimeZone>),
            name!(ahead, Option<Interval>),
            name!(pending_partition, Option<String>),
            name!(pending_since, Option<TimestampWithTimeZone>),
            name!(blockers, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let sets = match only_parent {
        Some(parent) => vec![parent],
        None => policies::sets()?,
    };
    let mut found = Vec::new();
    for parent in sets {
        found.extend(inspect(parent)?);
    }
    Ok(TableIterator::new(found))
}

/// A row of `tally.inspect_partitions`.
type Inspection = (
    Oid,
    String,
    Option<String>,
    Option<String>,
    String,
    Interval,
    i64,
    Option<TimestampWithTimeZone>,
    Option<TimestampWithTimeZone>,
    Option<Interval>,
    Option<String>,
    Option<TimestampWithTimeZone>,
    Option<String>,
);

/// The verdict of `tally.partition_status` on a set, with the code of its reason.
pub(crate) struct Judged {
    pub verdict: String,
    pub code: Option<String>,
}

/// The verdict on a set; `None` if the table is none.
pub(crate) fn verdict(parent: Oid) -> Result<Option<Judged>> {
    let code = |reason: String| reason.split(':').next().map(str::to_owned);
    Ok(inspect(parent)?.map(|row| Judged { verdict: row.1, code: row.2.and_then(code) }))
}

fn inspect(parent: Oid) -> Result<Option<Inspection>> {
    let Some(row) = policies::policy(parent)? else { return Ok(None) };
    if !facts::is_visible(parent)? {
        return Ok(None);
    }
    let facts = facts::read(parent)?;
    let Some(key) = facts::key(&facts) else { return Ok(None) };
    let plan = Plan::new(key, &row)?;
    let (now, pending) = (plan.now(), facts::pending(parent)?);
    let existing = facts::partitions(&facts.bounds, now)?;
    let column = facts.set.key.first().and_then(|column| column.as_ref()).map_or("", |column| &column.name);
    let busy = super::retention::busy(&facts)?;
    let clock = pg::process::clock();
    let leaving = busy.as_ref().map(|busy| status::Leaving {
        partition: &busy.partition,
        state: busy.record.state,
        place: busy.place,
        note: busy.record.note.as_deref(),
        since: clock.since(busy.record.changed_at),
        rollups: &busy.rollups,
        counted_by: busy.counted_by.as_deref(),
        range: busy.record.range,
        foreign_key: busy.foreign_key.as_deref(),
    });
    let used_up = super::locks::used_up(&facts::connected_tables(parent)?)?;
    // Rows of a partition that is fenced are refused.
    let gone = |range: Range| busy.as_ref().is_some_and(|busy| busy.is_fenced() && busy.record.range == range);
    let open: Vec<Partition> = existing.iter().copied().filter(|partition| !gone(partition.range)).collect();
    let drain = default::way_out(&facts, &row.time_zone)?;
    let status = status::judge(&status::Facts {
        set: &facts.set,
        key_column: column,
        policy: &plan.policy,
        limits: limits(),
        existing: &open,
        pending: pending.as_deref(),
        drain: drain.as_deref(),
        used_up: used_up.as_ref().map(|(_, name)| name.as_str()),
        is_behind: used_up.is_some() && !plan.premake(&facts)?.missing.is_empty(),
        leaving,
        is_copy: plan.policy.retention.is_some() && adoptions::origin()? == Origin::Copy,
        now,
        zone: &plan.zone,
    });
    let mut blockers = busy.as_ref().and_then(|busy| busy.blockers.clone());
    if let Some((table, _)) = used_up.filter(|_| is_put_off(status.reason.as_deref()) && blockers.is_none()) {
        blockers =
            Some(super::locks::holders(&[(table, Mode::ShareRowExclusive)], false)?).filter(|who| !who.is_empty());
    }
    let ahead = status.horizon.filter(|horizon| horizon.is_finite()).map(|horizon| horizon.since(clock));
    let time = |at: Option<Timestamp>| at.and_then(|at| TimestampWithTimeZone::try_from(at.0).ok());
    Ok(Some((
        parent,
        status.verdict.as_str().to_owned(),
        status.reason,
        status.next_sql,
        row.time_zone,
        to_sql(row.request.width),
        existing.len() as i64,
        time(status.accepts_from),
        time(status.horizon),
        ahead.map(|ahead| Interval::from_micros(ahead).justify_hours()),
        pending.clone(),
        time(busy.as_ref().filter(|_| pending.is_some()).map(|busy| busy.record.changed_at)),
        blockers,
    )))
}
