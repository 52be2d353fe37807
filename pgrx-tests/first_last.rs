//! `tally.first` and `tally.last`: as PostgreSQL's window functions for every plan and type, and kept by rollups.

use postgres::Client;
use tally_server_tests::cluster;

use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};

/// Values and times as expressions over a small random number `n`, so that both come often and together.
const VALUES: [&str; 15] = [
    "n",
    "n::smallint",
    "n > 2",
    "(n - 2) * 0.5",
    "CASE n WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' ELSE n::float8 END",
    "repeat('x', n)",
    "repeat(chr(97 + n), 20000)",
    "(ARRAY['a', 'B', 'ä', 'Z', '', 'b'])[n + 1] COLLATE \"C\"",
    "(ARRAY['a', 'B', 'ä', 'Z', '', 'b'])[n + 1] COLLATE \"en-x-icu\"",
    "'2024-01-01Z'::timestamptz + n * interval '1 day'",
    "lpad(n::text, 32, '0')::uuid",
    "ARRAY[n, NULL]",
    "to_jsonb(n)",
    "ROW(n, 'x')::pair",
    "(ARRAY['sad', 'ok', 'happy'])[1 + n / 2]::mood",
];
const TIMES: [&str; 8] = [
    "'2024-01-01Z'::timestamptz + n * interval '1 hour'",
    "CASE n WHEN 0 THEN 'infinity' WHEN 1 THEN '-infinity' ELSE '2024-01-01'::timestamp END",
    "'2024-01-01'::date - n",
    "n::smallint - 3",
    "n * 1e30",
    "lpad(n::text, 32, '0')::uuid",
    "(ARRAY['a', 'B', 'ä', 'Z', '', 'b'])[n + 1]",
    "n::float8 - 3",
];

fn session(database: &cluster::Database) -> (Client, f64) {
    let mut session = database.connect();
    let seed: f64 = rand::random();
    println!("seed {seed}");
    session
        .batch_execute(&format!(
            "CREATE TYPE pair AS (x int, y text); CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); SELECT setseed({seed})"
        ))
        .unwrap();
    (session, seed)
}

/// `(k, v, t)`: groups 0 to 5 have many rows, the others a few; one value in five is NULL.
fn fill(session: &mut Client, value: &str, time: &str, rows: i32) {
    let random = |expression: &str| {
        format!(
            "(SELECT CASE WHEN random() < 0.8 THEN {expression} END FROM (SELECT (random() * 5)::int + 0 * i AS n) AS r)"
        )
    };
    session
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS events; \
             CREATE TABLE events AS SELECT CASE WHEN i % 2 = 0 THEN i % 12 / 2 ELSE 6 + i % 97 END AS k, {} AS v, {} AS t \
               FROM generate_series(1, {rows}) AS i",
            random(value),
            random(time)
        ))
        .unwrap();
}

/// What PostgreSQL's own window functions say.
const BY_WINDOW: &str = "SELECT DISTINCT k, \
      first_value(CASE WHEN t IS NOT NULL THEN v END) OVER (PARTITION BY k ORDER BY t IS NULL, t, v) AS first, \
      first_value(CASE WHEN t IS NOT NULL THEN v END) OVER (PARTITION BY k ORDER BY t IS NULL, t DESC, v DESC NULLS LAST) AS last \
    FROM events";
const BY_AGGREGATE: &str = "(SELECT k, tally.first(v, t) AS first, tally.last(v, t) AS last FROM events GROUP BY k)";

#[test]
fn ends_are_those_of_window_functions_for_every_type() {
    let database = cluster::database();
    let (mut session, _) = session(&database);
    for value in VALUES {
        for time in [TIMES[0], TIMES[3]] {
            fill(&mut session, value, time, 300);
            assert_equal(&mut session, BY_AGGREGATE, BY_WINDOW);
        }
    }
    for time in TIMES {
        fill(&mut session, VALUES[0], time, 300);
        assert_equal(&mut session, BY_AGGREGATE, BY_WINDOW);
    }
}

#[test]
fn ends_are_the_same_for_every_plan() {
    let database = cluster::database();
    let (mut session, _) = session(&database);
    for (value, time) in [(VALUES[0], TIMES[0]), (VALUES[3], TIMES[6]), (VALUES[6], TIMES[5]), (VALUES[13], TIMES[4])] {
        fill(&mut session, value, time, 20000);
        session
            .batch_execute(
                "ALTER TABLE events SET (parallel_workers = 3); ANALYZE events; \
                 SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0",
            )
            .unwrap();
        for (settings, plan) in [
            ("SET max_parallel_workers_per_gather = 0; SET enable_sort = off", "HashAggregate"),
            ("RESET enable_sort; SET enable_hashagg = off", "GroupAggregate"),
            (
                "RESET ALL; SET max_parallel_workers_per_gather = 3; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; \
              SET min_parallel_table_scan_size = 0",
                "Partial",
            ),
        ] {
            session.batch_execute(settings).unwrap();
            let lines = session.query(&format!("EXPLAIN (COSTS OFF) {BY_AGGREGATE}"), &[]).unwrap();
            let lines: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
            assert!(lines.iter().any(|line| line.contains(plan)), "{plan}: {lines:#?}");
            assert_equal(&mut session, BY_AGGREGATE, BY_WINDOW);
        }
        session.batch_execute("RESET ALL").unwrap();
    }
}

#[test]
fn an_end_of_a_window_frame_is_that_of_its_rows() {
    let database = cluster::database();
    let (mut session, _) = session(&database);
    fill(&mut session, VALUES[5], TIMES[0], 500);
    session.batch_execute("ALTER TABLE events ADD id serial").unwrap();
    for frame in ["ROWS 5 PRECEDING", "ROWS BETWEEN CURRENT ROW AND 3 FOLLOWING", "ROWS UNBOUNDED PRECEDING"] {
        // A frame that begins anew with each row cannot end in a shared state.
        let by_subquery = format!(
            "SELECT id, (SELECT tally.last(v, t) FROM unnest(vs, ts) AS f (v, t)) AS last \
             FROM (SELECT id, array_agg(v) OVER w AS vs, array_agg(t) OVER w AS ts FROM events WINDOW w AS (ORDER BY id {frame})) AS a"
        );
        let by_window = format!("(SELECT id, tally.last(v, t) OVER (ORDER BY id {frame}) AS last FROM events)");
        assert_equal(&mut session, &by_window, &by_subquery);
    }
}

#[test]
fn values_without_an_order_are_refused() {
    let database = cluster::database();
    let (mut session, _) = session(&database);
    session.batch_execute("CREATE TABLE events (k int, v json, t timestamptz, p point)").unwrap();
    session.batch_execute("INSERT INTO events VALUES (1, '{}', now(), '(0,0)')").unwrap();
    for (call, kind) in [("first(v, t)", "json"), ("last(k, p)", "point")] {
        let hint = "btree operator class";
        let query = format!("SELECT k, tally.{call} AS x FROM events GROUP BY k");
        assert_refused(&mut session, &query, "42883", &format!("type {kind} has no order"), hint);
        let create = format!("SELECT tally.create_rollup('r', '{query}')");
        assert_refused(&mut session, &create, "42883", &format!("type {kind} in"), hint);
    }
    assert_refused(
        &mut session,
        "SELECT tally.first(a COLLATE \"C\", b COLLATE \"en-x-icu\") FROM (VALUES ('a', 'b'), ('c', 'd')) AS v (a, b)",
        "42P21",
        "collation mismatch",
        "",
    );
    for call in ["tally._end_serialize(NULL)", "tally._end_deserialize('', NULL)", "tally._end_at(NULL, 1, 1)"] {
        let query = format!("SELECT {call}");
        let error = session.batch_execute(&query).unwrap_err();
        assert!(["42883", "42725"].contains(&error.code().unwrap().code()), "{query}: {error}");
    }
}

/// `(name, query)` over `events (k, v, t)`.
fn rollups() -> [(&'static str, &'static str); 3] {
    [
        ("ends", "SELECT k, tally.first(v, t) AS first, tally.last(v, t) AS last FROM events GROUP BY k"),
        (
            "some_ends",
            "SELECT k % 2 AS odd, tally.last(v, t) FILTER (WHERE k < 6) AS last, tally.first(k, t) AS k, \
               tally.first(v, t) IS NOT DISTINCT FROM tally.last(v, t) AS is_one, tally.first(t, t) AS begins, count(*) AS n \
             FROM events GROUP BY 1",
        ),
        ("by_text", "SELECT t, tally.last(k, v) AS last, tally.first(t, v) AS t_of_least FROM events GROUP BY t"),
    ]
}

#[track_caller]
fn assert_all_equal_and_refreshed(session: &mut Client) {
    for (name, query) in rollups() {
        assert_equal(session, name, query);
    }
    for (name, query) in rollups() {
        assert_equal_now_and_refreshed(session, name, "events", query);
    }
}

#[test]
fn rollups_keep_ends_under_every_write() {
    let database = cluster::database();
    let (mut session, seed) = session(&database);
    for (value, time) in [
        (VALUES[0], TIMES[0]),
        (VALUES[7], TIMES[0]),
        (VALUES[8], TIMES[2]),
        (VALUES[3], TIMES[6]),
        // Times by the collation of the value.
        (VALUES[8], TIMES[6]),
        (VALUES[6], TIMES[5]),
    ] {
        fill(&mut session, value, time, 200);
        session.batch_execute("CREATE TABLE more AS SELECT * FROM events").unwrap();
        for (name, query) in rollups() {
            session.execute("SELECT tally.create_rollup($1, $2)", &[&name, &query]).unwrap();
        }
        assert_all_equal_and_refreshed(&mut session);
        for _ in 0..3 {
            for statement in [
                "INSERT INTO events SELECT * FROM more WHERE random() < 0.1",
                "UPDATE events SET t = (SELECT m.t FROM more AS m WHERE m.k = events.k ORDER BY random() LIMIT 1) WHERE random() < 0.1",
                "UPDATE events SET v = NULL WHERE random() < 0.05",
                "DELETE FROM events WHERE random() < 0.2",
                "INSERT INTO events (k, v, t) SELECT k + 1, v, NULL FROM more WHERE random() < 0.1",
                "INSERT INTO events SELECT * FROM events WHERE random() < 0.05",
            ] {
                // Some rows are counted, some are not.
                session.batch_execute("INSERT INTO events SELECT * FROM more WHERE random() < 0.03").unwrap();
                session.batch_execute(statement).unwrap();
                assert_all_equal_and_refreshed(&mut session);
            }
        }
        session.batch_execute(&format!("DROP TABLE events, more CASCADE; SELECT setseed({seed})")).unwrap();
    }
}

#[test]
fn a_level_above_may_ask_for_the_ends_of_keys_only() {
    let database = cluster::database();
    let (mut session, _) = session(&database);
    fill(&mut session, VALUES[7], TIMES[0], 300);
    let below = "SELECT k, t, v, count(*) AS n, tally.last(v, t) AS last FROM events GROUP BY k, t, v";
    let above = "SELECT k, tally.first(v, t) AS first, tally.last(t, v) AS last, sum(n) AS n FROM below GROUP BY k";
    for (name, query) in [("below", below), ("above", above)] {
        session.execute("SELECT tally.create_rollup($1, $2)", &[&name, &query]).unwrap();
    }
    session.batch_execute("INSERT INTO events SELECT * FROM events; DELETE FROM events WHERE random() < 0.3").unwrap();
    assert_equal_now_and_refreshed(&mut session, "above", "events", above);
    assert_refused(
        &mut session,
        "SELECT tally.create_rollup('x', 'SELECT k, tally.last(last, t) FROM below GROUP BY k')",
        "0A000",
        "\"last\" is not one aggregate alone",
        "",
    );
}
