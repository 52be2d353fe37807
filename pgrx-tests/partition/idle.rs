//! Passes that have nothing to do: what they cost, and that whatever anybody does to a set is followed by the next one all the same.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use tally_server_tests::cluster::{self, Database};

use super::number;
use crate::oracle::DEADLINE;

/// Days, removed after three; both jobs are run by hand.
const SET: &str = "
    CREATE TABLE events (at timestamptz NOT NULL, k int) PARTITION BY RANGE (at);
    BEGIN;
    SELECT tally.partition_by_time('events', '1 day', retention => '3 days');
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;";

fn run(session: &mut Client, kind: &str) -> i64 {
    number(
        session,
        &format!("SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = '{kind}' AND object = 'events'::regclass"),
    )
}

/// Does a pass of this kind find out that there is nothing to do while the set is locked against everybody?
fn is_idle(database: &Database<'_>, kind: &str) -> bool {
    let (mut session, mut other) = (database.connect(), database.connect());
    other.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    session.batch_execute("SET lock_timeout = '10ms'").unwrap();
    let query =
        format!("SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = '{kind}' AND object = 'events'::regclass");
    match session.query_one(&query, &[]) {
        Ok(row) => {
            assert_eq!(row.get::<_, Option<i64>>(0), Some(0));
            true
        }
        Err(error) => {
            assert_eq!(error.as_db_error().map(|error| error.code().code()), Some("55P03"), "{error}");
            false
        }
    }
}

/// Runs both jobs until nothing is left to do.
#[track_caller]
fn settle(database: &Database<'_>) {
    let mut session = database.connect();
    let begin = Instant::now();
    loop {
        let done = run(&mut session, "premake") + run(&mut session, "retention");
        detach_what_is_asked_for(&mut session);
        if done == 0 && is_idle(database, "premake") && is_idle(database, "retention") {
            return;
        }
        assert!(begin.elapsed() < DEADLINE, "the jobs do not come to rest");
    }
}

fn detach_what_is_asked_for(session: &mut Client) {
    let asked = session
        .query(
            "SELECT format('ALTER TABLE %s DETACH PARTITION %s CONCURRENTLY', r.parent, r.partition) FROM tally.retirements r
             JOIN pg_inherits i ON i.inhrelid = r.partition AND NOT i.inhdetachpending WHERE r.state = 'detaching'",
            &[],
        )
        .unwrap();
    for statement in asked {
        session.batch_execute(statement.get(0)).unwrap();
    }
}

fn database_with_set<'a>() -> Database<'a> {
    let database = cluster::database();
    database.connect().batch_execute(SET).unwrap();
    settle(&database);
    database
}

#[test]
fn an_idle_pass_reads_locks_and_writes_nothing_of_the_set() {
    let scans = |hours: i64| {
        let database = cluster::database();
        let mut session = database.connect();
        session
            .batch_execute(&format!(
                "CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at);
                 BEGIN;
                 SELECT tally.partition_by_time('events', '1 hour', lateness => '{hours} hours', retention => '1 year');
                 SELECT tally.pause_job(job_id) FROM tally.jobs;
                 COMMIT;"
            ))
            .unwrap();
        settle(&database);
        // Nothing of it is in the caches of a new session.
        let mut session = database.connect();
        session.batch_execute("BEGIN").unwrap();
        assert_eq!([run(&mut session, "premake"), run(&mut session, "retention")], [0, 0]);
        assert!(session.query_one("SELECT pg_current_xact_id_if_assigned() IS NULL", &[]).unwrap().get::<_, bool>(0));
        let scans = |session: &mut Client, tables: &str| {
            let scans =
                "SELECT sum(seq_scan + coalesce(idx_scan, 0))::bigint FROM pg_stat_xact_sys_tables WHERE relname";
            number(session, &format!("{scans} {tables}"))
        };
        assert_eq!(scans(&mut session, "IN ('pg_inherits', 'pg_partitioned_table')"), 0);
        scans(&mut session, "= 'pg_class'")
    };
    let (few, many) = (scans(0), scans(400));
    assert!(many <= few + 20, "{many} look-ups of tables with 400 partitions more, {few} without them");
}

#[test]
fn the_next_premake_follows_what_is_done_by_hand() {
    let database = database_with_set();
    let mut session = database.connect();
    let newest =
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'events'::regclass ORDER BY 1 DESC LIMIT 1";
    let role = format!("{}_leaver", database.name());
    // What prepares it, what is done, and how many partitions are missing then.
    for (prepare, statement, missing) in [
        ("", "ALTER TABLE events DETACH PARTITION NEWEST", 1..=1),
        ("", "ALTER TABLE events DETACH PARTITION NEWEST CONCURRENTLY", 1..=1),
        ("", "DROP TABLE NEWEST", 1..=1),
        ("CREATE SCHEMA s; ALTER TABLE NEWEST SET SCHEMA s", "DROP SCHEMA s CASCADE", 1..=1),
        ("CREATE ROLE LEAVER; ALTER TABLE NEWEST OWNER TO LEAVER", "DROP OWNED BY LEAVER", 1..=1),
        ("", "SELECT tally.set_partition_policy('events', premake => '9 days')", 2..=2),
        ("", "INSERT INTO events VALUES (now() + interval '36 hours')", 1..=2),
        ("", "SELECT tally.set_partition_width('events', '1 month')", 2..=3),
    ] {
        let partition: String = session.query_one(newest, &[]).unwrap().get(0);
        let replace = |text: &str| text.replace("NEWEST", &partition).replace("LEAVER", &role);
        session.batch_execute(&replace(prepare)).unwrap();
        settle(&database);
        session.batch_execute(&replace(statement)).unwrap();
        session.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
        assert!(!is_idle(&database, "premake"), "{statement}");
        let made = std::iter::repeat_with(|| run(&mut session, "premake")).take_while(|made| *made > 0).sum::<i64>();
        assert!(missing.contains(&made), "{statement}: {made} partitions made");
        settle(&database);
    }
    session.batch_execute(&format!("DROP ROLE {role}")).unwrap();
    // As every look does, also when there is nothing to be made.
    session.batch_execute("CREATE TABLE rest PARTITION OF events DEFAULT").unwrap();
    let error =
        session.query_one("SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = 'premake'", &[]).unwrap_err();
    assert_eq!(error.as_db_error().map(|error| error.code().code()), Some("55000"), "{error}");
}

#[test]
fn the_next_retention_follows_what_is_done_by_hand() {
    let database = database_with_set();
    let mut session = database.connect();
    let mut records = 0;
    // What prepares it, what is done, and how many more partitions are on their way out then.
    for (prepare, statement, more) in [
        (
            "CREATE TABLE old (at timestamptz NOT NULL, k int)",
            "ALTER TABLE events ATTACH PARTITION old FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')",
            1,
        ),
        ("", "CREATE TABLE older PARTITION OF events FOR VALUES FROM ('2019-01-01') TO ('2019-01-02')", 1),
        (
            "SELECT tally.ensure_partitions('events', now() - interval '3 days', now())",
            "SELECT tally.set_partition_policy('events', retention => '2 days')",
            1,
        ),
        ("", "DROP TABLE tally_trash.older", -1),
        ("", "SELECT tally.undo_retention('events', 'tally_trash.old')", 0),
        ("", "SELECT tally.resume_partitions('events'); SELECT tally.pause_partitions('events')", 0),
        ("", "ALTER TABLE tally_trash.old SET SCHEMA public", -1),
        ("", "UPDATE tally.retirements SET drop_after = now()", -1),
    ] {
        session.batch_execute(prepare).unwrap();
        settle(&database);
        session.batch_execute(statement).unwrap();
        assert!(!is_idle(&database, "retention"), "{statement}");
        settle(&database);
        records += more;
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements"), records, "{statement}");
    }
}

#[test]
fn what_does_not_concern_the_set_or_is_rolled_back_leaves_it_idle() {
    let database = database_with_set();
    let mut session = database.connect();
    for statement in [
        "CREATE TABLE other (at timestamptz NOT NULL) PARTITION BY RANGE (at);
         CREATE TABLE part PARTITION OF other DEFAULT; ALTER TABLE other ADD COLUMN k int; DROP TABLE part",
        "BEGIN; DROP TABLE other; ALTER TABLE events ADD COLUMN v int; ROLLBACK",
        "INSERT INTO events VALUES (now()); SELECT pg_stat_force_next_flush()",
    ] {
        session.batch_execute(statement).unwrap();
        assert!(is_idle(&database, "premake") && is_idle(&database, "retention"), "{statement}");
    }
    assert_eq!(
        number(&mut session, "SELECT count(*) FROM tally.altered_sets"),
        0,
        "what was altered before is forgotten"
    );
}

/// A look takes no lock that would keep DDL away, so it may miss what is under way; nothing of that is lost.
#[test]
fn what_is_committed_after_a_look_is_followed_by_the_next() {
    let database = database_with_set();
    let (mut session, mut other) = (database.connect(), database.connect());
    other
        .batch_execute(
            "CREATE TABLE old (at timestamptz NOT NULL, k int);
             BEGIN;
             ALTER TABLE events ATTACH PARTITION old FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
             PREPARE TRANSACTION 'under way'",
        )
        .unwrap();
    session.batch_execute("SELECT tally.resume_partitions('events'); SELECT tally.pause_partitions('events')").unwrap();
    for kind in ["premake", "retention"] {
        assert_eq!(run(&mut session, kind), 0);
        let look = format!(
            "SELECT count(*) FROM tally.idle_sets, pg_prepared_xacts WHERE kind = '{kind}' AND looked_at > prepared"
        );
        assert_eq!(number(&mut session, &look), 1);
    }
    other.batch_execute("COMMIT PREPARED 'under way'").unwrap();
    assert_eq!(run(&mut session, "retention"), 1);
}

#[test]
fn a_clock_that_was_set_and_a_setting_that_changed_end_the_rest() {
    let database = database_with_set();
    let mut session = database.connect();
    for change in [
        "looked_at = looked_at + interval '1 hour'",
        "idle_until = now()",
        "premake_outage = premake_outage + 1",
        "premake_max = premake_max + 1",
    ] {
        session.batch_execute(&format!("UPDATE tally.idle_sets SET {change}")).unwrap();
        assert!(!is_idle(&database, "premake") && !is_idle(&database, "retention"), "{change}");
        settle(&database);
    }
}

/// What escapes the event triggers is seen by it, and a set that is left alone costs no transaction ids however many looks there are.
#[test]
fn half_an_hour_later_there_is_another_look_and_what_it_finds_again_is_not_written() {
    let database = database_with_set();
    let mut session = database.connect();
    session.batch_execute("UPDATE tally.idle_sets SET looked_at = looked_at - interval '31 minutes'").unwrap();
    for kind in ["premake", "retention"] {
        assert!(!is_idle(&database, kind), "{kind}");
        session.batch_execute("BEGIN").unwrap();
        assert_eq!(run(&mut session, kind), 0);
        let query = "SELECT pg_current_xact_id_if_assigned() IS NULL";
        assert!(session.query_one(query, &[]).unwrap().get::<_, bool>(0), "{kind}");
        session.batch_execute("COMMIT").unwrap();
    }
    // But what has been altered is written, or it would be looked at for ever.
    session.batch_execute("SELECT tally.resume_partitions('events'); SELECT tally.pause_partitions('events')").unwrap();
    settle(&database);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.altered_sets"), 0);
}

#[test]
fn premake_goes_on_when_the_clock_needs_the_next_partition() {
    assert_goes_on("premake", "now() - interval '2 days'", "now() + interval '7 days' + interval '4 seconds'");
}

#[test]
fn retention_goes_on_when_a_partition_is_due() {
    assert_goes_on("retention", "now() - interval '3 days' + interval '4 seconds'", "now() + interval '20 days'");
}

/// Partitions end where their owner wants it: here some seconds before there is something to do.
#[track_caller]
fn assert_goes_on(kind: &str, end_of_old: &str, end_of_new: &str) {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             DO $$ BEGIN
               EXECUTE format('CREATE TABLE old PARTITION OF events FOR VALUES FROM (%L) TO (%L)', now() - interval '9 days', {end_of_old});
               EXECUTE format('CREATE TABLE new PARTITION OF events FOR VALUES FROM (%L) TO (%L)', {end_of_old}, {end_of_new});
             END $$;
             BEGIN;
             SELECT tally.partition_by_time('events', '1 day', retention => '3 days');
             SELECT tally.pause_job(job_id) FROM tally.jobs;
             COMMIT;"
        ))
        .unwrap();
    // On a very slow machine the moment is over by now, and this shows nothing.
    let begin = Instant::now();
    while run(&mut session, kind) != 1 {
        assert!(begin.elapsed() < DEADLINE, "{kind} rests on");
        thread::sleep(Duration::from_millis(10));
    }
}
