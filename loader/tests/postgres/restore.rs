//! A database that comes from a dump, or from a base backup with archived WAL, holds positions that are as old as its rows. The loader goes
//! on from there: what the backup does not have is read again, and nothing that it has.

use std::process::{Command, Stdio};

use tally_loader::init::State;
use tally_server_tests::cluster::Cluster;

use crate::loading::{Loading, Running, produce, wait_until};

const TABLE: &str = "CREATE TABLE public.t (a bigint);";
const POLICY: &str = "on = { gap = \"record\" }
     batch = { rows = 50, linger = \"5 ms\" }
     dead_letters = { stop_above_ratio = 1.0 }";

/// What is to come back, without what is of the moment.
const STATE: &str =
    "SELECT s::text || o::text FROM tally.loader_sources s JOIN tally.loader_offsets o USING (source_id)
     UNION ALL SELECT d::text FROM tally.dead_letters d UNION ALL SELECT g::text FROM tally.loader_gaps g
     UNION ALL SELECT count(*) || ' rows' FROM public.t ORDER BY 1";

/// Numbers from `first` on in two parts, and one that becomes a dead letter.
fn produce_more(loading: &Loading<'_>, first: i64, count: i64) {
    produce(loading, 2, first, count);
    loading.produce(0, &format!("broken {first}"));
}

/// A source with a gap and dead letters, and a loader that goes on: it has a membership and leases.
fn loaded<'a>(mut loading: Loading<'a>) -> (Loading<'a>, Running) {
    loading.policy = POLICY.into();
    produce_more(&loading, 0, 1_000);
    loading.load().unwrap();
    loading.topic.skip(1, 10);
    loading.topic.delete_before(1, 505);
    produce_more(&loading, 1_000, 1_000);
    let running = loading.start();
    wait_until("the rows are there", || loading.number("SELECT count(*) FROM public.t") == 2_000);
    assert_eq!(loading.number("SELECT count(*) FROM tally.loader_gaps"), 1);
    assert_eq!(loading.number("SELECT count(*) FROM tally.loader_leases"), 2);
    (loading, running)
}

/// Each number is a row once, and each malformed message a dead letter once.
fn assert_truth(loading: &Loading<'_>, rows: i64, dead_letters: i64) {
    loading.assert_exactly_once(rows);
    let dead = "SELECT count(*) * 1000 + count(DISTINCT value) FROM tally.dead_letters";
    assert_eq!(loading.number(dead), dead_letters * 1_001);
    assert_eq!(loading.number("SELECT sum(dead_total)::bigint FROM tally.loader_offsets"), dead_letters);
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Dumps as `role` while a loader runs, restores into `restored`, and loads on there.
fn dump_and_restore<'a>(loading: Loading<'a>, running: Running, role: &str, mut restored: Loading<'a>) -> Loading<'a> {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive");
    let before = loading.texts(STATE);
    let conninfo = loading.database.conninfo().replace("user=postgres", &format!("user={role}"));
    assert!(conninfo.contains(role), "{conninfo}");
    let mut dump = loading.database.dump_command();
    run(dump.arg(format!("--dbname={conninfo}")).args(["--format=custom", "--file"]).arg(&archive));
    // The dump does not have what is loaded from now on.
    produce_more(&loading, 2_000, 1_000);
    wait_until("the rows are there", || loading.number("SELECT count(*) FROM public.t") == 3_000);
    running.stop().unwrap();
    assert_truth(&loading, 3_000, 3);

    run(restored.database.restore_command().args(["--exit-on-error"]).arg(&archive));
    assert_eq!(restored.texts(STATE), before);
    restored.topic = loading.topic.clone();
    restored.policy = POLICY.into();
    restored.load().unwrap();
    assert_truth(&restored, 3_000, 3);
    produce_more(&restored, 3_000, 500);
    restored.load().unwrap();
    assert_truth(&restored, 3_500, 4);
    // Another source gets another number.
    let next = "INSERT INTO tally.loader_sources (pipeline, kind, cluster, name) VALUES ('p', 'kafka', 'c', 't') RETURNING source_id::bigint";
    assert_eq!(restored.number(next), 2);
    restored
}

fn create_role(loading: &Loading<'_>, role: &str, rights: &str) {
    let create = format!(
        "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$; {rights}"
    );
    loading.session().batch_execute(&create).unwrap();
}

#[test]
fn a_dump_with_the_extension_goes_on_from_its_positions() {
    let server = Cluster::shared();
    let source = || {
        let loading = Loading::without_state(server, 2);
        loading.session().batch_execute(&format!("CREATE EXTENSION tally; {TABLE}")).unwrap();
        assert_eq!(loading.init().unwrap(), State::Extension);
        loaded(loading)
    };
    // A role that may read everything and owns nothing; the superuser.
    create_role(&Loading::without_state(server, 1), "dump_reader", "GRANT pg_read_all_data TO dump_reader");
    for role in ["dump_reader", "postgres"] {
        let (loading, running) = source();
        let restored = dump_and_restore(loading, running, role, Loading::without_state(server, 2));
        assert_eq!(restored.init().unwrap(), State::Extension);
    }
    // Members and leases are of the moment, and no part of a dump.
    let (loading, running) = source();
    let restored = Loading::without_state(server, 2);
    let output = loading.database.dump();
    running.stop().unwrap();
    restored.database.psql(&output);
    let left = "SELECT (SELECT count(*) FROM tally.loader_leases) + (SELECT count(*) FROM tally.loader_members)";
    assert_eq!(restored.number(left), 0);
}

#[test]
fn a_dump_without_the_extension_goes_on_from_its_positions() {
    let server = crate::loading::server();
    // The owner of state and target is a plain role.
    let mut loading = Loading::without_state(server, 2);
    let rights = format!(
        "GRANT CREATE ON DATABASE {0} TO state_owner; GRANT CREATE ON SCHEMA public TO state_owner",
        loading.database.name()
    );
    create_role(&loading, "state_owner", &rights);
    loading.user = "state_owner".into();
    assert_eq!(loading.init().unwrap(), State::Created);
    loading.database.connect_as("state_owner").batch_execute(TABLE).unwrap();
    let (loading, running) = loaded(loading);
    let mut restored = Loading::without_state(server, 2);
    restored.user = "state_owner".into();
    let restored = dump_and_restore(loading, running, "state_owner", restored);
    assert_eq!(restored.init().unwrap(), State::Present);
}

/// Recovery ends between two commits of a loader that goes on.
#[test]
fn a_base_backup_with_archived_wal_goes_on_from_its_restore_point() {
    let server =
        Cluster::start(&[("archive_mode", "on"), ("archive_command", "mkdir -p ../archive && cp %p ../archive/%f")]);
    let loading = Loading::without_state(&server, 2);
    loading.session().batch_execute(&format!("CREATE EXTENSION tally; {TABLE}")).unwrap();
    let (loading, running) = loaded(loading);
    let backups = [server.backup(), server.backup()];
    let mut session = loading.session();
    for (round, point) in (2..).zip(["first", "second"]) {
        produce_more(&loading, round * 1_000, 1_000);
        // Somewhere in the middle.
        wait_until("some rows are there", || loading.number("SELECT count(*) FROM public.t") > round * 1_000);
        session.execute("SELECT pg_create_restore_point($1)", &[&point]).unwrap();
    }
    wait_until("all rows are there", || loading.number("SELECT count(*) FROM public.t") == 4_000);
    running.stop().unwrap();
    assert_truth(&loading, 4_000, 4);
    let last: String = session.query_one("SELECT pg_walfile_name(pg_switch_wal())", &[]).unwrap().get(0);
    wait_until("the WAL is archived", || {
        loading.number(&format!("SELECT (last_archived_wal >= '{last}')::int::bigint FROM pg_stat_archiver")) == 1
    });
    let copy = format!("cp {}/archive/%f %p", server.folder().display());
    for ((backup, point), least) in backups.iter().zip(["first", "second"]).zip([2_000, 3_000]) {
        backup.recover(&[
            ("archive_mode", "off"),
            ("restore_command", &copy),
            ("recovery_target_name", point),
            ("recovery_target_action", "promote"),
        ]);
        let mut session = backup.connect("postgres");
        wait_until("recovery has ended", || {
            !session.query_one("SELECT pg_is_in_recovery()", &[]).unwrap().get::<_, bool>(0)
        });
        let mut restored = Loading::in_database(backup.database_of_backup(loading.database.name()), 2);
        restored.topic = loading.topic.clone();
        restored.policy = POLICY.into();
        let rows = restored.number("SELECT count(*) FROM public.t");
        assert!((least..least + 1_001).contains(&rows), "{rows} rows at the {point} restore point");
        assert_eq!(restored.number("SELECT sum(rows_total)::bigint FROM tally.loader_offsets"), rows);
        restored.load().unwrap();
        assert_truth(&restored, 4_000, 4);
    }
}
