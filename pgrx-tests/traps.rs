//! The traps of incremental counting, T1 to T17 of the design, each with a test of its name. A new way to be wrong gets a number.
//!
//! | | trap | tests |
//! |---|---|---|
//! | T1 | refresh in a transaction that writes before or after it | here |
//! | T2 | scan, log and state read in different snapshots | here |
//! | T3 | a standby shows no running transactions | here; more in standby.rs |
//! | T4 | thousands of open transactions | here |
//! | T5 | the fast default gives history one tag | traps/tags.rs |
//! | T6 | transaction ids of other clusters | traps/tags.rs; more in rollup/restore.rs |
//! | T7 | triggers that do not fire | rollup/guards.rs |
//! | T8 | ATTACH, TRUNCATE, rows that move | rollup/changes.rs |
//! | T9 | copied tags | traps/tags.rs; refused ones in rollup/guards.rs |
//! | T10 | rewrites of the table | traps/tags.rs |
//! | T11 | COPY FREEZE between snapshot and scan | traps/tags.rs |
//! | T12 | time zones and daylight saving | here |
//! | T13 | overflow of partial sums, order of floats | here |
//! | T14 | empty groups, NULL, NaN, -0, infinity, char(n) | here; values of every type in rollup/values.rs |
//! | T15 | old snapshots and the cleaning of the log | here |
//! | T16 | plans that are kept | here |
//! | T17 | owners and rights | here |

mod tags;

use std::thread;

use postgres::Client;
use tally_server_tests::cluster::{self, Cluster, Database};

use crate::oracle::{
    assert_equal, assert_equal_now_and_refreshed, assert_refused, own_pid, pending, refusal, wait_until_blocked,
};
use crate::refresh::{HALTING, HALTING_QUERY, QUERY, create, insert, pause_job, refresh, session};
use crate::standby::catch_up;

#[test]
fn t01_refresh_after_a_write_of_its_own_is_refused() {
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute("BEGIN").unwrap();
    insert(&mut session);
    let error = refusal(&mut session, "CALL tally.refresh('totals')");
    assert_eq!(error.code().code(), "25001");
    assert!(error.hint().is_some(), "{error:?}");
    session.batch_execute("ROLLBACK").unwrap();
    // Rolled back to a savepoint or not: the transaction has an id.
    session.batch_execute("BEGIN; SAVEPOINT s").unwrap();
    insert(&mut session);
    session.batch_execute("ROLLBACK TO s").unwrap();
    assert_eq!(refusal(&mut session, "CALL tally.refresh('totals')").code().code(), "25001");
    session.batch_execute("ROLLBACK").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn t01_writes_after_a_refresh_in_the_same_transaction_are_counted_once() {
    let database = cluster::database();
    let (mut session, mut other) = (session(&database), database.connect());
    for is_idle in [false, true] {
        if !is_idle {
            insert(&mut other);
        }
        session.batch_execute("BEGIN").unwrap();
        refresh(&mut session);
        insert(&mut session);
        insert(&mut other);
        assert_equal(&mut session, "totals", QUERY);
        session.batch_execute("COMMIT").unwrap();
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
    }
    session.batch_execute("BEGIN").unwrap();
    insert(&mut other);
    session.batch_execute("SAVEPOINT s").unwrap();
    refresh(&mut session);
    session.batch_execute("ROLLBACK TO s").unwrap();
    insert(&mut session);
    session.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn t02_waiting_refresh_knows_what_was_committed_meanwhile() {
    const SECOND: &str = "SELECT amount, count(*) AS n FROM events GROUP BY amount";
    let database = cluster::database();
    let (mut session, mut holder, mut refresher) = (session(&database), database.connect(), database.connect());
    insert(&mut session);
    holder.batch_execute("BEGIN").unwrap();
    create(&mut holder, "second", SECOND);
    let pid: i32 = refresher.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let refresh = thread::spawn(move || refresher.batch_execute("CALL tally.refresh('totals')"));
    wait_until_blocked(&mut session, pid);
    insert(&mut session);
    holder.batch_execute("COMMIT").unwrap();
    refresh.join().unwrap().unwrap();
    assert_eq!(pending(&mut session, "events"), 0);
    assert_equal(&mut session, "totals", QUERY);
    assert_equal(&mut session, "second", SECOND);
}

/// It has counted for the first rollup when everything changes, and for the last one when all of that is committed.
#[test]
fn t02_one_tick_reads_one_snapshot() {
    const AMOUNTS: &str = "SELECT amount, count(*) AS n, min(tenant) AS least FROM events GROUP BY amount";
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute(HALTING).unwrap();
    create(&mut session, "halting", HALTING_QUERY);
    create(&mut session, "amounts", AMOUNTS);
    pause_job(&mut session);
    for _ in 0..3 {
        insert(&mut session);
        session.batch_execute("UPDATE events SET tenant = tenant + 1 WHERE id % 2 = 0").unwrap();
        let (mut holder, mut refresher) = (database.connect(), database.connect());
        holder.batch_execute("SELECT pg_advisory_lock(1)").unwrap();
        let pid = own_pid(&mut refresher);
        let refresh = thread::spawn(move || refresher.batch_execute("CALL tally.refresh('totals')"));
        wait_until_blocked(&mut session, pid);
        insert(&mut session);
        session
            .batch_execute(
                "UPDATE events SET amount = amount + 1, tenant = 9 WHERE id % 3 = 0; DELETE FROM events WHERE id % 5 = 0; \
                 BEGIN; INSERT INTO events (tenant, amount) VALUES (1, 1); DELETE FROM events WHERE id % 7 = 0; COMMIT",
            )
            .unwrap();
        holder.batch_execute("SELECT pg_advisory_unlock(1)").unwrap();
        refresh.join().unwrap().unwrap();
        let all = [("totals", QUERY), ("halting", HALTING_QUERY), ("amounts", AMOUNTS)];
        all.iter().for_each(|(rollup, query)| assert_equal(&mut session, rollup, query));
        all.iter().for_each(|(rollup, query)| assert_equal_now_and_refreshed(&mut session, rollup, "events", query));
    }
}

#[test]
fn t03_standby_shows_no_running_transaction_and_is_right() {
    const RUNNING: &str = "SELECT count(*) FROM pg_snapshot_xip(pg_current_snapshot())";
    let primary = Cluster::start(&[]);
    let database = primary.database();
    let (mut session, mut open) = (session(&database), database.connect());
    let standby = primary.standby(&[]);
    session.batch_execute("BEGIN").unwrap();
    insert(&mut session);
    session.batch_execute("DELETE FROM events WHERE id = 1; PREPARE TRANSACTION 'prepared'").unwrap();
    open.batch_execute("BEGIN").unwrap();
    insert(&mut open);
    insert(&mut session);
    let mut reader = standby.connect(database.name());
    let mut look = |session: &mut Client| {
        catch_up(session, &mut reader);
        assert_equal(&mut reader, "totals", QUERY);
        reader.query_one(RUNNING, &[]).unwrap().get::<_, i64>(0)
    };
    refresh(&mut session);
    assert_eq!(look(&mut session), 0, "the trap is gone");
    assert_eq!(session.query_one(RUNNING, &[]).unwrap().get::<_, i64>(0), 2);
    open.batch_execute("COMMIT").unwrap();
    look(&mut session);
    refresh(&mut session);
    session.batch_execute("COMMIT PREPARED 'prepared'").unwrap();
    look(&mut session);
    refresh(&mut session);
    look(&mut session);
}

#[test]
fn t04_thousands_of_open_transactions_are_counted_one_by_one() {
    const OPEN: usize = 3000;
    const DAYS: &str = "SELECT day, count(*) AS n, sum(amount) AS total FROM events GROUP BY day";
    let cluster = Cluster::start(&[
        ("max_prepared_transactions", "3100"),
        ("tally.enabled", "off"),
        ("autovacuum", "off"),
        ("max_locks_per_transaction", "256"),
    ]);
    let database = cluster.database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (day int NOT NULL, amount int) PARTITION BY RANGE (day); \
             CREATE TABLE old PARTITION OF events FOR VALUES FROM (0) TO (10); \
             CREATE TABLE new PARTITION OF events FOR VALUES FROM (10) TO (20); \
             INSERT INTO events SELECT i % 10, i FROM generate_series(1, 50000) AS i",
        )
        .unwrap();
    create(&mut session, "totals", DAYS);
    session.batch_execute("INSERT INTO events SELECT i % 20, i FROM generate_series(1, 50000) AS i; ANALYZE").unwrap();
    refresh(&mut session);
    for number in 0..OPEN {
        session
            .batch_execute(&format!(
                "BEGIN; INSERT INTO events VALUES (10 + {number} % 10, {number}); PREPARE TRANSACTION 'open_{number}'"
            ))
            .unwrap();
    }
    session.batch_execute("INSERT INTO events VALUES (15, 1)").unwrap();
    refresh(&mut session);
    let known: i32 = session.query_one("SELECT cardinality(open_tags) FROM tally.sources", &[]).unwrap().get(0);
    assert_eq!(usize::try_from(known).unwrap(), OPEN);
    assert_equal(&mut session, "totals", DAYS);
    // Neither a refresh nor a reader goes through the rows that are counted.
    let read = |session: &mut Client| -> i64 {
        session.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
        session.batch_execute("SELECT pg_stat_clear_snapshot()").unwrap();
        let blocks = "SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables WHERE relname = 'old'";
        session.query_one(blocks, &[]).unwrap().get(0)
    };
    let before = read(&mut session);
    session.batch_execute("INSERT INTO events VALUES (15, 1)").unwrap();
    session.batch_execute("SELECT * FROM totals").unwrap();
    refresh(&mut session);
    assert_eq!(read(&mut session), before, "blocks of the old partition were read");
    // They end in another order than they began.
    for number in 0..OPEN {
        let number = number * 7 % OPEN;
        let how = if number.is_multiple_of(5) { "ROLLBACK" } else { "COMMIT" };
        session.batch_execute(&format!("{how} PREPARED 'open_{number}'")).unwrap();
        if number.is_multiple_of(1000) {
            assert_equal(&mut session, "totals", DAYS);
            refresh(&mut session);
            assert_equal(&mut session, "totals", DAYS);
        }
    }
    assert_equal_now_and_refreshed(&mut session, "totals", "events", DAYS);
    let left: Vec<i64> = session.query_one("SELECT open_tags FROM tally.sources", &[]).unwrap().get(0);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn t12_buckets_ignore_the_time_zone_of_the_session() {
    const DAYS: &str =
        "SELECT date_trunc('day', event_time, 'America/New_York') AS day, count(*) AS n FROM events GROUP BY 1";
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute("SET timezone = 'Asia/Kolkata'").unwrap();
    create(&mut session, "days", DAYS);
    for zone in ["UTC", "America/New_York", "Pacific/Chatham", "-7", "Asia/Kolkata"] {
        session.batch_execute(&format!("SET timezone = '{zone}'")).unwrap();
        // The first and the last second of a summer day in New York, and the seconds beside it.
        session
            .batch_execute(
                "INSERT INTO events (event_time) VALUES ('2024-07-04 03:59:59Z'), ('2024-07-04 04:00Z'), ('2024-07-05 03:59:59Z')",
            )
            .unwrap();
        assert_equal(&mut session, "days", DAYS);
        refresh(&mut session);
    }
    let row = session.query_one("SELECT n FROM days WHERE day = '2024-07-04 00:00 America/New_York'", &[]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 10);
    assert_equal_now_and_refreshed(&mut session, "days", "events", DAYS);
}

#[test]
fn t12_days_of_23_and_25_hours_are_whole_days() {
    const DAYS: &str =
        "SELECT date_trunc('day', event_time, 'Europe/Berlin') AS day, count(*) AS n FROM events GROUP BY 1";
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "days", DAYS);
    for day in ["2024-03-31", "2024-10-27"] {
        let half_hours = format!(
            "INSERT INTO events (event_time) SELECT generate_series('{day} Europe/Berlin'::timestamptz - interval '1 day', \
             '{day} Europe/Berlin'::timestamptz + interval '2 days', '30 minutes')"
        );
        session.batch_execute(&half_hours).unwrap();
        assert_equal_now_and_refreshed(&mut session, "days", "events", DAYS);
    }
    let count = |session: &mut Client, day: &str| -> i64 {
        session.query_one(&format!("SELECT n FROM days WHERE day = '{day} Europe/Berlin'"), &[]).unwrap().get(0)
    };
    assert_eq!(count(&mut session, "2024-03-31"), 46);
    assert_eq!(count(&mut session, "2024-10-27"), 50);
}

#[test]
fn t13_sums_pass_the_limits_of_their_arguments() {
    const IDS: &str = "SELECT tenant, max(id) AS last, sum(id) AS ids, sum(amount) AS total FROM events GROUP BY 1";
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "ids", IDS);
    for restart in [i64::from(i32::MAX) - 2, i64::from(u32::MAX) - 2, i64::MAX - 5] {
        session.batch_execute(&format!("ALTER TABLE events ALTER id RESTART WITH {restart}")).unwrap();
        session
            .batch_execute("INSERT INTO events (tenant, amount) SELECT 1, 2147483647 FROM generate_series(1, 5)")
            .unwrap();
        assert_equal_now_and_refreshed(&mut session, "ids", "events", IDS);
    }
}

/// The order of the rows decides about the last bits, and the order of a rollup is another one.
#[test]
fn t13_sums_of_floats_differ_in_their_last_bits_at_most() {
    let database = cluster::database();
    let mut session = session(&database);
    let query =
        "SELECT tenant, sum(amount / 7.0::float8) AS total, avg(sqrt(amount)) AS average FROM events GROUP BY tenant";
    create(&mut session, "floats", query);
    for round in 1..=20 {
        session
            .batch_execute(&format!(
                "INSERT INTO events (tenant, amount) SELECT i % 3, i * {round} FROM generate_series(1, 500) AS i"
            ))
            .unwrap();
        session.batch_execute(&format!("DELETE FROM events WHERE amount % 50 = {round} AND tenant <> 2")).unwrap();
        if round % 3 == 0 {
            refresh(&mut session);
        }
        let far = format!(
            "SELECT f::text FROM floats AS f JOIN ({query}) AS q USING (tenant) \
             WHERE abs(f.total / q.total - 1) > 1e-13 OR abs(f.average / q.average - 1) > 1e-13"
        );
        assert!(session.query(&far, &[]).unwrap().is_empty());
    }
}

#[test]
fn t14_groups_become_empty_and_come_back() {
    const KEYS: &str = "SELECT a, b, c, d, count(*) AS n, sum(b) AS total, max(a) AS most FROM odd GROUP BY a, b, c, d";
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute("CREATE TABLE odd (a numeric, b float8, c char(3), d timestamptz, n int)").unwrap();
    create(&mut session, "keys", KEYS);
    let insert = "INSERT INTO odd SELECT a, b, c, d, 1 \
          FROM unnest('{NULL,NaN,1,1.00,Infinity}'::numeric[]) AS a, unnest('{NULL,NaN,0,-0,Infinity}'::float8[]) AS b, \
               unnest('{NULL,\"\",\"a  \",\"a\"}'::char(3)[]) AS c, unnest('{NULL,infinity,-infinity}'::timestamptz[]) AS d";
    for emptied in [
        "DELETE FROM odd WHERE a IS NULL OR b = 'NaN'",
        "UPDATE odd SET a = 5, c = 'b'",
        "DELETE FROM odd WHERE c IS NULL AND d = '-infinity'",
        "UPDATE odd SET b = -b WHERE b = 0",
        "DELETE FROM odd",
        "TRUNCATE odd",
    ] {
        session.batch_execute(insert).unwrap();
        assert_equal_now_and_refreshed(&mut session, "keys", "odd", KEYS);
        session.batch_execute(emptied).unwrap();
        assert_equal_now_and_refreshed(&mut session, "keys", "odd", KEYS);
        let empty: i64 = session.query_one("SELECT count(*) FROM keys_stored WHERE _rows <= 0", &[]).unwrap().get(0);
        assert_eq!(empty, 0, "{emptied}");
    }
    assert!(session.query("SELECT FROM keys_stored", &[]).unwrap().is_empty());
}

#[test]
fn t15_old_snapshots_keep_the_changes_that_they_need() {
    let database = cluster::database();
    let (mut session, mut old) = (session(&database), database.connect());
    pause_job(&mut session);
    let logged =
        |session: &mut Client| -> i64 { session.query_one("SELECT count(*) FROM events_changes", &[]).unwrap().get(0) };
    for _ in 0..20 {
        insert(&mut session);
    }
    refresh(&mut session);
    session.batch_execute("UPDATE events SET amount = amount + 1 WHERE tenant = 1").unwrap();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class").unwrap();
    let seen = logged(&mut old);
    assert!(seen > 0);
    for round in 0..10 {
        session
            .batch_execute(&format!(
                "DELETE FROM events WHERE id % 10 = {round}; UPDATE events SET tenant = 2 WHERE id % 4 = 1"
            ))
            .unwrap();
        refresh(&mut session);
        session.batch_execute("VACUUM events_changes").unwrap();
        assert_eq!((logged(&mut session), logged(&mut old)), (0, seen));
        assert_equal(&mut session, "totals", QUERY);
        assert_equal(&mut old, "totals", QUERY);
    }
    old.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut old, "totals", "events", QUERY);
    session.batch_execute("VACUUM events_changes").unwrap();
    let size: i64 = session.query_one("SELECT pg_relation_size('events_changes')", &[]).unwrap().get(0);
    assert_eq!(size, 0, "the log was not cleaned up");
}

#[test]
fn t16_plans_that_are_kept_stay_right_and_on_the_index() {
    let database = cluster::database();
    let (mut session, mut writer) = (session(&database), database.connect());
    writer
        .batch_execute("INSERT INTO events (tenant, amount) SELECT i % 400, i FROM generate_series(1, 40000) AS i")
        .unwrap();
    refresh(&mut writer);
    writer.batch_execute("ANALYZE").unwrap();
    let mut open = database.connect();
    open.batch_execute("BEGIN").unwrap();
    insert(&mut open);
    session
        .batch_execute(
            "SET plan_cache_mode = force_generic_plan; \
             PREPARE one (int) AS SELECT r::text FROM totals AS r WHERE tenant = $1; \
             CREATE FUNCTION looked_up(int) RETURNS text LANGUAGE plpgsql AS $$ \
               DECLARE found text; BEGIN SELECT r::text INTO found FROM totals AS r WHERE tenant = $1; RETURN found; END $$",
        )
        .unwrap();
    let looks = ["EXECUTE one(1)", "SELECT looked_up(1)"];
    let query = QUERY.replace("GROUP BY", "WHERE tenant = 1 GROUP BY");
    let expected = format!("SELECT q::text FROM ({query}) AS q");
    let text = |session: &mut Client, query: &str| -> String {
        let rows = session.simple_query(query).unwrap();
        rows.iter()
            .find_map(|row| {
                if let postgres::SimpleQueryMessage::Row(row) = row { row.get(0).map(str::to_owned) } else { None }
            })
            .unwrap()
    };
    for round in 0..30 {
        insert(&mut writer);
        writer.batch_execute(&format!("UPDATE events SET amount = amount + 1 WHERE id % 1000 = {round}")).unwrap();
        for look in looks {
            assert_eq!(text(&mut session, look), text(&mut session, &expected), "{look} in round {round}");
        }
        if round % 3 == 0 {
            refresh(&mut writer);
        }
    }
    refresh(&mut writer);
    insert(&mut writer);
    let plan = session.query("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE one(1)", &[]).unwrap();
    let lines: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    let is_scan_of_all =
        |line: &&String| ["Seq Scan on events", "Seq Scan on totals_stored"].iter().any(|scan| line.contains(scan));
    let scans: Vec<_> = lines.iter().filter(is_scan_of_all).filter(|line| !line.contains("never executed")).collect();
    // The change log is empty, and short at any time.
    assert!(scans.iter().all(|line| line.contains("events_changes")), "{}", lines.join("\n"));
    assert!(
        lines.iter().any(|line| line.contains("Bitmap Index Scan on events_tally_tag_idx")),
        "{}",
        lines.join("\n")
    );
    open.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut writer, "totals", "events", QUERY);
}

/// A role of this test, with a session; it may make tables.
fn role(database: &Database, name: &str) -> (String, Client) {
    let role = format!("{name}_{}", database.name());
    database
        .connect()
        .batch_execute(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}"))
        .unwrap();
    let session = database.connect_as(&role);
    (role, session)
}

#[test]
fn t17_tick_runs_as_the_owner_and_with_no_more_rights() {
    const NAMES: &str = "SELECT who(tenant) AS who, count(*) AS n FROM events GROUP BY 1";
    let cluster = Cluster::start(&[("tally.enabled", "off")]);
    let database = cluster.database();
    let mut superuser = database.connect();
    let ((owner, mut session), (other, mut other_session)) = (role(&database, "owner"), role(&database, "other"));
    session
        .batch_execute(
            "CREATE TABLE events (tenant int, amount int); INSERT INTO events VALUES (1, 1); \
             CREATE FUNCTION who(int) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN current_user; END'",
        )
        .unwrap();
    create(&mut session, "totals", QUERY);
    create(&mut superuser, "names", NAMES);
    superuser.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    superuser.batch_execute("CALL tally.refresh('names')").unwrap();
    let row = superuser.query_one("SELECT who, n FROM names_stored", &[]).unwrap();
    assert_eq!((row.get::<_, String>(0), row.get::<_, i64>(1)), (owner.clone(), 2), "it ran as the superuser");
    superuser.batch_execute("SELECT tally.drop_rollup('names')").unwrap();

    // A function that the owner may no longer call.
    superuser
        .batch_execute(
            "CREATE FUNCTION secret(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 + 1; END'",
        )
        .unwrap();
    create(&mut session, "secrets", "SELECT secret(tenant) AS secret, count(*) AS n FROM events GROUP BY 1");
    superuser
        .batch_execute("REVOKE EXECUTE ON FUNCTION secret(int) FROM PUBLIC; INSERT INTO events VALUES (1, 5)")
        .unwrap();
    for session in [&mut session, &mut superuser] {
        assert_refused(session, "CALL tally.refresh('totals')", "42501", "secret", "");
        assert_equal(session, "totals", QUERY);
    }
    assert_refused(
        &mut session,
        "SELECT tally.create_rollup('more', 'SELECT secret(tenant) AS s, count(*) AS n FROM events GROUP BY 1')",
        "42501",
        "secret",
        "",
    );
    superuser.batch_execute(&format!("GRANT EXECUTE ON FUNCTION secret(int) TO {owner}")).unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);

    // Another owner of the table alone.
    superuser.batch_execute(&format!("ALTER TABLE events OWNER TO {other}; INSERT INTO events VALUES (2, 2)")).unwrap();
    let error = refusal(&mut superuser, "CALL tally.refresh('totals')");
    assert_eq!(error.code().code(), "42501");
    superuser.batch_execute(error.hint().expect("the statements that help")).unwrap();
    let error = refusal(&mut superuser, "CALL tally.refresh('totals')");
    superuser.batch_execute(error.hint().expect("those of the second rollup")).unwrap();
    superuser.batch_execute(&format!("GRANT EXECUTE ON FUNCTION secret(int) TO {other}")).unwrap();
    assert_equal_now_and_refreshed(&mut other_session, "totals", "events", QUERY);
    for statement in ["CALL tally.refresh('totals')", "SELECT * FROM totals", "SELECT tally.drop_rollup('totals')"] {
        assert_refused(&mut session, statement, "42501", "", "");
    }
    // A table that its owner may not read.
    other_session
        .batch_execute("REVOKE ALL ON totals_stored FROM CURRENT_USER; INSERT INTO events VALUES (2, 2)")
        .unwrap();
    assert_refused(&mut superuser, "CALL tally.refresh('totals')", "42501", "totals_stored", "");
    other_session.batch_execute("GRANT ALL ON totals_stored TO CURRENT_USER").unwrap();
    assert_equal_now_and_refreshed(&mut other_session, "totals", "events", QUERY);
}
