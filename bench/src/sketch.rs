//! What a distinct count costs per row, in one process, over a table in cache.

use tally_server_tests::cluster::Cluster;

use crate::report::{Goal, Report, time};

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let rows = u64::from(rows) * 5;
    let database = cluster.database();
    let mut session = database.connect();
    let prepare = format!(
        "SET max_parallel_workers_per_gather = 0;
         CREATE TABLE numbers AS SELECT abs(hashint8extended(i, 0) % 100000) AS number FROM generate_series(1, {rows}) AS i;
         VACUUM (FREEZE, ANALYZE) numbers; CHECKPOINT;"
    );
    // VACUUM wants to be a statement of its own.
    prepare.split_inclusive(';').for_each(|statement| session.batch_execute(statement).unwrap());

    let contenders = [
        ("count(*)", "count(*)"),
        ("count(number)", "count(number)"),
        ("sum", "sum(number)"),
        ("hll_agg", "tally.hll_agg(number)"),
        ("distinct_count", "tally.distinct_count(number)"),
    ];
    let [count, count_column, sum, sketch, distinct] = report.interleave(contenders, |aggregate| {
        let query = format!("SELECT {aggregate} FROM numbers");
        time(|| session.batch_execute(&query).unwrap())
    });
    let goal = Goal::NanosecondsAbove { at_most: 8.0, rows };
    report.add(&format!("`hll_agg(bigint)` against `count(*)`, {rows} rows"), &count, &sketch, goal);
    report.add("`distinct_count(bigint)` against `count(*)`, the same", &count, &distinct, Goal::Above { rows });
    let label = "`hll_agg(bigint)` against `count(column)`, which also reads the column";
    report.add(label, &count_column, &sketch, Goal::Above { rows });
    report.add("for comparison: `count(column)` against `count(*)`", &count, &count_column, Goal::Above { rows });
    report.add("for comparison: `sum(bigint)` against `count(*)`", &count, &sum, Goal::Above { rows });
}
