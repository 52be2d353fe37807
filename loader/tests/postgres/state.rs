//! State tables: who makes them, who may use them, and what `check` says.

use tally_loader::init::{self, State};
use tally_loader::{check, postgres as connection};

use tally_server_tests::cluster::Cluster;

use crate::loading::{DEADLINE, Loading, block_on, server, wait_until};

#[test]
fn init_creates_the_tables_once() {
    let loading = Loading::without_state(server(), 1);
    assert_eq!(loading.init().unwrap(), State::Created);
    assert_eq!(loading.init().unwrap(), State::Present);
    assert_eq!(loading.number("SELECT count(*) FROM tally.loader_status"), 0);
}

#[test]
fn init_shares_the_schema_with_nobody() {
    let loading = Loading::without_state(server(), 1);
    loading.session().batch_execute("CREATE SCHEMA tally; CREATE TABLE tally.of_somebody ()").unwrap();
    let error = loading.init().unwrap_err();
    assert_eq!(error.code(), 3);
    assert!(error.to_string().contains("not empty"), "{error}");
}

#[test]
fn a_start_without_state_tables_says_what_to_do() {
    let loading = Loading::without_state(server(), 1);
    let error = loading.load().unwrap_err();
    assert_eq!(error.code(), 3);
    assert!(error.hint().unwrap().contains("tally-loader init"));
}

#[test]
fn every_state_object_has_a_comment() {
    let loading = Loading::without_state(server(), 1);
    loading.init().unwrap();
    let bare = loading.texts(
        "SELECT c.relname || coalesce('.' || a.attname, '') FROM pg_class c
           LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          WHERE c.relnamespace = 'tally'::regnamespace AND c.relkind IN ('r', 'v')
            AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL)
         UNION ALL
         SELECT p.proname::text FROM pg_proc p WHERE p.pronamespace = 'tally'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL",
    );
    assert_eq!(bare, [""; 0]);
}

fn role(loading: &Loading<'_>, name: &str) {
    let role = format!(
        "DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
    );
    loading.session().batch_execute(&role).unwrap();
}

#[test]
fn a_granted_role_can_load_and_not_more() {
    let mut loading = Loading::new(1, "CREATE TABLE public.t (a int, id bigserial);");
    role(&loading, "granted_loader");
    let config = loading.config();
    block_on(async {
        let client = connection::connect(&config.postgres, "test").await.unwrap();
        init::grant(&client, &config, "granted_loader").await.unwrap();
    });
    loading.session().batch_execute("GRANT USAGE ON SEQUENCE public.t_id_seq TO granted_loader").unwrap();
    loading.user = "granted_loader".into();
    loading.produce(0, r#"{"a": 0}"#);
    loading.produce(0, "broken");
    loading.load().unwrap();
    loading.assert_exactly_once(1);
    let mut session = loading.database.connect_as("granted_loader");
    for forbidden in [
        "SELECT FROM public.t",
        "DELETE FROM tally.loader_offsets",
        "DELETE FROM tally.dead_letters",
        "TRUNCATE public.t",
    ] {
        assert!(session.batch_execute(forbidden).is_err(), "{forbidden}");
    }
}

#[test]
fn dead_letters_are_not_for_everybody() {
    let loading = Loading::new(1, "CREATE TABLE public.t (a int);");
    role(&loading, "curious_reader");
    let mut session = loading.database.connect_as("curious_reader");
    assert!(session.batch_execute("SELECT FROM tally.dead_letters").is_err());
    session.batch_execute("SELECT * FROM tally.loader_status").unwrap();
}

#[test]
fn check_names_missing_rights_and_prints_the_columns() {
    let mut loading = Loading::new(
        1,
        "CREATE TABLE public.t (id bigserial, a int, event_time timestamptz NOT NULL) PARTITION BY RANGE (event_time);
         CREATE TABLE public.t1 PARTITION OF public.t FOR VALUES FROM ('2000-01-01') TO ('2000-01-02');
         CREATE TABLE public.t2 PARTITION OF public.t FOR VALUES FROM ('2000-01-02') TO ('2000-01-03');",
    );
    role(&loading, "poor_loader");
    loading.session().batch_execute("GRANT EXECUTE ON FUNCTION tally.loader_format() TO poor_loader").unwrap();
    loading.user = "poor_loader".into();
    let config = loading.config();
    let (text, missing) = block_on(async {
        let client = connection::connect(&config.postgres, "test").await.unwrap();
        check::target(&client, &config).await.unwrap()
    });
    for line in [
        "\"a\" integer <- field \"a\"",
        "\"event_time\" timestamp with time zone <- field \"event_time\", required",
        "\"id\" not written: default nextval('t_id_seq'::regclass); map it to take the field",
        "2 partitions by \"event_time\" take 2000-01-01T00:00:00Z to 2000-01-03T00:00:00Z",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    for right in [
        "INSERT (a) on public.t",
        "UPDATE on tally.loader_offsets",
        "INSERT on tally.dead_letters",
        "EXECUTE on function tally.advance_offsets",
    ] {
        assert!(missing.iter().any(|other| other == right), "{right} in {missing:?}");
    }
    assert_eq!(loading.number("SELECT count(*) FROM tally.loader_sources"), 0);
}

/// What `init --adopt` does, as the superuser of the test.
fn adopt(loading: &Loading<'_>) -> Result<(), tally_loader::Error> {
    let config = loading.config();
    block_on(async {
        let mut client = connection::connect_within(&config.postgres, &config.pipeline, DEADLINE).await?;
        init::adopt(&mut client).await
    })
}

/// State tables without the extension, on a server that has it.
fn loaded_without_extension() -> Loading<'static> {
    let loading = Loading::on(Cluster::shared(), 1, "CREATE TABLE public.t (a bigint);");
    for number in 0..10 {
        loading.produce(0, &format!("{{\"a\": {number}}}"));
    }
    loading.produce(0, "broken");
    loading.load().unwrap();
    loading
}

#[test]
fn the_extension_adopts_the_state() {
    let loading = loaded_without_extension();
    role(&loading, "adopted_loader");
    let config = loading.config();
    block_on(async {
        let client = connection::connect(&config.postgres, &config.pipeline).await.unwrap();
        init::grant(&client, &config, "adopted_loader").await.unwrap();
    });
    let state = "SELECT concat_ws(' ', s.*, o.*, d.*) FROM tally.loader_sources s, tally.loader_offsets o, tally.dead_letters d";
    let rights = "SELECT has_table_privilege('adopted_loader', 'tally.dead_letters', 'INSERT')::int::bigint
                       + has_function_privilege('adopted_loader', (SELECT oid FROM pg_proc WHERE proname = 'advance_offsets'), 'EXECUTE')::int";
    let before = (loading.texts(state), loading.number(rights));
    assert_eq!((before.0.len(), before.1), (1, 2));
    adopt(&loading).unwrap();
    assert_eq!((loading.texts(state), loading.number(rights)), before);
    assert_eq!(loading.init().unwrap(), State::Extension);
    let schemas = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'tally%' ORDER BY 1";
    assert_eq!(loading.texts(schemas), ["tally", "tally_trash"]);
    // It goes on where it was, and another source gets another number.
    loading.produce(0, r#"{"a": 10}"#);
    loading.load().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), 11);
    let next = "INSERT INTO tally.loader_sources (pipeline, kind, cluster, name) VALUES ('p', 'kafka', 'c', 't') RETURNING source_id::bigint";
    assert_eq!(loading.number(next), 2);
    let error = adopt(&loading).unwrap_err();
    assert_eq!(error.code(), 3, "{error}");
}

#[test]
fn state_is_not_adopted_under_a_running_loader() {
    let loading = loaded_without_extension();
    let running = loading.start();
    wait_until("it has a lease", || loading.number("SELECT count(*) FROM tally.loader_leases") == 1);
    let error = adopt(&loading).unwrap_err();
    assert!(error.to_string().contains("loaders are running: \"test\""), "{error}");
    loading.produce(0, r#"{"a": 10}"#);
    running.wait_for_rows(1);
    running.stop().unwrap();
    adopt(&loading).unwrap();
}

#[test]
fn adoption_takes_nothing_away_from_others() {
    let loading = loaded_without_extension();
    let mut session = loading.session();
    session.batch_execute("CREATE TABLE tally.of_somebody ()").unwrap();
    let error = adopt(&loading).unwrap_err();
    assert!(error.to_string().contains("of_somebody"), "{error}");
    session
        .batch_execute("DROP TABLE tally.of_somebody; CREATE VIEW public.of_mine AS SELECT * FROM tally.loader_status")
        .unwrap();
    let error = adopt(&loading).unwrap_err();
    assert!(error.to_string().contains("of_mine"), "{error}");
    assert_eq!(loading.init().unwrap(), State::Present, "nothing is changed");
    assert_eq!(loading.number("SELECT next_offset FROM tally.loader_offsets"), 11);
    session.batch_execute("DROP VIEW public.of_mine").unwrap();
    adopt(&loading).unwrap();
}
