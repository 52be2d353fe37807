//! Sketches: their bytes, hashes and estimates, the same for every plan; and what is refused.

mod hash;

use std::io::{Read, Write};

use postgres::{Client, SimpleQueryMessage};
use tally_server_tests::cluster::{self, Cluster};

/// A session that finds tally's names behind those of `public`.
pub fn session() -> (cluster::Database<'static>, Client) {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute("SET search_path = public, tally").unwrap();
    (database, session)
}

/// The only value of a query as text, `None` for NULL.
fn optional(session: &mut Client, query: &str) -> Option<String> {
    let answer = session.simple_query(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        _ => None,
    });
    row.unwrap_or_else(|| panic!("{query}: no row"))
}

fn text(session: &mut Client, query: &str) -> String {
    optional(session, query).unwrap_or_else(|| panic!("{query}: NULL"))
}

#[track_caller]
fn assert_text(session: &mut Client, query: &str, expected: &str) {
    assert_eq!(text(session, query), expected, "{query}");
}

#[track_caller]
fn assert_refused(session: &mut Client, statement: &str, sqlstate: &str, message: &str) {
    let error = session.batch_execute(statement).expect_err(statement);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{statement}: {error}"));
    assert_eq!((error.code().code(), error.message()), (sqlstate, message), "{statement}");
}

/// One row of one column as COPY takes it in the binary format.
pub fn binary_copy(value: &[u8]) -> Vec<u8> {
    let length = i32::try_from(value.len()).unwrap().to_be_bytes();
    [b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x01".as_slice(), &length, value, b"\xff\xff"].concat()
}

/// What EXPLAIN says of a query that it also runs.
fn explain(session: &mut Client, query: &str) -> String {
    let lines = session.query(&format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {query}"), &[]).unwrap();
    lines.iter().map(|line| line.get::<_, String>(0) + "\n").collect()
}

/// A table of 60,000 rows in 40 groups of very different sizes, with NULLs, cheap to scan in parallel.
const EVENTS: &str = "
    CREATE TABLE events AS
        SELECT CASE WHEN i % 2 = 0 THEN 0 ELSE i % 40 END AS grp,
               CASE WHEN i % 7 > 0 AND i % 40 <> 13 THEN (i::bigint * 7919) % (10 + i % 40 * 97) END AS number
        FROM generate_series(1, 60000) AS i;
    ALTER TABLE events SET (parallel_workers = 4);
    ANALYZE events;
    SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;";

fn events() -> (cluster::Database<'static>, Client) {
    let (database, mut session) = session();
    session.batch_execute(EVENTS).unwrap();
    (database, session)
}

#[test]
fn stored_bytes_are_those_of_postgresql_hll() {
    let (_database, mut session) = session();
    let three = "FROM generate_series(1, 3) AS i";
    for (query, expected) in [
        (
            format!("SELECT hll_add_agg(hll_hash_bigint(i)) {three}"),
            "\\x128b7fde0820a06c76c0a8004403b7fb05c44a5b3d5839b2488b0c",
        ),
        (format!("SELECT hll_add_agg(hll_hash_bigint(i), 4, 5, 0, 1) {three}"), "\\x1384408150f0a0"),
        (format!("SELECT hll_add_agg(hll_hash_bigint(i), 4, 5, 0, 0) {three}"), "\\x14840000000000001006028000"),
        (format!("SELECT hll_agg(i::bigint) {three}"), "\\x128b7fde0820a06c76c0a8004403b7fb05c44a5b3d5839b2488b0c"),
        (format!("SELECT hll_agg(i, 4, 5, 0, 1) {three}"), "\\x1384408150f0a0"),
        ("SELECT hll_empty()".into(), "\\x118b7f"),
        ("SELECT hll_add(hll_empty(11, 5, 0, 1), 0::hll_hashval)".into(), "\\x138b40"),
        ("SELECT hll_empty(11, 5, 0, 1) || (-1)::hll_hashval".into(), "\\x138b40ffe1"),
        ("SELECT 2048::hll_hashval || hll_empty(11, 5, 0, 1)".into(), "\\x138b400001"),
        ("SELECT hll_add(hll_empty(11, 5, 0, 1), (-9223372036854775808)::hll_hashval)".into(), "\\x138b40001f"),
    ] {
        assert_text(&mut session, &query, expected);
    }
    for (count, md5) in [(161, "871a58197fadd0e2bb11cb1bd77f0f8d"), (5000, "5aae8253eecb2760894f6ced13303f6e")] {
        let query =
            format!("SELECT md5(hll_send(hll_add_agg(hll_hash_bigint(i)))) FROM generate_series(1, {count}) AS i");
        assert_text(&mut session, &query, md5);
    }
}

#[test]
fn hashes_are_those_of_postgresql_hll() {
    let (_database, mut session) = session();
    for (call, expected) in [
        ("hll_hash_boolean(false)", "5048724184180415669"),
        ("hll_hash_boolean(true)", "8849112093580131862"),
        ("hll_hash_bytea('\\x00')", "5048724184180415669"),
        ("hll_hash_smallint(0::smallint)", "3478107235931676136"),
        ("hll_hash_integer(-1)", "4889297221962843713"),
        ("hll_hash_bigint(-1)", "-6853156495446839949"),
        ("hll_hash_text('')", "0"),
        ("hll_hash_text('hello')", "-3758069500696749310"),
        ("hll_hash_text('hello', 123)", "3016954156110693643"),
        ("hll_hash_text('hello', -1)", "3781807033743269396"),
        ("hll_hash_text(repeat('x', 33))", "-5243862173996223363"),
        // The hashes of hll_agg.
        ("hll_hash(-1::bigint)", "-6853156495446839949"),
        ("hll_hash('hello'::text)", "-3758069500696749310"),
        ("hll_hash(true)", "8849112093580131862"),
        ("hll_hash((-5)::hll_hashval)", "-5"),
    ] {
        assert_text(&mut session, &format!("SELECT {call}"), expected);
    }
}

#[test]
fn estimates_follow_the_setting() {
    let (_database, mut session) = session();
    let sketch = "(SELECT hll_agg(i) FROM generate_series(1, 5000) AS i)";
    assert_text(&mut session, &format!("SELECT round(hll_cardinality({sketch})::numeric, 6)"), "5018.512466");
    assert_text(&mut session, &format!("SELECT hll_count({sketch})"), "5019");
    assert_text(&mut session, &format!("SELECT round((# {sketch})::numeric, 6)"), "5018.512466");
    assert_text(&mut session, &format!("SELECT hll_cardinality({sketch}, 'classic')"), "5156.049404631745");
    session.batch_execute("SET tally.hll_estimator = classic").unwrap();
    assert_text(&mut session, &format!("SELECT hll_cardinality({sketch})"), "5156.049404631745");
    assert_text(&mut session, "SELECT distinct_count(i) FROM generate_series(1, 5000) AS i", "5156");
    assert_refused(&mut session, "SELECT hll_cardinality(hll_empty(), 'best')", "22023", "unknown estimator \"best\"");
    assert_refused(
        &mut session,
        "SELECT hll_cardinality(hll_agg(i, 3)) FROM generate_series(1, 100) AS i",
        "22000",
        "number of registers too small",
    );
}

#[test]
fn nulls_and_missing_rows_are_told_apart() {
    let (_database, mut session) = session();
    for (query, expected) in [
        ("SELECT hll_agg(i) FROM generate_series(1, 0) AS i", None),
        ("SELECT hll_agg(NULL::integer)", Some("\\x118b7f")),
        ("SELECT hll_union_agg(NULL::hll)", None),
        ("SELECT sum(h) FROM (VALUES (hll_empty()), (NULL)) AS v(h)", Some("\\x118b7f")),
        ("SELECT distinct_count(i) FROM generate_series(1, 0) AS i", Some("0")),
        ("SELECT distinct_count(NULL::text)", Some("0")),
        ("SELECT distinct_count(NULL::hll)", Some("0")),
        ("SELECT distinct_count('\\x108b7f'::hll)", None),
        ("SELECT hll_count('\\x108b7f'::hll)", None),
        ("SELECT hll_union(NULL, hll_empty())", None),
        ("SELECT hll_agg(i) FILTER (WHERE i > 9) FROM generate_series(1, 3) AS i", None),
    ] {
        assert_eq!(optional(&mut session, query).as_deref(), expected, "{query}");
    }
}

/// The contract that rollups rest on: partial sketches, merged in any way, have the bytes of one sketch of all rows.
#[test]
fn merged_partial_sketches_have_the_bytes_of_one_sketch() {
    let (_database, mut session) = events();
    for (parts, parameters) in [(2, ""), (3, ""), (17, ""), (5, ", 4"), (5, ", 14"), (4, ", 9, 6, 32, 0")] {
        let partial = format!(
            "SELECT grp, hashtext(ctid::text) % {parts} AS part, hll_agg(number{parameters}) AS h FROM events GROUP BY 1, 2"
        );
        // One after the other, as a rollup does with each tick, starting from nothing.
        session
            .batch_execute(&format!(
                "DROP TABLE IF EXISTS stored; CREATE TABLE stored (grp integer PRIMARY KEY, h hll);
                 DO $$ DECLARE r record; BEGIN
                    FOR r IN {partial} ORDER BY part, grp LOOP
                        INSERT INTO stored VALUES (r.grp, r.h) ON CONFLICT (grp) DO UPDATE
                        SET h = coalesce(tally.hll_union(stored.h, excluded.h), stored.h, excluded.h);
                    END LOOP;
                 END $$"
            ))
            .unwrap();
        let merged = format!("SELECT grp, hll_union_agg(h) FROM ({partial}) AS p GROUP BY grp");
        let raw = format!("SELECT grp, hll_agg(number{parameters}) FROM events GROUP BY grp");
        for other in ["SELECT grp, h FROM stored", &merged] {
            let different =
                format!("SELECT count(*) FROM (({other} EXCEPT ALL {raw}) UNION ALL ({raw} EXCEPT ALL {other})) AS d");
            assert_text(&mut session, &different, "0");
        }
        if parameters.is_empty() {
            let counts = "SELECT count(*) FROM stored
                JOIN (SELECT grp, distinct_count(number) AS n FROM events GROUP BY grp) AS r USING (grp)
                WHERE coalesce(hll_count(h), 0) <> n";
            assert_text(&mut session, counts, "0");
        }
    }
}

#[test]
fn counts_and_sketches_agree_even_where_hashes_nearly_do() {
    let (_database, mut session) = session();
    // Equal in their low 26 bits and in the zeros above them: a short form of a hash would take them for one.
    let hashes = "(VALUES ((1::bigint << 26) + 5), ((1::bigint << 26) + (1::bigint << 50) + 5)) AS v(h)";
    assert_text(
        &mut session,
        &format!("SELECT (distinct_count(h::hll_hashval), hll_count(hll_agg(h::hll_hashval))) FROM {hashes}"),
        "(2,2)",
    );
    let sizes = "SELECT count(*) FROM (SELECT distinct_count(i) AS a, hll_count(hll_agg(i)) AS b
                 FROM generate_series(1, 700) AS n, generate_series(1, n) AS i GROUP BY n) AS s WHERE a <> b";
    assert_text(&mut session, sizes, "0");
}

#[test]
fn every_plan_gives_the_same_bytes() {
    let (_database, mut session) = events();
    let aggregates =
        "hll_agg(number) AS a, hll_agg(number, 14) AS b, hll_agg(number, 5, 7, 0, 0) AS c, distinct_count(number) AS d,
                      hll_add_agg(hll_hash(number)) AS e";
    let queries = [
        format!("SELECT md5(string_agg(g::text, ';' ORDER BY grp)) FROM (SELECT grp, {aggregates} FROM events GROUP BY grp) AS g"),
        format!("SELECT md5(g::text) FROM (SELECT {aggregates} FROM events) AS g"),
        "SELECT md5(string_agg(g::text, ';' ORDER BY grp)) FROM (SELECT grp, hll_union_agg(h), sum(h), distinct_count(h)
         FROM (SELECT grp, number % 5, hll_agg(number) AS h FROM events GROUP BY 1, 2) AS p GROUP BY grp) AS g"
            .into(),
        format!(
            "SELECT md5(string_agg(g::text, ';' ORDER BY grp)) FROM (SELECT grp, {aggregates} FROM events
             GROUP BY GROUPING SETS (grp, ())) AS g"
        ),
    ];
    for query in &queries {
        session
            .batch_execute("RESET ALL; SET search_path = public, tally; SET max_parallel_workers_per_gather = 0")
            .unwrap();
        let serial = text(&mut session, query);
        session
            .batch_execute(
                "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
                 SET enable_sort = off",
            )
            .unwrap();
        assert_text(&mut session, query, &serial);
        session.batch_execute("RESET enable_sort; SET enable_hashagg = off").unwrap();
        assert_text(&mut session, query, &serial);
        session.batch_execute("RESET enable_hashagg").unwrap();
        for (workers, leader) in [(1, "on"), (2, "off"), (4, "on"), (4, "off")] {
            session
                .batch_execute(&format!(
                    "SET max_parallel_workers_per_gather = {workers}; SET parallel_leader_participation = {leader}"
                ))
                .unwrap();
            assert_text(&mut session, query, &serial);
        }
    }
    session.batch_execute("SET max_parallel_workers_per_gather = 4; SET parallel_leader_participation = on").unwrap();
    let plan = explain(&mut session, "SELECT grp, hll_agg(number), distinct_count(number) FROM events GROUP BY grp");
    assert!(plan.contains("Partial") && plan.contains("Workers Launched"), "{plan}");
}

#[test]
fn settings_reach_the_workers_of_a_parallel_query() {
    let (_database, mut session) = events();
    session
        .batch_execute("SET tally.hll_default_log2m = 13; SET tally.hll_default_expthresh = 0; SET parallel_leader_participation = off")
        .unwrap();
    let sketch = "SELECT hll_agg(number) FROM events";
    assert!(explain(&mut session, sketch).contains("Partial"));
    assert_text(
        &mut session,
        &format!("SELECT hll_print(({sketch}))::text LIKE '%nregs=8192, nbits=5, expthresh=0, sparseon=1%'"),
        "t",
    );
}

#[test]
fn parallel_unions_of_unequal_sketches_fail_as_serial_ones() {
    let (_database, mut session) = events();
    session
        .batch_execute(
            "CREATE TABLE mixed AS SELECT CASE WHEN i < 40000 THEN hll_empty() ELSE hll_empty(12) END AS h
             FROM generate_series(1, 40001) AS i;
             ALTER TABLE mixed SET (parallel_workers = 4); ANALYZE mixed",
        )
        .unwrap();
    for workers in [0, 4] {
        session.batch_execute(&format!("SET max_parallel_workers_per_gather = {workers}")).unwrap();
        let error = session.batch_execute("SELECT hll_union_agg(h) FROM mixed").unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "22000");
        assert!(error.message().starts_with("register count does not match: "), "{error}");
    }
}

#[test]
fn groups_that_do_not_fit_into_memory_are_spilled_and_right() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE visits AS SELECT i % 20000 AS grp, i AS number FROM generate_series(1, 200000) AS i;
             ANALYZE visits; SET max_parallel_workers_per_gather = 0; SET enable_sort = off; SET work_mem = '64kB'",
        )
        .unwrap();
    let grouped = "SELECT grp, hll_agg(number) AS h, distinct_count(number) AS n FROM visits GROUP BY grp";
    let plan = explain(&mut session, grouped);
    let batches = plan.split("Batches: ").nth(1).and_then(|rest| rest.split_whitespace().next());
    assert!(batches.is_some_and(|batches| batches.parse::<u32>().unwrap() > 1), "{plan}");
    let answer = format!(
        "SELECT (count(*), sum(n), min(n), max(n), md5(string_agg(h::text, '' ORDER BY grp))) FROM ({grouped}) AS g"
    );
    let spilled = text(&mut session, &answer);
    assert!(spilled.starts_with("(20000,200000,10,10,"), "{spilled}");
    session.batch_execute("RESET enable_sort; SET enable_hashagg = off").unwrap();
    assert_text(&mut session, &answer, &spilled);
}

#[test]
fn small_groups_take_little_memory() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE visits AS SELECT i % 20000 AS grp, i AS number FROM generate_series(1, 400000) AS i;
             ANALYZE visits; SET max_parallel_workers_per_gather = 0; SET enable_sort = off; SET work_mem = '13MB'",
        )
        .unwrap();
    // 20,000 groups of 20 values: 272 bytes each, and what PostgreSQL itself needs per group.
    let plan = explain(&mut session, "SELECT grp, hll_agg(number) FROM visits GROUP BY grp");
    assert!(plan.contains("Batches: 1 "), "{plan}");
}

#[test]
fn windows_and_shared_states_read_a_state_again_and_again() {
    let (_database, mut session) = session();
    let moving = "SELECT string_agg(n::text, ',' ORDER BY i) FROM (
        SELECT i, distinct_count(i % 5) OVER (ORDER BY i ROWS 3 PRECEDING) AS n FROM generate_series(1, 8) AS i) AS w";
    assert_text(&mut session, moving, "1,2,3,4,4,4,4,4");
    let growing = "SELECT bool_and(n = hll_count(h)) FROM (
        SELECT distinct_count(i) OVER w AS n, hll_agg(i) OVER w AS h FROM generate_series(1, 400) AS i WINDOW w AS (ORDER BY i)) AS g";
    assert_text(&mut session, growing, "t");
    let unions = "SELECT string_agg(hll_count(u)::text, ',' ORDER BY g) FROM (
        SELECT g, hll_union_agg(h) OVER (ORDER BY g ROWS 1 PRECEDING) AS u FROM (
            SELECT i / 10 AS g, hll_agg(i) AS h FROM generate_series(0, 49) AS i GROUP BY 1) AS s) AS w";
    assert_text(&mut session, unions, "10,20,20,20,20");
    assert_text(&mut session, "SELECT hll_count(hll_agg(DISTINCT i % 7)) FROM generate_series(1, 100) AS i", "7");
}

#[test]
fn large_and_compressed_values_are_read_whole() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE long_texts (t text);
             INSERT INTO long_texts SELECT repeat(md5(i::text), 400) FROM generate_series(1, 50) AS i;
             CREATE TABLE random_texts (t text);
             ALTER TABLE random_texts ALTER t SET STORAGE external;
             INSERT INTO random_texts SELECT t FROM long_texts;
             CREATE TABLE sketches (h hll);
             INSERT INTO sketches SELECT hll_agg(i, 17) FROM generate_series(1, 200000) AS i;
             INSERT INTO sketches SELECT hll_agg(i, 17) FROM generate_series(200001, 400000) AS i",
        )
        .unwrap();
    let agreed = "SELECT (SELECT hll_agg(t) FROM long_texts) = (SELECT hll_agg(t) FROM random_texts)
        AND (SELECT distinct_count(t) FROM long_texts) = 50
        AND (SELECT hll_hash(t) = hll_hash_text(t) FROM long_texts LIMIT 1)";
    assert_text(&mut session, agreed, "t");
    assert_text(&mut session, "SELECT pg_column_size(h) FROM sketches LIMIT 1", "81923");
    assert_text(
        &mut session,
        "SELECT (SELECT hll_union_agg(h) FROM sketches) = (SELECT hll_agg(i, 17) FROM generate_series(1, 400000) AS i)",
        "t",
    );
    assert_text(
        &mut session,
        "SELECT (hll_log2m(h), hll_regwidth(h), hll_type(h), hll_sparseon(h), hll_schema_version(h)) FROM sketches LIMIT 1",
        "(17,5,4,1,1)",
    );
    assert_text(&mut session, "SELECT count(DISTINCT h) FROM sketches", "2");
}

#[test]
fn rows_with_sketches_can_be_compared_grouped_and_indexed() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE s AS SELECT i % 10 AS k, hll_agg(j) AS h FROM generate_series(1, 30) AS i, generate_series(1, 1 + i % 3) AS j GROUP BY i;
             CREATE INDEX ON s (h); CREATE INDEX ON s USING hash (h); ANALYZE s",
        )
        .unwrap();
    for (query, expected) in [
        ("SELECT count(*) FROM (SELECT DISTINCT h FROM s) AS d", "3"),
        ("SELECT count(*) FROM (SELECT h FROM s GROUP BY h) AS d", "3"),
        ("SELECT count(*) FROM (SELECT k, h FROM s EXCEPT ALL SELECT k, h FROM s) AS d", "0"),
        ("SELECT count(*) FROM (SELECT h FROM s UNION SELECT hll_empty()) AS d", "4"),
        ("SELECT count(*) FROM s AS a JOIN s AS b USING (h)", "300"),
        // Equal sketches stand together.
        (
            "SELECT count(*) FROM (SELECT h, lag(h) OVER (ORDER BY h) AS before FROM s) AS o WHERE h IS DISTINCT FROM before",
            "3",
        ),
        ("SELECT hll_empty() = hll_empty(11) AND hll_empty() <> hll_empty(12)", "t"),
        ("SELECT hll_empty() < hll_empty(12) AND NOT hll_empty() >= hll_empty(12) AND hll_empty() <= hll_empty()", "t"),
    ] {
        assert_text(&mut session, query, expected);
    }
    for setting in ["enable_hashjoin", "enable_mergejoin", "enable_nestloop"] {
        session.batch_execute(&format!("SET {setting} = off")).unwrap();
        assert_text(&mut session, "SELECT count(*) FROM s AS a JOIN s AS b USING (h)", "300");
        session.batch_execute(&format!("RESET {setting}")).unwrap();
    }
    session.batch_execute("SET enable_seqscan = off").unwrap();
    assert_text(
        &mut session,
        "SELECT count(*) FROM s WHERE h = (SELECT hll_agg(j) FROM generate_series(1, 2) AS j)",
        "10",
    );
}

#[test]
fn binary_copies_come_back_as_they_were() {
    let (_database, mut session) = session();
    session
        .batch_execute(
            "CREATE TABLE a AS SELECT n, hll_agg(i) AS h, hll_hash(n) AS hash FROM generate_series(0, 2000, 50) AS n,
                generate_series(0, n) AS i GROUP BY n;
             INSERT INTO a VALUES (-1, NULL, NULL), (-2, hll_empty(), 0::hll_hashval), (-3, '\\x108b7f', NULL);
             CREATE TABLE b (LIKE a)",
        )
        .unwrap();
    let mut bytes = Vec::new();
    session.copy_out("COPY a TO STDOUT (FORMAT binary)").unwrap().read_to_end(&mut bytes).unwrap();
    let mut writer = session.copy_in("COPY b FROM STDIN (FORMAT binary)").unwrap();
    writer.write_all(&bytes).unwrap();
    writer.finish().unwrap();
    assert_text(
        &mut session,
        "SELECT count(*) FROM a FULL JOIN b USING (n) WHERE a.h IS DISTINCT FROM b.h OR a.hash::text IS DISTINCT FROM b.hash::text",
        "0",
    );
    assert_text(&mut session, "SELECT count(*) > 40 FROM b", "t");
}

#[test]
fn malformed_bytes_are_refused_wherever_they_come_in() {
    let (_database, mut session) = session();
    session.batch_execute("CREATE TABLE t (h hll)").unwrap();
    for (bytes, sqlstate, message) in [
        ("", "22000", "unknown schema version 0"),
        ("218b7f", "22000", "unknown schema version 2"),
        ("158b7f", "22000", "undefined multiset type"),
        ("108b7f00", "22000", "undefined multiset value"),
        ("118b7f00", "22000", "inconsistently sized empty multiset"),
        ("128b7f00", "22000", "inconsistently sized explicit multiset"),
        ("148b7f00", "22000", "inconsistently sized compressed multiset"),
        ("138b", "22000", "sparse multiset too small"),
        ("138b7f00", "22000", "inconsistent padding in sparse hll argument"),
        ("11927f", "22023", "log2m modifier must be between 0 and 17"),
        ("11eb7f", "22023", "regwidth modifier must be between 0 and 7"),
        ("118b50", "22023", "expthresh modifier must be between -1 and 16383"),
        (
            "128b7f00000000000000020000000000000001",
            "22000",
            "duplicate or descending explicit elements: EXPLICIT, 2 elements, nregs=2048, nbits=5, expthresh=-1(160), sparseon=1:\n\
             0:                    2 \n1:                    1 ",
        ),
    ] {
        assert_refused(&mut session, &format!("SELECT '\\x{bytes}'::hll"), sqlstate, message);
        assert_refused(&mut session, &format!("SELECT '\\x{bytes}'::bytea::hll"), sqlstate, message);
        let value = (0..bytes.len()).step_by(2).map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).unwrap());
        let copy = binary_copy(&value.collect::<Vec<_>>());
        let mut writer = session.copy_in("COPY t FROM STDIN (FORMAT binary)").unwrap();
        writer.write_all(&copy).unwrap();
        let error = writer.finish().unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!((error.code().code(), error.message()), (sqlstate, message), "{bytes} by COPY");
    }
    let large = "SELECT ('\\x128b7f' || repeat('00', 8 * 16384))::hll";
    assert_refused(&mut session, large, "22000", "explicit multiset too large");
}

#[test]
fn sketches_with_unequal_parameters_are_not_united() {
    let (_database, mut session) = session();
    for (right, message) in [
        ("hll_empty(12, 4)", "register width does not match: source uses 4 and dest uses 5"),
        ("hll_empty(12)", "register count does not match: source uses 4096 and dest uses 2048"),
        ("hll_empty(11, 5, 0)", "explicit threshold does not match: source uses 0 and dest uses -1"),
        ("hll_empty(11, 5, -1, 0)", "sparse enable does not match: source uses 0 and dest uses 1"),
    ] {
        assert_refused(&mut session, &format!("SELECT hll_empty() || {right}"), "22000", message);
    }
    for (call, message) in [
        ("hll_empty(18)", "log2m modifier must be between 0 and 17"),
        ("hll_empty(11, 8)", "regwidth modifier must be between 0 and 7"),
        ("hll_empty(11, 5, 16384)", "expthresh modifier must be between -1 and 16383"),
        ("hll_empty(11, 5, 3)", "expthresh modifier must be power of 2"),
        ("hll_empty(11, 5, -1, 2)", "sparseon modifier must be 0 or 1"),
        ("hll_agg(1, 18)", "log2m modifier must be between 0 and 17"),
    ] {
        assert_refused(&mut session, &format!("SELECT {call}"), "22023", message);
    }
    assert_refused(
        &mut session,
        "SELECT hll_add('\\x148050000000000000'::hll, 1::hll_hashval)",
        "22000",
        "inconsistently sized compressed multiset",
    );
    // Registers may carry a threshold that no hashes can be collected with.
    assert_refused(
        &mut session,
        "SELECT hll_add('\\x13805001'::hll, 1::hll_hashval)",
        "22000",
        "explicit threshold 32768 exceeds maximum buffer capacity 16383",
    );
}

#[test]
fn columns_with_a_type_modifier_take_only_their_own_sketches() {
    let (_database, mut session) = session();
    session.batch_execute("CREATE TABLE t (a hll, b hll(14), c hll(10, 4, 64, 0)); INSERT INTO t VALUES (hll_empty(9), hll_empty(14), hll_empty(10, 4, 64, 0))").unwrap();
    assert_text(
        &mut session,
        "SELECT string_agg(format_type(atttypid, atttypmod), ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0",
        "hll hll(14,5,-1,1) hll(10,4,64,0)",
    );
    assert_text(
        &mut session,
        "SELECT atttypmod FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'b'",
        "15103",
    );
    let message = "register count does not match: source uses 2048 and dest uses 16384";
    assert_refused(&mut session, "INSERT INTO t (b) VALUES (hll_empty())", "22000", message);
    assert_refused(&mut session, "INSERT INTO t (b) VALUES ('\\x118b7f')", "22000", message);
    assert_refused(&mut session, "SELECT hll_empty()::hll(14)", "22000", message);
    for (modifier, message) in [
        ("18", "log2m modifier must be between 0 and 17"),
        ("1, 2, 4, 1, 5", "invalid number of type modifiers"),
        ("'x'", "typmod array must contain integers"),
    ] {
        assert_refused(&mut session, &format!("CREATE TABLE u (h hll({modifier}))"), "22023", message);
    }
}

#[test]
fn aggregates_of_users_can_be_made_of_the_support_functions() {
    let (_database, mut session) = events();
    session
        .batch_execute(
            "CREATE AGGREGATE union_cardinality(hll) (SFUNC = hll_union_trans, STYPE = internal, FINALFUNC = hll_card_unpacked);
             CREATE AGGREGATE add_ceiling(hll_hashval) (SFUNC = hll_add_trans0, STYPE = internal, FINALFUNC = hll_ceil_card_unpacked,
                COMBINEFUNC = hll_union_internal, SERIALFUNC = hll_serialize, DESERIALFUNC = hll_deserialize, PARALLEL = SAFE);
             CREATE AGGREGATE add_floor(hll_hashval, integer) (SFUNC = hll_add_trans1, STYPE = internal, FINALFUNC = hll_floor_card_unpacked)",
        )
        .unwrap();
    assert_text(
        &mut session,
        "SELECT union_cardinality(h) FROM (SELECT hll_agg(i) AS h FROM generate_series(1, 50) AS i GROUP BY i % 3) AS s",
        "50",
    );
    let agreed = "SELECT add_ceiling(hll_hash(number)) = ceil(hll_cardinality(hll_agg(number)))
        AND add_floor(hll_hash(number), 12) = floor(hll_cardinality(hll_agg(number, 12))) FROM events";
    assert_text(&mut session, agreed, "t");
}

#[test]
fn settings_can_be_made_by_the_functions_of_postgresql_hll() {
    let (_database, mut session) = session();
    // Also as the first call of a session, which loads the library.
    let cluster = Cluster::start(&[("shared_preload_libraries", "")]);
    let database = cluster.database();
    for call in ["hll_set_max_sparse(7)", "hll_set_defaults(12, 4, 64, 0)", "hll_set_output_version(1)"] {
        database.connect().batch_execute(&format!("SELECT tally.{call}")).unwrap();
    }
    assert_text(&mut session, "SELECT hll_set_defaults(12, 4, 64, 0)", "(11,5,-1,1)");
    assert_text(&mut session, "SELECT hll_set_defaults(11, 5, -1, 1)", "(12,4,64,0)");
    assert_text(
        &mut session,
        "SELECT hll_print(hll_empty())",
        "EMPTY, nregs=2048, nbits=5, expthresh=-1(160), sparseon=1",
    );
    assert_text(&mut session, "SELECT hll_set_max_sparse(0)", "-1");
    assert_text(&mut session, "SELECT hll_type(hll_agg(i)) FROM generate_series(1, 161) AS i", "4");
    assert_text(&mut session, "SELECT hll_set_max_sparse(-1)", "0");
    assert_text(&mut session, "SELECT hll_type(hll_agg(i)) FROM generate_series(1, 161) AS i", "3");
    assert_text(&mut session, "SELECT hll_set_output_version(1)", "1");
    for (call, sqlstate, message) in [
        ("hll_set_defaults(18, 5, -1, 1)", "22023", "log2m modifier must be between 0 and 17"),
        ("hll_set_defaults(11, 5, 3, 1)", "22023", "expthresh modifier must be power of 2"),
        ("hll_set_max_sparse(-2)", "22000", "sparse threshold must be in range [-1,MAXINT]"),
        ("hll_set_output_version(2)", "22000", "output version must be 1"),
    ] {
        assert_refused(&mut session, &format!("SELECT {call}"), sqlstate, message);
    }
    // They last as SET does.
    session.batch_execute("BEGIN; SELECT hll_set_max_sparse(7); ROLLBACK").unwrap();
    assert_text(&mut session, "SHOW tally.hll_max_sparse", "-1");
}

#[test]
fn folded_sketches_are_those_of_fewer_registers() {
    let (_database, mut session) = session();
    for rows in [0, 3, 100, 161, 700, 20_000] {
        for log2m in [14, 11, 5, 0] {
            let same = format!(
                "SELECT hll_fold(hll_agg(i, 14), {log2m})::text = hll_agg(i, {log2m})::text IS NOT FALSE FROM generate_series(1, {rows}) AS i"
            );
            assert_text(&mut session, &same, "t");
        }
    }
    let united = "SELECT hll_fold(hll_agg(i, 12), 11) || hll_agg(-i, 11) = hll_add_agg(hll_hash(j), 11) \
        FROM generate_series(1, 5000) AS i, LATERAL (VALUES (i), (-i)) AS v (j)";
    assert_text(&mut session, united, "t");
    // Foreign bytes that name a register twice, and a set that is not known.
    assert_text(&mut session, "SELECT hll_fold('\\x138b4000430042'::hll, 10)", "\\x138a400086");
    assert_text(&mut session, "SELECT hll_type(hll_fold('\\x108b7f'::hll, 10))", "0");
    assert_refused(
        &mut session,
        "SELECT hll_fold(hll_empty(), 12)",
        "22023",
        "cannot fold a sketch of log2m 11 to log2m 12",
    );
    assert_refused(
        &mut session,
        "SELECT hll_fold(hll_empty(), -1)",
        "22023",
        "log2m modifier must be between 0 and 17",
    );
}

/// As in postgresql-hll.
#[test]
fn a_union_with_nothing_is_stored_anew() {
    let (_database, mut session) = session();
    session.batch_execute("SELECT hll_set_max_sparse(0)").unwrap();
    session.batch_execute("CREATE TABLE thin AS SELECT hll_add_agg(hll_hash(1), 11, 5, 0, 1) AS h").unwrap();
    assert_text(&mut session, "SELECT hll_type(h) FROM thin", "4");
    session.batch_execute("SELECT hll_set_max_sparse(-1)").unwrap();
    for union in ["h || hll_empty(11, 5, 0, 1)", "hll_empty(11, 5, 0, 1) || h", "h || h"] {
        assert_text(&mut session, &format!("SELECT hll_type({union}) FROM thin"), "3");
    }
    assert_text(
        &mut session,
        "SELECT hll_type(h || hll_empty(11, 5, 0, 0)) FROM (SELECT hll_add_agg(hll_hash(1), 11, 5, 0, 0) AS h) AS s",
        "4",
    );
}

#[test]
fn thresholds_are_shown_as_asked_for_and_as_they_are() {
    let (_database, mut session) = session();
    for (parameters, expected) in
        [("", "(-1,160)"), ("17, 7", "(-1,14336)"), ("11, 5, 0", "(0,0)"), ("11, 5, 128", "(128,128)")]
    {
        assert_text(&mut session, &format!("SELECT hll_expthresh(hll_empty({parameters}))"), expected);
    }
    assert_text(&mut session, "SELECT effective FROM hll_expthresh(hll_empty())", "160");
}

/// The length of the type decides, as in postgresql-hll.
#[test]
fn any_value_is_hashed_by_its_own_bytes() {
    let (_database, mut session) = session();
    session.batch_execute("CREATE DOMAIN small AS smallint; CREATE TYPE mood AS ENUM ('sad', 'ok')").unwrap();
    for (value, same) in [
        ("true", "hll_hash_boolean(true)"),
        ("'a'::\"char\"", "hll_hash_bytea('a')"),
        ("(-7)::smallint", "hll_hash_smallint((-7)::smallint)"),
        ("7::small", "hll_hash_smallint(7::smallint)"),
        ("(-7)", "hll_hash_integer(-7)"),
        ("date '2000-01-08'", "hll_hash_integer(7)"),
        ("1.5::real", "hll_hash_bytea('\\x0000c03f')"),
        ("1.5::float8", "hll_hash_bytea('\\x000000000000f83f')"),
        ("(-7)::bigint", "hll_hash_bigint(-7)"),
        ("timestamp '2000-01-01 00:00:01'", "hll_hash_bigint(1000000)"),
        ("'hello'::text", "hll_hash_text('hello')"),
        ("'a  '::char(3)", "hll_hash_text('a  ')"),
        ("'\\x00ff'::bytea", "hll_hash_bytea('\\x00ff')"),
        ("repeat('x', 10000)", "hll_hash_text(repeat('x', 10000))"),
        ("uuid '00000000-0000-0000-0000-0000000000ab'", "hll_hash_uuid('00000000-0000-0000-0000-0000000000ab')"),
        ("macaddr8 '08:00:2b:01:02:03:04:05'", "hll_hash_bytea('\\x08002b0102030405')"),
        ("macaddr '08:00:2b:01:02:03'", "hll_hash_bytea('\\x08002b010203')"),
        ("interval '1 month 2 days 3 microseconds'", "hll_hash_bytea('\\x00000000000000030000000200000001')"),
        ("'hello'::name", "hll_hash_text('hello')"),
    ] {
        assert_text(&mut session, &format!("SELECT hll_hash_any({value})::text = {same}::text"), "t");
    }
    assert_text(
        &mut session,
        "SELECT hll_hash_any(7, 5) = hll_hash_integer(7, 5) AND hll_hash_any('a'::text, 5) = hll_hash_text('a', 5)",
        "t",
    );
}

#[test]
fn a_sketch_that_names_a_register_twice_is_read_by_its_last_word() {
    let (_database, mut session) = session();
    // Register 2 is given the values 3 and then 2.
    let twice = "'\\x138b4000430042'::hll";
    assert_text(&mut session, &format!("SELECT {twice}"), "\\x138b4000430042");
    for query in [
        format!("SELECT hll_union_agg(h) FROM (VALUES ({twice}), (hll_empty(11, 5, 0, 1))) AS v(h)"),
        format!("SELECT hll_union({twice}, {twice})"),
        format!("SELECT hll_union_agg({twice})"),
    ] {
        assert_text(&mut session, &query, "\\x138b400042");
    }
}
