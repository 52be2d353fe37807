//! `tally.sources`: the snapshot up to which the rows of each source are counted.

use crate::error::{Error, Result, spi};
use crate::pg::{self, Kept, Oid};
use crate::refresh::Report;
use pgrx::Spi;
use std::cell::Cell;
use std::time::Duration;
use tally_core::bucket::Timestamp;
use tally_core::snapshot::Counted;

/// The OID of the table itself, which names the lock of a refresh.
pub(crate) fn table() -> Result<Oid> {
    let query = "SELECT 'tally.sources'::pg_catalog.regclass::pg_catalog.oid";
    super::look_up_again::<Oid>(query, &[])?.ok_or_else(|| Error::new("42P01", "table tally.sources does not exist"))
}

/// What the last tick of a source has left behind.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub counted: Counted,
    /// Partitions below this time are sealed.
    pub sealed_before: Option<Timestamp>,
    /// Partitions below this time are sealed, and no row in them is new.
    pub settled_before: Option<Timestamp>,
}

/// The state of a source in the active snapshot, or None if it feeds no rollup.
pub(crate) fn state(source: Oid) -> Result<Option<State>> {
    Spi::connect(|client| {
        let rows = client.select(
            Kept(
                "SELECT s.next_tag, s.open_tags, s.sealed_before, s.settled_before FROM tally.sources AS s \
                 WHERE s.source OPERATOR(pg_catalog.=) $1",
            ),
            Some(1),
            &[source.into()],
        )?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        let counted = Counted { next: row.get(1)?.unwrap_or(0), open: row.get(2)?.unwrap_or_default() };
        let time =
            |column| row.get::<pgrx::datum::Timestamp>(column).map(|time| time.map(|time| Timestamp(time.into())));
        Ok(Some(State { counted, sealed_before: time(3)?, settled_before: time(4)? }))
    })
    .map_err(spi)
}

/// What the planner of a reader wants to know of the source of a rollup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfStored {
    pub source: Oid,
    pub log: Oid,
    pub settled_before: Option<Timestamp>,
    /// A detached partition has come back.
    pub has_release: bool,
}

/// Of the rollup with this table of stored groups. None in a transaction that has refreshed: a plan may be kept longer than that.
pub(crate) fn of_stored(stored: Oid) -> Result<Option<OfStored>> {
    if has_advanced() {
        return Ok(None);
    }
    Spi::connect(|client| {
        let rows = client.select(
            Kept(
                "SELECT s.source::pg_catalog.oid, s.changes::pg_catalog.oid, s.settled_before, \
                        EXISTS (SELECT FROM tally.departures AS d \
                        WHERE d.source OPERATOR(pg_catalog.=) s.source AND d.released_by IS NOT NULL) \
                   FROM tally.sources AS s JOIN tally.rollups AS u ON u.source OPERATOR(pg_catalog.=) s.source \
                  WHERE u.stored OPERATOR(pg_catalog.=) $1",
            ),
            Some(1),
            &[stored.into()],
        )?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        let settled_before = row.get::<pgrx::datum::Timestamp>(3)?.map(|before| Timestamp(before.into()));
        let (Some(source), Some(log)) = (row.get(1)?, row.get(2)?) else { return Ok(None) };
        Ok(Some(OfStored { source, log, settled_before, has_release: row.get(4)?.unwrap_or(true) }))
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
    super::look_up_again(&query, &[table.into()])
}

/// Is the relation a source?
pub(crate) fn is_source(relation: Oid) -> Result<bool> {
    state(relation).map(|state| state.is_some())
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

thread_local! {
    /// The transaction of this session that has stored a snapshot last; 0 if none has.
    static ADVANCED_BY: Cell<u64> = const { Cell::new(0) };
}

/// Has this transaction refreshed something? What it sees then is true for others only if it commits.
fn has_advanced() -> bool {
    pg::own_xid().is_some_and(|xid| xid == ADVANCED_BY.get())
}

/// Stores the snapshot of a tick, in the transaction that merged its delta.
pub(crate) fn advance(source: Oid, state: &State, report: &Report, duration: Duration) -> Result<()> {
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "UPDATE tally.sources SET next_tag = $2, open_tags = $3, refreshed_at = pg_catalog.clock_timestamp(), \
             refresh_duration = pg_catalog.make_interval(secs => $4), refreshed_rows = $5, refreshed_groups = $6, \
             settled_before = $7 WHERE source OPERATOR(pg_catalog.=) $1",
            &[
                source.into(),
                state.counted.next.into(),
                state.counted.open.clone().into(),
                duration.as_secs_f64().into(),
                report.rows.into(),
                report.groups.into(),
                state.settled_before.map(to_sql).into(),
            ],
        )
    })
    .map_err(spi)?;
    ADVANCED_BY.set(pg::own_xid().unwrap_or(0));
    Ok(())
}

fn to_sql(time: Timestamp) -> pgrx::datum::Timestamp {
    // Bounds of partitions come from PostgreSQL.
    pgrx::datum::Timestamp::saturating_from_raw(time.0)
}

/// Notes that partitions below a time are sealed, by this transaction.
pub(crate) fn seal(source: Oid, before: Timestamp) -> Result<()> {
    update(source, "sealed_before = GREATEST(sealed_before, $2)", before)
}

/// Notes that partitions from a time on have rows again that are new by their tags.
pub(crate) fn unsettle(source: Oid, from: Timestamp) -> Result<()> {
    // Not LEAST, which ignores that nothing is settled.
    update(
        source,
        "settled_before = CASE WHEN settled_before OPERATOR(pg_catalog.>) $2 THEN $2 ELSE settled_before END",
        from,
    )
}

fn update(source: Oid, assignment: &str, time: Timestamp) -> Result<()> {
    let statement = format!("UPDATE tally.sources SET {assignment} WHERE source OPERATOR(pg_catalog.=) $1");
    pg::as_extension_owner(|| Spi::run_with_args(&statement, &[source.into(), to_sql(time).into()])).map_err(spi)
}

/// The partitions that retention is about to detach: their rows are retained already.
pub(crate) fn leaving(source: Oid) -> Result<Vec<Oid>> {
    let query = "SELECT s.leaving::pg_catalog.oid[] FROM tally.sources AS s WHERE s.source OPERATOR(pg_catalog.=) $1";
    super::look_up_again::<Vec<Oid>>(query, &[source.into()]).map(Option::unwrap_or_default)
}

/// Notes that the rows of a partition are retained while it is still there.
pub(crate) fn note_leaving(source: Oid, partition: Oid) -> Result<()> {
    set_leaving(source, partition, "pg_catalog.array_append(leaving, $2::pg_catalog.oid::pg_catalog.regclass)")
}

/// Notes that a partition has left for good, or stays.
pub(crate) fn forget_leaving(source: Oid, partition: Oid) -> Result<()> {
    set_leaving(source, partition, "pg_catalog.array_remove(leaving, $2::pg_catalog.oid::pg_catalog.regclass)")
}

fn set_leaving(source: Oid, partition: Oid, leaving: &str) -> Result<()> {
    let statement = format!("UPDATE tally.sources SET leaving = {leaving} WHERE source OPERATOR(pg_catalog.=) $1");
    pg::as_extension_owner(|| Spi::run_with_args(&statement, &[source.into(), partition.into()])).map_err(spi)
}

/// Since when it is watched which partitions get rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    pub since: Timestamp,
    /// Rows since then have this tag or a later one, but for those of transactions that were open.
    pub tag: i64,
}

pub(crate) fn watch(source: Oid) -> Result<Option<Watch>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT s.watched_since, s.watched_tag FROM tally.sources AS s \
             WHERE s.source OPERATOR(pg_catalog.=) $1 AND s.watched_since IS NOT NULL",
            Some(1),
            &[source.into()],
        )?;
        if rows.is_empty() {
            return Ok(None);
        }
        let (since, tag) = rows.first().get_two::<pgrx::datum::TimestampWithTimeZone, i64>()?;
        Ok(since.zip(tag).map(|(since, tag)| Watch { since: Timestamp(since.into_inner()), tag }))
    })
    .map_err(spi)
}

pub(crate) fn set_watch(source: Oid, tag: i64, since: Timestamp) -> Result<()> {
    let since = pgrx::datum::TimestampWithTimeZone::try_from(since.0).ok();
    pg::as_extension_owner(|| {
        Spi::run_with_args(
            "UPDATE tally.sources SET watched_since = $2, watched_tag = $3 WHERE source OPERATOR(pg_catalog.=) $1",
            &[source.into(), since.into(), tag.into()],
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

/// What was counted of one table counts for another one from now on, which is about to have its rows.
pub(crate) fn move_to(source: Oid, target: Oid) -> Result<()> {
    pg::as_extension_owner(|| {
        for table in ["sources", "rollups", "departures"] {
            Spi::run_with_args(
                &format!(
                    "UPDATE tally.{table} SET source = $2::pg_catalog.oid::pg_catalog.regclass \
                     WHERE source OPERATOR(pg_catalog.=) $1"
                ),
                &[source.into(), target.into()],
            )?;
        }
        Spi::run_with_args(
            "UPDATE tally.jobs SET object = $2::pg_catalog.oid::pg_catalog.regclass \
             WHERE object OPERATOR(pg_catalog.=) $1 AND kind OPERATOR(pg_catalog.=) 'refresh'",
            &[source.into(), target.into()],
        )
    })
    .map_err(spi)
}
