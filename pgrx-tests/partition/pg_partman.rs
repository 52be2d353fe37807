//! Sets of pg_partman are taken over with their settings. Everywhere with tables that have the columns of its versions; with the real
//! extension where it is installed (Debian: postgresql-15-partman).

use super::default::{notes, run_plan};
use super::{EVENTS, assert_refused, bounds, number, strings};
use postgres::{Client, Config, NoTls};
use std::sync::{Arc, Mutex};
use tally_server_tests::cluster::{self, Database};

/// Columns of the settings: of 4.7.2 and of 5.1.0, in their order.
const COLUMNS: [(&str, &str); 2] = [
    (
        "4.7.2",
        "parent_table text PRIMARY KEY, control text NOT NULL, partition_type text NOT NULL, partition_interval text NOT NULL,
         constraint_cols text[], premake int NOT NULL DEFAULT 4, optimize_trigger int NOT NULL DEFAULT 4, optimize_constraint int NOT NULL DEFAULT 30,
         epoch text NOT NULL DEFAULT 'none', inherit_fk boolean NOT NULL DEFAULT true, retention text, retention_schema text,
         retention_keep_table boolean NOT NULL DEFAULT true, retention_keep_index boolean NOT NULL DEFAULT true,
         infinite_time_partitions boolean NOT NULL DEFAULT false, datetime_string text, automatic_maintenance text NOT NULL DEFAULT 'on',
         jobmon boolean NOT NULL DEFAULT true, sub_partition_set_full boolean NOT NULL DEFAULT false, undo_in_progress boolean NOT NULL DEFAULT false,
         trigger_exception_handling boolean DEFAULT false, upsert text NOT NULL DEFAULT '', trigger_return_null boolean NOT NULL DEFAULT true,
         template_table text, publications text[], inherit_privileges boolean DEFAULT false, constraint_valid boolean NOT NULL DEFAULT true,
         subscription_refresh text, drop_cascade_fk boolean NOT NULL DEFAULT false, ignore_default_data boolean NOT NULL DEFAULT false",
    ),
    (
        "5.1.0",
        "parent_table text PRIMARY KEY, control text NOT NULL, partition_interval text NOT NULL, partition_type text NOT NULL,
         premake int NOT NULL DEFAULT 4, automatic_maintenance text NOT NULL DEFAULT 'on', template_table text, retention text, retention_schema text,
         retention_keep_index boolean NOT NULL DEFAULT true, retention_keep_table boolean NOT NULL DEFAULT true, epoch text NOT NULL DEFAULT 'none',
         constraint_cols text[], optimize_constraint int NOT NULL DEFAULT 30, infinite_time_partitions boolean NOT NULL DEFAULT false,
         datetime_string text, jobmon boolean NOT NULL DEFAULT true, sub_partition_set_full boolean NOT NULL DEFAULT false,
         undo_in_progress boolean NOT NULL DEFAULT false, inherit_privileges boolean DEFAULT false, constraint_valid boolean NOT NULL DEFAULT true,
         ignore_default_data boolean NOT NULL DEFAULT true, default_table boolean DEFAULT true, date_trunc_interval text, maintenance_order int,
         retention_keep_publication boolean NOT NULL DEFAULT false, maintenance_last_run timestamptz",
    ),
];

/// Makes PostgreSQL believe that the extension is installed: its entry and its table, in a schema that needs quotes.
fn stand_in(session: &mut Client, version: usize) {
    let (version, columns) = COLUMNS[version];
    session
        .batch_execute(&format!(
            "CREATE SCHEMA \"Part Man\";
             CREATE TABLE \"Part Man\".part_config ({columns});
             SET allow_system_table_mods = on;
             INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
             SELECT pg_nextoid('pg_extension', 'oid', 'pg_extension_oid_index'), 'pg_partman', 'postgres'::regrole, '\"Part Man\"'::regnamespace, false, '{version}';
             RESET allow_system_table_mods;
             ALTER EXTENSION pg_partman ADD TABLE \"Part Man\".part_config;"
        ))
        .unwrap();
}

/// `events` as pg_partman makes it: four days on each side of today, of the session's time zone, and a DEFAULT.
const MADE: &str = "
    DO $$ BEGIN
      FOR day IN -4..4 LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)', to_char(current_date + day, '\"events_p\"YYYY_MM_DD'),
                       (current_date + day)::timestamptz, (current_date + day + 1)::timestamptz);
      END LOOP; END $$;
    CREATE TABLE events_default PARTITION OF events DEFAULT;";

fn configure(session: &mut Client, interval: &str, more: &str) {
    let kind = "SELECT CASE WHEN extversion LIKE '4%' THEN 'native' ELSE 'range' END FROM pg_extension WHERE extname = 'pg_partman'";
    let kind = strings(session, kind).remove(0);
    session
        .execute(
            "INSERT INTO \"Part Man\".part_config (parent_table, control, partition_type, partition_interval) VALUES ('public.events', 'event_time', $1, $2)",
            &[&kind, &interval],
        )
        .unwrap();
    if !more.is_empty() {
        session.batch_execute(&format!("UPDATE \"Part Man\".part_config SET {more}")).unwrap();
    }
}

/// A session that keeps what it is told.
fn listening(database: &Database<'_>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let mut config: Config = database.conninfo().parse().unwrap();
    config.notice_callback(move |notice| {
        let line = format!("{}: {} {}", notice.severity(), notice.message(), notice.hint().unwrap_or_default());
        heard.lock().unwrap().push(line);
    });
    (config.connect(NoTls).unwrap(), told)
}

const POLICY: &str = "SELECT concat_ws(' ', partition_width, premake, coalesce(retention::text, 'none'), time_zone) FROM tally.partition_policies";

#[test]
fn the_plan_takes_a_set_over_from_pg_partman() {
    for version in 0..COLUMNS.len() {
        let (planned, run) = (cluster::database(), cluster::database());
        let mut sessions = [&planned, &run].map(|database| {
            let mut session = database.connect();
            stand_in(&mut session, version);
            session.batch_execute(&format!("{EVENTS} {MADE}")).unwrap();
            configure(&mut session, "1 day", "retention = '90 days', retention_keep_table = false, premake = 30");
            session
        });
        let [by_plan, by_call] = &mut sessions;
        let plan = "tally.plan_partition_by_time('events')";
        let told = notes(by_plan, plan).join("\n");
        for part in [
            "differs: 0: pg_partman keeps rows without a partition in public.events_default",
            "differs: 0: pg_partman drops partitions older than 90 days at once",
            "differs: 0: pg_partman stops ahead of the newest row",
            "handover: 1: otherwise two make and remove partitions",
        ] {
            assert!(told.contains(part), "{part}\n{told}");
        }
        let lines = run_plan(by_plan, plan);
        let update = "UPDATE \"Part Man\".\"part_config\" SET automatic_maintenance = 'off' WHERE parent_table = 'public.events';";
        assert!(lines.iter().any(|line| line == update), "{lines:#?}");
        assert_eq!(strings(by_plan, POLICY), ["1 day 30 days 90 days UTC"]);
        assert_eq!(strings(by_plan, "SELECT automatic_maintenance FROM \"Part Man\".part_config"), ["off"]);
        assert_eq!(strings(by_plan, "SELECT verdict FROM tally.partition_status"), ["ok"]);
        assert!(number(by_plan, "SELECT EXTRACT(day FROM ahead)::bigint FROM tally.partition_status") >= 30);

        by_call.batch_execute("ALTER TABLE events DETACH PARTITION events_default").unwrap();
        by_call.batch_execute("SELECT tally.partition_by_time('events')").unwrap();
        assert_eq!(strings(by_call, POLICY), strings(by_plan, POLICY));
        assert_eq!(bounds(&planned, "events"), bounds(&run, "events"));
    }
}

#[test]
fn arguments_outrank_pg_partman_and_what_means_something_else_is_not_taken() {
    let database = cluster::database();
    let mut session = database.connect();
    stand_in(&mut session, 0);
    session
        .batch_execute(&format!(
            "{EVENTS} {MADE} ALTER TABLE events DETACH PARTITION events_default;
             CREATE TABLE template (LIKE events); CREATE UNIQUE INDEX only_here ON template (event_id);
             CREATE INDEX as_there ON template (customer_id, event_time);"
        ))
        .unwrap();
    configure(
        &mut session,
        "10 days",
        "retention = '90 days', constraint_cols = '{customer_id}', template_table = 'public.template'",
    );
    let (mut listener, heard) = listening(&database);
    let error = listener.batch_execute("SELECT tally.partition_by_time('events')").unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(
        (error.code().code(), error.message()),
        ("22023", "pg_partman's partition_interval \"10 days\" is not allowed as a width")
    );
    assert!(error.hint().unwrap().starts_with("Give partition_width"));
    assert_eq!(
        notes(&mut session, "tally.plan_partition_by_time('events')"),
        [format!("refuse: 0: 22023: {} HINT: {}", error.message(), error.hint().unwrap())]
    );

    let plan = notes(&mut session, "tally.plan_partition_by_time('events', '1 day')").join("\n");
    for part in [
        "older than 90 days and keeps them (retention_keep_table): not taken over",
        "template table public.template: new partitions get those of the table itself, without only_here;",
        "adds constraints on old values of customer_id",
    ] {
        assert!(plan.contains(part), "{part}\n{plan}");
    }
    listener.batch_execute("SELECT tally.partition_by_time('events', '1 day')").unwrap();
    let told = heard.lock().unwrap().join("\n");
    assert!(
        told.contains(
            "WARNING: pg_partman still maintains public.events, so two make and remove its partitions UPDATE"
        ),
        "{told}"
    );
    assert!(told.contains("NOTICE: the retention of pg_partman keeps tables and was not taken over"), "{told}");
    assert_eq!(strings(&mut session, POLICY), ["1 day 40 days none UTC"]);

    session
        .batch_execute(
            "SELECT tally.unregister_partitions('events');
             UPDATE \"Part Man\".part_config SET automatic_maintenance = 'off', retention_keep_table = false",
        )
        .unwrap();
    heard.lock().unwrap().clear();
    listener
        .batch_execute("SELECT tally.partition_by_time('events', '1 week', premake => '0', retention => '30 days')")
        .unwrap();
    assert_eq!(*heard.lock().unwrap(), [""; 0]);
    assert_eq!(strings(&mut session, POLICY), ["7 days 00:00:00 30 days UTC"]);
}

#[test]
fn rows_in_its_default_move_while_it_hands_over() {
    let database = cluster::database();
    let mut session = database.connect();
    stand_in(&mut session, 0);
    session
        .batch_execute(&format!(
            "{EVENTS} {MADE} INSERT INTO events (event_time, customer_id) SELECT now() - i * interval '1 day', i FROM generate_series(1, 9) i"
        ))
        .unwrap();
    configure(&mut session, "1 day", "");
    let lines = notes(&mut session, "tally.plan_partition_by_time('events')");
    assert!(
        lines[0].contains("default partition public.events_default of table public.events has 5 rows"),
        "{lines:#?}"
    );
    assert_eq!(lines.len(), 1 + 5);
    let (mut listener, heard) = listening(&database);
    listener.batch_execute(lines[0].split_once("on the table: ").unwrap().1).unwrap();
    assert_eq!(*heard.lock().unwrap(), [""; 0], "the other maker has stopped before");
    assert_eq!(strings(&mut session, POLICY), ["1 day 4 days none UTC"]);
    assert_eq!(strings(&mut session, "SELECT verdict FROM tally.partition_status"), ["ok"]);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 9);
}

#[test]
fn bounds_of_another_time_zone_are_told_and_continued() {
    let database = cluster::database();
    let mut session = database.connect();
    stand_in(&mut session, 1);
    session
        .batch_execute(&format!(
            "{EVENTS} SET TimeZone = 'Asia/Tokyo'; {MADE} ALTER TABLE events DETACH PARTITION events_default; RESET TimeZone;
             DO $$ BEGIN EXECUTE format('DROP TABLE %I', to_char((now() AT TIME ZONE 'Asia/Tokyo')::date - 3, '\"events_p\"YYYY_MM_DD')); END $$"
        ))
        .unwrap();
    configure(&mut session, "24:00:00", "automatic_maintenance = 'off', infinite_time_partitions = true");
    let in_utc = notes(&mut session, "tally.plan_partition_by_time('events')").join("\n");
    assert!(in_utc.contains("15:00:00+00', which is no bound in UTC"), "{in_utc}");
    assert!(in_utc.contains("gap: 0: rows from '"), "{in_utc}");
    let plan = "tally.plan_partition_by_time('events', time_zone => 'asia/tokyo')";
    let at_home = notes(&mut session, plan).join("\n");
    assert!(!at_home.contains("differs") && at_home.contains("gap: 0: rows from '"), "{at_home}");
    run_plan(&mut session, plan);
    let all = bounds(&database, "events");
    assert!(all.iter().all(|line| line.matches(" 15:00:00").count() == 2), "{all:#?}");
    assert_eq!(strings(&mut session, "SELECT left(reason, 3) FROM tally.partition_status"), ["P07"]);
    let fill = strings(&mut session, "SELECT next_sql FROM tally.partition_status").remove(0);
    assert!(at_home.contains(&fill), "{fill}\n{at_home}");
}

#[test]
fn what_stands_in_its_configuration_is_never_executed() {
    let database = cluster::database();
    let mut session = database.connect();
    stand_in(&mut session, 1);
    let attack = "1 day'; DROP TABLE events; --";
    session
        .batch_execute(
            "CREATE TABLE \"it's; \"\"odd\"\"\" (event_time timestamptz NOT NULL) PARTITION BY RANGE (event_time)",
        )
        .unwrap();
    session.batch_execute(EVENTS).unwrap();
    configure(&mut session, attack, "");
    for (table, more) in [("events", ""), ("events", "partition_interval = repeat('x', 100000)")] {
        if !more.is_empty() {
            session.batch_execute(&format!("UPDATE \"Part Man\".part_config SET {more}")).unwrap();
        }
        let error = session.batch_execute(&format!("SELECT tally.partition_by_time('{table}')")).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "22023");
        assert!(
            error.message().starts_with("partition_interval \"") && error.message().len() < 300,
            "{}",
            error.message()
        );
        assert_eq!(error.hint(), Some("Give partition_width."));
    }
    for interval in ["178000000 years", "1 day 1 day 1", "", "99999999999 hours 99999999999 days"] {
        session.execute("UPDATE \"Part Man\".part_config SET partition_interval = $1", &[&interval]).unwrap();
        let error = session.batch_execute("SELECT tally.partition_by_time('events')").unwrap_err();
        assert_eq!(error.code().unwrap().code(), "22023", "{interval}: {error}");
    }
    // Names are quoted in what the plan prints.
    session
        .batch_execute(
            "UPDATE \"Part Man\".part_config SET parent_table = 'public.it''s; \"odd\"', partition_interval = '1 day', template_table = $$x'; DROP TABLE events$$",
        )
        .unwrap();
    run_plan(&mut session, "tally.plan_partition_by_time('\"it''s; \"\"odd\"\"\"')");
    assert_eq!(strings(&mut session, "SELECT automatic_maintenance FROM \"Part Man\".part_config"), ["off"]);
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.partition_policies"), 1);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 0, "it is still there");
    // A column of a type of somebody's own is not looked at, nor is one of another type than pg_partman's.
    session
        .batch_execute(
            "CREATE TYPE public.text AS ENUM ('1 day');
             CREATE FUNCTION trap(public.text) RETURNS pg_catalog.text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
             CREATE CAST (public.text AS pg_catalog.text) WITH FUNCTION trap(public.text);
             ALTER TABLE \"Part Man\".part_config ALTER partition_interval TYPE public.text USING '1 day', ALTER premake TYPE bigint;
             UPDATE \"Part Man\".part_config SET parent_table = 'public.events'",
        )
        .unwrap();
    let error = session.batch_execute("SELECT tally.partition_by_time('events')").unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22023", "{error}");
    session.batch_execute("SELECT tally.unregister_partitions('\"it''s; \"\"odd\"\"\"')").unwrap();
    session
        .batch_execute(
            "ALTER TABLE \"Part Man\".part_config ALTER partition_interval TYPE pg_catalog.text USING '1 day'",
        )
        .unwrap();
    session.batch_execute("SELECT tally.partition_by_time('events')").unwrap();
    assert_eq!(strings(&mut session, POLICY), ["1 day none UTC"], "the number of the wrong type is not taken");
}

#[test]
fn a_set_that_is_being_undone_and_settings_that_nobody_may_read_are_told() {
    let database = cluster::database();
    let mut session = database.connect();
    let role = format!("{}_owner", database.name());
    stand_in(&mut session, 0);
    session
        .batch_execute(&format!(
            "{EVENTS} {MADE} ALTER TABLE events DETACH PARTITION events_default;
             CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}; ALTER TABLE events OWNER TO {role};"
        ))
        .unwrap();
    configure(&mut session, "1 day", "undo_in_progress = true");
    let call = "SELECT tally.partition_by_time('events')";
    assert_refused(&mut session, call, "55000", "pg_partman is undoing the partitions of public.events");

    let mut owner = database.connect_as(&role);
    assert_refused(&mut owner, call, "22004", "partition_width must not be null");
    let plan = notes(&mut owner, "tally.plan_partition_by_time('events', '1 day')");
    assert!(plan[0].starts_with("differs: 0: you may not read \"Part Man\".\"part_config\""), "{plan:#?}");
    owner.batch_execute("SELECT tally.partition_by_time('events', '1 day')").unwrap();
    assert_eq!(strings(&mut session, POLICY), ["1 day none UTC"]);
    session.batch_execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).unwrap();
}

#[test]
fn sets_that_have_no_partitions_by_time_or_have_two_levels_are_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    stand_in(&mut session, 1);
    session
        .batch_execute(
            "CREATE TABLE counted (n bigint NOT NULL) PARTITION BY RANGE (n);
             CREATE TABLE events (event_time timestamptz NOT NULL) PARTITION BY RANGE (event_time);
             CREATE TABLE inner_set PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY RANGE (event_time);
             INSERT INTO \"Part Man\".part_config (parent_table, control, partition_type, partition_interval, epoch)
             VALUES ('public.counted', 'n', 'range', '86400', 'seconds'), ('public.events', 'event_time', 'range', '1 year', 'none')",
        )
        .unwrap();
    for (table, message) in
        [("counted", "partition key n has type bigint"), ("events", "partition public.inner_set is partitioned itself")]
    {
        assert_refused(&mut session, &format!("SELECT tally.partition_by_time('{table}')"), "0A000", message);
        let plan = notes(&mut session, &format!("tally.plan_partition_by_time('{table}')"));
        assert!(plan.len() == 1 && plan[0].starts_with(&format!("refuse: 0: 0A000: {message} HINT: ")), "{plan:#?}");
    }
}

#[test]
fn a_set_of_the_real_pg_partman_is_taken_over() {
    let database = cluster::database();
    let mut session = database.connect();
    let version = "SELECT default_version FROM pg_available_extensions WHERE name = 'pg_partman'";
    let Some(version) = strings(&mut session, version).pop() else {
        println!("pg_partman is not installed (Debian: postgresql-15-partman); this test has tested nothing");
        return;
    };
    let make = if version.starts_with('4') {
        "SELECT partman.create_parent('public.events', 'event_time', 'native', 'daily', p_premake := 12)"
    } else {
        "SELECT partman.create_parent('public.events', 'event_time', '1 day', p_premake := 12)"
    };
    session
        .batch_execute(&format!(
            "CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman;
             {EVENTS} {make};
             UPDATE partman.part_config SET retention = '90 days', retention_keep_table = false;"
        ))
        .unwrap();
    let told = notes(&mut session, "tally.plan_partition_by_time('events')").join("\n");
    assert!(told.contains("pg_partman keeps rows without a partition in public.events_default"), "{told}");
    run_plan(&mut session, "tally.plan_partition_by_time('events')");
    assert_eq!(strings(&mut session, POLICY), ["1 day 12 days 90 days UTC"]);
    assert_eq!(strings(&mut session, "SELECT verdict FROM tally.partition_status"), ["ok"]);
    // Its maintenance leaves the set alone from here on.
    let before = bounds(&database, "events");
    session.batch_execute("SELECT partman.run_maintenance()").unwrap();
    assert_eq!(bounds(&database, "events"), before);
}
