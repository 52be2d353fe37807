//! Rollups over rollups: each equals its query over the view below, under every kind of write, and is fed by the level below.

use postgres::Client;
use tally_server_tests::cluster::{self, Database};

use super::restore::run;
use super::subtract::rows_read;
use super::{QUERY, create, insert, session};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, assert_refused};

/// From the bottom to the top: (name, query).
const LEVELS: [(&str, &str); 6] = [
    (
        "hourly",
        "SELECT date_bin('1 hour', event_time, '2000-01-01Z') AS hour, tenant, note, count(*) AS n, \
           count(*) FILTER (WHERE amount > 20) AS large, sum(amount) AS total, min(amount) AS least, max(note) AS latest, \
           bool_or(amount > 30) AS huge, avg(amount) AS average, regr_count(amount, tenant) AS pairs, \
           tally.hll_agg(amount) AS amounts \
         FROM events WHERE amount IS DISTINCT FROM 13 GROUP BY 1, 2, 3",
    ),
    (
        "daily",
        "SELECT date_trunc('day', hour, 'Europe/Berlin') AS day, tenant, sum(n) AS n, sum(large) AS large, sum(total) AS total, \
           sum(n) FILTER (WHERE note = 'x') AS n_of_x, sum(large) FILTER (WHERE note = 'y') AS large_of_y, \
           sum(total) / sum(n) AS average, sum(pairs) AS pairs, \
           sum(pairs) FILTER (WHERE note = 'y') AS pairs_of_y, min(least) AS least, max(latest) AS latest, bool_or(huge) AS huge, \
           max(hour) AS last_hour, tally.hll_union_agg(amounts) AS amounts, tally.distinct_count(tenant) AS tenants \
         FROM hourly AS h WHERE note IS NOT NULL GROUP BY 1, tenant",
    ),
    (
        "weekly",
        "SELECT date_trunc('week', day, 'Europe/Berlin') AS week, tenant % 2 = 0 AS even, sum(n) AS n, sum(n_of_x) AS n_of_x, \
           sum(large_of_y) AS large_of_y, min(least) FILTER (WHERE tenant > 0) AS least, \
           tally.distinct_count(amounts) AS amounts FROM daily GROUP BY 1, 2",
    ),
    (
        "in_all",
        "SELECT 'all' AS what, sum(n) AS n, sum(n_of_x) AS n_of_x, sum(large_of_y) AS large_of_y FROM weekly GROUP BY 1",
    ),
    // Beside the others, over the same level.
    ("of_tenant", "SELECT tenant, sum(total) AS total, tally.sum(amounts) AS amounts FROM hourly GROUP BY tenant"),
    ("of_hour", "SELECT hour, sum(n) AS n FROM hourly WHERE tenant = 1 GROUP BY hour"),
];

fn leveled_session(database: &Database) -> Client {
    let mut session = session(database);
    for (name, query) in LEVELS {
        create(&mut session, name, query);
    }
    session
}

#[track_caller]
fn assert_all_equal(session: &mut Client) {
    for (name, query) in LEVELS {
        assert_equal(session, name, query);
    }
}

#[track_caller]
fn assert_all_equal_and_refreshed(session: &mut Client) {
    assert_all_equal(session);
    for (name, query) in LEVELS {
        assert_equal_now_and_refreshed(session, name, "events", query);
    }
}

#[test]
fn a_level_equals_its_query_over_the_level_below_under_every_write() {
    let database = cluster::database();
    let mut session = leveled_session(&database);
    assert_all_equal_and_refreshed(&mut session);
    for statement in [
        "INSERT INTO events SELECT event_time, tenant, amount + 1, CASE WHEN amount % 2 = 0 THEN 'y' END FROM events",
        "UPDATE events SET amount = amount + 1 WHERE tenant = 1",
        "UPDATE events SET note = 'y', tenant = NULL WHERE amount % 5 = 0",
        "UPDATE events SET event_time = '2024-01-02 05:00Z' WHERE event_time < '2024-01-01 05:00Z'",
        "DELETE FROM events WHERE tenant IS NULL",
        "INSERT INTO events SELECT * FROM events",
        "DELETE FROM events WHERE note = 'x'",
        "TRUNCATE day_1",
        "DELETE FROM events",
        "INSERT INTO events (event_time, tenant) VALUES ('2024-01-01Z', 7)",
        "TRUNCATE events",
    ] {
        // Some rows are counted, some are not.
        insert(&mut session);
        session.batch_execute(statement).unwrap();
        assert_all_equal_and_refreshed(&mut session);
    }
}

#[test]
fn a_level_is_right_inside_of_an_open_transaction() {
    let database = cluster::database();
    let (mut session, mut reader) = (leveled_session(&database), database.connect());
    session.batch_execute("BEGIN; DELETE FROM events WHERE amount < 9").unwrap();
    insert(&mut session);
    assert_all_equal(&mut session);
    assert_all_equal(&mut reader);
    reader.batch_execute("CALL tally.refresh('of_hour')").unwrap();
    session.batch_execute("COMMIT").unwrap();
    assert_all_equal_and_refreshed(&mut reader);
}

/// The stored groups of a level come from those below it: with rows that only the level below has counted, they show.
#[test]
fn a_level_is_built_and_fed_from_the_stored_groups_below() {
    let database = cluster::database();
    let mut session = leveled_session(&database);
    session
        .batch_execute("UPDATE hourly_stored SET n = n + 1000, _rows = _rows + 1000 WHERE hour = '2024-01-01 01:00Z'")
        .unwrap();
    create(&mut session, "again", "SELECT tenant, sum(n) AS n FROM hourly GROUP BY tenant");
    let sum = |session: &mut Client, table: &str| -> i64 {
        session.query_one(&format!("SELECT sum(n)::bigint FROM {table}"), &[]).unwrap().get(0)
    };
    assert_eq!(sum(&mut session, "again_stored"), sum(&mut session, "hourly_stored"));
    // The group of one changed row is made anew from the level below.
    let before = sum(&mut session, "daily_stored");
    session.batch_execute("UPDATE events SET amount = 50 WHERE event_time = '2024-01-01 04:00Z'").unwrap();
    session.batch_execute("CALL tally.refresh('daily')").unwrap();
    assert_eq!(sum(&mut session, "daily_stored"), before + 1000);
}

#[test]
fn renamed_columns_and_views_go_on_feeding_the_levels_above() {
    let database = cluster::database();
    let mut session = leveled_session(&database);
    session
        .batch_execute(
            "ALTER VIEW hourly RENAME COLUMN n TO events; ALTER VIEW hourly RENAME COLUMN hour TO begins; \
             ALTER VIEW hourly RENAME TO per_hour; ALTER TABLE events RENAME COLUMN amount TO price",
        )
        .unwrap();
    let query = "SELECT begins, tenant, sum(events) AS n FROM per_hour GROUP BY 1, 2";
    create(&mut session, "later", query);
    session.batch_execute("INSERT INTO events SELECT * FROM events; DELETE FROM events WHERE price = 5").unwrap();
    assert_equal_now_and_refreshed(&mut session, "later", "events", query);
    let daily = "SELECT date_trunc('day', begins, 'Europe/Berlin') AS day, tenant, sum(events) AS n FROM per_hour \
                 WHERE note IS NOT NULL GROUP BY 1, 2";
    assert_equal(&mut session, "(SELECT day, tenant, n FROM daily)", daily);
}

#[test]
fn what_does_not_gather_is_refused_with_the_way_out() {
    let database = cluster::database();
    let mut session = leveled_session(&database);
    create(&mut session, "spread", "SELECT tenant, stddev(amount::float8) AS deviation FROM events GROUP BY 1");
    for (query, state, message, hint) in [
        (
            "SELECT tenant, sum(average) FROM hourly GROUP BY 1",
            "0A000",
            "\"average\" is not one aggregate alone",
            "sum(x) and count(x)",
        ),
        (
            "SELECT tenant, max(deviation) FROM spread GROUP BY 1",
            "0A000",
            "\"deviation\" is not one aggregate alone",
            "its parts",
        ),
        ("SELECT tenant, avg(n) FROM hourly GROUP BY 1", "0A000", "cannot keep avg(hourly.n)", "Use sum(hourly.n)"),
        ("SELECT tenant, sum(least) FROM hourly GROUP BY 1", "0A000", "is gathered by min", "Use min(hourly"),
        ("SELECT tenant, sum(n + 1) FROM hourly GROUP BY 1", "0A000", "\"n\" is not one aggregate alone", "sum(x)"),
        ("SELECT tenant, count(*) FROM hourly GROUP BY 1", "0A000", "it would count groups", "Keep count(*)"),
        ("SELECT tenant, sum(tenant) FROM hourly GROUP BY 1", "0A000", "it would count groups", "Keep count(*)"),
        (
            "SELECT n, sum(total) FROM hourly GROUP BY 1",
            "0A000",
            "\"n\" is an aggregate of the rollup below and cannot be used in GROUP BY",
            "keys",
        ),
        ("SELECT tenant, sum(n) FROM hourly WHERE total > 1 GROUP BY 1", "0A000", "cannot be used in WHERE", "keys"),
        (
            "SELECT tenant, sum(n) FILTER (WHERE n > 1) FROM hourly GROUP BY 1",
            "0A000",
            "cannot be used in FILTER",
            "keys",
        ),
        ("SELECT tenant, sum(n) FROM hourly JOIN events USING (tenant) GROUP BY 1", "0A000", "a join", "event table"),
    ] {
        assert_refused(&mut session, &format!("SELECT tally.create_rollup('x', $q${query}$q$)"), state, message, hint);
    }
    assert_refused(
        &mut session,
        "SELECT tally.drop_rollup('hourly')",
        "2BP01",
        "\"daily\" is defined on",
        "Drop it first",
    );
    assert_refused(&mut session, "DROP VIEW hourly", "2BP01", "other objects depend on it", "CASCADE");
    for (name, _) in LEVELS.iter().rev() {
        session.execute(&format!("SELECT tally.drop_rollup('{name}')"), &[]).unwrap();
    }
}

/// Rollups that stand beside each other are derived from the finest of them, whatever is written.
#[test]
fn rollups_beside_each_other_read_the_new_rows_once() {
    let database = cluster::database();
    let mut session = session(&database);
    let query = |keys: &str, aggregates: &str| {
        let positions: Vec<String> = (1..=keys.split(" AS ").count() - 1).map(|number| number.to_string()).collect();
        format!("SELECT {keys}, {aggregates} FROM events GROUP BY {}", positions.join(", "))
    };
    let (day, shop, note) = ("date_trunc('day', event_time, 'UTC') AS day", "tenant AS shop", "note AS note");
    let sums = "count(*) AS n, sum(amount) AS total, avg(amount) FILTER (WHERE tenant > 0) AS mean";
    let ends = "max(amount) AS most, tally.hll_agg(amount)::text AS amounts, sum(amount) AS total";
    let rollups = [
        ("by_note", query(note, ends)),
        ("by_shop", query(shop, sums)),
        (
            "finest",
            query(
                &format!("{day}, {shop}, {note}"),
                &format!("{sums}, max(amount) AS most, tally.hll_agg(amount) AS amounts"),
            ),
        ),
        ("by_day", query(day, sums)),
        (
            "shop_and_day",
            query(
                &format!("{shop}, {day}"),
                "count(*) AS n, sum(amount) AS total, avg(amount) FILTER (WHERE tenant > 0) AS mean",
            ),
        ),
        ("elsewhere", query(day, "count(*) FILTER (WHERE tenant = 1) AS ones")),
    ];
    for (name, query) in &rollups {
        create(&mut session, name, query);
    }
    let insert = "INSERT INTO events SELECT '2024-01-02Z', NULLIF(i % 4, 3), i, NULLIF(i % 3, 0)::text FROM generate_series(1, 3000) AS i";
    for statement in [
        insert,
        "UPDATE events SET amount = amount + 1, note = 'y' WHERE amount % 5 = 0",
        "DELETE FROM events WHERE tenant = 2 OR amount % 7 = 0",
        "INSERT INTO events SELECT * FROM events WHERE amount % 11 = 0",
        "UPDATE events SET amount = NULL WHERE note = '1'",
        "TRUNCATE day_1",
        "DELETE FROM events",
    ] {
        session.batch_execute(statement).unwrap();
        for refreshed in [false, true] {
            for (name, query) in &rollups {
                assert_equal(&mut session, name, query);
            }
            assert_equal(&mut session, "totals", QUERY);
            if !refreshed {
                session.batch_execute("CALL tally.refresh('totals')").unwrap();
            }
        }
    }
    session.batch_execute("SELECT tally.drop_rollup('elsewhere'); SELECT tally.drop_rollup('by_note')").unwrap();
    session.batch_execute(insert).unwrap();
    let before = rows_read(&mut session);
    session.batch_execute("CALL tally.refresh('totals')").unwrap();
    let read = rows_read(&mut session) - before;
    // Besides, one look for a new row and one for a row from the future.
    assert!((3000..9000).contains(&read), "{read} rows for 3000 new ones and 5 rollups");
}

/// A name may stand for another column than it did when a finer rollup was created.
#[test]
fn rollups_are_derived_by_what_names_mean() {
    let database = cluster::database();
    let mut session = session(&database);
    create(&mut session, "fine", "SELECT tenant, note, count(amount) AS n FROM events GROUP BY 1, 2");
    session
        .batch_execute(
            "ALTER TABLE events RENAME note TO remark; ALTER TABLE events ADD note text; \
             ALTER TABLE events RENAME amount TO price; ALTER TABLE events ADD amount int",
        )
        .unwrap();
    let coarse = "SELECT note, count(amount) AS n FROM events GROUP BY 1";
    create(&mut session, "coarse", coarse);
    let known = "SELECT remark AS note, count(price) AS n FROM events GROUP BY 1";
    create(&mut session, "known", known);
    session.batch_execute("INSERT INTO events (event_time, tenant, price, remark, note) VALUES ('2024-01-01 05:00Z', 1, 5, 'old', 'new')").unwrap();
    for _ in 0..2 {
        assert_equal(&mut session, "coarse", coarse);
        assert_equal(&mut session, "known", known);
        session.batch_execute("CALL tally.refresh('fine')").unwrap();
    }
}

#[test]
fn a_restore_that_cleans_up_first_replaces_all_levels() {
    let database = cluster::database();
    let mut session = leveled_session(&database);
    insert(&mut session);
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    run(database.dump_command().args(["--format=custom", "--file"]).arg(&archive));
    insert(&mut session);
    drop(session);
    for _ in 0..2 {
        run(database.restore_command().args(["--exit-on-error", "--clean", "--if-exists"]).arg(&archive));
        let mut session = database.connect();
        assert_all_equal(&mut session);
        insert(&mut session);
        assert_all_equal_and_refreshed(&mut session);
    }
}
