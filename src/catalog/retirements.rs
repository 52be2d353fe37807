//! `tally.retirements`: partitions that are on their way out.

use crate::error::{Result, spi};
use crate::pg::{Kept, Oid, as_extension_owner};
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;
use tally_core::ident::QualifiedName;
use tally_core::partition::Range;
use tally_core::partition::retention::State;
use tally_core::snapshot::Counted;

/// A record, and where its partition is by now.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub id: i64,
    pub partition: Oid,
    /// The name that it had as a partition.
    pub name: QualifiedName,
    /// In values of the key.
    pub range: Range,
    pub state: State,
    pub changed_at: Timestamp,
    pub departure: Option<i64>,
    /// Those that keep its groups.
    pub rollups: Vec<Oid>,
    /// How many rows it had when they were counted, and what was counted then.
    pub counted: Option<(i64, Counted)>,
    pub drop_after: Option<Timestamp>,
    pub note: Option<String>,
}

/// The record of a partition, if retention has one.
pub(crate) fn find(parent: Oid, partition: Oid) -> Result<Option<Row>> {
    Ok(list(parent)?.into_iter().find(|record| record.partition == partition))
}

/// The records of a set, the oldest first.
pub(crate) fn list(parent: Oid) -> Result<Vec<Row>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT r.retirement, r.partition::pg_catalog.oid, r.schema_name::text, r.table_name::text, r.lower_bound, r.upper_bound, \
                    r.state, r.changed_at, r.departure, r.rollups::pg_catalog.oid[], r.counted_rows, r.next_tag, r.open_tags, \
                    r.drop_after, r.note \
             FROM tally.retirements r WHERE r.parent OPERATOR(pg_catalog.=) $1 ORDER BY r.retirement",
            None,
            &[parent.into()],
        )?;
        rows.map(|row| {
            let text = |column| row.get::<String>(column).map(Option::unwrap_or_default);
            let bound =
                |column| row.get::<pgrx::datum::Timestamp>(column).map(|at| at.map_or(Timestamp(0), |at| Timestamp(at.into())));
            let moment = |column| row.get::<TimestampWithTimeZone>(column).map(|at| at.map(|at| Timestamp(at.into_inner())));
            let counted = match (row.get::<i64>(11)?, row.get::<i64>(12)?) {
                (Some(rows), next) => Some((
                    rows,
                    Counted { next: next.unwrap_or(0), open: row.get::<Vec<i64>>(13)?.unwrap_or_default() },
                )),
                (None, _) => None,
            };
            Ok(Row {
                id: row.get(1)?.unwrap_or_default(),
                partition: row.get(2)?.unwrap_or(Oid::INVALID),
                name: QualifiedName::new(text(3)?, text(4)?),
                range: Range { lower: bound(5)?, upper: bound(6)? },
                state: State::named(&text(7)?).unwrap_or(State::Mismatch),
                changed_at: moment(8)?.unwrap_or(Timestamp(0)),
                departure: row.get(9)?,
                rollups: row.get(10)?.unwrap_or_default(),
                counted,
                drop_after: moment(14)?,
                note: row.get(15)?,
            })
        })
        .collect::<pgrx::spi::Result<_>>()
    })
    .map_err(spi)
}

/// What is to be done with the partitions of a set that are on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// One of them is on its way to the trash or back, or has stopped.
    UnderWay,
    /// Nothing before this time, when one in the trash is dropped; nothing at all if there is none.
    Waiting(Option<Timestamp>),
}

pub(crate) fn outlook(parent: Oid) -> Result<Outlook> {
    Spi::connect(|client| {
        let query = "SELECT pg_catalog.bool_or(r.state OPERATOR(pg_catalog.<>) ALL ('{trash,kept}'::pg_catalog.text[])), \
                            pg_catalog.min(r.drop_after) FILTER (WHERE r.state OPERATOR(pg_catalog.=) 'trash') \
                     FROM tally.retirements r WHERE r.parent OPERATOR(pg_catalog.=) $1";
        let (is_under_way, next) = client
            .select(Kept(query), None, &[parent.into()])?
            .first()
            .get_two::<bool, TimestampWithTimeZone>()?;
        let next = next.map(|at| Timestamp(at.into_inner()));
        Ok(if is_under_way == Some(true) { Outlook::UnderWay } else { Outlook::Waiting(next) })
    })
    .map_err(spi)
}

/// Records that a partition is fenced.
pub(crate) fn insert(parent: Oid, partition: Oid, name: &QualifiedName, range: Range) -> Result<()> {
    let bound = |at: Timestamp| pgrx::datum::Timestamp::saturating_from_raw(at.0);
    write(
        "INSERT INTO tally.retirements (parent, partition, schema_name, table_name, lower_bound, upper_bound, state, fenced_at, changed_at, changed_by) \
         VALUES ($1, $2, $3, $4, $5, $6, 'fenced', pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp(), pg_catalog.pg_current_xact_id())",
        &[
            parent.into(),
            partition.into(),
            name.schema.as_str().into(),
            name.name.as_str().into(),
            bound(range.lower).into(),
            bound(range.upper).into(),
        ],
    )
}

pub(crate) fn set_state(id: i64, state: State) -> Result<()> {
    write(
        "UPDATE tally.retirements SET state = $2, changed_at = pg_catalog.clock_timestamp(), changed_by = pg_catalog.pg_current_xact_id(), \
         note = NULL WHERE retirement OPERATOR(pg_catalog.=) $1",
        &[id.into(), state.name().into()],
    )
}

/// Records what was counted of it, and by whom.
pub(crate) fn set_counted(id: i64, rows: i64, counted: Option<(i64, &[Oid], &Counted)>) -> Result<()> {
    let (departure, rollups, counted) = counted.map_or((None, None, None), |(departure, rollups, counted)| {
        (Some(departure), Some(rollups.to_vec()), Some(counted.clone()))
    });
    write(
        "UPDATE tally.retirements SET counted_rows = $2, departure = $3, rollups = $4::pg_catalog.oid[]::pg_catalog.regclass[], \
         next_tag = $5, open_tags = $6 WHERE retirement OPERATOR(pg_catalog.=) $1",
        &[
            id.into(),
            rows.into(),
            departure.into(),
            rollups.into(),
            counted.as_ref().map(|counted| counted.next).into(),
            counted.map(|counted| counted.open).into(),
        ],
    )?;
    set_state(id, State::Counted)
}

/// Notes that a rollup which is being made keeps the groups of this departure as well.
pub(crate) fn add_rollup(departure: i64, rollup: Oid) -> Result<()> {
    write(
        "UPDATE tally.retirements SET rollups = pg_catalog.array_append(rollups, $2::pg_catalog.oid::pg_catalog.regclass) \
         WHERE departure OPERATOR(pg_catalog.=) $1",
        &[departure.into(), rollup.into()],
    )
}

pub(crate) fn set_drop_after(id: i64, at: Timestamp) -> Result<()> {
    write(
        "UPDATE tally.retirements SET drop_after = $2 WHERE retirement OPERATOR(pg_catalog.=) $1",
        &[id.into(), TimestampWithTimeZone::try_from(at.0).ok().into()],
    )
}

/// Notes what is in the way, unless that is known.
pub(crate) fn set_note(row: &Row, note: &str) -> Result<()> {
    if row.note.as_deref() == Some(note) {
        return Ok(());
    }
    write(
        "UPDATE tally.retirements SET note = $2 WHERE retirement OPERATOR(pg_catalog.=) $1",
        &[row.id.into(), note.into()],
    )
}

/// Nothing is in the way any more.
pub(crate) fn clear_note(id: i64) -> Result<()> {
    write("UPDATE tally.retirements SET note = NULL WHERE retirement OPERATOR(pg_catalog.=) $1", &[id.into()])
}

pub(crate) fn delete(id: i64) -> Result<()> {
    write("DELETE FROM tally.retirements WHERE retirement OPERATOR(pg_catalog.=) $1", &[id.into()])
}

/// Lets retention go on with partitions that were brought back, or that did not equal a rollup.
pub(crate) fn resume(parent: Oid) -> Result<()> {
    write(
        "DELETE FROM tally.retirements WHERE parent OPERATOR(pg_catalog.=) $1 AND state OPERATOR(pg_catalog.=) 'kept'",
        &[parent.into()],
    )?;
    write(
        "UPDATE tally.retirements SET state = CASE WHEN drop_after IS NULL THEN 'counted' ELSE 'trash' END, note = NULL WHERE parent OPERATOR(pg_catalog.=) $1 \
         AND state OPERATOR(pg_catalog.=) 'mismatch'",
        &[parent.into()],
    )
}

fn write(statement: &str, arguments: &[DatumWithOid]) -> Result<()> {
    as_extension_owner(|| Spi::run_with_args(statement, arguments)).map_err(spi)
}
