//! The questions of the demonstration (demo/questions.sql) are right where such queries are often wrong: windows, names,
//! distinct counts, lists with bounds, and what a query reads.

use postgres::Client;
use tally_server_tests::cluster::{self, Database, feed};

use crate::refresh::pause_jobs;

/// When most questions are asked: the current bucket is 12:30 to 12:35.
const AS_OF: &str = "2024-03-10 12:34:56Z";

/// A database with table, rollups and questions of the demonstration; only the test refreshes.
struct Demo {
    database: Database<'static>,
    session: Client,
}

impl Demo {
    fn start() -> Self {
        let database = cluster::database();
        let mut session = database.connect();
        let mut psql = database.psql_command();
        // Wide partitions, because they reach from the time of the events to now.
        psql.args(["--quiet", "--set", "ON_ERROR_STOP=1", "--set", "width=1 year"]);
        let script = [include_str!("../demo/schema.sql"), include_str!("../demo/questions.sql")].concat();
        let output = feed(&mut psql, &script);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        pause_jobs(&mut session);
        session.batch_execute("SELECT tally.ensure_partitions('events', '2024-01-01Z', '2025-01-01Z')").unwrap();
        Self { database, session }
    }

    /// Inserts what a query answers: time, tenant, device, session. The rows of a bucket are of three groups.
    fn insert(&mut self, query: &str) {
        let insert = format!(
            "INSERT INTO events (event_time, customer_id, event_type, device_id, session_id)
               SELECT t::timestamptz, tenant, 'type ' || row_number() OVER () % 3, device, session
                 FROM ({query}) AS q (t, tenant, device, session)"
        );
        self.session.batch_execute(&insert).unwrap();
    }

    fn refresh(&mut self) {
        self.session.batch_execute("CALL tally.refresh('events_5min')").unwrap();
    }

    /// The rows of a query as psql prints them.
    fn ask(&self, query: &str) -> String {
        self.database.psql(query).trim_end().to_owned()
    }

    #[track_caller]
    fn assert(&self, query: &str, expected: &str) {
        assert_eq!(self.ask(query), expected, "{query}");
    }

    /// The answers are the same while `rest` is pending, and when it is refreshed.
    #[track_caller]
    fn assert_always(&mut self, rest: &str, answers: &[(&str, &str)]) {
        self.refresh();
        self.insert(rest);
        for (query, expected) in answers {
            self.assert(query, expected);
        }
        self.refresh();
        for (query, expected) in answers {
            self.assert(query, expected);
        }
    }
}

#[test]
fn windows_start_and_end_at_edges_of_buckets_and_say_so() {
    let mut demo = Demo::start();
    // On both sides of every edge, each time a device of its own.
    demo.insert(
        "SELECT t, 1, row_number() OVER (ORDER BY t), 1
           FROM unnest('{2024-03-02 23:59:59.999999Z, 2024-03-03 00:00Z, 2024-03-07 23:59:59.999999Z, 2024-03-08 00:00Z,
                         2024-03-10 11:59:59.999999Z, 2024-03-10 12:00Z, 2024-03-10 12:14:59.999999Z, 2024-03-10 12:15Z}'
                       ::timestamptz[]) AS t",
    );
    let rest = "SELECT t, 1, 8 + row_number() OVER (ORDER BY t), 1
           FROM unnest('{2024-03-10 12:29:59.999999Z, 2024-03-10 12:30Z, 2024-03-10 12:34:59.999999Z, 2024-03-10 12:35Z,
                         2024-03-10 12:59:59.999999Z, 2024-03-10 13:00Z}'::timestamptz[]) AS t";
    let quarter = "2024-03-10 12:15:00+00|2024-03-10 12:35:00+00|4|4|1";
    let half = "2024-03-10 12:00:00+00|2024-03-10 12:35:00+00|{6,7,8,9,10,11}";
    let week = "2024-03-03 00:00:00+00|2024-03-10 13:00:00+00|12|12|1";
    let days = "2024-03-08 00:00:00+00|2024-03-10 12:00:00+00|10";
    let mut answers = Vec::new();
    for at in ["12:30", "12:34:56", "12:34:59.999999"] {
        for raw in ["", "_from_raw"] {
            answers.extend([
                (format!("SELECT * FROM demo.q1{raw}('2024-03-10 {at}Z')"), quarter),
                (format!("SELECT * FROM demo.q2{raw}('2024-03-10 {at}Z')"), week),
                (format!("SELECT min(hour), max(hour), sum(events) FROM demo.q3{raw}('2024-03-10 {at}Z')"), days),
                (format!("SELECT * FROM demo.q4{raw}(1, '2024-03-10 {at}Z')"), quarter),
                (
                    format!(
                        "SELECT window_start, window_end, array_agg(device_id ORDER BY device_id) \
                         FROM demo.q5{raw}(1, '2024-03-10 {at}Z') GROUP BY 1, 2"
                    ),
                    half,
                ),
            ]);
        }
    }
    // The midnight of another zone.
    let tokyo = "2024-03-02 15:00:00+00|2024-03-10 13:00:00+00";
    answers.push((format!("SELECT window_start, window_end FROM demo.q2('{AS_OF}', 'Asia/Tokyo')"), tokyo));
    let answers: Vec<(&str, &str)> = answers.iter().map(|(query, expected)| (query.as_str(), *expected)).collect();
    demo.assert_always(rest, &answers);
}

#[test]
fn devices_and_sessions_keep_their_names_and_every_hour_has_a_row_in_order() {
    let mut demo = Demo::start();
    // Three devices and five sessions in an hour of yesterday, two and seven in one of today; a device that is not known is none.
    demo.insert("SELECT '2024-03-09 05:10Z', 1 + n % 2, nullif(n % 4, 0), n % 5 FROM generate_series(0, 19) AS n");
    let rest = "SELECT '2024-03-10 12:30Z', 1 + n % 2, 3 + n % 2, 3 + n % 7 FROM generate_series(0, 13) AS n";
    let hours: Vec<String> = (0..61)
        .map(|hour| {
            let counts = match hour {
                29 => "20|3|5",
                60 => "14|2|7",
                _ => "0|0|0",
            };
            format!("2024-03-{:02} {:02}:00:00+00|{counts}", 8 + hour / 24, hour % 24)
        })
        .collect();
    let trend = format!("SELECT hour, events, devices, sessions FROM demo.q3('{AS_OF}')");
    let week = format!("SELECT events, devices, sessions FROM demo.q2('{AS_OF}')");
    demo.assert_always(rest, &[(&trend, &hours.join("\n")), (&week, "34|4|10")]);
    // Without ORDER BY they might come in this order too.
    let plan = demo.ask(&format!("EXPLAIN (COSTS OFF) {trend}"));
    assert!(plan.contains("Sort Key: h.hour"), "{plan}");
    // Nothing at all.
    demo.assert("SELECT count(*), sum(events + devices + sessions) FROM demo.q3('2024-06-01 00:00Z')", "49|0");
    demo.assert("SELECT events, devices, sessions FROM demo.q2('2024-06-01 00:00Z')", "0|0|0");
}

#[test]
fn most_active_devices_of_half_an_hour_have_bounds_and_equal_ones_are_ordered_by_number() {
    let mut demo = Demo::start();
    // Device 300 is busiest. Twelve devices come twice, whose order as text is another one. Busier still, but not counted: a device
    // before and after the window, one of another tenant, and rows without a device.
    demo.insert(
        "SELECT t, tenant, device, 1
           FROM (VALUES ('2024-03-10 12:00Z'::timestamptz, 1, 300, 1), ('2024-03-10 12:20Z', 1, 300, 2),
                        ('2024-03-10 11:59:59Z', 1, 5, 50), ('2024-03-10 12:10Z', 2, 6, 50),
                        ('2024-03-10 12:10Z', 1, NULL, 50)) AS v (t, tenant, device, times),
                generate_series(1, times)
         UNION ALL
         SELECT '2024-03-10 12:05Z', 1, device, 1
           FROM unnest('{7, 8, 9, 10, 11, 80, 90, 100, 101, 110, 1000, 1001}'::int[]) AS device",
    );
    let rest = "SELECT t, 1, device, 1
           FROM (VALUES ('2024-03-10 12:31Z'::timestamptz, 300, 1), ('2024-03-10 12:35Z', 5, 50),
                        ('2024-03-10 12:31Z', 12, 1)) AS v (t, device, times),
                generate_series(1, times)
         UNION ALL
         SELECT '2024-03-10 12:32Z', 1, device, 1
           FROM unnest('{1001, 1000, 110, 101, 100, 90, 80, 11, 10, 9, 8, 7}'::int[]) AS device";
    let listed = ["300|4|4|4|t", "7|2|2|2|t", "8|2|2|2|t", "9|2|2|2|t", "10|2|2|2|t", "11|2|2|2|t"];
    let listed = [&listed[..], &["80|2|2|2|t", "90|2|2|2|t", "100|2|2|2|t", "101|2|2|2|t"]].concat();
    let exact: Vec<String> =
        listed.iter().map(|row| row.splitn(3, '|').take(2).collect::<Vec<_>>().join("|")).collect();
    let list = format!("SELECT device_id, events, lower, upper, certain FROM demo.q5(1, '{AS_OF}')");
    let raw = format!("SELECT device_id, events FROM demo.q5_from_raw(1, '{AS_OF}')");
    demo.assert_always(rest, &[(&list, &listed.join("\n")), (&raw, &exact.join("\n"))]);
    demo.assert(&list.replace("q5(1", "q5(2"), "6|50|50|50|t");
    demo.assert(&list.replace("q5(1", "q5(3"), "");
}

#[test]
fn distinct_counts_are_merged_and_not_added_up() {
    let mut demo = Demo::start();
    // The same 40 devices and 50 sessions in every bucket of more than a day.
    let visits = |from: &str, to: &str| {
        format!(
            "SELECT t, 1 + n % 2, n % 40, n % 50
               FROM generate_series('{from}'::timestamptz, '{to}', '5 minutes') AS t, generate_series(0, 199) AS n"
        )
    };
    demo.insert(&visits("2024-03-09 00:00Z", "2024-03-10 12:25Z"));
    let counts = |question: &str| {
        format!(
            "SELECT events, devices, sessions, pg_typeof(events), pg_typeof(devices), pg_typeof(sessions) \
             FROM demo.{question}"
        )
    };
    let types = "bigint|bigint|bigint";
    let [now, week, trend, tenant] = ["q1('AT')", "q2('AT')", "q3('AT') WHERE events > 0", "q4(2, 'AT')"]
        .map(|question| counts(&question.replace("AT", AS_OF)));
    let hours = [vec![format!("2400|40|50|{types}"); 36], vec![format!("1400|40|50|{types}")]].concat();
    demo.assert_always(
        &visits("2024-03-10 12:30Z", "2024-03-10 12:30Z"),
        &[
            (&now, &format!("800|40|50|{types}")),
            (&week, &format!("87800|40|50|{types}")),
            (&trend, &hours.join("\n")),
            (&tenant, &format!("400|20|25|{types}")),
        ],
    );
}

/// Asks for the plan of a query that it also runs, and gives the rows of all scans of tables whose names match: those that they
/// return, and those that they have looked at.
const ROWS_OF_SCANS: &str = "
    CREATE FUNCTION rows_of_scans(query text, tables text, OUT returned bigint, OUT looked_at bigint) LANGUAGE plpgsql AS $$
    DECLARE
      plan jsonb;
    BEGIN
      EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON) ' || query INTO plan;
      SELECT sum(loops * rows), sum(loops * (rows + filtered + rechecked)) INTO returned, looked_at
        FROM (SELECT (node ->> 'Actual Loops')::bigint AS loops, (node ->> 'Actual Rows')::bigint AS rows,
                     coalesce((node ->> 'Rows Removed by Filter')::bigint, 0) AS filtered,
                     coalesce((node ->> 'Rows Removed by Index Recheck')::bigint, 0) AS rechecked
                FROM jsonb_path_query(plan, 'strict $.**') AS node
               WHERE jsonb_typeof(node) = 'object' AND node ->> 'Relation Name' ~ tables) s;
    END $$";

#[test]
fn one_tenant_reads_its_own_groups_and_nobody_reads_rows_that_are_counted() {
    let mut demo = Demo::start();
    demo.session.batch_execute(ROWS_OF_SCANS).unwrap();
    demo.insert(
        "SELECT '2024-03-10 11:40Z'::timestamptz + n % 720 * interval '5 seconds', 1 + n % 49, n % 1000, n % 2000
           FROM generate_series(0, 29999) AS n",
    );
    demo.refresh();
    demo.session.batch_execute("ANALYZE").unwrap();
    let scans = |question: &str, tables: &str| {
        let question = question.replace("AT", AS_OF);
        format!("SELECT * FROM rows_of_scans($query$ SELECT * FROM demo.{question} $query$, '{tables}')")
    };
    let groups = |minutes: u32, tenants: &str| {
        format!(
            "SELECT count(*) FROM events_5min_stored WHERE {tenants} \
             AND bucket >= '2024-03-10 12:30Z'::timestamptz - interval '{minutes} minutes' AND bucket < '2024-03-10 12:35Z'"
        )
    };
    for (question, minutes) in [("q4(7, 'AT')", 15), ("q5(7, 'AT')", 30)] {
        let own = demo.ask(&groups(minutes, "customer_id = 7"));
        assert!(own.parse::<u32>().unwrap() > 0);
        assert_ne!(own, demo.ask(&groups(minutes, "true")));
        demo.assert(&scans(question, "^events_5min_stored$"), &format!("{own}|{own}"));
    }

    let questions = ["q1('AT')", "q2('AT')", "q3('AT')", "q4(7, 'AT')", "q5(7, 'AT')"];
    for question in questions {
        let returned = format!("SELECT returned FROM ({}) AS s", scans(question, "^events_p"));
        demo.assert(&returned, "0");
    }
    demo.insert("SELECT '2024-03-10 12:31Z', 6 + n, n, n FROM generate_series(0, 2) AS n");
    for question in questions {
        // The index on tags leads to ranges of pages.
        let few = format!("SELECT returned, looked_at < 30000 / 4 FROM ({}) AS s", scans(question, "^events_p"));
        demo.assert(&few, "3|t");
    }
}

#[test]
fn bounds_hold_for_skewed_streams_whatever_has_been_refreshed() {
    let mut demo = Demo::start();
    demo.session
        .batch_execute(
            "CREATE FUNCTION uniform(n int, seed bigint) RETURNS float8 LANGUAGE sql IMMUTABLE
               RETURN (hashint8extended(n, seed) & 1073741823) / 1073741824.0",
        )
        .unwrap();
    // Device n comes about 1 / n as often as the first: few devices, or many more than there are counters; or 1 / sqrt(n) as often.
    let distributions = ["exp(ln(60) * u)", "exp(ln(60000) * u)", "20000 * power(u, 2)"];
    let (mut exact, mut bounded, mut uncertain) = (false, false, false);
    // A tenant is a seed.
    for seed in 1..=6 {
        let device = distributions[seed % 3];
        for part in 0..4 {
            // Every eighth row has no device.
            demo.insert(&format!(
                "SELECT '2024-03-10 12:26Z'::timestamptz + uniform(n, -{seed}) * interval '10 minutes', {seed},
                        CASE WHEN n % 8 > 0 THEN floor({device}) END, n
                   FROM generate_series({part} * 3000, {part} * 3000 + 2999) AS n, uniform(n, {seed}) AS u"
            ));
            // Some parts stay pending, also two of them.
            let refreshed = (seed + part) % 4 < 2;
            if refreshed {
                demo.refresh();
            }
            let state = format!("seed {seed}, part {part}, refreshed: {refreshed}");
            let found = demo.ask(&format!(
                "WITH listed AS (SELECT * FROM demo.q5({seed}, '{AS_OF}')),
                      first AS (SELECT * FROM demo.q5_from_raw({seed}, '{AS_OF}')),
                      counted AS (SELECT device_id, count(*) AS true_count FROM events
                                   WHERE customer_id = {seed}
                                     AND event_time >= '2024-03-10 12:00Z' AND event_time < '2024-03-10 12:35Z'
                                   GROUP BY 1),
                      compared AS (SELECT l.*, coalesce(c.true_count, 0) AS true_count
                                     FROM listed l LEFT JOIN counted c USING (device_id))
                 SELECT (SELECT count(*) FROM compared WHERE true_count NOT BETWEEN lower AND upper),
                        (SELECT count(*) FROM listed l JOIN first f USING (device_id)
                          WHERE f.events NOT BETWEEN l.lower AND l.upper),
                        (SELECT count(*) FROM compared WHERE certain AND true_count < (SELECT min(events) FROM first)),
                        -- Who is missing from a list of certain devices has no more events than any of them.
                        (SELECT count(*) FROM first WHERE device_id NOT IN (SELECT device_id FROM listed)
                                                      AND events > (SELECT min(lower) FROM listed HAVING bool_and(certain))),
                        (SELECT count(*) FROM listed)"
            ));
            assert_eq!(found, "0|0|0|0|10", "{state}");
            let kinds =
                demo.ask(&format!("SELECT bool_and(lower = upper), bool_and(certain) FROM demo.q5({seed}, '{AS_OF}')"));
            let (is_exact, is_certain) = kinds.split_once('|').unwrap();
            exact |= is_exact == "t";
            bounded |= is_exact == "f";
            uncertain |= is_certain == "f";
        }
    }
    assert!(exact && bounded && uncertain, "some lists are exact, some have bounds, some are uncertain");
}

#[test]
fn report_finds_nothing_unequal_but_what_only_a_loader_can_have_counted() {
    let mut demo = Demo::start();
    let visits = |from: u32, to: u32| {
        format!(
            "SELECT now() - interval '2 hours' + n * interval '1 second', 1 + n % 5, nullif(n % 1500, 0), n % 700
               FROM generate_series({from}, {to}) AS n"
        )
    };
    demo.insert(&visits(0, 5_999));
    demo.refresh();
    demo.insert(&visits(6_000, 6_999));
    let mut psql = demo.database.psql_command();
    psql.args([
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        "--set",
        "messages=7000",
        "--set",
        "truth=",
        "--set",
        "tolerance=12",
    ]);
    let output = feed(&mut psql, include_str!("../demo/report.sql"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    demo.assert(
        "SELECT \"check\" FROM demo.checks WHERE NOT ok ORDER BY number",
        "messages in the topic = rows + dead letters\nrows that the loader counted = rows in the table",
    );
    demo.assert("SELECT count(*) FROM demo.checks WHERE \"check\" LIKE 'Q5: %'", "3");
}
