//! Background workers: jobs run by themselves, as the owner, through failures, crashes and changes of everything around them.
//!
//! A rollup over `events` with `slow()` in it makes a job that runs for as long as a test wants.

mod announce;
mod idle;
mod lifecycle;
mod max_runtime;
mod portal;
mod settings;
mod update;

use crate::oracle::{DEADLINE, is_17, number, text};
use postgres::Client;
use std::thread;
use std::time::{Duration, Instant};
use tally_server_tests::cluster::{self, Cluster, Database};

/// A table with a rollup that is refreshed every second.
const ROLLUP: &str = "
    CREATE TABLE events (k int, v int);
    SELECT tally.create_rollup('totals', 'SELECT k, count(*) AS n, sum(v) AS total FROM events GROUP BY k',
                               refresh_interval => '1 second');";

/// The same, and the refresh of each row takes a minute.
const SLOW_ROLLUP: &str = "
    CREATE TABLE events (k int, v int);
    CREATE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN $1; END';
    SELECT tally.create_rollup('totals', 'SELECT k, sum(slow(v)) AS total FROM events GROUP BY k',
                               refresh_interval => '1 second');
    INSERT INTO events VALUES (1, 1);";

/// Asks until the answer is yes.
#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < DEADLINE, "it did not happen that {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Asks until the query answers true.
#[track_caller]
fn eventually_true(session: &mut Client, query: &str) {
    let mut seen = None;
    let begin = Instant::now();
    while begin.elapsed() < DEADLINE {
        seen = session.query_opt(query, &[]).unwrap().and_then(|row| row.get::<_, Option<bool>>(0));
        if seen == Some(true) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let status = session.query("SELECT s::text FROM tally.status s", &[]).unwrap();
    let status: Vec<String> = status.iter().map(|row| row.get(0)).collect();
    panic!("still {seen:?}: {query}\n{status:#?}");
}

/// The process that runs a job of this database, when it does.
fn job_worker(cluster: &Cluster, database: &Database) -> i32 {
    let mut watcher = cluster.connect("postgres");
    let mut pid = None;
    eventually("a job worker runs", || {
        let found = watcher
            .query_opt(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'tally job worker' AND datname = $1 AND wait_event IS NOT NULL",
                &[&database.name()],
            )
            .unwrap();
        pid = found.map(|row| row.get(0));
        pid.is_some()
    });
    pid.unwrap()
}

#[test]
fn refresh_runs_by_itself_within_the_interval() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    for round in 1..=3 {
        session.batch_execute("INSERT INTO events SELECT i % 10, i FROM generate_series(1, 1000) i").unwrap();
        let inserted = Instant::now();
        eventually_true(&mut session, &format!("SELECT sum(n) = {round} * 1000 FROM totals_stored"));
        println!("round {round}: stored after {:?}", inserted.elapsed());
    }
    let verdict = text(
        &mut session,
        "SELECT verdict || ' ' || (last_duration IS NOT NULL) FROM tally.status WHERE kind = 'refresh'",
    );
    assert_eq!(verdict.as_deref(), Some("ok true"));
    eventually_true(&mut session, "SELECT count(*) >= 3 AND sum(rows_done) = 3000 FROM tally.runs");
}

#[test]
fn failed_refresh_is_visible_with_hint() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    session.batch_execute("ALTER TABLE events DISABLE TRIGGER tally_update").unwrap();
    eventually_true(
        &mut session,
        "SELECT failures > 0 AND last_message IS NOT NULL FROM tally.status WHERE kind = 'refresh'",
    );
    let row = session
        .query_one(
            "SELECT verdict, reason, last_sqlstate, last_message, last_hint, next_sql, next_due_at - last_run_at >= interval '4 seconds'
             FROM tally.status WHERE kind = 'refresh'",
            &[],
        )
        .unwrap();
    let texts: Vec<String> = (0..6).map(|column| row.get(column)).collect();
    assert_eq!(texts[..3], ["warning", "failing", "55000"]);
    assert!(texts[3].contains("can no longer be trusted"), "{}", texts[3]);
    assert!(texts[4].contains("ENABLE ALWAYS TRIGGER"), "{}", texts[4]);
    assert!(texts[5].starts_with("SELECT tally.run_job("), "{}", texts[5]);
    assert!(row.get::<_, bool>(6), "it backs off");
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.runs WHERE sqlstate = '55000' AND position < 0"), 1);

    // Repaired and told to go on, it goes on at once, and the troubles are forgotten.
    session.batch_execute("ALTER TABLE events ENABLE ALWAYS TRIGGER tally_update").unwrap();
    session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    eventually_true(
        &mut session,
        "SELECT verdict = 'ok' AND failures = 0 AND last_sqlstate IS NULL AND last_success_at > last_run_at - interval '1 second'
         FROM tally.status WHERE kind = 'refresh'",
    );
}

#[test]
fn jobs_run_as_the_owner_of_the_table() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    let mut admin = database.connect();
    let owner = format!("owner_of_{}", database.name());
    admin.batch_execute(&format!("CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}")).unwrap();
    let mut session = database.connect_as(&owner);
    session.batch_execute(SLOW_ROLLUP).unwrap();
    let worker = job_worker(cluster, &database);
    let seen = admin
        .query_one("SELECT usename::text, application_name FROM pg_stat_activity WHERE pid = $1", &[&worker])
        .unwrap();
    assert_eq!(
        (seen.get::<_, String>(0), seen.get::<_, String>(1)),
        (owner.clone(), "tally refresh public.events".into())
    );

    // What others may see: a stranger nothing, a monitor the row without the error text.
    let stranger = format!("stranger_to_{}", database.name());
    admin.batch_execute(&format!("CREATE ROLE {stranger} LOGIN")).unwrap();
    let mut other = database.connect_as(&stranger);
    assert_eq!(number(&mut other, "SELECT count(*) FROM tally.status WHERE kind = 'refresh'"), 0);
    let refused = other.query("SELECT tally.run_job(job_id) FROM tally.jobs", &[]).unwrap_err();
    assert_eq!(refused.code().map(|code| code.code().to_owned()).as_deref(), Some("42501"));
    admin.batch_execute(&format!("GRANT pg_monitor TO {stranger}")).unwrap();
    assert_eq!(number(&mut other, "SELECT count(*) FROM tally.status WHERE state = 'running'"), 1);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.status WHERE state = 'running'"), 1);

    drop((session, other));
    admin
        .batch_execute(&format!(
            "SELECT tally.pause_job(job_id) FROM tally.jobs WHERE false; SELECT pg_terminate_backend({worker}, 5000)"
        ))
        .unwrap();
    admin.batch_execute("DROP EXTENSION tally CASCADE").unwrap();
    admin.batch_execute(&format!("DROP OWNED BY {owner}; DROP ROLE {owner}; DROP ROLE {stranger}")).unwrap();
}

#[test]
fn drop_database_works_while_a_job_runs() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    database.connect().batch_execute(SLOW_ROLLUP).unwrap();
    job_worker(cluster, &database);
    let begin = Instant::now();
    let mut server = cluster.connect("postgres");
    server.batch_execute(&format!("DROP DATABASE {}", database.name())).unwrap();
    println!("dropped after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(4), "without the stop it would have waited for 5 seconds and failed");
}

#[test]
fn database_can_be_copied_and_renamed_while_jobs_run() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    database.connect().batch_execute(ROLLUP).unwrap();
    let mut server = cluster.connect("postgres");
    let (name, copy) = (database.name(), format!("copy_of_{}", database.name()));
    for _ in 0..5 {
        server.batch_execute(&format!("CREATE DATABASE {copy} TEMPLATE {name}")).unwrap();
        server.batch_execute(&format!("DROP DATABASE {copy}")).unwrap();
    }
    server.batch_execute(&format!("ALTER DATABASE {name} RENAME TO {copy}")).unwrap();
    server.batch_execute(&format!("ALTER DATABASE {copy} RENAME TO {name}")).unwrap();
}

#[test]
fn extension_can_be_dropped_and_created_while_a_job_runs() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    job_worker(cluster, &database);
    let begin = Instant::now();
    session
        .batch_execute("DROP EXTENSION tally CASCADE; DROP TABLE events, events_changes, totals_stored, totals_retained CASCADE; DROP FUNCTION slow")
        .unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "the job did not stop for it");
    session.batch_execute("CREATE EXTENSION tally").unwrap();
    session.batch_execute(ROLLUP).unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
}

#[test]
fn fast_stop_does_not_wait_for_jobs() {
    let cluster = Cluster::start(&[]);
    let (asleep, locked) = (cluster.database(), cluster.database());
    asleep.connect().batch_execute(SLOW_ROLLUP).unwrap();
    let mut holder = locked.connect();
    holder.batch_execute(ROLLUP).unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE totals_stored; INSERT INTO events VALUES (1, 1)").unwrap();
    locked.connect().batch_execute("INSERT INTO events VALUES (2, 2)").unwrap();
    let waiting = job_worker(&cluster, &locked);
    job_worker(&cluster, &asleep);
    eventually_true(
        &mut locked.connect(),
        &format!("SELECT blocked_by = ARRAY[(SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database())]
                  FROM tally.status WHERE pid = {waiting} AND kind = 'refresh'"),
    );
    let begin = Instant::now();
    cluster.stop();
    println!("stopped after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5));
    cluster.restart();
    // What was not counted is counted now.
    eventually_true(&mut locked.connect(), "SELECT count(*) = 1 FROM totals_stored");
}

#[test]
fn job_runs_again_after_a_crash_and_three_crashes_hold_it() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "100ms")]);
    let database = cluster.database();
    database.connect().batch_execute(SLOW_ROLLUP).unwrap();
    for crashes in 1..=3 {
        let worker = job_worker(&cluster, &database);
        assert!(cluster.kill_backend(worker), "the worker ended by itself");
        eventually_true(&mut database.connect(), &format!("SELECT crashes = {crashes} FROM tally.job_states"));
    }
    let mut session = database.connect();
    eventually_true(&mut session, "SELECT reason = 'crashed' FROM tally.status WHERE kind = 'refresh'");
    let row =
        session.query_one("SELECT verdict, state, next_sql FROM tally.status WHERE kind = 'refresh'", &[]).unwrap();
    assert_eq!((row.get(0), row.get(1)), ("critical", "paused"));
    session
        .batch_execute("CREATE OR REPLACE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
        .unwrap();
    session.batch_execute(row.get(2)).unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    eventually_true(&mut session, "SELECT crashes = 0 AND failures = 0 FROM tally.job_states");
}

#[test]
fn terminated_job_is_a_failure_and_runs_again() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    let worker = job_worker(&cluster, &database);
    session
        .batch_execute("CREATE OR REPLACE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
        .unwrap();
    session.batch_execute(&format!("SELECT pg_terminate_backend({worker})")).unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    assert!(cluster.log().contains("ended without a result"));
}

#[test]
fn canceled_job_is_recorded_and_its_worker_goes_on() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    let worker = job_worker(cluster, &database);
    session.batch_execute(&format!("SELECT pg_cancel_backend({worker})")).unwrap();
    eventually_true(&mut session, "SELECT last_sqlstate = '57014' FROM tally.job_states");
}

#[test]
fn no_more_workers_run_than_allowed_and_the_others_follow() {
    let cluster = Cluster::start(&[("tally.max_workers", "1")]);
    let databases = [cluster.database(), cluster.database(), cluster.database()];
    let mut holders: Vec<Client> = databases.iter().map(|database| database.connect()).collect();
    for (holder, database) in holders.iter_mut().zip(&databases) {
        holder.batch_execute(ROLLUP).unwrap();
        holder.batch_execute("BEGIN; LOCK TABLE totals_stored").unwrap();
        database.connect().batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    }
    let mut watcher = cluster.connect("postgres");
    // Of whichever database.
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tally job worker' AND wait_event IS NOT NULL";
    eventually("a job worker runs", || number(&mut watcher, waiting) > 0);
    let mut most = 0;
    for holder in &mut holders {
        // Whichever has the only worker: it waits for the lock, and the others wait for the worker.
        for _ in 0..20 {
            let running =
                number(&mut watcher, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'tally job worker'");
            most = most.max(running);
            thread::sleep(Duration::from_millis(20));
        }
        holder.batch_execute("COMMIT").unwrap();
    }
    assert_eq!(most, 1);
    for holder in &mut holders {
        eventually_true(holder, "SELECT count(*) = 1 FROM totals_stored");
    }
}

#[test]
fn jobs_wait_for_a_place_and_say_so() {
    // One place is the launcher's, one is that of logical replication, and one is left.
    let cluster = Cluster::start(&[("max_worker_processes", "3")]);
    let (first, second) = (cluster.database(), cluster.database());
    let mut holder = first.connect();
    holder.batch_execute(ROLLUP).unwrap();
    let mut session = second.connect();
    session.batch_execute(ROLLUP).unwrap();
    eventually_true(&mut session, "SELECT last_run_at IS NOT NULL FROM tally.status WHERE kind = 'refresh'");
    holder.batch_execute("BEGIN; LOCK TABLE totals_stored").unwrap();
    first.connect().batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    job_worker(&cluster, &first);
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    eventually_true(
        &mut session,
        "SELECT verdict = 'warning' AND reason = 'no_worker_slot' AND next_sql LIKE 'ALTER SYSTEM%' FROM tally.status WHERE kind = 'refresh'",
    );
    eventually_true(
        &mut session,
        "SELECT verdict = 'warning' AND reason LIKE '%none free%' FROM tally.status WHERE kind = 'server'",
    );
    holder.batch_execute("COMMIT").unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    eventually_true(&mut session, "SELECT verdict = 'ok' FROM tally.status WHERE kind = 'server'");
    let warnings = cluster.log().matches("all of max_worker_processes are in use").count();
    assert!((1..=3).contains(&warnings), "{warnings} warnings");
}

#[test]
fn due_jobs_run_on_demand_without_preload() {
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(&ROLLUP.replace("1 second", "1 hour")).unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    let server = session.query_one("SELECT state, next_sql FROM tally.status WHERE kind = 'server'", &[]).unwrap();
    assert_eq!(server.get::<_, &str>(0), "on demand");
    assert!(server.get::<_, &str>(1).contains("shared_preload_libraries"));
    let next = text(&mut session, "SELECT next_sql FROM tally.status WHERE kind = 'refresh'").unwrap();
    session.batch_execute(&next).unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM totals_stored"), 1);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.runs WHERE rows_done = 1"), 1);
    // For an hour it is not due.
    session.batch_execute("INSERT INTO events VALUES (2, 2)").unwrap();
    session.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM totals_stored"), 1);
    assert_eq!(
        text(&mut session, "SELECT reason FROM tally.status WHERE kind = 'refresh'").as_deref(),
        Some("scheduled")
    );
}

#[test]
fn unfinished_run_on_demand_is_noticed_by_the_next() {
    let cluster = Cluster::start(&[("shared_preload_libraries", ""), ("tally.retry_min", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    let running = thread::spawn({
        let mut runner = database.connect();
        move || runner.batch_execute("CALL tally.run_due_jobs()").is_err()
    });
    eventually_true(
        &mut session,
        "SELECT state = 'running' AND running_since IS NOT NULL FROM tally.status WHERE kind = 'refresh'",
    );
    // Another caller leaves it alone.
    session.batch_execute("CALL tally.run_due_jobs()").unwrap();
    session.batch_execute("SELECT pg_cancel_backend(pid) FROM tally.status WHERE kind = 'refresh'").unwrap();
    assert!(running.join().unwrap());
    eventually_true(&mut session, "SELECT state <> 'running' FROM tally.status WHERE kind = 'refresh'");
    session
        .batch_execute("CREATE OR REPLACE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
        .unwrap();
    session.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert_eq!(number(&mut session, "SELECT failures::bigint FROM tally.job_states"), 1);
    eventually("it has run", || {
        session.batch_execute("CALL tally.run_due_jobs()").unwrap();
        number(&mut session, "SELECT count(*) FROM totals_stored") == 1
    });
    assert_eq!(number(&mut session, "SELECT failures::bigint FROM tally.job_states"), 0);
}

#[test]
fn failure_on_demand_stops_no_other_job_and_is_recorded() {
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    session
        .batch_execute(
            "CREATE TABLE other (k int);
             SELECT tally.create_rollup('others', 'SELECT k, count(*) AS n FROM other GROUP BY k', refresh_interval => '1 second');
             ALTER TABLE events DISABLE TRIGGER tally_update; INSERT INTO other VALUES (1)",
        )
        .unwrap();
    session.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM others_stored"), 1);
    let row = session
        .query_one(
            "SELECT failures, last_sqlstate, last_hint FROM tally.status WHERE object_name = 'public.events'",
            &[],
        )
        .unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (1, "55000"));
    assert!(row.get::<_, &str>(2).contains("ENABLE ALWAYS TRIGGER"));
}

#[test]
fn superuser_runs_jobs_of_others_in_workers_on_demand() {
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let database = cluster.database();
    let mut admin = database.connect();
    admin.batch_execute("CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app").unwrap();
    let mut app = database.connect_as("app");
    app.batch_execute(ROLLUP).unwrap();
    app.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    admin.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert_eq!(number(&mut app, "SELECT count(*) FROM totals_stored"), 1);
    // And nobody runs the jobs of a role that is not his.
    admin.batch_execute("CREATE ROLE other LOGIN").unwrap();
    app.batch_execute("INSERT INTO events VALUES (2, 1)").unwrap();
    database.connect_as("other").batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert_eq!(number(&mut app, "SELECT count(*) FROM totals_stored"), 1);
}

#[test]
fn paused_and_switched_off_jobs_do_not_run() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    session.batch_execute("SELECT tally.pause_job(job_id) FROM tally.jobs").unwrap();
    eventually_true(&mut session, "SELECT state = 'paused' FROM tally.job_activity()");
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    let paused = "SELECT reason = 'paused' AND next_sql LIKE 'SELECT tally.resume_job%' FROM tally.status WHERE kind = 'refresh'";
    eventually_true(&mut session, paused);
    session.batch_execute("ALTER SYSTEM SET tally.refresh_enabled = off").unwrap();
    session.batch_execute("SELECT pg_reload_conf()").unwrap();
    session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    eventually_true(&mut session, "SELECT reason = 'switched_off' FROM tally.status WHERE kind = 'refresh'");
    eventually_true(&mut session, "SELECT state = 'waiting' FROM tally.job_activity()");
    assert_eq!(number(&mut session, "SELECT count(*) FROM totals_stored"), 0);
    session.batch_execute("ALTER SYSTEM SET tally.refresh_enabled = on").unwrap();
    session.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
}

#[test]
fn database_that_comes_with_jobs_is_found() {
    // A template copy or a restore: nobody tells the launcher.
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    database.connect().batch_execute(ROLLUP).unwrap();
    cluster.restart();
    let mut session = database.connect();
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
}

#[test]
fn owner_without_login_is_reported_with_the_statement_that_helps() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "1s")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute("CREATE ROLE quiet; GRANT CREATE ON SCHEMA public TO quiet; SET ROLE quiet").unwrap();
    session.batch_execute(ROLLUP).unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, 1); RESET ROLE").unwrap();
    if !is_17(&mut session) {
        eventually_true(
            &mut session,
            "SELECT verdict = 'critical' AND reason = 'owner_cannot_log_in' AND failures > 0 FROM tally.status WHERE kind = 'refresh'",
        );
        let next = text(&mut session, "SELECT next_sql FROM tally.status WHERE kind = 'refresh'").unwrap();
        session.batch_execute(&next).unwrap();
    }
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
}

#[test]
fn preloaded_server_runs_due_jobs_on_demand_too() {
    let cluster = Cluster::start(&[("tally.enabled", "on"), ("tally.max_workers", "0")]);
    let database = cluster.database();
    let mut admin = database.connect();
    admin.batch_execute("CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app").unwrap();
    let mut app = database.connect_as("app");
    app.batch_execute(ROLLUP).unwrap();
    app.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    app.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert_eq!(number(&mut app, "SELECT count(*) FROM totals_stored"), 1);
    app.batch_execute("INSERT INTO events VALUES (2, 1)").unwrap();
    eventually("the superuser has it run in a worker", || {
        admin.batch_execute("CALL tally.run_due_jobs()").unwrap();
        number(&mut app, "SELECT count(*) FROM totals_stored") == 2
    });
}

#[test]
fn premake_on_demand_goes_on_until_nothing_is_missing() {
    let cluster = Cluster::start(&[("shared_preload_libraries", ""), ("max_locks_per_transaction", "256")]);
    let database = cluster.database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (event_time timestamptz NOT NULL, k int) PARTITION BY RANGE (event_time);
             SELECT tally.partition_by_time('events', '1 hour');",
        )
        .unwrap();
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass";
    let all = number(&mut session, partitions);
    // More than one step of the job makes.
    session
        .batch_execute(
            "DO $$ DECLARE t regclass; BEGIN
               FOR t IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'events'::regclass ORDER BY inhrelid DESC LIMIT 100
               LOOP EXECUTE 'DROP TABLE ' || t; END LOOP; END $$",
        )
        .unwrap();
    assert_eq!(number(&mut session, partitions), all - 100);
    session.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert!(number(&mut session, partitions) >= all);
    assert!(number(&mut session, "SELECT rows_done FROM tally.runs") >= 100);
}

#[test]
fn job_follows_its_table_to_a_new_owner() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    eventually_true(&mut session, "SELECT last_run_at IS NOT NULL FROM tally.status WHERE kind = 'refresh'");
    session
        .batch_execute(
            "CREATE ROLE heir LOGIN; GRANT CREATE ON SCHEMA public TO heir;
             ALTER TABLE events OWNER TO heir; ALTER TABLE totals_stored OWNER TO heir;
             ALTER TABLE events_changes OWNER TO heir; ALTER TABLE totals_retained OWNER TO heir; ALTER VIEW totals OWNER TO heir;
             ALTER VIEW totals_rows OWNER TO heir; ALTER VIEW totals_changes OWNER TO heir;",
        )
        .unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
}

#[test]
fn launcher_that_was_ended_comes_back() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    let worker = job_worker(&cluster, &database);
    let launcher = "SELECT pid::bigint FROM tally.status WHERE kind = 'server'";
    let before = number(&mut session, launcher);
    session.batch_execute(&format!("SELECT pg_terminate_backend({before}, 5000)")).unwrap();
    eventually_true(&mut session, "SELECT verdict = 'critical' FROM tally.status WHERE kind = 'server'");
    eventually_true(&mut session, &format!("SELECT pid <> {before} FROM tally.status WHERE kind = 'server'"));
    // The new one knows the worker of the old one, and sees when it ends.
    eventually_true(&mut session, &format!("SELECT pid = {worker} FROM tally.job_activity()"));
    session
        .batch_execute("CREATE OR REPLACE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
        .unwrap();
    session.batch_execute(&format!("SELECT pg_terminate_backend({worker})")).unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
}
