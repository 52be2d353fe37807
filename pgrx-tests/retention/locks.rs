//! Which locks retention and premake hold on the tables of users, read from `pg_locks`; and what that means for who reads and writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use postgres::Client;
use postgres::error::SqlState;
use tally_server_tests::cluster::{self, Cluster, Database};

use super::{RETAIN, assert_kept, eventually, number, session_with_set, state, step_inside, step_inside_to, text};
use crate::oracle::{StopAtEnd, own_pid, wait_until, wait_until_blocked};

/// A set that refers to `customers` and that `notes` refer to, with old partitions.
pub const CONNECTED: &str = "
    CREATE TABLE customers (id bigint PRIMARY KEY);
    CREATE TABLE events (id bigint, at timestamptz, customer bigint REFERENCES customers, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE notes (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES events);
    BEGIN;
    SELECT tally.partition_by_time('events', '1 day', lateness => '5 days');
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;
    INSERT INTO customers VALUES (1);
    INSERT INTO events SELECT i, now() - i * interval '1 hour', 1 FROM generate_series(0, 5 * 24) i;
    SELECT tally.create_rollup('by_customer', 'SELECT customer, count(*) AS n FROM events GROUP BY 1');";

/// The set of [`CONNECTED`], with what is older than two days due; its jobs are run by hand.
pub fn connected_session(database: &Database<'_>) -> Client {
    let mut session = database.connect();
    session.batch_execute(CONNECTED).unwrap();
    session
        .batch_execute(
            "BEGIN; SELECT tally.set_partition_policy('events', lateness => '2 days', retention => '2 days');
             SELECT tally.pause_job(job_id) FROM tally.jobs; COMMIT",
        )
        .unwrap();
    session
}

/// The strongest lock of a process on each of these tables and on any partition but the leaving one, `waits for ..` if it has not got it.
/// ACCESS SHARE is left out: whoever looks something up takes it, and it stops nobody but ACCESS EXCLUSIVE.
fn locks(observer: &mut Client, pid: i32, leaving: &str) -> BTreeMap<String, String> {
    let modes = "array_position(ARRAY['AccessShareLock', 'RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock',
                                      'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'], mode)";
    let query = format!(
        "SELECT t.name, (array_agg(CASE WHEN granted THEN mode ELSE 'waits for ' || mode END ORDER BY {modes} DESC))[1]
         FROM pg_locks l CROSS JOIN LATERAL (SELECT CASE WHEN l.relation = '{leaving}'::regclass THEN 'partition'
            WHEN l.relation::regclass::text IN ('events', 'customers', 'notes') THEN l.relation::regclass::text
            WHEN EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND c.relkind = 'r' WHERE i.inhrelid = l.relation) THEN 'others' END) AS t (name)
         WHERE l.pid = $1 AND l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND t.name IS NOT NULL AND l.mode <> 'AccessShareLock' GROUP BY 1"
    );
    observer.query(&query, &[&pid]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[track_caller]
fn assert_locks(what: &str, found: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(table, mode)| ((*table).to_owned(), (*mode).to_owned())).collect();
    assert_eq!(found, &expected, "{what}");
}

/// What a statement of a transaction has locked when it is done.
fn locks_of(session: &mut Client, observer: &mut Client, statement: &str, leaving: &str) -> BTreeMap<String, String> {
    session.batch_execute(&format!("BEGIN; {statement}")).unwrap();
    let pid = own_pid(session);
    let found = locks(observer, pid, leaving);
    session.batch_execute("ROLLBACK").unwrap();
    found
}

#[test]
fn each_step_takes_the_locks_of_the_table_and_no_others() {
    const UPDATE: &str = "ShareUpdateExclusiveLock";
    const ROW: &str = "ShareRowExclusiveLock";
    const ALL: &str = "AccessExclusiveLock";
    let database = cluster::database_without_workers();
    let mut session = connected_session(&database);
    let [mut observer, mut other] = [(); 2].map(|()| database.connect());
    let partition = text(&mut session, "SELECT min(inhrelid::regclass::text) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'events'::regclass").unwrap();
    let job = number(&mut session, "SELECT job_id::bigint FROM tally.jobs WHERE kind = 'retention'");
    let step = format!("SELECT tally.run_job({job})");
    let mut found = |session: &mut Client, statement: &str| locks_of(session, &mut observer, statement, &partition);

    let premake = "SELECT tally.ensure_partitions('events', now(), now() + interval '12 days')";
    let like = found(&mut session, "CREATE TABLE next (LIKE events INCLUDING ALL EXCLUDING IDENTITY)");
    assert_locks("LIKE", &like, &[]);
    let made = found(&mut session, premake);
    assert_locks("premake", &made, &[("events", UPDATE), ("customers", ROW), ("notes", ROW)]);

    let fence = found(&mut session, &step);
    assert_locks("fence", &fence, &[("partition", ROW)]);
    step_inside(&mut session);
    for state in ["count", "verify"] {
        assert_locks(state, &found(&mut session, &step), &[]);
        step_inside(&mut session);
    }
    assert_locks("announce", &found(&mut session, &step), &[]);
    step_inside_to(&mut session, "detaching");

    // DETACH CONCURRENTLY: first it waits for a transaction that uses the table, then for one that uses a table that refers to it.
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
    other.batch_execute("BEGIN; SELECT count(*) FROM notes").unwrap();
    let mut detacher = database.connect();
    let pid = own_pid(&mut detacher);
    thread::scope(|scope| {
        let detach = format!("ALTER TABLE events DETACH PARTITION {partition} CONCURRENTLY");
        let detached = scope.spawn(move || detacher.batch_execute(&detach));
        wait_until(&mut session, "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)");
        wait_until_blocked(&mut session, pid);
        assert_locks("DETACH CONCURRENTLY, waiting", &locks(&mut session, pid, &partition), &[]);
        reader.batch_execute("COMMIT").unwrap();
        let relations =
            format!("SELECT count(*) > 0 FROM pg_locks WHERE pid = {pid} AND NOT granted AND locktype = 'relation'");
        wait_until(&mut session, &relations);
        let waits = format!("waits for {ALL}");
        assert_locks(
            "DETACH CONCURRENTLY, second phase",
            &locks(&mut session, pid, &partition),
            &[("events", UPDATE), ("partition", ALL), ("customers", ROW), ("notes", &waits)],
        );
        // Interrupted there, it is for FINALIZE to end it.
        session.batch_execute(&format!("SELECT pg_cancel_backend({pid})")).unwrap();
        assert_eq!(detached.join().unwrap().unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    });
    other.batch_execute("COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    let mut finisher = database.connect();
    let pid = own_pid(&mut finisher);
    thread::scope(|scope| {
        let finalize = format!("ALTER TABLE events DETACH PARTITION {partition} FINALIZE");
        let finalized = scope.spawn(move || finisher.batch_execute(&finalize));
        wait_until_blocked(&mut session, pid);
        let found = locks(&mut session, pid, &partition);
        assert_locks("FINALIZE, waiting for a snapshot", &found, &[("events", UPDATE), ("partition", ALL)]);
        other.batch_execute("COMMIT").unwrap();
        finalized.join().unwrap().unwrap();
    });

    assert_locks("SET SCHEMA", &found(&mut session, &step), &[("partition", ALL)]);
    step_inside(&mut session);
    assert_eq!(state(&mut session).as_deref(), Some("trash"));
    let trash = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
    let undo = format!("SELECT tally.undo_retention('events', '{trash}')");
    let undone = locks_of(&mut session, &mut observer, &undo, &trash);
    assert_locks("undo", &undone, &[("events", UPDATE), ("partition", ALL), ("customers", ALL), ("notes", ROW)]);
    session.batch_execute("UPDATE tally.retirements SET drop_after = now()").unwrap();
    let unlinked = locks_of(&mut session, &mut observer, &step, &trash);
    assert_locks("DROP of a foreign key", &unlinked, &[("partition", ALL), ("customers", ALL)]);
    step_inside(&mut session);
    let dropped = locks_of(&mut session, &mut observer, &step, &trash);
    assert_locks("DROP", &dropped, &[("partition", ALL)]);
}

/// Who reads and writes the set, and waits for no lock longer than 100 ms. Counts what they did, and what failed.
struct Traffic<'a> {
    database: &'a Database<'a>,
    stop: AtomicBool,
    done: AtomicU64,
    timeouts: AtomicU64,
}

impl Traffic<'_> {
    /// Four clients that insert and two that read, while `work` runs. Answers how many statements ran, and how many waited for too long.
    fn beside(database: &Database<'_>, work: impl FnOnce(&mut Client)) -> (u64, u64) {
        let traffic =
            Traffic { database, stop: AtomicBool::new(false), done: AtomicU64::new(0), timeouts: AtomicU64::new(0) };
        let mut session = database.connect();
        thread::scope(|scope| {
            let stop = StopAtEnd(&traffic.stop);
            for _ in 0..4 {
                scope.spawn(|| traffic.repeat("INSERT INTO events VALUES (now(), 1, 1000)"));
            }
            for query in ["SELECT count(*) FROM events WHERE at > now() - interval '1 day'", "TABLE by_key"] {
                scope.spawn(|| traffic.repeat(query));
            }
            work(&mut session);
            drop(stop);
        });
        (traffic.done.into_inner(), traffic.timeouts.into_inner())
    }

    fn repeat(&self, statement: &str) {
        let mut session = self.database.connect();
        session.batch_execute("SET lock_timeout = '100ms'").unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            match session.batch_execute(statement) {
                Ok(()) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    self.timeouts.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => panic!("{statement}: {error:?}"),
            }
        }
    }
}

#[test]
fn nobody_waits_for_retention_and_premake_beside_an_open_report() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut report = database.connect();
    drop(session_with_set(&database));
    let old = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE inhparent = 'events'::regclass
               AND (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \\('(.*)'\\)$$))[1]::timestamptz <= now() - interval '3 days'";
    let (done, timeouts) = Traffic::beside(&database, |session| {
        report.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
        session.batch_execute(RETAIN).unwrap();
        eventually(session, "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)");
        let made = number(session, "SELECT tally.ensure_partitions('events', now(), now() + interval '20 days')");
        assert!(made > 5);
        report.batch_execute("COMMIT; BEGIN; SELECT count(*) FROM events; COMMIT").unwrap();
        eventually(session, &format!("SELECT n = 0 FROM ({old}) d (n)"));
        eventually(session, "SELECT bool_and(state = 'trash') FROM tally.retirements");
        session
            .batch_execute("UPDATE tally.retirements SET drop_after = now(); SELECT tally.resume_partitions('events')")
            .unwrap();
        eventually(session, "SELECT NOT EXISTS (SELECT FROM tally.retirements)");
    });
    println!("{done} statements, {timeouts} waited for more than 100 ms");
    assert!(done > 100, "only {done} statements");
    assert_eq!(timeouts, 0);
    let mut session = database.connect();
    session.batch_execute("DELETE FROM events WHERE v = 1000").unwrap();
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(&mut session);

    // The same with what PostgreSQL offers by itself, to show that this test can fail.
    session.batch_execute("SELECT tally.pause_partitions('events')").unwrap();
    let (_, timeouts) = Traffic::beside(&database, |session| {
        report.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
        let first =
            text(session, "SELECT min(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'events'::regclass")
                .unwrap();
        session.batch_execute("SET lock_timeout = '1s'").unwrap();
        let detach = session.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {first}"));
        assert_eq!(detach.unwrap_err().code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
        report.batch_execute("COMMIT").unwrap();
    });
    println!("plain DETACH: {timeouts} waited for more than 100 ms");
    assert!(timeouts > 0);
}
