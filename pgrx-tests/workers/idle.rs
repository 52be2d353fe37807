//! What jobs cost a server on which nothing happens, scaled down: an hour is a second. And that whatever happens ends the rest.

use super::*;

/// Nothing but tally may start workers or write. Each start of a worker is a line in the log.
const SETTINGS: &[(&str, &str)] = &[
    ("autovacuum", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("checkpoint_timeout", "1h"),
    ("log_min_messages", "debug1"),
    ("tally.probe_interval", "1s"),
    ("tally.premake_outage", "1d"),
    ("tally.seal_after", "1s"),
];

/// Sets of all widths, and rollups, whose jobs come every second.
const SETS: &str = "
    CREATE TABLE hours (at timestamptz NOT NULL) PARTITION BY RANGE (at);
    CREATE TABLE days (at timestamptz NOT NULL) PARTITION BY RANGE (at);
    CREATE TABLE months (at timestamp NOT NULL) PARTITION BY RANGE (at);
    CREATE TABLE years (at date NOT NULL) PARTITION BY RANGE (at);
    SELECT tally.partition_by_time('hours', '1 hour', retention => '2 days', lateness => '0');
    SELECT tally.partition_by_time('days', '1 day', retention => '2 days');
    SELECT tally.partition_by_time('months', '1 month', retention => '1 year', time_zone => 'Europe/Berlin');
    SELECT tally.partition_by_time('years', '1 year');
    SELECT tally.create_rollup('by_day', $$SELECT date_trunc('day', at, 'UTC') AS day, count(*) AS n FROM days GROUP BY 1$$);
    SELECT tally.create_rollup('by_month', $$SELECT date_trunc('month', at) AS month, count(*) AS n FROM months GROUP BY 1$$);
    CREATE TABLE plain (k int);
    SELECT tally.create_rollup('by_key', 'SELECT k, count(*) AS n FROM plain GROUP BY k');
    INSERT INTO plain VALUES (1);
    UPDATE tally.jobs SET every = '1 second';";

/// What has been used up so far: starts of workers, transaction ids, bytes of WAL.
fn used_up(cluster: &Cluster, session: &mut Client) -> [i64; 3] {
    let starts = cluster.log().matches("starting background worker process \"tally").count();
    let xids = number(session, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint");
    let bytes = number(session, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint");
    [i64::try_from(starts).unwrap(), xids, bytes]
}

/// Waits until jobs and probes have come due so many times more, each of them.
fn pass_due_times(session: &mut Client, times: i64) {
    let next = "SELECT min((extract(epoch FROM next_due_at) * 1000)::bigint) FROM tally.job_activity()";
    let begin = number(session, next);
    eventually("all jobs come due", || number(session, next) >= begin + 1000 * times);
}

/// Waits until this many due times have cost nothing.
#[track_caller]
fn come_to_rest(cluster: &Cluster, database: &Database, times: i64) {
    let mut session = database.connect();
    let (begin, mut used) = (Instant::now(), [0; 3]);
    while begin.elapsed() < DEADLINE {
        let before = used_up(cluster, &mut session);
        pass_due_times(&mut session, times);
        let after = used_up(cluster, &mut session);
        used = std::array::from_fn(|at| after[at] - before[at]);
        if used == [0; 3] {
            return;
        }
    }
    panic!("{times} due times still cost {used:?}: starts of workers, transaction ids, bytes of WAL");
}

#[test]
fn an_idle_server_starts_no_workers_uses_no_transaction_ids_and_writes_no_wal() {
    let cluster = Cluster::start(SETTINGS);
    let database = cluster.database();
    database.psql(SETS);
    // Also of a copy, in which retention waits.
    let copy = database.copy();
    eventually_true(&mut copy.connect(), "SELECT count(*) = 10 FROM tally.job_activity()");
    let mut session = database.connect();
    come_to_rest(&cluster, &database, 5);

    // What happens, and how it is seen that the jobs have followed.
    for (statements, followed) in [
        (
            "ALTER SYSTEM SET tally.premake_outage = '3d'; SELECT pg_reload_conf()",
            "SELECT horizon >= now() + interval '3 days' FROM tally.partition_status WHERE parent = 'days'::regclass",
        ),
        ("INSERT INTO plain VALUES (2)", "SELECT count(*) = 2 FROM by_key_stored"),
        (
            "INSERT INTO days SELECT now() + interval '2 days' - interval '1 minute'; SELECT pg_stat_force_next_flush()",
            "SELECT horizon >= date_trunc('day', max(at)) + interval '3 days' FROM tally.partition_status, days
             WHERE parent = 'days'::regclass GROUP BY horizon",
        ),
        // Event triggers note what is altered. Without them it is seen half an hour later.
        (
            "ALTER EVENT TRIGGER tally_before_ddl DISABLE; ALTER EVENT TRIGGER tally_follow_ddl DISABLE;
             SELECT format('DROP TABLE %s', max(inhrelid::regclass::text)) FROM pg_inherits WHERE inhparent = 'hours'::regclass \\gexec
             ALTER EVENT TRIGGER tally_before_ddl ENABLE ALWAYS; ALTER EVENT TRIGGER tally_follow_ddl ENABLE ALWAYS;
             UPDATE tally.idle_sets SET looked_at = looked_at - interval '31 minutes'",
            "SELECT horizon >= now() + interval '3 days' FROM tally.partition_status WHERE parent = 'hours'::regclass",
        ),
        (
            "SELECT tally.set_partition_policy('days', retention => '1 day', lateness => '0'); UPDATE tally.jobs SET every = '1 second'",
            "SELECT count(*) > 0 AND bool_and(state = 'trash') FROM tally.retirements",
        ),
        // Nothing happens until its time has come.
        (
            "UPDATE tally.retirements SET drop_after = now() + interval '4 seconds'",
            "SELECT count(*) = 0 FROM tally.retirements",
        ),
    ] {
        database.psql(statements);
        eventually_true(&mut session, followed);
        come_to_rest(&cluster, &database, 1);
    }
}
