//! Cold partitions of a source are sealed, so that ticks and readers need not look into each of a thousand partitions for new rows.
//!
//! ```text
//!   sealed and settled         sealed        hot
//!   ───────────────────────┬─────────────┬──────────────────────────────> time
//!                   settled_before   sealed_before
//!     each row that comes is logged;       rows are found by their tags
//!     nobody looks for tags
//! ```
//!
//! A sealed partition has the trigger `tally_seal`, which takes its tag from each new row. Such a row was never new, so the triggers
//! of the source write it into the change log, and all its later changes too. The trigger is made while nobody has written to the
//! partition and not ended; the first tick with a younger snapshot than that counts what is left in it, and the partition is settled. Only
//! a transaction without an id counts all that its snapshot sees: one that creates a rollup settles nothing.

use crate::catalog::{self, builds, sources};
use crate::error::{Error, Result, spi};
use crate::pg::{self, Oid, relation::Mode};
use crate::refresh::Reached;
use crate::{settings, tags, version};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::collections::HashSet;
use tally_core::bucket::{HOUR, Timestamp};
use tally_core::ident::quote;
use tally_core::partition::Key;
use tally_core::rollup::definition::TAG;
use tally_core::rollup::sql::{self, Settled};

/// What a sealed partition has.
pub(crate) const TRIGGER: &str = "tally_seal";
/// A transaction makes so many triggers at most.
const PARTITIONS_PER_STEP: usize = 32;
/// With fewer new rows than that in [`settings::seal_after`], a partition is quiet.
const ROWS_OF_QUIET: i64 = 10_000;

/// What a tick of the source may leave out.
pub(crate) fn settled(source: Oid, state: &sources::State) -> Result<Option<Settled>> {
    let Some(before) = state.settled_before else { return Ok(None) };
    Ok(partition_key(source)?.map(|(column, key)| Settled { column, key, before }))
}

/// The column by which a source is partitioned, if its partitions can be sealed.
fn partition_key(source: Oid) -> Result<Option<(String, Key)>> {
    let time = tags::time_column(source, None)?;
    Ok(time.filter(tags::TimeColumn::is_bound).map(|time| (time.name, Key::of_type(&time.type_name))))
}

/// What a step has done.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    sealed: i32,
    /// There are more to seal, in a new transaction.
    more: bool,
}

/// Seals partitions that end before `limit`, the oldest first, up to one that is not quiet, or in use, or not ours. The caller holds
/// the refresh lock.
fn seal(source: Oid, limit: Timestamp, key: Key, is_quiet: &dyn Fn(Oid) -> Result<bool>) -> Result<Report> {
    let mut report = Report::default();
    // Nobody may bring a partition meanwhile.
    if !pg::relation::try_lock(source, Mode::ShareUpdateExclusive) {
        return Ok(report);
    }
    let now = pg::Snapshot::latest();
    // A default partition may have rows of any time.
    if now.read(|| has_default(source))? {
        return Ok(report);
    }
    let known = now.read(|| sealed_children(source))?;
    let mut reached = None;
    for bounds in pg::range_partitions(source, key) {
        if bounds.range.upper > limit {
            break;
        }
        if !known.contains(&bounds.partition) {
            if report.sealed as usize == PARTITIONS_PER_STEP {
                report.more = true;
                break;
            }
            if !is_quiet(bounds.partition)? || !try_seal(bounds.partition)? {
                break;
            }
            report.sealed += 1;
        }
        reached = Some(bounds.range.upper);
    }
    if let Some(before) = reached {
        sources::seal(source, before)?;
    }
    Ok(report)
}

/// Makes the trigger, if that is possible at once: nobody must be writing to the partition.
fn try_seal(partition: Oid) -> Result<bool> {
    let tree = tags::partition_tree(partition)?;
    let is_free = |table: &Oid| pg::owns(*table) && pg::relation::try_lock(*table, Mode::ShareRowExclusive);
    if !tree.iter().all(is_free) {
        return Ok(false);
    }
    create_trigger(partition)?;
    Ok(true)
}

fn create_trigger(partition: Oid) -> Result<()> {
    let name = catalog::name_of(partition)?;
    let run = |sql: &str| Spi::run(sql).map_err(spi);
    run(&format!("CREATE TRIGGER tally_seal BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION tally._seal_row()"))?;
    run(&format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER tally_seal"))
}

/// Is the table a sealed partition, or part of one?
pub(crate) fn is_sealed_partition(table: Oid) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger AS g WHERE g.tgrelid OPERATOR(pg_catalog.=) $1 \
         AND g.tgname OPERATOR(pg_catalog.=) 'tally_seal')";
    pg::Snapshot::latest()
        .read(|| catalog::look_up_again::<bool>(query, &[table.into()]))
        .map(|found| found == Some(true))
}

/// The partitions of the source itself that are sealed.
fn sealed_children(source: Oid) -> Result<HashSet<Oid>> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT g.tgrelid FROM pg_catalog.pg_inherits AS i \
               JOIN pg_catalog.pg_trigger AS g ON g.tgrelid OPERATOR(pg_catalog.=) i.inhrelid \
              WHERE i.inhparent OPERATOR(pg_catalog.=) $1 AND g.tgname OPERATOR(pg_catalog.=) 'tally_seal'",
            None,
            &[source.into()],
        )?;
        rows.map(|row| row.get::<Oid>(1).map(|oid| oid.unwrap_or(Oid::INVALID))).collect::<pgrx::spi::Result<_>>()
    })
    .map_err(spi)
}

fn has_default(source: Oid) -> Result<bool> {
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_partitioned_table AS p WHERE p.partrelid OPERATOR(pg_catalog.=) $1 \
         AND p.partdefid OPERATOR(pg_catalog.<>) 0::pg_catalog.oid)";
    catalog::look_up_again::<bool>(query, &[source.into()]).map(|found| found == Some(true))
}

/// Partitions that must be sealed: those below `sealed_before`.
pub(crate) fn to_be_sealed(source: Oid, state: &sources::State) -> Result<Vec<Oid>> {
    let (Some(before), Some((_, key))) = (state.sealed_before, partition_key(source)?) else { return Ok(vec![]) };
    let partitions = pg::range_partitions(source, key).into_iter();
    Ok(partitions.filter(|bounds| bounds.range.lower < before).map(|bounds| bounds.partition).collect())
}

/// What a step of the refresh job has found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// There is more to do.
    pub more: bool,
    /// If no rows come, there is nothing to do before.
    pub rests_until: Timestamp,
}

/// Part of the refresh job: from time to time seals what has become cold.
pub(crate) fn step(reached: &Reached) -> Result<Step> {
    let rests_until = |rests_until| Ok(Step { more: false, rests_until });
    let Some(after) = settings::seal_after() else { return rests_until(Timestamp::INFINITY) };
    let clock = pg::process::clock();
    let Some(watch) = sources::watch(reached.source)? else {
        sources::set_watch(reached.source, reached.counted.next, clock)?;
        return rests_until(clock.plus(after));
    };
    if clock.since(watch.since) < after {
        return rests_until(watch.since.plus(after));
    }
    if builds::is_any(reached.source)? {
        return rests_until(clock);
    }
    let Some((_, key)) = partition_key(reached.source)? else { return rests_until(Timestamp::INFINITY) };
    // No wall clock is behind UTC by more.
    let behind = if key == Key::Instant { 0 } else { 12 * HOUR };
    let limit = clock.minus(after).minus(behind);
    if watch.tag == reached.counted.next {
        // No row has come since: but for what was there to be sealed then, there is what has ended meanwhile.
        let end = end_of_first_unsealed(reached, key)?;
        if end > limit {
            return rests_until(end.plus(after).plus(behind));
        }
    }
    let is_quiet = |partition| is_quiet(partition, watch.tag, reached.owner);
    let report = seal(reached.source, limit, key, &is_quiet)?;
    if !report.more {
        sources::set_watch(reached.source, reached.counted.next, clock)?;
    }
    Ok(Step { more: report.more, rests_until: clock.plus(after) })
}

/// Where the first partition ends that is not sealed.
fn end_of_first_unsealed(reached: &Reached, key: Key) -> Result<Timestamp> {
    let state = reached.now.read(|| sources::state(reached.source))?;
    let sealed_before = state.and_then(|state| state.sealed_before).unwrap_or(Timestamp::NEG_INFINITY);
    let mut ends = pg::range_partitions(reached.source, key).into_iter().map(|bounds| bounds.range.upper);
    Ok(ends.find(|end| *end > sealed_before).unwrap_or(Timestamp::INFINITY))
}

/// Have few rows come to the partition since the transaction with this tag?
fn is_quiet(partition: Oid, since: i64, owner: Oid) -> Result<bool> {
    let _settings = pg::pin_settings();
    let query = format!(
        "SELECT pg_catalog.count(*) FROM (SELECT FROM {} AS r WHERE r.{} OPERATOR(pg_catalog.>=) {since} LIMIT {ROWS_OF_QUIET}) AS new",
        catalog::name_of(partition)?,
        quote(TAG)
    );
    let rows = pg::as_user(owner, || catalog::look_up::<i64>(&query, &[]))?;
    Ok(rows.unwrap_or(0) < ROWS_OF_QUIET)
}

/// A partition has come to a source. Among sealed ones it is sealed as well; rows that it brings along may be new by their tags.
pub(crate) fn follow_arrival(source: Oid, partition: Oid) -> Result<()> {
    let now = pg::Snapshot::latest();
    let Some(state) = now.read(|| sources::state(source))? else { return Ok(()) };
    let (Some(sealed_before), Some((_, key))) = (state.sealed_before, partition_key(source)?) else { return Ok(()) };
    let mut child = partition;
    while let Some(parent) = tags::parent(child)?.filter(|parent| *parent != source) {
        child = parent;
    }
    let ranges = pg::range_partitions(source, key);
    // Not among the ranges is the default partition.
    let lower =
        ranges.iter().find(|bounds| bounds.partition == child).map_or(Timestamp::NEG_INFINITY, |b| b.range.lower);
    if lower >= sealed_before {
        return Ok(());
    }
    if child == partition && !catalog::has_trigger(partition, TRIGGER)? {
        create_trigger(partition)?;
    }
    if now.is_there(&format!("SELECT EXISTS (SELECT FROM ONLY {})", catalog::name_of(partition)?))? {
        pg::lock_refresh(sources::table()?, source, true);
        sources::unsettle(source, lower)?;
    }
    Ok(())
}

/// Where the planner need not look for new rows: see `pg/planned_bound.rs`. As the active snapshot has it.
pub(crate) fn settled_before(stored: Oid) -> Result<Option<Timestamp>> {
    Ok(sources::of_stored(stored)?.and_then(|found| found.settled_before))
}

/// Where no group has to be made anew: no change below has taken anything away, and no detached partition has come back.
pub(crate) fn unchanged_before(stored: Oid) -> Result<Option<Timestamp>> {
    here_and_now(&|| unchanged_before_here(stored))
}

fn unchanged_before_here(stored: Oid) -> Result<Option<Timestamp>> {
    let Some(found) = sources::of_stored(stored)?.filter(|found| !found.has_release) else { return Ok(None) };
    let (Some(before), Some((column, key))) = (found.settled_before, partition_key(found.source)?) else {
        return Ok(None);
    };
    let query = sql::has_removal_before(&catalog::name_of(found.log)?, &Settled { column, key, before });
    Ok(is_false(&found, &query)?.then_some(before))
}

/// The same of a rollup that takes rows out of its groups again: there only upheavals count, wherever they are.
pub(crate) fn calm_before(stored: Oid) -> Result<Option<Timestamp>> {
    here_and_now(&|| calm_before_here(stored))
}

/// What holds in the active snapshot, and for whoever looks now: a plan that is made in an old snapshot is kept for later ones, and
/// nobody tells it again what had been changed before it was made.
fn here_and_now(find: &dyn Fn() -> Result<Option<Timestamp>>) -> Result<Option<Timestamp>> {
    if pg::is_read_committed() {
        return find();
    }
    // With an id, statements of such a transaction look at its own snapshot only.
    if pg::own_xid().is_some() {
        return Ok(None);
    }
    Ok(match (find()?, pg::Snapshot::newest().read(find)?) {
        (Some(here), Some(now)) => Some(here.min(now)),
        _ => None,
    })
}

fn calm_before_here(stored: Oid) -> Result<Option<Timestamp>> {
    let Some(found) = sources::of_stored(stored)?.filter(|found| !found.has_release) else { return Ok(None) };
    let query = sql::has_upheaval(&catalog::name_of(found.log)?);
    Ok(is_false(&found, &query)?.then_some(Timestamp::INFINITY))
}

/// Asks the change log, which only the owner of the source may read.
fn is_false(found: &sources::OfStored, query: &str) -> Result<bool> {
    let Some(owner) = pg::owner_of(found.log) else { return Ok(false) };
    pg::as_user(owner, || catalog::look_up_again::<bool>(query, &[])).map(|answer| answer == Some(false))
}

/// A step of `CALL tally.seal_partitions(source, before)`.
#[pg_extern(sql = false)]
fn tally_seal_some_partitions(source: Oid, before: TimestampWithTimeZone) -> std::result::Result<i32, ErrorReport> {
    Ok(seal_partitions(source, before)?)
}

fn seal_partitions(source: Oid, before: TimestampWithTimeZone) -> Result<i32> {
    version::require_writable()?;
    let name = catalog::name_of(source)?;
    if !sources::is_source_now(source)? {
        return Err(Error::new("42704", format!("{name} feeds no rollup"))
            .hint("Only partitions of a table that feeds rollups are sealed."));
    }
    catalog::require_owner(source)?;
    let Some((_, key)) = partition_key(source)? else {
        return Err(Error::new("22023", format!("{name} is not partitioned by a time that is NOT NULL"))
            .hint("Without partitions there is nothing to seal; refreshes find new rows by an index."));
    };
    if has_default(source)? {
        return Err(Error::new("55000", format!("{name} has a default partition, which may get rows of any time"))
            .hint("Move its rows into partitions of their own and drop it."));
    }
    let limit = tags::key_value(key, before)?;
    let _settings = pg::pin_settings();
    pg::lock_refresh(sources::table()?, source, true);
    Ok(seal(source, limit, key, &|_| Ok(true))?.sealed)
}
