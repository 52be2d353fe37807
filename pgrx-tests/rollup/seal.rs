//! Sealed partitions: nobody looks into them for new rows, and no row that comes to them all the same is lost or counted twice.

use postgres::Client;
use tally_server_tests::cluster::{self, Cluster};

use super::departures::{assert_kept, assert_kept_and_refreshed, rolled_session, run};
use super::{QUERY, create, session};
use crate::oracle::{assert_equal, assert_refused, state, wait_until};

const SEAL_DAY_1: &str = "CALL tally.seal_partitions('events', '2024-01-02Z')";
/// Bucket by bucket: groups that lie in one partition, so that plans may leave out the others.
const HOURLY: &str = "SELECT * FROM hourly";

/// Days from 2024-01-03 on, and the first two sealed and settled.
fn sealed_session(database: &cluster::Database) -> Client {
    let mut session = rolled_session(database);
    run(&mut session, "CREATE TABLE day_3 PARTITION OF events FOR VALUES FROM ('2024-01-03Z') TO ('2024-01-04Z')");
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    run(&mut session, "CALL tally.refresh('totals')");
    assert_eq!(settled(&mut session), "2024-01-03 00:00:00");
    session
}

fn settled(session: &mut Client) -> String {
    let query = "SELECT COALESCE(settled_before::text, 'nothing') FROM tally.sources WHERE source = 'events'::regclass";
    session.query_one(query, &[]).unwrap().get(0)
}

fn is_sealed(session: &mut Client, partition: &str) -> bool {
    let query = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgname = 'tally_seal')";
    session.query_one(query, &[&partition]).unwrap().get(0)
}

/// Does the plan of a query read the table?
fn reads(session: &mut Client, query: &str, table: &str) -> bool {
    let plan = session.query(&format!("EXPLAIN {query}"), &[]).unwrap();
    plan.iter().any(|row| row.get::<_, &str>(0).contains(&format!("on {table}")))
}

#[test]
fn plans_leave_sealed_partitions_out_until_their_rows_are_needed() {
    let database = cluster::database();
    let mut session = rolled_session(&database);
    run(&mut session, SEAL_DAY_1);
    assert!(is_sealed(&mut session, "day_1") && !is_sealed(&mut session, "day_2"));
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    // Rows may have come before the trigger: that they are counted is known after the next refresh.
    assert!(settled(&mut session) == "nothing" && reads(&mut session, HOURLY, "day_1"));
    run(&mut session, "CALL tally.refresh('totals')");
    assert_eq!(settled(&mut session), "2024-01-03 00:00:00");
    // The last one may have rows of a group that lies across its end.
    assert!(!reads(&mut session, HOURLY, "day_1") && reads(&mut session, HOURLY, "day_2"));
    let mut writer = database.connect();
    // Whatever the writer has added lies in the log; from what it has changed, groups have to be made anew.
    run(&mut writer, "INSERT INTO events VALUES ('2024-01-01 05:30Z', 1, 1, 'late')");
    assert!(!reads(&mut session, HOURLY, "day_1"));
    assert_kept(&mut session);
    run(&mut writer, "BEGIN; UPDATE events SET amount = 2 WHERE note = 'late'");
    assert!(reads(&mut writer, HOURLY, "day_1") && !reads(&mut session, HOURLY, "day_1"));
    assert_kept(&mut writer);
    run(&mut writer, "COMMIT");
    assert!(reads(&mut session, HOURLY, "day_1"));
    assert_kept_and_refreshed(&mut session);
    assert!(!reads(&mut session, HOURLY, "day_1"));
}

/// The change log knows the late rows, and no group does: nothing has been counted since the table was truncated.
#[test]
fn a_truncated_partition_takes_late_rows_along_that_nobody_has_counted() {
    let database = cluster::database();
    let mut session = sealed_session(&database);
    for statement in
        ["TRUNCATE events", "INSERT INTO events VALUES ('2024-01-01 01:00Z', 1, 10, 'late')", "TRUNCATE day_1"]
    {
        run(&mut session, statement);
        assert_kept(&mut session);
    }
    assert_kept_and_refreshed(&mut session);
}

/// Each statement alone, in one transaction with all before it, and in savepoints that are rolled back.
#[test]
fn every_write_to_a_sealed_partition_is_followed() {
    let database = cluster::database();
    let statements = [
        "INSERT INTO events VALUES ('2024-01-01 01:00Z', 1, 10, 'a'), ('2024-01-02 01:00Z', NULL, 20, 'b'), ('2024-01-03 01:00Z', 2, 30, 'c')",
        "INSERT INTO day_1 VALUES ('2024-01-01 02:00Z', 1, 11, 'a')",
        "UPDATE events SET amount = amount + 1 WHERE note = 'a'",
        // To a hot one, and back.
        "UPDATE events SET event_time = event_time + interval '2 days' WHERE note = 'a'",
        "UPDATE events SET event_time = event_time - interval '2 days' WHERE note IN ('a', 'c')",
        "INSERT INTO events SELECT * FROM events WHERE note = 'c'",
        "MERGE INTO events AS e USING (VALUES (1), (7)) AS v (tenant) ON e.tenant = v.tenant AND e.note = 'a' \
           WHEN MATCHED THEN UPDATE SET event_time = e.event_time + interval '1 day' \
           WHEN NOT MATCHED THEN INSERT (event_time, tenant, amount) VALUES ('2024-01-01 03:00Z', v.tenant, 5)",
        "COPY events (event_time, tenant, amount) FROM PROGRAM 'echo 2024-01-01 04:00Z,3,4 && echo 2024-01-03 04:00Z,3,4' WITH (FORMAT csv)",
        "DELETE FROM events WHERE note = 'b' OR amount = 4",
        "TRUNCATE day_2",
        "DELETE FROM events WHERE tenant = 1",
    ];
    let mut sealed = sealed_session(&database);
    let mut other = database.connect();
    for statement in statements {
        run(&mut sealed, statement);
        assert_kept(&mut sealed);
        assert_kept(&mut other);
        run(&mut other, "CALL tally.refresh('totals')");
        assert_kept(&mut sealed);
    }
    let database = cluster::database();
    let (mut sealed, mut other) = (sealed_session(&database), database.connect());
    run(&mut sealed, "BEGIN");
    for statement in statements.into_iter().filter(|statement| !statement.starts_with("TRUNCATE")) {
        run(&mut sealed, "SAVEPOINT s");
        run(&mut sealed, statement);
        assert_kept(&mut sealed);
        run(&mut other, "CALL tally.refresh('totals')");
        run(&mut sealed, "ROLLBACK TO s");
        assert_kept(&mut sealed);
        run(&mut sealed, statement);
        assert_kept(&mut sealed);
        assert_kept(&mut other);
    }
    run(&mut sealed, "COMMIT");
    assert_kept_and_refreshed(&mut sealed);
}

#[test]
fn snapshot_of_before_reads_what_was_not_sealed_then() {
    let database = cluster::database();
    let mut session = rolled_session(&database);
    let mut report = database.connect();
    run(&mut session, "INSERT INTO events VALUES ('2024-01-01 01:00Z', 1, 10, 'pending')");
    run(&mut report, "BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert_kept(&mut report);
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    run(&mut session, "CALL tally.refresh('totals')");
    run(&mut session, "INSERT INTO events VALUES ('2024-01-01 02:00Z', 1, 10, 'late')");
    assert!(!reads(&mut session, HOURLY, "day_1") && reads(&mut report, HOURLY, "day_1"));
    assert_kept(&mut report);
    assert_kept(&mut session);
}

/// A plan that was made with a younger snapshot is the one way to look with too few partitions.
#[test]
fn plan_that_is_younger_than_the_snapshot_is_refused() {
    let database = cluster::database();
    let (mut session, mut report, mut planned) = (rolled_session(&database), database.connect(), database.connect());
    run(&mut session, "INSERT INTO events VALUES ('2024-01-01 01:00Z', 1, 10, 'pending')");
    run(&mut report, "BEGIN ISOLATION LEVEL REPEATABLE READ");
    let snapshot: String = report.query_one("SELECT pg_export_snapshot()", &[]).unwrap().get(0);
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    run(&mut session, "CALL tally.refresh('totals')");
    let count = "SELECT sum(n)::bigint FROM hourly";
    run(&mut planned, &format!("SET plan_cache_mode = force_generic_plan; PREPARE count AS {count}"));
    planned.query_one("EXECUTE count", &[]).unwrap();
    run(&mut planned, &format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'"));
    let error = planned.query_one("EXECUTE count", &[]).unwrap_err();
    assert_eq!(state(&error).code(), "40001", "{error:?}");
    run(
        &mut planned,
        &format!("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'"),
    );
    let fresh: i64 = planned.query_one(count, &[]).unwrap().get(0);
    assert_eq!(fresh, 41 - 1);
}

#[test]
fn sealing_waits_for_nobody_and_stops_at_a_partition_in_use() {
    // A worker that refreshes meanwhile would be waited for.
    let database = cluster::database_without_workers();
    let (mut session, mut writer) = (rolled_session(&database), database.connect());
    run(&mut writer, "BEGIN; INSERT INTO day_1 VALUES ('2024-01-01 01:00Z', 1, 10, 'open')");
    run(&mut session, "SET lock_timeout = '1ms'");
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    assert!(!is_sealed(&mut session, "day_1") && !is_sealed(&mut session, "day_2"));
    run(&mut writer, "PREPARE TRANSACTION 'sealing_waits'");
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    assert!(!is_sealed(&mut session, "day_1"));
    run(&mut session, "COMMIT PREPARED 'sealing_waits'");
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    assert!(is_sealed(&mut session, "day_1") && is_sealed(&mut session, "day_2"));
    assert_kept_and_refreshed(&mut session);
    assert_eq!(settled(&mut session), "2024-01-03 00:00:00");
}

#[test]
fn partitions_that_come_among_sealed_ones_are_sealed() {
    let database = cluster::database();
    let mut session = sealed_session(&database);
    run(&mut session, "CREATE TABLE day_0 PARTITION OF events FOR VALUES FROM ('2023-12-31Z') TO ('2024-01-01Z')");
    run(&mut session, "CREATE TABLE day_4 PARTITION OF events FOR VALUES FROM ('2024-01-04Z') TO ('2024-01-05Z')");
    assert!(is_sealed(&mut session, "day_0") && !is_sealed(&mut session, "day_4"));
    run(
        &mut session,
        "INSERT INTO events VALUES ('2023-12-31 01:00Z', 1, 1, 'new'), ('2024-01-04 01:00Z', 1, 2, 'new')",
    );
    assert_kept_and_refreshed(&mut session);
    // Rows that are new by their tags come along, and rows that are not.
    for (number, is_counted) in [(1, false), (2, true)] {
        run(
            &mut session,
            &format!(
                "CREATE TABLE old_{number} (LIKE events INCLUDING DEFAULTS); \
                 INSERT INTO old_{number} VALUES ('2023-12-{number}0 01:00Z', 1, 3, 'brought')"
            ),
        );
        if is_counted {
            run(&mut session, "CALL tally.refresh('totals')");
        }
        run(
            &mut session,
            &format!(
                "ALTER TABLE events ATTACH PARTITION old_{number} FOR VALUES FROM ('2023-12-{number}0Z') TO ('2023-12-{number}1Z')"
            ),
        );
        assert!(is_sealed(&mut session, &format!("old_{number}")));
        assert_eq!(settled(&mut session), format!("2023-12-{number}0 00:00:00"));
        assert_kept_and_refreshed(&mut session);
        assert_eq!(settled(&mut session), "2024-01-03 00:00:00");
    }
    run(&mut session, "CREATE TABLE rest PARTITION OF events DEFAULT");
    assert!(is_sealed(&mut session, "rest"));
    run(&mut session, "INSERT INTO events VALUES ('2020-01-01Z', 1, 4, 'rest'), ('2030-01-01Z', 1, 5, 'rest')");
    assert_kept_and_refreshed(&mut session);
    assert_refused(&mut session, SEAL_DAY_1, "55000", "default partition", "drop it");
}

#[test]
fn partitions_that_leave_are_as_they_were() {
    let database = cluster::database();
    let mut session = sealed_session(&database);
    run(
        &mut session,
        "INSERT INTO events VALUES ('2024-01-01 01:00Z', 1, 10, 'late'), ('2024-01-02 01:00Z', 1, 10, 'late')",
    );
    run(&mut session, "INSERT INTO gone SELECT event_time, tenant, amount, note FROM day_1");
    run(&mut session, "ALTER TABLE events DETACH PARTITION day_1");
    assert!(!is_sealed(&mut session, "day_1"));
    assert_kept_and_refreshed(&mut session);
    run(&mut session, "INSERT INTO day_1 VALUES ('2024-01-01 01:00Z', 9, 9, 'outside')");
    run(
        &mut session,
        "ALTER TABLE events ATTACH PARTITION day_1 FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z'); TRUNCATE gone",
    );
    assert_kept_and_refreshed(&mut session);
    run(&mut session, "INSERT INTO gone SELECT event_time, tenant, amount, note FROM day_2; DROP TABLE day_2");
    assert_kept_and_refreshed(&mut session);
    for rollup in ["daily", "hourly", "totals", "weekly", "ends"] {
        run(&mut session, &format!("SELECT tally.drop_rollup('{rollup}')"));
    }
    assert!(!is_sealed(&mut session, "day_1"));
}

#[test]
fn frozen_rows_of_a_sealed_partition_are_counted_once() {
    let database = cluster::database();
    let (mut session, mut other) = (sealed_session(&database), database.connect());
    run(
        &mut session,
        "BEGIN; CREATE TABLE day_0 PARTITION OF events FOR VALUES FROM ('2023-12-31Z') TO ('2024-01-01Z')",
    );
    run(
        &mut session,
        "COPY day_0 (event_time, tenant, amount) FROM PROGRAM 'echo 2023-12-31 04:00Z,3,4' WITH (FORMAT csv, FREEZE)",
    );
    assert_kept(&mut session);
    run(&mut session, "COMMIT");
    assert_kept(&mut other);
    assert_kept_and_refreshed(&mut session);
}

#[test]
fn trigger_that_is_missing_stops_the_refresh() {
    let database = cluster::database();
    let mut session = sealed_session(&database);
    let refresh = "CALL tally.refresh('totals')";
    run(&mut session, "ALTER TABLE day_1 DISABLE TRIGGER tally_seal");
    assert_refused(&mut session, refresh, "55000", "can no longer be trusted", "ENABLE ALWAYS TRIGGER");
    run(&mut session, "ALTER TABLE day_1 ENABLE ALWAYS TRIGGER tally_seal");
    run(&mut session, refresh);
    // A session that has looked already hears of it as well.
    let mut other = database.connect();
    run(&mut other, "DROP TRIGGER tally_seal ON day_2");
    assert_refused(&mut session, refresh, "55000", "can no longer be trusted", "tally.verify");
}

#[test]
fn refresh_job_seals_what_has_become_cold() {
    let cluster = Cluster::start(&[("tally.seal_after", "0"), ("tally.refresh_enabled", "on")]);
    let database = cluster.database();
    let mut session = session(&database);
    create(
        &mut session,
        "hourly",
        "SELECT date_bin('1 hour', event_time, '2000-01-01Z') AS hour, count(*) AS n FROM events GROUP BY 1",
    );
    run(&mut session, "CREATE TABLE ahead PARTITION OF events FOR VALUES FROM ('2099-01-03Z') TO ('2099-01-04Z')");
    wait_until(&mut session, "SELECT settled_before = '2024-01-03' FROM tally.sources");
    assert!(is_sealed(&mut session, "day_2") && !is_sealed(&mut session, "ahead"));
    run(
        &mut session,
        "INSERT INTO events VALUES ('2024-01-01 01:00Z', 1, 10, 'late'), ('2099-01-03 01:00Z', 1, 10, 'hot')",
    );
    assert_equal(&mut session, "totals", QUERY);
    wait_until(&mut session, "SELECT tally.pending_rows('events') = 0");
    assert_equal(&mut session, "totals", QUERY);
}

#[test]
fn only_a_source_that_is_partitioned_by_time_is_sealed() {
    let database = cluster::database();
    let mut session = session(&database);
    run(&mut session, "CREATE TABLE plain (event_time timestamptz NOT NULL, tenant int)");
    let seal = "CALL tally.seal_partitions('plain', now())";
    assert_refused(&mut session, seal, "42704", "plain\" feeds no rollup", "feeds rollups");
    create(&mut session, "plain_totals", "SELECT tenant, count(*) AS n FROM plain GROUP BY 1");
    assert_refused(&mut session, seal, "22023", "not partitioned by a time", "nothing to seal");
    run(&mut session, "CREATE ROLE sealer; GRANT ALL ON events TO sealer; SET ROLE sealer");
    assert_refused(&mut session, SEAL_DAY_1, "42501", "must be owner", "owner");
}

/// The keys without a zone are those of the session's clock.
#[test]
fn dates_and_wall_clock_times_are_sealed() {
    for (kind, day_2) in [("date", "2024-01-02"), ("timestamp", "2024-01-02 00:00")] {
        let database = cluster::database();
        let mut session = database.connect();
        run(
            &mut session,
            &format!(
                "SET TimeZone = 'Asia/Tokyo'; CREATE TABLE events (event_time {kind} NOT NULL, tenant int) PARTITION BY RANGE (event_time); \
                 CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2024-01-02'); \
                 CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM ('2024-01-02') TO ('2024-01-03'); \
                 INSERT INTO events VALUES ('2024-01-01', 1), ('{day_2}', 2)"
            ),
        );
        let query = "SELECT event_time, count(*) AS n, max(tenant) AS most FROM events GROUP BY 1";
        create(&mut session, "daily", query);
        run(&mut session, "CALL tally.seal_partitions('events', '2024-01-02 00:00')");
        run(&mut session, "CALL tally.refresh('daily')");
        assert!(is_sealed(&mut session, "day_1") && !is_sealed(&mut session, "day_2"));
        assert!(!reads(&mut session, "SELECT * FROM daily", "day_1"), "{kind}");
        for statement in
            ["INSERT INTO events VALUES ('2024-01-01', 3), ('2024-01-02', 3)", "DELETE FROM events WHERE tenant = 3"]
        {
            run(&mut session, statement);
            assert_equal(&mut session, "daily", query);
            run(&mut session, "CALL tally.refresh('daily')");
            assert_equal(&mut session, "daily", query);
        }
    }
}

/// A transaction with an id counts nothing from its own id on: rows that came before the trigger may be among that.
#[test]
fn rollup_made_by_an_older_transaction_settles_nothing() {
    let database = cluster::database();
    let (mut session, mut creator) = (rolled_session(&database), database.connect());
    run(&mut creator, "BEGIN; SELECT pg_current_xact_id()");
    run(&mut session, "INSERT INTO events VALUES ('2024-01-01 05:30Z', 1, 1, 'younger')");
    run(&mut session, SEAL_DAY_1);
    create(&mut creator, "second", "SELECT tenant, count(*) AS n, max(amount) AS most FROM events GROUP BY tenant");
    run(&mut creator, "COMMIT");
    assert_eq!(settled(&mut session), "nothing");
    assert_kept(&mut session);
    assert_kept_and_refreshed(&mut session);
    assert_eq!(settled(&mut session), "2024-01-02 00:00:00");
    let second = "SELECT tenant, count(*) AS n, max(amount) AS most FROM events GROUP BY tenant";
    assert_equal(&mut session, "second", second);
}

/// Nothing is settled before the first tick, whatever comes and goes meanwhile.
#[test]
fn partition_that_comes_back_before_the_next_refresh_settles_nothing() {
    let database = cluster::database();
    let mut session = rolled_session(&database);
    run(&mut session, "INSERT INTO events VALUES ('2024-01-01 05:30Z', 7, 1, 'pending')");
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    run(&mut session, "ALTER TABLE events DETACH PARTITION day_2");
    run(&mut session, "ALTER TABLE events ATTACH PARTITION day_2 FOR VALUES FROM ('2024-01-02Z') TO ('2024-01-03Z')");
    assert_eq!(settled(&mut session), "nothing");
    for refresh in ["SELECT", "CALL tally.refresh('totals')"] {
        run(&mut session, refresh);
        assert_equal(&mut session, "totals", QUERY);
    }
}

/// A plan that is made in a transaction which has refreshed is kept, and that refresh may never be.
#[test]
fn plan_of_a_refresh_that_is_rolled_back_leaves_nothing_out() {
    let database = cluster::database();
    let (mut session, mut other) = (rolled_session(&database), database.connect());
    run(&mut session, "CALL tally.seal_partitions('events', '2024-01-03Z')");
    for rollup in ["totals", "hourly"] {
        run(&mut session, &format!("PREPARE {rollup} AS SELECT sum(n)::bigint FROM {rollup}"));
        run(&mut other, "INSERT INTO events VALUES ('2024-01-01 01:00Z', 1, 10, 'pending')");
        run(&mut other, "TRUNCATE day_2");
        run(&mut session, "BEGIN; CALL tally.refresh('totals')");
        let inside: i64 = session.query_one(&format!("EXECUTE {rollup}"), &[]).unwrap().get(0);
        run(&mut session, "ROLLBACK");
        let outside: i64 = session.query_one(&format!("EXECUTE {rollup}"), &[]).unwrap().get(0);
        assert_eq!(inside, outside);
    }
}

/// Nobody tells a plan that is made in an old snapshot what had been changed before.
#[test]
fn plan_of_an_old_snapshot_is_right_for_later_ones() {
    let database = cluster::database();
    let (mut session, mut other) = (sealed_session(&database), database.connect());
    for (rollup, change) in
        [("hourly", "DELETE FROM events WHERE event_time < '2024-01-01 05:00Z'"), ("totals", "TRUNCATE day_2")]
    {
        run(&mut session, &format!("PREPARE {rollup} AS SELECT COALESCE(sum(n), 0)::bigint FROM {rollup}"));
        run(&mut session, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT");
        run(&mut other, change);
        session.query_one(&format!("EXECUTE {rollup}"), &[]).unwrap();
        run(&mut session, "COMMIT");
        let kept: i64 = session.query_one(&format!("EXECUTE {rollup}"), &[]).unwrap().get(0);
        let fresh: i64 =
            session.query_one(&format!("SELECT COALESCE(sum(n), 0)::bigint FROM {rollup}"), &[]).unwrap().get(0);
        assert_eq!(kept, fresh);
        run(&mut session, "CALL tally.refresh('totals')");
    }
}
