//! A run that takes longer than its owner allows is canceled, ended if need be, and recorded as what it was.

use super::*;

const LIMIT: &str = "SELECT tally.set_max_runtime(job_id, '1 second') FROM tally.jobs";
const QUICK: &str = "CREATE OR REPLACE FUNCTION slow(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'";

/// As `SLOW_ROLLUP`, but it takes no notice of a cancel.
fn deaf_rollup() -> String {
    SLOW_ROLLUP.replace(
        "'BEGIN PERFORM pg_sleep(60); RETURN $1; END'",
        "'BEGIN LOOP BEGIN PERFORM pg_sleep(60); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END'",
    )
}

#[test]
fn overlong_run_is_canceled_and_the_status_says_what_helps() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    session.batch_execute(LIMIT).unwrap();
    // Asked of the table: the record itself.
    eventually_true(&mut session, "SELECT last_sqlstate = '53400' FROM tally.job_states");
    let row = session
        .query_one(
            "SELECT last_message, last_hint, verdict, reason, next_sql, last_duration BETWEEN '1 second' AND '10 seconds' FROM tally.status WHERE kind = 'refresh'",
            &[],
        )
        .unwrap();
    let texts: Vec<String> = (0..5).map(|column| row.get(column)).collect();
    assert_eq!(texts[0], "the run took longer than its max_runtime of 1s and was canceled");
    assert!(texts[1].contains("tally.set_max_runtime("), "{}", texts[1]);
    assert_eq!(texts[2..4], ["warning", "failing"]);
    assert!(row.get::<_, bool>(5));
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.runs WHERE sqlstate = '53400' AND position < 0"), 1);
    session.batch_execute(&texts[4]).unwrap();
    assert_eq!(text(&mut session, "SELECT max_runtime::text FROM tally.jobs").as_deref(), Some("00:00:02"));
    session.batch_execute(QUICK).unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    eventually_true(&mut session, "SELECT verdict = 'ok' FROM tally.status WHERE kind = 'refresh'");
}

#[test]
fn run_that_does_not_heed_a_cancel_is_ended_and_recorded_by_the_next() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(&deaf_rollup()).unwrap();
    session.batch_execute(LIMIT).unwrap();
    // The status knows from shared memory, in its own words.
    eventually_true(&mut session, "SELECT last_sqlstate = '53400' FROM tally.job_activity()");
    session.batch_execute(QUICK).unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    let recorded = "SELECT count(*) > 0 AND bool_and(duration >= '4 seconds' AND message LIKE '%max_runtime of 1s%')
                    FROM tally.runs WHERE sqlstate = '53400'";
    eventually_true(&mut session, recorded);
    let log = cluster.log();
    assert!(log.contains("does not heed a cancel"));
    assert!(!log.contains("was terminated by signal"), "SIGKILL would restart the server");
}

#[test]
fn run_that_somebody_ended_is_recorded_by_the_next() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    let worker = job_worker(&cluster, &database);
    session.batch_execute(QUICK).unwrap();
    session.batch_execute(&format!("SELECT pg_terminate_backend({worker})")).unwrap();
    eventually_true(&mut session, "SELECT count(*) = 1 FROM totals_stored");
    eventually_true(&mut session, "SELECT count(*) = 1 FROM tally.runs WHERE sqlstate = '57P01' AND position < 0");
}

#[test]
fn overlong_run_on_demand_stops_no_other_job() {
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SLOW_ROLLUP).unwrap();
    session.batch_execute(LIMIT).unwrap();
    session
        .batch_execute(
            "CREATE TABLE other (k int);
             SELECT tally.create_rollup('others', 'SELECT k, count(*) AS n FROM other GROUP BY k');
             INSERT INTO other VALUES (1)",
        )
        .unwrap();
    let begin = Instant::now();
    session.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert_eq!(number(&mut session, "SELECT count(*) FROM others_stored"), 1);
    assert_eq!(
        text(&mut session, "SELECT last_sqlstate FROM tally.status WHERE object_name = 'public.events'").as_deref(),
        Some("53400")
    );
    // The timer is off: the session may take its time.
    session.batch_execute("SELECT pg_sleep(1.2)").unwrap();
    // A cancel by somebody else is one.
    session.batch_execute("SET statement_timeout = '300ms'").unwrap();
    let canceled =
        session.query("SELECT tally.run_job(job_id) FROM tally.jobs WHERE object_name = 'public.events'", &[]);
    assert_eq!(canceled.unwrap_err().code().unwrap().code(), "57014");
}

#[test]
fn max_runtime_is_sensible_and_set_by_the_owner_only() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(ROLLUP).unwrap();
    for bad in ["0", "-1 hour", "999 milliseconds", "21 days", "1 month", "1 month -1 day", "178000000 years"] {
        let error = session.query(&format!("SELECT tally.set_max_runtime(job_id, '{bad}') FROM tally.jobs"), &[]);
        let error = error.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("22023"), "{bad}: {error:?}");
    }
    session.batch_execute("SELECT tally.set_max_runtime(job_id, '1 day 2 hours') FROM tally.jobs").unwrap();
    assert_eq!(text(&mut session, "SELECT max_runtime::text FROM tally.jobs").as_deref(), Some("26:00:00"));
    let unknown = session.query("SELECT tally.set_max_runtime(4711, '1 day')", &[]).unwrap_err();
    assert_eq!(unknown.code().unwrap().code(), "42704");
}
