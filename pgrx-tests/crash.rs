//! Sessions, workers and whole servers are killed while rows are loaded, changed and counted. After each kill the rollups equal
//! their queries, and every transaction is there whole or not at all, the acknowledged ones whole.
//!
//! ```sh
//! make crash KILLS=200
//! make crash SEED=17        # the same batches and victims; timing is never the same
//! ```

mod loader;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use postgres::{Client, Error, NoTls};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt, SeedableRng};
use tally_server_tests::cluster::{Cluster, Database};

use crate::oracle::{DEADLINE, assert_equal, assert_equal_now_and_refreshed, pending_query, wait_until};
use loader::{Batch, Fate, Loader};

const KILLS: u64 = 30;
const LOADERS: u64 = 2;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kill {
    /// Signal 9 for a process, whereupon the server throws out all others.
    Session,
    Worker,
    Launcher,
    /// pg_terminate_backend of a process; the others go on.
    EndOfSession,
    EndOfWorker,
    /// Signal 9 for all processes.
    Server,
    /// An immediate stop, with prepared transactions open.
    ImmediateStop,
}

/// How often in relation to each other.
const KINDS: [(u32, Kill); 7] = [
    (4, Kill::Session),
    (4, Kill::Worker),
    (1, Kill::Launcher),
    (2, Kill::EndOfSession),
    (2, Kill::EndOfWorker),
    (4, Kill::Server),
    (4, Kill::ImmediateStop),
];

impl Kill {
    fn carry_out(self, cluster: &Cluster, database: &Database, rng: &mut StdRng) {
        let (kind, by_signal) = match self {
            Kill::Server => return cluster.crash(),
            Kill::ImmediateStop => {
                cluster.abort();
                return cluster.restart();
            }
            Kill::Session => ("client backend", true),
            Kill::Worker => ("tally job worker", true),
            Kill::Launcher => ("tally launcher", true),
            Kill::EndOfSession => ("client backend", false),
            Kill::EndOfWorker => ("tally job worker", false),
        };
        let mut watcher = cluster.connect("postgres");
        let victims = "SELECT pid FROM pg_stat_activity \
                       WHERE backend_type = $1 AND (datname = $2 OR datname IS NULL) ORDER BY backend_start";
        let begin = Instant::now();
        loop {
            // Clients are always there. A worker starts every second, for some milliseconds.
            let found = watcher.query(victims, &[&kind, &database.name()]).unwrap();
            let victim = found.choose(rng).map(|row| row.get::<_, i32>(0));
            let is_done = victim.is_some_and(|pid| match by_signal {
                true => cluster.kill_before(&mut watcher, pid),
                false => watcher.query_one("SELECT pg_terminate_backend($1, 60000)", &[&pid]).unwrap().get(0),
            });
            if is_done {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "there is never a {kind}");
        }
    }
}

/// Transactions that stay prepared from before an immediate stop until after it.
struct Keeper {
    prepared: Vec<i64>,
    batches: HashMap<i64, Batch>,
}

impl Keeper {
    const ROWS: i64 = 3;

    fn prepare(&mut self, session: &mut Client) {
        for _ in 0..2 {
            let batch = -1 - i64::try_from(self.batches.len()).expect("few batches");
            let rows = format!(
                "SELECT {batch}, '2024-03-31 02:30Z', 1, 'de', 7, i FROM generate_series(1, {}) AS i",
                Self::ROWS
            );
            session
                .batch_execute(&format!("BEGIN; INSERT INTO events {rows}; PREPARE TRANSACTION 'keeper{batch}'"))
                .unwrap();
            self.batches.insert(batch, Batch { rows: Self::ROWS, fate: Fate::Absent });
            self.prepared.push(batch);
        }
    }

    /// Each commits or rolls back.
    fn end(&mut self, session: &mut Client, rng: &mut StdRng) {
        for batch in self.prepared.drain(..) {
            let commits = rng.random_bool(0.7);
            let verb = if commits { "COMMIT" } else { "ROLLBACK" };
            session.batch_execute(&format!("{verb} PREPARED 'keeper{batch}'")).unwrap();
            self.batches.get_mut(&batch).expect("it was prepared").fate =
                if commits { Fate::Committed } else { Fate::Absent };
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

/// The workers have come through all of it: one counts a new row. Between the kills few get that far, on a slow machine none.
fn wait_for_worker(session: &mut Client) {
    session.batch_execute("INSERT INTO events (batch, event_time) VALUES (0, '2024-03-31 12:00Z')").unwrap();
    wait_until(session, &format!("SELECT ({}) = 0", pending_query("events")));
}

fn number_from(variable: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    let given = std::env::var(variable).ok().filter(|given| !given.is_empty());
    given.map_or_else(otherwise, |given| given.parse().unwrap_or_else(|_| panic!("{variable} is not a number")))
}

#[test]
fn killed_again_and_again_during_load_and_refresh_equal_after_each() {
    let seed = number_from("TALLY_CRASH_SEED", || rand::random_range(0..1 << 32));
    let kills = number_from("TALLY_CRASH_KILLS", || KILLS);
    println!("TALLY_CRASH_SEED={seed} TALLY_CRASH_KILLS={kills}");
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
    let mut keeper = Keeper { prepared: vec![], batches: HashMap::new() };
    let mut kinds: BTreeMap<Kill, u32> = BTreeMap::new();
    let mut left_prepared = 0;
    let mut batches: HashMap<i64, Batch> = thread::scope(|scope| {
        let stop = StopAtEnd(&world);
        let loaders: Vec<_> = (0..LOADERS)
            .map(|number| {
                let loader = Loader::new(number, seed, &world);
                scope.spawn(move || loader.load_until_stopped())
            })
            .collect();
        let refresher = scope.spawn(|| world.refresh_until_stopped());
        for round in 1..=kills {
            let kill = KINDS.choose_weighted(&mut rng, |kind| kind.0).expect("there are kinds").1;
            if kill == Kill::ImmediateStop {
                keeper.prepare(&mut session);
            }
            wait_for_batches(&world, rng.random_range(1..40), &loaders);
            assert!(!refresher.is_finished(), "the refresher has failed");
            let door = world.door.lock().unwrap();
            let begin = Instant::now();
            kill.carry_out(&cluster, &database, &mut rng);
            let down = begin.elapsed();
            *kinds.entry(kill).or_default() += 1;
            session = database.connect();
            check(&mut session);
            let prepared: i64 = session.query_one("SELECT count(*) FROM pg_prepared_xacts", &[]).unwrap().get(0);
            left_prepared += prepared;
            println!("{round}: {kill:?}, up after {down:.1?}, {prepared} prepared transactions left");
            // A job that was running in three crashes in a row is held.
            session.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
            // The loaders end those first of all.
            drop(door);
            wait_for_batches(&world, 1, &loaders);
            check(&mut session);
            if rng.random_bool(0.5) {
                keeper.end(&mut session, &mut rng);
                check(&mut session);
            }
        }
        drop(stop);
        loaders.into_iter().flat_map(|loader| loader.join().expect("a loader")).collect()
    });
    keeper.end(&mut session, &mut rng);
    batches.extend(keeper.batches);
    for (rollup, query) in ROLLUPS {
        assert_equal_now_and_refreshed(&mut session, rollup, "events", query);
    }
    assert_nothing_is_lost(&mut session, &batches);
    wait_for_worker(&mut session);
    let runs: i64 = session.query_one("SELECT count(*) FROM tally.runs WHERE sqlstate IS NULL", &[]).unwrap().get(0);
    let (committed, refreshes) = (world.committed.into_inner(), world.refreshes.into_inner());
    let unknown = batches.values().filter(|batch| batch.fate == Fate::Unknown).count();
    println!(
        "TALLY_CRASH_SEED={seed}: {kinds:?}; {committed} of {} batches acknowledged, {unknown} cut off in the commit, \
         {left_prepared} prepared transactions survived a kill, {refreshes} refreshes by hand, {runs} by workers",
        batches.len()
    );
    assert!(refreshes > 0, "nothing was refreshed between the kills");
}
