//! Top-N sketches in SQL: bounds, the same bytes for every plan, JSON, and what is refused.

use postgres::{Client, SimpleQueryMessage};

use crate::sketch::session;

/// The rows of a query as lines, NULL as nothing.
fn rows(session: &mut Client, query: &str) -> String {
    let answer = session.simple_query(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let lines = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or_default()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn assert_rows(session: &mut Client, query: &str, expected: &str) {
    assert_eq!(rows(session, query), expected, "{query}");
}

#[track_caller]
fn assert_refused(session: &mut Client, statement: &str, sqlstate: &str, message: &str) {
    crate::oracle::assert_refused(session, statement, sqlstate, message, "");
}

/// 60,000 rows of a stream in which item i comes about 20,000 / i times, cheap to scan in parallel.
const STREAM: &str = "
    CREATE TABLE stream AS SELECT i % 3 AS grp, floor(20000 / (1 + i % 20000))::int AS device, 'page ' || floor(20000 / (1 + i % 20000)) AS page
        FROM generate_series(1, 60000) AS i;
    ALTER TABLE stream SET (parallel_workers = 4); ANALYZE stream;
    SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;";

#[test]
fn counts_are_exact_up_to_the_number_of_counters() {
    let (_database, mut session) = session();
    session.batch_execute(STREAM).unwrap();
    let exact = rows(
        &mut session,
        "SELECT page, count(*) FROM stream GROUP BY 1 ORDER BY count(*) DESC, page COLLATE \"C\" LIMIT 5",
    );
    assert_rows(&mut session, "SELECT (topn(topn_add_agg(page), 5)).* FROM stream", &exact);
    assert_rows(&mut session, "SELECT (topn(topn_agg(page, 1000), 5)).* FROM stream", &exact);
    assert_rows(
        &mut session,
        "SELECT topn_error(s), topn_total(s), topn_counters(s) FROM (SELECT topn_add_agg(page) AS s FROM stream) AS s",
        "0|60000|1000",
    );
    // By integers, and united.
    assert_rows(
        &mut session,
        "SELECT 'page ' || item, frequency FROM topn((SELECT topn_union_agg(s) FROM (SELECT topn_add_agg(device) AS s FROM stream GROUP BY grp) AS s), 5)",
        &exact,
    );
    assert_rows(
        &mut session,
        "SELECT topn_agg(page) -> 'page 1' = count(*) FILTER (WHERE page = 'page 1'), topn_agg(page) -> 'none' IS NULL FROM stream",
        "t|t",
    );
}

#[test]
fn bounds_hold_when_there_are_more_items_than_counters() {
    let (_database, mut session) = session();
    session.batch_execute(STREAM).unwrap();
    for counters in [1, 2, 7, 20, 100] {
        let sketch = format!("(SELECT topn_agg(page, {counters}) FROM stream)");
        let united = format!(
            "(SELECT topn_union_agg(s) FROM (SELECT topn_agg(page, {counters}) AS s FROM stream GROUP BY grp) AS s)"
        );
        for sketch in [sketch, united] {
            let outside = format!(
                "SELECT count(*) FROM topn_bounds({sketch}, 1000) AS b JOIN (SELECT page, count(*) AS n FROM stream GROUP BY 1) AS e ON e.page = b.item \
                  WHERE n NOT BETWEEN lower AND upper"
            );
            assert_rows(&mut session, &outside, "0");
            let missing = format!(
                "SELECT count(*) FROM (SELECT page, count(*) AS n FROM stream GROUP BY 1) AS e \
                  WHERE n > topn_error({sketch}) AND NOT EXISTS (SELECT FROM topn_bounds({sketch}, 1000) AS b WHERE b.item = e.page)"
            );
            assert_rows(&mut session, &missing, "0");
            assert_rows(&mut session, &format!("SELECT topn_error({sketch}) * ({counters} + 1) <= 60000"), "t");
            let certain = format!(
                "SELECT count(*) FROM topn_bounds({sketch}, 3) AS b WHERE certain AND item NOT IN \
                   (SELECT page FROM stream GROUP BY 1 ORDER BY count(*) DESC LIMIT 3)"
            );
            assert_rows(&mut session, &certain, "0");
        }
    }
    assert_rows(
        &mut session,
        "SELECT * FROM topn_bounds((SELECT topn_agg(page) FROM stream), 1)",
        "page 1|30000|30000|t",
    );
}

#[test]
fn bytes_are_the_same_for_every_plan_and_order() {
    let (_database, mut session) = session();
    session.batch_execute(STREAM).unwrap();
    let query = "SELECT md5(string_agg(s::text, ' ' ORDER BY grp)) FROM (SELECT grp, topn_agg(page) AS s FROM stream GROUP BY grp) AS s";
    let expected = rows(&mut session, query);
    for settings in [
        "SET max_parallel_workers_per_gather = 0",
        "SET enable_hashagg = off",
        "SET max_parallel_workers_per_gather = 4",
        "SET parallel_leader_participation = off",
        "RESET enable_hashagg; SET work_mem = '64kB'",
    ] {
        session.batch_execute(settings).unwrap();
        assert_rows(&mut session, query, &expected);
    }
    let plan = rows(&mut session, "EXPLAIN SELECT topn_agg(page) FROM stream");
    assert!(plan.contains("Partial Aggregate"), "{plan}");
    assert_rows(&mut session, "SELECT topn_agg(page) = topn_agg(page)::text::topn FROM stream", "t");
    let shuffled = "SELECT (SELECT topn_agg(page) FROM (SELECT page FROM stream ORDER BY md5(page || random()::text)) AS s) \
        = (SELECT topn_agg(page) FROM stream)";
    assert_rows(&mut session, shuffled, "t");
    let windows = "SELECT count(DISTINCT s) FROM (SELECT topn_agg(page) OVER (ORDER BY device ROWS 99 PRECEDING)::text AS s FROM stream LIMIT 1000) AS s";
    assert_rows(&mut session, &format!("SELECT ({windows}) > 1"), "t");
}

#[test]
fn equal_values_are_one_item() {
    let (_database, mut session) = session();
    session.batch_execute("CREATE TYPE mood AS ENUM ('sad', 'ok')").unwrap();
    for (values, expected) in [
        ("('a'::char(3)), ('a  ')", "a|2"),
        ("(1.0), (1.00), (1)", "1|3"),
        ("(-0.0::float8), (0)", "0|2"),
        ("('-0'::real), (0)", "0|2"),
        ("(1.5::real), (1.5)", "1.5|2"),
        ("('1 day'::interval), ('24 hours')", "1 day|2"),
        ("(7::smallint), (7)", "7|2"),
        ("((-9223372036854775808)::bigint)", "-9223372036854775808|1"),
        ("(true), (true), (NULL)", "t|2"),
        ("('sad'::mood), ('sad')", "sad|2"),
        ("('x'::name), ('x')", "x|2"),
        ("('{1,2}'::int[]), ('{1,2}')", "{1,2}|2"),
        ("(uuid '00000000-0000-0000-0000-0000000000ab')", "00000000-0000-0000-0000-0000000000ab|1"),
    ] {
        assert_rows(
            &mut session,
            &format!("SELECT (topn(topn_agg(v), 1)).* FROM (VALUES {values}) AS t (v)"),
            expected,
        );
    }
    assert_rows(&mut session, "SELECT topn_agg(v) IS NULL FROM (SELECT 1 AS v WHERE false) AS t", "t");
    assert_rows(&mut session, "SELECT topn_agg(v) IS NULL FROM (VALUES (NULL::text)) AS t (v)", "t");
}

#[test]
fn queries_of_the_extension_topn_run_unchanged() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE aggregates (day date, agg_data jsonb); CREATE TABLE customers (day date, product char(30));
             INSERT INTO customers SELECT date '2024-01-01' + i % 2, 'p' || i % (1 + i % 7) FROM generate_series(1, 100) AS i;
             INSERT INTO aggregates SELECT day, topn_add_agg(product) FROM customers GROUP BY day;
             SET topn.number_of_counters TO 1000",
        )
        .unwrap();
    let exact =
        rows(&mut session, "SELECT trim(product), count(*) FROM customers GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3");
    assert_rows(&mut session, "SELECT (topn(topn_union_agg(agg_data), 3)).* FROM aggregates", &exact);
    assert_rows(&mut session, "SELECT count(*) FROM (SELECT day, (topn(agg_data, 1)).* FROM aggregates) AS s", "2");
    assert_rows(
        &mut session,
        "SELECT item, frequency FROM topn((SELECT topn_union(a.agg_data, b.agg_data) FROM aggregates a, aggregates b WHERE a.day < b.day), 3)",
        &exact,
    );
    assert_rows(
        &mut session,
        "SELECT topn_add('{}', 'a')::jsonb, topn_add(topn_add('{\"a\": 2}', 'b'), 'b')::jsonb",
        "{\"a\": 1}|{\"a\": 2, \"b\": 2}",
    );
    assert_rows(
        &mut session,
        "SELECT agg_data ->> 'p0' = topn_frequency(agg_data, 'p0')::text FROM aggregates LIMIT 1",
        "t",
    );
    assert_rows(
        &mut session,
        "SELECT ('{\"a\": 2}'::topn + '{\"a\": 1, \"b\": 9}'::topn)::jsonb",
        "{\"a\": 3, \"b\": 9}",
    );
}

#[test]
fn what_is_no_sketch_is_refused() {
    let (_database, mut session) = session();
    for (statement, sqlstate, message) in [
        ("SELECT '\\x'::topn", "22000", "topn"),
        ("SELECT '\\x1000'::topn", "22000", "topn"),
        ("SELECT '\\x2000e803000000000000'::topn", "22000", "topn"),
        ("SELECT 'nonsense'::topn", "22000", "topn"),
        ("SELECT '{'::topn", "22P02", "JSON"),
        ("SELECT '{\"a\": -1}'::topn", "22P02", "JSON"),
        ("SELECT '{\"a\": 1.5}'::topn", "22P02", "JSON"),
        ("SELECT '{\"a\": {\"b\": 1}}'::topn", "22P02", "JSON"),
        ("SELECT '[1]'::jsonb::topn", "22P02", "JSON"),
        ("SELECT '{\"a\\u0000\": 1}'::topn", "22P05", "u0000"),
        ("SELECT topn('{}'::topn, -1)", "22023", "negative"),
        ("SELECT topn_agg('a'::text, 0)", "22023", "counters"),
        ("SELECT topn_agg('a'::text, -7)", "22023", "counters"),
        ("SELECT topn_agg('a'::text, 2000000000)", "22023", "counters"),
        ("SELECT topn_agg(repeat('x', 65537))", "54000", "item"),
        ("SELECT topn_add('{}', repeat('x', 65537))", "54000", "item"),
        ("SELECT '{\"a\": 9223372036854775807}'::topn + '{\"a\": 1}'::topn", "22003", "total"),
        ("SET tally.topn_counters = 0", "22023", "outside"),
    ] {
        assert_refused(&mut session, statement, sqlstate, message);
    }
    assert_rows(
        &mut session,
        "SELECT length(item), frequency FROM topn((SELECT topn_agg(repeat('x', 65536))), 1)",
        "65536|1",
    );
    // An item that is no text of the database.
    let invalid = "SELECT ('\\x1000' || 'e8030000' || '01' || '00' || '01' || '01' || 'ff' || '01' || '00')::topn";
    assert_refused(&mut session, invalid, "22021", "encoding");
    assert_refused(&mut session, &invalid.replace("'ff'", "'00'"), "22021", "zero byte");
    assert_rows(&mut session, &format!("{} -> 'a'", invalid.replace("'ff'", "'61'")), "1");
    let copied = "CREATE TABLE t (s topn); INSERT INTO t SELECT topn_agg(i) FROM generate_series(1, 500) AS i; COPY t TO '/dev/null' (FORMAT binary)";
    session.batch_execute(copied).unwrap();
}

#[test]
fn rollups_keep_lists_at_every_level() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE visits (at timestamptz NOT NULL, shop int NOT NULL, page text, device bigint);
             INSERT INTO visits SELECT '2024-01-01Z'::timestamptz + i * interval '1 minute', i % 2, 'p' || i % (1 + i % 7), i % 5 FROM generate_series(1, 500) AS i",
        )
        .unwrap();
    let query = "SELECT date_bin('1 hour', at, '2000-01-01Z') AS hour, shop, topn_agg(page) AS pages, topn_add_agg(device) AS devices FROM visits GROUP BY 1, 2";
    let above = "SELECT hour, topn_union_agg(pages) AS pages FROM hourly GROUP BY 1";
    session.batch_execute(&format!("SELECT create_rollup('hourly', '{}')", query.replace('\'', "''"))).unwrap();
    session.batch_execute(&format!("SELECT create_rollup('above', '{above}')")).unwrap();
    let check = |session: &mut Client| {
        let different = format!(
            "SELECT count(*) FROM (SELECT hour, shop, coalesce(pages::text, '') AS pages, coalesce(devices::text, '') AS devices FROM hourly) AS r \
               FULL JOIN (SELECT hour, shop, coalesce(pages::text, '') AS pages, coalesce(devices::text, '') AS devices FROM ({query}) AS q) AS e USING (hour, shop, pages, devices) \
              WHERE r IS NULL OR e IS NULL"
        );
        assert_rows(session, &different, "0");
        let of_all =
            "SELECT (SELECT topn_union_agg(pages)::text FROM above) = (SELECT topn_agg(page)::text FROM visits)";
        assert_rows(session, of_all, "t");
    };
    check(&mut session);
    for statement in [
        "INSERT INTO visits VALUES ('2024-01-01 01:00Z', 1, 'new', 7), ('2024-01-02 01:00Z', 0, NULL, NULL)",
        "UPDATE visits SET page = 'other' WHERE device = 3 AND shop = 0",
        "CALL tally.refresh('hourly')",
        "DELETE FROM visits WHERE page = 'p1'",
        "CALL tally.refresh('hourly')",
    ] {
        session.batch_execute(statement).unwrap();
        check(&mut session);
    }
    for (column, kind) in [("at", "timestamp with time zone"), ("at::date", "date")] {
        let create =
            format!("SELECT create_rollup('r', $$SELECT shop, topn_agg({column}) FROM visits GROUP BY shop$$)");
        let error = session.batch_execute(&create).unwrap_err();
        let message = error.as_db_error().unwrap().message().to_owned();
        assert!(message.ends_with(&format!("of type {kind}")) || message.contains("TimeZone"), "{message}");
    }
}

#[test]
fn rows_with_lists_can_be_compared_grouped_and_indexed() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE s AS SELECT i % 10 AS k, topn_agg(j) AS t FROM generate_series(1, 30) AS i, generate_series(1, 1 + i % 3) AS j GROUP BY i;
             CREATE INDEX ON s (t); CREATE INDEX ON s USING hash (t); ANALYZE s",
        )
        .unwrap();
    for (query, expected) in [
        ("SELECT count(*) FROM (SELECT DISTINCT t FROM s) AS d", "3"),
        ("SELECT count(*) FROM (SELECT k, t FROM s EXCEPT ALL SELECT k, t FROM s) AS d", "0"),
        ("SELECT count(*) FROM (SELECT t FROM s UNION SELECT topn_add('{}', 'x')) AS d", "4"),
        ("SELECT topn_add('{}', 'a') = '{\"a\": 1}' AND topn_add('{}', 'a') <> '{\"a\": 2}'", "t"),
    ] {
        assert_rows(&mut session, query, expected);
    }
    for setting in ["enable_hashjoin", "enable_mergejoin", "enable_nestloop"] {
        session.batch_execute(&format!("SET {setting} = off")).unwrap();
        assert_rows(&mut session, "SELECT count(*) FROM s AS a JOIN s AS b USING (t)", "300");
        session.batch_execute(&format!("RESET {setting}")).unwrap();
    }
    session.batch_execute("SET enable_seqscan = off").unwrap();
    let query = "SELECT count(*) FROM s WHERE t = (SELECT topn_agg(j) FROM generate_series(1, 2) AS j)";
    assert_rows(&mut session, query, "10");
}
