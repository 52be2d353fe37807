//! Bounds in every time zone from 1970 to 2100, as `tally.plan_ensure_partitions` would make them, against PostgreSQL's own clock: no gap,
//! no overlap, no name twice, and each bound the first instant of its date. `TALLY_TEST_ZONES=all` (`make zones`) takes every zone, and
//! every day in it; without it some zones are chosen by a seed, which is printed, and windows around changes of their clocks.

use std::env;

use postgres::Client;
use tally_server_tests::cluster;

use super::{number, strings};

/// Zones whose clocks do what others do not: midnights that are missing or come twice, a missing day, half hours, changes in most years.
const ODD: [&str; 6] =
    ["Africa/Cairo", "America/Havana", "Pacific/Apia", "Australia/Lord_Howe", "Africa/Casablanca", "Europe/Berlin"];
const CHOSEN: usize = 2;

const WIDTHS: [&str; 8] = ["15 minutes", "1 hour", "6 hours", "1 day", "7 days", "1 month", "3 months", "1 year"];

const TAKE: &str = "
    INSERT INTO bounds SELECT object, m[1]::timestamptz, m[2]::timestamptz
      FROM tally.plan_ensure_partitions('zoned', $1::text::timestamptz, $2::text::timestamptz),
           regexp_match(sql, $$FROM \\('([^']*)'\\) TO \\('([^']*)'\\)$$) AS m
     WHERE action = 'attach' ON CONFLICT DO NOTHING";

/// The bounds that something is wrong with, by another way than tally's: the local time of the bound, of the microsecond before it, and of
/// every quarter of an hour in the day before it.
const WRONG: &str = "
    WITH bound AS (
        SELECT *, (lower AT TIME ZONE $1::text)::date AS starts, (upper AT TIME ZONE $1::text)::date AS ends,
               lead(lower) OVER (ORDER BY lower) AS following, count(*) OVER (PARTITION BY name) AS namesakes
          FROM bounds)
    SELECT concat_ws(' ', why, name, lower AT TIME ZONE 'UTC', upper AT TIME ZONE 'UTC') FROM (
        SELECT CASE
            WHEN lower >= upper THEN 'empty'
            WHEN namesakes > 1 THEN 'a name twice'
            WHEN following <> upper THEN 'gap or overlap'
            WHEN $2::text::interval < '1 day' THEN CASE
                WHEN upper - lower <> $2::text::interval THEN 'not as long as its width'
                WHEN extract(epoch FROM lower - (SELECT min(t) FROM generate_series('1999-12-30 00:00+00'::timestamptz, '2000-01-02 00:00+00',
                         '1 minute') AS t WHERE (t AT TIME ZONE $1::text)::date = '2000-01-01'))::bigint
                     % extract(epoch FROM $2::text::interval)::bigint <> 0 THEN 'off the grid' END
            WHEN ((lower - '1 us'::interval) AT TIME ZONE $1::text)::date >= starts THEN 'not the first instant'
            WHEN EXISTS (SELECT FROM generate_series(lower - '26 hours'::interval, lower - '1 us'::interval, '15 minutes') AS t
                          WHERE (t AT TIME ZONE $1::text)::date >= starts) THEN 'its date was before'
            WHEN ends <> (starts + $2::text::interval)::date
                 AND NOT ($2::text::interval = '1 day' AND ends = starts + 2 AND NOT EXISTS (
                     SELECT FROM generate_series(lower, upper, '15 minutes') AS t WHERE (t AT TIME ZONE $1::text)::date = starts + 1))
                THEN 'ends on another date'
            WHEN starts <> date_trunc(CASE $2::text WHEN '7 days' THEN 'week' WHEN '1 day' THEN 'day' WHEN '1 month' THEN 'month'
                                               WHEN '3 months' THEN 'quarter' ELSE 'year' END, starts::timestamp)::date THEN 'off the calendar'
            END AS why, * FROM bound) AS b
    WHERE why IS NOT NULL LIMIT 5";

/// Days at which the clock of a zone changes.
const CHANGES: &str = "
    SELECT day::date::text FROM (
        SELECT day, ahead, lag(ahead) OVER (ORDER BY day) AS before
          FROM generate_series('1970-01-01 00:00+00'::timestamptz, '2099-12-01 00:00+00', '1 day') AS day,
               LATERAL (SELECT (day AT TIME ZONE $1::text) - (day AT TIME ZONE 'UTC')) AS offset_of (ahead)) AS d
    WHERE ahead <> before ORDER BY day";

#[test]
fn bounds_of_every_zone_are_those_of_its_calendar() {
    let all = env::var("TALLY_TEST_ZONES").is_ok_and(|zones| zones == "all");
    let seed: u32 = env::var("TALLY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(std::process::id());
    eprintln!("TALLY_TEST_SEED={seed}");
    let database = cluster::database();
    let mut session = database.connect();
    let zones = "SELECT name FROM pg_timezone_names WHERE name !~ '^(posix|right)/|^(localtime|Factory|posixrules)$'";
    let zones = match all {
        true => strings(&mut session, &format!("{zones} ORDER BY name")),
        false => {
            let chosen = format!("{zones} ORDER BY hashtextextended(name, {seed}) LIMIT {CHOSEN}");
            let odd = ODD.map(str::to_owned);
            odd.into_iter().chain(strings(&mut session, &chosen)).collect()
        }
    };
    session
        .batch_execute(
            "CREATE TEMPORARY TABLE bounds (name text, lower timestamptz, upper timestamptz, PRIMARY KEY (lower, upper))",
        )
        .unwrap();
    let mut compared = 0;
    for (zone, number) in zones.iter().zip(1..) {
        // Without partitions a window is planned for itself, not with all that is between it and them.
        session
            .batch_execute(&format!(
                "CREATE TABLE zoned (at timestamptz NOT NULL) PARTITION BY RANGE (at);
                 BEGIN;
                 SELECT tally.partition_by_time('zoned', '1 year', time_zone => '{zone}');
                 SELECT tally.pause_job(job_id) FROM tally.jobs;
                 COMMIT;
                 DO $$ DECLARE made regclass; BEGIN
                   FOR made IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'zoned'::regclass LOOP
                     EXECUTE format('DROP TABLE %s', made);
                   END LOOP; END $$"
            ))
            .unwrap();
        for width in WIDTHS {
            compared += check(&mut session, zone, width, all, seed);
        }
        session.batch_execute("DROP TABLE zoned").unwrap();
        if all {
            eprintln!("{number} of {} zones, {compared} bounds", zones.len());
        }
    }
    assert!(compared > 20_000, "{compared} bounds");
}

/// How many bounds were compared.
fn check(session: &mut Client, zone: &str, width: &str, all: bool, seed: u32) -> i64 {
    session.query(&format!("SELECT tally.set_partition_width('zoned', '{width}')"), &[]).unwrap();
    let mut compared = 0;
    // Each window is contiguous in itself.
    for windows in windows(session, zone, width, all, seed) {
        session.batch_execute("TRUNCATE bounds").unwrap();
        for (from, to) in windows {
            session.execute(TAKE, &[&from, &to]).unwrap();
        }
        let wrong = session.query(WRONG, &[&zone, &width]).unwrap();
        let wrong: Vec<String> = wrong.iter().map(|row| row.get(0)).collect();
        assert!(wrong.is_empty(), "{zone}, {width}: {wrong:#?}");
        compared += number(session, "SELECT count(*) FROM bounds");
    }
    compared
}

type Window = (String, String);

/// Windows that touch, of at most 1,000 partitions each; of short widths around the changes of the clock only.
fn windows(session: &mut Client, zone: &str, width: &str, all: bool, seed: u32) -> Vec<Vec<Window>> {
    let days = match width {
        "15 minutes" => 2,
        "1 hour" => 6,
        "6 hours" | "1 day" | "7 days" if !all => 40,
        "6 hours" => 40,
        // The years of all others.
        "1 day" => 2 * 365,
        _ => 15 * 365,
    };
    let is_whole = days > 100;
    if is_whole {
        let query = format!(
            "SELECT day::date::text, least(day + '{days} days', '2100-01-01')::date::text
               FROM generate_series('1970-01-01'::timestamp, '2099-12-31', '{days} days') AS day"
        );
        return vec![session.query(&query, &[]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()];
    }
    let changes: Vec<String> = session.query(CHANGES, &[&zone]).unwrap().iter().map(|row| row.get(0)).collect();
    let few = if all { changes.len() } else { 2 };
    let start = seed as usize % changes.len().max(1);
    let chosen = changes.iter().cycle().skip(start).take(few.min(changes.len()));
    chosen
        .map(|day| {
            let query = format!("SELECT (d - {0})::text, (d + {0})::text FROM CAST('{day}' AS date) AS d", days / 2);
            let row = session.query_one(&query, &[]).unwrap();
            vec![(row.get(0), row.get(1))]
        })
        .collect()
}
