//! A plain table becomes a partitioned one: nothing is lost, no row is copied, nobody waits, and there is a way back.

mod load;
mod plan;
mod preserved;
mod refused;
mod rollups;
mod steps;

use crate::oracle::{DEADLINE, number, text};
use postgres::Client;
use std::time::{Duration, Instant};
use tally_server_tests::cluster::{self, Database};

/// Asks until the query answers true.
#[track_caller]
fn eventually(session: &mut Client, query: &str) {
    let begin = Instant::now();
    while begin.elapsed() < DEADLINE {
        if session.query_opt(query, &[]).unwrap().and_then(|row| row.get::<_, Option<bool>>(0)) == Some(true) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let rows = session
        .query("SELECT c::text FROM tally.conversions c UNION ALL SELECT s::text FROM tally.status s", &[])
        .unwrap();
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    panic!("not so: {query}\n{rows:#?}");
}

const IS_DONE: &str = "SELECT NOT EXISTS (SELECT FROM tally.conversions)";

/// Converts the table and waits until it has its policy.
#[track_caller]
fn convert(session: &mut Client, arguments: &str) {
    session.batch_execute(&format!("SELECT tally.convert_to_partitioned({arguments})")).unwrap();
    eventually(session, IS_DONE);
}

fn session_with(database: &Database<'_>, schema: &str) -> Client {
    let mut session = database.connect();
    session.batch_execute(schema).unwrap();
    session
}

#[test]
fn the_table_is_the_first_partition_and_no_row_was_copied() {
    let database = cluster::database();
    let mut session = session_with(
        &database,
        "CREATE TABLE events (at timestamptz NOT NULL, k int);
         INSERT INTO events SELECT now() - i * interval '1 hour', i FROM generate_series(1, 1000) i;",
    );
    let before = text(&mut session, "SELECT oid || ' ' || relfilenode FROM pg_class WHERE relname = 'events'");
    convert(&mut session, "'events', 'at', '1 day', retention => '30 days'");
    let first = "SELECT c.oid || ' ' || c.relfilenode FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
                 WHERE inhparent = 'events'::regclass AND pg_get_expr(c.relpartbound, c.oid) LIKE '%MINVALUE%'";
    assert_eq!(text(&mut session, first), before);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 1000);
    let status = "SELECT verdict || ' ' || width || ' ' || (ahead > '6 days') FROM tally.partition_status WHERE parent = 'events'::regclass";
    assert_eq!(text(&mut session, status).as_deref(), Some("ok 1 day true"));
    let kinds = "SELECT string_agg(kind, ' ' ORDER BY kind) FROM tally.jobs WHERE object = 'events'::regclass";
    assert_eq!(text(&mut session, kinds).as_deref(), Some("premake retention"));
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.jobs WHERE kind = 'conversion'"), 0);
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_constraint WHERE conname = 'tally_conversion'"), 0);
    session.batch_execute("INSERT INTO events VALUES (now(), 1), (now() + '5 days', 2)").unwrap();
}

#[test]
fn a_conversion_is_undone_before_its_set_is_registered() {
    let database = cluster::database();
    let mut session = session_with(
        &database,
        "CREATE TABLE clicks (at timestamptz NOT NULL, shop int); INSERT INTO clicks SELECT now() - i * interval '1 hour', i FROM generate_series(1, 9) i;
         BEGIN; SELECT tally.convert_to_partitioned('clicks', 'at', '1 day'); SELECT tally.pause_job(job_id) FROM tally.jobs; COMMIT",
    );
    while text(&mut session, "SELECT state FROM tally.conversions").as_deref() != Some("swapped") {
        session.execute("SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = 'conversion'", &[]).unwrap();
    }
    session.batch_execute("SELECT tally.undo_conversion('clicks')").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.conversions"), 0);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.jobs WHERE kind = 'conversion'"), 0);
    assert_eq!(
        text(&mut session, "SELECT relkind::text FROM pg_class WHERE oid = 'clicks'::regclass").as_deref(),
        Some("r")
    );
    assert_eq!(number(&mut session, "SELECT count(*) FROM clicks"), 9);
}
