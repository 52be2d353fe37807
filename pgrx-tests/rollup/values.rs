//! Values that group, compare or add up in ways of their own, as keys and as arguments.

use postgres::Client;
use tally_server_tests::cluster;

use super::create;
use crate::oracle::{assert_equal, pending};

/// Stored first and pending first, alone and met by each other: every pair of moments at which a value can come.
#[track_caller]
fn assert_kept(kind: &str, aggregates: &str, values: &[&str]) {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE DOMAIN small AS int CHECK (VALUE < 100); CREATE DOMAIN words AS text[]; CREATE TYPE mood AS ENUM ('sad', 'ok'); \
             CREATE TYPE pair AS (x int, y text); CREATE TYPE span AS RANGE (subtype = float8); CREATE DOMAIN couple AS pair",
        )
        .unwrap();
    session.batch_execute(&format!("CREATE TABLE events (k {kind}, n int)")).unwrap();
    let insert = |session: &mut Client, value: &str| {
        session.batch_execute(&format!("INSERT INTO events VALUES ({value}::{kind}, 1), (NULL, 1)")).unwrap();
    };
    let queries = [
        "SELECT k, count(*) AS c, sum(n) AS s FROM events GROUP BY k".to_string(),
        format!("SELECT n, count(k) AS c, {aggregates} FROM events GROUP BY n"),
        "SELECT k IS NULL AS nothing, n, k AS again, count(*) AS c FROM events GROUP BY k, n, 1".to_string(),
    ];
    for (number, query) in queries.iter().enumerate() {
        session.execute("SELECT tally.create_rollup($1, $2)", &[&format!("r{number}"), query]).unwrap();
    }
    for first in values {
        for second in values {
            insert(&mut session, first);
            session.batch_execute("CALL tally.refresh('r0')").unwrap();
            insert(&mut session, second);
            for (number, query) in queries.iter().enumerate() {
                assert_equal(&mut session, &format!("r{number}"), query);
            }
        }
    }
    session.batch_execute("CALL tally.refresh('r0')").unwrap();
    assert_eq!(pending(&mut session, "events"), 0);
    for (number, query) in queries.iter().enumerate() {
        assert_equal(&mut session, &format!("r{number}"), query);
    }
}

#[test]
fn numbers_that_are_none_or_have_two_forms() {
    let sums = "sum(k) AS s, avg(k) AS a, min(k) AS i, max(k) AS x";
    assert_kept("float8", sums, &["'NaN'", "'-0'", "'0'", "'Infinity'", "'-Infinity'"]);
    assert_kept("real", sums, &["'NaN'", "'-0'", "0.5", "'-Infinity'"]);
    assert_kept("numeric", sums, &["'NaN'", "1.0", "1.000", "'Infinity'", "1e100"]);
    assert_kept("numeric(6, 2)", sums, &["1.005", "-1", "9999.99"]);
}

#[test]
fn integers_at_their_limits() {
    let sums = "sum(k) AS s, avg(k) AS a, min(k) AS i, max(k) AS x";
    assert_kept("smallint", sums, &["32767", "'-32768'", "0"]);
    assert_kept("int", sums, &["2147483647", "'-2147483648'", "0"]);
    assert_kept("bigint", sums, &["9223372036854775807", "'-9223372036854775808'", "0"]);
    assert_kept("small", "sum(k) AS s, max(k) AS x", &["99", "-5", "0"]);
}

#[test]
fn texts_that_are_empty_padded_or_not_ascii() {
    let ends = "min(k) AS i, max(k) AS x";
    assert_kept("text", ends, &["''", "' '", "'NULL'", "'ä'", "'a''b\\c'"]);
    assert_kept("char(3)", ends, &["''", "'a'", "'a '", "'abc'"]);
    assert_kept("varchar(3)", ends, &["''", "'a'", "'a '"]);
    assert_kept("\"char\"", "count(*) AS i", &["''", "'a'"]);
    assert_kept("name", "count(*) AS i", &["''", "'a'"]);
    assert_kept("bytea", "count(*) AS i", &["''", "'\\x00'", "'\\x0000'"]);
    assert_kept("text COLLATE \"C\"", ends, &["'B'", "'a'"]);
}

#[test]
fn times_that_never_end() {
    let ends = "min(k) AS i, max(k) AS x";
    assert_kept("timestamptz", ends, &["'infinity'", "'-infinity'", "'2024-03-31 01:30+01'", "'2024-03-31 00:30Z'"]);
    assert_kept("timestamp", ends, &["'infinity'", "'-infinity'", "'0044-03-15 BC'"]);
    assert_kept("date", ends, &["'infinity'", "'-infinity'", "'2024-02-29'"]);
    assert_kept("time", ends, &["'24:00'", "'00:00'"]);
    assert_kept("timetz", ends, &["'12:00+00'", "'13:00+01'"]);
    assert_kept("interval", "sum(k) AS s, avg(k) AS a, max(k) AS x", &["'1 mon'", "'30 days'", "'720:00'", "'-1 day'"]);
}

#[test]
fn composites_and_arrays_that_hold_nothing() {
    assert_kept("int[]", "min(k) AS i, max(k) AS x", &["'{}'", "'{NULL}'", "'{1}'", "'{{1},{2}}'", "'[5:5]={1}'"]);
    assert_kept("words", "count(*) AS i", &["'{}'", "'{NULL}'", "'{\"\"}'"]);
    assert_kept("pair", "count(*) AS i", &["'(,)'", "'(1,)'", "'(,a)'", "'(1,\"\")'"]);
    assert_kept("couple", "count(*) AS i", &["'(,)'", "'(1,)'"]);
    assert_kept("pair[]", "count(*) AS i", &["'{}'", "'{NULL}'", "'{\"(,)\"}'"]);
    assert_kept("mood", "min(k) AS i, max(k) AS x", &["'sad'", "'ok'"]);
    assert_kept("boolean", "count(*) FILTER (WHERE k) AS i", &["true", "false"]);
    assert_kept("uuid", "count(*) AS i", &["'00000000-0000-0000-0000-000000000000'", "gen_random_uuid()"]);
    assert_kept("inet", "min(k) AS i, max(k) AS x", &["'10.0.0.1'", "'10.0.0.1/8'", "'::1'"]);
    assert_kept("jsonb", "count(*) AS i", &["'null'", "'{}'", "'[]'", "'1.0'", "'1'"]);
    assert_kept("span", "count(*) AS i", &["'empty'", "'(,)'", "'[0,1)'", "'[-0,1)'"]);
}

/// Compared as text: the digits behind the point count.
#[test]
fn deviations_have_the_digits_of_postgresql() {
    let spread = "var_samp(k)::text AS va, var_pop(k)::text AS vp, stddev_samp(k)::text AS ds, stddev_pop(k)::text AS dp, \
                  variance(k)::text AS v, stddev(k)::text AS d";
    assert_kept("int", spread, &["2147483647", "'-2147483648'", "0", "7"]);
    assert_kept("bigint", spread, &["9223372036854775807", "'-9223372036854775808'", "3"]);
    assert_kept("smallint", spread, &["1", "2", "'-32768'"]);
    assert_kept("numeric", spread, &["'NaN'", "1.0", "1.00005", "'Infinity'", "'-Infinity'", "1e50", "1e-30"]);
    assert_kept("numeric", spread, &["3", "70000", "123456789.25", "0.1"]);
}

#[test]
fn random_deviations_have_the_digits_of_postgresql() {
    let database = cluster::database();
    let mut session = database.connect();
    let query = "SELECT k, stddev(v)::text AS deviation, stddev_pop(v)::text AS whole, variance(v)::text AS spread FROM events GROUP BY k";
    session.batch_execute("CREATE TABLE events (k int, v numeric)").unwrap();
    session.execute("SELECT tally.create_rollup('r', $1)", &[&query]).unwrap();
    let seed: f64 = rand::random();
    println!("seed {seed}");
    for size in ["1", "1000", "1e6", "1e11", "1e-6"] {
        session
            .batch_execute(&format!(
                "SELECT setseed({seed}); INSERT INTO events SELECT i % 3000, round((random() * {size})::numeric, (random() * 12)::int) \
                   FROM generate_series(1, 9000) AS i"
            ))
            .unwrap();
        assert_equal(&mut session, "r", query);
        session.batch_execute("CALL tally.refresh('r')").unwrap();
    }
    assert_equal(&mut session, "r", query);
}

/// Every aggregate of floats whose last digits depend on the order of rows.
fn aggregates_of_floats() -> String {
    let mut columns = vec![];
    for name in ["var_samp", "var_pop", "variance", "stddev", "stddev_samp", "stddev_pop"] {
        columns.push(format!("{name}(y) AS {name}, {name}(f) AS {name}_of_real"));
        columns.push(format!(
            "{name}(y) FILTER (WHERE x > 0) AS some_{name}, {name}(x) FILTER (WHERE false) AS no_{name}"
        ));
    }
    for name in [
        "corr",
        "covar_pop",
        "covar_samp",
        "regr_avgx",
        "regr_avgy",
        "regr_count",
        "regr_intercept",
        "regr_r2",
        "regr_slope",
        "regr_sxx",
        "regr_sxy",
        "regr_syy",
    ] {
        columns.push(format!("{name}(y, x) AS {name}, {name}(n, f) AS {name}_of_others"));
        columns.push(format!(
            "{name}(x, y) FILTER (WHERE n > 5) AS some_{name}, {name}(y, x) FILTER (WHERE n < 0) AS no_{name}"
        ));
    }
    format!("SELECT k, {} FROM events GROUP BY k", columns.join(", "))
}

/// Equal but for the last digits. NaN and infinity are equal to nothing but themselves.
#[track_caller]
fn assert_close(session: &mut Client, rollup: &str, query: &str) {
    let names = "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 1";
    let names: Vec<String> = session.query(names, &[&rollup]).unwrap().iter().map(|row| row.get(0)).collect();
    let far = |name: &String| {
        let (r, q) = (format!("r.{name}::float8"), format!("q.{name}::float8"));
        format!(
            "CASE WHEN ({r} IS NOT DISTINCT FROM {q} OR abs({r}) < 'Infinity' AND abs({q}) < 'Infinity' \
               AND abs({r} - {q}) <= 1e-9 * greatest(1, abs({r}), abs({q}))) IS NOT TRUE \
             THEN format(' {name}: %s in the rollup, %s in the query', {r}, {q}) END"
        )
    };
    let far: Vec<String> = names.iter().map(far).collect();
    let differences = format!(
        "SELECT k, difference FROM (SELECT k, CASE WHEN r.k IS NULL OR q.k IS NULL THEN 'only in one' ELSE concat({}) END AS difference \
           FROM (SELECT * FROM {rollup}) AS r FULL JOIN ({query}) AS q USING (k)) AS d WHERE difference <> ''",
        far.join(", ")
    );
    let found: Vec<(i32, String)> =
        session.query(&differences, &[]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(found.is_empty(), "{rollup} differs from its query: {found:#?}");
}

#[test]
fn deviations_and_regressions_of_floats_follow_every_write() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute("CREATE TABLE events (k int, y float8, x float8, f real, n int)").unwrap();
    let query = aggregates_of_floats();
    create(&mut session, "r", &query);
    let seed: f64 = rand::random();
    println!("seed {seed}");
    session.batch_execute(&format!("SELECT setseed({seed})")).unwrap();
    // Of groups 1 to 9 each row is a case of its own; those above have random values, some of them missing.
    let insert = "INSERT INTO events VALUES (1, 5, 7, 9, 11), (2, NULL, 1, NULL, 1), (3, NULL, NULL, NULL, NULL), (4, 'NaN', 1, 'NaN', 1), \
          (4, 1, 2, 3, 4), (5, 'Infinity', 1, '-Infinity', 1), (5, 1, 2, 3, 4), (6, '-Infinity', 'Infinity', 'Infinity', 9), \
          (7, 1e150, -1e150, 1e18, 7), (7, 1, -1, 1, 8), (8, 1, 2, 3, 4), (8, 2, 3, 4, 5), (9, -0.0, 0, -0.0, 0); \
        INSERT INTO events SELECT 10 + i % 7, CASE WHEN random() < 0.9 THEN 100 + random() * 50 END, \
          CASE WHEN random() < 0.9 THEN 30 - random() * 50 END, CASE WHEN random() < 0.9 THEN random() * 9 END, random() * 20 \
          FROM generate_series(1, 500) AS i";
    for statement in [
        "SELECT",
        "UPDATE events SET y = y + 3, f = NULL WHERE k IN (2, 8, 11, 12) AND n % 2 = 0",
        "DELETE FROM events WHERE k IN (4, 13) OR y = 'Infinity'",
        "UPDATE events SET k = k + 1 WHERE k IN (5, 14)",
        "INSERT INTO events SELECT * FROM events",
        "DELETE FROM events",
    ] {
        for _ in 0..2 {
            // Some rows are counted, some are not.
            session.batch_execute(insert).unwrap();
            session.batch_execute(statement).unwrap();
            assert_close(&mut session, "r", &query);
            session.batch_execute("CALL tally.refresh('r')").unwrap();
            assert_eq!(pending(&mut session, "events"), 0);
            assert_close(&mut session, "r", &query);
            session.batch_execute(insert).unwrap();
            assert_close(&mut session, "r", &query);
        }
    }
}

#[test]
fn truths_and_bits_merge() {
    assert_kept("boolean", "bool_and(k) AS a, bool_or(k) AS o, every(k) AS e", &["true", "false", "NULL"]);
    for kind in ["smallint", "int", "bigint"] {
        assert_kept(kind, "bit_and(k) AS a, bit_or(k) AS o, bit_xor(k) AS x", &["5", "3", "'-1'", "NULL", "0"]);
    }
}
