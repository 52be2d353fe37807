//! `tally.idle_sets`: until when there is nothing to do for a partition set.

use super::jobs::{instant, moment};
use crate::error::{Result, spi};
use crate::jobs::Kind;
use crate::pg::{Kept, Oid, as_extension_owner};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;
use tally_core::partition::Limits;
use tally_core::partition::idle::{LONGEST, Look};

/// A look, and what has happened since.
pub(crate) struct Row {
    pub look: Look,
    /// A table of the set has been altered, or its policy.
    pub is_altered: bool,
    /// A watched partition has got rows.
    pub is_used: bool,
    watched: Vec<Oid>,
}

impl Row {
    /// Does it already say what this look has found?
    pub(crate) fn says(&self, look: &Look, watched: &[Oid]) -> bool {
        // One from the future would never be relied on.
        let is_past = self.look.looked_at <= look.looked_at;
        let is_same = self.look.until == look.until && self.look.limits == look.limits && self.watched == watched;
        is_past && is_same && !self.is_altered
    }
}

/// The last look at a set. That a partition has rows is seen from statistics, as `partition::facts` does, without a lock.
pub(crate) fn get(parent: Oid, kind: Kind) -> Result<Option<Row>> {
    as_extension_owner(|| {
        Spi::connect(|client| {
            let rows = client.select(
                Kept(
                    "SELECT q.looked_at, q.idle_until, q.premake_outage, q.premake_max, \
                            EXISTS (SELECT FROM tally.altered_sets a WHERE a.parent OPERATOR(pg_catalog.=) $1 \
                                      AND NOT pg_catalog.pg_visible_in_snapshot(a.altered_by, q.seen)), \
                            EXISTS (SELECT FROM pg_catalog.unnest(q.watched) AS w (partition) \
                                    WHERE pg_catalog.pg_stat_get_live_tuples(w.partition) OPERATOR(pg_catalog.>) 0), \
                            q.watched \
                     FROM tally.idle_sets q WHERE q.parent OPERATOR(pg_catalog.=) $1 AND q.kind OPERATOR(pg_catalog.=) $2",
                ),
                None,
                &[parent.into(), kind.name().into()],
            )?;
            if rows.is_empty() {
                return Ok(None);
            }
            let row = rows.first();
            let time = |column| row.get::<TimestampWithTimeZone>(column).map(|at| at.map_or(Timestamp(0), instant));
            let number = |column| row.get::<i64>(column).map(Option::unwrap_or_default);
            let flag = |column| row.get::<bool>(column).map(|flag| flag.unwrap_or(true));
            let most = usize::try_from(number(4)?).unwrap_or_default();
            let limits = Limits { outage: number(3)?, most };
            let look = Look { looked_at: time(1)?, until: time(2)?, limits };
            let watched = row.get::<Vec<Oid>>(7)?.unwrap_or_default();
            Ok(Some(Row { look, is_altered: flag(5)?, is_used: flag(6)?, watched }))
        })
    })
    .map_err(spi)
}

/// Who has altered something and is seen by a look that begins now; in PostgreSQL's notation.
pub(crate) fn snapshot() -> Result<String> {
    super::look_up_again::<String>("SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text", &[])
        .map(Option::unwrap_or_default)
}

/// Stores a look, and forgets who had altered the set before, if that is of no interest to the other kind either.
pub(crate) fn put(parent: Oid, kind: Kind, look: &Look, seen: &str, watched: Vec<Oid>) -> Result<()> {
    as_extension_owner(|| {
        Spi::run_with_args(
            "INSERT INTO tally.idle_sets (parent, kind, looked_at, idle_until, seen, watched, premake_outage, premake_max) \
             VALUES ($1, $2, $3, $4, $5::pg_catalog.pg_snapshot, $6, $7, $8) \
             ON CONFLICT (parent, kind) DO UPDATE \
             SET looked_at = excluded.looked_at, idle_until = excluded.idle_until, seen = excluded.seen, watched = excluded.watched, \
                 premake_outage = excluded.premake_outage, premake_max = excluded.premake_max",
            &[
                parent.into(),
                kind.name().into(),
                moment(look.looked_at),
                moment(look.until),
                seen.into(),
                watched.into(),
                look.limits.outage.into(),
                i64::try_from(look.limits.most).unwrap_or(i64::MAX).into(),
            ],
        )?;
        // The other kind does not rely on an older look any more. It is forgotten with what it did not see.
        let latest = || moment(look.looked_at.minus(LONGEST));
        Spi::run_with_args(
            "DELETE FROM tally.idle_sets d WHERE d.parent OPERATOR(pg_catalog.=) $1 AND d.kind IN ( \
               SELECT q.kind FROM tally.idle_sets q WHERE q.parent OPERATOR(pg_catalog.=) $1 AND q.looked_at OPERATOR(pg_catalog.<=) $2 \
                 AND EXISTS (SELECT FROM tally.altered_sets a WHERE a.parent OPERATOR(pg_catalog.=) $1 \
                               AND NOT pg_catalog.pg_visible_in_snapshot(a.altered_by, q.seen)) \
               FOR UPDATE SKIP LOCKED)",
            &[parent.into(), latest()],
        )?;
        // What the other kind is about to forget as well is left to it.
        Spi::run_with_args(
            "DELETE FROM tally.altered_sets d WHERE d.parent OPERATOR(pg_catalog.=) $1 AND d.altered_by IN ( \
               SELECT a.altered_by FROM tally.altered_sets a WHERE a.parent OPERATOR(pg_catalog.=) $1 \
                 AND pg_catalog.pg_visible_in_snapshot(a.altered_by, $2::pg_catalog.pg_snapshot) \
                 AND NOT EXISTS (SELECT FROM tally.idle_sets q WHERE q.parent OPERATOR(pg_catalog.=) $1 \
                                   AND q.looked_at OPERATOR(pg_catalog.>) $3 AND NOT pg_catalog.pg_visible_in_snapshot(a.altered_by, q.seen)) \
               FOR UPDATE SKIP LOCKED)",
            &[parent.into(), seen.into(), latest()],
        )
    })
    .map_err(spi)
}

/// Forgets all looks at a set that is none any more.
pub(crate) fn delete(parent: Oid) -> Result<()> {
    as_extension_owner(|| {
        Spi::run_with_args("DELETE FROM tally.idle_sets WHERE parent OPERATOR(pg_catalog.=) $1", &[parent.into()])?;
        Spi::run_with_args("DELETE FROM tally.altered_sets WHERE parent OPERATOR(pg_catalog.=) $1", &[parent.into()])
    })
    .map_err(spi)
}
