//! Bounds in every time zone from 1970 to 2100, as `tally.plan_ensure_partitions` would make them, against PostgreSQL's own clock: no gap,
//! no overlap, no name twice, and each bound the first instant of its date. `TALLY_TEST_ZONES=.` (`make zones`) takes every zone whose name
//! matches, and every day in it; without it some zones are chosen by a seed, which is printed, and windows around changes of their clocks.

use std::env;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::thread;

use postgres::Client;
use tally_server_tests::cluster;

use super::{number, strings};

/// Zones whose clocks do what others do not: midnights that are missing or come twice, a missing day, half hours, changes in most years.
const ODD: [&str; 6] =
    ["Africa/Cairo", "America/Havana", "Pacific/Apia", "Australia/Lord_Howe", "Africa/Casablanca", "Europe/Berlin"];
const CHOSEN: usize = 2;

const WIDTHS: [&str; 8] = ["15 minutes", "1 hour", "6 hours", "1 day", "7 days", "1 month", "3 months", "1 year"];

/// Windows of one number touch, and their bounds are to be without a gap.
const TAKE: &str = "
    INSERT INTO bounds SELECT number, object, m[1]::timestamptz, m[2]::timestamptz
      FROM unnest($1::bigint[], $2::text[], $3::text[]) AS wanted (number, starts, ends),
           tally.plan_ensure_partitions('zoned', starts::timestamptz, ends::timestamptz),
           regexp_match(sql, $$FROM \\('([^']*)'\\) TO \\('([^']*)'\\)$$) AS m
     WHERE action = 'attach' ON CONFLICT DO NOTHING";

/// The bounds that something is wrong with, by another way than tally's: the local time of the bound, of the microsecond before it, and of
/// every quarter of an hour in the day before it.
const WRONG: &str = "
    WITH bound AS (
        SELECT *, (lower AT TIME ZONE $1::text)::date AS starts, (upper AT TIME ZONE $1::text)::date AS ends,
               lead(lower) OVER (PARTITION BY number ORDER BY lower) AS following,
               min(lower) OVER (PARTITION BY name) AS first_lower, min(upper) OVER (PARTITION BY name) AS first_upper
          FROM bounds)
    SELECT concat_ws(' ', why, name, lower AT TIME ZONE 'UTC', upper AT TIME ZONE 'UTC') FROM (
        SELECT CASE
            WHEN lower >= upper THEN 'empty'
            WHEN lower <> first_lower OR upper <> first_upper THEN 'a name twice'
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
    let pattern = env::var("TALLY_TEST_ZONES").ok();
    let seed: u32 = env::var("TALLY_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(std::process::id());
    eprintln!("TALLY_TEST_SEED={seed}");
    let database = cluster::database();
    let mut session = database.connect();
    // The last four are refused.
    let zones = "SELECT name FROM pg_timezone_names
                  WHERE name !~ '^(posix|right)/|^(localtime|Factory|posixrules|CET|EET|MET|WET)$'";
    let all = pattern.is_some();
    let zones = match pattern {
        Some(pattern) => strings(&mut session, &format!("{zones} AND name ~ '{pattern}' ORDER BY name")),
        None => {
            let chosen = format!("{zones} ORDER BY hashtextextended(name, {seed}) LIMIT {CHOSEN}");
            let odd = ODD.map(str::to_owned);
            odd.into_iter().chain(strings(&mut session, &chosen)).collect()
        }
    };
    let (next, compared) = (AtomicUsize::new(0), AtomicI64::new(0));
    let work = || {
        let database = cluster::database();
        while let Some(zone) = zones.get(next.fetch_add(1, Relaxed)) {
            // A session for each, because PostgreSQL remembers all the names that it has not found.
            compared.fetch_add(check_zone(&mut database.connect(), zone, all, seed), Relaxed);
            if all {
                eprintln!("{zone}: {} of {} zones, {compared:?} bounds", next.load(Relaxed), zones.len());
            }
        }
    };
    let workers = if all { thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let compared = compared.into_inner();
    assert!(compared > 20_000, "{compared} bounds");
}

/// How many bounds were compared.
fn check_zone(session: &mut Client, zone: &str, all: bool, seed: u32) -> i64 {
    // Without partitions a window is planned for itself, not with all that is between it and them.
    session
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS zoned;
             CREATE TABLE zoned (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             BEGIN;
             SELECT tally.partition_by_time('zoned', '1 year', time_zone => '{zone}');
             SELECT tally.pause_job(job_id) FROM tally.jobs;
             COMMIT;
             DO $$ DECLARE made regclass; BEGIN
               FOR made IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'zoned'::regclass LOOP
                 EXECUTE format('DROP TABLE %s', made);
               END LOOP; END $$;
             CREATE TEMPORARY TABLE bounds
                 (number bigint, name text, lower timestamptz, upper timestamptz, PRIMARY KEY (number, lower, upper))"
        ))
        .unwrap();
    let changes: Vec<String> = session.query(CHANGES, &[&zone]).unwrap().iter().map(|row| row.get(0)).collect();
    let mut compared = 0;
    for width in WIDTHS {
        session.query(&format!("SELECT tally.set_partition_width('zoned', '{width}')"), &[]).unwrap();
        let (numbers, starts, ends) = windows(session, width, &changes, all, seed);
        session.batch_execute("TRUNCATE bounds").unwrap();
        session.execute(TAKE, &[&numbers, &starts, &ends]).unwrap();
        let wrong = session.query(WRONG, &[&zone, &width]).unwrap();
        let wrong: Vec<String> = wrong.iter().map(|row| row.get(0)).collect();
        assert!(wrong.is_empty(), "{zone}, {width}: {wrong:#?}");
        compared += number(session, "SELECT count(*) FROM bounds");
    }
    compared
}

/// Windows of at most 1,000 partitions each, with what they begin and end: of short widths around the changes of the clock, each with a
/// number of its own, and of others through all the years.
fn windows(
    session: &mut Client,
    width: &str,
    changes: &[String],
    all: bool,
    seed: u32,
) -> (Vec<i64>, Vec<String>, Vec<String>) {
    let around = match width {
        "15 minutes" => Some(1),
        "1 hour" => Some(3),
        "6 hours" => Some(20),
        "1 day" | "7 days" if !all => Some(20),
        _ => None,
    };
    let query = match around {
        Some(days) => {
            let few = if all { changes.len() } else { 2 };
            let first = seed as usize % changes.len().max(1);
            let chosen: Vec<&str> =
                changes.iter().cycle().skip(first).take(few.min(changes.len())).map(String::as_str).collect();
            let dates = format!("unnest('{{{}}}'::date[]) WITH ORDINALITY AS d (day, number)", chosen.join(","));
            format!("SELECT number, (day - {days})::text, (day + {days})::text FROM {dates}")
        }
        None => {
            let days = if width == "1 day" { 2 * 365 } else { 15 * 365 };
            let dates = format!("generate_series('1970-01-01'::timestamp, '2099-12-31', '{days} days') AS d (day)");
            let end = format!("least(day + '{days} days', '2100-01-01')");
            format!("SELECT 1::bigint, day::date::text, {end}::date::text FROM {dates}")
        }
    };
    let mut windows = (vec![], vec![], vec![]);
    for row in session.query(&query, &[]).unwrap() {
        windows.0.push(row.get(0));
        windows.1.push(row.get(1));
        windows.2.push(row.get(2));
    }
    windows
}
