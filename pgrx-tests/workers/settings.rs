//! Settings of a database that jobs could not work with do not reach them.

use super::*;

#[test]
fn settings_of_the_database_stop_no_job() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = database.connect();
    session
        .batch_execute(&SLOW_ROLLUP.replace("pg_sleep(60)", "pg_sleep(0.8)").replace("INSERT", "-- INSERT"))
        .unwrap();
    let is_17 = is_17(&mut session);
    let mut settings = vec![
        ("statement_timeout", "300ms"),
        ("lock_timeout", "1ms"),
        ("idle_in_transaction_session_timeout", "300ms"),
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_deferrable", "on"),
        ("search_path", "nowhere"),
        ("session_replication_role", "replica"),
        ("TimeZone", "Asia/Tokyo"),
        ("DateStyle", "German"),
        ("IntervalStyle", "sql_standard"),
    ];
    settings.extend(is_17.then_some(("transaction_timeout", "300ms")));
    for (name, value) in settings {
        session.batch_execute(&format!("ALTER DATABASE {} SET {name} = '{value}'", database.name())).unwrap();
    }
    // This session has been there before.
    session
        .batch_execute(
            "CREATE TABLE visits (at timestamptz NOT NULL, k int) PARTITION BY RANGE (at);
             SELECT tally.partition_by_time('visits', '1 day', lateness => '4 days', grace => '0');
             INSERT INTO visits SELECT now() - i * interval '1 day', i FROM generate_series(0, 4) i;
             SELECT tally.set_partition_policy('visits', lateness => '2 days', retention => '2 days');
             INSERT INTO events VALUES (1, 1)",
        )
        .unwrap();
    eventually_true(&mut session, "SELECT total = 1 FROM totals_stored");
    eventually_true(&mut session, "SELECT accepts_from >= now() - interval '3 days' FROM tally.partition_status");
    eventually_true(&mut session, "SELECT NOT EXISTS (SELECT FROM tally.retirements)");
    assert_eq!(number(&mut session, "SELECT sum(failures)::bigint FROM tally.job_states"), 0);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.runs WHERE sqlstate IS NOT NULL"), 0);
    let names =
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
                 WHERE inhparent = 'visits'::regclass AND relname !~ '^visits_p[0-9]{8}$'";
    assert_eq!(text(&mut session, names), None);
}
