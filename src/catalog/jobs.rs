//! `tally.jobs`, `tally.job_states` and `tally.runs`.

use crate::error::{Failure, Result, no_row_is_none, spi};
use crate::jobs::Kind;
use crate::pg::{Kept, Oid, as_extension_owner};
use crate::settings;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::spi::SpiHeapTupleData;
use std::time::Duration;
use tally_core::bucket::Timestamp;
use tally_core::schedule::Troubles;

/// A job with what is recorded of it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub id: i32,
    pub kind: Kind,
    pub object: Oid,
    pub object_name: String,
    /// Who owns the object now; `None` if it is gone.
    pub owner: Option<Oid>,
    pub every: Duration,
    /// How long one run may take.
    pub max_runtime: Duration,
    pub paused: bool,
    pub troubles: Troubles,
    pub next_due: Option<Timestamp>,
    pub resumed: Option<Timestamp>,
    /// The verdict that whoever listens was told last.
    pub told: String,
    /// A run that `tally.run_due_jobs` has started and not finished.
    pub started: Option<Started>,
}

/// A mark of a run, and whether the server that it was made on has ended since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    pub server_ended: bool,
}

/// Jobs with what is recorded of them, `$condition` which.
macro_rules! jobs_where {
    ($condition:literal) => {
        concat!(
            "SELECT j.job_id, j.kind, j.object::pg_catalog.oid, j.object_name, c.relowner,
                    (pg_catalog.extract('epoch', j.every) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8,
                    j.paused, s.failures, s.waits, s.crashes, s.next_due_at, s.resumed_at,
                    s.running_since IS NOT NULL, s.running_server OPERATOR(pg_catalog.<>) pg_catalog.pg_postmaster_start_time(),
                    (pg_catalog.extract('epoch', j.max_runtime) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8,
                    coalesce(s.told_verdict, 'ok')
             FROM tally.jobs j
             LEFT JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) j.object
             LEFT JOIN tally.job_states s ON s.job_id OPERATOR(pg_catalog.=) j.job_id ",
            $condition
        )
    };
}

/// All jobs of this database, by their number.
pub(crate) fn list() -> Result<Vec<Job>> {
    select(jobs_where!("ORDER BY j.job_id"), &[])
}

pub(crate) fn get(id: i32) -> Result<Option<Job>> {
    Ok(select(jobs_where!("WHERE j.job_id OPERATOR(pg_catalog.=) $1"), &[id.into()])?.pop())
}

fn select(query: &str, arguments: &[DatumWithOid]) -> Result<Vec<Job>> {
    as_extension_owner(|| {
        Spi::connect(|client| {
            client.select(Kept(query), None, arguments)?.map(|row| job(&row)).collect::<pgrx::spi::Result<_>>()
        })
    })
    .map_err(spi)
}

fn job(row: &SpiHeapTupleData) -> pgrx::spi::Result<Job> {
    let count = |column: usize| -> pgrx::spi::Result<u32> {
        Ok(row.get::<i32>(column)?.map_or(0, |number| number.max(0).cast_unsigned()))
    };
    let span = |column: usize| -> pgrx::spi::Result<Duration> {
        Ok(Duration::from_micros(row.get::<i64>(column)?.unwrap_or_default().max(0).cast_unsigned()))
    };
    Ok(Job {
        id: row.get(1)?.unwrap_or_default(),
        kind: row.get::<&str>(2)?.and_then(Kind::named).unwrap_or(Kind::Refresh),
        object: row.get(3)?.unwrap_or(Oid::INVALID),
        object_name: row.get(4)?.unwrap_or_default(),
        owner: row.get(5)?,
        every: span(6)?,
        max_runtime: span(15)?,
        paused: row.get(7)?.unwrap_or_default(),
        troubles: Troubles { failures: count(8)?, waits: count(9)?, crashes: count(10)? },
        next_due: row.get(11)?.map(instant),
        resumed: row.get(12)?.map(instant),
        told: row.get(16)?.unwrap_or_default(),
        started: row.get(13)?.unwrap_or(false).then_some(Started { server_ended: row.get(14)?.unwrap_or(false) }),
    })
}

/// Makes the job, or changes its interval.
pub(crate) fn put(kind: Kind, object: Oid, every: Duration) -> Result<()> {
    write(
        "INSERT INTO tally.jobs AS j (kind, object, object_name, every, max_runtime)
         SELECT $1, c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname), $3 OPERATOR(pg_catalog.*) interval '1 microsecond',
                $4 OPERATOR(pg_catalog.*) interval '1 microsecond'
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
         WHERE c.oid OPERATOR(pg_catalog.=) $2
         ON CONFLICT (object, kind) DO UPDATE SET every = excluded.every, object_name = excluded.object_name",
        &[
            kind.name().into(),
            object.into(),
            (every.as_micros() as f64).into(),
            (kind.max_runtime().as_micros() as f64).into(),
        ],
    )
}

/// Forgets the job of this kind for this object, and how it went.
pub(crate) fn delete(kind: Kind, object: Oid) -> Result<()> {
    write(
        "WITH gone AS (DELETE FROM tally.jobs j WHERE j.kind OPERATOR(pg_catalog.=) $1 AND j.object OPERATOR(pg_catalog.=) $2
                       RETURNING j.job_id)
         DELETE FROM tally.job_states s USING gone g WHERE s.job_id OPERATOR(pg_catalog.=) g.job_id",
        &[kind.name().into(), object.into()],
    )
}

/// Forgets a job by its number, and how it went.
pub(crate) fn delete_by_id(id: i32) -> Result<()> {
    write("DELETE FROM tally.jobs j WHERE j.job_id OPERATOR(pg_catalog.=) $1", &[id.into()])?;
    write("DELETE FROM tally.job_states s WHERE s.job_id OPERATOR(pg_catalog.=) $1", &[id.into()])
}

pub(crate) fn set_max_runtime(id: i32, max_runtime: Duration) -> Result<()> {
    write(
        "UPDATE tally.jobs SET max_runtime = $2 OPERATOR(pg_catalog.*) interval '1 microsecond' WHERE job_id OPERATOR(pg_catalog.=) $1",
        &[id.into(), (max_runtime.as_micros() as f64).into()],
    )
}

pub(crate) fn pause(id: i32) -> Result<()> {
    write("UPDATE tally.jobs SET paused = true WHERE job_id OPERATOR(pg_catalog.=) $1 AND NOT paused", &[id.into()])
}

/// Lets the job run at once, with its troubles forgotten. The row of `tally.jobs` is touched in any case: that wakes the launcher.
pub(crate) fn resume(id: i32, now: Timestamp) -> Result<()> {
    if let Some(mut job) = get(id)? {
        announce_verdict(&mut job, Troubles::default(), now)?;
    }
    write("UPDATE tally.jobs SET paused = false WHERE job_id OPERATOR(pg_catalog.=) $1", &[id.into()])?;
    write(
        "INSERT INTO tally.job_states (job_id, next_due_at, failures, waits, crashes, resumed_at) VALUES ($1, $2, 0, 0, 0, $2)
         ON CONFLICT (job_id) DO UPDATE
         SET next_due_at = excluded.next_due_at, failures = 0, waits = 0, crashes = 0, resumed_at = excluded.resumed_at",
        &[id.into(), moment(now)],
    )
}

/// The number of the job of this kind for this object.
pub(crate) fn of_object(kind: Kind, object: Oid) -> Result<Option<i32>> {
    super::look_up::<i32>(
        "SELECT j.job_id FROM tally.jobs j WHERE j.kind OPERATOR(pg_catalog.=) $1 AND j.object OPERATOR(pg_catalog.=) $2",
        &[kind.name().into(), object.into()],
    )
}

/// Pauses the premake and the retention of a partition set.
pub(crate) fn pause_of(parent: Oid) -> Result<()> {
    of_set(parent)?.into_iter().try_for_each(pause)
}

/// Resumes them.
pub(crate) fn resume_of(parent: Oid, now: Timestamp) -> Result<()> {
    of_set(parent)?.into_iter().try_for_each(|id| resume(id, now))
}

fn of_set(parent: Oid) -> Result<Vec<i32>> {
    super::look_up::<Vec<i32>>(
        "SELECT pg_catalog.array_agg(j.job_id) FROM tally.jobs j WHERE j.object OPERATOR(pg_catalog.=) $1 \
         AND j.kind OPERATOR(pg_catalog.<>) 'refresh'",
        &[parent.into()],
    )
    .map(Option::unwrap_or_default)
}

/// Has the job run at once: what it is to do has changed. What it has been through is not forgotten.
pub(crate) fn hasten(kind: Kind, object: Oid, now: Timestamp) -> Result<()> {
    let Some(id) = of_object(kind, object)? else { return Ok(()) };
    // That wakes the launcher.
    write("UPDATE tally.jobs SET every = every WHERE job_id OPERATOR(pg_catalog.=) $1", &[id.into()])?;
    write(
        "INSERT INTO tally.job_states (job_id, next_due_at, failures, waits, crashes, resumed_at) VALUES ($1, $2, 0, 0, 0, $2)
         ON CONFLICT (job_id) DO UPDATE SET next_due_at = excluded.next_due_at, resumed_at = excluded.resumed_at",
        &[id.into(), moment(now)],
    )
}

/// Marks a run as started, for those who have no shared memory to do it in.
pub(crate) fn mark_started(id: i32, now: Timestamp, troubles: Troubles) -> Result<()> {
    write(
        "INSERT INTO tally.job_states (job_id, next_due_at, failures, waits, crashes, running_since, running_server)
         VALUES ($1, $2, $3, $4, $5, $2, pg_catalog.pg_postmaster_start_time())
         ON CONFLICT (job_id) DO UPDATE
         SET failures = excluded.failures, waits = excluded.waits, crashes = excluded.crashes,
             running_since = excluded.running_since, running_server = excluded.running_server",
        &[id.into(), moment(now), count(troubles.failures), count(troubles.waits), count(troubles.crashes)],
    )
}

/// Records troubles without a run: a crash of the server, or a run that ended without a word.
pub(crate) fn record_troubles(id: i32, server_ended: bool, troubles: Troubles, next_due: Timestamp) -> Result<()> {
    let (sqlstate, message) = if server_ended {
        ("57P02", "the server crashed while the job ran")
    } else {
        ("57P01", "the session that ran the job was canceled or ended")
    };
    write(
        "INSERT INTO tally.job_states (job_id, next_due_at, failures, waits, crashes, last_sqlstate, last_message)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (job_id) DO UPDATE
         SET next_due_at = excluded.next_due_at, failures = excluded.failures, waits = excluded.waits, crashes = excluded.crashes,
             running_since = NULL, running_server = NULL, last_sqlstate = excluded.last_sqlstate, last_message = excluded.last_message, last_hint = NULL",
        &[
            id.into(),
            moment(next_due),
            count(troubles.failures),
            count(troubles.waits),
            count(troubles.crashes),
            sqlstate.into(),
            message.into(),
        ],
    )
}

/// Tells whoever listens on the channel `tally`, at the commit.
pub(crate) fn announce(kind: &str, object: &str, old: &str, new: &str, reason: &str) -> Result<()> {
    write(
        "SELECT pg_catalog.pg_notify('tally', pg_catalog.json_build_object('kind', $1, 'object', $2, 'old', $3, 'new', $4, 'reason', $5)::text)",
        &[kind.into(), object.into(), old.into(), new.into(), reason.into()],
    )
}

/// Tells them of the verdict on a job, if it is not the one that they were told last. Whoever does so at the same time waits, and is
/// compared with this.
pub(crate) fn announce_verdict(job: &mut Job, troubles: Troubles, now: Timestamp) -> Result<()> {
    if !is_news(job, troubles) {
        return Ok(());
    }
    let verdict = troubles.verdict().name();
    write(
        "WITH told AS (SELECT s.told_verdict FROM tally.job_states s WHERE s.job_id OPERATOR(pg_catalog.=) $1 FOR UPDATE),
              old AS (SELECT coalesce((SELECT t.told_verdict FROM told t), 'ok') AS verdict),
              news AS (INSERT INTO tally.job_states (job_id, next_due_at, failures, waits, crashes, told_verdict)
                       SELECT $1, $2, 0, 0, 0, $3 FROM old o WHERE o.verdict OPERATOR(pg_catalog.<>) $3
                       ON CONFLICT (job_id) DO UPDATE SET told_verdict = excluded.told_verdict
                       RETURNING told_verdict)
         SELECT pg_catalog.pg_notify('tally', pg_catalog.json_build_object(
                    'kind', $4, 'object', $5, 'old', o.verdict, 'new', n.told_verdict, 'reason', $6)::text)
         FROM news n, old o",
        &[
            job.id.into(),
            moment(now),
            verdict.into(),
            job.kind.name().into(),
            job.object_name.as_str().into(),
            troubles.reason().into(),
        ],
    )?;
    verdict.clone_into(&mut job.told);
    Ok(())
}

/// Does the verdict differ from what was last told, as far as this process knows?
pub(crate) fn is_news(job: &Job, troubles: Troubles) -> bool {
    job.told != troubles.verdict().name()
}

/// The verdict on the partition set of a premake job that was announced last.
pub(crate) fn set_verdict(id: i32) -> Result<Option<String>> {
    as_extension_owner(|| {
        super::look_up::<String>(
            "SELECT s.set_verdict FROM tally.job_states s WHERE s.job_id OPERATOR(pg_catalog.=) $1",
            &[id.into()],
        )
    })
}

pub(crate) fn remember_set_verdict(id: i32, verdict: &str, now: Timestamp) -> Result<()> {
    write(
        "INSERT INTO tally.job_states (job_id, next_due_at, failures, waits, crashes, set_verdict) VALUES ($1, $2, 0, 0, 0, $3)
         ON CONFLICT (job_id) DO UPDATE SET set_verdict = excluded.set_verdict",
        &[id.into(), moment(now), verdict.into()],
    )
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub started: Timestamp,
    pub duration: Duration,
    pub rows: i64,
    pub failure: Option<Failure>,
    /// The longest lock that stopped writers of a table.
    pub longest_lock: Option<Duration>,
}

/// Records the end of a run: the state of the job, and a place in the ring of runs.
pub(crate) fn record_run(id: i32, run: &Run, troubles: Troubles, next_due: Timestamp) -> Result<()> {
    let failure = run.failure.as_ref();
    let sqlstate = failure.map(|failure| failure.sqlstate.as_str());
    let message = failure.map(|failure| cut(&failure.message));
    let hint = failure.and_then(|failure| failure.hint.as_deref()).map(cut);
    let duration = run.duration.as_micros() as f64;
    write(
        "INSERT INTO tally.job_states AS s (job_id, next_due_at, failures, waits, crashes, last_run_at, last_success_at, last_duration,
                                            last_sqlstate, last_message, last_hint)
         SELECT $1, $2, $3, $4, $5, $6, CASE WHEN $8 IS NULL THEN $6 END, $7 OPERATOR(pg_catalog.*) interval '1 microsecond', $8, $9, $10
         WHERE EXISTS (SELECT FROM tally.jobs j WHERE j.job_id OPERATOR(pg_catalog.=) $1) -- a job may have ended itself
         ON CONFLICT (job_id) DO UPDATE
         SET next_due_at = excluded.next_due_at, failures = excluded.failures, waits = excluded.waits, crashes = excluded.crashes,
             running_since = NULL, running_server = NULL, last_run_at = excluded.last_run_at,
             last_success_at = coalesce(excluded.last_success_at, s.last_success_at), last_duration = excluded.last_duration,
             last_sqlstate = excluded.last_sqlstate, last_message = excluded.last_message, last_hint = excluded.last_hint",
        &[
            id.into(),
            moment(next_due),
            count(troubles.failures),
            count(troubles.waits),
            count(troubles.crashes),
            moment(run.started),
            duration.into(),
            sqlstate.into(),
            message.into(),
            hint.into(),
        ],
    )?;
    write(
        "INSERT INTO tally.runs (position, job_id, started_at, duration, rows_done, sqlstate, message, longest_lock)
         SELECT CASE WHEN $5 IS NULL THEN pg_catalog.nextval('tally.runs_succeeded') OPERATOR(pg_catalog.%) $7
                     ELSE (-1)::pg_catalog.int8 OPERATOR(pg_catalog.-) pg_catalog.nextval('tally.runs_failed') OPERATOR(pg_catalog.%) $8 END,
                $1, $2, $3 OPERATOR(pg_catalog.*) interval '1 microsecond', $4, $5, $6, $9 OPERATOR(pg_catalog.*) interval '1 microsecond'
         ON CONFLICT (position) DO UPDATE
         SET job_id = excluded.job_id, started_at = excluded.started_at, duration = excluded.duration, rows_done = excluded.rows_done,
             sqlstate = excluded.sqlstate, message = excluded.message, longest_lock = excluded.longest_lock",
        &[
            id.into(),
            moment(run.started),
            duration.into(),
            run.rows.into(),
            sqlstate.into(),
            message.into(),
            settings::history_rows().into(),
            settings::history_errors().into(),
            run.longest_lock.map(|lasted| lasted.as_micros() as f64).into(),
        ],
    )
}

/// Places of the ring that a lower setting has cut off. Reads first: a database without any must not cost a transaction id.
pub(crate) fn trim_runs() -> Result<()> {
    let limits: [DatumWithOid; 2] = [settings::history_rows().into(), settings::history_errors().into()];
    let outside =
        "r.position OPERATOR(pg_catalog.>=) $1 OR r.position OPERATOR(pg_catalog.<) OPERATOR(pg_catalog.-) $2";
    let any = as_extension_owner(|| {
        Spi::connect(|client| {
            let found = client.select(&format!("SELECT FROM tally.runs r WHERE {outside} LIMIT 1"), None, &limits)?;
            Ok(!found.is_empty())
        })
    })
    .map_err(spi)?;
    if any { write(&format!("DELETE FROM tally.runs r WHERE {outside}"), &limits) } else { Ok(()) }
}

fn write(statement: &str, arguments: &[DatumWithOid]) -> Result<()> {
    as_extension_owner(|| Spi::run_with_args(statement, arguments)).map_err(spi)
}

fn count(number: u32) -> DatumWithOid<'static> {
    i32::try_from(number).unwrap_or(i32::MAX).into()
}

pub(super) fn moment(at: Timestamp) -> DatumWithOid<'static> {
    TimestampWithTimeZone::try_from(at.0).ok().into()
}

pub(super) fn instant(at: TimestampWithTimeZone) -> Timestamp {
    Timestamp(at.into())
}

/// Says whether a background worker of this server version cannot run as the owner of this object.
pub(crate) fn owner_that_cannot_log_in(object: Oid) -> Result<Option<String>> {
    no_row_is_none(Spi::connect(|client| {
        client
            .select(
                "SELECT o.rolname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_roles o ON o.oid OPERATOR(pg_catalog.=) c.relowner
                 WHERE c.oid OPERATOR(pg_catalog.=) $1 AND NOT o.rolcanlogin
                   AND pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog.<) 170000",
                Some(1),
                &[object.into()],
            )?
            .first()
            .get_one::<String>()
    }))
}

/// At most 1 kB, whole characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(1024)]
}
