//! Conversion: makes a plain table the first partition of a new partitioned table of its name. What comes next is decided in
//! `core/src/partition/conversion.rs`; here it is done, one step per transaction. Whoever uses the table waits for two of them, each as
//! short as its commit, whose lock is tried and not queued for.

mod definitions;
mod functions;
mod plan;
mod script;
mod table;
mod undo;

use super::locks::{self, Attempt};
use super::retention::{Progress, Statement};
use super::{Plan, facts, register, with_fixed_settings};
use crate::catalog::conversions::{self, Row};
use crate::catalog::{self, sources};
use crate::error::{Error, Result, spi};
use crate::jobs::{self, Kind};
use crate::pg::relation::{self, Mode};
use crate::pg::{self, Oid, process};
use crate::{tags, version};
use pgrx::prelude::*;
use std::time::{Duration, Instant};
use table::Table;
use tally_core::bucket::Timestamp;
use tally_core::ident::QualifiedName;
use tally_core::partition::conversion::{self, CHECK, Made, Refusal, State, Step};
use tally_core::partition::{Key, check};
use tally_core::rollup::definition::TAG;

/// About how long to wait before looking again whether somebody is still in the way.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the locks of the swap are tried in one run.
const TRIES: u32 = 100;
/// How long the lock on the table is queued for, where transactions overlap all the time and all of them are short: others wait for
/// as long as that, and for the swap.
const QUEUE: Duration = Duration::from_millis(20);
/// How long the swap may take under its locks when it is tried for the first time.
const LONGEST_SWAP: Duration = Duration::from_millis(50);
/// The job looks so often by itself; while it waits for somebody, it looks more often.
const EVERY: Duration = Duration::from_secs(60);

/// Reads a table that is to be converted, and what is in the way.
fn examine(oid: Oid, row: &mut Row) -> Result<(Option<Table>, Vec<Error>)> {
    // First of all what does not depend on the table.
    check::policy(Key::Instant, &row.policy.request)?;
    row.policy.time_zone = facts::time_zone(&row.policy.time_zone)?;
    let (table, mut refusals) = table::read(oid, &row.time_column, row.widen_keys)?;
    let Some(table) = table else { return Ok((None, refusals)) };
    row.boundary = boundary(&table, row)?;
    if refusals.is_empty() {
        let boundary = table::typed_bound(table.key, row.boundary);
        refusals.extend(table.misplaced(&boundary)?.into_iter().map(Error::from));
    }
    Ok((Some(table), refusals))
}

fn boundary(table: &Table, row: &Row) -> Result<Timestamp> {
    let plan = Plan::new(table.key, &row.policy)?;
    let grid = table.key.grid(plan.policy.width, &plan.zone);
    Ok(conversion::boundary(&grid, plan.policy.width.longest(), plan.now(), table.bytes, table.narrow.len()))
}

/// Begins a conversion.
fn begin(oid: Oid, mut row: Row) -> Result<()> {
    version::require_writable()?;
    let facts = facts::read(oid)?;
    table::require_owned(&facts)?;
    if conversions::get(oid)?.is_some() {
        return Err(Refusal::UnderWay { table: facts.set.table }.into());
    }
    let (_, refusals) = with_fixed_settings(None, || examine(oid, &mut row))?;
    if let Some(refusal) = refusals.into_iter().next() {
        return Err(refusal);
    }
    conversions::insert(oid, &row)?;
    jobs::schedule(Kind::Conversion, oid, EVERY)?;
    jobs::hasten(Kind::Conversion, oid)
}

/// Ends a conversion that has not been swapped yet; what cannot be dropped at once is dropped by the job.
fn cancel(oid: Oid) -> Result<()> {
    version::require_writable()?;
    let facts = facts::read(oid)?;
    table::require_owned(&facts)?;
    match conversions::get(oid)? {
        Some(row) if row.state != State::Swapped => {}
        _ => {
            return Err(Error::new("55000", format!("table {} is not being converted", facts.set.table)).hint(
                "SELECT * FROM tally.conversions; lists what is. After the swap: SELECT tally.undo_conversion(..).",
            ));
        }
    }
    let claimed = conversions::claim(oid, true)?;
    if claimed.as_ref().is_none_or(|row| row.state == State::Swapped) {
        return Err(Error::new("55000", format!("table {} has just been converted", facts.set.table))
            .hint("SELECT tally.undo_conversion(..);"));
    }
    conversions::set_state(oid, State::Cancelling, None)?;
    // An index that has been asked for and is not there yet would come too late to be dropped.
    let is_about_to_build = match claimed.filter(|row| row.note.is_some()) {
        Some(row) => table::read(oid, &row.time_column, true)?.0.is_some_and(|table| {
            table.narrow.iter().any(|key| row.note == Some(building(&key.wide)) && key.made == Made::Missing)
        }),
        None => false,
    };
    let is_free = || Ok(pg::try_access_exclusive(&[oid], 20, Duration::from_millis(10)));
    if !is_about_to_build {
        with_fixed_settings(None, || drop_all(oid, &facts, &is_free))?;
    }
    if conversions::get(oid)?.is_some() {
        notice!("the table is in use: the job drops the constraint and the indexes as soon as it can");
        jobs::hasten(Kind::Conversion, oid)?;
    }
    Ok(())
}

/// Takes the next step of the conversion of a table, as its owner and in a transaction that has not written yet.
pub(crate) fn step(oid: Oid) -> Result<Progress> {
    version::require_writable()?;
    let Some(row) = conversions::get(oid)? else {
        jobs::unschedule(Kind::Conversion, oid)?;
        return Ok(Progress::default());
    };
    with_fixed_settings(None, || take(oid, row))
}

fn take(oid: Oid, mut row: Row) -> Result<Progress> {
    if let (State::Swapped, Some(parent)) = (row.state, row.parent) {
        return finish(oid, parent, &row);
    }
    let (table, refusals) = table::read(oid, &row.time_column, row.widen_keys)?;
    if row.state == State::Cancelling {
        let facts = facts::read(oid)?;
        return match drop_all(oid, &facts, &|| lock(&[oid]))? {
            true => Ok(Progress::default()),
            false => wait(oid, &row, vec![oid]),
        };
    }
    // Somebody may have changed the table meanwhile.
    let table = match (table, refusals.into_iter().next()) {
        (Some(table), None) => table,
        (_, Some(refusal)) => return Err(refusal),
        (None, None) => return Err(Error::new("XX000", "a table without a column of time")),
    };
    let plan = Plan::new(table.key, &row.policy)?;
    let is_late = plan.now() >= row.boundary.minus(plan.policy.width.longest());
    let made: Vec<_> = table.narrow.iter().map(|key| key.made).collect();
    let name = &table.facts.name;
    let next = conversion::next(row.state, table::made_check(oid)?, &made, is_late);
    // Who cancels it waits for the end of this transaction, and then finds what it has made; who has just cancelled it is not overrun.
    // A validation takes too long for that, and makes nothing.
    if next != Step::Validate && conversions::claim(oid, false)?.is_none_or(|claimed| claimed.state != row.state) {
        return Ok(Progress { pause: Some(PAUSE), ..Progress::default() });
    }
    match next {
        Step::AddCheck => {
            // The time that was estimated counts from here.
            row.boundary = boundary(&table, &row)?;
            if !lock(&[oid])? {
                return wait(oid, &row, vec![oid]);
            }
            run(&table, &[table.add_check(row.boundary)])?;
            conversions::set_boundary(oid, row.boundary)?;
        }
        Step::Validate => {
            run(&table, &[format!("ALTER TABLE {name} VALIDATE CONSTRAINT {CHECK}")])?;
        }
        Step::DropIndex(at) => {
            return Ok(at_top_level(format!("DROP INDEX CONCURRENTLY {}", table.narrow[at].wide)));
        }
        Step::BuildIndex(at) => {
            conversions::set_note(oid, &row, &building(&table.narrow[at].wide))?;
            return Ok(at_top_level(table.narrow[at].build.clone()));
        }
        Step::Swap => return swap(oid, &row),
        Step::StartOver => {
            if !lock(&[oid])? {
                return wait(oid, &row, vec![oid]);
            }
            run(&table, &[format!("ALTER TABLE {name} DROP CONSTRAINT IF EXISTS {CHECK}")])?;
            row.boundary = boundary(&table, &row)?;
            conversions::set_boundary(oid, row.boundary)?;
            log!("tally starts the conversion of {name} over: it was not done one width before the boundary");
        }
        Step::Register | Step::Cancel => {}
    }
    Ok(Progress { more: true, ..Progress::default() })
}

/// The note of a record whose job builds this index.
fn building(index: &QualifiedName) -> String {
    format!("builds index {index}")
}

fn at_top_level(sql: String) -> Progress {
    Progress {
        more: true,
        statement: Some(Statement { sql, lock_timeout: None, charged: vec![], only_waits: false }),
        ..Progress::default()
    }
}

fn run(table: &Table, statements: &[String]) -> Result<()> {
    pg::as_user(table.facts.owner, || statements.iter().try_for_each(|statement| Spi::run(statement))).map_err(spi)
}

/// Tries to lock tables in ACCESS EXCLUSIVE, the first of them as the one that many use. False: somebody has had one for longer than
/// a second, and there is no use in asking.
fn lock(tables: &[Oid]) -> Result<bool> {
    for attempt in 0..TRIES {
        if pg::try_access_exclusive(tables, 1, Duration::ZERO) {
            locks::hold_since(Instant::now());
            relation::begin_writing();
            return Ok(true);
        }
        // The first moments are the best ones to find out that it is hopeless.
        if attempt % 20 == 5 && !holders(tables, true)?.is_empty() {
            return Ok(false);
        }
        relation::pause(2 + u64::from(attempt * 7 % 13));
    }
    if !holders(tables, true)?.is_empty() {
        return Ok(false);
    }
    relation::begin_writing();
    match locks::ask(tables[0], Mode::AccessExclusive, QUEUE)? {
        Attempt::Done(()) => Ok(pg::try_access_exclusive(&tables[1..], 5, Duration::from_millis(2))),
        _ => Ok(false),
    }
}

/// Who holds locks on the tables; only transactions that are older than a second, or prepared.
fn holders(tables: &[Oid], only_old: bool) -> Result<String> {
    let wanted: Vec<_> = tables.iter().map(|table| (*table, Mode::AccessExclusive)).collect();
    locks::holders(&wanted, only_old)
}

/// Notes who is in the way.
fn wait(oid: Oid, row: &Row, tables: Vec<Oid>) -> Result<Progress> {
    let named: Vec<(Oid, String)> = tables.iter().map(|table| (*table, String::new())).collect();
    if let Some((table, _)) = locks::used_up(&named)? {
        conversions::set_note(oid, row, &locks::why_put_off(table)?)?;
        return Ok(Progress { pause: Some(locks::pause_of_put_off()), ..Progress::default() });
    }
    let who = holders(&tables, false)?;
    conversions::set_note(
        oid,
        row,
        &format!("waits for {}", if who.is_empty() { "a lock on the table" } else { &who }),
    )?;
    Ok(Progress::later(PAUSE))
}

/// Makes the table the first partition of a new table of its name.
fn swap(oid: Oid, row: &Row) -> Result<Progress> {
    let is_source = sources::is_source(oid)?;
    if is_source && !pg::lock_refresh(sources::table()?, oid, false) {
        conversions::set_note(oid, row, "waits for a refresh of its rollups")?;
        return Ok(Progress::later(PAUSE));
    }
    // Nobody can change the table from here on, and nobody who reads it or writes to it notices.
    if !relation::try_lock(oid, Mode::ShareUpdateExclusive) {
        return wait(oid, row, vec![oid]);
    }
    relation::begin_writing();
    let (table, refusals) = table::read(oid, &row.time_column, row.widen_keys)?;
    if let Some(refusal) = refusals.into_iter().next() {
        return Err(refusal);
    }
    let Some(table) = table else { return Err(Error::new("XX000", "the table is no table any more")) };
    let is_source = sources::is_source_now(oid)?;
    let partition = script::partition_name(&table.facts, row.boundary);
    let script = script::swap(&table, &partition, row.boundary, is_source)?;
    let statements: Vec<String> = script.into_iter().map(|line| line.sql).collect();
    run(&table, &[script::rehearsal(&table)?])?;
    let tables = table.locked_by_swap()?;
    if !lock(&tables)? {
        return wait(oid, row, tables);
    }
    let locked = Instant::now();
    // But for what needs no lock on it: views, and uses of its row type.
    if table.locked_by_swap()? != tables || !table::dependents(&table.facts)?.is_empty() {
        return Ok(Progress { more: true, ..Progress::default() });
    }
    // On a machine that is too busy just now, nobody is to wait for it: all of this is taken back, and another time is better. The
    // longer it has been tried, the longer it may take.
    let tried = process::clock().since(row.changed_at).max(0).cast_unsigned();
    let most = LONGEST_SWAP + Duration::from_micros(tried / 10_000);
    for statement in &statements {
        run(&table, std::slice::from_ref(statement))?;
        if locked.elapsed() > most {
            return Err(Error::new("55P03", format!("the swap of {} takes longer than {most:?}", table.facts.name)));
        }
    }
    conversions::set_state(oid, State::Swapped, Some(catalog::oid_of(&table.facts.name)?))?;
    log!(
        "tally has made {} a partitioned table, which took {:.1} ms under its lock; the rows are in {partition}",
        table.facts.name,
        locked.elapsed().as_secs_f64() * 1e3
    );
    Ok(Progress { more: true, ..Progress::default() })
}

/// Gives the new set its policy, and forgets the conversion.
fn finish(oid: Oid, parent: Oid, row: &Row) -> Result<Progress> {
    register(parent, row.policy.clone())?;
    conversions::delete(oid)?;
    jobs::unschedule(Kind::Conversion, oid)?;
    Ok(Progress::default())
}

/// Drops what a conversion has made, and forgets it, if the table can be locked. Returns whether it could.
fn drop_all(oid: Oid, facts: &facts::Facts, lock: &dyn Fn() -> Result<bool>) -> Result<bool> {
    if !lock()? {
        return Ok(false);
    }
    relation::begin_writing();
    let indexes: Vec<String> = facts::rows(
        "SELECT format('DROP INDEX %s', i.oid::regclass) FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid \
          WHERE x.indrelid = $1 AND i.relname LIKE '%\\_tally\\_wide' ORDER BY 1",
        &[oid.into()],
        |row| facts::text(row, 1),
    )?;
    let check = format!("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {CHECK}", facts.name);
    pg::as_user(facts.owner, || indexes.iter().chain([&check]).try_for_each(|statement| Spi::run(statement)))
        .map_err(spi)?;
    conversions::delete(oid)?;
    jobs::unschedule(Kind::Conversion, oid)?;
    Ok(true)
}

/// The rollups of the one table are those of the other from now on.
fn move_rollups(source: Oid, target: Oid) -> Result<()> {
    version::require_writable()?;
    for table in [source, target] {
        catalog::require_owner(table)?;
    }
    if pg::owner_of(source) != pg::owner_of(target) {
        return Err(Error::new("42501", "the tables belong to different roles"));
    }
    // A table that is about to have the rows has their tags already.
    if !sources::is_source(source)? || sources::is_source(target)? || !tags::has_column(target, TAG)? {
        return Err(Error::new(
            "55000",
            format!(
                "the rollups of {} cannot become those of {}",
                catalog::name_of(source)?,
                catalog::name_of(target)?
            ),
        )
        .hint("This function is a part of conversions: SELECT tally.convert_to_partitioned(..)."));
    }
    let table = sources::table()?;
    if !pg::lock_refresh(table, source, false) || !pg::lock_refresh(table, target, false) {
        return Err(Error::new("55P03", "a refresh of the rollups is under way").hint("Try again."));
    }
    sources::move_to(source, target)
}

/// Forgets what is known of tables that were dropped.
pub(super) fn forget_dropped() -> Result<()> {
    for table in conversions::delete_dropped()? {
        jobs::unschedule(Kind::Conversion, table)?;
    }
    Ok(())
}
