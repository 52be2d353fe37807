//! How soon the loader is back after PostgreSQL or the broker were away: from the moment at which they take connections to the first
//! committed row. Outages last from less than the shortest pause between two attempts to more than the longest.

use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use tally_server_tests::cluster::Cluster;

use super::process::{Broker, Running, configure, progress, wait_until};
use crate::SETTINGS;
use crate::report::{Goal, Report, Samples};

/// How long they are away.
const OUTAGES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(8)];
const PAUSE: Duration = Duration::from_millis(1);

const TABLE: &str =
    "CREATE TABLE arrivals (customer_id bigint, event_type text, country text, browser text, device_id bigint,
     session_id bigint)";

pub fn measure(_: &Cluster, _: u32, report: &mut Report) {
    // A server of our own: others must not be stopped.
    let cluster = Cluster::start(SETTINGS);
    server(&cluster, report);
    broker(&cluster, report);
}

fn sections(broker: &Broker) -> String {
    format!(
        "[source]\nkafka = {{ brokers = [\"{}\"], topic = \"clickstream\", cluster = \"bench\" }}\n\
         [target]\ntable = \"public.arrivals\"\n",
        broker.address
    )
}

/// Stopped at once, without a checkpoint, and started again. Messages come in steadily, also meanwhile.
fn server(cluster: &Cluster, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let database = cluster.database();
    database.connect().batch_execute(TABLE).unwrap();
    let broker = Broker::serve(folder.path(), &["--rate", "20000", "--rows", "100000000"]);
    let config = configure(&database, folder.path(), "server-away", &sections(&broker));
    let loader = Running::load(&config, folder.path());
    let conninfo = database.conninfo();
    let times = tries(report.rounds(), |outage| {
        let mut session = database.connect();
        let before = progress(&mut session);
        wait_until("rows come in", || progress(&mut session) > before);
        cluster.abort();
        thread::sleep(outage);
        let first_row = thread::spawn({
            let conninfo = conninfo.clone();
            move || {
                let mut session = connect_again(&conninfo);
                (Instant::now(), first_row(&mut session))
            }
        });
        cluster.restart();
        let (up, row) = first_row.join().unwrap();
        row - up
    });
    loader.terminate();
    let mut session = database.connect();
    let rows: i64 = session.query_one("SELECT count(*) FROM arrivals", &[]).unwrap().get(0);
    assert_eq!(rows, progress(&mut session), "as many rows as the positions say");
    add(report, "PostgreSQL stopped at once and started: from its first connection to the first row", times, 500.0);
}

fn connect_again(conninfo: &str) -> Client {
    loop {
        if let Ok(session) = Client::connect(conninfo, NoTls) {
            return session;
        }
        thread::sleep(PAUSE);
    }
}

/// When the positions have moved.
fn first_row(session: &mut Client) -> Instant {
    let before = progress(session);
    let started = Instant::now();
    while progress(session) == before {
        assert!(started.elapsed() < Duration::from_secs(60), "no row comes in");
        thread::sleep(PAUSE);
    }
    Instant::now()
}

/// kill -9 of the only broker, the leader of all parts. The topic has more than is read meanwhile.
fn broker(cluster: &Cluster, report: &mut Report) {
    // With times of their own: were they those of the start, another record would be where one was before.
    const MESSAGES: [&str; 6] = ["--rows", "1000000000", "--span", "365 days", "--end-time", "2025-01-05T00:00:00Z"];
    let folder = tempfile::tempdir().unwrap();
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(TABLE).unwrap();
    let mut broker = Broker::serve(folder.path(), &MESSAGES);
    let config = configure(&database, folder.path(), "broker-away", &sections(&broker));
    let loader = Running::load(&config, folder.path());
    wait_until("rows come in", || progress(&mut session) > 0);
    let times = tries(report.rounds(), |outage| {
        broker.kill();
        // What has been fetched already is no first row after the outage.
        let mut settled = progress(&mut session);
        wait_until("what was fetched is loaded", || {
            thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut settled, progress(&mut session)) == settled
        });
        session.batch_execute("TRUNCATE arrivals").unwrap();
        thread::sleep(outage);
        let up = broker.serve_again(&MESSAGES);
        first_row(&mut session) - up
    });
    loader.terminate();
    add(report, "the broker killed and started: from its first connection to the first row", times, 1_500.0);
}

fn tries(rounds: u32, mut outage: impl FnMut(Duration) -> Duration) -> Samples {
    let mut times = Vec::new();
    for round in 1..=rounds {
        for length in OUTAGES {
            let time = outage(length);
            eprintln!("bench:   round {round}: after {length:.2?}: {time:.3?}");
            times.push(time);
        }
    }
    Samples::new(times)
}

fn add(report: &mut Report, what: &str, times: Samples, limit: f64) {
    report.add(&format!("{what}, {} times, median", times.len()), &times, &times, Goal::Milliseconds);
    let worst = times.quantile(0.99);
    report.add("the same, p99", &worst, &worst, Goal::MillisecondsAtMost(limit));
}
