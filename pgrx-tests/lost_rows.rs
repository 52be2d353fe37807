//! Where other systems lose rows, count them twice or stall: each of the known ways, by name.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use tally_server_tests::cluster::{self, Cluster, Database};

use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, own_pid, pending, refusal, wait_until_blocked};
use crate::refresh::{HALTING, HALTING_QUERY, QUERY, create, insert, pause_job, refresh, session};

#[test]
fn cached_sequence_loses_nothing() {
    let database = cluster::database();
    let (mut session, mut low, mut high) = (session(&database), database.connect(), database.connect());
    session.batch_execute("CREATE SEQUENCE cached CACHE 50; ALTER TABLE events ALTER id DROP IDENTITY").unwrap();
    session.batch_execute("ALTER TABLE events ALTER id SET DEFAULT nextval('cached')").unwrap();
    insert(&mut low);
    insert(&mut high);
    refresh(&mut session);
    insert(&mut low);
    let row = session.query_one("SELECT array_agg(id ORDER BY id) FROM events WHERE id <> 1", &[]).unwrap();
    assert_eq!(row.get::<_, Vec<i64>>(0), [2, 3, 4, 51, 52], "an id of the last insert is below ids that are counted");
    assert_eq!(pending(&mut session, "events"), 2);
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

/// The statements in between are refreshed after each.
#[track_caller]
fn assert_counted(statements: &[&str]) {
    let database = cluster::database();
    let mut session = session(&database);
    for statement in statements {
        session.batch_execute(statement).unwrap();
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
    }
}

#[test]
fn ids_fetched_ahead_by_the_client_are_counted() {
    let database = cluster::database();
    let mut session = session(&database);
    let fetch = "SELECT array_agg(nextval(pg_get_serial_sequence('events', 'id'))) FROM generate_series(1, 100)";
    let ids: Vec<i64> = session.query_one(fetch, &[]).unwrap().get(0);
    session.batch_execute("INSERT INTO events (tenant, amount) VALUES (1, 1)").unwrap();
    refresh(&mut session);
    for id in ids.iter().rev().step_by(9) {
        session.execute("INSERT INTO events (id, tenant, amount) VALUES ($1, 1, 5)", &[id]).unwrap();
        assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
    }
}

#[test]
fn explicit_ids_are_counted() {
    assert_counted(&[
        "INSERT INTO events (id, tenant, amount) VALUES (7000, 1, 1)",
        "INSERT INTO events (id, tenant, amount) VALUES (7, 1, 2), (-5, 1, 2), (7, 2, 2)",
        "INSERT INTO events (id, tenant, amount) OVERRIDING SYSTEM VALUE VALUES (6999, 1, 2)",
        "UPDATE events SET id = id - 1000000",
    ]);
}

#[test]
fn restarted_identity_is_counted() {
    assert_counted(&[
        "INSERT INTO events (tenant, amount) SELECT 1, i FROM generate_series(1, 50) AS i",
        "ALTER TABLE events ALTER id RESTART",
        "INSERT INTO events (tenant, amount) VALUES (3, 3), (3, 3)",
        "TRUNCATE events RESTART IDENTITY",
        "INSERT INTO events (tenant, amount) VALUES (3, 3), (3, 3)",
    ]);
}

#[test]
fn insert_straight_into_a_partition_is_counted() {
    let database = cluster::database();
    let mut session = partitioned(&database);
    let (mut writer, mut open) = (database.connect(), database.connect());
    open.batch_execute("BEGIN; INSERT INTO night VALUES ('2024-03-31 03:00Z', 1, 1)").unwrap();
    for (table, time) in
        [("day_1", "2024-03-30 05:00Z"), ("day_2", "2024-03-31 15:00Z"), ("night", "2024-03-31 02:00Z")]
    {
        writer.batch_execute(&format!("INSERT INTO {table} VALUES ('{time}', 2, 3)")).unwrap();
        assert_equal_now_and_refreshed_but_open(&mut session);
        writer
            .batch_execute(&format!("COPY {table} (event_time, tenant) FROM PROGRAM 'echo {time},4' (FORMAT csv)"))
            .unwrap();
        assert_equal_now_and_refreshed_but_open(&mut session);
    }
    open.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut session, "days", "events", DAYS);
}

/// Partitions of UTC days, one of them by the hour again; buckets are days of New York.
const DAYS: &str = "SELECT date_trunc('day', event_time, 'America/New_York') AS day, tenant, count(*) AS n, sum(amount) AS total \
    FROM events GROUP BY 1, 2";

fn partitioned(database: &Database) -> Client {
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (event_time timestamptz NOT NULL, tenant int, amount int) PARTITION BY RANGE (event_time); \
             CREATE TABLE day_0 PARTITION OF events FOR VALUES FROM ('2024-03-09Z') TO ('2024-03-30Z'); \
             CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-03-30Z') TO ('2024-03-31Z'); \
             CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM ('2024-03-31Z') TO ('2024-04-01Z') \
               PARTITION BY RANGE (event_time); \
             CREATE TABLE night PARTITION OF day_2 FOR VALUES FROM ('2024-03-31 00:00Z') TO ('2024-03-31 06:00Z'); \
             CREATE TABLE rest PARTITION OF day_2 DEFAULT; \
             INSERT INTO events SELECT '2024-03-30 20:00Z'::timestamptz + make_interval(hours => i), i % 3, i \
               FROM generate_series(1, 20) AS i",
        )
        .unwrap();
    create(&mut session, "days", DAYS);
    session
}

#[track_caller]
fn assert_equal_now_and_refreshed_but_open(session: &mut Client) {
    assert_equal(session, "days", DAYS);
    session.batch_execute("CALL tally.refresh('days')").unwrap();
    assert_equal(session, "days", DAYS);
}

#[test]
fn bulk_write_over_partitions_and_buckets_of_another_zone_is_counted() {
    let database = cluster::database();
    let mut session = partitioned(&database);
    let mut open = database.connect();
    // With the change to summer time in New York (10 March) and at the ends of the days of both zones.
    let bulk = "INSERT INTO events SELECT t, extract(hour FROM t AT TIME ZONE 'UTC')::int % 4, 1 \
        FROM generate_series('2024-03-09Z'::timestamptz, '2024-03-31 23:59:59Z', '29 min 59 s') AS t";
    for statement in [
        bulk,
        "UPDATE events SET event_time = event_time + interval '5 hours' WHERE event_time < '2024-03-31 18:00Z'",
        "DELETE FROM events WHERE event_time BETWEEN '2024-03-10 04:00Z' AND '2024-03-30 12:00Z'",
        "WITH gone AS (DELETE FROM events RETURNING *) INSERT INTO events SELECT event_time, tenant, amount FROM gone",
    ] {
        open.batch_execute(&format!("BEGIN; {bulk}")).unwrap();
        session.batch_execute(statement).unwrap();
        assert_equal_now_and_refreshed_but_open(&mut session);
        open.batch_execute("COMMIT").unwrap();
        assert_equal_now_and_refreshed(&mut session, "days", "events", DAYS);
    }
}

/// It was off the net for a year, and sends a reading for every hour.
#[test]
fn late_device_over_a_year_of_buckets_costs_what_it_brings() {
    const READINGS: &str = "SELECT date_bin('5 minutes', event_time, '2000-01-01Z') AS bucket, tenant AS device, count(*) AS n, \
        min(amount) AS least FROM events GROUP BY 1, 2";
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "readings", READINGS);
    let year = "SELECT generate_series('2023-01-01Z'::timestamptz, '2023-12-31 23:00Z', '1 hour')";
    session.batch_execute(&format!("INSERT INTO events (event_time, tenant, amount) SELECT t, d, 1 FROM ({year}) AS y (t), generate_series(1, 5) AS d")).unwrap();
    pause_job(&mut session);
    session
        .batch_execute(&format!(
            "INSERT INTO events (event_time, tenant, amount) SELECT t, 6, 2 FROM ({year}) AS y (t)"
        ))
        .unwrap();
    assert_equal(&mut session, "readings", READINGS);
    refresh(&mut session);
    let row = session.query_one("SELECT refreshed_rows, refreshed_groups FROM tally.sources", &[]).unwrap();
    // One group of the device in `totals`, and one for each hour.
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (365 * 24, 365 * 24 + 1));
    // And once more, over groups that are stored.
    session
        .batch_execute(&format!(
            "INSERT INTO events (event_time, tenant, amount) SELECT t, 6, 1 FROM ({year}) AS y (t)"
        ))
        .unwrap();
    assert_equal_now_and_refreshed(&mut session, "readings", "events", READINGS);
    assert_equal(&mut session, "totals", QUERY);
}

#[test]
fn row_from_below_any_watermark_lands_in_its_own_bucket() {
    const HOURS: &str =
        "SELECT date_bin('1 hour', event_time, '2000-01-01Z') AS hour, count(*) AS n FROM events GROUP BY 1";
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "hours", HOURS);
    session.batch_execute("INSERT INTO events (event_time) SELECT generate_series('2024-01-01Z'::timestamptz, '2024-01-03Z', '10 min')").unwrap();
    refresh(&mut session);
    // Late by days, from before everything else, and from the future.
    session
        .batch_execute(
            "INSERT INTO events (event_time) VALUES ('2024-01-01 05:59:59Z'), ('1970-01-01Z'), ('2924-01-01Z')",
        )
        .unwrap();
    assert_equal_now_and_refreshed(&mut session, "hours", "events", HOURS);
    let row = session.query_one("SELECT n FROM hours WHERE hour = '2024-01-01 05:00Z'", &[]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 7);
}

#[test]
fn duplicates_are_counted_each() {
    const EQUAL: &str = "SELECT event_time, tenant, count(*) AS n, sum(amount) AS total FROM events GROUP BY 1, 2";
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "equals", EQUAL);
    let twice =
        "INSERT INTO events (id, event_time, tenant, amount) VALUES (1, '2024-01-01Z', 1, 5), (1, '2024-01-01Z', 1, 5)";
    for _ in 0..3 {
        session.batch_execute(&format!("BEGIN; {twice}; SAVEPOINT s; {twice}; COMMIT")).unwrap();
        assert_equal(&mut session, "equals", EQUAL);
        session.batch_execute(twice).unwrap();
        assert_equal_now_and_refreshed(&mut session, "equals", "events", EQUAL);
    }
    let row = session.query_one("SELECT n FROM equals WHERE event_time = '2024-01-01Z'", &[]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 18);
    // One of them goes, the others stay.
    let one = "DELETE FROM events WHERE ctid = (SELECT min(ctid) FROM events WHERE event_time = '2024-01-01Z')";
    session.batch_execute(one).unwrap();
    assert_equal_now_and_refreshed(&mut session, "equals", "events", EQUAL);
    // And those that are refused are not counted.
    session
        .batch_execute(
            "DELETE FROM events WHERE event_time = '2024-01-01Z'; CREATE UNIQUE INDEX ON events (event_time, tenant)",
        )
        .unwrap();
    session.batch_execute(&format!("{twice} ON CONFLICT DO NOTHING")).unwrap();
    assert_eq!(refusal(&mut session, twice).code().code(), "23505");
    assert_equal_now_and_refreshed(&mut session, "equals", "events", EQUAL);
    let row = session.query_one("SELECT n FROM equals WHERE event_time = '2024-01-01Z'", &[]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[test]
fn null_dimension_stays_one_group() {
    let database = cluster::database();
    let mut session = session(&database);
    for _ in 0..3 {
        session.batch_execute("INSERT INTO events (tenant, amount) VALUES (NULL, 1)").unwrap();
        refresh(&mut session);
    }
    let row =
        session.query_one("SELECT count(*), sum(n)::bigint FROM totals_stored WHERE tenant IS NULL", &[]).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (1, 3));
    assert_equal(&mut session, "totals", QUERY);
}

#[test]
fn idle_writer_is_counted_after_many_refreshes() {
    let database = cluster::database();
    let (mut session, mut idle) = (session(&database), database.connect());
    idle.batch_execute("BEGIN").unwrap();
    insert(&mut idle);
    idle.batch_execute("UPDATE events SET amount = 7 WHERE tenant = 1").unwrap();
    for _ in 0..100 {
        insert(&mut session);
        refresh(&mut session);
    }
    assert_equal(&mut session, "totals", QUERY);
    assert_equal(&mut idle, "totals", QUERY);
    idle.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn prepared_transaction_is_counted_after_many_refreshes_and_restarts() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut client = session(&database);
    for name in ["one", "two", "three"] {
        client.batch_execute("BEGIN").unwrap();
        insert(&mut client);
        client.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).unwrap();
        refresh(&mut client);
    }
    for stop in [Cluster::restart, Cluster::crash] {
        insert(&mut client);
        refresh(&mut client);
        assert_equal(&mut client, "totals", QUERY);
        stop(&cluster);
        client = database.connect();
        insert(&mut client);
        refresh(&mut client);
    }
    for end in ["COMMIT PREPARED 'two'", "ROLLBACK PREPARED 'one'", "COMMIT PREPARED 'three'"] {
        client.batch_execute(end).unwrap();
        assert_equal_now_and_refreshed(&mut client, "totals", "events", QUERY);
    }
}

#[test]
fn lock_timeout_during_refresh_loses_nothing() {
    // A worker that refreshes meanwhile would be waited for.
    let database = cluster::database_without_workers();
    let (mut session, mut writer, mut refresher) = (session(&database), database.connect(), database.connect());
    writer.batch_execute("SET lock_timeout = '1ms'; BEGIN").unwrap();
    insert(&mut writer);
    refresher.batch_execute("BEGIN").unwrap();
    insert(&mut session);
    refresh(&mut refresher);
    // A refresh waits for nobody but another refresh.
    insert(&mut writer);
    session.batch_execute("SET lock_timeout = '1ms'").unwrap();
    assert_eq!(refusal(&mut session, "CALL tally.refresh('totals')").code().code(), "55P03");
    writer.batch_execute("COMMIT").unwrap();
    refresher.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn refresh_in_repeatable_read_is_refused() {
    let database = cluster::database();
    let mut session = session(&database);
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        session.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}")).unwrap();
        let error = refusal(&mut session, "CALL tally.refresh('totals')");
        assert_eq!(error.code().code(), "25001");
        assert!(error.hint().is_some_and(|hint| hint.contains("READ COMMITTED")), "{error:?}");
        session.batch_execute("ROLLBACK").unwrap();
    }
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn rolled_back_savepoint_is_not_counted() {
    let database = cluster::database();
    let (mut session, mut writer) = (session(&database), database.connect());
    writer.batch_execute("BEGIN").unwrap();
    for number in 0..70 {
        writer.batch_execute("SAVEPOINT s").unwrap();
        insert(&mut writer);
        // With more than 64 subtransactions the server keeps their ids elsewhere.
        writer.batch_execute(if number % 5 == 0 { "ROLLBACK TO s" } else { "RELEASE s" }).unwrap();
        if number % 20 == 0 {
            refresh(&mut session);
            assert_equal(&mut writer, "totals", QUERY);
        }
    }
    writer.batch_execute("COMMIT").unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn eight_refreshers_at_once_count_every_row_once() {
    let database = cluster::database();
    let mut session = session(&database);
    let deadline = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut refresher = database.connect();
                while Instant::now() < deadline {
                    refresh(&mut refresher);
                }
            });
        }
        while Instant::now() < deadline {
            insert(&mut session);
        }
    });
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

/// Locks that hold up a refresh, each in another phase of it.
const PHASES: [(&str, &str); 7] = [
    ("waits for another refresh", "CALL tally.refresh('totals')"),
    ("looks for new rows", "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"),
    ("looks for changes", "LOCK TABLE events_changes IN ACCESS EXCLUSIVE MODE"),
    ("reads rows", "SELECT pg_advisory_xact_lock(1)"),
    ("writes groups", "LOCK TABLE totals_stored, halting_stored IN SHARE MODE"),
    ("forgets changes", "LOCK TABLE events_changes IN SHARE MODE"),
    ("stores its state", "LOCK TABLE tally.sources IN SHARE MODE"),
];

/// A refresh is held up in each phase, ended, and has left everything as it was. `end` gets the process.
fn assert_whole_or_not_at_all(cluster: &Cluster, mut end: impl FnMut(&mut Client, i32)) {
    let database = cluster.database();
    let mut session = session(&database);
    session.batch_execute(HALTING).unwrap();
    create(&mut session, "halting", HALTING_QUERY);
    pause_job(&mut session);
    for (phase, lock) in PHASES {
        insert(&mut session);
        session
            .batch_execute("UPDATE events SET amount = amount + 1 WHERE id % 3 = 0; DELETE FROM events WHERE id = 2")
            .unwrap();
        let (uncounted, before) = (pending(&mut session, "events"), stored(&mut session));
        let (mut holder, mut refresher) = (database.connect(), database.connect());
        holder.batch_execute(&format!("BEGIN; {lock}")).unwrap();
        let pid = own_pid(&mut refresher);
        let refresh = thread::spawn(move || refresher.batch_execute("CALL tally.refresh('totals')"));
        wait_until_blocked(&mut session, pid);
        end(&mut session, pid);
        assert!(refresh.join().unwrap().is_err(), "the refresh that {phase} went on");
        let _ = holder.batch_execute("ROLLBACK");
        // A kill has ended this one as well.
        session = database.connect();
        assert_eq!(pending(&mut session, "events"), uncounted, "the refresh that {phase} counted rows");
        assert_eq!(stored(&mut session), before, "the refresh that {phase} wrote groups");
        for (rollup, query) in [("totals", QUERY), ("halting", HALTING_QUERY)] {
            assert_equal_now_and_refreshed(&mut session, rollup, "events", query);
        }
    }
}

fn stored(session: &mut Client) -> Vec<String> {
    let query = "SELECT s::text FROM totals_stored AS s UNION ALL SELECT s::text FROM halting_stored AS s ORDER BY 1";
    session.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn refresh_that_is_canceled_in_any_phase_leaves_all_as_it_was() {
    assert_whole_or_not_at_all(Cluster::shared(), |session, pid| {
        session.execute("SELECT pg_cancel_backend($1)", &[&pid]).unwrap();
    });
}

#[test]
fn refresh_that_is_terminated_in_any_phase_leaves_all_as_it_was() {
    assert_whole_or_not_at_all(Cluster::shared(), |session, pid| {
        session.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    });
}

#[test]
fn refresh_that_is_killed_in_any_phase_leaves_all_as_it_was() {
    let cluster = Cluster::start(&[("tally.enabled", "off")]);
    assert_whole_or_not_at_all(&cluster, |_, pid| assert!(cluster.kill_backend(pid), "it has ended by itself"));
}

/// In whatever it does at that moment: the phases above, and what is between them.
#[test]
fn refresh_that_is_canceled_at_any_moment_loses_nothing() {
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "second", "SELECT amount, count(*) AS n FROM events GROUP BY 1");
    let (mut refresher, mut canceled) = (database.connect(), 0);
    for round in 1..=100 {
        session
            .batch_execute(&format!(
                "INSERT INTO events (tenant, amount) SELECT i % 5, i FROM generate_series(1, 200) AS i; \
                 DELETE FROM events WHERE id % 11 = {round} % 11"
            ))
            .unwrap();
        // The server ends it after so many milliseconds, as it would for pg_cancel_backend.
        let within = format!("SET statement_timeout = {}; CALL tally.refresh('totals')", 1 + round % 40);
        if let Err(error) = refresher.batch_execute(&within) {
            assert_eq!(error.code().unwrap().code(), "57014", "{error:?}");
            canceled += 1;
        }
        assert_equal(&mut session, "totals", QUERY);
    }
    println!("{canceled} of 100 refreshes were canceled");
    assert_equal_now_and_refreshed(
        &mut session,
        "second",
        "events",
        "SELECT amount, count(*) AS n FROM events GROUP BY 1",
    );
}
