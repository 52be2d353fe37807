//! `make bench`: what tally costs and saves, against plain PostgreSQL on the same throw-away server.
//!
//! Contenders run in turn (A B A B ..), never one after the other, so that a slow minute of the machine meets both. The
//! first round warms up and is thrown away. A figure is the median of the others, with the smallest and the largest.

mod change;
mod conversion;
mod copy;
mod dashboard;
mod idle;
mod jobs;
mod late;
mod levels;
mod passes;
mod peer;
mod reference;
mod report;
mod retention;
mod sketch;
mod stream;
mod tick;
mod wait;
mod year;

use clap::{Parser, ValueEnum};
use tally_server_tests::cluster::Cluster;

use report::Report;

#[derive(Debug, Parser)]
#[command(about = "Measures tally against plain PostgreSQL and prints a table in Markdown")]
struct Arguments {
    /// What to measure; everything by default.
    #[arg(value_enum)]
    measures: Vec<Measure>,
    /// Timed rounds of each measure, after one to warm up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Events of one round.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    rows: u32,
    /// How long the report is open beside which `retention` removes partitions.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    report: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measure {
    /// Binary COPY into a tracked table, against untracked ones.
    Copy,
    /// UPDATE and DELETE of counted rows, against those of an untracked table.
    Change,
    /// A refresh over new rows, against INSERT .. SELECT .. GROUP BY.
    Tick,
    /// A refresh of 10 rollups with 2 levels above each, against one of a single rollup.
    Levels,
    /// A refresh into 1 and into 10 rollups, against pipelines of pg_incremental with sketches of postgresql-hll.
    Peer,
    /// Single-row INSERTs while refreshes run and other transactions stay open.
    Wait,
    /// A refresh that finds nothing, and a read with nothing pending, of a table with 1,000 partitions.
    Idle,
    /// INSERTs while old partitions are removed and a report is open, against pg_partman.
    Retention,
    /// A pass of premake and of retention that finds nothing to do.
    Passes,
    /// How soon jobs start after they are due, and what they cost when there is nothing to do.
    Jobs,
    /// A refresh over late rows all over a year, against one over as many rows of the current bucket.
    Late,
    /// The longest wait of an INSERT while a plain table becomes a partitioned one.
    Conversion,
    /// hll_agg against count(*).
    Sketch,
    /// The loader from a Kafka broker, against psql's \copy of the same rows.
    Stream,
    /// What bad messages cost the loader.
    StreamPoison,
    /// How soon the loader is back after PostgreSQL or the broker were away.
    StreamOutage,
    /// How long a message takes from the broker to its row.
    StreamLatency,
    /// The memory of the loader: many parts, and a table that is locked.
    StreamMemory,
    /// What more data connections bring the loader.
    StreamConnections,
    /// Parquet files, against psql's \copy of the same rows and against lines of JSON.
    Files,
    /// The queries of the dashboard from rollups, against the same from raw rows.
    Dashboard,
    /// The same over a year, from hourly rollups.
    Year,
}

/// Durable, as a server in use is, and without the processes that would make one round differ from the next.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("autovacuum", "off"),
    ("tally.enabled", "off"),
    ("shared_buffers", "1GB"),
    ("work_mem", "256MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("jit", "off"),
];

fn main() {
    let arguments = Arguments::parse();
    let measures = if arguments.measures.is_empty() { Measure::value_variants() } else { &arguments.measures };
    let cluster = Cluster::start(SETTINGS);
    let mut report = Report::new(arguments.rounds, SETTINGS);
    for measure in measures {
        let run: &dyn Fn(&Cluster, u32, &mut Report) = match measure {
            Measure::Copy => &copy::measure,
            Measure::Change => &change::measure,
            Measure::Tick => &tick::measure,
            Measure::Levels => &levels::measure,
            Measure::Peer => &peer::measure,
            Measure::Wait => &wait::measure,
            Measure::Idle => &idle::measure,
            Measure::Retention => &|_, _, report| retention::measure(arguments.report, report),
            Measure::Passes => &passes::measure,
            Measure::Jobs => &jobs::measure,
            Measure::Late => &late::measure,
            Measure::Conversion => &conversion::measure,
            Measure::Sketch => &sketch::measure,
            Measure::Stream => &stream::measure,
            Measure::StreamPoison => &stream::poison::measure,
            Measure::StreamOutage => &stream::outage::measure,
            Measure::StreamLatency => &stream::latency::measure,
            Measure::StreamMemory => &stream::memory::measure,
            Measure::StreamConnections => &stream::connections::measure,
            Measure::Files => &stream::files::measure,
            Measure::Dashboard => &dashboard::measure,
            Measure::Year => &year::measure,
        };
        eprintln!("bench: {measure:?}");
        run(&cluster, arguments.rows, &mut report);
    }
    report.print();
}
