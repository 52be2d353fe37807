//! Every setting: its definition, one sentence that helps a DBA decide, and a typed getter.

mod sketch;

pub(crate) use sketch::{hll_estimator, hll_packing, hll_params, sketches_of_new_rollup, topn_counters};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::time::Duration;
use tally_core::schedule::Retry;

static ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static REFRESH_ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static PREMAKE_ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static RETENTION_ENABLED: GucSetting<bool> = GucSetting::<bool>::new(true);
static MAX_RETENTION_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(1);
static MAX_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(4);
static MAX_JOBS: GucSetting<i32> = GucSetting::<i32>::new(4096);
static PROBE_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(3_600_000);
static RETRY_MIN: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static RETRY_MAX: GucSetting<i32> = GucSetting::<i32>::new(900_000);
static HISTORY_ROWS: GucSetting<i32> = GucSetting::<i32>::new(20_000);
static HISTORY_ERRORS: GucSetting<i32> = GucSetting::<i32>::new(5_000);
static LOCK_TRY_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(50);
static ANALYZE_PARENTS: GucSetting<bool> = GucSetting::<bool>::new(true);
static LOCK_ALLOWANCE: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static PREMAKE_OUTAGE: GucSetting<i32> = GucSetting::<i32>::new(7 * 24 * 60);
static PREMAKE_MAX: GucSetting<i32> = GucSetting::<i32>::new(1_000);
static SEAL_AFTER: GucSetting<i32> = GucSetting::<i32>::new(3_600);
static BUILD_ROWS: GucSetting<i32> = GucSetting::<i32>::new(1_000_000);

/// Called once, when the library is loaded.
pub(crate) fn define() {
    for (name, short, long, setting) in [
        (
            c"tally.enabled",
            c"Lets background workers run jobs.",
            c"Off stops all jobs on this server, for example while you look for the cause of a load; rollups stay exact and only read more raw rows.",
            &ENABLED,
        ),
        (
            c"tally.refresh_enabled",
            c"Lets jobs refresh rollups.",
            c"Off stops refreshes on this server; rollups stay exact, but each read aggregates more raw rows.",
            &REFRESH_ENABLED,
        ),
        (
            c"tally.premake_enabled",
            c"Lets jobs make partitions ahead of the clock.",
            c"Off for longer than partitions have been made ahead makes inserts fail.",
            &PREMAKE_ENABLED,
        ),
        (
            c"tally.retention_enabled",
            c"Lets jobs remove partitions that are older than the retention of their table.",
            c"Off keeps everything for the time being, on a copy of a server for example; the disk fills, and nothing else happens.",
            &RETENTION_ENABLED,
        ),
        (
            c"tally.analyze_parents",
            c"Lets the premake job collect statistics of partitioned tables as a whole, which autovacuum never does.",
            c"Off leaves that to ANALYZE by hand; without them the planner guesses how many groups or matches a query over all partitions has.",
            &ANALYZE_PARENTS,
        ),
    ] {
        GucRegistry::define_bool_guc(name, short, long, setting, GucContext::Sighup, GucFlags::default());
    }
    GucRegistry::define_int_guc(
        c"tally.max_workers",
        c"Sets how many background workers of tally may run jobs at the same time.",
        c"Each needs one of max_worker_processes while it runs; 0 starts none.",
        &MAX_WORKERS,
        0,
        1024,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.max_retention_workers",
        c"Sets how many of tally's background workers may remove old partitions at the same time.",
        c"One that only waits for somebody's report does not count, as long as one more worker is left for jobs that do not wait.",
        &MAX_RETENTION_WORKERS,
        0,
        1024,
        GucContext::Sighup,
        GucFlags::default(),
    );
    if crate::pg::process::is_preloading() {
        GucRegistry::define_int_guc(
            c"tally.max_jobs",
            c"Sets how many jobs of all databases together fit into shared memory.",
            c"A job takes about 150 bytes; jobs that do not fit do not run by themselves and are reported in the server log.",
            &MAX_JOBS,
            16,
            1_000_000,
            GucContext::Postmaster,
            GucFlags::default(),
        );
    }
    for (name, short, long, setting, min) in [
        (
            c"tally.probe_interval",
            c"Sets how often each database is looked into for jobs that nobody told the launcher of.",
            c"Changes made by tally's functions are noticed at once; a look takes a connection for some milliseconds.",
            &PROBE_INTERVAL,
            1_000,
        ),
        (
            c"tally.retry_min",
            c"Sets how long a job waits after its first failure.",
            c"The wait doubles with each further failure, up to tally.retry_max.",
            &RETRY_MIN,
            100,
        ),
        (
            c"tally.retry_max",
            c"Sets how long a job that keeps failing waits at most.",
            c"A lower value repairs itself sooner and writes more lines into the server log.",
            &RETRY_MAX,
            100,
        ),
    ] {
        GucRegistry::define_int_guc(name, short, long, setting, min, i32::MAX, GucContext::Sighup, GucFlags::UNIT_MS);
    }
    for (name, short, long, setting) in [
        (
            c"tally.history_rows",
            c"Sets how many successful runs tally.runs keeps per database.",
            c"New runs take the place of the oldest ones.",
            &HISTORY_ROWS,
        ),
        (
            c"tally.history_errors",
            c"Sets how many failed runs tally.runs keeps per database.",
            c"They are counted apart from successful runs, so that these do not push them out.",
            &HISTORY_ERRORS,
        ),
    ] {
        GucRegistry::define_int_guc(name, short, long, setting, 1, 10_000_000, GucContext::Sighup, GucFlags::default());
    }
    GucRegistry::define_int_guc(
        c"tally.build_rows",
        c"Sets about how many rows of a table are counted in one transaction when a rollup is created.",
        c"A larger table is counted step by step by background jobs; until then the rollup reads the rest of it row by row.",
        &BUILD_ROWS,
        1,
        i32::MAX,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tally.seal_after",
        c"Sets how long a partition must have ended, and got few rows, before refreshes and readers no longer look into it for new rows.",
        c"Rows that still come to a sealed partition are logged one by one, which makes writing them slower; -1 seals none.",
        &SEAL_AFTER,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    define_partition_settings();
    sketch::define();
    crate::pg::reserve_setting_prefix();
}

fn define_partition_settings() {
    GucRegistry::define_int_guc(
        c"tally.lock_try_timeout",
        c"Sets how long a job waits for a lock on a table before it gives way and tries again later.",
        c"Keep it far below deadlock_timeout, so that a job never makes PostgreSQL cancel somebody else.",
        &LOCK_TRY_TIMEOUT,
        1,
        10_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"tally.lock_allowance",
        c"Sets for how long in an hour jobs may stand in the queue for locks on one table that others use.",
        c"Whoever comes later waits as long; when it is used up, work that needs such a lock waits for a free moment or for the next hour.",
        &LOCK_ALLOWANCE,
        0,
        3_600_000,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"tally.premake_outage",
        c"Sets how far ahead of the clock partitions are made at least, so that no insert fails while no worker runs.",
        c"A longer time makes more empty partitions, which cost planning time.",
        &PREMAKE_OUTAGE,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MIN,
    );
    GucRegistry::define_int_guc(
        c"tally.premake_max",
        c"Sets how many partitions ahead of the clock a set has at most.",
        c"It limits what narrow partitions cost; tally.partition_status warns when so many are less than a day.",
        &PREMAKE_MAX,
        2,
        100_000,
        GucContext::Sighup,
        GucFlags::default(),
    );
}

/// How long a job waits for a lock before it gives way.
pub(crate) fn lock_try_timeout() -> Duration {
    Duration::from_millis(LOCK_TRY_TIMEOUT.get().max(1) as u64)
}

/// Are partitioned tables analyzed as a whole?
pub(crate) fn analyze_parents() -> bool {
    ANALYZE_PARENTS.get()
}

/// For how long jobs may stand in the queue for locks on one table, in an hour.
pub(crate) fn lock_allowance() -> Duration {
    milliseconds(&LOCK_ALLOWANCE)
}

/// A time without any worker in which no insert may fail; microseconds.
pub(crate) fn premake_outage() -> i64 {
    i64::from(PREMAKE_OUTAGE.get()) * tally_core::bucket::MINUTE
}

/// The most partitions that a set has ahead of the clock.
pub(crate) fn premake_max() -> usize {
    PREMAKE_MAX.get().max(2) as usize
}

/// How long a partition must have been cold before it is sealed, in microseconds; None for ever.
pub(crate) fn seal_after() -> Option<i64> {
    u32::try_from(SEAL_AFTER.get()).ok().map(|seconds| i64::from(seconds) * tally_core::bucket::SECOND)
}

/// About how many rows one step of a build counts.
pub(crate) fn build_rows() -> f64 {
    BUILD_ROWS.get().max(1).into()
}

pub(crate) fn enabled() -> bool {
    ENABLED.get()
}

pub(crate) fn refresh_enabled() -> bool {
    REFRESH_ENABLED.get()
}

pub(crate) fn premake_enabled() -> bool {
    PREMAKE_ENABLED.get()
}

pub(crate) fn retention_enabled() -> bool {
    RETENTION_ENABLED.get()
}

pub(crate) fn max_retention_workers() -> usize {
    MAX_RETENTION_WORKERS.get().max(0) as usize
}

pub(crate) fn max_workers() -> usize {
    MAX_WORKERS.get().max(0) as usize
}

pub(crate) fn max_jobs() -> usize {
    MAX_JOBS.get().max(0) as usize
}

pub(crate) fn probe_interval() -> Duration {
    milliseconds(&PROBE_INTERVAL)
}

pub(crate) fn retry() -> Retry {
    Retry { min: milliseconds(&RETRY_MIN), max: milliseconds(&RETRY_MAX) }
}

pub(crate) fn history_rows() -> i64 {
    HISTORY_ROWS.get().into()
}

pub(crate) fn history_errors() -> i64 {
    HISTORY_ERRORS.get().into()
}

fn milliseconds(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(0) as u64)
}
