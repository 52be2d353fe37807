//! The end of a partition: its table in the trash loses its foreign keys, one by one, and is dropped.

use super::{Progress, refused, run_as};
use crate::catalog::retirements::{self, Row};
use crate::catalog::{self, sources};
use crate::error::Result;
use crate::partition::facts::{self, Facts};
use crate::partition::locks::{Attempt, Patience, Work};
use crate::pg::relation::{self, Mode};
use crate::pg::{self, Oid, Snapshot};
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::ident::quote;
use tally_core::partition::retention::{self, State};

/// Drops a foreign key of a table in the trash, which locks the other table against everybody for a moment: one at a time.
fn unlink(facts: &Facts, record: &Row, key: &ForeignKey) -> Result<Progress> {
    let name = catalog::name_of(record.partition)?;
    let mut wanted = vec![(record.partition, Mode::AccessExclusive), (key.target, Mode::AccessExclusive)];
    wanted.sort_by_key(|(table, _)| table.to_u32());
    wanted.dedup();
    let drop = format!("ALTER TABLE {name} DROP CONSTRAINT {}", quote(&key.name));
    let attempt = Work { wanted: &wanted, patience: Patience::Job, waits: false }
        .run(|| Ok(()), || run_as(facts.owner, &drop))?;
    if let Attempt::Done(()) = attempt
        && record.note.is_some()
    {
        retirements::clear_note(record.id)?;
    }
    refused(record, attempt)
}

/// A foreign key of a table.
pub(super) struct ForeignKey {
    pub name: String,
    pub target: Oid,
}

pub(super) fn foreign_keys(table: Oid) -> Result<Vec<ForeignKey>> {
    facts::rows(
        "SELECT k.conname::text, k.confrelid FROM pg_catalog.pg_constraint k WHERE k.conrelid OPERATOR(pg_catalog.=) $1 \
         AND k.contype OPERATOR(pg_catalog.=) 'f' ORDER BY k.conname",
        &[table.into()],
        |row| Ok(ForeignKey { name: facts::text(row, 1)?, target: row.get::<Oid>(2)?.unwrap_or(Oid::INVALID) }),
    )
}

/// Drops the table, if it is proven once more that all of its rows are counted.
pub(super) fn drop_table(facts: &Facts, record: &Row) -> Result<Progress> {
    let name = catalog::name_of(record.partition)?;
    if let Some(key) = foreign_keys(record.partition)?.first() {
        return unlink(facts, record, key);
    }
    // Before the table is locked: a refresh may take long.
    if sources::is_source(facts.oid)? && !pg::lock_refresh(sources::table()?, facts.oid, false) {
        return Progress::wait(record, "the rollups of the table are being refreshed");
    }
    if !pg::try_access_exclusive(&[record.partition], 20, Duration::from_millis(25)) {
        return Progress::wait(record, "somebody uses the table");
    }
    if !foreign_keys(record.partition)?.is_empty() {
        // Somebody has made one meanwhile.
        return Ok(Progress::done());
    }
    relation::begin_writing();
    let now = Snapshot::latest();
    if let Some((rows, counted)) = &record.counted {
        let uncounted = match record.departure {
            Some(_) => format!(", pg_catalog.count(*) FILTER (WHERE {})", counted.is_new("r.tally_tag")),
            None => ", 0::bigint".into(),
        };
        let statement = format!("SELECT pg_catalog.count(*){uncounted} FROM ONLY {name} AS r");
        let found = pg::as_user(facts.owner, || now.execute::<2>(&statement))?.unwrap_or([-1, 0]);
        if !retention::is_proven(*rows, found[0], found[1]) {
            retirements::set_state(record.id, State::Mismatch)?;
            let note = format!(
                "P10: the table has {} rows, {} of them not counted, and had {rows} when it was counted",
                found[0], found[1]
            );
            warning!("tally retention keeps {name}: {note}");
            retirements::set_note(record, &note)?;
            return Ok(Progress::default());
        }
    }
    retirements::delete(record.id)?;
    if sources::is_source(facts.oid)? {
        sources::forget_leaving(facts.oid, record.partition)?;
    }
    run_as(facts.owner, &format!("DROP TABLE {name}"))?;
    let rows = record.counted.as_ref().map_or(0, |(rows, _)| *rows);
    log!("tally retention dropped partition {} with {rows} rows", record.name);
    Ok(Progress::done())
}
