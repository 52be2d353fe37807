//! What messages cost that cannot become rows: those that the loader finds, and those that only PostgreSQL finds. The clean topic
//! has the same good messages.

use std::path::Path;
use std::time::Duration;

use tally_server_tests::cluster::{Cluster, Database};

use super::process::{Broker, configure, load_topic, run_loader};
use crate::report::{Goal, Report};

/// A bad message behind each so many good ones.
const RARE: u32 = 100_000;
const FREQUENT: u32 = 100;

/// Bad messages.
struct Poison {
    name: &'static str,
    /// How one is made of the good message before it, in SQL.
    message: &'static str,
}

const CLEAN: Poison = Poison { name: "clean", message: "NULL" };
const KINDS: [Poison; 6] = [
    Poison { name: "no JSON", message: "left(message, 40)" },
    Poison { name: "wrong type", message: "replace(message, '\"a\":', '\"a\":\"many\",\"was\":')" },
    Poison { name: "out of range", message: "replace(message, '\"a\":', '\"a\":9999999999')" },
    Poison { name: "missing", message: "replace(message, '\"a\":', '\"other\":')" },
    Poison { name: "CHECK", message: "replace(message, '\"b\":', '\"b\":-1,\"was\":')" },
    Poison { name: "unique", message: "message" },
];
/// Where PostgreSQL names no row.
const FOREIGN_KEY: Poison = Poison { name: "foreign key", message: "replace(message, '\"k\":', '\"k\":-')" };

const TABLE: &str =
    "a integer NOT NULL, b bigint CHECK (b >= 0), t timestamptz, s text, f double precision, id bigint PRIMARY KEY";
const ROW: &str = "abs(hashint8(i)) % 100000, abs(hashint8extended(i, 7)) % 1000000000000,
     '2025-01-01Z'::timestamptz + i * interval '10 ms', 'page ' || abs(hashint8(i * 3)) % 10000,
     abs(hashint8(i * 5)) % 1000000 / 100.0, i";

pub fn measure(cluster: &Cluster, rows: u32, report: &mut Report) {
    let folder = tempfile::tempdir().unwrap();
    let database = cluster.database();
    database.connect().batch_execute(&format!("CREATE TABLE target ({TABLE})")).unwrap();
    let mut topics = vec![Topic::new(&database, folder.path(), &CLEAN, ROW, rows, RARE)];
    for kind in &KINDS {
        topics.push(Topic::new(&database, folder.path(), kind, ROW, rows, RARE));
    }
    for number in [1, 4] {
        topics.push(Topic::new(&database, folder.path(), &KINDS[number], ROW, rows, FREQUENT));
    }
    compare(&database, folder.path(), &topics, report);

    let database = cluster.database();
    let keyed = "CREATE TABLE keys (k integer PRIMARY KEY); INSERT INTO keys SELECT generate_series(1, 1000);
                 CREATE TABLE target (k integer REFERENCES keys, b bigint, t timestamptz, s text, f double precision)";
    database.connect().batch_execute(keyed).unwrap();
    let row = "abs(hashint8(i)) % 1000 + 1, abs(hashint8extended(i, 7)) % 1000000000000,
         '2025-01-01Z'::timestamptz + i * interval '10 ms', 'page ' || abs(hashint8(i * 3)) % 10000,
         abs(hashint8(i * 5)) % 1000000 / 100.0";
    let topics = [&CLEAN, &FOREIGN_KEY].map(|poison| Topic::new(&database, folder.path(), poison, row, rows, RARE));
    compare(&database, folder.path(), &topics, report);
}

/// The first topic is the clean one.
fn compare(database: &Database, folder: &Path, topics: &[Topic], report: &mut Report) {
    let mut pipelines = 0;
    let contenders: Vec<_> = topics.iter().map(|topic| (topic.what.as_str(), topic)).collect();
    let times = report.interleave_all(&contenders, |topic| {
        pipelines += 1;
        [topic.load(database, folder, pipelines)]
    });
    let [clean] = &times[0];
    for (topic, [poisoned]) in topics.iter().zip(&times).skip(1) {
        let what = format!("{} good messages, with {}, against without", topic.rows, topic.what);
        report.add(&what, clean, poisoned, Goal::FasterAtLeast(if topic.every == RARE { 0.95 } else { 0.8 }));
    }
}

/// A topic with a bad message behind each `every` good ones.
struct Topic {
    what: String,
    rows: u32,
    every: u32,
    bad: i64,
    broker: Broker,
}

impl Topic {
    fn new(database: &Database, folder: &Path, poison: &Poison, row: &str, rows: u32, every: u32) -> Topic {
        let file = folder.join(format!("{}-{every}.ndjson", poison.name));
        let sql = format!(
            "CREATE TEMPORARY TABLE filled (LIKE target); INSERT INTO filled SELECT {row} FROM generate_series(1::bigint, {rows}) AS i;
             CREATE TEMPORARY TABLE good AS SELECT row_number() OVER () AS i, row_to_json(filled)::text AS message FROM filled;
             COPY (SELECT message FROM (SELECT i, 0 AS behind, message FROM good
                     UNION ALL SELECT i, 1, {} FROM good WHERE i % {every} = 0) AS m
                    WHERE message IS NOT NULL ORDER BY i, behind) TO '{}'",
            poison.message,
            file.display()
        );
        database.connect().batch_execute(&sql).unwrap();
        let bad = if poison.name == CLEAN.name { 0 } else { i64::from(rows / every) };
        let broker = Broker::serve(folder, &["--from", file.to_str().unwrap(), "--topic", "poison"]);
        let what = match every {
            _ if bad == 0 => "none".to_owned(),
            RARE => format!("one bad one in {every} ({})", poison.name),
            _ => format!("{} % bad ones ({})", 100 / every, poison.name),
        };
        Topic { what, rows, every, bad, broker }
    }

    fn load(&self, database: &Database, folder: &Path, pipeline: u32) -> Duration {
        let mut session = database.connect();
        session.batch_execute("TRUNCATE target, tally.dead_letters; CHECKPOINT").unwrap();
        let sections = format!(
            "[source]\nkafka = {{ brokers = [\"{}\"], topic = \"poison\" }}\n[target]\ntable = \"public.target\"\n\
             [policy]\ndead_letters = {{ stop_above_ratio = 1.0, stop_above_per_minute = 100000000 }}\n",
            self.broker.address
        );
        let config = configure(database, folder, &format!("poison-{pipeline}"), &sections);
        let [taken, _] = run_loader(load_topic(&config));
        let count = |table: &str| {
            let row = database.connect().query_one(&format!("SELECT count(*) FROM {table}"), &[]).unwrap();
            row.get::<_, i64>(0)
        };
        assert_eq!(count("target"), i64::from(self.rows), "every good message is a row ({})", self.what);
        assert_eq!(count("tally.dead_letters"), self.bad, "every bad one is a dead letter ({})", self.what);
        taken
    }
}
