//! Partition sets: what is made, under which locks, and what is refused.

mod default;
mod idle;
mod pg_partman;
mod upkeep;
mod verdicts;
mod zones;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::oracle::{is_17, number};
use postgres::Client;
use postgres::error::SqlState;
use tally_server_tests::cluster::{self, Cluster, Database};

/// The table of most tests, registered with days.
const EVENTS: &str = "
    CREATE TABLE events (event_id bigserial, event_time timestamptz NOT NULL, customer_id bigint NOT NULL, note text)
        PARTITION BY RANGE (event_time);
    CREATE INDEX ON events (customer_id, event_time);";

/// Registers `events` with days and keeps the background worker from its job, so that a test can run it at its own time.
const REGISTER_PAUSED: &str = "
    BEGIN;
    SELECT tally.partition_by_time('events', '1 day');
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;";

/// Name, lower and upper bound in UTC of every partition, oldest first.
const BOUNDS: &str = "
    SELECT c.relname::text, m[1]::timestamptz AT TIME ZONE 'UTC', m[2]::timestamptz AT TIME ZONE 'UTC'
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    CROSS JOIN LATERAL regexp_match(pg_get_expr(c.relpartbound, c.oid), $$FROM \\('(.*)'\\) TO \\('(.*)'\\)$$) AS m
    WHERE i.inhparent = $1::text::regclass ORDER BY 2";

fn strings(session: &mut Client, query: &str) -> Vec<String> {
    session.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// `name lower upper` of each partition; the session's settings are left as they are but for the time of the query.
fn bounds(database: &Database<'_>, parent: &str) -> Vec<String> {
    let mut session = database.connect();
    let query = BOUNDS.replacen("SELECT c.relname::text,", "SELECT concat_ws(' ', c.relname,", 1).replacen(
        "AT TIME ZONE 'UTC'\n    FROM",
        "AT TIME ZONE 'UTC')\n    FROM",
        1,
    );
    let query = query.replace("ORDER BY 2", "ORDER BY m[1]::timestamptz");
    session.query(&query, &[&parent]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[track_caller]
fn assert_refused(session: &mut Client, statement: &str, sqlstate: &str, message: &str) {
    let error = session.batch_execute(statement).expect_err(statement);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{statement}: {error}"));
    assert_eq!((error.code().code(), error.message()), (sqlstate, message), "{statement}");
    assert!(error.hint().is_some() || sqlstate == "42501" || sqlstate == "22004", "{statement}: no hint");
}

#[test]
fn a_set_gets_partitions_for_late_rows_and_for_a_week_without_workers() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(EVENTS).unwrap();
    let made = number(&mut session, "SELECT tally.partition_by_time('events', '1 day')");
    let status = session
        .query_one(
            "SELECT verdict, partitions, accepts_from = date_trunc('day', now() - interval '2 days', 'UTC'),
                    horizon >= now() + interval '7 days' AND horizon < now() + interval '8 days', ahead = horizon - now()
                      OR ahead BETWEEN interval '7 days' AND interval '8 days', reason
             FROM tally.partition_status WHERE parent = 'events'::regclass",
            &[],
        )
        .unwrap();
    assert_eq!(status.get::<_, String>(0), "ok", "{:?}", status.get::<_, Option<String>>(5));
    assert_eq!(status.get::<_, i64>(1), made);
    assert!((2..5).all(|column| status.get::<_, bool>(column)));
    session
        .batch_execute(
            "INSERT INTO events (event_time, customer_id)
             SELECT now() + days * interval '1 day', 1 FROM generate_series(-2, 7) AS days",
        )
        .unwrap();
    assert_eq!(
        number(&mut session, "SELECT count(*) FROM tally.jobs WHERE object = 'events'::regclass AND kind = 'premake'"),
        1
    );
}

#[test]
fn each_reason_to_refuse_a_table_has_its_own_error() {
    let database = cluster::database();
    let mut session = database.connect();
    let role = format!("{}_owner", database.name());
    session
        .batch_execute(&format!(
            "CREATE TABLE plain (at timestamptz NOT NULL);
             CREATE VIEW seen AS SELECT * FROM plain;
             CREATE TEMP TABLE fleeting (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE listed (at timestamptz NOT NULL) PARTITION BY LIST (at);
             CREATE TABLE hashed (at timestamptz NOT NULL) PARTITION BY HASH (at);
             CREATE TABLE two (at timestamptz NOT NULL, n int NOT NULL) PARTITION BY RANGE (at, n);
             CREATE TABLE computed (at timestamptz NOT NULL) PARTITION BY RANGE ((at AT TIME ZONE 'UTC'));
             CREATE TABLE numbered (n bigint NOT NULL) PARTITION BY RANGE (n);
             CREATE TABLE nullable (at timestamptz) PARTITION BY RANGE (at);
             CREATE TABLE defaulted (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE rest PARTITION OF defaulted DEFAULT;
             CREATE TABLE endless (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE for_ever PARTITION OF endless FOR VALUES FROM ('2026-01-01') TO (MAXVALUE);
             CREATE TABLE nested (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE inner_set PARTITION OF nested FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY RANGE (at);
             CREATE FOREIGN DATA WRAPPER none;
             CREATE SERVER nowhere FOREIGN DATA WRAPPER none;
             CREATE TABLE remote (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE FOREIGN TABLE far PARTITION OF remote FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') SERVER nowhere;
             CREATE TABLE dated (day date NOT NULL) PARTITION BY RANGE (day);
             CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE twice (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             SELECT tally.partition_by_time('twice', '1 day');
             CREATE ROLE {role}_nologin;
             CREATE SCHEMA theirs;
             CREATE TABLE theirs.closed (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             GRANT USAGE, CREATE ON SCHEMA theirs TO {role}_nologin;
             ALTER TABLE theirs.closed OWNER TO {role}_nologin;
             CREATE ROLE {role} LOGIN;
             CREATE SCHEMA locked;
             CREATE TABLE locked.out (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             ALTER TABLE locked.out OWNER TO {role};"
        ))
        .unwrap();
    let refused = [
        ("plain", "42809", "table public.plain is not partitioned".into()),
        ("seen", "42809", "public.seen is not a table".into()),
        ("fleeting", "0A000", "table fleeting is temporary".into()),
        ("listed", "0A000", "table public.listed is partitioned by list, not by range".into()),
        ("hashed", "0A000", "table public.hashed is partitioned by hash, not by range".into()),
        ("two", "0A000", "table public.two is partitioned by 2 columns".into()),
        ("computed", "0A000", "table public.computed is partitioned by an expression".into()),
        ("numbered", "0A000", "partition key n has type bigint".into()),
        ("nullable", "55000", "partition key at may be null".into()),
        ("defaulted", "55000", "table public.defaulted has the default partition public.rest".into()),
        ("endless", "55000", "partition public.for_ever of table public.endless ends at MAXVALUE".into()),
        ("nested", "0A000", "partition public.inner_set is partitioned itself".into()),
        ("inner_set", "42809", "table public.inner_set is a partition itself".into()),
        ("remote", "0A000", "partition public.far is a foreign table".into()),
        ("twice", "42710", "table public.twice has a partition policy already".into()),
        ("theirs.closed", "55000", format!("owner {role}_nologin of the table may not log in")),
        ("locked.out", "42501", format!("owner {role} of the table may not create tables in schema locked")),
    ];
    let any_owner = is_17(&mut session);
    for (table, sqlstate, message) in &refused {
        if any_owner && message.contains("may not log in") {
            continue;
        }
        let call = format!("SELECT tally.partition_by_time('{table}', '1 day')");
        if session.query_one("SELECT to_regclass($1) IS NULL", &[table]).unwrap().get(0) {
            panic!("{table} is not there");
        }
        let temporary = message.replace("table fleeting", "table pg_temp");
        let error = session.batch_execute(&call).expect_err(&call);
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), *sqlstate, "{call}: {}", error.message());
        assert!(error.message() == message || temporary.contains("pg_temp"), "{call}: {}", error.message());
        assert!(error.hint().is_some(), "{call}: no hint");
    }
    for (arguments, sqlstate, message) in [
        ("'events', '2 days'", "22023", "partition width 2 days is not allowed"),
        ("'events', '24:00'", "22023", "partition width 86400 seconds is not allowed"),
        ("'dated', '1 hour'", "22023", "partition width 3600 seconds is too small for a key of type date"),
        ("'events', '1 day', time_zone => 'CEST'", "22023", "time zone \"CEST\" is not known"),
        ("'events', '1 day', time_zone => 'XYZ-3'", "22023", "time zone \"XYZ-3\" is not known"),
        ("'events', '1 day', premake => '-1 day'", "22023", "premake must not be negative, but is -1 days"),
        ("'events', '1 day', lateness => '-1 day'", "22023", "lateness must not be negative, but is -1 days"),
        ("'events', '1 day', far_future => '-1 day'", "22023", "far_future must not be negative, but is -1 days"),
        (
            "'events', '1 day', retention => '1 day'",
            "22023",
            "retention of 1 days is shorter than the lateness of 2 days",
        ),
        ("'events', '1 day', retention => '-90 days'", "22023", "retention must not be negative, but is -90 days"),
        ("'events', '1 day', grace => '-1 day'", "22023", "grace must not be negative, but is -1 days"),
        (
            "'events', '1 day', detach_deadline => '-1 day'",
            "22023",
            "detach_deadline must not be negative, but is -1 days",
        ),
        ("NULL, '1 day'", "22004", "parent must not be null"),
        ("'events', NULL", "22004", "partition_width must not be null"),
        ("'events', '1 day', lateness => NULL", "22004", "lateness must not be null"),
    ] {
        assert_refused(&mut session, &format!("SELECT tally.partition_by_time({arguments})"), sqlstate, message);
    }
    // Debian 13 has such zones in a package of their own.
    if number(&mut session, "SELECT count(*) FROM pg_timezone_names WHERE name = 'CET'") > 0 {
        let call = "SELECT tally.partition_by_time('events', '1 day', time_zone => 'cet')";
        let message = "time zone \"CET\" is also an abbreviation, and that means other times";
        assert_refused(&mut session, call, "22023", message);
    }
    let mut stranger = database.connect_as(&role);
    let call = "SELECT tally.partition_by_time('events', '1 day')";
    assert_refused(&mut stranger, call, "42501", "must be owner of table public.events");
    assert_eq!(
        number(&mut session, "SELECT count(*) FROM tally.partition_policies"),
        1,
        "only what was allowed is stored"
    );
    session
        .batch_execute(&format!(
            "DROP SCHEMA theirs, locked CASCADE; DROP OWNED BY {role}, {role}_nologin; DROP ROLE {role}, {role}_nologin"
        ))
        .unwrap();
}

/// Runs `work` while a report holds its locks on every partition and one client inserts all the time, never waiting for a lock longer
/// than a millisecond. Returns the failures, the number of inserts and the slowest one.
fn inserts_beside(database: &Database<'_>, work: impl FnOnce()) -> (Vec<SqlState>, u32, Duration) {
    let mut report = database.connect();
    report.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
    let (stop, mut failures, mut inserts, mut slowest) = (AtomicBool::new(false), Vec::new(), 0, Duration::ZERO);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = database.connect();
            writer.batch_execute("SET lock_timeout = '1ms'").unwrap();
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                if let Err(error) =
                    writer.batch_execute("INSERT INTO events (event_time, customer_id) VALUES (now(), 1)")
                {
                    failures.push(error.code().cloned().unwrap_or(SqlState::INTERNAL_ERROR));
                }
                slowest = slowest.max(started.elapsed());
                inserts += 1;
            }
        });
        work();
        stop.store(true, Ordering::Relaxed);
    });
    report.batch_execute("COMMIT").unwrap();
    (failures, inserts, slowest)
}

#[test]
fn no_insert_waits_while_partitions_are_made_beside_an_open_report() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(&format!("{EVENTS} SELECT tally.partition_by_time('events', '1 day');")).unwrap();

    let (failures, inserts, slowest) = inserts_beside(&database, || {
        let mut maker = database.connect();
        let made = number(
            &mut maker,
            "SELECT tally.ensure_partitions('events', now(), now() + interval '100 days')
                  + tally.ensure_partitions('events', now() - interval '100 days', now())",
        );
        assert!(made > 150, "only {made} made");
    });
    println!("{inserts} inserts, the slowest took {slowest:?}");
    assert_eq!(failures, []);
    assert!(inserts > 50, "only {inserts} inserts");

    // The same with what PostgreSQL offers by itself, to show that this test can fail.
    let (failures, ..) = inserts_beside(&database, || {
        let mut maker = database.connect();
        maker.batch_execute("SET lock_timeout = '1s'").unwrap();
        let statement = "CREATE TABLE later PARTITION OF events FOR VALUES FROM ('2050-01-01') TO ('2050-01-02')";
        assert_eq!(maker.batch_execute(statement).unwrap_err().code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
    });
    assert!(failures.contains(&SqlState::LOCK_NOT_AVAILABLE));
}

#[test]
fn only_share_update_exclusive_is_taken_on_the_parent() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "CREATE TABLE customers (id bigint PRIMARY KEY);
             {EVENTS}
             ALTER TABLE events ADD FOREIGN KEY (customer_id) REFERENCES customers;
             SELECT tally.partition_by_time('events', '1 day');"
        ))
        .unwrap();
    session
        .batch_execute("BEGIN; SELECT tally.ensure_partitions('events', now(), now() + interval '30 days')")
        .unwrap();
    let strongest = |session: &mut Client, table: &str| {
        strings(
            session,
            &format!(
                "SELECT mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation = '{table}'::regclass
                   AND mode NOT IN ('AccessShareLock', 'RowShareLock') ORDER BY mode"
            ),
        )
    };
    assert_eq!(strongest(&mut session, "events"), ["ShareUpdateExclusiveLock"]);
    assert_eq!(strongest(&mut session, "customers"), ["ShareRowExclusiveLock"]);
    session.batch_execute("COMMIT").unwrap();
}

#[test]
fn a_busy_target_of_a_foreign_key_is_not_queued_for() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "CREATE TABLE customers (id bigint PRIMARY KEY);
             {EVENTS}
             ALTER TABLE events ADD FOREIGN KEY (customer_id) REFERENCES customers;
             SELECT tally.partition_by_time('events', '1 day');"
        ))
        .unwrap();
    let mut writer = database.connect();
    writer.batch_execute("BEGIN; INSERT INTO customers VALUES (1)").unwrap();
    let mut second = database.connect();
    let error = thread::scope(|scope| {
        let maker = scope.spawn(|| {
            database
                .connect()
                .batch_execute("SELECT tally.ensure_partitions('events', now(), now() + interval '30 days')")
        });
        second.batch_execute("SET lock_timeout = '1ms'").unwrap();
        let mut id = 1;
        while !maker.is_finished() {
            id += 1;
            second
                .batch_execute(&format!("INSERT INTO customers VALUES ({id})"))
                .expect("a writer of the target waits");
        }
        maker.join().unwrap().unwrap_err()
    });
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code(), &SqlState::LOCK_NOT_AVAILABLE);
    assert!(error.message().contains("customers") && error.hint().is_some(), "{}", error.message());
    writer.batch_execute("COMMIT").unwrap();
    assert!(number(&mut session, "SELECT tally.ensure_partitions('events', now(), now() + interval '30 days')") > 20);
}

#[test]
fn a_target_that_is_never_free_by_chance_is_waited_for_shortly() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "CREATE TABLE customers (id bigserial PRIMARY KEY);
             {EVENTS}
             ALTER TABLE events ADD FOREIGN KEY (customer_id) REFERENCES customers;
             SELECT tally.partition_by_time('events', '1 day');"
        ))
        .unwrap();
    let stop = AtomicBool::new(false);
    let (made, slowest) = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut writer = database.connect();
                    let mut slowest = Duration::ZERO;
                    while !stop.load(Ordering::Relaxed) {
                        let started = Instant::now();
                        writer.batch_execute("BEGIN; INSERT INTO customers DEFAULT VALUES").unwrap();
                        slowest = slowest.max(started.elapsed());
                        writer.batch_execute("SELECT pg_sleep(0.02); COMMIT").unwrap();
                    }
                    slowest
                })
            })
            .collect();
        let made =
            session.query_one("SELECT tally.ensure_partitions('events', now(), now() + interval '10 days')", &[]);
        stop.store(true, Ordering::Relaxed);
        let slowest = writers.into_iter().map(|writer| writer.join().unwrap()).max();
        (made, slowest)
    });
    assert!(made.unwrap().get::<_, i64>(0) >= 1);
    println!("the slowest insert into the target took {slowest:?}");
}

#[test]
fn two_makers_make_each_partition_once() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(&format!("{EVENTS} SELECT tally.partition_by_time('events', '1 day');")).unwrap();
    let before = number(&mut session, "SELECT count(*) FROM pg_inherits");
    let made: i64 = thread::scope(|scope| {
        let makers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut maker = database.connect();
                    number(&mut maker, "SELECT tally.ensure_partitions('events', now(), now() + interval '60 days')")
                })
            })
            .collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).sum()
    });
    // An index of a partition is in pg_inherits too.
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_inherits") - before, 2 * made);
}

#[test]
fn bounds_and_names_are_the_same_from_every_session() {
    let made = |settings: &str| {
        let database = cluster::database();
        let mut session = database.connect();
        session
            .batch_execute(&format!(
                "{EVENTS} {settings}
                 SELECT tally.partition_by_time('events', '1 month', time_zone => 'Europe/Berlin');
                 SELECT tally.ensure_partitions('events', '2025-12-31 23:00:00+00', '2026-06-01 00:00:00+00');"
            ))
            .unwrap();
        bounds(&database, "events")
    };
    let expected = made("");
    assert_eq!(
        expected[..5],
        [
            "events_p20251231t2300 2025-12-31 23:00:00 2026-01-31 23:00:00",
            "events_p20260131t2300 2026-01-31 23:00:00 2026-02-28 23:00:00",
            "events_p20260228t2300 2026-02-28 23:00:00 2026-03-31 22:00:00",
            "events_p20260331t2200 2026-03-31 22:00:00 2026-04-30 22:00:00",
            "events_p20260430t2200 2026-04-30 22:00:00 2026-05-31 22:00:00",
        ]
    );
    for settings in [
        "SET TimeZone = 'America/New_York'; SET DateStyle = 'German, DMY'; SET IntervalStyle = 'iso_8601';",
        "SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'SQL, MDY'; SET search_path = '';
         SET search_path = public; SET default_tablespace = ''; SET standard_conforming_strings = off;",
        "SET TimeZone = 'Pacific/Apia'; SET DateStyle = 'Postgres, YMD'; SET quote_all_identifiers = on;
         SET extra_float_digits = -15; SET bytea_output = 'escape'; SET lc_time = 'C';",
    ] {
        assert_eq!(made(settings), expected, "{settings}");
    }
}

#[test]
fn the_hour_that_berlin_repeats_in_october_has_two_partitions() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{EVENTS}
             CREATE TABLE events_old PARTITION OF events FOR VALUES FROM ('2026-10-24 22:00:00+00') TO ('2026-10-24 23:00:00+00');
             SELECT tally.partition_by_time('events', '1 hour', time_zone => 'Europe/Berlin');
             INSERT INTO events (event_time, customer_id) VALUES ('2026-10-25 00:30:00+00', 1), ('2026-10-25 01:30:00+00', 1);"
        ))
        .unwrap();
    let hours = bounds(&database, "events");
    assert_eq!(
        hours[..4],
        [
            "events_old 2026-10-24 22:00:00 2026-10-24 23:00:00",
            "events_p20261024t2300 2026-10-24 23:00:00 2026-10-25 00:00:00",
            "events_p20261025t0000 2026-10-25 00:00:00 2026-10-25 01:00:00",
            "events_p20261025t0100 2026-10-25 01:00:00 2026-10-25 02:00:00",
        ]
    );
    assert_eq!(
        strings(&mut session, "SELECT tableoid::regclass::text FROM events ORDER BY event_time"),
        ["events_p20261025t0000", "events_p20261025t0100"]
    );
}

#[test]
fn an_adopted_set_is_continued_from_where_it_ends() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{EVENTS}
             SELECT set_config('test.end', to_char(date_trunc('day', now(), 'UTC') + interval '7 hours', 'YYYY-MM-DD HH24:MI:SSOF'), false);
             DO $$ BEGIN EXECUTE format('CREATE TABLE mine PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
                 (current_setting('test.end')::timestamptz - interval '9 days')::text, current_setting('test.end')); END $$;
             SELECT tally.partition_by_time('events', '1 day');"
        ))
        .unwrap();
    let all = bounds(&database, "events");
    assert!(all[0].starts_with("mine "));
    assert!(
        all[1].contains(" 07:00:00 ") && all[1].ends_with(" 00:00:00"),
        "off the grid until the next midnight: {}",
        all[1]
    );
    for pair in all.windows(2) {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&pair[0])[3..5], words(&pair[1])[1..3], "no gap and no overlap");
    }
    assert!(all[2..].iter().all(|line| line.matches(" 00:00:00").count() == 2));
}

#[test]
fn gaps_and_a_default_that_appeared_are_reported_with_the_statement_that_helps() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(&format!("{EVENTS} SELECT tally.partition_by_time('events', '1 day');")).unwrap();
    let status = |session: &mut Client| {
        let row = session
            .query_one(
                "SELECT verdict, coalesce(left(reason, 3), '-'), coalesce(next_sql, '') FROM tally.partition_status",
                &[],
            )
            .unwrap();
        (row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, String>(2))
    };
    session
        .batch_execute(
            "DO $$ BEGIN EXECUTE format('DROP TABLE %I',
                 to_char(now() AT TIME ZONE 'UTC' - interval '1 day', '\"events_p\"YYYYMMDD')); END $$",
        )
        .unwrap();
    let (verdict, code, next) = status(&mut session);
    assert_eq!((verdict.as_str(), code.as_str()), ("warning", "P07"));
    session.batch_execute(&next).unwrap();
    assert_eq!(status(&mut session), ("ok".into(), "-".into(), String::new()));

    session.batch_execute("CREATE TABLE rest PARTITION OF events DEFAULT").unwrap();
    let (verdict, code, next) = status(&mut session);
    assert_eq!((verdict.as_str(), code.as_str()), ("critical", "P06"));
    let call = "SELECT tally.ensure_partitions('events', now(), now() + interval '30 days')";
    assert_refused(&mut session, call, "55000", "table public.events has the default partition public.rest");
    session.batch_execute(&next).unwrap();
    assert_eq!(status(&mut session).0, "ok");
}

#[test]
fn names_that_need_quotes_or_are_too_long_work() {
    let database = cluster::database();
    let mut session = database.connect();
    for (table, prefix) in [
        ("Mixed Case\"s".to_owned(), "Mixed Case\"s_p".to_owned()),
        ("x".repeat(63), format!("{}_p", "x".repeat(53))),
        ("ä".repeat(31), format!("{}_p", "ä".repeat(26))),
    ] {
        let quoted = format!("\"{}\"", table.replace('"', "\"\""));
        session
            .batch_execute(&format!(
                "CREATE TABLE {quoted} (\"At\" timestamptz NOT NULL DEFAULT now()) PARTITION BY RANGE (\"At\")"
            ))
            .unwrap();
        session.execute("SELECT tally.partition_by_time($1::text::regclass, '1 day')", &[&quoted]).unwrap();
        session.batch_execute(&format!("INSERT INTO {quoted} DEFAULT VALUES")).unwrap();
        let partitions = bounds(&database, &quoted);
        assert!(partitions.len() >= 9);
        for line in partitions {
            assert!(line.starts_with(&prefix), "{line}");
        }
    }
    // A name that is taken: by a table and by a type.
    session
        .batch_execute(
            "CREATE TABLE e (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             DO $$ BEGIN
                EXECUTE format('CREATE TABLE %I ()', to_char(now() AT TIME ZONE 'UTC', '\"e_p\"YYYYMMDD'));
                EXECUTE format('CREATE TYPE %I AS ENUM ()', to_char(now() AT TIME ZONE 'UTC', '\"e_p\"YYYYMMDD\"_2\"'));
             END $$;
             SELECT tally.partition_by_time('e', '1 day');",
        )
        .unwrap();
    assert_eq!(bounds(&database, "e").iter().filter(|line| line.split(' ').next().unwrap().ends_with("_3")).count(), 1);
}

#[test]
fn dates_and_wall_clock_times_are_keys_too() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE days (day date NOT NULL) PARTITION BY RANGE (day);
             CREATE TABLE walls (at timestamp NOT NULL) PARTITION BY RANGE (at);
             SET TimeZone = 'Asia/Tokyo';
             SELECT tally.partition_by_time('days', '1 week', time_zone => 'Pacific/Kiritimati');
             SELECT tally.partition_by_time('walls', '6 hours', time_zone => 'Pacific/Kiritimati', lateness => '6 hours');
             INSERT INTO days VALUES ((now() AT TIME ZONE 'Pacific/Kiritimati')::date);
             INSERT INTO walls VALUES (now() AT TIME ZONE 'Pacific/Kiritimati' - interval '6 hours'),
                                      (now() AT TIME ZONE 'Pacific/Kiritimati' + interval '7 days');",
        )
        .unwrap();
    assert_eq!(
        strings(
            &mut session,
            "SELECT DISTINCT pg_get_expr(c.relpartbound, c.oid) ~ $$^FOR VALUES FROM \\('\\d+-\\d+-\\d+'\\) TO \\('\\d+-\\d+-\\d+'\\)$$ || ''
             FROM pg_class c JOIN pg_inherits i ON c.oid = inhrelid WHERE inhparent = 'days'::regclass"
        ),
        ["true"]
    );
    // Kiritimati is 14 hours ahead of UTC: the first wall-clock partition begins less than 12 hours before its local time.
    let first = session
        .query_one(
            "SELECT accepts_from BETWEEN now() - interval '12 hours' AND now() - interval '6 hours',
                    verdict || coalesce(reason, '') FROM tally.partition_status WHERE parent = 'walls'::regclass",
            &[],
        )
        .unwrap();
    assert!(first.get::<_, bool>(0));
    assert_eq!(first.get::<_, String>(1), "ok");
}

/// Everything that is compared between a partition made by hand and one made by tally.
const SHAPE: &str = "
    SELECT jsonb_build_object(
        'owner', relowner::regrole, 'persistence', relpersistence, 'storage', reloptions,
        'toast', (SELECT t.reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid),
        'tablespace', (SELECT spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace),
        'rights', (SELECT array_agg(x::text ORDER BY x::text) FROM aclexplode(coalesce(relacl, acldefault('r', relowner))) x),
        'columns', (SELECT jsonb_agg(jsonb_build_array(attname, attnotnull, attstattarget, attacl, attstorage,
                        (SELECT array_agg(o) FROM unnest(attoptions) o WHERE o LIKE 'n_%'),
                        pg_get_expr(adbin, adrelid)) ORDER BY attname)
                    FROM pg_attribute LEFT JOIN pg_attrdef d ON adrelid = attrelid AND adnum = attnum
                    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
        'row security', jsonb_build_array(relrowsecurity, relforcerowsecurity),
        'policies', (SELECT jsonb_agg(jsonb_build_array(polname, polcmd, polpermissive, polroles::regrole[], pg_get_expr(polqual, polrelid),
                        pg_get_expr(polwithcheck, polrelid)) ORDER BY polname) FROM pg_policy WHERE polrelid = c.oid),
        'replica identity', jsonb_build_array(relreplident, (SELECT regexp_replace(pg_get_indexdef(indexrelid), ' INDEX .* ON .* USING', '')
                        FROM pg_index WHERE indrelid = c.oid AND indisreplident)),
        'indexes', (SELECT array_agg(regexp_replace(pg_get_indexdef(indexrelid), ' INDEX .* ON .* USING', '') ORDER BY indkey::text, indisunique)
                    FROM pg_index WHERE indrelid = c.oid),
        'constraints', (SELECT array_agg(pg_get_constraintdef(oid) ORDER BY pg_get_constraintdef(oid)) FROM pg_constraint WHERE conrelid = c.oid),
        'publications', (SELECT array_agg(pubname ORDER BY pubname) FROM pg_publication_rel JOIN pg_publication p ON p.oid = prpubid WHERE prrelid = c.oid))::text
    FROM pg_class c WHERE oid = (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass ORDER BY inhrelid";

#[test]
fn a_new_partition_is_made_like_the_newest_one() {
    let database = cluster::database();
    let mut session = database.connect();
    let (owner, app) = (format!("{}_owner", database.name()), format!("{}_app", database.name()));
    session.batch_execute("SET allow_in_place_tablespaces = on").unwrap();
    session.batch_execute(&format!("CREATE TABLESPACE {owner}_space LOCATION ''")).unwrap();
    session
        .batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN; CREATE ROLE {app} LOGIN;
             GRANT CREATE, USAGE ON SCHEMA public TO {owner};
             GRANT CREATE ON TABLESPACE {owner}_space TO {owner};
             ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT DELETE ON TABLES TO {app};
             CREATE PUBLICATION {owner}_pub; ALTER PUBLICATION {owner}_pub OWNER TO {owner};
             SET ROLE {owner};
             CREATE TABLE targets (id bigint PRIMARY KEY);
             CREATE TABLE events (
                 id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, \"Note\" text DEFAULT 'x' CHECK (\"Note\" <> ''),
                 twice bigint GENERATED ALWAYS AS (target * 2) STORED, target bigint REFERENCES targets,
                 PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
             CREATE INDEX ON events (lower(\"Note\")) WHERE id > 0;
             CREATE TABLE events_first PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-01-02');
             ALTER TABLE events_first SET (fillfactor = 70, autovacuum_enabled = off, toast.autovacuum_enabled = off);
             ALTER TABLE events_first SET TABLESPACE {owner}_space;
             ALTER TABLE events_first ALTER \"Note\" SET STATISTICS 500, ALTER target SET (n_distinct = -0.5);
             REVOKE ALL ON events_first FROM {app};
             REVOKE TRUNCATE ON events_first FROM {owner};
             GRANT SELECT, INSERT ON events_first TO {app} WITH GRANT OPTION;
             GRANT UPDATE (\"Note\") ON events_first TO PUBLIC;
             CREATE POLICY own ON events_first FOR SELECT TO {app}, {owner} USING (target > 1);
             CREATE POLICY less ON events_first AS RESTRICTIVE FOR ALL USING (true) WITH CHECK (\"Note\" <> 'no');
             ALTER TABLE events_first ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
             ALTER TABLE events_first REPLICA IDENTITY USING INDEX events_first_pkey;
             RESET ROLE;
             ALTER PUBLICATION {owner}_pub ADD TABLE events_first;
             SET default_tablespace = pg_default;
             SELECT tally.partition_by_time('events', '1 day');"
        ))
        .unwrap();
    let shapes = strings(&mut session, &format!("{} LIMIT 1)", SHAPE));
    let template = shapes[0].clone();
    for shape in [" OFFSET 1 LIMIT 1)", " DESC LIMIT 1)"].map(|place| strings(&mut session, &format!("{SHAPE}{place}")))
    {
        assert_eq!(shape[0], template);
    }
    assert!(template.contains("n_distinct=-0.5") && template.contains("fillfactor=70") && template.contains("_space"));
    assert_eq!(
        strings(
            &mut session,
            "SELECT DISTINCT attidentity::text FROM pg_attribute WHERE attname = 'id' AND attrelid = 'events'::regclass"
        ),
        ["a"]
    );
    session
        .batch_execute(&format!(
            "INSERT INTO targets VALUES (7); INSERT INTO events (at, target) VALUES (now(), 7);
             DROP PUBLICATION {owner}_pub; DROP TABLE events, targets"
        ))
        .unwrap();
    session.batch_execute(&format!("DROP TABLESPACE {owner}_space")).unwrap();
    // With event triggers PostgreSQL fails to drop default privileges of and for two roles in one DROP OWNED.
    session
        .batch_execute(&format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE DELETE ON TABLES FROM {app}"))
        .unwrap();
    session.batch_execute(&format!("DROP OWNED BY {owner}, {app}; DROP ROLE {owner}, {app}")).unwrap();
}

#[test]
fn unlogged_sets_and_replica_identity_full_are_continued() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{EVENTS}
             CREATE UNLOGGED TABLE first PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-01-02');
             ALTER TABLE first REPLICA IDENTITY FULL;
             SELECT tally.partition_by_time('events', '1 week');"
        ))
        .unwrap();
    let kinds = "SELECT DISTINCT concat(relpersistence, relreplident) FROM pg_class
                 JOIN pg_inherits ON oid = inhrelid WHERE inhparent = 'events'::regclass";
    assert_eq!(strings(&mut session, kinds), ["uf"]);
}

#[test]
fn the_job_makes_what_is_missing_and_otherwise_writes_nothing() {
    let database = cluster::database();
    let mut session = database.connect();
    let role = format!("{}_owner", database.name());
    session
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role};
             {EVENTS} ALTER TABLE events OWNER TO {role};"
        ))
        .unwrap();
    let mut owner = database.connect_as(&role);
    owner.batch_execute(REGISTER_PAUSED).unwrap();
    let run = "SELECT tally.run_job(job_id) FROM tally.jobs WHERE object = 'events'::regclass";
    assert_eq!(number(&mut owner, run), 0, "the first one looks at the partitions, and that is stored");
    owner.batch_execute("BEGIN").unwrap();
    assert_eq!(number(&mut owner, run), 0);
    assert!(owner.query_one("SELECT pg_current_xact_id_if_assigned() IS NULL", &[]).unwrap().get::<_, bool>(0));
    assert_eq!(
        number(
            &mut owner,
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 'events'::regclass"
        ),
        0,
        "not even a lock is left"
    );
    owner.batch_execute("COMMIT").unwrap();
    // The clock cannot be moved, so the end of the set is.
    session
        .batch_execute(
            "DO $$ DECLARE last regclass; BEGIN
               FOR last IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'events'::regclass
                           ORDER BY inhrelid::regclass::text DESC LIMIT 3 LOOP
                 EXECUTE format('DROP TABLE %s', last);
               END LOOP; END $$",
        )
        .unwrap();
    let before = bounds(&database, "events").len();
    assert_eq!(number(&mut owner, run), 3);
    assert_eq!(bounds(&database, "events").len(), before + 3);
    session.batch_execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).unwrap();
}

#[test]
fn rows_ahead_of_the_clock_move_the_target_and_poison_does_not() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(&format!("{EVENTS} {REGISTER_PAUSED}")).unwrap();
    let horizon = |session: &mut Client| {
        session
            .query_one("SELECT (horizon AT TIME ZONE 'UTC')::date - (now() AT TIME ZONE 'UTC')::date, coalesce(left(reason, 3), 'ok') FROM tally.partition_status", &[])
            .map(|row| (row.get::<_, i32>(0), row.get::<_, String>(1)))
            .unwrap()
    };
    let run = "SELECT tally.run_job(job_id) FROM tally.jobs WHERE object = 'events'::regclass";
    assert_eq!(horizon(&mut session), (8, "ok".into()));
    // Statistics are written when a session ends, at the latest.
    let insert = |days: i32| {
        let mut writer = database.connect();
        writer
            .execute(
                "INSERT INTO events (event_time, customer_id) VALUES (now() + $1 * interval '1 day', 1)",
                &[&f64::from(days)],
            )
            .unwrap();
        writer.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
    };
    insert(6);
    session.query(run, &[]).unwrap();
    assert_eq!(horizon(&mut session), (8, "P08".into()), "six days ahead is beyond far_future");
    session.batch_execute("DROP TABLE events").unwrap();
    session.batch_execute(&format!("{EVENTS} {REGISTER_PAUSED}")).unwrap();
    insert(1);
    session.query(run, &[]).unwrap();
    let (days, _) = horizon(&mut session);
    assert!((9..=10).contains(&days), "{days}");
}

#[test]
fn what_the_plan_prints_ends_in_what_the_job_makes() {
    let prepare = |database: &Database<'_>| {
        let mut session = database.connect();
        session
            .batch_execute(&format!(
                "{EVENTS}
                 CREATE TABLE first (LIKE events INCLUDING ALL) WITH (fillfactor = 80);
                 ALTER TABLE first REPLICA IDENTITY FULL;
                 SELECT set_config('test.day', to_char(now() AT TIME ZONE 'UTC' - interval '2 days', 'YYYY-MM-DD'), false);
                 DO $$ BEGIN EXECUTE format('ALTER TABLE events ATTACH PARTITION first FOR VALUES FROM (%L) TO (%L)',
                     current_setting('test.day') || ' 00:00+00', (current_setting('test.day')::date + 2)::text || ' 00:00+00'); END $$;
                 {REGISTER_PAUSED}
                 DO $$ DECLARE made regclass; BEGIN
                   FOR made IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'events'::regclass AND inhrelid <> 'first'::regclass LOOP
                     EXECUTE format('DROP TABLE %s', made);
                   END LOOP; END $$;"
            ))
            .unwrap();
        session
    };
    let (planned, run) = (cluster::database(), cluster::database());
    let (mut by_plan, mut by_job) = (prepare(&planned), prepare(&run));
    let statements = strings(&mut by_plan, "SELECT sql FROM tally.plan_premake('events') ORDER BY step");
    assert!(statements.len() > 16, "{statements:?}");
    for statement in statements {
        by_plan.batch_execute(&statement).unwrap();
    }
    let made = number(&mut by_job, "SELECT tally.run_job(job_id) FROM tally.jobs");
    assert!(made >= 7);
    assert_eq!(bounds(&planned, "events"), bounds(&run, "events"));
    let last = format!("{SHAPE} DESC LIMIT 1)");
    assert_eq!(strings(&mut by_plan, &last), strings(&mut by_job, &last));
    assert_eq!(strings(&mut by_plan, "SELECT sql FROM tally.plan_premake('events')"), [""; 0]);
}

#[test]
fn a_dropped_table_takes_its_policy_and_its_job_along() {
    let database = cluster::database();
    let mut session = database.connect();
    let role = format!("{}_owner", database.name());
    session
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; CREATE SCHEMA theirs AUTHORIZATION {role};
             SET ROLE {role}; SET search_path = theirs;
             {EVENTS} SELECT tally.partition_by_time('events', '1 day');
             DROP TABLE events;
             {EVENTS} SELECT tally.partition_by_time('events', '1 day');
             SELECT tally.unregister_partitions('events');"
        ))
        .unwrap();
    let left = "SELECT (SELECT count(*) FROM tally.partition_policies) + (SELECT count(*) FROM tally.jobs)";
    assert_eq!(number(&mut session, left), 0);
    assert!(bounds(&database, "theirs.events").len() >= 9, "the partitions stay");
    let call = "SELECT tally.ensure_partitions('events', now(), now() + interval '1 year')";
    assert_refused(&mut session, call, "42704", "table theirs.events has no partition policy");
    session.batch_execute(&format!("RESET ROLE; DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).unwrap();
}

#[test]
fn the_policy_can_be_changed() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "BEGIN; {EVENTS} SELECT tally.partition_by_time('events', '1 day', premake => '10 days');
             SELECT tally.pause_job(job_id) FROM tally.jobs;
             SELECT tally.set_partition_policy('events', premake => '20 days', far_future => '3 days');
             SELECT tally.set_partition_width('events', '1 week');
             COMMIT;"
        ))
        .unwrap();
    assert_eq!(
        strings(
            &mut session,
            "SELECT concat_ws(' ', partition_width, premake, lateness, far_future) FROM tally.partition_policies"
        ),
        ["7 days 20 days 2 days 3 days"]
    );
    session.query("SELECT tally.run_job(job_id) FROM tally.jobs", &[]).unwrap();
    let last = bounds(&database, "events").pop().unwrap();
    let weekday = "SELECT EXTRACT(isodow FROM horizon AT TIME ZONE 'UTC')::bigint FROM tally.partition_status";
    assert_eq!(number(&mut session, weekday), 1, "weeks end on a Monday: {last}");
    assert!(number(&mut session, "SELECT EXTRACT(day FROM ahead)::bigint FROM tally.partition_status") >= 20);
    let call = "SELECT tally.set_partition_width('events', '10 days')";
    assert_refused(&mut session, call, "22023", "partition width 10 days is not allowed");
}

#[test]
fn strangers_see_no_status_and_change_no_policy() {
    let database = cluster::database();
    let mut session = database.connect();
    let role = format!("{}_stranger", database.name());
    session
        .batch_execute(&format!(
            "{EVENTS} SELECT tally.partition_by_time('events', '1 day'); CREATE ROLE {role} LOGIN;"
        ))
        .unwrap();
    let mut stranger = database.connect_as(&role);
    assert_eq!(number(&mut stranger, "SELECT count(*) FROM tally.partition_status"), 0);
    for call in [
        "ensure_partitions('events', now(), now())",
        "set_partition_policy('events')",
        "set_partition_width('events', '1 week')",
        "unregister_partitions('events')",
    ] {
        let message = "must be owner of table public.events";
        assert_refused(&mut stranger, &format!("SELECT tally.{call}"), "42501", message);
    }
    assert!(stranger.batch_execute("DELETE FROM tally.partition_policies").is_err());
    session.batch_execute(&format!("GRANT INSERT ON events TO {role}")).unwrap();
    assert_eq!(
        number(&mut stranger, "SELECT count(horizon) FROM tally.partition_status"),
        1,
        "a loader sees how far it may write"
    );
    session.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

#[test]
fn narrow_partitions_that_fit_no_transaction_are_refused_with_a_way_out() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute("CREATE TABLE ticks (at timestamptz NOT NULL) PARTITION BY RANGE (at)").unwrap();
    let fit = number(
        &mut session,
        "SELECT current_setting('max_locks_per_transaction')::bigint
              * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) / 6",
    );
    let lateness = fit + 60;
    let error = session
        .batch_execute(&format!(
            "SELECT tally.partition_by_time('ticks', '1 minute', lateness => '{lateness} minutes')"
        ))
        .unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "54000");
    assert!(error.hint().unwrap().contains("max_locks_per_transaction"));
    session
        .batch_execute(
            "SELECT tally.partition_by_time('ticks', '5 minutes', lateness => '1 hour', premake => '1 hour')",
        )
        .unwrap();
    let call = "SELECT tally.ensure_partitions('ticks', now(), now() + interval '1 year')";
    let error = session.batch_execute(call).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "54000");
}

#[test]
fn premake_goes_on_for_a_table_that_feeds_a_rollup() {
    let database = cluster::database();
    let mut session = database.connect();
    let role = format!("{}_owner", database.name());
    session
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role};
             {EVENTS} SELECT tally.partition_by_time('events', '1 day');
             SELECT tally.create_rollup('counts', 'SELECT customer_id, count(*) AS events FROM events GROUP BY 1');
             SELECT tally.ensure_partitions('events', now(), now() + interval '20 days');
             INSERT INTO events (event_time, customer_id) VALUES (now() + interval '19 days', 1);"
        ))
        .unwrap();
    assert_eq!(number(&mut session, "SELECT events FROM counts"), 1);
    let guarded = "SELECT count(*) FILTER (WHERE tgname = 'tally_truncate') - count(DISTINCT inhrelid)
                   FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid LEFT JOIN pg_trigger ON tgrelid = inhrelid AND tgname = 'tally_truncate'
                   WHERE inhparent = 'events'::regclass";
    assert_eq!(number(&mut session, guarded), 0, "every partition has the guard against TRUNCATE");
    session.batch_execute("CALL tally.refresh('counts')").unwrap();
    assert_eq!(number(&mut session, "SELECT events FROM counts"), 1);
    session
        .batch_execute(&format!(
            "RESET ROLE; SELECT tally.drop_rollup('counts'); DROP OWNED BY {role} CASCADE; DROP ROLE {role}"
        ))
        .unwrap();
}

#[test]
fn a_restored_dump_keeps_the_policy_and_its_job() {
    let database = cluster::database();
    database
        .connect()
        .batch_execute(&format!(
            "{EVENTS} SELECT tally.partition_by_time('events', '1 hour', time_zone => 'Europe/Berlin', lateness => '3 hours');
             INSERT INTO events (event_time, customer_id) VALUES (now(), 1)"
        ))
        .unwrap();
    let copy = Cluster::shared().empty_database();
    copy.psql(&database.dump());
    let mut session = copy.connect();
    assert_eq!(
        strings(
            &mut session,
            "SELECT concat_ws(' ', parent, partition_width, time_zone, lateness, far_future, (SELECT string_agg(kind, ',') FROM tally.jobs))
             FROM tally.partition_policies"
        ),
        ["events 01:00:00 Europe/Berlin 03:00:00 2 days premake"]
    );
    assert_eq!(bounds(&copy, "events"), bounds(&database, "events"));
    assert!(number(&mut session, "SELECT tally.ensure_partitions('events', now(), now() + interval '10 days')") > 60);
    assert_eq!(strings(&mut session, "SELECT verdict FROM tally.partition_status"), ["ok"]);
}
