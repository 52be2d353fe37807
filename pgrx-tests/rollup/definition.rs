//! Which queries define a rollup. A refusal names the part in the way and says what to do instead.

use postgres::error::DbError;
use tally_server_tests::cluster;

use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused, refusal};

const TABLE: &str =
    "CREATE TABLE events (event_time timestamptz NOT NULL, tenant int, country text, amount numeric, note jsonb)";

/// Definition, SQLSTATE, part of the message, part of the hint.
const REFUSED: &[(&str, &str, &str, &str)] = &[
    ("INSERT INTO events VALUES (now())", "0A000", "anything but a SELECT", "SELECT keys"),
    ("SELECT tenant, count(*) INTO copied FROM events GROUP BY 1", "0A000", "anything but a SELECT", ""),
    ("", "0A000", "anything but a SELECT", ""),
    ("SELECT tenant FROM events GROUP BY 1; SELECT 1", "0A000", "several statements", "one SELECT"),
    ("WITH w AS (SELECT 1) SELECT tenant, count(*) FROM events GROUP BY 1", "0A000", "WITH", ""),
    ("WITH w AS (DELETE FROM events RETURNING *) SELECT tenant, count(*) FROM w GROUP BY 1", "0A000", "WITH", ""),
    ("DELETE FROM events RETURNING tenant", "0A000", "anything but a SELECT", ""),
    ("EXPLAIN SELECT tenant, count(*) FROM events GROUP BY 1", "0A000", "anything but a SELECT", ""),
    ("VALUES (1)", "0A000", "without a table", "FROM"),
    ("SELECT tenant FROM events UNION SELECT 1", "0A000", "UNION", ""),
    ("SELECT tenant FROM events INTERSECT SELECT 1", "0A000", "INTERSECT", ""),
    ("SELECT tenant FROM events EXCEPT SELECT 1", "0A000", "EXCEPT", "one rollup for each"),
    (
        "SELECT e.tenant, count(*) FROM events e JOIN events f USING (tenant) GROUP BY 1",
        "0A000",
        "a join",
        "when you read",
    ),
    ("SELECT e.tenant, count(*) FROM events e, events f GROUP BY 1", "0A000", "a join", ""),
    ("SELECT e.tenant, count(*) FROM events e, LATERAL (SELECT 1) l GROUP BY 1", "0A000", "a join", ""),
    ("SELECT tenant, count(*) FROM (SELECT * FROM events) e GROUP BY 1", "0A000", "a subquery in FROM", ""),
    ("SELECT g, count(*) FROM generate_series(1, 3) g GROUP BY 1", "0A000", "a function in FROM", ""),
    ("SELECT column1, count(*) FROM (VALUES (1)) v GROUP BY 1", "0A000", "", ""),
    ("SELECT 1", "0A000", "", ""),
    ("SELECT tenant, (SELECT max(1)), count(*) FROM events GROUP BY 1", "0A000", "a subquery", ""),
    ("SELECT tenant, count(*) FROM events WHERE EXISTS (SELECT) GROUP BY 1", "0A000", "a subquery", ""),
    ("SELECT tenant, sum(count(*)) OVER () FROM events GROUP BY 1", "0A000", "a window function", ""),
    ("SELECT tenant, count(*) OVER () FROM events GROUP BY 1", "0A000", "a window function", "when you read"),
    ("SELECT generate_series(1, tenant), count(*) FROM events GROUP BY 1", "0A000", "a set-returning function", ""),
    ("SELECT DISTINCT tenant, count(*) FROM events GROUP BY 1", "0A000", "DISTINCT", ""),
    ("SELECT DISTINCT ON (tenant) tenant, count(*) FROM events GROUP BY 1", "0A000", "DISTINCT", "leave DISTINCT out"),
    ("SELECT tenant, count(*) FROM events GROUP BY 1 HAVING count(*) > 1", "0A000", "HAVING", "WHERE when you read"),
    ("SELECT tenant, count(*) FROM events GROUP BY 1 ORDER BY 1", "0A000", "ORDER BY", "when you read"),
    ("SELECT tenant, count(*) FROM events GROUP BY 1 LIMIT 1", "0A000", "LIMIT", ""),
    ("SELECT tenant, count(*) FROM events GROUP BY 1 OFFSET 1", "0A000", "LIMIT", ""),
    ("SELECT tenant, count(*) FROM events GROUP BY ROLLUP (1)", "0A000", "GROUPING SETS", ""),
    ("SELECT tenant, count(*) FROM events GROUP BY CUBE (1)", "0A000", "CUBE", "one rollup for each"),
    ("SELECT tenant, count(*) FROM events GROUP BY GROUPING SETS ((tenant), ())", "0A000", "GROUPING SETS", ""),
    ("SELECT tenant, count(*) FROM events TABLESAMPLE system (1) GROUP BY 1", "0A000", "TABLESAMPLE", ""),
    ("SELECT count(*) FROM events", "0A000", "without GROUP BY", "at least one"),
    ("SELECT tenant, count(*) FROM ONLY events GROUP BY 1", "0A000", "ONLY", "Leave out ONLY"),
    ("SELECT ctid, count(*) FROM events GROUP BY 1", "0A000", "a system column", ""),
    ("SELECT tenant, max(xmin::text::bigint) FROM events GROUP BY 1", "0A000", "a system column", ""),
    ("SELECT tenant, count(events) FROM events GROUP BY 1", "0A000", "a system column", ""),
    // Aggregates that cannot be merged
    (
        "SELECT tenant, count(DISTINCT country) FROM events GROUP BY 1",
        "0A000",
        "distinct values",
        "tally.distinct_count",
    ),
    ("SELECT tenant, sum(DISTINCT amount) FROM events GROUP BY 1", "0A000", "DISTINCT", ""),
    (
        "SELECT tenant, array_agg(country) FROM events GROUP BY 1",
        "0A000",
        "depends on the order of the rows",
        "Leave this column out",
    ),
    ("SELECT tenant, string_agg(country, ',' ORDER BY country) FROM events GROUP BY 1", "0A000", "string_agg", ""),
    ("SELECT tenant, sum(amount ORDER BY amount) FROM events GROUP BY 1", "0A000", "ORDER BY", ""),
    (
        "SELECT tenant, percentile_cont(0.5) WITHIN GROUP (ORDER BY amount) FROM events GROUP BY 1",
        "0A000",
        "ordered-set",
        "",
    ),
    ("SELECT tenant, tally.distinct_count(row(note)) FROM events GROUP BY 1", "0A000", "of type record", "Cast"),
    ("SELECT tenant, mine(tenant) FROM events GROUP BY 1", "0A000", "it has no combine function", "COMBINEFUNC"),
    (
        "SELECT tenant, shifty(tenant) FROM events GROUP BY 1",
        "42P17",
        "function public.shift(integer,integer) of the aggregate",
        "ALTER FUNCTION public.shift(integer,integer) IMMUTABLE",
    ),
    ("SELECT tenant, shifty_states(tenant) FROM events GROUP BY 1", "42P17", "is only stable", "IMMUTABLE"),
    ("SELECT tenant, shifty_answer(tenant) FROM events GROUP BY 1", "42P17", "is volatile", "IMMUTABLE"),
    ("SELECT tenant, with_extra(tenant) FROM events GROUP BY 1", "0A000", "takes its arguments", "FINALFUNC_EXTRA"),
    ("SELECT tenant, writing(tenant) FROM events GROUP BY 1", "0A000", "changes the state", "READ_ONLY"),
    ("SELECT tenant, mine(DISTINCT tenant) FROM events GROUP BY 1", "0A000", "DISTINCT", ""),
    ("SELECT tenant, formatted(VARIADIC ARRAY[tenant]) FROM events GROUP BY 1", "0A000", "VARIADIC", ""),
    ("SELECT tenant, bit_and(tenant::bit(8)) FROM events GROUP BY 1", "0A000", "of type bit", "bigint"),
    // Expressions that are not the same in every session
    ("SELECT date_trunc('hour', event_time), count(*) FROM events GROUP BY 1", "42P17", "only stable", "date_bin"),
    ("SELECT event_time::date, count(*) FROM events GROUP BY 1", "42P17", "only stable", "time zone"),
    ("SELECT extract(hour FROM event_time), count(*) FROM events GROUP BY 1", "42P17", "only stable", ""),
    ("SELECT to_char(event_time, 'HH'), count(*) FROM events GROUP BY 1", "42P17", "only stable", ""),
    ("SELECT event_time::text, count(*) FROM events GROUP BY 1", "42P17", "only stable", ""),
    ("SELECT tenant, count(*) FROM events WHERE event_time > now() GROUP BY 1", "42P17", "WHERE", ""),
    ("SELECT tenant, count(*) FROM events WHERE event_time > CURRENT_DATE GROUP BY 1", "42P17", "WHERE", ""),
    ("SELECT tenant, count(*) FILTER (WHERE country = CURRENT_USER) FROM events GROUP BY 1", "42P17", "FILTER", ""),
    ("SELECT tenant, sum(amount * random()) FROM events GROUP BY 1", "42P17", "volatile", "when the row is written"),
    ("SELECT clock_timestamp(), count(*) FROM events GROUP BY 1", "42P17", "clock_timestamp", ""),
    ("SELECT nextval('numbers'), count(*) FROM events GROUP BY 1", "42P17", "volatile", ""),
    ("SELECT current_setting('timezone'), count(*) FROM events GROUP BY 1", "42P17", "only stable", ""),
    (
        "SELECT date_trunc('day', event_time, current_setting('timezone')), count(*) FROM events GROUP BY 1",
        "42P17",
        "current_setting",
        "Name the time zone",
    ),
    ("SELECT shifting(tenant), count(*) FROM events GROUP BY 1", "42P17", "only stable", ""),
    // Keys without an equality of their own
    ("SELECT note -> 'a', max(tenant), min(note) FROM events GROUP BY 1", "42883", "min(jsonb)", ""),
    ("SELECT country COLLATE blind, count(*) FROM events GROUP BY 1", "42P17", "nondeterministic", "COLLATE"),
    // Columns
    ("SELECT tenant, country, count(*) FROM events GROUP BY 1", "42803", "country", ""),
    ("SELECT tenant, count(*), count(country) FROM events GROUP BY 1", "42701", "count", "AS"),
    // Errors of PostgreSQL stay what they are
    ("SELECT tenant, cuont(*) FROM events GROUP BY 1", "42883", "cuont", ""),
    ("SELECT nobody, count(*) FROM events GROUP BY 1", "42703", "nobody", ""),
    ("SELECT tenant, count(*) FROM nowhere GROUP BY 1", "42P01", "nowhere", ""),
    ("SELECT tenant, count(*) FROM nowhere.events GROUP BY 1", "42P01", "nowhere.events", ""),
    ("SELECT tenant, count(*) FROM other.public.events GROUP BY 1", "0A000", "other.public.events", ""),
    ("SELECT tenant, count(*) FROM events GROUP BY 1 FOR UPDATE", "0A000", "FOR UPDATE", ""),
    ("SELECT tenant, count(*) FROM events WHERE tenant = $1 GROUP BY 1", "42P02", "$1", ""),
    ("SELEC tenant", "42601", "SELEC", ""),
];

fn create_sql(definition: &str) -> String {
    format!("SELECT tally.create_rollup('refused', $definition${definition}$definition$)")
}

#[test]
fn queries_that_cannot_be_kept_are_refused_by_the_part_in_the_way() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{TABLE}; CREATE SEQUENCE numbers; CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level1', deterministic = false); \
             CREATE FUNCTION shifting(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1'; \
             CREATE AGGREGATE mine(int) (sfunc = int4larger, stype = int); \
             CREATE FUNCTION shift(int, int) RETURNS int LANGUAGE sql AS 'SELECT $1 + $2'; \
             CREATE FUNCTION shift_stable(int, int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1 + $2'; \
             CREATE FUNCTION answer(int) RETURNS int LANGUAGE sql AS 'SELECT $1'; \
             CREATE FUNCTION answer(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'; \
             CREATE AGGREGATE shifty(int) (sfunc = shift, stype = int, combinefunc = int4pl); \
             CREATE AGGREGATE shifty_states(int) (sfunc = int4pl, stype = int, combinefunc = shift_stable); \
             CREATE AGGREGATE shifty_answer(int) (sfunc = int4pl, stype = int, combinefunc = int4pl, finalfunc = answer); \
             CREATE AGGREGATE with_extra(int) (sfunc = int4pl, stype = int, combinefunc = int4pl, finalfunc = answer, finalfunc_extra); \
             CREATE AGGREGATE writing(int) (sfunc = int4pl, stype = int, combinefunc = int4pl, finalfunc = shifting, \
               finalfunc_modify = read_write); \
             CREATE AGGREGATE formatted(VARIADIC \"any\") (sfunc = format, stype = text, combinefunc = textcat)"
        ))
        .unwrap();
    let mut wrong = vec![];
    for (definition, state, message, hint) in REFUSED {
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            assert_refused(&mut session, &create_sql(definition), state, message, hint);
            let error = refusal(&mut session, &create_sql(definition));
            assert!(error.hint().is_some() || !is_by_tally(&error), "{definition}\nno hint: {}", error.message());
        }));
        if let Err(panic) = answer {
            wrong.push(panic.downcast_ref::<String>().cloned().unwrap_or_default());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    // Nothing of them is left behind.
    let tracked = "SELECT FROM pg_attribute WHERE attrelid = 'events'::regclass AND attname = 'tally_tag'";
    assert!(session.query(tracked, &[]).unwrap().is_empty());
}

/// What PostgreSQL refuses while it reads the query comes from its parser.
fn is_by_tally(error: &DbError) -> bool {
    error.file().is_some_and(|file| file.ends_with(".rs"))
}

#[test]
fn sources_that_cannot_be_followed_are_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw; \
             CREATE TABLE events (tenant int) PARTITION BY LIST (tenant); \
             CREATE TABLE leaf PARTITION OF events FOR VALUES IN (1); \
             CREATE TEMP TABLE passing (tenant int); CREATE UNLOGGED TABLE volatile (tenant int); \
             CREATE VIEW seen AS SELECT * FROM events; CREATE MATERIALIZED VIEW kept AS SELECT * FROM events; \
             CREATE FOREIGN TABLE far (tenant int) SERVER files OPTIONS (filename '/dev/null'); \
             CREATE TABLE secured (tenant int); ALTER TABLE secured ENABLE ROW LEVEL SECURITY; \
             CREATE TABLE parent (tenant int); CREATE TABLE child () INHERITS (parent); \
             CREATE TABLE mixed (tenant int) PARTITION BY LIST (tenant); \
             CREATE FOREIGN TABLE mixed_1 PARTITION OF mixed FOR VALUES IN (1) SERVER files OPTIONS (filename '/dev/null'); \
             CREATE TABLE crashing (tenant int) PARTITION BY LIST (tenant); \
             CREATE UNLOGGED TABLE crashing_1 PARTITION OF crashing FOR VALUES IN (1); \
             CREATE TABLE taken (tenant int, tally_tag int)",
        )
        .unwrap();
    for (table, state, message, hint) in [
        ("leaf", "0A000", "a single partition", "partitioned table"),
        ("passing", "0A000", "a temporary table", "permanent"),
        ("volatile", "0A000", "an unlogged table", "SET LOGGED"),
        ("seen", "0A000", "anything but a table", ""),
        ("kept", "0A000", "anything but a table", ""),
        ("far", "0A000", "anything but a table", ""),
        ("pg_class", "0A000", "anything but a table", ""),
        ("secured", "0A000", "row-level security", ""),
        ("parent", "0A000", "inheritance", "PARTITION BY"),
        ("mixed", "0A000", "mixed_1", ""),
        ("crashing", "0A000", "crashing_1", ""),
        ("taken", "42701", "tally_tag", "DROP COLUMN"),
    ] {
        let key = if table == "pg_class" { "relname" } else { "tenant" };
        let definition = format!("SELECT {key}, count(*) FROM {table} GROUP BY 1");
        assert_refused(&mut session, &create_sql(&definition), state, message, hint);
    }
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(TABLE).unwrap();
    let query = "'SELECT tenant, count(*) AS n FROM events GROUP BY 1'";
    for (call, state) in [
        (format!("SELECT tally.create_rollup('a', {query}, '0 seconds')"), "22023"),
        (format!("SELECT tally.create_rollup('a', {query}, '-5 seconds')"), "22023"),
        (format!("SELECT tally.create_rollup('a', {query}, '1 month')"), "22023"),
        (format!("SELECT tally.create_rollup('', {query})"), "22023"),
        (format!("SELECT tally.create_rollup('a.b.c', {query})"), "42602"),
        (format!("SELECT tally.create_rollup('nowhere.a', {query})"), "3F000"),
        (format!("SELECT tally.create_rollup('events', {query})"), "42P07"),
        (format!("SELECT tally.create_rollup('pg_catalog.a', {query})"), "42501"),
        ("CALL tally.refresh(NULL)".into(), "22004"),
        ("CALL tally.refresh('events')".into(), "42704"),
        ("SELECT tally.drop_rollup('events')".into(), "42704"),
        ("SELECT * FROM tally.verify('events')".into(), "42704"),
    ] {
        assert_refused(&mut session, &call, state, "", "");
    }
}

const COUNT: &str = "SELECT tenant, count(*) AS n FROM events GROUP BY 1";

#[test]
fn names_that_are_taken_are_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{TABLE}; CREATE TABLE taken_table (); CREATE VIEW taken_view AS SELECT 1; CREATE TYPE taken_type AS (a int); \
             CREATE SEQUENCE taken_sequence; CREATE INDEX taken_index ON events (tenant); CREATE TABLE free_stored (); \
             CREATE MATERIALIZED VIEW \"taken. View\" AS SELECT 1"
        ))
        .unwrap();
    for _ in 0..2 {
        for name in
            ["taken_table", "taken_view", "taken_type", "taken_sequence", "taken_index", "free", "\"taken. View\""]
        {
            let create = format!("SELECT tally.create_rollup('{name}', '{COUNT}')");
            assert_refused(&mut session, &create, "42P07", name.trim_matches('"'), "");
        }
        // And once more where a rollup is already.
        session
            .execute("SELECT tally.create_rollup('taken_rollup', $1)", &[&COUNT])
            .map_or_else(|error| assert_eq!(error.code().unwrap().code(), "42P07"), |rows| assert_eq!(rows, 1));
    }
    assert_equal_now_and_refreshed(&mut session, "taken_rollup", "events", COUNT);
}

#[test]
fn taken_name_is_the_one_in_the_message() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(TABLE).unwrap();
    session.execute("SELECT tally.create_rollup('taken', $1)", &[&COUNT]).unwrap();
    for name in ["events", "taken"] {
        let error = refusal(&mut session, &format!("SELECT tally.create_rollup('{name}', '{COUNT}')"));
        assert!(error.message().contains(&format!("\"{name}\"")), "{}", error.message());
        assert!(error.hint().is_some(), "{}", error.message());
    }
}

/// Other sessions could not read its groups, and nothing tells the extension when the session has ended.
#[test]
fn rollup_in_a_temporary_schema_is_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(TABLE).unwrap();
    session.execute("SELECT tally.create_rollup('totals', $1)", &[&COUNT]).unwrap();
    let refused = session.execute("SELECT tally.create_rollup('pg_temp.passing', $1)", &[&COUNT]).is_err();
    session.batch_execute("SET search_path = pg_temp, public").unwrap();
    let refused_by_path = session.execute("SELECT tally.create_rollup('passing_too', $1)", &[&COUNT]).is_err();
    session.batch_execute("INSERT INTO events (event_time, tenant) VALUES ('2024-01-01Z', 1)").unwrap();
    assert_equal_now_and_refreshed(&mut database.connect(), "totals", "events", COUNT);
    drop(session);
    assert_equal_now_and_refreshed(&mut database.connect(), "totals", "events", COUNT);
    assert!(refused && refused_by_path);
}

#[test]
fn definitions_wider_than_a_table_are_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(TABLE).unwrap();
    let keys = |number: usize| {
        let keys: Vec<String> = (1..=number).map(|key| format!("tenant + {key} AS k{key}")).collect();
        let positions: Vec<String> = (1..=number).map(|key| key.to_string()).collect();
        format!("SELECT {}, count(*) AS n FROM events GROUP BY {}", keys.join(", "), positions.join(", "))
    };
    let aggregates = |number: usize, aggregate: &str| {
        let sums: Vec<String> = (1..=number).map(|sum| format!("{aggregate}(tenant + {sum}) AS s{sum}")).collect();
        format!("SELECT tenant, {} FROM events GROUP BY 1", sums.join(", "))
    };
    for (definition, message) in [
        (aggregates(1700, "sum"), "1664"),
        (aggregates(1600, "sum"), "1600 columns"),
        // Each average is kept as a sum and a count.
        (aggregates(850, "avg"), "16"),
        (keys(33), "32 columns in an index"),
    ] {
        assert_refused(&mut session, &create_sql(&definition), "54011", message, "");
    }
    for (number, definition) in [aggregates(300, "avg"), keys(32)].iter().enumerate() {
        let name = format!("wide_{number}");
        session.execute("SELECT tally.create_rollup($1, $2)", &[&name, definition]).unwrap();
        session
            .batch_execute("INSERT INTO events (event_time, tenant) VALUES ('2024-01-01Z', 1), ('2024-01-01Z', NULL)")
            .unwrap();
        assert_equal_now_and_refreshed(&mut session, &name, "events", definition);
        session.batch_execute(&format!("SELECT tally.drop_rollup('{name}')")).unwrap();
    }
}

#[test]
fn roles_without_the_rights_are_refused() {
    let database = cluster::database();
    let mut session = database.connect();
    let role = format!("stranger_{}", database.name());
    session
        .batch_execute(&format!(
            "{TABLE}; CREATE ROLE {role} LOGIN; GRANT ALL ON events TO {role}; CREATE SCHEMA closed; \
             CREATE TABLE own (tenant int); ALTER TABLE own OWNER TO {role}"
        ))
        .unwrap();
    let mut stranger = database.connect_as(&role);
    assert_refused(&mut stranger, &create_sql(COUNT), "42501", "must be owner of table", "Ask its owner");
    let of_own = COUNT.replace("events", "own");
    assert_refused(&mut stranger, &create_sql(&of_own), "42501", "schema public", "");
    session
        .batch_execute(&format!("GRANT CREATE ON SCHEMA public TO {role}; REVOKE ALL ON events FROM {role}"))
        .unwrap();
    assert_refused(&mut stranger, &create_sql(COUNT), "42501", "events", "");
    let in_closed = create_sql(&of_own).replace("'refused'", "'closed.refused'");
    assert_refused(&mut stranger, &in_closed, "42501", "schema closed", "");
    session.batch_execute("REVOKE EXECUTE ON FUNCTION tally.create_rollup FROM PUBLIC").unwrap();
    assert_refused(&mut stranger, &create_sql(&of_own), "42501", "create_rollup", "");
    session.batch_execute("GRANT EXECUTE ON FUNCTION tally.create_rollup TO PUBLIC").unwrap();
    stranger.batch_execute(&create_sql(&of_own)).unwrap();
    assert_equal_now_and_refreshed(&mut stranger, "refused", "own", &of_own);
    drop(stranger);
    session.batch_execute(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).unwrap();
}

#[test]
fn constants_mean_the_same_whatever_the_formats_of_the_creator() {
    const STATEMENT: &str = "SELECT tenant, count(*) FILTER (WHERE event_time >= '2024-02-01 00:00:00Z') AS late, \
        count(*) FILTER (WHERE amount::float8 > 0.123456789012345) AS large, \
        sum(interval '-1 day -02:03:04' * tenant) AS i FROM events GROUP BY 1";
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute(TABLE).unwrap();
    session
        .batch_execute(
            "SET timezone = 'Asia/Kolkata'; SET datestyle = 'Postgres, DMY'; SET intervalstyle = 'sql_standard'; \
             SET extra_float_digits = -10",
        )
        .unwrap();
    session.execute("SELECT tally.create_rollup('totals', $1)", &[&STATEMENT]).unwrap();
    session.batch_execute("RESET ALL").unwrap();
    session
        .batch_execute(
            "INSERT INTO events (event_time, tenant, amount) VALUES ('2024-01-31 21:00Z', 1, 0.123456789012344), \
               ('2024-02-01 02:00Z', 1, 0.123456789012346)",
        )
        .unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", STATEMENT);
}

#[test]
fn function_that_hides_a_built_in_one_stays_the_one_that_was_meant() {
    const STATEMENT: &str = "SELECT lower(country) AS c, sum(tenant + 1) AS s FROM events GROUP BY 1";
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{TABLE}; INSERT INTO events (event_time, tenant, country) VALUES (now(), 1, 'A'); \
             CREATE FUNCTION lower(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT 'mine' $$; \
             CREATE FUNCTION minus(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 - $2'; \
             CREATE OPERATOR + (leftarg = int, rightarg = int, function = minus); SET search_path = public, pg_catalog"
        ))
        .unwrap();
    session.execute("SELECT tally.create_rollup('totals', $1)", &[&STATEMENT]).unwrap();
    assert_equal_now_and_refreshed(&mut session, "totals", "events", STATEMENT);
    assert_eq!(database.psql("SELECT c, s FROM totals"), "mine|0\n");
}

#[test]
fn names_of_every_kind_are_kept() {
    let database = cluster::database();
    let mut session = database.connect();
    let long = "l".repeat(63);
    for (number, (table, rollup)) in [
        ("\"Mixed Case\"", "\"Mixed \"\"Rollup\"\"\"".to_owned()),
        ("größe", "größe_je_käufer".to_owned()),
        ("\"select\"", "\"table\"".to_owned()),
        (&long, "r".repeat(63)),
        ("\"日本語の表\"", format!("\"{}\"", "日".repeat(21))),
        ("\"it's $1 {0}\"", "\"{a} it's %s\"".to_owned()),
        ("\"dots.in.it\"", "\"to.totals\"".to_owned()),
        ("\"new\nline\t\"", "\"\n\r\n\"".to_owned()),
        ("\"back\\slash\"", "\"\\x41\"\"'\"".to_owned()),
        ("\"-- /* $$ ;\"", "\"*/ $r ; --\"".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let column = format!("\"Größe {{b}} {number}'\"");
        let query =
            format!("SELECT {column}, count(*) AS \"n {{a}}\", avg({column}) AS \"Ø\" FROM {table} GROUP BY {column}");
        session
            .batch_execute(&format!("CREATE TABLE {table} ({column} int); INSERT INTO {table} VALUES (1), (NULL)"))
            .unwrap();
        session.execute("SELECT tally.create_rollup($1, $2)", &[&rollup, &query]).unwrap();
        session.batch_execute(&format!("INSERT INTO {table} VALUES (1), (NULL)")).unwrap();
        assert_equal(&mut session, &rollup, &query);
        session.execute("SELECT tally.create_rollup('again', $1)", &[&query]).unwrap();
        session.batch_execute("SELECT tally.drop_rollup('again')").unwrap();
        // `CALL` needs the name as text.
        session.batch_execute(&format!("CALL tally.refresh($r${rollup}$r$)")).unwrap();
        session.batch_execute(&format!("INSERT INTO {table} VALUES (2)")).unwrap();
        assert_equal(&mut session, &rollup, &query);
        session.batch_execute(&format!("SELECT tally.drop_rollup($r${rollup}$r$)")).unwrap();
    }
}
