//! Jobs on demand: the steps of `CALL tally.run_due_jobs()`, and the functions with which a DBA steers and watches jobs.
//! All of it works without `shared_preload_libraries`.

use super::run::{overlong, work};
use super::{Assignment, JOB_WORKER, Phase, SHARED, announce, is_enabled, notify, random};
use crate::catalog::jobs::{self, Job, Run};
use crate::error::{Error, Failure, Result};
use crate::partition;
use crate::pg::process::{self, Worker};
use crate::pg::{self, ErrorReport, Oid, time_limit};
use crate::{settings, version};
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::bucket::Timestamp;
use tally_core::schedule::Outcome;
use tally_core::version::Mismatch;

type Moment = TimestampWithTimeZone;

#[pg_extern(sql = false)]
fn tally_wake_launcher() {
    // After the commit, because the launcher would not see the change before. Once is enough, more do no harm.
    if SHARED.exists() {
        pgrx::register_xact_callback(pgrx::PgXactCallbackEvent::Commit, notify);
    }
}

#[pg_extern(sql = false)]
fn tally_pause_job(job_id: i32) -> std::result::Result<(), ErrorReport> {
    administered(job_id)?;
    Ok(jobs::pause(job_id)?)
}

#[pg_extern(sql = false)]
fn tally_resume_job(job_id: i32) -> std::result::Result<(), ErrorReport> {
    administered(job_id)?;
    Ok(jobs::resume(job_id, process::clock())?)
}

/// The longest limit: PostgreSQL's timers count milliseconds in 31 bits.
const LONGEST_RUN: Duration = Duration::from_secs(20 * 24 * 3600);

#[pg_extern(sql = false)]
fn tally_set_max_runtime(job_id: i32, max_runtime: Interval) -> std::result::Result<(), ErrorReport> {
    administered(job_id)?;
    let days = i64::from(max_runtime.days()).saturating_mul(tally_core::bucket::DAY);
    let whole = u64::try_from(max_runtime.micros().saturating_add(days)).map(Duration::from_micros).unwrap_or_default();
    if max_runtime.months() != 0 || whole < Duration::from_secs(1) || whole > LONGEST_RUN {
        return Err(Error::new("22023", "max_runtime must be between 1 second and 20 days")
            .hint("A run that takes longer is canceled and tried again; what it has committed stays.")
            .into());
    }
    Ok(jobs::set_max_runtime(job_id, whole)?)
}

#[pg_extern(sql = false)]
fn tally_run_job(job_id: i32) -> std::result::Result<Option<i64>, ErrorReport> {
    let job = owned(job_id)?;
    let (outcome, is_overlong) = time_limit::within(job.max_runtime, || process::catch_cancel(|| work(&job)));
    // Until the commit, which is about to come, they are held on.
    partition::settle_longest();
    let progress = match outcome {
        Ok(progress) => progress?,
        // Not as a cancel, which would end the whole of run_due_jobs.
        Err(_) if is_overlong => return Err(overlong(&job).into()),
        Err(cancel) => cancel.rethrow(),
    };
    let Some(progress) = progress else { return Ok(None) };
    if let Some(statement) = progress.statement {
        notice!("the next step is a statement at top level, outside of a transaction block: {};", statement.sql);
    }
    Ok(Some(progress.rows))
}

/// The next job after this number that is due and may be run by the caller: as itself, or in a worker as the owner.
#[pg_extern(sql = false)]
#[expect(clippy::type_complexity, reason = "pgrx reads the columns of the result here")]
fn tally_start_due_job(
    after_job_id: i32,
) -> std::result::Result<
    TableIterator<
        'static,
        (name!(job_id, i32), name!(kind, &'static str), name!(scheduled_at, Option<Moment>), name!(in_worker, bool)),
    >,
    ErrorReport,
> {
    version::require_writable()?;
    let now = process::clock();
    let caller = pg::process::current_role();
    let due = jobs::list()?.into_iter().filter(|job| job.id > after_job_id && is_enabled(job.kind) && !job.paused);
    for mut job in due {
        let Some(owner) = job.owner else { continue };
        if owner != caller && !pg::is_member(caller, owner) {
            continue;
        }
        let scheduled = slot_due(job.id).or(job.next_due).unwrap_or(now);
        // Whoever runs a job holds its lock.
        if (scheduled > now && job.started.is_none()) || !pg::try_lock_job(job.id) {
            continue;
        }
        if let Some(started) = job.started {
            end_unfinished(&mut job, started.server_ended, now)?;
            continue;
        }
        if job.troubles.hold() {
            continue;
        }
        // A statement at top level can only be had in a worker.
        let in_worker = owner != caller || job.kind.is_patient();
        if !in_worker {
            jobs::mark_started(job.id, now, job.troubles)?;
        }
        return Ok(TableIterator::once((job.id, job.kind.name(), moment(scheduled), in_worker)));
    }
    Ok(TableIterator::empty())
}

/// A run that began, has no end and goes on no longer: its server or its session died. It counts, and the job backs off.
fn end_unfinished(job: &mut Job, server_ended: bool, now: Timestamp) -> Result<()> {
    let outcome = if server_ended { Outcome::Crashed } else { Outcome::Failed };
    let (troubles, next_due) = job.troubles.after(outcome, now, job.every, settings::retry(), now, random());
    jobs::record_troubles(job.id, server_ended, troubles, next_due)?;
    jobs::announce_verdict(job, troubles, now)
}

#[pg_extern(sql = false)]
fn tally_finish_job(
    job_id: i32,
    scheduled_at: Option<Moment>,
    started_at: Option<Moment>,
    rows_done: Option<i64>,
    sqlstate: Option<String>,
    message: Option<String>,
    hint: Option<String>,
) -> std::result::Result<(), ErrorReport> {
    let mut job = owned(job_id)?;
    let now = process::clock();
    let instant = |at: Option<Moment>| at.map_or(now, |at| Timestamp(at.into()));
    let started = instant(started_at);
    let outcome = sqlstate.as_deref().map_or(Outcome::Done, Outcome::of_error);
    let failure =
        sqlstate.map(|sqlstate| Failure { sqlstate, message: message.unwrap_or_default(), detail: None, hint });
    let (troubles, next_due) =
        job.troubles.after(outcome, instant(scheduled_at), job.every, settings::retry(), now, random());
    let duration = Duration::from_micros(now.since(started).max(0).cast_unsigned());
    let longest_lock = partition::take_longest();
    let run = Run { started, duration, rows: rows_done.unwrap_or(0), failure, longest_lock };
    jobs::record_run(job_id, &run, troubles, next_due)?;
    let is_idle = outcome == Outcome::Done && partition::is_idle_since(job.object, job.kind, started)?;
    if announce::is_due(&job, is_idle, troubles) {
        announce::changes(&mut job, troubles)?;
    }
    with_slot(job_id, |slot| {
        (slot.troubles, slot.due, slot.is_recorded) = (troubles, next_due.0, outcome != Outcome::Done);
    });
    Ok(())
}

#[pg_extern(sql = false)]
fn tally_run_job_in_worker(job_id: i32) -> std::result::Result<bool, ErrorReport> {
    let job = known(job_id)?;
    let owner = job.owner.unwrap_or(Oid::INVALID);
    if !pg::is_member(process::current_role(), owner) {
        return Err(not_owner(&job).into());
    }
    let is_patient = job.kind.is_patient();
    let assignment = Assignment { database: process::own_database(), owner, job: job_id, token: 0, is_patient };
    let name = format!("{JOB_WORKER} of database {}", assignment.database.to_u32());
    let worker = Worker::start(&name, JOB_WORKER, "tally_job_main", &assignment.write());
    Ok(worker.inspect(Worker::wait).is_some())
}

#[pg_extern(sql = false)]
#[expect(clippy::type_complexity, reason = "pgrx reads the columns of the result here")]
fn tally_job_activity() -> TableIterator<
    'static,
    (
        name!(job_id, i32),
        name!(state, &'static str),
        name!(next_due_at, Option<Moment>),
        name!(failures, i32),
        name!(waits, i32),
        name!(crashes, i32),
        name!(pid, Option<i32>),
        name!(running_since, Option<Moment>),
        name!(last_run_at, Option<Moment>),
        name!(last_success_at, Option<Moment>),
        name!(last_duration, Option<Interval>),
        name!(last_sqlstate, Option<String>),
    ),
> {
    let database = process::own_database().to_u32();
    let slots = SHARED
        .read(|header, slots| {
            let used = slots[..header.used].iter();
            used.filter(|slot| slot.phase != Phase::Free && slot.database == database).copied().collect::<Vec<_>>()
        })
        .unwrap_or_default();
    let time = |moment: i64| if moment == 0 { None } else { self::moment(Timestamp(moment)) };
    TableIterator::new(slots.into_iter().map(move |slot| {
        let running = slot.phase == Phase::Running;
        (
            slot.job,
            match slot.phase {
                Phase::Running => "running",
                Phase::Starting => "starting",
                Phase::Held => "paused",
                Phase::Waiting | Phase::Free => "waiting",
            },
            moment(Timestamp(slot.due)),
            slot.troubles.failures as i32,
            slot.troubles.waits as i32,
            slot.troubles.crashes as i32,
            running.then_some(slot.pid),
            if running { time(slot.since) } else { None },
            time(slot.last_run),
            time(slot.last_success),
            (slot.last_run != 0).then(|| Interval::from_micros(slot.last_duration)),
            (slot.sqlstate != [0; 5]).then(|| String::from_utf8_lossy(&slot.sqlstate).into_owned()),
        )
    }))
}

#[pg_extern(sql = false)]
#[expect(clippy::type_complexity, reason = "pgrx reads the columns of the result here")]
fn tally_worker_mode() -> std::result::Result<
    TableIterator<
        'static,
        (
            name!(mode, &'static str),
            name!(library_version, &'static str),
            name!(launcher_pid, Option<i32>),
            name!(workers_used, i32),
            name!(workers_max, i32),
            name!(waiting_since, Option<Moment>),
            name!(enabled, bool),
            name!(refresh_enabled, bool),
            name!(premake_enabled, bool),
            name!(retention_enabled, bool),
            name!(next_sql, Option<&'static str>),
        ),
    >,
    ErrorReport,
> {
    let shared = SHARED.read(|header, slots| {
        let used = slots[..header.used].iter().filter(|slot| slot.is_taken());
        let mut tokens: Vec<u32> = used.map(|slot| slot.token).collect();
        tokens.sort_unstable();
        tokens.dedup();
        (header.launcher, tokens.len(), header.refused_since)
    });
    let (launcher, used, refused) = shared.unwrap_or((0, 0, None));
    Ok(TableIterator::once((
        if shared.is_some() { "preloaded" } else { "on demand" },
        version::LIBRARY,
        process::is_alive(launcher).then_some(launcher),
        used as i32,
        settings::max_workers() as i32,
        refused.and_then(moment),
        settings::enabled(),
        settings::refresh_enabled(),
        settings::premake_enabled(),
        settings::retention_enabled(),
        version::mismatch()?.as_ref().map(Mismatch::next_sql),
    )))
}

/// The job, for whoever is about to change or to run it.
fn known(id: i32) -> Result<Job> {
    version::require_writable()?;
    jobs::get(id)?.ok_or_else(|| {
        Error::new("42704", format!("there is no job {id}")).hint("tally.status lists the jobs of this database.")
    })
}

/// The job, if its object is there.
fn present(id: i32) -> Result<Job> {
    let job = known(id)?;
    if job.owner.is_some() {
        return Ok(job);
    }
    Err(Error::new("42P01", format!("the table \"{}\" of job {id} does not exist any more", job.object_name)))
}

/// The job, if the caller is the very role that owns its object: code of the owner is about to run.
fn owned(id: i32) -> Result<Job> {
    let job = present(id)?;
    if job.owner == Some(process::current_role()) { Ok(job) } else { Err(not_owner(&job)) }
}

/// The job, if the caller may do to its object what the owner may: a superuser, or a member of the owner.
fn administered(id: i32) -> Result<Job> {
    let job = present(id)?;
    if pg::owns(job.object) {
        return Ok(job);
    }
    Err(Error::new("42501", format!("must be the owner of \"{}\"", job.object_name))
        .hint("Have the owner of the table, a member of that role or a superuser do it."))
}

fn not_owner(job: &Job) -> Error {
    Error::new("42501", format!("must be the owner of \"{}\"", job.object_name))
        .detail(format!("Job {} runs as the owner of the table, whoever asks for it.", job.id))
        .hint("SET ROLE to the owner, or have the background workers run it.")
}

/// When the job is due according to shared memory, which knows of runs that were not recorded.
fn slot_due(id: i32) -> Option<Timestamp> {
    let database = process::own_database().to_u32();
    SHARED.read(|header, slots| {
        let slot = slots[..header.used].iter().find(|slot| slot.is(database, id))?;
        Some(Timestamp(if slot.is_taken() { i64::MAX } else { slot.due }))
    })?
}

fn with_slot(id: i32, change: impl FnOnce(&mut super::Slot)) {
    let database = process::own_database().to_u32();
    SHARED.write(|header, slots| {
        if let Some(slot) = slots[..header.used].iter_mut().find(|slot| slot.is(database, id)) {
            change(slot);
        }
    });
}

fn moment(at: Timestamp) -> Option<Moment> {
    Moment::try_from(at.0).ok()
}
