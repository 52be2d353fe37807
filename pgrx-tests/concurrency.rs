//! A rollup equals its defining query in every session, after every step of a random history. A red run prints its seed:
//!
//! ```sh
//! TALLY_ORACLE_SEED=17 cargo server random            # that history again
//! TALLY_ORACLE_SECONDS=3600 cargo server random       # for an hour
//! ```

mod schema;
mod session;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tally_server_tests::cluster::{self, Cluster, Database};

use crate::oracle;
use schema::SOURCES;
use session::{Failure, Rollup, Session, World};

const SESSIONS: usize = 6;

/// From the environment, or a new one for each run.
fn seed() -> u64 {
    let given = std::env::var("TALLY_ORACLE_SEED").ok();
    given.map_or_else(rand::random, |seed| seed.parse().expect("TALLY_ORACLE_SEED is a number"))
}

fn duration() -> Duration {
    let seconds = std::env::var("TALLY_ORACLE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(10, |seconds| seconds.parse().expect("TALLY_ORACLE_SECONDS is a number")))
}

/// The sources with rows, and one rollup for every other query; sessions create the others in passing.
fn world(database: &Database, parallel: bool) -> Arc<World> {
    let mut client = database.connect();
    client.batch_execute(schema::SCHEMA).unwrap();
    let sketches = client.query_one("SELECT to_regproc('tally.distinct_count') IS NOT NULL", &[]).unwrap().get(0);
    let queries: HashMap<_, _> = SOURCES.map(|source| (source, schema::queries(source, sketches))).into();
    let world = World::new(queries, parallel);
    for (first, source) in SOURCES.into_iter().enumerate() {
        for (number, query) in world.queries[source].iter().skip(first).step_by(2).enumerate() {
            let name = format!("{source}_{number}");
            client.batch_execute(&format!("SELECT tally.create_rollup('{name}', $r${query}$r$, '1 second')")).unwrap();
            world.rollups.lock().unwrap().push(Rollup { name, source, query: query.clone(), permanent: true });
        }
    }
    Arc::new(world)
}

fn sessions(database: &Database, world: &Arc<World>) -> Vec<Session> {
    (0..SESSIONS)
        .map(|number| Session::new(format!("session {number}"), database.connect(), Arc::clone(world)))
        .collect()
}

/// One step after the other; after each, every session with an open transaction looks, and the one that took the step.
fn take_turns(sessions: &mut [Session], rng: &mut StdRng, deadline: Instant) -> Result<(), Failure> {
    while Instant::now() < deadline {
        let turn = rng.random_range(0..sessions.len());
        sessions[turn].step(rng)?;
        for (number, session) in sessions.iter_mut().enumerate() {
            if number == turn || session.is_open() {
                session.check(rng)?;
            }
        }
    }
    Ok(())
}

/// With everything ended and refreshed nothing is pending: the rollup's answer is that of its stored table.
fn assert_all_counted(database: &Database, sessions: &mut [Session], world: &World, rng: &mut StdRng) {
    for session in sessions.iter_mut() {
        session.finish(rng).unwrap();
    }
    let mut client = database.connect();
    for rollup in world.rollups.lock().unwrap().iter() {
        oracle::assert_equal_now_and_refreshed(&mut client, &rollup.name, rollup.source, &rollup.query);
        let verify = format!("SELECT * FROM tally.verify('{}')", rollup.name);
        assert!(client.query(&verify, &[]).unwrap().is_empty(), "{verify} finds a difference");
    }
}

#[test]
fn random_history_keeps_every_session_exact() {
    let seed = seed();
    println!("TALLY_ORACLE_SEED={seed}");
    // No workers and no vacuum: the seed alone decides what happens.
    let cluster = Cluster::start(&[("tally.refresh_enabled", "off"), ("autovacuum", "off")]);
    let database = cluster.database();
    let world = world(&database, false);
    let mut sessions = sessions(&database, &world);
    let mut rng = StdRng::seed_from_u64(seed);
    if let Err(failure) = take_turns(&mut sessions, &mut rng, Instant::now() + duration()) {
        panic!("{}\n\nTALLY_ORACLE_SEED={seed}: {failure}", world.story());
    }
    println!("{} statements", world.trace.lock().unwrap().len());
    assert_all_counted(&database, &mut sessions, &world, &mut rng);
}

#[test]
fn random_sessions_at_the_same_time_stay_exact() {
    let seed = seed();
    println!("TALLY_ORACLE_SEED={seed}");
    let database = cluster::database();
    let world = world(&database, true);
    let mut sessions = sessions(&database, &world);
    let deadline = Instant::now() + duration();
    thread::scope(|scope| {
        for (number, session) in sessions.iter_mut().enumerate() {
            let world = &world;
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
                while Instant::now() < deadline {
                    if let Err(failure) = session.step(&mut rng).and_then(|()| session.check(&mut rng)) {
                        // Others may wait for a lock of this session.
                        let _ = session.client.batch_execute("ROLLBACK");
                        panic!("{}\n\nTALLY_ORACLE_SEED={seed}: {failure}", world.story());
                    }
                }
                session.finish(&mut rng).unwrap();
            });
        }
    });
    println!("{} statements", world.trace.lock().unwrap().len());
    assert_all_counted(&database, &mut sessions, &world, &mut StdRng::seed_from_u64(seed));
}

/// Seven rows, each in a group of its own: a change of any row heals its group, and a step changes rows of one remainder by 7.
fn lonely(columns: &str, values: &str) -> String {
    format!(
        "INSERT INTO clicks (id, event_time, tenant{columns}) \
         SELECT nextval('ids'), '2031-01-01Z'::timestamptz + i * interval '1 day', 1{values} FROM generate_series(1, 7) AS i"
    )
}

/// The negative controls: a fault is planted in the middle of a history, and the oracle has to notice it.
fn assert_noticed(is_writer_open: bool, fault: &[&str]) {
    let seed = seed();
    let database = cluster::database();
    let world = world(&database, false);
    let mut sessions = sessions(&database, &world);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut writer = database.connect();
    writer.batch_execute("BEGIN").unwrap();
    writer.batch_execute(&lonely("", "")).unwrap();
    let mut superuser = database.connect();
    superuser.batch_execute("INSERT INTO clicks (event_time, tenant) VALUES ('2024-04-01Z', 1)").unwrap();
    // Now the tag of the writer is among the open ones.
    superuser.batch_execute("CALL tally.refresh('clicks_0')").unwrap();
    let before = take_turns(&mut sessions, &mut rng, Instant::now() + Duration::from_millis(500));
    assert_eq!(before, Ok(()), "TALLY_ORACLE_SEED={seed}: red before the fault");
    sessions.iter_mut().for_each(|session| session.finish(&mut rng).unwrap());
    if !is_writer_open {
        writer.batch_execute("COMMIT").unwrap();
    }
    for statement in fault {
        superuser.batch_execute(statement).unwrap();
    }
    if is_writer_open {
        writer.batch_execute("COMMIT").unwrap();
    }
    let after = take_turns(&mut sessions, &mut rng, Instant::now() + Duration::from_secs(30));
    let failure = after.expect_err("the oracle has not noticed the fault");
    assert!(failure.contains("differs from"), "TALLY_ORACLE_SEED={seed}: red for another reason: {failure}");
}

#[test]
fn random_test_notices_an_open_transaction_that_is_forgotten() {
    assert_noticed(true, &["UPDATE tally.sources SET open_tags = '{}'"]);
}

#[test]
fn random_test_notices_rows_that_slip_past_the_guard() {
    assert_noticed(
        false,
        &[
            "ALTER TABLE clicks DISABLE TRIGGER tally_insert",
            &lonely(", tally_tag", ", 5"),
            "ALTER TABLE clicks ENABLE ALWAYS TRIGGER tally_insert",
        ],
    );
}

#[test]
fn random_test_notices_changes_that_were_lost() {
    let change = "UPDATE clicks SET quantity = 50 WHERE event_time > '2031-01-01Z'; DELETE FROM clicks_changes";
    assert_noticed(false, &["CALL tally.refresh('clicks_0')", change]);
}

#[test]
fn random_test_notices_stored_groups_that_count_too_much() {
    assert_noticed(true, &["UPDATE events_0_stored SET n = n + 1"]);
}
