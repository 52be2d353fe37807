//! How fast the loader is: JSON messages from a Kafka broker to committed rows, exactly once, against psql's \copy of the same
//! rows as text. Both are timed from the start of the program to its end. Broker, loader and server share the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{COLUMNS, create_events};
use crate::report::{Goal, Report, time};

/// The floor: what one loader must manage on one server.
const FLOOR: f64 = 50_000.0;

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::serve(folder.path(), rows);
    let mut pipelines = 0;
    let mut load = |keep: bool| {
        pipelines += 1;
        load(&database, folder.path(), &broker, pipelines, rows, keep)
    };

    load(true);
    let file = folder.path().join("events.txt");
    let mut session = database.connect();
    let copy =
        format!("COPY (SELECT {COLUMNS} FROM events ORDER BY event_id) TO '{}'; DROP TABLE events", file.display());
    session.batch_execute(&copy).unwrap();
    let [copy, loader] = report.interleave([("psql", false), ("tally-loader", true)], |loader| {
        if *loader { load(false) } else { copy_in(&database, &file) }
    });
    let what = format!(
        "loader, {rows} JSON messages from a Kafka broker, exactly once, against `psql \\copy` of the same rows"
    );
    report.add(&what, &copy, &loader, Goal::FasterAtLeast(1.2));
    report.add("the same, rows per second", &copy, &loader, Goal::RowsPerSecond { at_least: FLOOR, rows: rows.into() });
}

/// The events of the generator lie in one day, and late ones up to two days before it.
fn prepare(database: &Database) {
    let mut session = database.connect();
    create_events(&mut session, 5);
    session.batch_execute("CHECKPOINT").unwrap();
}

fn copy_in(database: &Database, file: &Path) -> Duration {
    prepare(database);
    let copy = format!("\\copy events ({COLUMNS}) FROM '{}'", file.display());
    let mut psql = database.psql_command();
    let taken = time(|| run(psql.args(["--quiet", "--command", &copy])));
    database.connect().batch_execute("DROP TABLE events").unwrap();
    taken
}

/// Loads the topic from its beginning, under a name that no earlier round had.
fn load(database: &Database, folder: &Path, broker: &Broker, pipeline: u32, rows: u32, keep: bool) -> Duration {
    prepare(database);
    let config = folder.join("loader.toml");
    let conninfo = database.conninfo();
    let socket = folder_of_socket(&conninfo);
    let text = format!(
        r#"
        pipeline = "round-{pipeline}"
        postgres = {{ host = "{socket}", dbname = "{}", user = "postgres" }}
        [source]
        kafka = {{ brokers = ["{}"], topic = "clickstream" }}
        [target]
        table = "public.events"
        columns.event_time = {{ time = "rfc3339-or-epoch-ms", default = "broker-timestamp" }}
        columns.customer_id = {{ required = true }}
        "#,
        database.name(),
        broker.address,
    );
    fs::write(&config, text).unwrap();
    let taken = time(|| run(loader().arg("run").arg("--until-end").arg("--config").arg(&config)));
    let mut session = database.connect();
    let loaded: i64 = session.query_one("SELECT count(*) FROM events", &[]).unwrap().get(0);
    assert_eq!(loaded, i64::from(rows), "every message is a row");
    if !keep {
        session.batch_execute("DROP TABLE events").unwrap();
    }
    taken
}

fn folder_of_socket(conninfo: &str) -> &str {
    conninfo.split(' ').find_map(|word| word.strip_prefix("host=")).expect("the server listens on a socket")
}

/// The release build beside this program; `make bench` makes both.
fn loader() -> Command {
    let program = std::env::current_exe().unwrap().with_file_name("tally-loader");
    assert!(program.exists(), "{} is missing: cargo build --release --package tally-loader", program.display());
    Command::new(program)
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `tally-loader generate --serve`, stopped when dropped.
struct Broker {
    process: Child,
    address: String,
}

impl Broker {
    fn serve(folder: &Path, rows: u32) -> Broker {
        let file: PathBuf = folder.join("broker");
        let mut command = loader();
        command.args(["generate", "--serve", "--span", "1 day", "--end-time", "2025-01-05T00:00:00Z"]);
        command.args(["--rows", &rows.to_string(), "--address-file"]).arg(&file);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        loop {
            match fs::read_to_string(&file) {
                Ok(address) if !address.trim().is_empty() => {
                    return Broker { process, address: address.trim().to_owned() };
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
            assert!(process.try_wait().unwrap().is_none(), "the broker ended");
            assert!(started.elapsed() < Duration::from_secs(60), "the broker does not answer");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
