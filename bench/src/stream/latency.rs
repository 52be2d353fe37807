//! How long a message takes from the broker to its row, at a steady rate. The time of each message is the one that the broker gave to it
//! when it came in, stored as a column; the time of its row is that of its commit, which PostgreSQL keeps with
//! `track_commit_timestamp`. Both are of one clock. With `synchronous_commit = off` others see the row as soon as that.

use std::time::Duration;

use tally_server_tests::cluster::Cluster;

use super::process::{Broker, Running, configure, processor_seconds, progress, wait_until};
use crate::SETTINGS;
use crate::report::{Goal, Report};

/// Messages per second; the goal is for this one.
const RATE: u32 = 50_000;
/// Beside it, to show where the limit is.
const OTHERS: [u32; 3] = [1_000, 200_000, 400_000];
/// Of messages, in seconds. The first ones count for nothing: they wait for the loader's start.
const SPAN: u32 = 8;
const WARM_UP: u32 = 3;
const GOAL: f64 = 250.0;

pub fn measure(_: &Cluster, _: u32, report: &mut Report) {
    let settings: Vec<_> = SETTINGS.iter().copied().chain([("track_commit_timestamp", "on")]).collect();
    let cluster = Cluster::start(&settings);
    let mut pipelines = 0;
    let rates: Vec<u32> = [RATE].into_iter().chain(OTHERS).collect();
    let names: Vec<String> = rates.iter().map(|rate| format!("{rate} messages/s")).collect();
    let contenders: Vec<_> = names.iter().map(String::as_str).zip(rates.iter().copied()).collect();
    let times = report.interleave_all(&contenders, |rate| {
        pipelines += 1;
        latencies(&cluster, *rate, pipelines)
    });
    for (rate, [p50, p99, worst]) in rates.iter().zip(&times) {
        let what = format!("from the broker to the committed row, {rate} messages/s");
        let limit = if *rate == RATE { Goal::MillisecondsAtMost(GOAL) } else { Goal::Milliseconds };
        report.add(&format!("{what}, p50"), p50, p50, Goal::Milliseconds);
        report.add("the same, p99", p99, p99, limit);
        report.add("the same, worst", worst, worst, Goal::Milliseconds);
    }
}

/// p50, p99 and the worst.
fn latencies(cluster: &Cluster, rate: u32, pipeline: u32) -> [Duration; 3] {
    let folder = tempfile::tempdir().unwrap();
    let database = cluster.database();
    let mut session = database.connect();
    let table =
        "CREATE TABLE arrivals (customer_id bigint, event_type text, country text, browser text, device_id bigint,
                   session_id bigint, produced timestamptz); CHECKPOINT";
    session.batch_execute(table).unwrap();
    let rows = i64::from(rate) * i64::from(SPAN + WARM_UP);
    let broker = Broker::serve(folder.path(), &["--rate", &rate.to_string(), "--rows", &rows.to_string()]);
    let sections = format!(
        "[source]\nkafka = {{ brokers = [\"{}\"], topic = \"clickstream\" }}\n\
         [target]\ntable = \"public.arrivals\"\ncolumns.produced = {{ from = \"_timestamp\" }}\n",
        broker.address
    );
    let loader =
        Running::load(&configure(&database, folder.path(), &format!("latency-{pipeline}"), &sections), folder.path());
    wait_until("all is loaded", || {
        std::thread::sleep(Duration::from_millis(200));
        progress(&mut session) >= rows
    });
    let broker_seconds = processor_seconds(broker.pid());
    let loader_seconds = processor_seconds(loader.pid());
    loader.terminate();
    eprintln!("bench:   processor time: broker {broker_seconds:.2} s, loader {loader_seconds:.2} s");
    let sql = "WITH times AS (
                 SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - produced)::float8 AS time FROM arrivals
                  WHERE produced > (SELECT min(produced) FROM arrivals) + $1 * interval '1 second')
               SELECT percentile_disc(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY time), count(*) FROM times";
    let row = session.query_one(sql, &[&f64::from(WARM_UP)]).unwrap();
    let (times, counted): (Vec<f64>, i64) = (row.get(0), row.get(1));
    assert!(counted > i64::from(rate) * i64::from(SPAN - 1), "messages that count: {counted}");
    // The broker's times are whole milliseconds, cut off, so none is too short.
    [0, 1, 2].map(|index| Duration::from_secs_f64(times[index]))
}
