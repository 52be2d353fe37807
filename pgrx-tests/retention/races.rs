//! What comes between two steps of retention, or in the middle of one.

use std::thread;

use postgres::Client;
use tally_server_tests::cluster::{self, Database};

use super::{
    RETAIN_BY_HAND, assert_kept, assert_refused, number, session_with_set, state, step, step_inside_to, step_to, text,
    touch,
};
use crate::oracle::{assert_equal, own_pid, wait_until_blocked};

const BY_VALUE: &str = "SELECT v, count(*) AS n, sum(k) AS keys FROM events GROUP BY v";

fn retained_by_hand(database: &Database<'_>) -> Client {
    let mut session = session_with_set(database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    session
}

fn partition(session: &mut Client) -> String {
    text(
        session,
        "SELECT partition::text FROM tally.retirements WHERE state <> 'kept' ORDER BY retirement DESC LIMIT 1",
    )
    .unwrap()
}

#[test]
fn a_partition_comes_back_that_is_detached_and_not_yet_in_the_trash() {
    let database = cluster::database_without_workers();
    let mut session = retained_by_hand(&database);
    step_to(&mut session, "detaching");
    let partition = partition(&mut session);
    assert_eq!(
        number(&mut session, &format!("SELECT count(*) FROM pg_inherits WHERE inhrelid = '{partition}'::regclass")),
        0
    );
    session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
    for _ in 0..2 {
        assert_kept(&mut session);
        touch_recent(&mut session);
        assert_kept(&mut session);
        step(&mut session);
    }
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements WHERE state = 'kept'"), 1);
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(&mut session);
}

/// As `touch`, while older rows are fenced.
fn touch_recent(session: &mut Client) {
    let update = "UPDATE events SET v = v + 1 WHERE at >= now() - interval '2 days'";
    session.batch_execute(&format!("{update}; {}", update.replace('+', "-"))).unwrap();
}

#[test]
fn a_rollup_made_on_the_way_out_knows_all_rows_that_can_be_seen() {
    for made_in in ["fenced", "counted", "verified"] {
        let database = cluster::database_without_workers();
        let mut session = retained_by_hand(&database);
        step_to(&mut session, made_in);
        session.batch_execute(&format!("SELECT tally.create_rollup('by_value', '{BY_VALUE}')")).unwrap();
        session
            .batch_execute(
                "SELECT tally.create_rollup('in_all', 'SELECT k % 2 AS half, sum(n) AS n FROM by_key GROUP BY 1')",
            )
            .unwrap();
        session.batch_execute("CREATE TABLE truth AS TABLE events").unwrap();
        let all = BY_VALUE.replace("events", "truth");
        assert_equal(&mut session, "by_value", BY_VALUE);
        step_to(&mut session, "trash");
        for _ in 0..2 {
            assert_equal(&mut session, "by_value", &all);
            assert_equal(&mut session, "in_all", "SELECT k % 2 AS half, sum(n) AS n FROM by_key GROUP BY 1");
            touch_recent(&mut session);
        }
        let partition = partition(&mut session);
        session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
        for _ in 0..2 {
            assert_equal(&mut session, "by_value", &all);
            assert_equal(&mut session, "by_value", BY_VALUE);
            touch_recent(&mut session);
            step(&mut session);
            session.batch_execute("CALL tally.refresh('by_day')").unwrap();
        }
        assert_kept(&mut session);
    }
}

#[test]
fn an_aggregate_added_on_the_way_out_knows_all_rows_that_can_be_seen() {
    let database = cluster::database_without_workers();
    let mut session = retained_by_hand(&database);
    let query = "SELECT k, count(*) AS n, sum(v) AS total, max(v) AS top, min(v) AS lowest FROM events GROUP BY k";
    step_to(&mut session, "verified");
    session.batch_execute("SELECT tally.add_aggregate('by_key', 'lowest', 'min(v)')").unwrap();
    session.batch_execute("SELECT tally.alter_rollup('by_day', 'SELECT date_trunc(''day'', at, ''UTC'') AS day, k, count(*) AS n, sum(v) AS total, max(v) AS top, min(v) AS least FROM events GROUP BY 1, 2')").unwrap();
    assert_equal(&mut session, "by_key", query);
    touch_recent(&mut session);
    assert_equal(&mut session, "by_key", query);
    session.batch_execute("CREATE TABLE truth AS TABLE events").unwrap();
    step_to(&mut session, "trash");
    assert_equal(&mut session, "by_key", &query.replace("events", "truth"));
    let partition = partition(&mut session);
    session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
    for _ in 0..2 {
        assert_equal(&mut session, "by_key", query);
        touch_recent(&mut session);
        step(&mut session);
    }
}

#[test]
fn undo_waits_for_a_detach_that_has_begun() {
    let database = cluster::database_without_workers();
    let mut session = retained_by_hand(&database);
    step_to(&mut session, "verified");
    step_inside_to(&mut session, "detaching");
    let partition = partition(&mut session);
    let [mut blocker, mut detacher, mut undoer] = [(); 3].map(|()| database.connect());
    blocker.batch_execute(&format!("BEGIN; LOCK TABLE {partition} IN SHARE UPDATE EXCLUSIVE MODE")).unwrap();
    let pids = [own_pid(&mut detacher), own_pid(&mut undoer)];
    thread::scope(|scope| {
        let detach = format!("ALTER TABLE events DETACH PARTITION {partition} CONCURRENTLY");
        let detached = scope.spawn(move || detacher.batch_execute(&detach));
        wait_until_blocked(&mut session, pids[0]);
        let undo = format!("SELECT tally.undo_retention('events', '{partition}')");
        let undone = scope.spawn(move || undoer.batch_execute(&undo));
        wait_until_blocked(&mut session, pids[1]);
        blocker.batch_execute("COMMIT").unwrap();
        detached.join().unwrap().unwrap();
        // Too early by a moment.
        if let Err(error) = undone.join().unwrap() {
            assert_eq!(error.code().unwrap().code(), "55000", "{error:?}");
        }
    });
    assert_kept(&mut session);
    touch_recent(&mut session);
    assert_kept(&mut session);
    step_to(&mut session, "trash");
    assert_kept(&mut session);
}

#[test]
fn tables_of_one_name_meet_in_the_trash() {
    let database = cluster::database();
    let mut session = database.connect();
    for schema in ["one", "two"] {
        session
            .batch_execute(&format!(
                "CREATE SCHEMA {schema}; SET search_path = {schema};
                 CREATE TABLE events (id bigserial, at timestamptz NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
                 CREATE INDEX ON events (at DESC);
                 BEGIN; SELECT tally.partition_by_time('events', '1 day', lateness => '3 days');
                 SELECT tally.set_partition_policy('events', lateness => '2 days', retention => '2 days');
                 SELECT tally.pause_job(job_id) FROM tally.jobs; COMMIT"
            ))
            .unwrap();
    }
    let mut partitions = vec![];
    for schema in ["one", "two"] {
        session.batch_execute(&format!("SET search_path = {schema}")).unwrap();
        let job = "SELECT job_id::bigint FROM tally.jobs WHERE kind = 'retention' AND object = 'events'::regclass";
        let job = number(&mut session, job);
        while state(&mut session).as_deref() != Some("trash") || partitions.len() + 1 > trash(&mut session).len() {
            session.query_one(&format!("SELECT tally.run_job({job})"), &[]).unwrap();
            super::detach_what_is_asked_for(&mut session);
        }
        partitions = trash(&mut session);
    }
    assert_eq!(partitions.len(), 2, "{partitions:?}");
    // Back again, though somebody has taken a name of an index meanwhile.
    session.batch_execute("SET search_path = ''").unwrap();
    for (schema, partition) in ["one", "two"].iter().zip(&partitions) {
        let index = text(
            &mut session,
            &format!("SELECT min(indexrelid::regclass::text) FROM pg_index WHERE indrelid = '{partition}'::regclass"),
        )
        .unwrap();
        let name = index.rsplit('.').next().unwrap();
        session.batch_execute(&format!("CREATE SEQUENCE {schema}.{name}")).unwrap();
        session.batch_execute(&format!("SELECT tally.undo_retention('{schema}.events', '{partition}')")).unwrap();
    }
    assert_eq!(trash(&mut session).len(), 0);
}

fn trash(session: &mut Client) -> Vec<String> {
    let query = "SELECT c.oid::regclass::text FROM pg_class c WHERE relkind = 'r' AND relnamespace = 'tally_trash'::regnamespace ORDER BY c.oid";
    session.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn a_snapshot_from_before_an_undo_counts_no_row_twice() {
    let database = cluster::database_without_workers();
    let mut session = retained_by_hand(&database);
    step_to(&mut session, "trash");
    // Groups that have to be made anew by whoever reads them.
    touch_recent(&mut session);
    let mut old = database.connect();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    let partition = partition(&mut session);
    session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
    for session in [&mut old, &mut session] {
        for rollup in ["by_day", "by_key"] {
            assert_equal(session, rollup, &format!("TABLE truth_{rollup}"));
        }
    }
}

#[test]
fn a_partition_that_was_away_by_hand_is_counted_again() {
    for undoes in [false, true] {
        let database = cluster::database_without_workers();
        let mut session = retained_by_hand(&database);
        step_to(&mut session, "verified");
        let partition = partition(&mut session);
        let bounds = format!("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = '{partition}'::regclass");
        let bounds = text(&mut session, &bounds).unwrap();
        session
            .batch_execute(&format!(
                "ALTER TABLE events DETACH PARTITION {partition}; ALTER TABLE events ATTACH PARTITION {partition} {bounds}"
            ))
            .unwrap();
        assert_kept(&mut session);
        if undoes {
            session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
            session.batch_execute("CALL tally.refresh('by_day')").unwrap();
        } else {
            step_to(&mut session, "trash");
        }
        assert_kept(&mut session);
        touch_recent(&mut session);
        session.batch_execute("CALL tally.refresh('by_day')").unwrap();
        assert_kept(&mut session);
    }
}

/// Since 17 partitions have the identity of the table, and a detached one has none.
#[test]
fn a_partition_comes_back_with_the_identity_of_the_table() {
    let database = cluster::database_without_workers();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (at timestamptz NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY, v int) PARTITION BY RANGE (at);
             BEGIN;
             SELECT tally.partition_by_time('events', '1 day', lateness => '5 days');
             SELECT tally.pause_job(job_id) FROM tally.jobs;
             COMMIT;
             INSERT INTO events (at, v) SELECT now() - i * interval '1 hour', i FROM generate_series(0, 5 * 24) i;
             SELECT tally.create_rollup('by_day', $$SELECT date_trunc('day', at, 'UTC') AS day, count(*) AS n, max(id) AS last FROM events GROUP BY 1$$)",
        )
        .unwrap();
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "trash");
    let partition = partition(&mut session);
    let rows = number(&mut session, "SELECT count(*) FROM events");
    session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
    step_to(&mut session, "kept");
    assert!(number(&mut session, "SELECT count(*) FROM events") > rows);
    // Through the table, into the one that has come back and into a new one.
    session
        .batch_execute(
            "SELECT tally.ensure_partitions('events', now() + interval '20 days', now() + interval '21 days');
             INSERT INTO events (at, v) SELECT min(at), 1 FROM events; INSERT INTO events (at, v) VALUES (now() + interval '20 days', 1)",
        )
        .unwrap();
    assert_eq!(number(&mut session, "SELECT count(DISTINCT id) FROM events"), 123);
    assert_eq!(number(&mut session, "SELECT max(id) FROM events"), 123);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_day')"), 0);
}

#[test]
fn a_partition_that_is_away_by_hand_comes_back_and_takes_changes() {
    for from in ["fenced", "counted", "verified"] {
        let database = cluster::database_without_workers();
        let mut session = retained_by_hand(&database);
        step_to(&mut session, from);
        let partition = partition(&mut session);
        session.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {partition}")).unwrap();
        session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
        for _ in 0..2 {
            assert_kept(&mut session);
            touch(&mut session);
            session.batch_execute("CALL tally.refresh('by_day')").unwrap();
        }
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.departures"), 0, "{from}");
        session.batch_execute("BEGIN; INSERT INTO events SELECT min(at), 1, 1 FROM events").unwrap();
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_day')"), 0, "{from}");
        session.batch_execute("ROLLBACK").unwrap();
        session
            .batch_execute("SELECT tally.resume_partitions('events'); SELECT tally.pause_partitions('events')")
            .unwrap();
        step_to(&mut session, "trash");
        assert_kept(&mut session);
    }
}

/// In his snapshot the groups of the partition are kept apart from its rows, so his changes of them would not show.
#[test]
fn nobody_changes_rows_of_which_he_reads_the_kept_groups() {
    for from in ["counted", "trash"] {
        let database = cluster::database_without_workers();
        let mut session = retained_by_hand(&database);
        step_to(&mut session, from);
        let partition = partition(&mut session);
        let delete = "DELETE FROM events WHERE at = (SELECT min(at) FROM events)";
        let [mut before, mut between] = [(); 2].map(|()| database.connect());
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class";
        before.batch_execute(begin).unwrap();
        session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
        between.batch_execute(begin).unwrap();
        // From the trash it comes back with its groups kept apart at first.
        for old in [&mut before, &mut between].into_iter().take(if from == "trash" { 2 } else { 1 }) {
            for _ in 0..4 {
                step(&mut session);
            }
            assert_refused(old, delete, "TL002", "is being removed", "tally.undo_retention('");
            old.batch_execute("ROLLBACK").unwrap();
        }
        between.batch_execute("ROLLBACK").unwrap();
        step_to(&mut session, "kept");
        session.batch_execute(&format!("BEGIN; {delete}")).unwrap();
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_day')"), 0);
        session.batch_execute("ROLLBACK").unwrap();
        assert_kept(&mut session);
    }
}

/// To let rows be changed again takes a lock against readers, in whose queue all who read the set would stand.
#[test]
fn nobody_waits_for_an_undo_beside_an_open_report() {
    for from in ["fenced", "verified"] {
        let database = cluster::database_without_workers();
        let mut session = retained_by_hand(&database);
        step_to(&mut session, from);
        let partition = partition(&mut session);
        let mut report = database.connect();
        report.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
        session.batch_execute("SET lock_timeout = '1s'").unwrap();
        session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
        for _ in 0..3 {
            step(&mut session);
        }
        assert_eq!(state(&mut session).as_deref(), Some("returning"), "{from}");
        report.batch_execute("COMMIT").unwrap();
        step_to(&mut session, "kept");
        assert_kept(&mut session);
        touch(&mut session);
    }
}

/// A table has one DETACH CONCURRENTLY at a time.
#[test]
fn somebodys_interrupted_detach_goes_first() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             BEGIN;
             SELECT tally.partition_by_time('events', '1 day', lateness => '5 days');
             SELECT tally.pause_job(job_id) FROM tally.jobs;
             COMMIT",
        )
        .unwrap();
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "verified");
    let newest = text(
        &mut session,
        "SELECT max(inhrelid::regclass::text COLLATE \"C\") FROM pg_inherits WHERE inhparent = 'events'::regclass",
    );
    let newest = newest.unwrap();
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; SELECT FROM events").unwrap();
    session.batch_execute("SET lock_timeout = '100ms'").unwrap();
    session.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {newest} CONCURRENTLY")).unwrap_err();
    reader.batch_execute("COMMIT; SELECT").unwrap();
    for _ in 0..3 {
        step(&mut session);
    }
    let note = text(&mut session, "SELECT note FROM tally.retirements").unwrap();
    assert!(note.contains("waits for the DETACH CONCURRENTLY of") && note.contains(&newest), "{note}");
    session.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {newest} FINALIZE")).unwrap();
    step_to(&mut session, "trash");
}
