//! The rollups of a table go on without a rebuild, exact at every moment, forth and back.

use super::{convert, eventually, number, session_with, text};
use crate::oracle;
use postgres::Client;
use tally_server_tests::cluster;

/// A table with rollups, one of them over another one, of which the rows are counted and not counted.
pub const COUNTED: &str = "
    CREATE TABLE events (at timestamptz NOT NULL, k int, v int);
    INSERT INTO events SELECT now() - i * interval '1 hour', i % 5, i FROM generate_series(0, 500) i;
    SELECT tally.create_rollup('by_hour', $$SELECT date_trunc('hour', at, 'UTC') AS hour, k, count(*) AS n, sum(v) AS total, max(v) AS top
                                            FROM events GROUP BY 1, 2$$);
    SELECT tally.create_rollup('by_day', $$SELECT date_trunc('day', hour, 'UTC') AS day, sum(n) AS n, max(top) AS top FROM by_hour GROUP BY 1$$);
    SELECT tally.create_rollup('by_key', 'SELECT k, count(*) AS n, sum(v) AS total, max(v) AS top FROM events GROUP BY k');
    SELECT tally.pause_job(job_id) FROM tally.jobs WHERE kind = 'refresh';
    INSERT INTO events SELECT now() - i * interval '1 hour', i % 5, i FROM generate_series(0, 50) i;
    UPDATE events SET v = v + 1 WHERE v % 7 = 0;
    DELETE FROM events WHERE v % 11 = 0;
    CREATE VIEW all_of_it AS SELECT at, k, v FROM events;";

const ROLLUPS: [(&str, &str); 3] = [
    ("by_hour", "SELECT date_trunc('hour', at, 'UTC'), k, count(*), sum(v), max(v) FROM events GROUP BY 1, 2"),
    ("by_day", "SELECT date_trunc('day', at, 'UTC'), count(*)::numeric, max(v) FROM events GROUP BY 1"),
    ("by_key", "SELECT k, count(*), sum(v), max(v) FROM events GROUP BY k"),
];

#[track_caller]
pub fn assert_exact(session: &mut Client) {
    for (rollup, query) in ROLLUPS {
        oracle::assert_equal(session, rollup, query);
    }
}

/// New rows in both partitions or in the table, changed ones and deleted ones, seen at once, counted, and seen then.
#[track_caller]
fn use_rollups(session: &mut Client) {
    for round in 0..2 {
        for change in [
            "INSERT INTO events VALUES (now(), 1, 7), (now() - interval '9 days', 2, 8), (now() + interval '1 day', 3, 9)",
            "UPDATE events SET v = v + 3, at = at + interval '1 minute' WHERE v % 5 = 0",
            "DELETE FROM events WHERE v % 13 = 0",
        ] {
            session.batch_execute(change).unwrap();
            assert_exact(session);
        }
        if round == 0 {
            session.batch_execute("CALL tally.refresh('by_key')").unwrap();
            assert_exact(session);
            assert_eq!(oracle::pending(session, "events"), 0);
        }
    }
}

/// What would be different after a rebuild.
fn made_when(session: &mut Client) -> Option<String> {
    text(
        session,
        "SELECT string_agg(concat(r.rollup::oid, r.rows_view::oid, r.stored::oid, r.created_at, c.relfilenode), ' ' ORDER BY r.rollup)
                || ' ' || (SELECT count(*) FROM tally.builds) || (SELECT changes::oid FROM tally.sources)
         FROM tally.rollups r JOIN pg_class c ON c.oid = r.stored",
    )
}

#[test]
fn rollups_go_on_without_a_rebuild_exact_in_each_session() {
    let database = cluster::database();
    let mut session = session_with(&database, COUNTED);
    assert_exact(&mut session);
    let before = made_when(&mut session);
    // One has read nothing yet, and must see its own snapshot through the new table.
    let mut old = database.connect();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1").unwrap();
    let mut prepared = database.connect();
    prepared.batch_execute("PREPARE p AS SELECT count(*) FROM by_key; PREPARE i AS INSERT INTO events VALUES (now(), 4, 4); EXECUTE p; EXECUTE i").unwrap();
    let rows = number(&mut old, "SELECT count(*) FROM pg_class WHERE false");
    assert_eq!(rows, 0);
    convert(&mut session, "'events', 'at', '1 day'");
    assert_eq!(
        number(&mut session, "SELECT count(*) FROM pg_partitioned_table WHERE partrelid = 'events'::regclass"),
        1
    );
    session.batch_execute("INSERT INTO events VALUES (now(), 1, 1000)").unwrap();
    assert_exact(&mut session);
    assert_exact(&mut old);
    assert_eq!(number(&mut old, "SELECT count(*) FROM events WHERE v = 1000"), 0);
    old.batch_execute("COMMIT").unwrap();
    prepared.batch_execute("EXECUTE p; EXECUTE i").unwrap();
    assert_exact(&mut prepared);
    use_rollups(&mut session);
    assert_eq!(made_when(&mut session), before);
    let jobs = "SELECT string_agg(kind, ' ' ORDER BY kind) FROM tally.jobs WHERE object = 'events'::regclass";
    assert_eq!(text(&mut session, jobs).as_deref(), Some("premake refresh"));
    for (rollup, _) in ROLLUPS {
        assert_eq!(number(&mut session, &format!("SELECT count(*) FROM tally.verify('{rollup}')")), 0);
    }
    // The job of the table refreshes it under its new OID.
    session
        .batch_execute(
            "INSERT INTO events VALUES (now(), 1, 1);
             SELECT tally.resume_job(job_id) FROM tally.jobs WHERE kind = 'refresh'",
        )
        .unwrap();
    eventually(
        &mut session,
        "SELECT NOT EXISTS (SELECT FROM events r, tally.sources s WHERE r.tally_tag >= s.next_tag OR r.tally_tag = ANY (s.open_tags))",
    );
    session.batch_execute("SELECT tally.pause_job(job_id) FROM tally.jobs WHERE kind = 'refresh'").unwrap();
    assert_exact(&mut session);
    // Back to a plain table, still exact.
    session
        .batch_execute(
            "DELETE FROM events WHERE at > now() + interval '12 hours'; SELECT tally.undo_conversion('events')",
        )
        .unwrap();
    assert_exact(&mut session);
    use_rollups(&mut session);
    assert_eq!(made_when(&mut session), before);
    session.batch_execute("TRUNCATE events").unwrap();
    assert_exact(&mut session);
    session.batch_execute("INSERT INTO events VALUES (now(), 1, 1)").unwrap();
    assert_exact(&mut session);
    session.batch_execute("SELECT tally.drop_rollup('by_day'); SELECT tally.drop_rollup('by_hour'); SELECT tally.drop_rollup('by_key')").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'tally%'"), 0);
}

#[test]
fn the_converted_table_leaves_as_any_partition_that_rollups_count() {
    let database = cluster::database();
    let mut session = session_with(&database, COUNTED);
    convert(&mut session, "'events', 'at', '1 day'");
    session.batch_execute("CREATE TABLE truth AS TABLE by_key; CREATE TABLE truth_by_hour AS TABLE by_hour").unwrap();
    let first = text(&mut session, "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
                                    WHERE inhparent = 'events'::regclass AND pg_get_expr(relpartbound, c.oid) LIKE '%MINVALUE%'").unwrap();
    session.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {first}")).unwrap();
    for refreshed in [false, true] {
        if refreshed {
            session.batch_execute("CALL tally.refresh('by_key')").unwrap();
        }
        oracle::assert_equal(&mut session, "by_key", "SELECT * FROM truth");
        oracle::assert_equal(&mut session, "by_hour", "SELECT * FROM truth_by_hour");
    }
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 0);
}

#[test]
fn truncating_the_first_partition_is_seen_by_rollups() {
    let database = cluster::database();
    let mut session = session_with(&database, COUNTED);
    convert(&mut session, "'events', 'at', '1 day'");
    session.batch_execute("INSERT INTO events VALUES (now() + interval '5 days', 1, 1)").unwrap();
    let first = text(&mut session, "SELECT inhrelid::regclass::text FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
                                    WHERE inhparent = 'events'::regclass AND pg_get_expr(relpartbound, c.oid) LIKE '%MINVALUE%'").unwrap();
    session.batch_execute(&format!("TRUNCATE {first}")).unwrap();
    assert_exact(&mut session);
    session.batch_execute("CALL tally.refresh('by_key'); TRUNCATE events").unwrap();
    assert_exact(&mut session);
}
