//! Files against `\copy`: CSV against the same file, Parquet against the same rows as text, and both against the same rows as lines
//! of JSON.

mod parquet;

use std::path::Path;

use tally_server_tests::cluster::{Cluster, Database};

use super::process::{Running, configure, loader, run_loader};
use super::{Plain, TABLES, psql};
use crate::report::{Goal, Report};

const CSV_AT_LEAST: f64 = 1.8;
const PARQUET_AT_LEAST: f64 = 1.3;
/// Of what it loads the memory must not depend.
const TIMES_AT_MOST: f64 = 1.25;
const SMALL: &str = "small.parquet";

#[derive(Clone, Copy, Debug)]
enum By {
    /// Its `\copy`, with these options.
    Psql(&'static str),
    Loader,
}

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    for Plain { name, columns, rows: row, .. } in [&TABLES[0], &TABLES[2]] {
        let database = cluster.database();
        let path = |kind: &str| folder.path().join(format!("{name}.{kind}"));
        let mut session = database.connect();
        let fill = format!(
            "SET timezone = 'UTC'; CREATE TABLE target ({columns}); CREATE TABLE filled (LIKE target);
             INSERT INTO filled SELECT {row} FROM generate_series(1::bigint, {rows}) AS i;
             COPY filled TO '{}'; COPY filled TO '{}' (FORMAT csv, HEADER);
             COPY (SELECT row_to_json(filled) FROM filled) TO '{}'",
            path("text").display(),
            path("csv").display(),
            path("ndjson").display()
        );
        session.batch_execute(&fill).unwrap();
        parquet::write(&mut session, &path("parquet"), u32::MAX);
        parquet::write(&mut session, &folder.path().join(SMALL), rows / 2);

        let mut load = |(by, kind): &(By, &str)| {
            session.batch_execute("TRUNCATE target, tally.loader_sources CASCADE; CHECKPOINT").unwrap();
            let taken = match by {
                By::Psql(options) => {
                    let copy = format!("\\copy target FROM '{}' {options}", path(kind).display());
                    psql(&database, &["--command", &copy])
                }
                By::Loader => run_loader(load_file(&database, folder.path(), &path(kind))),
            };
            let row = session.query_one("SELECT count(*) FROM target", &[]).unwrap();
            assert_eq!(row.get::<_, i64>(0), i64::from(rows), "every row is there");
            taken
        };
        let contenders = [
            ("psql text", (By::Psql(""), "text")),
            ("psql csv", (By::Psql("(FORMAT csv, HEADER)"), "csv")),
            ("csv", (By::Loader, "csv")),
            ("ndjson", (By::Loader, "ndjson")),
            ("parquet", (By::Loader, "parquet")),
        ];
        let [copy_text, copy_csv, csv, ndjson, parquet] = report.interleave_parts(contenders, &mut load);
        for (what, [copy, whole_copy], [loaded, whole_loaded], goal) in [
            ("CSV, against `\\copy` of the same file", &copy_csv, &csv, Goal::FasterAtLeast(CSV_AT_LEAST)),
            ("Parquet, against `\\copy` of text", &copy_text, &parquet, Goal::FasterAtLeast(PARQUET_AT_LEAST)),
            ("lines of JSON, against `\\copy` of text", &copy_text, &ndjson, Goal::Faster),
        ] {
            report.add(&format!("{rows} rows of `{name}` from {what}"), copy, loaded, goal);
            report.add("the same, whole programs from start to end", whole_copy, whole_loaded, Goal::Faster);
        }

        let mut peak = |from: &Path| {
            session.batch_execute("TRUNCATE target, tally.loader_sources CASCADE").unwrap();
            Running::start(load_file(&database, folder.path(), from), folder.path()).watch_memory()
        };
        let (small, whole) = (peak(&folder.path().join(SMALL)), peak(&path("parquet")));
        let limit = (small as f64 * TIMES_AT_MOST) as u64;
        report.add_bytes(
            &format!("most memory of the loader meanwhile (half of the rows: {} MiB)", small >> 20),
            whole,
            limit,
        );
    }
}

fn load_file(database: &Database, folder: &Path, from: &Path) -> std::process::Command {
    let config = configure(database, folder, "files", "[target]\ntable = \"public.target\"\n");
    let mut command = loader();
    command.arg("files").arg(from).arg("--config").arg(config);
    command
}
