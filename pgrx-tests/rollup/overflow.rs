//! Sums that overflow: the query fails, so does the rollup, and so does the refresh. Nothing is lost, and nobody else is held up.

use std::sync::OnceLock;

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use super::create;
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused, pending, wait_until};

const PLAIN: &str = "SELECT tenant, count(*) AS n, max(id) AS last FROM events GROUP BY tenant";
const OTHER: &str = "SELECT tenant, count(*) AS n FROM others GROUP BY tenant";

/// An aggregate over `v` of this type, a value that is fine, one that is too much beside it, and what PostgreSQL says then.
#[track_caller]
fn assert_overflow_is_contained(kind: &str, aggregate: &str, fine: &str, too_much: &str, state: &str) {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "1s")]));
    let query = format!("SELECT tenant, {aggregate} AS total, count(*) AS n FROM events GROUP BY tenant");
    let database = cluster.database();
    let mut session = database.connect();
    session
        .batch_execute(&format!("CREATE TABLE events (id int, tenant int, v {kind}); CREATE TABLE others (tenant int)"))
        .unwrap();
    session.execute("SELECT tally.create_rollup('totals', $1, '1 second')", &[&query]).unwrap();
    create(&mut session, "plain", PLAIN);
    session.execute("SELECT tally.create_rollup('other', $1, '1 second')", &[&OTHER]).unwrap();
    let insert = |session: &mut Client, id: i32, value: &str| {
        let rows = format!("({id}, 1, '{value}'), ({id}, 2, NULL)");
        session.batch_execute(&format!("INSERT INTO events VALUES {rows}; INSERT INTO others VALUES ({id})")).unwrap();
    };
    insert(&mut session, 1, fine);
    assert_equal_now_and_refreshed(&mut session, "totals", "events", &query);
    insert(&mut session, 2, too_much);
    let fails = |session: &mut Client| {
        assert_refused(session, &query, state, "", "");
        assert_refused(session, "SELECT * FROM totals", state, "", "");
        assert_refused(session, "CALL tally.refresh('plain')", state, "", "");
        assert_eq!(pending(session, "events"), 2);
        assert_equal(session, "plain", PLAIN);
    };
    fails(&mut session);
    assert_equal_now_and_refreshed(&mut session, "other", "others", OTHER);
    // The job says so, and that of the other source goes on.
    let failed = format!("SELECT EXISTS (SELECT FROM tally.status WHERE last_sqlstate = '{state}')");
    wait_until(&mut session, &failed);
    session.batch_execute("INSERT INTO others VALUES (7)").unwrap();
    wait_until(&mut session, "SELECT tally.pending_rows('others') = 0");
    assert_equal(&mut session, "other", OTHER);
    fails(&mut session);
    // It goes, and all is well.
    session.batch_execute("DELETE FROM events WHERE id = 2").unwrap();
    assert_equal(&mut session, "totals", &query);
    assert_equal_now_and_refreshed(&mut session, "totals", "events", &query);
    insert(&mut session, 3, too_much);
    fails(&mut session);
    session.batch_execute("UPDATE events SET v = NULL WHERE id = 3; DELETE FROM events WHERE id = 1").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", &query);
    assert_equal(&mut session, "plain", PLAIN);
}

#[test]
fn floats_that_add_up_to_too_much_stop_their_own_source_only() {
    assert_overflow_is_contained("float8", "sum(v)", "1e308", "1e308", "22003");
    assert_overflow_is_contained("real", "sum(v)", "3e38", "3e38", "22003");
}

#[test]
fn numerics_and_intervals_that_add_up_to_too_much_stop_their_own_source_only() {
    assert_overflow_is_contained("text", "sum(('9e' || v)::numeric)", "131071", "131071", "22003");
    assert_overflow_is_contained("interval", "sum(v)", "170000000 years", "170000000 years", "22008");
}

#[test]
fn argument_that_fails_stops_its_own_source_only() {
    assert_overflow_is_contained("int", "max(v * 2)", "7", "2000000000", "22003");
    assert_overflow_is_contained("int", "sum(1 / v)", "7", "0", "22012");
    assert_overflow_is_contained("text", "count(*) FILTER (WHERE v::int > 5)", "7", "seven", "22P02");
}
