//! Values of any type have equal hashes if and only if they are equal in SQL, on every server.

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

use super::{assert_refused, assert_text, session, text};

const TYPES: &str = "
    CREATE COLLATION same_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'good'); CREATE DOMAIN positive AS integer CHECK (value > 0);
    CREATE DOMAIN label AS varchar(20); CREATE DOMAIN amount AS numeric; CREATE TYPE point_in_time AS (what amount, at interval, m mood);
    CREATE TYPE text_range AS RANGE (subtype = text, collation = \"C\"); CREATE TABLE dropped (a int, gone text, b numeric);
    ALTER TABLE dropped DROP COLUMN gone";

/// Of each type values that are equal in all the ways that it has, and others that look alike. Types of one line can be compared.
const VALUES: [&[&str]; 33] = [
    &[
        "7::smallint",
        "7::integer",
        "7::bigint",
        "7::positive",
        "-7::smallint",
        "-7::bigint",
        "-7::integer",
        "0",
        "-1",
        "1",
    ],
    &["7::oid", "4294967295::oid", "'pg_class'::regclass", "1259::oid", "'pg_class'::regclass::oid"],
    &["true", "false"],
    &["'a'::\"char\"", "'b'::\"char\"", "''::\"char\""],
    &[
        "'hello'::text",
        "'hello'::varchar",
        "'hello'::name",
        "'hello'::label",
        "'hello '::text",
        "'Hello'::text",
        "''::text",
        "repeat('x', 10000)",
    ],
    &[
        "'a'::char(3)",
        "'a'::char(5)",
        "'a  '::char(3)",
        "'b'::char(3)",
        "''::char(3)",
        "'  '::char(3)",
        "' a'::char(3)",
    ],
    &[
        "'A'::text COLLATE same_case",
        "'a'::text COLLATE same_case",
        "'b'::text COLLATE same_case",
        "'ä'::text COLLATE same_case",
    ],
    &["'A'::name COLLATE same_case", "'a'::name COLLATE same_case"],
    &["'A'::char(3) COLLATE same_case", "'a'::char(2) COLLATE same_case", "'b'::char(2) COLLATE same_case"],
    &["'\\x00'::bytea", "'\\x'::bytea", "'\\x0000'::bytea", "'\\x01'::bytea"],
    &[
        "0::float8",
        "'-0'::float8",
        "'-0'::real",
        "0::real",
        "'NaN'::float8",
        "'NaN'::real",
        "-'NaN'::float8",
        "1.5::real",
        "1.5::float8",
        "0.1::real",
        "0.1::float8",
        "'Infinity'::real",
        "'Infinity'::float8",
        "'-Infinity'::float8",
    ],
    &[
        "1::numeric",
        "1.0::numeric",
        "1.000::numeric",
        "(-1.0)::numeric",
        "(-1)::numeric",
        "0.0::numeric",
        "0::numeric",
        "(-0.00)::numeric",
        "1e5::numeric",
        "100000.00::numeric",
        "1e-20::numeric",
        "0.00000000000000000001::numeric",
        "1e100::numeric",
        "1e100::numeric + 0.0",
        "12345678.9::numeric",
        "12345678.90::numeric",
        "'NaN'::numeric",
        "'Infinity'::numeric",
        "'-Infinity'::numeric",
        "10000::numeric",
        "1.0001::numeric",
        "1e200::numeric / 1e190",
        "1e10::numeric",
        "repeat('9', 5000)::numeric",
    ],
    &["date '2000-01-03'", "date '2000-01-02'", "date 'infinity'"],
    &["timestamp '2000-01-01'", "timestamp '2000-01-01 00:00:00.000001'", "timestamp 'infinity'"],
    &["timestamptz '2024-05-01 12:00+02'", "timestamptz '2024-05-01 10:00+00'", "timestamptz '2024-05-01 10:00+01'"],
    &["time '12:00'", "time '12:00:00.0'", "time '24:00'", "time '00:00'"],
    &["timetz '12:00+02'", "timetz '12:00:00+02'", "timetz '10:00+00'", "timetz '12:00+01'"],
    &[
        "interval '1 day'",
        "interval '24 hours'",
        "interval '1 month'",
        "interval '30 days'",
        "interval '720 hours'",
        "interval '0'",
        "interval '-1 day 24 hours'",
        "interval '-1 day'",
        "interval '1 year'",
        "interval '12 months'",
        "interval '365 days'",
    ],
    &["1::money", "1.00::money", "2::money"],
    &["'0/1'::pg_lsn", "'0/2'::pg_lsn"],
    &["'7'::xid8", "'8'::xid8"],
    &[
        "uuid '00000000-0000-0000-0000-0000000000ab'",
        "uuid '{000000000000000000000000000000AB}'",
        "uuid '00000000-0000-0000-0000-0000000000ac'",
    ],
    &["macaddr '08:00:2b:01:02:03'", "macaddr '08-00-2b-01-02-03'", "macaddr '08:00:2b:01:02:04'"],
    &["macaddr8 '08:00:2b:01:02:03:04:05'", "macaddr8 '0800.2b01.0203.0405'", "macaddr8 '08:00:2b:01:02:03:04:06'"],
    &[
        "inet '10.0.0.1'",
        "inet '10.0.0.1/32'",
        "cidr '10.0.0.1/32'",
        "cidr '10.0.0.0/8'",
        "inet '10.0.0.0/8'",
        "inet '10.0.0.1/8'",
        "inet '::1'",
        "inet '::10.0.0.1'",
        "inet '::ffff:10.0.0.1'",
    ],
    &["B'101'", "B'101'::varbit", "B'1010'", "B'0101'", "B'1010'::varbit(9)", "B''", "B'00000000'", "B'0000000'"],
    &["'sad'::mood", "'ok'::mood", "'good'::mood"],
    &[
        "'{1.0}'::numeric[]",
        "'{1.00}'::numeric[]",
        "'{1}'::amount[]::numeric[]",
        "'{1,2}'::numeric[]",
        "'{12}'::numeric[]",
        "'{NULL}'::numeric[]",
        "'{}'::numeric[]",
        "'[2:2]={1.0}'::numeric[]",
        "'{{1.0}}'::numeric[]",
        "'{NULL,1}'::numeric[]",
        "'{1,NULL}'::numeric[]",
    ],
    &[
        "row(1.0, 'a'::text)",
        "row(1.00, 'a'::text)",
        "row(1.0, NULL::text)",
        "row(NULL::numeric, 'a'::text)",
        "row(10.0, ''::text)",
    ],
    &[
        "row(1.0, '1 day', 'ok')::point_in_time",
        "row(1.00, '24 hours', 'ok')::point_in_time",
        "row(1.0, '1 day', 'sad')::point_in_time",
        "row(1.0, NULL, 'sad')::point_in_time",
        "NULL::point_in_time",
    ],
    &[
        "'[1,2]'::int4range",
        "'[1,3)'::int4range",
        "'(0,3)'::int4range",
        "'empty'::int4range",
        "'[2,2)'::int4range",
        "'[1,)'::int4range",
        "'(,3)'::int4range",
        "'(,)'::int4range",
        "'[1,4)'::int4range",
    ],
    &[
        "'{[1,2],[2,3]}'::int4multirange",
        "'{[1,4)}'::int4multirange",
        "'{}'::int4multirange",
        "'{[1,2),[3,4)}'::int4multirange",
        "'{[1,2)}'::int4multirange",
    ],
    &[
        "'{\"a\": 1.0, \"b\": [1, null]}'::jsonb",
        "'{\"b\": [1.00, null], \"a\": 1}'::jsonb",
        "'1'::jsonb",
        "'[1]'::jsonb",
        "'[[1]]'::jsonb",
        "'\"1\"'::jsonb",
        "'1.0'::jsonb",
        "'null'::jsonb",
        "'[]'::jsonb",
        "'{}'::jsonb",
        "'[null]'::jsonb",
        "'true'::jsonb",
        "'false'::jsonb",
        "'\"\"'::jsonb",
        "'[\"a\", \"b\"]'::jsonb",
        "'[\"ab\"]'::jsonb",
        "'{\"a\": \"b\"}'::jsonb",
        "'[{\"a\": {}}, -1e10]'::jsonb",
        "'[{\"a\": []}, -1e10]'::jsonb",
        "'[{\"a\": {}}, -10000000000.0]'::jsonb",
        "(SELECT jsonb_agg(i) FROM generate_series(1, 3000) AS i)",
        "(SELECT jsonb_object_agg(i, i::text || '.0') FROM generate_series(1, 300) AS i)",
    ],
];

/// More ranges: bounds with parts of their own.
const RANGES: [&str; 6] = [
    "'[1.0,2)'::numrange",
    "'[1.00,2.0)'::numrange",
    "'[1.0,2]'::numrange",
    "'(1.0,2)'::numrange",
    "'[1.0,)'::numrange",
    "'empty'::numrange",
];

#[test]
fn values_have_one_hash_if_and_only_if_they_are_equal() {
    let (_database, mut session) = session();
    session.batch_execute(TYPES).unwrap();
    let text_ranges: &[&str] = &["'[a,b)'::text_range", "'[a,b]'::text_range", "'[a,bb)'::text_range"];
    for group in VALUES.iter().copied().chain([&RANGES[..], text_ranges]) {
        for (position, a) in group.iter().enumerate() {
            for b in &group[position..] {
                // A NULL row is no value.
                let query = format!(
                    "SELECT (a = b) IS NOT DISTINCT FROM (hll_hash(a)::text = hll_hash(b)::text) \
                       FROM (SELECT {a} AS a, {b} AS b) AS v"
                );
                assert_text(&mut session, &query, "t");
            }
        }
    }
}

/// What is stored is compressed, short or elsewhere; what is computed is not.
#[test]
fn stored_values_have_the_hash_of_computed_ones() {
    let (_database, mut session) = session();
    session.batch_execute(TYPES).unwrap();
    for group in VALUES {
        // No column has type record.
        for value in group.iter().filter(|value| !value.starts_with("row(") || value.contains("::point")) {
            session
                .batch_execute(&format!(
                    "DROP TABLE IF EXISTS stored; CREATE TABLE stored AS SELECT {value} AS v, 1 AS one; ANALYZE stored"
                ))
                .unwrap();
            let computed = format!("SELECT coalesce(hll_hash({value})::text, 'none')");
            let computed = text(&mut session, &computed);
            assert_text(&mut session, "SELECT coalesce(hll_hash(v)::text, 'none') FROM stored", &computed);
            let of_aggregate = format!("SELECT hll_agg(v)::text = hll_add_agg(hll_hash({value}))::text FROM stored");
            assert_text(&mut session, &of_aggregate, "t");
        }
    }
    // A column that has been dropped is none.
    session.batch_execute("INSERT INTO dropped VALUES (1, 2.0)").unwrap();
    assert_text(&mut session, "SELECT hll_hash(d)::text = hll_hash(row(1, 2.00))::text FROM dropped AS d", "t");
}

/// As `core::sketch::canon` describes them: who hashes such bytes elsewhere gets the same sketch.
#[test]
fn byte_forms_are_what_they_are_said_to_be() {
    let (_database, mut session) = session();
    session.batch_execute(TYPES).unwrap();
    for (value, bytes) in [
        ("1.50::real", "000000000000f83f"),
        ("0.00::numeric", "00"),
        ("10000.50::numeric", "01 0100 0100 0000 8813"),
        ("(-0.0001)::numeric", "02 ffff 0100"),
        ("'-Infinity'::numeric", "05"),
        ("interval '1 day 1 microsecond'", "0160d71d14000000 0000000000000000"),
        ("timetz '00:00:01-01'", "40420f0000000000 100e0000"),
        ("inet '10.1.0.0/16'", "04 10 0a010000"),
        ("inet '::1'", "06 80 00000000000000000000000000000001"),
        ("B'101'", "03000000 a0"),
        ("'ok'::mood", "6f6b"),
        ("ARRAY[true, NULL]", "01000000 02000000 01000000 01 01000000 01 00"),
        ("row(true, 'a'::\"char\")", "02000000 01 01000000 01 01 01000000 61"),
        ("'[1,)'::int4range", "12 01 08000000 0100000000000000 00"),
        ("'empty'::int4range", "01"),
        (
            "'{[1,2)}'::int4multirange",
            "01000000 01 1b000000 02 01 08000000 0100000000000000 01 08000000 0200000000000000",
        ),
        (
            "'{\"a\": [1, \"x\", null, true]}'::jsonb",
            "06 01000000 01000000 61 05 04000000 03 05000000 0100000100 04 01000000 78 00 02",
        ),
        ("'false'::jsonb", "01"),
    ] {
        let of_bytes = format!("SELECT hll_hash_bytea('\\x{}')", bytes.replace(' ', ""));
        let of_bytes = text(&mut session, &of_bytes);
        assert_text(&mut session, &format!("SELECT hll_hash({value})"), &of_bytes);
    }
}

/// Frozen: sketches that are stored depend on them.
#[test]
fn hashes_never_change() {
    let (_database, mut session) = session();
    session.batch_execute(TYPES).unwrap();
    let expected = include_str!("hashes.txt");
    let mut found = String::new();
    for value in VALUES.iter().copied().flatten().filter(|value| !value.contains("same_case")) {
        let hash = text(&mut session, &format!("SELECT coalesce(hll_hash({value})::text, 'none')"));
        found += &format!("{hash:>20} {value}\n");
    }
    assert_eq!(found, expected);
}

/// Labels have other numbers in another database.
#[test]
fn hashes_survive_dump_and_restore() {
    let (database, mut session) = session();
    session.batch_execute(TYPES).unwrap();
    session
        .batch_execute(
            "CREATE TABLE sketches AS SELECT hll_agg(m) AS of_moods, hll_agg(row(1.0, '1 day', m)::point_in_time) AS of_rows, hll_agg(ARRAY[m]) AS of_arrays
               FROM unnest(enum_range(NULL::mood)) AS m",
        )
        .unwrap();
    let elsewhere = Cluster::start(&[]);
    // Numbers are given out from another point on.
    let restored = elsewhere.empty_database();
    restored.connect().batch_execute("CREATE TYPE other AS ENUM ('a', 'b', 'c'); DROP TYPE other").unwrap();
    let dump = |database: &Database| database.dump();
    restored.psql(&dump(&database));
    let mut session = restored.connect();
    session.batch_execute("SET search_path = public, tally").unwrap();
    let same = "SELECT of_moods || hll_hash('ok'::mood) = of_moods AND of_rows || hll_hash(row(1, '24 hours', 'ok')::point_in_time) = of_rows
                   AND of_arrays || hll_hash(ARRAY['sad'::mood]) = of_arrays AND of_moods || hll_hash('x'::text) <> of_moods FROM sketches";
    assert_text(&mut session, same, "t");
}

fn types(session: &mut Client, condition: &str) -> Vec<String> {
    let query = format!(
        "SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') \
            AND typsubscript <> 'array_subscript_handler'::regproc AND {condition} ORDER BY 1"
    );
    session.query(&query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn every_type_of_postgresql_has_a_rule() {
    let (_database, mut session) = session();
    let stable = "bit bool bpchar bytea char cid cidr date datemultirange daterange float4 float8 inet int2 int4 int4multirange int4range int8 int8multirange \
        int8range interval jsonb macaddr macaddr8 money name numeric nummultirange numrange oid pg_lsn regclass regcollation regconfig regdictionary \
        regnamespace regoper regoperator regproc regprocedure regrole regtype text time timestamp timestamptz timetz tsmultirange tsrange tstzmultirange \
        tstzrange uuid varbit varchar xid xid8";
    assert_eq!(
        types(&mut session, "tally.hash_is_stable(oid)").join(" "),
        stable.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    // By the hash function of PostgreSQL, that of text or bytea among them. Everything else cannot be told apart at all.
    let foreign = "aclitem pg_dependencies pg_mcv_list pg_ndistinct pg_node_tree tid";
    for name in types(&mut session, "NOT tally.hash_is_stable(oid)") {
        let call = format!("SELECT tally.hll_hash(NULL::{name}), tally.hll_agg(NULL::{name})");
        if foreign.split(' ').any(|known| known == name) {
            session.batch_execute(&call).unwrap();
            continue;
        }
        let name = text(&mut session, &format!("SELECT '{name}'::regtype"));
        assert_refused(&mut session, &call, "42883", &format!("values of type {name} cannot be counted by a sketch"));
    }
    assert_text(
        &mut session,
        "SELECT distinct_count(v) FROM (VALUES ('(0,1)'::tid), ('(0,1)'), ('(0,2)')) AS t (v)",
        "2",
    );
    assert_text(
        &mut session,
        "SELECT distinct_count(v) FROM (VALUES ('1 2'::oidvector), ('1 2'), ('2')) AS t (v)",
        "2",
    );
    session.batch_execute(TYPES).unwrap();
    for (name, stable) in [
        ("mood", "t"),
        ("mood[]", "t"),
        ("amount", "t"),
        ("amount[]", "t"),
        ("point_in_time", "t"),
        ("point_in_time[]", "t"),
        ("text_range", "t"),
        ("int4range[]", "t"),
        ("hll_hashval", "t"),
        ("record", "f"),
        ("tid", "f"),
        ("tid[]", "f"),
        ("point", "f"),
        ("point[]", "f"),
        ("hll", "f"),
        ("dropped", "t"),
    ] {
        assert_text(&mut session, &format!("SELECT hash_is_stable('{name}')"), stable);
    }
}

#[test]
fn what_cannot_be_hashed_is_refused() {
    let (_database, mut session) = session();
    session.batch_execute(TYPES).unwrap();
    session
        .batch_execute("CREATE TABLE texts (a text, b text COLLATE same_case, c text COLLATE \"C\"); INSERT INTO texts VALUES ('a', 'A', 'b'), ('b', 'a', 'c')")
        .unwrap();
    for call in ["hll_agg", "distinct_count", "hll_hash"] {
        let message = |name| format!("values of type {name} cannot be counted by a sketch");
        assert_refused(&mut session, &format!("SELECT {call}('1'::json)"), "42883", &message("json"));
        assert_refused(&mut session, &format!("SELECT {call}('(1,2)'::point)"), "42883", &message("point"));
        assert_refused(&mut session, &format!("SELECT {call}(ARRAY['(1,2)'::point])"), "42883", &message("point"));
        assert_refused(&mut session, &format!("SELECT {call}(row(1, '(1,2)'::point))"), "42883", &message("point"));
    }
    for call in ["hll_agg", "hll_hash"] {
        let call = format!("SELECT {call}(hll_empty())");
        assert_refused(&mut session, &call, "42804", "a sketch cannot be an element of a sketch");
    }
    assert_refused(
        &mut session,
        "SELECT hll_agg(b || c) FROM texts",
        "42P22",
        "could not determine which collation to use for a distinct count",
    );
    assert_text(&mut session, "SELECT distinct_count(b) FROM texts", "1");
    assert_text(&mut session, "SELECT distinct_count(b COLLATE \"C\") FROM texts", "2");
    // Rollups keep only what never gets another hash.
    session
        .batch_execute("CREATE TABLE events (k int, j jsonb, m mood, p point_in_time, t tid, b text COLLATE same_case)")
        .unwrap();
    for (column, kind) in
        [("m", "public.mood"), ("p", "public.point_in_time"), ("t", "tid"), ("ARRAY[m]", "public.mood[]")]
    {
        let create =
            format!("SELECT tally.create_rollup('r', 'SELECT k, tally.hll_agg({column}) AS h FROM events GROUP BY k')");
        let error = session.batch_execute(&create).unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "0A000", "{}", error.message());
        assert!(error.message().ends_with(&format!("of type {kind}")), "{}", error.message());
    }
    session
        .batch_execute("SELECT tally.create_rollup('r', 'SELECT k, tally.hll_agg(j) AS h FROM events GROUP BY k')")
        .unwrap();
}

/// Values are nested as deeply as PostgreSQL allows, and a hash must not need a deeper stack.
#[test]
fn deeply_nested_values_end_in_no_crash() {
    let (_database, mut session) = session();
    session
        .batch_execute("CREATE TYPE inner_row AS (a int); CREATE FUNCTION nested(depth int) RETURNS jsonb LANGUAGE sql AS $$ SELECT (repeat('[', depth) || repeat(']', depth))::jsonb $$")
        .unwrap();
    assert_text(
        &mut session,
        "SELECT hll_hash(nested(6000)) = hll_hash(nested(6000)) AND hll_hash(nested(6000)) <> hll_hash(nested(6001))",
        "t",
    );
    // Rows in rows are nested by hand only.
    let row = (0..40).fold("1".to_owned(), |inner, _| format!("row({inner})"));
    assert_text(&mut session, &format!("SELECT hll_hash({row}) = hll_hash({row})"), "t");
}
