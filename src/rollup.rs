//! The SQL verbs for rollups: create, drop, and what follows when their relations are dropped by hand.

use crate::catalog::rollups::{self, Rollup};
use crate::catalog::{self, aggregates, builds, departures, sources};
use crate::error::{Error, Result, no_row_is_none, spi};
use crate::jobs;
use crate::pg::{self, Oid, Snapshot};
use crate::tags::{self, TimeColumn};
use crate::{build, refresh};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::cell::Cell;
use std::ffi::CString;
use std::time::{Duration, Instant};
use tally_core::ident::{self, QualifiedName, literal};
use tally_core::rollup::analysis::{Analysis, SourceKind};
use tally_core::rollup::definition::{OwnAggregate, Target, Value};
use tally_core::rollup::level::Below;
use tally_core::rollup::sql::{self, Build, Origin, Relations};
use tally_core::rollup::state;
use tally_core::rollup::validate::validate;
use tally_core::snapshot;

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
    check_interval(&refresh_interval)?;
    if !pg::is_read_committed() {
        return Err(snapshot::Error::NotReadCommitted.into());
    }
    let public = qualify(name)?;
    let text = CString::new(definition).map_err(|_| Error::new("22021", "the definition contains a zero byte"))?;
    let mut base = None;
    let mut analysed = pg::analyze(&text, |relation| {
        base = find_base(relation).transpose();
        match &base {
            Some(Ok(base)) => base.never_null_columns(),
            _ => vec![],
        }
    });
    let base = base.transpose()?;
    let source = base.as_ref().map_or(analysed.source, |base| base.rollup.source);
    if let Some(found) = &mut analysed.analysis.source {
        if base.is_some() {
            found.kind = SourceKind::Rollup;
        } else if found.kind == SourceKind::Table && tags::has_inheritance_children(source)? {
            found.kind = SourceKind::Inherited;
        }
    }
    let below = match (&base, &analysed.analysis.source) {
        (Some(base), Some(found)) => Some(Below::new(&base.rollup.definition, &found.alias, base.columns.clone())),
        _ => None,
    };
    for (position, function) in analysed.aggregate_functions().into_iter().enumerate() {
        analysed.analysis.aggregates[position].support = Some(aggregates::support(function)?);
    }
    let mut columns = validate(&analysed.analysis, below.as_ref(), &public)?;
    let Some(found) = analysed.analysis.source.clone() else {
        return Err(Error::new("XX000", "the definition was accepted without a table"));
    };
    catalog::require_owner(source)?;
    let _settings = pg::pin_settings();
    let started = Instant::now();
    // The lock comes before the snapshot, as in a tick; for a new source there is nobody to meet.
    pg::lock_refresh(sources::table()?, source, true);
    let is_tracked = sources::is_source_now(source)?;
    let log = if is_tracked { sources::log_now(source)? } else { tags::track(source, &found.name)? };
    let relations = Relations {
        source: catalog::name_of(source)?,
        rows: QualifiedName::new(public.schema.clone(), ident::fit(&public.name, "_rows")),
        changes: QualifiedName::new(public.schema.clone(), ident::fit(&public.name, "_changes")),
        log: catalog::name_of(log)?,
        stored: QualifiedName::new(public.schema.clone(), ident::fit(&public.name, "_stored")),
        retained: QualifiedName::new(public.schema.clone(), ident::fit(&public.name, "_retained")),
        public,
    };
    let bucket = if base.is_none() { bucket_column(&analysed.analysis) } else { None };
    let time = tags::time_column(source, bucket.as_deref())?;
    let below_relations = base.as_ref().map(|base| base.rollup.relations()).transpose()?;
    let origin = match (&below, &below_relations) {
        (Some(below), Some(relations)) => {
            columns.time_type = below.time_type().map(String::from);
            Origin::below(below, relations)
        }
        _ => {
            columns.time_type = time.as_ref().map(|time| time.type_name.clone());
            Origin::source(&relations, &found.alias, time.as_ref().map(|time| time.name.as_str()))
        }
    };
    let run = |statement: &str| Spi::run(statement).map_err(spi);
    let condition = analysed.analysis.condition.as_ref().map(|condition| condition.sql.as_str());
    run(&sql::create_rows_view(&columns, &relations, &origin, condition))?;
    let rows = catalog::oid_of(&relations.rows)?;
    if base.is_none() {
        let read = rollups::column_declarations(source, &analysed.analysis.columns())?;
        tags::widen_log(log, &relations.source, &read)?;
    }
    for aggregate in &columns.aggregates {
        run(&state::create(aggregate))?;
        run(&format!("COMMENT ON AGGREGATE {aggregate} IS {}", literal(&aggregate.comment)))?;
    }
    run(&sql::create_stored_table(&columns, &relations))?;
    run(&sql::constrain_stored_table(&columns, &relations))?;
    for statement in sql::create_retained_table(&columns, &relations) {
        run(&statement)?;
    }
    run(&sql::create_changes_view(&columns, &relations, &origin, condition))?;
    let stored = catalog::oid_of(&relations.stored)?;
    let key_columns: Vec<i16> = (1..).take(columns.keys.len()).collect();
    let targets = analysed.finished_targets(stored, &relations.stored, &key_columns, &columns.finishes);
    for (target, (_, sql)) in columns.targets.iter_mut().zip(targets) {
        target.sql = sql;
    }
    let slices = plan_slices(source, base.as_ref(), time.as_ref())?;
    let build = if slices.is_some() { Build::Running } else { Build::AtOnce };
    run(&sql::create_public_view(&columns, &relations, build))?;
    let rollup = Rollup {
        rollup: catalog::oid_of(&relations.public)?,
        source,
        rows,
        changes: catalog::oid_of(&relations.changes)?,
        stored,
        retained: catalog::oid_of(&relations.retained)?,
        log,
        below: base.as_ref().map(|base| base.rollup.rollup),
        level: base.as_ref().map_or(0, |base| base.rollup.level + 1),
        unbuilt_before: None,
        definition: columns,
    };
    describe(&relations)?;
    give_to_owner(source, &relations, &rollup.definition.aggregates)?;

    let now = Snapshot::take();
    let counted = if is_tracked {
        // The other rollups of the source come along, since its state is one.
        let state =
            now.read(|| sources::state(source))?.ok_or_else(|| Error::new("XX000", "the source has no state"))?;
        match refresh::advance(source, &state, &now)? {
            None => state,
            Some((counted, report)) => {
                sources::advance(source, &counted, &report, started.elapsed())?;
                counted
            }
        }
    } else {
        let counted = refresh::counted_by(&now)?;
        sources::insert(source, log, &counted)?;
        counted
    };
    let owner =
        pg::owner_of(source).ok_or_else(|| Error::new("42P01", format!("{} does not exist", relations.source)))?;
    let below = match (&base, &below_relations) {
        (Some(base), Some(relations)) => Some((&base.rollup.definition, relations)),
        _ => None,
    };
    if let Some(retained) = below.and_then(|below| sql::build_retained(&rollup.definition, &relations, below)) {
        pg::as_user(owner, || now.execute::<0>(&retained))?;
    }
    if slices.is_none() {
        // The groups below may have got theirs from this transaction, which sees that.
        pg::as_user(owner, || now.execute::<0>(&sql::build(&rollup.definition, &relations, &counted, below)))?;
    }
    for index in sql::create_stored_indexes(&rollup.definition, &relations) {
        run(&index)?;
    }
    let query_targets: Vec<(String, String)> =
        analysed.analysis.targets.iter().map(|target| (target.name.clone(), target.sql.clone())).collect();
    let keys: Vec<String> = rollup.definition.keys.iter().map(|key| key.sql.clone()).collect();
    let query = sql::definition_query(&found.name, &found.alias, &query_targets, condition, &keys);
    rollups::insert(&rollup, &query, refresh_interval)?;
    if let Some(slices) = slices {
        builds::insert(rollup.stored, slices.first_times, slices.rows)?;
        notice!(
            "{} is being built in slices, newest rows first; it is exact meanwhile (tally.rollup_status)",
            relations.public
        );
    }
    schedule(source)?;
    Ok(rollup.rollup)
}

/// The slices in which a rollup is to be built, if it is.
fn plan_slices(source: Oid, base: Option<&Base>, time: Option<&TimeColumn>) -> Result<Option<build::Slices>> {
    match (base, time) {
        // The stored groups below are few, unless they are not all there.
        (Some(base), _) => build::slices_of(&base.rollup),
        (None, Some(time)) if time.is_never_null => build::slices_of_table(source, &time.name),
        _ => Ok(None),
    }
}

/// The column that the first bucket of time is over.
fn bucket_column(analysis: &Analysis) -> Option<String> {
    let times = analysis.keys.iter().filter(|key| key.never_null).filter_map(|key| key.bucket.as_ref());
    times.filter_map(|bucket| bucket.time.column()).next().map(String::from)
}

/// The rollup that a new one is defined on.
struct Base {
    rollup: Rollup,
    /// The present names of its visible columns.
    columns: Vec<String>,
}

impl Base {
    fn never_null_columns(&self) -> Vec<i16> {
        let is_never_null = |target: &Target| matches!(target.value, Value::Keys { never_null: true, .. });
        let numbered = (1..).zip(&self.rollup.definition.targets);
        numbered.filter(|(_, target)| is_never_null(target)).map(|(number, _)| number).collect()
    }
}

fn find_base(relation: Oid) -> Result<Option<Base>> {
    if !rollups::is_rollup(relation) {
        return Ok(None);
    }
    let rollup = rollups::of_source(rollups::source_of(relation)?)?.into_iter().find(|known| known.rollup == relation);
    rollup.map(|rollup| Ok(Base { columns: rollups::visible_columns(relation)?, rollup })).transpose()
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
    match parts.as_slice() {
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
    }
}

/// Comments for whoever meets the relations in psql or pgAdmin.
fn describe(relations: &Relations) -> Result<()> {
    let comments = [
        (
            "VIEW",
            &relations.public,
            format!("rollup of {}, always exact; kept by the extension tally", relations.source),
        ),
        (
            "VIEW",
            &relations.rows,
            format!("rows of {} as the rollup {} counts them; part of it", relations.source, relations.public),
        ),
        (
            "VIEW",
            &relations.changes,
            format!(
                "which groups of the rollup {} the changes in {} concern; part of it",
                relations.public, relations.log
            ),
        ),
        (
            "TABLE",
            &relations.stored,
            format!(
                "groups of the rollup {} as of the last refresh; read it, but write to {} only",
                relations.public, relations.source
            ),
        ),
        (
            "TABLE",
            &relations.retained,
            format!(
                "what the rollup {} goes on counting of rows that have left {}",
                relations.public, relations.source
            ),
        ),
    ];
    for (kind, relation, comment) in comments {
        Spi::run(&format!("COMMENT ON {kind} {relation} IS {}", literal(&comment))).map_err(spi)?;
    }
    Ok(())
}

/// A tick runs as the owner of the source, so that role owns the rollup too.
fn give_to_owner(source: Oid, relations: &Relations, aggregates: &[OwnAggregate]) -> Result<()> {
    let owner = no_row_is_none(Spi::get_one_with_args::<String>(
        "SELECT pg_catalog.quote_ident(a.rolname) FROM pg_catalog.pg_class AS c \
         JOIN pg_catalog.pg_roles AS a ON a.oid OPERATOR(pg_catalog.=) c.relowner \
         WHERE c.oid OPERATOR(pg_catalog.=) $1 AND a.rolname OPERATOR(pg_catalog.<>) CURRENT_USER",
        &[source.into()],
    ))?;
    let Some(owner) = owner else {
        return Ok(());
    };
    for (kind, relation) in [
        ("VIEW", &relations.rows),
        ("VIEW", &relations.changes),
        ("VIEW", &relations.public),
        ("TABLE", &relations.stored),
        ("TABLE", &relations.retained),
        ("TABLE", &relations.log),
    ] {
        Spi::run(&format!("ALTER {kind} {relation} OWNER TO {owner}")).map_err(spi)?;
    }
    for aggregate in aggregates {
        Spi::run(&format!("ALTER AGGREGATE {aggregate} OWNER TO {owner}")).map_err(spi)?;
    }
    Ok(())
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
    let run = |statement: &str| Spi::run(statement).map_err(spi);
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
        if let Some(above) = rollups::above(orphan.rollup)? {
            return Err(feeds("the rollup that is being dropped", above)?);
        }
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
