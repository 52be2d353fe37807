//! A topic, a database with its table, and the loader between them.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postgres::Client;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rustix::process::{Pid, Signal, kill_process};
use tally_server_tests::cluster::{Cluster, Database};

use crate::broker::Broker;
use crate::history;

/// What has not happened by then never will, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

pub const PARTITIONS: i32 = 4;
/// The columns that messages fill.
const FIELDS: &str = "event_time, customer_id, event_type, country, browser, device_id, session_id";

/// What the loader finds in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// PostgreSQL alone; `tally-loader init` made the state tables.
    Plain,
    /// The extension, with rollups on the table.
    Extension,
}

#[derive(Debug)]
pub struct Pipeline<'a> {
    pub broker: &'a Broker,
    pub database: Database<'a>,
    pub world: World,
    pub topic: String,
    folder: tempfile::TempDir,
    /// Where the loader finds the brokers; without it, at their plain port.
    pub servers: String,
    /// The limit of what the loader holds.
    pub memory: &'static str,
    /// More keys of `source.kafka`.
    pub kafka: String,
    /// Lines of the section `source` of the configuration.
    pub source: String,
    /// Lines of the section `policy` of the configuration.
    pub policy: String,
}

impl<'a> Pipeline<'a> {
    pub fn new(broker: &'a Broker, cluster: &'a Cluster, world: World) -> Self {
        static TOPICS: AtomicU32 = AtomicU32::new(0);
        let topic = format!("events-{}", TOPICS.fetch_add(1, Ordering::Relaxed));
        broker.create_topic(&topic, PARTITIONS, &[]);
        let database = match world {
            World::Plain => cluster.empty_database(),
            World::Extension => cluster.database(),
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Small batches: many commits to be killed in.
        let policy = "batch = { rows = 500, linger = \"20 ms\" }\n".to_owned();
        let (servers, kafka, source) = (broker.servers(), String::new(), String::new());
        let pipeline =
            Self { broker, database, world, topic, folder, servers, memory: "128 MiB", kafka, source, policy };
        pipeline.create_table();
        pipeline
    }

    fn create_table(&self) {
        let mut session = self.session();
        session
            .batch_execute(
                "CREATE TABLE public.events (event_id bigserial, event_time timestamptz NOT NULL, customer_id bigint NOT NULL,
                   event_type text, country text, browser text, device_id bigint, session_id bigint,
                   part int, message_offset bigint, written_by xid8 DEFAULT pg_current_xact_id())
                   PARTITION BY RANGE (event_time);
                 CREATE TABLE expected (LIKE public.events);
                 ALTER TABLE expected DROP COLUMN event_id;
                 DO $$ BEGIN
                   IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'loader') THEN CREATE ROLE loader LOGIN; END IF;
                 EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;  -- another test was faster
                 END $$;",
            )
            .expect("the table");
        // The events of `generate` lie in the three hours before this noon, the latest of them up to 48 hours earlier.
        for day in 25..=28 {
            let leaf = format!(
                "CREATE TABLE public.events_{day} PARTITION OF public.events
                   FOR VALUES FROM ('2026-02-{day} 00:00Z') TO ('2026-02-{day} 24:00Z')"
            );
            session.batch_execute(&leaf).expect("a partition");
        }
        if self.world == World::Extension {
            session
                .batch_execute(
                    "SELECT tally.create_rollup('public.events_5min', $$
                       SELECT date_bin('5 minutes', event_time, '2000-01-01Z') AS bucket, customer_id, event_type,
                              count(*) AS events, sum(device_id) AS device_sum
                         FROM public.events GROUP BY 1, 2, 3 $$, refresh_interval => '1 second')",
                )
                .expect("a rollup");
        }
        // As a superuser, who alone may create a schema here; everything else the loader does as a plain role.
        let status = self.command("init", "postgres", &["--grant", "loader"]).status().expect("init runs");
        assert!(status.success(), "init: {status}");
        history::record(&mut session);
    }

    /// A new session as superuser.
    pub fn session(&self) -> Client {
        self.database.connect()
    }

    /// The one number that a query returns.
    pub fn number(&self, sql: &str) -> i64 {
        self.session().query_one(sql, &[]).expect(sql).get(0)
    }

    /// Writes `rows` generated events into the topic, and into the table `expected`.
    pub fn produce(&self, rows: u64, seed: u64) {
        let generate = |to: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_tally-loader"));
            command.arg("generate").args(["--rows", &rows.to_string(), "--seed", &seed.to_string()]);
            command.args(["--span", "3 hours", "--end-time", "2026-02-28T12:00:00Z"]).args(to);
            command
        };
        let servers = self.broker.servers();
        let status = generate(&["--to", "topic", "--brokers", &servers, "--topic", &self.topic]).status();
        assert!(status.expect("generate runs").success());

        let output = generate(&[]).output().expect("generate runs");
        assert!(output.status.success());
        assert_eq!(self.expect(&output.stdout), rows);
    }

    /// Adds events, a line of JSON each, to the table `expected`; how many.
    pub fn expect(&self, lines: &[u8]) -> u64 {
        let mut session = self.session();
        session.batch_execute("CREATE TEMPORARY TABLE lines (line jsonb)").expect("a table");
        let mut copy = session.copy_in("COPY lines FROM STDIN").expect("COPY");
        copy.write_all(lines).expect("COPY takes the lines");
        copy.finish().expect("the lines are JSON");
        let insert = format!(
            "INSERT INTO expected ({FIELDS})
               SELECT e.* FROM lines, jsonb_to_record(line) AS e(event_time timestamptz, customer_id bigint, event_type text,
                                                                 country text, browser text, device_id bigint, session_id bigint)"
        );
        session.execute(&insert, &[]).expect("the lines are events")
    }

    /// Writes these messages into part 0.
    pub fn send(&self, messages: &[&[u8]]) {
        let producer: BaseProducer = self.broker.client().create().expect("a producer");
        for message in messages {
            producer
                .send(BaseRecord::<(), [u8]>::to(&self.topic).partition(0).payload(*message))
                .map_err(|(error, _)| error)
                .expect("the queue has room");
        }
        producer.flush(DEADLINE).expect("the broker acknowledges");
    }

    fn config(&self, user: &str) -> PathBuf {
        let conninfo = self.database.conninfo();
        let of = |key: &str| {
            let mut pairs = conninfo.split_whitespace().filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).expect("a conninfo of the test server").1.to_owned()
        };
        let mut text = format!("pipeline = \"{}\"\n", self.topic);
        let (host, port, dbname) = (of("host"), of("port"), of("dbname"));
        writeln!(
            text,
            "postgres = {{ host = \"{host}\", port = {port}, dbname = \"{dbname}\", user = \"{user}\" }}\n\
             metrics = \"127.0.0.1:0\"\n\
             memory = \"{}\"\n\
             [source]\n\
             kafka = {{ brokers = [\"{}\"], topic = \"{}\"{} }}\n{}\n\
             [target]\n\
             table = \"public.events\"\n\
             columns.event_id = {{ skip = true }}\n\
             columns.event_time = {{ default = \"broker-timestamp\" }}\n\
             columns.device_id = {{ digits_in_string = true }}\n\
             columns.session_id = {{ digits_in_string = true }}\n\
             columns.part = {{ from = \"_partition\" }}\n\
             columns.message_offset = {{ from = \"_offset\" }}\n\
             columns.written_by = {{ skip = true }}\n\
             [policy]\n{}",
            self.memory, self.servers, self.topic, self.kafka, self.source, self.policy
        )
        .expect("a String takes everything");
        let path = self.folder.path().join(format!("{user}.toml"));
        fs::write(&path, text).expect("a configuration file");
        path
    }

    /// A file with this secret in it.
    pub fn secret(&self, name: &str, secret: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, secret).expect("a file with a secret");
        path
    }

    fn command(&self, subcommand: &str, user: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tally-loader"));
        command.arg(subcommand).arg("--config").arg(self.config(user)).args(arguments);
        command
    }

    /// Starts the loader.
    pub fn start(&self, arguments: &[&str]) -> Loader {
        let mut command = self.command("run", "loader", arguments);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the loader starts");
        Loader::watch(child)
    }

    /// Runs the loader to the end of the topic.
    pub fn load_to_end(&self) {
        assert_eq!(self.start(&["--until-end"]).wait(), Some(0));
    }

    /// Messages that became rows, dead letters or counted skips.
    pub fn progress(&self) -> i64 {
        self.number(
            "SELECT coalesce(sum(rows_total + dead_total + skipped_total), 0)::bigint FROM tally.loader_offsets",
        )
    }

    /// Waits until this many messages are loaded.
    pub fn wait_for_progress(&self, messages: i64) {
        wait_until(&format!("{messages} messages are loaded"), || self.progress() >= messages);
    }

    /// Whether a session of the loader waits for this.
    pub fn loader_waits_for(&self, event: &str) -> bool {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity
              WHERE usename = 'loader' AND datname = current_database() AND '{event}' IN (wait_event, wait_event_type)"
        );
        self.number(&sql) > 0
    }

    /// The rows of the table are exactly those in `expected`, and everything that counts them agrees.
    pub fn assert_exact(&self, dead_letters: i64) {
        let rows = self.number("SELECT count(*) FROM expected");
        assert_eq!(self.number("SELECT count(*) FROM public.events"), rows, "rows of the table");
        let difference = format!(
            "SELECT count(*) FROM ((SELECT {FIELDS} FROM public.events EXCEPT ALL SELECT {FIELDS} FROM expected)
                                   UNION ALL (SELECT {FIELDS} FROM expected EXCEPT ALL SELECT {FIELDS} FROM public.events)) d"
        );
        assert_eq!(self.number(&difference), 0, "rows that differ");
        assert_eq!(self.number("SELECT count(*) FROM tally.dead_letters"), dead_letters, "dead letters");
        assert_eq!(self.progress(), rows + dead_letters, "messages that the positions account for");
        history::assert_sound(&mut self.session());
        let ends: i64 = self.broker.ends(&self.topic, PARTITIONS).iter().map(|(_, end)| end).sum();
        let positions =
            "SELECT sum(next_offset)::bigint FROM tally.loader_offsets JOIN tally.loader_sources USING (source_id)
                          WHERE incarnation = (SELECT max(incarnation) FROM tally.loader_sources)";
        assert_eq!(self.number(positions), ends, "positions");
        if self.world == World::Extension {
            // As it is (partly refreshed), and with everything refreshed.
            for _ in 0..2 {
                assert_eq!(
                    self.number("SELECT sum(events)::bigint FROM public.events_5min"),
                    rows,
                    "events of the rollup"
                );
                assert_eq!(self.number("SELECT count(*) FROM tally.verify('public.events_5min')"), 0, "wrong groups");
                self.session().batch_execute("CALL tally.refresh('public.events_5min')").expect("a refresh");
            }
        }
    }
}

/// A running loader. It is killed when dropped.
#[derive(Debug)]
pub struct Loader {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Loader {
    /// Passes on what the loader says, so that the test harness shows it if the test fails.
    fn watch(mut child: Child) -> Self {
        let lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let pid = child.id();
        let log = Arc::new(Mutex::new(String::new()));
        let copy = log.clone();
        let reader = thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                eprintln!("loader {pid}: {line}");
                copy.lock().unwrap_or_else(PoisonError::into_inner).push_str(&format!("{line}\n"));
            }
        });
        Self { child, log, reader: Some(reader) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What Prometheus would read now.
    pub fn metrics(&self) -> String {
        let mut address = String::new();
        wait_until("the loader says where its metrics are", || {
            let log = self.log();
            let found = log.split_once("http://").and_then(|(_, rest)| rest.split_once("/metrics"));
            found.is_some_and(|(found, _)| {
                address = found.to_owned();
                true
            })
        });
        let mut stream = TcpStream::connect(address).expect("the endpoint listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// The value of a metric without labels but the source.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let line = metrics.lines().find(|line| line.starts_with(&format!("tally_loader_{name}{{")));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no metric {name} in {metrics}"))
    }

    /// The exit code and all it has said, when it ends by itself.
    pub fn outcome(mut self) -> (Option<i32>, String) {
        let code = self.wait_status().code();
        let _ = self.reader.take().map(JoinHandle::join);
        (code, self.log())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the loader runs");
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    /// SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait_status().code()
    }

    /// The exit code, when it ends by itself.
    pub fn wait(mut self) -> Option<i32> {
        self.wait_status().code()
    }

    /// The memory that it has, and the most that it has had, in bytes: `VmRSS` and `VmHWM` of proc(5).
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the loader runs");
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of /proc/PID/status");
            let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().expect("a number of kB");
            kilobytes * 1024
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// How many of its lines contain this.
    pub fn said(&self, words: &str) -> usize {
        self.log().lines().filter(|line| line.contains(words)).count()
    }

    /// Whether its first claim has succeeded; before, it may not know SIGTERM yet.
    pub fn loads(&self) -> bool {
        self.said("INFO loading ") > 0
    }

    /// Whether it has given up at its start, as it may while server or broker are away; afterwards it must not.
    pub fn could_not_start(&mut self) -> bool {
        let Some(status) = self.child.try_wait().expect("a child can be waited for") else { return false };
        assert!(!self.loads(), "a loader leaves that had loaded: {status}");
        assert_eq!(status.code(), Some(4), "unreachable");
        true
    }

    fn wait_status(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(started.elapsed() < DEADLINE, "the loader does not end");
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        thread::sleep(PAUSE);
    }
}
