//! A rollup equals its defining query in every session, after every step of a random history. `make oracle` goes through such
//! histories for as long as you like; each has a seed, which a red run prints. One session after the other, a seed always gives
//! the same history, and if that fails it is cut down to the few statements that matter.
//!
//! ```sh
//! make oracle SECONDS=3600                            # for an hour
//! make oracle SECONDS=60 SEED=17                      # history 17, and those after it
//! ```

mod history;
mod minimise;
mod schema;
mod session;
mod statements;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt, SeedableRng};
use tally_server_tests::cluster::{self, Cluster, Database};

use history::{Action, Actor, Check, Expect, Failure, Step, script};
use minimise::Laboratory;
use schema::SOURCES;
use session::{Rollup, Session, World, create};

const SESSIONS: usize = 6;
/// The session that creates the rollups of the start, plants faults, and counts all rows in the end.
const OWNER: usize = SESSIONS;
/// The steps of a history, which always goes to its end: a seed is a seed however fast the machine is.
const STEPS: usize = 300;
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
        name.ends_with("_all") || ["events_0", "clicks_1", "clicks_1_above"].contains(&name)
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
        let rollup = Arc::new(Rollup::new(name, source, query, true, 0));
        by_owner(&world, &mut owner, Action::Statement(create(&rollup), Expect::Success)).unwrap();
        world.rollups.lock().unwrap().push(rollup);
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
    for rollup in rollups {
        let (name, source) = (&rollup.name, rollup.source);
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
    Ok(())
}

/// A history that has failed, shortened if it fails every time.
fn explain(cluster: &Cluster, seed: u64, history: &[Step], failure: &Failure) -> String {
    let head = format!("TALLY_ORACLE_SEED={seed}: {failure}");
    match Laboratory::new(cluster, failure).minimise(history) {
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
    // A worker could be in the way of a session, or refresh between the fault and its effect.
    let cluster = Cluster::start(&QUIET);
    let database = cluster.database();
    let (world, mut superuser) = small_world(&database);
    let superuser = &mut superuser.client;
    let mut sessions = sessions(&database, &world);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut take_turns = |sessions: &mut [Session], seconds: f32| {
        let deadline = Instant::now() + Duration::from_secs_f32(seconds);
        let answer = std::iter::repeat_with(|| take_turn(sessions, &mut rng)).try_for_each(|answer| match answer {
            Err(failure) => ControlFlow::Break(Some(failure)),
            Ok(()) if Instant::now() > deadline => ControlFlow::Break(None),
            Ok(()) => ControlFlow::Continue(()),
        });
        answer.break_value().flatten()
    };
    let mut writer = database.connect();
    writer.batch_execute("BEGIN").unwrap();
    writer.batch_execute(&lonely("", "")).unwrap();
    superuser.batch_execute("INSERT INTO clicks (event_time, tenant) VALUES ('2024-04-01Z', 1)").unwrap();
    // Now the tag of the writer is among the open ones.
    superuser.batch_execute("CALL tally.refresh('clicks_1')").unwrap();
    let before = take_turns(&mut sessions, 0.5);
    assert_eq!(before, None, "TALLY_ORACLE_SEED={seed}: red before the fault");
    sessions.iter_mut().for_each(|session| session.finish(&mut StdRng::seed_from_u64(seed)).unwrap());
    if !is_writer_open {
        writer.batch_execute("COMMIT").unwrap();
    }
    for statement in fault {
        superuser.batch_execute(statement).unwrap();
    }
    if is_writer_open {
        writer.batch_execute("COMMIT").unwrap();
    }
    // At the first look, before a step could heal it.
    let seen = sessions[0].check(&mut StdRng::seed_from_u64(seed)).err();
    let failure = seen.or_else(|| take_turns(&mut sessions, 30.0)).expect("the oracle has not noticed the fault");
    assert!(matches!(failure, Failure::Rows { .. }), "TALLY_ORACLE_SEED={seed}: red for another reason: {failure}");
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
    assert_noticed(false, &["CALL tally.refresh('clicks_1')", change]);
}

#[test]
fn random_test_notices_stored_groups_that_count_too_much() {
    assert_noticed(true, &["UPDATE events_0_stored SET n = n + 1"]);
}

/// Another session than those of the random histories.
const WRITER: usize = OWNER + 1;

/// In the middle of a history these statements plant a fault, so that it fails, and at most so many of its steps are enough to fail
/// again.
fn assert_minimised(fault: &[(usize, &str)], most: usize) {
    let seed = seed();
    let cluster = Cluster::start(&QUIET);
    let database = cluster.database();
    let (world, mut owner) = small_world(&database);
    let mut sessions = sessions(&database, &world);
    let mut rng = StdRng::seed_from_u64(seed);
    let before = (0..60)
        .try_for_each(|_| take_turn(&mut sessions, &mut rng))
        .and_then(|()| sessions.iter_mut().try_for_each(|session| session.finish(&mut rng)));
    assert_eq!(before, Ok(()), "TALLY_ORACLE_SEED={seed}: red before the fault");
    let checks: Vec<Arc<Check>> = {
        let rollups = world.rollups.lock().unwrap();
        rollups.iter().filter(|rollup| rollup.permanent).map(|rollup| Arc::clone(&rollup.check)).collect()
    };
    let mut writer = Actor::new(&database, "60s");
    let failure = fault
        .iter()
        .try_for_each(|(session, sql)| {
            let actor = if *session == WRITER { &mut writer } else { &mut owner };
            let action = Action::Statement((*sql).into(), Expect::Success);
            world.take(actor, Step { session: *session, action, tolerated: &[], error: None })?;
            checks.iter().try_for_each(|check| by_owner(&world, &mut owner, Action::Check(Arc::clone(check))).map(drop))
        })
        .expect_err("the oracle has not noticed the fault");
    assert!(matches!(failure, Failure::Rows { .. }), "TALLY_ORACLE_SEED={seed}: {failure}");
    let history = world.history();
    drop((sessions, owner, writer, database));
    let laboratory = Laboratory::new(&cluster, &failure);
    let steps = laboratory.minimise(&history).expect("the history fails again");
    println!("{} of {} steps:\n{}", steps.len(), history.len(), script(&steps));
    assert!(steps.len() <= most, "TALLY_ORACLE_SEED={seed}: {} of {} steps are left", steps.len(), history.len());
    assert!(laboratory.fails(&steps), "TALLY_ORACLE_SEED={seed}: the short history does not fail");
}

#[test]
fn history_with_a_forgotten_transaction_becomes_a_short_one() {
    let row = "INSERT INTO clicks (event_time, tenant) VALUES ('2024-04-01Z', 1)";
    assert_minimised(
        &[
            (WRITER, "BEGIN"),
            (WRITER, row),
            (OWNER, row),
            (OWNER, "CALL tally.refresh('clicks_all')"),
            (OWNER, "UPDATE tally.sources SET open_tags = '{}'"),
            (WRITER, "COMMIT"),
        ],
        // A rollup, these, and the check.
        9,
    );
}

/// The audit finds the trigger in its place; that it does nothing shows in the rollups only.
#[test]
fn history_with_a_lame_trigger_becomes_a_short_one() {
    assert_minimised(
        &[
            (OWNER, "INSERT INTO day_0 (event_time, tenant) VALUES ('2024-03-30 07:00Z', 1)"),
            (OWNER, "CALL tally.refresh('events_all')"),
            (
                OWNER,
                "CREATE OR REPLACE FUNCTION lame() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                 SET allow_system_table_mods = on; \
                 UPDATE pg_trigger SET tgfoid = 'lame'::regproc WHERE tgrelid = 'day_0'::regclass AND tgname = 'tally_delete'; \
                 RESET allow_system_table_mods; ALTER TABLE day_0 SET (fillfactor = 100)",
            ),
            (OWNER, "DELETE FROM day_0 WHERE event_time = '2024-03-30 07:00Z'"),
        ],
        7,
    );
}
