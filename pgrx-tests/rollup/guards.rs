//! Changes that the rollups cannot follow yet are refused, in every form that PostgreSQL has for them.

use tally_server_tests::cluster;

use super::{QUERY, insert, session};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};

#[test]
fn t09_tags_that_lie_are_refused() {
    let database = cluster::database();
    let mut session = session(&database);
    let mut writer = database.connect();
    writer.batch_execute("BEGIN; INSERT INTO events VALUES ('2024-01-01 03:00Z', 1, 1)").unwrap();
    let open: i64 = writer.query_one("SELECT tally.row_tag()", &[]).unwrap().get(0);
    for (statement, state, message) in [
        ("INSERT INTO events (event_time, tally_tag) VALUES ('2024-01-01Z', 9223372036854775807)", "22023", "day_1"),
        ("INSERT INTO day_1 (event_time, tally_tag) VALUES ('2024-01-01Z', -1)", "22023", "day_1"),
        (
            "COPY events (event_time, tally_tag) FROM PROGRAM 'echo 2024-01-01Z,999999999999999999' (FORMAT csv)",
            "22023",
            "",
        ),
        (
            &format!("INSERT INTO events (event_time, tally_tag) VALUES ('2024-01-01Z', {open})"),
            "55000",
            "still running",
        ),
        ("UPDATE events SET tally_tag = 5", "428C9", "tally_tag"),
        ("UPDATE day_2 SET tally_tag = DEFAULT", "428C9", "tally_tag"),
        ("INSERT INTO events (event_time, tally_tag) VALUES ('2024-01-01Z', NULL)", "23502", ""),
    ] {
        assert_refused(&mut session, statement, state, message, "");
        assert_equal(&mut session, "totals", QUERY);
    }
    writer.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn t07_replica_role_slips_past_no_guard() {
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute("SET session_replication_role = replica").unwrap();
    assert_refused(&mut session, "ALTER TABLE events DETACH PARTITION day_1 CONCURRENTLY", "55000", "", "");
    for statement in [
        "UPDATE events SET amount = 1 WHERE tenant = 1",
        "DELETE FROM events WHERE tenant = 2",
        "INSERT INTO events SELECT * FROM events LIMIT 1",
        "TRUNCATE day_1",
    ] {
        session.batch_execute(statement).unwrap();
        assert_equal(&mut session, "totals", QUERY);
    }
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
    let before = session.query("SELECT * FROM totals ORDER BY tenant", &[]).unwrap().len();
    session.batch_execute("DROP TABLE day_1; ALTER TABLE events DETACH PARTITION day_2").unwrap();
    session.batch_execute("CALL tally.refresh('totals')").unwrap();
    assert_eq!(session.query("SELECT * FROM totals", &[]).unwrap().len(), before);
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
fn t07_missing_guard_is_noticed_by_the_next_refresh() {
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
