//! Faults that loaders of this kind have had, a test each. Where another file has the test already:
//!
//! - batch lost for one bad row (Vector): `poison`;
//! - duplicates at scale-out (Vector #12084, ClickHouse #7259): `pipeline::loaders_share_the_parts_and_take_over_from_each_other`;
//! - unbounded memory (kafka-connect-jdbc #170): the suite `kafka`, where the loader is a process of its own.
//!
//! And what a person has to repair: nothing is lost or doubled meanwhile, and loading goes on by itself afterwards.

use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use tally_loader::init;
use tally_loader::postgres as connection;
use tally_server_tests::cluster::Cluster;

use crate::loading::{Loading, PLAIN, Running, block_on, produce, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint);";

/// kafka-connect-jdbc #1597.
#[test]
fn offsets_are_never_committed_without_their_rows() {
    let mut loading = Loading::new(2, TABLE);
    loading.policy = "batch = { rows = 100, linger = \"5 ms\" }".into();
    let running = loading.start();
    let mut session = loading.session();
    // One statement has one snapshot.
    let differ =
        "SELECT (SELECT count(*) FROM public.t) <> (SELECT coalesce(sum(next_offset), 0) FROM tally.loader_offsets),
                         (SELECT count(*) FROM public.t)";
    for round in 1..=10 {
        produce(&loading, 2, (round - 1) * 1_000, 1_000);
        // Before its first success a loader would leave.
        running.wait_for_rows((round as u64 - 1) * 1_000 + 1);
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tally-loader test'
                     AND datname = current_database() AND state <> 'idle'";
        session.execute(end, &[]).unwrap();
        wait_until("the rows are there", || {
            let row = session.query_one(differ, &[]).unwrap();
            assert!(!row.get::<_, bool>(0), "positions and rows differ in one snapshot");
            row.get::<_, i64>(1) == round * 1_000
        });
    }
    running.stop().unwrap();
    loading.assert_exactly_once(10_000);
}

/// kafka-connect-jdbc #515, #964.
#[test]
fn a_restart_of_the_database_leaves_nothing_stuck() {
    let server = Cluster::start(PLAIN);
    let loading = Loading::on(&server, 2, TABLE);
    let running = loading.start();
    for round in 1..=3 {
        produce(&loading, 2, (round - 1) * 1_000, 1_000);
        running.wait_for_rows((round as u64 - 1) * 1_000 + 1);
        server.stop();
        wait_until("the outage is seen", || !running.metrics.postgres_up.load(Relaxed));
        server.restart();
        wait_until("the rows are there", || loading.number("SELECT count(*) FROM public.t") == round * 1_000);
    }
    running.stop().unwrap();
    loading.assert_exactly_once(3_000);
}

/// kafka-connect-jdbc #1076.
#[test]
fn a_deadlock_costs_a_retry() {
    let server = Cluster::start(&[PLAIN[0], ("deadlock_timeout", "3s")]);
    let loading = Loading::on(&server, 1, "CREATE TABLE public.t (a bigint PRIMARY KEY);");
    let running = loading.start();
    let mut other = loading.session();
    other.batch_execute("SET deadlock_timeout = '100s'; BEGIN; INSERT INTO public.t VALUES (1)").unwrap();
    produce(&loading, 1, 0, 2);
    wait_until("the loader waits for the key", || is_blocked(&loading));
    // Now each waits for the other, and the loader is the one who looks first.
    other.batch_execute("INSERT INTO public.t VALUES (0)").unwrap();
    other.batch_execute("ROLLBACK").unwrap();
    running.wait_for_rows(2);
    assert!(server.log().contains("deadlock detected"));
    running.stop().unwrap();
    loading.assert_exactly_once(2);
}

fn is_blocked(loading: &Loading<'_>) -> bool {
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tally-loader test'
                   AND datname = current_database() AND wait_event_type = 'Lock'";
    loading.number(waits) > 0
}

/// In the middle of a COPY no timeout of the server ends a session.
#[test]
fn a_frozen_loaders_copy_does_not_hold_up_its_successor() {
    let loading = Loading::new(1, "CREATE TABLE public.t (a bigint PRIMARY KEY);");
    let running = loading.start();
    let mut zombie = loading.session();
    zombie.batch_execute("SET application_name = 'tally-loader test'; BEGIN; INSERT INTO public.t VALUES (0)").unwrap();
    produce(&loading, 1, 0, 10);
    running.wait_for_rows(10);
    assert!(zombie.batch_execute("COMMIT").is_err(), "its session was ended");
    running.stop().unwrap();
    loading.assert_exactly_once(10);
}

/// Loads 10 rows, breaks something, sends 10 more, sees the failure, repairs, and expects the loader to go on by itself.
fn broken_and_repaired(loading: &Loading<'_>, running: Running, breaks: &str, repairs: &str, total: i64) {
    let mut session = loading.session();
    session.batch_execute(breaks).unwrap();
    produce(loading, 1, 10, 10);
    wait_until("the failure is seen", || !running.metrics.postgres_up.load(Relaxed));
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets"), 10, "the position waits for the rows");
    session.batch_execute(repairs).unwrap();
    running.wait_for_rows(20);
    running.stop().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), total);
    assert_eq!(loading.number("SELECT count(DISTINCT a) FROM public.t"), total);
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets"), 20);
    assert_eq!(loading.number("SELECT count(*) FROM tally.dead_letters"), 0);
}

fn loaded(loading: &Loading<'_>) -> Running {
    produce(loading, 1, 0, 10);
    let running = loading.start();
    running.wait_for_rows(10);
    running
}

#[test]
fn a_full_disk_is_waited_out() {
    // Stands in for the file system: the same error from the same statement.
    let loading = Loading::new(
        1,
        "CREATE TABLE public.t (a bigint);
         CREATE FUNCTION public.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
         CREATE TRIGGER disk BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.full();
         ALTER TABLE public.t DISABLE TRIGGER disk;",
    );
    let running = loaded(&loading);
    let (fills, frees) = ("ALTER TABLE public.t ENABLE TRIGGER disk", "ALTER TABLE public.t DISABLE TRIGGER disk");
    broken_and_repaired(&loading, running, fills, frees, 20);
}

#[test]
fn a_dropped_table_is_waited_for() {
    let loading = Loading::new(1, TABLE);
    let running = loaded(&loading);
    // The rows of the old table are gone with it; the loader owes those that came after.
    broken_and_repaired(&loading, running, "DROP TABLE public.t", TABLE, 10);
}

#[test]
fn a_right_that_was_revoked_is_waited_for() {
    let mut loading = Loading::new(1, TABLE);
    let role =
        "DO $$ BEGIN CREATE ROLE revoked_loader LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$";
    loading.session().batch_execute(role).unwrap();
    let config = loading.config();
    block_on(async {
        let client = connection::connect(&config.postgres, "test").await.unwrap();
        init::grant(&client, &config, "revoked_loader").await.unwrap();
    });
    loading.user = "revoked_loader".into();
    let running = loaded(&loading);
    let revoke = "REVOKE INSERT ON public.t FROM revoked_loader";
    broken_and_repaired(&loading, running, revoke, "GRANT INSERT ON public.t TO revoked_loader", 20);
}

/// Its rows have no place while it is gone, which makes them dead letters; those of other leaves load.
#[test]
fn a_leaf_that_is_dropped_in_the_middle_of_a_batch_loses_nothing() {
    let mut loading = Loading::new(
        1,
        "CREATE TABLE public.t (a bigint) PARTITION BY RANGE (a);
         CREATE TABLE public.low PARTITION OF public.t FOR VALUES FROM (0) TO (100);
         CREATE TABLE public.high PARTITION OF public.t FOR VALUES FROM (100) TO (1000);",
    );
    loading.policy = "dead_letters = { stop_above_ratio = 1.0 }".into();
    produce(&loading, 1, 102, 1);
    let running = loading.start();
    running.wait_for_rows(1);
    // The batch is held where it moves the position: its rows are copied, in both leaves.
    let mut holder = loading.session();
    holder.batch_execute("BEGIN; SELECT FROM tally.loader_offsets FOR UPDATE").unwrap();
    produce(&loading, 1, 0, 1);
    produce(&loading, 1, 100, 1);
    wait_until("the loader waits to move the position", || is_blocked(&loading));
    let mut session = loading.session();
    let dropping = thread::spawn(move || session.batch_execute("DROP TABLE public.low"));
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IN ('public.t'::regclass, 'public.low'::regclass)";
    wait_until("the drop waits for the batch", || loading.number(waits) > 0);
    holder.batch_execute("COMMIT").unwrap();
    dropping.join().unwrap().unwrap();
    running.wait_for_rows(3);
    produce(&loading, 1, 1, 1);
    produce(&loading, 1, 101, 1);
    running.wait_for_rows(4);
    running.stop().unwrap();
    // Row 0 was committed and went with its leaf.
    assert_eq!(loading.texts("SELECT a::text FROM public.t ORDER BY a"), ["100", "101", "102"]);
    assert_eq!(
        loading.texts("SELECT format('%s %s', message_offset, reason) FROM tally.dead_letters"),
        ["3 no_partition"]
    );
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets"), 5);
}
