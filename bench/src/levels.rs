//! What many rollups cost: one tick over new rows into 10 rollups of 5 minutes with an hourly and a daily one above each, against
//! one tick of the same rows into a single rollup.

use std::path::Path;
use std::time::Duration;

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{binary_file, copy_from, create_events};
use crate::report::{Goal, Report, time};

/// What a dashboard of many tenants asks: each tenant's own figures, and those of the whole by its dimensions. The first is the one
/// that is measured alone.
const ROLLUPS: &[(&str, &str, &[Column])] = &[
    ("tenant", "customer_id", &[EVENTS, PURCHASES, ("total", "sum(session_id)")]),
    ("total", "", &[EVENTS, DEVICES, SESSIONS]),
    ("type", "event_type", &[EVENTS, DEVICES]),
    ("country", "country", &[EVENTS, DEVICES]),
    ("browser", "browser", &[EVENTS, SESSIONS]),
    ("type_country", "event_type, country", &[EVENTS, PURCHASES]),
    ("country_browser", "country, browser", &[EVENTS, DEVICES]),
    ("tenant_type", "customer_id, event_type", &[EVENTS, ("with_device", "count(device_id)")]),
    ("tenant_country", "customer_id, country", &[EVENTS, PURCHASES]),
    ("tenant_devices", "customer_id", &[DEVICES]),
];
/// A name and the aggregate over rows.
type Column = (&'static str, &'static str);
const EVENTS: Column = ("events", "count(*)");
const PURCHASES: Column = ("purchases", "count(*) FILTER (WHERE event_type = 'buy')");
const DEVICES: Column = ("devices", "tally.hll_agg(device_id)");
const SESSIONS: Column = ("sessions", "tally.hll_agg(session_id)");

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let file = binary_file(&database, folder.path(), rows);
    let contenders = [("1 rollup", (1, 1)), ("10 rollups", (10, 1)), ("10 rollups x 3 levels", (10, 3))];
    let [one, ten, thirty] =
        report.interleave(contenders, |(rollups, levels)| refresh(&database, &file, *rollups, *levels));
    let what = format!("tick over {rows} new rows into 10 rollups x 3 levels, against 1 rollup");
    report.add(&what, &one, &thirty, Goal::TimesAtMost(2.5));
    report.add("for comparison: 10 rollups without levels above, against 1 rollup", &one, &ten, Goal::Times);
    report.add("for comparison: 3 levels of 10 rollups, against 1 level of them", &ten, &thirty, Goal::Times);
}

fn refresh(database: &Database, file: &Path, rollups: usize, levels: usize) -> Duration {
    let mut session = database.connect();
    create_events(&mut session, 1);
    let names = create(&mut session, rollups, levels);
    copy_from(&mut session, file);
    session.batch_execute("ANALYZE events; CHECKPOINT").unwrap();
    let taken = time(|| session.batch_execute(&format!("CALL tally.refresh('{}')", names[0])).unwrap());
    for name in names.iter().rev() {
        session.execute("SELECT tally.drop_rollup($1::text::regclass)", &[name]).unwrap();
    }
    session.batch_execute("DROP TABLE events").unwrap();
    taken
}

/// The rollups in the order of their making: a level is below those that come after it.
fn create(session: &mut Client, rollups: usize, levels: usize) -> Vec<String> {
    let mut names = vec![];
    for (name, keys, columns) in &ROLLUPS[..rollups] {
        let mut below = "events".to_owned();
        let all_levels = [
            ("5min", "date_bin('5 minutes', event_time, '2000-01-01Z')"),
            ("1h", "date_trunc('hour', bucket, 'UTC')"),
            ("1d", "date_trunc('day', bucket, 'UTC')"),
        ];
        for (level, (suffix, bucket)) in all_levels.iter().take(levels).enumerate() {
            let keys = if keys.is_empty() { String::new() } else { format!(", {keys}") };
            let columns: String = columns
                .iter()
                .map(|(column, aggregate)| match level {
                    0 => format!(", {aggregate} AS {column}"),
                    _ if aggregate.contains("hll") => format!(", tally.hll_union_agg({column}) AS {column}"),
                    _ => format!(", sum({column}) AS {column}"),
                })
                .collect();
            let definition = format!("SELECT {bucket} AS bucket{keys}{columns} FROM {below} GROUP BY {bucket}{keys}");
            below = format!("{name}_{suffix}");
            session.execute("SELECT tally.create_rollup($1, $2)", &[&below, &definition]).unwrap();
            names.push(below.clone());
        }
    }
    names
}
