//! The negative controls: a fault that is planted behind some history turns the oracle red. Its rows lie in groups of their own, and
//! nothing else is pending: neither time nor chance can hide it.

use super::*;

/// Another session than those of the random histories.
const WRITER: usize = OWNER + 1;
/// The steps before a fault, always the same.
const BEGINNING: usize = 40;
const SEED: u64 = 17;

/// Who says what. The oracle stays green until the last statement, and is red then.
type Fault<'a> = &'a [(usize, &'a str)];

/// The history, whose last step is the check that has found the fault, and what it has found.
fn plant(cluster: &Cluster, fault: Fault) -> (Vec<Step>, Failure) {
    let database = cluster.database();
    let (world, mut owner) = small_world(&database);
    let mut sessions = sessions(&database, &world);
    let mut rng = StdRng::seed_from_u64(SEED);
    let beginning = (0..BEGINNING)
        .try_for_each(|_| take_turn(&mut sessions, &mut rng))
        .and_then(|()| sessions.iter_mut().try_for_each(|session| session.finish(&mut rng)))
        .and_then(|()| build_all(&world, &mut owner));
    assert_eq!(beginning, Ok(()), "red before the fault");
    let checks: Vec<Arc<Check>> = {
        let rollups = world.rollups.lock().unwrap();
        rollups.iter().filter(|rollup| rollup.permanent).map(|rollup| Arc::clone(&rollup.check)).collect()
    };
    let mut writer = Actor::new(&database, "60s");
    let mut take = |&(session, sql): &(usize, &str)| {
        let actor = if session == WRITER { &mut writer } else { &mut owner };
        let action = Action::Statement(sql.into(), Expect::Success);
        world.take(actor, Step { session, action, tolerated: &[], error: None })?;
        checks.iter().try_for_each(|check| by_owner(&world, &mut owner, Action::Check(Arc::clone(check))).map(drop))
    };
    let (last, before) = fault.split_last().expect("a fault has steps");
    assert_eq!(before.iter().try_for_each(&mut take), Ok(()), "red before the last step");
    let failure = take(last).expect_err("the oracle has not noticed the fault");
    assert!(matches!(failure, Failure::Rows { .. }), "red for another reason: {failure}");
    println!("{failure}");
    (world.history(), failure)
}

fn assert_noticed(fault: Fault) {
    plant(&Cluster::start(&QUIET), fault);
}

/// At most so many steps of the history are enough to fail again.
fn assert_noticed_and_minimised(fault: Fault, most: usize) {
    let cluster = Cluster::start(&QUIET);
    let (history, failure) = plant(&cluster, fault);
    let laboratory = Laboratory::new(&cluster, &failure);
    // However slow the machine is.
    let steps = laboratory.minimise(&history, Duration::from_secs(3600)).expect("the history fails again");
    println!("{} of {} steps:\n{}", steps.len(), history.len(), script(&steps));
    assert!(steps.len() <= most, "{} of {} steps are left:\n{}", steps.len(), history.len(), script(&steps));
    assert!(laboratory.fails(&steps), "the short history does not fail");
}

const CLICK: &str = "INSERT INTO clicks (event_time, tenant) VALUES ('2031-01-01Z', 1)";
const COUNT_CLICKS: &str = "CALL tally.refresh('clicks_all')";
const EVENT: &str = "INSERT INTO events (event_time, tenant) VALUES ('2031-01-01Z', 1)";
const COUNT_EVENTS: &str = "CALL tally.refresh('events_all')";
const REFUSED_TO_COUNT: &str = "DO $$ BEGIN CALL tally.refresh('events_all'); RAISE 'not refused'; \
    EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END $$";

#[test]
fn open_transaction_that_is_forgotten_is_noticed_by_few_steps() {
    assert_noticed_and_minimised(
        &[
            (WRITER, "BEGIN"),
            (WRITER, CLICK),
            (OWNER, CLICK),
            (OWNER, COUNT_CLICKS),
            (OWNER, "UPDATE tally.sources SET open_tags = '{}'"),
            (WRITER, "COMMIT"),
        ],
        // A rollup, these, and the check.
        8,
    );
}

/// Taken for rows of the transaction that has changed them, which nobody has counted.
#[test]
fn changes_of_counted_rows_that_are_taken_for_uncounted_are_noticed() {
    assert_noticed(&[
        (OWNER, CLICK),
        (OWNER, COUNT_CLICKS),
        (
            OWNER,
            "DO $$ BEGIN EXECUTE 'CREATE OR REPLACE VIEW clicks_0_changes AS ' || \
               replace(pg_get_viewdef('clicks_0_changes'::regclass), 'clicks.tally_tag', 'clicks.tally_writer AS tally_tag'); END $$",
        ),
        (OWNER, "DELETE FROM clicks WHERE event_time >= '2031-01-01Z'"),
    ]);
}

#[test]
fn rows_that_slip_past_the_guard_are_noticed() {
    assert_noticed(&[(
        OWNER,
        "ALTER TABLE clicks DISABLE TRIGGER tally_insert; \
         INSERT INTO clicks (event_time, tenant, tally_tag) VALUES ('2031-01-01Z', 1, 5); \
         ALTER TABLE clicks ENABLE ALWAYS TRIGGER tally_insert",
    )]);
}

/// By the next refresh as well, but readers cannot know.
#[test]
fn trigger_that_is_missing_on_one_partition_is_noticed() {
    assert_noticed(&[
        (OWNER, EVENT),
        (OWNER, COUNT_EVENTS),
        (OWNER, "ALTER TABLE later DISABLE TRIGGER tally_delete"),
        (OWNER, REFUSED_TO_COUNT),
        (OWNER, "DELETE FROM events WHERE event_time = '2031-01-01Z'"),
    ]);
}

/// The refresh finds it in its place; that it does nothing shows in the rollups only.
#[test]
fn lame_trigger_is_noticed_by_few_steps() {
    assert_noticed_and_minimised(
        &[
            (OWNER, EVENT),
            (OWNER, COUNT_EVENTS),
            (
                OWNER,
                "CREATE FUNCTION lame() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                 SET allow_system_table_mods = on; \
                 UPDATE pg_trigger SET tgfoid = 'lame'::regproc WHERE tgrelid = 'later'::regclass AND tgname = 'tally_delete'; \
                 RESET allow_system_table_mods; ALTER TABLE later SET (fillfactor = 100)",
            ),
            (OWNER, COUNT_EVENTS),
            (OWNER, "DELETE FROM events WHERE event_time = '2031-01-01Z'"),
        ],
        6,
    );
}

/// As if the greatest of the rows that are left were merged with the one of before.
#[test]
fn maximum_that_stays_when_its_row_has_gone_is_noticed() {
    assert_noticed(&[
        (OWNER, "INSERT INTO clicks (event_time, tenant) VALUES ('2031-01-01 00:10Z', 1), ('2031-01-01 00:20Z', 1)"),
        (OWNER, COUNT_CLICKS),
        (
            OWNER,
            "CREATE FUNCTION keep_last() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF TG_OP = 'DELETE' THEN PERFORM set_config('test.last', OLD.last::text, true); RETURN OLD; END IF; \
               NEW.last := greatest(NEW.last, current_setting('test.last')::timestamptz); RETURN NEW; END $$; \
             CREATE TRIGGER keep_last BEFORE INSERT OR DELETE ON clicks_0_stored FOR EACH ROW EXECUTE FUNCTION keep_last()",
        ),
        (OWNER, "DELETE FROM clicks WHERE event_time = '2031-01-01 00:20Z'"),
        (OWNER, COUNT_CLICKS),
    ]);
}

/// A slice is taken for built that is not.
#[test]
fn wrong_boundary_of_a_build_is_noticed() {
    assert_noticed(&[
        (
            OWNER,
            "INSERT INTO events (event_time, tenant) \
             SELECT '2031-01-01Z'::timestamptz + i * interval '1 hour', 1 FROM generate_series(1, 60) AS i",
        ),
        (
            OWNER,
            "SET tally.build_rows = 10; \
             SELECT tally.alter_rollup(rollup, definition) FROM tally.rollups WHERE rollup = 'events_0'::regclass; \
             RESET tally.build_rows",
        ),
        (OWNER, "SELECT tally.build_slice('events_0')"),
        (
            OWNER,
            "UPDATE tally.builds SET unbuilt_before = remaining[1], remaining = remaining[2:] WHERE stored = 'events_0_stored'::regclass",
        ),
    ]);
}

#[test]
fn changes_that_are_lost_are_noticed() {
    assert_noticed(&[
        (OWNER, CLICK),
        (OWNER, COUNT_CLICKS),
        (OWNER, "DELETE FROM clicks WHERE event_time = '2031-01-01Z'; DELETE FROM clicks_changes"),
    ]);
}

#[test]
fn stored_groups_that_count_too_much_are_noticed() {
    assert_noticed(&[(OWNER, EVENT), (OWNER, COUNT_EVENTS), (OWNER, "UPDATE events_0_stored SET n = n + 1")]);
}
