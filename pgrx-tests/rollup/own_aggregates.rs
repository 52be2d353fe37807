//! Aggregates that users have made: kept by their states, with two aggregates beside the rollup.

use postgres::Client;
use tally_server_tests::cluster::{self, Cluster, Database};

use super::create;
use super::restore::{dump, restore};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};

/// States in memory; strict and not, with an initial state and without, with a final function and without; functions of PostgreSQL that insist on
/// being called by an aggregate; states that are composites, arrays and NULL; arguments of any number and type.
const AGGREGATES: &str = "
    CREATE AGGREGATE product(x numeric) (sfunc = numeric_mul, stype = numeric, combinefunc = numeric_mul);
    CREATE AGGREGATE product_or_one(numeric) (sfunc = numeric_mul, stype = numeric, combinefunc = numeric_mul, initcond = '1');
    CREATE AGGREGATE mean(int) (sfunc = int4_avg_accum, stype = int8[], finalfunc = int8_avg, combinefunc = int4_avg_combine,
      initcond = '{0,0}', sspace = 40, parallel = safe);
    CREATE AGGREGATE rows(*) (sfunc = int8inc, stype = int8, combinefunc = int8pl, initcond = '0');

    CREATE AGGREGATE mean_of(numeric) (sfunc = numeric_avg_accum, stype = internal, finalfunc = numeric_avg,
      combinefunc = numeric_avg_combine, serialfunc = numeric_avg_serialize, deserialfunc = numeric_avg_deserialize,
      sspace = 128, parallel = safe);
    CREATE AGGREGATE total(bigint) (sfunc = int8_avg_accum, stype = internal, finalfunc = numeric_poly_sum, finalfunc_modify = read_write,
      combinefunc = int8_avg_combine, serialfunc = int8_avg_serialize, deserialfunc = int8_avg_deserialize);

    CREATE FUNCTION longer(text, text) RETURNS text IMMUTABLE LANGUAGE sql
      RETURN CASE WHEN length($1) > length($2) OR $2 IS NULL OR length($1) = length($2) AND $1 > $2 THEN $1 ELSE $2 END;
    CREATE AGGREGATE longest(text) (sfunc = longer, stype = text, combinefunc = longer);

    CREATE FUNCTION one_if_null(bigint, anyelement) RETURNS bigint IMMUTABLE LANGUAGE sql
      AS 'SELECT $1 + CASE WHEN $2 IS NULL THEN 1 ELSE 0 END';
    CREATE AGGREGATE nulls(anyelement) (sfunc = one_if_null, stype = bigint, combinefunc = int8pl, initcond = '0');

    CREATE FUNCTION greater_of(anyelement, anyelement) RETURNS anyelement IMMUTABLE LANGUAGE sql AS 'SELECT greatest($1, $2)';
    CREATE AGGREGATE greatest_of(anyelement) (sfunc = greater_of, stype = anyelement, combinefunc = greater_of);

    CREATE TYPE extent AS (low int, high int);
    CREATE FUNCTION widen(a extent, x int) RETURNS extent IMMUTABLE LANGUAGE plpgsql AS $$
      BEGIN a.low = least(a.low, x); a.high = greatest(a.high, x); RETURN a; END $$;
    CREATE FUNCTION unite(a extent, b extent) RETURNS extent IMMUTABLE LANGUAGE plpgsql AS $$
      BEGIN a.low = least(a.low, b.low); a.high = greatest(a.high, b.high); RETURN a; END $$;
    CREATE FUNCTION width(extent) RETURNS int IMMUTABLE LANGUAGE sql RETURN coalesce($1.high - $1.low, -1);
    CREATE AGGREGATE width_of(int) (sfunc = widen, stype = extent, combinefunc = unite, finalfunc = width);

    CREATE FUNCTION sorted(text[]) RETURNS text[] IMMUTABLE LANGUAGE sql
      RETURN (SELECT array_agg(x ORDER BY x) FROM unnest($1) AS x);
    CREATE FUNCTION add_text(text[], text) RETURNS text[] IMMUTABLE STRICT LANGUAGE sql RETURN $1 || $2;
    CREATE AGGREGATE list(text) (sfunc = add_text, stype = text[], combinefunc = array_cat, finalfunc = sorted, initcond = '{}');

    CREATE FUNCTION add_all(bigint, VARIADIC int[]) RETURNS bigint IMMUTABLE STRICT LANGUAGE sql
      RETURN $1 + (SELECT coalesce(sum(x), 0) FROM unnest($2) AS x);
    CREATE AGGREGATE sum_of(VARIADIC int[]) (sfunc = add_all, stype = bigint, combinefunc = int8pl, initcond = '0');";

const QUERY: &str = "SELECT k, product(v) AS product, product(v) FILTER (WHERE v > 1) AS product_of_some, \
      product_or_one(v) AS product_or_one, product_or_one(v) FILTER (WHERE false) AS one, mean(v) AS mean, mean_of(v) AS mean_of, mean_of(v + 1) FILTER (WHERE false) AS none, total(v) + total(k) AS total, rows(*) AS rows, \
      longest(t) AS longest, nulls(t) AS nulls, nulls(v) AS other_nulls, greatest_of(t) AS greatest_text, greatest_of(v) AS greatest, \
      width_of(v) AS width, coalesce(width_of(v) FILTER (WHERE t > 'b'), -2) + mean(v) AS width_and_mean, list(t) AS list, \
      sum_of(v, k, v) AS sum, sum_of(VARIADIC ARRAY[v, 1]) AS other_sum, range_intersect_agg(int4range(v, v + 2)) AS common, count(*) AS n FROM events GROUP BY k";

fn session(database: &Database) -> Client {
    let mut session = database.connect();
    session.batch_execute(AGGREGATES).unwrap();
    session.batch_execute("CREATE TABLE events (k int, v int, t text)").unwrap();
    insert(&mut session);
    create(&mut session, "r", QUERY);
    session
}

/// Of each group some rows; group 9 has NULLs alone, group 8 one row.
fn insert(session: &mut Client) {
    session
        .batch_execute(
            "INSERT INTO events SELECT i % 8, nullif(i % 5, 3), CASE WHEN i % 7 > 2 THEN repeat(chr(97 + i % 4), i % 3) END \
               FROM generate_series(1, 30) AS i; INSERT INTO events VALUES (9, NULL, NULL), (9, NULL, NULL), (NULL, 2, 'x')",
        )
        .unwrap();
}

#[track_caller]
fn assert_right(session: &mut Client) {
    assert_equal_now_and_refreshed(session, "r", "events", QUERY);
    let differences = session.query("SELECT * FROM tally.verify('r')", &[]).unwrap();
    assert!(differences.is_empty());
}

const WRITES: [&str; 7] = [
    "INSERT INTO events VALUES (8, 3, 'new')",
    "UPDATE events SET v = v + 1, t = t || 'y' WHERE k % 3 = 0",
    "UPDATE events SET k = 9 WHERE k = 2",
    "DELETE FROM events WHERE v = 0",
    "INSERT INTO events SELECT * FROM events WHERE k = 4",
    "DELETE FROM events WHERE k IS NULL OR v IS NULL",
    "TRUNCATE events",
];

#[test]
fn a_state_is_kept_under_every_write() {
    let database = cluster::database();
    let mut session = session(&database);
    assert_right(&mut session);
    for statement in WRITES {
        // Some rows are counted, some are not.
        insert(&mut session);
        session.batch_execute(statement).unwrap();
        assert_right(&mut session);
        session.batch_execute("INSERT INTO events VALUES (9, NULL, NULL), (8, NULL, 'z'), (10, NULL, NULL)").unwrap();
        assert_right(&mut session);
        session.batch_execute("INSERT INTO events VALUES (10, 2, NULL)").unwrap();
    }
    assert_right(&mut session);
}

/// The aggregates in a schema, with their owners and comments.
fn aggregates(session: &mut Client) -> Vec<(String, String, Option<String>)> {
    let rows = session
        .query(
            "SELECT p.oid::regprocedure::text, pg_get_userbyid(proowner)::text, obj_description(p.oid, 'pg_proc') FROM pg_proc AS p \
              WHERE prokind = 'a' AND pronamespace = 'public'::regnamespace ORDER BY 1",
            &[],
        )
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[test]
fn what_is_made_for_a_rollup_goes_with_it() {
    let database = cluster::database();
    let mut session = session(&database);
    session.batch_execute("SELECT tally.drop_rollup('r')").unwrap();
    let before = aggregates(&mut session);
    assert_eq!(before.len(), 12);
    let by_function = "SELECT tally.drop_rollup('r')";
    for drop in [by_function, "DROP VIEW r", "DROP TABLE r_stored CASCADE", "DROP FUNCTION longer CASCADE"] {
        create(&mut session, "r", QUERY);
        let made: Vec<_> = aggregates(&mut session).into_iter().filter(|found| !before.contains(found)).collect();
        // One state and one union for each aggregate and for range_intersect_agg, however many columns it has, and an answer from states in
        // memory.
        assert_eq!(made.len(), 28, "{made:?}");
        assert!(made.iter().all(|(name, ..)| name.starts_with("r_")), "{made:?}");
        assert!(made.iter().all(|(.., comment)| comment.as_deref().is_some_and(|text| text.ends_with("part of it"))));
        assert!(made.iter().any(|(name, ..)| name == "r_product_state(numeric)"), "{made:?}");
        session.batch_execute(drop).unwrap();
        let after = aggregates(&mut session);
        assert!(after.iter().all(|found| before.contains(found)), "{drop}: {after:?}");
        let known: i64 = session.query_one("SELECT count(*) FROM tally.rollups", &[]).unwrap().get(0);
        assert_eq!(known, 0, "{drop}");
    }
}

#[test]
fn what_a_rollup_is_made_of_stays() {
    let database = cluster::database();
    let mut session = session(&database);
    for object in [
        "AGGREGATE product(numeric)",
        "AGGREGATE width_of(int)",
        "AGGREGATE rows(*)",
        "AGGREGATE sum_of(VARIADIC int[])",
        "AGGREGATE r_product_state(numeric)",
        "AGGREGATE r_product_union(numeric)",
        "AGGREGATE total(bigint)",
        "AGGREGATE r_total_answer(tally.aggregate_state)",
        "FUNCTION unite(extent, extent)",
        "FUNCTION width(extent)",
        "TYPE extent",
    ] {
        assert_refused(&mut session, &format!("DROP {object}"), "2BP01", "", "CASCADE");
    }
    // Nothing of it costs anything when the rollup is read.
    let plan = database.psql("EXPLAIN (VERBOSE, COSTS OFF) SELECT product FROM r");
    assert!(!plan.contains("regprocedure"), "{plan}");
    session
        .batch_execute("SELECT tally.drop_rollup('r'); DROP AGGREGATE product(numeric); DROP TYPE extent CASCADE")
        .unwrap();
}

#[test]
fn renamed_functions_and_schemas_are_followed() {
    let database = cluster::database();
    let mut session = session(&database);
    session
        .batch_execute(
            "ALTER AGGREGATE product(numeric) RENAME TO multiplied; ALTER FUNCTION unite RENAME TO united; \
             ALTER FUNCTION longer RENAME TO the_longer; ALTER TYPE extent RENAME TO reach; \
             ALTER SCHEMA public RENAME TO renamed; CREATE SCHEMA public; SET search_path = renamed",
        )
        .unwrap();
    insert(&mut session);
    session.batch_execute("UPDATE events SET v = 3 WHERE k = 1").unwrap();
    let query = QUERY.replace("product(v)", "multiplied(v)");
    assert_equal_now_and_refreshed(&mut session, "r", "events", &query);
    insert(&mut session);
    assert_equal(&mut session, "r", &query);
    // But its own aggregates have the names that tally gave them.
    session.batch_execute("ALTER AGGREGATE r_rows_union(bigint) RENAME TO mine").unwrap();
    let hint = "ALTER AGGREGATE .. RENAME TO \"r_rows_union\"";
    assert_refused(&mut session, "CALL tally.refresh('r')", "42883", "\"r_rows_union\"(bigint) of rollup", hint);
    session.batch_execute("ALTER AGGREGATE mine(bigint) RENAME TO r_rows_union").unwrap();
    assert_equal_now_and_refreshed(&mut session, "r", "events", &query);
    session.batch_execute("SELECT tally.drop_rollup('r')").unwrap();
    let left = "SELECT count(*) FROM pg_proc WHERE prokind = 'a' AND pronamespace = 'renamed'::regnamespace AND proname LIKE 'r\\_%'";
    assert_eq!(session.query_one(left, &[]).unwrap().get::<_, i64>(0), 0);
}

#[test]
fn the_owner_of_the_table_owns_the_aggregates_and_readers_may_run_them() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(AGGREGATES).unwrap();
    let (owner, reader) = (format!("owner_{}", database.name()), format!("reader_{}", database.name()));
    session
        .batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN; CREATE ROLE {reader} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}; \
             CREATE TABLE events (k int, v int, t text); ALTER TABLE events OWNER TO {owner}"
        ))
        .unwrap();
    create(&mut session, "by_superuser", QUERY);
    let mut owner_session = database.connect_as(&owner);
    create(&mut owner_session, "r", QUERY);
    let made =
        |(name, ..): &(String, String, Option<String>)| name.starts_with("r_") || name.starts_with("by_superuser_");
    let found: Vec<_> = aggregates(&mut session).into_iter().filter(made).collect();
    assert_eq!(found.len(), 56);
    assert!(found.iter().all(|(_, role, _)| *role == owner), "{found:?}");
    insert(&mut owner_session);
    assert_right(&mut owner_session);
    session.batch_execute(&format!("GRANT SELECT ON r TO {reader}")).unwrap();
    insert(&mut owner_session);
    let mut reader_session = database.connect_as(&reader);
    assert!(!reader_session.query("SELECT * FROM r", &[]).unwrap().is_empty());
    // Whoever gets the table has to get them as well.
    session
        .batch_execute(&format!(
            "REASSIGN OWNED BY {owner} TO CURRENT_USER; ALTER AGGREGATE r_product_state(numeric) OWNER TO {reader}"
        ))
        .unwrap();
    assert_refused(
        &mut session,
        "CALL tally.refresh('r')",
        "42501",
        "different roles",
        "ALTER AGGREGATE \"public\".\"r_product_state\"(numeric) OWNER TO",
    );
    drop((owner_session, reader_session));
    session
        .batch_execute(&format!("DROP OWNED BY {reader} CASCADE; DROP OWNED BY {owner}; DROP ROLE {owner}, {reader}"))
        .unwrap();
}

#[test]
fn a_restored_rollup_goes_on() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    let mut session = session(&database);
    insert(&mut session);
    let text = dump(&database, &[]);
    let elsewhere = Cluster::start(&[]);
    for cluster in [cluster, &elsewhere] {
        let restored = cluster.empty_database();
        restore(&restored, &text, &[]);
        let mut session = restored.connect();
        assert_equal(&mut session, "r", QUERY);
        for statement in WRITES {
            insert(&mut session);
            session.batch_execute(statement).unwrap();
            assert_right(&mut session);
        }
        assert_refused(&mut session, "DROP AGGREGATE product(numeric)", "2BP01", "", "CASCADE");
        session.batch_execute("SELECT tally.drop_rollup('r')").unwrap();
        assert_eq!(aggregates(&mut session).len(), 12);
    }
}

#[test]
fn a_level_above_leaves_the_states_alone() {
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "below", "SELECT k, t, count(*) AS n, product(v) AS product FROM events GROUP BY k, t");
    let query = "SELECT k, sum(n) AS n FROM below GROUP BY k";
    create(&mut session, "above", query);
    insert(&mut session);
    assert_equal_now_and_refreshed(&mut session, "above", "events", query);
    for (call, message) in [
        ("product(product)", "is not one aggregate alone"),
        ("nulls(n)", "is gathered by sum"),
        ("longest(t)", "count groups"),
    ] {
        let create = format!("SELECT tally.create_rollup('x', 'SELECT k, {call} FROM below GROUP BY k')");
        assert_refused(&mut session, &create, "0A000", message, "");
    }
}

/// The code that reads them trusts its input: a server would crash by what it does not expect.
#[test]
fn states_in_memory_are_read_by_what_wrote_them_only() {
    let database = cluster::database();
    let mut session = database.connect();
    let owner = format!("owner_{}", database.name());
    session.batch_execute(AGGREGATES).unwrap();
    session
        .batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}; \
             CREATE TABLE events (k int, v int, t text); ALTER TABLE events OWNER TO {owner}"
        ))
        .unwrap();
    let query = "SELECT k, mean_of(v) AS mean, total(v) AS total FROM events GROUP BY k";
    let mut owner_session = database.connect_as(&owner);
    insert(&mut owner_session);
    create(&mut owner_session, "r", query);
    for forged in [
        "UPDATE r_stored SET mean_state = '\\x0011223344556677889900'",
        "UPDATE r_stored SET mean_state = (E'\\\\x00'::bytea)::text::tally.aggregate_state",
        "SELECT '{}'::tally.aggregate_state[] || ARRAY['\\x00']::tally.aggregate_state[]",
    ] {
        assert_refused(&mut owner_session, forged, "42501", "tally.aggregate_state", "superuser");
    }
    let own_call = "SELECT tally._unite_states(NULL, mean_state) IS NULL FROM r_stored";
    assert_refused(&mut owner_session, own_call, "42883", "does not exist", "");
    assert_refused(
        &mut owner_session,
        "SELECT r_total_union(mean_state) FROM r_stored",
        "55000",
        "another aggregate",
        "rebuild",
    );
    owner_session.batch_execute("UPDATE r_stored SET mean_state = total_state").unwrap();
    assert_refused(&mut owner_session, "SELECT mean FROM r", "55000", "another aggregate", "rebuild");
    owner_session.batch_execute("CALL tally.rebuild('r')").unwrap();
    assert_equal(&mut owner_session, "r", query);
    // Also in several processes.
    session
        .batch_execute(
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; \
             CREATE TABLE states WITH (parallel_workers = 2) AS SELECT mean_state, v FROM r_stored, generate_series(1, 20000) AS v",
        )
        .unwrap();
    let of_states = "SELECT r_mean_of_answer(mean_state) FROM states";
    let plan: Vec<String> =
        session.query(&format!("EXPLAIN {of_states}"), &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert!(plan.iter().any(|line| line.contains("Partial Aggregate")), "{plan:?}");
    let compared = format!("SELECT round(({of_states}), 9) = (SELECT round(avg(v), 9) FROM events)");
    assert!(session.query_one(&compared, &[]).unwrap().get::<_, bool>(0));
    drop(owner_session);
    session.batch_execute(&format!("DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}")).unwrap();
}
