//! The job worker: connects as the owner, runs the job that it was started for and then whatever else is due for this owner in this
//! database, and ends. Started for each burst of work, so that no user code has a process of ours for long.

use super::run::perform;
use super::{Assignment, Phase, SHARED, is_enabled, marks};
use crate::catalog::jobs;
use crate::error::Result;
use crate::jobs::Kind;
use crate::pg::{self, Datum, process};
use crate::version::{self, LIBRARY};
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;

/// The worker's `main`.
#[pg_guard]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "PostgreSQL finds this function by its symbol")]
pub extern "C-unwind" fn tally_job_main(_argument: Datum) {
    process::accept_signals();
    let Some(mine) = Assignment::read(process::extra()) else { return };
    process::connect(mine.database, Some(mine.owner));
    marks::wipe_at_exit();
    // On demand somebody waits for this one job, and it has no slot, or none that says so.
    if mine.token == 0 {
        while run_one(mine.job, None, process::clock()) {}
        return;
    }
    // Jobs that come due later get a worker of their own; this one ends some time.
    let horizon = process::clock();
    let mut next = take_assigned(&mine, horizon);
    while let Some((at, job, scheduled)) = next {
        run_one(job, Some(at), scheduled);
        release(at, &mine);
        next = take_due(&mine, horizon);
    }
}

/// Makes the slot that this worker was started for its own; `None` if it means another worker by now.
fn take_assigned(mine: &Assignment, now: Timestamp) -> Option<(usize, i32, Timestamp)> {
    let pid = process::own_pid();
    SHARED.write(|header, slots| {
        let database = mine.database.to_u32();
        let at = slots[..header.used].iter().position(|slot| {
            slot.is(database, mine.job) && slot.phase == Phase::Starting && slot.token == mine.token
        })?;
        let slot = &mut slots[at];
        if header.database(database).is_some_and(|line| line.stopped_until > now.0) {
            slot.phase = Phase::Waiting;
            return None;
        }
        (slot.phase, slot.pid, slot.since) = (Phase::Running, pid, now.0);
        (slot.is_ended, slot.is_parked) = (false, false);
        Some((at, slot.job, Timestamp(slot.due)))
    })?
}

/// Takes the longest overdue job of this owner in this database.
fn take_due(mine: &Assignment, horizon: Timestamp) -> Option<(usize, i32, Timestamp)> {
    let pid = process::own_pid();
    let now = process::clock();
    let enabled = Kind::ALL.map(is_enabled);
    SHARED.write(|header, slots| {
        let database = mine.database.to_u32();
        if header.database(database).is_some_and(|database| database.stopped_until > now.0) {
            return None;
        }
        let slot = slots[..header.used].iter_mut().enumerate().filter(|(_, slot)| {
            enabled[slot.kind as usize]
                && slot.kind.is_patient() == mine.is_patient
                && slot.phase == Phase::Waiting
                && slot.database == database
                && slot.owner == mine.owner.to_u32()
                && slot.due <= horizon.0
        });
        let (at, slot) = slot.min_by_key(|(_, slot)| slot.due)?;
        (slot.phase, slot.token, slot.pid, slot.since) = (Phase::Running, mine.token, pid, now.0);
        (slot.is_ended, slot.is_parked) = (false, false);
        Some((at, slot.job, Timestamp(slot.due)))
    })?
}

/// Gives the slot back, unless it has been taken away.
fn release(at: usize, mine: &Assignment) {
    SHARED.write(|_, slots| {
        let slot = &mut slots[at];
        if slot.phase == Phase::Running && slot.token == mine.token {
            slot.phase = if slot.troubles.hold() { Phase::Held } else { Phase::Waiting };
            slot.pid = 0;
        }
    });
}

/// What the tables say about the job that a slot is for.
enum Look {
    /// The extension is gone or of another version.
    NoExtension,
    /// The job, its object, its owner or its state is no longer what the slot says.
    Changed,
    Run(jobs::Job),
}

/// Answers whether there is more to do at once.
fn run_one(job: i32, slot: Option<usize>, scheduled: Timestamp) -> bool {
    match process::transaction(|| look(job)) {
        Ok(Look::Run(mut job)) => {
            // The slot knows of waits and of runs that were not worth a record.
            if let Some(troubles) = slot.and_then(|at| SHARED.read(|_, slots| slots[at].troubles)) {
                job.troubles = troubles;
            }
            return perform(&mut job, slot, scheduled);
        }
        Ok(Look::NoExtension) => forget_database(),
        Ok(Look::Changed) => {
            // The probe sets it right. Until then it is not due, or it would be tried again at once.
            postpone(slot);
            super::notify();
        }
        Err(failure) => {
            pgrx::warning!("tally could not look up job {job}: {} (SQLSTATE {})", failure.message, failure.sqlstate);
            postpone(slot);
        }
    }
    false
}

fn look(id: i32) -> Result<Look> {
    if version::installed()?.as_deref() != Some(LIBRARY) {
        return Ok(Look::NoExtension);
    }
    Ok(match jobs::get(id)? {
        Some(job) if job.owner == Some(pg::process::current_role()) && !job.paused => Look::Run(job),
        _ => Look::Changed,
    })
}

fn postpone(slot: Option<usize>) {
    let now = process::clock();
    let delay = crate::settings::retry().delay(1, super::random());
    if let Some(at) = slot {
        SHARED.write(|_, slots| slots[at].due = now.0.saturating_add(delay.as_micros() as i64));
    }
}

/// The extension has been dropped: none of its jobs is left.
fn forget_database() {
    let database = process::own_database().to_u32();
    SHARED.write(|header, slots| {
        for slot in slots[..header.used].iter_mut().filter(|slot| slot.database == database) {
            *slot = super::Slot::default();
        }
    });
}
