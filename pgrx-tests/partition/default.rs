//! Sets with a DEFAULT partition: refused, with a way out that is printed and works.

use std::time::Instant;

use super::{EVENTS, bounds, number, strings};
use crate::oracle::DEADLINE;
use postgres::Client;
use postgres::error::SqlState;
use tally_server_tests::cluster::{self, Database};

/// Days around now, as somebody made them by hand, and a DEFAULT.
const ADOPTED: &str = "
    DO $$ BEGIN
      FOR day IN -3..2 LOOP
        EXECUTE format('CREATE TABLE mine_%s PARTITION OF events FOR VALUES FROM (%L) TO (%L)', day + 4,
                       date_trunc('day', now(), 'UTC') + day * interval '1 day', date_trunc('day', now(), 'UTC') + (day + 1) * interval '1 day');
      END LOOP; END $$;
    CREATE TABLE rest PARTITION OF events DEFAULT;";

/// The plan that is run in order, each line by itself.
pub fn run_plan(session: &mut Client, call: &str) -> Vec<String> {
    let lines = strings(session, &format!("SELECT sql FROM {call} ORDER BY step"));
    for line in &lines {
        session.batch_execute(line).unwrap_or_else(|error| panic!("{line}: {error:?}"));
    }
    lines
}

/// `action: rows: note` of each line.
pub fn notes(session: &mut Client, call: &str) -> Vec<String> {
    strings(session, &format!("SELECT concat_ws(': ', action, est_rows, note) FROM {call} ORDER BY step"))
}

/// Does what status says until it says nothing more; how often that was.
fn follow(session: &mut Client) -> Vec<String> {
    let (mut codes, begin) = (Vec::new(), Instant::now());
    loop {
        let row = session
            .query_one("SELECT verdict, left(reason, 3), next_sql FROM tally.partition_status", &[])
            .unwrap_or_else(|error| panic!("{codes:?}: {error:?}"));
        if row.get::<_, String>(0) == "ok" {
            return codes;
        }
        let next: String = row.get(2);
        match session.batch_execute(&next) {
            Ok(()) => codes.push(row.get(1)),
            // A worker was at the table: not yet a quiet moment.
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && begin.elapsed() < DEADLINE => {
                session.batch_execute("ROLLBACK").unwrap();
            }
            Err(error) => panic!("{next}: {error:?}"),
        }
        assert!(codes.len() < 5, "{codes:?}: {next}");
    }
}

fn session_with(database: &Database<'_>, schema: &str) -> Client {
    let mut session = database.connect();
    session.batch_execute(schema).unwrap();
    session
}

#[test]
fn the_plan_detaches_an_empty_default_and_registers_the_set() {
    let (planned, run) = (cluster::database(), cluster::database());
    // What a foreign key connects is locked too.
    let connected = format!(
        "CREATE TABLE customers (id bigint PRIMARY KEY); INSERT INTO customers VALUES (1);
         {EVENTS} ALTER TABLE events ADD FOREIGN KEY (customer_id) REFERENCES customers; {ADOPTED}"
    );
    let mut session = session_with(&planned, &connected);
    // Emptied, not merely empty: it has pages.
    session
        .batch_execute(
            "INSERT INTO events (event_time, customer_id) VALUES ('2020-01-01', 1), ('2020-01-02', 1); DELETE FROM rest",
        )
        .unwrap();
    let call = "SELECT tally.partition_by_time('events', '1 day')";
    let error = session.batch_execute(call).unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.message(), "table public.events has the default partition public.rest");
    let hint = error.hint().unwrap();
    assert!(hint.contains("ALTER TABLE public.events DETACH PARTITION public.rest;"), "{hint}");
    assert!(hint.contains("tally.plan_partition_by_time"), "{hint}");

    let plan = "tally.plan_partition_by_time('events', '1 day', retention => '90 days')";
    let first =
        session.query_one(&format!("SELECT action, sql, lock_mode, locked_tables, note FROM {plan} LIMIT 1"), &[]);
    let first = first.unwrap();
    assert_eq!(first.get::<_, &str>(0), "detach");
    assert_eq!(first.get::<_, &str>(1), "ALTER TABLE public.events DETACH PARTITION public.rest;");
    assert!(first.get::<_, &str>(4).starts_with("at a quiet moment"));
    session.batch_execute(&format!("BEGIN; {}", first.get::<_, &str>(1))).unwrap();
    let locked = "SELECT DISTINCT mode || ' ' || relation::regclass FROM pg_locks JOIN pg_class c ON c.oid = relation
                  WHERE pid = pg_backend_pid() AND relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND mode LIKE '%Exclusive%'
                  ORDER BY 1";
    let found = strings(&mut session, locked);
    assert_eq!(
        found,
        ["AccessExclusiveLock events", "AccessExclusiveLock rest", "ShareRowExclusiveLock customers"],
        "with those that are taken in passing"
    );
    let expected = ["public.events", "public.rest", "public.customers"].map(str::to_owned);
    assert_eq!(first.get::<_, Vec<String>>(3), expected);
    assert_eq!(first.get::<_, &str>(2), "ACCESS EXCLUSIVE");
    assert!(first.get::<_, &str>(4).contains("foreign keys"));
    session.batch_execute("ROLLBACK").unwrap();

    let lines = run_plan(&mut session, plan);
    assert!(lines.len() > 10 && lines.last().unwrap().starts_with("SELECT tally.partition_by_time("), "{lines:#?}");
    let mut by_call = session_with(&run, &format!("{connected} ALTER TABLE events DETACH PARTITION rest;"));
    by_call.batch_execute("SELECT tally.partition_by_time('events', '1 day', retention => '90 days')").unwrap();
    assert_eq!(bounds(&planned, "events"), bounds(&run, "events"));
    let policy = "SELECT concat_ws(' ', p) FROM tally.partition_policies p";
    assert_eq!(
        strings(&mut session, policy)[0].split_once(',').unwrap().1,
        strings(&mut by_call, policy)[0].split_once(',').unwrap().1
    );
    assert_eq!(strings(&mut session, "SELECT verdict FROM tally.partition_status"), ["ok"]);
    assert_eq!(strings(&mut session, "SELECT kind FROM tally.jobs ORDER BY 1"), ["premake", "retention"]);
    assert_eq!(number(&mut session, "SELECT count(*) FROM rest"), 0, "the table itself stays");
}

#[test]
fn a_default_with_rows_is_refused_with_their_number_in_each_range() {
    let database = cluster::database();
    let mut session = session_with(
        &database,
        "CREATE TABLE events (at timestamptz, n int) PARTITION BY RANGE (at);
         CREATE TABLE rest PARTITION OF events DEFAULT;
         INSERT INTO events SELECT ((now() AT TIME ZONE 'Europe/Berlin')::date - day + time '12:00') AT TIME ZONE 'Europe/Berlin', day
         FROM generate_series(11, 40) day;
         INSERT INTO events SELECT ((now() AT TIME ZONE 'Europe/Berlin')::date - 30 + time '00:30') AT TIME ZONE 'Europe/Berlin', n
         FROM generate_series(1, 4) n;",
    );
    let plan = "tally.plan_partition_by_time('events', '1 day', time_zone => 'Europe/Berlin')";
    // One of the rows is out of place in a way of its own each time.
    for (rows, what) in [
        ("(NULL)", "misplaced: 1: at IS NULL"),
        ("('infinity'), ('-infinity')", "misplaced: 2: at IN ('-infinity', 'infinity')"),
        ("(now() + interval '80 years')", "misplaced: 1: at >= '"),
    ] {
        session.batch_execute(&format!("BEGIN; INSERT INTO events (at) VALUES {rows}")).unwrap();
        let lines = notes(&mut session, plan);
        assert!(lines.iter().any(|line| line.starts_with(what)), "{lines:#?}");
        let refusal =
            lines.iter().find(|line| line.contains("default partition public.rest of table public.events has"));
        assert!(refusal.unwrap().contains("Delete or correct"), "{lines:#?}");
        session.batch_execute("ROLLBACK").unwrap();
    }
    let lines = notes(&mut session, plan);
    assert!(lines[0].starts_with("refuse: 0: 55000: partition key at may be null HINT"), "{lines:#?}");
    assert!(
        lines[1].starts_with("refuse: 0: 55000: default partition public.rest of table public.events has 34 rows HINT"),
        "{lines:#?}"
    );
    assert_eq!(lines.len(), 2 + 20 + 1, "twenty ranges and the rest: {lines:#?}");
    // A day of Berlin, whatever the session thinks.
    let fullest = "
        SELECT 'rows: 5: from ' || string_agg(quote_literal(to_char(day AT TIME ZONE 'Europe/Berlin' AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS+00')),
                                              ' to ' ORDER BY day)
        FROM generate_series(((now() AT TIME ZONE 'Europe/Berlin')::date - 30)::timestamp,
                             ((now() AT TIME ZONE 'Europe/Berlin')::date - 29)::timestamp, '1 day') day";
    assert!(lines.contains(&strings(&mut session, fullest)[0]), "{lines:#?}");
    assert_eq!(lines.last().unwrap(), "rows: 10: in other ranges");
    assert_eq!(strings(&mut session, &format!("SELECT DISTINCT sql FROM {plan}")), [""], "nothing to run");
    let locks = "SELECT DISTINCT mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation IN ('events'::regclass, 'rest'::regclass)";
    session.batch_execute(&format!("BEGIN; SELECT * FROM {plan}")).unwrap();
    assert_eq!(strings(&mut session, locks), ["AccessShareLock"]);
    session.batch_execute("COMMIT").unwrap();

    // What the hint says helps, as it is written.
    session.batch_execute("ALTER TABLE events ALTER at SET NOT NULL").unwrap();
    let hint = notes(&mut session, plan)[0].split_once("under ACCESS EXCLUSIVE on the table: ").unwrap().1.to_owned();
    session.batch_execute(&hint).unwrap_or_else(|error| panic!("{hint}: {error:?}"));
    assert_eq!(strings(&mut session, "SELECT verdict FROM tally.partition_status"), ["ok"]);
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 34);
    assert_eq!(number(&mut session, "SELECT count(*) FROM rest"), 0);
}

#[test]
fn next_sql_leads_out_of_a_default_that_appeared() {
    let register = "SELECT tally.partition_by_time('events', '1 day', time_zone => 'Europe/Berlin');";
    let appeared = "CREATE TABLE rest PARTITION OF events DEFAULT;";
    for (name, schema, rows) in [
        ("empty", EVENTS.to_owned(), ""),
        (
            "rows of long ago",
            EVENTS.to_owned(),
            "INSERT INTO events (event_time, customer_id, note) SELECT now() - i * interval '7 days', i, 'it''s' FROM generate_series(1, 5) i;",
        ),
        (
            "columns that no INSERT may name",
            "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY, \"At\" timestamp NOT NULL, note text,
                                  twice text GENERATED ALWAYS AS (note || note) STORED, gone int) PARTITION BY RANGE (\"At\");
             ALTER TABLE events DROP gone;"
                .into(),
            "INSERT INTO events (\"At\", note) SELECT localtimestamp - interval '30 days' + i * interval '20 min', 'x' FROM generate_series(0, 9) i;",
        ),
        (
            "dates",
            "CREATE TABLE events (day date NOT NULL, note text) PARTITION BY RANGE (day);".into(),
            "INSERT INTO events SELECT current_date - i, 'x' FROM generate_series(10, 20) i;",
        ),
    ] {
        let database = cluster::database();
        let mut session = session_with(&database, &format!("{schema} {register} {appeared} {rows}"));
        let content = "SELECT e::text FROM events e ORDER BY 1";
        let before = strings(&mut session, content);
        assert_eq!(follow(&mut session), ["P06"], "{name}");
        assert_eq!(strings(&mut session, content), before, "{name}");
        assert_eq!(before.is_empty(), rows.is_empty(), "{name}");
        assert_eq!(number(&mut session, "SELECT count(*) FROM rest"), 0, "{name}");
    }
}

#[test]
fn rollups_follow_rows_out_of_a_default() {
    let database = cluster::database();
    let mut session = session_with(
        &database,
        &format!(
            "{EVENTS} SELECT tally.partition_by_time('events', '1 day');
             SELECT tally.create_rollup('counts', 'SELECT customer_id, count(*) AS events, max(note) AS last FROM events GROUP BY 1');
             INSERT INTO events (event_time, customer_id) SELECT now(), i % 3 FROM generate_series(1, 9) i;
             CREATE TABLE rest PARTITION OF events DEFAULT;
             INSERT INTO events (event_time, customer_id, note) SELECT now() - interval '30 days', i % 3, 'counted' FROM generate_series(1, 6) i;"
        ),
    );
    session.batch_execute("CALL tally.refresh('counts')").unwrap();
    session
        .batch_execute("INSERT INTO events (event_time, customer_id, note) SELECT now() - interval '31 days', i % 3, 'new' FROM generate_series(1, 6) i")
        .unwrap();
    assert_eq!(follow(&mut session), ["P06"]);
    for _ in 0..2 {
        let counts = "SELECT concat_ws(' ', customer_id, events, last) FROM counts ORDER BY 1";
        assert_eq!(strings(&mut session, counts), ["0 7 new", "1 7 new", "2 7 new"]);
        session.batch_execute("CALL tally.refresh('counts')").unwrap();
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('counts')"), 0);
    }
    assert_eq!(number(&mut session, "SELECT count(*) FROM rest"), 0);
}

#[test]
fn rows_that_no_partition_can_hold_stay_where_they_are() {
    let database = cluster::database();
    let mut session = session_with(
        &database,
        &format!(
            "{EVENTS} SELECT tally.partition_by_time('events', '1 day'); CREATE TABLE rest PARTITION OF events DEFAULT;
             INSERT INTO events (event_time, customer_id) VALUES ('2097-01-01', 1), (now() - interval '9 days', 2);"
        ),
    );
    let lines = notes(&mut session, "tally.plan_partition_by_time('events', '1 day')");
    assert!(lines[0].contains("has a partition policy already") && lines[1].contains("has 2 rows"), "{lines:#?}");
    let next = strings(&mut session, "SELECT next_sql FROM tally.partition_status").remove(0);
    let error = session.batch_execute(&next).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "54000", "{error}");
    session.batch_execute("ROLLBACK").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 2, "nothing has happened");
    session.batch_execute("DELETE FROM events WHERE event_time >= '2090-01-01'").unwrap();
    assert_eq!(follow(&mut session), ["P06"]);
}

#[test]
fn rows_that_a_policy_hides_are_not_lost() {
    let database = cluster::database();
    let role = format!("{}_owner", database.name());
    let mut session = session_with(
        &database,
        &format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role}; {EVENTS}"),
    );
    session
        .batch_execute(
            "SELECT tally.partition_by_time('events', '1 day'); CREATE TABLE rest PARTITION OF events DEFAULT;
             INSERT INTO events (event_time, customer_id) SELECT now() - interval '9 days', i FROM generate_series(1, 4) i;
             CREATE POLICY few ON rest USING (customer_id < 3); ALTER TABLE rest ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;",
        )
        .unwrap();
    let next = strings(&mut session, "SELECT next_sql FROM tally.partition_status").remove(0);
    let mut owner = database.connect_as(&role);
    for statement in [next.as_str(), "SELECT * FROM tally.plan_partition_by_time('events', '1 day')"] {
        assert_eq!(owner.batch_execute(statement).unwrap_err().code().unwrap().code(), "42501", "{statement}");
        owner.batch_execute("ROLLBACK").unwrap();
    }
    session.batch_execute("RESET ROLE").unwrap();
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 4);
    assert_eq!(follow(&mut session), ["P06"], "whoever sees all rows may move them");
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), 4);
    session.batch_execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).unwrap();
}

#[test]
fn rows_that_others_refer_to_are_not_moved_under_a_rollup() {
    let database = cluster::database();
    let mut session = session_with(
        &database,
        "CREATE TABLE events (id int, at timestamptz NOT NULL, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE notes (id int, at timestamptz, FOREIGN KEY (id, at) REFERENCES events ON DELETE CASCADE);
         SELECT tally.partition_by_time('events', '1 day');
         SELECT tally.create_rollup('counts', 'SELECT id, count(*) AS events FROM events GROUP BY 1');
         CREATE TABLE rest PARTITION OF events DEFAULT;
         INSERT INTO events VALUES (1, '2020-01-01'); INSERT INTO notes VALUES (1, '2020-01-01');",
    );
    let next = "SELECT left(reason, 3) || ' ' || next_sql FROM tally.partition_status";
    assert_eq!(strings(&mut session, next), ["P06 SELECT * FROM public.rest;"]);
    session.batch_execute("SELECT tally.unregister_partitions('events')").unwrap();
    let lines = notes(&mut session, "tally.plan_partition_by_time('events', '1 month')");
    assert!(lines[0].ends_with("HINT: Rollups count them and other tables refer to them: move them by hand, with the rows that refer to them."), "{lines:#?}");
}
