//! When jobs run. Everything here is a value: the clock and the dice are arguments.
//!
//! A job has a due time. When it has run, the next due time is a later point of the same grid (`scheduled + n * every`), so that
//! a late run does not shift the ones after it, and runs that were missed are made good by one. After a failure the job
//! waits longer each time, but nothing disables it; only a job that was running in three crashes of the server in a row is held.

use crate::bucket::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

pub mod rest;

#[cfg(test)]
mod tests;

/// How long due jobs of one group wait for the group's worker before a second one is started. Most jobs are done sooner,
/// so one worker does them all.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// So many crashes of the server in a row, each with the job running, hold the job until somebody resumes it.
pub const CRASHES_TO_HOLD: u32 = 3;
/// So many waits for a lock in a row count as a failure.
pub const WAITS_TO_FAIL: u32 = 10;

/// The jobs of one database and one owner: a worker connects as one to the other, so it can run all of them. Jobs that may wait for
/// somebody for hours are apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    pub database: u32,
    pub owner: u32,
    pub is_patient: bool,
}

/// What the launcher knows of a job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub group: Group,
    pub due: Timestamp,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for its due time or, past it, for a worker.
    Waiting,
    /// A worker has it, or is being started for it.
    Running,
    /// A worker has it that waits for somebody and does nothing else, in one of the [`waiting_places`].
    Parked,
    /// Is not to run.
    Held,
}

/// A worker to be started for the job at this position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start(pub usize);

/// A run that takes longer than it may is canceled. What does not heed that is ended so much later.
pub const GRACE: Duration = Duration::from_secs(3);

/// When the process of a run that began at `since` is ended, if it is still at it.
pub fn ends_at(since: Timestamp, max_runtime: Duration) -> Timestamp {
    later(later(since, max_runtime), GRACE)
}

/// Which workers to start now. The longest overdue jobs come first, but groups without a worker before all others, and the last
/// free slot is kept for such a group: one busy group never keeps the others waiting. At most `patient_slots` workers have patient jobs, but
/// for parked ones, so that these never take all the slots.
pub fn due(jobs: &[Job], free_slots: usize, patient_slots: usize, now: Timestamp) -> Vec<Start> {
    let mut workers = busy(jobs);
    let mut patient = patient_workers(jobs);
    let mut overdue: Vec<usize> =
        (0..jobs.len()).filter(|&at| jobs[at].state == State::Waiting && jobs[at].due <= now).collect();
    overdue.sort_by_key(|&at| jobs[at].due);

    let mut starts = Vec::new();
    for first_of_group in [true, false] {
        for &at in &overdue {
            let left = free_slots - starts.len();
            if left == 0 {
                return starts;
            }
            if starts.contains(&Start(at)) {
                continue;
            }
            let job = &jobs[at];
            if job.group.is_patient && patient >= patient_slots {
                continue;
            }
            let working = workers.entry(job.group).or_insert(0);
            let wanted = if first_of_group { *working == 0 } else { left > 1 && is_impatient(job, *working, now) };
            if wanted {
                *working += 1;
                patient += usize::from(job.group.is_patient);
                starts.push(Start(at));
            }
        }
    }
    starts
}

/// When `due` may have a different answer: the next due time, or the end of somebody's patience. `None` without jobs that wait for
/// anything but the end of a worker.
pub fn next_look(jobs: &[Job], patient_slots: usize, now: Timestamp) -> Option<Timestamp> {
    let workers = busy(jobs);
    let is_full = patient_workers(jobs) >= patient_slots;
    jobs.iter()
        .filter(|job| job.state == State::Waiting && !(is_full && job.group.is_patient))
        .map(|job| later(job.due, PATIENCE * workers.get(&job.group).copied().unwrap_or(0)).max(now))
        .min()
}

fn busy(jobs: &[Job]) -> HashMap<Group, u32> {
    let mut workers = HashMap::new();
    for job in jobs.iter().filter(|job| matches!(job.state, State::Running | State::Parked)) {
        *workers.entry(job.group).or_insert(0) += 1;
    }
    workers
}

/// Those that do something.
fn patient_workers(jobs: &[Job]) -> usize {
    jobs.iter().filter(|job| job.state == State::Running && job.group.is_patient).count()
}

/// How many patient workers may be parked. With all of them, and those that work, there is a slot left for jobs that are not patient.
pub fn waiting_places(slots: usize, patient_slots: usize) -> usize {
    slots.saturating_sub(patient_slots).saturating_sub(1)
}

fn is_impatient(job: &Job, working: u32, now: Timestamp) -> bool {
    later(job.due, PATIENCE * working) <= now
}

/// The first point after `now` of the grid that `scheduled` and `every` span.
///
/// ```
/// use {std::time::Duration, tally_core::{bucket::Timestamp, schedule::next_run}};
/// let every = Duration::from_micros(10);
/// assert_eq!(next_run(Timestamp(100), every, Timestamp(104)), Timestamp(110));
/// assert_eq!(next_run(Timestamp(100), every, Timestamp(137)), Timestamp(140)); // three runs missed, one made good
/// ```
pub fn next_run(scheduled: Timestamp, every: Duration, now: Timestamp) -> Timestamp {
    let step = micros(every).max(1);
    let missed = now.since(scheduled).max(0) / step;
    scheduled.plus(step.saturating_mul(missed.saturating_add(1)))
}

fn later(moment: Timestamp, span: Duration) -> Timestamp {
    moment.plus(micros(span))
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// A due time that no rule can have set, because the clock was set back: it becomes `now + every`.
pub fn replan(due: Timestamp, longest: Duration, every: Duration, now: Timestamp) -> Timestamp {
    if due > later(now, longest.max(every)) { later(now, every) } else { due }
}

/// The limits of the wait after a failure.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    pub min: Duration,
    pub max: Duration,
}

impl Retry {
    /// The longest wait that `delay` can give.
    pub fn longest(&self) -> Duration {
        self.max.max(self.min).mul_f64(1.15)
    }

    /// How long to wait after so many failures in a row: twice as long each time, up to the maximum, give or take 15 %, so
    /// that jobs that failed together do not come back together. `random` is between 0 and 1.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let doubled = self.min.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.max).mul_f64(0.85 + 0.3 * random.clamp(0.0, 1.0))
    }
}

/// The least time between two lines in the log about the same want: six an hour.
const LOG_PAUSE: Duration = Duration::from_secs(600);

/// May the log say again what it said at `last`? However often a want comes and goes, the log is not filled with it.
pub fn may_say_again(last: Option<Timestamp>, now: Timestamp) -> bool {
    // A clock that was set back must not silence it.
    last.is_none_or(|last| now < last || now.since(last) >= micros(LOG_PAUSE))
}

/// Is this failure in a row worth a line in the log? The first one, then fewer and fewer: what fails for days must not fill it.
pub fn is_worth_a_line(failures: u32) -> bool {
    failures.is_power_of_two() || failures > 0 && failures.is_multiple_of(100)
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Something was in the way that goes by itself: a lock, a deadlock, a serialisation conflict.
    Waited,
    Failed,
    /// The server crashed while the job ran.
    Crashed,
}

impl Outcome {
    /// What an error with this SQLSTATE means for the job.
    pub fn of_error(sqlstate: &str) -> Outcome {
        match sqlstate {
            "55P03" | "40P01" | "40001" => Outcome::Waited,
            _ => Outcome::Failed,
        }
    }
}

/// Is it well?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Warning,
    Critical,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Critical => "critical",
        }
    }
}

/// From so many failures in a row on a job is in a critical state.
pub const FAILURES_TO_BE_CRITICAL: u32 = 10;

/// What a job has been through since it last succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Failures in a row.
    pub failures: u32,
    /// Waits in a row since the last failure or success.
    pub waits: u32,
    /// Crashes in a row.
    pub crashes: u32,
}

impl Troubles {
    pub fn hold(&self) -> bool {
        self.crashes >= CRASHES_TO_HOLD
    }

    /// As `tally.status` judges a job that nothing else is the matter with.
    pub fn verdict(&self) -> Verdict {
        match self {
            _ if self.hold() || self.failures >= FAILURES_TO_BE_CRITICAL => Verdict::Critical,
            Troubles { failures: 0, waits: 0, .. } => Verdict::Ok,
            _ => Verdict::Warning,
        }
    }

    /// The code of `tally.status` for it.
    pub fn reason(&self) -> &'static str {
        match self {
            _ if self.hold() => "crashed",
            Troubles { failures: 0, waits: 0, .. } => "scheduled",
            Troubles { failures: 0, .. } => "locked_out",
            _ => "failing",
        }
    }

    /// The troubles after this run, and when the next one is due.
    pub fn after(
        self,
        outcome: Outcome,
        scheduled: Timestamp,
        every: Duration,
        retry: Retry,
        now: Timestamp,
        random: f64,
    ) -> (Troubles, Timestamp) {
        let failed = Troubles { failures: self.failures.saturating_add(1), waits: 0, ..self };
        let after = match outcome {
            Outcome::Done => return (Troubles::default(), next_run(scheduled, every, now)),
            Outcome::Waited if self.waits + 1 < WAITS_TO_FAIL => {
                let after = Troubles { waits: self.waits + 1, ..self };
                return (after, later(now, retry.delay(1, random)));
            }
            Outcome::Waited | Outcome::Failed => failed,
            Outcome::Crashed => Troubles { crashes: self.crashes.saturating_add(1), ..failed },
        };
        (after, later(now, retry.delay(after.failures, random)))
    }
}
