//! How soon jobs start after they are due, and what they cost when there is nothing to do.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use crate::report::{Report, Samples};

/// So often each job is due.
const EVERY: Duration = Duration::from_secs(5);
/// So long it is watched.
const WATCHED: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
const MILLISECONDS_AT_MOST: f64 = 20.0;
const IDLE_JOBS: u32 = 20;

/// On a server of its own, whose workers are on; it waits for the same disk as any other.
pub fn measure(_: &Cluster, _: u32, report: &mut Report) {
    for jobs in [1, 20, 200] {
        let cluster = start();
        let database = cluster.database();
        let mut session = database.connect();
        make_rollups(&mut session, jobs);
        let late = Samples::new(lateness(&mut session));
        let what = format!("{jobs} jobs of {EVERY:?}: start after due, p50 of {} runs", late.len());
        report.add_alone(&what, &late, MILLISECONDS_AT_MOST);
        report.add_alone("the same, p99", &late.quantile(0.99), MILLISECONDS_AT_MOST);
    }
    idle(report);
}

fn start() -> Cluster {
    Cluster::start(&[("fsync", "on"), ("autovacuum", "off"), ("jit", "off")])
}

fn make_rollups(session: &mut Client, number: u32) {
    for at in 0..number {
        let make = format!(
            "CREATE TABLE events_{at} (tenant int, amount int);
             SELECT tally.create_rollup('totals_{at}', 'SELECT tenant, count(*) AS n FROM events_{at} GROUP BY 1', '{} seconds')",
            EVERY.as_secs()
        );
        session.batch_execute(&make).unwrap();
    }
}

/// Of each run that is seen in this time, how long after its due time it began.
fn lateness(session: &mut Client) -> Vec<Duration> {
    let sql = "SELECT job_id, (extract(epoch FROM last_run_at) * 1e6)::bigint, (extract(epoch FROM next_due_at) * 1e6)::bigint
               FROM tally.job_activity() WHERE last_run_at IS NOT NULL AND state = 'waiting'";
    // The first runs build what is new.
    thread::sleep(EVERY * 2);
    let (begin, mut seen, mut late) = (Instant::now(), BTreeSet::new(), Vec::new());
    while begin.elapsed() < WATCHED {
        // Where nobody writes, runs are left out.
        session.batch_execute("INSERT INTO events_0 VALUES (1, 1)").unwrap();
        for row in session.query(sql, &[]).unwrap() {
            let (job, began, next): (i32, i64, i64) = (row.get(0), row.get(1), row.get(2));
            if seen.insert((job, began)) {
                // A run later than a whole turn has passed over a due time, and counts from the one before its next.
                let due = next - i64::try_from(EVERY.as_micros()).expect("seconds");
                late.push(Duration::from_micros(u64::try_from(began - due).unwrap_or(0)));
            }
        }
        thread::sleep(PAUSE);
    }
    late
}

/// Rollups and partition sets without a new row.
fn idle(report: &mut Report) {
    let cluster = start();
    let database = cluster.database();
    let mut session = database.connect();
    make_rollups(&mut session, IDLE_JOBS);
    for (number, width) in ["1 hour", "1 day", "1 month"].iter().enumerate() {
        let make = format!(
            "CREATE TABLE visits_{number} (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             SELECT tally.partition_by_time('visits_{number}', '{width}', retention => '1 year')"
        );
        session.batch_execute(&make).unwrap();
    }
    session.batch_execute(&format!("UPDATE tally.jobs SET every = '{} seconds'", EVERY.as_secs())).unwrap();
    thread::sleep(EVERY * 3);
    session.batch_execute("CHECKPOINT").unwrap();
    // PostgreSQL itself logs once more what runs, up to 15 s after the last record.
    thread::sleep(EVERY * 5);
    let mut counters = || -> [i64; 3] {
        let row = session.query_one(
            "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint,
                    (SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'tally%' AND datname IS NOT NULL
                       AND backend_start < clock_timestamp() - interval '1 second')",
            &[],
        );
        let row = row.unwrap();
        [row.get(0), row.get::<_, i64>(1), row.get(2)]
    };
    let (before, begin) = (counters(), Instant::now());
    let mut held = 0;
    while begin.elapsed() < WATCHED {
        held = held.max(counters()[2]);
        thread::sleep(PAUSE);
    }
    let after = counters();
    let what = format!("{WATCHED:?} of {IDLE_JOBS} rollups and 3 partition sets without a row");
    for (what, unit, count) in [
        (what.as_str(), "transaction ids", after[0] - before[0]),
        ("the same", "bytes of WAL", after[1] - before[1]),
        ("the same", "connections of a second and more", held),
    ] {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        report.add_count_at_most(what, "", &format!("{count} {unit}"), count, 0);
    }
}
