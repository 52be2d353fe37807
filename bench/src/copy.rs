//! What capture costs the writer: binary COPY into a table that feeds a rollup, against the same table without one, and against the
//! same table with the index by which tools that follow a sequence find new rows.

use std::time::Duration;

use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{PER_5_MINUTES, binary_file, copy_from, create_events};
use crate::report::{Goal, Report, time};

const ROLLUP: &str = "SELECT tally.create_rollup('per_5_minutes', $1)";
const BTREE: &str = "CREATE INDEX ON events (event_id)";
const BRIN: &str = "CREATE INDEX ON events USING brin (event_id)";

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let file = binary_file(&database, folder.path(), rows);

    let contenders = [
        ("untracked", None),
        ("tracked", Some(ROLLUP)),
        ("btree on the identity", Some(BTREE)),
        ("BRIN on it", Some(BRIN)),
    ];
    let [plain, tracked, btree, brin] = report.interleave(contenders, |what| copy_into(&database, &file, *what));
    report.add(
        &format!("binary COPY of {rows} rows, tracked against untracked"),
        &plain,
        &tracked,
        Goal::TimesAtMost(1.4),
    );
    let what = "tracked against untracked with a btree index on the identity column";
    report.add(what, &btree, &tracked, Goal::TimesAtMost(0.8));
    report.add("for comparison: with a BRIN index on it instead", &brin, &tracked, Goal::Times);
}

fn copy_into(database: &Database, file: &std::path::Path, what: Option<&str>) -> Duration {
    let mut session = database.connect();
    create_events(&mut session, 1);
    match what {
        Some(ROLLUP) => drop(session.execute(ROLLUP, &[&PER_5_MINUTES]).unwrap()),
        Some(index) => session.batch_execute(index).unwrap(),
        None => (),
    }
    session.batch_execute("CHECKPOINT").unwrap();
    let taken = time(|| copy_from(&mut session, file));
    if what == Some(ROLLUP) {
        session.batch_execute("SELECT tally.drop_rollup('per_5_minutes')").unwrap();
    }
    session.batch_execute("DROP TABLE events").unwrap();
    taken
}
