//! What partitions cost when nothing happens: a tick that finds nothing new, and a read with nothing pending, of a table with 1,000
//! partitions, in a session that has done the same before.

use std::time::Duration;

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{PER_HOUR, create_events, fill_events};
use crate::report::{Goal, Report, time};

const PARTITIONS: u32 = 1_000;
/// The newest ones are not sealed: today's, yesterday's, and a week of premade ones.
const HOT: u32 = 9;
/// A sample is the mean of so many calls.
const CALLS: u32 = 20;
/// The last of the days, by hour.
const LAST_DAY: &str = "WHERE bucket >= '2027-09-26 00:00:00Z' GROUP BY bucket ORDER BY bucket";
/// Rows of the last day that are not refreshed.
const PENDING_EVENTS: &str = "
    INSERT INTO events (event_time, customer_id, event_type, country, browser, device_id, session_id)
    SELECT timestamptz '2027-09-27 00:00:00Z' + i % 1440 * interval '1 minute', 1 + i % 1000,
           (ARRAY['click', 'buy', 'scroll', 'download'])[1 + i % 4],
           (ARRAY['United States', 'United Kingdom', 'India', 'France', 'Germany', 'China', 'China'])[1 + i % 7],
           (ARRAY['chrome', 'firefox', 'safari', 'opera'])[1 + i / 4 % 4], i % 10007, i % 99991
    FROM generate_series(1, 100000) AS i";
/// The rows of that statement, but for the rows that were there before.
const PENDING_ROWS: &str = "FROM (SELECT * FROM events_1000 ORDER BY tally_tag DESC LIMIT 100000) AS events";
const ONE_GROUP: &str = "AND event_type = 'click' AND country = 'India' AND browser = 'chrome' GROUP BY";

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let databases = [1, PARTITIONS].map(|partitions| {
        let database = cluster.database();
        prepare(&database, partitions, rows);
        database
    });
    let mut sessions: Vec<Client> = databases.iter().map(Database::connect).collect();
    let [one, many] = report.interleave([("1 partition", 0), ("1,000 partitions", 1)], |position| {
        mean(&mut sessions[*position], "CALL tally.refresh('per_hour')")
    });
    let what = format!("tick that finds nothing new, {PARTITIONS} partitions; beside it with 1 partition");
    report.add(&what, &one, &many, Goal::MillisecondsAtMost(2.0));

    let session = &mut sessions[1];
    let query = |relation: &str| format!("SELECT bucket, sum(events) FROM {relation} {LAST_DAY}");
    let contenders = [("stored", query("per_hour_stored")), ("view", query("per_hour"))];
    let [stored, view] = report.interleave(contenders, |query| mean(session, query));
    let what = format!("read of a day with nothing pending, {PARTITIONS} partitions; stored table against view");
    report.add(&what, &stored, &view, Goal::MillisecondsAbove(1.0));

    for relation in ["per_hour_stored", "per_hour"] {
        session.batch_execute(&format!("PREPARE {relation}_day AS {}", query(relation))).unwrap();
    }
    session.batch_execute("SET plan_cache_mode = force_generic_plan").unwrap();
    let contenders = [("stored", "EXECUTE per_hour_stored_day"), ("view", "EXECUTE per_hour_day")];
    let [stored, view] = report.interleave(contenders, |query| mean(session, query));
    report.add("the same, prepared and planned once", &stored, &view, Goal::MillisecondsAbove(1.0));

    // Reading changes nothing, so they stay pending.
    session.batch_execute(&format!("RESET plan_cache_mode; {PENDING_EVENTS}; ANALYZE events")).unwrap();
    let aggregate = format!("SELECT count(*) FROM ({PER_HOUR}) AS groups").replace("FROM events", PENDING_ROWS);
    let contenders = [
        ("stored", query("per_hour_stored")),
        ("view", query("per_hour")),
        ("one", query("per_hour").replace("GROUP BY", ONE_GROUP)),
        ("rows", aggregate),
    ];
    let [stored, view, one, rows] = report.interleave(contenders, |query| mean(session, query));
    let what = "read of a day with 100,000 rows pending; stored table against view";
    report.add(what, &stored, &view, Goal::MillisecondsAbove(10.0));
    report.add("the same of one event type, country and browser", &stored, &one, Goal::MillisecondsAbove(10.0));
    report.add("for comparison: the groups of these rows alone", &stored, &rows, Goal::Times);
}

fn prepare(database: &Database, partitions: u32, rows: u32) {
    let mut session = database.connect();
    create_events(&mut session, partitions);
    session.execute("SELECT tally.create_rollup('per_hour', $1)", &[&PER_HOUR]).unwrap();
    fill_events(&mut session, rows, partitions);
    session.batch_execute("CALL tally.refresh('per_hour')").unwrap();
    if partitions > HOT {
        let seal = format!(
            "CALL tally.seal_partitions('events', '2025-01-01Z'::timestamptz + interval '{} days')",
            partitions - HOT
        );
        session.batch_execute(&seal).unwrap();
        session.batch_execute("CALL tally.refresh('per_hour')").unwrap();
    }
    for statement in ["VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"] {
        session.batch_execute(statement).unwrap();
    }
}

fn mean(session: &mut Client, statement: &str) -> Duration {
    time(|| (0..CALLS).for_each(|_| session.batch_execute(statement).unwrap())) / CALLS
}
