//! Who may do what: every function, procedure, table and view of the extension, by an owner, a member of his role, somebody else, a monitor and
//! a superuser. A new function without a line here makes this red. And nobody's search path, operators or temporary tables change it.

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

/// In the order of the outcomes below.
const ROLES: [&str; 5] = ["owner", "member", "other", "monitor", "postgres"];

/// What the owner has. Jobs stand still, so that nothing changes by itself.
const OBJECTS: &str = "
    CREATE TABLE events (at timestamptz NOT NULL, k int, v int) PARTITION BY RANGE (at);
    BEGIN;
    SELECT tally.partition_by_time('events', '1 day', retention => '30 days');
    SELECT tally.create_rollup('totals', 'SELECT k, pg_catalog.count(*) AS n, pg_catalog.sum(v) AS total FROM public.events GROUP BY k');
    SELECT tally.pause_job(job_id) FROM tally.jobs;
    COMMIT;
    INSERT INTO events SELECT pg_catalog.now(), i % 3, i FROM generate_series(1, 10) i;
    CREATE TABLE plain (at timestamptz NOT NULL) PARTITION BY RANGE (at);
    CREATE TABLE whole (at timestamptz NOT NULL, k int);";

/// One call of each function that does something, and how it ends for each of [`ROLES`]: a code of an error, `null` for a null or nothing,
/// `ok` for the rest. `JOB` and `PREMAKE` are numbers of jobs.
const CALLS: &[(&str, &str, [&str; 5])] = &[
    (
        "create_rollup",
        "SELECT tally.create_rollup('public.more', 'SELECT k, pg_catalog.count(*) AS n FROM public.events GROUP BY k')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "alter_rollup",
        "SELECT tally.alter_rollup('public.totals', refresh_interval => '1 minute')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "add_aggregate",
        "SELECT tally.add_aggregate('public.totals', 'top', 'pg_catalog.max(v)')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    ("drop_rollup", "SELECT tally.drop_rollup('public.totals')", ["ok", "ok", "42501", "42501", "ok"]),
    ("refresh", "CALL tally.refresh('public.totals')", ["ok", "ok", "42501", "42501", "ok"]),
    ("build", "CALL tally.build('public.totals')", ["ok", "ok", "42501", "42501", "ok"]),
    ("build_slice", "SELECT tally.build_slice('public.totals')", ["ok", "ok", "42501", "42501", "ok"]),
    ("rebuild", "CALL tally.rebuild('public.totals')", ["ok", "ok", "42501", "42501", "ok"]),
    ("rebuild_range", "SELECT tally.rebuild_range('public.totals', NULL, NULL)", ["ok", "ok", "42501", "42501", "ok"]),
    ("recompute_query", "SELECT tally.recompute_query('public.totals', NULL, NULL)", ["ok", "ok", "ok", "ok", "ok"]),
    ("verify", "SELECT pg_catalog.count(*) FROM tally.verify('public.totals')", ["ok", "ok", "42501", "42501", "ok"]),
    ("pending_rows", "SELECT tally.pending_rows('public.events')", ["ok", "ok", "null", "ok", "ok"]),
    (
        "seal_partitions",
        "CALL tally.seal_partitions('public.events', '2000-01-01')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "seal_some_partitions",
        "SELECT tally.seal_some_partitions('public.events', '2000-01-01')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    ("forget", "CALL tally.forget('public.events', '2000-01-01')", ["ok", "ok", "42501", "42501", "ok"]),
    (
        "forgettable_partitions",
        "SELECT tally.forgettable_partitions('public.events', '2000-01-01')",
        ["ok", "ok", "ok", "ok", "ok"],
    ),
    (
        "forget_partition",
        "SELECT tally.forget_partition('public.events', 'public.plain')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "forget_rows",
        "SELECT tally.forget_rows('public.events', 'public.events', '2000-01-01', 'at')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "partition_by_time",
        "SELECT tally.partition_by_time('public.plain', '1 day')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "plan_partition_by_time",
        "SELECT pg_catalog.count(*) FROM tally.plan_partition_by_time('public.plain', '1 day')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "ensure_partitions",
        "SELECT tally.ensure_partitions('public.events', pg_catalog.now(), pg_catalog.now() OPERATOR(pg_catalog.+) '1 hour')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "set_partition_policy",
        "SELECT tally.set_partition_policy('public.events', lateness => '3 days')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "set_partition_width",
        "SELECT tally.set_partition_width('public.events', '12 hours')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "unregister_partitions",
        "SELECT tally.unregister_partitions('public.events')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "plan_ensure_partitions",
        "SELECT pg_catalog.count(*) FROM tally.plan_ensure_partitions('public.events', '2026-01-01 00:00+00', '2026-01-02 00:00+00')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "plan_premake",
        "SELECT pg_catalog.count(*) FROM tally.plan_premake('public.events')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "plan_retention",
        "SELECT pg_catalog.count(*) FROM tally.plan_retention('public.events')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    ("inspect_partitions", "SELECT parent FROM tally.inspect_partitions()", ["ok", "ok", "null", "ok", "ok"]),
    ("pause_partitions", "SELECT tally.pause_partitions('public.events')", ["ok", "ok", "42501", "42501", "ok"]),
    ("resume_partitions", "SELECT tally.resume_partitions('public.events')", ["ok", "ok", "42501", "42501", "ok"]),
    (
        "undo_retention",
        "SELECT tally.undo_retention('public.events', 'public.plain')",
        ["42704", "42704", "42501", "42501", "42704"],
    ),
    (
        "convert_to_partitioned",
        "SELECT tally.convert_to_partitioned('public.whole', 'at', '1 day')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "plan_conversion",
        "SELECT pg_catalog.count(*) FROM tally.plan_conversion('public.whole', 'at', '1 day')",
        ["ok", "ok", "42501", "42501", "ok"],
    ),
    (
        "cancel_conversion",
        "SELECT tally.cancel_conversion('public.whole')",
        ["55000", "55000", "42501", "42501", "55000"],
    ),
    (
        "move_rollups",
        "SELECT tally.move_rollups('public.events', 'public.whole')",
        ["55000", "55000", "42501", "42501", "55000"],
    ),
    ("undo_conversion", "SELECT tally.undo_conversion('public.whole')", ["55000", "55000", "42501", "42501", "55000"]),
    ("adopt", "SELECT tally.adopt()", ["42501", "42501", "42501", "42501", "ok"]),
    ("pause_job", "SELECT tally.pause_job(JOB)", ["ok", "ok", "42501", "42501", "ok"]),
    ("resume_job", "SELECT tally.resume_job(JOB)", ["ok", "ok", "42501", "42501", "ok"]),
    ("set_max_runtime", "SELECT tally.set_max_runtime(JOB, '1 hour')", ["ok", "ok", "42501", "42501", "ok"]),
    ("run_job", "SELECT tally.run_job(JOB)", ["ok", "42501", "42501", "42501", "42501"]),
    ("start_due_job", "SELECT job_id FROM tally.start_due_job(0)", ["null", "null", "null", "null", "null"]),
    (
        "finish_job",
        "SELECT tally.finish_job(JOB, now(), now(), 0, NULL, NULL, NULL)",
        ["ok", "42501", "42501", "42501", "42501"],
    ),
    ("run_job_in_worker", "SELECT tally.run_job_in_worker(PREMAKE)", ["ok", "ok", "42501", "42501", "ok"]),
    ("run_due_jobs", "CALL tally.run_due_jobs()", ["ok", "ok", "ok", "ok", "ok"]),
    ("job_activity", "SELECT job_id FROM tally.job_activity()", ["ok", "ok", "ok", "ok", "ok"]),
    ("worker_mode", "SELECT mode FROM tally.worker_mode()", ["ok", "ok", "ok", "ok", "ok"]),
    ("metrics", "SELECT tally.metrics()", ["ok", "ok", "ok", "ok", "ok"]),
];

/// Functions of values and of the settings of the own session, which look at no table but through what a rollup's view shows to whoever may read it: everybody may call them.
const OF_VALUES: &[&str] = &[
    "aggregate_state_in",
    "aggregate_state_out",
    "aggregate_state_recv",
    "aggregate_state_send",
    "distinct_count",
    "distinct_count_final",
    "first",
    "hash_is_stable",
    "hll_set_defaults",
    "hll_set_max_sparse",
    "hll_set_output_version",
    "last",
    "loader_format",
    "refuse_old_snapshot",
    "refuse_stale_plan",
    "row_tag",
    "settled_before",
    "sum",
    "unchanged_before",
];

/// The same by their beginnings; sketches have many.
const OF_SKETCHES: [&str; 2] = ["hll", "topn"];

/// Only the superuser may, until he grants it.
const GRANTED_BY_HAND: &[&str] = &["advance_offsets"];

/// Tables that only the superuser reads; what others may know of them is in the views.
const UNREADABLE: &[&str] =
    &["job_states", "lock_waits", "runs", "partition_upkeep", "idle_sets", "altered_sets", "dead_letters"];

/// Reads of views: how many of the rows about the owner's objects each of [`ROLES`] sees.
const VIEWS: &[(&str, &str, [i64; 5])] = &[
    ("status", "kind <> 'server'", [3, 3, 0, 3, 3]),
    ("partition_status", "true", [1, 1, 0, 1, 1]),
    ("rollup_status", "true", [1, 1, 0, 1, 1]),
];

struct World {
    cluster: Cluster,
}

impl World {
    fn start() -> World {
        // Roles are of the whole server, so it is one of its own.
        let cluster = Cluster::start(&[]);
        cluster
            .connect("postgres")
            .batch_execute(
                "CREATE ROLE owner LOGIN; CREATE ROLE member LOGIN; GRANT owner TO member; CREATE ROLE other LOGIN;
                 CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor",
            )
            .unwrap();
        World { cluster }
    }

    fn database(&self) -> Database<'_> {
        let database = self.cluster.database();
        database.connect().batch_execute("GRANT CREATE ON SCHEMA public TO owner").unwrap();
        database.connect_as("owner").batch_execute(OBJECTS).unwrap();
        database
    }
}

/// With the numbers of the jobs in place.
fn with_jobs(call: &str, session: &mut Client) -> String {
    let mut call = call.to_owned();
    for (word, kind) in [("PREMAKE", "premake"), ("JOB", "refresh")] {
        let id: i32 = session.query_one("SELECT job_id FROM tally.jobs WHERE kind = $1", &[&kind]).unwrap().get(0);
        call = call.replace(word, &id.to_string());
    }
    call
}

/// How the call ends. What it does is undone, unless it is a procedure: those commit.
fn outcome(session: &mut Client, call: &str) -> String {
    let is_procedure = call.starts_with("CALL");
    if !is_procedure {
        session.batch_execute("BEGIN").unwrap();
    }
    let answer = session.simple_query(call);
    let outcome = match answer {
        Err(error) => match error.as_db_error() {
            Some(error) if error.message().starts_with("trapped") => error.message().to_owned(),
            Some(error) => error.code().code().to_owned(),
            None => error.to_string(),
        },
        Ok(messages) => {
            let first = messages.iter().find_map(|message| match message {
                postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).is_some()),
                _ => None,
            });
            if first == Some(true) || is_procedure { "ok".to_owned() } else { "null".to_owned() }
        }
    };
    if !is_procedure {
        session.batch_execute("ROLLBACK").unwrap();
    }
    outcome
}

#[test]
fn every_function_does_for_each_role_what_its_line_says() {
    let world = World::start();
    let database = world.database();
    let mut found = Vec::new();
    for (function, call, expected) in CALLS {
        let call = with_jobs(call, &mut database.connect());
        let outcomes = ROLES.map(|role| outcome(&mut database.connect_as(role), &call));
        if outcomes.iter().map(String::as_str).ne(*expected) {
            found.push(format!("{function}: {outcomes:?}"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_function_has_a_line() {
    let world = World::start();
    let database = world.cluster.database();
    let mut session = database.connect();
    let functions = session
        .query(
            "SELECT DISTINCT proname::text, has_function_privilege('other', oid, 'EXECUTE'), provolatile = 'v' AND prokind = 'f'
             FROM pg_proc WHERE pronamespace = 'tally'::regnamespace AND proname NOT LIKE '\\_%'",
            &[],
        )
        .unwrap();
    for row in functions {
        let (name, is_public, is_volatile): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        let is_called = CALLS.iter().any(|(function, _, _)| *function == name);
        let is_of_values = OF_VALUES.contains(&name.as_str());
        let is_of_sketches = OF_SKETCHES.iter().any(|beginning| name.starts_with(beginning)) && !is_volatile;
        let is_granted = GRANTED_BY_HAND.contains(&name.as_str());
        assert!(is_called || is_of_values || is_of_sketches || is_granted, "{name} has no line in privileges.rs");
        assert_eq!(is_public, !is_granted, "{name}");
    }
}

#[test]
fn tables_are_written_by_nobody_and_views_show_the_own_rows() {
    let world = World::start();
    let database = world.database();
    let mut admin = database.connect();
    let relations = admin
        .query(
            "SELECT c.relname::text, c.relkind = 'v' FROM pg_class c
             WHERE c.relnamespace = 'tally'::regnamespace AND c.relkind IN ('r', 'p', 'v') ORDER BY 1",
            &[],
        )
        .unwrap();
    let relations: Vec<(String, bool)> = relations.iter().map(|row| (row.get(0), row.get(1))).collect();
    for role in ROLES {
        let mut session = database.connect_as(role);
        for (relation, is_view) in &relations {
            let read = outcome(&mut session, &format!("SELECT count(*) FROM tally.{relation}"));
            let is_hidden = UNREADABLE.contains(&relation.as_str()) && role != "postgres";
            assert_eq!(read, if is_hidden { "42501" } else { "ok" }, "{role} reads {relation}");
            if role != "postgres" {
                let written = outcome(&mut session, &format!("DELETE FROM tally.{relation}"));
                // A view that cannot be written says so before anybody asks who writes.
                let refusal = if *is_view { "55000" } else { "42501" };
                assert_eq!(written, refusal, "{role} writes {relation}");
            }
        }
    }
    for (view, about, expected) in VIEWS {
        let query = format!("SELECT count(*) FROM tally.{view} WHERE {about}");
        let seen = ROLES.map(|role| database.connect_as(role).query_one(&query, &[]).unwrap().get::<_, i64>(0));
        assert_eq!(seen, *expected, "{view}");
    }
    let known: Vec<&str> = relations.iter().filter(|(_, is_view)| *is_view).map(|(name, _)| name.as_str()).collect();
    let tested: Vec<&str> = VIEWS.iter().map(|(view, _, _)| *view).chain(["loader_status"]).collect();
    assert!(known.iter().all(|view| tested.contains(view)), "{known:?} but {tested:?}");
}

/// Functions and operators with the names and types of PostgreSQL's own that fail when they are called, and temporary tables with the names of
/// tally's and of catalogs.
const TRAPS: &str = "
    CREATE SCHEMA evil;
    GRANT USAGE ON SCHEMA evil TO PUBLIC;
    DO $traps$
    DECLARE f record;
    BEGIN
      FOR f IN
        SELECT p.oid, p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
        FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset AND p.prorettype <> 'trigger'::regtype
          AND p.proname IN ('format', 'count', 'quote_ident', 'quote_literal', 'now', 'clock_timestamp', 'current_setting', 'set_config',
              'pg_has_role', 'has_table_privilege', 'replace', 'concat', 'array_length', 'cardinality', 'to_regclass', 'date_trunc', 'nextval',
              'pg_notify', 'pg_get_expr', 'pg_total_relation_size', 'pg_table_size', 'round', 'length', 'lower', 'upper', 'position', 'substr',
              'substring', 'split_part', 'starts_with', 'array_position', 'array_append', 'obj_description', 'pg_backend_pid',
              'current_database', 'pg_snapshot_xmin', 'pg_current_snapshot', 'age', 'timezone', 'json_build_object', 'pg_get_userbyid')
          AND NOT EXISTS (SELECT FROM unnest(p.proargtypes || p.prorettype) t JOIN pg_type y ON y.oid = t
                          WHERE y.typtype = 'p' AND t NOT IN ('anyelement'::regtype, 'anyarray'::regtype, 'void'::regtype))
      LOOP
        BEGIN
          EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS
                          $f$ DECLARE c text; BEGIN GET DIAGNOSTICS c = PG_CONTEXT; RAISE ''trapped by %s in %%'', c; END $f$',
                         f.proname, f.arguments, f.result, f.proname);
        EXCEPTION WHEN OTHERS THEN RAISE DEBUG '%: %', f.proname, SQLERRM;
        END;
      END LOOP;
      FOR f IN
        SELECT o.oid, o.oprname, o.oprleft::regtype AS a, o.oprright::regtype AS b, o.oprresult::regtype AS result
        FROM pg_operator o
        WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprkind = 'b' AND o.oprcode <> 0
          AND o.oprname IN ('=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '||', '%', '@>')
          AND o.oprleft::regtype::text IN ('text', 'name', 'oid', 'integer', 'bigint', 'smallint', 'boolean', 'interval', 'numeric',
              'double precision', 'timestamp with time zone', 'timestamp without time zone', '\"char\"', 'xid', 'anyarray')
      LOOP
        EXECUTE format('CREATE FUNCTION evil.operator_%s(%s, %s) RETURNS %s LANGUAGE plpgsql AS
                        $f$ DECLARE c text; BEGIN GET DIAGNOSTICS c = PG_CONTEXT; RAISE ''trapped by operator %s of %s in %%'', c; END $f$',
                       f.oid, f.a, f.b, f.result, replace(f.oprname, '%', '%%'), f.a);
        EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.operator_%s)', f.oprname, f.a, f.b, f.oid);
      END LOOP;
    END $traps$;";

/// What a session of the hostile sort begins with.
const HOSTILE: &str = "
    CREATE TEMP TABLE jobs (LIKE tally.jobs); CREATE TEMP TABLE job_states (job_id int); CREATE TEMP TABLE runs (job_id int);
    CREATE TEMP TABLE rollups (rollup regclass); CREATE TEMP TABLE sources (source regclass); CREATE TEMP TABLE pg_class (oid oid);
    CREATE TEMP TABLE pg_namespace (oid oid); CREATE TEMP TABLE pg_extension (extname text); CREATE TEMP TABLE pg_inherits (inhrelid oid);
    CREATE TEMP TABLE events (at timestamptz); CREATE TEMP TABLE totals (k int);
    SET search_path = evil, pg_temp, pg_catalog;";

#[test]
fn planted_objects_change_nothing() {
    let world = World::start();
    let database = world.database();
    let mut admin = database.connect();
    admin.batch_execute(TRAPS).unwrap();
    for (role, column) in [("owner", 0), ("postgres", 4)] {
        let mut session = database.connect_as(role);
        session.batch_execute(HOSTILE).unwrap();
        for trapped in ["SELECT 1 = 1", "SELECT 'a'::text || 'b'", "SELECT now()", "SELECT pg_backend_pid()"] {
            let error = session.simple_query(trapped).expect_err(trapped);
            assert!(error.as_db_error().unwrap().message().starts_with("trapped"), "{trapped}: {error}");
        }
        for (function, call, expected) in CALLS {
            // Names of the call itself are the caller's affair.
            let call = with_jobs(call, &mut admin).replace(", now(), now(),", ", pg_catalog.now(), pg_catalog.now(),");
            assert_eq!(outcome(&mut session, &call), expected[column], "{role}: {function}");
        }
        for (view, _, _) in VIEWS {
            let read = outcome(&mut session, &format!("SELECT pg_catalog.count(s.*) FROM tally.{view} s"));
            assert_eq!(read, "ok", "{role} reads {view}");
        }
    }
    // Workers are sent into the trap by the settings of their role and of their database.
    admin
        .batch_execute(&format!(
            "ALTER ROLE owner SET search_path = evil, pg_catalog; ALTER DATABASE {} SET search_path = evil, pg_catalog",
            database.name()
        ))
        .unwrap();
    admin.batch_execute("SELECT tally.resume_job(job_id) FROM tally.jobs").unwrap();
    admin.batch_execute("INSERT INTO events VALUES (now(), 1, 1)").unwrap();
    let begin = std::time::Instant::now();
    let counted = "SELECT sum(n)::bigint, (SELECT count(*) FROM tally.status WHERE last_success_at IS NOT NULL) FROM totals_stored";
    loop {
        let row = admin.query_one(counted, &[]).unwrap();
        if (row.get::<_, Option<i64>>(0), row.get::<_, i64>(1)) == (Some(11), 3) {
            break;
        }
        assert!(begin.elapsed() < std::time::Duration::from_secs(60), "jobs fell into a trap: {row:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // The script of the extension too.
    let other = world.cluster.empty_database();
    let mut installer = other.connect();
    installer.batch_execute(TRAPS).unwrap();
    installer.batch_execute("SET search_path = evil, pg_catalog; CREATE EXTENSION tally").unwrap();
}
