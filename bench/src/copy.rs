//! What capture costs the writer: binary COPY into a table that feeds a rollup, against the same table without one.

use std::time::Duration;

use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{PER_5_MINUTES, binary_file, copy_from, create_events};
use crate::report::{Goal, Report, time};

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let file = binary_file(&database, folder.path(), rows);

    let [plain, tracked] = report.interleave([("untracked", None), ("tracked", Some(PER_5_MINUTES))], |rollup| {
        copy_into(&database, &file, *rollup)
    });
    report.add(
        &format!("binary COPY of {rows} rows, tracked against untracked"),
        &plain,
        &tracked,
        Goal::TimesAtMost(1.4),
    );
}

fn copy_into(database: &Database, file: &std::path::Path, rollup: Option<&str>) -> Duration {
    let mut session = database.connect();
    create_events(&mut session, 1);
    if let Some(definition) = rollup {
        session.execute("SELECT tally.create_rollup('per_5_minutes', $1)", &[&definition]).unwrap();
    }
    session.batch_execute("CHECKPOINT").unwrap();
    let taken = time(|| copy_from(&mut session, file));
    if rollup.is_some() {
        session.batch_execute("SELECT tally.drop_rollup('per_5_minutes')").unwrap();
    }
    session.batch_execute("DROP TABLE events").unwrap();
    taken
}
