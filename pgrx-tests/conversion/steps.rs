//! Whatever interrupts a conversion, it goes on or leaves nothing behind.

use super::{IS_DONE, eventually, number, session_with, text};
use crate::oracle;
use postgres::Client;
use tally_server_tests::cluster;

/// A table that is converted step by step, with a key to be widened.
const BY_HAND: &str = "
    CREATE TABLE events (id int PRIMARY KEY, at timestamptz, k int);
    INSERT INTO events SELECT i, now() - i * interval '1 hour', i FROM generate_series(1, 1000) i;";

const BEGIN_BY_HAND: &str = "
    BEGIN;
    SELECT tally.convert_to_partitioned('events', 'at', '1 day', widen_keys => true);
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;";

/// Takes one step in this session, and builds or drops the index that it asks for.
fn step(session: &mut Client) {
    session.batch_execute("SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = 'conversion'").unwrap();
    let note = text(session, "SELECT note FROM tally.conversions WHERE note LIKE 'builds%'");
    let index = "SELECT indisvalid FROM pg_index WHERE indexrelid::regclass::text = 'events_pkey_tally_wide'";
    match (note, session.query_opt(index, &[]).unwrap().map(|row| row.get::<_, bool>(0))) {
        (Some(_), None) => {
            session.batch_execute("CREATE UNIQUE INDEX CONCURRENTLY events_pkey_tally_wide ON events (id, at)").unwrap()
        }
        (Some(_), Some(false)) => session.batch_execute("DROP INDEX CONCURRENTLY events_pkey_tally_wide").unwrap(),
        _ => {}
    }
}

/// The table is what it was before the conversion began.
#[track_caller]
fn assert_untouched(session: &mut Client) {
    let left = "SELECT (SELECT count(*) FROM tally.conversions) + (SELECT count(*) FROM tally.jobs) + (SELECT count(*) FROM tally.job_states)
                     + (SELECT count(*) FROM pg_constraint WHERE conname = 'tally_conversion')
                     + (SELECT count(*) FROM pg_class WHERE relname LIKE '%tally\\_wide')";
    assert_eq!(number(session, left), 0);
    assert_eq!(
        text(session, "SELECT relkind::text FROM pg_class WHERE oid = 'events'::regclass").as_deref(),
        Some("r")
    );
}

#[test]
fn a_conversion_is_cancelled_at_each_step() {
    let database = cluster::database();
    let mut session = session_with(&database, BY_HAND);
    for steps in 0..4 {
        session.batch_execute(BEGIN_BY_HAND).unwrap();
        for _ in 0..steps {
            step(&mut session);
        }
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.conversions WHERE state = 'preparing'"), 1);
        session.batch_execute("SELECT tally.cancel_conversion('events')").unwrap();
        assert_untouched(&mut session);
    }
    // While somebody uses the table, the job does it as soon as he has gone.
    session.batch_execute("SELECT tally.convert_to_partitioned('events', 'at', '1 day', widen_keys => true)").unwrap();
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
    session.batch_execute("SELECT tally.cancel_conversion('events')").unwrap();
    session.batch_execute("INSERT INTO events VALUES (-1, now())").unwrap();
    eventually(
        &mut session,
        "SELECT state = 'cancelling' AND note LIKE 'waits for pid%AccessShareLock on public.events%' FROM tally.conversions",
    );
    reader.batch_execute("COMMIT").unwrap();
    eventually(&mut session, IS_DONE);
    assert_untouched(&mut session);
}

#[test]
fn a_conversion_goes_on_after_a_crash_at_each_step() {
    let cluster = cluster::Cluster::start(&[("tally.enabled", "off")]);
    let database = cluster.database();
    let mut session = session_with(&database, BY_HAND);
    session.batch_execute(BEGIN_BY_HAND).unwrap();
    let mut states = vec![];
    for _ in 0..10 {
        if number(&mut session, "SELECT count(*) FROM tally.conversions") == 0 {
            break;
        }
        // In the middle of the step: nothing of it is left. After it: all of it is.
        for is_inside in [true, false] {
            if is_inside {
                session
                    .batch_execute("BEGIN; SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = 'conversion'")
                    .unwrap();
            } else {
                step(&mut session);
            }
            let pid = oracle::own_pid(&mut session);
            cluster.kill_backend(pid);
            session = database.connect();
            assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 1000);
        }
        states.push(text(&mut session, "SELECT state FROM tally.conversions"));
    }
    assert_eq!(states.iter().flatten().filter(|state| *state == "swapped").count(), 1, "{states:?}");
    assert!(number(&mut session, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass") > 5);
    assert_eq!(text(&mut session, "SELECT verdict FROM tally.partition_status").as_deref(), Some("ok"));
}

#[test]
fn an_index_that_a_failed_attempt_has_left_is_made_again() {
    let database = cluster::database();
    let mut session = session_with(&database, BY_HAND);
    session.batch_execute(BEGIN_BY_HAND).unwrap();
    step(&mut session);
    step(&mut session);
    // CREATE INDEX CONCURRENTLY that is cancelled while it waits leaves an invalid index.
    let mut writer = database.connect();
    writer.batch_execute("BEGIN; INSERT INTO events VALUES (-5, now())").unwrap();
    let error = session
        .batch_execute("SET statement_timeout = 300")
        .and_then(|()| {
            session.batch_execute("CREATE UNIQUE INDEX CONCURRENTLY events_pkey_tally_wide ON events (id, at)")
        })
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    session.batch_execute("RESET statement_timeout").unwrap();
    writer.batch_execute("COMMIT").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_index WHERE NOT indisvalid"), 1);
    session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    eventually(&mut session, IS_DONE);
    let keys =
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'events'::regclass AND contype = 'p'";
    assert_eq!(text(&mut session, keys).as_deref(), Some("PRIMARY KEY (id, at)"));
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_index WHERE NOT indisvalid"), 0);
}

#[test]
fn a_killed_worker_takes_nothing_along() {
    let cluster = cluster::Cluster::start(&[("tally.retry_min", "1s")]);
    let database = cluster.database();
    let mut session = session_with(&database, BY_HAND);
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; INSERT INTO events VALUES (-1, now())").unwrap();
    session.batch_execute("SELECT tally.convert_to_partitioned('events', 'at', '1 day', widen_keys => true)").unwrap();
    // It waits for the writer with CREATE INDEX CONCURRENTLY or with its lock, and is ended there.
    eventually(&mut session, "SELECT note IS NOT NULL FROM tally.conversions");
    session
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'tally%' AND datname = current_database()")
        .unwrap();
    reader.batch_execute("COMMIT").unwrap();
    eventually(&mut session, IS_DONE);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 1001);
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_index WHERE NOT indisvalid"), 0);
}

#[test]
fn one_width_before_the_boundary_it_starts_over() {
    let database = cluster::database();
    let mut session = session_with(&database, BY_HAND);
    session.batch_execute(BEGIN_BY_HAND).unwrap();
    step(&mut session);
    step(&mut session);
    // As if the boundary of the record had come near, and then later than an insert does.
    session
        .batch_execute(
            "UPDATE tally.conversions SET boundary = (now() + '20 hours') AT TIME ZONE 'UTC';
             ALTER TABLE events DROP CONSTRAINT tally_conversion;
             ALTER TABLE events ADD CONSTRAINT tally_conversion CHECK (at < '2000-01-01') NOT VALID",
        )
        .unwrap();
    step(&mut session);
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_constraint WHERE conname = 'tally_conversion'"), 0);
    session.batch_execute("INSERT INTO events VALUES (-1, now() + '1 hour')").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.conversions WHERE boundary > now() + '2 days'"), 1);
    session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    eventually(&mut session, IS_DONE);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 1001);
}

#[test]
fn a_dump_taken_on_the_way_goes_on_where_it_is_restored() {
    let cluster = cluster::Cluster::start(&[]);
    let database = cluster.database();
    let mut session = session_with(&database, BY_HAND);
    session.batch_execute(BEGIN_BY_HAND).unwrap();
    for _ in 0..3 {
        step(&mut session);
    }
    let restored = cluster.empty_database();
    restored.psql(&database.dump());
    let mut session = restored.connect();
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.conversions WHERE table_name = 'events'::regclass"), 1);
    session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    eventually(&mut session, IS_DONE);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 1000);
    assert_eq!(text(&mut session, "SELECT verdict FROM tally.partition_status").as_deref(), Some("ok"));
}

#[test]
fn a_dropped_table_takes_its_conversion_along() {
    let database = cluster::database_without_workers();
    let mut session = session_with(&database, BY_HAND);
    session.batch_execute(BEGIN_BY_HAND).unwrap();
    step(&mut session);
    session.batch_execute("DROP TABLE events").unwrap();
    assert_eq!(
        number(&mut session, "SELECT (SELECT count(*) FROM tally.conversions) + (SELECT count(*) FROM tally.jobs)"),
        0
    );
}

#[test]
fn rows_that_are_in_the_way_are_found_by_the_validation_and_shown() {
    let database = cluster::database();
    let mut session = session_with(&database, BY_HAND);
    session.batch_execute(BEGIN_BY_HAND).unwrap();
    // As in a table that is too large to be looked through at once.
    session.batch_execute("INSERT INTO events VALUES (-1, now() + '300 days')").unwrap();
    session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    eventually(
        &mut session,
        "SELECT verdict = 'warning' AND last_error_code = '23514' AND reason LIKE '%tally_conversion%' FROM tally.partition_status",
    );
    let next = text(&mut session, "SELECT next_sql FROM tally.partition_status").unwrap();
    let rows = session.query(&next, &[]).unwrap();
    assert_eq!(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>(), [-1], "{next}");
    session.batch_execute("DELETE FROM events WHERE id = -1; SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    eventually(&mut session, IS_DONE);
}
