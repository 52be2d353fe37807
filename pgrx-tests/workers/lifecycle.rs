//! Servers stop, databases come and go, and places for workers run out, again and again, whatever a job is doing.
//!
//! ```sh
//! make lifecycle                       # STOPS=200 DATABASES=500 EXHAUSTED=300
//! ```

use super::*;

/// How often, or for how many seconds: few in `make test`.
pub(super) fn times(variable: &str, few: u64) -> u64 {
    match std::env::var(variable) {
        Ok(number) if !number.is_empty() => number.parse().unwrap_or_else(|_| panic!("{variable} is no number")),
        _ => few,
    }
}

/// Says how long they took, and returns the longest.
fn report(what: &str, durations: &mut [Duration]) -> Duration {
    durations.sort();
    let at = |share: f64| durations[((durations.len() - 1) as f64 * share).ceil() as usize];
    println!("{what}, {} times: p50 {:?}, p99 {:?}, slowest {:?}", durations.len(), at(0.5), at(0.99), at(1.0));
    at(1.0)
}

/// A rollup whose aggregate takes minutes in the inner loop of the executor.
const LONG_ROLLUP: &str = "
    CREATE TABLE events (k int, v int);
    CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
        'BEGIN RETURN (SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b WHERE a + b + $1 > 0); END';
    SELECT tally.create_rollup('totals', 'SELECT k, sum(slow(v)) AS total FROM events GROUP BY k',
                               refresh_interval => '1 second');
    INSERT INTO events VALUES (1, 1);";

/// A set that retention has plenty to do with: each stop costs a partition or two.
pub(super) fn old_partitions(number: u64) -> String {
    format!(
        "CREATE TABLE events (at timestamptz NOT NULL, k int) PARTITION BY RANGE (at);
         SELECT tally.partition_by_time('events', '1 day', retention => '2 days', lateness => '2 days', grace => '0');
         SELECT tally.pause_partitions('events');
         DO $$ BEGIN
           FOR day IN 0..{number} LOOP
             EXECUTE format('CREATE TABLE old_%s PARTITION OF events FOR VALUES FROM (%L) TO (%L)', day,
                            timestamptz '2020-01-01Z' + day * interval '1 day', timestamptz '2020-01-02Z' + day * interval '1 day');
           END LOOP;
         END $$;
         SELECT tally.resume_partitions('events');"
    )
}

/// The job worker of this database that waits for this kind of event; `None` is a worker that computes.
fn is_busy(watcher: &mut Client, database: &Database, wait: Option<&str>) -> bool {
    let query = "SELECT FROM pg_stat_activity WHERE backend_type = 'tally job worker' AND datname = $1
                 AND wait_event IS NOT DISTINCT FROM $2 AND application_name <> ''";
    watcher.query_opt(query, &[&database.name(), &wait]).unwrap().is_some()
}

/// A reader of the set that a DETACH CONCURRENTLY waits for. What the stop before has left is put in order first.
pub(super) fn hold_detach(watcher: &mut Client, database: &Database) -> Client {
    let mut reader = database.connect();
    let begin = Instant::now();
    loop {
        reader.batch_execute("BEGIN; SELECT FROM events LIMIT 1").unwrap();
        let opened = Instant::now();
        while opened.elapsed() < Duration::from_secs(3) {
            // Asked from another database: a snapshot in this one may be older than what is retained, and be waited for before.
            if is_busy(watcher, database, Some("virtualxid")) {
                return reader;
            }
            thread::sleep(Duration::from_millis(5));
        }
        reader.batch_execute("COMMIT").unwrap();
        if begin.elapsed() > DEADLINE {
            let rows = reader
                .query("SELECT r::text FROM tally.retirements r UNION ALL SELECT s::text FROM tally.status s", &[])
                .unwrap();
            panic!("retention never waits: {:#?}", rows.iter().map(|row| row.get(0)).collect::<Vec<String>>());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn fast_stop_ends_a_job_in_every_wait() {
    let stops = times("TALLY_STOPS", 4);
    let cluster = Cluster::start(&[("tally.retry_min", "100ms"), ("tally.max_workers", "8")]);
    let (locked, asleep, computing, detaching) =
        (cluster.database(), cluster.database(), cluster.database(), cluster.database());
    locked.connect().batch_execute(ROLLUP).unwrap();
    asleep.connect().batch_execute(SLOW_ROLLUP).unwrap();
    computing.connect().batch_execute(LONG_ROLLUP).unwrap();
    detaching.connect().batch_execute(&old_partitions(stops * 4 + 20)).unwrap();
    let mut took = Vec::new();
    for stop in 1..=stops {
        let mut watcher = cluster.connect("postgres");
        let mut holder = locked.connect();
        holder.batch_execute("BEGIN; LOCK TABLE totals_stored").unwrap();
        locked.connect().batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
        let reader = hold_detach(&mut watcher, &detaching);
        for (what, database, wait) in [
            ("a refresh waits for a lock", &locked, Some("relation")),
            ("a refresh sleeps", &asleep, Some("PgSleep")),
            ("a refresh computes", &computing, None),
            ("a DETACH CONCURRENTLY waits", &detaching, Some("virtualxid")),
        ] {
            eventually(what, || is_busy(&mut watcher, database, wait));
        }
        let begin = Instant::now();
        cluster.stop();
        took.push(begin.elapsed());
        drop((holder, reader));
        cluster.restart();
        // What was begun is there again, and no stop counts as a crash of the job.
        for database in [&locked, &asleep, &computing, &detaching] {
            let mut session = database.connect();
            eventually_true(&mut session, "SELECT count(*) > 0 FROM tally.job_activity()");
            let crashes = number(
                &mut session,
                "SELECT (SELECT coalesce(sum(crashes), 0) FROM tally.job_activity()) + (SELECT coalesce(sum(crashes), 0) FROM tally.job_states)",
            );
            assert_eq!(crashes, 0, "stop {stop} counts as a crash of a job");
        }
    }
    let slowest = report("fast stop", &mut took);
    assert!(slowest < Duration::from_secs(5), "a job kept the server from stopping");
    let log = cluster.log();
    for trouble in ["was terminated by signal", "PANIC", "terminating any other active server processes"] {
        assert!(!log.contains(trouble), "{}", log.lines().filter(|line| line.contains(trouble)).collect::<String>());
    }
    eventually_true(&mut locked.connect(), &format!("SELECT sum(n) = {stops} FROM totals_stored"));
    let mut session = computing.connect();
    let quick = "CREATE OR REPLACE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'";
    for database in [&asleep, &computing] {
        database.connect().batch_execute(quick).unwrap();
    }
    session
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'tally job worker'")
        .unwrap();
    for database in [&asleep, &computing] {
        eventually_true(&mut database.connect(), "SELECT count(*) = 1 FROM totals_stored");
    }
    let mut session = detaching.connect();
    let left = number(&mut session, "SELECT count(*) FROM pg_class WHERE relname LIKE 'old\\_%'");
    eventually_true(&mut session, &format!("SELECT count(*) < {left} FROM pg_class WHERE relname LIKE 'old\\_%'"));
}

#[test]
fn jobs_wait_for_no_standby() {
    // A fast stop need not be tried in that wait: jobs commit without it, those of retention too.
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = database.connect();
    // What drops the database at the end is not to wait either.
    session
        .batch_execute("SET synchronous_commit = local; ALTER DATABASE postgres SET synchronous_commit = local")
        .unwrap();
    session.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").unwrap();
    session.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually_true(&mut session, "SELECT current_setting('synchronous_standby_names') = 'nobody'");
    session.batch_execute(ROLLUP).unwrap();
    session.batch_execute(&old_partitions(3).replace("events", "visits")).unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    eventually_true(&mut session, "SELECT NOT EXISTS (SELECT FROM pg_class WHERE relname LIKE 'old\\_%')");
}

#[test]
fn databases_come_and_go_idle_and_with_a_running_job() {
    let rounds = times("TALLY_DATABASES", 4);
    let cluster = Cluster::start(&[]);
    let mut server = cluster.connect("postgres");
    for (what, schema) in [("idle", ROLLUP), ("with a running job", SLOW_ROLLUP)] {
        let (mut created, mut dropped) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let begin = Instant::now();
            let database = cluster.database();
            created.push(begin.elapsed());
            database.connect().batch_execute(schema).unwrap();
            if what != "idle" {
                job_worker(&cluster, &database);
            }
            // Without FORCE, and the first try has to do.
            let begin = Instant::now();
            server.batch_execute(&format!("DROP DATABASE {}", database.name())).unwrap();
            dropped.push(begin.elapsed());
        }
        report(&format!("CREATE DATABASE and EXTENSION, {what}"), &mut created);
        let slowest = report(&format!("DROP DATABASE {what}"), &mut dropped);
        assert!(slowest < Duration::from_secs(4), "it would have failed after 5 seconds");
    }
    // Nothing is left of them: their slots are free for others.
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    eventually_true(
        &mut session,
        "SELECT verdict = 'ok' AND reason LIKE '%; 0 of 4 workers in use%' FROM tally.status WHERE kind = 'server'",
    );
    assert!(!cluster.log().contains("was terminated by signal"));
}

#[test]
fn places_that_come_and_go_lose_no_run_and_fill_no_log() {
    let seconds = times("TALLY_EXHAUSTED", 12);
    // One place is the launcher's, one is that of logical replication, and one is left.
    let cluster =
        Cluster::start(&[("max_worker_processes", "3"), ("tally.retry_min", "100ms"), ("tally.retry_max", "100ms")]);
    let (busy, waiting) = (cluster.database(), cluster.database());
    let mut holder = busy.connect();
    holder.batch_execute(ROLLUP).unwrap();
    let mut session = waiting.connect();
    session.batch_execute(ROLLUP).unwrap();
    let begin = Instant::now();
    let mut rows = 0;
    while begin.elapsed() < Duration::from_secs(seconds) {
        holder.batch_execute("BEGIN; LOCK TABLE totals_stored").unwrap();
        busy.connect().batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
        job_worker(&cluster, &busy);
        session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
        rows += 1;
        eventually_true(&mut session, "SELECT reason = 'no_worker_slot' FROM tally.status WHERE kind = 'refresh'");
        holder.batch_execute("COMMIT").unwrap();
        for session in [&mut session, &mut holder] {
            eventually_true(session, &format!("SELECT sum(n) = {rows} FROM totals_stored"));
        }
    }
    assert!(rows > 1, "once is no coming and going");
    let log = cluster.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("WARNING:  ") && line.contains("tally")).collect();
    println!("{rows} times without a place: {} lines in the log", lines.len());
    // 6 an hour at most: the next may come after ten minutes.
    assert_eq!(lines.len() as u64, 1 + begin.elapsed().as_secs() / 600, "{lines:#?}");
    assert!(lines[0].contains("all of max_worker_processes are in use"), "{lines:#?}");
}
