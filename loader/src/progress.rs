//! What a person sees while the loader runs: a bar on a terminal, else a line every minute.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

use crate::metrics::Metrics;

const SUMMARY: Duration = Duration::from_secs(60);
const REDRAW: Duration = Duration::from_millis(200);

/// The task that shows progress; dropping it takes the bar away.
#[derive(Debug)]
pub struct Progress(JoinHandle<()>);

impl Progress {
    /// Shows progress on stderr.
    pub fn start(metrics: Arc<Metrics>) -> Self {
        Self(if std::io::stderr().is_terminal() {
            tokio::spawn(bar(metrics))
        } else {
            tokio::spawn(summaries(metrics))
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

async fn bar(metrics: Arc<Metrics>) {
    let bar = Shown(ProgressBar::no_length());
    let style = ProgressStyle::with_template(
        "{spinner} {wide_bar} {human_pos}/{human_len} messages, {per_sec}, {elapsed}{msg}",
    );
    bar.0.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    loop {
        let done = metrics.rows.load(Relaxed) + metrics.dead();
        if let Some(lag) = metrics.lag() {
            bar.0.set_length(done + lag as u64);
        }
        bar.0.set_position(done);
        bar.0.set_message(state(&metrics));
        tokio::time::sleep(REDRAW).await;
    }
}

async fn summaries(metrics: Arc<Metrics>) {
    let (mut since, mut before) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(SUMMARY).await;
        let rows = metrics.rows.load(Relaxed);
        let rate = (rows - before) as f64 / since.elapsed().as_secs_f64();
        let lag = metrics.lag().map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
        tracing::info!("{rows} rows so far, {rate:.0} rows/s, lag {lag}{}", state(&metrics));
        (since, before) = (Instant::now(), rows);
    }
}

/// What is worth saying beside the numbers.
fn state(metrics: &Metrics) -> String {
    let mut text = String::new();
    let dead = metrics.dead();
    if dead > 0 {
        text.push_str(&format!(", {dead} dead letters"));
    }
    if !metrics.postgres_up.load(Relaxed) {
        text.push_str(", waiting for PostgreSQL");
    }
    if !metrics.kafka_up.load(Relaxed) {
        text.push_str(", waiting for Kafka");
    }
    text
}
