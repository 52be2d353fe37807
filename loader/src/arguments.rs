//! The command line.

mod realistic;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::FileFormat;

pub use realistic::{MALFORMED_KINDS, RealisticArguments};

/// Loads Kafka topics and flat files into a PostgreSQL table by binary COPY, exactly once.
#[derive(Debug, Parser)]
#[command(name = "tally-loader", version, about)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Log more: -v for debug, -vv for trace.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log lines on stderr.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create the state tables, or check those of the extension; may be repeated.
    Init(InitArguments),
    /// Compare the configuration with the live catalog and topic; changes nothing.
    Check(CheckArguments),
    /// Load the topic until stopped.
    Run(RunArguments),
    /// Try dead letters again with today's mapping; each becomes a row or stays.
    ReplayDeadLetters(ReplayArguments),
    /// Load flat files: NDJSON, CSV, Parquet.
    Files(FilesArguments),
    /// Produce a seeded clickstream.
    Generate(Box<GenerateArguments>),
    /// Print the completions of a shell, to be put where that shell looks for them.
    Completions(CompletionsArguments),
    /// Write the manual pages, for packagers.
    #[command(hide = true)]
    Manual(ManualArguments),
}

#[derive(Clone, Debug, Args)]
pub struct CompletionsArguments {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Clone, Debug, Args)]
pub struct ManualArguments {
    /// The folder for the pages; it has to be there.
    #[arg(long, value_name = "FOLDER")]
    pub to: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct InitArguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Give this role what a loader needs: the state tables, and INSERT on the target.
    #[arg(long, value_name = "ROLE")]
    pub grant: Option<String>,
    /// Create the extension, and move the state tables that an earlier init made into it; all loaders have to be stopped.
    #[arg(long)]
    pub adopt: bool,
}

#[derive(Clone, Debug, Args)]
pub struct CheckArguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct RunArguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Stop when each part has reached the end it had at the start.
    #[arg(long)]
    pub until_end: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ReplayArguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Only letters noted at or after this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    pub since: Option<jiff::Timestamp>,
    /// Try at most so many letters.
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<u64>,
    /// Let PostgreSQL check the rows, and take them back.
    #[arg(long)]
    pub dry_run: bool,
    /// Afterwards delete letters noted longer ago than this, such as "30 days", replayed or not.
    #[arg(long, value_name = "SPAN", value_parser = span, conflicts_with = "dry_run")]
    pub purge_older_than: Option<Duration>,
}

#[derive(Clone, Debug, Args)]
pub struct FilesArguments {
    /// The files, loaded one after the other; .gz and .zst are read, too.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Format of the files; without it their extension tells.
    #[arg(long, value_enum)]
    pub format: Option<FileFormat>,
    /// Decode the files from their start, say what would become of them, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `generate`: a seeded clickstream to a topic, a file or standard output, or an embedded broker.
#[derive(Clone, Debug, Args)]
pub struct GenerateArguments {
    /// How values are distributed.
    #[arg(long, value_enum, default_value_t = GenerateMode::Reference)]
    pub mode: GenerateMode,
    /// Number of events.
    #[arg(long, default_value_t = 2_000_000)]
    pub rows: u64,
    /// Same seed, same bytes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Events per second; without it as fast as possible.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// Give events a time, spread over a span such as "3 hours"; some are late. Without it they carry none, and realistic events
    /// are spread over an hour.
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub span: Option<Duration>,
    /// The end of the span, RFC 3339; now by default.
    #[arg(long, value_name = "TIME")]
    pub end_time: Option<jiff::Timestamp>,
    /// Where the events go.
    #[arg(long, value_enum, default_value_t = GenerateTo::Stdout)]
    pub to: GenerateTo,
    /// Topic to write to (`--to topic`; created if it is not there), or of the embedded broker (`--serve`).
    #[arg(long, default_value = "clickstream")]
    pub topic: String,
    /// Partitions of a topic that is created; realistic events have so many producers, each with a partition of its own.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub partitions: u16,
    /// Kafka bootstrap servers, comma-separated (`--to topic`).
    #[arg(long, value_delimiter = ',')]
    pub brokers: Vec<String>,
    /// File to write (`--to file`).
    #[arg(long, value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Write what is in the events (rows, distinct counts, ..) as JSON into this file.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub truth: Option<PathBuf>,
    /// Run a Kafka broker inside this process that serves the events, until SIGTERM or Ctrl-C.
    #[arg(long, conflicts_with_all = ["to", "brokers", "path"])]
    pub serve: bool,
    /// Address of the embedded broker; port 0 takes a free one and prints it.
    #[arg(long, default_value = "127.0.0.1:0", requires = "serve")]
    pub listen: SocketAddr,
    /// Write the address of the embedded broker into this file once it answers.
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub address_file: Option<PathBuf>,
    /// Send the lines of this file instead of generated events (`--serve`, `--to topic`).
    #[arg(long, value_name = "FILE.ndjson", conflicts_with_all = ["rows", "seed", "mode", "span"])]
    pub from: Option<PathBuf>,
    #[command(flatten)]
    pub realistic: RealisticArguments,
}

/// A span of time such as "3 hours" or "P2D"; a day has 24 hours.
fn span(text: &str) -> Result<Duration, String> {
    let span: jiff::Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    let span = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    Duration::try_from(span).map_err(|_| "a span must not be negative".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerateMode {
    /// Independent, uniform fields: the worst case for rollups, and what existing producers send.
    Reference,
    /// Tenants and devices of very different size, coherent sessions, late, repeated and malformed events.
    Realistic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GenerateTo {
    Topic,
    File,
    Stdout,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
