//! What cannot be converted, each for a reason of its own.

use super::{convert, number, text};
use crate::oracle;
use postgres::Client;
use tally_server_tests::cluster;

#[track_caller]
fn assert_refused(session: &mut Client, schema: &str, arguments: &str, sqlstate: &str, message: &str, hint: &str) {
    session.batch_execute(schema).unwrap_or_else(|error| panic!("{schema}: {error:?}"));
    let call = format!("SELECT tally.convert_to_partitioned({arguments})");
    oracle::assert_refused(session, &call, sqlstate, message, hint);
    // The plan says the same, unless there is no table or policy to speak of.
    let plan = format!("SELECT string_agg(action || ' ' || note, E'\\n') FROM tally.plan_conversion({arguments})");
    let planned = text(session, &plan).unwrap();
    assert!(planned.contains(&format!("refuse {sqlstate}: ")) && planned.contains(message), "{schema}: {planned}");
    assert_eq!(number(session, "SELECT count(*) FROM tally.conversions"), 0);
}

#[test]
fn what_cannot_be_converted_is_refused_and_the_plan_says_why() {
    let server = cluster::Cluster::start(&[]);
    let database = server.database();
    let mut session = database.connect();
    let table = "DROP TABLE IF EXISTS t CASCADE; CREATE TABLE t (at timestamptz NOT NULL, k int, d date);";
    let plain = "'t', 'at', '1 day'";
    let mut refuse = |more: &str, arguments: &str, sqlstate: &str, message: &str, hint: &str| {
        assert_refused(&mut session, &format!("{table} {more}"), arguments, sqlstate, message, hint);
    };
    let key = "ALTER TABLE t ADD PRIMARY KEY (k);";
    refuse(key, plain, "42P16", "constraint t_pkey is unique without the column at", "widen_keys");
    refuse("CREATE UNIQUE INDEX u ON t (k);", plain, "42P16", "index u is unique without", "widen_keys");
    refuse("", "'t', 'nowhere', '1 day'", "42703", "column nowhere of table public.t does not exist", "column of time");
    refuse("", "'t', 'k', '1 day'", "42804", "column k has type integer", "timestamptz");
    refuse(
        "ALTER TABLE t ADD g date GENERATED ALWAYS AS (d) STORED;",
        "'t', 'g', '1 day'",
        "42P16",
        "is generated",
        "DROP EXPRESSION",
    );
    refuse(
        "ALTER TABLE t ADD UNIQUE (k, at); DROP TABLE IF EXISTS child; CREATE TABLE child (k int, at timestamptz, CONSTRAINT fk FOREIGN KEY (k, at) REFERENCES t (k, at));",
        plain,
        "2BP01",
        "foreign key fk of table public.child refers",
        "DROP CONSTRAINT fk",
    );
    refuse(
        "CREATE MATERIALIZED VIEW m AS SELECT * FROM t;",
        plain,
        "0A000",
        "materialized view public.m reads",
        "rollup",
    );
    refuse(
        "DROP ROLE IF EXISTS stranger; CREATE ROLE stranger; CREATE VIEW v AS SELECT * FROM t; ALTER VIEW v OWNER TO stranger;",
        plain,
        "42501",
        "view public.v on the table belongs to stranger",
        "ALTER VIEW",
    );
    refuse(
        "DROP TABLE IF EXISTS rowly; CREATE TABLE rowly (x t);",
        plain,
        "2BP01",
        "row type of table public.t is used by column x",
        "Drop it",
    );
    refuse(
        "CREATE FUNCTION f(t) RETURNS int LANGUAGE sql AS 'SELECT 1';",
        plain,
        "2BP01",
        "is used by function",
        "Drop it",
    );
    refuse(
        "CREATE FUNCTION g() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM t; END;",
        plain,
        "2BP01",
        "function public.g() depends on table",
        "Drop it",
    );
    refuse("DROP TABLE IF EXISTS heir; CREATE TABLE heir () INHERITS (t);", plain, "0A000", "inherits", "NO INHERIT");
    refuse(
        "DROP TYPE IF EXISTS y CASCADE; CREATE TYPE y AS (at timestamptz); DROP TABLE t; CREATE TABLE t OF y;",
        plain,
        "0A000",
        "OF a type",
        "NOT OF",
    );
    refuse("ALTER TABLE t SET UNLOGGED;", plain, "0A000", "is unlogged", "SET LOGGED");
    refuse(
        "DROP TABLE IF EXISTS temporary; CREATE TEMP TABLE temporary (at timestamptz);",
        "'temporary', 'at', '1 day'",
        "0A000",
        "is temporary",
        "permanent",
    );
    refuse(
        "DROP TABLE t; CREATE TABLE t (at timestamptz NOT NULL) PARTITION BY RANGE (at);",
        plain,
        "42809",
        "is partitioned already",
        "partition_by_time",
    );
    refuse(
        "DROP TABLE t; CREATE TABLE t (at timestamptz NOT NULL) PARTITION BY RANGE (at); CREATE TABLE part PARTITION OF t DEFAULT;",
        "'part', 'at', '1 day'",
        "42809",
        "public.part is a partition",
        "its parent",
    );
    refuse(
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE afar (at timestamptz) SERVER s;",
        "'afar', 'at', '1 day'",
        "42809",
        "is a foreign table",
        "server",
    );
    refuse("CREATE VIEW v AS SELECT * FROM t;", "'v', 'at', '1 day'", "42809", "public.v is not a table", "ordinary");
    refuse("", "'tally.runs', 'started_at', '1 day'", "2BP01", "belongs to the extension tally", "Only the extension");
    refuse(
        "ALTER TABLE t ALTER at DROP NOT NULL; INSERT INTO t VALUES (NULL);",
        plain,
        "23502",
        "column at of table public.t is null",
        "DELETE",
    );
    refuse(
        "INSERT INTO t VALUES (now() + '40 days');",
        plain,
        "23514",
        "or later in some rows",
        "SELECT * FROM public.t",
    );
    refuse(
        "ALTER TABLE t ADD CHECK (k > 0) NOT VALID;",
        plain,
        "55000",
        "constraint t_k_check of table public.t is not validated",
        "VALIDATE",
    );
    refuse("ALTER TABLE t ADD CHECK (k > 0) NO INHERIT;", plain, "42P16", "NO INHERIT", "again without");
    refuse("ALTER TABLE t ADD EXCLUDE (k WITH =);", plain, "0A000", "constraint t_k_excl excludes", "Drop");
    refuse(
        "CREATE OR REPLACE FUNCTION h() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER tr AFTER INSERT ON t REFERENCING NEW TABLE AS n FOR EACH ROW EXECUTE FUNCTION h();",
        plain,
        "0A000",
        "row trigger tr has a transition table",
        "statement trigger",
    );
    refuse(
        "CREATE PUBLICATION p FOR TABLE t;",
        plain,
        "55000",
        "publication p would publish",
        "publish_via_partition_root",
    );
    refuse(
        "DROP PUBLICATION p; CREATE ROLE holder LOGIN; GRANT CREATE ON SCHEMA public TO holder; ALTER TABLE t OWNER TO holder;
         CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true);",
        plain,
        "42501",
        "publication p of the table belongs to postgres",
        "ALTER PUBLICATION",
    );
    refuse(
        "DROP PUBLICATION p; CREATE ROLE nologin; ALTER TABLE t OWNER TO nologin;",
        plain,
        "42501",
        "may not create",
        "GRANT CREATE",
    );
    refuse(
        "CREATE SUBSCRIPTION s CONNECTION '' PUBLICATION p WITH (connect = false);
         INSERT INTO pg_subscription_rel SELECT oid, 't'::regclass, 'r' FROM pg_subscription;",
        plain,
        "55000",
        "a subscription writes to table public.t",
        "Take the table out",
    );
    // What is wrong with the call itself is an error of the plan too.
    session.batch_execute(table).unwrap();
    for function in ["convert_to_partitioned", "plan_conversion"] {
        let mut refuse = |arguments: &str, sqlstate: &str, message: &str, hint: &str| {
            oracle::assert_refused(
                &mut session,
                &format!("SELECT tally.{function}({arguments})"),
                sqlstate,
                message,
                hint,
            );
        };
        refuse("'t', 'at', '7 hours'", "22023", "partition width", "divisor");
        refuse("'t', 'at', '0'", "22023", "partition width", "divisor");
        refuse("'t', 'at', '1 month 1 day'", "22023", "partition width", "divisor");
        refuse("'t', 'd', '1 hour'", "22023", "too small for a key of type date", "1 day");
        refuse(
            "'t', 'at', '1 day', time_zone => 'CEST'",
            "22023",
            "time zone \"CEST\" is not known",
            "pg_timezone_names",
        );
        refuse("'t', 'at', '1 day', retention => '1 day'", "22023", "shorter than the lateness", "lateness");
        refuse("'t', 'at', NULL", "22004", "partition_width must not be null", "");
        refuse("NULL, 'at', '1 day'", "22004", "tbl must not be null", "");
    }
    session.batch_execute("CREATE ROLE passer_by LOGIN").unwrap();
    let mut other = database.connect_as("passer_by");
    for call in [
        "convert_to_partitioned('t', 'at', '1 day')",
        "plan_conversion('t', 'at', '1 day')",
        "undo_conversion('t')",
        "cancel_conversion('t')",
        "move_rollups('t', 't')",
    ] {
        oracle::assert_refused(&mut other, &format!("SELECT tally.{call}"), "42501", "must be owner of table", "");
    }
    oracle::assert_refused(
        &mut session,
        "SELECT tally.cancel_conversion('t')",
        "55000",
        "is not being converted",
        "tally.conversions",
    );
    oracle::assert_refused(&mut session, "SELECT tally.undo_conversion('t')", "55000", "was not converted", "");
    oracle::assert_refused(&mut session, "SELECT tally.move_rollups('t', 't')", "55000", "cannot become", "conversion");
    session.batch_execute("BEGIN; SELECT tally.convert_to_partitioned('t', 'at', '1 day')").unwrap();
    oracle::assert_refused(
        &mut session,
        "SELECT tally.convert_to_partitioned('t', 'at', '1 day')",
        "42710",
        "is being converted already",
        "cancel_conversion",
    );
    session.batch_execute("ROLLBACK").unwrap();
    // A newer partition has rows: there is no way back.
    convert(&mut session, "'t', 'at', '1 day'");
    session.batch_execute("INSERT INTO t VALUES (now() + '6 days')").unwrap();
    oracle::assert_refused(&mut session, "SELECT tally.undo_conversion('t')", "55000", "has rows", "Move them");
}
