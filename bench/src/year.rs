//! What a rollup saves whoever looks back: a year by month from hourly rollups, against the same from raw rows. All partitions but
//! those of the last nine days are sealed.

use tally_server_tests::cluster::Cluster;

use crate::reference::{PER_HOUR, create_events, fill_events};
use crate::report::{Goal, Report, time};

const DAYS: u32 = 365;

/// Groups of an hour and event type: 35,040 a year, however many rows there are.
const TYPES_PER_HOUR: &str = "
    SELECT date_trunc('hour', event_time, 'UTC') AS bucket, event_type,
           count(*) AS events, tally.hll_agg(device_id) AS devices, tally.hll_agg(session_id) AS sessions
    FROM events GROUP BY 1, 2";

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let rows = rows * 10;
    let database = cluster.database();
    let mut session = database.connect();
    create_events(&mut session, DAYS);
    fill_events(&mut session, rows, DAYS);
    session.batch_execute("SET tally.build_rows = 1000000000").unwrap();
    let rollups = [("types_per_hour", TYPES_PER_HOUR), ("per_hour", PER_HOUR)];
    for (name, definition) in rollups {
        session.execute("SELECT tally.create_rollup($1, $2)", &[&name, &definition]).unwrap();
    }
    let seal = "CALL tally.seal_partitions('events', '2025-12-23Z')";
    for statement in [seal, "CALL tally.refresh('per_hour')", "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"] {
        session.batch_execute(statement).unwrap();
    }

    let month = |time: &str| format!("SELECT date_trunc('month', {time}, 'UTC') AS month, event_type");
    let by_month = "GROUP BY 1, 2 ORDER BY 1, 2";
    for (what, of_rows, of_groups) in [
        ("events", "count(*)", "sum(events)"),
        (
            "events, devices and sessions",
            "count(*), count(DISTINCT device_id), count(DISTINCT session_id)",
            "sum(events), tally.hll_count(tally.hll_union_agg(devices)), tally.hll_count(tally.hll_union_agg(sessions))",
        ),
    ] {
        let from = |time: &str, aggregates: &str, relation: &str| {
            format!("{}, {aggregates} FROM {relation} {by_month}", month(time))
        };
        let contenders = [
            ("raw", from("event_time", of_rows, "events")),
            (rollups[0].0, from("bucket", of_groups, rollups[0].0)),
            (rollups[1].0, from("bucket", of_groups, rollups[1].0)),
        ];
        let [raw, types, all] = report.interleave(contenders, |query| time(|| session.batch_execute(query).unwrap()));
        for ((name, _), rollup) in rollups.iter().zip([types, all]) {
            let groups: i64 = session.query_one(&format!("SELECT count(*) FROM {name}_stored"), &[]).unwrap().get(0);
            let what = format!("a year of {rows} rows: {what} by month and type, raw against {groups} hourly groups");
            report.add(&what, &raw, &rollup, Goal::FasterAtLeast(100.0));
        }
    }
}
