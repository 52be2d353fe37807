//! What retention would do, for somebody who wants to read it first, or to do it by hand.

use super::{foreign_keys, place};
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

/// A line of every plan.
#[derive(Clone, Copy)]
struct Line {
    step: Step,
    action: &'static str,
    /// On the partition, or on its table if it is a statement at top level.
    lock_mode: Option<&'static str>,
    is_top_level: bool,
    note: &'static str,
}

/// The line for each foreign key.
const UNLINK: &str = "unlink";

/// The lines from a step on; from [`Step::Wait`] on for a partition that has not been fenced.
fn lines(from: Step) -> impl Iterator<Item = Line> {
    let line = |step, action, lock_mode, note| Line { step, action, lock_mode, is_top_level: false, note };
    [
        line(
            Step::Wait,
            "fence",
            Some("SHARE ROW EXCLUSIVE"),
            "refuses changes from here on; the lock is tried, never queued for",
        ),
        line(Step::Count, "count", Some("ACCESS SHARE"), "every rollup counts its rows and keeps their groups"),
        line(Step::Verify, "verify", Some("ACCESS SHARE"), "every rollup is compared with its rows"),
        line(Step::Detach, "announce", None, "waits for snapshots that are older"),
        Line {
            is_top_level: true,
            ..line(
                Step::Finalize,
                "detach",
                Some("SHARE UPDATE EXCLUSIVE"),
                "waits for transactions that use the table, and nobody waits for it",
            )
        },
        line(Step::Discard, "discard", Some("ACCESS EXCLUSIVE"), "moves the detached table to tally_trash"),
        line(Step::Drop, UNLINK, Some("ACCESS EXCLUSIVE"), "drops a foreign key; the lock is on the other table, too"),
        line(Step::Drop, "drop", Some("ACCESS EXCLUSIVE"), ""),
    ]
    .into_iter()
    .skip_while(move |line| line.step != from)
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
    let mut planned = vec![];
    let mut add = |from: Step, table: Oid, drop_after: Option<Timestamp>| -> Result<()> {
        let (name, (rows, bytes)) = (catalog::name_of(table)?.to_string(), size(table)?);
        let targets: Vec<String> = foreign_keys(table)?
            .iter()
            .map(|key| catalog::name_of(key.target).map(|name| name.to_string()))
            .collect::<Result<_>>()?;
        let each_key = |line: Line| -> Vec<(Option<&String>, Line)> {
            match line.action {
                UNLINK => targets.iter().map(|target| (Some(target), line)).collect(),
                _ => vec![(None, line)],
            }
        };
        for (target, line) in lines(from).flat_map(each_key) {
            let sql = match (line.is_top_level, from) {
                (false, _) => step.clone(),
                (true, Step::Finalize) => format!("ALTER TABLE {} DETACH PARTITION {name} FINALIZE;", facts.name),
                (true, _) => format!("ALTER TABLE {} DETACH PARTITION {name} CONCURRENTLY;", facts.name),
            };
            let note = match (line.step, drop_after) {
                _ if target.is_some() => line.note.to_owned(),
                (Step::Drop, Some(at)) => format!("from {at}+00 on; until then tally.undo_retention brings it back"),
                (Step::Drop, None) => format!("{} later", row.request.grace),
                _ => line.note.to_owned(),
            };
            let locked = target.unwrap_or(if line.is_top_level { &facts.set.table } else { &name });
            planned.push(Planned {
                action: line.action,
                object: name.clone(),
                sql,
                lock: line.lock_mode.map(|mode| (mode, locked.clone())),
                rows,
                bytes,
                is_top_level: line.is_top_level,
                note: Some(note),
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
    let Some(retention) = plan.policy.retention else { return Ok(planned) };
    let cutoff = retention::cutoff(plan.policy.key, &plan.zone, process::clock(), retention);
    for bounds in facts.bounds.iter().take_while(|bounds| bounds.range.upper <= cutoff) {
        if !records.iter().any(|record| record.partition == bounds.partition) {
            add(Step::Wait, bounds.partition, None)?;
        }
    }
    Ok(planned)
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
