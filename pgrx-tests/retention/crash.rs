//! Sessions, workers and servers are killed right before and right after each change of state, and while DETACH CONCURRENTLY waits: nothing
//! is lost by it, and the next run goes on from where it was.

use std::thread;

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

use super::{RETAIN_BY_HAND, assert_kept, eventually, number, session_with_set, state, step_inside, text, touch};
use crate::oracle::{own_pid, wait_until, wait_until_blocked};

/// Runs a step up to where it records what it has done, and kills its process there.
fn kill_in_step(cluster: &Cluster, database: &Database<'_>) -> Client {
    let [mut observer, mut blocker, mut victim] = [(); 3].map(|()| database.connect());
    let job = number(&mut observer, "SELECT job_id::bigint FROM tally.jobs WHERE kind = 'retention'");
    blocker.batch_execute("BEGIN; LOCK TABLE tally.retirements IN SHARE MODE").unwrap();
    let pid = own_pid(&mut victim);
    thread::scope(|scope| {
        let killed = scope.spawn(move || victim.batch_execute(&format!("SELECT tally.run_job({job})")));
        wait_until_blocked(&mut observer, pid);
        assert!(cluster.kill_before(&mut observer, pid));
        killed.join().unwrap().expect_err("it was killed");
    });
    database.connect()
}

/// The server dies, one way or the other.
fn crash(cluster: &Cluster, database: &Database<'_>, is_immediate_stop: bool) -> Client {
    if is_immediate_stop {
        cluster.abort();
        cluster.restart();
    } else {
        cluster.crash();
    }
    database.connect()
}

fn partition(session: &mut Client) -> String {
    text(session, "SELECT partition::text FROM tally.retirements").unwrap()
}

#[test]
fn killed_before_and_after_each_change_of_state() {
    let cluster = Cluster::start(&[("tally.enabled", "off")]);
    let database = cluster.database();
    let mut session = session_with_set(&database);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    let mut before = None;
    for (wanted, is_immediate_stop) in [("fenced", false), ("counted", true), ("verified", false), ("detaching", true)]
    {
        session = kill_in_step(&cluster, &database);
        assert_eq!(state(&mut session), before);
        assert_kept(&mut session);
        step_inside(&mut session);
        session = crash(&cluster, &database, is_immediate_stop);
        assert_eq!(state(&mut session).as_deref(), Some(wanted));
        assert_kept(&mut session);
        before = Some(wanted.to_owned());
    }

    // DETACH CONCURRENTLY has committed for the first time, and waits for a reader.
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
    let mut detacher = database.connect();
    let (pid, partition) = (own_pid(&mut detacher), partition(&mut session));
    thread::scope(|scope| {
        let detach = format!("ALTER TABLE events DETACH PARTITION {partition} CONCURRENTLY");
        let killed = scope.spawn(move || detacher.batch_execute(&detach));
        wait_until(&mut session, "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)");
        wait_until_blocked(&mut session, pid);
        assert_kept(&mut session);
        assert!(cluster.kill_before(&mut session, pid));
        killed.join().unwrap().expect_err("it was killed");
    });
    session = database.connect();
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"), 1);
    assert_kept(&mut session);
    step_inside(&mut session);
    session = crash(&cluster, &database, true);
    let attached = format!("SELECT count(*) FROM pg_inherits WHERE inhrelid = '{partition}'::regclass");
    assert_eq!(number(&mut session, &attached), 0);
    assert_kept(&mut session);

    session = kill_in_step(&cluster, &database);
    assert_eq!(state(&mut session).as_deref(), Some("detaching"));
    assert_kept(&mut session);
    step_inside(&mut session);
    session = crash(&cluster, &database, false);
    assert_eq!(state(&mut session).as_deref(), Some("trash"));
    assert_kept(&mut session);

    session.batch_execute("UPDATE tally.retirements SET drop_after = now()").unwrap();
    let trash = "SELECT count(*) FROM pg_class WHERE relnamespace = 'tally_trash'::regnamespace AND relkind = 'r'";
    session = kill_in_step(&cluster, &database);
    assert_eq!(number(&mut session, trash), 1);
    step_inside(&mut session);
    session = crash(&cluster, &database, true);
    assert_eq!(number(&mut session, trash), 0);
    assert_eq!(state(&mut session), None);
    assert_kept(&mut session);
    touch(&mut session);
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(&mut session);
}

#[test]
fn a_worker_killed_while_detach_waits_goes_on_from_there() {
    let cluster =
        Cluster::start(&[("tally.probe_interval", "1min"), ("tally.retry_min", "100ms"), ("tally.retry_max", "1s")]);
    let database = cluster.database();
    let mut session = session_with_set(&database);
    session.batch_execute(super::RETAIN).unwrap();
    let due = "SELECT count(*) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE inhparent = 'events'::regclass
               AND (regexp_match(pg_get_expr(c.relpartbound, c.oid), $$TO \\('(.*)'\\)$$))[1]::timestamptz <= now() - interval '3 days'";
    let waiting =
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'tally job worker' AND datname = current_database()
                   AND application_name LIKE 'tally retention%' AND wait_event_type = 'Lock'
                   AND EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)";
    for how in ["kill -9", "terminate", "immediate stop"] {
        // Holds a lock on the parent and no snapshot.
        let mut reader = database.connect();
        reader.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
        session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
        eventually(&mut session, &format!("SELECT EXISTS ({waiting})"));
        assert_kept(&mut session);
        let pid: i32 = session.query_one(waiting, &[]).unwrap().get(0);
        match how {
            "kill -9" => assert!(cluster.kill_before(&mut session, pid)),
            "terminate" => drop(session.query_one("SELECT pg_terminate_backend($1, 60000)", &[&pid]).unwrap()),
            _ => {
                cluster.abort();
                cluster.restart();
            }
        }
        session = database.connect();
        assert_kept(&mut session);
        // The one that did not die with the server.
        let _ = reader.batch_execute("COMMIT");
        session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
        eventually(&mut session, "SELECT NOT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)");
        assert_kept(&mut session);
    }
    eventually(&mut session, &format!("SELECT n = 0 FROM ({due}) d (n)"));
    eventually(&mut session, "SELECT count(*) >= 5 AND bool_and(state = 'trash') FROM tally.retirements");
    assert_kept(&mut session);
}
