//! A generated topic with planted defects, from the embedded broker through the real program into a table: the outcome is what
//! `truth.json` says, message by message.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::loading::{Loading, wait_until};

/// Takes whole events and refuses every planted kind.
const TABLE: &str = "CREATE TABLE public.t (event_id uuid, customer_id bigint NOT NULL, event_type text, country text,
        browser varchar(100), device_id bigint, session_id bigint CHECK (session_id > 0), event_time timestamptz,
        part int, message_offset bigint) PARTITION BY RANGE (event_time);
     CREATE TABLE public.t_all PARTITION OF public.t FOR VALUES FROM ('2000-01-01') TO ('2100-01-01');";

/// `tally-loader generate --serve`, stopped when dropped.
struct Broker {
    process: Child,
    address: String,
}

impl Broker {
    fn start(arguments: &[&str]) -> Self {
        let mut process =
            loader().args(["generate", "--serve"]).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned() }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn loader() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tally-loader"))
}

/// A configuration of the test's database for the broker.
fn configure(loading: &Loading<'_>, broker: &Broker, policy: &str, path: &Path) {
    let conninfo = loading.database.conninfo();
    let words: BTreeMap<&str, &str> = conninfo.split(' ').filter_map(|word| word.split_once('=')).collect();
    let (host, port, dbname) = (words["host"], words["port"], words["dbname"]);
    let text = format!(
        "pipeline = \"generated\"\n\
         postgres = {{ host = \"{host}\", port = {port}, dbname = \"{dbname}\", user = \"postgres\" }}\n\
         [source]\nkafka = {{ brokers = [\"{}\"], topic = \"clickstream\" }}\n\
         [target]\ntable = \"public.t\"\nunknown_fields = \"reject\"\n\
         columns.part = {{ from = \"_partition\" }}\ncolumns.message_offset = {{ from = \"_offset\" }}\n\
         [policy]\ndead_letters = {{ max_value = \"16 KiB\" }}\non = {{ tombstone = \"dead-letter\" }}\n{policy}\n",
        broker.address
    );
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_realistic_topic_becomes_what_its_truth_says() {
    let loading = Loading::new(1, TABLE);
    let folder = tempfile::tempdir().unwrap();
    let (truth, config) = (folder.path().join("truth.json"), folder.path().join("loader.toml"));
    let broker = Broker::start(&[
        "--mode",
        "realistic",
        "--rows",
        "30000",
        "--seed",
        "17",
        "--partitions",
        "3",
        "--malformed",
        "0.01",
        "--duplicates",
        "0.02",
        "--too-large",
        "20000",
        "--truth",
        truth.to_str().unwrap(),
    ]);
    configure(&loading, &broker, "", &config);
    let output = loader().args(["run", "--until-end", "--config"]).arg(&config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let truth: Value = serde_json::from_slice(&std::fs::read(&truth).unwrap()).unwrap();
    let count = |what: &str| loading.number(&format!("SELECT count({what}) FROM public.t"));
    let wanted = |pointer: &str| truth.pointer(pointer).and_then(Value::as_i64).unwrap_or_else(|| panic!("{pointer}"));
    assert_eq!(count("*"), wanted("/rows"));
    for (column, name) in
        [("event_id", "events"), ("customer_id", "customers"), ("device_id", "devices"), ("session_id", "sessions")]
    {
        assert_eq!(count(&format!("DISTINCT {column}")), wanted(&format!("/distinct/{name}")), "{name}");
    }
    for column in ["country", "browser", "device_id"] {
        assert_eq!(count("*") - count(column), wanted(&format!("/nulls/{column}")), "{column}");
    }
    for (column, name) in
        [("customer_id", "rows_by_customer"), ("event_type", "rows_by_event_type"), ("country", "rows_by_country")]
    {
        let sql = format!(
            "SELECT jsonb_object_agg({column}, n)::text
             FROM (SELECT {column}, count(*) AS n FROM public.t WHERE {column} IS NOT NULL GROUP BY 1) AS counts"
        );
        let found: Value = serde_json::from_str(&loading.texts(&sql)[0]).unwrap();
        assert_eq!(found, truth[name], "{name}");
    }

    let planted = |is_duplicate: bool| {
        let mut places: Vec<_> = truth["defects"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|defect| (defect["kind"] == "duplicate") == is_duplicate)
            .map(|defect| format!("{} {} {}", defect["kind"].as_str().unwrap(), defect["part"], defect["offset"]))
            .collect();
        places.sort();
        places
    };
    let sorted = |sql: &str| {
        let mut texts = loading.texts(sql);
        texts.sort();
        texts
    };
    let letters = "SELECT concat_ws(' ', reason, part, message_offset) FROM tally.dead_letters";
    assert_eq!(sorted(letters), planted(false));
    assert_eq!(truth["defects_by_kind"].as_object().unwrap().len(), 13, "each kind was planted");
    let duplicates = "SELECT concat_ws(' ', 'duplicate', part, message_offset)
         FROM (SELECT part, message_offset, row_number() OVER (PARTITION BY event_id ORDER BY message_offset) AS n
               FROM public.t) AS counted WHERE n > 1";
    assert_eq!(sorted(duplicates), planted(true));
}

#[test]
fn duplicates_are_left_out_although_the_loader_is_killed_again_and_again() {
    let loading = Loading::new(1, TABLE);
    let folder = tempfile::tempdir().unwrap();
    let (truth, config) = (folder.path().join("truth.json"), folder.path().join("loader.toml"));
    let arguments =
        "--mode realistic --rows 30000 --seed 23 --partitions 3 --malformed 0 --duplicates 0.2 --rate 15000";
    let arguments: Vec<_> = arguments.split(' ').chain(["--truth", truth.to_str().unwrap()]).collect();
    let broker = Broker::start(&arguments);
    configure(
        &loading,
        &broker,
        "dedupe = { field = \"event_id\", window = \"10 min\" }\nbatch = { connections = 2 }",
        &config,
    );
    for rows in [1_000, 5_000, 9_000, 13_000, 17_000] {
        let mut process = loader().args(["run", "--config"]).arg(&config).spawn().unwrap();
        wait_until("rows are there", || loading.number("SELECT count(*) FROM public.t") >= rows);
        process.kill().unwrap();
        process.wait().unwrap();
    }
    // --until-end would leave at the end that the topic has by now.
    let mut process = loader().args(["run", "--config"]).arg(&config).spawn().unwrap();
    let position = || loading.number("SELECT sum(next_offset)::bigint FROM tally.loader_offsets");
    wait_until("all is loaded", || position() == 30_000);
    process.kill().unwrap();
    process.wait().unwrap();

    let truth: Value = serde_json::from_slice(&std::fs::read(&truth).unwrap()).unwrap();
    let events = truth["distinct"]["events"].as_i64().unwrap();
    assert_eq!(loading.number("SELECT count(*) FROM public.t"), events);
    assert_eq!(loading.number("SELECT count(DISTINCT event_id) FROM public.t"), events);
    let skipped = loading.number("SELECT sum(skipped_total)::bigint FROM tally.loader_offsets");
    assert_eq!(skipped, truth["defects_by_kind"]["duplicate"].as_i64().unwrap());
}
