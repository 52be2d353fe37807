//! Statements at top level in a worker: DETACH CONCURRENTLY, which commits before it waits. Whatever ends it, the next one works.

use super::lifecycle::{hold_detach, old_partitions, times};
use super::*;

const RETENTION: &str = "SELECT failures, last_sqlstate FROM tally.job_states WHERE job_id = (SELECT job_id FROM tally.jobs WHERE kind = 'retention')";
const PENDING: &str = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending";
const ALL_GONE: &str = "SELECT NOT EXISTS (SELECT FROM pg_class WHERE relname LIKE 'old\\_%')";

#[test]
fn canceled_statement_is_recorded_and_what_it_left_is_ended_by_the_next_run() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(&old_partitions(4)).unwrap();
    let mut watcher = cluster.connect("postgres");
    let mut reader = hold_detach(&mut watcher, &database);
    assert_eq!(number(&mut session, PENDING), 1);
    watcher
        .batch_execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tally retention%'",
        )
        .unwrap();
    eventually_true(&mut session, &format!("SELECT failures > 0 AND last_sqlstate = '57014' FROM ({RETENTION}) s"));
    assert_eq!(number(&mut session, PENDING), 1);
    reader.batch_execute("COMMIT").unwrap();
    eventually_true(&mut session, ALL_GONE);
    assert_eq!(number(&mut session, PENDING), 0);
    eventually_true(&mut session, &format!("SELECT failures = 0 FROM ({RETENTION}) s"));
}

#[test]
fn statement_that_waits_for_a_lock_too_long_gives_way_and_comes_back() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    // A table that a foreign key connects is locked all the while, so nobody may be kept waiting for long.
    session
        .batch_execute(&format!(
            "{} CREATE TABLE devices (k int PRIMARY KEY); ALTER TABLE events ADD FOREIGN KEY (k) REFERENCES devices;",
            old_partitions(4).replace("SELECT tally.resume_partitions('events');", "")
        ))
        .unwrap();
    let mut reader = database.connect();
    reader.batch_execute("BEGIN; SELECT FROM events LIMIT 1").unwrap();
    session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
    let gave_way = "SELECT count(*) > 0 FROM tally.job_activity() WHERE last_sqlstate = '55P03'";
    eventually_true(&mut session, gave_way);
    assert_eq!(number(&mut session, PENDING), 1, "it got as far as its first commit");
    reader.batch_execute("COMMIT").unwrap();
    eventually_true(&mut session, ALL_GONE);
}

#[test]
fn statement_that_fails_before_it_commits_leaves_nothing() {
    let cluster = Cluster::start(&[("tally.retry_min", "100ms"), ("tally.retry_max", "100ms")]);
    let database = cluster.database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$
             BEGIN IF current_query() LIKE '%CONCURRENTLY' THEN RAISE 'not today' USING ERRCODE = '0A000'; END IF; END $$;
             CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION refuse();",
        )
        .unwrap();
    session.batch_execute(&old_partitions(2)).unwrap();
    eventually_true(&mut session, &format!("SELECT failures > 1 AND last_sqlstate = '0A000' FROM ({RETENTION}) s"));
    assert_eq!(number(&mut session, PENDING), 0);
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_class WHERE relname LIKE 'old\\_%'"), 3);
    session.batch_execute("DROP EVENT TRIGGER refuse").unwrap();
    eventually_true(&mut session, ALL_GONE);
}

#[test]
fn thousands_of_statements_in_one_worker_leave_its_memory_as_it_was() {
    let runs = times("TALLY_PORTAL_RUNS", 100);
    // On demand one worker does all that is due.
    let cluster = Cluster::start(&[("shared_preload_libraries", ""), ("max_locks_per_transaction", "1024")]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(&old_partitions(runs - 1)).unwrap();
    session.batch_execute("UPDATE tally.jobs SET paused = kind <> 'retention'").unwrap();
    let caller = thread::spawn({
        let mut caller = database.connect();
        move || caller.batch_execute("CALL tally.run_due_jobs()")
    });
    let mut workers = Vec::new();
    let mut samples = Vec::new();
    let worker = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'tally retention%'";
    while !caller.is_finished() {
        let Some(row) = session.query_opt(worker, &[]).unwrap() else { continue };
        let pid: i32 = row.get(0);
        workers.push(pid);
        let seen = cluster.log().len();
        session.batch_execute(&format!("SELECT pg_log_backend_memory_contexts({pid})")).unwrap();
        eventually("its memory is in the log", || {
            caller.is_finished() || cluster.log()[seen..].contains("Grand total:")
        });
        let log = cluster.log();
        samples.extend(Some(&log[seen..]).filter(|log| log.contains("Grand total:")).map(Sample::read));
    }
    caller.join().unwrap().unwrap();
    eventually_true(&mut session, ALL_GONE);
    workers.dedup();
    assert_eq!(workers.len(), 1, "it is always the same process");
    assert!(samples.len() >= 4, "{samples:?}");
    // The caches are warm by then.
    let (first, last) = (samples[samples.len() / 4], samples[samples.len() - 1]);
    println!("{runs} statements, {} looks: {first:?}, {last:?}", samples.len());
    assert!(samples.iter().all(|sample| sample.statements <= 1), "contexts of statements are left");
    assert!(last.top <= first.top + 65_536, "TopMemoryContext grows");
}

/// What `pg_log_backend_memory_contexts` said.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Bytes of TopMemoryContext in use.
    top: u64,
    /// Contexts of statements at top level.
    statements: usize,
}

impl Sample {
    /// A line is `level: 0; TopMemoryContext: 97664 total in 5 blocks; 13544 free (7 chunks); 84120 used`, and `at character 101` if the statement was
    /// just being analysed.
    fn read(log: &str) -> Sample {
        let line = log.lines().find(|line| line.contains("TopMemoryContext: ")).expect("it is the first one");
        let (_, used) = line.rsplit_once("; ").expect("parts of a line");
        let (used, _) = used.split_once(" used").unwrap_or_else(|| panic!("how much is used: {line}"));
        Sample { top: used.parse().expect("a number"), statements: log.matches("tally statement: ").count() }
    }
}
