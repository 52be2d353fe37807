//! Reports that are open for long: DETACH CONCURRENTLY waits for those that read its set, and no other set waits with it.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use super::{DEADLINE, eventually, number};
use crate::oracle::own_pid;

/// Three sets of one owner, each with a partition that is older than two days and waits for its policy.
fn sets(owner: &str) -> String {
    let set = |name: &str| {
        format!(
            "CREATE TABLE {name} (at timestamptz NOT NULL, k int) PARTITION BY RANGE (at);
             SELECT tally.partition_by_time('{name}', '1 day', lateness => '3 days');
             INSERT INTO {name} SELECT now() - i * interval '1 day', i FROM generate_series(0, 3) i;
             SELECT tally.create_rollup('{name}_sums', 'SELECT date_trunc(''day'', at, ''UTC'') AS day, sum(k) AS k FROM {name} GROUP BY 1');"
        )
    };
    let sets: String = ["first", "second", "third"].into_iter().map(set).collect();
    format!("CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}; SET ROLE {owner}; {sets}")
}

fn retain(set: &str) -> String {
    format!("SELECT tally.set_partition_policy('{set}', retention => '2 days', lateness => '2 days')")
}

fn is(set: &str, state: &str) -> String {
    format!("SELECT count(*) > 0 FROM tally.retirements WHERE parent = '{set}'::regclass AND state = '{state}'")
}

/// As `eventually`, beside readers that are idle in READ COMMITTED. To follow the DDL of others such a session may take a snapshot, which it keeps
/// until its next statement.
#[track_caller]
fn eventually_beside(readers: &mut [Client], session: &mut Client, query: &str) {
    let begin = Instant::now();
    while session.query_opt(query, &[]).unwrap().and_then(|row| row.get::<_, Option<bool>>(0)) != Some(true) {
        assert!(begin.elapsed() < DEADLINE, "not so: {query}");
        readers.iter_mut().for_each(|reader| reader.batch_execute("SELECT").unwrap());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_report_holds_up_the_set_that_it_reads_and_no_other() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(&sets(&format!("{}_owner", database.name()))).unwrap();
    // Until it ends nothing is detached.
    let mut older = database.connect();
    older.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT").unwrap();
    for set in ["first", "second"] {
        session.batch_execute(&retain(set)).unwrap();
        eventually(&mut session, &is(set, "verified"));
    }
    // Two that read the first set: one with a snapshot of its own, and one with nothing but the lock.
    let (mut report, mut readers) = (database.connect(), [database.connect()]);
    report.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM first").unwrap();
    readers[0].batch_execute("BEGIN; SELECT count(*) FROM first").unwrap();
    older.batch_execute("COMMIT").unwrap();
    let pending = "SELECT count(*) > 0 FROM pg_inherits WHERE inhparent = 'first'::regclass AND inhdetachpending";
    eventually(&mut session, pending);
    eventually_beside(&mut readers, &mut session, &is("second", "trash"));

    // One that becomes due only now; the report may read it later, and would not find the rows of its snapshot.
    session.batch_execute(&retain("third")).unwrap();
    eventually(&mut session, &is("third", "verified"));
    let waits = format!(
        "SELECT note LIKE 'waits for a transaction that is older: pid {} %' FROM tally.retirements WHERE parent = 'third'::regclass",
        own_pid(&mut report)
    );
    eventually(&mut session, &waits);
    report.batch_execute("COMMIT").unwrap();
    eventually_beside(&mut readers, &mut session, &is("third", "trash"));

    eventually(&mut session, pending);
    readers[0].batch_execute("COMMIT").unwrap();
    eventually(&mut session, &is("first", "trash"));
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements WHERE state <> 'trash'"), 0);
}

#[test]
fn reports_on_more_sets_than_workers_can_wait_for_hold_up_no_other() {
    // One worker may wait, one works, and one is left to jobs that are not patient.
    let cluster = Cluster::start(&[("tally.max_workers", "3")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(&sets(&format!("{}_owner", database.name()))).unwrap();
    let mut readers = [database.connect(), database.connect()];
    for (reader, set) in readers.iter_mut().zip(["first", "second"]) {
        reader.batch_execute(&format!("BEGIN; SELECT count(*) FROM {set}")).unwrap();
    }
    session.batch_execute(&retain("first")).unwrap();
    let pending = "SELECT count(*) > 0 FROM pg_inherits WHERE inhparent = 'first'::regclass AND inhdetachpending";
    eventually_beside(&mut readers, &mut session, pending);
    session.batch_execute(&retain("second")).unwrap();
    let reader = own_pid(&mut readers[1]);
    let waits = format!(
        "SELECT note LIKE 'waits for transactions that use the table: pid {reader} %' FROM tally.retirements
         WHERE parent = 'second'::regclass AND state = 'verified'"
    );
    eventually_beside(&mut readers, &mut session, &waits);
    let blockers =
        format!("SELECT blockers LIKE 'pid {reader} %' FROM tally.partition_status WHERE parent = 'second'::regclass");
    eventually_beside(&mut readers, &mut session, &blockers);
    session.batch_execute(&retain("third")).unwrap();
    eventually_beside(&mut readers, &mut session, &is("third", "trash"));
    readers[1].batch_execute("COMMIT").unwrap();
    eventually_beside(&mut readers[..1], &mut session, &is("second", "trash"));
    eventually(&mut session, pending);
    // Rollups have gone on all the time.
    session.batch_execute("INSERT INTO first VALUES (now(), 7)").unwrap();
    eventually(&mut session, "SELECT count(*) > 0 FROM first_sums_stored WHERE k >= 7");
    readers[0].batch_execute("COMMIT").unwrap();
    eventually(&mut session, &is("first", "trash"));
}
