//! What those who insert notice of retention: the worst INSERT of four clients, 400 a second, and how many take more than 100 ms, while a
//! report holds its locks on the table and old partitions are removed; beside the same without retention and with pg_partman. Then what
//! an undo costs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

use crate::report::{Goal, Report, Samples, time};

const CLIENTS: usize = 4;
/// Between two inserts of a client.
const PACE: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_millis(100);
/// Longer than any of this takes.
const DEADLINE: Duration = Duration::from_secs(120);

const TABLE: &str = "
    CREATE TABLE events (event_time timestamptz NOT NULL, customer_id bigint NOT NULL, value double precision) PARTITION BY RANGE (event_time);
    CREATE INDEX ON events (customer_id, event_time);";
const OLD_ROWS: &str = "
    INSERT INTO events SELECT now() - i % 6 * interval '1 day', i, i FROM generate_series(1, 60000) AS i;
    ANALYZE events;";
const REGISTER: &str = "
    SELECT tally.partition_by_time('events', '1 day', lateness => '6 days');";
const ROLLUP: &str = "
    SELECT tally.create_rollup('per_customer', 'SELECT customer_id, date_trunc(''day'', event_time, ''UTC'') AS day, count(*) AS events,
        sum(value) AS total FROM events GROUP BY 1, 2')";
const RETAIN: &str = "SELECT tally.set_partition_policy('events', lateness => '2 days', retention => '2 days')";
const PARTMAN: &str = "
    CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman;
    SELECT partman.create_parent('public.events', 'event_time', 'native', 'daily', p_premake := 7, p_start_partition := (now() - interval '6 days')::text);
    UPDATE partman.part_config SET infinite_time_partitions = true;";
const PARTMAN_RETAIN: &str = "UPDATE partman.part_config SET retention = '2 days', retention_keep_table = true; SELECT partman.run_maintenance('public.events')";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Nothing,
    Partman,
    Tally,
    TallyWithRollup,
}

/// Counted over all rounds, the first one as well.
#[derive(Debug, Default)]
struct Counts {
    inserts: usize,
    slow: usize,
}

pub fn measure(span: u64, report: &mut Report) {
    let cluster = Cluster::start(&[("fsync", "on"), ("autovacuum", "off"), ("jit", "off")]);
    let has_partman = has_partman(&cluster);
    let contenders: Vec<(&str, Contender)> = [
        ("no retention", Contender::Nothing),
        ("pg_partman", Contender::Partman),
        ("tally", Contender::Tally),
        ("tally, a rollup", Contender::TallyWithRollup),
    ]
    .into_iter()
    .filter(|(_, contender)| has_partman || *contender != Contender::Partman)
    .collect();
    let mut counts: Vec<Counts> = contenders.iter().map(|_| Counts::default()).collect();
    let mut undone = vec![];
    let samples = report.interleave_all(&contenders, |contender| {
        let at = contenders.iter().position(|(_, other)| other == contender).expect("it is one of them");
        let database = cluster.database();
        [run(&database, *contender, Duration::from_secs(span), &mut counts[at], &mut undone)]
    });
    let found = |wanted: Contender| {
        let at = contenders.iter().position(|(_, contender)| *contender == wanted)?;
        Some((&samples[at][0], &counts[at]))
    };
    let (alone, of_alone) = found(Contender::Nothing).expect("it is always there");
    let told = |counts: &Counts| format!("{} of {}", counts.slow, counts.inserts);
    for (what, contender) in [("", Contender::Tally), (" of a table with a rollup", Contender::TallyWithRollup)] {
        let (ours, of_ours) = found(contender).expect("it is always there");
        let what = format!("worst INSERT during retention{what}, a report of {span} s open; against no retention");
        report.add(&what, alone, ours, Goal::MillisecondsAbove(30.0));
        report.add_count_at_most("the same, INSERTs over 100 ms", &told(of_alone), &told(of_ours), of_ours.slow, 0);
        if let Some((partman, of_partman)) = found(Contender::Partman).filter(|_| contender == Contender::Tally) {
            report.add("worst INSERT, against pg_partman", partman, ours, Goal::Faster);
            report.add_count("INSERTs over 100 ms, against pg_partman", &told(of_partman), &told(of_ours));
        }
    }
    if !has_partman {
        report.skip("the same by pg_partman", "it is not installed");
    }
    let undone = Samples::new(undone);
    report.add_alone("undo of retention: a partition of 10,000 rows is back", &undone, 50.0);
}

fn has_partman(cluster: &Cluster) -> bool {
    let query = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_partman')";
    cluster.connect("postgres").query_one(query, &[]).unwrap().get(0)
}

/// The slowest INSERT of one round.
fn run(
    database: &Database,
    contender: Contender,
    span: Duration,
    counts: &mut Counts,
    undone: &mut Vec<Duration>,
) -> Duration {
    let mut session = database.connect();
    session.batch_execute(TABLE).unwrap();
    match contender {
        Contender::Partman => session.batch_execute(PARTMAN).unwrap(),
        _ => session.batch_execute(REGISTER).unwrap(),
    }
    if contender == Contender::TallyWithRollup {
        session.batch_execute(ROLLUP).unwrap();
    }
    session.batch_execute(OLD_ROWS).unwrap();
    session.batch_execute("CHECKPOINT").unwrap();
    let mut report = database.connect();
    let stop = AtomicBool::new(false);
    let latencies: Vec<Duration> = thread::scope(|scope| {
        let writers: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn({
                    let stop = &stop;
                    move || write(database.connect(), client, stop)
                })
            })
            .collect();
        let end = StopAtEnd(&stop);
        report.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
        let opened = Instant::now();
        let retention = scope.spawn(|| retain(database, contender));
        thread::sleep(span.saturating_sub(opened.elapsed()));
        report.batch_execute("COMMIT").unwrap();
        retention.join().expect("retention comes to its end");
        drop(end);
        writers.into_iter().flat_map(|writer| writer.join().expect("the inserts succeed")).collect()
    });
    counts.inserts += latencies.len();
    counts.slow += latencies.iter().filter(|latency| **latency > SLOW).count();
    if contender == Contender::Tally {
        undone.push(undo(&mut session));
    }
    latencies.into_iter().max().expect("there were inserts")
}

/// Also when the measurement fails: the writers would go on for ever.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns when the old partitions are gone.
fn retain(database: &Database, contender: Contender) {
    let mut session = database.connect();
    match contender {
        Contender::Nothing => {}
        Contender::Partman => session.batch_execute(PARTMAN_RETAIN).unwrap(),
        Contender::Tally | Contender::TallyWithRollup => {
            session.batch_execute(RETAIN).unwrap();
            let gone = "SELECT accepts_from >= now() - interval '3 days' AND NOT EXISTS (SELECT FROM tally.retirements WHERE state <> 'trash')
                        FROM tally.partition_status";
            let begin = Instant::now();
            while !session.query_one(gone, &[]).unwrap().get::<_, bool>(0) {
                assert!(begin.elapsed() < DEADLINE, "the old partitions are not gone");
                thread::sleep(PACE);
            }
        }
    }
}

fn write(mut session: Client, client: usize, stop: &AtomicBool) -> Vec<Duration> {
    let insert = session.prepare("INSERT INTO events VALUES (now(), $1, 1)").unwrap();
    let customer = i64::try_from(client).expect("few clients");
    let mut next = Instant::now()
        + PACE / u32::try_from(CLIENTS).expect("few clients") * u32::try_from(client).expect("few clients");
    let mut latencies = vec![];
    // Those that are due by the end are sent, or a stall would hide the inserts that it has held up.
    while !stop.load(Ordering::Relaxed) || next <= Instant::now() {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        session.execute(&insert, &[&customer]).unwrap();
        // Since it was due: those that had to wait for the one before have waited as well.
        latencies.push(next.elapsed());
        next += PACE;
    }
    latencies
}

fn undo(session: &mut Client) -> Duration {
    let newest = "SELECT partition::text FROM tally.retirements ORDER BY retirement DESC LIMIT 1";
    let partition: String = session.query_one(newest, &[]).unwrap().get(0);
    time(|| session.batch_execute(&format!("SELECT tally.undo_retention('events', '{partition}')")).unwrap())
}
