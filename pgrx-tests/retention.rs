//! Retention: old partitions leave without anybody waiting, with no row that a rollup has not counted, and with a way back.

mod allowance;
mod copies;
mod crash;
mod locks;
mod model;
mod neighbours;
mod races;
mod reports;

use crate::oracle::{DEADLINE, number, text};
use postgres::Client;
use std::time::{Duration, Instant};
use tally_server_tests::cluster::{self, Cluster, Database};

/// A set with rows of nine days, a rollup by day and key and one without a time, as its owner `owner` has it. What is older than three
/// days is due as soon as `RETAIN` says so.
const SET: &str = "
    CREATE TABLE events (at timestamptz NOT NULL, k int, v int) PARTITION BY RANGE (at);
    BEGIN;
    SELECT tally.partition_by_time('events', '1 day', lateness => '9 days');
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;
    INSERT INTO events SELECT now() - i * interval '1 hour', i % 5, i FROM generate_series(0, 9 * 24) i;
    SELECT tally.create_rollup('by_day', $$SELECT date_trunc('day', at, 'UTC') AS day, k, count(*) AS n, sum(v) AS total, max(v) AS top
                                           FROM events GROUP BY 1, 2$$);
    SELECT tally.create_rollup('by_key', 'SELECT k, count(*) AS n, sum(v) AS total, max(v) AS top FROM events GROUP BY k');
    CREATE TABLE truth_by_day AS TABLE by_day;
    CREATE TABLE truth_by_key AS TABLE by_key;";

const RETAIN: &str = "SELECT tally.set_partition_policy('events', lateness => '3 days', retention => '3 days');";

/// Retention that is stepped by hand: its job is paused, `step` runs it.
pub const RETAIN_BY_HAND: &str = "
    BEGIN;
    SELECT tally.set_partition_policy('events', lateness => '3 days', retention => '3 days');
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;";

fn session_with_set(database: &Database<'_>) -> Client {
    let mut session = database.connect();
    session.batch_execute(SET).unwrap();
    session
}

/// Asks until the query answers true.
#[track_caller]
fn eventually(session: &mut Client, query: &str) {
    let begin = Instant::now();
    while begin.elapsed() < DEADLINE {
        if session.query_opt(query, &[]).unwrap().and_then(|row| row.get::<_, Option<bool>>(0)) == Some(true) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let rows = session
        .query("SELECT r::text FROM tally.retirements r UNION ALL SELECT s::text FROM tally.status s", &[])
        .unwrap();
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    panic!("not so: {query}\n{rows:#?}");
}

/// Takes one step by hand and executes what it asks for at top level.
fn step(session: &mut Client) -> Option<i64> {
    let done = step_inside(session);
    detach_what_is_asked_for(session);
    done
}

fn detach_what_is_asked_for(session: &mut Client) {
    let detach = text(
        session,
        "SELECT format('ALTER TABLE %s DETACH PARTITION %s CONCURRENTLY', r.parent, r.partition) FROM tally.retirements r
         JOIN pg_inherits i ON i.inhrelid = r.partition AND NOT i.inhdetachpending WHERE r.state = 'detaching'",
    );
    if let Some(detach) = detach {
        session.batch_execute(&detach).unwrap();
    }
}

/// Takes one step by hand, but for what is to be done at top level.
fn step_inside(session: &mut Client) -> Option<i64> {
    let job = number(session, "SELECT job_id::bigint FROM tally.jobs WHERE kind = 'retention'");
    session.query_one(&format!("SELECT tally.run_job({job})"), &[]).unwrap().get(0)
}

fn state(session: &mut Client) -> Option<String> {
    text(session, "SELECT state FROM tally.retirements ORDER BY retirement DESC LIMIT 1")
}

/// Steps until the newest record is in this state.
#[track_caller]
fn step_to(session: &mut Client, wanted: &str) {
    step_by(session, wanted, step);
}

/// The same, but for what is to be done at top level.
#[track_caller]
fn step_inside_to(session: &mut Client, wanted: &str) {
    step_by(session, wanted, step_inside);
}

/// A worker that looks into the database for a moment has a snapshot, too, and is waited for.
#[track_caller]
fn step_by(session: &mut Client, wanted: &str, step: fn(&mut Client) -> Option<i64>) {
    let begin = Instant::now();
    while state(session).as_deref() != Some(wanted) {
        assert!(begin.elapsed() < DEADLINE, "{:?} and not {wanted}", state(session));
        if step(session) != Some(1) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The rollups still say what they said before anything left.
#[track_caller]
fn assert_kept(session: &mut Client) {
    for rollup in ["by_day", "by_key"] {
        let difference = format!(
            "SELECT count(*) FROM ((TABLE {rollup} EXCEPT ALL TABLE truth_{rollup}) UNION ALL (TABLE truth_{rollup} EXCEPT ALL TABLE {rollup})) d"
        );
        assert_eq!(number(session, &difference), 0, "{rollup}");
        assert_eq!(number(session, &format!("SELECT count(*) FROM tally.verify('{rollup}')")), 0, "{rollup}");
    }
}

/// Changes rows of every group of `by_key` and changes them back, so that its groups are made anew from rows and retained groups.
fn touch(session: &mut Client) {
    for change in ["v + 1", "v - 1"] {
        session
            .batch_execute(&format!("UPDATE events SET v = {change} WHERE at >= now() - interval '2 days'"))
            .unwrap();
    }
}

#[track_caller]
fn assert_refused(session: &mut Client, statement: &str, sqlstate: &str, message: &str, hint: &str) {
    let error = session.batch_execute(statement).expect_err(statement);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{statement}: {error}"));
    assert_eq!(error.code().code(), sqlstate, "{statement}: {}", error.message());
    assert!(error.message().contains(message), "{statement}: {}", error.message());
    assert!(error.hint().unwrap_or_default().contains(hint), "{statement}: {:?}", error.hint());
}

#[test]
fn old_partitions_go_to_the_trash_and_the_rollups_keep_them() {
    let database = cluster::database();
    let mut session = session_with_set(&database);
    let due = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE inhparent = 'events'::regclass
               AND (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \\('(.*)'\\)$$))[1]::timestamptz <= now() - interval '3 days'";
    let expected = number(&mut session, due);
    assert!(expected >= 5);
    session.batch_execute(RETAIN).unwrap();
    eventually(&mut session, &format!("SELECT count(*) = {expected} FROM tally.retirements WHERE state = 'trash'"));
    assert_eq!(number(&mut session, due), 0);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events WHERE at < now() - interval '4 days'"), 0);
    assert_eq!(
        number(
            &mut session,
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'tally_trash'::regnamespace AND relkind = 'r'"
        ),
        expected
    );
    assert_kept(&mut session);
    touch(&mut session);
    assert_kept(&mut session);
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(&mut session);
    // When the grace is over they are dropped.
    session.batch_execute("UPDATE tally.retirements SET drop_after = now()").unwrap();
    session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
    eventually(&mut session, "SELECT NOT EXISTS (SELECT FROM tally.retirements)");
    eventually(
        &mut session,
        "SELECT count(*) = 0 FROM pg_class WHERE relnamespace = 'tally_trash'::regnamespace AND relkind = 'r'",
    );
    touch(&mut session);
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(&mut session);
}

#[test]
fn rollups_are_exact_after_each_step_and_for_older_snapshots() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    let mut old = database.connect();
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    for wanted in ["fenced", "counted", "verified"] {
        old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM events").unwrap();
        step(&mut session);
        assert_eq!(state(&mut session).as_deref(), Some(wanted));
        for session in [&mut session, &mut old] {
            assert_kept(session);
        }
        session.batch_execute("BEGIN").unwrap();
        session.batch_execute("UPDATE events SET v = v + 1 WHERE at >= now() - interval '3 days'").unwrap();
        for rollup in ["by_day", "by_key"] {
            assert_eq!(
                number(&mut session, &format!("SELECT count(*) FROM tally.verify('{rollup}')")),
                0,
                "{wanted} {rollup}"
            );
        }
        session.batch_execute("ROLLBACK").unwrap();
        old.batch_execute("COMMIT").unwrap();
    }
    step_to(&mut session, "trash");
    assert_kept(&mut session);
}

#[test]
fn a_fenced_partition_takes_no_changes_and_says_how_to_keep_it() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    // A writer that is still open goes first.
    let mut writer = database.connect();
    writer.batch_execute("BEGIN; INSERT INTO events SELECT min(at), 1, 1 FROM events").unwrap();
    step(&mut session);
    assert_eq!(state(&mut session), None);
    // Its next snapshot does not know of the fence.
    writer.batch_execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT").unwrap();
    step(&mut session);
    let partition = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
    for statement in [
        "INSERT INTO events SELECT min(at), 1, 1 FROM events".to_owned(),
        "DELETE FROM events WHERE at = (SELECT min(at) FROM events)".to_owned(),
        "UPDATE events SET v = 0 WHERE at = (SELECT min(at) FROM events)".to_owned(),
        format!("TRUNCATE {partition}"),
        format!("SET session_replication_role = replica; DELETE FROM {partition}"),
    ] {
        assert_refused(&mut session, &statement, "TL002", "is being removed by retention", "tally.undo_retention('");
    }
    session.batch_execute("RESET session_replication_role").unwrap();
    let insert = format!("INSERT INTO {partition} SELECT min(at), 1, 1 FROM {partition}");
    assert_refused(&mut writer, &insert, "TL002", "is being removed by retention", "tally.undo_retention('");
    writer.batch_execute("ROLLBACK").unwrap();
    let undo = format!("SELECT tally.undo_retention('events', '{partition}')");
    session.batch_execute(&undo).unwrap();
    session.batch_execute("UPDATE events SET v = v WHERE at = (SELECT min(at) FROM events)").unwrap();
    // It is spared from now on; the next one is not.
    step_to(&mut session, "counted");
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements WHERE state = 'kept'"), 1);
    assert_kept(&mut session);
}

#[test]
fn a_partition_comes_back_from_every_state() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    for from in ["fenced", "counted", "verified", "trash"] {
        step_to(&mut session, from);
        if from == "trash" {
            // The parent goes on living meanwhile.
            session.batch_execute("ALTER TABLE events ADD COLUMN note text DEFAULT 'none' NOT NULL").unwrap();
        }
        let partition =
            text(&mut session, "SELECT partition::text FROM tally.retirements WHERE state <> 'kept'").unwrap();
        session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
        assert_kept(&mut session);
        if from != "fenced" {
            assert_eq!(state(&mut session).as_deref(), Some("returning"));
            session.batch_execute("BEGIN; UPDATE events SET v = v + 1 WHERE at >= now() - interval '3 days'").unwrap();
            assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_key')"), 0);
            session.batch_execute("ROLLBACK").unwrap();
            step_to(&mut session, "kept");
        }
        assert_eq!(state(&mut session).as_deref(), Some("kept"), "{from}");
        touch(&mut session);
        assert_kept(&mut session);
        session.batch_execute("CALL tally.refresh('by_day')").unwrap();
        assert_kept(&mut session);
        // Rows of the partition are counted as those of any other.
        session.batch_execute("BEGIN; INSERT INTO events SELECT min(at), 1, 1 FROM events").unwrap();
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_day')"), 0);
        session
            .batch_execute(
                "ROLLBACK; SELECT tally.resume_partitions('events'); SELECT tally.pause_partitions('events')",
            )
            .unwrap();
    }
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.departures"), 0);
}

#[test]
fn a_partition_comes_back_to_a_rollup_that_does_not_know_it() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "trash");
    session
        .batch_execute("SELECT tally.create_rollup('by_value', 'SELECT v, count(*) AS n FROM events GROUP BY v')")
        .unwrap();
    let partition = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
    session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap();
    for _ in 0..2 {
        assert_kept(&mut session);
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_value')"), 0);
        assert_eq!(number(&mut session, "SELECT sum(n)::bigint FROM by_value"), 217);
        session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    }
}

#[test]
fn a_rollup_that_differs_from_its_rows_stops_retention() {
    let database = cluster::database();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    let damage = "UPDATE by_day_stored SET _rows = _rows + 1 WHERE day = (SELECT min(day) FROM by_day_stored)";
    session.batch_execute(damage).unwrap();
    step_to(&mut session, "mismatch");
    let note = text(&mut session, "SELECT note FROM tally.retirements").unwrap();
    assert!(note.starts_with("P10: groups differ from the rows of the partition: "), "{note}");
    step(&mut session);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements"), 1, "nothing else is begun");
    let trouble = "SELECT verdict || ' ' || left(reason, 3) FROM tally.partition_status";
    assert_eq!(text(&mut session, trouble).as_deref(), Some("critical P10"));
    // What the status says helps, said literally.
    follow_status(&mut session);
    eventually(&mut session, "SELECT EXISTS (SELECT FROM tally.retirements WHERE state = 'trash')");
    assert_eq!(text(&mut session, "SELECT verdict FROM tally.partition_status").as_deref(), Some("ok"));
    assert_kept(&mut session);
}

const CHECKED: &str = "
    SELECT tally.create_rollup('checked', $$
      SELECT date_trunc('day', at, 'UTC') AS day, k, count(*) AS n, sum(v) AS total, avg(v + 0.5) AS mean, max(v) AS top, bool_or(v > 3) AS large,
             tally.last(v, at) AS latest, tally.distinct_count(v) AS values, tally.hll_agg(v, 11, 5, 0, 1) AS sketch
        FROM events GROUP BY 1, 2$$);";

/// Also in a rollup that cannot take rows out of its groups again.
#[test]
fn every_column_that_can_be_compared_is_compared() {
    let damages = [
        "n = n + 1",
        "total = total - 1",
        "mean_sum = mean_sum + 1",
        "top = top + 1",
        "large = NOT large",
        "latest = latest + 1",
        "latest_at = latest_at + interval '1 second'",
        "values_sketch = tally.hll_add(values_sketch, tally.hll_hash_integer(-1))",
        "sketch = tally.hll_add(sketch, tally.hll_hash_integer(-1))",
        "values_sketch = NULL",
    ];
    for damage in damages {
        let database = cluster::database_without_workers();
        let mut session = session_with_set(&database);
        session.batch_execute(CHECKED).unwrap();
        session.batch_execute(RETAIN_BY_HAND).unwrap();
        let update =
            format!("UPDATE checked_stored SET {damage} WHERE day = (SELECT min(day) FROM checked_stored) AND k = 1");
        assert_eq!(session.execute(&update, &[]).unwrap(), 1, "{damage}");
        step_to(&mut session, "mismatch");
        let note = text(&mut session, "SELECT note FROM tally.retirements").unwrap();
        assert!(note.ends_with(r#": 1 of "public"."checked""#), "{damage}: {note}");
    }
}

/// A setting says in which form a sketch is stored.
#[test]
fn another_form_of_a_sketch_is_no_difference() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(CHECKED).unwrap();
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    let sizes = "SELECT sum(pg_column_size(sketch))::bigint FROM checked_stored";
    let before = number(&mut session, sizes);
    session
        .batch_execute(
            "SET tally.hll_max_sparse = 0; UPDATE checked_stored SET sketch = tally.hll_union(sketch, sketch);
             RESET tally.hll_max_sparse",
        )
        .unwrap();
    assert!(number(&mut session, sizes) > before, "all registers are stored");
    step_to(&mut session, "trash");
}

/// No NOTICE of something that is not there, which only the way it is done has brought about.
#[test]
fn undo_and_drop_say_nothing_unasked() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "trash");
    let statements =
        "SELECT tally.undo_retention('events', partition) FROM tally.retirements; CALL tally.run_due_jobs();
                      SELECT tally.drop_rollup('by_day'), tally.drop_rollup('by_key')";
    let psql = database.psql_command().args(["--quiet", "--command", statements]).output().expect("psql starts");
    assert!(psql.status.success());
    assert_eq!(String::from_utf8_lossy(&psql.stderr), "");
}

/// Executes what `tally.partition_status` says, one statement after the other.
fn follow_status(session: &mut Client) {
    let next = text(session, "SELECT next_sql FROM tally.partition_status").unwrap();
    for statement in next.split("; ") {
        session.batch_execute(statement).unwrap();
    }
}

#[test]
fn rows_that_came_to_the_trash_by_force_are_not_dropped() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "trash");
    let partition = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
    session
        .batch_execute(&format!(
            "ALTER TABLE {partition} DISABLE TRIGGER tally_fence; INSERT INTO {partition} SELECT min(at), 1, 1 FROM {partition};
             UPDATE tally.retirements SET drop_after = now()"
        ))
        .unwrap();
    step(&mut session);
    let note = text(&mut session, "SELECT note FROM tally.retirements WHERE state = 'mismatch'").unwrap();
    assert!(note.contains("1 of them not counted"), "{note}");
    // Not even when somebody lets retention go on.
    step(&mut session);
    session.batch_execute("SELECT tally.resume_partitions('events'); SELECT tally.pause_partitions('events')").unwrap();
    step_to(&mut session, "mismatch");
    assert!(number(&mut session, &format!("SELECT count(*) FROM {partition}")) > 0);
    // It comes back with the row, which is counted then.
    follow_status(&mut session);
    assert_eq!(text(&mut session, "SELECT verdict FROM tally.partition_status").as_deref(), Some("ok"));
    for _ in 0..2 {
        for rollup in ["by_day", "by_key"] {
            assert_eq!(number(&mut session, &format!("SELECT count(*) FROM tally.verify('{rollup}')")), 0);
        }
        assert_eq!(number(&mut session, "SELECT sum(n)::bigint FROM by_key"), 218);
        session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    }
}

#[test]
fn statements_by_hand_take_a_partition_out_of_its_hands() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    let partition = |session: &mut Client| {
        text(session, "SELECT partition::text FROM tally.retirements ORDER BY retirement DESC LIMIT 1").unwrap()
    };
    // Before it is counted nothing may take it away along the way.
    step_to(&mut session, "fenced");
    let first = partition(&mut session);
    assert_refused(
        &mut session,
        &format!("ALTER TABLE events DETACH PARTITION {first} CONCURRENTLY"),
        "55000",
        "would take rows from rollups",
        "without CONCURRENTLY",
    );
    // Nor while there may be snapshots that do not know what is kept of it.
    step_to(&mut session, "counted");
    assert_refused(
        &mut session,
        &format!("ALTER TABLE events DETACH PARTITION {first} CONCURRENTLY"),
        "55000",
        "is not ready to detach",
        "detaching",
    );
    // A plain DETACH, after it is counted: its groups are retained once, not twice.
    session.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {first}")).unwrap();
    assert_kept(&mut session);
    touch(&mut session);
    assert_kept(&mut session);
    step(&mut session);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements"), 0);
    session.batch_execute(&format!("DELETE FROM {first}")).unwrap();
    // DROP.
    step_to(&mut session, "verified");
    let second = partition(&mut session);
    session.batch_execute(&format!("DROP TABLE {second}")).unwrap();
    assert_kept(&mut session);
    touch(&mut session);
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(&mut session);
    step(&mut session);
    assert_eq!(number(&mut session, "SELECT cardinality(leaving)::bigint FROM tally.sources"), 0);
    // Out of the trash.
    step_to(&mut session, "trash");
    let third = partition(&mut session);
    session.batch_execute(&format!("ALTER TABLE {third} SET SCHEMA public")).unwrap();
    step(&mut session);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements WHERE state = 'trash'"), 0);
    assert_kept(&mut session);
}

/// Detached and not yet in the trash, or there already, somebody attaches it again and does not ask for it to be undone. A rollup that came
/// in between does not know its rows.
#[test]
fn a_partition_that_is_attached_by_hand_is_counted_once() {
    for (to_the_trash, with_new_rollup) in [(false, false), (false, true), (true, false), (true, true)] {
        println!("from the trash: {to_the_trash}, with a new rollup: {with_new_rollup}");
        let database = cluster::database_without_workers();
        let mut session = session_with_set(&database);
        session.batch_execute(RETAIN_BY_HAND).unwrap();
        step_to(&mut session, "verified");
        let name = "SELECT partition::text FROM tally.retirements";
        let partition = text(&mut session, name).unwrap();
        let bounds = format!("SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = '{partition}'::regclass");
        let bounds = text(&mut session, &bounds).unwrap();
        if to_the_trash {
            step_to(&mut session, "trash");
        } else {
            step_inside_to(&mut session, "detaching");
            detach_what_is_asked_for(&mut session);
        }
        if with_new_rollup {
            session
                .batch_execute("SELECT tally.create_rollup('new', 'SELECT k, count(*) AS n FROM events GROUP BY k')")
                .unwrap();
            session.batch_execute("SELECT tally.pause_job(job_id) FROM tally.jobs").unwrap();
        }
        let assert_all_kept = |session: &mut Client| {
            assert_kept(session);
            if with_new_rollup {
                assert_eq!(number(session, "SELECT count(*) FROM tally.verify('new')"), 0);
                assert_eq!(number(session, "SELECT sum(n)::bigint FROM new"), 217);
            }
        };
        let partition = text(&mut session, name).unwrap();
        session.batch_execute(&format!("ALTER TABLE events ATTACH PARTITION {partition} {bounds}")).unwrap();
        assert_all_kept(&mut session);
        touch(&mut session);
        assert_all_kept(&mut session);
        session.batch_execute("CALL tally.refresh('by_day')").unwrap();
        assert_all_kept(&mut session);
        // It is as old as it was.
        for _ in 0..2 {
            for _ in 0..30 {
                step(&mut session);
                assert_all_kept(&mut session);
            }
            touch(&mut session);
        }
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements WHERE state <> 'trash'"), 0);
        assert_eq!(number(&mut session, "SELECT count(*) FROM events WHERE at < now() - interval '4 days'"), 0);
    }
}

#[test]
fn a_set_that_feeds_no_rollup_is_retired_as_well() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (at timestamp NOT NULL, k int) PARTITION BY RANGE (at);
             SELECT tally.partition_by_time('events', '1 day', retention => '2 days', grace => '0', time_zone => 'Europe/Berlin',
                                            lateness => '2 days');
             CREATE TABLE old PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-01-02');
             CREATE TABLE oldest PARTITION OF events FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
             INSERT INTO events VALUES ('2025-05-05', 1), ('2026-01-01', 1);
             SELECT tally.resume_partitions('events')",
        )
        .unwrap();
    eventually(&mut session, "SELECT to_regclass('old') IS NULL AND to_regclass('tally_trash.old') IS NULL");
    eventually(&mut session, "SELECT to_regclass('oldest') IS NULL AND to_regclass('tally_trash.oldest') IS NULL");
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 0);
}

#[test]
fn an_interrupted_detach_is_ended_by_the_next_run() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "verified");
    // Holds a lock on the parent and no snapshot: DETACH has to wait for it, after its first commit.
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
    session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
    eventually(&mut session, "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)");
    let pid: i32 = reader.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let blockers = text(&mut session, "SELECT blockers FROM tally.partition_status").unwrap();
    assert!(blockers.contains(&format!("pid {pid} (")), "{blockers}");
    assert!(text(&mut session, "SELECT pending_since::text FROM tally.partition_status").is_some());
    let worker = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'tally job worker' AND datname = current_database() \
                  AND application_name LIKE 'tally retention%'";
    eventually(&mut session, &format!("SELECT EXISTS ({worker})"));
    session.batch_execute(&format!("SELECT pg_terminate_backend(pid) FROM ({worker}) w")).unwrap();
    eventually(
        &mut session,
        &format!("SELECT NOT EXISTS ({worker} AND pid IN (SELECT pid FROM pg_locks WHERE NOT granted))"),
    );
    assert_kept(&mut session);
    // Inserts elsewhere, and reads, go on.
    session.batch_execute("SET lock_timeout = '1s'; INSERT INTO events VALUES (now(), 1, 1); DELETE FROM events WHERE v = 1 AND at > now() - interval '1 minute'; RESET lock_timeout").unwrap();
    reader.batch_execute("COMMIT").unwrap();
    eventually(&mut session, "SELECT EXISTS (SELECT FROM tally.retirements WHERE state = 'trash')");
    eventually(&mut session, "SELECT NOT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)");
    assert_kept(&mut session);
}

#[test]
fn retention_waits_for_snapshots_that_do_not_know_what_is_retained() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    let mut old = database.connect();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "verified");
    for _ in 0..3 {
        assert_eq!(step(&mut session), Some(0));
        assert_eq!(state(&mut session).as_deref(), Some("verified"));
    }
    let note = text(&mut session, "SELECT note FROM tally.retirements").unwrap();
    let pid: i32 = old.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    assert!(note.contains(&format!("pid {pid} (")), "{note}");
    let blockers = text(&mut session, "SELECT blockers FROM tally.partition_status").unwrap();
    assert!(blockers.starts_with(&format!("pid {pid} (")), "{blockers}");
    assert_kept(&mut old);
    // Not for ever.
    session.batch_execute("SELECT tally.set_partition_policy('events', detach_deadline => '0'); SELECT tally.pause_partitions('events')").unwrap();
    step_inside_to(&mut session, "detaching");
    old.batch_execute("COMMIT").unwrap();
}

#[test]
fn the_plan_does_what_the_job_does() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    let lines = session.query("SELECT action, sql, top_level_only FROM tally.plan_retention('events')", &[]).unwrap();
    let actions: Vec<String> = lines.iter().map(|row| row.get(0)).collect();
    assert_eq!(actions[..7], ["fence", "count", "verify", "announce", "detach", "discard", "drop"]);
    assert_eq!(actions.len() % 7, 0);
    assert!(lines.iter().all(|row| row.get::<_, bool>(2) == (row.get::<_, String>(0) == "detach")));
    for line in &lines[..6] {
        session.batch_execute(line.get(1)).unwrap();
    }
    assert_eq!(state(&mut session).as_deref(), Some("trash"));
    assert_kept(&mut session);
    let rest = session.query("SELECT action FROM tally.plan_retention('events')", &[]).unwrap();
    assert_eq!(rest.len(), lines.len() - 6);
}

#[test]
fn what_undo_and_unregister_refuse_they_say_in_words() {
    let database = cluster::database_without_workers();
    let mut session = session_with_set(&database);
    session.batch_execute("CREATE TABLE plain (at timestamptz NOT NULL)").unwrap();
    let newest = text(
        &mut session,
        "SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'events'::regclass",
    )
    .unwrap();
    let undo = format!("SELECT tally.undo_retention('events', '{newest}')");
    assert_refused(&mut session, &undo, "42704", "retention is not removing", "tally.retirements");
    assert_refused(
        &mut session,
        "SELECT tally.undo_retention('plain', 'plain')",
        "42704",
        "has no partition policy",
        "partition_by_time",
    );
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(&mut session, "trash");
    assert_refused(
        &mut session,
        "SELECT tally.unregister_partitions('events')",
        "55000",
        "is being removed by retention",
        "tally.undo_retention",
    );
    // A table has taken the name meanwhile.
    let (partition, name) = (
        text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap(),
        text(&mut session, "SELECT table_name::text FROM tally.retirements").unwrap(),
    );
    session.batch_execute(&format!("CREATE TABLE {name} ()")).unwrap();
    let undo = format!("SELECT tally.undo_retention('events', '{partition}')");
    assert_refused(&mut session, &undo, "42P07", "exists", "Rename that table");
    session.batch_execute(&format!("DROP TABLE {name}; {undo}")).unwrap();
    assert_kept(&mut session);
}
