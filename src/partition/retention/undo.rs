//! The way back: a partition that retention has begun to remove, or has moved to the trash, becomes what it was.

use super::{free_names, is_leaving, knows_all, lock_out, part, place, run_as, take_back, unfence};
use crate::catalog::retirements::{self, Row};
use crate::catalog::{self, altered_sets, sources};
use crate::error::{Error, Result};
use crate::jobs::{self, Kind};
use crate::partition::facts::{self, Facts};
use crate::partition::locks::{self, Attempt, Patience, Work};
use crate::partition::{Plan, every, owned, with_fixed_settings};
use crate::pg::relation::{self, Mode};
use crate::pg::types::is_name_taken;
use crate::pg::{self, Oid};
use crate::{refresh, seal};
use tally_core::bucket::Timestamp;
use tally_core::ident::{QualifiedName, literal, quote};
use tally_core::partition::retention::{State, WayBack, way_back};
use tally_core::partition::{Key, Range, sql as partition_sql};

/// Brings a partition back.
pub(in crate::partition) fn undo(parent: Oid, partition: Oid) -> Result<()> {
    let facts = owned(parent)?;
    let plan = Plan::of(&facts)?;
    refresh::require_read_committed()?;
    lock_out(&facts)?;
    let Some(record) = &retirements::find(parent, partition)? else {
        return Err(Error::new(
            "42704",
            format!("retention is not removing {} from {}", catalog::name_of(partition)?, facts.name),
        )
        .hint("SELECT * FROM tally.retirements; lists what it is removing."));
    };
    let way = way_back(record.state, place(parent, record)?);
    if way == WayBack::Done {
        return Ok(());
    }
    with_fixed_settings(None, || match way {
        WayBack::Done => Ok(()),
        WayBack::Gone => Err(Error::new("42P01", format!("{} does not exist any more", record.name))),
        WayBack::Wait => Err(Error::new("55000", format!("{} is being detached just now", record.name))
            .hint("Wait until tally.retirements shows it in the trash, then call this function again.")),
        WayBack::Stay => stay(&facts, record),
        WayBack::Attach => attach_again(&facts, &plan, record),
    })?;
    altered_sets::insert(&[parent])?;
    jobs::schedule(Kind::Retention, parent, every(plan.policy.width))?;
    jobs::hasten(Kind::Retention, parent)
}

/// A partition that has not left. Whoever has a snapshot in which its groups are kept apart would not see his own changes of its rows: it
/// takes none as long as there is such a snapshot, nor before it can be locked without standing in a queue.
fn stay(facts: &Facts, record: &Row) -> Result<()> {
    if record.departure.is_none() && relation::try_lock(record.partition, Mode::AccessExclusive) {
        unfence(facts.owner, record.partition)?;
        return retirements::set_state(record.id, State::Kept);
    }
    take_back(facts, record)?;
    retirements::set_state(record.id, State::Returning)
}

/// Attaches a table from the trash. Its rows are seen at once; that it stays fenced and its groups stay apart for a moment is for plans
/// that were made without it. Tables that foreign keys connect are locked last, as a job would do it.
fn attach_again(facts: &Facts, plan: &Plan, record: &Row) -> Result<()> {
    require_foreign_keys(facts, record)?;
    let wanted = facts::locks_of_attach(facts.oid, record.partition)?;
    if wanted.is_empty() {
        return prepare(facts, record).and_then(|()| attach(facts, plan, record));
    }
    let work = Work { wanted: &wanted, patience: Patience::Job, waits: false };
    let who = match work.run(|| prepare(facts, record), || attach(facts, plan, record))? {
        Attempt::Done(()) => return Ok(()),
        Attempt::InUse(who) => format!("They are used by {who}."),
        Attempt::Missed => "They are used by short transactions, one after another.".into(),
        Attempt::PutOff(table) => locks::why_put_off(table)?,
    };
    let connected: Vec<_> = facts::connected_tables(facts.oid)?.into_iter().map(|(_, table)| table).collect();
    let locks: String = wanted
        .iter()
        .zip(&connected)
        .map(|((_, mode), table)| format!("LOCK TABLE {table} IN {} MODE; ", mode.name()))
        .collect();
    let (table, partition) = (&facts.set.table, record.partition.to_u32());
    Err(Error::new(
        "55P03",
        format!("could not lock {}, connected with table {table} by foreign keys", connected.join(", ")),
    )
    .detail(who)
    .hint(format!(
        "Call this function again at a quiet moment. To wait in the queue, and have those who use them wait behind you: \
         BEGIN; {locks}SELECT tally.undo_retention({}, {partition}::regclass); COMMIT;",
        literal(table)
    )))
}

/// ATTACH takes foreign keys over that the table has. One that it has not, because its grace was over or because the set has got it since, would be
/// checked row by row, and writers of the other table would wait for that.
fn require_foreign_keys(facts: &Facts, record: &Row) -> Result<()> {
    let missing = facts::rows(
        "SELECT pg_catalog.quote_ident(k.conname), d.definition, k.confrelid::pg_catalog.regclass::text FROM pg_catalog.pg_constraint k \
         CROSS JOIN LATERAL pg_catalog.replace(pg_catalog.pg_get_constraintdef(k.oid), ' NOT VALID', '') AS d (definition) \
         WHERE k.conrelid OPERATOR(pg_catalog.=) $1 AND k.contype OPERATOR(pg_catalog.=) 'f' AND k.conparentid OPERATOR(pg_catalog.=) 0::pg_catalog.oid \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint o WHERE o.conrelid OPERATOR(pg_catalog.=) $2 AND o.contype OPERATOR(pg_catalog.=) 'f' \
                             AND pg_catalog.pg_get_constraintdef(o.oid) OPERATOR(pg_catalog.=) d.definition) \
         ORDER BY k.conname",
        &[facts.oid.into(), record.partition.into()],
        |row| Ok([facts::text(row, 1)?, facts::text(row, 2)?, facts::text(row, 3)?]),
    )?;
    let Some([key, definition, target]) = missing.first() else { return Ok(()) };
    let (table, set) = (catalog::name_of(record.partition)?, &facts.set.table);
    let literal = literal(set);
    Err(Error::new("55000", format!("{table} lacks the foreign key {key} of table {set}"))
        .detail(format!("ATTACH would check all of its rows, and writers of {target} would wait for that."))
        .hint(format!(
            "SELECT tally.pause_partitions({literal}); ALTER TABLE {table} ADD CONSTRAINT {key} {definition} NOT VALID; \
             ALTER TABLE {table} VALIDATE CONSTRAINT {key}; SELECT tally.undo_retention({literal}, {}::regclass); \
             SELECT tally.resume_job(job_id) FROM tally.jobs WHERE object = {literal}::regclass;",
            record.partition.to_u32()
        )))
}

/// Makes the table what it was, but for its place.
fn prepare(facts: &Facts, record: &Row) -> Result<()> {
    let now = catalog::name_of(record.partition)?;
    if is_name_taken(&record.name.schema, &record.name.name) && now != record.name {
        return Err(Error::new("42P07", format!("{} exists", record.name)).hint("Rename that table first."));
    }
    if now.schema != record.name.schema {
        free_names(record.partition, &record.name.schema)?;
        run_as(facts.owner, &format!("ALTER TABLE {now} SET SCHEMA {}", quote(&record.name.schema)))?;
    }
    if now.name != record.name.name {
        let here = QualifiedName::new(&record.name.schema, now.name);
        run_as(facts.owner, &format!("ALTER TABLE {here} RENAME TO {}", quote(&record.name.name)))?;
    }
    add_columns(facts, record)?;
    part(facts, record.partition)
}

fn attach(facts: &Facts, plan: &Plan, record: &Row) -> Result<()> {
    let is_source = sources::is_source(facts.oid)?;
    let is_known =
        is_source && is_leaving(facts.oid, record)? && record.state != State::Mismatch && knows_all(facts.oid, record)?;
    if is_known {
        // With the trigger there, the event trigger of ATTACH takes it for a partition that it knows.
        let protect = format!(
            "SELECT tally._protect_partition({}::pg_catalog.oid::pg_catalog.regclass)",
            record.partition.to_u32()
        );
        run_as(facts.owner, &protect)?;
    } else if is_source {
        // Somebody has detached it, which is over with that; a rollup has come that does not know of it; or its rows are not what they
        // were: they are counted as those of any table that is attached.
        unfence(facts.owner, record.partition)?;
    }
    let Range { lower, upper } = record.range;
    let bound = |at: Timestamp| bound(plan.policy.key, at);
    run_as(
        facts.owner,
        &format!(
            "ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})",
            facts.name,
            record.name,
            bound(lower),
            bound(upper)
        ),
    )?;
    if is_known {
        pg::as_user(facts.owner, || seal::follow_arrival(facts.oid, record.partition))?;
    }
    retirements::set_state(record.id, if is_known || !is_source { State::Returning } else { State::Kept })
}

fn bound(key: Key, at: Timestamp) -> String {
    match at {
        Timestamp::NEG_INFINITY => "MINVALUE".into(),
        Timestamp::INFINITY => "MAXVALUE".into(),
        _ => partition_sql::bound(key, at),
    }
}

/// Columns that the parent has gained since; those that it has lost or retyped are told by ATTACH.
fn add_columns(facts: &Facts, record: &Row) -> Result<()> {
    let missing = facts::rows(
        "SELECT pg_catalog.format('ADD COLUMN %I %s%s%s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), \
                CASE WHEN d.adbin IS NOT NULL THEN ' DEFAULT ' OPERATOR(pg_catalog.||) pg_catalog.pg_get_expr(d.adbin, d.adrelid) ELSE '' END, \
                CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END) \
         FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid OPERATOR(pg_catalog.=) a.attrelid \
              AND d.adnum OPERATOR(pg_catalog.=) a.attnum \
         WHERE a.attrelid OPERATOR(pg_catalog.=) $1 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute o WHERE o.attrelid OPERATOR(pg_catalog.=) $2 \
                           AND o.attname OPERATOR(pg_catalog.=) a.attname AND NOT o.attisdropped) ORDER BY a.attnum",
        &[facts.oid.into(), record.partition.into()],
        |row| facts::text(row, 1),
    )?;
    if missing.is_empty() {
        return Ok(());
    }
    run_as(facts.owner, &format!("ALTER TABLE {} {}", record.name, missing.join(", ")))
}
