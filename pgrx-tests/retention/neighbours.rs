//! Sets that are broken in every known way, or whose other tables are in use, and what that means for others: nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use postgres::Client;
use postgres::error::SqlState;
use tally_server_tests::cluster::Cluster;

use super::locks::CONNECTED;
use super::{eventually, number, text};
use crate::oracle::{StopAtEnd, is_17, own_pid};

const FAST: [(&str, &str); 2] = [("tally.retry_min", "100ms"), ("tally.retry_max", "1s")];

/// What is wrong with a set, what its owner is told of it, if it is wrong at all, and the statements that make it so. `{}` is the set, `{p}` its oldest partition, `{role}` its owner.
const BROKEN: [(&str, &str, &str); 14] = [
    ("its owner may not create tables", "P13", "REVOKE CREATE ON SCHEMA public FROM {role}"),
    (NO_LOGIN, "P13", "ALTER ROLE {role} NOLOGIN"),
    ("its oldest partition belongs to somebody else", "failing", "ALTER TABLE {p} OWNER TO {role}_other"),
    ("a default partition", "P06", "CREATE TABLE {}_rest PARTITION OF {} DEFAULT"),
    ("a partition without end", "P13", "CREATE TABLE {}_end PARTITION OF {} FOR VALUES FROM ('2999-01-01') TO (MAXVALUE)"),
    (
        "a partition with partitions", "P13",
        "CREATE TABLE {}_sub PARTITION OF {} FOR VALUES FROM ('2998-01-01') TO ('2999-01-01') PARTITION BY RANGE (at)",
    ),
    (
        "a foreign partition", "P13",
        "CREATE FOREIGN TABLE {}_far PARTITION OF {} FOR VALUES FROM ('2998-01-01') TO ('2999-01-01') SERVER nowhere",
    ),
    ("a key that may be null", "P13", "ALTER TABLE {} ALTER at DROP NOT NULL"),
    ("a dropped parent", "", "DROP TABLE {}"),
    ("a dropped partition", "", "DROP TABLE {p}"),
    ("a fence that somebody else has put up", "failing", "CREATE TRIGGER tally_fence BEFORE DELETE ON {p} FOR EACH ROW EXECUTE FUNCTION tally._refuse_change()"),
    (
        "a rollup that differs", "P10",
        "SELECT tally.create_rollup('{}_counts', 'SELECT date_trunc(''day'', at, ''UTC'') AS day, count(*) AS n FROM {} GROUP BY 1');
         UPDATE {}_counts_stored SET _rows = _rows + 1",
    ),
    ("a view on the partition", "failing", "CREATE VIEW {}_old AS SELECT * FROM {p}"),
    ("another name", "", "ALTER TABLE {} RENAME TO {}_gone"),
];
const NO_LOGIN: &str = "its owner may not log in";
const HEALTHY: usize = 6;

fn is_served(name: &str) -> String {
    format!(
        "SELECT accepts_from >= now() - interval '3 days' AND ahead >= '7 days' FROM tally.partition_status WHERE parent = '{name}'::regclass"
    )
}

#[test]
fn broken_sets_keep_no_other_from_being_served() {
    let cluster = Cluster::start(&FAST);
    let database = cluster.database();
    let mut session = database.connect();
    let role = format!("{}_owner", database.name());
    session
        .batch_execute(&format!(
            "CREATE ROLE {role}_other; CREATE FOREIGN DATA WRAPPER none; CREATE SERVER nowhere FOREIGN DATA WRAPPER none"
        ))
        .unwrap();
    let names: Vec<String> = (0..BROKEN.len()).map(|at| format!("broken_{at}")).collect();
    let healthy: Vec<String> = (0..HEALTHY).map(|at| format!("healthy_{at}")).collect();
    // Broken ones first, in the order of their jobs.
    for (at, name) in names.iter().chain(&healthy).enumerate() {
        // Each with an owner of its own, so that what he may not do concerns no other.
        let owner = format!("{role}_{at}");
        session
            .batch_execute(&format!(
                "CREATE ROLE {owner} LOGIN; GRANT CREATE ON SCHEMA public TO {owner};
                 CREATE TABLE {name} (gone int, at timestamptz NOT NULL, k int) PARTITION BY RANGE (at);
                 ALTER TABLE {name} DROP gone, OWNER TO {owner}; SET ROLE {owner};
                 BEGIN; SELECT tally.partition_by_time('{name}', '1 day', lateness => '4 days', grace => '0');
                 SELECT tally.set_partition_policy('{name}', lateness => '2 days', retention => '2 days');
                 SELECT tally.pause_partitions('{name}'); COMMIT;
                 INSERT INTO {name} SELECT now() - i * interval '6 hours', i FROM generate_series(0, 16) i; RESET ROLE"
            ))
            .unwrap();
    }
    let end = |name: &str, which: &str| {
        format!(
            "SELECT {which}(c.oid::regclass::text) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = '{name}'::regclass AND c.relname LIKE '%\\_p2%'"
        )
    };
    for (at, (name, (.., statements))) in names.iter().zip(BROKEN).enumerate() {
        let oldest = text(&mut session, &end(name, "min")).unwrap();
        let owner = format!("{role}_{at}");
        let statements =
            statements.replace("{}", name).replace("{p}", &oldest).replace("{role}_other", &format!("{role}_other"));
        session.batch_execute(&statements.replace("{role}", &owner)).unwrap();
    }
    // Something is missing at the end, and something is old at the beginning.
    for name in &healthy {
        let newest = text(&mut session, &end(name, "max")).unwrap();
        session.batch_execute(&format!("DROP TABLE {newest}")).unwrap();
    }
    for at in 0..names.len() + healthy.len() {
        session
            .batch_execute(&format!(
                "SET ROLE {role}_{at}; SELECT tally.resume_job(job_id) FROM tally.jobs JOIN pg_class c ON c.oid = object
                 WHERE pg_get_userbyid(c.relowner) = current_user; RESET ROLE"
            ))
            .unwrap();
    }
    for name in &healthy {
        eventually(&mut session, &is_served(name));
        eventually(
            &mut session,
            &format!("SELECT NOT EXISTS (SELECT FROM tally.retirements WHERE parent = '{name}'::regclass)"),
        );
        assert_eq!(
            number(
                &mut session,
                &format!(
                    "SELECT count(*) FROM pg_class WHERE relnamespace = 'tally_trash'::regnamespace AND relname LIKE '{name}%'"
                )
            ),
            0
        );
    }
    assert!(!cluster.log().contains("was terminated by signal"), "no process has crashed");
    // Whoever looks is told.
    let workers_run_as_any_role = is_17(&mut session);
    for (name, (what, told, _)) in names.iter().zip(BROKEN).filter(|(_, (_, told, _))| !told.is_empty()) {
        println!("{what}: {told}");
        if workers_run_as_any_role && what == NO_LOGIN {
            eventually(&mut session, &is_served(name));
            continue;
        }
        eventually(
            &mut session,
            &format!(
                "SELECT string_agg(found, '; ') LIKE '%{told}%' FROM (SELECT reason FROM tally.status WHERE object_name LIKE '%{name}'
                 UNION ALL SELECT note FROM tally.retirements WHERE table_name LIKE '{name}_p%'
                 UNION ALL SELECT reason FROM tally.partition_status WHERE parent = '{name}'::regclass) AS t (found)"
            ),
        );
    }
    for owner in (0..names.len() + healthy.len()).map(|at| format!("{role}_{at}")).chain([format!("{role}_other")]) {
        session.batch_execute(&format!("DROP OWNED BY {owner} CASCADE; DROP ROLE {owner}")).unwrap();
    }
}

/// Repeats a statement until the end, waiting for no lock longer than 100 ms; answers how often it ran and how often that was too short.
fn repeat(mut session: Client, statement: &str, stop: &AtomicBool) -> (u64, u64) {
    session.batch_execute("SET lock_timeout = '100ms'").unwrap();
    let (mut done, mut timeouts) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        match session.batch_execute(statement) {
            Ok(()) => done += 1,
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => timeouts += 1,
            Err(error) => panic!("{statement}: {error:?}"),
        }
    }
    (done, timeouts)
}

#[test]
fn tables_connected_by_foreign_keys_are_waited_for_and_never_held_up() {
    let cluster = Cluster::start(&FAST);
    let database = cluster.database();
    let mut session = database.connect();
    session.batch_execute(CONNECTED).unwrap();
    let [mut writer, mut reader] = [(); 2].map(|()| database.connect());
    let stop = AtomicBool::new(false);
    let counts = thread::scope(|scope| {
        let end = StopAtEnd(&stop);
        let statements = [
            "INSERT INTO customers SELECT max(id) + 1 FROM customers",
            "UPDATE customers SET id = id WHERE id = 1",
            "INSERT INTO events SELECT max(id) + 1, now(), 1 FROM events",
            "SELECT count(*) FROM notes",
        ];
        let busy: Vec<_> =
            statements.iter().map(|statement| scope.spawn(|| repeat(database.connect(), statement, &stop))).collect();
        // Each of them is in use for as long as somebody wants.
        let [writer_pid, reader_pid] = [&mut writer, &mut reader].map(own_pid);
        writer.batch_execute("BEGIN; INSERT INTO customers VALUES (-1)").unwrap();
        reader.batch_execute("BEGIN; SELECT count(*) FROM notes").unwrap();
        session
            .batch_execute("SELECT tally.set_partition_policy('events', lateness => '2 days', retention => '2 days', grace => '0')")
            .unwrap();
        session.batch_execute("SELECT tally.resume_partitions('events')").unwrap();
        let waits = |who: &[i32]| {
            let named = who.iter().map(|pid| format!(" AND note LIKE '%pid {pid},%'")).collect::<String>();
            format!(
                "SELECT note LIKE 'waits for transactions that are older than a second: %'{named} FROM tally.retirements"
            )
        };
        eventually(&mut session, &waits(&[writer_pid, reader_pid]));
        let pending = "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhdetachpending)";
        assert_eq!(text(&mut session, &format!("SELECT ({pending})::text")).as_deref(), Some("false"));
        // One that uses the set has it begin, and give up; then there is FINALIZE, which waits for them as well.
        let mut holder = database.connect();
        holder.batch_execute("BEGIN; SELECT count(*) FROM events").unwrap();
        writer.batch_execute("COMMIT").unwrap();
        reader.batch_execute("COMMIT").unwrap();
        eventually(&mut session, pending);
        writer.batch_execute("BEGIN; INSERT INTO customers VALUES (-2)").unwrap();
        holder.batch_execute("COMMIT").unwrap();
        eventually(&mut session, &waits(&[writer_pid]));
        assert_eq!(number(&mut session, "SELECT count(*) FROM tally.retirements WHERE state = 'trash'"), 0);
        writer.batch_execute("COMMIT").unwrap();
        eventually(
            &mut session,
            "SELECT EXISTS (SELECT FROM tally.runs r JOIN tally.jobs j USING (job_id) WHERE j.kind = 'retention' AND r.sqlstate IS NULL)",
        );
        eventually(&mut session, "SELECT accepts_from >= now() - interval '3 days' FROM tally.partition_status");
        eventually(&mut session, "SELECT NOT EXISTS (SELECT FROM tally.retirements)");
        drop(end);
        busy.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    println!("ran, waited for too long: {counts:?}");
    assert!(counts.iter().all(|(done, timeouts)| *done > 10 && *timeouts == 0), "{counts:?}");
    assert_eq!(number(&mut session, "SELECT count(*) FROM tally.verify('by_customer')"), 0);
    let trash = "SELECT count(*) FROM pg_class WHERE relnamespace = 'tally_trash'::regnamespace AND relkind = 'r'";
    assert_eq!(number(&mut session, trash), 0);
}
