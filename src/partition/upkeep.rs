//! Statistics of the whole set, and BRIN indexes of partitions that have ended: what is due is decided in `core/src/partition/upkeep.rs`.
//! One step per transaction. Each needs SHARE UPDATE EXCLUSIVE, which stops no reader and no writer and is tried, not queued for.

use super::facts::{self, Facts};
use super::{Plan, with_fixed_settings};
use crate::catalog::partition_upkeep;
use crate::error::{Result, spi};
use crate::pg::relation::{self, Mode};
use crate::pg::{self, Bounds, Oid, process};
use crate::{catalog, settings};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;
use tally_core::partition::Range;
use tally_core::partition::upkeep::{self, Analyzed, Filling};

/// Does one piece of what is due; as the owner of the table, in a transaction of which this is all. Answers whether there may be more.
pub(super) fn step(facts: &Facts, plan: &Plan) -> Result<bool> {
    if summarise_ended(facts, plan)? {
        return Ok(true);
    }
    analyze(facts, plan)?;
    Ok(false)
}

/// Has the BRIN indexes of one partition that has ended look at the pages that they know nothing of.
fn summarise_ended(facts: &Facts, plan: &Plan) -> Result<bool> {
    let done = partition_upkeep::summarised_before(facts.oid)?;
    let ranges: Vec<Range> = facts.bounds.iter().map(|bounds| bounds.range).collect();
    let ended: Vec<&Bounds> =
        upkeep::ended(&ranges, done, plan.policy.lateness, plan.now()).map(|at| &facts.bounds[at]).collect();
    let indexes = brin_indexes(&ended)?;
    // Nothing is written for sets without such indexes.
    let Some((partition, _)) = indexes.first() else { return Ok(false) };
    let partition = *partition;
    // VACUUM summarises, too: who has it under way is not waited for.
    if !relation::try_lock(partition, Mode::ShareUpdateExclusive) {
        return Ok(false);
    }
    for (_, index) in indexes.iter().filter(|(of, _)| *of == partition) {
        let summarise = "SELECT pg_catalog.brin_summarize_new_values($1::pg_catalog.oid::pg_catalog.regclass)";
        let ranges = Spi::get_one_with_args::<i32>(summarise, &[(*index).into()]).map_err(spi)?.unwrap_or(0);
        if ranges > 0 {
            log!("tally has summarised {ranges} ranges of pages in {}", catalog::name_of(*index)?);
        }
    }
    if let Some(bounds) = ended.iter().find(|bounds| bounds.partition == partition) {
        partition_upkeep::set_summarised_before(facts.oid, bounds.range.upper)?;
    }
    Ok(true)
}

/// The BRIN indexes of partitions, with their partition, in the order of these.
fn brin_indexes(partitions: &[&Bounds]) -> Result<Vec<(Oid, Oid)>> {
    if partitions.is_empty() {
        return Ok(vec![]);
    }
    facts::rows(
        "SELECT x.indrelid, x.indexrelid FROM pg_catalog.unnest($1) WITH ORDINALITY AS p (oid, place) \
         JOIN pg_catalog.pg_index x ON x.indrelid OPERATOR(pg_catalog.=) p.oid AND x.indisvalid \
         JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) x.indexrelid \
         JOIN pg_catalog.pg_am m ON m.oid OPERATOR(pg_catalog.=) c.relam AND m.amname OPERATOR(pg_catalog.=) 'brin' \
         ORDER BY p.place, x.indexrelid",
        &[facts::oids(partitions.iter().copied())],
        |row| Ok((row.get::<Oid>(1)?.unwrap_or(Oid::INVALID), row.get::<Oid>(2)?.unwrap_or(Oid::INVALID))),
    )
}

/// Samples the whole set, if enough of it is new.
fn analyze(facts: &Facts, plan: &Plan) -> Result<()> {
    if !settings::analyze_parents() || facts.bounds.is_empty() || !is_counting()? {
        return Ok(());
    }
    let last = last_analyzed(facts.oid)?;
    if !upkeep::may_analyze(plan.policy.width, last.map(|last| last.at), process::clock())
        // Each partition stays in the lock table until the commit.
        || facts.bounds.len() > facts::locks_per_transaction()?
        || !upkeep::is_worth_analyzing(last, &fillings(facts, plan)?)
        || !relation::try_lock(facts.oid, Mode::ShareUpdateExclusive)
    {
        return Ok(());
    }
    // It waits for whoever has locked a partition against readers: another time is as good.
    let analyze = || pg::as_user(facts.owner, || pg::analyze_whole(facts.oid));
    let _ = pg::in_subtransaction(|| with_fixed_settings(Some(settings::lock_try_timeout()), analyze), |()| true);
    Ok(())
}

/// Without counters nobody would know when it was done.
fn is_counting() -> Result<bool> {
    catalog::look_up::<bool>("SELECT pg_catalog.current_setting('track_counts')::pg_catalog.bool", &[])
        .map(|counting| counting == Some(true))
}

/// When the whole was analyzed last, by whomever, as far as the statistics of the server reach back.
fn last_analyzed(parent: Oid) -> Result<Option<Analyzed>> {
    let found = facts::rows(
        "SELECT pg_catalog.pg_stat_get_last_analyze_time(c.oid), GREATEST(c.reltuples, 0)::pg_catalog.float8 \
         FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[parent.into()],
        |row| Ok((row.get::<TimestampWithTimeZone>(1)?, row.get::<f64>(2)?.unwrap_or(0.0))),
    )?;
    Ok(found.into_iter().find_map(|(at, rows)| Some(Analyzed { at: Timestamp(at?.into()), rows })))
}

fn fillings(facts: &Facts, plan: &Plan) -> Result<Vec<Filling>> {
    let rows: std::collections::HashMap<Oid, f64> = facts::rows(
        "SELECT c.oid, CASE WHEN pg_catalog.pg_stat_get_live_tuples(c.oid) OPERATOR(pg_catalog.>) 0 \
                            THEN pg_catalog.pg_stat_get_live_tuples(c.oid)::pg_catalog.float8 \
                            ELSE GREATEST(c.reltuples, 0)::pg_catalog.float8 END \
         FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) ANY ($1)",
        &[facts::oids(facts.bounds.iter())],
        |row| Ok((row.get::<Oid>(1)?.unwrap_or(Oid::INVALID), row.get::<f64>(2)?.unwrap_or(0.0))),
    )?
    .into_iter()
    .collect();
    let lower = |bounds: &Bounds| match bounds.range.lower {
        lower if lower.is_finite() => plan.policy.key.instant(&plan.zone, lower),
        infinite => infinite,
    };
    let filling =
        |bounds: &Bounds| Filling { lower: lower(bounds), rows: rows.get(&bounds.partition).copied().unwrap_or(0.0) };
    Ok(facts.bounds.iter().map(filling).collect())
}
