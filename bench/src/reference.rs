//! The reference events: independent, uniform fields, the worst case for a rollup. Equal from run to run.

use std::path::{Path, PathBuf};

use postgres::Client;
use tally_server_tests::cluster::Database;

pub const COLUMNS: &str = "event_time, customer_id, event_type, country, browser, device_id, session_id";

/// Groups of 5 minutes, tenant and every dimension: with reference events nearly every row is a group of its own.
pub const PER_5_MINUTES: &str = "
    SELECT date_bin('5 minutes', event_time, '2000-01-01Z') AS bucket, customer_id, event_type, country, browser,
           count(*) AS events, tally.hll_agg(device_id) AS devices, tally.hll_agg(session_id) AS sessions
    FROM events GROUP BY 1, 2, 3, 4, 5";

/// Groups of an hour over all tenants: 2,304 a day.
pub const PER_HOUR: &str = "
    SELECT date_trunc('hour', event_time, 'UTC') AS bucket, event_type, country, browser,
           count(*) AS events, tally.hll_agg(device_id) AS devices, tally.hll_agg(session_id) AS sessions
    FROM events GROUP BY 1, 2, 3, 4";

/// Counts and sums per hour, tenant and event type: 96,000 groups a day.
pub const COUNTS_AND_SUMS: &str = "
    SELECT date_trunc('hour', event_time, 'UTC') AS bucket, customer_id, event_type,
           count(*) AS events, count(device_id) AS with_device, sum(session_id) AS total
    FROM events GROUP BY 1, 2, 3";

/// An empty table `events` with one partition per day of the reference events.
pub fn create_events(session: &mut Client, days: u32) {
    let sql = format!(
        "CREATE TABLE events (
            event_id bigserial, event_time timestamptz NOT NULL, customer_id bigint NOT NULL,
            event_type text, country text, browser text, device_id bigint, session_id bigint
        ) PARTITION BY RANGE (event_time);
        DO $$
        DECLARE
          midnight timestamptz := '2025-01-01 00:00:00Z';
        BEGIN
          FOR day IN 1..{days} LOOP
            EXECUTE format('CREATE TABLE events_%s PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
                           day, midnight, midnight + interval '24 hours');
            midnight := midnight + interval '24 hours';
          END LOOP;
        END $$"
    );
    session.batch_execute(&sql).unwrap();
}

/// Fills `events` with `rows` reference events, spread evenly over the days and in the order of time.
pub fn fill_events(session: &mut Client, rows: u32, days: u32) {
    let sql = format!(
        "INSERT INTO events ({COLUMNS})
         SELECT timestamptz '2025-01-01 00:00:00Z' + i * (interval '{days} days' / {rows}), 1 + pick(i, 1, 1000),
                (ARRAY['click', 'buy', 'scroll', 'download'])[1 + pick(i, 2, 4)],
                (ARRAY['United States', 'United Kingdom', 'India', 'France', 'Germany', 'China', 'China'])[1 + pick(i, 3, 7)],
                (ARRAY['chrome', 'firefox', 'safari', 'opera'])[1 + pick(i, 4, 4)],
                1 + pick(i, 5, 10000), 1 + pick(i, 6, 100000)
         FROM generate_series(0, {rows} - 1) AS i"
    );
    session
        .batch_execute(
            "CREATE FUNCTION pick(i int, field int, choices int) RETURNS int LANGUAGE sql IMMUTABLE
             RETURN abs(hashint8extended(i, field) % choices)",
        )
        .unwrap();
    session.batch_execute(&sql).unwrap();
    session.batch_execute("DROP FUNCTION pick").unwrap();
}

/// A file with the reference events in the binary format of COPY, which the server can read.
pub fn binary_file(database: &Database, folder: &Path, rows: u32) -> PathBuf {
    let file = folder.join("events.copy");
    let mut session = database.connect();
    create_events(&mut session, 1);
    fill_events(&mut session, rows, 1);
    let copy = format!("COPY (SELECT {COLUMNS} FROM events ORDER BY event_id) TO '{}' (FORMAT binary)", file.display());
    session.batch_execute(&copy).unwrap();
    session.batch_execute("DROP TABLE events").unwrap();
    file
}

/// Reads that file by the server itself, so that no client is part of the time.
pub fn copy_from(session: &mut Client, file: &Path) {
    session.batch_execute(&format!("COPY events ({COLUMNS}) FROM '{}' (FORMAT binary)", file.display())).unwrap();
}
