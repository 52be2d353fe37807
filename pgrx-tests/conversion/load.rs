//! Nobody waits.

use super::rollups::{COUNTED, assert_exact};
use super::{IS_DONE, eventually, number, session_with};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tally_server_tests::cluster::{self, Database};

/// Sessions that insert row by row until they are told to stop, none of which may wait for 100 ms. Each says how many rows it has
/// inserted and how long the worst of them took.
struct Load {
    stop: Arc<AtomicBool>,
    sessions: Vec<thread::JoinHandle<(i64, Duration)>>,
}

impl Load {
    fn start(database: &Database<'_>, sessions: usize, insert: &'static str) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let sessions = (0..sessions)
            .map(|_| {
                let (stop, mut session) = (stop.clone(), database.connect());
                session.batch_execute("SET lock_timeout = '100ms'").unwrap();
                thread::spawn(move || {
                    let (mut rows, mut worst) = (0, Duration::ZERO);
                    while !stop.load(Ordering::Relaxed) {
                        let begin = Instant::now();
                        session.batch_execute(insert).unwrap_or_else(|error| panic!("after {rows} rows: {error:?}"));
                        worst = worst.max(begin.elapsed());
                        rows += 1;
                        thread::sleep(Duration::from_millis(2));
                    }
                    (rows, worst)
                })
            })
            .collect();
        Load { stop, sessions }
    }

    fn end(self) -> (i64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.sessions.into_iter().map(|session| session.join().unwrap());
        ended.fold((0, Duration::ZERO), |(rows, worst), (more, longest)| (rows + more, worst.max(longest)))
    }
}

#[test]
fn no_insert_waits_and_a_long_report_delays_the_swap_alone() {
    let cluster = cluster::Cluster::start(&[]);
    let database = cluster.database();
    let mut session = session_with(&database, COUNTED);
    session
        .batch_execute(
            "ALTER TABLE events ADD id bigint GENERATED ALWAYS AS IDENTITY;
             ALTER TABLE events ADD PRIMARY KEY (id); CREATE INDEX ON events (k, at);
             SELECT tally.resume_job(job_id) FROM tally.jobs",
        )
        .unwrap();
    let before = number(&mut session, "SELECT count(*) FROM events");
    let load = Load::start(&database, 3, "INSERT INTO events VALUES (now(), 1, 1)");
    let mut report = database.connect();
    report.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    let seen = number(&mut report, "SELECT count(*) FROM events");
    session.batch_execute("SELECT tally.convert_to_partitioned('events', 'at', '1 day', widen_keys => true)").unwrap();
    // Whatever waits now waits for the report; the inserts go on beside it.
    eventually(&mut session, "SELECT note LIKE '%AccessShareLock on public.events%' FROM tally.conversions");
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.conversions WHERE state = 'preparing'"), 1);
        assert_exact(&mut session);
    }
    assert_eq!(number(&mut report, "SELECT count(*) FROM events"), seen);
    assert_exact(&mut report);
    report.batch_execute("COMMIT").unwrap();
    eventually(&mut session, IS_DONE);
    thread::sleep(Duration::from_millis(200));
    let (inserted, worst) = load.end();
    assert_eq!(number(&mut session, "SELECT count(*) FROM events"), before + inserted);
    assert_eq!(number(&mut session, "SELECT count(DISTINCT id) FROM events"), before + inserted);
    assert_exact(&mut session);
    session.batch_execute("CALL tally.refresh('by_key')").unwrap();
    assert_exact(&mut session);
    println!("{inserted} inserts, the worst took {worst:?}");
}
