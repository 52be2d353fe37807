//! What a refresh costs: one tick over new rows, against the INSERT .. SELECT .. GROUP BY that somebody would write by
//! hand into a table of the same shape and index.

use std::path::Path;
use std::time::Duration;

use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{COUNTS_AND_SUMS, PER_5_MINUTES, PER_HOUR, binary_file, copy_from, create_events};
use crate::report::{Goal, Report, time};

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let file = binary_file(&database, folder.path(), rows);
    for (name, definition, keys) in [
        ("into 96,000 groups of 3 counts and sums", COUNTS_AND_SUMS, "customer_id, bucket, event_type"),
        (
            "into nearly as many groups as rows, with 2 sketches each",
            PER_5_MINUTES,
            "customer_id, bucket, event_type, country, browser",
        ),
        ("into 2,304 groups with 2 sketches each", PER_HOUR, "event_type, bucket, country, browser"),
    ] {
        let [plain, tick] = report.interleave([("insert select", false), ("tick", true)], |tick| {
            if *tick {
                refresh(&database, &file, definition)
            } else {
                insert_select(&database, &file, definition, keys)
            }
        });
        report.add(
            &format!("tick over {rows} new rows {name}, against INSERT .. SELECT .. GROUP BY"),
            &plain,
            &tick,
            Goal::TimesAtMost(1.2),
        );
    }
}

fn insert_select(database: &Database, file: &Path, definition: &str, keys: &str) -> Duration {
    let mut session = database.connect();
    create_events(&mut session, 1);
    let target = format!(
        "CREATE TABLE target AS {definition} WITH NO DATA;
         CREATE UNIQUE INDEX ON target ({keys}) NULLS NOT DISTINCT;"
    );
    session.batch_execute(&target).unwrap();
    copy_from(&mut session, file);
    session.batch_execute("ANALYZE events; CHECKPOINT").unwrap();
    let taken = time(|| session.batch_execute(&format!("INSERT INTO target {definition}")).unwrap());
    session.batch_execute("DROP TABLE events, target").unwrap();
    taken
}

fn refresh(database: &Database, file: &Path, definition: &str) -> Duration {
    let mut session = database.connect();
    create_events(&mut session, 1);
    session.execute("SELECT tally.create_rollup('target', $1)", &[&definition]).unwrap();
    copy_from(&mut session, file);
    session.batch_execute("ANALYZE events; CHECKPOINT").unwrap();
    let taken = time(|| session.batch_execute("CALL tally.refresh('target')").unwrap());
    session.batch_execute("SELECT tally.drop_rollup('target'); DROP TABLE events").unwrap();
    taken
}
