//! What late rows cost: an INSERT of one row of each of 1,000 devices, spread over a year of 5-minute buckets and its 365
//! partitions, all but the last days of them sealed, and the tick over these rows; against as many rows of the current bucket.

use std::time::Duration;

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use crate::reference::{create_events, fill_events};
use crate::report::{Goal, Report, Samples, time};

const DAYS: u32 = 365;
const DEVICES: u32 = 1_000;
const PER_DEVICE: &str = "
    SELECT date_bin('5 minutes', event_time, '2000-01-01Z') AS bucket, device_id,
           count(*) AS events, sum(session_id) AS total, max(event_time) AS last_seen
    FROM events GROUP BY 1, 2";

/// Each device's row at a time of its own, or in the last 5 minutes of the year.
const LATE: &str =
    "timestamptz '2025-01-01 00:00:00Z' + abs(hashint8extended(device, round)) % 31536000 * interval '1 second'";
const CURRENT: &str = "timestamptz '2025-12-31 23:55:00Z' + device % 300 * interval '1 second'";

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let rows = rows * 5;
    let database = cluster.database();
    let mut session = database.connect();
    create_events(&mut session, DAYS);
    // Without rollup, so that the rows are built and not ticked, as those of a year would have been.
    fill_events(&mut session, rows, DAYS);
    session.batch_execute("SET tally.build_rows = 1000000000").unwrap();
    session.execute("SELECT tally.create_rollup('per_device', $1)", &[&PER_DEVICE]).unwrap();
    let seal = "CALL tally.seal_partitions('events', '2025-12-29Z')";
    for statement in [seal, "CALL tally.refresh('per_device')", "VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"] {
        session.batch_execute(statement).unwrap();
    }
    let mut round = 0;
    let mut read = [vec![], vec![]];
    let mut written = [vec![], vec![]];
    let [current, late] = report.interleave([("current", (0, CURRENT)), ("late", (1, LATE))], |(position, at)| {
        round += 1;
        written[*position].push(insert(&mut session, at, round));
        let (taken, rows) = refresh(&mut session);
        read[*position].push(rows);
        taken
    });
    let [inserted_current, inserted_late] = written;
    let what = format!("INSERT of {DEVICES} such late rows, against {DEVICES} rows of the current bucket");
    report.add(&what, &Samples::new(inserted_current), &Samples::new(inserted_late), Goal::Times);
    let what = format!(
        "tick over {DEVICES} late rows all over a year of {rows} rows in {DAYS} partitions, against {DEVICES} rows of the current bucket"
    );
    report.add(&what, &current, &late, Goal::Times);
    let [current, late] = read.map(|mut rows| {
        rows.sort_unstable();
        rows[rows.len() / 2].to_string()
    });
    report.add_count("rows of the table that such a tick reads, not milliseconds", &current, &late);
}

fn insert(session: &mut Client, at: &str, round: i64) -> Duration {
    let insert = format!(
        "INSERT INTO events (event_time, customer_id, event_type, device_id, session_id)
         SELECT {at}, 1, 'click', device, device FROM generate_series(1, {DEVICES}) AS device, (VALUES ({round})) AS r (round)"
    );
    time(|| session.batch_execute(&insert).unwrap())
}

fn refresh(session: &mut Client) -> (Duration, i64) {
    session.batch_execute("CHECKPOINT").unwrap();
    let before = rows_read(session);
    let taken = time(|| session.batch_execute("CALL tally.refresh('per_device')").unwrap());
    (taken, rows_read(session) - before)
}

/// Rows of the table that scans have fetched so far, whether or not they were what the scan looked for.
fn rows_read(session: &mut Client) -> i64 {
    session.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
    session.batch_execute("SELECT pg_stat_clear_snapshot()").unwrap();
    let query = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables WHERE relname LIKE 'events\\_%'";
    session.query_one(query, &[]).unwrap().get(0)
}
