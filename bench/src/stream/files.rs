//! Parquet files against `\copy` of the same rows as text, and against the same rows as lines of JSON.

mod parquet;

use std::path::Path;

use tally_server_tests::cluster::{Cluster, Database};

use super::process::{Running, configure, loader, run};
use super::{Plain, TABLES};
use crate::report::{Goal, Report, time};

const AT_LEAST: f64 = 1.3;
/// Of what it loads the memory must not depend.
const TIMES_AT_MOST: f64 = 1.25;
const SMALL: &str = "small.parquet";

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    for Plain { name, columns, rows: row, .. } in [&TABLES[0], &TABLES[2]] {
        let database = cluster.database();
        let path = |kind: &str| folder.path().join(format!("{name}.{kind}"));
        let mut session = database.connect();
        let fill = format!(
            "SET timezone = 'UTC'; CREATE TABLE target ({columns}); CREATE TABLE filled (LIKE target);
             INSERT INTO filled SELECT {row} FROM generate_series(1::bigint, {rows}) AS i;
             COPY filled TO '{}'; COPY (SELECT row_to_json(filled) FROM filled) TO '{}'",
            path("text").display(),
            path("ndjson").display()
        );
        session.batch_execute(&fill).unwrap();
        parquet::write(&mut session, &path("parquet"), u32::MAX);
        parquet::write(&mut session, &folder.path().join(SMALL), rows / 2);

        let mut load = |from: &Path, wanted: u32| {
            session.batch_execute("TRUNCATE target, tally.loader_sources CASCADE; CHECKPOINT").unwrap();
            let taken = if from.extension().is_some_and(|extension| extension == "text") {
                let mut psql = database.psql_command();
                psql.args(["--quiet", "--command", &format!("\\copy target FROM '{}'", from.display())]);
                time(|| _ = run(&mut psql))
            } else {
                time(|| _ = run(&mut load_file(&database, folder.path(), from)))
            };
            let row = session.query_one("SELECT count(*) FROM target", &[]).unwrap();
            assert_eq!(row.get::<_, i64>(0), i64::from(wanted), "every row is there");
            taken
        };
        let contenders = ["text", "ndjson", "parquet"].map(|kind| (kind, path(kind)));
        let [text, ndjson, parquet]: [_; 3] = report.interleave(contenders, |file| load(file, rows));
        report.add(
            &format!("{rows} rows of `{name}` from Parquet, against `\\copy` of text"),
            &text,
            &parquet,
            Goal::FasterAtLeast(AT_LEAST),
        );
        report.add("the same against lines of JSON", &ndjson, &parquet, Goal::Faster);
        report.add("lines of JSON against `\\copy` of text", &text, &ndjson, Goal::Faster);

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
