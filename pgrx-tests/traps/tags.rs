//! T5, T6, T9, T10 and T11: tags that history, other clusters, copies, rewrites and COPY FREEZE give to rows.

use std::io::{Read as _, Write as _};
use std::thread;

use postgres::Client;
use tally_server_tests::cluster::{self, Cluster, Database};

use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, pending, wait_until, wait_until_blocked};
use crate::refresh::{QUERY, create, insert, refresh, session};

#[test]
fn t05_history_has_one_tag_and_is_counted_by_the_build() {
    const AMOUNTS: &str = "SELECT amount % 10 AS digit, count(*) AS n, max(tenant) AS most FROM events GROUP BY 1";
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute("CREATE TABLE events (tenant int, amount int); INSERT INTO events SELECT i % 7, i FROM generate_series(1, 5000) AS i")
        .unwrap();
    let file = |session: &mut Client| -> u32 {
        session.query_one("SELECT pg_relation_filenode('events')", &[]).unwrap().get(0)
    };
    for _ in 0..2 {
        let before = file(&mut session);
        create(&mut session, "totals", QUERY);
        assert_eq!(file(&mut session), before, "the table was written anew");
        let tags: i64 = session.query_one("SELECT count(DISTINCT tally_tag) FROM events", &[]).unwrap().get(0);
        assert_eq!((tags, pending(&mut session, "events")), (1, 0));
        insert(&mut session);
        assert_equal(&mut session, "totals", QUERY);
        // It comes later, and history and new rows are the same to it.
        create(&mut session, "amounts", AMOUNTS);
        for statement in [
            "UPDATE events SET amount = amount + 1 WHERE tenant = 3",
            "DELETE FROM events WHERE amount % 2 = 0",
            "VACUUM FULL events",
        ] {
            session.batch_execute(statement).unwrap();
            assert_equal_now_and_refreshed(&mut session, "amounts", "events", AMOUNTS);
            assert_equal(&mut session, "totals", QUERY);
        }
        session.batch_execute("SELECT tally.drop_rollup('amounts'); SELECT tally.drop_rollup('totals')").unwrap();
    }
}

/// A table that a subscription fills: the columns that are published, and whether the publisher is the older cluster. Answers
/// the subscriber's log.
fn subscribe(columns: &str, is_publisher_older: bool, check: impl FnOnce(&mut Client, &mut Client)) -> String {
    let (publisher, subscriber) =
        (Cluster::start(&[("wal_level", "logical")]), Cluster::start(&[("wal_retrieve_retry_interval", "100ms")]));
    let (from, to) = (publisher.database(), subscriber.database());
    let (mut from, mut to, conninfo) = (tracked_with_key(&from), tracked_with_key(&to), from.conninfo());
    let older = if is_publisher_older { &mut from } else { &mut to };
    older
        .batch_execute("DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
        .unwrap();
    from.batch_execute("INSERT INTO events (id, tenant, amount) SELECT i, i % 3, i FROM generate_series(1, 20) AS i")
        .unwrap();
    from.batch_execute(&format!("CREATE PUBLICATION all_events FOR TABLE events {columns}")).unwrap();
    to.batch_execute(&format!("CREATE SUBSCRIPTION all_events CONNECTION '{conninfo}' PUBLICATION all_events"))
        .unwrap();
    check(&mut from, &mut to);
    assert_equal(&mut to, "totals", QUERY);
    to.batch_execute("DROP SUBSCRIPTION all_events").unwrap();
    subscriber.log()
}

fn tracked_with_key(database: &Database) -> Client {
    let mut session = database.connect();
    session.batch_execute("CREATE TABLE events (id int PRIMARY KEY, tenant int, amount int)").unwrap();
    create(&mut session, "totals", QUERY);
    session
}

/// The subscriber comes to have the rows of the publisher, and counts them.
fn assert_followed(from: &mut Client, to: &mut Client) {
    let all = "SELECT coalesce(sum(hash_record_extended((id, tenant, amount), 0) % 1000000), 0)::bigint FROM events";
    for statement in [
        "INSERT INTO events (id, tenant, amount) SELECT i, i % 3, i FROM generate_series(21, 30) AS i",
        "UPDATE events SET amount = amount + 1, tenant = 7 WHERE id % 4 = 0",
        "UPDATE events SET id = id + 100 WHERE tenant = 1",
        "BEGIN; DELETE FROM events WHERE tenant = 2; INSERT INTO events (id, tenant, amount) VALUES (1000, 2, 2); COMMIT",
    ] {
        for _ in 0..2 {
            let sum: i64 = from.query_one(all, &[]).unwrap().get(0);
            wait_until(to, &format!("SELECT ({all}) = {sum}"));
            assert_equal(to, "totals", QUERY);
            to.batch_execute("CALL tally.refresh('totals')").unwrap();
            assert_equal(to, "totals", QUERY);
            from.batch_execute(statement).unwrap_or_default();
        }
    }
    from.batch_execute("TRUNCATE events").unwrap();
    wait_until(to, "SELECT count(*) = 0 FROM events");
    assert_equal_now_and_refreshed(to, "totals", "events", QUERY);
}

#[test]
fn t06_subscriber_counts_with_its_own_transaction_ids() {
    subscribe("(id, tenant, amount)", true, assert_followed);
}

#[test]
fn t06_replicated_tags_of_finished_transactions_count_as_copied() {
    subscribe("", false, assert_followed);
}

#[test]
fn t06_replicated_tags_from_the_future_stop_the_subscription_loudly() {
    let log = subscribe("", true, |_, to| {
        wait_until(to, "SELECT apply_error_count + sync_error_count > 0 FROM pg_stat_subscription_stats");
        to.batch_execute("INSERT INTO events (id, tenant, amount) VALUES (5000, 1, 1)").unwrap();
        assert_equal_now_and_refreshed(to, "totals", "events", QUERY);
    });
    assert!(log.contains("has the tally_tag of a transaction that does not exist yet"));
}

#[test]
fn t09_copied_tags_count_once() {
    let database = cluster::database();
    let (mut session, mut open) = (session(&database), database.connect());
    session
        .batch_execute(
            "CREATE TABLE copies (LIKE events); \
             CREATE TABLE parted (id bigint, event_time timestamptz, tenant int, amount int) PARTITION BY LIST (tenant)",
        )
        .unwrap();
    for tenant in 0..4 {
        session
            .batch_execute(&format!("CREATE TABLE parted_{tenant} PARTITION OF parted FOR VALUES IN ({tenant})"))
            .unwrap();
    }
    create(&mut session, "moved", &QUERY.replace("events", "parted"));
    insert(&mut session);
    refresh(&mut session);
    insert(&mut session);
    open.batch_execute("BEGIN").unwrap();
    insert(&mut open);
    for statement in [
        "INSERT INTO events SELECT * FROM events",
        "INSERT INTO copies SELECT * FROM events; INSERT INTO events SELECT * FROM copies WHERE tenant = 1",
        "WITH gone AS (DELETE FROM events WHERE tenant = 2 RETURNING *) INSERT INTO events SELECT * FROM gone",
        "WITH gone AS (DELETE FROM events RETURNING *) INSERT INTO parted SELECT * FROM gone",
        "UPDATE parted SET tenant = (tenant + 1) % 4 WHERE amount > 5",
        "MERGE INTO parted AS p USING (SELECT DISTINCT id FROM parted) AS m ON p.id = m.id AND p.amount = 10 \
         WHEN MATCHED THEN UPDATE SET tenant = (tenant + 1) % 4",
        "WITH gone AS (DELETE FROM parted RETURNING *) INSERT INTO events SELECT * FROM gone",
    ] {
        for is_whole in [true, false] {
            session.batch_execute(if is_whole { "BEGIN" } else { "BEGIN; SAVEPOINT s" }).unwrap();
            session.batch_execute(statement).unwrap();
            session.batch_execute(if is_whole { "COMMIT" } else { "ROLLBACK TO s; COMMIT" }).unwrap();
            for (rollup, source) in [("totals", "events"), ("moved", "parted")] {
                assert_equal(&mut session, rollup, &QUERY.replace("events", source));
                session.batch_execute(&format!("CALL tally.refresh('{rollup}')")).unwrap();
                assert_equal(&mut session, rollup, &QUERY.replace("events", source));
            }
        }
    }
    open.batch_execute("COMMIT").unwrap();
    for format in ["text", "binary", "csv"] {
        let mut rows = vec![];
        session.copy_out(&format!("COPY events TO STDOUT (FORMAT {format})")).unwrap().read_to_end(&mut rows).unwrap();
        let mut copy = session.copy_in(&format!("COPY events FROM STDIN (FORMAT {format})")).unwrap();
        copy.write_all(&rows).unwrap();
        assert!(copy.finish().unwrap() > 0);
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
        session.batch_execute("DELETE FROM events WHERE ctid NOT IN (SELECT ctid FROM events LIMIT 10)").unwrap();
    }
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn t10_rewrites_keep_the_tags() {
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "moved", &QUERY.replace("GROUP BY tenant", "WHERE amount > 1 GROUP BY tenant"));
    session
        .batch_execute("CREATE INDEX by_time ON events (event_time); CREATE INDEX on_groups ON totals_stored (n)")
        .unwrap();
    for statement in [
        "VACUUM FULL events",
        "VACUUM (FREEZE) events",
        "CLUSTER events USING by_time",
        "ALTER TABLE events ADD noise float8 DEFAULT random()",
        "ALTER TABLE events ALTER note TYPE varchar",
        "ALTER TABLE events SET ACCESS METHOD heap",
        "REINDEX TABLE events",
        "VACUUM FULL totals_stored",
        "CLUSTER totals_stored USING on_groups",
        "VACUUM FULL events_changes",
        "VACUUM FULL",
    ] {
        if statement.contains("note") {
            session.batch_execute("ALTER TABLE events ADD note text DEFAULT 'x'").unwrap();
        }
        // Counted ones, uncounted ones, ones of a transaction that was open at the last refresh, and changes that are logged.
        session.batch_execute("BEGIN").unwrap();
        insert(&mut session);
        session
            .batch_execute("UPDATE events SET amount = amount + 1 WHERE id % 3 = 0; PREPARE TRANSACTION 'rewritten'")
            .unwrap();
        insert(&mut session);
        refresh(&mut session);
        session.batch_execute("COMMIT PREPARED 'rewritten'").unwrap();
        session.batch_execute("DELETE FROM events WHERE id % 4 = 0").unwrap();
        insert(&mut session);
        let tags = |session: &mut Client| -> Vec<i64> {
            let rows = session.query("SELECT tally_tag FROM events ORDER BY 1", &[]).unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        };
        let before = tags(&mut session);
        session.batch_execute(statement).unwrap();
        assert_eq!(tags(&mut session), before, "{statement}");
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
    }
}

#[test]
fn t11_rows_frozen_between_snapshot_and_scan_are_counted_once() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (tenant int, amount int) PARTITION BY LIST (tenant); \
             CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1); INSERT INTO events VALUES (1, 1)",
        )
        .unwrap();
    create(&mut session, "totals", QUERY);
    session.batch_execute("INSERT INTO events VALUES (1, 2)").unwrap();
    let (mut loader, mut refresher, mut reader) = (database.connect(), database.connect(), database.connect());
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT").unwrap();
    loader.batch_execute("BEGIN; CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2)").unwrap();
    let mut writer = loader.copy_in("COPY events_2 (tenant, amount) FROM STDIN (FREEZE)").unwrap();
    writer.write_all(b"2\t20\n2\t21\n").unwrap();
    assert_eq!(writer.finish().unwrap(), 2);
    // It has its snapshot, and waits for the lock that CREATE TABLE holds on the parent. Then it sees the frozen rows.
    let pid: i32 = refresher.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let refresh = thread::spawn(move || refresher.batch_execute("CALL tally.refresh('totals')"));
    wait_until_blocked(&mut session, pid);
    loader.batch_execute("COMMIT").unwrap();
    refresh.join().unwrap().unwrap();
    assert_equal(&mut session, "totals", QUERY);
    assert_equal(&mut reader, "totals", QUERY);
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}
