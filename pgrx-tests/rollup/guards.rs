//! Changes that the rollups cannot follow yet are refused, in every form that PostgreSQL has for them.

use tally_server_tests::cluster;

use super::{QUERY, insert, session};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};

#[test]
fn changes_of_rows_of_other_transactions_are_refused() {
    let database = cluster::database();
    let mut session = session(&database);
    session
        .batch_execute(
            "CREATE UNIQUE INDEX ON day_1 (event_time); CREATE TABLE tenants (id int PRIMARY KEY); \
             INSERT INTO tenants VALUES (77); INSERT INTO events VALUES ('2024-01-01 00:00:01Z', 77, 1); \
             ALTER TABLE events ADD FOREIGN KEY (tenant) REFERENCES tenants ON DELETE CASCADE NOT VALID",
        )
        .unwrap_err();
    for statement in [
        "UPDATE events SET amount = 1",
        "UPDATE day_1 SET amount = 1",
        "UPDATE events SET amount = amount",
        "UPDATE events SET event_time = '2024-01-02 05:00Z' WHERE event_time < '2024-01-02Z'",
        "DELETE FROM events WHERE tenant = 1",
        "DELETE FROM ONLY day_2",
        "WITH gone AS (DELETE FROM events RETURNING *) SELECT count(*) FROM gone",
        "MERGE INTO events USING (VALUES (1)) AS v (t) ON tenant = t WHEN MATCHED THEN UPDATE SET amount = 0",
        "MERGE INTO events USING (VALUES (1)) AS v (t) ON tenant = t WHEN MATCHED THEN DELETE",
        "MERGE INTO events USING (VALUES (1)) AS v (t) ON tenant = t AND event_time < '2024-01-02Z' \
         WHEN MATCHED THEN UPDATE SET event_time = '2024-01-02 05:00Z'",
        "TRUNCATE events",
        "TRUNCATE day_1",
        "TRUNCATE ONLY day_1",
        "INSERT INTO events SELECT * FROM events",
        "INSERT INTO events (event_time, tally_tag) VALUES ('2024-01-01Z', 0)",
        "INSERT INTO day_1 (event_time, tally_tag) VALUES ('2024-01-01Z', 9223372036854775807)",
        "COPY events (event_time, tally_tag) FROM PROGRAM 'echo 2024-01-01Z,1' (FORMAT csv)",
    ] {
        assert_refused(&mut session, statement, "0A000", "", "");
        assert_equal(&mut session, "totals", QUERY);
    }
    assert_refused(
        &mut session,
        "INSERT INTO events (event_time, tally_tag) VALUES ('2024-01-01Z', NULL)",
        "23502",
        "",
        "",
    );
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn replica_role_slips_past_no_guard() {
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute("SET session_replication_role = replica").unwrap();
    for statement in [
        "UPDATE events SET amount = 1",
        "DELETE FROM events",
        "TRUNCATE day_1",
        "INSERT INTO events SELECT * FROM events LIMIT 1",
        "ALTER TABLE events DETACH PARTITION day_1",
        "DROP TABLE day_1",
    ] {
        assert_refused(&mut session, statement, "0A000", "", "");
    }
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn conflict_with_a_row_of_another_transaction_is_refused_and_with_an_own_row_is_not() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute("CREATE TABLE events (tenant int PRIMARY KEY, amount int); INSERT INTO events VALUES (1, 1)")
        .unwrap();
    session.execute("SELECT tally.create_rollup('totals', $1)", &[&QUERY]).unwrap();
    let upsert = "INSERT INTO events VALUES (1, 1), (2, 2) ON CONFLICT (tenant) DO UPDATE SET amount = 9";
    assert_refused(&mut session, upsert, "0A000", "UPDATE", "");
    session.batch_execute("INSERT INTO events VALUES (1, 1), (2, 2) ON CONFLICT DO NOTHING").unwrap();
    session.batch_execute("BEGIN; INSERT INTO events VALUES (3, 3)").unwrap();
    session
        .batch_execute("INSERT INTO events VALUES (3, 3), (4, 4) ON CONFLICT (tenant) DO UPDATE SET amount = 9")
        .unwrap();
    assert_equal(&mut session, "totals", QUERY);
    session.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn cascade_of_a_foreign_key_is_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE tenants (id int PRIMARY KEY); INSERT INTO tenants VALUES (1), (2); \
             CREATE TABLE events (tenant int REFERENCES tenants ON DELETE CASCADE ON UPDATE CASCADE, amount int)",
        )
        .unwrap();
    session.execute("SELECT tally.create_rollup('totals', $1)", &[&QUERY]).unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, 1), (1, 2)").unwrap();
    assert_refused(&mut session, "DELETE FROM tenants WHERE id = 1", "0A000", "DELETE", "");
    assert_refused(&mut session, "UPDATE tenants SET id = 3 WHERE id = 1", "0A000", "UPDATE", "");
    session.batch_execute("DELETE FROM tenants WHERE id = 2").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn table_does_not_become_what_cannot_be_counted() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute("CREATE TABLE events (tenant int, amount int); CREATE TABLE loose (LIKE events)").unwrap();
    session.execute("SELECT tally.create_rollup('totals', $1)", &[&QUERY]).unwrap();
    session
        .batch_execute("INSERT INTO loose VALUES (1, 1); ALTER TABLE loose ADD tally_tag bigint NOT NULL DEFAULT 0")
        .unwrap();
    for statement in [
        "CREATE TABLE child () INHERITS (events)",
        "ALTER TABLE loose INHERIT events",
        "ALTER TABLE events SET UNLOGGED",
        "ALTER TABLE events ENABLE ROW LEVEL SECURITY",
    ] {
        assert_refused(&mut session, statement, "0A000", "", "tally.drop_rollup");
    }
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn missing_guard_is_noticed_by_the_next_refresh() {
    let database = cluster::database();
    let mut session = session(&database);
    for (broken, mended) in [
        ("ALTER TABLE events DISABLE TRIGGER tally_update", "ALTER TABLE events ENABLE ALWAYS TRIGGER tally_update"),
        ("ALTER TABLE day_1 DISABLE TRIGGER tally_insert", "ALTER TABLE day_1 ENABLE ALWAYS TRIGGER tally_insert"),
        (
            "ALTER TABLE day_1 DISABLE TRIGGER ALL",
            "ALTER TABLE day_1 ENABLE ALWAYS TRIGGER tally_truncate; \
          ALTER TABLE day_1 ENABLE ALWAYS TRIGGER tally_insert; ALTER TABLE day_1 ENABLE ALWAYS TRIGGER tally_update; \
          ALTER TABLE day_1 ENABLE ALWAYS TRIGGER tally_delete",
        ),
        ("ALTER TABLE events ENABLE TRIGGER tally_delete", "ALTER TABLE events ENABLE ALWAYS TRIGGER tally_delete"),
    ] {
        insert(&mut session);
        session.batch_execute(broken).unwrap();
        assert_refused(&mut session, "CALL tally.refresh('totals')", "55000", "trust", "tally.verify");
        session.batch_execute(mended).unwrap();
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
    }
    session.batch_execute("DROP TRIGGER tally_truncate ON day_2").unwrap();
    assert_refused(&mut session, "CALL tally.refresh('totals')", "55000", "trust", "");
}

#[test]
fn row_from_the_future_is_noticed_by_the_next_refresh() {
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute("ALTER TABLE events DISABLE TRIGGER tally_insert").unwrap();
    session
        .batch_execute("INSERT INTO events (event_time, tally_tag) VALUES ('2024-01-01Z', tally.row_tag() + 1000000)")
        .unwrap();
    session.batch_execute("ALTER TABLE events ENABLE ALWAYS TRIGGER tally_insert").unwrap();
    assert_refused(&mut session, "CALL tally.refresh('totals')", "55000", "does not exist yet", "");
}

#[test]
fn column_that_a_rollup_uses_stays() {
    let database = cluster::database();
    let mut session = session(&database);
    for statement in ["DROP COLUMN amount", "DROP COLUMN tenant", "DROP COLUMN tally_tag"] {
        assert_refused(&mut session, &format!("ALTER TABLE events {statement}"), "2BP01", "", "");
    }
    assert_refused(&mut session, "ALTER TABLE events ALTER amount TYPE numeric", "0A000", "view", "");
    assert_refused(&mut session, "DROP TABLE events", "2BP01", "", "");
    assert_refused(&mut session, "DROP TABLE totals_stored", "2BP01", "", "");
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}
