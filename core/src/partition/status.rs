//! Is a set healthy, and if not, what is to be done?

use crate::bucket::{HOUR, MINUTE, Timestamp, Zone};
use crate::ident::{literal, quote};
use crate::partition::retention::{Place, State};
use crate::partition::sql::bound;
use crate::partition::{Error, Limits, Partition, Policy, Range, check, default, gaps};
use std::fmt;

/// What is known about a set; times are those of its key.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub set: &'a check::Set,
    pub key_column: &'a str,
    pub policy: &'a Policy,
    pub limits: Limits,
    /// In order of time.
    pub existing: &'a [Partition],
    /// A partition whose DETACH CONCURRENTLY has not ended.
    pub pending: Option<&'a str>,
    /// The statements that take the rows out of the DEFAULT partition, if it has any.
    pub drain: Option<&'a str>,
    /// A table that foreign keys connect to the set, for whose lock the job may not wait any more.
    pub used_up: Option<&'a str>,
    /// Partitions are missing, if only since a moment ago.
    pub is_behind: bool,
    /// What retention is doing.
    pub leaving: Option<Leaving<'a>>,
    /// The database is a copy of the one in which the set was registered, so retention waits.
    pub is_copy: bool,
    pub now: Timestamp,
    pub zone: &'a dyn Zone,
}

/// The partition that retention is busy with, or has stopped at.
#[derive(Clone, Copy, Debug)]
pub struct Leaving<'a> {
    /// As SQL names it.
    pub partition: &'a str,
    pub state: State,
    pub place: Place,
    /// What is in the way.
    pub note: Option<&'a str>,
    /// Microseconds in this state.
    pub since: i64,
    /// The rollups that are compared with its rows, as SQL names them.
    pub rollups: &'a [String],
    /// A rollup that counts its rows, as SQL names it.
    pub counted_by: Option<&'a str>,
    pub range: Range,
    /// The foreign key that is to be dropped next, of a table in the trash.
    pub foreign_key: Option<&'a str>,
}

/// The reason of work that would have to wait for this table, for which that is not allowed any more.
pub fn put_off_for(table: &str) -> String {
    format!("P11: {table} is never free, and tally.lock_allowance for it is used up")
}

/// Does the note of a record say that its next step is put off, because the lock allowance is used up?
pub fn is_put_off(note: Option<&str>) -> bool {
    note.is_some_and(|note| note.starts_with("P11"))
}

impl fmt::Debug for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("set", &self.set).field("now", &self.now).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Ok,
    Warning,
    Critical,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// What a DBA reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub verdict: Verdict,
    /// A stable code and a sentence.
    pub reason: Option<String>,
    pub next_sql: Option<String>,
    /// Rows from here to the horizon find a partition; both are instants.
    pub accepts_from: Option<Timestamp>,
    pub horizon: Option<Timestamp>,
}

/// The stretch without a gap that holds `now`, or else the last one.
pub fn accepted(existing: &[Partition], now: Timestamp) -> Option<Range> {
    let mut run: Option<Range> = None;
    for Partition { range, .. } in existing {
        match &mut run {
            Some(run) if run.upper == range.lower => run.upper = range.upper,
            Some(run) if run.lower <= now && now < run.upper => break,
            _ => run = Some(*range),
        }
    }
    run
}

/// The first trouble in the order of how much it hurts.
pub fn judge(facts: &Facts<'_>) -> Status {
    let accepted = accepted(facts.existing, facts.now);
    let (verdict, reason, next_sql) = match trouble(facts, accepted) {
        Some((verdict, reason, next_sql)) => (verdict, Some(reason), Some(next_sql)),
        None => (Verdict::Ok, None, None),
    };
    let instant = |at| facts.policy.key.instant(facts.zone, at);
    Status {
        verdict,
        reason,
        next_sql,
        accepts_from: accepted.map(|run| instant(run.lower)),
        horizon: accepted.map(|run| instant(run.upper)),
    }
}

fn trouble(facts: &Facts<'_>, accepted: Option<Range>) -> Option<(Verdict, String, String)> {
    let Facts { set, policy, limits, existing, now, zone, .. } = *facts;
    let (table, owner, schema) = (&set.table, &set.owner, &set.schema);
    let argument = |at| format!("'{}+00'", policy.key.instant(zone, at));
    let ensure = |from: &str, to: Timestamp| {
        format!("SELECT tally.ensure_partitions({}, {from}, {});", literal(table), argument(to))
    };
    let show = |at| bound(policy.key, at);
    if !set.owner_may_create {
        let reason = format!("P13: owner {owner} may not create tables in schema {schema}");
        return Some((Verdict::Critical, reason, format!("GRANT CREATE ON SCHEMA {schema} TO {owner};")));
    }
    if !set.owner_may_log_in {
        let reason = format!("P13: owner {owner} may not log in, so no worker makes partitions");
        return Some((Verdict::Critical, reason, format!("ALTER ROLE {owner} LOGIN;")));
    }
    if let Some(partition) = &set.default {
        let reason = format!("P06: default partition {partition} keeps new partitions from being made");
        return Some(match facts.drain {
            Some(drain) => (Verdict::Critical, format!("{reason}, and may have rows"), drain.into()),
            None => (Verdict::Critical, reason, format!("{};", default::detach(table, partition))),
        });
    }
    if let Err(error) = check::set(set) {
        let reason = format!("P13: {error}, so no partition is made or removed");
        let next_sql = match error {
            Error::LastIsMaxvalue { partition, .. }
            | Error::SubPartitioned { partition }
            | Error::ForeignPartition { partition } => format!("ALTER TABLE {table} DETACH PARTITION {partition};"),
            Error::KeyNullable { column, .. } => {
                format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL;", quote(&column))
            }
            _ => format!("SELECT tally.unregister_partitions({});", literal(table)),
        };
        return Some((Verdict::Critical, reason, next_sql));
    }
    // The job waits in there for transactions that use the table, and goes on by itself.
    let is_detaching = facts.leaving.is_some_and(|leaving| leaving.place == Place::Pending && leaving.since < MINUTE);
    if let Some(partition) = facts.pending.filter(|_| !is_detaching) {
        let reason = format!("P03: DETACH CONCURRENTLY of {partition} was interrupted");
        return Some((
            Verdict::Critical,
            reason,
            format!("ALTER TABLE {table} DETACH PARTITION {partition} FINALIZE;"),
        ));
    }
    if let Some(leaving) = facts.leaving.filter(|leaving| leaving.state == State::Mismatch) {
        let reason = leaving.note.unwrap_or("P10: a rollup differs from the rows of a partition");
        let repair = if leaving.place == Place::Attached {
            let rebuild = |rollup: &String| {
                let (from, to) = (argument(leaving.range.lower), argument(leaving.range.upper));
                format!("CALL tally.rebuild({}, {from}, {to}); ", literal(rollup))
            };
            let rebuilt: String = leaving.rollups.iter().map(rebuild).collect();
            format!("{rebuilt}SELECT tally.resume_partitions({});", literal(table))
        } else {
            format!("SELECT tally.undo_retention({}, {});", literal(table), literal(leaving.partition))
        };
        return Some((Verdict::Critical, reason.into(), repair));
    }
    let horizon = accepted.filter(|run| run.lower <= now).map_or(Timestamp::NEG_INFINITY, |run| run.upper);
    let target = policy.target(existing, now, &limits);
    if horizon <= now.plus(policy.width.longest()) {
        let reason = if horizon > now {
            format!("P01: rows find a partition only until {}, less than one width ahead", show(horizon))
        } else {
            "P01: rows of now find no partition".into()
        };
        return Some((Verdict::Critical, reason, ensure("now()", target)));
    }
    if let Some(other) = facts.used_up.filter(|_| facts.is_behind) {
        return Some((Verdict::Warning, put_off_for(other), ensure("now()", target)));
    }
    // The job runs once an hour at most, so the target may have moved on by that.
    let ahead = existing.iter().filter(|partition| partition.range.lower > now).count();
    if ahead < limits.most && horizon < target.minus((2 * HOUR).min(policy.ahead(&limits) / 2)) {
        let reason = format!("P02: partitions reach until {}, not until {}", show(horizon), show(target));
        return Some((Verdict::Warning, reason, ensure("now()", target)));
    }
    if ahead >= limits.most && horizon < now.plus(24 * HOUR) {
        let reason = format!("P02: tally.premake_max = {} partitions are less than a day", limits.most);
        return Some((
            Verdict::Warning,
            reason,
            "ALTER SYSTEM SET tally.premake_max = 10000; SELECT pg_reload_conf();".into(),
        ));
    }
    // Before a partition beyond the target there is no gap: premake comes to it in its time.
    if let Some(gap) = gaps(existing).filter(|gap| gap.upper < target).last() {
        let reason = format!("P07: rows from {} to {} find no partition", show(gap.lower), show(gap.upper));
        return Some((Verdict::Warning, reason, ensure(&argument(gap.lower), gap.upper)));
    }
    let believable = now.plus(policy.far_future);
    if let Some(poison) = existing.iter().find(|partition| partition.used && partition.range.lower > believable) {
        let from = bound(policy.key, poison.range.lower);
        let reason =
            format!("P08: rows later than {}, which is more than far_future ahead of the clock", show(believable));
        return Some((
            Verdict::Warning,
            reason,
            format!("SELECT * FROM {table} WHERE {} >= {from};", facts.key_column),
        ));
    }
    if facts.is_copy {
        let reason = "P09: this database is a copy, so retention removes nothing";
        return Some((Verdict::Warning, reason.into(), "SELECT tally.adopt();".into()));
    }
    retention_trouble(table, &facts.leaving?)
}

/// Retention does not get on, and nothing else is wrong.
fn retention_trouble(table: &str, leaving: &Leaving<'_>) -> Option<(Verdict, String, String)> {
    let partition = leaving.partition;
    if let Some(reason) = leaving.note.filter(|note| is_put_off(Some(note))) {
        // By hand it waits as long as it takes.
        let next_sql = match (leaving.place, leaving.foreign_key) {
            (Place::Attached, _) => format!("ALTER TABLE {table} DETACH PARTITION {partition} CONCURRENTLY;"),
            (Place::Pending, _) => format!("ALTER TABLE {table} DETACH PARTITION {partition} FINALIZE;"),
            (_, Some(key)) => format!("ALTER TABLE {partition} DROP CONSTRAINT {key};"),
            (_, None) => return None,
        };
        return Some((Verdict::Warning, reason.to_owned(), next_sql));
    }
    match (leaving.state, leaving.place) {
        (State::Detaching, Place::Attached) if leaving.since > 10 * MINUTE => Some((
            Verdict::Warning,
            format!("P12: no background worker has detached {partition}"),
            format!("ALTER TABLE {table} DETACH PARTITION {partition} CONCURRENTLY;"),
        )),
        (State::Fenced, Place::Attached) if leaving.since > HOUR => {
            let build = leaving.counted_by.map(|rollup| format!("CALL tally.build({}); ", literal(rollup)));
            Some((
                Verdict::Warning,
                leaving.note.map_or_else(|| format!("P04: {partition} waits to be counted"), str::to_owned),
                format!(
                    "{}SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = 'retention' AND object = {}::regclass;",
                    build.unwrap_or_default(),
                    literal(table)
                ),
            ))
        }
        _ => None,
    }
}
