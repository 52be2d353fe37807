//! What retention would do, for somebody who wants to read it first, or to do it by hand.

use super::place;
use crate::catalog::{self, retirements};
use crate::error::Result;
use crate::jobs::Kind;
use crate::partition::{Plan, facts, owned, registered};
use crate::pg::{Oid, process};
use tally_core::bucket::Timestamp;
use tally_core::partition::check;
use tally_core::partition::retention::{self, Step};

/// A line of the plan: what happens to which table, by which statement, under which lock.
pub(in crate::partition) struct Planned {
    pub action: &'static str,
    pub object: String,
    pub sql: String,
    pub lock: Option<(&'static str, String)>,
    pub rows: i64,
    pub bytes: i64,
    pub is_top_level: bool,
    pub note: Option<String>,
}

/// What the job would do with the partitions that are due now, and with what it has begun. Run in order, each line at top level, the
/// statements do the same.
pub(in crate::partition) fn plan(parent: Oid) -> Result<Vec<Planned>> {
    let facts = owned(parent)?;
    let row = registered(&facts)?;
    let plan = Plan::new(check::set(&facts.set)?, &row)?;
    let records = retirements::list(parent)?;
    let Some(job) = catalog::jobs::of_object(Kind::Retention, parent)? else { return Ok(vec![]) };
    let step = format!("SELECT tally.run_job({job});");
    let mut lines = vec![];
    let mut add = |from: Step, table: Oid, drop_after: Option<Timestamp>| -> Result<()> {
        let (name, (rows, bytes)) = (catalog::name_of(table)?.to_string(), size(table)?);
        let steps: [(Step, &'static str, Option<(&'static str, &str)>, Option<&str>); 7] = [
            (
                Step::Wait,
                "fence",
                Some(("SHARE ROW EXCLUSIVE", &name)),
                Some("refuses changes from here on; the lock is tried, never queued for"),
            ),
            (
                Step::Count,
                "count",
                Some(("ACCESS SHARE", &name)),
                Some("every rollup counts its rows and keeps their groups"),
            ),
            (Step::Verify, "verify", Some(("ACCESS SHARE", &name)), Some("every rollup is compared with its rows")),
            (Step::Detach, "announce", None, Some("waits for snapshots that are older")),
            (
                Step::Finalize,
                "detach",
                Some(("SHARE UPDATE EXCLUSIVE", &facts.set.table)),
                Some("waits for transactions that use the table, and nobody waits for it"),
            ),
            (
                Step::Discard,
                "discard",
                Some(("ACCESS EXCLUSIVE", &name)),
                Some("moves the detached table to tally_trash"),
            ),
            (Step::Drop, "drop", Some(("ACCESS EXCLUSIVE", &name)), None),
        ];
        let begin = steps.iter().position(|(step, ..)| *step == from).unwrap_or(steps.len());
        for (step_kind, action, lock, note) in &steps[begin..] {
            let is_top_level = *step_kind == Step::Finalize;
            let sql = if is_top_level {
                let finalize = if from == Step::Finalize { "FINALIZE" } else { "CONCURRENTLY" };
                format!("ALTER TABLE {} DETACH PARTITION {name} {finalize};", facts.name)
            } else {
                step.clone()
            };
            let at = match (step_kind, drop_after) {
                (Step::Drop, Some(at)) => {
                    Some(format!("from {at}+00 on; until then tally.undo_retention brings it back"))
                }
                (Step::Drop, None) => Some(format!("{} later", row.request.grace)),
                _ => note.map(str::to_owned),
            };
            lines.push(Planned {
                action,
                object: name.clone(),
                sql,
                lock: lock.map(|(mode, table)| (mode, table.to_owned())),
                rows,
                bytes,
                is_top_level,
                note: at,
            });
        }
        Ok(())
    };
    for record in &records {
        // As if the grace were over.
        match retention::next(record.state, place(parent, record)?, true) {
            Step::LetGo | Step::Release | Step::Wait => {}
            from => add(from, record.partition, record.drop_after)?,
        }
    }
    let Some(retention) = plan.policy.retention else { return Ok(lines) };
    let cutoff = retention::cutoff(plan.policy.key, &plan.zone, process::clock(), retention);
    for bounds in facts.bounds.iter().take_while(|bounds| bounds.range.upper <= cutoff) {
        if !records.iter().any(|record| record.partition == bounds.partition) {
            add(Step::Wait, bounds.partition, None)?;
        }
    }
    Ok(lines)
}

/// Rows, as far as PostgreSQL has an idea, and bytes of a table.
fn size(table: Oid) -> Result<(i64, i64)> {
    facts::rows(
        "SELECT GREATEST(c.reltuples, 0)::pg_catalog.int8, pg_catalog.pg_total_relation_size(c.oid::pg_catalog.regclass) \
         FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) $1",
        &[table.into()],
        |row| Ok((row.get::<i64>(1)?.unwrap_or(0), row.get::<i64>(2)?.unwrap_or(0))),
    )
    .map(|found| found.first().copied().unwrap_or_default())
}
