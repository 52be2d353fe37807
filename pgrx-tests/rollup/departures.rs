//! Partitions that leave a source: the rollups go on counting their rows, exactly, and no row is counted twice when one comes back.

use postgres::Client;
use tally_server_tests::cluster::{self, Database};

use super::{create, insert, session};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};
use crate::refresh::pause_jobs;

/// Queries over the rows: buckets that straddle partitions, aggregates that nothing can be subtracted from, no bucket at all.
const ROLLUPS: [(&str, &str); 5] = [
    ("totals", super::QUERY),
    (
        "weekly",
        "SELECT date_trunc('week', event_time, 'UTC') AS week, note, min(amount) AS least, avg(amount) AS average, \
           tally.distinct_count(amount) AS amounts, count(*) FILTER (WHERE tenant = 1) AS ones FROM events GROUP BY 1, 2",
    ),
    (
        "hourly",
        "SELECT date_bin('1 hour', event_time, '2000-01-01Z') AS hour, tenant, count(*) AS n, max(amount) AS most \
         FROM events WHERE amount <> 13 GROUP BY 1, 2",
    ),
    // Aggregates that are kept by states, and by two columns.
    (
        "ends",
        "SELECT tenant, round(var_pop(amount::float8)::numeric, 6) AS spread, \
           round(corr(amount, extract(hour FROM event_time AT TIME ZONE 'UTC'))::numeric, 6) AS correlation, \
           tally.first(amount, event_time) AS first, tally.last(note, event_time) AS last, product(amount % 7) AS product \
         FROM events GROUP BY tenant",
    ),
    // A level above, as its query over the rows.
    (
        "daily",
        "SELECT date_trunc('day', event_time, 'Europe/Berlin') AS day, count(*)::numeric AS n, max(amount) AS most \
         FROM events WHERE amount <> 13 GROUP BY 1",
    ),
];

pub(super) fn rolled_session(database: &Database) -> Client {
    let mut session = session(database);
    session.batch_execute("CREATE TABLE gone (event_time timestamptz, tenant int, amount int, note text)").unwrap();
    create(&mut session, ROLLUPS[1].0, ROLLUPS[1].1);
    create(&mut session, ROLLUPS[2].0, ROLLUPS[2].1);
    session
        .batch_execute(
            "CREATE AGGREGATE product(numeric) (sfunc = numeric_mul, stype = numeric, combinefunc = numeric_mul)",
        )
        .unwrap();
    create(&mut session, ROLLUPS[3].0, ROLLUPS[3].1);
    let daily =
        "SELECT date_trunc('day', hour, 'Europe/Berlin') AS day, sum(n) AS n, max(most) AS most FROM hourly GROUP BY 1";
    create(&mut session, "daily", daily);
    // A worker that refreshes would settle what a test finds unsettled.
    pause_jobs(&mut session);
    session
}

/// Every rollup equals its query over the table and `gone`, the rows that have left it.
#[track_caller]
pub(super) fn assert_kept(session: &mut Client) {
    for (name, query) in ROLLUPS {
        let all = "FROM (SELECT event_time, tenant, amount, note FROM events UNION ALL SELECT * FROM gone) AS events";
        assert_equal(session, name, &query.replace("FROM events", all));
        let differences = session.query(&format!("SELECT * FROM tally.verify('{name}')"), &[]).unwrap();
        assert!(differences.is_empty(), "tally.verify({name}): {differences:?}");
    }
}

#[track_caller]
pub(super) fn assert_kept_and_refreshed(session: &mut Client) {
    assert_kept(session);
    session.batch_execute("CALL tally.refresh('totals')").unwrap();
    assert_kept(session);
}

pub(super) fn run(session: &mut Client, statement: &str) {
    session.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

const TO_GONE: &str = "INSERT INTO gone SELECT event_time, tenant, amount, note FROM day_1;";

#[test]
fn rows_of_a_detached_partition_stay_counted() {
    let database = cluster::database();
    let (mut session, mut other) = (rolled_session(&database), database.connect());
    // Some rows are not counted, and some counted ones are changed.
    insert(&mut session);
    run(&mut session, "UPDATE events SET amount = amount + 1 WHERE tenant = 1; DELETE FROM events WHERE amount = 5");
    run(&mut session, &format!("BEGIN; {TO_GONE} ALTER TABLE events DETACH PARTITION day_1"));
    assert_kept(&mut session);
    run(&mut session, "COMMIT");
    assert_kept(&mut other);
    assert_kept_and_refreshed(&mut session);
    // Groups with rows on both sides are made anew from what is there and what is retained.
    run(&mut session, "UPDATE events SET amount = -amount; INSERT INTO events SELECT * FROM events LIMIT 5");
    assert_kept_and_refreshed(&mut session);
    // The table is an ordinary one now.
    run(&mut session, "UPDATE day_1 SET amount = 0; TRUNCATE day_1; DROP TABLE day_1");
    assert_kept_and_refreshed(&mut session);
    run(&mut session, "DELETE FROM events");
    assert_kept_and_refreshed(&mut session);
}

#[test]
fn a_dropped_partition_stays_counted() {
    for counted in [true, false] {
        let database = cluster::database();
        let mut session = rolled_session(&database);
        insert(&mut session);
        if counted {
            run(&mut session, "CALL tally.refresh('totals')");
        }
        run(&mut session, &format!("{TO_GONE} DROP TABLE day_1"));
        assert_kept_and_refreshed(&mut session);
        run(&mut session, "CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z')");
        insert(&mut session);
        assert_kept_and_refreshed(&mut session);
        run(&mut session, "UPDATE events SET tenant = 1, note = 'x'");
        assert_kept_and_refreshed(&mut session);
        run(&mut session, &format!("{TO_GONE} DROP TABLE day_1; TRUNCATE day_2"));
        assert_kept_and_refreshed(&mut session);
        // The whole table is emptied: what is retained is left.
        insert_into_day_2(&mut session);
        run(&mut session, "TRUNCATE events");
        assert_kept_and_refreshed(&mut session);
        insert_into_day_2(&mut session);
        assert_kept_and_refreshed(&mut session);
    }
}

fn insert_into_day_2(session: &mut Client) {
    run(session, "INSERT INTO events VALUES ('2024-01-02 01:00Z', 1, 3, 'x'), ('2024-01-02 02:00Z', NULL, 4, NULL)");
}

#[test]
fn a_partition_that_comes_back_is_counted_as_it_is_then() {
    let database = cluster::database();
    let mut session = rolled_session(&database);
    insert(&mut session);
    let attach = "ALTER TABLE events ATTACH PARTITION day_1 FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z')";
    for meanwhile in [
        "SELECT",
        "CALL tally.refresh('totals')",
        "UPDATE day_1 SET amount = 77 WHERE tenant = 2",
        "DELETE FROM day_1 WHERE tenant = 1",
        "INSERT INTO day_1 (event_time, tenant, amount) VALUES ('2024-01-01 07:00Z', 9, 9)",
        "TRUNCATE day_1",
    ] {
        run(&mut session, "ALTER TABLE events DETACH PARTITION day_1");
        run(&mut session, meanwhile);
        // Back, and gone again, and back.
        run(&mut session, attach);
        run(&mut session, "ALTER TABLE events DETACH PARTITION day_1");
        run(&mut session, &format!("BEGIN; {attach}"));
        assert_kept(&mut session);
        run(&mut session, "COMMIT");
        assert_kept_and_refreshed(&mut session);
        let left: i64 = session
            .query_one("SELECT (SELECT count(*) FROM tally.departures) + (SELECT count(*) FROM weekly_retained) + (SELECT count(*) FROM events_changes)", &[])
            .unwrap()
            .get(0);
        assert_eq!(left, 0, "a refresh has left something of a partition that is back");
        run(&mut session, "UPDATE events SET amount = amount + 1");
        assert_kept_and_refreshed(&mut session);
    }
}

/// Found by the random test, history 498058194.
#[test]
fn a_partition_that_was_back_and_is_dropped_counts_once() {
    let database = cluster::database();
    let mut session = rolled_session(&database);
    run(&mut session, "ALTER TABLE events DETACH PARTITION day_1");
    run(&mut session, "ALTER TABLE events ATTACH PARTITION day_1 FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z')");
    run(&mut session, &format!("{TO_GONE} DROP TABLE day_1"));
    assert_kept_and_refreshed(&mut session);
}

#[test]
fn a_departure_that_is_rolled_back_never_happened() {
    let database = cluster::database();
    let (mut session, mut writer) = (rolled_session(&database), database.connect());
    insert(&mut session);
    run(
        &mut session,
        "BEGIN; SAVEPOINT s; DROP TABLE day_1; ROLLBACK TO s; ALTER TABLE events DETACH PARTITION day_1; ROLLBACK",
    );
    assert_kept_and_refreshed(&mut session);
    insert(&mut writer);
    run(&mut writer, "DELETE FROM events WHERE tenant = 1");
    assert_kept_and_refreshed(&mut session);
}

#[test]
fn partitions_of_partitions_leave_with_theirs() {
    let database = cluster::database();
    let mut session = rolled_session(&database);
    run(
        &mut session,
        "CREATE TABLE day_3 PARTITION OF events FOR VALUES FROM ('2024-01-03Z') TO ('2024-01-04Z') PARTITION BY LIST (tenant); \
         CREATE TABLE day_3_a PARTITION OF day_3 FOR VALUES IN (1); CREATE TABLE day_3_b PARTITION OF day_3 DEFAULT; \
         INSERT INTO events SELECT '2024-01-03Z'::timestamptz + make_interval(mins => i), i % 4, i, 'z' FROM generate_series(1, 40) AS i",
    );
    run(&mut session, "INSERT INTO gone SELECT event_time, tenant, amount, note FROM day_3_a; DROP TABLE day_3_a");
    assert_kept_and_refreshed(&mut session);
    run(
        &mut session,
        "INSERT INTO gone SELECT event_time, tenant, amount, note FROM day_3; ALTER TABLE events DETACH PARTITION day_3",
    );
    assert_kept_and_refreshed(&mut session);
    run(
        &mut session,
        "ALTER TABLE day_3 DETACH PARTITION day_3_b; INSERT INTO day_3_b (event_time, tenant) VALUES ('2024-01-03 05:00Z', 8)",
    );
    // One of the leaves comes back alone.
    run(
        &mut session,
        "DELETE FROM gone WHERE event_time >= '2024-01-03Z' AND tenant IS DISTINCT FROM 1; \
         ALTER TABLE events ATTACH PARTITION day_3_b FOR VALUES FROM ('2024-01-03Z') TO ('2024-01-04Z')",
    );
    assert_kept_and_refreshed(&mut session);
    run(&mut session, "DROP TABLE day_3");
    assert_kept_and_refreshed(&mut session);
}

#[test]
fn what_would_lose_rows_is_refused() {
    let database = cluster::database();
    let mut session = rolled_session(&database);
    run(&mut session, "CREATE SCHEMA far; ALTER TABLE day_1 SET SCHEMA far");
    assert_refused(
        &mut session,
        "DROP SCHEMA far CASCADE",
        "2BP01",
        "cannot drop partition far.day_1",
        "DROP TABLE far.day_1",
    );
    assert_refused(
        &mut session,
        "ALTER TABLE events DETACH PARTITION far.day_1 CONCURRENTLY",
        "55000",
        "DETACH CONCURRENTLY",
        "without CONCURRENTLY",
    );
    assert_kept_and_refreshed(&mut session);
    run(
        &mut session,
        "INSERT INTO gone SELECT event_time, tenant, amount, note FROM far.day_1; DROP TABLE far.day_1; DROP SCHEMA far CASCADE",
    );
    assert_kept_and_refreshed(&mut session);
    // A new level has what the level below has retained.
    create(&mut session, "again", "SELECT tenant, sum(n) AS n FROM hourly GROUP BY tenant");
    run(&mut session, "UPDATE events SET amount = amount + 1");
    assert_equal_now_and_refreshed(
        &mut session,
        "again",
        "events",
        "SELECT tenant, sum(n) AS n FROM hourly GROUP BY tenant",
    );
}

#[test]
fn forgotten_rows_stay_counted() {
    for is_counted in [true, false] {
        let database = cluster::database();
        let mut session = rolled_session(&database);
        insert(&mut session);
        if is_counted {
            run(&mut session, "CALL tally.refresh('totals')");
        }
        run(
            &mut session,
            "UPDATE events SET amount = amount + 1 WHERE tenant = 1 AND event_time < '2024-01-02 06:00Z'",
        );
        let old = "event_time < '2024-01-02 05:00Z'";
        run(&mut session, &format!("INSERT INTO gone SELECT event_time, tenant, amount, note FROM events WHERE {old}"));
        run(&mut session, "CALL tally.forget('events', '2024-01-02 05:00Z')");
        let left: Vec<i64> = [
            "SELECT count(*) FROM pg_class WHERE relname = 'day_1'",
            &format!("SELECT count(*) FROM events WHERE {old}"),
        ]
        .iter()
        .map(|query| session.query_one(*query, &[]).unwrap().get(0))
        .collect();
        assert_eq!(left, [0, 0], "the partition and the older rows of the next one are gone");
        assert_kept_and_refreshed(&mut session);
        run(&mut session, "UPDATE events SET tenant = 1, note = 'x'");
        assert_kept_and_refreshed(&mut session);
        run(&mut session, "DELETE FROM events");
        assert_kept_and_refreshed(&mut session);
    }
}

#[test]
fn rows_of_a_plain_table_are_forgotten_by_the_column_that_is_named() {
    let database = cluster::database();
    let mut session = database.connect();
    run(
        &mut session,
        "CREATE TABLE plain (at timestamp, n int); INSERT INTO plain SELECT '2024-01-01'::timestamp + i * interval '1 hour', i FROM generate_series(1, 50) AS i",
    );
    let query = "SELECT date_trunc('day', at) AS day, count(*) AS n, max(n) AS most FROM plain GROUP BY 1";
    create(&mut session, "per_day", query);
    run(&mut session, "CREATE TABLE before AS SELECT * FROM per_day");
    assert_refused(
        &mut session,
        "CALL tally.forget('plain', '2024-01-02')",
        "22023",
        "not partitioned by a time",
        "time_column",
    );
    assert_refused(
        &mut session,
        "CALL tally.forget('plain', '2024-01-02', 'n')",
        "42703",
        "no column \"n\" of a time",
        "Name a column",
    );
    assert_refused(&mut session, "CALL tally.forget('before', '2024-01-02')", "42704", "feeds no rollup", "DELETE");
    // Somebody has changed younger rows of the same groups and not ended.
    let mut writer = database.connect();
    run(&mut writer, "BEGIN; UPDATE plain SET n = 99 WHERE n = 30");
    run(&mut session, "CALL tally.forget('plain', '2024-01-02', 'at')");
    run(&mut writer, "ROLLBACK");
    assert_eq!(session.query_one("SELECT count(*) FROM plain", &[]).unwrap().get::<_, i64>(0), 27);
    assert_equal_now_and_refreshed(&mut session, "per_day", "plain", "SELECT * FROM before");
    run(&mut session, "UPDATE plain SET n = n");
    run(&mut session, "UPDATE plain SET n = n + 1; UPDATE plain SET n = n - 1");
    assert_equal_now_and_refreshed(&mut session, "per_day", "plain", "SELECT * FROM before");
}
