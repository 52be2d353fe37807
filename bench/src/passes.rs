//! What the jobs of partition sets cost when there is nothing to do: a pass of premake and of retention, in a session that has made one
//! before, over a large set, and over many sets in one statement.

use postgres::Client;
use tally_server_tests::cluster::Cluster;

use crate::report::{Report, Samples, time};

/// A sample is the mean of so many calls.
const CALLS: u32 = 20;
const SETS: u32 = 100;

pub fn measure(cluster: &Cluster, _: u32, report: &mut Report) {
    for partitions in [1_000, 10_000] {
        let database = cluster.database();
        let mut session = database.connect();
        make_large_set(&mut session, partitions);
        let [premake, retention] = passes(&mut session, 1, report);
        let what = format!("pass that finds nothing to do, {partitions} partitions: premake");
        report.add_alone(&what, &premake, 1.0);
        report.add_alone("the same: retention", &retention, 1.0);
    }
    let database = cluster.database();
    let mut session = database.connect();
    for set in 0..SETS {
        let make = format!(
            "CREATE TABLE events_{set} (event_time timestamptz NOT NULL, value int) PARTITION BY RANGE (event_time);
             SELECT tally.partition_by_time('events_{set}', '1 day', retention => '10 years')"
        );
        session.batch_execute(&make).unwrap();
    }
    let [premake, retention] = passes(&mut session, SETS, report);
    report.add_alone(&format!("the same for each of {SETS} sets in one statement: premake"), &premake, 0.05);
    report.add_alone("the same: retention", &retention, 0.05);
}

/// A set of so many hours, as premake and retention leave it.
fn make_large_set(session: &mut Client, partitions: u32) {
    let table = "CREATE TABLE events (event_time timestamptz NOT NULL, value int) PARTITION BY RANGE (event_time)";
    session.batch_execute(table).unwrap();
    // A few at a time, because each takes a place in the table of locks until the commit.
    for first in (0..partitions).step_by(500) {
        let make = format!(
            "DO $$ BEGIN FOR i IN {first} .. {} LOOP
               EXECUTE format('CREATE TABLE events_%s PARTITION OF events FOR VALUES FROM (%L) TO (%L)', i,
                 date_trunc('hour', now()) - ({partitions} - i) * interval '1 hour', date_trunc('hour', now()) - ({partitions} - i - 1) * interval '1 hour');
             END LOOP; END $$",
            (first + 500).min(partitions) - 1
        );
        session.batch_execute(&make).unwrap();
    }
    let register = "SELECT tally.partition_by_time('events', '1 hour', lateness => '1 hour', retention => '10 years')";
    session.batch_execute(register).unwrap();
}

/// The mean of passes of premake and of retention over a set.
fn passes(session: &mut Client, sets: u32, report: &Report) -> [Samples; 2] {
    let all = |kind: &str| format!("SELECT sum(tally.run_job(job_id))::bigint FROM tally.jobs WHERE kind = '{kind}'");
    let statements = ["premake", "retention"].map(all);
    for statement in &statements {
        // What registration has left to the job.
        while session.query_one(statement, &[]).unwrap().get::<_, i64>(0) > 0 {}
    }
    report.interleave([("premake", 0), ("retention", 1)], |at: &usize| {
        time(|| (0..CALLS).for_each(|_| session.batch_execute(&statements[*at]).unwrap())) / CALLS / sets
    })
}
