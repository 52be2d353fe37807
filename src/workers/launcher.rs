//! The launcher: one per server, connected to no database. It wakes when something is due, when somebody tells it of a change, and when
//! one of its workers ends, and otherwise once a minute to see whether databases have come or gone. What is due and has found nothing to
//! do before is left out as long as nobody writes on the server.
//!
//! It can die at any moment: all it knows is in shared memory, except for the handles of its workers, and of those it can do without.

use super::{Assignment, CRASHED, Header, JOB_WORKER, Moment, PROBE, Phase, SHARED, Slot, is_enabled, marks, random};
use crate::jobs::Kind;
use crate::pg::process::{self, Worker};
use crate::pg::{self, Datum, Oid};
use crate::settings;
use pgrx::prelude::*;
use std::time::Duration;
use tally_core::bucket::{MINUTE, SECOND, Timestamp};
use tally_core::schedule::rest::Quiet;
use tally_core::schedule::{self, Group, Outcome, State};

/// How often the list of databases is read.
const SCAN: i64 = MINUTE;
/// Probes at the same time.
const PROBES: usize = 2;
/// A worker that has not come up by then never will.
const START_LIMIT: i64 = 30 * SECOND;
/// A worker that this launcher has started.
struct Started {
    worker: Worker,
    database: u32,
    token: u32,
    is_probe: bool,
}

struct Launcher {
    workers: Vec<Started>,
    quiet: Quiet,
    next_scan: Moment,
    /// After a refusal nothing is started before this time.
    next_start: Moment,
    /// Copies of the slots, to decide without holding the lock.
    slots: Vec<Slot>,
    is_full_reported: bool,
}

/// The launcher's `main`.
#[pg_guard]
#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "PostgreSQL finds this function by its symbol")]
pub extern "C-unwind" fn tally_launcher_main(_argument: Datum) {
    process::accept_signals();
    process::connect_to_no_database();
    read_marks();
    SHARED.write(|header, _| header.launcher = process::own_pid());
    let mut launcher = Launcher::new(process::clock());
    loop {
        let now = process::clock();
        let (next_xid, is_writing) = pg::next_xid_and_writers();
        launcher.quiet.observe(next_xid, is_writing, now);
        launcher.reap(now);
        launcher.stop(now);
        let next_end = launcher.end_overlong(now);
        if launcher.next_scan <= now.0 {
            launcher.scan(now);
        }
        let mut next = next_end.min(Timestamp(launcher.next_scan));
        if settings::enabled() {
            next = next.min(launcher.probe(now)).min(launcher.start(now));
        }
        // Nobody tells this launcher when a worker of the one before it ends.
        if launcher.orphans() > 0 {
            next = next.min(now.plus(SECOND));
        }
        let pause = next.since(process::clock()).clamp(0, SCAN);
        if process::wait(Duration::from_micros(pause.cast_unsigned())) {
            launcher.quiet.end(process::clock());
        }
    }
}

/// Once after each start of the server: which jobs were running when it went down?
fn read_marks() {
    if SHARED.read(|header, _| header.marks_read).unwrap_or(true) {
        return;
    }
    let found = marks::take().unwrap_or_else(|error| {
        pgrx::warning!("tally cannot read which jobs were running at the crash: {error}");
        Vec::new()
    });
    SHARED.write(|header, _| {
        header.marks_read = true;
        for (place, mark) in header.crashed.iter_mut().zip(found.into_iter().take(CRASHED)) {
            *place = mark;
        }
    });
}

impl Launcher {
    fn new(now: Timestamp) -> Self {
        Self {
            workers: Vec::new(),
            quiet: Quiet::new(now),
            next_scan: 0,
            next_start: 0,
            slots: Vec::new(),
            is_full_reported: false,
        }
    }

    /// Looks for workers that have ended. One that has said nothing leaves its slots taken: they are given back as failures.
    fn reap(&mut self, now: Timestamp) {
        let mut ended: Vec<Started> = self.workers.extract_if(.., |started| started.worker.has_ended()).collect();
        for probe in ended.extract_if(.., |started| started.is_probe) {
            let delay = settings::retry();
            SHARED.write(|header, _| {
                let line =
                    header.databases.iter_mut().find(|line| line.oid == probe.database && line.probe == probe.token);
                if let Some(line) = line {
                    line.probe = 0;
                    line.failures = line.failures.saturating_add(1);
                    line.next_probe = now.0.saturating_add(delay.delay(line.failures, random()).as_micros() as i64);
                }
            });
        }
        let lost = self.lost_slots(&ended, now);
        let stopped = stopped_databases(now);
        for at in lost {
            let slot = self.slots[at];
            if stopped.iter().any(|(database, _)| *database == slot.database) {
                give_back(at, slot.token);
                continue;
            }
            let (troubles, due) = slot.troubles.after(
                Outcome::Failed,
                Timestamp(slot.due),
                Duration::from_micros(slot.every.max(0).cast_unsigned()),
                settings::retry(),
                now,
                random(),
            );
            if schedule::is_worth_a_line(troubles.failures) {
                pgrx::warning!(
                    "the worker of tally job {} in database {} ended without a result{} ({} failures in a row)",
                    slot.job,
                    slot.database,
                    if slot.phase == Phase::Starting {
                        " before it could connect; the lines before this one say why"
                    } else {
                        ""
                    },
                    troubles.failures
                );
            }
            SHARED.write(|_, slots| {
                let current = &mut slots[at];
                if current.is_taken() && current.token == slot.token {
                    *current = Slot {
                        phase: Phase::Waiting,
                        pid: 0,
                        troubles,
                        due: due.0,
                        sqlstate: super::code(match slot.phase {
                            // The connection was refused.
                            Phase::Starting => "28000",
                            _ if slot.is_ended => super::OVERLONG,
                            // Ended by an administrator.
                            _ => "57P01",
                        }),
                        lost_since: if slot.phase == Phase::Starting { slot.lost_since } else { slot.since },
                        last_run: slot.since,
                        last_duration: now.since(Timestamp(slot.since)),
                        ..slot
                    };
                }
            });
        }
    }

    /// Ends the workers of databases that somebody wants for himself. When that is over, the database may be gone.
    fn stop(&mut self, now: Timestamp) {
        let stopped = stopped_databases(now);
        for (database, until) in &stopped {
            for started in self.workers.iter().filter(|started| started.database == *database) {
                started.worker.terminate();
            }
            self.next_scan = self.next_scan.min(*until);
        }
    }

    /// Ends workers whose run takes too long and that have not heeded its cancel. Returns when to look again.
    fn end_overlong(&mut self, now: Timestamp) -> Timestamp {
        let ended = SHARED.write(|header, slots| {
            let mut next = Timestamp::INFINITY;
            let mut ended = Vec::new();
            for slot in slots[..header.used].iter_mut().filter(|slot| slot.is_taken() && !slot.is_ended) {
                let limit = Duration::from_micros(slot.max_runtime.max(0).cast_unsigned());
                let end = schedule::ends_at(Timestamp(slot.since), limit);
                if end > now {
                    next = next.min(end);
                } else if slot.phase == Phase::Running {
                    // Under the lock, so that the process is still at this run.
                    process::terminate(slot.pid);
                    slot.is_ended = true;
                    ended.push(*slot);
                }
            }
            (next, ended)
        });
        let (next, ended) = ended.unwrap_or((Timestamp::INFINITY, Vec::new()));
        for slot in ended {
            if schedule::is_worth_a_line(slot.troubles.failures.saturating_add(1)) {
                pgrx::warning!(
                    "the worker of tally job {} in database {} is ended: the run takes longer than its max_runtime and does not heed a cancel",
                    slot.job,
                    slot.database
                );
            }
        }
        next
    }

    /// Slots that are taken by workers which are no more.
    fn lost_slots(&mut self, ended: &[Started], now: Timestamp) -> Vec<usize> {
        self.copy_slots();
        let taken = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_taken());
        taken
            .filter(|(_, slot)| {
                let is_ours = self.workers.iter().any(|started| started.token == slot.token);
                let has_ended = ended.iter().any(|started| started.token == slot.token);
                // Workers of a launcher before this one are known by their process.
                let is_orphan = !is_ours
                    && match slot.phase {
                        Phase::Starting => now.since(Timestamp(slot.since)) > START_LIMIT,
                        _ => !process::is_alive(slot.pid),
                    };
                has_ended || is_orphan
            })
            .map(|(at, _)| at)
            .collect()
    }

    /// Workers that run jobs and were started by a launcher before this one. Needs a recent copy of the slots.
    fn orphans(&self) -> usize {
        let taken = self.slots.iter().filter(|slot| slot.is_taken()).map(|slot| slot.token);
        let mut tokens: Vec<u32> =
            taken.filter(|token| !self.workers.iter().any(|started| started.token == *token)).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens.len()
    }

    /// Workers that run jobs.
    fn job_workers(&self) -> usize {
        self.workers.iter().filter(|started| !started.is_probe).count() + self.orphans()
    }

    fn copy_slots(&mut self) {
        let copy = &mut self.slots;
        SHARED.read(|header, slots| {
            copy.clear();
            copy.extend_from_slice(&slots[..header.used]);
        });
    }

    /// Databases come and go.
    fn scan(&mut self, now: Timestamp) {
        self.next_scan = now.0.saturating_add(SCAN);
        let databases = match process::databases() {
            Ok(databases) => databases,
            Err(failure) => {
                pgrx::warning!("tally could not read the list of databases: {}", failure.message);
                return;
            }
        };
        let mut left_over = false;
        SHARED.write(|header, slots| {
            let exists = |oid: u32| databases.iter().any(|database| database.to_u32() == oid);
            for line in header.databases.iter_mut().filter(|line| line.oid != 0 && !exists(line.oid)) {
                *line = super::Database::default();
            }
            for slot in slots[..header.used].iter_mut().filter(|slot| !exists(slot.database)) {
                *slot = Slot::default();
            }
            for database in &databases {
                left_over |= header.database(database.to_u32()).is_none();
            }
            for line in header.databases.iter_mut().filter(|line| line.oid != 0) {
                // The clock has been set back.
                line.next_probe =
                    line.next_probe.min(now.0.saturating_add(settings::probe_interval().as_micros() as i64));
            }
        });
        if left_over && !self.is_full_reported {
            pgrx::warning!("tally looks after {} databases of this server; there are more", super::DATABASES);
        }
        self.is_full_reported = left_over;
    }

    /// Starts probes where something has changed or the time has come. Returns when to look again.
    fn probe(&mut self, now: Timestamp) -> Timestamp {
        if self.next_start > now.0 {
            return Timestamp(self.next_start);
        }
        let running = self.workers.iter().filter(|started| started.is_probe).count();
        let (quiet, interval) = (self.quiet, settings::probe_interval());
        let (wanted, next) = SHARED
            .write(|header, _| {
                let mut wanted = Vec::new();
                let mut next = i64::MAX;
                for line in header.databases.iter_mut().filter(|line| line.oid != 0 && line.probe == 0) {
                    if !line.is_changed
                        && line.next_probe <= now.0
                        && let Some(again) = line.rest.due_again(&quiet, Timestamp(line.next_probe), interval, now)
                    {
                        line.next_probe = again.0;
                    }
                    let due = if line.is_changed { now.0 } else { line.next_probe }.max(line.stopped_until);
                    if due > now.0 {
                        next = next.min(due);
                    } else if running + wanted.len() < PROBES {
                        header.last_token = header.last_token.wrapping_add(1).max(1);
                        (line.probe, line.is_changed) = (header.last_token, false);
                        wanted.push((line.oid, line.probe));
                    }
                }
                (wanted, next)
            })
            .unwrap_or_default();
        for (database, token) in wanted {
            let assignment =
                Assignment { database: Oid::from(database), owner: Oid::INVALID, job: 0, token, is_patient: false };
            if !self.launch(assignment, true) {
                SHARED.write(|header, _| {
                    for line in header.databases.iter_mut().filter(|line| line.oid == database && line.probe == token) {
                        (line.probe, line.is_changed) = (0, true);
                    }
                });
                self.refuse(now);
                return Timestamp(self.next_start);
            }
        }
        Timestamp(next)
    }

    /// Starts workers for what is due. Returns when to look again.
    fn start(&mut self, now: Timestamp) -> Timestamp {
        if self.next_start > now.0 {
            return Timestamp(self.next_start);
        }
        self.copy_slots();
        self.replan(now);
        let stopped = stopped_databases(now);
        let enabled = Kind::ALL.map(is_enabled);
        let jobs: Vec<schedule::Job> = self
            .slots
            .iter()
            .map(|slot| {
                let enabled = enabled[slot.kind as usize];
                schedule::Job {
                    group: Group { database: slot.database, owner: slot.owner, is_patient: slot.kind.is_patient() },
                    due: Timestamp(slot.due),
                    state: match slot.phase {
                        Phase::Running if slot.is_parked => State::Parked,
                        Phase::Starting | Phase::Running => State::Running,
                        Phase::Waiting
                            if enabled && !stopped.iter().any(|(database, _)| *database == slot.database) =>
                        {
                            State::Waiting
                        }
                        _ => State::Held,
                    },
                }
            })
            .collect();
        let free = settings::max_workers().saturating_sub(self.job_workers());
        for start in schedule::due(&jobs, free, settings::max_retention_workers(), now) {
            let Some(assignment) = take(start.0, &self.slots[start.0], now) else { continue };
            if !self.launch(assignment, false) {
                give_back(start.0, assignment.token);
                self.refuse(now);
                return Timestamp(self.next_start);
            }
        }
        self.accept();
        self.next_look(&jobs, now)
    }

    /// When to look again: nothing can start before a worker ends if all are busy, and its end sets the latch.
    fn next_look(&self, jobs: &[schedule::Job], now: Timestamp) -> Timestamp {
        if self.job_workers() >= settings::max_workers() {
            return Timestamp::INFINITY;
        }
        let next = schedule::next_look(jobs, settings::max_retention_workers(), now).unwrap_or(Timestamp::INFINITY);
        // What was due has been started, or waits for a worker of its group.
        next.max(now.plus(schedule::PATIENCE.as_micros() as i64 / 10))
    }

    /// The clock may have been set back, and what has nothing to do is left out.
    fn replan(&mut self, now: Timestamp) {
        let longest = settings::retry().longest();
        for at in 0..self.slots.len() {
            let slot = self.slots[at];
            let every = Duration::from_micros(slot.every.max(0).cast_unsigned());
            let due = schedule::replan(Timestamp(slot.due), longest, every, now);
            let again = (due <= now).then(|| slot.rest.due_again(&self.quiet, due, every, now));
            let due = again.flatten().unwrap_or(due);
            if slot.phase == Phase::Waiting && due.0 != slot.due {
                self.slots[at].due = due.0;
                SHARED.write(|_, slots| {
                    if slots[at].is(slot.database, slot.job) && slots[at].phase == Phase::Waiting {
                        slots[at].due = due.0;
                    }
                });
            }
        }
    }

    fn launch(&mut self, assignment: Assignment, is_probe: bool) -> bool {
        let (kind, function) = if is_probe { (PROBE, "tally_probe_main") } else { (JOB_WORKER, "tally_job_main") };
        let name = format!("{kind} of database {}", assignment.database.to_u32());
        let Some(worker) = Worker::start(&name, kind, function, &assignment.write()) else { return false };
        let database = assignment.database.to_u32();
        self.workers.push(Started { worker, database, token: assignment.token, is_probe });
        true
    }

    /// There is no place for another worker: say so, at most every ten minutes, and try again later.
    fn refuse(&mut self, now: Timestamp) {
        let pause = (SECOND as f64 * (0.5 + random())) as i64;
        self.next_start = now.0.saturating_add(pause);
        let say = SHARED
            .write(|header, _| {
                let say = schedule::may_say_again(header.refusal_said, now);
                header.refused_since.get_or_insert(now);
                if say {
                    header.refusal_said = Some(now);
                }
                say
            })
            .unwrap_or(false);
        if say {
            pgrx::warning!(
                "tally jobs wait: all of max_worker_processes are in use. They run as soon as one is free; raise max_worker_processes if this lasts"
            );
        }
    }

    fn accept(&self) {
        if SHARED.read(|header, _| header.refused_since.is_some()) == Some(true) {
            SHARED.write(|header: &mut Header, _| header.refused_since = None);
        }
    }
}

/// Reserves the slot for a new worker, if it is still as it was when it was chosen.
fn take(at: usize, chosen: &Slot, now: Timestamp) -> Option<Assignment> {
    SHARED.write(|header, slots| {
        let slot = &mut slots[at];
        if !slot.is(chosen.database, chosen.job) || slot.phase != Phase::Waiting {
            return None;
        }
        header.last_token = header.last_token.wrapping_add(1).max(1);
        (slot.phase, slot.token, slot.pid, slot.since) = (Phase::Starting, header.last_token, 0, now.0);
        Some(Assignment {
            database: Oid::from(slot.database),
            owner: Oid::from(slot.owner),
            job: slot.job,
            token: header.last_token,
            is_patient: slot.kind.is_patient(),
        })
    })?
}

/// Which databases may have no workers now, and until when.
fn stopped_databases(now: Timestamp) -> Vec<(u32, Moment)> {
    SHARED
        .read(|header, _| {
            let stopped = header.databases.iter().filter(|line| line.stopped_until > now.0);
            stopped.map(|line| (line.oid, line.stopped_until)).collect()
        })
        .unwrap_or_default()
}

fn give_back(at: usize, token: u32) {
    SHARED.write(|_, slots| {
        let slot = &mut slots[at];
        if slot.is_taken() && slot.token == token {
            (slot.phase, slot.pid) = (Phase::Waiting, 0);
        }
    });
}
