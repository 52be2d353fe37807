//! What a conversion to a partitioned table costs those who write to the table: the longest that a single-row INSERT takes while the swap
//! happens, of a small table and of a large one. A round converts the table and makes it a plain one again. No row may be copied.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

use crate::report::{Goal, Report, time};

const SMALL: u32 = 1_000;
/// Before and after the swap.
const AROUND: Duration = Duration::from_millis(100);
/// Two indexes, a foreign key, a view and a rollup: what has to be made anew or moved.
const PREPARE: &str = "
    CREATE TABLE customers (id int PRIMARY KEY);
    INSERT INTO customers SELECT generate_series(0, 99);
    CREATE TABLE clicks (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT now(),
                         customer int REFERENCES customers, page text, PRIMARY KEY (id, at));
    CREATE VIEW recent AS SELECT id, at, page FROM clicks WHERE at > now() - interval '1 day'";
const CONVERT: &str = "
    BEGIN;
    SELECT tally.convert_to_partitioned('clicks', 'at', '1 day');
    SELECT tally.pause_job(job_id) FROM tally.jobs WHERE kind = 'conversion';
    COMMIT";
const STEP: &str = "SELECT tally.run_job(job_id) FROM tally.jobs WHERE kind = 'conversion'";
const FILE: &str = "
    SELECT concat(c.oid, ' ', c.relfilenode) FROM pg_class c
    WHERE c.relname LIKE 'clicks%' AND c.relkind = 'r' AND c.oid NOT IN (
      SELECT inhrelid FROM pg_inherits JOIN pg_class p ON p.oid = inhrelid
      WHERE pg_get_expr(p.relpartbound, p.oid) NOT LIKE '%MINVALUE%') AND c.relname NOT LIKE '%changes'";

fn prepare(database: &Database<'_>, rows: u32) {
    let mut session = database.connect();
    session.batch_execute(PREPARE).unwrap();
    let fill = format!(
        "INSERT INTO clicks (at, customer, page) SELECT now() - i * interval '1 second' / 10, i % 100, '/page/' || i % 1000 \
         FROM generate_series(1, {rows}) i"
    );
    session.batch_execute(&fill).unwrap();
    session.batch_execute("CREATE INDEX ON clicks (customer, at)").unwrap();
    session
        .batch_execute("SELECT tally.create_rollup('per_customer', 'SELECT customer, count(*) AS n FROM clicks GROUP BY customer')")
        .unwrap();
    session.batch_execute("CALL tally.build('per_customer')").unwrap();
    session.batch_execute("VACUUM (ANALYZE) clicks").unwrap();
    session.batch_execute("CHECKPOINT").unwrap();
}

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let databases = [SMALL, rows].map(|rows| {
        let database = cluster.database();
        prepare(&database, rows);
        database
    });
    let [small, large] = report
        .interleave_parts([("1,000 rows", &databases[0]), ("all rows", &databases[1])], |database| {
            swap_and_undo(database)
        });
    let what = |what: &str| format!("{what} while a table of {rows} rows is swapped; beside it of {SMALL}");
    report.add(&what("worst single-row INSERT"), &small[0], &large[0], Goal::MillisecondsAtMost(50.0));
    report.add(&what("the step of the swap"), &small[1], &large[1], Goal::Milliseconds);
    report.add_count(&what("rows copied"), "0", "0");
}

/// The worst INSERT while the table is swapped, and the step.
fn swap_and_undo(database: &Database<'_>) -> [Duration; 2] {
    let mut session = database.connect();
    let file = text(&mut session, FILE);
    session.batch_execute(CONVERT).unwrap();
    // The constraint, and its validation.
    session.batch_execute(STEP).unwrap();
    session.batch_execute(STEP).unwrap();
    let (is_over, mut writer) = (AtomicBool::new(false), database.connect());
    writer.batch_execute("SET lock_timeout = '1s'").unwrap();
    let insert = || writer.batch_execute("INSERT INTO clicks (customer, page) VALUES (1, '/')").unwrap();
    let (worst, step) = thread::scope(|scope| {
        let is_over = &is_over;
        let writer = scope.spawn(move || {
            let (mut insert, mut worst) = (insert, Duration::ZERO);
            while !is_over.load(Ordering::Relaxed) {
                worst = worst.max(time(&mut insert));
                thread::sleep(Duration::from_micros(500));
            }
            worst
        });
        thread::sleep(AROUND);
        let step = time(|| session.batch_execute(STEP).unwrap());
        thread::sleep(AROUND);
        is_over.store(true, Ordering::Relaxed);
        (writer.join().expect("the writer"), step)
    });
    assert_eq!(text(&mut session, "SELECT state FROM tally.conversions"), "swapped");
    session.batch_execute(STEP).unwrap();
    assert_eq!(text(&mut session, FILE), file, "rows have been copied");
    session.batch_execute("SELECT tally.undo_conversion('clicks')").unwrap();
    assert_eq!(text(&mut session, FILE), file, "rows have been copied");
    [worst, step]
}

fn text(session: &mut Client, query: &str) -> String {
    session.query_one(query, &[]).unwrap().get(0)
}
