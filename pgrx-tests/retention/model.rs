//! Retention beside whatever else happens to a table: in every session, after every step of a random schedule, every rollup equals its
//! query over all rows that it has ever been given, also when retention has dropped them.
//!
//! What that is a plain table knows, `shadow`: each statement that changes rows of the set changes them there as well, in the same
//! transaction, and no statement of retention does. So it is right in every snapshot.
//!
//! ```sh
//! make retention SECONDS=3600
//! make retention SECONDS=60 SEED=17           # schedule 17, and those after it; a kill never hits the same instruction twice
//! ```

mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tally_server_tests::cluster::{Cluster, Database};

use world::{Outcome, World};

const SECONDS: u64 = 25;
/// At the same time.
const SERVERS: usize = 2;
const STEPS: usize = 30;
/// Schedules in one database, each in a schema of its own.
const PER_DATABASE: u64 = 20;
/// A planted fault is found in fewer schedules than this.
const UNTIL_FOUND: u64 = 400;
/// Nothing moves but what a schedule says; sets reach two days ahead.
const QUIET: [(&str, &str); 3] = [("tally.enabled", "off"), ("autovacuum", "off"), ("tally.premake_outage", "1h")];

/// What is left out of retention, to see that the test notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Changes of a fenced partition are let through.
    Fence,
    /// Rows of a partition that is about to leave are read although they are retained.
    Staying,
    /// Nobody waits for snapshots that are older than the retained groups.
    Wait,
    /// The table is dropped whatever is in it.
    Proof,
}

fn from_environment(variable: &str) -> Option<u64> {
    let given = std::env::var(variable).ok().filter(|given| !given.is_empty())?;
    Some(given.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// One schedule: random steps, each followed by a look of every session; then everything is ended, and retention comes to its end.
fn schedule(cluster: &Cluster, database: &Database<'_>, seed: u64, fault: Fault) -> Outcome<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new(cluster, database, seed, fault, &mut rng)?;
    for _ in 0..STEPS {
        world.step(&mut rng)?;
        world.look(&mut rng)?;
    }
    world.end(&mut rng)?;
    Ok(world.checks)
}

/// Schedules one after the other, each with the next seed, until the time is over or one has failed. Answers how many checks.
fn go_through(next: &AtomicU64, deadline: Instant) -> Outcome<usize> {
    let cluster = Cluster::start(&QUIET);
    let mut checks = 0;
    loop {
        let database = cluster.database();
        for _ in 0..PER_DATABASE {
            if Instant::now() > deadline {
                return Ok(checks);
            }
            let seed = next.fetch_add(1, Ordering::Relaxed);
            match schedule(&cluster, &database, seed, Fault::None) {
                Ok(number) => checks += number,
                Err(failure) => return Err(format!("TALLY_RETENTION_SEED={seed}: {failure}")),
            }
        }
    }
}

#[test]
fn random_schedules_drop_no_row_that_is_not_counted() {
    let first = from_environment("TALLY_RETENTION_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    println!("TALLY_RETENTION_SEED={first}");
    let deadline = Instant::now() + Duration::from_secs(from_environment("TALLY_RETENTION_SECONDS").unwrap_or(SECONDS));
    let next = AtomicU64::new(first);
    let answers: Vec<Outcome<usize>> = thread::scope(|scope| {
        // A server for each, because some schedules kill it.
        let threads: Vec<_> = (0..SERVERS).map(|_| scope.spawn(|| go_through(&next, deadline))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a schedule does not panic")).collect()
    });
    let checks: usize = answers.into_iter().map(|answer| answer.unwrap_or_else(|failure| panic!("{failure}"))).sum();
    println!("TALLY_RETENTION_SEED={first}: {} schedules, {checks} checks", next.into_inner() - first);
}

/// Each fault makes the test red.
#[test]
fn planted_faults_are_found() {
    let cluster = Cluster::start(&QUIET);
    for fault in [Fault::Fence, Fault::Staying, Fault::Wait, Fault::Proof] {
        let begin = Instant::now();
        let mut database = cluster.database();
        let found = (0..UNTIL_FOUND).find_map(|seed| {
            if seed % PER_DATABASE == PER_DATABASE - 1 {
                database = cluster.database();
            }
            schedule(&cluster, &database, seed, fault).err().map(|failure| (seed, failure))
        });
        let (seed, failure) = found.unwrap_or_else(|| panic!("{fault:?} is not noticed"));
        let failure: Vec<&str> = failure.lines().take(3).collect();
        println!("{fault:?}: found by schedule {seed} after {:.1?}: {}", begin.elapsed(), failure.join(" "));
    }
}
