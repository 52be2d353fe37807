//! UPDATE, DELETE and rows with copied tags, in every form that PostgreSQL has for them: the rollups follow.

use postgres::Client;
use tally_server_tests::cluster;

use super::{QUERY, create, insert, session};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, pending};

/// A time bucket, a key that is sometimes NULL, and aggregates that nothing can be subtracted from.
const BUCKETS: &str = "SELECT date_trunc('day', event_time, 'UTC') AS day, tenant, min(amount) AS least, max(note) AS note, \
    tally.distinct_count(amount) AS amounts FROM events GROUP BY 1, 2";
const FILTERED: &str = "SELECT note, count(*) FILTER (WHERE amount > 9) AS large, avg(amount) AS average FROM events \
    WHERE tenant IS NOT NULL GROUP BY note";

const ROLLUPS: [(&str, &str); 3] = [("totals", QUERY), ("buckets", BUCKETS), ("filtered", FILTERED)];

#[track_caller]
fn assert_all_equal(session: &mut Client) {
    for (name, query) in ROLLUPS {
        assert_equal(session, name, query);
    }
}

#[track_caller]
fn assert_all_equal_and_refreshed(session: &mut Client) {
    for (name, query) in ROLLUPS {
        assert_equal_now_and_refreshed(session, name, "events", query);
    }
    assert_all_equal(session);
    let log: i64 = session.query_one("SELECT count(*) FROM events_changes", &[]).unwrap().get(0);
    assert_eq!(log, 0, "a refresh has left changes behind");
}

fn changed_session(database: &cluster::Database) -> Client {
    let mut session = session(database);
    create(&mut session, "buckets", BUCKETS);
    create(&mut session, "filtered", FILTERED);
    session
}

const CHANGES: [&str; 12] = [
    "UPDATE events SET amount = amount + 1 WHERE tenant = 1",
    "UPDATE day_1 SET amount = NULL WHERE tenant = 0",
    "UPDATE events SET note = 'y', tenant = NULL WHERE amount % 5 = 0",
    "UPDATE events SET event_time = '2024-01-02 05:00Z' WHERE event_time < '2024-01-01 05:00Z'",
    "DELETE FROM events WHERE tenant IS NULL",
    "DELETE FROM ONLY day_2 WHERE amount < 30",
    "INSERT INTO events SELECT * FROM events",
    "INSERT INTO day_1 SELECT * FROM day_1 LIMIT 3",
    "WITH gone AS (DELETE FROM events WHERE tenant = 2 RETURNING *) INSERT INTO events SELECT * FROM gone LIMIT 2",
    "MERGE INTO events USING (VALUES (1)) AS v (t) ON tenant = t AND event_time < '2024-01-02Z' \
     WHEN MATCHED AND amount < 10 THEN DELETE WHEN MATCHED THEN UPDATE SET event_time = '2024-01-02 06:00Z'",
    "UPDATE events SET note = note",
    "DELETE FROM events",
];

#[test]
fn rollup_follows_update_delete_and_copied_rows() {
    let database = cluster::database();
    let mut session = changed_session(&database);
    for statement in CHANGES {
        // Some rows are counted, some are not.
        insert(&mut session);
        session.batch_execute(statement).unwrap();
        assert_all_equal(&mut session);
        assert_all_equal_and_refreshed(&mut session);
    }
}

#[test]
fn changes_in_one_transaction_are_seen_by_it_alone() {
    for end in ["ROLLBACK", "COMMIT"] {
        let database = cluster::database();
        let (mut session, mut reader) = (changed_session(&database), database.connect());
        session.batch_execute("BEGIN").unwrap();
        for statement in CHANGES {
            insert(&mut session);
            session.batch_execute(statement).unwrap();
            assert_all_equal(&mut session);
            assert_all_equal(&mut reader);
        }
        session.batch_execute(end).unwrap();
        assert_all_equal_and_refreshed(&mut session);
    }
}

#[test]
fn change_by_a_transaction_that_outlives_refreshes_counts_once() {
    let database = cluster::database();
    let (mut session, mut writer, mut old) = (changed_session(&database), database.connect(), database.connect());
    insert(&mut session);
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM totals").unwrap();
    writer
        .batch_execute(
            "BEGIN; UPDATE events SET amount = 1000 WHERE tenant = 1; SAVEPOINT s; DELETE FROM events WHERE tenant = 2",
        )
        .unwrap();
    assert_all_equal(&mut writer);
    for _ in 0..3 {
        insert(&mut session);
        assert_all_equal_and_refreshed_but_open(&mut session);
        assert_all_equal(&mut writer);
        assert_all_equal(&mut old);
    }
    writer.batch_execute("ROLLBACK TO s; PREPARE TRANSACTION 'change'").unwrap();
    assert_all_equal_and_refreshed_but_open(&mut session);
    session.batch_execute("COMMIT PREPARED 'change'").unwrap();
    assert_all_equal(&mut old);
    assert!(pending(&mut session, "events") == 0);
    assert_all_equal_and_refreshed(&mut session);
    old.batch_execute("COMMIT").unwrap();
    assert_all_equal(&mut old);
}

#[track_caller]
fn assert_all_equal_and_refreshed_but_open(session: &mut Client) {
    assert_all_equal(session);
    session.batch_execute("CALL tally.refresh('totals')").unwrap();
    assert_all_equal(session);
}

#[test]
fn cascades_and_upserts_are_followed() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE tenants (id int PRIMARY KEY); INSERT INTO tenants VALUES (1), (2), (3); \
             CREATE TABLE events (id int PRIMARY KEY, tenant int REFERENCES tenants ON DELETE CASCADE ON UPDATE CASCADE, amount int); \
             INSERT INTO events SELECT i, 1 + i % 3, i FROM generate_series(1, 30) AS i",
        )
        .unwrap();
    create(&mut session, "totals", QUERY);
    for statement in [
        "DELETE FROM tenants WHERE id = 1",
        "UPDATE tenants SET id = 4 WHERE id = 2",
        "INSERT INTO events VALUES (1, 3, 5), (40, 4, 6) ON CONFLICT (id) DO UPDATE SET amount = 100, tenant = 4",
        "INSERT INTO events VALUES (1, 3, 5), (41, 4, 6) ON CONFLICT DO NOTHING",
    ] {
        session.batch_execute(statement).unwrap();
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
    }
}

/// Values that lie out of line stay readable after the row that had them is gone.
#[test]
fn long_values_are_logged_whole() {
    let database = cluster::database();
    let mut session = database.connect();
    let query = "SELECT left(note, 3) AS start, count(*) AS n, max(length(note)) AS longest FROM events GROUP BY 1";
    session
        .batch_execute(
            "CREATE TABLE events (id int, note text); ALTER TABLE events ALTER note SET STORAGE EXTERNAL; \
             INSERT INTO events SELECT i, repeat(chr(97 + i), 100000) FROM generate_series(0, 9) AS i",
        )
        .unwrap();
    create(&mut session, "notes", query);
    session.batch_execute("UPDATE events SET note = 'x' || note WHERE id < 5").unwrap();
    session.batch_execute("DELETE FROM events WHERE id > 7").unwrap();
    session.batch_execute("VACUUM FULL events").unwrap();
    session.batch_execute("VACUUM events").unwrap();
    assert_equal_now_and_refreshed(&mut session, "notes", "events", query);
}

#[test]
fn log_follows_names_and_later_rollups() {
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute("ALTER TABLE events ADD extra int DEFAULT 7").unwrap();
    session.batch_execute("UPDATE events SET amount = 1 WHERE tenant = 1").unwrap();
    // While somebody has changed rows and not ended, the log cannot get another column.
    let mut writer = database.connect();
    writer.batch_execute("BEGIN; DELETE FROM events WHERE tenant = 2").unwrap();
    let extra = "SELECT extra, tenant, count(*) AS n FROM events GROUP BY 1, 2";
    let create_extra = format!("SELECT tally.create_rollup('extras', '{extra}')");
    let error = session.batch_execute(&create_extra).unwrap_err();
    assert_eq!(error.as_db_error().unwrap().code().code(), "55P03");
    writer.batch_execute("COMMIT").unwrap();
    session.batch_execute(&create_extra).unwrap();
    assert_equal(&mut session, "extras", extra);
    session
        .batch_execute(
            "ALTER TABLE events RENAME COLUMN extra TO spare; ALTER TABLE events RENAME COLUMN tenant TO shop",
        )
        .unwrap();
    session.batch_execute("ALTER TABLE events RENAME TO facts; ALTER TABLE day_2 RENAME TO second").unwrap();
    session.batch_execute("UPDATE facts SET spare = 8, shop = 5 WHERE shop = 0").unwrap();
    session.batch_execute("DELETE FROM second WHERE shop = 1").unwrap();
    let totals =
        QUERY.replace("tenant", "shop").replace("shop, count", "shop AS tenant, count").replace("events", "facts");
    let extras = "SELECT spare AS extra, shop AS tenant, count(*) AS n FROM facts GROUP BY 1, 2";
    for (name, query) in [("totals", totals.as_str()), ("extras", extras)] {
        assert_equal_now_and_refreshed(&mut session, name, "facts", query);
    }
}

#[test]
fn change_that_no_rollup_reads_is_not_logged() {
    let database = cluster::database();
    let mut session = session(&database);
    let logged =
        |session: &mut Client| -> i64 { session.query_one("SELECT count(*) FROM events_changes", &[]).unwrap().get(0) };
    session.batch_execute("UPDATE events SET note = repeat('z', 10000)").unwrap();
    session.batch_execute("UPDATE events SET amount = amount, tenant = tenant").unwrap();
    assert_eq!(logged(&mut session), 0);
    session.batch_execute("UPDATE events SET amount = NULL WHERE tenant = 1").unwrap();
    assert!(logged(&mut session) > 0);
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn t08_truncated_tables_are_followed() {
    let database = cluster::database();
    let (mut session, mut reader) = (changed_session(&database), database.connect());
    for statement in
        ["TRUNCATE day_2", "TRUNCATE ONLY day_1", "TRUNCATE events", "TRUNCATE events, day_1 RESTART IDENTITY"]
    {
        for end in ["ROLLBACK", "COMMIT"] {
            insert(&mut session);
            session.batch_execute("BEGIN; SAVEPOINT s").unwrap();
            insert(&mut session);
            session.batch_execute(statement).unwrap();
            assert_all_equal(&mut session);
            insert(&mut session);
            assert_all_equal(&mut session);
            session.batch_execute("UPDATE events SET amount = 3, note = 'new'").unwrap();
            session.batch_execute(end).unwrap();
            assert_all_equal(&mut reader);
        }
        assert_all_equal_and_refreshed(&mut session);
        insert(&mut session);
        session.batch_execute(statement).unwrap();
        assert_all_equal_and_refreshed(&mut session);
    }
    let mut old = database.connect();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class").unwrap();
    insert(&mut session);
    session.batch_execute("CALL tally.refresh('totals')").unwrap();
    // Its snapshot does not see these rows, and TRUNCATE takes them all the same.
    old.batch_execute("TRUNCATE day_1; COMMIT").unwrap();
    assert_all_equal_and_refreshed(&mut session);
}

#[test]
fn t08_attached_partitions_bring_rows_along() {
    let database = cluster::database();
    let (mut session, mut open) = (changed_session(&database), database.connect());
    session
        .batch_execute(
            "CREATE TABLE day_3 (LIKE events INCLUDING DEFAULTS); \
             INSERT INTO day_3 SELECT '2024-01-03Z'::timestamptz + make_interval(hours => i), i % 4, i, 'z' FROM generate_series(0, 9) AS i",
        )
        .unwrap();
    session
        .batch_execute(
            "INSERT INTO day_3 SELECT event_time + interval '2 days', tenant, amount, note, tally_tag FROM day_1; \
             CREATE TABLE day_4 (LIKE events INCLUDING DEFAULTS) PARTITION BY LIST (tenant); \
             CREATE TABLE day_4_odd PARTITION OF day_4 FOR VALUES IN (1, 3); CREATE TABLE day_4_rest PARTITION OF day_4 DEFAULT; \
             INSERT INTO day_4 SELECT event_time + interval '1 day', tenant, amount, note FROM day_3",
        )
        .unwrap();
    open.batch_execute("BEGIN; INSERT INTO day_2 (event_time, tenant, amount) VALUES ('2024-01-02 05:00Z', 1, 1)")
        .unwrap();
    session.batch_execute("CALL tally.refresh('totals')").unwrap();
    session.batch_execute("BEGIN; INSERT INTO day_3 VALUES ('2024-01-03 23:00Z', 9, 9, 'own')").unwrap();
    session
        .batch_execute("ALTER TABLE events ATTACH PARTITION day_3 FOR VALUES FROM ('2024-01-03Z') TO ('2024-01-04Z')")
        .unwrap();
    assert_all_equal(&mut session);
    session.batch_execute("COMMIT").unwrap();
    assert_all_equal(&mut open);
    session
        .batch_execute("ALTER TABLE events ATTACH PARTITION day_4 FOR VALUES FROM ('2024-01-04Z') TO ('2024-01-05Z')")
        .unwrap();
    assert_all_equal(&mut open);
    open.batch_execute("COMMIT").unwrap();
    assert_all_equal_and_refreshed(&mut session);
    session
        .batch_execute("DELETE FROM day_4 WHERE tenant = 1; TRUNCATE day_4_rest; UPDATE day_3 SET amount = 0")
        .unwrap();
    assert_all_equal_and_refreshed(&mut session);
    session
        .batch_execute(
            "CREATE TABLE day_5 (LIKE events INCLUDING DEFAULTS); \
             INSERT INTO day_5 (event_time, tally_tag) VALUES ('2024-01-05Z', 9223372036854775807)",
        )
        .unwrap();
    let attach = "ALTER TABLE events ATTACH PARTITION day_5 FOR VALUES FROM ('2024-01-05Z') TO ('2024-01-06Z')";
    let error = session.batch_execute(attach).unwrap_err();
    assert_eq!(error.as_db_error().unwrap().code().code(), "22023");
    assert_all_equal_and_refreshed(&mut session);
}

#[test]
fn only_partitions_of_changed_buckets_are_read_again() {
    let database = cluster::database();
    let mut session = changed_session(&database);
    session.batch_execute("ANALYZE; UPDATE events SET amount = 7 WHERE event_time = '2024-01-02 05:00Z'").unwrap();
    let plan = database.psql("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM buckets");
    let again = plan.split("Subquery Scan on a").nth(1).expect("the groups are counted again");
    let scan =
        |partition: &str| again.lines().find(|line| line.contains(&format!("on {partition}"))).map(str::to_owned);
    assert!(scan("day_2").is_some_and(|line| !line.contains("never executed")), "{plan}");
    assert!(scan("day_1").is_none_or(|line| line.contains("never executed")), "{plan}");
}
