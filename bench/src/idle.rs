//! What partitions cost when nothing happens: a tick that finds nothing new, and a read with nothing pending, of a table with 1,000
//! partitions, in a session that has done the same before.

use std::time::Duration;

use postgres::Client;
use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{PER_HOUR, create_events, fill_events};
use crate::report::{Goal, Report, time};

const PARTITIONS: u32 = 1_000;
/// The newest ones are not sealed: today's, yesterday's, and a week of premade ones.
const HOT: u32 = 9;
/// A sample is the mean of so many calls.
const CALLS: u32 = 20;
/// The last of the days, by hour.
const LAST_DAY: &str = "WHERE bucket >= '2027-09-26 00:00:00Z' GROUP BY bucket ORDER BY bucket";

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let databases = [1, PARTITIONS].map(|partitions| {
        let database = cluster.database();
        prepare(&database, partitions, rows);
        database
    });
    let mut sessions: Vec<Client> = databases.iter().map(Database::connect).collect();
    let [one, many] = report.interleave([("1 partition", 0), ("1,000 partitions", 1)], |position| {
        mean(&mut sessions[*position], "CALL tally.refresh('per_hour')")
    });
    let what = format!("tick that finds nothing new, {PARTITIONS} partitions; beside it with 1 partition");
    report.add(&what, &one, &many, Goal::MillisecondsAtMost(2.0));

    let session = &mut sessions[1];
    let query = |relation: &str| format!("SELECT bucket, sum(events) FROM {relation} {LAST_DAY}");
    let contenders = [("stored", query("per_hour_stored")), ("view", query("per_hour"))];
    let [stored, view] = report.interleave(contenders, |query| mean(session, query));
    let what = format!("read of a day with nothing pending, {PARTITIONS} partitions; stored table against view");
    report.add(&what, &stored, &view, Goal::MillisecondsAbove(1.0));

    for relation in ["per_hour_stored", "per_hour"] {
        session.batch_execute(&format!("PREPARE {relation}_day AS {}", query(relation))).unwrap();
    }
    session.batch_execute("SET plan_cache_mode = force_generic_plan").unwrap();
    let contenders = [("stored", "EXECUTE per_hour_stored_day"), ("view", "EXECUTE per_hour_day")];
    let [stored, view] = report.interleave(contenders, |query| mean(session, query));
    report.add("the same, prepared and planned once", &stored, &view, Goal::MillisecondsAbove(1.0));
}

fn prepare(database: &Database, partitions: u32, rows: u32) {
    let mut session = database.connect();
    create_events(&mut session, partitions);
    session.execute("SELECT tally.create_rollup('per_hour', $1)", &[&PER_HOUR]).unwrap();
    fill_events(&mut session, rows, partitions);
    session.batch_execute("CALL tally.refresh('per_hour')").unwrap();
    if partitions > HOT {
        let seal = format!(
            "CALL tally.seal_partitions('events', '2025-01-01Z'::timestamptz + interval '{} days')",
            partitions - HOT
        );
        session.batch_execute(&seal).unwrap();
        session.batch_execute("CALL tally.refresh('per_hour')").unwrap();
    }
    for statement in ["VACUUM (FREEZE, ANALYZE)", "CHECKPOINT"] {
        session.batch_execute(statement).unwrap();
    }
}

fn mean(session: &mut Client, statement: &str) -> Duration {
    time(|| (0..CALLS).for_each(|_| session.batch_execute(statement).unwrap())) / CALLS
}
