//! The probe: a short look into one database, as bootstrap superuser. It reads tally's tables and nothing else, copies what is due
//! into the slots, and ends.

use super::{Assignment, Phase, SHARED, Slot};
use crate::catalog::jobs::{self, Job};
use crate::error::Result;
use crate::pg::{Datum, process};
use crate::settings;
use crate::version::{self, LIBRARY};
use pgrx::prelude::*;
use tally_core::bucket::Timestamp;
use tally_core::error::Explain as _;
use tally_core::schedule::rest::Rest;
use tally_core::schedule::{self, Outcome};
use tally_core::version::check;

/// The probe's `main`.
#[pg_guard]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "PostgreSQL finds this function by its symbol")]
pub extern "C-unwind" fn tally_probe_main(_argument: Datum) {
    process::accept_signals();
    let Some(mine) = Assignment::read(process::extra()) else { return };
    process::connect(mine.database, None);
    process::report_activity("tally probe");
    let database = mine.database.to_u32();
    let looked_at = process::clock();
    match process::transaction(|| look(database)) {
        Ok(jobs) => {
            if !store(database, &jobs) {
                pgrx::warning!(
                    "the jobs of database {database} do not all fit into shared memory; raise tally.max_jobs and restart the server"
                );
            }
        }
        Err(failure) => {
            let failures = SHARED.write(|header, _| header.database(database).map_or(0, |line| line.failures));
            if schedule::is_worth_a_line(failures.unwrap_or(0).saturating_add(1)) {
                pgrx::warning!(
                    "tally could not look into database {database}: {} (SQLSTATE {})",
                    failure.message,
                    failure.sqlstate
                );
            }
            // Counted as a failure of the probe when the launcher sees that it has ended.
            return;
        }
    }
    let next = process::clock().0.saturating_add(settings::probe_interval().as_micros() as i64);
    SHARED.write(|header, _| {
        if let Some(line) = header.database(database) {
            (line.next_probe, line.failures) = (next, 0);
            line.rest = Rest { looked_at, until: Timestamp::INFINITY };
            if line.probe == mine.token {
                line.probe = 0;
            }
        }
    });
}

fn look(database: u32) -> Result<Vec<Job>> {
    let Some(installed) = version::installed()? else { return Ok(Vec::new()) };
    if let Err(mismatch) = check(LIBRARY, &installed) {
        let hint = mismatch.hint().unwrap_or_default();
        pgrx::warning!("jobs of tally do not run in database {database}: {mismatch}. {hint}");
        return Ok(Vec::new());
    }
    jobs::trim_runs()?;
    let mut found = jobs::list()?;
    for job in found.iter().filter(|job| job.owner.is_none()) {
        jobs::delete_by_id(job.id)?;
    }
    found.retain(|job| job.owner.is_some());
    count_crashes(database, &mut found)?;
    Ok(found)
}

/// Tells the table of jobs that were running when the server crashed.
fn count_crashes(database: u32, jobs: &mut [Job]) -> Result<()> {
    let crashed = SHARED.read(|header, _| header.crashed).unwrap_or([super::marks::Mark::default(); super::CRASHED]);
    let now = process::clock();
    for mark in crashed.iter().filter(|mark| mark.database == database) {
        let Some(job) = jobs.iter_mut().find(|job| job.id == mark.job) else { continue };
        let (troubles, next_due) =
            job.troubles.after(Outcome::Crashed, now, job.every, settings::retry(), now, super::random());
        self::jobs::announce_verdict(job, troubles, now)?;
        (job.troubles, job.next_due) = (troubles, Some(next_due));
        self::jobs::record_troubles(job.id, true, troubles, next_due)?;
        // The next crash may be a moment away, and it must not take this count with it.
        process::commit_durably();
        if troubles.hold() {
            pgrx::warning!(
                "tally {} job {} for {} was running in {} crashes of the server in a row and is held; look into the server log, then SELECT tally.resume_job({})",
                job.kind.name(),
                job.id,
                job.object_name,
                troubles.crashes,
                job.id
            );
        }
    }
    Ok(())
}

/// Brings the slots of the database in line with its jobs. False if there are too few slots.
fn store(database: u32, jobs: &[Job]) -> bool {
    let now = process::clock();
    SHARED
        .write(|header, slots| {
            for slot in slots[..header.used].iter_mut() {
                if slot.database == database && !jobs.iter().any(|job| job.id == slot.job) {
                    *slot = Slot::default();
                }
            }
            for mark in header.crashed.iter_mut().filter(|mark| mark.database == database) {
                *mark = super::marks::Mark::default();
            }
            let mut fits = true;
            for job in jobs {
                let used = &slots[..header.used];
                let known = used.iter().position(|slot| slot.is(database, job.id));
                let free = || used.iter().position(|slot| slot.phase == Phase::Free);
                let fresh = || (header.used < slots.len()).then_some(header.used);
                match known.or_else(free).or_else(fresh) {
                    Some(at) => {
                        header.used = header.used.max(at + 1);
                        merge(&mut slots[at], database, job, now);
                    }
                    None => fits = false,
                }
            }
            header.is_full = !fits;
            fits
        })
        .unwrap_or(true)
}

fn merge(slot: &mut Slot, database: u32, job: &Job, now: Timestamp) {
    let every = i64::try_from(job.every.as_micros()).unwrap_or(i64::MAX);
    let resumed = job.resumed.map_or(0, |moment| moment.0);
    let soonest = now.0.saturating_add(every);
    if slot.phase == Phase::Free {
        *slot = Slot {
            database,
            job: job.id,
            due: job.next_due.map_or(now.0, |due| due.0),
            troubles: job.troubles,
            is_recorded: job.troubles != Default::default(),
            resumed,
            ..Slot::default()
        };
        if !job.troubles.hold() && job.troubles.failures == 0 {
            slot.due = slot.due.min(soonest);
        }
    } else if slot.every != every {
        slot.due = slot.due.min(soonest);
    }
    slot.max_runtime = i64::try_from(job.max_runtime.as_micros()).unwrap_or(i64::MAX);
    (slot.owner, slot.kind, slot.every) = (job.owner.map_or(0, |owner| owner.to_u32()), job.kind, every);
    if resumed > slot.resumed {
        (slot.resumed, slot.troubles, slot.due, slot.is_recorded) = (resumed, job.troubles, now.0, false);
    }
    if !slot.is_taken() {
        slot.phase = if job.paused || slot.troubles.hold() { Phase::Held } else { Phase::Waiting };
    }
}
