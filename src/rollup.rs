//! The SQL verbs for rollups: create, alter, drop, and what follows when their relations are dropped by hand.

mod parts;
mod plan;

use crate::catalog::rollups::{self, Rollup};
use crate::catalog::{self, aggregates, builds, departures, retirements, sources};
use crate::error::{Error, Result, spi};
use crate::jobs;
use crate::pg::{self, Oid, Snapshot};
use crate::{build, changes, refresh, settings, tags, version};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use plan::Plan;
use std::cell::Cell;
use std::time::{Duration, Instant};
use tally_core::ident::{QualifiedName, literal};
use tally_core::rollup::definition::{Column, OwnAggregate};
use tally_core::rollup::sql::{self, Build, Relations};
use tally_core::snapshot::Counted;

/// The longest pause between two refreshes that makes sense for a worker.
const LONGEST_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

#[pg_extern(sql = false)]
fn tally_create_rollup(
    name: &str,
    definition: &str,
    refresh_interval: Interval,
) -> std::result::Result<Oid, ErrorReport> {
    Ok(create(name, definition, refresh_interval)?)
}

fn create(name: &str, definition: &str, refresh_interval: Interval) -> Result<Oid> {
    refresh::require_read_committed()?;
    check_interval(&refresh_interval)?;
    let public = qualify(name)?;
    let mut plan = Plan::of(definition, &public, settings::sketches_of_new_rollup())?;
    let source = plan.source;
    catalog::require_owner(source)?;
    parts::require_free_names(&public)?;
    let _settings = pg::pin_settings();
    let started = Instant::now();
    // The lock comes before the snapshot, as in a tick; for a new source there is nobody to meet.
    pg::lock_refresh(sources::table()?, source, true);
    let is_tracked = sources::is_source_now(source)?;
    let log = if is_tracked { sources::log_now(source)? } else { tags::track(source, &plan.table()?)? };
    let [rows, changes, stored, retained] = parts::names(&public);
    let source_name = catalog::name_of(source)?;
    let log_name = catalog::name_of(log)?;
    let relations = Relations { source: source_name, public, rows, changes, stored, retained, log: log_name };
    plan.lay_out(&relations)?;
    plan.create_inputs(&relations, log)?;
    plan.create_retained(&relations)?;
    plan.create_changes(&relations)?;
    let slices = plan.slices()?;
    let build = if slices.is_some() { Build::Running } else { Build::AtOnce };
    run(&sql::create_public_view(&plan.columns, &relations, build))?;
    parts::describe(&relations)?;
    parts::give_to_owner(source, &relations, &plan.columns.aggregates)?;

    let now = Snapshot::take();
    let counted = if is_tracked {
        catch_up(source, &now, started)?
    } else {
        let counted = refresh::counted_by(&now)?;
        sources::insert(source, log, &counted)?;
        counted
    };
    let owner = owner_of(source)?;
    let below = plan.below_relations.as_ref().zip(plan.base.as_ref());
    let below = below.map(|(relations, base)| (&base.rollup.definition, relations));
    let gathered = below.and_then(|below| sql::build_retained(&plan.columns, &relations, below));
    let departures = match &gathered {
        Some(retained) => {
            pg::as_user(owner, || now.execute::<0>(retained))?;
            changes::leaving_seen(source)?.into_iter().map(|(_, departure)| departure).collect()
        }
        None => changes::retain_leaving(source, &plan.columns, &relations)?,
    };
    // The groups below may have got theirs from this transaction, which sees that.
    let first = match slices {
        Some(_) => sql::restore_retained(&plan.columns, &relations),
        None if gathered.is_some() || departures.is_empty() => sql::build(&plan.columns, &relations, &counted, below),
        None => sql::rebuild(&plan.columns, &relations, &counted, None)[1].clone(),
    };
    pg::as_user(owner, || now.execute::<0>(&first))?;
    plan.create_indexes(&relations)?;
    let query = plan.query(&relations);
    let rollup = plan.into_rollup(&relations, log)?;
    rollups::insert(&rollup, &query, refresh_interval)?;
    departures.iter().try_for_each(|departure| retirements::add_rollup(*departure, rollup.rollup))?;
    begin_build(&rollup, &relations, slices)?;
    schedule(source)?;
    Ok(rollup.rollup)
}

/// Brings the other rollups of the source along, since its state is one, and answers the state.
fn catch_up(source: Oid, now: &Snapshot, started: Instant) -> Result<Counted> {
    let state = now.read(|| sources::state(source))?.ok_or_else(|| Error::new("XX000", "the source has no state"))?;
    let counted = match refresh::advance(source, &state, now)? {
        None => state.counted,
        Some((state, report)) => {
            sources::advance(source, &state, &report, started.elapsed())?;
            state.counted
        }
    };
    // The snapshot sees transactions that began after this one and have ended; they are not counted, and what is made of the rows has
    // their changes all the same.
    let log =
        now.read(|| sources::log_of(source))?.ok_or_else(|| Error::new("XX000", "the source has no change log"))?;
    let mark = sql::mark_uncounted(&catalog::name_of(log)?, &counted);
    pg::as_user(owner_of(source)?, || now.execute::<0>(&mark))?;
    pg::invalidate_plans(log);
    Ok(counted)
}

fn begin_build(rollup: &Rollup, relations: &Relations, slices: Option<build::Slices>) -> Result<()> {
    let Some(slices) = slices else { return Ok(()) };
    builds::insert(rollup.stored, slices.first_times, slices.rows)?;
    notice!(
        "{} is being built in slices, newest rows first; it is exact meanwhile (tally.rollup_status)",
        relations.public
    );
    Ok(())
}

fn owner_of(source: Oid) -> Result<Oid> {
    pg::owner_of(source).ok_or_else(|| Error::new("42P01", "the source does not exist"))
}

fn run(statement: &str) -> Result<()> {
    Spi::run(statement).map_err(spi)
}

#[pg_extern(sql = false)]
fn tally_alter_rollup(
    rollup: Option<Oid>,
    definition: Option<&str>,
    refresh_interval: Option<Interval>,
) -> std::result::Result<(), ErrorReport> {
    let rollup = rollup.ok_or_else(|| Error::new("22004", "the rollup must not be NULL"))?;
    if let Some(definition) = definition {
        redefine(rollup, definition)?;
    }
    if let Some(interval) = refresh_interval {
        set_interval(rollup, interval)?;
    }
    Ok(())
}

fn set_interval(rollup: Oid, interval: Interval) -> Result<()> {
    version::require_writable()?;
    check_interval(&interval)?;
    let source = rollups::source_of(rollup)?;
    catalog::require_owner(source)?;
    let _settings = pg::pin_settings();
    rollups::set_interval(rollup, interval)?;
    schedule(source)
}

/// Gives a rollup another definition: new columns behind the old ones, or other expressions. Its groups are counted anew, in slices
/// if they are many; the view reads the rows meanwhile.
fn redefine(rollup: Oid, definition: &str) -> Result<()> {
    refresh::require_read_committed()?;
    let source = rollups::source_of(rollup)?;
    catalog::require_owner(source)?;
    let public = catalog::name_of(rollup)?;
    let gone = || Error::new("42704", "the rollup has just been dropped by another session");
    // Those that are retained could not be united with others.
    let sketches = rollups::find(source, rollup)?.ok_or_else(gone)?.definition.sketches;
    let mut plan = Plan::of(definition, &public, sketches)?;
    let _settings = pg::pin_settings();
    let started = Instant::now();
    pg::lock_refresh(sources::table()?, source, true);
    let now = Snapshot::take();
    let old = now.read(|| rollups::find(source, rollup))?.ok_or_else(gone)?;
    if plan.source != source || plan.base.as_ref().map(|base| base.rollup.rollup) != old.below {
        return Err(Error::new("0A000", format!("rollup {public} cannot be changed to read something else"))
            .hint("Create another rollup, and drop this one when nobody reads it any more."));
    }
    if let Some(above) = rollups::above(rollup)? {
        return Err(feeds(&public.to_string(), above)?);
    }
    let relations = old.relations()?;
    plan.lay_out(&relations)?;
    let owner = owner_of(source)?;
    // Groups of partitions that are about to leave are made of their rows once more.
    for (_, departure) in changes::leaving_seen(source)? {
        pg::as_user(owner, || now.execute::<0>(&sql::forget_departure(&relations, departure)))?;
    }
    let has_retained = Snapshot::latest().is_there(&format!("SELECT EXISTS (SELECT FROM {})", relations.retained))?;
    plan.columns.is_altered = has_retained;
    if has_retained && let Some(what) = plan.columns.retained_differently(&old.definition) {
        return Err(Error::new("55000", format!("rollup {public} counts rows that have left its table, and {what} would miss them"))
            .hint("Leave keys, condition and present columns as they are, or create another rollup for the rows that are there."));
    }
    let counted = catch_up(source, &now, started)?;

    // The view stays, with its rights and whatever is defined on it; everything below it is made anew.
    let aside = parts::move_aside(&old, has_retained)?;
    plan.create_inputs(&relations, old.log)?;
    if has_retained {
        plan.widen_retained(&old.definition, &relations)?;
    } else {
        plan.create_retained(&relations)?;
    }
    plan.create_changes(&relations)?;
    let slices = plan.slices()?;
    let build = if slices.is_some() { Build::Running } else { Build::AtOnce };
    run(&sql::replace_public_view(&plan.columns, &relations, build))?;
    parts::describe(&relations)?;
    parts::give_to_owner(source, &relations, &plan.columns.aggregates)?;
    changes::retain_leaving(source, &plan.columns, &relations)?;
    let first = match slices {
        Some(_) => sql::restore_retained(&plan.columns, &relations),
        None => sql::rebuild(&plan.columns, &relations, &counted, None)[1].clone(),
    };
    pg::as_user(owner, || now.execute::<0>(&first))?;
    plan.create_indexes(&relations)?;
    let query = plan.query(&relations);
    let altered = plan.into_rollup(&relations, old.log)?;
    builds::delete(old.stored)?;
    rollups::update(&altered, &query)?;
    begin_build(&altered, &relations, slices)?;
    // The event trigger on drops finds nothing to look after.
    for statement in aside {
        run(&statement)?;
    }
    if has_retained { plan::narrow_retained(&old.definition, &altered, &relations) } else { Ok(()) }
}

#[pg_extern(sql = false)]
fn tally_add_aggregate(rollup: Oid, column_name: &str, expression: &str) -> std::result::Result<(), ErrorReport> {
    Ok(add_aggregate(rollup, column_name, expression)?)
}

fn add_aggregate(rollup: Oid, column_name: &str, expression: &str) -> Result<()> {
    // An older snapshot might not know the rollup.
    refresh::require_read_committed()?;
    let source = rollups::source_of(rollup)?;
    catalog::require_owner(source)?;
    let Some(entry) = rollups::find(source, rollup)? else {
        return Err(Error::new("42704", "the rollup does not exist"));
    };
    let from = catalog::name_of(entry.below.unwrap_or(source))?;
    let mut text = entry.definition.text.clone();
    // The view keeps the names that its columns have now.
    for (target, name) in text.targets.iter_mut().zip(rollups::visible_columns(rollup)?) {
        target.name = name;
    }
    text.targets.push(Column { name: column_name.into(), sql: expression.into() });
    redefine(rollup, &sql::definition_query(&from, &text))
}

fn check_interval(interval: &Interval) -> Result<()> {
    let whole = Duration::from_micros(u64::try_from(interval.micros()).unwrap_or(0));
    let sensible =
        interval.months() == 0 && interval.days() == 0 && whole >= Duration::from_secs(1) && whole <= LONGEST_INTERVAL;
    if sensible {
        return Ok(());
    }
    Err(Error::new("22023", "refresh_interval must be between 1 second and 24 hours")
        .hint("The view is exact at any time; the interval only says how much it has to add up when it is read."))
}

/// The name of the new view, in the first schema of the search path unless it names one.
fn qualify(name: &str) -> Result<QualifiedName> {
    let parts = Spi::get_one_with_args::<Vec<String>>("SELECT pg_catalog.parse_ident($1)", &[name.into()])
        .map_err(spi)?
        .unwrap_or_default();
    let qualified = match parts.as_slice() {
        [schema, name] => Ok(QualifiedName::new(schema, name)),
        [name] => {
            let schema = Spi::get_one::<String>("SELECT pg_catalog.current_schema()::text").map_err(spi)?;
            let schema = schema.ok_or_else(|| {
                Error::new("3F000", "no schema has been selected to create the rollup in")
                    .hint("SET search_path to an existing schema, or write schema.name.")
            })?;
            Ok(QualifiedName::new(schema, name))
        }
        _ => Err(Error::new("42602", format!("{name} is not a name of the form schema.name"))
            .hint("A rollup lives in this database; name its schema at most.")),
    }?;
    if qualified.schema.starts_with("pg_temp") {
        return Err(Error::new("0A000", "a rollup cannot be temporary")
            .hint("Name a permanent schema: other sessions and workers have to reach its groups."));
    }
    Ok(qualified)
}

/// One job refreshes all rollups of a source, as often as the most impatient of them asks.
fn schedule(source: Oid) -> Result<()> {
    match rollups::shortest_interval(source)? {
        Some(seconds) => jobs::schedule(jobs::Kind::Refresh, source, Duration::from_secs_f64(seconds)),
        None => jobs::unschedule(jobs::Kind::Refresh, source),
    }
}

#[pg_extern(sql = false)]
fn tally_drop_rollup(rollup: Oid) -> std::result::Result<(), ErrorReport> {
    Ok(drop_rollup(rollup)?)
}

fn drop_rollup(rollup: Oid) -> Result<()> {
    version::require_writable()?;
    let source = rollups::source_of(rollup)?;
    catalog::require_owner(source)?;
    let _settings = pg::pin_settings();
    pg::lock_refresh(sources::table()?, source, true);
    // Seen after the lock: other sessions may have made or dropped rollups of the source while this one waited for it.
    let all = Snapshot::take().read(|| rollups::of_source(source))?;
    let Some(entry) = all.iter().find(|entry| entry.rollup == rollup) else {
        return Err(Error::new("42704", "the rollup has just been dropped by another session"));
    };
    if let Some(above) = rollups::above(rollup)? {
        return Err(feeds(&catalog::name_of(rollup)?.to_string(), above)?);
    }
    let relations = entry.relations()?;
    let is_last = all.len() == 1;
    // The catalog first: the event trigger on drops then has nothing to look after.
    rollups::delete(rollup)?;
    builds::delete(entry.stored)?;
    if is_last {
        sources::delete(source)?;
    }
    run(&format!("DROP VIEW {}", relations.public))?;
    run(&format!("DROP VIEW {}", relations.changes))?;
    run(&format!("DROP VIEW {}", relations.rows))?;
    run(&format!("DROP TABLE {}, {}", relations.stored, relations.retained))?;
    drop_aggregates(&entry.definition.aggregates)?;
    if is_last {
        tags::untrack(source, &relations.source, entry.log)?;
    }
    schedule(source)
}

/// Drops those that are still there; nothing uses them any more.
fn drop_aggregates(aggregates: &[OwnAggregate]) -> Result<()> {
    for aggregate in aggregates {
        if let Some((owner, name)) = aggregates::find(aggregate)? {
            pg::as_user(owner, || Spi::run(&format!("DROP ROUTINE {name}"))).map_err(spi)?;
        }
    }
    Ok(())
}

/// A rollup cannot go before those that are defined on it.
fn feeds(below: &str, above: Oid) -> Result<Error> {
    let above = catalog::name_of(above)?;
    Ok(Error::new("2BP01", format!("rollup {above} is defined on {below}"))
        .hint(format!("Drop it first: SELECT tally.drop_rollup({});", literal(&above.to_string()))))
}

#[pg_extern(sql = false)]
fn tally_forget_dropped() -> std::result::Result<(), ErrorReport> {
    Ok(forget_dropped()?)
}

thread_local! {
    static IS_FORGETTING: Cell<bool> = const { Cell::new(false) };
}

/// This session looks after a drop by hand. What it drops on the way calls the event trigger again, which finds nothing to do then.
struct Forgetting;

impl Forgetting {
    fn begin() -> Option<Self> {
        (!IS_FORGETTING.replace(true)).then(|| Self)
    }
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        IS_FORGETTING.set(false);
    }
}

/// Does what [`drop_rollup`] would have done besides the drop by hand that has just happened.
fn forget_dropped() -> Result<()> {
    let Some(_forgetting) = Forgetting::begin() else { return Ok(()) };
    let _settings = pg::pin_settings();
    for orphan in rollups::orphans()? {
        rollups::delete(orphan.rollup)?;
        builds::delete(orphan.stored)?;
        for (kind, relation) in [
            ("VIEW", orphan.rollup),
            ("VIEW", orphan.changes),
            ("VIEW", orphan.rows),
            ("TABLE", orphan.stored),
            ("TABLE", orphan.retained),
        ] {
            if let Some(owner) = pg::owner_of(relation) {
                let drop = format!("DROP {kind} {}", catalog::name_of(relation)?);
                pg::as_user(owner, || Spi::run(&drop)).map_err(spi)?;
            }
        }
        drop_aggregates(&orphan.aggregates)?;
    }
    departures::delete_orphans()?;
    for (source, log) in sources::orphans()? {
        sources::delete(source)?;
        jobs::unschedule(jobs::Kind::Refresh, source)?;
        if let Some(owner) = pg::owner_of(source) {
            let name = catalog::name_of(source)?;
            pg::as_user(owner, || tags::untrack(source, &name, log))?;
        } else if let Some(owner) = pg::owner_of(log) {
            let drop = format!("DROP TABLE {}", catalog::name_of(log)?);
            pg::as_user(owner, || Spi::run(&drop)).map_err(spi)?;
        }
    }
    Ok(())
}

#[pg_extern(sql = false)]
fn tally_recompute_query(
    rollup: Option<Oid>,
    from_time: Option<TimestampWithTimeZone>,
    to_time: Option<TimestampWithTimeZone>,
) -> std::result::Result<String, ErrorReport> {
    let rollup = rollup.ok_or_else(|| Error::new("22004", "the rollup must not be NULL"))?;
    Ok(recompute_query(rollup, from_time, to_time)?)
}

/// The defining query, with the present names of the visible columns.
fn recompute_query(
    rollup: Oid,
    from_time: Option<TimestampWithTimeZone>,
    to_time: Option<TimestampWithTimeZone>,
) -> Result<String> {
    let source = rollups::source_of(rollup)?;
    let mut entry = rollups::of_source(source)?
        .into_iter()
        .find(|entry| entry.rollup == rollup)
        .ok_or_else(|| Error::new("42704", "the rollup does not exist"))?;
    for (target, name) in entry.definition.targets.iter_mut().zip(rollups::visible_columns(rollup)?) {
        target.name = name;
    }
    let range = bucket_range(&entry, from_time, to_time)?;
    let range = range.as_ref().map(|(first, before)| (first.as_str(), before.as_str()));
    Ok(sql::recomputed(&entry.definition, &entry.relations()?, range))
}

/// A range of buckets as text, open where nothing is given; None for all groups.
pub(crate) fn bucket_range(
    rollup: &Rollup,
    from_time: Option<TimestampWithTimeZone>,
    to_time: Option<TimestampWithTimeZone>,
) -> Result<Option<(String, String)>> {
    if from_time.is_none() && to_time.is_none() {
        return Ok(None);
    }
    if rollup.definition.time_key().is_none() {
        return Err(Error::new("22023", format!("rollup {} has no bucket of time", catalog::name_of(rollup.rollup)?))
            .hint("Leave from_time and to_time out."));
    }
    let _settings = pg::pin_settings();
    let range = Spi::connect(|client| {
        let query = "SELECT COALESCE($1::text, '-infinity'), COALESCE($2::text, 'infinity')";
        client.select(query, Some(1), &[from_time.into(), to_time.into()])?.first().get_two::<String, String>()
    });
    let (first, before) = range.map_err(spi)?;
    Ok(first.zip(before))
}
