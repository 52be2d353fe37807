//! A new library and the new SQL objects do not come at the same moment. In between no row and no job is lost.

use super::*;
use crate::oracle::{StopAtEnd, assert_equal, assert_refused};
use std::sync::atomic::{AtomicBool, Ordering};

const OURS: &str = env!("CARGO_PKG_VERSION");
/// Their objects are the same as ours.
const OLDER: &str = "0.0.1";
const NEWER: &str = "999.0.0";

const QUERY: &str = "SELECT k, count(*) AS n, sum(v) AS total FROM events GROUP BY k";

/// Whatever changes something. `JOB` is the number of a job.
const CHANGES: [&str; 31] = [
    "SELECT tally.create_rollup('more', 'SELECT k, count(*) AS n FROM events GROUP BY k')",
    "SELECT tally.alter_rollup('totals', refresh_interval => '1 minute')",
    "SELECT tally.add_aggregate('totals', 'top', 'max(v)')",
    "SELECT tally.drop_rollup('totals')",
    "CALL tally.refresh('totals')",
    "CALL tally.build('totals')",
    "SELECT tally.build_slice('totals')",
    "CALL tally.rebuild('totals')",
    "SELECT tally.rebuild_range('totals', NULL, NULL)",
    "CALL tally.seal_partitions('visits', '2000-01-01')",
    "SELECT tally.seal_some_partitions('visits', '2000-01-01')",
    "SELECT tally.forget_partition('events', 'events')",
    "SELECT tally.forget_rows('events', 'events', '2000-01-01', 'k')",
    "SELECT tally.partition_by_time('plain', '1 day')",
    "SELECT tally.ensure_partitions('visits', now(), now())",
    "SELECT tally.set_partition_policy('visits', premake => '1 day')",
    "SELECT tally.set_partition_width('visits', '1 hour')",
    "SELECT tally.unregister_partitions('visits')",
    "SELECT tally.undo_retention('visits', 'events')",
    "SELECT tally.pause_partitions('visits')",
    "SELECT tally.resume_partitions('visits')",
    "SELECT tally.adopt()",
    "SELECT tally.convert_to_partitioned('whole', 'at', '1 day')",
    "SELECT tally.cancel_conversion('whole')",
    "SELECT tally.undo_conversion('visits')",
    "SELECT tally.move_rollups('events', 'whole')",
    "SELECT tally.pause_job(JOB)",
    "SELECT tally.resume_job(JOB)",
    "SELECT tally.set_max_runtime(JOB, '1 minute')",
    "SELECT tally.run_job(JOB)",
    "CALL tally.run_due_jobs()",
];

fn server() -> Cluster {
    let scripts = [(OURS, OLDER), (OLDER, OURS), (OURS, NEWER), (NEWER, OURS)];
    let files = scripts.map(|(from, to)| (format!("tally--{from}--{to}.sql"), "-- the same objects\n".to_owned()));
    Cluster::start_with_extension_files(&files, &[])
}

fn assert_refreshes_go_on(session: &mut Client) {
    let counted = number(session, "SELECT max(next_tag) FROM tally.sources");
    session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
    eventually_true(session, &format!("SELECT max(next_tag) > {counted} FROM tally.sources"));
}

#[test]
fn rows_and_jobs_survive_a_library_of_another_version() {
    let cluster = server();
    let database = cluster.database();
    let mut session = database.connect();
    session
        .batch_execute(&format!(
            "{ROLLUP}
             CREATE TABLE visits (at timestamptz NOT NULL, k int) PARTITION BY RANGE (at);
             SELECT tally.partition_by_time('visits', '1 day');
             CREATE TABLE plain (at timestamptz NOT NULL) PARTITION BY RANGE (at);
             CREATE TABLE whole (at timestamptz NOT NULL, k int);"
        ))
        .unwrap();
    assert_refreshes_go_on(&mut session);
    let job = number(&mut session, "SELECT min(job_id)::bigint FROM tally.jobs").to_string();
    let (stopped, mut written) = (AtomicBool::new(false), 1);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut session = database.connect();
            let mut rows = 0;
            while !stopped.load(Ordering::Relaxed) {
                session.batch_execute("INSERT INTO events VALUES (2, 3)").unwrap();
                rows += 1;
            }
            rows
        });
        let stop = StopAtEnd(&stopped);
        for (version, next_sql, hint) in [
            (OLDER, "ALTER EXTENSION tally UPDATE;", "Run ALTER EXTENSION tally UPDATE"),
            (NEWER, "-- restart the server, which still has the older library", "Restart the server"),
        ] {
            session.batch_execute(&format!("ALTER EXTENSION tally UPDATE TO '{version}'")).unwrap();
            eventually_true(&mut session, "SELECT count(*) = 0 FROM tally.job_activity()");
            let message = format!("the library is of version {OURS} of tally, this database of version {version}");
            for change in CHANGES {
                assert_refused(&mut session, &change.replace("JOB", &job), "55000", &message, hint);
            }
            let server = "SELECT verdict || ': ' || next_sql FROM tally.status WHERE kind = 'server'";
            assert_eq!(text(&mut session, server), Some(format!("critical: {next_sql}")));
            session.batch_execute("INSERT INTO events VALUES (1, 1)").unwrap();
            written += 1;
            assert_equal(&mut session, "totals", QUERY);
            // Where the library is the older one, this stands for the server that starts with the newer.
            let way_out = if version == OLDER {
                next_sql.to_owned()
            } else {
                format!("ALTER EXTENSION tally UPDATE TO '{OURS}'")
            };
            session.batch_execute(&way_out).unwrap();
            assert_refreshes_go_on(&mut session);
            written += 1;
        }
        drop(stop);
        written += writer.join().expect("nobody refuses rows");
    });
    assert_equal(&mut session, "totals", QUERY);
    assert_eq!(number(&mut session, "SELECT sum(n)::bigint FROM totals"), written);
    let healthy = "SELECT verdict FROM tally.status WHERE kind = 'server'";
    assert_eq!(text(&mut session, healthy).as_deref(), Some("ok"));
}
