//! Retention: takes partitions that are too old out of their set, without an insert or a reader waiting, without a row that no rollup
//! has counted, and with a way back. What comes next is decided in `core/src/partition/retention.rs`; here it is done, one step per
//! transaction.

mod plan;
mod removal;
mod undo;
mod waiting;

pub(super) use plan::plan;
use removal::{drop_table, foreign_keys};
pub(super) use undo::undo;
pub(super) use waiting::busy;
use waiting::{blocker, pause_until, rest};

use super::facts::Facts;
use super::locks::{self, Attempt, Patience, Work};
use super::{Pass, Plan, facts, idle, owned, registered, with_fixed_settings};
use crate::catalog::adoptions::{self, Origin};
use crate::catalog::retirements::{self, Row};
use crate::catalog::{self, altered_sets, builds, departures, rollups, sources};
use crate::error::{Result, spi};
use crate::pg::relation::{self, Mode};
use crate::pg::types::is_name_taken;
use crate::pg::{self, Oid, Snapshot, process};
use crate::{changes, refresh, settings, tags, version, workers};
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::bucket::Timestamp;
use tally_core::ident::{QualifiedName, fit, quote};
use tally_core::partition::retention::{self, Detach, Place, Round, State, Step};
use tally_core::partition::{Range, check};
use tally_core::rollup::sql;

/// What a step has done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// There is more to do, in a new transaction.
    pub more: bool,
    /// Nothing can be done before this much time has passed.
    pub pause: Option<Duration>,
    /// A statement to be executed at top level, after the commit.
    pub statement: Option<Statement>,
    pub pass: Pass,
}

/// A statement that PostgreSQL takes at top level only.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub sql: String,
    /// How long it may wait for a lock; none for as long as it takes.
    pub lock_timeout: Option<Duration>,
    /// The tables whose users may wait for it meanwhile.
    pub charged: Vec<Oid>,
    /// What it does is next to nothing, but it may wait for somebody for hours, and nobody waits for it.
    pub only_waits: bool,
}

impl Progress {
    fn done() -> Self {
        Self { more: true, ..Self::default() }
    }

    /// Somebody is in the way.
    fn wait(row: &Row, note: &str) -> Result<Self> {
        retirements::set_note(row, note)?;
        Ok(Self::later(PAUSE))
    }

    /// It would have to wait in the queue for a table for which that is not allowed any more.
    fn put_off(row: &Row, table: Oid) -> Result<Self> {
        retirements::set_note(row, &locks::why_put_off(table)?)?;
        Ok(Self { pause: Some(locks::pause_of_put_off()), ..Self::default() })
    }

    /// Nothing before about this time has passed: half of it to one and a half, so that those who wait do not come back together.
    pub(super) fn later(pause: Duration) -> Self {
        Self { pause: Some(pause.mul_f64(0.5 + crate::workers::random())), ..Self::default() }
    }
}

/// About how long to wait before looking again whether somebody is still in the way.
const PAUSE: Duration = Duration::from_secs(2);
/// Where removed partitions wait for the end of their grace.
const TRASH: &str = "tally_trash";

/// Takes the next step of the set's retention, as its owner and in a transaction that has not written yet.
pub(crate) fn step(parent: Oid) -> Result<Progress> {
    if let Some(progress) = rest(parent)? {
        return Ok(progress);
    }
    let look = idle::begin()?;
    let facts = facts::read(parent)?;
    let row = registered(&facts)?;
    match adoptions::origin()? {
        // Nothing is removed from a copy before somebody has said that it is none.
        Origin::Copy => return Ok(Progress { pass: Pass::Look(Timestamp::INFINITY), ..Progress::default() }),
        Origin::Upgraded => {
            adoptions::adopt()?;
            return Ok(Progress::done());
        }
        Origin::Original | Origin::Unknown => {}
    }
    let plan = Plan::new(check::set(&facts.set)?, &row)?;
    let clock = process::clock();
    let records = retirements::list(parent)?;
    let mut round = Round::default();
    for record in &records {
        let step = round.look(record.state, place(parent, record)?, record.drop_after, clock);
        if step != Step::Wait {
            return take(step, &facts, &plan, record);
        }
    }
    let pause = pause_until(round.wake, clock);
    if round.is_busy {
        return Ok(Progress { pause, ..Progress::default() });
    }
    let is_known = |partition| records.iter().any(|record| record.partition == partition);
    let oldest = facts.bounds.iter().find(|bounds| !is_known(bounds.partition));
    if let Some(oldest) = oldest
        && let Some(retention) = plan.policy.retention
        && retention::is_due(plan.policy.key, &plan.zone, clock, retention, oldest.range.upper)
    {
        // Somebody's DETACH CONCURRENTLY goes first.
        if facts::pending(parent)?.is_some() {
            return Ok(Progress { pause, ..Progress::default() });
        }
        return fence(&facts, oldest.partition, oldest.range);
    }
    let until = look.store_retention(&facts, &plan, oldest.map(|oldest| oldest.range))?;
    Ok(Progress { pause, pass: Pass::Look(until), ..Progress::default() })
}

fn take(step: Step, facts: &Facts, plan: &Plan, record: &Row) -> Result<Progress> {
    match step {
        Step::Count => count(facts, record),
        Step::Verify => verify(facts, record),
        Step::Detach => detach(facts, plan, record),
        Step::Finalize => finalize(facts, record),
        Step::Discard => discard(facts, plan, record),
        Step::Drop => drop_table(facts, record),
        Step::Release => release(facts, record),
        Step::LetGo => let_go(facts, record),
        Step::Wait => Ok(Progress::default()),
    }
}

/// Where the catalogs say that the partition is.
fn place(parent: Oid, record: &Row) -> Result<Place> {
    let found = facts::rows(
        "SELECT i.inhparent, i.inhdetachpending, n.nspname OPERATOR(pg_catalog.=) $2::pg_catalog.name FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
         LEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid OPERATOR(pg_catalog.=) c.oid \
         WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[record.partition.into(), TRASH.into()],
        |row| Ok((row.get::<Oid>(1)?, facts::flag(row, 2)?, facts::flag(row, 3)?)),
    )?;
    Ok(match found.first() {
        None => Place::Gone,
        Some((Some(of), true, _)) if *of == parent => Place::Pending,
        Some((Some(of), false, _)) if *of == parent => Place::Attached,
        Some((_, _, true)) => Place::Trash,
        Some(_) => Place::Detached,
    })
}

/// Refuses changes of the partition from now on. Its lock waits for nobody: whoever writes to it goes first.
fn fence(facts: &Facts, partition: Oid, range: Range) -> Result<Progress> {
    let name = catalog::name_of(partition)?;
    if !locks::try_against_writers(partition) {
        return Ok(Progress { pause: Some(PAUSE), ..Progress::default() });
    }
    for (trigger, event) in [("tally_fence", "INSERT OR UPDATE OR DELETE"), ("tally_fence_truncate", "TRUNCATE")] {
        let level = if event == "TRUNCATE" { "STATEMENT" } else { "ROW" };
        run_as(
            facts.owner,
            &format!(
                "CREATE TRIGGER {trigger} BEFORE {event} ON {name} FOR EACH {level} EXECUTE FUNCTION tally._refuse_change()"
            ),
        )?;
        run_as(facts.owner, &format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}"))?;
    }
    retirements::insert(facts.oid, partition, &name, range)?;
    Ok(Progress::done())
}

/// Lets rows of the partition be changed again. That takes its lock against readers too, which the caller has tried for, or is about
/// to take for ATTACH: in its queue everybody who reads the set would wait behind an open report.
fn unfence(owner: Oid, partition: Oid) -> Result<()> {
    let triggers = ["tally_fence", "tally_fence_truncate"];
    pg::as_user(owner, || triggers.iter().try_for_each(|trigger| catalog::drop_trigger(partition, trigger)))
}

/// Has every rollup count its rows, which are the last ones, and keep their groups.
fn count(facts: &Facts, record: &Row) -> Result<Progress> {
    let name = catalog::name_of(record.partition)?;
    let rows = |owner| {
        pg::as_user(owner, || catalog::look_up::<i64>(&format!("SELECT pg_catalog.count(*) FROM ONLY {name}"), &[]))
            .map(Option::unwrap_or_default)
    };
    if !sources::is_source(facts.oid)? {
        retirements::set_counted(record.id, rows(facts.owner)?, None)?;
        return Ok(Progress::done());
    }
    if builds::is_any(facts.oid)? {
        return Progress::wait(record, "P04: a rollup of the table is being built");
    }
    let mut uncounted = false;
    refresh::tick_and(facts.oid, &mut |reached| {
        let has_uncounted = sql::has_new_row(&name, &reached.counted, None);
        if pg::as_user(reached.owner, || reached.now.is_there(&has_uncounted))? {
            uncounted = true;
            return Ok(0);
        }
        let departure = changes::retain_ahead(facts.oid, record.partition, reached.owner)?;
        let keeping: Vec<Oid> = rollups::of_source(facts.oid)?.iter().map(|rollup| rollup.rollup).collect();
        let total = rows(reached.owner)?;
        retirements::set_counted(record.id, total, Some((departure, &keeping, &reached.counted)))?;
        Ok(0)
    })?;
    if uncounted {
        // A row of a transaction that ended between the fence and the snapshot of this tick: the next one counts it.
        return Progress::wait(record, "P04: rows of the partition are not counted yet");
    }
    Ok(Progress::done())
}

/// Compares every rollup with the rows that are about to go.
fn verify(facts: &Facts, record: &Row) -> Result<Progress> {
    if !sources::is_source(facts.oid)? {
        retirements::set_state(record.id, State::Verified)?;
        return Ok(Progress::done());
    }
    let Range { lower, upper } = record.range;
    // Bounds of a rollup's buckets are compared as timestamptz; a wall clock is one in UTC here.
    let range = (format!("{lower}+00"), format!("{upper}+00"));
    let mut differences: Vec<String> = vec![];
    refresh::tick_and(facts.oid, &mut |reached| {
        for rollup in rollups::of_source(facts.oid)?.iter().filter(|rollup| rollup.unbuilt_before.is_none()) {
            let relations = rollup.relations()?;
            let range = (range.0.as_str(), range.1.as_str());
            let Some(statement) = sql::count_differences(&rollup.definition, &relations, &reached.counted, range)
            else {
                continue;
            };
            let found = pg::with_settings(&[(c"TimeZone", "UTC")], || {
                let _settings = pg::pin_settings();
                pg::as_user(reached.owner, || reached.now.execute::<1>(&statement))
            })?;
            if let Some([groups]) = found.filter(|[groups]| *groups > 0) {
                differences.push(format!("{groups} of {}", relations.public));
            }
        }
        Ok(0)
    })?;
    if differences.is_empty() {
        retirements::set_state(record.id, State::Verified)?;
        return Ok(Progress::done());
    }
    retirements::set_state(record.id, State::Mismatch)?;
    let note = format!("P10: groups differ from the rows of the partition: {}", differences.join(", "));
    warning!("tally retention of {}: {note}", record.name);
    retirements::set_note(record, &note)?;
    Ok(Progress::default())
}

/// Asks for DETACH CONCURRENTLY, once no snapshot is left that does not know of the retained groups.
fn detach(facts: &Facts, plan: &Plan, record: &Row) -> Result<Progress> {
    let is_retained =
        !sources::is_source(facts.oid)? || is_leaving(facts.oid, record)? && knows_all(facts.oid, record)?;
    let blocker = if is_retained { blocker(record)? } else { None };
    let waited = process::clock().since(record.changed_at);
    match retention::detach(is_retained, blocker.is_some(), waited, plan.policy.detach_deadline) {
        Detach::CountAgain => {
            lock_out(facts)?;
            take_back(facts, record)?;
            retirements::set_state(record.id, State::Fenced)?;
            return Ok(Progress::done());
        }
        Detach::Wait => {
            let who = blocker.unwrap_or_default();
            return Progress::wait(record, &format!("waits for a transaction that is older: {who}"));
        }
        Detach::Now => {}
    }
    // Where all who wait for reports have their hands full, this one waits without a worker.
    if waited < plan.policy.detach_deadline
        && !workers::may_wait()
        && let Some(who) = waiting::holders(facts.oid)?
    {
        return Progress::wait(record, &format!("{}{who}", waiting::IN_USE));
    }
    // A table has one at most, and somebody's goes first.
    if let Some(other) = facts::pending(facts.oid)? {
        return Progress::wait(record, &format!("waits for the DETACH CONCURRENTLY of {other}"));
    }
    if record.state != State::Detaching {
        retirements::set_state(record.id, State::Detaching)?;
    }
    let partition = catalog::name_of(record.partition)?;
    let sql = format!("ALTER TABLE {} DETACH PARTITION {partition} CONCURRENTLY", facts.name);
    let wanted = facts::locks_of_detach(facts.oid)?;
    let lock_timeout = match (!wanted.is_empty()).then(|| locks::timeout_at_top_level(&wanted)).transpose()? {
        None => None,
        Some(Ok(timeout)) => Some(timeout),
        Some(Err(refusal)) => return refused(record, refusal),
    };
    let only_waits = lock_timeout.is_none();
    let charged = wanted.into_iter().map(|(table, _)| table).collect();
    let statement = Some(Statement { sql, lock_timeout, charged, only_waits });
    Ok(Progress { more: true, statement, ..Progress::default() })
}

/// What becomes of a step whose locks were not to be had.
fn refused<T>(record: &Row, attempt: Attempt<T>) -> Result<Progress> {
    match attempt {
        Attempt::Done(_) => Ok(Progress::done()),
        Attempt::InUse(who) => {
            Progress::wait(record, &format!("waits for transactions that are older than a second: {who}"))
        }
        Attempt::Missed => Progress::wait(record, "waits for a lock on a table that a foreign key connects"),
        Attempt::PutOff(table) => Progress::put_off(record, table),
    }
}

/// Are its rows retained and not read?
fn is_leaving(source: Oid, record: &Row) -> Result<bool> {
    Ok(record.departure.is_some() && sources::leaving(source)?.contains(&record.partition))
}

/// Does every rollup of the source keep groups of the partition?
fn knows_all(source: Oid, record: &Row) -> Result<bool> {
    Ok(rollups::of_source(source)?.iter().all(|rollup| record.rollups.contains(&rollup.rollup)))
}

/// A table has been attached by hand. One that is detached and not yet in the trash keeps the trigger by which a partition is told that
/// all rollups know; if one has come since that does not, it loses it, and is counted as any other table.
pub(crate) fn follow_attach(parent: Oid, partition: Oid) -> Result<()> {
    let is_unknown = Snapshot::latest().read(|| -> Result<bool> {
        let Some(record) = retirements::find(parent, partition)? else { return Ok(false) };
        let Some(source) = sources::source_of(parent)? else { return Ok(false) };
        Ok(!knows_all(source, &record)?)
    })?;
    if is_unknown { catalog::drop_trigger(partition, "tally_truncate") } else { Ok(()) }
}

/// Ends a DETACH CONCURRENTLY that was interrupted. FINALIZE waits for every older snapshot of the database, and then for tables that
/// foreign keys connect: these are had before it begins.
fn finalize(facts: &Facts, record: &Row) -> Result<Progress> {
    let partition = catalog::name_of(record.partition)?;
    let sql = format!("ALTER TABLE {} DETACH PARTITION {partition} FINALIZE", facts.name);
    let run = || with_fixed_settings(Some(settings::lock_try_timeout()), || Spi::run(&sql)).map_err(spi);
    let wanted = facts::locks_of_detach(facts.oid)?;
    if wanted.is_empty() {
        run()?;
        return Ok(Progress::done());
    }
    if let Some(blocker) = waiting::old_snapshot()? {
        return Progress::wait(record, &format!("waits for a transaction that is older: {blocker}"));
    }
    relation::begin_writing();
    let attempt = Work { wanted: &wanted, patience: Patience::Job, waits: true }.run(|| Ok(()), run)?;
    refused(record, attempt)
}

/// Moves the detached table to the trash. Nobody is in it but who reads it by its own name.
fn discard(facts: &Facts, plan: &Plan, record: &Row) -> Result<Progress> {
    if !pg::try_access_exclusive(&[record.partition], 20, Duration::from_millis(25)) {
        return Progress::wait(record, "somebody reads the detached table");
    }
    let name = catalog::name_of(record.partition)?;
    part(facts, record.partition)?;
    if name.schema != TRASH {
        let mut there = QualifiedName::new(TRASH, name.name.clone());
        if is_name_taken(TRASH, &there.name) {
            there.name = fit(&there.name, &format!("_{}", record.partition.to_u32()));
            run_as(facts.owner, &format!("ALTER TABLE {name} RENAME TO {}", quote(&there.name)))?;
        }
        let here = QualifiedName::new(name.schema, there.name);
        free_names(record.partition, TRASH)?;
        pg::as_extension_owner(|| Spi::run(&format!("ALTER TABLE {here} SET SCHEMA {TRASH}"))).map_err(spi)?;
    }
    retirements::set_state(record.id, State::Trash)?;
    retirements::set_drop_after(record.id, process::clock().plus(plan.policy.grace))?;
    Ok(Progress::done())
}

/// Takes the triggers of the source away that DETACH CONCURRENTLY has left at a table. That it is leaving stays noted as long as it can come
/// back: a snapshot from before it does counts its retained groups, and must not read its rows.
fn part(facts: &Facts, partition: Oid) -> Result<()> {
    pg::as_user(facts.owner, || tags::unprotect(partition))
}

/// Renames indexes and sequences of a table that would move along to a schema where their names are taken.
fn free_names(table: Oid, schema: &str) -> Result<()> {
    let taken = facts::rows(
        "SELECT c.oid, n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace AND n.nspname OPERATOR(pg_catalog.<>) $2::pg_catalog.name \
         WHERE (EXISTS (SELECT FROM pg_catalog.pg_index x WHERE x.indexrelid OPERATOR(pg_catalog.=) c.oid AND x.indrelid OPERATOR(pg_catalog.=) $1) \
             OR c.relkind OPERATOR(pg_catalog.=) 'S' AND EXISTS (SELECT FROM pg_catalog.pg_depend d \
                WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid OPERATOR(pg_catalog.=) c.oid \
                  AND d.refclassid OPERATOR(pg_catalog.=) d.classid AND d.refobjid OPERATOR(pg_catalog.=) $1)) \
           AND EXISTS (SELECT FROM pg_catalog.pg_class o JOIN pg_catalog.pg_namespace w ON w.oid OPERATOR(pg_catalog.=) o.relnamespace \
                WHERE w.nspname OPERATOR(pg_catalog.=) $2::pg_catalog.name AND o.relname OPERATOR(pg_catalog.=) c.relname)",
        &[table.into(), schema.into()],
        |row| Ok((row.get::<Oid>(1)?.unwrap_or(Oid::INVALID), facts::text(row, 2)?, facts::text(row, 3)?)),
    )?;
    for (oid, schema, name) in taken {
        let free = quote(&fit(&name, &format!("_{}", oid.to_u32())));
        let rename = format!("ALTER TABLE {} RENAME TO {free}", QualifiedName::new(schema, name));
        pg::as_extension_owner(|| Spi::run(&rename)).map_err(spi)?;
    }
    Ok(())
}

/// A partition has been attached again and every plan from before that is over: its groups are no longer kept apart. And when every
/// snapshot is over in which they are, it takes changes again: whoever made one in such a snapshot would not see it.
fn release(facts: &Facts, record: &Row) -> Result<Progress> {
    if let Some(blocker) = blocker(record)? {
        return Progress::wait(record, &format!("waits for a transaction that is older: {blocker}"));
    }
    let is_kept_apart = sources::is_source(facts.oid)? && is_leaving(facts.oid, record)?;
    let is_free = match is_kept_apart {
        true => locks::try_against_writers(record.partition),
        false => locks::try_against_all(record.partition),
    };
    if !is_free {
        return Progress::wait(record, "somebody uses the partition");
    }
    lock_out(facts)?;
    if place(facts.oid, record)? != Place::Attached {
        return Ok(Progress::done());
    }
    if is_kept_apart {
        take_back(facts, record)?;
        retirements::set_state(record.id, State::Returning)?;
    } else {
        unfence(facts.owner, record.partition)?;
        retirements::set_state(record.id, State::Kept)?;
    }
    Ok(Progress::done())
}

/// Keeps refreshes and other DDL of the set away until the end of the transaction, in the order of whoever else does. Among the DDL is a
/// DETACH CONCURRENTLY that has found the partition leaving and has not committed for the first time.
fn lock_out(facts: &Facts) -> Result<()> {
    if sources::is_source(facts.oid)? {
        pg::lock_refresh(sources::table()?, facts.oid, true);
    }
    relation::lock(facts.oid, Mode::ShareUpdateExclusive);
    relation::begin_writing();
    Ok(())
}

/// The retained groups stop counting, under the locks of [`lock_out`]: the rows are where they were, and have not changed.
fn take_back(facts: &Facts, record: &Row) -> Result<()> {
    let Some(departure) = record.departure else { return Ok(()) };
    // What has come back by hand has been released by that.
    if !sources::is_source(facts.oid)? || !is_leaving(facts.oid, record)? {
        return Ok(());
    }
    for rollup in Snapshot::latest().read(|| rollups::of_source(facts.oid))? {
        let statement = sql::forget_departure(&rollup.relations()?, departure);
        pg::as_user(facts.owner, || Snapshot::latest().execute::<0>(&statement))?;
    }
    departures::delete(departure)?;
    sources::forget_leaving(facts.oid, record.partition)
}

/// Somebody took the matter into his own hands.
fn let_go(facts: &Facts, record: &Row) -> Result<Progress> {
    let place = place(facts.oid, record)?;
    if place != Place::Gone && record.state != State::Kept {
        if !locks::try_against_all(record.partition) {
            return Progress::wait(record, "somebody uses the table");
        }
        if pg::owner_of(record.partition) == Some(facts.owner) {
            unfence(facts.owner, record.partition)?;
            if place == Place::Detached {
                // Nobody knows any more what the rollups know of it.
                part(facts, record.partition)?;
            }
        }
    }
    if sources::is_source(facts.oid)? {
        sources::forget_leaving(facts.oid, record.partition)?;
    }
    retirements::delete(record.id)?;
    Ok(Progress::done())
}

fn run_as(owner: Oid, statement: &str) -> Result<()> {
    pg::as_user(owner, || Spi::run(statement)).map_err(spi)
}

/// Stops the jobs of a set.
pub(super) fn pause(parent: Oid) -> Result<()> {
    version::require_writable()?;
    let facts = owned(parent)?;
    registered(&facts)?;
    catalog::jobs::pause_of(parent)
}

/// Lets the jobs of a set go on, and retention with partitions that it has spared.
pub(super) fn resume(parent: Oid) -> Result<()> {
    version::require_writable()?;
    let facts = owned(parent)?;
    registered(&facts)?;
    retirements::resume(parent)?;
    altered_sets::insert(&[parent])?;
    catalog::jobs::resume_of(parent, process::clock())
}
