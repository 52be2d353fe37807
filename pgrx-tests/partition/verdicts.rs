//! `tally.partition_status`: a set is broken in each way that has a code, and `next_sql`, executed literally, leads out.
//! (P06, P09, P10 and P11 have tests of their own, with what they are about.)

use super::*;
use crate::retention::RETAIN_BY_HAND;

/// The set of most cases; nothing but a case's own statements happens to it.
const SET: &str = "
    CREATE TABLE events (at timestamptz NOT NULL, v int) PARTITION BY RANGE (at);
    BEGIN;
    SELECT tally.partition_by_time('events', '1 day', lateness => '5 days');
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;
    INSERT INTO events SELECT now() - i * interval '1 day', i FROM generate_series(0, 4) i;";

const RETIRE: &str = "SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = 'retention'";

fn set(database: &Database<'_>) -> Client {
    let mut session = database.connect();
    session.batch_execute(SET).unwrap();
    session
}

fn drop_partitions(session: &mut Client, which: &str) {
    let drop = format!(
        "DO $$ BEGIN EXECUTE (SELECT string_agg(format('DROP TABLE %s', inhrelid::regclass), '; ') FROM pg_inherits,
           LATERAL regexp_match(pg_get_expr((SELECT relpartbound FROM pg_class WHERE oid = inhrelid), inhrelid), 'FROM \\(''(.*?)''') AS m
           WHERE inhparent = 'events'::regclass AND {which}); END $$",
        which = which.replace("lower", "m[1]::timestamptz")
    );
    session.batch_execute(&drop).unwrap();
}

/// Takes steps until the query answers true.
#[track_caller]
fn eventually(session: &mut Client, step: &str, query: &str) {
    for _ in 0..20 {
        session.batch_execute(step).unwrap();
        if session.query_one(query, &[]).unwrap().get(0) {
            return;
        }
    }
    panic!("not so: {query}");
}

/// The verdict and the code of its reason, or what there is instead.
fn verdict(session: &mut Client) -> (String, String) {
    let row = session.query_one("SELECT verdict, coalesce(left(reason, 3), '-') FROM tally.partition_status", &[]);
    let row = row.unwrap();
    (row.get(0), row.get(1))
}

/// As a DBA does it: one statement after the other, outside of a transaction block.
fn follow(database: &Database<'_>, session: &mut Client) -> String {
    let next: String = session.query_one("SELECT next_sql FROM tally.partition_status", &[]).unwrap().get(0);
    database.psql(&next);
    next
}

#[track_caller]
fn assert_leads_out(database: &Database<'_>, session: &mut Client, broken: (&str, &str)) {
    assert_eq!(verdict(session), (broken.0.to_owned(), broken.1.to_owned()));
    let next = follow(database, session);
    assert_eq!(verdict(session), ("ok".to_owned(), "-".to_owned()), "after {next}");
}

#[test]
fn next_sql_makes_the_partitions_that_are_missing() {
    let database = cluster::database();
    let mut session = set(&database);
    assert_eq!(verdict(&mut session).0, "ok");
    for (which, broken) in [
        ("lower > now() - interval '1 day'", ("critical", "P01")),
        ("lower > now()", ("critical", "P01")),
        ("lower > now() + interval '2 days'", ("warning", "P02")),
        ("lower BETWEEN now() - interval '3 days' AND now() - interval '2 days'", ("warning", "P07")),
    ] {
        drop_partitions(&mut session, which);
        assert_leads_out(&database, &mut session, broken);
        session
            .batch_execute("INSERT INTO events SELECT now() + i * interval '1 day', i FROM generate_series(-4, 0) i")
            .unwrap();
    }
}

#[test]
fn next_sql_shows_the_rows_of_a_wrong_clock_and_without_them_all_is_well() {
    let database = cluster::database();
    let mut session = set(&database);
    let far = "CREATE TABLE far PARTITION OF events FOR VALUES FROM ('2097-01-01Z') TO ('2098-01-01Z')";
    session.batch_execute(far).unwrap();
    assert_eq!(verdict(&mut session).0, "ok", "what lies between is made in its time");
    session.batch_execute("INSERT INTO events VALUES ('2097-06-01Z', 7)").unwrap();
    session.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
    assert_eq!(verdict(&mut session), ("warning".into(), "P08".into()));
    let next = strings(&mut session, "SELECT next_sql FROM tally.partition_status").remove(0);
    assert!(database.psql(&next).contains("2097-06-01"), "{next}");
    session.batch_execute("DELETE FROM events WHERE at > '2097-01-01Z'").unwrap();
    session.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
    assert_eq!(verdict(&mut session).0, "ok");
}

#[test]
fn next_sql_detaches_what_no_worker_has_and_ends_what_was_interrupted() {
    let database = cluster::database();
    let mut session = set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    eventually(&mut session, RETIRE, "SELECT EXISTS (SELECT FROM tally.retirements WHERE state = 'detaching')");
    assert_eq!(verdict(&mut session).0, "ok", "a worker has ten minutes");
    session.batch_execute("UPDATE tally.retirements SET changed_at = changed_at - interval '11 minutes'").unwrap();
    assert_leads_out(&database, &mut session, ("warning", "P12"));
    eventually(&mut session, RETIRE, "SELECT EXISTS (SELECT FROM tally.retirements WHERE state = 'trash')");

    // By hand, and interrupted while it waits for a reader.
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; SELECT FROM events").unwrap();
    let oldest = strings(
        &mut session,
        "SELECT min(inhrelid::regclass::text COLLATE \"C\") FROM pg_inherits WHERE inhparent = 'events'::regclass",
    );
    session.batch_execute("SET lock_timeout = '100ms'").unwrap();
    let detach = format!("ALTER TABLE events DETACH PARTITION {} CONCURRENTLY", oldest[0]);
    session.batch_execute(&detach).unwrap_err();
    reader.batch_execute("COMMIT").unwrap();
    assert_leads_out(&database, &mut session, ("critical", "P03"));
}

#[test]
fn next_sql_builds_what_is_to_count_the_rows_of_a_partition() {
    let database = cluster::database();
    let mut session = set(&database);
    let rollup = "SELECT date_trunc('day', at, 'UTC') AS day, count(*) AS n FROM events GROUP BY 1";
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    eventually(&mut session, RETIRE, "SELECT EXISTS (SELECT FROM tally.retirements WHERE state = 'fenced')");
    let rows = "INSERT INTO events SELECT now() - i * interval '1 minute', i FROM generate_series(1, 3000) i";
    session.batch_execute(&format!("{rows}; ANALYZE events; SET tally.build_rows = 100")).unwrap();
    let paused = "SELECT tally.pause_job(job_id) FROM tally.jobs";
    session
        .batch_execute(&format!("BEGIN; SELECT tally.create_rollup('by_day', $${rollup}$$); {paused}; COMMIT"))
        .unwrap();
    session.batch_execute(RETIRE).unwrap();
    session.batch_execute("UPDATE tally.retirements SET changed_at = changed_at - interval '2 hours'").unwrap();
    assert_leads_out(&database, &mut session, ("warning", "P04"));
    assert_eq!(strings(&mut session, "SELECT state FROM tally.retirements"), ["counted"]);
}

#[test]
fn next_sql_takes_out_what_no_partition_can_follow() {
    let database = cluster::database();
    let mut session = set(&database);
    for broken in [
        "CREATE TABLE endless PARTITION OF events FOR VALUES FROM ('9000-01-01') TO (MAXVALUE)",
        "CREATE TABLE parted PARTITION OF events FOR VALUES FROM ('2998-01-01') TO ('2999-01-01') PARTITION BY RANGE (at)",
        "ALTER TABLE events ALTER at DROP NOT NULL",
    ] {
        session.batch_execute(broken).unwrap();
        assert_leads_out(&database, &mut session, ("critical", "P13"));
    }
}

#[test]
fn next_sql_gives_an_owner_what_he_lacks() {
    let database = cluster::database();
    let mut session = set(&database);
    let role = format!("{}_keeper", database.name());
    let owned = format!(
        "CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}; ALTER TABLE events OWNER TO {role}"
    );
    session.batch_execute(&owned).unwrap();
    let mut takes = vec![format!("REVOKE CREATE ON SCHEMA public FROM {role}")];
    if !is_17(&mut session) {
        takes.push(format!("ALTER ROLE {role} NOLOGIN"));
    }
    for take in takes {
        session.batch_execute(&take).unwrap();
        assert_leads_out(&database, &mut session, ("critical", "P13"));
    }
}
