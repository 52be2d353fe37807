//! Rows that come or go without a row trigger: TRUNCATE, and partitions that bring rows along or take them away.

use crate::catalog::rollups::Rollup;
use crate::catalog::{self, builds, departures, retirements, rollups, sources};
use crate::error::{Error, Result, spi};
use crate::pg::relation::Mode;
use crate::pg::{self, Oid, Snapshot};
use crate::{refresh, seal, tags};
use pgrx::prelude::*;
use tally_core::ident::{QualifiedName, quote};
use tally_core::partition::retention::State;
use tally_core::rollup::definition::{Definition, SIGN, TAG, WRITER};
use tally_core::rollup::sql::{self, Member, Relations};
use tally_core::snapshot::{self, BEFORE_TRACKING};

/// A table is about to be truncated. With a whole source its rollups become empty at once, as the table does; of a partition
/// every row is logged.
pub(crate) fn follow_truncate(table: Oid) -> Result<()> {
    let _settings = pg::pin_settings();
    let now = Snapshot::latest();
    if now.read(|| sources::is_source(table))? {
        let rollups = now.read(|| rollups::of_source(table))?;
        let stored = rollups.iter().map(|rollup| rollup.stored);
        let log = now.read(|| sources::log_of(table))?;
        let emptied: Vec<String> = stored
            .chain(log)
            .map(|relation| catalog::name_of(relation).map(|name| name.to_string()))
            .collect::<Result<_>>()?;
        let owner = pg::owner_of(table).ok_or_else(|| Error::new("42P01", "the table does not exist"))?;
        return pg::as_user(owner, || {
            Spi::run(&format!("TRUNCATE {}", emptied.join(", "))).map_err(spi)?;
            for rollup in &rollups {
                Spi::run(&sql::restore_retained(&rollup.definition, &rollup.relations()?)).map_err(spi)?;
            }
            Ok(())
        });
    }
    // Rows of a source that is truncated as a whole are not in its groups any more: they cannot be subtracted.
    if is_any_known(table, &now)? { log_rows(table, 0, &now) } else { Ok(()) }
}

/// Has any rollup of the source of this partition a group, or its change log a row that no refresh has counted? When a source is
/// truncated, its partitions come after it, and there is neither.
fn is_any_known(partition: Oid, now: &Snapshot) -> Result<bool> {
    let Some(source) = now.read(|| sources::source_of(partition))? else { return Ok(false) };
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))?;
    let stored = now.read(|| rollups::of_source(source))?.into_iter().map(|rollup| rollup.stored);
    for relation in stored.chain(now.read(|| sources::log_of(source))?) {
        let statement = format!("SELECT EXISTS (SELECT FROM {})", catalog::name_of(relation)?);
        if pg::as_user(owner, || now.is_there(&statement))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A partition has come to a source, with rows that no trigger has seen.
fn follow_attach(partition: Oid) -> Result<()> {
    catalog::require_owner(partition)?;
    let _settings = pg::pin_settings();
    let now = Snapshot::latest();
    let name = catalog::name_of(partition)?;
    let next = snapshot::tag(tags::incarnation()?.number.cast_unsigned(), pg::next_xid())?;
    if now.is_there(&sql::has_row_from_the_future(&name, next, None))? {
        return Err(snapshot::Error::CopiedFromTheFuture { source: name.to_string() }.into());
    }
    if let Some(source) = now.read(|| sources::source_of(partition))? {
        departures::release(source, partition)?;
        if now.read(|| sources::leaving(source))?.contains(&partition) {
            sources::forget_leaving(source, partition)?;
        }
        seal::follow_arrival(source, partition)?;
    }
    log_rows(partition, 1, &now)
}

/// Partitions are about to leave their source, each with its own partitions: their rows stay counted. Whoever may not do that
/// to them will be told so by the command.
pub(crate) fn follow_departure(partition: Oid, is_drop: bool) -> Result<()> {
    let _settings = pg::pin_settings();
    let parent_and_source = || -> Result<_> { Ok((tags::parent(partition)?, sources::source_of(partition)?)) };
    let (Some(parent), Some(source)) = parent_and_source()? else { return Ok(()) };
    // Rollups of the partition itself go along with it.
    if source == partition {
        return Ok(());
    }
    if !(pg::owns(source) || is_drop && pg::owns(partition)) {
        return Ok(());
    }
    // In the order of a refresh, and then in that of the command.
    pg::lock_refresh(sources::table()?, source, true);
    pg::lock_access_exclusive(parent);
    for table in tags::partition_tree(partition)? {
        pg::lock_access_exclusive(table);
    }
    let now = Snapshot::latest();
    if now.read(parent_and_source)? != (Some(parent), Some(source)) {
        return Ok(());
    }
    let Some(state) = now.read(|| sources::state(source))? else { return Ok(()) };
    let Some(log) = now.read(|| sources::log_of(source))? else { return Ok(()) };
    let rollups = now.read(|| rollups::of_source(source))?;
    let relations = now.read(|| rollups.iter().map(rollups::Rollup::relations).collect::<Result<Vec<_>>>())?;
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))?;
    let time = tags::time_column(source, None)?.map(|time| time.name);
    let is_building = now.read(|| builds::is_any(source))?;
    let leaves = tags::leaves(partition)?;
    let leaving = now.read(|| sources::leaving(source))?;
    for table in tags::partition_tree(partition)? {
        let name = catalog::name_of(table)?;
        if leaving.contains(&table) {
            // Retention has retained its rows already.
            sources::forget_leaving(source, table)?;
        } else if !leaves.contains(&table) {
            departures::insert(source, table)?;
        } else {
            retain_table(source, table, time.as_ref(), &refresh::families(&rollups, &relations), owner)?;
            // The stored groups lack these rows, and the next refresh will not find them any more.
            let uncounted = format!(" WHERE NOT {}", state.counted.is_counted(&format!("r.{TAG}")));
            let condition = if is_building { "" } else { &uncounted };
            log_each(table, log, &BEFORE_TRACKING.to_string(), 0, condition, &now)?;
        }
        if !is_drop {
            let drop = format!("DROP TRIGGER tally_truncate ON {name}");
            pg::as_user(owner, || Spi::run(&drop)).map_err(spi)?;
            pg::as_user(owner, || catalog::drop_trigger(table, seal::TRIGGER))?;
        }
    }
    Ok(())
}

/// DETACH CONCURRENTLY of this partition may begin if it takes nothing from a rollup. It commits before it ends, so nothing can be
/// retained along the way.
pub(crate) fn require_retained(partition: Oid) -> Result<()> {
    let (Some(parent), Some(source)) = (tags::parent(partition)?, sources::source_of(partition)?) else {
        return Ok(());
    };
    // Whoever creates a rollup, or brings the partition back, holds a lock on the parent that conflicts; the command takes this one.
    pg::relation::lock(parent, Mode::ShareUpdateExclusive);
    if Snapshot::latest().read(|| sources::leaving(source))?.contains(&partition) {
        let record = Snapshot::latest().read(|| retirements::find(parent, partition))?;
        if record.is_some_and(|record| record.state == State::Detaching) {
            return Ok(());
        }
        let name = catalog::name_of(partition)?;
        return Err(Error::new("55000", format!("retention is not ready to detach {name}"))
            .detail("A snapshot that does not know what the rollups keep of it would miss its rows in them.")
            .hint("tally.retirements says what retention waits for; once the state is detaching, this command may be given."));
    }
    Err(Error::new("55000", "DETACH CONCURRENTLY would take rows from rollups: the table feeds some")
        .detail("It commits before it ends, and the rollups would lose rows that come in between.")
        .hint("Give the set a retention, whose job detaches without stopping anybody, or use DETACH without CONCURRENTLY at a quiet moment."))
}

/// A partition is about to leave by DETACH CONCURRENTLY, which gives no moment at which its rows go and its retained groups come. So
/// they are retained now, with all of its rows counted and none of them changing any more, and from the commit of this transaction on
/// nobody reads them in the table when groups are made anew. The caller holds the refresh lock. Returns the number of the departure.
pub(crate) fn retain_ahead(source: Oid, partition: Oid, owner: Oid) -> Result<i64> {
    let rollups = rollups::of_source(source)?;
    let relations = rollups.iter().map(Rollup::relations).collect::<Result<Vec<_>>>()?;
    let time = tags::time_column(source, None)?.map(|time| time.name);
    let departure = retain_table(source, partition, time.as_ref(), &refresh::families(&rollups, &relations), owner)?;
    sources::note_leaving(source, partition)?;
    Ok(departure)
}

/// Keeps the groups of the partitions that are about to leave for a rollup that is being made: their rows are not read when its groups
/// are. Answers the numbers of their departures.
pub(crate) fn retain_leaving(source: Oid, definition: &Definition, relations: &Relations) -> Result<Vec<i64>> {
    let owner = pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))?;
    let time = tags::time_column(source, None)?.map(|time| time.name);
    let leaving = leaving_seen(source)?;
    for (partition, departure) in &leaving {
        let times = times_in(*partition, time.as_ref(), owner)?;
        let statement = sql::retain_table(definition, relations, partition.to_u32(), times.as_ref(), *departure);
        pg::as_user(owner, || Snapshot::latest().execute::<0>(&statement))?;
    }
    Ok(leaving.into_iter().map(|(_, departure)| departure).collect())
}

/// The partitions that are about to leave and whose rows can be seen, which stays so until the end of the transaction: a DETACH
/// CONCURRENTLY that has begun and not committed for the first time is waited for. The caller holds the refresh lock.
pub(crate) fn leaving_seen(source: Oid) -> Result<Vec<(Oid, i64)>> {
    if Snapshot::latest().read(|| departures::leaving(source))?.is_empty() {
        return Ok(vec![]);
    }
    pg::relation::lock(source, Mode::ShareUpdateExclusive);
    Snapshot::latest().read(|| departures::leaving(source))
}

/// Keeps the groups of the rows of a table itself.
fn retain_table(source: Oid, table: Oid, time: Option<&String>, families: &[Vec<Member>], owner: Oid) -> Result<i64> {
    let departure = departures::insert(source, table)?;
    let times = times_in(table, time, owner)?;
    let rows = |member: &Member| {
        sql::retain_table(member.definition, member.relations, table.to_u32(), times.as_ref(), departure)
    };
    retain(&rows, departure, families, owner)?;
    Ok(departure)
}

/// Keeps the groups of rows that leave, for every rollup: `from_rows` is the statement for one whose groups do not come from a
/// rollup below.
pub(crate) fn retain(
    from_rows: &dyn Fn(&Member) -> String,
    departure: i64,
    families: &[Vec<Member>],
    owner: Oid,
) -> Result<()> {
    for family in families {
        for member in family {
            let below = member.below.and_then(|below| family.get(below));
            let gathered = below.and_then(|below| {
                let below = (below.definition, below.relations);
                sql::retain_from_below(member.definition, member.relations, below, departure)
            });
            let statement = gathered.unwrap_or_else(|| from_rows(member));
            pg::as_user(owner, || Snapshot::latest().execute::<0>(&statement))?;
        }
    }
    Ok(())
}

fn times_in(table: Oid, time: Option<&String>, owner: Oid) -> Result<Option<(String, String)>> {
    let Some(time) = time else { return Ok(None) };
    let name = catalog::name_of(table)?;
    pg::as_user(owner, || times_of(&name, time))
}

/// The first and the last time in a table, unless it is empty or has rows without a time.
fn times_of(table: &QualifiedName, time: &str) -> Result<Option<(String, String)>> {
    let time = quote(time);
    let query = format!(
        "SELECT CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.=) pg_catalog.count({time}) THEN pg_catalog.min({time}) END::text, \
         pg_catalog.max({time})::text FROM ONLY {table}"
    );
    let (first, last) = Spi::get_two::<String, String>(&query).map_err(spi)?;
    Ok(first.zip(last))
}

/// Logs every row of a partition itself, without its own partitions. The caller's statement holds a lock that keeps writers out.
fn log_rows(partition: Oid, sign: i16, now: &Snapshot) -> Result<()> {
    let Some(log) = now.read(|| sources::log_of(partition))? else { return Ok(()) };
    log_each(partition, log, &format!("r.{TAG}"), sign, "", now)
}

/// Logs the rows `r` of a table itself that meet a condition, with the given tag.
fn log_each(table: Oid, log: Oid, tag: &str, sign: i16, condition: &str, now: &Snapshot) -> Result<()> {
    let (name, log_name) = (catalog::name_of(table)?, catalog::name_of(log)?);
    let owner = pg::owner_of(log).ok_or_else(|| Error::new("42P01", format!("{log_name} does not exist")))?;
    let columns: Vec<String> = now.read(|| tags::log_columns(log))?.iter().map(|column| quote(column)).collect();
    let list = |alias: &str| columns.iter().map(|column| format!(", {alias}{column}")).collect::<String>();
    let statement = format!(
        "INSERT INTO {log_name} ({WRITER}, {TAG}, {SIGN}{}) \
         SELECT tally.row_tag(), {tag}, {sign}{} FROM ONLY {name} AS r{condition}",
        list(""),
        list("r.")
    );
    pg::as_user(owner, || now.execute::<0>(&statement))?;
    // Plans may have been made without the rows of these groups.
    pg::invalidate_plans(log);
    Ok(())
}

#[pg_extern(sql = false)]
fn tally_follow_attach(partition: Oid) -> std::result::Result<(), pgrx::pg_sys::panic::ErrorReport> {
    Ok(follow_attach(partition)?)
}
