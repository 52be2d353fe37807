//! One run of one job: the work in a transaction of its own, then the record.

use super::{OVERLONG, SHARED, Slot, announce, marks, random};
use crate::catalog::jobs::{Job, Run, announce_verdict, record_run};
use crate::error::{Error, Failure, Result};
use crate::jobs::Kind;
use crate::partition::Pass;
use crate::pg::{self, process, time_limit};
use crate::{build, partition, refresh, seal, settings};
use std::time::{Duration, Instant};
use tally_core::bucket::Timestamp;
use tally_core::schedule::rest::Rest;
use tally_core::schedule::{self, Outcome};

/// What became of it.
enum Work {
    /// Somebody else is running the job.
    Busy,
    Done {
        progress: Progress,
        /// It wrote something, so there is something to record.
        wrote: bool,
    },
}

/// What a run has done.
#[derive(Default)]
pub(super) struct Progress {
    /// Source rows counted, partitions made, or steps taken with old ones.
    pub rows: i64,
    /// There is more to do, in a new transaction.
    pub more: bool,
    /// There is nothing to do before this much time has passed, and then there is.
    pub pause: Option<Duration>,
    /// What is left to do at top level.
    pub statement: Option<partition::Statement>,
    /// Was there anything to do?
    pub pass: Pass,
}

/// The work itself, in the current transaction, which has not written yet. `None` if somebody else is at it.
pub(super) fn work(job: &Job) -> Result<Option<Progress>> {
    if !pg::try_lock_job(job.id) {
        return Ok(None);
    }
    Ok(match job.kind {
        Kind::Refresh => {
            let mut seal = None;
            let report = refresh::tick_unless_busy(job.object, &mut |reached| {
                let rows = build::step(reached)?;
                seal = Some(seal::step(reached)?);
                Ok(rows)
            })?;
            let Some(report) = report else { return Ok(None) };
            let has_written = pg::own_xid().is_some();
            let is_building = build::is_unfinished(job.object)?;
            // A view that is being read could not be replaced: there is time for that.
            let more = seal.is_some_and(|seal| seal.more) || has_written && is_building;
            let pass = match seal {
                Some(seal) if !has_written && !is_building => Pass::Look(seal.rests_until),
                _ => Pass::Work,
            };
            Some(Progress { rows: report.rows, more, pass, ..Progress::default() })
        }
        Kind::Premake => {
            let report = partition::maintain(job.object)?;
            Some(Progress {
                rows: report.made,
                more: report.remaining > 0 || report.more_upkeep,
                pause: report.pause,
                pass: report.pass,
                ..Progress::default()
            })
        }
        Kind::Retention | Kind::Conversion => {
            let step = if job.kind == Kind::Retention { partition::retire } else { partition::convert };
            let partition::Progress { more, pause, statement, pass } = step(job.object)?;
            Some(Progress { rows: i64::from(more), more, pause, statement, pass })
        }
    })
}

/// Runs the job in this worker, which is connected as the owner and has no transaction open. `slot` is where shared memory has it.
/// Answers whether there is more to do at once.
pub(super) fn perform(job: &mut Job, slot: Option<usize>, scheduled: Timestamp) -> bool {
    process::report_activity(&format!("tally {} {}", job.kind.name(), job.object_name));
    if let Some(at) = slot {
        record_lost(job, at);
        let mark = marks::Mark { database: process::own_database().to_u32(), job: job.id };
        complain(marks::set(at, mark));
    }
    let started = process::clock();
    let (work, is_overlong) = time_limit::within(job.max_runtime, || {
        let work = process::transaction(|| {
            Ok(match work(job)? {
                None => Work::Busy,
                // That somebody has been there is nothing to tell.
                Some(progress) => {
                    let wrote = progress.pass == Pass::Work && pg::own_xid().is_some();
                    Work::Done { progress, wrote }
                }
            })
        });
        partition::settle_longest();
        // What has been committed stays, whatever becomes of the statement: the next run sees where it got to.
        work.and_then(|work| match &work {
            Work::Done { progress: Progress { statement: Some(statement), .. }, .. } => {
                at_top_level(statement, slot).map(|()| work)
            }
            _ => Ok(work),
        })
    });
    let work =
        work.map_err(|failure| if is_overlong && failure.sqlstate == "57014" { overlong(job).into() } else { failure });
    let ended = process::clock();
    if let Some(at) = slot {
        complain(marks::wipe(at));
    }
    let duration = Duration::from_micros(ended.since(started).max(0).cast_unsigned());

    let (outcome, progress, wrote, failure) = match work {
        Ok(Work::Busy) => (Outcome::Waited, Progress::default(), false, Some(busy())),
        Ok(Work::Done { progress, wrote }) => (Outcome::Done, progress, wrote, None),
        Err(failure) => (Outcome::of_error(&failure.sqlstate), Progress::default(), false, Some(failure)),
    };
    let Progress { rows, more, pause, pass, .. } = progress;
    let rest = match pass {
        Pass::Look(until) | Pass::Idle(until) if !more => {
            let until = pause.map_or(until, |pause| until.min(after_pause(ended, pause)));
            Rest { looked_at: started, until }
        }
        _ => Rest::default(),
    };
    let before = job.troubles;
    let (after, next_due) = before.after(outcome, scheduled, job.every, settings::retry(), ended, random());
    let next_due = match pause {
        _ if more => ended,
        Some(pause) => next_due.min(after_pause(ended, pause)),
        None => next_due,
    };
    if let Some(failure) = &failure {
        report(job, failure, after.failures);
    }
    let run = Run { started, duration, rows, failure, longest_lock: partition::take_longest() };
    // Without a slot the table is the only memory. With one it is told of what matters after a restart: work done and failures.
    let is_worth_a_record = slot.is_none() || wrote || outcome == Outcome::Failed || after.failures != before.failures;
    let mut is_recorded = slot.is_some_and(|at| SHARED.read(|_, slots| slots[at].is_recorded).unwrap_or(false));
    if is_worth_a_record || (outcome == Outcome::Done && is_recorded) {
        match process::transaction(|| record_run(job.id, &run, after, next_due)) {
            Ok(()) => is_recorded = outcome != Outcome::Done,
            Err(failure) => pgrx::warning!("tally could not record a run of job {}: {}", job.id, failure.message),
        }
    }
    // Apart from the record, which must not be lost when the queue of notices is full.
    if announce::is_due(job, pass.is_idle(), after)
        && let Err(failure) = process::transaction(|| announce::changes(job, after))
    {
        pgrx::warning!("tally could not announce a change of job {}: {}", job.id, failure.message);
    }
    if let Some(at) = slot {
        let database = process::own_database().to_u32();
        SHARED.write(|_, slots| {
            let slot = &mut slots[at];
            // The job may have been dropped meanwhile and its slot given to another one.
            if slot.is(database, job.id) {
                note(slot, &run, outcome);
                (slot.troubles, slot.due, slot.is_recorded, slot.rest) = (after, next_due.0, is_recorded, rest);
            }
        });
    }
    more
}

fn after_pause(ended: Timestamp, pause: Duration) -> Timestamp {
    ended.plus(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX))
}

/// Executes a statement that waits for locks by itself, and charges that to the tables.
fn at_top_level(statement: &partition::Statement, slot: Option<usize>) -> std::result::Result<(), Failure> {
    let begin = Instant::now();
    let parked = slot.filter(|_| statement.only_waits).and_then(Parked::at);
    let outcome = process::at_top_level(&statement.sql, statement.lock_timeout);
    drop(parked);
    if !statement.charged.is_empty() {
        let took = begin.elapsed();
        process::transaction(|| partition::charge_statement(&statement.charged, took, outcome.is_err()))?;
    }
    outcome
}

/// As long as it lives, the worker in the slot waits for somebody: another one may do what is due.
struct Parked(usize);

impl Parked {
    /// Takes one of the places for that, if there is one.
    fn at(at: usize) -> Option<Self> {
        let launcher = SHARED.write(|header, slots| {
            let (places, taken) = super::waiting_places(header, slots);
            (taken < places).then(|| {
                slots[at].is_parked = true;
                header.launcher
            })
        })??;
        process::wake(launcher);
        Some(Self(at))
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        SHARED.write(|_, slots| slots[self.0].is_parked = false);
    }
}

/// What a slot remembers of a run.
fn note(slot: &mut Slot, run: &Run, outcome: Outcome) {
    slot.last_run = run.started.0;
    slot.last_duration = i64::try_from(run.duration.as_micros()).unwrap_or(i64::MAX);
    slot.sqlstate = [0; 5];
    if outcome == Outcome::Done {
        slot.last_success = run.started.0;
    }
    if let Some(failure) = &run.failure {
        slot.sqlstate = super::code(&failure.sqlstate);
    }
}

/// The run took longer than it may.
pub(super) fn overlong(job: &Job) -> Error {
    let id = job.id;
    Error::new(OVERLONG, format!("the run took longer than its max_runtime of {:?} and was canceled", job.max_runtime))
        .hint(format!(
            "If it needs more time: SELECT tally.set_max_runtime({id}, '{} seconds');",
            job.max_runtime.as_secs() * 2
        ))
}

/// Records a run that ended without a result, in the words that fit to what shared memory remembers of it.
fn record_lost(job: &mut Job, at: usize) {
    let Some(slot) = SHARED.read(|_, slots| slots[at]).filter(|slot| slot.lost_since != 0) else { return };
    let failure = if slot.sqlstate == OVERLONG.as_bytes() {
        overlong(job)
    } else {
        Error::new("57P01", "the worker ended without a result")
            .hint("Somebody ended it, or the machine ran out of memory: the server log says more.")
    };
    let duration = Duration::from_micros(slot.last_duration.max(0).cast_unsigned());
    let run = Run {
        started: Timestamp(slot.lost_since),
        duration,
        rows: 0,
        failure: Some(failure.into()),
        longest_lock: None,
    };
    let recorded = process::transaction(|| {
        record_run(job.id, &run, slot.troubles, Timestamp(slot.due))?;
        announce_verdict(job, slot.troubles, process::clock())
    });
    match recorded {
        Ok(()) => {
            SHARED.write(|_, slots| (slots[at].lost_since, slots[at].is_recorded) = (0, true));
        }
        Err(failure) => pgrx::warning!("tally could not record a run of job {}: {}", job.id, failure.message),
    }
}

fn busy() -> Failure {
    Error::new("55P03", "the job is being run by another session").into()
}

fn report(job: &Job, failure: &Failure, failures: u32) {
    if schedule::is_worth_a_line(failures) {
        pgrx::warning!(
            "tally {} job {} for {} failed ({} in a row): {} (SQLSTATE {}){}{}",
            job.kind.name(),
            job.id,
            job.object_name,
            failures,
            failure.message,
            failure.sqlstate,
            failure.detail.as_deref().map(|detail| format!(" DETAIL: {detail}")).unwrap_or_default(),
            failure.hint.as_deref().map(|hint| format!(" HINT: {hint}")).unwrap_or_default(),
        );
    }
}

/// Without its mark a job that crashes the server is not found out; that is no reason not to run it.
fn complain(result: std::io::Result<()>) {
    if let Err(error) = result {
        pgrx::warning!("tally cannot write pg_stat_tmp/tally_running: {error}");
    }
}
