//! Rows are taken out of counts and exact sums again, so that a change costs what it concerns and no more.

use postgres::Client;
use tally_server_tests::cluster;

use super::create;
use super::departures::run;
use crate::oracle::assert_equal;
use crate::refresh::pause_jobs;

const QUERY: &str = "SELECT tenant, count(*) AS n, count(amount) AS amounts, sum(amount) AS total, avg(amount) AS mean, \
     sum(whole) AS whole, sum(whole) FILTER (WHERE tenant = 1 AND paid) AS paid, stddev_pop(small) AS spread, \
     sum(lasted) AS lasted, avg(big) FILTER (WHERE paid) AS big FROM sales GROUP BY tenant";

fn table(session: &mut Client) {
    run(
        session,
        "CREATE TABLE sales (event_time timestamptz NOT NULL, tenant int, amount numeric(12,2), whole int, small smallint, big bigint, \
           lasted interval, paid boolean) PARTITION BY RANGE (event_time); \
         CREATE TABLE day_1 PARTITION OF sales FOR VALUES FROM ('2024-01-01Z') TO ('2024-01-02Z'); \
         CREATE TABLE day_2 PARTITION OF sales FOR VALUES FROM ('2024-01-02Z') TO ('2024-01-03Z'); \
         INSERT INTO sales SELECT '2024-01-01Z'::timestamptz + i * interval '10 minutes', NULLIF(i % 5, 4), \
             NULLIF(i % 7, 0) * 1.25, NULLIF(i % 3, 0), i % 11, 9000000000000000000 + i, i * interval '1 day 1 second', i % 2 = 0 \
           FROM generate_series(1, 200) AS i",
    );
}

/// Does the stored definition say that nothing has to be made anew?
fn subtracts(session: &mut Client, rollup: &str) -> bool {
    let query = "SELECT bool_and(p ? 'subtract') FROM tally.rollups, jsonb_array_elements(columns -> 'partials') AS p \
         WHERE rollup = $1::text::regclass";
    session.query_one(query, &[&rollup]).unwrap().get(0)
}

/// Rows that scans of the partitions have fetched so far.
pub(super) fn rows_read(session: &mut Client) -> i64 {
    run(session, "SELECT pg_stat_force_next_flush()");
    run(session, "SELECT pg_stat_clear_snapshot()");
    let query = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables WHERE relname LIKE 'day\\_%'";
    session.query_one(query, &[]).unwrap().get(0)
}

#[test]
fn every_change_of_a_sum_is_followed() {
    let database = cluster::database();
    let mut session = database.connect();
    table(&mut session);
    create(&mut session, "totals", QUERY);
    assert!(subtracts(&mut session, "totals"));
    for statement in [
        "UPDATE sales SET amount = amount + 0.5, whole = whole - 1, small = small + 1, lasted = -lasted WHERE tenant = 1",
        // Sums without any value are NULL, those of zeros are not.
        "UPDATE sales SET amount = NULL, whole = 0 WHERE tenant = 2",
        "UPDATE sales SET whole = NULL, amount = 0 WHERE tenant = 2",
        "UPDATE sales SET paid = NOT paid, tenant = (tenant + 1) % 3",
        "UPDATE sales SET event_time = event_time + interval '8 hours' WHERE event_time < '2024-01-01 16:00Z' AND whole = 1",
        "DELETE FROM sales WHERE tenant IS NULL",
        "INSERT INTO sales SELECT event_time, 7, 1, 1, 1, 1, '1 day', true FROM sales LIMIT 1",
        "DELETE FROM sales WHERE tenant = 7",
        "UPDATE sales SET amount = 'NaN' WHERE tenant = 1 AND small = 3",
        "UPDATE sales SET amount = amount + 1 WHERE tenant = 1 AND small = 4",
        "UPDATE sales SET amount = 1 WHERE tenant = 1 AND small = 3",
        "TRUNCATE day_2",
        "DELETE FROM sales",
    ] {
        run(&mut session, statement);
        assert_equal(&mut session, "totals", QUERY);
        run(&mut session, "CALL tally.refresh('totals')");
        assert_equal(&mut session, "totals", QUERY);
        assert_equal(&mut session, "(SELECT tenant, n FROM totals)", "SELECT tenant, _rows FROM totals_stored");
    }
}

/// Values that come and go before a refresh sees any of them, beside those of other transactions.
#[test]
fn changes_that_undo_each_other_leave_nothing() {
    let database = cluster::database();
    let (mut session, mut other) = (database.connect(), database.connect());
    table(&mut session);
    create(&mut session, "totals", QUERY);
    run(
        &mut other,
        "BEGIN; INSERT INTO sales SELECT event_time, 8, 1, 1, 1, 1, '1 day', true FROM sales WHERE tenant = 1",
    );
    for statement in [
        "INSERT INTO sales SELECT * FROM sales WHERE tenant = 1",
        "UPDATE sales SET tenant = 9 WHERE tenant = 1",
        "UPDATE sales SET tenant = 10, amount = 'NaN' WHERE tenant = 9",
        "UPDATE sales SET tenant = 9, amount = 3 WHERE tenant = 10",
        "DELETE FROM sales WHERE tenant = 9",
        "INSERT INTO sales SELECT event_time, 9, 1, 1, 1, 1, '1 day', true FROM sales LIMIT 1",
    ] {
        run(&mut session, statement);
        assert_equal(&mut session, "totals", QUERY);
        assert_equal(&mut other, "totals", QUERY);
    }
    run(&mut session, "CALL tally.refresh('totals')");
    assert_equal(&mut session, "totals", QUERY);
    run(&mut other, "COMMIT; DELETE FROM sales WHERE tenant IN (8, 9)");
    assert_equal(&mut session, "totals", QUERY);
    run(&mut session, "CALL tally.refresh('totals')");
    assert_equal(&mut session, "totals", QUERY);
    assert_equal(&mut session, "(SELECT tenant, n FROM totals)", "SELECT tenant, _rows FROM totals_stored");
}

#[test]
fn change_of_a_row_reads_no_other_row() {
    let database = cluster::database();
    let mut session = database.connect();
    table(&mut session);
    create(&mut session, "totals", QUERY);
    run(&mut session, "CALL tally.refresh('totals')");
    // The plan of a reader has no place for rows of groups that are made anew.
    let plan = session.query("EXPLAIN SELECT * FROM totals", &[]).unwrap();
    let scans = plan.iter().filter(|row| row.get::<_, &str>(0).contains("on day_1")).count();
    assert_eq!(scans, 1, "{plan:#?}");
    run(&mut session, "CALL tally.seal_partitions('sales', '2024-01-03Z')");
    run(&mut session, "CALL tally.refresh('totals')");
    run(&mut session, "UPDATE sales SET amount = 1000 WHERE event_time = '2024-01-01 00:10Z'");
    let before = rows_read(&mut session);
    run(&mut session, "CALL tally.refresh('totals')");
    let after = rows_read(&mut session);
    // The statement itself has read the table.
    assert_eq!(after - before, 0);
    assert_equal(&mut session, "totals", QUERY);
}

#[test]
fn levels_above_follow_what_is_taken_away_below() {
    let database = cluster::database();
    let mut session = database.connect();
    table(&mut session);
    create(
        &mut session,
        "hourly",
        "SELECT date_trunc('hour', event_time, 'UTC') AS hour, tenant, count(*) AS n, sum(amount) AS total, sum(whole) AS whole FROM sales GROUP BY 1, 2",
    );
    create(
        &mut session,
        "daily",
        "SELECT date_trunc('day', hour, 'UTC') AS day, sum(n) AS n, sum(total) AS total, sum(whole) FILTER (WHERE tenant = 1) AS whole, \
           max(tenant) AS last FROM hourly GROUP BY 1",
    );
    create(
        &mut session,
        "tenants",
        "SELECT tenant, sum(n) AS n, sum(total) AS total, sum(whole) AS whole FROM hourly WHERE tenant < 3 GROUP BY 1",
    );
    assert!(
        subtracts(&mut session, "hourly") && subtracts(&mut session, "tenants") && !subtracts(&mut session, "daily")
    );
    let daily = "SELECT date_trunc('day', event_time, 'UTC') AS day, count(*)::numeric AS n, sum(amount) AS total, \
         sum(whole) FILTER (WHERE tenant = 1)::numeric AS whole, max(tenant) AS last FROM sales GROUP BY 1";
    let tenants = "SELECT tenant, count(*)::numeric AS n, sum(amount) AS total, sum(whole)::numeric AS whole FROM sales WHERE tenant < 3 GROUP BY 1";
    for statement in [
        "UPDATE sales SET amount = amount + 0.5, whole = whole - 1 WHERE tenant = 1",
        "UPDATE sales SET amount = NULL, whole = NULL WHERE tenant = 2",
        "UPDATE sales SET tenant = tenant + 1 WHERE event_time < '2024-01-01 16:00Z'",
        "DELETE FROM sales WHERE tenant = 3 OR event_time > '2024-01-02Z'",
        "DELETE FROM sales WHERE tenant = 1",
    ] {
        run(&mut session, statement);
        for _ in 0..2 {
            assert_equal(&mut session, "daily", daily);
            assert_equal(&mut session, "tenants", tenants);
            run(&mut session, "CALL tally.refresh('hourly')");
        }
    }
}

/// A value that cannot be computed stops the refresh as long as its row is there, and no longer.
#[test]
fn value_that_fails_is_forgotten_with_its_row() {
    let database = cluster::database();
    let mut session = database.connect();
    table(&mut session);
    let query = "SELECT tenant, sum(whole * 1000000) AS total FROM sales GROUP BY tenant";
    create(&mut session, "millions", query);
    assert!(!subtracts(&mut session, "millions"));
    run(&mut session, "CALL tally.seal_partitions('sales', '2024-01-03Z')");
    run(&mut session, "CALL tally.refresh('millions')");
    for statement in ["UPDATE sales SET whole = 1 WHERE tenant = 77", "DELETE FROM sales WHERE tenant = 77"] {
        run(&mut session, "INSERT INTO sales (event_time, tenant, whole) VALUES ('2024-01-01 01:00Z', 77, 2000000000)");
        assert!(session.batch_execute("CALL tally.refresh('millions')").is_err());
        run(&mut session, statement);
        assert_equal(&mut session, "millions", query);
        run(&mut session, "CALL tally.refresh('millions')");
        assert_equal(&mut session, "millions", query);
    }
}

/// While the groups are built in slices, what changes in the part that is built is followed there, and elsewhere read as it is.
#[test]
fn changes_on_both_sides_of_a_build_are_followed() {
    let database = cluster::database();
    let mut session = database.connect();
    table(&mut session);
    run(&mut session, "SET tally.build_rows = 20");
    create(&mut session, "totals", QUERY);
    let is_building = "SELECT tally.build_slice('totals')";
    loop {
        for statement in [
            "UPDATE sales SET whole = whole + 1, amount = amount + 1 WHERE small = 3",
            "UPDATE sales SET event_time = event_time + interval '12 hours' WHERE small = 5 AND event_time < '2024-01-01 12:00Z'",
            "UPDATE sales SET event_time = event_time - interval '12 hours' WHERE small = 6 AND event_time > '2024-01-02Z'",
            "DELETE FROM sales WHERE small = 7 AND whole = 1",
            "INSERT INTO sales SELECT * FROM sales WHERE small = 8 AND whole = 1",
        ] {
            run(&mut session, statement);
            assert_equal(&mut session, "totals", QUERY);
        }
        if !session.query_one(is_building, &[]).unwrap().get::<_, bool>(0) {
            break;
        }
        assert_equal(&mut session, "totals", QUERY);
    }
    assert_equal(&mut session, "totals", QUERY);
}

/// A rollup that is created late in a transaction sees changes of transactions that are younger than its own, and cannot count them
/// yet; nor can the other rollups of the table.
#[test]
fn changes_of_younger_transactions_are_followed_once() {
    let database = cluster::database();
    let (mut session, mut younger) = (database.connect(), database.connect());
    table(&mut session);
    create(&mut session, "totals", QUERY);
    let extremes = "SELECT tenant, max(amount) AS most, sum(whole) AS whole FROM sales GROUP BY tenant";
    create(&mut session, "extremes", extremes);
    // After a tick of a worker the open transaction could create no rollup.
    pause_jobs(&mut session);
    run(&mut session, "BEGIN; SELECT pg_current_xact_id()");
    run(
        &mut younger,
        "UPDATE sales SET amount = amount + 1, whole = whole + 1 WHERE tenant = 1; DELETE FROM sales WHERE tenant = 2",
    );
    run(&mut younger, "INSERT INTO sales SELECT * FROM sales WHERE tenant = 3");
    create(&mut session, "again", QUERY);
    run(&mut session, &format!("SELECT tally.alter_rollup('extremes', '{extremes}')"));
    for end in ["SELECT 1", "COMMIT", "CALL tally.refresh('totals')"] {
        run(&mut session, end);
        for (rollup, query) in [("totals", QUERY), ("extremes", extremes), ("again", QUERY)] {
            assert_equal(&mut session, rollup, query);
        }
    }
    assert_equal(&mut younger, "again", QUERY);
}
