//! A rollup equals its defining query in every session, after every step of a random history. `make oracle` goes through such
//! histories for as long as you like; each has a seed, which a red run prints. One session after the other, a seed always gives
//! the same history, and if that fails it is cut down to the few statements that matter.
//!
//! ```sh
//! make oracle SECONDS=3600                            # for an hour
//! make oracle SECONDS=60 SEED=17                      # history 17, and those after it
//! ```

mod faults;
mod history;
mod minimise;
mod rollup;
mod schema;
mod session;
mod statements;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt, SeedableRng};
use tally_server_tests::cluster::{self, Cluster, Database};

use history::{Action, Actor, Check, Expect, Failure, Step, script};
use minimise::Laboratory;
use rollup::{Definition, Rollup};
use schema::SOURCES;
use session::{Session, World};

const SESSIONS: usize = 6;
/// The session that creates the rollups of the start, plants faults, and counts all rows in the end.
const OWNER: usize = SESSIONS;
/// The steps of a history, which always goes to its end: a seed is a seed however fast the machine is.
const STEPS: usize = 300;
/// The last word on a failure is not worth more time than this.
const MINIMISE: Duration = Duration::from_secs(240);
/// Together, with one session after the other and with all at the same time.
const SECONDS: u64 = 180;
/// No workers and no vacuum: the seed alone decides what happens.
const QUIET: [(&str, &str); 2] = [("tally.refresh_enabled", "off"), ("autovacuum", "off")];

/// From the environment, or a new one for each run.
fn seed() -> u64 {
    let given = std::env::var("TALLY_ORACLE_SEED").ok().filter(|seed| !seed.is_empty());
    given.map_or_else(|| rand::random_range(0..1 << 32), |seed| seed.parse().expect("TALLY_ORACLE_SEED is a number"))
}

fn duration() -> Duration {
    let seconds = std::env::var("TALLY_ORACLE_SECONDS").ok().filter(|seconds| !seconds.is_empty());
    let seconds = seconds.map_or(SECONDS, |seconds| seconds.parse().expect("TALLY_ORACLE_SECONDS is a number"));
    Duration::from_secs(seconds) / 2
}

/// Histories with successive seeds, until the time is over. Each says how many statements and checks it had.
fn with_seeds(how: &str, mut history: impl FnMut(u64) -> (usize, usize)) {
    let deadline = Instant::now() + duration();
    let mut total = (0, 0);
    for seed in seed().. {
        let begin = Instant::now();
        println!("TALLY_ORACLE_SEED={seed} {how}");
        let (statements, checks) = history(seed);
        println!("TALLY_ORACLE_SEED={seed} {how}: {statements} statements, {checks} checks in {:.0?}", begin.elapsed());
        total = (total.0 + statements, total.1 + checks);
        if Instant::now() > deadline {
            break;
        }
    }
    println!("{how}: {} statements, {} checks in all", total.0, total.1);
}

/// How long a session waits for a lock: not at all while no other moves. A prepared transaction may keep one for long.
fn patience(parallel: bool) -> &'static str {
    if parallel { "1s" } else { "1ms" }
}

/// The sources with rows, and one rollup for every other query; sessions create the others in passing.
fn world(database: &Database, parallel: bool) -> (Arc<World>, Actor) {
    world_with(database, parallel, &|_| true)
}

/// The same with few rollups, where a planted fault is to be noticed: then many steps are taken in little time.
fn small_world(database: &Database) -> (Arc<World>, Actor) {
    world_with(database, false, &|name| {
        name.ends_with("_all") || ["events_0", "clicks_0", "clicks_1", "clicks_1_above"].contains(&name)
    })
}

fn world_with(database: &Database, parallel: bool, is_wanted: &dyn Fn(&str) -> bool) -> (Arc<World>, Actor) {
    // A worker may be refreshing, where there are some.
    let mut owner = Actor::new(database, "60s");
    owner.client.batch_execute(schema::SCHEMA).unwrap();
    let queries: HashMap<_, _> = SOURCES.map(|source| (source, schema::queries(source))).into();
    let world = World::new(queries.clone(), parallel);
    let mut create_permanent = |name: String, source: &'static str, query: String| {
        if !is_wanted(&name) {
            return;
        }
        let rollup = Rollup::new(name, Definition::new(source, query, 0), true);
        by_owner(&world, &mut owner, Action::Statement(rollup.create(), Expect::Success)).unwrap();
        world.put(Arc::new(rollup));
    };
    for (first, source) in SOURCES.into_iter().enumerate() {
        create_permanent(format!("{source}_all"), source, schema::ALL_COLUMNS.replace("{source}", source));
        for (number, query) in queries[source].iter().enumerate().skip(first).step_by(2) {
            let name = format!("{source}_{number}");
            create_permanent(name.clone(), source, query.clone());
            if let Some(level) = schema::level(number, &name) {
                create_permanent(format!("{name}_above"), source, level);
            }
        }
    }
    // By the hour: a change of one row heals no other group.
    create_permanent("clicks_0".into(), "clicks", queries["clicks"][0].clone());
    create_permanent("events_top".into(), "events", schema::UPPER_LEVEL.replace("{source}", "events_0_above"));
    (Arc::new(world), owner)
}

fn by_owner(world: &World, owner: &mut Actor, action: Action) -> Result<bool, Failure> {
    world.take(owner, Step { session: OWNER, action, tolerated: &[], error: None })
}

fn sessions(database: &Database, world: &Arc<World>) -> Vec<Session> {
    (0..SESSIONS).map(|number| Session::new(number, database, Arc::clone(world))).collect()
}

/// One step; after it, every session with an open transaction looks, and the one that took the step.
fn take_turn(sessions: &mut [Session], rng: &mut StdRng) -> Result<(), Failure> {
    let turn = rng.random_range(0..sessions.len());
    if rng.random_ratio(1, 12) {
        sessions.iter_mut().try_for_each(|session| session.finish(rng))?;
        sessions[turn].step_alone(rng)?;
    } else {
        sessions[turn].step(rng)?;
    }
    for (number, session) in sessions.iter_mut().enumerate() {
        if number == turn || session.is_open() {
            session.check(rng)?;
        }
    }
    Ok(())
}

/// With everything ended and refreshed nothing is pending: the rollup's answer is that of its stored table.
fn count_all(world: &World, owner: &mut Actor, sessions: &mut [Session], rng: &mut StdRng) -> Result<(), Failure> {
    for session in sessions.iter_mut() {
        session.finish(rng)?;
    }
    let rollups = world.rollups.lock().unwrap().clone();
    for rollup in &rollups {
        let (name, source) = (&rollup.name, rollup.definition.source);
        by_owner(world, owner, Action::Check(Arc::clone(&rollup.check)))?;
        by_owner(world, owner, Action::Statement(format!("CALL tally.refresh('{name}')"), Expect::Success))?;
        let pending = Check {
            title: format!("rows of {source} are still pending after a refresh with nothing open"),
            query: format!("SELECT pending::text FROM tally.pending_rows('{source}') AS pending WHERE pending <> 0"),
        };
        let verified = Check {
            title: format!("tally.verify finds a difference in {name}"),
            query: format!("SELECT v::text FROM tally.verify('{name}') AS v"),
        };
        for check in [Arc::clone(&rollup.check), Arc::new(pending), Arc::new(verified)] {
            by_owner(world, owner, Action::Check(check))?;
        }
    }
    build_all(world, owner)?;
    rollups.iter().try_for_each(|rollup| by_owner(world, owner, Action::Check(Arc::clone(&rollup.check))).map(drop))
}

/// Counts every row, and builds what is being built.
fn build_all(world: &World, owner: &mut Actor) -> Result<(), Failure> {
    SOURCES.iter().try_for_each(|source| {
        let build = format!("CALL tally.build('{source}_all')");
        by_owner(world, owner, Action::Statement(build, Expect::Success)).map(drop)
    })
}

/// A history that has failed, shortened if it fails every time.
fn explain(cluster: &Cluster, seed: u64, history: &[Step], failure: &Failure) -> String {
    let head = format!("TALLY_ORACLE_SEED={seed}: {failure}");
    match Laboratory::new(cluster, failure).minimise(history, MINIMISE) {
        Some(steps) => format!(
            "{head}\n\n-- {} of {} steps are enough:\n{}\n{}",
            steps.len(),
            history.len(),
            schema::SCHEMA,
            script(&steps)
        ),
        None => format!("{head}\n\nThe same steps in another database do not fail."),
    }
}

#[test]
fn random_history_keeps_every_session_exact() {
    let cluster = Cluster::start(&QUIET);
    with_seeds("one after the other", |seed| {
        let database = cluster.database();
        let (world, mut owner) = world(&database, false);
        let mut sessions = sessions(&database, &world);
        let mut rng = StdRng::seed_from_u64(seed);
        let answer = (0..STEPS)
            .try_for_each(|_| take_turn(&mut sessions, &mut rng))
            .and_then(|()| count_all(&world, &mut owner, &mut sessions, &mut rng));
        if let Err(failure) = answer {
            let (story, history) = (world.story(), world.history());
            // Its prepared transactions have the names that the repetition uses.
            drop((sessions, owner, database));
            panic!("{story}\n\n{}", explain(&cluster, seed, &history, &failure));
        }
        world.count()
    });
}

#[test]
fn random_sessions_at_the_same_time_stay_exact() {
    with_seeds("at the same time", |seed| {
        let database = cluster::database();
        let (world, mut owner) = world(&database, true);
        let mut sessions = sessions(&database, &world);
        let mut rng = StdRng::seed_from_u64(seed);
        thread::scope(|scope| {
            for session in &mut sessions {
                let (world, mut rng) = (&world, StdRng::seed_from_u64(rng.next_u64()));
                scope.spawn(move || {
                    for _ in 0..STEPS / SESSIONS {
                        if let Err(failure) = session.step(&mut rng).and_then(|()| session.check(&mut rng)) {
                            // Others may wait for a lock of this session.
                            let _ = session.actor.client.batch_execute("ROLLBACK");
                            panic!("{}\n\nTALLY_ORACLE_SEED={seed}: {failure}", world.story());
                        }
                    }
                    session.finish(&mut rng).unwrap();
                });
            }
        });
        if let Err(failure) = count_all(&world, &mut owner, &mut sessions, &mut rng) {
            panic!("{}\n\nTALLY_ORACLE_SEED={seed}: {failure}", world.story());
        }
        world.count()
    });
}
