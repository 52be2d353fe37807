//! Nobody waits: how long single-row INSERTs take, each a transaction of its own, while refreshes run and while transactions stay open
//! that others would have to wait for. Any wait for a lock of more than a millisecond is an error, of writers and of refreshes, and
//! is counted. PostgreSQL itself has one such lock between writers, held while one of them adds a page to the table: it is seen, very
//! rarely, where the machine takes the processor from the writer that holds it.
//!
//! A session that is busy all the time takes from the writers' processors whatever it does. Hence one contender without rollups beside
//! which a session computes back to back, touching no table, as refreshes run back to back beside others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;
use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{COUNTS_AND_SUMS, PER_HOUR, binary_file, copy_from, create_events};
use crate::report::{Goal, Report, Samples, time};

const CLIENTS: u64 = 2;
/// Of one contender in one round: short, because what disturbs comes and goes in seconds. Take many rounds.
const SPAN: Duration = Duration::from_secs(1);
/// Into the last hour of the day, as a stream does.
const INSERT: &str = "
    INSERT INTO events (event_time, customer_id, event_type, country, browser, device_id, session_id)
    VALUES (timestamptz '2025-01-01 23:00:00Z' + make_interval(secs => $1), $2, 'click', 'France', 'chrome', $3, $4)";
const COMPUTE: &str = "SELECT sum(length(md5(i::text))) FROM generate_series(1, 10000) AS i";
const REFRESH: &str = "CALL tally.refresh('per_hour')";

/// The figures of a contender in one round.
const MEAN: usize = 0;
const P50: usize = 1;
const P99: usize = 2;
const WORST: usize = 3;

/// What goes on beside the writers.
#[derive(Clone, Copy, Debug)]
struct Contender {
    tracked: bool,
    /// A statement and the pause after it.
    beside: Option<(&'static str, Duration)>,
    /// A writer that idles in its transaction, a prepared transaction, and a report that reads the rollup by a cursor.
    open: bool,
}

/// Beside the latencies.
#[derive(Debug, Default)]
struct Seen {
    timeouts: u64,
    beside: Vec<Duration>,
}

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let untracked = cluster.database();
    let tracked = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let file = binary_file(&untracked, folder.path(), rows);
    for database in [&untracked, &tracked] {
        let mut session = database.connect();
        create_events(&mut session, 1);
        if std::ptr::eq(database, &tracked) {
            session.execute("SELECT tally.create_rollup('per_hour', $1)", &[&PER_HOUR]).unwrap();
            session.execute("SELECT tally.create_rollup('per_tenant', $1)", &[&COUNTS_AND_SUMS]).unwrap();
        }
        copy_from(&mut session, &file);
        if std::ptr::eq(database, &tracked) {
            session.batch_execute(REFRESH).unwrap();
        }
        for statement in ["VACUUM (ANALYZE)", "CHECKPOINT"] {
            session.batch_execute(statement).unwrap();
        }
    }

    let moment = SPAN / 2;
    let plain = Contender { tracked: false, beside: None, open: false };
    let followed = Contender { tracked: true, ..plain };
    let now_and_then = Contender { beside: Some((REFRESH, moment)), ..followed };
    let back_to_back = Contender { beside: Some((REFRESH, Duration::ZERO)), ..followed };
    let contenders = [
        ("untracked", plain),
        ("untracked, beside computation", Contender { beside: Some((COMPUTE, Duration::ZERO)), ..plain }),
        ("tracked", followed),
        ("a refresh every half second", now_and_then),
        ("refreshes back to back", back_to_back),
        ("a refresh every half second, others open", Contender { open: true, ..now_and_then }),
        ("refreshes back to back, others open", Contender { open: true, ..back_to_back }),
    ];
    let mut position = 0;
    let mut seen: [Seen; 7] = Default::default();
    let parts = report.interleave_parts(contenders, |contender| {
        let database = if contender.tracked { &tracked } else { &untracked };
        let (latencies, beside) = run(database, *contender, &mut seen[position].timeouts);
        seen[position].beside.extend(beside);
        position = (position + 1) % contenders.len();
        latencies
    });
    let [plain, computing, followed, now_and_then, back_to_back, open_now_and_then, open_back_to_back] = &parts;

    let name = "single-row INSERT by 2 clients, mean; tracked against untracked";
    report.add(name, &plain[MEAN], &followed[MEAN], Goal::FasterAtLeast(0.95));
    let open = "an idle writer, a prepared transaction and a report open";
    let cases = [
        ("without refreshes".to_owned(), followed),
        ("a refresh every half second".to_owned(), now_and_then),
        (format!("a refresh every half second, {open}"), open_now_and_then),
        ("refreshes back to back".to_owned(), back_to_back),
        (format!("refreshes back to back, {open}"), open_back_to_back),
    ];
    for (figure, part) in [("p50", P50), ("p99", P99), ("worst", WORST)] {
        for (case, samples) in &cases {
            report.add(
                &format!("{figure}, tracked, {case}; against untracked"),
                &plain[part],
                &samples[part],
                Goal::Times,
            );
        }
    }
    for (case, samples) in &cases[1..] {
        let what = format!("p99, tracked, {case}; against without refreshes");
        report.add(&what, &followed[P99], &samples[P99], Goal::Times);
    }
    for ((case, closed), (_, open)) in [(&cases[1], &cases[2]), (&cases[3], &cases[4])] {
        let what = format!("p99, {case}; with the three open against not");
        report.add(&what, &closed[P99], &open[P99], Goal::TimesAtMost(1.1));
    }
    let what = "p99, refreshes back to back; against untracked beside computation back to back";
    report.add(what, &computing[P99], &back_to_back[P99], Goal::Times);

    let [closed, open] = [&seen[4].beside, &seen[6].beside].map(|times| Samples::new(times.clone()));
    report.add("a refresh, back to back: with the three open against not", &closed, &open, Goal::Times);
    let timeouts = |seen: &[Seen]| seen.iter().map(|it| it.timeouts).sum::<u64>().to_string();
    let what = "waits for a lock of more than 1 ms, not milliseconds; of 2 untracked and 5 tracked contenders";
    report.add_count(what, &timeouts(&seen[..2]), &timeouts(&seen[2..]));
}

/// Mean, median, 99th percentile and the largest of the latencies; and the times of what ran beside.
fn run(database: &Database, contender: Contender, timeouts: &mut u64) -> ([Duration; 4], Vec<Duration>) {
    let mut session = database.connect();
    if contender.tracked {
        session.batch_execute(REFRESH).unwrap();
    }
    let open = contender.open.then(|| Open::new(database));
    let stop = AtomicBool::new(false);
    let (mut latencies, beside) = thread::scope(|scope| {
        let writers: Vec<_> =
            (0..CLIENTS).map(|client| scope.spawn(move || write(database.connect(), client))).collect();
        let beside = scope.spawn(|| contender.beside.map(|(sql, pause)| repeat(database.connect(), sql, pause, &stop)));
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        // Before anything can panic: the scope waits for the other session.
        stop.store(true, Ordering::Relaxed);
        let mut latencies = vec![];
        for result in written {
            let (times, waited) = result.unwrap();
            latencies.extend(times);
            *timeouts += waited;
        }
        let (times, waited) = beside.join().unwrap().unwrap_or_default();
        *timeouts += waited;
        (latencies, times)
    });
    if let Some(open) = open {
        open.close();
    }
    latencies.sort();
    let mean = latencies.iter().sum::<Duration>() / u32::try_from(latencies.len()).unwrap();
    let at = |hundredth: usize| latencies[(latencies.len() * hundredth / 100).min(latencies.len() - 1)];
    let figures = [mean, at(50), at(99), at(100)];
    eprintln!(
        "bench:     {} inserts, mean {:.3?}, p50 {:.3?}, p99 {:.3?}, worst {:.3?}; {} beside",
        latencies.len(),
        figures[0],
        figures[1],
        figures[2],
        figures[3],
        beside.len()
    );
    (figures, beside)
}

/// The times of the inserts, and how many failed because they waited for a lock.
fn write(mut session: Client, client: u64) -> (Vec<Duration>, u64) {
    session.batch_execute("SET lock_timeout = '1ms'").unwrap();
    let insert = session.prepare(INSERT).unwrap();
    let (mut times, mut timeouts, mut random) = (vec![], 0, client + 1);
    let started = Instant::now();
    while started.elapsed() < SPAN {
        // Knuth's MMIX generator; the upper bits are the good ones.
        let mut below = |limit: i64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33).cast_signed() % limit
        };
        let second = below(3600) as f64;
        let (customer, device, visit) = (1 + below(1000), 1 + below(10_000), 1 + below(100_000));
        let before = Instant::now();
        let result = session.execute(&insert, &[&second, &customer, &device, &visit]);
        times.push(before.elapsed());
        timeouts += waited("a writer", result.map(|_| ()));
    }
    (times, timeouts)
}

/// The times of a statement that is executed again and again, and how many executions failed because they waited for a lock.
fn repeat(mut session: Client, sql: &str, pause: Duration, stop: &AtomicBool) -> (Vec<Duration>, u64) {
    session.batch_execute("SET lock_timeout = '1ms'").unwrap();
    let (mut times, mut timeouts) = (vec![], 0);
    while !stop.load(Ordering::Relaxed) {
        times.push(time(|| timeouts += waited(sql, session.batch_execute(sql))));
        thread::sleep(pause);
    }
    (times, timeouts)
}

fn waited(who: &str, result: Result<(), postgres::Error>) -> u64 {
    match result {
        Ok(()) => 0,
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            eprintln!("bench:     waited for a lock: {who}");
            1
        }
        Err(error) => panic!("{error}"),
    }
}

/// Transactions that others would have to wait for.
struct Open {
    writer: Client,
    report: Client,
    session: Client,
}

impl Open {
    fn new(database: &Database) -> Open {
        let [mut writer, mut report, mut session] = std::array::from_fn(|_| database.connect());
        let insert = "INSERT INTO events (event_time, customer_id) VALUES ('2025-01-01 23:30:00Z', 1)";
        writer.batch_execute(&format!("BEGIN; {insert}")).unwrap();
        session.batch_execute(&format!("BEGIN; {insert}; PREPARE TRANSACTION 'left behind'")).unwrap();
        let read = "BEGIN ISOLATION LEVEL REPEATABLE READ; DECLARE c CURSOR FOR SELECT * FROM per_hour; FETCH 1 FROM c";
        report.batch_execute(read).unwrap();
        Open { writer, report, session }
    }

    fn close(mut self) {
        self.report.batch_execute("COMMIT").unwrap();
        self.writer.batch_execute("COMMIT").unwrap();
        self.session.batch_execute("COMMIT PREPARED 'left behind'").unwrap();
    }
}
