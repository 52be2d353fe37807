//! Background workers: a launcher that is connected to no database, probes that look into one, and short job workers that connect as
//! the owner of the object they work for.
//!
//! ```text
//!                    shared memory: a slot per job (due time, state, troubles), a line per database
//!                          ^   |                ^                            ^    |
//!     due times            |   | who is due?    | "look into my database"    |    | my jobs
//!   probe (superuser, ms) -+   v                | at commit of a change      |    v
//!     ^                     launcher ------ starts ---------------------> job worker (as owner)
//!     +---- starts ---------+  (no database, no transaction id)              runs, records in job_states and runs
//! ```
//!
//! The slots are hints. The truth is in `tally.jobs` and `tally.job_states`, and a probe can make the slots anew at any time. A run
//! that finds nothing to do is noted in its slot only, and as long as nobody writes on the server (no transaction id is given out) there
//! is no other: an idle server has no connections of ours, uses no transaction ids and writes no WAL. What is running is seen in the slots, in `pg_locks` (`pg/lock.rs`) and, after a crash, in a file (`marks.rs`).
//!
//! Without `shared_preload_libraries` there are no slots and no launcher; `demand.rs` then does everything by way of the tables.

mod announce;
mod demand;
mod job;
mod launcher;
mod marks;
mod probe;
mod run;
mod stop;

use crate::jobs::Kind;
use crate::pg::shared::SharedTable;
use crate::pg::{self, Oid};
use crate::settings;
use tally_core::bucket::Timestamp;
use tally_core::schedule::rest::Rest;
use tally_core::schedule::{self, Troubles};

/// Databases that one server can have looked after.
const DATABASES: usize = 256;
/// Jobs that ran during a crash and whose database has not been told yet.
const CRASHED: usize = 64;

/// What all processes of tally know together.
static SHARED: SharedTable<Header, Slot> = SharedTable::new(c"tally");

#[derive(Clone, Copy, Debug)]
struct Header {
    launcher: i32,
    /// The marks of the time before the last start of the server have been read.
    marks_read: bool,
    /// Slots from here on have never been used.
    used: usize,
    /// Numbers the workers, so that a slot knows whether it is still meant.
    last_token: u32,
    /// Since when no worker could be started for want of a place.
    refused_since: Option<Timestamp>,
    /// When the log was told so.
    refusal_said: Option<Timestamp>,
    /// Jobs did not fit.
    is_full: bool,
    databases: [Database; DATABASES],
    crashed: [marks::Mark; CRASHED],
}

impl Default for Header {
    fn default() -> Self {
        Self {
            launcher: 0,
            marks_read: false,
            used: 0,
            last_token: 0,
            refused_since: None,
            refusal_said: None,
            is_full: false,
            databases: [Database::default(); DATABASES],
            crashed: [marks::Mark::default(); CRASHED],
        }
    }
}

/// What the launcher knows of a database. `oid` 0 is a free place.
#[derive(Clone, Copy, Debug, Default)]
struct Database {
    oid: u32,
    /// Somebody changed its jobs; look into it at once.
    is_changed: bool,
    /// When to look into it without being asked.
    next_probe: Moment,
    /// The probe that is under way, 0 for none.
    probe: u32,
    /// Probes in a row that ended without a result.
    failures: u32,
    /// No worker may be started until then: somebody drops the database or the extension.
    stopped_until: Moment,
    /// What the last probe has found holds until somebody writes.
    rest: Rest,
}

/// Microseconds since 2000-01-01 UTC; 0 is long ago.
type Moment = i64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The slot is free.
    #[default]
    Free,
    Waiting,
    /// A worker has been asked for.
    Starting,
    /// A worker has it.
    Running,
    /// Paused, or held after crashes.
    Held,
}

/// A job.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    database: u32,
    job: i32,
    owner: u32,
    kind: Kind,
    phase: Phase,
    due: Moment,
    /// Microseconds.
    every: i64,
    /// How long a run may take; microseconds.
    max_runtime: i64,
    troubles: Troubles,
    /// The worker that has it or was asked for, and since when.
    token: u32,
    pid: i32,
    since: Moment,
    /// It was told to end, because the run takes too long.
    is_ended: bool,
    /// It waits for somebody in one of the places for that, and does nothing else.
    is_parked: bool,
    /// A run that began then ended without a result, and the table does not know of it; 0 for none.
    lost_since: Moment,
    last_run: Moment,
    last_success: Moment,
    /// Microseconds.
    last_duration: i64,
    /// Of the last run; zeroes after a success.
    sqlstate: [u8; 5],
    resumed: Moment,
    /// The table has troubles that the next success must clear.
    is_recorded: bool,
    /// The last run found that there is nothing to do for a while.
    rest: Rest,
}

impl Slot {
    fn is(&self, database: u32, job: i32) -> bool {
        self.phase != Phase::Free && self.database == database && self.job == job
    }

    fn is_taken(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running)
    }

    fn is_waiting_for_somebody(&self) -> bool {
        self.phase == Phase::Running && self.is_parked
    }
}

impl Header {
    /// The line of a database, made if there is room.
    fn database(&mut self, oid: u32) -> Option<&mut Database> {
        let at = self
            .databases
            .iter()
            .position(|database| database.oid == oid)
            .or_else(|| self.databases.iter().position(|database| database.oid == 0))?;
        let database = &mut self.databases[at];
        if database.oid == 0 {
            *database = Database { oid, ..Database::default() };
        }
        Some(database)
    }
}

/// Asks for shared memory and for the launcher, if the library is being preloaded.
pub(crate) fn register() {
    if pg::process::is_preloading() {
        pg::shared::install(&SHARED, settings::max_jobs());
        pg::process::register("tally launcher", "tally_launcher_main");
        stop::install();
    }
}

/// Has the launcher look into this database, now.
fn notify() {
    let oid = pg::process::own_database().to_u32();
    let launcher = SHARED.write(|header, _| {
        if let Some(database) = header.database(oid) {
            database.is_changed = true;
        }
        header.launcher
    });
    if let Some(launcher) = launcher {
        pg::process::wake(launcher);
    }
}

/// Places for workers that wait for somebody, and how many of them are taken.
fn waiting_places(header: &Header, slots: &[Slot]) -> (usize, usize) {
    let places = schedule::waiting_places(settings::max_workers(), settings::max_retention_workers());
    (places, slots[..header.used].iter().filter(|slot| slot.is_waiting_for_somebody()).count())
}

/// Could a worker wait for somebody now without keeping others from their work? Where there are no places for that, or no shared memory,
/// nobody can help it.
pub(crate) fn may_wait() -> bool {
    SHARED
        .read(|header, slots| {
            let (places, taken) = waiting_places(header, slots);
            places == 0 || taken < places
        })
        .unwrap_or(true)
}

/// Is this kind of job allowed to run?
fn is_enabled(kind: Kind) -> bool {
    settings::enabled()
        && match kind {
            Kind::Refresh => settings::refresh_enabled(),
            Kind::Premake => settings::premake_enabled(),
            Kind::Retention => settings::retention_enabled(),
            Kind::Conversion => true,
        }
}

/// Between 0 and 1. The standard library seeds its hash maps at random, and that is random enough to spread jobs.
pub(crate) fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64
}

/// What a worker is started with.
#[derive(Clone, Copy, Debug)]
struct Assignment {
    database: Oid,
    owner: Oid,
    job: i32,
    token: u32,
    /// It runs jobs that may wait for long, and no others.
    is_patient: bool,
}

impl Assignment {
    fn write(self) -> String {
        let is_patient = u8::from(self.is_patient);
        format!("{} {} {} {} {is_patient}", self.database.to_u32(), self.owner.to_u32(), self.job, self.token)
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        Some(Self {
            database: Oid::from(parts.next()?.parse::<u32>().ok()?),
            owner: Oid::from(parts.next()?.parse::<u32>().ok()?),
            job: parts.next()?.parse().ok()?,
            token: parts.next()?.parse().ok()?,
            is_patient: parts.next()? == "1",
        })
    }
}

/// SQLSTATE of a run that took longer than its max_runtime: configuration limit exceeded.
const OVERLONG: &str = "53400";

/// As a slot has an SQLSTATE.
fn code(sqlstate: &str) -> [u8; 5] {
    sqlstate.as_bytes().try_into().unwrap_or(*b"XX000")
}

/// The types under which workers stand in `pg_stat_activity`.
const JOB_WORKER: &str = "tally job worker";
const PROBE: &str = "tally probe";
