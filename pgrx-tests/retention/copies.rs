//! A set with retention under way that comes from somewhere else, by a dump, a template, pg_upgrade or with the disk: what was carried over is
//! counted exactly; retention goes on only where the database is known to be the original, or after `tally.adopt()`; and undo works.

use std::time::Instant;

use postgres::Client;
use postgres::error::SqlState;
use tally_server_tests::cluster::{self, Cluster, Database};

use super::{
    DEADLINE, RETAIN_BY_HAND, SET, assert_kept, assert_refused, eventually, number, session_with_set, step,
    step_inside_to, step_to, text, touch,
};
use crate::oracle::wait_until;
use crate::rollup::restore::{dump, pass_ids, restore, run};

/// Retention by hand until one partition has been dropped, one is in the trash and one is fenced.
#[track_caller]
fn begin(session: &mut Client) {
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_to(session, "trash");
    end_grace(session);
    step(session);
    for wanted in ["trash", "fenced"] {
        step_to(session, wanted);
    }
    assert_under_way(session);
}

/// Only the owner of a table may step its job by hand.
#[track_caller]
fn as_superuser(session: &mut Client, statement: &str) {
    let role = text(session, "SELECT current_user::text").unwrap();
    session.batch_execute(&format!("RESET ROLE; {statement}; SET ROLE {role}")).unwrap();
}

#[track_caller]
fn end_grace(session: &mut Client) {
    as_superuser(session, "UPDATE tally.retirements SET drop_after = now()");
}

#[track_caller]
fn step_until(session: &mut Client, query: &str) {
    let begin = Instant::now();
    while text(session, query).as_deref() != Some("true") {
        assert!(begin.elapsed() < DEADLINE, "{:?}: {query}", text(session, STATES));
        step(session);
    }
}

const STATES: &str = "SELECT string_agg(state, ' ' ORDER BY retirement) FROM tally.retirements";
const VERDICT: &str =
    "SELECT coalesce(left(reason, 3), verdict) FROM tally.partition_status WHERE parent = 'events'::regclass";

#[track_caller]
fn assert_under_way(session: &mut Client) {
    assert_eq!(text(session, STATES).as_deref(), Some("trash fenced"));
    assert_eq!(number(session, "SELECT count(*) FROM tally.departures"), 1, "of what can come back");
    assert_eq!(number(session, "SELECT count(DISTINCT _departure) FROM by_day_retained"), 2);
    assert_kept(session);
}

/// Everything that was under way goes on: the rollups count, what is fenced moves on, what is in the trash comes back and is dropped at last.
#[track_caller]
fn assert_goes_on(session: &mut Client) {
    assert_under_way(session);
    touch(session);
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(session);
    let late = "INSERT INTO events SELECT min(at), 1, 1 FROM events";
    assert_refused(session, late, "TL002", "is being removed by retention", "tally.undo_retention('");

    let oldest = "SELECT partition::text FROM tally.retirements ORDER BY retirement LIMIT 1";
    let trash = text(session, oldest).unwrap();
    assert!(trash.starts_with("tally_trash."), "{trash}");
    let before = number(session, "SELECT count(*) FROM events");
    let rows = number(session, &format!("SELECT count(*) FROM {trash}"));
    assert!(rows > 0);
    session.batch_execute(&format!("SELECT tally.undo_retention('events', '{trash}')")).unwrap();
    assert_eq!(number(session, "SELECT count(*) FROM events"), before + rows);
    assert_kept(session);
    step_to(session, "trash");
    assert_eq!(text(session, STATES).as_deref(), Some("kept trash"));
    assert_kept(session);
    // Its rows are rows of the table as all others.
    session.batch_execute("BEGIN; DELETE FROM events WHERE at < (SELECT min(at) + '2 hours' FROM events)").unwrap();
    for rollup in ["by_day", "by_key"] {
        assert_eq!(number(session, &format!("SELECT count(*) FROM tally.verify('{rollup}')")), 0, "{rollup}");
    }
    session.batch_execute("ROLLBACK").unwrap();

    session
        .batch_execute(
            "SELECT tally.set_partition_policy('events', grace => '0');
             SELECT tally.resume_partitions('events'); SELECT tally.pause_partitions('events')",
        )
        .unwrap();
    end_grace(session);
    step_until(
        session,
        "SELECT (NOT EXISTS (SELECT FROM events WHERE at < now() - interval '4 days') AND NOT EXISTS (SELECT FROM tally.retirements))::text",
    );
    assert_eq!(number(session, "SELECT count(*) FROM pg_class WHERE relnamespace = 'tally_trash'::regnamespace"), 0);
    touch(session);
    session.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_kept(session);
    assert_eq!(text(session, VERDICT).as_deref(), Some("ok"));
}

/// Retention stands still, and all the rest is as it was, until what the status says is done.
#[track_caller]
fn assert_waits_for_adoption(session: &mut Client) {
    assert_eq!(text(session, VERDICT).as_deref(), Some("P09"));
    for _ in 0..3 {
        assert_eq!(step(session), Some(0));
    }
    assert_under_way(session);
    let next = "SELECT next_sql FROM tally.partition_status WHERE parent = 'events'::regclass";
    let next = text(session, next).unwrap();
    as_superuser(session, &next);
    assert_eq!(text(session, VERDICT).as_deref(), Some("ok"));
}
/// Nobody may be connected to a template.
#[track_caller]
fn wait_until_unused(database: &Database<'_>) {
    let unused = format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{}')", database.name());
    wait_until(&mut Cluster::shared().connect("postgres"), &unused);
}

#[test]
fn a_copy_removes_nothing_before_it_is_adopted() {
    let database = cluster::database();
    let mut session = session_with_set(&database);
    // As the owner, and by way of a savepoint.
    session
        .batch_execute(
            "BEGIN; DELETE FROM tally.adoptions; SAVEPOINT s; CREATE TABLE other (at date NOT NULL) PARTITION BY RANGE (at);
             SELECT tally.partition_by_time('other', '1 month'); RELEASE s; COMMIT",
        )
        .unwrap();
    session.batch_execute("VACUUM FREEZE tally.adoptions").unwrap();
    session.batch_execute("VACUUM FULL tally.adoptions").unwrap();
    begin(&mut session);
    session.batch_execute("SELECT tally.pause_partitions('other')").unwrap();
    assert_eq!(text(&mut session, VERDICT).as_deref(), Some("ok"));
    let restored = Cluster::shared().empty_database();
    restored.psql(&database.dump());
    drop(session);
    wait_until_unused(&database);
    for copy in [restored, database.copy()] {
        let mut session = copy.connect();
        session.batch_execute("CREATE ROLE stranger").ok();
        session.batch_execute("SET ROLE stranger").unwrap();
        assert_refused(&mut session, "SELECT tally.adopt()", "42501", "must be owner of the database", "superuser");
        session.batch_execute("RESET ROLE").unwrap();
        assert_waits_for_adoption(&mut session);
        assert_goes_on(&mut session);
    }
    let mut session = database.connect();
    session.batch_execute("DROP ROLE stranger").unwrap();
    assert_goes_on(&mut session);
}

#[test]
fn an_archive_restored_by_several_workers_waits_for_its_adoption() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    let archive = archive.to_str().unwrap();
    let database = cluster::database();
    begin(&mut session_with_set(&database));
    run(database.dump_command().args(["--format=directory", "--jobs=3", "--file", archive]));
    let restored = Cluster::shared().empty_database();
    run(restored.restore_command().args(["--exit-on-error", "--jobs=3", archive]));
    assert_waits_for_adoption(&mut restored.connect());
    // Again, over what has become of it.
    run(restored.restore_command().args(["--exit-on-error", "--clean", "--if-exists", archive]));
    let mut session = restored.connect();
    assert_waits_for_adoption(&mut session);
    assert_goes_on(&mut session);
}

#[test]
fn the_owner_of_the_tables_can_dump_what_is_under_way() {
    let (database, restored) = (cluster::database(), Cluster::shared().empty_database());
    let owner = format!("{}_owner", database.name());
    let mut session = database.connect();
    session.batch_execute(&format!("CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner}")).unwrap();
    session.batch_execute(&format!("SET ROLE {owner}; {SET}")).unwrap();
    begin(&mut session);
    // Messages that the loader could not load are not for everybody to read.
    dump(&database, &["--role", &owner, "--exclude-table-data=tally.dead_letters"]);
    session.batch_execute(&format!("RESET ROLE; GRANT SELECT ON tally.dead_letters TO {owner}")).unwrap();
    restore(&restored, &dump(&database, &["--role", &owner]), &[]);
    let mut session = restored.connect();
    session.batch_execute(&format!("SET ROLE {owner}")).unwrap();
    let owned = format!(
        "SELECT count(*) FROM pg_class WHERE relowner = '{owner}'::regrole AND relkind = 'r' AND relnamespace = 'tally_trash'::regnamespace"
    );
    assert_eq!(number(&mut session, &owned), 1);
    assert_waits_for_adoption(&mut session);
    assert_goes_on(&mut session);
    drop((session, database, restored));
    Cluster::shared().connect("postgres").batch_execute(&format!("DROP ROLE {owner}")).unwrap();
}

/// One script has set up both clusters, so databases and tables have the same OIDs; and the transaction that restores the rows has the id of
/// the one that wrote them.
#[test]
fn a_dump_restored_under_equal_oids_in_another_cluster_is_a_copy() {
    const HERE: &str = "SELECT concat_ws(' ', (SELECT oid FROM pg_database WHERE datname = current_database()), 'tally.adoptions'::regclass::oid)";
    // Nobody else takes ids.
    let [first, second] = [(); 2].map(|()| Cluster::start(&[("autovacuum", "off"), ("tally.enabled", "off")]));
    let (database, restored) = (first.database(), second.database());
    let (mut session, mut other) = (database.connect(), restored.connect());
    assert_eq!(text(&mut session, HERE), text(&mut other, HERE));
    pass_ids(&mut session, 1000);
    session.batch_execute(SET).unwrap();
    begin(&mut session);
    let written_by = number(&mut session, "SELECT DISTINCT written_by::text::bigint FROM tally.adoptions");
    other
        .batch_execute(&format!(
            "DO $$ BEGIN WHILE pg_snapshot_xmax(pg_current_snapshot())::text::bigint < {written_by}
                 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
        ))
        .unwrap();
    // The schema comes with the extension.
    let dump = dump(&database, &[]).replacen("CREATE SCHEMA tally;", "", 1);
    restore(&restored, &dump, &["--single-transaction"]);
    let same = "SELECT count(*) FROM tally.adoptions WHERE xmin = written_by";
    assert_eq!((number(&mut session, same), number(&mut other, same)), (1, 2));
    assert_waits_for_adoption(&mut other);
    assert_goes_on(&mut other);
    assert_goes_on(&mut session);
}

/// Nothing tells a copy of the disk from its original.
#[test]
fn a_clone_that_is_started_without_retention_removes_nothing() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let mut session = session_with_set(&database);
    begin(&mut session);
    let clone = cluster.backup();
    clone.recover(&[("restore_command", "false"), ("tally.retention_enabled", "off")]);
    let mut other = clone.connect(database.name());
    wait_until(&mut other, "SELECT NOT pg_is_in_recovery()");
    assert_eq!(text(&mut other, VERDICT).as_deref(), Some("ok"));
    other.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
    eventually(&mut other, "SELECT reason = 'switched_off' FROM tally.status WHERE kind = 'retention'");
    other.batch_execute("CALL tally.run_due_jobs()").unwrap();
    assert_under_way(&mut other);
    touch(&mut other);
    other.batch_execute("CALL tally.refresh('by_day')").unwrap();
    assert_under_way(&mut other);
    // The original goes on.
    step_to(&mut session, "trash");
    assert_kept(&mut session);
}

#[test]
fn upgraded_cluster_goes_on_with_retention() {
    let cluster = Cluster::start(&[]);
    let (database, interrupted) = (cluster.database(), cluster.database());
    begin(&mut session_with_set(&database));
    // Another one is left where DETACH CONCURRENTLY has committed for the first time.
    let mut session = session_with_set(&interrupted);
    session.batch_execute(RETAIN_BY_HAND).unwrap();
    step_inside_to(&mut session, "detaching");
    let mut reader = interrupted.connect();
    reader.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
    session.batch_execute("SET lock_timeout = '10ms'").unwrap();
    let partition = text(&mut session, "SELECT partition::text FROM tally.retirements").unwrap();
    let detach = format!("ALTER TABLE events DETACH PARTITION {partition} CONCURRENTLY");
    assert_eq!(session.batch_execute(&detach).unwrap_err().code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
    assert_eq!(number(&mut session, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"), 1);
    assert_kept(&mut session);
    let system = "SELECT system_identifier FROM pg_control_system()";
    let before = number(&mut session, system);
    drop((session, reader));
    cluster.stop();

    let upgraded = cluster.upgrade();
    let mut session = upgraded.connect(database.name());
    assert_ne!(number(&mut session, system), before);
    // It is the original.
    assert_eq!(text(&mut session, VERDICT).as_deref(), Some("ok"));
    assert_goes_on(&mut session);
    let mut session = upgraded.connect(interrupted.name());
    assert_kept(&mut session);
    touch(&mut session);
    assert_kept(&mut session);
    // By workers.
    session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
    eventually(&mut session, "SELECT count(*) >= 5 AND bool_and(state = 'trash') FROM tally.retirements");
    assert_kept(&mut session);
    let adopted = format!("SELECT count(*) FROM tally.adoptions WHERE system_identifier = ({system})");
    assert_eq!(number(&mut session, &adopted), 2);
}
