//! `tally.partition_policies`: one row per partition set.

use crate::error::{Result, spi};
use crate::pg::{Oid, as_extension_owner};
use pgrx::prelude::*;
use tally_core::partition::{Interval, check::Request};

/// A policy as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub request: Request,
    pub time_zone: String,
}

/// The partition sets of the database whose table is there.
pub(crate) fn sets() -> Result<Vec<Oid>> {
    super::look_up::<Vec<Oid>>(
        "SELECT pg_catalog.array_agg(c.oid ORDER BY c.oid) FROM tally.partition_policies p \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) p.parent",
        &[],
    )
    .map(Option::unwrap_or_default)
}

/// What the owner of a set asked for, if it is one.
pub(crate) fn policy(parent: Oid) -> Result<Option<Row>> {
    Spi::connect(|client| {
        let mut rows = client.select(
            "SELECT p.partition_width, p.premake, p.lateness, p.far_future, p.time_zone, p.retention, p.grace, p.detach_deadline \
             FROM tally.partition_policies p WHERE p.parent OPERATOR(pg_catalog.=) $1",
            None,
            &[parent.into()],
        )?;
        let Some(row) = rows.next() else { return Ok(None) };
        let span = |column| row.get::<pgrx::datum::Interval>(column).map(|value| value.map(from_sql));
        Ok(Some(Row {
            request: Request {
                width: span(1)?.unwrap_or_default(),
                retention: span(6)?,
                premake: span(2)?,
                lateness: span(3)?.unwrap_or_default(),
                far_future: span(4)?.unwrap_or_default(),
                grace: span(7)?.unwrap_or_default(),
                detach_deadline: span(8)?.unwrap_or_default(),
            },
            time_zone: row.get(5)?.unwrap_or_default(),
        }))
    })
    .map_err(spi)
}

pub(crate) fn insert(parent: Oid, row: &Row) -> Result<()> {
    write(
        "INSERT INTO tally.partition_policies (parent, partition_width, premake, lateness, far_future, time_zone, retention, grace, \
         detach_deadline) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        parent,
        row,
    )
}

pub(crate) fn update(parent: Oid, row: &Row) -> Result<()> {
    write(
        "UPDATE tally.partition_policies SET partition_width = $2, premake = $3, lateness = $4, far_future = $5, time_zone = $6, \
         retention = $7, grace = $8, detach_deadline = $9 WHERE parent OPERATOR(pg_catalog.=) $1",
        parent,
        row,
    )
}

fn write(statement: &str, parent: Oid, row: &Row) -> Result<()> {
    let Request { width, retention, premake, lateness, far_future, grace, detach_deadline } = row.request;
    as_extension_owner(|| {
        Spi::run_with_args(
            statement,
            &[
                parent.into(),
                to_sql(width).into(),
                premake.map(to_sql).into(),
                to_sql(lateness).into(),
                to_sql(far_future).into(),
                row.time_zone.as_str().into(),
                retention.map(to_sql).into(),
                to_sql(grace).into(),
                to_sql(detach_deadline).into(),
            ],
        )
    })
    .map_err(spi)
}

/// Forgets a set and the looks at it. False if there was none.
pub(crate) fn delete(parent: Oid) -> Result<bool> {
    super::idle_sets::delete(parent)?;
    as_extension_owner(|| {
        Spi::get_one_with_args::<bool>(
            "WITH gone AS (DELETE FROM tally.partition_policies WHERE parent OPERATOR(pg_catalog.=) $1 RETURNING 1) \
             SELECT EXISTS (SELECT FROM gone)",
            &[parent.into()],
        )
    })
    .map(|deleted| deleted.unwrap_or(false))
    .map_err(spi)
}

/// Forgets the sets whose table has been dropped, and says which.
pub(crate) fn delete_dropped() -> Result<Vec<Oid>> {
    let dropped = as_extension_owner(|| {
        Spi::get_one::<Vec<Oid>>(
            "WITH gone AS (DELETE FROM tally.partition_policies WHERE NOT EXISTS \
               (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) parent) RETURNING parent::pg_catalog.oid) \
             SELECT pg_catalog.array_agg(gone.parent) FROM gone",
        )
    })
    .map_err(spi)?
    .unwrap_or_default();
    dropped.iter().try_for_each(|parent| super::idle_sets::delete(*parent))?;
    Ok(dropped)
}

/// PostgreSQL's interval as core knows it.
pub(crate) fn from_sql(interval: pgrx::datum::Interval) -> Interval {
    Interval { months: interval.months(), days: interval.days(), microseconds: interval.micros() }
}

/// Whole numbers in, so nothing can be out of range; zero stands for what cannot be.
pub(crate) fn to_sql(interval: Interval) -> pgrx::datum::Interval {
    pgrx::datum::Interval::new(interval.months, interval.days, interval.microseconds)
        .unwrap_or_else(|_| pgrx::datum::Interval::from_micros(0))
}
