//! How fast the loader is: JSON messages from a Kafka broker to committed rows, exactly once, against psql's \copy of the same
//! rows and against INSERT. Broker, loader and server share the machine.

pub mod connections;
pub mod files;
pub mod latency;
pub mod memory;
pub mod outage;
pub mod poison;
mod process;

use std::path::Path;
use std::time::Duration;

use tally_server_tests::cluster::{Cluster, Database};

use crate::reference::{COLUMNS, create_events};
use crate::report::{Goal, Report, Samples, time};
use process::{Broker, children_seconds, configure, load_topic, number_behind, run, run_loader};

/// The floor: what one loader must manage on one server.
const FLOOR: f64 = 50_000.0;

/// Plain tables, by the kind of their columns.
const TABLES: [Plain; 3] = [
    Plain {
        name: "narrow",
        columns: "a integer, b bigint, t timestamptz, s text, f double precision",
        rows: "abs(hashint8(i)) % 100000, abs(hashint8extended(i, 7)) % 1000000000000,
               '2025-01-01Z'::timestamptz + i * interval '10 ms', 'page ' || abs(hashint8(i * 3)) % 10000,
               abs(hashint8(i * 5)) % 1000000 / 100.0",
        at_least: 1.2,
        inserts_at_least: 8.0,
    },
    Plain {
        name: "numbers",
        columns: "a bigint, b bigint, c bigint, d bigint, f double precision, g double precision, t timestamptz, u timestamptz",
        rows: "abs(hashint8extended(i, 1)) % 1000000000000, abs(hashint8extended(i, 2)) % 1000000000000,
               abs(hashint8extended(i, 3)) % 1000000000000, abs(hashint8extended(i, 4)) % 1000000000000,
               abs(hashint8extended(i, 5)) % 100000000 / 1000.0, abs(hashint8extended(i, 6)) % 100000000 / 1000.0,
               '2025-01-01Z'::timestamptz + i * interval '10.123 ms', '2025-01-01Z'::timestamptz + i * interval '11.345 ms'",
        at_least: 1.6,
        inserts_at_least: 6.0,
    },
    Plain {
        name: "jsonb",
        columns: "a integer, b bigint, t timestamptz, s text, f double precision, j jsonb",
        rows: "abs(hashint8(i)) % 100000, abs(hashint8extended(i, 7)) % 1000000000000,
               '2025-01-01Z'::timestamptz + i * interval '10 ms', 'page ' || abs(hashint8(i * 3)) % 10000,
               abs(hashint8(i * 5)) % 1000000 / 100.0,
               jsonb_build_object('page', 'page ' || abs(hashint8(i * 3)) % 10000, 'country', i % 200, 'campaign', 'c' || i % 50)",
        at_least: 1.2,
        inserts_at_least: 6.0,
    },
];

struct Plain {
    name: &'static str,
    columns: &'static str,
    rows: &'static str,
    /// How many times as fast as `\copy` of text the loader should be, and as INSERT.
    at_least: f64,
    inserts_at_least: f64,
}

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    TABLES.iter().for_each(|table| plain(cluster, folder.path(), table, rows, report));
    events(cluster, folder.path(), rows, report);
}

/// How long it took: from the first request for rows to the last commit, and the whole program.
type Taken = [Duration; 2];

/// How rows come into a plain table.
#[derive(Clone, Copy, Debug)]
enum Way {
    Text,
    Binary,
    Loader {
        policy: &'static str,
    },
    /// So many rows for each statement.
    Insert,
}

fn plain(cluster: &Cluster, folder: &Path, table: &Plain, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let mut session = database.connect();
    let name = table.name;
    let path = |kind: &str| folder.join(format!("{name}.{kind}"));
    session
        .batch_execute(&format!(
            "SET timezone = 'UTC'; CREATE TABLE {name} ({}); CREATE TABLE filled (LIKE {name});
             INSERT INTO filled SELECT {} FROM generate_series(1::bigint, {rows}) AS i;
             COPY filled TO '{}'; COPY filled TO '{}' (FORMAT binary);
             COPY (SELECT row_to_json(filled) FROM filled) TO '{}'",
            table.columns,
            table.rows,
            path("text").display(),
            path("binary").display(),
            path("ndjson").display()
        ))
        .unwrap();
    insert_script(&mut session, name, &path("sql"));
    let from = path("ndjson");
    let broker = Broker::serve(folder, &["--from", from.to_str().unwrap(), "--topic", name]);
    let mut pipelines = 0;
    // The rounds that count; the first one warms up.
    let (mut processor, mut is_warm) = (Vec::new(), false);
    let mut run_way = |way: &Way| {
        session.batch_execute(&format!("TRUNCATE {name}; CHECKPOINT")).unwrap();
        pipelines += 1;
        let before = children_seconds();
        let taken = match way {
            Way::Text => psql(&database, &["--command", &format!("\\copy {name} FROM '{}'", path("text").display())]),
            Way::Binary => psql(
                &database,
                &["--command", &format!("\\copy {name} FROM '{}' (FORMAT binary)", path("binary").display())],
            ),
            Way::Insert => psql(&database, &["--file", path("sql").to_str().unwrap()]),
            Way::Loader { policy } => {
                let target = format!("[target]\ntable = \"public.{name}\"\n[policy]\n{policy}\n");
                let taken = load(&database, folder, &broker, name, pipelines, &target);
                if policy.is_empty() && std::mem::replace(&mut is_warm, true) {
                    processor.push(Duration::from_secs_f64(children_seconds() - before));
                }
                taken
            }
        };
        let loaded: i64 = session.query_one(&format!("SELECT count(*) FROM {name}"), &[]).unwrap().get(0);
        assert_eq!(loaded, i64::from(rows), "every row is there");
        taken
    };
    let contenders = [
        ("psql text", Way::Text),
        ("psql binary", Way::Binary),
        ("tally-loader", Way::Loader { policy: "" }),
        ("in one batch", Way::Loader { policy: "batch = { rows = 1000000, bytes = \"200 MiB\", linger = \"1 min\" }" }),
        ("INSERT", Way::Insert),
    ];
    let [text, binary, loader, at_once, insert] = report.interleave_parts(contenders, &mut run_way);
    let ([text, whole_text], [loader, whole_loader]) = (text, loader);
    let ([binary, _], [at_once, _], [insert, _]) = (binary, at_once, insert);
    let what =
        format!("loader, {rows} JSON messages into the plain table `{name}`, exactly once, against `\\copy` of text");
    report.add(&what, &text, &loader, Goal::FasterAtLeast(table.at_least));
    report.add("the same, whole programs from start to end", &whole_text, &whole_loader, Goal::Faster);
    report.add("the same against `\\copy` of the binary format", &binary, &loader, Goal::Faster);
    report.add(
        "the same against one batch: what positions and commits cost",
        &at_once,
        &loader,
        Goal::TimesAtMost(1.03),
    );
    report.add(
        "the same against INSERT of 1,000 rows a statement",
        &insert,
        &loader,
        Goal::FasterAtLeast(table.inserts_at_least),
    );
    let processor = Samples::new(processor);
    report.add(
        "the same, processor time of the loader",
        &processor,
        &processor,
        Goal::MillisecondsAtMost(0.6e3 * f64::from(rows) / 1e6),
    );
}

/// All rows of `filled` as INSERTs of 1,000 rows, one transaction each.
fn insert_script(session: &mut postgres::Client, table: &str, path: &Path) {
    session
        .batch_execute(&format!(
            "COPY (SELECT format('INSERT INTO {table} VALUES %s;', string_agg(literals, ','))
                     FROM (SELECT (row_number() OVER () - 1) / 1000 AS batch,
                                  '(' || (SELECT string_agg(quote_nullable(value), ',' ORDER BY number)
                                            FROM json_each_text(row_to_json(filled)) WITH ORDINALITY AS v(key, value, number)) || ')' AS literals
                             FROM filled) AS filled GROUP BY batch ORDER BY batch) TO '{}'",
            path.display()
        ))
        .unwrap();
}

/// psql tells how long each command took. Of a file of commands the whole program is taken.
fn psql(database: &Database, arguments: &[&str]) -> Taken {
    let mut psql = database.psql_command();
    let mut output = String::new();
    let whole = time(|| output = run(psql.args(["--quiet", "--command", "\\timing on"]).args(arguments)));
    let is_file = arguments.contains(&"--file");
    let command = number_behind(&output, "Time: ").map(|milliseconds| Duration::from_secs_f64(milliseconds / 1e3));
    [if is_file { whole } else { command.expect("psql tells the time of a command") }, whole]
}

/// Into the partitioned table of events, with its sequence.
fn events(cluster: &Cluster, folder: &Path, rows: u32, report: &mut Report) {
    let database = cluster.database();
    let broker =
        Broker::serve(folder, &["--span", "1 day", "--end-time", "2025-01-05T00:00:00Z", "--rows", &rows.to_string()]);
    let mut pipelines = 0;
    let target = "[target]\ntable = \"public.events\"\ncolumns.customer_id = { required = true }\n\
                  columns.event_time = { time = \"rfc3339-or-epoch-ms\", default = \"broker-timestamp\" }\n";
    let mut load_events = |keep: bool| {
        pipelines += 1;
        prepare(&database);
        let taken = load(&database, folder, &broker, "clickstream", pipelines, target);
        let mut session = database.connect();
        let loaded: i64 = session.query_one("SELECT count(*) FROM events", &[]).unwrap().get(0);
        assert_eq!(loaded, i64::from(rows), "every message is a row");
        if !keep {
            session.batch_execute("DROP TABLE events").unwrap();
        }
        taken
    };

    load_events(true);
    let file = folder.join("events.txt");
    let mut session = database.connect();
    let copy =
        format!("COPY (SELECT {COLUMNS} FROM events ORDER BY event_id) TO '{}'; DROP TABLE events", file.display());
    session.batch_execute(&copy).unwrap();
    let [copy, loader] = report.interleave_parts([("psql", false), ("tally-loader", true)], |loader| {
        if *loader { load_events(false) } else { copy_in(&database, &file) }
    });
    let ([copy, whole_copy], [loader, whole_loader]) = (copy, loader);
    let what = format!(
        "loader, {rows} JSON messages into the partitioned events, exactly once, against `psql \\copy` of the same rows"
    );
    report.add(&what, &copy, &loader, Goal::FasterAtLeast(1.2));
    report.add("the same, whole programs from start to end", &whole_copy, &whole_loader, Goal::Faster);
    report.add("the same, rows per second", &copy, &loader, Goal::RowsPerSecond { at_least: FLOOR, rows: rows.into() });
}

/// The events of the generator lie in one day, and late ones up to two days before it.
fn prepare(database: &Database) {
    let mut session = database.connect();
    create_events(&mut session, 5);
    session.batch_execute("CHECKPOINT").unwrap();
}

fn copy_in(database: &Database, file: &Path) -> Taken {
    prepare(database);
    let copy = format!("\\copy events ({COLUMNS}) FROM '{}'", file.display());
    let taken = psql(database, &["--command", &copy]);
    database.connect().batch_execute("DROP TABLE events").unwrap();
    taken
}

/// Loads the topic from its beginning, under a name that no earlier round had.
fn load(database: &Database, folder: &Path, broker: &Broker, topic: &str, pipeline: u32, target: &str) -> Taken {
    let address = &broker.address;
    let sections =
        format!("memory = \"1 GiB\"\n[source]\nkafka = {{ brokers = [\"{address}\"], topic = \"{topic}\" }}\n{target}");
    let config = configure(database, folder, &format!("{topic}-{pipeline}"), &sections);
    run_loader(load_topic(&config))
}
