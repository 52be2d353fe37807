//! Partition sets: reads what there is, asks core what is missing, makes it and records it.
//!
//! Everybody who makes partitions of a set holds SHARE UPDATE EXCLUSIVE on the parent, which conflicts with itself and with DDL but
//! with no reader and no writer. The bounds are read again under that lock, so two makers never make the same partition.

mod conversion;
mod default;
mod facts;
mod functions;
mod idle;
mod locks;
mod pg_partman;
mod registration;
mod retention;
mod shape;
mod upkeep;

pub(crate) use conversion::step as convert;
pub(crate) use functions::{Judged, verdict};
pub(crate) use idle::{Pass, is_idle_since, note_altered, note_command};
pub(crate) use locks::{charge_statement, settle_longest, take_longest};
pub(crate) use retention::{Progress, Statement, follow_attach, step as retire};

use crate::catalog::adoptions::{self, Origin};
use crate::catalog::partitions::{self as policies, Row};
use crate::catalog::{altered_sets, partition_upkeep, retirements};
use crate::error::{Error, Result, spi};
use crate::jobs::{self, Kind};
use crate::pg::relation::{self, Mode};
use crate::pg::types::is_name_taken;
use crate::pg::{self, Oid, TimeZone};
use crate::{settings, version};
use facts::Facts;
use locks::{Attempt, Patience, Wanted, Work};
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::bucket::{Timestamp, Width, Zone};
use tally_core::ident::QualifiedName;
use tally_core::partition::{self, Error as Refusal, Key, Limits, Partition, Policy, Range, check, sql};

/// What a maintenance run did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Partitions made.
    pub made: i64,
    /// Partitions that are still missing: call again in a new transaction.
    pub remaining: i64,
    /// Somebody is in the way: call again after this time.
    pub pause: Option<Duration>,
    /// There may be more to be done than partitions: call again in a new transaction.
    pub more_upkeep: bool,
    pub pass: Pass,
}

/// Partitions that one transaction makes, so that it stays short and its locks few.
const BATCH: usize = 64;

/// A policy with what is needed to apply it.
struct Plan {
    policy: Policy,
    zone: TimeZone,
}

impl Plan {
    fn new(key: Key, row: &Row) -> Result<Self> {
        let policy = check::policy(key, &row.request)?;
        let unknown = || Refusal::TimeZone { name: row.time_zone.clone() };
        Ok(Self { policy, zone: TimeZone::named(&row.time_zone).ok_or_else(unknown)? })
    }

    fn now(&self) -> Timestamp {
        self.policy.key.value(&self.zone, pg::process::clock())
    }

    /// That of a registered set.
    fn of(facts: &Facts) -> Result<Self> {
        let row = registered(facts)?;
        Self::new(check::set(&facts.set)?, &row)
    }

    /// What the clock asks for now.
    fn premake(&self, facts: &Facts) -> Result<partition::Premake> {
        Ok(self.premake_at(facts, self.now())?.1)
    }

    /// The same for this time of the key, and the partitions that there are.
    fn premake_at(&self, facts: &Facts, now: Timestamp) -> Result<(Vec<Partition>, partition::Premake)> {
        let existing = facts::partitions(&facts.bounds, now)?;
        let grid = self.policy.key.grid(self.policy.width, &self.zone);
        let premake = partition::premake(&self.policy, &grid, &existing, now, &limits());
        Ok((existing, premake))
    }

    /// What a range of instants asks for.
    fn cover(&self, facts: &Facts, from: Timestamp, to: Timestamp) -> Result<Vec<Range>> {
        let value = |at| self.policy.key.value(&self.zone, at);
        self.cover_values(facts, Range { lower: value(from), upper: value(to) })
    }

    /// What a range of values of the key asks for.
    fn cover_values(&self, facts: &Facts, range: Range) -> Result<Vec<Range>> {
        let existing = facts::partitions(&facts.bounds, Timestamp::INFINITY)?;
        let grid = self.policy.key.grid(self.policy.width, &self.zone);
        Ok(partition::cover(&grid, &existing, range, settings::premake_max())?)
    }

    /// Names tell the time of day unless all bounds are midnights of UTC.
    fn names_have_time(&self) -> bool {
        let rule = self.zone.rule(self.now());
        let is_utc = rule.offset == 0 && !rule.until.is_finite();
        matches!(self.policy.width, Width::Exact(_)) || (self.policy.key == Key::Instant && !is_utc)
    }
}

fn limits() -> Limits {
    Limits { outage: settings::premake_outage(), most: settings::premake_max() }
}

/// Makes the partitions that the set's policy asks for; to be called as the owner of the table, again in a new transaction while
/// some remain. Waits for nobody longer than `tally.lock_try_timeout`; 55P03 means "try again".
pub(crate) fn maintain(parent: Oid) -> Result<Report> {
    if let Some(look) = idle::last_look(parent, Kind::Premake)? {
        return Ok(Report { pass: Pass::Idle(look.until), ..Report::default() });
    }
    // Without anything to do this locks nothing but for the ACCESS SHARE of reading the bounds, and writes only that.
    let look = idle::begin()?;
    let mut facts = facts::read(parent)?;
    let plan = Plan::of(&facts)?;
    if let Some(rest) = look.premake(&facts, &plan)? {
        let more_upkeep = upkeep::step(&facts, &plan)?;
        let has_worked = pg::own_xid().is_some();
        // What is left to keep up would otherwise wait for the next look.
        let until = (!more_upkeep).then(|| look.store_premake(&facts, &plan, rest)).transpose()?;
        let pass = until.filter(|_| !has_worked).map_or(Pass::Work, Pass::Look);
        return Ok(Report { more_upkeep, pass, ..Report::default() });
    }
    // When rows are about to find no partition, a longer wait is the smaller evil.
    let served = facts.bounds.last().map_or(Timestamp::NEG_INFINITY, |last| last.range.upper);
    let urgent = served <= plan.now().plus(plan.policy.width.longest());
    let timeout = if urgent { Duration::from_secs(1) } else { settings::lock_try_timeout() };
    with_fixed_settings(Some(timeout), || {
        lock(&mut facts)?;
        let missing = plan.premake(&facts)?.missing;
        let batch = if facts::connected_tables(parent)?.is_empty() { BATCH } else { 1 };
        let now = &missing[..missing.len().min(batch)];
        let pause = match make(&facts, &plan, now, Patience::Job)? {
            Attempt::Done(()) => {
                let (made, remaining) = (now.len() as i64, (missing.len() - now.len()) as i64);
                return Ok(Report { made, remaining, ..Report::default() });
            }
            Attempt::InUse(who) => return Err(target_locked(&facts, who)?),
            Attempt::Missed => settings::retry().delay(1, crate::workers::random()),
            Attempt::PutOff(_) => locks::pause_of_put_off(),
        };
        Ok(Report { pause: Some(pause), ..Report::default() })
    })
}

/// The same for somebody who has called a function and is told what is in the way.
fn make_now(facts: &Facts, plan: &Plan, ranges: &[Range]) -> Result<()> {
    let who = match make(facts, plan, ranges, Patience::Caller)? {
        Attempt::Done(()) => return Ok(()),
        Attempt::InUse(who) => who,
        Attempt::Missed | Attempt::PutOff(_) => "short transactions, one after another".into(),
    };
    Err(target_locked(facts, who)?)
}

fn target_locked(facts: &Facts, who: String) -> Result<Error> {
    let others: Vec<_> = facts::connected_tables(facts.oid)?.into_iter().map(|(_, table)| table).collect();
    Ok(Refusal::TargetLocked { table: facts.set.table.clone(), others: others.join(", "), who }.into())
}

/// Registers a set and makes its first partitions: from the oldest row that may still come, as far ahead as one transaction can.
fn register(parent: Oid, mut row: Row) -> Result<i64> {
    let mut facts = owned(parent)?;
    // First of all what does not depend on the table, so that 0A000 is not hidden behind another complaint.
    check::policy(Key::Instant, &row.request)?;
    if policies::policy(parent)?.is_some() {
        return Err(Refusal::AlreadyRegistered { table: facts.set.table }.into());
    }
    let key = check::set(&facts.set)?;
    row.time_zone = facts::time_zone(&row.time_zone)?;
    let plan = Plan::new(key, &row)?;
    with_fixed_settings(None, || {
        lock(&mut facts)?;
        if policies::policy(parent)?.is_some() {
            return Err(Refusal::AlreadyRegistered { table: facts.set.table.clone() }.into());
        }
        let (missing, later) = first_partitions(&facts, &plan)?;
        policies::insert(parent, &row)?;
        if adoptions::origin()? == Origin::Unknown {
            adoptions::adopt()?;
        }
        make_now(&facts, &plan, &missing)?;
        schedule(parent, &plan.policy)?;
        if later > 0 {
            notice!("the premake job makes {later} more partitions of {}", facts.set.table);
        }
        Ok(missing.len() as i64)
    })
}

/// What a registration makes: from the oldest row that may still come, as far ahead as one transaction can; and how many partitions it
/// leaves to the job.
fn first_partitions(facts: &Facts, plan: &Plan) -> Result<(Vec<Range>, usize)> {
    let now = plan.now();
    let oldest = now.minus(plan.policy.lateness);
    let mut missing = Vec::new();
    if let Some(first) = facts.bounds.first()
        && oldest < first.range.lower
    {
        let grid = plan.policy.key.grid(plan.policy.width, &plan.zone);
        let existing = facts::partitions(&facts.bounds, now)?;
        missing = partition::cover(&grid, &existing, Range { lower: oldest, upper: first.range.lower }, usize::MAX)?;
    }
    missing.extend(plan.premake(facts)?.missing);
    let fit = facts::partitions_per_transaction(facts.oid)?;
    let soon = now.plus(plan.policy.width.longest().saturating_mul(2));
    let needed = missing.iter().filter(|range| range.lower <= soon).count();
    if needed > fit {
        return Err(Refusal::TooManyLocks { partitions: needed, fit }.into());
    }
    let later = missing.split_off(missing.len().min(fit)).len();
    Ok((missing, later))
}

/// A job looks every quarter width: often enough, since partitions reach two widths and a week ahead.
fn every(width: Width) -> Duration {
    let quarter = Duration::from_micros(width.longest().unsigned_abs() / 4);
    quarter.clamp(Duration::from_secs(60), Duration::from_secs(3600))
}

/// Makes the partitions for rows of a range, before a backfill or a replay.
fn ensure(parent: Oid, from: Timestamp, to: Timestamp) -> Result<i64> {
    version::require_writable()?;
    let mut facts = owned(parent)?;
    let plan = Plan::of(&facts)?;
    if plan.cover(&facts, from, to)?.is_empty() {
        return Ok(0);
    }
    with_fixed_settings(None, || {
        lock(&mut facts)?;
        let missing = plan.cover(&facts, from, to)?;
        let fit = facts::partitions_per_transaction(parent)?;
        if missing.len() > fit {
            return Err(Refusal::TooManyLocks { partitions: missing.len(), fit }.into());
        }
        make_now(&facts, &plan, &missing)?;
        Ok(missing.len() as i64)
    })
}

/// Changes the policy of a set; what is `None` stays.
fn change(parent: Oid, change: impl FnOnce(&mut check::Request)) -> Result<()> {
    version::require_writable()?;
    let facts = owned(parent)?;
    let mut row = registered(&facts)?;
    change(&mut row.request);
    let policy = check::policy(check::set(&facts.set)?, &row.request)?;
    policies::update(parent, &row)?;
    altered_sets::insert(&[parent])?;
    schedule(parent, &policy)?;
    [Kind::Premake, Kind::Retention].into_iter().try_for_each(|kind| jobs::hasten(kind, parent))
}

/// Makes the jobs that a policy asks for. What retention has begun it also ends.
fn schedule(parent: Oid, policy: &Policy) -> Result<()> {
    jobs::schedule(Kind::Premake, parent, every(policy.width))?;
    if policy.retention.is_some() || !retirements::list(parent)?.is_empty() {
        return jobs::schedule(Kind::Retention, parent, every(policy.width));
    }
    jobs::unschedule(Kind::Retention, parent)
}

/// Forgets a set; its partitions stay.
fn unregister(parent: Oid) -> Result<()> {
    version::require_writable()?;
    let facts = owned(parent)?;
    if !policies::delete(parent)? {
        return Err(Refusal::NotRegistered { table: facts.set.table }.into());
    }
    if let Some(under_way) = retirements::list(parent)?.first() {
        return Err(Refusal::RetentionUnderWay { table: facts.set.table, partition: under_way.name.to_string() }.into());
    }
    partition_upkeep::delete(parent)?;
    jobs::unschedule(Kind::Premake, parent)?;
    jobs::unschedule(Kind::Retention, parent)
}

fn owned(parent: Oid) -> Result<Facts> {
    let facts = facts::read(parent)?;
    if facts.owned { Ok(facts) } else { Err(Refusal::NotOwner { table: facts.set.table }.into()) }
}

fn registered(facts: &Facts) -> Result<Row> {
    policies::policy(facts.oid)?.ok_or_else(|| Error::from(Refusal::NotRegistered { table: facts.set.table.clone() }))
}

/// What must not depend on the session: names in statements are qualified, and a partition lies where its set says.
fn with_fixed_settings<T>(lock_timeout: Option<Duration>, action: impl FnOnce() -> T) -> T {
    let timeout = lock_timeout.map(|timeout| format!("{}ms", timeout.as_millis()));
    let mut settings = vec![(c"search_path", "pg_catalog, pg_temp"), (c"default_tablespace", "")];
    if let Some(timeout) = &timeout {
        settings.push((c"lock_timeout", timeout));
    }
    pg::with_settings(&settings, action)
}

/// Locks the parent, then reads the facts again.
fn lock(facts: &mut Facts) -> Result<()> {
    relation::lock(facts.oid, Mode::ShareUpdateExclusive);
    relation::begin_writing();
    *facts = facts::read(facts.oid)?;
    check::set(&facts.set)?;
    Ok(())
}

/// Makes partitions. The caller holds the lock on the parent. ATTACH takes SHARE ROW EXCLUSIVE on the other side of foreign keys, so these
/// tables are locked last, for the time of the ATTACHes and until the commit.
fn make(facts: &Facts, plan: &Plan, ranges: &[Range], patience: Patience) -> Result<Attempt<()>> {
    if ranges.is_empty() {
        return Ok(Attempt::Done(()));
    }
    let shape = shape::read(facts)?;
    let run = |statements: &[sql::Statement]| {
        pg::as_user(facts.owner, || statements.iter().try_for_each(|statement| Spi::run(&statement.sql))).map_err(spi)
    };
    let prepare = |attachments: &mut Vec<sql::Statement>| {
        for range in ranges {
            let partition = new_name(facts, plan, range.lower, &[]);
            let mut preparation = sql::make(&facts.name, &partition, plan.policy.key, *range, &shape);
            let attach = preparation.iter().position(|statement| statement.action == "attach").unwrap_or(0);
            attachments.extend(preparation.split_off(attach));
            run(&preparation)?;
        }
        Ok(())
    };
    let mut attachments = Vec::new();
    let connected = facts::connected_tables(facts.oid)?;
    if connected.is_empty() {
        prepare(&mut attachments)?;
        return run(&attachments).map(Attempt::Done);
    }
    let wanted: Vec<Wanted> = connected.iter().map(|(table, _)| (*table, Mode::ShareRowExclusive)).collect();
    let attachments = std::cell::RefCell::new(attachments);
    let work = Work { wanted: &wanted, patience, waits: false };
    work.run(|| prepare(&mut attachments.borrow_mut()), || run(&attachments.borrow()))
}

fn new_name(facts: &Facts, plan: &Plan, lower: Timestamp, planned: &[String]) -> QualifiedName {
    let schema = &facts.name.schema;
    let name = sql::name(&facts.name.name, lower, plan.names_have_time(), &mut |name| {
        planned.iter().any(|planned| planned == name) || is_name_taken(schema, name)
    });
    QualifiedName::new(schema, name)
}
