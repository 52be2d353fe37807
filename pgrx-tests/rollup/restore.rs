//! A database that comes from somewhere else goes on counting exactly: from a dump, a template, a base backup with archived WAL,
//! or pg_upgrade.

use std::process::{Command, Output, Stdio};

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database, feed};

use super::{QUERY, create, insert, session};
use crate::oracle::{assert_equal, assert_equal_now_and_refreshed, wait_until};

const SECOND: &str = "SELECT date_trunc('day', event_time, 'UTC') AS day, max(amount) AS most FROM events GROUP BY 1";
const OTHER: &str =
    "SELECT tenant, avg(amount) AS average, tally.distinct_count(amount) AS amounts FROM others GROUP BY tenant";

pub fn dump(database: &Database, options: &[&str]) -> String {
    let output = run(database.dump_command().args(options));
    String::from_utf8(output.stdout).unwrap()
}

pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[track_caller]
pub fn restore(database: &Database, dump: &str, options: &[&str]) {
    let mut psql = database.psql_command();
    let output = feed(psql.args(["--quiet", "--set", "ON_ERROR_STOP=1"]).args(options), dump);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn dump_of_one_schema_answers_from_raw() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    let mut session = session(&database);
    insert(&mut session);
    let text = dump(&database, &["--schema=public"]);
    // The state is not in it. `pg_dump` says CREATE SCHEMA for the one schema that it was asked for.
    let restored = cluster.database();
    restored.connect().batch_execute("DROP SCHEMA public").unwrap();
    restore(&restored, &text, &[]);
    let mut session = restored.connect();
    session.batch_execute("SET search_path = public").unwrap();
    insert(&mut session);
    assert_equal(&mut session, "totals", QUERY);
}

/// A full dump, restored into another database of the cluster, where transaction ids go on, and into another cluster, where they
/// start anew and mean other transactions.
#[test]
fn restored_database_counts_what_was_waiting_and_what_comes() {
    let shared = Cluster::shared();
    let database = shared.database();
    let (mut session, mut writer) = (session(&database), database.connect());
    // The other cluster is then thousands of ids behind.
    let pass_ids = "DO $$ BEGIN FOR i IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";
    session.batch_execute(pass_ids).unwrap();
    session.batch_execute("CALL tally.seal_partitions('events', '2024-01-02Z')").unwrap();
    writer.batch_execute("BEGIN").unwrap();
    insert(&mut writer);
    session.batch_execute("CALL tally.refresh('totals')").unwrap();
    insert(&mut session);
    session.batch_execute("UPDATE events SET amount = amount + 1, tenant = 7 WHERE tenant = 1").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    let archive = archive.to_str().unwrap();
    let plain = dump(&database, &[]);
    let inserts = dump(&database, &["--rows-per-insert=7"]);
    run(database.dump_command().args(["--format=directory", "--file", archive]));
    writer.batch_execute("COMMIT").unwrap();

    let elsewhere = Cluster::start(&[]);
    for cluster in [shared, &elsewhere] {
        let (from_plain, from_inserts, from_archive) =
            (cluster.empty_database(), cluster.empty_database(), cluster.empty_database());
        restore(&from_plain, &plain, &[]);
        restore(&from_inserts, &inserts, &["--single-transaction"]);
        run(from_archive.restore_command().args(["--exit-on-error", "--jobs=2", archive]));
        for restored in [from_plain, from_inserts, from_archive] {
            let mut session = restored.connect();
            assert_equal(&mut session, "totals", QUERY);
            insert(&mut session);
            session.batch_execute("DELETE FROM events WHERE tenant = 2").unwrap();
            assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
            create(&mut session, "second", SECOND);
            insert(&mut session);
            assert_equal_now_and_refreshed(&mut session, "second", "events", SECOND);
            assert_equal(&mut session, "totals", QUERY);
        }
    }
}

/// Rows that are restored over a rollup bring tags of transactions that ended elsewhere.
#[test]
fn rows_of_a_dump_restored_over_a_rollup_count_once() {
    let cluster = Cluster::shared();
    let (database, restored) = (cluster.database(), cluster.database());
    insert(&mut session(&database));
    let mut session = session(&restored);
    let rows = dump(&database, &["--data-only", "--table=events", "--table=day_*"]);
    restore(&restored, &rows, &[]);
    assert_equal(&mut session, "totals", QUERY);
    insert(&mut session);
    assert_equal_now_and_refreshed(&mut session, "totals", "events", QUERY);
}

/// Two sources; rows and changes that are counted, that wait, and that a transaction keeps open, which is answered. Amounts from
/// 1000 on are for those who keep transactions open.
fn busy(database: &Database) -> (Client, Client) {
    let (mut session, mut open) = (session(database), database.connect());
    create(&mut session, "second", SECOND);
    session
        .batch_execute(
            "CREATE TABLE others (tenant int, amount int); INSERT INTO others VALUES (1, 1), (2, 2); \
             INSERT INTO events VALUES ('2024-01-01 02:00Z', 1, 1000), ('2024-01-01 02:00Z', 1, 1001)",
        )
        .unwrap();
    create(&mut session, "other", OTHER);
    insert(&mut session);
    open.batch_execute("BEGIN").unwrap();
    insert(&mut open);
    open.batch_execute("DELETE FROM events WHERE amount = 1000; INSERT INTO others VALUES (3, 3)").unwrap();
    keep_writing(&mut session);
    session
        .batch_execute("UPDATE events SET amount = amount + 1 WHERE tenant = 2 AND amount < 900; DELETE FROM others WHERE tenant = 2")
        .unwrap();
    insert(&mut session);
    (session, open)
}

const ALL: [(&str, &str, &str); 3] =
    [("totals", "events", QUERY), ("second", "events", SECOND), ("other", "others", OTHER)];

#[track_caller]
fn assert_all_equal(session: &mut Client) {
    for (rollup, _, query) in ALL {
        assert_equal(session, rollup, query);
    }
}

/// Every kind of change, by transactions that end before and after refreshes, with a comparison after each.
#[track_caller]
fn keep_writing(session: &mut Client) {
    let name = format!("keeps {}", session.query_one("SELECT current_database()", &[]).unwrap().get::<_, String>(0));
    for round in 0..3 {
        session.batch_execute("BEGIN").unwrap();
        insert(session);
        session
            .batch_execute(&format!(
                "UPDATE events SET amount = amount + 1 WHERE amount < 1000 AND amount % 5 = {round}; \
                 INSERT INTO others SELECT i % 3, i FROM generate_series(1, 9) AS i; PREPARE TRANSACTION '{name}'"
            ))
            .unwrap();
        insert(session);
        session.batch_execute("INSERT INTO others SELECT * FROM others WHERE tenant = 1 LIMIT 2").unwrap();
        for (rollup, _, _) in ALL {
            session.batch_execute(&format!("CALL tally.refresh('{rollup}')")).unwrap();
        }
        assert_all_equal(session);
        session.batch_execute(&format!("COMMIT PREPARED '{name}'")).unwrap();
        assert_all_equal(session);
        session
            .batch_execute("DELETE FROM events WHERE amount < 1000 AND amount % 7 = 1; UPDATE others SET tenant = 5 WHERE amount = 3")
            .unwrap();
        for (rollup, source, query) in ALL {
            assert_equal_now_and_refreshed(session, rollup, source, query);
        }
    }
    let rows = session.query("SELECT v::text FROM tally.verify('totals') AS v", &[]).unwrap();
    assert!(rows.is_empty());
}

fn raw(session: &mut Client) -> Vec<String> {
    let query = "SELECT e::text FROM (SELECT event_time, tenant, amount FROM events) AS e \
        UNION ALL SELECT o::text FROM (SELECT tenant, amount FROM others) AS o ORDER BY 1";
    session.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn incarnations(session: &mut Client) -> i64 {
    session.query_one("SELECT count(DISTINCT id) FROM tally.incarnations", &[]).unwrap().get(0)
}

pub fn pass_ids(session: &mut Client, number: u32) {
    let pass = format!("DO $$ BEGIN FOR i IN 1..{number} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$");
    session.batch_execute(&pass).unwrap();
}

/// From the first cluster into a younger one and back, writing in each; the ids of one are passed by those of the other.
#[test]
fn drill_of_dump_and_restore_goes_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let archive = |number: usize| folder.path().join(format!("{number}.dump"));
    let (first, younger) = (Cluster::start(&[]), Cluster::start(&[]));
    let mut database = first.database();
    pass_ids(&mut database.connect(), 4000);
    let (mut session, mut open) = busy(&database);
    for (round, cluster) in [&younger, &first, &younger].into_iter().enumerate() {
        let expected = raw(&mut session);
        run(database.dump_command().args(["--format=custom", "--file"]).arg(archive(round)));
        // What was open when the dump was taken is not in it.
        open.batch_execute("COMMIT").unwrap();
        let restored = cluster.empty_database();
        run(restored.restore_command().arg("--exit-on-error").arg(archive(round)));
        // The database that was dumped goes on by itself, as does the one that was restored.
        keep_writing(&mut session);
        session = restored.connect();
        open = restored.connect();
        assert_eq!(raw(&mut session), expected);
        assert_all_equal(&mut session);
        assert_eq!(incarnations(&mut session), 2 + i64::try_from(round).unwrap());
        keep_writing(&mut session);
        pass_ids(&mut session, 3000);
        keep_writing(&mut session);
        open.batch_execute("BEGIN").unwrap();
        insert(&mut open);
        keep_writing(&mut session);
        database = restored;
    }
    open.batch_execute("ROLLBACK").unwrap();
    keep_writing(&mut session);
}

#[test]
fn copy_by_template_goes_on_exactly_in_both() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let (mut session, mut open) = busy(&database);
    for (rollup, _, _) in ALL {
        session.batch_execute(&format!("CALL tally.refresh('{rollup}')")).unwrap();
    }
    insert(&mut session);
    session.batch_execute("UPDATE events SET tenant = 9 WHERE amount = 10").unwrap();
    open.batch_execute("ROLLBACK").unwrap();
    // Nobody may be connected to the template.
    drop((session, open));
    let wait = format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{}')", database.name());
    wait_until(&mut cluster.connect("postgres"), &wait);
    let copy = database.copy();
    let (mut session, mut other) = (database.connect(), copy.connect());
    assert_eq!(raw(&mut session), raw(&mut other));
    for _ in 0..3 {
        for session in [&mut session, &mut other] {
            assert_all_equal(session);
            assert_eq!(incarnations(session), 1);
            keep_writing(session);
        }
    }
    // The jobs have come along.
    insert(&mut other);
    wait_until(&mut other, "SELECT tally.pending_rows('events') = 0");
    assert_all_equal(&mut other);
}

#[test]
fn base_backup_with_archived_wal_goes_on_from_its_restore_point() {
    let cluster =
        Cluster::start(&[("archive_mode", "on"), ("archive_command", "mkdir -p ../archive && cp %p ../archive/%f")]);
    let database = cluster.database();
    let (mut session, mut open) = busy(&database);
    session.batch_execute("BEGIN").unwrap();
    insert(&mut session);
    session
        .batch_execute("UPDATE events SET amount = 1002 WHERE amount = 1001; PREPARE TRANSACTION 'prepared'")
        .unwrap();
    let backups = [cluster.backup(), cluster.backup()];
    let mut expected = vec![];
    for point in ["first", "second"] {
        insert(&mut session);
        for (rollup, _, _) in ALL {
            session.batch_execute(&format!("CALL tally.refresh('{rollup}')")).unwrap();
        }
        insert(&mut session);
        session.batch_execute("DELETE FROM events WHERE amount = 20").unwrap();
        // A refresh that has not committed at that moment.
        let mut refresher = database.connect();
        refresher.batch_execute("BEGIN; CALL tally.refresh('totals')").unwrap();
        expected.push(raw(&mut session));
        session.execute("SELECT pg_create_restore_point($1)", &[&point]).unwrap();
        refresher.batch_execute("COMMIT").unwrap();
        insert(&mut session);
        session.batch_execute("CALL tally.refresh('totals')").unwrap();
    }
    open.batch_execute("COMMIT").unwrap();
    session.batch_execute("COMMIT PREPARED 'prepared'").unwrap();
    keep_writing(&mut session);
    let last: String = session.query_one("SELECT pg_walfile_name(pg_switch_wal())", &[]).unwrap().get(0);
    wait_until(&mut session, &format!("SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver"));
    let copy = format!("cp {}/archive/%f %p", cluster.folder().display());
    for ((backup, point), expected) in backups.iter().zip(["first", "second"]).zip(&expected) {
        backup.recover(&[
            ("archive_mode", "off"),
            ("restore_command", &copy),
            ("recovery_target_name", point),
            ("recovery_target_action", "promote"),
        ]);
        let mut session = backup.connect(database.name());
        wait_until(&mut session, "SELECT NOT pg_is_in_recovery()");
        assert_eq!(&raw(&mut session), expected, "the {point} restore point");
        assert_all_equal(&mut session);
        assert_eq!(incarnations(&mut session), 1);
        // Its ids are given out a second time here.
        keep_writing(&mut session);
        session.batch_execute("COMMIT PREPARED 'prepared'").unwrap();
        assert_all_equal(&mut session);
        keep_writing(&mut session);
    }
    keep_writing(&mut session);
}

#[test]
fn upgraded_cluster_counts_on() {
    let cluster = Cluster::start(&[]);
    let database = cluster.database();
    let (mut session, mut open) = busy(&database);
    open.batch_execute("ROLLBACK").unwrap();
    let expected = raw(&mut session);
    drop((session, open));
    cluster.stop();
    let upgraded = cluster.upgrade();
    let mut session = upgraded.connect(database.name());
    assert_eq!(raw(&mut session), expected);
    assert_all_equal(&mut session);
    keep_writing(&mut session);
    assert_eq!(incarnations(&mut session), 2);
}
