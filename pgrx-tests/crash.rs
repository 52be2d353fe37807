//! Sessions, workers and whole servers are killed with signal 9 while rows are loaded and rollups refreshed. After each crash the
//! rollups equal their queries, and every transaction is there whole or not at all, the acknowledged ones whole.
//!
//! ```sh
//! TALLY_CRASH_SEED=17 cargo server crash -- --nocapture    # the same batches and victims; timing is never the same
//! ```

mod loader;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use postgres::{Client, Error, NoTls};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use tally_server_tests::cluster::{Cluster, Database};

use crate::oracle::{assert_equal, assert_equal_now_and_refreshed};
use loader::{Batch, Fate, Loader};

const ROUNDS: usize = 20;
const LOADERS: u64 = 2;
/// Longer than a recovery takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

const SCHEMA: &str = "
    CREATE TABLE events (batch bigint NOT NULL, event_time timestamptz NOT NULL, tenant int, country text, amount numeric(12,2),
      device bigint) PARTITION BY RANGE (event_time);
    CREATE TABLE day_0 PARTITION OF events FOR VALUES FROM ('2024-03-30Z') TO ('2024-03-31Z');
    CREATE TABLE day_1 PARTITION OF events FOR VALUES FROM ('2024-03-31Z') TO ('2024-04-01Z');
    CREATE TABLE day_2 PARTITION OF events FOR VALUES FROM ('2024-04-01Z') TO ('2024-04-02Z');";

const ROLLUPS: [(&str, &str); 2] = [
    (
        "by_hour",
        "SELECT date_trunc('hour', event_time, 'Europe/Berlin') AS bucket, country, count(*) AS n, sum(amount) AS revenue, \
           avg(amount) AS average, min(event_time) AS first, max(event_time) AS last, \
           count(*) FILTER (WHERE amount > 10) AS large FROM events GROUP BY 1, 2",
    ),
    (
        "by_tenant",
        "SELECT tenant, count(amount) AS counted, sum(amount) FILTER (WHERE country IS NULL) AS stray, min(amount) AS least, \
           max(country) AS country, tally.hll_agg(device) AS devices FROM events GROUP BY tenant",
    ),
];

/// What the threads of the test share.
struct World {
    conninfo: String,
    /// Batches that the server has acknowledged, of all loaders.
    committed: AtomicU64,
    refreshes: AtomicU64,
    stopped: AtomicBool,
    /// Held from the kill to the end of the check that follows, so that this check sees what the crash has left.
    door: Mutex<()>,
}

impl World {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// A new session, as soon as the server takes one.
    fn connect(&self) -> Client {
        let begin = Instant::now();
        loop {
            drop(self.door.lock().unwrap_or_else(PoisonError::into_inner));
            match Client::connect(&self.conninfo, NoTls) {
                Ok(client) => return client,
                Err(error) => assert!(is_crash(&error) && begin.elapsed() < DEADLINE, "no connection: {error:?}"),
            }
            thread::sleep(PAUSE);
        }
    }

    fn refresh_until_stopped(&self) {
        let mut client = self.connect();
        for (rollup, _) in ROLLUPS.iter().cycle() {
            if self.is_stopped() {
                return;
            }
            match client.batch_execute(&format!("CALL tally.refresh('{rollup}')")) {
                Ok(()) => drop(self.refreshes.fetch_add(1, Ordering::Relaxed)),
                Err(error) if is_crash(&error) => client = self.connect(),
                Err(error) => panic!("refresh of {rollup}: {error:?}"),
            }
        }
    }
}

/// Also when the test fails: the threads would go on for ever.
struct StopAtEnd<'a>(&'a World);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Relaxed);
    }
}

/// The connection broke, or the server says that it goes down, that a process crashed, or that it is not up yet.
fn is_crash(error: &Error) -> bool {
    error.code().is_none_or(|state| matches!(state.code(), "57P01" | "57P02" | "57P03"))
}

/// Returns when the loaders have got so far.
fn wait_for_batches<T>(world: &World, number: u64, threads: &[ScopedJoinHandle<'_, T>]) {
    let begin = Instant::now();
    let goal = world.committed.load(Ordering::Relaxed) + number;
    while world.committed.load(Ordering::Relaxed) < goal {
        assert!(threads.iter().all(|thread| !thread.is_finished()), "a loader has failed");
        assert!(begin.elapsed() < DEADLINE, "the loaders do not get on");
        thread::sleep(PAUSE);
    }
}

/// Kills the whole server, a session, or a worker that refreshes; says what it was.
fn crash(cluster: &Cluster, database: &Database, rng: &mut StdRng) -> String {
    let workers_first = match rng.random_range(0..3) {
        0 => {
            cluster.crash();
            return "server".into();
        }
        kind => kind == 1,
    };
    let mut watcher = cluster.connect("postgres");
    let begin = Instant::now();
    loop {
        let query = "SELECT pid, backend_type FROM pg_stat_activity WHERE datname = $1 \
                     AND backend_type IN ('client backend', 'tally job worker') ORDER BY backend_start";
        let mut found: Vec<(i32, String)> =
            watcher.query(query, &[&database.name()]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        // A worker starts every second. Clients are always there.
        if workers_first && begin.elapsed() < Duration::from_secs(1) {
            found.retain(|(_, kind)| kind == "tally job worker");
        }
        if let Some((pid, kind)) = found.choose(rng)
            && cluster.kill_backend(*pid)
        {
            return kind.clone();
        }
    }
}

/// Both rollups, in one snapshot.
fn check(session: &mut Client) {
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").unwrap();
    for (rollup, query) in ROLLUPS {
        assert_equal(session, rollup, query);
    }
    session.batch_execute("COMMIT").unwrap();
}

/// Every transaction is there whole or not at all, as its loader was told.
fn assert_nothing_is_lost(session: &mut Client, batches: &HashMap<i64, Batch>) {
    let counts = session.query("SELECT batch, count(*) FROM events GROUP BY batch", &[]).unwrap();
    let mut counts: HashMap<i64, i64> = counts.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (id, batch) in batches {
        let found = counts.remove(id).unwrap_or(0);
        let is_right = match batch.fate {
            Fate::Committed => found == batch.rows,
            Fate::Absent => found == 0,
            Fate::Unknown => found == 0 || found == batch.rows,
        };
        assert!(is_right, "batch {id} has {found} rows: {batch:?}");
    }
    assert!(counts.is_empty(), "rows of no batch: {counts:?}");
}

#[test]
fn killed_20_times_during_load_and_refresh_equal_after_each() {
    let seed: u64 = std::env::var("TALLY_CRASH_SEED")
        .map_or_else(|_| rand::random(), |seed| seed.parse().expect("TALLY_CRASH_SEED is a number"));
    println!("TALLY_CRASH_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(SCHEMA).unwrap();
    for (rollup, query) in ROLLUPS {
        session.execute("SELECT tally.create_rollup($1, $2, '1 second')", &[&rollup, &query]).unwrap();
    }
    let world = World {
        conninfo: database.conninfo(),
        committed: AtomicU64::new(0),
        refreshes: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        door: Mutex::new(()),
    };
    let mut left_prepared = 0;
    let batches: HashMap<i64, Batch> = thread::scope(|scope| {
        let stop = StopAtEnd(&world);
        let loaders: Vec<_> = (0..LOADERS)
            .map(|number| {
                let loader = Loader::new(number, seed, &world);
                scope.spawn(move || loader.load_until_stopped())
            })
            .collect();
        let refresher = scope.spawn(|| world.refresh_until_stopped());
        for round in 1..=ROUNDS {
            wait_for_batches(&world, rng.random_range(1..40), &loaders);
            assert!(!refresher.is_finished(), "the refresher has failed");
            let door = world.door.lock().unwrap();
            let begin = Instant::now();
            let victim = crash(&cluster, &database, &mut rng);
            let down = begin.elapsed();
            session = database.connect();
            check(&mut session);
            let prepared: i64 = session.query_one("SELECT count(*) FROM pg_prepared_xacts", &[]).unwrap().get(0);
            left_prepared += prepared;
            println!("round {round}: killed a {victim}, up after {down:.1?}, {prepared} prepared transactions left");
            // The loaders end those first of all.
            drop(door);
            wait_for_batches(&world, 1, &loaders);
            check(&mut session);
        }
        drop(stop);
        loaders.into_iter().flat_map(|loader| loader.join().expect("a loader")).collect()
    });
    for (rollup, query) in ROLLUPS {
        assert_equal_now_and_refreshed(&mut session, rollup, "events", query);
    }
    assert_nothing_is_lost(&mut session, &batches);
    let runs: i64 = session.query_one("SELECT count(*) FROM tally.runs WHERE sqlstate IS NULL", &[]).unwrap().get(0);
    let (committed, refreshes) = (world.committed.into_inner(), world.refreshes.into_inner());
    let unknown = batches.values().filter(|batch| batch.fate == Fate::Unknown).count();
    println!(
        "{committed} of {} batches acknowledged, {unknown} cut off in the commit, {left_prepared} prepared transactions \
         survived a crash, {refreshes} refreshes by hand, {runs} by workers",
        batches.len()
    );
    assert!(refreshes > 0 && runs > 0, "nothing was refreshed between the crashes");
}
