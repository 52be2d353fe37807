//! The protocol of retention as a model: PostgreSQL is simulated as far as retention meets it, what decides is the code of this crate.
//!
//! A partition that is too old leaves its set by steps, each a transaction of its own. Meanwhile others insert, update, delete, refresh,
//! create rollups, bring partitions back, do DDL by hand; anything is killed at any boundary, and transactions of which others know
//! nothing yet commit, roll back or are lost in a crash. After every event, in every snapshot that is open, every rollup equals what is
//! true in that snapshot; no table is dropped with a row that nobody has counted; and when it gets quiet, retention comes to its end.
//!
//! The same is tested with PostgreSQL itself, a thousand times slower, by `pgrx-tests/retention/model.rs`. What the model leaves out can
//! only be found there: SQL, plans, foreign keys, rollups over rollups and in slices, and what else PostgreSQL does.
//!
//! Not followed, here as there, is what nobody can follow: older snapshots beside DDL by hand, which is not MVCC; and `detach_deadline`,
//! after which nobody is waited for.
//!
//! ```sh
//! make retention SCHEDULES=1000000 SECONDS=60
//! make retention SEED=17                       # schedule 17, and those after it
//! ```

/// Transactions, snapshots, versions of rows, locks, crashes.
mod postgres;
/// The steps of the job.
mod retention;
/// Views, refreshes, and what becomes of rows that come and go with their partition.
mod rollup;
/// What happens, in which order.
mod schedule;
/// What sessions do to rows, and somebody by hand to partitions.
mod statements;
/// What is stored.
mod tables;
/// All of it, and what holds after every event.
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use schedule::Failure;
use world::Fault;

/// Without TALLY_RETENTION_SCHEDULES.
const SCHEDULES: u64 = 10_000;
/// A planted fault is found in fewer schedules than this.
const UNTIL_FOUND: u64 = 20_000;

fn from_environment(variable: &str) -> Option<u64> {
    let given = std::env::var(variable).ok().filter(|given| !given.is_empty())?;
    Some(given.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Goes through these schedules until one fails, and says which. Answers how many checks they have made.
fn go_through(seeds: std::ops::Range<u64>, fault: Fault) -> Result<u64, (u64, Failure)> {
    let (next, checks) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let until_one_fails = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return None;
            }
            match schedule::go(seed, fault, false) {
                Ok(number) => checks.fetch_add(number, Ordering::Relaxed),
                Err(_) => {
                    next.store(seeds.end, Ordering::Relaxed);
                    return Some(seed);
                }
            };
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let failed = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(until_one_fails)).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("a schedule does not panic")).min()
    });
    match failed {
        // Once more, and now it is told.
        Some(seed) => Err((seed, schedule::go(seed, fault, true).expect_err("the same seed, the same schedule"))),
        None => Ok(checks.into_inner()),
    }
}

#[test]
fn random_schedules_drop_no_row_that_is_not_counted() {
    let first = from_environment("TALLY_RETENTION_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    let number = from_environment("TALLY_RETENTION_SCHEDULES").unwrap_or(SCHEDULES);
    println!("TALLY_RETENTION_SEED={first}");
    let begin = Instant::now();
    match go_through(first..first + number, Fault::None) {
        Ok(checks) => println!("{number} schedules, {checks} checks, {:.1?}", begin.elapsed()),
        Err((seed, Failure { story, what })) => panic!("TALLY_RETENTION_SEED={seed}\n{story}\n{what}"),
    }
}

/// Each fault makes the test red.
#[test]
fn planted_faults_are_found() {
    let faults = [
        Fault::Fence,
        Fault::Writers,
        Fault::InProgress,
        Fault::Staying,
        Fault::Wait,
        Fault::Proof,
        Fault::Record,
        Fault::NewRollup,
        Fault::ByHand,
        Fault::Return,
        Fault::NewRollupByHand,
    ];
    for fault in faults {
        let Err((seed, failure)) = go_through(0..UNTIL_FOUND, fault) else { panic!("{fault:?} is not noticed") };
        println!("{fault:?}: found by schedule {seed}: {}", failure.what.lines().next().unwrap_or_default());
    }
}
