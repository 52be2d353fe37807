//! What the premake job does besides: statistics of the whole, and BRIN indexes of partitions that have ended.

use std::thread;

use postgres::Client;
use tally_server_tests::cluster::{self, Cluster};

use super::{EVENTS, REGISTER_PAUSED, number, strings};
use crate::oracle::{own_pid, wait_until};

const RUN: &str = "SELECT tally.run_job(job_id) FROM tally.jobs WHERE object = 'events'::regclass AND kind = 'premake'";

/// A pass that looks at the partitions, as one does half an hour after the last at the latest.
fn pass(session: &mut Client) {
    session.batch_execute("DELETE FROM tally.idle_sets").unwrap();
    session.batch_execute(RUN).unwrap();
}

/// The statistics of what a session has written reach the others.
fn flush(session: &mut Client) {
    session.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
}

/// How many customers the planner expects to find.
fn expected_groups(session: &mut Client) -> i64 {
    let plan = strings(session, "EXPLAIN SELECT customer_id FROM events GROUP BY customer_id");
    let rows = plan[0].split("rows=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    rows.parse().unwrap()
}

#[test]
fn the_whole_is_analyzed_when_a_tenth_of_it_is_new() {
    let cluster = Cluster::start(&[("autovacuum", "off"), ("tally.analyze_parents", "off")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(&format!("{EVENTS} {REGISTER_PAUSED}")).unwrap();
    session.batch_execute("INSERT INTO events (event_time, customer_id) SELECT now() - i % 2 * interval '1 day', i % 5000 FROM generate_series(1, 20000) i").unwrap();
    flush(&mut session);
    let analyzed = "SELECT pg_stat_get_analyze_count('events'::regclass)";
    pass(&mut session);
    assert_eq!(number(&mut session, analyzed), 0, "switched off");
    session.batch_execute("ALTER SYSTEM SET tally.analyze_parents = on").unwrap();
    session.batch_execute("SELECT pg_reload_conf()").unwrap();
    wait_until(&mut session, "SELECT current_setting('tally.analyze_parents')::bool");
    let guess = expected_groups(&mut session);

    // It takes no lock that a reader or a writer waits for, and waits for none itself.
    let mut other = database.connect();
    let partition = strings(&mut session, "SELECT tableoid::regclass::text FROM events LIMIT 1").remove(0);
    other.batch_execute(&format!("BEGIN; LOCK TABLE {partition} IN ACCESS EXCLUSIVE MODE")).unwrap();
    pass(&mut session);
    assert_eq!(number(&mut session, analyzed), 0, "somebody has locked a partition");
    other.batch_execute("COMMIT; BEGIN; LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE").unwrap();
    pass(&mut session);
    assert_eq!(number(&mut session, analyzed), 0, "somebody maintains the table");
    other.batch_execute("COMMIT").unwrap();
    session.batch_execute("BEGIN").unwrap();
    pass(&mut session);
    assert_eq!(
        strings(
            &mut session,
            "SELECT DISTINCT mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'events'::regclass AND mode <> 'AccessShareLock'"
        ),
        ["ShareUpdateExclusiveLock"]
    );
    session.batch_execute("COMMIT").unwrap();
    flush(&mut session);

    assert_eq!(number(&mut session, analyzed), 1);
    assert!(guess < 1000, "{guess}");
    let known = expected_groups(&mut session);
    assert!((4_500..5_500).contains(&known), "{guess}, then {known}");
    let own =
        "SELECT sum(pg_stat_get_analyze_count(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'events'::regclass";
    assert_eq!(number(&mut session, own), 0, "partitions are left to autovacuum");
    // Not again today, whatever comes.
    session
        .batch_execute("INSERT INTO events (event_time, customer_id) SELECT now(), i FROM generate_series(1, 20000) i")
        .unwrap();
    flush(&mut session);
    pass(&mut session);
    assert_eq!(number(&mut session, analyzed), 1);
}

#[test]
fn collecting_statistics_can_be_canceled() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{EVENTS} {REGISTER_PAUSED}
             CREATE FUNCTION slow(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS 'BEGIN IF $1 = 7 THEN PERFORM pg_sleep(60); END IF; RETURN $1; END';
             INSERT INTO events (event_time, customer_id) SELECT now(), 1 FROM generate_series(1, 100) i;
             CREATE STATISTICS slowly ON (slow(customer_id)), note FROM events;
             INSERT INTO events (event_time, customer_id) VALUES (now(), 7)"
        ))
        .unwrap();
    flush(&mut session);
    let mut worker = database.connect();
    let pid = own_pid(&mut worker);
    thread::scope(|scope| {
        let run = scope.spawn(move || worker.batch_execute(RUN));
        wait_until(&mut session, &format!("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = {pid}"));
        // Meanwhile nobody who writes waits.
        session
            .batch_execute("SET lock_timeout = '100ms'; INSERT INTO events (event_time, customer_id) VALUES (now(), 1)")
            .unwrap();
        session.batch_execute(&format!("SELECT pg_cancel_backend({pid})")).unwrap();
        assert_eq!(
            run.join().unwrap().unwrap_err().code().map(|code| code.code().to_owned()).as_deref(),
            Some("57014")
        );
    });
}

#[test]
fn brin_indexes_of_a_partition_that_has_ended_are_summarised_once() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{EVENTS} CREATE INDEX events_brin ON events USING brin (event_id) WITH (pages_per_range = 2, autosummarize = off);
             {REGISTER_PAUSED}"
        ))
        .unwrap();
    let partition = |session: &mut Client, days: i32| {
        let name = format!("SELECT to_char(now() + {days} * interval '1 day', '\"events_p\"YYYYMMDD')");
        strings(session, &name).remove(0)
    };
    let (yesterday, today) = (partition(&mut session, -1), partition(&mut session, 0));
    let fill = |table: &str, session: &mut Client| {
        session.batch_execute(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)")).unwrap();
        let day = if table.ends_with(&yesterday) { "interval '1 day'" } else { "interval '0'" };
        session
            .batch_execute(&format!(
                "INSERT INTO events (event_time, customer_id, note) SELECT now() - {day}, i, repeat('x', 400) FROM generate_series(1, 2000) i"
            ))
            .unwrap();
    };
    for table in [&yesterday, &today] {
        fill(table, &mut session);
    }
    let index = |table: &str| {
        format!(
            "(SELECT indexrelid FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE indrelid = '{table}'::regclass AND relam = (SELECT oid FROM pg_am WHERE amname = 'brin'))"
        )
    };
    // Of about a hundred pages those that a scan by the index has to read.
    let pages = |session: &mut Client, table: &str| {
        let plan = strings(
            session,
            &format!(
                "EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) SELECT count(*) FROM {table} WHERE event_id = (SELECT min(event_id) FROM {table})"
            ),
        );
        let line = plan
            .iter()
            .find_map(|line| line.trim().strip_prefix("Heap Blocks: lossy="))
            .unwrap_or_else(|| panic!("{plan:#?}"));
        line.parse::<i64>().unwrap()
    };
    session
        .batch_execute("SET enable_seqscan = off; SET enable_indexscan = off; SET max_parallel_workers_per_gather = 0")
        .unwrap();
    assert!(pages(&mut session, &yesterday) > 50);
    // The day before yesterday, yesterday.
    for _ in 0..3 {
        pass(&mut session);
    }
    assert!(pages(&mut session, &yesterday) <= 4, "{}", pages(&mut session, &yesterday));
    assert!(pages(&mut session, &today) > 50, "it is still growing");
    let new_ranges = |table: &str| format!("SELECT brin_summarize_new_values({})::bigint", index(table));
    assert_eq!(number(&mut session, &new_ranges(&yesterday)), 0);
    // What comes late is not looked for.
    fill(&yesterday, &mut session);
    pass(&mut session);
    assert!(number(&mut session, &new_ranges(&yesterday)) > 10);
    // A set without such an index has no record.
    session.batch_execute("CREATE TABLE visits (at date NOT NULL) PARTITION BY RANGE (at); SELECT tally.partition_by_time('visits', '1 day')").unwrap();
    assert_eq!(strings(&mut session, "SELECT parent::text FROM tally.partition_upkeep"), ["events"]);
    session.batch_execute("SELECT tally.unregister_partitions('events')").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.partition_upkeep"), 0);
}

#[test]
fn a_partition_that_is_being_vacuumed_is_summarised_later() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!("{EVENTS} CREATE INDEX ON events USING brin (event_id); {REGISTER_PAUSED}"))
        .unwrap();
    let oldest = strings(&mut session, "SELECT min(inhrelid::regclass::text) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'events'::regclass").remove(0);
    let mut other = database.connect();
    other.batch_execute(&format!("BEGIN; LOCK TABLE {oldest} IN SHARE UPDATE EXCLUSIVE MODE")).unwrap();
    pass(&mut session);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.partition_upkeep"), 0);
    other.batch_execute("COMMIT").unwrap();
    pass(&mut session);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.partition_upkeep"), 1);
}
