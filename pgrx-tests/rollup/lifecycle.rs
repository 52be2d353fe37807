//! From the first row to the last: creation on a table in use, renames, other owners, drops by hand.

use std::io::Write as _;
use std::thread;

use postgres::Client;
use tally_server_tests::cluster;

use super::{QUERY, create, insert, session};
use crate::oracle::{
    assert_equal, assert_equal_now_and_refreshed, assert_refused, own_pid, pending, wait_until_blocked,
};

const SECOND: &str = "SELECT date_trunc('day', event_time, 'UTC') AS day, max(amount) AS most FROM events GROUP BY 1";

#[test]
fn rollup_on_a_table_with_rows_is_right_at_once() {
    let database = cluster::database();
    let mut session = session(&database);
    assert_equal(&mut session, "totals", QUERY);
    assert_eq!(pending(&mut session, "events"), 0);
    let row = session.query_one("SELECT sum(n)::bigint FROM totals_stored", &[]).unwrap();
    assert_eq!(row.get::<_, i64>(0), 40, "the rows of before are stored");
    create(&mut session, "second", SECOND);
    assert_equal(&mut session, "second", SECOND);
    assert_equal_now_and_refreshed(&mut session, "second", "events", SECOND);
}

#[test]
fn rollup_made_in_the_transaction_that_made_and_filled_the_table_is_right() {
    for freeze in ["", " (FREEZE)"] {
        let database = cluster::database();
        let mut session = database.connect();
        session.batch_execute("BEGIN; CREATE TABLE events (event_time timestamptz, tenant int, amount int)").unwrap();
        let copy = |session: &mut Client| {
            let mut writer =
                session.copy_in(&format!("COPY events (event_time, tenant, amount) FROM STDIN{freeze}")).unwrap();
            writer.write_all(b"2024-01-01Z\t1\t1\n2024-01-01Z\t\\N\t2\n").unwrap();
            writer.finish().unwrap();
        };
        copy(&mut session);
        create(&mut session, "totals", QUERY);
        assert_equal(&mut session, "totals", QUERY);
        copy(&mut session);
        assert_equal(&mut session, "totals", QUERY);
        create(&mut session, "second", SECOND);
        copy(&mut session);
        session.batch_execute("SAVEPOINT s").unwrap();
        copy_later(&mut session);
        session.batch_execute("ROLLBACK TO s").unwrap();
        assert_equal(&mut session, "second", SECOND);
        session.batch_execute("COMMIT").unwrap();
        copy_later(&mut session);
        for (name, query) in [("totals", QUERY), ("second", SECOND)] {
            assert_equal_now_and_refreshed(&mut session, name, "events", query);
        }
    }
}

fn copy_later(session: &mut Client) {
    session.batch_execute("INSERT INTO events (event_time, tenant, amount) VALUES ('2024-01-01Z', 1, 4)").unwrap();
}

#[test]
fn rollup_that_is_rolled_back_leaves_nothing() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute("CREATE TABLE events (event_time timestamptz, tenant int, amount int)").unwrap();
    session.batch_execute("BEGIN").unwrap();
    create(&mut session, "totals", QUERY);
    session.batch_execute("ROLLBACK").unwrap();
    copy_later(&mut session);
    create(&mut session, "totals", QUERY);
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

#[test]
fn snapshot_older_than_the_rollup_is_answered_from_raw() {
    let database = cluster::database();
    let (mut session, mut reader) = (session(&database), database.connect());
    insert(&mut session);
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class").unwrap();
    create(&mut session, "second", SECOND);
    insert(&mut session);
    session.batch_execute("CALL tally.refresh('second')").unwrap();
    assert_equal(&mut reader, "second", SECOND);
    assert_equal(&mut reader, "totals", QUERY);
    reader.batch_execute("COMMIT").unwrap();
    assert_equal(&mut reader, "second", SECOND);
}

#[test]
fn drop_that_waited_knows_the_rollup_made_meanwhile() {
    let database = cluster::database();
    let (mut session, mut holder, mut dropper) = (session(&database), database.connect(), database.connect());
    holder.batch_execute("BEGIN").unwrap();
    create(&mut holder, "second", SECOND);
    let pid: i32 = dropper.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let drop = thread::spawn(move || dropper.batch_execute("SELECT tally.drop_rollup('totals')"));
    wait_until_blocked(&mut session, pid);
    holder.batch_execute("COMMIT").unwrap();
    drop.join().unwrap().unwrap();
    insert(&mut session);
    assert_equal_now_and_refreshed(&mut session, "second", "events", SECOND);
}

#[test]
fn drop_by_hand_waits_for_a_refresh_before_it_locks_anything() {
    let database = cluster::database();
    let (mut session, mut refresher, mut dropper) = (session(&database), database.connect(), database.connect());
    session.batch_execute("SET lock_timeout = '10s'").unwrap();
    for drop in ["DROP VIEW totals", "DROP TABLE totals_stored CASCADE", "DROP TABLE events CASCADE"] {
        let (refresher_pid, dropper_pid) = (own_pid(&mut refresher), own_pid(&mut dropper));
        thread::scope(|scope| {
            let mut holder = database.connect();
            holder.batch_execute("BEGIN; LOCK TABLE totals_stored IN SHARE MODE").unwrap();
            // Whichever refresh comes first, a worker's or this one, is held up now.
            insert(&mut session);
            let refresh = scope.spawn(|| refresher.batch_execute("CALL tally.refresh('totals')"));
            wait_until_blocked(&mut session, refresher_pid);
            let drop = scope.spawn(|| dropper.batch_execute(drop));
            wait_until_blocked(&mut session, dropper_pid);
            assert_equal(&mut session, "totals", QUERY);
            holder.batch_execute("COMMIT").unwrap();
            refresh.join().unwrap().unwrap();
            drop.join().unwrap().unwrap();
        });
        assert_nothing_known(&mut session);
        if drop != "DROP TABLE events CASCADE" {
            create(&mut session, "totals", QUERY);
        }
    }
}

/// Everything about the table that a user could see.
const SHAPE: &str = "SELECT string_agg(what, E'\\n' ORDER BY what) FROM ( \
      SELECT relid::regclass || ' ' || attname || ' ' || format_type(atttypid, atttypmod) || ' ' || attnotnull AS what \
        FROM pg_partition_tree('events') JOIN pg_attribute ON attrelid = relid WHERE attnum > 0 AND NOT attisdropped \
      UNION ALL SELECT pg_get_triggerdef(t.oid) FROM pg_partition_tree('events') JOIN pg_trigger t ON tgrelid = relid \
      UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_partition_tree('events') JOIN pg_index ON indrelid = relid \
      UNION ALL SELECT relid::regclass || pg_get_expr(adbin, adrelid) FROM pg_partition_tree('events') JOIN pg_attrdef ON adrelid = relid \
      UNION ALL SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace) AS s";

#[test]
fn dropping_the_last_rollup_leaves_the_table_as_it_was() {
    let database = cluster::database();
    let mut session = session(&database);
    let shape = |session: &mut Client| -> String { session.query_one(SHAPE, &[]).unwrap().get(0) };
    session.batch_execute("SELECT tally.drop_rollup('totals')").unwrap();
    let before = shape(&mut session);
    assert!(!before.contains("tally"), "{before}");
    create(&mut session, "totals", QUERY);
    create(&mut session, "second", SECOND);
    session.batch_execute("SELECT tally.drop_rollup('totals')").unwrap();
    insert(&mut session);
    assert_equal_now_and_refreshed(&mut session, "second", "events", SECOND);
    session.batch_execute("SELECT tally.drop_rollup('second')").unwrap();
    assert_eq!(shape(&mut session), before);
    assert_nothing_known(&mut session);
    session
        .batch_execute("DELETE FROM events WHERE tenant = 1; TRUNCATE day_1; DROP TABLE day_2; DROP TABLE events")
        .unwrap();
}

#[track_caller]
fn assert_nothing_known(session: &mut Client) {
    let query = "SELECT (SELECT count(*) FROM tally.sources) + (SELECT count(*) FROM tally.rollups) \
        + (SELECT count(*) FROM tally.jobs WHERE kind = 'refresh')";
    assert_eq!(session.query_one(query, &[]).unwrap().get::<_, i64>(0), 0);
}

#[test]
fn rollup_that_loses_a_relation_goes_whole() {
    let database = cluster::database();
    let mut session = session(&database);
    let shape = |session: &mut Client| -> String { session.query_one(SHAPE, &[]).unwrap().get(0) };
    session.batch_execute("SELECT tally.drop_rollup('totals')").unwrap();
    let before = shape(&mut session);
    for drop in [
        "DROP VIEW totals",
        "DROP TABLE totals_stored CASCADE",
        "DROP VIEW totals_rows CASCADE",
        "DROP VIEW totals_changes CASCADE",
    ] {
        create(&mut session, "second", SECOND);
        create(&mut session, "totals", QUERY);
        session.batch_execute(drop).unwrap();
        insert(&mut session);
        assert_equal_now_and_refreshed(&mut session, "second", "events", SECOND);
        session.batch_execute("SELECT tally.drop_rollup('second')").unwrap();
        create(&mut session, "totals", QUERY);
        session.batch_execute(drop).unwrap();
        assert_eq!(shape(&mut session), before, "{drop}");
        assert_nothing_known(&mut session);
    }
    // Also after a drop that was refused.
    create(&mut session, "second", SECOND);
    create(&mut session, "above", "SELECT day, max(most) AS most FROM second GROUP BY day");
    assert_refused(&mut session, "DROP VIEW second", "2BP01", "other objects depend on it", "CASCADE");
    session.batch_execute("DROP VIEW second CASCADE").unwrap();
    assert_eq!(shape(&mut session), before);
    assert_nothing_known(&mut session);
}

#[test]
fn dropped_schema_takes_its_rollups_along() {
    let database = cluster::database();
    let mut session = database.connect();
    session.batch_execute("CREATE SCHEMA s; CREATE TABLE s.events (tenant int, amount int)").unwrap();
    create(&mut session, "s.totals", &QUERY.replace("events", "s.events"));
    session.batch_execute("DROP SCHEMA s CASCADE").unwrap();
    assert_nothing_known(&mut session);
}

#[test]
fn dropped_extension_can_be_created_anew() {
    let database = cluster::database();
    let mut session = session(&database);
    assert_refused(&mut session, "DROP EXTENSION tally", "2BP01", "", "CASCADE");
    assert_equal(&mut session, "totals", QUERY);
    session.batch_execute("DROP EXTENSION tally CASCADE").unwrap();
    session.batch_execute("CREATE EXTENSION tally").unwrap();
    let create_again = format!("SELECT tally.create_rollup('again', '{QUERY}')");
    assert_refused(&mut session, &create_again, "42701", "tally_tag", "DROP COLUMN");
    session.batch_execute("ALTER TABLE events DROP COLUMN tally_tag CASCADE").unwrap();
    insert(&mut session);
    create(&mut session, "again", QUERY);
    assert_equal_now_and_refreshed(&mut session, "again", "events", QUERY);
}

#[test]
fn reader_needs_the_view_and_nothing_else() {
    let database = cluster::database();
    let mut session = session(&database);
    let (owner, reader) = (format!("owner_{}", database.name()), format!("reader_{}", database.name()));
    session
        .batch_execute(&format!(
            "CREATE ROLE {owner} LOGIN; CREATE ROLE {reader} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}; \
             CREATE TABLE orders (tenant int, amount int); ALTER TABLE orders OWNER TO {owner}"
        ))
        .unwrap();
    let query = QUERY.replace("events", "orders");
    let mut owner_session = database.connect_as(&owner);
    create(&mut owner_session, "order_totals", &query);
    owner_session.batch_execute(&format!("GRANT SELECT ON order_totals TO {reader}")).unwrap();
    owner_session.batch_execute("INSERT INTO orders VALUES (1, 1), (2, 2)").unwrap();
    assert_equal_now_and_refreshed(&mut owner_session, "order_totals", "orders", &query);
    owner_session.batch_execute("INSERT INTO orders VALUES (1, 1)").unwrap();
    // Made by a superuser, it belongs to the owner of the table just the same.
    create(&mut session, "by_superuser", &query);
    assert_equal_now_and_refreshed(&mut owner_session, "by_superuser", "orders", &query);

    let mut reader_session = database.connect_as(&reader);
    let rows = reader_session.query("SELECT * FROM order_totals WHERE tenant = 1 AND n = 2", &[]).unwrap();
    assert_eq!(rows.len(), 1);
    for statement in [
        "SELECT * FROM orders",
        "SELECT * FROM order_totals_stored",
        "SELECT * FROM order_totals_rows",
        "SELECT * FROM by_superuser",
        "CALL tally.refresh('order_totals')",
        "SELECT tally.drop_rollup('order_totals')",
        "SELECT tally.create_rollup('mine', 'SELECT tenant, count(*) FROM orders GROUP BY 1')",
        "UPDATE tally.sources SET open_tags = '{}'",
        "DELETE FROM tally.rollups",
        "INSERT INTO tally.incarnations VALUES (9, 9)",
    ] {
        assert_refused(&mut reader_session, statement, "42501", "", "");
        if statement.contains("tally.") && !statement.contains('(') {
            assert_refused(&mut owner_session, statement, "42501", "", "");
        }
    }
    owner_session.batch_execute("SELECT tally.drop_rollup('order_totals')").unwrap();
    drop((owner_session, reader_session));
    session.batch_execute(&format!("DROP OWNED BY {owner}, {reader}; DROP ROLE {owner}, {reader}")).unwrap();
}

#[test]
fn ordinary_roles_change_their_own_tables_beside_a_rollup() {
    let database = cluster::database();
    let mut session = session(&database);
    let role = format!("bystander_{}", database.name());
    session.batch_execute(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}")).unwrap();
    let mut bystander = database.connect_as(&role);
    bystander
        .batch_execute(
            "CREATE TABLE own (a int) PARTITION BY LIST (a); CREATE TABLE own_1 PARTITION OF own FOR VALUES IN (1); \
             ALTER TABLE own ADD b int; INSERT INTO own VALUES (1, 1); UPDATE own SET b = 2; ALTER TABLE own DETACH PARTITION own_1; \
             DROP TABLE own_1; DROP TABLE own",
        )
        .unwrap();
    drop(bystander);
    session.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

#[test]
fn search_path_of_the_caller_leads_nowhere() {
    let database = cluster::database();
    let mut session = database.connect();
    // Whoever may create objects somewhere in the search path of others could do this.
    session
        .batch_execute(
            "CREATE SCHEMA trap; \
             CREATE FUNCTION trap.spring(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$; \
             CREATE FUNCTION trap.spring(int, int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$; \
             CREATE FUNCTION trap.spring(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$; \
             CREATE OPERATOR trap.= (leftarg = bigint, rightarg = bigint, function = trap.spring); \
             CREATE OPERATOR trap.>= (leftarg = bigint, rightarg = bigint, function = trap.spring); \
             CREATE OPERATOR trap.= (leftarg = int, rightarg = int, function = trap.spring); \
             CREATE OPERATOR trap.= (leftarg = oid, rightarg = oid, function = trap.spring); \
             CREATE FUNCTION trap.parse_ident(text) RETURNS text[] LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$; \
             CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$; \
             CREATE FUNCTION trap.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$; \
             CREATE TABLE trap.pg_class (oid int); CREATE TABLE trap.sources (a int); \
             CREATE TEMP TABLE pg_attribute (a int); CREATE TEMP TABLE events (a int); \
             CREATE TABLE public.events (event_time timestamptz, tenant int, amount int); \
             SET search_path = trap, pg_temp, pg_catalog, public",
        )
        .unwrap();
    let query =
        "SELECT tenant, pg_catalog.count(*) AS n, pg_catalog.sum(amount) AS total FROM public.events GROUP BY tenant";
    create(&mut session, "public.totals", query);
    session.batch_execute("INSERT INTO public.events VALUES ('2024-01-01Z', 1, 1)").unwrap();
    session.batch_execute("CALL tally.refresh('public.totals')").unwrap();
    session.batch_execute("INSERT INTO public.events VALUES ('2024-01-01Z', 1, 1)").unwrap();
    let rows = session.query("SELECT n FROM public.totals", &[]).unwrap();
    assert_eq!(rows[0].get::<_, i64>(0), 2);
    session.query("SELECT * FROM tally.verify('public.totals')", &[]).unwrap();
    session.batch_execute("ALTER TABLE public.events ADD x int").unwrap();
    session.batch_execute("SELECT tally.drop_rollup('public.totals')").unwrap();
}

#[test]
fn conditions_on_keys_reach_the_index_of_the_stored_groups() {
    let database = cluster::database();
    let mut session = database.connect();
    session
        .batch_execute(
            "CREATE TABLE events (event_time timestamptz NOT NULL, tenant int NOT NULL, country text, amount int); \
             INSERT INTO events SELECT '2024-01-01Z'::timestamptz + make_interval(hours => i % 50), i % 400, i % 3, i \
               FROM generate_series(1, 40000) AS i",
        )
        .unwrap();
    create(
        &mut session,
        "totals",
        "SELECT date_trunc('hour', event_time, 'UTC') AS bucket, tenant, country, sum(amount) AS s FROM events GROUP BY 1, 2, 3",
    );
    session.batch_execute("ANALYZE; INSERT INTO events VALUES ('2024-01-01Z', 7, 'x', 1)").unwrap();
    let plan = database.psql("EXPLAIN (COSTS OFF) SELECT * FROM totals WHERE tenant = 7 AND bucket >= '2024-01-01Z'");
    assert!(plan.contains("Index Cond: ((tenant = 7)") && !plan.contains("Seq Scan on totals_stored"), "{plan}");
    assert!(plan.contains("events_tally_tag_idx"), "{plan}");
}
