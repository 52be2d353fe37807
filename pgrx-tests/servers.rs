//! The extension installs, and the throw-away servers can be trusted by the tests that kill them.

use tally_server_tests::cluster::{self, Cluster};

#[test]
fn extension_installs_and_its_schema_has_a_comment() {
    let comment: Option<String> = cluster::database()
        .connect()
        .query_one("SELECT obj_description('tally'::regnamespace, 'pg_namespace')", &[])
        .unwrap()
        .get(0);
    assert!(comment.is_some_and(|comment| comment.contains("tally")));
}

#[test]
fn dropped_database_is_gone_even_with_a_prepared_transaction() {
    let database = cluster::database();
    let name = database.name().to_owned();
    database.connect().batch_execute("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'of a test'").unwrap();
    drop(database);
    let found = Cluster::shared().connect("postgres").query("SELECT FROM pg_database WHERE datname = $1", &[&name]);
    assert!(found.unwrap().is_empty());
}

#[test]
fn psql_runs_several_statements_and_prints_their_rows() {
    assert_eq!(cluster::database().psql("CREATE TABLE t AS SELECT 1 AS a;\nSELECT a, 'x' FROM t"), "1|x\n");
}

#[test]
fn committed_rows_survive_every_way_of_stopping() {
    let cluster = Cluster::start(&[("work_mem", "5MB")]);
    let database = cluster.database();
    let mut expected = 0;
    database.connect().batch_execute("CREATE TABLE t (n int)").unwrap();
    for stop in [Cluster::restart, Cluster::crash, |cluster: &Cluster| {
        let mut victim = cluster.connect("postgres");
        assert!(cluster.kill_backend(victim.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)));
        assert!(victim.batch_execute("SELECT").is_err());
    }] {
        let mut session = database.connect();
        session.execute("INSERT INTO t VALUES ($1)", &[&expected]).unwrap();
        expected += 1;
        stop(&cluster);
        assert!(session.batch_execute("SELECT").is_err(), "the session is one of the old server");
        let rows: i64 = database.connect().query_one("SELECT count(*) FROM t", &[]).unwrap().get(0);
        assert_eq!(rows, i64::from(expected));
    }
    assert_eq!(database.psql("SHOW work_mem"), "5MB\n");
}

#[test]
fn dropped_cluster_leaves_nothing_behind() {
    let cluster = Cluster::start(&[]);
    let data = cluster.psql("postgres", "SHOW data_directory");
    let folder = std::path::Path::new(data.trim());
    assert!(folder.exists());
    drop(cluster);
    assert!(!folder.exists());
}
