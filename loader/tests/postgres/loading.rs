//! A database, a topic in memory and the loader between them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use postgres::Client;
use tally_loader::config::Config;
use tally_loader::init;
use tally_loader::metrics::Metrics;
use tally_loader::pipeline::{self, Run};
use tally_loader::run::topic;
use tally_loader::source::Source;
use tally_loader::source::fake::FakeTopic;
use tally_loader::stop::{self, Stopper};
use tally_loader::{Error, postgres as connection};
use tally_server_tests::cluster::{Cluster, Database};

/// What has not happened by then never will, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The server that tests share: PostgreSQL alone, because the loader does not need the extension.
pub fn server() -> &'static Cluster {
    static SERVER: OnceLock<Cluster> = OnceLock::new();
    SERVER.get_or_init(|| Cluster::start(&[PLAIN[0], ("track_commit_timestamp", "on")]))
}

/// Messages of [`load_one_bad_row`].
pub const ROWS: i64 = 10_000;

/// Settings of a server without the extension.
pub const PLAIN: &[(&str, &str)] = &[("shared_preload_libraries", "")];

/// A database with state tables and the target `public.t`, and an empty topic.
#[derive(Debug)]
pub struct Loading<'a> {
    pub database: Database<'a>,
    pub topic: FakeTopic,
    /// Lines of the section `source`.
    pub source: String,
    /// Lines of the section `target`.
    pub target: String,
    /// Lines of the section `policy`.
    pub policy: String,
    pub user: String,
    /// Connections of one process.
    pub lanes: usize,
    /// The section `postgres`, when the server is not reached by its socket.
    pub postgres: Option<String>,
}

impl Loading<'static> {
    /// Runs `ddl`, which creates the table `public.t`, and makes a topic with `parts` parts.
    pub fn new(parts: i32, ddl: &str) -> Self {
        Self::on(server(), parts, ddl)
    }
}

impl<'a> Loading<'a> {
    /// The same on a server of one's own.
    pub fn on(server: &'a Cluster, parts: i32, ddl: &str) -> Self {
        let loading = Self::without_state(server, parts);
        loading.session().batch_execute(ddl).expect("the target");
        loading.init().expect("the state tables");
        loading
    }

    /// A database with nothing in it.
    pub fn without_state(server: &'a Cluster, parts: i32) -> Self {
        Self::in_database(server.empty_database(), parts)
    }

    /// A database as it is.
    pub fn in_database(database: Database<'a>, parts: i32) -> Self {
        Self {
            database,
            topic: FakeTopic::new(parts),
            source: String::new(),
            target: String::new(),
            policy: String::new(),
            user: "postgres".into(),
            lanes: 1,
            postgres: None,
        }
    }

    pub fn session(&self) -> Client {
        self.database.connect()
    }

    /// The first column of the first row.
    pub fn number(&self, sql: &str) -> i64 {
        self.session().query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// The first column of all rows.
    pub fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.session().query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    pub fn produce(&self, part: i32, value: &str) -> i64 {
        self.topic.produce(part, None, Some(value.as_bytes()), Some(946_684_800_000))
    }

    pub fn config(&self) -> Config {
        self.try_config().expect("the configuration of a test")
    }

    pub fn try_config(&self) -> Result<Config, Error> {
        Config::parse(&self.config_text())
    }

    pub fn config_text(&self) -> String {
        let conninfo = self.database.conninfo();
        let words: BTreeMap<&str, &str> = conninfo.split(' ').filter_map(|word| word.split_once('=')).collect();
        let socket = || {
            let (host, port, dbname) = (words["host"], words["port"], words["dbname"]);
            format!("host = \"{host}\", port = {port}, dbname = \"{dbname}\", user = \"{}\"", self.user)
        };
        format!(
            "pipeline = \"test\"\n\
             postgres = {{ {} }}\n\
             [source]\nkafka = {{ brokers = [\"none\"], topic = \"topic\" }}\n{}\n\
             [target]\ntable = \"public.t\"\n{}\n[policy]\n{}\n",
            self.postgres.clone().unwrap_or_else(socket),
            self.source,
            self.target,
            self.policy
        )
    }

    pub fn init(&self) -> Result<init::State, Error> {
        let config = self.config();
        block_on(async {
            let mut client = connection::connect_within(&config.postgres, &config.pipeline, DEADLINE).await?;
            init::create(&mut client).await
        })
    }

    /// Loads up to the end of the topic.
    pub fn load(&self) -> Result<(), Error> {
        let config = self.config();
        let (_stopper, stop) = stop::channel();
        let run = Run { config: &config, origin: topic(&config)?, until_end: true, metrics: Arc::default(), stop };
        block_on(pipeline::run_lanes(run, || Ok(self.sources())))
    }

    /// A source for each lane.
    fn sources(&self) -> Vec<Box<dyn Source>> {
        sources(&self.topic, self.lanes)
    }

    /// Starts a loader that runs until it is stopped.
    pub fn start(&self) -> Running {
        let config = self.config();
        let metrics: Arc<Metrics> = Arc::default();
        let (stopper, stop) = stop::channel();
        let (topic_source, lanes, shared) = (self.topic.clone(), self.lanes, metrics.clone());
        let thread = thread::spawn(move || {
            let run = Run { config: &config, origin: topic(&config)?, until_end: false, metrics: shared, stop };
            block_on(pipeline::run_lanes(run, || Ok(sources(&topic_source, lanes))))
        });
        Running { thread, stopper, metrics }
    }

    /// Every message is a row, a dead letter or a skip, and none is one of them twice. The rows' column `a` holds the number
    /// that each message was made with.
    pub fn assert_exactly_once(&self, messages: i64) {
        let row = self
            .session()
            .query_one("SELECT count(*), count(DISTINCT a), min(a)::bigint, max(a)::bigint FROM public.t", &[])
            .unwrap();
        let found: (i64, i64, Option<i64>, Option<i64>) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!(found, (messages, messages, Some(0), Some(messages - 1)), "rows, distinct rows, first, last");
        let counted = self.number("SELECT sum(rows_total)::bigint FROM tally.loader_offsets");
        assert_eq!(counted, messages, "rows counted with the positions");
    }
}

fn sources(topic: &FakeTopic, lanes: usize) -> Vec<Box<dyn Source>> {
    (0..lanes).map(|_| Box::new(topic.source()) as Box<dyn Source>).collect()
}

/// Loads 10,000 messages, one of them refused by PostgreSQL: exactly that one must become a dead letter.
pub fn load_one_bad_row(
    ddl: &str,
    good: impl Fn(i64) -> String,
    bad: &str,
    sqlstate: &str,
    reason: &str,
) -> Loading<'static> {
    const BAD: i64 = 7_777;
    let mut loading = Loading::new(1, ddl);
    loading.policy = "batch = { linger = \"100 ms\" }".into();
    for number in 0..ROWS {
        loading.produce(0, &if number == BAD { bad.to_owned() } else { good(number) });
    }
    loading.load().unwrap_or_else(|error| panic!("{ddl}: {error}"));
    assert_eq!(
        loading.texts("SELECT concat_ws(' ', message_offset, sqlstate, reason, convert_from(value, 'UTF8')) FROM tally.dead_letters"),
        [format!("{BAD} {sqlstate} {reason} {bad}")],
        "{ddl}"
    );
    let totals = "SELECT concat_ws(' ', next_offset, rows_total, dead_total) FROM tally.loader_offsets";
    assert_eq!(loading.texts(totals), [format!("{ROWS} {} 1", ROWS - 1)], "{ddl}");
    loading
}

/// Produces messages with the numbers from `first` on, round robin.
pub fn produce(loading: &Loading<'_>, parts: i32, first: i64, count: i64) {
    for number in first..first + count {
        loading.produce((number % i64::from(parts)) as i32, &format!("{{\"a\": {number}}}"));
    }
}

/// A loader that runs in a thread.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<Result<(), Error>>,
    pub stopper: Stopper,
    pub metrics: Arc<Metrics>,
}

impl Running {
    pub fn wait_for_rows(&self, rows: u64) {
        wait_until(&format!("{rows} rows are loaded"), || {
            assert!(!self.thread.is_finished(), "the loader left");
            self.metrics.rows.load(Relaxed) >= rows
        });
    }

    /// Stops it as SIGTERM does.
    pub fn stop(self) -> Result<(), Error> {
        self.stopper.signal();
        self.join()
    }

    /// Returns when it ends by itself.
    pub fn join(self) -> Result<(), Error> {
        wait_until("the loader ends", || self.thread.is_finished());
        self.thread.join().expect("the loader does not panic")
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "gave up waiting until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}
