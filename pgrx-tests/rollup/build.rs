//! Rollups of tables that are too large for one transaction: built in slices of time, exact at every moment, and repaired the same way.

use postgres::Client;
use tally_server_tests::cluster::{self, Database};

use super::{create, insert};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};

const HOURLY: &str = "SELECT date_bin('1 hour', event_time, '2000-01-01Z') AS hour, tenant, count(*) AS n, min(amount) AS least, \
    tally.hll_agg(amount) AS amounts FROM events GROUP BY 1, 2";
const DAILY: &str =
    "SELECT date_trunc('day', hour, 'UTC') AS day, sum(n) AS n, min(least) AS least FROM hourly GROUP BY 1";
/// Without a bucket: every slice has rows of every group.
const TENANTS: &str = "SELECT tenant, count(*) AS n, avg(amount) AS average FROM events GROUP BY 1";

const ROLLUPS: [(&str, &str); 3] = [("hourly", HOURLY), ("tenants", TENANTS), ("daily", DAILY)];

/// A table with 400 rows of two days, and rollups of which nothing is built. Workers keep away.
fn unbuilt_session(database: &Database, table: &str) -> Client {
    let mut session = database.connect();
    session.batch_execute(table).unwrap();
    session
        .batch_execute(
            "INSERT INTO events SELECT '2024-01-01Z'::timestamptz + make_interval(mins => 7 * i), i % 3, i % 50, 'x' \
               FROM generate_series(1, 400) AS i; ANALYZE events; SET tally.build_rows = 60; BEGIN",
        )
        .unwrap();
    for (name, query) in ROLLUPS {
        create(&mut session, name, query);
    }
    session.batch_execute("SELECT tally.pause_job(job_id) FROM tally.jobs; COMMIT").unwrap();
    session
}

const PARTITIONED: &str = "CREATE TABLE events (event_time timestamptz NOT NULL, tenant int, amount int, note text) PARTITION BY RANGE (event_time); \
    CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z'); \
    CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM ('2024-01-02Z') TO ('2024-01-03Z');";
const PLAIN: &str = "CREATE TABLE events (event_time timestamptz NOT NULL, tenant int, amount int, note text);";

#[track_caller]
fn assert_all_equal(session: &mut Client) {
    for (name, query) in ROLLUPS {
        assert_equal(session, name, query);
    }
}

/// Slices that are built, of all rollups.
fn progress(session: &mut Client) -> Vec<(i32, i32)> {
    let query = "SELECT build_ranges_done, build_ranges_total FROM tally.rollup_status \
                 WHERE unbuilt_before IS NOT NULL ORDER BY rollup::text";
    session.query(query, &[]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn build_slice(session: &mut Client) -> bool {
    session.query_one("SELECT tally.build_slice('hourly')", &[]).unwrap().get(0)
}

#[test]
fn a_rollup_is_exact_while_it_is_being_built() {
    for table in [PARTITIONED, PLAIN] {
        let database = cluster::database();
        let mut session = unbuilt_session(&database, table);
        let slices = progress(&mut session);
        // Without partitions, only a bucket says which column is the time.
        let number = if table == PLAIN { 2 } else { 3 };
        assert!(slices.len() == number && slices.iter().all(|(done, total)| *done == 0 && *total > 3), "{slices:?}");
        let stored: i64 = session.query_one("SELECT count(*) FROM hourly_stored", &[]).unwrap().get(0);
        assert_eq!(stored, 0, "something is built already");
        assert_all_equal(&mut session);
        // Each between two slices, in what is built and what is not.
        let mut writes = [
            "UPDATE events SET amount = amount + 1 WHERE tenant = 1",
            "INSERT INTO events SELECT * FROM events WHERE amount < 5",
            "UPDATE events SET event_time = event_time - interval '20 hours' WHERE event_time > '2024-01-02 12:00Z'",
            "UPDATE events SET event_time = event_time + interval '20 hours' WHERE event_time < '2024-01-01 03:00Z'",
            "DELETE FROM events WHERE tenant = 2 AND amount % 2 = 0",
            "UPDATE events SET tenant = NULL WHERE amount = 7",
        ]
        .iter()
        .cycle();
        let mut steps = 0;
        loop {
            insert(&mut session);
            session.batch_execute(writes.next().unwrap()).unwrap();
            assert_all_equal(&mut session);
            let more = build_slice(&mut session);
            assert_all_equal(&mut session);
            steps += 1;
            assert!(steps < 100, "the build never ends: {:?}", progress(&mut session));
            if !more {
                break;
            }
        }
        assert!(steps > 9, "{steps} slices only");
        assert_eq!(progress(&mut session), []);
        // One step each for the views.
        for _ in ROLLUPS {
            build_slice(&mut session);
        }
        let left: i64 = session.query_one("SELECT count(*) FROM tally.builds", &[]).unwrap().get(0);
        assert_eq!(left, 0);
        session.batch_execute("DELETE FROM events WHERE amount = 9").unwrap();
        for (name, query) in ROLLUPS {
            assert_equal_now_and_refreshed(&mut session, name, "events", query);
        }
    }
}

#[test]
fn a_writer_that_stays_open_over_the_build_is_counted_once() {
    let database = cluster::database();
    let (mut session, mut writer) = (unbuilt_session(&database, PARTITIONED), database.connect());
    writer
        .batch_execute("BEGIN; UPDATE events SET amount = 3 WHERE tenant = 1 AND event_time < '2024-01-01 12:00Z'")
        .unwrap();
    insert(&mut writer);
    session.batch_execute("CALL tally.build('hourly')").unwrap();
    assert_all_equal(&mut session);
    assert_all_equal(&mut writer);
    writer.batch_execute("COMMIT").unwrap();
    for (name, query) in ROLLUPS {
        assert_equal_now_and_refreshed(&mut session, name, "events", query);
    }
}

#[test]
fn tables_change_while_a_rollup_is_being_built() {
    let database = cluster::database();
    let mut session = unbuilt_session(&database, PARTITIONED);
    session.batch_execute("CREATE TABLE kept AS SELECT * FROM events").unwrap();
    build_slice(&mut session);
    session.batch_execute("ALTER TABLE events DETACH PARTITION day_1").unwrap();
    let tenants = TENANTS.replace("events", "(SELECT event_time, tenant, amount FROM events UNION ALL SELECT event_time, tenant, amount FROM day_1) AS events");
    assert_equal(&mut session, "tenants", &tenants);
    build_slice(&mut session);
    assert_equal(&mut session, "tenants", &tenants);
    session
        .batch_execute("ALTER TABLE events ATTACH PARTITION day_1 FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z')")
        .unwrap();
    assert_all_equal(&mut session);
    build_slice(&mut session);
    session.batch_execute("TRUNCATE day_2").unwrap();
    assert_all_equal(&mut session);
    session
        .batch_execute("ALTER TABLE events RENAME COLUMN event_time TO at; ALTER VIEW hourly RENAME COLUMN n TO events")
        .unwrap();
    session.batch_execute("CALL tally.build('hourly')").unwrap();
    let hourly = HOURLY.replace("event_time", "at");
    assert_equal_now_and_refreshed(&mut session, "hourly", "events", &hourly);
    session.batch_execute("TRUNCATE events").unwrap();
    assert_equal_now_and_refreshed(&mut session, "hourly", "events", &hourly);
    session
        .batch_execute("SELECT tally.drop_rollup('daily'), tally.drop_rollup('hourly'), tally.drop_rollup('tenants')")
        .unwrap();
}

#[test]
fn a_snapshot_from_the_time_of_the_build_is_told_so() {
    let database = cluster::database();
    let (mut session, mut reader) = (unbuilt_session(&database, PARTITIONED), database.connect());
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM day_2 LIMIT 1").unwrap();
    session.batch_execute("CALL tally.build('tenants')").unwrap();
    assert_equal(&mut reader, "hourly", HOURLY);
    // The views are simplified, those that nobody reads.
    for _ in 0..4 {
        build_slice(&mut session);
    }
    assert_equal(&mut reader, "hourly", HOURLY);
    assert_refused(&mut reader, "SELECT * FROM tenants", "40001", "has been built or altered since", "new transaction");
    reader.batch_execute("ROLLBACK").unwrap();
    assert_all_equal(&mut reader);
}

#[test]
fn the_worker_builds_by_itself() {
    let database = cluster::database();
    let mut session = unbuilt_session(&database, PARTITIONED);
    session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    let started = std::time::Instant::now();
    while session.query_one("SELECT count(*) FROM tally.builds", &[]).unwrap().get::<_, i64>(0) > 0 {
        assert!(started.elapsed().as_secs() < 60, "the worker has not built the rollups: {:?}", progress(&mut session));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for (name, query) in ROLLUPS {
        assert_equal_now_and_refreshed(&mut session, name, "events", query);
    }
}

#[test]
fn damage_is_found_and_repaired() {
    let database = cluster::database();
    let mut session = unbuilt_session(&database, PARTITIONED);
    assert_refused(
        &mut session,
        "SELECT tally.rebuild_range('hourly', NULL, NULL)",
        "55000",
        "is being built",
        "CALL tally.build",
    );
    session.batch_execute("CALL tally.build('hourly')").unwrap();
    let verify = |session: &mut Client, arguments: &str| -> Vec<String> {
        let query = format!("SELECT problem FROM tally.verify({arguments}) ORDER BY 1");
        session.query(&query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
    };
    session
        .batch_execute(
            "UPDATE hourly_stored SET n = n + 1 WHERE hour = '2024-01-01 05:00Z' AND tenant = 1; \
             DELETE FROM hourly_stored WHERE hour = '2024-01-02 05:00Z' AND tenant = 2; \
             INSERT INTO hourly_stored (hour, tenant, n, _rows) VALUES ('2024-01-02 06:00Z', 77, 1, 1)",
        )
        .unwrap();
    assert_eq!(verify(&mut session, "'hourly'"), ["different", "missing from the rollup", "not in the source"]);
    assert_eq!(verify(&mut session, "'hourly', '2024-01-01Z', '2024-01-02Z'"), ["different"]);
    assert_eq!(verify(&mut session, "'hourly', to_time => '2024-01-01 05:00Z'"), Vec::<String>::new());
    session.batch_execute("CALL tally.rebuild('hourly', '2024-01-01 04:00Z', '2024-01-01 06:00Z')").unwrap();
    assert_eq!(verify(&mut session, "'hourly'"), ["missing from the rollup", "not in the source"]);
    // Rows that are not counted yet, and changed ones, come along.
    insert(&mut session);
    session.batch_execute("DELETE FROM events WHERE amount = 8").unwrap();
    session.batch_execute("CALL tally.rebuild('hourly')").unwrap();
    assert_eq!(verify(&mut session, "'hourly'"), Vec::<String>::new());
    assert_equal_now_and_refreshed(&mut session, "hourly", "events", HOURLY);
    session.batch_execute("UPDATE tenants_stored SET n = 0").unwrap();
    session.batch_execute("CALL tally.rebuild('tenants')").unwrap();
    assert_equal_now_and_refreshed(&mut session, "tenants", "events", TENANTS);
    assert_refused(&mut session, "SELECT * FROM tally.verify('tenants', now())", "22023", "no bucket of time", "Leave");
    assert_refused(&mut session, "CALL tally.rebuild('tenants', now())", "22023", "no bucket of time", "Leave");
    assert_refused(&mut session, "CALL tally.rebuild('day_1')", "42704", "not a rollup", "tally.rollups");
}
