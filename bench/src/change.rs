//! What the change log costs the writer: UPDATE and DELETE of counted rows of a table that feeds a rollup, against the same table
//! without one.

use std::time::Duration;

use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{PER_HOUR, binary_file, copy_from, create_events};
use crate::report::{Goal, Report, time};

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let file = binary_file(&database, folder.path(), rows);
    for (name, change) in
        [("UPDATE", "UPDATE events SET session_id = session_id + 1"), ("DELETE", "DELETE FROM events")]
    {
        let [plain, tracked] = report.interleave([("untracked", false), ("tracked", true)], |is_tracked| {
            change_all(&database, &file, change, *is_tracked)
        });
        let what = format!("{name} of {rows} counted rows, tracked against untracked");
        report.add(&what, &plain, &tracked, Goal::TimesAtMost(1.5));
    }
}

fn change_all(database: &Database, file: &std::path::Path, change: &str, is_tracked: bool) -> Duration {
    let mut session = database.connect();
    create_events(&mut session, 1);
    if is_tracked {
        session.execute("SELECT tally.create_rollup('per_hour', $1)", &[&PER_HOUR]).unwrap();
    }
    copy_from(&mut session, file);
    if is_tracked {
        session.batch_execute("CALL tally.refresh('per_hour')").unwrap();
    }
    // VACUUM wants to be a statement of its own.
    session.batch_execute("VACUUM (ANALYZE) events").unwrap();
    session.batch_execute("CHECKPOINT").unwrap();
    let taken = time(|| session.batch_execute(change).unwrap());
    if is_tracked {
        session.batch_execute("SELECT tally.drop_rollup('per_hour')").unwrap();
    }
    session.batch_execute("DROP TABLE events").unwrap();
    taken
}
