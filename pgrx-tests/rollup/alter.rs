//! A rollup gets new columns, other expressions or another interval while everybody reads it.

use postgres::Client;
use tally_server_tests::cluster;

use super::{QUERY, create, insert, session};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};

fn run(session: &mut Client, statement: &str) {
    session.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
}

const DAILY: &str =
    "SELECT date_trunc('day', event_time, 'UTC') AS day, tenant, count(*) AS n FROM events GROUP BY 1, 2";

#[test]
fn an_aggregate_is_added_and_the_view_stays() {
    for sliced in [false, true] {
        let database = cluster::database();
        let (mut session, mut reader) = (session(&database), database.connect());
        create(&mut session, "daily", DAILY);
        run(
            &mut session,
            "CREATE VIEW report AS SELECT day, sum(n) AS n FROM daily GROUP BY day; SELECT tally.pause_job(job_id) FROM tally.jobs",
        );
        insert(&mut session);
        if sliced {
            run(&mut session, "SET tally.build_rows = 10");
        }
        // A transaction of before goes on with what it sees.
        run(&mut reader, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM day_1 LIMIT 1");
        run(&mut session, "DELETE FROM day_2 WHERE amount = 30");
        run(&mut session, "SELECT tally.add_aggregate('daily', 'total', 'sum(amount)'), tally.add_aggregate('daily', 'mean', 'round(avg(e.amount), 2)')".replace("e.amount", "amount").as_str());
        let query = DAILY.replace("AS n FROM", "AS n, sum(amount) AS total, round(avg(amount), 2) AS mean FROM");
        assert_equal(&mut session, "daily", &query);
        assert_equal(&mut reader, "daily", &query);
        run(&mut reader, "COMMIT");
        run(&mut session, "UPDATE events SET amount = amount + 1 WHERE tenant = 1");
        insert(&mut session);
        assert_equal(&mut session, "daily", &query);
        run(&mut session, "CALL tally.build('daily')");
        assert_equal_now_and_refreshed(&mut session, "daily", "events", &query);
        assert_equal(&mut session, "report", "SELECT day, sum(n) AS n FROM daily GROUP BY day");
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
        create(&mut session, "above", "SELECT day, sum(total) AS total FROM daily GROUP BY 1");
        assert_refused(
            &mut session,
            "SELECT tally.add_aggregate('daily', 'x', 'max(amount)')",
            "2BP01",
            "is defined on",
            "Drop it first",
        );
        run(&mut session, "SELECT tally.drop_rollup('above')");
        run(&mut session, "DROP VIEW report; SELECT tally.drop_rollup('daily'), tally.drop_rollup('totals')");
    }
}

#[test]
fn a_transaction_that_is_older_than_a_rollup_is_told_so() {
    let database = cluster::database();
    let (mut session, mut older) = (session(&database), database.connect());
    for (statement, sqlstate, message, hint) in [
        ("SELECT tally.add_aggregate('daily', 'total', 'sum(amount)')", "25001", "READ COMMITTED", "READ COMMITTED"),
        (
            "SELECT tally.alter_rollup('daily', refresh_interval => '1 minute')",
            "42P01",
            "does not exist",
            "younger than the snapshot",
        ),
    ] {
        run(&mut older, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM day_1 LIMIT 1");
        create(&mut session, "daily", DAILY);
        assert_refused(&mut older, statement, sqlstate, message, hint);
        run(&mut older, "ROLLBACK");
        run(&mut session, "SELECT tally.drop_rollup('daily')");
    }
}

#[test]
fn a_definition_is_changed() {
    let database = cluster::database();
    let mut session = session(&database);
    run(
        &mut session,
        "CREATE AGGREGATE product(numeric) (sfunc = numeric_mul, stype = numeric, combinefunc = numeric_mul)",
    );
    for query in [
        "SELECT tenant, count(*) FILTER (WHERE amount > 5) AS n, sum(amount) AS total FROM events WHERE note = 'x' GROUP BY tenant",
        "SELECT tenant, count(*) AS n, sum(amount) AS total, product(amount::numeric % 3) AS product FROM events GROUP BY tenant",
        "SELECT tenant, count(*) AS n, sum(amount) AS total, product(amount::numeric % 5) AS product, max(note) AS note FROM events GROUP BY 1",
    ] {
        session.execute("SELECT tally.alter_rollup('totals', $1)", &[&query]).unwrap();
        insert(&mut session);
        assert_equal_now_and_refreshed(&mut session, "totals", "events", query);
    }
    for (query, state, message, hint) in [
        ("SELECT tenant, count(*) AS n FROM events GROUP BY 1", "42P16", "cannot drop columns from view", ""),
        (
            "SELECT tenant AS shop, count(*) AS n, sum(amount) AS total, 1 AS product, 1 AS note FROM events GROUP BY 1",
            "42P16",
            "cannot change name",
            "",
        ),
        ("SELECT note AS tenant, count(*) AS n FROM pg_class GROUP BY 1", "42703", "note", ""),
        ("SELECT 1 AS tenant, count(*) AS n FROM other GROUP BY 1", "0A000", "read something else", "Create another"),
    ] {
        run(&mut session, "CREATE TABLE IF NOT EXISTS other (a int)");
        assert_refused(
            &mut session,
            &format!("SELECT tally.alter_rollup('totals', $q${query}$q$)"),
            state,
            message,
            hint,
        );
    }
    run(&mut session, "SELECT tally.alter_rollup('totals', refresh_interval => '7 seconds')");
    let every: String = session.query_one("SELECT every::text FROM tally.jobs", &[]).unwrap().get(0);
    assert_eq!(every, "00:00:07");
    assert_refused(
        &mut session,
        "SELECT tally.alter_rollup('totals', refresh_interval => '0')",
        "22023",
        "refresh_interval",
        "",
    );
    assert_refused(
        &mut session,
        "SELECT tally.alter_rollup('events', refresh_interval => '9 s')",
        "42704",
        "not a rollup",
        "",
    );
}

#[test]
fn what_has_left_stays_counted_in_the_old_columns() {
    let database = cluster::database();
    let (mut session, mut reader) = (session(&database), database.connect());
    run(&mut reader, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1");
    run(&mut session, "CREATE TABLE gone AS SELECT * FROM day_1; DROP TABLE day_1");
    assert_refused(
        &mut session,
        "SELECT tally.alter_rollup('totals', 'SELECT tenant, count(*) AS n, sum(amount + 1) AS total FROM events GROUP BY 1')",
        "55000",
        "another column \"total\"",
        "create another rollup",
    );
    run(&mut session, "SELECT tally.add_aggregate('totals', 'most', 'max(amount)')");
    let query = "SELECT tenant, count(*) AS n, sum(amount) AS total, max(amount) FILTER (WHERE there) AS most FROM \
        (SELECT tenant, amount, true AS there FROM events UNION ALL SELECT tenant, amount, false FROM gone) AS e GROUP BY 1";
    assert_equal_now_and_refreshed(&mut session, "totals", "events", query);
    run(&mut session, "UPDATE events SET amount = amount - 1");
    assert_equal_now_and_refreshed(&mut session, "totals", "events", query);
    assert_refused(&mut reader, "SELECT * FROM totals", "40001", "altered since", "new transaction");
}
