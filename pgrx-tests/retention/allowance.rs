//! A table that foreign keys connect to a set and that is never free, because short transactions overlap: jobs stand in its queue for as long as
//! tally.lock_allowance says, and no longer; the status says so, and which statement waits instead of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;
use tally_server_tests::cluster::{Cluster, Database};

use super::locks::{CONNECTED, connected_session};
use super::{DEADLINE, eventually, follow_status, number, state, step_inside, step_inside_to, step_to, text};
use crate::oracle::{StopAtEnd, own_pid};

/// In milliseconds: below the second from which on a transaction is no matter of chance, and so much longer than a job waits that they hardly ever all end
/// meanwhile. Not the same, so that they do not go on in step after they have waited together.
const LENGTHS: [u64; 5] = [430, 470, 510, 560, 610];

/// Writes to `customers` in one transaction after the other.
fn overlap(database: &Database<'_>, stop: &AtomicBool, length: Duration) {
    let mut session = database.connect();
    while !stop.load(Ordering::Relaxed) {
        session.batch_execute(&format!("BEGIN; {INSERT}")).unwrap();
        thread::sleep(length);
        session.batch_execute("COMMIT").unwrap();
    }
}

/// A session that writes to `customers` all the time. Answers how long it has waited for locks: only that is seen by their timeout, and not
/// what a busy machine takes.
fn write(database: &Database<'_>, stop: &AtomicBool) -> Duration {
    const STEP: Duration = Duration::from_millis(20);
    let mut session = database.connect();
    session.batch_execute("SET lock_timeout = '20ms'").unwrap();
    let mut waited = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        match session.batch_execute(INSERT) {
            Ok(()) => thread::sleep(Duration::from_millis(1)),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => waited += STEP,
            Err(error) => panic!("{error:?}"),
        }
    }
    waited
}

const INSERT: &str = "INSERT INTO customers VALUES (nextval('ids'))";

/// Does the work while `customers` is never free; answers how long a writer has waited.
fn beside_overlap(database: &Database<'_>, work: impl FnOnce()) -> Duration {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = StopAtEnd(&stop);
        for length in LENGTHS {
            let stop = &stop;
            scope.spawn(move || overlap(database, stop, Duration::from_millis(length)));
        }
        let writer = scope.spawn(|| write(database, &stop));
        let mut observer = database.connect();
        let all = "SELECT count(*) >= 3 FROM pg_locks WHERE relation = 'customers'::regclass AND mode = 'RowExclusiveLock' AND granted";
        eventually(&mut observer, all);
        work();
        drop(end);
        writer.join().unwrap()
    })
}

const VERDICT: &str = "SELECT verdict || coalesce(' ' || left(reason, 3), '') FROM tally.partition_status";

#[track_caller]
fn assert_put_off(session: &mut Client, next_sql: &str) {
    assert_eq!(text(session, VERDICT).as_deref(), Some("warning P11"));
    let row = session.query_one("SELECT reason, next_sql, blockers FROM tally.partition_status", &[]).unwrap();
    let [reason, next, blockers] = [0, 1, 2].map(|column| row.get::<_, Option<String>>(column).unwrap_or_default());
    assert!(reason.contains("customers is never free, and tally.lock_allowance for it is used up"), "{reason}");
    assert!(next.starts_with(next_sql), "{next}");
    assert!(blockers.contains("on public.customers"), "{blockers}");
}

/// Steps until a lock is what is waited for, and not somebody's snapshot of a moment.
#[track_caller]
fn step_to_put_off(session: &mut Client, next_sql: &str) {
    let begin = Instant::now();
    while text(session, VERDICT).as_deref() != Some("warning P11") {
        assert!(begin.elapsed() < DEADLINE, "{:?}", text(session, "SELECT note FROM tally.retirements"));
        assert_eq!(step_inside(session), Some(0));
    }
    assert_put_off(session, next_sql);
}

#[test]
fn premake_waits_no_longer_than_its_allowance_and_goes_on_when_it_can() {
    const ALLOWANCE: Duration = Duration::from_millis(80);
    let cluster =
        Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "1s"), ("tally.lock_allowance", "80ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(CONNECTED).unwrap();
    session.batch_execute("DROP TABLE notes; CREATE SEQUENCE ids START 10").unwrap();
    let drop_last = "DO $$ DECLARE last text := (SELECT max(inhrelid::regclass::text) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
         WHERE inhparent = 'events'::regclass); BEGIN EXECUTE format('DROP TABLE %s', last); END $$";
    let resume = "SELECT tally.resume_job(job_id) FROM tally.jobs WHERE kind = 'premake'";
    session.batch_execute(drop_last).unwrap();
    let waited = beside_overlap(&database, || {
        session.batch_execute(resume).unwrap();
        eventually(&mut session, "SELECT reason LIKE 'P11:%' FROM tally.partition_status");
    });
    println!("a writer has waited for {waited:?}");
    assert!(!waited.is_zero(), "nobody has asked for the lock");
    assert!(waited <= ALLOWANCE + Duration::from_millis(100), "{waited:?}");
    let awaited = "SELECT (extract(epoch FROM awaited) * 1000)::bigint FROM tally.lock_waits WHERE table_name = 'customers'::regclass";
    let awaited = number(&mut session, awaited);
    assert!((30..=150).contains(&awaited), "{awaited} ms");
    // Nobody uses it any more, so nothing has to be waited for.
    eventually(&mut session, &format!("SELECT found = 'ok' FROM ({VERDICT}) AS v (found)"));
    eventually(&mut session, "SELECT max_lock_ms BETWEEN 1 AND 2000 FROM tally.partition_status");

    // By hand one waits for as long as it takes.
    session.batch_execute(drop_last).unwrap();
    beside_overlap(&database, || {
        session.batch_execute(resume).unwrap();
        eventually(&mut session, "SELECT reason LIKE 'P11:%' FROM tally.partition_status");
        assert_put_off(&mut session, "SELECT tally.ensure_partitions(");
        session.batch_execute("SELECT tally.pause_partitions('events')").unwrap();
        follow_status(&mut session);
        assert_eq!(text(&mut session, VERDICT).as_deref(), Some("ok"));
        // And a larger allowance is one, too.
        session.batch_execute("ALTER SYSTEM SET tally.lock_allowance = '1h'").unwrap();
    });
}

#[test]
fn retention_waits_for_nothing_that_it_is_not_allowed_to() {
    let cluster = Cluster::start(&[("tally.lock_allowance", "0")]);
    let database = cluster.database();
    let mut session = connected_session(&database);
    session.batch_execute("CREATE SEQUENCE ids START 10").unwrap();
    step_inside_to(&mut session, "verified");
    let waited = beside_overlap(&database, || {
        step_to_put_off(&mut session, r#"ALTER TABLE public.events DETACH PARTITION "public"."events_p"#);
        // As if somebody had begun, and given up.
        let partition = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
        let mut reader = database.connect();
        reader.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
        session.batch_execute("SET lock_timeout = '10ms'").unwrap();
        let detach = format!("ALTER TABLE events DETACH PARTITION {partition} CONCURRENTLY");
        session.batch_execute(&detach).unwrap_err();
        session.batch_execute("RESET lock_timeout").unwrap();
        reader.batch_execute("COMMIT").unwrap();
        step_to_put_off(&mut session, r#"ALTER TABLE public.events DETACH PARTITION "public"."events_p"#);
        assert!(text(&mut session, "SELECT next_sql FROM tally.partition_status").unwrap().ends_with(" FINALIZE;"));
        follow_status(&mut session);
        step_inside_to(&mut session, "trash");
        assert_eq!(text(&mut session, VERDICT).as_deref(), Some("ok"));
        session.batch_execute("UPDATE tally.retirements SET drop_after = now()").unwrap();
        step_to_put_off(&mut session, r#"ALTER TABLE "tally_trash"."events_p"#);
        follow_status(&mut session);
        assert_eq!(text(&mut session, VERDICT).as_deref(), Some("ok"));
        assert_eq!(step_inside(&mut session), Some(1));
        assert_eq!(state(&mut session), None, "dropped");
        step_inside_to(&mut session, "verified");
        assert_eq!(step_inside(&mut session), Some(0), "the next one is put off");
    });
    // But for what was waited for by hand.
    println!("writers have waited for {waited:?}");
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.lock_waits WHERE awaited > '0'"), 0);
    // Nobody uses it any more: the next pass of the worker goes on.
    session
        .batch_execute(
            "SELECT tally.set_partition_policy('events', grace => '0'); SELECT tally.resume_partitions('events')",
        )
        .unwrap();
    eventually(&mut session, "SELECT accepts_from >= now() - interval '3 days' FROM tally.partition_status");
    eventually(&mut session, "SELECT NOT EXISTS (SELECT FROM tally.retirements)");
    assert_eq!(text(&mut session, VERDICT).as_deref(), Some("ok"));
}

#[test]
fn undo_by_hand_waits_for_nothing_that_a_job_is_not_allowed_to() {
    let cluster = Cluster::start(&[("tally.lock_allowance", "0")]);
    let database = cluster.database();
    let mut session = connected_session(&database);
    session.batch_execute("CREATE SEQUENCE ids START 10").unwrap();
    step_to(&mut session, "trash");
    let partition = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
    let undo = format!("SELECT tally.undo_retention('events', '{partition}')");
    // Who stands in the queue for ever is to be seen.
    session.batch_execute("SET statement_timeout = '20s'").unwrap();
    let refused = |session: &mut Client, detail: &str| {
        let error = session.batch_execute(&undo).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code(), &SqlState::LOCK_NOT_AVAILABLE, "{error:?}");
        let message =
            "could not lock public.customers, public.notes, connected with table public.events by foreign keys";
        assert_eq!(error.message(), message);
        assert!(error.detail().unwrap().contains(detail), "{error:?}");
        error.hint().unwrap().split_once("behind you: ").unwrap().1.to_owned()
    };
    // One who writes for long is told of, and nobody else notices.
    let stop = AtomicBool::new(false);
    let waited = thread::scope(|scope| {
        let end = StopAtEnd(&stop);
        let writer = scope.spawn(|| write(&database, &stop));
        let mut holder = database.connect();
        holder.batch_execute(&format!("BEGIN; {INSERT}")).unwrap();
        eventually(
            &mut session,
            "SELECT max(now() - xact_start) > '1 s' FROM pg_stat_activity WHERE state = 'idle in transaction'",
        );
        refused(&mut session, &format!("pid {}, ", own_pid(&mut holder)));
        drop(end);
        writer.join().unwrap()
    });
    assert!(waited.is_zero(), "a writer has waited for {waited:?}");
    // Nor when it is never free; then one may wait in the queue, if one wants to.
    let waited = beside_overlap(&database, || {
        let instead =
            refused(&mut session, "P11: public.customers is never free, and tally.lock_allowance for it is used up");
        assert_eq!(state(&mut session).as_deref(), Some("trash"));
        let mut waiting = database.connect();
        waiting.batch_execute(&instead).unwrap();
    });
    println!("writers have waited for {waited:?}");
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.lock_waits WHERE awaited > '0'"), 0);
    assert_eq!(state(&mut session).as_deref(), Some("returning"));
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_customer')"), 0);
}

/// When its grace is over a table in the trash loses its foreign keys. To make them anew takes a scan.
#[test]
fn undo_checks_no_foreign_key_while_writers_wait() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = connected_session(&database);
    step_to(&mut session, "trash");
    let partition = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
    session.batch_execute("UPDATE tally.retirements SET drop_after = now()").unwrap();
    let keys =
        "SELECT count(*) FROM pg_constraint k JOIN tally.retirements r ON r.partition = k.conrelid WHERE contype = 'f'";
    assert_eq!(number(&mut session, keys), 1);
    assert_eq!(step_inside(&mut session), Some(1));
    assert_eq!(number(&mut session, keys), 0);

    let error = session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code(), &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "{error:?}");
    assert!(
        error.message().ends_with("lacks the foreign key events_customer_fkey of table public.events"),
        "{error:?}"
    );
    // Each by itself: no lock is held during the check.
    for statement in error.hint().unwrap().split("; ") {
        session.batch_execute(statement).unwrap();
    }
    let inherited = "SELECT count(*) FROM pg_constraint k JOIN tally.retirements r ON r.partition = k.conrelid
                     WHERE contype = 'f' AND conparentid <> 0 AND convalidated";
    assert_eq!(number(&mut session, inherited), 1);
    eventually(&mut session, "SELECT count(*) = 1 FROM tally.retirements WHERE state = 'kept'");
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_customer')"), 0);
}

#[test]
fn a_conversion_waits_for_nothing_that_it_is_not_allowed_to() {
    let cluster =
        Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "1s"), ("tally.lock_allowance", "0")]);
    let database = cluster.database();
    let mut session = database.connect();
    session
        .batch_execute("CREATE SEQUENCE ids; CREATE TABLE customers (id bigint, at timestamptz NOT NULL DEFAULT now())")
        .unwrap();
    let waited = beside_overlap(&database, || {
        session.batch_execute("SELECT tally.convert_to_partitioned('customers', 'at', '1 day')").unwrap();
        eventually(&mut session, "SELECT note LIKE 'P11: public.customers is never free%' FROM tally.conversions");
        let row = session.query_one("SELECT verdict, reason, next_sql FROM tally.partition_status", &[]).unwrap();
        let [verdict, reason, next] = [0, 1, 2].map(|column| row.get::<_, String>(column));
        assert_eq!(verdict, "warning");
        assert!(reason.starts_with("conversion, preparing: P11: "), "{reason}");
        assert!(next.starts_with("ALTER SYSTEM SET tally.lock_allowance = "), "{next}");
        follow_status(&mut session);
        eventually(&mut session, "SELECT awaited > '0' FROM tally.lock_waits WHERE table_name = 'customers'::regclass");
    });
    println!("a writer has waited for {waited:?}");
    // Nobody uses it any more.
    eventually(&mut session, "SELECT NOT EXISTS (SELECT FROM tally.conversions)");
    assert_eq!(text(&mut session, VERDICT).as_deref(), Some("ok"));
}
