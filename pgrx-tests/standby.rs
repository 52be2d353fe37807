//! A hot standby answers from the rollups what the defining queries would, in every snapshot, and counts on when it is promoted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt, SeedableRng};
use tally_server_tests::cluster::{Cluster, Database};

use crate::oracle::{StopAtEnd, assert_equal, assert_equal_now_and_refreshed, assert_refused, wait_until};

const SCHEMA: &str = "
    CREATE TABLE events (writer int NOT NULL, event_time timestamptz NOT NULL, tenant int, amount numeric, device bigint)
      PARTITION BY RANGE (event_time);
    CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-03-30Z') TO ('2024-03-31Z');
    CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM ('2024-03-31Z') TO ('2024-04-01Z');
    INSERT INTO events SELECT i % 4, '2024-03-30Z'::timestamptz + make_interval(mins => 13 * i), nullif(i % 5, 0), i, i % 17
      FROM generate_series(1, 200) AS i;";

const ROLLUPS: [(&str, &str); 3] = [
    (
        "by_hour",
        "SELECT date_trunc('hour', event_time, 'Europe/Berlin') AS bucket, tenant, count(*) AS n, sum(amount) AS total \
         FROM events GROUP BY 1, 2",
    ),
    (
        "by_tenant",
        "SELECT tenant, count(*) FILTER (WHERE amount > 9) AS large, avg(amount) AS average, min(amount) AS least, \
           tally.distinct_count(device) AS devices FROM events GROUP BY tenant",
    ),
    ("by_writer", "SELECT writer, max(event_time) AS last, stddev(amount)::text AS spread FROM events GROUP BY writer"),
];

/// Those who keep a transaction open change rows of their own, so that nobody waits for them.
const OPEN: i32 = 2;
const PREPARED: i32 = 3;
const WRITERS: [i32; 2] = [0, 1];

fn set_up(database: &Database) -> Client {
    let mut session = database.connect();
    session.batch_execute(SCHEMA).unwrap();
    for (rollup, query) in ROLLUPS {
        session.execute("SELECT tally.create_rollup($1, $2, '1 second')", &[&rollup, &query]).unwrap();
    }
    session
}

/// Rows that are counted already, changed, and new ones.
fn change_all(session: &mut Client, writer: i32) {
    session
        .batch_execute(&format!(
            "INSERT INTO events VALUES ({writer}, '2024-03-30 05:00Z', 1, 100, 1), ({writer}, '2024-03-31 05:00Z', NULL, 1, 2); \
             UPDATE events SET amount = amount + 1, tenant = 4 WHERE writer = {writer} AND device % 3 = 0; \
             DELETE FROM events WHERE writer = {writer} AND device % 3 = 1"
        ))
        .unwrap();
}

/// Writes until it is stopped or the server is gone.
fn write(session: &mut Client, writer: i32, rng: &mut StdRng, stopped: &AtomicBool) {
    let mine = format!("writer = {writer} AND device = ");
    while !stopped.load(Ordering::Relaxed) {
        let device = rng.random_range(0..17);
        let minute = rng.random_range(0..60);
        let insert = format!(
            "INSERT INTO events SELECT {writer}, '2024-03-31 0{}:{minute:02}Z', i % 3, i, {device} FROM generate_series(1, 5) AS i",
            device % 9
        );
        let change = [
            format!("UPDATE events SET amount = amount * 2 % 1000, tenant = {} WHERE {mine}{device}", device % 4),
            format!("UPDATE events SET event_time = '2024-03-30 23:{minute:02}Z' WHERE {mine}{device}"),
            format!("DELETE FROM events WHERE {mine}{device}"),
            format!(
                "BEGIN; {insert}; SAVEPOINT s; DELETE FROM events WHERE writer = {writer}; ROLLBACK TO s; {insert}; COMMIT"
            ),
            format!("BEGIN; DELETE FROM events WHERE writer = {writer}; {insert}; ROLLBACK"),
        ];
        let statement = if rng.random_bool(0.5) { &insert } else { change.choose(rng).expect("there are some") };
        if session.batch_execute(statement).is_err() {
            assert!(session.is_closed(), "{statement}");
            return;
        }
    }
}

fn refresh(session: &mut Client, stopped: &AtomicBool) {
    for (rollup, _) in ROLLUPS.iter().cycle().take_while(|_| !stopped.load(Ordering::Relaxed)) {
        session.batch_execute(&format!("CALL tally.refresh('{rollup}')")).unwrap();
    }
}

#[track_caller]
fn assert_all_equal(session: &mut Client) {
    for (rollup, query) in ROLLUPS {
        assert_equal(session, rollup, query);
    }
}

fn contents(session: &mut Client) -> Vec<String> {
    let all = ROLLUPS.map(|(rollup, _)| format!("SELECT '{rollup}' || r::text AS row FROM {rollup} AS r"));
    let rows = session.query(&format!("{} ORDER BY row", all.join(" UNION ALL ")), &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn counted(session: &mut Client) -> i64 {
    session.query_one("SELECT next_tag FROM tally.sources", &[]).unwrap().get(0)
}

/// Returns when the standby knows of another refresh.
fn wait_for_refreshes(observer: &mut Client, number: u32) {
    for _ in 0..number {
        let before = counted(observer);
        wait_until(observer, &format!("SELECT next_tag <> {before} FROM tally.sources"));
    }
}

/// Returns when the standby knows of so many more refreshes, or after some seconds: what it replays may have to wait for a snapshot of
/// the caller's.
fn wait_a_while_for_refreshes(observer: &mut Client, number: u32) {
    let begin = Instant::now();
    for _ in 0..number {
        let before = counted(observer);
        while counted(observer) == before && begin.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Returns when the standby has done all that the primary has done by now.
pub fn catch_up(primary: &mut Client, standby: &mut Client) {
    let written: String = primary.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).unwrap().get(0);
    wait_until(standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{written}'"));
}

/// A snapshot of the standby stays what it is while refreshes come in.
fn read_through_refreshes(standby: &Cluster, database: &str) {
    let (mut reader, mut observer) = (standby.connect(database), standby.connect(database));
    for _ in 0..4 {
        reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
        let before = contents(&mut reader);
        assert_all_equal(&mut reader);
        for _ in 0..2 {
            wait_a_while_for_refreshes(&mut observer, 3);
            assert_all_equal(&mut observer);
            assert_all_equal(&mut reader);
        }
        assert_eq!(contents(&mut reader), before);
        reader.batch_execute("COMMIT").unwrap();
        wait_for_refreshes(&mut observer, 1);
        assert_all_equal(&mut reader);
    }
}

#[test]
fn reads_on_a_standby_equal_in_every_snapshot() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    // What autovacuum gives back to the file system it locks, and the standby would wait for its readers.
    let primary = Cluster::start(&[("autovacuum", "off")]);
    let database = primary.database();
    let mut session = set_up(&database);
    // What is open keeps the primary from cleaning up what the readers of the standby may see, so that nobody waits for them.
    session.batch_execute("BEGIN").unwrap();
    change_all(&mut session, PREPARED);
    session.batch_execute("PREPARE TRANSACTION 'prepared'").unwrap();
    let mut open = database.connect();
    open.batch_execute("BEGIN").unwrap();
    change_all(&mut open, OPEN);
    // A worker whose transaction is older would be in the first snapshots of the readers, and keep nothing once it has ended.
    let oldest = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint = \
                  (SELECT min(transaction::text::bigint) FROM pg_prepared_xacts)";
    wait_until(&mut session, oldest);
    let standby = primary.standby(&[("max_standby_streaming_delay", "-1")]);
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = StopAtEnd(&stopped);
        for writer in WRITERS {
            let (mut session, mut rng, stopped) = (database.connect(), StdRng::seed_from_u64(rng.next_u64()), &stopped);
            scope.spawn(move || write(&mut session, writer, &mut rng, stopped));
        }
        scope.spawn(|| refresh(&mut database.connect(), &stopped));
        let readers = [(); 2].map(|()| scope.spawn(|| read_through_refreshes(&standby, database.name())));
        readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
        // The snapshot is older than both commits.
        let mut old = standby.connect(database.name());
        old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT").unwrap();
        session.batch_execute("COMMIT PREPARED 'prepared'").unwrap();
        open.batch_execute("COMMIT").unwrap();
        session.batch_execute("CALL tally.refresh('by_hour')").unwrap();
        for _ in 0..5 {
            assert_all_equal(&mut old);
            assert_all_equal(&mut standby.connect(database.name()));
        }
        drop(stop);
    });
    let mut reader = standby.connect(database.name());
    for end in ["SELECT", "CALL tally.refresh('by_hour')"] {
        session.batch_execute(end).unwrap();
        catch_up(&mut session, &mut reader);
        assert_all_equal(&mut reader);
        assert_eq!(contents(&mut reader), contents(&mut session));
    }
    for (rollup, _) in ROLLUPS {
        let differences = reader.query(&format!("SELECT * FROM tally.verify('{rollup}')"), &[]).unwrap();
        assert!(differences.is_empty(), "{differences:?}");
    }
    assert_all_equal(&mut reader);
}

#[test]
fn status_is_readable_on_a_standby_and_takes_no_transaction_id() {
    let primary = Cluster::start(&[]);
    let database = primary.database();
    let mut session = set_up(&database);
    let standby = primary.standby(&[]);
    let mut reader = standby.connect(database.name());
    for view in ["tally.status", "tally.runs", "tally.partition_status", "tally.rollup_status"] {
        let read = format!("SELECT * FROM {view}");
        reader.query(&read, &[]).unwrap_or_else(|error| panic!("{view}: {error:?}"));
        // With an id the same transaction could not refresh.
        session.batch_execute(&format!("BEGIN; {read}; CALL tally.refresh('by_hour'); COMMIT")).unwrap();
    }
}

#[test]
fn what_writes_is_refused_on_a_standby() {
    let primary = Cluster::start(&[]);
    let database = primary.database();
    set_up(&database);
    let standby = primary.standby(&[]);
    let mut reader = standby.connect(database.name());
    for statement in [
        "CALL tally.refresh('by_hour')",
        "SELECT tally.create_rollup('more', 'SELECT tenant, count(*) AS n FROM events GROUP BY 1')",
        "SELECT tally.drop_rollup('by_hour')",
        "CALL tally.run_due_jobs()",
    ] {
        assert_refused(&mut reader, statement, "25006", "", "");
    }
    assert_all_equal(&mut reader);
}

#[test]
fn promoted_standby_goes_on_counting() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let primary = Cluster::start(&[]);
    let database = primary.database();
    let mut session = set_up(&database);
    let standby = primary.standby(&[]);
    session.batch_execute("BEGIN").unwrap();
    change_all(&mut session, PREPARED);
    session.batch_execute("PREPARE TRANSACTION 'prepared'").unwrap();
    let mut open = database.connect();
    open.batch_execute("BEGIN").unwrap();
    change_all(&mut open, OPEN);
    let mut observer = standby.connect(database.name());
    thread::scope(|scope| {
        for writer in WRITERS {
            let (mut session, mut rng) = (database.connect(), StdRng::seed_from_u64(seed.wrapping_add(writer as u64)));
            scope.spawn(move || write(&mut session, writer, &mut rng, &AtomicBool::new(false)));
        }
        wait_for_refreshes(&mut observer, 2);
        primary.kill_server();
    });
    wait_until(&mut observer, "SELECT pg_promote()");
    // By a worker, which has started by itself.
    wait_for_refreshes_after(&mut observer, "INSERT INTO events VALUES (1, '2024-03-30 05:00Z', 1, 100, 1)");
    assert_all_equal(&mut observer);
    for statement in [
        "UPDATE events SET amount = 3 WHERE writer = 2",
        "COMMIT PREPARED 'prepared'",
        "DELETE FROM events WHERE tenant = 1",
    ] {
        observer.batch_execute(statement).unwrap();
        for (rollup, query) in ROLLUPS {
            assert_equal_now_and_refreshed(&mut observer, rollup, "events", query);
        }
        change_all(&mut observer, OPEN);
    }
    assert_all_equal(&mut observer);
}

fn wait_for_refreshes_after(session: &mut Client, statement: &str) {
    let before = counted(session);
    session.batch_execute(statement).unwrap();
    wait_until(session, &format!("SELECT next_tag > {before} FROM tally.sources"));
}
