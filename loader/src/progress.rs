//! What a person sees while the loader runs: a bar on a terminal, else a line every minute.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;

const SUMMARY: Duration = Duration::from_secs(60);
const REDRAW: Duration = Duration::from_millis(200);

/// The task that shows progress; dropping it takes the bar away.
#[derive(Debug)]
pub struct Progress(JoinHandle<()>);

/// What the bar measures.
#[derive(Clone, Debug)]
pub enum Measure {
    /// Messages, against those that wait in the topic.
    Messages,
    /// Bytes read from a file, of all that it has.
    Bytes { read: Arc<AtomicU64>, total: u64 },
}

impl Progress {
    /// Shows progress on stderr.
    pub fn start(metrics: Arc<Metrics>, measure: Measure) -> Self {
        Self(if std::io::stderr().is_terminal() {
            tokio::spawn(bar(metrics, measure))
        } else {
            tokio::spawn(summaries(metrics, measure))
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes the bar off the screen when the task is aborted.
struct Shown(ProgressBar);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn bar(metrics: Arc<Metrics>, measure: Measure) {
    let bar = Shown(ProgressBar::no_length());
    let style = ProgressStyle::with_template(match measure {
        Measure::Messages => "{spinner} {wide_bar} {human_pos}/{human_len} messages, {per_sec}, {elapsed}{msg}",
        Measure::Bytes { .. } => {
            "{spinner} {wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {elapsed}, {eta} left{msg}"
        }
    });
    bar.0.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    loop {
        let done = metrics.rows.load(Relaxed) + metrics.dead();
        match &measure {
            Measure::Messages => {
                if let Some(lag) = metrics.lag() {
                    bar.0.set_length(done + lag as u64);
                }
                bar.0.set_position(done);
                bar.0.set_message(state(&metrics, &measure));
            }
            Measure::Bytes { read, total } => {
                bar.0.set_length(*total);
                bar.0.set_position(read.load(Relaxed));
                bar.0.set_message(format!(", {} rows{}", metrics.rows.load(Relaxed), state(&metrics, &measure)));
            }
        }
        tokio::time::sleep(REDRAW).await;
    }
}

async fn summaries(metrics: Arc<Metrics>, measure: Measure) {
    let (mut since, mut before) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(SUMMARY).await;
        let rows = metrics.rows.load(Relaxed);
        let rate = (rows - before) as f64 / since.elapsed().as_secs_f64();
        let place = match &measure {
            Measure::Messages => {
                format!("lag {}", metrics.lag().map_or_else(|| "unknown".to_owned(), |lag| lag.to_string()))
            }
            Measure::Bytes { read, total } => format!("{} of {total} bytes read", read.load(Relaxed)),
        };
        tracing::info!("{rows} rows so far, {rate:.0} rows/s, {place}{}", state(&metrics, &measure));
        (since, before) = (Instant::now(), rows);
    }
}

/// What is worth saying beside the numbers.
fn state(metrics: &Metrics, measure: &Measure) -> String {
    let mut text = String::new();
    let dead = metrics.dead();
    if dead > 0 {
        text.push_str(&format!(", {dead} dead letters"));
    }
    if !metrics.postgres_up.load(Relaxed) {
        text.push_str(", waiting for PostgreSQL");
    }
    if matches!(measure, Measure::Messages) && !metrics.kafka_up.load(Relaxed) {
        text.push_str(", waiting for Kafka");
    }
    text
}
